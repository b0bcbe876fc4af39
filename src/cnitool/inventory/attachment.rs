//! Every attachment of a node, joined from all that tells of it: the result cache, leases,
//! links, namespaces and rules; and how it is.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use ipnet::IpNet;
use serde_json::Value;

use super::{Memory, Namespace, Stack, Survey, natural};
use crate::cni::address::parse_ip;
use crate::cni::invocation::Attachment;
use crate::cni::link_alias;
use crate::cni::pool::{Holder, Pool, Record};
use crate::cni::skel::Services;
use crate::net::link::Link;
use crate::netfilter::listing::{Claim, OwnedRule, Purpose};
use crate::netfilter::{Mapping, Protocol};
use crate::runtime::network::{PluginConfiguration, plugin_member};
use crate::shell::ShellCommand;

/// One attachment, and all that there is of it.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// The network's name; empty where nothing tells it.
    pub network: String,
    /// Its container and interface; either is empty where nothing tells it.
    pub attachment: Attachment,
    /// What the cache remembers.
    pub memory: Option<&'a Memory>,
    /// Where its interface is; `None` where that is not known, or is not there any more.
    pub netns: Option<&'a str>,
    /// What is in that namespace.
    pub inside: Option<&'a Stack>,
    /// The interface in the container.
    pub link: Option<&'a Link>,
    /// The host's end of its veth pair.
    pub host_end: Option<&'a Link>,
    /// The bridge that the host's end is a port of.
    pub bridge: Option<&'a Link>,
    /// The bridge that its configuration names.
    pub wanted_bridge: Option<String>,
    /// Whether its configuration has its addresses masqueraded.
    pub is_masqueraded: bool,
    /// Other links of the host that are its own, such as for traffic control.
    pub others: Vec<&'a Link>,
    /// Its leases, each with its pool.
    pub leases: Vec<(&'a Pool, &'a Record)>,
    /// Its rules.
    pub rules: Vec<&'a OwnedRule>,
    /// Its addresses: those of its result, else what it is seen to have. One whose prefix
    /// length nothing tells has its full length.
    pub addresses: Vec<IpNet>,
    /// Ports of the host that lead to it.
    pub ports: Vec<Port<'a>>,
    /// When it was made, as its files tell.
    pub added: Option<SystemTime>,
    /// How it is.
    pub state: State,
}

/// A port of the host that leads into a container.
#[derive(Debug, Clone)]
pub struct Port<'a> {
    /// The port.
    pub mapping: Mapping,
    /// The address in the container.
    pub to: IpAddr,
    /// What leads there.
    pub rule: &'a OwnedRule,
    /// Who gets the packets instead, as its rule stands in front.
    pub taken_by: Option<Taker>,
}

/// The attachment that gets the packets for a port of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taker {
    /// Its container, which may be the same: one port of it in two networks.
    pub container_id: String,
    /// Its network.
    pub network: String,
}

/// How an attachment is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// As its result says.
    Ok,
    /// Its container lives, and this is wrong with it.
    Broken(Vec<String>),
    /// Its container is gone, and this is left of it.
    Orphan(Vec<String>),
}

impl State {
    /// In one word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Broken(_) => "broken",
            Self::Orphan(_) => "orphan",
        }
    }

    /// Why it is so: what is wrong or left.
    pub fn reasons(&self) -> &[String] {
        match self {
            Self::Ok => &[],
            Self::Broken(reasons) | Self::Orphan(reasons) => reasons,
        }
    }
}

