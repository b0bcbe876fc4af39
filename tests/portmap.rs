//! Port mappings and masquerading with real packets: every backend, every protocol, both
//! families, from every place a connection can come from.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::panic,
    clippy::print_stdout,
    clippy::unused_self,
    reason = "a test that cannot do its work says so by panicking; doors are for the product"
)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command};

use common::{Node, Output, run};
use serde_json::{Value, json};

/// A node with a second machine behind it, and networks on a backend.
struct Lab {
    node: Node,
    backend: &'static str,
    /// Where the backend's programs are found: nowhere, for nftables.
    path: String,
    servers: Vec<Child>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        for server in &mut self.servers {
            drop(server.kill());
            drop(server.wait());
        }
    }
}

const BACKENDS: [&str; 3] = ["nftables", "iptables-nft", "iptables-legacy"];

impl Lab {
    fn new(backend: &'static str) -> Self {
        let node = Node::new();
        let tools = node.dir.path().join("tools");
        fs::create_dir(&tools).unwrap();
        if backend != "nftables" {
            for (family, variant) in [
                ("iptables", backend),
                ("ip6tables", &backend.replace("ip", "ip6")),
            ] {
                for tool in ["", "-save", "-restore"] {
                    let program = PathBuf::from(format!("/usr/sbin/{variant}{tool}"));
                    assert!(
                        program.exists(),
                        "{} is needed: see `make test`",
                        program.display()
                    );
                    symlink(program, tools.join(format!("{family}{tool}"))).unwrap();
                }
            }
        }
        // The machines have been there for long: their link-local addresses are settled.
        node.sh(
            "ip netns add ext && ip link add up0 type veth peer name up1 netns ext && \
             echo 0 > /proc/sys/net/ipv6/conf/up0/accept_dad && \
             ip netns exec ext sh -c 'echo 0 > /proc/sys/net/ipv6/conf/up1/accept_dad' && \
             ip addr add 192.0.2.1/24 dev up0 && ip addr add fd00:2::1/64 dev up0 nodad && ip link set up0 up && \
             ip -n ext addr add 192.0.2.9/24 dev up1 && ip -n ext addr add fd00:2::9/64 dev up1 nodad && \
             ip -n ext link set lo up && ip -n ext link set up1 up && \
             ip -n ext route add default via 192.0.2.1 && ip -n ext route add default via fd00:2::1",
        );
        let path = tools.to_str().unwrap().to_owned();
        let lab = Self {
            node,
            backend,
            path,
            servers: Vec::new(),
        };
        lab.configure(&json!({}), &json!({}));
        lab
    }

