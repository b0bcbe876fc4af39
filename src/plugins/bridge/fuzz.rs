//! What holds for every configuration that `bridge` accepts.

use anyhow::Result;

use super::config::Settings;
use crate::cni::invocation::check_ifname;
use crate::cni::skel::Call;
use crate::net::mac::Mac;

/// The settings of `call` keep their limits.
///
/// # Errors
/// When there are none.
pub fn settings(call: &Call) -> Result<()> {
    let settings = Settings::resolve(call)?;
    assert!(check_ifname(&settings.bridge).is_ok());
    assert!(settings.mtu.is_none_or(|mtu| (68..=65535).contains(&mtu)));
    assert!(settings.mac.is_none_or(Mac::is_unicast));
    assert!(settings.is_gateway || !settings.is_default_gateway);
    assert!(!(settings.hairpin && settings.promiscuous));
    assert!(settings.ipam.as_deref() != Some(""));
    Ok(())
}
