//! Single plugins: start-up, memory, and what one ADD and one DEL cost.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::chain::{self, Backend, PLUGINS};
use crate::common::Node;
use crate::measure;
use crate::report::Report;
use crate::stage::{Container, Stage};
use crate::{Contender, Effort, Peers};

/// What is measured beside the chain: a name, the plugin, its configuration.
fn cases() -> Vec<(&'static str, &'static str, Value)> {
    let ranges = json!([[{"subnet": "10.10.0.0/16"}], [{"subnet": "fd00:10::/64"}]]);
    let ipam = json!({"type": "host-local", "ranges": ranges});
    vec![
        (
            "bridge + host-local, dual-stack",
            "bridge",
            json!({"bridge": "cni1", "isDefaultGateway": true, "ipam": ipam}),
        ),
        ("ptp + host-local, dual-stack", "ptp", json!({"ipam": ipam})),
        (
            "host-local, dual-stack",
            "host-local",
            json!({"ipam": ipam}),
        ),
        (
            "static",
            "static",
            json!({"ipam": {"type": "static", "addresses": [{"address": "10.10.0.9/16"}]}}),
        ),
        ("loopback", "loopback", json!({})),
    ]
}

/// Measures all of it.
pub fn measure(peers: &Arc<Peers>, effort: Effort, report: &mut Report) {
    let stage = Stage::new();
    let container = stage.run(|_| Container::new(1));
    report.progress("start-up and memory");
    for _ in 0..effort.single_rounds {
        report
            .start("/bin/true")
            .push(start(Command::new("/bin/true")));
        for who in [Contender::Reference, Contender::Cnibox(Backend::Nftables)] {
            let mut version = Command::new(peers.dir(who).join("bridge"));
            version.env_clear().env("CNI_COMMAND", "VERSION");
            report.start(name(who)).push(start(version));
        }
    }
    for who in Contender::ALL {
        if !matches!(who, Contender::Floor(_)) {
            let (dir, container) = (peers.dir(who).to_owned(), container.clone());
            let most = stage.run(move |node| memory(node, &dir, who.backend(), &container));
            report.memory(who, most);
        }
    }
    for (what, plugin, config) in cases() {
        report.progress(what);
        repeat(
            &stage,
            peers,
            effort.single_rounds,
            &container,
            plugin,
            &config,
            |who, add, del| {
                report.single(what, who).push(add, del);
            },
        );
    }
    let what = format!("host-local among {} leases", effort.leases);
    report.progress(&what);
    let leases = effort.leases;
    stage.run(move |_| {
        for who in [Contender::Reference, Contender::Cnibox(Backend::Nftables)] {
            lease(&data_dir(who), leases);
        }
    });
    let many = json!({"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/8"}]]}});
    repeat(
        &stage,
        peers,
        5,
        &container,
        "host-local",
        &many,
        |who, add, del| {
            report.single(&what, who).push(add, del);
        },
    );
}

/// Milliseconds from before a process's start to after its end.
fn start(command: Command) -> f64 {
    let (output, took) = measure::run(command, "");
    assert!(output.status.success(), "{output:?}");
    crate::sample::milliseconds(took)
}

/// The plain name of a set of plugins.
pub fn name(who: Contender) -> &'static str {
    match who {
        Contender::Reference => "reference",
        _ => "cnibox",
    }
}

/// The most memory in KiB that any plugin of the chain takes, ADD and DEL, and which.
fn memory(node: &Node, dir: &Path, backend: Backend, container: &Container) -> (u64, &'static str) {
    let mut result = Value::Null;
    let mut most = (0, "");
    let commands = PLUGINS.map(|plugin| ("ADD", plugin));
    let deletions = PLUGINS.map(|plugin| ("DEL", plugin));
    for (command, plugin) in commands.into_iter().chain(deletions.into_iter().rev()) {
        let config = chain::configuration(plugin, backend, container);
        let (process, stdin) = chain::call(node, dir, command, plugin, config, container, &result);
        let (printed, memory) = measure::memory(process, &stdin);
        if command == "ADD" {
            result = serde_json::from_str(&printed).expect("a result");
        }
        most = most.max((memory, plugin));
    }
    most
}

/// ADDs and DELs by the reference and cnibox in turn.
fn repeat(
    stage: &Stage,
    peers: &Arc<Peers>,
    rounds: u32,
    container: &Container,
    plugin: &'static str,
    config: &Value,
    mut told: impl FnMut(&'static str, &chain::Cost, &chain::Cost),
) {
    for number in 0..=rounds {
        for who in [Contender::Reference, Contender::Cnibox(Backend::Nftables)] {
            let (dir, container) = (peers.dir(who).to_owned(), container.clone());
            let mut config = config.clone();
            if config.get("ipam").is_some() {
                config["ipam"]["dataDir"] = data_dir(who).into();
            }
            let (add, del) = stage.run(move |node| pair(node, &dir, plugin, &config, &container));
            // The first makes what stays.
            if number > 0 {
                told(name(who), &add, &del);
            }
        }
    }
}

/// ADD and DEL of one plugin.
fn pair(
    node: &Node,
    dir: &Path,
    plugin: &'static str,
    config: &Value,
    container: &Container,
) -> (chain::Cost, chain::Cost) {
    let mut result = Value::Null;
    let [add, del] = ["ADD", "DEL"].map(|command| {
        measure::settle();
        let before = measure::cpu();
        let call = chain::call(
            node,
            dir,
            command,
            plugin,
            config.clone(),
            container,
            &result,
        );
        let (answer, took) = chain::run(call);
        result = answer.unwrap_or_else(|said| panic!("{plugin} {command}: {said}"));
        chain::Cost {
            steps: vec![(plugin, took)],
            cpu: measure::cpu().saturating_sub(before),
        }
    });
    (add, del)
}

/// Where leases are.
///
/// Each has its own: cnibox would have to look through one that others write to.
fn data_dir(who: Contender) -> String {
    format!("/var/lib/leases-{}", name(who))
}

/// Makes so many leases, of containers that are not there.
fn lease(data_dir: &str, count: u32) {
    let dir = format!("{data_dir}/bench");
    fs::create_dir_all(&dir).expect("make a data directory");
    for number in 0..count {
        let [_, b, c, d] = (number + 2).to_be_bytes();
        fs::write(
            format!("{dir}/10.{b}.{c}.{d}"),
            format!("other{number}\r\neth0"),
        )
        .expect("write a lease");
    }
    fs::write(format!("{dir}/last_reserved_ip.0"), {
        let [_, b, c, d] = (count + 1).to_be_bytes();
        format!("10.{b}.{c}.{d}")
    })
    .expect("write the last lease");
}
