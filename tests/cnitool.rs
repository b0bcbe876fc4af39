//! `cnitool` as a person uses it: chains of recorded fake plugins and of the reference
//! plugins, the cache as libcni writes it, and the errors of everyday mistakes.
#![allow(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test starts processes, and fails by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Node, Output, REFERENCE, run};
use serde_json::{Value, json};

/// The id of `/run/netns/c1`, by the reference's derivation.
const C1: &str = "cnitool-20b4ff582526573bbe7d";

/// Records each call as `log/NNN-COMMAND-NAME/{stdin,env}`; answers ADD with
/// `NAME.result`, and fails with `NAME.COMMAND.error` where that is.
const FAKE: &str = r#"#!/bin/sh
here=$(dirname "$0"); name=$(basename "$0")
call="$here/log/$(printf %03d "$(ls "$here/log" | wc -l)")-$CNI_COMMAND-$name"
mkdir "$call"; cat > "$call/stdin"; env | grep '^CNI_' | sort > "$call/env"
if [ -f "$here/$name.$CNI_COMMAND.error" ]; then cat "$here/$name.$CNI_COMMAND.error"; exit 1; fi
if [ "$CNI_COMMAND" = ADD ]; then cat "$here/$name.result"; fi
"#;

/// A node with fake plugins `a` and `b` and a directory of configurations.
struct Bench {
    node: Node,
    conf: PathBuf,
    fake: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let node = Node::new();
        let conf = node.dir.path().join("net.d");
        let fake = node.dir.path().join("fake");
        fs::create_dir(&conf).unwrap();
        fs::create_dir_all(fake.join("log")).unwrap();
        let bench = Self { node, conf, fake };
        for name in ["a", "b"] {
            bench.plugin(name);
        }
        bench
    }

    fn plugin(&self, name: &str) {
        let file = self.fake.join(name);
        fs::write(&file, FAKE).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        self.result(name, &json!({}));
    }

    fn result(&self, plugin: &str, result: &Value) {
        let file = self.fake.join(format!("{plugin}.result"));
        fs::write(file, result.to_string()).unwrap();
    }

    fn fails(&self, plugin: &str, command: &str, error: &str) {
        fs::write(self.fake.join(format!("{plugin}.{command}.error")), error).unwrap();
    }

    fn heals(&self, plugin: &str, command: &str) {
        fs::remove_file(self.fake.join(format!("{plugin}.{command}.error"))).unwrap();
    }

    fn write(&self, file: &str, text: impl AsRef<str>) {
        let file = self.conf.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text.as_ref()).unwrap();
    }

    /// Network `n` of the plugins `a` and `b`, with these list keys on top.
    fn chain(&self, keys: &Value) {
        let mut list = json!({
            "cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "a"}, {"type": "b"}],
        });
        for (key, value) in keys.as_object().unwrap() {
            list[key] = value.clone();
        }
        self.write("10-n.conflist", list.to_string());
    }

    fn run(&self, args: &[&str]) -> Output {
        self.run_with(args, &[])
    }

    fn run_with(&self, args: &[&str], env: &[(&str, &str)]) -> Output {
        let mut command = Command::new(self.node.bin.join("cnitool"));
        command.args(args);
        for key in ["CNI_ARGS", "CAP_ARGS", "CNI_IFNAME", "CNI_COMMAND"] {
            command.env_remove(key);
        }
        command.env("CNI_PATH", &self.fake);
        command.env("NETCONFPATH", &self.conf);
        command.envs(env.iter().copied());
        run(&mut command, "")
    }

    /// The calls since the last time: `COMMAND plugin`.
    fn calls(&self) -> Vec<String> {
        self.log().into_iter().map(|call| call.what).collect()
    }

    /// The calls since the last time, in full.
    fn log(&self) -> Vec<Recorded> {
        let log = self.fake.join("log");
        let mut dirs: Vec<PathBuf> = fs::read_dir(&log)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        dirs.sort();
        let calls = dirs.iter().map(|dir| Recorded::read(dir)).collect();
        fs::remove_dir_all(&log).unwrap();
        fs::create_dir(&log).unwrap();
        calls
    }
}

/// The file in which an attachment is remembered.
fn cache(name: &str) -> PathBuf {
    Path::new("/var/lib/cni/results").join(name)
}

/// One call of a fake plugin.
struct Recorded {
    what: String,
    stdin: String,
    env: BTreeMap<String, String>,
}

impl Recorded {
    fn read(dir: &Path) -> Self {
        let name = dir.file_name().unwrap().to_str().unwrap();
        let env = fs::read_to_string(dir.join("env")).unwrap();
        Self {
            what: name[4..].replace('-', " "),
            stdin: fs::read_to_string(dir.join("stdin")).unwrap(),
            env: env
                .lines()
                .map(|line| line.split_once('=').unwrap())
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        }
    }

    fn document(&self) -> Value {
        serde_json::from_str(&self.stdin).unwrap()
    }
}

#[track_caller]
fn assert_fails(output: &Output, parts: &[&str]) {
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    for part in parts {
        assert!(output.stderr.contains(part), "no {part:?} in {output:?}");
    }
}

const NS: &str = "/run/netns/c1";

/// A result of two addresses as each version writes it; `n` tells results apart.
fn result(version: &str, n: u8) -> Value {
    let (v4, v6) = (format!("10.0.0.{n}/24"), format!("fd00::{n}/64"));
    match version {
        "0.1.0" | "0.2.0" => json!({
            "cniVersion": version, "ip4": {"ip": v4}, "ip6": {"ip": v6}, "dns": {},
        }),
        "0.3.0" | "0.3.1" | "0.4.0" => json!({
            "cniVersion": version,
            "ips": [{"version": "4", "address": v4}, {"version": "6", "address": v6}],
            "dns": {},
        }),
        _ => json!({"cniVersion": version, "ips": [{"address": v4}, {"address": v6}], "x": n}),
    }
}

#[test]
fn chains_at_every_version() {
    let bench = Bench::new();
    for version in [
        "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
    ] {
        bench.chain(&json!({"cniVersion": version}));
        bench.result("a", &result(version, 1));
        bench.result("b", &result(version, 2));
        let (first, last) = (result(version, 1), result(version, 2));

        let added = bench.run(&["add", "n", NS]);
        assert_eq!(added.json(), last, "{version}");
        assert!(added.stdout.starts_with("{\n    \"cniVersion\""));
        assert!(!added.stdout.ends_with('\n'));
        let calls = bench.log();
        assert_eq!(calls[0].what, "ADD a");
        assert_eq!(calls[1].what, "ADD b");
        assert_eq!(
            calls[0].document(),
            json!({"cniVersion": version, "name": "n", "type": "a"})
        );
        assert_eq!(calls[1].document()["prevResult"], first, "{version}");
        assert!(cache(&format!("n-{C1}-eth0")).exists());

        let checks = version >= "0.4.0";
        let checked = bench.run(&["check", "n", NS]);
        let calls = bench.log();
        if checks {
            checked.silent();
            let whats: Vec<_> = calls.iter().map(|c| c.what.as_str()).collect();
            assert_eq!(whats, ["CHECK a", "CHECK b"]);
            assert_eq!(calls[0].document()["prevResult"], last);
        } else {
            let text =
                format!("configuration version \"{version}\" does not support the CHECK command");
            assert_fails(&checked, &[&text]);
            assert!(calls.is_empty());
        }

        bench.run(&["del", "n", NS]).silent();
        let calls = bench.log();
        let whats: Vec<_> = calls.iter().map(|c| c.what.as_str()).collect();
        assert_eq!(whats, ["DEL b", "DEL a"]);
        for call in &calls {
            let expected = if checks { last.clone() } else { Value::Null };
            assert_eq!(call.document()["prevResult"], expected, "{version}");
        }
        assert!(!cache(&format!("n-{C1}-eth0")).exists());

        bench.run(&["del", "n", NS]).silent();
        let calls = bench.log();
        assert_eq!(calls.len(), 2);
        assert_eq!(calls[0].document()["prevResult"], Value::Null);
    }
}

