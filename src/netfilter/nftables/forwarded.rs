//! Whether the rules of this host drop a packet that it forwards, whoever made them: those
//! of nftables and of iptables-nft. What is not understood may let it pass: an answer is
//! certain, or there is none.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use netlink_packet_netfilter::nftables::{
    ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage,
};

use super::ruleset::Family;
use super::transaction::{is_absent, text, with_family};
use crate::netfilter::socket::{Socket, attribute, attributes};

/// The first packet of a connection, that the host forwards.
#[derive(Debug, Clone)]
pub struct Packet<'a> {
    /// The link that it comes in by.
    pub input: &'a str,
    /// The link that it leaves by.
    pub output: &'a str,
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes to.
    pub destination: IpAddr,
}

/// What drops a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// The chain, with its table: `ip filter FORWARD`.
    pub chain: String,
    /// The number of the rule; `None` for the chain's policy.
    pub rule: Option<u64>,
}

/// A chain, as far as it matters.
#[derive(Debug, Default)]
struct Chain {
    is_forward: bool,
    drops: bool,
    /// Each with its number and expressions.
    rules: Vec<(u64, Vec<u8>)>,
}

/// Those of one family, by table and name.
type Chains = BTreeMap<(String, String), Chain>;

/// All chains that there are.
#[derive(Debug)]
pub struct Firewall {
    families: Vec<(Family, Chains)>,
}

/// What comes of a packet in a chain.
enum Outcome {
    /// It goes on behind the rule that led here.
    Returned,
    /// It passes, or may.
    Passed,
    Dropped(Dropped),
}

impl Firewall {
    /// Reads it.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn read() -> Result<Self> {
        let mut families = Vec::new();
        if let Some(socket) = Socket::open_if_any()? {
            for family in [Family::Ip, Family::Ip6, Family::Inet] {
                families.push((family, chains(&socket, family)?));
            }
        }
        Ok(Self { families })
    }

    /// What drops `packet` for certain.
    pub fn drops(&self, packet: &Packet<'_>) -> Option<Dropped> {
        let own = if packet.source.is_ipv4() {
            Family::Ip
        } else {
            Family::Ip6
        };
        let families = self.families.iter();
        let concerned = families.filter(|(family, _)| [own, Family::Inet].contains(family));
        for (family, chains) in concerned {
            for (key, chain) in chains.iter().filter(|(_, chain)| chain.is_forward) {
                match walk(*family, chains, key, packet, 0) {
                    Outcome::Dropped(dropped) => return Some(dropped),
                    Outcome::Returned if chain.drops => {
                        let (table, name) = key;
                        return Some(Dropped {
                            chain: format!("{family} {table} {name}"),
                            rule: None,
                        });
                    }
                    Outcome::Returned | Outcome::Passed => {}
                }
            }
        }
        None
    }
}

fn chains(socket: &Socket, family: Family) -> Result<Chains> {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    /// `NF_INET_FORWARD`.
    const FORWARD: u32 = 2;
    let dump = |message| match socket.dump(&with_family(family, message)) {
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        answers => answers.with_context(|| format!("list the chains of family {family}")),
    };
    let mut found = Chains::new();
    for answer in dump(NfTablesMessage::GetChain(ChainMessage {
        attributes: vec![],
    }))? {
        let [Some(table), Some(name)] = [TABLE, NAME].map(|kind| attribute(&answer, kind)) else {
            continue;
        };
        let hook = attribute(&answer, HOOK).and_then(|hook| number(attribute(hook, 1)?));
        let chain = found.entry((text(table), text(name))).or_default();
        chain.is_forward = hook == Some(FORWARD);
        chain.drops = attribute(&answer, POLICY).and_then(number) == Some(0);
    }
    let tables: Vec<String> = found.keys().map(|(table, _)| table.clone()).collect();
    let mut tables = tables;
    tables.dedup();
    for table in tables {
        let message = RuleMessage {
            attributes: vec![RuleAttribute::Table(table.clone())],
        };
        for answer in dump(NfTablesMessage::GetRule(message))? {
            let [Some(chain), Some(handle), Some(expressions)] =
                [2, 3, 4].map(|kind| attribute(&answer, kind))
            else {
                continue;
            };
            let handle = handle.try_into().map_or(0, u64::from_be_bytes);
            if let Some(chain) = found.get_mut(&(table.clone(), text(chain))) {
                chain.rules.push((handle, expressions.to_vec()));
            }
        }
    }
    Ok(found)
}

/// Follows the packet through a chain.
fn walk(
    family: Family,
    chains: &Chains,
    key: &(String, String),
    packet: &Packet<'_>,
    depth: u8,
) -> Outcome {
    /// As deep as the kernel lets jumps be.
    const DEEPEST: u8 = 16;
    let Some(chain) = chains.get(key).filter(|_| depth <= DEEPEST) else {
        return Outcome::Passed;
    };
    for (handle, expressions) in &chain.rules {
        let (matches, verdict) = judge(expressions, packet);
        let verdict = match (matches, verdict) {
            // What drops perhaps, such as packets of no known connection, is passed over.
            (Some(false), _) | (_, Verdict::None) | (None, Verdict::Drop) => continue,
            (None, _) => return Outcome::Passed,
            (Some(true), verdict) => verdict,
        };
        let (table, name) = key;
        match verdict {
            Verdict::Drop => {
                return Outcome::Dropped(Dropped {
                    chain: format!("{family} {table} {name}"),
                    rule: Some(*handle),
                });
            }
            Verdict::Return => return Outcome::Returned,
            Verdict::Jump(to) => {
                match walk(family, chains, &(table.clone(), to), packet, depth + 1) {
                    Outcome::Returned => {}
                    outcome => return outcome,
                }
            }
            Verdict::Goto(to) => {
                return walk(family, chains, &(table.clone(), to), packet, depth + 1);
            }
            Verdict::None => {}
            Verdict::Accept => return Outcome::Passed,
        }
    }
    Outcome::Returned
}

