//! The tuning plugin on the real kernel: the built binary, called as a runtime calls it,
//! judged with `ip`, `/proc/sys` and the files it leaves.
#![allow(
    clippy::needless_pass_by_value,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests outside a test module"
)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::{Call, Node, REFERENCE, with};
use serde_json::{Value, json};

const BACKUPS: &str = "/run/cni/tuning";
const BACKUP: &str = "/run/cni/tuning/c1_eth0.json";

/// A container `c1` with an interface `eth0`, its other end on the node.
fn container(node: &Node) -> Call {
    let netns = node.netns("c1");
    add_link(node);
    node.plugin("tuning").netns(&netns)
}

fn add_link(node: &Node) {
    node.sh("ip link add host0 type veth peer name eth0 netns c1");
}

/// A configuration as a runtime sends it after whoever made `eth0`.
fn config(members: Value) -> Value {
    let fixed = json!({
        "cniVersion": "1.0.0",
        "name": "net1",
        "type": "tuning",
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "eth0", "mac": "02:00:00:00:00:09"},
                {"name": "eth0", "mac": "02:00:00:00:00:08", "sandbox": "/run/netns/c1"},
            ],
        },
    });
    with(fixed, members)
}

/// Everything that can be asked for.
fn everything() -> Value {
    json!({
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "77"},
        "mac": "c2:11:22:33:44:AA", "mtu": 1400, "txQLen": 500, "promisc": true, "allmulti": true,
    })
}

/// What `ip` says of the container's `eth0`.
fn eth0(node: &Node) -> Value {
    node.ip("-n c1 link show dev eth0")[0].clone()
}

/// Address, MTU, queue length, and whether promiscuous and all-multicast.
fn properties(node: &Node) -> (String, u64, u64, bool, bool) {
    let link = eth0(node);
    let flags = link["flags"].as_array().unwrap();
    (
        link["address"].as_str().unwrap().to_owned(),
        link["mtu"].as_u64().unwrap(),
        // `ip` leaves out a queue that holds nothing.
        link["txqlen"].as_u64().unwrap_or(0),
        flags.contains(&json!("PROMISC")),
        flags.contains(&json!("ALLMULTI")),
    )
}

/// A sysctl of the container; `path` is below `/proc/sys`.
fn sysctl(node: &Node, path: &str) -> String {
    let text = node.sh(&format!("ip netns exec c1 cat /proc/sys/{path}"));
    text.trim_end().to_owned()
}

/// The file that keeps `properties` of `link`, the container's.
fn backup_of(link: &Value, properties: &str) -> String {
    let netns = fs::metadata("/run/netns/c1").unwrap().ino();
    let (ifindex, peer) = (&link["ifindex"], &link["link_index"]);
    format!(
        "{{\n{properties} \"link\": {{\n  \"netns\": {netns},\n  \"ifindex\": {ifindex},\n  \
         \"peer\": {peer}\n }},\n \"network\": \"net1\"\n}}"
    )
}

#[track_caller]
fn assert_no_backup() {
    let Ok(entries) = fs::read_dir(BACKUPS) else {
        return;
    };
    let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn everything_is_set_and_del_restores_exactly() {
    let node = Node::new();
    let call = container(&node);
    let before = eth0(&node);
    let result = call.run("ADD", &config(everything())).json();
    assert_eq!(
        properties(&node),
        ("c2:11:22:33:44:aa".into(), 1400, 500, true, true)
    );
    assert_eq!(sysctl(&node, "net/ipv4/conf/eth0/arp_filter"), "1");
    assert_eq!(sysctl(&node, "net/core/somaxconn"), "77");
    assert_ne!(
        fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap(),
        "77\n"
    );
    assert_eq!(
        result["interfaces"],
        json!([
            {"name": "eth0", "mac": "02:00:00:00:00:09"},
            {"name": "eth0", "mac": "c2:11:22:33:44:AA", "mtu": 1400, "sandbox": "/run/netns/c1"},
        ])
    );

    let mac = before["address"].as_str().unwrap();
    assert_eq!(
        fs::read_to_string(BACKUP).unwrap(),
        backup_of(
            &before,
            &format!(
                " \"mac\": \"{mac}\",\n \"promisc\": false,\n \"mtu\": 1500,\n \
                 \"allmulti\": false,\n \"txQLen\": 1000,\n"
            )
        )
    );
    let mode = |path: &str| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(BACKUPS), mode(BACKUP)), (0o700, 0o600));

    call.run("CHECK", &config(everything())).silent();
    call.run("DEL", &config(everything())).silent();
    assert_eq!(eth0(&node), before);
    assert_no_backup();
    // Sysctls go with the namespace, as the reference leaves them.
    assert_eq!(sysctl(&node, "net/core/somaxconn"), "77");
    call.run("DEL", &config(everything())).silent();
    assert_eq!(eth0(&node), before);
}

