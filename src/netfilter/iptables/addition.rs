//! What is wanted of table `nat` or `filter`, as plain data: the tools are told it as a script,
//! and [`native`](crate::netfilter::iptables::native) speaks it to the kernel.

use crate::netfilter::iptables::rule::{Rule, Script};
use crate::netfilter::model::{Owner, Protocol};
use crate::netfilter::nf_tables::ruleset::Family;

/// What is added to table `nat`, all or nothing.
#[derive(Debug)]
pub struct Addition<'a> {
    /// Rules that must be there.
    pub needed: Vec<&'a Rule>,
    /// The chain, which must not be there.
    pub chain: &'a str,
    /// Rules behind those that their chains have.
    pub appended: Vec<&'a Rule>,
    /// Ports that the rules are about. Where somebody may have one of them, the chain that
    /// shows it is listed before anything is inserted.
    pub ports: Option<WantedPorts<'a>>,
    /// Rules in front of those that their chains have: the last one comes to stand first.
    pub inserted: Vec<&'a Rule>,
}

impl Addition<'_> {
    /// The script that makes it, and prints the chain that shows whose the ports were.
    pub fn script(&self) -> Script {
        let mut script = Script::default();
        for rule in &self.needed {
            script.assert(rule);
        }
        script.create_chain(self.chain);
        for rule in &self.appended {
            script.append(rule);
        }
        if let Some(ports) = &self.ports {
            script.list_chain(ports.chain);
        }
        for rule in &self.inserted {
            script.insert(rule);
        }
        script
    }
}

/// Ports of the host that are to be an owner's.
#[derive(Debug)]
pub struct WantedPorts<'a> {
    /// The chain whose rules show who has a port.
    pub chain: &'a str,
    /// Whose they are to be.
    pub owner: &'a Owner,
    /// The ports.
    pub ports: Vec<(Protocol, u16)>,
}

/// A port that rules map, and whose they are as far as their comment says: the network and the
/// container.
pub type Taken = ((Protocol, u16), Option<(String, String)>);

/// Rules in a table of one family, of which both ages of the tools make the same.
#[derive(Debug)]
pub struct Members<'a> {
    /// That of the table.
    pub family: Family,
    /// Its name.
    pub table: &'static str,
    /// Those of the container.
    pub own: Vec<&'a Rule>,
}

/// A container's own chain, in the table `nat` of its family, and the rules that lead to it.
#[derive(Debug)]
pub struct PrivateChain<'a> {
    /// That of its table.
    pub family: Family,
    /// Its name.
    pub name: &'a str,
    /// The chain that has the rules which lead to it.
    pub entrance: &'a str,
    /// The comment of these rules.
    pub comment: &'a str,
}
