//! Files that other programs see only whole, and the lock they agree on.

use std::ffi::CStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::statfs;
use nix::unistd::{AccessFlags, access};
use rustix::fs::RawDir;

use crate::log;

/// How the names of files begin that are still being written.
const ASIDE: &str = ".cnibox-";
/// Of a directory whose files are nobody else's to know of. (The reference makes some 0600,
/// which nobody but root with all capabilities can use.)
const PRIVATE_DIR: u32 = 0o700;
/// Of the directories above it, where others keep their files too.
const SHARED_DIR: u32 = 0o755;

/// How long those wait for each other that write into one directory: each takes much less.
const BUSY_WAIT: Duration = Duration::from_millis(500);

/// Whether `name` is that of a file being written, or left behind by a killed process.
pub fn is_aside(name: &str) -> bool {
    name.starts_with(ASIDE)
}

/// What the system said, as the reference plugins word it: `no such file or directory`.
pub fn in_words(error: &std::io::Error) -> String {
    let Some(number) = error.raw_os_error() else {
        return error.to_string();
    };
    let text = Errno::from_raw(number).desc();
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}

/// A file written beside its place under a name nobody guesses; gone again on drop.
struct Aside(PathBuf);

impl Aside {
    fn name(beside: &Path) -> Result<PathBuf> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = parent(beside);
        Ok(dir.join(format!(
            "{ASIDE}{:08x}-{}-{}",
            random_u32()?,
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed),
        )))
    }

    fn write(beside: &Path, mode: u32, bytes: &[u8], durable: bool) -> Result<Self> {
        loop {
            let aside = Self::name(beside)?;
            if create_in_place(&aside, mode, bytes, durable)? {
                return Ok(Self(aside));
            }
        }
    }

    /// Makes what is no plain file: `make` fails if its name is taken.
    fn make(beside: &Path, make: impl Fn(&Path) -> std::io::Result<()>) -> Result<Self> {
        loop {
            let aside = Self::name(beside)?;
            match make(&aside) {
                Ok(()) => return Ok(Self(aside)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("create {}", aside.display()));
                }
            }
        }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // After a rename there is nothing left, and otherwise nothing more to do.
        drop(fs::remove_file(&self.0));
    }
}

/// Creates `path` and fills it, for all to see; `false` when it exists. After an error it
/// is gone again.
fn create_in_place(path: &Path, mode: u32, bytes: &[u8], durable: bool) -> Result<bool> {
    // O_EXCL: never follows or reuses what somebody else put there.
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    let mut file = match opened {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
        opened => opened.with_context(|| format!("create {}", path.display()))?,
    };
    let written = file
        .write_all(bytes)
        .and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode)))
        .and_then(|()| if durable { file.sync_all() } else { Ok(()) });
    if written.is_err() {
        // Why it could not be written says more than why it stays.
        drop(fs::remove_file(path));
    }
    written.with_context(|| format!("write {}", path.display()))?;
    Ok(true)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("/"))
}

/// Makes `path` hold `bytes`, replacing what it held in one step. `mode` is exact.
///
/// # Errors
/// Says which file could not be created, written or renamed.
pub fn replace(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    let aside = Aside::write(path, mode, bytes, false)?;
    fs::rename(&aside.0, path).with_context(|| format!("write {}", path.display()))
}

/// Like [`replace`], and on disk when it returns: for what must survive a power cut.
///
/// # Errors
/// As [`replace`].
pub fn replace_durably(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    let aside = Aside::write(path, mode, bytes, true)?;
    fs::rename(&aside.0, path)
        .and_then(|()| File::open(parent(path))?.sync_all())
        .with_context(|| format!("write {}", path.display()))
}

/// Makes `path` a symlink to `target`, replacing what it was in one step.
///
/// # Errors
/// Says which link could not be made.
pub fn replace_with_symlink(path: &Path, target: &Path) -> Result<()> {
    let aside = Aside::make(path, |aside| std::os::unix::fs::symlink(target, aside))?;
    fs::rename(&aside.0, path).with_context(|| format!("link {}", path.display()))
}

