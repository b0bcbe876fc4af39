//! The client of the kernel's `nf_tables`, for every backend.

pub mod among;
pub mod anonymous_set;
pub mod change;
pub mod decode;
pub mod encode;
pub mod found;
pub mod identity;
pub mod message;
pub mod nft_command;
pub mod query;
pub mod rule;
pub mod ruleset;
pub mod set;
pub mod transaction;
