//! The veth pair between the host and a container: made, configured and deleted.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use nix::errno::Errno;

use super::host_end::Identity;
use super::ipam::Ipam;
use crate::cni::delegate;
use crate::cni::error::{Code, coded, detailed};
use crate::cni::invocation::Command;
use crate::cni::result::Ip;
use crate::cni::skel::{Call, Plugin};
use crate::failure::all;
use crate::journal::step;
use crate::log;
use crate::net::link::{self, End, Link};
use crate::net::link_sysctl::LinkSysctl;
use crate::net::mac::Mac;
use crate::net::netlink::{Changes, Netlink, errno, is_unanswered};
use crate::net::netns::Netns;
use crate::net::route::Route;
use crate::net::sysctl::{self, Sysctls};
use crate::net::{addr, route};
use crate::netfilter::{Known, Others};
use crate::shell::shell;
use crate::undo::Undo;

/// The two namespaces of an attachment, each with a socket in it.
#[derive(Debug)]
pub struct Sides {
    /// A socket in the host's.
    pub host: Netlink,
    /// A socket in the container's.
    pub container: Netlink,
    /// The container's.
    pub netns: Netns,
}

impl Sides {
    /// Opens the container's namespace and both sockets.
    ///
    /// # Errors
    /// Code 4 when `CNI_NETNS` is no namespace.
    pub fn open(call: &Call) -> Result<Self> {
        let netns = Netns::open(call.invocation.netns.as_deref().unwrap_or_default())?;
        let host = Netlink::open()?;
        let container = Netlink::open_in(&netns)?;
        Ok(Self {
            host,
            container,
            netns,
        })
    }
}

/// Switches an IPv6 sysctl of a link on the host off. `accept_ra` must be off before the link
/// is up: a container could change the host's routes (CVE-2020-10749). A kernel without IPv6
/// has nothing to set, and one that refuses is worth a warning.
pub fn switch_off_quietly(link: &str, name: &'static str) {
    let done = sysctl::ensure(LinkSysctl::v6(link, name), 0);
    if let Err(error) = done {
        log::warn(&format!("{error:#}"));
    }
}

/// "Permission denied" is what the kernel says when IPv6 is switched off.
pub fn explain_ipv6(error: anyhow::Error, link: &str, address: &IpNet) -> anyhow::Error {
    let off = [
        Some(Errno::EACCES),
        Some(Errno::EAFNOSUPPORT),
        Some(Errno::EOPNOTSUPP),
    ];
    if address.addr().is_ipv6() && off.contains(&errno(&error)) {
        let setting =
            |of: &str| shell!["sysctl", "-w", format!("net/ipv6/conf/{of}/disable_ipv6=0")];
        let mut advice = setting("default").to_string();
        // The host's end of a container's pair goes with the failed ADD.
        if !Identity::is_name(link) {
            advice = format!("{advice}, and {} if {link} stays", setting(link));
        }
        return error.context(format!("IPv6 is off on {link}: {advice}"));
    }
    error
}

/// The veth pair of an attachment.
#[derive(Debug)]
pub struct Pair {
    /// The end on the host, named after the attachment.
    pub host_end: Link,
    /// `CNI_IFNAME`.
    pub container_end: Link,
}

/// How many names are tried for the host's end.
const NAME_TRIES: u32 = 10;

