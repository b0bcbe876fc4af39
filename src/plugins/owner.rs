//! Whose packet filter rules a call is about.

use crate::cni::skel::Call;
use crate::netfilter::Owner;

/// The attachment that `call` is about, as the owner of its packet filter rules.
pub fn owner_of(call: &Call) -> Owner {
    Owner {
        network: call.config.network.clone(),
        attachment: call.invocation.attachment.clone(),
    }
}
