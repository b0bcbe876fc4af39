//! The floor: the links, addresses, routes, sysctls and rules of the chain, made as an
//! expert's script would on a node that is prepared: one process for each kind.
//!
//! Left out, in its favour: addresses are not allocated, nothing is checked, and DEL is
//! told what ADD had to do. The bridge, tables and chains are those that the plugins' first
//! ADD has made.

use std::process::Command;
use std::time::Duration;

use crate::chain::{BRIDGE, Backend, Cost, GATEWAY};
use crate::measure;
use crate::stage::Container;

/// The container's address.
const ADDRESS: &str = "10.9.250.1";
/// The host's end of the veth pair.
const HOST_END: &str = "vethfloor";
/// The chains of one container, in iptables.
const CHAINS: [&str; 2] = ["CNI-floor", "CNI-DN-floor"];

/// What DEL is told: the chains and handles of the nftables rules.
pub type Handles = Vec<(String, String)>;

/// ADD.
pub fn add(backend: Backend, container: &Container) -> (Handles, Cost) {
    let mut cost = Cost::default();
    let before = measure::cpu();
    let (netns, port) = (&container.netns, container.port);
    let enter = format!("--net={netns}");
    step(
        &mut cost,
        "ip",
        &["-batch", "-"],
        &format!(
            "link add dev {HOST_END} mtu 1400 master {BRIDGE} up type veth \
             peer name eth0 mtu 1400 netns {}\n\
             link set dev {HOST_END} type bridge_slave hairpin on\n",
            container.id,
        ),
    );
    step(
        &mut cost,
        "nsenter",
        &[&enter, "ip", "-batch", "-"],
        &format!(
            "addr add {ADDRESS}/16 brd + dev eth0\nlink set dev eth0 up\n\
             route add default via {GATEWAY}\n"
        ),
    );
    step(
        &mut cost,
        "nsenter",
        &[&enter, "sh", "-c", "echo 500 >/proc/sys/net/core/somaxconn"],
        "",
    );
    let handles = match backend {
        Backend::Iptables => {
            let [masquerade, map] = CHAINS;
            let rules = format!(
                "*nat\n:{masquerade} - [0:0]\n:{map} - [0:0]\n\
                 -A {masquerade} -d 10.9.0.0/16 -j ACCEPT\n\
                 -A {masquerade} ! -d 224.0.0.0/4 -j MASQUERADE\n\
                 -A {map} -s 10.9.0.0/16 -p tcp --dport {port} -j CNI-HOSTPORT-SETMARK\n\
                 -A {map} -s 127.0.0.1/32 -p tcp --dport {port} -j CNI-HOSTPORT-SETMARK\n\
                 -A {map} -p tcp --dport {port} -j DNAT --to-destination {ADDRESS}:80\n\
                 {}COMMIT\n",
                jumps("-I", port)
            );
            step(
                &mut cost,
                "iptables-restore",
                &["--noflush", "--wait"],
                &rules,
            );
            Handles::new()
        }
        Backend::Nftables => {
            let to = "ip cni_hostport";
            let rules = format!(
                "add rule inet cni_plugins_masquerade masq_checks ip saddr {ADDRESS} ip daddr != 10.9.0.0/16 masquerade\n\
                 insert rule {to} hostports tcp dport {port} dnat to {ADDRESS}:80\n\
                 insert rule {to} masquerading ip saddr {ADDRESS} ip daddr {ADDRESS} masquerade\n\
                 insert rule {to} masquerading ip saddr 127.0.0.1 ip daddr {ADDRESS} masquerade\n\
                 insert rule {to} masquerading ip saddr 10.9.0.0/16 ip daddr {ADDRESS} ct status dnat masquerade\n"
            );
            let told = step(&mut cost, "nft", &["-ea", "-f", "-"], &rules);
            handles(&told)
        }
    };
    cost.cpu = measure::cpu().saturating_sub(before);
    (handles, cost)
}

/// DEL.
pub fn del(backend: Backend, container: &Container, handles: &Handles) -> Cost {
    let mut cost = Cost::default();
    let before = measure::cpu();
    match backend {
        Backend::Iptables => {
            let [masquerade, map] = CHAINS;
            let rules = format!(
                "*nat\n{}-F {masquerade}\n-F {map}\n-X {masquerade}\n-X {map}\nCOMMIT\n",
                jumps("-D", container.port)
            );
            step(
                &mut cost,
                "iptables-restore",
                &["--noflush", "--wait"],
                &rules,
            );
        }
        Backend::Nftables => {
            let rules: Vec<String> = handles
                .iter()
                .map(|(chain, handle)| {
                    format!(
                        "delete rule {chain} handle {handle}
"
                    )
                })
                .collect();
            step(&mut cost, "nft", &["-f", "-"], &rules.concat());
        }
    }
    step(
        &mut cost,
        "ip",
        &["-batch", "-"],
        &format!("link del dev {HOST_END}\n"),
    );
    cost.cpu = measure::cpu().saturating_sub(before);
    cost
}

/// The rules that lead to the container's chains, to be added or deleted.
fn jumps(how: &str, port: u16) -> String {
    let [masquerade, map] = CHAINS;
    format!(
        "{how} POSTROUTING -s {ADDRESS}/32 -j {masquerade}\n\
         {how} CNI-HOSTPORT-DNAT -p tcp -m multiport --dports {port} -j {map}\n"
    )
}

/// The rules that `nft -ea` says it has added: where, and their handles.
fn handles(told: &str) -> Handles {
    let rules = told.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let place = line.contains(" rule ").then(|| words.get(2..5))??;
        Some((place.join(" "), (*words.last()?).to_owned()))
    });
    rules.collect()
}

/// Runs one process that must succeed. Answers what it printed.
fn step(cost: &mut Cost, program: &'static str, args: &[&str], stdin: &str) -> String {
    let mut command = Command::new(program);
    command.args(args);
    let (output, took): (_, Duration) = measure::run(command, stdin);
    assert!(
        output.status.success(),
        "{program} {args:?}: {output:?}\n{stdin}"
    );
    cost.steps.push((program, took));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
