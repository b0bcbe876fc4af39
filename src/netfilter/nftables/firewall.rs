//! What may pass to and from the containers. The reference has no such rules in nftables:
//! the layout is our own.
//!
//! An `accept` of one table is overruled by a `drop` of another. To let a container's
//! packets through we must go where they would be dropped: into each table with a base
//! chain at the hook `forward` whose policy is to drop, or whose last rule drops or rejects
//! what is left; here called a gate. Such a table gets the chain `cni_forward`, to which its
//! own chain leads first, and two sets with the addresses of the containers: one rule serves
//! them all, and each is an element whose comment says whose it is. When the last of them
//! is gone the table is again as it was.
//!
//! A `drop` is final, so what keeps others away from a bridge has a table to itself.
//!
//! Tables `ip filter` and `ip6 filter` are those of the iptables tools, which cannot read
//! what they have not written: there nothing is changed. Nor is it where a program keeps a
//! table for itself (`flags owner`).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;

use anyhow::Result;

use crate::netfilter::memo;
use crate::netfilter::model::{Firewall, Ingress, Isolation, Owner};
use crate::netfilter::nf_tables::among::End;
use crate::netfilter::nf_tables::change::Change;
use crate::netfilter::nf_tables::found::{Found, listed, rules};
use crate::netfilter::nf_tables::identity::{Tag, masquerade_comment};
use crate::netfilter::nf_tables::query::{
    BaseChain, Place, base_chains, chain_use, has_keeper, tables_with_chain,
};
use crate::netfilter::nf_tables::rule::{Rule, Statement};
use crate::netfilter::nf_tables::ruleset::{Chain, Family, Hook, Table};
use crate::netfilter::nf_tables::set::{Elements, Key, Keys, Set};
use crate::netfilter::nf_tables::{identity, ruleset};
use crate::netfilter::nfnetlink::socket::Socket;
use crate::netfilter::nftables::shared::{
    Shared, command, ensure_shared, in_chain, look, missing_shared,
};
use crate::netfilter::registry::settle;

/// Of the chain in each gate that lets pass.
pub const FORWARD: &str = "cni_forward";

/// The table of what is kept apart.
const TABLE: Table = Table {
    family: Family::Inet,
    name: "cni_firewall",
    comment: Some("cnibox: bridges that the CNI plugin firewall keeps apart (ingressPolicy)"),
};
const STAGE_1: &str = "isolation_stage_1";
const STAGE_2: &str = "isolation_stage_2";

/// How the sets of a gate hold elements when a change is planned: those that they have, or
/// none, where it is hoped that the container is new.
pub type Look = fn(&Set, &Socket) -> Result<Option<Elements>>;

/// None, if the set is there.
pub fn assume_new(set: &Set, socket: &Socket) -> Result<Option<Elements>> {
    Ok(set.is_there(socket)?.then(Elements::new))
}

/// A chain that drops or rejects what no rule of it accepts.
struct Gate {
    chain: Chain,
}

impl Gate {
    fn table(&self) -> Table {
        self.chain.table
    }

    /// What leads to the owners' addresses.
    fn jump() -> Rule {
        Rule {
            statements: vec![Statement::Jump(FORWARD.into())],
            comment: Some("CNI firewall plugin rules".into()),
            tag: None,
        }
    }

    /// The chain that lets pass, and the administrators' that decide before: networks may
    /// have one each.
    fn shared(&self, admin_chains: &[Cow<'static, str>]) -> Vec<Shared> {
        let chain = |name: Cow<'static, str>, comment| Chain {
            table: self.table(),
            name,
            comment,
            hook: None,
        };
        let jump = |name: &Cow<'static, str>| Rule {
            statements: vec![Statement::Jump(name.clone())],
            comment: Some("CNI firewall plugin admin overrides".into()),
            tag: None,
        };
        let mut rules: Vec<Rule> = admin_chains.iter().map(jump).collect();
        for set in sets(self.table()) {
            let address = |end| Statement::InSet {
                end,
                family: family(&set),
                set: set.name.into(),
            };
            let answers = [
                address(End::Destination),
                Statement::Established,
                Statement::Accept,
            ];
            rules.push(Rule::shared(answers));
            rules.push(Rule::shared([address(End::Source), Statement::Accept]));
        }
        let comment = Some("decides before the CNI firewall plugin");
        let open = |name: &Cow<'static, str>| Shared::Open(chain(name.clone(), comment));
        let mut shared: Vec<Shared> = admin_chains.iter().map(open).collect();
        let comment = Some("cnibox: what containers may send");
        shared.push(Shared::Fixed(chain(FORWARD.into(), comment), rules));
        shared
    }
}