#[test]
fn the_environment_is_complete_and_flags_win() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    let evil = [
        ("CNI_CONTAINERID", "evil"),
        ("CNI_NETNS", "evil"),
        ("CNI_COMMAND", "EVIL"),
        ("CNI_ARGS", "A=1;B=x"),
        ("CNI_IFNAME", "net1"),
    ];
    let path = bench.fake.to_str().unwrap();
    let expect = |call: &Recorded, values: [&str; 5]| {
        let names = [
            "CNI_ARGS",
            "CNI_COMMAND",
            "CNI_CONTAINERID",
            "CNI_IFNAME",
            "CNI_NETNS",
        ];
        for (name, value) in names.iter().zip(values) {
            assert_eq!(call.env[*name], value, "{name}");
        }
        assert_eq!(call.env["CNI_PATH"], path);
    };
    // The namespace's path is made absolute and clean, and the id follows from that.
    let netns = "/run/../run//netns/./c1/";
    bench.run_with(&["add", "n", netns], &evil).json();
    expect(&bench.log()[0], ["A=1;B=x", "ADD", C1, "net1", NS]);
    bench.run_with(&["status", "n"], &evil).silent();
    expect(&bench.log()[0], ["", "STATUS", "", "", ""]);
    let flags = [
        "--id",
        "c-9",
        "-i",
        "eth7",
        "--args",
        "C=3;D=a=b;",
        "--path",
        path,
    ];
    let mut args = vec!["add", "n", NS];
    args.extend(flags);
    let mut nowhere = evil.to_vec();
    nowhere.push(("CNI_PATH", "/nowhere"));
    bench.run_with(&args, &nowhere).json();
    expect(&bench.log()[0], ["C=3;D=a=b", "ADD", "c-9", "eth7", NS]);
    for (args, env) in [
        (vec!["add", "n", NS], vec![("CNI_IFNAME", "")]),
        (vec!["add", "n", NS, "--ifname", "a/b"], vec![]),
        (vec!["add", "n", NS, "--id", "../x"], vec![]),
        (vec!["add", "n", NS, "--args", "A"], vec![]),
        (vec!["add", "n", NS, "--cap", "[]"], vec![]),
        (vec!["add", "n", NS], vec![("CAP_ARGS", "{")]),
    ] {
        assert_fails(&bench.run_with(&args, &env), &[]);
    }
    assert!(bench.calls().is_empty());
}

#[test]
fn capability_arguments_reach_those_who_ask() {
    let bench = Bench::new();
    bench.chain(&json!({"plugins": [
        {"type": "a", "capabilities": {"portMappings": true, "mac": false, "ips": true},
         "runtimeConfig": {"mac": "stale"}, "prevResult": {"stale": true}},
        {"type": "b", "runtimeConfig": {"mac": "stale"}},
    ]}));
    let cap = r#"{"portMappings": [{"hostPort": 8080}], "mac": "02:00:00:00:00:01"}"#;
    bench
        .run_with(&["add", "n", NS], &[("CAP_ARGS", cap)])
        .json();
    bench.run(&["del", "n", NS, "--cap", cap]).silent();
    let calls = bench.log();
    for call in [&calls[0], &calls[3]] {
        let document = call.document();
        assert_eq!(
            document["runtimeConfig"],
            json!({"portMappings": [{"hostPort": 8080}]})
        );
        assert!(document.get("capabilities").is_none());
    }
    assert!(calls[0].document().get("prevResult").is_none());
    // As by libcni, a literal one stays where no capability replaces it.
    for call in [&calls[1], &calls[2]] {
        assert_eq!(call.document()["runtimeConfig"], json!({"mac": "stale"}));
    }
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    let usual = Path::new("/etc/cni/net.d");
    let listed = bench.run_with(&["list"], &[("NETCONFPATH", "")]);
    assert!(listed.ok, "{listed:?}");
    assert!(!listed.stdout.contains("10-n.conflist"), "{listed:?}");
    let missing = bench.run_with(&["status", "no-such"], &[("NETCONFPATH", "")]);
    assert_fails(&missing, &[usual.to_str().unwrap()]);
    let nothing = ["CAP_ARGS", "CNI_ARGS"].map(|name| (name, ""));
    bench.run_with(&["add", "n", NS], &nothing).json();
    let listed = bench.run_with(&["list"], &[("CNI_PATH", "")]);
    assert!(
        listed.ok && listed.stdout.contains("10-n.conflist"),
        "{listed:?}"
    );
}

/// Makes a pipe that nobody writes to.
fn pipe(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let made = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

#[test]
fn what_is_no_file_is_passed_over() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    for name in ["00-pipe.conf", "00-pipe.conflist", "n/00-pipe.conf"] {
        pipe(&bench.conf.join(name));
    }
    std::os::unix::fs::symlink("/dev/null", bench.conf.join("01-off.conflist")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(bench.conf.join("02.conf")).unwrap();
    pipe(&cache("n-x-eth0"));
    // A plugin is a file, and so is what one is advised to use.
    pipe(&bench.fake.join("bb"));
    bench.run(&["add", "n", NS]).json();
    let validated = bench.run(&["validate"]);
    let file = bench.conf.join("10-n.conflist");
    assert_eq!(validated.stdout, format!("{}: ok\n", file.display()));
    for args in [&["list"] as &[&str], &["ps"], &["doctor"], &["gc", "n"]] {
        let done = bench.run(args);
        assert!(!done.stderr.contains("pipe"), "{args:?}: {done:?}");
        assert!(!done.stdout.contains("pipe"), "{args:?}: {done:?}");
    }
    bench.chain(&json!({"plugins": [{"type": "bbb"}]}));
    let missing = bench.run(&["status", "n"]);
    assert!(
        !missing.ok && !missing.stderr.contains("\"bb\""),
        "{missing:?}"
    );
}

#[test]
fn a_byte_order_mark_is_passed_over() {
    let bench = Bench::new();
    let mark = "\u{feff}";
    let list = r#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "a"}]}"#;
    bench.write("1.conflist", format!("{mark}{list}"));
    bench.write("n/1.conf", format!(r#"{mark}{{"type": "b"}}"#));
    let validated = bench.run(&["validate"]);
    assert!(validated.stdout.ends_with(": ok\n"), "{validated:?}");
    bench.run(&["add", "n", NS, "--id", "x"]).json();
    assert_eq!(bench.calls(), ["ADD a", "ADD b"]);
    // libcni reads the configuration that is kept, and takes no mark.
    let kept: Value =
        serde_json::from_str(&fs::read_to_string(cache("n-x-eth0")).unwrap()).unwrap();
    assert_eq!(decode_base64(kept["config"].as_str().unwrap()), list);
}

#[test]
fn a_plugin_in_a_file_for_lists_is_told_in_one_line() {
    let bench = Bench::new();
    bench.write(
        "1.conflist",
        r#"{"cniVersion": "1.0.0", "name": "n", "type": "a", "x": {"y": 1}}"#,
    );
    let file = bench.conf.join("1.conflist");
    let advice = "rename the file to .conf, or wrap it in \"plugins\": […]";
    let validated = bench.run(&["validate"]);
    assert_eq!(
        validated.stdout,
        format!(
            "{}: error: a plugin, not a list of plugins: {advice}\n",
            file.display()
        )
    );
    assert_fails(&bench.run(&["add", "n", NS]), &[advice]);
    // With plugins beside it, it is a list.
    bench.write("n/1.conf", r#"{"type": "b"}"#);
    bench.run(&["add", "n", NS]).json();
    assert_eq!(bench.calls(), ["ADD b"]);
}

#[test]
fn a_result_that_nobody_receives_is_undone() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    let add = |stdout: Stdio, args: &[&str]| {
        let mut command = Command::new(bench.node.bin.join("cnitool"));
        command
            .args(["add", "n", NS])
            .args(args)
            .stdin(Stdio::null());
        command.env("CNI_PATH", &bench.fake);
        command.env("NETCONFPATH", &bench.conf);
        let done = command.stdout(stdout).output().unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    let full = || {
        File::options()
            .write(true)
            .open("/dev/full")
            .unwrap()
            .into()
    };
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer.into()
    };
    for stdout in [full as fn() -> Stdio, closed] {
        let (code, said) = add(stdout(), &[]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("write the answer to stdout"), "{said}");
        assert_eq!(bench.calls(), ["ADD a", "ADD b", "DEL b", "DEL a"]);
        assert_eq!(fs::read_dir("/var/lib/cni/results").unwrap().count(), 0);
    }
    let (_, said) = add(full(), &["--no-rollback"]);
    assert!(said.contains("left as it is"), "{said}");
    assert_eq!(bench.calls(), ["ADD a", "ADD b"]);
    // It was there before.
    let (_, said) = add(full(), &[]);
    assert!(said.contains("existed before"), "{said}");
    assert_eq!(bench.calls(), ["ADD a", "ADD b"]);
}

#[test]
fn an_id_that_makes_no_file_name_fails_before_anything_is_made() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    // "n-", the id, "-eth0".
    let fits = "a".repeat(255 - 7);
    bench.run(&["add", "n", NS, "--id", &fits]).json();
    bench.run(&["del", "n", NS, "--id", &fits]).silent();
    assert_eq!(bench.calls(), ["ADD a", "ADD b", "DEL b", "DEL a"]);
    let long = format!("{fits}a");
    for args in [&[] as &[&str], &["--dry-run"]] {
        let refused = bench.run(&[&["add", "n", NS, "--id", &long], args].concat());
        assert_fails(
            &refused,
            &["the container id is too long", "256 bytes", "(code 4)"],
        );
    }
    assert!(bench.calls().is_empty());
    bench.run(&["del", "n", NS, "--id", &long]).silent();
}

#[test]
fn what_the_operator_wrote_passes_unchanged() {
    let bench = Bench::new();
    bench.write(
        "1.conflist",
        r#"{"cniVersion": "1.0.0", "name": "n", "plugins": [
            {"type": "a", "z": 12345678901234567890, "big": 1.50, "Args": {"<": "&"}}]}"#,
    );
    bench.run(&["add", "n", NS]).json();
    assert_eq!(
        bench.log()[0].stdin,
        r#"{"Args":{"\u003c":"\u0026"},"big":1.50,"cniVersion":"1.0.0","name":"n","type":"a","z":12345678901234567890}"#
    );
}

