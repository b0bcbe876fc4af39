//! The bridge plugin on the real kernel: the built binary, called as a runtime calls it,
//! judged with `ip`, `ping` and the files it leaves.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test that cannot do its work says so by panicking; doors are for the product"
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use common::{Call, Node, REFERENCE, VERSIONS, with, with_result};
use serde_json::{Value, json};

/// A dual-stack network with a default route through its bridge.
fn dual_stack() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "net1",
        "type": "bridge",
        "bridge": "br1",
        "isDefaultGateway": true,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]],
        },
    })
}

/// The leases of network `name`.
fn leases(name: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(Path::new("/var/lib/cni/networks").join(name)) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with("last_reserved_ip") && name != "lock")
        .collect();
    names.sort();
    names
}

/// Addresses of a link as `ip -j` tells them, link-local ones left out.
fn addresses(node: &Node, args: &str) -> Vec<String> {
    node.ip(args)[0]["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|a| a["scope"] == "global")
        .map(|a| format!("{}/{}", a["local"].as_str().unwrap(), a["prefixlen"]))
        .collect()
}

/// Asserts that nothing of any attachment is left on the node, the bridge aside.
#[track_caller]
fn assert_clean(node: &Node, bridge: &str) {
    let links = node.links();
    assert!(links.iter().all(|name| name == bridge), "{links:?}");
    assert_eq!(leases("net1"), [] as [String; 0]);
}

#[test]
fn two_containers_talk_over_both_families() {
    let node = Node::new();
    let config = dual_stack();
    let (red, blue) = (node.netns("red"), node.netns("blue"));
    let call = |id: &str, netns: &str| node.plugin("bridge").id(id).netns(netns);
    let result = call("red", &red).run("ADD", &config).json();
    call("blue", &blue).run("ADD", &config).json();

    assert_eq!(
        addresses(&node, "-n red addr show dev eth0"),
        ["10.9.0.2/24", "fd00:9::2/64"]
    );
    assert_eq!(
        addresses(&node, "addr show dev br1"),
        ["10.9.0.1/24", "fd00:9::1/64"]
    );
    // At once: nothing is tentative, nothing has to be waited for.
    for address in ["10.9.0.1", "10.9.0.3", "fd00:9::1", "fd00:9::3"] {
        node.ping(&red, address);
    }
    node.sh("ping -n -c 1 -W 1 10.9.0.2 && ping -n -c 1 -W 1 fd00:9::2");
    for family in ["-4", "-6"] {
        let routes = node.ip(&format!("-n red {family} route show default"));
        assert_eq!(routes.as_array().unwrap().len(), 1, "{routes}");
    }
    assert!(
        !node
            .sh("ip -n red addr; ip addr show br1")
            .contains("tentative")
    );

    let checked = with_result(&config, &result);
    call("red", &red).run("CHECK", &checked).silent();
    call("red", &red).run("DEL", &checked).silent();
    assert_eq!(leases("net1"), ["10.9.0.3", "fd00:9::3"]);
    node.ping(&blue, "10.9.0.1");
    call("blue", &blue).run("DEL", &config).silent();
    call("blue", &blue).run("DEL", &config).silent();
    assert_clean(&node, "br1");
    assert!(node.ip("-n red addr show").to_string().contains("lo"));
}

#[test]
fn the_result_names_bridge_host_end_and_container_end() {
    let node = Node::new();
    let c1 = node.netns("c1");
    let call = node.plugin("bridge").netns(&c1);
    let result = call.run("ADD", &dual_stack()).json();
    let interfaces = result["interfaces"].as_array().unwrap();
    assert_eq!(interfaces.len(), 3);
    assert_eq!(interfaces[0]["name"], "br1");
    let host_end = interfaces[1]["name"].as_str().unwrap();
    assert!(host_end.starts_with("veth") && host_end.len() == 12);
    assert_eq!(interfaces[2]["name"], "eth0");
    assert_eq!(interfaces[2]["sandbox"], json!(c1));
    for (interface, args) in [(0, "br1"), (1, host_end)] {
        let link = &node.ip(&format!("link show dev {args}"))[0];
        assert_eq!(interfaces[interface]["mac"], link["address"]);
        assert!(interfaces[interface].get("sandbox").is_none());
    }
    let link = &node.ip("-n c1 link show dev eth0")[0];
    assert_eq!(interfaces[2]["mac"], link["address"]);
    assert_eq!(link["linkinfo"]["info_kind"], "veth");
    let host = &node.ip(&format!("link show dev {host_end}"))[0];
    assert_eq!(host["master"], "br1");
    let alias = host["ifalias"].as_str().unwrap();
    for word in ["net1", "c1", "eth0"] {
        assert!(alias.contains(word), "{alias}");
    }
    assert_eq!(
        result["ips"],
        json!([
            {"address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 2},
            {"address": "fd00:9::2/64", "gateway": "fd00:9::1", "interface": 2},
        ])
    );
    assert_eq!(
        result["routes"],
        json!([
            {"dst": "0.0.0.0/0", "gw": "10.9.0.1"},
            {"dst": "::/0", "gw": "fd00:9::1"},
        ])
    );
}

#[test]
fn every_version_gets_its_own_result_form() {
    let node = Node::new();
    for (index, version) in VERSIONS.into_iter().enumerate() {
        let netns = node.netns(&format!("v{index}"));
        let call = node.plugin("bridge").id(version).netns(&netns);
        let config = with(dual_stack(), json!({"cniVersion": version}));
        let result = call.run("ADD", &config).json();
        assert_eq!(result["cniVersion"], version);
        if index < 2 {
            assert_eq!(result["ip4"]["gateway"], "10.9.0.1");
            assert_eq!(
                result["ip6"]["routes"],
                json!([{"dst": "::/0", "gw": "fd00:9::1"}])
            );
            assert!(result.get("ips").is_none() && result["dns"] == json!({}));
        } else {
            assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
            assert_eq!(result["ips"][1].get("version").is_some(), index < 5);
            assert_eq!(result.get("dns").is_some(), index < 5);
        }
        let checked = with_result(&config, &result);
        let check = call.run("CHECK", &checked);
        if index < 4 {
            assert_eq!(check.error().0, 1);
        } else {
            check.silent();
        }
        call.run("DEL", &checked).silent();
        call.run("DEL", &checked).silent();
    }
    assert_clean(&node, "br1");
}

#[test]
fn ten_containers_at_once_on_a_node_without_the_bridge() {
    let node = Node::new();
    let calls: Vec<(String, Call)> = (0..10)
        .map(|n| {
            let netns = node.netns(&format!("c{n}"));
            let call = node.plugin("bridge").id(&format!("c{n}")).netns(&netns);
            (netns, call)
        })
        .collect();
    let at_once = |command: &'static str| {
        let threads: Vec<_> = calls
            .iter()
            .map(|(_, call)| {
                let call = call.clone();
                std::thread::spawn(move || call.run(command, &dual_stack()))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect::<Vec<_>>()
    };
    let mut addresses = BTreeSet::new();
    for output in at_once("ADD") {
        for ip in output.json()["ips"].as_array().unwrap() {
            assert!(addresses.insert(ip["address"].as_str().unwrap().to_owned()));
        }
    }
    assert_eq!(addresses.len(), 20);
    for (netns, _) in &calls {
        node.ping(netns, "10.9.0.1");
        node.ping(netns, "fd00:9::1");
    }
    node.ping(&calls[0].0, "10.9.0.11");
    for output in at_once("DEL") {
        output.silent();
    }
    assert_clean(&node, "br1");
}

#[test]
fn eight_dels_of_one_container_at_once() {
    let node = Node::new();
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    call.run("ADD", &dual_stack()).json();
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let call = call.clone();
            std::thread::spawn(move || call.run("DEL", &dual_stack()))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap().silent();
    }
    assert_clean(&node, "br1");
}

#[test]
fn del_succeeds_whatever_is_gone() {
    let node = Node::new();
    let netns = node.netns("c1");
    let call = node.plugin("bridge").netns(&netns);
    let ways: [(&str, &str); 6] = [
        ("the interface", "ip -n c1 link del eth0"),
        ("the addresses", "ip -n c1 addr flush dev eth0"),
        ("the bridge", "ip link del br1"),
        ("the leases", "rm -r /var/lib/cni"),
        ("the namespace, its file left", "umount /run/netns/c1"),
        ("the namespace and its path", "ip netns del c1"),
    ];
    let mut result = Value::Null;
    for (what, command) in ways {
        result = call.run("ADD", &dual_stack()).json();
        node.sh(command);
        let output = call.run("DEL", &with_result(&dual_stack(), &result));
        assert!(output.ok, "{what}: {output:?}");
        assert!(call.run("DEL", &dual_stack()).ok, "{what}");
        assert_clean(&node, "br1");
        if !node.succeeds("ip -n c1 link 2>/dev/null") {
            node.sh("rm -f /run/netns/c1");
            node.netns("c1");
        }
    }
    // No namespace told at all.
    call.run("ADD", &dual_stack()).json();
    node.plugin("bridge")
        .run("DEL", &with_result(&dual_stack(), &result))
        .silent();
    assert_clean(&node, "br1");
}

#[test]
fn del_of_a_namespace_that_lives_on_elsewhere_removes_the_pair() {
    let node = Node::new();
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    call.run("ADD", &dual_stack()).json();
    // A process keeps the namespace while its path is gone: the kernel removes nothing.
    let mut keeper = std::process::Command::new("ip")
        .args(["netns", "exec", "c1", "sleep", "60"])
        .spawn()
        .unwrap();
    while !node.succeeds("test -n \"$(ip netns pids c1)\"") {}
    node.sh("ip netns del c1");
    assert_eq!(node.links().len(), 2);
    let output = call.run("DEL", &dual_stack());
    keeper.kill().unwrap();
    keeper.wait().unwrap();
    output.silent();
    assert_clean(&node, "br1");
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    let node = Node::new();
    let netns = node.netns("c1");
    let call = node.plugin("bridge").netns(&netns);
    let failures = [
        // A malformed range.
        (
            json!({"ipam": {"type": "host-local", "subnet": "10.9.0.0/24",
                            "rangeStart": "10.9.0.9", "rangeEnd": "10.9.0.8"}}),
            7,
        ),
        // A route that the kernel refuses.
        (
            json!({"ipam": {"type": "host-local", "subnet": "10.9.0.0/24",
                            "routes": [{"dst": "10.77.0.0/16", "gw": "192.0.2.1"}]}}),
            999,
        ),
        // IPAM is not there.
        (json!({"ipam": {"type": "nobody"}}), 999),
        (json!({"ipam": {"type": "../../bin/true"}}), 7),
        // The bridge's name belongs to something else.
        (json!({"bridge": "lo"}), 7),
        (json!({"mtu": 10}), 7),
        (json!({"hairpinMode": true, "promiscMode": true}), 7),
        (json!({"vlan": 4095}), 7),
        (json!({"ipMasq": true, "ipMasqBackend": "ebtables"}), 7),
    ];
    for (change, code) in failures {
        let (found, message, details) =
            call.run("ADD", &with(dual_stack(), change.clone())).error();
        assert_eq!(found, code, "{change}: {message}; {details}");
        assert!(
            !node.succeeds("ip -n c1 link show dev eth0 2>/dev/null"),
            "{change}"
        );
        assert_clean(&node, "br1");
    }
}

#[test]
fn a_result_that_nobody_receives_is_undone() {
    let node = Node::new();
    node.netns("c1");
    let config = dual_stack().to_string();
    let bridge = node.bin.join("bridge");
    let command = format!(
        "printf '%s' '{config}' | CNI_COMMAND=ADD CNI_CONTAINERID=c1 CNI_NETNS=/run/netns/c1 \
         CNI_IFNAME=eth0 CNI_PATH={} {} >/dev/full",
        node.bin.display(),
        bridge.display()
    );
    assert!(!node.succeeds(&command));
    assert_clean(&node, "br1");
}

#[test]
fn a_second_add_is_refused_and_disturbs_nothing() {
    let node = Node::new();
    let c1 = node.netns("c1");
    let call = node.plugin("bridge").netns(&c1);
    call.run("ADD", &dual_stack()).json();
    let (_, message, _) = call.run("ADD", &dual_stack()).error();
    assert!(message.contains("already exists"), "{message}");
    assert_eq!(leases("net1"), ["10.9.0.2", "fd00:9::2"]);
    node.ping(&c1, "10.9.0.1");
    // Another interface of the same container is another attachment.
    let second = call.clone().ifname("eth1");
    let result = second.run(
        "ADD",
        &with(
            dual_stack(),
            json!({"isDefaultGateway": false, "isGateway": true}),
        ),
    );
    assert_eq!(result.json()["ips"][0]["address"], "10.9.0.3/24");
    second.run("DEL", &dual_stack()).silent();
    node.ping(&c1, "10.9.0.1");
}

#[test]
fn our_own_namespace_is_never_touched() {
    let node = Node::new();
    let own = node.own_netns();
    let call = node.plugin("bridge").netns(&own).ifname("lo");
    let (code, message, _) = call.run("ADD", &dual_stack()).error();
    assert_eq!(code, 8);
    assert_eq!(
        message,
        "plugin's netns and netns from CNI_NETNS should not be the same"
    );
    let previous = json!({"cniVersion": "1.1.0"});
    assert_eq!(
        call.run("CHECK", &with_result(&dual_stack(), &previous))
            .error()
            .0,
        8
    );
    call.run("DEL", &dual_stack()).silent();
    assert!(node.sh("ip link show dev lo").contains("UP"));
    assert_clean(&node, "");
}

#[test]
fn a_default_route_without_gateway_is_the_one_that_was_asked_for() {
    let node = Node::new();
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    let config = with(
        dual_stack(),
        json!({"ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.0.0.0/8", "mtu": 1300, "advmss": 1200}],
        }}),
    );
    let result = call.run("ADD", &config).json();
    assert_eq!(
        result["routes"],
        json!([
            {"dst": "0.0.0.0/0", "gw": "10.9.0.1"},
            {"dst": "::/0", "gw": "fd00:9::1"},
            {"dst": "10.0.0.0/8", "mtu": 1300, "advmss": 1200},
        ])
    );
    for family in ["-4", "-6"] {
        let routes = node.ip(&format!("-n c1 {family} route show default"));
        assert_eq!(routes.as_array().unwrap().len(), 1, "{routes}");
    }
    let route = node.sh("ip -n c1 route show 10.0.0.0/8");
    assert!(
        route.contains("via 10.9.0.1") && route.contains("mtu 1300 advmss 1200"),
        "{route}"
    );
    call.run("CHECK", &with_result(&config, &result)).silent();
}

