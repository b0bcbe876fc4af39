//! ADD: one address from each range set, all or none (docs/compatibility.md#6.3).

use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::addresses::Addresses;
use super::allocator;
use super::boots::{Boots, Held};
use super::config::Settings;
use super::lease_dir::{Lease, LeaseDir};
use super::range_set::RangeSet;
use super::store::Store;
use crate::cni::error::{Code, coded, detailed};
use crate::cni::invocation::Attachment;
use crate::cni::result::Ip;
use crate::log;

/// What an ADD wants.
#[derive(Debug)]
pub struct Request<'a> {
    pub network: &'a str,
    pub attachment: &'a Attachment,
    pub settings: &'a Settings,
    /// Addresses that must be among those given.
    pub requested: Vec<IpAddr>,
}

/// What it gets: a lease and an address from each set, in order.
#[derive(Debug, Default)]
pub struct Reserved {
    pub leases: Vec<Lease>,
    pub ips: Vec<Ip>,
}

/// Reserves the addresses. After a failure none of them stays reserved.
///
/// # Errors
/// `failed to allocate for range N: ...` with the reason, or code 5.
pub fn reserve(store: &mut Store, request: Request<'_>) -> Result<Reserved> {
    let held = store.held_by(request.attachment)?;
    let (earlier, held): (Vec<Held>, Vec<Held>) = held
        .into_iter()
        .partition(|held| store.boots.is_earlier(held));
    let earlier: Vec<Lease> = earlier.into_iter().map(|held| held.lease).collect();
    if !earlier.is_empty() {
        log::warn(&format!(
            "{} of container {} still held {} from before the node started: taken over",
            request.attachment.ifname,
            request.attachment.container_id,
            list(earlier.iter().map(|lease| lease.ip)),
        ));
        store.release(&earlier)?;
    }
    let mut round = Round {
        network: request.network,
        attachment: request.attachment,
        settings: request.settings,
        requested: request.requested,
        held,
        preferred: earlier.into_iter().map(|lease| lease.ip).collect(),
        reserved: Reserved::default(),
    };
    if let Err(error) = round.all(store) {
        if let Err(stays) = store.release(&round.reserved.leases) {
            log::warn(&format!("undo: {stays:#}"));
        }
        return Err(error);
    }
    store.note_reserved(request.attachment, &round.reserved.leases);
    Ok(round.reserved)
}

/// One ADD on its way through the sets.
struct Round<'a> {
    network: &'a str,
    attachment: &'a Attachment,
    settings: &'a Settings,
    /// Not yet given.
    requested: Vec<IpAddr>,
    /// Leases the attachment had before, in this boot of the node or an unknown one.
    held: Vec<Held>,
    /// Addresses the attachment had in an earlier boot.
    preferred: Vec<IpAddr>,
    reserved: Reserved,
}

