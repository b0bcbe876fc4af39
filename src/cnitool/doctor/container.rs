//! Inside the container: its interface, its addresses, its routes, its neighbours.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::facts::{Facts, Inside, has_gateway_here, outside};
use super::{Finding, attach_again, ip, name, set_sysctl_inside, sysctls};
use crate::cni::result::Route;
use crate::cnitool::inventory::Namespace;
use crate::cnitool::inventory::attachment::{State, View};
use crate::cnitool::inventory::stack::Stack;
use crate::net::link::Link;
use crate::net::route::MAIN_TABLE;
use crate::runtime::cache;
use crate::runtime::network::plugin_member;
use crate::shell::{ShellScript, shell};

/// Bytes.
const LEAST_OF_IPV6: u32 = 1280;

/// What is wrong there.
pub fn check(facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
    if let State::Orphan(left) = &view.state {
        return vec![orphan(view, left)];
    }
    let Some(stack) = view.inside else {
        return Vec::from_iter(closed(facts, view));
    };
    let mut findings = Vec::new();
    if let Some(memory) = view.memory
        && let Err(why) = &memory.record
    {
        let file = memory.file.display();
        if cache::is_usable(&memory.file) {
            findings.push(Finding::warning(
                name(view),
                format!("what it was made with cannot be read in {file}: {why}"),
                "it can be checked and deleted, but `cnibox restore` cannot make its rules again",
                attach_again(view),
            ));
        } else {
            let what = format!("its result cannot be used: {why}");
            let why = "if no runtime is writing it just now, none can check it, or delete it as it was made";
            findings.push(Finding::error(name(view), what, why, shell!["rm", file]));
        }
    }
    let Some(link) = view.link else {
        let what = format!("{} is gone", view.attachment.ifname);
        let why = "the container is not attached to the network any more";
        findings.push(Finding::error(name(view), what, why, attach_again(view)));
        return findings;
    };
    findings.extend(link_state(view, link));
    findings.extend(loopback(view, stack));
    findings.extend(sysctls::container_is_silent(facts, view));
    findings.extend(addresses(facts, view, stack, link));
    findings.extend(duplicates(facts, view, link));
    findings.extend(mtu(facts, view, link));
    if link.is_up {
        findings.extend(routes(view, stack));
        if let Some(inside) = facts.inside_of(view) {
            findings.extend(ways_out(facts, view, stack, inside, link));
            findings.extend(neighbours(facts, view, inside, link));
            findings.extend(inside.lost_servers.iter().map(|server| lost(view, *server)));
        }
    }
    findings
}

/// The container is gone, and something of it is not.
fn orphan(view: &View<'_>, left: &[String]) -> Finding {
    let what = format!("it is gone, and left {}", left.join(", "));
    let why = "its address cannot be used again, and its rules may lead packets astray";
    let mend = shell!["cnitool", "gc", view.network];
    Finding::warning(name(view), what, why, mend)
}

fn closed(facts: &Facts<'_>, view: &View<'_>) -> Option<Finding> {
    let path = &view.memory?.entry.parameters.netns;
    let Namespace::Closed(why) = facts.survey.namespaces.get(path)? else {
        return None;
    };
    let what = format!("its namespace {path} cannot be looked into");
    let mend = "see what is at that path, and whether cnitool runs as root";
    Some(Finding::error(name(view), what, why, mend))
}

fn link_state(view: &View<'_>, link: &Link) -> Vec<Finding> {
    let (ifname, ip) = (&link.name, ip(view));
    let mut findings = Vec::new();
    if !link.is_up {
        findings.push(Finding::error(
            name(view),
            format!("{ifname} is down"),
            "nothing leaves the container or reaches it",
            ip.clone()
                .args(["link", "set", ifname, "up"])
                .and(put_back(view)),
        ));
    }
    if link.is_without_arp && link.kind == "veth" {
        findings.push(Finding::error(
            name(view),
            format!("{ifname} does not use ARP"),
            "the container finds none of its neighbours, its gateway included",
            ip.args(["link", "set", ifname, "arp", "on"]),
        ));
    }
    findings
}

