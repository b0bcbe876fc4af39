//! The bridge itself: found or made, and given back by an ADD that fails.
//!
//! A bridge that an ADD makes carries a mark, its alias, until an ADD has succeeded on it. So
//! whichever ADD fails last removes it, not only the one that made it; and the next ADD
//! recognises what one that was killed has left.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use ipnet::IpNet;
use nix::errno::Errno;

use super::config::Settings;
use super::vlan;
use crate::cni::error::{Code, detailed};
use crate::net::link::{self, Link};
use crate::net::mac::Mac;
use crate::net::netlink::{Netlink, tolerate};
use crate::net::{addr, sysctl};
use crate::plugins::shared::{self, Shared};
use crate::plugins::veth::switch_off_quietly;

/// The bridge called `name`, if there is one.
///
/// # Errors
/// Code 7 when the name belongs to something else.
pub fn find_bridge(host: &Netlink, name: &str) -> Result<Option<Link>> {
    match link::by_name(host, name)? {
        Some(other) if other.kind != "bridge" => Err(detailed(
            Code::Config,
            format!(
                "failed to create bridge \"{name}\": \"{name}\" already exists but is not a bridge"
            ),
            format!(
                "link {name} is {}: choose another \"bridge\", or remove the link",
                match other.kind.as_str() {
                    "" => "a physical device",
                    kind => kind,
                }
            ),
        )),
        found => Ok(found),
    }
}

/// The alias of a bridge on which no ADD has succeeded yet.
const MARK: &str = "cni bridge of an ADD that has not finished";

/// The bridge of an ADD.
#[derive(Debug, Clone)]
pub struct Base {
    /// The bridge.
    pub link: Link,
    /// Whether this ADD made it, or another on which none has succeeded yet.
    pub is_unfinished: bool,
}

/// Deletes `bridge` if an ADD made it that was killed, and nobody uses it.
///
/// # Errors
/// When the kernel refuses.
pub fn sweep(host: &Netlink, bridge: &Link) -> Result<()> {
    if bridge.alias != MARK {
        return Ok(());
    }
    shared::if_nobody_works(|| delete_if_unused(host, bridge.index, None))
}

/// Makes sure that the bridge exists, is up, and ignores router advertisements. `addresses` are
/// those that this ADD gives it.
///
/// Somebody else may be doing the same right now: every step is one that can be done twice.
///
/// # Errors
/// Code 7 when the name belongs to something that is no bridge, or to one that cannot be
/// made to filter VLANs.
pub fn ensure(
    host: &Netlink,
    settings: &Settings,
    addresses: &[IpNet],
    shared: &Shared<'_>,
) -> Result<Base> {
    let name = &settings.bridge;
    let mut bridge = find_bridge(host, name)?;
    let mut is_new = false;
    if bridge.is_none() {
        let filtering = settings.vlans.is_some();
        let created = link::create_bridge(host, name, Mac::random()?, settings.mtu, filtering);
        is_new = created.is_ok();
        tolerate(created, &[Errno::EEXIST])?;
        bridge = find_bridge(host, name)?;
        // A random hardware address needs no asking around; without this the bridge's
        // link-local address cannot be used for a second or two.
        switch_off_quietly(name, "accept_dad");
    }
    let link =
        bridge.with_context(|| format!("bridge {name} was deleted while it was being set up"))?;
    let base = Base {
        is_unfinished: is_new || link.alias == MARK,
        link,
    };
    if base.is_unfinished {
        let (host, index, own) = (host.clone(), base.link.index, addresses.to_vec());
        shared.push(format!("delete bridge {name}"), move || {
            delete_if_unused(&host, index, Some(&own))
        });
    }
    set_up(host, settings, &base, is_new, shared)?;
    Ok(base)
}

