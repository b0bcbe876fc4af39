//! Source NAT rules of one container in one network, one family (docs/compatibility.md#5.8).

use ipnet::IpNet;

use crate::netfilter::iptables::addition::{Addition, PrivateChain};
use crate::netfilter::iptables::owned::{Kind, comment, is_owned, private_chain, remove_chain};
use crate::netfilter::iptables::rule::{Rule, Script, Table};
use crate::netfilter::iptables::tool::Family;
use crate::netfilter::known::Known;
use crate::netfilter::model::Owner;

/// Nothing stands in front of the comment.
pub const KIND: Kind = Kind {
    comment: "",
    prefix: "CNI-",
};

const POSTROUTING: &str = "POSTROUTING";

/// What must exist.
#[derive(Debug)]
pub struct Rules {
    chain: String,
    comment: String,
    /// Traffic inside a subnet of the container.
    exempt: Vec<Rule>,
    masquerade: Rule,
    jumps: Vec<Rule>,
}

impl Rules {
    /// For `addresses`, all of `family`.
    pub fn new(owner: &Owner, family: Family, addresses: &[IpNet]) -> Self {
        let id = &owner.attachment.container_id;
        let chain = private_chain(KIND.prefix, &owner.network, id);
        let comment = comment(KIND.comment, &owner.network, id);
        let rule = |chain: &str, args: &[&str], target: &str| {
            let middle = ["-m", "comment", "--comment", comment.as_str(), "-j", target];
            Rule::new(chain, args.iter().chain(&middle))
        };
        let mut exempt: Vec<Rule> = Vec::new();
        let mut jumps: Vec<Rule> = Vec::new();
        for address in addresses {
            let subnet = address.trunc().to_string();
            let accept = rule(&chain, &["-d", &subnet], "ACCEPT");
            if !exempt.contains(&accept) {
                exempt.push(accept);
            }
            let host = IpNet::from(address.addr()).to_string();
            let jump = rule(POSTROUTING, &["-s", &host], &chain);
            if !jumps.contains(&jump) {
                jumps.push(jump);
            }
        }
        let multicast = match family {
            Family::V4 => "224.0.0.0/4",
            Family::V6 => "ff00::/8",
        };
        Self {
            masquerade: rule(&chain, &["!", "-d", multicast], "MASQUERADE"),
            chain,
            comment,
            exempt,
            jumps,
        }
    }

    /// The chains without which there is nothing of the owner.
    pub fn chains(&self) -> [String; 1] {
        [self.chain.clone()]
    }

    /// The chain of the nft variant.
    pub fn private_chain(&self, family: Family) -> PrivateChain<'_> {
        PrivateChain {
            family: family.nft(),
            name: &self.chain,
            entrance: POSTROUTING,
            comment: &self.comment,
        }
    }

    /// All rules, in the order in which they must stand.
    pub fn all(&self) -> impl Iterator<Item = &Rule> {
        self.exempt
            .iter()
            .chain([&self.masquerade])
            .chain(&self.jumps)
    }

    /// Whether something in `table` leads from one of the addresses into the chain.
    pub fn has_jump(&self, table: &Table) -> bool {
        self.jumps.iter().any(|jump| table.rules.contains(jump))
    }

    /// Adds everything. Refused when the container's chain is there already. Exemptions are
    /// inserted: whatever else happens to the chain, they stand in front.
    pub fn addition(&self) -> Addition<'_> {
        Addition {
            needed: Vec::new(),
            chain: &self.chain,
            appended: [&self.masquerade].into_iter().chain(&self.jumps).collect(),
            ports: None,
            inserted: self.exempt.iter().rev().collect(),
        }
    }

    /// As [`Rules::addition`], for the tools.
    pub fn add(&self) -> Script {
        self.addition().script()
    }

    /// Adds what is missing in `table`. Whatever else the chain holds stays: another
    /// attachment of the container to this network may need it. Each edit is safe beside
    /// somebody else's.
    pub fn repair(&self, table: &Table) -> Script {
        let mut script = Script::default();
        if !table.chains.contains(&self.chain) {
            return self.add();
        }
        let position = |rule: &Rule| table.rules.iter().position(|found| found == rule);
        let masquerade = position(&self.masquerade);
        if masquerade.is_none() {
            script.append(&self.masquerade);
        }
        for rule in &self.exempt {
            match (position(rule), masquerade) {
                (Some(at), Some(after)) if at > after => script.delete(rule),
                (Some(_), _) => continue,
                (None, _) => {}
            }
            script.insert(rule);
        }
        for rule in &self.jumps {
            if position(rule).is_none() {
                script.append(rule);
            }
        }
        script
    }

    /// Removes what `table` has of the owner: its jumps, but for those that `known` spares;
    /// and the chain when it is not needed any more.
    pub fn remove_found(&self, known: &Known, table: &Table) -> Script {
        let mut script = Script::default();
        let is_ours = |rule: &Rule| is_owned(rule, &self.comment);
        let found = table
            .jumps(&self.chain)
            .filter(|jump| is_ours(jump))
            .any(|jump| source(jump).is_some_and(|source| known.is_own(source)));
        let is_spared = |rule: &Rule| match source(rule) {
            Some(source) => known.spares(source, found),
            None => !known.own.is_empty(),
        };
        let is_doomed = |rule: &Rule| is_ours(rule) && !is_spared(rule);
        if remove_chain(&mut script, table, &self.chain, is_doomed) {
            return script;
        }
        for rule in &self.exempt {
            let needed = table
                .jumps(&self.chain)
                .filter(|jump| !is_doomed(jump))
                .any(|jump| source(jump).is_none_or(|source| is_inside(rule, source)));
            if table.rules.contains(rule) && !needed {
                script.delete(rule);
            }
        }
        script
    }
}

