//! CHECK: is the attachment still what ADD made of it?
//!
//! Not compared: what is legitimately changed by others. The bridge's and the host end's
//! hardware addresses (udev rewrites them), and whatever a packet capture switches on.

use anyhow::Result;
use ipnet::IpNet;

use super::config::{Settings, vlan_gateway_name};
use super::plan::Plan;
use super::rules::Wanted;
use super::{base, vlan};
use crate::cni::error::agree;
use crate::cni::result::{CniResult, Interface};
use crate::cni::skel::Call;
use crate::log;
use crate::net::addr;
use crate::net::bridge_vlan::{self, Vlans};
use crate::net::link::{self, Link};
use crate::plugins::container_end::{self, Existing, list};
use crate::plugins::layer3::own_addresses;
use crate::plugins::rule_check;
use crate::plugins::veth::Sides;

/// What CHECK sees.
#[derive(Debug, Default)]
struct Observed {
    bridge: Option<Link>,
    /// The bridge, or the interface of the VLAN.
    gateway: Option<Link>,
    gateway_addresses: Vec<IpNet>,
    end: container_end::Observed,
    /// Those of the host end, where there should be any.
    vlans: Vlans,
}

/// Compares the attachment with `prevResult`.
///
/// # Errors
/// Every difference: expected and found.
pub fn check(call: &Call, settings: &Settings) -> Result<()> {
    let (result, interface) = container_end::own_result(call)?;
    let ifname = &call.invocation.attachment.ifname;
    let observed = observe(&Sides::open(call)?, settings, ifname, &result)?;
    warn_of_mtu(&observed);
    let wanted = gateway_addresses(settings, &result, interface);
    let mut differences = compare(settings, &result, interface, &wanted, &observed);
    if let Some(gateway) = &observed.gateway {
        let ips = wanted.iter().map(IpNet::addr);
        differences.extend(container_end::lost_forwarding(gateway, ips)?);
    }
    let Some(host_end) = observed.end.host_end else {
        return agree(differences);
    };
    let there = Existing {
        result,
        interface,
        host_end,
    };
    let rules = Wanted::new(call, settings, &there)?;
    rule_check::agree(differences, rules.owner(), rules.missing()?)
}

fn observe(
    sides: &Sides,
    settings: &Settings,
    ifname: &str,
    result: &CniResult,
) -> Result<Observed> {
    let mut observed = Observed {
        bridge: base::find_bridge(&sides.host, &settings.bridge)?,
        end: container_end::observe(sides, ifname, result)?,
        ..Observed::default()
    };
    observed.gateway = match settings.gateway_vlan() {
        Some(vlan) => link::by_name(&sides.host, &vlan_gateway_name(&settings.bridge, vlan))?,
        None => observed.bridge.clone(),
    };
    if let Some(gateway) = &observed.gateway {
        observed.gateway_addresses = addr::list(&sides.host, gateway.index)?
            .into_iter()
            .map(|address| address.net)
            .collect();
    }
    if let (Some(_), Some(bridge), Some(host_end)) =
        (&settings.vlans, &observed.bridge, &observed.end.host_end)
    {
        observed.vlans = bridge_vlan::list(&sides.host, bridge.index)?
            .into_iter()
            .find(|port| port.index == host_end.index)
            .map(|port| port.vlans)
            .unwrap_or_default();
    }
    Ok(observed)
}

/// Another container with a smaller MTU lowers that of the bridge. It is nothing that
/// happened to this attachment, but its operator will want to know.
fn warn_of_mtu(observed: &Observed) {
    if let (Some(bridge), Some(end)) = (&observed.bridge, &observed.end.link)
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
    wanted: &[IpNet],
    observed: &Observed,
) -> Vec<String> {
    let mut differences = Vec::new();
    let name = &settings.bridge;
    match &observed.bridge {
        None => differences.push(format!(
            "bridge {name}: expected a bridge, found no such link"
        )),
        Some(bridge) => compare_bridge(settings, bridge, &mut differences),
    }
    compare_gateway(settings, wanted, observed, &mut differences);
    differences.extend(container_end::differences(
        result,
        interface,
        &observed.end,
        settings.container_end_up,
    ));
    if let (Some(bridge), Some(expected)) = (&observed.bridge, result.interfaces.get(interface)) {
        compare_port(settings, expected, bridge, observed, &mut differences);
    }
    differences
}

