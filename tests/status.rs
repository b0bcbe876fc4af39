//! STATUS says no exactly when ADD would fail for every container until an administrator acts.
//! docs/operations.md lists the reasons; here they are made, and what is none.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot do its work says so by panicking; doors are for the product"
)]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{Call, Node, Servers, run, tools, with, with_result};
use serde_json::{Value, json};

/// A network of `plugin` with a gateway and these ranges.
fn network(plugin: &str, subnets: &[&str]) -> Value {
    let ranges: Vec<Value> = subnets.iter().map(|s| json!([{"subnet": s}])).collect();
    json!({
        "cniVersion": "1.1.0", "name": "net1", "type": plugin, "bridge": "br1", "isGateway": true,
        "ipam": {"type": "host-local", "ranges": ranges},
    })
}

const V4: [&str; 1] = ["10.9.0.0/24"];
const V46: [&str; 2] = ["10.9.0.0/24", "fd00:9::/64"];

/// STATUS must fail with `code`, and tell all of these `words`.
#[track_caller]
fn refused(call: &Call, config: &Value, code: u64, words: &[&str]) {
    let (found, message, details) = call.run("STATUS", config).error();
    let told = format!("{message}; {details}");
    assert_eq!(found, code, "{told}");
    for word in words {
        assert!(told.contains(word), "{word}: {told}");
    }
}

/// Makes `/proc/sys` read-only, as it is in many containers.
fn read_only_sysctls(node: &Node) {
    node.sh("mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys");
}

/// Table `ip TABLE` with a rule in `chain` that iptables cannot read.
fn unreadable(node: &Node, table: &str, chain: &str) {
    let rule = "numgen inc mod 2 0 accept";
    node.sh(&format!(
        "nft 'table ip {table} {{ chain {chain} {{ {hook}; {rule}; }}; }}'",
        hook = match table {
            "nat" => "type nat hook postrouting priority srcnat",
            _ => "type filter hook forward priority filter",
        }
    ));
    let listed = node.sh(&format!("iptables-nft-save -t {table}"));
    assert!(listed.contains("is incompatible"), "{listed}");
}

#[test]
fn the_tools_of_each_family_that_containers_get() {
    let node = Node::new();
    let path = tools(&node, "tools", "iptables-nft");
    fs::remove_file(Path::new(&path).join("ip6tables-restore")).unwrap();
    for plugin in ["bridge", "ptp"] {
        let call = node.plugin(plugin).env("PATH", &path);
        let masquerading = |subnets| with(network(plugin, subnets), json!({"ipMasq": true}));
        let words = [
            "ip6tables-restore",
            "install ip6tables",
            "\"ipMasqBackend\": \"nftables\"",
        ];
        refused(&call, &masquerading(&V46), 50, &words);
        let added = call
            .clone()
            .netns(&node.netns(plugin))
            .run("ADD", &masquerading(&V46));
        let (_, message, details) = added.error();
        for word in words {
            assert!(details.contains(word), "{message}; {details}");
        }
        // What is not used may be missing.
        call.run("STATUS", &masquerading(&V4)).silent();
        let unmasqueraded = network(plugin, &V46);
        call.run("STATUS", &unmasqueraded).silent();
        let natively = with(masquerading(&V46), json!({"ipMasqBackend": "nftables"}));
        call.run("STATUS", &natively).silent();
    }
    let layer_2 = json!({"cniVersion": "1.1.0", "name": "n", "bridge": "br1", "ipMasq": true,
        "ipMasqBackend": "iptables"});
    let toolless = node.plugin("bridge").env("PATH", "/nowhere");
    toolless.run("STATUS", &layer_2).silent();
}

