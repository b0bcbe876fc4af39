//! What ADD will do, decided without touching anything: which addresses and routes the
//! container gets, and which addresses its gateway (docs/compatibility.md#5.5).

use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;

use super::config::Settings;
use crate::cni::error::{Code, coded, detailed};
use crate::cni::result::{CniResult, Ip, Route, same_family};
use crate::net::route::{self, MAIN_TABLE};
use crate::plugins::layer3::{self, SCOPE_LINK};

/// Index of the container's end in the result's interfaces.
pub const CONTAINER_INDEX: usize = 2;

/// The layer-3 part of an attachment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// The result's addresses: IPAM's, with gateways filled in.
    pub ips: Vec<Ip>,
    /// The result's routes: IPAM's, with the default route that was asked for.
    pub routes: Vec<Route>,
    /// What the bridge, or the interface of its VLAN, must have, IPv4 first.
    pub gateway_addresses: Vec<IpNet>,
    /// The routes as the kernel is told.
    pub container_routes: Vec<route::Route>,
}

impl Plan {
    /// Decides what to do with what IPAM returned.
    ///
    /// # Errors
    /// When IPAM returned no address.
    pub fn new(settings: &Settings, ipam: &CniResult) -> Result<Self> {
        layer3::check_addresses(ipam, settings.mtu)?;
        let mut plan = Self {
            ips: ipam.ips.clone(),
            routes: ipam.routes.clone(),
            ..Self::default()
        };
        let mut default_done = Vec::new();
        for ip in &mut plan.ips {
            ip.interface = Some(CONTAINER_INDEX);
            if settings.is_gateway && ip.gateway.is_none() {
                ip.gateway = Some(first_host(ip.address)?);
            }
            let Some(gateway) = ip.gateway else { continue };
            let v4 = gateway.is_ipv4();
            if settings.is_default_gateway && !default_done.contains(&v4) {
                default_done.push(v4);
                ensure_default(&mut plan.routes, gateway);
            }
            if settings.is_gateway
                && let Ok(address) = IpNet::new(gateway, ip.address.prefix_len())
                && !plan.gateway_addresses.contains(&address)
            {
                plan.gateway_addresses.push(address);
            }
        }
        plan.gateway_addresses
            .sort_by_key(|address| address.addr().is_ipv6());
        plan.container_routes = plan
            .routes
            .iter()
            .map(|route| layer3::for_kernel(route, &plan.ips))
            .collect();
        Ok(plan)
    }
}

/// The first address of the network after its own, as the reference chooses gateways.
fn first_host(net: IpNet) -> Result<IpAddr> {
    let successor = match net.network() {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|n| IpAddr::V6(n.into())),
    };
    successor.ok_or_else(|| {
        coded(
            Code::Config,
            format!(
                "isGateway: there is no address after {} for a gateway",
                net.network()
            ),
        )
        .into()
    })
}

/// Makes `routes` hold one default route of the gateway's family. A default route that
/// IPAM returned is the one that was asked for, with or without an explicit gateway, if
/// it is where packets look for one: in the main table, and not on the link.
fn ensure_default(routes: &mut Vec<Route>, gateway: IpAddr) {
    let existing = routes
        .iter_mut()
        .filter(|route| route.is_default() && same_family(route.dst.addr(), gateway))
        .filter(|route| route.table.is_none_or(|table| table == MAIN_TABLE))
        .find(|route| route.scope.is_none_or(|scope| scope < SCOPE_LINK));
    if let Some(route) = existing {
        route.gw.get_or_insert(gateway);
        return;
    }
    let default = match gateway {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    };
    routes.push(Route::new(default, Some(gateway)));
}

/// What must change so that an interface has the gateways' addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddressChanges {
    pub remove: Vec<IpNet>,
    pub add: Vec<IpNet>,
}

