//! Fields of a packet that are compared with more than one value: ranges, interfaces whose
//! names begin alike, and the sets that nft keeps in a rule (`{ 80, 443 }`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::netfilter::model::Protocol;
use crate::netfilter::nf_tables::ruleset::Family;

/// One end of a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Where it comes from.
    Source,
    /// Where it goes to.
    Destination,
}

/// How nft calls the address of an end.
pub fn address_of(end: End) -> &'static str {
    match end {
        End::Source => "saddr",
        End::Destination => "daddr",
    }
}

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
    pub fn largest(self) -> u128 {
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

    /// One value as nft prints it.
    fn word(self, value: u128) -> String {
        match self {
            Self::Address(..) => self.address(value).to_string(),
            Self::Port(..) => value.to_string(),
            Self::Mark => format!("{value:#010x}"),
            Self::Interface(_) => format!("\"{}\"", name(value)),
        }
    }

    /// The address with this value.
    pub fn address(self, value: u128) -> IpAddr {
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
pub fn name(value: u128) -> String {
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

impl Field {
    /// The end of the packet that it is of; for a mark either would do.
    pub fn end(self) -> End {
        match self {
            Self::Address(_, end) | Self::Port(_, end) | Self::Interface(end) => end,
            Self::Mark => End::Destination,
        }
    }

    /// The addresses of `interval` as a network, if they are one.
    pub fn block(self, (first, last): Interval) -> Option<IpNet> {
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
}
