//! Leases and the boots of the node in which they were written (docs/requirements.md#r-21).
//!
//! A network namespace does not outlive the node, but leases do. One that was written in an
//! earlier boot is somebody's only if its container was started again since, which writes
//! the lease anew; or if the boot id changed under a living container, as when a data
//! directory moves between nodes. Against the latter, what runtimes remember is asked too:
//! a container whose result cache names a living namespace keeps its lease; and so does one
//! whose host end is there, for runtimes that remember elsewhere.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;

use super::index::{Entries, Index, Tally};
use super::lease_dir::{Lease, LeaseDir};
use super::owner::Owner;
use crate::cni::invocation::Attachment;
use crate::cni::skel::RememberedNetns;
use crate::net::netlink::Netlink;
use crate::net::{link, netns};
use crate::plugins::host_end::Identity;
use crate::{fsutil, log};

/// A lease, and the boot of the node in which it was written where that is known.
#[derive(Debug)]
pub struct Held {
    pub lease: Lease,
    pub boot: Option<String>,
}

/// What is known of the boots in which one network's leases were written.
#[derive(Debug)]
pub struct Boots {
    pub index: Index,
    network: String,
    /// This boot; empty where the kernel does not say.
    this: String,
    /// What runtimes remember.
    remembered: RememberedNetns,
    /// The aliases of the host's veth links, once somebody had to look.
    aliases: OnceCell<Option<BTreeSet<String>>>,
}

impl Boots {
    /// Those of `network`. Looks at nothing but this boot.
    pub fn new(data_dir: &Path, network: &str, remembered: RememberedNetns) -> Self {
        Self {
            index: Index::new(data_dir, network),
            network: network.to_owned(),
            this: boot_id(),
            remembered,
            aliases: OnceCell::new(),
        }
    }

    /// `lease`, and its boot if the index knows it.
    pub fn held(&self, lease: Lease) -> Held {
        let known = lease.owner.as_ref().map(|owner| self.index.get(owner));
        let boot = match &known {
            Some(Ok(Some(entry))) => entry.boot_of(&lease).map(str::to_owned),
            // A damaged entry is mended when the index is rebuilt.
            _ => None,
        };
        Held { lease, boot }
    }

    /// Lets the index know that `owner` has got `leases` in this boot.
    ///
    /// # Errors
    /// As [`Index::add`].
    pub fn note(&self, owner: &Owner, leases: &[Lease], tally: &mut Tally) -> Result<()> {
        self.index.add(owner, leases, &self.this, tally)
    }

    /// Makes the index say what `leases`, all that there are, say.
    ///
    /// # Errors
    /// As [`Index::rebuild`].
    pub fn rebuild(&self, leases: &[Lease], known: Entries) -> Result<Tally> {
        self.index.rebuild(leases, known, &self.this)
    }

    /// Whether `held` is known to be from before the node started.
    pub fn is_earlier(&self, held: &Held) -> bool {
        !self.this.is_empty() && held.boot.as_ref().is_some_and(|boot| *boot != self.this)
    }

    /// Whether no lease in `tally` is.
    pub fn has_no_earlier(&self, tally: &Tally) -> bool {
        self.this.is_empty() || !tally.has_earlier_than(&self.this)
    }

    /// Whether no lease in `tally` is one that names nobody: none did when all were read, and
    /// the node has not gone down since, which is what damages files.
    pub fn has_no_blank(&self, tally: &Tally) -> bool {
        !tally.blank && !self.this.is_empty() && tally.read_in == self.this
    }

    /// Whether `held` can be given to another: it is from an earlier boot, and nothing
    /// tells that its container lives.
    pub fn is_abandoned(&self, held: &Held) -> bool {
        self.is_earlier(held)
            && held
                .lease
                .owner
                .as_ref()
                .is_some_and(|owner| !self.is_live(owner))
    }

    /// The first of `candidates` whose lease in `leases` is abandoned.
    pub fn first_abandoned(
        &self,
        leases: &LeaseDir,
        mut candidates: impl Iterator<Item = IpAddr>,
    ) -> Option<Lease> {
        candidates.find_map(|ip| {
            let held = self.held(leases.read(ip).ok()??);
            self.is_abandoned(&held).then_some(held.lease)
        })
    }

    /// How many of the leases of `addresses` are from an earlier boot. Which boot that is
    /// stands in the index only, however old that is.
    pub fn count_earlier(
        &self,
        leases: &LeaseDir,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> usize {
        let tally = self.index.last_tally();
        if tally.is_none_or(|tally| self.has_no_earlier(&tally)) {
            return 0;
        }
        let found = addresses.filter_map(|ip| leases.read(ip).ok()?);
        found
            .filter(|lease| self.is_earlier(&self.held(lease.clone())))
            .count()
    }

    /// Whether the runtime's memory of the attachment leads to a namespace that lives, or
    /// the host has the attachment's link. Our own namespace is none of a container's: a
    /// process id that was a container's before may be anybody's by now.
    fn is_live(&self, owner: &Owner) -> bool {
        // A file of old does not tell the interface, nor its boot.
        let Some(ifname) = owner.ifname.clone() else {
            return true;
        };
        let attachment = Attachment {
            container_id: owner.container_id.clone(),
            ifname,
        };
        let netns = (self.remembered)(&self.network, &attachment);
        let is_remembered = netns.is_some_and(|netns| {
            let own = Path::new("/proc/thread-self/ns/net");
            netns::is_live(&netns) && !fsutil::is_same_file(own, Path::new(&netns))
        });
        is_remembered || self.has_host_end(&attachment)
    }

    /// Whether the host has the link that the bridge plugin made for `attachment`. Where
    /// links cannot be listed, any may be there.
    fn has_host_end(&self, attachment: &Attachment) -> bool {
        let aliases = self.aliases.get_or_init(|| {
            let links = Netlink::open().and_then(|host| link::all(&host, "veth"));
            links
                .map(|links| links.into_iter().map(|link| link.alias).collect())
                .inspect_err(|error| log::warn(&format!("no lease is taken over: {error:#}")))
                .ok()
        });
        let alias = Identity::new(&self.network, attachment).alias;
        aliases
            .as_ref()
            .is_none_or(|aliases| aliases.contains(&alias))
    }
}

/// The kernel's name for this boot. A clock cannot stand in for it: boards without one
/// start in the past, and then all live leases would look old.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}
