//! ADD to a bridge that somebody else made, as several tools make theirs: packets arrive, and
//! nothing is waited for that does not come.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot do its work says so by panicking; doors are for the product"
)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Call, Node, Output, Servers, with};
use serde_json::{Value, json};

/// Far more than an ADD takes on a loaded machine, and less than any wait in vain.
const CEILING: Duration = Duration::from_secs(1);

/// What a plugin that is slowed down may take without any wait.
const SLOW: Duration = Duration::from_secs(5);

/// How tools make a bridge that passes frames at once.
const MAKERS: [(&str, &str); 8] = [
    (
        "an administrator",
        "ip link add br0 type bridge && ip link set br0 up",
    ),
    (
        "an administrator, with the address it has",
        "ip link add br0 type bridge && ip link set br0 up && ip link set br0 address $(ip -o link show br0 | sed 's/.*ether //; s/ .*//')",
    ),
    (
        "ifupdown",
        "ip link add br0 type bridge forward_delay 0 stp_state 0 && ip link set br0 up && \
         ip addr add 192.168.50.1/24 brd + dev br0",
    ),
    (
        "systemd-networkd",
        "ip link add br0 type bridge && ip link set br0 address 3a:5e:11:22:33:44 addrgenmode none up && \
         ip addr add 192.168.50.1/24 dev br0",
    ),
    (
        "systemd-networkd with ConfigureWithoutCarrier",
        "ip link add br0 address 3a:5e:11:22:33:44 type bridge mcast_snooping 1 && \
         ip link set br0 addrgenmode none up && ip addr add 192.168.50.1/24 dev br0",
    ),
    (
        "NetworkManager without STP",
        "ip link add br0 address 52:54:00:aa:bb:cc type bridge stp_state 0 priority 32768 hello_time 200 \
         max_age 2000 ageing_time 30000 && ip link set br0 addrgenmode none && ip link set br0 up",
    ),
    (
        "docker",
        "ip link add br0 type bridge && ip link set br0 address 02:42:0a:0b:0c:0d && \
         ip addr add 192.168.50.1/24 brd + dev br0 && ip link set br0 up",
    ),
    (
        "libvirt without STP",
        "ip link add br0 address 52:54:00:11:22:33 type bridge stp_state 0 forward_delay 0 && \
         ip addr add 192.168.50.1/24 brd + dev br0 && ip link set br0 up",
    ),
];

/// The same with the spanning tree protocol, as by default with `NetworkManager` and libvirt; the
/// shortest delay that the kernel takes is 2 s.
const SPANNING: [(&str, &str); 2] = [
    (
        "NetworkManager",
        "ip link add br0 type bridge stp_state 1 forward_delay 200 && \
         ip link set br0 address 52:54:00:aa:bb:cc && ip link set br0 addrgenmode none && ip link set br0 up",
    ),
    (
        "libvirt",
        "ip link add br0 address 52:54:00:11:22:33 type bridge forward_delay 0 && \
         ip link set br0 type bridge stp_state 1 && \
         ip addr add 192.168.50.1/24 brd + dev br0 && ip link set br0 up",
    ),
];

/// A machine `ext` (192.168.50.9) behind the bridge's uplink.
const UPLINK: &str = "ip netns add ext && ip link add up0 type veth peer name up1 netns ext && \
    ip link set up0 master br0 up && ip -n ext addr add 192.168.50.9/24 dev up1 && ip -n ext link set up1 up";

/// A network on the bridge, with its gateway there or none.
fn network(is_gateway: bool) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net1", "type": "bridge", "bridge": "br0",
        "isGateway": is_gateway,
        "ipam": {"type": "static", "addresses": [{"address": "192.168.50.77/24", "gateway": "192.168.50.1"}]},
    })
}

fn call(node: &Node) -> Call {
    node.plugin("bridge").netns(&node.netns("c1"))
}

/// Runs ADD, which must succeed within `ceiling`.
#[track_caller]
fn add(call: &Call, config: &Value, ceiling: Duration, what: &str) -> Output {
    let start = Instant::now();
    let added = call.run("ADD", config);
    let took = start.elapsed();
    assert!(added.ok, "{what}: {added:?}");
    assert!(took < ceiling, "{what}: {took:?}");
    added
}

