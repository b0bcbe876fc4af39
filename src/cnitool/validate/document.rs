//! One file: the keys of the list or of the single plugin, and which plugins belong to it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use super::inspection::{Finding, Inspection, Look};
use super::plugin::is_remark;
use super::together::Member;
use super::twice::keys_twice;
use crate::cni::invocation::check_network_name;
use crate::cni::json::{self, Object, Problem};
use crate::cni::version::{self, Version};
use crate::runtime::directory::{self, LONE_PLUGIN, is_lone_plugin};
use crate::runtime::network::parse_boolean;

/// The keys of a list (specification section 1).
const LIST_KEYS: [&str; 7] = [
    "cniVersion",
    "cniVersions",
    "name",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
    "plugins",
];

/// Keys that nerdctl and podman write into their lists for themselves.
const RUNTIME_KEYS: [&str; 3] = ["args", "nerdctlID", "nerdctlLabels"];

/// A document, and the network it names.
pub struct Named {
    pub name: Option<String>,
    pub value: Object,
}

/// Reads a file as far as JSON goes.
///
/// # Errors
/// When it is no JSON object.
pub fn parse(file: &Path, raw: &[u8]) -> Result<Named> {
    let value = json::parse_object("the file", raw)?;
    let name = if is_list(file, &value) {
        value.get("name").cloned()
    } else {
        json::take(&mut value.clone(), "name")
    };
    let name = name.and_then(|name| name.as_str().map(str::to_owned));
    Ok(Named { name, value })
}

/// The name that a file gives its network, however broken it is otherwise.
pub fn name_in(file: &Path) -> Option<String> {
    parse(file, &directory::read_text(file).ok()?).ok()?.name
}

fn is_list(file: &Path, value: &Object) -> bool {
    file.extension().is_some_and(|e| e == "conflist") || value.contains_key("plugins")
}

/// Everything wrong with the document in `file`, which is `raw` and says `value`, its sibling
/// plugins included.
pub fn inspect(file: &Path, raw: &[u8], value: &Object, look: &Look<'_>) -> Vec<Finding> {
    let mut inspection = Inspection {
        file: file.into(),
        look,
        findings: Vec::new(),
    };
    let is_list = is_list(file, value);
    if is_list {
        inspection.list(value);
    } else {
        inspection.single(value);
    }
    for problem in keys_twice(raw, is_list) {
        inspection.problem(problem);
    }
    inspection.findings
}

