//! What an attachment needs of the packet filter, in words that belong to no backend.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::cni::invocation::Attachment;

/// Whose rules these are: one attachment to one network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The `name` in the network configuration.
    pub network: String,
    /// nftables tells attachments apart; iptables only containers, as the reference does.
    pub attachment: Attachment,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Attachment {
            container_id,
            ifname,
        } = &self.attachment;
        let network = &self.network;
        write!(
            f,
            "{ifname} of container {container_id} in network {network}"
        )
    }
}

/// Source NAT for what leaves the network: from each address to anything that is neither
/// in its subnet nor multicast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// The container's addresses with their prefix lengths, host bits kept.
    pub addresses: Vec<IpNet>,
}

/// Ports of this host that lead into the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMaps {
    /// The container's addresses with prefix length, at most one of each family.
    pub container: Vec<IpNet>,
    /// In the order of the configuration.
    pub mappings: Vec<Mapping>,
    /// Masquerade what the container or the host itself sends through a mapping.
    pub snat: bool,
    /// With `snat`: masquerade whatever comes through a mapping, whoever sends it.
    pub masquerade_all: bool,
    /// How iptables marks packets that are to be masqueraded.
    pub mark: Mark,
    /// More conditions, in the words of the backend: iptables arguments or an nft
    /// expression.
    pub conditions_v4: Vec<String>,
    /// As `conditions_v4`, for packets to the container's IPv6 address.
    pub conditions_v6: Vec<String>,
    /// Warn of each port that is taken over from another container: not where the mappings
    /// are made again, in the order in which they were first made.
    pub warn_of_takeovers: bool,
}

/// What may pass through this host to and from a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firewall {
    /// The container's addresses.
    pub addresses: Vec<IpAddr>,
    /// The chain of rules that decide first, which are an administrator's. Behind it, what
    /// the addresses send passes, and what answers that. `None` where somebody else sees to
    /// all that.
    pub admin_chain: Option<String>,
    /// What keeps others away from the container's bridge.
    pub isolation: Option<Isolation>,
}

/// A bridge, and who may send to the containers on it. Whatever comes from another bridge
/// with an entry like this is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolation {
    /// The bridge's name.
    pub bridge: String,
    /// What holds for containers on this same bridge.
    pub ingress: Ingress,
}

/// Who may send to containers on an isolated bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ingress {
    /// Those on it.
    SameBridge,
    /// Not even those, as far as their packets pass through the packet filter.
    Isolated,
}

/// One port of the host and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mapping {
    /// The host's port is taken for this protocol only.
    pub protocol: Protocol,
    /// Only this address of the host; `None` is any. It decides the family.
    pub host_ip: Option<IpAddr>,
    /// 1 to 65535: where clients connect to.
    pub host_port: u16,
    /// 1 to 65535: where the container listens.
    pub container_port: u16,
}

impl Mapping {
    /// Whether both claim the same port of the same addresses of the host.
    pub fn same_port(&self, other: &Self) -> bool {
        let specific = |mapping: &Self| mapping.host_ip.filter(|ip| !ip.is_unspecified());
        let family = |mapping: &Self| mapping.host_ip.map(|ip| ip.is_ipv4());
        let same_family = match (family(self), family(other)) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && specific(self) == specific(other)
            && same_family
    }

    /// Whether `other`, which claims the same port, is for no more families than this.
    pub fn includes(&self, other: &Self) -> bool {
        self.host_ip.is_none() || other.host_ip.is_some()
    }

    /// Whether a program on the host can use it by calling a loopback address.
    pub fn is_local(&self) -> bool {
        self.host_ip
            .is_none_or(|ip| ip.is_unspecified() || ip.is_loopback())
    }

    /// Whether the mapping is for the family of `container`.
    pub fn is_for(&self, container: IpAddr) -> bool {
        self.host_ip
            .is_none_or(|host| host.is_ipv4() == container.is_ipv4())
    }
}

impl std::fmt::Display for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host_ip {
            None => write!(f, "{}", self.host_port)?,
            Some(ip) => write!(f, "{}", std::net::SocketAddr::new(ip, self.host_port))?,
        }
        write!(f, "/{}", self.protocol.as_str())
    }
}

/// Says whose a port was that a new mapping takes over: `8080/tcp`.
pub fn taken_over(port: &str, whose: &str) -> String {
    format!("host port {port} was mapped to {whose}: the newest mapping wins")
}

/// Says who else has a port in another backend, for more of the host's addresses.
pub fn disputed(port: &str, whose: &str) -> String {
    format!(
        "host port {port} is mapped to {whose}, too, in another backend: which of the two \
         answers is not certain"
    )
}

/// Transport protocols that can be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// RFC 9260. Like UDP, its flows outlive the rules until `conntrack` forgets them.
    Sctp,
    /// RFC 9293. Its clients notice a changed mapping and connect again.
    Tcp,
    /// RFC 768. No flow has an end, so `conntrack` forgets those of changed mappings.
    Udp,
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The one that iptables and nft spell so.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }

    /// The one with this number in the IP header.
    pub fn numbered(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.number() == number)
    }

    /// As iptables and nft spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sctp => "sctp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Where the mark for masquerading comes from (iptables only).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// Our own chains set and look at this bit, 0 to 31.
    Bit(u8),
    /// A chain of somebody else's that marks, and masquerades what it has marked.
    Chain(String),
}

/// The backends, as configurations call them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendName {
    /// The tools `iptables-restore` and `ip6tables-restore`, found through `PATH`.
    Iptables,
    /// The kernel's `nf_tables`, spoken to through netlink: no `nft` is needed.
    Nftables,
}

impl BackendName {
    /// The word in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }

    /// The backend that the word names; `None` for what is neither.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Iptables, Self::Nftables]
            .into_iter()
            .find(|name| name.as_str() == word)
    }
}

/// What rules are for, which decides about the table and what must be read of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Rules of [`Masquerade`].
    Masquerade,
    /// Rules of [`PortMaps`].
    PortMaps,
    /// Rules of [`Firewall`].
    Firewall,
}

impl Purpose {
    /// The key of the configuration that chooses the backend.
    pub fn key(self) -> &'static str {
        match self {
            Self::Masquerade => "ipMasqBackend",
            Self::PortMaps | Self::Firewall => "backend",
        }
    }
}
