//! What the runtime says about one attachment beside the network's configuration
//! (specification section 3, "Attachment Parameters").

use std::path::{Component, Path, PathBuf};

use anyhow::Result;

use crate::cni::error::{Code, detailed};
use crate::cni::invocation::{Attachment, check_container_id, check_ifname};
use crate::cni::json::Object;
use crate::hash::sha512_hex;

/// The parameters of one attachment; id and interface name are valid.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// Container and interface.
    pub attachment: Attachment,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_ARGS`, in order.
    pub args: Vec<(String, String)>,
    /// For `runtimeConfig`, by capability.
    pub capability_args: Object,
}

impl Parameters {
    /// Checks the container id and the interface name.
    ///
    /// # Errors
    /// Code 4.
    pub fn new(
        attachment: Attachment,
        netns: String,
        args: Vec<(String, String)>,
        capability_args: Object,
    ) -> Result<Self> {
        check_container_id(&attachment.container_id)?;
        check_ifname(&attachment.ifname)?;
        Ok(Self {
            attachment,
            netns,
            args,
            capability_args,
        })
    }

    /// `CNI_ARGS` on the wire.
    pub fn args_text(&self) -> String {
        let pairs: Vec<String> = self.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
        pairs.join(";")
    }
}

/// `K=V;K=V` as pairs. A value may contain `=`, and empty pairs are skipped.
///
/// # Errors
/// Code 4 naming a pair without key or value.
pub fn parse_args(text: &str) -> Result<Vec<(String, String)>> {
    text.split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.is_empty() => {
                Ok((key.to_owned(), value.to_owned()))
            }
            _ => Err(detailed(
                Code::Environment,
                format!("invalid CNI_ARGS pair {pair:?}"),
                "CNI_ARGS is a list of KEY=VALUE, separated by semicolons",
            )),
        })
        .collect()
}

/// The container id that stands for a namespace when none is given: that of the
/// reference's cnitool. `netns` must be absolute and clean.
pub fn container_id(netns: &str) -> String {
    format!("cnitool-{}", sha512_hex(netns, 20))
}

/// `path` without `.`, `..` and double slashes, by its text alone: no symlink is followed.
pub fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                cleaned.pop();
            }
            other => cleaned.push(other),
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_reference() {
        assert_eq!(
            container_id("/run/netns/c1"),
            "cnitool-20b4ff582526573bbe7d"
        );
    }

    #[test]
    fn paths_are_cleaned_by_text() {
        for (path, cleaned) in [
            ("/run//netns/./c1/", "/run/netns/c1"),
            ("/run/x/../netns/c1", "/run/netns/c1"),
            ("/../..", "/"),
        ] {
            assert_eq!(clean(Path::new(path)), Path::new(cleaned));
        }
    }

    #[test]
    fn args_are_pairs() {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(
            parse_args("A=1;B=x=y;").unwrap(),
            [pair("A", "1"), pair("B", "x=y")]
        );
        assert!(parse_args("").unwrap().is_empty());
        for text in ["A", "=1", "A=", "A=1;B"] {
            assert!(parse_args(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_checked() {
        let parameters = |id: &str, ifname: &str| {
            let attachment = Attachment {
                container_id: id.into(),
                ifname: ifname.into(),
            };
            Parameters::new(attachment, String::new(), Vec::new(), Object::new())
        };
        assert!(parameters("c", "eth0").is_ok());
        for (id, ifname) in [("", "eth0"), ("../c", "eth0"), ("c", ""), ("c", "a/b")] {
            assert!(parameters(id, ifname).is_err());
        }
    }
}
