//! `cnibox` itself: what it says, and how it installs itself while plugins run.
#![allow(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test starts processes, and fails by panicking"
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Output, binary, links, run};

fn cnibox(args: &[&str]) -> Output {
    run(Command::new(binary()).arg0("cnibox").args(args), "")
}

/// Asserts that `command` answers as the plugin or tool `applet`.
#[track_caller]
fn answers(command: &mut Command, applet: &str) {
    if applet == "cnitool" {
        let output = run(command.arg("--version"), "");
        assert!(
            output.ok && output.stdout.starts_with("cnitool "),
            "{output:?}"
        );
        return;
    }
    let output = run(command.env("CNI_COMMAND", "VERSION"), "");
    assert!(output.json()["supportedVersions"].is_array(), "{applet}");
}

/// Asserts that every applet runs from `dir`: by its link, and by the binary's name.
#[track_caller]
fn all_run(dir: &Path) {
    for name in links() {
        answers(&mut Command::new(dir.join(&name)), &name);
        answers(Command::new(dir.join("cnibox")).arg(&name), &name);
        let relative = format!("./{name}");
        answers(Command::new(relative).current_dir(dir), &name);
    }
}

/// Puts the binary into an empty directory under its own name.
fn source() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cnibox");
    fs::copy(binary(), &file).unwrap();
    (dir, file)
}

fn install(args: &[&str], dir: &Path) -> Output {
    let output = run(
        Command::new(binary())
            .arg0("cnibox")
            .arg("install")
            .args(args)
            .arg(dir),
        "",
    );
    assert!(output.ok, "{output:?}");
    output
}

fn entries(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn it_says_what_it_is() {
    let overview = cnibox(&[]);
    assert!(overview.ok && overview.stderr.is_empty(), "{overview:?}");
    for part in links().iter().map(String::as_str).chain([
        env!("CARGO_PKG_VERSION"),
        "0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0",
    ]) {
        assert!(overview.stdout.contains(part), "{part}: {overview:?}");
    }
    let list = cnibox(&["list"]);
    let names: BTreeSet<_> = list.stdout.lines().map(str::to_owned).collect();
    assert_eq!(names, links().into_iter().collect());
    assert!(cnibox(&["--version"]).stdout.starts_with("cnibox "));
    assert!(cnibox(&["--help"]).stdout.contains("install"));
    let refused = cnibox(&["install"]);
    assert!(!refused.ok && refused.stderr.contains("DIR"), "{refused:?}");
}

/// A version as semver has it, with or without a `v` in front.
fn version(word: &str) -> Option<[u64; 3]> {
    let word = word.strip_prefix('v').unwrap_or(word);
    let parts: Option<Vec<u64>> = word.split('.').map(|part| part.parse().ok()).collect();
    parts?.try_into().ok()
}

/// Nomad runs every file of the directory without an argument and takes the first word that is a
/// version; nerdctl reads the line that starts with the plugin's name, on stderr only. Both
/// want the run to succeed (docs/requirements.md#r-12).
#[test]
fn runtimes_that_ask_which_version_a_plugin_has_find_out() {
    let dir = tempfile::tempdir().unwrap();
    install(&[], dir.path());
    for name in links() {
        if name == "cnitool" {
            continue;
        }
        let mut command = Command::new(dir.path().join(&name));
        let said = run(command.env_remove("CNI_COMMAND"), "");
        assert!(said.ok && said.stdout.is_empty(), "{name}: {said:?}");
        let nomads = said.stderr.split_whitespace().find_map(version);
        let title = format!("CNI {name} plugin ");
        let line = said
            .stderr
            .lines()
            .find_map(|line| line.strip_prefix(&title));
        assert_eq!(nomads, line.and_then(version), "{name}: {said:?}");
        assert!(nomads >= Some([1, 1, 0]), "{name}: {said:?}");
    }
}

#[test]
fn unknown_names_fail_loudly() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("brigde");
    symlink(binary(), &link).unwrap();
    let by_link = run(Command::new(&link).env_remove("CNI_COMMAND"), "");
    let by_argument = cnibox(&["brigde"]);
    for output in [&by_link, &by_argument] {
        assert_eq!(output.code, Some(1), "{output:?}");
        assert!(output.stdout.is_empty());
        assert!(
            output.stderr.contains("did you mean \"bridge\"?"),
            "{output:?}"
        );
        for name in links() {
            assert!(output.stderr.contains(&name), "{output:?}");
        }
    }
    // A runtime gets the document it expects.
    let (code, message, details) = run(Command::new(&link).env("CNI_COMMAND", "ADD"), "{}").error();
    assert_eq!(code, 999);
    assert!(message.contains("brigde") && details.contains("host-local"));
}

