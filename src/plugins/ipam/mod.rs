//! `ipam`, known as `host-local`: hands out addresses from ranges and records them in
//! files on this host.
//!
//! An attachment gets one address from each range set of its network. Addresses go round:
//! the search starts after the one handed out last. `config` says what can be configured,
//! `lease_dir` what is on disk, in the reference's form.

mod addresses;
mod allocator;
mod boots;
mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gc;
mod index;
mod lease_dir;
mod owner;
mod pool;
mod range;
mod range_set;
mod reserve;
mod resolv;
mod status;
mod store;

use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use ipnet::IpNet;
use serde_json::Value;

use self::config::Settings;
use self::lease_dir::Lease;
use self::owner::Owner;
use self::reserve::{Request, Reserved};
use self::store::Store;
use crate::cni::collector::Collector;
use crate::cni::config::Config;
use crate::cni::error::{Code, agree, detailed};
use crate::cni::json::Problem;
use crate::cni::pool::Pool;
use crate::cni::preview::{Preview, Subject};
use crate::cni::result::{CniResult, Dns, Ip};
use crate::cni::skel::{Call, Plugin, RememberedNetns};
use crate::journal::step;
use crate::log;
use crate::undo::Undo;

pub use self::status::sample;

/// The applet.
pub struct Ipam;

impl Plugin for Ipam {
    fn add<'a>(&self, call: &'a Call, undo: &mut Undo<'a>) -> Result<CniResult> {
        let wanted = Wanted::read(call)?;
        let network = &call.config.network;
        let data_dir = wanted.settings.data_dir.clone();
        let remembered = call.services.remembered_netns;
        let mut store = step("lock the leases", || {
            Store::create(&data_dir, network, remembered)
        })?;
        let reserved = step("reserve addresses", || wanted.reserve(call, &mut store))?;
        let Reserved { leases, ips } = reserved;
        undo.push(
            format!(
                "release the addresses of {}",
                Owner::of(&call.invocation.attachment)
            ),
            move || release(&data_dir, network, leases, remembered),
        );
        Ok(wanted.result(ips))
    }

    fn del(&self, call: &Call) -> Result<()> {
        let data_dir = config::data_dir(&call.config)?;
        let opened = step("lock the leases", || {
            Store::open(
                &data_dir,
                &call.config.network,
                call.services.remembered_netns,
            )
        })?;
        let Some(mut store) = opened else {
            return Ok(());
        };
        let attachment = &call.invocation.attachment;
        let held = step("find the leases", || store.held_by(attachment))?;
        let (exact, legacy): (Vec<Lease>, Vec<Lease>) = held
            .into_iter()
            .map(|held| held.lease)
            .partition(|lease| lease.owner == Some(Owner::of(attachment)));
        // A lease without interface is another interface's if this one has its own.
        let leases = if exact.is_empty() { &legacy } else { &exact };
        step("release addresses", || store.release(leases))
    }

    fn check(&self, call: &Call) -> Result<()> {
        let settings = Settings::read(&call.config)?;
        let network = &call.config.network;
        let attachment = &call.invocation.attachment;
        let Some(mut store) =
            Store::open(&settings.data_dir, network, call.services.remembered_netns)?
        else {
            return Err(no_lease(call, &settings));
        };
        let given = given(call, &settings)?;
        if given.is_empty() {
            if store.held_by(attachment)?.is_empty() {
                return Err(no_lease(call, &settings));
            }
            return Ok(());
        }
        let mut differences = Vec::new();
        for ip in given {
            let lease = store.leases.read(ip)?;
            let holder = lease.and_then(|lease| lease.owner);
            let owners = [Owner::of(attachment), Owner::legacy(attachment)];
            if holder
                .as_ref()
                .is_some_and(|holder| owners.contains(holder))
            {
                continue;
            }
            let file = store.leases.file(ip);
            let found =
                holder.map_or_else(|| "none".to_owned(), |holder| format!("that of {holder}"));
            differences.push(format!(
                "address {ip}: expected the lease of {} in {}, found {found}",
                Owner::of(attachment),
                file.display()
            ));
        }
        agree(differences)
    }

    fn status(&self, call: &Call) -> Result<()> {
        let settings = Settings::read_for_status(&call.config)?;
        status::check(
            &call.config.network,
            &settings,
            call.services.remembered_netns,
        )
    }

    fn gc(&self, call: &Call, collector: &mut Collector) -> Result<()> {
        let valid = call.config.valid_attachments()?;
        let data_dir = config::data_dir(&call.config)?;
        gc::collect(
            &data_dir,
            &call.config.network,
            &valid,
            call.services.remembered_netns,
            collector,
        )
    }

    fn pools(&self, configs: &[Config]) -> (Vec<Pool>, Vec<String>) {
        pool::all(configs)
    }

    fn preview(&self, call: &Call, preview: &mut Preview) -> Result<Option<CniResult>> {
        let wanted = Wanted::read(call)?;
        let mut store = Store::look(
            &wanted.settings.data_dir,
            &call.config.network,
            call.services.remembered_netns,
        );
        let Reserved { ips, leases } = wanted.reserve(call, &mut store)?;
        for lease in leases {
            let file = store.leases.file(lease.ip);
            let owner = Owner::of(&call.invocation.attachment);
            let text = format!("{} for {owner}, in {}", lease.ip, file.display());
            preview.tell(Subject::Lease, text);
        }
        Ok(Some(wanted.result(ips)))
    }

    fn validate(&self, root: &str, document: &Value) -> Vec<Problem> {
        config::problems(root, document)
    }
}

