//! A packet, where rules meet it, and what they do to it.

use std::fmt;
use std::net::IpAddr;

use crate::net::link::Link;
use crate::netfilter::model::Protocol;
use crate::netfilter::nf_tables::nft_command::Names;
use crate::netfilter::nf_tables::ruleset::Family;

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

impl Packet<'_> {
    /// Does what a rule at this hook says.
    pub fn translate(&mut self, hook: Hook, by: Place, to: Target) {
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
