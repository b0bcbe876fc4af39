//! The flannel plugin on the real kernel: what it makes of the daemon's file, two nodes
//! whose containers reach each other, and what is left when files are lost.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot do its work says so by panicking"
)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Call, Node, REFERENCE, with, with_result};
use serde_json::{Value, json};

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const SCRATCH: &str = "/var/lib/cni/flannel";
const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\n\
    FLANNEL_IPV6_NETWORK=fd00:42::/56\nFLANNEL_IPV6_SUBNET=fd00:42:0:1::1/64\n\
    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";

/// A node on which the daemon has written `text`.
fn node(text: &str) -> Node {
    let node = Node::new();
    fs::create_dir("/run/flannel").unwrap();
    fs::write(SUBNET_FILE, text).unwrap();
    node
}

fn config(version: &str) -> Value {
    json!({
        "cniVersion": version,
        "name": "cbr0",
        "type": "flannel",
        "delegate": {"isDefaultGateway": true, "ipMasqBackend": "nftables"},
    })
}

/// The names of the scratch files.
fn scratch(node: &Node) -> String {
    node.sh(&format!("ls -A {SCRATCH} 2>/dev/null || true"))
}

/// Leases of `network`.
fn leases(node: &Node, network: &str) -> String {
    node.sh(&format!(
        "cd /var/lib/cni/networks/{network} 2>/dev/null || exit 0; ls | grep -v -e last_reserved_ip -e lock || true"
    ))
}

/// Asserts that nothing of any container is left, the bridge aside.
#[track_caller]
fn assert_clean(node: &Node) {
    assert_eq!(scratch(node), "");
    assert_eq!(leases(node, "cbr0"), "");
    let links = node.links();
    assert!(
        !links.iter().any(|name| name.starts_with("veth")),
        "{links:?}"
    );
    let rules = node.sh("nft list ruleset; iptables-save 2>/dev/null; ip6tables-save 2>/dev/null");
    assert!(
        !rules.contains("10.42.1.") && !rules.contains("fd00:42:"),
        "{rules}"
    );
}

#[test]
fn the_delegate_gets_what_the_daemon_wrote() {
    let node = node(SUBNET_ENV);
    let c1 = node.netns("c1");
    let call = node.plugin("flannel").netns(&c1);
    let config = config("1.1.0");
    call.run("STATUS", &config).silent();
    let result = call.run("ADD", &config).json();
    assert_eq!(result["cniVersion"], "1.1.0");
    assert_eq!(result["interfaces"][0]["name"], "cni0");
    assert_eq!(result["ips"][0]["address"], "10.42.1.2/24");
    assert_eq!(result["ips"][1]["address"], "fd00:42:0:1::2/64");
    assert_eq!(node.ip("-n c1 link show eth0")[0]["mtu"], 1450);
    let routes = node.sh("ip -n c1 route; ip -n c1 -6 route");
    for route in [
        "default via 10.42.1.1 dev eth0",
        "10.42.0.0/16 via 10.42.1.1 dev eth0",
        "fd00:42::/56 via fd00:42:0:1::1 dev eth0",
        "default via fd00:42:0:1::1 dev eth0",
    ] {
        assert!(routes.contains(route), "{route}\n{routes}");
    }
    node.ping(&c1, "10.42.1.1");
    node.ping(&c1, "fd00:42:0:1::1");
    // The daemon does not masquerade: somebody must.
    let rules = node.sh("nft list ruleset");
    assert!(
        rules.contains("masquerade") && rules.contains("10.42.1.2"),
        "{rules}"
    );

    let file = Path::new(SCRATCH).join("c1");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(Path::new(SCRATCH))), (0o600, 0o700));
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        r#"{"cniVersion":"1.1.0","cnibox/ifname":"eth0","ipMasq":true,"ipMasqBackend":"nftables","ipam":{"ranges":[[{"subnet":"10.42.1.0/24"}],[{"subnet":"fd00:42:0:1::/64"}]],"routes":[{"dst":"10.42.0.0/16"},{"dst":"fd00:42::/56"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#
    );

    let added = with_result(&config, &result);
    call.run("CHECK", &added).silent();
    node.sh("ip -n c1 addr del 10.42.1.2/24 dev eth0");
    let (_, message, _) = call.run("CHECK", &added).error();
    assert!(message.contains("10.42.1.2/24"), "{message}");

    // By then the daemon has got another subnet.
    fs::write(SUBNET_FILE, SUBNET_ENV.replace("10.42.1.", "10.42.9.")).unwrap();
    call.run("DEL", &config).silent();
    assert_clean(&node);
    call.run("DEL", &config).silent();
    assert_clean(&node);
}

