//! What DEL restores: the link as it was before ADD, in a file of the reference's
//! format (docs/compatibility.md#8.2), so that either implementation can undo the other's ADD. It also
//! names the network, which the reference passes over: networks share the directory, and
//! GC must know whose a file is. And it names the link: a file that outlived its link says
//! nothing about the next one of that name.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::ser::PrettyFormatter;

use super::config::Wanted;
use crate::cni::collector::Collector;
use crate::cni::error::{Code, coded};
use crate::cni::invocation::{Attachment, check_file_name};
use crate::cni::skel::Call;
use crate::net::link::Link;
use crate::{fsutil, log};

const FILE_MODE: u32 = 0o600;

/// Which link a backup is of. The kernel gives a namespace's number to another once it is
/// gone, but counts on in the namespace of the other end of a veth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Inode of the namespace that the link is in.
    pub netns: u64,
    /// The link's index in there.
    pub ifindex: u32,
    /// Of a veth: the index of its other end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<u32>,
}

/// Properties of a link before they were changed; what is not changed is not told.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Backup {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promisc: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    pub tx_queue_len: Option<u32>,
    /// `None` in the reference's files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<Identity>,
}

impl Backup {
    /// What `link`, known as `identity`, has where `wanted` asks for something.
    pub fn of(link: &Link, identity: Identity, wanted: &Wanted) -> Self {
        Self {
            mac: wanted.mac.as_ref().map(|_| link.mac.clone()),
            promisc: wanted.promiscuous.then_some(link.is_promiscuous),
            mtu: wanted.mtu.map(|_| link.mtu),
            allmulti: wanted.all_multicast.map(|_| link.is_all_multicast),
            tx_queue_len: wanted.tx_queue_len.map(|_| link.tx_queue_len),
            link: Some(identity),
        }
    }

    /// This backup where one of the same link is kept already: an earlier ADD of this
    /// attachment (another `tuning` in the same list, or one that was killed) has seen
    /// older values.
    pub fn after(&self, earlier: Option<&Self>) -> Self {
        let earlier = earlier.cloned().unwrap_or_default();
        Self {
            mac: earlier.mac.or_else(|| self.mac.clone()),
            promisc: earlier.promisc.or(self.promisc),
            mtu: earlier.mtu.or(self.mtu),
            allmulti: earlier.allmulti.or(self.allmulti),
            tx_queue_len: earlier.tx_queue_len.or(self.tx_queue_len),
            link: self.link,
        }
    }

    /// Whether this was written of another link. The reference's files do not tell.
    pub fn is_of_another(&self, identity: Identity) -> bool {
        self.link.is_some_and(|link| link != identity)
    }

    /// The content of the file, for an attachment to `network`.
    ///
    /// # Errors
    /// None that a backup can cause.
    pub fn encode(&self, network: &str) -> Result<Vec<u8>> {
        #[derive(Serialize)]
        struct Written<'a> {
            #[serde(flatten)]
            backup: &'a Backup,
            network: &'a str,
        }
        let mut bytes = Vec::new();
        let formatter = PrettyFormatter::with_indent(b" ");
        let written = Written {
            backup: self,
            network,
        };
        written
            .serialize(&mut serde_json::Serializer::with_formatter(
                &mut bytes, formatter,
            ))
            .context("encode the backup of the link")?;
        Ok(bytes)
    }
}

/// The backup file of one attachment.
#[derive(Debug, Clone)]
pub struct File {
    path: PathBuf,
    network: String,
}

fn name(attachment: &Attachment) -> String {
    let Attachment {
        container_id,
        ifname,
    } = attachment;
    format!("{container_id}_{ifname}.json")
}

impl File {
    /// The file of the attachment that `call` is about, in `dir`.
    pub fn of(call: &Call, dir: &Path) -> Self {
        Self::new(dir, &call.config.network, &call.invocation.attachment)
    }

    fn new(dir: &Path, network: &str, attachment: &Attachment) -> Self {
        Self {
            path: dir.join(name(attachment)),
            network: network.to_owned(),
        }
    }

