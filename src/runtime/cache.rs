//! The result cache (docs/compatibility.md#3.7): one file for each attachment, in the format of
//! libcni, so that either can DEL and CHECK what the other has added.
//!
//! The name of a file is ambiguous (`a-b` + `c` and `a` + `b-c` are one), so an entry
//! is believed only if it says itself that it is the one asked for.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::directory::Broken;
use super::network::Network;
use super::parameters::Parameters;
use crate::cni::error::{Code, coded};
use crate::cni::invocation::{Attachment, check_container_id, check_ifname, check_network_name};
use crate::cni::json::{self, Object};
use crate::cni::result::CniResult;
use crate::cni::version::Version;
use crate::fsutil;

/// Where libcni keeps it unless its user says otherwise.
pub const DEFAULT: &str = "/var/lib/cni";

const KIND: &str = "cniCacheV1";

/// A cache directory; it need not exist.
#[derive(Debug, Clone)]
pub struct Cache {
    results: PathBuf,
}

/// What the cache knows of one attachment.
#[derive(Debug)]
pub enum Cached {
    /// It has never been added, or was deleted.
    Nothing,
    /// What its ADD answered.
    Result(Box<CniResult>),
    /// The file is there but tells nothing: cut off, or of a version we do not speak.
    Broken(anyhow::Error),
    /// The file belongs to this other network and attachment.
    Foreign(String, Attachment),
}

/// One attachment that the cache remembers.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The network's name.
    pub network: String,
    /// Those of its ADD.
    pub parameters: Parameters,
}

/// What an attachment was made with, and what came of it.
#[derive(Debug)]
pub struct Record {
    /// As its ADD found it.
    pub network: Network,
    /// Of the last plugin.
    pub result: CniResult,
    /// When the ADD was.
    pub written: SystemTime,
}

/// Everything in a cache.
#[derive(Debug, Default)]
pub struct Contents {
    /// The attachments, by file name.
    pub entries: Vec<Entry>,
    /// Files that do not tell whose they are: any attachment whose name fits may live.
    pub unknown: Vec<Broken>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    kind: &'static str,
    container_id: &'a str,
    config: String,
    if_name: &'a str,
    network_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    netns: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    cni_args: &'a [(String, String)],
    #[serde(skip_serializing_if = "Object::is_empty")]
    capability_args: &'a Object,
    result: &'a Value,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Stored {
    kind: String,
    container_id: String,
    config: String,
    if_name: String,
    network_name: String,
    netns: String,
    cni_args: Vec<Vec<String>>,
    capability_args: Object,
    result: Option<Value>,
}

impl Stored {
    /// Whose the file says it is, beside `network_name`.
    ///
    /// # Errors
    /// When it does not say.
    fn owner(&self) -> Result<Attachment> {
        anyhow::ensure!(self.kind == KIND, "a result that does not say whose it is");
        check_network_name(&self.network_name)?;
        check_container_id(&self.container_id)?;
        check_ifname(&self.if_name)?;
        Ok(Attachment {
            container_id: self.container_id.clone(),
            ifname: self.if_name.clone(),
        })
    }
}

impl Cache {
    /// The cache in `directory`, such as [`DEFAULT`].
    pub fn new(directory: &Path) -> Self {
        Self {
            results: directory.join("results"),
        }
    }

    /// The file of an attachment. All three names are checked to be single path
    /// components where they come from.
    pub fn file(&self, network: &str, attachment: &Attachment) -> PathBuf {
        self.results.join(file_name(network, attachment))
    }

    /// Remembers the result of an ADD, in the list's version.
    ///
    /// # Errors
    /// Code 5, naming the file.
    pub fn write(&self, network: &Network, parameters: &Parameters, result: &Value) -> Result<()> {
        let file = self.file(&network.name, &parameters.attachment);
        let context = || {
            coded(
                Code::Io,
                format!("write the result cache {}", file.display()),
            )
        };
        let bytes = json::compact(&Written {
            kind: KIND,
            container_id: &parameters.attachment.container_id,
            config: STANDARD.encode(&network.raw),
            if_name: &parameters.attachment.ifname,
            network_name: &network.name,
            netns: &parameters.netns,
            cni_args: &parameters.args,
            capability_args: &parameters.capability_args,
            result,
        })?;
        fsutil::create_directory(&self.results, 0o700).with_context(context)?;
        fsutil::replace_durably(&file, 0o600, &bytes).with_context(context)
    }

