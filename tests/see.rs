//! What `cnitool` shows of a node: healthy attachments of ours and of the reference
//! plugins, and what is wrong with others.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test that cannot do its work says so by panicking; doors are for the product"
)]

mod common;

use std::fs;
use std::process::Command;

use common::network::Network;
use common::{BACKENDS, REFERENCE, run};
use serde_json::{Value, json};

/// A node with the network `net1`, made by our plugins or the reference's.
fn lab(plugins: Option<&str>, backend: &str) -> Network {
    with_ranges(plugins, backend, &json!([[{"subnet": "10.9.0.0/24"}]]))
}

/// The same with these ranges of addresses. A packet filter would let nothing of its
/// containers pass; `firewall` does.
fn with_ranges(plugins: Option<&str>, backend: &str, ranges: &Value) -> Network {
    let lab = Network::new(plugins, backend, ranges);
    let word = backend.split('-').next().unwrap();
    if word == "nftables" {
        lab.node.sh("nft 'add table inet site; \
             add chain inet site f { type filter hook forward priority 0; policy drop; }'");
    }
    let file = lab.conf.join("10-net1.conflist");
    let mut list: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let firewall = json!({"type": "firewall", "backend": word});
    list["plugins"].as_array_mut().unwrap().push(firewall);
    fs::write(file, list.to_string()).unwrap();
    lab
}

impl Network {
    /// Attaches a new container, whose id is its name, with a mapped port.
    fn add(&self, name: &str, port: u16) {
        let mapping = json!({"hostPort": port, "containerPort": 80, "protocol": "tcp"});
        self.attach(name, &json!([mapping]));
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.cnitool(&[args, &["--json"]].concat());
        assert_eq!(output.stderr, "", "{args:?}");
        output.json()
    }

    /// State and reasons of the one attachment of `container`.
    fn state(&self, container: &str) -> (String, Vec<String>) {
        let found = self.json(&["ps", "--container", container]);
        let found = found["attachments"].as_array().unwrap();
        assert_eq!(found.len(), 1, "{found:#?}");
        let reasons = found[0]["reasons"].as_array().unwrap().iter();
        (
            found[0]["state"].as_str().unwrap().to_owned(),
            reasons.map(|r| r.as_str().unwrap().to_owned()).collect(),
        )
    }

    fn ok(&self, container: &str) {
        let (state, reasons) = self.state(container);
        assert_eq!(state, "ok", "{reasons:?}");
    }

    /// Asserts that `container` is broken in just one way.
    fn broken(&self, container: &str, reason: &str) {
        let (state, reasons) = self.state(container);
        assert_eq!(state, "broken");
        assert_eq!(reasons, [reason]);
    }
}

/// Runs `test` with our plugins and with the reference's, on every backend of the rules,
/// each on a node of its own.
fn on_every_node(test: impl Fn(Network) + Sync) {
    for plugins in [None, Some(REFERENCE)] {
        for backend in BACKENDS {
            // Debian's reference plugins are older than those that know nftables.
            if plugins.is_some() && backend == "nftables" {
                continue;
            }
            let on_thread = || test(lab(plugins, backend));
            std::thread::scope(|scope| scope.spawn(on_thread).join().unwrap());
        }
    }
}

#[test]
fn healthy_attachments_are_shown_whoever_made_them() {
    on_every_node(|lab| {
        lab.add("c1", 8080);
        lab.add("c2", 8081);
        let shown = lab.json(&["ps"]);
        let found = shown["attachments"].as_array().unwrap();
        assert_eq!(found.len(), 2, "{found:#?}");
        let c1 = &found[0];
        assert_eq!(c1["state"], "ok", "{c1:#}");
        assert_eq!(c1["addresses"], json!(["10.9.0.2/24"]));
        assert_eq!(c1["bridge"], "br1");
        assert_eq!(c1["ports"][0]["hostPort"], 8080, "{c1:#}");
        assert_eq!(c1["ports"][0]["address"], "10.9.0.2");
        assert_eq!(c1["remembered"], true);
        let end = c1["hostEnd"].as_str().unwrap();
        lab.node.sh(&format!("ip link show {end}"));

        let table = lab.cnitool(&["ps"]).stdout;
        let line = table.lines().nth(1).unwrap();
        for word in ["net1", "c1", "eth0", "10.9.0.2/24", "8080:80/tcp", "ok"] {
            let mut words = line.split_whitespace();
            assert!(words.any(|found| found == word), "{word}: {table}");
        }
        assert!(!table.contains('\x1b'), "no colour off a terminal: {table}");
        assert_eq!(
            lab.json(&["ps", "--network", "x"])["attachments"],
            json!([])
        );
    });
}

