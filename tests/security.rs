//! The rows of docs/security.md: what whoever controls a container, a configuration's
//! names, or a directory in which anybody may write, cannot make the plugins do.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot do its work says so by panicking; doors are for the product"
)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Call, Node, run, with};
use nix::sys::stat::{Mode, umask};
use serde_json::{Value, json};

/// A routed network with addresses of both families.
fn network() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "net1",
        "type": "bridge",
        "bridge": "br1",
        "isGateway": true,
        "ipam": {"type": "host-local",
                 "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]},
    })
}

/// The leases of the network, and the index beside them.
const LEASES: &str = "/var/lib/cni/networks/net1";
const INDEX: &str = "/var/lib/cni/networks/.cnibox";

/// Everything below `dir`: path, mode with the kind of file.
fn tree(dir: &str) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        let mode = fs::symlink_metadata(&path).unwrap().mode();
        if path.is_dir() && !path.is_symlink() {
            found.extend(tree(path.to_str().unwrap()));
        }
        found.push((path, mode));
    }
    found.sort();
    found
}

/// An executable script in place of a program.
fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn names_are_never_paths() {
    let node = Node::new();
    let netns = node.netns("c1");
    // Above the directory of plugins: where a path would lead to.
    let evil = node.dir.path().join("evil");
    let mark = node.dir.path().join("mark");
    script(&evil, &format!("touch {}", mark.display()));
    let long = "x".repeat(4096);
    let before = (tree("/var/lib"), node.links());
    for plugin in ["bridge", "host-local", "portmap", "tuning"] {
        let call = node.plugin(plugin).netns(&netns);
        for command in ["ADD", "DEL", "CHECK"] {
            for id in ["../c1", "a/b", "..", ".", "a b", "a\nb", "-", "\u{e9}"] {
                assert_eq!(call.clone().id(id).run(command, &network()).error().0, 4);
            }
            for ifname in ["../e", "a/b", "..", ".", "a b", "a\tb", "all", "e%d", &long] {
                let call = call.clone().ifname(ifname);
                assert_eq!(call.run(command, &network()).error().0, 4, "{ifname}");
            }
        }
        for command in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
            for name in [
                "../net1", "/etc", "a/b", "..", ".", ".cnibox", "a b", "a\nb", "",
            ] {
                let config = with(network(), json!({"name": name}));
                assert_eq!(call.run(command, &config).error().0, 7, "{name}");
            }
        }
    }
    // CVE-2021-20206.
    let call = node.plugin("bridge").netns(&netns);
    for command in ["ADD", "DEL", "STATUS"] {
        for name in [
            "../evil",
            evil.to_str().unwrap(),
            "./host-local",
            "..",
            ".",
            &long,
        ] {
            let config = with(network(), json!({"ipam": {"type": name}}));
            let (code, message, _) = call.run(command, &config).error();
            let is_path = name != long;
            assert!(
                !is_path || matches!(code, 7 | 50),
                "{command} {name}: {code} {message}"
            );
        }
    }
    assert!(!mark.exists());
    assert_eq!((tree("/var/lib"), node.links()), before);
}

/// A file that must stay as it is, wherever links lead.
struct Victim(PathBuf);

impl Victim {
    fn new(node: &Node) -> Self {
        let path = node.dir.path().join("victim");
        fs::write(&path, "root:x:0:0\n").unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        Self(path)
    }

    fn assert_untouched(&self) {
        let meta = fs::metadata(&self.0).unwrap();
        assert_eq!(fs::read_to_string(&self.0).unwrap(), "root:x:0:0\n");
        assert_eq!(meta.mode() & 0o7777, 0o640);
        // Whoever writes through a link would create this one.
        assert!(!self.0.with_file_name("created").exists());
    }
}