#[test]
fn only_what_is_asked_for_is_changed_kept_and_compared() {
    let node = Node::new();
    let call = container(&node);
    node.sh("ip -n c1 link set eth0 promisc on allmulticast on mtu 1300 txqlen 7");
    let before = properties(&node);
    for (members, backup) in [
        (json!({}), None),
        (json!({"mtu": 0, "mac": "", "promisc": false}), None),
        (
            json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}),
            None,
        ),
        (json!({"allmulti": true}), Some(" \"allmulti\": true,\n")),
        (json!({"txQLen": 7}), Some(" \"txQLen\": 7,\n")),
        (
            json!({"promisc": true, "mtu": 1300}),
            Some(" \"promisc\": true,\n \"mtu\": 1300,\n"),
        ),
    ] {
        let config = config(members.clone());
        call.run("ADD", &config).json();
        assert_eq!(properties(&node), before, "{members}");
        assert_eq!(
            fs::read_to_string(BACKUP).ok(),
            backup.map(|properties| backup_of(&eth0(&node), properties)),
            "{members}"
        );
        call.run("CHECK", &config).silent();
        call.run("DEL", &config).silent();
        assert_eq!(properties(&node), before, "{members}");
        assert_no_backup();
    }
    // Off is a wish like any other, but only for allmulti and the queue.
    let off = config(json!({"allmulti": false, "txQLen": 0}));
    call.run("ADD", &off).json();
    assert_eq!(properties(&node), (before.0.clone(), 1300, 0, true, false));
    call.run("CHECK", &off).silent();
    call.run("DEL", &off).silent();
    assert_eq!(properties(&node), before);
}

#[test]
fn a_chain_of_bridge_and_tuning() {
    let node = Node::new();
    let netns = node.netns("c1");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/40-tuning.conflist");
    let list: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let part = |index: usize, previous: &Value| {
        let shared = json!({"name": list["name"], "cniVersion": list["cniVersion"]});
        let part = with(list["plugins"][index].clone(), shared);
        with(part, json!({"prevResult": previous}))
    };
    // As a runtime passes the address that somebody asked for, in a notation of theirs.
    let mac = json!({"runtimeConfig": {"mac": "C2-11-22-33-44-AA"}});
    let (bridge, tuning) = (
        node.plugin("bridge").netns(&netns),
        node.plugin("tuning").netns(&netns),
    );
    let attached = bridge.run("ADD", &part(0, &Value::Null)).json();
    let made = properties(&node);
    let result = tuning
        .run("ADD", &with(part(1, &attached), mac.clone()))
        .json();
    assert_eq!(
        properties(&node),
        ("c2:11:22:33:44:aa".into(), 1400, 2000, false, false)
    );
    assert_eq!(sysctl(&node, "net/ipv4/conf/eth0/arp_filter"), "1");
    assert_eq!(result["interfaces"][2]["mac"], "C2-11-22-33-44-AA");
    assert_eq!(result["interfaces"][2]["mtu"], 1400);
    assert_eq!(result["interfaces"][1], attached["interfaces"][1]);
    assert_eq!(result["ips"], attached["ips"]);
    node.ping(&netns, "10.90.0.1");

    bridge.run("CHECK", &part(0, &result)).silent();
    tuning
        .run("CHECK", &with(part(1, &result), mac.clone()))
        .silent();
    tuning.run("DEL", &with(part(1, &result), mac)).silent();
    assert_eq!(properties(&node), made);
    node.ping(&netns, "10.90.0.1");
    bridge.run("DEL", &part(0, &result)).silent();
    assert_no_backup();
    assert_eq!(node.links(), ["cni3"]);
}

