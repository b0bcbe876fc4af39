//! What must exist in the kernel's packet filter for one attachment, in words that belong
//! to no backend; and the backends that make it so.
//!
//! Each operation is one atomic transaction per address family. Layout (tables, chains,
//! comments) is the reference's v1.9.1, so that either implementation can check and
//! remove what the other added.

mod backend;
mod choice;
pub mod conntrack;
pub mod firewalld;
pub mod iptables;
mod known;
pub mod listing;
mod memo;
mod model;
mod nf_tables;
mod nfnetlink;
pub mod nftables;
mod registry;
pub mod simulate;
pub mod spoof_check;
#[cfg(test)]
mod test_node;
pub mod trace;
mod usable;

pub use choice::{BACKENDS, UNDERSTOOD, choose, with_both};
pub use firewalld::Firewalld;
pub use known::{Known, Others};
pub use memo::Memo;
pub use model::{
    BackendName, Firewall, Ingress, Isolation, Mapping, Mark, Masquerade, Owner, PortMaps,
    Protocol, Purpose,
};
pub use nf_tables::nft_command::Names;
pub use nf_tables::query::is_usable as has_nf_tables;
pub use nf_tables::ruleset::Family;
pub use nfnetlink::deferred_close;
pub use nftables::localnet;
pub use usable::{Need, way_out};