/// A loopback interface that was up once: its address stays when it goes down.
fn loopback(view: &View<'_>, stack: &Stack) -> Option<Finding> {
    let lo = stack.link("lo").filter(|lo| !lo.is_up)?;
    stack.addresses_of(lo.index).next()?;
    Some(Finding::warning(
        name(view),
        "its loopback interface lo is down",
        "its processes do not reach each other at 127.0.0.1, nor itself at its own addresses",
        ip(view).args(["link", "set", "lo", "up"]),
    ))
}

fn addresses(facts: &Facts<'_>, view: &View<'_>, stack: &Stack, link: &Link) -> Vec<Finding> {
    if !link.is_up {
        return Vec::new();
    }
    let (ifname, ip) = (&link.name, ip(view));
    let mut findings = Vec::new();
    let key = format!("ipv6/conf/{ifname}/disable_ipv6");
    let inside = facts.inside_of(view);
    let is_off = inside.is_some_and(|inside| inside.sysctl(&key) == Some("1"));
    let has_ipv6 = view.addresses.iter().any(|net| net.addr().is_ipv6());
    // RFC 8200, section 5.
    let is_too_narrow = link.mtu < LEAST_OF_IPV6;
    if is_too_narrow && has_ipv6 {
        let mtu = view.host_end.map_or(LEAST_OF_IPV6, |end| end.mtu);
        findings.push(Finding::error(
            name(view),
            format!(
                "MTU {} of {ifname} is less than the {LEAST_OF_IPV6} that IPv6 needs",
                link.mtu
            ),
            "the container has lost its IPv6 addresses and routes",
            ip.clone()
                .args(["link", "set", ifname, "mtu", &mtu.to_string()])
                .and(put_back(view)),
        ));
    } else if is_off && has_ipv6 {
        let key = format!("net/{key}");
        findings.push(Finding::error(
            name(view),
            format!("IPv6 is switched off on {ifname}"),
            "the container has lost its IPv6 addresses and routes",
            set_sysctl_inside(view, &key, "0").and(put_back(view)),
        ));
    }
    for net in &view.addresses {
        if (is_off || is_too_narrow) && net.addr().is_ipv6() {
            continue;
        }
        let mut own = stack.addresses_of(link.index);
        match own.find(|address| address.net == *net) {
            None => findings.push(Finding::error(
                name(view),
                format!("{net} is not on {ifname}"),
                "others find nobody at the address that the container was given",
                put_back(view),
            )),
            Some(address) if address.is_duplicate => {
                let net_text = net.to_string();
                let find = ip.clone().arg(&"neighbour");
                let change = |verb| ip.clone().args(["address", verb, &net_text, "dev", ifname]);
                let again = change("del").and(change("add"));
                findings.push(Finding::error(
                    name(view),
                    format!("{net} on {ifname} is somebody else's too: duplicate address detection failed"),
                    "the kernel does not use the address",
                    format!("find the other with `{find}`, then: {again}"),
                ));
            }
            Some(_) => {}
        }
    }
    findings
}

/// The command that gives the interface the addresses and routes of its result again.
fn put_back(view: &View<'_>) -> ShellScript {
    let (ip, ifname) = (ip(view), &view.attachment.ifname);
    let mut commands = Vec::new();
    for net in &view.addresses {
        let nodad = net.addr().is_ipv6().then_some("nodad");
        let net = net.to_string();
        let replace = ip.clone().args(["address", "replace", &net, "dev", ifname]);
        commands.push(replace.args(nodad));
    }
    let record = view.record();
    for route in record.map_or(&[][..], |record| &record.result.routes) {
        let route = destination(view, route);
        let replace = ip.clone().args(["route", "replace"]).args(&route);
        commands.push(replace.args(["dev", ifname]));
    }
    ShellScript::all(commands)
}

