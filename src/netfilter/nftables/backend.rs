//! The backend: what it does for an attachment.

#[cfg(test)]
mod kernel_tests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;

use crate::cni::invocation::Attachment;
use crate::log;
use crate::net::link;
use crate::net::mac::Mac;
use crate::net::netlink::Netlink;
use crate::netfilter::backend::Backend;
use crate::netfilter::known::Known;
use crate::netfilter::model::{Firewall, Masquerade, Owner, PortMaps};
use crate::netfilter::nf_tables::change::Change;
use crate::netfilter::nf_tables::found::{Found, listed, rules};
use crate::netfilter::nf_tables::identity::Tag;
use crate::netfilter::nf_tables::query::{generation, look_up_chain};
use crate::netfilter::nf_tables::rule::Statement;
use crate::netfilter::nf_tables::ruleset::{self, Family, Table};
use crate::netfilter::nf_tables::set::Set;
use crate::netfilter::nf_tables::transaction::{apply, try_apply};
use crate::netfilter::nfnetlink::socket::Socket;
use crate::netfilter::nftables::shared::{command, in_chain, is_in_order, look};
use crate::netfilter::nftables::{
    condition, firewall, localnet, masquerade, port_maps, spoof_check,
};
use crate::netfilter::{conntrack, registry};

/// The backend. It has no state of its own: everything is in the kernel, in the network
/// namespace of the calling thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nftables;

/// Whose the rules are that `owners` finds, each once. Where nothing can be asked there are
/// none.
fn stale(owners: impl Fn(&Socket) -> Result<Vec<String>>) -> Result<Vec<String>> {
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(Vec::new());
    };
    Ok(BTreeSet::from_iter(owners(&socket)?).into_iter().collect())
}

/// Removes what `plan` finds. Where nothing can be asked there is nothing to remove.
fn clean(plan: impl Fn(&Socket) -> Result<Vec<Change>>) -> Result<()> {
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(());
    };
    apply(&socket, || plan(&socket))
}

impl Backend for Nftables {
    fn ensure_masquerade(&self, owner: &Owner, wanted: &Masquerade) -> Result<()> {
        let socket = Socket::open()?;
        let shared = masquerade::shared();
        if registry::MASQUERADED.is_there(&socket)?
            && is_in_order(&socket, masquerade::TABLE, &shared)?
            && try_apply(&socket, &masquerade::first(owner, wanted))?
        {
            return Ok(());
        }
        apply(&socket, || {
            let there = look(&socket, masquerade::TABLE, &shared, &[masquerade::CHECKS])?;
            let registry = registry::MASQUERADED.elements(&socket)?;
            Ok(masquerade::ensure(owner, wanted, &there, registry.as_ref()))
        })
    }

    fn remove_masquerade(&self, owner: &Owner, _known: &Known) -> Result<()> {
        let own = Tag::of(owner);
        remove_masquerade(|tag| tag == own)
    }

    fn missing_masquerade(&self, owner: &Owner, wanted: &Masquerade) -> Result<Vec<String>> {
        let found = listed(&Socket::open()?, &masquerade::TABLE, None)?;
        Ok(masquerade::missing(owner, wanted, &found))
    }

    fn stale_masquerade(&self, network: &str, valid: &[Attachment]) -> Result<Vec<String>> {
        let is_stale = Tag::stale(network, valid);
        stale(|socket| {
            let registry = registry::MASQUERADED.elements(socket)?;
            let found = rules(socket, &masquerade::TABLE, Some(masquerade::CHECKS))?;
            Ok(masquerade::owners(&found, registry.as_ref(), &is_stale))
        })
    }

    fn collect_masquerade(&self, network: &str, valid: &[Attachment]) -> Result<()> {
        remove_masquerade(Tag::stale(network, valid))
    }

