//! `bridge`: connects a container to a Linux bridge with a veth pair.
//!
//! Behaviour: the reference's bridge v1.9.1 (behaviour 5). Addresses come from the IPAM
//! plugin named in the configuration; without one the attachment is layer 2 only.

mod apply;
mod check;
mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod host_end;
mod plan;
mod rules;
mod vlan;
mod vlan_gateway;

use anyhow::Result;
use ipnet::IpNet;
use serde_json::Value;

use crate::cni::collector::Collector;
use crate::cni::delegate;
use crate::cni::error::{Code, all, detailed, not_available};
use crate::cni::invocation::Command;
use crate::cni::json::Problem;
use crate::cni::result::{CniResult, Interface};
use crate::cni::skel::{Call, Plugin};
use crate::cni::version::Shape;
use crate::log;
use crate::net::addr;
use crate::net::link::{self, Link};
use crate::net::netlink::Netlink;
use crate::net::netns::Netns;
use crate::netfilter::nftables::{self, Nftables};
use crate::netfilter::{self, Owner};
use crate::undo::Undo;

use apply::Sides;
use config::Settings;
use host_end::Identity;
use plan::Plan;
use rules::{Rules, Wanted};

/// The applet.
#[derive(Debug)]
pub struct Bridge;

impl Plugin for Bridge {
    fn add<'a>(&self, call: &'a Call, undo: &mut Undo<'a>) -> Result<CniResult> {
        let settings = Settings::resolve(call)?;
        refuse_inexpressible(call, &settings)?;
        if settings.spoof_check {
            Nftables::fits_spoof_check(&Owner::of(call))?;
        }
        let sides = Sides::open(call)?;
        apply::refuse_existing(&sides, call)?;
        let existing = apply::find_bridge(&sides.host, &settings.bridge)?;
        vlan::require_filtering(&sides.host, &settings, existing.as_ref())?;

        // The address first: the rest is quick to undo, and most failures are here.
        let ipam = match &settings.ipam {
            Some(plugin) => Some(delegate::add(call, plugin, undo)?),
            None => None,
        };
        let plan = match &ipam {
            Some(ipam) => Plan::new(&settings, ipam)?,
            None => Plan::default(),
        };

        let bridge = apply::ensure_bridge(&sides.host, &settings)?;
        let vlan = settings.gateway_vlan();
        let lock = vlan.map(|_| vlan_gateway::lock()).transpose()?;
        let gateway = match vlan {
            Some(vlan) => vlan_gateway::ensure(&sides.host, &settings, &bridge, vlan, undo)?,
            None => bridge.clone(),
        };
        apply::ensure_gateways(
            &sides.host,
            &settings,
            &gateway,
            &plan.gateway_addresses,
            undo,
        )?;
        let pair = apply::create_pair(&sides, call, &settings, undo)?;
        let bridge = apply::attach(&sides, call, &settings, &bridge, &pair)?;
        if vlan.is_some() {
            vlan_gateway::fit_mtu(&sides.host, &bridge, &gateway)?;
        }
        drop(lock);
        if settings.spoof_check {
            rules::check_spoofing(call, &pair.host_end, &pair.container_end.mac, undo)?;
        }
        if ipam.is_some() {
            apply::configure_container(&sides, &settings, &pair.container_end, &plan)?;
            if settings.masquerade {
                rules::masquerade(call, &settings, &plan.ips, undo)?;
            }
        } else if settings.container_end_up {
            apply::set_up(&sides.container, &pair.container_end)?;
        }
        if settings.container_end_up {
            apply::wait_for_port(&sides.host, &pair.host_end)?;
            // A bridge whose last port has gone gets its carrier back a moment after the
            // next one has.
            apply::wait_for_port(&sides.host, &bridge)?;
            apply::announce(&sides, &gateway, &pair.container_end, &plan);
        }