#[test]
fn an_add_that_fails_leaves_what_was_there() {
    let node = node(SUBNET_ENV);
    let c1 = node.netns("c1");
    let call = node.plugin("flannel").netns(&c1);
    node.sh("ip -n c1 link add eth0 type veth peer name other");
    call.run("ADD", &config("1.0.0")).error();
    assert_clean(&node);
    node.sh("ip -n c1 link del eth0");
    call.run("ADD", &config("1.0.0")).json();
    let kept = fs::read_to_string(Path::new(SCRATCH).join("c1")).unwrap();
    // The same attachment once more, with other settings.
    let change = json!({"delegate": {"mtu": 1300}});
    call.run("ADD", &with(config("1.0.0"), change)).error();
    assert_eq!(
        fs::read_to_string(Path::new(SCRATCH).join("c1")).unwrap(),
        kept
    );
    node.ping(&c1, "10.42.1.1");
    call.run("DEL", &config("1.0.0")).silent();
    assert_clean(&node);
}

#[test]
fn what_is_wrong_with_the_daemons_file_is_said() {
    let node = node("");
    let c1 = node.netns("c1");
    let call = node.plugin("flannel").netns(&c1);
    let config = config("1.1.0");
    let refused = |code: u64, expected: &str| {
        for (command, code) in [("ADD", code), ("STATUS", 50)] {
            let (found, message, details) = call.run(command, &config).error();
            assert_eq!(found, code, "{message}");
            let start = "failed to load flannel 'subnet.env' file: ";
            assert!(
                message.starts_with(start) && message.contains(expected),
                "{message}"
            );
            assert!(details.contains("flannel daemon"), "{details}");
        }
        assert_clean(&node);
    };
    refused(6, "/run/flannel/subnet.env is missing FLANNEL_NETWORK");
    fs::write(SUBNET_FILE, SUBNET_ENV.replace("FLANNEL_MTU=1450\n", "")).unwrap();
    refused(6, "is missing FLANNEL_MTU");
    fs::write(SUBNET_FILE, SUBNET_ENV.replace("1450", "fast")).unwrap();
    refused(6, "FLANNEL_MTU=\"fast\"");
    fs::write(SUBNET_FILE, SUBNET_ENV.replace("10.42.1.1/24", "10.42.1.1")).unwrap();
    refused(6, "FLANNEL_SUBNET with \"10.42.1.1\"");
    fs::remove_file(SUBNET_FILE).unwrap();
    refused(
        11,
        "open /run/flannel/subnet.env: no such file or directory",
    );
    call.run("DEL", &config).silent();
    // Another place, as configured.
    fs::write("/run/elsewhere", SUBNET_ENV).unwrap();
    let change = json!({"subnetFile": "/run/elsewhere", "dataDir": "/run/scratch"});
    let elsewhere = with(config.clone(), change);
    call.run("ADD", &elsewhere).json();
    assert!(Path::new("/run/scratch/c1").exists());
    call.run("DEL", &elsewhere).silent();
    assert!(!Path::new("/run/scratch/c1").exists());
    assert_clean(&node);
}

