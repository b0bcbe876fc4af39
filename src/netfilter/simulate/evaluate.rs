//! Whether a packet meets a rule of nftables, and what the rule does then.

use std::cmp::Ordering;
use std::net::IpAddr;

use crate::netfilter::nf_tables::encode::{
    CT_STATE, FIB_FLAGS, FIB_RESULT, LOCAL, NETWORK_HEADER, TRANSPORT_HEADER, octets,
};
use crate::netfilter::nf_tables::message::text;
use crate::netfilter::nfnetlink::socket::{attribute, attributes, number};
use crate::netfilter::simulate::packet::{Packet, Target, Verdict};
use crate::netfilter::simulate::sets::{Held, Set};

/// What of a rule is not understood decides nothing for certain, and this is its answer.
const UNKNOWN: (Option<bool>, Verdict) = (None, Verdict::Accept);

/// Whether a rule of `table` matches, if that is known, and what it does then.
pub fn evaluate(
    expressions: &[u8],
    table: &str,
    sets: &[Set],
    packet: &mut Packet<'_>,
) -> (Option<bool>, Verdict) {
    let mut registers = Registers::new();
    let mut matches = Some(true);
    for (_, expression) in attributes(expressions) {
        let name = attribute(expression, 1).map(text).unwrap_or_default();
        let data = attribute(expression, 2).unwrap_or_default();
        let field = |kind| number(attribute(data, kind)?);
        let met = match name.as_str() {
            "counter" | "log" | "last" => Some(true),
            "meta" | "payload" | "ct" | "fib" => match field(1) {
                Some(register) => {
                    registers.store(register, load(&name, data, packet).as_deref());
                    Some(true)
                }
                // `NFT_META_MARK` is set, to what is in `NFTA_META_SREG`.
                None if name == "meta" && field(2) == Some(3) => {
                    let value = field(3).and_then(|register| registers.read(register, 4));
                    let value = value.and_then(|value| value.try_into().ok());
                    packet.mark = value.filter(|_| matches.is_some()).map(u32::from_ne_bytes);
                    Some(true)
                }
                None if name == "payload" => return UNKNOWN,
                None => Some(true),
            },
            "bitwise" => {
                let masked = mask(&registers, data);
                registers.store(field(2).unwrap_or(0), masked.as_deref());
                Some(true)
            }
            "cmp" => compare(&registers, data),
            "range" => within(&registers, data),
            "immediate" if field(1) == Some(0) => {
                return (matches, decision(attribute(data, 2).unwrap_or_default()));
            }
            "immediate" => {
                let value = attribute(data, 2).and_then(|data| attribute(data, 1));
                registers.store(field(1).unwrap_or(0), value);
                Some(true)
            }
            "lookup" => match (look_up(&registers, data, table, sets), field(3)) {
                (Held::Nothing, _) => Some(false),
                // `NFT_REG_VERDICT`.
                (Held::Data(value), Some(0)) => return (matches, decision(value)),
                (Held::Unknown, Some(0)) => return UNKNOWN,
                (Held::Data(value), Some(register)) => {
                    registers.store(register, attribute(value, 1));
                    Some(true)
                }
                (Held::Data(_), None) => Some(true),
                (Held::Unknown, _) => None,
            },
            "match" => extension(data, packet),
            "reject" => return (matches, Verdict::Drop),
            "masq" | "redir" => return (matches, Verdict::Translate(Target::Own)),
            "nat" => {
                return (
                    matches,
                    Verdict::Translate(translation(&registers, data, packet)),
                );
            }
            "notrack" => {
                packet.is_tracked = false;
                Some(true)
            }
            "queue" | "fwd" | "tproxy" | "synproxy" => return UNKNOWN,
            "target" => {
                let target = attribute(data, 1).map(text).unwrap_or_default();
                let to = range(data, packet.source.is_ipv4()).unwrap_or(Target::Unknown);
                return match target_verdict(&target, to, packet) {
                    Some(verdict) => (matches, verdict),
                    None => UNKNOWN,
                };
            }
            _ => {
                registers = Registers::new();
                None
            }
        };
        match met {
            Some(true) => {}
            Some(false) => return (Some(false), Verdict::None),
            None => matches = None,
        }
    }
    (matches, Verdict::None)
}