/// A route of the result in the words of `ip route`: `default via 10.9.0.1`.
fn destination(view: &View<'_>, route: &Route) -> Vec<String> {
    let dst = match (route.dst.prefix_len(), route.dst.addr().is_ipv4()) {
        (0, true) => "default".to_owned(),
        (0, false) => "::/0".to_owned(),
        _ => route.dst.to_string(),
    };
    let record = view.record();
    let mut ips = record.map_or(&[][..], |record| &record.result.ips).iter();
    let is_alike = |gw: &IpAddr| gw.is_ipv4() == route.dst.addr().is_ipv4();
    let gateway = route
        .gw
        .or_else(|| ips.find_map(|ip| ip.gateway.filter(is_alike)));
    match gateway {
        Some(gateway) => vec![dst, "via".to_owned(), gateway.to_string()],
        None => vec![dst],
    }
}

/// The same address or hardware address on the same network twice.
fn duplicates(facts: &Facts<'_>, view: &View<'_>, link: &Link) -> Vec<Finding> {
    let mut findings = Vec::new();
    let others = facts
        .views
        .iter()
        .filter(|other| !std::ptr::eq(*other, view));
    let is_near = |other: &View<'_>| match (view.bridge, other.bridge) {
        (Some(a), Some(b)) => a.index == b.index,
        _ => false,
    };
    let own = addresses_of(view);
    for other in others {
        let object = format!("{} and {}", name(view), name(other));
        // Each pair once.
        let is_first = (&view.attachment.container_id, &view.attachment.ifname)
            < (&other.attachment.container_id, &other.attachment.ifname);
        if !is_first {
            continue;
        }
        for (twice, length) in addresses_of(other)
            .into_iter()
            .filter(|(ip, _)| own.contains_key(ip))
        {
            let is_leased = |view: &View<'_>| view.leases.iter().any(|(_, l)| l.ip == twice);
            let wrong = if is_leased(view) { other } else { view };
            findings.push(Finding::error(
                &object,
                format!("both have {twice}"),
                "packets for it reach now the one and now the other",
                ip(wrong)
                    .args(["address", "del", &format!("{twice}/{length}")])
                    .args(["dev", &wrong.attachment.ifname]),
            ));
        }
        let same_mac = other
            .link
            .filter(|theirs| theirs.mac == link.mac && !link.mac.is_empty());
        if same_mac.is_some() && is_near(other) {
            let changed = [other, view].into_iter().find(|v| given_mac(v).is_some());
            let wrong = changed.unwrap_or(other);
            findings.push(Finding::error(
                &object,
                format!("both have hardware address {}", link.mac),
                "the bridge sends the frames of both to whichever sent last",
                ip(wrong)
                    .args(["link", "set", &wrong.attachment.ifname, "address"])
                    .arg(&given_mac(wrong).unwrap_or("MAC")),
            ));
        }
    }
    findings.extend(twin(facts, view, link));
    for (host_index, address) in &facts.survey.host.addresses {
        let ip = address.net.addr();
        if own.contains_key(&ip) {
            let host_link = facts.survey.host.by_index(*host_index);
            let host_link = host_link.map_or("?", |link| &link.name);
            findings.push(Finding::error(
                name(view),
                format!("its address {ip} is also the host's, on {host_link}"),
                "the host takes the packets for the container",
                shell!["ip", "address", "del", address.net, "dev", host_link],
            ));
        }
    }
    findings
}

/// The bridge, or a port of it, has the container's hardware address: what is sent to that
/// does not leave the host.
fn twin(facts: &Facts<'_>, view: &View<'_>, link: &Link) -> Option<Finding> {
    let bridge = view.bridge?;
    let mut links = facts.survey.host.links.iter();
    let twin = links.find(|other| {
        (other.index == bridge.index || other.controller == Some(bridge.index))
            && other.mac == link.mac
            && !link.mac.is_empty()
    })?;
    let mend = if let Some(given) = given_mac(view) {
        ip(view).args(["link", "set", &link.name, "address", given])
    } else {
        let record = view.record();
        let mut made = record.map_or(&[][..], |r| &r.result.interfaces).iter();
        let made = made.find(|i| i.name == twin.name && i.sandbox.is_empty());
        let mac = made.map_or("MAC", |interface| &interface.mac);
        shell!["ip", "link", "set", twin.name, "address", mac]
    };
    Some(Finding::error(
        name(view),
        format!("{} has its hardware address {} too", twin.name, link.mac),
        "the host takes the frames for the container",
        mend,
    ))
}

