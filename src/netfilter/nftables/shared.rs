//! The chains of a table that belong to no owner: they lead packets to the owners' rules.

use anyhow::Result;

use crate::netfilter::nf_tables::change::Change;
use crate::netfilter::nf_tables::found::{Found, rules};
use crate::netfilter::nf_tables::query::{chain_use, look_up_chain};
use crate::netfilter::nf_tables::rule::{Rule, Statement};
use crate::netfilter::nf_tables::ruleset::{Chain, Table};
use crate::netfilter::nfnetlink::socket::Socket;
use crate::shell::ShellCommand;

/// A chain that must be there.
#[derive(Debug)]
pub enum Shared {
    /// Owners add rules to it.
    Open(Chain),
    /// It holds these rules.
    Fixed(Chain, Vec<Rule>),
}

impl Shared {
    pub fn chain(&self) -> &Chain {
        match self {
            Self::Open(chain) | Self::Fixed(chain, _) => chain,
        }
    }
}

/// Whether the fixed chains are as [`ensure_shared`] makes them, as far as their size
/// tells: the kernel counts the rules in a chain and those that lead to it. Nothing is
/// listed.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn is_in_order(socket: &Socket, table: Table, shared: &[Shared]) -> Result<bool> {
    let fixed = || {
        shared.iter().filter_map(|shared| match shared {
            Shared::Fixed(chain, rules) => Some((chain, rules)),
            Shared::Open(_) => None,
        })
    };
    for (chain, rules) in fixed() {
        let leads_here = |rule: &&Rule| {
            let verdict = rule.statements.last();
            matches!(verdict, Some(Statement::Jump(to) | Statement::Goto(to)) if *to == chain.name)
        };
        let leading = fixed().flat_map(|(_, rules)| rules).filter(leads_here);
        let expected = rules.len() + leading.count();
        let found = chain_use(socket, table.family, table.name, &chain.name)?;
        if found.and_then(|found| usize::try_from(found).ok()) != Some(expected) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What there is of a table, as far as an operation needs to know.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub rules: Vec<Found>,
    /// Those of the shared chains that exist.
    pub chains: Vec<String>,
}

/// Looks at the `shared` chains of `table`: at the rules of the fixed ones, at those of
/// the others that are named in `open`, and whether they exist.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn look(socket: &Socket, table: Table, shared: &[Shared], open: &[&str]) -> Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    for shared in shared {
        let name: &str = &shared.chain().name;
        let is_fixed = matches!(shared, Shared::Fixed(..));
        let found = if is_fixed || open.contains(&name) {
            rules(socket, &table, Some(name))?
        } else {
            Vec::new()
        };
        // What has rules need not be asked for.
        if !found.is_empty() || look_up_chain(socket, table.family, table.name, name)? {
            snapshot.chains.push(name.to_owned());
        }
        snapshot.rules.extend(found);
    }
    Ok(snapshot)
}

/// What makes the table and its shared chains so.
///
/// What is right already is left alone, even where adding it again would do no harm: the
/// kernel puts off the end of every such change for a grace period (10 to 20 ms), and
/// whoever made it has to wait for that. So is a chain with more in it than ours: an
/// operator's conditions, which the reference puts in front of its jumps, are in force
/// for its running containers.
pub fn ensure_shared(table: Table, shared: &[Shared], there: &Snapshot) -> Vec<Change> {
    let mut changes = vec![Change::AddTable(table)];
    for shared in shared {
        let chain = shared.chain();
        if !there.chains.iter().any(|name| *name == chain.name) {
            changes.push(Change::AddChain(chain.clone()));
        }
    }
    for shared in shared {
        let Shared::Fixed(chain, rules) = shared else {
            continue;
        };
        let mut found = in_chain(&there.rules, &chain.name);
        // In our order: each is looked for behind the one before it.
        if !rules
            .iter()
            .all(|rule| found.any(|found| says(found, rule)))
        {
            changes.push(Change::FlushChain(chain.clone()));
            let rules = rules.iter().cloned();
            changes.extend(rules.map(|rule| Change::Append(chain.clone(), rule)));
        }
    }
    changes
}

/// The rules of one chain.
pub fn in_chain<'a>(found: &'a [Found], chain: &'a str) -> impl Iterator<Item = &'a Found> {
    found.iter().filter(move |rule| rule.handle.chain == chain)
}

/// Whether a rule does what `wanted` does, if perhaps on more conditions.
fn says(found: &Found, wanted: &Rule) -> bool {
    let known = found.known_statements();
    wanted.statements.iter().all(|s| known.contains(s))
}

/// The shared rules that are missing. What else stands in front of the verdict (the
/// reference puts an operator's conditions there) does not matter.
pub fn missing_shared(shared: &[Shared], found: &[Found]) -> Vec<String> {
    let mut missing = Vec::new();
    for shared in shared {
        let Shared::Fixed(chain, rules) = shared else {
            continue;
        };
        let is_there = |rule: &&Rule| in_chain(found, &chain.name).any(|there| says(there, rule));
        let absent = rules.iter().filter(|rule| !is_there(rule));
        missing.extend(absent.map(|rule| command(chain, rule)));
    }
    missing
}

/// The command that would add a rule.
pub fn command(chain: &Chain, rule: &Rule) -> String {
    ShellCommand::nft(&format!("add rule {chain} {rule}")).into()
}