#[test]
fn status_tells_what_the_delegate_lacks() {
    let node = node(&SUBNET_ENV.replace("10.42.1.1/24", "10.42.1.1/30"));
    let call = node.plugin("flannel");
    call.run("STATUS", &config("1.1.0")).silent();
    let c1 = node.netns("c1");
    let c1 = call.clone().netns(&c1);
    c1.run("ADD", &config("1.1.0")).json();
    // A /30 has one address for containers, which passes when this one ends.
    call.run("STATUS", &config("1.1.0")).silent();
    let strict = with(
        config("1.1.0"),
        json!({"ipam": {"statusFailsWhenExhausted": true}}),
    );
    let (code, message, _) = call.run("STATUS", &strict).error();
    assert!(
        code == 50 && message.contains("10.42.1."),
        "{code} {message}"
    );
    c1.run("DEL", &config("1.1.0")).silent();
    call.run("STATUS", &strict).silent();
    let nowhere = call.env("CNI_PATH", "/nowhere");
    assert_eq!(nowhere.run("STATUS", &config("1.1.0")).error().0, 50);
}

#[test]
fn a_lost_or_damaged_scratch_file_loses_nothing_else() {
    let node = node(SUBNET_ENV);
    let c1 = node.netns("c1");
    let call = node.plugin("flannel").netns(&c1);
    let file = Path::new(SCRATCH).join("c1");
    for keeps_subnet_file in [true, false] {
        for damage in ["lost", "empty", "one byte", "all but one"] {
            fs::write(SUBNET_FILE, SUBNET_ENV).unwrap();
            call.run("ADD", &config("1.0.0")).json();
            let kept = fs::read(&file).unwrap();
            match damage {
                "lost" => fs::remove_file(&file),
                "empty" => fs::write(&file, ""),
                "one byte" => fs::write(&file, &kept[..1]),
                _ => fs::write(&file, &kept[..kept.len() - 1]),
            }
            .unwrap();
            if !keeps_subnet_file {
                fs::remove_file(SUBNET_FILE).unwrap();
            }
            call.run("DEL", &config("1.0.0")).silent();
            assert_clean(&node);
        }
    }
    // Nobody to clean up with is no reason to keep the container.
    fs::write(&file, "").unwrap();
    let nowhere = call.env("CNI_PATH", "/nowhere");
    nowhere.run("DEL", &config("1.0.0")).silent();
    assert_clean(&node);
}

#[test]
fn a_del_that_fails_can_be_tried_again() {
    let node = node(SUBNET_ENV);
    let c1 = node.netns("c1");
    let call = node.plugin("flannel").netns(&c1);
    call.run("ADD", &config("1.0.0")).json();
    let broken = call.clone().env("CNI_PATH", "/nowhere");
    let (_, message, _) = broken.run("DEL", &config("1.0.0")).error();
    assert!(message.contains("bridge"), "{message}");
    assert_eq!(scratch(&node), "c1\n");
    call.run("DEL", &config("1.0.0")).silent();
    assert_clean(&node);
}

#[test]
fn a_container_can_have_several_attachments() {
    let node = node(SUBNET_ENV);
    let c1 = node.netns("c1");
    let call = |ifname: &str| node.plugin("flannel").netns(&c1).ifname(ifname);
    let other = with(
        config("1.0.0"),
        json!({"name": "other", "delegate": {"bridge": "cni1"}}),
    );
    fs::write("/run/other", SUBNET_ENV.replace("10.42.1.", "10.43.1.")).unwrap();
    let other = with(other, json!({"subnetFile": "/run/other"}));
    call("eth0").run("ADD", &config("1.0.0")).json();
    call("eth1").run("ADD", &other).json();
    assert_eq!(scratch(&node), "c1\nc1:other:eth1\n");
    // The first to come is the first to go, and takes nothing of the other's along.
    call("eth0").run("DEL", &config("1.0.0")).silent();
    assert_eq!(scratch(&node), "c1:other:eth1\n");
    node.ping(&c1, "10.43.1.1");
    call("eth1").run("DEL", &other).silent();
    assert_eq!(leases(&node, "other"), "");
    assert_clean(&node);
}