    fn ensure_port_maps(&self, owner: &Owner, wanted: &PortMaps) -> Result<()> {
        let plans = plans(owner, wanted)?;
        let socket = Socket::open()?;
        if let Some(changes) = port_maps::first(owner, &plans, &socket)?
            && try_apply(&socket, &changes)?
        {
            return Ok(());
        }
        let taken_over = RefCell::new(BTreeSet::new());
        let replaced: Vec<_> = plans.iter().map(|plan| plan.replaces(owner)).collect();
        let own = Tag::of(owner);
        apply(&socket, || {
            let registry = port_maps::Registry::read(&socket)?;
            let mut changes = Vec::new();
            let mut found = Vec::new();
            taken_over.borrow_mut().clear();
            for plan in &plans {
                let there = plan.look(&socket)?;
                changes.extend(plan.ensure(owner, &there));
                if wanted.warn_of_takeovers {
                    let sentences = plan.taken_over(owner, &there.rules);
                    taken_over.borrow_mut().extend(sentences);
                }
                found.extend(there.rules);
            }
            let effect = port_maps::Effect {
                found: &found,
                gone: &|rule| replaced.iter().any(|is_replaced| is_replaced(rule)),
                touched: &|tag| tag == own,
                owner: Some(owner),
                plans: &plans,
            };
            changes.extend(effect.register(&registry));
            Ok(changes)
        })?;
        taken_over
            .into_inner()
            .iter()
            .for_each(|sentence| log::warn(sentence));
        Ok(())
    }

    fn remove_port_maps(&self, owner: &Owner, known: &Known) -> Result<()> {
        let own = Tag::of(owner);
        remove_port_maps(Some(owner), port_maps::goes(owner, known), |tag| tag == own)
    }

    fn missing_port_maps(&self, owner: &Owner, wanted: &PortMaps) -> Result<Vec<String>> {
        let socket = Socket::open()?;
        let mut missing = Vec::new();
        for plan in plans(owner, wanted)? {
            let found = listed(&socket, &plan.table, None)?;
            missing.extend(plan.missing(owner, &socket, &found)?);
        }
        Ok(missing)
    }

    fn stale_port_maps(&self, network: &str, valid: &[Attachment]) -> Result<Vec<String>> {
        let is_stale = Tag::stale(network, valid);
        stale(|socket| {
            let registry = port_maps::Registry::read(socket)?;
            let mut found = Vec::new();
            for table in port_maps::TABLES {
                found.extend(rules(socket, &table, None)?);
            }
            let mut owners = port_maps::owners(&found, |tag| is_stale(*tag));
            owners.extend(registry.left_over(&found, |tag| is_stale(*tag)));
            Ok(owners)
        })
    }

    fn collect_port_maps(&self, network: &str, valid: &[Attachment]) -> Result<()> {
        let is_stale = Tag::stale(network, valid);
        remove_port_maps(None, |rule| rule.tag.is_some_and(&is_stale), &is_stale)
    }

    fn yield_ports(&self, owner: &Owner, wanted: &PortMaps) -> Result<Vec<String>> {
        let Some(socket) = Socket::open_if_any()? else {
            return Ok(Vec::new());
        };
        let mut plans = Vec::new();
        let mut sentences = BTreeSet::new();
        let mut goes = false;
        for container in &wanted.container {
            let found = port_maps::mappings(&socket, ruleset::family_of(container.addr()))?;
            if found.is_empty() {
                continue;
            }
            // Conditions are in the words of the other backend.
            let plan = port_maps::Plan::new(owner, wanted, *container, &[]);
            goes |= found.iter().any(|rule| plan.displaces(rule));
            sentences.extend(plan.disputed(owner, &found));
            plans.push(plan);
        }
        if goes {
            let displaced = |rule: &Found| plans.iter().any(|plan| plan.displaces(rule));
            remove_port_maps(None, displaced, |_| false)?;
        }
        Ok(sentences.into_iter().collect())
    }

    fn mapped_ipv4(&self) -> Result<Vec<IpAddr>> {
        let Some(socket) = Socket::open_if_any()? else {
            return Ok(Vec::new());
        };
        let [table, _] = port_maps::TABLES;
        let found = rules(&socket, &table, None)?;
        Ok(found.iter().filter_map(port_maps::mapped_to).collect())
    }

    fn ensure_firewall(&self, owner: &Owner, wanted: &Firewall) -> Result<()> {
        let socket = Socket::open()?;
        for chain in firewall::obstacles(&socket, wanted)? {
            log::warn(&format!(
                "chain {chain} drops what it does not know, and cannot be changed with nftables: \
                 containers pass iptables' with the backend \"iptables\", firewalld's with \"firewalld\""
            ));
        }
        let first = firewall::ensure(&socket, owner, wanted, firewall::assume_new)?;
        if first.is_empty() || try_apply(&socket, &first)? {
            return Ok(());
        }
        apply(&socket, || {
            firewall::ensure(&socket, owner, wanted, Set::elements)
        })
    }

