//! Finds the leases of an attachment without reading all of them.
//!
//! The index of a network lies beside the lease directories, in
//! `<dataDir>/.cnibox/<network>`: one small file per attachment, named by a hash of it.
//! A file also remembers in which boot of the node each lease was written, which the
//! lease itself has no place for.
//!
//! It is a hint. What it says about a lease counts only while the lease says the same,
//! and one reading of the lease directory rebuilds it. What it does not say counts only
//! while it is complete: then the file `complete`, which holds a [`Tally`] of the leases, has
//! the modification time that the lease directory has. Whoever adds or removes a lease without telling us (the reference
//! plugin, an administrator, a process of ours that was killed) changes the latter, and
//! never to what it was: we leave it at a time that lies before our own last change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::{self, DirBuilder, FileTimes, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::addresses::Addresses;
use super::lease_dir::Lease;
use super::owner::Owner;
use crate::fsutil;
use crate::hash::sha512_hex;

/// No network is called that: names do not start with a dot.
const DIR: &str = ".cnibox";
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
const COMPLETE: &str = "complete";

/// What is known of one attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: Option<String>,
    /// What is known of its leases.
    pub leases: BTreeMap<IpAddr, Known>,
}

/// What is known of one lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Which file this is about.
    stamp: String,
    /// The boot in which it was written; empty when that is not known.
    boot: String,
}

/// Which addresses have leases and how many these are of each boot of the node: enough to
/// know, without reading them, what is free, and that none is from an earlier boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Those that somebody owns, by boot; empty when that is not known.
    boots: BTreeMap<String, usize>,
    /// Their addresses.
    addresses: Addresses,
    /// Whether any named no owner when all were read last.
    pub blank: bool,
    /// The boot in which that was.
    pub read_in: String,
}

impl Tally {
    fn add(&mut self, entry: &Entry) {
        for (ip, known) in &entry.leases {
            *self.boots.entry(known.boot.clone()).or_default() += 1;
            self.addresses.insert(*ip);
        }
    }

    fn subtract(&mut self, entry: &Entry) {
        for (ip, known) in &entry.leases {
            if let Some(count) = self.boots.get_mut(&known.boot) {
                *count = count.saturating_sub(1);
            }
            self.addresses.remove(*ip);
        }
        self.boots.retain(|_, count| *count > 0);
    }

    /// The addresses that somebody has.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Whether there is no lease at all.
    pub fn is_empty(&self) -> bool {
        self.boots.is_empty() && !self.blank
    }

    /// Whether any lease is known to be from another boot than this one.
    pub fn has_earlier_than(&self, boot: &str) -> bool {
        let mut boots = self.boots.keys();
        boots.any(|known| !known.is_empty() && known != boot)
    }
}

impl Entry {
    fn new(owner: &Owner, leases: BTreeMap<IpAddr, Known>) -> Self {
        Self {
            container_id: owner.container_id.clone(),
            ifname: owner.ifname.clone(),
            leases,
        }
    }

    /// The boot in which `lease` was written, if that very file is known.
    pub fn boot_of(&self, lease: &Lease) -> Option<&str> {
        self.leases
            .get(&lease.ip)
            .filter(|known| known.stamp == lease.stamp)
            .map(|known| known.boot.as_str())
            .filter(|boot| !boot.is_empty())
    }

    fn owner(&self) -> Owner {
        Owner {
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }
}

/// The index of one network.
#[derive(Debug)]
pub struct Index {
    dir: PathBuf,
}

impl Index {
    /// The index of `network`, which need not exist.
    pub fn new(data_dir: &Path, network: &str) -> Self {
        Self {
            dir: data_dir.join(DIR).join(network),
        }
    }

    /// Whether every lease is in the index, given when the lease directory changed last.
    pub fn is_complete(&self, changed_at: SystemTime) -> bool {
        self.directories().all(is_own_directory)
            && fs::symlink_metadata(self.dir.join(COMPLETE))
                .and_then(|meta| meta.modified())
                .is_ok_and(|marked| marked == changed_at)
    }

    /// The tally of all leases, if every lease is in the index.
    pub fn tally(&self, changed_at: SystemTime) -> Option<Tally> {
        self.is_complete(changed_at)
            .then(|| self.last_tally())
            .flatten()
    }

    /// The tally when the index was complete last, whatever has happened since.
    pub fn last_tally(&self) -> Option<Tally> {
        if !self.directories().all(is_own_directory) {
            return None;
        }
        serde_json::from_slice(&fsutil::read(&self.dir.join(COMPLETE)).ok()??).ok()
    }

