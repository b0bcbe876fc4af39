//! The static plugin: the built binary, called as a runtime calls it, by itself and as
//! the delegate of `bridge` on the real kernel.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot do its work says so by panicking"
)]

mod common;

use std::path::Path;

use common::{Call, Node, REFERENCE, VERSIONS, with};
use serde_json::{Value, json};

/// A network whose one container has these addresses.
fn config(version: &str) -> Value {
    json!({
        "cniVersion": version,
        "name": "net1",
        "type": "bridge",
        "bridge": "br1",
        "isGateway": true,
        "ipam": {
            "type": "static",
            "addresses": [
                {"address": "10.9.0.5/24", "gateway": "10.9.0.1"},
                {"address": "fd00:9::5/64", "gateway": "fd00:9::1"},
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.8.0.0/16", "gw": "10.9.0.9"}],
            "dns": {"nameservers": ["10.9.0.1"], "domain": "example.org", "search": ["a"], "options": ["ndots:5"]},
        },
    })
}

fn addresses(result: &Value) -> Vec<&str> {
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.map(|ip| ip["address"].as_str().unwrap()).collect()
}

#[test]
fn every_version_gets_its_own_result_form() {
    let node = Node::new();
    let call = node.plugin("static").netns("/run/netns/none");
    for version in VERSIONS {
        let result = call.run("ADD", &config(version)).json();
        let dns = &config(version)["ipam"]["dns"];
        let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "10.8.0.0/16", "gw": "10.9.0.9"}]);
        let expected = match version {
            "0.1.0" | "0.2.0" => json!({
                "cniVersion": version,
                "ip4": {"ip": "10.9.0.5/24", "gateway": "10.9.0.1", "routes": routes},
                "ip6": {"ip": "fd00:9::5/64", "gateway": "fd00:9::1"},
                "dns": dns,
            }),
            "1.0.0" | "1.1.0" => json!({
                "cniVersion": version,
                "ips": [
                    {"address": "10.9.0.5/24", "gateway": "10.9.0.1"},
                    {"address": "fd00:9::5/64", "gateway": "fd00:9::1"},
                ],
                "routes": routes, "dns": dns,
            }),
            _ => json!({
                "cniVersion": version,
                "ips": [
                    {"version": "4", "address": "10.9.0.5/24", "gateway": "10.9.0.1"},
                    {"version": "6", "address": "fd00:9::5/64", "gateway": "fd00:9::1"},
                ],
                "routes": routes, "dns": dns,
            }),
        };
        assert_eq!(result, expected, "{version}");
        let added = with(config(version), json!({"prevResult": result}));
        if version >= "0.4.0" {
            call.run("CHECK", &added).silent();
        }
        call.run("DEL", &added).silent();
    }
}

