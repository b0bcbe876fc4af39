//! The configuration of `flannel` (docs/compatibility.md#10.1), and what it becomes with the daemon's
//! file: the configuration of the delegate (docs/compatibility.md#10.3).

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

use super::subnet_env::SubnetEnv;
use crate::cni::config::Config;
use crate::cni::error::{Code, coded, detailed};
use crate::cni::json::{self, Object, Problem};
use crate::cni::skel::{Call, Delegation};

/// Where the daemon writes unless the configuration says otherwise.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// Where delegates' configurations are kept for DEL.
const DATA_DIR: &str = "/var/lib/cni/flannel";
/// The delegate of who names none.
const DELEGATE: &str = "bridge";
/// Its IPAM plugin, likewise.
const IPAM: &str = "host-local";
/// What the daemon could have written.
const EXAMPLE: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// Every key of the reference's flannel v1.9.1.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    subnet_file: String,
    data_dir: String,
    delegate: Delegate,
    #[serde(rename = "ipam")]
    _ipam: Ipam,
    #[serde(rename = "runtimeConfig")]
    _runtime_config: BTreeMap<String, Value>,
}

/// `delegate`: the keys that matter here, of those of any plugin.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Delegate {
    r#type: Option<String>,
    name: Option<Value>,
    ipam: Option<Value>,
}

/// `ipam`, likewise.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Ipam {
    #[serde(rename = "type")]
    _plugin: String,
    #[serde(rename = "routes")]
    _routes: Vec<BTreeMap<String, Value>>,
}

/// What the configuration says.
#[derive(Debug, Clone)]
pub struct Settings {
    pub subnet_file: PathBuf,
    pub data_dir: PathBuf,
    delegate: Object,
    ipam: Object,
    runtime_config: Option<Value>,
}

impl Settings {
    /// The settings of `call`.
    ///
    /// # Errors
    /// Code 6 for a wrong type, 7 for what is wrong otherwise; each names the key.
    pub fn resolve(call: &Call) -> Result<Self> {
        Self::read(&call.config.document)
    }

    /// Those of a configuration.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn read(document: &Value) -> Result<Self> {
        let wire: Wire = json::decode("", document).map_err(|error| {
            let problem = error.to_string();
            if problem.starts_with("delegate.type:") {
                let sentence = "'delegate' dictionary, if present, must have (string) 'type' field";
                return detailed(Code::Decode, sentence, problem);
            }
            coded(Code::Decode, format!("failed to load netconf: {problem}")).into()
        })?;
        json::refuse(&wire.problems(""))?;
        let object = |key| match json::member(document, &[key]) {
            Some(Value::Object(object)) => object,
            _ => Object::new(),
        };
        Ok(Self {
            subnet_file: or_default(wire.subnet_file, SUBNET_FILE),
            data_dir: or_default(wire.data_dir, DATA_DIR),
            delegate: object("delegate"),
            ipam: object("ipam"),
            runtime_config: json::member(document, &["runtimeConfig"]),
        })
    }

    /// Settings to clean up with when those of the configuration cannot be read.
    pub fn usual() -> Self {
        Self {
            subnet_file: SUBNET_FILE.into(),
            data_dir: DATA_DIR.into(),
            delegate: Object::new(),
            ipam: Object::new(),
            runtime_config: None,
        }
    }

    /// The delegate's configuration for network `name`. Without the daemon's file it lacks
    /// what ADD needs, but not what finds the things that ADD has made.
    pub fn delegated(&self, name: &str, env: Option<&SubnetEnv>) -> Object {
        let mut delegate = self.delegate.clone();
        delegate.insert("name".into(), name.into());
        set_default(&mut delegate, "type", DELEGATE);
        // Who masquerades already has no need of the delegate's help.
        set_default(
            &mut delegate,
            "ipMasq",
            env.is_none_or(|env| !env.daemon_masquerades),
        );
        if delegate
            .get("type")
            .is_some_and(|plugin| plugin == DELEGATE)
        {
            set_default(&mut delegate, "isGateway", true);
        }
        if let Some(runtime_config) = &self.runtime_config {
            json::take(&mut delegate, "runtimeConfig");
            delegate.insert("runtimeConfig".into(), runtime_config.clone());
        }
        let mut ipam = self.ipam.clone();
        set_default(&mut ipam, "type", IPAM);
        if let Some(env) = env {
            set_default(&mut delegate, "mtu", env.mtu);
            let range = |subnet: &IpNet| json!([{ "subnet": subnet }]);
            json::take(&mut ipam, "ranges");
            ipam.insert(
                "ranges".into(),
                env.subnets.iter().map(range).collect::<Value>(),
            );
            let given = json::take(&mut ipam, "routes");
            let given = given.and_then(|routes| routes.as_array().cloned());
            let route = |network: &IpNet| json!({ "dst": network });
            let routes: Value = given
                .unwrap_or_default()
                .into_iter()
                .chain(env.networks.iter().map(route))
                .collect();
            ipam.insert("routes".into(), routes);
        }
        delegate.insert("ipam".into(), ipam.into());
        delegate
    }
}

