//! One plugin's object: what all plugins share, whether it can be found, and what it
//! says of itself.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::inspection::Inspection;
use super::together::uses_ipam;
use crate::cni::json::{self, Object, Problem};
use crate::cni::result::Dns;
use crate::cni::skel::Delegation;
use crate::cni::version::Version;
use crate::runtime::network::{self, Network, PluginConfiguration, plugin_member};
use crate::runtime::request::{self, Additions};

/// Keys of a plugin's object that belong to no single plugin.
const SHARED_KEYS: [&str; 9] = [
    "cniVersion",
    "name",
    "type",
    "capabilities",
    "args",
    "ipam",
    "dns",
    "runtimeConfig",
    "prevResult",
];

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Shared {
    cni_version: String,
    name: String,
    r#type: String,
    capabilities: BTreeMap<String, bool>,
    args: BTreeMap<String, Value>,
    ipam: Ipam,
    dns: Dns,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Ipam {
    r#type: String,
}

impl Inspection<'_> {
    /// Looks at one plugin's object, which stands at `path` of the file.
    pub fn plugin(&mut self, list: &Object, path: &str, plugin: &Value) {
        let Value::Object(object) = plugin else {
            self.error(path, "a plugin must be an object");
            return;
        };
        let shared = json::problems::<Shared>(path, plugin);
        let mistyped = shared.into_iter().filter(|p| !p.is_unknown_key);
        mistyped.for_each(|problem| self.problem(problem));
        for key in object.keys() {
            if key.eq_ignore_ascii_case("prevResult") {
                let message = "the runtime's to set: not passed on to the plugin";
                self.warning(&json::below(path, key), message);
            } else if key.eq_ignore_ascii_case("runtimeConfig")
                && plugin_member(object, "capabilities").is_some()
            {
                let message =
                    "replaced as a whole where the runtime has something for its capabilities";
                self.warning(&json::below(path, key), message);
            }
        }
        let Some(plugin_type) = network::plugin_type(object) else {
            // A wrong type has been told already.
            if plugin_member(object, "type").is_none_or(|value| value.is_string()) {
                self.error(&json::below(path, "type"), "missing");
            }
            return;
        };
        self.executable(&json::below(path, "type"), &plugin_type);
        for delegation in self.delegations(&plugin_type, path, plugin) {
            self.executable(&delegation.key, &delegation.plugin);
        }
        self.ask(list, path, plugin, &plugin_type);
    }

    fn executable(&mut self, path: &str, plugin: &str) {
        if let Err(error) = (self.look.find)(plugin) {
            self.error(path, format!("{error:#}"));
        }
    }

    /// Whom the plugin at `path` runs. Of the reference's plugins that we do not have, IPAM is
    /// known; what other plugins make of such a section is their own business.
    fn delegations(&self, plugin_type: &str, path: &str, document: &Value) -> Vec<Delegation> {
        match (self.look.plugin)(plugin_type) {
            Some(plugin) => plugin.delegations(path, document),
            None if !uses_ipam(plugin_type) => Vec::new(),
            None => Delegation::to_ipam(path, document).into_iter().collect(),
        }
    }

    /// Lets our own plugins say what they find. They see what they would be run with.
    fn ask(&mut self, list: &Object, path: &str, plugin: &Value, plugin_type: &str) {
        let name = list.get("name").and_then(Value::as_str).unwrap_or_default();
        let (Ok(configuration), Ok(version)) = (
            PluginConfiguration::parse(&self.file, path, plugin.clone()),
            network::choose_version(list),
        ) else {
            // Both have been reported, and so has a version that nobody speaks.
            return;
        };
        let Some(version) = Version::exact(&version) else {
            return;
        };
        let network = Network {
            file: self.file.clone(),
            name: name.to_owned(),
            cni_version: version.as_str().into(),
            disable_check: false,
            disable_gc: false,
            only_inlined: true,
            plugins: Vec::new(),
            raw: Vec::new(),
        };
        let mut document = request::document(&network, &configuration, Additions::default());
        // What the runtime is going to add need not be written.
        if let Some(capabilities) = plugin_member(&configuration.document, "capabilities") {
            document.insert("capabilities".into(), capabilities);
        }
        let document: Value = document.into();
        let delegations = self.delegations(plugin_type, path, &document);
        let itself = Delegation {
            plugin: plugin_type.to_owned(),
            key: json::below(path, "type"),
            root: path.to_owned(),
            document,
            is_ipam: false,
        };
        let mut problems: Vec<Problem> = Vec::new();
        for delegation in std::iter::once(itself).chain(delegations) {
            let Delegation {
                plugin: name,
                root,
                document,
                is_ipam,
                ..
            } = delegation;
            let Some(plugin) = (self.look.plugin)(&name) else {
                continue;
            };
            if !plugin.versions().contains(&version) {
                let list: Vec<_> = plugin.versions().iter().map(|v| v.as_str()).collect();
                self.error(
                    "cniVersion",
                    format!("{name} does not speak {version}, only {}", list.join(", ")),
                );
            }
            let ipam_path = json::below(&root, "ipam");
            // Who delegates knows nothing of its delegate's keys, and the other way round.
            let concerned = |problem: &Problem| {
                let in_ipam = is_below(&problem.path, &ipam_path);
                let key = problem.path.rsplit('.').next().unwrap_or_default();
                let shared = json::below(&root, key) == problem.path
                    && (SHARED_KEYS.iter().any(|k| k.eq_ignore_ascii_case(key)) || is_remark(key));
                !problem.is_unknown_key || (in_ipam == is_ipam && !shared)
            };
            problems.extend(
                plugin
                    .validate(&root, &document)
                    .into_iter()
                    .filter(concerned),
            );
        }
        for problem in problems {
            let known = self.findings.iter().any(|f| f.problem == problem);
            if !known {
                self.problem(problem);
            }
        }
    }
}

/// Keys that say of themselves that they are a remark, or another program's.
pub fn is_remark(key: &str) -> bool {
    key.starts_with(['_', '/', '#', '$']) || key.contains(['/', '.'])
}

fn is_below(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent)
        .is_some_and(|rest| rest.starts_with(['.', '[']))
}
