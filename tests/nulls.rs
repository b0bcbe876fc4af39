//! What Go programs send for what they have not got: `null` for a list, a map or a pointer
//! that nobody made, `[]`, `{}` and `""` for an empty one, or nothing. Each stands in turn for
//! each value of a configuration, and the plugin must do with it what the reference does.
#![allow(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test starts processes, and fails by panicking"
)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Call, Node, REFERENCE, with};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

/// What stands for a value: its name in the tables, and what it is; `None` is nothing.
fn stand_ins() -> [(&'static str, Option<Value>); 5] {
    [
        ("absent", None),
        ("null", Some(Value::Null)),
        ("[]", Some(json!([]))),
        ("{}", Some(json!({}))),
        ("\"\"", Some(json!(""))),
    ]
}

/// `document` with the value at `path` replaced: keys and numbers of items, joined by `.`.
fn replaced(document: &Value, path: &str, value: Option<&Value>) -> Value {
    fn replace(at: &mut Value, path: &[&str], value: Option<&Value>) {
        let (key, rest) = path.split_first().unwrap();
        match (at, rest) {
            (Value::Object(object), []) => {
                object.remove(*key);
                if let Some(value) = value {
                    object.insert((*key).to_owned(), value.clone());
                }
            }
            (Value::Array(items), []) => match value {
                Some(value) => items[key.parse::<usize>().unwrap()] = value.clone(),
                None => drop(items.remove(key.parse().unwrap())),
            },
            (Value::Object(object), rest) => replace(object.get_mut(*key).unwrap(), rest, value),
            (Value::Array(items), rest) => {
                replace(&mut items[key.parse::<usize>().unwrap()], rest, value);
            }
            (other, _) => panic!("{other} has no members"),
        }
    }
    let mut document = document.clone();
    // A key with dots is written with `:` for each.
    let keys: Vec<String> = path.split('.').map(|key| key.replace(':', ".")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    replace(&mut document, &keys, value);
    document
}

/// `result` without what differs from call to call and between versions of the plugins: an
/// empty `dns`, hardware addresses, names of the host's ends, MTUs.
fn comparable(mut result: Value) -> Value {
    let object = result.as_object_mut().unwrap();
    object.retain(|_, value| *value != json!({}));
    for interface in object
        .get_mut("interfaces")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let Some(interface) = interface.as_object_mut() else {
            continue;
        };
        interface.remove("mac");
        interface.remove("mtu");
        let name = interface.get("name").and_then(Value::as_str);
        if name.is_some_and(|name| name.starts_with("veth")) {
            interface["name"] = "veth".into();
        }
    }
    result
}

/// What `make` makes of each stand-in for the value at `path` of `document`: it is refused, or
/// comes to the same as if the value were `absent`, or as the value itself (`kept`).
fn verdicts(
    path: &str,
    document: &Value,
    kept: &str,
    make: impl Fn(&Value) -> String,
) -> Vec<String> {
    let is_refused = |came: &str| came.starts_with(REFUSED);
    assert!(!is_refused(kept), "{kept}");
    let came = stand_ins().map(|(name, value)| {
        let document = replaced(document, path, value.as_ref());
        (name, make(&document))
    });
    let absent = came[0].1.clone();
    let verdict = |(name, came): (&str, String)| {
        let words = [
            (is_refused(&came), REFUSED),
            (!is_refused(&came) && came == absent, "absent"),
            (!is_refused(&came) && came == kept, "kept"),
        ];
        let words = words.iter().filter(|(applies, _)| *applies);
        let words: Vec<&str> = words.map(|(_, word)| *word).collect();
        let word = if words.is_empty() {
            "other".to_owned()
        } else {
            words.join("+")
        };
        format!("{path} {name}: {word}")
    };
    came.into_iter().map(verdict).collect()
}

/// The lines in which two lists of verdicts differ.
fn differing(ours: &[String], theirs: &[String]) -> Vec<String> {
    let both = ours
        .iter()
        .zip(theirs)
        .filter(|(ours, theirs)| ours != theirs);
    both.map(|(ours, theirs)| {
        let theirs = theirs.rsplit(": ").next().unwrap();
        format!("{ours} (the reference: {theirs})")
    })
    .collect()
}

/// Where it is right to differ, and why.
const DEPARTURES: [(&str, &[&str]); 9] = [
    (
        "a mapping without a protocol is for TCP",
        &[
            "runtimeConfig.portMappings.0.protocol absent: absent+kept (the reference: refused)",
            "runtimeConfig.portMappings.0.protocol null: absent+kept (the reference: refused)",
            "runtimeConfig.portMappings.0.protocol \"\": absent+kept (the reference: refused)",
        ],
    ),
    (
        "a chain without a name is none",
        &["externalSetMarkChain \"\": absent+kept (the reference: refused)"],
    ),
    (
        "a plugin that does not read a key does not judge it",
        &[
            "type []: absent+kept (the reference: refused)",
            "type {}: absent+kept (the reference: refused)",
            "capabilities []: absent+kept (the reference: refused)",
            "capabilities \"\": absent+kept (the reference: refused)",
            "dns []: absent+kept (the reference: refused)",
            "dns \"\": absent+kept (the reference: refused)",
        ],
    ),
    (
        "the reference answers a route to \"<nil>\", which nobody can read",
        &[
            "ipam.routes.0 null: refused (the reference: other)",
            "ipam.routes.0 {}: refused (the reference: other)",
            "ipam.routes.0.dst absent: refused (the reference: absent)",
            "prevResult.routes.0 null: refused (the reference: other)",
            "prevResult.routes.0 {}: refused (the reference: other)",
            "prevResult.routes.0.dst absent: refused (the reference: absent)",
            "bridge: routes.0.dst absent: refused (the reference: absent)",
            "ptp: routes.0.dst absent: refused (the reference: absent)",
        ],
    ),
    (
        "so it does with an address",
        &[
            "prevResult.ips.0 null: refused (the reference: other)",
            "prevResult.ips.0 {}: refused (the reference: other)",
            "prevResult.ips.0.address absent: refused (the reference: absent)",
        ],
    ),
    (
        "an empty version is one that is not told",
        &["prevResult.cniVersion \"\": absent+kept (the reference: refused)"],
    ),
    (
        "a version is text; the reference takes anything in a delegate's result",
        &[
            "bridge: cniVersion []: refused (the reference: absent+kept)",
            "bridge: cniVersion {}: refused (the reference: absent+kept)",
            "ptp: cniVersion []: refused (the reference: absent+kept)",
            "ptp: cniVersion {}: refused (the reference: absent+kept)",
        ],
    ),
    (
        "the reference panics, for a map that is not there or an interface that is null",
        &[
            "sysctl absent: absent+kept (the reference: refused)",
            "sysctl null: absent+kept (the reference: refused)",
            "sysctl {}: absent+kept (the reference: kept)",
            "prevResult.interfaces.0 null: other (the reference: refused)",
        ],
    ),
    (
        "the reference does not tell a result of 1.0.0 to a caller of 0.1.0",
        &[
            "cniVersion absent: absent (the reference: refused)",
            "cniVersion null: absent (the reference: refused)",
            "cniVersion \"\": absent (the reference: refused)",
        ],
    ),
];

/// The `found` differences that are none of [`DEPARTURES`].
fn unexplained(mut found: Vec<String>) -> Vec<String> {
    let known = |line: &String| {
        DEPARTURES
            .iter()
            .any(|(_, lines)| lines.contains(&line.as_str()))
    };
    found.retain(|line| !known(line));
    found
}

/// A configuration, and the node that it is used on.
struct Bench {
    plugin: &'static str,
    config: Value,
    /// Makes the container `c1`, in which `eth0` may have to be; empty for IPAM plugins, which
    /// do not look at it.
    prepare: &'static str,
}

/// What comes of a call that fails.
const REFUSED: &str = "refused";

/// A container to which something is attached already, as [`attached`] tells.
const ATTACHED: &str = "ip netns add c1 && ip -n c1 link set lo up && \
    ip link add veth7 type veth peer name eth0 netns c1 && ip link set veth7 up && \
    ip -n c1 addr add 10.9.0.5/24 dev eth0 && ip -n c1 link set eth0 up";
const EMPTY: &str = "ip netns add c1 && ip -n c1 link set lo up";

/// What a plugin answers that made [`ATTACHED`].
fn attached() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "veth7", "mac": "02:00:00:00:00:07"},
            {"name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": "/run/netns/c1"},
        ],
        "ips": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1", "interface": 1}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.9.0.1"}],
        "dns": {"nameservers": ["10.9.0.9"], "domain": "d", "search": ["s"], "options": ["o"]},
    })
}

