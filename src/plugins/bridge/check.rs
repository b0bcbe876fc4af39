//! CHECK: is the attachment still what ADD made of it?
//!
//! Not compared: what is legitimately changed by others. The bridge's and the host end's
//! hardware addresses (udev rewrites them), and whatever a packet capture switches on.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::apply::{self, Sides};
use super::config::Settings;
use super::plan::Plan;
use super::rules;
use crate::cni::error::{Code, agree, coded};
use crate::cni::result::{CniResult, Interface, Ip};
use crate::cni::skel::Call;
use crate::net::addr::{self, Address};
use crate::net::link::{self, Link};
use crate::net::mac::Mac;
use crate::net::route::{self, Route};
use crate::{fsutil, log};

/// What CHECK sees.
#[derive(Debug, Default)]
struct Observed {
    bridge: Option<Link>,
    bridge_addresses: Vec<IpNet>,
    /// The other end of the container's link, if that is a veth.
    host_end: Option<Link>,
    container_end: Option<Link>,
    addresses: Vec<Address>,
    routes: Vec<Route>,
}

/// Compares the attachment with `prevResult`.
///
/// # Errors
/// Every difference: expected and found.
pub fn check(call: &Call, settings: &Settings) -> Result<()> {
    let result = call
        .config
        .prev_result()?
        .context(coded(Code::Config, "Required prevResult missing"))?;
    let sides = Sides::open(call)?;
    let netns = call.invocation.netns.as_deref().unwrap_or_default();
    let ifname = &call.invocation.attachment.ifname;
    let interface = result
        .interfaces
        .iter()
        .position(|i| i.name == *ifname && is_sandbox(&i.sandbox, netns))
        .with_context(|| format!("prevResult has no interface {ifname} with sandbox {netns}"))?;
    let observed = observe(&sides, settings, ifname, &result)?;
    warn_of_mtu(&observed);
    agree(compare(settings, &result, interface, &observed))?;
    let host_end = observed.host_end.map(|end| end.name).unwrap_or_default();
    rules::check(call, settings, &result, interface, &host_end)
}

/// Whether a result's `sandbox` is the namespace at `netns`, however it is spelt.
fn is_sandbox(sandbox: &str, netns: &str) -> bool {
    sandbox == netns || fsutil::is_same_file(Path::new(sandbox), Path::new(netns))
}

fn observe(
    sides: &Sides,
    settings: &Settings,
    ifname: &str,
    result: &CniResult,
) -> Result<Observed> {
    let mut observed = Observed {
        bridge: apply::find_bridge(&sides.host, &settings.bridge)?,
        container_end: link::by_name(&sides.container, ifname)?,
        ..Observed::default()
    };
    if let Some(bridge) = &observed.bridge {
        observed.bridge_addresses = addr::list(&sides.host, bridge.index)?
            .into_iter()
            .map(|address| address.net)
            .collect();
    }
    let Some(end) = &observed.container_end else {
        return Ok(observed);
    };
    if let Some(peer) = end.peer.filter(|_| end.kind == "veth") {
        // An index means something in its own namespace only: it is our pair if it
        // points back.
        observed.host_end = link::by_index(&sides.host, peer)?
            .filter(|host_end| host_end.kind == "veth" && host_end.peer == Some(end.index));
    }
    observed.addresses = addr::list(&sides.container, end.index)?;
    // One dump a family, through whichever link: routes may be another plugin's.
    let families: BTreeMap<bool, std::net::IpAddr> = result
        .routes
        .iter()
        .map(|route| route.dst.addr())
        .map(|ip| (ip.is_ipv4(), ip))
        .collect();
    for sample in families.into_values() {
        observed
            .routes
            .extend(route::list(&sides.container, sample)?);
    }
    Ok(observed)
}

/// Another container with a smaller MTU lowers that of the bridge. It is nothing that
/// happened to this attachment, but its operator will want to know.
fn warn_of_mtu(observed: &Observed) {
    if let (Some(bridge), Some(end)) = (&observed.bridge, &observed.container_end)
        && end.mtu > bridge.mtu
    {
        log::warn(&format!(
            "interface {} has MTU {}, but bridge {} carries {} only",
            end.name, end.mtu, bridge.name, bridge.mtu
        ));
    }
}

/// Every difference, in words. `interface` is the container's end in the result.
fn compare(
    settings: &Settings,
    result: &CniResult,
    interface: usize,
    observed: &Observed,
) -> Vec<String> {
    let mut differences = Vec::new();
    let name = &settings.bridge;
    match &observed.bridge {
        None => differences.push(format!(
            "bridge {name}: expected a bridge, found no such link"
        )),
        Some(bridge) => compare_bridge(
            settings,
            result,
            interface,
            bridge,
            observed,
            &mut differences,
        ),
    }
    let Some(expected) = result.interfaces.get(interface) else {
        return differences;
    };
    match &observed.container_end {
        None => differences.push(format!(
            "interface {}: expected in {}, found no such link",
            expected.name, expected.sandbox
        )),
        Some(end) => {
            compare_container_end(settings, expected, end, observed, &mut differences);
            compare_addresses(
                result,
                interface,
                &expected.name,
                observed,
                &mut differences,
            );
        }
    }
    differences
}