#[test]
fn a_table_that_iptables_cannot_read() {
    let node = Node::new();
    unreadable(&node, "nat", "POSTROUTING");
    unreadable(&node, "filter", "FORWARD");
    let path = tools(&node, "tools", "iptables-nft");
    let way_out = "set \"backend\": \"nftables\"";
    for plugin in ["portmap", "firewall"] {
        let call = node.plugin(plugin).env("PATH", &path);
        let with_backend =
            |word: &str| json!({"cniVersion": "1.1.0", "name": "net1", "backend": word});
        refused(
            &call,
            &with_backend("iptables"),
            50,
            &["is incompatible", way_out],
        );
        call.run("STATUS", &with_backend("nftables")).silent();
        let change = json!({
            "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
            "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24"}]},
        });
        let config = with(with_backend("iptables"), change);
        let netns = node.netns(plugin);
        let (_, message, details) = call.netns(&netns).run("ADD", &config).error();
        assert!(details.contains(way_out), "{message}; {details}");
    }
    // Masquerading needs no look at others' rules: it works, and CHECK says so.
    let bridge = with(
        network("bridge", &V4),
        json!({"ipMasq": true, "ipMasqBackend": "iptables"}),
    );
    let call = node.plugin("bridge").env("PATH", &path);
    call.run("STATUS", &bridge).silent();
    let call = call.netns(&node.netns("c1"));
    let checked = with_result(&bridge, &call.run("ADD", &bridge).json());
    let output = call.run("CHECK", &checked);
    output.silent();
    assert!(output.stderr.contains("cannot read"), "{output:?}");
    node.sh("nft flush chain ip nat POSTROUTING && for c in $(nft list table ip nat | grep -o 'CNI-[0-9a-f]*' | sort -u); \
             do nft flush chain ip nat $c; nft delete chain ip nat $c; done");
    unreadable(&node, "nat", "POSTROUTING");
    let (_, message, details) = call.run("CHECK", &checked).error();
    assert!(details.contains("MASQUERADE"), "{message}; {details}");
}

#[test]
fn doctor_says_what_status_says() {
    let node = Node::new();
    unreadable(&node, "nat", "POSTROUTING");
    let path = tools(&node, "tools", "iptables-nft");
    let conf = node.dir.path().join("net.d");
    fs::create_dir(&conf).unwrap();
    let list = json!({"cniVersion": "1.0.0", "name": "net1", "plugins": [
        network("bridge", &V4), {"type": "portmap", "backend": "iptables"}]});
    fs::write(conf.join("net1.conflist"), list.to_string()).unwrap();
    let doctor = || {
        let mut command = Command::new(node.bin.join("cnitool"));
        command.arg("doctor").arg("--json").env("PATH", &path);
        command.env("CNI_PATH", &node.bin).env("NETCONFPATH", &conf);
        let findings: Value = serde_json::from_str(&run(&mut command, "").stdout).unwrap();
        findings["findings"].clone()
    };
    let findings = doctor();
    let [finding] = findings.as_array().unwrap().as_slice() else {
        panic!("{findings}");
    };
    assert_eq!(finding["object"], "network net1");
    assert!(
        finding["what"]
            .as_str()
            .unwrap()
            .starts_with("plugin portmap is not available")
    );
    assert!(
        finding["mend"]
            .as_str()
            .unwrap()
            .contains("set \"backend\": \"nftables\"")
    );
    node.sh("nft delete table ip nat");
    assert_eq!(doctor(), json!([]));
}

#[test]
fn forwarding_that_cannot_be_switched_on() {
    let node = Node::new();
    let off = |key: &str| node.sh(&format!("sysctl -qw net.{key}=0"));
    off("ipv4.ip_forward");
    node.sh("sysctl -qw net.ipv6.conf.all.forwarding=1");
    read_only_sysctls(&node);
    for plugin in ["bridge", "ptp"] {
        let call = node.plugin(plugin);
        let words = [
            "does not forward",
            "net/ipv4/ip_forward",
            "set it beforehand",
        ];
        // What is attached reaches no other network either.
        refused(&call, &network(plugin, &V46), 51, &words);
        let added = call
            .clone()
            .netns(&node.netns(plugin))
            .run("ADD", &network(plugin, &V46));
        assert_eq!(added.error().0, 5);
        let only_ipv6 = network(plugin, &["fd00:9::/64"]);
        call.run("STATUS", &only_ipv6).silent();
    }
    // Who is no gateway forwards nothing.
    let change = json!({"isGateway": false});
    let no_gateway = with(network("bridge", &V46), change);
    node.plugin("bridge").run("STATUS", &no_gateway).silent();
    // What is as it should be need not be written.
    node.sh("umount /proc/sys && sysctl -qw net.ipv4.ip_forward=1");
    read_only_sysctls(&node);
    for plugin in ["bridge", "ptp"] {
        let call = node.plugin(plugin);
        call.run("STATUS", &network(plugin, &V46)).silent();
        let netns = node.netns(&format!("{plugin}2"));
        let call = call.id(plugin).netns(&netns);
        call.run("ADD", &network(plugin, &V4)).json();
    }
}

