//! `--probe`: what becomes of real packets, where nothing seen explains a loss.
//!
//! Echo requests go from the host to the containers, and from these to their gateway, to
//! one another, and to the next hop outside; connections go to each published TCP port. The
//! neighbour tables forget who is asked, so that ARP and ND are tried too, and whoever
//! answers for an address of somebody else is heard. Containers ask first: by a question of
//! the host they would learn where the host is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};

use super::facts::{Facts, has_gateway_here, input, listeners, outside};
use super::{Finding, Severity, inside, is_kept_apart, name, restore};
use crate::cnitool::inventory::attachment::{Port, State, View};
use crate::cnitool::packet::destination::Destination;
use crate::cnitool::packet::send::{Answer, send};
use crate::net::addr::{self, Neighbour};
use crate::net::link::Link;
use crate::net::mac;
use crate::net::netlink::Netlink;
use crate::net::netns::Netns;
use crate::netfilter::Protocol;
use crate::netfilter::listing::Purpose;
use crate::runtime::network::plugin_member;
use crate::shell::{ShellCommand, shell};

/// How many are on their way at once.
const WORKERS: usize = 64;

/// How long one waits for its answer: a neighbour is asked twice for its link-layer address, a
/// second apart.
const PATIENCE: Duration = Duration::from_millis(1500);

/// After this time no more are sent, of the containers' and then of the host's.
const LATEST: Duration = Duration::from_secs(1);

/// How long a second owner of an address may take after the first has answered.
const SETTLE: Duration = Duration::from_millis(100);

/// A namespace by its path; `None` is the host's.
type Place<'a> = Option<&'a str>;

/// What came of each, by where it was sent from and to.
type Answers<'a> = BTreeMap<(Place<'a>, Destination), Answer>;

/// What came of them.
#[derive(Debug, Default)]
struct Probes<'a> {
    answers: Answers<'a>,
    /// Who said to whom that an address is his.
    owners: BTreeMap<(Place<'a>, IpAddr), BTreeSet<String>>,
    /// Afterwards, in the places that were asked from.
    neighbours: BTreeMap<Place<'a>, Vec<Neighbour>>,
}

/// Sends them for those of `views` that nothing else is wrong with, and tells what got
/// lost. What keeps one from being sent is a doubt.
pub fn check<'a>(facts: &Facts<'a>, views: &[&View<'a>], doubts: &mut Vec<String>) -> Vec<Finding> {
    let views: Vec<&View<'_>> = views.iter().copied().filter(|v| is_alive(v)).collect();
    let probes = match make(facts, &views, doubts) {
        Ok(probes) => probes,
        Err(error) => {
            doubts.push(format!("{error:#}"));
            return Vec::new();
        }
    };
    let mut findings = Vec::new();
    for view in &views {
        findings.extend(probes.owners_of(facts, view));
        findings.extend(probes.ways(facts, view));
        for port in view.ports.iter().filter(|port| is_probed(view, port)) {
            findings.extend(probes.port(facts, view, port));
        }
    }
    findings.extend(probes.between(&views));
    findings
}

/// Whether packets can be expected to get through.
fn is_alive(view: &View<'_>) -> bool {
    !matches!(view.state, State::Orphan(_))
        && view.netns.is_some()
        && [view.link, view.host_end]
            .iter()
            .all(|link| link.is_some_and(|link| link.is_up))
}

fn is_probed(view: &View<'_>, port: &Port<'_>) -> bool {
    port.mapping.protocol == Protocol::Tcp
        && port.taken_by.is_none()
        && gateway_of(view, port.to).is_some()
}

fn echo(address: IpAddr) -> Destination {
    let port = None;
    Destination { address, port }
}

fn tcp(to: SocketAddr) -> Destination {
    Destination {
        address: to.ip(),
        port: Some((Protocol::Tcp, to.port())),
    }
}