/// All attachments of which there is anything, by network, container and interface.
pub fn join(survey: &Survey) -> Vec<View<'_>> {
    let mut roll = Roll::default();
    for memory in &survey.memories {
        let entry = &memory.entry;
        let index = roll.entry(&entry.network, &entry.parameters.attachment);
        roll.update(index, |view| view.memory = Some(memory));
    }
    for pool in &survey.pools {
        for lease in &pool.leases {
            roll.add_lease(pool, lease);
        }
    }
    for link in &survey.host.links {
        roll.add_link(link);
    }
    let places = Places::of(survey);
    for view in &mut roll.views {
        places.find(survey, view);
        view.addresses = addresses(view);
        view.added = added(view);
        if let Some(record) = view.record() {
            let plugins = &record.network.plugins;
            view.wanted_bridge = bridge_name(survey.services, plugins);
            view.is_masqueraded = masquerades(survey.services, plugins);
        }
    }
    let networks: Vec<&str> = survey.directory.networks.iter().map(|n| &*n.name).collect();
    for rule in &survey.rules.rules {
        roll.add_rule(rule, &networks);
    }
    let mut views = roll.views;
    let claims = claims(&views);
    for (index, view) in views.iter_mut().enumerate() {
        view.ports = ports(index, view, &claims);
    }
    for view in &mut views {
        view.state = state(survey, view);
    }
    views.sort_by(|a, b| {
        let (left, right) = (&a.attachment, &b.attachment);
        natural::compare(&a.network, &b.network)
            .then_with(|| natural::compare(&left.container_id, &right.container_id))
            .then_with(|| natural::compare(&left.ifname, &right.ifname))
    });
    views
}

/// The attachments found so far.
#[derive(Default)]
struct Roll<'a> {
    views: Vec<View<'a>>,
    by_container: BTreeMap<String, Vec<usize>>,
}

impl<'a> Roll<'a> {
    /// The attachment of these names, found already or not.
    fn entry(&mut self, network: &str, attachment: &Attachment) -> usize {
        let known = self.of_container(&attachment.container_id).find(|index| {
            let view = self.views.get(*index);
            view.is_some_and(|view| view.network == network && view.attachment == *attachment)
        });
        known.unwrap_or_else(|| {
            let index = self.views.len();
            let of_container = self
                .by_container
                .entry(attachment.container_id.clone())
                .or_default();
            of_container.push(index);
            self.views.push(View {
                network: network.to_owned(),
                attachment: attachment.clone(),
                memory: None,
                netns: None,
                inside: None,
                link: None,
                host_end: None,
                bridge: None,
                wanted_bridge: None,
                is_masqueraded: false,
                others: Vec::new(),
                leases: Vec::new(),
                rules: Vec::new(),
                addresses: Vec::new(),
                ports: Vec::new(),
                added: None,
                state: State::Ok,
            });
            index
        })
    }

    fn of_container(&self, id: &str) -> impl Iterator<Item = usize> {
        self.by_container.get(id).into_iter().flatten().copied()
    }

