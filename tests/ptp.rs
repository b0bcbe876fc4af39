//! The ptp plugin on the real kernel: the built binary, called as a runtime calls it,
//! judged with `ip`, `ping`, the packet filters' own tools and what is left behind.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test that cannot do its work says so by panicking"
)]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use common::{Call, Node, REFERENCE, VERSIONS, with, with_result};
use serde_json::{Value, json};

/// A dual-stack network with default routes.
fn dual_stack() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "net1",
        "type": "ptp",
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    })
}

/// Leases of `net1`.
fn leases(node: &Node) -> String {
    node.sh("cd /var/lib/cni/networks/net1 2>/dev/null || exit 0; ls | grep -v -e last_reserved_ip -e lock || true")
}

/// Rules that name a container of ours, in either backend.
fn rules(node: &Node) -> String {
    node.sh("nft list ruleset; iptables-save 2>/dev/null; ip6tables-save 2>/dev/null")
        .lines()
        .filter(|line| line.contains("10.9.0.") || line.contains("fd00:9::"))
        .collect()
}

/// Asserts that nothing of any attachment is left on the node.
#[track_caller]
fn assert_clean(node: &Node) {
    assert_eq!(node.links(), [] as [String; 0]);
    assert_eq!(leases(node), "");
    assert_eq!(rules(node), "");
    let routes = node.sh("ip route show; ip -6 route show");
    assert!(
        !routes.contains("10.9.0.") && !routes.contains("fd00:9:"),
        "{routes}"
    );
}

/// Another machine, `far`, that knows the host's addresses only. Both ends must be up: the
/// kernel says so a moment later, and until then IPv6 solicits in vain, again after a second.
fn far(node: &Node) {
    node.netns("far");
    node.sh(
        "ip link add up0 type veth peer name eth0 netns far
         ip addr add 192.0.2.1/24 dev up0; ip addr add fd00:2::1/64 dev up0 nodad; ip link set up0 up
         ip -n far addr add 192.0.2.2/24 dev eth0; ip -n far addr add fd00:2::2/64 dev eth0 nodad
         ip -n far link set eth0 up
         for end in 'link show up0' '-n far link show eth0'; do
             until ip $end | grep -q 'state UP'; do sleep 0.01; done
         done",
    );
}

#[test]
fn two_containers_talk_over_both_families() {
    let node = Node::new();
    let config = dual_stack();
    let (red, blue) = (node.netns("red"), node.netns("blue"));
    let call = |id: &str, netns: &str| node.plugin("ptp").id(id).netns(netns);
    let result = call("red", &red).run("ADD", &config).json();
    call("blue", &blue).run("ADD", &config).json();
    // At once: nothing is tentative, nothing has to be waited for.
    for address in ["10.9.0.1", "10.9.0.3", "fd00:9::1", "fd00:9::3"] {
        node.ping(&red, address);
    }
    node.sh("ping -n -c 1 -W 1 10.9.0.2 && ping -n -c 1 -W 1 fd00:9::2");

    let routes = node.sh("ip -n red route show; ip -n red -6 route show");
    for expected in [
        "10.9.0.1 dev eth0 scope link src 10.9.0.2",
        "10.9.0.0/24 via 10.9.0.1 dev eth0 src 10.9.0.2",
        "default via 10.9.0.1 dev eth0",
        "fd00:9::1 dev eth0 src fd00:9::2",
        "fd00:9::/64 via fd00:9::1 dev eth0 src fd00:9::2",
        "default via fd00:9::1 dev eth0",
    ] {
        assert!(routes.contains(expected), "{expected}\n{routes}");
    }
    assert!(!routes.contains("10.9.0.0/24 dev") && !routes.contains("fd00:9::/64 dev"));
    let host_end = result["interfaces"][0]["name"].as_str().unwrap();
    let routes = node.sh("ip route show; ip -6 route show");
    for expected in [
        format!("10.9.0.2 dev {host_end} scope host"),
        format!("fd00:9::2 dev {host_end} "),
    ] {
        assert!(routes.contains(&expected), "{expected}\n{routes}");
    }
    let end = node.ip(&format!("addr show dev {host_end}"));
    assert_eq!(
        end[0]["ifalias"],
        "cni network net1 interface eth0 container red"
    );
    let text = end.to_string();
    assert!(
        text.contains("\"10.9.0.1\"") && text.contains("\"fd00:9::1\""),
        "{text}"
    );
    assert!(
        !node
            .sh("ip addr show; ip -n red addr show")
            .contains("tentative")
    );

    let added = with_result(&config, &result);
    call("red", &red).run("CHECK", &added).silent();
    call("red", &red).run("DEL", &added).silent();
    node.ping(&blue, "fd00:9::1");
    call("red", &red).run("DEL", &added).silent();
    call("blue", &blue).run("DEL", &config).silent();
    assert_clean(&node);
}

