//! `cnitool add|del --dry-run`: tells what the real one then does, and changes nothing.
#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test starts processes, and fails by panicking"
)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use common::{Node, REFERENCE};
use serde_json::{Value, json};

const NS: &str = "/run/netns/c1";

struct Bench {
    node: Node,
    conf: PathBuf,
}

impl Bench {
    /// A node with network `n` of these plugins, and a namespace.
    fn new(version: &str, plugins: &Value) -> Self {
        let node = Node::new();
        node.netns("c1");
        let conf = node.dir.path().join("net.d");
        fs::create_dir(&conf).unwrap();
        let list = json!({"cniVersion": version, "name": "n", "plugins": plugins});
        fs::write(conf.join("n.conflist"), list.to_string()).unwrap();
        Self { node, conf }
    }

    /// Everything that a plugin could change, as soon as the kernel has come to rest.
    fn state(&self) -> String {
        let mut before = String::new();
        for _ in 0..50 {
            let now = self.look();
            if now == before {
                return now;
            }
            before = now;
        }
        panic!("no rest: {before}")
    }

    fn look(&self) -> String {
        self.node.sh(
            "for n in '' '-n c1'; do ip $n -d link; ip $n address; ip $n route show table all; \
             ip $n -6 route show table all; done | grep -v fe80 | sed 's/[a-z_]*timer *[0-9.]*//g'; \
             nft list ruleset; tc qdisc | sed 's/direct_packets_stat [0-9]*//'; iptables-legacy-save; \
             for n in /proc/self/ns/net /run/netns/c1; do \
             nsenter --net=$n sysctl -ar '^net.(core.somax|ipv4.ip_f|ipv[46].conf)'; done; \
             find /run /var/lib -printf '%p %y %s %m %T@\\n'",
        )
    }

    /// What a dry run prints, which must succeed and change nothing.
    #[track_caller]
    fn told(&self, args: &[&str]) -> String {
        let before = self.state();
        let told = self
            .node
            .cnitool(&self.conf, &[args, &["--dry-run"]].concat());
        assert!(told.ok && told.stderr.is_empty(), "{told:?}");
        self.assert_unchanged(&before);
        told.stdout
    }

    #[track_caller]
    fn assert_unchanged(&self, before: &str) {
        let after = self.state();
        let new: Vec<&str> = after
            .lines()
            .filter(|line| !before.contains(line))
            .collect();
        assert!(before == after, "{new:#?}");
    }

    /// Does it.
    #[track_caller]
    fn done(&self, args: &[&str]) -> String {
        let done = self.node.cnitool(&self.conf, args);
        assert!(done.ok, "{done:?}");
        done.stdout
    }
}

/// Asserts that `told` has a line for each of the parts, in this order, that begins with
/// its subject.
#[track_caller]
fn assert_lines(told: &str, expected: &[(&str, &str)]) {
    let mut lines = told.lines();
    for (subject, part) in expected {
        let found = lines.any(|line| {
            let line = line.trim_start();
            line.starts_with(subject) && line.contains(part)
        });
        assert!(found, "no {subject} {part} (here) in\n{told}");
    }
}

fn bridge() -> Value {
    json!({
        "type": "bridge", "bridge": "br0", "isDefaultGateway": true, "hairpinMode": true,
        "mtu": 1400, "ipMasq": true, "ipMasqBackend": "nftables",
        "capabilities": {"ips": true, "mac": true},
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]]},
    })
}

