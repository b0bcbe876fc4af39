//! What the tools of iptables' nft variant would do, done over netlink: only speed depends on it.

pub mod addition;
pub mod members;
pub mod port_reservations;
pub mod private_chain;
pub mod xtables;
