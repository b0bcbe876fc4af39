//! The host's own way to other networks, which is that of its containers.

use std::net::IpAddr;

use super::facts::{Facts, has_gateway_here, outside};
use super::{Finding, set_sysctl};
use crate::cnitool::inventory::attachment::View;
use crate::net::link::Link;
use crate::net::link_sysctl::LinkSysctl;
use crate::shell::shell;

/// What is wrong with it, if the container's way out leads through the host.
pub fn check(facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
    let Some(inside) = facts.inside_of(view).filter(|_| has_gateway_here(view)) else {
        return Vec::new();
    };
    let families = inside.ways_out.iter().filter(|(_, hop)| hop.is_some());
    families
        .filter_map(|(outside, _)| way(facts, *outside))
        .collect()
}

const WHY: &str = "neither the host nor its containers reach other networks";

fn way(facts: &Facts<'_>, ip: IpAddr) -> Option<Finding> {
    let (family, word) = if ip.is_ipv4() {
        (shell!["ip"], "IPv4")
    } else {
        (shell!["ip", "-6"], "IPv6")
    };
    let hop = facts.host.ways_out.get(&outside(ip));
    if hop != Some(&None) {
        let (link, route) = facts.default_route(ip)?;
        let to = if ip.is_ipv4() { "default" } else { "::/0" };
        // Policy rules, routes to less, or a sysctl may have packets go by another.
        let is_used = matches!(hop, Some(Some((index, _))) if *index == link.index);
        return (is_used && link.is_up && link.is_cut_off).then(|| {
            let remove = family
                .args(["route", "del", to, "dev", &link.name, "metric"])
                .arg(&route.priority);
            Finding::error(
                "host",
                format!("its default route of {word} leads through {0}, and nothing is at the other end of {0}", link.name),
                WHY,
                format!("see to the cable, or to whatever is there; or remove the route: {remove}"),
            )
        });
    }
    if let Some(finding) = deaf_router(facts, ip) {
        return Some(finding);
    }
    let link = uplinks(facts, ip).next()?;
    let name = &link.name;
    let add = family
        .clone()
        .args(["route", "add", "default", "via", "GATEWAY", "dev", name]);
    if !link.is_up {
        return Some(Finding::error(
            "host",
            format!("{name} is down, and there is no other way out"),
            WHY,
            shell!["ip", "link", "set", name, "up"].and(add),
        ));
    }
    // A node in a namespace may be on purpose without one.
    let is_meant = link.kind != "veth" || facts.survey.host.default_routes().next().is_some();
    is_meant.then(|| {
        Finding::warning(
            "host",
            format!("it has no route of {word} to other networks than those it is in, such as that of {name}"),
            WHY,
            format!("{add}; if there is one: {family} route; {family} rule"),
        )
    })
}

/// A link that takes router advertisements, if the host did not forward. It does: the kernel has
/// dropped the default route that it had from one, and takes no more.
fn deaf_router(facts: &Facts<'_>, ip: IpAddr) -> Option<Finding> {
    if ip.is_ipv4() || facts.host.integer("ipv6/conf/all/forwarding") != Some(1) {
        return None;
    }
    let mut links = uplinks(facts, ip);
    let (link, key) = links.find_map(|link| {
        let key = LinkSysctl::v6(&link.name, "accept_ra").key();
        let mut own = facts.survey.host.addresses_of(link.index);
        // It has taken an address from one.
        own.find(|a| a.net.addr().is_ipv6() && a.is_global && !a.is_permanent)?;
        (link.is_up && facts.host.integer(&key) == Some(1)).then_some((link, key))
    })?;
    Some(Finding::error(
        "host",
        format!(
            "it has no default route of IPv6, and takes none from the routers that {} leads to: it forwards, and net/{key} is 1",
            link.name
        ),
        WHY,
        set_sysctl(&format!("net/{key}"), "2"),
    ))
}

/// Links that lead to others than containers, with an address that is good for that.
fn uplinks<'a>(facts: &'a Facts<'_>, ip: IpAddr) -> impl Iterator<Item = &'a Link> {
    /// Kinds of links that lead out of the node.
    const OUTWARDS: [&str; 6] = ["", "veth", "vlan", "bond", "team", "macvlan"];
    let host = &facts.survey.host;
    let is_containers = |link: &Link| {
        let mut views = facts.views.iter();
        views.any(|view| {
            view.host_end == Some(link)
                || view.others.contains(&link)
                || view.bridge.is_some_and(|b| facts.is_above(&link.name, b))
        })
    };
    let addresses = host.addresses.iter().filter(move |(_, address)| {
        let own = address.net.addr();
        // Networks of unique local addresses (RFC 4193) often have no way out.
        let is_local = matches!(own, IpAddr::V6(own) if own.is_unique_local());
        address.is_global && own.is_ipv4() == ip.is_ipv4() && !is_local
    });
    addresses.filter_map(move |(index, _)| {
        let link = host.by_index(*index)?;
        let is_one = link.name != "lo"
            && OUTWARDS.contains(&link.kind.as_str())
            && link.controller.is_none()
            && !is_containers(link);
        is_one.then_some(link)
    })
}
