//! STATUS: could an ADD be served now? Looks, takes no lock and makes nothing.
//!
//! Runtimes ask every few seconds: while there is an address to give, few files are looked
//! at, and while the index is complete none is read, however many leases there are.

use anyhow::{Context, Result};

use super::allocator;
use super::boots::Boots;
use super::config::Settings;
use super::index::Tally;
use super::lease_dir::LeaseDir;
use super::range_set::RangeSet;
use super::reserve::{exhausted, shortage};
use super::resolv;
use crate::cni::error::{Code, coded, detailed};
use crate::fsutil;

/// Checks what an ADD to `network` needs, as far as `settings` say. Without range sets
/// that is the directory and `resolvConf`.
///
/// # Errors
/// Code 50 and the reason.
pub fn check(network: &str, settings: &Settings) -> Result<()> {
    let unavailable = |sentence: String| coded(Code::NotAvailable, sentence);
    if let Some(path) = &settings.resolv_conf {
        resolv::read(path).with_context(|| {
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
    if !exists {
        return Ok(());
    }
    let boots = Boots::new(&settings.data_dir, network);
    for (index, set) in settings.sets.iter().enumerate() {
        let has_room = has_room(&leases, &boots, settings, index, set)
            .with_context(|| unavailable(format!("leases of network {network} cannot be read")))?;
        if !has_room {
            return Err(detailed(
                Code::NotAvailable,
                exhausted(set),
                shortage(network, set, &leases, &boots),
            ));
        }
    }
    Ok(())
}

/// Whether ADD would find an address in `set`, which has this index: as it looks itself,
/// but reading leases only where the index does not know.
fn has_room(
    leases: &LeaseDir,
    boots: &Boots,
    settings: &Settings,
    index: usize,
    set: &RangeSet,
) -> Result<bool> {
    let candidates = allocator::candidates(set, leases.last_reserved(index))
        .filter(|ip| settings.set_with_gateway(*ip).is_none());
    if leases.first_at_a_glance(candidates.clone()).is_some() {
        return Ok(true);
    }
    let tally = boots.index.tally(leases.changed_at()?);
    // More addresses than there are leases: one of them is free, whichever it is.
    let has_more_than = |tally: &Tally| candidates.clone().nth(tally.total()).is_some();
    if tally.as_ref().is_some_and(has_more_than)
        || leases.first_unrecorded(candidates.clone())?.is_some()
    {
        return Ok(true);
    }
    let is_known =
        |known: fn(&Boots, &Tally) -> bool| tally.as_ref().is_some_and(|tally| known(boots, tally));
    if !is_known(Boots::has_no_blank) && leases.first_ownerless(candidates.clone())?.is_some() {
        return Ok(true);
    }
    Ok(!is_known(Boots::has_no_earlier) && boots.first_abandoned(leases, candidates).is_some())
}
