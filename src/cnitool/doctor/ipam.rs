//! Leases: exhaustion, leaks, addresses that are not leased.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::facts::Facts;
use super::{Finding, name};
use crate::cni::pool::{Holder, Pool};
use crate::cnitool::inventory::attachment::{State, View};
use crate::cnitool::inventory::is_host_local;
use crate::shell::shell;

/// What is wrong with the leases of an attachment.
pub fn check_view(facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
    let record = view.record();
    let Some(record) = record.filter(|_| !matches!(view.state, State::Orphan(_))) else {
        return Vec::new();
    };
    if !record.network.plugins.iter().any(is_host_local) {
        return Vec::new();
    }
    let pools: Vec<&Pool> = facts
        .survey
        .pools
        .iter()
        .filter(|p| p.network == view.network)
        .collect();
    let mut findings = Vec::new();
    for ip in view.addresses.iter().map(ipnet::IpNet::addr) {
        if view.leases.iter().any(|(_, lease)| lease.ip == ip) {
            continue;
        }
        let mut leases = pools.iter().flat_map(|pool| &pool.leases);
        let holder = leases
            .find(|lease| lease.ip == ip)
            .map(|lease| &lease.holder);
        let directory = pools.first().map_or_else(
            || format!("/var/lib/cni/networks/{}", view.network),
            |pool| pool.directory.display().to_string(),
        );
        let (id, ifname) = (&view.attachment.container_id, &view.attachment.ifname);
        findings.push(match holder {
            Some(Holder::Attachment(other, _)) => Finding::error(
                name(view),
                format!("the lease of its address {ip} is container {other}'s"),
                "two containers use one address, or will",
                format!("restart both containers; the lease is {directory}/{ip}"),
            ),
            _ => Finding::error(
                name(view),
                format!("its address {ip} has no lease"),
                "another container may get the address",
                shell!["printf", "%s\\r\\n%s", id, ifname].into_file(&format!("{directory}/{ip}")),
            ),
        });
    }
    findings
}

/// What gives a pool room again: there are leases to free only where containers are gone.
fn room_in(facts: &Facts<'_>, pool: &Pool) -> String {
    let mut gone = facts
        .views
        .iter()
        .filter(|view| matches!(view.state, State::Orphan(_)) && view.network == pool.network);
    if gone.any(|view| !view.leases.is_empty()) {
        let collect = shell!["cnitool", "gc", pool.network];
        format!("free leaked leases with `{collect}`, or add a range")
    } else {
        "add a range, or a larger one: all are in use, or set aside".to_owned()
    }
}

/// What is wrong with pools; `what` is the network or container that is meant.
pub fn check_pools(facts: &Facts<'_>, what: Option<&str>) -> Vec<Finding> {
    let is_network = |name: &str| {
        facts
            .survey
            .directory
            .networks
            .iter()
            .any(|n| n.name == name)
    };
    let mut findings = Vec::new();
    let meant = facts
        .survey
        .pools
        .iter()
        .filter(|pool| what.is_none_or(|what| what == pool.network));
    for pool in meant {
        for set in &pool.sets {
            if set.next.is_some() {
                continue;
            }
            let ranges: Vec<String> = set.ranges.iter().map(|(a, b)| format!("{a}-{b}")).collect();
            findings.push(Finding::error(
                format!("network {}", pool.network),
                format!(
                    "all {} addresses of {} are taken",
                    set.size,
                    ranges.join(",")
                ),
                "no container can be added",
                room_in(facts, pool),
            ));
        }
        let outside = pool
            .leases
            .iter()
            .filter(|lease| matches!(lease.holder, Holder::Nobody) && !pool.sets.is_empty())
            // That has a finding of its own.
            .filter(|lease| !is_used(facts, pool, lease.ip));
        let blank: Vec<String> = outside.map(|lease| lease.ip.to_string()).collect();
        if !blank.is_empty() && is_network(&pool.network) {
            findings.push(Finding::warning(
                format!("network {}", pool.network),
                format!("the lease of {} names nobody", blank.join(", ")),
                "its writer did not finish: the next ADD may take the address",
                shell!["rm"].args(
                    blank
                        .iter()
                        .map(|ip| pool.directory.join(ip).display().to_string()),
                ),
            ));
        }
    }
    if what.is_none() {
        findings.extend(twice(facts));
    }
    findings
}

/// Whether a container has the address.
fn is_used(facts: &Facts<'_>, pool: &Pool, ip: IpAddr) -> bool {
    let mut views = facts.views.iter().filter(|v| v.network == pool.network);
    views.any(|view| view.addresses.iter().any(|net| net.addr() == ip))
}

/// One address leased by two networks that share a bridge, or use one subnet.
fn twice(facts: &Facts<'_>) -> Vec<Finding> {
    let mut holders: BTreeMap<IpAddr, Vec<&View<'_>>> = BTreeMap::new();
    for view in facts
        .views
        .iter()
        .filter(|view| !matches!(view.state, State::Orphan(_)))
    {
        for (_, lease) in &view.leases {
            holders.entry(lease.ip).or_default().push(view);
        }
    }
    let several = holders.into_iter().filter(|(_, views)| views.len() > 1);
    several
        .map(|(ip, views)| {
            let names: Vec<String> = views
                .iter()
                .map(|v| format!("{} ({})", name(v), v.network))
                .collect();
            Finding::error(
                names.join(" and "),
                format!("{ip} is leased to both, by different networks"),
                "the networks' ranges overlap: packets reach now the one and now the other",
                "give the networks ranges that do not overlap, and restart one of the containers",
            )
        })
        .collect()
}