    fn update(&mut self, index: usize, change: impl FnOnce(&mut View<'a>)) {
        if let Some(view) = self.views.get_mut(index) {
            change(view);
        }
    }

    fn add_lease(&mut self, pool: &'a Pool, lease: &'a Record) {
        let Holder::Attachment(container_id, ifname) = &lease.holder else {
            return;
        };
        let legacy = || {
            let mut own = self.of_container(container_id);
            own.find(|index| {
                let view = self.views.get(*index);
                view.is_some_and(|view| view.network == pool.network)
            })
        };
        let index = match ifname {
            None => legacy(),
            Some(_) => None,
        };
        let index = index.unwrap_or_else(|| {
            let attachment = Attachment {
                container_id: container_id.clone(),
                ifname: ifname.clone().unwrap_or_default(),
            };
            self.entry(&pool.network, &attachment)
        });
        self.update(index, |view| view.leases.push((pool, lease)));
    }

    fn add_link(&mut self, link: &'a Link) {
        let Some((network, ifname, container_id)) = link_alias::parse(&link.alias) else {
            return;
        };
        // A long id is cut in the alias.
        let cut = self.views.iter().position(|view| {
            view.network == network && link_alias::of(network, &view.attachment) == link.alias
        });
        let index = cut.unwrap_or_else(|| {
            let attachment = Attachment {
                container_id: container_id.to_owned(),
                ifname: ifname.to_owned(),
            };
            self.entry(network, &attachment)
        });
        self.update(index, |view| {
            if link.kind == "veth" {
                view.host_end = Some(link);
            } else {
                view.others.push(link);
            }
        });
    }

    /// Whose `rule` is: where several fit, as those of iptables do not tell interfaces
    /// apart, the one with the address that it is about.
    fn add_rule(&mut self, rule: &'a OwnedRule, networks: &[&str]) {
        let fits = |index: &usize| {
            let view = self.views.get(*index);
            view.is_some_and(|view| rule.owner.fits(&view.network, &view.attachment))
        };
        let mut fitting: Vec<usize> = match &rule.owner.container_id {
            Some(id) => self.of_container(id).filter(fits).collect(),
            None => (0..self.views.len()).filter(fits).collect(),
        };
        let about = match rule.purpose {
            Purpose::Masquerade(ip) | Purpose::PortMap(_, ip) | Purpose::Pass(ip) => Some(ip),
            Purpose::Other => None,
        };
        let is_nobodys = rule.owner == Claim::default();
        if fitting.len() > 1 || is_nobodys {
            let has = |index: &usize| {
                let addresses = self.views.get(*index).map(|view| &view.addresses);
                addresses.is_some_and(|all| all.iter().any(|net| Some(net.addr()) == about))
            };
            if let Some(with_address) = fitting.iter().copied().find(has) {
                fitting = vec![with_address];
            } else if is_nobodys {
                return;
            }
        }
        if fitting.is_empty() {
            let (network, attachment) = names(&rule.owner, networks);
            fitting.push(self.entry(&network, &attachment));
        }
        for index in fitting {
            self.update(index, |view| view.rules.push(rule));
        }
    }
}

/// The names of an owner that nothing else tells of.
fn names(claim: &Claim, networks: &[&str]) -> (String, Attachment) {
    let attachment = Attachment {
        container_id: claim.container_id.clone().unwrap_or_default(),
        ifname: claim.ifname.clone().unwrap_or_default(),
    };
    if claim.tag.is_some() && (claim.network.is_none() || claim.ifname.is_none()) {
        // The tag tells whether a guess is right.
        for network in networks {
            let guess = Attachment {
                ifname: claim.ifname.clone().unwrap_or_else(|| "eth0".into()),
                ..attachment.clone()
            };
            if claim.fits(network, &guess) {
                return ((*network).to_owned(), guess);
            }
        }
    }
    (claim.network.clone().unwrap_or_default(), attachment)
}

/// Where the interfaces of containers are, as far as namespaces can be looked into.
struct Places<'a> {
    /// By the index of the host's end.
    by_host_end: BTreeMap<u32, (&'a str, &'a Stack, &'a Link)>,
    /// By address.
    by_address: BTreeMap<IpAddr, (&'a str, &'a Stack, &'a Link)>,
}

impl<'a> Places<'a> {
    fn of(survey: &'a Survey) -> Self {
        let mut places = Self {
            by_host_end: BTreeMap::new(),
            by_address: BTreeMap::new(),
        };
        for (path, namespace) in &survey.namespaces {
            let Some(stack) = namespace.stack() else {
                continue;
            };
            for link in &stack.links {
                let place = (path.as_str(), stack, link);
                if let Some(host_end) = survey.host.peer_of(link) {
                    places.by_host_end.entry(host_end.index).or_insert(place);
                }
                for address in stack.addresses_of(link.index).filter(|a| a.is_global) {
                    let ip = address.net.addr();
                    places.by_address.entry(ip).or_insert(place);
                }
            }
        }
        places
    }

    /// Fills in where `view` has its interface, and the host's end of it.
    fn find(&self, survey: &'a Survey, view: &mut View<'a>) {
        let ifname = &view.attachment.ifname;
        if let Some(memory) = view.memory {
            let path = memory.entry.parameters.netns.as_str();
            if let Some((path, namespace)) = survey.namespaces.get_key_value(path) {
                view.netns = Some(path);
                view.inside = namespace.stack();
            }
            view.link = view.inside.and_then(|stack| stack.link(ifname));
        } else {
            let host_end = view.host_end.map(|link| link.index);
            let by_host_end = host_end.and_then(|index| self.by_host_end.get(&index));
            let mut leases = view.leases.iter();
            let by_address = || leases.find_map(|(_, lease)| self.by_address.get(&lease.ip));
            let is_named =
                |(_, _, link): &&(&str, &Stack, &Link)| ifname.is_empty() || link.name == *ifname;
            if let Some((path, stack, link)) = by_host_end.or_else(by_address).filter(is_named) {
                view.netns = Some(path);
                view.inside = Some(stack);
                view.link = Some(link);
            }
        }
        let peer = view.link.and_then(|link| survey.host.peer_of(link));
        view.host_end = peer.or(view.host_end).or_else(|| {
            let result = &view.record()?.result;
            let names = result.interfaces.iter().filter(|i| i.sandbox.is_empty());
            let mut links = names.filter_map(|interface| survey.host.link(&interface.name));
            links.find(|link| link.kind == "veth")
        });
        view.bridge = view.host_end.and_then(|end| survey.host.bridge_of(end));
    }
}

fn addresses(view: &View<'_>) -> Vec<IpNet> {
    let record = view.record();
    if let Some(record) = record {
        return result_addresses(&view.attachment.ifname, record);
    }
    let mut seen = Vec::new();
    if let (Some(stack), Some(link)) = (view.inside, view.link) {
        let of_link = stack.addresses_of(link.index).filter(|a| a.is_global);
        seen.extend(of_link.map(|address| address.net));
    }
    for (_, lease) in &view.leases {
        if !seen.iter().any(|net: &IpNet| net.addr() == lease.ip) {
            seen.push(lease.ip.into());
        }
    }
    seen
}

/// The addresses that a result gives to the interface of its attachment.
fn result_addresses(ifname: &str, record: &crate::runtime::cache::Record) -> Vec<IpNet> {
    let result = &record.result;
    let is_own = |index: Option<usize>| {
        let interface = index.and_then(|index| result.interfaces.get(index));
        interface.is_none_or(|i| i.name == ifname && !i.sandbox.is_empty())
    };
    let own = result.ips.iter().filter(|ip| is_own(ip.interface));
    own.map(|ip| ip.address).collect()
}

fn added(view: &View<'_>) -> Option<SystemTime> {
    let record = view.record();
    let written = record.map(|record| record.written);
    written.or_else(|| view.leases.iter().filter_map(|(_, l)| l.written).min())
}

/// The rules for each port of each address family, in order, with the numbers of their
/// owners.
type Claims<'a> = BTreeMap<(Protocol, u16, bool), Vec<(usize, Taker, &'a OwnedRule)>>;

fn claims<'a>(views: &[View<'a>]) -> Claims<'a> {
    let mut claims = Claims::new();
    for (index, view) in views.iter().enumerate() {
        for rule in &view.rules {
            if let Purpose::PortMap(mapping, to) = rule.purpose {
                let key = (mapping.protocol, mapping.host_port, to.is_ipv4());
                let taker = Taker {
                    container_id: view.attachment.container_id.clone(),
                    network: view.network.clone(),
                };
                claims.entry(key).or_default().push((index, taker, *rule));
            }
        }
    }
    // In the order of the rules themselves, which are elements of one list.
    for rules in claims.values_mut() {
        rules.sort_by_key(|(_, _, rule)| std::ptr::from_ref(*rule));
    }
    claims
}

