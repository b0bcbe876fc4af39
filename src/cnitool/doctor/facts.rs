//! What the checks go by: gathered once, before the first of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::Result;
use serde_json::Value;

use crate::net::addr::{self, Neighbour};
use crate::net::link::Link;
use crate::net::netlink::Netlink;
use crate::net::netns::Netns;
use crate::net::route::{self, Forwarded, Route};
use crate::net::sysctl;
use crate::netfilter::Protocol;
use crate::netfilter::nftables::forwarded::Firewall;
use crate::runtime::network::plugin_member;
use crate::survey::Survey;
use crate::survey::attachment::View;

/// Addresses that nobody has (RFC 5737, RFC 3849): they stand for the world outside.
const OUTSIDE: (IpAddr, IpAddr) = (
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1)),
);

/// The world outside, for the family of `ip`.
pub fn outside(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { OUTSIDE.0 } else { OUTSIDE.1 }
}

/// Sysctls of the host that are always read.
const KEYS: [&str; 9] = [
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
    "netfilter/nf_conntrack_count",
    "netfilter/nf_conntrack_max",
    "ipv4/neigh/default/gc_thresh3",
    "ipv6/neigh/default/gc_thresh3",
    "ipv4/conf/all/rp_filter",
];

/// All of it.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The look that the views are from.
    pub survey: &'a Survey,
    /// All attachments.
    pub views: Vec<View<'a>>,
    /// The host's namespace.
    pub host: Inside,
    /// Those of the containers, by path.
    pub inside: BTreeMap<&'a str, Inside>,
    /// What becomes of packets on the host, by the container's address.
    pub ways: BTreeMap<IpAddr, Way>,
    /// Sockets on the host that take what comes from other hosts.
    pub listeners: BTreeSet<Listener>,
    /// The rules of everybody, where they could be read.
    pub firewall: Option<Firewall>,
    /// The directories of plugins.
    pub plugins: Vec<PathBuf>,
    /// What could not be looked at, and why.
    pub doubts: Vec<String>,
}

/// What of a namespace the survey leaves out.
#[derive(Debug, Default)]
pub struct Inside {
    /// What the links remember of others.
    pub neighbours: Vec<Neighbour>,
    /// Routes that forbid, each with its kind.
    pub forbidding: Vec<(&'static str, Route)>,
    /// Sysctls that exist, by key.
    pub sysctls: BTreeMap<String, String>,
    /// What a packet to the outside leaves through, of each family that is asked for;
    /// `None` is nowhere.
    pub ways_out: BTreeMap<IpAddr, Option<String>>,
}

impl Inside {
    /// A sysctl, where this kernel has it.
    pub fn sysctl(&self, key: &str) -> Option<&str> {
        self.sysctls.get(key).map(String::as_str)
    }

    /// A sysctl that is a number.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.sysctl(key)?.parse().ok()
    }
}

/// What becomes of the packets of an address on the host.
#[derive(Debug)]
pub struct Way {
    /// The link that packets to it leave through; `None` is nowhere.
    pub to: Option<String>,
    /// What becomes of a packet from it to the outside; `None` where the host itself has no
    /// way there.
    pub from: Option<Forwarded>,
}

/// A socket that waits for packets from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The address it is bound to.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// The socket's number.
    inode: u64,
}

/// Programs that listen on the ports that they publish for a container, to keep others
/// from taking them: that is as it should be.
const KEEPERS: [&str; 4] = ["conmon", "docker-proxy", "rootlessport", "podman"];

impl<'a> Facts<'a> {
    /// Gathers it. `path` are the directories of plugins, separated by colons.
    pub fn gather(survey: &'a Survey, views: Vec<View<'a>>, path: &str) -> Self {
        let mut facts = Self {
            survey,
            views,
            host: Inside::default(),
            inside: BTreeMap::new(),
            ways: BTreeMap::new(),
            listeners: BTreeSet::new(),
            firewall: None,
            plugins: std::env::split_paths(path).collect(),
            doubts: Vec::new(),
        };
        if let Err(error) = facts.look() {
            facts.doubts.push(format!("{error:#}"));
        }
        facts
    }

