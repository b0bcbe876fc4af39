//! VLANs on the real kernel. Most of these tests need bridge VLAN filtering, which not
//! every kernel has: they are ignored unless asked for, and `make test-vm` asks for them on
//! a kernel that has it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot do its work says so by panicking"
)]

mod common;

use std::path::Path;

use common::{Call, Node, Output, REFERENCE, with, with_result};
use serde_json::{Value, json};

/// A dual-stack network with a gateway in VLAN 100.
fn routed() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "net1",
        "type": "bridge",
        "bridge": "br1",
        "vlan": 100,
        "isDefaultGateway": true,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]],
        },
    })
}

/// A network without addresses on the same bridge.
fn layer2(vlans: Value) -> Value {
    let config = json!({"cniVersion": "1.1.0", "name": "l2", "type": "bridge", "bridge": "br1"});
    with(config, vlans)
}

/// A node with containers that are named after their namespaces.
struct Lab {
    node: Node,
}

impl Lab {
    fn new() -> Self {
        Self { node: Node::new() }
    }

    /// A call for container `name`, which has a namespace already.
    fn call(&self, name: &str) -> Call {
        let netns = format!("/run/netns/{name}");
        self.node.plugin("bridge").id(name).netns(&netns)
    }

    /// ADDs a new container.
    fn add(&self, name: &str, config: &Value) -> Value {
        self.node.netns(name);
        self.call(name).run("ADD", config).json()
    }

    fn del(&self, name: &str, config: &Value) {
        self.call(name).run("DEL", config).silent();
    }

    /// Whether container `name` gets an answer from `address`.
    fn reaches(&self, name: &str, address: &str) -> bool {
        let ping = format!("ip netns exec {name} ping -n -c 1 -W 1 {address}");
        self.node.succeeds(&ping)
    }

    /// The VLANs of a port, as `bridge vlan` tells them: "5 PVID Egress Untagged".
    fn vlans(&self, port: &str) -> Vec<String> {
        let text = self.node.sh(&format!("bridge -j vlan show dev {port}"));
        let ports: Value = serde_json::from_str(&text).unwrap();
        ports[0]["vlans"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|vlan| {
                let flags = vlan["flags"].as_array().into_iter().flatten();
                let flags: Vec<&str> = flags.map(|flag| flag.as_str().unwrap()).collect();
                format!("{} {}", vlan["vlan"], flags.join(" "))
                    .trim()
                    .to_owned()
            })
            .collect()
    }

    /// The links called after the bridge, and veth ends: what a VLAN's gateway consists of,
    /// when no container is there.
    fn leftovers(&self) -> Vec<String> {
        let mut links = self.node.links();
        links.retain(|name| name != "br1");
        links
    }

    /// Asserts that nothing but the bridge is left.
    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(self.leftovers(), [] as [String; 0]);
        let leases = "find /var/lib/cni/networks -name '*.*.*.*' -o -name '*:*'";
        assert_eq!(self.node.sh(&format!("{leases} 2>/dev/null || true")), "");
    }
}

/// The name of the host's end.
fn host_end(result: &Value) -> &str {
    result["interfaces"][1]["name"].as_str().unwrap()
}

/// Asserts that `output` is an error of `code` whose text has all `words` in it.
#[track_caller]
fn assert_refused(output: &Output, code: u64, words: &[&str]) {
    let (found, message, details) = output.error();
    assert_eq!(found, code, "{output:?}");
    for word in words {
        assert!(format!("{message} {details}").contains(word), "{output:?}");
    }
}

