//! The attachments' rules, read for people.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use ipnet::IpNet;

use crate::netfilter::iptables::owned::{is_private, parse_comment};
use crate::netfilter::iptables::rule::Rule;
use crate::netfilter::iptables::tool::FAMILIES;
use crate::netfilter::iptables::tool::Family;
use crate::netfilter::iptables::{Iptables, firewall, masquerade, port_maps};
use crate::netfilter::listing::{Claim, Listing, OwnedRule, Purpose};
use crate::netfilter::model::{BackendName, Mapping, Protocol};
use crate::shell::shell;

impl Iptables {
    /// Adds the rules of every attachment to `listing`, or why they cannot be told.
    pub fn list(&self, listing: &mut Listing) {
        for family in FAMILIES {
            let of_nat = self.tools(family, &[]);
            let of_filter = self.filter().tools_for_passing(family);
            for (tools, read) in [(of_nat, owned as Read), (of_filter, passing)] {
                let rules: Vec<Result<Vec<OwnedRule>>> = match tools {
                    Ok(tools) => {
                        let rules = tools.iter().map(|tool| Ok(read(family, &tool.counted()?)));
                        rules.collect()
                    }
                    Err(error) => vec![Err(error)],
                };
                for rules in rules {
                    match rules {
                        Ok(rules) => listing.rules.extend(rules),
                        Err(error) => listing.doubts.push(format!("{error:#}")),
                    }
                }
            }
        }
    }
}

/// Finds what is somebody's in the rules of one table.
type Read = fn(Family, &[(u64, Rule)]) -> Vec<OwnedRule>;

/// The addresses that may pass. Rules do not say whose these are.
fn passing(family: Family, rules: &[(u64, Rule)]) -> Vec<OwnedRule> {
    let own = rules
        .iter()
        .filter(|(_, rule)| rule.chain == firewall::FORWARD);
    let told = own.filter_map(|(packets, rule)| {
        let net: IpNet = rule
            .value("-s")
            .or_else(|| rule.value("-d"))?
            .parse()
            .ok()?;
        (rule.jump() == Some("ACCEPT")).then(|| OwnedRule {
            owner: Claim::default(),
            backend: BackendName::Iptables,
            command: shell![family.command(), "-v", "-S", rule.chain],
            text: format!("-A {rule}"),
            purpose: Purpose::Pass(net.addr()),
            packets: Some(*packets),
        })
    });
    told.collect()
}

/// Those of `rules` that are somebody's. Mappings come in the order of the entries that
/// lead to them, which is the one in which packets meet them.
fn owned(family: Family, rules: &[(u64, Rule)]) -> Vec<OwnedRule> {
    let mut chains: BTreeMap<&str, (usize, Claim)> = BTreeMap::new();
    for (position, (_, rule)) in rules.iter().enumerate() {
        if let (Some(claim), Some(chain)) = (claim(rule), rule.jump())
            && is_private(chain)
        {
            chains.entry(chain).or_insert((position, claim));
        }
    }
    let mut found: Vec<(usize, OwnedRule)> = Vec::new();
    for (position, (packets, rule)) in rules.iter().enumerate() {
        let home = chains.get(rule.chain.as_str());
        let Some(owner) = claim(rule).or_else(|| home.map(|(_, claim)| claim.clone())) else {
            continue;
        };
        let place = home.map_or(position, |(entry, _)| *entry);
        let purpose = mapping(rule)
            .map(|(mapping, to)| Purpose::PortMap(mapping, to))
            .or_else(|| source(rule).map(Purpose::Masquerade))
            .unwrap_or(Purpose::Other);
        let command = family.command();
        let rule = OwnedRule {
            owner,
            backend: BackendName::Iptables,
            command: shell![command, "-t", "nat", "-v", "-S", rule.chain],
            text: format!("-A {rule}"),
            purpose,
            packets: Some(*packets),
        };
        found.push((place, rule));
    }
    found.sort_by_key(|(place, _)| *place);
    found.into_iter().map(|(_, rule)| rule).collect()
}

/// Whose the rule says that it is.
fn claim(rule: &Rule) -> Option<Claim> {
    claim_in(rule.comment()?)
}

/// Whose rules have this comment.
pub fn claim_in(comment: &str) -> Option<Claim> {
    let (network, container_id) = [port_maps::KIND, masquerade::KIND]
        .into_iter()
        .find_map(|kind| parse_comment(kind.comment, comment))?;
    Some(Claim {
        network: Some(network.to_owned()),
        container_id: Some(container_id.to_owned()),
        ..Claim::default()
    })
}

/// Of the rule that leads to an owner's masquerading: which address that is for.
fn source(rule: &Rule) -> Option<IpAddr> {
    rule.jump().filter(|chain| is_private(chain))?;
    let net: IpNet = rule.value("-s")?.parse().ok()?;
    Some(net.addr())
}

/// Of a rule that translates: which port leads to which address.
fn mapping(rule: &Rule) -> Option<(Mapping, IpAddr)> {
    let to: SocketAddr = rule.value("--to-destination")?.parse().ok()?;
    let host: Option<IpNet> = rule.value("-d").and_then(|net| net.parse().ok());
    let mapping = Mapping {
        protocol: Protocol::named(rule.value("-p")?)?,
        host_ip: host.map(|net| net.addr()),
        host_port: rule.value("--dport")?.parse().ok()?,
        container_port: to.port(),
    };
    Some((mapping, to.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_told_with_owner_and_purpose() {
        let text = r#"
:CNI-HOSTPORT-DNAT - [0:0]
[7:420] -A POSTROUTING -s 10.9.0.2/32 -m comment --comment "name: \"n\" id: \"a\"" -j CNI-0123456789abcdef01234567
[1:60] -A CNI-0123456789abcdef01234567 -d 10.9.0.0/24 -m comment --comment "name: \"n\" id: \"a\"" -j ACCEPT
[0:0] -A CNI-DN-0123456789abcdef01234 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.9.0.3:80
[5:300] -A CNI-DN-bbbbbbbbbbbbbbbbbbbbb -d 192.0.2.1/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.9.0.2:5353
[5:300] -A CNI-HOSTPORT-DNAT -p udp -m comment --comment "dnat name: \"n\" id: \"a\"" -m multiport --dports 53 -j CNI-DN-bbbbbbbbbbbbbbbbbbbbb
[0:0] -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"n\" id: \"b\"" -m multiport --dports 8080 -j CNI-DN-0123456789abcdef01234
[0:0] -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
"#;
        let rules: Vec<_> = text.lines().filter_map(Rule::parse_counted).collect();
        assert_eq!(rules.len(), 7);
        let told: Vec<String> = owned(Family::V4, &rules)
            .into_iter()
            .map(|rule| {
                let purpose = match rule.purpose {
                    Purpose::Masquerade(ip) => format!("masquerade {ip}"),
                    Purpose::PortMap(mapping, to) => {
                        format!("{mapping} to {to} {}", mapping.container_port)
                    }
                    Purpose::Pass(_) | Purpose::Other => "other".into(),
                };
                let owner = rule.owner.container_id.unwrap_or_default();
                let packets = rule.packets.unwrap_or_default();
                format!("{owner}: {purpose}, {packets}")
            })
            .collect();
        assert_eq!(
            told,
            [
                "a: masquerade 10.9.0.2, 7",
                "a: other, 1",
                "a: 192.0.2.1:53/udp to 10.9.0.2 5353, 5",
                "a: other, 5",
                "b: 8080/tcp to 10.9.0.3 80, 0",
                "b: other, 0",
            ]
        );
    }
}