/// Makes `path` a second name of the file `original`, replacing what it was in one step.
///
/// # Errors
/// Says which link could not be made.
pub fn replace_with_hard_link(path: &Path, original: &Path) -> Result<()> {
    let aside = Aside::make(path, |aside| fs::hard_link(original, aside))?;
    // Does nothing when both are the same file already; the drop removes the aside then.
    fs::rename(&aside.0, path).with_context(|| format!("link {}", path.display()))
}

/// Removes what writers that were killed left in `dir`. The caller holds a lock that
/// keeps living writers out.
///
/// # Errors
/// Says what could not be listed or removed.
pub fn sweep(dir: &Path) -> Result<()> {
    let context = || format!("list {}", dir.display());
    for entry in fs::read_dir(dir).with_context(context)? {
        let entry = entry.with_context(context)?;
        if entry.file_name().to_str().is_some_and(is_aside) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Makes the directory that `path` is in, for nobody else to look into, and writes there
/// with `write`; nobody else does meanwhile, nor sweeps. See [`remove_and_sweep`].
///
/// # Errors
/// When the directory cannot be made, and those of `write`.
pub fn write_private<T>(path: &Path, write: impl FnOnce() -> Result<T>) -> Result<T> {
    let dir = parent(path);
    create_directory(parent(dir), SHARED_DIR)?;
    create_directory(dir, PRIVATE_DIR)?;
    // Who waits in vain for others goes ahead: nobody sweeps that long.
    let _lock = lock_within(dir, PRIVATE_DIR, BUSY_WAIT)?;
    write()
}

/// Removes the file at `path`, and what writers that were killed left beside it: that is
/// left to the next one when somebody is writing right now. There being nothing is no error.
///
/// # Errors
/// Says which file could not be removed.
pub fn remove_and_sweep(path: &Path) -> Result<()> {
    let dir = parent(path);
    let swept = || -> Result<()> {
        if dir.is_dir()
            && let Some(_lock) = lock_within(dir, PRIVATE_DIR, Duration::ZERO)?
        {
            sweep(dir)?;
        }
        Ok(())
    };
    if let Err(error) = swept() {
        log::warn(&format!("leftover stays: {error:#}"));
    }
    match remove(path) {
        Err(error) if cannot_exist(&error) => Ok(()),
        removed => removed.map(drop),
    }
}

/// Whether there never was such a file: names can be longer than those of files may be.
pub fn cannot_exist(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| {
        matches!(
            error.kind(),
            ErrorKind::InvalidFilename | ErrorKind::NotADirectory
        )
    })
}

/// Makes `path` appear whole unless it exists; `false` when it does.
///
/// Some file systems have no hard links. There the file is created in place, and whoever
/// looks without the caller's lock, or after it was killed, can find it unfinished.
///
/// # Errors
/// As [`replace`].
pub fn create_new(path: &Path, mode: u32, bytes: &[u8]) -> Result<bool> {
    let aside = Aside::write(path, mode, bytes, false)?;
    match fs::hard_link(&aside.0, path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error)
            if error
                .raw_os_error()
                .map(Errno::from_raw)
                .is_some_and(|errno| {
                    matches!(errno, Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS)
                }) =>
        {
            create_in_place(path, mode, bytes, false)
        }
        Err(error) => Err(error).with_context(|| format!("create {}", path.display())),
    }
}

/// Removes the file; one that is not there is no error. Answers whether it was there.
///
/// # Errors
/// Says which file could not be removed.
pub fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        // Refused before anything was looked up.
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem && !exists(path) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}

/// Whether there is anything at `path`; in doubt there is.
fn exists(path: &Path) -> bool {
    let found = fs::symlink_metadata(path);
    !found.is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Whether symlinks are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Those of an administrator, in a directory where only administrators write.
    Follow,
    /// Whoever may write in the directory could lead us anywhere.
    Refuse,
}

/// What the file holds; `None` when it is not there, or is a pipe, a socket or a device, which
/// somebody put in the directory for another purpose. A symlink is refused.
///
/// # Errors
/// Says which file could not be read.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    read_file(path, Links::Refuse)
}