/// The addresses of `prevResult` that this plugin gave the interface: those in its ranges.
fn given(call: &Call, settings: &Settings) -> Result<Vec<IpAddr>> {
    let Some(result) = call.config.prev_result()? else {
        return Ok(Vec::new());
    };
    let ifname = &call.invocation.attachment.ifname;
    let is_its = |ip: &&Ip| {
        let interface = ip.interface.and_then(|index| result.interfaces.get(index));
        interface.is_none_or(|interface| interface.name == *ifname)
    };
    let ips = result.ips.iter().filter(is_its).map(|ip| ip.address.addr());
    let has_range = |ip: &IpAddr| settings.sets.iter().any(|set| set.range_of(*ip).is_some());
    Ok(ips.filter(has_range).collect())
}

fn no_lease(call: &Call, settings: &Settings) -> anyhow::Error {
    let network = &call.config.network;
    let attachment = &call.invocation.attachment;
    detailed(
        Code::Internal,
        format!(
            "host-local: Failed to find address added by container {}",
            attachment.container_id
        ),
        format!(
            "no address is recorded for {} in {} of network {network}",
            Owner::of(attachment),
            settings.data_dir.join(network).display()
        ),
    )
}

/// What an ADD is told to give.
struct Wanted {
    settings: Settings,
    requested: Vec<IpAddr>,
    dns: Dns,
}

impl Wanted {
    /// # Errors
    /// Code 7, or what is wrong with `resolvConf`.
    fn read(call: &Call) -> Result<Self> {
        let settings = Settings::read(&call.config)?;
        let requested = settings.requested_with(&call.invocation.args)?;
        warn_of_gateways(&settings);
        let dns = match &settings.resolv_conf {
            Some(path) => resolv::read(path)?,
            None => Dns::default(),
        };
        Ok(Self {
            settings,
            requested,
            dns,
        })
    }

    /// # Errors
    /// Those of [`reserve::reserve`].
    fn reserve(&self, call: &Call, store: &mut Store) -> Result<Reserved> {
        let request = Request {
            network: &call.config.network,
            attachment: &call.invocation.attachment,
            settings: &self.settings,
            requested: self.requested.clone(),
        };
        reserve::reserve(store, request)
    }

    fn result(self, ips: Vec<Ip>) -> CniResult {
        CniResult {
            ips,
            routes: self.settings.routes,
            dns: self.dns,
            ..CniResult::default()
        }
    }
}

/// Releases those of `leases` that are still the files that were written.
fn release(
    data_dir: &Path,
    network: &str,
    mut leases: Vec<Lease>,
    remembered: RememberedNetns,
) -> Result<()> {
    let Some(mut store) = Store::open(data_dir, network, remembered)? else {
        return Ok(());
    };
    leases.retain(|lease| match store.leases.read(lease.ip) {
        Ok(found) => found.as_ref() == Some(lease),
        Err(error) => {
            log::warn(&format!("lease of {} stays: {error:#}", lease.ip));
            false
        }
    });
    store.release(&leases)
}

/// An IPv4 gateway that containers cannot reach is mostly a mistake, though not always.
fn warn_of_gateways(settings: &Settings) {
    for range in settings.sets.iter().flat_map(|set| &set.ranges) {
        if let IpNet::V4(subnet) = range.subnet
            && !IpNet::V4(subnet).contains(&range.gateway)
        {
            log::warn(&format!(
                "gateway {} of range {range} is outside subnet {subnet}",
                range.gateway
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::invocation::Attachment;

    #[test]
    fn taking_back_an_add_needs_no_index() {
        let dir = tempfile::tempdir().unwrap();
        let attachment = Attachment {
            container_id: "abc".into(),
            ifname: "eth0".into(),
        };
        let reserve = |ip: &str| {
            let store = Store::create(dir.path(), "n", |_, _| None).unwrap();
            let reserved = store.reserve(ip.parse().unwrap(), 0, &attachment);
            reserved.unwrap().unwrap()
        };
        // From here on the index counts as complete, though it is not told of these two.
        Store::create(dir.path(), "n", |_, _| None)
            .unwrap()
            .scan()
            .unwrap();
        let (ours, other) = (reserve("10.0.0.2"), reserve("10.0.0.3"));
        let written_again = Lease {
            stamp: "earlier".into(),
            ..other.clone()
        };
        release(
            dir.path(),
            "n",
            vec![ours.clone(), written_again],
            |_, _| None,
        )
        .unwrap();
        let store = Store::create(dir.path(), "n", |_, _| None).unwrap();
        assert_eq!(store.leases.read(ours.ip).unwrap(), None);
        assert_eq!(store.leases.read(other.ip).unwrap(), Some(other));
    }
}
