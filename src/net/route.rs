//! Routes (`ip route`).

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context, Result};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use nix::errno::Errno;

use super::addr::family;
use super::link;
use super::netlink::{Netlink, errno, tolerate};

/// The table that routes go to when nothing else is said.
pub const MAIN_TABLE: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// A route through one link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination; host bits are ignored.
    pub dst: IpNet,
    /// Next hop; `None` when the destination is on the link itself.
    pub gateway: Option<IpAddr>,
    /// Number of the routing table; [`MAIN_TABLE`] if nobody asked for another.
    pub table: u32,
    /// The metric; 0 is the kernel's default.
    pub priority: u32,
    /// As in rtnetlink(7).
    pub scope: u8,
    /// Bytes; 0 is the link's.
    pub mtu: u32,
    /// Bytes; 0 is the kernel's choice.
    pub advmss: u32,
    /// The address that packets are sent from when the sender names none; `None` leaves
    /// the choice to the kernel.
    pub source: Option<IpAddr>,
}

impl Route {
    /// A route in the main table without any option.
    pub fn new(dst: IpNet, gateway: Option<IpAddr>) -> Self {
        Self {
            dst,
            gateway,
            table: MAIN_TABLE,
            priority: 0,
            scope: 0,
            mtu: 0,
            advmss: 0,
            source: None,
        }
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.dst)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if self.priority != 0 {
            write!(f, " metric {}", self.priority)?;
        }
        if self.scope != 0 {
            write!(f, " scope {}", self.scope)?;
        }
        if self.table != MAIN_TABLE {
            write!(f, " table {}", self.table)?;
        }
        Ok(())
    }
}

/// Adds a route through the link with `index`. The very same route being there already
/// is no error; another one for its destination stays beside it.
///
/// # Errors
/// Names the route and the link.
pub fn add(netlink: &Netlink, index: u32, link: &str, route: &Route) -> Result<()> {
    let message = RouteNetlinkMessage::NewRoute(message(index, route));
    let added = netlink.request(message, NLM_F_CREATE);
    tolerate(added, &[Errno::EEXIST]).with_context(|| format!("add route {route} dev {link}"))
}

/// Adds a route through the link with `index`, instead of one that is there for its
/// destination (`ip route replace`).
///
/// # Errors
/// Names the route and the link.
pub fn replace(netlink: &Netlink, index: u32, link: &str, route: &Route) -> Result<()> {
    let message = RouteNetlinkMessage::NewRoute(message(index, route));
    netlink
        .request(message, NLM_F_CREATE | NLM_F_REPLACE)
        .with_context(|| format!("add route {route} dev {link}"))
}

/// Removes the route that the kernel made for a link with an address in `network` (`ip
/// route del NETWORK dev … proto kernel`); one that is not there is no error.
///
/// # Errors
/// When it stays.
pub fn delete_connected(netlink: &Netlink, index: u32, network: IpNet) -> Result<()> {
    let mut message = message(index, &Route::new(network, None));
    message.header.protocol = RouteProtocol::Kernel;
    // Whatever scope it has.
    message.header.scope = RouteScope::NoWhere;
    let deleted = netlink.request(RouteNetlinkMessage::DelRoute(message), 0);
    tolerate(deleted, &[Errno::ESRCH])
        .with_context(|| format!("remove the route to {network} that came with an address"))
}

