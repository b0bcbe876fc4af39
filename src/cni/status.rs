//! What the STATUS of every plugin has in common: who may ask, and patience with what
//! passes by itself.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Error, Result};

use super::error::{Code, detailed};

/// How long a STATUS waits for what passes by itself: a daemon that restarts, a file that is
/// being replaced.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Makes `attempt` again and again, as long as it fails and [`PATIENCE`] lasts.
///
/// # Errors
/// Those of the last attempt.
pub fn patiently<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(_) if start.elapsed() + PAUSE < PATIENCE => sleep(PAUSE),
            done => return done,
        }
    }
}

/// Refuses to look as somebody who may change nothing: all that such a user could report is
/// that nothing works, which says nothing about the runtime.
///
/// # Errors
/// Code 50, which says that root is needed.
pub fn require_root() -> Result<()> {
    needs_root().map_or(Ok(()), Err)
}

/// The error to give in place of one that blames the host, where this process is neither root
/// nor may change the network otherwise.
pub fn needs_root() -> Option<Error> {
    let may_change = nix::unistd::geteuid().is_root() || has_net_admin();
    (!may_change).then(|| {
        detailed(
            Code::NotAvailable,
            "this needs root: only root can make links and rules",
            "run it as root (with sudo), or give it the capability CAP_NET_ADMIN",
        )
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_waited_for_and_what_stays_is_told() {
        let mut attempts = 0;
        let third = patiently(|| {
            attempts += 1;
            anyhow::ensure!(attempts == 3, "not yet");
            Ok(attempts)
        });
        assert_eq!(third.unwrap(), 3);
        let never: Result<()> = patiently(|| anyhow::bail!("it stays so"));
        assert_eq!(never.unwrap_err().to_string(), "it stays so");
    }
}
