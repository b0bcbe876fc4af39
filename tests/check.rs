//! CHECK fails for what breaks this container's network, and not for what is only unusual.
//! docs/operations.md lists both; the tests of each plugin have more of either.

mod common;

use std::fs;

use common::{Call, Node, with, with_result};
use serde_json::{Value, json};

const LEASES: &str = "/var/lib/cni/networks/net1";

/// A dual-stack network of `plugin` with a gateway.
fn network(plugin: &str) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net1", "type": plugin, "bridge": "br1", "isGateway": true,
        "ipam": {"type": "host-local", "ranges": [
            [{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]},
    })
}

/// CHECK must fail and tell all of these `words`.
#[track_caller]
fn broken(call: &Call, checked: &Value, words: &[&str]) {
    let (code, message, details) = call.run("CHECK", checked).error();
    let told = format!("{message}; {details}");
    assert_eq!(code, 999, "{told}");
    for word in words {
        assert!(told.contains(word), "{word}: {told}");
    }
}

#[test]
fn the_lease_of_each_address() {
    let node = Node::new();
    for plugin in ["bridge", "ptp"] {
        let call = node.plugin(plugin).id(plugin).netns(&node.netns(plugin));
        let config = network(plugin);
        let result = call.run("ADD", &config).json();
        let checked = with_result(&config, &result);
        call.run("CHECK", &checked).silent();
        for index in [0, 1] {
            let ip = result["ips"][index]["address"].as_str().unwrap();
            let ip = ip.split('/').next().unwrap();
            let file = format!("{LEASES}/{ip}");
            let lease = fs::read(&file).unwrap();
            // The other family's stands.
            fs::remove_file(&file).unwrap();
            broken(&call, &checked, &[ip, "expected the lease", "found none"]);
            for blank in ["", " \r\n"] {
                fs::write(&file, blank).unwrap();
                broken(&call, &checked, &[ip, "found none"]);
            }
            fs::write(&file, "other\r\neth0").unwrap();
            broken(&call, &checked, &[ip, "eth0 of container other"]);
            fs::write(&file, format!("{plugin}\r\neth1")).unwrap();
            broken(&call, &checked, &[ip, "eth1 of container"]);
            // As old versions wrote it: the container's, whatever the interface.
            fs::write(&file, plugin).unwrap();
            call.run("CHECK", &checked).silent();
            fs::write(&file, lease).unwrap();
        }
        call.run("CHECK", &checked).silent();
        // A lease that the ranges no longer have is nobody else's.
        let mut moved = checked.clone();
        moved["ipam"]["ranges"][0][0]["subnet"] = json!("10.10.0.0/24");
        moved["ipam"]["ranges"][1][0]["subnet"] = json!("fd00:10::/64");
        call.run("CHECK", &moved).silent();
        // An address of another plugin's interface, which happens to be in the range.
        let mut more = checked.clone();
        more["prevResult"]["interfaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "net7", "sandbox": format!("/run/netns/{plugin}")}));
        let last = more["prevResult"]["interfaces"].as_array().unwrap().len() - 1;
        more["prevResult"]["ips"]
            .as_array_mut()
            .unwrap()
            .push(json!({"address": "10.9.0.77/24", "interface": last}));
        node.plugin("host-local")
            .id(plugin)
            .netns(&format!("/run/netns/{plugin}"))
            .run("CHECK", &more)
            .silent();
        call.run("DEL", &checked).silent();
        broken(
            &node.plugin("host-local").id(plugin).netns("/run/netns/x"),
            &checked,
            &["10.9.0."],
        );
    }
}

#[test]
fn forwarding_that_is_off() {
    let node = Node::new();
    for plugin in ["bridge", "ptp"] {
        let call = node.plugin(plugin).netns(&node.netns(plugin));
        let config = network(plugin);
        let result = call.run("ADD", &config).json();
        let checked = with_result(&config, &result);
        // The bridge, or the host's end.
        let gateway = result["interfaces"][0]["name"].as_str().unwrap();
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            call.run("CHECK", &checked).silent();
            node.sh(&format!("echo 0 > /proc/sys/net/{key}"));
            broken(&call, &checked, &[&format!("net/{key} 1, found 0")]);
            node.sh(&format!("echo 1 > /proc/sys/net/{key}"));
        }
        let key = format!("ipv4/conf/{gateway}/forwarding");
        node.sh(&format!("echo 0 > /proc/sys/net/{key}"));
        broken(&call, &checked, &[&key]);
        node.sh(&format!("echo 1 > /proc/sys/net/{key}"));
        call.run("CHECK", &checked).silent();
        // A container without IPv6 does not mind.
        node.sh("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding");
        let mut only_ipv4 = checked.clone();
        only_ipv4["prevResult"]["ips"].as_array_mut().unwrap().pop();
        call.run("CHECK", &only_ipv4).silent();
        call.run("DEL", &checked).silent();
    }
    // A bridge that is no gateway forwards nothing.
    let config = with(network("bridge"), json!({"isGateway": false}));
    let call = node.plugin("bridge").id("c2").netns(&node.netns("c2"));
    let result = call.run("ADD", &config).json();
    node.sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
    call.run("CHECK", &with_result(&config, &result)).silent();
}

