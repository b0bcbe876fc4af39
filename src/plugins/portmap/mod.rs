//! `portmap`: ports of the host that lead into the container (docs/compatibility.md#7).
//!
//! Chained after the plugin that made the interface; the mappings come from the runtime
//! (`runtimeConfig.portMappings`). Without any, nothing is looked at or touched.

mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod hairpin;

use anyhow::{Context, Result};
use config::Settings;
use ipnet::IpNet;
use serde_json::Value;

use crate::cni::collector::Collector;
use crate::cni::error::{Code, detailed, not_available};
use crate::cni::invocation::Command;
use crate::cni::json::Problem;
use crate::cni::preview::{Preview, Subject};
use crate::cni::result::{CniResult, Ip};
use crate::cni::skel::{Call, Plugin};
use crate::failure::all;
use crate::journal::step;
use crate::log;
use crate::net::netlink::Netlink;
use crate::net::{link, route, section, sysctl};
use crate::netfilter::{
    self, BackendName, Known, Owner, PortMaps, Purpose, conntrack, localnet, way_out,
};
use crate::plugins::owner::owner_of;
use crate::plugins::{outlook, rule_check, veth};
use crate::shell::shell;
use crate::undo::Undo;

/// The applet.
#[derive(Debug)]
pub struct Portmap;

impl Plugin for Portmap {
    fn add<'a>(&self, call: &'a Call, undo: &mut Undo<'a>) -> Result<CniResult> {
        let settings = Settings::resolve(call)?;
        let result = required_result(call)?;
        let Some(wanted) = wanted(call, &settings, &result) else {
            return Ok(result);
        };
        if wanted.masquerade_all && !wanted.snat {
            log::warn("masqAll has no effect: snat is false, so that nothing is masqueraded");
        }
        let name = step("choose a backend", || netfilter::choose(settings.backend))?;
        let owner = owner_of(call);
        undo.push("remove the port mappings", {
            let (owner, known) = (owner.clone(), Known::only(&wanted.container));
            move || {
                all([
                    name.backend().remove_port_maps(&owner, &known),
                    localnet::close(&owner, leads_to_somebody),
                ])
            }
        });
        ensure(&owner, name, &wanted)?;
        hairpin::warn_if_needed(&result, &wanted);
        Ok(result)
    }

    fn del(&self, call: &Call) -> Result<()> {
        let owner = owner_of(call);
        let known = known(call);
        let removed = step("remove port mappings", || {
            netfilter::with_both(|backend| backend.remove_port_maps(&owner, &known))
        });
        step("forget connections", || forget_flows(call));
        let closed = step("close the way from 127.0.0.1", || {
            localnet::close(&owner, leads_to_somebody)
        });
        all([removed, closed])
    }

    fn check(&self, call: &Call) -> Result<()> {
        let settings = Settings::resolve(call)?;
        let result = required_result(call)?;
        let Some(wanted) = wanted(call, &settings, &result) else {
            return Ok(());
        };
        let owner = owner_of(call);
        let mut missing = missing(&owner, &settings, &wanted)?;
        let guard = missing_guard(&owner, &wanted)?;
        if missing.is_empty() {
            // The reference makes none: what it added is not broken, but its operator
            // should know.
            for rule in guard {
                log::warn(&format!(
                    "neighbours may reach services on 127.0.0.1, or the mapped ports stop \
                     answering there, until `cnibox restore` is run: missing: {rule}"
                ));
            }
            return Ok(());
        }
        missing.extend(guard);
        rule_check::refuse_missing(&owner, &missing)
    }

    fn status(&self, call: &Call) -> Result<()> {
        let settings = Settings::resolve(call)?;
        let asked = settings.backend;
        outlook::require_rules(Purpose::PortMaps, asked, None)?;
        // What iptables, and the way from 127.0.0.1, take to make.
        if settings.snat || netfilter::choose(asked)? == BackendName::Iptables {
            section::check_writable()?;
        }
        let (has_ipv4, _) = outlook::usual_families()?;
        if settings.snat && has_ipv4 && netfilter::has_nf_tables() {
            require_route_localnet().map_err(|error| not_available(&error))?;
        }
        Ok(())
    }

    fn gc(&self, call: &Call, collector: &mut Collector) -> Result<()> {
        let valid = call.config.valid_attachments()?;
        let network = &call.config.network;
        for name in netfilter::BACKENDS {
            let backend = name.backend();
            collector.remove_together(
                || {
                    let owners = backend.stale_port_maps(network, &valid)?;
                    let what = |owner| format!("port mappings of {owner} ({})", name.as_str());
                    Ok(owners.into_iter().map(what).collect())
                },
                || backend.collect_port_maps(network, &valid),
            );
        }
        collector.remove_together(
            || localnet::stale(network, &valid, leads_to_somebody),
            || localnet::collect(network, &valid, leads_to_somebody),
        );
        Ok(())
    }

    fn missing_rules(&self, call: &Call) -> Result<Vec<String>> {
        let settings = Settings::resolve(call)?;
        let Some(wanted) = wanted(call, &settings, &required_result(call)?) else {
            return Ok(Vec::new());
        };
        let owner = owner_of(call);
        let mut missing = missing(&owner, &settings, &wanted)?;
        missing.extend(missing_guard(&owner, &wanted)?);
        Ok(missing)
    }

    fn restore_rules(&self, call: &Call) -> Result<()> {
        let settings = Settings::resolve(call)?;
        match wanted(call, &settings, &required_result(call)?) {
            Some(wanted) => {
                let name = netfilter::choose(settings.backend)?;
                let wanted = PortMaps {
                    warn_of_takeovers: false,
                    ..wanted
                };
                ensure(&owner_of(call), name, &wanted)
            }
            None => Ok(()),
        }
    }

    fn preview(&self, call: &Call, preview: &mut Preview) -> Result<Option<CniResult>> {
        let settings = Settings::resolve(call)?;
        let result = required_result(call)?;
        let Some(wanted) = wanted(call, &settings, &result) else {
            return Ok(Some(result));
        };
        let owner = owner_of(call);
        let backend = netfilter::choose(settings.backend)?.backend();
        preview.rules(backend.missing_port_maps(&owner, &wanted)?);
        if must_route_localnet(&wanted) && netfilter::has_nf_tables() {
            let text = "net/ipv4/conf/LINK/route_localnet = 1, LINK being the one that leads to the \
                        container; rules in table ip cnibox_localnet guard it";
            preview.tell(Subject::Sysctl, text);
        }
        Ok(Some(result))
    }

    fn validate(&self, root: &str, document: &Value) -> Vec<Problem> {
        config::validate(root, document)
    }
}

