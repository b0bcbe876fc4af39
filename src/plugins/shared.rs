//! What an ADD makes or changes on the host that other attachments may come to use: a bridge,
//! a gateway's address, forwarding. When that ADD fails, it goes back unless somebody uses it.
//!
//! Every ADD shares a lock from before it looks at what is there until its end. An ADD that
//! undoes its work waits until it has the lock alone: then no other ADD is between finding
//! something and using it, and all that use it can be seen.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;

use crate::fsutil::Lock;
use crate::log;
use crate::net::netlink::Netlink;
use crate::net::{link, netconf, section, sysctl};
use crate::undo::Undo;

const SECTION: &str = "shared";

/// How long an ADD waits for one that undoes its work, and the other way round.
const LIMIT: Duration = Duration::from_millis(500);

/// What this ADD has changed so far, and its part of the lock.
#[derive(Debug, Clone)]
pub struct Shared<'a>(Rc<RefCell<Work<'a>>>);

#[derive(Debug)]
struct Work<'a> {
    /// `None` on a host where nothing can be locked.
    lock: Option<Lock>,
    undo: Option<Undo<'a>>,
}

impl Drop for Work<'_> {
    /// The work of an ADD that succeeds stays.
    fn drop(&mut self) {
        if let Some(undo) = self.undo.take() {
            undo.commit();
        }
    }
}

impl<'a> Shared<'a> {
    /// Takes part in the lock. When `undo` runs, what was [pushed](Self::push) goes back.
    ///
    /// # Errors
    /// Code 11 when another ADD undoes its work for too long. A host where nothing can be
    /// locked is worth a warning.
    pub fn enter(undo: &mut Undo<'a>) -> Result<Self> {
        let lock = match section::share_within(SECTION, LIMIT) {
            Ok(Some(lock)) => Some(lock),
            Ok(None) => return Err(section::occupied(SECTION, LIMIT)),
            Err(error) => {
                log::warn(&format!("{error:#}"));
                None
            }
        };
        let shared = Self(Rc::new(RefCell::new(Work {
            lock,
            undo: Some(Undo::default()),
        })));
        let own = shared.clone();
        undo.push("give back what other attachments may use", move || {
            own.give_back()
        });
        Ok(shared)
    }

    /// Adds a step that runs when this ADD fails, while no other ADD is under way. It looks
    /// for itself whether others use what it would remove. `what` as for [`Undo::push`].
    pub fn push(&self, what: impl Into<String>, run: impl FnOnce() -> Result<()> + 'a) {
        if let Some(undo) = &mut self.0.borrow_mut().undo {
            undo.push(what, run);
        }
    }

    fn give_back(&self) -> Result<()> {
        let mut work = self.0.borrow_mut();
        let Some(undo) = work.undo.take() else {
            return Ok(());
        };
        if undo.is_empty() {
            return Ok(());
        }
        let alone = match work.lock.take() {
            Some(lock) => {
                drop(lock);
                section::enter(SECTION, LIMIT)
            }
            None => Err(anyhow::anyhow!("nothing can be locked on this host")),
        };
        match alone {
            Ok(_lock) => {
                drop(undo);
                Ok(())
            }
            Err(error) => {
                undo.commit();
                Err(error.context("it stays, for others may have come to use it"))
            }
        }
    }

    /// Lets the host forward packets of the families of `ips`. Where it did not, that goes
    /// back if no link has come meanwhile.
    ///
    /// # Errors
    /// Names the sysctl.
    pub fn forward(&self, host: &Netlink, ips: impl Iterator<Item = IpAddr>) -> Result<()> {
        let ips: Vec<IpAddr> = ips.collect();
        let mut before = None;
        for is_ipv4 in [true, false] {
            let is_needed = ips.iter().any(|ip| ip.is_ipv4() == is_ipv4);
            if !is_needed || netconf::forwards(host, is_ipv4) != Some(false) {
                continue;
            }
            let links = match &before {
                Some(links) => Rc::clone(links),
                None => Rc::clone(before.insert(Rc::new(indexes(host)?))),
            };
            let values = forwarding_values(is_ipv4);
            if netconf::forwards(host, is_ipv4) != Some(false) {
                // Another ADD was faster: these may be its values.
                continue;
            }
            let host = host.clone();
            self.push("switch forwarding off again", move || {
                if indexes(&host)?.is_subset(&links) {
                    values
                        .iter()
                        .try_for_each(|(key, value)| sysctl::set_if_present(key, value))
                } else {
                    Ok(())
                }
            });
        }
        sysctl::forward(host, ips.into_iter())
    }
}

/// Runs `work` if no ADD is under way, and keeps all out meanwhile.
///
/// # Errors
/// Those of `work`, and when nothing can be locked.
pub fn if_nobody_works(work: impl FnOnce() -> Result<()>) -> Result<()> {
    match section::enter_within(SECTION, Duration::ZERO)? {
        Some(_lock) => work(),
        None => Ok(()),
    }
}

fn indexes(host: &Netlink) -> Result<BTreeSet<u32>> {
    Ok(link::list(host)?.iter().map(|link| link.index).collect())
}

/// The sysctls of a family that change with the switch for forwarding, as they are, in the order in which to write them: the switch first, for it sets the others.
fn forwarding_values(is_ipv4: bool) -> Vec<(String, String)> {
    let family = if is_ipv4 { "ipv4" } else { "ipv6" };
    let mut values = vec![(format!("{family}/conf/all/forwarding"), "0".to_owned())];
    let mut keep = |key: String| {
        // A link that goes meanwhile needs nothing.
        if let Ok(Some(value)) = sysctl::read(&key) {
            values.push((key, value));
        }
    };
    if is_ipv4 {
        // The kernel listens to redirects where it does not forward.
        keep("ipv4/conf/all/accept_redirects".to_owned());
    }
    let links = std::fs::read_dir(Path::new(sysctl::ROOT).join(family).join("conf"));
    for entry in links.into_iter().flatten().flatten() {
        let name = entry.file_name();
        if let Some(name) = name.to_str().filter(|name| *name != "all") {
            keep(format!("{family}/conf/{name}/forwarding"));
            if !is_ipv4 && name != "default" {
                // A link that heeds routers needs another value while the host forwards.
                keep(format!("{family}/conf/{name}/accept_ra"));
            }
        }
    }
    values
}