#[test]
fn packets_pass_at_once_whoever_made_the_bridge() {
    for (maker, make) in MAKERS {
        for has_uplink in [false, true] {
            for is_gateway in [false, true] {
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        let node = Node::new();
                        let what = format!("{maker}, uplink {has_uplink}, gateway {is_gateway}");
                        node.sh(make);
                        if has_uplink {
                            node.sh(UPLINK);
                        }
                        let call = call(&node);
                        let added = add(&call, &network(is_gateway), CEILING, &what);
                        assert_eq!(added.stderr, "", "{what}");
                        if has_uplink {
                            node.ping("c1", "192.168.50.9");
                        }
                        if is_gateway {
                            node.ping("c1", "192.168.50.1");
                        }
                        call.run("DEL", &network(is_gateway)).silent();
                        // And again, for the carrier that the bridge has lost meanwhile.
                        let added = add(&call, &network(is_gateway), CEILING, &what);
                        assert_eq!(added.stderr, "", "{what}");
                        if has_uplink {
                            node.ping("c1", "192.168.50.9");
                        }
                    });
                });
            }
        }
    }
}

#[test]
fn a_spanning_tree_is_told_and_not_waited_for() {
    std::thread::scope(|scope| {
        for (maker, make) in SPANNING {
            for has_uplink in [false, true] {
                scope.spawn(move || {
                    let node = Node::new();
                    node.sh(make);
                    if has_uplink {
                        node.sh(UPLINK);
                    }
                    let added = add(&call(&node), &network(true), CEILING, maker);
                    for word in ["br0", "listening", "spanning tree", "about 4 s"] {
                        assert!(added.stderr.contains(word), "{maker}: {added:?}");
                    }
                    // Frames pass when the kernel lets them.
                    let there = if has_uplink { "192.168.50.9" } else { "192.168.50.1" };
                    node.sh(&format!(
                        "timeout 20 sh -c 'until ip netns exec c1 ping -n -c 1 -W 1 {there}; do :; done'"
                    ));
                });
            }
        }
    });
}

/// Has `ip ARGS` do `what` over and over, faster than anybody can undo it.
fn over_and_over(args: &[&str], what: &str) -> Servers {
    let mut yes = Command::new("yes")
        .arg(what)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let ip = Command::new("ip")
        .args(args)
        .args(["-force", "-batch", "-"])
        .stdin(yes.stdout.take().unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Servers(vec![yes, ip])
}

/// Calls of the bridge plugin for one container after the other until one says that its link `is not
/// up yet`: some are done before anybody can set it down. The plugin takes its time over each
/// request to the kernel, and must be done within `ceiling`.
fn until_late(node: &Node, ceiling: Duration) {
    let slow = node.dir.path().join("slow");
    let strace = "strace -f -q -o /dev/null -e trace=sendto -e inject=sendto:delay_enter=30000";
    let script = format!("#!/bin/sh\nexec {strace} {}/bridge\n", node.bin.display());
    fs::write(&slow, script).unwrap();
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).unwrap();
    let config = json!({"cniVersion": "1.0.0", "name": "net1", "type": "bridge", "bridge": "br0"});
    let call = node.plugin("bridge").netns("/run/netns/c1");
    let was_late = (0..10).any(|_| {
        let added = add(&call.clone().executable(&slow), &config, ceiling, "not up");
        call.run("DEL", &config).silent();
        added.stderr.contains("is not up yet")
    });
    assert!(was_late);
}

#[test]
fn a_bridge_that_does_not_stay_up_is_waited_for_half_a_second() {
    let node = Node::new();
    node.sh("ip link add br0 type bridge");
    node.netns("c1");
    let _down = over_and_over(&[], "link set br0 down");
    until_late(&node, Duration::from_millis(500) + SLOW);
}

#[test]
fn a_port_without_carrier_is_waited_for_as_long_as_the_reference_does() {
    let node = Node::new();
    node.netns("c1");
    let down = over_and_over(&["-n", "c1"], "link set eth0 down");
    until_late(&node, Duration::from_millis(2550) + SLOW);
    drop(down);
    let config = json!({"cniVersion": "1.0.0", "name": "net1", "type": "bridge", "bridge": "br0"});
    // Nobody waits for an end that is to stay down.
    let config = with(config, json!({"disableContainerInterface": true}));
    let call = node.plugin("bridge").id("c2").netns(&node.netns("c2"));
    let added = add(&call, &config, CEILING, "disabled");
    assert_eq!(added.stderr, "");
}

#[test]
fn addresses_that_stay_tentative_fail_after_five_seconds() {
    let node = Node::new();
    let call = call(&node);
    node.sh("ip netns exec c1 sh -c 'echo 50 >/proc/sys/net/ipv6/conf/default/dad_transmits'");
    let config = json!({
        "cniVersion": "1.0.0", "name": "net1", "type": "bridge", "bridge": "br0", "enabledad": true,
        "ipam": {"type": "host-local", "subnet": "fd00:9::/64"},
    });
    let start = Instant::now();
    let (_, message, _) = call.run("ADD", &config).error();
    assert!(start.elapsed() < Duration::from_secs(7));
    assert!(message.contains("still tentative after 5 s"), "{message}");
    assert_eq!(node.links(), [] as [String; 0]);
}
