//! The directory of network configurations (`NETCONFPATH`): which files count, in which
//! order, and which network a name means (docs/compatibility.md#3.1 and docs/compatibility.md#3.2).
//!
//! A file that cannot be read disables its own network and no other.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use anyhow::{Context, Result};

use super::network::{Network, PluginConfiguration, plugin_type};
use crate::cni::error::{Code, coded, detailed};
use crate::cni::json::{self, Object};
use crate::fsutil::{self, Links};

/// What was found.
#[derive(Debug)]
pub struct Directory {
    /// The directory, or the one file asked for.
    pub path: PathBuf,
    /// In order of precedence: of two with one name, the first counts.
    pub networks: Vec<Network>,
    /// Files that hold none.
    pub broken: Vec<Broken>,
}

/// A file that holds no usable network.
#[derive(Debug)]
pub struct Broken {
    /// As found.
    pub file: PathBuf,
    /// Why.
    pub error: anyhow::Error,
}

impl Broken {
    /// The file, with line and column if the error is one of syntax.
    pub fn place(&self) -> String {
        let file = self.file.display();
        let syntax = self
            .error
            .chain()
            .find_map(|cause| cause.downcast_ref::<serde_json::Error>());
        match syntax {
            Some(error) if error.line() > 0 => {
                format!("{file}:{}:{}", error.line(), error.column())
            }
            _ => file.to_string(),
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:#}", self.place(), self.error)
    }
}

/// Reads every configuration in the directory `path`, or the one file `path`. A
/// directory that is not there is an empty one.
///
/// # Errors
/// When the directory cannot be listed.
pub fn load(path: &Path) -> Result<Directory> {
    let mut found = Directory {
        path: path.into(),
        networks: Vec::new(),
        broken: Vec::new(),
    };
    let files = if path.is_file() {
        vec![path.to_owned()]
    } else {
        configurations(path)?
    };
    for file in files {
        match read(&file) {
            Ok(network) => found.networks.push(network),
            Err(error) => found.broken.push(Broken { file, error }),
        }
    }
    Ok(found)
}

impl Directory {
    /// The network called `name`.
    ///
    /// # Errors
    /// Code 7, saying which names there are.
    pub fn find(&self, name: &str) -> Result<&Network> {
        if let Some(network) = self.networks.iter().find(|n| n.name == name) {
            return Ok(network);
        }
        let place = self.path.display();
        if self.networks.is_empty() && self.broken.is_empty() {
            let sentence = format!("no net configurations found in {place}");
            let details = if self.path.exists() {
                "it holds no .conflist, .conf or .json file"
            } else {
                "it does not exist"
            };
            return Err(detailed(Code::Config, sentence, details));
        }
        Err(detailed(
            Code::Config,
            format!("no net configuration with name \"{name}\" in {place}"),
            self.alternatives(name),
        ))
    }

