//! What an ADD that fails leaves on the host: nothing that it made, unless somebody else has come
//! to use it meanwhile.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot do its work says so by panicking"
)]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{Call, Node, with};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

/// A dual-stack network with a gateway on bridge `br0`.
fn network(v4: &str) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net1", "type": "bridge", "bridge": "br0",
        "isDefaultGateway": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": v4}], [{"subnet": "fd00:9::/64"}]]},
    })
}

/// The same with a route that the kernel refuses, at the very end of an ADD.
fn wrong(v4: &str) -> Value {
    let mut config = network(v4);
    config["ipam"]["routes"] = json!([{"dst": "10.77.0.0/16", "gw": "192.0.2.1"}]);
    config
}

/// All that an ADD might leave on the host's side.
fn state(node: &Node) -> String {
    node.sh(
        "ip -o link | sed 's/ qdisc [a-z]*//; s/,LOWER_UP//; s/NO-CARRIER,//; s/ state [A-Z]*//'
        ip -o addr | grep -v ' fe80:' | sed 's/ brd [0-9.]*//' | sort
        cd /proc/sys/net && grep -H . ipv4/ip_forward ipv4/conf/*/forwarding ipv6/conf/*/forwarding \
            ipv4/conf/*/accept_redirects ipv6/conf/*/accept_ra",
    )
}

/// A node that forwards nothing yet, whose administrator has chosen some values.
fn lab() -> Node {
    let node = Node::new();
    node.sh(
        "cd /proc/sys/net && echo 0 >ipv4/ip_forward && echo 0 >ipv6/conf/all/forwarding &&
        echo 0 >ipv4/conf/all/accept_redirects && echo 1 >ipv4/conf/lo/forwarding",
    );
    node
}

fn call(node: &Node, id: &str) -> Call {
    node.plugin("bridge").id(id).netns(&node.netns(id))
}

/// Starts an ADD that waits in its last steps: duplicate address detection takes long there.
/// Answers when its port is on the bridge. It fails after 5 s.
fn start_slow(node: &Node, id: &str) -> Child {
    let netns = node.netns(id);
    node.sh(&format!(
        "ip netns exec {id} sh -c 'echo 50 >/proc/sys/net/ipv6/conf/default/dad_transmits'"
    ));
    let mut process = node
        .plugin("bridge")
        .id(id)
        .netns(&netns)
        .env("CNI_COMMAND", "ADD")
        .process();
    let mut child = process
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let config = with(network("10.9.0.0/24"), json!({"enabledad": true})).to_string();
    let mut input = child.stdin.take().unwrap();
    input.write_all(config.as_bytes()).unwrap();
    drop(input);
    node.sh(&format!(
        "until ip -n {id} -6 addr show dev eth0 2>/dev/null | grep -q 'fd00.*tentative'; do sleep 0.05; done"
    ));
    child
}

/// The lock that ADDs share.
fn lock(node: &Node) -> File {
    let inode = node.sh("stat -Lc %i /proc/self/ns/net");
    fs::create_dir_all("/run/cni").unwrap();
    let path = format!("/run/cni/cnibox-shared-{}.lock", inode.trim());
    File::create(path).unwrap()
}

#[test]
fn the_corrected_configuration_is_served() {
    let node = lab();
    let before = state(&node);
    let call = call(&node, "c1");
    let (_, message, _) = call.run("ADD", &wrong("10.9.0.0/24")).error();
    assert!(message.contains("10.77.0.0/16"), "{message}");
    assert_eq!(state(&node), before);
    call.run("ADD", &network("10.8.0.0/24")).json();
    node.ping("c1", "10.8.0.1");
    node.ping("c1", "fd00:9::1");
    let left = node.sh("ip link show dev br0");
    assert!(!left.contains("alias"), "{left}");
}

