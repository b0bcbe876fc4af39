//! `ipam` under its name `host-local`, called as a runtime calls it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::missing_docs_in_private_items,
    clippy::needless_pass_by_value,
    reason = "a test may fail where it stands, and must run programs"
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{Call, Node, Output, REFERENCE, with};
use serde_json::{Value, json};

const DATA_DIR: &str = "/var/lib/cni/networks";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A configuration of network `net` with this `ipam` object.
fn config(ipam: Value) -> Value {
    json!({"cniVersion": "1.1.0", "name": "net", "type": "host-local", "ipam": ipam})
}

fn subnet(subnet: &str) -> Value {
    config(json!({"type": "host-local", "subnet": subnet}))
}

/// The same at a version that the reference plugin speaks.
fn older(mut config: Value) -> Value {
    config["cniVersion"] = "1.0.0".into();
    config
}

fn call(node: &Node, id: &str) -> Call {
    node.plugin("host-local").netns("/run/netns/none").id(id)
}

fn reference(node: &Node, id: &str) -> Call {
    call(node, id).executable(format!("{REFERENCE}/host-local"))
}

fn add(node: &Node, id: &str, config: &Value) -> Output {
    call(node, id).run("ADD", config)
}

/// The addresses of a result, in order.
#[track_caller]
fn addresses(output: &Output) -> Vec<String> {
    output.json()["ips"]
        .as_array()
        .unwrap_or_else(|| panic!("{output:?}"))
        .iter()
        .map(|ip| ip["address"].as_str().unwrap().to_owned())
        .collect()
}

fn dir() -> PathBuf {
    Path::new(DATA_DIR).join("net")
}

/// The names of the files in a directory, sorted; none where it does not exist.
fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The addresses recorded for network `net`.
fn leases() -> Vec<String> {
    let is_lease = |name: &String| name.parse::<std::net::IpAddr>().is_ok();
    names(&dir()).into_iter().filter(is_lease).collect()
}

/// The index files of attachments of network `net`.
fn index_files() -> Vec<PathBuf> {
    let index = Path::new(DATA_DIR).join(".cnibox/net");
    names(&index)
        .into_iter()
        .filter(|name| name != "complete")
        .map(|name| index.join(name))
        .collect()
}

/// Makes the node believe that it has been started anew.
fn reboot(node: &Node, boot: &str) {
    let file = node.dir.path().join(boot);
    fs::write(&file, format!("{boot}\n")).unwrap();
    node.sh(&format!("mount --bind {} {BOOT_ID}", file.display()));
}

/// What only we need goes when nobody has an address any more; what the reference keeps stays.
#[test]
fn the_index_goes_with_the_last_lease() {
    let node = Node::new();
    let net = |name: &str| {
        json!({"cniVersion": "1.1.0", "name": name, "type": "bridge",
               "ipam": {"type": "host-local", "subnet": "10.0.0.0/24"}})
    };
    let call = |id: &str, command: &str, name: &str| {
        let call = node.plugin("host-local").id(id).netns("/run/netns/none");
        call.run(command, &net(name))
    };
    let index = Path::new(DATA_DIR).join(".cnibox");
    call("c1", "ADD", "net").json();
    call("c2", "ADD", "net").json();
    call("c1", "ADD", "other").json();
    assert_eq!(names(&index), ["net", "other"]);
    call("c1", "DEL", "net").silent();
    assert_eq!(index_files().len(), 1);
    call("c2", "DEL", "net").silent();
    assert_eq!(names(&index), ["other"]);
    assert_eq!(names(&dir()), ["last_reserved_ip.0", "lock"]);
    // Once more makes nothing again.
    call("c2", "DEL", "net").silent();
    assert_eq!(names(&index), ["other"]);
    // GC is the last to remove one here.
    let gc = with(net("other"), json!({"cni.dev/valid-attachments": []}));
    node.plugin("host-local").run("GC", &gc);
    assert!(!index.exists());
    assert_eq!(leases(), Vec::<String>::new());
    // Together again.
    call("c1", "ADD", "net").json();
    assert_eq!((leases().len(), index_files().len()), (1, 1));
}

#[test]
fn first_addresses_of_many_configurations() {
    let node = Node::new();
    for (index, (ipam, more, expected)) in [
        (
            json!({"subnet": "10.0.0.0/24"}),
            json!({}),
            vec![("10.0.0.2/24", "10.0.0.1")],
        ),
        (
            json!({"subnet": "10.0.0.0/30"}),
            json!({}),
            vec![("10.0.0.2/30", "10.0.0.1")],
        ),
        (
            json!({"subnet": "fd00::/126"}),
            json!({}),
            vec![("fd00::2/126", "fd00::1")],
        ),
        (
            json!({"subnet": "10.0.0.0/24", "gateway": "192.168.1.1"}),
            json!({}),
            vec![("10.0.0.1/24", "192.168.1.1")],
        ),
        (
            json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.0"}),
            json!({}),
            vec![("10.0.0.0/24", "10.0.0.1")],
        ),
        (
            json!({"subnet": "10.0.0.0/24"}),
            json!({"runtimeConfig": {"ips": ["10.0.0.7/8"]}}),
            vec![("10.0.0.7/24", "10.0.0.1")],
        ),
        (
            json!({"subnet": "10.0.0.0/24"}),
            json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.9.0.0/24"}]]}}),
            vec![("10.9.0.2/24", "10.9.0.1"), ("10.0.0.2/24", "10.0.0.1")],
        ),
        (
            json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]]}),
            json!({"args": {"cni": {"ips": ["fd00::9"]}}}),
            vec![("10.0.0.2/24", "10.0.0.1"), ("fd00::9/64", "fd00::1")],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = config(ipam);
        config["name"] = format!("net{index}").into();
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        let result = add(&node, "abc", &config).json();
        let ips: Vec<_> = result["ips"]
            .as_array()
            .unwrap()
            .iter()
            .map(|ip| {
                (
                    ip["address"].as_str().unwrap(),
                    ip["gateway"].as_str().unwrap(),
                )
            })
            .collect();
        assert_eq!(ips, expected, "{config}");
    }
}