/// The hardware address that the interface was given, where it has another now.
fn given_mac<'a>(view: &View<'a>) -> Option<&'a str> {
    let result = &view.record()?.result;
    let mut own = result.interfaces.iter();
    let own = own.find(|i| i.name == view.attachment.ifname && !i.sandbox.is_empty())?;
    let now = view.link.map(|link| link.mac.as_str());
    Some(own.mac.as_str()).filter(|mac| !mac.is_empty() && now != Some(*mac))
}

/// The addresses of more than local use that are on the container's interface.
fn addresses_of(view: &View<'_>) -> BTreeMap<IpAddr, u8> {
    let (Some(stack), Some(link)) = (view.inside, view.link) else {
        return BTreeMap::new();
    };
    let own = stack.addresses_of(link.index).filter(|a| a.is_global);
    own.map(|a| (a.net.addr(), a.net.prefix_len())).collect()
}

/// The largest packets must get through everywhere.
fn mtu(facts: &Facts<'_>, view: &View<'_>, link: &Link) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (ifname, ip) = (&link.name, ip(view));
    let fewer = [view.host_end, view.bridge].into_iter().flatten();
    let narrowest = fewer.min_by_key(|link| link.mtu);
    if let Some(narrow) = narrowest.filter(|narrow| narrow.mtu < link.mtu) {
        findings.push(Finding::error(
            name(view),
            format!(
                "MTU {} of {ifname} is greater than {} of {}",
                link.mtu, narrow.mtu, narrow.name
            ),
            "large packets are lost without a word: connections hang once data flows",
            ip.args(["link", "set", ifname, "mtu", &narrow.mtu.to_string()]),
        ));
        return findings;
    }
    if let Some(end) = view.host_end.filter(|end| is_narrower(view, link, end)) {
        findings.push(Finding::warning(
            name(view),
            format!(
                "MTU {} of {ifname} is less than {} of {}, its other end",
                link.mtu, end.mtu, end.name
            ),
            "large packets for the container are lost without a word, those of UDP at least",
            ip.clone()
                .args(["link", "set", ifname, "mtu", &end.mtu.to_string()]),
        ));
    }
    let uplinks = view
        .addresses
        .iter()
        .filter_map(|net| facts.uplink(net.addr()));
    let uplink = uplinks.min_by_key(|uplink| uplink.mtu);
    if let Some(uplink) = uplink.filter(|uplink| uplink.mtu < link.mtu && has_gateway_here(view)) {
        let mtu = uplink.mtu.to_string();
        let narrow = ip.args(["link", "set", ifname, "mtu", &mtu]);
        findings.push(Finding::warning(
            name(view),
            format!(
                "MTU {} of {ifname} is greater than {} of {}, the way out",
                link.mtu, uplink.mtu, uplink.name
            ),
            "large packets depend on ICMP answers, which firewalls like to drop",
            format!("set \"mtu\": {mtu} in the configuration; until then {narrow}"),
        ));
    }
    findings
}

/// Whether the container's end takes less than its other end sends, and that is nobody's wish.
fn is_narrower(view: &View<'_>, link: &Link, end: &Link) -> bool {
    let is_tuned = view
        .plugin("tuning")
        .is_some_and(|tuning| plugin_member(&tuning.document, "mtu").is_some());
    link.kind == "veth" && link.mtu < end.mtu && link.mtu >= LEAST_OF_IPV6 && !is_tuned
}