fn ports<'a>(index: usize, view: &View<'a>, claims: &Claims<'a>) -> Vec<Port<'a>> {
    let mut ports: Vec<Port<'a>> = Vec::new();
    for rule in &view.rules {
        let Purpose::PortMap(mapping, to) = rule.purpose else {
            continue;
        };
        let key = (mapping.protocol, mapping.host_port, to.is_ipv4());
        let rivals = claims.get(&key).into_iter().flatten();
        let in_front = rivals
            .take_while(|(_, _, other)| !std::ptr::eq(*other, *rule))
            .find(|(owner, _, other)| *owner != index && takes(other, mapping));
        ports.push(Port {
            mapping,
            to,
            rule,
            taken_by: in_front.map(|(_, taker, _)| taker.clone()),
        });
    }
    ports
}

/// The ports of other attachments that some packets for `port`, of `view`, could go to too.
pub fn rivals<'a>(
    views: &'a [View<'a>],
    view: &'a View<'a>,
    port: &'a Port<'a>,
) -> impl Iterator<Item = &'a Port<'a>> {
    let others = views
        .iter()
        .filter(move |other| !std::ptr::eq(*other, view));
    let ports = others.flat_map(|other| &other.ports);
    ports.filter(move |other| {
        let Mapping {
            protocol,
            host_port,
            ..
        } = other.mapping;
        (protocol, host_port) == (port.mapping.protocol, port.mapping.host_port)
            && other.to.is_ipv4() == port.to.is_ipv4()
            && (takes(other.rule, port.mapping) || takes(port.rule, other.mapping))
    })
}

