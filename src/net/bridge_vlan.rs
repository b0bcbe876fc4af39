//! Which bridge port is a member of which VLAN, and how (`bridge vlan`).

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkExtentMask, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::link::{self, Link};
use super::netlink::{Netlink, tolerate};

/// The VLANs of a port, by their number.
pub type Vlans = BTreeMap<u16, Membership>;

/// How a port is a member of a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership {
    /// What comes in without a tag is of this VLAN (`pvid`).
    pub takes_untagged: bool,
    /// What goes out loses its tag (`untagged`).
    pub sends_untagged: bool,
}

impl Membership {
    /// Frames keep their tag, as on a trunk.
    pub const TAGGED: Self = Self {
        takes_untagged: false,
        sends_untagged: false,
    };
    /// The other end of the link knows nothing of the VLAN.
    pub const NATIVE: Self = Self {
        takes_untagged: true,
        sends_untagged: true,
    };

    fn flags(self) -> BridgeVlanInfoFlags {
        let mut flags = BridgeVlanInfoFlags::empty();
        flags.set(BridgeVlanInfoFlags::Pvid, self.takes_untagged);
        flags.set(BridgeVlanInfoFlags::Untagged, self.sends_untagged);
        flags
    }

    fn from_flags(flags: BridgeVlanInfoFlags) -> Self {
        Self {
            takes_untagged: flags.contains(BridgeVlanInfoFlags::Pvid),
            sends_untagged: flags.contains(BridgeVlanInfoFlags::Untagged),
        }
    }
}

/// In the words of `bridge vlan`.
impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.takes_untagged, self.sends_untagged) {
            (true, true) => "pvid untagged",
            (true, false) => "pvid",
            (false, true) => "untagged",
            (false, false) => "tagged",
        })
    }
}

/// A port and its VLANs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The link's number, as in [`Link`].
    pub index: u32,
    /// Those it is a member of.
    pub vlans: Vlans,
}

/// Makes `port` a member of `vlans`, or changes how it is (`bridge vlan add`). One request,
/// however many they are.
///
/// # Errors
/// `EOPNOTSUPP` from a kernel without VLAN filtering.
pub fn add(netlink: &Netlink, port: &Link, vlans: &Vlans) -> Result<()> {
    let message = message(port, to_attributes(vlans));
    netlink
        .request(RouteNetlinkMessage::SetLink(message), 0)
        .with_context(|| format!("make bridge port {} a member of its VLANs", port.name))
}

/// Ends the membership of `port` in `vlan` (`bridge vlan del`); none is no error.
///
/// # Errors
/// When `port` is still a member.
pub fn remove(netlink: &Netlink, port: &Link, vlan: u16) -> Result<()> {
    let message = message(port, vec![entry(vlan, BridgeVlanInfoFlags::empty())]);
    let removed = netlink.request(RouteNetlinkMessage::DelLink(message), 0);
    tolerate(removed, &[Errno::ENOENT])
        .with_context(|| format!("take bridge port {} out of VLAN {vlan}", port.name))
}

/// The ports of the bridge with index `bridge` (`bridge -compressvlans vlan show`). The
/// kernel lists those of every bridge.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn list(netlink: &Netlink, bridge: u32) -> Result<Vec<Port>> {
    let request = link::change_of(0)
        .interface_family(AddressFamily::Bridge)
        .append_extra_attribute(LinkAttribute::ExtMask(vec![
            LinkExtentMask::BrvlanCompressed,
        ]))
        .build();
    let found = netlink
        .dump(&RouteNetlinkMessage::GetLink(request))
        .context("list the VLANs of bridge ports")?;
    Ok(found
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(port) => Some(port),
            _ => None,
        })
        // The bridge is in its own list.
        .filter(|port| port.header.index != bridge)
        .filter(|port| port.attributes.contains(&LinkAttribute::Controller(bridge)))
        .map(|port| Port {
            index: port.header.index,
            vlans: from_attributes(&port.attributes),
        })
        .collect())
}

fn message(port: &Link, vlans: Vec<AfSpecBridge>) -> LinkMessage {
    link::change_of(port.index)
        .interface_family(AddressFamily::Bridge)
        .append_extra_attribute(LinkAttribute::AfSpecBridge(vlans))
        .build()
}

fn entry(vid: u16, flags: BridgeVlanInfoFlags) -> AfSpecBridge {
    AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid })
}

/// Neighbouring numbers become one range. A native VLAN is never part of one: the kernel
/// refuses that.
fn to_attributes(vlans: &Vlans) -> Vec<AfSpecBridge> {
    let mut runs: Vec<(u16, u16, Membership)> = Vec::new();
    for (&vlan, &membership) in vlans {
        match runs.last_mut() {
            Some((_, last, of))
                if *last + 1 == vlan && *of == membership && !membership.takes_untagged =>
            {
                *last = vlan;
            }
            _ => runs.push((vlan, vlan, membership)),
        }
    }
    let mut attributes = Vec::new();
    for (first, last, membership) in runs {
        let flags = membership.flags();
        if first == last {
            attributes.push(entry(first, flags));
        } else {
            attributes.push(entry(first, flags | BridgeVlanInfoFlags::RangeBegin));
            attributes.push(entry(last, flags | BridgeVlanInfoFlags::RangeEnd));
        }
    }
    attributes
}

fn from_attributes(attributes: &[LinkAttribute]) -> Vlans {
    let entries = attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::AfSpecBridge(entries) => Some(entries),
        _ => None,
    });
    let mut vlans = Vlans::new();
    let mut begin = None;
    for entry in entries.flatten() {
        let AfSpecBridge::VlanInfo(info) = entry else {
            continue;
        };
        if info.flags.contains(BridgeVlanInfoFlags::RangeBegin) {
            begin = Some(info.vid);
            continue;
        }
        for vlan in begin.take().unwrap_or(info.vid)..=info.vid {
            vlans.insert(vlan, Membership::from_flags(info.flags));
        }
    }
    vlans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_there_and_back() {
        let mut vlans: Vlans = (10..=12)
            .chain([1, 20, 4094])
            .map(|vlan| (vlan, Membership::TAGGED))
            .collect();
        vlans.insert(13, Membership::NATIVE);
        vlans.insert(
            14,
            Membership {
                takes_untagged: false,
                ..Membership::NATIVE
            },
        );
        let attributes = to_attributes(&vlans);
        let tagged = BridgeVlanInfoFlags::empty();
        assert_eq!(
            attributes,
            [
                entry(1, tagged),
                entry(10, BridgeVlanInfoFlags::RangeBegin),
                entry(12, BridgeVlanInfoFlags::RangeEnd),
                entry(
                    13,
                    BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged
                ),
                entry(14, BridgeVlanInfoFlags::Untagged),
                entry(20, tagged),
                entry(4094, tagged),
            ]
        );
        assert_eq!(
            from_attributes(&[LinkAttribute::AfSpecBridge(attributes)]),
            vlans
        );
        let all: Vlans = (1..=4094).map(|vlan| (vlan, Membership::TAGGED)).collect();
        assert_eq!(to_attributes(&all).len(), 2);
    }
}
