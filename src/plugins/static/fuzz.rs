//! What holds for every configuration that `static` accepts.

use anyhow::Result;

use super::config::Settings;
use crate::cni::skel::Call;

/// The settings of `call` keep their limits.
///
/// # Errors
/// When there are none.
pub fn settings(call: &Call) -> Result<()> {
    let settings = Settings::resolve(call)?;
    for (index, ip) in settings.ips.iter().enumerate() {
        let mut others = settings.ips.iter().skip(index + 1);
        assert!(!others.any(|other| other.address.addr() == ip.address.addr()));
    }
    Ok(())
}
