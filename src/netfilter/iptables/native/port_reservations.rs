//! The ports that rules of iptables map (nft variant), in sets of our own beside the registry:
//! ADD need not list the rules of all containers to learn whether somebody has a port.
//!
//! As there, the rules alone decide. An element that is left over costs the next who wants
//! the port that listing. One that is missing costs a warning: for ports that another
//! implementation has mapped since the set was made, and for those of a container's second
//! attachment to a network where both were there before the set.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::cni::invocation::Attachment;
use crate::log;
use crate::netfilter::iptables::addition::{Taken, WantedPorts};
use crate::netfilter::model::Owner;
use crate::netfilter::nf_tables::change::Change;
use crate::netfilter::nf_tables::identity::{attachment_comment, cut};
use crate::netfilter::nf_tables::ruleset::Family;
use crate::netfilter::nf_tables::set::{Elements, Key, Keys, Set};
use crate::netfilter::nf_tables::transaction::apply;
use crate::netfilter::nfnetlink::socket::Socket;
use crate::netfilter::registry::{TABLE, settle};

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

/// What the rules of a family show; `None` where they are not understood.
pub type Shown<'a> = &'a dyn Fn(Family) -> Result<Option<Vec<Taken>>>;

/// The comment of a port that several have mapped. Who wants it next, or deletes anything, looks
/// at the rules.
const SEVERAL: &str = "several";

/// Ports that are to be somebody's.
#[derive(Debug)]
pub struct Reservations {
    set: Set,
    elements: Elements,
    /// Whose they are, as rules say it.
    rules: String,
}

impl Reservations {
    /// Those of the ports `wanted`.
    pub fn new(family: Family, wanted: &WantedPorts<'_>) -> Self {
        let [ipv4, ipv6] = SETS;
        let set = if family == Family::Ip { ipv4 } else { ipv6 };
        let comment = attachment_comment(wanted.owner);
        let ports = wanted.ports.iter();
        let elements = ports.map(|(protocol, port)| (Key::Port(*protocol, *port), comment.clone()));
        Self {
            set,
            elements: elements.collect(),
            rules: rules_comment(wanted.owner),
        }
    }

    /// What makes the reservations, along with the rules: refused where somebody has one of the
    /// ports, and where there is no set yet.
    pub(super) fn creation(&self) -> Vec<Change> {
        Change::create_elements(&self.set, self.elements.clone())
    }

    /// Makes the reservations after the rules have been made, whoever had the ports. A new set has
    /// those that are `taken` as well.
    pub fn settle(&self, taken: &[Taken]) {
        let mut all = owners(taken);
        let mut own = self.elements.clone();
        for (key, claim) in &mut own {
            // If several attachments map the port, it stays reserved until the last is deleted.
            if all.get(key).is_some_and(|owner| *owner != self.rules) {
                SEVERAL.clone_into(claim);
            }
        }
        all.extend(own.clone());
        let settled = Socket::open().and_then(|socket| {
            apply(&socket, || {
                let there = self.set.elements(&socket)?;
                let wanted = there.as_ref().map_or(&all, |_| &own);
                let is_own = |key: &Key| self.elements.contains_key(key);
                Ok(settle(&self.set, there.as_ref(), wanted, is_own))
            })
        });
        if let Err(error) = settled {
            log::warn(&format!("remember whose ports these are: {error:#}"));
        }
    }
}

/// Gives up the owner's reservations.
///
/// # Errors
/// When the kernel refuses.
pub fn release(owner: &Owner, shown: Shown<'_>) -> Result<()> {
    let own = [attachment_comment(owner), rules_comment(owner)];
    remove(|claim| own.iter().any(|own| own == claim), shown)
}

/// Gives up the reservations of attachments to `network` that are not in `valid`.
///
/// # Errors
/// When the kernel refuses.
pub fn collect(network: &str, valid: &[Attachment], shown: Shown<'_>) -> Result<()> {
    remove(is_stale(network, valid), shown)
}

/// The containers whose reservations [`collect`] would give up, in words.
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
        let stale = elements.into_values().filter(|claim| is_stale(claim));
        containers.extend(stale.map(|claim| match claim.rsplit_once(", id: ") {
            Some((_, id)) => format!("container {id}"),
            // A network with a long name leaves no room for it.
            None => claim,
        }));
    }
    Ok(containers)
}

/// Tells the reservations of attachments to `network` that are none of `valid`.
fn is_stale(network: &str, valid: &[Attachment]) -> impl Fn(&str) -> bool {
    let owners = valid.iter().map(|attachment| Owner {
        network: network.to_owned(),
        attachment: attachment.clone(),
    });
    let kept: BTreeSet<String> = owners
        .flat_map(|owner| [attachment_comment(&owner), rules_comment(&owner)])
        .collect();
    let of_network = cut(&format!("net: {network}, "));
    move |claim| claim.starts_with(&of_network) && !kept.contains(claim)
}

/// Removes the reservations that are `gone`; and of those that several have what `shown` says that
/// nobody has any more.
fn remove(is_gone: impl Fn(&str) -> bool, shown: Shown<'_>) -> Result<()> {
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(());
    };
    for (family, set) in [Family::Ip, Family::Ip6].into_iter().zip(SETS) {
        apply(&socket, || {
            let there = set.elements(&socket)?.unwrap_or_default();
            let mut left = there.clone();
            left.retain(|_, claim| !is_gone(claim));
            if left.values().any(|claim| claim == SEVERAL)
                && let Some(taken) = shown(family)?
            {
                let mut owners = owners(&taken);
                let owner_now = |(key, claim): (Key, String)| match claim.as_str() {
                    SEVERAL => owners.remove_entry(&key),
                    _ => Some((key, claim)),
                };
                left = left.into_iter().filter_map(owner_now).collect();
            }
            Ok(settle(&set, Some(&there), &left, |_| true))
        })?;
    }
    Ok(())
}

/// The reservations that the rules of those who have `taken` ports come to.
fn owners(taken: &[Taken]) -> Elements {
    let mut owners = Elements::new();
    for ((protocol, port), owner) in taken {
        let owner = owner
            .as_ref()
            .map(|(network, id)| seen_comment(network, id));
        let owner = owner.as_deref().unwrap_or(SEVERAL);
        let claim = owners
            .entry(Key::Port(*protocol, *port))
            .or_insert_with(|| owner.to_owned());
        if claim != owner {
            SEVERAL.clone_into(claim);
        }
    }
    owners
}

/// The comment of a reservation that was seen in rules, whose comment does not name the interface.
fn seen_comment(network: &str, container_id: &str) -> String {
    cut(&format!("net: {network}, id: {container_id}"))
}

fn rules_comment(owner: &Owner) -> String {
    seen_comment(&owner.network, &owner.attachment.container_id)
}
