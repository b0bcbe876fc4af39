//! What must hold for whatever bytes come from outside: the doors of the fuzz targets in
//! `fuzz/`. Each reads its bytes as the program would, and asserts more than that nothing
//! panics. The corpus that is kept goes through the same doors in the unit tests.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use crate::applets::{self, APPLETS, Entry};
use crate::cni::address::parse_ip;
use crate::cni::config::{Config, Document};
use crate::cni::error::ErrorObject;
use crate::cni::invocation::{Command, Environment, Invocation};
use crate::cni::json::{self, Object, Problem};
use crate::cni::skel::Call;
use crate::cni::version::{Shape, Version};
use crate::cni::{args, delegate};
use crate::net::mac::Mac;
use crate::runtime::network::{Network, PluginConfiguration};
use crate::runtime::parameters::parse_args;
use crate::runtime::request::{self, Additions};
use crate::{cnitool, netfilter, plugins, runtime};

/// A target: the name of its corpus, and what holds for every input.
type Target = (&'static str, fn(&[u8]));

/// All of them, as they are called in `fuzz/`.
const TARGETS: [Target; 9] = [
    ("arguments", arguments),
    ("configuration", configuration),
    ("conflist", conflist),
    ("conntrack", netfilter::conntrack::fuzz),
    ("files", files),
    ("iptables", netfilter::iptables::fuzz::table),
    ("nftables", netfilter::nftables::fuzz::rule),
    ("result", result),
    ("subnet_env", plugins::flannel::fuzz::subnet_env),
];

/// Asserts what must hold for `data` as an input of `target`.
///
/// # Panics
/// When it does not hold.
pub fn holds(target: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(name, _)| *name == target);
    assert!(target.is_some(), "no such target");
    if let Some((_, holds)) = target {
        holds(data);
    }
}

/// The first line of `data`, and the rest.
pub(crate) fn first_line(data: &[u8]) -> (String, &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n');
    let (line, rest) = data.split_at(end.unwrap_or(data.len()));
    let line = String::from_utf8_lossy(line).into_owned();
    (line, rest.get(1..).unwrap_or_default())
}

/// An error about what came in: the specification's code says so, in a sentence.
fn assert_refused(error: &anyhow::Error) {
    let ErrorObject { code, msg, .. } = ErrorObject::from_error(error);
    assert!(matches!(code, 1 | 2 | 4 | 6 | 7), "code {code}: {msg}");
    assert!(!msg.is_empty());
}

/// What came of reading something, errors looked at.
fn accepted<T>(read: Result<T>) -> Option<T> {
    read.inspect_err(assert_refused).ok()
}

/// Every problem names a place that is in `document`, or a member that an object there
/// lacks.
pub(crate) fn assert_places<'a>(document: &Value, problems: impl IntoIterator<Item = &'a Problem>) {
    for Problem { path, message, .. } in problems {
        assert!(leads_somewhere(document, path), "{path}: {message}");
    }
}

fn leads_somewhere(value: &Value, path: &str) -> bool {
    if path.is_empty() {
        return true;
    }
    match value {
        Value::Object(members) => {
            // A dot separates keys, and may stand in them, which match in any case.
            let forms = [Some(path), path.strip_prefix('.')];
            forms.into_iter().flatten().any(|path| {
                let is_member = members.iter().any(|(key, value)| {
                    let (start, rest) = (path.get(..key.len()), path.get(key.len()..));
                    start.is_some_and(|start| start.eq_ignore_ascii_case(key))
                        && rest.is_some_and(|rest| leads_somewhere(value, rest))
                });
                is_member || !path.contains(['.', '['])
            })
        }
        Value::Array(items) => {
            let index = path.strip_prefix('[').and_then(|path| path.split_once(']'));
            let item = index.and_then(|(index, rest)| {
                let index: usize = index.parse().ok()?;
                Some((items.get(index)?, rest))
            });
            item.is_some_and(|(item, rest)| leads_somewhere(item, rest))
        }
        _ => false,
    }
}

