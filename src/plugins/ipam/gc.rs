//! GC: which leases are nobody's.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::Result;

use super::boots::Boots;
use super::lease_dir::{Lease, LeaseDir};
use super::owner::Owner;
use super::store::Store;
use crate::cni::collector::{Collector, Freed, Run};
use crate::cni::invocation::Attachment;
use crate::cni::skel::RememberedNetns;

/// Frees every lease of `network` that belongs to none of `valid`. A lease without an
/// interface belongs to whichever attachment its container has. What an operator has
/// set aside with a note in the file stays.
///
/// # Errors
/// When the leases cannot be read.
pub fn collect(
    data_dir: &Path,
    network: &str,
    valid: &[Attachment],
    remembered: RememberedNetns,
    collector: &mut Collector,
) -> Result<()> {
    let kept: HashSet<Owner> = valid
        .iter()
        .flat_map(|attachment| [Owner::of(attachment), Owner::legacy(attachment)])
        .collect();
    let stale = |mut leases: Vec<Lease>| {
        leases.retain(|lease| {
            lease
                .owner
                .as_ref()
                .is_none_or(|owner| !owner.is_note() && !kept.contains(owner))
        });
        leases.sort_by_key(|lease| lease.ip);
        leases
    };
    // A store is locked, and leaves its index behind: nothing for a dry run.
    if collector.run() == Run::Dry {
        let boots = Boots::new(data_dir, network, remembered);
        let found = LeaseDir::new(data_dir, network).scan(&HashMap::new())?;
        for lease in stale(found.leases) {
            collector.remove(&describe(&lease, &boots), || Ok(()));
            tell_freed(&lease, collector);
        }
        for leftover in found.leftovers {
            let what = format!("leftover of a killed process {}", leftover.display());
            collector.remove(&what, || Ok(()));
        }
        return Ok(());
    }
    let Some(mut store) = Store::open(data_dir, network, remembered)? else {
        return Ok(());
    };
    for lease in stale(store.scan()?) {
        let what = describe(&lease, &store.boots);
        tell_freed(&lease, collector);
        collector.remove(&what, || store.release(&[lease]));
    }
    Ok(())
}

/// Whose `lease` was. A file of old does not tell the interface.
fn tell_freed(lease: &Lease, collector: &mut Collector) {
    if let Some(Owner {
        container_id,
        ifname: Some(ifname),
    }) = lease.owner.clone()
    {
        let attachment = Attachment {
            container_id,
            ifname,
        };
        let address = lease.ip;
        collector.free(Freed {
            attachment,
            address,
        });
    }
}

fn describe(lease: &Lease, boots: &Boots) -> String {
    let owner = match &lease.owner {
        Some(owner) => owner.to_string(),
        None => "nobody".to_owned(),
    };
    let when = if boots.is_earlier(&boots.held(lease.clone())) {
        ", from an earlier boot of the node"
    } else {
        ""
    };
    format!("lease {} of {owner}{when}", lease.ip)
}