#[test]
fn one_broken_file_disables_nothing_else() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    bench.write("00-broken.conflist", "{\n  \"name\": \"x\",,\n}");
    bench.write("99-broken.conf", r#"{"name": "y"}"#);
    let added = bench.run(&["add", "n", NS]);
    added.json();
    assert!(added.stderr.contains("00-broken.conflist:2:"), "{added:?}");
    assert!(added.stderr.contains("99-broken.conf: "), "{added:?}");
    assert_fails(
        &bench.run(&["add", "x", NS]),
        &[
            "no net configuration with name \"x\" in ",
            "it has n",
            "2 files",
        ],
    );
}

#[test]
fn single_plugins_and_sibling_directories() {
    let bench = Bench::new();
    bench.write(
        "single.conf",
        r#"{"name": "single", "cniVersion": "0.4.0", "type": "a", "k": 1}"#,
    );
    bench.write(
        "list.conflist",
        r#"{"name": "list", "cniVersion": "1.0.0", "plugins": [{"type": "a"}]}"#,
    );
    bench.write("list/20.conf", r#"{"type": "a", "second": true}"#);
    bench.write("list/10.conf", r#"{"type": "b", "cniVersion": "0.1.0"}"#);
    bench.write("list/30.json", "not read");
    bench.write(
        "only.conflist",
        r#"{"name": "only", "cniVersion": "1.0.0", "loadOnlyInlinedPlugins": "true",
            "plugins": [{"type": "b"}]}"#,
    );
    bench.write("only/10.conf", r#"{"type": "a"}"#);

    let added = bench.run(&["add", "single", NS]).json();
    assert_eq!(added["cniVersion"], "0.4.0");
    let calls = bench.log();
    assert_eq!(
        calls[0].stdin,
        r#"{"cniVersion":"0.4.0","k":1,"name":"single","type":"a"}"#
    );
    let cached = fs::read_to_string(cache(&format!("single-{C1}-eth0"))).unwrap();
    let cached: Value = serde_json::from_str(&cached).unwrap();
    assert_eq!(
        decode_base64(cached["config"].as_str().unwrap()),
        r#"{"cniVersion":"0.4.0","name":"single","plugins":[{"cniVersion":"0.4.0","k":1,"name":"single","type":"a"}]}"#
    );

    bench.run(&["add", "list", NS]).json();
    let calls = bench.log();
    let whats: Vec<_> = calls.iter().map(|c| c.what.as_str()).collect();
    assert_eq!(whats, ["ADD a", "ADD b", "ADD a"]);
    assert_eq!(calls[1].document()["cniVersion"], "1.0.0");
    assert_eq!(calls[2].document()["second"], true);

    bench.run(&["add", "only", NS]).json();
    assert_eq!(bench.calls(), ["ADD b"]);

    let file = bench.conf.join("list.conflist");
    let file = file.to_str().unwrap();
    bench.run(&["check", "list", NS, "--conf", file]).silent();
    assert_eq!(bench.calls().len(), 3);
    assert_fails(
        &bench.run(&["check", "only", NS, "--conf", file]),
        &[
            "no net configuration with name \"only\" in ",
            "list.conflist",
        ],
    );
}

fn decode_base64(text: &str) -> String {
    let output = run(Command::new("base64").arg("-d"), text);
    assert!(output.ok, "{output:?}");
    output.stdout
}

#[test]
fn names_are_never_paths() {
    let bench = Bench::new();
    bench.write(
        "net.d/evil.conflist",
        r#"{"name": "../up", "cniVersion": "1.0.0"}"#,
    );
    bench.write("up/1.conf", r#"{"type": "a"}"#);
    bench.write(
        "net.d/type.conflist",
        r#"{"name": "type", "plugins": [{"type": "../fake/a"}]}"#,
    );
    let conf = bench.conf.join("net.d");
    let conf = conf.to_str().unwrap();
    let refused = bench.run(&["add", "../up", NS, "--conf", conf]);
    assert_fails(
        &refused,
        &["evil.conflist: invalid characters", "no net configuration"],
    );
    let refused = bench.run(&["add", "type", NS, "--conf", conf]);
    assert_fails(&refused, &["invalid plugin name: ../fake/a"]);
    assert!(bench.calls().is_empty());
    assert!(!Path::new("/var/lib/cni").exists());
}

#[test]
fn the_cache_is_libcnis() {
    let bench = Bench::new();
    let list = r#"{ "name": "n", "cniVersion": "1.0.0", "plugins": [ {"type": "a",
        "capabilities": {"mac": true}} ] }"#;
    bench.write("1.conflist", list);
    bench.result("a", &result("1.0.0", 1));
    let args = ["--args", "K=V;L=W", "--cap", r#"{"mac": "x"}"#];
    let mut add = vec!["add", "n", NS];
    add.extend(args);
    bench.run(&add).json();
    let file = cache(&format!("n-{C1}-eth0"));
    let text = fs::read_to_string(&file).unwrap();
    let config = text.split('"').nth(11).unwrap();
    assert_eq!(decode_base64(config), list);
    assert_eq!(
        text,
        format!(
            r#"{{"kind":"cniCacheV1","containerId":"{C1}","config":"{config}","ifName":"eth0","networkName":"n","netns":"/run/netns/c1","cniArgs":[["K","V"],["L","W"]],"capabilityArgs":{{"mac":"x"}},"result":{{"cniVersion":"1.0.0","ips":[{{"address":"10.0.0.1/24"}},{{"address":"fd00::1/64"}}],"x":1}}}}"#
        )
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&file), 0o600);
    assert_eq!(mode(file.parent().unwrap()), 0o700);
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);

    // A file of the format before that: the bare result.
    fs::write(
        &file,
        r#"{"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.9.9.9/24"}]}"#,
    )
    .unwrap();
    bench.log();
    bench.run(&["check", "n", NS]).silent();
    let prev_result = &bench.log()[0].document()["prevResult"];
    assert_eq!(prev_result["cniVersion"], "1.0.0");
    assert_eq!(prev_result["ips"], json!([{"address": "10.9.9.9/24"}]));
}

#[test]
fn a_damaged_cache_never_stops_del() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    let file = cache(&format!("n-{C1}-eth0"));
    bench.run(&["add", "n", NS]).json();
    let whole = fs::read(&file).unwrap();
    for length in [0, 1, whole.len() - 1] {
        fs::write(&file, &whole[..length]).unwrap();
        bench.log();
        let checked = bench.run(&["check", "n", NS]);
        assert!(
            checked.ok && checked.stderr.contains("n-cnitool"),
            "{checked:?}"
        );
        let deleted = bench.run(&["del", "n", NS]);
        assert!(
            deleted.ok && deleted.stderr.contains("n-cnitool"),
            "{deleted:?}"
        );
        assert!(
            bench
                .log()
                .iter()
                .all(|c| c.document().get("prevResult").is_none())
        );
        assert!(!file.exists());
    }
}

