//! Links: look up, create, change, delete (`ip link`).

use anyhow::{Context, Result};
use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, BridgePortState, In6AddrGenMode, InfoBridge,
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, LinkXdp, State, XdpAttached,
};
use nix::errno::Errno;
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::mac::{self, Mac};
use super::netlink::{Netlink, errno, tolerate};
use super::netns::Netns;
use crate::failure::{Failure, Kind};

/// What the kernel says of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the kernel's flags, none depends on another"
)]
pub struct Link {
    /// The kernel's number for it (ifindex), unique in its namespace only.
    pub index: u32,
    /// At most 15 bytes; a link can be renamed, while `index` stays.
    pub name: String,
    /// Hardware address as text, empty when there is none.
    pub mac: String,
    /// Bytes.
    pub mtu: u32,
    /// The least and the greatest MTU that its driver takes; 0 as the greatest is no limit.
    pub mtu_bounds: (u32, u32),
    /// `bridge`, `veth`, …; empty for hardware.
    pub kind: String,
    /// Index of the bridge this is a port of.
    pub controller: Option<u32>,
    /// Of a veth: the index of its other end, in whichever namespace that is.
    pub peer: Option<u32>,
    /// The free text that says what the link is for.
    pub alias: String,
    /// Whether an administrator set it up (`IFF_UP`); frames may still not pass.
    pub is_up: bool,
    /// Whether frames pass: operational state "up".
    pub is_running: bool,
    /// Whether the kernel takes it to be up and sends frames through it (`IFF_RUNNING`):
    /// operational state "up", or "unknown", as of a link whose carrier has never changed.
    pub counts_as_up: bool,
    /// Whether nothing is at its other end (`NO-CARRIER`), known at once: the operational state
    /// follows after up to a second.
    pub is_cut_off: bool,
    /// Whether an administrator made it promiscuous; a packet capture does not count.
    pub is_promiscuous: bool,
    /// Whether an administrator made it take all multicast frames.
    pub is_all_multicast: bool,
    /// Packets that may wait to be sent.
    pub tx_queue_len: u32,
    /// Of a bridge port: whether frames may leave by the port they came in by.
    pub hairpin: Option<bool>,
    /// Of a bridge port: whether it exchanges no frames with other such ports.
    pub is_isolated: bool,
    /// Of a bridge port: why no frames pass, if none do.
    pub is_blocked: Option<&'static str>,
    /// Of a bridge port: the settings that keep frames from it and that every port starts
    /// without, with the value that ends that, in the words of `bridge link set`.
    pub withholds: Vec<&'static str>,
    /// Whether an XDP program sees its frames first.
    pub has_xdp: bool,
    /// Whether it asks no neighbour for its hardware address (`IFF_NOARP`).
    pub is_without_arp: bool,
    /// Whether it takes routes from whoever advertises itself as a router (IPv6 sysctl
    /// `accept_ra`); `None` where it has no IPv6.
    pub accepts_advertisements: Option<bool>,
    /// Whether 127.0.0.1 may be on the other side of it (IPv4 sysctl `route_localnet`), if
    /// `all` does not say so.
    pub routes_localnet: bool,
    /// Of a bridge: how long a new port waits, twice over, before it passes frames where the
    /// bridge speaks the spanning tree protocol; in hundredths of a second.
    pub forward_delay: u32,
    /// Of a bridge: how it treats VLANs; `None` where the kernel was built without VLAN
    /// filtering (`CONFIG_BRIDGE_VLAN_FILTERING`).
    pub vlans: Option<VlanFiltering>,
}

/// How a bridge treats VLANs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VlanFiltering {
    /// Whether the ports' VLANs decide where frames go.
    pub is_on: bool,
    /// The VLAN that a new port is made a member of; 0 for none.
    pub default: u16,
}

