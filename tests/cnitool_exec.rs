//! `cnitool exec`: a command attached to a network as long as it runs.
#![allow(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test starts processes, and fails by panicking"
)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{Node, Output};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// A node with network `n`: a bridge that is the gateway, and port mappings.
struct Bench {
    node: Node,
    conf: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let node = Node::new();
        let conf = node.dir.path().join("net.d");
        fs::create_dir(&conf).unwrap();
        let list = json!({
            "cniVersion": "1.1.0", "name": "n",
            "plugins": [
                {
                    "type": "bridge", "bridge": "br0", "isDefaultGateway": true,
                    "ipMasq": true, "ipMasqBackend": "nftables",
                    "capabilities": {"ips": true, "mac": true},
                    "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"},
                },
                {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}},
            ],
        });
        fs::write(conf.join("n.conflist"), list.to_string()).unwrap();
        Self { node, conf }
    }

    fn exec(&self, args: &[&str]) -> Output {
        let args: Vec<&str> = ["exec", "n"].iter().chain(args).copied().collect();
        self.node.cnitool(&self.conf, &args)
    }

    /// Starts `sh -c SCRIPT` under `cnitool exec`, and waits for its first line.
    fn start(&self, args: &[&str], script: &str) -> (Child, String) {
        let mut child = Command::new(self.node.bin.join("cnitool"))
            .args(["exec", "n"])
            .args(args)
            .args(["--", "sh", "-c", script])
            .env("CNI_PATH", &self.node.bin)
            .env("NETCONFPATH", &self.conf)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        (child, line.trim().to_owned())
    }

    /// Nothing of any attachment is on the node: the bridge is the network's.
    #[track_caller]
    fn assert_nothing_left(&self) {
        assert_eq!(self.node.links(), ["br0"]);
        assert_eq!(names(Path::new("/var/lib/cni/results")), [] as [String; 0]);
        let leases = names(Path::new("/var/lib/cni/networks/n"));
        assert!(
            !leases.iter().any(|name| name.parse::<IpAddr>().is_ok()),
            "{leases:?}"
        );
        let rules = self.node.sh("nft list ruleset");
        assert!(!rules.contains("cnitool-exec"), "{rules}");
        assert_eq!(names(Path::new("/run/netns")), [] as [String; 0]);
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn the_command_is_attached_as_wished() {
    let bench = Bench::new();
    let ping = bench.exec(&["--", "ping", "-n", "-c", "1", "-W", "1", "10.9.0.1"]);
    assert!(
        ping.ok && ping.stdout.contains(" 0% packet loss"),
        "{ping:?}"
    );
    bench.assert_nothing_left();

    let wishes = [
        "--ip",
        "10.9.0.77",
        "--mac",
        "02:00:00:00:00:77",
        "--ifname",
        "net5",
    ];
    let args = [&wishes[..], &["--", "ip", "-br", "address"]].concat();
    let shown = bench.exec(&args);
    assert!(shown.ok, "{shown:?}");
    let line = |name: &str| {
        let lines: Vec<&str> = shown
            .stdout
            .lines()
            .filter(|l| l.starts_with(name))
            .collect();
        assert_eq!(lines.len(), 1, "{shown:?}");
        lines[0].to_owned()
    };
    assert!(line("net5@").contains("10.9.0.77/24"), "{shown:?}");
    assert!(line("lo ").contains("127.0.0.1/8"), "{shown:?}");
    let with_mac = bench.exec(&[
        "--mac",
        "02:00:00:00:00:78",
        "--",
        "ip",
        "link",
        "show",
        "eth0",
    ]);
    assert!(
        with_mac.stdout.contains("02:00:00:00:00:78"),
        "{with_mac:?}"
    );
    bench.assert_nothing_left();
}

#[test]
fn a_port_of_the_host_leads_to_the_command() {
    let bench = Bench::new();
    let serve = "import socket
s = socket.create_server(('', 80))
print('ready', flush=True)
s.accept()[0].sendall(b'hello')";
    let script = format!("exec python3 -c \"{serve}\"");
    let (mut child, line) = bench.start(&["--ip", "10.9.0.5", "--port", "8080:80/tcp"], &script);
    assert_eq!(line, "ready");
    bench.node.sh("ip address add 192.0.2.1/32 dev lo");
    let mut text = String::new();
    let mut stream = TcpStream::connect("192.0.2.1:8080").unwrap();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    bench.assert_nothing_left();
}

#[test]
fn the_exit_status_is_the_commands() {
    let bench = Bench::new();
    for (script, status) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -9 $$", 137),
        ("kill -15 $$", 143),
    ] {
        let done = bench.exec(&["--", "sh", "-c", script]);
        assert_eq!(done.code, Some(status), "{script}: {done:?}");
        bench.assert_nothing_left();
    }
    let absent = bench.exec(&["--", "/no/such/command"]);
    assert_eq!(absent.code, Some(127), "{absent:?}");
    assert!(absent.stderr.contains("/no/such/command"), "{absent:?}");
    let no_program = bench.exec(&["--", bench.conf.to_str().unwrap()]);
    assert_eq!(no_program.code, Some(126), "{no_program:?}");
    bench.assert_nothing_left();
    // Our own failures: no command, an option that is none, a network that is none.
    for args in [
        &["exec", "n"] as &[&str],
        &["exec"],
        &["exec", "n", "--x", "--", "true"],
        &["--verbose", "exec", "n", "--port", "x", "--", "true"],
        &["exec", "m", "--", "true"],
    ] {
        let refused = bench.node.cnitool(&bench.conf, args);
        assert_eq!(refused.code, Some(125), "{args:?}: {refused:?}");
    }
    let other = bench.node.cnitool(&bench.conf, &["add", "exec"]);
    assert_eq!(other.code, Some(1), "{other:?}");
    assert!(bench.node.cnitool(&bench.conf, &["exec", "--help"]).ok);
}

