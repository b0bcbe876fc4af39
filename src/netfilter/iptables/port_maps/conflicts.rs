//! Ports that another container had: the newest mapping wins, and its loser is told of.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{DNAT, KIND, Rules, dports};
use crate::netfilter::Protocol;
use crate::netfilter::iptables::owned::parse_comment;
use crate::netfilter::iptables::rule::{Rule, Table};

impl Rules {
    /// Says which of the ports other entries of `table` have too. Entries name ports only:
    /// whether they are for the same address of the host, and for this family at all, is
    /// seen in the chain behind, if `table` has it.
    pub fn conflicts(&self, table: &Table) -> Vec<String> {
        let mut found = Vec::new();
        for entry in table.rules.iter().filter(|rule| rule.chain == DNAT) {
            let owner = entry.comment().unwrap_or_default();
            if owner == self.comment {
                continue;
            }
            let whose = parse_comment(KIND, owner).map_or_else(
                || format!("somebody else (\"{owner}\")"),
                |(network, id)| format!("container {id} in network {network}"),
            );
            for (protocol, port, host) in &self.ports {
                let text = port.to_string();
                if entry.value("-p") == Some(protocol.as_str())
                    && dports(entry).any(|other| other == text)
                    && maps(table, entry, *protocol, &text, *host)
                {
                    found.push(format!(
                        "host port {port}/{} was mapped to {whose}: the newest mapping wins",
                        protocol.as_str()
                    ));
                }
            }
        }
        found
    }
}

/// Whether the chain behind `entry` takes packets to `port` of `host`, or of any address.
/// Whatever `table` does not tell counts as yes.
fn maps(table: &Table, entry: &Rule, protocol: Protocol, port: &str, host: Option<IpAddr>) -> bool {
    let Some(chain) = entry.jump().filter(|chain| table.chains.contains(*chain)) else {
        return true;
    };
    let is_or_lacks =
        |rule: &Rule, option, wanted: &str| rule.value(option).is_none_or(|value| value == wanted);
    let meets = |rule: &Rule| {
        let other = rule.value("-d").and_then(|net| net.parse::<IpNet>().ok());
        match (host, other) {
            (Some(host), Some(other)) => other.contains(&host),
            _ => true,
        }
    };
    table.rules.iter().any(|rule| {
        rule.chain == chain
            && rule.value("-j") == Some("DNAT")
            && is_or_lacks(rule, "-p", protocol.as_str())
            && is_or_lacks(rule, "--dport", port)
            && meets(rule)
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{after, mapping, rules, wanted};
    use super::*;
    use crate::netfilter::iptables::golden;

    #[test]
    fn only_mappings_that_meet_are_conflicts() {
        let first = |host_ip: &str| after(&wanted(vec![mapping(Protocol::Tcp, host_ip, 80, 80)]));
        for (theirs, ours, expected) in [
            ("192.0.2.1", "192.0.2.2", 0),
            ("192.0.2.1", "192.0.2.1", 1),
            ("192.0.2.1", "", 1),
            ("", "192.0.2.1", 1),
            ("0.0.0.0", "192.0.2.1", 1),
            ("::1", "", 0),
            ("::", "192.0.2.1", 0),
        ] {
            let maps = wanted(vec![mapping(Protocol::Tcp, ours, 80, 80)]);
            let found = rules("cont2", 0, &maps).conflicts(&first(theirs));
            assert_eq!(found.len(), expected, "{theirs} {ours}: {found:?}");
        }
        // Without the chains behind, nobody knows.
        let mut table = first("192.0.2.1");
        table.chains.clear();
        let maps = wanted(vec![mapping(Protocol::Tcp, "192.0.2.2", 80, 80)]);
        assert_eq!(rules("cont2", 0, &maps).conflicts(&table).len(), 1);
    }

    #[test]
    fn former_owners_of_a_port_are_named() {
        let table = Table::parse(&golden::read("port-maps-saved"));
        let maps = wanted(vec![
            mapping(Protocol::Tcp, "", 8080, 80),
            mapping(Protocol::Tcp, "", 808, 80),
            // Listed, but of the other family.
            mapping(Protocol::Tcp, "", 8443, 80),
            mapping(Protocol::Udp, "", 8080, 80),
        ]);
        assert_eq!(
            rules("cont2", 0, &maps).conflicts(&table),
            [
                "host port 8080/tcp was mapped to container cont1 in network net1: the newest mapping wins"
            ]
        );
        assert!(rules("cont1", 0, &maps).conflicts(&table).is_empty());
    }
}
