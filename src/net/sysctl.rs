//! Sysctls of the network namespace that the calling thread is in.
//!
//! Keys are paths below `/proc/sys/net`, so that interface names may contain dots.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result};

/// Makes the sysctl hold `value`. One that does already is not written: read-only
/// `/proc/sys` is then no obstacle.
///
/// # Errors
/// Names the key and the cause.
pub fn set(key: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{key}");
    let current = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    if current.trim() == value {
        return Ok(());
    }
    fs::write(&path, value).with_context(|| format!("write {value} to {path}"))
}

/// Makes the sysctl hold `value` if this kernel has it.
///
/// # Errors
/// As [`set`].
pub fn set_if_present(key: &str, value: &str) -> Result<()> {
    match set(key, value) {
        Err(error) if is_absent(&error) => Ok(()),
        done => done,
    }
}

/// Whether the namespace has IPv6 at all (`ipv6.disable=1` removes it).
pub fn has_ipv6() -> bool {
    fs::exists("/proc/sys/net/ipv6").unwrap_or(false)
}

fn is_absent(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::NotFound)
}
