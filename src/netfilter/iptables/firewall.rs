//! What may pass to and from the containers, one family (docs/compatibility.md#9.2). The rules do not
//! say whose they are: an address is all that can be told.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::netfilter::iptables::addition::Members;
use crate::netfilter::iptables::rule::{Rule, Script, Table, TableName};
use crate::netfilter::iptables::tool::Family;
use crate::netfilter::model::{Firewall, Ingress, Isolation};

/// The chain of the rules for addresses.
pub const FORWARD: &str = "CNI-FORWARD";
/// The chains of the rules for bridges.
pub const STAGE_1: &str = "CNI-ISOLATION-STAGE-1";
const STAGE_2: &str = "CNI-ISOLATION-STAGE-2";
const BUILT_IN: &str = "FORWARD";

/// How the comments of the rules for bridges start.
const ISOLATION_COMMENT: &str = "CNI firewall plugin rules (ingressPolicy: ";

/// What must exist.
#[derive(Debug)]
pub struct Rules {
    pass: Option<Pass>,
    isolation: Option<Stages>,
}

/// What lets the container's own packets through.
#[derive(Debug)]
struct Pass {
    admin_chain: String,
    jump: Rule,
    admin: Rule,
    own: Vec<Rule>,
}

/// What keeps others away from a bridge: whatever comes from one isolated bridge to
/// another passes the first stage and is dropped in the second.
#[derive(Debug)]
struct Stages {
    jump: Rule,
    /// In front of the first stage's last rule, the last one first.
    first: Vec<Rule>,
    first_end: Rule,
    second: Rule,
    second_end: Rule,
}

impl Rules {
    /// What `wanted` means for `family`.
    pub fn new(family: Family, wanted: &Firewall) -> Self {
        let pass = wanted.admin_chain.as_ref().map(|admin_chain| Pass {
            admin_chain: admin_chain.clone(),
            jump: commented(BUILT_IN, &[], "CNI firewall plugin rules", FORWARD),
            admin: commented(
                FORWARD,
                &[],
                "CNI firewall plugin admin overrides",
                admin_chain,
            ),
            own: wanted
                .addresses
                .iter()
                .filter(|address| Family::of(**address) == family)
                .flat_map(|address| own(*address))
                .collect(),
        });
        let isolation = wanted.isolation.as_ref().map(Stages::new);
        Self { pass, isolation }
    }

    /// Adds the rules of the container where all chains are as they should be, which is
    /// asserted, and prints what the chain holds then.
    pub fn add(&self) -> Script {
        let mut script = Script::of(TableName::Filter);
        for rule in self.shared() {
            script.assert(rule);
        }
        if let Some(pass) = &self.pass {
            for rule in &pass.own {
                script.append(rule);
            }
            script.list_chain(FORWARD);
        }
        script
    }

    /// Those of the container, and those that lead to them.
    pub fn members(&self, family: Family) -> (Members<'_>, impl Iterator<Item = &Rule>) {
        let own = self.pass.iter().flat_map(|pass| &pass.own);
        (members(family, own.collect()), self.shared())
    }

    /// Whether `listed` has each rule of the container once.
    pub fn is_settled(&self, listed: &Table) -> bool {
        let mut own = self.pass.iter().flat_map(|pass| &pass.own);
        own.all(|rule| listed.rules.iter().filter(|found| *found == rule).count() == 1)
    }

    /// The rules that are not the container's own.
    fn shared(&self) -> impl Iterator<Item = &Rule> {
        let pass = self.pass.iter();
        let isolation = self.isolation.iter();
        pass.flat_map(|pass| [&pass.jump, &pass.admin])
            .chain(isolation.flat_map(Stages::all))
    }

    /// Adds what is missing in `table`, and removes what is there more than once.
    pub fn repair(&self, table: &Table) -> Script {
        let mut script = Script::of(TableName::Filter);
        let mut make = |chain: &str| {
            if !table.chains.contains(chain) {
                script.create_chain(chain);
            }
        };
        if let Some(pass) = &self.pass {
            make(FORWARD);
            make(&pass.admin_chain);
        }
        if self.isolation.is_some() {
            make(STAGE_1);
            make(STAGE_2);
        }
        if let Some(pass) = &self.pass {
            for rule in [&pass.jump, &pass.admin] {
                if !table.rules.contains(rule) {
                    script.insert(rule);
                }
            }
            for rule in &pass.own {
                let count = table.rules.iter().filter(|found| *found == rule).count();
                if count == 0 {
                    script.append(rule);
                }
                for _ in 1..count {
                    script.delete(rule);
                }
            }
        }
        self.lead_to_stages(table, &mut script);
        if let Some(stages) = &self.isolation {
            for rule in stages.first.iter().chain([&stages.second]) {
                if !has(table, rule) {
                    script.insert(rule);
                }
            }
            for rule in [&stages.first_end, &stages.second_end] {
                if !has(table, rule) {
                    script.append(rule);
                }
            }
        }
        script
    }