    /// The backend, as configurations call it.
    fn word(&self) -> &'static str {
        self.backend.split('-').next().unwrap()
    }

    fn conf(&self) -> PathBuf {
        self.node.dir.path().join("net.d")
    }

    /// Writes the network, with changes to the bridge and the portmap plugin.
    fn configure(&self, bridge: &Value, portmap: &Value) {
        let merge = |mut base: Value, change: &Value| {
            for (key, value) in change.as_object().unwrap() {
                base[key] = value.clone();
            }
            base
        };
        let list = json!({
            "cniVersion": "1.1.0",
            "name": "net1",
            "plugins": [
                merge(json!({
                    "type": "bridge", "bridge": "br1", "isDefaultGateway": true, "hairpinMode": true,
                    "ipMasq": true, "ipMasqBackend": self.word(),
                    "ipam": {"type": "host-local",
                             "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]},
                }), bridge),
                merge(json!({
                    "type": "portmap", "backend": self.word(), "capabilities": {"portMappings": true},
                }), portmap),
            ],
        });
        fs::create_dir_all(self.conf()).unwrap();
        fs::write(self.conf().join("10-net1.conflist"), list.to_string()).unwrap();
    }

    fn cnitool(&self, command: &str, name: &str, mappings: &Value) -> Output {
        let caps = json!({"portMappings": mappings}).to_string();
        run(
            Command::new(self.node.bin.join("cnitool"))
                .args([
                    command,
                    "net1",
                    &format!("/run/netns/{name}"),
                    "--cap",
                    &caps,
                ])
                .env("CNI_PATH", &self.node.bin)
                .env("NETCONFPATH", self.conf())
                .env("PATH", &self.path),
            "",
        )
    }

    fn add(&self, name: &str, mappings: &Value) -> Value {
        self.node.netns(name);
        self.cnitool("add", name, mappings).json()
    }

    /// Serves TCP or UDP on a port in `netns` ("" is the host), IPv4 and IPv6: the answer is WHO and the
    /// address the caller is seen with.
    fn serve(&mut self, netns: &str, protocol: &str, port: u16, who: &str) {
        const SERVER: &str = "\
import socket, sys
kind, port, who = sys.argv[1], int(sys.argv[2]), sys.argv[3]
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM if kind == 'udp' else socket.SOCK_STREAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('::', port))
answer = lambda peer: (who + ' ' + peer[0].removeprefix('::ffff:')).encode()
if kind == 'udp':
    while True:
        peer = s.recvfrom(100)[1]
        s.sendto(answer(peer), peer)
s.listen()
while True:
    c, peer = s.accept()
    c.send(answer(peer))
    c.close()
";
        let child = python(netns, SERVER)
            .args([protocol, &port.to_string(), who])
            .spawn()
            .unwrap();
        self.servers.push(child);
        let proto = if protocol == "udp" { "-u" } else { "-t" };
        let inside = if netns.is_empty() {
            String::new()
        } else {
            format!("ip netns exec {netns}")
        };
        let listening = format!("{inside} ss -Hln {proto} | grep -q ':{port} '");
        for _ in 0..500 {
            if self.node.succeeds(&listening) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("nobody listens in {netns}");
    }

    /// Stops the server started last.
    fn stop_last(&mut self) {
        let mut server = self.servers.pop().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// What a server answers to a call from `netns` ("" is the host); empty for nothing.
    fn call(&self, netns: &str, protocol: &str, address: &str, port: u16) -> String {
        self.call_from(netns, protocol, address, port, 0)
    }

    /// The same, from a port of our choice.
    fn call_from(
        &self,
        netns: &str,
        protocol: &str,
        address: &str,
        port: u16,
        from: u16,
    ) -> String {
        // Ends with the answer, or after two seconds without one.
        const CLIENT: &str = "\
import socket, sys
kind, address, port, own = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
family = socket.AF_INET6 if ':' in address else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM if kind == 'udp' else socket.SOCK_STREAM)
s.settimeout(2)
try:
    if own: s.bind(('', own))
    s.connect((address, port))
    if kind == 'udp': s.send(b'?')
    print(s.recv(200).decode())
except OSError:
    pass
";
        let mut command = python(netns, CLIENT);
        command.args([protocol, address, &port.to_string(), &from.to_string()]);
        let output = run(&mut command, "");
        output.stdout.trim().to_owned()
    }

    /// Every rule of either kind on the node, for comparison: no counters, no dates.
    fn rules(&self) -> String {
        let text = self.node.sh(
            "{ nft list ruleset 2>/dev/null; iptables-legacy-save; ip6tables-legacy-save; } | \
             grep -v '^#' | sed 's/\\[[0-9]*:[0-9]*\\]//; s/counter packets [0-9]* bytes [0-9]*/counter/'",
        );
        // Elements of sets come in any order.
        let is_element = |line: &&str| line.contains(" comment ") && line.ends_with(['}', ',']);
        let (elements, mut lines): (Vec<_>, Vec<_>) = text.lines().partition(is_element);
        let mut elements: Vec<&str> = elements
            .iter()
            .map(|line| line.trim().trim_start_matches("elements = { "))
            .map(|line| line.trim_end_matches([',', ' ', '}']))
            .collect();
        elements.sort_unstable();
        lines.extend(elements);
        lines.join("\n")
    }
}

/// Runs a test on a lab of its own for each backend.
fn on_every_backend(test: fn(Lab)) {
    for backend in BACKENDS {
        std::thread::spawn(move || test(Lab::new(backend)))
            .join()
            .unwrap();
    }
}

/// A Python program in `netns`, "" being the host.
fn python(netns: &str, program: &str) -> Command {
    let mut command = Command::new(if netns.is_empty() { "python3" } else { "ip" });
    if !netns.is_empty() {
        command.args(["netns", "exec", netns, "python3"]);
    }
    command.args(["-c", program]);
    command
}

fn mapping(protocol: &str, host: u16, container: u16) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": protocol})
}

