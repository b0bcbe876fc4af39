//! The host's end of a container's veth pair: how it is called and recognised.
//!
//! Its name follows from the attachment, and its alias spells the attachment out. So
//! `ip -d link` explains itself, and DEL finds the pair when the container's namespace
//! is gone or nobody remembers the result of ADD; and GC finds those of containers that
//! are gone. A link without such an alias is never GC's.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::cni::collector::Collector;
use crate::cni::invocation::Attachment;
use crate::cni::link_alias;
use crate::cni::skel::Call;
use crate::net::link::{self, Link};
use crate::net::netlink::Netlink;
use crate::{fsutil, hash};

/// Which host end belongs to an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `veth` and 8 hexadecimal digits.
    pub name: String,
    /// Network, container and interface in words.
    pub alias: String,
}

impl Identity {
    /// The host end of the attachment that `call` is about.
    pub fn of(call: &Call) -> Self {
        Self::new(&call.config.network, &call.invocation.attachment)
    }

    /// The host end of `attachment` to `network`.
    pub fn new(network: &str, attachment: &Attachment) -> Self {
        let Attachment {
            container_id,
            ifname,
        } = attachment;
        let digits = hash::sha512_hex(&format!("{network}\0{container_id}\0{ifname}"), 8);
        Self {
            name: format!("veth{digits}"),
            alias: link_alias::of(network, attachment),
        }
    }

    /// Another name, for the case that a stranger has ours.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn other_name() -> Result<String> {
        Ok(format!("veth{:08x}", fsutil::random_u32()?))
    }

    /// Whether `name` is one that we or the reference give to a host end.
    pub fn is_name(name: &str) -> bool {
        name.strip_prefix("veth").is_some_and(|digits| {
            digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit())
        })
    }

    /// Whether `link` is this attachment's host end. One that has our name and no alias
    /// yet is what an ADD left that was killed in between.
    pub fn is(&self, link: &Link) -> bool {
        link.kind == "veth"
            && link.name == self.name
            && (link.alias == self.alias || link.alias.is_empty())
    }

    /// Deletes the pair if its host end is still there.
    ///
    /// # Errors
    /// When it is there and cannot be deleted.
    pub fn delete(&self, host: &Netlink) -> Result<()> {
        match link::by_name(host, &self.name)? {
            Some(found) if self.is(&found) => link::delete(host, found.index),
            _ => Ok(()),
        }
    }
}

/// GC of the links of a kind, such as the veth pairs, of attachments that are no longer
/// valid. What their other ends are doing does not matter: the runtime's list rules.
/// Answers which links these are.
pub fn collect(
    kind: &str,
    network: &str,
    valid: &[Attachment],
    collector: &mut Collector,
) -> Vec<Link> {
    let (host, links) = match look(kind) {
        Ok(found) => found,
        Err(error) => {
            collector.attempt(Err(error));
            return Vec::new();
        }
    };
    let stale = stale(network, valid, links);
    for link in &stale {
        let what = format!("link {} ({})", link.name, link.alias);
        collector.remove(&what, || link::delete(&host, link.index));
    }
    stale
}

/// GC of the host ends that do not say yet whose they are, for the ADD that made them was
/// killed: those called after an attachment whose address IPAM's GC has just freed.
pub fn collect_nameless(network: &str, collector: &mut Collector) {
    let dead: BTreeSet<String> = collector
        .freed()
        .iter()
        .map(|freed| Identity::new(network, &freed.attachment).name)
        .collect();
    if dead.is_empty() {
        return;
    }
    let (host, links) = match look("veth") {
        Ok(found) => found,
        Err(error) => return collector.attempt(Err(error)),
    };
    for link in links {
        if link.alias.is_empty() && dead.contains(&link.name) {
            let what = format!("link {}, left by an ADD that was killed", link.name);
            collector.remove(&what, || link::delete(&host, link.index));
        }
    }
}

/// All links of a kind.
fn look(kind: &str) -> Result<(Netlink, Vec<Link>)> {
    let host = Netlink::open()?;
    let links = link::all(&host, kind)?;
    Ok((host, links))
}

/// Those of `links` whose alias names this network and no valid attachment.
fn stale(network: &str, valid: &[Attachment], links: Vec<Link>) -> Vec<Link> {
    let start = link_alias::start(network);
    let kept: BTreeSet<String> = valid
        .iter()
        .map(|attachment| Identity::new(network, attachment).alias)
        .collect();
    let is_stale = |link: &Link| link.alias.starts_with(&start) && !kept.contains(&link.alias);
    links.into_iter().filter(is_stale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(network: &str, id: &str, ifname: &str) -> Identity {
        Identity::new(
            network,
            &Attachment {
                container_id: id.into(),
                ifname: ifname.into(),
            },
        )
    }

    #[test]
    fn names_follow_from_the_attachment() {
        let one = identity("net1", "c1", "eth0");
        assert_eq!(one, identity("net1", "c1", "eth0"));
        assert!(Identity::is_name(&one.name));
        assert!(Identity::is_name(&Identity::other_name().unwrap()));
        assert!(!Identity::is_name("veth0") && !Identity::is_name("vethport0001"));
        assert_eq!(one.alias, "cni network net1 interface eth0 container c1");
        for other in [
            identity("net", "1c1", "eth0"),
            identity("net1", "c1", "eth1"),
            identity("net2", "c1", "eth0"),
        ] {
            assert_ne!(one.name, other.name);
        }
    }

    #[test]
    fn only_what_says_that_it_is_this_networks_is_stale() {
        let attachment = |id: &str| Attachment {
            container_id: id.into(),
            ifname: "eth0".into(),
        };
        let long = "x".repeat(300);
        let links = [
            identity("n", "kept", "eth0").alias,
            identity("n", &long, "eth0").alias,
            identity("n", "gone", "eth0").alias,
            identity("n", "kept", "eth1").alias,
            identity("nn", "gone", "eth0").alias,
            String::new(),
            "cni network n".into(),
            "uplink of cni network n interface eth0 container gone".into(),
        ]
        .map(|alias| Link {
            alias,
            ..Link::default()
        });
        let valid = [attachment("kept"), attachment(&long)];
        let stale = stale("n", &valid, links.into());
        let aliases: Vec<&str> = stale.iter().map(|link| link.alias.as_str()).collect();
        assert_eq!(
            aliases,
            [
                "cni network n interface eth0 container gone",
                "cni network n interface eth1 container kept",
            ]
        );
    }

    #[test]
    fn aliases_fit_the_kernel() {
        assert_eq!(identity("n", &"x".repeat(300), "eth0").alias.len(), 254);
    }
}
