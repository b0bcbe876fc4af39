//! STATUS: would ADD fail for every container until an administrator acts? Looks, takes no
//! lock and makes nothing.
//!
//! That all addresses are in use is no such reason: one is free as soon as a container ends,
//! and runtimes that are told that the network is not ready have the containers on the node
//! evicted. Who wants that all the same says so (`statusFailsWhenExhausted`).
//!
//! Runtimes ask every few seconds: while there is an address to give, few files are looked
//! at, and while the index is complete none is read, however many leases there are.

use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::addresses::Addresses;
use super::boots::Boots;
use super::config::Settings;
use super::lease_dir::LeaseDir;
use super::range_set::RangeSet;
use super::reserve::{exhausted, shortage};
use super::{allocator, resolv};
use crate::cni::config::Config;
use crate::cni::error::{Code, coded, detailed};
use crate::cni::result::{CniResult, Ip};
use crate::cni::skel::RememberedNetns;
use crate::fsutil;
use crate::patience::patiently;
use crate::plugins::sample::Sample;

/// How far apart addresses are that are tried where many are taken; a prime, so that it is
/// in step with nobody's habits.
const STRIDE: usize = 251;

/// How many of these: enough for a range of 16 bits.
const SAMPLES: usize = 261;

/// Checks what an ADD to `network` needs, as far as `settings` say. Without range sets
/// that is the directory and `resolvConf`.
///
/// # Errors
/// Code 50 and the reason.
pub fn check(network: &str, settings: &Settings, remembered: RememberedNetns) -> Result<()> {
    let unavailable = |sentence: String| coded(Code::NotAvailable, sentence);
    if let Some(path) = &settings.resolv_conf {
        // It may just be written anew.
        patiently(|| resolv::read(path)).with_context(|| {
            unavailable(format!("ipam.resolvConf of network {network} is not there"))
        })?;
    }
    let leases = LeaseDir::new(&settings.data_dir, network);
    let exists = leases
        .exists()
        .and_then(|exists| {
            fsutil::check_writable(leases.path())?;
            Ok(exists)
        })
        .with_context(|| {
            unavailable(format!(
                "addresses of network {network} cannot be recorded in {}",
                leases.path().display()
            ))
        })?;
    if let Some(set) = settings
        .sets
        .iter()
        .find(|set| first(settings, set).is_none())
    {
        return Err(detailed(
            Code::NotAvailable,
            exhausted(set),
            format!(
                "network {network}: every address of range set {set} is a gateway's: widen the range"
            ),
        ));
    }
    if !exists || !settings.status_fails_when_exhausted {
        return Ok(());
    }
    let boots = Boots::new(&settings.data_dir, network, remembered);
    for (index, set) in settings.sets.iter().enumerate() {
        let taken = taken_up(&leases, &boots, settings, index, set)
            .with_context(|| unavailable(format!("leases of network {network} cannot be read")))?;
        if let Some(taken) = taken {
            return Err(detailed(
                Code::NotAvailable,
                exhausted(set),
                shortage(network, set, &leases, &boots, &taken),
            ));
        }
    }
    Ok(())
}

/// A sample of what ADD will answer; `None` where the ranges come from the runtime.
///
/// # Errors
/// As ADD, for a configuration that is wrong.
pub fn sample(config: &Config) -> Result<Option<Sample>> {
    let settings = Settings::read_for_status(config)?;
    let mut ips = Vec::new();
    for set in &settings.sets {
        let found = first(&settings, set).and_then(|ip| Some((ip, set.range_of(ip)?)));
        let Some((ip, range)) = found else {
            return Ok(None);
        };
        let address = IpNet::new(ip, range.subnet.prefix_len())?;
        ips.push(Ip::new(address, Some(range.gateway)));
    }
    let is_known = !ips.is_empty();
    let result = CniResult {
        ips,
        routes: settings.routes,
        ..CniResult::default()
    };
    let is_typical = settings.sets.iter().all(|set| set.ranges.len() == 1);
    Ok(is_known.then_some(Sample { result, is_typical }))
}

/// The first address of `set` that a container could have.
fn first(settings: &Settings, set: &RangeSet) -> Option<IpAddr> {
    allocator::candidates(set, None).find(|ip| settings.set_with_gateway(*ip).is_none())
}

/// The addresses that are taken, if ADD would find none in `set`, which has this index. As it
/// looks itself, but in the index and among the names of the leases, of which few are looked
/// at.
fn taken_up(
    leases: &LeaseDir,
    boots: &Boots,
    settings: &Settings,
    index: usize,
    set: &RangeSet,
) -> Result<Option<Addresses>> {
    let candidates = allocator::candidates(set, leases.last_reserved(index))
        .filter(|ip| settings.set_with_gateway(*ip).is_none());
    if leases.first_at_a_glance(candidates.clone()).is_some() {
        return Ok(None);
    }
    // The stretch ahead is taken: what is free may be anywhere.
    let mut spread = candidates.clone().step_by(STRIDE).take(SAMPLES);
    if spread.any(|ip| !leases.is_taken(ip)) {
        return Ok(None);
    }
    let last = boots.index.last_tally();
    let is_current = boots.index.is_complete(leases.changed_at()?);
    let taken = match &last {
        Some(tally) if is_current => tally.addresses().clone(),
        _ => leases.recorded()?,
    };
    let is_free = |ip: IpAddr| !taken.contains(ip) && !leases.is_taken(ip);
    if may_have_room(set, settings, &taken) && candidates.clone().any(is_free) {
        return Ok(None);
    }
    // Of boots the index alone knows. What others do makes no lease one of an earlier boot.
    let may_have_earlier = last
        .as_ref()
        .is_some_and(|tally| !boots.has_no_earlier(tally));
    if may_have_earlier && boots.first_abandoned(leases, candidates.clone()).is_some() {
        return Ok(None);
    }
    // A file that somebody left blank since is seen above, if it is short and one of those
    // few: no reason to read all, each time.
    let may_have_blank = last.is_some_and(|tally| !boots.has_no_blank(&tally));
    if may_have_blank && leases.first_ownerless(candidates)?.is_some() {
        return Ok(None);
    }
    Ok(Some(taken))
}

/// Whether `set` has more addresses than are `taken` or gateways.
fn may_have_room(set: &RangeSet, settings: &Settings, taken: &Addresses) -> bool {
    let ranges = settings.sets.iter().flat_map(|set| &set.ranges);
    let gateways: Addresses = ranges
        .map(|range| range.gateway)
        .filter(|ip| !taken.contains(*ip))
        .collect();
    let (size, taken) = set.count(taken);
    size > (taken + set.count(&gateways).1) as u128
}