    /// Notes that every lease is in the index.
    ///
    /// # Errors
    /// When the mark cannot be written.
    pub fn mark_complete(&self, changed_at: SystemTime, tally: &Tally) -> Result<()> {
        let path = self.dir.join(COMPLETE);
        let mark = || -> Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(FILE_MODE)
                // A pipe there is not waited for.
                .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
                .open(&path)?;
            file.write_all(&serde_json::to_vec(tally)?)?;
            // Until then it has the time of now, and counts for nothing.
            Ok(file.set_times(FileTimes::new().set_modified(changed_at))?)
        };
        mark().with_context(|| format!("mark {}", path.display()))
    }

    /// What is known of `owner`.
    ///
    /// # Errors
    /// When its file is damaged or cannot be read.
    pub fn get(&self, owner: &Owner) -> Result<Option<Entry>> {
        let path = self.dir.join(name(owner));
        let Some(entry) = read(&path)? else {
            return Ok(None);
        };
        if entry.owner() != *owner {
            bail!("{} is about somebody else", path.display());
        }
        Ok(Some(entry))
    }

    /// Adds `leases`, just written in `boot`, to what is known of `owner`.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn add(
        &self,
        owner: &Owner,
        leases: &[Lease],
        boot: &str,
        tally: &mut Tally,
    ) -> Result<()> {
        let mut entry = self
            .get(owner)?
            .unwrap_or_else(|| Entry::new(owner, BTreeMap::new()));
        tally.subtract(&entry);
        entry.leases.extend(leases.iter().map(|lease| {
            let known = Known {
                stamp: lease.stamp.clone(),
                boot: boot.to_owned(),
            };
            (lease.ip, known)
        }));
        tally.add(&entry);
        self.put(owner, &entry)
    }

    /// Forgets that `owner` has `addresses`.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn forget(
        &self,
        owner: &Owner,
        addresses: &BTreeSet<IpAddr>,
        tally: &mut Tally,
    ) -> Result<()> {
        let Some(mut entry) = self.get(owner)? else {
            return Ok(());
        };
        tally.subtract(&entry);
        entry.leases.retain(|ip, _| !addresses.contains(ip));
        tally.add(&entry);
        self.put(owner, &entry)
    }

    /// Makes the index say what `leases`, all that there are, say. What it knows of them
    /// already, which is `entries`, stays known. `boot` is the present one.
    ///
    /// # Errors
    /// When the index cannot be written, or something else stands in its place.
    pub fn rebuild(&self, leases: &[Lease], mut entries: Entries, boot: &str) -> Result<Tally> {
        let mut tally = Tally {
            boots: BTreeMap::new(),
            addresses: Addresses::default(),
            blank: leases.iter().any(|lease| lease.owner.is_none()),
            read_in: boot.to_owned(),
        };
        self.prepare()?;
        for file in &entries.damaged {
            fsutil::remove(&self.dir.join(file))?;
        }
        let mut owners: BTreeMap<&Owner, Vec<&Lease>> = BTreeMap::new();
        for lease in leases {
            if let Some(owner) = &lease.owner {
                owners.entry(owner).or_default().push(lease);
            }
        }
        for (owner, leases) in owners {
            let known = entries.whole.remove(owner);
            let boot_of = |lease| known.as_ref().and_then(|entry| entry.boot_of(lease));
            let leases = leases
                .iter()
                .map(|lease| {
                    let known = Known {
                        stamp: lease.stamp.clone(),
                        boot: boot_of(lease).unwrap_or_default().to_owned(),
                    };
                    (lease.ip, known)
                })
                .collect();
            let entry = Entry::new(owner, leases);
            tally.add(&entry);
            if known.as_ref() != Some(&entry) {
                self.put(owner, &entry)?;
            }
        }
        for gone in entries.whole.keys() {
            fsutil::remove(&self.dir.join(name(gone)))?;
        }
        Ok(tally)
    }

    /// Everything in the index.
    ///
    /// # Errors
    /// When it cannot be listed; one that does not exist is empty.
    pub fn entries(&self) -> Result<Entries> {
        let reading = || format!("read {}", self.dir.display());
        let mut entries = Entries::default();
        let files = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(entries),
            files => files.with_context(reading)?,
        };
        for file in files {
            let file = file.with_context(reading)?.file_name();
            if file == COMPLETE {
                continue;
            }
            match read(&self.dir.join(&file)) {
                Ok(Some(entry)) if *name(&entry.owner()) == *file => {
                    entries.whole.insert(entry.owner(), entry);
                }
                _ => entries.damaged.push(file),
            }
        }
        Ok(entries)
    }

    /// Makes the directories.
    fn prepare(&self) -> Result<()> {
        /// How often another network may take away the directory of all, being the last.
        const TRIES: usize = 10;
        for _ in 0..TRIES {
            if self.make_directories()? {
                return Ok(());
            }
        }
        bail!("{} is removed again and again", self.dir.display());
    }

    /// Makes the directories; `false` where somebody has just removed the first of them.
    fn make_directories(&self) -> Result<bool> {
        for dir in self.directories() {
            match DirBuilder::new().mode(DIR_MODE).create(dir) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    if is_own_directory(dir) {
                        continue;
                    }
                    if fs::symlink_metadata(dir).is_ok() {
                        bail!("{} is no directory of ours", dir.display());
                    }
                    return Ok(false);
                }
                Err(error) if error.kind() == ErrorKind::NotFound && dir == self.dir => {
                    return Ok(false);
                }
                created => created.with_context(|| format!("create {}", dir.display()))?,
            }
        }
        Ok(true)
    }

    /// Removes the files of this network's index; with the last network's, also the
    /// directory of all.
    ///
    /// # Errors
    /// When one of them stays.
    pub fn remove(&self) -> Result<()> {
        if !self.directories().all(is_own_directory) {
            return Ok(());
        }
        fs::remove_dir_all(&self.dir).with_context(|| format!("remove {}", self.dir.display()))?;
        let Some(of_all) = self.dir.parent() else {
            return Ok(());
        };
        match fs::remove_dir(of_all) {
            Err(error)
                if !matches!(
                    error.kind(),
                    ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound
                ) =>
            {
                Err(error).with_context(|| format!("remove {}", of_all.display()))
            }
            _ => Ok(()),
        }
    }

    /// Those that are only ours: of all networks, and of this one.
    fn directories(&self) -> impl Iterator<Item = &Path> {
        self.dir.parent().into_iter().chain([self.dir.as_path()])
    }

    fn put(&self, owner: &Owner, entry: &Entry) -> Result<()> {
        let path = self.dir.join(name(owner));
        if entry.leases.is_empty() {
            return fsutil::remove(&path).map(drop);
        }
        let bytes = serde_json::to_vec(entry).context("encode an index entry")?;
        fsutil::replace(&path, FILE_MODE, &bytes)
    }
}

