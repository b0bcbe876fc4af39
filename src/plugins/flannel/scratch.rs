//! What DEL gives to the delegate: the configuration that ADD gave it, in a file of the
//! reference's format and name (docs/compatibility.md#10.4), so that either implementation can undo the
//! other's ADD. By the time of DEL the daemon may have got another subnet.
//!
//! The reference names the file after the container alone: a second attachment takes the
//! file of the first. Here the file also says whose it is, in a key that plugins pass over,
//! and a second attachment gets a file of its own.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cni::collector::Collector;
use crate::cni::error::{Code, coded};
use crate::cni::invocation::{Attachment, check_file_name};
use crate::cni::json::{self, Object};
use crate::cni::skel::Call;
use crate::undo::Undo;
use crate::{fsutil, log};

const FILE_MODE: u32 = 0o600;
/// The key that says for which interface of the container a file is.
const IFNAME: &str = "cnibox/ifname";
/// Between container, network and interface in the name of a file: none can contain it.
const SEPARATOR: char = ':';

/// The file of one attachment.
#[derive(Debug, Clone)]
pub struct Scratch {
    /// Where that is.
    pub path: PathBuf,
    ifname: String,
    /// The delegate's configuration, if there is one to be read.
    pub kept: Option<Object>,
}

impl Scratch {
    /// The file of the attachment that `call` is about, in `dir`. One that is damaged or
    /// cannot be read keeps nothing, which is said on stderr.
    pub fn of(call: &Call, dir: &Path) -> Self {
        let Attachment {
            container_id,
            ifname,
        } = &call.invocation.attachment;
        let shared = dir.join(container_id);
        let network = &call.config.network;
        let own = dir.join(format!(
            "{container_id}{SEPARATOR}{network}{SEPARATOR}{ifname}"
        ));
        let is_own = own.symlink_metadata().is_ok();
        let mut kept = read(if is_own { &own } else { &shared });
        let is_others = kept.as_ref().is_some_and(|kept| {
            let named = |key, name: &str| text(kept, key).is_none_or(|found| found == name);
            !named("name", network) || !named(IFNAME, ifname)
        });
        if !is_own && is_others {
            kept = None;
        }
        Self {
            path: if is_own || is_others { own } else { shared },
            ifname: ifname.clone(),
            kept,
        }
    }

    /// Keeps `delegated` in the file of the attachment that `call` is about, on disk when
    /// this returns. What was kept before comes back with `undo`: it may be that of an
    /// earlier ADD, whose interface is why this one fails.
    ///
    /// # Errors
    /// Code 5 naming the file, or 4 where its name would be too long.
    pub fn keep(call: &Call, dir: &Path, delegated: &Object, undo: &mut Undo<'_>) -> Result<()> {
        // Which file it is follows from what others have written.
        let mut kept = None;
        let written = alone_in(dir, || {
            let scratch = kept.insert(Self::of(call, dir));
            scratch.write(delegated)
        });
        let written = kept.as_ref().map_or(Ok(()), Self::check_name).and(written);
        let Some(scratch) = kept else { return written };
        let dir = dir.to_owned();
        // In any case: what failed may be to make it last.
        undo.push(
            format!("remove {}", scratch.path.display()),
            move || match &scratch.kept {
                Some(earlier) => alone_in(&dir, || scratch.write(earlier)),
                None => scratch.remove(),
            },
        );
        written
    }

    fn check_name(&self) -> Result<()> {
        let name = self.path.file_name().unwrap_or_default();
        check_file_name(&name.to_string_lossy())
    }

    fn write(&self, delegated: &Object) -> Result<()> {
        let mut document = delegated.clone();
        document.insert(IFNAME.into(), self.ifname.as_str().into());
        let bytes = json::compact(&document)?;
        fsutil::replace_durably(&self.path, FILE_MODE, &bytes)
    }

