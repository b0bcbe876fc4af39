//! Port mappings and masquerading with real packets: every backend, every protocol, both
//! families, from every place a connection can come from.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unused_self,
    reason = "a test that cannot do its work says so by panicking; doors are for the product"
)]

mod attachments;
#[path = "../common/mod.rs"]
mod common;
mod destinations;
mod flows;
mod hairpin;
mod lab;
mod lifecycle;
mod localhost;
mod marks;
mod places;
mod registry;
mod restore;