    /// What is known of an attachment; `version` reads a result that does not say its own.
    pub fn find(&self, network: &str, attachment: &Attachment, version: Version) -> Cached {
        let file = self.file(network, attachment);
        match fsutil::read(&file) {
            Ok(None) => Cached::Nothing,
            Err(error) if is_no_directory(&error) => Cached::Nothing,
            Ok(Some(bytes)) => read(&bytes, network, attachment, version).unwrap_or_else(|error| {
                let context = format!("read the result cache {}", file.display());
                Cached::Broken(error.context(context))
            }),
            Err(error) => Cached::Broken(error),
        }
    }

    /// All that the entry of an attachment tells; `None` when it is gone meanwhile.
    ///
    /// # Errors
    /// Names the file, and what in it cannot be used.
    pub fn record(&self, network: &str, attachment: &Attachment) -> Result<Option<Record>> {
        let file = self.file(network, attachment);
        read_record(&file, network, attachment)
            .with_context(|| format!("read the result cache {}", file.display()))
    }

    /// The namespace that an attachment was added to, empty where the runtime told none;
    /// `None` when nothing readable is known of the attachment.
    pub fn netns(&self, network: &str, attachment: &Attachment) -> Option<String> {
        let entry = read_entry(&self.file(network, attachment)).ok()??;
        let is_theirs = entry.network == network && entry.parameters.attachment == *attachment;
        is_theirs.then_some(entry.parameters.netns)
    }

    /// Forgets an attachment; one that is not there is forgotten already.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove(&self, network: &str, attachment: &Attachment) -> Result<()> {
        fsutil::remove(&self.file(network, attachment)).map(drop)
    }

    /// Every attachment remembered, sorted by file name. No directory: none.
    ///
    /// # Errors
    /// Code 5 when the directory cannot be listed: taking that for "nothing attached"
    /// would be wrong.
    pub fn contents(&self) -> Result<Contents> {
        let context = || {
            coded(
                Code::Io,
                format!("list the result cache {}", self.results.display()),
            )
        };
        let listing = match std::fs::read_dir(&self.results) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Contents::default()),
            listing => listing.with_context(context)?,
        };
        let mut files = Vec::new();
        for entry in listing {
            let entry = entry.with_context(context)?;
            let is_aside = entry.file_name().to_str().is_some_and(fsutil::is_aside);
            if !is_aside && !entry.file_type().with_context(context)?.is_dir() {
                files.push(entry.path());
            }
        }
        files.sort();
        let mut contents = Contents::default();
        for file in files {
            match read_entry(&file) {
                Ok(entry) => contents.entries.extend(entry),
                Err(error) => contents.unknown.push(Broken { file, error }),
            }
        }
        Ok(contents)
    }
}

/// Whether there cannot be any entry, because the directory is something else.
fn is_no_directory(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::NotADirectory)
}

/// What the file of an attachment is called.
pub fn file_name(network: &str, attachment: &Attachment) -> String {
    format!(
        "{network}-{}-{}",
        attachment.container_id, attachment.ifname
    )
}

fn read(bytes: &[u8], network: &str, attachment: &Attachment, version: Version) -> Result<Cached> {
    let document = Value::Object(json::parse_object("the file", bytes)?);
    let stored: Stored = json::decode("", &document)?;
    if stored.kind != KIND {
        // Before there was a format, the file was the result.
        let result = CniResult::parse(&document, version)?;
        return Ok(Cached::Result(Box::new(result)));
    }
    let owner = stored.owner()?;
    if stored.network_name != network || owner != *attachment {
        return Ok(Cached::Foreign(stored.network_name, owner));
    }
    let result = stored
        .result
        .context(coded(Code::Decode, "the file holds no result"))?;
    Ok(Cached::Result(Box::new(CniResult::parse(
        &result, version,
    )?)))
}

/// The attachment a file is about; `None` for a copy under another name, which is not
/// the entry that a runtime would find.
///
/// # Errors
/// When the file does not tell.
fn read_entry(file: &Path) -> Result<Option<Entry>> {
    let Some(bytes) = fsutil::read(file)? else {
        return Ok(None);
    };
    let document = Value::Object(json::parse_object("the file", &bytes)?);
    let stored: Stored = json::decode("", &document)?;
    let attachment = stored.owner()?;
    let named = file.file_name() == Some(file_name(&stored.network_name, &attachment).as_ref());
    let args = stored.cni_args.into_iter().filter_map(|pair| {
        let mut pair = pair.into_iter();
        Some((pair.next()?, pair.next()?))
    });
    let entry = Entry {
        network: stored.network_name,
        parameters: Parameters::new(
            attachment,
            stored.netns,
            args.collect(),
            stored.capability_args,
        )?,
    };
    Ok(named.then_some(entry))
}

