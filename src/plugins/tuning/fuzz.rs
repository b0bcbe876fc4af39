//! What holds for every configuration that `tuning` accepts, and for every file that it
//! reads.

use std::path::{Component, Path};

use anyhow::Result;

use super::allowlist::Allowlist;
use super::backup::Backup;
use super::config::Settings;
use crate::cni::skel::Call;

/// The settings of `call` keep their limits: no sysctl outside the network, one line each.
///
/// # Errors
/// When there are none.
pub fn settings(call: &Call) -> Result<()> {
    let settings = Settings::resolve(call)?;
    for sysctl in &settings.sysctls {
        let mut components = Path::new(&sysctl.path).components();
        assert!(
            components.all(|c| matches!(c, Component::Normal(_))),
            "{sysctl:?}"
        );
        assert!(!sysctl.path.is_empty() && !sysctl.path.contains('\0'));
        assert!(!sysctl.value.contains(['\n', '\0']), "{sysctl:?}");
    }
    let mut paths: Vec<_> = settings.sysctls.iter().map(|sysctl| &sysctl.path).collect();
    paths.dedup();
    assert_eq!(paths.len(), settings.sysctls.len());
    assert!(settings.link.mtu != Some(0));
    assert!(
        settings
            .link
            .mac
            .is_none_or(|wanted| wanted.mac.is_unicast())
    );
    Ok(())
}

/// A backup says the same when it is written again.
pub fn backup(content: &[u8]) {
    if let Ok(backup) = serde_json::from_slice::<Backup>(content) {
        let written = backup.encode("n").unwrap_or_default();
        assert_eq!(
            serde_json::from_slice::<Backup>(&written).ok(),
            Some(backup)
        );
    }
}

/// The administrator's list lets a sysctl through or refuses it.
pub fn allowlist(content: &[u8]) {
    /// Expressions are the administrator's: their size is not bounded by us.
    const MOST: usize = 256;
    if let Ok(list) = Allowlist::parse(&String::from_utf8_lossy(content))
        && content.len() < MOST
    {
        drop(list.check("net.ipv4.conf.eth0.arp_filter"));
    }
}