#[test]
fn links_in_a_data_directory_are_not_followed() {
    let node = Node::new();
    let victim = Victim::new(&node);
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    let created = victim.0.with_file_name("created");
    let hash = "0".repeat(64);
    for target in [&victim.0, &created] {
        for name in [
            "lock",
            "last_reserved_ip.0",
            "10.9.0.2",
            "fd00:9::2",
            "10.9.0.200",
        ] {
            fs::create_dir_all(LEASES).unwrap();
            symlink(target, Path::new(LEASES).join(name)).unwrap();
            let added = call.run("ADD", &network());
            if name == "lock" {
                let (code, message, details) = added.error();
                assert_eq!(code, 5, "{message}");
                assert!(details.contains("lock"), "{details}");
            } else {
                added.json();
                call.run("DEL", &network()).silent();
            }
            victim.assert_untouched();
            fs::remove_dir_all("/var/lib/cni").unwrap();
        }
        for name in ["complete", hash.as_str()] {
            fs::create_dir_all(format!("{INDEX}/net1")).unwrap();
            symlink(target, format!("{INDEX}/net1/{name}")).unwrap();
            call.run("ADD", &network()).json();
            call.run("DEL", &network()).silent();
            victim.assert_untouched();
            fs::remove_dir_all("/var/lib/cni").unwrap();
        }
        let backups = node.dir.path().join("backups");
        fs::create_dir(&backups).unwrap();
        symlink(target, backups.join("c1_eth0.json")).unwrap();
        call.run("ADD", &network()).json();
        let tuning = node.plugin("tuning").netns("/run/netns/c1");
        let config = json!({"cniVersion": "1.0.0", "name": "net1", "mtu": 1400, "dataDir": backups,
                            "prevResult": {"interfaces": [{"name": "eth0", "sandbox": "/run/netns/c1"}]}});
        tuning.run("ADD", &config).json();
        tuning.run("DEL", &config).silent();
        call.run("DEL", &network()).silent();
        victim.assert_untouched();
        fs::remove_dir_all(&backups).unwrap();
        fs::remove_dir_all("/var/lib/cni").unwrap();
    }
}

#[test]
fn directories_of_others_are_not_used() {
    let node = Node::new();
    let elsewhere = node.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    let data = Path::new("/var/lib/cni/networks");
    // Where anybody may write, somebody has been there before the first ADD.
    fs::create_dir_all(data).unwrap();
    fs::set_permissions(data, PermissionsExt::from_mode(0o777)).unwrap();
    let link = data.join("net1");
    symlink(&elsewhere, &link).unwrap();
    lchown(&link, Some(1000), Some(1000)).unwrap();
    let (code, message, details) = call.run("ADD", &network()).error();
    assert_eq!(code, 5, "{message}");
    assert!(
        details.contains("symlink that belongs to user 1000"),
        "{details}"
    );
    call.run("DEL", &network()).error();
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    // An administrator's link is a link.
    lchown(&link, Some(0), Some(0)).unwrap();
    call.run("ADD", &network()).json();
    assert!(elsewhere.join("10.9.0.2").exists());
    call.run("DEL", &network()).silent();
    // The index is nobody else's to make: done without.
    assert!(!Path::new(INDEX).exists(), "it goes with the last lease");
    for owner in [0, 1000] {
        let theirs = node.dir.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        if owner == 0 {
            symlink(&theirs, INDEX).unwrap();
        } else {
            fs::create_dir_all(format!("{INDEX}/net1")).unwrap();
            lchown(INDEX, Some(owner), Some(owner)).unwrap();
        }
        let added = call.run("ADD", &network());
        added.json();
        assert!(added.stderr.contains("no directory of ours"), "{added:?}");
        call.run("DEL", &network()).silent();
        assert_eq!(fs::read_dir(&theirs).unwrap().count(), 0);
        assert!(!Path::new(LEASES).join("10.9.0.2").exists());
        fs::remove_dir(&theirs).unwrap();
        node.sh(&format!("rm -r {INDEX}"));
    }
}

#[test]
fn a_pipe_in_a_data_directory_stops_nobody() {
    let node = Node::new();
    node.netns("c1");
    let plugin = node.bin.join("patient");
    let real = node.bin.join("host-local");
    script(&plugin, &format!("exec timeout 20 {}", real.display()));
    let call = node.plugin("patient").netns("/run/netns/c1");
    for name in ["lock", "last_reserved_ip.0", "10.9.0.2"] {
        fs::create_dir_all(LEASES).unwrap();
        node.sh(&format!("mkfifo {LEASES}/{name}"));
        for command in ["ADD", "DEL"] {
            let output = call.run(command, &network());
            assert_ne!(output.code, Some(124), "{command} waits for {name}");
        }
        fs::remove_dir_all("/var/lib/cni").unwrap();
    }
}

