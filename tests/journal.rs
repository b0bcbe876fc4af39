//! `CNIBOX_LOG` and its switch file: a line for each call of a plugin.
#![allow(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test starts processes, and fails by panicking"
)]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Call, Node, run};
use serde_json::{Value, json};

/// While it is there, calls are logged.
const SWITCH: &str = "/run/cni/cnibox.log";

/// Bytes after which a file is full.
const FULL: usize = 4 << 20;

fn bridge() -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "n", "type": "bridge", "bridge": "br0", "isGateway": true,
        "ipMasq": true, "ipMasqBackend": "nftables",
        "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"},
    })
}

fn host_local() -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "n",
        "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"},
    })
}

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn steps(line: &Value) -> Vec<&str> {
    let steps = line["steps"].as_array().unwrap();
    steps
        .iter()
        .map(|step| step["step"].as_str().unwrap())
        .collect()
}

/// A call of host-local for container `id`, logged in `file`.
fn logged(node: &Node, id: &str, file: &Path) -> Call {
    node.plugin("host-local")
        .id(id)
        .netns("/run/netns/none")
        .env("CNIBOX_LOG", file.to_str().unwrap())
}

#[test]
fn a_file_switches_it_on_and_off() {
    let node = Node::new();
    let (netns, switch) = (node.netns("c1"), Path::new(SWITCH));
    let call = node.plugin("bridge").netns(&netns);
    call.run("ADD", &bridge()).json();
    assert!(!switch.exists());

    fs::create_dir_all("/run/cni").unwrap();
    fs::write(switch, "").unwrap();
    call.run("DEL", &bridge()).silent();
    let result = call.run("ADD", &bridge()).json();
    let refused = call.run("ADD", &bridge()).error();
    let told = lines(switch);
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(
        fs::metadata(switch).unwrap().permissions().mode() & 0o777,
        0o600
    );
    for (line, command) in told.iter().zip(["DEL", "ADD", "ADD"]) {
        assert_eq!(line["applet"], "bridge");
        assert_eq!(line["command"], command);
        assert_eq!(line["network"], "n");
        assert_eq!(line["container"], "c1");
        assert_eq!(line["interface"], "eth0");
        assert_eq!(line["netns"], netns);
        assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
        let whole = line["ms"].as_f64().unwrap();
        for step in line["steps"].as_array().unwrap() {
            let end = step["at"].as_f64().unwrap() + step["ms"].as_f64().unwrap();
            assert!(end <= whole + 0.01, "{step} in {line}");
        }
    }
    assert_eq!(told[0]["result"], Value::Null);
    assert_eq!(told[1]["result"], result);
    assert_eq!(told[2]["error"]["msg"], refused.1);
    assert_eq!(told[2].get("result"), None);
    for (line, expected) in [
        (
            0,
            vec![
                "DEL of host-local",
                "release addresses",
                "remove masquerade rules",
                "delete the veth pair",
            ],
        ),
        (
            1,
            vec![
                "ADD of host-local",
                "lock the leases",
                "reserve addresses",
                "create the veth pair",
                "masquerade",
            ],
        ),
        (2, vec!["look around"]),
    ] {
        for step in expected {
            assert!(steps(&told[line]).contains(&step), "{step}: {}", told[line]);
        }
    }

    fs::remove_file(switch).unwrap();
    call.run("DEL", &bridge()).silent();
    assert!(!switch.exists());
}

#[test]
fn what_was_configured_is_not_told() {
    let node = Node::new();
    let file = node.dir.path().join("log");
    let mut config = host_local();
    config["token"] = json!("hunter2");
    let call = logged(&node, "c1", &file).env("CNI_ARGS", "IgnoreUnknown=1;TOKEN=hunter3");
    call.run("ADD", &config).json();
    call.run("DEL", &config).silent();
    let text = fs::read_to_string(&file).unwrap();
    assert!(
        text.contains("10.9.0.2") && !text.contains("hunter"),
        "{text}"
    );
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    // What cannot be a call is told as well.
    logged(&node, "c1", &file)
        .env("CNI_IFNAME", "a/b")
        .run("ADD", &config)
        .error();
    logged(&node, "c1", &file)
        .env("CNI_COMMAND", "ADD")
        .run_text("{")
        .error();
    let told = lines(&file);
    assert_eq!(told.len(), 4);
    assert_eq!(
        (&told[2]["interface"], &told[2]["error"]["code"]),
        (&json!("a/b"), &json!(4))
    );
    assert_eq!(
        (&told[3]["network"], &told[3]["error"]["code"]),
        (&json!(""), &json!(6))
    );
}