#[test]
fn a_bridge_with_all_that_can_follow() {
    let bench = Bench::new(
        "1.0.0",
        &json!([
            bridge(),
            {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}},
            {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}, "txQLen": 77},
            {"type": "bandwidth", "ingressRate": 1_000_000, "ingressBurst": 80_000,
             "shapedSubnets": ["192.0.2.0/24"]},
            {"type": "firewall", "backend": "nftables"},
        ]),
    );
    bench.node.sh("nft 'add table inet site; \
         add chain inet site f { type filter hook forward priority 0; policy drop; }'");
    let cap = r#"{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
                  "mac": "02:00:00:00:00:05"}"#;
    let add = ["add", "n", NS, "--id", "c1", "--cap", cap];
    // Once where there is nothing yet, once where others are.
    for (address, new) in [("10.9.0.2", true), ("10.9.0.4", false)] {
        let told = bench.told(&add);
        let add_told = told.clone();
        if new {
            assert_lines(
                &told,
                &[
                    ("link", "br0 (bridge)"),
                    ("address", "10.9.0.1/24 on br0"),
                    ("address", "fd09::1/64 on br0"),
                    ("sysctl", "net/ipv4/ip_forward = 1"),
                ],
            );
        } else {
            for made in ["br0 (bridge)", "on br0", "ip_forward"] {
                assert!(!told.contains(made), "{told}");
            }
        }
        assert_lines(
            &told,
            &[
                ("would run ADD bridge", ""),
                (
                    "lease",
                    &format!("{address} for eth0 of container c1, in /var/lib/cni/networks/n/"),
                ),
                ("lease", "fd09::"),
                ("link", "(veth), port of br0, hairpin"),
                (
                    "link",
                    "eth0 in /run/netns/c1, its other end, mac 02:00:00:00:00:05, mtu 1400",
                ),
                ("address", &format!("{address}/24 on eth0")),
                ("route", "0.0.0.0/0 via 10.9.0.1"),
                ("route", "::/0 via fd09::1"),
                ("rule", address),
                ("would run ADD portmap", ""),
                ("rule", "8080"),
                ("sysctl", "route_localnet"),
                ("would run ADD tuning", ""),
                ("sysctl", "net.core.somaxconn = 500"),
                ("link", "txQLen 77"),
                ("file", "c1_eth0.json"),
                ("would run ADD bandwidth", ""),
                ("limit", "of what comes from 192.0.2.0/24"),
                ("would run ADD firewall", ""),
                ("rule", address),
                (
                    "would keep the result in /var/lib/cni/results/n-c1-eth0",
                    "",
                ),
            ],
        );
        assert_true(&bench, &told, address, &bench.done(&add));
        if new {
            // Somebody else's must not show in what DEL of ours removes.
            bench.node.netns("c2");
            bench.done(&["add", "n", "/run/netns/c2", "--id", "c2"]);
        }
        let told = bench.told(&["del", "n", NS, "--id", "c1"]);
        let link = format!("link {}", host_end(&add_told));
        assert_lines(
            &told,
            &[
                ("there is eth0 (veth) with", &format!("{address}/24")),
                ("would run DEL tuning", ""),
                ("would remove", "c1_eth0.json"),
                ("would run DEL portmap", ""),
                ("would remove port mappings", "c1"),
                ("would run DEL bridge", ""),
                ("would remove", &link),
                ("would remove lease", address),
                ("would remove masquerade rules", "c1"),
                ("would remove /var/lib/cni/results/n-c1-eth0", ""),
            ],
        );
        assert!(!told.contains("c2"), "{told}");
        bench.done(&["del", "n", NS, "--id", "c1"]);
        let nothing = bench.told(&["del", "n", NS, "--id", "c1"]);
        assert!(!nothing.contains("would remove"), "{nothing}");
    }
}

/// The name of the host's end, as it was told.
fn host_end(told: &str) -> String {
    let line = told.lines().find(|line| line.contains("port of br0"));
    line.unwrap().split_whitespace().nth(1).unwrap().to_owned()
}

/// Asserts that an ADD with this `result` made what had been told.
#[track_caller]
fn assert_true(bench: &Bench, told: &str, address: &str, result: &str) {
    assert!(result.contains(&format!("{address}/24")), "{result}");
    let rules = bench.node.sh("nft list ruleset");
    let told_rules = told
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("rule "));
    for rule in told_rules {
        // As nft lists it: without `nft add rule FAMILY TABLE CHAIN`.
        let Some(listed) = rule.trim().strip_prefix("nft add rule ") else {
            continue;
        };
        // What the shell, which it is quoted for, makes of it.
        let listed = shlex::split(listed).unwrap().split_off(3).join(" ");
        assert!(rules.contains(&listed), "{rule}\nin {told}");
    }
    let host_end = host_end(told);
    assert!(bench.node.links().contains(&host_end), "{host_end}");
}

#[test]
fn flannel_tells_what_its_delegate_does() {
    let bench = Bench::new("1.0.0", &json!([{"type": "flannel"}]));
    let add = ["add", "n", NS, "--id", "c1"];
    let refused = bench
        .node
        .cnitool(&bench.conf, &[&add[..], &["--dry-run"]].concat());
    assert!(refused.stderr.contains("subnet.env"), "{refused:?}");
    bench.node.sh(
        "mkdir /run/flannel; printf 'FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
         FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n' > /run/flannel/subnet.env",
    );
    let told = bench.told(&add);
    assert_lines(
        &told,
        &[
            ("would run ADD flannel", ""),
            ("file", "/var/lib/cni/flannel/c1"),
            ("lease", "10.244.1.2 for eth0 of container c1"),
            ("link", "cni0 (bridge)"),
            ("link", "(veth), port of cni0"),
            ("address", "10.244.1.2/24 on eth0"),
            ("route", "10.244.0.0/16 via 10.244.1.1"),
        ],
    );
    assert!(bench.done(&add).contains("10.244.1.2/24"));
}