fn message(index: u32, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.dst.addr());
    message.header.destination_prefix_length = route.dst.prefix_len();
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    message.header.scope = RouteScope::from(route.scope);
    // Tables above 255 only fit the attribute.
    message.header.table = u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.attributes.push(RouteAttribute::Table(route.table));
    message.attributes.push(RouteAttribute::Oif(index));
    if route.dst.prefix_len() > 0 {
        let network = route.dst.trunc().addr();
        message
            .attributes
            .push(RouteAttribute::Destination(network.into()));
    }
    if let Some(gateway) = route.gateway {
        message
            .attributes
            .push(RouteAttribute::Gateway(gateway.into()));
    }
    if let Some(source) = route.source {
        message
            .attributes
            .push(RouteAttribute::PrefSource(source.into()));
    }
    if route.priority != 0 {
        message
            .attributes
            .push(RouteAttribute::Priority(route.priority));
    }
    let metrics: Vec<RouteMetric> = [
        (route.mtu != 0).then_some(RouteMetric::Mtu(route.mtu)),
        (route.advmss != 0).then_some(RouteMetric::Advmss(route.advmss)),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// The name of the link through which packets to `ip` leave (`ip route get`); `None`
/// when there is no route, or one that forbids.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn link_to(netlink: &Netlink, ip: IpAddr) -> Result<Option<String>> {
    match next_hop(netlink, ip, None)? {
        None => Ok(None),
        Some((index, _)) => Ok(link::by_index(netlink, index)?.map(|link| link.name)),
    }
}

/// The index of the link through which packets of this host from `source` to `ip` leave,
/// and the gateway there, if they need one (`ip route get IP from SOURCE`); `None` when there
/// is no route, or one that forbids.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn next_hop(
    netlink: &Netlink,
    ip: IpAddr,
    source: Option<IpAddr>,
) -> Result<Option<(u32, Option<IpAddr>)>> {
    let Some(message) = look_up(netlink, ip, source)? else {
        return Ok(None);
    };
    let gateway = from_message(&message, ip).and_then(|route| route.gateway);
    Ok(output(&message).map(|index| (index, gateway)))
}

/// Whether packets to `ip` are for this host, as `fib daddr type local` of nftables and
/// `--dst-type LOCAL` of iptables see it.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn is_local(netlink: &Netlink, ip: IpAddr) -> Result<bool> {
    let found = look_up(netlink, ip, None)?;
    Ok(found.is_some_and(|message| message.header.kind == RouteType::Local))
}

/// What a lookup ends in where there is no route, or one that forbids.
const NOWHERE: [Errno; 4] = [
    Errno::ENETUNREACH,
    Errno::EHOSTUNREACH,
    Errno::EACCES,
    Errno::EINVAL,
];

/// The route that a packet from `source` to `ip` would take; `None` where there is none, or one that
/// forbids (unreachable, prohibit, blackhole).
fn look_up(netlink: &Netlink, ip: IpAddr, source: Option<IpAddr>) -> Result<Option<RouteMessage>> {
    let mut request = RouteMessage::default();
    request.header.address_family = family(ip);
    request.header.destination_prefix_length = IpNet::from(ip).max_prefix_len();
    request
        .attributes
        .push(RouteAttribute::Destination(ip.into()));
    if let Some(source) = source {
        request.header.source_prefix_length = IpNet::from(source).max_prefix_len();
        request
            .attributes
            .push(RouteAttribute::Source(source.into()));
    }
    let found = match netlink.get(RouteNetlinkMessage::GetRoute(request)) {
        Err(error) if errno(&error).is_some_and(|errno| NOWHERE.contains(&errno)) => None,
        found => found.with_context(|| format!("look up the route to {ip}"))?,
    };
    Ok(match found {
        Some(RouteNetlinkMessage::NewRoute(message)) => Some(message),
        _ => None,
    })
}

/// The routes of `sample`'s family, in every table.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn list(netlink: &Netlink, sample: IpAddr) -> Result<Vec<Route>> {
    let messages = dump(netlink, sample)?;
    let routes = messages.iter();
    Ok(routes
        .filter_map(|message| from_message(message, sample))
        .collect())
}

/// The routes of `sample`'s family to other hosts (`ip route show table all type unicast`),
/// each with the index of the link it leads through. Those through several are left out.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn list_with_links(netlink: &Netlink, sample: IpAddr) -> Result<Vec<(u32, Route)>> {
    let messages = dump(netlink, sample)?;
    let unicast = messages
        .iter()
        .filter(|message| message.header.kind == RouteType::Unicast);
    Ok(unicast
        .filter_map(|message| Some((output(message)?, from_message(message, sample)?)))
        .collect())
}