/// The result of one ADD as 0.1.0 and 0.2.0 write it.
const ONE_PER_FAMILY: &str = r#"{
    "cniVersion": "VERSION",
    "ip4": {
        "ip": "10.0.0.2/24",
        "gateway": "10.0.0.1",
        "routes": [
            {
                "dst": "0.0.0.0/0"
            }
        ]
    },
    "ip6": {
        "ip": "fd00::2/64",
        "gateway": "fd00::1",
        "routes": [
            {
                "dst": "fd01::/16",
                "gw": "fd00::1"
            }
        ]
    },
    "dns": {}
}"#;

/// The same from 0.3.0 to 0.4.0.
const LIST: &str = r#"{
    "cniVersion": "VERSION",
    "ips": [
        {
            "version": "4",
            "address": "10.0.0.2/24",
            "gateway": "10.0.0.1"
        },
        {
            "version": "6",
            "address": "fd00::2/64",
            "gateway": "fd00::1"
        }
    ],
    "routes": [
        {
            "dst": "0.0.0.0/0"
        },
        {
            "dst": "fd01::/16",
            "gw": "fd00::1",
            "mtu": 1400,
            "advmss": 1300,
            "priority": 5,
            "table": 7,
            "scope": 0
        }
    ],
    "dns": {}
}"#;

/// The same since 1.0.0.
const CURRENT: &str = r#"{
    "cniVersion": "VERSION",
    "ips": [
        {
            "address": "10.0.0.2/24",
            "gateway": "10.0.0.1"
        },
        {
            "address": "fd00::2/64",
            "gateway": "fd00::1"
        }
    ],
    "routes": [
        {
            "dst": "0.0.0.0/0"
        },
        {
            "advmss": 1300,
            "dst": "fd01::/16",
            "gw": "fd00::1",
            "mtu": 1400,
            "priority": 5,
            "scope": 0,
            "table": 7
        }
    ]
}"#;

#[test]
fn every_version_has_its_form() {
    let node = Node::new();
    let ipam = json!({
        "ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd01::/16", "gw": "fd00::1", "mtu": 1400,
            "advmss": 1300, "priority": 5, "table": 7, "scope": 0}],
    });
    for (version, form) in [
        ("0.1.0", ONE_PER_FAMILY),
        ("0.2.0", ONE_PER_FAMILY),
        ("0.3.0", LIST),
        ("0.3.1", LIST),
        ("0.4.0", LIST),
        ("1.0.0", CURRENT),
        ("1.1.0", CURRENT),
    ] {
        let mut config = config(ipam.clone());
        config["cniVersion"] = version.into();
        config["name"] = format!("net{version}").into();
        let output = add(&node, "abc", &config);
        assert_eq!(
            output.stdout,
            form.replace("VERSION", version),
            "{output:?}"
        );
        call(&node, "abc").run("DEL", &config).silent();
        call(&node, "abc").run("DEL", &config).silent();
    }
}

#[test]
fn resolv_conf_becomes_dns() {
    let node = Node::new();
    let file = node.dir.path().join("resolv.conf");
    fs::write(&file, "nameserver 10.0.0.53\nsearch a b\n").unwrap();
    let with = |path: &Path| config(json!({"subnet": "10.0.0.0/24", "resolvConf": path}));
    assert_eq!(
        add(&node, "abc", &with(&file)).json()["dns"],
        json!({"nameservers": ["10.0.0.53"], "search": ["a", "b"]})
    );
    let missing = with(Path::new("/nowhere"));
    let (code, msg, details) = add(&node, "def", &missing).error();
    assert_eq!(
        (code, msg.as_str()),
        (5, "open /nowhere: no such file or directory")
    );
    assert_eq!(details, "ipam.resolvConf cannot be read");
    assert_eq!(leases(), ["10.0.0.2"]);
    assert_eq!(call(&node, "x").run("STATUS", &missing).error().0, 50);
}

#[test]
fn files_are_the_references_byte_for_byte() {
    let node = Node::new();
    let config = older(config(
        json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]]}),
    ));
    let contents = || {
        let read = |name: String| (fs::read_to_string(dir().join(&name)).unwrap(), name);
        names(&dir()).into_iter().map(read).collect::<Vec<_>>()
    };
    addresses(&reference(&node, "abc").run("ADD", &config));
    let theirs = contents();
    fs::remove_dir_all(DATA_DIR).unwrap();
    addresses(&add(&node, "abc", &config));
    assert_eq!(contents(), theirs);
    assert_eq!(theirs[0], ("abc\r\neth0".to_owned(), "10.0.0.2".to_owned()));
    // The reference plugin of today; the one installed here may be older and laxer.
    for (name, mode) in [
        (".", 0o755),
        ("10.0.0.2", 0o600),
        ("fd00::2", 0o600),
        ("last_reserved_ip.0", 0o600),
        ("last_reserved_ip.1", 0o600),
        ("lock", 0o750),
    ] {
        let meta = fs::metadata(dir().join(name)).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, mode, "{name}");
    }
}

#[test]
fn each_serves_what_the_other_made() {
    let node = Node::new();
    let config = older(subnet("10.0.0.0/24"));
    for _ in 0..2 {
        addresses(&add(&node, "ours", &config));
        addresses(&reference(&node, "theirs").run("ADD", &config));
        reference(&node, "ours").run("CHECK", &config).silent();
        call(&node, "theirs").run("CHECK", &config).silent();
        for (other, id) in [
            (reference(&node, "ours"), "ours"),
            (call(&node, "theirs"), "theirs"),
        ] {
            let (code, msg, _) = other.run("ADD", &config).error();
            assert_eq!(code, 999, "{id}");
            assert!(
                msg.contains(&format!("has been allocated to {id}, duplicate")),
                "{msg}"
            );
        }
        reference(&node, "ours").run("DEL", &config).silent();
        call(&node, "theirs").run("DEL", &config).silent();
        assert_eq!(leases(), [""; 0]);
        assert!(!call(&node, "ours").run("CHECK", &config).ok);
    }
    call(&node, "ours").run("DEL", &config).silent();
    assert!(index_files().is_empty());
}