/// Whether `other`, in front of a rule for `mapping`, gets all of its packets.
fn takes(other: &OwnedRule, mapping: Mapping) -> bool {
    let Purpose::PortMap(theirs, _) = other.purpose else {
        return false;
    };
    let specific = |ip: Option<IpAddr>| ip.filter(|ip| !ip.is_unspecified());
    let host = specific(theirs.host_ip);
    host.is_none() || host == specific(mapping.host_ip)
}

fn state(survey: &Survey, view: &View<'_>) -> State {
    let is_gone = match view.memory {
        Some(memory) => {
            let path = &memory.entry.parameters.netns;
            matches!(
                survey.namespaces.get(path),
                Some(Namespace::Gone | Namespace::Own)
            )
        }
        None => view.link.is_none() && view.host_end.is_none(),
    };
    if is_gone {
        return State::Orphan(leftovers(view));
    }
    let faults = faults(survey, view);
    if faults.is_empty() {
        State::Ok
    } else {
        State::Broken(faults)
    }
}

/// What is left of an attachment, and where.
fn leftovers(view: &View<'_>) -> Vec<String> {
    let mut left = Vec::new();
    left.extend(
        view.memory
            .map(|memory| format!("result {}", memory.file.display())),
    );
    for (pool, lease) in &view.leases {
        let file = pool.directory.join(lease.ip.to_string());
        left.push(format!("lease {}", file.display()));
    }
    let links = view.host_end.iter().chain(&view.others);
    left.extend(links.map(|link| format!("link {}", link.name)));
    let mut chains: BTreeMap<&ShellCommand, usize> = BTreeMap::new();
    for rule in &view.rules {
        *chains.entry(&rule.command).or_default() += 1;
    }
    left.extend(chains.into_iter().map(|(command, count)| {
        let rules = if count == 1 { "rule" } else { "rules" };
        format!("{count} {rules} (`{command}`)")
    }));
    left
}

/// What is wrong with an attachment whose container lives.
fn faults(survey: &Survey, view: &View<'_>) -> Vec<String> {
    let mut faults = Vec::new();
    let path = view.memory.map(|memory| &memory.entry.parameters.netns);
    if let Some(Namespace::Closed(why)) = path.and_then(|path| survey.namespaces.get(path)) {
        faults.push(format!("its namespace cannot be looked into: {why}"));
    }
    faults.extend(faults_inside(view));
    faults.extend(faults_outside(view));
    let Some(memory) = view.memory else {
        return faults;
    };
    if let Err(why) = &memory.record {
        faults.push(why.clone());
    }
    faults.extend(faults_of_leases(survey, view, memory));
    // What could not be read cannot be missed.
    if survey.rules.doubts.is_empty() {
        faults.extend(faults_of_rules(view, memory));
    }
    faults
}

