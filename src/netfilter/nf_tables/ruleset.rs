//! Tables, chains and rules as data, which print themselves in the words of nft(8).

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::net::mac::Mac;
use crate::netfilter::model::Protocol;
use crate::netfilter::nf_tables::among::Among;
use crate::netfilter::nf_tables::identity::Tag;

/// The address families that tables belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 packets.
    Ip,
    /// IPv6 packets.
    Ip6,
    /// Packets of both IP versions.
    Inet,
    /// Frames that a bridge passes on.
    Bridge,
    /// What devices receive and send.
    Netdev,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
        })
    }
}

/// A table: a name space for chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// The address family.
    pub family: Family,
    /// Its name.
    pub name: &'static str,
    /// What it says to a reader of the ruleset.
    pub comment: Option<&'static str>,
}

impl Table {
    /// A table without a comment.
    pub const fn named(family: Family, name: &'static str) -> Self {
        Self {
            family,
            name,
            comment: None,
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// A list of rules: a base chain if the kernel enters it at a hook by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub table: Table,
    pub name: Cow<'static, str>,
    pub comment: Option<&'static str>,
    pub hook: Option<Hook>,
}

impl Chain {
    /// A chain that rules lead to, without a comment.
    pub fn named(table: Table, name: impl Into<Cow<'static, str>>) -> Self {
        Self {
            table,
            name: name.into(),
            comment: None,
            hook: None,
        }
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.table, self.name)
    }
}

/// Where packets enter a base chain. Chains of smaller priority come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    pub place: Place,
    pub priority: i32,
}

/// The hooks we use, under the numbers they have in every family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Prerouting,
    Forward,
    Output,
    Postrouting,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.place {
            Place::Prerouting => "prerouting",
            Place::Forward => "forward",
            Place::Output => "output",
            Place::Postrouting => "postrouting",
        };
        write!(
            f,
            "type {} hook {place} priority {};",
            self.kind, self.priority
        )
    }
}

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

/// One end of a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Where it comes from.
    Source,
    /// Where it goes to.
    Destination,
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

/// How nft calls the address of an end.
pub fn address_of(end: End) -> &'static str {
    match end {
        End::Source => "saddr",
        End::Destination => "daddr",
    }
}

/// The family of tables that sees nothing but packets like those of `address`.
pub fn family_of(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::Ip,
        IpAddr::V6(_) => Family::Ip6,
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