    /// Removes the file; there being none is no error.
    ///
    /// # Errors
    /// Code 5 naming the file.
    pub fn remove(&self) -> Result<()> {
        fsutil::remove_and_sweep(&self.path)
            .context(coded(Code::Io, "remove the delegate's configuration"))
    }
}

/// Writes into `dir`, and nobody else does meanwhile.
fn alone_in<T>(dir: &Path, write: impl FnOnce() -> Result<T>) -> Result<T> {
    fsutil::write_private(&dir.join("any"), write)
        .context(coded(Code::Io, "keep the delegate's configuration for DEL"))
}

/// The delegate's configuration in the file at `path`; it names network and delegate.
fn read(path: &Path) -> Option<Object> {
    let read = || -> Result<Option<Object>> {
        let Some(bytes) = fsutil::read(path)? else {
            return Ok(None);
        };
        let object = json::parse_object(&path.display().to_string(), &bytes)?;
        for key in ["name", "type"] {
            ensure!(
                text(&object, key).is_some_and(|text| !text.is_empty()),
                "{} has no \"{key}\"",
                path.display()
            );
        }
        Ok(Some(object))
    };
    read().unwrap_or_else(|error| {
        if !fsutil::cannot_exist(&error) {
            log::warn(&format!("passed over: {error:#}"));
        }
        None
    })
}

/// The string at `key`, which is spelt as we write it.
fn text<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str)
}

