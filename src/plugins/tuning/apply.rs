//! The tuning plugin's hands: everything it reads and changes in the container.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::backup::{Backup, Identity};
use super::plan::{Found, Property};
use super::sysctl::{Sysctl, same_value};
use crate::cni::error::{Code, coded, detailed};
use crate::log;
use crate::net::link::{self, Link};
use crate::net::netlink::Netlink;
use crate::net::netns::Netns;
use crate::net::sysctl::{self as kernel, Sysctls};
use crate::undo::Undo;

/// The container's namespace, and a socket in it. Clones share both.
#[derive(Debug, Clone)]
pub struct Container {
    netns: Rc<Netns>,
    netlink: Netlink,
    sysctls: Arc<Sysctls>,
}

impl Container {
    /// Opens a socket in `netns`.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter(netns: Netns) -> Result<Self> {
        Ok(Self {
            netlink: Netlink::open_in(&netns)?,
            netns: Rc::new(netns),
            sysctls: Arc::default(),
        })
    }

    /// The container's link called `ifname`, if it has one.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn link(&self, ifname: &str) -> Result<Option<Link>> {
        link::by_name(&self.netlink, ifname)
    }

    /// Which of all links `link`, one of the container's, is.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn identity(&self, link: &Link) -> Result<Identity> {
        Ok(Identity {
            netns: self.netns.inode()?,
            ifindex: link.index,
            peer: link.peer,
        })
    }

    /// What each of `sysctls` holds.
    ///
    /// # Errors
    /// Code 7 for a key that leads elsewhere.
    pub fn read(&self, sysctls: &[Sysctl]) -> Result<Vec<Found>> {
        if sysctls.is_empty() {
            return Ok(Vec::new());
        }
        let kernel = &self.sysctls;
        let read = |sysctl| read_one(kernel, sysctl);
        self.netns
            .inside(|| sysctls.iter().map(read).collect::<Result<_>>())
    }

    /// All of `sysctls` must be there, by what was `found`.
    ///
    /// # Errors
    /// Code 7 naming the key and the path.
    pub fn refuse_missing(&self, sysctls: &[Sysctl], found: &[Found]) -> Result<()> {
        let missing = sysctls
            .iter()
            .zip(found)
            .find(|(_, found)| **found == Found::Nothing);
        let Some((sysctl, _)) = missing else {
            return Ok(());
        };
        Err(detailed(
            Code::Config,
            format!(
                "open {}/{}: no such file or directory",
                kernel::ROOT,
                sysctl.path
            ),
            format!("there is no sysctl {} in {}", sysctl.key, self.netns.path()),
        ))
    }

    /// Writes `sysctls`, which hold `before`.
    ///
    /// # Errors
    /// Names the key, the value and the cause.
    pub fn write(&self, sysctls: &[Sysctl], before: Vec<Found>, undo: &mut Undo<'_>) -> Result<()> {
        if sysctls.is_empty() {
            return Ok(());
        }
        let (netns, kernel) = (Rc::clone(&self.netns), Arc::clone(&self.sysctls));
        let old: Vec<(String, String)> = sysctls
            .iter()
            .zip(before)
            .filter_map(|(sysctl, found)| match found {
                Found::Value(value) => Some((sysctl.path.clone(), value)),
                Found::WriteOnly | Found::Nothing => None,
            })
            .collect();
        undo.push("restore sysctls", move || {
            netns.inside(|| {
                old.iter()
                    .rev()
                    .try_for_each(|(path, value)| kernel.set(path, value))
            })
        });
        let kernel = &self.sysctls;
        let write = |sysctl| write_one(kernel, sysctl);
        self.netns.inside(|| sysctls.iter().try_for_each(write))
    }

    /// Makes one property of `link` what it should be.
    ///
    /// # Errors
    /// Names the property, the link and the kernel's reason.
    pub fn change(&self, link: &Link, property: Property) -> Result<()> {
        let change = link::change_of(link.index);
        let change = match property {
            Property::Mac(mac) => change.address(mac.0.to_vec()),
            Property::Promisc(on) => change.promiscuous(on),
            Property::Mtu(mtu) => change.mtu(mtu),
            Property::Allmulti(on) => change.allmulticast(on),
            Property::TxQueueLen(length) => change.txqueuelen(length),
        };
        link::change(
            &self.netlink,
            change,
            &format!("set {property} of {}", link.name),
        )
    }

    /// Gives `link` back what is in `backup`, as far as that goes: what does not work is
    /// said on stderr.
    pub fn restore(&self, link: &Link, backup: &Backup) {
        for property in backup.properties() {
            if let Err(error) = self.change(link, property) {
                log::warn(&format!("restore: {error:#}"));
            }
        }
    }
}

fn read_one(kernel: &Sysctls, sysctl: &Sysctl) -> Result<Found> {
    let found = refuse_links(kernel, sysctl).and_then(|()| kernel.read(&sysctl.path));
    match found {
        Ok(Some(value)) => Ok(Found::Value(value)),
        Ok(None) => Ok(Found::WriteOnly),
        Err(error) if kernel::is_absent(&error) => Ok(Found::Nothing),
        Err(error) => Err(error)
            .with_context(|| coded(Code::Config, format!("sysctl {} cannot be set", sysctl.key))),
    }
}

/// The path has no way out by its words; it must not have one by a symlink either.
fn refuse_links(kernel: &Sysctls, sysctl: &Sysctl) -> Result<()> {
    let path = Path::new(kernel::ROOT).join(&sysctl.path);
    let real = kernel
        .leads_to(&sysctl.path)
        .with_context(|| format!("look up {}", path.display()))?;
    if real == path {
        return Ok(());
    }
    anyhow::bail!("{} leads to {}", path.display(), real.display())
}

fn write_one(kernel: &Sysctls, sysctl: &Sysctl) -> Result<()> {
    let Sysctl { key, path, value } = sysctl;
    kernel
        .set(path, value)
        .with_context(|| coded(Code::Io, format!("set sysctl {key} to \"{value}\"")))?;
    // The kernel reads numbers in more than one notation and shows them in its own.
    if let Ok(Some(now)) = kernel.read(path)
        && !same_value(&now, value)
    {
        log::warn(&format!(
            "sysctl {key} is \"{now}\" after \"{value}\" was written: CHECK will find a difference"
        ));
    }
    Ok(())
}
