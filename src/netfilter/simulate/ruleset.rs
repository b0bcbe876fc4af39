//! What becomes of the first packet of a connection in the rules of a namespace, whoever made
//! them: those of nftables, of iptables-nft and of iptables-legacy. What is not understood may
//! do anything: an answer is certain, or there is none.

use anyhow::Result;

use crate::net::link::Link;
use crate::netfilter::nf_tables::ruleset::Family;
use crate::netfilter::nfnetlink::socket::Socket;
use crate::netfilter::nftables::{masquerade, port_maps};
use crate::netfilter::simulate::chain::{Base, Body, Chain, find};
use crate::netfilter::simulate::evaluate::evaluate;
use crate::netfilter::simulate::packet::{Hook, Packet, Place, Target, Translation, Verdict};
use crate::netfilter::simulate::sets::Set;
use crate::netfilter::simulate::{chain, legacy, sets};

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
pub struct Ruleset {
    layers: Vec<Layer>,
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

impl Ruleset {
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
                    chains: chain::read(&socket, family)?,
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
            match traverse(layer, chain, packet, 0) {
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

/// Follows the packet through a chain.
fn traverse(layer: &Layer, chain: &Chain, packet: &mut Packet<'_>, depth: u8) -> Outcome {
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
            Body::Expressions(expressions) => evaluate(expressions, table, &layer.sets, packet),
            Body::Words(rule) => legacy::evaluate(rule, table, packet, &layer.chains),
        };
        let place = || place(layer, chain, Some(*number));
        let mut follow = |to: &str| match find(&layer.chains, table, to) {
            Some(to) => traverse(layer, to, packet, depth + 1),
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
