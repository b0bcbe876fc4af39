//! Whether this process may change the network.

use std::fs;

use anyhow::Result;

use crate::failure::{Failure, Kind};

/// Refuses to go on in a process that may not change the network. All that it could find out
/// about the host is that nothing works, which is not the host's fault.
///
/// # Errors
/// [`Kind::NotRoot`].
pub fn require_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() || has_net_admin() {
        return Ok(());
    }
    let sentence = "this needs root: only root can make links and rules";
    Err(Failure::new(Kind::NotRoot, sentence)
        .because("run it as root (with sudo), or give it the capability CAP_NET_ADMIN"))
}

/// Whether this thread has `CAP_NET_ADMIN`.
fn has_net_admin() -> bool {
    /// `CAP_NET_ADMIN`, capabilities(7).
    const NET_ADMIN: u32 = 12;
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    set.is_some_and(|set| set & (1 << NET_ADMIN) != 0)
}
