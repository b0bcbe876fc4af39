//! Fields of a packet that are compared with more than one value: ranges, interfaces whose
//! names begin alike, and the sets that nft keeps in a rule (`{ 80, 443 }`).
//!
//! The kernel has such a set as an object of its own without a name, which comes and goes
//! with its rule. It is made and read here as nft does: intervals as their beginnings and
//! ends, merged where they overlap or touch.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_core::{DefaultNla, NLA_F_NESTED, NLM_F_CREATE};
use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetAttribute, SetElementAttribute,
    SetElementFlags, SetElementList, SetElementMessage, SetFlags, SetMessage,
};

use crate::netfilter::model::Protocol;
use crate::netfilter::nf_tables::ruleset::{End, Family, Statement, Table, address_of};
use crate::netfilter::nf_tables::set;
use crate::netfilter::nf_tables::transaction::{is_absent, with_family};
use crate::netfilter::nfnetlink::attributes::Attributes;
use crate::netfilter::nfnetlink::socket::{Socket, attribute, attributes, number};

/// What the kernel makes the name of a set in a rule from; and how its names begin.
pub const NAME: &str = "__set%d";
pub const NAME_START: &str = "__set";

/// `ip daddr != { 127.0.0.0/8, 198.19.254.254 }`: a field, and what it is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Among {
    /// What of the packet is compared.
    pub field: Field,
    /// Whether it must match; otherwise it must not.
    pub is: bool,
    /// The values that match.
    pub of: Values,
}

/// What of a packet is compared. Its values are numbers, as packets have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `ip saddr`
    Address(Family, End),
    /// `tcp dport`
    Port(Protocol, End),
    /// `iifname`: the first byte of the name is the highest of 16.
    Interface(End),
    /// `meta mark`
    Mark,
}

/// What a field is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Values {
    /// One value, where there is no statement of its own for it.
    One(u128),
    /// All from the first to the last.
    Range(Interval),
    /// `"eth*"`: names that begin so.
    Beginning(String),
    /// One of those in a set.
    Set(Vec<Interval>),
    /// The same, as the kernel calls the set: what it holds is known to [`resolve`].
    Stored(String),
}

/// `NFTNL_UDATA_SET_ELEM_FLAGS`, as nft notes that an interval has no end.
const OPEN: [u8; 6] = [1, 4, 1, 0, 0, 0];

/// The first and the last value; the same for one alone.
pub type Interval = (u128, u128);

impl Field {
    /// Bytes of a value.
    pub fn length(self) -> usize {
        match self {
            Self::Address(Family::Ip6, _) | Self::Interface(_) => 16,
            Self::Address(..) | Self::Mark => 4,
            Self::Port(..) => 2,
        }
    }

    /// The largest value.
    fn largest(self) -> u128 {
        u128::MAX >> (128 - 8 * self.length())
    }

    /// The bytes of `value`, as the kernel compares them.
    pub fn bytes(self, value: u128) -> Vec<u8> {
        let all = value.to_be_bytes().into_iter();
        let mut bytes: Vec<u8> = all.skip(16 - self.length()).collect();
        if self == Self::Mark && cfg!(target_endian = "little") {
            bytes.reverse();
        }
        bytes
    }

    /// The value with these bytes; `None` where they are not as many as it has.
    pub fn value(self, bytes: &[u8]) -> Option<u128> {
        if bytes.len() != self.length() {
            return None;
        }
        let number = |value, byte: &u8| value << 8 | u128::from(*byte);
        Some(if self == Self::Mark && cfg!(target_endian = "little") {
            bytes.iter().rev().fold(0, number)
        } else {
            bytes.iter().fold(0, number)
        })
    }

    /// The name of an interface, or the beginning of one, as a value.
    pub fn name(name: &str) -> u128 {
        let bytes = name.bytes().chain(std::iter::repeat(0)).take(16);
        bytes.fold(0, |value, byte| value << 8 | u128::from(byte))
    }

    /// The names that begin with `start`.
    pub fn beginning(start: &str) -> Interval {
        let first = Self::name(start);
        let rest = u128::MAX.checked_shr(8 * u32::try_from(start.len()).unwrap_or(16));
        (first, first | rest.unwrap_or_default())
    }