    fn look(&mut self) -> Result<()> {
        let netlink = Netlink::open()?;
        self.host = look_inside(&netlink, &self.host_keys(), &[])?;
        let mut ports = self.views.iter().flat_map(|view| &view.ports);
        let published: BTreeSet<u16> = ports.by_ref().map(|p| p.mapping.host_port).collect();
        self.firewall = Some(Firewall::read()?);
        self.listeners = listeners();
        self.listeners
            .retain(|listener| published.contains(&listener.port));
        forget_keepers(&mut self.listeners);
        for view in &self.views {
            let addresses: Vec<IpAddr> = view.addresses.iter().map(ipnet::IpNet::addr).collect();
            for ip in &addresses {
                let way = self.way(&netlink, view, *ip)?;
                self.ways.insert(*ip, way);
            }
            let (Some(path), Some(_)) = (view.netns, view.inside) else {
                continue;
            };
            let key = format!("ipv6/conf/{}/disable_ipv6", view.attachment.ifname);
            let look = || {
                let netns = Netns::open(path)?;
                let mut found = look_inside(&Netlink::open_in(&netns)?, &[], &addresses)?;
                let value = netns.inside(|| Ok(sysctl::read(&key).ok().flatten()))?;
                found
                    .sysctls
                    .extend(value.map(|value| (key.clone(), value)));
                Ok(found)
            };
            match look() {
                Ok(found) => drop(self.inside.insert(path, found)),
                // Gone since the survey.
                Err(_) if !crate::runtime::gc::is_live(path) => {}
                Err(error) => {
                    let error: anyhow::Error = error;
                    self.doubts.push(format!("{error:#}"));
                }
            }
        }
        Ok(())
    }

    /// The sysctls of the host that matter.
    fn host_keys(&self) -> Vec<String> {
        let mut keys: BTreeSet<String> = KEYS.iter().map(|key| (*key).to_owned()).collect();
        let links = self
            .views
            .iter()
            .flat_map(|view| [view.host_end, view.bridge]);
        let uplinks = OUTSIDE_FAMILIES.map(|ip| self.uplink(ip));
        for link in links.chain(uplinks).flatten() {
            let name = &link.name;
            for key in [
                "ipv4/conf/{}/forwarding",
                "ipv4/conf/{}/rp_filter",
                "ipv6/conf/{}/disable_ipv6",
            ] {
                keys.insert(key.replace("{}", name));
            }
        }
        keys.into_iter().collect()
    }

    fn way(&self, netlink: &Netlink, view: &View<'_>, ip: IpAddr) -> Result<Way> {
        let from = match (input(view), self.uplink(ip)) {
            (Some(link), Some(_)) if link.is_up => {
                Some(route::forwarded(netlink, ip, outside(ip), link.index)?)
            }
            _ => None,
        };
        Ok(Way {
            to: route::link_to(netlink, ip)?,
            from,
        })
    }

    /// The host's link to the outside: that of the default route for the family of `ip`.
    pub fn uplink(&self, ip: IpAddr) -> Option<&'a Link> {
        self.default_route(ip).map(|(link, _)| link)
    }

    /// The host's default route for the family of `ip`, and the link it leads through.
    pub fn default_route(&self, ip: IpAddr) -> Option<(&'a Link, &'a Route)> {
        let all = self.survey.host.default_routes();
        let alike = all.filter(|(_, route)| route.dst.addr().is_ipv4() == ip.is_ipv4());
        alike.min_by_key(|(_, route)| route.priority)
    }

    /// What is known of the inside of the container.
    pub fn inside_of(&self, view: &View<'_>) -> Option<&Inside> {
        self.inside.get(view.netns?)
    }
}

/// One address of each family.
const OUTSIDE_FAMILIES: [IpAddr; 2] = [OUTSIDE.0, OUTSIDE.1];

/// The link of the host by which the packets of a container come in.
pub fn input<'a>(view: &View<'a>) -> Option<&'a Link> {
    view.bridge.or(view.host_end)
}