#[test]
fn every_version_gets_its_own_result_form() {
    let node = Node::new();
    let call = container(&node);
    for version in [
        "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
    ] {
        let interface = json!({"name": "eth0", "sandbox": "/run/netns/c1"});
        let previous = match version {
            "0.1.0" | "0.2.0" => json!({"ip4": {"ip": "10.1.0.2/24"}}),
            "1.0.0" | "1.1.0" => json!({"interfaces": [interface],
                "ips": [{"address": "10.1.0.2/24", "interface": 0}]}),
            _ => json!({"interfaces": [interface],
                "ips": [{"version": "4", "address": "10.1.0.2/24", "interface": 0}]}),
        };
        let previous = with(previous, json!({"cniVersion": version}));
        let config = config(json!({
            "cniVersion": version, "prevResult": previous, "mac": "c2:11:22:33:44:55", "mtu": 1400,
        }));
        let result = call.run("ADD", &config).json();
        let mut expected = previous;
        if version >= "0.3.0" {
            expected["interfaces"][0]["mac"] = json!("c2:11:22:33:44:55");
        }
        if version >= "1.0.0" {
            expected["interfaces"][0]["mtu"] = json!(1400);
        } else {
            expected["dns"] = json!({});
        }
        assert_eq!(result, expected, "{version}");
        if version >= "0.4.0" {
            call.run("CHECK", &config).silent();
        }
        call.run("DEL", &config).silent();
        assert_no_backup();
    }
}

#[test]
fn sysctls_in_every_notation() {
    let node = Node::new();
    let netns = node.netns("c1");
    node.sh("ip link add host0 type veth peer name eth0.100 netns c1");
    let call = node.plugin("tuning").netns(&netns).ifname("eth0.100");
    let file = "net/ipv4/conf/eth0.100/arp_filter";
    for key in [
        "net.ipv4.conf.IFNAME.arp_filter",
        "net/ipv4/conf/IFNAME/arp_filter",
        "net/ipv4/conf/eth0.100/arp_filter",
        "net.ipv4.conf.eth0/100.arp_filter",
        "net.ipv4.conf.eth0.100.arp_filter",
        "net.ipv4.conf/IFNAME/arp_filter",
        "net/ipv4/conf.IFNAME.arp_filter",
        "/net/ipv4/conf/IFNAME/arp_filter",
    ] {
        node.sh(&format!(
            "ip netns exec c1 sh -c 'echo 0 > /proc/sys/{file}'"
        ));
        let config = config(json!({"sysctl": {key: "1"}}));
        call.run("ADD", &config).json();
        assert_eq!(sysctl(&node, file), "1", "{key}");
        call.run("CHECK", &config).silent();
    }
    // What the kernel shows in its own way, and what can only be written.
    let config = config(json!({"sysctl": {
        "net.ipv4.ping_group_range": "0 2147483647", "net.ipv4.route.flush": "1",
    }}));
    call.run("ADD", &config).json();
    assert_eq!(sysctl(&node, "net/ipv4/ping_group_range"), "0\t2147483647");
    call.run("CHECK", &config).silent();
}

#[test]
fn ways_out_of_the_containers_network_are_closed() {
    let node = Node::new();
    let call = container(&node);
    let outside = || fs::read_to_string("/proc/sys/kernel/domainname").unwrap();
    let before = (properties(&node), outside());
    // The kernel's own tree has no symlinks; one that somebody mounted is not followed.
    node.sh(
        "nsenter --net=/run/netns/c1 mount -t tmpfs tmpfs /proc/sys/net/unix && \
         nsenter --net=/run/netns/c1 ln -s /proc/sys/kernel /proc/sys/net/unix/link && \
         nsenter --net=/run/netns/c1 ln -s /proc/sys/kernel/domainname /proc/sys/net/unix/file",
    );
    for key in [
        "kernel.domainname",
        "kernel/domainname",
        "/proc/sys/kernel/domainname",
        "//net/ipv4/ip_forward",
        "net/../kernel/domainname",
        "net.//.kernel.domainname",
        "net/ipv4/../../kernel/domainname",
        "net/ipv4/conf/IFNAME/../../../../kernel/domainname",
        "net/./core/somaxconn",
        "net//core/somaxconn",
        "net.core.somaxconn.",
        "net",
        "",
        "net/unix/link/domainname",
        "net.unix.file",
        "net.ipv4.no_such_thing",
        "net.ipv4.conf",
    ] {
        let members = json!({"sysctl": {"net.core.netdev_max_backlog": "1"}, "mtu": 1400});
        let mut config = config(members);
        config["sysctl"] = json!({key: "evil"});
        let (code, message, details) = call.run("ADD", &config).error();
        assert_eq!(code, 7, "{key}: {message}; {details}");
        let whole = format!("{message}; {details}");
        assert!(whole.contains(&format!("sysctl {key}")), "{whole}");
        if key.contains("unix") {
            // In procfs as the plugin has it for itself there is nothing mounted.
            assert!(whole.contains("there is no sysctl"), "{whole}");
        }
        config["sysctl"] = json!({});
        config["args"] = json!({"cni": {"sysctl": {key: "evil"}}});
        assert_eq!(call.run("ADD", &config).error().0, 7, "args: {key}");
        assert_eq!((properties(&node), outside()), before, "{key}");
        assert_no_backup();
    }
    for value in ["1\n2", "1\n", "\0"] {
        let config = config(json!({"sysctl": {"net.core.somaxconn": value}}));
        let (code, message, _) = call.run("ADD", &config).error();
        assert_eq!(code, 7);
        assert!(message.contains("net.core.somaxconn"), "{message}");
    }
    // Where it is read-only, the plugin uses it as it is.
    node.sh("mount --rbind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys");
    for key in ["net/unix/link/domainname", "net.unix.file"] {
        let (code, _, details) = call
            .run("ADD", &config(json!({"sysctl": {key: "evil"}})))
            .error();
        assert_eq!(code, 7);
        assert!(details.contains("leads to /proc/sys/kernel/"), "{details}");
    }
    node.sh("nsenter --net=/run/netns/c1 umount -R /proc/sys");
}