#[test]
fn the_binary_itself_is_no_plugin() {
    for command in ["ADD", "VERSION"] {
        let output = run(Command::new(binary()).env("CNI_COMMAND", command), "{}");
        let (code, message, _) = output.error();
        assert_eq!(code, 999);
        assert!(message.contains("\"cnibox\""), "{message}");
    }
}

#[test]
fn three_ways_to_install_twice_each() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("opt/cni/bin");
    for (index, mode) in ["", "--hardlink", "--copy", ""].iter().enumerate() {
        let args: &[&str] = if mode.is_empty() { &[] } else { &[mode] };
        for _ in 0..2 {
            let said = install(args, &dir);
            for name in links() {
                assert!(
                    said.stdout.contains(&format!("/opt/cni/bin/{name} ")),
                    "{said:?}"
                );
            }
            all_run(&dir);
            let mut expected: BTreeSet<String> = links().into_iter().collect();
            expected.insert("cnibox".into());
            if index > 0 {
                expected.insert("other".into());
            }
            assert_eq!(entries(&dir), expected);
        }
        let own = fs::metadata(dir.join("cnibox")).unwrap();
        assert_eq!(own.permissions().mode() & 0o7777, 0o755);
        for name in links() {
            let link = dir.join(&name);
            let is_symlink = fs::symlink_metadata(&link).unwrap().is_symlink();
            assert_eq!(is_symlink, mode.is_empty(), "{name}");
            if is_symlink {
                assert_eq!(fs::read_link(&link).unwrap(), Path::new("cnibox"));
            }
            let shared = fs::metadata(&link).unwrap().ino() == own.ino();
            assert_eq!(shared, *mode != "--copy", "{name}");
        }
        // Foreign files stay as they are.
        fs::write(dir.join("other"), "not ours").unwrap();
    }
    assert_eq!(fs::read_to_string(dir.join("other")).unwrap(), "not ours");
    let refused = cnibox(&["install", "--copy", "--hardlink", dir.to_str().unwrap()]);
    assert!(!refused.ok, "{refused:?}");
}

/// A plugin that waits for its configuration, with its standard input held open.
fn waiting(executable: &Path, args: &[&str]) -> Child {
    Command::new(executable)
        .args(args)
        .env("CNI_COMMAND", "GC")
        .env("CNI_PATH", "/x")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn running_copies_are_replaced_under_their_feet() {
    let dir = tempfile::tempdir().unwrap();
    install(&["--copy"], dir.path());
    let (own, bridge) = (dir.path().join("cnibox"), dir.path().join("bridge"));
    let children = [waiting(&own, &["bridge"]), waiting(&bridge, &[])];
    for file in [&own, &bridge] {
        let error = fs::write(file, "").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ExecutableFileBusy);
    }
    install(&[], dir.path());
    all_run(dir.path());
    for child in children {
        let output = child.wait_with_output().unwrap();
        let answer = String::from_utf8(output.stdout).unwrap();
        assert!(answer.contains("\"code\": 6"), "{answer}");
    }
}

#[test]
fn it_installs_from_inside_the_directory() {
    let (dir, file) = source();
    for mode in ["--copy", "--hardlink"] {
        let output = run(
            Command::new(&file).args(["install", mode]).arg(dir.path()),
            "",
        );
        assert!(output.ok, "{output:?}");
        all_run(dir.path());
    }
    let output = run(
        Command::new("./cnibox")
            .args(["install", "."])
            .current_dir(dir.path()),
        "",
    );
    assert!(output.ok, "{output:?}");
    all_run(dir.path());
    assert_eq!(entries(dir.path()).len(), links().len() + 1);
}

#[test]
fn what_cannot_be_replaced_is_told_before_anything_changes() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("bridge")).unwrap();
    let refused = cnibox(&["install", dir.path().to_str().unwrap()]);
    assert!(
        !refused.ok && refused.stderr.contains("/bridge is a directory"),
        "{refused:?}"
    );
    assert_eq!(entries(dir.path()).len(), 1);
}

#[test]
fn an_installer_killed_anywhere_leaves_every_applet_running() {
    let dir = tempfile::tempdir().unwrap();
    install(&[], dir.path());
    let mut killed = 0;
    for round in 0..200 {
        let mode = ["--copy", "--hardlink"].get(round % 3);
        let mut child = Command::new(binary())
            .arg0("cnibox")
            .arg("install")
            .args(mode)
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(700 * u64::try_from(round).unwrap()));
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        for name in links() {
            answers(&mut Command::new(dir.path().join(&name)), &name);
        }
    }
    assert!(killed > 0, "no installer was caught at work");
    // The next one that is let alone cleans up after the others.
    install(&[], dir.path());
    all_run(dir.path());
    assert_eq!(entries(dir.path()).len(), links().len() + 1);
}