/// What a rule does with what matches.
enum Verdict {
    None,
    /// It passes this hook, or something is done to it that is not understood.
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

/// Whether a rule matches, if that is known, and what it does then.
fn judge(expressions: &[u8], packet: &Packet<'_>) -> (Option<bool>, Verdict) {
    let mut registers: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let mut matches = Some(true);
    for (_, expression) in attributes(expressions) {
        let name = attribute(expression, 1).map(text).unwrap_or_default();
        let data = attribute(expression, 2).unwrap_or_default();
        match name.as_str() {
            "counter" | "log" => {}
            "meta" | "payload" | "ct" => {
                let Some(register) = attribute(data, 1).and_then(number) else {
                    return (None, Verdict::Accept);
                };
                match load(&name, data, packet) {
                    Some(bytes) => drop(registers.insert(register, bytes)),
                    None => drop(registers.remove(&register)),
                }
            }
            "bitwise" => {
                let masked = mask(&registers, data);
                let target = attribute(data, 2).and_then(number).unwrap_or(0);
                match masked {
                    Some(bytes) => drop(registers.insert(target, bytes)),
                    None => drop(registers.remove(&target)),
                }
            }
            "cmp" => match compare(&registers, data) {
                Some(true) => {}
                Some(false) => return (Some(false), Verdict::None),
                None => matches = None,
            },
            // A map of verdicts (its register is that of verdicts), or a program decides.
            "lookup" if attribute(data, 3).and_then(number) == Some(0) => {
                return (None, Verdict::Accept);
            }
            "queue" => return (None, Verdict::Accept),
            "immediate" => return (matches, verdict(data)),
            "reject" => return (matches, Verdict::Drop),
            "match" if attribute(data, 1).map(text).as_deref() == Some("comment") => {}
            "target" => {
                let target = attribute(data, 1).map(text).unwrap_or_default();
                return match target.as_str() {
                    "REJECT" => (matches, Verdict::Drop),
                    "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TCPMSS" => (matches, Verdict::None),
                    _ => (None, Verdict::Accept),
                };
            }
            _ => matches = None,
        }
    }
    (matches, Verdict::None)
}

/// What an expression loads into its register, if that is known.
fn load(name: &str, data: &[u8], packet: &Packet<'_>) -> Option<Vec<u8>> {
    /// `NFT_CT_STATE`, and the bit of a connection's first packet.
    const STATE: (u32, u32) = (0, 8);
    let number = |kind| number(attribute(data, kind)?);
    match name {
        "ct" => (number(2)? == STATE.0).then(|| STATE.1.to_ne_bytes().to_vec()),
        "meta" => match number(2)? {
            // `NFT_META_MARK`: nobody has set it yet.
            3 => Some(vec![0; 4]),
            6 => Some(padded(packet.input)),
            7 => Some(padded(packet.output)),
            // `NFT_META_NFPROTO`.
            15 => Some(vec![if packet.source.is_ipv4() { 2 } else { 10 }]),
            _ => None,
        },
        _ => {
            let (base, offset, length) = (number(2)?, number(3)?, number(4)?);
            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let first = if packet.source.is_ipv4() { 12 } else { 8 };
            let addresses = [octets(packet.source), octets(packet.destination)].concat();
            let start = usize::try_from(offset.checked_sub(first)?).ok()?;
            let end = start.checked_add(usize::try_from(length).ok()?)?;
            // `NFT_PAYLOAD_NETWORK_HEADER`.
            (base == 1).then(|| addresses.get(start..end).map(<[u8]>::to_vec))?
        }
    }
}

/// A name as the kernel compares it.
fn padded(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn mask(registers: &BTreeMap<u32, Vec<u8>>, data: &[u8]) -> Option<Vec<u8>> {
    let source = registers.get(&number(attribute(data, 1)?)?)?;
    let mask = attribute(attribute(data, 4)?, 1)?;
    let xor = attribute(attribute(data, 5)?, 1)?;
    let bytes = source.iter().zip(mask).zip(xor);
    Some(
        bytes
            .map(|((byte, mask), xor)| (byte & mask) ^ xor)
            .collect(),
    )
}

fn compare(registers: &BTreeMap<u32, Vec<u8>>, data: &[u8]) -> Option<bool> {
    let value = registers.get(&number(attribute(data, 1)?)?)?;
    let wanted = attribute(attribute(data, 3)?, 1)?;
    // A name that ends with * is compared as far as it goes.
    let is_equal = value.get(..wanted.len())? == wanted;
    match number(attribute(data, 2)?)? {
        0 => Some(is_equal),
        1 => Some(!is_equal),
        _ => None,
    }
}

fn verdict(data: &[u8]) -> Verdict {
    let verdict = attribute(data, 2).and_then(|value| attribute(value, 2));
    let Some(verdict) = verdict.filter(|_| attribute(data, 1).and_then(number) == Some(0)) else {
        return Verdict::Accept;
    };
    let chain = attribute(verdict, 2).map(text).unwrap_or_default();
    let code = attribute(verdict, 1).and_then(number).unwrap_or(1);
    // `NF_DROP` and `NFT_CONTINUE` to `NFT_RETURN`, which are negative.
    match code.cast_signed() {
        0 => Verdict::Drop,
        -1 => Verdict::None,
        -3 => Verdict::Jump(chain),
        -4 => Verdict::Goto(chain),
        -5 => Verdict::Return,
        _ => Verdict::Accept,
    }
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}
