//! The transport of all netfilter subsystems: sockets, batches and attributes.

pub mod attributes;
pub mod deferred_close;
pub mod socket;
