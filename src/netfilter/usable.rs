//! For STATUS: whether an ADD could make its rules. Nothing is made to find out, and only the
//! tools, tables and families that this ADD would use are looked at.

use anyhow::Result;

use crate::failure::{Failure, Kind};
use crate::net::privilege::require_root;
use crate::netfilter::choice::choose;
use crate::netfilter::iptables::Iptables;
use crate::netfilter::iptables::tool::{FAMILIES, Family, Unserved};
use crate::netfilter::model::{BackendName, Purpose};
use crate::netfilter::nf_tables::query;

/// The rules that an ADD is going to make.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// What they are for.
    pub purpose: Purpose,
    /// The backend that the configuration asks for, if it does.
    pub asked: Option<BackendName>,
    /// Whether containers have IPv4 addresses.
    pub ipv4: bool,
    /// Whether containers have IPv6 addresses.
    pub ipv6: bool,
}

impl Need {
    /// Whether the rules could be made.
    ///
    /// # Errors
    /// What is missing and what to do about it.
    pub fn check(self) -> Result<()> {
        require_root()?;
        let name = choose(self.asked)?;
        match name {
            BackendName::Nftables if query::is_usable() => Ok(()),
            BackendName::Nftables => {
                let sentence =
                    "the backend nftables that the configuration asks for cannot be used";
                Err(Failure::new(Kind::Unavailable, sentence).because(
                    "load the kernel module nf_tables and give the runtime CAP_NET_ADMIN, or \
                     choose the backend \"iptables\"",
                ))
            }
            BackendName::Iptables => self.check_iptables(),
        }
    }

    fn has(self, family: Family) -> bool {
        match family {
            Family::V4 => self.ipv4,
            Family::V6 => self.ipv6,
        }
    }

    fn check_iptables(self) -> Result<()> {
        let iptables = Iptables::from_environment();
        let Self { purpose, .. } = self;
        let served = FAMILIES
            .into_iter()
            .filter(|family| self.has(*family))
            .try_for_each(|family| iptables.check_serves(purpose, family));
        served.map_err(|error| {
            let sentence = "rules cannot be made with iptables";
            way_out(error, purpose).context(Failure::new(Kind::Unavailable, sentence))
        })
    }
}

/// `error` of making rules; with what to do about it, where the tools of iptables are missing
/// or cannot read their table.
pub fn way_out(error: anyhow::Error, purpose: Purpose) -> anyhow::Error {
    let found = error.chain().find_map(|cause| cause.downcast_ref());
    let Some(unserved) = found else {
        return error;
    };
    let instead = format!("set \"{}\": \"nftables\"", purpose.key());
    let advice = match unserved {
        Unserved::Missing { command, .. } => format!("install {command}, or {instead}"),
        Unserved::Unreadable { .. } => {
            format!("{instead}, as the table holds rules that iptables cannot read")
        }
    };
    error.context(advice)
}
