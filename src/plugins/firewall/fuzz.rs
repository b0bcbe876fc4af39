//! What holds for every configuration that `firewall` accepts.

use anyhow::Result;

use super::config::Settings;
use crate::cni::skel::Call;

/// The settings of `call` can stand on a line for `iptables-restore`.
///
/// # Errors
/// When there are none.
pub fn settings(call: &Call) -> Result<()> {
    let Settings {
        admin_chain, zone, ..
    } = Settings::resolve(call)?;
    assert!(admin_chain.len() <= 28 && admin_chain.chars().all(|c| c.is_ascii_graphic()));
    assert!(!zone.is_empty() && !zone.contains('\0'));
    Ok(())
}
