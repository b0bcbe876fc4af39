//! Everything on this node that has to do with CNI, looked at once: configurations, result
//! cache, leases, links, namespaces, rules. Whoever made them; nothing is changed.
//!
//! [`Survey::take`] reads it all into plain data. What can be concluded is pure:
//! [`attachment::join`] says of every attachment how it is. What is expensive or rarely
//! wanted (neighbours, sysctls) is left to whoever wants it.

pub mod attachment;
mod natural;
pub mod stack;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde_json::Value;

pub use self::stack::Stack;
use crate::cni::config::Config;
use crate::cni::json::Object;
use crate::cni::pool::Pool;
use crate::cni::skel::Services;
use crate::cni::version::Version;
use crate::fsutil;
use crate::net::netlink::Netlink;
use crate::net::netns::{self, Netns};
use crate::netfilter::listing::Listing;
use crate::netfilter::{Owner, listing};
use crate::runtime::cache::{Cache, Entry, Record};
use crate::runtime::directory::{Broken, Directory};
use crate::runtime::network::{self, Network, PluginConfiguration};
use crate::runtime::request::{self, Additions};

/// Where namespaces have names.
const NAMES: &str = "/run/netns";

/// The plugin that records addresses in files.
const HOST_LOCAL: &str = "host-local";

/// The namespace of this process.
const OWN: &str = "/proc/thread-self/ns/net";

/// The node, at one moment.
#[derive(Debug)]
pub struct Survey {
    /// Our own plugins, which know what their configurations mean.
    pub services: Services,
    /// When that was.
    pub now: SystemTime,
    /// The networks that are configured.
    pub directory: Directory,
    /// What the result cache remembers, by the names of its files.
    pub memories: Vec<Memory>,
    /// Files of the cache that do not tell whose they are.
    pub unknown: Vec<Broken>,
    /// The leases of every data directory that a configuration names, and of the usual one.
    pub pools: Vec<Pool>,
    /// The namespace of this process.
    pub host: Stack,
    /// Those that the cache or `/run/netns` names, by path.
    pub namespaces: BTreeMap<String, Namespace>,
    /// The packet filter's rules that belong to attachments.
    pub rules: Listing,
    /// What could not be looked at, and why; the rules' have their own.
    pub doubts: Vec<String>,
}

/// An entry of the result cache.
#[derive(Debug)]
pub struct Memory {
    /// Where it stands.
    pub file: PathBuf,
    /// Whose it is.
    pub entry: Entry,
    /// What the attachment was made with and what came of it, or why that cannot be read.
    pub record: std::result::Result<Record, String>,
}

/// What is at a path that leads to a network namespace.
#[derive(Debug)]
pub enum Namespace {
    /// None: it is gone.
    Gone,
    /// The one that this process is in, which is no container's.
    Own,
    /// One that cannot be looked into, for this reason.
    Closed(String),
    /// One that has been looked into.
    Open(Stack),
}

impl Namespace {
    /// What it holds, if that is known.
    pub fn stack(&self) -> Option<&Stack> {
        match self {
            Self::Open(stack) => Some(stack),
            _ => None,
        }
    }
}

impl Survey {
    /// Looks at the node. `directory` are the configurations, `cache` the results.
    ///
    /// # Errors
    /// When the cache or the host's links cannot be listed: nothing could be told then.
    pub fn take(directory: Directory, cache: &Cache, services: Services) -> Result<Self> {
        let mut doubts = Vec::new();
        let contents = cache.contents()?;
        let memories: Vec<Memory> = contents
            .entries
            .into_iter()
            .filter_map(|entry| remember(cache, entry))
            .collect();
        let pools = pools(services, &directory, &memories, &mut doubts);
        let netlink = Netlink::open()?;
        let host = Stack::read(&netlink).context("look at the host's network")?;
        let paths: BTreeSet<String> = memories
            .iter()
            .map(|memory| memory.entry.parameters.netns.clone())
            .filter(|path| !path.is_empty())
            .chain(named_namespaces(&mut doubts))
            .collect();
        let namespaces = paths.into_iter().map(|path| {
            let found = look_into(&path);
            (path, found)
        });
        let mut rules = listing::list();
        match address_owners(services) {
            Ok(owners) => rules.name_owners(&owners),
            Err(error) => doubts.push(format!("{error:#}")),
        }
        Ok(Self {
            services,
            now: SystemTime::now(),
            namespaces: namespaces.collect(),
            rules,
            unknown: contents.unknown,
            directory,
            memories,
            pools,
            host,
            doubts,
        })
    }