/// The routes that the result promises.
fn routes(view: &View<'_>, stack: &Stack) -> Vec<Finding> {
    let record = view.record();
    let Some(record) = record else {
        return Vec::new();
    };
    let ip = ip(view);
    let mut findings = Vec::new();
    for wanted in &record.result.routes {
        let is_there = |(_, found): &(u32, crate::net::route::Route)| {
            found.dst == wanted.dst.trunc() && wanted.gw.is_none_or(|gw| found.gateway == Some(gw))
        };
        if stack.routes.iter().any(is_there) {
            continue;
        }
        let route = destination(view, wanted);
        findings.push(Finding::error(
            name(view),
            format!("there is no route to {}", route.join(" ")),
            "the container cannot send there",
            ip.clone()
                .args(["route", "replace"])
                .args(&route)
                .args(["dev", &view.attachment.ifname]),
        ));
    }
    findings
}

/// Whether a packet to the outside leaves by the interface, if it is the way out.
fn ways_out(
    facts: &Facts<'_>,
    view: &View<'_>,
    stack: &Stack,
    inside: &Inside,
    link: &Link,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let ip = ip(view);
    for (kind, route) in inside
        .forbidding
        .iter()
        .filter(|(_, r)| r.table == MAIN_TABLE)
    {
        findings.push(Finding::error(
            name(view),
            format!("a route says {kind} for {}", route.dst),
            "what the container sends there is dropped",
            ip.clone()
                .args(["route", "del", kind, &route.dst.to_string()]),
        ));
    }
    if !findings.is_empty() {
        return findings;
    }
    let record = view.record();
    let promised = record.map_or(&[][..], |record| &record.result.ips);
    for (outside, hop) in &inside.ways_out {
        let is_default = |(index, route): &&(u32, crate::net::route::Route)| {
            *index == link.index
                && route.dst.prefix_len() == 0
                && route.dst.addr().is_ipv4() == outside.is_ipv4()
        };
        let defaults = stack
            .routes
            .iter()
            .filter(is_default)
            .map(|(_, route)| route);
        let is_foreign = |route: &crate::net::route::Route| {
            !promised
                .iter()
                .any(|ip| ip.gateway.is_some() && ip.gateway == route.gateway)
        };
        let default = defaults.min_by_key(|route| (is_foreign(route), route.priority));
        let Some(default) = default else { continue };
        match hop {
            None => {
                let family = outside.is_ipv6().then_some("-6");
                let show = ip.clone().args(family).arg(&"rule");
                findings.push(Finding::error(
                    name(view),
                    format!(
                        "the kernel refuses packets to the outside, although there is a default route through {}",
                        link.name
                    ),
                    "a policy rule forbids them, or sends them to a table without a way out",
                    format!("find the rule with `{show}`, and delete it"),
                ));
            }
            Some((index, gateway)) if *index != link.index || *gateway != default.gateway => {
                findings.extend(astray(facts, view, stack, *outside, (*index, *gateway)));
            }
            Some(_) => {}
        }
    }
    findings
}

/// A server of names that its result tells it to ask.
fn lost(view: &View<'_>, server: IpAddr) -> Finding {
    let server_text = server.to_string();
    let add = ip(view).args(["route", "add", &server_text, "via", "GATEWAY"]);
    Finding::warning(
        name(view),
        format!("there is no route to {server}, the name server of its result"),
        "names are not resolved in the container, or slowly",
        format!(
            "name another server in the configuration of {}, or add a route: {add}",
            view.network,
        ),
    )
}

