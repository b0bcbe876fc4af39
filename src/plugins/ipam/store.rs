//! The leases of one network while we hold its lock: the files that count, and the index
//! that finds them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};

use super::boots::{Boots, Held};
use super::index::{Entries, Tally};
use super::lease_dir::{Lease, LeaseDir};
use super::owner::Owner;
use crate::cni::error::{Code, code_of, coded};
use crate::cni::invocation::Attachment;
use crate::cni::skel::RememberedNetns;
use crate::{fsutil, log};

/// The leases of one network, locked.
#[derive(Debug)]
pub struct Store {
    pub leases: LeaseDir,
    pub boots: Boots,
    /// While the index has every lease.
    tally: Option<Tally>,
    /// The addresses that would be free by now, where nothing is to be changed.
    imagined_free: Option<BTreeSet<IpAddr>>,
    _lock: Option<fsutil::Lock>,
}

impl Store {
    /// Locks the leases of `network`, making their directory.
    ///
    /// # Errors
    /// Code 5; 11 when another process keeps the lock.
    pub fn create(data_dir: &Path, network: &str, remembered: RememberedNetns) -> Result<Self> {
        let leases = LeaseDir::new(data_dir, network);
        leases
            .create()
            .and_then(|()| Self::lock(leases, data_dir, network, remembered))
            .map_err(|error| cannot_open(network, error))
    }

    /// Locks the leases of `network`; `None` when there is no directory of them.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn open(
        data_dir: &Path,
        network: &str,
        remembered: RememberedNetns,
    ) -> Result<Option<Self>> {
        let leases = LeaseDir::new(data_dir, network);
        let open = || {
            if !leases.exists()? {
                return Ok(None);
            }
            Self::lock(leases, data_dir, network, remembered).map(Some)
        };
        open().map_err(|error| cannot_open(network, error))
    }

    /// The leases of `network` to look at and to imagine changes of. What others do
    /// meanwhile may go unnoticed.
    pub fn look(data_dir: &Path, network: &str, remembered: RememberedNetns) -> Self {
        Self {
            leases: LeaseDir::new(data_dir, network),
            boots: Boots::new(data_dir, network, remembered),
            tally: None,
            imagined_free: Some(BTreeSet::new()),
            _lock: None,
        }
    }

    fn lock(
        leases: LeaseDir,
        data_dir: &Path,
        network: &str,
        remembered: RememberedNetns,
    ) -> Result<Self> {
        let lock = leases.lock()?;
        let boots = Boots::new(data_dir, network, remembered);
        let tally = boots.index.tally(leases.changed_at()?);
        Ok(Self {
            leases,
            boots,
            tally,
            imagined_free: None,
            _lock: Some(lock),
        })
    }

    /// The leases of `attachment`, legacy leases of its container included.
    ///
    /// # Errors
    /// Code 5 when the directory cannot be read.
    pub fn held_by(&mut self, attachment: &Attachment) -> Result<Vec<Held>> {
        let owners = [Owner::of(attachment), Owner::legacy(attachment)];
        if self.tally.is_some() {
            match self.look_up(&owners) {
                Ok(held) => return Ok(held),
                Err(error) => {
                    log::warn(&format!("index of leases is rebuilt: {error:#}"));
                    self.tally = None;
                }
            }
        }
        let leases = self.scan()?;
        Ok(leases
            .into_iter()
            .filter(|lease| {
                owners
                    .iter()
                    .any(|owner| lease.owner.as_ref() == Some(owner))
            })
            .map(|lease| self.boots.held(lease))
            .collect())
    }

    /// What the index says of `owners`, if the leases say the same.
    fn look_up(&self, owners: &[Owner]) -> Result<Vec<Held>> {
        let mut held = Vec::new();
        for owner in owners {
            let Some(entry) = self.boots.index.get(owner)? else {
                continue;
            };
            for ip in entry.leases.keys() {
                let lease = self
                    .leases
                    .read(*ip)?
                    .filter(|lease| lease.owner.as_ref() == Some(owner))
                    .with_context(|| format!("{owner} has no lease of {ip} any more"))?;
                let boot = entry.boot_of(&lease).map(str::to_owned);
                held.push(Held { lease, boot });
            }
        }
        Ok(held)
    }

    /// Frees `abandoned`, a lease of somebody who is gone, for another ADD.
    ///
    /// # Errors
    /// As [`Self::release`].
    pub fn reclaim(&mut self, abandoned: &Lease) -> Result<()> {
        self.release(std::slice::from_ref(abandoned))?;
        let owner = abandoned.owner.as_ref().map(ToString::to_string);
        log::warn(&format!(
            "{} is taken from {}: its lease is from before the node was started, and nothing of \
             it is known to live",
            abandoned.ip,
            owner.unwrap_or_default()
        ));
        Ok(())
    }

    /// The first of `candidates` whose lease is abandoned.
    pub fn first_abandoned(&self, candidates: impl Iterator<Item = IpAddr>) -> Option<Lease> {
        if let Some(tally) = &self.tally
            && self.boots.has_no_earlier(tally)
        {
            return None;
        }
        self.boots.first_abandoned(&self.leases, candidates)
    }

    /// Every lease, as the files have it. Removes what killed processes left half-written,
    /// and brings the index up to date.
    ///
    /// # Errors
    /// Code 5 when the directory cannot be read.
    pub fn scan(&mut self) -> Result<Vec<Lease>> {
        let entries = if self.tally.is_some() {
            Ok(Entries::default())
        } else {
            self.boots.index.entries()
        };
        let known = entries.as_ref().map(Entries::leases).unwrap_or_default();
        let found = self
            .leases
            .scan(&known)
            .with_context(|| coded(Code::Io, "read the recorded leases"))?;
        if self.imagined_free.is_some() {
            return Ok(found.leases);
        }
        for leftover in &found.leftovers {
            if let Err(error) = fsutil::remove(leftover) {
                log::warn(&format!("leftover stays: {error:#}"));
            }
        }
        if self.tally.is_none() {
            let rebuilt = entries.and_then(|known| self.boots.rebuild(&found.leases, known));
            match rebuilt {
                Ok(tally) => self.tally = Some(tally),
                Err(error) => self.note(Err(error)),
            }
        }
        Ok(found.leases)
    }

    /// The first of `candidates` that nobody has.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn first_free(
        &self,
        mut candidates: impl Iterator<Item = IpAddr> + Clone,
    ) -> Result<Option<IpAddr>> {
        match &self.imagined_free {
            None => self.leases.first_free(candidates),
            Some(free) => Ok(candidates.find(|ip| free.contains(ip) || !self.leases.is_taken(*ip))),
        }
    }

    /// Records `ip` for `attachment` and as the last one of set number `set`; `None` when
    /// somebody has it.
    ///
    /// # Errors
    /// Code 5; the address is then free.
    pub fn reserve(
        &self,
        ip: IpAddr,
        set: usize,
        attachment: &Attachment,
    ) -> Result<Option<Lease>> {
        let reserve = || {
            if let Some(free) = &self.imagined_free {
                let is_free = free.contains(&ip) || !self.leases.is_taken(ip);
                return Ok(is_free.then(|| Lease {
                    ip,
                    owner: Some(Owner::of(attachment)),
                    stamp: String::new(),
                }));
            }
            if !self.leases.reserve(ip, &Owner::of(attachment))? {
                return Ok(None);
            }
            let recorded = self
                .leases
                .set_last_reserved(set, ip)
                .and_then(|()| self.leases.read(ip));
            if recorded.is_err()
                && let Err(stays) = self.leases.remove(ip)
            {
                log::warn(&format!("undo: {stays:#}"));
            }
            recorded
        };
        reserve().with_context(|| coded(Code::Io, format!("record the lease of {ip}")))
    }

    /// Lets the index know that `attachment` has just got `leases`.
    pub fn note_reserved(&mut self, attachment: &Attachment, leases: &[Lease]) {
        if let Some(tally) = &mut self.tally {
            let added = self.boots.note(&Owner::of(attachment), leases, tally);
            self.note(added);
        }
    }

    /// Frees `leases`, going on when one of them cannot be.
    ///
    /// # Errors
    /// Code 5, with everything that went wrong.
    pub fn release(&mut self, leases: &[Lease]) -> Result<()> {
        if let Some(free) = &mut self.imagined_free {
            free.extend(leases.iter().map(|lease| lease.ip));
            return Ok(());
        }
        let mut failures = Vec::new();
        let mut freed: BTreeMap<&Owner, BTreeSet<IpAddr>> = BTreeMap::new();
        for lease in leases {
            match self.leases.remove(lease.ip) {
                Err(error) => failures.push(format!("{error:#}")),
                Ok(()) => {
                    if let Some(owner) = &lease.owner {
                        freed.entry(owner).or_default().insert(lease.ip);
                    }
                }
            }
        }
        for (owner, addresses) in freed {
            if let Some(tally) = &mut self.tally {
                let forgotten = self.boots.index.forget(owner, &addresses, tally);
                self.note(forgotten);
            }
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(anyhow::Error::msg(failures.join("; "))
                .context(coded(Code::Io, "release recorded addresses")))
        }
    }

    /// The index is a help, never a reason to fail.
    fn note(&mut self, done: Result<()>) {
        if let Err(error) = done {
            log::warn(&format!("index of leases is not up to date: {error:#}"));
            self.tally = None;
        }
    }
}