/// ADD of everything that leaves a file: leases and their index, a backup, a cached result.
fn leave_files(node: &Node) {
    let list = json!({"cniVersion": "1.0.0", "name": "net1", "plugins": [
        with(network(), json!({"ipMasq": true, "ipMasqBackend": "nftables"})),
        {"type": "tuning", "mtu": 1400},
    ]});
    let conf = node.dir.path().join("net.d");
    fs::create_dir(&conf).unwrap();
    fs::write(conf.join("1.conflist"), list.to_string()).unwrap();
    let netns = node.netns("c1");
    node.cnitool(&conf, &["add", "net1", &netns]).json();
}

#[test]
fn state_is_nobody_elses_to_read_or_write() {
    for mask in [0o000, 0o022, 0o077] {
        let node = Node::new();
        umask(Mode::from_bits_truncate(mask));
        leave_files(&node);
        umask(Mode::from_bits_truncate(0o022));
        let mut files = 0;
        for dir in ["/var/lib", "/run/cni"] {
            for (path, mode) in tree(dir) {
                let name = path.file_name().unwrap().to_str().unwrap();
                let is_dir = mode & 0o170_000 == 0o040_000;
                let expected = match (is_dir, name) {
                    (true, ".cnibox" | "tuning" | "results") => 0o700,
                    (true, _) if path.starts_with(INDEX) => 0o700,
                    (true, _) => 0o755 & !mask,
                    (false, "lock") => 0o750 & !mask,
                    (false, _) => 0o600,
                };
                assert_eq!(
                    mode & 0o7777,
                    expected,
                    "{} under {mask:03o}",
                    path.display()
                );
                files += usize::from(!is_dir);
            }
        }
        // Two leases, two cursors and the lock; the index and its mark; a backup; a result; the
        // locks of attachments and of what they share.
        assert_eq!(files, 11, "{:?} {:?}", tree("/var/lib"), tree("/run/cni"));
        assert!(Path::new("/run/cni/tuning").is_dir());
    }
}

#[test]
fn files_are_created_under_names_nobody_guesses() {
    let node = Node::new();
    let trace = node.dir.path().join("trace");
    let plugin = node.bin.join("traced");
    let real = node.bin.join("bridge");
    script(
        &plugin,
        &format!(
            "exec strace -f -e trace=?open,openat -o {} {}",
            trace.display(),
            real.display()
        ),
    );
    let call = node.plugin("traced").netns(&node.netns("c1"));
    let mut aside = Vec::new();
    for command in ["ADD", "DEL", "ADD"] {
        assert!(call.run(command, &network()).ok);
        let opened = fs::read_to_string(&trace).unwrap();
        for line in opened.lines().filter(|line| line.contains("O_CREAT")) {
            let name = line.split('"').nth(1).unwrap().rsplit('/').next().unwrap();
            if line.contains("O_EXCL") {
                aside.push(name.to_owned());
            } else {
                assert!(line.contains("O_NOFOLLOW"), "{line}");
                // The last one is in /run/cni, where only root can write.
                let is_known = ["lock", "complete"].contains(&name);
                assert!(is_known || name.starts_with("cnibox-shared-"), "{line}");
            }
        }
    }
    assert!(aside.len() >= 8, "{aside:?}");
    // Eight digits from the kernel's random numbers.
    let random = |name: &String| {
        let digits = name
            .strip_prefix(".cnibox-")
            .unwrap()
            .split('-')
            .next()
            .unwrap();
        assert!(
            digits.len() == 8 && u32::from_str_radix(digits, 16).is_ok(),
            "{name}"
        );
        digits.to_owned()
    };
    let mut digits: Vec<String> = aside.iter().map(random).collect();
    digits.sort();
    digits.dedup();
    assert_eq!(digits.len(), aside.len());
}