#[test]
fn point_to_point_and_loopback() {
    let bench = Bench::new(
        "1.1.0",
        &json!([{
            "type": "ptp", "ipMasq": true, "ipMasqBackend": "nftables",
            "ipam": {"type": "static", "addresses": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1"}]},
        }]),
    );
    let told = bench.told(&["add", "n", NS, "--id", "c1"]);
    assert_lines(
        &told,
        &[
            ("link", "(veth), on the host"),
            ("link", "eth0 in /run/netns/c1"),
            ("address", "10.9.0.5/24 on eth0"),
            ("route", "10.9.0.1/32 scope 253 in the container"),
            ("address", "10.9.0.1/32 on veth"),
            ("route", "10.9.0.5/32"),
            ("sysctl", "net/ipv4/ip_forward = 1"),
            ("rule", "10.9.0.5"),
        ],
    );
    bench.done(&["add", "n", NS, "--id", "c1"]);

    let lo = json!({"cniVersion": "1.1.0", "name": "lo", "plugins": [{"type": "loopback"}]});
    fs::write(bench.conf.join("lo.conflist"), lo.to_string()).unwrap();
    bench.node.sh("ip -n c1 link set lo down");
    let told = bench.told(&["add", "lo", NS, "-i", "lo"]);
    assert_lines(&told, &[("link", "lo in /run/netns/c1: set up")]);
}

#[test]
fn what_add_would_refuse_is_refused() {
    let bench = Bench::new("1.1.0", &json!([bridge()]));
    let refused = |args: &[&str], part: &str| {
        let before = bench.state();
        let args = [&["add", "n", NS, "--dry-run"], args].concat();
        let refused = bench.node.cnitool(&bench.conf, &args);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains(part), "{part}: {refused:?}");
        bench.assert_unchanged(&before);
    };
    refused(
        &["--cap", r#"{"ips": ["10.9.0.1"]}"#],
        "requested ip 10.9.0.1 is subnet's gateway",
    );
    bench.done(&["add", "n", NS, "--id", "c1"]);
    refused(
        &["--id", "c1"],
        "interface eth0 exists in /run/netns/c1 already",
    );
    refused(
        &[
            "--id",
            "c2",
            "--ifname",
            "eth1",
            "--cap",
            r#"{"ips": ["10.9.0.2"]}"#,
        ],
        "held by eth0 of container c1",
    );
    bench.node.sh("ip link add br1 type veth peer name other");
    let mut other = bridge();
    other["bridge"] = json!("br1");
    let list = json!({"cniVersion": "1.1.0", "name": "n", "plugins": [other]});
    fs::write(bench.conf.join("n.conflist"), list.to_string()).unwrap();
    refused(&["--ifname", "eth1"], "not a bridge");
}

#[test]
fn others_do_not_tell() {
    let mut first = bridge();
    first["ipam"] = json!({"type": "theirs"});
    let bench = Bench::new(
        "1.1.0",
        &json!([
            bridge(),
            {"type": "reference"},
            {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}},
        ]),
    );
    for name in ["reference", "theirs"] {
        symlink(format!("{REFERENCE}/tuning"), bench.node.bin.join(name)).unwrap();
    }
    let cap = r#"{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}"#;
    let told = bench.told(&["add", "n", NS, "--cap", cap]);
    assert_lines(
        &told,
        &[
            ("would run ADD reference", ""),
            ("note", "does not tell beforehand"),
            ("would run ADD portmap", ""),
            ("note", "as if reference left the result as it was"),
            ("rule", "8080"),
        ],
    );
    let list = json!({
        "cniVersion": "1.1.0", "name": "n",
        "plugins": [first, {"type": "tuning", "mtu": 1300}],
    });
    fs::write(bench.conf.join("n.conflist"), list.to_string()).unwrap();
    let told = bench.told(&["add", "n", NS]);
    assert_lines(
        &told,
        &[
            ("note", "theirs does not tell beforehand"),
            ("link", "eth0 in /run/netns/c1"),
            (
                "note",
                "addresses, routes and rules follow from what the IPAM plugin answers",
            ),
            ("would run ADD tuning", ""),
            ("note", "this follows from the result of bridge"),
        ],
    );
}