/// What a target of iptables that is no chain does; `to` is where it translates to. `None`
/// is not known.
pub fn target_verdict(name: &str, to: Target, packet: &mut Packet<'_>) -> Option<Verdict> {
    match name {
        "MARK" | "CONNMARK" => packet.mark = None,
        "CT" | "NOTRACK" => packet.is_tracked = false,
        _ => {}
    }
    Some(match name {
        "DROP" | "REJECT" => Verdict::Drop,
        "ACCEPT" => Verdict::Accept,
        "RETURN" => Verdict::Return,
        "DNAT" | "SNAT" => Verdict::Translate(to),
        "MASQUERADE" | "REDIRECT" => Verdict::Translate(Target::Own),
        "LOG" | "NFLOG" | "TCPMSS" | "MARK" | "CONNMARK" | "CT" | "NOTRACK" | "TRACE" => {
            Verdict::None
        }
        _ => return None,
    })
}

/// What a rule has to compare with: bytes, where they are known.
struct Registers([Option<u8>; 64]);

impl Registers {
    const fn new() -> Self {
        Self([None; 64])
    }

    /// Where a register begins: `NFT_REG_1` and its like are of 16 bytes, `NFT_REG32_00` and
    /// its like, the same again, of four.
    fn start(register: u32) -> Option<usize> {
        let start = match register {
            1..=4 => (register - 1) * 16,
            _ => register.checked_sub(8)?.checked_mul(4)?,
        };
        usize::try_from(start).ok()
    }

    /// Puts `value` there, filled up with zeros as the kernel does.
    fn store(&mut self, register: u32, value: Option<&[u8]>) {
        let length = value.map_or(16, |value| value.len().next_multiple_of(4));
        let places = self.0.iter_mut().skip(Self::start(register).unwrap_or(64));
        for (at, place) in places.take(length).enumerate() {
            *place = value.map(|value| value.get(at).copied().unwrap_or(0));
        }
    }

    /// The first bytes there, if all are known.
    fn read(&self, register: u32, length: usize) -> Option<Vec<u8>> {
        let start = Self::start(register)?;
        self.0
            .get(start..start.checked_add(length)?)?
            .iter()
            .copied()
            .collect()
    }
}