impl Link {
    fn from_message(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            is_up: flags.contains(LinkFlags::Up),
            counts_as_up: flags.contains(LinkFlags::Running),
            is_cut_off: !flags.contains(LinkFlags::LowerUp),
            is_without_arp: flags.contains(LinkFlags::Noarp),
            is_promiscuous: flags.contains(LinkFlags::Promisc),
            is_all_multicast: flags.contains(LinkFlags::Allmulti),
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => link.mac = mac::to_text(&bytes),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::MinMtu(least) => link.mtu_bounds.0 = least,
                LinkAttribute::MaxMtu(greatest) => link.mtu_bounds.1 = greatest,
                LinkAttribute::TxQueueLen(length) => link.tx_queue_len = length,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Link(index) => link.peer = Some(index),
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::OperState(state) => link.is_running = state == State::Up,
                LinkAttribute::Xdp(xdp) => {
                    let is_attached = |x: &LinkXdp| matches!(x, LinkXdp::Attached(how) if *how != XdpAttached::None);
                    link.has_xdp = xdp.iter().any(is_attached);
                }
                LinkAttribute::AfSpecUnspec(families) => {
                    link.accepts_advertisements = accept_ra(&families);
                    link.routes_localnet = route_localnet(&families);
                }
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(kind) => link.kind = kind.to_string(),
                            LinkInfo::PortData(InfoPortData::BridgePort(flags)) => {
                                link.hairpin = hairpin(&flags);
                                link.is_isolated = flags.contains(&InfoBridgePort::Isolated(true));
                                link.is_blocked = blocked(&flags);
                                link.withholds = withheld(&flags);
                            }
                            LinkInfo::Data(InfoData::Bridge(data)) => {
                                link.vlans = VlanFiltering::from_data(&data);
                                link.forward_delay = forward_delay(&data);
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

/// What the families' settings of a link say of sysctl `accept_ra`.
fn accept_ra(families: &[AfSpecUnspec]) -> Option<bool> {
    let settings = families.iter().find_map(|family| match family {
        AfSpecUnspec::Inet6(settings) => Some(settings),
        _ => None,
    })?;
    settings.iter().find_map(|setting| match setting {
        AfSpecInet6::DevConf(sysctls) => Some(sysctls.accept_ra != 0),
        _ => None,
    })
}

/// What the families' settings of a link say of sysctl `route_localnet`.
fn route_localnet(families: &[AfSpecUnspec]) -> bool {
    let mut settings = families.iter().filter_map(|family| match family {
        AfSpecUnspec::Inet(settings) => Some(settings.iter()),
        _ => None,
    });
    settings.any(|mut settings| {
        settings.any(|setting| {
            matches!(setting, AfSpecInet::DevConf(sysctls) if sysctls.route_localnet != 0)
        })
    })
}

/// What the flags of a bridge port say of hairpin mode.
fn hairpin(flags: &[InfoBridgePort]) -> Option<bool> {
    flags.iter().find_map(|flag| match flag {
        InfoBridgePort::HairpinMode(on) => Some(*on),
        _ => None,
    })
}

/// The state in which a bridge port passes no frames (`bridge link`).
fn blocked(flags: &[InfoBridgePort]) -> Option<&'static str> {
    flags.iter().find_map(|flag| match flag {
        InfoBridgePort::State(BridgePortState::Disabled) => Some("disabled"),
        InfoBridgePort::State(BridgePortState::Listening) => Some("listening"),
        InfoBridgePort::State(BridgePortState::Learning) => Some("learning"),
        InfoBridgePort::State(BridgePortState::Blocking) => Some("blocking"),
        _ => None,
    })
}

/// The settings of a bridge port that keep frames from it, each as what ends that.
fn withheld(flags: &[InfoBridgePort]) -> Vec<&'static str> {
    let setting = |flag: &InfoBridgePort| match flag {
        InfoBridgePort::Learning(false) => Some("learning on"),
        InfoBridgePort::UnicastFlood(false) => Some("flood on"),
        InfoBridgePort::MulticastFlood(false) => Some("mcast_flood on"),
        InfoBridgePort::BroadcastFlood(false) => Some("bcast_flood on"),
        InfoBridgePort::Locked(true) => Some("locked off"),
        _ => None,
    };
    flags.iter().filter_map(setting).collect()
}

/// What the attributes of a bridge say of its forward delay.
fn forward_delay(data: &[InfoBridge]) -> u32 {
    let delay = data.iter().find_map(|member| match member {
        InfoBridge::ForwardDelay(delay) => Some(*delay),
        _ => None,
    });
    delay.unwrap_or_default()
}

impl VlanFiltering {
    /// Kernels without VLAN filtering tell that it is off, but no default.
    fn from_data(data: &[InfoBridge]) -> Option<Self> {
        let default = data.iter().find_map(|member| match member {
            InfoBridge::VlanDefaultPvid(vlan) => Some(*vlan),
            _ => None,
        })?;
        let is_on = data.contains(&InfoBridge::VlanFiltering(true));
        Some(Self { is_on, default })
    }
}

/// The link called `name` (`ip link show dev NAME`).
///
/// # Errors
/// When the kernel cannot be asked.
pub fn by_name(netlink: &Netlink, name: &str) -> Result<Option<Link>> {
    look_up(netlink, LinkUnspec::new_with_name(name).build())
        .with_context(|| format!("look up link {name}"))
}

/// The link with `index`.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn by_index(netlink: &Netlink, index: u32) -> Result<Option<Link>> {
    look_up(netlink, LinkUnspec::new_with_index(index).build())
        .with_context(|| format!("look up link {index}"))
}

