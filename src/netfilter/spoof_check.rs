//! The check that a container sends from its own hardware address only. Bridges are filtered by
//! the kernel's `nf_tables` alone, whichever backend the other rules are in.

use anyhow::Result;

use crate::cni::invocation::Attachment;
use crate::net::mac::Mac;
use crate::netfilter::model::Owner;
use crate::netfilter::nftables::Nftables;

/// Whether there can be a check for the owner: a pure check, for before anything is made.
///
/// # Errors
/// Code 7, naming `macspoofchk`.
pub fn fits(owner: &Owner) -> Result<()> {
    Nftables::fits_spoof_check(owner)
}

/// Lets only frames from `mac` through the bridge port `host_end`.
///
/// # Errors
/// When the kernel refuses; nothing is changed then.
pub fn ensure(owner: &Owner, host_end: &str, mac: Mac) -> Result<()> {
    Nftables::ensure_spoof_check(owner, host_end, mac)
}

/// Removes the owner's check. If there is none, that is no error.
///
/// # Errors
/// When the check is there and stays.
pub fn remove(owner: &Owner) -> Result<()> {
    Nftables::remove_spoof_check(owner)
}

/// The rules of the check that are missing, each as the command that would add it.
///
/// # Errors
/// When the rules cannot be read.
pub fn missing(owner: &Owner, host_end: &str, mac: Mac) -> Result<Vec<String>> {
    Nftables::missing_spoof_check(owner, host_end, mac)
}

/// The owners whose checks [`collect`] would remove, as text.
///
/// # Errors
/// When the rules cannot be read.
pub fn stale(network: &str, valid: &[Attachment]) -> Result<Vec<String>> {
    Nftables::stale_spoof_checks(network, valid)
}

/// Removes the checks of `network` whose attachment is not in `valid`. The reference's do not
/// name their network and stay.
///
/// # Errors
/// When a check is there and stays.
pub fn collect(network: &str, valid: &[Attachment]) -> Result<()> {
    Nftables::collect_spoof_checks(network, valid)
}
