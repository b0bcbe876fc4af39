//! Garbage collection: which attachments of a network are stale (behaviour 3.8).

use std::path::Path;

use nix::sys::statfs::{FsType, statfs};

use super::cache::Entry;
use super::chain::Chain;
use super::parameters::Parameters;
use crate::cni::invocation::Attachment;

/// What one collection is going to do.
#[derive(Debug, PartialEq)]
pub struct Sweep {
    /// To be deleted through the chain.
    pub stale: Vec<Parameters>,
    /// To be kept by every plugin; whatever is not here goes.
    pub valid: Vec<Attachment>,
}

/// Divides the attachments of `network` by whether their namespace `is_live`.
pub fn plan(network: &str, entries: Vec<Entry>, is_live: impl Fn(&str) -> bool) -> Sweep {
    let (valid, stale): (Vec<_>, Vec<_>) = entries
        .into_iter()
        .filter(|entry| entry.network == network)
        .map(|entry| entry.parameters)
        .partition(|parameters| is_live(&parameters.netns));
    Sweep {
        stale,
        valid: valid.into_iter().map(|p| p.attachment).collect(),
    }
}

/// Deletes what is stale and tells every plugin what is valid.
///
/// # Errors
/// All of them: one failure stops nothing else.
pub fn collect(chain: &Chain<'_>, sweep: &Sweep, note: &dyn Fn(&str)) -> Vec<anyhow::Error> {
    let mut errors = Vec::new();
    for parameters in &sweep.stale {
        let text = describe(parameters);
        match chain.del(parameters) {
            Ok(()) => note(&format!("removed {text}")),
            Err(error) => errors.push(error.context(format!("remove {text}"))),
        }
    }
    errors.extend(chain.gc(&sweep.valid));
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

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS: FsType = FsType(0x6e73_6673);

/// Whether `netns` may be a living namespace. Only what is certainly none counts as
/// gone: the path does not exist, or is a plain file that the namespace was mounted on.
pub fn is_live(netns: &str) -> bool {
    if netns.is_empty() {
        return true;
    }
    match statfs(Path::new(netns)) {
        Ok(filesystem) => filesystem.filesystem_type() == NSFS,
        Err(errno) => !matches!(
            errno,
            nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::json::Object;

    fn entry(network: &str, id: &str, netns: &str) -> Entry {
        let attachment = Attachment {
            container_id: id.into(),
            ifname: "eth0".into(),
        };
        Entry {
            network: network.into(),
            parameters: Parameters::new(attachment, netns.into(), Vec::new(), Object::new())
                .unwrap(),
        }
    }

    #[test]
    fn only_the_networks_own_dead_attachments_are_stale() {
        let entries = vec![
            entry("n", "a", "live"),
            entry("n", "b", "dead"),
            entry("m", "c", "dead"),
        ];
        let sweep = plan("n", entries, |netns| netns == "live");
        assert_eq!(sweep.stale.len(), 1);
        assert_eq!(sweep.stale[0].attachment.container_id, "b");
        assert_eq!(sweep.valid.len(), 1);
        assert_eq!(sweep.valid[0].container_id, "a");
    }

    #[test]
    fn doubt_means_live() {
        assert!(is_live("/proc/self/ns/net"));
        assert!(is_live(""));
        assert!(!is_live("/nowhere"));
        assert!(!is_live("/proc/self/status/x"));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!is_live(file.path().to_str().unwrap()));
    }
}