#[test]
fn routes_go_to_the_table_with_the_scope_that_was_asked_for() {
    let node = Node::new();
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    let config = with(
        dual_stack(),
        json!({"isDefaultGateway": false, "ipam": {
            "type": "host-local", "subnet": "10.9.0.0/24", "gateway": "10.9.0.1",
            "routes": [
                {"dst": "10.20.0.0/16", "table": 1000, "priority": 7},
                {"dst": "10.30.0.0/16", "scope": 253},
            ],
        }}),
    );
    let result = call.run("ADD", &config).json();
    let table = node.sh("ip -n c1 route show table 1000");
    assert!(
        table.contains("10.20.0.0/16 via 10.9.0.1") && table.contains("metric 7"),
        "{table}"
    );
    let link = node.sh("ip -n c1 route show 10.30.0.0/16");
    assert!(
        link.contains("scope link") && !link.contains("via"),
        "{link}"
    );
    call.run("CHECK", &with_result(&config, &result)).silent();
}

#[test]
fn address_conflicts_name_everything_and_force_address_resolves_them() {
    let node = Node::new();
    let (c1, c2) = (node.netns("c1"), node.netns("c2"));
    node.plugin("bridge")
        .netns(&c1)
        .run("ADD", &dual_stack())
        .json();
    let other = with(
        dual_stack(),
        json!({"name": "net2", "ipam": {"type": "host-local", "subnet": "10.8.0.0/24"}}),
    );
    let call = node.plugin("bridge").id("c2").netns(&c2);
    let (code, message, details) = call.run("ADD", &other).error();
    assert_eq!(code, 7);
    assert_eq!(
        message,
        "failed to set bridge addr: \"br1\" already has an IP address different from 10.8.0.1/24"
    );
    for word in ["br1", "10.9.0.1/24", "10.8.0.1/24", "forceAddress"] {
        assert!(details.contains(word), "{details}");
    }
    assert_eq!(leases("net2"), [] as [String; 0]);
    assert!(!node.succeeds("ip -n c2 link show dev eth0 2>/dev/null"));
    node.ping(&c1, "10.9.0.1");
    call.run("ADD", &with(other, json!({"forceAddress": true})))
        .json();
    assert_eq!(
        addresses(&node, "addr show dev br1"),
        ["10.8.0.1/24", "fd00:9::1/64"]
    );
}