/// The gateways of the view that this host is to be.
fn gateways(view: &View<'_>) -> Vec<IpAddr> {
    let record = view.record();
    let ips = record.filter(|_| has_gateway_here(view));
    let ips = ips.map_or(&[][..], |record| &record.result.ips);
    ips.iter().filter_map(|ip| ip.gateway).collect()
}

/// The one for the family of `ip`.
fn gateway_of(view: &View<'_>, ip: IpAddr) -> Option<IpAddr> {
    let mut gateways = gateways(view).into_iter();
    gateways.find(|gateway| gateway.is_ipv4() == ip.is_ipv4())
}

/// Where a client on the host connects to, if one is to be served, and the container's own
/// address and port.
fn ends(facts: &Facts<'_>, view: &View<'_>, port: &Port<'_>) -> (Option<SocketAddr>, SocketAddr) {
    let addresses = facts.survey.host.addresses.iter();
    let mut addresses = addresses.map(|(_, address)| address.net.addr());
    let specific = port.mapping.host_ip.filter(|ip| !ip.is_unspecified());
    // An address that is on another machine now.
    let is_elsewhere =
        specific.is_some_and(|ip| addresses.all(|own| own != ip) && !ip.is_loopback());
    let conditions = if port.to.is_ipv4() {
        "conditionsV4"
    } else {
        "conditionsV6"
    };
    let portmap = view.plugin("portmap");
    let conditions = portmap.and_then(|plugin| plugin_member(&plugin.document, conditions));
    let is_for_all = conditions.is_none_or(|words| words.as_array().is_none_or(Vec::is_empty));
    let own = || {
        let host = &facts.survey.host;
        let of_uplink = host.addresses_of(facts.uplink(port.to)?.index);
        let mut usable = of_uplink.filter(|a| a.is_global);
        let found = usable.find(|a| a.net.addr().is_ipv4() == port.to.is_ipv4())?;
        Some(found.net.addr())
    };
    let host = specific.or_else(own).or_else(|| gateway_of(view, port.to));
    let host = host.filter(|_| is_for_all && !is_elsewhere);
    (
        host.map(|ip| SocketAddr::new(ip, port.mapping.host_port)),
        SocketAddr::new(port.to, port.mapping.container_port),
    )
}

/// The next hop outside, for a container that masquerading lets the world answer.
fn next_hop(facts: &Facts<'_>, view: &View<'_>, ip: IpAddr) -> Option<IpAddr> {
    let is_masqueraded = |purpose| view.rules.iter().any(|rule| rule.purpose == purpose);
    let ways_out = &facts.inside_of(view)?.ways_out;
    let has_way = ways_out.get(&outside(ip)).is_some_and(Option::is_some);
    let hop = facts.default_route(ip)?.1.gateway?;
    let is_near = matches!(hop, IpAddr::V6(hop) if hop.is_unicast_link_local());
    (has_way && !is_near && is_masqueraded(Purpose::Masquerade(ip))).then_some(hop)
}

/// A container on a bridge, and its address there.
type Member<'v, 'a> = (&'v View<'a>, IpAddr);

/// Pairs of neighbours on one bridge that are to reach each other, in a ring: the first,
/// the second, and the second's address.
fn pairs<'v, 'a>(views: &[&'v View<'a>]) -> Vec<(&'v View<'a>, &'v View<'a>, IpAddr)> {
    let mut rings: BTreeMap<(&str, u32, bool), Vec<Member<'_, '_>>> = BTreeMap::new();
    for view in views.iter().copied().filter(|view| !is_kept_apart(view)) {
        let Some(bridge) = view.bridge else { continue };
        for ip in view.addresses.iter().map(ipnet::IpNet::addr) {
            let key = (view.network.as_str(), bridge.index, ip.is_ipv4());
            let ring = rings.entry(key).or_default();
            if ring.iter().all(|(other, _)| other.netns != view.netns) {
                ring.push((view, ip));
            }
        }
    }
    let mut pairs = Vec::new();
    for ring in rings.into_values().filter(|ring| ring.len() > 1) {
        let next = ring.iter().cycle().skip(1);
        pairs.extend(ring.iter().zip(next).map(|((a, _), (b, ip))| (*a, *b, *ip)));
    }
    pairs
}