/// Makes the mappings, and whatever they need to be reached from everywhere.
fn ensure(owner: &Owner, name: BackendName, wanted: &PortMaps) -> Result<()> {
    step("map ports", || {
        name.backend().ensure_port_maps(owner, wanted)
    })
    .map_err(|error| way_out(error, Purpose::PortMaps))
    .with_context(|| format!("map ports with {}", name.as_str()))?;
    if wanted.warn_of_takeovers {
        step("take the ports over", || take_over(owner, name, wanted));
    }
    if must_route_localnet(wanted) {
        step("open a way from 127.0.0.1", || {
            route_localnet(owner, wanted)
        })?;
    }
    // Connections without an end, UDP above all, go on leading where they led when they
    // began.
    step("forget connections", || {
        conntrack::forget_replaced(&wanted.mappings, &wanted.container);
    });
    Ok(())
}

/// Has the other backend give up the ports. The mappings are there: what is wrong with
/// others is worth a warning, no more.
fn take_over(owner: &Owner, name: BackendName, wanted: &PortMaps) {
    let others = netfilter::BACKENDS.into_iter();
    for other in others.filter(|other| *other != name) {
        match other.backend().yield_ports(owner, wanted) {
            Ok(sentences) => sentences.iter().for_each(|sentence| log::warn(sentence)),
            Err(error) => log::warn(&format!(
                "mappings of the same ports with {} may be in the way: {error:#}",
                other.as_str()
            )),
        }
    }
}

/// Forgets connections through mappings that iptables has lost: its rules do not tell
/// where they led, so that only what the runtime still knows helps. (The nftables backend
/// does it by itself.) Nothing that is wrong here may get in the way of a DEL.
fn forget_flows(call: &Call) {
    let (Ok(settings), Ok(Some(result))) = (Settings::resolve(call), call.config.prev_result())
    else {
        return;
    };
    let Some(wanted) = wanted(call, &settings, &result) else {
        return;
    };
    if !netfilter::choose(settings.backend).is_ok_and(|name| name == BackendName::Iptables) {
        return;
    }
    let flows: Vec<_> = wanted
        .container
        .iter()
        .flat_map(|container| {
            let mappings = wanted.mappings.iter();
            mappings
                .filter(|mapping| mapping.is_for(container.addr()))
                .map(|mapping| (mapping.protocol, mapping.host_port, container.addr()))
        })
        .collect();
    conntrack::forget_removed(&flows);
}

/// What tells the attachment's mappings from those of the container's others. Nothing that
/// is wrong here may get in the way of a DEL.
fn known(call: &Call) -> Known {
    let result = call.config.prev_result().ok().flatten();
    let own = result.map(|result| addresses(&result, &call.invocation.attachment.ifname));
    Known {
        own: own.unwrap_or_default(),
        others: veth::other_addresses(call),
    }
}

fn required_result(call: &Call) -> Result<CniResult> {
    call.config.prev_result()?.ok_or_else(|| {
        let sentence = match call.invocation.command {
            Command::Check => "Required prevResult missing",
            _ => "must be called as chained plugin",
        };
        detailed(
            Code::Config,
            sentence,
            "prevResult is missing: portmap comes after the plugin that makes the interface, in one list",
        )
    })
}