/// What is in the container and on the host afterwards, without what is random.
const STATE: &str = r#"for n in "-n c1" ""; do
    for l in $(ip $n -br link | cut -d" " -f1 | cut -d@ -f1 | grep -v '^veth'); do
        echo $l $(ip $n link show $l | grep -o "mtu [0-9]*\|PROMISC\|ALLMULTI\|qlen [0-9]*") \
            $(ip $n -o addr show $l | grep -v fe80 | grep -o "inet.* scope")
    done
    ip $n route | sed 's/veth[0-9a-f]*/veth/'
    ip $n -6 route show default
done
for r in iptables-save ip6tables-save; do $r | grep -c "^-A"; done
ip netns exec c1 sysctl -n net.ipv4.conf.eth0.log_martians 2>/dev/null
tc qdisc | grep tbf | sed 's/dev [^ ]*//; s/qdisc tbf [^ ]*//' | sort"#;

impl Bench {
    /// What comes of ADD with `config` of the plugins in `bin`: its result and the state of
    /// the node, or that it is refused.
    fn add(&self, node: &Node, bin: &Path, config: &Value) -> String {
        // Another stack of its own: nothing is left of the call before.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        node.sh("ip link set lo up; rm -rf /var/lib/cni/* /run/cni /run/netns/c1");
        if !self.prepare.is_empty() {
            node.sh(self.prepare);
        }
        let path = format!("{}:{}", bin.display(), node.dir.path().display());
        let call = node.plugin(self.plugin).env("CNI_PATH", &path);
        let call: Call = call
            .executable(bin.join(self.plugin))
            .netns("/run/netns/c1");
        let output = call.run("ADD", config);
        let came = if output.ok && self.prepare.is_empty() {
            comparable(output.json()).to_string()
        } else if output.ok {
            let state = node.sh(STATE);
            format!("{} {state}", comparable(output.json()))
        } else {
            // A panic of the reference is its way to refuse; ours is one document.
            if bin != Path::new(REFERENCE) {
                assert!(!output.error().1.is_empty(), "{config}");
            }
            format!("{REFUSED}: {output:?}")
        };
        if !self.prepare.is_empty() {
            node.sh("umount /run/netns/c1 && rm /run/netns/c1");
        }
        came
    }

