//! `firewall`: lets a container's packets through the host's packet filter, and keeps
//! others away from its bridge (docs/compatibility.md#9.2).
//!
//! Chained after the plugin that made the interface: the addresses, and the bridge in
//! front of all interfaces, come from its result.

mod claims;
mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzz;

use std::net::IpAddr;

use anyhow::{Context, Result};
use claims::Claim;
use config::{Backend, Parting, Settings};
use serde_json::Value;

use crate::cni::collector::Collector;
use crate::cni::error::{Code, detailed, not_available};
use crate::cni::invocation::Attachment;
use crate::cni::json::Problem;
use crate::cni::preview::Preview;
use crate::cni::result::CniResult;
use crate::cni::skel::{Call, Plugin};
use crate::cni::version::Version;
use crate::failure::all;
use crate::log;
use crate::net::privilege::require_root;
use crate::net::section;
use crate::netfilter::{self, BackendName, Firewalld, Ingress, Isolation, Owner, Purpose, way_out};
use crate::patience::{PATIENCE, patiently};
use crate::plugins::owner::owner_of;
use crate::plugins::{outlook, rule_check};
use crate::shell::shell;
use crate::undo::Undo;

/// The applet.
#[derive(Debug)]
pub struct Firewall;

impl Plugin for Firewall {
    fn address_owners(&self) -> Result<Vec<(IpAddr, String, Attachment)>> {
        let owner = |(address, claim): (IpAddr, Claim)| {
            let Owner {
                network,
                attachment,
            } = claim.owner();
            (address, network, attachment)
        };
        Ok(claims::all()?.into_iter().map(owner).collect())
    }

    fn versions(&self) -> &'static [Version] {
        static VERSIONS: [Version; 3] = [Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];
        &VERSIONS
    }

    fn add<'a>(&self, call: &'a Call, undo: &mut Undo<'a>) -> Result<CniResult> {
        let settings = Settings::resolve(call)?;
        let result = required_result(call)?;
        let mut wanted = Wanted::new(call, &settings, &result)?;
        undo.push("remove the firewall's rules", {
            let (owner, addresses) = (wanted.owner.clone(), wanted.addresses.clone());
            let parting = Settings::parting(call);
            move || release(&owner, addresses, &parting)
        });
        wanted.ensure()?;
        Ok(result)
    }

    fn del(&self, call: &Call) -> Result<()> {
        let owner = owner_of(call);
        // What is wrong with it must not keep the rules here.
        let known = call.config.prev_result().ok().flatten();
        let addresses = match known.map(|result| addresses(&result)) {
            Some(addresses) if !addresses.is_empty() => addresses,
            _ => claimed(|claim| claim.owner() == owner)?,
        };
        release(&owner, addresses, &Settings::parting(call))
    }

    fn check(&self, call: &Call) -> Result<()> {
        let settings = Settings::resolve(call)?;
        let result = required_result(call)?;
        if settings.backend == Backend::Firewalld {
            // It may just be starting again, which breaks no container.
            patiently(|| firewalld(settings.backend, Firewalld::find).map(drop))?;
        }
        let mut wanted = Wanted::new(call, &settings, &result)?;
        rule_check::refuse_missing(&wanted.owner.clone(), &wanted.missing()?)
    }

    fn status(&self, call: &Call) -> Result<()> {
        let settings = Settings::resolve(call)?;
        require_root()?;
        let rules = |asked| outlook::require_rules(Purpose::Firewall, asked, None);
        match settings.backend {
            Backend::Rules(name) => rules(Some(name))?,
            Backend::Auto | Backend::Firewalld => {
                // It may just be starting again.
                let found =
                    patiently(|| firewalld(settings.backend, || Firewalld::find_within(PATIENCE)));
                let found = found.map_err(|error| not_available(&error))?;
                if found.is_none() || settings.ingress.is_some() {
                    rules(None)?;
                }
            }
        }
        // Without it nothing could be removed, whatever it was made with.
        section::check_writable()
    }

    fn gc(&self, call: &Call, collector: &mut Collector) -> Result<()> {
        let valid = call.config.valid_attachments()?;
        let network = &call.config.network;
        let parting = Settings::parting(call);
        let is_stale =
            |owner: &Owner| owner.network == *network && !valid.contains(&owner.attachment);
        let mut stale: Vec<(Owner, Vec<IpAddr>)> = Vec::new();
        for (address, claim) in claims::all()? {
            let owner = claim.owner();
            match stale.iter_mut().find(|(other, _)| *other == owner) {
                Some((_, addresses)) => addresses.push(address),
                None if is_stale(&owner) => stale.push((owner, vec![address])),
                None => {}
            }
        }
        for (owner, addresses) in stale {
            let what = format!("firewall rules of {owner}");
            collector.remove(&what, || release(&owner, addresses, &parting));
        }
        for name in netfilter::BACKENDS {
            let backend = name.backend();
            collector.remove_together(
                || {
                    let stale = backend.stale_firewall(network, &valid)?;
                    let what = |of| format!("firewall rules of {of} ({})", name.as_str());
                    Ok(stale.into_iter().map(what).collect())
                },
                || backend.collect_firewall(network, &valid),
            );
        }
        Ok(())
    }

    fn missing_rules(&self, call: &Call) -> Result<Vec<String>> {
        let settings = Settings::resolve(call)?;
        Wanted::new(call, &settings, &required_result(call)?)?.missing()
    }

    fn restore_rules(&self, call: &Call) -> Result<()> {
        let settings = Settings::resolve(call)?;
        Wanted::new(call, &settings, &required_result(call)?)?.ensure()
    }

    fn preview(&self, call: &Call, preview: &mut Preview) -> Result<Option<CniResult>> {
        let settings = Settings::resolve(call)?;
        let result = required_result(call)?;
        preview.rules(Wanted::new(call, &settings, &result)?.missing()?);
        Ok(Some(result))
    }

    fn validate(&self, root: &str, document: &Value) -> Vec<Problem> {
        config::validate(root, document)
    }
}