#[test]
fn addresses_go_round() {
    let node = Node::new();
    let config = subnet("10.0.0.0/29");
    let del = |id: &str| call(&node, id).run("DEL", &config).silent();
    for last in 2..=6 {
        let id = format!("c{last}");
        assert_eq!(
            addresses(&add(&node, &id, &config)),
            [format!("10.0.0.{last}/29")]
        );
    }
    assert!(!add(&node, "c7", &config).ok);
    del("c3");
    assert_eq!(addresses(&add(&node, "c8", &config)), ["10.0.0.3/29"]);
    del("c2");
    del("c4");
    assert_eq!(addresses(&add(&node, "c9", &config)), ["10.0.0.4/29"]);
    assert_eq!(addresses(&add(&node, "c10", &config)), ["10.0.0.2/29"]);
}

#[test]
fn wrong_configurations_are_code_7_and_make_nothing() {
    let node = Node::new();
    for (ipam, msg) in [
        (json!({}), "ipam: there are no ranges: set ipam.ranges"),
        (
            json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.255"}),
            "ipam.rangeStart: 10.0.0.255 is after 10.0.0.254",
        ),
        (
            json!({"ranges": [[{"subnet": "10.0.0.5/24"}]]}),
            "ipam.ranges[0][0].subnet: 10.0.0.5/24",
        ),
        (
            json!({"subnet": "10.0.0.0/31"}),
            "ipam.subnet: 10.0.0.0/31 is too small",
        ),
        (
            json!({"subnet": "10.0.0.0/24", "gateway": "fd00::1"}),
            "ipam.gateway: fd00::1",
        ),
        (
            json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.0/16"}]]}),
            "ipam.ranges[0][1]: 10.0.0.1-10.0.255.254 overlaps",
        ),
        (
            json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/24"}]]}),
            "ipam.ranges[1]: 10.0.0.1-10.0.0.254 overlaps",
        ),
        (
            json!({"subnet": "10.0.0.0/24", "routes": [{"gw": "10.0.0.1"}]}),
            "ipam.routes[0].dst: is missing",
        ),
    ] {
        let no_ranges = ipam == json!({});
        let config = config(ipam);
        for command in ["ADD", "CHECK", "STATUS"] {
            if no_ranges && command == "STATUS" {
                continue;
            }
            let (code, sentence, details) = call(&node, "abc").run(command, &config).error();
            assert_eq!(code, 7, "{command} {config}: {sentence}");
            // Where the reference has a sentence, ours is in the details.
            let ours = if details.is_empty() {
                sentence
            } else {
                details
            };
            assert!(ours.starts_with(msg), "{ours}");
        }
        for command in ["DEL", "DEL"] {
            call(&node, "abc").run(command, &config).silent();
        }
    }
    assert!(!Path::new(DATA_DIR).exists());
}

#[test]
fn a_gateway_out_of_reach_is_pointed_out() {
    let node = Node::new();
    for (subnet, gateway, warned) in [
        ("10.0.0.0/24", "10.1.0.1", true),
        ("10.0.0.0/24", "10.0.0.9", false),
        ("fd00::/64", "fe80::1", false),
    ] {
        let config = config(json!({"subnet": subnet, "gateway": gateway}));
        let output = add(&node, "abc", &config);
        addresses(&output);
        assert_eq!(output.stderr.contains(gateway), warned, "{output:?}");
        call(&node, "abc").run("DEL", &config).silent();
    }
}

#[test]
fn nothing_to_do_makes_nothing() {
    let node = Node::new();
    let mut config = subnet("10.0.0.0/24");
    config["cni.dev/valid-attachments"] = json!([]);
    for command in ["DEL", "GC", "STATUS"] {
        call(&node, "abc").run(command, &config).silent();
    }
    let (code, msg, details) = call(&node, "abc").run("CHECK", &config).error();
    assert_eq!(code, 999);
    assert_eq!(
        msg,
        "host-local: Failed to find address added by container abc"
    );
    assert!(
        details.contains(
            "no address is recorded for eth0 of container abc in /var/lib/cni/networks/net"
        ),
        "{details}"
    );
    assert!(!Path::new("/var/lib/cni").exists());
}

#[test]
fn a_release_needs_no_valid_ranges() {
    let node = Node::new();
    let good = subnet("10.0.0.0/24");
    for ipam in [
        json!({"subnet": "10.0.0.0/33"}),
        json!({"ranges": 5, "routes": "x", "subnet": {}}),
        json!({"subnet": "10.7.0.0/16"}),
        json!({}),
    ] {
        addresses(&add(&node, "abc", &good));
        call(&node, "abc")
            .env("CNI_ARGS", "X=1")
            .run("DEL", &config(ipam))
            .silent();
        assert_eq!(leases(), [""; 0]);
    }
}

#[test]
fn only_the_attachments_own_addresses_are_released() {
    let node = Node::new();
    let config = subnet("10.0.0.0/24");
    addresses(&add(&node, "abc", &config));
    addresses(&call(&node, "abc").ifname("eth1").run("ADD", &config));
    addresses(&add(&node, "ab", &config));
    fs::write(dir().join("10.0.0.9"), "abc").unwrap();
    let del = |ifname: &str| {
        call(&node, "abc")
            .ifname(ifname)
            .run("DEL", &config)
            .silent();
    };
    del("eth0");
    assert_eq!(leases(), ["10.0.0.3", "10.0.0.4", "10.0.0.9"]);
    del("eth1");
    assert_eq!(leases(), ["10.0.0.4", "10.0.0.9"]);
    // A lease without interface is the container's: now nothing else is.
    call(&node, "abc").run("CHECK", &config).silent();
    let (_, msg, _) = add(&node, "abc", &config).error();
    assert!(msg.contains("10.0.0.9 has been allocated to abc"), "{msg}");
    del("eth0");
    assert_eq!(leases(), ["10.0.0.4"]);
}

