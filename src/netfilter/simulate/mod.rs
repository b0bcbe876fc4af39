//! Packets taken through the rules of a namespace, for `cnitool doctor` only.

pub mod judge;
pub mod legacy;
pub mod sets;
pub mod walk;