#[test]
fn sysctls_that_cannot_be_written() {
    let node = Node::new();
    read_only_sysctls(&node);
    let portmap = json!({"cniVersion": "1.1.0", "name": "net1", "backend": "nftables"});
    let call = node.plugin("portmap");
    refused(&call, &portmap, 50, &["127.0.0.1", "route_localnet"]);
    let without_snat = with(portmap.clone(), json!({"snat": false}));
    call.run("STATUS", &without_snat).silent();
    let tuning = |key: &str, value: &str| json!({"cniVersion": "1.1.0", "name": "net1", "sysctl": {key: value}});
    let call = node.plugin("tuning");
    for key in [
        "net.core.somaxconn",
        "net.ipv4.conf.IFNAME.arp_filter",
        "net.ipv4.conf.eth0.arp_filter",
    ] {
        refused(&call, &tuning(key, "1"), 50, &[key, "cannot be written"]);
    }
    // A new container has it already, or nobody knows.
    for (key, value) in [
        ("net.ipv4.conf.IFNAME.arp_filter", "0"),
        ("net.ipv4.nothing", "1"),
    ] {
        call.run("STATUS", &tuning(key, value)).silent();
    }
    node.sh("umount /proc/sys");
    call.run("STATUS", &tuning("net.core.somaxconn", "1"))
        .silent();
    node.sh("sysctl -qw net.ipv4.conf.all.route_localnet=1");
    read_only_sysctls(&node);
    node.plugin("portmap").run("STATUS", &portmap).silent();
    // A host that has nothing but IPv6 maps no IPv4 ports.
    node.sh("umount /proc/sys && sysctl -qw net.ipv4.conf.all.route_localnet=0");
    read_only_sysctls(&node);
    node.sh("ip link add up0 type veth peer name up1 && ip addr add 2001:db8::1/64 dev up0 nodad");
    node.plugin("portmap").run("STATUS", &portmap).silent();
}