#[test]
fn exhaustion_says_what_to_do() {
    let node = Node::new();
    let config = subnet("10.0.0.0/30");
    call(&node, "x").run("STATUS", &config).silent();
    addresses(&add(&node, "abc", &config));
    let (code, msg, details) = add(&node, "def", &config).error();
    assert_eq!(code, 999);
    assert_eq!(
        msg,
        "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.2"
    );
    assert_eq!(
        details,
        "network net, range set 10.0.0.1-10.0.0.2: addresses in use: 1, \
         0 of them known to be from an earlier boot of the node; \
         recorded in /var/lib/cni/networks/net; \
         remove containers, have the runtime run GC for those that are gone, or widen the range"
    );
    // It passes as soon as a container ends: the node stays ready, unless somebody wants
    // otherwise.
    call(&node, "x").run("STATUS", &config).silent();
    let (code, msg, details) = call(&node, "x").run("STATUS", &strict(&config)).error();
    assert_eq!(code, 50);
    assert_eq!(
        msg,
        "no IP addresses available in range set: 10.0.0.1-10.0.0.2"
    );
    assert!(
        details.contains("network net") && details.contains(DATA_DIR),
        "{details}"
    );

    let only_the_gateway = json!({"subnet": "10.0.0.0/24", "gateway": "10.0.0.2",
        "rangeStart": "10.0.0.2", "rangeEnd": "10.0.0.2"});
    let mut config = self::config(only_the_gateway);
    config["name"] = "other".into();
    let (_, msg, _) = add(&node, "abc", &config).error();
    assert_eq!(
        msg,
        "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.2-10.0.0.2"
    );
    // No container that ends can free one.
    let (code, _, details) = call(&node, "x").run("STATUS", &config).error();
    assert!(
        code == 50 && details.contains("is a gateway's"),
        "{details}"
    );
}

/// The same configuration with a STATUS that fails while no address is free.
fn strict(config: &Value) -> Value {
    let mut config = config.clone();
    config["ipam"]["statusFailsWhenExhausted"] = true.into();
    config
}

#[test]
fn a_second_add_is_refused_unless_the_node_was_restarted() {
    let node = Node::new();
    let config = subnet("10.0.0.0/24");
    addresses(&add(&node, "abc", &config));
    let boot = fs::read_to_string(BOOT_ID).unwrap();
    let (code, msg, details) = add(&node, "abc", &config).error();
    assert_eq!(code, 999);
    assert_eq!(
        msg,
        "failed to allocate for range 0: 10.0.0.2 has been allocated to abc, duplicate allocation is not allowed"
    );
    for word in [
        "/var/lib/cni/networks/net/10.0.0.2",
        "Z, in this boot",
        boot.trim(),
        "DEL",
    ] {
        assert!(details.contains(word), "{details}");
    }
    assert_eq!(leases(), ["10.0.0.2"]);

    addresses(&add(&node, "other", &config));
    reboot(&node, "another");
    let output = add(&node, "abc", &config);
    assert_eq!(addresses(&output), ["10.0.0.2/24"]);
    assert!(output.stderr.contains("taken over"), "{output:?}");
    assert!(!add(&node, "abc", &config).ok, "it is of this boot now");
}

#[test]
fn a_lease_of_unknown_boot_is_not_taken_over() {
    let node = Node::new();
    let config = older(subnet("10.0.0.0/24"));
    // The reference's lease, and our lease that the reference has made anew.
    addresses(&reference(&node, "theirs").run("ADD", &config));
    addresses(&add(&node, "ours", &config));
    reference(&node, "ours").run("DEL", &config).silent();
    fs::write(dir().join("last_reserved_ip.0"), "10.0.0.2").unwrap();
    addresses(&reference(&node, "ours").run("ADD", &config));
    assert_eq!(leases(), ["10.0.0.2", "10.0.0.3"]);
    reboot(&node, "another");
    for id in ["theirs", "ours"] {
        let (_, msg, details) = add(&node, id, &config).error();
        assert!(msg.contains("duplicate"), "{msg}");
        assert!(details.contains("unknown boot"), "{details}");
    }
}

#[test]
fn a_lease_is_kept_while_the_host_has_its_link() {
    let node = Node::new();
    let config = config(json!({"subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.2"}));
    addresses(&add(&node, "a", &config));
    reboot(&node, "another");
    // As the bridge plugin leaves it; the runtime remembers nothing where we look.
    node.sh("ip link add veth0 type veth peer name veth1 && \
         ip link set veth0 alias 'cni network net interface eth0 container a'");
    assert!(!add(&node, "b", &config).ok);
    call(&node, "x").run("STATUS", &config).silent();
    assert_eq!(
        call(&node, "x").run("STATUS", &strict(&config)).error().0,
        50
    );
    node.sh("ip link set veth0 alias 'cni network net interface eth0 container aa'");
    assert_eq!(addresses(&add(&node, "b", &config)), ["10.0.0.2/24"]);
}

/// Writes down that the runtime added container `id` to the namespace `netns`.
fn remember(id: &str, netns: &str) {
    let results = Path::new("/var/lib/cni/results");
    fs::create_dir_all(results).unwrap();
    let entry = json!({"kind": "cniCacheV1", "containerId": id, "config": "", "ifName": "eth0",
        "networkName": "net", "netns": netns, "result": {}});
    fs::write(results.join(format!("net-{id}-eth0")), entry.to_string()).unwrap();
}

