//! The rules that belong to attachments, of both backends, for whoever looks at a node.
//! Nothing is changed.

use std::net::IpAddr;

use crate::cni::invocation::Attachment;
use crate::netfilter::iptables::Iptables;
use crate::netfilter::model::{BackendName, Mapping, Owner};
use crate::netfilter::nf_tables::identity::Tag;
use crate::netfilter::nftables;
use crate::shell::ShellCommand;

/// Every rule that says whose it is.
#[derive(Debug, Default)]
pub struct Listing {
    /// In the order in which packets meet them, each backend by itself.
    pub rules: Vec<OwnedRule>,
    /// Why there may be more than these.
    pub doubts: Vec<String>,
}

impl Listing {
    /// Names the owners of rules that tell nothing but an address.
    pub fn name_owners(&mut self, owners: &[(IpAddr, Owner)]) {
        for rule in &mut self.rules {
            let Purpose::Pass(address) = rule.purpose else {
                continue;
            };
            let known = owners.iter().find(|(of, _)| *of == address);
            if let Some((_, owner)) = known.filter(|_| rule.owner == Claim::default()) {
                rule.owner = Claim::from(owner);
            }
        }
    }
}

/// A rule of an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedRule {
    /// Whose it says that it is.
    pub owner: Claim,
    /// Who made it.
    pub backend: BackendName,
    /// The command that shows it and its neighbours.
    pub command: ShellCommand,
    /// The rule, in the words of its backend.
    pub text: String,
    /// What it is for.
    pub purpose: Purpose,
    /// The packets it has met, where it counts them. One of each connection comes to the
    /// rules that translate addresses.
    pub packets: Option<u64>,
}

/// What a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// What comes from this address leaves with the host's.
    Masquerade(IpAddr),
    /// A port of the host leads to this address.
    PortMap(Mapping, IpAddr),
    /// What comes from this address, and the answers to it, may pass.
    Pass(IpAddr),
    /// Something beside these, such as a check against spoofing.
    Other,
}

/// What a rule tells of its owner: the layouts of the backends differ in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Claim {
    /// Its network.
    pub network: Option<String>,
    /// Its container.
    pub container_id: Option<String>,
    /// Its interface in the container.
    pub ifname: Option<String>,
    /// All three, hashed: it decides where it is known.
    pub tag: Option<Tag>,
}

impl From<&Owner> for Claim {
    fn from(owner: &Owner) -> Self {
        Self {
            network: Some(owner.network.clone()),
            container_id: Some(owner.attachment.container_id.clone()),
            ifname: Some(owner.attachment.ifname.clone()),
            tag: None,
        }
    }
}

impl Claim {
    /// Whether this can be the attachment to `network`.
    pub fn fits(&self, network: &str, attachment: &Attachment) -> bool {
        if let Some(tag) = self.tag {
            return tag == Tag::new(network, attachment);
        }
        let is = |known: &Option<String>, name: &str| known.as_ref().is_none_or(|k| k == name);
        is(&self.network, network)
            && is(&self.container_id, &attachment.container_id)
            && is(&self.ifname, &attachment.ifname)
    }
}

/// Lists them all. What cannot be read is a doubt, and hides nothing else.
pub fn list() -> Listing {
    let mut listing = Listing::default();
    match nftables::listing::list() {
        Ok(rules) => listing.rules.extend(rules),
        Err(error) => listing.doubts.push(format!("rules of nftables: {error:#}")),
    }
    Iptables::from_environment().list(&mut listing);
    listing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_decides_before_names_do() {
        let eth0 = Attachment {
            container_id: "c".into(),
            ifname: "eth0".into(),
        };
        let mut claim = Claim {
            container_id: Some("c".into()),
            ..Claim::default()
        };
        assert!(claim.fits("a", &eth0) && claim.fits("b", &eth0));
        claim.tag = Some(Tag::new("a", &eth0));
        assert!(claim.fits("a", &eth0) && !claim.fits("b", &eth0));
        claim.tag = None;
        claim.container_id = Some("d".into());
        assert!(!claim.fits("a", &eth0));
    }
}