        let ipam = ipam.unwrap_or_default();
        let on_host = |link: Link| Interface {
            name: link.name,
            mac: link.mac,
            ..Interface::default()
        };
        let container_end = Interface {
            name: pair.container_end.name,
            mac: pair.container_end.mac,
            // Told only where it was asked for, as CHECK will insist on it.
            mtu: settings
                .mtu
                .map_or(0, |_| pair.container_end.mtu.min(bridge.mtu)),
            sandbox: call.invocation.netns.clone().unwrap_or_default(),
            ..Interface::default()
        };
        let mut interfaces = vec![on_host(bridge), on_host(pair.host_end), container_end];
        if vlan.is_some() {
            interfaces.push(on_host(gateway));
        }
        Ok(CniResult {
            interfaces,
            ips: plan.ips,
            routes: plan.routes,
            dns: settings.dns.unwrap_or(ipam.dns),
            extra: ipam.extra,
        })
    }

    fn del(&self, call: &Call) -> Result<()> {
        let host = Netlink::open()?;
        let mut done: Vec<Result<()>> = Vec::new();
        // The link and its namespace may be gone, half gone, or somebody else's by now.
        let link = find_container_end(call, &host).unwrap_or_else(|error| {
            done.push(Err(error));
            None
        });
        let rules = Rules::of(call);
        let known = known_addresses(call, link.as_ref());
        std::thread::scope(|scope| {
            // Deleting a link and deleting rules each wait for the kernel: let them wait
            // at the same time.
            let cleaner = rules
                .any()
                .then(|| scope.spawn(|| rules::remove(call, rules, &known)));
            // No address is free while an interface still has it; but the link stays
            // until IPAM is done, which may want to talk over it.
            if let Some((container, end)) = &link {
                done.push(remove_addresses(container, end));
            }
            done.push(call.config.ipam_type().and_then(|ipam| match ipam {
                Some(plugin) => delegate::run(call, &plugin, Command::Del),
                None => Ok(()),
            }));
            if let Some((container, end)) = &link {
                done.push(link::delete(container, end.index));
            }
            done.push(Identity::of(call).delete(&host));
            // A panic ends the process in its hook: there is none to join.
            done.extend(cleaner.and_then(|cleaner| cleaner.join().ok()));
        });
        if let Ok(settings) = Settings::resolve(call) {
            done.push(vlan_gateway::remove_unused(&host, &settings));
        }
        all(done)
    }

    fn check(&self, call: &Call) -> Result<()> {
        let settings = Settings::resolve(call)?;
        if let Some(plugin) = &settings.ipam {
            delegate::run(call, plugin, Command::Check)?;
        }
        check::check(call, &settings)
    }

    fn status(&self, call: &Call) -> Result<()> {
        let settings = Settings::resolve(call)?;
        let host = Netlink::open()?;
        let usable = apply::find_bridge(&host, &settings.bridge)
            .and_then(|bridge| vlan::require_filtering(&host, &settings, bridge.as_ref()));
        if let Err(error) = usable {
            return Err(not_available(&error));
        }
        if settings.masquerade {
            netfilter::check_usable(settings.backend)?;
        }
        if settings.spoof_check && !nftables::is_usable() {
            return Err(detailed(
                Code::NotAvailable,
                "macspoofchk cannot be kept: nf_tables cannot be used",
                "load the kernel module nf_tables, and give the runtime CAP_NET_ADMIN",
            ));
        }
        match &settings.ipam {
            Some(plugin) => delegate::run(call, plugin, Command::Status),
            None => Ok(()),
        }
    }

    fn gc(&self, call: &Call, collector: &mut Collector) -> Result<()> {
        let valid = call.config.valid_attachments()?;
        let network = &call.config.network;
        // No address is free while an interface still has it.
        host_end::collect(network, &valid, collector);
        let released = call.config.ipam_type().and_then(|ipam| match ipam {
            Some(plugin) => delegate::gc(call, &plugin, collector),
            None => Ok(()),
        });
        collector.attempt(released);
        rules::collect(network, &valid, collector);
        let settings = Settings::resolve(call)?;
        let host = Netlink::open()?;
        collector.remove_together(
            || vlan_gateway::unused(&host, &settings),
            || vlan_gateway::remove_unused(&host, &settings),
        );
        Ok(())
    }

    fn missing_rules(&self, call: &Call) -> Result<Vec<String>> {
        rules_of(call)?.map_or(Ok(Vec::new()), |rules| rules.missing())
    }

    fn restore_rules(&self, call: &Call) -> Result<()> {
        rules_of(call)?.map_or(Ok(()), |rules| rules.ensure())
    }

    fn validate(&self, root: &str, document: &Value) -> Vec<Problem> {
        config::validate(root, document)
    }
}

/// The rules of an attachment that is there; `None` where the configuration asks for none.
fn rules_of(call: &Call) -> Result<Option<Wanted>> {
    let settings = Settings::resolve(call)?;
    if !settings.masquerade && !settings.spoof_check {
        return Ok(None);
    }
    check::rules(call, &settings).map(Some)
}

/// 0.1.0 and 0.2.0 cannot express a result without addresses: better said before
/// anything is made.
fn refuse_inexpressible(call: &Call, settings: &Settings) -> Result<()> {
    let version = call.config.version;
    if settings.ipam.is_some() || version.shape() != Shape::OnePerFamily {
        return Ok(());
    }
    Err(detailed(
        Code::Config,
        format!("cniVersion {version} cannot express an attachment without addresses"),
        "set \"cniVersion\" to 0.3.0 or newer, or configure \"ipam\"",
    ))
}

/// The container's end and a socket in its namespace; `None` when either is gone.
fn find_container_end(call: &Call, host: &Netlink) -> Result<Option<(Netlink, Link)>> {
    let Some(netns) = Netns::open_if_any(call.invocation.netns.as_deref())? else {
        return Ok(None);
    };
    let container = host.open_inside(&netns)?;
    let ifname = &call.invocation.attachment.ifname;
    match link::by_name(&container, ifname)? {
        Some(end) if end.kind != "veth" => {
            log::warn(&format!(
                "{ifname} in {} is not a veth and not ours: it stays",
                netns.path()
            ));
            Ok(None)
        }
        found => Ok(found.map(|end| (container, end))),
    }
}

/// The attachment's addresses: as ADD reported them, else as the link has them.
fn known_addresses(call: &Call, link: Option<&(Netlink, Link)>) -> Vec<IpNet> {
    if let Ok(Some(result)) = call.config.prev_result() {
        return result.ips.iter().map(|ip| ip.address).collect();
    }
    let listed = link.map(|(container, end)| addr::list(container, end.index));
    let listed = listed.and_then(Result::ok).unwrap_or_default();
    let mine = listed.into_iter().filter(|address| address.is_global);
    mine.map(|address| address.net).collect()
}

fn remove_addresses(container: &Netlink, end: &Link) -> Result<()> {
    for address in addr::list(container, end.index)? {
        if address.is_global {
            addr::delete(container, end.index, address.net)?;
        }
    }
    Ok(())
}