#[test]
fn gc_removes_what_is_not_valid() {
    let node = node(SUBNET_ENV);
    let call = |id: &str| node.plugin("flannel").id(id);
    for id in ["live", "dead"] {
        let netns = node.netns(id);
        call(id).netns(&netns).run("ADD", &config("1.1.0")).json();
    }
    node.sh("ip netns del dead");
    let valid = json!({"cni.dev/valid-attachments": [{"containerID": "live", "ifname": "eth0"}]});
    let gc = call("any").run("GC", &with(config("1.1.0"), valid));
    assert!(gc.ok, "{gc:?}");
    assert_eq!(scratch(&node), "live\n");
    assert_eq!(leases(&node, "cbr0"), "10.42.1.2\nfd00:42:0:1::2\n");
    node.ping("/run/netns/live", "10.42.1.1");
    // Everything goes, also when the daemon's file has gone before.
    fs::remove_file(SUBNET_FILE).unwrap();
    let empty = json!({"cni.dev/valid-attachments": []});
    let gc = call("any").run("GC", &with(config("1.1.0"), empty));
    assert!(gc.ok, "{gc:?}");
    assert_clean(&node);
    call("any").run("GC", &config("1.1.0")).error();
}

#[test]
fn rules_that_were_flushed_come_back() {
    let node = node(SUBNET_ENV);
    let c1 = node.netns("c1");
    let dir = node.dir.path().join("net.d");
    fs::create_dir(&dir).unwrap();
    let list = json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": [config("1.0.0")]});
    fs::write(dir.join("10.conflist"), list.to_string()).unwrap();
    node.cnitool(&dir, &["add", "cbr0", &c1]).json();
    node.sh("nft flush ruleset");
    let check = node.cnitool(&dir, &["check", "cbr0", &c1]);
    assert!(
        !check.ok && check.stderr.contains("masquerade"),
        "{check:?}"
    );
    let restore = format!("{} restore", common::binary().display());
    let told = node.sh(&restore);
    assert!(told.contains("restored"), "{told}");
    node.cnitool(&dir, &["check", "cbr0", &c1]).silent();
    node.cnitool(&dir, &["del", "cbr0", &c1]).silent();
    assert_clean(&node);
}