impl Inspection<'_> {
    fn list(&mut self, list: &Object) {
        if self.file.extension().is_none_or(|e| e != "conflist") {
            self.error("", "a list of plugins: rename the file to .conflist");
        }
        if is_lone_plugin(list) && self.plugins_beside(list).is_empty() {
            self.error(
                "",
                format!("a plugin, not a list of plugins: {LONE_PLUGIN}"),
            );
            return self.single(list);
        }
        self.list_keys(list);
        self.name(list.get("name"));
        self.versions(list);
        for key in ["disableCheck", "disableGC", "loadOnlyInlinedPlugins"] {
            if let Some(value) = list.get(key).filter(|value| !value.is_null())
                && parse_boolean(value).is_none()
            {
                self.error(key, format!("expected true or false, found {value}"));
            }
        }
        let only_inlined = list.get("loadOnlyInlinedPlugins").and_then(parse_boolean);
        let beside = if only_inlined == Some(true) {
            Vec::new()
        } else {
            self.plugins_beside(list)
        };
        let mut members = Vec::new();
        match list.get("plugins") {
            None if beside.is_empty() => self.error("plugins", "missing"),
            None => {}
            Some(Value::Array(plugins)) if !plugins.is_empty() => {
                for (index, plugin) in plugins.iter().enumerate() {
                    let path = format!("plugins[{index}]");
                    self.plugin(list, &path, plugin);
                    members.extend(Member::new(&self.file, &path, plugin));
                }
            }
            Some(_) => self.error("plugins", "must be a list of at least one plugin"),
        }
        let list_file = self.file.clone();
        for file in beside {
            self.file = file;
            let raw = directory::read_text(&self.file);
            match raw.and_then(|raw| json::parse_object("the file", &raw)) {
                Ok(plugin) => {
                    let plugin = plugin.into();
                    self.plugin(list, "", &plugin);
                    members.extend(Member::new(&self.file, "", &plugin));
                }
                Err(error) => self.error("", format!("{error:#}")),
            }
        }
        self.file = list_file;
        self.together(&members);
    }

    /// The files of the directory called like the network.
    fn plugins_beside(&mut self, list: &Object) -> Vec<PathBuf> {
        let name = list.get("name").and_then(Value::as_str).unwrap_or_default();
        if check_network_name(name).is_err() {
            return Vec::new();
        }
        directory::plugins_beside(&self.file, name).unwrap_or_else(|error| {
            self.error("", format!("{error:#}"));
            Vec::new()
        })
    }

    /// A list's keys match exactly, so a wrongly written one is no key.
    fn list_keys(&mut self, list: &Object) {
        for key in list.keys() {
            if LIST_KEYS.contains(&key.as_str())
                || RUNTIME_KEYS.contains(&key.as_str())
                || is_remark(key)
            {
                continue;
            }
            match LIST_KEYS.iter().find(|k| k.eq_ignore_ascii_case(key)) {
                Some(known) => self.error(key, format!("write it \"{known}\"; it is ignored")),
                None => self.problem(Problem::unknown_key(key.clone(), key, LIST_KEYS)),
            }
        }
    }

    fn name(&mut self, name: Option<&Value>) {
        match name {
            None | Some(Value::Null) => self.error("name", "missing"),
            Some(Value::String(name)) => {
                if let Err(error) = check_network_name(name) {
                    self.error("name", format!("{error:#}"));
                }
            }
            Some(other) => self.error("name", format!("expected a string, found {other}")),
        }
    }

    fn versions(&mut self, list: &Object) {
        let single = list.get("cniVersion").filter(|value| !value.is_null());
        let several = list.get("cniVersions").filter(|value| !value.is_null());
        match single {
            None if several.is_none() => {
                self.warning("cniVersion", "missing: 0.1.0 is assumed");
            }
            None => {}
            Some(Value::String(text)) => self.version("cniVersion", text, several.is_none()),
            Some(other) => self.error("cniVersion", format!("expected a string, found {other}")),
        }
        match several {
            None => {}
            Some(Value::Array(versions)) => {
                let mut known = single
                    .and_then(Value::as_str)
                    .is_some_and(|text| !text.is_empty() && Version::exact(text).is_some());
                for (index, version) in versions.iter().enumerate() {
                    let path = format!("cniVersions[{index}]");
                    match version {
                        Value::String(text) => {
                            known |= Version::exact(text).is_some();
                            self.version(&path, text, false);
                        }
                        other => self.error(&path, format!("expected a string, found {other}")),
                    }
                }
                if !known {
                    self.error("cniVersions", format!("none of them is {}", ours()));
                }
            }
            Some(other) => self.error("cniVersions", format!("expected a list, found {other}")),
        }
    }

    fn version(&mut self, path: &str, text: &str, must_be_ours: bool) {
        if let Err(error) = version::numbers(text) {
            // The reference's sentence stands in front, for programs.
            self.error(path, error.root_cause().to_string());
        } else if must_be_ours && Version::exact(text).is_none() {
            self.error(path, format!("\"{text}\" is none of {}", ours()));
        }
    }

    /// A `.conf` file: name, version and plugin in one object.
    fn single(&mut self, document: &Object) {
        let mut rest = document.clone();
        let name = json::take(&mut rest, "name");
        self.name(name.as_ref());
        let version = json::take(&mut rest, "cniVersion");
        if let Some(Value::String(text)) = &version {
            self.version("cniVersion", text, true);
        }
        let mut list = Object::new();
        list.extend(name.map(|name| ("name".into(), name)));
        list.extend(version.map(|version| ("cniVersion".into(), version)));
        let plugin = document.clone().into();
        self.plugin(&list, "", &plugin);
        let member = Member::new(&self.file, "", &plugin);
        self.together(member.as_slice());
    }
}

