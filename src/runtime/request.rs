//! What one plugin gets on its standard input (specification section 3, "Deriving
//! request configuration from plugin configuration").
//!
//! Everything the operator wrote is passed on digit for digit, except the keys that are
//! the runtime's to set: stale ones of those would be believed (docs/compatibility.md#defect-42).

use anyhow::Result;
use serde_json::{Value, json};

use super::network::{Network, PluginConfiguration};
use crate::cni::invocation::Attachment;
use crate::cni::json::{self, Object};

/// GC's key, and the spelling that plugins knew before.
const VALID_ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// Keys that never pass from the file to the plugin.
const RUNTIMES_OWN: [&str; 6] = [
    "name",
    "cniVersion",
    "capabilities",
    "prevResult",
    VALID_ATTACHMENTS[0],
    VALID_ATTACHMENTS[1],
];

/// What the runtime adds to a plugin's configuration.
#[derive(Debug, Clone, Copy, Default)]
pub struct Additions<'a> {
    /// In the list's version.
    pub prev_result: Option<&'a Value>,
    /// By capability; a plugin gets those it asks for.
    pub capability_args: Option<&'a Object>,
    /// GC only.
    pub valid_attachments: Option<&'a [Attachment]>,
}

/// The configuration that `plugin` of `network` is run with.
pub fn document(
    network: &Network,
    plugin: &PluginConfiguration,
    additions: Additions<'_>,
) -> Object {
    let mut document = plugin.document.clone();
    for key in RUNTIMES_OWN {
        json::take(&mut document, key);
    }
    document.insert("name".into(), network.name.as_str().into());
    document.insert("cniVersion".into(), network.cni_version.as_str().into());
    if let Some(prev_result) = additions.prev_result {
        document.insert("prevResult".into(), prev_result.clone());
    }
    let wanted: Object = additions
        .capability_args
        .into_iter()
        .flatten()
        .filter(|(name, _)| plugin.capabilities.contains(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    // As with libcni, a literal one stays where the runtime has nothing of its own to say.
    if !wanted.is_empty() {
        json::take(&mut document, "runtimeConfig");
        document.insert("runtimeConfig".into(), wanted.into());
    }
    if let Some(valid) = additions.valid_attachments {
        let list: Vec<Value> = valid
            .iter()
            .map(|a| json!({"containerID": a.container_id, "ifname": a.ifname}))
            .collect();
        for key in VALID_ATTACHMENTS {
            document.insert(key.into(), list.clone().into());
        }
    }
    document
}

/// [`document`] as bytes: compact, keys sorted.
///
/// # Errors
/// None that a document read from JSON can cause.
pub fn encode(
    network: &Network,
    plugin: &PluginConfiguration,
    additions: Additions<'_>,
) -> Result<Vec<u8>> {
    json::compact(&document(network, plugin, additions))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn request(plugin: &str, additions: Additions<'_>) -> String {
        let text = format!(r#"{{"name":"n","cniVersion":"1.1.0","plugins":[{plugin}]}}"#);
        let network = Network::parse_list(Path::new("/n"), text.into_bytes()).unwrap();
        String::from_utf8(encode(&network, &network.plugins[0], additions).unwrap()).unwrap()
    }

    #[test]
    fn numbers_pass_unchanged_and_keys_are_sorted() {
        let plugin = r#"{"type":"a","z":1.50,"b":12345678901234567890,"c":1e+5,"A":"<"}"#;
        assert_eq!(
            request(plugin, Additions::default()),
            r#"{"A":"\u003c","b":12345678901234567890,"c":1e+5,"cniVersion":"1.1.0","name":"n","type":"a","z":1.50}"#
        );
    }

    #[test]
    fn only_the_runtime_sets_its_keys() {
        let plugin = r#"{"type":"a","NAME":"x","cniversion":"9","prevResult":{"ips":[]},
            "capabilities":{"mac":true},
            "cni.dev/attachments":[],"cni.dev/valid-attachments":[]}"#;
        assert_eq!(
            request(plugin, Additions::default()),
            r#"{"cniVersion":"1.1.0","name":"n","type":"a"}"#
        );
    }

    #[test]
    fn a_literal_runtime_config_stays_until_the_runtime_has_one() {
        let plugin =
            r#"{"type":"a","RuntimeConfig":{"mac":"x","y":1},"capabilities":{"mac":true}}"#;
        let asked = |capability_args: &Value| {
            let additions = Additions {
                capability_args: capability_args.as_object(),
                ..Additions::default()
            };
            request(plugin, additions)
        };
        assert_eq!(
            asked(&json!({"other": 1})),
            r#"{"RuntimeConfig":{"mac":"x","y":1},"cniVersion":"1.1.0","name":"n","type":"a"}"#
        );
        assert_eq!(
            asked(&json!({"mac": "z"})),
            r#"{"cniVersion":"1.1.0","name":"n","runtimeConfig":{"mac":"z"},"type":"a"}"#
        );
    }

    #[test]
    fn what_the_runtime_knows_is_added() {
        let capability_args = json!({"mac": "m", "ips": ["1"], "bandwidth": {}});
        let prev_result = json!({"cniVersion": "1.1.0"});
        let valid = [Attachment {
            container_id: "c".into(),
            ifname: "eth0".into(),
        }];
        let additions = Additions {
            prev_result: Some(&prev_result),
            capability_args: capability_args.as_object(),
            valid_attachments: Some(&valid),
        };
        let plugin = r#"{"type":"a","capabilities":{"mac":true,"ips":false,"x":true}}"#;
        let list = r#"[{"containerID":"c","ifname":"eth0"}]"#;
        assert_eq!(
            request(plugin, additions),
            format!(
                r#"{{"cni.dev/attachments":{list},"cni.dev/valid-attachments":{list},"cniVersion":"1.1.0","name":"n","prevResult":{{"cniVersion":"1.1.0"}},"runtimeConfig":{{"mac":"m"}},"type":"a"}}"#
            )
        );
    }
}
