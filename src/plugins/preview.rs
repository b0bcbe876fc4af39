//! What the plugins that make a veth pair say of it in a preview of ADD.

use std::net::IpAddr;

use anyhow::Result;

use super::host_end::Identity;
use crate::cni::preview::{Preview, Subject};
use crate::cni::result::{Interface, Ip};
use crate::cni::skel::Call;
use crate::net::mac::Mac;
use crate::net::netlink::Netlink;
use crate::net::route::Route;
use crate::net::sysctl;

/// The pair: its host's end, which has a `role` there, and the container's.
pub fn pair(call: &Call, role: &str, mac: Option<Mac>, mtu: Option<u32>, preview: &mut Preview) {
    let host_end = Identity::of(call).name;
    let ifname = &call.invocation.attachment.ifname;
    let netns = call.invocation.netns.as_deref().unwrap_or_default();
    preview.tell(Subject::Link, format!("{host_end} (veth), {role}"));
    let mac = mac.map(|mac| format!(", mac {mac}")).unwrap_or_default();
    let mtu = mtu.map(|mtu| format!(", mtu {mtu}")).unwrap_or_default();
    let text = format!("{ifname} in {netns}, its other end{mac}{mtu}");
    preview.tell(Subject::Link, text);
}

/// The container's end gets addresses and routes.
pub fn layer3(call: &Call, ips: &[Ip], routes: &[Route], preview: &mut Preview) {
    let ifname = &call.invocation.attachment.ifname;
    for ip in ips {
        let text = format!("{} on {ifname} in the container", ip.address);
        preview.tell(Subject::Address, text);
    }
    for route in routes {
        preview.tell(Subject::Route, format!("{route} in the container"));
    }
}

/// The host is going to forward packets of the families of `ips`, unless it does.
///
/// # Errors
/// When a sysctl cannot be read.
pub fn forwarding(ips: impl Iterator<Item = IpAddr>, preview: &mut Preview) -> Result<()> {
    for (key, value) in sysctl::missing_forwarding(&Netlink::open()?, ips)? {
        preview.tell(Subject::Sysctl, format!("net/{key} = {value}"));
    }
    Ok(())
}

/// What follows from the answer of an IPAM plugin that does not tell it beforehand.
pub fn unknown_addresses(preview: &mut Preview) {
    let text = "addresses, routes and rules follow from what the IPAM plugin answers";
    preview.tell(Subject::Note, text);
}

/// The interfaces of a result, as far as they are known: those of these names on the host,
/// then the container's.
pub fn interfaces(call: &Call, on_host: &[&str]) -> Vec<Interface> {
    let named = |name: &str, sandbox: &str| Interface {
        name: name.to_owned(),
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    };
    let netns = call.invocation.netns.as_deref().unwrap_or_default();
    let on_host = on_host.iter().map(|name| named(name, ""));
    let container_end = named(&call.invocation.attachment.ifname, netns);
    on_host.chain([container_end]).collect()
}
