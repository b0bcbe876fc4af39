//! The nftables backend: rules as the reference lays them out, spoken to the kernel
//! directly. No `nft` is needed, and none is run.
//!
//! Each operation is one transaction over both address families. ADD lists no rules: what
//! it must know of them (a repeated one replaces its rules instead of doubling them) it
//! asks a registry of our own, in that transaction. DEL finds its rules by their comment.

mod backend;
pub mod condition;
mod firewall;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod guard;
pub mod listing;
pub mod localnet;
mod localnet_record;
pub(super) mod masquerade;
pub(super) mod port_maps;
mod shared;
mod spoof_check;

pub use backend::{Nftables, understands};
