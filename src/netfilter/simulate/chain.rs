//! Chains of nftables and of either iptables, and how those of nftables are read.

use anyhow::{Context, Result};
use netlink_packet_netfilter::nftables::{ChainMessage, NfTablesMessage, RuleMessage};

use crate::netfilter::iptables::rule::Rule;
use crate::netfilter::nf_tables::message::{is_absent, text, with_family};
use crate::netfilter::nf_tables::ruleset::Family;
use crate::netfilter::nfnetlink::socket::{Socket, attribute, attributes, number};
use crate::netfilter::simulate::packet::Hook;

/// A chain.
#[derive(Debug)]
pub struct Chain {
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// How the kernel enters it, if it does so by itself.
    pub base: Option<Base>,
    /// Whether it drops what comes to its end.
    pub drops: bool,
    /// Each with its number.
    pub rules: Vec<(u64, Body)>,
}

/// How the kernel enters a chain.
#[derive(Debug)]
pub struct Base {
    /// Where.
    pub hook: Hook,
    /// Lower ones come first.
    pub priority: i32,
    /// Whether it translates addresses: the first chain that does is the last.
    pub is_nat: bool,
    /// For what comes from or goes to these devices; for all if there are none.
    pub devices: Vec<String>,
}

/// A rule.
#[derive(Debug)]
pub enum Body {
    /// As nftables has it.
    Expressions(Vec<u8>),
    /// As iptables-legacy prints it.
    Words(Rule),
}

/// The chain of these names.
pub fn find<'c>(chains: &'c [Chain], table: &str, name: &str) -> Option<&'c Chain> {
    let mut chains = chains.iter();
    chains.find(|chain| chain.name == name && chain.table == table)
}

/// What the kernel has of one kind; a family that it does not know has nothing.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn dump(socket: &Socket, family: Family, message: NfTablesMessage) -> Result<Vec<Vec<u8>>> {
    match socket.dump(&with_family(family, message)) {
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        answers => answers.with_context(|| format!("list the rules of family {family}")),
    }
}

/// The chains that the kernel has of `family`, with their rules.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn read(socket: &Socket, family: Family) -> Result<Vec<Chain>> {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const KIND: u16 = 7;
    let mut found: Vec<Chain> = Vec::new();
    let message = NfTablesMessage::GetChain(ChainMessage { attributes: vec![] });
    for answer in dump(socket, family, message)? {
        let [table, name] = [TABLE, NAME].map(|kind| attribute(&answer, kind).unwrap_or_default());
        let is_nat = attribute(&answer, KIND) == Some(b"nat\0");
        found.push(Chain {
            table: text(table),
            name: text(name),
            base: attribute(&answer, HOOK).and_then(|hook| base(family, hook, is_nat)),
            drops: attribute(&answer, POLICY).and_then(number) == Some(0),
            rules: Vec::new(),
        });
    }
    if found.is_empty() {
        return Ok(found);
    }
    let message = NfTablesMessage::GetRule(RuleMessage { attributes: vec![] });
    let mut at = 0;
    for answer in dump(socket, family, message)? {
        let [table, name, handle, expressions] =
            [1, 2, 3, 4].map(|kind| attribute(&answer, kind).unwrap_or_default());
        let (table, name) = (text(table), text(name));
        let is_its = |chain: &Chain| chain.name == name && chain.table == table;
        // They come chain by chain.
        if !found.get(at).is_some_and(is_its) {
            at = found.iter().position(is_its).unwrap_or(at);
        }
        if let Some(chain) = found.get_mut(at).filter(|chain| is_its(chain)) {
            let handle = handle.try_into().map_or(0, u64::from_be_bytes);
            let body = Body::Expressions(expressions.to_vec());
            chain.rules.push((handle, body));
        }
    }
    Ok(found)
}

/// How the kernel enters a chain that has this hook.
fn base(family: Family, hook: &[u8], is_nat: bool) -> Option<Base> {
    const NUMBER: u16 = 1;
    const PRIORITY: u16 = 2;
    /// As one, or as several.
    const DEVICE: u16 = 3;
    const DEVICES: u16 = 4;
    let several = attributes(attribute(hook, DEVICES).unwrap_or_default());
    let several = several.map(|(_, name)| name);
    let priority = attribute(hook, PRIORITY).and_then(number).unwrap_or(0);
    let devices = attribute(hook, DEVICE).into_iter().chain(several);
    Some(Base {
        hook: match (family, attribute(hook, NUMBER).and_then(number)?) {
            (Family::Bridge, number) => Hook::Frame(number),
            // `NF_NETDEV_INGRESS` and `NF_INET_INGRESS`.
            (Family::Netdev, 0) | (Family::Inet, 5) => Hook::Ingress,
            (Family::Netdev, _) => Hook::Egress,
            (_, number) => Hook::Packet(number),
        },
        priority: priority.cast_signed(),
        is_nat,
        devices: devices.map(text).collect(),
    })
}