#[test]
fn what_the_bridge_port_has_lost() {
    let node = Node::new();
    for (key, option, words) in [
        ("hairpinMode", "hairpin", "hairpin mode"),
        ("portIsolation", "isolated", "isolated"),
    ] {
        let config = with(network("bridge"), json!({key: true}));
        let call = node.plugin("bridge").id(option).netns(&node.netns(option));
        let result = call.run("ADD", &config).json();
        let checked = with_result(&config, &result);
        call.run("CHECK", &checked).silent();
        let port = result["interfaces"][1]["name"].as_str().unwrap();
        node.sh(&format!("bridge link set dev {port} {option} off"));
        broken(&call, &checked, &[port, words]);
        node.sh(&format!("bridge link set dev {port} {option} on"));
        call.run("CHECK", &checked).silent();
        // More than was asked for breaks nothing.
        let plain = with_result(&network("bridge"), &result);
        call.run("CHECK", &plain).silent();
        call.run("DEL", &checked).silent();
    }
}

#[test]
fn what_is_unusual_breaks_nothing() {
    let node = Node::new();
    let c1 = node.netns("c1");
    for plugin in ["bridge", "ptp"] {
        let call = node.plugin(plugin).netns(&c1);
        let config = network(plugin);
        let mut result = call.run("ADD", &config).json();
        let container_end = result["interfaces"]
            .as_array()
            .unwrap()
            .iter()
            .position(|i| i["name"] == "eth0")
            .unwrap();
        // The namespace was told by a process that has ended since.
        result["interfaces"][container_end]["sandbox"] = json!("/proc/999999999/ns/net");
        let checked = with_result(&config, &result);
        call.run("CHECK", &checked).silent();
        node.sh(
            "ip -n c1 addr add 10.77.0.5/24 dev eth0 && ip -n c1 link set eth0 txqueuelen 7 && \
             ip -n c1 route add 10.78.0.0/24 via 10.9.0.1 && \
             ip link add up0 type veth peer name up1 && sysctl -qw net.ipv4.conf.up0.forwarding=0",
        );
        call.run("CHECK", &checked).silent();
        // Another namespace's interface of that name is not ours.
        result["interfaces"][container_end]["sandbox"] = json!("/proc/self/ns/net");
        let other = call.run("CHECK", &with_result(&config, &result));
        assert!(other.error().1.contains("no interface eth0"));
        call.run("DEL", &checked).silent();
        node.sh("ip link del up0");
    }
}

#[test]
fn a_bridge_or_a_port_that_is_down() {
    let node = Node::new();
    let config = network("bridge");
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    let result = call.run("ADD", &config).json();
    let checked = with_result(&config, &result);
    let port = result["interfaces"][1]["name"].as_str().unwrap();
    for link in ["br1", port] {
        call.run("CHECK", &checked).silent();
        node.sh(&format!("ip link set {link} down"));
        broken(&call, &checked, &[link, "up, found down"]);
        node.sh(&format!("ip link set {link} up"));
        // A link that goes down loses its IPv6 addresses.
        node.sh("ip addr replace fd00:9::1/64 dev br1 nodad");
    }
    // A smaller bridge drops what is too long for it: the container works, mostly.
    call.run("CHECK", &checked).silent();
    node.sh("ip link set br1 mtu 1300");
    let warned = call.run("CHECK", &checked);
    warned.silent();
    assert!(warned.stderr.contains("carries 1300 only"), "{warned:?}");
}

#[test]
fn rules_that_somebody_flushed() {
    let node = Node::new();
    for (plugin, backend, spoof_check) in [
        ("bridge", "nftables", false),
        ("bridge", "iptables", true),
        ("ptp", "nftables", false),
        ("ptp", "iptables", false),
    ] {
        let change = json!({"ipMasq": true, "ipMasqBackend": backend, "macspoofchk": spoof_check});
        let config = with(network(plugin), change);
        let call = node
            .plugin(plugin)
            .netns(&node.netns(&format!("{plugin}-{backend}")));
        let result = call.run("ADD", &config).json();
        let checked = with_result(&config, &result);
        call.run("CHECK", &checked).silent();
        if spoof_check {
            let before = node.sh("nft list tables bridge");
            assert!(!before.is_empty());
            let table = before.split_whitespace().last().unwrap();
            node.sh(&format!("nft flush table bridge {table}"));
            broken(&call, &checked, &["missing", "bridge"]);
        }
        node.sh("nft flush ruleset");
        broken(&call, &checked, &["10.9.0.", "fd00:9::"]);
        call.run("DEL", &checked).silent();
    }
}