    /// What the plugins in `bin` make of each stand-in for the value at `path`: refused, or as
    /// if the value were `absent`, or as with the value itself (`kept`), or `other`.
    fn verdicts(&self, node: &Node, bin: &Path, kept: &str, path: &str) -> Vec<String> {
        verdicts(path, &self.config, kept, |config| {
            self.add(node, bin, config)
        })
    }

    /// Where ours and the reference differ. `paths` are tried beside the reference, `newer`
    /// are of keys that it has not got; for all of them `null` must be as if nothing were
    /// there, as for every Go program.
    fn differences(&self, paths: &[&str], newer: &[&str]) -> Vec<String> {
        let node = Node::new();
        let mut found = Vec::new();
        let bins = [&node.bin, Path::new(REFERENCE)];
        let kept = bins.map(|bin| {
            let is_there = bin.join(self.plugin).exists();
            is_there.then(|| self.add(&node, bin, &self.config))
        });
        let verdicts = |which: usize, path: &str| {
            self.verdicts(&node, bins[which], kept[which].as_ref().unwrap(), path)
        };
        for path in paths {
            let (ours, theirs) = (verdicts(0, path), verdicts(1, path));
            found.extend(differing(&ours, &theirs));
        }
        for path in newer {
            let verdicts = verdicts(0, path);
            let words = [&verdicts[0], &verdicts[1]].map(|verdict| verdict.rsplit(": ").next());
            assert_eq!(words[0], words[1], "{path}");
        }
        found
    }
}

fn host_local() -> Value {
    json!({
        "type": "host-local", "subnet": "10.9.0.0/24", "rangeStart": "10.9.0.5", "rangeEnd": "10.9.0.9",
        "gateway": "10.9.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.9.0.1"}],
        "ranges": [[{"subnet": "fd00:9::/64", "rangeStart": "fd00:9::5", "rangeEnd": "fd00:9::9", "gateway": "fd00:9::1"}]],
        "dataDir": "/var/lib/cni/x", "resolvConf": "/dev/null",
    })
}

