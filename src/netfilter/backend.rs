//! What every backend can do.

use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;

use crate::cni::invocation::Attachment;
use crate::netfilter::known::Known;
use crate::netfilter::model::{Firewall, Masquerade, Owner, PortMaps};

/// One way to make the kernel filter and translate packets.
pub trait Backend: Sync {
    /// Makes exactly these rules exist for `owner`, in front of older ones; those it had
    /// before are replaced.
    ///
    /// # Errors
    /// When the kernel or the tool refuses; nothing is changed then.
    fn ensure_masquerade(&self, owner: &Owner, wanted: &Masquerade) -> Result<()>;

    /// Removes the owner's masquerade rules, as far as they can be told from those of the
    /// container's other attachments to the network by what is `known`. None there is no
    /// error, and neither is a backend that this host does not have.
    ///
    /// # Errors
    /// When a rule is there and stays.
    fn remove_masquerade(&self, owner: &Owner, known: &Known) -> Result<()>;

    /// The rules of `wanted` that are not there, each as the command that would add it.
    ///
    /// # Errors
    /// When the kernel or the tool refuses to tell.
    fn missing_masquerade(&self, owner: &Owner, wanted: &Masquerade) -> Result<Vec<String>>;

    /// Whose masquerade rules [`Backend::collect_masquerade`] would remove, in words.
    ///
    /// # Errors
    /// When the rules cannot be read.
    fn stale_masquerade(&self, network: &str, valid: &[Attachment]) -> Result<Vec<String>>;

    /// Removes the masquerade rules of `network` whose attachment is not in `valid`.
    ///
    /// # Errors
    /// When a rule is there and stays.
    fn collect_masquerade(&self, network: &str, valid: &[Attachment]) -> Result<()>;

    /// Whether the owner's container has a masquerade rule of `address` that does not say which
    /// of the container's interfaces it is for. Only rules of iptables are like that.
    ///
    /// # Errors
    /// When the rules cannot be read.
    fn masquerades(&self, _owner: &Owner, _address: IpNet) -> Result<bool> {
        Ok(false)
    }

    /// As [`Backend::ensure_masquerade`].
    ///
    /// # Errors
    /// As [`Backend::ensure_masquerade`].
    fn ensure_port_maps(&self, owner: &Owner, wanted: &PortMaps) -> Result<()>;

    /// As [`Backend::remove_masquerade`].
    ///
    /// # Errors
    /// As [`Backend::remove_masquerade`].
    fn remove_port_maps(&self, owner: &Owner, known: &Known) -> Result<()>;

    /// As [`Backend::missing_masquerade`].
    ///
    /// # Errors
    /// As [`Backend::missing_masquerade`].
    fn missing_port_maps(&self, owner: &Owner, wanted: &PortMaps) -> Result<Vec<String>>;

    /// As [`Backend::stale_masquerade`].
    ///
    /// # Errors
    /// As [`Backend::stale_masquerade`].
    fn stale_port_maps(&self, network: &str, valid: &[Attachment]) -> Result<Vec<String>>;

    /// As [`Backend::collect_masquerade`].
    ///
    /// # Errors
    /// As [`Backend::collect_masquerade`].
    fn collect_port_maps(&self, network: &str, valid: &[Attachment]) -> Result<()>;

    /// Gives up ports of the host to mappings that the owner has just been given in another
    /// backend: which of two mappings a packet meets first depends on which backend was
    /// used first on this host, and the newest is to have it. Answers what the operator
    /// should know, in sentences.
    ///
    /// # Errors
    /// When a mapping is there and stays.
    fn yield_ports(&self, owner: &Owner, wanted: &PortMaps) -> Result<Vec<String>>;

    /// The IPv4 addresses that mappings lead to, whoever made them.
    ///
    /// # Errors
    /// When the rules cannot be read.
    fn mapped_ipv4(&self) -> Result<Vec<IpAddr>>;

    /// As [`Backend::ensure_masquerade`]. The rules of the bridge, and iptables' rules of
    /// an address, are shared by all who need them.
    ///
    /// # Errors
    /// As [`Backend::ensure_masquerade`].
    fn ensure_firewall(&self, owner: &Owner, wanted: &Firewall) -> Result<()>;

    /// As [`Backend::remove_masquerade`], and the rules of bridges that are gone with them.
    /// iptables' rules do not say whose they are: only those of `known` addresses go.
    ///
    /// # Errors
    /// As [`Backend::remove_masquerade`].
    fn remove_firewall(&self, owner: &Owner, known: &[IpAddr]) -> Result<()>;

    /// As [`Backend::missing_masquerade`].
    ///
    /// # Errors
    /// As [`Backend::missing_masquerade`].
    fn missing_firewall(&self, owner: &Owner, wanted: &Firewall) -> Result<Vec<String>>;

    /// As [`Backend::stale_masquerade`]: owners, where the rules name them, and bridges
    /// that are gone.
    ///
    /// # Errors
    /// As [`Backend::stale_masquerade`].
    fn stale_firewall(&self, network: &str, valid: &[Attachment]) -> Result<Vec<String>>;

    /// As [`Backend::collect_masquerade`].
    ///
    /// # Errors
    /// As [`Backend::collect_masquerade`].
    fn collect_firewall(&self, network: &str, valid: &[Attachment]) -> Result<()>;

    /// Fails unless nothing is missing, for tests.
    #[cfg(test)]
    fn check_masquerade(&self, owner: &Owner, wanted: &Masquerade) -> Result<()> {
        none_missing(&self.missing_masquerade(owner, wanted)?)
    }

    /// As [`Backend::check_masquerade`].
    #[cfg(test)]
    fn check_port_maps(&self, owner: &Owner, wanted: &PortMaps) -> Result<()> {
        none_missing(&self.missing_port_maps(owner, wanted)?)
    }
}

/// Fails with all that is `missing`, for tests.
#[cfg(test)]
pub fn none_missing(missing: &[String]) -> Result<()> {
    anyhow::ensure!(missing.is_empty(), "{}", missing.join("\n"));
    Ok(())
}