/// All links of a kind (`ip link show type KIND`).
///
/// # Errors
/// As [`list`].
pub fn all(netlink: &Netlink, kind: &str) -> Result<Vec<Link>> {
    let mut links = list(netlink)?;
    links.retain(|link| link.kind == kind);
    Ok(links)
}

/// All links (`ip link show`).
///
/// # Errors
/// When the kernel cannot be asked, or links come and go too fast to list them.
pub fn list(netlink: &Netlink) -> Result<Vec<Link>> {
    let message = RouteNetlinkMessage::GetLink(without_counters(LinkMessage::default()));
    let found = netlink.dump(&message).context("list links")?;
    let links = found.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(Link::from_message(link)),
        _ => None,
    });
    Ok(links.collect())
}

/// The ports of a bridge (`ip link show master BRIDGE`).
///
/// # Errors
/// When the kernel cannot be asked.
pub fn ports(netlink: &Netlink, bridge: &Link) -> Result<Vec<Link>> {
    let request = change_of(0).controller(bridge.index).build();
    let found = netlink
        .dump(&RouteNetlinkMessage::GetLink(request))
        .with_context(|| format!("list the ports of bridge {}", bridge.name))?;
    let links = found.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(Link::from_message(link)),
        _ => None,
    });
    // Kernels before 4.4 list every link.
    let ports = links.filter(|link| link.controller == Some(bridge.index));
    Ok(ports.collect())
}

/// Spares the kernel adding up what passed the link on each processor, and both sides half
/// of the answer. Kernels before 4.4 do not know the wish.
fn without_counters(mut request: LinkMessage) -> LinkMessage {
    let mask = vec![LinkExtentMask::SkipStats];
    request.attributes.push(LinkAttribute::ExtMask(mask));
    request
}

fn look_up(netlink: &Netlink, message: LinkMessage) -> Result<Option<Link>> {
    let found = netlink.get(RouteNetlinkMessage::GetLink(without_counters(message)))?;
    Ok(found.and_then(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(Link::from_message(link)),
        _ => None,
    }))
}

/// Creates a bridge, not yet up (`ip link add NAME address MAC [mtu MTU] type bridge
/// [vlan_filtering 1]`). The hardware address is part of the request: one that the kernel
/// picks changes with the bridge's ports, and udev may rewrite it.
///
/// # Errors
/// `EEXIST` when the name is taken. A kernel without VLAN filtering ignores the wish.
pub fn create_bridge(
    netlink: &Netlink,
    name: &str,
    mac: Mac,
    mtu: Option<u32>,
    vlan_filtering: bool,
) -> Result<()> {
    let mut bridge = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Bridge)
        .name(name)
        .address(mac.0.to_vec());
    if let Some(mtu) = mtu {
        bridge = bridge.mtu(mtu);
    }
    if vlan_filtering {
        bridge = bridge.set_info_data(filtering(true));
    }
    create(netlink, bridge.build()).with_context(|| format!("create bridge {name}"))
}

/// Lets the ports' VLANs decide where frames go, or not (`ip link set dev … type bridge
/// vlan_filtering 1`).
///
/// # Errors
/// When the kernel refuses.
pub fn filter_vlans(netlink: &Netlink, bridge: &Link, is_on: bool) -> Result<()> {
    let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Bridge)
        .index(bridge.index)
        .set_info_data(filtering(is_on));
    let state = if is_on { "on" } else { "off" };
    let what = format!("switch VLAN filtering {state} for bridge {}", bridge.name);
    change(netlink, message, &what)
}

/// A group's, which no link can have as its own.
const MULTICAST: [u8; 6] = [1, 0, 0, 0, 0, 0];