/// Creates the veth pair, the container's end directly in its namespace.
///
/// # Errors
/// When the container has an interface of that name.
pub fn create_pair(
    sides: &Sides,
    call: &Call,
    mac: Option<Mac>,
    mtu: Option<u32>,
    undo: &mut Undo<'_>,
) -> Result<Pair> {
    let ifname = &call.invocation.attachment.ifname;
    let there = End {
        name: ifname,
        mac: match mac {
            Some(mac) => mac,
            None => Mac::random()?,
        },
    };
    let identity = Identity::of(call);
    let mut name = identity.name.clone();
    for _ in 0..NAME_TRIES {
        let here = End {
            name: &name,
            mac: Mac::random()?,
        };
        let created = step("create the veth pair", || {
            link::create_veth(&sides.host, here, there, Some(&sides.netns), mtu)
        });
        match created {
            Ok(()) => {
                let host = sides.host.clone();
                let created = name.clone();
                undo.push(format!("delete link {name}"), move || match link::by_name(
                    &host, &created,
                )? {
                    Some(link) => link::delete(&host, link.index),
                    None => Ok(()),
                });
                let gone = || format!("link {name} was deleted while it was being set up");
                return Ok(Pair {
                    host_end: link::by_name(&sides.host, &name)?.with_context(gone)?,
                    container_end: link::by_name(&sides.container, ifname)?.with_context(gone)?,
                });
            }
            Err(error) if errno(&error) == Some(Errno::EEXIST) => {
                refuse_existing(sides, call)?;
                // A stranger has our name.
                name = Identity::other_name()?;
            }
            Err(error) => {
                // Without an answer nobody knows whether it was made.
                if is_unanswered(&error) {
                    let host = sides.host.clone();
                    undo.push(format!("delete link {name}"), move || {
                        identity.delete(&host)
                    });
                }
                return Err(error);
            }
        }
    }
    anyhow::bail!("find a free name for the host's end of the veth pair, {NAME_TRIES} times")
}

/// ADD must fail when the container has the interface (specification section 2, "ADD"),
/// here or, for the same container id, in another namespace.
///
/// # Errors
/// When it has.
pub fn refuse_existing(sides: &Sides, call: &Call) -> Result<()> {
    let ifname = &call.invocation.attachment.ifname;
    let identity = Identity::of(call);
    if link::by_name(&sides.container, ifname)?.is_some() {
        return Err(detailed(
            Code::Internal,
            format!(
                "container veth name (\"{ifname}\") peer provided (\"{}\") already exists",
                identity.name
            ),
            format!(
                "{ifname} is in {}: DEL removes it; a second ADD of one container needs another CNI_IFNAME",
                sides.netns.path()
            ),
        ));
    }
    match link::by_name(&sides.host, &identity.name)? {
        Some(link) if identity.is(&link) => Err(detailed(
            Code::Internal,
            format!(
                "interface {ifname} of container {} is already attached to network {}",
                call.invocation.attachment.container_id, call.config.network
            ),
            format!(
                "{} on the host belongs to it, with its other end in another namespace; DEL removes it",
                link.name
            ),
        )),
        _ => Ok(()),
    }
}

/// The addresses of the container's end, and what they ask of it.
#[derive(Debug, Clone, Copy)]
pub struct Addressing<'a> {
    /// Those that IPAM returned.
    pub ips: &'a [Ip],
    /// Whether to wait until it is certain that nobody else has the IPv6 addresses.
    pub detect_duplicates: bool,
    /// Whether the host is the container's router.
    pub host_is_router: bool,
}

impl Addressing<'_> {
    fn has_ipv6(self) -> bool {
        self.ips.iter().any(|ip| ip.address.addr().is_ipv6())
    }
}

/// Gives the container's end its addresses and sets it up.
///
/// # Errors
/// Names the address or sysctl.
pub fn give_addresses(sides: &Sides, end: &Link, wanted: Addressing<'_>) -> Result<()> {
    let dad = wanted.detect_duplicates;
    step("set the container's sysctls", || {
        sides.netns.inside(|| prepare_sysctls(&end.name, wanted))
    })?;
    step("give the container its addresses", || {
        for ip in wanted.ips {
            addr::add(&sides.container, end.index, ip.address, dad)
                .map_err(|error| explain_ipv6(error, &end.name, &ip.address))
                .with_context(|| format!("configure {} in the container", end.name))?;
        }
        link::set_up_with_arp_notify(&sides.container, end)
    })?;
    if wanted.has_ipv6() && dad {
        step("wait for duplicate address detection", || {
            wait_for_addresses(sides, end)
        })?;
    }
    Ok(())
}

/// Gives the container its routes, in their order.
///
/// # Errors
/// Names the route.
pub fn give_routes(sides: &Sides, end: &Link, routes: &[Route]) -> Result<()> {
    let add = |route| route::add(&sides.container, end.index, &end.name, route);
    step("give the container its routes", || {
        routes.iter().try_for_each(add)
    })
}

