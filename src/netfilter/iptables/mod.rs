//! The iptables backend: each operation is one `iptables-restore` per family, which
//! changes the table as a whole or not at all.
//!
//! Adding and, where the addresses are known, removing need no look at what is there: the
//! first transaction assumes the usual case and contains what makes it fail in any other.
//! Only then is the table read, and what differs is made so: for the first mapping on a
//! node, and for removing mappings that the runtime does not remember, whose ports must be
//! looked up. Two processes then.
//!
//! What the tools of the nft variant would make is added, and what they have made removed,
//! without them in the usual case: no process at all.
//!
//! No library serves the look-ups: those there are run one process for each question.

mod addition;
mod backend;
mod firewall;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod listing;
mod masquerade;
mod native;
mod owned;
mod port_maps;
pub(super) mod rule;
pub(super) mod tool;

#[cfg(test)]
mod golden;

pub use backend::Iptables;