#[test]
fn the_command_sees_its_own_devices_and_name_servers() {
    let bench = Bench::new();
    let list = json!({
        "cniVersion": "1.1.0", "name": "n",
        "plugins": [{
            "type": "bridge", "bridge": "br0",
            "dns": {"nameservers": ["10.9.0.53"], "search": ["svc.test"], "options": ["ndots:5"]},
            "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"},
        }],
    });
    let devices = bench.exec(&["--", "ls", "/sys/class/net"]);
    assert_eq!(devices.stdout, "eth0\nlo\n", "{devices:?}");
    let host = fs::read_to_string("/etc/resolv.conf").unwrap();
    // Without DNS in the result the host's serves.
    let seen = bench.exec(&["--", "cat", "/etc/resolv.conf"]);
    assert_eq!(seen.stdout, host);
    fs::write(bench.conf.join("n.conflist"), list.to_string()).unwrap();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let seen = bench.exec(&["--", "cat", "/etc/resolv.conf"]);
    assert_eq!(
        seen.stdout,
        "nameserver 10.9.0.53\nsearch svc.test\noptions ndots:5\n"
    );
    // What is mounted below /sys stays there, and the host has lost nothing.
    let below = |text: &str| -> Vec<String> {
        let places = text.lines().filter_map(|line| line.split(' ').nth(4));
        let mut places: Vec<_> = places.filter(|at| at.starts_with("/sys/")).collect();
        places.sort_unstable();
        places.dedup();
        places.into_iter().map(str::to_owned).collect()
    };
    let inside = bench.exec(&["--", "cat", "/proc/self/mountinfo"]);
    assert_eq!(below(&inside.stdout), below(&before));
    assert_eq!(mounts(), before);
    assert_eq!(fs::read_to_string("/etc/resolv.conf").unwrap(), host);
    bench.assert_nothing_left();
}