/// The sets of addresses in `table`, of the families that it sees.
fn sets(table: Table) -> Vec<Set> {
    let set = |name, keys| Set {
        table,
        name,
        comment: "cnibox: addresses of containers, and whose they are",
        keys,
    };
    let v4 = set("cni_addresses_v4", Keys::Ipv4);
    let v6 = set("cni_addresses_v6", Keys::Ipv6);
    match table.family {
        Family::Ip => vec![v4],
        Family::Ip6 => vec![v6],
        Family::Inet | Family::Bridge | Family::Netdev => vec![v4, v6],
    }
}

fn family(set: &Set) -> Family {
    match set.keys {
        Keys::Ipv6 => Family::Ip6,
        _ => Family::Ip,
    }
}

/// The owner's elements of `set`.
fn elements(set: &Set, owner: &Owner, addresses: &[IpAddr]) -> Elements {
    let is_kept = |address: &&IpAddr| ruleset::family_of(**address) == family(set);
    let of_family = addresses.iter().filter(is_kept);
    let comment = masquerade_comment(owner);
    of_family
        .map(|address| (Key::Address(*address), comment.clone()))
        .collect()
}

/// As [`gates`], for questions only: the kernel is asked once while a
/// [`Memo`](crate::netfilter::memo::Memo) keeps the answer.
fn gates_listed(socket: &Socket, addresses: &[IpAddr]) -> Result<Rc<(Vec<Gate>, Vec<Gate>)>> {
    let has = |is_of_family: fn(&IpAddr) -> bool| addresses.iter().any(is_of_family);
    let (has_v4, has_v6) = (has(IpAddr::is_ipv4), has(IpAddr::is_ipv6));
    let name = format!("gates of IPv4: {has_v4}, of IPv6: {has_v6}");
    memo::listing(&name, || gates(socket, addresses))
}

/// Those in the way, and chains that drop as well and that we cannot change.
fn gates(socket: &Socket, addresses: &[IpAddr]) -> Result<(Vec<Gate>, Vec<Gate>)> {
    let is_seen = |family| match family {
        Family::Ip => addresses.iter().any(IpAddr::is_ipv4),
        Family::Ip6 => addresses.iter().any(IpAddr::is_ipv6),
        Family::Inet | Family::Bridge | Family::Netdev => true,
    };
    let mut gates = Vec::new();
    for family in [Family::Inet, Family::Ip, Family::Ip6] {
        if is_seen(family) {
            for base in base_chains(socket, family)? {
                gates.extend(gate(socket, base)?);
            }
        }
    }
    let mut ours = Vec::new();
    let mut others = Vec::new();
    for gate in gates {
        let Chain { table, name, .. } = &gate.chain;
        let is_of_iptables =
            name == "FORWARD" && table.name == "filter" && table.family != Family::Inet;
        if is_of_iptables || has_keeper(socket, table)? {
            others.push(gate);
        } else {
            ours.push(gate);
        }
    }
    Ok((ours, others))
}

/// The base chain, if it is one.
fn gate(socket: &Socket, base: BaseChain) -> Result<Option<Gate>> {
    if !base.forwards {
        return Ok(None);
    }
    let chain = foreign_chain(base.place);
    let is_gate = base.drops
        || rules(socket, &chain.table, Some(&chain.name))?
            .last()
            .is_some_and(Found::refuses_all);
    Ok(is_gate.then_some(Gate { chain }))
}

fn foreign_chain(place: Place) -> Chain {
    Chain::named(foreign_table(place.family, place.table), place.chain)
}

/// A table of somebody else's. The names of our own are constants: this one is kept until
/// the process ends, which is soon.
fn foreign_table(family: Family, name: String) -> Table {
    Table::named(family, name.leak())
}

/// The chains that drop what the owner sends and that are not ours to change, in words:
/// this backend cannot help there.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn obstacles(socket: &Socket, wanted: &Firewall) -> Result<Vec<String>> {
    if wanted.admin_chain.is_none() {
        return Ok(Vec::new());
    }
    let (_, others) = gates(socket, &wanted.addresses)?;
    Ok(others.iter().map(|gate| gate.chain.to_string()).collect())
}

