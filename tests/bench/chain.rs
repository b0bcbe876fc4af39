//! The chain bridge, tuning, portmap, as a runtime runs it.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::Node;
use crate::measure;
use crate::stage::Container;

/// Who writes the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    Iptables,
    Nftables,
}

impl Backend {
    /// As configurations have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// What ADD or DEL came to.
#[derive(Debug, Default, Clone)]
pub struct Cost {
    /// Each process by its name, and how long it took.
    pub steps: Vec<(&'static str, Duration)>,
    /// Processor time of all of them, and of the processes that they started.
    pub cpu: Duration,
}

impl Cost {
    /// The wall time.
    pub fn wall(&self) -> Duration {
        self.steps.iter().map(|(_, took)| *took).sum()
    }
}

/// The plugins, in the order of ADD.
pub const PLUGINS: [&str; 3] = ["bridge", "tuning", "portmap"];

/// The gateway of [`configuration`]'s network, and the length of its prefix.
pub const GATEWAY: &str = "10.9.0.1";
/// The bridge of [`configuration`].
pub const BRIDGE: &str = "cni0";

/// What a plugin is told: a masqueraded IPv4 network of 65,000 addresses whose containers
/// have a port mapping, a sysctl and an MTU of their own.
pub fn configuration(plugin: &str, backend: Backend, container: &Container) -> Value {
    match plugin {
        "bridge" => json!({
            "bridge": BRIDGE, "isDefaultGateway": true, "hairpinMode": true,
            "ipMasq": true, "ipMasqBackend": backend.word(),
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/16"}]]},
        }),
        "tuning" => json!({"mtu": 1400, "sysctl": {"net.core.somaxconn": "500"}}),
        _ => json!({
            "backend": backend.word(),
            "runtimeConfig": {"portMappings": [
                {"hostPort": container.port, "containerPort": 80, "protocol": "tcp"},
            ]},
        }),
    }
}

/// One call of a plugin in `dir`, not yet made: the process, and its stdin.
pub fn call(
    node: &Node,
    dir: &Path,
    command: &str,
    plugin: &str,
    mut config: Value,
    container: &Container,
    result: &Value,
) -> (std::process::Command, String) {
    config["cniVersion"] = "1.0.0".into();
    config["name"] = "bench".into();
    config["type"] = plugin.into();
    if !result.is_null() {
        config["prevResult"] = result.clone();
    }
    let process = node
        .plugin(plugin)
        .executable(dir.join(plugin))
        .id(&container.id)
        .netns(&container.netns)
        .env("CNI_PATH", &dir.to_string_lossy())
        .env("CNI_COMMAND", command)
        .process();
    (process, config.to_string())
}

/// Makes one call. Answers the result, or what the plugin said against it.
pub fn run((process, stdin): (std::process::Command, String)) -> (Result<Value, String>, Duration) {
    let (output, took) = measure::run(process, &stdin);
    let printed = String::from_utf8_lossy(&output.stdout);
    let answer = if output.status.success() {
        Ok(serde_json::from_str(&printed).unwrap_or_default())
    } else {
        Err(format!(
            "{}: {printed}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ))
    };
    (answer, took)
}

/// ADD of the whole chain.
///
/// # Errors
/// What the first plugin that failed printed.
pub fn add(
    node: &Node,
    dir: &Path,
    backend: Backend,
    container: &Container,
) -> Result<(Value, Cost), String> {
    let mut cost = Cost::default();
    let before = measure::cpu();
    let mut result = Value::Null;
    for plugin in PLUGINS {
        let config = configuration(plugin, backend, container);
        let (answer, took) = run(call(node, dir, "ADD", plugin, config, container, &result));
        result = answer.map_err(|said| format!("{plugin} ADD {}: {said}", container.id))?;
        cost.steps.push((plugin, took));
    }
    cost.cpu = measure::cpu().saturating_sub(before);
    Ok((result, cost))
}

/// DEL of the whole chain, whose ADD came to `result`.
///
/// # Errors
/// What the first plugin that failed printed.
pub fn del(
    node: &Node,
    dir: &Path,
    backend: Backend,
    container: &Container,
    result: &Value,
) -> Result<Cost, String> {
    let mut cost = Cost::default();
    let before = measure::cpu();
    for plugin in PLUGINS.into_iter().rev() {
        let config = configuration(plugin, backend, container);
        let (answer, took) = run(call(node, dir, "DEL", plugin, config, container, result));
        answer.map_err(|said| format!("{plugin} DEL {}: {said}", container.id))?;
        cost.steps.push((plugin, took));
    }
    cost.cpu = measure::cpu().saturating_sub(before);
    Ok(cost)
}
