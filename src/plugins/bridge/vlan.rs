//! VLANs on a bridge (behaviour 5.6): what a container's port is a member of, and the
//! interface that is the gateway of a VLAN.
//!
//! That interface, `<bridge>.<vlan>`, is one end of a veth pair on the host whose other
//! end is a port of the bridge and member of that VLAN alone. All containers of the VLAN
//! share it: the first ADD makes it, and it goes with the last of them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;

use super::apply;
use super::config::{self, Settings};
use super::host_end::Identity;
use crate::cni::error::{Code, coded, detailed};
use crate::fsutil::{self, Lock};
use crate::net::bridge_vlan::{self, Membership, Port, Vlans};
use crate::net::link::{self, End, Link};
use crate::net::mac::Mac;
use crate::net::netlink::{Netlink, tolerate};
use crate::net::netns::{self, Netns};
use crate::undo::Undo;

/// The VLAN that IEEE 802.1Q gives a port by default. A trunk takes frames without a tag
/// for it where the configuration names no other.
const DEFAULT_VLAN: u16 = 1;

/// What the container's port must be a member of; nothing where the bridge's default will
/// do.
pub fn memberships(settings: &Settings) -> Vlans {
    let Some(wanted) = &settings.vlans else {
        return Vlans::new();
    };
    if wanted.access.is_none() && wanted.trunk.is_empty() {
        return Vlans::new();
    }
    let mut vlans: Vlans = wanted
        .trunk
        .iter()
        .map(|vlan| (*vlan, Membership::TAGGED))
        .collect();
    // After the trunk: a VLAN cannot be both, and untagged frames need one.
    vlans.insert(wanted.access.unwrap_or(DEFAULT_VLAN), Membership::NATIVE);
    vlans
}

/// Makes `port` of `bridge` a member of `vlans`, and of no others unless `keeps_default`.
///
/// # Errors
/// When the kernel refuses.
pub fn join(
    host: &Netlink,
    bridge: &Link,
    port: &Link,
    vlans: &Vlans,
    keeps_default: bool,
) -> Result<()> {
    bridge_vlan::add(host, port, vlans)?;
    match &bridge.vlans {
        // A new port has no other.
        Some(bridge)
            if bridge.default != 0 && !keeps_default && !vlans.contains_key(&bridge.default) =>
        {
            bridge_vlan::remove(host, port, bridge.default)
        }
        _ => Ok(()),
    }
}

/// Refuses what would silently do nothing: VLANs on a kernel that cannot keep them apart,
/// or on a bridge that does not. The reference takes both (defect 38).
///
/// `bridge` is `None` before there is one. The kernel is then tried in a namespace of our
/// own, as what it lacks shows on a bridge only.
///
/// # Errors
/// Code 2 where the kernel has no VLAN filtering, 7 where the bridge has it switched off
/// and ports that may rely on that.
pub fn require_filtering(host: &Netlink, settings: &Settings, bridge: Option<&Link>) -> Result<()> {
    if settings.vlans.is_none() {
        return Ok(());
    }
    let vlans = if let Some(bridge) = bridge {
        bridge.vlans
    } else {
        let tried = try_bridge(host).context("find out whether this kernel filters VLANs")?;
        tried.vlans
    };
    if vlans.is_none() {
        return Err(detailed(
            Code::UnsupportedField,
            format!(
                "{} is not supported by this kernel: it was built without bridge VLAN filtering",
                asked_for(settings)
            ),
            "boot a kernel with CONFIG_BRIDGE_VLAN_FILTERING, or remove \"vlan\" and \"vlanTrunk\"",
        ));
    }
    match bridge {
        Some(bridge) => require_idle_or_filtering(host, settings, bridge),
        None => Ok(()),
    }
}

/// Switches VLAN filtering on for a bridge that somebody else made, if it has no ports.
///
/// # Errors
/// Those of [`require_filtering`].
pub fn ensure_filtering(host: &Netlink, settings: &Settings, bridge: &Link) -> Result<()> {
    require_filtering(host, settings, Some(bridge))?;
    match bridge.vlans {
        Some(vlans) if settings.vlans.is_some() && !vlans.is_on => link::filter_vlans(host, bridge),
        _ => Ok(()),
    }
}

/// Ports that are there may send tagged frames to each other, which a bridge that starts
/// filtering would drop: that is for the operator to decide. Without ports nobody is hurt.
fn require_idle_or_filtering(host: &Netlink, settings: &Settings, bridge: &Link) -> Result<()> {
    let is_on = |link: &Link| link.vlans.is_some_and(|vlans| vlans.is_on);
    if is_on(bridge) || !link::has_ports(host, bridge)? {
        return Ok(());
    }
    // Another ADD may have switched it on before it made the port.
    if link::by_index(host, bridge.index)?.is_some_and(|bridge| is_on(&bridge)) {
        return Ok(());
    }
    let name = &bridge.name;
    Err(detailed(
        Code::Config,
        format!(
            "{}: bridge {name} does not filter VLANs, and has other ports",
            asked_for(settings)
        ),
        format!(
            "give the network a bridge of its own; or, if no port of {name} sends tagged frames: \
             ip link set {name} type bridge vlan_filtering 1"
        ),
    ))
}

/// The key and value that ask for VLANs.
fn asked_for(settings: &Settings) -> String {
    match settings.vlans.as_ref().and_then(|vlans| vlans.access) {
        Some(vlan) => format!("\"vlan\": {vlan}"),
        None => "\"vlanTrunk\"".to_owned(),
    }
}

