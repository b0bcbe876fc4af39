//! The bandwidth plugin on the real kernel: the built binary, called as a runtime calls
//! it, judged with `tc`, by what the kernel's queues count when data is sent.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot do its work says so by panicking"
)]

mod common;

use std::path::Path;

use common::{Call, Node, REFERENCE, with};
use serde_json::{Value, json};

/// 8 Mbit/s and bursts of 100 kB both ways.
fn limits() -> Value {
    json!({"ingressRate": 8_000_000, "ingressBurst": 800_000,
           "egressRate": 8_000_000, "egressBurst": 800_000})
}

fn ptp() -> Value {
    json!({"cniVersion": "1.0.0", "name": "net1", "type": "ptp",
           "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}})
}

/// `bandwidth` with `change`, after a plugin that answered `result`.
fn config(result: &Value, change: Value) -> Value {
    let config =
        json!({"cniVersion": "1.0.0", "name": "net1", "type": "bandwidth", "prevResult": result});
    with(config, change)
}

/// A container `c1` behind ptp; answers what that answered.
fn container(node: &Node) -> (Call, Value) {
    let c1 = node.netns("c1");
    let result = node.plugin("ptp").netns(&c1).run("ADD", &ptp()).json();
    (node.plugin("bandwidth").netns(&c1), result)
}

/// The names of ifb links.
fn ifbs(node: &Node) -> Vec<String> {
    let links = node.ip("link show type ifb");
    let links = links.as_array().unwrap().iter();
    links
        .map(|link| link["ifname"].as_str().unwrap().to_owned())
        .collect()
}

/// What `tc` tells of the root queue of a link.
fn queue(node: &Node, link: &str) -> Value {
    let text = node.sh(&format!("tc -s -j qdisc show dev {link}"));
    let all: Value = serde_json::from_str(&text).unwrap();
    let mut all = all.as_array().unwrap().iter().cloned();
    all.find(|queue| queue["root"] == true).unwrap()
}

fn host_end(result: &Value) -> &str {
    result["interfaces"][0]["name"].as_str().unwrap()
}

/// Sends 400 kB from one namespace (`""` is the host) to another, which has the address and
/// port of `target`.
fn send(node: &Node, from: &str, to: &str, target: &str) {
    let inside = |netns: &str| match netns {
        "" => String::new(),
        name => format!("ip netns exec {name} "),
    };
    node.sh(&format!(
        "{}socat -u TCP6-LISTEN:9,ipv6only=0,reuseaddr OPEN:/dev/null & server=$!
         until {}ss -Hltn | grep -q ':9 '; do sleep 0.01; done
         head -c 400000 /dev/zero | {}socat -u - TCP:{target}
         wait $server",
        inside(to),
        inside(to),
        inside(from),
    ));
}

#[test]
fn both_directions_are_limited() {
    let node = Node::new();
    let (call, before) = container(&node);
    let config = config(&before, limits());
    let result = call.run("ADD", &config).json();
    let ifb = &ifbs(&node)[0];
    let veth = host_end(&before);
    assert_eq!(
        result["interfaces"][2],
        json!({"name": ifb, "mac": node.ip(&format!("link show dev {ifb}"))[0]["address"]})
    );
    for link in [veth, ifb] {
        let text = node.sh(&format!("tc qdisc show dev {link}"));
        assert!(
            text.contains("qdisc tbf 1: root")
                && text.contains("rate 8Mbit burst 100000b lat 25ms"),
            "{text}"
        );
        assert_eq!(queue(&node, link)["overlimits"], 0);
    }
    send(&node, "", "c1", "10.9.0.2:9");
    assert!(queue(&node, veth)["overlimits"].as_u64().unwrap() > 0);
    let sent = queue(&node, ifb)["bytes"].as_u64().unwrap();
    assert!(sent < 200_000, "acknowledgements only: {sent}");
    send(&node, "c1", "", "10.9.0.1:9");
    let limited = queue(&node, ifb);
    assert!(limited["overlimits"].as_u64().unwrap() > 0, "{limited}");
    assert!(limited["bytes"].as_u64().unwrap() > 400_000, "{limited}");

    let added = with(config, json!({"prevResult": result}));
    call.run("CHECK", &added).silent();
    call.run("DEL", &added).silent();
    call.run("DEL", &added).silent();
    assert_eq!(ifbs(&node), [] as [String; 0]);
}

/// Bytes that a link has sent below its limit, and packets past it.
fn shares(node: &Node, link: &str) -> (u64, u64) {
    let text = node.sh(&format!("tc -s -j qdisc show dev {link}"));
    let all: Value = serde_json::from_str(&text).unwrap();
    let find = |kind: &str| {
        let mut all = all.as_array().unwrap().iter();
        all.find(|queue| queue["kind"] == kind).unwrap().clone()
    };
    let past = node.sh(&format!("tc -s qdisc show dev {link}"));
    let past = past.split("direct_packets_stat ").nth(1).unwrap();
    let past = past.split_whitespace().next().unwrap().parse().unwrap();
    (find("tbf")["bytes"].as_u64().unwrap(), past)
}

#[test]
fn subnets_are_spared_or_the_only_ones() {
    let node = Node::new();
    let (call, before) = container(&node);
    let veth = host_end(&before);
    let fast = json!({"ingressRate": 80_000_000, "ingressBurst": 800_000,
                      "egressRate": 80_000_000, "egressBurst": 800_000});
    // Whom the container talks to: the host, by several addresses.
    node.sh("ip addr add 192.0.2.1/32 dev lo; ip addr add fd00::1/128 dev lo");
    node.sh(&format!(
        "ip -n c1 addr add fd00:9::2/64 dev eth0 nodad; \
        ip addr add fd00:9::1/64 dev {veth} nodad; ip -n c1 route add default via fd00:9::1; \
        ip -n c1 route add default via 10.9.0.1"
    ));
    for (keys, is_limited) in [
        (
            json!({"unshapedSubnets": ["192.0.2.0/24", "fd00::/64"]}),
            false,
        ),
        (
            json!({"shapedSubnets": ["192.0.2.1/32", "fd00::1/128"]}),
            true,
        ),
    ] {
        let config = config(&before, with(fast.clone(), keys.clone()));
        let result = call.run("ADD", &config).json();
        let ifb = ifbs(&node)[0].clone();
        let added = with(config, json!({"prevResult": result}));
        call.run("CHECK", &added).silent();
        for (from, to, link) in [("c1", "", ifb.as_str()), ("", "c1", veth)] {
            for (source, address, is_named) in [
                ("192.0.2.1", "10.9.0.2", true),
                ("[fd00::1]", "[fd00:9::2]", true),
                ("10.9.0.1", "10.9.0.2", false),
            ] {
                let (limited, past) = shares(&node, link);
                let target = if from.is_empty() {
                    format!("{address}:9,bind={source}")
                } else {
                    format!("{source}:9")
                };
                send(&node, from, to, &target);
                let now = shares(&node, link);
                let was_limited = now.0 > limited + 400_000;
                assert_eq!(
                    was_limited,
                    is_named == is_limited,
                    "{keys} {link} {source}"
                );
                assert_eq!(now.1 > past + 10, !was_limited, "{keys} {link} {source}");
            }
        }
        // What somebody else does with the filters shows.
        node.sh(&format!("tc filter del dev {ifb} parent 1: prio 15"));
        let (_, message, _) = call.run("CHECK", &added).error();
        assert!(message.contains("found it of other subnets"), "{message}");
        call.run("DEL", &added).silent();
        assert_eq!(ifbs(&node), [] as [String; 0]);
        node.sh(&format!("tc qdisc del dev {veth} ingress"));
    }
    // A limit of all takes the place of what is left on the host's end.
    let config = config(&before, limits());
    call.run("ADD", &config).json();
    call.run("CHECK", &config).silent();
    assert_eq!(queue(&node, veth)["kind"], "tbf");
    let alone = json!({"cniVersion": "1.1.0", "name": "net1", "shapedSubnets": ["10.0.0.0/8"]});
    let alone = with(alone, limits());
    node.plugin("bandwidth").run("STATUS", &alone).silent();
    let refused = node.refusals("bandwidth", &alone);
    assert!(
        refused.iter().any(|text| text.contains("sch_htb")),
        "{refused:?}"
    );
}

#[test]
fn without_limits_nothing_is_touched() {
    let node = Node::new();
    let (call, before) = container(&node);
    let unlimited = config(&before, json!({}));
    let passed = call.run("ADD", &unlimited).json();
    assert_eq!(passed, before);
    call.run("CHECK", &unlimited).silent();
    call.run("DEL", &unlimited).silent();
    assert_eq!(node.links(), [host_end(&before)]);
    let text = node.sh(&format!("tc qdisc show dev {}", host_end(&before)));
    assert!(!text.contains("tbf"), "{text}");
    // Nor is there anything to crash on.
    let alone = json!({"cniVersion": "1.0.0", "name": "net1", "type": "bandwidth"});
    assert_eq!(call.run("ADD", &alone).error().0, 7);
    call.run("DEL", &alone).silent();
}

#[test]
fn status_tries_what_add_takes_of_the_kernel() {
    let node = Node::new();
    let alone = json!({"cniVersion": "1.1.0", "name": "net1", "type": "bandwidth"});
    let status = |change| {
        node.plugin("bandwidth")
            .run("STATUS", &with(alone.clone(), change))
    };
    status(json!({})).silent();
    status(limits()).silent();
    let refused = node.refusals("bandwidth", &with(alone.clone(), limits()));
    for missing in ["sch_tbf", "module ifb", "sch_ingress, cls_u32, act_mirred"] {
        assert!(
            refused.iter().any(|text| text.contains(missing)),
            "{missing}: {refused:?}"
        );
    }
    assert_eq!(node.links(), [] as [String; 0]);
    assert!(!node.sh("tc qdisc show dev lo").contains("tbf"));
}

#[test]
fn the_runtimes_limits_are_taken_in_every_version() {
    let node = Node::new();
    let c1 = node.netns("c1");
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let version = json!({"cniVersion": version});
        let ptp = with(ptp(), version.clone());
        let before = node.plugin("ptp").netns(&c1).run("ADD", &ptp).json();
        let call = node.plugin("bandwidth").netns(&c1);
        let config = with(
            config(&before, version.clone()),
            json!({"runtimeConfig": {"bandwidth": {"egressRate": 80_000, "egressBurst": 80_000}}}),
        );
        let result = call.run("ADD", &config).json();
        let interfaces = result["interfaces"].as_array().unwrap();
        assert_eq!(interfaces.len(), 3, "{result}");
        assert_eq!(interfaces[2]["name"], ifbs(&node)[0].as_str());
        let added = with(config, json!({"prevResult": result}));
        if version["cniVersion"].as_str().unwrap() >= "0.4.0" {
            call.run("CHECK", &added).silent();
        }
        call.run("DEL", &added).silent();
        node.plugin("ptp").netns(&c1).run("DEL", &ptp).silent();
        assert_eq!(node.links(), [] as [String; 0]);
    }
    let old = json!({"cniVersion": "0.2.0", "name": "n", "type": "bandwidth"});
    assert_eq!(
        node.plugin("bandwidth")
            .netns(&c1)
            .run("ADD", &old)
            .error()
            .0,
        1
    );
}

#[test]
fn del_and_gc_remove_the_ifb_whatever_else_is_gone() {
    let node = Node::new();
    let (call, before) = container(&node);
    let config = config(&before, limits());
    call.run("ADD", &config).json();
    node.sh("ip netns del c1");
    let bare = json!({"cniVersion": "1.1.0", "name": "net1", "type": "bandwidth"});
    call.run("DEL", &bare).silent();
    assert_eq!(ifbs(&node), [] as [String; 0]);

    node.plugin("ptp").run("DEL", &ptp()).silent();
    let (call, before) = container(&node);
    call.run("ADD", &with(config, json!({"prevResult": before})))
        .json();
    assert_eq!(ifbs(&node).len(), 1);
    let gc = |valid: Value| with(bare.clone(), json!({"cni.dev/valid-attachments": valid}));
    assert_eq!(call.run("GC", &bare).error().0, 7);
    let mine = json!([{"containerID": "c1", "ifname": "eth0"}]);
    call.run("GC", &gc(mine)).silent();
    assert_eq!(ifbs(&node).len(), 1);
    call.run("GC", &with(gc(json!([])), json!({"name": "net2"})))
        .silent();
    assert_eq!(ifbs(&node).len(), 1);
    let collected = call.run("GC", &gc(json!([])));
    collected.silent();
    assert!(
        collected.stderr.contains("GC removed link bwp"),
        "{collected:?}"
    );
    assert_eq!(ifbs(&node), [] as [String; 0]);
}

#[test]
fn two_interfaces_of_one_container_have_their_own_limits() {
    let node = Node::new();
    let (call, first) = container(&node);
    let second = node
        .plugin("ptp")
        .netns("/run/netns/c1")
        .ifname("eth1")
        .run(
            "ADD",
            &with(
                ptp(),
                json!({"ipam": {"type": "static", "addresses": [
            {"address": "10.8.0.2/24", "gateway": "10.8.0.1"}]}}),
            ),
        )
        .json();
    call.run("ADD", &config(&first, limits())).json();
    let slower = json!({"egressRate": 800_000, "egressBurst": 800_000});
    let other = call.clone().ifname("eth1");
    other.run("ADD", &config(&second, slower.clone())).json();
    assert_eq!(ifbs(&node).len(), 2);
    call.run("CHECK", &config(&first, limits())).silent();
    other.run("CHECK", &config(&second, slower)).silent();
    assert!(
        node.sh(&format!("tc qdisc show dev {}", host_end(&first)))
            .contains("tbf")
    );
    assert!(
        !node
            .sh(&format!("tc qdisc show dev {}", host_end(&second)))
            .contains("tbf")
    );
    other.run("DEL", &config(&second, json!({}))).silent();
    call.run("CHECK", &config(&first, limits())).silent();
    call.run("DEL", &config(&first, json!({}))).silent();
    assert_eq!(ifbs(&node), [] as [String; 0]);
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    let node = Node::new();
    let (call, before) = container(&node);
    let veth = host_end(&before);
    // What somebody else does with it is in the way of the last step.
    node.sh(&format!(
        "tc qdisc add dev {veth} ingress
         tc filter add dev {veth} parent ffff: prio 1 protocol ip u32 match u32 0 0"
    ));
    let (_, message, _) = call.run("ADD", &config(&before, limits())).error();
    assert!(message.contains(veth), "{message}");
    assert_eq!(ifbs(&node), [] as [String; 0]);
    let left = node.sh(&format!("tc qdisc show dev {veth}"));
    assert!(!left.contains("tbf") && left.contains("ingress"), "{left}");
    let (code, message, details) = call
        .run("ADD", &config(&before, json!({"ingressRate": 8000})))
        .error();
    assert_eq!(
        (code, message.as_str()),
        (7, "if rate is set, burst must also be set")
    );
    assert!(details.starts_with("ingressBurst: "), "{details}");
}

#[test]
fn check_tells_expected_and_found() {
    let node = Node::new();
    let (call, before) = container(&node);
    let config = config(&before, limits());
    call.run("ADD", &config).json();
    call.run("CHECK", &config).silent();
    let (veth, ifb) = (host_end(&before), ifbs(&node)[0].clone());
    for (harm, part) in [
        (
            format!(
                "tc qdisc replace dev {veth} root handle 1: tbf rate 16mbit burst 100000 latency 25ms"
            ),
            "expected a limit of 1000000 bytes per second",
        ),
        (format!("tc qdisc del dev {veth} root"), "found no limit"),
        (format!("ip link del {ifb}"), "expected an ifb link"),
    ] {
        node.sh(&harm);
        let (_, message, details) = call.run("CHECK", &config).error();
        assert!(
            format!("{message}; {details}").contains(part),
            "{message}; {details}"
        );
    }
}

#[test]
fn what_one_implementation_added_the_other_removes() {
    let node = Node::new();
    let theirs = Path::new(REFERENCE).join("bandwidth");
    assert!(
        theirs.exists(),
        "the reference plugins are needed: see `make test`"
    );
    let (ours, before) = container(&node);
    let theirs = ours.clone().executable(theirs);
    let veth = host_end(&before);
    let mut seen = Vec::new();
    for (adds, other) in [(&ours, &theirs), (&theirs, &ours)] {
        let config = config(&before, limits());
        let result = adds.run("ADD", &config).json();
        let ifb = ifbs(&node)[0].clone();
        send(&node, "c1", "", "10.9.0.1:9");
        assert!(queue(&node, &ifb)["overlimits"].as_u64().unwrap() > 0);
        let strip = |text: String| text.lines().next().unwrap().to_owned();
        seen.push((
            ifb.clone(),
            strip(node.sh(&format!("tc qdisc show dev {ifb}"))),
            strip(node.sh(&format!("tc qdisc show dev {veth}"))),
        ));
        let added = with(config, json!({"prevResult": result}));
        other.run("CHECK", &added).silent();
        other.run("DEL", &added).silent();
        assert_eq!(ifbs(&node), [] as [String; 0]);
        node.sh(&format!(
            "tc qdisc del dev {veth} root; tc qdisc del dev {veth} ingress"
        ));
    }
    assert_eq!(seen[0], seen[1]);
}

/// Bits per second and bits: what people write, what Kubernetes makes of annotations, and what
/// ends at 32 or 64 bits of whatever is calculated of it.
const RATES: [u64; 12] = [
    7,
    8,
    80,
    1000,
    100_000,
    15_000_000,
    1_000_000_000,
    34_359_738_359,
    34_359_738_368,
    1_000_000_000_000,
    1 << 62,
    u64::MAX,
];
const BURSTS: [u64; 12] = [
    1,
    8,
    800,
    12_160,
    1_000_000,
    100_000_000,
    2_147_483_647,
    1 << 32,
    34_359_738_351,
    34_359_738_352,
    34_359_738_360,
    u64::MAX,
];

/// Whatever the limit, the kernel shows the same after either implementation's ADD, each
/// accepts in CHECK what the other has set, and both refuse the same in the same words.
#[test]
fn every_rate_and_burst_becomes_what_the_reference_makes_of_it() {
    let node = Node::new();
    let (ours, before) = container(&node);
    let theirs = ours
        .clone()
        .executable(Path::new(REFERENCE).join("bandwidth"));
    let veth = host_end(&before);
    let mut pairs = vec![(0, 8), (8, 0)];
    pairs.extend(
        RATES
            .iter()
            .flat_map(|rate| BURSTS.map(|burst| (*rate, burst))),
    );
    let mut accepted = 0;
    for (rate, burst) in pairs {
        let limits = json!({"ingressRate": rate, "ingressBurst": burst,
                            "egressRate": rate, "egressBurst": burst});
        let config = config(&before, limits);
        let mut answers = [(&theirs, &ours), (&ours, &theirs)].map(|(adds, other)| {
            let added = adds.run("ADD", &config);
            if !added.ok {
                return Err(added.error().1);
            }
            let links = [vec![veth.to_owned()], ifbs(&node)].concat();
            let show = |link: &String| node.sh(&format!("tc -d qdisc show dev {link}"));
            let shown = links.iter().map(show).collect::<Vec<_>>();
            let added = with(config.clone(), json!({"prevResult": added.json()}));
            for checks in [adds, other] {
                let checked = checks.run("CHECK", &added);
                assert!(checked.ok, "{rate} {burst}: {checked:?}");
            }
            other.run("DEL", &added).silent();
            node.sh(&format!(
                "tc qdisc del dev {veth} root; tc qdisc del dev {veth} ingress"
            ));
            Ok((links, shown))
        });
        // What the reference leaves of an ADD that fails.
        node.sh(&format!(
            "tc qdisc del dev {veth} root 2>/dev/null; tc qdisc del dev {veth} ingress 2>/dev/null; true"
        ));
        for ifb in ifbs(&node) {
            node.sh(&format!("ip link del {ifb}"));
        }
        let [theirs, ours] = &mut answers;
        assert_eq!(ours, theirs, "{rate} {burst}");
        accepted += usize::from(ours.is_ok());
    }
    assert!((50..140).contains(&accepted), "{accepted}");
}

#[test]
fn a_host_end_that_the_result_does_not_name_is_not_guessed() {
    let node = Node::new();
    let (ours, before) = container(&node);
    let theirs = ours
        .clone()
        .executable(Path::new(REFERENCE).join("bandwidth"));
    let interfaces = before["interfaces"].clone();
    let named = |change: Value| {
        let mut result = before.clone();
        result["interfaces"] = change;
        config(&result, limits())
    };
    let sandboxed = with(interfaces[0].clone(), json!({"sandbox": "/run/netns/c1"}));
    for (config, sentence) in [
        (named(json!([])), "no interfaces provided"),
        (
            named(json!([interfaces[1]])),
            "no veth peer of container interface found in host ns",
        ),
        (
            named(json!([sandboxed, interfaces[1]])),
            "no veth peer of container interface found in host ns",
        ),
    ] {
        for call in [&ours, &theirs] {
            let (code, message, _) = call.run("ADD", &config).error();
            assert_eq!((code, message.as_str()), (999, sentence));
            let (_, message, _) = call.run("CHECK", &config).error();
            assert_eq!(message, sentence);
        }
    }
    assert_eq!(node.links(), [host_end(&before)]);
    let shown = node.sh(&format!("tc qdisc show dev {}", host_end(&before)));
    assert!(!shown.contains("tbf"), "{shown}");
    // Both say more or less the same of a container without such an interface.
    let elsewhere = |call: &Call| {
        call.clone()
            .ifname("eth7")
            .run("ADD", &named(interfaces.clone()))
    };
    for call in [&ours, &theirs] {
        let (_, message, _) = elsewhere(call).error();
        let sentence = "container interface eth7 has no veth peer";
        assert!(message.starts_with(sentence), "{message}");
    }
}
