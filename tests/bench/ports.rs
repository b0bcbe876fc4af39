//! `portmap` with many ports, whose cost must not be one process or transaction for each.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::chain::{self, Backend, Cost};
use crate::common::Node;
use crate::measure;
use crate::report::Report;
use crate::stage::{Container, Stage};
use crate::{Contender, Effort, Peers};

/// ADDs and DELs of each.
const TIMES: u32 = 3;

/// Measures cnibox with either backend. The reference takes minutes.
pub fn measure(peers: &Arc<Peers>, effort: Effort, report: &mut Report) {
    let stage = Stage::new();
    let container = stage.run(|_| Container::new(1));
    for &ports in effort.ports {
        for backend in [Backend::Iptables, Backend::Nftables] {
            let what = format!("portmap, {ports} ports, {}", backend.word());
            report.progress(&what);
            let dir = peers.dir(Contender::Cnibox(backend)).to_owned();
            for _ in 0..TIMES {
                let (dir, container) = (dir.clone(), container.clone());
                let (add, del) =
                    stage.run(move |node| pair(node, &dir, backend, &container, ports));
                report.single(&what, "cnibox").push(&add, &del);
            }
        }
    }
}

/// ADD and DEL of that many ports.
fn pair(
    node: &Node,
    dir: &std::path::Path,
    backend: Backend,
    container: &Container,
    ports: u16,
) -> (Cost, Cost) {
    let call = |command: &str, plugin: &'static str, result: &Value| {
        let mut config = chain::configuration(plugin, backend, container);
        if plugin == "portmap" {
            let mapping =
                |port| json!({"hostPort": 20_000 + port, "containerPort": 80, "protocol": "tcp"});
            config["runtimeConfig"]["portMappings"] = (0..ports).map(mapping).collect();
        }
        let before = measure::cpu();
        let call = chain::call(node, dir, command, plugin, config, container, result);
        let (answer, took) = chain::run(call);
        let answer = answer.unwrap_or_else(|said| panic!("{plugin} {command}: {said}"));
        let cost = Cost {
            steps: vec![(plugin, took)],
            cpu: measure::cpu().saturating_sub(before),
        };
        (answer, cost)
    };
    let (result, _) = call("ADD", "bridge", &Value::Null);
    let (_, add) = call("ADD", "portmap", &result);
    let (_, del) = call("DEL", "portmap", &result);
    call("DEL", "bridge", &result);
    (add, del)
}
