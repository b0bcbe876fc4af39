//! STATUS: would ADD fail for every container? Looks in ADD's order, and makes nothing.

use anyhow::Result;
use ipnet::IpNet;

use super::config::{Settings, vlan_gateway_name};
use super::plan::{self, Plan};
use super::{base, vlan};
use crate::cni::delegate;
use crate::cni::error::{Code, detailed, not_available, not_available_and_limited};
use crate::cni::invocation::Command;
use crate::cni::skel::Call;
use crate::net::link::{self, Link};
use crate::net::netlink::Netlink;
use crate::net::privilege::require_root;
use crate::net::{addr, section};
use crate::netfilter::{self, Purpose};
use crate::plugins::outlook;
use crate::plugins::sample::Sample;

/// Looks for what would fail every ADD with `settings`.
///
/// # Errors
/// Code 50 or 51, with the reason and what to do about it.
pub fn check(call: &Call, settings: &Settings) -> Result<()> {
    require_root()?;
    let host = Netlink::open()?;
    let bridge =
        base::find_bridge(&host, &settings.bridge).map_err(|error| not_available(&error))?;
    vlan::require_filtering(&host, settings, bridge.as_ref())
        .map_err(|error| not_available(&error))?;
    let ipam = settings.ipam.as_ref();
    let sample = ipam.and_then(|ipam| outlook::sample_of(call, ipam));
    // Without IPAM there is nothing to masquerade.
    if settings.masquerade && ipam.is_some() {
        outlook::require_rules(Purpose::Masquerade, settings.backend, sample.as_ref())?;
    }
    if settings.spoof_check && !netfilter::has_nf_tables() {
        return Err(detailed(
            Code::NotAvailable,
            "macspoofchk cannot be kept: nf_tables cannot be used",
            "load the kernel module nf_tables, and give the runtime CAP_NET_ADMIN",
        ));
    }
    if bridge.is_none() {
        link::require_kind(&host, "bridge")?;
    }
    if settings.gateway_vlan().is_some() {
        section::check_writable()?;
    }
    link::require_kind(&host, "veth")?;
    if let Some(ipam) = ipam {
        delegate::run(call, ipam, Command::Status)?;
    }
    match sample {
        Some(sample) => check_layer3(&host, settings, bridge, &sample),
        None => Ok(()),
    }
}

/// Whether containers with addresses like those of `sample` can be given them, and a gateway.
fn check_layer3(
    host: &Netlink,
    settings: &Settings,
    bridge: Option<Link>,
    sample: &Sample,
) -> Result<()> {
    let plan = Plan::new(settings, &sample.result).map_err(|error| not_available(&error))?;
    outlook::require_ipv6(sample)?;
    let gateway = match settings.gateway_vlan() {
        Some(vlan) => link::by_name(host, &vlan_gateway_name(&settings.bridge, vlan))?,
        None => bridge,
    };
    let wanted = &plan.gateway_addresses;
    outlook::require_ipv6_on(gateway.as_ref(), wanted.iter().map(IpNet::addr))?;
    if let Some(gateway) = gateway.filter(|_| sample.is_typical) {
        let existing: Vec<IpNet> = addr::list(host, gateway.index)?
            .into_iter()
            .map(|address| address.net)
            .collect();
        plan::gateway_addresses(settings, &gateway.name, &existing, wanted)
            .map_err(|error| not_available_and_limited(&error))?;
    }
    outlook::require_forwarding(host, wanted.iter().map(IpNet::addr))
}