/// A plugin that writes what it is called with to `/run/calls`.
fn spy(node: &Node) -> String {
    let dir = node.dir.path().join("spy");
    fs::create_dir(&dir).unwrap();
    let script = "#!/bin/sh\necho $CNI_COMMAND $CNI_IFNAME $(cat) >> /run/calls\n\
        [ $CNI_COMMAND = ADD ] || exit 0\necho '{\"cniVersion\": \"0.4.0\", \"ips\": []}'\n";
    fs::write(dir.join("spy"), script).unwrap();
    fs::set_permissions(dir.join("spy"), fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", dir.display(), node.bin.display())
}

#[test]
fn other_delegates_are_run_as_they_are() {
    let node = node(&SUBNET_ENV.replace("IPMASQ=false", "IPMASQ=true"));
    let c1 = node.netns("c1");
    let plugin = node
        .plugin("flannel")
        .netns(&c1)
        .env("CNI_PATH", &spy(&node));
    let config = json!({
        "cniVersion": "0.4.0", "name": "cbr0", "type": "flannel",
        "delegate": {"type": "spy", "key": 1.50},
        "ipam": {"type": "other"},
        "runtimeConfig": {"mac": "02:00:00:00:00:01"},
        "dns": {"domain": "x"}, "args": {"cni": {}}, "capabilities": {"mac": true},
    });
    let result = plugin.run("ADD", &config).json();
    assert_eq!(result["cniVersion"], "0.4.0");
    let added = with_result(&config, &result);
    plugin.run("CHECK", &added).silent();
    plugin.run("DEL", &added).silent();
    let seen = fs::read_to_string("/run/calls").unwrap();
    let seen: Vec<(&str, Value)> = seen
        .lines()
        .map(|line| {
            let (command, document) = line.split_once(" eth0 ").unwrap();
            (command, serde_json::from_str(document).unwrap())
        })
        .collect();
    let expected = json!({
        "cniVersion": "0.4.0", "name": "cbr0", "type": "spy", "key": 1.50,
        "ipMasq": false, "mtu": 1450,
        "ipam": {
            "type": "other",
            "ranges": [[{"subnet": "10.42.1.0/24"}], [{"subnet": "fd00:42:0:1::/64"}]],
            "routes": [{"dst": "10.42.0.0/16"}, {"dst": "fd00:42::/56"}],
        },
        "runtimeConfig": {"mac": "02:00:00:00:00:01"},
    });
    let commands: Vec<&str> = seen.iter().map(|(command, _)| *command).collect();
    assert_eq!(commands, ["ADD", "CHECK", "DEL"]);
    assert_eq!(seen[0].1, expected);
    for (_, document) in &seen[1..] {
        // What ADD was called with, and the result of it.
        let mut document = document.clone();
        let members = document.as_object_mut().unwrap();
        assert!(members.remove("prevResult").is_some());
        members.remove("cnibox/ifname");
        assert_eq!(document, expected);
    }
    assert_clean(&node);
}

/// The reference's flannel is in no package, but all that it does is to keep a file and to
/// run its delegate.
#[test]
fn the_references_containers_are_deleted_and_ours_by_it() {
    let node = node(SUBNET_ENV);
    let c1 = node.netns("c1");
    let bridge = |id: &str| {
        let call = node
            .plugin("bridge")
            .executable(Path::new(REFERENCE).join("bridge"));
        call.id(id).netns(&c1).env("CNI_PATH", REFERENCE)
    };
    let ours = |id: &str| -> Call { node.plugin("flannel").id(id).netns(&c1) };
    let config = with(
        config("1.0.0"),
        json!({"delegate": {"isDefaultGateway": true}}),
    );
    let delegated = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "mtu": 1450,
        "ipMasq": true, "isGateway": true, "isDefaultGateway": true,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.42.1.0/24"}], [{"subnet": "fd00:42:0:1::/64"}]],
            "routes": [{"dst": "10.42.0.0/16"}, {"dst": "fd00:42::/56"}],
        },
    });
    fs::create_dir_all(SCRATCH).unwrap();
    let file = Path::new(SCRATCH).join("theirs");
    fs::write(&file, delegated.to_string()).unwrap();
    let added = bridge("theirs").run("ADD", &delegated);
    let result = added.json();
    node.ping(&c1, "10.42.1.1");
    ours("theirs")
        .run("DEL", &with_result(&config, &result))
        .silent();
    assert_clean(&node);

    ours("ours").run("ADD", &config).json();
    let kept = fs::read_to_string(Path::new(SCRATCH).join("ours")).unwrap();
    bridge("ours")
        .env("CNI_COMMAND", "DEL")
        .run_text(&kept)
        .silent();
    fs::remove_file(Path::new(SCRATCH).join("ours")).unwrap();
    assert_clean(&node);
}

#[test]
fn validate_asks_the_delegate_too() {
    let node = Node::new();
    let dir = node.dir.path().join("net.d");
    fs::create_dir(&dir).unwrap();
    let validate = |plugin: Value| {
        let list = json!({"cniVersion": "1.0.0", "name": "n", "plugins": [plugin]});
        fs::write(dir.join("10.conflist"), list.to_string()).unwrap();
        node.cnitool(&dir, &["validate"])
    };
    let good = validate(json!({
        "type": "flannel", "subnetFile": "/x", "dataDir": "/y",
        "delegate": {"hairpinMode": true, "forceAddress": true},
        "ipam": {"dataDir": "/z", "routes": [{"dst": "192.0.2.0/24"}]},
    }));
    assert!(good.ok && good.stdout.ends_with(": ok\n"), "{good:?}");
    let bad = validate(json!({
        "type": "flannel", "subnetFiel": "/x",
        "delegate": {"hairpinmod": true, "mtu": "big", "name": "x"},
        "ipam": {"datadri": "/z", "routes": [{"dst": "nowhere"}]},
    }));
    let missing = validate(json!({
        "type": "flannel", "delegate": {"type": "nothere"}, "ipam": {"datadri": ""},
    }));
    let (bad, missing) = (
        format!("{}{}", bad.stdout, bad.stderr),
        format!("{}{}", missing.stdout, missing.stderr),
    );
    for part in [
        "plugins[0].subnetFiel: unknown key, ignored; did you mean \"subnetFile\"?",
        "plugins[0].delegate.name: must not be there",
    ] {
        assert!(bad.contains(part), "{part}\n{bad}");
    }
    for part in [
        "plugins[0].delegate.type: failed to find plugin \"nothere\"",
        "plugins[0].ipam.datadri: unknown key, ignored; did you mean \"dataDir\"?",
    ] {
        assert!(missing.contains(part), "{part}\n{missing}");
    }
    let wrong = validate(json!({
        "type": "flannel", "delegate": {"hairpinmod": true, "mtu": "big"},
        "ipam": {"routes": [{"dst": "nowhere"}]},
    }));
    for part in [
        "plugins[0].delegate.hairpinmod: unknown key, ignored; did you mean \"hairpinMode\"?",
        "plugins[0].delegate.mtu: ",
        "plugins[0].ipam.routes[0].dst: ",
    ] {
        let wrong = format!("{}{}", wrong.stdout, wrong.stderr);
        assert!(wrong.contains(part), "{part}\n{wrong}");
    }
}