/// As [`read`], and symlinks as told.
///
/// # Errors
/// As [`read`].
pub fn read_file(path: &Path, links: Links) -> Result<Option<Vec<u8>>> {
    let read = || -> std::io::Result<_> {
        let Some((mut file, _)) = open_file(path, links)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    };
    read().with_context(|| format!("read {}", path.display()))
}

/// Opens a file to read it, with what the kernel says of it. `None` as for [`read`]: nobody
/// waits for the other end of a pipe.
///
/// # Errors
/// When it cannot be opened.
pub fn open_file(path: &Path, links: Links) -> std::io::Result<Option<(File, Metadata)>> {
    let flags = match links {
        Links::Follow => nix::libc::O_NONBLOCK,
        Links::Refuse => nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW,
    };
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        // What the kernel says of a socket.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => return Ok(None),
        opened => opened?,
    };
    let meta = file.metadata()?;
    Ok((!is_special(&meta)).then_some((file, meta)))
}

/// Whether this is a pipe, a socket or a device: nothing to read as a file.
pub fn is_special(meta: &Metadata) -> bool {
    let kind = meta.file_type();
    kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device()
}

/// A text file without the mark that editors of other systems put in front of UTF-8.
pub fn without_byte_order_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Tells `see` every name in `dir`; there is none in one that does not exist. Where there are
/// many, libc would ask for 2 KiB of them at a time, which takes the kernel twice as long.
///
/// # Errors
/// When it cannot be read.
pub fn each_name(dir: &Path, mut see: impl FnMut(&CStr)) -> Result<()> {
    /// Some 2,000 names.
    const AT_ONCE: usize = 64 * 1024;
    let reading = || format!("read {}", dir.display());
    // To open a pipe would have us wait for who writes; as a directory it is refused.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_DIRECTORY)
        .open(dir);
    let opened = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened.with_context(reading)?,
    };
    let mut buffer = Vec::with_capacity(AT_ONCE);
    let mut entries = RawDir::new(opened, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        match entry {
            // It was removed meanwhile.
            Err(rustix::io::Errno::NOENT) => break,
            entry => see(entry.with_context(reading)?.file_name()),
        }
    }
    Ok(())
}

/// Makes the directory `path` and its parents, with `mode` less the umask, unless they exist.
///
/// # Errors
/// Names the directory.
pub fn create_directory(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("create {}", path.display()))
}

/// Refuses `path` if it is a symlink that another user made: from a directory in which
/// anybody may write, that would lead us wherever they like. An administrator's own link
/// is followed.
///
/// # Errors
/// Names the link and its owner.
pub fn refuse_foreign_link(path: &Path) -> Result<()> {
    if let Ok(meta) = fs::symlink_metadata(path) {
        ensure!(
            !meta.is_symlink() || meta.uid() == nix::unistd::geteuid().as_raw(),
            "{} is a symlink that belongs to user {}: it is not followed",
            path.display(),
            meta.uid()
        );
    }
    Ok(())
}

/// Whether both paths lead to one and the same file, however they are spelt.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    let identity = |path| fs::metadata(path).map(|meta: Metadata| (meta.dev(), meta.ino()));
    identity(a).is_ok_and(|ours| identity(b).is_ok_and(|theirs| ours == theirs))
}

/// An exclusive flock(2), released on drop.
#[derive(Debug)]
pub struct Lock {
    /// Always there until the drop.
    held: Option<Flock<File>>,
}

impl Lock {
    fn new(held: Flock<File>) -> Self {
        Self { held: Some(held) }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(held) = self.held.take()
            && let Err((stays, _)) = held.unlock()
        {
            // Its own drop would panic. The kernel lets go of it when the process ends.
            std::mem::forget(stays);
        }
    }
}

/// Waits for the exclusive lock on `path`, a directory or a file; a file is created with
/// `mode` if need be. It is opened read-only, without following a symlink.
///
/// # Errors
/// When the file cannot be opened or does not support locks.
pub fn lock(path: &Path, mode: u32) -> Result<Lock> {
    wait(open_lock(path, mode)?, Share::None).with_context(|| format!("lock {}", path.display()))
}