/// What makes `wanted` exist for `owner`; its former addresses go, as far as `look` shows
/// them.
///
/// # Errors
/// When the kernel refuses to tell what there is.
pub fn ensure(
    socket: &Socket,
    owner: &Owner,
    wanted: &Firewall,
    elements_of: Look,
) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    if let Some(admin_chain) = &wanted.admin_chain {
        let mut known = Vec::new();
        for gate in gates(socket, &wanted.addresses)?.0 {
            // A table may have several.
            if !known.contains(&gate.table()) {
                known.push(gate.table());
                let passing = pass(socket, &gate, admin_chain, (owner, wanted), elements_of)?;
                changes.extend(passing);
            }
            let found = rules(socket, &gate.table(), Some(&gate.chain.name))?;
            if !found.iter().any(leads_to_us) {
                changes.push(Change::Insert(gate.chain, Gate::jump()));
            }
        }
    }
    if let Some(isolation) = &wanted.isolation {
        changes.extend(isolate(socket, isolation)?);
    }
    Ok(changes)
}

/// What lets the owner pass in the table of a gate that leads there.
fn pass(
    socket: &Socket,
    gate: &Gate,
    admin_chain: &str,
    (owner, wanted): (&Owner, &Firewall),
    elements_of: Look,
) -> Result<Vec<Change>> {
    let own = Tag::of(owner);
    let mut of_sets = Vec::new();
    let mut of_elements = Vec::new();
    for set in sets(gate.table()) {
        let there = elements_of(&set, socket)?;
        let wanted = elements(&set, owner, &wanted.addresses);
        if there.is_none() {
            of_sets.push(Change::AddSet(set));
        }
        let there = there.unwrap_or_default();
        let touched = |key: &Key| {
            let is_own = |comment: &String| Tag::at_start(comment) == Some(own);
            wanted.contains_key(key) || there.get(key).is_some_and(is_own)
        };
        of_elements.extend(settle(&set, Some(&there), &wanted, touched));
    }
    let mut admin_chains = admin_chains(&rules(socket, &gate.table(), Some(FORWARD))?);
    if !admin_chains.iter().any(|name| name == admin_chain) {
        admin_chains.insert(0, admin_chain.to_owned().into());
    }
    let shared = gate.shared(&admin_chains);
    let snapshot = look(socket, gate.table(), &shared, &[])?;
    let mut of_chains = ensure_shared(gate.table(), &shared, &snapshot);
    // The table is there, or the gate would not be: its flags and comment are its owner's.
    of_chains.retain(|change| !matches!(change, Change::AddTable(_)));
    // Chains come before the rules that lead to them, and sets before those that ask them.
    let mut changes = of_sets;
    changes.extend(of_chains);
    changes.extend(of_elements);
    Ok(changes)
}

/// Where the rules of [`FORWARD`] lead.
fn admin_chains(found: &[Found]) -> Vec<Cow<'static, str>> {
    let statements = in_chain(found, FORWARD).flat_map(Found::known_statements);
    let target = |statement| match statement {
        Statement::Jump(name) => Some(name),
        _ => None,
    };
    statements.filter_map(target).collect()
}

/// Whether it is [`Gate::jump`].
fn leads_to_us(found: &Found) -> bool {
    found.statements() == Some(Gate::jump().statements)
}

/// The chains that keep bridges apart.
fn stages() -> [Shared; 3] {
    let chain = |name: &'static str, comment, hook| Chain {
        table: TABLE,
        name: name.into(),
        comment,
        hook,
    };
    let hook = Hook {
        kind: "filter",
        place: ruleset::Place::Forward,
        priority: 0,
    };
    let jump = Rule::shared([Statement::Jump(STAGE_1.into())]);
    [
        Shared::Open(chain(
            STAGE_1,
            Some("what comes from isolated bridges"),
            None,
        )),
        Shared::Open(chain(
            STAGE_2,
            Some("what goes to another isolated bridge"),
            None,
        )),
        Shared::Fixed(chain("forward", None, Some(hook)), vec![jump]),
    ]
}

fn stage(name: &'static str) -> Chain {
    Chain::named(TABLE, name)
}

