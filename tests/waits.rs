//! Waits for what never comes: each ends at its limit, in the way that docs/waits.md says.
//! Those of the bridge are in `foreign_bridge.rs` and `failed_add.rs`, those of the leases' and the
//! iptables tools' locks in `faults`.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot do its work says so by panicking"
)]

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Node, with_result};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

/// Runs `call`, which must end within `limit` and what a loaded machine adds to that.
#[track_caller]
fn within<T>(limit: Duration, call: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let answer = call();
    let took = start.elapsed();
    assert!(took < limit + Duration::from_secs(3), "{took:?}");
    answer
}

/// Somebody who has locked `path` and never lets go.
fn keep(path: &str) -> Flock<File> {
    let file = File::options().read(true).open(path).unwrap();
    Flock::lock(file, FlockArg::LockExclusive).unwrap()
}

/// The same for a section of this network namespace.
fn keep_section(node: &Node, name: &str) -> Flock<File> {
    let inode = node.sh("stat -Lc %i /proc/self/ns/net");
    let path = format!("/run/cni/cnibox-{name}-{}.lock", inode.trim());
    fs::create_dir_all("/run/cni").unwrap();
    File::create(&path).unwrap();
    keep(&path)
}

/// What a plugin gets that comes after the bridge in a list.
fn chained(node: &Node, plugin: &str, more: &Value) -> Value {
    let bridge = json!({
        "cniVersion": "1.0.0", "name": "net1", "type": "bridge", "bridge": "br0", "isGateway": true,
        "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"},
    });
    let result = node
        .plugin("bridge")
        .netns(&node.netns("c1"))
        .run("ADD", &bridge)
        .json();
    let own = json!({"cniVersion": "1.0.0", "name": "net1", "type": plugin, "backend": "nftables"});
    with_result(&common::with(own, more.clone()), &result)
}

#[test]
fn the_section_of_localnet() {
    let node = Node::new();
    let mappings =
        json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    let config = chained(&node, "portmap", &json!({"runtimeConfig": mappings}));
    let _held = keep_section(&node, "localnet");
    let call = node.plugin("portmap").netns("/run/netns/c1");
    let (code, message, _) = within(Duration::from_secs(10), || call.run("ADD", &config)).error();
    assert_eq!(code, 11, "{message}");
    assert!(
        message.contains("wait 10 seconds for the lock of localnet"),
        "{message}"
    );
    assert!(!node.sh("nft list ruleset").contains("dnat"));
}

#[test]
fn the_section_of_the_firewall() {
    let node = Node::new();
    let config = chained(&node, "firewall", &json!({}));
    let call = node.plugin("firewall").netns("/run/netns/c1");
    call.run("ADD", &config).json();
    let held = keep_section(&node, "firewall");
    let (code, message, _) = within(Duration::from_secs(10), || call.run("DEL", &config)).error();
    assert_eq!(code, 11, "{message}");
    assert!(
        message.contains("wait 10 seconds for the lock of firewall"),
        "{message}"
    );
    drop(held);
    call.run("DEL", &config).silent();
}

#[test]
fn a_directory_that_somebody_keeps_is_written_to_after_half_a_second() {
    let node = Node::new();
    let config = chained(&node, "tuning", &json!({"mtu": 1400}));
    let dir = "/var/lib/cni/tuning-backup";
    let config = common::with(config, json!({"dataDir": dir}));
    fs::create_dir_all(dir).unwrap();
    let _held = keep(dir);
    let call = node.plugin("tuning").netns("/run/netns/c1");
    within(Duration::from_millis(500), || call.run("ADD", &config)).json();
    within(Duration::from_millis(500), || call.run("DEL", &config)).silent();
}

#[test]
fn a_bus_that_never_answers() {
    let node = Node::new();
    let mut config = chained(&node, "firewall", &json!({}));
    config
        .as_object_mut()
        .unwrap()
        .insert("backend".into(), json!("firewalld"));
    let bus = UnixListener::bind("/run/bus").unwrap();
    let call = node
        .plugin("firewall")
        .netns("/run/netns/c1")
        .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/bus");
    let (_, message, _) = within(Duration::from_secs(20), || call.run("ADD", &config)).error();
    assert!(message.contains("log in to the D-Bus"), "{message}");
    drop(bus);
}

#[test]
fn an_executable_that_stays_busy() {
    let node = Node::new();
    let dir = node.dir.path().join("foreign");
    fs::create_dir(&dir).unwrap();
    let plugin = dir.join("foreign-ipam");
    fs::copy("/bin/true", &plugin).unwrap();
    let _writer = File::options().append(true).open(&plugin).unwrap();
    let config = json!({"cniVersion": "1.0.0", "name": "net1", "type": "bridge", "bridge": "br0",
                        "ipam": {"type": "foreign-ipam"}});
    let call = node
        .plugin("bridge")
        .netns(&node.netns("c1"))
        .env("CNI_PATH", dir.to_str().unwrap());
    let (_, message, details) =
        within(Duration::from_secs(10), || call.run("ADD", &config)).error();
    assert!(
        format!("{message} {details}").contains("busy"),
        "{message} {details}"
    );
}

#[test]
fn a_runtime_that_sends_nothing_with_version() {
    let node = Node::new();
    let mut process = node
        .plugin("bridge")
        .env("CNI_COMMAND", "VERSION")
        .process();
    let mut child = process
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Its standard input stays open.
    let _input = child.stdin.take();
    let mut told = String::new();
    let mut output = child.stdout.take().unwrap();
    within(Duration::from_millis(20), || {
        output.read_to_string(&mut told)
    })
    .unwrap();
    assert!(told.contains("supportedVersions"), "{told}");
    assert!(child.wait().unwrap().success());
}
