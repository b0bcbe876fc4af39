//! The directory in which the leases of one network are recorded (docs/compatibility.md#6.4).
//!
//! Names, modes and contents are a contract: the reference plugin may work in the same
//! directory at the same time. Whoever changes something here holds the lock.
//!
//! Nothing is synced to disk. A container does not outlive its node, so a lease lost to a
//! power cut is right, and one that was damaged counts as nobody's.

use std::collections::HashMap;
use std::fs::{self, File, FileTimes, Metadata};
use std::io::{ErrorKind, Read};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};

use super::addresses::Addresses;
use super::owner::Owner;
use crate::cni::address::parse_ip;
use crate::fsutil::{self, Links};
use crate::log;
use crate::net::section;

const DIR_MODE: u32 = 0o755;
const LEASE_MODE: u32 = 0o600;
const LOCK: &str = "lock";
const LOCK_MODE: u32 = 0o750;
/// Far more than a storm of ADDs takes, and less than runtimes wait.
const LOCK_WAIT: Duration = Duration::from_secs(20);
/// Followed by the number of the range set.
const CURSOR: &str = "last_reserved_ip.";

/// As many look-ups as cost about the same as a list of a few hundred names.
const GLANCES: usize = 64;

/// One file that records an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub ip: IpAddr,
    /// `None`: an empty or blank file, left by a crash. The address is free.
    pub owner: Option<Owner>,
    /// Which file this is: written again, it has another stamp.
    pub stamp: String,
}

/// What is in the directory.
#[derive(Debug, Default)]
pub struct Found {
    pub leases: Vec<Lease>,
    /// Files that a killed process of ours was writing.
    pub leftovers: Vec<PathBuf>,
}

/// The lease directory of one network.
#[derive(Debug, Clone)]
pub struct LeaseDir {
    path: PathBuf,
}

impl LeaseDir {
    /// The directory of `network`, which need not exist.
    pub fn new(data_dir: &Path, network: &str) -> Self {
        Self {
            path: data_dir.join(network),
        }
    }

    /// Where it is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that records `ip`.
    pub fn file(&self, ip: IpAddr) -> PathBuf {
        self.path.join(ip.to_string())
    }

