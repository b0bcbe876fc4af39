//! What holds for every configuration that `ptp` accepts.

use anyhow::Result;

use super::config::Settings;
use crate::cni::skel::Call;

/// The settings of `call` keep their limits.
///
/// # Errors
/// When there are none.
pub fn settings(call: &Call) -> Result<()> {
    let settings = Settings::resolve(call)?;
    assert!(!settings.ipam.is_empty());
    assert!(settings.mtu.is_none_or(|mtu| (68..=65535).contains(&mtu)));
    Ok(())
}
