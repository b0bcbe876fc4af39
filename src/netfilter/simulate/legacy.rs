//! All tables of iptables-legacy, as far as they decide on packets.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::net::link::Link;
use crate::netfilter::iptables::Iptables;
use crate::netfilter::iptables::rule::{Rule, Table};
use crate::netfilter::iptables::tool::{FAMILIES, Variant};
use crate::netfilter::nf_tables::ruleset::Family;
use crate::netfilter::simulate::chain::{Base, Body, Chain, find};
use crate::netfilter::simulate::evaluate::target_verdict;
use crate::netfilter::simulate::packet::{
    FORWARD, Hook, INPUT, OUTPUT, POSTROUTING, PREROUTING, Packet, Target, Verdict,
};

/// The chains that the kernel enters by itself.
const HOOKS: [(&str, u32); 5] = [
    ("PREROUTING", PREROUTING),
    ("INPUT", INPUT),
    ("FORWARD", FORWARD),
    ("OUTPUT", OUTPUT),
    ("POSTROUTING", POSTROUTING),
];

/// The tables, with the priority of their chains (`enum nf_ip_hook_priorities`); those of
/// `nat` before and behind the way are not of the same.
pub const TABLES: [(&str, i32); 5] = [
    ("raw", -300),
    ("mangle", -150),
    ("nat", -100),
    ("filter", 0),
    ("security", 50),
];

/// Whether iptables, of either variant, enters chains of this name.
pub fn is_built_in(chain: &str) -> bool {
    HOOKS.iter().any(|(name, _)| *name == chain)
}

/// The chains of each family that this thread's namespace has, with the tool that changes
/// them. Why they cannot be told is added to `doubts`.
pub fn chains(doubts: &mut Vec<String>) -> Vec<(Family, &'static str, Vec<Chain>)> {
    let mut found = Vec::new();
    for family in FAMILIES {
        if family.legacy_tables().is_empty() {
            continue;
        }
        let name = if family.command() == "iptables" {
            "iptables-legacy"
        } else {
            "ip6tables-legacy"
        };
        let tools = Iptables::from_environment();
        let variants = [Variant::Legacy, Variant::Unknown].into_iter();
        let mut tools = variants.filter_map(|variant| tools.tool(family, variant));
        let Some(tool) = tools.find(|tool| tool.variant == Variant::Legacy) else {
            doubts.push(format!(
                "find {name}-save in PATH, to see what the tables of {name} do"
            ));
            continue;
        };
        match tool.text() {
            Ok(text) => found.push((family.nft(), name, parse(&text))),
            Err(error) => doubts.push(format!("{error:#}")),
        }
    }
    found
}

/// Reads what `iptables-legacy-save` prints.
fn parse(text: &str) -> Vec<Chain> {
    let mut chains: Vec<Chain> = Vec::new();
    let mut table = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(line) = line.strip_prefix(':') {
            let mut words = line.split_ascii_whitespace();
            let (name, policy) = (words.next().unwrap_or_default(), words.next());
            chains.push(Chain {
                table: table.to_owned(),
                name: name.to_owned(),
                base: base(table, name),
                drops: policy == Some("DROP"),
                rules: Vec::new(),
            });
        } else if let Some(rule) = Table::parse(line).rules.pop()
            && let mut own = chains.iter_mut().rev().filter(|chain| chain.table == table)
            && let Some(chain) = own.find(|chain| chain.name == rule.chain)
        {
            let number = chain.rules.len() as u64 + 1;
            chain.rules.push((number, Body::Words(rule)));
        }
    }
    chains
}

fn base(table: &str, name: &str) -> Option<Base> {
    let (_, hook) = HOOKS.iter().find(|(known, _)| *known == name)?;
    let (_, priority) = TABLES.iter().find(|(known, _)| *known == table)?;
    let is_nat = table == "nat";
    let is_behind = is_nat && [INPUT, POSTROUTING].contains(hook);
    Some(Base {
        hook: Hook::Packet(*hook),
        priority: if is_behind { 100 } else { *priority },
        is_nat,
        devices: Vec::new(),
    })
}

/// Whether a packet meets the rule of `table`, if that is known, and what the rule does then.
pub fn evaluate(
    rule: &Rule,
    table: &str,
    packet: &mut Packet<'_>,
    chains: &[Chain],
) -> (Option<bool>, Verdict) {
    let mut matches = Some(true);
    let mut is_inverted = false;
    let end = rule
        .args
        .iter()
        .position(|word| word == "-j" || word == "-g");
    let end = end.unwrap_or(rule.args.len());
    let mut words = rule
        .args
        .iter()
        .take(end)
        .map(|word| -> &str { word })
        .peekable();
    while let Some(word) = words.next() {
        if !word.starts_with('-') {
            // Or a further value of what is not known.
            is_inverted = word == "!";
            continue;
        }
        // Some have none; a comment may begin with anything.
        let value = words.next_if(|next| word == "--comment" || !next.starts_with(['-', '!']));
        let met = is_met(word, value.unwrap_or_default(), packet);
        match met.map(|met| met != is_inverted) {
            Some(true) => {}
            Some(false) => return (Some(false), Verdict::None),
            None => matches = None,
        }
        is_inverted = false;
    }
    let (how, target) = (rule.args.get(end), rule.args.get(end + 1));
    let Some(target) = target.map(AsRef::as_ref) else {
        return (matches, Verdict::None);
    };
    if find(chains, table, target).is_some() {
        let target = target.to_owned();
        let is_goto = how.is_some_and(|how| how == "-g");
        let verdict = if is_goto {
            Verdict::Goto(target)
        } else {
            Verdict::Jump(target)
        };
        return (matches, verdict);
    }
    let to = ["--to-destination", "--to-source"].into_iter();
    let to = to
        .filter_map(|option| rule.value(option))
        .find_map(translation);
    match target_verdict(target, to.unwrap_or(Target::Unknown), packet) {
        Some(verdict) => (matches, verdict),
        None => (None, Verdict::Accept),
    }
}

