//! A network configuration: the list of plugins that make one network (specification
//! section 1). Reading is pure; which files there are is `directory`'s business.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cni::error::{Code, coded, detailed};
use crate::cni::invocation::{Command, check_network_name};
use crate::cni::json::{self, Object};
use crate::cni::version::{self, Version};

/// A network configuration as read from a file.
#[derive(Debug, Clone)]
pub struct Network {
    /// The file it stands in.
    pub file: PathBuf,
    /// Checked: it is used in the names of files.
    pub name: String,
    /// The version chosen from `cniVersion` and `cniVersions`; maybe one we do not speak.
    pub cni_version: String,
    /// CHECK is to succeed without asking any plugin.
    pub disable_check: bool,
    /// GC is to succeed without doing anything.
    pub disable_gc: bool,
    /// No plugins are to be read from the directory called like the network.
    pub only_inlined: bool,
    /// In the order of ADD.
    pub plugins: Vec<PluginConfiguration>,
    /// The list's own bytes, for the cache.
    pub raw: Vec<u8>,
}

/// One element of the list, as written.
#[derive(Debug, Clone)]
pub struct PluginConfiguration {
    /// The file it stands in: the network's, or one beside that.
    pub file: PathBuf,
    /// Where in that file: `plugins[0]`, or nothing when it is all of it.
    pub path: String,
    /// The name of the executable.
    pub plugin: String,
    /// A name of its own, which errors tell.
    pub name: String,
    /// What it wants to know from the runtime.
    pub capabilities: Vec<String>,
    /// Every key of it.
    pub document: Object,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Header {
    cni_version: String,
    name: String,
    #[serde(rename = "type")]
    plugin: String,
    capabilities: BTreeMap<String, bool>,
}

impl PluginConfiguration {
    /// What libcni says around the error of this plugin.
    pub fn failed(&self, command: Command) -> String {
        let doing = match command {
            Command::Gc => return format!("failed to GC plugin {}", self.plugin),
            Command::Del => "delete".to_owned(),
            other => other.as_str().to_ascii_lowercase(),
        };
        let name = match self.name.as_str() {
            "" => String::new(),
            name => format!(" name={name:?}"),
        };
        format!("plugin type={:?}{name} failed ({doing})", self.plugin)
    }

    /// Reads the plugin object that stands at `path` of `file`.
    ///
    /// # Errors
    /// Code 6 or 7, naming the key.
    pub fn parse(file: &Path, path: &str, document: Value) -> Result<Self> {
        let Value::Object(document) = document else {
            return Err(coded(Code::Decode, format!("{path}: a plugin must be an object")).into());
        };
        let document = Value::Object(document);
        let header: Header = json::decode(path, &document)?;
        if header.plugin.is_empty() {
            let place = if path.is_empty() { "type" } else { path };
            return Err(detailed(
                Code::Config,
                "error parsing configuration: missing 'type'",
                format!(
                    "{place}: the plugin's \"type\" is missing: it is the name of the plugin's executable, such as \"bridge\""
                ),
            ));
        }
        let enabled = header.capabilities.into_iter().filter(|(_, on)| *on);
        Ok(Self {
            file: file.into(),
            path: path.into(),
            plugin: header.plugin,
            name: header.name,
            capabilities: enabled.map(|(name, _)| name).collect(),
            document: match document {
                Value::Object(document) => document,
                _ => Object::new(),
            },
        })
    }
}

impl Network {
    /// Reads a list (`.conflist`). Unlike inside a plugin's object, keys match exactly.
    ///
    /// # Errors
    /// Code 6 or 7, naming what is wrong; it may still be without any plugin.
    pub fn parse_list(file: &Path, raw: Vec<u8>) -> Result<Self> {
        let list = json::parse_object("the file", &raw).context(UNREADABLE)?;
        let name = string(&list, "name")?;
        if name.is_empty() {
            return Err(unreadable(Code::Config, "no name", "\"name\" is missing"));
        }
        check_network_name(&name)?;
        let cni_version = choose_version(&list)?;
        let only_inlined = boolean(&list, "loadOnlyInlinedPlugins")?;
        let plugins = match list.get("plugins") {
            None if only_inlined => {
                return Err(unreadable(
                    Code::Config,
                    "`loadOnlyInlinedPlugins` is true, and no 'plugins' key",
                    "\"loadOnlyInlinedPlugins\" is true but there is no \"plugins\"",
                ));
            }
            None => Vec::new(),
            Some(Value::Array(plugins)) if !plugins.is_empty() => plugins
                .iter()
                .enumerate()
                .map(|(index, plugin)| {
                    let path = format!("plugins[{index}]");
                    PluginConfiguration::parse(file, &path, plugin.clone())
                        .with_context(|| format!("failed to parse plugin config {index}"))
                })
                .collect::<Result<_>>()?,
            Some(other) => {
                let sentence = match other {
                    Value::Array(_) => "no plugins in list".to_owned(),
                    other => format!("invalid 'plugins' type {}", type_name(other)),
                };
                let details = "\"plugins\" must be a list of at least one plugin";
                return Err(unreadable(Code::Config, &sentence, details));
            }
        };
        Ok(Self {
            file: file.into(),
            name,
            cni_version,
            disable_check: boolean(&list, "disableCheck")?,
            disable_gc: boolean(&list, "disableGC")?,
            only_inlined,
            plugins,
            raw,
        })
    }

