//! Connections that the kernel remembers (ctnetlink), as far as they stand in the way of
//! port mappings.
//!
//! Nat rules see the first packet of a connection only. A UDP or SCTP flow has no end
//! that the kernel could see, so a client that keeps its port keeps its old way too,
//! until the entry is deleted here. TCP clients notice and connect again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED};
use netlink_packet_netfilter::conntrack::{ConntrackMessage, ConntrackMessageType};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use nix::errno::Errno;

use crate::log;
use crate::net::netlink::{Netlink, errno, tolerate};
use crate::net::route;
use crate::netfilter::model::{Mapping, Protocol};
use crate::netfilter::nfnetlink::socket::{Socket, attribute};

/// Attributes of an entry (`enum ctattr_type`).
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;

/// Attributes of one direction of an entry, and of its protocol.
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;
const NUMBER: u16 = 1;
const DESTINATION_PORT: u16 = 3;

/// After ADD: forgets the flows to mapped ports of this host that lead elsewhere than to
/// the container. One that cannot be forgotten is worth a warning, no more.
pub fn forget_replaced(mappings: &[Mapping], container: &[IpNet]) {
    let mut is_local = is_local_once();
    let replaced = |protocol, entry: &Entry| {
        let Some(container) = container.iter().find(|net| entry.is_like(net.addr())) else {
            return Ok(false);
        };
        let destination = entry.destination;
        let host = |mapping: &Mapping| mapping.host_ip.filter(|host| !host.is_unspecified());
        let is_mapped = entry.answered_by != container.addr()
            && mappings.iter().any(|mapping| {
                mapping.protocol == protocol
                    && mapping.host_port == entry.port
                    && mapping.is_for(container.addr())
                    && host(mapping).is_none_or(|host| host == destination)
            });
        // Only what is for this host can be meant for a mapping.
        Ok(is_mapped && is_local(destination)?)
    };
    let protocols = mappings.iter().map(|mapping| mapping.protocol);
    let families = container.iter().map(IpNet::addr);
    warn(forget(protocols, families, replaced));
}

/// The flows to published ports, each given with its address in the container, that somebody
/// else answers: the port, and who does. Those that the host itself answers are left out, for
/// a port may be published to some clients only.
///
/// # Errors
/// When the kernel does not list them.
pub fn misled(published: &[(Mapping, IpAddr)]) -> Result<BTreeSet<(Mapping, IpAddr)>> {
    let mut is_local = is_local_once();
    let mut found = BTreeSet::new();
    let protocols = published.iter().map(|(mapping, _)| mapping.protocol);
    let families = published.iter().map(|(_, to)| *to);
    each(protocols, families, |_, protocol, entry| {
        let host = |mapping: &Mapping| mapping.host_ip.filter(|host| !host.is_unspecified());
        let mut of_port = published.iter().filter(|(mapping, to)| {
            (mapping.protocol, mapping.host_port) == (protocol, entry.port)
                && entry.is_like(*to)
                && host(mapping).is_none_or(|host| host == entry.destination)
        });
        if let Some((mapping, _)) = of_port.clone().next()
            && of_port.all(|(_, to)| *to != entry.answered_by)
            && entry.answered_by != entry.destination
            && is_local(entry.destination)?
        {
            found.insert((*mapping, entry.answered_by));
        }
        Ok(())
    })?;
    Ok(found)
}

/// Whether an address is this host's; each is looked up once.
fn is_local_once() -> impl FnMut(IpAddr) -> Result<bool> {
    let mut socket = None;
    let mut known = BTreeMap::new();
    move |address| {
        if let Some(is_local) = known.get(&address) {
            return Ok(*is_local);
        }
        let netlink = match &socket {
            Some(netlink) => netlink,
            None => socket.insert(Netlink::open()?),
        };
        let is_local = route::is_local(netlink, address)?;
        known.insert(address, is_local);
        Ok(is_local)
    }
}