/// For STATUS: whether the kernel can make links of `kind`, `veth` or `bridge`. It loads the
/// module, if it has one, as ADD makes it do, and tells what is wrong with the attributes of a
/// link of that kind (`veth_validate`, `br_validate`) before there is one: none is ever made.
///
/// # Errors
/// [`Kind::Unavailable`] where it cannot.
pub fn require_kind(netlink: &Netlink, kind: &str) -> Result<()> {
    let impossible =
        LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Other(kind.to_owned()))
            .address(MULTICAST.to_vec())
            .build();
    tolerate(create(netlink, impossible), &[Errno::EADDRNOTAVAIL]).with_context(|| {
        let needs = format!("kernel module {kind}, CAP_NET_ADMIN");
        let sentence = format!("no link of type {kind} can be made ({needs})");
        Failure::new(Kind::Unavailable, sentence)
    })
}

/// Whether bridges of this kernel can filter VLANs, asked without making one; `None` while
/// it does not know bridges at all, which may be a module that is not loaded.
///
/// What is wrong with the attributes of a bridge is told (`br_validate`) before the new link
/// is refused because it has the number of another: the loopback interface's. And only who
/// knows VLANs knows that there is none with number 4095.
///
/// # Errors
/// When the kernel says something else.
pub fn can_filter_vlans(netlink: &Netlink) -> Result<Option<bool>> {
    const LOOPBACK: u32 = 1;
    const NO_VLAN: u16 = 4095;
    let impossible =
        || LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Bridge).index(LOOPBACK);
    let refused = |bridge: Change| match create(netlink, bridge.build()) {
        Ok(()) => anyhow::bail!("the kernel made the loopback interface a bridge"),
        Err(error) => errno(&error).ok_or(error),
    };
    let vlan = InfoData::Bridge(vec![InfoBridge::VlanDefaultPvid(NO_VLAN)]);
    match refused(impossible().set_info_data(vlan))? {
        Errno::EINVAL => Ok(Some(true)),
        // Had it looked at the attributes?
        _ => match refused(impossible().address(MULTICAST.to_vec()))? {
            Errno::EADDRNOTAVAIL => Ok(Some(false)),
            _ => Ok(None),
        },
    }
}

/// The part of a request that does.
fn filtering(is_on: bool) -> InfoData {
    InfoData::Bridge(vec![InfoBridge::VlanFiltering(is_on)])
}

/// Creates an intermediate functional block, not yet up (`ip link add NAME mtu MTU
/// txqueuelen 0 type ifb`): what is led to it goes back to where it came from, at its pace.
///
/// # Errors
/// `EEXIST` when the name is taken.
pub fn create_ifb(netlink: &Netlink, name: &str, mtu: u32) -> Result<()> {
    let mut ifb = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Ifb)
        .name(name)
        .mtu(mtu)
        .build();
    // It has a queue of its own: one more would only delay.
    ifb.attributes.push(LinkAttribute::TxQueueLen(0));
    create(netlink, ifb).with_context(|| format!("create {name} (kernel module ifb)"))
}

/// One end of a veth pair to be.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// Must be free in the namespace where this end is to be.
    pub name: &'a str,
    /// Part of the request, so that nobody sees the end with another one.
    pub mac: Mac,
}

/// Creates a veth pair with one end here and the other in `netns`, or here too, in one
/// request: moving a link between namespaces later costs a grace period of the kernel.
/// Neither is up.
///
/// # Errors
/// `EEXIST` when either name is taken.
pub fn create_veth(
    netlink: &Netlink,
    here: End<'_>,
    there: End<'_>,
    netns: Option<&Netns>,
    mtu: Option<u32>,
) -> Result<()> {
    let end = |end: End<'_>, message: LinkMessageBuilder<LinkUnspec>| {
        let message = message.name(end.name).address(end.mac.0.to_vec());
        match mtu {
            Some(mtu) => message.mtu(mtu),
            None => message,
        }
    };
    let mut peer = end(there, LinkMessageBuilder::default());
    if let Some(netns) = netns {
        peer = peer.setns_by_fd(netns.fd());
    }
    let pair = end(
        here,
        LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth),
    )
    .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
    .build();
    create(netlink, pair).with_context(|| {
        format!(
            "create veth {} with its other end {} in {}",
            here.name,
            there.name,
            netns.map_or("the same namespace", Netns::path)
        )
    })
}