#[test]
fn a_full_file_is_put_aside() {
    let node = Node::new();
    let (file, older) = (node.dir.path().join("log"), node.dir.path().join("log.1"));
    for round in ["first", "second"] {
        fs::write(&file, round).unwrap();
        fs::File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_len(FULL as u64)
            .unwrap();
        logged(&node, round, &file).run("ADD", &host_local()).json();
        assert_eq!(lines(&file).len(), 1);
        assert_eq!(fs::metadata(&older).unwrap().len(), FULL as u64);
        assert!(fs::read(&older).unwrap().starts_with(round.as_bytes()));
    }
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[test]
fn lines_of_calls_at_the_same_time_do_not_mix() {
    const CALLS: usize = 16;
    let node = Node::new();
    let file = node.dir.path().join("log");
    // Soon full, so that one of the calls puts it aside.
    let filler = format!("{}\n", json!("x".repeat(1021)));
    fs::write(&file, filler.repeat(FULL / filler.len())).unwrap();
    let ids: Vec<String> = (0..CALLS).map(|n| format!("c{n}")).collect();
    std::thread::scope(|scope| {
        for id in &ids {
            let call = logged(&node, id, &file);
            scope.spawn(move || call.run("ADD", &host_local()).json());
        }
    });
    let older = lines(&node.dir.path().join("log.1"));
    let mut told: Vec<String> = lines(&file)
        .iter()
        .chain(older.iter().filter(|line| line.is_object()))
        .map(|line| line["container"].as_str().unwrap().to_owned())
        .collect();
    told.sort_by_key(|id| id[1..].parse::<usize>().unwrap());
    assert_eq!(told, ids);
}

#[test]
fn what_cannot_be_logged_fails_no_call() {
    let node = Node::new();
    let target = node.dir.path().join("target");
    let link = node.dir.path().join("link");
    fs::write(&target, "").unwrap();
    symlink(&target, &link).unwrap();
    node.sh("mkdir -p /run/full && mount -t tmpfs -o size=4k tmpfs /run/full");
    fs::write("/run/full/log", [b'x'; 4096]).unwrap();
    let pipe = node.dir.path().join("pipe");
    node.sh(&format!("mkfifo {}", pipe.display()));
    let others = node.dir.path().join("others");
    fs::write(&others, "").unwrap();
    std::os::unix::fs::chown(&others, Some(4711), None).unwrap();
    let mut files: Vec<PathBuf> = vec![link, pipe, others.clone(), node.dir.path().into()];
    files.extend(["/run/full/log", "/no/such/directory/log", ""].map(PathBuf::from));
    for file in &files {
        let call = logged(&node, "c1", file);
        let added = call.run("ADD", &host_local());
        assert!(added.stderr.is_empty(), "{added:?}");
        added.json();
        call.run("DEL", &host_local()).silent();
    }
    for untouched in [target, others] {
        assert_eq!(
            fs::read_to_string(&untouched).unwrap(),
            "",
            "{}",
            untouched.display()
        );
    }
    node.sh("umount /run/full");
}

#[test]
fn cnitool_tells_the_same_steps() {
    let node = Node::new();
    let netns = node.netns("c1");
    let conf = node.dir.path().join("net.d");
    fs::create_dir(&conf).unwrap();
    let mut plugin = bridge();
    for key in ["name", "cniVersion"] {
        plugin.as_object_mut().unwrap().remove(key);
    }
    let list = json!({"cniVersion": "1.1.0", "name": "n", "plugins": [plugin]});
    fs::write(conf.join("n.conflist"), list.to_string()).unwrap();
    fs::create_dir_all("/run/cni").unwrap();
    fs::write(SWITCH, "").unwrap();

    let temporary = tempfile::tempdir().unwrap();
    let mut cnitool = Command::new(node.bin.join("cnitool"));
    cnitool.args(["add", "n", &netns, "--timing", "--conf"]);
    cnitool.arg(&conf).env("CNI_PATH", &node.bin);
    let added = run(cnitool.env("TMPDIR", temporary.path()), "");
    added.json();
    let told = lines(Path::new(SWITCH));
    assert_eq!(told.len(), 1, "{told:?}");
    let timing: Vec<&str> = added.stderr.lines().collect();
    assert!(timing[0].starts_with("timing: bridge ADD "), "{added:?}");
    assert_eq!(timing.len(), steps(&told[0]).len() + 1, "{added:?}");
    for (line, step) in timing[1..].iter().zip(steps(&told[0])) {
        assert!(
            line.ends_with(&format!(" ms on: {step}")),
            "{step}: {added:?}"
        );
    }
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
}
