//! What DEL restores: the link as it was before ADD, in a file of the reference's
//! format (behaviour 8.2), so that either implementation can undo the other's ADD.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::ser::PrettyFormatter;

use super::config::Wanted;
use crate::cni::error::{Code, coded};
use crate::cni::invocation::Attachment;
use crate::fsutil;
use crate::log;
use crate::net::link::Link;

/// Where the files are unless the configuration says otherwise.
pub const DEFAULT_DIR: &str = "/run/cni/tuning";
const FILE_MODE: u32 = 0o600;
/// The reference makes it 0600, which nobody but root with all capabilities can use.
const DIR_MODE: u32 = 0o700;
/// Of the directories above it, where others keep their files too.
const PARENT_MODE: u32 = 0o755;

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
}

impl Backup {
    /// What `link` has where `wanted` asks for something.
    pub fn of(link: &Link, wanted: &Wanted) -> Self {
        Self {
            mac: wanted.mac.as_ref().map(|_| link.mac.clone()),
            promisc: wanted.promiscuous.then_some(link.is_promiscuous),
            mtu: wanted.mtu.map(|_| link.mtu),
            allmulti: wanted.all_multicast.map(|_| link.is_all_multicast),
            tx_queue_len: wanted.tx_queue_len.map(|_| link.tx_queue_len),
        }
    }

    /// This backup where one is kept already: an earlier ADD of this attachment (another
    /// `tuning` in the same list, or one that was killed) has seen older values.
    pub fn after(&self, earlier: Option<&Self>) -> Self {
        let earlier = earlier.cloned().unwrap_or_default();
        Self {
            mac: earlier.mac.or_else(|| self.mac.clone()),
            promisc: earlier.promisc.or(self.promisc),
            mtu: earlier.mtu.or(self.mtu),
            allmulti: earlier.allmulti.or(self.allmulti),
            tx_queue_len: earlier.tx_queue_len.or(self.tx_queue_len),
        }
    }

    /// The content of the file.
    ///
    /// # Errors
    /// None that a backup can cause.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let formatter = PrettyFormatter::with_indent(b" ");
        self.serialize(&mut serde_json::Serializer::with_formatter(
            &mut bytes, formatter,
        ))
        .context("encode the backup of the link")?;
        Ok(bytes)
    }
}

/// The backup file of one attachment.
#[derive(Debug, Clone)]
pub struct File(PathBuf);

impl File {
    /// The file in `dir`.
    pub fn new(dir: &Path, attachment: &Attachment) -> Self {
        let Attachment {
            container_id,
            ifname,
        } = attachment;
        Self(dir.join(format!("{container_id}_{ifname}.json")))
    }

    /// What was kept. A file that is damaged or cannot be read keeps nothing: that is
    /// said on stderr, and nothing else depends on it.
    pub fn load(&self) -> Option<Backup> {
        let loaded = fsutil::read(&self.0).and_then(|bytes| {
            bytes
                .map(|bytes| serde_json::from_slice(&bytes).context("it is damaged"))
                .transpose()
        });
        loaded.unwrap_or_else(|error| {
            if cannot_exist(&error) {
                return None;
            }
            log::warn(&format!(
                "backup {} cannot be used, the link keeps what it has: {error:#}",
                self.0.display()
            ));
            None
        })
    }

    /// Keeps `backup`, replacing what was kept.
    ///
    /// # Errors
    /// Code 5 naming the file.
    pub fn store(&self, backup: &Backup) -> Result<()> {
        self.create_dir()
            .and_then(|()| fsutil::replace(&self.0, FILE_MODE, &backup.encode()?))
            .context(coded(
                Code::Io,
                "keep what the link was like before it is changed",
            ))
    }

    fn create_dir(&self) -> Result<()> {
        let Some(dir) = self.0.parent() else {
            return Ok(());
        };
        let parents = dir.parent().unwrap_or(dir);
        fsutil::create_directory(parents, PARENT_MODE)?;
        fsutil::create_directory(dir, DIR_MODE)
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

    /// Removes the file; there being none is no error.
    ///
    /// # Errors
    /// Code 5 naming the file.
    pub fn remove(&self) -> Result<()> {
        match fsutil::remove(&self.0) {
            Err(error) if cannot_exist(&error) => Ok(()),
            removed => removed
                .map(drop)
                .context(coded(Code::Io, "remove what was kept to restore the link")),
        }
    }
}

/// A container id may be longer than the name of a file; then there never was one.
fn cannot_exist(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| {
        matches!(
            error.kind(),
            ErrorKind::InvalidFilename | ErrorKind::NotADirectory
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn full() -> Backup {
        Backup {
            mac: Some("96:ef:c8:81:fa:12".into()),
            promisc: Some(false),
            mtu: Some(1500),
            allmulti: Some(false),
            tx_queue_len: Some(1000),
        }
    }

    fn file(dir: &Path, id: &str) -> File {
        File::new(
            dir,
            &Attachment {
                container_id: id.into(),
                ifname: "eth0".into(),
            },
        )
    }

    #[test]
    fn the_format_is_pinned() {
        assert_eq!(
            String::from_utf8(full().encode().unwrap()).unwrap(),
            "{\n \"mac\": \"96:ef:c8:81:fa:12\",\n \"promisc\": false,\n \"mtu\": 1500,\n \
             \"allmulti\": false,\n \"txQLen\": 1000\n}"
        );
        let mtu = Backup {
            mtu: Some(1500),
            ..Backup::default()
        };
        assert_eq!(mtu.encode().unwrap(), b"{\n \"mtu\": 1500\n}");
        assert_eq!(DEFAULT_DIR, "/run/cni/tuning");
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
    fn what_was_kept_first_wins() {
        let now = Backup {
            mtu: Some(1400),
            tx_queue_len: Some(7),
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
