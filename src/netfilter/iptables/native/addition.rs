//! A container's own chain added as the tools of iptables (nft variant) would, but without
//! them: a process of theirs reads the whole table for each change, and takes longer for the
//! text of a thousand ports than the kernel for the rules.
//!
//! Only the usual case is served: what containers share is there as the tools made it, and
//! nothing of this one. All else is theirs.

use anyhow::Result;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::NetfilterSubsystem;

use crate::netfilter::iptables::addition::Addition;
use crate::netfilter::iptables::native::port_reservations::Reservations;
use crate::netfilter::iptables::native::xtables::{
    Style, encode, expressions, is_same, listed_ports,
};
use crate::netfilter::iptables::rule::Rule;
use crate::netfilter::nf_tables::change::Change;
use crate::netfilter::nf_tables::encode::{IPV4, IPV6};
use crate::netfilter::nf_tables::found::rules;
use crate::netfilter::nf_tables::query::chain_use;
use crate::netfilter::nf_tables::ruleset::{Family, Table};
use crate::netfilter::nf_tables::transaction::FIRST_SET;
use crate::netfilter::nfnetlink::socket::{Batch, Socket};

/// The chain that has a rule for each container.
const CROWDED: &str = "POSTROUTING";

/// What has become of an addition.
#[derive(Debug)]
pub enum Added {
    /// Nothing: it is not the usual case.
    Nothing,
    /// It is there, and nobody had claimed any of its ports.
    Unopposed,
    /// It is there, and so were these rules, in words of iptables as far as they say whose ports
    /// they are.
    Beside(Vec<Rule>),
}

/// Adds it, in one transaction.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn make(addition: &Addition<'_>, family: Family) -> Result<Added> {
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(Added::Nothing);
    };
    let table = Table::named(family, "nat");
    let Some(style) = style(&addition.needed, &socket, &table)? else {
        return Ok(Added::Nothing);
    };
    let reservations = addition
        .ports
        .as_ref()
        .map(|ports| Reservations::new(family, ports));
    let creation = reservations.as_ref().map(Reservations::creation);
    // Refused where the chain is there, or one that a rule is for or leads to is not.
    let add = |first: &[Change]| match batch(addition, &table, style, first) {
        Some(batch) => Ok(socket.commit(batch)?.is_ok()),
        None => anyhow::Ok(false),
    };
    if add(&creation.unwrap_or_default())? {
        return Ok(Added::Unopposed);
    }
    // Or where somebody has one of the ports.
    let Some(ports) = &addition.ports else {
        return Ok(Added::Nothing);
    };
    match list(&socket, &table, ports.chain)? {
        Some(listed) if add(&[])? => Ok(Added::Beside(listed)),
        _ => Ok(Added::Nothing),
    }
}

/// How the tools that made the rules `needed` write them: `None` where one is missing.
fn style(needed: &[&Rule], socket: &Socket, table: &Table) -> Result<Option<Style>> {
    let mut style = Style::Old;
    for rule in needed {
        let is_there = if rule.chain == CROWDED {
            is_led_to(socket, table, rule)?
        } else {
            let [old, new] =
                [Style::Old, Style::New].map(|style| expressions(table.family, &rule.args, style));
            let found = rules(socket, table, Some(&rule.chain))?;
            let has = |made: &Option<Vec<u8>>| {
                let is_made =
                    |made: &Vec<u8>| found.iter().any(|rule| is_same(rule.expressions(), made));
                made.as_ref().is_some_and(is_made)
            };
            if new != old && has(&new) {
                style = Style::New;
            }
            has(&old) || has(&new)
        };
        if !is_there {
            return Ok(None);
        }
    }
    Ok(Some(style))
}

/// The changes behind those that come `first`, as the kernel takes them; `None` where a
/// word is not known.
fn batch(addition: &Addition<'_>, table: &Table, style: Style, first: &[Change]) -> Option<Batch> {
    const NEW_CHAIN: u8 = 3;
    /// `NFTA_CHAIN_NAME`.
    const NAME: u16 = 3;
    let mut batch = Batch::new(NetfilterSubsystem::NfTables);
    for change in first {
        batch.message(change.message(FIRST_SET));
    }
    let how = NLM_F_CREATE | NLM_F_EXCL;
    batch.add(NEW_CHAIN, how, number(table.family), |list| {
        list.text(TABLE, table.name);
        list.text(NAME, addition.chain);
        Some(())
    })?;
    let appended = addition.appended.iter().map(|rule| (rule, NLM_F_APPEND));
    let inserted = addition.inserted.iter().map(|rule| (rule, 0));
    for (rule, place) in appended.chain(inserted) {
        add_rule(&mut batch, table, rule, place, style)?;
    }
    Some(batch)
}

