//! The CNI plugins, one folder each. Every one of them is a row in `applets.rs`.

pub mod bridge;
pub mod ipam;
pub mod loopback;
pub mod portmap;
pub mod r#static;
pub mod tuning;
