//! Sysctls of the host: how the kernel combines a link's value with that of `all`, what ADD
//! writes and what it leaves alone, what it says when forwarding would cost the host its way
//! out, and what `cnitool doctor` makes of all that. The kernel is asked with packets.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test that cannot do its work says so by panicking; doors are for the product"
)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::{Node, Servers, run, with, with_result};
use serde_json::{Value, json};

/// Makes `/proc/sys` read-only, as on restricted hosts.
const READ_ONLY: &str = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && \
     ! echo 0 2>/dev/null > /proc/sys/net/ipv4/ip_forward";

fn value(node: &Node, key: &str) -> String {
    let text = node.sh(&format!("cat /proc/sys/net/{key}"));
    text.trim().to_owned()
}

/// A bridge of IPv4 that is the gateway, and ports.
fn network() -> (Value, Value) {
    let bridge = json!({"cniVersion": "1.0.0", "name": "net1", "bridge": "br1", "isGateway": true,
        "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}});
    let portmap = json!({"cniVersion": "1.0.0", "name": "net1", "type": "portmap",
        "backend": "nftables", "runtimeConfig": {"portMappings": [
            {"hostPort": 8081, "containerPort": 80, "protocol": "tcp"}]}});
    (bridge, portmap)
}

#[test]
fn a_read_only_proc_sys_with_a_sufficient_all_is_enough() {
    let node = Node::new();
    node.sh("cd /proc/sys/net/ipv4; echo 1 > ip_forward; echo 1 > conf/all/route_localnet");
    node.sh(READ_ONLY);
    let c1 = node.netns("c1");
    let (bridge, portmap) = network();
    let bridge_call = node.plugin("bridge").netns(&c1);
    let result = bridge_call.run("ADD", &bridge).json();
    let portmap = with_result(&portmap, &result);
    let call = node.plugin("portmap").netns(&c1);
    call.run("ADD", &portmap).json();
    assert_eq!(value(&node, "ipv4/conf/br1/route_localnet"), "0");
    call.run("CHECK", &portmap).silent();
    let mut server = Servers::default();
    server.0.push(
        Command::new("ip")
            .args([
                "netns",
                "exec",
                "c1",
                "socat",
                "TCP-LISTEN:80,fork,reuseaddr",
                "SYSTEM:echo hello",
            ])
            .spawn()
            .unwrap(),
    );
    let answer = node.sh(
        "until ip netns exec c1 ss -Hltn | grep -q :80; do sleep 0.02; done; \
         socat -T 5 - TCP:127.0.0.1:8081,connect-timeout=5 </dev/null",
    );
    assert_eq!(answer, "hello\n");
    call.run("DEL", &portmap).silent();
    bridge_call.run("DEL", &bridge).silent();

    // Without it ADD says what to set before there is the link.
    node.sh(
        "umount /proc/sys; echo 0 > /proc/sys/net/ipv4/conf/all/route_localnet; ip link del br1",
    );
    node.sh(READ_ONLY);
    let result = bridge_call.run("ADD", &bridge).json();
    let (code, message, details) = call.run("ADD", &with_result(&portmap, &result)).error();
    assert_eq!(code, 5);
    let told = format!("{message}; {details}");
    assert!(
        told.contains("set /proc/sys/net/ipv4/conf/all/route_localnet to 1 beforehand"),
        "{told}"
    );
}

#[test]
fn what_all_says_already_is_not_written() {
    let node = Node::new();
    node.sh("cd /proc/sys/net/ipv4; echo 1 > ip_forward; echo 1 > conf/all/route_localnet");
    let c1 = node.netns("c1");
    let (bridge, portmap) = network();
    let result = node.plugin("bridge").netns(&c1).run("ADD", &bridge).json();
    let portmap = with_result(&portmap, &result);
    let call = node.plugin("portmap").netns(&c1);
    call.run("ADD", &portmap).json();
    assert_eq!(value(&node, "ipv4/conf/br1/route_localnet"), "0");
    call.run("CHECK", &portmap).silent();
    // Once `all` says no more, the link's own value counts.
    node.sh("echo 0 > /proc/sys/net/ipv4/conf/all/route_localnet");
    let (_, message, details) = call.run("CHECK", &portmap).error();
    let told = format!("{message}; {details}");
    assert!(
        told.contains("sysctl -w net/ipv4/conf/br1/route_localnet=1"),
        "{told}"
    );
    call.run("ADD", &portmap).json();
    assert_eq!(value(&node, "ipv4/conf/br1/route_localnet"), "1");
    call.run("CHECK", &portmap).silent();
    call.run("DEL", &portmap).silent();
    assert_eq!(value(&node, "ipv4/conf/br1/route_localnet"), "0");
}

/// A network of IPv6 that makes the host a router.
fn ipv6_network(plugin: &str) -> Value {
    json!({"cniVersion": "1.0.0", "name": "net1", "type": plugin, "bridge": "br1", "isGateway": true,
        "ipam": {"type": "host-local", "subnet": "fd00:9::/64", "routes": [{"dst": "::/0"}]}})
}

/// A node that has its default route of IPv6 from a router behind `up0`, and no other.
fn advertised() -> (Node, Servers) {
    let node = Node::new();
    node.sh("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding
         ip netns add router && ip link add up0 type veth peer name up1 netns router
         for name in up0:accept_ra:1 up0:accept_dad:0; do
             set -- $(echo $name | tr : ' '); echo $3 > /proc/sys/net/ipv6/conf/$1/$2; done
         ip netns exec router sh -c 'echo 0 > /proc/sys/net/ipv6/conf/up1/accept_dad
             echo 1 > /proc/sys/net/ipv6/conf/all/forwarding'
         ip link set up0 up; ip -n router link set up1 up");
    // RFC 4861, section 4.2: a router for half an hour, and a prefix to make addresses from.
    let send = "import socket,time\n\
        s=socket.socket(socket.AF_INET6,socket.SOCK_RAW,58)\n\
        s.setsockopt(41,18,255)\n\
        i=socket.if_nametoindex('up1')\n\
        ra=bytes.fromhex('8600000040000708'+'0'*16+'030440c000015180000038400000000020010db8000500000000000000000000')\n\
        for _ in range(1200):\n\
        \x20try: s.sendto(ra,('ff02::1',0,0,i))\n\
        \x20except OSError: pass # no address yet\n\
        \x20time.sleep(0.1)";
    let mut servers = Servers::default();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", "router", "python3", "-c", send]);
    servers.0.push(command.spawn().unwrap());
    node.sh("for i in $(seq 200); do ip -6 route show default | grep -q . && exit; sleep 0.05; done; exit 1");
    (node, servers)
}

#[test]
fn a_default_route_from_a_router_survives_forwarding() {
    for plugin in ["bridge", "ptp"] {
        let (node, _router) = advertised();
        // A link that has no such route stays as it is.
        node.sh("ip link add other type bridge; echo 1 > /proc/sys/net/ipv6/conf/other/accept_ra");
        let call = node.plugin(plugin).netns(&node.netns("c1"));
        let config = ipv6_network(plugin);
        let added = call.run("ADD", &config);
        added.json();
        assert_eq!(value(&node, "ipv6/conf/all/forwarding"), "1");
        assert_eq!(value(&node, "ipv6/conf/up0/accept_ra"), "2");
        assert_eq!(value(&node, "ipv6/conf/other/accept_ra"), "1");
        let line = "learnt its IPv6 default route through up0 from router advertisements";
        assert!(added.stderr.contains(line), "{added:?}");
        let route = node.sh("ip -6 route show default");
        assert!(route.contains("dev up0 proto ra"), "{plugin}: {route}");
        // Said once: the second container finds it done.
        let second = node.plugin(plugin).id("c2").netns(&node.netns("c2"));
        let added = second.run("ADD", &config);
        added.json();
        assert!(!added.stderr.contains("accept_ra"), "{added:?}");
        // Whoever takes the advertisements for the kernel goes on doing it.
        call.run("DEL", &config).silent();
        assert_eq!(value(&node, "ipv6/conf/up0/accept_ra"), "2");
    }
}

#[test]
fn what_takes_advertisements_instead_of_the_kernel_stays_as_it_is() {
    let (node, _router) = advertised();
    // As systemd-networkd and NetworkManager do it.
    node.sh("echo 0 > /proc/sys/net/ipv6/conf/up0/accept_ra
         via=$(ip -6 route show default | sed 's/.*via \\([^ ]*\\).*/\\1/')
         ip -6 route flush default; ip -6 route add default via $via dev up0 proto ra");
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    let added = call.run("ADD", &ipv6_network("bridge"));
    added.json();
    assert_eq!(value(&node, "ipv6/conf/up0/accept_ra"), "0");
    assert!(!added.stderr.contains("accept_ra"), "{added:?}");
    assert!(node.sh("ip -6 route show default").contains("dev up0"));
}

#[test]
fn a_failed_add_takes_forwarding_back() {
    for plugin in ["bridge", "ptp"] {
        let (node, _router) = advertised();
        let call = node.plugin(plugin).netns(&node.netns("c1"));
        // The last thing that ADD does cannot be done.
        let config = with(
            ipv6_network(plugin),
            json!({"ipMasq": true, "ipMasqBackend": "iptables"}),
        );
        let broken = call.clone().env("PATH", "/nonexistent");
        assert!(!broken.run("ADD", &config).ok);
        assert_eq!(value(&node, "ipv6/conf/all/forwarding"), "0", "{plugin}");
        assert_eq!(value(&node, "ipv6/conf/up0/accept_ra"), "1", "{plugin}");
        node.sh("for i in $(seq 100); do ip -6 route show default | grep -q . && exit; sleep 0.05; done; exit 1");
        // What was on before stays on.
        call.run("ADD", &ipv6_network(plugin)).json();
        let other = broken.id("c2").netns(&node.netns("c2"));
        assert!(!other.run("ADD", &config).ok);
        assert_eq!(value(&node, "ipv6/conf/all/forwarding"), "1", "{plugin}");
        assert_eq!(value(&node, "ipv6/conf/up0/accept_ra"), "2", "{plugin}");
    }
}

/// The networks `net1`, of a bridge, and `net2`, of ptp, each with a container whose address is
/// its network's second.
struct Lab {
    node: Node,
    conf: PathBuf,
}

impl Lab {
    fn new() -> Self {
        let node = Node::new();
        // Nothing is inherited from the machine that the test runs on.
        node.sh("for of in all default; do cd /proc/sys/net/ipv4/conf/$of; \
             echo 0 > arp_ignore; echo 0 > arp_filter; echo 0 > rp_filter; done");
        node.machine("2001:db8:1");
        node.sh("ip route add default via 192.0.2.9; ip -6 route add default via 2001:db8:1::9");
        let conf = node.dir.path().join("net.d");
        fs::create_dir(&conf).unwrap();
        let write = |name: &str, plugin: Value| {
            let list = json!({"cniVersion": "1.0.0", "name": name, "plugins": [plugin]});
            fs::write(conf.join(format!("{name}.conflist")), list.to_string()).unwrap();
        };
        // A container that is attached anew has the same address.
        let ipam = |net: u8| {
            json!({"type": "static", "routes": [{"dst": "0.0.0.0/0"}], "addresses": [
                {"address": format!("10.{net}.0.2/24"), "gateway": format!("10.{net}.0.1")}]})
        };
        write(
            "net1",
            json!({"type": "bridge", "bridge": "br1", "isGateway": true, "ipam": ipam(1)}),
        );
        write("net2", json!({"type": "ptp", "ipam": ipam(2)}));
        Self { node, conf }
    }

    fn cnitool(&self, args: &[&str]) -> common::Output {
        self.node.cnitool(&self.conf, args)
    }

    /// Attaches c1 and c2 anew.
    fn attach(&self) {
        self.node
            .sh("ip netns del c1 2>/dev/null; ip netns del c2 2>/dev/null; true");
        for (network, name) in [("net1", "c1"), ("net2", "c2")] {
            let netns = format!("/run/netns/{name}");
            self.cnitool(&["del", network, &netns, "--id", name]);
            self.node.netns(name);
            let added = self.cnitool(&["add", network, &netns, "--id", name]);
            assert!(added.ok, "{added:?}");
        }
    }

    /// Whether a container and its gateway find each other, who know nothing of each other.
    fn find_each_other(&self, container: &str) -> bool {
        let net = container.trim_start_matches('c');
        let ping = format!("ping -n -c 1 -W 1 10.{net}.0");
        self.node.sh(&format!(
            "ip neigh flush all; ip -n {container} neigh flush all"
        ));
        self.node
            .succeeds(&format!("ip netns exec {container} {ping}.1"))
            && self.node.succeeds(&format!(
                "ip neigh flush all; ip -n {container} neigh flush all; {ping}.2"
            ))
    }

    fn findings(&self) -> Vec<Value> {
        // What did not answer a moment ago is not what this is about.
        self.node
            .sh("ip neigh flush all; ip -n c1 neigh flush all; ip -n c2 neigh flush all");
        let found = self.cnitool(&["doctor", "--json"]);
        let found: Value = serde_json::from_str(&found.stdout).unwrap();
        found["findings"].as_array().unwrap().clone()
    }
}

/// Doctor tells of these sysctls exactly where the kernel does not answer because of them, and
/// what it advises helps, without naming a link that goes with its container.
#[test]
fn doctor_knows_what_the_kernel_does_not_answer() {
    let lab = Lab::new();
    lab.attach();
    let end = lab
        .node
        .sh("ip -br link show type veth | grep -o 'veth[^@ ]*' | tail -1");
    let mut silent = Vec::new();
    for (netns, of) in [
        ("", "all"),
        ("", "br1"),
        ("", "default"),
        ("", end.trim()),
        ("ip netns exec c1 ", "eth0"),
        ("ip netns exec c2 ", "all"),
    ] {
        for mode in [0, 1, 2, 3, 8] {
            let set = |mode| {
                lab.node.sh(&format!(
                    "{netns}sh -c 'echo {mode} > /proc/sys/net/ipv4/conf/{of}/arp_ignore'"
                ));
            };
            set(mode);
            // New links start with it.
            if of == "default" {
                lab.attach();
            }
            let case = format!("{netns}{of} {mode}");
            let found = lab.findings();
            let answers = ["c1", "c2"].map(|name| lab.find_each_other(name));
            let told = found
                .iter()
                .any(|f| f["what"].as_str().unwrap().contains("arp_ignore"));
            assert_eq!(told, answers != [true; 2], "{case}: {answers:?} {found:?}");
            if told {
                silent.push(case.clone());
            }
            for finding in &found {
                let mend = finding["mend"].as_str().unwrap();
                assert!(!mend.contains("conf/veth"), "{case}: {mend}");
                // What is a command is run; the rest is to attach the container again.
                let command = mend.split("; then ").next().unwrap();
                if command.contains("sysctl -w") {
                    lab.node.sh(command);
                }
                if mend.contains("restart the container") {
                    lab.attach();
                }
            }
            let left = lab.findings();
            assert!(left.is_empty(), "{case}: {found:?} {left:?}");
            assert!(
                ["c1", "c2"].iter().all(|name| lab.find_each_other(name)),
                "{case}"
            );
            set(0);
        }
    }
    assert!(silent.contains(&"all 2".to_owned()), "{silent:?}");
    assert!(silent.contains(&"br1 8".to_owned()), "{silent:?}");
    assert!(silent.contains(&"default 2".to_owned()), "{silent:?}");
    assert!(
        silent.contains(&"ip netns exec c1 eth0 8".to_owned()),
        "{silent:?}"
    );
    assert!(!silent.contains(&"br1 2".to_owned()), "{silent:?}");
}

#[test]
fn doctor_knows_arp_filter() {
    let lab = Lab::new();
    lab.attach();
    for of in ["all", "br1"] {
        lab.node
            .sh(&format!("echo 1 > /proc/sys/net/ipv4/conf/{of}/arp_filter"));
        assert_eq!(lab.findings(), [] as [Value; 0]);
        assert!(lab.find_each_other("c1") && lab.find_each_other("c2"));
        lab.node.sh("ip route add 10.1.0.2/32 via 192.0.2.9");
        assert!(!lab.find_each_other("c1"));
        let found = lab.findings();
        let expected = format!(
            "net/ipv4/conf/{of}/arp_filter is 1: it answers ARP on br1 only to those whom it reaches by br1, and packets to 10.1.0.2 leave through up0"
        );
        let told = found.iter().find(|f| f["what"] == expected.as_str());
        let told = told.unwrap_or_else(|| panic!("{found:?}"));
        lab.node.sh(told["mend"].as_str().unwrap());
        lab.node.sh("ip route del 10.1.0.2/32");
        assert_eq!(lab.findings(), [] as [Value; 0]);
    }
}

#[test]
fn doctor_counts_the_links_own_forwarding() {
    let lab = Lab::new();
    lab.attach();
    let reaches = |name: &str| {
        lab.node
            .succeeds(&format!("ip netns exec {name} ping -n -c 1 -W 1 192.0.2.9"))
    };
    assert!(reaches("c1") && reaches("c2"));
    // Every link forwards, whatever `all` is.
    lab.node.sh("cd /proc/sys/net/ipv4; echo 0 > ip_forward; \
         for link in conf/*; do echo 1 > $link/forwarding; done; echo 0 > ip_forward; \
         for link in conf/br1 conf/up0 conf/veth*; do echo 1 > $link/forwarding; done");
    assert_eq!(value(&lab.node, "ipv4/ip_forward"), "0");
    assert!(reaches("c1") && reaches("c2"));
    assert_eq!(lab.findings(), [] as [Value; 0]);
    // A link that comes and goes with its container is not worth a sysctl of its own.
    lab.node
        .sh("cd /proc/sys/net/ipv4; echo 1 > ip_forward; echo 0 > conf/default/forwarding");
    lab.attach();
    assert!(reaches("c1") && !reaches("c2"));
    let found = lab.findings();
    assert_eq!(found.len(), 1, "{found:?}");
    let mend = found[0]["mend"].as_str().unwrap();
    assert!(
        mend.starts_with(
            "sysctl -w net/ipv4/conf/default/forwarding=1; then restart the container"
        ),
        "{mend}"
    );
    lab.node.sh(mend.split(';').next().unwrap());
    lab.attach();
    assert!(reaches("c1") && reaches("c2"));
    assert_eq!(lab.findings(), [] as [Value; 0]);
}

#[test]
fn doctor_finds_the_default_route_that_forwarding_has_cost() {
    let (node, _router) = advertised();
    let conf = node.dir.path().join("net.d");
    fs::create_dir(&conf).unwrap();
    let list = json!({"cniVersion": "1.0.0", "name": "net1", "plugins": [ipv6_network("bridge")]});
    fs::write(conf.join("net1.conflist"), list.to_string()).unwrap();
    node.netns("c1");
    let doctor = || node.cnitool(&conf, &["doctor"]).stdout;
    // Somebody who does not think of it.
    node.sh("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
    assert_eq!(node.sh("ip -6 route show default"), "");
    let added = node.cnitool(&conf, &["add", "net1", "/run/netns/c1", "--id", "c1"]);
    assert!(added.ok, "{added:?}");
    let told = doctor();
    assert!(
        told.contains(
            "error: host: it has no default route of IPv6, and takes none from the routers that up0 leads to: \
             it forwards, and net/ipv6/conf/up0/accept_ra is 1"
        ),
        "{told}"
    );
    let mend = told
        .lines()
        .find_map(|line| line.trim().strip_prefix("mend: "));
    assert!(run(Command::new("sh").args(["-c", mend.unwrap()]), "").ok);
    node.sh("for i in $(seq 100); do ip -6 route show default | grep -q . && exit; sleep 0.05; done; exit 1");
    assert_eq!(doctor(), "nothing is wrong\n");
}
