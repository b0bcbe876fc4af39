//! `ptp`: connects a container to the host with a veth pair and nothing else.
//!
//! Behaviour: the reference's ptp v1.9.1 (docs/compatibility.md#9.5). The host's end is the gateway;
//! the host routes between containers and to the world.

mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod plan;

use std::time::Duration;

use anyhow::{Context, Result};
use config::Settings;
use ipnet::IpNet;
use plan::Plan;
use serde_json::Value;

use crate::cni::collector::Collector;
use crate::cni::delegate;
use crate::cni::error::{Code, agree, coded, not_available};
use crate::cni::invocation::Command;
use crate::cni::json::{Object, Problem};
use crate::cni::preview::{Preview, Subject};
use crate::cni::result::{CniResult, Interface};
use crate::cni::skel::{Call, Plugin};
use crate::journal::step;
use crate::net::link::{self, Link};
use crate::net::netlink::Netlink;
use crate::net::privilege::require_root;
use crate::net::{addr, route};
use crate::netfilter::Purpose;
use crate::plugins::container_end::{self, list};
use crate::plugins::host_end::{self, Identity};
use crate::plugins::layer3::own_addresses;
use crate::plugins::owner::owner_of;
use crate::plugins::shared::Shared;
use crate::plugins::veth::{self, Addressing, Sides};
use crate::plugins::{masquerade, outlook, preview as words, rule_check};
use crate::undo::Undo;

/// How long the host's end may take until it is up.
const PORT_LIMIT: Duration = Duration::from_millis(500);

/// The applet.
#[derive(Debug)]
pub struct Ptp;

impl Plugin for Ptp {
    fn masquerades(&self, document: &Object) -> bool {
        masquerade::is_asked_for(document)
    }

    fn add<'a>(&self, call: &'a Call, undo: &mut Undo<'a>) -> Result<CniResult> {
        let settings = Settings::resolve(call)?;
        let sides = step("open the namespaces", || Sides::open(call))?;
        veth::refuse_existing(&sides, call)?;
        // The address first: the rest is quick to undo, and most failures are here.
        let ipam = delegate::add(call, &settings.ipam, undo)?;
        let plan = Plan::new(settings.mtu, &ipam)?;

        let shared = Shared::enter(undo)?;
        let pair = veth::create_pair(&sides, call, None, settings.mtu, undo)?;
        set_up_host_end(&sides.host, call, &pair.host_end)?;
        let addressing = Addressing {
            ips: &plan.ips,
            detect_duplicates: false,
            host_is_router: true,
        };
        veth::give_addresses(&sides, &pair.container_end, addressing)?;
        for network in &plan.connected {
            route::delete_connected(&sides.container, pair.container_end.index, *network)?;
        }
        veth::give_routes(&sides, &pair.container_end, &plan.container_routes)?;
        step("lead the host to the container", || {
            lead_to_container(&sides.host, &pair.host_end, &plan)
        })?;
        shared
            .forward(&sides.host, plan.ips.iter().map(|ip| ip.address.addr()))
            .with_context(|| coded(Code::Io, "Could not enable IP forwarding"))?;
        if settings.masquerade {
            masquerade::add(call, settings.backend, &plan.ips, undo)?;
        }
        veth::wait_for_port(&sides.host, &pair.host_end, PORT_LIMIT)?;

