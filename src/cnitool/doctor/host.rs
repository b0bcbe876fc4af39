//! On the host: its end of the pair, the bridge, the gateway's address, forwarding, routes.

use std::cmp::Ordering;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;

use super::facts::{Facts, has_gateway_here, input, outside};
use super::{Finding, attach_again, name, port, sysctls, uplink};
use crate::cnitool::inventory::attachment::{State, View};
use crate::net::link::Link;
use crate::net::link_sysctl::LinkSysctl;
use crate::net::route::{Forwarded, MAIN_TABLE};
use crate::shell::shell;

/// What is wrong there.
pub fn check(facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
    if matches!(view.state, State::Orphan(_)) || view.link.is_none() {
        return Vec::new();
    }
    let is_veth = view.link.is_some_and(|link| link.kind == "veth");
    let Some(end) = view.host_end else {
        let what = "the host's end of its veth pair is not on the host";
        let why = "nothing leaves the container or reaches it";
        let finding = Finding::error(name(view), what, why, attach_again(view));
        return Vec::from_iter(is_veth.then_some(finding));
    };
    let mut findings = host_end(view, end);
    findings.extend(port::check(facts, view, end));
    findings.extend(bridge(view));
    findings.extend(sysctls::ipv6_is_off(facts, view));
    if findings.is_empty() && has_gateway_here(view) {
        findings.extend(gateways(facts, view));
        if findings.is_empty() {
            findings.extend(routes_to(facts, view));
        }
        findings.extend(sysctls::forwarding(facts, view));
        findings.extend(uplink::check(facts, view));
        if findings.is_empty() {
            findings.extend(ways(facts, view));
        }
    }
    findings.extend(overlaps(facts, view));
    findings.extend(neighbours(facts, view));
    findings.extend(sysctls::host_is_silent(facts, view));
    findings
}

fn host_end(view: &View<'_>, end: &Link) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !end.is_up {
        findings.push(Finding::error(
            format!("host end {}", end.name),
            format!("it is down ({})", name(view)),
            "nothing leaves the container or reaches it",
            shell!["ip", "link", "set", end.name, "up"],
        ));
    }
    if end.is_without_arp && view.bridge.is_none() {
        findings.push(Finding::error(
            format!("host end {}", end.name),
            format!("it does not use ARP ({})", name(view)),
            "the host cannot find the container",
            shell!["ip", "link", "set", end.name, "arp", "on"],
        ));
    }
    findings
}

fn bridge(view: &View<'_>) -> Vec<Finding> {
    let Some(bridge) = view.bridge else {
        return Vec::new();
    };
    let object = format!("bridge {}", bridge.name);
    let mut findings = Vec::new();
    if !bridge.is_up {
        findings.push(Finding::error(
            &object,
            "it is down",
            "none of its containers reaches anything",
            shell!["ip", "link", "set", bridge.name, "up"],
        ));
    }
    if bridge.is_without_arp && has_gateway_here(view) {
        findings.push(Finding::error(
            &object,
            "it does not use ARP",
            "it does not answer its containers, which look for their gateway",
            shell!["ip", "link", "set", bridge.name, "arp", "on"],
        ));
    }
    findings
}

/// The gateway's addresses are on the host.
fn gateways(facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
    let record = view.record();
    let (Some(record), Some(link)) = (record, input(view)) else {
        return Vec::new();
    };
    let host = &facts.survey.host;
    let mut findings = Vec::new();
    for ip in &record.result.ips {
        let Some(gateway) = ip.gateway else {
            continue;
        };
        // With VLANs it is on a link of its own.
        let mut addresses = host.addresses.iter();
        if let Some((index, address)) = addresses.find(|(_, a)| a.net.addr() == gateway) {
            let on = host.by_index(*index).map_or(&link.name, |on| &on.name);
            findings.extend(address.is_duplicate.then(|| duplicate(address.net, on)));
            continue;
        }
        let length = match view.bridge {
            Some(_) => ip.address.prefix_len(),
            None => ip.address.max_prefix_len(),
        };
        let kind = if view.bridge.is_some() {
            "bridge"
        } else {
            "host end"
        };
        findings.push(Finding::error(
            format!("{kind} {}", link.name),
            format!("gateway {gateway} is not on it"),
            "its containers reach no other network",
            shell![
                "ip",
                "address",
                "add",
                format!("{gateway}/{length}"),
                "dev",
                link.name
            ],
        ));
    }
    findings
}