#[test]
fn the_administrators_allowlist() {
    let node = Node::new();
    let call = container(&node);
    node.sh("mount -t tmpfs tmpfs /etc && mkdir -p /etc/cni/tuning");
    let tuned = config(json!({"sysctl": {"net.core.somaxconn": "77"}, "mtu": 1400}));
    let status = with(tuned.clone(), json!({"cniVersion": "1.1.0"}));
    let file = "/etc/cni/tuning/allowlist.conf";
    for (text, allowed) in [
        (None, true),
        (Some("^net\\.core\\.\n"), true),
        (Some("\n  other\n\n somax\n"), true),
        (Some("[a-z]+max[^0-9]{4}$"), true),
        (Some("^\\Qnet.core.somaxconn\\E$\n"), true),
        (Some("^\\Qnet.core\\E.(?P<name>[a-z]+)$\n"), true),
        (Some("(?i)^NET\\.CORE\\.\n"), true),
        (Some("^\\Qnet.core.*\\E$\n"), false),
        (Some("^somaxconn$\n"), false),
        (Some("# net.core.somaxconn is fine\n"), false),
        (Some(""), false),
        (Some(" \n\n"), false),
    ] {
        match text {
            Some(text) => fs::write(file, text).unwrap(),
            None => assert!(!Path::new(file).exists()),
        }
        let answer = call.run("ADD", &tuned);
        if allowed {
            answer.json();
            call.run("STATUS", &status).silent();
        } else {
            let (code, message, details) = answer.error();
            assert_eq!(code, 7, "{text:?}");
            assert!(
                message.starts_with("Sysctl net.core.somaxconn is not allowed."),
                "{message}"
            );
            assert!(details.contains(file), "{details}");
            assert_eq!(call.run("STATUS", &status).error().0, 50);
            assert_eq!(properties(&node).1, 1500);
            assert_no_backup();
        }
        // ADD only: what is there is checked and removed whatever the file says today.
        call.run("DEL", &tuned).silent();
    }
    call.run(
        "CHECK",
        &config(json!({"sysctl": {"net.core.somaxconn": "77"}})),
    )
    .silent();
    call.run("ADD", &config(json!({"mtu": 1400}))).json();
    call.run("DEL", &tuned).silent();
    // What lets through more than its author may think is told of, and is valid.
    fs::write(file, "^net\\.core\\.somaxconn$\nsomax\n").unwrap();
    let conf = node.dir.path().join("validated");
    fs::create_dir(&conf).unwrap();
    let list = json!({
        "cniVersion": "1.1.0", "name": "n",
        "plugins": [
            {"type": "loopback"},
            {"type": "tuning", "sysctl": {"net.core.somaxconn": "77"}},
        ],
    });
    fs::write(conf.join("n.conflist"), list.to_string()).unwrap();
    let told = node.cnitool(&conf, &["validate"]);
    assert!(
        told.ok && told.stdout.matches("\" matches anywhere").count() == 1,
        "{told:?}"
    );
    assert!(
        told.stdout.contains("warning: plugins[1].sysctl: "),
        "{told:?}"
    );
    fs::write(file, "net\nnet.(\n").unwrap();
    let (code, message, details) = call.run("ADD", &tuned).error();
    assert_eq!(code, 7);
    assert_eq!(
        message,
        format!("{file}:2: \"net.(\" is not a regular expression")
    );
    assert!(!details.is_empty());
}

