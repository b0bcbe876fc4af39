//! What every plugin configuration shares (specification section 1), and the bytes it
//! came in.

use anyhow::Result;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::{Code, coded, detailed};
use super::invocation::{Attachment, Command, check_network_name};
use super::json::{self, Object};
use super::result::{CniResult, Dns};
use super::version::{self, Version};

/// A plugin configuration as received on stdin, its name and version checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The version the caller speaks; results go out in it.
    pub version: Version,
    /// The network's name.
    pub network: String,
    /// The document, for whoever knows more of its keys.
    pub document: Value,
    /// The bytes of the document: a delegate gets exactly these.
    pub raw: Vec<u8>,
}

/// The list of GC: its name in the specification, and the one that libcni sends as well.
const VALID: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Shared {
    cni_version: String,
    name: String,
    #[serde(rename = "prevResult")]
    prev_result: Option<Value>,
    ipam: Option<Ipam>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<ValidAttachment>>,
    #[serde(rename = "cni.dev/attachments")]
    valid_legacy: Option<Vec<ValidAttachment>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Ipam {
    #[serde(rename = "type")]
    plugin: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

/// A document whose JSON and network name are in order; its version is checked next.
#[derive(Debug)]
pub struct Document {
    raw: Vec<u8>,
    object: Object,
    network: String,
    cni_version: String,
}

/// `text` without the byte order mark that some editors put in front of UTF-8.
pub fn without_bom(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// What the configuration is called in messages.
const STDIN: &str = "the network configuration on stdin";

/// The error of a configuration that is no JSON object, or has a name or a version of the
/// wrong type.
fn unreadable(error: &anyhow::Error) -> anyhow::Error {
    let syntax = error
        .root_cause()
        .downcast_ref::<serde_json::Error>()
        .map(|syntax| {
            if syntax.is_eof() {
                "unexpected end of JSON input".to_owned()
            } else {
                syntax.to_string()
            }
        });
    let what = error.to_string();
    let begin = if what.starts_with("cniVersion:") {
        "decoding version from network config"
    } else {
        "error unmarshall network config"
    };
    match syntax {
        Some(syntax) => detailed(Code::Decode, format!("{begin}: {syntax}"), what),
        None => coded(Code::Decode, format!("{begin}: {what}")).into(),
    }
}

/// Just enough of a configuration to answer every command, known or not.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Header {
    cni_version: String,
    name: String,
}

impl Document {
    /// Reads `raw` as a JSON object with a valid network name.
    ///
    /// # Errors
    /// Code 6 or 7.
    pub fn parse(mut raw: Vec<u8>) -> Result<Self> {
        // A delegate that is not ours would stumble over the mark, so it goes.
        raw.drain(..raw.len() - without_bom(&raw).len());
        let object = json::parse_fields(STDIN, &raw).map_err(|error| unreadable(&error))?;
        let value = Value::Object(object);
        let header: Header = json::decode("", &value).map_err(|error| unreadable(&error))?;
        check_network_name(&header.name)?;
        let Value::Object(object) = value else {
            return Err(coded(Code::Decode, "the configuration is no object").into());
        };
        Ok(Self {
            raw,
            object,
            network: header.name,
            cni_version: header.cni_version,
        })
    }

    /// Lets `command` through if the configuration's version has it and the plugin
    /// speaks that version (docs/compatibility.md#1.5).
    ///
    /// # Errors
    /// Code 1, or 6 when the version is none.
    pub fn negotiate(self, command: Command, supported: &[Version]) -> Result<Config> {
        let version = negotiate(&self.cni_version, command, supported)?;
        Ok(Config {
            version,
            network: self.network,
            document: Value::Object(self.object),
            raw: self.raw,
        })
    }

    /// The version the caller wrote, for its error object; empty if it wrote none.
    pub fn cni_version(&self) -> &str {
        &self.cni_version
    }
}

/// The version spelt `cni_version`, if it has `command` and is among `supported`.
fn negotiate(cni_version: &str, command: Command, supported: &[Version]) -> Result<Version> {
    let refused = |sentence: String, details: String| {
        Err(detailed(Code::IncompatibleVersion, sentence, details))
    };
    let mismatch = || {
        let list: Vec<String> = supported.iter().map(|v| format!("\"{v}\"")).collect();
        format!(
            "config is \"{cni_version}\", plugin supports [{}]",
            list.join(" ")
        )
    };
    let since = match command {
        Command::Check => Some(Version::V0_4_0),
        Command::Gc | Command::Status => Some(Version::V1_1_0),
        Command::Add | Command::Del | Command::Version => None,
    };
    if let Some(since) = since {
        let asked = version::numbers(cni_version)?;
        let word = command.as_str();
        if asked < version::numbers(since.as_str())? {
            return refused(
                format!("config version does not allow {word}"),
                format!("config is \"{cni_version}\", {word} exists since {since}"),
            );
        }
        let newest = supported.last().copied().unwrap_or(Version::NEWEST);
        if asked > version::numbers(newest.as_str())? {
            return refused(format!("plugin version does not allow {word}"), mismatch());
        }
    }
    match Version::exact(cni_version).filter(|version| supported.contains(version)) {
        Some(version) => Ok(version),
        None => refused("incompatible CNI versions".to_owned(), mismatch()),
    }
}

impl Config {
    /// Whether a delegate in this process, which speaks `supported`, would take `command`
    /// with this configuration.
    ///
    /// # Errors
    /// Code 1, as the delegate's own process would answer.
    pub fn allow(&self, command: Command, supported: &[Version]) -> Result<()> {
        negotiate(self.version.as_str(), command, supported).map(drop)
    }

    /// Reads the document as a plugin's own configuration type.
    ///
    /// # Errors
    /// Code 6 naming the key.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        json::decode("", &self.document)
    }

    /// The same, where the reference plugin has a `sentence` for a document that it cannot
    /// read.
    ///
    /// # Errors
    /// Code 6 with the sentence, naming the key.
    pub fn read_as<T: DeserializeOwned>(&self, sentence: &str) -> Result<T> {
        self.read()
            .map_err(|error| coded(Code::Decode, format!("{sentence}: {error:#}")).into())
    }

    /// The result of the plugin before us, at whatever version it is written;
    /// the configuration's version where it does not say.
    ///
    /// # Errors
    /// Code 6 naming what is wrong in `prevResult`.
    pub fn prev_result(&self) -> Result<Option<CniResult>> {
        let shared: Shared = self.read()?;
        shared
            .prev_result
            .map(|value| {
                CniResult::parse(&value, self.version).map_err(|error| {
                    let reason = self
                        .foreign_version(&value)
                        .unwrap_or_else(|| format!("{error:#}"));
                    detailed(
                        Code::Decode,
                        format!("could not parse prevResult: {reason}"),
                        "\"prevResult\" must be what the plugin before this one answered",
                    )
                })
            })
            .transpose()
    }

    /// That a result is of no version that there is, in the reference's words.
    fn foreign_version(&self, result: &Value) -> Option<String> {
        let found = json::member(result, &["cniVersion"])?;
        let found = found.as_str()?;
        let shape = self.version.shape();
        let readable = Version::ALL.into_iter().filter(|v| v.shape() == shape);
        let readable: Vec<&str> = readable.map(Version::as_str).collect();
        Version::exact(found).is_none().then(|| {
            format!(
                "result type supports [{}] but unmarshalled CNIVersion is \"{found}\"",
                readable.join(" ")
            )
        })
    }

    /// `ipam.type`; `None` when there is no IPAM.
    ///
    /// # Errors
    /// Code 6.
    pub fn ipam_type(&self) -> Result<Option<String>> {
        let shared: Shared = self.read()?;
        Ok(shared
            .ipam
            .map(|ipam| ipam.plugin)
            .filter(|plugin| !plugin.is_empty()))
    }

    /// GC: the attachments that live. Everything else of this network is stale. `null` is
    /// an empty list: that is how Go writes one that nothing was ever put into.
    ///
    /// # Errors
    /// Code 7 when the key is absent, or an entry lacks a name: guessing that nothing
    /// lives would destroy every container's network.
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>> {
        let shared: Shared = self.read()?;
        let is_there = self.document.as_object().is_some_and(|document| {
            let is_list = |key: &String| VALID.iter().any(|v| v.eq_ignore_ascii_case(key));
            document.keys().any(is_list)
        });
        let empty = is_there.then(Vec::new);
        let Some(valid) = shared.valid.or(shared.valid_legacy).or(empty) else {
            return Err(detailed(
                Code::Config,
                "cni.dev/valid-attachments is missing",
                "GC removes every attachment that is not listed there; to remove all of them, pass an empty list",
            ));
        };
        let named = |(index, attachment): (usize, ValidAttachment)| {
            let ValidAttachment {
                container_id,
                ifname,
            } = attachment;
            for (key, value) in [("containerID", &container_id), ("ifname", &ifname)] {
                if value.is_empty() {
                    return Err(detailed(
                        Code::Config,
                        format!("cni.dev/valid-attachments[{index}].{key} is missing"),
                        "GC removes every attachment that is not listed there: each entry names its container and interface",
                    ));
                }
            }
            Ok(Attachment {
                container_id,
                ifname,
            })
        };
        valid.into_iter().enumerate().map(named).collect()
    }
}

/// The `dns` of a plugin that delegates to IPAM. Absent and empty lists differ: a list that
/// is there replaces IPAM's DNS.
#[derive(Debug, Deserialize, Default)]
#[serde(default)]
pub struct DnsOverride {
    nameservers: Option<Vec<String>>,
    domain: String,
    search: Option<Vec<String>>,
    options: Option<Vec<String>>,
}

impl DnsOverride {
    /// What replaces IPAM's DNS; `None` leaves it.
    pub fn replacement(self) -> Option<Dns> {
        let told = self.nameservers.is_some()
            || self.search.is_some()
            || self.options.is_some()
            || !self.domain.is_empty();
        told.then(|| Dns {
            nameservers: self.nameservers.unwrap_or_default(),
            domain: self.domain,
            search: self.search.unwrap_or_default(),
            options: self.options.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::documented::assert_documented;
    use crate::cni::error::ErrorObject;

    fn negotiate(text: &str, command: Command) -> Result<Config> {
        Document::parse(text.as_bytes().to_vec())?.negotiate(command, &Version::ALL)
    }

    /// Code, sentence and details of the refusal.
    fn refused(text: &str, command: Command) -> (u32, String, String) {
        let object = ErrorObject::from_error(&negotiate(text, command).unwrap_err());
        (object.code, object.msg, object.details)
    }

    #[test]
    fn names_are_checked() {
        for (text, code, msg) in [
            ("{}", 7, "missing network name"),
            (r#"{"name":""}"#, 7, "missing network name"),
            (
                r#"{"name":"a/b"}"#,
                7,
                "invalid characters found in network name",
            ),
            (
                "[]",
                6,
                "error unmarshall network config: the network configuration on stdin must be a JSON object, not a list",
            ),
            (
                "",
                6,
                "error unmarshall network config: unexpected end of JSON input",
            ),
            (
                r#"{"name":"n"} x"#,
                6,
                "error unmarshall network config: trailing characters at line 1 column 14",
            ),
            (
                r#"{"name":1}"#,
                6,
                "error unmarshall network config: name: expected a string, found the number 1",
            ),
            (
                r#"{"name":"n","cniVersion":1}"#,
                6,
                "decoding version from network config: cniVersion: expected a string, found the number 1",
            ),
        ] {
            let (found, sentence, _) = refused(text, Command::Add);
            assert_eq!((found, sentence.as_str()), (code, msg), "{text}");
        }
    }

    #[test]
    fn version_gates() {
        use Command::{Add, Check, Gc, Status};

        let config = |v: &str| format!(r#"{{"name":"n","cniVersion":"{v}"}}"#);
        for (version, command, msg) in [
            ("9.9", Add, "incompatible CNI versions"),
            ("1.0", Add, "incompatible CNI versions"),
            ("0.3.1", Check, "config version does not allow CHECK"),
            ("", Check, "config version does not allow CHECK"),
            ("1.0.0", Gc, "config version does not allow GC"),
            ("1.0.0", Status, "config version does not allow STATUS"),
            ("0.9.0", Check, "incompatible CNI versions"),
            ("2.0.0", Check, "plugin version does not allow CHECK"),
            ("2.0.0", Gc, "plugin version does not allow GC"),
            ("2.0.0", Status, "plugin version does not allow STATUS"),
        ] {
            let (code, sentence, _) = refused(&config(version), command);
            assert_eq!((code, sentence.as_str()), (1, msg), "{version}");
        }
        assert_eq!(refused(&config("x"), Check).0, 6);
        assert_eq!(
            refused(&config("9.9"), Add).2,
            r#"config is "9.9", plugin supports ["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]"#
        );
        for version in Version::ALL {
            assert_eq!(
                negotiate(&config(version.as_str()), Add).unwrap().version,
                version
            );
        }
    }

    #[test]
    fn valid_attachments_under_both_names() {
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let text = format!(
                r#"{{"name":"n","cniVersion":"1.1.0","{key}":[{{"containerID":"c","ifname":"e"}}]}}"#
            );
            let valid = negotiate(&text, Command::Gc).unwrap().valid_attachments();
            assert_eq!(valid.unwrap()[0].container_id, "c");
        }
        let none = negotiate(r#"{"name":"n","cniVersion":"1.1.0"}"#, Command::Gc).unwrap();
        assert!(none.valid_attachments().is_err());
        for empty in [
            r#""cni.dev/valid-attachments":null"#,
            r#""CNI.dev/Valid-Attachments":null"#,
            r#""cni.dev/attachments":null"#,
            r#""cni.dev/valid-attachments":null,"cni.dev/attachments":null"#,
            r#""cni.dev/valid-attachments":[]"#,
        ] {
            let text = format!(r#"{{"name":"n","cniVersion":"1.1.0",{empty}}}"#);
            let valid = negotiate(&text, Command::Gc).unwrap().valid_attachments();
            assert_eq!(valid.unwrap(), [], "{empty}");
        }
        for (entry, key) in [
            (r#"{"id":"c","ifname":"e"}"#, "containerID"),
            (r#"{"containerID":"c"}"#, "ifname"),
        ] {
            let text = format!(
                r#"{{"name":"n","cniVersion":"1.1.0","cni.dev/valid-attachments":[{entry}]}}"#
            );
            let valid = negotiate(&text, Command::Gc).unwrap().valid_attachments();
            let error = valid.unwrap_err().to_string();
            assert_eq!(
                error,
                format!("cni.dev/valid-attachments[0].{key} is missing")
            );
        }
    }

    #[test]
    fn the_manual_lists_the_keys_of_every_plugin() {
        assert_documented::<Shared>("README");
    }
}
