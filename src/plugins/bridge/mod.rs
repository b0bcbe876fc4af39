//! `bridge`: connects a container to a Linux bridge with a veth pair.
//!
//! Behaviour: the reference's bridge v1.9.1 (docs/compatibility.md#5). Addresses come from the IPAM
//! plugin named in the configuration; without one the attachment is layer 2 only.

mod apply;
mod base;
mod check;
mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod plan;
mod preview;
mod ready;
mod rules;
mod status;
mod vlan;
mod vlan_gateway;

use anyhow::Result;
use config::Settings;
use plan::Plan;
use rules::Wanted;
use serde_json::Value;

use crate::cni::collector::{Collector, Run};
use crate::cni::config::Config;
use crate::cni::delegate;
use crate::cni::error::Code;
use crate::cni::invocation::Command;
use crate::cni::json::{Object, Problem};
use crate::cni::preview::Preview;
use crate::cni::result::{CniResult, Interface, no_addresses};
use crate::cni::skel::{Call, Plugin, PortVlans};
use crate::cni::version::Shape;
use crate::failure::all;
use crate::journal::step;
use crate::log;
use crate::net::bridge_vlan::Membership;
use crate::net::link::Link;
use crate::net::netlink::Netlink;
use crate::netfilter::spoof_check;
use crate::plugins::owner::owner_of;
use crate::plugins::shared::Shared;
use crate::plugins::veth::{self, Addressing, Sides};
use crate::plugins::{container_end, host_end, masquerade};
use crate::undo::Undo;

/// The applet.
#[derive(Debug)]
pub struct Bridge;

impl Plugin for Bridge {
    fn bridge_name(&self, document: &Object) -> Option<String> {
        Some(config::bridge_name(document))
    }

    fn masquerades(&self, document: &Object) -> bool {
        masquerade::is_asked_for(document)
    }

    fn port_vlans(&self, config: &Config) -> Result<Option<PortVlans>> {
        let wanted = config::vlans(config)?;
        let memberships = vlan::memberships(wanted.as_ref());
        let of = |kind: Membership| {
            let found = memberships.iter().filter(move |(_, how)| **how == kind);
            found.map(|(vlan, _)| *vlan)
        };
        Ok(wanted.map(|wanted| PortVlans {
            untagged: of(Membership::NATIVE).next(),
            tagged: of(Membership::TAGGED).collect(),
            keeps_default: wanted.keeps_default,
        }))
    }

    fn add<'a>(&self, call: &'a Call, undo: &mut Undo<'a>) -> Result<CniResult> {
        let Looked {
            settings,
            sides,
            existing,
            ..
        } = step("look around", || Looked::at(call))?;

        // The address first: the rest is quick to undo, and most failures are here.
        let ipam = match &settings.ipam {
            Some(plugin) => Some(delegate::add(call, plugin, undo)?),
            None => None,
        };
        let plan = match &ipam {
            Some(ipam) => Plan::new(&settings, ipam)?,
            None => Plan::default(),
        };

        if let Some(Err(error)) = existing.map(|bridge| base::sweep(&sides.host, &bridge)) {
            log::warn(&format!("{error:#}"));
        }
        let shared = Shared::enter(undo)?;
        let vlan = settings.gateway_vlan();
        let base = step("make sure of the bridge", || {
            let addresses = match vlan {
                Some(_) => &[],
                None => plan.gateway_addresses.as_slice(),
            };
            // IPAM may have taken its time, and somebody else the bridge: it is looked for again.
            base::ensure(&sides.host, &settings, addresses, &shared)
        })?;
        let lock = vlan.map(|_| vlan_gateway::lock()).transpose()?;
        let gateway = match vlan {
            Some(vlan) => vlan_gateway::ensure(&sides.host, &settings, &base.link, vlan, undo)?,
            None => base.link.clone(),
        };
        step("make sure of the gateways", || {
            let wanted = &plan.gateway_addresses;
            apply::ensure_gateways(&sides.host, &settings, &base, &gateway, wanted, &shared)
        })?;
        let pair = veth::create_pair(&sides, call, settings.mac, settings.mtu, undo)?;
        let bridge = step("attach to the bridge", || {
            apply::attach(&sides, call, &settings, &base.link, &pair)
        })?;
        if vlan.is_some() {
            vlan_gateway::fit_mtu(&sides.host, &bridge, &gateway)?;
        }
        drop(lock);
        if settings.spoof_check {
            step("check for spoofed addresses", || {
                rules::check_spoofing(call, &pair.host_end, &pair.container_end.mac, undo)
            })?;
        }
        if ipam.is_some() {
            let addressing = Addressing {
                ips: &plan.ips,
                detect_duplicates: settings.detect_duplicates,
                host_is_router: settings.is_gateway,
            };
            veth::give_addresses(&sides, &pair.container_end, addressing)?;
            veth::give_routes(&sides, &pair.container_end, &plan.container_routes)?;
            if settings.masquerade {
                masquerade::add(call, settings.backend, &plan.ips, undo)?;
            }
        } else if settings.container_end_up {
            veth::set_up(&sides.container, &pair.container_end)?;
        }
        if settings.container_end_up {
            ready::wait(&sides.host, &pair.host_end, &bridge)?;
            step("announce the addresses", || {
                apply::announce(&sides, &gateway, &pair.container_end, &plan);
            });
        }