/// Whether CHECK and DEL of an attachment can use the result in `file`, although not all of
/// it can be read: of the time before results said whose they are, or with a damaged
/// configuration beside it.
pub fn is_usable(file: &Path) -> bool {
    let usable = || -> Result<bool> {
        let bytes = fsutil::read(file)?.unwrap_or_default();
        let document = Value::Object(json::parse_object("the file", &bytes)?);
        let stored: Stored = json::decode("", &document)?;
        let result = if stored.kind == KIND {
            stored.owner()?;
            stored.result.unwrap_or_default()
        } else {
            document
        };
        let is_one = ["cniVersion", "interfaces", "ips", "ip4", "ip6"]
            .iter()
            .any(|key| result.get(key).is_some());
        CniResult::parse(&result, Version::NEWEST)?;
        Ok(is_one)
    };
    usable().unwrap_or(false)
}

/// See [`Cache::record`].
fn read_record(file: &Path, network: &str, attachment: &Attachment) -> Result<Option<Record>> {
    let Some(bytes) = fsutil::read(file)? else {
        return Ok(None);
    };
    let written = std::fs::metadata(file)?.modified()?;
    let document = Value::Object(json::parse_object("the file", &bytes)?);
    let stored: Stored = json::decode("", &document)?;
    let is_ours = stored.network_name == network && stored.owner()? == *attachment;
    anyhow::ensure!(is_ours, "it belongs to another attachment");
    let raw = STANDARD
        .decode(&stored.config)
        .map_err(|error| coded(Code::Decode, format!("config is not base64: {error}")))?;
    let network = Network::parse(file, raw).context("config")?;
    let result = stored
        .result
        .context(coded(Code::Decode, "the file holds no result"))?;
    Ok(Some(Record {
        result: CniResult::parse(&result, network.version()?)?,
        network,
        written,
    }))
}