/// On every kernel: one without the feature is told apart from one with it, before anything
/// is made.
#[test]
fn the_kernel_is_asked_before_anything_is_made() {
    let lab = Lab::new();
    lab.node.netns("c1");
    lab.node.sh("ip link add probe type bridge");
    let probe = &lab.node.ip("link show dev probe")[0]["linkinfo"]["info_data"];
    let has_filtering = probe.get("vlan_default_pvid").is_some();
    lab.node.sh("ip link del probe");
    for config in [
        routed(),
        layer2(json!({"vlan": 100})),
        layer2(json!({"vlanTrunk": [{"id": 5}]})),
    ] {
        let add = lab.call("c1").run("ADD", &config);
        let status = lab.node.plugin("bridge").run("STATUS", &config);
        if has_filtering {
            assert!(add.ok, "{add:?}");
            status.silent();
        } else {
            let key = if config.get("vlan").is_some() {
                "\"vlan\": 100"
            } else {
                "\"vlanTrunk\""
            };
            let words = [key, "CONFIG_BRIDGE_VLAN_FILTERING", "VLAN filtering"];
            assert_refused(&add, 2, &words);
            assert_refused(&status, 50, &words);
            assert_eq!(lab.node.links(), [] as [String; 0]);
            // Nor on a bridge that is there already.
            lab.node.sh("ip link add br1 type bridge");
            assert_refused(&lab.call("c1").run("ADD", &config), 2, &words);
            let status = lab.node.plugin("bridge").run("STATUS", &config);
            assert_refused(&status, 50, &words);
            assert_eq!(lab.node.links(), ["br1"]);
            lab.node.sh("ip link del br1");
        }
        lab.del("c1", &config);
        lab.assert_clean();
    }
}

