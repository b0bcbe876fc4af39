//! `cnitool trace`: packets that are dropped, translated and delivered, followed on the
//! real kernel.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test that cannot do its work says so by panicking; doors are for the product"
)]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use common::Output;
use common::network::Network;
use serde_json::{Value, json};

/// A node with container `c1` (10.9.0.2, `fd00:9::2`) and a second machine `ext` (192.0.2.9,
/// `fd00:2::9`).
fn lab(backend: &str) -> Network {
    let ranges = json!([[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]);
    let lab = Network::new(None, backend, &ranges);
    lab.node.machine("fd00:2");
    let mapping = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    lab.attach("c1", &json!([mapping]));
    lab
}

impl Network {
    fn nft(&self, rules: &str) {
        self.node.sh(&format!("nft '{rules}'"));
    }

    /// Sends a packet from `c1` and asserts how `trace` exits, and that it leaves nothing.
    fn trace(&self, destination: &str, status: i32) -> Output {
        let done = self.cnitool(&["trace", "c1", destination]);
        assert_eq!(done.code, Some(status), "{done:?}");
        self.nothing_left();
        done
    }

    /// The same, as JSON.
    fn json(&self, destination: &str) -> Value {
        let done = self.cnitool(&["trace", "c1", destination, "--json"]);
        self.nothing_left();
        serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
    }

    fn nothing_left(&self) {
        let tables = self.node.sh("nft list tables");
        assert!(!tables.contains("cnibox_trace"), "{tables}");
    }

    /// A `trace --wait` that waits.
    fn waiting(&self, destination: &str) -> Child {
        let mut tool = self
            .command(&["trace", "c1", destination, "--wait=20"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(tool.stderr.take().unwrap());
        let mut told = stderr.lines().map_while(Result::ok);
        let waits = told.find(|line| line.starts_with("waiting"));
        assert!(waits.is_some());
        tool
    }
}

/// That of a stage where the packet is translated: hook, before, after.
fn translations(trace: &Value) -> Vec<[String; 3]> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    trace["stages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|stage| !stage["translated"].is_null())
        .map(|stage| ["hook", "packet", "translated"].map(|key| text(&stage[key])))
        .collect()
}

#[test]
fn the_rule_that_drops_is_named() {
    let lab = lab("nftables");
    lab.nft("add table inet guard; add chain inet guard forward { type filter hook forward priority 0; }; \
             add rule inet guard forward ip daddr 192.0.2.9 drop comment \"nobody goes there\"");
    let told = lab.trace("192.0.2.9", 1).stdout;
    let handle = lab
        .node
        .sh("nft -a list chain inet guard forward | sed -n 's/.*there\" # handle //p'");
    let handle = handle.trim();
    let line = format!("dropped by rule {handle} of chain inet guard forward");
    assert!(told.contains(&line), "{told}");
    assert!(told.contains("ip daddr 192.0.2.9 drop"), "{told}");
    assert!(told.contains("# nobody goes there"), "{told}");
    assert!(told.ends_with("\nno answer\n"), "{told}");
    let met = format!("inet guard forward rule {handle}: ip daddr 192.0.2.9 → drop");
    assert!(told.contains(&met), "{told}");
    assert!(
        told.contains("$ nft -a list chain inet guard forward"),
        "{told}"
    );
    // What it does not drop goes on.
    assert_eq!(lab.json("192.0.2.1")["end"], "delivered");
}

#[test]
fn the_policy_that_drops_is_named() {
    let lab = lab("nftables");
    lab.nft(
        "add table ip guard; \
             add chain ip guard out { type filter hook forward priority 0; policy drop; }; \
             add rule ip guard out tcp dport 22 accept",
    );
    let told = lab.trace("192.0.2.9:443/tcp", 1).stdout;
    assert!(
        told.contains("dropped by the policy of chain ip guard out"),
        "{told}"
    );
    let accepted = lab.json("192.0.2.9:22/tcp");
    assert_eq!(accepted["end"], "left", "{accepted}");
    assert_eq!(accepted["link"], "up0");
    // The policy drops what answers it.
    assert_eq!(accepted["answer"], Value::Null);
}

#[test]
fn a_ping_to_the_world_leaves_with_the_hosts_address() {
    for (backend, chain) in [("nftables", "masq_checks"), ("iptables-nft", "CNI-")] {
        std::thread::spawn(move || {
            let lab = lab(backend);
            let trace = lab.json("192.0.2.9");
            assert_eq!(trace["end"], "left", "{trace:#}");
            assert_eq!(trace["answer"], "an echo reply");
            let expected = [
                "postrouting",
                "10.9.0.2 → 192.0.2.9 icmp",
                "192.0.2.1 → 192.0.2.9 icmp",
            ];
            assert_eq!(translations(&trace), [expected.map(str::to_owned)]);
            let stages = trace["stages"].as_array().unwrap();
            let last = stages.last().unwrap();
            let by_owner = last["steps"].as_array().unwrap().iter().any(|step| {
                step["chain"].as_str().unwrap().starts_with(chain)
                    && step["owner"]["containerID"] == "c1"
                    && step["owner"]["network"] == "net1"
            });
            assert!(by_owner, "{trace:#}");
        })
        .join()
        .unwrap();
    }
}

#[test]
fn a_client_of_a_published_port_is_followed_into_the_container() {
    for backend in ["nftables", "iptables-nft"] {
        std::thread::spawn(move || {
            let lab = lab(backend);
            let tool = lab.waiting("192.0.2.1:8080/tcp");
            // Nobody listens in the container: that it refuses shows that it was reached.
            assert!(!lab.node.succeeds(
                "ip netns exec ext python3 -c 'import socket; \
                 socket.create_connection((\"192.0.2.1\", 8080), 2, (\"192.0.2.9\", 40000))' 2>/dev/null"
            ));
            let done = tool.wait_with_output().unwrap();
            let told = String::from_utf8(done.stdout).unwrap();
            assert_eq!(done.status.code(), Some(0), "{told}");
            let nat = "NAT: 192.0.2.9:40000 → 192.0.2.1:8080 tcp becomes 192.0.2.9:40000 → 10.9.0.2:80 tcp";
            assert!(told.contains(nat), "{told}");
            assert!(told.contains("of container c1"), "{told}");
            assert!(told.contains("delivered to container c1 by veth"), "{told}");
            lab.nothing_left();
        })
        .join()
        .unwrap();
    }
}

#[test]
fn ipv6_and_containers_on_one_bridge() {
    let lab = lab("nftables");
    lab.attach("c2", &json!([]));
    let v6 = lab.json("fd00:2::9");
    assert_eq!(
        (&v6["end"], &v6["answer"]),
        (&json!("left"), &json!("an echo reply")),
        "{v6:#}"
    );
    let expected = [
        "postrouting",
        "fd00:9::2 → fd00:2::9 icmp",
        "fd00:2::1 → fd00:2::9 icmp",
    ];
    assert_eq!(translations(&v6), [expected.map(str::to_owned)]);

    let beside = lab.json("10.9.0.3");
    assert_eq!(beside["end"], "delivered", "{beside:#}");
    assert_eq!(beside["container"], "c2");
    lab.nft("add table bridge guard; add chain bridge guard forward { type filter hook forward priority 0; }; \
             add rule bridge guard forward ether type ip drop");
    let told = lab.trace("10.9.0.3", 1).stdout;
    assert!(told.contains("of chain bridge guard forward"), "{told}");
    // Nobody has this address: the frame was for nobody.
    let told = lab.trace("10.9.0.77:53/udp", 1).stdout;
    assert!(told.contains("no rule of this host saw it"), "{told}");
}

#[test]
fn nothing_is_left_even_after_a_kill() {
    let lab = lab("nftables");
    let mut tool = lab.waiting("192.0.2.9:9/udp");
    assert!(lab.node.sh("nft list tables").contains("cnibox_trace"));
    // The tables belong to the process that waits.
    let second = lab.cnitool(&["trace", "c1", "192.0.2.9"]);
    assert_eq!(second.code, Some(2), "{second:?}");
    assert!(
        second.stderr.contains("no other cnitool trace"),
        "{second:?}"
    );
    tool.kill().unwrap();
    tool.wait().unwrap();
    lab.nothing_left();
    let none = lab.cnitool(&["trace", "c9", "192.0.2.9"]);
    assert_eq!(none.code, Some(2));
    let late = lab.cnitool(&["trace", "c1", "192.0.2.9:9/udp", "--wait=1"]);
    assert_eq!(late.code, Some(2), "{late:?}");
    lab.nothing_left();
}