#[test]
fn only_root_is_told_about_the_host() {
    let node = Node::new();
    // Where nobody else may look.
    let open = Path::new("/run/open");
    fs::create_dir(open).unwrap();
    fs::copy(common::binary(), open.join("cnibox")).unwrap();
    for plugin in [
        "bridge",
        "ptp",
        "portmap",
        "firewall",
        "bandwidth",
        "tuning",
        "host-local",
    ] {
        symlink("cnibox", open.join(plugin)).unwrap();
    }
    fs::set_permissions("/run", PermissionsExt::from_mode(0o755)).unwrap();
    let as_nobody = |plugin: &str, config: &Value| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command
            .arg(open.join(plugin))
            .env("CNI_COMMAND", "STATUS")
            .env("CNI_PATH", open);
        run(&mut command, config.to_string())
    };
    let more = json!({"ipMasq": true, "mtu": 1400, "ingressRate": 8000, "ingressBurst": 8000,
        "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}});
    for plugin in [
        "bridge",
        "ptp",
        "portmap",
        "firewall",
        "bandwidth",
        "tuning",
    ] {
        let config = with(network(plugin, &V4), more.clone());
        let (code, message, _) = as_nobody(plugin, &config).error();
        assert!(
            code == 50 && message.contains("needs root"),
            "{plugin}: {code} {message}"
        );
    }
    // Leases are files: whoever may write them needs nothing else.
    node.sh("mkdir -m 777 /run/leases");
    let ipam = json!({"type": "host-local", "subnet": "10.9.0.0/24", "dataDir": "/run/leases"});
    let config = json!({"cniVersion": "1.1.0", "name": "net1", "ipam": ipam});
    as_nobody("host-local", &config).silent();
}

#[test]
fn ipv6_that_is_off() {
    let node = Node::new();
    let [bridge, ptp] = ["bridge", "ptp"].map(|plugin| node.plugin(plugin));
    node.sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
    for (plugin, call) in [("bridge", &bridge), ("ptp", &ptp)] {
        let words = [
            "IPv6 is off on new links",
            "net/ipv6/conf/default/disable_ipv6=0",
        ];
        refused(call, &network(plugin, &V46), 50, &words);
        let added = call.clone().netns(&node.netns(plugin));
        let (_, message, details) = added.run("ADD", &network(plugin, &V46)).error();
        assert!(details.contains("IPv6 is off"), "{message}; {details}");
        call.run("STATUS", &network(plugin, &V4)).silent();
        node.sh("ip link del br1 2>/dev/null || true");
    }
    node.sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=0");
    let c1 = node.netns("c1");
    bridge
        .clone()
        .netns(&c1)
        .run("ADD", &network("bridge", &V46))
        .json();
    bridge.run("STATUS", &network("bridge", &V46)).silent();
    node.sh("sysctl -qw net.ipv6.conf.br1.disable_ipv6=1");
    let words = ["IPv6 is off on br1", "net/ipv6/conf/br1/disable_ipv6=0"];
    refused(&bridge, &network("bridge", &V46), 51, &words);
    let c2 = node.netns("c2");
    assert!(!bridge.netns(&c2).run("ADD", &network("bridge", &V46)).ok);
}

#[test]
fn addresses_that_do_not_fit() {
    let node = Node::new();
    let call = node.plugin("bridge");
    let config = network("bridge", &V46);
    let small = with(config.clone(), json!({"mtu": 1000}));
    refused(&call, &small, 50, &["mtu: 1000 is too small for IPv6"]);
    call.run(
        "STATUS",
        &with(network("bridge", &V4), json!({"mtu": 1000})),
    )
    .silent();
    // Somebody has given the bridge another address, in place of the gateway's.
    node.sh("ip link add br1 type bridge && ip addr add 10.77.0.1/24 dev br1");
    refused(
        &call,
        &config,
        51,
        &[
            "already has an IP address different from 10.9.0.1/24",
            "forceAddress",
        ],
    );
    assert!(!call.clone().netns(&node.netns("c1")).run("ADD", &config).ok);
    for fine in [json!({"forceAddress": true}), json!({"isGateway": false})] {
        call.run("STATUS", &with(config.clone(), fine)).silent();
    }
    // Which gateway a container gets depends on what is free.
    let choice = json!({"ipam": {"type": "host-local", "ranges": [[
        {"subnet": "10.9.0.0/24"}, {"subnet": "10.77.0.0/24"}]]}});
    call.run("STATUS", &with(config, choice)).silent();
    let without_gateway =
        json!({"ipam": {"type": "static", "addresses": [{"address": "10.9.0.5/24"}]}});
    let ptp = with(network("ptp", &V4), without_gateway);
    refused(&node.plugin("ptp"), &ptp, 50, &["has no gateway"]);
}

/// Has `command` run in a moment.
fn soon(command: &str) -> Child {
    let command = format!("sleep 0.3; {command}");
    Command::new("sh").args(["-c", &command]).spawn().unwrap()
}

#[test]
fn what_comes_back_in_a_moment_is_waited_for() {
    let node = Node::new();
    let call = node.plugin("bridge");
    let aside = node.dir.path().join("aside");
    let ipam = node.bin.join("host-local");
    // A plugin that is being replaced.
    fs::rename(&ipam, &aside).unwrap();
    let mut back = soon(&format!("mv {} {}", aside.display(), ipam.display()));
    call.run("STATUS", &network("bridge", &V4)).silent();
    back.wait().unwrap();
    // A file that is being written anew.
    let mut config = network("bridge", &V4);
    config["ipam"]["resolvConf"] = json!("/run/resolv.conf");
    refused(&call, &config, 50, &["/run/resolv.conf"]);
    let mut back = soon("echo nameserver 192.0.2.53 > /run/resolv.conf");
    call.run("STATUS", &config).silent();
    back.wait().unwrap();
    // What a daemon writes when it starts.
    let flannel = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "flannel"});
    let env = "FLANNEL_NETWORK=10.42.0.0/16\\nFLANNEL_SUBNET=10.42.1.1/24\\nFLANNEL_MTU=1450\\nFLANNEL_IPMASQ=false\\n";
    let mut back = soon(&format!(
        "mkdir -p /run/flannel; printf '{env}' > /run/flannel/subnet.env"
    ));
    node.plugin("flannel").run("STATUS", &flannel).silent();
    back.wait().unwrap();
}