/// Whether the packet is as an option says, if that is known.
fn is_met(option: &str, value: &str, packet: &Packet<'_>) -> Option<bool> {
    match option {
        "-m" | "--comment" => Some(true),
        "-s" => contains(value, packet.source),
        "-d" => contains(value, packet.destination),
        "-i" => is_called(packet.input, value),
        "-o" => is_called(packet.output, value),
        "-p" => packet.port.map(|(protocol, _)| {
            value == protocol.as_str() || value == protocol.number().to_string()
        }),
        "--dport" | "--dports" => {
            let (_, port) = packet.port?;
            Some(value.split(',').any(|range| is_in(range, port)))
        }
        "--ctstate" | "--state" if packet.is_tracked => {
            let is_new = value.split(',').any(|state| state == "NEW");
            // SNAT and DNAT are states that it may have, too.
            Some(is_new).filter(|is_new| *is_new || !value.contains("NAT"))
        }
        "--dst-type" => {
            let own = if packet.is_local() {
                "LOCAL"
            } else {
                "UNICAST"
            };
            Some(value.split(',').any(|kind| kind == own))
        }
        "--mark" => {
            let number = |text: &str| u32::from_str_radix(text.trim_start_matches("0x"), 16).ok();
            let (wanted, mask) = value.split_once('/').unwrap_or((value, "ffffffff"));
            Some(packet.mark? & number(mask)? == number(wanted)?)
        }
        _ => None,
    }
}

/// `10.9.0.2:80` or an address alone; of several addresses or ports none is certain.
fn translation(text: &str) -> Option<Target> {
    let whole = text.parse::<SocketAddr>();
    let whole = whole.map(|to| Target::Address(to.ip(), Some(to.port())));
    let alone = || Some(Target::Address(text.parse().ok()?, None));
    whole.ok().or_else(alone)
}

fn contains(net: &str, ip: IpAddr) -> Option<bool> {
    let net: IpNet = net.parse().ok()?;
    Some(net.contains(&ip))
}

/// A name that ends with + is the start of one.
fn is_called(link: Option<&Link>, name: &str) -> Option<bool> {
    let link = &link?.name;
    Some(match name.strip_suffix('+') {
        Some(start) => link.starts_with(start),
        None => link == name,
    })
}

/// `80` or `8000:8080`.
fn is_in(range: &str, port: u16) -> bool {
    let (from, to) = range.split_once(':').unwrap_or((range, range));
    let bound = |text: &str, open| text.parse().unwrap_or(open);
    (bound(from, 0)..=bound(to, u16::MAX)).contains(&port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::model::Protocol;

    #[test]
    fn rules_are_met_or_not_or_who_knows() {
        let table = parse("*filter\n:FORWARD DROP [0:0]\n:X - [0:0]\n-A X -p tcp\nCOMMIT\n");
        assert_eq!(table.iter().filter(|chain| chain.drops).count(), 1);
        let [from, to] = ["10.9.0.2", "192.0.2.9"].map(|ip| ip.parse().unwrap());
        let mut packet = Packet::new(from, to, &[]);
        packet.port = Some((Protocol::Tcp, 80));
        for (line, met, does) in [
            ("-s 10.9.0.0/24 -j DROP", Some(true), "Drop"),
            ("! -s 10.9.0.0/24 -j DROP", Some(false), "None"),
            ("-i br1 -j DROP", None, "Drop"),
            (
                "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                Some(false),
                "None",
            ),
            (
                "-m conntrack ! --ctstate INVALID -j ACCEPT",
                Some(true),
                "Accept",
            ),
            (
                "-m conntrack --ctstate RELATED,DNAT -j ACCEPT",
                None,
                "Accept",
            ),
            (
                "-p tcp -m tcp --dport 79:81 -j X",
                Some(true),
                r#"Jump("X")"#,
            ),
            (
                "-p tcp -m multiport --dports 70,80 -g X",
                Some(true),
                r#"Goto("X")"#,
            ),
            ("-p udp -j X", Some(false), "None"),
            ("-m set --match-set s src -j Y", None, "Accept"),
            (
                "-m comment --comment \"-j b\" -j RETURN",
                Some(true),
                "Return",
            ),
            ("-m mark --mark 0x4000/0x4000 -j DROP", Some(false), "None"),
            ("-m addrtype --dst-type LOCAL -j DROP", Some(false), "None"),
            (
                "-j DNAT --to-destination 10.0.0.1:8",
                Some(true),
                "Translate(Address(10.0.0.1, Some(8)))",
            ),
            (
                "-j DNAT --to-destination 10.0.0.1-10.0.0.9",
                Some(true),
                "Translate(Unknown)",
            ),
            ("-j TPROXY --on-port 1", None, "Accept"),
            ("-j MARK --set-xmark 0x1/0x1", Some(true), "None"),
            ("-m mark --mark 0x1 -j DROP", None, "Drop"),
        ] {
            let rule = Table::parse(&format!("-A FORWARD {line}"))
                .rules
                .pop()
                .unwrap();
            let (found, verdict) = evaluate(&rule, "filter", &mut packet, &table);
            assert_eq!((found, &*format!("{verdict:?}")), (met, does), "{line}");
        }
    }
}