/// After DEL: forgets the flows that came through the removed mappings: protocol, port
/// of the host, and address in the container. As [`forget_replaced`].
pub fn forget_removed(mappings: &[(Protocol, u16, IpAddr)]) {
    let removed =
        |protocol, entry: &Entry| Ok(mappings.contains(&(protocol, entry.port, entry.answered_by)));
    let protocols = mappings.iter().map(|(protocol, _, _)| *protocol);
    let families = mappings.iter().map(|(_, _, container)| *container);
    warn(forget(protocols, families, removed));
}

fn warn(result: Result<()>) {
    if let Err(error) = result {
        log::warn(&format!(
            "{error:#}; clients of replaced port mappings may hang"
        ));
    }
}

/// Deletes the entries that are `unwanted`, of all `protocols` that need it and of the
/// families of the addresses `families`.
fn forget(
    protocols: impl Iterator<Item = Protocol>,
    families: impl Iterator<Item = IpAddr>,
    mut unwanted: impl FnMut(Protocol, &Entry) -> Result<bool>,
) -> Result<()> {
    each(protocols, families, |socket, protocol, entry| {
        if unwanted(protocol, &entry)? {
            let is_ipv4 = entry.destination.is_ipv4();
            let gone = socket.request(message(is_ipv4, entry.delete())).map(drop);
            tolerate(gone, &[Errno::ENOENT]).context("delete a conntrack entry")?;
        }
        Ok(())
    })
}

/// Does `work` with each entry, of all `protocols` whose flows have no end and of the families
/// of the addresses `families`.
fn each(
    protocols: impl Iterator<Item = Protocol>,
    families: impl Iterator<Item = IpAddr>,
    mut work: impl FnMut(&Socket, Protocol, Entry) -> Result<()>,
) -> Result<()> {
    let protocols: BTreeSet<Protocol> = protocols.filter(|p| *p != Protocol::Tcp).collect();
    if protocols.is_empty() {
        return Ok(());
    }
    let families: BTreeSet<bool> = families.map(|address| address.is_ipv4()).collect();
    let socket = Socket::open()?;
    if is_empty(&socket) {
        return Ok(());
    }
    for is_ipv4 in families {
        for protocol in &protocols {
            for entry in list(&socket, is_ipv4, *protocol)? {
                work(&socket, *protocol, entry)?;
            }
        }
    }
    Ok(())
}

/// Whether the kernel remembers no connection at all. It counts them; for a list it goes through
/// a table of a fixed size, however few they are: 6 ms where that is 262,144.
fn is_empty(socket: &Socket) -> bool {
    /// `IPCTNL_MSG_CT_GET_STATS`, and `CTA_STATS_GLOBAL_ENTRIES` of its answer.
    const GET_STATS: u8 = 5;
    const ENTRIES: u16 = 1;
    let request = ConntrackMessage::Other {
        message_type: GET_STATS,
        attributes: Vec::new(),
    };
    // In doubt there are some.
    let answers = socket.request(message(true, request)).unwrap_or_default();
    let count = answers
        .first()
        .and_then(|answer| attribute(answer, ENTRIES));
    count == Some(&0_u32.to_be_bytes())
}

/// One entry, from the point of view of who began: where to, and who answers.
#[derive(Debug)]
struct Entry {
    destination: IpAddr,
    port: u16,
    answered_by: IpAddr,
    /// What names the entry, as the kernel wrote it.
    key: Vec<(u16, Vec<u8>)>,
}

