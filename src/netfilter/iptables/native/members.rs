//! Rules of one container in a chain that all share, added and removed as the tools of iptables
//! (nft variant) would, but without them: [`crate::netfilter::iptables::native::addition`] says why.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;
use netlink_packet_core::NLM_F_APPEND;
use netlink_packet_netfilter::NetfilterSubsystem;

use crate::netfilter::iptables::addition::Members;
use crate::netfilter::iptables::native::addition::add_rule;
use crate::netfilter::iptables::native::xtables::{Style, expressions, is_same};
use crate::netfilter::iptables::rule::Rule;
use crate::netfilter::nf_tables::change::Change;
use crate::netfilter::nf_tables::found::{Found, rules};
use crate::netfilter::nf_tables::rule::Statement;
use crate::netfilter::nf_tables::ruleset::Table;
use crate::netfilter::nf_tables::transaction::try_apply;
use crate::netfilter::nfnetlink::socket::{Batch, Socket};

/// Adds the rules of `members` behind those that their chains have: in one transaction, where
/// each rule that is `needed` is there and none of these. Returns whether it was so; nothing was
/// done if not.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn add<'a>(members: &Members<'_>, needed: impl Iterator<Item = &'a Rule>) -> Result<bool> {
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(false);
    };
    let Members { family, table, own } = members;
    let table = Table::named(*family, table);
    let mut chains = BTreeMap::new();
    let mut is_there = |rule: &Rule| {
        if !chains.contains_key(&rule.chain) {
            let found = rules(&socket, &table, Some(&rule.chain))?;
            chains.insert(rule.chain.clone(), found);
        }
        let found = chains.get(&rule.chain).into_iter().flatten();
        let made = expressions(*family, &rule.args, Style::New);
        anyhow::Ok(made.is_some_and(|made| has(found, &made)))
    };
    for rule in needed {
        if !is_there(rule)? {
            return Ok(false);
        }
    }
    let mut batch = Batch::new(NetfilterSubsystem::NfTables);
    for rule in own {
        let mut add = || add_rule(&mut batch, &table, rule, NLM_F_APPEND, Style::New);
        if is_there(rule)? || add().is_none() {
            return Ok(false);
        }
    }
    Ok(own.is_empty() || socket.commit(batch)?.is_ok())
}

/// Removes the rules of `members` from `chain`, each as often as it is there. Returns whether
/// others about `addresses` are left in it.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn remove(members: &Members<'_>, chain: &str, addresses: &[IpAddr]) -> Result<bool> {
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(false);
    };
    let Members { family, table, own } = members;
    let table = Table::named(*family, table);
    let made: Vec<Vec<u8>> = own
        .iter()
        .filter_map(|rule| expressions(*family, &rule.args, Style::New))
        .collect();
    let is_own = |found: &Found| made.iter().any(|made| has([found].into_iter(), made));
    let is_about_them = |statement: &Statement| {
        matches!(statement, Statement::Address { is: true, net, .. }
            if addresses.iter().any(|address| IpNet::from(*address) == *net))
    };
    let about: Vec<Found> = rules(&socket, &table, Some(chain))?
        .into_iter()
        .filter(|rule| rule.known_statements().iter().any(is_about_them))
        .collect();
    let (own, others): (Vec<_>, Vec<_>) = about.into_iter().partition(is_own);
    let own: Vec<Change> = own
        .into_iter()
        .map(|rule| Change::DeleteRule(table, rule.handle))
        .collect();
    Ok(!others.is_empty() || !own.is_empty() && !try_apply(&socket, &own)?)
}

/// Whether one of those `found` is the rule that was `made`.
fn has<'a>(mut found: impl Iterator<Item = &'a Found>, made: &[u8]) -> bool {
    found.any(|rule| is_same(rule.expressions(), made))
}
