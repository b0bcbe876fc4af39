//! The addresses of one network and who has them, for whoever looks at a node. Takes no
//! lock and makes nothing: what changes meanwhile may be told half.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::allocator;
use super::boots::Boots;
use super::config::{DEFAULT_DATA_DIR, Settings, data_dir};
use super::lease_dir::LeaseDir;
use super::owner::Owner;
use super::range_set::RangeSet;
use crate::cni::config::Config;
use crate::cni::pool::{Holder, Pool, Record, Set};

impl From<Option<Owner>> for Holder {
    fn from(owner: Option<Owner>) -> Self {
        match owner {
            None => Self::Nobody,
            Some(owner) if owner.is_damaged() => Self::Nobody,
            Some(owner) if owner.is_note() => Self::Note(owner.container_id),
            Some(owner) => Self::Attachment(owner.container_id, owner.ifname),
        }
    }
}

/// The pools that `configs` describe, and those of all networks that have left leases in their
/// data directories or the usual one; and what could not be read.
pub fn all(configs: &[Config]) -> (Vec<Pool>, Vec<String>) {
    let mut doubts = Vec::new();
    let mut pools: BTreeMap<(PathBuf, String), Pool> = BTreeMap::new();
    let mut places = BTreeSet::from([PathBuf::from(DEFAULT_DATA_DIR)]);
    for config in configs {
        let Ok(place) = data_dir(config) else {
            continue;
        };
        let key = (place.clone(), config.network.clone());
        places.insert(place);
        // What the runtime names ranges in counts only where the configuration has none.
        if pools.get(&key).is_some_and(|pool| !pool.sets.is_empty()) {
            continue;
        }
        match look(config) {
            Ok(pool) => drop(pools.insert(key, pool)),
            Err(error) => {
                let doubt = format!("leases of network {}: {error:#}", config.network);
                // The network may be remembered many times.
                if !doubts.contains(&doubt) {
                    doubts.push(doubt);
                }
            }
        }
    }
    for place in places {
        match networks(&place) {
            Ok(names) => {
                for name in names {
                    let Slot::Vacant(slot) = pools.entry((place.clone(), name)) else {
                        continue;
                    };
                    match leftover(&place, &slot.key().1) {
                        Ok(pool) => drop(slot.insert(pool)),
                        Err(error) => doubts.push(format!("{error:#}")),
                    }
                }
            }
            Err(error) => doubts.push(format!("list {}: {error}", place.display())),
        }
    }
    (pools.into_values().collect(), doubts)
}

/// The pool of the network that `config`, of a plugin that uses `host-local`, is about.
///
/// # Errors
/// When the configuration is wrong, or the leases cannot be listed.
fn look(config: &Config) -> Result<Pool> {
    let settings = Settings::read_for_status(config)?;
    let leases = LeaseDir::new(&settings.data_dir, &config.network);
    let mut pool = leftover(&settings.data_dir, &config.network)?;
    let taken: BTreeSet<IpAddr> = pool.leases.iter().map(|lease| lease.ip).collect();
    let sets = settings.sets.iter().enumerate();
    pool.sets = sets
        .map(|(number, set)| {
            let last = leases.last_reserved(number);
            let next = allocator::candidates(set, last)
                .find(|ip| !taken.contains(ip) && settings.set_with_gateway(*ip).is_none());
            Set {
                ranges: set.ranges.iter().map(|r| (r.start, r.end)).collect(),
                size: size(set, &settings.sets),
                next,
            }
        })
        .collect();
    Ok(pool)
}

/// The leases of `network` in a data directory, whatever is configured.
///
/// # Errors
/// When they cannot be listed.
fn leftover(data_dir: &Path, network: &str) -> Result<Pool> {
    let directory = LeaseDir::new(data_dir, network);
    // Nothing is taken over here, so nobody asks whether a container lives.
    let boots = Boots::new(data_dir, network, |_, _| None);
    let mut leases: Vec<Record> = directory
        .scan(&HashMap::new())?
        .leases
        .into_iter()
        .map(|lease| {
            let written = fs::symlink_metadata(directory.file(lease.ip));
            let held = boots.held(lease);
            Record {
                ip: held.lease.ip,
                is_earlier: boots.is_earlier(&held),
                boot: held.boot,
                holder: held.lease.owner.into(),
                written: written.and_then(|meta| meta.modified()).ok(),
            }
        })
        .collect();
    leases.sort_by_key(|lease| lease.ip);
    Ok(Pool {
        network: network.to_owned(),
        directory: directory.path().to_owned(),
        sets: Vec::new(),
        leases,
    })
}

/// The networks that have leases in a data directory, which need not exist.
///
/// # Errors
/// When it cannot be listed.
fn networks(data_dir: &Path) -> std::io::Result<Vec<String>> {
    let entries = match fs::read_dir(data_dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().into_string().unwrap_or_default();
        if !name.is_empty() && !name.starts_with('.') && entry.file_type()?.is_dir() {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

/// How many addresses of `set` can be leased.
fn size(set: &RangeSet, all: &[RangeSet]) -> u128 {
    let gateways: BTreeSet<IpAddr> = all
        .iter()
        .flat_map(|set| set.ranges.iter().map(|range| range.gateway))
        .filter(|gateway| set.range_of(*gateway).is_some())
        .collect();
    let whole = set.ranges.iter().map(|range| width(range.start, range.end));
    let whole = whole.fold(0, u128::saturating_add);
    whole.saturating_sub(gateways.len() as u128)
}

/// How many addresses there are from `first` to `last`, both included.
fn width(first: IpAddr, last: IpAddr) -> u128 {
    let number = |ip| match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    number(last).saturating_sub(number(first)).saturating_add(1)
}