/// The rules that `call` is about; `None` when there is nothing to map, or nowhere to.
fn wanted(call: &Call, settings: &Settings, result: &CniResult) -> Option<PortMaps> {
    if settings.mappings.is_empty() {
        return None;
    }
    let container = addresses(result, &call.invocation.attachment.ifname);
    (!container.is_empty()).then(|| PortMaps {
        container,
        mappings: settings.mappings.clone(),
        snat: settings.snat,
        masquerade_all: settings.masquerade_all,
        mark: settings.mark.clone(),
        conditions_v4: settings.conditions_v4.clone(),
        conditions_v6: settings.conditions_v6.clone(),
        warn_of_takeovers: true,
    })
}

/// The container's first address of each family: of the interface `ifname`, or of none
/// that the result names.
fn addresses(result: &CniResult, ifname: &str) -> Vec<IpNet> {
    let mine = |ip: &&Ip| {
        ip.interface
            .and_then(|index| result.interfaces.get(index))
            .is_none_or(|interface| interface.name == ifname && !interface.sandbox.is_empty())
    };
    let first = |is_ipv4: bool| {
        let mut mine = result.ips.iter().filter(mine).map(|ip| ip.address);
        mine.find(|address| address.addr().is_ipv4() == is_ipv4)
    };
    [first(true), first(false)].into_iter().flatten().collect()
}

/// Whether a program on the host could call 127.0.0.1 and be led into the container: the
/// kernel routes such packets only where it is told to. IPv6 has no such thing.
fn must_route_localnet(wanted: &PortMaps) -> bool {
    let Some(container) = wanted.container.iter().find(|ip| ip.addr().is_ipv4()) else {
        return false;
    };
    wanted.snat
        && wanted
            .mappings
            .iter()
            .any(|mapping| mapping.is_for(container.addr()) && mapping.is_local())
}

/// For STATUS, which does not know the link that leads to containers: whether it can carry
/// packets from 127.0.0.1, or be made to.
fn require_route_localnet() -> Result<()> {
    // A new link starts with the default; one that is there may have it on already.
    if sysctl::effective(localnet::switch("default")) == Some(1) {
        return Ok(());
    }
    let Err(error) = sysctl::check_settable(&localnet::sysctl_key("default"), "1") else {
        return Ok(());
    };
    let links = link::list(&Netlink::open()?)?;
    if links.iter().any(|link| link.routes_localnet) {
        return Ok(());
    }
    Err(error.context("mapped ports cannot be made to answer on 127.0.0.1"))
}

/// Lets the link that leads to the container carry packets from 127.0.0.1.
fn route_localnet(owner: &Owner, wanted: &PortMaps) -> Result<()> {
    if !netfilter::has_nf_tables() {
        log::warn(
            "the mapped ports do not answer on 127.0.0.1: this kernel has no nf_tables to guard it with",
        );
        return Ok(());
    }
    for device in links_to(wanted)? {
        localnet::open(owner, &device)?;
    }
    Ok(())
}

/// The rules that are missing, each as the command that would add it, and the sysctls
/// without which 127.0.0.1 does not reach the container.
fn missing(owner: &Owner, settings: &Settings, wanted: &PortMaps) -> Result<Vec<String>> {
    let backend = netfilter::choose(settings.backend)?.backend();
    let mut missing = backend.missing_port_maps(owner, wanted)?;
    // Without `nf_tables` ADD did nothing about it.
    if must_route_localnet(wanted) && netfilter::has_nf_tables() {
        for device in links_to(wanted)? {
            if sysctl::effective(localnet::switch(&device)) != Some(1) {
                let key = localnet::sysctl_key(&device);
                let command = shell!["sysctl", "-w", format!("net/{key}=1")];
                missing.push(format!("{command} (it is 0)"));
            }
        }
    }
    Ok(missing)
}

/// What is missing of what [`route_localnet`] made first.
fn missing_guard(owner: &Owner, wanted: &PortMaps) -> Result<Vec<String>> {
    if must_route_localnet(wanted) && netfilter::has_nf_tables() {
        localnet::missing_guard(owner, &links_to(wanted)?)
    } else {
        Ok(Vec::new())
    }
}

/// Whether mappings lead over the link `device` to anybody: those of the other
/// implementation, for of its own this one knows who needs the sysctl. In doubt they do: the
/// guard is there.
fn leads_to_somebody(device: &str) -> bool {
    let look = || {
        let netlink = Netlink::open()?;
        for name in netfilter::BACKENDS {
            for address in name.backend().mapped_ipv4()? {
                if route::link_to(&netlink, address)?.is_some_and(|link| link == device) {
                    return Ok(true);
                }
            }
        }
        Ok::<_, anyhow::Error>(false)
    };
    look().unwrap_or_else(|error| {
        log::warn(&format!("route_localnet of {device} stays on: {error:#}"));
        true
    })
}

/// The links over which packets from 127.0.0.1 go out to the container.
fn links_to(wanted: &PortMaps) -> Result<Vec<String>> {
    let netlink = Netlink::open()?;
    let mut links = Vec::new();
    for container in wanted.container.iter().filter(|ip| ip.addr().is_ipv4()) {
        links.extend(route::link_to(&netlink, container.addr())?);
    }
    Ok(links)
}