        base.finish(&sides.host, &shared)?;
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
        let detached = veth::detach(call, |known| rules::remove(call, known));
        // The gateway of a VLAN goes with its last port.
        let tidied = match Settings::resolve(call) {
            Ok(settings) => {
                Netlink::open().and_then(|host| vlan_gateway::remove_unused(&host, &settings))
            }
            Err(_) => Ok(()),
        };
        all([detached, tidied])
    }

    fn check(&self, call: &Call) -> Result<()> {
        let settings = Settings::resolve(call)?;
        if let Some(plugin) = &settings.ipam {
            delegate::run(call, plugin, Command::Check)?;
        }
        check::check(call, &settings)
    }

    fn status(&self, call: &Call) -> Result<()> {
        status::check(call, &Settings::resolve(call)?)
    }

    fn gc(&self, call: &Call, collector: &mut Collector) -> Result<()> {
        let valid = call.config.valid_attachments()?;
        let network = &call.config.network;
        // No address is free while an interface still has it.
        let mut stale = host_end::collect("veth", network, &valid, collector);
        let released = call.config.ipam_type().and_then(|ipam| match ipam {
            Some(plugin) => delegate::gc(call, &plugin, collector),
            None => Ok(()),
        });
        collector.attempt(released);
        host_end::collect_nameless(network, collector);
        rules::collect(network, &valid, collector);
        let settings = Settings::resolve(call)?;
        let host = Netlink::open()?;
        if collector.run() == Run::Real {
            // Those that are there have stayed.
            stale.clear();
        }
        collector.remove_together(
            || vlan_gateway::unused(&host, &settings, &stale),
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

    fn preview(&self, call: &Call, preview: &mut Preview) -> Result<Option<CniResult>> {
        preview::preview(call, preview)
    }

    fn validate(&self, root: &str, document: &Value) -> Vec<Problem> {
        config::validate(root, document)
    }
}

/// What ADD knows before it changes anything.
struct Looked {
    settings: Settings,
    sides: Sides,
    /// The bridge, if there is one.
    existing: Option<Link>,
}

impl Looked {
    /// # Errors
    /// What is wrong with the configuration, or in the way of the attachment.
    fn at(call: &Call) -> Result<Self> {
        let settings = Settings::resolve(call)?;
        refuse_inexpressible(call, &settings)?;
        if settings.spoof_check {
            spoof_check::fits(&owner_of(call))?;
        }
        let sides = Sides::open(call)?;
        veth::refuse_existing(&sides, call)?;
        let existing = base::find_bridge(&sides.host, &settings.bridge)?;
        vlan::require_filtering(&sides.host, &settings, existing.as_ref())?;
        Ok(Self {
            settings,
            sides,
            existing,
        })
    }
}

/// The rules of an attachment that is there; `None` where the configuration asks for none.
fn rules_of(call: &Call) -> Result<Option<Wanted>> {
    let settings = Settings::resolve(call)?;
    if !settings.masquerade && !settings.spoof_check {
        return Ok(None);
    }
    let there = container_end::existing(call)?;
    Wanted::new(call, &settings, &there).map(Some)
}

/// 0.1.0 and 0.2.0 cannot express a result without addresses: better said before
/// anything is made.
fn refuse_inexpressible(call: &Call, settings: &Settings) -> Result<()> {
    let version = call.config.version;
    if settings.ipam.is_some() || version.shape() != Shape::OnePerFamily {
        return Ok(());
    }
    Err(no_addresses(Code::Config, version))
}
