//! Packets taken through the rules of a namespace, for `cnitool doctor` only.

mod chain;
pub(super) mod evaluate;
mod legacy;
pub mod packet;
pub mod ruleset;
mod sets;