    /// Reads a single plugin's configuration (`.conf`, `.json`) as a list of one.
    ///
    /// # Errors
    /// As [`Self::parse_list`].
    pub fn parse_single(file: &Path, raw: &[u8]) -> Result<Self> {
        let document =
            json::parse_object("the file", raw).context("error parsing configuration")?;
        let document = Value::Object(document);
        if document.get("plugins").is_some() && document.get("type").is_none() {
            return Err(detailed(
                Code::Config,
                "this is a list of plugins, not a plugin",
                "rename the file to .conflist",
            ));
        }
        let header: Header = json::decode("", &document)?;
        check_network_name(&header.name)?;
        let plugin = PluginConfiguration::parse(file, "", document)?;
        // What libcni wraps it into, and then keeps in its cache.
        let list = json!({
            "name": header.name,
            "cniVersion": header.cni_version,
            "plugins": [plugin.document],
        });
        Ok(Self {
            file: file.into(),
            name: header.name,
            cni_version: header.cni_version,
            disable_check: false,
            disable_gc: false,
            only_inlined: true,
            plugins: vec![plugin],
            raw: json::compact(&list)?,
        })
    }

    /// Reads what libcni keeps in its cache: a list, or a single plugin's configuration.
    ///
    /// # Errors
    /// As [`Self::parse_list`].
    pub fn parse(file: &Path, raw: Vec<u8>) -> Result<Self> {
        if json::parse_object("the file", &raw)?.contains_key("type") {
            Self::parse_single(file, &raw)
        } else {
            Self::parse_list(file, raw)
        }
    }

    /// The version to speak with the plugins.
    ///
    /// # Errors
    /// Code 1 when it is none of ours.
    pub fn version(&self) -> Result<Version> {
        Version::exact(&self.cni_version).with_context(|| {
            coded(
                Code::IncompatibleVersion,
                format!(
                    "cniVersion \"{}\" of network \"{}\" in {} is none of {}",
                    self.cni_version,
                    self.name,
                    self.file.display(),
                    Version::ALL.map(Version::as_str).join(", ")
                ),
            )
        })
    }
}

/// The highest version that the list offers and we speak; what it says literally when
/// there is none (docs/compatibility.md#3.1).
///
/// # Errors
/// Code 6 for what is no version.
pub fn choose_version(list: &Object) -> Result<String> {
    let cni_version = string(list, "cniVersion")?;
    let Some(several) = member(list, "cniVersions") else {
        return Ok(cni_version);
    };
    let mut offered: Vec<String> = json::decode("cniVersions", several)?;
    offered.push(cni_version.clone());
    for version in &offered {
        version::numbers(version)?;
    }
    let chosen = offered
        .iter()
        .filter(|version| !version.is_empty())
        .filter_map(|version| Version::exact(version))
        .max();
    Ok(chosen.map_or(cni_version, |version| version.as_str().to_owned()))
}

/// The member of a plugin's object, or of an object inside it, as the plugin finds it:
/// unlike a list's, its keys match without regard to case.
pub fn plugin_member(object: &Object, key: &str) -> Option<Value> {
    json::take(&mut object.clone(), key)
}

/// A plugin's `ipam` object.
pub fn ipam(plugin: &Object) -> Option<Object> {
    match plugin_member(plugin, "ipam") {
        Some(Value::Object(ipam)) => Some(ipam),
        _ => None,
    }
}

/// The `type` of a plugin or of its `ipam`: the name of an executable.
pub fn plugin_type(object: &Object) -> Option<String> {
    match plugin_member(object, "type") {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        _ => None,
    }
}

fn member<'a>(list: &'a Object, key: &str) -> Option<&'a Value> {
    list.get(key).filter(|value| !value.is_null())
}

fn string(list: &Object, key: &str) -> Result<String> {
    let Some(value) = member(list, key) else {
        return Ok(String::new());
    };
    json::decode(key, value).map_err(|error| {
        let sentence = format!("invalid {key} type {}", type_name(value));
        unreadable(Code::Decode, &sentence, &error.to_string())
    })
}

/// How libcni begins what it says of a list that it cannot read.
const UNREADABLE: &str = "error parsing configuration list";

/// The list cannot be read: `sentence` in libcni's words, `details` in ours.
fn unreadable(code: Code, sentence: &str, details: &str) -> anyhow::Error {
    detailed(code, format!("{UNREADABLE}: {sentence}"), details)
}