#[test]
fn every_version_gets_its_own_result_form() {
    let node = Node::new();
    let c1 = node.netns("c1");
    let call = node.plugin("ptp").netns(&c1);
    for version in VERSIONS {
        let config = with(
            dual_stack(),
            json!({"cniVersion": version, "mtu": 1400, "dns": {"domain": "example.org"}}),
        );
        let result = call.run("ADD", &config).json();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["dns"], json!({"domain": "example.org"}));
        if version < "0.3.0" {
            assert!(result["ip4"]["ip"].as_str().unwrap().ends_with("/24"));
            assert!(result["ip6"]["gateway"] == "fd00:9::1");
            assert_eq!(result["ip4"]["routes"], json!([{"dst": "0.0.0.0/0"}]));
        } else {
            let [host_end, container_end] = result["interfaces"].as_array().unwrap().as_slice()
            else {
                panic!("{result}");
            };
            let name = host_end["name"].as_str().unwrap();
            assert_eq!(node.links(), [name]);
            assert_eq!(
                host_end["mac"],
                node.ip(&format!("link show dev {name}"))[0]["address"]
            );
            assert_eq!(container_end["name"], "eth0");
            assert_eq!(container_end["sandbox"], "/run/netns/c1");
            let ips = result["ips"].as_array().unwrap();
            assert!(ips.iter().all(|ip| ip["interface"] == 1), "{result}");
            assert_eq!(result["routes"].as_array().unwrap().len(), 2);
        }
        for netns in ["", "-n c1"] {
            let links = node.ip(&format!("{netns} link show type veth"));
            assert_eq!(links[0]["mtu"], 1400, "{links}");
        }
        if version >= "0.4.0" {
            call.run("CHECK", &with_result(&config, &result)).silent();
        }
        call.run("DEL", &with_result(&config, &result)).silent();
        assert_clean(&node);
    }
    let versions = call.env("CNI_COMMAND", "VERSION").run_text("").json();
    assert_eq!(versions["supportedVersions"], json!(VERSIONS));
}

/// The world answers, though it knows no route back: the host speaks for the container.
fn the_world_answers(backend: &str) {
    let node = Node::new();
    far(&node);
    let c1 = node.netns("c1");
    let call = node.plugin("ptp").netns(&c1);
    let plain = call.run("ADD", &dual_stack()).json();
    let ping = "ip netns exec c1 ping -n -c 1 -W 1";
    assert!(!node.succeeds(&format!("{ping} 192.0.2.2")));
    call.run("DEL", &with_result(&dual_stack(), &plain))
        .silent();

    let config = with(
        dual_stack(),
        json!({"ipMasq": true, "ipMasqBackend": backend}),
    );
    let result = call.run("ADD", &config).json();
    node.ping(&c1, "192.0.2.2");
    node.ping(&c1, "fd00:2::2");
    let added = with_result(&config, &result);
    call.run("CHECK", &added).silent();
    call.run("STATUS", &config).silent();
    assert_ne!(rules(&node), "");
    // Without its namespace, and without the result of ADD.
    node.sh("ip netns del c1");
    call.run("DEL", &config).silent();
    assert_eq!(node.links(), ["up0"]);
    assert_eq!(
        (leases(&node), rules(&node)),
        (String::new(), String::new())
    );

    let c1 = node.netns("c1");
    let result = call.run("ADD", &config).json();
    node.ping(&c1, "192.0.2.2");
    let checked = with_result(&config, &result);
    call.run("CHECK", &checked).silent();
    node.sh("nft flush ruleset; iptables -t nat -F 2>/dev/null; true");
    assert!(!call.run("CHECK", &checked).ok);
    call.run("DEL", &checked).silent();
    assert_eq!(node.links(), ["up0"]);
}