#[test]
fn another_attachments_entry_is_not_believed() {
    let bench = Bench::new();
    let list = |name: &str| {
        format!(r#"{{"name": "{name}", "cniVersion": "1.0.0", "plugins": [{{"type": "a"}}]}}"#)
    };
    bench.write("1.conflist", list("a-b"));
    bench.write("2.conflist", list("a"));
    bench.run(&["add", "a-b", NS, "--id", "c"]).json();
    let file = cache("a-b-c-eth0");
    let before = fs::read(&file).unwrap();
    bench.log();
    bench.run(&["del", "a", NS, "--id", "b-c"]).silent();
    assert!(bench.log()[0].document().get("prevResult").is_none());
    let refused = bench.run(&["add", "a", NS, "--id", "b-c"]);
    assert_fails(
        &refused,
        &["a-b-c-eth0", "container c, interface eth0 of network a-b"],
    );
    assert!(bench.calls().is_empty());
    assert_eq!(fs::read(&file).unwrap(), before);
}

const BUSY: &str =
    r#"{"cniVersion": "1.1.0", "code": 11, "msg": "try later", "details": "lock held"}"#;

#[test]
fn a_failed_add_is_rolled_back() {
    let bench = Bench::new();
    bench.chain(
        &json!({"plugins": [{"type": "a"}, {"type": "b", "name": "second"}, {"type": "a"}]}),
    );
    bench.fails("b", "ADD", BUSY);
    let failed = bench.run(&["add", "n", "/run/netns/gone"]);
    assert_fails(
        &failed,
        &[
            "plugin type=\"b\" name=\"second\" failed (add): try later; lock held (code 11)",
            "ADD failed: removing",
            "/run/netns/gone does not exist",
        ],
    );
    assert_eq!(bench.calls(), ["ADD a", "ADD b", "DEL a", "DEL b", "DEL a"]);
    // Clean-up goes on past a plugin that cannot, and the first error is the one told.
    bench.fails("b", "DEL", r#"{"code": 5, "msg": "no DEL"}"#);
    let failed = bench.run(&["add", "n", NS]);
    assert_fails(&failed, &["no DEL"]);
    assert!(
        failed
            .stderr
            .trim_end()
            .ends_with("try later; lock held (code 11)")
    );
    assert_eq!(bench.calls(), ["ADD a", "ADD b", "DEL a", "DEL b", "DEL a"]);
    let failed = bench.run(&["add", "n", NS, "--no-rollback"]);
    assert_fails(&failed, &["left as it is", "(code 11)"]);
    assert_eq!(bench.calls(), ["ADD a", "ADD b"]);
    assert!(fs::read_dir("/var/lib").unwrap().next().is_none());
}

#[test]
fn an_add_that_cannot_be_remembered_is_rolled_back() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    fs::create_dir("/var/lib/cni").unwrap();
    fs::write("/var/lib/cni/results", "no directory").unwrap();
    let failed = bench.run(&["add", "n", NS]);
    assert_fails(&failed, &["write the result cache /var/lib/cni/results/n-"]);
    assert_eq!(bench.calls(), ["ADD a", "ADD b", "DEL b", "DEL a"]);
}

#[test]
fn an_attachment_made_before_survives_a_second_add() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    bench.run(&["add", "n", NS]).json();
    bench.fails("a", "ADD", BUSY);
    bench.log();
    let failed = bench.run(&["add", "n", NS]);
    assert_fails(&failed, &["existed before", "cnitool del"]);
    assert_eq!(bench.calls(), ["ADD a"]);
    let file = cache(&format!("n-{C1}-eth0"));
    assert!(file.exists());
    // Whether it did cannot be told when its result cannot be read.
    fs::write(&file, "{").unwrap();
    let failed = bench.run(&["add", "n", NS]);
    let name = file.to_str().unwrap();
    assert_fails(&failed, &["may have existed before", name, "cnitool del"]);
    assert!(!failed.stderr.contains("attachment existed"), "{failed:?}");
    assert_eq!(bench.calls(), ["ADD a"]);
}

#[test]
fn del_stops_at_the_first_failure_and_keeps_the_result() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    bench.run(&["add", "n", NS]).json();
    bench.fails("b", "DEL", BUSY);
    bench.log();
    let failed = bench.run(&["del", "n", NS]);
    assert_fails(
        &failed,
        &["plugin type=\"b\" failed (delete): try later; lock held (code 11)"],
    );
    assert_eq!(bench.calls(), ["DEL b"]);
    assert!(cache(&format!("n-{C1}-eth0")).exists());
    bench.heals("b", "DEL");
    bench.run(&["del", "n", NS]).silent();
}

#[test]
fn output_that_is_no_result_fails_the_add() {
    let bench = Bench::new();
    bench.chain(&json!({"plugins": [{"type": "a"}]}));
    for (printed, part) in [
        ("", "the result of a is not valid JSON"),
        ("garbage", "the result of a is not valid JSON"),
        ("[]", "must be a JSON object"),
        (r#"{"cniVersion": "9.9"}"#, "9.9"),
    ] {
        fs::write(bench.fake.join("a.result"), printed).unwrap();
        assert_fails(&bench.run(&["add", "n", NS]), &["failed (add): ", part]);
        assert_eq!(bench.calls(), ["ADD a", "DEL a"]);
    }
    fs::write(bench.fake.join("a.result"), "null").unwrap();
    assert_eq!(
        bench.run(&["add", "n", NS]).json(),
        json!({"cniVersion": "1.1.0"})
    );
}

#[test]
fn status_tells_code_message_and_details() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    bench.run(&["status", "n", "ignored"]).silent();
    assert_eq!(bench.calls(), ["STATUS a", "STATUS b"]);
    bench.fails(
        "a",
        "STATUS",
        r#"{"code": 50, "msg": "full", "details": "range 0"}"#,
    );
    assert_fails(&bench.run(&["status", "n"]), &["full; range 0 (code 50)"]);
    assert_eq!(bench.calls(), ["STATUS a"]);
    let told = bench.run(&["status", "n", "--json"]);
    assert_eq!(told.code, Some(1), "{told:?}");
    assert_eq!(
        serde_json::from_str::<Value>(&told.stdout).unwrap(),
        json!({"network": "n", "ready": false, "asked": true,
               "error": {"code": 50, "msg": "full", "details": "range 0"}})
    );
    bench.calls();
    bench.chain(&json!({"cniVersion": "1.0.0"}));
    assert_eq!(
        bench.run(&["status", "n", "--json"]).json(),
        json!({"network": "n", "ready": true, "asked": false, "error": null})
    );
    let asked = bench.run(&["status", "n"]);
    asked.silent();
    assert!(asked.stderr.contains("has no STATUS"));
    assert!(bench.calls().is_empty());
}