#[test]
fn the_callers_environment_ends_where_the_protocol_does() {
    let node = Node::new();
    let tools = node.dir.path().join("tools");
    fs::create_dir(&tools).unwrap();
    let dump = |name: &str| {
        let log = node.dir.path().join(name);
        format!("tr '\\0' '\\n' < /proc/$$/environ > {}", log.display())
    };
    for tool in ["iptables", "ip6tables"] {
        for verb in ["restore", "save"] {
            script(
                &tools.join(format!("{tool}-{verb}")),
                &dump(&format!("{tool}.env")),
            );
        }
    }
    let answer = r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.2/24"}]}'"#;
    script(
        &node.bin.join("theirs"),
        &format!(
            "{}\n[ $CNI_COMMAND = ADD ] && {answer}\nexit 0",
            dump("ipam.env")
        ),
    );
    let path = format!("{}:/usr/bin:/bin", tools.display());
    let call = node
        .plugin("bridge")
        .netns(&node.netns("c1"))
        .env("PATH", &path)
        .env("SECRET", "token")
        .env("XTABLES_LIBDIR", "/tmp/evil")
        .env("XTABLES_LOCKFILE", "/tmp/evil.lock")
        .env("CNI_ARGS", "IgnoreUnknown=1;X=y");
    let change = json!({"ipam": {"type": "theirs"}, "cniVersion": "1.0.0",
                        "ipMasq": true, "ipMasqBackend": "iptables"});
    // The tools that do nothing are believed.
    call.run("ADD", &with(network(), change)).json();
    let environment = |name: &str| -> Vec<String> {
        let text = fs::read_to_string(node.dir.path().join(name)).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(
        environment("iptables.env"),
        ["LC_ALL=C".to_owned(), format!("PATH={path}")]
    );
    // A delegate is called as the specification says: with everything that its caller got.
    let delegate = environment("ipam.env");
    for line in [
        "SECRET=token",
        "CNI_ARGS=IgnoreUnknown=1;X=y",
        "CNI_COMMAND=ADD",
    ] {
        assert!(
            delegate.iter().any(|found| found == line),
            "{line}: {delegate:?}"
        );
    }
}

#[test]
fn values_of_sysctls_set_nothing_else() {
    let node = Node::new();
    let call = node.plugin("bridge").netns(&node.netns("c1"));
    let result = call.run("ADD", &network()).json();
    let kernel = || {
        ["domainname", "core_pattern", "hostname"]
            .map(|name| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap())
    };
    let before = kernel();
    let tuning = node.plugin("tuning").netns("/run/netns/c1");
    for (key, value) in [
        ("net.core.somaxconn", "1+kernel.domainname=evil"),
        ("net.core.somaxconn", "1;kernel.domainname=evil"),
        ("net.core.somaxconn", "1\nkernel.domainname=evil"),
        ("net.core.somaxconn=1+kernel.domainname", "evil"),
        ("net.core.somaxconn+kernel.domainname", "evil"),
        ("net.core.somaxconn\nkernel.domainname", "evil"),
        ("net/../kernel/domainname", "evil"),
        (
            "net.ipv4.conf.IFNAME./../../../../kernel/domainname",
            "evil",
        ),
        ("kernel.core_pattern", "|/tmp/evil"),
    ] {
        let config = json!({"cniVersion": "1.1.0", "name": "net1", "sysctl": {key: value},
                            "prevResult": result});
        let (code, message, _) = tuning.run("ADD", &config).error();
        assert!(matches!(code, 5 | 7), "{key}={value}: {code} {message}");
        assert_eq!(kernel(), before, "{key}={value}");
    }
    let backlog = node.sh("ip netns exec c1 cat /proc/sys/net/core/somaxconn");
    assert_eq!(backlog.trim(), "4096");
}

/// Captures on `link` until a router advertisement has been seen there.
fn see_advertisement(node: &Node, prefix: &str, link: &str) -> Child {
    let program = format!("{prefix} timeout 60 tcpdump -n -i {link} -c 1 'icmp6[0] == 134'");
    let child = Command::new("sh")
        .args(["-c", &program])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // tcpdump is listening when the link is promiscuous.
    while !node
        .sh(&format!("{prefix} ip -d link show dev {link}"))
        .contains("promiscuity 1")
    {}
    child
}

/// CVE-2020-10749.
#[test]
fn nobody_believes_a_containers_router_advertisements() {
    let node = Node::new();
    let add = |name: &str, config: &Value| -> Call {
        let call = node.plugin("bridge").netns(&node.netns(name)).id(name);
        call.run("ADD", config).json();
        call
    };
    add("evil", &network());
    add("neighbour", &network());
    // Of IPv4 only, as the network in the report was.
    let v4 = with(
        network(),
        json!({"name": "net4", "ipam": {"type": "host-local", "subnet": "10.9.0.0/24", "rangeStart": "10.9.0.100"}}),
    );
    add("plain", &v4);
    // Somebody who does believe it, so that there is something to see.
    add("gullible", &network());
    node.sh("ip netns exec gullible sh -c 'echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra'");
    let state = |name: &str| {
        let prefix = if name.is_empty() {
            String::new()
        } else {
            format!("ip netns exec {name}")
        };
        let show = |what: &str| node.sh(&format!("{prefix} ip -6 {what}"));
        // Link-local addresses of ports settle by themselves.
        let addresses = show("addr show scope global");
        (show("route show default"), addresses)
    };
    let everybody = ["", "neighbour", "plain"];
    let before = everybody.map(state);
    // RFC 4861, section 4.2: a router for half an hour, and a prefix to make addresses from.
    let advertisement = "86000000 40080708 00000000 00000000 \
                         0304 40c0 00015180 00003840 00000000 20010db8000000000000000000000000";
    let hex: String = advertisement.split_whitespace().collect();
    let mut seen = vec![
        see_advertisement(&node, "", "br1"),
        see_advertisement(&node, "ip netns exec neighbour", "eth0"),
        see_advertisement(&node, "ip netns exec plain", "eth0"),
    ];
    let send = format!(
        "import socket,time\n\
         s=socket.socket(socket.AF_INET6,socket.SOCK_RAW,58)\n\
         s.setsockopt(41,18,255)\n\
         s.sendto(bytes.fromhex('{hex}'),('ff02::1',0,0,socket.if_nametoindex('eth0')))"
    );
    let output = run(
        Command::new("ip").args(["netns", "exec", "evil", "python3", "-c", &send]),
        "",
    );
    assert!(output.ok, "{output:?}");
    for capture in &mut seen {
        assert!(capture.wait().unwrap().success(), "it did not arrive");
    }
    let believed = |_| {
        std::thread::sleep(Duration::from_millis(20));
        node.sh("ip -n gullible -6 route show default")
            .contains("proto ra")
    };
    assert!((0..250).any(believed), "it is no advertisement");
    assert_eq!(everybody.map(state), before);
}

/// Each row of docs/security.md names tests that exist.
#[test]
fn every_row_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let section = document.split("\n## What cannot be done\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows: Vec<&str> = section
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('`'))
        .collect();
    assert!(rows.len() >= 9, "{rows:?}");
    for row in rows {
        let tests = row.split('`').filter_map(|word| word.split_once("::"));
        let tests: Vec<_> = tests.collect();
        assert!(!tests.is_empty(), "{row}");
        for (file, test) in tests {
            // A test program is one file, or a directory of them.
            let program = root.join("tests").join(file);
            let source: String = match fs::read_dir(&program) {
                Ok(files) => files
                    .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
                    .collect(),
                Err(_) => fs::read_to_string(program.with_extension("rs")).unwrap(),
            };
            assert!(
                source.contains(&format!("#[test]\nfn {test}()")),
                "{file}::{test}"
            );
        }
    }
}