/// What the index says of everybody.
#[derive(Debug, Default)]
pub struct Entries {
    whole: HashMap<Owner, Entry>,
    /// Files that say nothing, or stand in the place of another.
    damaged: Vec<OsString>,
}

impl Entries {
    /// The leases as they were when the index was told of them.
    pub fn leases(&self) -> HashMap<IpAddr, Lease> {
        let mut leases = HashMap::new();
        for (owner, entry) in &self.whole {
            leases.extend(entry.leases.iter().map(|(ip, known)| {
                let lease = Lease {
                    ip: *ip,
                    owner: Some(owner.clone()),
                    stamp: known.stamp.clone(),
                };
                (*ip, lease)
            }));
        }
        leases
    }
}

/// Whether `dir` is a directory, and nobody else's: a symlink there, or what another user
/// has made, would be believed.
fn is_own_directory(dir: &Path) -> bool {
    fs::symlink_metadata(dir)
        .is_ok_and(|meta| meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw())
}

fn read(path: &Path) -> Result<Option<Entry>> {
    fsutil::read(path)?
        .map(|bytes| serde_json::from_slice(&bytes))
        .transpose()
        .with_context(|| format!("{} is damaged", path.display()))
}

/// The file of `owner`: its name as a hash, since any name is too long for some file
/// system, and a container is not to choose a file name.
fn name(owner: &Owner) -> String {
    sha512_hex(&owner.content(), 64)
}