#[test]
fn what_is_wrong_is_told() {
    let lab = lab(None, "nftables");
    for (name, port) in [("c1", 8081), ("c2", 8082), ("c3", 8083), ("c4", 8084)] {
        lab.add(name, port);
        lab.ok(name);
    }
    let node = &lab.node;
    node.sh("ip -n c1 addr add 10.9.0.99/24 dev eth0 && ip -n c1 addr del 10.9.0.2/24 dev eth0 && ip -n c1 addr add 10.9.0.2/32 dev eth0");
    let (state, reasons) = lab.state("c1");
    assert_eq!(state, "broken");
    assert!(
        reasons.contains(&"10.9.0.2/24 is not on eth0".to_owned()),
        "{reasons:?}"
    );
    let end = lab.host_end("c2");
    node.sh(&format!("ip link set {end} nomaster"));
    lab.broken("c2", &format!("host end {end} is not in bridge br1"));
    node.sh(&format!("ip link set {end} down"));
    lab.broken("c2", &format!("host end {end} is down"));
    node.sh("ip -n c2 link del eth0");
    lab.broken("c2", "eth0 is gone from the container");

    node.sh("ip -n c3 route del default");
    lab.broken("c3", "no route to 0.0.0.0/0 in the container");
    node.sh("rm /var/lib/cni/networks/net1/10.9.0.4 && ip -n c3 route add default via 10.9.0.1");
    lab.broken("c3", "10.9.0.4 has no lease: another container may get it");

    node.sh("nft flush chain ip cni_hostport hostports");
    lab.broken("c4", "no rule for port 8084/tcp to 10.9.0.5");
    node.sh("nft delete table inet cni_plugins_masquerade");
    let (_, reasons) = lab.state("c4");
    assert!(reasons.contains(&"no rule masquerades 10.9.0.5".to_owned()));
}