/// What a terminal would obey, or what hides or reorders text.
#[track_caller]
fn assert_harmless(what: &str, output: &common::Output) {
    for text in [&output.stdout, &output.stderr] {
        let is_raw = |c: char| {
            c.is_control() && c != '\n'
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        };
        assert!(!text.contains(is_raw), "{what}: {text:?}");
        let forged = text
            .lines()
            .find(|line| line.trim_start().starts_with("FORGED"));
        assert_eq!(forged, None, "{what}: {text}");
    }
}

/// Runs, as a careless operator would, every command that is told in `text`, with programs that
/// do nothing; no name in it runs one of its own.
#[track_caller]
fn assert_quoted(node: &Node, what: &str, text: &str) {
    let mark = node.dir.path().join("ran");
    let told = text.lines().filter_map(|line| {
        let line = line.trim_start();
        ["mend: ", "$ ", "nft ", "ip"]
            .iter()
            .find_map(|start| line.strip_prefix(start).map(|rest| (*start, rest)))
    });
    for (start, command) in told {
        let command = match start {
            "nft " | "ip" => format!("{start}{command}"),
            _ => command.to_owned(),
        };
        let mut shell = Command::new("bash");
        shell
            .args([
                "-c",
                &format!("PATH={}; {command}", node.dir.path().display()),
            ])
            .current_dir(node.dir.path());
        drop(run(&mut shell, ""));
        assert!(!mark.exists(), "{what}: {command}");
    }
}