#[test]
fn gc_removes_what_has_lost_its_namespace() {
    let bench = Bench::new();
    let live = bench.node.netns("c1");
    bench.chain(&json!({"plugins": [{"type": "a"}, {"type": "b", "capabilities": {"mac": true}}]}));
    bench.run(&["add", "n", &live, "--id", "live"]).json();
    let dead = bench.node.netns("c2");
    let args = ["--args", "K=V", "--cap", r#"{"mac": "x"}"#, "-i", "net1"];
    let mut add = vec!["add", "n", &dead, "--id", "dead"];
    add.extend(args);
    bench.run(&add).json();
    bench.write(
        "other.conflist",
        r#"{"name": "o", "cniVersion": "1.1.0", "plugins": [{"type": "a"}]}"#,
    );
    bench
        .run(&["add", "o", "/run/netns/gone", "--id", "other"])
        .json();
    bench.node.sh("ip netns del c2");
    bench.log();

    let plan = bench.run(&["gc", "n", "--dry-run"]);
    assert!(plan.ok && plan.stderr.is_empty(), "{plan:?}");
    let fake = bench.fake.display();
    assert_eq!(
        plan.stdout,
        format!(
            "would remove container dead, interface net1, /run/netns/c2\n\
             would run GC a ({fake}/a), which does not tell beforehand what it removes\n\
             would run GC b ({fake}/b), which does not tell beforehand what it removes\n\
             would keep container live, interface eth0\n"
        )
    );
    let plan = bench.run(&["gc", "n", "--dry-run", "--json"]).json();
    let [dead, live] = [("dead", "net1"), ("live", "eth0")]
        .map(|(id, ifname)| json!([{"containerID": id, "ifname": ifname}]));
    assert_eq!(
        plan,
        json!({"network": "n", "dryRun": true, "disabled": false, "removed": dead, "kept": live,
               "notes": [plan["notes"][0], plan["notes"][1]], "errors": []})
    );
    let note = plan["notes"][0].as_str().unwrap();
    assert!(note.starts_with("would run GC a "), "{note}");
    assert!(bench.calls().is_empty());
    assert!(cache("n-dead-net1").exists());

    let collected = bench.run(&["gc", "n", "ignored"]);
    collected.silent();
    assert!(
        collected
            .stderr
            .contains("removed container dead, interface net1, /run/netns/c2")
    );
    let calls = bench.log();
    let whats: Vec<_> = calls.iter().map(|c| c.what.as_str()).collect();
    assert_eq!(whats, ["DEL b", "DEL a", "GC a", "GC b"]);
    assert_eq!(calls[0].env["CNI_CONTAINERID"], "dead");
    assert_eq!(calls[0].env["CNI_ARGS"], "K=V");
    assert_eq!(calls[0].document()["runtimeConfig"], json!({"mac": "x"}));
    let valid = json!([{"containerID": "live", "ifname": "eth0"}]);
    assert_eq!(calls[2].document()["cni.dev/valid-attachments"], valid);
    assert_eq!(calls[3].document()["cni.dev/attachments"], valid);
    assert_eq!(calls[2].env["CNI_CONTAINERID"], "");
    assert!(!cache("n-dead-net1").exists());
    assert!(cache("n-live-eth0").exists() && cache("o-other-eth0").exists());

    assert_eq!(
        bench.run(&["gc", "n", "--all", "--json"]).json(),
        json!({"network": "n", "dryRun": false, "disabled": false, "removed": live, "kept": [],
               "notes": [], "errors": []})
    );
    let calls = bench.log();
    assert_eq!(calls.len(), 4);
    assert_eq!(calls[2].document()["cni.dev/valid-attachments"], json!([]));
    assert!(!cache("n-live-eth0").exists());
    assert!(cache("o-other-eth0").exists());
}

#[test]
fn gc_goes_on_past_failures_and_reports_them_all() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    bench.run(&["add", "n", "/run/netns/x", "--id", "x"]).json();
    bench.fails("b", "DEL", BUSY);
    bench.fails(
        "a",
        "GC",
        r#"{"code": 5, "msg": "disk", "details": "full"}"#,
    );
    bench.log();
    let failed = bench.run(&["gc", "n"]);
    assert_fails(
        &failed,
        &[
            "failed to delete stale attachment x eth0: plugin type=\"b\" failed (delete)",
            "failed to GC plugin a: disk; full (code 5)",
        ],
    );
    assert_eq!(bench.calls(), ["DEL b", "GC a", "GC b"]);
}

#[test]
fn gc_asks_no_plugin_while_an_attachment_is_unknown() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    for id in ["gone", "cut", "old", "half"] {
        bench.run(&["add", "n", "/run/netns/x", "--id", id]).json();
    }
    let file = |id: &str| cache(&format!("n-{id}-eth0"));
    fs::write(file("cut"), "{").unwrap();
    fs::write(file("old"), r#"{"cniVersion": "1.0.0"}"#).unwrap();
    fs::write(file("half"), r#"{"kind": "cniCacheV1"}"#).unwrap();
    // Neither another network's nor what a killed writer left is in doubt.
    fs::write(cache("o-c-eth0"), "{").unwrap();
    fs::write(cache(".cnibox-00000000-1-1"), "{").unwrap();
    bench.log();
    let plan = bench.run(&["gc", "n", "--dry-run"]);
    assert!(
        plan.ok && plan.stdout.contains("would run no GC"),
        "{plan:?}"
    );
    let refused = bench.run(&["gc", "n"]);
    let unknown = ["cut", "half", "old"].map(|id| file(id).display().to_string());
    let other = cache("o-c-eth0");
    assert_fails(
        &refused,
        &[
            &unknown.join(", "),
            "--all",
            "removed container gone",
            other.to_str().unwrap(),
        ],
    );
    assert!(!refused.stderr.contains(".cnibox-"), "{refused:?}");
    assert_eq!(bench.calls(), ["DEL b", "DEL a"]);
    bench.run(&["gc", "n", "--all"]).silent();
    assert_eq!(bench.calls(), ["GC a", "GC b"]);
    for id in ["cut", "old", "half"] {
        bench
            .run(&["del", "n", "/run/netns/x", "--id", id])
            .silent();
    }
    bench.log();
    bench.run(&["gc", "n"]).silent();
    assert_eq!(bench.calls(), ["GC a", "GC b"]);
}

#[test]
fn a_missing_plugin_keeps_no_other_from_cleaning_up() {
    let bench = Bench::new();
    bench.chain(&json!({"plugins": [{"type": "a"}, {"type": "c"}, {"type": "b"}]}));
    bench.plugin("c");
    for id in ["x", "y"] {
        bench.run(&["add", "n", "/run/netns/x", "--id", id]).json();
    }
    fs::remove_file(bench.fake.join("c")).unwrap();
    let missing = "failed to find plugin \"c\" in path [";
    bench.log();
    for command in ["add", "check", "status"] {
        assert_fails(&bench.run(&[command, "n", NS]), &[missing]);
        assert!(bench.calls().is_empty());
    }
    let del = ["del", "n", "/run/netns/x", "--id", "x"];
    assert_fails(&bench.run(&del), &[missing]);
    assert_eq!(bench.calls(), ["DEL b", "DEL a"]);
    // What is not wholly removed is not forgotten.
    assert!(cache("n-x-eth0").exists());
    let dry = bench.run(&["del", "n", NS, "--dry-run"]);
    assert!(
        dry.ok
            && dry
                .stdout
                .contains("cannot run DEL: failed to find plugin \"c\""),
        "{dry:?}"
    );
    assert_fails(&bench.run(&["add", "n", NS, "--dry-run"]), &[missing]);
    assert_fails(
        &bench.run(&["gc", "n"]),
        &["failed to delete stale attachment y eth0", missing],
    );
    let calls = ["DEL b", "DEL a", "DEL b", "DEL a", "GC a", "GC b"];
    assert_eq!(bench.calls(), calls);
    bench.fails("b", "DEL", BUSY);
    assert_fails(&bench.run(&del), &["(code 11)"]);
    assert_eq!(bench.calls(), ["DEL b"]);
    bench.heals("b", "DEL");
    bench.plugin("c");
    bench.run(&del).silent();
    assert!(!cache("n-x-eth0").exists());
}

#[test]
fn lo_is_in_every_namespace_and_may_be_attached() {
    let bench = Bench::new();
    let netns = bench.node.netns("c1");
    bench.chain(&json!({}));
    bench.run(&["add", "n", &netns, "-i", "lo"]).json();
    assert_eq!(bench.calls(), ["ADD a", "ADD b"]);
    // A namespace that is none is the plugins' to judge.
    fs::write("/run/netns/c2", "").unwrap();
    bench.run(&["add", "n", "/run/netns/c2"]).json();
}

#[test]
fn gc_knows_its_limits() {
    let bench = Bench::new();
    bench.chain(&json!({"disableGC": true}));
    bench.run(&["add", "n", "/run/netns/x"]).json();
    bench.log();
    let collected = bench.run(&["gc", "n", "--all"]);
    collected.silent();
    assert!(collected.stderr.contains("disableGC"));
    assert!(bench.calls().is_empty());

    bench.chain(&json!({"cniVersion": "1.0.0"}));
    bench.run(&["gc", "n"]).silent();
    assert_eq!(bench.calls(), ["DEL b", "DEL a"]);

    fs::remove_dir("/var/lib/cni/results").unwrap();
    bench.run(&["gc", "n"]).silent();
    fs::write("/var/lib/cni/results", "no directory").unwrap();
    assert_fails(
        &bench.run(&["gc", "n"]),
        &["list the result cache /var/lib/cni/results", "(code 5)"],
    );
    assert!(bench.calls().is_empty());
}

#[test]
fn disable_check_is_honoured() {
    let bench = Bench::new();
    bench.chain(&json!({"disableCheck": true}));
    bench.fails("a", "CHECK", BUSY);
    bench.run(&["check", "n", NS]).silent();
    assert!(bench.calls().is_empty());
    bench.chain(&json!({}));
    assert_fails(
        &bench.run(&["check", "n", NS]),
        &["failed (check): try later; lock held (code 11)"],
    );
    assert_eq!(bench.calls(), ["CHECK a"]);
}

#[test]
fn everyday_mistakes_are_explained() {
    let bench = Bench::new();
    let conf = bench.conf.to_str().unwrap();
    assert_fails(
        &bench.run(&["add", "n", NS]),
        &[
            &format!("no net configurations found in {conf}"),
            "it holds no",
        ],
    );
    assert_fails(
        &bench.run(&["add", "n", NS, "--conf", "/nowhere"]),
        &["no net configurations found in /nowhere", "does not exist"],
    );
    bench.chain(&json!({"name": "dbnet", "plugins": [{"type": "a"}, {"type": "brigde"}]}));
    bench.plugin("bridge");
    assert_fails(
        &bench.run(&["add", "dbnte", NS]),
        &[
            "no net configuration with name \"dbnte\" in ",
            "did you mean \"dbnet\"?",
        ],
    );
    let fake = bench.fake.display();
    assert_fails(
        &bench.run(&["add", "dbnet", NS]),
        &[
            &format!("failed to find plugin \"brigde\" in path [{fake}]"),
            "did you mean \"bridge\"?",
        ],
    );
    // All plugins are looked up before the first one runs.
    assert!(bench.calls().is_empty());
    bench.chain(&json!({"cniVersion": "9.9"}));
    assert_fails(
        &bench.run(&["add", "n", NS]),
        &["\"9.9\"", "10-n.conflist", "1.1.0"],
    );
    for args in [
        vec![],
        vec!["destroy", "n", NS],
        vec!["add", "n"],
        vec!["add", "n", NS, "--x"],
    ] {
        let refused = bench.run(&args);
        assert_fails(&refused, &["Usage: cnitool"]);
    }
    assert_fails(&bench.run(&["chek", "n", NS]), &["check"]);
    for args in [["--help"], ["--version"]] {
        let told = bench.run(&args);
        assert!(told.ok && told.stdout.contains("cnitool"), "{told:?}");
    }
    assert!(bench.calls().is_empty());
}

#[test]
fn options_stand_before_or_behind_the_command() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    let fake = bench.fake.to_str().unwrap();
    let conf = bench.conf.to_str().unwrap();
    let nowhere = [("CNI_PATH", "/nowhere"), ("NETCONFPATH", "/nowhere")];
    let site = ["--path", fake, "--conf", conf];
    let attachment = ["-i", "eth1", "--id", "c", "--args", "A=1", "--cap", "{}"];
    for command in ["add", "check", "del"] {
        let mut args = vec!["--verbose", "--timing"];
        args.extend(site);
        args.extend(attachment);
        args.extend([command, "n", NS]);
        let env = [nowhere[0], nowhere[1], ("CNI_IFNAME", "eth7")];
        let done = bench.run_with(&args, &env);
        assert!(done.ok && done.stderr.contains("timing: "), "{done:?}");
        assert!(done.stderr.contains("--> "), "{done:?}");
        for call in bench.log() {
            let values = ["CNI_IFNAME", "CNI_CONTAINERID", "CNI_ARGS", "CNI_PATH"];
            assert_eq!(
                values.map(|name| call.env[name].as_str()),
                ["eth1", "c", "A=1", fake]
            );
        }
    }
    for command in ["list", "validate"] {
        let mut args = site.to_vec();
        args.push(command);
        let done = bench.run_with(&args, &nowhere);
        assert!(done.ok && done.stdout.contains(conf), "{done:?}");
    }
}

