//! Mapped ports on 127.0.0.1, and who must not get there (docs/requirements.md#r-54).

use std::process::{Child, Command};

use serde_json::json;

use crate::lab::{Lab, mapping, on_every_backend};

/// Lets `netns` send packets for 127.0.0.1 to `gateway`, as somebody with bad intentions would.
fn send_localhost_away(lab: &Lab, netns: &str, link: &str, gateway: &str) {
    lab.node.sh(&format!(
        "ip netns exec {netns} sh -c 'ip link set lo down; \
         for k in all {link}; do echo 1 > /proc/sys/net/ipv4/conf/$k/route_localnet; echo 0 > /proc/sys/net/ipv4/conf/$k/rp_filter; done; \
         ip route add 127.0.0.1/32 via {gateway} dev {link} table 100; \
         ip rule add pref 5 from all lookup local; ip rule del pref 0 from all lookup local; \
         ip rule add pref 0 to 127.0.0.1 lookup 100'",
    ));
}

/// Serves 127.0.0.1:9999 of the host as long as it lives.
struct Secret(Child);

impl Secret {
    fn new(lab: &Lab) -> Self {
        let serving = Command::new("socat")
            .args([
                "TCP-LISTEN:9999,bind=127.0.0.1,fork,reuseaddr",
                "SYSTEM:echo LEAK",
            ])
            .spawn()
            .unwrap();
        while !lab.node.succeeds("ss -Hltn | grep -q ':9999 '") {}
        Self(serving)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn localhost_of_the_host_stays_its_own() {
    on_every_backend(|mut lab| {
        lab.add("c1", &json!([mapping("tcp", 8080, 80)]));
        lab.serve("c1", "tcp", 80, "c1");
        assert_eq!(lab.call("", "tcp", "127.0.0.1", 8080), "c1 10.9.0.1");
        let _secret = Secret::new(&lab);
        assert_eq!(lab.call("", "tcp", "127.0.0.1", 9999), "LEAK");
        // A container, a machine on the containers' bridge, and one on another link for
        // which somebody else has switched route_localnet on.
        lab.add("evil", &json!([]));
        send_localhost_away(&lab, "evil", "eth0", "10.9.0.1");
        lab.node.sh(
            "ip netns add lan && ip link add lan0 type veth peer name lan1 netns lan && \
             ip link set lan0 master br1 up && ip -n lan addr add 10.9.0.99/24 dev lan1 && \
             ip -n lan link set lan1 up && echo 1 > /proc/sys/net/ipv4/conf/up0/route_localnet",
        );
        send_localhost_away(&lab, "lan", "lan1", "10.9.0.1");
        send_localhost_away(&lab, "ext", "up1", "192.0.2.1");
        for neighbour in ["evil", "lan", "ext"] {
            assert_eq!(
                lab.call(neighbour, "tcp", "127.0.0.1", 9999),
                "",
                "{}: {neighbour} reached a service on 127.0.0.1",
                lab.backend
            );
        }
        assert_eq!(lab.call("", "tcp", "127.0.0.1", 8080), "c1 10.9.0.1");
        // Without the guard they all get there: the packets are what they should be.
        lab.node.sh("nft delete table ip cnibox_localnet");
        for neighbour in ["evil", "lan", "ext"] {
            let answer = lab.call(neighbour, "tcp", "127.0.0.1", 9999);
            assert_eq!(answer, "LEAK", "{} {neighbour}", lab.backend);
        }
    });
}

#[test]
fn nothing_is_switched_on_for_mappings_without_127_0_0_1() {
    on_every_backend(|lab| {
        let at = |host_ip| json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": host_ip});
        lab.add("c1", &json!([at("192.0.2.1"), at("::"), at("::1")]));
        let switch = "/proc/sys/net/ipv4/conf/br1/route_localnet";
        assert_eq!(lab.node.sh(&format!("cat {switch}")), "0\n");
        assert!(!lab.rules().contains("cnibox_localnet"));
        lab.add("c2", &json!([at("127.0.0.1")]));
        assert_eq!(lab.node.sh(&format!("cat {switch}")), "1\n");
        assert!(lab.rules().contains("cnibox_localnet"));
    });
}

#[test]
fn check_misses_what_keeps_neighbours_from_localhost() {
    for backend in ["nftables", "iptables-nft"] {
        std::thread::spawn(move || {
            let lab = Lab::new(backend);
            let mappings = json!([mapping("tcp", 8081, 80)]);
            lab.add("c1", &mappings);
            lab.cnitool("check", "c1", &mappings).silent();
            let misses = |word: &str| {
                let checked = lab.cnitool("check", "c1", &mappings);
                assert!(
                    !checked.ok && checked.stderr.contains(word),
                    "{backend}: {checked:?}"
                );
            };
            lab.node.sh("nft delete table ip cnibox_localnet");
            let warned = lab.cnitool("check", "c1", &mappings);
            warned.silent();
            assert!(warned.stderr.contains("cnibox_localnet"), "{warned:?}");
            // The next ADD brings it back, but not who else needs it; that is restored.
            lab.add("c2", &json!([mapping("tcp", 8082, 80)]));
            let warned = lab.cnitool("check", "c1", &mappings);
            warned.silent();
            assert!(
                warned.stderr.contains("cnibox_localnet users '{' '\"br1\"' . ")
                    && !warned.stderr.contains("drop"),
                "{warned:?}"
            );
            assert!(lab.restore(&[]).ok);
            let quiet = lab.cnitool("check", "c1", &mappings);
            quiet.silent();
            assert_eq!(quiet.stderr, "");
            lab.node
                .sh("echo 0 > /proc/sys/net/ipv4/conf/br1/route_localnet");
            misses("route_localnet");
            // Without a way from 127.0.0.1 into a container there is nothing to guard.
            let outside = json!([{"hostPort": 8083, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}]);
            lab.add("c3", &outside);
            lab.node.sh("nft delete table ip cnibox_localnet");
            lab.cnitool("check", "c3", &outside).silent();
        })
        .join()
        .unwrap();
    }
}
