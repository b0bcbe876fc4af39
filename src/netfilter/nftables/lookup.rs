//! Questions to the kernel that need no look at rules.

use anyhow::{Context, Result};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, GenMessage, NfTablesMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::ruleset::{Family, Table};
use super::transaction::{is_absent, rules, text, with_family};
use crate::netfilter::socket::{Socket, attribute};

/// Whether this kernel has `nf_tables` and lets us use it.
pub fn is_usable() -> bool {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let generation = NfTablesMessage::GetGen(GenMessage { attributes: vec![] });
    let ask = || Socket::open()?.request(NetfilterMessage::new(header, generation));
    ask().is_ok_and(|answers| !answers.is_empty())
}

/// Whether table `table` has the chain. A kernel without `nf_tables` has none. iptables-nft
/// keeps its chains in such tables too: `ip nat`, `ip6 filter`.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn has_chain(family: Family, table: &str, chain: &str) -> Result<bool> {
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(false);
    };
    look_up_chain(&socket, family, table, chain)
}

/// Whether the chain has rules. One that is not there, or a kernel without `nf_tables`, has
/// none.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn has_rules(family: Family, table: &'static str, chain: &str) -> Result<bool> {
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(false);
    };
    let table = Table {
        family,
        name: table,
        comment: None,
    };
    Ok(look_up_chain(&socket, family, table.name, chain)?
        && !rules(&socket, &table, Some(chain))?.is_empty())
}

/// The names of the chains of `table`.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn chains(family: Family, table: &str) -> Result<Vec<String>> {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(Vec::new());
    };
    let message = NfTablesMessage::GetChain(ChainMessage {
        attributes: vec![ChainAttribute::Table(table.to_owned())],
    });
    let answers = match socket.dump(&with_family(family, message)) {
        Err(error) if is_absent(&error) => Vec::new(),
        answers => answers.with_context(|| format!("list the chains of table {family} {table}"))?,
    };
    // Not every kernel obeys the name of the table.
    let names = answers
        .iter()
        .filter(|answer| attribute(answer, TABLE).is_some_and(|name| text(name) == table))
        .filter_map(|answer| attribute(answer, NAME).map(text));
    Ok(names.collect())
}

/// As [`has_chain`], over an open socket.
pub fn look_up_chain(socket: &Socket, family: Family, table: &str, chain: &str) -> Result<bool> {
    Ok(chain_use(socket, family, table, chain)?.is_some())
}

/// How many rules the chain has and how many lead to it, together; `None` when there is
/// no such chain.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn chain_use(socket: &Socket, family: Family, table: &str, chain: &str) -> Result<Option<u32>> {
    const USE: u16 = 6;
    let message = NfTablesMessage::GetChain(ChainMessage {
        attributes: vec![
            ChainAttribute::Table(table.to_owned()),
            ChainAttribute::Name(chain.to_owned()),
        ],
    });
    let answers = match socket.request(with_family(family, message)) {
        Err(error) if is_absent(&error) => Vec::new(),
        answers => answers.with_context(|| format!("look up chain {family} {table} {chain}"))?,
    };
    Ok(answers.first().map(|answer| {
        let number = attribute(answer, USE).and_then(|value| value.try_into().ok());
        number.map_or(0, u32::from_be_bytes)
    }))
}