/// Of one family: the kernel takes time over each new IPv6 address.
fn ipv4() -> Value {
    replaced(&host_local(), "ranges", None)
}

const SHARED: [&str; 8] = [
    "cniVersion",
    "name",
    "type",
    "args",
    "args.cni",
    "runtimeConfig",
    "capabilities",
    "dns",
];

#[test]
fn bridge_takes_them_as_the_reference() {
    let bench = Bench {
        plugin: "bridge",
        config: json!({
            "cniVersion": "1.0.0", "name": "n", "type": "bridge", "bridge": "br0",
            "isGateway": true, "isDefaultGateway": true, "forceAddress": true, "ipMasq": true,
            "mtu": 1400, "hairpinMode": true, "promiscMode": false, "vlan": 0,
            "macspoofchk": false, "enabledad": false,
            "ipMasqBackend": "iptables", "vlanTrunk": null, "preserveDefaultVlan": false,
            "disableContainerInterface": false, "portIsolation": false,
            "ipam": ipv4(), "capabilities": {"mac": true},
            "dns": {"nameservers": ["10.9.0.9"], "domain": "d", "search": ["s"], "options": ["o"]},
            "args": {"cni": {"mac": "02:00:00:00:00:05"}},
            "runtimeConfig": {"mac": "02:00:00:00:00:06"},
        }),
        prepare: EMPTY,
    };
    let own = [
        "bridge",
        "isGateway",
        "isDefaultGateway",
        "forceAddress",
        "ipMasq",
        "mtu",
        "hairpinMode",
        "promiscMode",
        "vlan",
        "macspoofchk",
        "enabledad",
        "ipam",
        "ipam.type",
        "dns.nameservers",
        "dns.nameservers.0",
        "dns.domain",
        "dns.search",
        "dns.options",
        "args.cni.mac",
        "runtimeConfig.mac",
    ];
    let newer = [
        "ipMasqBackend",
        "vlanTrunk",
        "preserveDefaultVlan",
        "disableContainerInterface",
        "portIsolation",
    ];
    let found = bench.differences(&[&SHARED[..], &own[..]].concat(), &newer);
    assert_eq!(unexplained(found), [""; 0]);
}

#[test]
fn ptp_takes_them_as_the_reference() {
    let bench = Bench {
        plugin: "ptp",
        config: json!({
            "cniVersion": "1.0.0", "name": "n", "type": "ptp", "ipMasq": true, "mtu": 1400,
            "ipMasqBackend": "iptables", "ipam": ipv4(), "capabilities": {},
            "dns": {"nameservers": ["10.9.0.9"], "domain": "d", "search": ["s"], "options": ["o"]},
            "args": {"cni": {}}, "runtimeConfig": {},
        }),
        prepare: EMPTY,
    };
    let own = [
        "ipMasq",
        "mtu",
        "ipam",
        "ipam.type",
        "dns.nameservers",
        "dns.domain",
        "dns.search",
        "dns.options",
    ];
    let found = bench.differences(&[&SHARED[..], &own[..]].concat(), &["ipMasqBackend"]);
    assert_eq!(unexplained(found), [""; 0]);
}

#[test]
fn host_local_takes_them_as_the_reference() {
    let bench = Bench {
        plugin: "host-local",
        config: json!({
            "cniVersion": "1.0.0", "name": "n", "type": "x", "ipam": host_local(), "dns": {},
            "capabilities": {}, "args": {"cni": {"ips": ["10.9.0.6"]}},
            "runtimeConfig": {"ips": ["fd00:9::6/64"], "ipRanges": [[{"subnet": "10.8.0.0/24", "rangeStart": "10.8.0.5", "rangeEnd": "10.8.0.9", "gateway": "10.8.0.1"}]]},
        }),
        prepare: "",
    };
    let own = [
        "ipam",
        "ipam.type",
        "ipam.subnet",
        "ipam.rangeStart",
        "ipam.rangeEnd",
        "ipam.gateway",
        "ipam.routes",
        "ipam.routes.0",
        "ipam.routes.0.dst",
        "ipam.routes.0.gw",
        "ipam.ranges",
        "ipam.ranges.0",
        "ipam.ranges.0.0",
        "ipam.ranges.0.0.subnet",
        "ipam.ranges.0.0.rangeStart",
        "ipam.ranges.0.0.rangeEnd",
        "ipam.ranges.0.0.gateway",
        "ipam.dataDir",
        "ipam.resolvConf",
        "args.cni.ips",
        "args.cni.ips.0",
        "runtimeConfig.ips",
        "runtimeConfig.ips.0",
        "runtimeConfig.ipRanges",
        "runtimeConfig.ipRanges.0",
        "runtimeConfig.ipRanges.0.0",
        "runtimeConfig.ipRanges.0.0.subnet",
        "runtimeConfig.ipRanges.0.0.rangeStart",
        "runtimeConfig.ipRanges.0.0.rangeEnd",
        "runtimeConfig.ipRanges.0.0.gateway",
    ];
    let found = bench.differences(&[&SHARED[..], &own[..]].concat(), &[]);
    assert_eq!(unexplained(found), [""; 0]);
}

