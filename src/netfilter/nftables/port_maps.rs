//! Ports of the host that lead into containers (layout: docs/compatibility.md#7.4).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use ipnet::IpNet;

use crate::netfilter::known::Known;
use crate::netfilter::model::{Mapping, Owner, PortMaps, Protocol, disputed, taken_over};
use crate::netfilter::nf_tables::among::{Among, End, Field, Values};
use crate::netfilter::nf_tables::change::Change;
use crate::netfilter::nf_tables::found::{Found, rules};
use crate::netfilter::nf_tables::identity::{Tag, owner_in_words, port_map_comment};
use crate::netfilter::nf_tables::query::{chain_use, look_up_chain};
use crate::netfilter::nf_tables::rule::{Rule, Statement};
use crate::netfilter::nf_tables::ruleset::{Chain, Family, Hook, Place, Table, family_of};
use crate::netfilter::nf_tables::set::{Elements, Key};
use crate::netfilter::nfnetlink::socket::Socket;
use crate::netfilter::nftables::shared::{
    Shared, Snapshot, command, ensure_shared, in_chain, is_in_order, look, missing_shared,
};
use crate::netfilter::registry;
use crate::netfilter::registry::{HOST_PORTS, MAPPED, settle};

/// Names that other implementations know.
const HOSTPORTS: &str = "hostports";
/// Where the reference put mappings of one host address before v1.9.
const HOSTIP_HOSTPORTS: &str = "hostip_hostports";
const HOSTPORTS_ALL: &str = "hostports_all";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const MASQUERADING: &str = "masquerading";

/// The chains that owners have rules in.
const OWNED: [&str; 3] = [HOSTPORTS, HOSTIP_HOSTPORTS, MASQUERADING];

/// The tables, one of each family.
pub const TABLES: [Table; 2] = [table(Family::Ip), table(Family::Ip6)];

const fn table(family: Family) -> Table {
    Table {
        family,
        name: "cni_hostport",
        comment: Some("CNI portmap plugin"),
    }
}

/// What one owner needs in the table of one family.
#[derive(Debug)]
pub struct Plan {
    pub table: Table,
    /// The container's address, if there is one of this family.
    container: Option<IpAddr>,
    snat: bool,
    hostports: Vec<Rule>,
    masquerading: Vec<Rule>,
}

impl Plan {
    /// The plan for a container with the address `container`. `conditions` are asked of
    /// every packet besides.
    pub fn new(
        owner: &Owner,
        wanted: &PortMaps,
        container: IpNet,
        conditions: &[Statement],
    ) -> Self {
        let (comment, tag) = (port_map_comment(owner), Tag::of(owner));
        let rule = |statements| Rule {
            statements,
            comment: Some(comment.clone()),
            tag: Some(tag),
        };
        let address = container.addr();
        let mappings = wanted
            .mappings
            .iter()
            .filter(|mapping| mapping.is_for(address));
        let hostports: Vec<Rule> = mappings
            .map(|mapping| rule(hostport(mapping, address, conditions)))
            .collect();
        let masquerading = if wanted.snat && !hostports.is_empty() {
            masqueraded(container, wanted.masquerade_all)
                .into_iter()
                .map(rule)
                .collect()
        } else {
            Vec::new()
        };
        Self {
            table: table(family_of(address)),
            container: Some(address),
            snat: wanted.snat,
            hostports,
            masquerading,
        }
    }

    /// A plan without any rule.
    pub fn none(table: Table) -> Self {
        Self {
            table,
            container: None,
            snat: false,
            hostports: Vec::new(),
            masquerading: Vec::new(),
        }
    }

