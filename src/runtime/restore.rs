//! Making the packet filter rules of live attachments again, after somebody else has
//! flushed them (docs/requirements.md#r-59).
//!
//! The cache says what each attachment was made with; its plugins, as far as they are
//! ours, are called in this process with what CHECK would get. Rules only: links,
//! addresses and leases stay what they are. A DEL by another runtime at the same time may
//! leave the rules it has just removed: GC finds them.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::cache::{Cache, Entry, Record};
use super::network::plugin_member;
use super::parameters::Parameters;
use super::request::{self, Additions};
use crate::cni::config::Document;
use crate::cni::invocation::{Command, Invocation};
use crate::cni::skel::{Call, Plugin, Services, is_own_namespace};
use crate::net::link;
use crate::net::mac::Mac;
use crate::net::netlink::Netlink;
use crate::net::netns::{self, Netns};
use crate::netfilter::Memo;
use crate::shell::shell;

/// An attachment, and all that its runtime has written down of it.
#[derive(Debug)]
pub struct Remembered {
    /// Whose it is.
    pub entry: Entry,
    record: Record,
}

/// What to do to which attachments.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// Those to this network only.
    pub network: Option<&'a str>,
    /// Look, and change nothing.
    pub dry_run: bool,
}

/// What became of an attachment.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was missing.
    Complete,
    /// These were missing, each as the command that would add it. They are there again,
    /// unless nothing was to be changed.
    Restored(Vec<String>),
    /// Nothing was missing, but an older attachment got back its mapping of the same
    /// port: this one's are in front of it again.
    Renewed,
    /// It does not live any more, for this reason.
    Gone(String),
}

/// The attachments of `entries`, the oldest first, and why others cannot be told about.
pub fn remembered(cache: &Cache, entries: Vec<Entry>) -> (Vec<Remembered>, Vec<anyhow::Error>) {
    let mut attachments = Vec::new();
    let mut errors = Vec::new();
    for entry in entries {
        match cache.record(&entry.network, &entry.parameters.attachment) {
            Ok(Some(record)) => attachments.push(Remembered { entry, record }),
            Ok(None) => {}
            Err(error) => errors.push(error),
        }
    }
    attachments.sort_by_key(|attachment| attachment.record.written);
    (attachments, errors)
}

/// Makes what is missing of `attachments`, in their order: whoever comes later has its
/// mappings in front, so that the newest owner of a port keeps it. One failure stops
/// nothing else.
pub fn restore(
    attachments: &[Remembered],
    scope: Scope<'_>,
    services: Services,
    mut tell: impl FnMut(&Entry, Result<Outcome>),
) {
    let mut overtaken = BTreeSet::new();
    let _memo = Memo::start();
    for attachment in attachments {
        let entry = &attachment.entry;
        let ports = host_ports(&entry.parameters);
        let is_overtaken = !overtaken.is_disjoint(&ports);
        let is_asked = scope.network.is_none_or(|name| name == entry.network);
        if !is_asked && (scope.dry_run || !is_overtaken) {
            continue;
        }
        let outcome = attachment.restore(scope.dry_run, is_overtaken, services);
        // Even when it failed: part of it may have been made.
        if !matches!(outcome, Ok(Outcome::Complete | Outcome::Gone(_))) {
            overtaken.extend(ports);
        }
        tell(entry, outcome);
    }
}

impl Remembered {
    /// Makes what is missing; all again if an older attachment's rules are in front.
    /// Each table is listed once for all attachments of which nothing is missing.
    fn restore(&self, dry_run: bool, is_overtaken: bool, services: Services) -> Result<Outcome> {
        if let Some(reason) = self.gone()? {
            return Ok(Outcome::Gone(reason));
        }
        let mut missing = Vec::new();
        let mut result = Ok(());
        for (plugin, call) in self.calls(services)? {
            let absent = plugin.missing_rules(&call);
            let done = absent.and_then(|absent| {
                let is_needed = is_overtaken || !absent.is_empty();
                missing.extend(absent);
                if !is_needed || dry_run {
                    return Ok(());
                }
                let restored = plugin.restore_rules(&call);
                // Even a failure may have changed something.
                Memo::forget();
                restored
            });
            result = result.and(done);
        }
        result?;
        Ok(match (missing.is_empty(), is_overtaken && !dry_run) {
            (false, _) => Outcome::Restored(missing),
            (true, true) => Outcome::Renewed,
            (true, false) => Outcome::Complete,
        })
    }