fn set_up(
    host: &Netlink,
    settings: &Settings,
    base: &Base,
    is_new: bool,
    shared: &Shared<'_>,
) -> Result<()> {
    let bridge = &base.link;
    let (name, index) = (&bridge.name, bridge.index);
    if vlan::ensure_filtering(host, settings, bridge)? {
        let what = format!("switch VLAN filtering off for bridge {name}");
        let bridge = bridge.clone();
        base.on_failure(host, shared, what, move |host| {
            link::filter_vlans(host, &bridge, false)
        })?;
    }
    if bridge.accepts_advertisements != Some(false) {
        let key = format!("ipv6/conf/{name}/accept_ra");
        let before = sysctl::read(&key).ok().flatten();
        switch_off_quietly(name, "accept_ra");
        if let Some(before) = before {
            let what = format!("set {key} back");
            base.on_failure(host, shared, what, move |_| {
                sysctl::set_if_present(&key, &before)
            })?;
        }
    }
    let must_be_promiscuous = settings.promiscuous && !bridge.is_promiscuous;
    if bridge.is_up && !must_be_promiscuous && !is_new {
        return Ok(());
    }
    let mut change = link::change_of(index).up();
    let mut back = link::change_of(index);
    if is_new {
        change = change.alias(MARK.to_owned());
    }
    if must_be_promiscuous {
        change = change.promiscuous(true);
        back = back.promiscuous(false);
    }
    if !bridge.is_up {
        back = back.down();
    }
    let what = format!("set bridge {name} back");
    base.on_failure(host, shared, what, move |host| {
        let done = link::change(host, back, "set its flags as they were");
        tolerate(done, &[Errno::ENODEV])
    })?;
    link::change(host, change, &format!("set bridge {name} up"))
}

impl Base {
    /// Undoes a change of a bridge that was there before with an ADD that fails, unless the
    /// bridge has got another port by then. One that is not finished goes itself.
    ///
    /// # Errors
    /// When the kernel cannot be asked for the ports.
    pub fn on_failure<'a>(
        &self,
        host: &Netlink,
        shared: &Shared<'a>,
        what: String,
        run: impl FnOnce(&Netlink) -> Result<()> + 'a,
    ) -> Result<()> {
        if self.is_unfinished {
            return Ok(());
        }
        let before = ports(host, &self.link)?;
        let (host, bridge) = (host.clone(), self.link.clone());
        shared.push(what, move || {
            if ports(&host, &bridge)?.is_subset(&before) {
                run(&host)
            } else {
                Ok(())
            }
        });
        Ok(())
    }

    /// Takes the mark off the bridge: an ADD has succeeded on it.
    ///
    /// # Errors
    /// When the bridge is gone.
    pub fn finish(&self, host: &Netlink, shared: &Shared<'_>) -> Result<()> {
        if !self.is_unfinished {
            return Ok(());
        }
        let (name, index) = (&self.link.name, self.link.index);
        let what = format!("take the mark off bridge {name}");
        link::change(host, link::change_of(index).alias(String::new()), &what)?;
        // The result may still not be received.
        let host = host.clone();
        shared.push(format!("mark bridge {name}"), move || {
            let mark = link::change_of(index).alias(MARK.to_owned());
            tolerate(link::change(&host, mark, "set the alias"), &[Errno::ENODEV])
        });
        Ok(())
    }
}

fn ports(host: &Netlink, bridge: &Link) -> Result<BTreeSet<u32>> {
    let ports = link::ports(host, bridge)?;
    Ok(ports.iter().map(|port| port.index).collect())
}

/// Deletes the bridge with `index` if it is not finished and nobody uses it: it has no port, no
/// link on top of it, and no address but `own`, where those are known.
fn delete_if_unused(host: &Netlink, index: u32, own: Option<&[IpNet]>) -> Result<()> {
    let links = link::list(host)?;
    let Some(bridge) = links.iter().find(|link| link.index == index) else {
        return Ok(());
    };
    let is_used = links.iter().any(|link| {
        // The number of a veth's other end may be of another namespace.
        let is_on_top = link.kind != "veth" && link.peer == Some(index);
        link.controller == Some(index) || is_on_top
    });
    if bridge.alias != MARK || is_used {
        return Ok(());
    }
    let is_foreign = |net| own.is_some_and(|own| !own.contains(net));
    let addresses = addr::list(host, index)?;
    let mut global = addresses.iter().filter(|address| address.is_global);
    if global.any(|address| is_foreign(&address.net)) {
        return Ok(());
    }
    link::delete(host, index)
}