impl Entry {
    fn parse(answer: &[u8]) -> Option<Self> {
        let (original, reply) = (attribute(answer, ORIGINAL)?, attribute(answer, REPLY)?);
        // Kinds 1 and 2 are source and destination of IPv4, 3 and 4 of IPv6.
        let address = |tuple, v4, v6| {
            let addresses = attribute(tuple, ADDRESSES)?;
            match attribute(addresses, v4) {
                Some(v4) => Some(IpAddr::from(<[u8; 4]>::try_from(v4).ok()?)),
                None => Some(IpAddr::from(
                    <[u8; 16]>::try_from(attribute(addresses, v6)?).ok()?,
                )),
            }
        };
        let port = attribute(attribute(original, PROTOCOL)?, DESTINATION_PORT)?;
        let key = [(ORIGINAL, NLA_F_NESTED), (ID, 0), (ZONE, 0)];
        Some(Self {
            destination: address(original, 2, 4)?,
            port: u16::from_be_bytes(port.try_into().ok()?),
            answered_by: address(reply, 1, 3)?,
            key: key
                .into_iter()
                .filter_map(|(kind, flag)| Some((kind | flag, attribute(answer, kind)?.to_vec())))
                .collect(),
        })
    }

    /// Whether it is of the family of `address`.
    fn is_like(&self, address: IpAddr) -> bool {
        self.destination.is_ipv4() == address.is_ipv4()
    }

    fn delete(self) -> ConntrackMessage {
        let key = self.key.into_iter();
        ConntrackMessage::Other {
            message_type: ConntrackMessageType::Delete.into(),
            attributes: key
                .map(|(kind, value)| DefaultNla::new(kind, value))
                .collect(),
        }
    }
}

/// The entries of one family and protocol. A kernel without conntrack has none.
fn list(socket: &Socket, is_ipv4: bool, protocol: Protocol) -> Result<Vec<Entry>> {
    /// `CTA_FILTER_ORIG_FLAGS`: compare the protocol number only. Kernels before 5.8 do
    /// not look at it and tell everything.
    const ORIGINAL_FLAGS: u16 = 1;
    const PROTOCOL_NUMBER: u32 = 1 << 3;
    let nested = |kind, inner: DefaultNla| {
        let mut value = vec![0; inner.buffer_len()];
        inner.emit(&mut value);
        DefaultNla::new(kind | NLA_F_NESTED, value)
    };
    let number = DefaultNla::new(NUMBER, vec![protocol.number()]);
    let flags = DefaultNla::new(ORIGINAL_FLAGS, PROTOCOL_NUMBER.to_ne_bytes().into());
    let request = ConntrackMessage::Other {
        message_type: ConntrackMessageType::Get.into(),
        attributes: vec![
            nested(ORIGINAL, nested(PROTOCOL, number)),
            nested(FILTER, flags),
        ],
    };
    let answers = match socket.dump(&message(is_ipv4, request)) {
        Err(error) if errno(&error) == Some(Errno::EINVAL) => Vec::new(),
        answers => answers.context("list conntrack entries")?,
    };
    let of_protocol = |answer: &&Vec<u8>| {
        let number = attribute(answer, ORIGINAL)
            .and_then(|tuple| attribute(tuple, PROTOCOL))
            .and_then(|protocol| attribute(protocol, NUMBER));
        number == Some(&[protocol.number()])
    };
    let entries = answers.iter().filter(of_protocol);
    Ok(entries.filter_map(|answer| Entry::parse(answer)).collect())
}

