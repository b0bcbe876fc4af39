//! The node as a whole: configurations, plugins, tables that can be full.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use nix::errno::Errno;

use super::facts::Facts;
use super::host::overlaps_of;
use super::{Finding, program, set_sysctl};
use crate::cni::error::ErrorObject;
use crate::cni::invocation::{Command, Environment};
use crate::cni::skel::Call;
use crate::cni::version::Version;
use crate::cni::{delegate, json};
use crate::cnitool::inventory::attachment::bridge_name;
use crate::cnitool::validate::neighbours;
use crate::runtime::directory::Broken;
use crate::runtime::network::{Network, PluginConfiguration, ipam, plugin_member, plugin_type};
use crate::runtime::request::{self, Additions};
use crate::runtime::{cache, chain};
use crate::shell::shell;

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
        if let Some(first) = earlier.find(|earlier| earlier.name == network.name) {
            findings.push(shadowed(network, first));
        } else {
            findings.extend(configuration(facts, network));
            findings.extend(shared(facts, network));
        }
    }
    if what.is_none() {
        for broken in &facts.survey.directory.broken {
            let validate = shell!["cnitool", "validate", broken.file.display()];
            findings.push(Finding::error(
                format!("file {}", broken.file.display()),
                format!("it holds no usable network: {:#}", broken.error),
                "runtimes pass over it, or refuse all networks",
                format!("mend it ({validate}), or remove it"),
            ));
        }
    }
    findings.extend(none_configured(facts));
    findings.extend(facts.survey.unknown.iter().map(unreadable));
    findings.extend(unwritable(facts));
    findings.extend(connections(facts));
    findings.extend(known_neighbours(facts));
    findings
}

/// Containers are attached, and to no network any more that there is.
fn none_configured(facts: &Facts<'_>) -> Option<Finding> {
    let directory = &facts.survey.directory;
    let is_empty = directory.networks.is_empty() && directory.broken.is_empty();
    let is_used = facts.views.iter().any(|view| view.memory.is_some());
    (is_empty && is_used).then(|| {
        let path = directory.path.display();
        Finding::warning(
            format!("directory {path}"),
            "it holds no network, and there are containers with one",
            "runtimes that look there add no container",
            "put the configuration back there, or name another place with --conf",
        )
    })
}

/// A result that nothing can be made of.
fn unreadable(broken: &Broken) -> Finding {
    if cache::is_usable(&broken.file) {
        return Finding::warning(
            format!("file {}", broken.file.display()),
            "it holds a result that does not say whose it is, as they were before CNI 0.8",
            "its container can be checked and deleted, but a GC of its network goes without asking plugins",
            "leave it to its container, which takes it along when it is deleted, and writes a new one when it is restarted",
        );
    }
    Finding::error(
        format!("file {}", broken.file.display()),
        format!("it holds no usable result: {:#}", broken.error),
        "if no runtime is writing it just now, none can delete the container that it belongs to, or reuse its ports and addresses",
        shell!["rm", broken.file.display()],
    )
}

/// Where nothing can be recorded.
fn unwritable(facts: &Facts<'_>) -> Vec<Finding> {
    let all = facts.unwritable.iter();
    all.map(|(directory, why)| {
        let path = directory.display();
        let mend = match why.root_cause().downcast_ref() {
            Some(Errno::EROFS) => program::remount("rw", directory),
            Some(Errno::ENOSPC) => {
                let (bytes, files) = (shell!["df", "-h", path], shell!["df", "-i", path]);
                format!("make room, see: {bytes}; {files}")
            }
            _ => format!("see what is in the way: {}", shell!["namei", "-l", path]),
        };
        Finding::error(
            format!("directory {path}"),
            format!("nothing can be written there: {why:#}"),
            "containers can be neither added nor deleted; where the kernel has found errors of a disk (dmesg), they come first",
            mend,
        )
    })
    .collect()
}

