//! CHECK of the container's end of a veth pair: what it should be like according to the
//! result of ADD, and what it is like.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::layer3::own_addresses;
use super::veth::Sides;
use crate::cni::error::{Code, coded};
use crate::cni::result::{CniResult, Interface, Ip};
use crate::cni::skel::Call;
use crate::cni::version::Shape;
use crate::fsutil;
use crate::net::addr::{self, Address};
use crate::net::link::{self, Link};
use crate::net::link_sysctl::LinkSysctl;
use crate::net::mac::Mac;
use crate::net::route::{self, Route};
use crate::net::sysctl;

/// What CHECK sees of it.
#[derive(Debug, Default)]
pub struct Observed {
    /// The interface itself.
    pub link: Option<Link>,
    /// Its other end on the host, if it is a veth.
    pub host_end: Option<Link>,
    addresses: Vec<Address>,
    routes: Vec<Route>,
}

/// An attachment that is there, and what ADD said of it.
#[derive(Debug)]
pub struct Existing {
    /// `prevResult`.
    pub result: CniResult,
    /// Which of its interfaces is the container's end.
    pub interface: usize,
    /// The other end.
    pub host_end: Link,
}

impl Existing {
    /// The addresses of the container's end.
    pub fn own_ips(&self) -> Vec<Ip> {
        own_addresses(&self.result, self.interface)
            .cloned()
            .collect()
    }
}

/// The attachment that `call` is about, at any version.
///
/// # Errors
/// When it is not there, or `prevResult` is not about it.
pub fn existing(call: &Call) -> Result<Existing> {
    let (result, interface) = match call.config.version.shape() {
        // Results of these versions are about one interface, and do not name it.
        Shape::OnePerFamily => (required_result(call)?, 0),
        _ => own_result(call)?,
    };
    let sides = Sides::open(call)?;
    let ifname = &call.invocation.attachment.ifname;
    let host_end = match link::by_name(&sides.container, ifname)? {
        Some(end) => find_host_end(&sides, &end)?,
        None => None,
    };
    let host_end = host_end
        .with_context(|| format!("interface {ifname} of the container has no other end here"))?;
    Ok(Existing {
        result,
        interface,
        host_end,
    })
}

/// `prevResult`, and which of its interfaces is the container's end.
///
/// # Errors
/// When there is no result, or it knows no such interface.
pub fn own_result(call: &Call) -> Result<(CniResult, usize)> {
    let result = required_result(call)?;
    let netns = call.invocation.netns.as_deref().unwrap_or_default();
    let ifname = &call.invocation.attachment.ifname;
    let position = |is_sandbox: &dyn Fn(&str) -> bool| {
        let mut interfaces = result.interfaces.iter();
        interfaces.position(|i| i.name == *ifname && is_sandbox(&i.sandbox))
    };
    // A path that leads nowhere any more, such as that of a process, says nothing: the
    // namespace lives on under another.
    let is_lost = |path: &str| !path.is_empty() && !Path::new(path).exists();
    let interface = position(&|path| is_sandbox(path, netns))
        .or_else(|| position(&is_lost))
        .with_context(|| format!("prevResult has no interface {ifname} with sandbox {netns}"))?;
    Ok((result, interface))
}

fn required_result(call: &Call) -> Result<CniResult> {
    call.config
        .prev_result()?
        .context(coded(Code::Config, "Required prevResult missing"))
}

/// The other end of the container's `end`, on the host. An index means something in its
/// own namespace only: it is our pair if it points back.
fn find_host_end(sides: &Sides, end: &Link) -> Result<Option<Link>> {
    let Some(peer) = end.peer.filter(|_| end.kind == "veth") else {
        return Ok(None);
    };
    let host_end = link::by_index(&sides.host, peer)?;
    Ok(host_end.filter(|host_end| host_end.kind == "veth" && host_end.peer == Some(end.index)))
}

/// Whether a result's `sandbox` is the namespace at `netns`, however it is spelt.
fn is_sandbox(sandbox: &str, netns: &str) -> bool {
    sandbox == netns || fsutil::is_same_file(Path::new(sandbox), Path::new(netns))
}

/// Looks at the interface called `ifname`, and at the routes of the result's families.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn observe(sides: &Sides, ifname: &str, result: &CniResult) -> Result<Observed> {
    let mut observed = Observed {
        link: link::by_name(&sides.container, ifname)?,
        ..Observed::default()
    };
    let Some(end) = &observed.link else {
        return Ok(observed);
    };
    observed.host_end = find_host_end(sides, end)?;
    observed.addresses = addr::list(&sides.container, end.index)?;
    // One dump a family, through whichever link: routes may be another plugin's.
    let families: BTreeMap<bool, IpAddr> = result
        .routes
        .iter()
        .map(|route| route.dst.addr())
        .map(|ip| (ip.is_ipv4(), ip))
        .collect();
    for sample in families.into_values() {
        observed
            .routes
            .extend(route::list(&sides.container, sample)?);
    }
    Ok(observed)
}