    /// Everything that could not be looked at: what is told may then be wrong.
    pub fn all_doubts(&self) -> impl Iterator<Item = &String> {
        self.doubts.iter().chain(&self.rules.doubts)
    }
}

/// Whose the addresses are that rules let through without naming the attachment.
///
/// # Errors
/// When that cannot be read.
fn address_owners(services: Services) -> Result<Vec<(IpAddr, Owner)>> {
    let Some(firewall) = (services.plugin)("firewall") else {
        return Ok(Vec::new());
    };
    let owner = |(address, network, attachment)| {
        let owner = Owner {
            network,
            attachment,
        };
        (address, owner)
    };
    Ok(firewall.address_owners()?.into_iter().map(owner).collect())
}

/// An entry with its record; `None` when it is gone meanwhile.
fn remember(cache: &Cache, entry: Entry) -> Option<Memory> {
    let record = match cache.record(&entry.network, &entry.parameters.attachment) {
        Ok(record) => Ok(record?),
        Err(error) => Err(format!("{error:#}")),
    };
    Some(Memory {
        file: cache.file(&entry.network, &entry.parameters.attachment),
        entry,
        record,
    })
}

/// The paths of the namespaces that have names.
fn named_namespaces(doubts: &mut Vec<String>) -> Vec<String> {
    let names = match std::fs::read_dir(NAMES) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            doubts.push(format!("list {NAMES}: {error}"));
            return Vec::new();
        }
    };
    let names = names.filter_map(|entry| entry.ok()?.path().into_os_string().into_string().ok());
    // A file that nothing is mounted on any more is no namespace.
    names.filter(|path| netns::is_live(path)).collect()
}

fn look_into(path: &str) -> Namespace {
    if !netns::is_live(path) {
        return Namespace::Gone;
    }
    if fsutil::is_same_file(Path::new(OWN), Path::new(path)) {
        return Namespace::Own;
    }
    let look = || {
        let netns = Netns::open(path)?;
        let stack = Stack::read(&Netlink::open_in(&netns)?)?;
        Ok(Namespace::Open(stack))
    };
    look().unwrap_or_else(|error: anyhow::Error| Namespace::Closed(format!("{error:#}")))
}

/// The pools of all networks that are configured, were when an attachment was made, or
/// have left leases.
fn pools(
    services: Services,
    directory: &Directory,
    memories: &[Memory],
    doubts: &mut Vec<String>,
) -> Vec<Pool> {
    let none = Object::new();
    let configured = directory.networks.iter().map(|network| (network, &none));
    let remembered = memories.iter().filter_map(|memory| {
        let record = memory.record.as_ref().ok()?;
        Some((&record.network, &memory.entry.parameters.capability_args))
    });
    let mut configs = Vec::new();
    for (network, capability_args) in configured.chain(remembered) {
        for plugin in &network.plugins {
            let config = config(network, plugin, capability_args);
            // A plugin that runs another may make the configuration with the pools.
            let config = match (services.plugin)(&plugin.plugin) {
                Some(own) => own.delegated(config),
                None => Some(config),
            };
            configs.extend(config.filter(is_recorded));
        }
    }
    let Some(host_local) = (services.plugin)(HOST_LOCAL) else {
        return Vec::new();
    };
    let (mut pools, unread) = host_local.pools(&configs);
    doubts.extend(unread);
    pools.sort_by(|a, b| natural::compare(&a.network, &b.network));
    pools
}

/// Whether the plugin's addresses are recorded in files, as ours and the reference's do.
pub fn is_host_local(plugin: &PluginConfiguration) -> bool {
    records(&plugin.document)
}

fn is_recorded(config: &Config) -> bool {
    config.document.as_object().is_some_and(records)
}

fn records(document: &Object) -> bool {
    let ipam = network::ipam(document);
    let name = ipam.as_ref().and_then(network::plugin_type);
    name.is_some_and(|name| [HOST_LOCAL, "ipam"].contains(&name.as_str()))
}

/// What the plugin is run with.
pub fn config(network: &Network, plugin: &PluginConfiguration, capability_args: &Object) -> Config {
    let additions = Additions {
        capability_args: Some(capability_args),
        ..Additions::default()
    };
    Config {
        version: network.version().unwrap_or(Version::NEWEST),
        network: network.name.clone(),
        document: Value::Object(request::document(network, plugin, additions)),
        raw: Vec::new(),
    }
}
