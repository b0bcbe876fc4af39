//! Where connections come from, and whom the callee sees.

use serde_json::json;

use crate::lab::{Lab, mapping, on_every_backend};

/// The table that the closing note shows: one line for each protocol and family.
fn everywhere(backend: &'static str) {
    let mut lab = Lab::new(backend);
    let mappings = json!([
        mapping("tcp", 8080, 80),
        mapping("udp", 5353, 53),
        mapping("sctp", 9000, 90),
    ]);
    lab.add("c1", &mappings);
    lab.add("c2", &json!([]));
    lab.serve("c1", "tcp", 80, "c1");
    lab.serve("c1", "udp", 53, "c1");
    lab.serve("c1", "sctp", 90, "c1");
    for (protocol, port) in [("tcp", 8080), ("udp", 5353), ("sctp", 9000)] {
        for (family, host, loopback) in [("v4", "192.0.2.1", "127.0.0.1"), ("v6", "fd00:2::1", "")]
        {
            for (place, netns, address) in [
                ("another machine", "ext", host),
                ("the host", "", host),
                ("the host by loopback", "", loopback),
                ("another container", "c2", host),
                ("the container itself", "c1", host),
            ] {
                // The kernel has no route_localnet for IPv6; the reference does not either.
                if address.is_empty() {
                    continue;
                }
                let answer = lab.call(netns, protocol, address, port);
                println!("{backend:16} {protocol} {family} {place:22} {answer}");
                assert!(
                    answer.starts_with("c1 "),
                    "{backend} {protocol} {family} from {place}: {answer:?}\n{}",
                    lab.rules()
                );
            }
        }
    }
    lab.cnitool("check", "c1", &mappings).silent();
    lab.cnitool("check", "c2", &json!([])).silent();
}

#[test]
fn from_everywhere_with_nftables() {
    everywhere("nftables");
}

#[test]
fn from_everywhere_with_iptables_nft() {
    everywhere("iptables-nft");
}

#[test]
fn from_everywhere_with_iptables_legacy() {
    everywhere("iptables-legacy");
}

#[test]
fn the_world_sees_the_hosts_address_where_it_is_masqueraded() {
    on_every_backend(|mut lab| {
        lab.serve("ext", "tcp", 7000, "ext");
        lab.add("c1", &json!([]));
        assert_eq!(lab.call("c1", "tcp", "192.0.2.9", 7000), "ext 192.0.2.1");
        assert!(
            lab.call("c1", "tcp", "fd00:2::9", 7000)
                .ends_with("fd00:2::1")
        );
        lab.configure(&json!({"ipMasq": false}), &json!({}));
        lab.add("c2", &json!([]));
        assert_eq!(lab.call("c2", "tcp", "192.0.2.9", 7000), "ext 10.9.0.3");
        // Inside the network nobody's address is changed.
        lab.serve("c2", "tcp", 7001, "c2");
        assert_eq!(lab.call("c1", "tcp", "10.9.0.3", 7001), "c2 10.9.0.2");
    });
}

#[test]
fn a_mapping_shows_who_calls_unless_all_is_masqueraded() {
    on_every_backend(|mut lab| {
        lab.add("c1", &json!([mapping("tcp", 8081, 80)]));
        lab.serve("c1", "tcp", 80, "c1");
        assert_eq!(lab.call("ext", "tcp", "192.0.2.1", 8081), "c1 192.0.2.9");
        assert_eq!(lab.call("ext", "tcp", "fd00:2::1", 8081), "c1 fd00:2::9");
        lab.configure(&json!({}), &json!({"masqAll": true}));
        let mappings = json!([mapping("tcp", 8082, 80)]);
        lab.add("c2", &mappings);
        lab.serve("c2", "tcp", 80, "c2");
        assert_eq!(lab.call("ext", "tcp", "192.0.2.1", 8082), "c2 10.9.0.1");
        assert_eq!(lab.call("ext", "tcp", "fd00:2::1", 8082), "c2 fd00:9::1");
        lab.cnitool("check", "c2", &mappings).silent();
        // What does not come through the mapping is left alone.
        assert_eq!(lab.call("c1", "tcp", "10.9.0.3", 80), "c2 10.9.0.2");
    });
}

#[test]
fn without_snat_only_others_are_let_in() {
    on_every_backend(|mut lab| {
        // What is contradicted is said, and the more cautious word counts.
        lab.configure(&json!({}), &json!({"snat": false, "masqAll": true}));
        let mappings = json!([mapping("tcp", 8080, 80), mapping("sctp", 8080, 80)]);
        lab.node.netns("c1");
        let added = lab.cnitool("add", "c1", &mappings);
        assert!(
            added.ok && added.stderr.contains("masqAll has no effect"),
            "{added:?}"
        );
        lab.serve("c1", "tcp", 80, "c1");
        assert_eq!(lab.call("ext", "tcp", "192.0.2.1", 8080), "c1 192.0.2.9");
        // Nothing was switched on for 127.0.0.1.
        let localnet = lab
            .node
            .sh("cat /proc/sys/net/ipv4/conf/br1/route_localnet");
        assert_eq!(localnet.trim(), "0");
        assert!(!lab.rules().contains("cnibox_localnet"));
        lab.cnitool("check", "c1", &mappings).silent();
    });
}

#[test]
fn a_container_cannot_send_from_another_hardware_address() {
    let lab = Lab::new("nftables");
    lab.configure(&json!({"macspoofchk": true}), &json!({}));
    lab.add("c1", &json!([]));
    lab.node.ping("/run/netns/c1", "10.9.0.1");
    lab.cnitool("check", "c1", &json!([])).silent();
    lab.node
        .sh("ip -n c1 link set dev eth0 address 02:00:00:00:00:66 && ip -n c1 neigh flush all");
    assert!(
        !lab.node
            .succeeds("ip netns exec c1 ping -n -c 1 -W 1 10.9.0.1")
    );
    lab.cnitool("del", "c1", &json!([])).silent();
    let rules = lab.rules();
    assert!(!rules.contains("cni-br-iface"), "{rules}");
}