/// Somebody else has said that the gateway's address is his.
fn duplicate(net: IpNet, link: &str) -> Finding {
    let again = shell!["ip", "address", "del", net, "dev", link]
        .and(shell!["ip", "address", "add", net, "dev", link, "nodad"]);
    Finding::error(
        format!("bridge {link}"),
        format!("gateway {net} is somebody else's too: duplicate address detection failed"),
        "the kernel does not use the address: its containers reach no other network",
        format!("find the other with --probe, then: {again}"),
    )
}

/// What the host sends to the container goes there.
fn routes_to(facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
    let Some(link) = input(view) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    for net in &view.addresses {
        let ip = net.addr();
        let Some(way) = facts.ways.get(&ip) else {
            continue;
        };
        let what = match &way.to {
            Some(through) if *through == link.name => continue,
            // Of VLANs, and of addresses that are the host's own, which has its own finding.
            Some(through)
                if view.plugin("flannel").is_some()
                    || through == "lo"
                    || facts.is_above(through, link) =>
            {
                continue;
            }
            Some(through) => format!(
                "packets to {ip} leave through {through} instead of {}",
                link.name
            ),
            None => format!("there is no route to {ip}, or one that forbids"),
        };
        let get = shell!["ip", "route", "get", ip];
        let replace = shell!["ip", "route", "replace", net.trunc(), "dev", link.name];
        findings.push(Finding::error(
            "host",
            what,
            format!("{} cannot be reached, and gets no answers", name(view)),
            format!("look at `{get}` and `ip rule`, and remove the route or rule that is in the way; {replace}"),
        ));
    }
    findings
}

/// What the kernel says it does with a packet from the container to the outside.
fn ways(facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
    let (Some(link), Some(inside)) = (input(view), facts.inside_of(view)) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    for net in &view.addresses {
        let ip = net.addr();
        let way = facts.ways.get(&ip).and_then(|way| way.from);
        let Some(Forwarded::Nowhere(errno)) = way else {
            continue;
        };
        // That has a finding of its own.
        let mut on_host = facts.survey.host.addresses.iter();
        if on_host.any(|(_, address)| address.net.addr() == ip) {
            continue;
        }
        // A container without a way out is not meant to have one.
        if !inside
            .ways_out
            .get(&outside(ip))
            .is_some_and(Option::is_some)
        {
            continue;
        }
        let filter = facts
            .host
            .effective(LinkSysctl::v4(&link.name, "rp_filter"));
        let is_filter = ip.is_ipv4()
            && [Errno::EXDEV, Errno::EINVAL].contains(&errno)
            && filter.is_some_and(|mode| mode > 0);
        let (what, mend) = if is_filter {
            (
                format!("rp_filter drops what comes from {ip} by {}", link.name),
                format!(
                    "{}, or mend the route that leads to {ip} elsewhere",
                    sysctls::loosen_filter(view, link)
                ),
            )
        } else {
            let to = outside(ip);
            let get = shell!["ip", "route", "get", to, "from", ip, "iif", link.name];
            (
                format!(
                    "it forwards nothing from {ip} to the outside: {}",
                    errno.desc().to_lowercase()
                ),
                format!("look at `ip rule` and `{get}`, and delete what forbids it"),
            )
        };
        let why = format!("{} reaches no other network", name(view));
        findings.push(Finding::error("host", what, why, mend));
    }
    findings
}