#[expect(
    clippy::too_many_lines,
    reason = "one node with hostile names, and all that is printed of it"
)]
#[test]
fn names_are_printed_as_names() {
    let node = Node::new();
    let conf = node.dir.path().join("net.d");
    fs::create_dir(&conf).unwrap();
    // What a name would run, if a command to copy let it.
    script(&node.dir.path().join("id"), "> ran");
    let list = |bridge: &str| {
        json!({"cniVersion": "1.1.0", "name": "n", "plugins": [
            {"type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": true,
             "ipMasqBackend": "nftables", "hairpinMode": true,
             "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}},
            {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}}]})
    };
    let bash = |script: &str| {
        let output = run(Command::new("bash").args(["-c", script]), "");
        assert!(output.ok, "{script}: {output:?}");
    };
    let bridge = "b\u{1b}[2J;id;";
    fs::write(conf.join("10-n.conflist"), list(bridge).to_string()).unwrap();
    fs::write(conf.join("20-\u{1b}[31m;id;\nFORGED.conf"), "{").unwrap();
    fs::write(
        conf.join("30-x.conf"),
        r#"{"name": "x\u001b\nFORGED", "type": "y"}"#,
    )
    .unwrap();
    let netns = node.netns("c1");
    let cnitool = |args: &[&str]| node.cnitool(&conf, args);
    let ifname = "a\u{1b}[31m;id;";
    let caps = r#"{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}"#;
    let own = ["--ifname", ifname, "--id", "c1", "--cap", caps];
    let of = |verb| [&[verb, "n", &netns][..], &own[..]].concat();
    let told = cnitool(&[&of("add")[..], &["--dry-run"]].concat());
    assert!(told.ok, "{told:?}");
    assert_harmless("add --dry-run", &told);
    let added = cnitool(&of("add"));
    assert!(added.ok, "{added:?}");
    assert_harmless("add", &added);
    let made = added.json()["interfaces"].to_string();
    assert!(made.contains(r"b\u001b[2J;id;"), "JSON is exact: {made}");

    // A container's root calls tables, chains and sets what it likes, and so does an alias.
    let odd = r"x\u001b[31mRED;id;\nFORGED \u202e\u009b";
    for family in ["inet", "ip"] {
        let rules = format!(
            r#"{{"nftables":[{{"add":{{"table":{{"family":"{family}","name":"{odd}"}}}}}},
            {{"add":{{"chain":{{"family":"{family}","table":"{odd}","name":"{odd}y","type":"filter","hook":"input","prio":0,"policy":"drop"}}}}}},
            {{"add":{{"rule":{{"family":"{family}","table":"{odd}","chain":"{odd}y","comment":"{odd}","expr":[{{"counter":null}},{{"drop":null}}]}}}}}}]}}"#
        );
        let file = node.dir.path().join(format!("rules-{family}"));
        fs::write(&file, rules).unwrap();
        node.sh(&format!("ip netns exec c1 nft -j -f {}", file.display()));
    }
    bash(
        "for link in $(ip -br link | grep -o '^veth[^@]*'); do \
         ip link set $link alias $'k\\e[1m\\nFORGED;id'; done",
    );
    bash(
        "ip link add up0 type veth peer name up1 && ip addr add 192.0.2.1/24 dev up0 && \
         ip link set up0 up && ip link set up1 up && ip route add default via 192.0.2.9",
    );
    let found = cnitool(&["doctor"]);
    assert!(found.stdout.contains("RED;id;"), "{found:?}");
    assert_harmless("doctor of rules", &found);
    assert_quoted(&node, "doctor of rules", &found.stdout);
    bash("nft delete table inet cni_plugins_masquerade; nft delete table ip cni_hostport");
    bash(&format!(
        "sysctl -qw net.ipv4.ip_forward=0; ip addr flush dev $'{}'",
        bridge.replace('\u{1b}', "\\e")
    ));
    fs::write("/var/lib/cni/results/\u{1b};id;\nFORGED", "{").unwrap();
    fs::create_dir_all("/var/lib/cni/networks/\u{1b}\nFORGED").unwrap();
    let dump = cnitool(&["doctor", "--json"]);
    assert_harmless("doctor --json", &dump);
    let dump: Value = serde_json::from_str(&dump.stdout).unwrap();
    let mends = dump["findings"].as_array().unwrap();
    for mend in mends {
        let mend = mend["mend"].as_str().unwrap();
        assert!(!mend.contains(char::is_control), "{mend:?}");
        assert_quoted(&node, "doctor --json", &format!("mend: {mend}"));
    }
    for args in [
        &["doctor"][..],
        &["doctor", "c1"],
        &["show", "c1"],
        &["show", "c1", "--json"],
        &["ps", "--wide"],
        &["ps", "--json"],
        &["ports"],
        &["ipam"],
        &["graph"],
        &["graph", "--format", "dot"],
        &["graph", "--format", "svg"],
        &["graph", "--json"],
        &["validate"],
        &["validate", "--json"],
        &["validate", "no\u{1b}such"],
        &["list"],
        &["list", "--json"],
        &["status", "n"],
        &["status", "x\u{1b}\u{9b}"],
        &["gc", "n", "--dry-run"],
        &["trace", "c1", "192.0.2.9"],
        &["show", "\u{1b}[31m"],
        &["nonsense\u{1b}[31m"],
        &[
            "add",
            "n",
            "/run/netns/\u{1b}\nFORGED",
            "--ifname",
            "\u{1b}",
        ],
        &of("check"),
        &[&of("check")[..], &["--verbose"]].concat(),
        &[&of("add")[..], &["--timing"]].concat(),
    ] {
        let output = cnitool(args);
        let what = args.join(" ");
        assert_harmless(&what, &output);
        assert_quoted(&node, &what, &output.stdout);
        assert!(
            !output.stdout.is_empty() || !output.stderr.is_empty(),
            "{what}"
        );
        assert!(!output.stderr.contains("panicked"), "{what}: {output:?}");
    }
    let mut restore = Command::new(common::binary());
    let missing = run(restore.args(["restore", "--dry-run"]), "");
    assert!(missing.stdout.contains("nft add rule"), "{missing:?}");
    assert_harmless("restore --dry-run", &missing);
    assert_quoted(&node, "restore --dry-run", &missing.stdout);
    let removed = cnitool(&of("del"));
    assert!(removed.ok, "{removed:?}");
    assert_harmless("del", &removed);
}