#[test]
fn static_takes_them_as_the_reference() {
    let bench = Bench {
        plugin: "static",
        config: json!({
            "cniVersion": "1.0.0", "name": "n", "type": "x", "dns": {}, "capabilities": {},
            "ipam": {
                "type": "static",
                "addresses": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1"}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.9.0.1"}],
                "dns": {"nameservers": ["10.9.0.9"], "domain": "d", "search": ["s"], "options": ["o"]},
            },
            "args": {"cni": {"ips": []}}, "runtimeConfig": {"ips": []},
        }),
        prepare: "",
    };
    let own = [
        "ipam",
        "ipam.type",
        "ipam.addresses",
        "ipam.addresses.0",
        "ipam.addresses.0.address",
        "ipam.addresses.0.gateway",
        "ipam.routes",
        "ipam.routes.0",
        "ipam.routes.0.dst",
        "ipam.routes.0.gw",
        "ipam.dns",
        "ipam.dns.nameservers",
        "ipam.dns.domain",
        "ipam.dns.search",
        "ipam.dns.options",
        "args.cni.ips",
        "runtimeConfig.ips",
    ];
    let found = bench.differences(&[&SHARED[..], &own[..]].concat(), &[]);
    assert_eq!(unexplained(found), [""; 0]);
}

#[test]
fn loopback_takes_them_as_the_reference() {
    let bench = Bench {
        plugin: "loopback",
        config: json!({
            "cniVersion": "1.0.0", "name": "n", "type": "loopback", "args": {"cni": {}},
            "runtimeConfig": {}, "capabilities": {}, "dns": {}, "ipam": {}, "prevResult": attached(),
        }),
        prepare: ATTACHED,
    };
    let found = bench.differences(&[&SHARED[..], &["ipam"], &PREVIOUS[..]].concat(), &[]);
    assert_eq!(unexplained(found), [""; 0]);
}

/// The values of [`attached`] that are not read like another of them.
const PREVIOUS: [&str; 17] = [
    "prevResult",
    "prevResult.cniVersion",
    "prevResult.interfaces",
    "prevResult.interfaces.0",
    "prevResult.interfaces.0.name",
    "prevResult.interfaces.1.name",
    "prevResult.interfaces.1.sandbox",
    "prevResult.ips",
    "prevResult.ips.0",
    "prevResult.ips.0.address",
    "prevResult.ips.0.gateway",
    "prevResult.ips.0.interface",
    "prevResult.routes",
    "prevResult.routes.0",
    "prevResult.routes.0.dst",
    "prevResult.dns",
    "prevResult.dns.nameservers",
];

#[test]
fn portmap_takes_them_as_the_reference() {
    let bench = Bench {
        plugin: "portmap",
        config: json!({
            "cniVersion": "1.0.0", "name": "n", "type": "portmap", "args": {"cni": {}},
            "capabilities": {}, "dns": {}, "prevResult": attached(), "backend": "iptables",
            "snat": true, "masqAll": false, "markMasqBit": 5, "externalSetMarkChain": null,
            "conditionsV4": ["-s", "10.0.0.0/8"], "conditionsV6": ["-s", "fd00::/8"],
            "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}]},
        }),
        prepare: ATTACHED,
    };
    let own = [
        "snat",
        "markMasqBit",
        "externalSetMarkChain",
        "conditionsV4",
        "conditionsV6",
        "runtimeConfig.portMappings",
        "runtimeConfig.portMappings.0",
        "runtimeConfig.portMappings.0.hostPort",
        "runtimeConfig.portMappings.0.containerPort",
        "runtimeConfig.portMappings.0.protocol",
        "runtimeConfig.portMappings.0.hostIP",
    ];
    let found = bench.differences(
        &[&SHARED[..], &PREVIOUS[..], &own[..]].concat(),
        &["backend", "masqAll"],
    );
    assert_eq!(unexplained(found), [""; 0]);
}

