//! The interface that is the gateway of a VLAN (docs/compatibility.md#5.6).
//!
//! `<bridge>.<vlan>` is one end of a veth pair on the host whose other end is a port of the
//! bridge and member of that VLAN alone. All containers of the VLAN share it: the first ADD
//! makes it, and it goes with the last of them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;

use super::config::{Settings, vlan_gateway_name};
use super::vlan;
use crate::fsutil::Lock;
use crate::net::bridge_vlan::{self, Membership, Port};
use crate::net::link::{self, End, Link};
use crate::net::mac::Mac;
use crate::net::netlink::{Netlink, tolerate};
use crate::net::section;
use crate::plugins::host_end::Identity;
use crate::plugins::veth::switch_off_quietly;
use crate::undo::Undo;

/// How long to wait for others that work on the gateway of a VLAN; each takes milliseconds.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Excludes those who remove gateways that nobody uses, from before the gateway is made
/// until the container's port is a member of the VLAN.
///
/// # Errors
/// Code 11 when somebody else has the lock for too long.
pub fn lock() -> Result<Lock> {
    section::enter("vlan", LOCK_LIMIT)
}

/// Makes sure that `vlan` of `bridge` has an interface for the gateway, and that it is up.
/// The caller holds the [`lock`], and gives it addresses.
///
/// # Errors
/// When the kernel refuses.
pub fn ensure(
    host: &Netlink,
    settings: &Settings,
    bridge: &Link,
    vlan: u16,
    undo: &mut Undo<'_>,
) -> Result<Link> {
    let name = vlan_gateway_name(&bridge.name, vlan);
    let mut gateway = link::by_name(host, &name)?;
    if gateway.is_none() {
        let created = link::create_veth(
            host,
            End {
                name: &name,
                mac: Mac::random()?,
            },
            End {
                name: &Identity::other_name()?,
                mac: Mac::random()?,
            },
            None,
            Some(settings.mtu.unwrap_or(bridge.mtu)),
        );
        // The reference does not know our lock.
        tolerate(created, &[Errno::EEXIST])?;
        undo.push("remove VLAN gateways that nobody uses", {
            let (host, settings) = (host.clone(), settings.clone());
            move || remove_unused(&host, &settings)
        });
        gateway = link::by_name(host, &name)?;
        switch_off_quietly(&name, "accept_dad");
    }
    let gateway =
        gateway.with_context(|| format!("{name} was deleted while it was being set up"))?;
    switch_off_quietly(&name, "accept_ra");
    // An interface that the operator made is used as it is.
    if let Some(port) = port_of(host, &gateway)? {
        switch_off_quietly(&port.name, "accept_ra");
        let change = link::change_of(port.index)
            .alias(format!(
                "cni gateway of VLAN {vlan} on bridge {}",
                bridge.name
            ))
            .controller(bridge.index)
            .up();
        link::change(
            host,
            change,
            &format!("make {} a port of bridge {}", port.name, bridge.name),
        )?;
        vlan::join(
            host,
            bridge,
            &port,
            &[(vlan, Membership::NATIVE)].into(),
            false,
        )?;
    }
    if !gateway.is_up {
        let up = link::change_of(gateway.index).up();
        link::change(host, up, &format!("set {name} up"))?;
    }
    Ok(gateway)
}

/// A bridge drops what does not fit its smallest port: the gateway of a VLAN must not
/// send more.
///
/// # Errors
/// When the kernel refuses.
pub fn fit_mtu(host: &Netlink, bridge: &Link, gateway: &Link) -> Result<()> {
    if gateway.mtu <= bridge.mtu {
        return Ok(());
    }
    let Some(port) = port_of(host, gateway)? else {
        return Ok(());
    };
    let what = format!("set the MTU of {} to {}", gateway.name, bridge.mtu);
    for link in [gateway, &port] {
        link::change(host, link::change_of(link.index).mtu(bridge.mtu), &what)?;
    }
    Ok(())
}

