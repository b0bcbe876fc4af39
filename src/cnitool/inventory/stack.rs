//! What one network namespace holds: links, addresses, routes.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::net::addr::{self, Address};
use crate::net::bridge_vlan::{self, Vlans};
use crate::net::link::{self, Link};
use crate::net::netlink::Netlink;
use crate::net::route::{self, Route};

/// The network stack of one namespace, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stack {
    /// By index.
    pub links: Vec<Link>,
    /// Each with the index of its link.
    pub addresses: Vec<(u32, Address)>,
    /// To other hosts, in every table; each with the index of the link it leads through.
    pub routes: Vec<(u32, Route)>,
    /// Of the ports of bridges that filter VLANs, by the port's index.
    pub vlans: BTreeMap<u32, Vlans>,
}

impl Stack {
    /// Reads it through `netlink`, a socket in that namespace.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn read(netlink: &Netlink) -> Result<Self> {
        let mut links = link::list(netlink)?;
        links.sort_by_key(|link| link.index);
        let mut vlans = BTreeMap::new();
        for bridge in &links {
            if bridge.vlans.is_some_and(|vlans| vlans.is_on) {
                let ports = bridge_vlan::list(netlink, bridge.index)?;
                vlans.extend(ports.into_iter().map(|port| (port.index, port.vlans)));
            }
        }
        let mut routes = route::list_with_links(netlink, Ipv4Addr::UNSPECIFIED.into())?;
        // A kernel without IPv6 has none to list.
        routes.extend(
            route::list_with_links(netlink, Ipv6Addr::UNSPECIFIED.into()).unwrap_or_default(),
        );
        Ok(Self {
            links,
            addresses: addr::all(netlink)?,
            routes,
            vlans,
        })
    }

    /// The link called `name`.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The link with `index`.
    pub fn by_index(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The addresses of the link with `index`.
    pub fn addresses_of(&self, index: u32) -> impl Iterator<Item = &Address> {
        let of_link = self
            .addresses
            .iter()
            .filter(move |(link, _)| *link == index);
        of_link.map(|(_, address)| address)
    }

    /// The bridge that `link` is a port of.
    pub fn bridge_of(&self, link: &Link) -> Option<&Link> {
        self.by_index(link.controller?)
    }

    /// The link of this namespace that is the other end of `end`, which is in another.
    pub fn peer_of(&self, end: &Link) -> Option<&Link> {
        let found = self.by_index(end.peer?)?;
        (end.kind == "veth" && found.kind == "veth" && found.peer == Some(end.index))
            .then_some(found)
    }
    /// The default routes of the main table, those of IPv4 first, each with its link.
    pub fn default_routes(&self) -> impl Iterator<Item = (&Link, &Route)> {
        let routes = self
            .routes
            .iter()
            .filter(|(_, route)| route.dst.prefix_len() == 0 && route.table == route::MAIN_TABLE);
        routes.filter_map(|(index, route)| Some((self.by_index(*index)?, route)))
    }
}