fn create(netlink: &Netlink, message: LinkMessage) -> Result<()> {
    netlink.request(
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// A change to a link, to be filled in and sent with [`change`].
pub type Change = LinkMessageBuilder<LinkUnspec>;

/// Starts a change of the link with `index` (`ip link set dev …`).
pub fn change_of(index: u32) -> Change {
    LinkUnspec::new_with_index(index)
}

/// Makes the kernel do `change`. `what` says so in errors: "set cni0 up".
///
/// # Errors
/// When the kernel refuses.
pub fn change(netlink: &Netlink, change: Change, what: &str) -> Result<()> {
    netlink
        .request(RouteNetlinkMessage::NewLink(change.build()), 0)
        .with_context(|| what.to_owned())
}

/// Sets flags of a bridge port, and the port up (`ip link set dev … type bridge_slave hairpin
/// on isolated on`, `ip link set dev … up`).
///
/// # Errors
/// When the kernel refuses.
pub fn set_bridge_port_up(
    netlink: &Netlink,
    port: &Link,
    hairpin: bool,
    isolated: bool,
) -> Result<()> {
    let mut up = change_of(port.index).up();
    if hairpin || isolated {
        let flags = vec![
            InfoBridgePort::HairpinMode(hairpin),
            InfoBridgePort::Isolated(isolated),
        ];
        up = up
            .set_port_kind(InfoPortKind::Bridge)
            .set_port_data(InfoPortData::BridgePort(flags));
    }
    change(netlink, up, &format!("set bridge port {} up", port.name))
}

/// Makes `port` a port of `bridge` that has no IPv6 address of its own (`ip link set dev …
/// alias ALIAS master BRIDGE addrgenmode none`), which no packet would ever get to: what comes
/// in through a port is the bridge's. The kernel is spared a route, a group and a look for
/// duplicates for each of them.
///
/// # Errors
/// When the kernel refuses.
pub fn make_bridge_port(
    netlink: &Netlink,
    port: &Link,
    bridge: &Link,
    alias: String,
) -> Result<()> {
    let mut message = change_of(port.index)
        .alias(alias)
        .controller(bridge.index)
        .build();
    if port.accepts_advertisements.is_some() {
        let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let families = vec![AfSpecUnspec::Inet6(vec![none])];
        message
            .attributes
            .push(LinkAttribute::AfSpecUnspec(families));
    }
    netlink
        .request(RouteNetlinkMessage::NewLink(message), 0)
        .with_context(|| format!("make {} a port of bridge {}", port.name, bridge.name))
}

/// Sets `link` up, and the kernel to announce its IPv4 addresses whenever it is given another
/// hardware address (`ip link set dev … up`, sysctl `arp_notify`).
///
/// # Errors
/// When the kernel refuses.
pub fn set_up_with_arp_notify(netlink: &Netlink, link: &Link) -> Result<()> {
    /// `IFLA_INET_CONF`, which nests attributes of which each is a sysctl's number.
    const SYSCTLS: u16 = 1;
    /// `IPV4_DEVCONF_ARP_NOTIFY`
    const ARP_NOTIFY: u16 = 22;
    let mut on = [0; 8];
    DefaultNla::new(ARP_NOTIFY, 1_u32.to_ne_bytes().into()).emit(&mut on);
    let sysctls = AfSpecInet::Other(DefaultNla::new(SYSCTLS | NLA_F_NESTED, on.into()));
    let mut message = change_of(link.index).up().build();
    message
        .attributes
        .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![
            sysctls,
        ])]));
    netlink
        .request(RouteNetlinkMessage::NewLink(message), 0)
        .with_context(|| format!("set {} up", link.name))
}

/// Deletes the link with `index`; one that is gone is no error. Takes the kernel some
/// 10 to 20 ms.
///
/// # Errors
/// When the link still exists.
pub fn delete(netlink: &Netlink, index: u32) -> Result<()> {
    let message = LinkUnspec::new_with_index(index).build();
    let deleted = netlink.request(RouteNetlinkMessage::DelLink(message), 0);
    tolerate(deleted, &[Errno::ENODEV]).with_context(|| format!("delete link {index}"))
}

#[cfg(test)]
mod kernel_tests {
    use super::*;

    #[test]
    fn what_kinds_there_are_is_known_without_making_one() {
        let netlink = Netlink::open_in(&Netns::throwaway().unwrap()).unwrap();
        for kind in ["veth", "bridge"] {
            require_kind(&netlink, kind).unwrap();
            assert_eq!(all(&netlink, kind).unwrap(), []);
        }
        let error = require_kind(&netlink, "nonesuch").unwrap_err();
        assert_eq!(errno(&error), Some(Errno::EOPNOTSUPP));
        assert!(error.to_string().contains("nonesuch"), "{error:#}");
    }
}