/// The rules of a bridge, each with the chain it is in.
fn isolation_rules(isolation: &Isolation) -> Vec<(&'static str, Rule)> {
    let at = |end, is| Statement::Interface {
        end,
        is,
        name: isolation.bridge.clone(),
    };
    let (comes, goes) = (at(End::Source, true), at(End::Destination, true));
    let elsewhere = at(End::Destination, false);
    let policy = match isolation.ingress {
        Ingress::SameBridge => "same-bridge",
        Ingress::Isolated => "isolated",
    };
    let rule = |statements| Rule {
        statements,
        comment: Some(format!("ingressPolicy: {policy}")),
        tag: None,
    };
    let mut rules = vec![
        (
            STAGE_1,
            rule(vec![
                comes.clone(),
                elsewhere,
                Statement::Jump(STAGE_2.into()),
            ]),
        ),
        (STAGE_2, rule(vec![goes.clone(), Statement::Drop])),
    ];
    if isolation.ingress == Ingress::Isolated {
        rules.push((STAGE_1, rule(vec![comes, goes, Statement::Drop])));
    }
    rules
}

/// What keeps one bridge apart.
fn isolate(socket: &Socket, isolation: &Isolation) -> Result<Vec<Change>> {
    let shared = stages();
    let snapshot = look(socket, TABLE, &shared, &[STAGE_1, STAGE_2])?;
    let mut changes = ensure_shared(TABLE, &shared, &snapshot);
    for (chain, rule) in isolation_rules(isolation) {
        let is_there = in_chain(&snapshot.rules, chain)
            .any(|found| found.statements().as_ref() == Some(&rule.statements));
        if !is_there {
            changes.push(Change::Append(stage(chain), rule));
        }
    }
    // Adding a table that is there does nothing, and costs a transaction.
    if changes.len() == 1 {
        changes.clear();
    }
    Ok(changes)
}

/// The gates that we have been to, whatever their policy is now.
fn opened(socket: &Socket) -> Result<Vec<Table>> {
    let mut tables = Vec::new();
    for family in [Family::Inet, Family::Ip, Family::Ip6] {
        let names = tables_with_chain(socket, family, FORWARD)?;
        tables.extend(names.into_iter().map(|name| foreign_table(family, name)));
    }
    Ok(tables)
}

/// Of [`opened`] those without an address.
fn unused(socket: &Socket) -> Result<Vec<Table>> {
    let mut unused = opened(socket)?;
    for (set, elements) in passing(socket)? {
        if !elements.is_empty() {
            unused.retain(|table| *table != set.table);
        }
    }
    Ok(unused)
}

/// What makes tables that no container passes any more as they were; an administrator's
/// rules stay. To be tried once: where it is refused, somebody has come meanwhile. What
/// empties the sets must be done before, for until then the kernel counts their elements.
///
/// # Errors
/// When the kernel refuses to tell what there is.
pub fn close(socket: &Socket) -> Result<Vec<Vec<Change>>> {
    let of_table = |table| close_table(socket, table);
    unused(socket)?.into_iter().map(of_table).collect()
}

fn close_table(socket: &Socket, table: Table) -> Result<Vec<Change>> {
    let chain = |name| Chain::named(table, name);
    let found = rules(socket, &table, None)?;
    let jumps = found.iter().filter(|found| leads_to_us(found));
    let mut changes: Vec<Change> = jumps
        .map(|found| Change::DeleteRule(table, found.handle.clone()))
        .collect();
    changes.push(Change::FlushChain(chain(FORWARD.into())));
    changes.push(Change::DeleteEmptyChain(chain(FORWARD.into())));
    for admin_chain in admin_chains(&found) {
        // The jump, and nothing else.
        if chain_use(socket, table.family, table.name, &admin_chain)? == Some(1) {
            changes.push(Change::DeleteEmptyChain(chain(admin_chain)));
        }
    }
    for set in sets(table) {
        if set.is_there(socket)? {
            changes.push(Change::DeleteEmptySet(set));
        }
    }
    Ok(changes)
}

/// The addresses that may pass, with their sets.
///
/// # Errors
/// When the kernel refuses to tell what there is.
pub fn passing(socket: &Socket) -> Result<Vec<(Set, Elements)>> {
    let mut found = Vec::new();
    for table in opened(socket)? {
        for set in sets(table) {
            let there = set.elements(socket)?.unwrap_or_default();
            found.push((set, there));
        }
    }
    Ok(found)
}