/// GC of the files in `dir` of attachments to `network` that are not `valid`. Where the
/// interface is not told, any attachment of the container keeps the file.
pub fn collect(dir: &Path, network: &str, valid: &[Attachment], collector: &mut Collector) {
    let names = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return,
        entries => entries.and_then(|entries| {
            let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
            names.collect::<std::io::Result<Vec<_>>>()
        }),
    };
    let names = names.with_context(|| coded(Code::Io, format!("list {}", dir.display())));
    let mut names = match names {
        Ok(names) => names,
        Err(error) => return collector.attempt(Err(error)),
    };
    names.sort();
    for name in names.iter().filter_map(|name| name.to_str()) {
        let path = dir.join(name);
        // What is damaged does not say whose it is; DEL of its container removes it.
        let Some(kept) = (!fsutil::is_aside(name))
            .then(|| read(&path))
            .flatten()
            .filter(|kept| text(kept, "name") == Some(network))
        else {
            continue;
        };
        let container = name.split(SEPARATOR).next().unwrap_or(name);
        let ifname = text(&kept, IFNAME);
        let is_valid = valid.iter().any(|attachment| {
            attachment.container_id == container
                && ifname.is_none_or(|ifname| ifname == attachment.ifname)
        });
        if !is_valid {
            let what = format!("delegate's configuration {}", path.display());
            collector.remove(&what, || {
                fsutil::remove(&path)
                    .map(drop)
                    .context(coded(Code::Io, "remove the delegate's configuration"))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cni::collector::Run;

    fn call(network: &str, ifname: &str) -> Call {
        let mut call = Call::to_add(&json!({"name": network}).to_string(), "").unwrap();
        call.invocation.attachment.ifname = ifname.into();
        call
    }

    fn document(network: &str, mtu: u32) -> Object {
        json!({"name": network, "type": "bridge", "mtu": mtu})
            .as_object()
            .unwrap()
            .clone()
    }

    fn files(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    fn keep(call: &Call, dir: &Path, mtu: u32) {
        let mut undo = Undo::default();
        let document = document(&call.config.network, mtu);
        Scratch::keep(call, dir, &document, &mut undo).unwrap();
        undo.commit();
    }

    fn kept_mtu(call: &Call, dir: &Path) -> Option<Value> {
        Scratch::of(call, dir).kept?.get("mtu").cloned()
    }

    #[test]
    fn every_attachment_has_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let dir = &dir.path().join("flannel");
        let all = [call("n", "eth0"), call("n", "eth1"), call("m", "eth0")];
        // The last is of another network, but of the first one's name.
        let mtus = [1, 2, 3];
        for (call, mtu) in all.iter().zip(mtus) {
            assert_eq!(kept_mtu(call, dir), None);
            keep(call, dir, mtu);
        }
        assert_eq!(files(dir), ["c1", "c1:m:eth0", "c1:n:eth1"]);
        let shared = std::fs::read_to_string(dir.join("c1")).unwrap();
        assert_eq!(
            shared, r#"{"cnibox/ifname":"eth0","mtu":1,"name":"n","type":"bridge"}"#,
            "the reference's format, and our key"
        );
        for (call, mtu) in all.iter().zip(mtus) {
            assert_eq!(kept_mtu(call, dir), Some(json!(mtu)));
        }
        Scratch::of(&all[1], dir).remove().unwrap();
        assert_eq!(files(dir), ["c1", "c1:m:eth0"]);
    }

    #[test]
    fn two_networks_at_once_have_their_own() {
        let dir = tempfile::tempdir().unwrap();
        for turn in 0..20 {
            let dir = &dir.path().join(turn.to_string());
            std::thread::scope(|scope| {
                for network in ["m", "n"] {
                    scope.spawn(move || keep(&call(network, "eth0"), dir, 1));
                }
            });
            assert_eq!(files(dir).len(), 2);
            for network in ["m", "n"] {
                assert_eq!(kept_mtu(&call(network, "eth0"), dir), Some(json!(1)));
            }
        }
    }

    #[test]
    fn a_failure_brings_back_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let call = call("n", "eth0");
        for expected in [None, Some(json!(1))] {
            let mut undo = Undo::default();
            Scratch::keep(&call, dir.path(), &document("n", 9), &mut undo).unwrap();
            assert_eq!(kept_mtu(&call, dir.path()), Some(json!(9)));
            drop(undo);
            assert_eq!(kept_mtu(&call, dir.path()), expected);
            keep(&call, dir.path(), 1);
        }
    }

    #[test]
    fn the_references_files_are_of_any_interface_of_the_network() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| std::fs::write(dir.path().join("c1"), text).unwrap();
        write(r#"{"name":"n","type":"bridge","mtu":1}"#);
        assert_eq!(kept_mtu(&call("n", "eth7"), dir.path()), Some(json!(1)));
        assert_eq!(kept_mtu(&call("m", "eth7"), dir.path()), None);
        for damaged in ["", "{", "[]", r#"{"name":"n"}"#, r#"{"type":"bridge"}"#] {
            write(damaged);
            assert_eq!(kept_mtu(&call("n", "eth0"), dir.path()), None);
            Scratch::of(&call("n", "eth0"), dir.path())
                .remove()
                .unwrap();
            assert_eq!(files(dir.path()), [] as [String; 0]);
        }
    }

    #[test]
    fn gc_keeps_what_is_valid_of_others_or_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("live", r#"{"name":"n","type":"b"}"#),
            ("dead", r#"{"name":"n","type":"b"}"#),
            ("c1", r#"{"name":"n","type":"b","cnibox/ifname":"eth0"}"#),
            (
                "c1:n:eth1",
                r#"{"name":"n","type":"b","cnibox/ifname":"eth1"}"#,
            ),
            ("other", r#"{"name":"m","type":"b"}"#),
            ("damaged", ""),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let attachment = |container_id: &str, ifname: &str| Attachment {
            container_id: container_id.into(),
            ifname: ifname.into(),
        };
        let valid = [attachment("live", "eth5"), attachment("c1", "eth0")];
        let mut collector = Collector::new(Run::Real);
        collect(dir.path(), "n", &valid, &mut collector);
        collector.finish().unwrap();
        assert_eq!(files(dir.path()), ["c1", "damaged", "live", "other"]);
        collect(
            &dir.path().join("none"),
            "n",
            &valid,
            &mut Collector::new(Run::Real),
        );
    }
}
