//! `bridge`: connects a container to a Linux bridge with a veth pair.
//!
//! Behaviour: the reference's bridge v1.9.1 (behaviour 5). Addresses come from the IPAM
//! plugin named in the configuration; without one the attachment is layer 2 only.

mod apply;
mod check;
mod config;
mod plan;
mod rules;

use anyhow::Result;
use ipnet::IpNet;
use serde_json::Value;

use crate::cni::delegate;
use crate::cni::error::{Code, all, detailed, not_available};
use crate::cni::invocation::Command;
use crate::cni::json::Problem;
use crate::cni::result::{CniResult, Interface};
use crate::cni::skel::{Call, Plugin};
use crate::cni::version::Shape;
use crate::net::link::Link;
use crate::net::netlink::Netlink;
use crate::netfilter::nftables::{self, Nftables};
use crate::netfilter::{self, Owner};
use crate::plugins::veth::{self, Sides};
use crate::plugins::{host_end, masquerade};
use crate::undo::Undo;

use config::Settings;
use plan::Plan;
use rules::Rules;

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
        veth::refuse_existing(&sides, call)?;
        apply::find_bridge(&sides.host, &settings.bridge)?;

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
        apply::ensure_gateways(
            &sides.host,
            &settings,
            &bridge,
            &plan.bridge_addresses,
            undo,
        )?;
        let pair = veth::create_pair(&sides, call, settings.mac, settings.mtu, undo)?;
        let bridge = apply::attach(&sides, call, &settings, &bridge, &pair)?;
        if settings.spoof_check {
            rules::check_spoofing(call, &pair.host_end, &pair.container_end.mac, undo)?;
        }
        if ipam.is_some() {
            let dad = settings.detect_duplicates;
            veth::give_addresses(&sides, &pair.container_end, &plan.ips, dad)?;
            veth::give_routes(&sides, &pair.container_end, &plan.container_routes)?;
            if settings.masquerade {
                masquerade::add(call, settings.backend, &plan.ips, undo)?;
            }
        } else if settings.container_end_up {
            veth::set_up(&sides.container, &pair.container_end)?;
        }
        if settings.container_end_up {
            veth::wait_for_port(&sides.host, &pair.host_end)?;
            apply::announce(&sides, &bridge, &pair.container_end, &plan);
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
        Ok(CniResult {
            interfaces: vec![on_host(bridge), on_host(pair.host_end), container_end],
            ips: plan.ips,
            routes: plan.routes,
            dns: settings.dns.unwrap_or(ipam.dns),
            extra: ipam.extra,
        })
    }

    fn del(&self, call: &Call) -> Result<()> {
        let rules = Rules::of(call);
        veth::detach(
            call,
            rules
                .any()
                .then_some(|known: &[IpNet]| rules::remove(call, rules, known)),
        )
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
        if let Err(error) = apply::find_bridge(&Netlink::open()?, &settings.bridge) {
            return Err(not_available(&error));
        }
        if settings.masquerade
            && let Err(error) = netfilter::choose(settings.backend)
        {
            return Err(not_available(&error));
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

    fn gc(&self, call: &Call) -> Result<()> {
        let valid = call.config.valid_attachments()?;
        let released = call.config.ipam_type().and_then(|ipam| match ipam {
            Some(plugin) => delegate::run(call, &plugin, Command::Gc),
            None => Ok(()),
        });
        all([
            released,
            host_end::collect(&call.config.network, &valid),
            rules::collect(&call.config.network, &valid),
        ])
    }

    fn validate(&self, root: &str, document: &Value) -> Vec<Problem> {
        config::validate(root, document)
    }
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