#[test]
fn the_world_answers_with_nftables() {
    the_world_answers("nftables");
}

#[test]
fn the_world_answers_with_iptables() {
    the_world_answers("iptables");
}

/// `cnibox restore` needs nothing but what the runtime's side wrote down.
fn flushed_rules_are_restored(backend: &'static str) {
    for version in ["0.2.0", "1.1.0"] {
        // On a node, and a thread, of its own.
        let run = move || restored_with(backend, version);
        std::thread::spawn(run).join().unwrap();
    }
}

fn restored_with(backend: &str, version: &str) {
    let node = Node::new();
    far(&node);
    let c1 = node.netns("c1");
    let conf = node.dir.path().join("net.d");
    fs::create_dir(&conf).unwrap();
    let plugin = with(
        dual_stack(),
        json!({"ipMasq": true, "ipMasqBackend": backend}),
    );
    let list = json!({"cniVersion": version, "name": "net1", "plugins": [plugin]});
    fs::write(conf.join("net1.conflist"), list.to_string()).unwrap();
    let restore = |args: &[&str]| {
        let mut command = Command::new(common::binary());
        common::run(command.arg("restore").args(args), "")
    };
    let reaches = |address: &str| {
        node.succeeds(&format!(
            "ip netns exec c1 ping -n -c 1 -W 1 {address} >/dev/null"
        ))
    };
    node.cnitool(&conf, &["add", "net1", &c1]).json();
    assert!(
        reaches("192.0.2.2") && reaches("fd00:2::2"),
        "{backend} {version}"
    );

    node.sh("nft flush ruleset; iptables -t nat -F; ip6tables -t nat -F");
    let looked = restore(&["--dry-run"]);
    assert!(
        looked.ok && looked.stdout.contains("10.9.0.2"),
        "{looked:?}"
    );
    assert_eq!(rules(&node), "", "{backend} {version}");
    let restored = restore(&[]);
    assert!(
        restored.ok && restored.stdout.contains(": restored ("),
        "{restored:?}"
    );
    let made = rules(&node);
    assert!(
        made.contains("10.9.0.2") && made.contains("fd00:9::2"),
        "{made}"
    );
    assert!(
        reaches("192.0.2.2") && reaches("fd00:2::2"),
        "{backend} {version}"
    );
    if version == "1.1.0" {
        node.cnitool(&conf, &["check", "net1", &c1]).silent();
    }
    node.cnitool(&conf, &["del", "net1", &c1]).silent();
    assert_eq!(node.links(), ["up0"]);
    assert_eq!(rules(&node), "", "{backend} {version}");
}

#[test]
fn flushed_rules_are_restored_with_nftables() {
    flushed_rules_are_restored("nftables");
}

#[test]
fn flushed_rules_are_restored_with_iptables() {
    flushed_rules_are_restored("iptables");
}

