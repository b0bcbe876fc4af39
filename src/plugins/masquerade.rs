//! Source NAT for what an attachment sends out of its network (`ipMasq`, docs/compatibility.md#5.8).

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde_json::Value;

use crate::cni::collector::{Collector, Freed};
use crate::cni::invocation::Attachment;
use crate::cni::json::{self, Object, Problem};
use crate::cni::result::Ip;
use crate::cni::skel::Call;
use crate::journal::step;
use crate::netfilter::{self, BackendName, Known, Masquerade, Owner, Purpose, way_out};
use crate::plugins::owner::owner_of;
use crate::undo::Undo;

/// What is wrong with `word` as `ipMasqBackend`; empty leaves the choice open.
pub fn backend_problem(word: &str) -> Option<Problem> {
    let known = word.is_empty() || BackendName::parse(word).is_some();
    (!known).then(|| {
        let message = format!("\"{word}\" is neither \"iptables\" nor \"nftables\"");
        Problem::new("ipMasqBackend", message).told_as(format!("unknown ipmasq backend {word:?}"))
    })
}

/// The rules of an attachment.
#[derive(Debug, Clone)]
pub struct Wanted {
    owner: Owner,
    backend: BackendName,
    rules: Masquerade,
}

impl Wanted {
    /// Those for its addresses.
    ///
    /// # Errors
    /// When no backend can be used.
    pub fn new(call: &Call, backend: Option<BackendName>, ips: &[Ip]) -> Result<Self> {
        let addresses = ips.iter().map(|ip| ip.address).collect();
        Ok(Self {
            owner: owner_of(call),
            backend: netfilter::choose(backend)?,
            rules: Masquerade { addresses },
        })
    }

    /// Those that are not there, each as the command that would add it.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn missing(&self) -> Result<Vec<String>> {
        self.backend
            .backend()
            .missing_masquerade(&self.owner, &self.rules)
    }

    /// Makes them, in place of any that are there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ensure(&self) -> Result<()> {
        let ensure = || {
            self.backend
                .backend()
                .ensure_masquerade(&self.owner, &self.rules)
        };
        step("masquerade", ensure)
            .map_err(|error| way_out(error, Purpose::Masquerade))
            .with_context(|| format!("masquerade with {} (ipMasq)", self.backend.as_str()))
    }
}

/// Masquerades what the addresses send out of their networks.
///
/// # Errors
/// When no backend can be used, or the one chosen refuses.
pub fn add(
    call: &Call,
    backend: Option<BackendName>,
    ips: &[Ip],
    undo: &mut Undo<'_>,
) -> Result<()> {
    let wanted = Wanted::new(call, backend, ips)?;
    undo.push("remove the masquerade rules", {
        let Wanted {
            owner,
            backend,
            rules,
        } = wanted.clone();
        move || {
            backend
                .backend()
                .remove_masquerade(&owner, &Known::only(&rules.addresses))
        }
    });
    wanted.ensure()
}

/// Removes what either backend has of the attachment, given what is `known` of it.
///
/// # Errors
/// When a rule is there and stays.
pub fn remove(call: &Call, known: &Known) -> Result<()> {
    let owner = owner_of(call);
    step("remove masquerade rules", || {
        netfilter::with_both(|backend| backend.remove_masquerade(&owner, known))
    })
}

/// GC of the rules of attachments that are no longer valid, of both backends.
pub fn collect(network: &str, valid: &[Attachment], collector: &mut Collector) {
    for name in netfilter::BACKENDS {
        let backend = name.backend();
        collector.remove_together(
            || {
                let owners = backend.stale_masquerade(network, valid)?;
                let what = |owner| format!("masquerade rules of {owner} ({})", name.as_str());
                Ok(owners.into_iter().map(what).collect())
            },
            || backend.collect_masquerade(network, valid),
        );
    }
    collect_interfaces(network, valid, collector);
}

/// GC of the rules of interfaces whose container keeps another one in this network: those of
/// iptables say only which container, and which address.
fn collect_interfaces(network: &str, valid: &[Attachment], collector: &mut Collector) {
    let lives = |freed: &Freed| {
        let mut kept = valid.iter();
        kept.any(|kept| kept.container_id == freed.attachment.container_id)
    };
    let freed: Vec<Freed> = collector
        .freed()
        .iter()
        .filter(|freed| lives(freed))
        .cloned()
        .collect();
    let iptables = BackendName::Iptables.backend();
    for Freed {
        attachment,
        address,
    } in freed
    {
        let owner = Owner {
            network: network.to_owned(),
            attachment,
        };
        let known = IpNet::from(address);
        collector.remove_together(
            || {
                let is_there = iptables.masquerades(&owner, known)?;
                let what = format!("masquerade rules of {owner} (iptables)");
                Ok(is_there.then_some(what).into_iter().collect())
            },
            || iptables.remove_masquerade(&owner, &Known::only(&[known])),
        );
    }
}

/// Whether a configuration asks for masquerading (`ipMasq`), however wrong the rest of it is.
pub fn is_asked_for(document: &Object) -> bool {
    json::take(&mut document.clone(), "ipMasq") == Some(Value::Bool(true))
}
