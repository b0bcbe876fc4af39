//! Ports that another container had: the newest mapping wins, and its loser is told of.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::netfilter::iptables::owned::{is_private, parse_comment};
use crate::netfilter::iptables::port_maps::{DNAT, KIND, Rules, dports};
use crate::netfilter::iptables::rule::{Rule, Script, Table};
use crate::netfilter::model::{disputed, taken_over};

impl Rules {
    /// Says which of the ports other entries of `table` have too. Entries name ports only:
    /// whether they are for the same address of the host, and for this family at all, is
    /// seen in the chain behind, if `table` has it. Nothing where nobody wants to know.
    pub fn conflicts(&self, table: &Table) -> Vec<String> {
        if !self.warns {
            return Vec::new();
        }
        let rivals = self.rivals(table).into_iter();
        rivals
            .filter_map(|rival| Some(taken_over(&rival.port, rival.whose.as_deref()?)))
            .collect()
    }

    /// Takes out of `table` the mappings of the ports of these rules, which are another
    /// backend's, but for those that are for more addresses of the host; and says whose
    /// they are.
    pub fn displace(&self, table: &Table) -> (Script, BTreeSet<String>) {
        let mut gone = BTreeSet::new();
        let mut sentences = BTreeSet::new();
        for rival in self.rivals(table) {
            let all = rival.meeting.is_some_and(|mappings| {
                let (covered, others): (Vec<_>, Vec<_>) = mappings.into_iter().partition(|rule| {
                    is_private(&rule.chain)
                        && rule.value("--dport").is_some()
                        && (rival.host.is_none() || host_of(rule) == rival.host)
                });
                gone.extend(covered.into_iter().map(place_and_host));
                others.is_empty()
            });
            let say = if all { taken_over } else { disputed };
            sentences.extend(rival.whose.map(|whose| say(&rival.port, &whose)));
        }
        let mut script = Script::default();
        // With what marks for them.
        let of_gone = |rule: &&Rule| gone.contains(&place_and_host(rule));
        table
            .rules
            .iter()
            .filter(of_gone)
            .for_each(|rule| script.delete(rule));
        (script, sentences)
    }

    /// Who has one of the ports in `table`, too.
    fn rivals<'a>(&self, table: &'a Table) -> Vec<Rival<'a>> {
        let mut hosts = HashMap::<_, Vec<Option<IpAddr>>>::new();
        for (protocol, port, host) in &self.ports {
            let key = (protocol.as_str(), port.to_string());
            hosts.entry(key).or_default().push(*host);
        }
        let mappings = Mappings::of(table);
        let mut found = Vec::new();
        for entry in table.rules.iter().filter(|rule| rule.chain == DNAT) {
            let owner = entry.comment().unwrap_or_default();
            let whose = parse_comment(KIND.comment, owner).map_or_else(
                || format!("somebody else (\"{owner}\")"),
                |(network, id)| format!("container {id} in network {network}"),
            );
            let whose = Some(whose).filter(|_| owner != self.comment);
            let Some(protocol) = entry.value("-p") else {
                continue;
            };
            for port in dports(entry) {
                let hosts = hosts.get(&(protocol, port.to_owned()));
                for host in hosts.into_iter().flatten() {
                    let meeting = mappings.meeting(entry, protocol, port, *host);
                    if meeting.as_ref().is_none_or(|rules| !rules.is_empty()) {
                        found.push(Rival {
                            port: format!("{port}/{protocol}"),
                            host: *host,
                            whose: whose.clone(),
                            meeting,
                        });
                    }
                }
            }
        }
        found
    }
}

/// One who has a port that others want.
struct Rival<'a> {
    /// `8080/tcp`
    port: String,
    /// Where it is wanted: only at this address of the host.
    host: Option<IpAddr>,
    /// Who that is; `None` is who wants it.
    whose: Option<String>,
    /// The mappings of the port; `None` where the table does not tell.
    meeting: Option<Vec<&'a Rule>>,
}

/// The one address of the host that a mapping is for.
fn host_of(mapping: &Rule) -> Option<IpAddr> {
    let net: IpNet = mapping.value("-d")?.parse().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// A rule's place, and the address of the host that it asks for.
fn place_and_host(rule: &Rule) -> (Place<'_>, Option<&str>) {
    (place(rule), rule.value("-d"))
}

/// A rule's chain, and the protocol and the port that it asks for, if it does.
type Place<'a> = (&'a str, Option<&'a str>, Option<&'a str>);

/// The place of a rule.
fn place(rule: &Rule) -> Place<'_> {
    (rule.chain.as_str(), rule.value("-p"), rule.value("--dport"))
}

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
            rules.entry(place(rule)).or_default().push(rule);
        }
        Self { table, rules }
    }

    /// The mappings in the chain behind `entry` that take packets to `port` of `host`, or of
    /// any address; `None` where the table does not tell.
    fn meeting(
        &self,
        entry: &Rule,
        protocol: &str,
        port: &str,
        host: Option<IpAddr>,
    ) -> Option<Vec<&'a Rule>> {
        let chains = &self.table.chains;
        let chain = entry.jump().filter(|chain| chains.contains(*chain))?;
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
        let found = keys.filter_map(|key| self.rules.get(&key)).flatten();
        Some(found.copied().filter(meets).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::iptables::golden;
    use crate::netfilter::iptables::port_maps::tests::{after, mapping, rules, wanted};
    use crate::netfilter::model::{PortMaps, Protocol};

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