/// Those of attachments that are `unwanted`.
fn unwanted_elements(
    socket: &Socket,
    unwanted: impl Fn(Tag) -> bool,
) -> Result<Vec<(Set, Elements)>> {
    let mut found = passing(socket)?;
    for (_, elements) in &mut found {
        elements.retain(|_, comment| Tag::at_start(comment).is_some_and(&unwanted));
    }
    Ok(found)
}

/// The rules of bridges that are gone, each with the bridge.
fn stray(
    socket: &Socket,
    is_gone: impl Fn(&str) -> bool,
) -> Result<Vec<(String, crate::netfilter::nf_tables::rule::Handle)>> {
    let mut stray = Vec::new();
    for chain in [STAGE_1, STAGE_2] {
        for found in rules(socket, &TABLE, Some(chain))? {
            let bridge = found.known_statements().into_iter().find_map(|s| match s {
                Statement::Interface { name, .. } => Some(name),
                _ => None,
            });
            stray.extend(
                bridge
                    .filter(|bridge| is_gone(bridge))
                    .map(|bridge| (bridge, found.handle)),
            );
        }
    }
    Ok(stray)
}

/// What removes the addresses of attachments that are `unwanted`, and the rules of bridges
/// that are gone.
///
/// # Errors
/// When the kernel refuses to tell what there is.
pub fn remove(
    socket: &Socket,
    unwanted: impl Fn(Tag) -> bool,
    is_gone: impl Fn(&str) -> bool,
) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for (set, elements) in unwanted_elements(socket, unwanted)? {
        let keys: Vec<Key> = elements.into_keys().collect();
        changes.extend(Change::delete_elements(&set, &keys));
    }
    let stray = stray(socket, is_gone)?.into_iter();
    changes.extend(stray.map(|(_, handle)| Change::DeleteRule(TABLE, handle)));
    Ok(changes)
}

/// What [`remove`] would remove, in words.
///
/// # Errors
/// When the kernel refuses to tell what there is.
pub fn stale(
    socket: &Socket,
    unwanted: impl Fn(Tag) -> bool,
    is_gone: impl Fn(&str) -> bool,
) -> Result<Vec<String>> {
    let elements = unwanted_elements(socket, unwanted)?;
    let owners = elements.iter().flat_map(|(_, elements)| elements.values());
    let mut stale: BTreeSet<String> = owners
        .map(|comment| identity::owner_in_words(comment))
        .collect();
    for (bridge, _) in stray(socket, is_gone)? {
        stale.insert(format!("bridge {bridge}, which is gone"));
    }
    for table in unused(socket)? {
        stale.insert(format!("table {table}, which no container passes"));
    }
    Ok(stale.into_iter().collect())
}

/// What is missing of `wanted`, each as the command that would add it.
///
/// # Errors
/// When the kernel refuses to tell what there is.
pub fn missing(socket: &Socket, owner: &Owner, wanted: &Firewall) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    if let Some(admin_chain) = &wanted.admin_chain {
        let mut known = Vec::new();
        for gate in &gates_listed(socket, &wanted.addresses)?.0 {
            let found = listed(socket, &gate.table(), Some(&gate.chain.name))?;
            if !found.iter().any(leads_to_us) {
                missing.push(command(&gate.chain, &Gate::jump()));
            }
            if known.contains(&gate.table()) {
                continue;
            }
            known.push(gate.table());
            let found = listed(socket, &gate.table(), Some(FORWARD))?;
            let admin_chain = Cow::Owned(admin_chain.clone());
            missing.extend(missing_shared(&gate.shared(&[admin_chain]), &found));
            for set in sets(gate.table()) {
                let there = set.listed(socket)?;
                let wanted = elements(&set, owner, &wanted.addresses);
                let changes = settle(&set, there.as_ref().as_ref(), &wanted, |key| {
                    wanted.contains_key(key)
                });
                missing.extend(changes.iter().map(Change::command));
            }
        }
    }
    if let Some(isolation) = &wanted.isolation {
        let found = listed(socket, &TABLE, None)?;
        missing.extend(missing_shared(&stages(), &found));
        for (chain, rule) in isolation_rules(isolation) {
            let is_there = in_chain(&found, chain)
                .any(|found| found.statements().as_ref() == Some(&rule.statements));
            if !is_there {
                missing.push(command(&stage(chain), &rule));
            }
        }
    }
    Ok(missing)
}