#[test]
fn check_tells_expected_and_found() {
    let node = Node::new();
    let call = container(&node);
    let tuned = config(everything());
    call.run("ADD", &tuned).json();
    for (what, undo, message) in [
        (
            "ip netns exec c1 sh -c 'echo 0 > /proc/sys/net/ipv4/conf/eth0/arp_filter'",
            "ip netns exec c1 sh -c 'echo 1 > /proc/sys/net/ipv4/conf/eth0/arp_filter'",
            "sysctl net.ipv4.conf.IFNAME.arp_filter: expected \"1\", found \"0\"",
        ),
        (
            "ip -n c1 link set eth0 address c2:11:22:33:44:ab",
            "ip -n c1 link set eth0 address c2:11:22:33:44:aa",
            "interface eth0: expected mac c2:11:22:33:44:aa, found mac c2:11:22:33:44:ab",
        ),
        (
            "ip -n c1 link set eth0 promisc off",
            "ip -n c1 link set eth0 promisc on",
            "interface eth0: expected promisc on, found promisc off",
        ),
        (
            "ip -n c1 link set eth0 mtu 1401",
            "ip -n c1 link set eth0 mtu 1400",
            "interface eth0: expected mtu 1400, found mtu 1401",
        ),
        (
            "ip -n c1 link set eth0 allmulticast off",
            "ip -n c1 link set eth0 allmulticast on",
            "interface eth0: expected allmulti on, found allmulti off",
        ),
        (
            "ip -n c1 link set eth0 txqlen 5",
            "ip -n c1 link set eth0 txqlen 500",
            "interface eth0: expected txQLen 500, found txQLen 5",
        ),
    ] {
        node.sh(what);
        assert_eq!(call.run("CHECK", &tuned).error().1, message);
        node.sh(undo);
        call.run("CHECK", &tuned).silent();
    }
    node.sh("ip -n c1 link set eth0 mtu 1401 txqlen 5");
    let (_, message, details) = call.run("CHECK", &tuned).error();
    assert!(message.contains("mtu 1401") && details.contains("txQLen 5"));
    node.sh("ip -n c1 link del eth0");
    let (_, _, details) = call.run("CHECK", &tuned).error();
    assert!(
        details.contains("interface eth0: expected a link, found none"),
        "{details}"
    );
    let gone = config(json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}));
    assert_eq!(
        call.run("CHECK", &gone).error().1,
        "sysctl net.ipv4.conf.IFNAME.arp_filter: expected \"1\", found no such sysctl"
    );
}

#[test]
fn del_succeeds_whatever_is_gone() {
    let node = Node::new();
    let call = container(&node);
    let tuned = config(everything());
    for (what, command) in [
        ("the interface", "ip -n c1 link del eth0"),
        ("the backup", "rm /run/cni/tuning/c1_eth0.json"),
        ("the directory", "rm -r /run/cni"),
        ("a directory that is none", "rm -r /run/cni && : > /run/cni"),
        ("the namespace, its file left", "umount /run/netns/c1"),
        ("the namespace and its path", "ip netns del c1"),
    ] {
        call.run("ADD", &tuned).json();
        node.sh(command);
        let output = call.run("DEL", &tuned);
        assert!(output.ok && output.stdout.is_empty(), "{what}: {output:?}");
        call.run("DEL", &tuned).silent();
        assert_no_backup();
        node.sh("test -d /run/cni || rm -f /run/cni; ip link del host0 2>/dev/null || true");
        if !node.succeeds("ip -n c1 link 2>/dev/null") {
            node.sh("rm -f /run/netns/c1");
            node.netns("c1");
        }
        add_link(&node);
    }
    // No namespace told, no prevResult, nothing right in the configuration.
    call.run("ADD", &tuned).json();
    let broken = json!({"cniVersion": "1.0.0", "name": "net1", "type": "tuning", "mtu": "x",
                        "sysctl": {"kernel.x": 1}, "mac": "zz"});
    node.plugin("tuning").run("DEL", &broken).silent();
    assert_no_backup();
    // An id that no file can be named after.
    call.clone()
        .id(&"c".repeat(300))
        .run("DEL", &tuned)
        .silent();
}