/// What libcni calls the type of `value`.
fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// `true`, `false`, or either as a string in any case.
fn boolean(list: &Object, key: &str) -> Result<bool> {
    match member(list, key) {
        None => Ok(false),
        Some(value) => parse_boolean(value).ok_or_else(|| {
            let sentence = match value {
                Value::String(text) => format!("invalid value {:?} for {key}", text.to_lowercase()),
                other => format!("invalid type {} for {key}", type_name(other)),
            };
            let details = format!("{key}: expected true or false, found {value}");
            unreadable(Code::Decode, &sentence, &details)
        }),
    }
}

/// A boolean as the list's own keys take it; `None` for anything else.
pub fn parse_boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(on) => Some(*on),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<Network> {
        Network::parse_list(Path::new("/n.conflist"), text.as_bytes().to_vec())
    }

    fn refused(text: &str) -> String {
        format!("{:#}", list(text).unwrap_err())
    }

    #[test]
    fn a_list_is_read() {
        let network = list(
            r#"{"name": "n", "cniVersion": "1.0.0", "disableCheck": "TRUE", "disableGC": true,
                "plugins": [{"type": "a", "capabilities": {"x": true, "y": false}}, {"Type": "b"}]}"#,
        )
        .unwrap();
        assert_eq!(network.name, "n");
        assert_eq!(network.version().unwrap(), Version::V1_0_0);
        assert!(network.disable_check && network.disable_gc && !network.only_inlined);
        assert_eq!(network.plugins[0].capabilities, ["x"]);
        assert_eq!(network.plugins[1].plugin, "b");
    }

    #[test]
    fn what_is_no_list_is_refused_by_name() {
        for (text, part) in [
            ("[]", "must be a JSON object"),
            ("{", "line 1 column 1"),
            (r#"{"plugins": [{"type": "a"}]}"#, "\"name\" is missing"),
            (r#"{"Name": "n"}"#, "\"name\" is missing"),
            (r#"{"name": "../n"}"#, "invalid characters"),
            (r#"{"name": "n", "cniVersion": 1}"#, "cniVersion: expected"),
            (r#"{"name": "n", "cniVersions": ["x"]}"#, "\"x\""),
            (r#"{"name": "n", "disableGC": 1}"#, "disableGC: expected"),
            (r#"{"name": "n", "disableCheck": "yes"}"#, "\"yes\""),
            (r#"{"name": "n", "plugins": []}"#, "at least one"),
            (r#"{"name": "n", "plugins": {}}"#, "must be a list"),
            (r#"{"name": "n", "plugins": null}"#, "must be a list"),
            (r#"{"name": "n", "plugins": [{}]}"#, "plugins[0]"),
            (r#"{"name": "n", "plugins": [1]}"#, "plugins[0]"),
            (
                r#"{"name": "n", "plugins": [{"type": 1}]}"#,
                "plugins[0].type",
            ),
            (
                r#"{"name": "n", "loadOnlyInlinedPlugins": true}"#,
                "no \"plugins\"",
            ),
        ] {
            let error = refused(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn the_highest_version_we_speak_is_chosen() {
        for (one, many, chosen) in [
            ("0.4.0", None, "0.4.0"),
            ("9.9", None, "9.9"),
            ("", None, ""),
            ("0.4.0", Some(vec!["1.0.0", "0.3.1"]), "1.0.0"),
            ("1.0.0", Some(vec!["0.3.1", "0.4.0"]), "1.0.0"),
            ("", Some(vec!["0.4.0", "1.1.0", "1.2.0"]), "1.1.0"),
            ("", Some(vec!["0.4.0", "0.9.0"]), "0.4.0"),
            ("2.0.0", Some(vec!["3.0.0"]), "2.0.0"),
            ("", Some(vec![]), ""),
        ] {
            let list = json!({"cniVersion": one, "cniVersions": many});
            assert_eq!(choose_version(list.as_object().unwrap()).unwrap(), chosen);
        }
    }

    #[test]
    fn versions_nobody_speaks_are_an_error_naming_ours() {
        let network = list(r#"{"name": "n", "cniVersion": "9.9"}"#).unwrap();
        let error = network.version().unwrap_err().to_string();
        assert!(error.contains("9.9") && error.contains("/n.conflist") && error.contains("0.3.1"));
    }

    #[test]
    fn a_single_plugin_becomes_a_list() {
        let raw = br#"{"type": "a", "NAME": "n", "cniVersion": "0.4.0", "x": 1.50}"#;
        let network = Network::parse_single(Path::new("/n.conf"), raw).unwrap();
        assert_eq!(
            String::from_utf8(network.raw).unwrap(),
            r#"{"cniVersion":"0.4.0","name":"n","plugins":[{"NAME":"n","cniVersion":"0.4.0","type":"a","x":1.50}]}"#
        );
        for (text, part) in [
            (r#"{"name": "n"}"#, "\"type\" is missing"),
            (r#"{"type": "a"}"#, "missing network name"),
            (r#"{"name": "n", "plugins": []}"#, ".conflist"),
        ] {
            let error = Network::parse_single(Path::new("/n.conf"), text.as_bytes()).unwrap_err();
            assert!(format!("{error:#}").contains(part), "{error:#}");
        }
    }
}
