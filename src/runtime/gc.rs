//! Garbage collection: which attachments of a network are stale (docs/compatibility.md#3.8).

use std::path::PathBuf;

use anyhow::anyhow;

use super::cache::Contents;
use super::chain::Chain;
use super::network::Network;
use super::parameters::Parameters;
use crate::cni::invocation::Attachment;
use crate::net::netns;

/// What one collection is going to do.
#[derive(Debug, Default, PartialEq)]
pub struct Sweep {
    /// To be deleted through the chain.
    pub stale: Vec<Parameters>,
    /// To be kept by every plugin; whatever is not here goes.
    pub valid: Vec<Attachment>,
    /// Files of the cache that may be about living attachments which are not in `valid`:
    /// while there are any, no plugin is told what is.
    pub unknown: Vec<PathBuf>,
}

/// Which attachments a collection removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Those whose namespace is gone.
    Stale,
    /// All.
    Everything,
}

/// Divides the attachments of `network`; `None` when it has its GC disabled.
pub fn plan(network: &Network, contents: Contents, extent: Extent) -> Option<Sweep> {
    if network.disable_gc {
        return None;
    }
    let is_kept = |netns: &str| extent == Extent::Stale && netns::is_live(netns);
    let (valid, stale): (Vec<_>, Vec<_>) = contents
        .entries
        .into_iter()
        .filter(|entry| entry.network == network.name)
        .map(|entry| entry.parameters)
        .partition(|parameters| is_kept(&parameters.netns));
    // Whose a file is that cannot be read, only its name can tell.
    let prefix = format!("{}-", network.name);
    let is_ours = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().as_encoded_bytes();
        extent == Extent::Stale && name.starts_with(prefix.as_bytes())
    };
    let unknown = contents.unknown.into_iter().map(|broken| broken.file);
    Some(Sweep {
        stale,
        valid: valid.into_iter().map(|p| p.attachment).collect(),
        unknown: unknown.filter(is_ours).collect(),
    })
}

impl Sweep {
    /// Why no plugin may be told what is valid.
    pub fn doubt(&self) -> Option<anyhow::Error> {
        if self.unknown.is_empty() {
            return None;
        }
        let files: Vec<_> = self
            .unknown
            .iter()
            .map(|f| f.display().to_string())
            .collect();
        let error = anyhow!(
            "cannot tell whose {} is; remove the attachment with cnitool del, a file that is \
             nobody's by hand, or every attachment of the network with cnitool gc --all",
            files.join(", ")
        );
        Some(error.context("no plugin was asked to free what belongs to no attachment"))
    }
}

/// Deletes what is stale through the chain, and adds it to what is `removed`.
///
/// # Errors
/// All of them: one failure stops nothing else.
pub fn delete_stale(
    chain: &Chain<'_>,
    sweep: &Sweep,
    note: &dyn Fn(&str),
    removed: &mut Vec<Attachment>,
) -> Vec<anyhow::Error> {
    let mut errors = Vec::new();
    for parameters in &sweep.stale {
        let text = describe(parameters);
        match chain.del(parameters) {
            Ok(()) => {
                note(&format!("removed {text}"));
                removed.push(parameters.attachment.clone());
            }
            Err(error) => {
                let Attachment {
                    container_id,
                    ifname,
                } = &parameters.attachment;
                let sentence = format!("failed to delete stale attachment {container_id} {ifname}");
                errors.push(error.context(sentence));
            }
        }
    }
    errors
}

/// An attachment, for a person.
pub fn describe(parameters: &Parameters) -> String {
    let netns = if parameters.netns.is_empty() {
        "no namespace"
    } else {
        &parameters.netns
    };
    format!(
        "container {}, interface {}, {netns}",
        parameters.attachment.container_id, parameters.attachment.ifname
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cni::json::Object;
    use crate::runtime::cache::Entry;
    use crate::runtime::directory::Broken;

    fn network(keys: &str) -> Network {
        let text = format!(r#"{{"name": "n", {keys} "plugins": [{{"type": "a"}}]}}"#);
        Network::parse_list(Path::new("/n"), text.into_bytes()).unwrap()
    }

    fn contents() -> Contents {
        let entry = |network: &str, id: &str, netns: &str| {
            let attachment = Attachment {
                container_id: id.into(),
                ifname: "eth0".into(),
            };
            let (args, capability_args) = (Vec::new(), Object::new());
            Entry {
                network: network.into(),
                parameters: Parameters::new(attachment, netns.into(), args, capability_args)
                    .unwrap(),
            }
        };
        let unknown = |file: &str| Broken {
            file: file.into(),
            error: anyhow!("cut off"),
        };
        Contents {
            entries: vec![
                entry("n", "a", "/proc/self/ns/net"),
                entry("n", "b", "/nowhere"),
                entry("m", "c", "/nowhere"),
            ],
            unknown: vec![unknown("/results/n-x-eth0"), unknown("/results/nn-x-eth0")],
        }
    }

    fn ids(sweep: &Sweep) -> (Vec<&str>, Vec<&str>) {
        let stale = sweep
            .stale
            .iter()
            .map(|p| p.attachment.container_id.as_str());
        let valid = sweep.valid.iter().map(|a| a.container_id.as_str());
        (stale.collect(), valid.collect())
    }

    #[test]
    fn only_the_networks_own_dead_attachments_are_stale() {
        let sweep = plan(&network(""), contents(), Extent::Stale).unwrap();
        assert_eq!(ids(&sweep), (vec!["b"], vec!["a"]));
        assert_eq!(sweep.unknown, [Path::new("/results/n-x-eth0")]);
        assert!(sweep.doubt().is_some());
        let sweep = plan(&network(""), contents(), Extent::Everything).unwrap();
        assert_eq!(ids(&sweep), (vec!["a", "b"], vec![]));
        assert!(sweep.doubt().is_none());
        let disabled = network(r#""disableGC": true,"#);
        assert_eq!(plan(&disabled, contents(), Extent::Everything), None);
    }
}
