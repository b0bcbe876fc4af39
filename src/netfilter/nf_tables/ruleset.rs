//! Tables and chains as data, which print themselves in the words of nft(8).

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

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

/// The family of tables that sees nothing but packets like those of `address`.
pub fn family_of(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::Ip,
        IpAddr::V6(_) => Family::Ip6,
    }
}