#[test]
fn surplus_arguments_are_ignored_as_ever() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    for command in ["add", "check", "del", "gc", "status"] {
        let done = bench.run(&[command, "n", NS, "x", "--timing", "y"]);
        assert!(done.ok, "{done:?}");
        assert!(done.stderr.contains("ignored: x y"), "{done:?}");
        assert!(!bench.calls().is_empty());
    }
}

#[test]
fn lists_and_findings_can_be_had_as_json() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    bench.write("20-broken.conflist", "{");
    let list = bench.run(&["list", "--json"]).json();
    let fake = bench.fake.display();
    assert_eq!(list["networks"][0]["name"], "n");
    assert_eq!(
        list["networks"][0]["plugins"][1]["executable"],
        format!("{fake}/b")
    );
    let file = bench.conf.join("20-broken.conflist").display().to_string();
    assert_eq!(list["broken"][0]["file"], file);

    let found = bench.run(&["validate", "--json"]);
    assert_eq!(found.code, Some(1), "{found:?}");
    let found: Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!(found["files"].as_array().unwrap().len(), 2);
    let errors: Vec<&Value> = found["findings"].as_array().unwrap().iter().collect();
    assert!(
        errors
            .iter()
            .any(|e| e["severity"] == "error" && e["place"].as_str().unwrap().starts_with(&file)),
        "{found}"
    );
}

#[test]
fn want_of_root_is_said_first() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    // Others can read what is there.
    bench
        .node
        .sh(&format!("chmod 755 {}", bench.node.dir.path().display()));
    let refused = run(
        Command::new("setpriv")
            .args(["--reuid=65534", "--clear-groups"])
            .arg(common::binary())
            .args(["cnitool", "del", "n", NS])
            .env("CNI_PATH", &bench.fake)
            .env("NETCONFPATH", &bench.conf),
        "",
    );
    let first = refused.stderr.lines().next().unwrap_or_default();
    assert!(first.contains("cnitool del needs root"), "{refused:?}");
}

#[test]
fn dry_runs_run_nothing() {
    let bench = Bench::new();
    bench.chain(&json!({}));
    let fake = bench.fake.display();
    let head = format!("container {C1}, interface eth0, {NS}\n");
    let unknown = "  note     it does not tell beforehand what it does\n";
    let add = bench.run(&["add", "n", NS, "--dry-run"]);
    assert_eq!(
        add.stdout,
        format!(
            "{head}would run ADD a ({fake}/a)\n{unknown}would run ADD b ({fake}/b)\n{unknown}\
             would keep the result in /var/lib/cni/results/n-{C1}-eth0\n"
        )
    );
    let del = bench.run(&["del", "n", NS, "--dry-run"]);
    assert_eq!(
        del.stdout,
        format!("{head}would run DEL b ({fake}/b)\n{unknown}would run DEL a ({fake}/a)\n{unknown}")
    );
    let check = bench.run(&["check", "n", NS, "--dry-run"]);
    assert_eq!(
        check.stdout,
        format!("{head}would run CHECK a ({fake}/a)\nwould run CHECK b ({fake}/b)\n")
    );
    assert!(add.ok && del.ok && bench.calls().is_empty());
    assert!(!Path::new("/var/lib/cni").exists());
}

#[test]
fn calls_can_be_watched() {
    let bench = Bench::new();
    bench.chain(&json!({"cniVersion": "1.0.0"}));
    bench.result("a", &json!({"cniVersion": "1.0.0"}));
    bench.fails("b", "ADD", BUSY);
    let watched = bench.run(&["add", "n", NS, "--verbose", "--timing", "--no-rollback"]);
    let fake = bench.fake.display();
    assert_fails(
        &watched,
        &[
            &format!("--> ADD a ({fake}/a)"),
            r#"stdin: {"cniVersion":"1.0.0","name":"n","type":"a"}"#,
            "<-- ADD a: ok in ",
            r#"stdout: {"cniVersion":"1.0.0"}"#,
            "<-- ADD b: failed in ",
            "error: try later; lock held (code 11)",
        ],
    );
    let timing: Vec<_> = watched
        .stderr
        .lines()
        .filter(|line| line.starts_with("timing: "))
        .collect();
    assert!(
        timing.len() == 2 && timing[0].starts_with("timing: a ADD "),
        "{timing:?}"
    );
    assert!(timing[0].ends_with(" ms"));
}

