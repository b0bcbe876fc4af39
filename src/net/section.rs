//! Sections of the work in one network namespace that one process at a time may be in.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::failure::{Failure, Kind};
use crate::fsutil::{self, Lock};

/// Where only root can lock something, or leave it until the next start of the machine.
pub const DIR: &str = "/run/cni";

/// Keeps others out of the section `name`, as long as the answer lives.
///
/// # Errors
/// [`Kind::Busy`] when another process holds the lock for longer than `limit`; [`Kind::Io`]
/// when the file cannot be locked.
pub fn enter(name: &str, limit: Duration) -> Result<Lock> {
    enter_within(name, limit)?.ok_or_else(|| occupied(name, limit))
}

/// As [`enter`], but answers `None` when somebody else is in there for longer than `limit`.
///
/// # Errors
/// [`Kind::Io`] when the file cannot be locked.
pub fn enter_within(name: &str, limit: Duration) -> Result<Option<Lock>> {
    locked(name, limit, fsutil::lock_within)
}

/// As [`enter`], but lets others in who share the section too.
///
/// # Errors
/// As [`enter`].
pub fn share(name: &str, limit: Duration) -> Result<Lock> {
    share_within(name, limit)?.ok_or_else(|| occupied(name, limit))
}

/// As [`share`], but answers `None` when somebody else keeps it for longer than `limit`.
///
/// # Errors
/// [`Kind::Io`] when the file cannot be locked.
pub fn share_within(name: &str, limit: Duration) -> Result<Option<Lock>> {
    locked(name, limit, fsutil::share_within)
}

/// For STATUS: whether sections can be entered. Makes nothing to find out.
///
/// # Errors
/// [`Kind::Unavailable`] where they cannot.
pub fn check_writable() -> Result<()> {
    fsutil::check_writable(Path::new(DIR))
        .with_context(|| Failure::new(Kind::Unavailable, format!("locks cannot be made in {DIR}")))
}

/// A way to lock a file, such as [`fsutil::lock_within`].
type Way = fn(&Path, u32, Duration) -> Result<Option<Lock>>;

fn locked(name: &str, limit: Duration, way: Way) -> Result<Option<Lock>> {
    let path = lock_file(name)?;
    let lock = || {
        fsutil::create_directory(Path::new(DIR), 0o755)?;
        way(&path, 0o600, limit)
    };
    lock().with_context(|| {
        let sentence = format!(
            "keep others out of {}: make {DIR} a directory in which root can write",
            path.display()
        );
        Failure::new(Kind::Io, sentence)
    })
}

/// The error of those who waited in vain for the section `name`.
pub fn occupied(name: &str, limit: Duration) -> anyhow::Error {
    match lock_file(name) {
        Ok(path) => is_occupied(name, &path, limit).into(),
        Err(error) => error,
    }
}

/// Says that somebody else kept `lock`, which is that of `what`, for as long as `limit`.
pub fn is_occupied(what: &str, lock: &Path, limit: Duration) -> Failure {
    let sentence = format!(
        "wait {} seconds for the lock of {what}, held by {}",
        limit.as_secs_f32(),
        fsutil::lock_holder(lock).unwrap_or_else(|| "another process".into()),
    );
    Failure::new(Kind::Busy, sentence)
}

/// The file to lock for the network namespace of this thread. Not the namespace's own
/// file: anybody may open that one, and lock it for ever.
fn lock_file(name: &str) -> Result<PathBuf> {
    let file = format!("{}.lock", stem(name)?);
    Ok(Path::new(DIR).join(file))
}

/// How the names of the files in [`DIR`] begin that belong to the section `name` of the
/// network namespace of this thread.
///
/// # Errors
/// When `/proc` does not tell which namespace that is.
pub fn stem(name: &str) -> Result<String> {
    let namespace = "/proc/thread-self/ns/net";
    let inode = std::fs::metadata(namespace)
        .with_context(|| Failure::new(Kind::Io, format!("look up {namespace}")))?
        .ino();
    Ok(format!("cnibox-{name}-{inode}"))
}