/// Waits for the lock on an open file.
fn wait(mut file: File, share: Share) -> nix::Result<Lock> {
    let how = match share {
        Share::None => FlockArg::LockExclusive,
        Share::Some => FlockArg::LockShared,
    };
    loop {
        match Flock::lock(file, how) {
            Ok(lock) => return Ok(Lock::new(lock)),
            Err((again, Errno::EINTR)) => file = again,
            Err((_, errno)) => return Err(errno),
        }
    }
}

/// Whether others may have the same lock at the same time.
#[derive(Debug, Clone, Copy)]
enum Share {
    /// Nobody.
    None,
    /// Those who share it too.
    Some,
}

/// As [`lock`], but waits no longer than `limit`; `None` when others still have the lock.
///
/// # Errors
/// As [`lock`].
pub fn lock_within(path: &Path, mode: u32, limit: Duration) -> Result<Option<Lock>> {
    lock_as(path, mode, limit, Share::None)
}

/// As [`lock_within`], but together with others who share the lock.
///
/// # Errors
/// As [`lock`].
pub fn share_within(path: &Path, mode: u32, limit: Duration) -> Result<Option<Lock>> {
    lock_as(path, mode, limit, Share::Some)
}

fn lock_as(path: &Path, mode: u32, limit: Duration, share: Share) -> Result<Option<Lock>> {
    let context = || format!("lock {}", path.display());
    let at_once = match share {
        Share::None => FlockArg::LockExclusiveNonblock,
        Share::Some => FlockArg::LockSharedNonblock,
    };
    let file = match Flock::lock(open_lock(path, mode)?, at_once) {
        Ok(lock) => return Ok(Some(Lock::new(lock))),
        Err((_, Errno::EWOULDBLOCK)) if limit.is_zero() => return Ok(None),
        Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
        Err((_, errno)) => return Err(errno).with_context(context),
    };
    // The kernel lets those who wait have it in turn, but knows no limit. A thread that
    // waits for too long is left behind: the process has little more to do.
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new()
        .spawn(move || drop(sender.send(wait(file, share))))
        .context("start a thread that waits for a lock")?;
    match receiver.recv_timeout(limit) {
        Ok(locked) => locked.map(Some).with_context(context),
        Err(_too_late) => Ok(None),
    }
}

/// Who has locked `file`, if the kernel tells us: "process 123 (name)".
pub fn lock_holder(file: &Path) -> Option<String> {
    let meta = fs::metadata(file).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let device = meta.dev();
    let (major, minor) = (nix::libc::major(device), nix::libc::minor(device));
    let pid = holder(&locks, &format!("{major:02x}:{minor:02x}:{}", meta.ino()))?;
    let name = read(Path::new(&format!("/proc/{pid}/comm"))).ok()??;
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

fn open_lock(path: &Path, mode: u32) -> Result<File> {
    // A directory can be locked too, but only opened without O_CREAT. A new file is made
    // in place: a lock is empty, and nobody can be stopped halfway. (std only creates
    // what it can write; the flag itself it passes on.) A pipe is not waited for.
    let open = |flags| {
        OpenOptions::new()
            .read(true)
            .mode(mode)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | flags)
            .open(path)
    };
    let file = match open(0) {
        Err(error) if error.kind() == ErrorKind::NotFound => open(nix::libc::O_CREAT),
        opened => opened,
    };
    file.with_context(|| format!("open lock {}", path.display()))
}

/// Whether files can be made in `dir`, or `dir` itself where it does not exist. Makes
/// nothing to find out.
///
/// # Errors
/// Names the directory in which nothing can be made, and says why.
pub fn check_writable(dir: &Path) -> Result<()> {
    let nearest = dir
        .ancestors()
        .map(|dir| {
            if dir.as_os_str().is_empty() {
                Path::new(".")
            } else {
                dir
            }
        })
        .find(|dir| dir.symlink_metadata().is_ok())
        .context("nothing on the way there exists")?;
    let context = || format!("write to {}", nearest.display());
    // A file in the place of a directory has no entries to search.
    access(&nearest.join("."), AccessFlags::W_OK | AccessFlags::X_OK).with_context(context)?;
    let system = statfs(nearest).with_context(context)?;
    // Some file systems do not count, and say that there is room for nothing at all.
    let is_full = (system.blocks() > 0 && system.blocks_free() == 0)
        || (system.files() > 0 && system.files_free() == 0);
    if is_full {
        return Err(Errno::ENOSPC).with_context(context);
    }
    Ok(())
}

