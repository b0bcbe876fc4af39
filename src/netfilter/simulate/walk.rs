//! What becomes of the first packet of a connection in the rules of a namespace, whoever made
//! them: those of nftables, of iptables-nft and of iptables-legacy. What is not understood may
//! do anything: an answer is certain, or there is none.

use std::fmt;
use std::net::IpAddr;

use anyhow::{Context, Result};
use netlink_packet_netfilter::nftables::{ChainMessage, NfTablesMessage, RuleMessage};

use crate::net::link::Link;
use crate::netfilter::iptables::rule::Rule;
use crate::netfilter::model::Protocol;
use crate::netfilter::nf_tables::message::{is_absent, text, with_family};
use crate::netfilter::nf_tables::nft_command::Names;
use crate::netfilter::nf_tables::ruleset::Family;
use crate::netfilter::nfnetlink::socket::{Socket, attribute, attributes, number};
use crate::netfilter::nftables::{masquerade, port_maps};
use crate::netfilter::simulate::judge::judge;
use crate::netfilter::simulate::legacy;
use crate::netfilter::simulate::sets;
use crate::netfilter::simulate::sets::Set;

/// Where packets are looked at, with the kernel's number of the hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// By IP.
    Packet(u32),
    /// By a bridge.
    Frame(u32),
    /// As they come from a device, before all else.
    Ingress,
    /// As they go to a device, after all else.
    Egress,
}

/// `NF_INET_PRE_ROUTING`; of these and those below, `NF_BR_…` are the same.
pub const PREROUTING: u32 = 0;
/// `NF_INET_LOCAL_IN`.
pub const INPUT: u32 = 1;
/// `NF_INET_FORWARD`.
pub const FORWARD: u32 = 2;
/// `NF_INET_LOCAL_OUT`.
pub const OUTPUT: u32 = 3;
/// `NF_INET_POST_ROUTING`.
pub const POSTROUTING: u32 = 4;

/// The first packet of a connection, and what is known of its way so far.
#[derive(Debug)]
pub struct Packet<'a> {
    /// The link that it comes in by, where the hook knows.
    pub input: Option<&'a Link>,
    /// The link that it leaves by, where the hook knows.
    pub output: Option<&'a Link>,
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes to.
    pub destination: IpAddr,
    /// The port it goes to; `None` is any.
    pub port: Option<(Protocol, u16)>,
    /// The addresses of whose rules these are.
    pub own: &'a [IpAddr],
    /// The mark that rules gave it; `None` is any.
    pub mark: Option<u32>,
    /// Whether the kernel remembers its connection for certain.
    pub is_tracked: bool,
    /// What became of its addresses at the last hook.
    pub translation: Translation,
    /// The name of a chain, and whether it may have come through that.
    pub entry: (&'a str, bool),
}

/// What rules did to the addresses of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Translation {
    /// Nothing. If a rule ended a chain before others could, that is it.
    None(Option<Place>),
    /// That cannot be told.
    Unknown,
    /// What the rule says.
    By(Place, Target),
}

/// What an address is translated to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// That cannot be told.
    Unknown,
    /// One of the host's.
    Own,
    /// This one, and another port where it says so.
    Address(IpAddr, Option<u16>),
}

/// A rule or a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Whose packets it sees.
    pub family: Family,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The number of the rule, with iptables-legacy its position; `None` is the policy.
    pub rule: Option<u64>,
    /// The program of iptables-legacy that changes it, if that is whose it is.
    pub legacy: Option<&'static str>,
}

/// The chain, with its table: `ip filter FORWARD`, `iptables-legacy filter FORWARD`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.legacy {
            Some(tool) => f.write_str(tool)?,
            None => self.family.fmt(f)?,
        }
        write!(f, " {} {}", self.table, self.chain)
    }
}

impl Place {
    /// What `nft` calls the chain.
    pub fn names(&self) -> Names<'_> {
        Names {
            family: self.family,
            table: &self.table,
            chain: &self.chain,
        }
    }
}

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

/// All that one family has.
#[derive(Debug)]
struct Layer {
    family: Family,
    legacy: Option<&'static str>,
    chains: Vec<Chain>,
    sets: Vec<Set>,
}

/// All rules that there are.
#[derive(Debug)]
pub struct Firewall {
    layers: Vec<Layer>,
}

/// What a rule does with what matches.
#[derive(Debug)]
pub enum Verdict {
    /// The next rule decides.
    None,
    /// It passes this chain, or something is done to it that is not understood.
    Accept,
    /// It is dropped, or rejected.
    Drop,
    /// The chain ends.
    Return,
    /// This chain decides, and then the next rule.
    Jump(String),
    /// This chain decides.
    Goto(String),
    /// An address of it is another from now on.
    Translate(Target),
}

