//! What the checks go by: gathered once, before the first of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::Result;
use ipnet::IpNet;
use serde_json::Value;

use crate::cnitool::inventory::Survey;
use crate::cnitool::inventory::attachment::View;
use crate::fsutil;
use crate::net::addr::{self, Neighbour};
use crate::net::link::Link;
use crate::net::link_sysctl::LinkSysctl;
use crate::net::netlink::Netlink;
use crate::net::netns::{self, Netns};
use crate::net::route::{self, Forwarded, Route};
use crate::net::sysctl;
use crate::net::traffic::{self, Discipline};
use crate::netfilter::simulate::ruleset::Ruleset;
use crate::netfilter::{Mapping, Protocol, conntrack};
use crate::runtime::cache;
use crate::runtime::network::plugin_member;

/// Addresses that stand for the world outside: those that nobody has (RFC 5737, RFC 3849), and
/// others far from them.
pub const OUTSIDE: [(IpAddr, IpAddr); 2] = [
    (
        IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1)),
    ),
    (
        IpAddr::V4(Ipv4Addr::new(77, 2, 3, 4)),
        IpAddr::V6(Ipv6Addr::new(0x2600, 0, 0, 0, 0, 0, 0, 1)),
    ),
];

/// The world outside, for the family of `ip`: an address that nobody has.
pub fn outside(ip: IpAddr) -> IpAddr {
    let [(v4, v6), _] = OUTSIDE;
    if ip.is_ipv4() { v4 } else { v6 }
}

/// Sysctls of the host that are always read.
const KEYS: [&str; 8] = [
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
    "netfilter/nf_conntrack_count",
    "netfilter/nf_conntrack_max",
    "ipv4/neigh/default/gc_thresh3",
    "ipv6/neigh/default/gc_thresh3",
];