/// What the instruction `name` of the Containerfile says.
fn instruction(name: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("conf/image/Containerfile")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    serde_json::from_str(line.unwrap()).unwrap()
}

/// The image that `make image` builds is what `install` makes of an empty directory, at
/// the place that the Containerfile names; its host's directory is mounted into it.
#[test]
fn the_image_installs_itself_on_its_host() {
    let node = common::Node::new();
    let (root, host) = (node.dir.path().join("root"), node.dir.path().join("host"));
    let [entry, command] = [instruction("ENTRYPOINT "), instruction("CMD ")];
    let inside = |path: &str| root.join(path.trim_start_matches('/'));
    install(&[], inside(&entry[0]).parent().unwrap());
    let mounted = inside(command.last().unwrap());
    for dir in [&mounted, &host, &inside("/proc"), &inside("/dev")] {
        fs::create_dir_all(dir).unwrap();
    }
    node.sh(&format!(
        "mount --bind {} {} && mount -t proc proc {} && mount --bind /dev {}",
        host.display(),
        mounted.display(),
        inside("/proc").display(),
        inside("/dev").display()
    ));
    // The release binary needs nothing around it; the one that cargo builds for tests is
    // linked with the system's C library.
    if std::env::var_os("CNIBOX").is_none() {
        for dir in ["/lib", "/lib64", "/usr/lib"] {
            let there = inside(dir);
            fs::create_dir_all(&there).unwrap();
            node.sh(&format!("mount --bind {dir} {}", there.display()));
        }
    }
    // Again and again: the container is started whenever its node is.
    for _ in 0..2 {
        let output = run(
            Command::new("/usr/sbin/chroot")
                .arg(&root)
                .args(&entry)
                .args(&command)
                .env_clear(),
            "",
        );
        assert!(output.ok, "{output:?}");
        all_run(&host);
    }
}

#[test]
fn the_manifest_runs_the_image_as_it_is_made() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = root.join("conf/kubernetes/daemonset.yaml");
    let read = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let read = run(Command::new("python3").args(["-c", read]).arg(manifest), "");
    let manifest = read.json();
    assert_eq!(manifest["kind"], "DaemonSet");
    let (spec, selector) = (
        &manifest["spec"]["template"]["spec"],
        &manifest["spec"]["selector"],
    );
    assert_eq!(
        selector["matchLabels"],
        manifest["spec"]["template"]["metadata"]["labels"]
    );
    let install = &spec["initContainers"][0];
    assert_eq!(install["args"], serde_json::json!(instruction("CMD ")));
    let (mount, volume) = (&install["volumeMounts"][0], &spec["volumes"][0]);
    assert_eq!(mount["mountPath"], install["args"][1]);
    assert_eq!(mount["name"], volume["name"]);
    assert_eq!(volume["hostPath"]["path"], "/opt/cni/bin");
    // Without network, and on nodes that are not ready for want of one.
    assert_eq!(spec["hostNetwork"], true);
    assert_eq!(spec["tolerations"][0]["operator"], "Exists");
}

/// A call of `file` with `config` on stdin, as a runtime would make it.
fn call(file: &Path, command: &str, config: &str) -> Output {
    run(
        Command::new(file)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_NETNS", "/none")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", file.parent().unwrap()),
        config,
    )
}

/// The addresses that `file` hands out, called as an IPAM plugin.
#[track_caller]
fn hands_out(file: &Path, plugin: &str, ipam: &str) {
    let output = call(
        file,
        "ADD",
        &format!(
            r#"{{"cniVersion":"1.0.0","name":"n","type":"{plugin}","ipam":{{"type":"{ipam}","addresses":[{{"address":"10.9.0.5/24"}}]}}}}"#
        ),
    );
    assert!(output.ok, "{}: {output:?}", file.display());
    assert_eq!(output.json()["ips"][0]["address"], "10.9.0.5/24");
}