    fn remove_firewall(&self, owner: &Owner, _known: &[IpAddr]) -> Result<()> {
        let own = Tag::of(owner);
        remove_firewall(|tag| tag == own)
    }

    fn missing_firewall(&self, owner: &Owner, wanted: &Firewall) -> Result<Vec<String>> {
        firewall::missing(&Socket::open()?, owner, wanted)
    }

    fn stale_firewall(&self, network: &str, valid: &[Attachment]) -> Result<Vec<String>> {
        let netlink = Netlink::open()?;
        let is_stale = Tag::stale(network, valid);
        stale(|socket| firewall::stale(socket, &is_stale, |bridge| is_gone(&netlink, bridge)))
    }

    fn collect_firewall(&self, network: &str, valid: &[Attachment]) -> Result<()> {
        remove_firewall(Tag::stale(network, valid))
    }
}

/// Whether `conditions` can be kept in tables of `family`; if not, [`condition::UNDERSTOOD`] says what
/// can.
pub fn understands(family: Family, conditions: &[String]) -> bool {
    condition::parse(family, "conditions", conditions).is_ok()
}

/// What `wanted` means for both families.
fn plans(owner: &Owner, wanted: &PortMaps) -> Result<Vec<port_maps::Plan>> {
    port_maps::TABLES
        .into_iter()
        .map(|table| {
            let (key, conditions) = match table.family {
                Family::Ip6 => ("conditionsV6", &wanted.conditions_v6),
                _ => ("conditionsV4", &wanted.conditions_v4),
            };
            let conditions: Vec<Statement> = condition::parse(table.family, key, conditions)?;
            let container = wanted
                .container
                .iter()
                .find(|net| ruleset::family_of(net.addr()) == table.family);
            Ok(match container {
                Some(container) => port_maps::Plan::new(owner, wanted, *container, &conditions),
                None => port_maps::Plan::none(table),
            })
        })
        .collect()
}

/// Whether there is no link of this name; in doubt there is.
fn is_gone(netlink: &Netlink, link: &str) -> bool {
    matches!(link::by_name(netlink, link), Ok(None))
}

/// Removes the addresses of attachments that are `unwanted` from the sets of those let
/// through, the rules of bridges that are gone, and what leads to sets that nobody is in.
fn remove_firewall(unwanted: impl Fn(Tag) -> bool) -> Result<()> {
    let netlink = Netlink::open()?;
    clean(|socket| firewall::remove(socket, &unwanted, |bridge| is_gone(&netlink, bridge)))?;
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(());
    };
    for changes in firewall::close(&socket)? {
        try_apply(&socket, &changes)?;
    }
    Ok(())
}

/// Removes the masquerade rules of attachments that are `unwanted`.
fn remove_masquerade(unwanted: impl Fn(Tag) -> bool) -> Result<()> {
    clean(|socket| {
        let registry = registry::MASQUERADED.elements(socket)?;
        let found = rules(socket, &masquerade::TABLE, Some(masquerade::CHECKS))?;
        Ok(masquerade::remove(&found, registry.as_ref(), &unwanted))
    })
}

/// Removes the mappings `gone`, which are those of the attachments `touched`, or of one
/// `owner`, and forgets the connections through them that nobody closes.
fn remove_port_maps(
    owner: Option<&Owner>,
    gone: impl Fn(&Found) -> bool,
    touched: impl Fn(Tag) -> bool,
) -> Result<()> {
    let removed = RefCell::new(Vec::new());
    // Refused whenever anybody has changed anything meanwhile: then the rules go one by one.
    let may_flush = Cell::new(true);
    clean(|socket| {
        removed.borrow_mut().clear();
        let is_first = may_flush.replace(false);
        let generation = generation(socket).ok().flatten().filter(|_| is_first);
        let registry = port_maps::Registry::read(socket)?;
        let mut changes = Vec::new();
        let mut all = Vec::new();
        for table in port_maps::TABLES {
            let found = rules(socket, &table, None)?;
            changes.extend(port_maps::remove(table, &found, generation, &gone));
            all.extend(found);
        }
        let lost = all.iter().filter(|rule| gone(rule));
        let destinations = lost.filter_map(|rule| port_maps::destination(&rule.statements()?));
        removed.borrow_mut().extend(destinations);
        let effect = port_maps::Effect {
            found: &all,
            gone: &gone,
            touched: &touched,
            owner,
            plans: &[],
        };
        changes.extend(effect.register(&registry));
        // In the same transaction: what is removed in two is waited for twice, 10 to 20 ms
        // each.
        if owner.is_some() {
            changes.extend(localnet::without(socket, &touched)?);
        }
        Ok(changes)
    })?;
    conntrack::forget_removed(&removed.into_inner());
    Ok(())
}

