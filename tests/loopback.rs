//! The loopback plugin on the real kernel: the built binary, called as a runtime calls it,
//! judged with `ip` and `ping`.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot do its work says so by panicking"
)]

mod common;

use std::path::Path;

use common::{Call, Node, REFERENCE, VERSIONS};
use serde_json::{Value, json};

fn config(version: &str) -> Value {
    json!({"cniVersion": version, "name": "lo", "type": "loopback"})
}

fn with_result(version: &str, result: &Value) -> Value {
    let mut config = config(version);
    config["prevResult"] = result.clone();
    config
}

/// A call for a namespace `c1` as the kernel makes it: `lo` is down.
fn container(node: &Node) -> Call {
    node.sh("ip netns add c1");
    node.plugin("loopback").netns("/run/netns/c1")
}

fn is_up(node: &Node) -> bool {
    has_flag_up(&node.ip("-n c1 link show dev lo"))
}

fn has_flag_up(lo: &Value) -> bool {
    let flags = lo[0]["flags"].as_array().unwrap();
    flags.iter().any(|flag| flag == "UP")
}

#[test]
fn lo_is_up_between_add_and_del() {
    let node = Node::new();
    let call = container(&node);
    let down = call.run("CHECK", &config("1.1.0")).error();
    assert_eq!(down.1, "loopback interface is down");
    let result = call.run("ADD", &config("1.1.0")).json();
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": "/run/netns/c1"}],
            "ips": [
                {"address": "127.0.0.1/8", "interface": 0},
                {"address": "::1/128", "interface": 0},
            ],
        })
    );
    node.ping("c1", "127.0.0.1");
    node.ping("c1", "::1");
    let added = with_result("1.1.0", &result);
    call.run("CHECK", &added).silent();
    // Runtimes add it again when a container is restarted in its namespace.
    call.run("ADD", &config("1.1.0")).json();
    call.run("DEL", &added).silent();
    assert!(!is_up(&node));
    call.run("DEL", &added).silent();
}