/// Of two families, one may lack its rule. And people look for `c2` before `c10`.
#[test]
fn each_family_needs_its_rule() {
    let ranges = json!([[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]);
    let lab = with_ranges(None, "nftables", &ranges);
    for (name, port) in [("c10", 8080), ("c2", 8081)] {
        lab.add(name, port);
        lab.ok(name);
    }
    let shown = lab.json(&["ps"]);
    let ids = [0, 1].map(|n| shown["attachments"][n]["containerID"].clone());
    assert_eq!(ids, ["c2", "c10"]);
    lab.node.sh("nft flush chain ip6 cni_hostport hostports");
    lab.broken("c2", "no rule for port 8081/tcp to fd00:9::3");
}

/// The ranges of a flannel network are those of its daemon.
#[test]
fn flannels_ranges_are_the_daemons() {
    let lab = lab(None, "nftables");
    let list = json!({"cniVersion": "1.0.0", "name": "cluster", "plugins": [{"type": "flannel"}]});
    fs::write(lab.conf.join("20-cluster.conflist"), list.to_string()).unwrap();
    let netns = lab.node.netns("c1");
    lab.node.sh(
        "mkdir /run/flannel; printf 'FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
         FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n' > /run/flannel/subnet.env",
    );
    let added = lab.cnitool(&["add", "cluster", &netns, "--id", "c1"]);
    assert!(added.ok, "{added:?}");
    let pools = lab.json(&["ipam", "--network", "cluster"]);
    assert_eq!(
        pools["pools"][0]["sets"],
        json!([{"ranges": [["10.244.1.1", "10.244.1.254"]], "size": 253, "used": 1, "free": 252,
                "leaked": 0, "next": "10.244.1.3"}])
    );
}

#[test]
fn orphans_are_told_with_what_is_left() {
    on_every_node(|lab| {
        lab.add("c1", 8080);
        lab.node.sh("ip netns del c1");
        let (state, left) = lab.state("c1");
        assert_eq!(state, "orphan");
        let has = |text: &str| left.iter().any(|line| line.contains(text));
        assert!(has("result /var/lib/cni/results/net1-c1-eth0"), "{left:?}");
        assert!(has("lease /var/lib/cni/networks/net1/10.9.0.2"), "{left:?}");
        assert!(has("rule"), "{left:?}");
        let firewall = match &*lab.backend {
            "nftables" => "1 rule (`nft list set inet site cni_addresses_v4`)",
            _ => "2 rules (`iptables -v -S CNI-FORWARD`)",
        };
        assert!(has(firewall), "{left:?}");
        // Whoever forgets the result has still leased the address. The kernel takes its time
        // to remove the link.
        lab.node.sh(
            "rm -r /var/lib/cni/results; while ip -br link show type veth | grep -q .; do sleep 0.01; done",
        );
        let (state, left) = lab.state("c1");
        assert_eq!(state, "orphan");
        assert!(left[0].starts_with("lease "), "{left:?}");
    });
}

#[test]
fn pools_tell_who_has_what() {
    let lab = lab(None, "nftables");
    for (name, port) in [("c1", 8081), ("c2", 8082)] {
        lab.add(name, port);
    }
    let dir = "/var/lib/cni/networks/net1";
    lab.node.sh(&format!(
        "ip netns del c2; echo 'the printer' > {dir}/10.9.0.99; touch {dir}/10.9.0.98; \
         printf 'x\\r\\neth0' > {dir}/10.8.0.1; mkdir {dir}/../old; printf 'y\\r\\neth0' > {dir}/../old/10.7.0.7"
    ));
    let shown = lab.json(&["ipam"]);
    let pools = shown["pools"].as_array().unwrap();
    let set = &pools[0]["sets"][0];
    assert_eq!(
        *set,
        json!({"ranges": [["10.9.0.1", "10.9.0.254"]], "size": 253, "used": 3, "free": 250,
               "leaked": 1, "next": "10.9.0.4"})
    );
    let states = |pool: &Value| -> Vec<String> {
        let leases = pool["leases"].as_array().unwrap().iter();
        let word = |lease: &Value| {
            let [address, state] = ["address", "state"].map(|k| lease[k].as_str().unwrap());
            format!("{address} {state}")
        };
        leases.map(word).collect()
    };
    assert_eq!(
        states(&pools[0]),
        [
            "10.8.0.1 leaked",
            "10.9.0.2 ok",
            "10.9.0.3 leaked",
            "10.9.0.98 blank",
            "10.9.0.99 aside"
        ]
    );
    assert_eq!(pools[0]["leases"][1]["containerID"], "c1");
    assert_eq!(pools[0]["leases"][1]["earlierBoot"], false);
    assert!(pools[0]["leases"][1]["boot"].is_string(), "{shown:#}");
    assert_eq!(pools[1]["network"], "old");
    assert_eq!(states(&pools[1]), ["10.7.0.7 leaked"]);
    let table = lab.cnitool(&["ipam"]).stdout;
    for text in [
        "set aside: the printer",
        "no ranges configured",
        "10.9.0.1-10.9.0.254",
    ] {
        assert!(table.contains(text), "{text}: {table}");
    }
}

#[test]
fn ports_tell_who_gets_the_packets() {
    on_every_node(|lab| {
        let is_nft = lab.backend == "nftables";
        lab.add("c1", 8080);
        let shown = lab.json(&["ports"]);
        assert_eq!(shown["ports"][0]["conflict"], false, "{shown:#}");
        // From the outside, so that the rule counts.
        lab.node.machine("fd00:2");
        lab.node.succeeds(
            "ip netns exec ext socat -u OPEN:/dev/null TCP:192.0.2.1:8080,connect-timeout=1",
        );
        let shown = lab.json(&["ports"]);
        let packets = &shown["ports"][0]["packets"];
        if is_nft {
            assert!(packets.is_null(), "{shown:#}");
        } else {
            assert!(packets.as_u64().unwrap() > 0, "{shown:#}");
        }
        lab.add("c2", 8080);
        let shown = lab.json(&["ports"]);
        let ports = shown["ports"].as_array().unwrap();
        assert_eq!(ports.len(), 2, "{shown:#}");
        assert!(
            ports.iter().all(|port| port["conflict"] == true),
            "{shown:#}"
        );
        // Ours puts the newest in front, the reference the oldest.
        let is_ours = !lab.plugins.starts_with("/usr");
        let (first, second) = if is_ours { ("c2", "c1") } else { ("c1", "c2") };
        assert_eq!(ports[0]["containerID"], first, "{shown:#}");
        assert_eq!(ports[1]["containerID"], second);
        assert_eq!(ports[1]["takenBy"], first);
        lab.broken(second, &format!("port 8080/tcp leads to container {first}"));
        lab.ok(first);
        let table = lab.cnitool(&["ports"]).stdout;
        let conflict = format!("conflict: container {first} gets the packets");
        assert!(table.contains(&conflict), "{table}");
    });
}

#[test]
fn a_way_out_is_followed_with_commands_that_show_it() {
    on_every_node(|lab| {
        lab.add("c1", 8080);
        let shown = lab.json(&["show", "c1"]);
        let hops = shown["attachments"][0]["hops"].as_array().unwrap();
        let names: Vec<&str> = hops.iter().map(|h| h["hop"].as_str().unwrap()).collect();
        assert_eq!(
            names,
            [
                "interface",
                "routes",
                "hostEnd",
                "bridge",
                "firewall",
                "masquerade",
                "ports",
                "uplink",
                "leases",
                "result"
            ]
        );
        for hop in hops {
            for command in hop["commands"].as_array().unwrap() {
                let command = command.as_str().unwrap();
                // The plain names lead to the backend that the test chose.
                lab.node.sh(&format!("PATH={}:$PATH; {command}", lab.path));
            }
        }
        let page = lab.cnitool(&["show", "c1"]).stdout;
        for text in [
            "10.9.0.2/24",
            "10.9.0.1/24",
            &lab.host_end("c1"),
            "$ ip -n c1",
        ] {
            assert!(page.contains(text), "{text}: {page}");
        }
        let unknown = lab.cnitool(&["show", "x"]);
        assert_eq!(unknown.code, Some(1));
        let told = "no attachment of a container x: there are c1";
        assert!(unknown.stderr.contains(told), "{unknown:?}");
    });
}

#[test]
fn the_picture_is_the_same_twice_and_well_formed() {
    let lab = lab(None, "nftables");
    lab.add("c1", 8080);
    lab.add("c2", 8081);
    // The kernel takes its time to remove the link.
    lab.node.sh(
        "ip netns del c2; until [ $(ip -br link show type veth | wc -l) = 1 ]; do sleep 0.01; done",
    );
    let draw = |format: &str| {
        let drawn = lab.cnitool(&["graph", "--format", format]);
        assert!(drawn.ok, "{drawn:?}");
        drawn.stdout
    };
    for format in ["tree", "dot", "json", "svg"] {
        let drawn = draw(format);
        assert_eq!(drawn, draw(format));
        for text in ["br1", "c1", "10.9.0.2/24", "8080:80/tcp", "10.9.0.3/24"] {
            assert!(drawn.contains(text), "{text} in {format}: {drawn}");
        }
    }
    let picture: Value = serde_json::from_str(&draw("json")).unwrap();
    assert_eq!(picture, lab.json(&["graph"]));
    assert_eq!(picture["groups"][0]["members"][1]["state"], "orphan");
}

#[test]
fn an_empty_node_and_somebody_without_rights_are_told_so() {
    let lab = lab(None, "nftables");
    for (command, text) in [
        ("ps", "no attachments"),
        ("ipam", "10.9.0.1-10.9.0.254"),
        ("ports", "no mapped ports"),
        ("graph", "nothing"),
    ] {
        let output = lab.cnitool(&[command]);
        assert!(output.ok && output.stdout.contains(text), "{output:?}");
        let help = lab.cnitool(&[command, "--help"]).stdout;
        assert!(
            help.contains("Examples:") && help.contains("--json"),
            "{help}"
        );
    }
    lab.add("c1", 8080);
    // Where nobody may enter, the binary neither.
    let bin = lab.node.dir.path().join("bin/cnitool");
    lab.node.sh(&format!(
        "cp {} /run/cnitool && chmod 755 /run /run/cnitool",
        bin.display()
    ));
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--clear-groups", "/run/cnitool", "ps"]);
    let output = run(command.env("NETCONFPATH", "/run/none"), "");
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(
        output.stderr.contains("run cnitool with sudo"),
        "{output:?}"
    );
}

#[test]
fn no_network_of_our_examples_raises_a_false_alarm() {
    let lab = lab(None, "iptables-nft");
    let conf = concat!(env!("CARGO_MANIFEST_DIR"), "/conf");
    let networks = [
        "bandwidth",
        "dual-stack",
        "layer2",
        "loopback",
        "point-to-point",
        "ports",
        "requested",
        "static",
        "tuned",
    ];
    for network in networks {
        let netns = lab.node.netns(network);
        let ifname = if network == "loopback" { "lo" } else { "eth0" };
        let args = ["--conf", conf, "add", network, &netns, "-i", ifname];
        let added = lab.cnitool(&args);
        assert!(added.ok, "{network}: {added:?}");
    }
    let shown = lab.json(&["ps", "--conf", conf]);
    let found = shown["attachments"].as_array().unwrap();
    let told: Vec<&str> = found
        .iter()
        .map(|a| a["network"].as_str().unwrap())
        .collect();
    assert_eq!(told, networks);
    for attachment in found {
        assert_eq!(attachment["state"], "ok", "{attachment:#}");
    }
}

#[test]
fn colour_is_for_terminals() {
    let lab = lab(None, "nftables");
    lab.add("c1", 8080);
    let on_terminal = |environment: &str| {
        let tool = lab.node.bin.join("cnitool");
        let (tool, conf) = (tool.display(), lab.conf.display());
        lab.node.sh(&format!(
            "{environment} NETCONFPATH={conf} python3 -c \
             'import pty, sys; pty.spawn(sys.argv[1:])' {tool} ps </dev/null"
        ))
    };
    assert!(on_terminal("").contains("\x1b[32mok"));
    let plain = on_terminal("NO_COLOR=1");
    assert!(plain.contains("ok") && !plain.contains('\x1b'), "{plain}");
}