fn compare_bridge(settings: &Settings, bridge: &Link, differences: &mut Vec<String>) {
    let name = &bridge.name;
    if !bridge.is_up {
        differences.push(format!("bridge {name}: expected up, found down"));
    }
    if settings.promiscuous && !bridge.is_promiscuous {
        differences.push(format!(
            "bridge {name}: expected promiscuous, found that it is not"
        ));
    }
    if settings.vlans.is_some() && !bridge.vlans.is_some_and(|vlans| vlans.is_on) {
        differences.push(format!(
            "bridge {name}: expected VLAN filtering, found that it is off"
        ));
    }
}

/// The addresses that the gateway must have: they follow from the result as in ADD.
fn gateway_addresses(settings: &Settings, result: &CniResult, interface: usize) -> Vec<IpNet> {
    let own = CniResult {
        ips: own_addresses(result, interface).cloned().collect(),
        ..CniResult::default()
    };
    Plan::new(settings, &own)
        .map(|plan| plan.gateway_addresses)
        .unwrap_or_default()
}

fn compare_gateway(
    settings: &Settings,
    wanted: &[IpNet],
    observed: &Observed,
    differences: &mut Vec<String>,
) {
    let Some(gateway) = &observed.gateway else {
        if let Some(vlan) = settings.gateway_vlan() {
            differences.push(format!(
                "gateway of VLAN {vlan}: expected interface {}, found no such link",
                vlan_gateway_name(&settings.bridge, vlan)
            ));
        }
        return;
    };
    let name = &gateway.name;
    if settings.gateway_vlan().is_some() && !gateway.is_up {
        differences.push(format!("interface {name}: expected up, found down"));
    }
    for address in wanted {
        if !observed.gateway_addresses.contains(address) {
            differences.push(format!(
                "{} {name}: expected the gateway's address {address}, found {}",
                if settings.bridge == *name {
                    "bridge"
                } else {
                    "interface"
                },
                list(&observed.gateway_addresses)
            ));
        }
    }
}

/// The other end is a port of the bridge, and in its VLANs.
fn compare_port(
    settings: &Settings,
    expected: &Interface,
    bridge: &Link,
    observed: &Observed,
    differences: &mut Vec<String>,
) {
    let Some(host_end) = &observed.end.host_end else {
        return;
    };
    let mut differ = |what: &str, wanted: &str, found: &str| {
        differences.push(format!(
            "interface {}: expected its other end {} {what} {wanted}, found {found}",
            expected.name, host_end.name
        ));
    };
    if host_end.controller == Some(bridge.index) {
        if settings.hairpin && host_end.hairpin == Some(false) {
            differ("in", "hairpin mode", "that it is not");
        }
        if settings.isolated && !host_end.is_isolated {
            differ("as", "an isolated port", "that it is not isolated");
        }
    } else {
        let found = match host_end.controller {
            None => "no bridge".to_owned(),
            Some(index) => format!("the link with index {index}"),
        };
        differ("to be a port of", &bridge.name, &found);
    }
    // More of them are the operator's business.
    for (vlan, membership) in vlan::memberships(settings.vlans.as_ref()) {
        let found = observed.vlans.get(&vlan);
        if found != Some(&membership) {
            differ(
                &format!("in VLAN {vlan}"),
                &membership.to_string(),
                &found.map_or_else(|| "not in it".to_owned(), ToString::to_string),
            );
        }
    }
}