/// The subnets of a network that others use: networks, or what the host has routes to.
fn shared(facts: &Facts<'_>, network: &Network) -> Vec<Finding> {
    let directory = &facts.survey.directory;
    let services = facts.survey.services;
    let bridge_of = |network: &Network| bridge_name(services, &network.plugins);
    let mut findings = Vec::new();
    for (own, theirs, other) in neighbours::overlaps(network, directory) {
        // One segment may be shared out among networks on purpose.
        let is_shared_out = own.is_apart(&theirs) && bridge_of(network) == bridge_of(other);
        // Each pair once.
        if network.name < other.name && !is_shared_out {
            findings.push(Finding::warning(
                format!("networks {} and {}", network.name, other.name),
                format!("their subnets overlap: {} and {}", own.subnet, theirs.subnet),
                "one address is given out twice, and packets for it reach now the one and now the other",
                format!(
                    "choose another subnet in {} or {}",
                    network.file.display(),
                    other.file.display()
                ),
            ));
        }
    }
    // What containers have has been compared with them.
    if facts.views.iter().all(|view| view.network != network.name)
        && let Some(bridge) = bridge_name(services, &network.plugins)
    {
        let bridge = facts.survey.host.link(&bridge);
        let subnets = neighbours::subnets(network).into_iter();
        findings.extend(subnets.flat_map(|s| overlaps_of(facts, &network.name, s.subnet, bridge)));
    }
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
            "rename the network or remove one of the files: {}",
            shell!["rm", network.file.display()]
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
        let ipam = ipam(&plugin.document);
        let resolver = ipam.as_ref().and_then(|i| plugin_member(i, "resolvConf"));
        let resolver = resolver.and_then(|file| Some(PathBuf::from(file.as_str()?)));
        findings.extend(
            resolver
                .filter(|file| !file.as_os_str().is_empty() && !file.exists())
                .map(|file| no_resolver(&object, network, &file)),
        );
        let ipam = ipam.and_then(|ipam| plugin_type(&ipam));
        wanted.extend([Some(plugin.plugin.clone()), ipam].into_iter().flatten());
    }
    wanted.dedup();
    for plugin in wanted {
        let found = chain::find(&plugin, &facts.plugins);
        if let Ok(file) = &found {
            findings.extend(unusable(facts, &object, &plugin, file));
        } else {
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
                format!(
                    "{}, or name the directory with --path",
                    shell!["cnibox", "install", first]
                ),
            ));
        }
    }
    if findings.is_empty() {
        findings.extend(not_available(facts, network));
    }
    findings
}

/// The plugins of `network` whose STATUS says that ADD would fail for every container. Only our
/// own are asked, in this process.
fn not_available(facts: &Facts<'_>, network: &Network) -> Vec<Finding> {
    if !nix::unistd::geteuid().is_root() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for plugin in &network.plugins {
        let Err(error) = status(facts, network, plugin) else {
            continue;
        };
        let ErrorObject { msg, details, .. } = ErrorObject::from_error(&error);
        // That has a finding of its own.
        let mut unwritable = facts.unwritable.keys();
        if unwritable.any(|directory| msg.contains(&*directory.to_string_lossy())) {
            continue;
        }
        let mend = if details.is_empty() {
            let file = network.file.display();
            format!("mend {file}, or remove what is in the way")
        } else {
            details
        };
        findings.push(Finding::error(
            format!("network {}", network.name),
            format!("plugin {} is not available: {msg}", plugin.plugin),
            "its ADD fails for every container",
            mend,
        ));
    }
    findings
}

/// What STATUS of `plugin` says, if it is one of ours. Versions before 1.1.0 have no STATUS, but
/// plugins know how.
fn status(facts: &Facts<'_>, network: &Network, plugin: &PluginConfiguration) -> Result<()> {
    let services = facts.survey.services;
    let executable = chain::find(&plugin.plugin, &facts.plugins)?;
    let Some(own) = delegate::own(&plugin.plugin, &executable, services.plugin) else {
        return Ok(());
    };
    let mut config = request::document(network, plugin, Additions::default());
    config.insert("cniVersion".into(), Version::NEWEST.as_str().into());
    let path = std::env::join_paths(&facts.plugins)?;
    let env = [("CNI_PATH".to_owned(), path.to_string_lossy().into_owned())];
    let env = Environment::from(env);
    let config = json::compact(&config)?;
    let call = Call::to_look(Command::Status, own, services.exact(), &env, config)?;
    own.status(&call)
}

/// What containers are to have in their `resolv.conf` is nowhere.
fn no_resolver(object: &str, network: &Network, file: &Path) -> Finding {
    Finding::error(
        object,
        format!("resolvConf {} does not exist", file.display()),
        "no container can be added",
        format!("write it, or name another in {}", network.file.display()),
    )
}

/// A plugin that is there and does not run.
fn unusable(facts: &Facts<'_>, object: &str, plugin: &str, file: &Path) -> Option<Finding> {
    let directory = file.parent().unwrap_or(file).display();
    let reinstall = match (facts.survey.services.plugin)(plugin) {
        Some(_) => shell!["cnibox", "install", directory].into(),
        None => format!("install {plugin} in {directory} again, for this machine"),
    };
    let (what, mend) = program::flaw(file, reinstall)?;
    Some(Finding::error(
        object,
        format!("plugin {} {what}", file.display()),
        "containers can be neither added nor deleted",
        mend,
    ))
}

/// The table of connections.
fn connections(facts: &Facts<'_>) -> Option<Finding> {
    let count = facts.host.number("netfilter/nf_conntrack_count")?;
    let most = facts
        .host
        .number("netfilter/nf_conntrack_max")
        .filter(|most| *most > 0)?;
    let more = most.saturating_mul(2).to_string();
    let mend = set_sysctl("net.netfilter.nf_conntrack_max", &more);
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
fn known_neighbours(facts: &Facts<'_>) -> Vec<Finding> {
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
            let key = format!("net.{family}.neigh.default.gc_thresh3");
            let raise = set_sysctl(&key, &most.saturating_mul(4).to_string());
            findings.push(Finding::error(
                "host",
                format!("the table of {family} neighbours is full: {count} of {most}"),
                "containers that are not in it cannot be reached",
                format!("{raise} (and gc_thresh2 and gc_thresh1 below it)"),
            ));
        }
    }
    findings
}