#[test]
fn a_full_range_gives_what_the_dead_of_an_earlier_boot_hold() {
    let node = Node::new();
    let config = config(json!({"subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.5"}));
    for id in ["a", "b", "c"] {
        addresses(&add(&node, id, &config));
    }
    // Nobody knows when this one was written.
    addresses(&reference(&node, "r").run("ADD", &older(config.clone())));
    let status = || call(&node, "x").run("STATUS", &strict(&config));
    assert_eq!(status().error().0, 50);
    assert!(!add(&node, "d", &config).ok);

    reboot(&node, "another");
    // What the runtime remembers of `a` leads to a namespace that lives. That of `b` is
    // gone; and `c` was somewhere that is the host's by now.
    remember("a", &node.netns("a"));
    remember("b", "/run/netns/b");
    remember("c", "/proc/self/ns/net");
    status().silent();
    let taken = add(&node, "d", &config);
    assert_eq!(addresses(&taken), ["10.0.0.3/24"]);
    for word in [
        "10.0.0.3 is taken from eth0 of container b",
        "before the node was started",
    ] {
        assert!(taken.stderr.contains(word), "{taken:?}");
    }
    assert_eq!(addresses(&add(&node, "e", &config)), ["10.0.0.4/24"]);
    let (_, _, details) = add(&node, "f", &config).error();
    assert!(details.contains("in use: 4, 1 of them known"), "{details}");
    let (code, _, details) = status().error();
    assert!(
        code == 50 && details.contains("in use: 4, 1 of them"),
        "{details}"
    );
    // It goes with its namespace.
    node.sh("ip netns del a");
    status().silent();
    let mut wanted = config.clone();
    wanted["runtimeConfig"] = json!({"ips": ["10.0.0.5"]});
    assert!(!add(&node, "f", &wanted).ok, "its boot is not known");
    wanted["runtimeConfig"] = json!({"ips": ["10.0.0.2"]});
    let taken = add(&node, "f", &wanted);
    assert_eq!(addresses(&taken), ["10.0.0.2/24"]);
    assert!(
        taken.stderr.contains("taken from eth0 of container a"),
        "{taken:?}"
    );
    for id in ["a", "b", "c", "d", "e", "f", "r"] {
        call(&node, id).run("DEL", &config).silent();
    }
    assert_eq!(leases(), [""; 0]);
    assert!(index_files().is_empty());
}

#[test]
fn requested_addresses() {
    let node = Node::new();
    let config = subnet("10.0.0.0/24");
    let ask = |id: &str, ip: &str| {
        call(&node, id)
            .env("CNI_ARGS", &format!("IgnoreUnknown=1;IP={ip}"))
            .run("ADD", &config)
    };
    assert_eq!(addresses(&ask("abc", "10.0.0.5")), ["10.0.0.5/24"]);
    let (code, msg, details) = ask("def", "10.0.0.5").error();
    assert_eq!(code, 999);
    assert_eq!(
        msg,
        "failed to allocate for range 0: requested IP address 10.0.0.5 is not available in range set 10.0.0.1-10.0.0.254"
    );
    assert!(details.contains("eth0 of container abc"), "{details}");
    let (_, msg, _) = ask("def", "10.0.0.1").error();
    assert!(msg.contains("ip 10.0.0.1 is subnet's gateway"), "{msg}");
    let (_, msg, _) = ask("def", "10.1.0.9").error();
    assert!(msg.contains("10.1.0.9"), "{msg}");
    let mut two = config.clone();
    two["args"] = json!({"cni": {"ips": ["10.0.0.7"]}});
    two["runtimeConfig"] = json!({"ips": ["10.0.0.8"]});
    let (_, msg, _) = add(&node, "def", &two).error();
    assert!(msg.contains("10.0.0.8"), "{msg}");
    let (_, msg, _) = call(&node, "def")
        .env("CNI_ARGS", "ip=10.0.0.9")
        .run("ADD", &config)
        .error();
    assert_eq!(msg, "ARGS: unknown args [\"ip=10.0.0.9\"]");
    assert_eq!(leases(), ["10.0.0.5"]);
    assert_eq!(index_files().len(), 1);
}

#[test]
fn a_gateway_of_another_set_is_not_handed_out() {
    let node = Node::new();
    let config = config(json!({"ranges": [
        [{"subnet": "10.0.0.0/30", "rangeEnd": "10.0.0.3"}],
        [{"subnet": "10.1.0.0/24", "gateway": "10.0.0.2"}],
    ]}));
    assert_eq!(
        addresses(&add(&node, "abc", &config)),
        ["10.0.0.3/30", "10.1.0.1/24"]
    );
    let asked = call(&node, "def").env("CNI_ARGS", "IP=10.0.0.2");
    let (_, msg, details) = asked.run("ADD", &config).error();
    assert!(msg.contains("10.0.0.2"), "{msg}");
    assert!(
        details.contains("it is a gateway of range set 10.1.0.1-10.1.0.254"),
        "{details}"
    );
    assert_eq!(
        call(&node, "x").run("STATUS", &strict(&config)).error().0,
        50
    );
}

#[test]
fn an_id_as_long_as_it_likes() {
    let node = Node::new();
    let mut config = subnet("10.0.0.0/24");
    let id = "a".repeat(5000);
    let run = |command: &str, config: &Value| call(&node, &id).run(command, config);
    addresses(&run("ADD", &config));
    run("CHECK", &config).silent();
    config["cni.dev/valid-attachments"] = json!([{"containerID": id, "ifname": "eth0"}]);
    run("GC", &config).silent();
    assert_eq!(leases(), ["10.0.0.2"]);
    run("DEL", &config).silent();
    assert_eq!(leases(), [""; 0]);
}

#[test]
fn several_sets_give_all_or_nothing() {
    let node = Node::new();
    let config = config(json!({"ranges": [
        [{"subnet": "10.0.0.0/24"}], [{"subnet": "10.1.0.0/30"}], [{"subnet": "fd00::/64"}],
    ]}));
    assert_eq!(
        addresses(&add(&node, "abc", &config)),
        ["10.0.0.2/24", "10.1.0.2/30", "fd00::2/64"]
    );
    let (_, msg, _) = add(&node, "def", &config).error();
    assert!(msg.starts_with("failed to allocate for range 1: "), "{msg}");
    assert_eq!(leases(), ["10.0.0.2", "10.1.0.2", "fd00::2"]);
    call(&node, "abc").run("DEL", &config).silent();
    assert_eq!(names(&dir()).len(), 4, "the lock and three cursors");
}