#[test]
fn bandwidth_takes_them_as_the_reference() {
    let limits = json!({"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 16_000_000, "egressBurst": 1_600_000});
    let mut config = with(
        json!({
            "cniVersion": "1.0.0", "name": "n", "type": "bandwidth", "args": {"cni": {}},
            "capabilities": {}, "dns": {}, "prevResult": attached(), "runtimeConfig": {"bandwidth": limits},
        }),
        limits.clone(),
    );
    config["unshapedSubnets"] = Value::Null;
    let bench = Bench {
        plugin: "bandwidth",
        config,
        prepare: ATTACHED,
    };
    let own = [
        "ingressRate",
        "ingressBurst",
        "egressRate",
        "egressBurst",
        "runtimeConfig.bandwidth",
        "runtimeConfig.bandwidth.ingressRate",
        "runtimeConfig.bandwidth.ingressBurst",
        "runtimeConfig.bandwidth.egressRate",
        "runtimeConfig.bandwidth.egressBurst",
    ];
    // Which link is the host's end, the reference reads from the interfaces only.
    let about_links =
        |path: &&str| path.starts_with("prevResult.interfaces") || *path == "prevResult";
    let mut previous = PREVIOUS.to_vec();
    previous.retain(|path| !about_links(path));
    let found = bench.differences(
        &[&SHARED[..], &previous, &own[..]].concat(),
        &["unshapedSubnets"],
    );
    assert_eq!(unexplained(found), [""; 0]);
}

#[test]
fn firewall_takes_them_as_the_reference() {
    let bench = Bench {
        plugin: "firewall",
        config: json!({
            "cniVersion": "1.0.0", "name": "n", "type": "firewall", "args": {"cni": {}},
            "capabilities": {}, "dns": {}, "prevResult": attached(), "runtimeConfig": {},
            "backend": "iptables", "iptablesAdminChainName": "CNI-ADMIN", "firewalldZone": "trusted",
            "ingressPolicy": "open",
        }),
        prepare: ATTACHED,
    };
    let own = [
        "backend",
        "iptablesAdminChainName",
        "firewalldZone",
        "ingressPolicy",
    ];
    let found = bench.differences(&[&SHARED[..], &PREVIOUS[..], &own[..]].concat(), &[]);
    assert_eq!(unexplained(found), [""; 0]);
}

#[test]
fn tuning_takes_them_as_the_reference() {
    let bench = Bench {
        plugin: "tuning",
        config: json!({
            "cniVersion": "1.0.0", "name": "n", "type": "tuning", "capabilities": {}, "dns": {},
            "prevResult": attached(), "sysctl": {"net.ipv4.conf.eth0.log_martians": "1"},
            "mac": "02:00:00:00:00:15", "mtu": 1400, "promisc": true, "allmulti": true, "txQLen": 500,
            "dataDir": "/run/cni/tuning",
            "args": {"cni": {"sysctl": {"net.ipv4.conf.eth0.log_martians": "1"}, "mac": "02:00:00:00:00:16", "mtu": 1300, "promisc": true, "allmulti": true, "txQLen": 400}},
            "runtimeConfig": {"mac": "02:00:00:00:00:17"},
        }),
        prepare: ATTACHED,
    };
    let own = [
        "sysctl",
        "sysctl.net:ipv4:conf:eth0:log_martians",
        "mac",
        "mtu",
        "promisc",
        "allmulti",
        "dataDir",
        "args.cni.mac",
        "args.cni.mtu",
        "args.cni.promisc",
        "args.cni.allmulti",
        "args.cni.sysctl",
        "runtimeConfig.mac",
    ];
    let found = bench.differences(
        &[&SHARED[..], &PREVIOUS[..], &own[..]].concat(),
        &["txQLen", "args.cni.txQLen"],
    );
    assert_eq!(unexplained(found), [""; 0]);
}

#[test]
fn flannel_takes_them_as_the_reference() {
    let bench = Bench {
        plugin: "flannel",
        config: json!({
            "cniVersion": "1.0.0", "name": "n", "type": "flannel", "args": {"cni": {}},
            "capabilities": {}, "dns": {}, "runtimeConfig": {"mac": "02:00:00:00:00:17"},
            "subnetFile": "/run/subnet.env", "dataDir": "/var/lib/cni/flannel",
            "ipam": {"type": "host-local", "routes": [{"dst": "10.0.0.0/8"}], "dataDir": "/var/lib/cni/x"},
            "delegate": {"bridge": "br0", "isDefaultGateway": true, "ipMasq": false, "mtu": 1300, "hairpinMode": true, "type": "bridge"},
        }),
        prepare: "ip netns add c1 && ip -n c1 link set lo up && printf 'FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n' > /run/subnet.env",
    };
    let own = [
        "subnetFile",
        "dataDir",
        "ipam",
        "ipam.type",
        "ipam.routes",
        "delegate",
        "delegate.bridge",
        "delegate.isDefaultGateway",
        "delegate.ipMasq",
        "delegate.mtu",
        "delegate.hairpinMode",
        "delegate.type",
        "runtimeConfig.mac",
    ];
    // Debian does not have the reference's.
    let found = bench.differences(&[], &[&SHARED[..], &own[..]].concat());
    assert_eq!(unexplained(found), [""; 0]);
}

/// An IPAM plugin that is not ours prints what stands in the file `answer`.
fn foreign_ipam(node: &Node) {
    let file = node.dir.path().join("foreign-ipam");
    fs::write(
        &file,
        "#!/bin/sh\n[ $CNI_COMMAND != ADD ] || cat /run/answer\n",
    )
    .unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn results_of_ipam_plugins_are_taken_as_by_the_reference() {
    let node = Node::new();
    foreign_ipam(&node);
    let answer = json!({
        "cniVersion": "1.0.0", "interfaces": [],
        "ips": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1", "interface": null}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.9.0.1"}],
        "dns": {"nameservers": ["10.9.0.9"], "domain": "d", "search": ["s"], "options": ["o"]},
    });
    // Not `dns`: v1.1.1 of the bridge drops it, unlike newer ones.
    let paths = [
        "cniVersion",
        "interfaces",
        "ips",
        "ips.0",
        "ips.0.address",
        "ips.0.gateway",
        "ips.0.interface",
        "routes",
        "routes.0",
        "routes.0.dst",
        "routes.0.gw",
    ];
    let mut found = Vec::new();
    for plugin in ["bridge", "ptp"] {
        let bench = Bench {
            plugin,
            config: json!({
                "cniVersion": "1.0.0", "name": "n", "type": plugin, "isGateway": true,
                "ipam": {"type": "foreign-ipam"},
            }),
            prepare: EMPTY,
        };
        for path in paths {
            let [ours, theirs] = [&node.bin, Path::new(REFERENCE)].map(|bin| {
                let add = |answer: &Value| {
                    fs::write("/run/answer", answer.to_string()).unwrap();
                    bench.add(&node, bin, &bench.config)
                };
                verdicts(path, &answer, &add(&answer), add)
            });
            let differing = differing(&ours, &theirs);
            found.extend(
                differing
                    .into_iter()
                    .map(|line| format!("{plugin}: {line}")),
            );
        }
    }
    assert_eq!(unexplained(found), [""; 0]);
}

/// What runtimes of Go send when no container lives: CRI-O at its start, a node without pods.
/// flannel passes it on to its delegate, whose leases go.
#[test]
fn flannel_passes_a_null_list_on() {
    let node = Node::new();
    fs::write(
        "/run/subnet.env",
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
    )
    .unwrap();
    let config = |more: &str| {
        format!(
            r#"{{"cniVersion":"1.1.0","name":"n","type":"flannel","subnetFile":"/run/subnet.env"{more}}}"#
        )
    };
    let netns = node.netns("c1");
    let added = node
        .plugin("flannel")
        .netns(&netns)
        .env("CNI_COMMAND", "ADD");
    assert!(added.run_text(&config("")).ok);
    let leases = "ls /var/lib/cni/networks/n | grep -c ^10 || true";
    assert_eq!(node.sh(leases).trim(), "1");
    let gc = node.plugin("flannel").env("CNI_COMMAND", "GC");
    let null = r#","cni.dev/valid-attachments":null,"cni.dev/attachments":null"#;
    let output = gc.run_text(&config(null));
    assert!(output.ok, "{output:?}");
    assert_eq!(node.sh(leases).trim(), "0");
}

#[test]
fn gc_takes_null_for_an_empty_list() {
    let node = Node::new();
    for (ifname, key, answer) in [
        ("e0", r#""cni.dev/valid-attachments":null"#, true),
        ("e1", r#""cni.dev/valid-attachments":[]"#, true),
        (
            "e2",
            r#""cni.dev/valid-attachments":null,"cni.dev/attachments":null"#,
            true,
        ),
        ("e3", r#""CNI.dev/Valid-Attachments":null"#, true),
        ("e4", r#""other":null"#, false),
    ] {
        for plugin in [
            "bridge",
            "ptp",
            "loopback",
            "host-local",
            "static",
            "portmap",
            "bandwidth",
            "firewall",
            "tuning",
        ] {
            let config = |more: &str| {
                format!(
                    r#"{{"cniVersion":"1.1.0","name":"n","type":"{plugin}","ipam":{{"type":"host-local","subnet":"10.9.0.0/24"}}{more}}}"#
                )
            };
            let leases = "ls /var/lib/cni/networks/n | grep -c ^10 || true";
            let lease = node.plugin("host-local").netns("/none").ifname(ifname);
            if plugin == "host-local" {
                let added = lease.env("CNI_COMMAND", "ADD").run_text(&config(""));
                assert!(added.ok, "{added:?}");
                assert_eq!(node.sh(leases).trim(), "1");
            }
            let call = node.plugin(plugin).env("CNI_COMMAND", "GC");
            let output = call.run_text(&config(&format!(",{key}")));
            assert_eq!(output.ok, answer, "{plugin}: {key}: {output:?}");
            if !answer {
                assert_eq!(output.error().0, 7, "{plugin}");
            }
            if plugin == "host-local" {
                assert_eq!(node.sh(leases).trim() == "0", answer, "{key}");
            }
        }
    }
}

/// A byte order mark, a key in another case and a key twice, on stdin.
#[test]
fn configurations_are_read_as_by_go() {
    let node = Node::new();
    let add = |bin: &Path, text: &str| {
        node.sh("rm -rf /var/lib/cni/networks");
        let call = node
            .plugin("host-local")
            .netns("/none")
            .env("CNI_COMMAND", "ADD");
        let output = call.executable(bin.join("host-local")).run_text(text);
        output.json()["ips"][0]["address"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    for (ipam, address) in [
        (r#""ipam":{"SUBNET":"10.8.0.0/24"}"#, "10.8.0.2/24"),
        (
            r#""ipam":{"subnet":"10.8.0.0/24","Subnet":"10.9.0.0/24"}"#,
            "10.9.0.2/24",
        ),
        (
            r#""ipam":{"Subnet":"10.8.0.0/24","subnet":"10.9.0.0/24"}"#,
            "10.9.0.2/24",
        ),
        (
            r#""ipam":{"subnet":"10.8.0.0/24","subnet":"10.9.0.0/24"}"#,
            "10.9.0.2/24",
        ),
        (
            r#""ipam":{"subnet":"10.8.0.0/24"},"IPAM":{"rangeStart":"10.8.0.7"}"#,
            "10.8.0.7/24",
        ),
    ] {
        let text = format!(r#"{{"cniVersion":"1.0.0","name":"n","type":"x",{ipam}}}"#);
        assert_eq!(add(&node.bin, &text), address, "{ipam}");
        assert_eq!(
            add(Path::new(REFERENCE), &text),
            address,
            "the reference: {ipam}"
        );
        assert_eq!(
            add(&node.bin, &format!("\u{feff}{text}")),
            address,
            "{ipam}"
        );
    }
    let text = format!("\u{feff}{}", json!({"cniVersion": "0.4.0"}));
    let version = node.plugin("bridge").env("CNI_COMMAND", "VERSION");
    assert_eq!(version.run_text(&text).json()["cniVersion"], "0.4.0");
}
