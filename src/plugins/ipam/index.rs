//! Finds the leases of an attachment without reading all of them.
//!
//! The index of a network lies beside the lease directories, in
//! `<dataDir>/.cnibox/<network>`: one small file per attachment, named by a hash of it.
//! A file also remembers in which boot of the node each lease was written, which the
//! lease itself has no place for.
//!
//! It is a hint. What it says about a lease counts only while the lease says the same,
//! and one reading of the lease directory rebuilds it. What it does not say counts only
//! while it is complete: then the file `complete` has the modification time that the lease
//! directory has. Whoever adds or removes a lease without telling us (the reference
//! plugin, an administrator, a process of ours that was killed) changes the latter.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, FileTimes, OpenOptions};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::lease_dir::Lease;
use super::owner::Owner;
use crate::fsutil;

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
    pub leases: Vec<Known>,
}

/// What is known of one lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    pub address: IpAddr,
    /// Which file this is about.
    stamp: String,
    /// The boot in which it was written; empty when that is not known.
    pub boot: String,
}

impl Entry {
    fn new(owner: &Owner, leases: Vec<Known>) -> Self {
        Self {
            container_id: owner.container_id.clone(),
            ifname: owner.ifname.clone(),
            leases,
        }
    }

    /// The boot in which `lease` was written, if that very file is known.
    pub fn boot_of(&self, lease: &Lease) -> Option<&str> {
        self.leases
            .iter()
            .find(|known| known.address == lease.ip && known.stamp == lease.stamp)
            .map(|known| known.boot.as_str())
            .filter(|boot| !boot.is_empty())
    }

    fn is_of(&self, owner: &Owner) -> bool {
        self.container_id == owner.container_id && self.ifname == owner.ifname
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
        fs::symlink_metadata(self.dir.join(COMPLETE))
            .and_then(|meta| meta.modified())
            .is_ok_and(|marked| marked == changed_at)
    }

    /// Notes that every lease is in the index.
    ///
    /// # Errors
    /// When the mark cannot be written.
    pub fn mark_complete(&self, changed_at: SystemTime) -> Result<()> {
        let path = self.dir.join(COMPLETE);
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .and_then(|file| file.set_times(FileTimes::new().set_modified(changed_at)))
            .with_context(|| format!("mark {}", path.display()))
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
        if !entry.is_of(owner) {
            bail!("{} is about somebody else", path.display());
        }
        Ok(Some(entry))
    }

    /// Adds `leases`, just written in `boot`, to what is known of `owner`.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn add(&self, owner: &Owner, leases: &[Lease], boot: &str) -> Result<()> {
        let mut entry = self
            .get(owner)?
            .unwrap_or_else(|| Entry::new(owner, Vec::new()));
        let news = |known: &Known| leases.iter().any(|lease| lease.ip == known.address);
        entry.leases.retain(|known| !news(known));
        entry.leases.extend(leases.iter().map(|lease| Known {
            address: lease.ip,
            stamp: lease.stamp.clone(),
            boot: boot.to_owned(),
        }));
        self.put(owner, &entry)
    }

    /// Forgets that `owner` has `addresses`.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn forget(&self, owner: &Owner, addresses: &BTreeSet<IpAddr>) -> Result<()> {
        let Some(mut entry) = self.get(owner)? else {
            return Ok(());
        };
        entry
            .leases
            .retain(|known| !addresses.contains(&known.address));
        self.put(owner, &entry)
    }

    /// Makes the index say what `leases`, all that there are, say. What it knows of them
    /// already stays known.
    ///
    /// # Errors
    /// When the index cannot be written, or something else stands in its place.
    pub fn rebuild(&self, leases: &[Lease]) -> Result<()> {
        self.prepare()?;
        let mut owners: BTreeMap<&Owner, Vec<&Lease>> = BTreeMap::new();
        for lease in leases {
            if let Some(owner) = &lease.owner {
                owners.entry(owner).or_default().push(lease);
            }
        }
        let mut files = self.files()?;
        for (owner, leases) in owners {
            let known = if files.remove(&name(owner)) {
                // A damaged file is as good as none: it is written anew.
                self.get(owner).unwrap_or_default()
            } else {
                None
            };
            let boot_of = |lease| known.as_ref().and_then(|entry| entry.boot_of(lease));
            let leases = leases
                .iter()
                .map(|lease| Known {
                    address: lease.ip,
                    stamp: lease.stamp.clone(),
                    boot: boot_of(lease).unwrap_or_default().to_owned(),
                })
                .collect();
            let entry = Entry::new(owner, leases);
            if known.as_ref() != Some(&entry) {
                self.put(owner, &entry)?;
            }
        }
        for stale in files {
            fsutil::remove(&self.dir.join(stale))?;
        }
        Ok(())
    }

    /// The leases in the index that were written in another boot than `boot`.
    ///
    /// # Errors
    /// When the index cannot be listed; damaged files are passed over.
    pub fn earlier_than(&self, boot: &str) -> Result<Vec<(IpAddr, String)>> {
        let mut earlier = Vec::new();
        for file in self.files()? {
            if let Ok(Some(entry)) = read(&self.dir.join(file)) {
                let others = entry.leases.into_iter();
                earlier.extend(
                    others
                        .filter(|known| !known.boot.is_empty() && known.boot != boot)
                        .map(|known| (known.address, known.stamp)),
                );
            }
        }
        Ok(earlier)
    }

    /// The names of all files but the mark.
    fn files(&self) -> Result<BTreeSet<String>> {
        let reading = || format!("read {}", self.dir.display());
        let mut files = BTreeSet::new();
        for entry in fs::read_dir(&self.dir).with_context(reading)? {
            let name = entry.with_context(reading)?.file_name();
            files.extend(name.into_string().ok().filter(|name| name != COMPLETE));
        }
        Ok(files)
    }

    fn prepare(&self) -> Result<()> {
        let parent = self.dir.parent().unwrap_or(&self.dir);
        for dir in [parent, &self.dir] {
            match DirBuilder::new().mode(DIR_MODE).create(dir) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    let meta = fs::symlink_metadata(dir);
                    if !meta.is_ok_and(|meta| meta.is_dir()) {
                        bail!("{} is no directory", dir.display());
                    }
                }
                created => created.with_context(|| format!("create {}", dir.display()))?,
            }
        }
        Ok(())
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