/// While the lock is still held: what has been done here is in the index, which goes with
/// the network's last lease.
impl Drop for Store {
    fn drop(&mut self) {
        let Some(tally) = &self.tally else { return };
        let index = &self.boots.index;
        if tally.is_empty() {
            let removed = index.remove();
            return self.note(removed);
        }
        let marked = self.leases.changed_at().and_then(|changed_at| {
            if index.is_complete(changed_at) {
                return Ok(());
            }
            index.mark_complete(self.leases.settle()?, tally)
        });
        self.note(marked);
    }
}

/// Code 5, unless `error` has another.
fn cannot_open(network: &str, error: anyhow::Error) -> anyhow::Error {
    let sentence = format!("open the leases of network {network}");
    if code_of(&error).is_some() {
        return error.context(sentence);
    }
    error.context(coded(Code::Io, sentence))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, FileTimes};

    use super::*;

    fn attachment(id: &str) -> Attachment {
        Attachment {
            container_id: id.into(),
            ifname: "eth0".into(),
        }
    }

    #[test]
    fn a_foreign_lease_of_the_same_tick_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let mut ours = Store::create(dir.path(), "n", |_, _| None).unwrap();
        ours.scan().unwrap();
        let ip = "10.0.0.2".parse().unwrap();
        ours.reserve(ip, 0, &attachment("ours")).unwrap().unwrap();
        let net = ours.leases.path().to_owned();
        // What a change now leaves where the clock does not advance.
        let tick = ours.leases.changed_at().unwrap();
        drop(ours);
        fs::write(net.join("10.0.0.3"), "theirs\r\neth0").unwrap();
        let times = FileTimes::new().set_modified(tick);
        File::open(&net).unwrap().set_times(times).unwrap();
        let mut store = Store::open(dir.path(), "n", |_, _| None).unwrap().unwrap();
        assert_eq!(store.held_by(&attachment("theirs")).unwrap().len(), 1);
    }
}
