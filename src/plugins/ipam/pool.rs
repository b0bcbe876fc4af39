//! The addresses of one network and who has them, for whoever looks at a node. Takes no
//! lock and makes nothing: what changes meanwhile may be told half.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Result;

use super::allocator;
use super::boots::Boots;
use super::config::Settings;
pub use super::config::{DEFAULT_DATA_DIR, data_dir};
use super::lease_dir::LeaseDir;
use super::owner::Owner;
use super::range_set::RangeSet;
use crate::cni::config::Config;

/// The leases of one network, and the addresses that there are to lease.
#[derive(Debug, Default)]
pub struct Pool {
    /// The network's name.
    pub network: String,
    /// The directory of its leases.
    pub directory: PathBuf,
    /// One for each address that an attachment gets; none for a network that is not
    /// configured any more.
    pub sets: Vec<Set>,
    /// By address.
    pub leases: Vec<Record>,
}

/// Ranges from which an attachment gets one address.
#[derive(Debug, Default)]
pub struct Set {
    /// The first and the last address of each.
    pub ranges: Vec<(IpAddr, IpAddr)>,
    /// Those that can be leased: without gateways.
    pub size: u128,
    /// What the next ADD gets; `None` while all are taken.
    pub next: Option<IpAddr>,
}

impl Set {
    /// Whether `ip` is in one of the ranges.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let mut ranges = self.ranges.iter();
        ranges.any(|(first, last)| *first <= ip && ip <= *last)
    }
}

/// A file that records an address.
#[derive(Debug, Clone)]
pub struct Record {
    /// The address.
    pub ip: IpAddr,
    /// Whose it is.
    pub holder: Holder,
    /// The boot of the node in which it was written, where that is known.
    pub boot: Option<String>,
    /// Whether that was an earlier one than this.
    pub is_earlier: bool,
    /// When it was written.
    pub written: Option<SystemTime>,
}

/// Whose an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A container's, and there the interface's, unless the file is from before
    /// interfaces were recorded.
    Attachment(String, Option<String>),
    /// An operator has set it aside, with this note.
    Note(String),
    /// Nobody's: the file is empty or damaged.
    Nobody,
}

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

/// The pool of the network that `config`, of a plugin that uses `host-local`, is about.
///
/// # Errors
/// When the configuration is wrong, or the leases cannot be listed.
pub fn look(config: &Config) -> Result<Pool> {
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
pub fn leftover(data_dir: &Path, network: &str) -> Result<Pool> {
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
pub fn networks(data_dir: &Path) -> std::io::Result<Vec<String>> {
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