/// What holds for every file in a cache: it is about one attachment, whose names are names,
/// and only that one believes it.
#[cfg(any(test, fuzzing))]
pub fn fuzz(content: &[u8]) {
    let stored = json::parse_object("the file", content)
        .and_then(|document| json::decode::<Stored>("", &Value::Object(document)));
    let Ok(stored) = stored else { return };
    let Ok(owner) = stored.owner() else { return };
    assert_eq!(
        Path::new(&file_name(&stored.network_name, &owner))
            .components()
            .count(),
        1
    );
    let own = read(content, &stored.network_name, &owner, Version::NEWEST);
    assert!(!matches!(own, Ok(Cached::Foreign(..) | Cached::Nothing)));
    let foreign = read(content, "another", &owner, Version::NEWEST);
    let is_foreign = matches!(foreign, Ok(Cached::Foreign(..)));
    assert!(is_foreign || stored.network_name == "another");
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    fn attachment(id: &str, ifname: &str) -> Attachment {
        Attachment {
            container_id: id.into(),
            ifname: ifname.into(),
        }
    }

    fn parameters(id: &str) -> Parameters {
        Parameters::new(
            attachment(id, "eth0"),
            "/run/netns/c1".into(),
            vec![("IgnoreUnknown".into(), "1".into())],
            json!({"portMappings": [{"hostPort": 80}]})
                .as_object()
                .unwrap()
                .clone(),
        )
        .unwrap()
    }

    fn network(name: &str) -> Network {
        let raw = format!(r#"{{ "name": "{name}", "plugins": [{{"type": "a"}}] }}"#);
        Network::parse_list(Path::new("/n"), raw.into_bytes()).unwrap()
    }

    fn written(dir: &Path, name: &str, id: &str) -> Cache {
        let cache = Cache::new(dir);
        let result = json!({"cniVersion": "1.1.0"});
        cache
            .write(&network(name), &parameters(id), &result)
            .unwrap();
        cache
    }

    /// The entries, when nothing else is there.
    fn known(cache: &Cache) -> Vec<Entry> {
        let contents = cache.contents().unwrap();
        assert!(contents.unknown.is_empty(), "{contents:?}");
        contents.entries
    }

    #[test]
    fn the_file_is_libcnis() {
        let dir = tempfile::tempdir().unwrap();
        let cache = written(&dir.path().join("cni"), "net1", "c1");
        let file = dir.path().join("cni/results/net1-c1-eth0");
        let config = "eyAibmFtZSI6ICJuZXQxIiwgInBsdWdpbnMiOiBbeyJ0eXBlIjogImEifV0gfQ==";
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            format!(
                r#"{{"kind":"cniCacheV1","containerId":"c1","config":"{config}","ifName":"eth0","networkName":"net1","netns":"/run/netns/c1","cniArgs":[["IgnoreUnknown","1"]],"capabilityArgs":{{"portMappings":[{{"hostPort":80}}]}},"result":{{"cniVersion":"1.1.0"}}}}"#
            )
        );
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&file), 0o600);
        assert_eq!(mode(file.parent().unwrap()), 0o700);
        assert_eq!(
            known(&cache),
            [Entry {
                network: "net1".into(),
                parameters: parameters("c1")
            }]
        );
    }

    #[test]
    fn an_entry_under_an_ambiguous_name_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = written(dir.path(), "a-b", "c");
        let found =
            |network: &str, id: &str| cache.find(network, &attachment(id, "eth0"), Version::V1_1_0);
        assert!(matches!(found("a-b", "c"), Cached::Result(_)));
        let netns = |network: &str, id: &str| cache.netns(network, &attachment(id, "eth0"));
        assert_eq!(netns("a-b", "c").as_deref(), Some("/run/netns/c1"));
        assert_eq!(netns("a", "b-c"), None);
        assert_eq!(netns("a", "x"), None);
        let Cached::Foreign(network, owner) = found("a", "b-c") else {
            panic!("believed");
        };
        assert_eq!((network.as_str(), owner), ("a-b", attachment("c", "eth0")));
        assert!(matches!(found("a", "x"), Cached::Nothing));
    }

    #[test]
    fn cut_off_files_are_broken_and_old_ones_results() {
        let dir = tempfile::tempdir().unwrap();
        let cache = written(dir.path(), "n", "c");
        let file = dir.path().join("results/n-c-eth0");
        let whole = fs::read(&file).unwrap();
        let find = || cache.find("n", &attachment("c", "eth0"), Version::V0_2_0);
        for length in [0, 1, whole.len() - 1] {
            fs::write(&file, &whole[..length]).unwrap();
            assert!(matches!(find(), Cached::Broken(_)), "{length}");
            let contents = cache.contents().unwrap();
            assert!(contents.entries.is_empty());
            assert_eq!(contents.unknown[0].file, file);
        }
        fs::write(&file, r#"{"ip4": {"ip": "10.0.0.2/24"}}"#).unwrap();
        let Cached::Result(result) = find() else {
            panic!("legacy file");
        };
        assert_eq!(result.ips[0].address.to_string(), "10.0.0.2/24");
        assert_eq!(cache.contents().unwrap().unknown.len(), 1);
        for text in [r#"{"kind": "cniCacheV1"}"#, "null"] {
            fs::write(dir.path().join("results/n-d-eth0"), text).unwrap();
            assert_eq!(cache.contents().unwrap().unknown.len(), 2);
        }
        for text in [r#"{"cniVersion": "9.9"}"#, r#"{"kind": "cniCacheV1"}"#] {
            fs::write(&file, text).unwrap();
            assert!(matches!(find(), Cached::Broken(_)), "{text}");
        }
    }

    #[test]
    fn entries_are_trusted_only_under_their_own_name() {
        let dir = tempfile::tempdir().unwrap();
        let cache = written(dir.path(), "n", "c");
        let results = dir.path().join("results");
        fs::copy(results.join("n-c-eth0"), results.join("n-c-eth0.bak")).unwrap();
        fs::create_dir(results.join("sub")).unwrap();
        fs::write(results.join(".cnibox-00000000-1-1"), "{").unwrap();
        assert_eq!(known(&cache).len(), 1);
        cache.remove("n", &attachment("c", "eth0")).unwrap();
        cache.remove("n", &attachment("c", "eth0")).unwrap();
        assert!(known(&cache).is_empty());
    }

    #[test]
    fn an_unreadable_directory_is_no_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        assert!(known(&cache).is_empty());
        fs::write(dir.path().join("results"), "a file").unwrap();
        let error = cache.contents().unwrap_err();
        assert!(error.to_string().contains("/results"));
    }
}
