//! The way back from the kernel's expressions to statements, for rules in our chains,
//! whoever added them. What we would not write ourselves is not understood.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, ip_mask_to_prefix};
use netlink_packet_netfilter::nftables::MetaKey;

use crate::net::mac::Mac;
use crate::netfilter::model::Protocol;
use crate::netfilter::nf_tables::among::{Among, End, Field, NAME_START, Values};
use crate::netfilter::nf_tables::encode::{
    ACCEPT, AT_LEAST, AT_MOST, CT_STATE, CT_STATUS, DESTINATION_PORT, DESTINATION_TRANSLATED, DROP,
    ESTABLISHED_OR_RELATED, ETHER_SOURCE, FIB_FLAGS, FIB_RESULT, GOTO, INTERFACE_NAME, IPV4, IPV6,
    JUMP, LINK_HEADER, LOCAL, LOOKUP_FLAGS, LOOKUP_REGISTER, LOOKUP_RESULT, LOOKUP_SET,
    NETWORK_HEADER, RETURN, SOURCE_PORT, TRANSPORT_HEADER, address_place,
};
use crate::netfilter::nf_tables::message::text;
use crate::netfilter::nf_tables::rule::Statement;
use crate::netfilter::nf_tables::ruleset::Family;
use crate::netfilter::nfnetlink::socket::{attribute, attributes, number};

/// What the rule with these expressions (the value of `NFTA_RULE_EXPRESSIONS`), in a
/// table of `family`, says; `None` where part of it is not understood.
pub fn decode(family: Family, expressions: &[u8]) -> Option<Vec<Statement>> {
    let mut decoder = Decoder::new(family);
    for (_, expression) in attributes(expressions) {
        decoder.add_expression(expression)?;
    }
    Some(decoder.statements)
}

/// As [`decode`], passing over what is not understood.
pub fn decode_known(family: Family, expressions: &[u8]) -> Vec<Statement> {
    let mut decoder = Decoder::new(family);
    for (_, expression) in attributes(expressions) {
        if decoder.add_expression(expression).is_none() {
            // Nobody knows what the registers hold now.
            decoder.loaded.clear();
            decoder.masks.clear();
            decoder.least.clear();
            decoder.values.clear();
        }
    }
    decoder.statements
}

/// The whole rule in words: those of nft where it is understood, a name for what else has
/// one, and dots for the rest.
pub fn describe(family: Family, expressions: &[u8]) -> String {
    let mut decoder = Decoder::new(family);
    let mut words: Vec<String> = Vec::new();
    for (_, expression) in attributes(expressions) {
        if decoder.add_expression(expression).is_none() {
            decoder.loaded.clear();
            decoder.masks.clear();
            decoder.least.clear();
            decoder.values.clear();
            words.push(name_of(expression));
        }
        let told = decoder.statements.drain(..);
        words.extend(told.map(|statement| statement.to_string()));
    }
    words.dedup();
    words.join(" ")
}

/// What can be said of an expression that is not understood.
fn name_of(expression: &[u8]) -> String {
    let named = |data: Option<&[u8]>| Some(text(attribute(data?, 1)?));
    let data = attribute(expression, 2);
    match attribute(expression, 1).map(text).as_deref() {
        Some("match") => named(data).map(|name| format!("-m {name}")),
        Some("target") => named(data).map(|name| format!("-j {name}")),
        Some("redir") => Some("redirect".to_owned()),
        Some(name @ ("reject" | "log" | "limit" | "queue" | "quota" | "notrack" | "tproxy")) => {
            Some(name.to_owned())
        }
        _ => None,
    }
    .unwrap_or_else(|| "…".to_owned())
}

/// The comment that iptables has put into the expressions, as the match of that name.
pub fn xt_comment(expressions: &[u8]) -> Option<String> {
    /// `NFTA_MATCH_INFO`: here a text that is filled up with zero bytes.
    const INFO: u16 = 3;
    attributes(expressions).find_map(|(_, expression)| {
        let data = attribute(expression, 2)?;
        let is_one = attribute(expression, 1)? == b"match\0" && attribute(data, 1)? == b"comment\0";
        let info = attribute(data, INFO).filter(|_| is_one)?;
        let end = info.iter().position(|byte| *byte == 0)?;
        Some(text(info.get(..end)?))
    })
}

