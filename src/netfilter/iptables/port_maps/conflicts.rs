//! Ports that another container had: the newest mapping wins, and its loser is told of.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{DNAT, KIND, Rules, dports};
use crate::netfilter::iptables::owned::parse_comment;
use crate::netfilter::iptables::rule::{Rule, Table};

impl Rules {
    /// Says which of the ports other entries of `table` have too. Entries name ports only:
    /// whether they are for the same address of the host, and for this family at all, is
    /// seen in the chain behind, if `table` has it.
    pub fn conflicts(&self, table: &Table) -> Vec<String> {
        let mut hosts = HashMap::<_, Vec<Option<IpAddr>>>::new();
        for (protocol, port, host) in &self.ports {
            let key = (protocol.as_str(), port.to_string());
            hosts.entry(key).or_default().push(*host);
        }
        let mappings = Mappings::of(table);
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
            let Some(protocol) = entry.value("-p") else {
                continue;
            };
            for port in dports(entry) {
                let mut hosts = hosts
                    .get(&(protocol, port.to_owned()))
                    .into_iter()
                    .flatten();
                if hosts.any(|host| mappings.meet(entry, protocol, port, *host)) {
                    found.push(format!(
                        "host port {port}/{protocol} was mapped to {whose}: the newest mapping wins"
                    ));
                }
            }
        }
        found
    }
}

/// A rule's chain, and the protocol and the port that it asks for, if it does.
type Place<'a> = (&'a str, Option<&'a str>, Option<&'a str>);

/// The mappings in a table's chains, found without going through all of them for each port.
struct Mappings<'a> {
    table: &'a Table,
    rules: HashMap<Place<'a>, Vec<&'a Rule>>,
}

impl<'a> Mappings<'a> {
    /// Those of `table`.
    fn of(table: &'a Table) -> Self {
        let mut rules = HashMap::<_, Vec<_>>::new();
        for rule in table
            .rules
            .iter()
            .filter(|rule| rule.value("-j") == Some("DNAT"))
        {
            let key = (rule.chain.as_str(), rule.value("-p"), rule.value("--dport"));
            rules.entry(key).or_default().push(rule);
        }
        Self { table, rules }
    }

    /// Whether the chain behind `entry` takes packets to `port` of `host`, or of any
    /// address. Whatever the table does not tell counts as yes.
    fn meet(&self, entry: &Rule, protocol: &str, port: &str, host: Option<IpAddr>) -> bool {
        let chains = &self.table.chains;
        let Some(chain) = entry.jump().filter(|chain| chains.contains(*chain)) else {
            return true;
        };
        let meets = |rule: &&Rule| {
            let other = rule.value("-d").and_then(|net| net.parse::<IpNet>().ok());
            match (host, other) {
                (Some(host), Some(other)) => other.contains(&host),
                _ => true,
            }
        };
        let keys = [Some(protocol), None]
            .into_iter()
            .flat_map(|protocol| [(chain, protocol, Some(port)), (chain, protocol, None)]);
        keys.filter_map(|key| self.rules.get(&key))
            .flatten()
            .any(meets)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{after, mapping, rules, wanted};
    use super::*;
    use crate::netfilter::iptables::golden;
    use crate::netfilter::{PortMaps, Protocol};

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
        let restored = PortMaps {
            warn_of_takeovers: false,
            ..wanted(vec![mapping(Protocol::Tcp, "", 80, 80)])
        };
        let found = rules("cont2", 0, &restored).conflicts(&first(""));
        assert!(found.is_empty(), "{found:?}");
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