#[test]
fn a_result_nobody_receives_is_taken_back() {
    let node = Node::new();
    let config = node.dir.path().join("config");
    fs::write(&config, subnet("10.0.0.0/24").to_string()).unwrap();
    let failed = !node.succeeds(&format!(
        "CNI_COMMAND=ADD CNI_CONTAINERID=abc CNI_IFNAME=eth0 CNI_NETNS=/none CNI_PATH=/ \
         {}/host-local <{} >/dev/full",
        node.bin.display(),
        config.display()
    ));
    assert!(failed);
    assert_eq!(leases(), [""; 0]);
    assert!(index_files().is_empty());
}

#[test]
fn gc_frees_what_is_not_valid() {
    let node = Node::new();
    let mut config = subnet("10.0.0.0/24");
    for id in ["c1", "c2", "c3"] {
        addresses(&add(&node, id, &config));
    }
    addresses(&call(&node, "c1").ifname("eth1").run("ADD", &config));
    let mut other = config.clone();
    other["name"] = "other".into();
    addresses(&add(&node, "c9", &other));
    for (name, content) in [
        ("10.0.0.20", "c1"),
        ("10.0.0.21", "c8"),
        ("10.0.0.22", ""),
        ("notes", "c8\r\neth0"),
        ("10.0.0.99", "set aside for the printer"),
    ] {
        fs::write(dir().join(name), content).unwrap();
    }
    let gc = |config: &Value| node.plugin("host-local").run("GC", config);
    let before = names(&dir());
    assert_eq!(gc(&config).error().0, 7, "without a list nothing is stale");
    assert_eq!(names(&dir()), before);
    config["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    gc(&config).silent();
    assert_eq!(leases(), ["10.0.0.2", "10.0.0.20", "10.0.0.99"]);
    fs::remove_file(dir().join("10.0.0.99")).unwrap();
    config["cni.dev/valid-attachments"] = json!([]);
    gc(&config).silent();
    gc(&config).silent();
    assert_eq!(names(&dir()), ["last_reserved_ip.0", "lock", "notes"]);
    assert!(index_files().is_empty());
    assert!(Path::new(DATA_DIR).join("other/10.0.0.2").exists());
}

#[test]
fn crashes_of_others_exhaust_nothing() {
    let node = Node::new();
    let config = subnet("10.0.0.0/29");
    fs::create_dir_all(dir()).unwrap();
    for last in 2..=6 {
        fs::write(dir().join(format!("10.0.0.{last}")), "").unwrap();
    }
    fs::write(dir().join("10.0.0.4"), " \r\n").unwrap();
    fs::write(dir().join("last_reserved_ip.0"), "10.0").unwrap();
    call(&node, "x").run("STATUS", &config).silent();
    for last in 2..=6 {
        let output = add(&node, &format!("c{last}"), &config);
        assert_eq!(addresses(&output), [format!("10.0.0.{last}/29")]);
        assert!(output.stderr.contains("names no owner"), "{output:?}");
    }
    assert!(!add(&node, "c7", &config).ok);
}

#[test]
fn what_a_killed_process_left_disturbs_nobody_and_goes() {
    let node = Node::new();
    let config = older(subnet("10.0.0.0/24"));
    addresses(&add(&node, "abc", &config));
    let leftover = dir().join(".cnibox-0123abcd-1-0");
    let leave = || fs::write(&leftover, "gone\r\neth0").unwrap();
    leave();
    assert_eq!(
        addresses(&reference(&node, "r").run("ADD", &config)),
        ["10.0.0.3/24"]
    );
    call(&node, "abc").run("CHECK", &config).silent();
    leave();
    assert_eq!(addresses(&add(&node, "gone", &config)), ["10.0.0.4/24"]);
    leave();
    for id in ["abc", "r", "gone"] {
        call(&node, id).run("DEL", &config).silent();
    }
    assert_eq!(names(&dir()), ["last_reserved_ip.0", "lock"]);
}

#[test]
fn truncated_files_hinder_nothing() {
    let node = Node::new();
    let mut config = subnet("10.0.0.0/24");
    config["cni.dev/valid-attachments"] = json!([{"containerID": "keep", "ifname": "eth0"}]);
    let run = |id: &str, command: &str| call(&node, id).run(command, &config);
    let owned = |which: &str| match which {
        "lease" => dir().join("10.0.0.2"),
        "cursor" => dir().join("last_reserved_ip.0"),
        _ => index_files().remove(0),
    };
    for which in ["lease", "cursor", "index"] {
        // n-1 bytes is what usize::MAX stands for.
        for length in [0, 1, usize::MAX] {
            assert_eq!(
                addresses(&run("abc", "ADD")),
                ["10.0.0.2/24"],
                "{which} {length}"
            );
            let path = owned(which);
            let whole = fs::read(&path).unwrap();
            let cut = || fs::write(&path, &whole[..length.min(whole.len() - 1)]).unwrap();
            cut();
            assert_eq!(run("abc", "CHECK").ok, which != "lease", "{which} {length}");
            cut();
            addresses(&run("keep", "ADD"));
            assert_eq!(run("abc", "ADD").ok, which == "lease", "{which} {length}");
            run("abc", "DEL").silent();
            assert!(!run("abc", "CHECK").ok, "{which} {length}");
            run("x", "GC").silent();
            assert_eq!(leases().len(), 1);
            run("keep", "CHECK").silent();
            assert_eq!(index_files().len(), 1);
            fs::remove_dir_all(DATA_DIR).unwrap();
        }
    }
}

#[test]
fn many_leases() {
    let node = Node::new();
    let config = subnet("10.0.0.0/16");
    fs::create_dir_all(dir()).unwrap();
    let mut last = String::new();
    for number in 2..10_002_u32 {
        last = format!("10.0.{}.{}", number >> 8, number & 255);
        fs::write(dir().join(&last), format!("container-{number}\r\neth0")).unwrap();
    }
    fs::write(dir().join("last_reserved_ip.0"), &last).unwrap();
    assert_eq!(addresses(&add(&node, "abc", &config)), ["10.0.39.18/16"]);
    assert_eq!(index_files().len(), 10_001);
    let (_, msg, _) = add(&node, "container-77", &config).error();
    assert!(msg.contains("10.0.0.77 has been allocated"), "{msg}");
    // From here on no ADD reads other leases: this one, changed in its place, would be
    // found to belong to `def`.
    fs::write(dir().join("10.0.0.99"), "def\r\neth0").unwrap();
    assert_eq!(addresses(&add(&node, "def", &config)), ["10.0.39.19/16"]);
    // Nor does a DEL that finds nothing.
    fs::write(dir().join("10.0.0.99"), "nobody\r\neth0").unwrap();
    call(&node, "nobody").run("DEL", &config).silent();
    assert!(dir().join("10.0.0.99").exists());
    fs::write(dir().join("10.0.0.99"), "container-99\r\neth0").unwrap();
    call(&node, "container-78").run("DEL", &config).silent();
    assert!(!dir().join("10.0.0.78").exists());
    call(&node, "abc").run("DEL", &config).silent();
    call(&node, "nobody").run("DEL", &config).silent();
    assert_eq!(leases().len(), 10_000);
    assert_eq!(index_files().len(), 10_000);
    fs::write(dir().join("last_reserved_ip.0"), "10.0.0.1").unwrap();
    assert_eq!(addresses(&add(&node, "ghi", &config)), ["10.0.0.78/16"]);
}

#[test]
fn an_index_that_cannot_be_written_is_done_without() {
    let node = Node::new();
    let config = subnet("10.0.0.0/24");
    fs::create_dir_all(DATA_DIR).unwrap();
    fs::write(Path::new(DATA_DIR).join(".cnibox"), "").unwrap();
    let output = add(&node, "abc", &config);
    assert_eq!(addresses(&output), ["10.0.0.2/24"]);
    assert!(output.stderr.contains("index"), "{output:?}");
    let (_, msg, _) = add(&node, "abc", &config).error();
    assert!(msg.contains("duplicate"), "{msg}");
    call(&node, "abc").run("CHECK", &config).silent();
    call(&node, "abc").run("DEL", &config).silent();
    assert_eq!(leases(), [""; 0]);
}

#[test]
fn status_looks_at_the_directory() {
    let node = Node::new();
    node.sh("mkdir /run/ro && mount -t tmpfs -o ro tmpfs /run/ro");
    fs::write("/run/file", "").unwrap();
    for data_dir in ["/run/ro", "/run/ro/a/b", "/run/file"] {
        let config = config(json!({"subnet": "10.0.0.0/24", "dataDir": data_dir}));
        let (code, msg, _) = call(&node, "x").run("STATUS", &config).error();
        assert_eq!(code, 50, "{data_dir}");
        assert!(msg.contains(&format!("{data_dir}/net")), "{msg}");
        let (code, _, _) = add(&node, "abc", &config).error();
        assert_eq!(code, 5, "{data_dir}");
    }
    let fine = config(json!({"subnet": "10.0.0.0/24", "dataDir": "/run/a/b"}));
    call(&node, "x").run("STATUS", &fine).silent();
    assert!(!Path::new("/run/a").exists());
}

#[test]
fn status_is_not_told_the_ranges_of_the_runtime() {
    let node = Node::new();
    fs::write("/run/file", "").unwrap();
    let status = |ipam: Value| {
        let mut config = config(ipam);
        config["capabilities"] = json!({"ipRanges": true});
        call(&node, "x").run("STATUS", &config)
    };
    status(json!({"type": "host-local"})).silent();
    for unavailable in [
        json!({"resolvConf": "/nowhere"}),
        json!({"dataDir": "/run/file"}),
    ] {
        assert_eq!(status(unavailable).error().0, 50);
    }
}

#[test]
fn a_full_disk_fails_the_add_and_nothing_else() {
    let node = Node::new();
    node.sh("mkdir /run/small && mount -t tmpfs -o nr_inodes=6,size=4k tmpfs /run/small");
    let config = config(json!({"subnet": "10.0.0.0/24", "dataDir": "/run/small"}));
    let mut failed = false;
    for number in 0..6 {
        let output = add(&node, &format!("c{number}"), &config);
        let recorded = names(Path::new("/run/small/net"));
        let recorded = recorded
            .iter()
            .filter(|name| name.starts_with("10."))
            .count();
        if !output.ok {
            failed = true;
            let (code, _, details) = output.error();
            assert_eq!(code, 5);
            assert!(details.contains("No space left"), "{details}");
            assert_eq!(recorded, number, "a failed ADD records nothing");
            break;
        }
    }
    assert!(failed);
    for number in 0..6 {
        call(&node, &format!("c{number}"))
            .run("DEL", &config)
            .silent();
    }
    assert!(
        !names(Path::new("/run/small/net"))
            .iter()
            .any(|name| name.starts_with("10."))
    );
}

#[test]
fn many_at_once_together_with_the_reference() {
    let node = Node::new();
    let config = older(subnet("10.0.0.0/24"));
    let run_all = |command: &str, swap: bool| -> Vec<Output> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..32)
                .map(|number| {
                    let id = format!("c{number}");
                    let call = if (number % 2 == 1) == swap {
                        call(&node, &id)
                    } else {
                        reference(&node, &id)
                    };
                    let config = &config;
                    scope.spawn(move || call.run(command, config))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        })
    };
    let given: BTreeSet<String> = run_all("ADD", false).iter().flat_map(addresses).collect();
    assert_eq!(given.len(), 32);
    assert_eq!(leases().len(), 32);
    for output in run_all("DEL", true) {
        output.silent();
    }
    assert_eq!(leases(), [""; 0]);
}

