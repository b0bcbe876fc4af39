//! Whether the container can call its own mapped ports (docs/requirements.md#r-56).
//!
//! Where frames on bridges go through iptables (sysctl `net.bridge.bridge-nf-call-iptables`,
//! which also takes them through nftables), such a call is translated on the bridge and has
//! to leave through the port by which it came. A bridge does that only in hairpin mode.
//! Elsewhere the host routes it, which needs nothing.

use anyhow::Result;

use crate::cni::result::CniResult;
use crate::log;
use crate::net::link;
use crate::net::netlink::Netlink;
use crate::net::sysctl;
use crate::netfilter::PortMaps;

/// Says what to change if the container of `result` cannot reach itself through the
/// mappings that are `wanted`. It is a comfort: nothing depends on it.
pub fn warn_if_needed(result: &CniResult, wanted: &PortMaps) {
    if !wanted.snat || !are_frames_filtered(wanted) {
        return;
    }
    match port_without_hairpin(result) {
        Ok(Some(port)) => log::warn(&format!(
            "the container cannot call its own mapped ports, for bridge port {port} is not in hairpin mode: \
             set \"hairpinMode\": true on the bridge plugin"
        )),
        Ok(None) => {}
        Err(error) => log::warn(&format!(
            "see whether the container can call itself: {error:#}"
        )),
    }
}

/// Whether iptables see frames of a family that has mappings.
fn are_frames_filtered(wanted: &PortMaps) -> bool {
    wanted.container.iter().any(|container| {
        let address = container.addr();
        let key = if address.is_ipv4() {
            "bridge/bridge-nf-call-iptables"
        } else {
            "bridge/bridge-nf-call-ip6tables"
        };
        wanted.mappings.iter().any(|mapping| mapping.is_for(address))
            // Without br_netfilter there is no such sysctl.
            && sysctl::read(key).is_ok_and(|value| value.as_deref() == Some("1"))
    })
}

/// The bridge port on this host that the container is behind, if it is not in hairpin
/// mode.
fn port_without_hairpin(result: &CniResult) -> Result<Option<String>> {
    let netlink = Netlink::open()?;
    // Last things first: the bridge plugin names the bridge in front of its port.
    let here = result
        .interfaces
        .iter()
        .rev()
        .filter(|i| i.sandbox.is_empty());
    for interface in here {
        if let Some(link) = link::by_name(&netlink, &interface.name)?
            && let Some(is_on) = link.hairpin
        {
            return Ok((!is_on).then_some(link.name));
        }
    }
    Ok(None)
}
