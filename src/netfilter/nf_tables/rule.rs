//! Rules as data, which print themselves in the words of nft(8).

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::net::mac::Mac;
use crate::netfilter::model::Protocol;
use crate::netfilter::nf_tables::among::{Among, End, Field, Interval, Values, address_of, name};
use crate::netfilter::nf_tables::identity::Tag;
use crate::netfilter::nf_tables::ruleset::{Family, family_of};

/// What a rule asks of a packet, and what it does with one that has it all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// `ip saddr 10.9.0.0/24`
    Address {
        /// Which address.
        end: End,
        /// Whether it must match; otherwise it must not.
        is: bool,
        /// The subnet; a single address has the full prefix length.
        net: IpNet,
    },
    /// `ip saddr @addresses`: one of those in a set of the same table.
    InSet {
        /// Which address.
        end: End,
        /// The family of the addresses.
        family: Family,
        /// The name of the set.
        set: Cow<'static, str>,
    },
    /// `tcp dport 8080`
    Port {
        /// The transport protocol.
        protocol: Protocol,
        /// The destination port.
        port: u16,
    },
    /// `iifname "eth0"`: the source's is where the packet came in.
    Interface {
        /// Where the packet came in, or where it leaves.
        end: End,
        /// Whether it must match; otherwise it must not.
        is: bool,
        /// The name of the interface.
        name: String,
    },
    /// `meta mark 0x10`
    Mark {
        /// Whether it must match; otherwise it must not.
        is: bool,
        /// The mark.
        mark: u32,
    },
    /// A field that is compared with several values.
    Among(Among),
    /// `fib daddr type local`: the destination is an address of this host.
    LocalDestination,
    /// `ct status dnat`: the connection's destination was translated.
    Translated,
    /// `ct state established,related`: it answers what was let through before.
    Established,
    /// `ether saddr 02:00:00:00:00:01`
    EtherSource(Mac),
    /// `jump CHAIN`
    Jump(Cow<'static, str>),
    /// `goto CHAIN`
    Goto(Cow<'static, str>),
    /// `return`
    Return,
    /// `accept`
    Accept,
    /// `drop`
    Drop,
    /// `masquerade`
    Masquerade,
    /// `dnat to 10.9.0.2:80`
    Dnat {
        /// The new destination address.
        to: IpAddr,
        /// The new destination port.
        port: u16,
    },
}

impl Statement {
    /// `field` compared with one of `members`, in the statement that nft makes of it.
    pub fn one_of(field: Field, is: bool, mut members: Vec<Interval>) -> Self {
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
        Self::Among(Among { field, is, of })
    }

    /// `field` compared with what would be the only member of a set.
    fn alone(field: Field, is: bool, interval: Interval) -> Self {
        let (first, last) = interval;
        if first == last {
            return Self::equal(field, is, first);
        }
        if let Some(net) = field.block(interval) {
            let end = field.end();
            return Self::Address { end, is, net };
        }
        let of = match field {
            Field::Interface(_) => Values::Beginning(name(first)),
            _ => Values::Range(interval),
        };
        Self::Among(Among { field, is, of })
    }

    /// `field` compared with one value.
    pub fn equal(field: Field, is: bool, value: u128) -> Self {
        match field {
            Field::Address(_, end) => Self::Address {
                end,
                is,
                net: field.address(value).into(),
            },
            Field::Port(protocol, End::Destination) if is => Self::Port {
                protocol,
                port: u16::try_from(value).unwrap_or_default(),
            },
            Field::Interface(end) => {
                let name = name(value);
                Self::Interface { end, is, name }
            }
            Field::Mark => Self::Mark {
                is,
                mark: u32::try_from(value).unwrap_or_default(),
            },
            Field::Port(..) => {
                let of = Values::One(value);
                Self::Among(Among { field, is, of })
            }
        }
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

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |is: bool| if is { "" } else { "!= " };
        match self {
            Self::Address { end, is, net } => {
                let family = family_of(net.addr());
                write!(f, "{family} {} {}", address_of(*end), not(*is))?;
                if net.prefix_len() == net.max_prefix_len() {
                    write!(f, "{}", net.addr())
                } else {
                    write!(f, "{}", net.trunc())
                }
            }
            Self::InSet { end, family, set } => {
                write!(f, "{family} {} @{set}", address_of(*end))
            }
            Self::Port { protocol, port } => write!(f, "{} dport {port}", protocol.as_str()),
            Self::Interface { end, is, name } => {
                let end = match end {
                    End::Source => "iifname",
                    End::Destination => "oifname",
                };
                write!(f, "{end} {}\"{name}\"", not(*is))
            }
            Self::Among(among) => among.fmt(f),
            Self::Mark { is, mark } => write!(f, "meta mark {}{mark:#010x}", not(*is)),
            Self::LocalDestination => f.write_str("fib daddr type local"),
            Self::Translated => f.write_str("ct status dnat"),
            Self::Established => f.write_str("ct state established,related"),
            Self::EtherSource(mac) => write!(f, "ether saddr {mac}"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Return => f.write_str("return"),
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::Dnat {
                to: IpAddr::V4(to),
                port,
            } => write!(f, "dnat to {to}:{port}"),
            Self::Dnat {
                to: IpAddr::V6(to),
                port,
            } => write!(f, "dnat to [{to}]:{port}"),
        }
    }
}

/// One rule. The comment is for humans and other implementations; the tag, which nft
/// does not show, is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub statements: Vec<Statement>,
    pub comment: Option<String>,
    pub tag: Option<Tag>,
}

impl Rule {
    /// A rule that belongs to nobody.
    pub fn shared(statements: impl Into<Vec<Statement>>) -> Self {
        Self {
            statements: statements.into(),
            comment: None,
            tag: None,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, statement) in self.statements.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{statement}")?;
        }
        if let Some(comment) = &self.comment {
            write!(f, " comment \"{comment}\"")?;
        }
        Ok(())
    }
}

/// How the kernel names a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    pub chain: String,
    pub number: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_nft_prints_them() {
        let net = |text: &str| text.parse().unwrap();
        let (end, is) = (End::Source, true);
        let rule = Rule {
            statements: vec![
                Statement::Address {
                    end,
                    is,
                    net: net("10.9.0.2/32"),
                },
                Statement::Address {
                    end: End::Destination,
                    is: false,
                    net: net("10.9.0.2/24"),
                },
                Statement::Address {
                    end,
                    is,
                    net: net("fd00::2/64"),
                },
                Statement::Interface {
                    end,
                    is: false,
                    name: "lo".into(),
                },
                Statement::Mark { is, mark: 16 },
                Statement::Translated,
                Statement::EtherSource(Mac([2, 0, 0, 0, 0, 1])),
                Statement::Dnat {
                    to: "fd00::2".parse().unwrap(),
                    port: 80,
                },
            ],
            comment: Some("c1".into()),
            tag: None,
        };
        assert_eq!(
            rule.to_string(),
            "ip saddr 10.9.0.2 ip daddr != 10.9.0.0/24 ip6 saddr fd00::/64 \
             iifname != \"lo\" meta mark 0x00000010 ct status dnat \
             ether saddr 02:00:00:00:00:01 dnat to [fd00::2]:80 comment \"c1\""
        );
    }
}