/// Where a target `DNAT` of iptables among the expressions leads, if there is one; nowhere,
/// `0.0.0.0`, where its data are of an unknown kind.
pub fn xt_destination(family: Family, expressions: &[u8]) -> Option<IpAddr> {
    /// `NFTA_TARGET_REV` and `NFTA_TARGET_INFO`: a `struct nf_nat_range` from revision 1 on,
    /// which begins with flags and the first address.
    const REVISION: u16 = 2;
    const INFO: u16 = 3;
    const FIRST: usize = 4;
    let data = attributes(expressions).find_map(|(_, expression)| {
        let data = attribute(expression, 2)?;
        let is_one = attribute(expression, 1)? == b"target\0" && attribute(data, 1)? == b"DNAT\0";
        is_one.then_some(data)
    })?;
    let address = || {
        let is_known = number(attribute(data, REVISION)?)? > 0;
        let length = if family == Family::Ip { 4 } else { 16 };
        let info = attribute(data, INFO).filter(|_| is_known)?;
        to_address(family, info.get(FIRST..FIRST + length)?)
    };
    Some(address().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
}

/// The first destination port that the expressions compare with, whatever else they do.
pub fn destination_port(expressions: &[u8]) -> Option<u16> {
    const PLACE: [Option<u32>; 3] = [Some(TRANSPORT_HEADER), Some(DESTINATION_PORT), Some(2)];
    let mut is_loaded = false;
    for (_, expression) in attributes(expressions) {
        let (name, data) = (attribute(expression, 1)?, attribute(expression, 2));
        let data = data.unwrap_or_default();
        match name {
            b"payload\0" => {
                let place = [2, 3, 4].map(|kind| number(attribute(data, kind)?));
                is_loaded = place == PLACE;
            }
            b"cmp\0" if is_loaded => {
                let port = value(attribute(data, 3)?)?;
                return Some(u16::from_be_bytes(port.try_into().ok()?));
            }
            _ => {}
        }
    }
    None
}

/// The packets that have come to a `counter` among the expressions; `None` without one.
pub fn packets(expressions: &[u8]) -> Option<u64> {
    /// `NFTA_COUNTER_PACKETS`.
    const PACKETS: u16 = 2;
    attributes(expressions).find_map(|(_, expression)| {
        if attribute(expression, 1)? != b"counter\0" {
            return None;
        }
        let packets = attribute(attribute(expression, 2)?, PACKETS)?;
        Some(u64::from_be_bytes(packets.try_into().ok()?))
    })
}

/// Whether a rule with these expressions asks nothing of a packet, and drops or rejects it.
pub fn refuses_all(expressions: &[u8]) -> bool {
    let mut last = false;
    for (_, expression) in attributes(expressions) {
        let data = attribute(expression, 2).unwrap_or_default();
        last = match attribute(expression, 1) {
            Some(b"counter\0" | b"log\0") => false,
            Some(b"reject\0") => true,
            // That of iptables.
            Some(b"target\0") if attribute(data, 1) == Some(b"REJECT\0") => true,
            Some(b"immediate\0") => {
                let verdict = attribute(data, 2).and_then(|data| attribute(data, 2));
                verdict.and_then(decode_verdict) == Some(Statement::Drop)
            }
            _ => return false,
        };
    }
    last
}

/// What a register was loaded with.
enum Loaded {
    Payload { base: u32, offset: u32, length: u32 },
    Meta(MetaKey),
    LocalDestination,
    Status,
    State,
}

#[derive(Default)]
struct Decoder {
    /// As far as the table or an earlier comparison says it.
    network: Option<Family>,
    transport: Option<Protocol>,
    loaded: BTreeMap<u32, Loaded>,
    masks: BTreeMap<u32, Vec<u8>>,
    /// What registers must at least be.
    least: BTreeMap<u32, Vec<u8>>,
    values: BTreeMap<u32, Vec<u8>>,
    statements: Vec<Statement>,
}

impl Decoder {
    fn new(family: Family) -> Self {
        Self {
            network: Some(family),
            ..Self::default()
        }
    }

    fn add_expression(&mut self, expression: &[u8]) -> Option<()> {
        const NAME: u16 = 1;
        const DATA: u16 = 2;
        let name = attribute(expression, NAME)?;
        let name = std::str::from_utf8(name.strip_suffix(&[0])?).ok()?;
        self.add(name, attribute(expression, DATA).unwrap_or_default())
    }

    fn add(&mut self, name: &str, data: &[u8]) -> Option<()> {
        let number = |kind| number(attribute(data, kind)?);
        match name {
            "payload" => {
                let (base, offset, length) = (number(2)?, number(3)?, number(4)?);
                self.load(
                    number(1)?,
                    Loaded::Payload {
                        base,
                        offset,
                        length,
                    },
                );
            }
            "meta" => self.load(number(1)?, Loaded::Meta(MetaKey::from(number(2)?))),
            "ct" if number(CT_STATUS.0)? == CT_STATUS.1 => self.load(number(1)?, Loaded::Status),
            "ct" if number(CT_STATE.0)? == CT_STATE.1 => self.load(number(1)?, Loaded::State),
            "fib"
                if number(FIB_FLAGS.0)? == FIB_FLAGS.1 && number(FIB_RESULT.0)? == FIB_RESULT.1 =>
            {
                self.load(number(1)?, Loaded::LocalDestination);
            }
            "bitwise" => {
                let (source, target) = (number(1)?, number(2)?);
                let xor = value(attribute(data, 5)?)?;
                if source != target || xor.iter().any(|byte| *byte != 0) {
                    return None;
                }
                self.masks
                    .insert(target, value(attribute(data, 4)?)?.to_vec());
            }
            "cmp" => {
                let register = number(1)?;
                let is = match number(2)? {
                    0 => true,
                    1 => false,
                    AT_LEAST => {
                        let least = value(attribute(data, 3)?)?.to_vec();
                        self.least.insert(register, least);
                        return Some(());
                    }
                    AT_MOST => {
                        let least = self.least.remove(&register)?;
                        let most = value(attribute(data, 3)?)?;
                        return self.ranged(register, true, &least, most);
                    }
                    _ => return None,
                };
                let (loaded, mask) = (self.loaded.remove(&register)?, self.masks.remove(&register));
                self.compared(&loaded, mask, is, value(attribute(data, 3)?)?)?;
            }
            // `NFT_RANGE_EQ`, `NFT_RANGE_NEQ`.
            "range" => {
                let is = match number(2)? {
                    0 => true,
                    1 => false,
                    _ => return None,
                };
                let [least, most] = [3, 4].map(|kind| value(attribute(data, kind)?));
                self.ranged(number(1)?, is, least?, most?)?;
            }
            "lookup" => {
                let is = match attribute(data, LOOKUP_FLAGS).map(self::number) {
                    None | Some(Some(0)) => true,
                    Some(Some(1)) => false,
                    _ => return None,
                };
                if attribute(data, LOOKUP_RESULT).is_some() {
                    return None;
                }
                let set = attribute(data, LOOKUP_SET)?.strip_suffix(&[0])?;
                let set = String::from_utf8(set.to_vec()).ok()?;
                let register = number(LOOKUP_REGISTER)?;
                let loaded = self.loaded.remove(&register)?;
                if self.masks.remove(&register).is_some() {
                    return None;
                }
                let statement = self.looked_up(&loaded, is, set)?;
                self.statements.push(statement);
            }
            "immediate" => {
                let data = attribute(data, 2)?;
                match attribute(data, 2) {
                    Some(verdict) => self.statements.push(decode_verdict(verdict)?),
                    None => drop(self.values.insert(number(1)?, value(data)?.to_vec())),
                }
            }
            "nat" => self.translated(number(1)?, number(3)?, number(5)?)?,
            "masq" if data.is_empty() => self.statements.push(Statement::Masquerade),
            // Counts, and changes nothing.
            "counter" => {}
            _ => return None,
        }
        Some(())
    }

    fn load(&mut self, register: u32, what: Loaded) {
        self.loaded.insert(register, what);
        self.masks.remove(&register);
        self.least.remove(&register);
    }

    /// Takes in that a register is in a range, or is not.
    fn ranged(&mut self, register: u32, is: bool, least: &[u8], most: &[u8]) -> Option<()> {
        let loaded = self.loaded.remove(&register)?;
        let field = self.field(&loaded)?;
        // nft turns the bytes of marks round before it compares them in this way.
        if self.masks.remove(&register).is_some() || field == Field::Mark {
            return None;
        }
        let of = Values::Range((field.value(least)?, field.value(most)?));
        self.statements
            .push(Statement::Among(Among { field, is, of }));
        Some(())
    }

    /// The field that was loaded, as a whole.
    fn field(&self, loaded: &Loaded) -> Option<Field> {
        match *loaded {
            Loaded::Payload {
                base: NETWORK_HEADER,
                offset,
                length,
            } => {
                let family = self.network?;
                let end = end_at(family, offset)?;
                (address_place(family, end).1 == length).then_some(Field::Address(family, end))
            }
            Loaded::Payload {
                base: TRANSPORT_HEADER,
                offset,
                length: 2,
            } => {
                let end = match offset {
                    SOURCE_PORT => End::Source,
                    DESTINATION_PORT => End::Destination,
                    _ => return None,
                };
                Some(Field::Port(self.transport?, end))
            }
            Loaded::Meta(MetaKey::Iifname) => Some(Field::Interface(End::Source)),
            Loaded::Meta(MetaKey::Oifname) => Some(Field::Interface(End::Destination)),
            Loaded::Meta(MetaKey::Mark) => Some(Field::Mark),
            _ => None,
        }
    }

    /// Takes in what a comparison says: a statement, or what prepares the next one.
    fn compared(
        &mut self,
        loaded: &Loaded,
        mask: Option<Vec<u8>>,
        is: bool,
        value: &[u8],
    ) -> Option<()> {
        let host_order = || Some(u32::from_ne_bytes(value.try_into().ok()?));
        let statement = match (loaded, mask) {
            (Loaded::Meta(MetaKey::Nfproto), None) if is => {
                self.network = Some(match value {
                    [IPV4] => Family::Ip,
                    [IPV6] => Family::Ip6,
                    _ => return None,
                });
                return Some(());
            }
            (Loaded::Meta(MetaKey::L4Proto), None) if is => {
                let [number] = value else { return None };
                self.transport = Some(Protocol::numbered(*number)?);
                return Some(());
            }
            (Loaded::Meta(key @ (MetaKey::Iifname | MetaKey::Oifname)), None) => {
                let end = match key {
                    MetaKey::Iifname => End::Source,
                    _ => End::Destination,
                };
                match value.iter().position(|byte| *byte == 0) {
                    Some(length) if value.len() == INTERFACE_NAME => {
                        let name = String::from_utf8(value.get(..length)?.to_vec()).ok()?;
                        Statement::Interface { end, is, name }
                    }
                    None if value.len() < INTERFACE_NAME && !value.is_empty() => {
                        let field = Field::Interface(end);
                        let of = Values::Beginning(String::from_utf8(value.to_vec()).ok()?);
                        Statement::Among(Among { field, is, of })
                    }
                    _ => return None,
                }
            }
            (Loaded::Meta(MetaKey::Mark), None) => Statement::Mark {
                is,
                mark: host_order()?,
            },
            (Loaded::LocalDestination, None) if is && host_order()? == LOCAL => {
                Statement::LocalDestination
            }
            (Loaded::Status, Some(mask))
                if !is && mask == DESTINATION_TRANSLATED.to_ne_bytes() && host_order()? == 0 =>
            {
                Statement::Translated
            }
            (Loaded::State, Some(mask))
                if !is && mask == ESTABLISHED_OR_RELATED.to_ne_bytes() && host_order()? == 0 =>
            {
                Statement::Established
            }
            (
                Loaded::Payload {
                    base,
                    offset,
                    length,
                },
                mask,
            ) => self.payload((*base, *offset, *length), mask, is, value)?,
            _ => return None,
        };
        self.statements.push(statement);
        Some(())
    }

    /// What it means that `loaded` is in `set`, or is not.
    fn looked_up(&self, loaded: &Loaded, is: bool, set: String) -> Option<Statement> {
        let field = self.field(loaded)?;
        if set.starts_with(NAME_START) {
            let of = Values::Stored(set);
            return Some(Statement::Among(Among { field, is, of }));
        }
        match field {
            Field::Address(family, end) if is => Some(Statement::InSet {
                end,
                family,
                set: set.into(),
            }),
            _ => None,
        }
    }

    fn payload(
        &self,
        place: (u32, u32, u32),
        mask: Option<Vec<u8>>,
        is: bool,
        value: &[u8],
    ) -> Option<Statement> {
        match (place, mask) {
            ((TRANSPORT_HEADER, DESTINATION_PORT, 2), None) if is => Some(Statement::Port {
                protocol: self.transport?,
                port: u16::from_be_bytes(value.try_into().ok()?),
            }),
            ((TRANSPORT_HEADER, SOURCE_PORT | DESTINATION_PORT, 2), None) => {
                let end = if place.1 == SOURCE_PORT {
                    End::Source
                } else {
                    End::Destination
                };
                let field = Field::Port(self.transport?, end);
                let of = Values::One(field.value(value)?);
                Some(Statement::Among(Among { field, is, of }))
            }
            ((LINK_HEADER, ETHER_SOURCE, 6), None) if is => {
                Some(Statement::EtherSource(Mac(value.try_into().ok()?)))
            }
            ((NETWORK_HEADER, offset, _), mask) => {
                let family = self.network?;
                let end = end_at(family, offset)?;
                let length = usize::try_from(address_place(family, end).1).ok()?;
                let mut address = value.to_vec();
                address.resize(length, 0);
                let prefix = match mask {
                    Some(mask) => ip_mask_to_prefix(to_address(family, &mask)?).ok()?,
                    None => u8::try_from(value.len().checked_mul(8)?).ok()?,
                };
                let net = IpNet::new(to_address(family, &address)?, prefix).ok()?;
                // Host bits behind a mask never match: not what we write.
                (net == net.trunc()).then_some(Statement::Address { end, is, net })
            }
            _ => None,
        }
    }

    fn translated(&mut self, kind: u32, address: u32, port: u32) -> Option<()> {
        const DNAT: u32 = 1;
        let (address, port) = (self.values.remove(&address)?, self.values.remove(&port)?);
        let family = if address.len() == 4 {
            Family::Ip
        } else {
            Family::Ip6
        };
        if kind != DNAT {
            return None;
        }
        self.statements.push(Statement::Dnat {
            to: to_address(family, &address)?,
            port: u16::from_be_bytes(port.try_into().ok()?),
        });
        Some(())
    }
}

/// The end whose address begins at `offset` of the network header.
fn end_at(family: Family, offset: u32) -> Option<End> {
    let ends = [End::Source, End::Destination];
    ends.into_iter()
        .find(|end| address_place(family, *end).0 == offset)
}

fn decode_verdict(verdict: &[u8]) -> Option<Statement> {
    let chain = || {
        let name = attribute(verdict, 2)?.strip_suffix(&[0])?;
        Some(String::from_utf8(name.to_vec()).ok()?.into())
    };
    match i32::from_be_bytes(attribute(verdict, 1)?.try_into().ok()?) {
        DROP => Some(Statement::Drop),
        ACCEPT => Some(Statement::Accept),
        JUMP => Some(Statement::Jump(chain()?)),
        GOTO => Some(Statement::Goto(chain()?)),
        RETURN => Some(Statement::Return),
        _ => None,
    }
}

/// The bytes in a data attribute.
fn value(data: &[u8]) -> Option<&[u8]> {
    attribute(data, 1)
}

fn to_address(family: Family, octets: &[u8]) -> Option<IpAddr> {
    match family {
        Family::Ip => Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?)),
        Family::Ip6 => Some(IpAddr::from(<[u8; 16]>::try_from(octets).ok()?)),
        Family::Inet | Family::Bridge | Family::Netdev => None,
    }
}
