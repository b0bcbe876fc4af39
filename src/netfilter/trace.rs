//! The kernel's own account of a packet's way through the rules (`meta nftrace`,
//! `NFT_MSG_TRACE`).
//!
//! A packet is followed from a table of our own, which the kernel removes with the socket
//! that made it: nothing can be left, whatever ends this process. Beside the rules that
//! choose the packet it has an empty chain at the end of every hook, which tells that the
//! packet came that far, and what it looked like.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, Hook as HookAttribute, InetHookNumber, MetaKey, NfTablesMessage,
    RuleAttribute, RuleMessage, TableAttribute, TableFlags, TableMessage,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterSubsystem};

use crate::netfilter::iptables;
use crate::netfilter::listing::Claim;
use crate::netfilter::model::Protocol;
use crate::netfilter::nf_tables::among::End;
use crate::netfilter::nf_tables::encode::{Encoder, TRANSPORT_HEADER};
use crate::netfilter::nf_tables::found::Found;
use crate::netfilter::nf_tables::identity::Tag;
use crate::netfilter::nf_tables::message::{expressions, is_absent, rule_place, text, with_family};
use crate::netfilter::nf_tables::query::base_chains;
use crate::netfilter::nf_tables::rule::Statement;
use crate::netfilter::nf_tables::ruleset::{Family, Table, family_of};
use crate::netfilter::nfnetlink::socket::{Notice, Socket, attribute, attributes};

/// Our tables' name.
pub const TABLE: &str = "cnibox_trace";

/// Families in whose tables packets are followed. Those of `inet` see what those of `ip` and
/// `ip6` see.
const FAMILIES: [Family; 2] = [Family::Bridge, Family::Inet];

/// `NFNLGRP_NFTRACE`, and `NFT_MSG_TRACE` of `NFNL_SUBSYS_NFTABLES`.
const GROUP: u32 = 9;
const TRACE: u16 = 0x0a11;

/// Before connections are looked up and addresses translated.
const FIRST: i32 = -350;

/// A place where the kernel calls base chains: the numbers are the same in every family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// What has come in.
    Prerouting,
    /// What is for this host.
    Input,
    /// What this host passes on.
    Forward,
    /// What this host sends.
    Output,
    /// What goes out.
    Postrouting,
}

impl Hook {
    /// By number.
    const ALL: [Self; 5] = [
        Self::Prerouting,
        Self::Input,
        Self::Forward,
        Self::Output,
        Self::Postrouting,
    ];

    /// As nft calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }

    fn number(self) -> InetHookNumber {
        match self {
            Self::Prerouting => InetHookNumber::PreRouting,
            Self::Input => InetHookNumber::LocalIn,
            Self::Forward => InetHookNumber::Forward,
            Self::Output => InetHookNumber::LocalOut,
            Self::Postrouting => InetHookNumber::PostRouting,
        }
    }
}

/// Which packet to follow: the first that is like this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its source; `None` is any.
    pub source: Option<IpAddr>,
    /// Its destination, before anything translates it.
    pub destination: IpAddr,
    /// The port it is for; `None` is an ICMP echo request.
    pub port: Option<(Protocol, u16)>,
}

/// Packets are followed as long as this lives.
#[derive(Debug)]
pub struct Tracer {
    /// Owns the tables, and asks.
    tables: Socket,
    notices: Socket,
    /// The hook of each base chain: family, table, chain.
    hooks: Vec<(Family, String, String, Hook)>,
    /// What will not be seen, and why.
    pub doubts: Vec<String>,
}

/// What became of a packet in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The table's.
    pub family: Family,
    /// Where.
    pub table: String,
    /// Where in it. At the end of a base chain, that one.
    pub chain: String,
    /// What said so.
    pub cause: Cause,
    /// What is done with the packet now.
    pub verdict: Verdict,
    /// The packet, told once for each base chain that it enters.
    pub packet: Option<Packet>,
    /// Of the base chain, told with the packet.
    pub hook: Option<Hook>,
}

impl Event {
    /// Whether this is of our own table.
    pub fn is_ours(&self) -> bool {
        self.table == TABLE
    }
}