/// Routes of the host into the containers' subnet that have nothing to do with them.
fn overlaps(facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
    let subnets = view.addresses.iter().map(IpNet::trunc);
    let subnets = subnets.filter(|net| net.prefix_len() < net.max_prefix_len());
    let bridge = view.bridge.into_iter();
    bridge
        .flat_map(|link| {
            subnets
                .clone()
                .flat_map(|subnet| overlaps_of(facts, &view.network, subnet, Some(link)))
        })
        .collect()
}

/// Routes of the host into the `subnet` of a network that do not lead to its bridge `link`,
/// which there may not be yet.
pub fn overlaps_of(
    facts: &Facts<'_>,
    network: &str,
    subnet: IpNet,
    link: Option<&Link>,
) -> Vec<Finding> {
    let host = &facts.survey.host;
    let object = format!("network {network}");
    let mut findings = Vec::new();
    for (index, route) in &host.routes {
        let theirs = route.dst.trunc();
        let is_other = link.is_none_or(|link| link.index != *index)
            && route.table == MAIN_TABLE
            && theirs.prefix_len() > 0;
        let through = host.by_index(*index).map_or("?", |link| &link.name);
        // One for a container, as of another plugin, is on purpose.
        let is_host_route = theirs.prefix_len() == theirs.max_prefix_len();
        if !is_other
            || !overlap(&subnet, &theirs)
            || is_host_route
            || link.is_some_and(|link| facts.is_above(through, link))
        {
            continue;
        }
        let wins = match theirs.prefix_len().cmp(&subnet.prefix_len()) {
            Ordering::Greater => {
                "containers with these addresses cannot be reached: the narrower route wins"
            }
            Ordering::Less => {
                "machines there that have containers' addresses cannot be reached: the narrower route wins"
            }
            Ordering::Equal => "packets go to the one or the other, by the routes' metric",
        };
        let remove = shell!["ip", "route", "del", theirs, "dev", through];
        findings.push(Finding::warning(
            &object,
            format!(
                "its subnet {subnet} overlaps the host's own route to {theirs} through {through}"
            ),
            wins,
            format!("choose another subnet in the configuration, or remove the route: {remove}"),
        ));
    }
    for (kind, route) in &facts.host.forbidding {
        let theirs = route.dst.trunc();
        if theirs.prefix_len() > 0 && subnet.contains(&theirs) && theirs != subnet {
            findings.push(Finding::error(
                &object,
                format!(
                    "a route of the host says {kind} for {theirs}, which is in its subnet {subnet}"
                ),
                "containers with these addresses cannot be reached",
                shell!["ip", "route", "del", kind, theirs],
            ));
        }
    }
    findings
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// What the host remembers of the container.
fn neighbours(facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
    let (Some(link), Some(end)) = (view.link, input(view)) else {
        return Vec::new();
    };
    let is_own = |ip: IpAddr| view.addresses.iter().any(|net| net.addr() == ip);
    let known = facts
        .host
        .neighbours
        .iter()
        .filter(|n| n.index == end.index && is_own(n.ip));
    known
        .filter_map(|neighbour| {
            let forget = shell!["ip", "neighbour", "del", neighbour.ip, "dev", end.name];
            if neighbour.is_permanent && neighbour.mac != link.mac {
                Some(Finding::error(
                    "host",
                    format!(
                        "{} is set to {} for good, and {} has {}",
                        neighbour.ip,
                        neighbour.mac,
                        name(view),
                        link.mac
                    ),
                    "what is sent to the container reaches nobody",
                    forget,
                ))
            } else if neighbour.has_failed && link.is_up {
                Some(Finding::warning(
                    "host",
                    format!(
                        "{} of {} did not answer when it was last asked who has it",
                        neighbour.ip,
                        name(view)
                    ),
                    "the container was not reached then",
                    forget,
                ))
            } else {
                None
            }
        })
        .collect()
}
