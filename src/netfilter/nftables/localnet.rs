//! Sysctl `route_localnet` of the links that lead to containers, with the guard it needs
//! beside it. It is on as long as an attachment needs it, and goes back to what it was
//! with the last of them.
//!
//! Who needs it on which link is kept in a set beside the guard. Whether it was off before
//! the first came is kept in a file ([`localnet_record`]): what an administrator switched on stays
//! on. A link whose switch was thrown by another implementation is taken for such a one.
//!
//! Whoever flushes the ruleset takes the set along, and the guard. The next DEL or GC then
//! switches the links off: 127.0.0.1 leads to nobody any more, and nothing keeps neighbours
//! away. `cnibox restore` makes all three again.
//!
//! The other implementation switches it on, too, and has no such set: before a link is
//! switched off, whoever does it is asked whether mappings lead over it to anybody else.
//!
//! Links are switched under one lock, so that a DEL cannot switch off what an ADD is about
//! to rely on. File and element come first, and the file goes last: a process that is killed
//! in between leaves work for the next DEL or GC, which does it.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cni::invocation::Attachment;
use crate::fsutil::Lock;
use crate::net::link_sysctl::LinkSysctl;
use crate::net::netlink::Netlink;
use crate::net::{link, section, sysctl};
use crate::netfilter::model::Owner;
use crate::netfilter::nf_tables::change::Change;
use crate::netfilter::nf_tables::found::listed;
use crate::netfilter::nf_tables::identity::{Tag, attachment_comment};
use crate::netfilter::nf_tables::set::{Elements, Key};
use crate::netfilter::nf_tables::transaction::{apply, try_apply};
use crate::netfilter::nfnetlink::socket::Socket;
use crate::netfilter::nftables::guard::{TABLE, USERS, shared};
use crate::netfilter::nftables::localnet_record;
use crate::netfilter::nftables::localnet_record::{Record, SECTION};
use crate::netfilter::nftables::shared::{ensure_shared, is_in_order, look, missing_shared};
use crate::netfilter::registry::settle;

/// Lets the link `device` carry packets from 127.0.0.1 to the owner's attachment. What
/// comes in from outside and claims to be from or for 127.0.0.0/8 is dropped, which the
/// sysctl alone would let in (CVE-2020-8558). Serves next to either backend.
///
/// # Errors
/// When the kernel refuses, or code 11 when others keep the lock.
pub fn open(owner: &Owner, device: &str) -> Result<()> {
    let socket = Socket::open()?;
    let _alone = lock()?;
    // The kernel tells faster than /proc/sys, where a name is looked up among those of all
    // namespaces.
    let link = link::by_name(&Netlink::open()?, device)?;
    let link = link.with_context(|| format!("link {device} is gone"))?;
    let is_on = link.routes_localnet || sysctl::effective(switch(device)) == Some(1);
    if !is_on {
        localnet_record::remember(&link)?;
    }
    let users = Elements::from([user(owner, device)]);
    // First, for not a moment may neighbours reach what listens on 127.0.0.1.
    ensure(&socket, &users).context("keep neighbours away from 127.0.0.1")?;
    if is_on {
        return Ok(());
    }
    sysctl::ensure(switch(device), 1).context("let 127.0.0.1 reach the container")
}

/// The element of an attachment that needs it on the link `device`.
fn user(owner: &Owner, device: &str) -> (Key, String) {
    let key = Key::Device(device.to_owned(), Tag::of(owner));
    (key, attachment_comment(owner))
}