#[test]
fn a_damaged_backup_is_removed_and_nothing_else() {
    let node = Node::new();
    let call = container(&node);
    let tuned = config(everything());
    call.run("ADD", &tuned).json();
    let whole = fs::read(BACKUP).unwrap();
    let set = properties(&node);
    for damaged in [
        &[][..],
        b"{",
        &whole[..whole.len() - 1],
        b"\xff\xfe",
        b"{\"mtu\": {}}",
    ] {
        fs::write(BACKUP, damaged).unwrap();
        let output = call.run("DEL", &tuned);
        output.silent();
        assert!(output.stderr.contains("c1_eth0.json"), "{output:?}");
        assert_eq!(properties(&node), set);
        assert_no_backup();
        // ADD writes a whole one over it.
        fs::write(BACKUP, damaged).unwrap();
        call.run("ADD", &tuned).json();
        assert!(
            fs::read_to_string(BACKUP)
                .unwrap()
                .contains("\"mtu\": 1400")
        );
        call.run("CHECK", &tuned).silent();
    }
    // One that asks for what the kernel refuses restores the rest.
    fs::write(BACKUP, "{\"mtu\": 9999999, \"txQLen\": 12}").unwrap();
    let output = call.run("DEL", &tuned);
    output.silent();
    assert!(
        output.stderr.contains("set mtu 9999999 of eth0"),
        "{output:?}"
    );
    assert_eq!(properties(&node), (set.0, 1400, 12, true, true));
    assert_no_backup();
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    let node = Node::new();
    let call = container(&node);
    let before = eth0(&node);
    let somaxconn = sysctl(&node, "net/core/somaxconn");
    let sysctls = json!({"net.core.somaxconn": "77", "net.ipv4.conf.IFNAME.arp_filter": "x"});
    for (change, code, words) in [
        (
            json!({"sysctl": sysctls}),
            5,
            [
                "net.ipv4.conf.IFNAME.arp_filter",
                "\"x\"",
                "Invalid argument",
            ],
        ),
        (
            json!({"mtu": 70000}),
            7,
            ["mtu: 70000", "eth0", "68 to 65535"],
        ),
        (json!({"mtu": 67}), 7, ["mtu: 67", "eth0", "68 to 65535"]),
        (
            json!({"mac": "01:00:00:00:00:01"}),
            7,
            ["mac", "01:00:00:00:00:01", ""],
        ),
        (
            json!({"prevResult": null}),
            7,
            ["Required prevResult missing", "", ""],
        ),
        (json!({"mtu": "1400"}), 6, ["mtu", "1400", ""]),
        (
            json!({"dataDir": "/proc/nowhere"}),
            5,
            ["/proc/nowhere", "", ""],
        ),
    ] {
        let config = with(config(everything()), change.clone());
        let (found, message, details) = call.run("ADD", &config).error();
        assert_eq!(found, code, "{change}: {message}; {details}");
        for word in words {
            assert!(
                message.contains(word) || details.contains(word),
                "{word}: {message}; {details}"
            );
        }
        assert_eq!(eth0(&node), before, "{change}");
        assert_eq!(sysctl(&node, "net/core/somaxconn"), somaxconn, "{change}");
        assert_eq!(sysctl(&node, "net/ipv4/conf/eth0/arp_filter"), "0");
        assert_no_backup();
    }
    let (_, message, _) = call
        .clone()
        .ifname("eth7")
        .run("ADD", &config(json!({"mtu": 1400})))
        .error();
    assert_eq!(message, "failed to get \"eth7\": Link not found");
    // A result that nobody receives.
    let command = format!(
        "printf '%s' '{}' | CNI_COMMAND=ADD CNI_CONTAINERID=c1 CNI_NETNS=/run/netns/c1 \
         CNI_IFNAME=eth0 CNI_PATH=/ {} >/dev/full",
        config(everything()),
        node.bin.join("tuning").display()
    );
    assert!(!node.succeeds(&command));
    assert_eq!(eth0(&node), before);
    assert_eq!(sysctl(&node, "net/core/somaxconn"), somaxconn);
    assert_no_backup();
}

