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
pub mod portmap;
mod preview;
pub mod ptp;
mod rule_check;
mod shared;
pub mod r#static;
pub mod tuning;
mod veth;

use crate::cni::skel::Call;
use crate::netfilter::Owner;

/// The attachment that `call` is about, as the owner of its packet filter rules.
pub fn owner_of(call: &Call) -> Owner {
    Owner {
        network: call.config.network.clone(),
        attachment: call.invocation.attachment.clone(),
    }
}
