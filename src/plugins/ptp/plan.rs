//! What ADD will do, decided without touching anything (docs/compatibility.md#9.5).
//!
//! A veth pair is no point-to-point link to the kernel: the container is made to send
//! everything, also to its own subnet, to the gateway, which is the host's end.

use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;

use crate::cni::error::{Code, detailed};
use crate::cni::result::{CniResult, Ip};
use crate::net::route::Route;
use crate::plugins::layer3::{self, SCOPE_LINK};

/// Index of the container's end in the result's interfaces.
pub const CONTAINER_INDEX: usize = 1;

/// For destinations that are on this host alone (rtnetlink(7)).
const SCOPE_HOST: u8 = 254;

/// Addresses and routes of both ends.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// The result's addresses.
    pub ips: Vec<Ip>,
    /// Subnets that the kernel takes to be on the container's link, and that are not.
    pub connected: Vec<IpNet>,
    /// The container's routes, in the order in which each finds its gateway.
    pub container_routes: Vec<Route>,
    /// What the host's end must have: the gateways.
    pub host_addresses: Vec<IpNet>,
    /// How the host finds the container.
    pub host_routes: Vec<Route>,
}

impl Plan {
    /// Decides what to do with what IPAM returned.
    ///
    /// # Errors
    /// When an address is without gateway, or there is none at all.
    pub fn new(mtu: Option<u32>, ipam: &CniResult) -> Result<Self> {
        layer3::check_addresses(ipam, mtu)?;
        let mut plan = Self::default();
        let mut subnets = Vec::new();
        for ip in &ipam.ips {
            let mut ip = ip.clone();
            ip.interface = Some(CONTAINER_INDEX);
            let own = ip.address.addr();
            let gateway = usable_gateway(&ip)?;
            let to_gateway = Route {
                scope: if own.is_ipv4() { SCOPE_LINK } else { 0 },
                source: Some(own),
                ..Route::new(gateway.into(), None)
            };
            push(&mut plan.container_routes, to_gateway);
            // An address that is a network of its own has no subnet beside it.
            if ip.address.prefix_len() < ip.address.max_prefix_len() {
                plan.connected.push(ip.address.trunc());
                let through_gateway = Route {
                    source: Some(own),
                    ..Route::new(ip.address.trunc(), Some(gateway))
                };
                push(&mut subnets, through_gateway);
            }
            let host_address = IpNet::from(gateway);
            if !plan.host_addresses.contains(&host_address) {
                plan.host_addresses.push(host_address);
            }
            let to_container = Route {
                scope: if own.is_ipv4() { SCOPE_HOST } else { 0 },
                ..Route::new(own.into(), None)
            };
            push(&mut plan.host_routes, to_container);
            plan.ips.push(ip);
        }
        plan.container_routes.extend(subnets);
        let told = ipam.routes.iter();
        plan.container_routes
            .extend(told.map(|route| layer3::for_kernel(route, &plan.ips)));
        Ok(plan)
    }
}

/// The gateway of `ip`, which is going to be the host's end.
fn usable_gateway(ip: &Ip) -> Result<IpAddr> {
    let refused = |why: &str| {
        detailed(
            Code::Config,
            format!("address {} {why}", ip.address),
            "the host's end of the link gets the gateway's address: IPAM must return another one of the same family",
        )
    };
    match ip.gateway {
        None => Err(refused("has no gateway")),
        Some(gateway) if gateway == ip.address.addr() => Err(refused("is its own gateway")),
        Some(gateway) if gateway.is_ipv4() != ip.address.addr().is_ipv4() => {
            Err(refused("has a gateway of the other family"))
        }
        Some(gateway) => Ok(gateway),
    }
}

/// The first route to a destination is the one that counts.
fn push(routes: &mut Vec<Route>, route: Route) {
    if !routes.iter().any(|other| other.dst == route.dst) {
        routes.push(route);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::result;

    fn ip(address: &str, gateway: &str) -> Ip {
        Ip::new(address.parse().unwrap(), gateway.parse().ok())
    }

    fn plan(ips: Vec<Ip>, routes: Vec<result::Route>) -> Plan {
        let ipam = CniResult {
            ips,
            routes,
            ..CniResult::default()
        };
        Plan::new(None, &ipam).unwrap()
    }

    fn texts<T: ToString>(list: &[T]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn everything_goes_through_the_gateway() {
        let default = result::Route::new("0.0.0.0/0".parse().unwrap(), None);
        let plan = plan(
            vec![
                ip("10.1.0.5/24", "10.1.0.1"),
                ip("fd00:1::5/64", "fd00:1::1"),
            ],
            vec![default],
        );
        assert_eq!(plan.ips[0].interface, Some(1));
        assert_eq!(texts(&plan.connected), ["10.1.0.0/24", "fd00:1::/64"]);
        assert_eq!(
            texts(&plan.container_routes),
            [
                "10.1.0.1/32 scope 253",
                "fd00:1::1/128",
                "10.1.0.0/24 via 10.1.0.1",
                "fd00:1::/64 via fd00:1::1",
                "0.0.0.0/0 via 10.1.0.1",
            ]
        );
        assert!(
            plan.container_routes[..4]
                .iter()
                .all(|r| r.source.is_some())
        );
        assert_eq!(
            texts(&plan.host_addresses),
            ["10.1.0.1/32", "fd00:1::1/128"]
        );
        assert_eq!(
            texts(&plan.host_routes),
            ["10.1.0.5/32 scope 254", "fd00:1::5/128"]
        );
    }

    #[test]
    fn two_addresses_behind_one_gateway() {
        let plan = plan(
            vec![ip("10.1.0.5/24", "10.1.0.1"), ip("10.1.0.6/24", "10.1.0.1")],
            Vec::new(),
        );
        assert_eq!(texts(&plan.host_addresses), ["10.1.0.1/32"]);
        assert_eq!(
            texts(&plan.container_routes),
            ["10.1.0.1/32 scope 253", "10.1.0.0/24 via 10.1.0.1"]
        );
        assert_eq!(plan.container_routes[0].source, Some([10, 1, 0, 5].into()));
        assert_eq!(plan.host_routes.len(), 2);
    }

    #[test]
    fn an_address_that_is_a_network_of_its_own() {
        let plan = plan(vec![ip("10.1.0.5/32", "169.254.1.1")], Vec::new());
        assert_eq!(plan.connected, []);
        assert_eq!(texts(&plan.container_routes), ["169.254.1.1/32 scope 253"]);
    }

    #[test]
    fn an_address_needs_a_gateway() {
        for (gateway, why) in [
            ("", "has no gateway"),
            ("10.1.0.5", "is its own gateway"),
            ("fd00::1", "has a gateway of the other family"),
        ] {
            let ipam = CniResult {
                ips: vec![ip("10.1.0.5/24", gateway)],
                ..CniResult::default()
            };
            let error = Plan::new(None, &ipam).unwrap_err();
            assert_eq!(error.to_string(), format!("address 10.1.0.5/24 {why}"));
        }
        assert!(Plan::new(None, &CniResult::default()).is_err());
    }
}