    fn alternatives(&self, name: &str) -> String {
        let mut names: Vec<&str> = self.networks.iter().map(|n| n.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let mut text = if names.is_empty() {
            "it has no usable network".to_owned()
        } else {
            format!("it has {}", names.join(", "))
        };
        if let Some(nearest) = json::nearest(name, names) {
            text = format!("{text}; did you mean \"{nearest}\"?");
        }
        match self.broken.len() {
            0 => text,
            1 => format!("{text}; 1 file could not be read"),
            more => format!("{text}; {more} files could not be read"),
        }
    }
}

/// Lists first, then single plugins, each sorted by name. A name counts from its last
/// dot, also when it starts with that.
fn configurations(directory: &Path) -> Result<Vec<PathBuf>> {
    let (mut lists, mut singles) = (Vec::new(), Vec::new());
    for file in files(directory)? {
        let name = file.as_os_str().as_encoded_bytes();
        if name.ends_with(b".conflist") {
            lists.push(file);
        } else if name.ends_with(b".conf") || name.ends_with(b".json") {
            singles.push(file);
        }
    }
    lists.append(&mut singles);
    Ok(lists)
}

/// The entries of `directory` that can be read as files, or are links to what is not there,
/// sorted. Pipes, sockets and devices are passed over: /dev/null in the place of a file
/// disables it.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let context = || coded(Code::Io, format!("list {}", directory.display()));
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(context)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.with_context(context)?;
        let path = entry.path();
        let is_special = fs::metadata(&path).is_ok_and(|meta| fsutil::is_special(&meta));
        if !is_special && !entry.file_type().with_context(context)?.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads one file, and the directory of plugins beside it that belongs to it.
///
/// # Errors
/// Anything that makes the network unusable.
pub fn read(file: &Path) -> Result<Network> {
    let raw = read_text(file)?;
    if !file.as_os_str().as_encoded_bytes().ends_with(b".conflist") {
        return Network::parse_single(file, &raw);
    }
    let mut network = Network::parse_list(file, raw)?;
    if !network.only_inlined {
        for file in plugins_beside(file, &network.name)? {
            let plugin = read_plugin(&file)
                .with_context(|| format!("read the plugin in {}", file.display()))?;
            network.plugins.push(plugin);
        }
    }
    if network.plugins.is_empty() {
        if let Some(error) = refuse_lone_plugin(&network.raw) {
            return Err(error);
        }
        return Err(detailed(
            Code::Config,
            "no plugin configs found",
            format!(
                "network \"{}\" has no plugin: \"plugins\" is missing, and there is no {}/{}/*.conf",
                network.name,
                file.parent().unwrap_or_else(|| Path::new(".")).display(),
                network.name
            ),
        ));
    }
    Ok(network)
}

/// The files of plugins that belong to the list `name` in `file`: those of the directory
/// beside it that is called like the network. `name` has been checked: it cannot lead
/// anywhere else.
///
/// # Errors
/// When the directory is there and cannot be listed.
pub fn plugins_beside(file: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let mut files = files(&file.with_file_name(name))?;
    files.retain(|file| file.as_os_str().as_encoded_bytes().ends_with(b".conf"));
    Ok(files)
}

/// What is wrong with a list that is a plugin.
fn refuse_lone_plugin(raw: &[u8]) -> Option<anyhow::Error> {
    let document = json::parse_object("the file", raw).ok()?;
    is_lone_plugin(&document).then(|| {
        let sentence = "this is a plugin, not a list of plugins";
        detailed(Code::Config, sentence, LONE_PLUGIN)
    })
}

/// What to do with a plugin in a file for a list.
pub const LONE_PLUGIN: &str = "rename the file to .conf, or wrap it in \"plugins\": […]";

/// Whether the object in a file for a list is a plugin's.
pub fn is_lone_plugin(document: &Object) -> bool {
    !document.contains_key("plugins") && plugin_type(document).is_some()
}

/// What the file holds, without a byte order mark: libcni, which reads it in our cache, takes
/// none.
///
/// # Errors
/// Code 5.
pub fn read_text(file: &Path) -> Result<Vec<u8>> {
    let read = || {
        let bytes = fsutil::read_file(file, Links::Follow)?;
        bytes.context("it is gone, or is no file")
    };
    let bytes = read().context(coded(Code::Io, "read the file"))?;
    Ok(fsutil::without_byte_order_mark(&bytes).to_vec())
}

fn read_plugin(file: &Path) -> Result<PluginConfiguration> {
    let raw = read_text(file)?;
    let document = json::parse_object("the file", &raw)?;
    PluginConfiguration::parse(file, "", document.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with these files.
    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let file = dir.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        dir
    }

    fn plugins(network: &Network) -> Vec<&str> {
        network.plugins.iter().map(|p| p.plugin.as_str()).collect()
    }

    #[test]
    fn lists_come_first_and_the_first_name_counts() {
        let dir = directory(&[
            ("1.conf", r#"{"name": "n", "type": "single"}"#),
            (
                "2.conflist",
                r#"{"name": "n", "plugins": [{"type": "two"}]}"#,
            ),
            ("1.conflist", r#"{"name": "m", "plugins": [{"type": "m"}]}"#),
            (
                "3.conflist",
                r#"{"name": "n", "plugins": [{"type": "three"}]}"#,
            ),
            ("4.json", r#"{"name": "j", "type": "single"}"#),
            ("5.txt", "garbage"),
            ("sub.conflist/x", "garbage"),
        ]);
        let found = load(dir.path()).unwrap();
        assert!(found.broken.is_empty());
        assert_eq!(plugins(found.find("n").unwrap()), ["two"]);
        assert_eq!(plugins(found.find("j").unwrap()), ["single"]);
    }

    #[test]
    fn a_broken_file_is_named_and_harms_no_other() {
        let dir = directory(&[
            ("0.conflist", "{\n  \"name\" \"n\"}"),
            (
                "1.conflist",
                r#"{"name": "good", "plugins": [{"type": "a"}]}"#,
            ),
            ("2.conflist", ""),
            ("3.conf", r#"{"name": "n"}"#),
        ]);
        let found = load(dir.path()).unwrap();
        assert!(found.find("good").is_ok());
        let text: Vec<String> = found.broken.iter().map(ToString::to_string).collect();
        assert!(text[0].contains("/0.conflist:2:10: "), "{text:?}");
        assert!(text[1].contains("/2.conflist:1:"), "{text:?}");
        assert!(text[2].contains("/3.conf: "), "{text:?}");
        let error = format!("{:#}", found.find("godo").unwrap_err());
        let dir = dir.path().display();
        assert_eq!(
            error,
            format!(
                "no net configuration with name \"godo\" in {dir}: it has good; \
                 did you mean \"good\"?; 3 files could not be read"
            )
        );
    }

    #[test]
    fn nothing_there_is_said() {
        let dir = directory(&[]);
        let found = load(dir.path()).unwrap();
        assert_eq!(
            found.find("n").unwrap_err().to_string(),
            format!("no net configurations found in {}", dir.path().display())
        );
        let error = load(&dir.path().join("x")).unwrap().find("n").unwrap_err();
        assert!(format!("{error:#}").contains("does not exist"));
    }

    #[test]
    fn the_directory_beside_a_list_adds_plugins() {
        let dir = directory(&[
            ("1.conflist", r#"{"name": "n", "plugins": [{"type": "a"}]}"#),
            ("n/2.conf", r#"{"type": "c"}"#),
            ("n/1.conf", r#"{"type": "b"}"#),
            ("n/3.json", "garbage"),
            (
                "2.conflist",
                r#"{"name": "m", "loadOnlyInlinedPlugins": true, "plugins": [{"type": "a"}]}"#,
            ),
            ("m/1.conf", "garbage"),
            ("3.conflist", r#"{"name": "beside"}"#),
            ("beside/1.conf", r#"{"type": "d"}"#),
            ("4.conflist", r#"{"name": "empty"}"#),
            (
                "5.conflist",
                r#"{"name": "bad", "plugins": [{"type": "a"}]}"#,
            ),
            ("bad/1.conf", "{"),
        ]);
        let found = load(dir.path()).unwrap();
        assert_eq!(plugins(found.find("n").unwrap()), ["a", "b", "c"]);
        assert_eq!(plugins(found.find("m").unwrap()), ["a"]);
        assert_eq!(plugins(found.find("beside").unwrap()), ["d"]);
        let text: Vec<String> = found.broken.iter().map(ToString::to_string).collect();
        assert!(text[0].contains("no plugin"), "{text:?}");
        assert!(text[1].contains("/bad/1.conf"), "{text:?}");
    }

    #[test]
    fn names_lead_nowhere_else() {
        let dir = directory(&[
            ("net.d/1.conflist", r#"{"name": "../evil"}"#),
            ("evil/1.conf", r#"{"type": "a"}"#),
        ]);
        let found = load(&dir.path().join("net.d")).unwrap();
        assert!(found.networks.is_empty());
        assert!(found.broken[0].to_string().contains("invalid characters"));
    }

    #[test]
    fn one_file_can_be_read_alone() {
        let dir = directory(&[
            ("1.conflist", r#"{"name": "n", "plugins": [{"type": "a"}]}"#),
            ("2.conflist", "{"),
        ]);
        let found = load(&dir.path().join("1.conflist")).unwrap();
        assert!(found.find("n").is_ok() && found.broken.is_empty());
    }
}