/// This plugin lets through what others made: there must be others before it.
fn required_result(call: &Call) -> Result<CniResult> {
    call.config.prev_result()?.ok_or_else(|| {
        detailed(
            Code::Config,
            "missing prevResult from earlier plugin",
            "firewall comes after the plugin that makes the interface, in one list",
        )
    })
}

/// All of them, whichever interface they are on.
fn addresses(result: &CniResult) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.addr()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// What an attachment is let through by, and kept apart.
struct Wanted {
    owner: Owner,
    addresses: Vec<IpAddr>,
    /// With the zone.
    firewalld: Option<(Firewalld, String)>,
    rules: Option<(BackendName, netfilter::Firewall)>,
}

impl Wanted {
    /// What `settings` mean for the containers of `result`.
    ///
    /// # Errors
    /// Code 7 when there is no bridge to keep apart; or when no backend can be used.
    fn new(call: &Call, settings: &Settings, result: &CniResult) -> Result<Self> {
        let addresses = addresses(result);
        let isolation = settings.ingress.map(|ingress| isolation(result, ingress));
        let isolation = isolation.transpose()?;
        let firewalld = firewalld(settings.backend, Firewalld::find)?;
        let is_left_to_us = firewalld.is_none();
        let rules = if addresses.is_empty() || !(is_left_to_us || isolation.is_some()) {
            None
        } else {
            let asked = match settings.backend {
                Backend::Rules(name) => Some(name),
                Backend::Auto | Backend::Firewalld => None,
            };
            let wanted = netfilter::Firewall {
                addresses: addresses.clone(),
                admin_chain: is_left_to_us.then(|| settings.admin_chain.clone()),
                isolation,
            };
            Some((netfilter::choose(asked)?, wanted))
        };
        Ok(Self {
            owner: owner_of(call),
            addresses,
            firewalld: firewalld.map(|firewalld| (firewalld, settings.zone.clone())),
            rules,
        })
    }