    /// Why the attachment does not live any more, if so.
    ///
    /// # Errors
    /// When the kernel does not tell, or what is there is somebody else's.
    fn gone(&self) -> Result<Option<String>> {
        let Parameters {
            attachment, netns, ..
        } = &self.entry.parameters;
        let ifname = &attachment.ifname;
        if netns.is_empty() {
            return Ok(Some("no namespace is known of it".into()));
        }
        if !netns::is_live(netns) {
            let collect = shell!["cnitool", "gc", self.entry.network];
            return Ok(Some(format!(
                "its namespace is gone ({collect} removes what is left)"
            )));
        }
        // As with the number of a process that has been given to another one.
        if is_own_namespace(netns) {
            return Ok(Some("its namespace is the host's own".into()));
        }
        let inside = Netlink::open_in(&Netns::open(netns)?)?;
        let Some(link) = link::by_name(&inside, ifname)? else {
            return Ok(Some(format!("there is no {ifname} in its namespace")));
        };
        let mut interfaces = self.record.result.interfaces.iter();
        let expected = interfaces
            .find(|interface| interface.name == *ifname && !interface.sandbox.is_empty())
            .and_then(|interface| Mac::parse(&interface.mac));
        ensure!(
            expected.is_none_or(|mac| mac.to_string() == link.mac),
            "{ifname} in its namespace has hardware address {}, not that of its result: \
             it may be another container's",
            link.mac
        );
        Ok(None)
    }

    /// What to ask of which plugins: of those in the chain that are ours.
    fn calls(&self, services: Services) -> Result<Vec<(&'static dyn Plugin, Call)>> {
        let network = &self.record.network;
        let parameters = &self.entry.parameters;
        ensure!(
            !network.plugins.is_empty(),
            "the cache does not have its plugins: they are in files beside {}, and not kept",
            network.name
        );
        let prev_result = self.record.result.to_value(network.version()?)?;
        let additions = Additions {
            prev_result: Some(&prev_result),
            capability_args: Some(&parameters.capability_args),
            valid_attachments: None,
        };
        let mut calls = Vec::new();
        for configuration in &network.plugins {
            let Some(plugin) = (services.plugin)(&configuration.plugin) else {
                continue;
            };
            let context = || format!("plugin {}", configuration.plugin);
            let stdin = request::encode(network, configuration, additions)?;
            let call = Call {
                invocation: Invocation {
                    command: Command::Check,
                    attachment: parameters.attachment.clone(),
                    netns: Some(parameters.netns.clone()),
                    args: parameters.args_text(),
                    path: Vec::new(),
                    netns_override: false,
                },
                // Unlike CHECK, DEL is of every version.
                config: Document::parse(stdin)?
                    .negotiate(Command::Del, plugin.versions())
                    .with_context(context)?,
                services: services.exact(),
                depth: 0,
            };
            calls.push((plugin, call));
        }
        Ok(calls)
    }
}

/// The ports of the host that an attachment claims, by protocol: what the runtime passed
/// for the capability `portMappings` (the specification's document CONVENTIONS).
fn host_ports(parameters: &Parameters) -> BTreeSet<(String, u64)> {
    let mappings = parameters.capability_args.get("portMappings");
    let mappings = mappings.and_then(Value::as_array).into_iter().flatten();
    mappings
        .filter_map(|mapping| {
            let mapping = mapping.as_object()?;
            let protocol = plugin_member(mapping, "protocol");
            let protocol = protocol.as_ref().and_then(Value::as_str);
            let protocol = protocol.filter(|word| !word.is_empty()).unwrap_or("tcp");
            let port = plugin_member(mapping, "hostPort")?.as_u64()?;
            Some((protocol.to_ascii_lowercase(), port))
        })
        .collect()
}