/// Sets the container's end up.
///
/// # Errors
/// When the kernel refuses.
pub fn set_up(container: &Netlink, end: &Link) -> Result<()> {
    link::change(
        container,
        link::change_of(end.index).up(),
        &format!("set {} up in the container", end.name),
    )
}

/// Runs inside the container's namespace.
fn prepare_sysctls(ifname: &str, addressing: Addressing<'_>) -> Result<()> {
    let ipv6 = addressing.has_ipv6();
    let wanted: &[(&'static str, i64)] = if addressing.detect_duplicates {
        &[("enhanced_dad", 1), ("accept_dad", 1)]
    } else {
        &[("accept_dad", 0)]
    };
    let with_addresses: &[_] = if ipv6 {
        &[
            // The kernel announces the addresses, too, whenever the link is given another
            // hardware address.
            ("ndisc_notify", 1),
            // Without it a link that goes down for a moment loses its addresses.
            ("keep_addr_on_down", 1),
        ]
    } else {
        // A link-local address is usually made of the hardware address: nobody else's entry of it
        // can be out of date.
        &[]
    };
    // Where the host is the router or IPAM has said it all, a router advertisement can only
    // be another container's (CVE-2020-10749).
    let accept_ra = (addressing.host_is_router || ipv6).then_some(("accept_ra", 0));
    let sysctls = Sysctls::default();
    for (name, value) in wanted.iter().chain(with_addresses).chain(&accept_ra) {
        let done = sysctls.ensure(LinkSysctl::v6(ifname, name), *value);
        if let Err(error) = done {
            log::warn(&format!("{error:#}"));
        }
    }
    if !ipv6 {
        return Ok(());
    }
    if !sysctls.has("ipv6") {
        return Err(detailed(
            Code::Internal,
            "IPAM returned an IPv6 address, but this kernel has no IPv6",
            "remove the IPv6 ranges from the network, or boot without ipv6.disable=1",
        ));
    }
    for link in ["lo", ifname] {
        sysctls.ensure(LinkSysctl::v6(link, "disable_ipv6"), 0)?;
    }
    Ok(())
}

/// How long duplicate address detection may take.
const DAD_LIMIT: Duration = Duration::from_secs(5);

/// Waits until no IPv6 address of `end` is tentative any more (RFC 4862, section 5.4).
fn wait_for_addresses(sides: &Sides, end: &Link) -> Result<()> {
    let settled = Netlink::wait_until(
        Changes::Ipv6Addresses,
        Some(&sides.netns),
        DAD_LIMIT,
        || {
            let addresses = addr::list(&sides.container, end.index)?;
            if let Some(duplicate) = addresses.iter().find(|a| a.is_duplicate) {
                anyhow::bail!(
                    "address {} of {} is in use by somebody else on the network",
                    duplicate.net,
                    end.name
                );
            }
            Ok(addresses.iter().all(|a| !a.is_tentative).then_some(()))
        },
    )?;
    match settled {
        Some(()) => Ok(()),
        // Without a carrier the kernel cannot ask anybody, and nobody can answer.
        None if !link::by_index(&sides.container, end.index)?.is_some_and(|l| l.is_running) => {
            Ok(())
        }
        None => Err(coded(
            Code::Internal,
            format!(
                "IPv6 addresses of {} are still tentative after {} s",
                end.name,
                DAD_LIMIT.as_secs()
            ),
        )
        .into()),
    }
}

/// Waits until `port`, the host's end, has its carrier, and the kernel has noticed: until then
/// it drops what the host sends through it. It normally has noticed before we look.
///
/// # Errors
/// When the kernel cannot be asked; a port that is late is only worth a warning.
pub fn wait_for_port(host: &Netlink, port: &Link, limit: Duration) -> Result<()> {
    let running = step("wait until the port is up", || {
        Netlink::wait_until(Changes::Links, None, limit, || {
            let link = link::by_index(host, port.index)?;
            Ok(link.filter(|link| link.is_running).map(drop))
        })
    })?;
    if running.is_none() {
        log::warn(&format!("{} is not up yet", port.name));
    }
    Ok(())
}

/// DEL of a veth pair: its addresses, those that IPAM has given, the pair. `clean` removes
/// the packet filter's rules of the attachment meanwhile, and is told what is known of it.
/// All are found by their owner: a runtime may not remember the configuration of ADD, and
/// send little more than the network's name.
///
/// # Errors
/// All that could not be removed, after trying everything.
pub fn detach(call: &Call, clean: impl FnOnce(&Known) -> Result<()> + Send) -> Result<()> {
    let host = Netlink::open()?;
    let mut done: Vec<Result<()>> = Vec::new();
    // The link and its namespace may be gone, half gone, or somebody else's by now.
    let found = step("find the container's end", || find_container_end(call));
    let link = found.unwrap_or_else(|error| {
        done.push(Err(error));
        None
    });
    let traces = Traces::of(call, &host, link.as_ref());
    let known = Known {
        own: known_addresses(call, link.as_ref()),
        others: other_addresses(call),
    };
    std::thread::scope(|scope| {
        // Deleting a link and deleting rules each wait for the kernel: let them wait at
        // the same time.
        let cleaner = scope.spawn(|| clean(&known));
        // No address is free while an interface still has it; but the link stays until
        // IPAM is done, which may want to talk over it.
        if let Some((container, end)) = &link {
            done.push(step("remove the container's addresses", || {
                remove_addresses(container, end)
            }));
        }
        done.push(call.config.ipam_type().and_then(|ipam| match ipam {
            Some(plugin) => delegate::run(call, &plugin, Command::Del),
            // host-local's, unless they are in a directory that only the configuration knew.
            None => Ipam.del(call),
        }));
        done.push(step("delete the veth pair", || {
            let deleted = match &link {
                Some((container, end)) => link::delete(container, end.index),
                None => Ok(()),
            };
            all([deleted, Identity::of(call).delete(&host)])
        }));
        step("forget the hardware address", || traces.remove(&host));
        // A panic ends the process in its hook: there is none to join.
        done.extend(cleaner.join().ok());
    });
    all(done)
}

/// What others remember of a container's interface that goes, for seconds after it has gone.
///
/// That is not only about its own addresses: a container with two interfaces on one bridge
/// answers for the addresses of either by both, and who heard the one that goes has its
/// hardware address for an address that stays.
struct Traces<'a> {
    /// The hardware address, as text; empty where nothing tells it.
    mac: String,
    /// The attachment's addresses.
    ips: Vec<IpAddr>,
    /// The index of the bridge that the host's end is a port of.
    bridge: Option<u32>,
    /// The container's end and a socket in its namespace.
    link: Option<&'a (Netlink, Link)>,
}

