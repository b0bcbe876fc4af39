//! The configurations in `conf/`, run with cnitool as docs/cnitool.md describes.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot do its work says so by panicking"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Node, Output};
use serde_json::{Value, json};

fn conf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf")
}

/// Every network in `conf/`, by name.
fn networks() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(conf())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "conflist"))
        .map(|path| {
            let text = fs::read_to_string(path).unwrap();
            let list: Value = serde_json::from_str(&text).unwrap();
            list["name"].as_str().unwrap().to_owned()
        })
        .collect();
    names.sort();
    names
}

fn cnitool(node: &Node, args: &[&str]) -> Output {
    node.cnitool(&conf(), args)
}

/// Everything below the state directories that is a lease or a cached result.
fn state(node: &Node) -> String {
    node.sh("find /var/lib/cni -type f ! -name 'last_reserved_ip.*' ! -name lock ! -name complete")
}

/// The network that needs bridge VLAN filtering, which not every kernel has.
const VLAN: &str = "vlan";

#[test]
fn every_network_goes_through_its_whole_life() {
    let mut all = networks();
    all.retain(|network| network != VLAN);
    assert!(all.len() >= 3);
    whole_life_of(&all);
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn a_network_in_a_vlan_goes_through_its_whole_life() {
    whole_life_of(&[VLAN.to_owned()]);
}

/// A node on which the flannel daemon has written its file.
fn node() -> Node {
    let node = Node::new();
    node.sh(
        "mkdir /run/flannel
         printf 'FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n' > /run/flannel/subnet.env",
    );
    node
}

fn whole_life_of(networks: &[String]) {
    let node = node();
    for (index, network) in networks.iter().enumerate() {
        let netns = node.netns(&format!("c{index}"));
        let result = cnitool(&node, &["add", network, &netns]).json();
        assert_eq!(result["cniVersion"], "1.1.0");
        let mut interfaces = result["interfaces"].as_array().unwrap().iter();
        assert!(
            interfaces.any(|i| i["sandbox"] == json!(netns)),
            "{network}"
        );
        for ip in result["ips"].as_array().into_iter().flatten() {
            // Only the loopback addresses have no gateway: they are to be called themselves.
            let own = ip["address"].as_str().unwrap().split('/').next();
            node.ping(&netns, ip["gateway"].as_str().or(own).unwrap());
        }
        cnitool(&node, &["check", network, &netns]).silent();
        cnitool(&node, &["status", network]).silent();
        cnitool(&node, &["gc", network]).silent();
        cnitool(&node, &["check", network, &netns]).silent();
        cnitool(&node, &["del", network, &netns]).silent();
        cnitool(&node, &["del", network, &netns]).silent();
    }
    assert_eq!(state(&node), "");
    assert!(!node.links().iter().any(|name| name.starts_with("veth")));
}

#[test]
fn they_are_listed_and_valid() {
    let node = Node::new();
    let listed = cnitool(&node, &["list"]);
    assert!(listed.ok, "{listed:?}");
    for network in networks() {
        assert!(listed.stdout.contains(&network), "{listed:?}");
    }
    assert!(!listed.stdout.contains("NOT FOUND"), "{listed:?}");
    let valid = cnitool(&node, &["validate"]);
    assert!(valid.ok, "{valid:?}");
    let lines: Vec<&str> = valid.stdout.lines().collect();
    assert_eq!(lines.len(), networks().len());
    assert!(lines.iter().all(|line| line.ends_with(": ok")), "{lines:?}");
}

#[test]
fn what_the_runtime_asks_for_is_what_it_gets() {
    let node = Node::new();
    let netns = node.netns("c1");
    let asked = r#"{"ips": ["10.89.1.7"], "mac": "02:00:00:00:00:07"}"#;
    let result = cnitool(&node, &["add", "requested", &netns, "--cap", asked]).json();
    assert_eq!(result["ips"][0]["address"], "10.89.1.7/24");
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:07");
    assert_eq!(result["interfaces"][2]["mtu"], 1400);
    let route = node.sh("ip -n c1 route show 10.0.0.0/8");
    assert!(
        route.contains("via 10.89.1.1") && route.contains("mtu 1300"),
        "{route}"
    );
    cnitool(&node, &["del", "requested", &netns]).silent();
}

#[test]
fn gc_removes_what_belonged_to_namespaces_that_are_gone() {
    let node = Node::new();
    let (dead, alive) = (node.netns("dead"), node.netns("alive"));
    for netns in [&dead, &alive] {
        cnitool(&node, &["add", "dual-stack", netns]).json();
    }
    node.sh("ip netns del dead");
    let dry = cnitool(&node, &["gc", "dual-stack", "--dry-run"]);
    assert!(dry.ok && dry.stdout.contains("/run/netns/dead"), "{dry:?}");
    assert_eq!(state(&node).matches("10.88.0.").count(), 2);
    let gc = cnitool(&node, &["gc", "dual-stack"]);
    assert!(gc.ok && gc.stderr.contains("/run/netns/dead"), "{gc:?}");
    let left = state(&node);
    assert!(
        left.contains("10.88.0.3") && !left.contains("10.88.0.2"),
        "{left}"
    );
    node.ping(&alive, "10.88.0.1");
    cnitool(&node, &["check", "dual-stack", &alive]).silent();
}

#[test]
fn an_interface_that_is_there_is_nobody_elses_to_make() {
    let node = Node::new();
    let netns = node.netns("c1");
    let added = cnitool(&node, &["add", "dual-stack", &netns]).json();
    let gateway = added["ips"][0]["gateway"].as_str().unwrap();
    let before = (state(&node), node.ip("-n c1 addr show dev eth0"));
    for args in [
        vec!["add", "requested", &netns],
        vec!["add", "dual-stack", &netns, "--id", "other"],
        vec!["add", "dual-stack", &netns],
    ] {
        let refused = cnitool(&node, &args);
        assert_eq!((refused.ok, refused.stdout.as_str()), (false, ""));
        for part in ["eth0", &netns, "veth", "--ifname", "cnitool del"] {
            assert!(refused.stderr.contains(part), "{part}: {refused:?}");
        }
        node.ping(&netns, gateway);
        cnitool(&node, &["check", "dual-stack", &netns]).silent();
        let after = (state(&node), node.ip("-n c1 addr show dev eth0"));
        assert_eq!(after, before);
    }
    cnitool(&node, &["add", "requested", &netns, "-i", "eth1"]).json();
    node.ping(&netns, "10.89.0.1");
    node.ping(&netns, gateway);
}

#[test]
fn gc_frees_no_lease_while_it_does_not_know_whose_it_is() {
    let node = Node::new();
    let netns = node.netns("c1");
    cnitool(&node, &["add", "dual-stack", &netns]).json();
    let leases = || {
        let files = state(&node);
        let is_lease = |file: &&str| file.contains("/10.88.") || file.contains("/fd00:88:");
        files.lines().filter(is_lease).count()
    };
    let held = leases();
    assert_eq!(held, 2);
    let cached = node.sh("echo /var/lib/cni/results/dual-stack-*");
    let cached = cached.trim();
    fs::write(cached, "{\"kind\":").unwrap();
    let refused = cnitool(&node, &["gc", "dual-stack"]);
    assert_eq!((refused.ok, refused.stdout.as_str()), (false, ""));
    assert!(refused.stderr.contains(cached), "{refused:?}");
    assert_eq!(leases(), held);
    cnitool(&node, &["gc", "dual-stack", "--all"]).silent();
    assert_eq!(leases(), 0);
}

#[test]
fn a_network_that_is_not_there_is_explained() {
    let node = Node::new();
    let netns = node.netns("c1");
    let output = cnitool(&node, &["add", "dual-stak", &netns]);
    assert_eq!((output.ok, output.stdout.as_str()), (false, ""));
    for word in [
        "no net configuration with name \"dual-stak\"",
        "dual-stack",
        "conf",
    ] {
        assert!(output.stderr.contains(word), "{output:?}");
    }
    let typo = cnitool(&node, &["ad", "dual-stack", &netns]);
    assert!(!typo.ok && typo.stderr.contains("add"), "{typo:?}");
}

#[test]
fn a_mapped_port_leads_into_the_container() {
    let node = Node::new();
    let netns = node.netns("c1");
    let ports = r#"{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}"#;
    cnitool(&node, &["add", "ports", &netns, "--cap", ports]).json();
    // -t: half a second after the other side's end, as is usual, may be too short.
    let server = "ip netns exec c1 socat -t9 TCP4-LISTEN:80,fork,reuseaddr 'SYSTEM:echo hello' >/dev/null 2>&1 & echo $!";
    let pid = node.sh(server);
    node.sh("until ip netns exec c1 ss -Hltn | grep -q ':80 '; do sleep 0.01; done");
    let answer = node.sh("socat -t9 -T9 - TCP:127.0.0.1:8080 </dev/null");
    node.sh(&format!("kill {pid}"));
    assert_eq!(answer, "hello\n");
    cnitool(&node, &["check", "ports", &netns, "--cap", ports]).silent();
    cnitool(&node, &["del", "ports", &netns, "--cap", ports]).silent();
    let rules = node.sh("nft list ruleset");
    assert!(!rules.contains("10.91."), "{rules}");
}

/// The blocks of JSON in a Markdown text.
fn json_blocks(text: &str) -> Vec<&str> {
    let blocks = text.split("```json\n").skip(1);
    blocks
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

#[test]
fn the_manuals_examples_are_valid() {
    let node = Node::new();
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/plugins");
    let pages = fs::read_dir(pages).unwrap();
    let mut pages: Vec<PathBuf> = pages.map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    assert!(pages.len() > 10, "{pages:?}");
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        let examples = json_blocks(&text);
        assert_eq!(
            examples.is_empty(),
            page.ends_with("README.md"),
            "{}",
            page.display()
        );
        let plugin = page.file_stem().unwrap().to_str().unwrap();
        for example in examples {
            assert!(
                example.contains(&format!("\"type\": \"{plugin}\"")),
                "{example}"
            );
            // Each alone: networks of different pages may overlap.
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("example.conflist");
            fs::write(&file, example).unwrap();
            let valid = node.cnitool(dir.path(), &["validate", file.to_str().unwrap()]);
            assert_eq!(valid.stdout, format!("{}: ok\n", file.display()));
        }
    }
}