    /// What [`Plan::ensure`] needs to know. Every chain is looked at: somebody may have
    /// flushed one of them, and left the owner's rules in another.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn look(&self, socket: &Socket) -> Result<Snapshot> {
        look(socket, self.table, &shared(self.table, true), &OWNED)
    }

    /// What makes exactly this plan's rules exist for `owner`.
    pub fn ensure(&self, owner: &Owner, there: &Snapshot) -> Vec<Change> {
        let mut changes = Vec::new();
        if !self.hostports.is_empty() {
            let shared = shared(self.table, self.snat);
            changes.extend(ensure_shared(self.table, &shared, there));
        }
        let replaced = remove(self.table, &there.rules, None, self.replaces(owner));
        changes.extend(replaced);
        changes.extend(self.insertions());
        changes
    }

    /// Whether [`Plan::ensure`] removes a rule: any of the attachment, but of those of the
    /// reference, which may be another attachment's of the container, only what leads to
    /// the address.
    pub fn replaces(&self, owner: &Owner) -> impl Fn(&Found) -> bool + use<> {
        let (is_own, container) = (is_own(owner), self.container);
        move |rule| {
            let leads_there = || container.is_some() && target(rule) == container;
            is_own(rule) && (rule.tag.is_some() || leads_there())
        }
    }

    fn insertions(&self) -> Vec<Change> {
        let chains = [
            (HOSTPORTS, &self.hostports),
            (MASQUERADING, &self.masquerading),
        ];
        let mut changes = Vec::new();
        for (name, rules) in chains {
            let chain = chain(self.table, name);
            // Each goes in front of the one before it.
            let insert = |rule: &Rule| Change::Insert(chain.clone(), rule.clone());
            changes.extend(rules.iter().rev().map(insert));
        }
        changes
    }

    /// Whether the shared chains that the plan needs are there.
    fn has_shared(&self, socket: &Socket) -> Result<bool> {
        Ok(self.hostports.is_empty()
            || is_in_order(socket, self.table, &shared(self.table, self.snat))?)
    }

    /// The rules of the plan that are missing, each as the command that would add it.
    ///
    /// # Errors
    /// When the kernel refuses to tell what is in their sets.
    pub fn missing(&self, owner: &Owner, socket: &Socket, found: &[Found]) -> Result<Vec<String>> {
        if self.hostports.is_empty() {
            return Ok(Vec::new());
        }
        let is_own = is_own(owner);
        let own: Vec<&Found> = found.iter().filter(|rule| is_own(rule)).collect();
        // The reference has conditions elsewhere and does without what needs the
        // translation's state.
        let ours = own.is_empty() || own.iter().any(|rule| rule.tag.is_some());
        let mut there: Vec<(&str, Vec<Statement>)> = Vec::new();
        for rule in own {
            if let Some(statements) = rule.whole_statements(socket, &self.table)? {
                there.push((&rule.handle.chain, statements));
            }
        }
        let is_there = |name: &str, rule: &Rule| {
            there.iter().any(|(chain, statements)| {
                *chain == name
                    && if ours {
                        *statements == rule.statements
                    } else {
                        statements.iter().all(|s| rule.statements.contains(s))
                    }
            })
        };
        let needed = |rule: &&Rule| ours || !rule.statements.contains(&Statement::Translated);
        let chains = [
            (HOSTPORTS, &self.hostports),
            (MASQUERADING, &self.masquerading),
        ];
        let mut missing = missing_shared(&shared(self.table, self.snat && ours), found);
        for (name, rules) in chains {
            let rules = rules.iter().filter(needed);
            let absent = rules.filter(|rule| !is_there(name, rule));
            missing.extend(absent.map(|rule| command(&chain(self.table, name), rule)));
        }
        Ok(missing)
    }

    /// Whether everything that a rule maps is mapped by the plan.
    pub fn displaces(&self, rule: &Found) -> bool {
        let theirs = || endpoint(&rule.statements()?);
        rule.family == self.table.family
            && is_mapping(rule)
            && theirs().is_some_and(|theirs| self.endpoints().any(|mine| mine.covers(theirs)))
    }

    /// A sentence for each container that has a mapping of a port of the plan, which is
    /// another backend's.
    pub fn disputed(&self, owner: &Owner, found: &[Found]) -> BTreeSet<String> {
        let (displaced, others): (Vec<_>, Vec<_>) =
            found.iter().partition(|rule| self.displaces(rule));
        let displaced = self.rivals(owner, displaced).into_iter();
        let others = self.rivals(owner, others).into_iter();
        displaced
            .map(|(port, whose)| taken_over(&port, &whose))
            .chain(others.map(|(port, whose)| disputed(&port, &whose)))
            .collect()
    }

    /// What the plan's mappings listen on.
    fn endpoints(&self) -> impl Iterator<Item = Endpoint> {
        let rules = self.hostports.iter();
        rules.filter_map(|rule| endpoint(&rule.statements))
    }

    /// A sentence for each container whose mapping of a port the plan takes over.
    pub fn taken_over(&self, owner: &Owner, found: &[Found]) -> BTreeSet<String> {
        let rivals = self.rivals(owner, found).into_iter();
        rivals
            .map(|(port, whose)| taken_over(&port, &whose))
            .collect()
    }

    /// The ports of the plan that rules which are `found` map, too, each with the other
    /// container that has it.
    fn rivals<'a>(
        &self,
        owner: &Owner,
        found: impl IntoIterator<Item = &'a Found>,
    ) -> BTreeSet<(String, String)> {
        let comment = port_map_comment(owner);
        let mine: Vec<Endpoint> = self.endpoints().collect();
        let mut rivals = BTreeSet::new();
        for rule in found.into_iter().filter(|rule| is_mapping(rule)) {
            let Some(other) = rule.comment.as_ref().filter(|other| **other != comment) else {
                continue;
            };
            let Some(theirs) = rule
                .statements()
                .and_then(|statements| endpoint(&statements))
            else {
                continue;
            };
            if mine.iter().any(|mine| mine.overlaps(theirs)) {
                let Endpoint { protocol, port, .. } = theirs;
                let port = format!("{port}/{}", protocol.as_str());
                rivals.insert((port, format!("container {other}")));
            }
        }
        rivals
    }
}

