//! Addresses of links, and what the neighbours remember of them (`ip address`, `ip neighbour`).

use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::mac;
use super::netlink::{Netlink, errno, tolerate};

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the kernel's flags, none depends on another"
)]
pub struct Address {
    /// Host bits included.
    pub net: IpNet,
    /// Whether it is of more than link-local use.
    pub is_global: bool,
    /// Whether it is of use on this host only (scope `host`).
    pub is_of_host: bool,
    /// Whether it stays until somebody removes it; one that routers advertise does not.
    pub is_permanent: bool,
    /// Duplicate address detection is still going on (RFC 4862).
    pub is_tentative: bool,
    /// Duplicate address detection found another owner.
    pub is_duplicate: bool,
}

/// The family of an address, for message headers.
pub fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn message(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(net.addr()));
    message
        .attributes
        .push(AddressAttribute::Address(net.addr()));
    message
}

/// Adds an address (`ip address add NET dev …`). With `detect_duplicates` false an IPv6
/// address is usable at once, without the second or two that the kernel would otherwise
/// ask the neighbours (`nodad`).
///
/// # Errors
/// `EEXIST` when the link has it.
pub fn add(netlink: &Netlink, index: u32, net: IpNet, detect_duplicates: bool) -> Result<()> {
    let mut message = message(index, net);
    match net {
        // The kernel derives no broadcast address by itself.
        IpNet::V4(v4) if v4.prefix_len() < 31 => message
            .attributes
            .push(AddressAttribute::Broadcast(v4.broadcast())),
        IpNet::V6(_) if !detect_duplicates => message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad)),
        _ => {}
    }
    netlink
        .request(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .with_context(|| format!("add address {net}"))
}

/// Removes an address; one that is not there is no error.
///
/// # Errors
/// When the link still has it.
pub fn delete(netlink: &Netlink, index: u32, net: IpNet) -> Result<()> {
    let deleted = netlink.request(RouteNetlinkMessage::DelAddress(message(index, net)), 0);
    tolerate(deleted, &[Errno::EADDRNOTAVAIL, Errno::ENODEV])
        .with_context(|| format!("remove address {net}"))
}

/// The addresses of the link with `index`, both families.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn list(netlink: &Netlink, index: u32) -> Result<Vec<Address>> {
    let mut request = AddressMessage::default();
    request.header.index = index;
    let found = match netlink.dump_of(&RouteNetlinkMessage::GetAddress(request)) {
        // A link that is gone has none.
        Err(error) if errno(&error) == Some(Errno::ENODEV) => Vec::new(),
        found => found.context("list addresses")?,
    };
    // Not every kernel obeys the index.
    let own = addresses(found).filter(|(found, _)| *found == index);
    Ok(own.map(|(_, address)| address).collect())
}

/// The addresses of all links, each with the index of its link (`ip address show`).
///
/// # Errors
/// When the kernel cannot be asked.
pub fn all(netlink: &Netlink) -> Result<Vec<(u32, Address)>> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let found = netlink.dump(&request).context("list addresses")?;
    Ok(addresses(found).collect())
}

/// The addresses of all links but the one with `index`, both families.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn list_others(netlink: &Netlink, index: Option<u32>) -> Result<Vec<Address>> {
    let others = all(netlink)?
        .into_iter()
        .filter(|(of, _)| Some(*of) != index);
    Ok(others.map(|(_, address)| address).collect())
}

/// The addresses in an answer, each with the index of its link.
fn addresses(found: Vec<RouteNetlinkMessage>) -> impl Iterator<Item = (u32, Address)> {
    found.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewAddress(message) => {
            Some((message.header.index, from_message(&message)?))
        }
        _ => None,
    })
}

fn from_message(message: &AddressMessage) -> Option<Address> {
    let mut own = None;
    let mut flags = AddressFlags::empty();
    for attribute in &message.attributes {
        match attribute {
            // On point-to-point links ADDRESS is the other side's; LOCAL is ours.
            AddressAttribute::Local(ip) => own = Some(*ip),
            AddressAttribute::Address(ip) => own = own.or(Some(*ip)),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    Some(Address {
        net: IpNet::new(own?, message.header.prefix_len).ok()?,
        is_global: message.header.scope == AddressScope::Universe,
        is_of_host: message.header.scope == AddressScope::Host,
        is_permanent: flags.contains(AddressFlags::Permanent),
        is_tentative: flags.contains(AddressFlags::Tentative),
        is_duplicate: flags.contains(AddressFlags::Dadfailed),
    })
}

/// Makes the link's neighbour table forget `ip`, so that the next packet asks who has it
/// now (`ip neighbour del`). Nothing to forget is no error.
///
/// # Errors
/// When the entry is still there.
pub fn forget_neighbour(netlink: &Netlink, index: u32, ip: IpAddr) -> Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = index;
    let destination = match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    };
    message
        .attributes
        .push(NeighbourAttribute::Destination(destination));
    let deleted = netlink.request(RouteNetlinkMessage::DelNeighbour(message), 0);
    // EAFNOSUPPORT: a kernel without IPv6.
    tolerate(
        deleted,
        &[Errno::ENOENT, Errno::ENODEV, Errno::EAFNOSUPPORT],
    )
    .with_context(|| format!("forget neighbour {ip}"))
}

/// What a link remembers of a neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The link's number.
    pub index: u32,
    /// The neighbour.
    pub ip: IpAddr,
    /// Its hardware address as text; empty while that is not known.
    pub mac: String,
    /// Whether it has not answered.
    pub has_failed: bool,
    /// Whether an administrator has said so: nobody is asked.
    pub is_permanent: bool,
    /// Whether ARP or ND have found it out, and would again.
    pub is_found_out: bool,
}

/// The neighbours of all links (`ip neighbour show`).
///
/// # Errors
/// When the kernel cannot be asked.
pub fn neighbours(netlink: &Netlink) -> Result<Vec<Neighbour>> {
    let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let found = netlink.dump(&request).context("list neighbours")?;
    let neighbours = found.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewNeighbour(message) => neighbour(&message),
        _ => None,
    });
    Ok(neighbours.collect())
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let (mut ip, mut hardware) = (None, String::new());
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some((*v4).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some((*v6).into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => hardware = mac::to_text(bytes),
            _ => {}
        }
    }
    let is_by_protocol = matches!(
        message.header.state,
        NeighbourState::Incomplete
            | NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Failed
    );
    Some(Neighbour {
        index: message.header.ifindex,
        ip: ip?,
        mac: hardware,
        has_failed: message.header.state == NeighbourState::Failed,
        is_permanent: matches!(
            message.header.state,
            NeighbourState::Permanent | NeighbourState::Noarp
        ),
        // Routing daemons enter what no protocol would bring back.
        is_found_out: is_by_protocol && !message.header.flags.contains(NeighbourFlags::ExtLearned),
    })
}