/// Whether the host is to be the container's gateway.
pub fn has_gateway_here(view: &View<'_>) -> bool {
    let wants = |key| {
        let bridge = view.plugin("bridge");
        bridge.is_some_and(|b| plugin_member(&b.document, key) == Some(Value::Bool(true)))
    };
    wants("isGateway")
        || wants("isDefaultGateway")
        || view.plugin("ptp").is_some()
        || view.plugin("flannel").is_some()
}

fn look_inside(netlink: &Netlink, keys: &[String], addresses: &[IpAddr]) -> Result<Inside> {
    let mut forbidding = route::list_forbidding(netlink, OUTSIDE.0)?;
    // A kernel without IPv6 has none to list.
    forbidding.extend(route::list_forbidding(netlink, OUTSIDE.1).unwrap_or_default());
    let families: BTreeSet<IpAddr> = addresses.iter().map(|ip| outside(*ip)).collect();
    let ways_out = families
        .into_iter()
        .map(|ip| Ok((ip, route::link_to(netlink, ip)?)));
    let value = |key: &String| Some((key.clone(), sysctl::read(key).ok()??));
    Ok(Inside {
        neighbours: addr::neighbours(netlink)?,
        forbidding,
        sysctls: keys.iter().filter_map(value).collect(),
        ways_out: ways_out.collect::<Result<_>>()?,
    })
}

/// The sockets of this thread's namespace that wait for packets.
pub fn listeners() -> BTreeSet<Listener> {
    let mut found = BTreeSet::new();
    for (file, protocol) in [
        ("tcp", Protocol::Tcp),
        ("tcp6", Protocol::Tcp),
        ("udp", Protocol::Udp),
        ("udp6", Protocol::Udp),
    ] {
        // A kernel without IPv6 lacks two of them.
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let text = text.unwrap_or_default();
        found.extend(text.lines().filter_map(|line| listener(protocol, line)));
    }
    found
}

/// Takes out the sockets of programs that only keep a port for a container.
fn forget_keepers(listeners: &mut BTreeSet<Listener>) {
    if listeners.is_empty() {
        return;
    }
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes.map(|entry| entry.path()) {
        let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
        if !KEEPERS.contains(&name.trim()) {
            continue;
        }
        let files = std::fs::read_dir(process.join("fd"));
        for file in files.into_iter().flatten().flatten() {
            let target = std::fs::read_link(file.path()).unwrap_or_default();
            let target = target.to_string_lossy().into_owned();
            listeners.retain(|listener| target != format!("socket:[{}]", listener.inode));
        }
    }
}

/// A line of `/proc/net/tcp` and its like (proc(5)): `0: 0100007F:0016 00000000:0000 0A …`.
fn listener(protocol: Protocol, line: &str) -> Option<Listener> {
    /// `TCP_LISTEN`, and what an unconnected UDP socket has: `TCP_CLOSE`.
    const WAITING: [(Protocol, &str); 2] = [(Protocol::Tcp, "0A"), (Protocol::Udp, "07")];
    let mut words = line.split_whitespace().skip(1);
    let inode = words.clone().nth(8);
    let (ip, port) = words.next()?.split_once(':')?;
    let state = words.nth(1)?;
    if !WAITING.contains(&(protocol, state)) {
        return None;
    }
    // Words of 32 bits, each in the order of the machine.
    let mut bytes = Vec::new();
    for start in (0..ip.len()).step_by(8) {
        let word = u32::from_str_radix(ip.get(start..start + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(Listener {
        protocol,
        ip: ip.to_canonical(),
        port: u16::from_str_radix(port, 16).ok()?,
        inode: inode.and_then(|inode| inode.parse().ok()).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read() {
        let found = |protocol, line| listener(protocol, line).map(|l| (l.ip.to_string(), l.port));
        let line = "   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000";
        assert_eq!(found(Protocol::Tcp, line), Some(("127.0.0.1".into(), 22)));
        assert_eq!(found(Protocol::Udp, line), None, "not a state of UDP");
        let line =
            " 1: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 07";
        assert_eq!(found(Protocol::Udp, line), Some(("::".into(), 8080)));
        assert_eq!(
            found(Protocol::Udp, "  sl  local_address rem_address   st"),
            None
        );
    }
}