#[test]
fn two_tunings_of_one_interface_and_a_failed_one() {
    let node = Node::new();
    let call = container(&node);
    let before = eth0(&node);
    let first = config(json!({"mtu": 1400}));
    let second = config(json!({"mtu": 1300, "txQLen": 5}));
    call.run("ADD", &first).json();
    let kept = fs::read(BACKUP).unwrap();
    // One that fails takes nothing of the first away.
    call.run("ADD", &config(json!({"txQLen": 5, "mtu": 70000})))
        .error();
    assert_eq!(fs::read(BACKUP).unwrap(), kept);
    assert_eq!(properties(&node).1, 1400);
    call.run("ADD", &second).json();
    assert_eq!(properties(&node).1, 1300);
    call.run("DEL", &second).silent();
    call.run("DEL", &first).silent();
    assert_eq!(eth0(&node), before);
    assert_no_backup();
}

#[test]
fn a_link_is_given_nothing_of_the_one_before_it() {
    let node = Node::new();
    let call = container(&node);
    let mac = config(json!({"mac": "c2:11:22:33:44:aa"}));
    let anew = || {
        node.sh("ip link del host0; ip netns del c1; ip netns add c1");
        add_link(&node);
        eth0(&node)
    };
    call.run("ADD", &mac).json();
    // No DEL: the file stays, and the namespace's number may be the same as before.
    let before = anew();
    call.run("ADD", &mac).json();
    call.run("DEL", &mac).silent();
    assert_eq!(eth0(&node), before);
    assert_no_backup();

    call.run("ADD", &mac).json();
    let kept: Value = serde_json::from_slice(&fs::read(BACKUP).unwrap()).unwrap();
    let before = anew();
    assert_ne!(kept["mac"], before["address"]);
    // This time only the MTU: the address is not to come from the file, nor with DEL.
    let mtu = config(json!({"mtu": 1400}));
    call.run("ADD", &mtu).json();
    call.run("DEL", &mtu).silent();
    assert_eq!(eth0(&node), before);
    fs::write(BACKUP, kept.to_string()).unwrap();
    call.run("DEL", &mac).silent();
    assert_eq!(eth0(&node), before);
    assert_no_backup();
}

#[test]
fn attachments_are_kept_apart() {
    let node = Node::new();
    let call = container(&node);
    let tuned = config(json!({"mtu": 1400, "dataDir": "/run/elsewhere/deep"}));
    node.sh("ip link add host1 type veth peer name eth1 netns c1");
    let other = call.clone().ifname("eth1");
    call.run("ADD", &tuned).json();
    other.run("ADD", &tuned).json();
    let files = || node.sh("ls /run/elsewhere/deep");
    assert_eq!(files(), "c1_eth0.json\nc1_eth1.json\n");
    // Nor does the GC of another network touch what stands in the same directory.
    let gc = with(tuned.clone(), json!({"cniVersion": "1.1.0"}));
    assert_eq!(call.run("GC", &gc).error().0, 7);
    let other_network = json!({"name": "net2", "cni.dev/valid-attachments": []});
    call.run("GC", &with(gc, other_network)).silent();
    assert_eq!(files(), "c1_eth0.json\nc1_eth1.json\n");
    call.run("DEL", &tuned).silent();
    assert_eq!(files(), "c1_eth1.json\n");
    assert_eq!(node.ip("-n c1 link show dev eth1")[0]["mtu"], 1400);
    other.run("DEL", &tuned).silent();
    assert_eq!(files(), "");
    assert_eq!(node.ip("-n c1 link show dev eth1")[0]["mtu"], 1500);
    assert!(!Path::new(BACKUPS).exists());
}

#[test]
fn who_decides_on_the_mac() {
    let node = Node::new();
    let call = container(&node);
    let mac = |last: &str| format!("c2:11:22:33:44:0{last}");
    let mut tuned = config(json!({"mac": mac("1")}));
    let set = |call: &Call, config: &Value| {
        call.run("ADD", config).json();
        call.run("CHECK", config).silent();
        let set = properties(&node).0;
        call.run("DEL", config).silent();
        set
    };
    assert_eq!(set(&call, &tuned), mac("1"));
    let args = call
        .clone()
        .env("CNI_ARGS", &format!("IgnoreUnknown=1;X=Y;MAC={}", mac("2")));
    assert_eq!(set(&args, &tuned), mac("2"));
    tuned["runtimeConfig"] = json!({"mac": mac("3")});
    assert_eq!(set(&args, &tuned), mac("3"));
    tuned["args"] = json!({"cni": {"mac": mac("4")}});
    assert_eq!(set(&args, &tuned), mac("4"));
}