#[test]
fn locks_that_others_hold_are_no_reason() {
    let node = Node::new();
    let leases = "/var/lib/cni/networks/net1";
    fs::create_dir_all(leases).unwrap();
    fs::create_dir_all("/run/cni").unwrap();
    let inode = node.sh("stat -Lc %i /proc/self/ns/net");
    let mut files = vec![format!("{leases}/lock"), "/run/xtables.lock".to_owned()];
    for section in ["iptables", "localnet", "firewall"] {
        files.push(format!("/run/cni/cnibox-{section}-{}.lock", inode.trim()));
    }
    let mut holders = Servers::default();
    for file in &files {
        let mut flock = Command::new("flock");
        let holder = flock.args(["--no-fork", file, "sh", "-c", "echo held; exec sleep 60"]);
        let mut holder = holder.stdout(Stdio::piped()).spawn().unwrap();
        let mut told = [0; 4];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut told).unwrap();
        holders.0.push(holder);
    }
    for backend in common::BACKENDS {
        let path = tools(&node, &format!("tools-{backend}"), backend);
        let word = backend.split('-').next().unwrap();
        let change = json!({"ipMasq": true, "ipMasqBackend": word, "backend": word});
        for plugin in ["bridge", "ptp", "portmap", "firewall"] {
            let config = with(network(plugin, &V46), change.clone());
            let call = node.plugin(plugin).env("PATH", &path);
            call.run("STATUS", &config).silent();
        }
    }
    drop(holders);
}

#[test]
fn a_pool_that_makes_the_node_not_ready_is_warned_of() {
    let node = Node::new();
    let validated = |value: Value| {
        let mut config = network("bridge", &V4);
        config["ipam"]["statusFailsWhenExhausted"] = value;
        let file = node.dir.path().join("net1.conf");
        fs::write(&file, config.to_string()).unwrap();
        node.cnitool(node.dir.path(), &["validate", file.to_str().unwrap()])
    };
    let output = validated(json!(true));
    let told = format!("{}{}", output.stdout, output.stderr);
    assert!(output.ok, "a warning is no error: {output:?}");
    for word in ["ipam.statusFailsWhenExhausted", "not ready", "evicts"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    let output = validated(json!(false));
    assert!(output.ok && !output.stdout.contains("evicts"), "{output:?}");
    let output = validated(json!("yes"));
    assert!(
        !output.ok && output.stdout.contains("statusFailsWhenExhausted"),
        "{output:?}"
    );
}

/// Every row of the tables in docs/operations.md names the tests that make what it tells of.
#[test]
fn the_tables_name_tests_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| "));
    let mut named = 0;
    let mut has_tests = false;
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let last = cells.last().unwrap().trim();
        if cells.first().unwrap().trim() != "---" && last == "tests" {
            has_tests = true;
            continue;
        }
        if row.starts_with("| ---") {
            continue;
        }
        if row.starts_with("| runtime") {
            has_tests = false;
        }
        if !has_tests {
            continue;
        }
        for test in last.split(", ") {
            let name = test.trim_matches('`');
            let (file, function) = name.split_once("::").unwrap_or_else(|| panic!("{row}"));
            let is_there = |path: &Path| {
                let text = fs::read_to_string(path).unwrap_or_default();
                text.contains(&format!("\nfn {function}("))
            };
            let dir = root.join("tests").join(file);
            let files = fs::read_dir(&dir).into_iter().flatten();
            let found = is_there(&root.join("tests").join(format!("{file}.rs")))
                || files
                    .into_iter()
                    .any(|entry| is_there(&entry.unwrap().path()));
            assert!(found, "there is no test {name}");
            named += 1;
        }
    }
    assert!(named > 50, "{named}");
}