        let container_end = Interface {
            name: pair.container_end.name,
            mac: pair.container_end.mac,
            // Told only where it was asked for, as CHECK will insist on it.
            mtu: settings.mtu.unwrap_or(0),
            sandbox: call.invocation.netns.clone().unwrap_or_default(),
            ..Interface::default()
        };
        let host_end = Interface {
            name: pair.host_end.name,
            mac: pair.host_end.mac,
            ..Interface::default()
        };
        Ok(CniResult {
            interfaces: vec![host_end, container_end],
            ips: plan.ips,
            routes: ipam.routes,
            dns: settings.dns.unwrap_or(ipam.dns),
            extra: ipam.extra,
        })
    }

    fn del(&self, call: &Call) -> Result<()> {
        veth::detach(call, |known| masquerade::remove(call, known))
    }

    fn check(&self, call: &Call) -> Result<()> {
        let settings = Settings::resolve(call)?;
        delegate::run(call, &settings.ipam, Command::Check)?;
        if call.config.prev_result()?.is_none() {
            return Err(coded(Code::Config, "ptp: Required prevResult missing").into());
        }
        let (result, interface) = container_end::own_result(call)?;
        let sides = Sides::open(call)?;
        let ifname = &call.invocation.attachment.ifname;
        let observed = container_end::observe(&sides, ifname, &result)?;
        let own = CniResult {
            ips: own_addresses(&result, interface).cloned().collect(),
            ..CniResult::default()
        };
        let mut differences = container_end::differences(&result, interface, &observed, true);
        let Some(host_end) = observed.host_end else {
            return agree(differences);
        };
        let plan = Plan::new(None, &own)?;
        differences.extend(host_differences(&sides.host, &host_end, &plan)?);
        let ips = plan.ips.iter().map(|ip| ip.address.addr());
        differences.extend(container_end::lost_forwarding(&host_end, ips)?);
        let missing = if settings.masquerade {
            masquerade::Wanted::new(call, settings.backend, &own.ips)?.missing()?
        } else {
            Vec::new()
        };
        rule_check::agree(differences, &owner_of(call), missing)
    }

    fn status(&self, call: &Call) -> Result<()> {
        let settings = Settings::resolve(call)?;
        require_root()?;
        let sample = outlook::sample_of(call, &settings.ipam);
        if settings.masquerade {
            outlook::require_rules(Purpose::Masquerade, settings.backend, sample.as_ref())?;
        }
        let host = Netlink::open()?;
        link::require_kind(&host, "veth")?;
        delegate::run(call, &settings.ipam, Command::Status)?;
        let Some(sample) = sample else {
            return Ok(());
        };
        let plan = Plan::new(settings.mtu, &sample.result).map_err(|e| not_available(&e))?;
        outlook::require_ipv6(&sample)?;
        outlook::require_ipv6_on(None, plan.host_addresses.iter().map(IpNet::addr))?;
        outlook::require_forwarding(&host, sample.ips())
    }

    fn gc(&self, call: &Call, collector: &mut Collector) -> Result<()> {
        let valid = call.config.valid_attachments()?;
        let network = &call.config.network;
        // No address is free while an interface still has it.
        host_end::collect("veth", network, &valid, collector);
        let released = call.config.ipam_type().and_then(|ipam| match ipam {
            Some(plugin) => delegate::gc(call, &plugin, collector),
            None => Ok(()),
        });
        collector.attempt(released);
        host_end::collect_nameless(network, collector);
        masquerade::collect(network, &valid, collector);
        Ok(())
    }

    fn missing_rules(&self, call: &Call) -> Result<Vec<String>> {
        existing_rules(call)?.map_or(Ok(Vec::new()), |rules| rules.missing())
    }

    fn restore_rules(&self, call: &Call) -> Result<()> {
        existing_rules(call)?.map_or(Ok(()), |rules| rules.ensure())
    }

    fn preview(&self, call: &Call, preview: &mut Preview) -> Result<Option<CniResult>> {
        let settings = Settings::resolve(call)?;
        veth::refuse_existing(&Sides::open(call)?, call)?;
        let Some(ipam) = delegate::preview(call, &settings.ipam, preview)? else {
            words::pair(call, "on the host", None, settings.mtu, preview);
            words::unknown_addresses(preview);
            return Ok(None);
        };
        let plan = Plan::new(settings.mtu, &ipam)?;
        words::pair(call, "on the host", None, settings.mtu, preview);
        words::layer3(call, &plan.ips, &plan.container_routes, preview);
        let host_end = Identity::of(call).name;
        for address in &plan.host_addresses {
            preview.tell(Subject::Address, format!("{address} on {host_end}"));
        }
        for route in &plan.host_routes {
            preview.tell(Subject::Route, format!("{route} through {host_end}"));
        }
        words::forwarding(plan.ips.iter().map(|ip| ip.address.addr()), preview)?;
        if settings.masquerade {
            let rules = masquerade::Wanted::new(call, settings.backend, &plan.ips)?;
            preview.rules(rules.missing()?);
        }
        Ok(Some(CniResult {
            interfaces: words::interfaces(call, &[&host_end]),
            ips: plan.ips,
            ..ipam
        }))
    }

    fn validate(&self, root: &str, document: &Value) -> Vec<Problem> {
        config::validate(root, document)
    }
}

/// The rules of an attachment that is there; `None` where the configuration asks for none.
fn existing_rules(call: &Call) -> Result<Option<masquerade::Wanted>> {
    let settings = Settings::resolve(call)?;
    if !settings.masquerade {
        return Ok(None);
    }
    let ips = container_end::existing(call)?.own_ips();
    masquerade::Wanted::new(call, settings.backend, &ips).map(Some)
}

/// Sets the host's end up under its alias, deaf to router advertisements. Its link-local
/// address is usable at once: it follows from a random one, and nobody else is on the link.
fn set_up_host_end(host: &Netlink, call: &Call, end: &Link) -> Result<()> {
    for key in ["accept_ra", "accept_dad"] {
        veth::switch_off_quietly(&end.name, key);
    }
    let change = link::change_of(end.index)
        .alias(Identity::of(call).alias)
        .up();
    link::change(host, change, &format!("set {} up", end.name))
}

/// Makes the host's end the container's gateway, and the way to the container.
fn lead_to_container(host: &Netlink, end: &Link, plan: &Plan) -> Result<()> {
    for address in &plan.host_addresses {
        addr::add(host, end.index, *address, false)
            .map_err(|error| veth::explain_ipv6(error, &end.name, address))
            .with_context(|| format!("give {} the gateway's address", end.name))?;
    }
    // A route that a container left which had the address before must not win.
    plan.host_routes
        .iter()
        .try_for_each(|to| route::replace(host, end.index, &end.name, to))
}

/// How the host's side differs from `plan`, in words.
fn host_differences(host: &Netlink, end: &Link, plan: &Plan) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    let found: Vec<IpNet> = addr::list(host, end.index)?
        .into_iter()
        .map(|address| address.net)
        .collect();
    for address in &plan.host_addresses {
        if !found.contains(address) {
            differences.push(format!(
                "interface {}: expected the gateway's address {address}, found {}",
                end.name,
                list(&found)
            ));
        }
    }
    for to in &plan.host_routes {
        let through = route::link_to(host, to.dst.addr())?;
        if through.as_deref() != Some(&end.name) {
            differences.push(format!(
                "host: expected a route to {} through {}, found {}",
                to.dst,
                end.name,
                through.map_or_else(|| "none".to_owned(), |name| format!("one through {name}"))
            ));
        }
    }
    Ok(differences)
}
