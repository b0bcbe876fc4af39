//! Source NAT for what an attachment sends out of its network (`ipMasq`, behaviour 5.8).

use anyhow::{Context, Result};
use ipnet::IpNet;

use crate::cni::invocation::Attachment;
use crate::cni::result::Ip;
use crate::cni::skel::Call;
use crate::netfilter::{self, BackendName, Masquerade, Owner};
use crate::undo::Undo;

/// What is wrong with `word` as `ipMasqBackend`; empty leaves the choice open.
pub fn backend_problem(word: &str) -> Option<String> {
    let known = word.is_empty() || BackendName::parse(word).is_some();
    (!known).then(|| format!("\"{word}\" is neither \"iptables\" nor \"nftables\""))
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
    let name = netfilter::choose(backend)?;
    let owner = Owner::of(call);
    let addresses = networks(ips);
    undo.push("remove the masquerade rules", {
        let (owner, addresses) = (owner.clone(), addresses.clone());
        move || name.backend().remove_masquerade(&owner, &addresses)
    });
    name.backend()
        .ensure_masquerade(&owner, &Masquerade { addresses })
        .with_context(|| format!("masquerade with {} (ipMasq)", name.as_str()))
}

/// Removes what either backend has of the attachment. Without `known` addresses all of
/// the container's rules in this network go.
///
/// # Errors
/// When a rule is there and stays.
pub fn remove(call: &Call, known: &[IpNet]) -> Result<()> {
    let owner = Owner::of(call);
    netfilter::with_both(|backend| backend.remove_masquerade(&owner, known))
}

/// Checks that the rules for `ips` are there.
///
/// # Errors
/// Names the rule that is missing.
pub fn check(call: &Call, backend: Option<BackendName>, ips: &[Ip]) -> Result<()> {
    let addresses = networks(ips);
    netfilter::choose(backend)?
        .backend()
        .check_masquerade(&Owner::of(call), &Masquerade { addresses })
}

/// Removes the rules of attachments to `network` that are no longer valid.
///
/// # Errors
/// When a rule is there and stays.
pub fn collect(network: &str, valid: &[Attachment]) -> Result<()> {
    netfilter::with_both(|backend| backend.collect_masquerade(network, valid))
}

fn networks(ips: &[Ip]) -> Vec<IpNet> {
    ips.iter().map(|ip| ip.address).collect()
}