#[test]
fn our_own_namespace_is_never_touched() {
    let node = Node::new();
    let own = node.own_netns();
    let call = node.plugin("tuning").netns(&own).ifname("lo");
    let tuned = config(json!({"mtu": 1400, "sysctl": {"net.core.somaxconn": "77"}}));
    let before = node.ip("link show dev lo");
    assert_eq!(call.run("ADD", &tuned).error().0, 8);
    assert_eq!(call.run("CHECK", &tuned).error().0, 8);
    // A backup of the container that had this namespace's path before.
    node.sh("mkdir -p /run/cni/tuning && echo '{\"mtu\":1234}' > /run/cni/tuning/c1_lo.json");
    call.run("DEL", &tuned).silent();
    assert_no_backup();
    assert_eq!(node.ip("link show dev lo"), before);
    let somaxconn = node.sh("cat /proc/sys/net/core/somaxconn");
    assert_ne!(somaxconn, "77\n");
    // Unless that is what somebody wants.
    let call = call.env("CNI_NETNS_OVERRIDE", "1");
    call.run("ADD", &tuned).json();
    assert_eq!(node.ip("link show dev lo")[0]["mtu"], 1400);
    call.run("DEL", &tuned).silent();
    assert_eq!(node.ip("link show dev lo"), before);
}

#[test]
fn a_key_that_stands_twice_is_refused() {
    let node = Node::new();
    let call = container(&node);
    let text = config(json!({"sysctl": {"net.core.somaxconn": "77"}})).to_string();
    let twice = text.replace(
        r#""net.core.somaxconn":"77""#,
        r#""net.core.somaxconn":"77","net.core.somaxconn":"78""#,
    );
    let (code, _, details) = call
        .clone()
        .env("CNI_COMMAND", "ADD")
        .run_text(&twice)
        .error();
    assert_eq!(
        (code, details.as_str()),
        (7, "\"sysctl\" has net.core.somaxconn more than once")
    );
    let other = config(json!({"sysctl": {
        "net.core.somaxconn": "77", "net/core/somaxconn": "78",
    }}));
    let (code, message, details) = call.run("ADD", &other).error();
    assert_eq!(code, 7);
    assert_eq!(message, "sysctl net/core/somaxconn is set twice");
    assert!(details.contains("77") && details.contains("78"));
    assert_ne!(sysctl(&node, "net/core/somaxconn"), "77");
}

#[test]
fn what_one_implementation_added_the_other_removes() {
    let node = Node::new();
    let ours = container(&node);
    let theirs = ours.clone().executable(Path::new(REFERENCE).join("tuning"));
    let before = eth0(&node);
    // Without the queue length, which Debian's version does not know, and with the
    // address in the one notation in which it finds it again.
    let mut members = everything();
    let members = members.as_object_mut().unwrap();
    members.remove("txQLen");
    members["mac"] = json!("c2:11:22:33:44:aa");
    members["sysctl"] = json!({"net.core.somaxconn": "77"});
    let tuned = config(json!(members));
    let mut backups = Vec::new();
    for (adds, dels) in [(&ours, &theirs), (&theirs, &ours)] {
        let result = adds.run("ADD", &tuned).json();
        assert_eq!(result["interfaces"][1]["mac"], "c2:11:22:33:44:aa");
        assert_eq!(properties(&node).1, 1400);
        backups.push(fs::read_to_string(BACKUP).unwrap());
        ours.run("CHECK", &tuned).silent();
        theirs.run("CHECK", &tuned).silent();
        dels.run("DEL", &tuned).silent();
        assert_eq!(eth0(&node), before);
        assert_no_backup();
    }
    // Ours also tells whose it is, which the reference passes over.
    let properties = backups[1].strip_prefix("{\n").unwrap();
    let properties = properties.replace("\n}", ",\n");
    assert_eq!(backups[0], backup_of(&before, &properties));
}

#[test]
fn one_document_on_stdout_whatever_comes_in() {
    let node = Node::new();
    let call = container(&node);
    let whole = config(everything()).to_string();
    let big = format!("{{\"name\":\"{}\"", "x".repeat(10_000_000));
    for stdin in ["", "{", "[]", &whole[..whole.len() - 1], big.as_str()] {
        for command in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            let answer = call.clone().env("CNI_COMMAND", command).run_text(stdin);
            assert_eq!(answer.error().0, 6, "{command}");
        }
    }
    let (code, message, _) = call
        .clone()
        .netns("/run/nowhere")
        .run("ADD", &config(everything()))
        .error();
    assert_eq!(code, 4);
    assert!(message.contains("/run/nowhere"), "{message}");
    assert_no_backup();
}