/// The mappings that there are in the table of `family`.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn mappings(socket: &Socket, family: Family) -> Result<Vec<Found>> {
    let table = table(family);
    let mut found = Vec::new();
    if look_up_chain(socket, family, table.name, HOSTPORTS)? {
        for chain in [HOSTIP_HOSTPORTS, HOSTPORTS] {
            found.extend(rules(socket, &table, Some(chain))?);
        }
    }
    Ok(found)
}

/// What makes the rules of `plans` exist for an owner that has none, on ports that nobody
/// has: refused otherwise. `None` when there is more to do than that.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn first(owner: &Owner, plans: &[Plan], socket: &Socket) -> Result<Option<Vec<Change>>> {
    let ports = ports_of(owner, plans);
    if ports.is_empty() || !MAPPED.is_there(socket)? || outnumbers_rules(socket)? {
        return Ok(None);
    }
    for plan in plans {
        if !plan.has_shared(socket)? {
            return Ok(None);
        }
    }
    let mut changes =
        Change::create_elements(&MAPPED, Elements::from([registry::attachment(owner)]));
    changes.extend(Change::create_elements(&HOST_PORTS, ports));
    changes.extend(plans.iter().flat_map(Plan::insertions));
    Ok(Some(changes))
}

/// Whether the registry has more ports than there are mappings in the tables: another
/// implementation has removed some. Where the kernel does not count, nobody knows.
fn outnumbers_rules(socket: &Socket) -> Result<bool> {
    let Some(ports) = HOST_PORTS.count(socket)? else {
        return Ok(false);
    };
    let mut most = 0;
    for table in TABLES {
        let mut rules = 0;
        for chain in [HOSTPORTS, HOSTIP_HOSTPORTS] {
            let used = chain_use(socket, table.family, table.name, chain)?;
            // One of its uses is the jump to it.
            rules += used.unwrap_or_default().saturating_sub(1);
        }
        // A port is usually mapped for both families.
        most = most.max(rules);
    }
    Ok(ports > most)
}

/// The ports of a plan's mappings, all the owner's.
fn ports_of(owner: &Owner, plans: &[Plan]) -> Elements {
    let rules = plans.iter().flat_map(|plan| &plan.hostports);
    let keys = rules.filter_map(|rule| port(&rule.statements));
    let comment = port_map_comment(owner);
    keys.map(|key| (key, comment.clone())).collect()
}

/// What an operation does to the rules of both tables.
pub struct Effect<'a> {
    /// The rules that there are.
    pub found: &'a [Found],
    /// Those of them that go.
    pub gone: &'a dyn Fn(&Found) -> bool,
    /// The attachments that this is about.
    pub touched: &'a dyn Fn(Tag) -> bool,
    /// The one attachment, if it is one.
    pub owner: Option<&'a Owner>,
    /// What is added, for the owner.
    pub plans: &'a [Plan],
}

