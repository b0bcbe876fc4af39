//! The CNI protocol: what a plugin reads, what it answers, and in which words.
//!
//! Follows the CNI specification 1.1.0, sections 2 (execution protocol), 4
//! (delegation) and 5 (result types). Nothing here touches the kernel's network
//! or knows a plugin by name.

pub mod address;
pub mod args;
pub mod collector;
pub mod config;
pub mod delegate;
#[cfg(test)]
pub mod documented;
pub mod error;
pub mod exec;
pub mod fields;
pub mod invocation;
pub mod ipam;
pub mod json;
pub mod link_alias;
pub mod pool;
pub mod preview;
pub mod result;
pub mod skel;
pub mod version;