/// Everything that is to be sent, each from its place.
fn wanted<'a>(facts: &Facts<'a>, views: &[&View<'a>]) -> BTreeSet<(Place<'a>, Destination)> {
    let mut wanted = BTreeSet::new();
    for view in views {
        wanted.extend(gateways(view).into_iter().map(|ip| (view.netns, echo(ip))));
        for ip in view.addresses.iter().map(ipnet::IpNet::addr) {
            if gateway_of(view, ip).is_some() {
                wanted.insert((None, echo(ip)));
            }
            if let Some(hop) = next_hop(facts, view, ip) {
                wanted.extend([(view.netns, echo(hop)), (None, echo(hop))]);
            }
        }
        for port in view.ports.iter().filter(|port| is_probed(view, port)) {
            let (host, own) = ends(facts, view, port);
            let both = [host, Some(own)].into_iter().flatten();
            wanted.extend(both.map(|to| (None, tcp(to))));
        }
    }
    let pairs = pairs(views).into_iter();
    wanted.extend(pairs.map(|(from, _, ip)| (from.netns, echo(ip))));
    wanted
}

/// Runs `work` in that place.
fn there<T: Send>(place: Place<'_>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    match place {
        None => work(),
        Some(path) => Netns::open(path)?.inside(work),
    }
}

fn make<'a>(
    facts: &Facts<'a>,
    views: &[&View<'a>],
    doubts: &mut Vec<String>,
) -> Result<Probes<'a>> {
    let wanted = wanted(facts, views);
    let count = wanted.len();
    let (of_host, of_containers) = wanted.into_iter().partition(|(place, _)| place.is_none());
    let mut probes = Probes::default();
    probes.send(of_containers, doubts)?;
    probes.send(of_host, doubts)?;
    if let Some(rest) = count.checked_sub(probes.answers.len()).filter(|n| *n > 0) {
        doubts.push(format!(
            "{rest} of {count} probes were not sent: too many others got lost, or containers went away"
        ));
    }
    Ok(probes)
}

