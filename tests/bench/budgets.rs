//! The whole of what a node's list of plugins does to a container: alone, many at once, and
//! beside a great many rules of somebody else's.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use crate::chain::{self, Backend, Cost};
use crate::common::Node;
use crate::measure;
use crate::report::Report;
use crate::stage::{Container, Stage};
use crate::{Contender, Effort, Peers, single};

/// In the order of ADD.
const PLUGINS: [&str; 4] = ["bridge", "portmap", "firewall", "tuning"];

/// Measures the reference and cnibox, both with iptables.
pub fn measure(peers: &Arc<Peers>, effort: Effort, report: &mut Report) {
    let stage = Stage::new();
    let containers: Vec<Container> =
        stage.run(move |_| (1..=effort.at_once).map(Container::new).collect());
    let containers = Arc::new(containers);
    let one = |what: &str, rounds: u32, report: &mut Report| {
        report.progress(what);
        // The first makes what stays.
        for number in 0..=rounds {
            for who in [Contender::Reference, Contender::Cnibox(Backend::Iptables)] {
                let (dir, containers) = (peers.dir(who).to_owned(), Arc::clone(&containers));
                let [add, del] = stage.run(move |node| {
                    let first = containers.first().expect("a container");
                    let (result, add) = call(node, &dir, "ADD", first, &Value::Null);
                    let (_, del) = call(node, &dir, "DEL", first, &result);
                    [add, del]
                });
                if number > 0 {
                    report.single(what, single::name(who)).push(&add, &del);
                }
            }
        }
    };
    let names = "bridge, portmap with 2 ports, firewall, tuning";
    one(names, effort.turns * 3, report);

    let what = format!("{} at once: {names}", effort.at_once);
    report.progress(&what);
    for who in [Contender::Reference, Contender::Cnibox(Backend::Iptables)] {
        let (dir, containers) = (peers.dir(who).to_owned(), Arc::clone(&containers));
        let [add, del] = stage.run(move |node| storm(node, &dir, &containers));
        report.single(&what, single::name(who)).push(&add, &del);
    }

    stage.run(move |_| foreign(effort.foreign));
    let what = format!("beside {} foreign rules: {names}", effort.foreign);
    one(&what, effort.turns, report);
}

/// ADDs of all, then DELs of all, each at once.
fn storm(node: &Node, dir: &Path, containers: &[Container]) -> [Cost; 2] {
    let mut results = vec![Value::Null; containers.len()];
    ["ADD", "DEL"].map(|command| {
        let (before, start) = (measure::cpu(), Instant::now());
        results = std::thread::scope(|scope| {
            let calls: Vec<_> = containers
                .iter()
                .zip(&results)
                .map(|(container, result)| {
                    scope.spawn(move || call(node, dir, command, container, result).0)
                })
                .collect();
            let ended = calls.into_iter().map(|call| call.join().expect("a call"));
            ended.collect()
        });
        Cost {
            steps: vec![("all", start.elapsed())],
            cpu: measure::cpu().saturating_sub(before),
        }
    })
}

/// Runs all plugins for one container.
fn call(
    node: &Node,
    dir: &Path,
    command: &str,
    container: &Container,
    result: &Value,
) -> (Value, Cost) {
    let mut plugins = PLUGINS;
    if command == "DEL" {
        plugins.reverse();
    }
    let mut cost = Cost::default();
    let before = measure::cpu();
    let mut result = result.clone();
    for plugin in plugins {
        let config = configuration(plugin, container);
        let process = chain::call(node, dir, command, plugin, config, container, &result);
        let (answer, took) = chain::run(process);
        let answer = answer.unwrap_or_else(|said| panic!("{plugin} {command}: {said}"));
        if command == "ADD" {
            result = answer;
        }
        cost.steps.push((plugin, took));
    }
    cost.cpu = measure::cpu().saturating_sub(before);
    (result, cost)
}

fn configuration(plugin: &str, container: &Container) -> Value {
    let port = container.port;
    match plugin {
        "portmap" => json!({"backend": "iptables", "runtimeConfig": {"portMappings": [
            {"hostPort": port, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": port, "containerPort": 53, "protocol": "udp"},
        ]}}),
        "firewall" => json!({"backend": "iptables"}),
        _ => chain::configuration(plugin, Backend::Iptables, container),
    }
}

/// Makes so many rules that have nothing to do with containers.
fn foreign(count: u32) {
    let mut text = String::from("*nat\n:KUBE-FOREIGN - [0:0]\n");
    for number in 0..count {
        let [_, a, b, c] = number.to_be_bytes();
        writeln!(text, "-A KUBE-FOREIGN -d 198.{a}.{b}.{c}/32 -j RETURN").expect("text");
    }
    text.push_str("COMMIT\n");
    let mut restore = std::process::Command::new("iptables-restore");
    restore.arg("--noflush");
    let (output, _) = measure::run(restore, &text);
    assert!(output.status.success(), "{output:?}");
}