/// What an expression loads into its register, if that is known.
fn load(name: &str, data: &[u8], packet: &Packet<'_>) -> Option<Vec<u8>> {
    /// The bit for a connection's first packet among the states.
    const NEW: u32 = 8;
    let field = |kind| number(attribute(data, kind)?);
    let is_v4 = packet.source.is_ipv4();
    // `ETH_P_IP`, `ETH_P_IPV6`.
    let ethertype = if is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    let protocol = packet.port.map(|(protocol, _)| vec![protocol.number()]);
    match name {
        "ct" => {
            let is_state = field(CT_STATE.0)? == CT_STATE.1 && packet.is_tracked;
            is_state.then(|| NEW.to_ne_bytes().to_vec())
        }
        "fib" => {
            let is_type =
                field(FIB_RESULT.0)? == FIB_RESULT.1 && field(FIB_FLAGS.0)? == FIB_FLAGS.1;
            // `RTN_UNICAST`.
            let kind = if packet.is_local() { LOCAL } else { 1 };
            is_type.then(|| kind.to_ne_bytes().to_vec())
        }
        // `enum nft_meta_keys`.
        "meta" => match field(2)? {
            1 => Some(ethertype.to_vec()),
            3 => Some(packet.mark?.to_ne_bytes().to_vec()),
            4 => Some(packet.input?.index.to_ne_bytes().to_vec()),
            5 => Some(packet.output?.index.to_ne_bytes().to_vec()),
            6 => Some(padded(&packet.input?.name)),
            7 => Some(padded(&packet.output?.name)),
            15 => Some(vec![if is_v4 { 2 } else { 10 }]),
            16 => protocol,
            _ => None,
        },
        _ => {
            let (base, offset, length) = (field(2)?, field(3)?, field(4)?);
            match (base, offset, length) {
                (0, 12, 2) => return Some(ethertype.to_vec()),
                (NETWORK_HEADER, 9, 1) if is_v4 => return protocol,
                (NETWORK_HEADER, 6, 1) if !is_v4 => return protocol,
                (TRANSPORT_HEADER, 2, 2) => return Some(packet.port?.1.to_be_bytes().to_vec()),
                (NETWORK_HEADER, ..) => {}
                _ => return None,
            }
            let first = if is_v4 { 12 } else { 8 };
            let addresses = [octets(packet.source), octets(packet.destination)].concat();
            let start = usize::try_from(offset.checked_sub(first)?).ok()?;
            let end = start.checked_add(usize::try_from(length).ok()?)?;
            addresses.get(start..end).map(<[u8]>::to_vec)
        }
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = || Some(<[u8; 4]>::try_from(octets).ok()?.into());
    v4().or_else(|| Some(<[u8; 16]>::try_from(octets).ok()?.into()))
}

/// A name as the kernel compares it.
fn padded(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

/// What is in the register that attribute 1 names, as long as `like`.
fn loaded(registers: &Registers, data: &[u8], like: &[u8]) -> Option<Vec<u8>> {
    registers.read(number(attribute(data, 1)?)?, like.len())
}

/// The bytes in a data attribute of this kind.
fn value(data: &[u8], kind: u16) -> Option<&[u8]> {
    attribute(attribute(data, kind)?, 1)
}

fn mask(registers: &Registers, data: &[u8]) -> Option<Vec<u8>> {
    let (mask, xor) = (value(data, 4)?, value(data, 5)?);
    let source = loaded(registers, data, mask)?;
    let bytes = source.iter().zip(mask).zip(xor);
    Some(
        bytes
            .map(|((byte, mask), xor)| (byte & mask) ^ xor)
            .collect(),
    )
}

fn compare(registers: &Registers, data: &[u8]) -> Option<bool> {
    let wanted = value(data, 3)?;
    // A name that ends with * is compared as far as it goes.
    let order = loaded(registers, data, wanted)?.as_slice().cmp(wanted);
    // `enum nft_cmp_ops`.
    Some(match number(attribute(data, 2)?)? {
        0 => order == Ordering::Equal,
        1 => order != Ordering::Equal,
        2 => order == Ordering::Less,
        3 => order != Ordering::Greater,
        4 => order == Ordering::Greater,
        5 => order != Ordering::Less,
        _ => return None,
    })
}

/// Whether a value is in a range, or outside of one.
fn within(registers: &Registers, data: &[u8]) -> Option<bool> {
    let (from, to) = (value(data, 3)?, value(data, 4)?);
    let loaded = loaded(registers, data, from)?;
    let is_inside = from <= loaded.as_slice() && loaded.as_slice() <= to;
    Some(is_inside == (number(attribute(data, 2)?)? == 0))
}

/// What the set that a rule names has for what is loaded; where a rule asks for the opposite,
/// that is turned round.
fn look_up<'s>(registers: &Registers, data: &[u8], table: &str, sets: &'s [Set]) -> Held<'s> {
    let field = |kind| number(attribute(data, kind)?);
    let find = || {
        let name = attribute(data, 1).map(text)?;
        let mut sets = sets.iter();
        let set = sets.find(|set| set.name == name && set.table == table)?;
        Some(set.find(&registers.read(field(2)?, set.key_length)?))
    };
    let is_inverted = field(5).is_some_and(|flags| flags != 0);
    match find().unwrap_or(Held::Unknown) {
        Held::Nothing if is_inverted => Held::Data(&[]),
        Held::Data(_) if is_inverted => Held::Nothing,
        found => found,
    }
}