    /// Whether the directory is there.
    ///
    /// # Errors
    /// When it cannot be told, or something else stands in its place.
    pub fn exists(&self) -> Result<bool> {
        self.refuse_foreign_links()?;
        let found = match fs::metadata(&self.path) {
            // Of a name that no directory can have, nothing was ever recorded.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::InvalidFilename
                ) =>
            {
                return Ok(false);
            }
            Ok(meta) if !meta.is_dir() => Err(ErrorKind::NotADirectory.into()),
            Ok(_) => Ok(true),
            Err(error) => Err(error),
        };
        found.with_context(|| format!("look up {}", self.path.display()))
    }

    /// Makes the directory and its parents unless they exist.
    ///
    /// # Errors
    /// Names the directory.
    pub fn create(&self) -> Result<()> {
        self.refuse_foreign_links()?;
        fsutil::create_directory(&self.path, DIR_MODE)
    }

    /// Neither the directory nor the one above it may be a symlink of somebody else's.
    fn refuse_foreign_links(&self) -> Result<()> {
        self.path
            .parent()
            .map_or(Ok(()), fsutil::refuse_foreign_link)?;
        fsutil::refuse_foreign_link(&self.path)
    }

    /// Waits for the lock that all changes are made under, as long as can be waited for
    /// others that do their work. Where its file cannot be made
    /// any more nobody else holds it: the directory serves, so that a DEL on a full disk
    /// can still free something.
    ///
    /// # Errors
    /// Code 11, naming the process that keeps it; otherwise as `fsutil::lock_within`.
    pub fn lock(&self) -> Result<fsutil::Lock> {
        let path = self.path.join(LOCK);
        let locked = fsutil::lock_within(&path, LOCK_MODE, LOCK_WAIT).or_else(|error| {
            let full = [ErrorKind::StorageFull, ErrorKind::ReadOnlyFilesystem];
            let cause = error
                .downcast_ref::<std::io::Error>()
                .map(std::io::Error::kind);
            if cause.is_some_and(|kind| full.contains(&kind)) {
                return fsutil::lock_within(&self.path, DIR_MODE, LOCK_WAIT);
            }
            Err(error)
        })?;
        locked.ok_or_else(|| {
            let what = self.path.display().to_string();
            section::is_occupied(&what, &path, LOCK_WAIT).into()
        })
    }

    /// Sets the time of the last change back by a moment, and answers it as it is now. File
    /// systems tell time in ticks: without this, the next change could come within the
    /// same one and go unnoticed.
    ///
    /// # Errors
    /// When the time cannot be set.
    pub fn settle(&self) -> Result<SystemTime> {
        let changed_at = self.changed_at()?;
        File::open(&self.path)
            .and_then(|dir| {
                let before = changed_at - Duration::from_nanos(1);
                dir.set_times(FileTimes::new().set_modified(before))
            })
            .with_context(|| format!("set the time of {}", self.path.display()))?;
        let settled = self.changed_at()?;
        ensure!(
            settled != changed_at,
            "the time of {} stays as it is",
            self.path.display()
        );
        Ok(settled)
    }

    /// Changes whenever a lease comes or goes.
    ///
    /// # Errors
    /// When the directory cannot be looked at.
    pub fn changed_at(&self) -> Result<SystemTime> {
        fs::metadata(&self.path)
            .and_then(|meta| meta.modified())
            .with_context(|| format!("look up {}", self.path.display()))
    }

    /// The lease of `ip`; `None` when there is no file.
    ///
    /// # Errors
    /// When there is one that cannot be read.
    pub fn read(&self, ip: IpAddr) -> Result<Option<Lease>> {
        /// What the kernel lets an environment variable hold, and so a container id.
        const LONGEST: u64 = 128 * 1024;
        let path = self.file(ip);
        let opened = fsutil::open_file(&path, Links::Refuse);
        let opened = opened.with_context(|| format!("open {}", path.display()))?;
        let Some((file, meta)) = opened else {
            return Ok(None);
        };
        // Room for most, so that one call reads it.
        let mut content = Vec::with_capacity(256);
        file.take(LONGEST)
            .read_to_end(&mut content)
            .with_context(|| format!("read {}", path.display()))?;
        Ok(Some(Lease {
            ip,
            owner: Owner::parse(&content),
            stamp: stamp(&meta),
        }))
    }

    /// Records `ip` for `owner`; `false` when somebody has it. The file appears whole.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn reserve(&self, ip: IpAddr, owner: &Owner) -> Result<bool> {
        let path = self.file(ip);
        let content = owner.content();
        if !fsutil::create_new(&path, LEASE_MODE, content.as_bytes())? {
            if self.read(ip)?.is_none_or(|lease| lease.owner.is_some()) {
                return Ok(false);
            }
            log::warn(&format!(
                "{} names no owner, probably since a crash: the address is taken as free",
                path.display()
            ));
            fsutil::replace(&path, LEASE_MODE, content.as_bytes())?;
        }
        Ok(true)
    }

    /// Frees `ip`, whoever has it.
    ///
    /// # Errors
    /// When the file is there and stays.
    pub fn remove(&self, ip: IpAddr) -> Result<()> {
        fsutil::remove(&self.file(ip)).map(drop)
    }

    /// The first of `candidates` that nobody has.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn first_free(
        &self,
        candidates: impl Iterator<Item = IpAddr> + Clone,
    ) -> Result<Option<IpAddr>> {
        match self.first_unrecorded(candidates.clone())? {
            None => self.first_ownerless(candidates),
            free => Ok(free),
        }
    }

    /// The first of `candidates` that has no lease, as far as can be told without reading
    /// many. Next to all of them are tried in their order, so that mostly the first few
    /// have to be looked at; when these are taken, one list of the directory tells more.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn first_unrecorded(
        &self,
        candidates: impl Iterator<Item = IpAddr> + Clone,
    ) -> Result<Option<IpAddr>> {
        if let Some(ip) = self.first_at_a_glance(candidates.clone()) {
            return Ok(Some(ip));
        }
        let mut rest = candidates.skip(GLANCES).peekable();
        if rest.peek().is_none() {
            return Ok(None);
        }
        let recorded = self.recorded()?;
        Ok(rest.find(|ip| !recorded.contains(*ip)))
    }

    /// The first free address among the first few candidates.
    pub fn first_at_a_glance(&self, candidates: impl Iterator<Item = IpAddr>) -> Option<IpAddr> {
        let mut few = candidates.take(GLANCES);
        few.find(|ip| !self.is_taken(*ip))
    }

    /// The addresses that have files, whatever is in these.
    ///
    /// # Errors
    /// When the directory cannot be read; one that does not exist is empty.
    pub fn recorded(&self) -> Result<Addresses> {
        let mut recorded = Addresses::default();
        fsutil::each_name(&self.path, |name| {
            if let Some(ip) = name.to_str().ok().and_then(parse_ip) {
                recorded.insert(ip);
            }
        })?;
        Ok(recorded)
    }

    /// The first of `candidates` whose lease names nobody. Reads every lease.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn first_ownerless(
        &self,
        candidates: impl Iterator<Item = IpAddr>,
    ) -> Result<Option<IpAddr>> {
        let found = self.scan(&HashMap::new())?.leases.into_iter();
        let ownerless: Addresses = found
            .filter(|lease| lease.owner.is_none())
            .map(|lease| lease.ip)
            .collect();
        if ownerless == Addresses::default() {
            return Ok(None);
        }
        let mut candidates = candidates;
        Ok(candidates.find(|ip| ownerless.contains(*ip)))
    }

    /// Whether there is a lease of `ip`, at a glance: only short files are read. One that
    /// cannot be read is not ours to give away.
    pub fn is_taken(&self, ip: IpAddr) -> bool {
        /// Runtimes' ids are longer than this, and blank files mostly empty.
        const SHORT: u64 = 32;
        match fs::symlink_metadata(self.file(ip)) {
            Err(error) => error.kind() != ErrorKind::NotFound,
            // What is no file is not ours to replace.
            Ok(meta) if fsutil::is_special(&meta) || meta.len() >= SHORT => true,
            Ok(_) => self
                .read(ip)
                .map_or(true, |lease| lease.is_some_and(|l| l.owner.is_some())),
        }
    }

    /// Reads everything but the leases that are still as `known`. Files that are no leases
    /// are passed over; leases that cannot be read too, with a warning.
    ///
    /// # Errors
    /// When the directory cannot be listed; one that does not exist is empty.
    pub fn scan(&self, known: &HashMap<IpAddr, Lease>) -> Result<Found> {
        let mut found = Found::default();
        fsutil::each_name(&self.path, |name| {
            let Ok(name) = name.to_str() else { return };
            if fsutil::is_aside(name) {
                found.leftovers.push(self.path.join(name));
                return;
            }
            let Some(ip) = parse_ip(name).filter(|ip| ip.to_string() == name) else {
                return;
            };
            if let Some(lease) = known.get(&ip)
                && fs::symlink_metadata(self.file(ip)).is_ok_and(|meta| stamp(&meta) == lease.stamp)
            {
                found.leases.push(lease.clone());
                return;
            }
            match self.read(ip) {
                Ok(lease) => found.leases.extend(lease),
                Err(error) => log::warn(&format!("lease passed over: {error:#}")),
            }
        })?;
        Ok(found)
    }

    /// The address that was reserved last from set number `set`. Damaged files are
    /// ignored: the search then starts at the beginning.
    pub fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        let path = self.cursor(set);
        let content = match fsutil::read(&path) {
            Ok(content) => content?,
            Err(error) => {
                log::warn(&format!("last reserved address unknown: {error:#}"));
                return None;
            }
        };
        let last = parse_ip(String::from_utf8_lossy(&content).trim());
        if last.is_none() {
            log::warn(&format!("{} holds no address: ignored", path.display()));
        }
        last
    }

    /// Records that `ip` was reserved last from set number `set`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_last_reserved(&self, set: usize, ip: IpAddr) -> Result<()> {
        fsutil::replace(&self.cursor(set), LEASE_MODE, ip.to_string().as_bytes())
    }

    fn cursor(&self, set: usize) -> PathBuf {
        self.path.join(format!("{CURSOR}{set}"))
    }
}