/// Two nodes of one cluster and a machine outside of it on one wire, as namespaces.
struct Cluster {
    node: Node,
}

impl Cluster {
    /// `masquerades`: the daemon does, with rules of its own.
    fn new(masquerades: bool) -> Self {
        let node = Node::new();
        node.sh("ip link add wire type bridge && ip link set wire up");
        for (name, number) in [("n1", 1), ("n2", 2), ("far", 9)] {
            node.netns(name);
            node.sh(&format!(
                "ip link add w{number} type veth peer name uplink netns {name}
                 ip link set w{number} master wire up
                 ip -n {name} addr add 192.0.2.{number}/24 dev uplink
                 ip -n {name} addr add fd00:2::{number}/64 dev uplink nodad
                 ip -n {name} link set uplink up"
            ));
        }
        // Neighbours are asked for from the link's own address.
        for name in ["n1", "n2", "far"] {
            node.sh(&format!(
                "until ip -n {name} addr show dev uplink | grep -q fe80; do sleep 0.01; done
                 while ip -n {name} addr show dev uplink | grep -q tentative; do sleep 0.01; done"
            ));
        }
        let made = Self { node };
        for (number, other) in [(1, 2), (2, 1)] {
            made.daemon(number, other, masquerades);
        }
        made
    }

    /// What the daemon of node `number` does, in mode `host-gw`.
    fn daemon(&self, number: u8, other: u8, masquerades: bool) {
        let name = format!("n{number}");
        self.node.sh(&format!(
            "ip -n {name} route add 10.42.{other}.0/24 via 192.0.2.{other}
             ip -n {name} route add fd00:42:0:{other}::/64 via fd00:2::{other}"
        ));
        if masquerades {
            for (family, net) in [("ip", "10.42.0.0/16"), ("ip6", "fd00:42::/56")] {
                self.node.sh(&format!(
                    "ip netns exec {name} nft 'add table {family} flannel
                     add chain {family} flannel out {{ type nat hook postrouting priority 100; }}
                     add rule {family} flannel out {family} saddr {net} {family} daddr != {net} masquerade'"
                ));
            }
        }
        let dir = self.node.dir.path().join(&name);
        fs::create_dir(&dir).unwrap();
        let env = format!(
            "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.{number}.1/24\n\
             FLANNEL_IPV6_NETWORK=fd00:42::/56\nFLANNEL_IPV6_SUBNET=fd00:42:0:{number}::1/64\n\
             FLANNEL_MTU=1500\nFLANNEL_IPMASQ={masquerades}\n"
        );
        let (subnet_file, data) = (dir.join("subnet.env"), dir.join("flannel"));
        fs::write(&subnet_file, env).unwrap();
        let list = json!({
            "cniVersion": "1.0.0", "name": format!("cluster{number}"),
            "plugins": [{
                "type": "flannel", "subnetFile": subnet_file, "dataDir": data,
                "ipam": {"dataDir": dir.join("networks")},
                "delegate": {"isDefaultGateway": true, "ipMasqBackend": "nftables"},
            }],
        });
        fs::write(dir.join("10.conflist"), list.to_string()).unwrap();
    }