/// Packets to the outside go by another route than the default one through the interface.
fn astray(
    facts: &Facts<'_>,
    view: &View<'_>,
    stack: &Stack,
    outside: IpAddr,
    (index, gateway): (u32, Option<IpAddr>),
) -> Option<Finding> {
    /// Of links into a tunnel, which a container makes to have its packets go there.
    const TUNNELS: [&str; 12] = [
        "tun",
        "wireguard",
        "ipip",
        "gre",
        "gretap",
        "sit",
        "ip6tnl",
        "ip6gre",
        "vti",
        "vti6",
        "xfrm",
        "ppp",
    ];
    let through = stack.by_index(index)?;
    if TUNNELS.contains(&through.kind.as_str()) {
        return None;
    }
    // The container may be attached to several networks.
    let mut others = facts.views.iter().filter(|v| v.netns == view.netns);
    if others.any(|v| v.link.is_some_and(|l| l.index == index) && !std::ptr::eq(v, view)) {
        return None;
    }
    let taken = stack.routes.iter().filter(|(of, route)| {
        *of == index && route.gateway == gateway && route.dst.contains(&outside)
    });
    let (_, taken) = taken.max_by_key(|(_, route)| route.dst.prefix_len())?;
    let dst = match (taken.dst.prefix_len(), outside.is_ipv4()) {
        (0, true) => "default".to_owned(),
        _ => taken.dst.to_string(),
    };
    let via = gateway.map(|ip| format!(" via {ip}")).unwrap_or_default();
    let table = Some(taken.table).filter(|table| *table != MAIN_TABLE);
    let table = table.map(|t| format!(" table {t}")).unwrap_or_default();
    // Somebody may have meant it.
    Some(Finding::warning(
        name(view),
        format!(
            "its packets to the outside go{via} through {}, by the route to {dst}{table}, and not by the default route of {}",
            through.name, view.attachment.ifname
        ),
        "they pass its network by",
        ip(view)
            .args(["route", "del", &dst])
            .args(via.split_whitespace())
            .args(["dev", &through.name])
            .args(table.split_whitespace()),
    ))
}

/// Other containers of the bridge, remembered wrong for good.
fn wrong_peers(facts: &Facts<'_>, view: &View<'_>, inside: &Inside, link: &Link) -> Vec<Finding> {
    let known = inside.neighbours.iter();
    let known = known.filter(|n| n.index == link.index && n.is_permanent);
    known
        .filter_map(|neighbour| {
            let mut peers = facts.views.iter().filter(|v| v.bridge == view.bridge);
            let peer = peers.find(|v| addresses_of(v).contains_key(&neighbour.ip))?;
            let mac = &peer.link?.mac;
            (neighbour.mac != *mac).then(|| {
                Finding::error(
                    name(view),
                    format!(
                        "{} is set to {} for good, and {} has {mac}",
                        neighbour.ip,
                        neighbour.mac,
                        name(peer)
                    ),
                    "what the container sends there reaches nobody",
                    ip(view)
                        .args(["neighbour", "del", &neighbour.ip.to_string()])
                        .args(["dev", &link.name]),
                )
            })
        })
        .collect()
}

/// What the interface remembers of its gateway.
fn neighbours(facts: &Facts<'_>, view: &View<'_>, inside: &Inside, link: &Link) -> Vec<Finding> {
    let mut findings = wrong_peers(facts, view, inside, link);
    let record = view.record();
    let ips = record.map_or(&[][..], |record| &record.result.ips);
    let here = super::facts::input(view);
    for gateway in ips.iter().filter_map(|ip| ip.gateway) {
        let mut known = inside.neighbours.iter().filter(|n| n.index == link.index);
        let Some(neighbour) = known.find(|n| n.ip == gateway) else {
            continue;
        };
        let forget = ip(view)
            .args(["neighbour", "del", &gateway.to_string()])
            .args(["dev", &link.name]);
        let right = here
            .filter(|_| has_gateway_here(view))
            .map(|link| &link.mac);
        if let Some(right) = right.filter(|mac| neighbour.is_permanent && neighbour.mac != **mac) {
            findings.push(Finding::error(
                name(view),
                format!(
                    "gateway {gateway} is set to {} for good, and has {right}",
                    neighbour.mac
                ),
                "what the container sends to other networks reaches nobody",
                forget,
            ));
        } else if neighbour.has_failed {
            findings.push(Finding::warning(
                name(view),
                format!("gateway {gateway} did not answer when it was last asked"),
                "the container reached no other network then",
                format!(
                    "try again: {forget}, then ping {} from it",
                    outside(gateway)
                ),
            ));
        }
    }
    findings
}