    /// Makes it so.
    ///
    /// # Errors
    /// When firewalld or the backend refuses.
    fn ensure(&mut self) -> Result<()> {
        let zone = self.firewalld.as_ref().map(|(_, zone)| zone.as_str());
        let mut earlier = Vec::new();
        let names_owners = |name: BackendName| name == BackendName::Nftables;
        if zone.is_some()
            || !self
                .rules
                .as_ref()
                .is_none_or(|(name, _)| names_owners(*name))
        {
            let _alone = claims::lock()?;
            if zone.is_some() {
                for address in &self.addresses {
                    let zone = claims::holder(*address)?.and_then(|claim| claim.zone);
                    earlier.extend(zone.map(|zone| (*address, zone)));
                }
            }
            claims::take(&self.addresses, &Claim::new(&self.owner, zone))?;
        }
        if let Some((firewalld, zone)) = &mut self.firewalld {
            // Where an ADD of ours has put it, for a container that is gone or with another
            // configuration.
            for (address, earlier) in earlier.iter().filter(|(_, earlier)| earlier != zone) {
                firewalld.remove_source(earlier, *address)?;
            }
            for address in &self.addresses {
                if let Some(other) = firewalld.add_source(zone, *address)? {
                    log::warn(&bound_elsewhere(zone, *address, &other));
                }
            }
        }
        if let Some((name, rules)) = &self.rules {
            name.backend()
                .ensure_firewall(&self.owner, rules)
                .map_err(|error| way_out(error, Purpose::Firewall))
                .with_context(|| {
                    format!("let the container's packets through with {}", name.as_str())
                })?;
        }
        Ok(())
    }

    /// What is missing of it, each as the command that would add it.
    ///
    /// # Errors
    /// When firewalld or the kernel does not tell.
    fn missing(&mut self) -> Result<Vec<String>> {
        let mut missing = Vec::new();
        if let Some((firewalld, zone)) = &mut self.firewalld {
            for address in &self.addresses {
                if firewalld.has_source(zone, *address)? {
                    continue;
                }
                if let Some(other) = firewalld.zone_of_source(*address)? {
                    log::warn(&bound_elsewhere(zone, *address, &other));
                } else {
                    let zone = format!("--zone={zone}");
                    let source = format!("--add-source={address}");
                    missing.push(shell!["firewall-cmd", zone, source].into());
                }
            }
        }
        if let Some((name, rules)) = &self.rules {
            missing.extend(name.backend().missing_firewall(&self.owner, rules)?);
        }
        Ok(missing)
    }
}

/// Says that an address stays in the zone `other`, and what that means.
fn bound_elsewhere(zone: &str, address: IpAddr, other: &str) -> String {
    let to = format!("--zone={zone}");
    let change = shell!["firewall-cmd", to, format!("--change-source={address}")];
    format!(
        "{address} is in firewalld's zone {other} and stays there: somebody else has put it there. \
         That zone decides what passes, not {zone} ({change} moves it)"
    )
}

/// The bridge of `result`, which is in front of the other interfaces.
fn isolation(result: &CniResult, ingress: Ingress) -> Result<Isolation> {
    let first = result
        .interfaces
        .first()
        .filter(|first| !first.name.is_empty());
    let bridge = first.ok_or_else(|| {
        let policy = match ingress {
            Ingress::SameBridge => "same-bridge",
            Ingress::Isolated => "isolated",
        };
        detailed(
            Code::Config,
            format!(
                "interface needs to be set for ingress policy \"{policy}\", make sure to chain \"firewall\" plugin with \"bridge\""
            ),
            "ingressPolicy: the first of the interfaces in prevResult must be the bridge",
        )
    })?;
    Ok(Isolation {
        bridge: bridge.name.clone(),
        ingress,
    })
}

