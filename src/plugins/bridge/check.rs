//! CHECK: is the attachment still what ADD made of it?
//!
//! Not compared: what is legitimately changed by others. The bridge's and the host end's
//! hardware addresses (udev rewrites them), and whatever a packet capture switches on.

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::apply;
use super::config::Settings;
use super::plan::Plan;
use super::rules;
use crate::cni::error::{Code, agree, coded};
use crate::cni::result::{CniResult, Interface};
use crate::cni::skel::Call;
use crate::log;
use crate::net::addr;
use crate::net::link::Link;
use crate::plugins::container_end::{self, list};
use crate::plugins::layer3::own_addresses;
use crate::plugins::veth::Sides;

/// What CHECK sees.
#[derive(Debug, Default)]
struct Observed {
    bridge: Option<Link>,
    bridge_addresses: Vec<IpNet>,
    end: container_end::Observed,
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
    let ifname = &call.invocation.attachment.ifname;
    let interface = container_end::position(call, &result)?;
    let observed = observe(&sides, settings, ifname, &result)?;
    warn_of_mtu(&observed);
    agree(compare(settings, &result, interface, &observed))?;
    let host_end = observed
        .end
        .host_end
        .map(|end| end.name)
        .unwrap_or_default();
    rules::check(call, settings, &result, interface, &host_end)
}

fn observe(
    sides: &Sides,
    settings: &Settings,
    ifname: &str,
    result: &CniResult,
) -> Result<Observed> {
    let mut observed = Observed {
        bridge: apply::find_bridge(&sides.host, &settings.bridge)?,
        end: container_end::observe(sides, ifname, result)?,
        ..Observed::default()
    };
    if let Some(bridge) = &observed.bridge {
        observed.bridge_addresses = addr::list(&sides.host, bridge.index)?
            .into_iter()
            .map(|address| address.net)
            .collect();
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
    differences.extend(container_end::differences(
        result,
        interface,
        &observed.end,
        settings.container_end_up,
    ));
    if let (Some(bridge), Some(expected)) = (&observed.bridge, result.interfaces.get(interface)) {
        compare_port(expected, bridge, observed, &mut differences);
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

/// The other end is a port of the bridge.
fn compare_port(
    expected: &Interface,
    bridge: &Link,
    observed: &Observed,
    differences: &mut Vec<String>,
) {
    let Some(host_end) = &observed.end.host_end else {
        return;
    };
    if host_end.controller != Some(bridge.index) {
        differences.push(format!(
            "interface {}: expected its other end {} to be a port of {}, found {}",
            expected.name,
            host_end.name,
            bridge.name,
            match host_end.controller {
                None => "no bridge".to_owned(),
                Some(index) => format!("the link with index {index}"),
            },
        ));
    }
}