/// The other end of a VLAN's gateway, if a CNI plugin made it, ours or the reference: a
/// veth pair on the host, the other end called as both call the host's end of theirs.
fn port_of(host: &Netlink, gateway: &Link) -> Result<Option<Link>> {
    let Some(peer) = gateway.peer.filter(|_| gateway.kind == "veth") else {
        return Ok(None);
    };
    // An index means something in its own namespace only: it is the other end if it
    // points back.
    let port = link::by_index(host, peer)?
        .filter(|port| port.kind == "veth" && port.peer == Some(gateway.index));
    Ok(port.filter(|port| Identity::is_name(&port.name)))
}

/// Removes the gateways of the network's VLANs that have no other member left: the reference
/// leaves them for ever (docs/compatibility.md#defect-15). Members are all ports, whoever made them.
///
/// # Errors
/// When one is there and stays.
pub fn remove_unused(host: &Netlink, settings: &Settings) -> Result<()> {
    if find_unused(host, settings, &[])?.is_empty() {
        return Ok(());
    }
    // Once more, with nobody about to need one.
    let _lock = lock()?;
    for gateway in find_unused(host, settings, &[])? {
        link::delete(host, gateway.index)?;
    }
    Ok(())
}

/// What [`remove_unused`] would remove if `going` were gone, in words.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn unused(host: &Netlink, settings: &Settings, going: &[Link]) -> Result<Vec<String>> {
    let unused = find_unused(host, settings, going)?;
    let words = unused
        .iter()
        .map(|link| format!("VLAN gateway {}", link.name));
    Ok(words.collect())
}

fn find_unused(host: &Netlink, settings: &Settings, going: &[Link]) -> Result<Vec<Link>> {
    if settings.vlans.is_none() {
        return Ok(Vec::new());
    }
    // What is no bridge has no members.
    let bridge = link::by_name(host, &settings.bridge)?.filter(|link| link.kind == "bridge");
    let mut ports = match bridge {
        Some(bridge) => bridge_vlan::list(host, bridge.index)?,
        None => Vec::new(),
    };
    ports.retain(|port| going.iter().all(|link| link.index != port.index));
    let mut unused = Vec::new();
    let lonely = lonely(&ports);
    let mut vlans = vlan::memberships(settings.vlans.as_ref());
    // Where the network has its gateway, the port of that may be in no bridge.
    vlans.retain(|vlan, _| lonely.contains(vlan) || settings.gateway_vlan() == Some(*vlan));
    for vlan in vlans.into_keys() {
        let Some(gateway) = link::by_name(host, &vlan_gateway_name(&settings.bridge, vlan))? else {
            continue;
        };
        let Some(port) = port_of(host, &gateway)? else {
            continue;
        };
        if !has_member(&ports, vlan, port.index) {
            unused.push(gateway);
        }
    }
    Ok(unused)
}

/// The VLANs with a single member, which takes untagged frames for them: it may be the
/// gateway's port.
fn lonely(ports: &[Port]) -> BTreeSet<u16> {
    ports
        .iter()
        .flat_map(|port| port.vlans.iter().map(|entry| (port.index, entry)))
        .filter(|(_, (_, membership))| membership.takes_untagged)
        .filter(|(index, (vlan, _))| !has_member(ports, **vlan, *index))
        .map(|(_, (vlan, _))| *vlan)
        .collect()
}

/// Whether any port but `except` is a member of `vlan`.
fn has_member(ports: &[Port], vlan: u16, except: u32) -> bool {
    ports
        .iter()
        .any(|port| port.index != except && port.vlans.contains_key(&vlan))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vlan_is_lonely_with_one_untagged_member() {
        let port = |index, vlans: &[(u16, Membership)]| Port {
            index,
            vlans: vlans.iter().copied().collect(),
        };
        let (tagged, native) = (Membership::TAGGED, Membership::NATIVE);
        let ports = [
            port(1, &[(100, native)]),
            port(2, &[(200, native), (1, tagged)]),
            port(3, &[(100, tagged), (300, tagged)]),
        ];
        assert_eq!(lonely(&ports), [200].into());
        assert_eq!(lonely(&ports[..2]), [100, 200].into());
        assert!(has_member(&ports, 300, 1) && !has_member(&ports, 300, 3));
    }
}