impl<'a> Traces<'a> {
    fn of(call: &Call, host: &Netlink, link: Option<&'a (Netlink, Link)>) -> Self {
        let ifname = &call.invocation.attachment.ifname;
        let told = call.config.prev_result().ok().flatten().unwrap_or_default();
        let mut told = told.interfaces.into_iter();
        let told = told.find(|i| i.name == *ifname && !i.sandbox.is_empty());
        let mac = link.map(|(_, end)| end.mac.clone());
        Self {
            mac: mac
                .or_else(|| told.map(|interface| interface.mac))
                .unwrap_or_default(),
            ips: known_addresses(call, link)
                .iter()
                .map(IpNet::addr)
                .collect(),
            bridge: link.and_then(|(_, end)| bridge_of(host, end)),
            link,
        }
    }

    /// Has the host forget it, and the container's other interfaces on the bridge tell their
    /// neighbours what is right. What fails is told: it passes by itself.
    fn remove(&self, host: &Netlink) {
        // The host's entries of a pair that leads to no bridge go with it.
        if self.mac.is_empty() || (self.link.is_some() && self.bridge.is_none()) {
            return;
        }
        if let Err(error) = all([self.forget(host), self.announce_others(host)]) {
            log::warn(&format!("{error:#}"));
        }
    }

