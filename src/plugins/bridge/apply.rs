//! The bridge plugin's hands: everything ADD changes in the kernel, step by step.

use anyhow::{Context, Result};
use ipnet::IpNet;
use nix::errno::Errno;

use super::base::Base;
use super::config::Settings;
use super::plan::{self, Plan};
use super::vlan;
use crate::cni::error::{Code, coded};
use crate::cni::skel::Call;
use crate::log;
use crate::net::addr;
use crate::net::link::{self, Link};
use crate::net::mac::Mac;
use crate::net::netlink::{Netlink, tolerate};
use crate::plugins::host_end::Identity;
use crate::plugins::shared::Shared;
use crate::plugins::veth::{self, Pair, Sides, explain_ipv6, switch_off_quietly};

/// Gives `gateway`, the bridge or the interface of a VLAN, the gateways' addresses, and
/// lets the host forward.
///
/// # Errors
/// Code 7 for an address that is in the way; names the sysctl where IPv6 is off.
pub fn ensure_gateways(
    host: &Netlink,
    settings: &Settings,
    base: &Base,
    gateway: &Link,
    wanted: &[IpNet],
    shared: &Shared<'_>,
) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let existing: Vec<IpNet> = addr::list(host, gateway.index)?
        .into_iter()
        .map(|address| address.net)
        .collect();
    let changes = plan::gateway_addresses(settings, &gateway.name, &existing, wanted)?;
    for address in changes.remove {
        let what = format!("give {} its address {address} back", gateway.name);
        let index = gateway.index;
        base.on_failure(host, shared, what, move |host| {
            let added = addr::add(host, index, address, false);
            tolerate(added, &[Errno::EEXIST, Errno::ENODEV])
        })?;
        addr::delete(host, gateway.index, address)?;
    }
    for address in &changes.add {
        let (index, net) = (gateway.index, *address);
        let what = format!("remove address {net} from {}", gateway.name);
        base.on_failure(host, shared, what, move |host| {
            addr::delete(host, index, net)
        })?;
        let added = addr::add(host, gateway.index, *address, false);
        tolerate(added, &[Errno::EEXIST])
            .map_err(|error| explain_ipv6(error, &gateway.name, address))
            .with_context(|| format!("give {} its address", gateway.name))?;
    }
    if !changes.add.is_empty() {
        pin_mac(host, gateway)?;
    }
    shared
        .forward(host, wanted.iter().map(IpNet::addr))
        .with_context(|| coded(Code::Io, "failed to enable forwarding"))
}

/// A bridge whose address was never set takes that of its lowest port, and changes it as
/// ports come and go. Setting the address it has ends that.
fn pin_mac(host: &Netlink, gateway: &Link) -> Result<()> {
    let Some(mac) = Mac::parse(&gateway.mac) else {
        return Ok(());
    };
    let change = link::change_of(gateway.index).address(mac.0.to_vec());
    link::change(
        host,
        change,
        &format!("pin the hardware address of {}", gateway.name),
    )
}

/// Makes the host's end a port of the bridge and a member of its VLANs. Answers the bridge
/// as it then is.
///
/// # Errors
/// When the kernel refuses.
pub fn attach(
    sides: &Sides,
    call: &Call,
    settings: &Settings,
    bridge: &Link,
    pair: &Pair,
) -> Result<Link> {
    let port = &pair.host_end;
    if port.accepts_advertisements != Some(false) {
        switch_off_quietly(&port.name, "accept_ra");
    }
    link::make_bridge_port(&sides.host, port, bridge, Identity::of(call).alias)?;
    link::set_bridge_port_up(&sides.host, port, settings.hairpin, settings.isolated)?;
    let vlans = vlan::memberships(settings.vlans.as_ref());
    if !vlans.is_empty() {
        let keeps_default = settings.vlans.as_ref().is_some_and(|v| v.keeps_default);
        vlan::join(&sides.host, bridge, port, &vlans, keeps_default)?;
    }
    let bridge = link::by_index(&sides.host, bridge.index)?
        .with_context(|| format!("bridge {} is gone", bridge.name))?;
    fit_mtu(sides, settings, &bridge, pair)?;
    Ok(bridge)
}

/// A bridge drops what does not fit its own MTU, which is that of its smallest port or
/// what an administrator set: a container must not believe in more.
fn fit_mtu(sides: &Sides, settings: &Settings, bridge: &Link, pair: &Pair) -> Result<()> {
    if bridge.mtu >= pair.container_end.mtu {
        return Ok(());
    }
    if let Some(mtu) = settings.mtu {
        log::warn(&format!(
            "mtu {mtu} does not fit bridge {}, which carries {}: using that",
            bridge.name, bridge.mtu
        ));
    }
    let change = |index| link::change_of(index).mtu(bridge.mtu);
    let what = format!("set the MTU to {}", bridge.mtu);
    link::change(&sides.container, change(pair.container_end.index), &what)?;
    link::change(&sides.host, change(pair.host_end.index), &what)
}

/// Tells everybody that the addresses live here now: an address that was another
/// container's a moment ago is otherwise unreachable until caches expire.
///
/// The host's own entries are deleted; all others hear an announcement.
pub fn announce(sides: &Sides, gateway: &Link, end: &Link, plan: &Plan) {
    let mut done: Vec<Result<()>> = plan
        .ips
        .iter()
        .map(|ip| addr::forget_neighbour(&sides.host, gateway.index, ip.address.addr()))
        .collect();
    done.push(veth::announce(&sides.container, end));
    for error in done.into_iter().filter_map(Result::err) {
        log::warn(&format!("{error:#}"));
    }
}
