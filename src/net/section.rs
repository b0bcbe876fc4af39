//! Sections of the work in one network namespace that one process at a time may be in.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cni::error::{Code, Coded, coded};
use crate::fsutil::{self, Lock};

/// Where only root can lock something.
const LOCK_DIR: &str = "/run/cni";

/// Keeps others out of the section `name`, as long as the answer lives.
///
/// # Errors
/// Code 11 when somebody else is in there for longer than `limit`; otherwise when the file
/// cannot be locked.
pub fn enter(name: &str, limit: Duration) -> Result<Lock> {
    let path = lock_file(name)?;
    match fsutil::lock_within(&path, 0o600, limit)? {
        Some(lock) => Ok(lock),
        None => Err(is_occupied(name, &path, limit).into()),
    }
}

/// Says that somebody else kept `lock` for as long as `limit`.
pub fn is_occupied(name: &str, lock: &Path, limit: Duration) -> Coded {
    let sentence = format!(
        "wait {} seconds for the lock of {name}, held by {}",
        limit.as_secs(),
        lock_holder(lock).unwrap_or_else(|| "another process".into()),
    );
    coded(Code::TryAgain, sentence)
}

/// The file to lock for the network namespace of this thread. Not the namespace's own
/// file: anybody may open that one, and lock it for ever.
fn lock_file(name: &str) -> Result<PathBuf> {
    let namespace = "/proc/thread-self/ns/net";
    let inode = std::fs::metadata(namespace)
        .with_context(|| format!("look up {namespace}"))?
        .ino();
    fsutil::create_directory(Path::new(LOCK_DIR), 0o755)?;
    Ok(Path::new(LOCK_DIR).join(format!("cnibox-{name}-{inode}.lock")))
}

/// Who has locked `file`, if the kernel tells us: "process 123 (name)".
fn lock_holder(file: &Path) -> Option<String> {
    let meta = std::fs::metadata(file).ok()?;
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let device = meta.dev();
    let (major, minor) = (nix::libc::major(device), nix::libc::minor(device));
    let pid = holder(&locks, &format!("{major:02x}:{minor:02x}:{}", meta.ino()))?;
    let name = fsutil::read(Path::new(&format!("/proc/{pid}/comm"))).ok()??;
    let name = String::from_utf8_lossy(&name);
    Some(format!("process {pid} ({})", name.trim()))
}

/// The process id in `locks` (`proc_locks(5)`) that holds the lock of `inode`.
fn holder<'a>(locks: &'a str, inode: &str) -> Option<&'a str> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        match fields.as_slice() {
            // Those who wait have "->" behind the number.
            [_, "FLOCK", _, _, pid, found, ..] if *found == inode => Some(*pid),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_holders() {
        let locks = "1: POSIX  ADVISORY  WRITE 1 00:27:2 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 17897 00:27:2 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 17898 00:27:3 0 EOF\n";
        assert_eq!(holder(locks, "00:27:2"), Some("17897"));
        assert_eq!(holder(locks, "00:27:3"), None);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert_eq!(lock_holder(&path), None);
        let held = fsutil::lock(&path, 0o600).unwrap();
        let holder = lock_holder(&path).unwrap();
        let own = format!("process {} (", std::process::id());
        assert!(holder.starts_with(&own), "{holder}");
        drop(held);
        assert_eq!(lock_holder(&path), None);
    }
}