/// `NFTA_CHAIN_TABLE` and `NFTA_RULE_TABLE`.
const TABLE: u16 = 1;

/// Adds the making of `rule` to the batch, behind others with `NLM_F_APPEND` for its `place`;
/// `None` where a word is not known.
pub fn add_rule(
    batch: &mut Batch,
    table: &Table,
    rule: &Rule,
    place: u16,
    style: Style,
) -> Option<()> {
    const NEW_RULE: u8 = 6;
    /// `NFTA_RULE_CHAIN`.
    const CHAIN: u16 = 2;
    batch.add(
        NEW_RULE,
        NLM_F_CREATE | place,
        number(table.family),
        |list| {
            list.text(TABLE, table.name);
            list.text(CHAIN, &rule.chain);
            encode(list, table.family, &rule.args, style)
        },
    )
}

/// `NFPROTO_…` of one of the families of iptables.
fn number(family: Family) -> u8 {
    if family == Family::Ip { IPV4 } else { IPV6 }
}

/// The rules of `chain` in table `nat` that list ports, in words of iptables as far as they say
/// whose these are; `None` where one is not understood.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn entries(family: Family, chain: &str) -> Result<Option<Vec<Rule>>> {
    match Socket::open_if_any()? {
        Some(socket) => list(&socket, &Table::named(family, "nat"), chain),
        None => Ok(Some(Vec::new())),
    }
}

/// As [`entries`].
fn list(socket: &Socket, table: &Table, chain: &str) -> Result<Option<Vec<Rule>>> {
    let mut listed = Vec::new();
    for found in rules(socket, table, Some(chain))? {
        let Some(ports) = listed_ports(found.expressions()) else {
            return Ok(None);
        };
        if let [(protocol, _), ..] = ports.as_slice() {
            let ports: Vec<String> = ports.iter().map(|(_, port)| port.to_string()).collect();
            let comment = found.any_comment().unwrap_or_default();
            let words = ["-p", protocol.as_str(), "--comment", &comment, "--dports"];
            let ports = ports.join(",");
            listed.push(Rule::new(chain, words.iter().chain([&ports.as_str()])));
        }
    }
    Ok(Some(listed))
}

/// Whether something leads to the chain that `rule` jumps to. That it is this very rule is not
/// seen: the chain in which it stands has one for each container, and is not read.
fn is_led_to(socket: &Socket, table: &Table, rule: &Rule) -> Result<bool> {
    let Some(chain) = rule.jump() else {
        return Ok(false);
    };
    let used = chain_use(socket, table.family, table.name, chain)?.unwrap_or_default();
    let own = rules(socket, table, Some(chain))?.len();
    Ok(usize::try_from(used)? > own)
}

#[cfg(test)]
mod kernel_tests {
    use std::fmt::Write;

    use super::*;
    use crate::netfilter::test_node;

    const CHAIN: &str = "CNI-DN-01d424cb2a9303e21c6e9";

    /// What the first container on a host makes of either family.
    const BASE: &str = r#"*nat
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
COMMIT
"#;