/// The routes of `sample`'s family that forbid, each with its kind: `blackhole`,
/// `unreachable`, `prohibit`. Those that every IPv6 stack ends with are left out.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn list_forbidding(netlink: &Netlink, sample: IpAddr) -> Result<Vec<(&'static str, Route)>> {
    let forbidding = |message: &RouteMessage| {
        let kind = match message.header.kind {
            RouteType::BlackHole => "blackhole",
            RouteType::Unreachable => "unreachable",
            RouteType::Prohibit => "prohibit",
            _ => return None,
        };
        Some((kind, from_message(message, sample)?))
    };
    let messages = dump(netlink, sample)?;
    let found = messages.iter().filter_map(forbidding);
    Ok(found.filter(|(_, r)| r.priority != u32::MAX).collect())
}

/// The indices of the links with a default route that came with a router advertisement (`ip
/// -6 route show table all default proto ra`).
///
/// # Errors
/// When the kernel cannot be asked.
pub fn advertised_defaults(netlink: &Netlink) -> Result<Vec<u32>> {
    let messages = dump(netlink, Ipv6Addr::UNSPECIFIED.into())?;
    let advertised = messages.iter().filter(|message| {
        message.header.protocol == RouteProtocol::Ra
            && message.header.destination_prefix_length == 0
            && message.header.kind == RouteType::Unicast
    });
    Ok(advertised.filter_map(output).collect())
}

/// What comes of a packet from `source` to `destination` that the link with index `input`
/// has received (`ip route get DESTINATION from SOURCE iif LINK`): the kernel's own answer,
/// with its policy rules, forwarding switches and reverse path filter.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn forwarded(
    netlink: &Netlink,
    source: IpAddr,
    destination: IpAddr,
    input: u32,
) -> Result<Forwarded> {
    let mut request = RouteMessage::default();
    let length = IpNet::from(destination).max_prefix_len();
    request.header.address_family = family(destination);
    request.header.destination_prefix_length = length;
    request.header.source_prefix_length = length;
    request.attributes.extend([
        RouteAttribute::Destination(destination.into()),
        RouteAttribute::Source(source.into()),
        RouteAttribute::Iif(input),
    ]);
    Ok(match netlink.get(RouteNetlinkMessage::GetRoute(request)) {
        Ok(Some(RouteNetlinkMessage::NewRoute(message))) => match message.header.kind {
            RouteType::Unicast => Forwarded::Through(output(&message)),
            RouteType::Local => Forwarded::Local,
            _ => Forwarded::Nowhere(Errno::EHOSTUNREACH),
        },
        Ok(_) => Forwarded::Nowhere(Errno::ENETUNREACH),
        Err(error) => match errno(&error) {
            // EXDEV is the reverse path filter's.
            Some(refusal) if NOWHERE.contains(&refusal) || refusal == Errno::EXDEV => {
                Forwarded::Nowhere(refusal)
            }
            _ => return Err(error).context("look up how a packet is forwarded"),
        },
    })
}

/// What comes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarded {
    /// It leaves through the link with this index.
    Through(Option<u32>),
    /// It is for this host.
    Local,
    /// It is dropped, for this reason.
    Nowhere(Errno),
}

fn dump(netlink: &Netlink, sample: IpAddr) -> Result<Vec<RouteMessage>> {
    let mut request = RouteMessage::default();
    request.header.address_family = family(sample);
    let found = netlink
        .dump(&RouteNetlinkMessage::GetRoute(request))
        .context("list routes")?;
    Ok(found
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(message) => Some(message),
            _ => None,
        })
        .collect())
}

/// The index of the link that a route leads through.
fn output(message: &RouteMessage) -> Option<u32> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })
}

fn from_message(message: &RouteMessage, sample: IpAddr) -> Option<Route> {
    let unspecified = if sample.is_ipv4() {
        IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let mut dst = unspecified;
    let mut route = Route {
        table: u32::from(message.header.table),
        scope: message.header.scope.into(),
        ..Route::new(IpNet::new(unspecified, 0).ok()?, None)
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip(address)?,
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(priority) => route.priority = *priority,
            _ => {}
        }
    }
    route.dst = IpNet::new(dst, message.header.destination_prefix_length).ok()?;
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}
