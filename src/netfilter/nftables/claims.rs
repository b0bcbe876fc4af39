//! The ports that rules of iptables map (nft variant), in sets of our own beside the registry:
//! ADD need not list the rules of all containers to learn whether somebody has a port.
//!
//! As there, the rules alone decide. An element that is left over costs the next who wants
//! the port that listing; one that is missing costs a warning.

use std::collections::BTreeSet;

use anyhow::Result;

use super::identity::{attachment_comment, cut};
use super::registry::{TABLE, settle};
use super::ruleset::Family;
use super::set::{Elements, Key, Keys, Set};
use super::transaction::{Change, apply};
use crate::cni::invocation::Attachment;
use crate::log;
use crate::netfilter::socket::Socket;
use crate::netfilter::{Owner, Protocol};

/// One of each family.
const SETS: [Set; 2] = [
    Set {
        table: TABLE,
        name: "iptables_ports",
        comment: "ports in table ip nat, and the comment of the rules that map them",
        keys: Keys::Ports,
    },
    Set {
        table: TABLE,
        name: "ip6tables_ports",
        comment: "ports in table ip6 nat, and the comment of the rules that map them",
        keys: Keys::Ports,
    },
];

/// A port that rules map, and the network and container that their comment names.
pub type Taken = ((Protocol, u16), Option<(String, String)>);

/// Ports that are to be somebody's.
#[derive(Debug)]
pub struct Claims<'a> {
    /// The chain whose rules show who has a port.
    pub chain: &'a str,
    set: Set,
    elements: Elements,
}

impl<'a> Claims<'a> {
    /// The owner's.
    pub fn new(
        family: Family,
        chain: &'a str,
        owner: &Owner,
        ports: impl Iterator<Item = (Protocol, u16)>,
    ) -> Self {
        let [ipv4, ipv6] = SETS;
        let set = if family == Family::Ip { ipv4 } else { ipv6 };
        let comment = attachment_comment(owner);
        let elements = ports.map(|(protocol, port)| (Key::Port(protocol, port), comment.clone()));
        Self {
            chain,
            set,
            elements: elements.collect(),
        }
    }

    /// What makes the claims, along with the rules: refused where somebody has one of the
    /// ports, and where there is no set yet.
    pub(super) fn creation(&self) -> Vec<Change> {
        self.set.create(self.elements.clone())
    }

    /// Makes the claims after the rules have been made, whoever had the ports. A new set has
    /// those that are `taken` as well, by containers of networks.
    pub fn settle(&self, taken: &[Taken]) {
        let mut all = self.elements.clone();
        for ((protocol, port), owner) in taken {
            let comment = owner.as_ref().map_or_else(String::new, |(network, id)| {
                cut(&format!("net: {network}, id: {id}"))
            });
            // The foremost has the port.
            all.entry(Key::Port(*protocol, *port)).or_insert(comment);
        }
        let settled = Socket::open().and_then(|socket| {
            apply(&socket, || {
                let there = self.set.elements(&socket)?;
                let wanted = there.as_ref().map_or(&all, |_| &self.elements);
                let is_own = |key: &Key| self.elements.contains_key(key);
                Ok(settle(&self.set, there.as_ref(), wanted, is_own))
            })
        });
        if let Err(error) = settled {
            log::warn(&format!("remember whose ports these are: {error:#}"));
        }
    }
}

/// Gives up the owner's claims.
///
/// # Errors
/// When the kernel refuses.
pub fn release(owner: &Owner) -> Result<()> {
    let Attachment {
        container_id,
        ifname,
    } = &owner.attachment;
    remove(|claimant| {
        claimant.network == owner.network
            && claimant.is(container_id)
            && claimant.ifname.is_none_or(|name| name == ifname)
    })
}

/// Gives up the claims of attachments to `network` that are not in `valid`.
///
/// # Errors
/// When the kernel refuses.
pub fn collect(network: &str, valid: &[Attachment]) -> Result<()> {
    remove(is_stale(network, valid))
}

/// The containers whose claims [`collect`] would give up.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn stale(network: &str, valid: &[Attachment]) -> Result<BTreeSet<String>> {
    let mut containers = BTreeSet::new();
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(containers);
    };
    let is_stale = is_stale(network, valid);
    for set in SETS {
        let elements = set.elements(&socket)?.unwrap_or_default();
        let claimants = elements.values().filter_map(|text| Claimant::parse(text));
        let stale = claimants.filter(&is_stale);
        containers.extend(stale.map(|claimant| claimant.container_id.to_owned()));
    }
    Ok(containers)
}

fn is_stale(network: &str, valid: &[Attachment]) -> impl Fn(&Claimant<'_>) -> bool {
    move |claimant| {
        let is_its = |kept: &Attachment| {
            claimant.is(&kept.container_id)
                && claimant.ifname.is_none_or(|name| name == kept.ifname)
        };
        claimant.network == network && !valid.iter().any(is_its)
    }
}

fn remove(is_gone: impl Fn(&Claimant<'_>) -> bool) -> Result<()> {
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(());
    };
    let is_gone = |text: &str| Claimant::parse(text).as_ref().is_some_and(&is_gone);
    for set in SETS {
        apply(&socket, || {
            let there = set.elements(&socket)?.unwrap_or_default();
            let gone = there.into_iter().filter(|(_, text)| is_gone(text));
            let gone: Vec<Key> = gone.map(|(key, _)| key).collect();
            Ok(set.delete(&gone))
        })?;
    }
    Ok(())
}

/// Whose a claim is, as the comment of its element says.
struct Claimant<'a> {
    network: &'a str,
    /// Unknown where the rules were seen, and not made.
    ifname: Option<&'a str>,
    /// A long one has lost its end.
    container_id: &'a str,
}

impl<'a> Claimant<'a> {
    /// Reads what [`attachment_comment`] or [`Claims::settle`] has written.
    fn parse(comment: &'a str) -> Option<Self> {
        let (network, container_id) = comment.strip_prefix("net: ")?.split_once(", id: ")?;
        let (network, ifname) = match network.split_once(", if: ") {
            Some((network, ifname)) => (network, Some(ifname)),
            None => (network, None),
        };
        Some(Self {
            network,
            ifname,
            container_id,
        })
    }

    fn is(&self, container_id: &str) -> bool {
        !self.container_id.is_empty() && container_id.starts_with(self.container_id)
    }
}
