//! A container's own chain that the tools of iptables (nft variant) have made, removed
//! without them: a process of theirs costs 3 ms, and another 10 to 20 ms as it ends, for it
//! waits until no processor can be in the rules that it has deleted.
//!
//! Only the usual case is served. What else there may be, the tools understand.

use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;

use crate::netfilter::nf_tables::among::End;
use crate::netfilter::nf_tables::change::Change;
use crate::netfilter::nf_tables::decode::xt_destination;
use crate::netfilter::nf_tables::found::{Found, rules};
use crate::netfilter::nf_tables::rule::Statement;
use crate::netfilter::nf_tables::ruleset::{Chain, Family, Table};
use crate::netfilter::nf_tables::transaction::try_apply;
use crate::netfilter::nfnetlink::socket::Socket;

/// The chain, in the table `nat` of its family, and the way into it.
#[derive(Debug)]
pub struct PrivateChain<'a> {
    /// That of its table.
    pub family: Family,
    /// Its name.
    pub name: &'a str,
    /// The chain that has the rules which lead to it.
    pub entrance: &'a str,
    /// That of these rules.
    pub comment: &'a str,
}

impl PrivateChain<'_> {
    /// Removes the chain and what leads to it in one transaction, where `is_own` says of all
    /// addresses in there that they are the attachment's. Anything else leaves it as it is.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn remove(&self, is_own: impl Fn(IpNet) -> bool) -> Result<()> {
        let Some(socket) = Socket::open_if_any()? else {
            return Ok(());
        };
        let table = Table::named(self.family, "nat");
        let inside = rules(&socket, &table, Some(self.name))?;
        if inside.is_empty() {
            return Ok(());
        }
        let entrance = rules(&socket, &table, Some(self.entrance))?;
        let jumps: Vec<&Found> = entrance.iter().filter(|rule| self.is_entry(rule)).collect();
        let destinations: Vec<IpAddr> = inside.iter().filter_map(destination).collect();
        let is_plain = |jump: &&Found| {
            let sources = sources(jump);
            sources.iter().all(|net| is_own(*net))
                && !(sources.is_empty() && destinations.is_empty())
        };
        let is_usual = !jumps.is_empty()
            && jumps.iter().all(is_plain)
            && destinations.iter().all(|address| is_own((*address).into()));
        if !is_usual {
            return Ok(());
        }
        let chain = Chain::named(table, self.name.to_owned());
        let jumps = jumps.into_iter().map(|jump| jump.handle.clone());
        let mut changes: Vec<Change> = jumps
            .map(|handle| Change::DeleteRule(table, handle))
            .collect();
        // Refused where something else still leads to it, and then nothing is done.
        changes.push(Change::DeleteChain(chain));
        try_apply(&socket, &changes).map(drop)
    }

    fn is_entry(&self, rule: &Found) -> bool {
        rule.any_comment().as_deref() == Some(self.comment)
            && rule
                .known_statements()
                .contains(&Statement::Jump(self.name.to_owned().into()))
    }
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