#[test]
fn a_plugins_notes_are_printed_without_what_a_terminal_obeys() {
    let node = Node::new();
    let conf = node.dir.path().join("net.d");
    fs::create_dir(&conf).unwrap();
    let list = json!({"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "loud"}]});
    fs::write(conf.join("10-n.conflist"), list.to_string()).unwrap();
    let bin = node.dir.path().join("theirs");
    fs::create_dir(&bin).unwrap();
    script(
        &bin.join("loud"),
        r#"printf 'one \033[31m\ntwo \302\233 \233\n' >&2
printf '%s' '{"code": 7, "msg": "no \u001b[2J\nFORGED", "details": "\u202e"}'
exit 1"#,
    );
    let output = node.cnitool(&conf, &["status", "n", "--path", bin.to_str().unwrap()]);
    assert!(!output.ok, "{output:?}");
    assert_harmless("status", &output);
    for line in [r"one \u{1b}[31m", r"two \u{9b} \x9b", "    | FORGED"] {
        assert!(output.stderr.contains(line), "{line}: {output:?}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let node = Node::new();
    let conf = node.dir.path().join("net.d");
    fs::create_dir(&conf).unwrap();
    for command in ["ps", "ports", "ipam", "list", "graph", "doctor", "--help"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(node.bin.join("cnitool"))
            .arg(command)
            .env("NETCONFPATH", &conf)
            .env("CNI_PATH", &node.bin)
            .stdout(writer)
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        assert_eq!(output.stderr, b"", "{command}: {output:?}");
    }
}
