//! What must exist in the kernel's packet filter for one attachment, in words that belong
//! to no backend; and the two backends that make it so.
//!
//! Each operation is one atomic transaction per address family. Layout (tables, chains,
//! comments) is the reference's v1.9.1, so that either implementation can check and
//! remove what the other added.

mod attributes;
pub mod conntrack;
pub mod firewalld;
pub mod iptables;
mod known;
pub mod lingering;
pub mod listing;
mod memo;
pub mod nftables;
mod socket;
#[cfg(test)]
mod test_node;
mod usable;

use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnet::IpNet;

use crate::cni::error::{self, Code, all, detailed};
use crate::cni::invocation::Attachment;
use crate::cni::skel::Call;
use crate::cni::status::needs_root;
use iptables::Iptables;
pub use known::{Known, Others};
pub use memo::Memo;
use nftables::Nftables;
pub use usable::{Need, Purpose, way_out};

/// Whose rules these are: one attachment to one network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The `name` in the network configuration.
    pub network: String,
    /// nftables tells attachments apart; iptables only containers, as the reference does.
    pub attachment: Attachment,
}

impl Owner {
    /// The attachment that `call` is about.
    pub fn of(call: &Call) -> Self {
        Self {
            network: call.config.network.clone(),
            attachment: call.invocation.attachment.clone(),
        }
    }
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

/// What CHECK makes of the rules that are `missing`, each a line of text.
///
/// # Errors
/// Names them all, and what brings them back. None missing is none.
pub fn refuse_missing(owner: &Owner, missing: &[String]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    Err(detailed(
        Code::Internal,
        format!("packet filter rules of {owner} are missing"),
        format!("{}\n`cnibox restore` makes them again", missing.join("\n")),
    ))
}

/// What CHECK comes to where an attachment has rules: those `missing`, and what else
/// differs.
///
/// # Errors
/// Everything that is not as it should be.
pub fn agree(mut differences: Vec<String>, owner: &Owner, missing: Vec<String>) -> Result<()> {
    if differences.is_empty() {
        return refuse_missing(owner, &missing);
    }
    differences.extend(missing.into_iter().map(|rule| format!("missing: {rule}")));
    error::agree(differences)
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
fn taken_over(port: &str, whose: &str) -> String {
    format!("host port {port} was mapped to {whose}: the newest mapping wins")
}

/// Says who else has a port in another backend, for more of the host's addresses.
fn disputed(port: &str, whose: &str) -> String {
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

    /// Whether this host has what the backend needs.
    pub fn is_usable(self) -> bool {
        match self {
            Self::Iptables => Iptables::from_environment().is_usable(),
            Self::Nftables => nftables::is_usable(),
        }
    }

    /// The backend itself.
    pub fn backend(self) -> Box<dyn Backend> {
        match self {
            Self::Iptables => Box::new(Iptables::from_environment()),
            Self::Nftables => Box::new(Nftables),
        }
    }
}

/// The backend to use: the one asked for, else iptables, unless only nftables can be used
/// here. The reference chooses the same, so that changing over surprises nobody.
///
/// # Errors
/// When neither can be used.
pub fn choose(asked: Option<BackendName>) -> Result<BackendName> {
    match asked {
        Some(name) => Ok(name),
        None if BackendName::Iptables.is_usable() => Ok(BackendName::Iptables),
        None if BackendName::Nftables.is_usable() => Ok(BackendName::Nftables),
        None => Err(needs_root().unwrap_or_else(|| {
            detailed(
                Code::Internal,
                "this host has neither iptables nor nftables",
                "install iptables (iptables-restore must be in PATH), or load the kernel module nf_tables",
            )
        })),
    }
}

/// In the order in which they are looked at: nothing has to be run for the first.
pub const BACKENDS: [BackendName; 2] = [BackendName::Nftables, BackendName::Iptables];

/// Runs `work` with both backends: what a container left may be in either. All errors
/// are reported, the first in front.
///
/// The tools of iptables come first. As they end they wait for the kernel to destroy what was
/// removed by then, while nobody can remove more; we do not wait ([`lingering`]).
///
/// # Errors
/// Those of `work`.
pub fn with_both(work: impl Fn(&dyn Backend) -> Result<()>) -> Result<()> {
    let done = [BackendName::Iptables, BackendName::Nftables].map(|name| {
        work(name.backend().as_ref()).with_context(|| format!("clean up {} rules", name.as_str()))
    });
    all(done)
}

/// One way to make the kernel filter and translate packets.
pub trait Backend: Sync {
    /// Makes exactly these rules exist for `owner`, in front of older ones; those it had
    /// before are replaced.
    ///
    /// # Errors
    /// When the kernel or the tool refuses; nothing is changed then.
    fn ensure_masquerade(&self, owner: &Owner, wanted: &Masquerade) -> Result<()>;

    /// Removes the owner's masquerade rules, as far as they can be told from those of the
    /// container's other attachments to the network by what is `known`. None there is no
    /// error, and neither is a backend that this host does not have.
    ///
    /// # Errors
    /// When a rule is there and stays.
    fn remove_masquerade(&self, owner: &Owner, known: &Known) -> Result<()>;

    /// The rules of `wanted` that are not there, each as the command that would add it.
    ///
    /// # Errors
    /// When the kernel or the tool refuses to tell.
    fn missing_masquerade(&self, owner: &Owner, wanted: &Masquerade) -> Result<Vec<String>>;

    /// Whose masquerade rules [`Backend::collect_masquerade`] would remove, in words.
    ///
    /// # Errors
    /// When the rules cannot be read.
    fn stale_masquerade(&self, network: &str, valid: &[Attachment]) -> Result<Vec<String>>;

    /// Removes the masquerade rules of `network` whose attachment is not in `valid`.
    ///
    /// # Errors
    /// When a rule is there and stays.
    fn collect_masquerade(&self, network: &str, valid: &[Attachment]) -> Result<()>;

    /// As [`Backend::ensure_masquerade`].
    ///
    /// # Errors
    /// As [`Backend::ensure_masquerade`].
    fn ensure_port_maps(&self, owner: &Owner, wanted: &PortMaps) -> Result<()>;

    /// As [`Backend::remove_masquerade`].
    ///
    /// # Errors
    /// As [`Backend::remove_masquerade`].
    fn remove_port_maps(&self, owner: &Owner, known: &Known) -> Result<()>;

    /// As [`Backend::missing_masquerade`].
    ///
    /// # Errors
    /// As [`Backend::missing_masquerade`].
    fn missing_port_maps(&self, owner: &Owner, wanted: &PortMaps) -> Result<Vec<String>>;

    /// As [`Backend::stale_masquerade`].
    ///
    /// # Errors
    /// As [`Backend::stale_masquerade`].
    fn stale_port_maps(&self, network: &str, valid: &[Attachment]) -> Result<Vec<String>>;

    /// As [`Backend::collect_masquerade`].
    ///
    /// # Errors
    /// As [`Backend::collect_masquerade`].
    fn collect_port_maps(&self, network: &str, valid: &[Attachment]) -> Result<()>;

    /// Gives up ports of the host to mappings that the owner has just been given in another
    /// backend: which of two mappings a packet meets first depends on which backend was
    /// used first on this host, and the newest is to have it. Answers what the operator
    /// should know, in sentences.
    ///
    /// # Errors
    /// When a mapping is there and stays.
    fn yield_ports(&self, owner: &Owner, wanted: &PortMaps) -> Result<Vec<String>>;

    /// The IPv4 addresses that mappings lead to, whoever made them.
    ///
    /// # Errors
    /// When the rules cannot be read.
    fn mapped_ipv4(&self) -> Result<Vec<IpAddr>>;

    /// As [`Backend::ensure_masquerade`]. The rules of the bridge, and iptables' rules of
    /// an address, are shared by all who need them.
    ///
    /// # Errors
    /// As [`Backend::ensure_masquerade`].
    fn ensure_firewall(&self, owner: &Owner, wanted: &Firewall) -> Result<()>;

    /// As [`Backend::remove_masquerade`], and the rules of bridges that are gone with them.
    /// iptables' rules do not say whose they are: only those of `known` addresses go.
    ///
    /// # Errors
    /// As [`Backend::remove_masquerade`].
    fn remove_firewall(&self, owner: &Owner, known: &[IpAddr]) -> Result<()>;

    /// As [`Backend::missing_masquerade`].
    ///
    /// # Errors
    /// As [`Backend::missing_masquerade`].
    fn missing_firewall(&self, owner: &Owner, wanted: &Firewall) -> Result<Vec<String>>;

    /// As [`Backend::stale_masquerade`]: owners, where the rules name them, and bridges
    /// that are gone.
    ///
    /// # Errors
    /// As [`Backend::stale_masquerade`].
    fn stale_firewall(&self, network: &str, valid: &[Attachment]) -> Result<Vec<String>>;

    /// As [`Backend::collect_masquerade`].
    ///
    /// # Errors
    /// As [`Backend::collect_masquerade`].
    fn collect_firewall(&self, network: &str, valid: &[Attachment]) -> Result<()>;

    /// Fails unless nothing is missing, for tests.
    #[cfg(test)]
    fn check_masquerade(&self, owner: &Owner, wanted: &Masquerade) -> Result<()> {
        none_missing(&self.missing_masquerade(owner, wanted)?)
    }

    /// As [`Backend::check_masquerade`].
    #[cfg(test)]
    fn check_port_maps(&self, owner: &Owner, wanted: &PortMaps) -> Result<()> {
        none_missing(&self.missing_port_maps(owner, wanted)?)
    }
}

/// Fails with all that is `missing`, for tests.
#[cfg(test)]
fn none_missing(missing: &[String]) -> Result<()> {
    anyhow::ensure!(missing.is_empty(), "{}", missing.join("\n"));
    Ok(())
}