fn compare_bridge(
    settings: &Settings,
    result: &CniResult,
    interface: usize,
    bridge: &Link,
    observed: &Observed,
    differences: &mut Vec<String>,
) {
    let name = &bridge.name;
    if !bridge.is_up {
        differences.push(format!("bridge {name}: expected up, found down"));
    }
    if settings.promiscuous && !bridge.is_promiscuous {
        differences.push(format!(
            "bridge {name}: expected promiscuous, found that it is not"
        ));
    }
    // What the gateway addresses must be follows from the result as it did in ADD.
    let own = CniResult {
        ips: own_addresses(result, interface).cloned().collect(),
        ..CniResult::default()
    };
    let wanted = Plan::new(settings, &own)
        .map(|plan| plan.bridge_addresses)
        .unwrap_or_default();
    for address in wanted {
        if !observed.bridge_addresses.contains(&address) {
            differences.push(format!(
                "bridge {name}: expected the gateway's address {address}, found {}",
                list(&observed.bridge_addresses)
            ));
        }
    }
}

fn compare_container_end(
    settings: &Settings,
    expected: &Interface,
    end: &Link,
    observed: &Observed,
    differences: &mut Vec<String>,
) {
    let name = &expected.name;
    let mut differ = |what: &str, expected: &str, found: &str| {
        differences.push(format!(
            "interface {name}: expected {what} {expected}, found {found}"
        ));
    };
    if end.kind != "veth" {
        differ(
            "link type",
            "veth",
            if end.kind.is_empty() {
                "none"
            } else {
                &end.kind
            },
        );
        return;
    }
    // `tuning` repeats in the result how the operator wrote the address.
    if !expected.mac.is_empty()
        && expected.mac != end.mac
        && Mac::parse(&expected.mac).is_none_or(|mac| mac.to_string() != end.mac)
    {
        differ("MAC address", &expected.mac, &end.mac);
    }
    if expected.mtu != 0 && expected.mtu != end.mtu {
        differ("MTU", &expected.mtu.to_string(), &end.mtu.to_string());
    }
    if settings.container_end_up && !end.is_up {
        differ("state", "up", "down");
    }
    let Some(bridge) = &observed.bridge else {
        return;
    };
    let Some(host_end) = &observed.host_end else {
        differ("the other end", "on the host", "none there");
        return;
    };
    if host_end.controller != Some(bridge.index) {
        differ(
            &format!("its other end {} to be a port of", host_end.name),
            &bridge.name,
            &match host_end.controller {
                None => "no bridge".to_owned(),
                Some(index) => format!("the link with index {index}"),
            },
        );
    }
    if !host_end.is_up {
        differ(&format!("its other end {}", host_end.name), "up", "down");
    }
}

fn compare_addresses(
    result: &CniResult,
    interface: usize,
    name: &str,
    observed: &Observed,
    differences: &mut Vec<String>,
) {
    for ip in own_addresses(result, interface) {
        let found = observed.addresses.iter().find(|a| a.net == ip.address);
        match found {
            None => {
                let all: Vec<IpNet> = observed.addresses.iter().map(|a| a.net).collect();
                differences.push(format!(
                    "interface {name}: expected address {}, found {}",
                    ip.address,
                    list(&all)
                ));
            }
            Some(address) if address.is_duplicate => differences.push(format!(
                "interface {name}: address {} is in use by somebody else on the network",
                ip.address
            )),
            Some(_) => {}
        }
    }
    for route in &result.routes {
        let candidates: Vec<&Route> = observed
            .routes
            .iter()
            .filter(|r| r.dst.trunc() == route.dst.trunc())
            // A chained plugin may have moved it to a table of its own.
            .filter(|r| route.table.is_none_or(|table| table == r.table))
            .collect();
        let table = route
            .table
            .map(|t| format!(" in table {t}"))
            .unwrap_or_default();
        if candidates.is_empty() {
            differences.push(format!(
                "interface {name}: expected a route to {}{table}, found none",
                route.dst
            ));
            continue;
        }
        // Default routes are other plugins' favourite to replace.
        let Some(gateway) = route.gw.filter(|_| !route.is_default()) else {
            continue;
        };
        if !candidates.iter().any(|r| r.gateway == Some(gateway)) {
            let found: Vec<String> = candidates.iter().map(ToString::to_string).collect();
            differences.push(format!(
                "interface {name}: expected a route to {} via {gateway}{table}, found {}",
                route.dst,
                found.join(", ")
            ));
        }
    }
}

/// The addresses that the result gives to `interface`, or to none.
fn own_addresses(result: &CniResult, interface: usize) -> impl Iterator<Item = &Ip> {
    result
        .ips
        .iter()
        .filter(move |ip| ip.interface.is_none_or(|index| index == interface))
}

fn list(nets: &[IpNet]) -> String {
    if nets.is_empty() {
        return "none".to_owned();
    }
    let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
    nets.join(", ")
}