    /// The jump to the stages must stand in front of the one to the rules that let pass.
    fn lead_to_stages(&self, table: &Table, script: &mut Script) {
        let place = |target: &str| {
            let mut jumps = table.rules.iter().filter(|rule| rule.chain == BUILT_IN);
            jumps.position(|rule| rule.jump() == Some(target))
        };
        let is_inserted = self
            .pass
            .as_ref()
            .is_some_and(|pass| !table.rules.contains(&pass.jump));
        match (place(STAGE_1), place(FORWARD)) {
            (Some(stages), pass) if is_inserted || pass.is_some_and(|pass| pass < stages) => {
                for jump in table.jumps(STAGE_1).filter(|rule| rule.chain == BUILT_IN) {
                    script.delete(jump);
                    script.insert(jump);
                }
            }
            (Some(_), _) => {}
            (None, _) => {
                if let Some(stages) = &self.isolation {
                    script.insert(&stages.jump);
                }
            }
        }
    }

    /// Those that `table` does not have. Versions of the reference differ in their
    /// comments.
    pub fn missing<'a>(&'a self, table: &'a Table) -> impl Iterator<Item = &'a Rule> {
        let own = self.pass.iter().flat_map(|pass| &pass.own);
        self.shared().chain(own).filter(|rule| !has(table, rule))
    }
}