/// CVE-2020-10749: of IPv4 only, as the network in the report was, and of both families.
#[test]
fn neither_end_hears_router_advertisements() {
    let v4 = with(
        dual_stack(),
        json!({"ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}}),
    );
    for config in [v4, dual_stack()] {
        let node = Node::new();
        let call = node.plugin("ptp").netns(&node.netns("c1"));
        let result = call.run("ADD", &config).json();
        let host_end = result["interfaces"][0]["name"].as_str().unwrap();
        for (prefix, link) in [("", host_end), ("ip netns exec c1", "eth0")] {
            let key = format!("/proc/sys/net/ipv6/conf/{link}/accept_ra");
            assert_eq!(node.sh(&format!("{prefix} cat {key}")), "0\n", "{link}");
        }
    }
}

#[test]
fn del_succeeds_whatever_is_gone() {
    let node = Node::new();
    let config = with(
        dual_stack(),
        json!({"ipMasq": true, "ipMasqBackend": "nftables"}),
    );
    let call = node.plugin("ptp").netns("/run/netns/c1");
    for harm in [
        "ip -n c1 link del eth0",
        "ip netns del c1",
        "rm -r /var/lib/cni/networks",
        "nft flush ruleset",
        "umount /run/netns/c1",
    ] {
        node.netns("c1");
        let result = call.run("ADD", &config).json();
        node.sh(harm);
        call.run("DEL", &with_result(&config, &result)).silent();
        call.run("DEL", &config).silent();
        assert_clean(&node);
        node.sh("ip netns del c1 2>/dev/null; true");
    }
    call.clone().netns("").run("DEL", &config).silent();
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    let node = Node::new();
    let c1 = node.netns("c1");
    let call = node.plugin("ptp").netns(&c1);
    let without_gateway = json!({"type": "static", "addresses": [{"address": "10.9.0.5/24"}]});
    let bad_route = with(
        dual_stack()["ipam"].clone(),
        json!({"routes": [{"dst": "10.7.0.0/16", "gw": "10.6.0.1"}]}),
    );
    for (change, code, part) in [
        (
            json!({"ipam": without_gateway}),
            7,
            "address 10.9.0.5/24 has no gateway",
        ),
        (json!({"ipam": {}}), 7, "ipam.type: is missing"),
        (json!({"mtu": 1200}), 7, "mtu: 1200 is too small for IPv6"),
        (json!({"ipam": bad_route}), 999, "10.7.0.0/16 via 10.6.0.1"),
        (
            json!({"ipMasq": true, "ipMasqBackend": "pf"}),
            7,
            "ipMasqBackend",
        ),
    ] {
        let (found, message, details) = call.run("ADD", &with(dual_stack(), change)).error();
        assert_eq!(found, code, "{message}: {details}");
        assert!(
            format!("{message}: {details}").contains(part),
            "{message}: {details}"
        );
        assert!(!node.succeeds("ip -n c1 link show eth0"));
        assert_clean(&node);
    }
    // The last step fails: there is no such program.
    let masquerade = with(
        dual_stack(),
        json!({"ipMasq": true, "ipMasqBackend": "iptables"}),
    );
    let no_tool = call.clone().env("PATH", "/nowhere");
    assert!(!no_tool.run("ADD", &masquerade).ok);
    assert_clean(&node);
    call.run("ADD", &dual_stack()).json();
    node.ping(&c1, "10.9.0.1");
}

#[test]
fn a_second_add_is_refused_and_disturbs_nothing() {
    let node = Node::new();
    let c1 = node.netns("c1");
    let call = node.plugin("ptp").netns(&c1);
    let result = call.run("ADD", &dual_stack()).json();
    let (_, message, _) = call.run("ADD", &dual_stack()).error();
    assert!(message.contains("already exists"), "{message}");
    node.ping(&c1, "10.9.0.1");
    call.run("CHECK", &with_result(&dual_stack(), &result))
        .silent();
    assert_eq!(leases(&node).lines().count(), 2);
}

#[test]
fn an_address_is_reachable_at_once_for_its_next_owner() {
    let node = Node::new();
    let config = with(
        dual_stack(),
        json!({"ipam": {"type": "static", "addresses": [
            {"address": "10.9.0.5/24", "gateway": "10.9.0.1"},
            {"address": "fd00:9::5/64", "gateway": "fd00:9::1"},
        ]}}),
    );
    // The first is never deleted: its veth stays, as if its runtime had forgotten it.
    for id in ["a", "b"] {
        let netns = node.netns(id);
        node.plugin("ptp")
            .id(id)
            .netns(&netns)
            .run("ADD", &config)
            .json();
    }
    let last = node
        .ip("link show")
        .as_array()
        .unwrap()
        .iter()
        .find(|link| {
            link["ifalias"]
                .as_str()
                .is_some_and(|a| a.ends_with("container b"))
        })
        .map(|link| link["ifname"].as_str().unwrap().to_owned())
        .unwrap();
    for address in ["10.9.0.5", "fd00:9::5"] {
        let route = node.sh(&format!("ip route get {address}"));
        assert!(route.contains(&format!("dev {last} ")), "{route}");
        node.sh(&format!("ping -n -c 1 -W 1 {address}"));
    }
}

#[test]
fn an_address_that_is_a_network_of_its_own() {
    let node = Node::new();
    let c1 = node.netns("c1");
    let config = with(
        dual_stack(),
        json!({"ipam": {
            "type": "static",
            "addresses": [
                {"address": "10.9.0.5/32", "gateway": "169.254.1.1"},
                {"address": "fd00:9::5/128", "gateway": "fd00:ffff::1"},
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }}),
    );
    far(&node);
    let call = node.plugin("ptp").netns(&c1);
    let result = call.run("ADD", &config).json();
    for address in ["169.254.1.1", "192.0.2.1", "fd00:ffff::1", "fd00:2::1"] {
        node.ping(&c1, address);
    }
    let added = with_result(&config, &result);
    call.run("CHECK", &added).silent();
    call.run("DEL", &added).silent();
    assert_eq!(node.links(), ["up0"]);
}

#[test]
fn check_tells_expected_and_found() {
    let node = Node::new();
    let c1 = node.netns("c1");
    let call = node.plugin("ptp").netns(&c1);
    let config = dual_stack();
    assert_eq!(call.run("CHECK", &config).error().0, 999, "no lease");
    for (harm, part) in [
        ("ip -n c1 link del eth0", "found no such link"),
        (
            "ip -n c1 link set eth0 down",
            "expected state up, found down",
        ),
        (
            "ip -n c1 link set eth0 address 02:00:00:00:00:99",
            "found 02:00:00:00:00:99",
        ),
        (
            "ip -n c1 addr del 10.9.0.2/24 dev eth0",
            "expected address 10.9.0.2/24",
        ),
        (
            "ip -n c1 route del default",
            "expected a route to 0.0.0.0/0, found none",
        ),
        ("ip link set $HOST_END down", "expected its other end"),
        (
            "ip addr del 10.9.0.1/32 dev $HOST_END",
            "expected the gateway's address 10.9.0.1/32",
        ),
        (
            "ip route del 10.9.0.2",
            "expected a route to 10.9.0.2/32 through",
        ),
        (
            "ip -6 route del fd00:9::2",
            "expected a route to fd00:9::2/128 through",
        ),
    ] {
        // The same address again for the messages.
        node.sh("rm -rf /var/lib/cni/networks");
        let result = call.run("ADD", &config).json();
        let added = with_result(&config, &result);
        call.run("CHECK", &added).silent();
        let host_end = result["interfaces"][0]["name"].as_str().unwrap();
        node.sh(&format!("HOST_END={host_end}; {harm}"));
        let (code, message, details) = call.run("CHECK", &added).error();
        assert_eq!(code, 999);
        assert!(
            format!("{message}; {details}").contains(part),
            "{harm}: {message}; {details}"
        );
        call.run("DEL", &added).silent();
        assert_clean(&node);
    }
    let (_, message, _) = {
        call.run("ADD", &config).json();
        call.run("CHECK", &config).error()
    };
    assert_eq!(message, "ptp: Required prevResult missing");
}

#[test]
fn gc_removes_what_belonged_to_the_dead() {
    let node = Node::new();
    let config = with(
        dual_stack(),
        json!({"ipMasq": true, "ipMasqBackend": "nftables"}),
    );
    let other = with(
        config.clone(),
        json!({"name": "net2", "ipam": {"type": "host-local", "subnet": "10.8.0.0/24"}}),
    );
    let call = |id: &str| node.plugin("ptp").id(id).netns(&format!("/run/netns/{id}"));
    for id in ["kept", "dead", "gone"] {
        node.netns(id);
        call(id).run("ADD", &config).json();
    }
    call("dead").ifname("eth1").run("ADD", &other).json();
    node.sh("ip netns del gone");
    assert_eq!(call("x").run("GC", &config).error().0, 7);
    assert_eq!(leases(&node).lines().count(), 6);
    let valid = json!({"cni.dev/valid-attachments": [{"containerID": "kept", "ifname": "eth0"}]});
    let collected = call("x").run("GC", &with(config.clone(), valid));
    collected.silent();
    for thing in [
        "link veth",
        "lease 10.9.0.3",
        "masquerade rules of eth0 of container dead",
    ] {
        assert!(
            collected.stderr.contains(&format!("GC removed {thing}")),
            "{thing}: {collected:?}"
        );
    }
    assert!(!collected.stderr.contains("kept"), "{collected:?}");
    node.ping("kept", "10.9.0.1");
    assert_eq!(leases(&node), "10.9.0.2\nfd00:9::2\n");
    assert!(!node.succeeds("ip -n dead link show eth0"));
    assert!(!rules(&node).contains("10.9.0.3"), "{}", rules(&node));
    assert!(rules(&node).contains("10.9.0.2"), "{}", rules(&node));
    // Another network's is not this one's business.
    node.ping("dead", "10.8.0.1");
    assert_eq!(node.links().len(), 2);
}

#[test]
fn status_says_why_no_container_can_be_added() {
    let node = Node::new();
    let call = node.plugin("ptp");
    call.run("STATUS", &dual_stack()).silent();
    let unknown = with(dual_stack(), json!({"ipam": {"type": "nowhere"}}));
    assert_eq!(call.run("STATUS", &unknown).error().0, 50);
    let mut tiny = with(
        dual_stack(),
        json!({"ipam": {"type": "host-local", "subnet": "10.9.0.0/30"}}),
    );
    let c1 = node.netns("c1");
    call.clone().netns(&c1).run("ADD", &tiny).json();
    call.run("STATUS", &tiny).silent();
    tiny["ipam"]["statusFailsWhenExhausted"] = json!(true);
    assert_eq!(call.run("STATUS", &tiny).error().0, 50);
}

#[test]
fn our_own_namespace_is_never_touched() {
    let node = Node::new();
    let call = node.plugin("ptp").netns("/proc/self/ns/net");
    assert_eq!(call.run("ADD", &dual_stack()).error().0, 8);
    node.sh("ip link add eth0 type veth peer name eth1");
    call.run("DEL", &dual_stack()).silent();
    assert_eq!(node.links().len(), 2);
}

#[test]
fn what_one_implementation_added_the_other_removes() {
    let node = Node::new();
    assert!(
        Path::new(REFERENCE).join("ptp").exists(),
        "the reference plugins are needed: see `make test`"
    );
    far(&node);
    let theirs = |call: Call| {
        call.executable(format!("{REFERENCE}/ptp"))
            .env("CNI_PATH", REFERENCE)
    };
    let config = with(dual_stack(), json!({"cniVersion": "1.0.0", "ipMasq": true}));
    let c1 = node.netns("c1");
    let ours = node.plugin("ptp").netns(&c1);
    for (adds, other) in [
        (ours.clone(), theirs(ours.clone())),
        (theirs(ours.clone()), ours),
    ] {
        let result = adds.run("ADD", &config).json();
        node.ping(&c1, "10.9.0.1");
        node.ping(&c1, "192.0.2.2");
        let added = with_result(&config, &result);
        other.run("CHECK", &added).silent();
        other.run("DEL", &added).silent();
        assert_eq!(node.links(), ["up0"]);
        assert_eq!(
            (leases(&node), rules(&node)),
            (String::new(), String::new())
        );
    }
}

/// With the tools of iptables each listing is a process: there are as many for one container
/// as for several.
#[test]
fn restore_lists_each_table_once() {
    for variant in ["iptables-nft", "iptables-legacy"] {
        std::thread::spawn(move || listed_once(variant))
            .join()
            .unwrap();
    }
}

fn listed_once(variant: &str) {
    let node = Node::new();
    let path = common::tools(&node, "tools", variant);
    let log = node.dir.path().join("log");
    // Each call is counted before it is made.
    for tool in ["iptables", "ip6tables"] {
        for verb in ["save", "restore"] {
            let link = Path::new(&path).join(format!("{tool}-{verb}"));
            let real = fs::read_link(&link).unwrap();
            fs::remove_file(&link).unwrap();
            // By its name the variant is known.
            let file = Path::new(&path).join(real.file_name().unwrap());
            symlink(&file, &link).unwrap();
            let text = format!(
                "#!/bin/sh\necho {tool}-{verb} >> {}\nexec {} \"$@\"\n",
                log.display(),
                real.display()
            );
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        }
    }
    let path = format!("{path}:/usr/sbin:/usr/bin:/sbin:/bin");
    let conf = node.dir.path().join("net.d");
    fs::create_dir(&conf).unwrap();
    let ptp = with(
        dual_stack(),
        json!({"ipMasq": true, "ipMasqBackend": "iptables"}),
    );
    let list = json!({"cniVersion": "1.0.0", "name": "net1", "plugins": [
        ptp,
        {"type": "portmap", "backend": "iptables", "capabilities": {"portMappings": true}},
        {"type": "firewall", "backend": "iptables"},
    ]});
    fs::write(conf.join("net1.conflist"), list.to_string()).unwrap();
    let tool = |program: &Path, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).env("PATH", &path);
        command.env("CNI_PATH", &node.bin).env("NETCONFPATH", &conf);
        common::run(&mut command, "")
    };
    let add = |name: &str, port: u16| {
        let netns = node.netns(name);
        let cap = json!({"portMappings": [
            {"hostPort": port, "containerPort": 80, "protocol": "tcp"}]});
        let args = ["add", "net1", &netns, "--cap", &cap.to_string()];
        tool(&node.bin.join("cnitool"), &args).json();
    };
    let listings = |expected: &str| {
        fs::write(&log, "").unwrap();
        let restored = tool(&common::binary(), &["restore"]);
        assert!(
            restored.ok && restored.stdout.contains(expected),
            "{restored:?}"
        );
        fs::read_to_string(&log).unwrap()
    };
    add("c1", 8081);
    let for_one = listings("nothing was missing: 1");
    // Tables `nat` and `filter` of both families.
    assert_eq!(for_one.lines().count(), 4, "{for_one}");
    for (name, port) in [("c2", 8082), ("c3", 8083)] {
        add(name, port);
    }
    assert_eq!(listings("nothing was missing: 3"), for_one);
    // What one of them lost, another one does not hide.
    node.sh(&format!(
        "{variant} -t nat -F POSTROUTING; {variant} -F FORWARD"
    ));
    listings("restored (");
    assert_eq!(listings("nothing was missing: 3"), for_one);
}