/// The firewalld that is to be used, if one is: where the backend leaves that open, the one
/// that `find` finds.
///
/// # Errors
/// When it is asked for and does not run.
fn firewalld(
    backend: Backend,
    find: impl Fn() -> Result<Option<Firewalld>>,
) -> Result<Option<Firewalld>> {
    match backend {
        Backend::Rules(_) => Ok(None),
        // A bus that does not answer is no reason to do without rules.
        Backend::Auto => Ok(find().unwrap_or_else(|error| {
            log::warn(&format!("look for firewalld: {error:#}"));
            None
        })),
        Backend::Firewalld => find()?.map(Some).ok_or_else(|| {
            detailed(
                Code::Internal,
                "the backend firewalld that the configuration asks for does not run",
                "start firewalld, or choose the backend \"iptables\" or \"nftables\"",
            )
        }),
    }
}

/// The addresses whose claims are `wanted`.
fn claimed(wanted: impl Fn(&Claim) -> bool) -> Result<Vec<IpAddr>> {
    let claims = claims::all()?.into_iter();
    let wanted = claims.filter(|(_, claim)| wanted(claim));
    Ok(wanted.map(|(address, _)| address).collect())
}

/// Removes all that lets the owner through, and that lets `addresses` through unless they
/// have become somebody else's since; and the rules of bridges that are gone.
fn release(owner: &Owner, addresses: Vec<IpAddr>, parting: &Parting) -> Result<()> {
    let alone = claims::lock()?;
    let (mut known, mut zones) = (Vec::new(), Vec::new());
    for address in addresses {
        match claims::holder(address)? {
            Some(claim) if claim.owner() != *owner => continue,
            // Where it was let through by rules, firewalld's zones are not ours to touch.
            Some(claim) => zones.extend(claim.zone.map(|zone| (address, zone))),
            None => zones.push((address, parting.zone.clone())),
        }
        known.push(address);
    }
    let removed = netfilter::with_both(|backend| backend.remove_firewall(owner, &known));
    if zones.is_empty() {
        removed?;
        return all(known.into_iter().map(claims::forget));
    }
    // firewalld may take longer to answer than others wait for the lock.
    drop(alone);
    let mut is_done = false;
    let left = leave_zones(&zones, parting.wants_firewalld).map(|done| is_done = done);
    all([removed, left])?;
    // What stays claimed is left to GC.
    if !is_done {
        return Ok(());
    }
    let lost = forget(owner, known)?;
    enter_zones(&lost)
}

/// Forgets the claims to `addresses`, but for those that others have made meanwhile: they
/// may just have lost the zones that these name.
fn forget(owner: &Owner, addresses: Vec<IpAddr>) -> Result<Vec<(IpAddr, String)>> {
    let _alone = claims::lock()?;
    let mut lost = Vec::new();
    for address in addresses {
        match claims::holder(address)? {
            Some(claim) if claim.owner() != *owner => {
                lost.extend(claim.zone.map(|zone| (address, zone)));
            }
            _ => claims::forget(address)?,
        }
    }
    Ok(lost)
}

/// Takes addresses out of firewalld's zones, if it runs: otherwise it has forgotten them.
/// Where nobody can tell whether it runs, that is worth a warning and `false`; unless it
/// `is_wanted`.
fn leave_zones(zones: &[(IpAddr, String)], is_wanted: bool) -> Result<bool> {
    let mut firewalld = match Firewalld::find() {
        Ok(Some(firewalld)) => firewalld,
        Ok(None) => return Ok(true),
        Err(error) if is_wanted => return Err(error),
        Err(error) => {
            log::warn(&format!("look for firewalld: {error:#}"));
            return Ok(false);
        }
    };
    all(zones
        .iter()
        .map(|(address, zone)| firewalld.remove_source(zone, *address)))?;
    Ok(true)
}

/// Lets addresses into firewalld's zones again, if it runs.
fn enter_zones(zones: &[(IpAddr, String)]) -> Result<()> {
    if zones.is_empty() {
        return Ok(());
    }
    let Some(mut firewalld) = Firewalld::find()? else {
        return Ok(());
    };
    all(zones.iter().map(|(address, zone)| {
        firewalld.add_source(zone, *address)?;
        Ok(())
    }))
}