impl Wire {
    /// What is wrong with values that are of the right type.
    fn problems(&self, root: &str) -> Vec<Problem> {
        let mut found = Vec::new();
        let at = |key: &str, message: String| Problem::new(json::below(root, key), message);
        for (key, value) in [("name", &self.delegate.name), ("ipam", &self.delegate.ipam)] {
            if value.is_some() {
                let message = format!(
                    "must not be there: \"{key}\" of the delegate is made of flannel's own"
                );
                found.push(at(&format!("delegate.{key}"), message).told_as(format!(
                    "'delegate' dictionary must not have '{key}' field, it'll be set by flannel"
                )));
            }
        }
        if self.delegate.r#type.as_deref() == Some("flannel") {
            found.push(at(
                "delegate.type",
                "flannel cannot delegate to itself".into(),
            ));
        }
        found
    }
}

/// `dataDir`, whatever else is wrong with the configuration.
///
/// # Errors
/// Code 6 when it is no string.
pub fn data_dir(config: &Config) -> Result<PathBuf> {
    /// Of the configuration, the one key.
    #[derive(Deserialize, Default)]
    #[serde(default, rename_all = "camelCase")]
    struct Wire {
        data_dir: String,
    }
    let wire: Wire = config.read()?;
    Ok(or_default(wire.data_dir, DATA_DIR))
}

/// Everything wrong with the plugin configuration `document` that stands at `root`.
pub fn problems(root: &str, document: &Value) -> Vec<Problem> {
    let is_others = |problem: &Problem| {
        // The delegate's and its IPAM's own keys are theirs to know.
        let is_below = |key| {
            problem
                .path
                .starts_with(&format!("{}.", json::below(root, key)))
        };
        problem.is_unknown_key && (is_below("delegate") || is_below("ipam"))
    };
    let mut found = json::problems::<Wire>(root, document);
    found.retain(|problem| !is_others(problem));
    if let Ok(wire) = json::decode::<Wire>(root, document) {
        found.extend(wire.problems(root));
    }
    found
}

/// The delegate and its IPAM plugin, with the configurations that they would get if the
/// daemon's file were an example's.
pub fn delegations(root: &str, document: &Value) -> Vec<Delegation> {
    let Ok(settings) = Settings::read(document) else {
        return Vec::new();
    };
    let Ok(env) = SubnetEnv::parse(EXAMPLE) else {
        return Vec::new();
    };
    let mut delegate = settings.delegated("example", Some(&env));
    if let Some(version) = json::member(document, &["cniVersion"]) {
        delegate.insert("cniVersion".into(), version);
    }
    let ipam = delegate.get("ipam").cloned().unwrap_or_default();
    let of_ipam = json!({ "ipam": ipam, "cniVersion": delegate.get("cniVersion") });
    let plugin = |object: &Value| {
        let plugin = json::member(object, &["type"]).unwrap_or_default();
        plugin.as_str().unwrap_or_default().to_owned()
    };
    let delegate = Value::Object(delegate);
    vec![
        Delegation {
            plugin: plugin(&delegate),
            key: json::below(root, "delegate.type"),
            root: json::below(root, "delegate"),
            document: delegate,
            is_ipam: false,
        },
        Delegation {
            plugin: plugin(&ipam),
            key: json::below(root, "ipam.type"),
            root: root.to_owned(),
            document: of_ipam,
            is_ipam: true,
        },
    ]
}

fn or_default(written: String, default: &str) -> PathBuf {
    if written.is_empty() {
        default.into()
    } else {
        written.into()
    }
}