/// What comes of a packet in a chain.
enum Outcome {
    /// It goes on behind the rule that led here.
    Returned,
    /// It may do anything but be dropped for certain.
    Unknown,
    Accepted(Place),
    Dropped(Place),
    Translated(Place, Target),
}

impl<'a> Packet<'a> {
    /// One that nobody has looked at yet.
    pub fn new(source: IpAddr, destination: IpAddr, own: &'a [IpAddr]) -> Self {
        Self {
            input: None,
            output: None,
            source,
            destination,
            port: None,
            own,
            mark: Some(0),
            is_tracked: true,
            translation: Translation::None(None),
            entry: ("", false),
        }
    }

    /// Whether it goes to whose rules these are.
    pub fn is_local(&self) -> bool {
        self.own.contains(&self.destination)
    }
}

impl Firewall {
    /// Reads that of this thread's namespace. Why tables of iptables-legacy cannot be told
    /// is added to `doubts`.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn read(doubts: &mut Vec<String>) -> Result<Self> {
        const FAMILIES: [Family; 5] = [
            Family::Ip,
            Family::Ip6,
            Family::Inet,
            Family::Bridge,
            Family::Netdev,
        ];
        let mut layers = Vec::new();
        if let Some(socket) = Socket::open_if_any()? {
            for family in FAMILIES {
                layers.push(Layer {
                    family,
                    legacy: None,
                    chains: chains(&socket, family)?,
                    sets: sets::read(&socket, family)?,
                });
            }
        }
        for (family, tool, chains) in legacy::chains(doubts) {
            layers.push(Layer {
                family,
                legacy: Some(tool),
                chains,
                sets: Vec::new(),
            });
        }
        layers.retain(|layer| !layer.chains.is_empty());
        Ok(Self { layers })
    }

    /// Takes the packet through the chains of a hook; what drops it there for certain.
    pub fn pass(&self, hook: Hook, packet: &mut Packet<'_>) -> Option<Place> {
        let other = if packet.source.is_ipv4() {
            Family::Ip6
        } else {
            Family::Ip
        };
        let device = match hook {
            Hook::Egress => packet.output,
            _ => packet.input,
        };
        let is_for = |base: &Base| {
            let is_named = |device: &Link| base.devices.contains(&device.name);
            base.hook == hook && (base.devices.is_empty() || device.is_some_and(is_named))
        };
        packet.translation = Translation::None(None);
        // Of chains of one priority, ours are taken to have been there first.
        let mut last = (i32::MIN, false, (0, 0));
        let chains = || {
            let layers = self.layers.iter().enumerate();
            let layers = layers.filter(|(_, layer)| layer.family != other);
            layers.flat_map(|(above, layer)| {
                let chains = layer.chains.iter().enumerate();
                chains.filter_map(move |(at, chain)| {
                    let base = chain.base.as_ref()?;
                    let is_foreign = !OURS.contains(&&*chain.table);
                    let order = (base.priority, is_foreign, (above, at + 1));
                    Some((order, layer, chain, base))
                })
            })
        };
        let next = |last| {
            let rest = chains().filter(|(order, .., base)| *order > last && is_for(base));
            rest.min_by_key(|(order, ..)| *order)
        };
        while let Some((order, layer, chain, base)) = next(last) {
            last = order;
            // Addresses are translated once for a hook, and only for known connections.
            if base.is_nat && !packet.is_tracked {
                packet.translation = Translation::Unknown;
            }
            if base.is_nat && !matches!(packet.translation, Translation::None(_)) {
                continue;
            }
            match walk(layer, chain, packet, 0) {
                Outcome::Dropped(place) => return Some(place),
                Outcome::Returned if chain.drops => return Some(place(layer, chain, None)),
                Outcome::Accepted(by) if base.is_nat => {
                    packet.translation = Translation::None(Some(by));
                }
                Outcome::Translated(by, to) => packet.translate(hook, by, to),
                Outcome::Unknown if base.is_nat => packet.translation = Translation::Unknown,
                _ => {}
            }
        }
        None
    }

    /// How many rules each table of iptables-legacy and of iptables-nft has, where both have
    /// some for one family: `iptables-legacy 2 in filter, 3 in nat`.
    pub fn variants(&self) -> Option<[String; 2]> {
        [Family::Ip, Family::Ip6].into_iter().find_map(|family| {
            let told = |is_legacy: bool| {
                let mut layers = self.layers.iter();
                let layer =
                    layers.find(|l| l.family == family && l.legacy.is_some() == is_legacy)?;
                let six = if family == Family::Ip6 { "6" } else { "" };
                let variant = if is_legacy { "legacy" } else { "nft" };
                let counts = legacy::TABLES.iter().filter_map(|(table, _)| {
                    let own = || layer.chains.iter().filter(|chain| chain.table == *table);
                    // Others who make such a table call its chains otherwise.
                    let is_its = own().any(|c| c.base.is_some() && legacy::is_built_in(&c.name));
                    let count: usize = own().map(|chain| chain.rules.len()).sum();
                    (is_its && count > 0).then(|| format!("{count} in {table}"))
                });
                let counts: Vec<String> = counts.collect();
                let told = format!("ip{six}tables-{variant} {}", counts.join(", "));
                (!counts.is_empty()).then_some(told)
            };
            Some([told(true)?, told(false)?])
        })
    }
}