fn source(rule: &Rule) -> Option<IpNet> {
    rule.value("-s")?.parse().ok()
}

fn is_inside(exempt: &Rule, source: IpNet) -> bool {
    exempt
        .value("-d")
        .and_then(|subnet| subnet.parse::<IpNet>().ok())
        .is_some_and(|subnet| subnet.contains(&source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::invocation::Attachment;
    use crate::netfilter::iptables::golden::{assert_golden, table_after};

    fn rules(family: Family, addresses: &[&str]) -> (Rules, Vec<IpNet>) {
        let owner = Owner {
            network: "net1".into(),
            attachment: Attachment {
                container_id: "cont1".into(),
                ifname: "eth0".into(),
            },
        };
        let addresses: Vec<IpNet> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        (Rules::new(&owner, family, &addresses), addresses)
    }

    #[test]
    fn add_blindly() {
        let (v4, _) = rules(Family::V4, &["10.9.0.2/24", "10.8.0.2/16", "10.9.0.3/24"]);
        assert_golden(&v4.add().text(), "masquerade-add-v4");
        let (v6, _) = rules(Family::V6, &["fd00:9::2/64"]);
        assert_golden(&v6.add().text(), "masquerade-add-v6");
    }

    #[test]
    fn nothing_to_repair_and_everything_to_repair() {
        let (v4, _) = rules(Family::V4, &["10.9.0.2/24"]);
        assert!(v4.repair(&table_after(&v4.add())).is_empty());
        assert_eq!(v4.repair(&Table::default()), v4.add());
    }

    /// What the reference leaves for two addresses (docs/compatibility.md#defect-22).
    #[test]
    fn an_exemption_behind_the_masquerade_moves_in_front() {
        let (both, _) = rules(Family::V4, &["10.9.0.2/24", "10.8.0.2/16"]);
        let mut table = table_after(&both.add());
        let second = table.rules.iter().position(|rule| *rule == both.exempt[1]);
        let masquerade = table.rules.iter().position(|rule| *rule == both.masquerade);
        table.rules.swap(second.unwrap(), masquerade.unwrap());
        assert_eq!(
            both.repair(&table).text(),
            r#"*nat
-D CNI-01d424cb2a9303e21c6e971c -d 10.8.0.0/16 -m comment --comment "name: \"net1\" id: \"cont1\"" -j ACCEPT
-I CNI-01d424cb2a9303e21c6e971c -d 10.8.0.0/16 -m comment --comment "name: \"net1\" id: \"cont1\"" -j ACCEPT
COMMIT
"#
        );
    }

    #[test]
    fn two_attachments_share_the_chain() {
        let (first, eth0) = rules(Family::V4, &["10.9.0.2/24"]);
        let (second, eth1) = rules(Family::V4, &["10.8.0.2/16"]);
        let (third, eth2) = rules(Family::V4, &["10.9.0.7/24"]);
        assert_golden(
            &second.repair(&table_after(&first.add())).text(),
            "masquerade-second-attachment",
        );
        let (all, _) = rules(Family::V4, &["10.9.0.2/24", "10.8.0.2/16", "10.9.0.7/24"]);
        let table = table_after(&all.add());
        // The subnet of the first is still the third's.
        assert_eq!(
            first
                .remove_found(&Known::own(&eth0), &table)
                .text()
                .lines()
                .count(),
            3
        );
        assert_golden(
            &second.remove_found(&Known::own(&eth1), &table).text(),
            "masquerade-remove-second",
        );
        let last = table_after(&third.add());
        assert_golden(
            &third.remove_found(&Known::own(&eth2), &last).text(),
            "masquerade-remove-last",
        );
        let everything = rules(Family::V4, &[])
            .0
            .remove_found(&Known::NOTHING, &table);
        assert_eq!(everything.text().matches("-D ").count(), 3);
        assert!(
            everything
                .text()
                .contains("-X CNI-01d424cb2a9303e21c6e971c")
        );
    }

    #[test]
    fn rules_of_old_versions_go_and_what_is_gone_is_no_work() {
        let (v4, addresses) = rules(Family::V4, &["10.9.0.2/24"]);
        let old = Table::parse(&v4.add().text().replace("10.9.0.2/32", "10.9.0.0/24"));
        let script = v4.remove_found(&Known::own(&addresses), &old).text();
        assert!(script.contains("-D POSTROUTING -s 10.9.0.0/24"), "{script}");
        assert!(
            script.contains("-X CNI-01d424cb2a9303e21c6e971c"),
            "{script}"
        );
        assert!(
            v4.remove_found(&Known::own(&addresses), &Table::default())
                .is_empty()
        );
    }
}
