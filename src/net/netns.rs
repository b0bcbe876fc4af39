//! Network namespaces, named by a path (`network_namespaces(7)`).

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs, statfs};

use crate::failure::{Failure, Kind};
use crate::{fsutil, log};

/// An open network namespace: it exists as long as this does.
#[derive(Debug, Clone)]
pub struct Netns {
    file: Arc<File>,
    path: String,
}

/// The namespace of this thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// Where files that name namespaces live: `nsfs`, or `proc` on kernels before 3.19.
const NAMESPACE_FILESYSTEMS: [FsType; 2] = [FsType(0x6e73_6673), FsType(0x9fa0)];

impl Netns {
    /// Opens the namespace at `path`.
    ///
    /// # Errors
    /// [`Kind::Namespace`], saying what is at `path` instead.
    pub fn open(path: &str) -> Result<Self> {
        Self::try_open(path)?.map_err(|absent| {
            let sentence = format!("failed to open netns \"{path}\": {absent}");
            Failure::new(Kind::Namespace, sentence).because(
                "CNI_NETNS must be the path of a network namespace, like /run/netns/NAME or /proc/PID/ns/net",
            )
        })
    }

    /// A new namespace that nobody else knows: for a look at what the kernel can do. It
    /// goes with everything in it when the value does. About 1 ms.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn throwaway() -> Result<Self> {
        let made = || {
            #[expect(
                clippy::disallowed_methods,
                reason = "this is the module that enters namespaces"
            )]
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
            Ok(Self {
                file: File::open(OWN)
                    .with_context(|| format!("open {OWN}"))?
                    .into(),
                path: "a namespace of our own".to_owned(),
            })
        };
        on_a_thread(made)
    }

    /// The kernel's number for it, which no other namespace has as long as it lives.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn inode(&self) -> Result<u64> {
        let metadata = self.file.metadata();
        Ok(metadata
            .with_context(|| format!("look at {}", self.path))?
            .ino())
    }

    /// For DEL: the namespace if there is one. A path that does not exist, or names
    /// something else (a file left behind by an unmount), means the namespace is gone
    /// and its links with it.
    ///
    /// # Errors
    /// When a namespace is there and cannot be opened.
    pub fn open_if_any(path: Option<&str>) -> Result<Option<Self>> {
        let Some(path) = path else { return Ok(None) };
        let opened = Self::try_open(path)?.and_then(|netns| {
            // A namespace of another kind shows only when it is entered.
            match netns.inside(|| Ok(())) {
                Ok(()) => Ok(netns),
                Err(error) => Err(error.root_cause().to_string()),
            }
        });
        match opened {
            Ok(netns) => Ok(Some(netns)),
            Err(absent) => {
                log::warn(&format!(
                    "CNI_NETNS {path}: {absent}; cleaning up without it"
                ));
                Ok(None)
            }
        }
    }

    /// The namespace, or why there is none.
    fn try_open(path: &str) -> Result<std::result::Result<Self, String>> {
        let absent = |why: &str| Ok(Err(why.to_owned()));
        // O_NONBLOCK: a FIFO there must not make us wait for somebody to open it too.
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(path);
        let file = match opened {
            Ok(file) => file,
            // Our own limits, not a word about what is there.
            Err(error)
                if matches!(
                    error.raw_os_error().map(Errno::from_raw),
                    Some(
                        Errno::EACCES
                            | Errno::EPERM
                            | Errno::EMFILE
                            | Errno::ENFILE
                            | Errno::ENOMEM
                    )
                ) =>
            {
                return Err(error).with_context(|| {
                    Failure::new(Kind::Namespace, format!("open CNI_NETNS {path}"))
                });
            }
            Err(error) => {
                let reason = fsutil::in_words(&error);
                return absent(&format!("failed to Statfs \"{path}\": {reason}"));
            }
        };
        let filesystem = fstatfs(&file)
            .with_context(|| format!("look at the file system of {path}"))?
            .filesystem_type();
        if !NAMESPACE_FILESYSTEMS.contains(&filesystem) {
            return absent(&format!(
                "unknown FS magic on \"{path}\": {:x}",
                filesystem.0
            ));
        }
        Ok(Ok(Self {
            file: Arc::new(file),
            path: path.to_owned(),
        }))
    }

    /// The path as given.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// A path that leads here for other processes too, as long as this value lives.
    pub fn path_by_descriptor(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd())
    }

    /// The descriptor, for requests that name a namespace.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `work` inside the namespace, and comes back. Where there is no way back, as the
    /// thread is in a namespace that it may not enter, another thread goes and ends there.
    ///
    /// # Errors
    /// When the namespace cannot be entered, and those of `work`.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let entered = || {
            enter(&self.file).with_context(|| {
                Failure::new(
                    Kind::Namespace,
                    format!("enter network namespace {}", self.path),
                )
            })?;
            work()
        };
        match WayBack::find() {
            Some(_back) => entered(),
            None => on_a_thread(entered),
        }
    }
}

/// Makes `netns` the namespace of this thread.
fn enter(netns: &File) -> nix::Result<()> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the module that enters namespaces"
    )]
    setns(netns, CloneFlags::CLONE_NEWNET)
}

/// Where this thread was: it is there again when this is dropped.
struct WayBack(File);

impl WayBack {
    /// The namespace of this thread, if it may be entered.
    fn find() -> Option<Self> {
        let own = File::open(OWN).ok()?;
        enter(&own).ok()?;
        Some(Self(own))
    }
}

impl Drop for WayBack {
    fn drop(&mut self) {
        /// The kernel may be short of memory for a moment.
        const TRIES: u8 = 3;
        let is_back = (0..TRIES).any(|_| enter(&self.0).is_ok());
        // In the wrong namespace nothing may be done.
        assert!(is_back, "return from the container's network namespace");
    }
}

/// Runs `work` on a thread that ends with it: the namespace that it is in then is nobody
/// else's concern.
fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .spawn_scoped(scope, work)
            .context("start a thread for another namespace")?
            .join()
            // Unreachable: a panic ends the process in its hook.
            .unwrap_or_else(|_panic| Err(anyhow::anyhow!("the thread in another namespace died")))
    })
}

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS: FsType = FsType(0x6e73_6673);

/// Whether `netns` may be a living namespace. Only what is certainly none counts as
/// gone: the path does not exist, or is a plain file that the namespace was mounted on.
pub fn is_live(netns: &str) -> bool {
    if netns.is_empty() {
        return true;
    }
    match statfs(Path::new(netns)) {
        Ok(filesystem) => filesystem.filesystem_type() == NSFS,
        Err(errno) => !matches!(errno, Errno::ENOENT | Errno::ENOTDIR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_means_live() {
        assert!(is_live("/proc/self/ns/net"));
        assert!(is_live(""));
        assert!(!is_live("/nowhere"));
        assert!(!is_live("/proc/self/status/x"));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!is_live(file.path().to_str().unwrap()));
    }
}