    /// The data type of nft(8), as `nft describe` numbers it.
    fn data_type(self) -> u32 {
        match self {
            Self::Address(Family::Ip6, _) => set::IPV6_ADDR,
            Self::Address(..) => set::IPV4_ADDR,
            Self::Port(..) => set::INET_SERVICE,
            Self::Interface(_) => set::INTERFACE_NAME,
            Self::Mark => set::MARK,
        }
    }

    /// One value as nft prints it.
    fn word(self, value: u128) -> String {
        match self {
            Self::Address(..) => self.address(value).to_string(),
            Self::Port(..) => value.to_string(),
            Self::Mark => format!("{value:#010x}"),
            Self::Interface(_) => format!("\"{}\"", name(value)),
        }
    }

    fn address(self, value: u128) -> IpAddr {
        match self {
            Self::Address(Family::Ip6, _) => Ipv6Addr::from_bits(value).into(),
            _ => Ipv4Addr::from_bits(u32::try_from(value).unwrap_or(u32::MAX)).into(),
        }
    }

    /// A member of a set as nft prints it.
    fn words(self, (first, last): Interval) -> String {
        if first == last {
            return self.word(first);
        }
        match self {
            Self::Interface(_) => format!("{}*\"", self.word(first).trim_end_matches('"')),
            _ => match self.block((first, last)) {
                Some(net) => net.to_string(),
                None => self.range((first, last)),
            },
        }
    }

    fn range(self, (first, last): Interval) -> String {
        format!("{}-{}", self.word(first), self.word(last))
    }
}

/// The name of an interface, or the beginning of one, with this value.
fn name(value: u128) -> String {
    let bytes = value.to_be_bytes();
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of_port = |end| match end {
            End::Source => "sport",
            End::Destination => "dport",
        };
        match self {
            Self::Address(family, end) => write!(f, "{family} {}", address_of(*end)),
            Self::Port(protocol, end) => write!(f, "{} {}", protocol.as_str(), of_port(*end)),
            Self::Interface(End::Source) => f.write_str("iifname"),
            Self::Interface(End::Destination) => f.write_str("oifname"),
            Self::Mark => f.write_str("meta mark"),
        }
    }
}

impl fmt::Display for Among {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, is, of } = self;
        write!(f, "{field} {}", if *is { "" } else { "!= " })?;
        match of {
            Values::One(value) => f.write_str(&field.word(*value)),
            Values::Range(interval) => f.write_str(&field.range(*interval)),
            Values::Beginning(start) => write!(f, "\"{start}*\""),
            Values::Stored(name) => write!(f, "@{name}"),
            Values::Set(members) => {
                let mut members = members.clone();
                // nft looks at the last byte of whole names first.
                let are_names = matches!(field, Field::Interface(_));
                if are_names && members.iter().all(|(first, last)| first == last) {
                    members.sort_unstable_by_key(|(name, _)| name.swap_bytes());
                }
                let members: Vec<_> = members.iter().map(|member| field.words(*member)).collect();
                write!(f, "{{ {} }}", members.join(", "))
            }
        }
    }
}

impl Among {
    /// `field` compared with one of `members`, in the statement that nft makes of it.
    pub fn choice(field: Field, is: bool, mut members: Vec<Interval>) -> Statement {
        // nft has no use for a set then.
        if let [interval] = *members.as_slice() {
            return Self::alone(field, is, interval);
        }
        members.sort_unstable();
        if members.iter().any(|(first, last)| first != last) {
            // Names that follow on each other have no common beginning.
            let touch = u128::from(!matches!(field, Field::Interface(_)));
            members = merged(members, touch);
        }
        members.dedup();
        let of = Values::Set(members);
        Statement::Among(Self { field, is, of })
    }

    /// `field` compared with what would be the only member of a set.
    fn alone(field: Field, is: bool, interval: Interval) -> Statement {
        let (first, last) = interval;
        if first == last {
            return Self::one(field, is, first);
        }
        if let Some(net) = field.block(interval) {
            let end = field.end();
            return Statement::Address { end, is, net };
        }
        let of = match field {
            Field::Interface(_) => Values::Beginning(name(first)),
            _ => Values::Range(interval),
        };
        Statement::Among(Self { field, is, of })
    }