impl Effect<'_> {
    /// What makes the registry follow, given what it `was`.
    pub fn register(&self, was: &Registry) -> Vec<Change> {
        let Registry { mapped, host_ports } = was;
        let mut ports = Elements::new();
        let mut attachments = Elements::new();
        if let Some(owner) = self.owner {
            ports = ports_of(owner, self.plans);
            if !ports.is_empty() {
                attachments.extend([registry::attachment(owner)]);
            }
        }
        let mappings = self.found.iter().filter(|rule| is_mapping(rule));
        let (gone, stay): (Vec<&Found>, Vec<&Found>) = mappings.partition(|rule| (self.gone)(rule));
        let mut touched: BTreeSet<Key> = ports.keys().cloned().collect();
        touched.extend(gone.iter().filter_map(|rule| port(&rule.statements()?)));
        // And what is left over from rules that somebody flushed, or that another
        // implementation removed.
        let elements = host_ports.iter().flatten();
        let there: BTreeSet<(u16, &str)> = stay
            .iter()
            .filter_map(|rule| Some((rule.port()?, rule.comment.as_deref()?)))
            .collect();
        let left_over = elements.filter(|(key, comment)| {
            number(key).is_none_or(|port| !there.contains(&(port, comment.as_str())))
        });
        touched.extend(left_over.map(|(key, _)| key.clone()));
        let numbers: BTreeSet<u16> = touched.iter().filter_map(number).collect();
        let tags: BTreeSet<Tag> = stay.iter().filter_map(|rule| rule.tag).collect();
        for rule in stay {
            let comment = || rule.comment.clone().unwrap_or_default();
            if let Some(tag) = rule.tag.filter(|_| mapped.is_none()) {
                attachments
                    .entry(Key::Attachment(tag))
                    .or_insert_with(comment);
            }
            // To understand a rule takes far longer than to see its port.
            let is_touched = rule.port().is_some_and(|port| numbers.contains(&port));
            if (is_touched || host_ports.is_none())
                && let Some(port) = rule.statements().and_then(|says| port(&says))
            {
                // The foremost has the port.
                ports.entry(port).or_insert_with(comment);
            }
        }
        let is_touched = |key: &Key| match key {
            Key::Attachment(tag) => (self.touched)(*tag) || !tags.contains(tag),
            port => touched.contains(port),
        };
        let sets = [
            (MAPPED, mapped, attachments),
            (HOST_PORTS, host_ports, ports),
        ];
        let mut changes = Vec::new();
        for (set, there, wanted) in sets {
            // Only who adds makes a set.
            if there.is_some() || !self.plans.is_empty() {
                changes.extend(settle(&set, there.as_ref(), &wanted, is_touched));
            }
        }
        changes
    }
}

/// Who has which ports, as the registry has it.
#[derive(Debug, Default)]
pub struct Registry {
    mapped: Option<Elements>,
    host_ports: Option<Elements>,
}

impl Registry {
    /// Reads it. To be done before the rules are listed: an element whose rules are not
    /// found then is left over, and not one of an ADD that came in between.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn read(socket: &Socket) -> Result<Self> {
        Ok(Self {
            mapped: MAPPED.elements(socket)?,
            host_ports: HOST_PORTS.elements(socket)?,
        })
    }

    /// Whose elements are left over, in words: those of attachments that are `unwanted`,
    /// and of ports that none of the rules `found` is about.
    pub fn left_over(&self, found: &[Found], unwanted: impl Fn(&Tag) -> bool) -> Vec<String> {
        let tags: BTreeSet<Tag> = found.iter().filter_map(|rule| rule.tag).collect();
        let mappings = found.iter().filter(|rule| is_mapping(rule));
        let ports: BTreeSet<Key> = mappings
            .filter_map(|rule| port(&rule.statements()?))
            .collect();
        let is_left_over = |key: &Key| match key {
            Key::Attachment(tag) => unwanted(tag) && !tags.contains(tag),
            key => !ports.contains(key),
        };
        let attachments = self.mapped.iter().flatten();
        let attachments = attachments
            .filter(|(key, _)| is_left_over(key))
            .map(|(_, comment)| owner_in_words(comment));
        let host_ports = self.host_ports.iter().flatten();
        let host_ports = host_ports
            .filter(|(key, _)| is_left_over(key))
            .map(|(_, id)| format!("container {id}"));
        let remembered = |owner| format!("{owner}, remembered although its rules are gone");
        attachments.chain(host_ports).map(remembered).collect()
    }
}

fn number(key: &Key) -> Option<u16> {
    match key {
        Key::Port(_, port) => Some(*port),
        _ => None,
    }
}

fn is_mapping(rule: &Found) -> bool {
    [HOSTPORTS, HOSTIP_HOSTPORTS].contains(&rule.handle.chain.as_str())
}

fn port(statements: &[Statement]) -> Option<Key> {
    let Endpoint { protocol, port, .. } = endpoint(statements)?;
    Some(Key::Port(protocol, port))
}