/// The container's interface, its addresses and routes.
fn faults_inside(view: &View<'_>) -> Vec<String> {
    let Some(stack) = view.inside else {
        return Vec::new();
    };
    let ifname = &view.attachment.ifname;
    let Some(link) = view.link else {
        return vec![format!("{ifname} is gone from the container")];
    };
    let mut faults = Vec::new();
    if !link.is_up {
        faults.push(format!("{ifname} is down in the container"));
    }
    let has = |net: &IpNet| stack.addresses_of(link.index).any(|a| a.net == *net);
    for net in view.addresses.iter().filter(|net| !has(net)) {
        faults.push(format!("{net} is not on {ifname}"));
    }
    let record = view.record();
    let routes = record.map(|record| record.result.routes.as_slice());
    for route in routes.unwrap_or_default() {
        let is_there = |(_, found): &(u32, crate::net::route::Route)| {
            found.dst == route.dst.trunc() && route.gw.is_none_or(|gw| found.gateway == Some(gw))
        };
        // A link that is down has none.
        if link.is_up && !stack.routes.iter().any(is_there) {
            faults.push(format!("no route to {} in the container", route.dst));
        }
    }
    faults
}

/// The host's end and the bridge.
fn faults_outside(view: &View<'_>) -> Vec<String> {
    let Some(end) = view.host_end else {
        let is_veth = view.link.is_some_and(|link| link.kind == "veth");
        let fault = "the host's end of its veth pair is not on the host".to_owned();
        return Vec::from_iter(is_veth.then_some(fault));
    };
    let name = &end.name;
    if !end.is_up {
        return vec![format!("host end {name} is down")];
    }
    let wanted = view.wanted_bridge.clone();
    match (view.bridge, wanted) {
        (None, Some(wanted)) => vec![format!("host end {name} is not in bridge {wanted}")],
        (Some(bridge), Some(wanted)) if bridge.name != wanted => {
            vec![format!(
                "host end {name} is in bridge {} instead of {wanted}",
                bridge.name
            )]
        }
        (Some(bridge), _) if !bridge.is_up => vec![format!("bridge {} is down", bridge.name)],
        _ => Vec::new(),
    }
}

fn faults_of_leases(survey: &Survey, view: &View<'_>, memory: &Memory) -> Vec<String> {
    let Ok(record) = &memory.record else {
        return Vec::new();
    };
    let is_recorded = record.network.plugins.iter().any(super::is_host_local);
    let mut faults = Vec::new();
    for net in view.addresses.iter().filter(|_| is_recorded) {
        let ip = net.addr();
        if view.leases.iter().any(|(_, lease)| lease.ip == ip) {
            continue;
        }
        let pools = survey.pools.iter().filter(|p| p.network == view.network);
        let holder = pools
            .flat_map(|pool| &pool.leases)
            .find(|lease| lease.ip == ip)
            .map(|lease| &lease.holder);
        faults.push(match holder {
            Some(Holder::Attachment(id, _)) => format!("the lease of {ip} is container {id}'s"),
            _ => format!("{ip} has no lease: another container may get it"),
        });
    }
    faults
}

/// Masquerading and port maps that should be, and are not or do not work.
fn faults_of_rules(view: &View<'_>, memory: &Memory) -> Vec<String> {
    let mut faults = Vec::new();
    if memory.record.is_err() {
        return faults;
    }
    for net in view.addresses.iter().filter(|_| view.is_masqueraded) {
        let purpose = Purpose::Masquerade(net.addr());
        if !view.rules.iter().any(|rule| rule.purpose == purpose) {
            faults.push(format!("no rule masquerades {}", net.addr()));
        }
    }
    for (wanted, to) in unmapped(view, memory) {
        faults.push(format!("no rule for port {wanted} to {to}"));
    }
    let taken = view.ports.iter().filter_map(|port| {
        let taker = port.taken_by.as_ref()?;
        let mapping = port.mapping;
        Some(if taker.container_id == view.attachment.container_id {
            format!("port {mapping} leads to it in network {}", taker.network)
        } else {
            format!("port {mapping} leads to container {}", taker.container_id)
        })
    });
    for fault in taken {
        if !faults.contains(&fault) {
            faults.push(fault);
        }
    }
    faults
}

