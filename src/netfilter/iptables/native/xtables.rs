//! The words of iptables as the kernel's expressions: what its tools of the nft variant make
//! of a rule, and read as the same rule again.
//!
//! Every version of them since 1.8.2 reads a match or target of the kernel's old packet filter
//! (`match` and `target`, with data laid out as in `linux/netfilter/xt_*.h`), but takes the
//! data for those of the newest revision that it and the kernel know. So these are the ones
//! used here; a kernel without one of them, before 4.18, refuses the rule.

use std::borrow::Cow;
use std::net::SocketAddr;

use ipnet::IpNet;
use netlink_packet_core::NlasIterator;
use netlink_packet_netfilter::nftables::MetaKey;

use crate::netfilter::model::Protocol;
use crate::netfilter::nf_tables::among::End;
use crate::netfilter::nf_tables::encode::{
    DESTINATION_PORT, Encoder, NETWORK_HEADER, TRANSPORT_HEADER, address_place, octets,
};
use crate::netfilter::nf_tables::message::EXPRESSIONS;
use crate::netfilter::nf_tables::rule::Statement;
use crate::netfilter::nf_tables::ruleset::Family;
use crate::netfilter::nfnetlink::attributes::Attributes;
use crate::netfilter::nfnetlink::socket::{attribute, attributes};

/// What tools of different age make of the same words. All read the older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Before 1.8.7: addresses are compared under a mask, ports and marks by a `match`.
    Old,
    /// From 1.8.8 on: those that the kernel has expressions for are compared by these.
    New,
}

/// What data of matches and targets are filled up to (`XT_ALIGN`).
const ALIGNMENT: usize = 8;

/// The longest data of a match or target: a `struct xt_sctp_info`.
const LONGEST: usize = 296;