#[test]
fn a_result_that_nobody_receives_leaves_no_bridge() {
    let node = lab();
    node.netns("c1");
    let before = state(&node);
    for (plugin, more) in [
        ("bridge", json!({"ipMasq": true})),
        ("bridge", json!({"promiscMode": true, "macspoofchk": true})),
        ("ptp", json!({"ipMasq": true})),
    ] {
        let config = with(network("10.9.0.0/24"), more).to_string();
        let call = node
            .plugin(plugin)
            .netns("/run/netns/c1")
            .env("CNI_COMMAND", "ADD");
        for is_full in [true, false] {
            let full = File::options().write(true).open("/dev/full").unwrap();
            let mut process = call.process();
            process.stdin(Stdio::piped()).stderr(Stdio::piped());
            process.stdout(if is_full { full.into() } else { Stdio::piped() });
            let mut child = process.spawn().unwrap();
            // A runtime that has gone.
            drop(child.stdout.take());
            let mut input = child.stdin.take().unwrap();
            input.write_all(config.as_bytes()).unwrap();
            drop(input);
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{plugin}: {output:?}");
            assert_eq!(state(&node), before, "{plugin}: {output:?}");
        }
    }
}

#[test]
fn a_delegate_of_flannel_leaves_no_bridge() {
    let node = lab();
    node.netns("c1");
    fs::create_dir_all("/run/flannel").unwrap();
    let subnet = "FLANNEL_NETWORK=10.8.0.0/16\nFLANNEL_SUBNET=10.8.1.1/24\nFLANNEL_MTU=1450\n\
         FLANNEL_IPMASQ=true\n";
    fs::write("/run/flannel/subnet.env", subnet).unwrap();
    let before = state(&node);
    let bin = node.bin.display();
    let config = json!({"cniVersion": "1.0.0", "name": "net1", "type": "flannel",
                        "delegate": {"bridge": "br0"}});
    let told = node.sh(&format!(
        "printf '%s' '{config}' | CNI_COMMAND=ADD CNI_CONTAINERID=c1 CNI_IFNAME=eth0 \
         CNI_NETNS=/run/netns/c1 CNI_PATH={bin} {bin}/flannel 2>&1 >/dev/full || true"
    ));
    assert!(told.contains("write the answer to stdout"), "{told}");
    assert_eq!(state(&node), before);
    assert_eq!(node.sh("find /var/lib/cni/flannel -type f"), "");
}

#[test]
fn a_bridge_that_was_there_is_as_it_was() {
    let node = lab();
    for make in [
        // Not up yet.
        "ip link add br0 type bridge",
        // With an uplink and an address, and listening to routers.
        "ip link add br0 type bridge && ip link add up0 type veth peer name up1 &&
         echo 1 >/proc/sys/net/ipv6/conf/br0/accept_ra &&
         ip link set up0 master br0 && ip link set up0 up && ip link set up1 up &&
         ip link set br0 up && ip addr add fd00:7::1/64 dev br0 nodad",
        // With an address that has to go.
        "ip link add br0 type bridge && ip link set br0 up && ip addr add 10.7.0.1/24 dev br0",
    ] {
        node.sh(make);
        let before = state(&node);
        let more = json!({"promiscMode": true, "forceAddress": true});
        let call = call(&node, "c1");
        call.run("ADD", &with(wrong("10.9.0.0/24"), more)).error();
        assert_eq!(state(&node), before, "{make}");
        node.sh("ip netns del c1; ip link del br0; ip link del up0 2>/dev/null || true");
    }
}

#[test]
fn what_somebody_else_uses_by_then_stays() {
    let node = lab();
    let slow = start_slow(&node, "slow");
    let quick = call(&node, "quick");
    quick.run("ADD", &network("10.9.0.0/24")).json();
    let failed = slow.wait_with_output().unwrap();
    assert!(!failed.status.success(), "{failed:?}");
    assert!(!node.succeeds("ip -n slow link show dev eth0"));
    for address in ["10.9.0.1", "fd00:9::1"] {
        node.ping("quick", address);
    }
    assert_eq!(node.sh("cat /proc/sys/net/ipv4/ip_forward"), "1\n");
    quick.run("DEL", &network("10.9.0.0/24")).silent();
}

#[test]
fn what_an_administrator_put_on_it_keeps_a_bridge() {
    let ways = [
        "ip addr add 192.168.7.1/24 dev br0",
        "ip link add link br0 name br0.7 type macvlan",
        "ip link add tap0 type veth peer name tap1 && ip link set tap0 master br0",
    ];
    std::thread::scope(|scope| {
        for use_it in ways {
            scope.spawn(move || {
                let node = lab();
                let slow = start_slow(&node, "slow");
                node.sh(use_it);
                let failed = slow.wait_with_output().unwrap();
                assert!(!failed.status.success(), "{failed:?}");
                assert!(node.succeeds("ip link show dev br0"), "{use_it}");
            });
        }
    });
}