    /// Rules of every kind: a container's mappings, and its masquerading.
    const RULES: [(Family, &str); 4] = [
        (
            Family::Ip,
            r#"-A CHAIN -s 10.9.0.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
-A CHAIN -s 127.0.0.1/32 -d 192.0.2.1/32 -p udp -m udp --dport 53 -j CNI-HOSTPORT-SETMARK
-A CHAIN -p tcp -m tcp --dport 65535 -j DNAT --to-destination 10.9.0.2:80
-A CHAIN -d 192.0.2.1/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.9.0.2:5353
-A CHAIN -p sctp -m sctp --dport 9000 -j DNAT --to-destination 10.9.0.2:90
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"net1\" id: \"cont1\"" -m multiport --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,65535 -j CHAIN
-A CNI-HOSTPORT-DNAT -p sctp -m comment --comment "dnat name: \"net1\" id: \"cont1\"" -m multiport --dports 9000 -j CHAIN
"#,
        ),
        (
            Family::Ip6,
            r#"-A CHAIN -s fd00:9::/64 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
-A CHAIN -d ::1/128 -p udp -m udp --dport 53 -j DNAT --to-destination [fd00:9::2]:5353
-A CHAIN -p sctp -m sctp --dport 9000 -j DNAT --to-destination [fd00:9::2]:90
-A CNI-HOSTPORT-DNAT -p udp -m comment --comment "dnat name: \"net1\" id: \"cont1\"" -m multiport --dports 53 -j CHAIN
"#,
        ),
        (
            Family::Ip,
            r#"-A CHAIN -d 10.0.0.0/13 -m comment --comment "name: \"net1\" id: \"cont1\"" -j ACCEPT
-A CHAIN ! -d 224.0.0.0/4 -m comment --comment "name: \"net1\" id: \"cont1\"" -j MASQUERADE
-A CHAIN -m mark --mark 0x1/0x80000001 -j MASQUERADE
-A CHAIN -j MARK --set-xmark 0x80000000/0x80000000
-A POSTROUTING -s 10.9.0.2/32 -m comment --comment "name: \"net1\" id: \"cont1\"" -j CHAIN
"#,
        ),
        (
            Family::Ip6,
            r#"-A CHAIN -d fd00:8::/61 -m comment --comment "name: \"net1\" id: \"cont1\"" -j ACCEPT
-A CHAIN ! -d ff00::/8 -m comment --comment "name: \"net1\" id: \"cont1\"" -j MASQUERADE
-A CHAIN -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A POSTROUTING -s fd00:9::2/128 -m comment --comment "name: \"net1\" id: \"cont1\"" -j CHAIN
"#,
        ),
    ];

    #[track_caller]
    fn tool(family: Family, tool: &str, stdin: &str) -> String {
        let command = if family == Family::Ip {
            "iptables"
        } else {
            "ip6tables"
        };
        let text = test_node::feed(&format!("/usr/sbin/{command}-nft{tool}"), stdin);
        // It says when that was.
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .fold(String::new(), |mut text, line| {
                writeln!(text, "{line}").unwrap();
                text
            })
    }

    /// The installed tool reads what tools of either age would have made, as what it would
    /// have made itself.
    #[test]
    fn rules_in_either_style_are_those_of_the_tools() {
        test_node::enter();
        for family in [Family::Ip, Family::Ip6] {
            tool(family, "-restore", BASE);
        }
        for (family, rules) in RULES {
            let rules = rules.replace("CHAIN", CHAIN);
            let parsed: Vec<Rule> = rules
                .lines()
                .map(|line| Rule::parse_counted(&format!("[0:0] {line}")).unwrap().1)
                .collect();
            let (entries, inside): (Vec<&Rule>, Vec<&Rule>) =
                parsed.iter().partition(|rule| rule.chain != CHAIN);
            let (old, new) = (tool(family, "-save -t nat", ""), "-restore --noflush");
            let by_tool = format!("*nat\n-N {CHAIN}\n{rules}COMMIT\n");
            tool(family, new, &by_tool);
            let expected = tool(family, "-save -t nat", "");
            assert!(
                rules.lines().all(|line| expected.contains(line)),
                "{expected}"
            );
            let checks = format!("*nat\n{}COMMIT\n", rules.replace("-A ", "-C "));
            let deletes = rules.replace("-A ", "-D ");
            let deletes = format!("*nat\n{deletes}-X {CHAIN}\nCOMMIT\n");
            tool(family, new, &deletes);
            assert_eq!(tool(family, "-save -t nat", ""), old);
            let addition = Addition {
                needed: Vec::new(),
                chain: CHAIN,
                appended: [inside, entries].concat(),
                ports: None,
                inserted: Vec::new(),
            };
            let table = Table::named(family, "nat");
            let socket = Socket::open().unwrap();
            for style in [Style::Old, Style::New] {
                let batch = batch(&addition, &table, style, &[]).unwrap();
                socket.commit(batch).unwrap().unwrap();
                assert_eq!(tool(family, "-save -t nat", ""), expected, "{style:?}");
                tool(family, new, &checks);
                tool(family, new, &deletes);
                assert_eq!(tool(family, "-save -t nat", ""), old);
            }
        }
    }
}