/// What a mapping listens on.
#[derive(Debug, Clone, Copy)]
struct Endpoint {
    protocol: Protocol,
    port: u16,
    host: Option<IpAddr>,
}

impl Endpoint {
    /// Whether everything that comes to the other would come here.
    fn covers(self, other: Self) -> bool {
        self.overlaps(other) && (self.host.is_none() || self.host == other.host)
    }

    fn overlaps(self, other: Self) -> bool {
        let same_host = self.host.is_none() || other.host.is_none() || self.host == other.host;
        self.protocol == other.protocol && self.port == other.port && same_host
    }
}

fn endpoint(statements: &[Statement]) -> Option<Endpoint> {
    let (protocol, port) = statements.iter().find_map(|statement| match statement {
        Statement::Port { protocol, port } => Some((*protocol, *port)),
        _ => None,
    })?;
    let host = match statements.first() {
        Some(Statement::Address {
            end: End::Destination,
            is: true,
            net,
        }) if net.prefix_len() == net.max_prefix_len() => Some(net.addr()),
        _ => None,
    };
    Some(Endpoint {
        protocol,
        port,
        host,
    })
}

/// Where a mapping rule leads: protocol and port of the host, address in the container.
pub fn destination(statements: &[Statement]) -> Option<(Protocol, u16, IpAddr)> {
    let Endpoint { protocol, port, .. } = endpoint(statements)?;
    statements.iter().find_map(|statement| match statement {
        Statement::Dnat { to, .. } => Some((protocol, port, *to)),
        _ => None,
    })
}

/// What a mapping rule does, with the address in the container.
pub fn mapping(statements: &[Statement]) -> Option<(Mapping, IpAddr)> {
    let Endpoint {
        protocol,
        port: host_port,
        host: host_ip,
    } = endpoint(statements)?;
    statements.iter().find_map(|statement| match statement {
        Statement::Dnat { to, port } => Some((
            Mapping {
                protocol,
                host_ip,
                host_port,
                container_port: *port,
            },
            *to,
        )),
        _ => None,
    })
}

/// The container that a mapping leads to; `None` for any other rule.
pub fn mapped_to(rule: &Found) -> Option<IpAddr> {
    target(rule).filter(|_| is_mapping(rule))
}

/// The container that a rule translates to, or to which the packets go that it is about.
fn target(rule: &Found) -> Option<IpAddr> {
    let statements = rule.known_statements();
    statements.iter().find_map(|statement| match statement {
        Statement::Dnat { to, .. } if is_mapping(rule) => Some(*to),
        Statement::Address {
            end: End::Destination,
            is: true,
            net,
        } if !is_mapping(rule) && net.prefix_len() == net.max_prefix_len() => Some(net.addr()),
        _ => None,
    })
}

/// What all owners in the table share. Without `snat` nothing is masqueraded.
fn shared(table: Table, snat: bool) -> Vec<Shared> {
    let base = |name, place, priority| Chain {
        hook: Some(Hook {
            kind: "nat",
            place,
            priority,
        }),
        ..chain(table, name)
    };
    let jump = |name: &'static str| Statement::Jump(name.into());
    // Only what is for this host: packets on their way to somebody else's port are none
    // of ours (CVE-2025-67499).
    let enter = vec![Rule::shared([
        Statement::LocalDestination,
        jump(HOSTPORTS_ALL),
    ])];
    let mut shared = vec![
        Shared::Open(chain(table, HOSTPORTS)),
        Shared::Open(chain(table, HOSTIP_HOSTPORTS)),
        Shared::Fixed(
            chain(table, HOSTPORTS_ALL),
            vec![
                Rule::shared([jump(HOSTIP_HOSTPORTS)]),
                Rule::shared([jump(HOSTPORTS)]),
            ],
        ),
        Shared::Fixed(base(PREROUTING, Place::Prerouting, -100), enter.clone()),
        Shared::Fixed(base(OUTPUT, Place::Output, -100), enter),
    ];
    if snat {
        shared.push(Shared::Open(base(MASQUERADING, Place::Postrouting, 100)));
    }
    shared
}

fn chain(table: Table, name: &'static str) -> Chain {
    Chain::named(table, name)
}