#[test]
fn of_many_that_fail_at_once_the_last_one_tidies_up() {
    let node = lab();
    let before = state(&node);
    let calls: Vec<Call> = (0..12).map(|n| call(&node, &format!("c{n}"))).collect();
    std::thread::scope(|scope| {
        for call in &calls {
            scope.spawn(|| call.run("ADD", &wrong("10.9.0.0/24")).error());
        }
    });
    assert_eq!(state(&node), before);
}

#[test]
fn those_that_fail_take_nothing_from_those_that_do_not() {
    let node = lab();
    let calls: Vec<Call> = (0..12).map(|n| call(&node, &format!("c{n}"))).collect();
    for _ in 0..4 {
        std::thread::scope(|scope| {
            for (n, call) in calls.iter().enumerate() {
                scope.spawn(move || match n % 3 {
                    0 => drop(call.run("ADD", &network("10.9.0.0/24")).json()),
                    _ => drop(call.run("ADD", &wrong("10.9.0.0/24")).error()),
                });
            }
        });
        for n in (0..12).step_by(3) {
            node.ping(&format!("c{n}"), "10.9.0.1");
        }
        for call in calls.iter().step_by(3) {
            call.run("DEL", &network("10.9.0.0/24")).silent();
        }
        node.sh("ip link del br0");
    }
}

#[test]
fn whoever_is_about_to_use_the_bridge_keeps_it() {
    let node = lab();
    let before = state(&node);
    // Another ADD has found the bridge, and has no port yet.
    let other = Flock::lock(lock(&node), FlockArg::LockShared).unwrap();
    let call = call(&node, "c1");
    let start = Instant::now();
    let failed = call.run("ADD", &wrong("10.9.0.0/24"));
    failed.error();
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(
        failed.stderr.contains("others may have come to use it"),
        "{failed:?}"
    );
    assert!(node.succeeds("ip link show dev br0"));
    drop(other);
    // It still belongs to nobody: the next one that fails removes it.
    call.run("ADD", &wrong("10.9.0.0/24")).error();
    assert_eq!(node.links(), [] as [String; 0]);
    assert!(before.contains("ip_forward:0"));
}

#[test]
fn an_add_waits_half_a_second_for_one_that_undoes_its_work() {
    let node = lab();
    let before = state(&node);
    let other = Flock::lock(lock(&node), FlockArg::LockExclusive).unwrap();
    for plugin in ["bridge", "ptp"] {
        let call = call(&node, plugin).executable(node.bin.join(plugin));
        let start = Instant::now();
        let (code, message, _) = call.run("ADD", &network("10.9.0.0/24")).error();
        assert!(start.elapsed() < Duration::from_secs(2));
        assert_eq!(code, 11, "{message}");
        assert!(message.contains("wait 0.5 seconds"), "{message}");
        assert_eq!(state(&node), before);
    }
    drop(other);
}

#[test]
fn what_a_killed_add_left_is_not_in_the_way() {
    let node = lab();
    let mut slow = start_slow(&node, "slow");
    slow.kill().unwrap();
    slow.wait().unwrap();
    let del = node.plugin("bridge").id("slow").netns("/run/netns/slow");
    del.run("DEL", &network("10.9.0.0/24")).silent();
    assert_eq!(node.links(), ["br0"]);
    call(&node, "c1").run("ADD", &network("10.8.0.0/24")).json();
    node.ping("c1", "10.8.0.1");
}

#[test]
fn where_nothing_can_be_locked_add_works() {
    let node = lab();
    fs::write("/run/cni", "").unwrap();
    let call = call(&node, "c1");
    let failed = call.run("ADD", &wrong("10.9.0.0/24"));
    failed.error();
    assert!(
        failed.stderr.contains("nothing can be locked"),
        "{failed:?}"
    );
    // The bridge stays: nobody can tell whether others are about to use it.
    assert_eq!(node.links(), ["br0"]);
    call.run("ADD", &network("10.9.0.0/24")).json();
    node.ping("c1", "10.9.0.1");
}
