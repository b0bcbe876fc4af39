//! VLANs on a bridge (docs/compatibility.md#5.6): what a container's port is a member of, and whether
//! anybody keeps the VLANs apart.

use anyhow::{Context, Result};

use super::config::{Settings, Vlans as Wanted};
use crate::cni::error::{Code, detailed};
use crate::net::bridge_vlan::{self, Membership, Vlans};
use crate::net::link::{self, Link};
use crate::net::mac::Mac;
use crate::net::netlink::Netlink;
use crate::net::netns::Netns;
use crate::shell::shell;

/// The VLAN that IEEE 802.1Q gives a port by default. A trunk takes frames without a tag
/// for it where the configuration names no other.
const DEFAULT_VLAN: u16 = 1;

/// What the container's port must be a member of; nothing where the bridge's default will
/// do.
pub fn memberships(wanted: Option<&Wanted>) -> Vlans {
    let Some(wanted) = wanted else {
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
/// or on a bridge that does not. The reference takes both (docs/compatibility.md#defect-38).
///
/// `bridge` is `None` before there is one.
///
/// # Errors
/// Code 2 where the kernel has no VLAN filtering, 7 where the bridge has it switched off
/// and ports that may rely on that.
pub fn require_filtering(host: &Netlink, settings: &Settings, bridge: Option<&Link>) -> Result<()> {
    if settings.vlans.is_none() {
        return Ok(());
    }
    let can_filter = match bridge {
        Some(bridge) => bridge.vlans.is_some(),
        None => can_filter(host).context("find out whether this kernel filters VLANs")?,
    };
    if !can_filter {
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

/// Switches VLAN filtering on for a bridge that somebody else made, if it has no ports. Answers
/// whether it was off.
///
/// # Errors
/// Those of [`require_filtering`].
pub fn ensure_filtering(host: &Netlink, settings: &Settings, bridge: &Link) -> Result<bool> {
    require_filtering(host, settings, Some(bridge))?;
    match bridge.vlans {
        Some(vlans) if settings.vlans.is_some() && !vlans.is_on => {
            link::filter_vlans(host, bridge, true).map(|()| true)
        }
        _ => Ok(false),
    }
}

/// Ports that are there may send tagged frames to each other, which a bridge that starts
/// filtering would drop: that is for the operator to decide. Without ports nobody is hurt.
fn require_idle_or_filtering(host: &Netlink, settings: &Settings, bridge: &Link) -> Result<()> {
    let is_on = |link: &Link| link.vlans.is_some_and(|vlans| vlans.is_on);
    if is_on(bridge) || link::ports(host, bridge)?.is_empty() {
        return Ok(());
    }
    // Another ADD may have switched it on before it made the port.
    if link::by_index(host, bridge.index)?.is_some_and(|bridge| is_on(&bridge)) {
        return Ok(());
    }
    let name = &bridge.name;
    let filtering = ["type", "bridge", "vlan_filtering", "1"];
    let switch_on = shell!["ip", "link", "set", name].args(filtering);
    Err(detailed(
        Code::Config,
        format!(
            "{}: bridge {name} does not filter VLANs, and has other ports",
            asked_for(settings)
        ),
        format!(
            "give the network a bridge of its own; or, if no port of {name} sends tagged frames: \
             {switch_on}"
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

/// Whether a bridge would filter VLANs if it was made.
fn can_filter(host: &Netlink) -> Result<bool> {
    const NAME: &str = "br";
    if let Some(known) = link::can_filter_vlans(host)? {
        return Ok(known);
    }
    // Making one, in a namespace that goes at once, loads the kernel module if there is one.
    let inside = Netlink::open_in(&Netns::throwaway()?)?;
    link::create_bridge(&inside, NAME, Mac::random()?, None, false)?;
    let made = link::by_name(&inside, NAME)?.context("the bridge is gone")?;
    Ok(made.vlans.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    use crate::cni::skel::Call;

    fn of(mut config: Value) -> String {
        config["name"] = json!("n");
        let call = Call::to_add(&config.to_string(), "").unwrap();
        let vlans = memberships(Settings::resolve(&call).unwrap().vlans.as_ref());
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
}