/// What decided on a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The rule of this handle.
    Rule(u64),
    /// The end of a chain that is not a base chain.
    Return,
    /// The policy of the base chain.
    Policy,
}

/// What is done with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It ends here.
    Drop,
    /// It is done with this base chain.
    Accept,
    /// It goes on with the next rule.
    Continue,
    /// It goes on in this chain, and may come back.
    Jump(String),
    /// It goes on in this chain, and does not come back.
    Goto(String),
    /// It goes back to where it came from.
    Return,
    /// A program decides.
    Queue,
    /// Something keeps it.
    Stolen,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Drop => f.write_str("drop"),
            Self::Accept => f.write_str("accept"),
            Self::Continue => f.write_str("continue"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Return => f.write_str("return"),
            Self::Queue => f.write_str("queue"),
            Self::Stolen => f.write_str("stolen"),
        }
    }
}

/// The packet as it was when it entered a base chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packet {
    /// The beginning of its network header.
    pub network: Vec<u8>,
    /// The beginning of its transport header.
    pub transport: Vec<u8>,
    /// The index of the link where it came in; 0 for none.
    pub input: u32,
    /// The index of the link where it goes out; 0 for none.
    pub output: u32,
}

/// A rule that a packet met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Met {
    /// The rule in words, as far as there are any.
    pub words: String,
    /// What its author wrote about it.
    pub comment: Option<String>,
    /// Whose it says that it is.
    pub owner: Option<Claim>,
}

impl Tracer {
    /// Begins to follow the first packet that is like one of `wanted`.
    ///
    /// # Errors
    /// When the kernel cannot: it needs Linux 5.12.
    pub fn start(wanted: &[Wanted]) -> Result<Self> {
        let notices = Socket::open()?;
        notices.join(GROUP)?;
        let tables = Socket::open_to_close()?;
        let mut doubts = Vec::new();
        for family in FAMILIES {
            let changes = changes(family, wanted);
            let Err(refused) = tables.batch(NetfilterSubsystem::NfTables, None, changes)? else {
                continue;
            };
            let error = anyhow::Error::new(refused.cause);
            // Frames between the ports of a bridge: not every kernel has that.
            if family == Family::Bridge && is_absent(&error) {
                doubts.push(format!("the rules of bridges: {error:#}"));
                continue;
            }
            return Err(error).with_context(|| {
                format!(
                    "make table {family} {TABLE}, which the kernel removes by itself (Linux 5.12 \
                     and root are needed, and no other cnitool trace at the same time)"
                )
            });
        }
        let mut hooks = Vec::new();
        for family in [Family::Bridge, Family::Inet, Family::Ip, Family::Ip6] {
            for chain in base_chains(&notices, family)? {
                let number = usize::try_from(chain.hook)?;
                if let Some(hook) = Hook::ALL.get(number) {
                    hooks.push((family, chain.place.table, chain.place.chain, *hook));
                }
            }
        }
        Ok(Self {
            tables,
            notices,
            hooks,
            doubts,
        })
    }

    /// What has happened to the packet since, waiting for something at most `patience`.
    ///
    /// # Errors
    /// When the kernel cannot be heard.
    pub fn events(&self, patience: Duration) -> Result<Vec<Event>> {
        let heard = self.notices.notices(patience)?;
        let events = heard.iter().filter_map(parse);
        Ok(events
            .map(|mut event| {
                let is_here = |(family, table, chain, _): &&(Family, String, String, Hook)| {
                    (*family, table, chain) == (event.family, &event.table, &event.chain)
                };
                event.hook = self.hooks.iter().find(is_here).map(|place| place.3);
                event
            })
            .collect())
    }

    /// The rule of this handle; `None` when it is gone.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn rule(&self, event: &Event, handle: u64) -> Result<Option<Met>> {
        let message = NfTablesMessage::GetRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(event.table.clone()),
                RuleAttribute::Chain(event.chain.clone()),
                RuleAttribute::Handle(handle),
            ],
        });
        let answers = match self.tables.request(with_family(event.family, message)) {
            Err(error) if is_absent(&error) => return Ok(None),
            answers => answers.with_context(|| format!("look at the rule of handle {handle}"))?,
        };
        Ok(answers.first().map(|answer| {
            let found = Found::parse(event.family, answer);
            let comment = found.any_comment();
            Met {
                words: found.words(),
                owner: comment.as_deref().and_then(|c| claim(c, found.tag)),
                comment,
            }
        }))
    }
}