    fn forget(&self, host: &Netlink) -> Result<()> {
        let mut known = addr::neighbours(host)?;
        // What somebody has entered is his.
        known.retain(|known| {
            let is_unanswered = known.mac.is_empty()
                && self.bridge == Some(known.index)
                && self.ips.contains(&known.ip);
            known.is_found_out && (known.mac == self.mac || is_unanswered)
        });
        all(known
            .iter()
            .map(|known| addr::forget_neighbour(host, known.index, known.ip)))
    }

    fn announce_others(&self, host: &Netlink) -> Result<()> {
        let Some((container, end)) = self.link else {
            return Ok(());
        };
        let mut others = link::all(container, "veth")?;
        others.retain(|other| {
            other.is_up && other.index != end.index && bridge_of(host, other) == self.bridge
        });
        all(others.iter().map(|other| announce(container, other)))
    }
}

/// The index of the bridge that the other end of `end`, on the host, is a port of.
fn bridge_of(host: &Netlink, end: &Link) -> Option<u32> {
    let peer = link::by_index(host, end.peer?).ok()??;
    // An index means something in its own namespace only: it is the pair if it points back.
    let is_pair = peer.kind == "veth" && peer.peer == Some(end.index);
    peer.controller.filter(|_| is_pair)
}

/// Has the kernel tell all neighbours of `end` which addresses live there, with gratuitous ARP
/// and unsolicited neighbour advertisements: setting the hardware address that the link already
/// has makes it do that (sysctls `arp_notify` and `ndisc_notify`, which [`give_addresses`] sets).
///
/// # Errors
/// When the kernel refuses.
pub fn announce(container: &Netlink, end: &Link) -> Result<()> {
    let Some(mac) = Mac::parse(&end.mac) else {
        return Ok(());
    };
    let change = link::change_of(end.index).address(mac.0.to_vec());
    let what = format!("announce the addresses of {}", end.name);
    link::change(container, change, &what)
}

/// The container's end and a socket in its namespace; `None` when either is gone.
fn find_container_end(call: &Call) -> Result<Option<(Netlink, Link)>> {
    let Some(netns) = Netns::open_if_any(call.invocation.netns.as_deref())? else {
        return Ok(None);
    };
    let container = Netlink::open_in(&netns)?;
    let ifname = &call.invocation.attachment.ifname;
    match link::by_name(&container, ifname)? {
        Some(end) if end.kind != "veth" => {
            log::warn(&format!(
                "{ifname} in {} is not a veth and not ours: it stays",
                netns.path()
            ));
            Ok(None)
        }
        found => Ok(found.map(|end| (container, end))),
    }
}

/// The attachment's addresses: as ADD reported them, else as the link has them.
fn known_addresses(call: &Call, link: Option<&(Netlink, Link)>) -> Vec<IpNet> {
    if let Ok(Some(result)) = call.config.prev_result() {
        return result.ips.iter().map(|ip| ip.address).collect();
    }
    let listed = link.map(|(container, end)| addr::list(container, end.index));
    let listed = listed.and_then(Result::ok).unwrap_or_default();
    let mine = listed.into_iter().filter(|address| address.is_global);
    mine.map(|address| address.net).collect()
}

/// The addresses of the container's other attachments, for its rules to be told apart.
pub fn other_addresses(call: &Call) -> Others {
    let look = |netns: &Netns| {
        netns.inside(|| {
            let container = Netlink::open()?;
            let own = link::by_name(&container, &call.invocation.attachment.ifname)?;
            let others = addr::list_others(&container, own.map(|own| own.index))?;
            Ok(others.iter().map(|other| other.net.addr()).collect())
        })
    };
    let netns = Netns::open_if_any(call.invocation.netns.as_deref());
    match netns.and_then(|netns| netns.as_ref().map(look).transpose()) {
        Ok(Some(others)) => Others::These(others),
        Ok(None) => Others::Unknown,
        Err(error) => {
            log::warn(&format!("look for other attachments: {error:#}"));
            Others::Unknown
        }
    }
}

fn remove_addresses(container: &Netlink, end: &Link) -> Result<()> {
    for address in addr::list(container, end.index)? {
        if address.is_global {
            addr::delete(container, end.index, address.net)?;
        }
    }
    Ok(())
}