#[test]
fn every_version_gets_its_own_result_form() {
    let node = Node::new();
    let call = container(&node);
    let interfaces =
        json!([{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": "/run/netns/c1"}]);
    for version in VERSIONS {
        let result = call.run("ADD", &config(version)).json();
        let expected = match version {
            "0.1.0" | "0.2.0" => json!({
                "cniVersion": version,
                "ip4": {"ip": "127.0.0.1/8"}, "ip6": {"ip": "::1/128"},
                "dns": {},
            }),
            "1.0.0" | "1.1.0" => json!({
                "cniVersion": version, "interfaces": interfaces,
                "ips": [
                    {"address": "127.0.0.1/8", "interface": 0},
                    {"address": "::1/128", "interface": 0},
                ],
            }),
            _ => json!({
                "cniVersion": version, "interfaces": interfaces,
                "ips": [
                    {"version": "4", "address": "127.0.0.1/8", "interface": 0},
                    {"version": "6", "address": "::1/128", "interface": 0},
                ],
                "dns": {},
            }),
        };
        assert_eq!(result, expected, "{version}");
        if version >= "0.4.0" {
            call.run("CHECK", &with_result(version, &result)).silent();
        }
        call.run("DEL", &with_result(version, &result)).silent();
        assert!(!is_up(&node), "{version}");
    }
}

#[test]
fn a_result_before_it_is_passed_on_unchanged() {
    let node = Node::new();
    let call = container(&node);
    let previous = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": "/run/netns/c1"}],
        "ips": [{"address": "10.1.0.2/24", "interface": 0}],
        "dns": {"nameservers": ["10.1.0.1"]},
        "example.com/more": 1,
    });
    let passed = call.run("ADD", &with_result("1.0.0", &previous)).json();
    assert_eq!(passed, previous);
    assert!(is_up(&node));
    // In the form of whoever asks now, where that is another than before.
    let passed = call.run("ADD", &with_result("0.4.0", &previous)).json();
    assert_eq!(passed["ips"][0]["version"], "4");
}

#[test]
fn del_succeeds_whatever_is_gone() {
    let node = Node::new();
    let call = container(&node);
    call.run("ADD", &config("1.1.0")).json();
    node.sh("touch /run/netns/left");
    for netns in ["", "/run/netns/none", "/run/netns/left"] {
        let gone = call.clone().netns(netns);
        gone.run("DEL", &config("1.1.0")).silent();
    }
    assert!(is_up(&node));
}

#[test]
fn an_add_that_fails_leaves_lo_as_it_was() {
    let node = Node::new();
    let call = container(&node);
    node.sh("ip -n c1 addr add 10.1.0.7/32 dev lo");
    let (_, message, details) = call.run("ADD", &config("1.1.0")).error();
    assert!(message.contains("\"10.1.0.7\""), "{message}");
    assert!(details.contains("remove the address"), "{details}");
    assert!(!is_up(&node));
    node.sh("ip -n c1 link set lo up");
    call.run("ADD", &config("1.1.0")).error();
    assert!(is_up(&node));
    let (code, message, _) = call
        .netns("/run/netns/none")
        .run("ADD", &config("1.1.0"))
        .error();
    assert_eq!(code, 4);
    assert!(message.contains("/run/netns/none"), "{message}");
}

#[test]
fn the_hosts_own_lo_is_never_touched() {
    let node = Node::new();
    let call = node.plugin("loopback").netns("/proc/self/ns/net");
    call.run("DEL", &config("1.1.0")).silent();
    node.sh("ping -n -c 1 -W 1 127.0.0.1");
    node.sh("ip link set lo down");
    assert_eq!(call.run("ADD", &config("1.1.0")).error().0, 8);
    assert!(!has_flag_up(&node.ip("link show dev lo")));
}

#[test]
fn a_kernel_without_ipv6_on_lo_has_one_address() {
    let node = Node::new();
    let call = container(&node);
    node.sh("ip netns exec c1 sysctl -qw net.ipv6.conf.lo.disable_ipv6=1");
    let result = call.run("ADD", &config("1.1.0")).json();
    assert_eq!(
        result["ips"],
        json!([{"address": "127.0.0.1/8", "interface": 0}])
    );
}

#[test]
fn status_gc_and_version() {
    let node = Node::new();
    let call = node.plugin("loopback");
    call.run("STATUS", &config("1.1.0")).silent();
    let mut gc = config("1.1.0");
    assert_eq!(call.run("GC", &gc).error().0, 7);
    gc["cni.dev/valid-attachments"] = json!([]);
    call.run("GC", &gc).silent();
    let versions = call.env("CNI_COMMAND", "VERSION").run_text("").json();
    assert_eq!(versions["supportedVersions"], json!(VERSIONS));
}

#[test]
fn what_one_implementation_added_the_other_removes() {
    let node = Node::new();
    let theirs = Path::new(REFERENCE).join("loopback");
    assert!(
        theirs.exists(),
        "the reference plugins are needed: see `make test`"
    );
    let ours = container(&node);
    let theirs = ours.clone().executable(theirs);
    let mut results = Vec::new();
    for (adds, other) in [(&ours, &theirs), (&theirs, &ours)] {
        let result = adds.run("ADD", &config("1.0.0")).json();
        node.ping("c1", "127.0.0.1");
        let added = with_result("1.0.0", &result);
        other.run("CHECK", &added).silent();
        let again = other.run("ADD", &added).json();
        other.run("DEL", &added).silent();
        assert!(!is_up(&node));
        // The reference of some distributions says `dns` where there is none to tell.
        for result in [&result, &again] {
            assert_eq!(result["ips"].as_array().unwrap().len(), 2, "{result}");
            assert_eq!(result["interfaces"][0]["name"], "lo", "{result}");
        }
        results.push((result["ips"].clone(), result["interfaces"].clone()));
    }
    assert_eq!(results[0], results[1]);
}