/// Whose a rule is that has this comment, whichever backend made it.
fn claim(comment: &str, tag: Option<Tag>) -> Option<Claim> {
    let of_id = |id: &str, ifname: Option<&str>| Claim {
        container_id: Some(id.to_owned()),
        ifname: ifname.map(str::to_owned),
        tag,
        ..Claim::default()
    };
    let spoof_check = || {
        let (id, ifname) = comment.strip_prefix("macspoofchk-")?.rsplit_once('-')?;
        Some(of_id(id, Some(ifname)))
    };
    crate::netfilter::nftables::listing::masquerade_claim(comment)
        .or_else(|| iptables::listing::claim_in(comment))
        .or_else(spoof_check)
        // The comment of a port mapping is the bare id.
        .or_else(|| tag.map(|_| of_id(comment, None)))
}

/// What makes the table of `family`: a table with an owner, the chains that choose the
/// packets, and one at the end of each hook.
fn changes(family: Family, wanted: &[Wanted]) -> Vec<(NetfilterMessage, u16)> {
    let table = Table::named(family, TABLE);
    let new_table = NfTablesMessage::NewTable(TableMessage {
        attributes: vec![
            TableAttribute::Name(TABLE.to_owned()),
            TableAttribute::Flags(TableFlags::Owner),
        ],
    });
    let mut changes = vec![(with_family(family, new_table), NLM_F_CREATE)];
    let mut add_chain = |name: &str, hook: Hook, priority: i32| {
        let message = NfTablesMessage::NewChain(ChainMessage {
            attributes: vec![
                ChainAttribute::Table(TABLE.to_owned()),
                ChainAttribute::Name(name.to_owned()),
                ChainAttribute::Type("filter".to_owned()),
                ChainAttribute::Hook(vec![
                    HookAttribute::Number(hook.number().into()),
                    HookAttribute::Priority(priority.cast_unsigned()),
                ]),
            ],
        });
        changes.push((with_family(family, message), NLM_F_CREATE));
    };
    for hook in Hook::ALL {
        add_chain(hook.as_str(), hook, i32::MAX);
    }
    for hook in [Hook::Prerouting, Hook::Output] {
        add_chain(&first_chain(hook), hook, FIRST);
    }
    for hook in [Hook::Prerouting, Hook::Output] {
        for packet in wanted {
            let mut attributes = rule_place(&table, &first_chain(hook));
            attributes.push(expressions(choose(family, packet).finish()));
            let message = NfTablesMessage::NewRule(RuleMessage { attributes });
            changes.push((with_family(family, message), NLM_F_CREATE | NLM_F_APPEND));
        }
    }
    changes
}

fn first_chain(hook: Hook) -> String {
    format!("{}-first", hook.as_str())
}

/// `ip saddr … ip daddr … tcp dport … limit rate 1/day burst 1 packets meta nftrace set 1`
fn choose(family: Family, wanted: &Wanted) -> Encoder {
    /// Where a TCP header has its flags, which of them tell the first packet of a
    /// connection from its answer, and where the type of an ICMP message is.
    const TCP_FLAGS: u32 = 13;
    const SYN_AND_ACK: u8 = 0x12;
    const SYN: u8 = 0x02;
    const ICMP_TYPE: u32 = 0;
    let mut rule = Encoder::new(family);
    let destination = wanted.destination;
    let is_ipv4 = destination.is_ipv4();
    if family == Family::Bridge {
        let kind: u16 = if is_ipv4 { 0x0800 } else { 0x86dd };
        rule.meta(MetaKey::EtherTypeProtocol);
        rule.compare(true, &kind.to_be_bytes());
        rule.network = Some(family_of(destination));
    }
    let ends = [
        (End::Source, wanted.source),
        (End::Destination, Some(destination)),
    ];
    for (end, address) in ends {
        if let Some(address) = address {
            rule.add(&Statement::Address {
                end,
                is: true,
                net: address.into(),
            });
        }
    }
    if let Some((protocol, port)) = wanted.port {
        rule.add(&Statement::Port { protocol, port });
        if protocol == Protocol::Tcp {
            rule.payload(TRANSPORT_HEADER, TCP_FLAGS, 1);
            rule.mask(&[SYN_AND_ACK]);
            rule.compare(true, &[SYN]);
        }
    } else {
        let (protocol, echo_request) = if is_ipv4 { (1, 8) } else { (58, 128) };
        rule.meta(MetaKey::L4Proto);
        rule.compare(true, &[protocol]);
        rule.payload(TRANSPORT_HEADER, ICMP_TYPE, 1);
        rule.compare(true, &[echo_request]);
    }
    // `NFTA_LIMIT_RATE`, `UNIT` in seconds and `BURST`: the first packet only.
    let day: u64 = 24 * 60 * 60;
    rule.expression("limit", |limit| {
        limit.bytes(1, &1_u64.to_be_bytes());
        limit.bytes(2, &day.to_be_bytes());
        limit.number(3, 1);
    });
    rule.set_meta(MetaKey::NftraceBit, &[1]);
    rule
}