/// Sends them all at once, or as many at a time as is good.
fn send_all(asked: Vec<(Place<'_>, Destination)>) -> Result<Answers<'_>> {
    let (count, start) = (asked.len(), Instant::now());
    let queue = Mutex::new(asked.into_iter());
    let answers = Mutex::new(Answers::new());
    let work = || {
        while start.elapsed() < LATEST {
            let next = queue.lock().ok().and_then(|mut queue| queue.next());
            let Some((place, to)) = next else { break };
            // What a container is asked that has gone meanwhile is not sent.
            if let Ok(answer) = there(place, || Ok(send(to, PATIENCE)))
                && let Ok(mut answers) = answers.lock()
            {
                answers.insert((place, to), answer);
            }
        }
    };
    std::thread::scope(|scope| -> std::io::Result<()> {
        for _ in 0..WORKERS.min(count) {
            std::thread::Builder::new().spawn_scoped(scope, work)?;
        }
        Ok(())
    })
    .context("start threads that send probes")?;
    Ok(answers.into_inner().unwrap_or_default())
}

/// Makes the tables of this thread's namespace forget who has the addresses.
fn forget(asked: &BTreeSet<IpAddr>) -> Result<()> {
    let netlink = Netlink::open()?;
    let mut known = addr::neighbours(&netlink)?;
    known.retain(|neighbour| asked.contains(&neighbour.ip) && neighbour.is_found_out);
    for neighbour in known {
        addr::forget_neighbour(&netlink, neighbour.index, neighbour.ip)?;
    }
    Ok(())
}

/// Sockets that keep what ARP and ND say in this thread's namespace.
fn listen() -> Result<Vec<UdpSocket>> {
    /// `AF_PACKET`, and `ETH_P_ARP` in the order of the network.
    const PACKET: (i32, u16) = (17, 0x0806_u16.to_be());
    let arp = (
        Domain::from(PACKET.0),
        Type::DGRAM,
        SocketProtocol::from(i32::from(PACKET.1)),
    );
    let nd = (Domain::IPV6, Type::RAW, SocketProtocol::ICMPV6);
    let mut opened = Vec::new();
    for (domain, kind, protocol) in [arp, nd] {
        // A kernel may lack either.
        let Ok(socket) = Socket::new(domain, kind, Some(protocol)) else {
            continue;
        };
        socket.set_nonblocking(true)?;
        opened.push(UdpSocket::from(OwnedFd::from(socket)));
    }
    Ok(opened)
}

/// All that `socket` has kept: addresses, and the hardware addresses of who has them.
fn hear(socket: &UdpSocket) -> Vec<(IpAddr, String)> {
    let mut heard = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(length) = socket.recv(&mut buffer) {
        heard.extend(buffer.get(..length).and_then(claim));
    }
    heard
}

/// An ARP reply (RFC 826), or a neighbour advertisement (RFC 4861, section 4.4) with its
/// target's link-layer address.
fn claim(message: &[u8]) -> Option<(IpAddr, String)> {
    let mac = |at: usize| message.get(at..at + 6).map(mac::to_text);
    if message.starts_with(&[0, 1, 8, 0, 6, 4, 0, 2]) {
        let ip: [u8; 4] = message.get(14..18)?.try_into().ok()?;
        return Some((Ipv4Addr::from(ip).into(), mac(8)?));
    }
    if message.first() == Some(&136) && message.get(24..26) == Some(&[2, 1]) {
        let ip: [u8; 16] = message.get(8..24)?.try_into().ok()?;
        return Some((Ipv6Addr::from(ip).into(), mac(26)?));
    }
    None
}

impl<'a> Probes<'a> {
    /// Sends what is asked, and notes what comes of it.
    fn send(
        &mut self,
        asked: Vec<(Place<'a>, Destination)>,
        doubts: &mut Vec<String>,
    ) -> Result<()> {
        let mut places: BTreeMap<Place<'_>, BTreeSet<IpAddr>> = BTreeMap::new();
        for (place, to) in &asked {
            places.entry(*place).or_default().insert(to.address);
        }
        let mut ears = Vec::new();
        for (place, addresses) in places {
            let opened = there(place, || {
                let opened = listen()?;
                forget(&addresses)?;
                Ok(opened)
            });
            match opened {
                Ok(opened) => ears.push((place, opened)),
                Err(error) => doubts.push(format!("{error:#}")),
            }
        }
        self.answers.extend(send_all(asked)?);
        std::thread::sleep(SETTLE);
        for (place, opened) in ears {
            for (ip, mac) in opened.iter().flat_map(hear) {
                self.owners.entry((place, ip)).or_default().insert(mac);
            }
            match there(place, || addr::neighbours(&Netlink::open()?)) {
                Ok(known) => drop(self.neighbours.insert(place, known)),
                Err(error) => doubts.push(format!("{error:#}")),
            }
        }
        Ok(())
    }

    /// What came of one; `None` where it was not sent.
    fn answer<'s>(&'s self, place: Place<'s>, to: Destination) -> Option<&'s Answer> {
        self.answers.get(&(place, to))
    }

    /// Whether anything came back.
    fn is_answered(&self, place: Place<'_>, to: Destination) -> bool {
        let answer = self.answer(place, to);
        matches!(answer, Some(Answer::Some(_) | Answer::Refused))
    }

    /// Whether one was sent and nothing came back.
    fn is_lost(&self, place: Place<'_>, to: Destination) -> bool {
        self.answer(place, to).is_some() && !self.is_answered(place, to)
    }

    /// Whether it was asked who has the address, and nobody said.
    fn is_unresolved(&self, place: Place<'_>, ip: IpAddr) -> bool {
        let known = self.neighbours.get(&place).into_iter().flatten();
        let mut known = known.filter(|n| n.ip == ip).peekable();
        known.peek().is_some() && known.all(|neighbour| neighbour.mac.is_empty())
    }

    /// Others who say that an address is theirs.
    fn owners_of(&self, facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
        let mut findings = Vec::new();
        let (Some(link), Some(end)) = (view.link, input(view)) else {
            return findings;
        };
        let own = view.addresses.iter().map(|net| (None, net.addr(), link));
        let gateway = gateways(view).into_iter().map(|ip| (view.netns, ip, end));
        for (place, ip, owner) in own.chain(gateway) {
            // With VLANs, the gateway is on another link.
            let right = facts.survey.host.addresses.iter();
            let mut right = right.filter(|(_, a)| a.net.addr() == ip);
            if place.is_some() && right.all(|(index, _)| *index != owner.index) {
                continue;
            }
            for mac in self.owners.get(&(place, ip)).into_iter().flatten() {
                if *mac == owner.mac {
                    continue;
                }
                findings.push(Finding::error(
                    if place.is_none() {
                        name(view)
                    } else {
                        format!("gateway {ip}")
                    },
                    format!("{mac} answers for {ip} too, which is {}'s, {}", owner.name, owner.mac),
                    "packets for it reach now the one and now the other",
                    format!(
                        "find who that is (`{}`, `cnitool ps --wide`), and take the address from it",
                        shell!["bridge", "fdb", "show", "br", end.name]
                    ),
                ));
            }
        }
        findings
    }

    /// To and from the host, and out.
    fn ways(&self, facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
        let mut findings = Vec::new();
        let Some(end) = input(view) else {
            return findings;
        };
        for ip in view.addresses.iter().map(ipnet::IpNet::addr) {
            let hop = next_hop(facts, view, ip).zip(facts.uplink(ip));
            let is_outside = hop.is_some_and(|(hop, _)| self.is_answered(view.netns, echo(hop)));
            if let Some(gateway) = gateway_of(view, ip) {
                let lost = self.to_gateway(view, end, (ip, gateway), is_outside);
                // The way out begins there.
                let is_all = lost.as_ref().is_some_and(|f| f.severity == Severity::Error);
                findings.extend(lost);
                if is_all {
                    continue;
                }
            }
            let Some((hop, uplink)) = hop.filter(|_| !is_outside) else {
                continue;
            };
            let uplink = &uplink.name;
            let why = "neither the host nor its containers reach other networks";
            match self.answer(None, echo(hop)) {
                Some(Answer::Some(_)) if self.is_lost(view.netns, echo(hop)) => {
                    let id = &view.attachment.container_id;
                    let trace = shell!["cnitool", "trace", id, hop];
                    findings.push(Finding::warning(
                        name(view),
                        format!("{hop}, the next hop through {uplink}, answers the host and not {ip}"),
                        "the container reaches no other network, or is kept from this one address on purpose",
                        format!("see where its packets end: {trace}"),
                    ));
                }
                Some(Answer::Error(error)) => findings.push(Finding::error(
                    "host",
                    format!("it cannot send to its gateway {hop} through {uplink}: {error}"),
                    why,
                    "look at `nft list ruleset` and `iptables-save` for a rule that drops what leaves",
                )),
                _ if self.is_unresolved(None, hop) => findings.push(Finding::error(
                    "host",
                    format!("its gateway {hop} does not answer {} on {uplink}", asking(hop)),
                    why,
                    format!(
                        "look at the cable and the addresses: {}; ip route show default; {}",
                        shell!["ip", "address", "show", uplink],
                        shell!["ip", "neighbour", "show", "dev", uplink]
                    ),
                )),
                _ => {}
            }
        }
        findings
    }

    /// Between a container and the host; `is_outside` when it reaches other networks.
    fn to_gateway(
        &self,
        view: &View<'_>,
        end: &Link,
        (ip, gateway): (IpAddr, IpAddr),
        is_outside: bool,
    ) -> Option<Finding> {
        let is_in = self.is_reached(view, ip);
        let is_out = !self.is_lost(view.netns, echo(gateway));
        let bridge = &end.name;
        if !is_out && is_outside && !is_in {
            Some(Finding::warning(
                name(view),
                format!(
                    "{ip} reaches other networks, and neither its gateway {gateway} nor that it"
                ),
                "what the host itself serves, such as DNS, is lost to the container, maybe on purpose",
                "look at the rules for what comes in, and at their policies: nft list ruleset; iptables-save",
            ))
        } else if !is_out && !is_outside && self.is_unresolved(view.netns, gateway) && is_in {
            Some(Finding::error(
                name(view),
                format!("gateway {gateway} does not answer {}", asking(ip)),
                "once the container has forgotten where it is, it reaches no other network",
                format!(
                    "see what is in the way: {}; nft list ruleset; {}",
                    shell![
                        "sysctl",
                        "net/ipv4/conf/all/arp_ignore",
                        format!("net/ipv4/conf/{bridge}/arp_ignore")
                    ],
                    shell!["tcpdump", "-ni", bridge, "arp", "or", "icmp6"]
                ),
            ))
        } else if !is_in && !is_out {
            let how = if self.is_unresolved(None, ip) {
                "not even"
            } else {
                "although there is an answer to"
            };
            let port = view.host_end.map_or("", |end| &end.name);
            Some(Finding::error(
                name(view),
                format!(
                    "nothing gets through between {ip} and its gateway {gateway}, {how} {}",
                    asking(ip)
                ),
                "the container reaches nobody, and nobody reaches it",
                format!(
                    "see what drops it: {}; {}; nft list ruleset; {}; {}",
                    shell!["bridge", "-d", "link", "show", "dev", port],
                    shell!["tc", "-s", "qdisc", "show", "dev", port],
                    ruleset_inside(view),
                    shell!["tcpdump", "-ni", bridge]
                ),
            ))
        } else if !is_in {
            Some(Finding::warning(
                name(view),
                format!("{ip} gives the host no answer, and gets one from it"),
                "something drops the packets for it, maybe on purpose",
                format!(
                    "look at the rules inside: {}; and the bridge's: nft list ruleset bridge",
                    ruleset_inside(view)
                ),
            ))
        } else {
            None
        }
    }

    /// Whether the container gave the host any answer from `ip`, or was not asked.
    fn is_reached(&self, view: &View<'_>, ip: IpAddr) -> bool {
        let ports = view.ports.iter().filter(|port| port.to == ip);
        let mut ports = ports.map(|port| tcp(SocketAddr::new(ip, port.mapping.container_port)));
        !self.is_lost(None, echo(ip)) || ports.any(|to| self.is_answered(None, to))
    }

    /// Neighbours that do not reach each other, though the host reaches both.
    fn between(&self, views: &[&View<'_>]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (from, to, ip) in pairs(views) {
            let is_heard = |view: &View<'_>| {
                let own = view.addresses.iter().map(ipnet::IpNet::addr);
                let mut alike = own.filter(|own| own.is_ipv4() == ip.is_ipv4());
                !alike.any(|own| self.is_lost(None, echo(own)))
            };
            if !self.is_lost(from.netns, echo(ip)) || !is_heard(from) || !is_heard(to) {
                continue;
            }
            let bridge = from.bridge.map_or("", |bridge| &bridge.name);
            findings.push(Finding::warning(
                name(from),
                format!("{} does not answer it at {ip}", name(to)),
                format!(
                    "something drops what neighbours on {bridge} send each other, maybe on purpose"
                ),
                format!(
                    "see what does: {}; bridge -d link show; nft list ruleset bridge",
                    shell!["cnitool", "trace", from.attachment.container_id, ip]
                ),
            ));
        }
        findings
    }

    /// A published port, as a client on the host finds it.
    fn port(&self, facts: &Facts<'_>, view: &View<'_>, port: &Port<'_>) -> Option<Finding> {
        let (host, own) = ends(facts, view, port);
        let object = format!("port {}", port.mapping);
        let direct = self.answer(None, tcp(own))?;
        let is_accepted = matches!(direct, Answer::Some(_));
        if *direct == Answer::Refused && !listens(view, own) {
            // One that serves one family only is content with it.
            let others = view
                .ports
                .iter()
                .filter(|other| other.mapping == port.mapping);
            let mut others = others.map(|other| SocketAddr::new(other.to, own.port()));
            if others.any(|other| listens(view, other)) {
                return None;
            }
            return Some(Finding::warning(
                object,
                format!("nothing listens at {own} in {}", name(view)),
                "its clients are refused",
                "start the server in the container, or have it listen at that address and not at 127.0.0.1",
            ));
        }
        if !is_accepted {
            // That has a finding of its own.
            if !self.is_reached(view, own.ip()) {
                return None;
            }
            let (how, why) = match direct {
                Answer::Refused => (
                    "are refused, although something listens there",
                    "a rule rejects them",
                ),
                _ => (
                    "get no answer, although the container has one for pings",
                    "a rule drops them, or the server is stuck",
                ),
            };
            return Some(Finding::error(
                object,
                format!("connections from the host to {own} in {} {how}", name(view)),
                why,
                format!(
                    "look at the rules inside: {}; and the host's: nft list ruleset",
                    ruleset_inside(view)
                ),
            ));
        }
        let host = host?;
        let how = match self.answer(None, tcp(host))? {
            Answer::Some(_) => return None,
            Answer::Refused => "are refused",
            _ => "get no answer",
        };
        Some(Finding::error(
            object,
            format!(
                "connections from the host to {host} {how}, and {own} in {} accepts them",
                name(view)
            ),
            "the rules that lead the port there are not met, or something drops what they lead there",
            format!(
                "look at them: {}; and make them again: {}",
                port.rule.command,
                restore(view)
            ),
        ))
    }
}

/// The command that shows the container's own rules.
fn ruleset_inside(view: &View<'_>) -> ShellCommand {
    inside(view).run(&shell!["nft", "list", "ruleset"])
}

/// How one asks who has an address.
fn asking(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "ARP" } else { "ND" }
}

/// Whether a process in the container takes what comes for its port.
fn listens(view: &View<'_>, to: SocketAddr) -> bool {
    let found = there(view.netns, || Ok(listeners())).unwrap_or_default();
    found.iter().any(|listener| {
        (listener.protocol, listener.port) == (Protocol::Tcp, to.port())
            && (listener.ip == to.ip()
                || listener.ip.is_unspecified() && listener.ip.is_ipv4() == to.is_ipv4()
                || listener.ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_tell_who_has_what() {
        let mut reply = vec![0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 7, 10, 9, 0, 2];
        reply.extend([0; 10]);
        let told = Some(("10.9.0.2".parse().unwrap(), "02:00:00:00:00:07".to_owned()));
        assert_eq!(claim(&reply), told);
        reply[7] = 1;
        assert_eq!(claim(&reply), None, "a request");
        let mut advertisement = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
        advertisement.extend("fd00:9::2".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(claim(&advertisement), None, "without the option");
        advertisement.extend([2, 1, 2, 0, 0, 0, 0, 7]);
        let told = Some(("fd00:9::2".parse().unwrap(), "02:00:00:00:00:07".to_owned()));
        assert_eq!(claim(&advertisement), told);
        advertisement.pop();
        assert_eq!(claim(&advertisement), None, "cut off");
    }
}