#[test]
fn a_real_chain_of_reference_plugins() {
    let bench = Bench::new();
    let netns = bench.node.netns("c1");
    let path = [("CNI_PATH", REFERENCE)];
    let bridge = json!({"type": "bridge", "bridge": "cni9", "isGateway": true, "ipam": {
        "type": "host-local", "subnet": "10.99.0.0/24", "dataDir": "/run/ipam"}});
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        bench.chain(&json!({"cniVersion": version, "plugins": [bridge, portmap]}));
        // The reference's portmap fails its CHECK unless there are addresses of both families.
        let checked = json!({"name": "n", "cniVersion": version, "plugins": [bridge]});
        bench.write("check/n.conflist", checked.to_string());
        let check = bench.conf.join("check");
        let check = ["check", "n", &netns, "--conf", check.to_str().unwrap()];
        let cap =
            r#"{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}"#;
        let added = bench.run_with(&["add", "n", &netns, "--cap", cap], &path);
        let address = added.json()["ips"][0]["address"].clone();
        let address = address.as_str().unwrap().split('/').next().unwrap();
        bench.node.ping("c1", "10.99.0.1");
        let rules = bench.node.sh("iptables-save -t nat");
        assert!(rules.contains(&format!("{address}:80")), "{rules}");
        if version >= "0.4.0" {
            bench.run_with(&check, &path).silent();
        }
        for _ in 0..2 {
            bench
                .run_with(&["del", "n", &netns, "--cap", cap], &path)
                .silent();
        }
        let rules = bench.node.sh("iptables-save -t nat");
        assert!(!rules.contains(address), "{rules}");
        assert_eq!(bench.node.links(), ["cni9"]);
        assert!(!Path::new("/run/ipam/n").join(address).exists());
        assert!(
            fs::read_dir("/var/lib/cni/results")
                .unwrap()
                .next()
                .is_none()
        );
    }
}

