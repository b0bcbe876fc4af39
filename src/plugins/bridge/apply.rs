//! The bridge plugin's hands: everything ADD changes in the kernel, step by step.

use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use nix::errno::Errno;

use super::config::Settings;
use super::host_end::Identity;
use super::plan::{self, Plan};
use super::vlan;
use crate::cni::error::{Code, coded, detailed};
use crate::cni::skel::Call;
use crate::log;
use crate::net::link::{self, End, Link};
use crate::net::mac::Mac;
use crate::net::netlink::{Changes, Netlink, errno, is_unanswered, tolerate};
use crate::net::netns::Netns;
use crate::net::{addr, route, sysctl};
use crate::undo::Undo;

/// The two namespaces of an attachment, each with a socket in it.
#[derive(Debug)]
pub struct Sides {
    pub host: Netlink,
    pub container: Netlink,
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
        let container = host.open_inside(&netns)?;
        Ok(Self {
            host,
            container,
            netns,
        })
    }
}

/// Makes sure that the bridge exists, is up, and ignores router advertisements.
///
/// Somebody else may be doing the same right now: every step is one that can be done
/// twice.
///
/// # Errors
/// Code 7 when the name belongs to something that is no bridge, or to one that cannot be
/// made to filter VLANs.
pub fn ensure_bridge(host: &Netlink, settings: &Settings) -> Result<Link> {
    let name = &settings.bridge;
    let mut bridge = find_bridge(host, name)?;
    if bridge.is_none() {
        let filtering = settings.vlans.is_some();
        let created = link::create_bridge(host, name, Mac::random()?, settings.mtu, filtering);
        tolerate(created, &[Errno::EEXIST])?;
        bridge = find_bridge(host, name)?;
        // A random hardware address needs no asking around; without this the bridge's
        // link-local address cannot be used for a second or two.
        quietly(name, "accept_dad", "0");
    }
    let bridge =
        bridge.with_context(|| format!("bridge {name} was deleted while it was being set up"))?;
    vlan::ensure_filtering(host, settings, &bridge)?;
    quietly(name, "accept_ra", "0");
    let must_be_promiscuous = settings.promiscuous && !bridge.is_promiscuous;
    if !bridge.is_up || must_be_promiscuous {
        let mut change = link::change_of(bridge.index).up();
        if must_be_promiscuous {
            change = change.promiscuous(true);
        }
        link::change(host, change, &format!("set bridge {name} up"))?;
    }
    Ok(bridge)
}