/// The event that the kernel tells (`enum nft_trace_attributes`); `None` for what is none,
/// or is of a family that is not looked at.
fn parse(notice: &Notice) -> Option<Event> {
    const TABLE_NAME: u16 = 1;
    const CHAIN: u16 = 2;
    const RULE_HANDLE: u16 = 3;
    const TYPE: u16 = 4;
    const VERDICT: u16 = 5;
    const NETWORK_HEADER: u16 = 8;
    const TRANSPORT_HEADER: u16 = 9;
    const INPUT: u16 = 10;
    const OUTPUT: u16 = 12;
    const POLICY: u16 = 16;
    if notice.kind != TRACE {
        return None;
    }
    let family = match notice.family {
        1 => Family::Inet,
        2 => Family::Ip,
        7 => Family::Bridge,
        10 => Family::Ip6,
        _ => return None,
    };
    let (mut table, mut chain) = (String::new(), String::new());
    let (mut kind, mut handle, mut verdict, mut policy) = (0, 0, None, None);
    let (mut packet, mut has_packet) = (Packet::default(), false);
    let number = |value: &[u8]| value.try_into().map_or(0, u32::from_be_bytes);
    for (name, value) in attributes(&notice.attributes) {
        match name {
            TABLE_NAME => table = text(value),
            CHAIN => chain = text(value),
            RULE_HANDLE => handle = value.try_into().map_or(0, u64::from_be_bytes),
            TYPE => kind = number(value),
            VERDICT => verdict = parse_verdict(value),
            POLICY => policy = Some(decided(number(value))),
            NETWORK_HEADER => {
                has_packet = true;
                packet.network = value.to_vec();
            }
            TRANSPORT_HEADER => packet.transport = value.to_vec(),
            INPUT => packet.input = number(value),
            OUTPUT => packet.output = number(value),
            _ => {}
        }
    }
    // `enum nft_trace_types`
    let (cause, verdict) = match kind {
        1 => (Cause::Policy, policy?),
        2 => (Cause::Return, verdict?),
        3 => (Cause::Rule(handle), verdict?),
        _ => return None,
    };
    Some(Event {
        family,
        table,
        chain,
        cause,
        verdict,
        packet: has_packet.then_some(packet),
        hook: None,
    })
}

fn parse_verdict(value: &[u8]) -> Option<Verdict> {
    let code = u32::from_be_bytes(attribute(value, 1)?.try_into().ok()?);
    let chain = || attribute(value, 2).map(text).unwrap_or_default();
    Some(match code.cast_signed() {
        -1 | -2 => Verdict::Continue,
        -3 => Verdict::Jump(chain()),
        -4 => Verdict::Goto(chain()),
        -5 => Verdict::Return,
        _ => decided(code),
    })
}

/// One of the kernel's own verdicts (`linux/netfilter.h`): more is said in the upper bits.
fn decided(code: u32) -> Verdict {
    match code & 0xff {
        0 => Verdict::Drop,
        2 => Verdict::Stolen,
        3 => Verdict::Queue,
        _ => Verdict::Accept,
    }
}