fn read(path: &Path) -> Result<Option<Entry>> {
    fsutil::read(path)?
        .map(|bytes| serde_json::from_slice(&bytes))
        .transpose()
        .with_context(|| format!("{} is damaged", path.display()))
}

/// The file of `owner`: its name as a hash, since any name is too long for some file
/// system, and a container is not to choose a file name.
fn name(owner: &Owner) -> String {
    let digest = Sha256::digest(owner.content());
    let mut name = String::with_capacity(2 * digest.len());
    for byte in digest {
        for nibble in [byte >> 4, byte & 15] {
            name.extend(char::from_digit(nibble.into(), 16));
        }
    }
    name
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
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
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
        index.rebuild(&[]).unwrap();
        index.add(&one, &[lease("10.0.0.2", &one)], "b1").unwrap();
        index.add(&one, &[lease("fd00::2", &one)], "b2").unwrap();
        index.add(&two, &[lease("10.0.0.3", &two)], "b1").unwrap();

        let again = Lease {
            stamp: "other".into(),
            ..lease("fd00::2", &one)
        };
        let now = [
            lease("10.0.0.2", &one),
            again.clone(),
            lease("10.0.0.9", &old),
        ];
        index.rebuild(&now).unwrap();
        let entry = index.get(&one).unwrap().unwrap();
        assert_eq!(entry.boot_of(&now[0]), Some("b1"));
        assert_eq!(entry.boot_of(&again), None);
        assert_eq!(index.get(&two).unwrap(), None);
        assert_eq!(index.get(&old).unwrap().unwrap().leases.len(), 1);
        assert_eq!(
            index.earlier_than("b2").unwrap(),
            [("10.0.0.2".parse().unwrap(), "1:10.0.0.2".to_owned())]
        );

        let both = now.iter().map(|lease| lease.ip).collect();
        index.forget(&one, &both).unwrap();
        assert_eq!(index.get(&one).unwrap(), None);
        assert_eq!(index.files().unwrap().len(), 1);
    }

    #[test]
    fn damage_is_noticed_and_mended() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::new(dir.path(), "n");
        let one = owner("1", Some("e"));
        let leases = [lease("10.0.0.2", &one)];
        index.rebuild(&leases).unwrap();
        let path = index.dir.join(name(&one));
        let whole = fs::read(&path).unwrap();
        for length in [0, 1, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(index.get(&one).is_err(), "{length}");
            index.rebuild(&leases).unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
        fs::write(
            &path,
            serde_json::to_vec(&Entry::new(&owner("2", None), Vec::new())).unwrap(),
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
        index.rebuild(&[]).unwrap();
        assert!(!index.is_complete(now));
        index.mark_complete(now).unwrap();
        assert!(index.is_complete(now));
        assert!(!index.is_complete(now + Duration::from_nanos(1)));
        assert_eq!(index.files().unwrap().len(), 0);
    }

    #[test]
    fn a_link_in_its_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, dir.path().join(DIR)).unwrap();
        assert!(Index::new(dir.path(), "n").rebuild(&[]).is_err());
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    }
}