/// Four random bytes, from the kernel.
///
/// # Errors
/// When /dev/urandom cannot be read.
pub fn random_u32() -> Result<u32> {
    let mut bytes = [0; 4];
    random(&mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}

/// Fills `bytes` with randomness from the kernel.
///
/// # Errors
/// When /dev/urandom cannot be read.
pub fn random(bytes: &mut [u8]) -> Result<()> {
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(bytes))
        .context("read /dev/urandom")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_appear_whole_and_leave_nothing_beside_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("10.0.0.2");
        assert!(create_new(&path, 0o600, b"a\r\neth0").unwrap());
        assert!(!create_new(&path, 0o600, b"b\r\neth0").unwrap());
        assert_eq!(read(&path).unwrap().unwrap(), b"a\r\neth0");
        replace(&path, 0o640, b"c").unwrap();
        replace_durably(&path, 0o640, b"d").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"d");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
        assert_eq!(read(&path).unwrap(), None);
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for name in ["pipe", "socket", "missing"] {
            assert_eq!(read(&path(name)).unwrap(), None, "{name}");
        }
        std::os::unix::fs::symlink("/dev/zero", path("device")).unwrap();
        std::os::unix::fs::symlink("pipe", path("link")).unwrap();
        for name in ["device", "link"] {
            assert_eq!(read_file(&path(name), Links::Follow).unwrap(), None);
            assert!(read(&path(name)).is_err(), "{name}");
        }
        assert!(read(dir.path()).is_err());
    }

    #[test]
    fn links_replace_what_was_there_and_sweeping_keeps_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("cnibox"), dir.path().join("bridge"));
        fs::write(&file, b"x").unwrap();
        fs::write(&link, b"y").unwrap();
        replace_with_hard_link(&link, &file).unwrap();
        replace_with_hard_link(&link, &file).unwrap();
        assert_eq!(fs::read(&link).unwrap(), b"x");
        replace_with_symlink(&link, Path::new("cnibox")).unwrap();
        replace_with_symlink(&link, Path::new("cnibox")).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("cnibox"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        fs::write(dir.path().join(".cnibox-00000000-1-1"), b"z").unwrap();
        sweep(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn locks_exclude_each_other_and_do_not_follow_links() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = lock(&path, 0o750).unwrap();
        let other = File::open(&path).unwrap();
        assert!(Flock::lock(other, FlockArg::LockExclusiveNonblock).is_err());
        assert!(lock_within(&path, 0o750, Duration::ZERO).unwrap().is_none());
        assert!(
            share_within(&path, 0o750, Duration::ZERO)
                .unwrap()
                .is_none()
        );
        drop(held);
        drop(lock_within(&path, 0o750, Duration::ZERO).unwrap().unwrap());
        let share = || share_within(&path, 0o750, Duration::ZERO).unwrap();
        let shared = [share().unwrap(), share().unwrap()];
        assert!(lock_within(&path, 0o750, Duration::ZERO).unwrap().is_none());
        drop(shared);
        let other = File::open(&path).unwrap();
        assert!(Flock::lock(other, FlockArg::LockExclusiveNonblock).is_ok());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(lock(&link, 0o750).is_err());
    }

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
        let held = lock(&path, 0o600).unwrap();
        let holder = lock_holder(&path).unwrap();
        let own = format!("process {} (", std::process::id());
        assert!(holder.starts_with(&own), "{holder}");
        drop(held);
        assert_eq!(lock_holder(&path), None);
        let held = lock(&path, 0o600).unwrap();
        let limit = Duration::from_millis(20);
        assert!(lock_within(&path, 0o600, limit).unwrap().is_none());
        drop(held);
        // Whoever was left behind has it for a moment, too.
        let limit = Duration::from_secs(10);
        assert!(lock_within(&path, 0o600, limit).unwrap().is_some());
    }
}