#[test]
fn one_container_deleted_many_times_at_once() {
    let node = Node::new();
    let config = subnet("10.0.0.0/24");
    addresses(&add(&node, "abc", &config));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| call(&node, "abc").run("DEL", &config).silent());
        }
    });
    assert_eq!(leases(), [""; 0]);
}

/// The same call under strace, with these options.
fn traced(node: &Node, id: &str, options: &str) -> Call {
    let script = node.dir.path().join("traced");
    let plugin = node.bin.join("host-local");
    let line = format!(
        "exec strace -f -qqq -o /run/trace $OPTIONS {}",
        plugin.display()
    );
    fs::write(&script, format!("#!/bin/sh\n{line}\n")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    call(node, id).executable(script).env("OPTIONS", options)
}

/// The system calls that can change a file. Those that not every machine has are marked.
const CHANGES: &str = "?open,openat,write,?link,linkat,?unlink,unlinkat,?rename,?renameat,\
    renameat2,?mkdir,mkdirat,fchmod,utimensat";

/// Where a call can be stopped once it holds the lock: before each change, named by system
/// call and how many of the kind it is.
fn points(node: &Node, id: &str, command: &str, config: &Value) -> Vec<(String, usize)> {
    let options = format!("-e trace=flock,{CHANGES}");
    assert!(traced(node, id, &options).run(command, config).ok);
    let trace = fs::read_to_string("/run/trace").unwrap();
    let mut seen: Vec<String> = Vec::new();
    let mut points = Vec::new();
    for line in trace.lines() {
        let (call, _) = line.split_once('(').unwrap();
        let name = call.split_whitespace().last().unwrap().to_owned();
        seen.push(name.clone());
        if seen.contains(&"flock".to_owned()) && name != "flock" {
            let count = seen.iter().filter(|other| **other == name).count();
            points.push((name, count));
        }
    }
    points
}

/// Kills `command` for container `killed` before each of its changes, after `prepare`.
/// Whatever it left, no address is given twice, and DEL leaves the leases of `keep`.
fn kill_everywhere(node: &Node, command: &str, keep: &[&str], prepare: impl Fn()) {
    let config = subnet("10.0.0.0/24");
    let del = |id: &str| call(node, id).run("DEL", &config).silent();
    prepare();
    let points = points(node, "killed", command, &config);
    assert!(points.len() > 5, "{points:?}");
    for (name, count) in points {
        let point = format!("{command}, {name} {count}");
        del("killed");
        prepare();
        let options = format!("-e trace={name} -e inject={name}:signal=KILL:when={count}");
        let output = traced(node, "killed", &options).run(command, &config);
        assert!(!output.ok, "{point} is not reached: {output:?}");
        let held = leases();
        for ip in &held {
            let content = fs::read_to_string(dir().join(ip)).unwrap();
            let whole = ["keep\r\neth0", "killed\r\neth0"].contains(&content.as_str());
            assert!(whole, "{point}: {ip} holds {content:?}");
        }
        let given = addresses(&add(node, "next", &config)).remove(0);
        let given = given.trim_end_matches("/24").to_owned();
        assert!(!held.contains(&given), "{point}: {given} twice");
        del("killed");
        del("next");
        let mut left = names(&dir());
        left.retain(|name| !["last_reserved_ip.0", "lock"].contains(&name.as_str()));
        assert_eq!(left, keep, "{point}");
        assert_eq!(index_files().len(), keep.len(), "{point}");
        if !keep.is_empty() {
            call(node, "keep").run("CHECK", &config).silent();
        }
    }
}

#[test]
fn a_first_add_may_be_killed_anywhere() {
    let node = Node::new();
    let nothing_yet = || {
        if Path::new("/var/lib/cni").exists() {
            fs::remove_dir_all("/var/lib/cni").unwrap();
        }
    };
    kill_everywhere(&node, "ADD", &[], nothing_yet);
}

#[test]
fn a_later_add_may_be_killed_anywhere() {
    let node = Node::new();
    addresses(&add(&node, "keep", &subnet("10.0.0.0/24")));
    kill_everywhere(&node, "ADD", &["10.0.0.2"], || {});
}

#[test]
fn a_del_may_be_killed_anywhere() {
    let node = Node::new();
    let config = subnet("10.0.0.0/24");
    addresses(&add(&node, "keep", &config));
    let have_it = || drop(addresses(&add(&node, "killed", &config)));
    kill_everywhere(&node, "DEL", &["10.0.0.2"], have_it);
}

#[test]
fn an_address_is_free_after_its_lease_could_not_be_read() {
    let node = Node::new();
    let config = subnet("10.0.0.0/24");
    let lease = dir().join("10.0.0.2");
    let options = format!(
        "-P {} -e trace=?open,openat -e inject=?open,openat:error=EIO",
        lease.display()
    );
    let (code, _, details) = traced(&node, "abc", &options).run("ADD", &config).error();
    assert_eq!(code, 5);
    assert!(
        details.contains("open /var/lib/cni/networks/net/10.0.0.2"),
        "{details}"
    );
    assert_eq!(leases(), [""; 0]);
    assert_eq!(addresses(&add(&node, "def", &config)).len(), 1);
}

#[test]
fn a_file_system_without_hard_links_will_do() {
    let node = Node::new();
    let config = subnet("10.0.0.0/24");
    for error in ["EPERM", "EOPNOTSUPP", "ENOSYS"] {
        let options = format!("-e trace=?link,linkat -e inject=?link,linkat:error={error}");
        let run = |command: &str| traced(&node, "abc", &options).run(command, &config);
        let given = addresses(&run("ADD"));
        let lease = dir().join(given[0].trim_end_matches("/24"));
        assert_eq!(
            fs::read_to_string(&lease).unwrap(),
            "abc\r\neth0",
            "{error}"
        );
        let mode = fs::metadata(&lease).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(names(&dir()).len(), 3, "{error}");
        assert!(!run("ADD").ok, "{error}");
        run("DEL").silent();
        assert_eq!(leases(), [""; 0]);
    }
}