    /// `field` compared with one value.
    pub fn one(field: Field, is: bool, value: u128) -> Statement {
        match field {
            Field::Address(_, end) => Statement::Address {
                end,
                is,
                net: field.address(value).into(),
            },
            Field::Port(protocol, End::Destination) if is => Statement::Port {
                protocol,
                port: u16::try_from(value).unwrap_or_default(),
            },
            Field::Interface(end) => {
                let name = name(value);
                Statement::Interface { end, is, name }
            }
            Field::Mark => Statement::Mark {
                is,
                mark: u32::try_from(value).unwrap_or_default(),
            },
            Field::Port(..) => {
                let of = Values::One(value);
                Statement::Among(Self { field, is, of })
            }
        }
    }

    /// What makes the set of this statement under `id`, which tells it from others in the
    /// transaction: in front of its rule in `table`. Nothing without a set.
    pub fn set_messages(&self, table: &Table, id: u32) -> Vec<(NetfilterMessage, u16)> {
        /// `NFTA_SET_DESC`.
        const DESCRIPTION: u16 = 9 | NLA_F_NESTED;
        let Values::Set(members) = &self.of else {
            return Vec::new();
        };
        let has_intervals = members.iter().any(|(first, last)| first != last);
        let elements = self.field.elements(members, has_intervals);
        let mut flags = SetFlags::Anonymous | SetFlags::Constant;
        flags.set(SetFlags::Interval, has_intervals);
        let mut description = Attributes::default();
        // `NFTA_SET_DESC_SIZE`.
        description.number(1, u32::try_from(elements.len()).unwrap_or(u32::MAX));
        let new = SetMessage {
            attributes: vec![
                SetAttribute::Table(table.name.to_owned()),
                SetAttribute::Name(NAME.to_owned()),
                SetAttribute::Flags(flags),
                SetAttribute::KeyType(self.field.data_type()),
                SetAttribute::KeyLen(u32::try_from(self.field.length()).unwrap_or_default()),
                SetAttribute::Id(id),
                SetAttribute::Other(DefaultNla::new(DESCRIPTION, description.finish())),
                SetAttribute::UserData(self.field.set_user_data(has_intervals)),
            ],
        };
        let filled = |elements: &[_]| SetElementMessage {
            attributes: vec![
                SetElementList::Table(table.name.to_owned()),
                SetElementList::Set(NAME.to_owned()),
                SetElementList::SetId(id),
                SetElementList::Elements(elements.to_vec()),
            ],
        };
        let filled = elements.chunks(set::PER_MESSAGE).map(filled);
        [NfTablesMessage::NewSet(new)]
            .into_iter()
            .chain(filled.map(NfTablesMessage::NewSetElement))
            .map(|message| (with_family(table.family, message), NLM_F_CREATE))
            .collect()
    }
}

impl Field {
    fn end(self) -> End {
        match self {
            Self::Address(_, end) | Self::Port(_, end) | Self::Interface(end) => end,
            Self::Mark => End::Destination,
        }
    }

