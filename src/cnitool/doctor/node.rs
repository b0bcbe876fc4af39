//! The node as a whole: configurations, plugins, tables that can be full.

use std::collections::BTreeSet;

use super::Finding;
use super::facts::Facts;
use crate::runtime::chain;
use crate::runtime::network::{Network, ipam, plugin_type};

/// What is wrong with it; `what` is the network or container that is meant.
pub fn check(facts: &Facts<'_>, what: Option<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let networks = &facts.survey.directory.networks;
    let container_networks: BTreeSet<&str> = facts
        .views
        .iter()
        .filter(|view| what.is_some_and(|what| super::is_meant(view, what)))
        .map(|view| &*view.network)
        .collect();
    let is_meant =
        |name: &str| what.is_none_or(|what| what == name || container_networks.contains(name));
    for (number, network) in networks
        .iter()
        .enumerate()
        .filter(|(_, n)| is_meant(&n.name))
    {
        let mut earlier = networks.iter().take(number);
        match earlier.find(|earlier| earlier.name == network.name) {
            Some(first) => findings.push(shadowed(network, first)),
            None => findings.extend(configuration(facts, network)),
        }
    }
    if what.is_none() {
        for broken in &facts.survey.directory.broken {
            findings.push(Finding::error(
                format!("file {}", broken.file.display()),
                format!("it holds no usable network: {:#}", broken.error),
                "runtimes pass over it, or refuse all networks",
                format!(
                    "mend it (cnitool validate {}), or remove it",
                    broken.file.display()
                ),
            ));
        }
    }
    findings.extend(connections(facts));
    findings.extend(neighbours(facts));
    findings
}

fn shadowed(network: &Network, first: &Network) -> Finding {
    Finding::warning(
        format!("file {}", network.file.display()),
        format!(
            "network {} is defined in {} already",
            network.name,
            first.file.display()
        ),
        "this file is never used: changes to it have no effect",
        format!(
            "rename the network or remove one of the files: rm {}",
            network.file.display()
        ),
    )
}

fn configuration(facts: &Facts<'_>, network: &Network) -> Vec<Finding> {
    let object = format!("network {}", network.name);
    let mut findings = Vec::new();
    if let Err(error) = network.version() {
        findings.push(Finding::error(
            &object,
            format!("{error:#}"),
            "plugins refuse it: no container can be added",
            format!(
                "set \"cniVersion\": \"1.0.0\" in {}",
                network.file.display()
            ),
        ));
    }
    let mut wanted = Vec::new();
    for plugin in &network.plugins {
        let ipam = ipam(&plugin.document).and_then(|ipam| plugin_type(&ipam));
        wanted.extend([Some(plugin.plugin.clone()), ipam].into_iter().flatten());
    }
    wanted.dedup();
    for plugin in wanted {
        if chain::find(&plugin, &facts.plugins).is_err() {
            let places: Vec<String> = facts
                .plugins
                .iter()
                .map(|p| p.display().to_string())
                .collect();
            let first = facts.plugins.first();
            let first =
                first.map_or_else(|| "/opt/cni/bin".into(), |path| path.display().to_string());
            findings.push(Finding::error(
                &object,
                format!("plugin {plugin} is not in {}", places.join(":")),
                "containers can be neither added nor deleted",
                format!("cnibox install {first}, or name the directory with --path"),
            ));
        }
    }
    findings
}

/// The table of connections.
fn connections(facts: &Facts<'_>) -> Option<Finding> {
    let count = facts.host.number("netfilter/nf_conntrack_count")?;
    let most = facts
        .host
        .number("netfilter/nf_conntrack_max")
        .filter(|most| *most > 0)?;
    let mend = format!(
        "sysctl -w net.netfilter.nf_conntrack_max={}",
        most.saturating_mul(2)
    );
    if count >= most {
        let what = format!("the table of connections is full: {count} of {most}");
        let why = "packets of new connections are dropped";
        Some(Finding::error("host", what, why, mend))
    } else if count.saturating_mul(10) >= most.saturating_mul(9) {
        let what = format!("the table of connections is nearly full: {count} of {most}");
        let why = "once it is full, packets of new connections are dropped";
        Some(Finding::warning("host", what, why, mend))
    } else {
        None
    }
}

/// The tables of neighbours.
fn neighbours(facts: &Facts<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (family, is_v4) in [("ipv4", true), ("ipv6", false)] {
        let key = format!("{family}/neigh/default/gc_thresh3");
        let Some(most) = facts.host.number(&key).filter(|most| *most > 0) else {
            continue;
        };
        let own = facts
            .host
            .neighbours
            .iter()
            .filter(|n| n.ip.is_ipv4() == is_v4);
        let count = own.count() as u64;
        if count.saturating_mul(10) >= most.saturating_mul(9) {
            findings.push(Finding::error(
                "host",
                format!("the table of {family} neighbours is full: {count} of {most}"),
                "containers that are not in it cannot be reached",
                format!(
                    "sysctl -w net.{family}.neigh.default.gc_thresh3={} (and gc_thresh2 and gc_thresh1 below it)",
                    most.saturating_mul(4)
                ),
            ));
        }
    }
    findings
}