/// A plugin's configuration, and `CNI_ARGS` on a line before it: accepted settings keep
/// their limits, what is refused has a code of the specification, and what
/// `cnitool validate` finds nothing wrong with is accepted.
fn configuration(data: &[u8]) {
    let (arguments, raw) = first_line(data);
    let commands = [Command::Del, Command::Check, Command::Gc, Command::Status];
    for command in commands {
        let negotiate = || Document::parse(raw.to_vec())?.negotiate(command, &Version::ALL);
        if let Some(config) = accepted(negotiate()) {
            shared_keys(&config, raw);
        }
    }
    let text = String::from_utf8_lossy(raw);
    let Some(call) = accepted(Call::to_add(&text, &arguments)) else {
        return;
    };
    shared_keys(&call.config, text.as_bytes());
    // With the version that the runtime adds, or means.
    let mut document = call.config.document.clone();
    if let Value::Object(members) = &mut document {
        json::take(members, "cniVersion");
        members.insert("cniVersion".into(), call.config.version.as_str().into());
    }
    for applet in APPLETS {
        let Entry::Plugin(plugin) = applet.entry else {
            continue;
        };
        let problems = plugin.validate("", &document);
        assert_places(&document, &problems);
        let settings = match applet.name {
            "bandwidth" => plugins::bandwidth::fuzz::settings(&call),
            "firewall" => plugins::firewall::fuzz::settings(&call),
            "bridge" => plugins::bridge::fuzz::settings(&call),
            "flannel" => plugins::flannel::fuzz::settings(&call),
            "ipam" => plugins::ipam::fuzz::settings(&call),
            "portmap" => plugins::portmap::fuzz::settings(&call),
            "ptp" => plugins::ptp::fuzz::settings(&call),
            "static" => plugins::r#static::fuzz::settings(&call),
            "tuning" => plugins::tuning::fuzz::settings(&call),
            _ => Ok(()),
        };
        let is_valid = problems.iter().all(|problem| problem.is_warning);
        if let Err(error) = settings {
            assert_refused(&error);
            let code = ErrorObject::from_error(&error).code;
            // Keys that stand twice are seen in the text only.
            let is_seen = code != 4 && !error.to_string().contains("duplicated");
            assert!(!(is_valid && is_seen), "{} valid: {error:#}", applet.name);
        }
    }
}

/// What all plugins read.
fn shared_keys(config: &Config, raw: &[u8]) {
    assert_eq!(config.raw, raw, "delegates get other bytes");
    let name = Path::new(&config.network);
    assert!(name.components().count() == 1 && !config.network.starts_with('.'));
    accepted(config.prev_result());
    accepted(config.ipam_type());
    accepted(config.valid_attachments());
}

/// What a plugin or a cache says is a result: written in a version and read again it is
/// the same, and says the same.
fn result(data: &[u8]) {
    drop(crate::cni::exec::fuzz(data));
    for version in Version::ALL {
        let Some(result) = accepted(delegate::read_result("a plugin", data, version)) else {
            continue;
        };
        for version in Version::ALL {
            let Ok(wire) = result.to_wire(version) else {
                assert_eq!(version.shape(), Shape::OnePerFamily);
                continue;
            };
            let printed = json::pretty(&wire).unwrap_or_default();
            let again = delegate::read_result("ourselves", &printed, Version::NEWEST);
            let again = again.map_err(|error| format!("{error:#}"));
            assert!(again.is_ok(), "{again:?}");
            let Ok(again) = again else { continue };
            if version.shape() == Shape::Current {
                assert_eq!(again, result);
            }
            let wire = again.to_wire(version).and_then(|wire| json::pretty(&wire));
            assert_eq!(wire.unwrap_or_default(), printed, "as {version}");
        }
    }
}