    /// The addresses of `interval` as a network, if they are one.
    fn block(self, (first, last): Interval) -> Option<IpNet> {
        let Self::Address(..) = self else { return None };
        let (first, last) = (self.address(first), self.address(last));
        let size = |bits: u32| u8::try_from(bits).ok();
        let net: IpNet = match (first, last) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let bits = size((a.to_bits() ^ b.to_bits()).leading_zeros())?;
                Ipv4Net::new(a, bits).ok()?.into()
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let bits = size((a.to_bits() ^ b.to_bits()).leading_zeros())?;
                Ipv6Net::new(a, bits).ok()?.into()
            }
            _ => return None,
        };
        (net.network() == first && net.broadcast() == last).then_some(net)
    }

    /// What nft notes of a set for whoever lists it (libnftnl's "udata"): in which order the
    /// bytes of a key are, and that intervals were merged.
    fn set_user_data(self, has_intervals: bool) -> Vec<u8> {
        const KEY_BYTE_ORDER: u8 = 0;
        const MERGED: u8 = 2;
        const HOST: u32 = 1;
        const NETWORK: u32 = 2;
        let order = match self {
            Self::Mark | Self::Interface(_) => HOST,
            Self::Address(..) | Self::Port(..) => NETWORK,
        };
        let record = |kind: u8, value: u32| {
            let [a, b, c, d] = value.to_ne_bytes();
            [kind, 4, a, b, c, d]
        };
        let mut data = record(KEY_BYTE_ORDER, order).to_vec();
        if has_intervals {
            data.extend(record(MERGED, 1));
        }
        data
    }

    /// The elements of a set of `members`.
    fn elements(
        self,
        members: &[Interval],
        has_intervals: bool,
    ) -> Vec<ListAttribute<SetElementAttribute>> {
        let key = |value| SetElementAttribute::Key(DataAttribute::Value(self.bytes(value)));
        let end = |value| {
            let flags = SetElementAttribute::Flags(SetElementFlags::IntervalEnd);
            ListAttribute::Element(vec![flags, key(value)])
        };
        let mut elements = Vec::new();
        if has_intervals && members.first().is_some_and(|(first, _)| *first > 0) {
            elements.push(end(0));
        }
        for (first, last) in members {
            let is_open = has_intervals && *last == self.largest();
            let mut element = vec![key(*first)];
            if is_open {
                element.push(SetElementAttribute::UserData(OPEN.to_vec()));
            }
            elements.push(ListAttribute::Element(element));
            if has_intervals && !is_open {
                elements.push(end(last + 1));
            }
        }
        elements
    }
}

/// `members`, in their order, without those that overlap, or follow on each other where
/// `touch` is 1.
fn merged(members: Vec<Interval>, touch: u128) -> Vec<Interval> {
    let mut merged: Vec<Interval> = Vec::new();
    for (first, last) in members {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(touch) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// Puts in place of the names of sets in rules of `table` what these hold. A set that is gone
/// by now keeps its name.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn resolve(socket: &Socket, table: &Table, statements: &mut [Statement]) -> Result<()> {
    for statement in statements {
        let Statement::Among(Among { field, of, .. }) = statement else {
            continue;
        };
        let Values::Stored(name) = of else { continue };
        if let Some(members) = members(socket, table, name, *field)? {
            *of = Values::Set(members);
        }
    }
    Ok(())
}

/// What the set holds; `None` where it is gone, or holds something else.
fn members(
    socket: &Socket,
    table: &Table,
    name: &str,
    field: Field,
) -> Result<Option<Vec<Interval>>> {
    const ELEMENTS: u16 = 3;
    const KEY: u16 = 1;
    const FLAGS: u16 = 3;
    const USER_DATA: u16 = 6;
    const VALUE: u16 = 1;
    /// `NFT_SET_ELEM_INTERVAL_END`.
    const END: u32 = 1;
    let message = NfTablesMessage::GetSetElement(SetElementMessage {
        attributes: vec![
            SetElementList::Table(table.name.to_owned()),
            SetElementList::Set(name.to_owned()),
        ],
    });
    let answers = match socket.dump(&with_family(table.family, message)) {
        Err(error) if is_absent(&error) => return Ok(None),
        answers => answers.with_context(|| format!("list set {table} {name}"))?,
    };
    let lists = answers
        .iter()
        .filter_map(|answer| attribute(answer, ELEMENTS));
    let mut is_open = false;
    let elements = lists.flat_map(attributes).map(|(_, element)| {
        let key = attribute(attribute(element, KEY)?, VALUE)?;
        let flags = attribute(element, FLAGS).and_then(number).unwrap_or(0);
        is_open |= attribute(element, USER_DATA) == Some(&OPEN);
        Some((field.value(key)?, flags & END != 0))
    });
    let Some(mut elements) = elements.collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    // Where one interval ends, another may begin.
    elements.sort_unstable_by_key(|(value, is_end)| (*value, !is_end));
    let has_intervals = is_open || elements.iter().any(|(_, is_end)| *is_end);
    let mut members: Vec<Interval> = Vec::new();
    for (value, is_end) in elements {
        match members.last_mut() {
            _ if !is_end => {
                let last = if has_intervals {
                    field.largest()
                } else {
                    value
                };
                members.push((value, last));
            }
            Some((first, last)) if *first < value => *last = value - 1,
            // In front of all of them.
            _ => {}
        }
    }
    Ok(Some(members))
}