#[test]
fn two_subnets_of_one_network_both_get_their_gateway() {
    let node = Node::new();
    let c1 = node.netns("c1");
    let config = with(
        dual_stack(),
        json!({"ipam": {"type": "host-local",
                        "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "10.8.0.0/24"}]]}}),
    );
    for force in [false, true] {
        let config = with(config.clone(), json!({"forceAddress": force}));
        let call = node.plugin("bridge").netns(&c1);
        let result = call.run("ADD", &config).json();
        assert_eq!(
            addresses(&node, "addr show dev br1"),
            ["10.9.0.1/24", "10.8.0.1/24"]
        );
        node.ping(&c1, "10.9.0.1");
        node.ping(&c1, "10.8.0.1");
        call.run("CHECK", &with_result(&config, &result)).silent();
        call.run("DEL", &config).silent();
    }
}

#[test]
fn an_address_is_reachable_at_once_for_its_next_owner() {
    let node = Node::new();
    let neighbour = node.netns("neighbour");
    node.plugin("bridge")
        .id("n")
        .netns(&neighbour)
        .run("ADD", &dual_stack())
        .json();
    let config = with(
        dual_stack(),
        json!({"runtimeConfig": {"ips": ["10.9.0.77", "fd00:9::77"]}}),
    );
    let mut macs = BTreeSet::new();
    for round in 0..3 {
        let netns = node.netns(&format!("r{round}"));
        let call = node.plugin("bridge").id(&format!("r{round}")).netns(&netns);
        let result = call.run("ADD", &config).json();
        macs.insert(result["interfaces"][2]["mac"].to_string());
        for address in ["10.9.0.77", "fd00:9::77"] {
            node.ping(&neighbour, address);
            node.sh(&format!("ping -n -c 1 -W 1 {address}"));
        }
        call.run("DEL", &config).silent();
    }
    assert_eq!(
        macs.len(),
        3,
        "each owner has a hardware address of its own"
    );
}

#[test]
fn mac_mtu_and_port_flags() {
    let node = Node::new();
    let c1 = node.netns("c1");
    let call = node.plugin("bridge").netns(&c1);
    let config = with(
        dual_stack(),
        json!({
            "mtu": 1400, "hairpinMode": true, "portIsolation": true,
            "runtimeConfig": {"mac": "02:11:22:33:44:55"},
        }),
    );
    let result = call.run("ADD", &config).json();
    let end = &result["interfaces"][2];
    assert_eq!(
        (&end["mac"], &end["mtu"]),
        (&json!("02:11:22:33:44:55"), &json!(1400))
    );
    assert_eq!(node.ip("-n c1 link show dev eth0")[0]["mtu"], 1400);
    assert_eq!(
        node.ip("-n c1 link show dev eth0")[0]["address"],
        "02:11:22:33:44:55"
    );
    assert_eq!(node.ip("link show dev br1")[0]["mtu"], 1400);
    let host_end = result["interfaces"][1]["name"].as_str().unwrap();
    let port = &node.ip(&format!("link show dev {host_end}"))[0];
    assert_eq!(port["mtu"], 1400);
    let flags = &port["linkinfo"]["info_slave_data"];
    assert_eq!(
        (&flags["hairpin"], &flags["isolated"]),
        (&json!(true), &json!(true))
    );
    call.run("CHECK", &with_result(&config, &result)).silent();

    // The bridge keeps what its smallest port carries: more would be lost on the way.
    let big = with(dual_stack(), json!({"mtu": 9000}));
    let c2 = node.netns("c2");
    let other = node.plugin("bridge").id("c2").netns(&c2);
    let output = other.run("ADD", &big);
    assert_eq!(output.json()["interfaces"][2]["mtu"], 1400);
    assert!(
        output.stderr.contains("9000") && output.stderr.contains("1400"),
        "{output:?}"
    );
    other
        .run("CHECK", &with_result(&big, &output.json()))
        .silent();
    // Alone on the bridge the whole of it is available again.
    call.run("DEL", &config).silent();
    other.run("DEL", &big).silent();
    assert_eq!(other.run("ADD", &big).json()["interfaces"][2]["mtu"], 9000);
    assert_eq!(node.ip("link show dev br1")[0]["mtu"], 9000);
}

#[test]
fn promiscuous_bridge() {
    let node = Node::new();
    let config = with(dual_stack(), json!({"promiscMode": true}));
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    let result = call.run("ADD", &config).json();
    assert!(node.sh("ip link show dev br1").contains("PROMISC"));
    call.run("CHECK", &with_result(&config, &result)).silent();
    node.sh("ip link set dev br1 promisc off");
    let (_, message, _) = call.run("CHECK", &with_result(&config, &result)).error();
    assert!(message.contains("promiscuous"), "{message}");
}

#[test]
fn layer_2_only() {
    let node = Node::new();
    let c1 = node.netns("c1");
    let call = node.plugin("bridge").netns(&c1);
    for ipam in [json!(null), json!({})] {
        let config = json!({"cniVersion": "1.0.0", "name": "net1", "bridge": "br1", "ipam": ipam});
        let result = call.run("ADD", &config).json();
        assert!(result.get("ips").is_none());
        assert!(node.sh("ip -n c1 link show dev eth0").contains("LOWER_UP"));
        assert_eq!(addresses(&node, "addr show dev br1"), [] as [String; 0]);
        call.run("CHECK", &with_result(&config, &result)).silent();
        call.run("DEL", &config).silent();
        assert_clean(&node, "br1");
        // The oldest results have no form for it: said before anything is made.
        let old = with(config, json!({"cniVersion": "0.2.0"}));
        let (code, _, details) = call.run("ADD", &old).error();
        assert!(code == 7 && details.contains("0.2.0"), "{details}");
        assert_clean(&node, "br1");
    }
    let down = json!({"cniVersion": "1.1.0", "name": "net1", "bridge": "br1", "disableContainerInterface": true});
    let result = call.run("ADD", &down).json();
    assert!(!node.sh("ip -n c1 link show dev eth0").contains(",UP"));
    call.run("CHECK", &with_result(&down, &result)).silent();
}

#[test]
fn duplicate_address_detection_when_asked_for() {
    let node = Node::new();
    let config = with(
        dual_stack(),
        json!({"enabledad": true, "runtimeConfig": {"ips": ["fd00:9::77"]}}),
    );
    let c1 = node.netns("c1");
    let call = node.plugin("bridge").netns(&c1);
    call.run("ADD", &config).json();
    assert!(!node.sh("ip -n c1 -6 addr").contains("tentative"));
    node.ping(&c1, "fd00:9::1");
    call.run("DEL", &config).silent();
    // Somebody on the bridge already has it.
    let squatter = node.netns("squatter");
    let other = with(
        dual_stack(),
        json!({"name": "net2", "runtimeConfig": {"ips": ["fd00:9::77"]}}),
    );
    node.plugin("bridge")
        .id("s")
        .netns(&squatter)
        .run("ADD", &other)
        .json();
    let (_, message, details) = call.run("ADD", &config).error();
    assert!(
        format!("{message} {details}").contains("fd00:9::77"),
        "{message}; {details}"
    );
    assert_eq!(leases("net1"), [] as [String; 0]);
    assert!(!node.succeeds("ip -n c1 link show dev eth0 2>/dev/null"));
}

#[test]
fn router_advertisements_are_not_accepted() {
    let node = Node::new();
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    let result = call.run("ADD", &dual_stack()).json();
    for link in ["br1", result["interfaces"][1]["name"].as_str().unwrap()] {
        let value = node.sh(&format!("cat /proc/sys/net/ipv6/conf/{link}/accept_ra"));
        assert_eq!(value.trim(), "0", "{link}");
    }
}

#[test]
fn hardware_addresses_never_change() {
    let node = Node::new();
    let macs = |node: &Node| node.ip("link show dev br1")[0]["address"].clone();
    let config = json!({"cniVersion": "1.0.0", "name": "net1", "bridge": "br1"});
    let first = node.plugin("bridge").id("k").netns(&node.netns("keep"));
    let result = first.run("ADD", &config).json();
    let mac = macs(&node);
    for round in 0..8 {
        let call = node
            .plugin("bridge")
            .id("x")
            .netns(&node.netns(&format!("x{round}")));
        call.run("ADD", &config).json();
        assert_eq!(macs(&node), mac);
        call.run("DEL", &config).silent();
        assert_eq!(macs(&node), mac);
    }
    // A host end whose address somebody rewrote is still ours.
    let host_end = result["interfaces"][1]["name"].as_str().unwrap();
    node.sh(&format!(
        "ip link set dev {host_end} address 02:00:00:00:00:99"
    ));
    first.run("CHECK", &with_result(&config, &result)).silent();
}

#[test]
fn check_tells_expected_and_found() {
    let node = Node::new();
    let c1 = node.netns("c1");
    let call = node.plugin("bridge").netns(&c1);
    let config = with(dual_stack(), json!({"mtu": 1400}));
    let breakages = [
        (
            "ip -n c1 addr del 10.9.0.2/24 dev eth0",
            vec!["10.9.0.2/24", "fd00:9::2/64"],
        ),
        ("ip -n c1 route del default", vec!["0.0.0.0/0"]),
        (
            "ip -n c1 link set dev eth0 address 02:00:00:00:00:42",
            vec!["02:00:00:00:00:42", "MAC"],
        ),
        (
            "ip -n c1 link set dev eth0 mtu 1300",
            vec!["1400", "1300", "MTU"],
        ),
        ("ip -n c1 link set dev eth0 down", vec!["up", "down"]),
        (
            "ip link set dev $(ls /sys/class/net | grep ^veth) nomaster 2>/dev/null || ip link set dev $(ip -br link show type veth | cut -d@ -f1) nomaster",
            vec!["port of", "br1"],
        ),
        (
            "ip addr del 10.9.0.1/24 dev br1",
            vec!["10.9.0.1/24", "gateway"],
        ),
        ("ip -n c1 link del eth0", vec!["eth0", "no such link"]),
        ("ip link del br1", vec!["br1", "no such link"]),
        (
            "rm /var/lib/cni/networks/net1/10.9.0.* /var/lib/cni/networks/net1/fd00*",
            vec!["c1"],
        ),
    ];
    for (command, words) in breakages {
        let result = call.run("ADD", &config).json();
        let checked = with_result(&config, &result);
        call.run("CHECK", &checked).silent();
        node.sh(command);
        let (_, message, details) = call.run("CHECK", &checked).error();
        for word in words {
            assert!(
                format!("{message}; {details}").contains(word),
                "{command}: {message}; {details}"
            );
        }
        call.run("DEL", &checked).silent();
    }
    call.run("ADD", &config).json();
    let (_, message, _) = call.run("CHECK", &config).error();
    assert_eq!(message, "Required prevResult missing");
}

#[test]
fn check_tolerates_what_others_may_do() {
    let node = Node::new();
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    let result = call.run("ADD", &dual_stack()).json();
    let checked = with_result(&dual_stack(), &result);
    // A capture on the bridge makes it promiscuous.
    let mut capture = std::process::Command::new("tcpdump")
        .args(["-n", "-i", "br1", "-w", "/dev/null"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("tcpdump is needed: see `make test`");
    while !node.sh("ip -d link show dev br1").contains("promiscuity 1") {}
    call.run("CHECK", &checked).silent();
    capture.kill().unwrap();
    capture.wait().unwrap();
    // The same namespace under another path.
    node.sh("ln -s /run/netns/c1 /run/other");
    call.clone()
        .netns("/run/other")
        .run("CHECK", &checked)
        .silent();
    // Another table.
    node.sh("ip -n c1 route del default && ip -n c1 route add default via 10.9.0.1 table 100");
    call.run("CHECK", &checked).silent();
}

#[test]
fn gc_frees_leases_of_the_dead_and_a_full_pool_is_no_reason_for_status_to_fail() {
    let node = Node::new();
    let config = with(
        dual_stack(),
        json!({"ipam": {"type": "host-local", "subnet": "10.9.0.0/24",
                        "rangeStart": "10.9.0.2", "rangeEnd": "10.9.0.4"}}),
    );
    let call = |id: &str| node.plugin("bridge").id(id);
    for id in ["a", "b", "c"] {
        call(id).netns(&node.netns(id)).run("ADD", &config).json();
    }
    // Kubernetes evicts the pods of a node whose network is not ready: these three.
    call("x").run("STATUS", &config).silent();
    let mut strict = config.clone();
    strict["ipam"]["statusFailsWhenExhausted"] = json!(true);
    let (code, message, _) = call("x").run("STATUS", &strict).error();
    assert_eq!(code, 50);
    assert!(message.contains("10.9.0.2-10.9.0.4"), "{message}");
    let (code, message, details) = call("d")
        .netns(&node.netns("d"))
        .run("ADD", &config)
        .error();
    assert_eq!(code, 999);
    assert!(
        message.starts_with("failed to allocate for range 0: no IP addresses available in range set: 10.9.0.2-10.9.0.4"),
        "{message}"
    );
    assert!(details.contains("/var/lib/cni/networks/net1"), "{details}");
    assert!(call("x").run("GC", &config).error().0 == 7);
    assert_eq!(leases("net1").len(), 3);
    let valid = json!({"cni.dev/valid-attachments": [{"containerID": "b", "ifname": "eth0"}]});
    call("x").run("GC", &with(config.clone(), valid)).silent();
    assert_eq!(leases("net1"), ["10.9.0.3"]);
    call("x").run("STATUS", &strict).silent();
    node.ping("/run/netns/b", "10.9.0.1");
}

#[test]
fn ipv6_switched_off_does_not_disturb_ipv4() {
    let node = Node::new();
    for key in ["all", "default"] {
        node.sh(&format!(
            "echo 1 > /proc/sys/net/ipv6/conf/{key}/disable_ipv6"
        ));
    }
    let v4 = with(
        dual_stack(),
        json!({"ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}}),
    );
    let c1 = node.netns("c1");
    let call = node.plugin("bridge").netns(&c1);
    call.run("ADD", &v4).json();
    node.ping(&c1, "10.9.0.1");
    call.run("DEL", &v4).silent();
    let (_, message, details) = call.run("ADD", &dual_stack()).error();
    assert!(
        format!("{message}; {details}").contains("sysctl -w net/ipv6/conf/br1/disable_ipv6=0"),
        "{message}; {details}"
    );
    assert_clean(&node, "br1");
}

#[test]
fn an_ipam_plugin_of_somebody_else_is_executed_as_the_runtime_would() {
    let node = Node::new();
    let log = node.dir.path().join("log");
    let script = node.bin.join("theirs");
    // Records what it sees: command, stdin, and whether the container still has the
    // link and the address while the address is being released.
    fs::write(
        &script,
        format!(
            "#!/bin/sh\n\
             stdin=$(cat)\n\
             echo \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_ARGS $stdin\" >> {log}\n\
             echo \"link $(ip -n c1 link show dev eth0 2>/dev/null | wc -l)\" \\\n\
                  \"address $(ip -n c1 addr show dev eth0 2>/dev/null | grep -c 10.9.0.50)\" >> {log}\n\
             echo note >&2\n\
             case \"$CNI_COMMAND $stdin\" in\n\
             ADD*broken*) echo '{{\"code\": 123, \"msg\": \"no way\", \"details\": \"at all\"}}'; exit 1;;\n\
             ADD*) echo '{{\"cniVersion\": \"1.0.0\", \"ips\": [{{\"address\": \"10.9.0.50/24\", \"gateway\": \"10.9.0.1\"}}]}}';;\n\
             esac\n",
            log = log.display()
        ),
    )
    .unwrap();
    node.sh(&format!("chmod +x {}", script.display()));
    let config = with(
        dual_stack(),
        json!({"ipam": {"type": "theirs"}, "cniVersion": "1.0.0"}),
    );
    let call = node
        .plugin("bridge")
        .netns(&node.netns("c1"))
        .env("CNI_ARGS", "IgnoreUnknown=1;X=y");
    let output = call.run("ADD", &config);
    assert_eq!(output.json()["ips"][0]["address"], "10.9.0.50/24");
    assert!(output.stderr.contains("note"));
    call.run("DEL", &config).silent();
    let seen = fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(
        lines[0],
        format!("ADD c1 eth0 IgnoreUnknown=1;X=y {config}")
    );
    assert_eq!(lines[1], "link 0 address 0");
    assert!(lines[2].starts_with("DEL c1 eth0"));
    assert_eq!(
        lines[3], "link 2 address 0",
        "the link is there, its address is not"
    );

    // Its error is ours, and it is asked to clean up after its own failure.
    fs::remove_file(&log).unwrap();
    let broken = with(config, json!({"name": "broken"}));
    let (code, message, details) = call.run("ADD", &broken).error();
    assert_eq!(
        (code, message.as_str(), details.as_str()),
        (123, "no way", "at all")
    );
    let seen = fs::read_to_string(&log).unwrap();
    assert_eq!(
        seen.lines().filter(|line| line.starts_with("DEL")).count(),
        1
    );
    assert_clean(&node, "br1");
}

#[test]
fn a_bridge_that_somebody_deletes_while_ipam_runs_is_made_again() {
    let node = Node::new();
    let script = node.bin.join("theirs");
    fs::write(
        &script,
        "#!/bin/sh\ncat >/dev/null\n[ \"$CNI_COMMAND\" != ADD ] || { ip link del br1 && echo \
         '{\"cniVersion\": \"1.0.0\", \"ips\": [{\"address\": \"10.9.0.50/24\", \
         \"gateway\": \"10.9.0.1\"}]}'; }\n",
    )
    .unwrap();
    node.sh(&format!("chmod +x {}", script.display()));
    node.sh("ip link add br1 type bridge && ip link set br1 up");
    let config = with(
        dual_stack(),
        json!({"ipam": {"type": "theirs"}, "cniVersion": "1.0.0"}),
    );
    let c1 = node.netns("c1");
    let call = node.plugin("bridge").netns(&c1);
    call.run("ADD", &config).json();
    node.ping(&c1, "10.9.0.1");
    call.run("DEL", &config).silent();
    assert_clean(&node, "br1");
}

#[test]
fn what_one_implementation_added_the_other_removes() {
    let node = Node::new();
    assert!(
        Path::new(REFERENCE).join("bridge").exists(),
        "the reference plugins are needed: see `make test`"
    );
    let config = with(dual_stack(), json!({"cniVersion": "1.0.0"}));
    let theirs = |call: Call| {
        call.executable(format!("{REFERENCE}/bridge"))
            .env("CNI_PATH", REFERENCE)
    };
    let c1 = node.netns("c1");
    let call = node.plugin("bridge").netns(&c1);
    for (adds, other) in [
        (call.clone(), theirs(call.clone())),
        (theirs(call.clone()), call),
    ] {
        let result = adds.run("ADD", &config).json();
        node.ping(&c1, "10.9.0.1");
        other.run("CHECK", &with_result(&config, &result)).silent();
        other.run("DEL", &with_result(&config, &result)).silent();
        assert_clean(&node, "br1");
    }
}

#[test]
fn no_process_is_started_for_ipam() {
    let node = Node::new();
    node.netns("c1");
    let config = dual_stack().to_string();
    let trace = node.dir.path().join("trace");
    let command = format!(
        "printf '%s' '{config}' | CNI_COMMAND=ADD CNI_CONTAINERID=c1 CNI_NETNS=/run/netns/c1 CNI_IFNAME=eth0 \
         CNI_PATH={} strace -f -e trace=execve,fork,vfork,clock_nanosleep,nanosleep -o {} {}/bridge",
        node.bin.display(),
        trace.display(),
        node.bin.display()
    );
    node.sh(&command);
    let calls = fs::read_to_string(trace).unwrap();
    assert_eq!(calls.matches("execve(").count(), 1, "{calls}");
    assert_eq!(calls.matches("fork(").count(), 0, "{calls}");
    assert_eq!(calls.matches("nanosleep").count(), 0, "{calls}");
}

#[test]
fn about_text_and_version() {
    let node = Node::new();
    for (name, title) in [
        ("bridge", "bridge"),
        ("ipam", "ipam"),
        ("host-local", "host-local"),
    ] {
        let output = node.plugin(name).run_text("");
        assert!(output.ok && output.stdout.is_empty());
        let lines: Vec<&str> = output.stderr.lines().collect();
        assert_eq!(lines[0], format!("CNI {title} plugin v1.9.1"));
        assert_eq!(
            lines[1],
            "CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"
        );
        assert_eq!(lines[2], format!("cnibox {}", env!("CARGO_PKG_VERSION")));
        let version = node.plugin(name).env("CNI_COMMAND", "VERSION").run_text("");
        assert_eq!(version.json()["supportedVersions"], json!(VERSIONS));
        assert!(version.stdout.ends_with("}\n"));
    }
}

#[test]
fn one_document_on_stdout_whatever_comes_in() {
    let node = Node::new();
    let netns = node.netns("c1");
    let call = node
        .plugin("bridge")
        .netns(&netns)
        .env("CNI_COMMAND", "ADD");
    let huge = format!("{{\"name\":\"n\",\"x\":\"{}\"", "y".repeat(10_000_000));
    for stdin in [
        "",
        "{",
        "[]",
        "{}",
        "{\"name\":\"a/b\"}",
        "{\"name\":\"n\",\"cniVersion\":7}",
        &huge,
    ] {
        let (code, _, _) = call.run_text(stdin).error();
        assert!([6, 7].contains(&code), "{code}");
    }
}

#[test]
fn one_container_added_twice_at_once_keeps_its_address() {
    let node = Node::new();
    for round in 0..10 {
        let id = format!("c{round}");
        let call = node.plugin("bridge").id(&id).netns(&node.netns(&id));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let call = call.clone();
                std::thread::spawn(move || call.run("ADD", &dual_stack()))
            })
            .collect();
        let outputs: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert!(outputs.iter().filter(|o| o.ok).count() <= 1, "{outputs:?}");
        if let Some(won) = outputs.iter().find(|output| output.ok) {
            let address = won.json()["ips"][0]["address"].as_str().unwrap().to_owned();
            let lease = address.split('/').next().unwrap();
            assert!(
                leases("net1").iter().any(|name| name == lease),
                "{address} is not recorded"
            );
            node.ping(&format!("/run/netns/{id}"), "10.9.0.1");
        }
        call.run("DEL", &dual_stack()).silent();
    }
    assert_clean(&node, "br1");
}

#[test]
fn one_container_in_another_namespace_is_refused_and_disturbs_nothing() {
    let node = Node::new();
    let (a, b) = (node.netns("a"), node.netns("b"));
    let layer2 = json!({"cniVersion": "1.0.0", "name": "net1", "bridge": "br1"});
    for config in [dual_stack(), layer2] {
        node.plugin("bridge").netns(&a).run("ADD", &config).json();
        let held = leases("net1");
        let (_, message, _) = node.plugin("bridge").netns(&b).run("ADD", &config).error();
        assert!(message.contains("already attached"), "{message}");
        assert_eq!(leases("net1"), held);
        assert!(node.sh("ip -n a link show dev eth0").contains("LOWER_UP"));
        node.plugin("bridge").netns(&a).run("DEL", &config).silent();
        assert_clean(&node, "br1");
    }
}

#[test]
fn an_add_that_was_killed_is_cleaned_up_without_its_namespace() {
    let node = Node::new();
    let netns = node.netns("c1");
    let config = dual_stack().to_string();
    let call = node.plugin("bridge");
    // Killed after each of its requests to the kernel in turn.
    let mut survived = false;
    for n in 1..60 {
        let command = format!(
            "printf '%s' '{config}' | CNI_COMMAND=ADD CNI_CONTAINERID=c1 CNI_NETNS={netns} CNI_IFNAME=eth0 \
             CNI_PATH={bin} strace -f -qq -o /dev/null --inject=sendto:signal=KILL:when={n} {bin}/bridge",
            bin = node.bin.display()
        );
        survived = node.succeeds(&command);
        call.run("DEL", &dual_stack()).silent();
        assert_clean(&node, "br1");
        if survived {
            break;
        }
    }
    assert!(survived, "ADD makes more than 60 requests?");
    call.netns(&netns).run("ADD", &dual_stack()).json();
}

#[test]
fn arguments_of_the_runtime() {
    let node = Node::new();
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    let mac = |args: &str| {
        let output = call.clone().env("CNI_ARGS", args).run("ADD", &dual_stack());
        let mac = output.json()["interfaces"][2]["mac"].clone();
        call.run("DEL", &dual_stack()).silent();
        mac
    };
    assert_eq!(
        mac("IgnoreUnknown=1;MAC=02:00:00:00:00:05;X=y"),
        "02:00:00:00:00:05"
    );
    assert_eq!(
        mac("K8S_POD_NAME=p;MAC=02-00-00-00-00-06;IgnoreUnknown=true;"),
        "02:00:00:00:00:06"
    );
    let (code, message, _) = call
        .clone()
        .env("CNI_ARGS", "MAC=02:00:00:00:00:05;X=y")
        .run("ADD", &dual_stack())
        .error();
    assert_eq!(
        (code, message.as_str()),
        (4, r#"ARGS: unknown args ["X=y"]"#)
    );
    assert_clean(&node, "br1");
}

#[test]
fn names_the_kernel_would_expand_are_refused() {
    let node = Node::new();
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    let (code, _, _) = call
        .clone()
        .ifname("eth%d")
        .run("ADD", &dual_stack())
        .error();
    assert_eq!(code, 4);
    let config = with(dual_stack(), json!({"bridge": "br%d"}));
    assert_eq!(call.run("ADD", &config).error().0, 7);
    assert_clean(&node, "");
}

#[test]
fn the_hosts_own_namespace_where_the_runtime_insists() {
    let node = Node::new();
    let own = node.own_netns();
    let call = node
        .plugin("bridge")
        .netns(&own)
        .ifname("inner0")
        .env("CNI_NETNS_OVERRIDE", "1");
    // No default route: the gateway is an address of the same namespace.
    let config = with(
        dual_stack(),
        json!({"isDefaultGateway": false, "isGateway": true}),
    );
    call.run("ADD", &config).json();
    assert_eq!(
        addresses(&node, "addr show dev inner0"),
        ["10.9.0.2/24", "fd00:9::2/64"]
    );
    call.run("DEL", &dual_stack()).silent();
    assert_clean(&node, "br1");
}

#[test]
fn dns_of_the_configuration_replaces_that_of_ipam() {
    let node = Node::new();
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    let resolv = node.dir.path().join("resolv.conf");
    fs::write(&resolv, "nameserver 192.0.2.53\nsearch example.org\n").unwrap();
    let ipam = json!({"type": "host-local", "subnet": "10.9.0.0/24", "resolvConf": resolv});
    let config = with(dual_stack(), json!({"ipam": ipam}));
    let dns = |config: &Value| {
        let result = call.run("ADD", config).json();
        call.run("DEL", config).silent();
        result["dns"].clone()
    };
    assert_eq!(
        dns(&config),
        json!({"nameservers": ["192.0.2.53"], "search": ["example.org"]})
    );
    let own = with(config, json!({"dns": {"domain": "example.net"}}));
    assert_eq!(dns(&own), json!({"domain": "example.net"}));
}

#[test]
fn status_tells_why_no_container_can_be_added() {
    let node = Node::new();
    let call = node.plugin("bridge");
    call.run("STATUS", &dual_stack()).silent();
    for (change, word) in [
        (json!({"bridge": "lo"}), "lo"),
        (json!({"ipam": {"type": "nobody"}}), "nobody"),
    ] {
        let (code, message, _) = call.run("STATUS", &with(dual_stack(), change)).error();
        assert!(code == 50 && message.contains(word), "{code} {message}");
    }
}

#[test]
fn two_networks_on_one_new_bridge_at_once() {
    let node = Node::new();
    let configs = ["10.1.0.0/24", "10.2.0.0/24"].map(|subnet| {
        json!({
            "cniVersion": "1.1.0", "name": format!("net{}", &subnet[3..4]), "bridge": "br1",
            "ipam": {"type": "host-local", "subnet": subnet},
        })
    });
    let threads: Vec<_> = (0..10)
        .map(|n| {
            let call = node
                .plugin("bridge")
                .id(&format!("c{n}"))
                .netns(&node.netns(&format!("c{n}")));
            let config = configs[n % 2].clone();
            std::thread::spawn(move || call.run("ADD", &config))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap().json();
    }
    assert_eq!(node.links().iter().filter(|name| *name == "br1").count(), 1);
    assert_eq!(leases("net1").len() + leases("net2").len(), 10);
}

#[test]
fn a_full_disk_leaves_no_interface() {
    let node = Node::new();
    node.sh("mkdir -p /var/lib/cni && mount -t tmpfs -o size=4k,nr_inodes=3 tmpfs /var/lib/cni");
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    let (_, message, details) = call.run("ADD", &dual_stack()).error();
    assert!(
        format!("{message}; {details}").contains("/var/lib/cni"),
        "{message}; {details}"
    );
    assert!(!node.succeeds("ip -n c1 link show dev eth0 2>/dev/null"));
    assert_clean(&node, "br1");
    call.run("DEL", &dual_stack()).silent();
}

#[test]
fn ipam_that_delegates_to_itself_is_refused() {
    let node = Node::new();
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    let config = with(dual_stack(), json!({"ipam": {"type": "bridge"}}));
    for command in ["ADD", "DEL", "STATUS"] {
        let (code, message, _) = call.run(command, &config).error();
        assert!(
            code == 7 && message.contains("itself"),
            "{command}: {code} {message}"
        );
    }
    assert_clean(&node, "br1");
}

#[test]
fn del_takes_whatever_stands_where_a_namespace_was() {
    let node = Node::new();
    node.sh("mkfifo /run/fifo && ln -s /run/loop /run/loop && touch /run/file");
    for path in [
        "/run/fifo",
        "/run/loop",
        "/run/file",
        "/run",
        "/proc/self/status",
        "/proc/self/ns/mnt",
        "/run/none/x",
    ] {
        let call = node.plugin("bridge").netns(path);
        let output = call.run("DEL", &dual_stack());
        assert!(output.ok, "{path}: {output:?}");
        let (code, message, _) = call.run("ADD", &dual_stack()).error();
        assert!(
            code == 4 && message.contains(path),
            "{path}: {code} {message}"
        );
    }
    assert_clean(&node, "br1");
}

#[test]
fn check_leaves_other_plugins_results_alone() {
    let node = Node::new();
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    let mut result = call.run("ADD", &dual_stack()).json();
    // A later plugin of the chain has added an interface with an address and a route.
    node.sh("ip -n c1 link add extra0 type veth peer name extra1 && ip -n c1 addr add 10.99.0.2/24 dev extra0 && \
             ip -n c1 link set extra0 up && ip -n c1 link set extra1 up && ip -n c1 route add 10.98.0.0/16 via 10.99.0.1");
    let list = |result: &mut Value, key: &str, value: Value| {
        result[key].as_array_mut().unwrap().push(value);
    };
    list(
        &mut result,
        "interfaces",
        json!({"name": "extra0", "sandbox": "/run/netns/c1"}),
    );
    list(
        &mut result,
        "ips",
        json!({"address": "10.99.0.2/24", "gateway": "10.99.0.1", "interface": 3}),
    );
    list(&mut result, "routes", json!({"dst": "10.98.0.0/16"}));
    call.run("CHECK", &with_result(&dual_stack(), &result))
        .silent();
    // Another container lowers what the bridge carries.
    let small = with(dual_stack(), json!({"mtu": 1400}));
    node.plugin("bridge")
        .id("c2")
        .netns(&node.netns("c2"))
        .run("ADD", &small)
        .json();
    let checked = call.run("CHECK", &with_result(&dual_stack(), &result));
    checked.silent();
    assert!(checked.stderr.contains("1400"), "{checked:?}");
}

#[test]
fn a_delegate_that_mixes_result_forms_does_not_confuse_ours() {
    let node = Node::new();
    let script = node.bin.join("mixed");
    fs::write(
        &script,
        "#!/bin/sh\ncat >/dev/null\n[ \"$CNI_COMMAND\" != ADD ] || echo '{\"cniVersion\": \"0.2.0\", \
         \"ip4\": {\"ip\": \"10.9.0.50/24\"}, \"ips\": [], \"routes\": [], \"vendor\": 1}'\n",
    )
    .unwrap();
    node.sh(&format!("chmod +x {}", script.display()));
    for version in ["0.2.0", "0.4.0", "1.0.0"] {
        let call = node
            .plugin("bridge")
            .id(version)
            .netns(&node.netns(&format!(
                "v{}",
                version.len() + version.bytes().map(usize::from).sum::<usize>()
            )));
        let config = with(
            dual_stack(),
            json!({"cniVersion": version, "ipam": {"type": "mixed"}}),
        );
        let output = call.run("ADD", &config);
        let result = output.json();
        assert_eq!(result["vendor"], 1);
        assert_eq!(
            output.stdout.matches("\"ips\"").count(),
            usize::from(version != "0.2.0"),
            "{output:?}"
        );
        if version != "0.2.0" {
            assert_eq!(result["ips"][0]["gateway"], "10.9.0.1");
        }
        call.run("DEL", &config).silent();
    }
}

#[test]
fn an_id_too_long_for_the_spoof_check_is_refused_before_anything_is_made() {
    let node = Node::new();
    let netns = node.netns("c1");
    let config = with(dual_stack(), json!({"macspoofchk": true}));
    for length in [236, 240, 300] {
        let call = || node.plugin("bridge").id(&"c".repeat(length)).netns(&netns);
        let (code, message, details) = call().run("ADD", &config).error();
        assert_eq!(code, 7, "{message}");
        assert!(message.contains("macspoofchk"), "{message}");
        assert!(details.contains("room for 233"), "{details}");
        assert!(!node.links().contains(&"br1".to_owned()));
        assert_eq!(leases("net1"), [""; 0]);
        call().run("DEL", &config).silent();
    }
    let call = || node.plugin("bridge").id(&"c".repeat(233)).netns(&netns);
    call().run("ADD", &config).json();
    call().run("DEL", &config).silent();
}

#[test]
fn status_knows_what_the_spoof_check_needs() {
    let node = Node::new();
    // Who may not change the ruleset may not ask about it either.
    let powerless = node.dir.path().join("powerless");
    let bridge = node.bin.join("bridge");
    let script = format!(
        "#!/bin/sh\nexec setpriv --bounding-set -net_admin --inh-caps -net_admin {}\n",
        bridge.display()
    );
    fs::write(&powerless, script).unwrap();
    node.sh(&format!("chmod +x {}", powerless.display()));
    let config = with(dual_stack(), json!({"macspoofchk": true}));
    let call = node.plugin("bridge");
    call.run("STATUS", &config).silent();
    let call = call.executable(&powerless);
    for (config, words) in [
        (config, ["macspoofchk", "nf_tables"]),
        (dual_stack(), ["type bridge", "CAP_NET_ADMIN"]),
    ] {
        let (code, message, _) = call.run("STATUS", &config).error();
        let is_told = words.iter().all(|word| message.contains(word));
        assert!(code == 50 && is_told, "{code} {message}");
    }
}

#[test]
fn check_misses_the_hardware_address_that_the_spoof_check_is_about() {
    let node = Node::new();
    let config = with(dual_stack(), json!({"macspoofchk": true}));
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    let mut result = call.run("ADD", &config).json();
    call.run("CHECK", &with_result(&config, &result)).silent();
    result["interfaces"][2]["mac"] = "".into();
    let (_, message, _) = call.run("CHECK", &with_result(&config, &result)).error();
    assert!(message.contains("macspoofchk"), "{message}");
}

/// Two interfaces of one container on one bridge answer for each other: who heard the one that
/// goes must not go on sending there.
#[test]
fn nobody_keeps_the_hardware_address_of_an_interface_that_has_gone() {
    let node = Node::new();
    let (c1, c2) = (node.netns("c1"), node.netns("c2"));
    let config = dual_stack();
    let first = node.plugin("bridge").netns(&c1);
    let second = first.clone().ifname("net1");
    let addresses = |result: &Value| -> Vec<String> {
        let ips = result["ips"].as_array().unwrap().iter();
        ips.map(|ip| {
            let net = ip["address"].as_str().unwrap();
            net.split('/').next().unwrap().to_owned()
        })
        .collect()
    };
    let stays = addresses(&first.run("ADD", &config).json());
    let added = second.run("ADD", &config).json();
    let goes = addresses(&added);
    let neighbour = node.plugin("bridge").id("c2").netns(&c2);
    neighbour.run("ADD", &config).json();
    let mac = added["interfaces"][2]["mac"].as_str().unwrap().to_owned();
    // Both the host and a neighbour heard the second interface, for all of the addresses.
    for (netns, link) in [("", "br1"), ("ip netns exec c2 ", "eth0")] {
        for ip in stays.iter().chain(&goes) {
            node.sh(&format!(
                "{netns}ip neigh replace {ip} lladdr {mac} nud reachable dev {link}"
            ));
        }
    }
    let permanent = "10.9.0.99";
    node.sh(&format!(
        "ip neigh add {permanent} lladdr {mac} nud permanent dev br1"
    ));
    second.run("DEL", &with_result(&config, &added)).silent();
    let left = node.sh(&format!("ip neigh show | grep -i {mac}"));
    assert_eq!(left.lines().count(), 1, "{left}");
    assert!(left.contains(permanent), "{left}");
    // At once, not after the entries have timed out.
    for ip in &stays {
        node.sh(&format!("ping -n -c 1 -W 1 {ip}"));
        node.sh(&format!("ip netns exec c2 ping -n -c 1 -W 1 {ip}"));
    }
    // And whoever gets the addresses next is heard, be it the same container.
    let again = first.clone().ifname("net2");
    let again = again
        .run(
            "ADD",
            &with(
                config.clone(),
                json!({"ipam": {"type": "static", "addresses": [
        {"address": format!("{}/24", goes[0])}, {"address": format!("{}/64", goes[1])}]}}),
            ),
        )
        .json();
    let now = again["interfaces"][2]["mac"].as_str().unwrap();
    for ip in &goes {
        let known = node.sh(&format!("ip netns exec c2 ip neigh show {ip}"));
        assert!(known.contains(now), "{ip} is at {now}: {known}");
        node.sh(&format!("ping -n -c 1 -W 1 {ip}"));
        node.sh(&format!("ip netns exec c2 ping -n -c 1 -W 1 {ip}"));
    }
}