/// Adds the attributes of a rule in a table of `family` that has these `words`, in the order of
/// `iptables-save`, to the `list`, which says where it is; `None` where one of the words is not
/// known here.
pub fn encode(
    list: &mut Attributes,
    family: Family,
    words: &[Cow<'static, str>],
    style: Style,
) -> Option<()> {
    /// `NFTA_RULE_COMPAT`: what matches and targets may rely on.
    const COMPAT: u16 = 5;
    const PROTOCOL: u16 = 1;
    const FLAGS: u16 = 2;
    let mut protocol = None;
    list.nest(EXPRESSIONS, |list| {
        let mut rule = Rule {
            encoder: Encoder::behind(family, std::mem::take(list)),
            family,
            style,
        };
        protocol = rule.add(words);
        *list = rule.encoder.into_list();
    });
    let protocol = protocol?;
    list.nest(COMPAT, |list| {
        list.number(PROTOCOL, protocol.into());
        list.number(FLAGS, 0);
    });
    Some(())
}

/// The expressions alone.
pub fn expressions(family: Family, words: &[Cow<'static, str>], style: Style) -> Option<Vec<u8>> {
    let mut made = Attributes::default();
    encode(&mut made, family, words, style)?;
    attribute(&made.finish(), EXPRESSIONS).map(<[u8]>::to_vec)
}

/// One in the making.
struct Rule {
    encoder: Encoder,
    family: Family,
    style: Style,
}

impl Rule {
    /// Adds all `words`. Answers the number of the protocol that they are about; 0 is any.
    fn add(&mut self, words: &[Cow<'static, str>]) -> Option<u8> {
        let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
        let protocol = match words.iter().position(|word| *word == "-p") {
            Some(at) => Some(Protocol::named(words.get(at + 1)?)?),
            None => None,
        };
        if let Some(protocol) = protocol {
            self.encoder.meta(MetaKey::L4Proto);
            self.encoder.compare(true, &[protocol.number()]);
        }
        let mut rest = words.as_slice();
        while let [word, value, behind @ ..] = rest {
            rest = match (*word, *value, behind) {
                ("-p", _, behind) => behind,
                ("-s", net, behind) => {
                    self.address(End::Source, true, net)?;
                    behind
                }
                ("-d", net, behind) => {
                    self.address(End::Destination, true, net)?;
                    behind
                }
                ("!", "-d", [net, behind @ ..]) => {
                    self.address(End::Destination, false, net)?;
                    behind
                }
                ("-m", "comment", ["--comment", text, behind @ ..]) => {
                    self.comment(text)?;
                    behind
                }
                ("-m", "multiport", ["--dports", ports, behind @ ..]) => {
                    self.ports(ports)?;
                    behind
                }
                ("-m", "addrtype", ["--dst-type", "LOCAL", behind @ ..]) => {
                    self.local();
                    behind
                }
                ("-m", "conntrack", ["--ctstate", "RELATED,ESTABLISHED", behind @ ..]) => {
                    self.answers();
                    behind
                }
                ("-m", "mark", ["--mark", mark, behind @ ..]) => {
                    self.mark(mark)?;
                    behind
                }
                ("-m", name, ["--dport", port, behind @ ..]) => {
                    let of_rule = protocol.filter(|protocol| protocol.as_str() == name);
                    self.port(of_rule?, port.parse().ok()?);
                    behind
                }
                ("-j", target, options) => {
                    self.target(target, options)?;
                    return Some(protocol.map_or(0, Protocol::number));
                }
                _ => return None,
            };
        }
        None
    }

    fn address(&mut self, end: End, is: bool, word: &str) -> Option<()> {
        let net: IpNet = word.parse().ok()?;
        let (offset, length) = address_place(self.family, end);
        let address = octets(net.addr());
        // Of the other family, or not as `iptables-save` prints it.
        let is_usual = address.len() == usize::try_from(length).ok()?
            && net == net.trunc()
            && net.prefix_len() > 0;
        if !is_usual {
            return None;
        }
        if self.style == Style::New || net.prefix_len() == net.max_prefix_len() {
            let statement = Statement::Address { end, is, net };
            self.encoder.add(&statement);
        } else {
            self.encoder.payload(NETWORK_HEADER, offset, length);
            self.encoder.mask(&octets(net.netmask()));
            self.encoder.compare(is, &address);
        }
        Some(())
    }

    fn comment(&mut self, text: &str) -> Option<()> {
        /// `struct xt_comment_info`: a text and the zero byte behind it.
        const LENGTH: usize = 256;
        (text.len() < LENGTH).then(|| self.xt(MATCH, "comment", 0, LENGTH, &[(0, text.as_bytes())]))
    }

    /// One of several destination ports.
    fn ports(&mut self, list: &str) -> Option<()> {
        let ports: Result<Vec<u16>, _> = list.split(',').map(str::parse).collect();
        let ports = ports.ok().filter(|ports| ports.len() <= MULTIPORT_PORTS)?;
        let count = u8::try_from(ports.len()).ok()?;
        let bytes: Vec<u8> = ports.into_iter().flat_map(u16::to_ne_bytes).collect();
        let head = [MULTIPORT_DESTINATION, count];
        self.xt(MATCH, "multiport", 1, 48, &[(0, &head), (2, &bytes)]);
        Some(())
    }

    /// The destination is an address of this host.
    fn local(&mut self) {
        /// `XT_ADDRTYPE_LOCAL`, in the second number of `struct xt_addrtype_info_v1`.
        const LOCAL: u16 = 1 << 2;
        self.xt(MATCH, "addrtype", 1, 8, &[(2, &LOCAL.to_ne_bytes())]);
    }

    /// The packet is of a connection that there is, or that one expects.
    fn answers(&mut self) {
        /// `XT_CONNTRACK_STATE`, in `match_flags` of a `struct xt_conntrack_mtinfo3`; and in its
        /// `state_mask` the bits of `IP_CT_ESTABLISHED` and `IP_CT_RELATED`.
        const STATE: u16 = 1;
        const ANSWERS: u16 = 1 << 1 | 1 << 2;
        let (flags, states) = (STATE.to_ne_bytes(), ANSWERS.to_ne_bytes());
        self.xt(MATCH, "conntrack", 3, 168, &[(146, &flags), (150, &states)]);
    }

    fn mark(&mut self, word: &str) -> Option<()> {
        let [mark, bits] = masked(word)?;
        if self.style == Style::New {
            self.encoder.meta(MetaKey::Mark);
            self.encoder.mask(&bits);
            self.encoder.compare(true, &mark);
        } else {
            // `struct xt_mark_mtinfo1`.
            self.xt(MATCH, "mark", 1, 16, &[(0, &mark), (4, &bits)]);
        }
        Some(())
    }

    /// The destination port of `protocol`, for which the rule asked before.
    fn port(&mut self, protocol: Protocol, port: u16) {
        let range = [port.to_ne_bytes(), port.to_ne_bytes()].concat();
        match protocol {
            Protocol::Sctp => {
                // `struct xt_sctp_info`: the destination ports come first; no chunk is asked
                // for, which is not zero; and the flags say that the ports are.
                const NO_CHUNKS: [u8; 12] = [255, 0, 0, 255, 0, 0, 255, 0, 0, 255, 0, 0];
                const DESTINATION: u32 = 2;
                let flags = DESTINATION.to_ne_bytes();
                let parts: [(usize, &[u8]); 3] = [(0, &range), (268, &NO_CHUNKS), (284, &flags)];
                self.xt(MATCH, "sctp", 0, 296, &parts);
            }
            Protocol::Tcp | Protocol::Udp if self.style == Style::New => {
                self.encoder.payload(TRANSPORT_HEADER, DESTINATION_PORT, 2);
                self.encoder.compare(true, &port.to_be_bytes());
            }
            Protocol::Tcp | Protocol::Udp => {
                // `struct xt_tcp` and `struct xt_udp`: any source port, this destination.
                let any = [0, 0, 255, 255];
                let parts: [(usize, &[u8]); 2] = [(0, &any), (4, &range)];
                self.xt(MATCH, protocol.as_str(), 0, 16, &parts);
            }
        }
    }

    /// What is done, and counted.
    fn target(&mut self, name: &str, options: &[&str]) -> Option<()> {
        self.encoder.expression(COUNTER, |counter| {
            counter.bytes(1, &[0; 8]);
            counter.bytes(2, &[0; 8]);
        });
        match (name, options) {
            ("ACCEPT", []) => self.encoder.add(&Statement::Accept),
            ("MASQUERADE", []) if self.family == Family::Ip => {
                // `struct nf_nat_ipv4_multi_range_compat`: of how many ranges.
                self.xt(TARGET, "MASQUERADE", 0, 24, &[(0, &1_u32.to_ne_bytes())]);
            }
            // `struct nf_nat_range`.
            ("MASQUERADE", []) => self.xt(TARGET, "MASQUERADE", 0, 40, &[]),
            ("MARK", ["--set-xmark", word]) => {
                // `struct xt_mark_tginfo2`.
                let [mark, bits] = masked(word)?;
                self.xt(TARGET, "MARK", 2, 8, &[(0, &mark), (4, &bits)]);
            }
            ("DNAT", ["--to-destination", to]) => self.destination(to.parse().ok()?),
            // Of other names some are targets.
            (chain, []) if chain.starts_with("CNI-") => {
                let statement = Statement::Jump(chain.to_owned().into());
                self.encoder.add(&statement);
            }
            _ => return None,
        }
        Some(())
    }

    fn destination(&mut self, to: SocketAddr) {
        /// `NF_NAT_RANGE_MAP_IPS` and `NF_NAT_RANGE_PROTO_SPECIFIED`.
        const FLAGS: u32 = 1 | 2;
        let address = octets(to.ip());
        let (flags, port) = (FLAGS.to_ne_bytes(), to.port().to_be_bytes());
        // `struct nf_nat_range2`: the first and last address, and port.
        let parts: [(usize, &[u8]); 5] = [
            (0, &flags),
            (4, &address),
            (20, &address),
            (36, &port),
            (38, &port),
        ];
        self.xt(TARGET, "DNAT", 2, 48, &parts);
    }

    /// A match or a target, with data of `length` that are zero but for `parts`.
    fn xt(&mut self, kind: &str, name: &str, rev: u32, length: usize, parts: &[(usize, &[u8])]) {
        debug_assert!(length.is_multiple_of(ALIGNMENT), "{name}");
        let mut info = [0; LONGEST];
        for (at, bytes) in parts {
            if let Some(place) = info.get_mut(*at..*at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
        let info = info.get(..length).unwrap_or(&info);
        self.encoder.expression(kind, |data| {
            data.text(XT_NAME, name);
            data.number(XT_REVISION, rev);
            data.bytes(XT_INFO, info);
        });
    }
}

/// The names of expressions.
const MATCH: &str = "match";
const TARGET: &str = "target";
const COUNTER: &str = "counter";

/// `NFTA_MATCH_NAME`, `NFTA_MATCH_REV` and `NFTA_MATCH_INFO`; the same for targets.
const XT_NAME: u16 = 1;
const XT_REVISION: u16 = 2;
const XT_INFO: u16 = 3;

/// `XT_MULTIPORT_DESTINATION`, and how many ports a `struct xt_multiport_v1` has room for.
const MULTIPORT_DESTINATION: u8 = 1;
const MULTIPORT_PORTS: usize = 15;

/// `0x2000/0x2000`: a mark and its mask, as the kernel has them.
fn masked(word: &str) -> Option<[[u8; 4]; 2]> {
    let number = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let (mark, bits) = word.split_once('/')?;
    Some([number(mark)?.to_ne_bytes(), number(bits)?.to_ne_bytes()])
}

/// Whether a rule that was `found` is the one that was `made`, whatever it has counted.
pub fn is_same(found: &[u8], made: &[u8]) -> bool {
    let parts = |list| {
        let parts = attributes(list).map(|(_, expression)| expression);
        parts.filter(|expression| name_of(expression) != Some(COUNTER.as_bytes()))
    };
    parts(found).count() == parts(made).count()
        && parts(found)
            .zip(parts(made))
            .all(|(found, made)| covers(found, made))
}

/// Whether `found` has all attributes that were `made`. The kernel adds those that have a
/// default.
fn covers(found: &[u8], made: &[u8]) -> bool {
    NlasIterator::new(made).map_while(Result::ok).all(|wanted| {
        let value = wanted.value();
        attribute(found, wanted.kind())
            .is_some_and(|found| found == value || wanted.nested_flag() && covers(found, value))
    })
}

/// The name of an expression, without the zero byte.
fn name_of(expression: &[u8]) -> Option<&[u8]> {
    attribute(expression, 1)?.strip_suffix(&[0])
}

/// The ports that a rule asks for with the match `multiport`, and their protocol: `None`
/// where that is not told in a way that is known here. Other rules have none.
pub fn listed_ports(expressions: &[u8]) -> Option<Vec<(Protocol, u16)>> {
    let l4proto = u32::from(MetaKey::L4Proto).to_be_bytes();
    let (mut is_loaded, mut protocol) = (false, None);
    for (_, expression) in attributes(expressions) {
        let data = attribute(expression, 2).unwrap_or_default();
        match name_of(expression)? {
            b"meta" => {
                is_loaded = attribute(data, 2) == Some(&l4proto);
            }
            b"cmp" if is_loaded => {
                protocol = match attribute(attribute(data, 3)?, 1)? {
                    [number] => Protocol::numbered(*number),
                    _ => None,
                };
                is_loaded = false;
            }
            b"match" if attribute(data, XT_NAME) == Some(b"multiport\0") => {
                let info = attribute(data, XT_INFO)?;
                let [_, count, ports @ ..] = info else {
                    return None;
                };
                let ports = ports.chunks_exact(2).take((*count).into());
                let ports =
                    ports.filter_map(|port| Some(u16::from_ne_bytes(port.try_into().ok()?)));
                let protocol = protocol?;
                return Some(ports.map(|port| (protocol, port)).collect());
            }
            _ => {}
        }
    }
    Some(Vec::new())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use crate::netfilter::iptables::rule::Rule;

    /// Sent by iptables 1.8.9 on Linux 6.18: each rule, the attributes of its expressions, a
    /// line for each, and those that make old matches content.
    const CAPTURED: [(Family, &str); 2] = [
        (
            Family::Ip,
            include_str!("../../../../tests/golden/iptables/expressions-v4"),
        ),
        (
            Family::Ip6,
            include_str!("../../../../tests/golden/iptables/expressions-v6"),
        ),
    ];

    fn words(line: &str) -> Vec<Cow<'static, str>> {
        Rule::parse_counted(&format!("[0:0] {line}"))
            .unwrap()
            .1
            .args
    }

    /// In hexadecimal digits; `(16)` are that many zero bytes.
    fn hex(bytes: &[u8]) -> String {
        let mut text = String::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let zeros = rest.iter().take_while(|byte| **byte == 0).count();
            let (part, behind) = rest.split_at(zeros.max(1));
            if zeros < 16 {
                for byte in part {
                    write!(text, "{byte:02x}").unwrap();
                }
            } else {
                write!(text, "({zeros})").unwrap();
            }
            rest = behind;
        }
        text
    }

    /// The expressions, each with its header.
    fn split(mut list: &[u8]) -> Vec<&[u8]> {
        let mut parts = Vec::new();
        while let [low, high, ..] = list {
            let length = usize::from(u16::from_ne_bytes([*low, *high])).next_multiple_of(4);
            let (part, rest) = list.split_at(length);
            parts.push(part);
            list = rest;
        }
        parts
    }

    #[test]
    fn rules_are_those_of_iptables() {
        for (family, captured) in CAPTURED {
            let mut made = String::new();
            for line in captured.lines().filter(|line| line.starts_with("-A ")) {
                let mut rule = Attributes::default();
                encode(&mut rule, family, &words(line), Style::New).unwrap();
                let rule = rule.finish();
                writeln!(made, "{line}").unwrap();
                for expression in split(attribute(&rule, EXPRESSIONS).unwrap()) {
                    writeln!(made, "    {}", hex(expression)).unwrap();
                }
                writeln!(made, "    compat {}", hex(attribute(&rule, 5).unwrap())).unwrap();
            }
            assert_eq!(made, captured);
        }
    }
}
