//! `loopback`: sets up `lo` in the container (docs/compatibility.md#9.1).
//!
//! There is nothing to configure, and `CNI_IFNAME` does not matter: it is always `lo`.
//! Runtimes run it for every container, so it does no more than it must.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::cni::collector::Collector;
use crate::cni::error::{Code, detailed};
use crate::cni::json::{self, Problem};
use crate::cni::preview::{Preview, Subject};
use crate::cni::result::{CniResult, Interface, Ip};
use crate::cni::skel::{Call, Plugin};
use crate::journal::step;
use crate::net::addr::{self, Address};
use crate::net::link::{self, Link};
use crate::net::netlink::Netlink;
use crate::net::netns::Netns;
use crate::undo::Undo;

/// The applet.
#[derive(Debug)]
pub struct Loopback;

/// The plugin has no keys of its own.
#[derive(Deserialize)]
struct Wire {}

impl Plugin for Loopback {
    fn add<'a>(&self, call: &'a Call, undo: &mut Undo<'a>) -> Result<CniResult> {
        let path = call.invocation.netns.as_deref().unwrap_or_default();
        let (container, lo) = find(&Netns::open(path)?)?;
        if !lo.is_up {
            // First: whether it was done is not known where the answer is lost.
            undo.push("set lo down", {
                let (container, lo) = (container.clone(), lo.clone());
                move || set_down(&container, &lo)
            });
            step("set lo up", || set_up(&container, &lo))?;
        }
        // Only a `lo` that is up has addresses: the kernel gives it its own.
        let addresses = addr::list(&container, lo.index)?;
        refuse_others(&addresses)?;
        // Chained, it has nothing to add to what was said before it.
        match call.config.prev_result()? {
            Some(previous) => Ok(previous),
            None => Ok(result(lo, path, &addresses)),
        }
    }

    fn del(&self, call: &Call) -> Result<()> {
        let Some(netns) = Netns::open_if_any(call.invocation.netns.as_deref())? else {
            return Ok(());
        };
        let (container, lo) = find(&netns)?;
        step("set lo down", || set_down(&container, &lo))
    }

    fn check(&self, call: &Call) -> Result<()> {
        let path = call.invocation.netns.as_deref().unwrap_or_default();
        let (_, lo) = find(&Netns::open(path)?)?;
        if lo.is_up {
            return Ok(());
        }
        let details = "interface lo: expected up, found down";
        Err(detailed(
            Code::Internal,
            "loopback interface is down",
            details,
        ))
    }

    fn status(&self, _call: &Call) -> Result<()> {
        Ok(())
    }

    fn gc(&self, call: &Call, _collector: &mut Collector) -> Result<()> {
        // A `lo` goes with its namespace: nothing is ever left.
        call.config.valid_attachments().map(drop)
    }

    fn preview(&self, call: &Call, preview: &mut Preview) -> Result<Option<CniResult>> {
        let path = call.invocation.netns.as_deref().unwrap_or_default();
        let (container, lo) = find(&Netns::open(path)?)?;
        let addresses = addr::list(&container, lo.index)?;
        refuse_others(&addresses)?;
        if !lo.is_up {
            preview.tell(Subject::Link, format!("lo in {path}: set up"));
        }
        let previous = call.config.prev_result()?;
        Ok(Some(
            previous.unwrap_or_else(|| result(lo, path, &addresses)),
        ))
    }

    fn validate(&self, root: &str, document: &Value) -> Vec<Problem> {
        json::problems::<Wire>(root, document)
    }
}

/// `lo` in `netns`, and a socket there.
fn find(netns: &Netns) -> Result<(Netlink, Link)> {
    let container = Netlink::open_in(netns)?;
    let lo = link::by_name(&container, "lo")?
        .with_context(|| format!("there is no link lo in {}", netns.path()))?;
    Ok((container, lo))
}

fn set_up(container: &Netlink, lo: &Link) -> Result<()> {
    let change = link::change_of(lo.index).up();
    link::change(container, change, "set lo up in the container")
}

fn set_down(container: &Netlink, lo: &Link) -> Result<()> {
    let change = link::change_of(lo.index).down();
    link::change(container, change, "set lo down in the container")
}

/// What others can reach has no place on `lo`, as the reference has it.
fn refuse_others(addresses: &[Address]) -> Result<()> {
    match addresses.iter().find(|a| !a.net.addr().is_loopback()) {
        None => Ok(()),
        Some(other) => Err(detailed(
            Code::Internal,
            format!(
                "loopback interface found with non-loopback address \"{}\"",
                other.net.addr()
            ),
            "lo in the container may have 127.0.0.1/8 and ::1/128 only: remove the address",
        )),
    }
}

/// `lo` and its first address of each family.
fn result(lo: Link, sandbox: &str, addresses: &[Address]) -> CniResult {
    let first = |is_ipv4: bool| {
        let mut all = addresses.iter().map(|address| address.net);
        let net = all.find(|net| net.addr().is_ipv4() == is_ipv4)?;
        let mut ip = Ip::new(net, None);
        ip.interface = Some(0);
        Some(ip)
    };
    CniResult {
        ips: [first(true), first(false)].into_iter().flatten().collect(),
        interfaces: vec![Interface {
            name: lo.name,
            mac: lo.mac,
            sandbox: sandbox.to_owned(),
            ..Interface::default()
        }],
        ..CniResult::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::documented::assert_documented;

    fn addresses(nets: &[&str]) -> Vec<Address> {
        let address = |net: &&str| Address {
            net: net.parse().unwrap(),
            is_global: false,
            is_of_host: true,
            is_permanent: true,
            is_tentative: false,
            is_duplicate: false,
        };
        nets.iter().map(address).collect()
    }

    #[test]
    fn the_first_address_of_each_family_is_reported() {
        let all = addresses(&["127.0.0.1/8", "127.0.0.2/8", "::1/128"]);
        refuse_others(&all).unwrap();
        let reported = result(Link::default(), "/run/netns/c1", &all);
        let nets: Vec<String> = reported.ips.iter().map(|i| i.address.to_string()).collect();
        assert_eq!(nets, ["127.0.0.1/8", "::1/128"]);
        assert!(reported.ips.iter().all(|ip| ip.interface == Some(0)));
    }

    #[test]
    fn other_addresses_are_named() {
        let error = refuse_others(&addresses(&["127.0.0.1/8", "10.0.0.1/32"])).unwrap_err();
        assert!(
            error.to_string().ends_with("address \"10.0.0.1\""),
            "{error}"
        );
    }

    #[test]
    fn it_has_no_keys() {
        let found = Loopback.validate("plugins[0]", &serde_json::json!({"mtu": 1500}));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, "plugins[0].mtu");
    }

    #[test]
    fn the_manual_lists_no_keys() {
        assert_documented::<Wire>("loopback");
    }
}