/// A bridge that is gone when this returns.
fn try_bridge(host: &Netlink) -> Result<Link> {
    const NAME: &str = "br";
    let inside = host.open_inside(&Netns::throwaway()?)?;
    link::create_bridge(&inside, NAME, Mac::random()?, None, false)?;
    link::by_name(&inside, NAME)?.context("the bridge is gone")
}

/// How long another ADD or DEL may take with a VLAN's gateway; each takes milliseconds.
const LOCK_LIMIT: Duration = Duration::from_secs(30);

/// Excludes those who remove gateways that nobody uses, from before the gateway is made
/// until the container's port is a member of the VLAN.
///
/// # Errors
/// Code 11 when somebody else has the lock for too long.
pub fn lock() -> Result<Lock> {
    let file = netns::lock_file("vlan")?;
    fsutil::lock_within(&file, 0o600, LOCK_LIMIT)?.with_context(|| {
        coded(
            Code::TryAgain,
            format!(
                "wait {} seconds for {}: another process holds the lock",
                LOCK_LIMIT.as_secs(),
                file.display()
            ),
        )
    })
}

/// Makes sure that `vlan` of `bridge` has an interface for the gateway, and that it is up.
/// The caller holds the [`lock`], and gives it addresses.
///
/// # Errors
/// When the kernel refuses.
pub fn ensure_gateway(
    host: &Netlink,
    settings: &Settings,
    bridge: &Link,
    vlan: u16,
    undo: &mut Undo<'_>,
) -> Result<Link> {
    let name = config::vlan_gateway(&bridge.name, vlan);
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
            move || remove_unused_gateways(&host, &settings)
        });
        gateway = link::by_name(host, &name)?;
        apply::quietly(&name, "accept_dad", "0");
    }
    let gateway =
        gateway.with_context(|| format!("{name} was deleted while it was being set up"))?;
    apply::quietly(&name, "accept_ra", "0");
    // An interface that the operator made is used as it is.
    if let Some(port) = gateway_port(host, &gateway)? {
        apply::quietly(&port.name, "accept_ra", "0");
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
        join(
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
    let Some(port) = gateway_port(host, gateway)? else {
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
fn gateway_port(host: &Netlink, gateway: &Link) -> Result<Option<Link>> {
    let Some(peer) = gateway.peer.filter(|_| gateway.kind == "veth") else {
        return Ok(None);
    };
    // An index means something in its own namespace only: it is the other end if it
    // points back.
    let port = link::by_index(host, peer)?
        .filter(|port| port.kind == "veth" && port.peer == Some(gateway.index));
    Ok(port.filter(|port| Identity::is_name(&port.name)))
}

/// Removes the gateways on the bridge whose VLAN has no other member left: the reference
/// leaves them for ever (defect 15). Members are all ports, whoever made them.
///
/// # Errors
/// When one is there and stays.
pub fn remove_unused_gateways(host: &Netlink, settings: &Settings) -> Result<()> {
    let Some(wanted) = &settings.vlans else {
        return Ok(());
    };
    let _lock = lock()?;
    let ports = match apply::find_bridge(host, &settings.bridge) {
        Ok(Some(bridge)) => bridge_vlan::list(host, bridge.index)?,
        // Without the bridge nobody can be a member.
        _ => Vec::new(),
    };
    // Our own too: its port may be in no bridge.
    for vlan in wanted.access.into_iter().chain(lonely(&ports)) {
        let name = config::vlan_gateway(&settings.bridge, vlan);
        let Some(gateway) = link::by_name(host, &name)? else {
            continue;
        };
        let Some(port) = gateway_port(host, &gateway)? else {
            continue;
        };
        if !has_member(&ports, vlan, port.index) {
            link::delete(host, gateway.index)?;
        }
    }
    Ok(())
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
    use serde_json::{Value, json};

    use crate::cni::skel::Call;

    fn of(mut config: Value) -> String {
        config["name"] = json!("n");
        let call = Call::to_add(&config.to_string(), "").unwrap();
        let vlans = memberships(&Settings::resolve(&call).unwrap());
        let words: Vec<String> = vlans
            .iter()
            .map(|(id, how)| format!("{id} {how}"))
            .collect();
        words.join(", ")
    }

    #[test]
    fn ports_are_members_of_what_was_asked_for() {
        for (config, expected) in [
            (json!({}), ""),
            (json!({"vlanTrunk": []}), ""),
            (json!({"vlan": 5}), "5 pvid untagged"),
            (
                json!({"vlanTrunk": [{"id": 7}, {"minID": 3, "maxID": 4}]}),
                "1 pvid untagged, 3 tagged, 4 tagged, 7 tagged",
            ),
            (
                json!({"vlan": 5, "vlanTrunk": [{"minID": 4, "maxID": 6}]}),
                "4 tagged, 5 pvid untagged, 6 tagged",
            ),
            (
                json!({"vlan": 5, "vlanTrunk": [{"id": 1}]}),
                "1 tagged, 5 pvid untagged",
            ),
            (
                json!({"vlanTrunk": [{"minID": 1, "maxID": 2}]}),
                "1 pvid untagged, 2 tagged",
            ),
        ] {
            assert_eq!(of(config.clone()), expected, "{config}");
        }
    }

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