/// `CNI_ARGS` and the other variables, a line each.
fn arguments(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (first, _) = first_line(data);
    if let Some(known) = accepted(args::parse(&first, &["IP", "MAC"])) {
        for (key, value) in known {
            assert!(first.contains(&format!("{key}={value}")));
        }
    }
    if let Some(pairs) = accepted(parse_args(&first)) {
        let texts: Vec<String> = pairs.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(parse_args(&texts.join(";")).ok(), Some(pairs));
    }
    if let Some(ip) = parse_ip(&first) {
        assert_eq!(parse_ip(&ip.to_string()), Some(ip));
    }
    if let Some(mac) = Mac::parse(&first) {
        assert_eq!(Mac::parse(&mac.to_string()), Some(mac));
    }
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let env: Environment = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    for command in [Command::Add, Command::Gc] {
        let Some(invocation) = accepted(Invocation::parse(command, &env)) else {
            continue;
        };
        if command == Command::Add {
            let attachment = &invocation.attachment;
            for name in [&attachment.container_id, &attachment.ifname] {
                assert!(!name.is_empty() && name != "." && name != "..");
                assert!(!name.contains(['/', '\n', ' ']));
            }
            assert!(attachment.ifname.len() <= 15 && !attachment.ifname.contains('%'));
            assert!(!attachment.container_id.starts_with('.'));
        }
    }
}

/// A file of `NETCONFPATH`, its name on a line before it. Its findings have a place, and
/// a network that can be used gives each plugin a configuration that can be read.
fn conflist(data: &[u8]) {
    let (name, raw) = first_line(data);
    let is_list = Path::new(&name).extension().is_none_or(|end| end != "conf");
    let file = Path::new(if is_list {
        "/n/a.conflist"
    } else {
        "/n/a.conf"
    });
    let network = if is_list {
        Network::parse_list(file, raw.to_vec())
    } else {
        Network::parse_single(file, raw)
    };
    let inspected = cnitool::problems(file, raw, applets::plugin);
    let is_valid = inspected.is_some_and(|(document, problems, is_valid)| {
        assert_places(&document, &problems);
        is_valid
    });
    let Some(network) = accepted(network.inspect_err(|error| {
        assert!(!is_valid, "valid, but: {error:#}");
    })) else {
        return;
    };
    accepted(network.version());
    for plugin in &network.plugins {
        assert_passed_on(&network, plugin);
    }
}

/// What the plugin gets is what stands in the file, but for the runtime's own keys.
fn assert_passed_on(network: &Network, plugin: &PluginConfiguration) {
    let document = request::document(network, plugin, Additions::default());
    let raw = json::compact(&document).unwrap_or_default();
    let read = json::parse_object("a request", &raw);
    assert_eq!(read.ok().as_ref(), Some(&document));
    let unknown = |object: &Object| -> Object {
        let own = [
            "name",
            "cniVersion",
            "capabilities",
            "runtimeConfig",
            "prevResult",
        ];
        let is_own = |key: &str| own.iter().any(|own| own.eq_ignore_ascii_case(key));
        let mut object = object.clone();
        object.retain(|key, _| !is_own(key) && !key.to_ascii_lowercase().starts_with("cni.dev/"));
        object
    };
    assert_eq!(unknown(&document), unknown(&plugin.document));
    assert!(Document::parse(raw).is_ok());
}

/// Files that others may have written, the name on a line before the content: leases,
/// their index, backups of links, cached results.
fn files(data: &[u8]) {
    let (name, content) = first_line(data);
    plugins::ipam::fuzz::lease(&name, content);
    plugins::ipam::fuzz::resolv_conf(content);
    plugins::tuning::fuzz::backup(content);
    plugins::tuning::fuzz::allowlist(content);
    runtime::cache::fuzz(content);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;

    #[test]
    fn the_corpus_holds() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let names = |dir: &Path| -> BTreeSet<String> {
            let entries = fs::read_dir(dir).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect()
        };
        let targets: BTreeSet<String> = TARGETS.map(|(name, _)| name.to_owned()).into();
        assert_eq!(names(&corpus), targets);
        for target in targets {
            let dir = corpus.join(&target);
            let inputs = names(&dir);
            assert!(!inputs.is_empty(), "{target}");
            for input in inputs {
                println!("{target}/{input}");
                holds(&target, &fs::read(dir.join(input)).unwrap());
            }
        }
    }
}