/// Compares the `existing` addresses of `gateway`, the bridge or the interface of a VLAN,
/// with those it must have. Another IPv4
/// address, or an IPv6 address of an overlapping network, is in the way: it belongs to
/// another network there, or to an older configuration of this one.
///
/// # Errors
/// Code 7 naming both addresses, the interface and `forceAddress`.
pub fn gateway_addresses(
    settings: &Settings,
    gateway: &str,
    existing: &[IpNet],
    wanted: &[IpNet],
) -> Result<AddressChanges> {
    // The sentences that people search for.
    let what = if gateway == settings.bridge {
        "bridge addr"
    } else {
        "vlan interface for bridge with addr"
    };
    let mut changes = AddressChanges::default();
    for address in wanted {
        if existing.contains(address) {
            continue;
        }
        let in_the_way = existing
            .iter()
            .filter(|other| !wanted.contains(other))
            .filter(|other| match (address, other) {
                (IpNet::V4(_), IpNet::V4(_)) => true,
                (IpNet::V6(a), IpNet::V6(b)) => {
                    a.contains(&b.network()) || b.contains(&a.network())
                }
                _ => false,
            });
        for other in in_the_way {
            if !settings.force_address {
                return Err(detailed(
                    Code::Config,
                    format!(
                        "failed to set {what}: \"{gateway}\" already has an IP address different from {address}"
                    ),
                    format!(
                        "{gateway} has {other}, this network's gateway is {address}: \
                         give the network a bridge of its own, correct its subnet, \
                         or set \"forceAddress\": true to replace {other}"
                    ),
                ));
            }
            if !changes.remove.contains(other) {
                changes.remove.push(*other);
            }
        }
        changes.add.push(*address);
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    use crate::cni::skel::Call;
    use crate::cni::version::Version;

    fn settings(gateway: bool, default: bool) -> Settings {
        let config = json!({
            "name": "n", "isGateway": gateway, "isDefaultGateway": default,
            "ipam": {"type": "host-local"},
        });
        Settings::resolve(&Call::to_add(&config.to_string(), "").unwrap()).unwrap()
    }

    fn ipam(value: &serde_json::Value) -> CniResult {
        CniResult::parse(value, Version::NEWEST).unwrap()
    }

    /// The plan's routes, as the kernel is told them.
    fn routes(settings: &Settings, value: &serde_json::Value) -> Vec<String> {
        let plan = Plan::new(settings, &ipam(value)).unwrap();
        plan.container_routes
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn no_address_is_an_error() {
        assert!(Plan::new(&settings(true, false), &CniResult::default()).is_err());
    }

    #[test]
    fn gateways_are_filled_in_only_for_a_gateway() {
        let value = json!({"ips": [{"address": "10.1.0.5/16"}, {"address": "fd00::5/64"}]});
        let plan = Plan::new(&settings(false, false), &ipam(&value)).unwrap();
        assert!(plan.ips.iter().all(|ip| ip.gateway.is_none()));
        assert!(plan.gateway_addresses.is_empty());
        let plan = Plan::new(&settings(true, false), &ipam(&value)).unwrap();
        assert_eq!(
            plan.gateway_addresses,
            [net("10.1.0.1/16"), net("fd00::1/64")]
        );
        assert!(plan.ips.iter().all(|ip| ip.interface == Some(2)));
        assert!(plan.routes.is_empty());
    }

    #[test]
    fn one_default_route_a_family() {
        let gateway = json!({"ips": [
            {"address": "10.1.0.5/16", "gateway": "10.1.0.1"},
            {"address": "10.2.0.5/16", "gateway": "10.2.0.1"},
            {"address": "fd00::5/64", "gateway": "fd00::1"},
        ]});
        let appended = ["0.0.0.0/0 via 10.1.0.1", "::/0 via fd00::1"];
        assert_eq!(routes(&settings(true, true), &gateway), appended);
        // What the reference fails on: a default route without a gateway.
        let mut without = gateway.clone();
        without["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
        assert_eq!(routes(&settings(true, true), &without), appended);
        let plan = Plan::new(&settings(true, true), &ipam(&without)).unwrap();
        assert_eq!(plan.routes[0].gw, "10.1.0.1".parse().ok());
        // One that nobody looks up is not the one.
        without["routes"] =
            json!([{"dst": "0.0.0.0/0", "table": 100}, {"dst": "::/0", "scope": 253}]);
        assert_eq!(
            routes(&settings(true, true), &without),
            [
                "0.0.0.0/0 via 10.1.0.1 table 100",
                "::/0 scope 253",
                "0.0.0.0/0 via 10.1.0.1",
                "::/0 via fd00::1",
            ]
        );
        // One through another gateway is respected.
        let mut other = gateway;
        other["routes"] = json!([{"dst": "0.0.0.0/0", "gw": "10.1.0.9"}]);
        assert_eq!(
            routes(&settings(true, true), &other),
            ["0.0.0.0/0 via 10.1.0.9", "::/0 via fd00::1"]
        );
    }

    #[test]
    fn routes_for_the_kernel() {
        let value = json!({
            "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1"}, {"address": "fd00::5/64"}],
            "routes": [
                {"dst": "10.9.0.0/16"},
                {"dst": "10.8.0.0/16", "gw": "10.1.0.7", "priority": 5, "table": 1000},
                {"dst": "10.7.0.0/16", "scope": 253},
                {"dst": "fd01::/64"},
            ],
        });
        assert_eq!(
            routes(&settings(false, false), &value),
            [
                "10.9.0.0/16 via 10.1.0.1",
                "10.8.0.0/16 via 10.1.0.7 metric 5 table 1000",
                "10.7.0.0/16 scope 253",
                "fd01::/64",
            ]
        );
    }

    #[test]
    fn addresses_in_the_way() {
        let decide = |existing: &[&str], wanted: &[&str], force| {
            let parse = |list: &[&str]| list.iter().map(|text| net(text)).collect::<Vec<_>>();
            let mut settings = settings(true, false);
            settings.force_address = force;
            gateway_addresses(&settings, "cni0", &parse(existing), &parse(wanted))
        };
        let adds = |list: &[&str]| list.iter().map(|text| net(text)).collect::<Vec<_>>();
        // Nothing there, the same there, an unrelated IPv6 network there.
        assert_eq!(
            decide(&[], &["10.1.0.1/24"], false).unwrap().add,
            adds(&["10.1.0.1/24"])
        );
        assert_eq!(
            decide(&["10.1.0.1/24"], &["10.1.0.1/24"], false).unwrap(),
            AddressChanges::default()
        );
        assert_eq!(
            decide(&["fe80::1/64", "fd01::1/64"], &["fd00::1/64"], false)
                .unwrap()
                .remove,
            []
        );
        // Two gateways of one network do not stand in each other's way.
        let two = ["10.1.0.1/24", "10.2.0.1/24"];
        assert_eq!(decide(&two[..1], &two, false).unwrap().add, adds(&two[1..]));
        // Order in which the kernel lists them does not matter.
        assert_eq!(
            decide(&["10.9.0.1/24", "10.1.0.1/24"], &["10.1.0.1/24"], false).unwrap(),
            AddressChanges::default()
        );
        for (existing, wanted) in [("10.9.0.1/24", "10.1.0.1/24"), ("fd00::9/48", "fd00::1/64")] {
            let error = decide(&[existing], &[wanted], false).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "failed to set bridge addr: \"cni0\" already has an IP address different from {wanted}"
                )
            );
            let details = error.root_cause().to_string();
            for word in ["cni0", existing, wanted, "forceAddress"] {
                assert!(details.contains(word), "{details}");
            }
            let forced = decide(&[existing], &[wanted], true).unwrap();
            assert_eq!(
                (forced.remove, forced.add),
                (adds(&[existing]), adds(&[wanted]))
            );
        }
    }
}