    /// Where it is, or would be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was kept. A file that is damaged or cannot be read keeps nothing: that is
    /// said on stderr, and nothing else depends on it.
    pub fn load(&self) -> Option<Backup> {
        let loaded = fsutil::read(&self.path).and_then(|bytes| {
            bytes
                .map(|bytes| serde_json::from_slice(&bytes).context("it is damaged"))
                .transpose()
        });
        loaded.unwrap_or_else(|error| {
            if fsutil::cannot_exist(&error) {
                return None;
            }
            log::warn(&format!(
                "backup {} cannot be used, the link keeps what it has: {error:#}",
                self.path.display()
            ));
            None
        })
    }

    /// Keeps `backup`, replacing what was kept.
    ///
    /// # Errors
    /// Code 5 naming the file, or 4 where its name would be too long.
    pub fn store(&self, backup: &Backup) -> Result<()> {
        let name = self.path.file_name().unwrap_or_default();
        check_file_name(&name.to_string_lossy())?;
        let bytes = backup.encode(&self.network)?;
        fsutil::write_private(&self.path, || {
            fsutil::replace(&self.path, FILE_MODE, &bytes)
        })
        .context(coded(
            Code::Io,
            "keep what the link was like before it is changed",
        ))
    }

    /// Puts back what was kept before a `store`.
    ///
    /// # Errors
    /// As [`Self::store`] and [`Self::remove`].
    pub fn reset(&self, earlier: Option<&Backup>) -> Result<()> {
        match earlier {
            Some(earlier) => self.store(earlier),
            None => self.remove(),
        }
    }

    /// Removes the file, and what an ADD that was killed left half-written; there being
    /// none is no error.
    ///
    /// # Errors
    /// Code 5 naming the file.
    pub fn remove(&self) -> Result<()> {
        fsutil::remove_and_sweep(&self.path)
            .context(coded(Code::Io, "remove what was kept to restore the link"))
    }
}

/// GC of the backups in `dir` whose attachment is no longer valid. Files that do not name
/// this network stay, the reference's among them.
pub fn collect(dir: &Path, network: &str, valid: &[Attachment], collector: &mut Collector) {
    let kept: BTreeSet<OsString> = valid.iter().map(|kept| name(kept).into()).collect();
    let files = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return,
        files => files.and_then(Iterator::collect::<std::io::Result<Vec<_>>>),
    };
    let files = files.with_context(|| coded(Code::Io, format!("list {}", dir.display())));
    let mut files = match files {
        Ok(files) => files,
        Err(error) => return collector.attempt(Err(error)),
    };
    files.sort_by_key(std::fs::DirEntry::file_name);
    for file in files {
        let path = file.path();
        let is_backup = path
            .extension()
            .is_some_and(|extension| extension == "json");
        if !is_backup || kept.contains(&file.file_name()) {
            continue;
        }
        match network_of(&path) {
            Ok(Some(named)) if named == network => {
                let what = format!("backup {}", path.display());
                collector.remove(&what, || {
                    let removed = fsutil::remove(&path).map(drop);
                    removed.context(coded(Code::Io, "remove what was kept of a link"))
                });
            }
            Ok(_) => {}
            Err(error) => log::warn(&format!("backup stays, as it is nobody's: {error:#}")),
        }
    }
}

