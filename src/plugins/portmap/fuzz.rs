//! What holds for every configuration that `portmap` accepts.

use anyhow::Result;

use super::config::Settings;
use super::wanted;
use crate::cni::skel::Call;
use crate::netfilter::{Mark, iptables};
use crate::plugins::owner::owner_of;

/// The settings of `call` keep their limits, and what `iptables-restore` would read is
/// nothing but lines of ours.
///
/// # Errors
/// When there are none.
pub fn settings(call: &Call) -> Result<()> {
    let settings = Settings::resolve(call)?;
    if let Mark::Bit(bit) = settings.mark {
        assert!(bit <= 31);
    }
    for (index, mapping) in settings.mappings.iter().enumerate() {
        assert!(mapping.host_port != 0 && mapping.container_port != 0);
        let mut others = settings.mappings.iter().skip(index + 1);
        assert!(!others.any(|other| other.same_port(mapping)));
    }
    if let Ok(Some(result)) = call.config.prev_result()
        && let Some(wanted) = wanted(call, &settings, &result)
    {
        assert!(!wanted.container.is_empty() && wanted.container.len() <= 2);
        iptables::fuzz::port_maps(&owner_of(call), &wanted);
    }
    Ok(())
}
