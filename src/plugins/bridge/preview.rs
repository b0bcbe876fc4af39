//! What ADD would do, told (see `cni::preview`).

use anyhow::Result;
use ipnet::IpNet;

use super::config::{Settings, vlan_gateway_name};
use super::plan::{self, Plan};
use super::{Looked, vlan};
use crate::cni::delegate;
use crate::cni::preview::{Preview, Subject};
use crate::cni::result::CniResult;
use crate::cni::skel::Call;
use crate::net::netlink::Netlink;
use crate::net::{addr, link};
use crate::netfilter;
use crate::plugins::host_end::Identity;
use crate::plugins::owner::owner_of;
use crate::plugins::{masquerade, preview as words};

/// Describes an ADD in the order in which it happens.
///
/// # Errors
/// Those of ADD that can be foreseen.
pub fn preview(call: &Call, preview: &mut Preview) -> Result<Option<CniResult>> {
    let Looked {
        settings,
        sides,
        existing,
    } = Looked::at(call)?;
    let ipam = match &settings.ipam {
        Some(plugin) => delegate::preview(call, plugin, preview)?,
        None => None,
    };
    let plan = match &ipam {
        Some(ipam) => Plan::new(&settings, ipam)?,
        None => Plan::default(),
    };
    let bridge = &settings.bridge;
    match &existing {
        None => preview.tell(Subject::Link, format!("{bridge} (bridge)")),
        Some(existing) if !existing.is_up => {
            preview.tell(Subject::Link, format!("{bridge} (bridge): set up"));
        }
        Some(_) => {}
    }
    let gateway = match settings.gateway_vlan() {
        Some(vlan) => vlan_gateway_name(bridge, vlan),
        None => bridge.clone(),
    };
    if gateway != *bridge && link::by_name(&sides.host, &gateway)?.is_none() {
        let text = format!("{gateway} (veth), its other end a port of {bridge}");
        preview.tell(Subject::Link, text);
    }
    gateways(&sides.host, &settings, &gateway, &plan, preview)?;

    words::pair(call, &role(&settings), settings.mac, settings.mtu, preview);
    if settings.spoof_check {
        spoof_check(call, &settings, preview)?;
    }
    words::layer3(call, &plan.ips, &plan.container_routes, preview);
    if settings.ipam.is_some() && ipam.is_none() {
        words::unknown_addresses(preview);
        return Ok(None);
    }
    if settings.masquerade && ipam.is_some() {
        let rules = masquerade::Wanted::new(call, settings.backend, &plan.ips)?;
        preview.rules(rules.missing()?);
    }
    let interfaces = words::interfaces(call, &[bridge, &Identity::of(call).name]);
    Ok(Some(CniResult {
        interfaces,
        ips: plan.ips,
        routes: plan.routes,
        ..ipam.unwrap_or_default()
    }))
}

/// What the host's end is, in words.
fn role(settings: &Settings) -> String {
    let mut role = format!("port of {}", settings.bridge);
    let flags = [
        (settings.hairpin, ", hairpin"),
        (settings.isolated, ", isolated"),
    ];
    role.extend(
        flags
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, word)| word),
    );
    let vlans = vlan::memberships(settings.vlans.as_ref());
    role.extend(vlans.iter().map(|(id, how)| format!(", VLAN {id} {how}")));
    role
}

/// The gateways' addresses that are not there, and what is in their way.
fn gateways(
    host: &Netlink,
    settings: &Settings,
    gateway: &str,
    plan: &Plan,
    preview: &mut Preview,
) -> Result<()> {
    let wanted = &plan.gateway_addresses;
    let existing: Vec<IpNet> = match link::by_name(host, gateway)? {
        Some(link) => {
            let addresses = addr::list(host, link.index)?.into_iter();
            addresses.map(|address| address.net).collect()
        }
        None => Vec::new(),
    };
    let changes = plan::gateway_addresses(settings, gateway, &existing, wanted)?;
    for address in changes.remove {
        preview.tell(
            Subject::Address,
            format!("{address} no longer on {gateway}"),
        );
    }
    for address in changes.add {
        preview.tell(Subject::Address, format!("{address} on {gateway}"));
    }
    words::forwarding(wanted.iter().map(IpNet::addr), preview)
}

fn spoof_check(call: &Call, settings: &Settings, preview: &mut Preview) -> Result<()> {
    let host_end = Identity::of(call).name;
    let Some(mac) = settings.mac else {
        let text = format!("{host_end} takes nothing but the container's own hardware address");
        preview.tell(Subject::Rule, text);
        return Ok(());
    };
    let rules = netfilter::spoof_check::missing(&owner_of(call), &host_end, mac)?;
    preview.rules(rules);
    Ok(())
}