/// The ports that the runtime asked for and that no rule leads to the address: the container's
/// first of each family gets them.
pub fn unmapped(view: &View<'_>, memory: &Memory) -> Vec<(Mapping, IpAddr)> {
    let first = |is_ipv4| {
        let mut addresses = view.addresses.iter().map(IpNet::addr);
        addresses.find(|ip| ip.is_ipv4() == is_ipv4)
    };
    let targets = [first(true), first(false)];
    let mut unmapped = Vec::new();
    for wanted in wanted_ports(memory) {
        for to in targets
            .into_iter()
            .flatten()
            .filter(|ip| wanted.is_for(*ip))
        {
            let leads_there =
                |port: &Port<'_>| port.to.is_ipv4() == to.is_ipv4() && serves(port.mapping, wanted);
            if !view.ports.iter().any(leads_there) {
                unmapped.push((wanted, to));
            }
        }
    }
    unmapped
}

/// Whether a rule for `made` is what `wanted` asks for, in whichever address family.
fn serves(made: Mapping, wanted: Mapping) -> bool {
    let specific = |mapping: Mapping| mapping.host_ip.filter(|ip| !ip.is_unspecified());
    made.protocol == wanted.protocol
        && made.host_port == wanted.host_port
        && made.container_port == wanted.container_port
        && specific(made) == specific(wanted)
}

/// The ports that the runtime asked for, as far as a plugin of the chain was told.
fn wanted_ports(memory: &Memory) -> Vec<Mapping> {
    const CAPABILITY: &str = "portMappings";
    let Ok(record) = &memory.record else {
        return Vec::new();
    };
    let is_told =
        |plugin: &PluginConfiguration| plugin.capabilities.iter().any(|c| c == CAPABILITY);
    if !record.network.plugins.iter().any(is_told) {
        return Vec::new();
    }
    let mappings = memory.entry.parameters.capability_args.get(CAPABILITY);
    let mappings = mappings.and_then(Value::as_array).into_iter().flatten();
    mappings.filter_map(wanted_port).collect()
}

fn wanted_port(mapping: &Value) -> Option<Mapping> {
    let mapping = mapping.as_object()?;
    let text = |key| match plugin_member(mapping, key) {
        Some(Value::String(text)) => text.to_ascii_lowercase(),
        _ => String::new(),
    };
    let number = |key| u16::try_from(plugin_member(mapping, key)?.as_u64()?).ok();
    let protocol = match text("protocol").as_str() {
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => Protocol::Tcp,
    };
    Some(Mapping {
        protocol,
        host_ip: parse_ip(&text("hostIP")),
        host_port: number("hostPort").filter(|port| *port > 0)?,
        container_port: number("containerPort")?,
    })
}

impl<'a> View<'a> {
    /// What the runtime has recorded of the attachment, where that can be read.
    pub fn record(&self) -> Option<&'a crate::runtime::cache::Record> {
        self.memory?.record.as_ref().ok()
    }

    /// The configuration of the plugin of this type that the attachment was made with.
    pub fn plugin(&self, name: &str) -> Option<&'a PluginConfiguration> {
        let mut plugins = self.record()?.network.plugins.iter();
        plugins.find(|plugin| plugin.plugin == name)
    }
}

/// The bridge that the first of `plugins` with one connects containers to.
pub fn bridge_name(services: Services, plugins: &[PluginConfiguration]) -> Option<String> {
    let mut plugins = plugins.iter();
    plugins.find_map(|plugin| (services.plugin)(&plugin.plugin)?.bridge_name(&plugin.document))
}

/// Whether one of `plugins` has the addresses of containers masqueraded.
fn masquerades(services: Services, plugins: &[PluginConfiguration]) -> bool {
    plugins.iter().any(|plugin| {
        let own = (services.plugin)(&plugin.plugin);
        own.is_some_and(|own| own.masquerades(&plugin.document))
    })
}