/// Sets `key` unless it is there under any spelling; from then on it has this one.
fn set_default(object: &mut Object, key: &str, value: impl Into<Value>) {
    let value = json::take(object, key).unwrap_or_else(|| value.into());
    object.insert(key.into(), value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::documented::assert_documented;
    use crate::cni::error::ErrorObject;

    fn env() -> SubnetEnv {
        SubnetEnv::parse(
            "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\n\
             FLANNEL_IPV6_NETWORK=fd00:42::/56\nFLANNEL_IPV6_SUBNET=fd00:42:0:3::1/64\n\
             FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        )
        .unwrap()
    }

    fn delegated(document: &Value) -> Value {
        let settings = Settings::read(document).unwrap();
        settings.delegated("cbr0", Some(&env())).into()
    }

    #[test]
    fn the_delegate_is_a_bridge_with_the_daemons_subnets() {
        let k3s = json!({"delegate": {"hairpinMode": true, "isDefaultGateway": true}});
        assert_eq!(
            delegated(&k3s).to_string(),
            r#"{"hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.42.3.0/24"}],[{"subnet":"fd00:42:0:3::/64"}]],"routes":[{"dst":"10.42.0.0/16"},{"dst":"fd00:42::/56"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#
        );
    }

    #[test]
    fn what_is_written_stays() {
        let made = delegated(&json!({
            "Delegate": {
                "type": "ptp", "IPMasq": true, "mtu": 1300,
                "runtimeConfig": {"mac": "02:00:00:00:00:01"},
            },
            "ipam": {
                "type": "other", "dataDir": "/x", "ranges": [],
                "routes": [{"dst": "192.0.2.0/24", "gw": "10.42.3.9"}],
            },
            "runtimeConfig": {"ips": ["10.42.3.7"]},
            "dns": {"nameservers": ["192.0.2.1"]}, "args": {}, "prevResult": {},
        }));
        assert_eq!(
            made,
            json!({
                "name": "cbr0", "type": "ptp", "ipMasq": true, "mtu": 1300,
                "runtimeConfig": {"ips": ["10.42.3.7"]},
                "ipam": {
                    "type": "other", "dataDir": "/x",
                    "ranges": [[{"subnet": "10.42.3.0/24"}], [{"subnet": "fd00:42:0:3::/64"}]],
                    "routes": [
                        {"dst": "192.0.2.0/24", "gw": "10.42.3.9"},
                        {"dst": "10.42.0.0/16"}, {"dst": "fd00:42::/56"},
                    ],
                },
            })
        );
    }

    #[test]
    fn without_the_daemons_file_it_is_enough_to_clean_up() {
        let settings = Settings::read(&json!({"ipam": {"dataDir": "/x"}})).unwrap();
        assert_eq!(
            Value::from(settings.delegated("n", None)),
            json!({
                "name": "n", "type": "bridge", "isGateway": true, "ipMasq": true,
                "ipam": {"type": "host-local", "dataDir": "/x"},
            })
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (document, code, expected) in [
            (json!({"delegate": {"name": "x"}}), 7, "delegate.name: "),
            (json!({"delegate": {"ipam": {}}}), 7, "delegate.ipam: "),
            (
                json!({"delegate": {"type": "flannel"}}),
                7,
                "delegate.type: ",
            ),
            (json!({"delegate": {"type": 1}}), 6, "delegate.type: "),
            (json!({"delegate": []}), 6, "delegate: "),
            (json!({"ipam": {"routes": {}}}), 6, "ipam.routes: "),
            (json!({"ipam": {"routes": [1]}}), 6, "ipam.routes[0]: "),
            (json!({"subnetFile": 1}), 6, "subnetFile: "),
            (json!({"dataDir": []}), 6, "dataDir: "),
        ] {
            let object = ErrorObject::from_error(&Settings::read(&document).unwrap_err());
            assert_eq!(object.code, code, "{document}");
            let ours = object.ours();
            let ours = ours
                .strip_prefix("failed to load netconf: ")
                .unwrap_or(ours);
            assert!(ours.starts_with(expected), "{object:?}");
            let found = problems("", &document);
            assert!(
                found.iter().any(|p| expected.starts_with(&p.path)),
                "{found:?}"
            );
        }
    }

    #[test]
    fn keys_of_others_are_no_problem() {
        let document = json!({
            "delegate": {"hairpinMode": true},
            "ipam": {"dataDir": "/x", "ranges": []},
            "subnetfile": "/x", "datadirs": "/y",
        });
        let found = problems("plugins[0]", &document);
        let paths: Vec<&str> = found.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, ["plugins[0].datadirs"]);
        assert!(found.iter().all(|problem| problem.is_unknown_key));
    }

    #[test]
    fn the_manual_lists_every_key() {
        assert_documented::<Wire>("flannel");
    }
}
