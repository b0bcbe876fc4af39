//! What holds for every configuration that `bandwidth` accepts.

use anyhow::Result;

use super::config::Settings;
use crate::cni::skel::Call;

/// The settings of `call` keep their limits.
///
/// # Errors
/// When there are none.
pub fn settings(call: &Call) -> Result<()> {
    let settings = Settings::resolve(call)?;
    for limit in [settings.ingress, settings.egress].into_iter().flatten() {
        let bucket = limit.bucket;
        assert!(bucket.rate != 0 && bucket.limit != 0, "{bucket:?}");
    }
    Ok(())
}