/// What a match of iptables says of the first packet of a connection, if that is known.
fn extension(data: &[u8], packet: &Packet<'_>) -> Option<bool> {
    let (name, info) = (attribute(data, 1).map(text)?, attribute(data, 3)?);
    let revision = attribute(data, 2).and_then(number)?;
    let byte = |at: usize| info.get(at).copied();
    let half = |at: usize| Some(u16::from_ne_bytes(info.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
    match (name.as_str(), revision) {
        ("comment", _) => Some(true),
        // `struct xt_conntrack_mtinfo3`: what is compared, what is inverted, and the states.
        ("conntrack", 3) => {
            const STATE: u16 = 1;
            const NEW: u16 = 8;
            /// `XT_CONNTRACK_STATE_SNAT`, `XT_CONNTRACK_STATE_DNAT`: these it may have, too.
            const TRANSLATED: u16 = 0xc0;
            let is_new = half(150)? & NEW != 0;
            let may_be = is_new || half(150)? & TRANSLATED == 0;
            let is_known = half(146)? == STATE && packet.is_tracked && may_be;
            is_known.then_some(is_new != (half(148)? & STATE != 0))
        }
        // `struct xt_mark_mtinfo1`: mark, mask, and whether it is inverted.
        ("mark", 1) => Some((packet.mark? & word(4)? == word(0)?) != (byte(8)? != 0)),
        // `struct xt_addrtype_info_v1`: types of the source, of the destination, and flags, of
        // which the second inverts the destination.
        ("addrtype", 1) => {
            let is_known = half(0)? == 0 && word(4)? & !2 == 0;
            let own = if packet.is_local() { LOCAL } else { 1 };
            is_known.then_some((half(2)? >> own & 1 != 0) != (word(4)? != 0))
        }
        // `struct xt_tcp`, `struct xt_udp`: ranges of source and destination ports; then what
        // else is looked at, and what is inverted.
        ("tcp" | "udp", 0) => {
            let is_met = (half(4)?..=half(6)?).contains(&packet.port?.1);
            let inverted = if name == "tcp" { byte(11)? } else { byte(8)? };
            let has_more = half(0)? != 0
                || half(2)? != u16::MAX
                || (name == "tcp" && (byte(8)? != 0 || byte(9)? != 0));
            let is_met = is_met != (inverted & 2 != 0);
            Some(is_met).filter(|is_met| !is_met || (!has_more && inverted & !2 == 0))
        }
        // `struct xt_multiport_v1`: which side, how many, ports, which begin ranges, inverted.
        ("multiport", 1) if byte(0)? == 1 => {
            let (count, own) = (usize::from(byte(1)?), packet.port?.1);
            let mut ports = (0..count).filter_map(|at| Some((half(2 + 2 * at)?, byte(32 + at)?)));
            let mut is_met = false;
            while let Some((port, begins)) = ports.next() {
                let end = if begins != 0 { ports.next()?.0 } else { port };
                is_met |= (port..=end).contains(&own);
            }
            Some(is_met != (byte(47)? != 0))
        }
        _ => None,
    }
}

/// Where the expression `nat` leads.
fn translation(registers: &Registers, data: &[u8], packet: &Packet<'_>) -> Target {
    let length = octets(packet.source).len();
    let find = || {
        let port = match attribute(data, 5) {
            Some(register) => {
                let port = registers.read(number(register)?, 2)?;
                Some(u16::from_be_bytes(port.try_into().ok()?))
            }
            None => None,
        };
        let own = registers.read(number(attribute(data, 3)?)?, length)?;
        Some(Target::Address(address(&own)?, port))
    };
    find().unwrap_or(Target::Unknown)
}

/// Where a target of iptables leads: `struct nf_nat_range` and its like, or in the first
/// revision for IPv4 `struct nf_nat_ipv4_multi_range_compat`.
fn range(data: &[u8], is_v4: bool) -> Option<Target> {
    let info = attribute(data, 3)?;
    let revision = number(attribute(data, 2)?)?;
    let (flags, first, port) = match revision {
        0 if is_v4 => (4, 8, 16),
        _ => (0, 4, 36),
    };
    let length = if is_v4 { 4 } else { 16 };
    let ip = address(info.get(first..first + length)?)?;
    let port = u16::from_be_bytes(info.get(port..port + 2)?.try_into().ok()?);
    // `NF_NAT_RANGE_MAP_IPS`, `NF_NAT_RANGE_PROTO_SPECIFIED`.
    let flags = u32::from_ne_bytes(info.get(flags..flags + 4)?.try_into().ok()?);
    (flags & 1 != 0).then(|| Target::Address(ip, Some(port).filter(|_| flags & 2 != 0)))
}

/// What `struct nft_data` says with a packet is to be done.
fn decision(data: &[u8]) -> Verdict {
    let Some(verdict) = attribute(data, 2) else {
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
