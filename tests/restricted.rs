//! Hosts that do not let a plugin do everything: a read-only `/proc/sys`, and root in a
//! user namespace only.

#![expect(clippy::disallowed_methods, reason = "doors are for the product")]

mod common;

use std::process::Command;

use common::{Node, binary, run};
use serde_json::{Value, json};

fn network() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "net1",
        "bridge": "br1",
        "isGateway": true,
        "ipMasq": true,
        "ipMasqBackend": "nftables",
        "ipam": {"type": "host-local",
                 "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]},
    })
}

#[test]
fn a_read_only_proc_sys() {
    let node = Node::new();
    let netns = node.netns("c1");
    let call = node.plugin("bridge").netns(&netns);
    // Whatever the machine has that the test runs on.
    node.sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
    node.sh("mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys");
    node.sh("! echo 0 2>/dev/null > /proc/sys/net/ipv4/ip_forward");
    // What must be changed and cannot is named, and nothing is left.
    let (code, message, details) = call.run("ADD", &network()).error();
    assert_eq!((code, message.as_str()), (5, "failed to enable forwarding"));
    for part in [
        "let the host forward packets",
        "/proc/sys/net/ipv4/ip_forward",
        "it is \"0\"",
        "read-only",
    ] {
        assert!(details.contains(part), "{details}");
    }
    assert!(!node.succeeds("ip -n c1 link show dev eth0 2>/dev/null"));
    // What is as it should be is not written; what is only a comfort is worth a warning.
    node.sh("mount -o remount,bind,rw /proc/sys");
    node.sh(
        "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
    );
    node.sh("mount -o remount,bind,ro /proc/sys");
    let added = call.run("ADD", &network());
    let result = added.json();
    assert!(added.stderr.contains("/proc/sys/net/"), "{added:?}");
    node.ping("c1", "10.9.0.1");
    node.ping("c1", "fd00:9::1");

    let tuning = node.plugin("tuning").netns(&netns);
    let config = |value: &str| {
        json!({"cniVersion": "1.1.0", "name": "net1", "prevResult": result,
               "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": value}})
    };
    tuning.run("ADD", &config("0")).json();
    tuning.run("DEL", &config("0")).silent();
    let (code, message, details) = tuning.run("ADD", &config("1")).error();
    assert_eq!(code, 5);
    assert!(
        message.contains("net.ipv4.conf.IFNAME.arp_filter"),
        "{message}"
    );
    assert!(details.contains("read-only"), "{details}");
    tuning.run("DEL", &config("1")).silent();
    call.run("DEL", &network()).silent();
    node.sh("umount /proc/sys");
}

#[test]
fn root_in_a_user_namespace_only() {
    // No node: that would take privileges which nobody has here.
    let links = ["bridge", "host-local", "tuning"]
        .map(|name| format!("ln -s {} /run/bin/{name}\n", binary().display()))
        .concat();
    let config = network();
    let script = format!(
        "set -e\n\
         mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib\n\
         mkdir /run/bin && {links}\
         ip link set lo up && ip netns add c1\n\
         export CNI_CONTAINERID=c1 CNI_IFNAME=eth0 CNI_NETNS=/run/netns/c1 CNI_PATH=/run/bin\n\
         echo '{config}' | CNI_COMMAND=ADD /run/bin/bridge\n\
         ip netns exec c1 ping -n -c 1 -W 1 10.9.0.1 >&2\n\
         ip netns exec c1 ping -n -c 1 -W 1 fd00:9::1 >&2\n\
         echo '{config}' | CNI_COMMAND=DEL /run/bin/bridge >&2\n\
         test -z \"$(ip -n c1 link show type veth)\"\n"
    );
    let output = run(
        Command::new("unshare").args(["-Urnm", "sh", "-c", &script]),
        "",
    );
    let result = output.json();
    assert_eq!(result["ips"][0]["address"], "10.9.0.2/24");
    assert_eq!(result["ips"][1]["address"], "fd00:9::2/64");
}
