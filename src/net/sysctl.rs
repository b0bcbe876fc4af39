//! Sysctls of the network namespace that the calling thread is in.
//!
//! Keys are paths below `/proc/sys/net`, so that interface names may contain dots.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Error, Result};

use crate::cni::error::{Code, coded};

/// Where the keys are paths.
pub const ROOT: &str = "/proc/sys/net";

/// What the sysctl holds, without white space around it; `None` where there is nothing
/// to read: some, like `ipv4/route/flush`, can only be written.
///
/// # Errors
/// Names the key and the cause; see [`is_absent`].
pub fn read(key: &str) -> Result<Option<String>> {
    let path = format!("{ROOT}/{key}");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {path}")),
    }
}

/// Makes the sysctl hold `value`. One that does already is not written: read-only
/// `/proc/sys` is then no obstacle.
///
/// # Errors
/// Code 5 naming the key and the cause; where `/proc/sys` is read-only, as on restricted
/// hosts, what to do about it.
pub fn set(key: &str, value: &str) -> Result<()> {
    // Looking a name up in /proc/sys takes the longer the more namespaces there are.
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("{ROOT}/{key}"));
    if let Ok(file) = opened
        && let Ok(now) = text(&file)
    {
        // At the start: what is written behind what was read is lost.
        if now == value || file.write_all_at(value.as_bytes(), 0).is_ok() {
            return Ok(());
        }
    }
    // It may be only for reading here, and right already, or only for writing.
    let current = read(key)?;
    if current.as_ref().is_some_and(|current| current == value) {
        return Ok(());
    }
    let path = format!("{ROOT}/{key}");
    // Nothing is ever created there.
    OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|error| match error.kind() {
            ErrorKind::ReadOnlyFilesystem => Error::new(error).context(format!(
                "it is \"{}\" and read-only here: set it beforehand, or let the plugin write /proc/sys",
                current.unwrap_or_default()
            )),
            _ => error.into(),
        })
        .with_context(|| coded(Code::Io, format!("write {value} to {path}")))
}

/// What an open sysctl holds.
fn text(file: &File) -> std::io::Result<String> {
    // More than any that is ever written has.
    let mut bytes = [0; 256];
    let length = file.read_at(&mut bytes, 0)?;
    let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
    Ok(text.trim().to_owned())
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

/// Lets the host forward packets of the families of `ips` between its links, which stays
/// so.
///
/// # Errors
/// Names the sysctl.
pub fn forward(ips: impl Iterator<Item = IpAddr>) -> Result<()> {
    forwarding(ips)
        .into_iter()
        .try_for_each(|key| set(key, "1").context("let the host forward packets"))
}

/// What must be 1 for packets of the families of `ips` to be forwarded.
pub fn forwarding(ips: impl Iterator<Item = IpAddr>) -> BTreeSet<&'static str> {
    ips.map(|ip| match ip {
        IpAddr::V4(_) => "ipv4/ip_forward",
        IpAddr::V6(_) => "ipv6/conf/all/forwarding",
    })
    .collect()
}

/// Whether the namespace has IPv6 at all (`ipv6.disable=1` removes it).
pub fn has_ipv6() -> bool {
    fs::exists("/proc/sys/net/ipv6").unwrap_or(false)
}

/// Whether `error` says that there is no such sysctl, in this kernel or for this link.
pub fn is_absent(error: &Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::NotFound)
}
