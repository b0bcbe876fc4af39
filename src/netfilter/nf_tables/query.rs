//! Questions to the kernel that need no look at rules.

use anyhow::{Context, Result};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, GenMessage, NfTablesMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use crate::netfilter::nf_tables::found::rules;
use crate::netfilter::nf_tables::message::{is_absent, text, with_family};
use crate::netfilter::nf_tables::ruleset::{Family, Table};
use crate::netfilter::nfnetlink::socket::{Socket, attribute, number};

/// Where a chain's attributes have its names.
const TABLE: u16 = 1;
const NAME: u16 = 3;

/// Whether this kernel has `nf_tables` and lets us use it.
pub fn is_usable() -> bool {
    Socket::open().is_ok_and(|socket| generation(&socket).is_ok_and(|number| number.is_some()))
}

/// The number of the ruleset, which changes with every change of it.
///
/// # Errors
/// When the kernel refuses to tell: it has no `nf_tables`, or not for us.
pub fn generation(socket: &Socket) -> Result<Option<u32>> {
    /// `NFTA_GEN_ID`
    const ID: u16 = 1;
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let question = NfTablesMessage::GetGen(GenMessage { attributes: vec![] });
    let answers = socket.request(NetfilterMessage::new(header, question))?;
    let id = answers.first().and_then(|answer| attribute(answer, ID));
    Ok(id.and_then(number))
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
    let table = Table::named(family, table);
    Ok(look_up_chain(&socket, family, table.name, chain)?
        && !rules(&socket, &table, Some(chain))?.is_empty())
}

/// The names of the chains of `table`.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn chains(family: Family, table: &str) -> Result<Vec<String>> {
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

/// A chain that packets enter at a hook.
#[derive(Debug)]
pub struct BaseChain {
    /// Where it is.
    pub place: Place,
    /// The number of the hook: `enum nf_inet_hooks`, the same in every family here.
    pub hook: u32,
    /// Whether it sees what this host passes on, and decides on it.
    pub forwards: bool,
    /// Whether it drops what no rule of it accepts.
    pub drops: bool,
}

/// The names that lead to a chain.
#[derive(Debug)]
pub struct Place {
    pub family: Family,
    pub table: String,
    pub chain: String,
}

/// The base chains of all tables of `family`.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn base_chains(socket: &Socket, family: Family) -> Result<Vec<BaseChain>> {
    const HOOK: u16 = 4;
    const HOOK_NUMBER: u16 = 1;
    const POLICY: u16 = 5;
    const KIND: u16 = 7;
    /// `NF_INET_FORWARD`.
    const FORWARD: u32 = 2;
    /// `NF_DROP`.
    const DROP: u32 = 0;
    let number = |value: &[u8]| value.try_into().map(u32::from_be_bytes).ok();
    let answers = all_chains(socket, family)?;
    let base_chain = |answer: &Vec<u8>| {
        let hook = number(attribute(attribute(answer, HOOK)?, HOOK_NUMBER)?)?;
        let policy = attribute(answer, POLICY).and_then(number);
        let decides = attribute(answer, KIND).is_some_and(|kind| text(kind) == "filter");
        Some(BaseChain {
            place: place(family, answer)?,
            hook,
            forwards: hook == FORWARD && decides,
            drops: policy == Some(DROP),
        })
    };
    Ok(answers.iter().filter_map(base_chain).collect())
}

/// Whether the table belongs to a running program that alone may change it
/// (`flags owner`).
///
/// # Errors
/// When the kernel refuses to tell.
pub fn has_keeper(socket: &Socket, table: &Table) -> Result<bool> {
    const FLAGS: u16 = 2;
    /// `NFT_TABLE_F_OWNER`.
    const OWNER: u32 = 2;
    let message = NfTablesMessage::GetTable(TableMessage {
        attributes: vec![TableAttribute::Name(table.name.to_owned())],
    });
    let answers = match socket.request(with_family(table.family, message)) {
        Err(error) if is_absent(&error) => Vec::new(),
        answers => answers.with_context(|| format!("look up table {table}"))?,
    };
    let flags = answers.first().and_then(|answer| attribute(answer, FLAGS));
    let flags = flags.and_then(|value| value.try_into().ok());
    Ok(flags.is_some_and(|flags| u32::from_be_bytes(flags) & OWNER != 0))
}

/// The names of the tables of `family` that have a chain `name`.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn tables_with_chain(socket: &Socket, family: Family, name: &str) -> Result<Vec<String>> {
    let answers = all_chains(socket, family)?;
    let places = answers.iter().filter_map(|answer| place(family, answer));
    let found = places.filter(|place| place.chain == name);
    Ok(found.map(|place| place.table).collect())
}

fn place(family: Family, answer: &[u8]) -> Option<Place> {
    Some(Place {
        family,
        table: text(attribute(answer, TABLE)?),
        chain: text(attribute(answer, NAME)?),
    })
}

fn all_chains(socket: &Socket, family: Family) -> Result<Vec<Vec<u8>>> {
    let message = NfTablesMessage::GetChain(ChainMessage { attributes: vec![] });
    match socket.dump(&with_family(family, message)) {
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        answers => answers.with_context(|| format!("list the chains of family {family}")),
    }
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