/// The bridge called `name`, if there is one.
///
/// # Errors
/// Code 7 when the name belongs to something else.
pub fn find_bridge(host: &Netlink, name: &str) -> Result<Option<Link>> {
    match link::by_name(host, name)? {
        Some(other) if other.kind != "bridge" => Err(detailed(
            Code::Config,
            format!("\"{name}\" already exists but is not a bridge"),
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

/// Sets an IPv6 sysctl of a link on the host. `accept_ra` must be off before the link is
/// up: a container could change the host's routes (CVE-2020-10749). A kernel without IPv6
/// has nothing to set, and one that refuses is worth a warning.
pub fn quietly(link: &str, key: &str, value: &str) {
    let done = sysctl::set_if_present(&format!("ipv6/conf/{link}/{key}"), value);
    if let Err(error) = done {
        log::warn(&format!("{error:#}"));
    }
}

/// Gives `gateway`, the bridge or the interface of a VLAN, the gateways' addresses, and
/// lets the host forward.
///
/// # Errors
/// Code 7 for an address that is in the way; names the sysctl where IPv6 is off.
pub fn ensure_gateways(
    host: &Netlink,
    settings: &Settings,
    gateway: &Link,
    wanted: &[IpNet],
    undo: &mut Undo<'_>,
) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let existing: Vec<IpNet> = addr::list(host, gateway.index)?
        .into_iter()
        .map(|address| address.net)
        .collect();
    let changes = plan::gateway_addresses(settings, &gateway.name, &existing, wanted)?;
    for address in changes.remove {
        addr::delete(host, gateway.index, address)?;
        let (host, index) = (host.clone(), gateway.index);
        undo.push(
            format!("give {} its address {address} back", gateway.name),
            move || tolerate(addr::add(&host, index, address, false), &[Errno::EEXIST]),
        );
    }
    for address in &changes.add {
        let added = addr::add(host, gateway.index, *address, false);
        tolerate(added, &[Errno::EEXIST])
            .map_err(|error| explain_ipv6(error, &gateway.name, address))
            .with_context(|| format!("give {} its address", gateway.name))?;
    }
    if !changes.add.is_empty() {
        pin_mac(host, gateway)?;
    }
    for (is_ipv4, key) in [
        (true, "ipv4/ip_forward"),
        (false, "ipv6/conf/all/forwarding"),
    ] {
        if wanted.iter().any(|net| net.addr().is_ipv4() == is_ipv4) {
            sysctl::set(key, "1").context("let the host forward packets")?;
        }
    }
    Ok(())
}

/// A bridge whose address was never set takes that of its lowest port, and changes it as
/// ports come and go. Setting the address it has ends that.
fn pin_mac(host: &Netlink, gateway: &Link) -> Result<()> {
    let Some(mac) = Mac::parse(&gateway.mac) else {
        return Ok(());
    };
    let change = link::change_of(gateway.index).address(mac.0.to_vec());
    link::change(
        host,
        change,
        &format!("pin the hardware address of {}", gateway.name),
    )
}

/// "Permission denied" is what the kernel says when IPv6 is switched off.
fn explain_ipv6(error: anyhow::Error, link: &str, address: &IpNet) -> anyhow::Error {
    let off = [
        Some(Errno::EACCES),
        Some(Errno::EAFNOSUPPORT),
        Some(Errno::EOPNOTSUPP),
    ];
    if address.addr().is_ipv6() && off.contains(&errno(&error)) {
        return error.context(format!(
            "IPv6 is off on {link}: set sysctl net.ipv6.conf.{link}.disable_ipv6=0"
        ));
    }
    error
}

/// The veth pair of an attachment.
#[derive(Debug)]
pub struct Pair {
    pub host_end: Link,
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
    settings: &Settings,
    undo: &mut Undo<'_>,
) -> Result<Pair> {
    let ifname = &call.invocation.attachment.ifname;
    let there = End {
        name: ifname,
        mac: match settings.mac {
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
        match link::create_veth(&sides.host, here, there, Some(&sides.netns), settings.mtu) {
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
    if link::by_name(&sides.container, ifname)?.is_some() {
        return Err(detailed(
            Code::Internal,
            format!(
                "container veth name (\"{ifname}\") already exists in {}",
                sides.netns.path()
            ),
            "DEL removes the interface; a second ADD of one container needs another CNI_IFNAME",
        ));
    }
    let identity = Identity::of(call);
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

/// Makes the host's end a port of the bridge and a member of its VLANs. Answers the bridge
/// as it then is.
///
/// # Errors
/// When the kernel refuses.
pub fn attach(
    sides: &Sides,
    call: &Call,
    settings: &Settings,
    bridge: &Link,
    pair: &Pair,
) -> Result<Link> {
    let port = &pair.host_end;
    quietly(&port.name, "accept_ra", "0");
    let change = link::change_of(port.index)
        .alias(Identity::of(call).alias)
        .controller(bridge.index)
        .up();
    let what = format!("make {} a port of bridge {}", port.name, bridge.name);
    link::change(&sides.host, change, &what)?;
    if settings.hairpin || settings.isolated {
        link::set_bridge_port(&sides.host, port, settings.hairpin, settings.isolated)?;
    }
    let vlans = vlan::memberships(settings);
    if !vlans.is_empty() {
        let keeps_default = settings.vlans.as_ref().is_some_and(|v| v.keeps_default);
        vlan::join(&sides.host, bridge, port, &vlans, keeps_default)?;
    }
    let bridge = link::by_index(&sides.host, bridge.index)?
        .with_context(|| format!("bridge {} is gone", bridge.name))?;
    fit_mtu(sides, settings, &bridge, pair)?;
    Ok(bridge)
}

/// A bridge drops what does not fit its own MTU, which is that of its smallest port or
/// what an administrator set: a container must not believe in more.
fn fit_mtu(sides: &Sides, settings: &Settings, bridge: &Link, pair: &Pair) -> Result<()> {
    if bridge.mtu >= pair.container_end.mtu {
        return Ok(());
    }
    if let Some(mtu) = settings.mtu {
        log::warn(&format!(
            "mtu {mtu} does not fit bridge {}, which carries {}: using that",
            bridge.name, bridge.mtu
        ));
    }
    let change = |index| link::change_of(index).mtu(bridge.mtu);
    let what = format!("set the MTU to {}", bridge.mtu);
    link::change(&sides.container, change(pair.container_end.index), &what)?;
    link::change(&sides.host, change(pair.host_end.index), &what)
}

/// Gives the container's end its addresses and routes and sets it up.
///
/// # Errors
/// Names the address, route or sysctl.
pub fn configure_container(
    sides: &Sides,
    settings: &Settings,
    end: &Link,
    plan: &Plan,
) -> Result<()> {
    let ipv6 = plan.has_ipv6();
    sides
        .netns
        .inside(|| prepare_sysctls(&end.name, settings, ipv6))?;
    for ip in &plan.ips {
        addr::add(
            &sides.container,
            end.index,
            ip.address,
            settings.detect_duplicates,
        )
        .map_err(|error| explain_ipv6(error, &end.name, &ip.address))
        .with_context(|| format!("configure {} in the container", end.name))?;
    }
    set_up(&sides.container, end)?;
    if ipv6 && settings.detect_duplicates {
        wait_for_addresses(sides, end)?;
    }
    for route in &plan.container_routes {
        route::add(&sides.container, end.index, &end.name, route)?;
    }
    Ok(())
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
fn prepare_sysctls(ifname: &str, settings: &Settings, ipv6: bool) -> Result<()> {
    let wanted: &[(&str, &str, &str)] = if settings.detect_duplicates {
        &[("ipv6", "enhanced_dad", "1"), ("ipv6", "accept_dad", "1")]
    } else {
        &[("ipv6", "accept_dad", "0")]
    };
    let always = [
        // These make the kernel announce the addresses, see `announce`.
        ("ipv4", "arp_notify", "1"),
        ("ipv6", "ndisc_notify", "1"),
        // Without it a link that goes down for a moment loses its addresses.
        ("ipv6", "keep_addr_on_down", "1"),
    ];
    // Where the host is the router or IPAM has said it all, a router advertisement can only
    // be another container's (CVE-2020-10749).
    let accept_ra = (settings.is_gateway || ipv6).then_some(("ipv6", "accept_ra", "0"));
    for (family, key, value) in wanted.iter().chain(&always).chain(&accept_ra) {
        let done = sysctl::set_if_present(&format!("{family}/conf/{ifname}/{key}"), value);
        if let Err(error) = done {
            log::warn(&format!("{error:#}"));
        }
    }
    if !ipv6 {
        return Ok(());
    }
    if !sysctl::has_ipv6() {
        return Err(detailed(
            Code::Internal,
            "IPAM returned an IPv6 address, but this kernel has no IPv6",
            "remove the IPv6 ranges from the network, or boot without ipv6.disable=1",
        ));
    }
    for link in ["lo", ifname] {
        sysctl::set_if_present(&format!("ipv6/conf/{link}/disable_ipv6"), "0")?;
    }
    Ok(())
}

/// How long duplicate address detection may take.
const DAD_LIMIT: Duration = Duration::from_secs(5);

/// Waits until no IPv6 address of `end` is tentative any more (RFC 4862, section 5.4).
fn wait_for_addresses(sides: &Sides, end: &Link) -> Result<()> {
    let settled = sides.container.wait_until(
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

/// How long the port may take until it forwards. It normally does before we look.
const PORT_LIMIT: Duration = Duration::from_millis(2550);

/// Waits until frames pass through `port`, the host's end or the bridge's own.
///
/// # Errors
/// When the kernel cannot be asked; a port that is late is only worth a warning.
pub fn wait_for_port(host: &Netlink, port: &Link) -> Result<()> {
    let running = host.wait_until(Changes::Links, None, PORT_LIMIT, || {
        let link = link::by_index(host, port.index)?;
        Ok(link.filter(|link| link.is_running).map(drop))
    })?;
    if running.is_none() {
        log::warn(&format!("{} is not up yet", port.name));
    }
    Ok(())
}

/// Tells everybody that the addresses live here now: an address that was another
/// container's a moment ago is otherwise unreachable until caches expire.
///
/// The host's own entries are deleted. For all others, setting the hardware address that
/// the link already has makes the kernel send gratuitous ARP and unsolicited neighbour
/// advertisements (sysctls `arp_notify` and `ndisc_notify`).
pub fn announce(sides: &Sides, gateway: &Link, end: &Link, plan: &Plan) {
    let mut done: Vec<Result<()>> = plan
        .ips
        .iter()
        .map(|ip| addr::forget_neighbour(&sides.host, gateway.index, ip.address.addr()))
        .collect();
    if let Some(mac) = Mac::parse(&end.mac) {
        let change = link::change_of(end.index).address(mac.0.to_vec());
        let what = format!("announce the addresses of {}", end.name);
        done.push(link::change(&sides.container, change, &what));
    }
    for error in done.into_iter().filter_map(Result::err) {
        log::warn(&format!("{error:#}"));
    }
}