#[test]
fn signals_reach_the_command_and_del_follows() {
    let bench = Bench::new();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        // One that takes them for an order to finish, and one that does nothing about them.
        let name = &signal.as_str()[3..];
        let trap = format!("trap 'exit 42' {name}; echo ready; while :; do sleep 0.05; done");
        for (script, status) in [
            (trap.as_str(), 42),
            ("echo ready; exec sleep 60", 128 + signal as i32),
        ] {
            let (mut child, line) = bench.start(&[], script);
            assert_eq!(line, "ready");
            kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
            assert_eq!(
                child.wait().unwrap().code(),
                Some(status),
                "{signal}: {script}"
            );
            bench.assert_nothing_left();
        }
    }
}

#[test]
fn a_signal_during_add_ends_in_del() {
    let bench = Bench::new();
    // The plugin that comes last waits until it is told.
    let slow = bench.node.bin.join("slow");
    let fifo = bench.node.dir.path().join("fifo");
    bench.node.sh(&format!("mkfifo {}", fifo.display()));
    fs::write(
        &slow,
        format!(
            "#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\n\
             python3 -c 'import json,sys; json.dump(json.load(sys.stdin)[\"prevResult\"], sys.stdout)'\n\
             echo waits > {fifo}; read line < {fifo}\n",
            fifo = fifo.display()
        ),
    )
    .unwrap();
    bench.node.sh(&format!("chmod +x {}", slow.display()));
    let file = bench.conf.join("n.conflist");
    let mut list: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    list["plugins"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "slow"}));
    fs::write(&file, list.to_string()).unwrap();

    let mut child = Command::new(bench.node.bin.join("cnitool"))
        .args(["exec", "n", "--", "sh", "-c", "touch ran"])
        .current_dir(bench.node.dir.path())
        .env("CNI_PATH", &bench.node.bin)
        .env("NETCONFPATH", &bench.conf)
        .spawn()
        .unwrap();
    assert_eq!(fs::read_to_string(&fifo).unwrap(), "waits\n");
    kill(
        Pid::from_raw(i32::try_from(child.id()).unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    fs::write(&fifo, "go on\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(!bench.node.dir.path().join("ran").exists());
    bench.assert_nothing_left();
}

#[test]
fn what_cannot_be_is_said_and_leaves_nothing() {
    let bench = Bench::new();
    // Make bridge and directories.
    bench.exec(&["--", "true"]).silent();
    let gateway = bench.exec(&["--ip", "10.9.0.1", "--", "true"]);
    assert_eq!(gateway.code, Some(125), "{gateway:?}");
    assert!(gateway.stderr.contains("10.9.0.1"), "{gateway:?}");
    bench.assert_nothing_left();

    let list = json!({
        "cniVersion": "1.1.0", "name": "plain",
        "plugins": [{"type": "bridge", "bridge": "br0"}],
    });
    fs::write(bench.conf.join("plain.conflist"), list.to_string()).unwrap();
    for (option, value, capability) in [
        ("--ip", "10.9.0.7", "\"ips\""),
        ("--mac", "02:00:00:00:00:01", "\"mac\""),
        ("--port", "80:80", "\"portMappings\""),
    ] {
        let unheard = bench
            .node
            .cnitool(&bench.conf, &["exec", "plain", option, value, "--", "true"]);
        assert_eq!(unheard.code, Some(125), "{unheard:?}");
        for part in [option, capability, "network \"plain\"", "plain.conflist"] {
            assert!(unheard.stderr.contains(part), "{part}: {unheard:?}");
        }
    }
    bench.assert_nothing_left();
}

#[test]
fn what_a_killed_one_leaves_is_for_gc() {
    let bench = Bench::new();
    let (mut child, pid) = bench.start(&[], "echo $$; exec sleep 60");
    child.kill().unwrap();
    child.wait().unwrap();
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
    let collected = bench.node.cnitool(&bench.conf, &["gc", "n"]);
    assert!(collected.ok, "{collected:?}");
    bench.assert_nothing_left();
}