fn hostport(mapping: &Mapping, container: IpAddr, conditions: &[Statement]) -> Vec<Statement> {
    let host = mapping.host_ip.filter(|host| !host.is_unspecified());
    let mut statements: Vec<Statement> = host
        .map(|host| address(End::Destination, host.into()))
        .into_iter()
        .collect();
    statements.push(Statement::Port {
        protocol: mapping.protocol,
        port: mapping.host_port,
    });
    statements.extend(conditions.iter().cloned());
    put_sources_first(&mut statements);
    statements.push(Statement::Dnat {
        to: container,
        port: mapping.container_port,
    });
    statements
}

/// Puts a source port in front of the destination port before it: so nft has them, which
/// looks at both at once.
fn put_sources_first(statements: &mut [Statement]) {
    for index in 1..statements.len() {
        if let Some([before, behind]) = statements.get_mut(index - 1..=index)
            && let Statement::Port { protocol, .. } = before
            && let Statement::Among(Among {
                field: Field::Port(of, End::Source),
                is: true,
                of: Values::One(_),
            }) = behind
            && of == protocol
        {
            std::mem::swap(before, behind);
        }
    }
}

/// What must be masqueraded so that answers come back the way the questions went: the
/// container asking itself, the host asking from 127.0.0.1, and neighbours, whose
/// answers would otherwise take the short cut through the bridge. With `all`, whoever comes
/// through a mapping: one rule for any source.
fn masqueraded(container: IpNet, all: bool) -> Vec<Vec<Statement>> {
    let to = || address(End::Destination, container.addr().into());
    let from = |net| address(End::Source, net);
    let own = container.addr().into();
    if all {
        return vec![vec![to(), Statement::Translated, Statement::Masquerade]];
    }
    let mut rules = vec![vec![from(own), to(), Statement::Masquerade]];
    if own.addr().is_ipv4() {
        let host = IpAddr::from(Ipv4Addr::LOCALHOST).into();
        rules.push(vec![from(host), to(), Statement::Masquerade]);
    }
    if container.prefix_len() < container.max_prefix_len() {
        let neighbours = from(container.trunc());
        rules.push(vec![
            neighbours,
            to(),
            Statement::Translated,
            Statement::Masquerade,
        ]);
    }
    rules
}

fn address(end: End, net: IpNet) -> Statement {
    Statement::Address { end, is: true, net }
}

/// Whether a rule belongs to the owner. One without a tag is the reference's, which does
/// not tell the networks of a container apart.
pub fn is_own(owner: &Owner) -> impl Fn(&Found) -> bool + use<> {
    let (comment, tag) = (port_map_comment(owner), Tag::of(owner));
    move |rule| rule.comment.as_ref() == Some(&comment) && rule.tag.is_none_or(|found| found == tag)
}

/// Whether a rule goes with the owner's attachment, given what is `known` of that.
pub fn goes(owner: &Owner, known: &Known) -> impl Fn(&Found) -> bool {
    let is_own = is_own(owner);
    move |rule| {
        let spared = || target(rule).is_some_and(|address| known.spares(address.into(), false));
        is_own(rule) && (rule.tag.is_some() || !spared())
    }
}

/// Whose the rules are whose tag is `unwanted`.
pub fn owners(found: &[Found], unwanted: impl Fn(&Tag) -> bool) -> Vec<String> {
    found
        .iter()
        .filter(|rule| rule.tag.as_ref().is_some_and(&unwanted))
        .filter_map(|rule| Some(format!("container {}", rule.comment.as_ref()?)))
        .collect()
}

/// Of how many rules a chain is flushed if all are to go. The kernel looks for each by going
/// through the chain from its beginning, and passes those that are gone: with thousands
/// that takes longer than all the rest. With a few it is nothing, and nobody else's change
/// is in the way.
const MANY: usize = 256;

/// What removes the rules that are `unwanted`. `generation` is the number that the ruleset
/// had before they were `found`, if that is known.
pub fn remove(
    table: Table,
    found: &[Found],
    generation: Option<u32>,
    unwanted: impl Fn(&Found) -> bool,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for name in OWNED {
        let (gone, stay): (Vec<&Found>, Vec<&Found>) =
            in_chain(found, name).partition(|rule| unwanted(rule));
        match generation.filter(|_| stay.is_empty() && gone.len() >= MANY) {
            Some(generation) => changes.push(Change::FlushListed(chain(table, name), generation)),
            None => changes.extend(
                gone.iter()
                    .map(|rule| Change::DeleteRule(table, rule.handle.clone())),
            ),
        }
    }
    changes
}