#[test]
fn a_container_has_the_addresses_it_was_promised() {
    let node = Node::new();
    let c1 = node.netns("c1");
    let call = node.plugin("bridge").netns(&c1);
    let result = call.run("ADD", &config("1.1.0")).json();
    assert_eq!(addresses(&result), ["10.9.0.5/24", "fd00:9::5/64"]);
    assert_eq!(result["dns"], config("1.1.0")["ipam"]["dns"]);
    for address in ["10.9.0.1", "fd00:9::1"] {
        node.ping(&c1, address);
    }
    node.sh("ping -n -c 1 -W 1 10.9.0.5");
    let routes = node.sh("ip -n c1 route show");
    assert!(routes.contains("default via 10.9.0.1"), "{routes}");
    assert!(routes.contains("10.8.0.0/16 via 10.9.0.9"), "{routes}");
    let added = with(config("1.1.0"), json!({"prevResult": result}));
    call.run("CHECK", &added).silent();
    call.run("STATUS", &config("1.1.0")).silent();
    let gc = with(
        config("1.1.0"),
        json!({"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}),
    );
    call.run("GC", &gc).silent();
    call.run("CHECK", &added).silent();
    call.run("DEL", &added).silent();
    call.run("DEL", &added).silent();
    assert_eq!(node.links(), ["br1"]);
}

#[test]
fn what_the_runtime_asks_for_is_completed_from_the_configuration() {
    let node = Node::new();
    let c1 = node.netns("c1");
    let call = node.plugin("bridge").netns(&c1);
    let asked = with(
        config("1.1.0"),
        json!({"runtimeConfig": {"ips": ["10.9.0.77", "fd00:9::77"]}}),
    );
    let result = call.run("ADD", &asked).json();
    assert_eq!(addresses(&result), ["10.9.0.77/24", "fd00:9::77/64"]);
    node.ping(&c1, "10.9.0.1");
    node.ping(&c1, "fd00:9::1");
    call.run("DEL", &asked).silent();

    let bare = with(config("1.1.0"), json!({"ipam": {"type": "static"}}));
    let alone = node.plugin("static").netns(&c1);
    let by_args = alone
        .clone()
        .env("CNI_ARGS", "IP=10.7.0.2/24,10.7.1.2/24;GATEWAY=10.7.1.1");
    let result = by_args.run("ADD", &bare).json();
    assert_eq!(
        result["ips"],
        json!([{"address": "10.7.0.2/24"}, {"address": "10.7.1.2/24", "gateway": "10.7.1.1"}])
    );
    let (code, _, details) = alone
        .env("CNI_ARGS", "IP=10.7.0.2")
        .run("ADD", &bare)
        .error();
    assert_eq!(code, 4);
    assert!(details.contains("\"10.7.0.2\""), "{details}");
}

#[test]
fn check_misses_what_is_not_in_the_result() {
    let node = Node::new();
    let call = node.plugin("static").netns("/run/netns/none");
    let result = call.run("ADD", &config("1.1.0")).json();
    let check = |ips: Value| {
        let result = with(result.clone(), json!({"ips": ips}));
        call.run(
            "CHECK",
            &with(config("1.1.0"), json!({"prevResult": result})),
        )
    };
    let (_, message, details) = check(json!([])).error();
    assert!(
        message.contains("expected address 10.9.0.5/24"),
        "{message}"
    );
    assert!(details.contains("fd00:9::5/64"), "{details}");
    let mut other = result["ips"].clone();
    other[1]["gateway"] = json!("fd00:9::2");
    let (_, message, _) = check(other).error();
    assert!(
        message.contains("expected gateway fd00:9::1") && message.contains("found fd00:9::2"),
        "{message}"
    );
    assert_eq!(call.run("CHECK", &config("1.1.0")).error().0, 7);
}

#[test]
fn del_needs_nothing_and_status_says_what_is_wrong() {
    let node = Node::new();
    let call = node.plugin("static");
    let broken = with(
        config("1.1.0"),
        json!({"ipam": {"type": "static", "addresses": [{"address": "10.9.0.5"}]}}),
    );
    call.run("DEL", &broken).silent();
    let (code, _, details) = call.run("STATUS", &broken).error();
    assert_eq!(code, 7);
    assert!(
        details.starts_with("ipam.addresses[0].address: "),
        "{details}"
    );
    assert_eq!(call.run("GC", &config("1.1.0")).error().0, 7);
    let versions = call.env("CNI_COMMAND", "VERSION").run_text("").json();
    assert_eq!(versions["supportedVersions"], json!(VERSIONS));
}

#[test]
fn what_one_implementation_added_the_other_removes() {
    let node = Node::new();
    assert!(
        Path::new(REFERENCE).join("static").exists(),
        "the reference plugins are needed: see `make test`"
    );
    let theirs = |name: &str, call: Call| {
        call.executable(format!("{REFERENCE}/{name}"))
            .env("CNI_PATH", REFERENCE)
    };
    let c1 = node.netns("c1");
    let config = config("1.0.0");
    let ours = node.plugin("bridge").netns(&c1);
    for (adds, other) in [
        (ours.clone(), theirs("bridge", ours.clone())),
        (theirs("bridge", ours.clone()), ours),
    ] {
        let result = adds.run("ADD", &config).json();
        node.ping(&c1, "fd00:9::1");
        let added = with(config.clone(), json!({"prevResult": result}));
        other.run("CHECK", &added).silent();
        other.run("DEL", &added).silent();
        assert_eq!(node.links(), ["br1"]);
    }
    // The same answer to the same question, whoever asks for the addresses.
    let alone = node
        .plugin("static")
        .netns(&c1)
        .env("CNI_ARGS", "IP=10.9.1.5/24;GATEWAY=10.9.1.1");
    for asked in [
        json!({}),
        json!({"args": {"cni": {"ips": ["10.3.0.5/16"]}}}),
        json!({"runtimeConfig": {"ips": ["10.3.0.5/16", "fd00:3::5/64"]}}),
    ] {
        let config = with(config.clone(), asked);
        assert_eq!(
            alone.run("ADD", &config).json(),
            theirs("static", alone.clone()).run("ADD", &config).json()
        );
    }
}