/// Links and copies that somebody made for a runtime (`buildkit`, `KubeVirt`) or to try a second
/// version.
#[test]
fn links_of_other_names_are_what_the_configuration_or_the_name_says() {
    let dir = tempfile::tempdir().unwrap();
    install(&[], dir.path());
    let file = |name: &str| dir.path().join(name);
    symlink("cnibox", file("static-v2")).unwrap();
    symlink("cnibox", file("my-static")).unwrap();
    symlink(file("static"), file("by-way")).unwrap();
    symlink("by-way", file("by-ways")).unwrap();
    fs::copy(binary(), file("a-static")).unwrap();
    symlink("cnibox", file("cnv-bridge")).unwrap();
    symlink("cnibox", file("buildkit-cni-host-local")).unwrap();

    // The type of the configuration says it.
    hands_out(&file("static-v2"), "static", "x");
    // The name says it, and a type that is no applet's or the caller's says nothing.
    for plugin in ["my-static", "a-static"] {
        hands_out(&file(plugin), plugin, "x");
        hands_out(&file(plugin), "ptp", plugin);
    }
    // The way says it.
    hands_out(&file("by-way"), "by-way", "x");
    hands_out(&file("by-ways"), "bridge", "by-ways");
    // Anything but an applet's own words is the applet's error, not one about names.
    let (code, message, _) = call(
        &file("buildkit-cni-host-local"),
        "ADD",
        r#"{"cniVersion":"1.0.0","name":"n","type":"buildkit-cni-bridge","ipam":{"type":"buildkit-cni-host-local"}}"#,
    )
    .error();
    assert_eq!(code, 7, "{message}");
    assert!(message.contains("range"), "{message}");

    // Neither says it.
    for config in [
        r#"{"cniVersion":"1.0.0","name":"n","type":"static-v2"}"#,
        r#"{"cniVersion":"1.0.0","name":"n","type":"cnitool"}"#,
        r#"{"cniVersion":"1.0.0","name":"n","type":"ptp","ipam":{"type":"static-v2"}}"#,
        "{}",
        "no JSON",
    ] {
        for command in ["ADD", "DEL", "STATUS"] {
            let output = call(&file("static-v2"), command, config);
            let (code, message, _) = output.error();
            assert_eq!(code, 999, "{config}");
            assert!(message.contains("\"static-v2\""), "{message}");
        }
    }
    // VERSION does not come with a configuration that would tell.
    for name in ["static-v2", "my-static", "by-ways", "cnv-bridge"] {
        for config in ["", r#"{"cniVersion":"0.4.0"}"#] {
            let output = call(&file(name), "VERSION", config);
            assert!(output.ok, "{name}: {output:?}");
            let answer = output.json();
            assert_eq!(answer["supportedVersions"].as_array().unwrap().len(), 7);
            let echoed = if config.is_empty() { "1.1.0" } else { "0.4.0" };
            assert_eq!(answer["cniVersion"], echoed, "{name}");
        }
    }
    // Who asks nothing hears of it.
    let said = run(
        Command::new(file("cnv-bridge")).env_remove("CNI_COMMAND"),
        "",
    );
    assert!(said.ok && said.stderr.starts_with("CNI cnv-bridge plugin v"));
}

#[test]
fn links_of_other_names_go_on_working_after_an_installation() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let newest = || fs::read(binary()).unwrap();
    // What was there was the reference's, and somebody's link to it.
    fs::write(file("static"), "the reference's").unwrap();
    symlink("static", file("static-v2")).unwrap();
    symlink(file("static"), file("cnv-static")).unwrap();
    fs::copy(file("static"), file("copied-static")).unwrap();
    for mode in ["", "--hardlink", "--copy"] {
        let args: &[&str] = if mode.is_empty() { &[] } else { &[mode] };
        install(args, dir.path());
        for name in ["static-v2", "cnv-static"] {
            hands_out(&file(name), name, "x");
        }
        assert_eq!(fs::read(file("copied-static")).unwrap(), b"the reference's");
    }
    // What is of an older version of ours follows.
    let older = [newest(), b"older".to_vec()].concat();
    fs::write(file("cnibox"), &older).unwrap();
    fs::hard_link(file("cnibox"), file("hard-static")).unwrap();
    fs::copy(file("cnibox"), file("my-static")).unwrap();
    fs::copy(file("cnibox"), file("cnibox.old")).unwrap();
    symlink("cnibox", file("soft-static")).unwrap();
    let said = install(&[], dir.path());
    for name in ["hard-static", "my-static", "soft-static"] {
        assert_eq!(fs::read(file(name)).unwrap(), newest(), "{name}");
        hands_out(&file(name), name, "x");
        let is_told = said.stdout.contains(&format!("/{name} (kept up to date)"));
        assert_eq!(is_told, name != "soft-static", "{said:?}");
    }
    let inode = |name| fs::metadata(file(name)).unwrap().ino();
    assert_eq!(inode("hard-static"), inode("cnibox"));
    assert_eq!(fs::read(file("cnibox.old")).unwrap(), older);
}
