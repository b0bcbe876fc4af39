//! The packet filter's part of an attachment: masquerading and the check that the
//! container sends from its own hardware address (docs/compatibility.md#5.7, docs/compatibility.md#5.8).

use anyhow::{Context, Result};

use super::config::Settings;
use crate::cni::collector::Collector;
use crate::cni::invocation::Attachment;
use crate::cni::skel::Call;
use crate::failure::all;
use crate::net::link::Link;
use crate::net::mac::Mac;
use crate::netfilter::{Known, Owner, spoof_check};
use crate::plugins::container_end::Existing;
use crate::plugins::masquerade;
use crate::plugins::owner::owner_of;
use crate::undo::Undo;

/// Lets nothing but the container's own hardware address through its port. The rules are
/// there before the container can send.
///
/// # Errors
/// When the kernel refuses, or `mac` is no hardware address.
pub fn check_spoofing(call: &Call, host_end: &Link, mac: &str, undo: &mut Undo<'_>) -> Result<()> {
    let mac = required_mac(mac)?;
    let owner = owner_of(call);
    undo.push("remove the spoof check", {
        let owner = owner.clone();
        move || spoof_check::remove(&owner)
    });
    spoof_check::ensure(&owner, &host_end.name, mac)
        .context("check for spoofed hardware addresses (macspoofchk)")
}

/// The address to check for: without one there would be no check, silently.
fn required_mac(text: &str) -> Result<Mac> {
    Mac::parse(text).with_context(|| {
        format!("check for spoofed hardware addresses (macspoofchk): \"{text}\" is none")
    })
}

/// Removes what either backend has of the attachment, given what is `known` of it. Whether
/// there is any the packet filter tells, not the configuration: mostly a look-up or two.
///
/// # Errors
/// When a rule is there and stays.
pub fn remove(call: &Call, known: &Known) -> Result<()> {
    all([
        masquerade::remove(call, known),
        spoof_check::remove(&owner_of(call)),
    ])
}

/// The rules of an attachment that exists.
#[derive(Debug)]
pub struct Wanted {
    owner: Owner,
    masquerade: Option<masquerade::Wanted>,
    /// The host's end, and the only address that may send through it.
    spoof_check: Option<(String, Mac)>,
}

impl Wanted {
    /// Those that ADD has made for an attachment that is `there`.
    ///
    /// # Errors
    /// When no backend can be used, or the result has no hardware address to check for.
    pub fn new(call: &Call, settings: &Settings, there: &Existing) -> Result<Self> {
        let mut wanted = Self {
            owner: owner_of(call),
            masquerade: None,
            spoof_check: None,
        };
        if settings.masquerade {
            let rules = masquerade::Wanted::new(call, settings.backend, &there.own_ips())?;
            wanted.masquerade = Some(rules);
        }
        if settings.spoof_check {
            let end = there.result.interfaces.get(there.interface);
            let mac = required_mac(end.map(|end| end.mac.as_str()).unwrap_or_default())?;
            wanted.spoof_check = Some((there.host_end.name.clone(), mac));
        }
        Ok(wanted)
    }

    /// Whose they are.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Those that are not there, each as the command that would add it.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn missing(&self) -> Result<Vec<String>> {
        let mut missing = Vec::new();
        if let Some(masquerade) = &self.masquerade {
            missing.extend(masquerade.missing()?);
        }
        if let Some((host_end, mac)) = &self.spoof_check {
            missing.extend(spoof_check::missing(&self.owner, host_end, *mac)?);
        }
        Ok(missing)
    }

    /// Makes them, in place of any that are there.
    ///
    /// # Errors
    /// When the kernel refuses some; the others are made.
    pub fn ensure(&self) -> Result<()> {
        let mut done = Vec::new();
        if let Some((host_end, mac)) = &self.spoof_check {
            done.push(spoof_check::ensure(&self.owner, host_end, *mac));
        }
        if let Some(masquerade) = &self.masquerade {
            done.push(masquerade.ensure());
        }
        all(done)
    }
}

/// GC of the rules of attachments that are no longer valid, of both backends.
pub fn collect(network: &str, valid: &[Attachment], collector: &mut Collector) {
    masquerade::collect(network, valid, collector);
    collector.remove_together(
        || {
            let owners = spoof_check::stale(network, valid)?;
            let what = |owner| format!("spoof check of {owner} (nftables)");
            Ok(owners.into_iter().map(what).collect())
        },
        || spoof_check::collect(network, valid),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_hardware_address_is_no_reason_to_check_nothing() {
        assert!(required_mac("02:00:00:00:00:01").is_ok());
        for text in ["", "80:00:00:48:fe:80:00:00", "eth0"] {
            let error = required_mac(text).unwrap_err().to_string();
            assert!(
                error.contains("macspoofchk") && error.contains(text),
                "{error}"
            );
        }
    }
}