/// Why the host passes nothing on that comes in by `link`, its gateway for containers with
/// addresses like `ips`, in words.
///
/// # Errors
/// When a sysctl cannot be read.
pub fn lost_forwarding(link: &Link, ips: impl Iterator<Item = IpAddr>) -> Result<Vec<String>> {
    let ips: Vec<IpAddr> = ips.collect();
    let mut differences = Vec::new();
    for (all, of_link, is_ipv4) in [
        (
            "ipv4/ip_forward",
            LinkSysctl::v4(&link.name, "forwarding"),
            true,
        ),
        (
            "ipv6/conf/all/forwarding",
            LinkSysctl::v6(&link.name, "forwarding"),
            false,
        ),
    ] {
        let is_needed = ips.iter().any(|ip| ip.is_ipv4() == is_ipv4);
        if !is_needed || sysctl::effective(of_link) != Some(0) {
            continue;
        }
        let is_all = sysctl::read(all)?.as_deref() == Some("0");
        let key = if is_all {
            all.to_owned()
        } else {
            of_link.key()
        };
        differences.push(format!("host: expected net/{key} 1, found 0"));
    }
    Ok(differences)
}

/// How the interface differs from number `interface` of the result, in words.
pub fn differences(
    result: &CniResult,
    interface: usize,
    observed: &Observed,
    must_be_up: bool,
) -> Vec<String> {
    let mut differences = Vec::new();
    let Some(expected) = result.interfaces.get(interface) else {
        return differences;
    };
    let name = &expected.name;
    let Some(end) = &observed.link else {
        differences.push(format!(
            "interface {name}: expected in {}, found no such link",
            expected.sandbox
        ));
        return differences;
    };
    compare_link(expected, end, must_be_up, &mut differences);
    if end.kind == "veth" && observed.host_end.is_none() {
        differences.push(format!(
            "interface {name}: expected the other end on the host, found none there"
        ));
    }
    if let Some(host_end) = observed.host_end.as_ref().filter(|end| !end.is_up) {
        differences.push(format!(
            "interface {name}: expected its other end {} up, found down",
            host_end.name
        ));
    }
    compare_addresses(
        result,
        interface,
        name,
        &observed.addresses,
        &mut differences,
    );
    compare_routes(result, name, &observed.routes, &mut differences);
    differences
}

fn compare_link(expected: &Interface, end: &Link, must_be_up: bool, differences: &mut Vec<String>) {
    let name = &expected.name;
    let mut differ = |what: &str, expected: &str, found: &str| {
        differences.push(format!(
            "interface {name}: expected {what} {expected}, found {found}"
        ));
    };
    if end.kind != "veth" {
        differ(
            "link type",
            "veth",
            if end.kind.is_empty() {
                "none"
            } else {
                &end.kind
            },
        );
        return;
    }
    // `tuning` repeats in the result how the operator wrote the address.
    if !expected.mac.is_empty()
        && expected.mac != end.mac
        && Mac::parse(&expected.mac).is_none_or(|mac| mac.to_string() != end.mac)
    {
        differ("MAC address", &expected.mac, &end.mac);
    }
    if expected.mtu != 0 && expected.mtu != end.mtu {
        differ("MTU", &expected.mtu.to_string(), &end.mtu.to_string());
    }
    if must_be_up && !end.is_up {
        differ("state", "up", "down");
    }
}

/// The addresses that `interface` of the result lacks.
fn compare_addresses(
    result: &CniResult,
    interface: usize,
    name: &str,
    addresses: &[Address],
    differences: &mut Vec<String>,
) {
    for ip in own_addresses(result, interface) {
        let found = addresses.iter().find(|a| a.net == ip.address);
        match found {
            None => {
                let all: Vec<IpNet> = addresses.iter().map(|a| a.net).collect();
                differences.push(format!(
                    "interface {name}: expected address {}, found {}",
                    ip.address,
                    list(&all)
                ));
            }
            Some(address) if address.is_duplicate => differences.push(format!(
                "interface {name}: address {} is in use by somebody else on the network",
                ip.address
            )),
            Some(_) => {}
        }
    }
}

/// The routes of the result that are missing or go elsewhere.
fn compare_routes(result: &CniResult, name: &str, routes: &[Route], differences: &mut Vec<String>) {
    for route in &result.routes {
        let candidates: Vec<&Route> = routes
            .iter()
            .filter(|r| r.dst.trunc() == route.dst.trunc())
            // A chained plugin may have moved it to a table of its own.
            .filter(|r| route.table.is_none_or(|table| table == r.table))
            .collect();
        let table = route
            .table
            .map(|t| format!(" in table {t}"))
            .unwrap_or_default();
        if candidates.is_empty() {
            differences.push(format!(
                "interface {name}: expected a route to {}{table}, found none",
                route.dst
            ));
            continue;
        }
        // Default routes are other plugins' favourite to replace.
        let Some(gateway) = route.gw.filter(|_| !route.is_default()) else {
            continue;
        };
        if !candidates.iter().any(|r| r.gateway == Some(gateway)) {
            let found: Vec<String> = candidates.iter().map(ToString::to_string).collect();
            differences.push(format!(
                "interface {name}: expected a route to {} via {gateway}{table}, found {}",
                route.dst,
                found.join(", ")
            ));
        }
    }
}

/// For messages.
pub fn list(nets: &[IpNet]) -> String {
    if nets.is_empty() {
        return "none".to_owned();
    }
    let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
    nets.join(", ")
}