impl Nftables {
    /// Whether there can be a spoof check for the owner: a pure check, for before anything
    /// is made.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::failure::Kind::Invalid), naming `macspoofchk`.
    pub fn fits_spoof_check(owner: &Owner) -> Result<()> {
        spoof_check::fits(owner)
    }

    /// Lets only frames from `mac` through the bridge port `host_end`.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is changed then.
    pub fn ensure_spoof_check(owner: &Owner, host_end: &str, mac: Mac) -> Result<()> {
        let socket = Socket::open()?;
        apply(&socket, || {
            let own = spoof_check::chains(owner);
            let [interface, addresses] = own.clone();
            let names = [spoof_check::PREROUTING.to_owned(), interface, addresses];
            let present = present_chains(&socket, &names)?;
            // Without chains of the owner there is no jump to them either: nothing to list.
            let found = if own.iter().any(|name| present.contains(name)) {
                rules(&socket, &spoof_check::TABLE, Some(spoof_check::PREROUTING))?
            } else {
                Vec::new()
            };
            Ok(spoof_check::ensure(owner, host_end, mac, &present, &found))
        })
    }

    /// Removes it. None there is no error.
    ///
    /// # Errors
    /// When it is there and stays.
    pub fn remove_spoof_check(owner: &Owner) -> Result<()> {
        clean(|socket| {
            let present = present_chains(socket, &spoof_check::chains(owner))?;
            if present.is_empty() {
                return Ok(Vec::new());
            }
            let found = rules(socket, &spoof_check::TABLE, Some(spoof_check::PREROUTING))?;
            Ok(spoof_check::remove(&present, &found))
        })
    }

    /// Its rules that are missing, each as the command that would add it.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn missing_spoof_check(owner: &Owner, host_end: &str, mac: Mac) -> Result<Vec<String>> {
        let socket = Socket::open()?;
        let found = listed(&socket, &spoof_check::TABLE, None)?;
        let mut missing = Vec::new();
        for (chain, rule) in spoof_check::rules(owner, host_end, mac) {
            let is_there = |found: &Found| found.statements().as_ref() == Some(&rule.statements);
            if !in_chain(&found, &chain).any(is_there) {
                missing.push(command(&spoof_check::chain(&chain), &rule));
            }
        }
        Ok(missing)
    }

    /// Fails unless nothing is missing, for tests.
    #[cfg(test)]
    pub fn check_spoof_check(owner: &Owner, host_end: &str, mac: Mac) -> Result<()> {
        crate::netfilter::backend::none_missing(&Self::missing_spoof_check(owner, host_end, mac)?)
    }

    /// Whose spoof checks [`Self::collect_spoof_checks`] would remove, in words.
    ///
    /// # Errors
    /// When the rules cannot be read.
    pub fn stale_spoof_checks(network: &str, valid: &[Attachment]) -> Result<Vec<String>> {
        stale(|socket| {
            let found = rules(socket, &spoof_check::TABLE, Some(spoof_check::PREROUTING))?;
            Ok(spoof_check::owners(network, valid, &found))
        })
    }

    /// Removes those of `network` whose attachment is not in `valid`. The reference's say
    /// nothing of their network and stay.
    ///
    /// # Errors
    /// When one is there and stays.
    pub fn collect_spoof_checks(network: &str, valid: &[Attachment]) -> Result<()> {
        clean(|socket| {
            let found = rules(socket, &spoof_check::TABLE, Some(spoof_check::PREROUTING))?;
            let mut changes = Vec::new();
            for stale in spoof_check::stale(network, valid, &found) {
                let present = present_chains(socket, &stale)?;
                changes.extend(spoof_check::remove(&present, &found));
            }
            Ok(changes)
        })
    }
}

fn present_chains(socket: &Socket, names: &[String]) -> Result<Vec<String>> {
    let Table { family, name, .. } = spoof_check::TABLE;
    let mut present = Vec::new();
    for chain in names {
        if look_up_chain(socket, family, name, chain)? {
            present.push(chain.clone());
        }
    }
    Ok(present)
}
