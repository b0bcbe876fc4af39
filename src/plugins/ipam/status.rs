//! STATUS: could an ADD be served now? Looks, takes no lock and makes nothing.

use std::path::Path;

use anyhow::{Context, Result};
use nix::unistd::{AccessFlags, access};

use super::allocator;
use super::config::Settings;
use super::lease_dir::LeaseDir;
use super::reserve::{exhausted, recorded, shortage};
use super::resolv;
use crate::cni::error::{Code, coded, detailed};

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
            check_writable(leases.path())?;
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
    for (index, set) in settings.sets.iter().enumerate() {
        let candidates = allocator::candidates(set, leases.last_reserved(index))
            .filter(|ip| settings.set_with_gateway(*ip).is_none());
        let free = leases
            .first_free(candidates)
            .with_context(|| unavailable(format!("leases of network {network} cannot be read")))?;
        if free.is_none() {
            let in_use = recorded(&leases, set).len().to_string();
            return Err(detailed(
                Code::NotAvailable,
                exhausted(set),
                shortage(network, set, &in_use, &leases),
            ));
        }
    }
    Ok(())
}

/// Whether files can be made in `dir`, or `dir` itself where it does not exist.
fn check_writable(dir: &Path) -> Result<()> {
    let nearest = dir
        .ancestors()
        .map(|dir| {
            if dir.as_os_str().is_empty() {
                Path::new(".")
            } else {
                dir
            }
        })
        .find(|dir| dir.symlink_metadata().is_ok())
        .context("nothing on the way there exists")?;
    // A file in the place of a directory has no entries to search.
    access(&nearest.join("."), AccessFlags::W_OK | AccessFlags::X_OK)
        .with_context(|| format!("write to {}", nearest.display()))
}