/// The tables that only we and our like have.
const OURS: [&str; 2] = [port_maps::TABLES[0].name, masquerade::TABLE.name];

impl Packet<'_> {
    /// Does what a rule at this hook says.
    fn translate(&mut self, hook: Hook, by: Place, to: Target) {
        let is_source = hook == Hook::Packet(POSTROUTING);
        match to {
            Target::Unknown => {
                self.translation = Translation::Unknown;
                return;
            }
            Target::Address(ip, _) if is_source => self.source = ip,
            Target::Address(ip, port) => {
                self.destination = ip;
                let own = self.port.take();
                self.port = own.map(|(protocol, own)| (protocol, port.unwrap_or(own)));
            }
            Target::Own if is_source => {}
            Target::Own => self.port = None,
        }
        self.translation = Translation::By(by, to);
    }
}

/// A rule of the chain, or its policy.
fn place(layer: &Layer, chain: &Chain, rule: Option<u64>) -> Place {
    Place {
        family: layer.family,
        table: chain.table.clone(),
        chain: chain.name.clone(),
        rule,
        legacy: layer.legacy,
    }
}

/// What the kernel has of one kind; a family that it does not know has nothing.
///
/// # Errors
/// When the kernel refuses to tell.
pub(super) fn dump(
    socket: &Socket,
    family: Family,
    message: NfTablesMessage,
) -> Result<Vec<Vec<u8>>> {
    match socket.dump(&with_family(family, message)) {
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        answers => answers.with_context(|| format!("list the rules of family {family}")),
    }
}

fn chains(socket: &Socket, family: Family) -> Result<Vec<Chain>> {
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

/// Follows the packet through a chain.
fn walk(layer: &Layer, chain: &Chain, packet: &mut Packet<'_>, depth: u8) -> Outcome {
    /// As deep as the kernel lets jumps be.
    const DEEPEST: u8 = 16;
    if depth > DEEPEST {
        return Outcome::Unknown;
    }
    let Chain { table, name, .. } = chain;
    packet.entry.1 |= packet.entry.0 == name;
    for (number, body) in &chain.rules {
        let mark = packet.mark;
        let (matches, verdict) = match body {
            Body::Expressions(expressions) => judge(expressions, table, &layer.sets, packet),
            Body::Words(rule) => legacy::judge(rule, table, packet, &layer.chains),
        };
        let place = || place(layer, chain, Some(*number));
        let mut follow = |to: &str| match find(&layer.chains, table, to) {
            Some(to) => walk(layer, to, packet, depth + 1),
            None => Outcome::Unknown,
        };
        match (matches, verdict) {
            // What drops perhaps is passed over: something else may yet do so for certain.
            (Some(false), _) | (_, Verdict::None) | (None, Verdict::Drop) => {}
            (_, Verdict::Jump(to)) => match (follow(&to), matches) {
                (Outcome::Returned, Some(_)) => {}
                (Outcome::Returned | Outcome::Dropped(_), None) => {
                    packet.mark = packet.mark.filter(|_| packet.mark == mark);
                }
                (outcome, Some(_)) => return outcome,
                (_, None) => return Outcome::Unknown,
            },
            (None, _) => return Outcome::Unknown,
            (_, Verdict::Drop) => return Outcome::Dropped(place()),
            (_, Verdict::Return) => return Outcome::Returned,
            (_, Verdict::Goto(to)) => return follow(&to),
            (_, Verdict::Accept) => return Outcome::Accepted(place()),
            (_, Verdict::Translate(to)) => return Outcome::Translated(place(), to),
        }
    }
    Outcome::Returned
}
