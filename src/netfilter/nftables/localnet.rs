//! Sysctl `route_localnet` of the links that lead to containers, with the guard it needs
//! beside it. It is on as long as an attachment needs it, and goes back to what it was
//! with the last of them.
//!
//! Who needs it on which link is kept in a set beside the guard, and so is whether it was
//! off before the first came: what an administrator switched on stays on. A link whose
//! switch was thrown by another implementation is taken for such a one.
//!
//! All changes are made under one lock, so that a DEL cannot switch off what an ADD is
//! about to rely on. In the set comes first and goes last: a process that is killed in
//! between leaves work for the next DEL or GC, which does it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};

use super::guard::{TABLE, USERS, shared};
use super::identity::{Tag, attachment_comment};
use super::registry::settle;
use super::set::{Elements, Key};
use super::shared::{ensure_shared, is_in_order, look, missing_shared};
use super::transaction::{apply, rules, try_apply};
use crate::cni::invocation::Attachment;
use crate::fsutil::Lock;
use crate::net::{section, sysctl};
use crate::netfilter::Owner;
use crate::netfilter::socket::Socket;

/// The comment of the element that stands for the link itself.
const WAS_OFF: &str = "route_localnet was 0 and will be again";

/// Lets the link `device` carry packets from 127.0.0.1 to the owner's attachment. What
/// comes in from outside and claims to be from or for 127.0.0.0/8 is dropped, which the
/// sysctl alone would let in (CVE-2020-8558). Serves next to either backend.
///
/// # Errors
/// When the kernel refuses, or code 11 when others keep the lock.
pub fn open(owner: &Owner, device: &str) -> Result<()> {
    let socket = Socket::open()?;
    let _alone = lock()?;
    let key = sysctl_key(device);
    let user = Key::Device(device.to_owned(), Some(Tag::of(owner)));
    let mut users = Elements::from([(user, attachment_comment(owner))]);
    if sysctl::read(&key)?.is_some_and(|value| value == "0") {
        let link = Key::Device(device.to_owned(), None);
        users.insert(link, WAS_OFF.to_owned());
    }
    // First, for not a moment may neighbours reach what listens on 127.0.0.1.
    ensure(&socket, &users).context("keep neighbours away from 127.0.0.1")?;
    sysctl::set(&key, "1").context("let 127.0.0.1 reach the container")
}

/// The guard, and `users` in the set.
fn ensure(socket: &Socket, users: &Elements) -> Result<()> {
    let shared = shared();
    if USERS.is_there(socket)?
        && is_in_order(socket, TABLE, &shared)?
        && try_apply(socket, &USERS.create(users.clone()))?
    {
        return Ok(());
    }
    apply(socket, || {
        let mut changes = ensure_shared(TABLE, &shared, &look(socket, TABLE, &shared, &[])?);
        let there = USERS.elements(socket)?;
        changes.extend(settle(&USERS, there.as_ref(), users, |key| {
            users.contains_key(key)
        }));
        Ok(changes)
    })
}

/// The owner's attachment needs it no longer.
///
/// # Errors
/// When the kernel refuses to set it back, or code 11 when others keep the lock.
pub fn close(owner: &Owner) -> Result<()> {
    let own = Tag::of(owner);
    release(|tag| tag == own)
}

/// As [`close`], for the attachments to `network` that are not in `valid`.
///
/// # Errors
/// As [`close`].
pub fn collect(network: &str, valid: &[Attachment]) -> Result<()> {
    release(|tag| tag.is_stale(network, valid))
}

fn release(unwanted: impl Fn(Tag) -> bool) -> Result<()> {
    let is_unwanted = |key: &Key| matches!(key, Key::Device(_, Some(tag)) if unwanted(*tag));
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(());
    };
    let users = || Ok::<_, anyhow::Error>(USERS.elements(&socket)?.unwrap_or_default());
    if !users()?.keys().any(is_unwanted) {
        return Ok(());
    }
    let _alone = lock()?;
    let there = users()?;
    let mut gone: Vec<Key> = there
        .keys()
        .filter(|key| is_unwanted(key))
        .cloned()
        .collect();
    let devices: BTreeSet<&str> = gone.iter().filter_map(device).collect();
    let is_idle = |name: &&str| {
        let mut others = there.keys().filter(|key| device(key) == Some(name));
        others.all(|key| is_unwanted(key) || matches!(key, Key::Device(_, None)))
    };
    let links: Vec<Key> = devices
        .into_iter()
        .filter(is_idle)
        .map(|name| Key::Device(name.to_owned(), None))
        .filter(|link| there.contains_key(link))
        .collect();
    for name in links.iter().filter_map(device) {
        sysctl::set_if_present(&sysctl_key(name), "0")
            .context("keep 127.0.0.1 from a link that leads to no mapped port any more")?;
    }
    gone.extend(links);
    apply(&socket, || {
        let there = users()?;
        let gone = gone.iter().filter(|key| there.contains_key(key));
        Ok(USERS.delete(&gone.cloned().collect::<Vec<_>>()))
    })
}

/// What [`collect`] would release, in words.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn stale(network: &str, valid: &[Attachment]) -> Result<Vec<String>> {
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(Vec::new());
    };
    let users = USERS.elements(&socket)?.unwrap_or_default();
    let stale = users.iter().filter_map(|(key, owner)| match key {
        Key::Device(name, Some(tag)) if tag.is_stale(network, valid) => {
            Some(format!("route_localnet of {name} for {owner}"))
        }
        _ => None,
    });
    Ok(stale.collect())
}

/// The rules of the guard that are missing, each as the command that would add it.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn missing_guard() -> Result<Vec<String>> {
    let found = rules(&Socket::open()?, &TABLE, None)?;
    Ok(missing_shared(&shared(), &found))
}

/// The sysctl of the link `device`.
pub fn sysctl_key(device: &str) -> String {
    format!("ipv4/conf/{device}/route_localnet")
}

fn device(key: &Key) -> Option<&str> {
    match key {
        Key::Device(name, _) => Some(name),
        _ => None,
    }
}

/// Others are in there for a few milliseconds each.
fn lock() -> Result<Lock> {
    section::enter("localnet", Duration::from_secs(10))
}