impl Round<'_> {
    fn all(&mut self, store: &mut Store) -> Result<()> {
        let sets = &self.settings.sets;
        for (index, set) in sets.iter().enumerate() {
            let lease = match self.take_requested(set) {
                Some(ip) => self.reserve_requested(store, ip, index, set)?,
                None => self.reserve_any(store, index, set)?,
            };
            let ip = lease.ip;
            // From here on a failure releases it.
            self.reserved.leases.push(lease);
            let range = set
                .range_of(ip)
                .context("an address was found outside its range set")?;
            let address =
                IpNet::new(ip, range.subnet.prefix_len()).context("make an address of a subnet")?;
            self.reserved
                .ips
                .push(Ip::new(address, Some(range.gateway)));
        }
        if self.requested.is_empty() {
            return Ok(());
        }
        let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
        let left: Vec<String> = self.requested.iter().map(ToString::to_string).collect();
        Err(detailed(
            Code::Internal,
            format!("failed to allocate all requested IPs: {}", left.join(" ")),
            format!(
                "no range set is left for them: network {} gives one address from each of {}",
                self.network,
                sets.join("; ")
            ),
        ))
    }

    fn take_requested(&mut self, set: &RangeSet) -> Option<IpAddr> {
        let position = self
            .requested
            .iter()
            .position(|ip| set.range_of(*ip).is_some())?;
        Some(self.requested.remove(position))
    }

    fn reserve_requested(
        &self,
        store: &mut Store,
        ip: IpAddr,
        index: usize,
        set: &RangeSet,
    ) -> Result<Lease> {
        if let Some(other) = self.settings.set_with_gateway(ip) {
            return Err(detailed(
                Code::Internal,
                format!(
                    "failed to allocate for range {index}: requested ip {ip} is subnet's gateway"
                ),
                format!(
                    "it is a gateway of range set {other}, and never handed out: request another address"
                ),
            ));
        }
        if let Some(lease) = store.reserve(ip, index, self.attachment)? {
            return Ok(lease);
        }
        if let Some(abandoned) = store.first_abandoned(std::iter::once(ip)) {
            store.reclaim(&abandoned)?;
            if let Some(lease) = store.reserve(ip, index, self.attachment)? {
                return Ok(lease);
            }
        }
        let holder = store.leases.read(ip).ok().flatten();
        let holder = holder
            .and_then(|lease| lease.owner)
            .map_or_else(|| "somebody unknown".to_owned(), |owner| owner.to_string());
        Err(detailed(
            Code::Internal,
            format!(
                "failed to allocate for range {index}: requested IP address {ip} is not available in range set {set}"
            ),
            format!(
                "it is held by {holder}, recorded in {}",
                store.leases.file(ip).display()
            ),
        ))
    }

    fn reserve_any(&self, store: &mut Store, index: usize, set: &RangeSet) -> Result<Lease> {
        let held = self
            .held
            .iter()
            .find(|held| set.range_of(held.lease.ip).is_some());
        if let Some(held) = held {
            return Err(self.duplicate(store, index, held));
        }
        let preferred = self.preferred.iter().copied();
        let candidates = preferred
            .filter(|ip| set.range_of(*ip).is_some())
            .chain(allocator::candidates(
                set,
                store.leases.last_reserved(index),
            ))
            .filter(|ip| self.settings.set_with_gateway(*ip).is_none());
        loop {
            let free = store
                .first_free(candidates.clone())
                .with_context(|| coded(Code::Io, "look for a free address"))?;
            let ip = match free {
                Some(ip) => ip,
                None => match store.first_abandoned(candidates.clone()) {
                    Some(abandoned) => {
                        store.reclaim(&abandoned)?;
                        abandoned.ip
                    }
                    None => return Err(self.exhausted(store, index, set)),
                },
            };
            // Whoever took it in between does not respect the lock. On to the next.
            if let Some(lease) = store.reserve(ip, index, self.attachment)? {
                return Ok(lease);
            }
        }
    }

    fn duplicate(&self, store: &Store, index: usize, held: &Held) -> anyhow::Error {
        let Attachment {
            container_id,
            ifname,
        } = self.attachment;
        let ip = held.lease.ip;
        let file = store.leases.file(ip);
        let written = std::fs::metadata(&file).and_then(|meta| meta.modified());
        let written = written.map_or_else(
            |_unknown| "at an unknown time".into(),
            |time| humantime::format_rfc3339_seconds(time).to_string(),
        );
        let boot = match &held.boot {
            Some(boot) => format!("in this boot of the node ({boot})"),
            None => "in an unknown boot of the node".to_owned(),
        };
        detailed(
            Code::Internal,
            format!(
                "failed to allocate for range {index}: {ip} has been allocated to {container_id}, duplicate allocation is not allowed"
            ),
            format!(
                "{} was written {written}, {boot}; DEL of container {container_id}, interface {ifname}, network {} frees the address",
                file.display(),
                self.network
            ),
        )
    }

    fn exhausted(&self, store: &Store, index: usize, set: &RangeSet) -> anyhow::Error {
        // This is for a message: what cannot be read is not counted.
        let taken = store.leases.recorded().unwrap_or_default();
        detailed(
            Code::Internal,
            format!("failed to allocate for range {index}: {}", exhausted(set)),
            shortage(self.network, set, &store.leases, &store.boots, &taken),
        )
    }
}

/// The sentence that clients look for.
pub fn exhausted(set: &RangeSet) -> String {
    format!("no IP addresses available in range set: {set}")
}

/// What there is to say about a set without a free address, of which `taken` are taken.
pub fn shortage(
    network: &str,
    set: &RangeSet,
    leases: &LeaseDir,
    boots: &Boots,
    taken: &Addresses,
) -> String {
    let in_set = taken.iter().filter(|ip| set.range_of(*ip).is_some());
    format!(
        "network {network}, range set {set}: addresses in use: {}, {} of them known to be from \
         an earlier boot of the node; recorded in {}; \
         remove containers, have the runtime run GC for those that are gone, or widen the range",
        set.count(taken).1,
        boots.count_earlier(leases, in_set),
        leases.path().display()
    )
}

fn list(addresses: impl Iterator<Item = IpAddr>) -> String {
    let texts: Vec<String> = addresses.map(|ip| ip.to_string()).collect();
    texts.join(", ")
}
