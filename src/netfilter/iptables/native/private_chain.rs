//! A container's own chain that the tools of iptables (nft variant) have made, removed
//! without them: a process of theirs costs 3 ms, and another 10 to 20 ms as it ends, for it
//! waits until no processor can be in the rules that it has deleted.
//!
//! Only the usual case is served. What else there may be, the tools understand.

use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;

use crate::netfilter::iptables::addition::PrivateChain;
use crate::netfilter::nf_tables::among::End;
use crate::netfilter::nf_tables::change::Change;
use crate::netfilter::nf_tables::decode::xt_destination;
use crate::netfilter::nf_tables::found::{Found, rules};
use crate::netfilter::nf_tables::rule::Statement;
use crate::netfilter::nf_tables::ruleset::{Chain, Table};
use crate::netfilter::nf_tables::transaction::try_apply;
use crate::netfilter::nfnetlink::socket::Socket;

/// Removes the chain and what leads to it in one transaction, where `is_own` says of all
/// addresses in there that they are the attachment's. Anything else leaves it as it is.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn remove(private: &PrivateChain<'_>, is_own: impl Fn(IpNet) -> bool) -> Result<()> {
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(());
    };
    let table = Table::named(private.family, "nat");
    let inside = rules(&socket, &table, Some(private.name))?;
    if inside.is_empty() {
        return Ok(());
    }
    let entrance = rules(&socket, &table, Some(private.entrance))?;
    let is_entry = |rule: &&Found| {
        rule.any_comment().as_deref() == Some(private.comment)
            && rule
                .known_statements()
                .contains(&Statement::Jump(private.name.to_owned().into()))
    };
    let jumps: Vec<&Found> = entrance.iter().filter(is_entry).collect();
    let destinations: Vec<IpAddr> = inside.iter().filter_map(destination).collect();
    let is_plain = |jump: &&Found| {
        let sources = sources(jump);
        sources.iter().all(|net| is_own(*net)) && !(sources.is_empty() && destinations.is_empty())
    };
    let is_usual = !jumps.is_empty()
        && jumps.iter().all(is_plain)
        && destinations.iter().all(|address| is_own((*address).into()));
    if !is_usual {
        return Ok(());
    }
    let chain = Chain::named(table, private.name.to_owned());
    let jumps = jumps.into_iter().map(|jump| jump.handle.clone());
    let mut changes: Vec<Change> = jumps
        .map(|handle| Change::DeleteRule(table, handle))
        .collect();
    // Refused where something else still leads to it, and then nothing is done.
    changes.push(Change::DeleteChain(chain));
    try_apply(&socket, &changes).map(drop)
}

/// The sources that the rule asks for.
fn sources(rule: &Found) -> Vec<IpNet> {
    let statements = rule.known_statements().into_iter();
    let sources = statements.filter_map(|statement| match statement {
        Statement::Address {
            end: End::Source,
            is: true,
            net,
        } => Some(net),
        _ => None,
    });
    sources.collect()
}

/// Where the rule leads connections, if it does.
fn destination(rule: &Found) -> Option<IpAddr> {
    let native = rule.known_statements().into_iter();
    let mut native = native.filter_map(|statement| match statement {
        Statement::Dnat { to, .. } => Some(to),
        _ => None,
    });
    native
        .next()
        .or_else(|| xt_destination(rule.family, rule.expressions()))
}