#[test]
fn list_shows_what_a_runtime_would_find() {
    let bench = Bench::new();
    bench.chain(&json!({"plugins": [
        {"type": "a", "ipam": {"type": "b"}}, {"type": "nowhere"},
    ]}));
    bench.write("20.conf", r#"{"name": "n", "type": "b"}"#);
    bench.write("30.conflist", "{");
    let listed = bench.run(&["list"]);
    assert!(listed.ok && listed.stderr.is_empty(), "{listed:?}");
    let (conf, fake) = (bench.conf.display(), bench.fake.display());
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let lines: Vec<_> = listed.stdout.lines().map(words).collect();
    let expected = [
        "NAME VERSION FILE PLUGIN EXECUTABLE".to_owned(),
        format!("n 1.1.0 {conf}/10-n.conflist a {fake}/a"),
        format!("b (ipam) {fake}/b"),
        "nowhere NOT FOUND".to_owned(),
        format!("n 0.1.0 {conf}/20.conf b {fake}/b"),
    ];
    for (line, expected) in lines.iter().zip(&expected) {
        assert_eq!(line, &words(expected));
    }
    let rest = listed.stdout.lines().skip(5).collect::<Vec<_>>();
    assert!(rest[0].starts_with(&format!("never used: {conf}/20.conf: ")));
    assert!(rest[1].starts_with(&format!("broken: {conf}/30.conflist:1:1: ")));
}

#[test]
fn validate_finds_nothing_wrong_with_what_distributions_ship() {
    let bench = Bench::new();
    for plugin in [
        "flannel",
        "portmap",
        "bandwidth",
        "firewall",
        "tuning",
        "loopback",
    ] {
        bench.plugin(plugin);
    }
    let path = format!("{}:{}", bench.node.bin.display(), bench.fake.display());
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configurations");
    let checked = bench.run(&[
        "validate",
        "--conf",
        shipped.to_str().unwrap(),
        "--path",
        &path,
    ]);
    assert!(checked.ok, "{checked:?}");
    let lines: Vec<_> = checked.stdout.lines().collect();
    assert_eq!(lines.len(), fs::read_dir(&shipped).unwrap().count());
    assert!(lines.iter().all(|line| line.ends_with(": ok")), "{lines:?}");
}

#[test]
fn validate_looks_at_the_file_that_add_would_use() {
    let bench = Bench::new();
    let good = r#"{"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "a"}]}"#;
    bench.write("20-good.conflist", good);
    bench.write("10-bad.conflist", r#"{"name": "n", "plugins": [{}]}"#);
    bench.write("30-bad.conflist", r#"{"name": "m", "plugins": [{}]}"#);
    let checked = bench.run(&["validate", "n"]);
    assert!(
        checked.ok && checked.stdout.contains("20-good"),
        "{checked:?}"
    );
    let checked = bench.run(&["validate", "m"]);
    assert!(
        !checked.ok && checked.stdout.contains("30-bad"),
        "{checked:?}"
    );

    // A file here is meant only if the argument is written like one.
    let here = bench.node.dir.path().join("here");
    fs::create_dir(&here).unwrap();
    fs::write(here.join("n"), "not a network").unwrap();
    fs::write(here.join("n.conflist"), good.replace("\"n\"", "\"h\"")).unwrap();
    let validate = |what: &str| {
        let mut command = Command::new(bench.node.bin.join("cnitool"));
        command.args(["validate", what]).current_dir(&here);
        command.env("CNI_PATH", &bench.fake);
        command.env("NETCONFPATH", &bench.conf);
        run(&mut command, "")
    };
    assert!(validate("n").stdout.contains("20-good"));
    assert_eq!(validate("n.conflist").stdout, "n.conflist: ok\n");
    assert_eq!(validate("./n.conflist").stdout, "./n.conflist: ok\n");
    assert_eq!(validate("./n").code, Some(1));
}

#[test]
fn validate_names_the_place_where_a_subnet_is_written() {
    let bench = Bench::new();
    fs::write(bench.fake.join("host-local"), "").unwrap();
    bench.write(
        "1.conf",
        r#"{"name": "one", "cniVersion": "1.0.0", "type": "a",
            "IPAM": {"Type": "host-local", "Subnet": "10.1.0.0/16"}}"#,
    );
    bench.write(
        "2.conflist",
        r#"{"name": "two", "cniVersion": "1.0.0", "plugins": [{"type": "b"}]}"#,
    );
    bench.write(
        "two/1.conf",
        r#"{"type": "a", "ipam": {"type": "host-local", "RANGES": [[{"SUBNET": "10.1.2.0/24"}]]}}"#,
    );
    let conf = bench.conf.display();
    let checked = bench.run(&["validate"]);
    let lines: Vec<_> = checked.stdout.lines().collect();
    assert_eq!(
        lines,
        [
            format!(
                "{conf}/1.conf: warning: ipam.subnet: 10.1.0.0/16 overlaps 10.1.2.0/24 of network \"two\" in {conf}/two/1.conf"
            ),
            format!(
                "{conf}/two/1.conf: warning: ipam.ranges[0][0].subnet: 10.1.2.0/24 overlaps 10.1.0.0/16 of network \"one\" in {conf}/1.conf"
            ),
        ]
    );
    let listed = bench.run(&["list"]);
    assert_eq!(listed.stdout.matches("host-local (ipam)").count(), 2);
}

#[test]
fn validate_knows_what_the_runtime_will_add() {
    let bench = Bench::new();
    let list = |capabilities: &str| {
        format!(
            r#"{{"name": "n", "cniVersion": "1.0.0", "plugins": [{{"type": "bridge",
                {capabilities} "ipam": {{"type": "host-local"}}}}]}}"#
        )
    };
    let path = bench.node.bin.to_str().unwrap();
    let validate = |text: &str| {
        bench.write("1.conflist", text);
        bench.run(&["validate", "--path", path])
    };
    assert_eq!(validate(&list("")).code, Some(1));
    let checked = validate(&list(r#""Capabilities": {"ipRanges": true},"#));
    assert!(
        checked.ok && checked.stdout.ends_with(": ok\n"),
        "{checked:?}"
    );
}

#[test]
fn validate_finds_what_can_never_work() {
    let bench = Bench::new();
    for name in ["macvlan", "calico", "dhcp"] {
        bench.plugin(name);
    }
    let path = format!("{}:{}", bench.node.bin.display(), bench.fake.display());
    let bridge = |keys: &str| format!(r#"{{"type": "bridge", {keys}}}"#);
    let v4 = r#""ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}"#;
    let with_routes = |routes: &str| {
        bridge(&format!(
            r#""ipam": {{"type": "host-local", "subnet": "10.9.0.0/24", "routes": {routes}}}"#
        ))
    };
    let v6 = r#""ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]}"#;
    let full = r#""ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24", "gateway": "10.9.0.5", "rangeStart": "10.9.0.5", "rangeEnd": "10.9.0.5"}]]}"#;
    let static_v4 = r#""ipam": {"type": "static", "addresses": [{"address": "10.9.0.2/24"}], "routes": [{"dst": "::/0"}]}"#;
    let good = bridge(v4);
    for (plugins, expected) in [
        (r#"{"type": "portmap", "capabilities": {"portMappings": true}}"#.to_owned(), "error: plugins[0].type: portmap needs"),
        (format!(r#"{{"type": "tuning", "mtu": 1400}}, {good}"#), "error: plugins[0].type: tuning needs"),
        (format!(r#"{{"type": "firewall"}}, {good}"#), "error: plugins[0].type: firewall needs"),
        (format!(r#"{{"type": "bandwidth", "capabilities": {{"bandwidth": true}}}}, {good}"#), "error: plugins[0].type: bandwidth needs"),
        (format!(r#"{good}, {{"type": "ptp", {v4}}}"#), "error: plugins[1].type: ptp makes the interface that bridge has made"),
        (bridge(full), "error: plugins[0].ipam.ranges[0]: 10.9.0.5-10.9.0.5 has no address to hand out"),
        (bridge(&format!(r#""mtu": 1279, {v6}"#)), "error: plugins[0].mtu: too small for the IPv6"),
        (format!(r#"{}, {{"type": "tuning", "mtu": 576}}"#, bridge(v6)), "error: plugins[1].mtu: too small for the IPv6"),
        (bridge(&format!(r#""mtu": 1400, "MTU": 1500, {v4}"#)), "warning: plugins[0].MTU: written twice, as \"mtu\" too"),
        (bridge(&format!(r#""capabilities": {{"portMappings": true}}, {v4}"#)), "warning: plugins[0].capabilities.portMappings: bridge does not know it: it belongs to portmap"),
        (bridge(r#""capabilities": {"ips": true}"#), "warning: plugins[0].capabilities.ips: bridge does not know it"),
        (format!(r#"{good}, {{"type": "portmap"}}"#), "warning: plugins[1]: it never has anything to do"),
        (format!(r#"{good}, {{"type": "bandwidth"}}"#), "warning: plugins[1]: it never has anything to do"),
        (with_routes(r#"[{"dst": "::/0"}]"#), "warning: plugins[0].ipam.routes[0].dst: the container gets no IPv6 address"),
        (bridge(static_v4), "warning: plugins[0].ipam.routes[0].dst: the container gets no IPv6 address"),
        (with_routes(r#"[{"dst": "0.0.0.0/0", "gw": "10.8.0.1"}]"#), "error: plugins[0].ipam.routes[0].gw: 10.8.0.1 is in no network"),
        (with_routes(r#"[{"dst": "0.0.0.0/0", "gw": "fd00::1"}]"#), "error: plugins[0].ipam.routes[0].gw: fd00::1 is no IPv4 address"),
        (r#"{"type": "macvlan", "ipam": {"type": "host-local", "subnet": "x"}}"#.to_owned(), "error: plugins[0].ipam.subnet: \"x\""),
        // Nothing is wrong with these.
        (r#"{"type": "calico", "ipam": {"type": "host-local", "subnet": "usePodCidr"}}"#.to_owned(), "ok"),
        (r#"{"type": "calico", "ipam": {"type": "calico-ipam"}}, {"type": "portmap", "capabilities": {"portMappings": true}}"#.to_owned(), "ok"),
        (bridge(&format!(r#""mtu": 1280, {v6}"#)), "ok"),
        (bridge(&format!(r#""mtu": 576, {v4}"#)), "ok"),
        (bridge(r#""capabilities": {"ipRanges": true}, "ipam": {"type": "host-local", "routes": [{"dst": "::/0"}]}"#), "ok"),
        (bridge(r#""capabilities": {"ips": true}, "ipam": {"type": "dhcp"}"#), "ok"),
        (with_routes(r#"[{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "gw": "10.9.0.7"}]"#), "ok"),
        (format!(r#"{{"type": "loopback"}}, {good}"#), "ok"),
        (format!(r#"{good}, {{"type": "portmap", "runtimeConfig": {{"portMappings": [{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}]}}}}"#), "ok"),
        (format!(r#"{good}, {{"type": "bandwidth", "ingressRate": 8000, "ingressBurst": 80000}}"#), "ok"),
    ] {
        let list = format!(r#"{{"cniVersion": "1.0.0", "name": "n", "plugins": [{plugins}]}}"#);
        bench.write("1.conflist", list);
        let told = bench.run(&["validate", "--path", &path]);
        let lines: Vec<_> = told.stdout.lines().collect();
        assert!(
            lines.len() == 1 && lines[0].contains(&format!("1.conflist: {expected}")),
            "{plugins}: {told:?}"
        );
        assert_eq!(told.ok, !expected.starts_with("error"), "{plugins}");
    }
}

#[test]
fn validate_tells_everything_at_once() {
    let bench = Bench::new();
    bench.chain(&json!({
        "cniVersion": "9.9", "disableGc": true, "nmae": "x",
        "plugins": [{"type": "a/b"}, {"type": "nowhere", "capabilities": []}, {}],
    }));
    bench.write("20-syntax.conflist", "{\n\"name\": }");
    bench.write(
        "30-ok.conflist",
        r#"{"name": "ok", "cniVersion": "1.0.0", "x-remark": 1, "plugins": [{"type": "a",
            "ipam": {"type": "host-local", "subnet": "10.1.0.0/16"}}]}"#,
    );
    bench.write(
        "40-neighbour.conflist",
        r#"{"name": "neighbour", "cniVersion": "1.0.0", "plugins": [{"type": "a",
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/24"}]]}}]}"#,
    );
    bench.write(
        "50-again.conf",
        r#"{"name": "ok", "cniVersion": "1.0.0", "type": "b"}"#,
    );
    fs::write(bench.fake.join("host-local"), "").unwrap();
    let all = bench.run(&["validate"]);
    assert_eq!(all.code, Some(1));
    for part in [
        "10-n.conflist: error: cniVersion: \"9.9\"",
        "10-n.conflist: error: disableGc: write it \"disableGC\"",
        "10-n.conflist: warning: nmae: unknown key, ignored; did you mean \"name\"?",
        "10-n.conflist: error: plugins[0].type: invalid plugin name: a/b",
        "10-n.conflist: error: plugins[1].type: failed to find plugin \"nowhere\"",
        "10-n.conflist: error: plugins[1].capabilities: expected an object",
        "10-n.conflist: error: plugins[2].type: missing",
        "20-syntax.conflist:2:9: error: ",
        "30-ok.conflist: warning: x-remark: unknown key",
        "40-neighbour.conflist: warning: plugins[0].ipam.ranges[0][0].subnet: 10.1.2.0/24 overlaps 10.1.0.0/16 of network \"ok\"",
        "50-again.conf: warning: name: \"ok\" is defined in ",
    ] {
        assert!(all.stdout.contains(part), "no {part:?} in\n{}", all.stdout);
    }
    // Warnings alone are no failure; a network is found by its name even when broken.
    let one = bench.run(&["validate", "ok"]);
    assert!(one.ok && one.stdout.lines().count() == 2, "{one:?}");
    assert_eq!(bench.run(&["validate", "n"]).code, Some(1));
    let file = bench.conf.join("40-neighbour.conflist");
    assert!(bench.run(&["validate", file.to_str().unwrap()]).ok);
    assert_fails(
        &bench.run(&["validate", "neighbor"]),
        &["did you mean \"neighbour\"?"],
    );
    assert_eq!(bench.run(&["validate", "/nowhere.conflist"]).code, Some(1));
    assert!(bench.calls().is_empty());
}

#[test]
fn the_usage_is_that_of_the_help() {
    let node = Node::new();
    let mut command = Command::new(node.bin.join("cnitool"));
    command
        .arg("add")
        .env("CNI_IFNAME", "x")
        .env("CAP_ARGS", "{}");
    command.env("CNI_PATH", "/y").env("NETCONFPATH", "/x");
    let output = run(&mut command, "");
    assert!(
        output
            .stderr
            .contains("Usage: cnitool add [OPTIONS] <NETWORK> <NETNS>\n"),
        "{output:?}"
    );
}