/// The table that the closing note shows: one line for each protocol and family.
fn everywhere(backend: &'static str) {
    let mut lab = Lab::new(backend);
    let mappings = json!([mapping("tcp", 8080, 80), mapping("udp", 5353, 53)]);
    lab.add("c1", &mappings);
    lab.add("c2", &json!([]));
    lab.serve("c1", "tcp", 80, "c1");
    lab.serve("c1", "udp", 53, "c1");
    for (protocol, port) in [("tcp", 8080), ("udp", 5353)] {
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
fn only_what_is_meant_for_this_host_is_intercepted() {
    on_every_backend(|mut lab| {
        // A mapping of port 53, and a DNS server elsewhere that a container asks.
        let everywhere = json!([mapping("tcp", 53, 80)]);
        lab.add("c1", &everywhere);
        lab.serve("c1", "tcp", 80, "c1");
        lab.serve("ext", "tcp", 53, "ext");
        lab.add("c2", &json!([]));
        for netns in ["", "c2"] {
            assert!(lab.call(netns, "tcp", "192.0.2.9", 53).starts_with("ext "));
            assert!(lab.call(netns, "tcp", "fd00:2::9", 53).starts_with("ext "));
        }
        // A mapping for one address of the host is not one for another.
        lab.node.sh("ip addr add 192.0.2.2/24 dev up0");
        let one = json!([{"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.2"}]);
        lab.add("c3", &one);
        lab.serve("c3", "tcp", 80, "c3");
        assert!(lab.call("ext", "tcp", "192.0.2.2", 8081).starts_with("c3 "));
        assert_eq!(lab.call("ext", "tcp", "192.0.2.1", 8081), "");
        // Nor does a mapping for an address that is not the host's catch anything.
        let foreign = json!([{"hostPort": 7000, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.9"}]);
        lab.add("c4", &foreign);
        lab.serve("c4", "tcp", 80, "c4");
        lab.serve("ext", "tcp", 7000, "ext");
        assert!(lab.call("c2", "tcp", "192.0.2.9", 7000).starts_with("ext "));
    });
}

#[test]
fn the_backend_is_chosen_as_the_reference_does() {
    on_every_backend(|lab| {
        let open = json!({"backend": null, "ipMasqBackend": null});
        lab.configure(&open, &open);
        let mappings = json!([mapping("tcp", 8080, 80)]);
        lab.add("c1", &mappings);
        // iptables where it can be used, nftables where only that can.
        let rules = lab.rules();
        for table in ["cni_plugins_masquerade", "cni_hostport"] {
            assert_eq!(rules.contains(table), lab.backend == "nftables", "{rules}");
        }
        assert_eq!(
            rules.contains("CNI-HOSTPORT-DNAT"),
            lab.backend != "nftables",
            "{rules}"
        );
        lab.cnitool("check", "c1", &mappings).silent();
        lab.cnitool("status", "c1", &mappings).silent();
    });
}

#[test]
fn conditions_exclude_what_the_operator_names() {
    on_every_backend(|mut lab| {
        let (v4, v6) = if lab.word() == "nftables" {
            (
                json!(["ip daddr != 192.0.2.2"]),
                json!(["ip6 daddr != fd00:2::2"]),
            )
        } else {
            (
                json!(["!", "-d", "192.0.2.2"]),
                json!(["!", "-d", "fd00:2::2"]),
            )
        };
        lab.configure(
            &json!({}),
            &json!({"conditionsV4": v4, "conditionsV6": v6, "markMasqBit": 5}),
        );
        // Addresses of this host that somebody else balances.
        lab.node
            .sh("ip addr add 192.0.2.2/24 dev up0 && ip addr add fd00:2::2/64 dev up0 nodad");
        let mappings = json!([mapping("tcp", 8080, 80)]);
        lab.add("c1", &mappings);
        lab.serve("c1", "tcp", 80, "c1");
        lab.serve("", "tcp", 8080, "host");
        for (mapped, excluded) in [("192.0.2.1", "192.0.2.2"), ("fd00:2::1", "fd00:2::2")] {
            assert!(lab.call("ext", "tcp", mapped, 8080).starts_with("c1 "));
            assert!(lab.call("ext", "tcp", excluded, 8080).starts_with("host "));
        }
        lab.cnitool("check", "c1", &mappings).silent();
        lab.cnitool("del", "c1", &mappings).silent();
        assert!(
            lab.call("ext", "tcp", "192.0.2.1", 8080)
                .starts_with("host ")
        );
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
fn what_is_deleted_is_gone_and_nobody_else_notices() {
    on_every_backend(|mut lab| {
        let (one, two) = (
            json!([mapping("tcp", 8081, 80)]),
            json!([mapping("tcp", 8082, 80)]),
        );
        // The shared tables and chains may stay: made once, they are the baseline.
        lab.add(
            "c0",
            &json!([mapping("tcp", 8080, 80), mapping("udp", 8080, 80)]),
        );
        lab.cnitool("del", "c0", &json!([])).silent();
        let before = lab.rules();
        assert!(!before.contains("10.9.0."), "{before}");
        lab.add("c1", &one);
        lab.add("c2", &two);
        lab.serve("c1", "tcp", 80, "c1");
        lab.serve("c2", "tcp", 80, "c2");
        assert!(lab.call("ext", "tcp", "192.0.2.1", 8081).starts_with("c1 "));
        // Without the port mappings, as a runtime that lost them would.
        lab.cnitool("del", "c1", &json!([])).silent();
        lab.cnitool("del", "c1", &json!([])).silent();
        assert_eq!(lab.call("ext", "tcp", "192.0.2.1", 8081), "");
        assert!(lab.call("ext", "tcp", "192.0.2.1", 8082).starts_with("c2 "));
        lab.cnitool("check", "c2", &two).silent();
        // Without the namespace.
        lab.node.sh("umount /run/netns/c2");
        lab.cnitool("del", "c2", &two).silent();
        assert_eq!(lab.rules(), before);
    });
}

#[test]
fn rules_go_without_namespace_and_without_result() {
    on_every_backend(|lab| {
        let mappings = json!([mapping("tcp", 8081, 80)]);
        lab.add("c0", &mappings);
        lab.cnitool("del", "c0", &mappings).silent();
        let before = lab.rules();
        lab.add("c1", &mappings);
        assert_ne!(lab.rules(), before);
        lab.node.sh("rm -r /var/lib/cni/results && ip netns del c1");
        lab.cnitool("del", "c1", &json!([])).silent();
        assert_eq!(lab.rules(), before);
    });
}

#[test]
fn the_newest_owner_of_a_port_gets_it() {
    on_every_backend(|mut lab| {
        let mappings = json!([mapping("tcp", 8080, 80)]);
        lab.add("old", &mappings);
        // A crash: the container is gone, its rules and nothing else stay.
        lab.node.sh("ip netns del old && rm -r /var/lib/cni");
        lab.add("new", &mappings);
        lab.serve("new", "tcp", 80, "new");
        assert!(
            lab.call("ext", "tcp", "192.0.2.1", 8080)
                .starts_with("new ")
        );
    });
}

#[test]
fn localhost_of_the_host_stays_its_own() {
    on_every_backend(|mut lab| {
        let backend = lab.backend;
        lab.add("c1", &json!([mapping("tcp", 8080, 80)]));
        lab.serve("c1", "tcp", 80, "c1");
        assert!(lab.call("", "tcp", "127.0.0.1", 8080).starts_with("c1 "));
        lab.add("evil", &json!([]));
        let mut secret = Command::new("socat")
            .args([
                "TCP-LISTEN:9999,bind=127.0.0.1,fork,reuseaddr",
                "SYSTEM:echo LEAK",
            ])
            .spawn()
            .unwrap();
        while !lab.node.succeeds("ss -Hltn | grep -q ':9999 '") {}
        assert_eq!(lab.call("", "tcp", "127.0.0.1", 9999), "LEAK");
        // A container that sends packets for 127.0.0.1 to its gateway.
        lab.node.sh(
            "ip netns exec evil sh -c 'ip link set lo down; \
             for k in all eth0; do echo 1 > /proc/sys/net/ipv4/conf/$k/route_localnet; echo 0 > /proc/sys/net/ipv4/conf/$k/rp_filter; done; \
             ip route add 127.0.0.1/32 via 10.9.0.1 dev eth0 table 100; \
             ip rule add pref 5 from all lookup local; ip rule del pref 0 from all lookup local; \
             ip rule add pref 0 to 127.0.0.1 lookup 100'",
        );
        let answer = lab.call("evil", "tcp", "127.0.0.1", 9999);
        secret.kill().unwrap();
        secret.wait().unwrap();
        assert_eq!(
            answer, "",
            "{backend}: a container reached a service on 127.0.0.1"
        );
    });
}

#[test]
fn old_udp_flows_follow_the_new_owner() {
    on_every_backend(|mut lab| {
        let backend = lab.backend;
        let mappings = json!([mapping("udp", 5353, 53)]);
        lab.add("c1", &mappings);
        lab.serve("c1", "udp", 53, "c1");
        // One flow that never ends, by its ports.
        let ask = |lab: &Lab| lab.call_from("ext", "udp", "192.0.2.1", 5353, 40000);
        assert!(ask(&lab).starts_with("c1 "), "{backend}");
        lab.cnitool("del", "c1", &mappings).silent();
        // The port is the host's own again: the old flow must not go on to c1.
        lab.serve("", "udp", 5353, "host");
        assert!(ask(&lab).starts_with("host "), "{backend}");
        lab.stop_last();
        lab.add("c2", &mappings);
        lab.serve("c2", "udp", 53, "c2");
        assert!(ask(&lab).starts_with("c2 "), "{backend}");
    });
}

#[test]
fn gc_removes_the_rules_of_the_dead() {
    on_every_backend(|mut lab| {
        let (one, two) = (
            json!([mapping("tcp", 8081, 80)]),
            json!([mapping("tcp", 8082, 80)]),
        );
        lab.add("alive", &one);
        let before = lab.rules();
        lab.add("dead", &two);
        lab.node.sh("ip netns del dead");
        let gc = lab.cnitool("gc", "alive", &json!([]));
        assert!(gc.ok, "{gc:?}");
        assert_eq!(lab.rules(), before);
        lab.serve("alive", "tcp", 80, "alive");
        assert!(
            lab.call("ext", "tcp", "192.0.2.1", 8081)
                .starts_with("alive ")
        );
    });
}

#[test]
fn check_misses_what_was_flushed() {
    on_every_backend(|lab| {
        let mappings = json!([mapping("tcp", 8081, 80)]);
        lab.add("c1", &mappings);
        lab.cnitool("check", "c1", &mappings).silent();
        lab.node
            .sh("nft flush ruleset; iptables-legacy -t nat -F; ip6tables-legacy -t nat -F");
        let checked = lab.cnitool("check", "c1", &mappings);
        assert!(
            !checked.ok && checked.stderr.contains("10.9.0."),
            "{checked:?}"
        );
        lab.cnitool("del", "c1", &mappings).silent();
        // And it works again for the next one.
        lab.add("c2", &mappings);
        lab.cnitool("check", "c2", &mappings).silent();
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
            // The next ADD brings it back.
            lab.add("c2", &json!([mapping("tcp", 8082, 80)]));
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

#[test]
fn programs_run_for_a_container() {
    // Two plugins, two families: one transaction each. DEL of port mappings has to look
    // them up first, for their ports are not told; and of the legacy tables the kernel
    // does not say whether there is anything in them.
    on_every_backend(|lab| {
        let expected = match lab.backend {
            "nftables" => [("add", 0), ("del", 0)],
            "iptables-nft" => [("add", 4), ("del", 6)],
            _ => [("add", 4), ("del", 8)],
        };
        // The first container on a node finds nothing there yet.
        lab.add("c0", &json!([mapping("tcp", 8080, 80)]));
        lab.node.netns("c1");
        let caps = json!({"portMappings": [mapping("tcp", 8081, 80)]}).to_string();
        let trace = lab.node.dir.path().join("trace");
        for (command, programs) in expected {
            let output = run(
                Command::new("/usr/bin/strace")
                    .args(["-f", "-e", "trace=execve", "-o", trace.to_str().unwrap()])
                    .arg(lab.node.bin.join("cnitool"))
                    .args([command, "net1", "/run/netns/c1", "--cap", &caps])
                    .env("CNI_PATH", &lab.node.bin)
                    .env("NETCONFPATH", lab.conf())
                    .env("PATH", &lab.path),
                "",
            );
            assert!(output.ok, "{output:?}");
            let calls = fs::read_to_string(&trace).unwrap();
            let run = calls
                .lines()
                .filter(|line| line.contains("execve") && line.ends_with("= 0"))
                .count();
            // cnitool itself and the two plugins.
            assert_eq!(run - 3, programs, "{} {command}:\n{calls}", lab.backend);
        }
    });
}

/// What a listing costs grows with the number of containers on the node; for ADD, nothing
/// may.
#[test]
fn adding_lists_no_rules() {
    let lab = Lab::new("nftables");
    lab.configure(&json!({"macspoofchk": true}), &json!({}));
    lab.add("c0", &json!([mapping("tcp", 8080, 80)]));
    lab.node.netns("c1");
    let caps = json!({"portMappings": [mapping("tcp", 8081, 80)]}).to_string();
    let trace = lab.node.dir.path().join("trace");
    let listings = |command: &str| {
        let output = run(
            Command::new("/usr/bin/strace")
                .args(["-f", "-e", "trace=%network", "-o", trace.to_str().unwrap()])
                .arg(lab.node.bin.join("cnitool"))
                .args([command, "net1", "/run/netns/c1", "--cap", &caps])
                .env("CNI_PATH", &lab.node.bin)
                .env("NETCONFPATH", lab.conf())
                .env("PATH", &lab.path),
            "",
        );
        assert!(output.ok, "{output:?}");
        let calls = fs::read_to_string(&trace).unwrap();
        let sent =
            |line: &&str| line.contains("nlmsg_type=NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_NEWRULE");
        let is_listing = |line: &&str| {
            ["NFT_MSG_GETRULE", "NFT_MSG_GETSETELEM"]
                .iter()
                .any(|kind| line.contains(kind))
        };
        if command == "add" {
            assert!(calls.lines().any(|line| sent(&line)), "{calls}");
        }
        calls.lines().filter(is_listing).count()
    };
    assert_eq!(listings("add"), 0);
    // The rules are there all the same, and DEL looks for them.
    assert!(lab.rules().contains("tcp dport 8081 dnat to 10.9.0."));
    assert!(listings("del") > 0);
    assert!(!lab.rules().contains("8081"), "{}", lab.rules());
}

#[test]
fn a_displaced_owner_is_named_and_nobody_else() {
    let lab = Lab::new("nftables");
    let port = json!([mapping("tcp", 8080, 80)]);
    let add = |name: &str, mappings: &Value| {
        lab.node.netns(name);
        let added = lab.cnitool("add", name, mappings);
        assert!(added.ok, "{added:?}");
        added.stderr
    };
    assert_eq!(add("c1", &port), "");
    let other =
        json!([{"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}]);
    assert_eq!(add("c2", &other), "");
    // Any address of the host is that one too.
    let any = add("c3", &json!([mapping("tcp", 8081, 80)]));
    assert!(any.contains("8081/tcp was mapped to container"), "{any}");
    assert!(add("c4", &port).contains("8080/tcp was mapped to container"));
    for name in ["c1", "c2", "c3", "c4"] {
        lab.cnitool("del", name, &json!([])).silent();
    }
    assert_eq!(add("c5", &port), "");
    // What is only left over in our memory is nobody's.
    lab.node.sh(
        "nft flush chain ip cni_hostport hostports; nft flush chain ip6 cni_hostport hostports",
    );
    assert_eq!(add("c6", &port), "");
    lab.cnitool("check", "c6", &port).silent();
}

#[test]
fn localhost_is_routed_as_long_as_a_container_needs_it() {
    on_every_backend(|mut lab| {
        let backend = lab.backend;
        let (one, two) = (
            json!([mapping("tcp", 8081, 80)]),
            json!([mapping("tcp", 8082, 80)]),
        );
        lab.add("c1", &one);
        lab.add("c2", &two);
        lab.serve("c2", "tcp", 80, "c2");
        let value = |lab: &Lab| {
            let text = lab
                .node
                .sh("cat /proc/sys/net/ipv4/conf/br1/route_localnet");
            text.trim().to_owned()
        };
        lab.cnitool("del", "c1", &json!([])).silent();
        assert!(lab.call("", "tcp", "127.0.0.1", 8082).starts_with("c2 "));
        assert_eq!(value(&lab), "1", "{backend}");
        lab.cnitool("del", "c2", &two).silent();
        assert_eq!(value(&lab), "0", "{backend}");
        // GC does it for the dead.
        lab.add("c3", &one);
        assert_eq!(value(&lab), "1", "{backend}");
        lab.node.sh("ip netns del c3 && rm -r /var/lib/cni/results");
        let gc = lab.cnitool("gc", "c3", &json!([]));
        assert!(gc.ok, "{gc:?}");
        assert_eq!(value(&lab), "0", "{backend}");
        // What an administrator has switched on stays on.
        lab.node
            .sh("echo 1 > /proc/sys/net/ipv4/conf/br1/route_localnet");
        lab.add("c4", &one);
        lab.cnitool("del", "c4", &one).silent();
        assert_eq!(value(&lab), "1", "{backend}");
    });
}