/// What holds for every file in the index: an entry says the same when it is written again,
/// and one of `owner` is found as that.
#[cfg(any(test, fuzzing))]
pub fn fuzz(content: &[u8], owner: &Owner) {
    let entry = Entry::new(owner, BTreeMap::new());
    let read = serde_json::from_slice::<Entry>(content);
    for entry in std::iter::once(entry).chain(read) {
        let written = serde_json::to_vec(&entry).unwrap_or_default();
        let again = serde_json::from_slice::<Entry>(&written);
        assert_eq!(again.ok(), Some(entry));
    }
    assert!(name(owner).bytes().all(|byte| byte.is_ascii_hexdigit()));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn owner(id: &str, ifname: Option<&str>) -> Owner {
        Owner {
            container_id: id.into(),
            ifname: ifname.map(Into::into),
        }
    }

    fn lease(ip: &str, owner: &Owner) -> Lease {
        Lease {
            ip: ip.parse().unwrap(),
            owner: Some(owner.clone()),
            stamp: format!("1:{ip}"),
        }
    }

    #[test]
    fn names_tell_attachments_apart() {
        let names: BTreeSet<_> = [
            ("a", Some("b")),
            ("a", None),
            ("ab", None),
            ("a", Some("c")),
        ]
        .map(|(id, ifname)| name(&owner(id, ifname)))
        .into();
        assert_eq!(names.len(), 4);
        assert_eq!(
            name(&owner("abc", None)),
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        );
    }

    #[test]
    fn rebuilding_keeps_what_is_known_and_forgets_what_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::new(dir.path(), "n");
        let (one, two, old) = (
            owner("1", Some("e")),
            owner("2", Some("e")),
            owner("3", None),
        );
        let mut tally = index.rebuild(&[], index.entries().unwrap(), "b").unwrap();
        for (owner, ip, boot) in [
            (&one, "10.0.0.2", "b1"),
            (&one, "fd00::2", "b2"),
            (&two, "10.0.0.3", "b1"),
        ] {
            let leases = [lease(ip, owner)];
            index.add(owner, &leases, boot, &mut tally).unwrap();
        }
        assert!(tally.has_earlier_than("b1"));

        let again = Lease {
            stamp: "other".into(),
            ..lease("fd00::2", &one)
        };
        let now = [
            lease("10.0.0.2", &one),
            again.clone(),
            lease("10.0.0.9", &old),
        ];
        let mut tally = index.rebuild(&now, index.entries().unwrap(), "b").unwrap();
        assert!(!tally.has_earlier_than("b1"));
        assert!(tally.has_earlier_than("b2") && !tally.blank);
        let taken: BTreeSet<IpAddr> = tally.addresses().iter().collect();
        assert_eq!(taken, now.iter().map(|lease| lease.ip).collect());
        let entry = index.get(&one).unwrap().unwrap();
        assert_eq!(entry.boot_of(&now[0]), Some("b1"));
        assert_eq!(entry.boot_of(&again), None);
        assert_eq!(index.get(&two).unwrap(), None);
        assert_eq!(index.get(&old).unwrap().unwrap().leases.len(), 1);
        let known = index.entries().unwrap().leases();
        assert_eq!(known.len(), now.len());
        for lease in &now {
            assert_eq!(known.get(&lease.ip), Some(lease));
        }

        let both = now.iter().map(|lease| lease.ip).collect();
        index.forget(&one, &both, &mut tally).unwrap();
        assert!(!tally.has_earlier_than("b2"));
        assert_eq!(index.get(&one).unwrap(), None);
        assert_eq!(index.entries().unwrap().whole.len(), 1);
    }

    #[test]
    fn rebuilding_leaves_alone_what_is_right() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::new(dir.path(), "n");
        let one = owner("1", Some("e"));
        let leases = [lease("fd00::2", &one), lease("10.0.0.2", &one)];
        let mut tally = index.rebuild(&[], index.entries().unwrap(), "b").unwrap();
        index.add(&one, &leases, "b", &mut tally).unwrap();
        let file = || fs::metadata(index.dir.join(name(&one))).unwrap().ino();
        let before = file();
        for leases in [leases.clone(), [leases[1].clone(), leases[0].clone()]] {
            index
                .rebuild(&leases, index.entries().unwrap(), "b")
                .unwrap();
            assert_eq!(file(), before);
        }
    }

    #[test]
    fn damage_is_noticed_and_mended() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::new(dir.path(), "n");
        let one = owner("1", Some("e"));
        let leases = [lease("10.0.0.2", &one)];
        index
            .rebuild(&leases, index.entries().unwrap(), "b")
            .unwrap();
        let path = index.dir.join(name(&one));
        let whole = fs::read(&path).unwrap();
        for length in [0, 1, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(index.get(&one).is_err(), "{length}");
            index
                .rebuild(&leases, index.entries().unwrap(), "b")
                .unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
        fs::write(
            &path,
            serde_json::to_vec(&Entry::new(&owner("2", None), BTreeMap::new())).unwrap(),
        )
        .unwrap();
        assert!(index.get(&one).is_err());
    }

    #[test]
    fn complete_as_long_as_nothing_changed() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::new(dir.path(), "n");
        let now = SystemTime::now();
        assert!(!index.is_complete(now));
        let blank = Lease {
            owner: None,
            ..lease("10.0.0.2", &owner("1", None))
        };
        let tally = index
            .rebuild(&[blank], index.entries().unwrap(), "b")
            .unwrap();
        assert!(tally.blank && !index.is_complete(now));
        index.mark_complete(now, &tally).unwrap();
        assert_eq!(index.tally(now).as_ref(), Some(&tally));
        assert_eq!(index.tally(now + Duration::from_nanos(1)), None);
        assert_eq!(index.last_tally(), Some(tally));
        assert!(index.entries().unwrap().damaged.is_empty());
    }

    #[test]
    fn a_link_in_its_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, dir.path().join(DIR)).unwrap();
        assert!(
            Index::new(dir.path(), "n")
                .rebuild(&[], Entries::default(), "b")
                .is_err()
        );
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    }
}