/// The network that the file at `path` names, empty where it names none; `None` for what is
/// no file.
fn network_of(path: &Path) -> Result<Option<String>> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Named {
        network: String,
    }
    let Some(bytes) = fsutil::read(path)? else {
        return Ok(None);
    };
    let named: Named =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
    Ok(Some(named.network))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::cni::collector::Run;

    fn full() -> Backup {
        Backup {
            mac: Some("96:ef:c8:81:fa:12".into()),
            promisc: Some(false),
            mtu: Some(1500),
            allmulti: Some(false),
            tx_queue_len: Some(1000),
            link: Some(Identity {
                netns: 4_026_532_177,
                ifindex: 2,
                peer: Some(7),
            }),
        }
    }

    fn file(dir: &Path, id: &str) -> File {
        File::new(dir, "n", &attachment(id))
    }

    fn attachment(id: &str) -> Attachment {
        Attachment {
            container_id: id.into(),
            ifname: "eth0".into(),
        }
    }

    #[test]
    fn the_format_is_pinned() {
        assert_eq!(
            String::from_utf8(full().encode("n").unwrap()).unwrap(),
            "{\n \"mac\": \"96:ef:c8:81:fa:12\",\n \"promisc\": false,\n \"mtu\": 1500,\n \
             \"allmulti\": false,\n \"txQLen\": 1000,\n \"link\": {\n  \
             \"netns\": 4026532177,\n  \"ifindex\": 2,\n  \"peer\": 7\n },\n \"network\": \"n\"\n}"
        );
        let mtu = Backup {
            mtu: Some(1500),
            ..Backup::default()
        };
        assert_eq!(
            mtu.encode("n").unwrap(),
            b"{\n \"mtu\": 1500,\n \"network\": \"n\"\n}"
        );
        assert_eq!(
            crate::plugins::tuning::config::DEFAULT_DIR,
            "/run/cni/tuning"
        );
    }

    #[test]
    fn a_file_appears_once_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("cni/tuning");
        let file = file(&dir, "c1");
        assert_eq!(file.load(), None);
        file.store(&full()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&dir.join("c1_eth0.json")), 0o600);
        assert_eq!(file.load(), Some(full()));
        file.reset(Some(&Backup::default())).unwrap();
        assert_eq!(file.load(), Some(Backup::default()));
        file.reset(None).unwrap();
        file.remove().unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }

    #[test]
    fn only_what_says_that_it_is_this_networks_is_stale() {
        let dir = tempfile::tempdir().unwrap();
        for id in ["kept", "gone", "stuck"] {
            file(dir.path(), id).store(&full()).unwrap();
        }
        File::new(dir.path(), "other", &attachment("theirs"))
            .store(&full())
            .unwrap();
        for (name, text) in [
            ("reference_eth0.json", "{\n \"mtu\": 1500\n}"),
            ("damaged_eth0.json", "{\n \"network\": \"n\""),
            ("notes", "{\"network\": \"n\"}"),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let left = || {
            let files = fs::read_dir(dir.path()).unwrap();
            let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
            names.collect::<BTreeSet<_>>()
        };
        let before = left();
        let valid = [attachment("kept")];
        let mut dry = Collector::new(Run::Dry);
        collect(dir.path(), "n", &valid, &mut dry);
        let (lines, _) = dry.into_parts();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(left(), before);
        let mut real = Collector::new(Run::Real);
        collect(dir.path(), "n", &valid, &mut real);
        real.finish().unwrap();
        let gone: Vec<_> = before.difference(&left()).cloned().collect();
        assert_eq!(gone, ["gone_eth0.json", "stuck_eth0.json"]);
        for nothing in ["nowhere", "notes"] {
            let mut real = Collector::new(Run::Real);
            collect(&dir.path().join(nothing), "n", &[], &mut real);
            assert_eq!(real.finish().is_ok(), nothing == "nowhere");
        }
    }

    #[test]
    fn what_was_kept_first_wins() {
        let now = Backup {
            mtu: Some(1400),
            tx_queue_len: Some(7),
            link: full().link,
            ..Backup::default()
        };
        let earlier = Backup {
            tx_queue_len: None,
            ..full()
        };
        let both = Backup {
            tx_queue_len: Some(7),
            ..full()
        };
        assert_eq!(now.after(Some(&earlier)), both);
        assert_eq!(now.after(None), now);
    }

    #[test]
    fn damage_and_impossible_names_are_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path(), "c1");
        for text in [
            "",
            "{",
            "{\n \"mtu\": 1500\n",
            "7",
            "{\"mtu\": \"x\"}",
            "{\"mtu\":-1}",
        ] {
            fs::write(dir.path().join("c1_eth0.json"), text).unwrap();
            assert_eq!(file.load(), None, "{text}");
        }
        file.remove().unwrap();
        let long = self::file(dir.path(), &"c".repeat(300));
        assert_eq!(long.load(), None);
        long.remove().unwrap();
        assert!(long.store(&full()).is_err());
    }
}