    /// Runs cnitool on node `number`.
    fn cnitool(&self, number: u8, command: &str, netns: &str) -> String {
        let (dir, bin) = (self.node.dir.path().display(), self.node.bin.display());
        self.node.sh(&format!(
            "ip netns exec n{number} env CNI_PATH={bin} NETCONFPATH={dir}/n{number} \
             {bin}/cnitool {command} cluster{number} {netns}"
        ))
    }

    /// From where a connection from container `c1` to port 80 of `address` in `namespace`
    /// seems to come.
    fn source(&self, namespace: &str, address: &str) -> String {
        let listen = if address.contains(':') {
            "TCP6"
        } else {
            "TCP4"
        };
        let pid = self.node.sh(&format!(
            "ip netns exec {namespace} socat -t9 {listen}-LISTEN:80,fork,reuseaddr \
             'SYSTEM:echo $SOCAT_PEERADDR' >/dev/null 2>&1 & echo $!"
        ));
        self.node.sh(&format!(
            "until ip netns exec {namespace} ss -Hltn | grep -q ':80 '; do sleep 0.01; done"
        ));
        let source = self.node.sh(&format!(
            "ip netns exec c1 socat -t9 -T9 - '{listen}:{address}:80' </dev/null"
        ));
        self.node.sh(&format!("kill {pid}"));
        source.trim().to_owned()
    }
}

#[test]
fn containers_of_two_nodes_reach_each_other() {
    let cluster = Cluster::new(true);
    let node = &cluster.node;
    let (c1, c2) = (node.netns("c1"), node.netns("c2"));
    cluster.cnitool(1, "add", &c1);
    cluster.cnitool(2, "add", &c2);
    for (from, to) in [(&c1, "10.42.2.2"), (&c2, "10.42.1.2")] {
        node.ping(from, to);
    }
    for (from, to) in [(&c1, "fd00:42:0:2::2"), (&c2, "fd00:42:0:1::2")] {
        node.ping(from, to);
    }
    // Inside of the cluster every container is itself, outside of it, its node.
    assert_eq!(cluster.source("c2", "10.42.2.2"), "10.42.1.2");
    assert_eq!(
        cluster.source("c2", "[fd00:42:0:2::2]"),
        "[fd00:0042:0000:0001:0000:0000:0000:0002]"
    );
    assert_eq!(cluster.source("far", "192.0.2.9"), "192.0.2.1");
    assert_eq!(
        cluster.source("far", "[fd00:2::9]"),
        "[fd00:0002:0000:0000:0000:0000:0000:0001]"
    );
    // That is the daemon's doing alone.
    let rules = node.sh("ip netns exec n1 nft list ruleset");
    assert!(!rules.contains("cni"), "{rules}");
    cluster.cnitool(1, "check", &c1);
    for (number, netns) in [(1, &c1), (2, &c2)] {
        cluster.cnitool(number, "del", netns);
        let links = node.sh(&format!("ip -n n{number} -brief link show type veth"));
        assert!(!links.contains("veth"), "{links}");
        let dir = node.dir.path().join(format!("n{number}"));
        assert_eq!(fs::read_dir(dir.join("flannel")).unwrap().count(), 0);
    }
}

#[test]
fn the_delegate_masquerades_where_the_daemon_does_not() {
    let cluster = Cluster::new(false);
    let node = &cluster.node;
    let c1 = node.netns("c1");
    cluster.cnitool(1, "add", &c1);
    assert_eq!(cluster.source("far", "192.0.2.9"), "192.0.2.1");
    assert_eq!(
        cluster.source("far", "[fd00:2::9]"),
        "[fd00:0002:0000:0000:0000:0000:0000:0001]"
    );
    cluster.cnitool(1, "del", &c1);
    let rules = node.sh("ip netns exec n1 nft list ruleset");
    assert!(!rules.contains("10.42.1."), "{rules}");
}
