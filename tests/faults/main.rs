//! What nodes do to plugins: kills, failing system calls, storms, full disks, damaged
//! files, flushed tables, half-deleted state. Every test states the invariant that it
//! checks, and prints a row of the invariant table on stderr: the fault, how often it was
//! injected, and how often the invariant was violated, which must be never.
//!
//! `cargo nextest run --test faults --no-capture` shows the table.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::panic,
    clippy::print_stderr,
    clippy::unused_self,
    reason = "a test that cannot do its work says so by panicking; doors are for the product"
)]

#[path = "../common/mod.rs"]
mod common;

mod bench;
mod disk;
mod errors;
mod hands;
mod kill;
mod lab;
mod storms;
mod table;
mod tables;
mod tracer;
