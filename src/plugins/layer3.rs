//! Layer 3 of an attachment: what IPAM's result means for the container's interface.

use anyhow::Result;

use crate::cni::error::{Code, detailed};
use crate::cni::result::{CniResult, Ip, Route, same_family};
use crate::net::route::{self, MAIN_TABLE};

/// The smallest MTU that IPv6 runs on (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// From this scope on (`RT_SCOPE_LINK`, rtnetlink(7)) a destination is on the link
/// itself and a gateway would be refused.
pub const SCOPE_LINK: u8 = 253;

/// Refuses what no interface can be configured with: IPAM's result without any address,
/// or with an IPv6 address that `mtu` is too small for.
///
/// # Errors
/// Code 999 or 7.
pub fn check_addresses(ipam: &CniResult, mtu: Option<u32>) -> Result<()> {
    if ipam.ips.is_empty() {
        return Err(detailed(
            Code::Internal,
            "IPAM plugin returned missing IP config",
            "the plugin in \"ipam.type\" answered ADD without any address",
        ));
    }
    if let Some(mtu) = mtu.filter(|mtu| *mtu < IPV6_MIN_MTU)
        && ipam.ips.iter().any(|ip| ip.address.addr().is_ipv6())
    {
        return Err(detailed(
            Code::Config,
            format!("mtu: {mtu} is too small for IPv6"),
            format!(
                "IPAM returned an IPv6 address, and IPv6 needs {IPV6_MIN_MTU} bytes (RFC 8200)"
            ),
        ));
    }
    Ok(())
}

/// What is wrong with `mtu` for a veth, 0 being the kernel's choice. The kernel's own
/// message names neither key nor limit.
pub fn mtu_problem(mtu: u32) -> Option<String> {
    let fits = mtu == 0 || (68..=65535).contains(&mtu);
    (!fits).then(|| format!("{mtu} is not between 68 and 65535"))
}

/// A route without a gateway goes through the first gateway of its family, unless its
/// scope says that there is none.
pub fn for_kernel(route: &Route, ips: &[Ip]) -> route::Route {
    let scope = route.scope.unwrap_or(0);
    let gateway = route.gw.or_else(|| {
        ips.iter()
            .filter_map(|ip| ip.gateway)
            .find(|gateway| same_family(*gateway, route.dst.addr()))
            .filter(|_| scope < SCOPE_LINK)
    });
    route::Route {
        dst: route.dst,
        gateway,
        table: route.table.unwrap_or(MAIN_TABLE),
        priority: route.priority,
        // A route without next hop is on the link, whatever scope nobody asked for.
        scope: match route.scope {
            None if gateway.is_none() && route.dst.addr().is_ipv4() => SCOPE_LINK,
            _ => scope,
        },
        mtu: route.mtu,
        advmss: route.advmss,
        source: None,
    }
}

/// The addresses that the result gives to `interface`, or to none.
pub fn own_addresses(result: &CniResult, interface: usize) -> impl Iterator<Item = &Ip> {
    result
        .ips
        .iter()
        .filter(move |ip| ip.interface.is_none_or(|index| index == interface))
}