fn message(is_ipv4: bool, message: ConntrackMessage) -> NetfilterMessage {
    let family = if is_ipv4 {
        NetfilterProtoFamily::IPv4
    } else {
        NetfilterProtoFamily::IPv6
    };
    let inner = NetfilterMessageInner::Conntrack(message);
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

/// What holds for every answer of the kernel: an entry is deleted by the very name that the
/// kernel wrote.
#[cfg(any(test, fuzzing))]
pub fn fuzz(answer: &[u8]) {
    let Some(entry) = Entry::parse(answer) else {
        return;
    };
    assert!(!entry.key.is_empty() && entry.key.len() <= 3);
    let key = entry.key.clone();
    let request = message(entry.destination.is_ipv4(), entry.delete());
    let mut bytes = vec![0; request.buffer_len()];
    request.emit(&mut bytes);
    // Behind `struct nfgenmsg`.
    let sent = bytes.get(4..).unwrap_or_default();
    for (kind, value) in key {
        let kind = kind & !NLA_F_NESTED;
        assert_eq!(attribute(answer, kind), Some(value.as_slice()));
        assert_eq!(attribute(sent, kind), Some(value.as_slice()));
    }
}

#[cfg(test)]
mod kernel_tests {
    #![expect(
        clippy::disallowed_methods,
        reason = "tests make namespaces and ask programs that are not ours"
    )]

    use super::*;
    use crate::netfilter::test_node;

    fn sh(command: &str) -> String {
        let output = std::process::Command::new("sh")
            .args(["-c", command])
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A host 192.0.2.1 and `fd00::1`, and clients whose flows `conntrack` makes up:
    /// protocol, client, destination and port, who answers.
    fn node(flows: &[(&str, &str, &str, u16, &str)]) {
        test_node::enter();
        sh(
            "ip link set lo up; ip addr add 192.0.2.1/32 dev lo; ip addr add fd00::1/128 dev lo nodad",
        );
        for (protocol, client, to, port, answered_by) in flows {
            let state = match *protocol {
                "tcp" => "--state ESTABLISHED",
                "sctp" => "--state ESTABLISHED --orig-vtag 1 --reply-vtag 2",
                _ => "",
            };
            sh(&format!(
                "conntrack -I -p {protocol} -s {client} -d {to} --sport 4000 --dport {port} \
                 --reply-src {answered_by} --reply-dst {client} \
                 --reply-port-src {port} --reply-port-dst 4000 -t 300 {state}"
            ));
        }
    }

    /// The clients whose flows are still known.
    fn clients() -> Vec<String> {
        let list = sh("conntrack -L -f ipv4; conntrack -L -f ipv6");
        let clients = list.lines().filter_map(|line| line.split("src=").nth(1));
        let mut clients: Vec<String> = clients
            .filter_map(|rest| rest.split(' ').next())
            .map(str::to_owned)
            .collect();
        clients.sort();
        clients
    }

    fn mapping(protocol: Protocol, host_ip: Option<&str>, host_port: u16) -> Mapping {
        Mapping {
            protocol,
            host_ip: host_ip.map(|host| host.parse().unwrap()),
            host_port,
            container_port: 1,
        }
    }

    fn container() -> [IpNet; 2] {
        ["10.9.0.2/24", "fd00:9::2/64"].map(|net| net.parse().unwrap())
    }

    #[test]
    fn add_forgets_flows_to_its_ports_that_lead_elsewhere() {
        node(&[
            ("udp", "198.51.100.1", "192.0.2.1", 53, "192.0.2.1"), // the host itself
            ("udp", "198.51.100.2", "192.0.2.1", 53, "10.9.0.9"),  // an older container
            ("udp", "198.51.100.3", "192.0.2.1", 53, "10.9.0.2"),  // this container
            ("udp", "198.51.100.4", "192.0.2.1", 54, "10.9.0.9"),  // another port
            ("udp", "198.51.100.5", "8.8.8.8", 53, "8.8.8.8"),     // on its way elsewhere
            ("tcp", "198.51.100.6", "192.0.2.1", 53, "10.9.0.9"),
            ("udp", "198.51.100.7", "127.0.0.1", 77, "10.9.0.9"), // not the mapped address
            ("udp", "198.51.100.8", "192.0.2.1", 77, "10.9.0.9"),
            ("sctp", "198.51.100.9", "192.0.2.1", 99, "10.9.0.9"),
            ("udp", "2001:db8::1", "fd00::1", 53, "fd00:9::9"),
            ("udp", "2001:db8::2", "fd00::1", 53, "fd00:9::2"),
        ]);
        let mappings = [
            mapping(Protocol::Udp, None, 53),
            mapping(Protocol::Udp, Some("192.0.2.1"), 77),
            mapping(Protocol::Sctp, Some("0.0.0.0"), 99),
            mapping(Protocol::Tcp, None, 53),
        ];
        forget_replaced(&mappings, &container());
        let left = [
            "198.51.100.3",
            "198.51.100.4",
            "198.51.100.5",
            "198.51.100.6",
            "198.51.100.7",
            "2001:db8::2",
        ];
        assert_eq!(clients(), left);
        forget_replaced(&mappings, &container());
        assert_eq!(clients(), left);
    }

    #[test]
    fn only_an_address_of_the_host_is_the_hosts() {
        node(&[
            ("udp", "198.51.100.1", "192.0.2.1", 53, "10.9.0.9"),
            ("udp", "198.51.100.2", "8.8.8.8", 53, "8.8.8.8"),
            ("udp", "198.51.100.3", "203.0.113.1", 53, "203.0.113.1"),
            ("udp", "198.51.100.4", "203.0.113.2", 53, "203.0.113.2"),
            ("udp", "198.51.100.5", "203.0.113.3", 53, "203.0.113.3"),
            ("udp", "198.51.100.6", "192.0.2.255", 53, "10.9.0.9"),
            ("udp", "2001:db8::1", "fe80::1", 53, "fd00:9::9"),
            ("udp", "2001:db8::2", "fe80::2", 53, "fd00:9::9"),
            ("udp", "2001:db8::3", "2001:db8:1::1", 53, "2001:db8:1::1"),
            ("udp", "2001:db8::4", "2001:db8:2::1", 53, "2001:db8:2::1"),
        ]);
        // Any address can be bound, and a link-local one only with its link.
        sh("echo 1 > /proc/sys/net/ipv4/ip_nonlocal_bind; \
            echo 1 > /proc/sys/net/ipv6/ip_nonlocal_bind; \
            ip link add d0 type veth peer name d1; ip link set d0 up; ip link set d1 up; \
            ip addr add fe80::1/64 dev d0 nodad; ip addr add 192.0.2.1/24 dev d0; \
            ip route add 8.8.8.8 dev d0; ip route add blackhole 203.0.113.1; \
            ip route add unreachable 203.0.113.2; ip route add prohibit 203.0.113.3; \
            ip -6 route add blackhole 2001:db8:1::1");
        let mappings = [mapping(Protocol::Udp, None, 53)];
        forget_replaced(&mappings, &container());
        assert_eq!(
            clients(),
            [
                "198.51.100.2",
                "198.51.100.3",
                "198.51.100.4",
                "198.51.100.5",
                "198.51.100.6",
                "2001:db8::2",
                "2001:db8::3",
                "2001:db8::4",
            ]
        );
    }

    #[test]
    fn del_forgets_flows_that_came_through_its_mappings() {
        node(&[
            ("udp", "198.51.100.1", "192.0.2.1", 53, "10.9.0.2"),
            ("udp", "198.51.100.2", "192.0.2.1", 53, "10.9.0.9"),
            ("udp", "198.51.100.3", "192.0.2.1", 54, "10.9.0.2"),
            ("tcp", "198.51.100.4", "192.0.2.1", 53, "10.9.0.2"),
            ("udp", "2001:db8::1", "fd00::1", 53, "fd00:9::2"),
        ]);
        let [v4, v6] = container().map(|net| net.addr());
        forget_removed(&[
            (Protocol::Udp, 53, v4),
            (Protocol::Udp, 53, v6),
            (Protocol::Tcp, 53, v4),
        ]);
        assert_eq!(clients(), ["198.51.100.2", "198.51.100.3", "198.51.100.4"]);
    }

    #[test]
    fn a_node_without_flows_is_no_trouble() {
        node(&[]);
        let (protocols, families) = ([Protocol::Udp], container().map(|net| net.addr()));
        forget(protocols.into_iter(), families.into_iter(), |_, _| Ok(true)).unwrap();
    }
}