impl Stages {
    fn new(isolation: &Isolation) -> Self {
        let bridge = isolation.bridge.as_str();
        let policy = match isolation.ingress {
            Ingress::SameBridge => "same-bridge",
            Ingress::Isolated => "isolated",
        };
        let of_policy = format!("{ISOLATION_COMMENT}{policy})");
        let of_all = format!("{ISOLATION_COMMENT}same-bridge|isolated)");
        let leaving = ["-i", bridge, "!", "-o", bridge];
        let mut first = vec![commented(STAGE_1, &leaving, &of_policy, STAGE_2)];
        if isolation.ingress == Ingress::Isolated {
            let inside = ["-i", bridge, "-o", bridge];
            first.push(commented(STAGE_1, &inside, &of_policy, "DROP"));
        }
        Self {
            jump: commented(BUILT_IN, &[], &of_all, STAGE_1),
            first,
            first_end: commented(STAGE_1, &[], &of_all, "RETURN"),
            second: commented(STAGE_2, &["-o", bridge], &of_all, "DROP"),
            second_end: commented(STAGE_2, &[], &of_all, "RETURN"),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Rule> {
        let others = [&self.jump, &self.first_end, &self.second, &self.second_end];
        self.first.iter().chain(others)
    }
}

/// Removes the rules of `addresses`, each as often as it is there, and those of bridges
/// that are gone.
pub fn remove(addresses: &[IpAddr], table: &Table, is_gone: impl Fn(&str) -> bool) -> Script {
    let mut script = Script::of(TableName::Filter);
    let unwanted: Vec<Rule> = addresses.iter().flat_map(|ip| own(*ip)).collect();
    for rule in &table.rules {
        if unwanted.contains(rule) || bridge(rule).is_some_and(&is_gone) {
            script.delete(rule);
        }
    }
    script
}

/// The rules that let addresses through, as the nft variant has them.
pub fn members(family: Family, own: Vec<&Rule>) -> Members<'_> {
    Members {
        family: family.nft(),
        table: TableName::Filter.as_str(),
        own,
    }
}

/// The bridges that rules of `table` isolate.
pub fn bridges(table: &Table) -> impl Iterator<Item = &str> {
    table.rules.iter().filter_map(bridge)
}

/// The bridge that a rule of the two stages is about.
fn bridge(rule: &Rule) -> Option<&str> {
    let is_ours = [STAGE_1, STAGE_2].contains(&rule.chain.as_str())
        && rule
            .comment()
            .is_some_and(|comment| comment.starts_with(ISOLATION_COMMENT));
    rule.value("-o").filter(|_| is_ours)
}

/// What lets one address through: what it sends, and the answers to that.
pub fn own(address: IpAddr) -> [Rule; 2] {
    let host = IpNet::from(address).to_string();
    let answers = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"];
    let answers = ["-d", &host].into_iter().chain(answers);
    [
        Rule::new(FORWARD, answers.chain(["-j", "ACCEPT"])),
        Rule::new(FORWARD, ["-s", &host, "-j", "ACCEPT"]),
    ]
}

fn commented(chain: &str, args: &[&str], comment: &str, target: &str) -> Rule {
    let last = ["-m", "comment", "--comment", comment, "-j", target];
    Rule::new(chain, args.iter().chain(&last))
}

/// Whether there is such a rule, whatever its comment.
fn has(table: &Table, rule: &Rule) -> bool {
    let is_same = |found: &&Rule| {
        found.chain == rule.chain && without_comment(found).eq(without_comment(rule))
    };
    table.rules.iter().any(|found| is_same(&found))
}

fn without_comment(rule: &Rule) -> impl Iterator<Item = &str> {
    let start = rule.args.iter().position(|arg| arg == "--comment");
    // `-m comment --comment TEXT`
    let left_out = start.map_or(0..0, |start| start.saturating_sub(2)..start + 2);
    let args = rule.args.iter().enumerate();
    args.filter(move |(at, _)| !left_out.contains(at))
        .map(|(_, arg)| arg.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::iptables::golden::{assert_golden, table_after};

    fn rules(ingress: Option<Ingress>) -> Rules {
        let wanted = Firewall {
            addresses: vec!["10.9.0.2".parse().unwrap(), "fd00:9::2".parse().unwrap()],
            admin_chain: Some("CNI-ADMIN".into()),
            isolation: ingress.map(|ingress| Isolation {
                bridge: "br1".into(),
                ingress,
            }),
        };
        Rules::new(Family::V4, &wanted)
    }

    #[test]
    fn from_nothing_and_where_all_is_in_order() {
        let isolated = rules(Some(Ingress::Isolated));
        assert_golden(&isolated.add().text(), "firewall-add");
        let script = isolated.repair(&Table::default());
        assert_golden(&script.text(), "firewall-isolated");
        let table = table_after(&script);
        assert!(isolated.is_settled(&table));
        assert!(isolated.repair(&table).is_empty());
        assert_eq!(isolated.missing(&table).count(), 0);
        assert_eq!(isolated.missing(&Table::default()).count(), 10);
    }

    #[test]
    fn isolation_stands_in_front_whoever_came_first() {
        let open = table_after(&rules(None).repair(&Table::default()));
        let text = rules(Some(Ingress::SameBridge)).repair(&open).text();
        assert!(text.contains("-I FORWARD -m comment"), "{text}");
        assert!(!text.contains("-A CNI-FORWARD"), "{text}");
        let mut table = table_after(&rules(Some(Ingress::SameBridge)).repair(&Table::default()));
        let before = |table: &Table| {
            let mut jumps = table.rules.iter().filter(|rule| rule.chain == BUILT_IN);
            jumps.next().and_then(Rule::jump).map(str::to_owned)
        };
        assert_eq!(before(&table).as_deref(), Some(STAGE_1));
        table.rules.retain(|rule| rule.jump() != Some(FORWARD));
        let text = rules(None).repair(&table).text();
        let [pass, stages] = [FORWARD, STAGE_1].map(|to| text.find(&format!("-j {to}\n")));
        assert!(pass < stages, "{text}");
        assert!(text.contains("-D FORWARD"), "{text}");
    }

    #[test]
    fn copies_go_and_other_comments_do() {
        let wanted = rules(Some(Ingress::SameBridge));
        let mut table = table_after(&wanted.repair(&Table::default()));
        for arg in table.rules.iter_mut().flat_map(|rule| &mut rule.args) {
            *arg = arg.replace("same-bridge|isolated", "same-bridge").into();
        }
        assert!(wanted.repair(&table).is_empty());
        table.rules.extend(own("10.9.0.2".parse().unwrap()));
        assert!(!wanted.is_settled(&table));
        assert_eq!(wanted.repair(&table).text().matches("-D ").count(), 2);
        let script = remove(&["10.9.0.2".parse().unwrap()], &table, |_| false);
        assert_eq!(script.text().matches("-D CNI-FORWARD").count(), 4);
        let script = remove(&[], &table, |bridge| bridge == "br1");
        assert_eq!(script.text().matches("br1").count(), 3, "{}", script.text());
        assert_eq!(bridges(&table).collect::<Vec<_>>(), ["br1", "br1"]);
    }
}