/// Sysctls of a link that the checks look at, and of `all` and `default`.
fn sysctls_of(link: &str) -> [String; 5] {
    [
        LinkSysctl::v4(link, "arp_ignore"),
        LinkSysctl::v4(link, "arp_filter"),
        LinkSysctl::v4(link, "forwarding"),
        LinkSysctl::v4(link, "rp_filter"),
        LinkSysctl::v6(link, "disable_ipv6"),
    ]
    .map(LinkSysctl::key)
}

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
    pub firewall: Option<Ruleset>,
    /// Flows to published ports that others answer: the port, and who does.
    pub misled: BTreeSet<(Mapping, IpAddr)>,
    /// Directories of the plugins' and the runtimes' files in which nothing can be made, each
    /// with the reason.
    pub unwritable: BTreeMap<PathBuf, anyhow::Error>,
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
    /// What a packet to the outside leaves through, of each family that is asked for: the
    /// index of the link, and the gateway. `None` is nowhere.
    pub ways_out: BTreeMap<IpAddr, Option<(u32, Option<IpAddr>)>>,
    /// Of a container: the links that packets to its gateways leave through; `None` is nowhere.
    pub ways_to: BTreeMap<IpAddr, Option<String>>,
    /// Of a container: the name servers of its result that it has no route to.
    pub lost_servers: Vec<IpAddr>,
    /// What traffic control does, by the indices of links.
    pub traffic: Vec<(u32, Discipline)>,
    /// Of a container: its rules, where they could be read.
    pub firewall: Option<Ruleset>,
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

    /// A sysctl that is a number, and may be less than 0.
    pub fn integer(&self, key: &str) -> Option<i64> {
        self.sysctl(key)?.parse().ok()
    }

    /// The value of a link's sysctl that the kernel acts on.
    pub fn effective(&self, sysctl: LinkSysctl<'_>) -> Option<i64> {
        sysctl.effective(|key| self.integer(key))
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
            misled: BTreeSet::new(),
            unwritable: BTreeMap::new(),
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
        let addresses = self.views.iter().flat_map(|view| &view.addresses);
        let outsides: BTreeSet<IpAddr> = addresses.map(|net| outside(net.addr())).collect();
        let outsides: Vec<IpAddr> = outsides.into_iter().collect();
        self.host = look_inside(&netlink, &self.host_keys(), &outsides, &[])?;
        self.unwritable = self.unwritable();
        match self.misled() {
            Ok(found) => self.misled = found,
            Err(error) => self.doubts.push(format!("{error:#}")),
        }
        let mut ports = self.views.iter().flat_map(|view| &view.ports);
        let published: BTreeSet<u16> = ports.by_ref().map(|p| p.mapping.host_port).collect();
        match Ruleset::read(&mut self.doubts) {
            Ok(found) => self.firewall = Some(found),
            Err(error) => self.doubts.push(format!("{error:#}")),
        }
        self.listeners = listeners();
        self.listeners
            .retain(|listener| published.contains(&listener.port));
        forget_keepers(&mut self.listeners);
        for view in &self.views {
            let addresses: Vec<IpAddr> = view.addresses.iter().map(IpNet::addr).collect();
            for ip in &addresses {
                let way = self.way(&netlink, view, *ip)?;
                self.ways.insert(*ip, way);
            }
            let (Some(path), Some(_)) = (view.netns, view.inside) else {
                continue;
            };
            let ifname = &view.attachment.ifname;
            let keys = [sysctls_of(ifname), sysctls_of("all")].concat();
            let gateways = gateways(view);
            let outsides: Vec<IpAddr> = addresses.iter().map(|ip| outside(*ip)).collect();
            let own = addresses_of(view);
            let servers = servers(view);
            let look = || {
                let netns = Netns::open(path)?;
                netns.inside(|| {
                    let netlink = Netlink::open()?;
                    let mut found = look_inside(&netlink, &keys, &outsides, &own)?;
                    let is_lost = |ip: &&IpAddr| matches!(route::link_to(&netlink, **ip), Ok(None));
                    found.lost_servers = servers.iter().filter(is_lost).copied().collect();
                    let way = |ip: &IpAddr| Some((*ip, route::link_to(&netlink, *ip).ok()?));
                    found.ways_to = gateways.iter().filter_map(way).collect();
                    // What tools it has is its own matter.
                    found.firewall = Ruleset::read(&mut Vec::new()).ok();
                    Ok(found)
                })
            };
            match look() {
                Ok(mut found) => {
                    // It may have other interfaces.
                    let earlier = self.inside.remove(path).unwrap_or_default();
                    found.sysctls.extend(earlier.sysctls);
                    found.ways_to.extend(earlier.ways_to);
                    self.inside.insert(path, found);
                }
                // Gone since the survey.
                Err(_) if !netns::is_live(path) => {}
                Err(error) => {
                    let error: anyhow::Error = error;
                    self.doubts.push(format!("{error:#}"));
                }
            }
        }
        Ok(())
    }

    /// Whether the link called `name` is a VLAN of the bridge `link`, or another of its ports.
    pub fn is_above(&self, name: &str, link: &Link) -> bool {
        let host = &self.survey.host;
        host.link(name).is_some_and(|found| {
            found.peer == Some(link.index)
                || found.controller == Some(link.index)
                || host
                    .peer_of(found)
                    .is_some_and(|peer| peer.controller == Some(link.index))
        })
    }

    /// The sysctls of the host that matter.
    fn host_keys(&self) -> Vec<String> {
        let mut keys: BTreeSet<String> = KEYS.iter().map(|key| (*key).to_owned()).collect();
        let host = &self.survey.host;
        let links = self
            .views
            .iter()
            .flat_map(|view| [view.host_end, view.bridge]);
        let uplinks = OUTSIDE_FAMILIES.map(|ip| self.uplink(ip));
        // With VLANs they are on links of their own.
        let gateways: BTreeSet<IpAddr> = self.views.iter().flat_map(gateways).collect();
        let of_gateways = host.addresses.iter().filter_map(|(index, address)| {
            let is_one = gateways.contains(&address.net.addr());
            is_one.then(|| host.by_index(*index))
        });
        let links = links.chain(uplinks).chain(of_gateways).flatten();
        let names = links.map(|link| link.name.as_str());
        for name in names.chain(["all", "default"]) {
            keys.extend(sysctls_of(name));
        }
        // What the kernel learns of other routers.
        for link in host.links.iter().filter(|link| link.name != "lo") {
            keys.insert(LinkSysctl::v6(&link.name, "accept_ra").key());
        }
        keys.into_iter().collect()
    }

    /// The directories in which nothing can be made, by those who run plugins.
    fn unwritable(&self) -> BTreeMap<PathBuf, anyhow::Error> {
        if !nix::unistd::geteuid().is_root() {
            return BTreeMap::new();
        }
        let pools = self
            .survey
            .pools
            .iter()
            .map(|pool| pool.directory.as_path());
        let all = pools.chain([Path::new(cache::DEFAULT), Path::new("/run/cni")]);
        let reason = |dir: &Path| Some((dir.to_owned(), fsutil::check_writable(dir).err()?));
        all.filter_map(reason).collect()
    }

    /// The flows to ports of containers that are answered at an address of the containers'
    /// networks which is not the port's.
    fn misled(&self) -> Result<BTreeSet<(Mapping, IpAddr)>> {
        let ports = || self.views.iter().flat_map(|view| &view.ports);
        let published: Vec<(Mapping, IpAddr)> = ports().map(|p| (p.mapping, p.to)).collect();
        let mut misled = conntrack::misled(&published)?;
        misled.retain(|(_, ip)| {
            let of_pools = self.survey.pools.iter().flat_map(|pool| &pool.sets);
            let mut of_views = self.views.iter().flat_map(|view| &view.addresses);
            of_views.any(|net| net.contains(ip)) || of_pools.into_iter().any(|s| s.contains(*ip))
        });
        Ok(misled)
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
const OUTSIDE_FAMILIES: [IpAddr; 2] = [OUTSIDE[0].0, OUTSIDE[0].1];

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

/// The addresses of the container's interface that it really has.
fn addresses_of(view: &View<'_>) -> Vec<IpAddr> {
    let (Some(stack), Some(link)) = (view.inside, view.link) else {
        return Vec::new();
    };
    let is_there = |net: &&IpNet| stack.addresses_of(link.index).any(|a| a.net == **net);
    let own = view.addresses.iter().filter(is_there);
    own.map(IpNet::addr).collect()
}

/// The gateways of the attachment's result.
fn gateways(view: &View<'_>) -> Vec<IpAddr> {
    let record = view.record();
    let ips = record.map_or(&[][..], |record| &record.result.ips);
    ips.iter().filter_map(|ip| ip.gateway).collect()
}

/// The name servers that the result of the attachment tells.
fn servers(view: &View<'_>) -> Vec<IpAddr> {
    let record = view.record();
    let told = record.map_or(&[][..], |record| &record.result.dns.nameservers);
    let servers = told.iter().filter_map(|server| server.parse().ok());
    // One of a family that the container has not is passed over at once.
    let is_asked = |server: &IpAddr| {
        let mut own = view.addresses.iter();
        own.any(|net| net.addr().is_ipv4() == server.is_ipv4())
    };
    servers.filter(is_asked).collect()
}

/// Looks into the namespace that the calling thread and `netlink` are in. `outsides` are where
/// packets from `sources` go to.
fn look_inside(
    netlink: &Netlink,
    keys: &[String],
    outsides: &[IpAddr],
    sources: &[IpAddr],
) -> Result<Inside> {
    let mut forbidding = route::list_forbidding(netlink, OUTSIDE[0].0)?;
    // A kernel without IPv6 has none to list.
    forbidding.extend(route::list_forbidding(netlink, OUTSIDE[0].1).unwrap_or_default());
    let ways_out = outsides.iter().map(|ip| {
        let source = sources.iter().find(|s| s.is_ipv4() == ip.is_ipv4());
        Ok((*ip, route::next_hop(netlink, *ip, source.copied())?))
    });
    let value = |key: &String| Some((key.clone(), sysctl::read(key).ok()??));
    Ok(Inside {
        neighbours: addr::neighbours(netlink)?,
        forbidding,
        sysctls: keys.iter().filter_map(value).collect(),
        ways_out: ways_out.collect::<Result<_>>()?,
        // A kernel without traffic control has none to list.
        traffic: traffic::disciplines(netlink).unwrap_or_default(),
        ways_to: BTreeMap::new(),
        lost_servers: Vec::new(),
        firewall: None,
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
