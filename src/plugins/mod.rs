//! The CNI plugins, one folder each. Every one of them is a row in `applets.rs`. What
//! several of them share stands beside the folders.

pub mod bandwidth;
pub mod bridge;
mod container_end;
pub mod firewall;
pub mod flannel;
pub mod host_end;
pub mod ipam;
mod layer3;
pub mod loopback;
mod masquerade;
mod outlook;
mod owner;
pub mod portmap;
mod preview;
pub mod ptp;
mod rule_check;
mod sample;
mod shared;
pub mod r#static;
pub mod tuning;
mod veth;