/// The guard, and `users` in the set.
fn ensure(socket: &Socket, users: &Elements) -> Result<()> {
    let shared = shared();
    if USERS.is_there(socket)?
        && is_in_order(socket, TABLE, &shared)?
        && try_apply(socket, &Change::create_elements(&USERS, users.clone()))?
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

/// What forgets that attachments that are `unwanted` need it, for those whose rules go in
/// the same transaction. The links are switched off by [`close`].
///
/// # Errors
/// When the kernel refuses to tell.
pub(super) fn without(socket: &Socket, unwanted: impl Fn(Tag) -> bool) -> Result<Vec<Change>> {
    let users = USERS.elements(socket)?.unwrap_or_default();
    let keys = users.into_keys();
    let gone: Vec<Key> = keys
        .filter(|key| matches!(key, Key::Device(_, tag) if unwanted(*tag)))
        .collect();
    Ok(Change::delete_elements(&USERS, &gone))
}

/// The owner's attachment needs it no longer. A link that is `in_use` all the same stays
/// as it is.
///
/// # Errors
/// When the kernel refuses to set it back, or code 11 when others keep the lock.
pub fn close(owner: &Owner, in_use: impl Fn(&str) -> bool) -> Result<()> {
    let own = Tag::of(owner);
    release(|tag| tag == own, in_use)
}

/// As [`close`], for the attachments to `network` that are not in `valid`.
///
/// # Errors
/// As [`close`].
pub fn collect(network: &str, valid: &[Attachment], in_use: impl Fn(&str) -> bool) -> Result<()> {
    release(Tag::stale(network, valid), in_use)
}

fn release(unwanted: impl Fn(Tag) -> bool, in_use: impl Fn(&str) -> bool) -> Result<()> {
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(());
    };
    if unneeded(&socket, &unwanted)?.is_empty() {
        return Ok(());
    }
    let _alone = lock()?;
    let Unneeded { users, links } = unneeded(&socket, &unwanted)?;
    for link in links {
        if let Some(name) = &link.device {
            if in_use(name) {
                continue;
            }
            sysctl::set_if_present(&sysctl_key(name), "0")
                .context("keep 127.0.0.1 from a link that leads to no mapped port any more")?;
        }
        link.forget();
    }
    if users.is_empty() {
        return Ok(());
    }
    apply(&socket, || without(&socket, &unwanted))
}

/// What is not needed any more.
struct Unneeded {
    /// Elements whose attachments are unwanted.
    users: Elements,
    /// Links that were off, and have no other users.
    links: Vec<Record>,
}

impl Unneeded {
    fn is_empty(&self) -> bool {
        self.users.is_empty() && self.links.is_empty()
    }
}

/// What is not needed without the `unwanted` attachments.
fn unneeded(socket: &Socket, unwanted: impl Fn(Tag) -> bool) -> Result<Unneeded> {
    let (users, others): (Elements, Elements) = USERS
        .elements(socket)?
        .unwrap_or_default()
        .into_iter()
        .partition(|(key, _)| matches!(key, Key::Device(_, tag) if unwanted(*tag)));
    let is_needed = |link: &Record| {
        others
            .keys()
            .any(|key| device(key) == link.device.as_deref())
    };
    let mut links = localnet_record::records()?;
    links.retain(|link| !is_needed(link));
    Ok(Unneeded { users, links })
}

/// What [`collect`] would release, in words.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn stale(
    network: &str,
    valid: &[Attachment],
    in_use: impl Fn(&str) -> bool,
) -> Result<Vec<String>> {
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(Vec::new());
    };
    let Unneeded { users, links } = unneeded(&socket, Tag::stale(network, valid))?;
    let for_users = users.iter().filter_map(|(key, owner)| {
        let name = device(key)?;
        Some(format!("route_localnet of {name} for {owner}"))
    });
    let left = links.iter().filter_map(|link| {
        let name = link.device.as_deref()?;
        let has_users = users.keys().any(|key| device(key) == Some(name));
        (!has_users && !in_use(name))
            .then(|| format!("route_localnet of {name}, which nobody is known to need"))
    });
    Ok(for_users.chain(left).collect())
}

/// What is missing of what [`open`] makes before it switches `devices` on for the owner:
/// the rules of the guard and the owner's elements, each as the command that would add it.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn missing_guard(owner: &Owner, devices: &[String]) -> Result<Vec<String>> {
    let socket = Socket::open()?;
    let mut missing = missing_shared(&shared(), &listed(&socket, &TABLE, None)?);
    let mut users: Elements = devices.iter().map(|device| user(owner, device)).collect();
    if let Some(there) = USERS.listed(&socket)?.as_ref() {
        users.retain(|key, _| !there.contains_key(key));
    }
    missing.extend(
        Change::create_elements(&USERS, users)
            .iter()
            .map(Change::command),
    );
    Ok(missing)
}

/// The sysctl of the link `device`.
pub fn switch(device: &str) -> LinkSysctl<'_> {
    LinkSysctl::v4(device, "route_localnet")
}

/// The path of the sysctl of the link `device`.
pub fn sysctl_key(device: &str) -> String {
    switch(device).key()
}

fn device(key: &Key) -> Option<&str> {
    match key {
        Key::Device(name, _) => Some(name),
        _ => None,
    }
}

/// Others are in there for a few milliseconds each.
fn lock() -> Result<Lock> {
    section::enter(SECTION, Duration::from_secs(10))
}
