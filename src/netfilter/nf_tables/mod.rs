//! The client of the kernel's `nf_tables`, for every backend.

pub mod among;
pub mod decode;
pub mod encode;
pub mod identity;
pub mod nft_command;
pub mod query;
pub mod ruleset;
pub mod set;
pub mod transaction;