fn stamp(meta: &Metadata) -> String {
    format!(
        "{}:{}:{}.{:09}",
        meta.ino(),
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec()
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn owner() -> Owner {
        Owner {
            container_id: "abc".into(),
            ifname: Some("eth0".into()),
        }
    }

    fn directory() -> (tempfile::TempDir, LeaseDir) {
        let dir = tempfile::tempdir().unwrap();
        let leases = LeaseDir::new(&dir.path().join("a/b"), "net");
        assert!(!leases.exists().unwrap());
        leases.create().unwrap();
        assert!(leases.exists().unwrap());
        (dir, leases)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn names_modes_and_contents_are_the_references() {
        let (dir, leases) = directory();
        let lock = leases.lock().unwrap();
        assert!(leases.reserve(ip("10.0.0.2"), &owner()).unwrap());
        assert!(leases.reserve(ip("fd00::2"), &owner()).unwrap());
        leases.set_last_reserved(1, ip("10.0.0.2")).unwrap();
        drop(lock);
        let net = dir.path().join("a/b/net");
        let mut seen = Vec::new();
        for entry in fs::read_dir(&net).unwrap() {
            let entry = entry.unwrap();
            seen.push((
                entry.file_name().into_string().unwrap(),
                entry.metadata().unwrap().permissions().mode() & 0o7777,
                fs::read_to_string(entry.path()).unwrap(),
            ));
        }
        seen.sort();
        let expect = |name: &str, mode, content: &str| (name.to_owned(), mode, content.to_owned());
        assert_eq!(
            seen,
            [
                expect("10.0.0.2", 0o600, "abc\r\neth0"),
                expect("fd00::2", 0o600, "abc\r\neth0"),
                expect("last_reserved_ip.1", 0o600, "10.0.0.2"),
                expect("lock", 0o750, ""),
            ]
        );
    }

    #[test]
    fn a_lease_is_reserved_once() {
        let (_dir, leases) = directory();
        assert!(leases.reserve(ip("10.0.0.2"), &owner()).unwrap());
        let first = leases.read(ip("10.0.0.2")).unwrap();
        assert!(!leases.reserve(ip("10.0.0.2"), &owner()).unwrap());
        assert_eq!(leases.read(ip("10.0.0.2")).unwrap(), first);
        leases.remove(ip("10.0.0.2")).unwrap();
        leases.remove(ip("10.0.0.2")).unwrap();
        assert_eq!(leases.read(ip("10.0.0.2")).unwrap(), None);
    }

    #[test]
    fn blank_files_are_free_and_found_at_the_latest_when_nothing_else_is() {
        let (_dir, leases) = directory();
        let all = || ["10.0.0.2", "10.0.0.3"].into_iter().map(ip);
        leases.reserve(ip("10.0.0.2"), &owner()).unwrap();
        for blank in ["", " \n", &"\0".repeat(70)] {
            fs::write(leases.file(ip("10.0.0.3")), blank).unwrap();
            assert_eq!(leases.first_free(all()).unwrap(), Some(ip("10.0.0.3")));
            assert!(leases.reserve(ip("10.0.0.3"), &owner()).unwrap());
            let lease = leases.read(ip("10.0.0.3")).unwrap().unwrap();
            assert_eq!(lease.owner, Some(owner()));
            assert_eq!(leases.first_free(all()).unwrap(), None);
        }
    }

    #[test]
    fn what_is_no_lease_is_passed_over() {
        let (_dir, leases) = directory();
        leases.reserve(ip("10.0.0.2"), &owner()).unwrap();
        for name in ["lock", "x", "010.0.0.3", "10.0.0.3.bak", ".cnibox-1-2-3"] {
            fs::write(leases.path().join(name), "abc\r\neth0").unwrap();
        }
        fs::create_dir(leases.file(ip("10.0.0.4"))).unwrap();
        let aside = leases.path().join(".cnibox-1-2-3");
        let found = leases.scan(&HashMap::new()).unwrap();
        assert_eq!(found.leases.len(), 1);
        assert_eq!(found.leftovers, [aside]);
        assert!(leases.is_taken(ip("10.0.0.4")));
    }

    #[test]
    fn leases_that_did_not_change_are_not_read_again() {
        let (_dir, leases) = directory();
        leases.reserve(ip("10.0.0.2"), &owner()).unwrap();
        let lease = leases.read(ip("10.0.0.2")).unwrap().unwrap();
        let known = Lease {
            owner: None,
            ..lease.clone()
        };
        let scan = |known: &Lease| {
            let known = HashMap::from([(known.ip, known.clone())]);
            leases.scan(&known).unwrap().leases
        };
        assert_eq!(scan(&known)[0], known);
        fs::write(leases.file(lease.ip), "def\r\neth0 ").unwrap();
        assert_eq!(scan(&known)[0].owner.as_ref().unwrap().container_id, "def");
    }

    #[test]
    fn a_lease_as_long_as_the_environment_allows() {
        let (_dir, leases) = directory();
        let owner = Owner {
            container_id: "a".repeat(128 * 1024 - "CNI_CONTAINERID=".len() - 1),
            ifname: Some("abcdefghijklmno".into()),
        };
        leases.reserve(ip("10.0.0.2"), &owner).unwrap();
        let lease = leases.read(ip("10.0.0.2")).unwrap().unwrap();
        assert!(lease.owner == Some(owner));
    }

    #[test]
    fn a_damaged_cursor_is_ignored() {
        let (_dir, leases) = directory();
        assert_eq!(leases.last_reserved(0), None);
        leases.set_last_reserved(0, ip("fd00::7")).unwrap();
        assert_eq!(leases.last_reserved(0), Some(ip("fd00::7")));
        for damaged in ["", "1", "fd00:"] {
            fs::write(leases.cursor(0), damaged).unwrap();
            assert_eq!(leases.last_reserved(0), None, "{damaged}");
        }
    }
}