fn ours() -> String {
    Version::ALL.map(Version::as_str).join(", ")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::cni::collector::Collector;
    use crate::cni::result::CniResult;
    use crate::cni::skel::{Call, Plugin};
    use crate::undo::Undo;

    /// A plugin that knows one key, and IPAM's.
    struct Known;

    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct KnownKeys {
        bridge: String,
        mtu: u32,
    }

    impl Plugin for Known {
        fn versions(&self) -> &'static [Version] {
            &[Version::V1_0_0]
        }
        fn add<'a>(&self, _call: &'a Call, _undo: &mut Undo<'a>) -> Result<CniResult> {
            Ok(CniResult::default())
        }
        fn del(&self, _call: &Call) -> Result<()> {
            Ok(())
        }
        fn check(&self, _call: &Call) -> Result<()> {
            Ok(())
        }
        fn status(&self, _call: &Call) -> Result<()> {
            Ok(())
        }
        fn gc(&self, _call: &Call, _collector: &mut Collector) -> Result<()> {
            Ok(())
        }
        fn validate(&self, root: &str, document: &Value) -> Vec<Problem> {
            json::problems::<KnownKeys>(root, document)
        }
    }

    fn findings(file: &str, text: &str) -> Vec<String> {
        let look = Look {
            find: &|plugin| {
                anyhow::ensure!(plugin != "missing", "failed to find plugin");
                Ok(())
            },
            plugin: |name| (name == "known").then_some(&Known as &dyn Plugin),
        };
        let file = Path::new(file);
        let document = parse(file, text.as_bytes()).unwrap();
        inspect(file, text.as_bytes(), &document.value, &look)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn everything_wrong_with_a_list_at_once() {
        assert_eq!(
            findings(
                "/n.conflist",
                r#"{
                    "nam": "n", "name": "a/b", "CNIVersion": "1.0.0", "cniVersion": "9.9",
                    "disableGC": "maybe", "_remark": 1, "nerdctlID": 0, "x.org/y": 1, "zzzzzz": 1,
                    "plugins": [
                        {"type": "missing", "capabilities": {"mac": 1}, "prevResult": {}},
                        {}, 5, {"type": 5},
                        {"type": "macvlan", "anything": 1, "ipam": {"type": "missing"}},
                        {"type": "foreign", "ipam": {"type": "missing", "subnet": "usePodCidr"}}
                    ]
                }"#
            ),
            [
                "/n.conflist: error: CNIVersion: write it \"cniVersion\"; it is ignored",
                "/n.conflist: warning: nam: unknown key, ignored; did you mean \"name\"?",
                "/n.conflist: warning: zzzzzz: unknown key, ignored",
                "/n.conflist: error: name: invalid characters found in network name: a/b",
                "/n.conflist: error: cniVersion: \"9.9\" is none of 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0",
                "/n.conflist: error: disableGC: expected true or false, found \"maybe\"",
                "/n.conflist: error: plugins[0].capabilities.mac: expected true or false, found the number 1",
                "/n.conflist: warning: plugins[0].prevResult: the runtime's to set: not passed on to the plugin",
                "/n.conflist: error: plugins[0].type: failed to find plugin",
                "/n.conflist: error: plugins[1].type: missing",
                "/n.conflist: error: plugins[2]: a plugin must be an object",
                "/n.conflist: error: plugins[3].type: expected a string, found the number 5",
                "/n.conflist: error: plugins[4].ipam.type: failed to find plugin",
            ]
        );
    }

    #[test]
    fn our_plugins_are_asked_about_their_own_keys_only() {
        assert_eq!(
            findings(
                "/n.conflist",
                r#"{"name": "n", "cniVersion": "1.1.0", "plugins": [
                    {"type": "known", "bridg": "x", "mtu": "y", "dns": {}, "args": {},
                     "capabilities": {"mac": true}, "ipam": {"type": "foreign", "subnet": 1}}]}"#
            ),
            [
                "/n.conflist: error: cniVersion: known does not speak 1.1.0, only 1.0.0",
                "/n.conflist: error: plugins[0].mtu: expected an integer, found the string \"y\"",
                "/n.conflist: warning: plugins[0].bridg: unknown key, ignored; did you mean \"bridge\"?",
            ]
        );
    }

    #[test]
    fn versions() {
        let versions = |keys: &str| {
            let text = format!(r#"{{"name": "n", {keys} "plugins": [{{"type": "x"}}]}}"#);
            findings("/n.conflist", &text)
        };
        assert!(versions(r#""cniVersion": "0.4.0","#).is_empty());
        assert!(versions(r#""cniVersions": ["1.0.0", "7.0.0"],"#).is_empty());
        for (keys, part) in [
            ("", "warning: cniVersion: missing"),
            (r#""cniVersion": 1,"#, "expected a string"),
            (r#""cniVersion": "x","#, "not a version"),
            (r#""cniVersions": ["7.0.0"],"#, "none of them"),
            (r#""cniVersions": "1.0.0","#, "expected a list"),
            (r#""cniVersions": ["1.0.0", 1],"#, "cniVersions[1]"),
        ] {
            let found = versions(keys);
            assert!(found.len() == 1 && found[0].contains(part), "{found:?}");
        }
    }

    #[test]
    fn single_plugins() {
        assert!(
            findings(
                "/n.conf",
                r#"{"Name": "n", "cniVersion": "0.4.0", "type": "x", "y": 1}"#
            )
            .is_empty()
        );
        assert_eq!(
            findings("/n.conf", r#"{"cniVersion": "9"}"#),
            [
                "/n.conf: error: name: missing",
                "/n.conf: error: cniVersion: \"9\" is none of 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0",
                "/n.conf: error: type: missing",
            ]
        );
        let found = findings("/n.conf", r#"{"name": "n", "plugins": []}"#);
        assert!(found[0].contains("rename the file"), "{found:?}");
    }
}
