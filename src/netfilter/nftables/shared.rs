//! The chains of a table that belong to no owner: they lead packets to the owners' rules.

use super::ruleset::{Chain, Rule, Table};
use super::transaction::{Change, Found};

/// A chain that must be there.
#[derive(Debug)]
pub enum Shared {
    /// Owners add rules to it.
    Open(Chain),
    /// It holds exactly these rules.
    Fixed(Chain, Vec<Rule>),
}

impl Shared {
    pub fn chain(&self) -> &Chain {
        match self {
            Self::Open(chain) | Self::Fixed(chain, _) => chain,
        }
    }
}

/// What makes the table and its shared chains so, given the rules that the table has.
///
/// Rules that are right already stay as they are: the kernel waits for a grace period of
/// its own (10 to 20 ms) wherever a rule is removed.
pub fn ensure_shared(table: Table, shared: &[Shared], found: &[Found]) -> Vec<Change> {
    let mut changes = vec![Change::AddTable(table)];
    changes.extend(
        shared
            .iter()
            .map(|shared| Change::AddChain(shared.chain().clone())),
    );
    for shared in shared {
        let Shared::Fixed(chain, rules) = shared else {
            continue;
        };
        let there: Vec<_> = in_chain(found, &chain.name)
            .map(Found::statements)
            .collect();
        if there.len() == rules.len()
            && there
                .iter()
                .zip(rules)
                .all(|(there, rule)| there.as_ref() == Some(&rule.statements))
        {
            continue;
        }
        changes.push(Change::FlushChain(chain.clone()));
        let rules = rules.iter().cloned();
        changes.extend(rules.map(|rule| Change::Append(chain.clone(), rule)));
    }
    changes
}

/// The rules of one chain.
pub fn in_chain<'a>(found: &'a [Found], chain: &'a str) -> impl Iterator<Item = &'a Found> {
    found.iter().filter(move |rule| rule.handle.chain == chain)
}

/// The first shared rule that is missing, as nft text. What else stands in front of the
/// verdict (the reference puts an operator's conditions there) does not matter.
pub fn missing_shared(shared: &[Shared], found: &[Found]) -> Option<String> {
    shared.iter().find_map(|shared| {
        let Shared::Fixed(chain, rules) = shared else {
            return None;
        };
        let there: Vec<_> = in_chain(found, &chain.name)
            .filter_map(Found::statements)
            .collect();
        let is_there = |rule: &&Rule| {
            there
                .iter()
                .any(|there| rule.statements.iter().all(|s| there.contains(s)))
        };
        let missing = rules.iter().find(|rule| !is_there(rule))?;
        Some(format!("{chain} {missing}"))
    })
}
