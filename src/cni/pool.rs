//! The addresses of a network and who has them, as an IPAM plugin tells it
//! ([`Plugin::pools`](super::skel::Plugin::pools)).

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

/// The leases of one network, and the addresses that there are to lease.
#[derive(Debug, Default)]
pub struct Pool {
    /// The network's name.
    pub network: String,
    /// The directory of its leases.
    pub directory: PathBuf,
    /// One for each address that an attachment gets; none for a network that is not
    /// configured any more.
    pub sets: Vec<Set>,
    /// By address.
    pub leases: Vec<Record>,
}

/// Ranges from which an attachment gets one address.
#[derive(Debug, Default)]
pub struct Set {
    /// The first and the last address of each.
    pub ranges: Vec<(IpAddr, IpAddr)>,
    /// Those that can be leased: without gateways.
    pub size: u128,
    /// What the next ADD gets; `None` while all are taken.
    pub next: Option<IpAddr>,
}

impl Set {
    /// Whether `ip` is in one of the ranges.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let mut ranges = self.ranges.iter();
        ranges.any(|(first, last)| *first <= ip && ip <= *last)
    }
}

/// A file that records an address.
#[derive(Debug, Clone)]
pub struct Record {
    /// The address.
    pub ip: IpAddr,
    /// Whose it is.
    pub holder: Holder,
    /// The boot of the node in which it was written, where that is known.
    pub boot: Option<String>,
    /// Whether that was an earlier one than this.
    pub is_earlier: bool,
    /// When it was written.
    pub written: Option<SystemTime>,
}

/// Whose an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A container's, and there the interface's, unless the file is from before
    /// interfaces were recorded.
    Attachment(String, Option<String>),
    /// An operator has set it aside, with this note.
    Note(String),
    /// Nobody's: the file is empty or damaged.
    Nobody,
}
