//! The sentences of the reference plugins, which programs and their own tests look for: one
//! row for each, the built binary beside the reference where its version has the sentence.
//! What we say ourselves (the key, the place, the way out) is in the details.

#![expect(
    clippy::too_many_lines,
    reason = "a table is as long as there are sentences"
)]

mod common;

use std::fs;
use std::path::Path;

use common::{Call, Node, Output, REFERENCE};
use serde_json::{Value, json};

/// What the reference plugins of this machine, v1.1.1, say to the same input.
enum Theirs {
    /// The same.
    Same,
    /// A message with this part, which ours has too.
    Part(&'static str),
    /// Something else, for this reason.
    Other(&'static str),
}

/// One mistake, and the error that it gets.
struct Row {
    plugin: &'static str,
    command: &'static str,
    /// A shell command that makes the node what it must be.
    setup: &'static str,
    variables: Vec<(&'static str, &'static str)>,
    stdin: String,
    code: u64,
    /// The whole message.
    message: &'static str,
    /// Part of the details.
    details: &'static str,
    theirs: Theirs,
}

impl Row {
    fn setup(mut self, command: &'static str) -> Self {
        self.setup = command;
        self
    }

    fn env(mut self, key: &'static str, value: &'static str) -> Self {
        self.variables.push((key, value));
        self
    }

    fn theirs(mut self, theirs: Theirs) -> Self {
        self.theirs = theirs;
        self
    }

    fn part(self, part: &'static str) -> Self {
        self.theirs(Theirs::Part(part))
    }

    fn other(self, why: &'static str) -> Self {
        self.theirs(Theirs::Other(why))
    }

    /// Stdin as it is, where it is not the usual configuration.
    fn text(mut self, text: &str) -> Self {
        text.clone_into(&mut self.stdin);
        self
    }

    fn call(&self, node: &Node) -> Call {
        node.netns("c1");
        if !self.setup.is_empty() {
            node.sh(self.setup);
        }
        let mut call = node
            .plugin(self.plugin)
            .netns("/run/netns/c1")
            .env("CNI_COMMAND", self.command);
        for (key, value) in &self.variables {
            call = call.env(key, value);
        }
        call
    }

    fn ours(&self) -> Output {
        self.call(&Node::new()).run_text(&self.stdin)
    }

    /// `None` where the reference of this machine has no such plugin.
    fn of_reference(&self) -> Option<Output> {
        let executable = Path::new(REFERENCE).join(self.plugin);
        if self.plugin == "flannel" {
            return None;
        }
        assert!(
            executable.exists(),
            "the reference plugins are needed: see `make test`"
        );
        let mut call = self
            .call(&Node::new())
            .executable(executable)
            .env("CNI_PATH", REFERENCE);
        for (key, value) in &self.variables {
            call = call.env(key, value);
        }
        Some(call.run_text(&self.stdin))
    }
}

/// A row for `plugin` at cniVersion 0.4.0, which every reference plugin speaks; `members` may
/// say another.
fn row(
    plugin: &'static str,
    command: &'static str,
    members: Value,
    (code, message, details): (u64, &'static str, &'static str),
) -> Row {
    let config = json!({"cniVersion": "0.4.0", "name": "n", "type": plugin});
    Row {
        plugin,
        command,
        setup: "",
        variables: Vec::new(),
        stdin: common::with(config, members).to_string(),
        code,
        message,
        details,
        theirs: Theirs::Same,
    }
}

const NO_FLANNEL: &str = "flannel's plugin is not among the reference plugins";
const NEWER: &str = "newer than v1.1.1";

fn check(rows: Vec<Row>) {
    for row in rows {
        let (code, message, details) = row.ours().error();
        let what = format!("{} {} {}", row.plugin, row.command, row.stdin);
        assert_eq!(message, row.message, "{what}");
        assert_eq!(code, row.code, "{what}");
        assert!(details.contains(row.details), "{what}: {details:?}");
        assert!(!details.contains(row.message), "said twice: {what}");
        let Some(theirs) = row.of_reference() else {
            continue;
        };
        match row.theirs {
            Theirs::Same => assert_eq!(theirs.error().1, message, "{what}"),
            Theirs::Part(part) => {
                let theirs = theirs.error().1;
                assert!(theirs.contains(part), "{what}: {theirs}");
                assert!(message.contains(part), "{what}: {message}");
            }
            Theirs::Other(why) => assert!(
                theirs.ok || theirs.error().1 != message,
                "{what}: it is the same, and not \"{why}\""
            ),
        }
    }
}

/// An IPAM plugin's configuration.
fn ipam(members: Value) -> Value {
    json!({"ipam": common::with(json!({"type": "x"}), members)})
}

/// `members` and a result of the plugin before, with an address of `eth0`.
fn chained(members: Value) -> Value {
    let previous = json!({
        "cniVersion": "0.4.0",
        "interfaces": [
            {"name": "br0"},
            {"name": "eth0", "sandbox": "/run/netns/c1"},
        ],
        "ips": [{"version": "4", "address": "10.9.0.2/24", "interface": 1}],
    });
    common::with(json!({"prevResult": previous}), members)
}

#[test]
fn of_the_protocol() {
    let lo = |command, error| row("loopback", command, json!({}), error);
    check(vec![
        lo("ADD", (6, "error unmarshall network config: unexpected end of JSON input", "stdin")).text(""),
        lo("ADD", (6, "error unmarshall network config: expected value at line 1 column 1", "is not valid JSON"))
            .text("x")
            .part("error unmarshall network config: "),
        lo(
            "ADD",
            (
                6,
                "error unmarshall network config: the network configuration on stdin must be a JSON object, not a list",
                "",
            ),
        )
        .text("[]")
        .part("error unmarshall network config: "),
        lo("ADD", (6, "decoding version from network config: cniVersion: expected a string, found the number 1", ""))
            .text(r#"{"name": "n", "cniVersion": 1}"#)
            .part("decoding version from network config: "),
        lo("ADD", (7, "missing network name", "")).text("{}"),
        lo("ADD", (7, "invalid characters found in network name", "a/b")).text(r#"{"name": "a/b"}"#),
        lo("FOO", (4, "unknown CNI_COMMAND: FOO", "")),
        lo("ADD", (4, "invalid characters in containerID", "-a")).env("CNI_CONTAINERID", "-a"),
        lo("ADD", (4, "interface name is too long", "the limit is 15")).env("CNI_IFNAME", "sixteen-bytes-it"),
        lo("ADD", (4, "interface name is . or ..", "")).env("CNI_IFNAME", ".."),
        lo("ADD", (4, "interface name contains / or : or whitespace characters", "a/b")).env("CNI_IFNAME", "a/b"),
        lo("ADD", (4, "interface name contains / or : or whitespace characters", "a b")).env("CNI_IFNAME", "a b"),
        lo("ADD", (4, "required env variables [CNI_CONTAINERID,CNI_IFNAME] missing", ""))
            .env("CNI_CONTAINERID", "")
            .env("CNI_IFNAME", ""),
        lo("ADD", (1, "incompatible CNI versions", "plugin supports")).text(r#"{"name": "n", "cniVersion": "9.9"}"#),
        lo("CHECK", (1, "config version does not allow CHECK", "since 0.4.0"))
            .text(r#"{"name": "n", "cniVersion": "0.3.1"}"#),
        lo("CHECK", (1, "plugin version does not allow CHECK", "plugin supports"))
            .text(r#"{"name": "n", "cniVersion": "2.0.0"}"#),
        lo(
            "CHECK",
            (
                6,
                r#"failed to convert major version part "x": strconv.Atoi: parsing "x": invalid syntax"#,
                "cniVersion \"x\" is not a version",
            ),
        )
        .text(r#"{"name": "n", "cniVersion": "x"}"#),
        lo("CHECK", (6, r#"invalid version "1.2.3.4": too many parts"#, "cniVersion \"1.2.3.4\""))
            .text(r#"{"name": "n", "cniVersion": "1.2.3.4"}"#),
        lo("ADD", (8, "plugin's netns and netns from CNI_NETNS should not be the same", "CNI_NETNS_OVERRIDE"))
            .env("CNI_NETNS", "/proc/thread-self/ns/net")
            .other("it answers twice, after it has done the work"),
    ]);
}

#[test]
fn of_loopback() {
    check(vec![
        row("loopback", "CHECK", json!({}), (999, "loopback interface is down", "expected up"))
            .setup("ip -n c1 link set lo down"),
        row(
            "loopback",
            "ADD",
            json!({}),
            (999, r#"loopback interface found with non-loopback address "10.1.0.7""#, "remove the address"),
        )
        .setup("ip -n c1 addr add 10.1.0.7/32 dev lo"),
        row(
            "loopback",
            "ADD",
            json!({}),
            (
                4,
                r#"failed to open netns "/nowhere": failed to Statfs "/nowhere": no such file or directory"#,
                "CNI_NETNS must be the path of a network namespace",
            ),
        )
        .env("CNI_NETNS", "/nowhere")
        .part(r#"failed to Statfs "/nowhere": no such file or directory"#),
        row(
            "loopback",
            "ADD",
            json!({}),
            (4, r#"failed to open netns "/run": unknown FS magic on "/run": 1021994"#, "CNI_NETNS must be"),
        )
        .env("CNI_NETNS", "/run")
        .part(r#"unknown FS magic on "/run": 1021994"#),
    ]);
}

#[test]
fn of_bridge() {
    let add = |members, error| row("bridge", "ADD", members, error);
    let trunk = |item: Value, message, details| {
        add(json!({"vlanTrunk": [item]}), (7, message, details))
            .other("vlanTrunk is newer than v1.1.1")
    };
    check(vec![
        add(json!({"vlan": 4095}), (7, "invalid VLAN ID 4095 (must be between 0 and 4094)", "vlan: 4095")),
        add(json!({"vlan": -1}), (7, "invalid VLAN ID -1 (must be between 0 and 4094)", "vlan: -1")),
        trunk(json!({"id": 0}), "incorrect trunk id parameter", "vlanTrunk[0].id: 0"),
        trunk(json!({"minID": 0, "maxID": 5}), "incorrect trunk minID parameter", "vlanTrunk[0].minID: 0"),
        trunk(json!({"minID": 1, "maxID": 4095}), "incorrect trunk maxID parameter", "vlanTrunk[0].maxID: 4095"),
        trunk(json!({"minID": 6, "maxID": 5}), "minID is greater than maxID in trunk parameter", "vlanTrunk[0].maxID"),
        trunk(
            json!({"minID": 6}),
            "minID and maxID should be configured simultaneously, maxID is missing",
            "vlanTrunk[0].maxID",
        ),
        trunk(
            json!({"maxID": 6}),
            "minID and maxID should be configured simultaneously, minID is missing",
            "vlanTrunk[0].minID",
        ),
        add(
            json!({"hairpinMode": true, "promiscMode": true}),
            (7, "cannot set hairpin mode and promiscuous mode at the same time", "hairpinMode: "),
        )
        .part("cannot set hairpin mode and promiscuous mode at the same time"),
        add(
            json!({"disableContainerInterface": true, "ipam": {"type": "static"}}),
            (7, "cannot use IPAM when DisableContainerInterface flag is set", "disableContainerInterface: "),
        )
        .other(NEWER),
        add(
            json!({"ipMasqBackend": "pf"}),
            (7, r#"unknown ipmasq backend "pf""#, "ipMasqBackend: "),
        )
        .other(NEWER),
        add(
            json!({"bridge": ""}),
            (7, r#"failed to create bridge "": could not add "": LinkAttrs.Name cannot be empty"#, "bridge: "),
        ),
        add(
            json!({"bridge": "sixteen-bytes-it"}),
            (
                7,
                r#"failed to create bridge "sixteen-bytes-it": could not add "sixteen-bytes-it": numerical result out of range"#,
                "bridge: interface name is too long",
            ),
        ),
        add(
            json!({"bridge": "d0"}),
            (7, r#"failed to create bridge "d0": "d0" already exists but is not a bridge"#, "link d0 is veth"),
        )
        .setup("ip link add d0 type veth peer name d1"),
        add(
            json!({"runtimeConfig": {"mac": "x"}}),
            (7, "failed to make veth pair: address x: invalid MAC address", "runtimeConfig.mac: \"x\""),
        ),
        add(json!({}), (4, "failed to make veth pair: address x: invalid MAC address", "CNI_ARGS MAC: \"x\""))
            .env("CNI_ARGS", "MAC=x"),
        add(json!({}), (4, r#"ARGS: invalid pair "A""#, "KEY=VALUE")).env("CNI_ARGS", "A"),
        add(json!({}), (4, r#"ARGS: unknown args ["A=1" "B=2"]"#, "")).env("CNI_ARGS", "A=1;B=2"),
        add(
            json!({}),
            (
                4,
                r#"ARGS: error parsing value of pair "IgnoreUnknown=x": boolean unmarshal error: invalid input x"#,
                "must be true or false",
            ),
        )
        .env("CNI_ARGS", "IgnoreUnknown=x"),
        add(
            json!({"mtu": "x"}),
            (6, r#"failed to load netconf: mtu: expected an integer, found the string "x""#, ""),
        )
        .part("failed to load netconf: "),
        add(
            json!({"cniVersion": "0.2.0"}),
            (7, "cannot convert: no valid IP addresses", "set \"cniVersion\" to 0.3.0 or newer"),
        ),
        row("bridge", "CHECK", json!({"ipam": {}}), (7, "Required prevResult missing", ""))
            .other("it asks an IPAM plugin first, also where there is none"),
        add(
            json!({"ipam": {"type": "static"}}),
            (999, "IPAM plugin returned missing IP config", "answered ADD without any address"),
        ),
        add(json!({"ipam": {"type": "a/b"}}), (7, "invalid plugin name: a/b", "CNI_PATH")),
        add(
            json!({}),
            (
                999,
                r#"container veth name ("eth0") peer provided ("veth21e05bb5") already exists"#,
                "DEL removes it",
            ),
        )
        .setup("ip -n c1 link add eth0 type bridge")
        .other("its words are newer than v1.1.1, its name for the peer is random"),
        add(
            json!({
                "isGateway": true,
                "ipam": {"type": "static", "addresses": [{"address": "10.9.0.2/24", "gateway": "10.9.0.1"}]},
                "bridge": "br0",
            }),
            (
                7,
                r#"failed to set bridge addr: "br0" already has an IP address different from 10.9.0.1/24"#,
                "forceAddress",
            ),
        )
        .setup("ip link add br0 type bridge && ip addr add 10.1.0.1/24 dev br0"),
    ]);
}

#[test]
fn of_ptp() {
    let add = |members, error| row("ptp", "ADD", members, error);
    check(vec![
        add(json!({}), (7, "no plugin name provided", "ipam: is missing")),
        add(json!({"ipam": {}}), (7, "no plugin name provided", "ipam.type: is missing")),
        add(
            json!({"mtu": "x"}),
            (6, r#"failed to load netconf: mtu: expected an integer, found the string "x""#, ""),
        )
        .part("failed to load netconf: "),
        add(
            json!({"ipam": {"type": "static"}, "ipMasqBackend": "pf"}),
            (7, r#"unknown ipmasq backend "pf""#, "ipMasqBackend: "),
        )
        .other(NEWER),
        add(
            json!({"ipam": {"type": "static"}}),
            (999, "IPAM plugin returned missing IP config", "answered ADD without any address"),
        ),
        add(
            json!({"ipam": {"type": "static"}}),
            (
                4,
                r#"failed to open netns "/nowhere": failed to Statfs "/nowhere": no such file or directory"#,
                "CNI_NETNS must be",
            ),
        )
        .env("CNI_NETNS", "/nowhere")
        .other("it asks IPAM first, and gets no address"),
        row("ptp", "CHECK", json!({"ipam": {"type": "static"}}), (7, "Required prevResult missing", "")),
    ]);
}

#[test]
fn of_host_local() {
    let of = |members| ipam(members);
    let add = |members, error| row("host-local", "ADD", members, error);
    let subnet = |more: Value| ipam(common::with(json!({"subnet": "10.0.0.0/24"}), more));
    let two = json!([[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.1.0.0/24"}]]);
    check(vec![
        add(json!({}), (7, "IPAM config missing 'ipam' key", "ipam: is missing")),
        add(of(json!({})), (7, "no IP ranges specified", "set ipam.ranges")),
        add(of(json!({"ranges": [[]]})), (7, "invalid range set 0: empty range set", "ipam.ranges[0]")),
        add(
            of(json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"rangeStart": "10.1.0.1"}]]})),
            (7, "invalid range set 1: IP <nil> not v4 nor v6", "ipam.ranges[1][0].subnet: is missing"),
        ),
        add(of(json!({"subnet": "x"})), (7, "invalid CIDR address: x", "ipam.subnet: ")),
        add(of(json!({"subnet": "10.0.0.0/33"})), (7, "invalid CIDR address: 10.0.0.0/33", "ipam.subnet: ")),
        add(
            of(json!({"subnet": "10.0.0.0/31"})),
            (7, "invalid range set 0: Network 10.0.0.0/31 too small to allocate from", "/30"),
        ),
        add(
            of(json!({"subnet": "10.0.0.5/24"})),
            (
                7,
                "invalid range set 0: Network has host bits set. For a subnet mask of length 24 the network address is 10.0.0.0",
                "write 10.0.0.0/24",
            ),
        ),
        add(subnet(json!({"rangeStart": "x"})), (7, "invalid IP address: x", "ipam.rangeStart: ")),
        add(subnet(json!({"rangeEnd": "x"})), (7, "invalid IP address: x", "ipam.rangeEnd: ")),
        add(subnet(json!({"gateway": "x"})), (7, "invalid IP address: x", "ipam.gateway: ")),
        add(
            subnet(json!({"rangeStart": "10.0.1.1"})),
            (7, "invalid range set 0: RangeStart 10.0.1.1 not in network 10.0.0.0/24", "ipam.rangeStart: "),
        ),
        add(
            subnet(json!({"rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"})),
            (7, "invalid range set 0: RangeStart 10.0.0.9 not in network 10.0.0.0/24", "is after rangeEnd"),
        ),
        add(
            subnet(json!({"rangeEnd": "10.0.1.8"})),
            (7, "invalid range set 0: RangeEnd 10.0.1.8 not in network 10.0.0.0/24", "ipam.rangeEnd: "),
        ),
        add(
            of(json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]})),
            (7, "invalid range set 0: mixed address families", "a range set of its own"),
        ),
        add(
            of(json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.0/25"}]]})),
            (
                7,
                "invalid range set 0: subnets 10.0.0.1-10.0.0.254 and 10.0.0.1-10.0.0.126 overlap",
                "ipam.ranges[0][1]",
            ),
        ),
        add(
            of(json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/25"}]]})),
            (7, "range set 0 overlaps with 1", "ipam.ranges[1]"),
        ),
        add(
            common::with(of(json!({"ranges": two})), json!({"cniVersion": "0.2.0"})),
            (7, "CNI version 0.2.0 does not support more than 1 address per family", "ipam.ranges[1]"),
        ),
        add(
            common::with(subnet(json!({})), json!({"runtimeConfig": {"ips": ["x"]}})),
            (7, "invalid IP address x", "runtimeConfig.ips[0]"),
        ),
        add(
            common::with(subnet(json!({})), json!({"args": {"cni": {"ips": [""]}}})),
            (7, "cannot understand ip: IP <nil> not v4 nor v6", "args.cni.ips[0]"),
        ),
        add(
            subnet(json!({})),
            (4, r#"ARGS: error parsing value of pair "IP=x": invalid IP address x"#, "CNI_ARGS: IP"),
        )
        .env("CNI_ARGS", "IP=x"),
        add(
            subnet(json!({})),
            (999, "failed to allocate for range 0: requested ip 10.0.0.1 is subnet's gateway", "never handed out"),
        )
        .env("CNI_ARGS", "IP=10.0.0.1"),
        add(
            subnet(json!({})),
            (999, "failed to allocate all requested IPs: 10.9.9.9", "gives one address from each of"),
        )
        .env("CNI_ARGS", "IP=10.9.9.9"),
        add(
            subnet(json!({"rangeStart": "10.0.0.2", "rangeEnd": "10.0.0.2"})),
            (
                999,
                "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.2-10.0.0.2",
                "addresses in use: 1",
            ),
        )
        .setup("mkdir -p /var/lib/cni/networks/n && printf 'other\\r\\neth0' >/var/lib/cni/networks/n/10.0.0.2"),
        add(
            subnet(json!({})),
            (
                999,
                "failed to allocate for range 0: requested IP address 10.0.0.2 is not available in range set 10.0.0.1-10.0.0.254",
                "held by eth0 of container other",
            ),
        )
        .setup("mkdir -p /var/lib/cni/networks/n && printf 'other\\r\\neth0' >/var/lib/cni/networks/n/10.0.0.2")
        .env("CNI_ARGS", "IP=10.0.0.2"),
        add(
            subnet(json!({})),
            (
                999,
                "failed to allocate for range 0: 10.0.0.2 has been allocated to c1, duplicate allocation is not allowed",
                "frees the address",
            ),
        )
        .setup("mkdir -p /var/lib/cni/networks/n && printf 'c1\\r\\neth0' >/var/lib/cni/networks/n/10.0.0.2"),
        row(
            "host-local",
            "CHECK",
            subnet(json!({})),
            (999, "host-local: Failed to find address added by container c1", "/var/lib/cni/networks/n"),
        ),
        add(
            subnet(json!({"resolvConf": "/nowhere"})),
            (5, "open /nowhere: no such file or directory", "ipam.resolvConf"),
        ),
        add(subnet(json!({"routes": [{"dst": "x"}]})), (7, "invalid CIDR address: x", "ipam.routes[0].dst")),
        add(
            subnet(json!({"routes": [{"dst": "10.0.0.0/8", "gw": "x"}]})),
            (7, "invalid IP address: x", "ipam.routes[0].gw"),
        ),
    ]);
}

#[test]
fn of_static() {
    let add = |members, error| row("static", "ADD", members, error);
    let addresses = |list: Value| ipam(json!({"addresses": list}));
    let asked = |key: &str, ip: &str| {
        let mut members = ipam(json!({}));
        members[key] = match key {
            "args" => json!({"cni": {"ips": [ip]}}),
            _ => json!({"ips": [ip]}),
        };
        members
    };
    let two = addresses(json!([{"address": "10.0.0.1/24"}, {"address": "10.0.1.1/24"}]));
    check(vec![
        add(
            json!({}),
            (7, "IPAM config missing 'ipam' key", "ipam: is missing"),
        ),
        add(
            addresses(json!([{"address": "10.0.0.1"}])),
            (
                7,
                "the 'address' field is expected to be in CIDR notation, got: '10.0.0.1'",
                "ipam.addresses[0].address",
            ),
        ),
        add(
            addresses(json!([{"address": "10.0.0.1/24", "gateway": "x"}])),
            (7, "invalid IP address: x", "ipam.addresses[0].gateway"),
        ),
        add(
            common::with(two, json!({"cniVersion": "0.2.0"})),
            (
                7,
                "CNI version 0.2.0 does not support more than 1 address per family",
                "ipam.addresses",
            ),
        ),
        add(
            ipam(json!({})),
            (
                4,
                "the 'ip' field is expected to be in CIDR notation, got: '10.0.0.1'",
                "CNI_ARGS: IP",
            ),
        )
        .env("CNI_ARGS", "IP=10.0.0.1"),
        add(
            ipam(json!({})),
            (4, "invalid gateway address: x", "CNI_ARGS: GATEWAY"),
        )
        .env("CNI_ARGS", "GATEWAY=x"),
        add(
            asked("args", "10.0.0.1"),
            (
                7,
                "an entry in the 'ips' field is NOT in CIDR notation, got: '10.0.0.1'",
                "args.cni.ips[0]",
            ),
        ),
        add(
            asked("runtimeConfig", "x"),
            (
                7,
                "an entry in the 'ips' field is NOT in CIDR notation, got: 'x'",
                "runtimeConfig.ips[0]",
            ),
        ),
        row(
            "static",
            "CHECK",
            ipam(json!({})),
            (7, "Required prevResult missing", ""),
        ),
        add(
            ipam(json!({"routes": [{"dst": "x"}]})),
            (7, "invalid CIDR address: x", "ipam.routes[0].dst"),
        ),
        row(
            "static",
            "CHECK",
            common::with(
                ipam(json!({})),
                json!({"prevResult": {"cniVersion": "7.7"}}),
            ),
            (
                6,
                r#"could not parse prevResult: result type supports [0.3.0 0.3.1 0.4.0] but unmarshalled CNIVersion is "7.7""#,
                "\"prevResult\" must be",
            ),
        ),
    ]);
}

#[test]
fn of_portmap() {
    let ports = |host: i64, container: i64| {
        let mapping = json!({"hostPort": host, "containerPort": container, "protocol": "tcp"});
        chained(json!({"runtimeConfig": {"portMappings": [mapping]}}))
    };
    let add = |members, error| row("portmap", "ADD", members, error);
    let keys = |members: Value| common::with(ports(80, 80), members);
    let alone = json!({"runtimeConfig": {}});
    check(vec![
        add(alone.clone(), (7, "must be called as chained plugin", "prevResult is missing")),
        row("portmap", "CHECK", alone, (7, "Required prevResult missing", "prevResult is missing")),
        add(ports(0, 80), (7, "failed to parse config: Invalid host port number: 0", "portMappings[0].hostPort: 0")),
        add(ports(-1, 80), (7, "failed to parse config: Invalid host port number: -1", "hostPort: -1")),
        add(ports(80, 0), (7, "failed to parse config: Invalid container port number: 0", "containerPort: 0")),
        row("portmap", "CHECK", ports(0, 80), (7, "Invalid host port number: 0", "portMappings[0].hostPort: 0")),
        add(ports(70000, 80), (7, "failed to parse config: Invalid host port number: 70000", "1 to 65535"))
            .other("it leaves it to iptables"),
        add(
            keys(json!({"markMasqBit": 32})),
            (7, "failed to parse config: MasqMarkBit must be between 0 and 31", "markMasqBit: "),
        ),
        add(
            keys(json!({"markMasqBit": 5, "externalSetMarkChain": "X"})),
            (7, "failed to parse config: Cannot specify externalSetMarkChain and markMasqBit", "markMasqBit: "),
        ),
        add(
            keys(json!({"backend": "pf"})),
            (7, r#"failed to parse config: unrecognized backend "pf""#, "backend: "),
        )
        .other(NEWER),
        add(
            keys(json!({
                "backend": "nftables", "conditionsV6": ["-c", "d"], "conditionsV4": ["-a", "b"],
                "externalSetMarkChain": "KUBE-MARK-MASQ",
            })),
            (
                7,
                "failed to parse config: nftables backend was requested but configuration contains iptables-specific options [externalSetMarkChain conditionsV4 conditionsV6]",
                "externalSetMarkChain: is written for iptables",
            ),
        )
        .other(NEWER),
        add(
            keys(json!({"backend": "iptables", "conditionsV4": ["aaa", "bbbb"], "conditionsV6": ["ccc"]})),
            (
                7,
                "failed to parse config: iptables backend was requested but configuration contains nftables-specific options [conditionsV4 conditionsV6]",
                "conditionsV4: is written for nftables",
            ),
        )
        .other(NEWER),
        add(
            keys(json!({"conditionsV4": ["ip", "saddr"], "conditionsV6": ["-s", "::1"]})),
            (
                7,
                "failed to parse config: iptables backend was requested but configuration contains nftables-specific options [conditionsV4]",
                "conditionsV4: ",
            ),
        )
        .other(NEWER),
        add(
            keys(json!({"conditionsV4": "x"})),
            (
                6,
                r#"failed to parse config: failed to parse network configuration: conditionsV4: expected a list, found the string "x""#,
                "",
            ),
        )
        .part("failed to parse config: failed to parse network configuration: "),
        add(
            keys(json!({"prevResult": {"cniVersion": "7.7"}})),
            (
                6,
                r#"could not parse prevResult: result type supports [0.3.0 0.3.1 0.4.0] but unmarshalled CNIVersion is "7.7""#,
                "\"prevResult\" must be",
            ),
        )
        .part("could not parse prevResult: result type supports [0.3.0 0.3.1 0.4.0] but unmarshalled CNIVersion is"),
    ]);
}

#[test]
fn of_bandwidth() {
    let add = |members, error| row("bandwidth", "ADD", chained(members), error);
    let both = json!({"ingressRate": 8000, "ingressBurst": 8000});
    check(vec![
        add(json!({"ingressRate": 8000}), (7, "if rate is set, burst must also be set", "ingressBurst: ")),
        add(json!({"egressBurst": 8000}), (7, "if burst is set, rate must also be set", "egressRate: ")),
        add(
            json!({"runtimeConfig": {"bandwidth": {"egressRate": 8000}}}),
            (7, "if rate is set, burst must also be set", "runtimeConfig.bandwidth.egressBurst: "),
        ),
        add(
            json!({"ingressRate": 8000, "ingressBurst": 68_719_476_736_u64}),
            (7, "burst cannot be more than 4GB", "ingressBurst: "),
        ),
        add(
            json!({"ingressRate": -5}),
            (
                6,
                "failed to parse network configuration: ingressRate: expected an integer from 0 to 18446744073709551615, found the number -5",
                "",
            ),
        )
        .part("failed to parse network configuration: "),
        row("bandwidth", "ADD", both.clone(), (7, "must be called as chained plugin", "prevResult is missing")),
        row("bandwidth", "CHECK", both.clone(), (7, "must be called as a chained plugin", "prevResult is missing")),
        add(
            both.clone(),
            (
                999,
                r#"container interface eth0 has no veth peer: could not look up "eth0": Link not found"#,
                "there is no link eth0",
            ),
        ),
        add(
            both,
            (
                999,
                r#"container interface eth0 has no veth peer: interface "eth0" was not a veth interface"#,
                "only those can be limited",
            ),
        )
        .setup("ip -n c1 link add eth0 type bridge"),
    ]);
}

#[test]
fn of_tuning() {
    let add = |members, error| row("tuning", "ADD", chained(members), error);
    check(vec![
        row("tuning", "ADD", json!({}), (7, "Required prevResult missing", "")),
        add(
            json!({"sysctl": {"kernel.domainname": "x"}}),
            (7, r#"invalid net sysctl key: "kernel/domainname""#, "sysctl kernel.domainname cannot be set"),
        )
        .part("invalid net sysctl key: \"kernel"),
        add(
            json!({"sysctl": {"net.nothing.there": "1"}}),
            (7, "open /proc/sys/net/nothing/there: no such file or directory", "there is no sysctl net.nothing.there"),
        ),
        add(
            json!({"mac": "x"}),
            (7, "invalid args x for MAC addr: address x: invalid MAC address", "mac: \"x\""),
        )
        .setup("ip -n c1 link add eth0 type bridge"),
        add(json!({"mtu": 1400}), (999, r#"failed to get "eth0": Link not found"#, "there is no link eth0")),
        add(
            json!({"sysctl": {"net.core.somaxconn": "1"}}),
            (
                7,
                "Sysctl net.core.somaxconn is not allowed. Only the following sysctls are allowed: [^net.ipv4 ^x$]",
                "/etc/cni/tuning/allowlist.conf",
            ),
        )
        .setup(
            "mount -t tmpfs tmpfs /etc && mkdir -p /etc/cni/tuning && \
             printf '^net.ipv4\\n\\n ^x$\\n' >/etc/cni/tuning/allowlist.conf",
        )
        .other(NEWER),
        add(json!({}), (7, "duplicated sysctl keys are not allowed", "\"sysctl\" has net.core.somaxconn more than once"))
            .text(r#"{"name": "n", "cniVersion": "0.4.0", "sysctl": {"net.core.somaxconn": "1", "net.core.somaxconn": "2"}}"#)
            .other(NEWER),
        add(
            json!({"mtu": "x"}),
            (6, r#"failed to load netconf: mtu: expected an integer, found the string "x""#, ""),
        )
        .part("failed to load netconf: "),
    ]);
}

#[test]
fn of_firewall() {
    let row = |command, members, error| row("firewall", command, members, error);
    check(vec![
        row(
            "ADD",
            json!({}),
            (
                7,
                "missing prevResult from earlier plugin",
                "firewall comes after",
            ),
        ),
        row(
            "CHECK",
            json!({}),
            (
                7,
                "missing prevResult from earlier plugin",
                "firewall comes after",
            ),
        ),
        row(
            "ADD",
            chained(json!({"ingressPolicy": "closed"})),
            (
                7,
                r#"unknown ingress policy: "closed""#,
                "ingressPolicy: \"closed\" is none of",
            ),
        ),
        row(
            "ADD",
            json!({
                "ingressPolicy": "same-bridge",
                "prevResult": {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.9.0.2/24"}]},
            }),
            (
                7,
                r#"interface needs to be set for ingress policy "same-bridge", make sure to chain "firewall" plugin with "bridge""#,
                "ingressPolicy: ",
            ),
        ),
        row(
            "ADD",
            chained(json!({"backend": 5})),
            (
                6,
                "failed to load netconf: backend: expected a string, found the number 5",
                "",
            ),
        )
        .part("failed to load netconf: "),
    ]);
}

#[test]
fn of_flannel() {
    let add = |members, error| row("flannel", "ADD", members, error).other(NO_FLANNEL);
    check(vec![
        add(
            json!({"delegate": {"name": "x"}}),
            (
                7,
                "'delegate' dictionary must not have 'name' field, it'll be set by flannel",
                "delegate.name: ",
            ),
        ),
        add(
            json!({"delegate": {"ipam": {}}}),
            (
                7,
                "'delegate' dictionary must not have 'ipam' field, it'll be set by flannel",
                "delegate.ipam: ",
            ),
        ),
        add(
            json!({"delegate": {"type": 5}}),
            (
                6,
                "'delegate' dictionary, if present, must have (string) 'type' field",
                "delegate.type: ",
            ),
        ),
        add(
            json!({"delegate": 5}),
            (
                6,
                "failed to load netconf: delegate: expected an object, found the number 5",
                "",
            ),
        ),
        add(
            json!({"subnetFile": "/nowhere"}),
            (
                11,
                "failed to load flannel 'subnet.env' file: open /nowhere: no such file or directory. Check the flannel pod log for this node.",
                "is the daemon running",
            ),
        ),
    ]);
}

#[test]
fn of_libcni() {
    let loopback = r#""plugins": [{"type": "loopback"}]"#;
    for (file, text, arguments, expected) in [
        (
            "n.conflist",
            r#"{"cniVersion": "1.0.0"}"#.to_owned(),
            "add n c1",
            "error parsing configuration list: no name: ",
        ),
        (
            "n.conflist",
            r#"{"name": 5}"#.into(),
            "add n c1",
            "error parsing configuration list: invalid name type float64: ",
        ),
        (
            "n.conflist",
            r#"{"name": "n", "plugins": []}"#.into(),
            "add n c1",
            "error parsing configuration list: no plugins in list: ",
        ),
        (
            "n.conflist",
            r#"{"name": "n", "plugins": "x"}"#.into(),
            "add n c1",
            "error parsing configuration list: invalid 'plugins' type string: ",
        ),
        (
            "n.conflist",
            r#"{"name": "n", "loadOnlyInlinedPlugins": true}"#.into(),
            "add n c1",
            "error parsing configuration list: `loadOnlyInlinedPlugins` is true, and no 'plugins' key: ",
        ),
        (
            "n.conflist",
            format!(r#"{{"name": "n", "disableCheck": "Maybe", {loopback}}}"#),
            "add n c1",
            r#"error parsing configuration list: invalid value "maybe" for disableCheck: "#,
        ),
        (
            "n.conflist",
            format!(r#"{{"name": "n", "disableGC": 5, {loopback}}}"#),
            "add n c1",
            "error parsing configuration list: invalid type float64 for disableGC: ",
        ),
        (
            "n.conflist",
            r#"{"name": "n"}"#.into(),
            "add n c1",
            "no plugin configs found: ",
        ),
        (
            "n.conflist",
            r#"{"name": "n", "plugins": [{"type": "loopback"}, {}]}"#.into(),
            "add n c1",
            "failed to parse plugin config 1: error parsing configuration: missing 'type': ",
        ),
        (
            "n.conf",
            r#"{"name": "n"}"#.into(),
            "add n c1",
            "error parsing configuration: missing 'type': ",
        ),
        (
            "n.conflist",
            format!(r#"{{"name": "other", {loopback}}}"#),
            "add n c1",
            "no net configuration with name \"n\" in {dir}",
        ),
        (
            "n.txt",
            String::new(),
            "add n c1",
            "no net configurations found in {dir}",
        ),
        (
            "n.conflist",
            format!(r#"{{"name": "n", "cniVersion": "0.3.1", {loopback}}}"#),
            "check n c1",
            "configuration version \"0.3.1\" does not support the CHECK command",
        ),
        (
            "n.conflist",
            r#"{"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "nosuch", "name": "x"}]}"#
                .into(),
            "add n /run/netns/c1",
            "plugin type=\"nosuch\" name=\"x\" failed (add): failed to find plugin \"nosuch\" in path [",
        ),
        (
            "n.conflist",
            r#"{"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "portmap"}]}"#.into(),
            "add n /run/netns/c1",
            "plugin type=\"portmap\" failed (add): must be called as chained plugin; ",
        ),
        (
            "n.conflist",
            format!(r#"{{"name": "n", "cniVersion": "1.0.0", {loopback}}}"#),
            "add n /run/netns/c1 --args x",
            "invalid CNI_ARGS pair \"x\": ",
        ),
    ] {
        let node = Node::new();
        node.netns("c1");
        let conf = node.dir.path().join("conf");
        fs::create_dir(&conf).unwrap();
        fs::write(conf.join(file), &text).unwrap();
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let told = node.cnitool(&conf, &arguments);
        let expected = expected.replace("{dir}", conf.to_str().unwrap());
        assert_eq!(told.code, Some(1), "{text}: {told:?}");
        assert!(
            told.stderr.contains(&expected),
            "{text}: no {expected:?} in {told:?}"
        );
    }
}