#[test]
fn wrong_vlans_are_refused_and_deleted() {
    let lab = Lab::new();
    lab.node.netns("c1");
    for (change, key) in [
        (json!({"vlan": 4095}), "vlan: 4095"),
        (json!({"vlan": -1}), "vlan: -1"),
        (
            json!({"vlanTrunk": [{"id": 7}, {"minID": 9, "maxID": 8}]}),
            "vlanTrunk[1].maxID: 8",
        ),
        (json!({"vlanTrunk": [{"minID": 9}]}), "vlanTrunk[0].maxID"),
        (
            json!({"bridge": "twelve-bytes", "vlan": 100}),
            "twelve-bytes.100",
        ),
    ] {
        let config = with(routed(), change);
        for command in ["ADD", "CHECK", "STATUS"] {
            let checked = with_result(&config, &json!({"cniVersion": "1.1.0"}));
            let output = lab.call("c1").run(command, &checked);
            assert_refused(&output, 7, &[key]);
        }
        lab.del("c1", &config);
        assert_eq!(lab.node.links(), [] as [String; 0]);
        let dir = lab.node.dir.path().join("net.d");
        std::fs::create_dir_all(&dir).unwrap();
        let list = json!({"cniVersion": "1.1.0", "name": "net1", "plugins": [config]});
        std::fs::write(dir.join("10-net1.conflist"), list.to_string()).unwrap();
        let told = lab.node.cnitool(&dir, &["validate"]);
        assert!(!told.ok && told.stdout.contains(key), "{told:?}");
    }
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn containers_of_one_vlan_talk_and_of_two_do_not() {
    let lab = Lab::new();
    let net = |change: Value| with(with(routed(), json!({"isDefaultGateway": false})), change);
    lab.add("red", &net(json!({})));
    lab.add("blue", &net(json!({})));
    let green = lab.add("green", &net(json!({"vlan": 200})));
    lab.add("plain", &net(json!({"vlan": 0})));
    for address in ["10.9.0.3", "fd00:9::3"] {
        assert!(lab.reaches("red", address));
    }
    for address in ["10.9.0.4", "fd00:9::4", "10.9.0.5", "fd00:9::5"] {
        assert!(!lab.reaches("red", address), "{address}");
    }
    assert!(!lab.reaches("green", "10.9.0.5"));
    // It is the VLAN that keeps them apart, and nothing else.
    let port = host_end(&green);
    let join = format!("bridge vlan add dev {port} vid 100 pvid untagged");
    lab.node.sh(&join);
    assert!(lab.reaches("red", "10.9.0.4"));
    for name in ["red", "blue", "green", "plain"] {
        lab.del(name, &net(json!({})));
    }
    lab.assert_clean();
}

/// `cnitool doctor`: the port's VLANs differ from the configuration's, and what it prints
/// mends that.
#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn a_port_in_another_vlan_is_told() {
    let lab = Lab::new();
    let conf = lab.node.dir.path().join("net.d");
    std::fs::create_dir(&conf).unwrap();
    let list = json!({"cniVersion": "1.0.0", "name": "net1", "plugins": [
        with(routed(), json!({"vlanTrunk": [{"id": 300}]})),
    ]});
    std::fs::write(conf.join("10-net1.conflist"), list.to_string()).unwrap();
    let netns = lab.node.netns("c1");
    let result = lab.node.cnitool(&conf, &["add", "net1", &netns]).json();
    let end = host_end(&result);
    let doctor = || {
        let found = lab.node.cnitool(&conf, &["doctor", "--json"]);
        let found: Value = serde_json::from_str(&found.stdout).unwrap();
        found["findings"].as_array().unwrap().clone()
    };
    assert_eq!(doctor(), Vec::<Value>::new());
    for (fault, told) in [
        (
            format!("bridge vlan del dev {end} vid 100"),
            "it is to be in VLAN 100 (pvid untagged), and is not in it",
        ),
        (
            format!("bridge vlan add dev {end} vid 300 untagged"),
            "it is to be in VLAN 300 (tagged), and is untagged",
        ),
        (
            format!("bridge vlan add dev {end} vid 7"),
            "it is in VLAN 7, and its network does not ask for that",
        ),
        (
            "ip link set br1 type bridge vlan_filtering 0".to_owned(),
            "it does not filter VLANs, and its network asks for them",
        ),
    ] {
        lab.node.sh(&fault);
        let found = doctor();
        let what = found[0]["what"].as_str().unwrap();
        assert!(what.starts_with(told), "{found:#?}");
        lab.node.sh(found[0]["mend"].as_str().unwrap());
        assert_eq!(doctor(), Vec::<Value>::new(), "{fault}");
    }
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn a_trunk_carries_tagged_frames_of_its_vlans_only() {
    let lab = Lab::new();
    let access = with(routed(), json!({"isDefaultGateway": false}));
    lab.add("red", &access);
    lab.add("green", &with(access.clone(), json!({"vlan": 200})));
    let trunk = layer2(json!({"vlanTrunk": [{"id": 100}, {"minID": 300, "maxID": 310}]}));
    let result = lab.add("trunk", &trunk);
    for vlan in [100, 200] {
        lab.node.sh(&format!(
            "ip -n trunk link add link eth0 name eth0.{vlan} type vlan id {vlan} && \
             ip -n trunk addr add 10.9.0.{}/32 dev eth0.{vlan} && \
             ip -n trunk link set eth0.{vlan} up",
            vlan / 2
        ));
    }
    lab.node.sh(
        "ip -n trunk route add 10.9.0.2 dev eth0.100 src 10.9.0.50 && \
         ip -n trunk route add 10.9.0.3 dev eth0.200 src 10.9.0.100",
    );
    let capture = lab.node.dir.path().join("frames");
    lab.node.sh(&format!(
        "ip netns exec trunk tcpdump -i eth0 -n -e -U -c 4 -w {0} not ip6 2>{0}.log & \
         for i in $(seq 100); do grep -q listening {0}.log 2>/dev/null && break; sleep 0.1; done; \
         ip netns exec trunk ping -n -c 2 -W 1 10.9.0.2; wait",
        capture.display()
    ));
    let frames = lab.node.sh(&format!(
        "tcpdump -n -e -r {} 2>/dev/null",
        capture.display()
    ));
    let reply = "vlan 100, p 0, ethertype IPv4";
    assert!(
        frames.contains(reply) && frames.contains("echo reply"),
        "{frames}"
    );
    assert!(!lab.reaches("trunk", "10.9.0.3"));
    let port = host_end(&result);
    lab.node.sh(&format!("bridge vlan add dev {port} vid 200"));
    assert!(lab.reaches("trunk", "10.9.0.3"));
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn ports_are_members_of_what_was_asked_for() {
    let lab = Lab::new();
    let native = |vlan: &str| format!("{vlan} PVID Egress Untagged");
    for (index, (change, expected)) in [
        (json!({"vlan": 5}), vec![native("5")]),
        (
            json!({"vlan": 5, "preserveDefaultVlan": true}),
            vec!["1 Egress Untagged".into(), native("5")],
        ),
        (
            json!({"vlan": 100, "vlanTrunk": [{"minID": 10, "maxID": 12}, {"id": 20}]}),
            vec![
                "10".into(),
                "11".into(),
                "12".into(),
                "20".into(),
                native("100"),
            ],
        ),
        (
            json!({"vlanTrunk": [{"id": 7}, {"id": 7}]}),
            vec![native("1"), "7".into()],
        ),
        (
            json!({"vlan": 7, "vlanTrunk": [{"minID": 6, "maxID": 8}]}),
            vec!["6".into(), native("7"), "8".into()],
        ),
        (json!({"vlanTrunk": []}), vec![native("1")]),
        (json!({"preserveDefaultVlan": true}), vec![native("1")]),
    ]
    .into_iter()
    .enumerate()
    {
        let config = layer2(change);
        let name = format!("c{index}");
        let result = lab.add(&name, &config);
        assert_eq!(lab.vlans(host_end(&result)), expected, "{config}");
        let checked = with_result(&config, &result);
        lab.call(&name).run("CHECK", &checked).silent();
        lab.del(&name, &config);
    }
    // All of them, as one range.
    let all = layer2(json!({"vlan": 1, "vlanTrunk": [{"minID": 1, "maxID": 4094}]}));
    let result = lab.add("all", &all);
    assert_eq!(lab.vlans(host_end(&result)).len(), 4094);
    lab.call("all")
        .run("CHECK", &with_result(&all, &result))
        .silent();
    lab.del("all", &all);
    lab.assert_clean();
    // A bridge may have another default, or none.
    for default in [9, 0] {
        lab.node.sh(&format!(
            "ip link set br1 type bridge vlan_filtering 0 && \
             ip link set br1 type bridge vlan_default_pvid {default} vlan_filtering 1"
        ));
        let name = format!("d{default}");
        let result = lab.add(&name, &layer2(json!({"vlan": 5})));
        assert_eq!(lab.vlans(host_end(&result)), [native("5")]);
    }
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn the_gateway_of_a_vlan_answers_and_goes_with_its_last_container() {
    let lab = Lab::new();
    // Another machine, which knows no way back.
    lab.node.netns("world");
    lab.node
        .sh("ip link add up0 type veth peer name eth0 netns world && \
         ip addr add 192.0.2.1/24 dev up0 && ip link set up0 up && \
         ip -n world addr add 192.0.2.2/24 dev eth0 && ip -n world link set eth0 up");
    let config = with(
        routed(),
        json!({"ipMasq": true, "macspoofchk": true, "portIsolation": true}),
    );
    let red = lab.add("red", &config);
    lab.add("blue", &config);
    let gateway = &lab.node.ip("addr show dev br1.100")[0];
    let interface = json!({"name": "br1.100", "mac": gateway["address"]});
    assert_eq!(red["interfaces"][3], interface);
    assert_eq!(red["interfaces"].as_array().unwrap().len(), 4);
    let addresses: Vec<&Value> = gateway["addr_info"].as_array().unwrap().iter().collect();
    let has = |address: &str| addresses.iter().any(|a| a["local"] == address);
    assert!(has("10.9.0.1") && has("fd00:9::1"), "{gateway}");
    let bridge = lab.node.ip("addr show dev br1")[0]["addr_info"].to_string();
    assert!(
        !bridge.contains("10.9.0.1") && !bridge.contains("fd00:9::1"),
        "{bridge}"
    );
    for link in ["br1", "br1.100"] {
        let accepts = lab
            .node
            .sh(&format!("cat /proc/sys/net/ipv6/conf/{link}/accept_ra"));
        assert_eq!(accepts.trim(), "0", "{link}");
    }
    for address in ["10.9.0.1", "fd00:9::1", "192.0.2.2"] {
        assert!(lab.reaches("red", address), "{address}");
        assert!(lab.reaches("blue", address), "{address}");
    }
    // Isolated ports reach the gateway, and not each other.
    assert!(!lab.reaches("red", "10.9.0.3"));
    let port = lab
        .node
        .ip("link show master br1")
        .as_array()
        .unwrap()
        .clone();
    let port = port
        .iter()
        .find(|l| l["ifalias"].to_string().contains("gateway"));
    let port = port.unwrap()["ifname"].as_str().unwrap();
    assert_eq!(lab.vlans(port), ["100 PVID Egress Untagged"]);

    lab.call("red")
        .run("CHECK", &with_result(&config, &red))
        .silent();
    lab.del("red", &config);
    lab.del("red", &config);
    assert!(lab.reaches("blue", "10.9.0.1"));
    // Without its namespace.
    lab.node.sh("ip netns del blue");
    lab.del("blue", &config);
    lab.node.sh("ip link del up0");
    lab.assert_clean();
    assert!(!lab.node.sh("nft list ruleset").contains("10.9.0."));
    // And from the start once more.
    lab.add("green", &config);
    assert!(lab.reaches("green", "fd00:9::1"));
    lab.del("green", &config);
    lab.assert_clean();
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn whoever_is_in_the_vlan_keeps_its_gateway() {
    let lab = Lab::new();
    let gateway = || lab.node.links().contains(&"br1.100".to_owned());
    // A container on a trunk, and one of another network without a gateway.
    let trunk = layer2(json!({"vlanTrunk": [{"id": 100}]}));
    let other = layer2(json!({"vlan": 100, "name": "other"}));
    let elsewhere = with(
        routed(),
        json!({"vlan": 200, "name": "net2",
        "ipam": {"type": "host-local", "subnet": "10.8.0.0/24"}}),
    );
    lab.add("a", &routed());
    lab.add("b", &trunk);
    lab.add("c", &other);
    lab.add("d", &elsewhere);
    lab.del("a", &routed());
    assert!(gateway());
    lab.del("b", &trunk);
    assert!(gateway());
    lab.del("c", &other);
    assert!(!gateway());
    assert!(lab.reaches("d", "10.8.0.1"));
    // GC does what nobody's DEL did.
    lab.add("e", &routed());
    lab.node.sh("ip netns del e; for i in $(seq 100); do \
                 ip link show type veth | grep -q 'container e' || break; sleep 0.1; done");
    assert!(gateway());
    let gc = |config: Value| with(config, json!({"cni.dev/valid-attachments": []}));
    lab.node.plugin("bridge").run("GC", &gc(routed())).silent();
    assert!(!gateway());
    assert!(lab.reaches("d", "10.8.0.1"));
    lab.del("d", &elsewhere);
    lab.assert_clean();
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn gc_knows_the_vlans_of_its_own_network() {
    let lab = Lab::new();
    let has = |link: &str| lab.node.links().contains(&link.to_owned());
    let elsewhere = with(
        routed(),
        json!({"vlan": 200, "name": "net2",
        "ipam": {"type": "host-local", "subnet": "10.8.0.0/24"}}),
    );
    lab.add("a", &routed());
    // Somebody takes away the last member of the other VLAN.
    let other = lab.add("b", &elsewhere);
    lab.node.sh(&format!("ip link del {}", host_end(&other)));
    let conf = lab.node.dir.path().join("net.d");
    std::fs::create_dir(&conf).unwrap();
    let list = json!({"cniVersion": "1.1.0", "name": "net1", "plugins": [routed()]});
    std::fs::write(conf.join("net1.conflist"), list.to_string()).unwrap();
    // No cache knows of a: its link goes, and so does the gateway.
    let dry = lab.node.cnitool(&conf, &["gc", "net1", "--dry-run"]);
    assert!(
        dry.stdout.contains("would remove VLAN gateway br1.100\n"),
        "{dry:?}"
    );
    assert!(!dry.stdout.contains("br1.200"), "{dry:?}");
    let gc = |config: Value| with(config, json!({"cni.dev/valid-attachments": []}));
    lab.node.plugin("bridge").run("GC", &gc(routed())).silent();
    assert!(!has("br1.100") && has("br1.200"));
    lab.node.plugin("bridge").run("GC", &gc(elsewhere)).silent();
    lab.assert_clean();
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn an_add_that_fails_leaves_no_gateway() {
    let lab = Lab::new();
    // A gateway that nobody can reach makes the container's route fail, after all else.
    let broken = with(
        routed(),
        json!({"ipam": {"type": "host-local", "subnet": "10.9.0.0/24",
        "routes": [{"dst": "10.7.0.0/16", "gw": "10.66.0.1"}]}}),
    );
    lab.node.netns("c1");
    assert!(!lab.call("c1").run("ADD", &broken).ok);
    lab.assert_clean();
    // One that others use stays.
    lab.add("red", &routed());
    lab.node.netns("c2");
    assert!(!lab.call("c2").run("ADD", &broken).ok);
    assert!(lab.reaches("red", "10.9.0.1"));
    // Another network's address is in the way, unless it is to be replaced.
    let other = with(
        routed(),
        json!({"name": "net2",
        "ipam": {"type": "host-local", "subnet": "10.8.0.0/24"}}),
    );
    let sentence = "failed to set vlan interface for bridge with addr: \"br1.100\" already \
                    has an IP address different from 10.8.0.1/24";
    assert_refused(
        &lab.call("c2").run("ADD", &other),
        7,
        &[sentence, "forceAddress"],
    );
    assert!(lab.reaches("red", "10.9.0.1"));
    let forced = with(other, json!({"forceAddress": true}));
    lab.call("c2").run("ADD", &forced).json();
    assert!(lab.reaches("c2", "10.8.0.1"));
    lab.del("c2", &forced);
    lab.del("red", &routed());
    lab.assert_clean();
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn what_a_killed_add_left_is_mended_and_goes() {
    let lab = Lab::new();
    // Killed after the pair was made, and nothing else.
    lab.node
        .sh("ip link add br1.100 type veth peer name veth0123abcd");
    let result = lab.add("red", &routed());
    assert_eq!(result["interfaces"][3]["name"], "br1.100");
    assert_eq!(lab.vlans("veth0123abcd"), ["100 PVID Egress Untagged"]);
    assert!(lab.reaches("red", "10.9.0.1"));
    lab.del("red", &routed());
    lab.assert_clean();
    // With no ADD after it.
    lab.node
        .sh("ip link add br1.100 type veth peer name veth0123abcd");
    lab.del("red", &routed());
    lab.assert_clean();
    // Killed at any later step: DEL cleans up.
    lab.node.netns("blue");
    for step in (1..=100).step_by(4) {
        let strace = "strace -f -q -e trace=sendto -e signal=none -o /dev/null";
        let plugin = lab.node.bin.join("bridge");
        let killed = lab.node.succeeds(&format!(
            "echo '{}' | env -i CNI_COMMAND=ADD CNI_CONTAINERID=blue CNI_IFNAME=eth0 \
             CNI_NETNS=/run/netns/blue CNI_PATH={} \
             {strace} -e inject=sendto:signal=KILL:when={step} {} >/dev/null",
            routed(),
            lab.node.bin.display(),
            plugin.display(),
        ));
        lab.del("blue", &routed());
        lab.assert_clean();
        if killed {
            assert!(step > 8, "the plugin sends more than that");
            return;
        }
    }
    unreachable!("the plugin does not send that often");
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn adds_and_dels_at_once_never_lose_the_gateway() {
    let lab = Lab::new();
    let names: Vec<String> = (0..4).map(|n| format!("c{n}")).collect();
    for name in &names {
        lab.node.netns(name);
    }
    std::thread::scope(|scope| {
        for name in &names {
            let call = lab.call(name);
            scope.spawn(move || {
                for _ in 0..5 {
                    let result = call.run("ADD", &routed()).json();
                    // CHECK finds the gateway there, up, and with its addresses.
                    call.run("CHECK", &with_result(&routed(), &result)).silent();
                    call.run("DEL", &routed()).silent();
                }
            });
        }
    });
    lab.assert_clean();
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn a_bridge_that_is_there_must_filter_or_have_no_ports() {
    let lab = Lab::new();
    let is_on = || {
        let link = &lab.node.ip("link show dev br1")[0];
        link["linkinfo"]["info_data"]["vlan_filtering"] == 1
    };
    lab.node.sh("ip link add br1 type bridge");
    lab.node.plugin("bridge").run("STATUS", &routed()).silent();
    lab.add("red", &routed());
    assert!(is_on() && lab.reaches("red", "10.9.0.1"));
    lab.del("red", &routed());
    // A port that may send tagged frames.
    lab.node
        .sh("ip link set br1 type bridge vlan_filtering 0 && \
         ip link add up0 type dummy && ip link set up0 master br1");
    let words = [
        "\"vlan\": 100",
        "bridge br1",
        "does not filter",
        "vlan_filtering 1",
    ];
    assert_refused(&lab.call("red").run("ADD", &routed()), 7, &words);
    let status = lab.node.plugin("bridge").run("STATUS", &routed());
    assert_refused(&status, 50, &words);
    assert!(!is_on());
    lab.node.sh("ip link del up0");
    lab.assert_clean();
    // Others at once: whoever comes first switches it on.
    lab.node.sh("ip link set br1 type bridge vlan_filtering 0");
    std::thread::scope(|scope| {
        for name in ["a", "b", "c"] {
            lab.node.netns(name);
            let call = lab.call(name);
            scope.spawn(move || call.run("ADD", &routed()).json());
        }
    });
    assert!(is_on());
    for name in ["a", "b", "c"] {
        assert!(lab.reaches(name, "10.9.0.1"));
        lab.del(name, &routed());
    }
    lab.assert_clean();
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn a_filtering_bridge_of_somebody_else_passes_frames_at_once() {
    let lab = Lab::new();
    // As a network manager makes it: with an uplink that is a trunk, and an address that was
    // there before the first port, so that the bridge's carrier never changes.
    lab.node.sh(
        "ip link add br1 address 52:54:00:aa:bb:cc type bridge vlan_filtering 1 stp_state 0 && \
         ip link set br1 up && \
         ip netns add ext && ip link add up0 type veth peer name up1 netns ext && \
         ip link set up0 master br1 up && bridge vlan add dev up0 vid 100 && \
         ip -n ext link set up1 up && ip -n ext link add link up1 name up1.100 type vlan id 100 && \
         ip -n ext addr add 10.9.0.77/24 dev up1.100 && ip -n ext link set up1.100 up",
    );
    lab.node.netns("red");
    let added = lab.call("red").run("ADD", &routed());
    assert_eq!(added.stderr, "");
    added.json();
    for address in ["10.9.0.1", "10.9.0.77"] {
        assert!(lab.reaches("red", address), "{address}");
    }
    lab.del("red", &routed());
    assert!(lab.node.succeeds("ip link show dev br1"));
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn an_add_that_fails_leaves_a_bridge_as_it_was() {
    let lab = Lab::new();
    let broken = with(
        routed(),
        json!({"ipam": {"type": "host-local", "subnet": "10.9.0.0/24",
        "routes": [{"dst": "10.7.0.0/16", "gw": "10.66.0.1"}]}}),
    );
    lab.node.netns("c1");
    lab.call("c1").run("ADD", &broken).error();
    assert_eq!(lab.node.links(), [] as [String; 0]);
    lab.node.sh("ip link add br1 type bridge");
    lab.call("c1").run("ADD", &broken).error();
    let link = &lab.node.ip("link show dev br1")[0];
    assert_eq!(link["linkinfo"]["info_data"]["vlan_filtering"], 0);
    assert_eq!(link["operstate"], "DOWN");
    assert_eq!(lab.node.links(), ["br1"]);
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn check_misses_vlans_filtering_and_gateway() {
    let lab = Lab::new();
    let config = with(routed(), json!({"vlanTrunk": [{"minID": 10, "maxID": 12}]}));
    let result = lab.add("red", &config);
    let checked = with_result(&config, &result);
    let check = || lab.call("red").run("CHECK", &checked);
    let port = host_end(&result);
    check().silent();
    for (change, words) in [
        (
            format!("bridge vlan del dev {port} vid 11"),
            vec!["VLAN 11", "tagged", "not in it"],
        ),
        (
            format!("bridge vlan add dev {port} vid 11 untagged"),
            vec!["VLAN 11", "tagged", "found untagged"],
        ),
        (
            format!("bridge vlan add dev {port} vid 100 untagged"),
            vec!["VLAN 100", "pvid untagged", "found untagged"],
        ),
        (
            "ip link set br1 type bridge vlan_filtering 0".to_owned(),
            vec!["bridge br1", "VLAN filtering", "off"],
        ),
        (
            "ip addr del 10.9.0.1/24 dev br1.100".to_owned(),
            vec!["br1.100", "10.9.0.1/24"],
        ),
        (
            "ip link del br1.100".to_owned(),
            vec!["VLAN 100", "br1.100", "no such link"],
        ),
    ] {
        lab.node.sh(&change);
        let (_, message, details) = check().error();
        for word in words {
            let told = format!("{message} {details}");
            assert!(told.contains(word), "{change}: {told}");
        }
    }
    // All mended; what the operator adds is none of our business.
    lab.node.sh(&format!(
        "ip link set br1 type bridge vlan_filtering 1 && bridge vlan add dev {port} vid 11 && \
         bridge vlan add dev {port} vid 100 pvid untagged && bridge vlan add dev {port} vid 500"
    ));
    lab.add("blue", &config);
    check().silent();
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn every_version_gets_its_own_result_form() {
    let lab = Lab::new();
    for (index, version) in [
        "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
    ]
    .into_iter()
    .enumerate()
    {
        let config = with(routed(), json!({"cniVersion": version}));
        let name = format!("v{index}");
        let result = lab.add(&name, &config);
        if index < 2 {
            assert_eq!(result["ip4"]["gateway"], "10.9.0.1");
            assert!(result.get("interfaces").is_none());
        } else {
            assert_eq!(result["interfaces"].as_array().unwrap().len(), 4);
            assert_eq!(result["interfaces"][3]["name"], "br1.100");
            assert!(result["interfaces"][3].get("sandbox").is_none());
            assert_eq!(result["ips"][0]["interface"], 2);
        }
        let checked = with_result(&config, &result);
        if index >= 4 {
            lab.call(&name).run("CHECK", &checked).silent();
        }
        lab.call(&name).run("DEL", &checked).silent();
        lab.assert_clean();
    }
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn the_operators_own_interface_is_used_and_stays() {
    let lab = Lab::new();
    lab.node.sh(
        "ip link add br1 type bridge vlan_filtering 1 && ip link set br1 up && \
         bridge vlan add dev br1 vid 100 self && \
         ip link add link br1 name br1.100 type vlan id 100",
    );
    let result = lab.add("red", &routed());
    assert_eq!(result["interfaces"][3]["name"], "br1.100");
    assert!(lab.reaches("red", "10.9.0.1"));
    lab.del("red", &routed());
    assert_eq!(lab.leftovers(), ["br1.100"]);
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn the_gateway_sends_no_more_than_the_bridge_carries() {
    let lab = Lab::new();
    let mtu = |link: &str| lab.node.ip(&format!("link show dev {link}"))[0]["mtu"].clone();
    let jumbo = with(routed(), json!({"mtu": 9000}));
    // Again after the last one left: the bridge then is back at 1500.
    for name in ["a", "b"] {
        let result = lab.add(name, &jumbo);
        assert_eq!(result["interfaces"][2]["mtu"], 9000);
        assert_eq!(mtu("br1.100"), 9000);
        assert!(lab.node.succeeds(&format!(
            "ip netns exec {name} ping -n -M do -s 8000 -c 1 -W 1 10.9.0.1"
        )));
        lab.del(name, &jumbo);
        lab.assert_clean();
    }
    lab.add("c", &jumbo);
    lab.add("d", &with(routed(), json!({"mtu": 1400})));
    assert_eq!((mtu("br1"), mtu("br1.100")), (json!(1400), json!(1400)));
}

#[test]
#[ignore = "needs bridge VLAN filtering: make test-vm"]
fn what_one_implementation_added_the_other_removes() {
    let lab = Lab::new();
    let reference = Path::new(REFERENCE).join("bridge");
    assert!(
        reference.exists(),
        "the reference plugins are missing: make test-packages"
    );
    // 1.0.0 is what Debian's reference speaks.
    let config = with(routed(), json!({"cniVersion": "1.0.0"}));
    lab.node.netns("red");
    lab.node.netns("blue");
    let theirs = |name: &str| {
        let path = format!("{REFERENCE}:{}", lab.node.bin.display());
        lab.call(name).env("CNI_PATH", &path).executable(&reference)
    };
    let result = theirs("red").run("ADD", &config).json();
    assert_eq!(result["interfaces"][3]["name"], "br1.100");
    let checked = with_result(&config, &result);
    lab.call("red").run("CHECK", &checked).silent();
    // Their gateway serves ours, and goes with the last of both.
    lab.call("blue").run("ADD", &config).json();
    assert!(lab.reaches("blue", "10.9.0.1") && lab.reaches("blue", "10.9.0.2"));
    lab.call("red").run("DEL", &checked).silent();
    assert!(lab.reaches("blue", "10.9.0.1"));
    lab.del("blue", &config);
    lab.assert_clean();
    // And the other way round; what the reference leaves, the next of ours takes along.
    let ours = lab.call("red").run("ADD", &config).json();
    theirs("red")
        .run("CHECK", &with_result(&config, &ours))
        .silent();
    theirs("red")
        .run("DEL", &with_result(&config, &ours))
        .silent();
    assert_eq!(lab.leftovers().len(), 2);
    lab.call("blue").run("ADD", &config).json();
    lab.del("blue", &config);
    lab.assert_clean();
}
