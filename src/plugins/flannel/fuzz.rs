//! What holds for every configuration that `flannel` accepts.

use anyhow::Result;

use super::config::Settings;
use crate::cni::config::Document;
use crate::cni::skel::Call;

/// What the delegate gets is a configuration of the same network.
///
/// # Errors
/// When there are no settings.
pub fn settings(call: &Call) -> Result<()> {
    let settings = Settings::resolve(call)?;
    let delegated = settings.delegated(&call.config.network, None);
    assert!(
        delegated
            .get("type")
            .is_some_and(|plugin| plugin != "flannel")
    );
    let raw = serde_json::to_vec(&delegated)?;
    let config = Document::parse(raw);
    assert!(config.is_ok(), "{config:?}");
    Ok(())
}
