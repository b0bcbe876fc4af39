//! The table of backends, and the choice among them.

use anyhow::{Context, Result};

use crate::failure::{Failure, Kind, all};
use crate::net::privilege::require_root;
use crate::netfilter::backend::Backend;
use crate::netfilter::iptables::Iptables;
use crate::netfilter::model::BackendName;
use crate::netfilter::nf_tables::query;
use crate::netfilter::nf_tables::ruleset::Family;
use crate::netfilter::nftables::{Nftables, understands};

pub use crate::netfilter::nftables::condition::UNDERSTOOD;

impl BackendName {
    /// Whether this host has what the backend needs.
    pub fn is_usable(self) -> bool {
        match self {
            Self::Iptables => Iptables::from_environment().is_usable(),
            Self::Nftables => query::is_usable(),
        }
    }

    /// Whether the backend can keep `conditions` of port mappings in tables of `family`; if
    /// nftables cannot, [`UNDERSTOOD`] says what it can. Those for iptables are its tools' to
    /// judge.
    pub fn understands(self, family: Family, conditions: &[String]) -> bool {
        match self {
            Self::Iptables => true,
            Self::Nftables => understands(family, conditions),
        }
    }

    /// The backend itself.
    pub fn backend(self) -> Box<dyn Backend> {
        match self {
            Self::Iptables => Box::new(Iptables::from_environment()),
            Self::Nftables => Box::new(Nftables),
        }
    }
}

/// The backend to use: the one asked for, else iptables, unless only nftables can be used
/// here. The reference chooses the same, so that changing over surprises nobody.
///
/// # Errors
/// When neither can be used.
pub fn choose(asked: Option<BackendName>) -> Result<BackendName> {
    match asked {
        Some(name) => Ok(name),
        None if BackendName::Iptables.is_usable() => Ok(BackendName::Iptables),
        None if BackendName::Nftables.is_usable() => Ok(BackendName::Nftables),
        None => {
            require_root()?;
            let sentence = "this host has neither iptables nor nftables";
            Err(Failure::new(Kind::Refused, sentence).because(
                "install iptables (iptables-restore must be in PATH), or load the kernel module nf_tables",
            ))
        }
    }
}

/// In the order in which they are looked at: nothing has to be run for the first.
pub const BACKENDS: [BackendName; 2] = [BackendName::Nftables, BackendName::Iptables];

/// Runs `work` with both backends: what a container left may be in either. All errors
/// are reported, the first in front.
///
/// The tools of iptables come first. As they end they wait for the kernel to destroy what was
/// removed by then, while nobody can remove more; we do not wait ([`deferred_close`](crate::netfilter::deferred_close)).
///
/// # Errors
/// Those of `work`.
pub fn with_both(work: impl Fn(&dyn Backend) -> Result<()>) -> Result<()> {
    let done = [BackendName::Iptables, BackendName::Nftables].map(|name| {
        work(name.backend().as_ref()).with_context(|| format!("clean up {} rules", name.as_str()))
    });
    all(done)
}
