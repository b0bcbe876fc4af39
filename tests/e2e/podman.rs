//! podman with its CNI backend, on the default network that it brings along and on networks
//! that it makes.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::thread;

use crate::common::run;
use crate::machine::{IMAGE, Machine, PLUGINS, Running, machine, tcp, udp};

/// podman on a machine.
struct Podman<'a>(&'a Machine);

impl<'a> Podman<'a> {
    fn new(machine: &'a Machine) -> Self {
        fs::write(
            "/etc/containers/containers.conf",
            format!(
                r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{PLUGINS}"]
"#
            ),
        )
        .unwrap();
        fs::write(
            "/etc/containers/storage.conf",
            r#"[storage]
driver = "vfs"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
"#,
        )
        .unwrap();
        fs::write(
            "/etc/containers/policy.json",
            r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
        )
        .unwrap();
        let podman = Self(machine);
        podman.call(&format!(
            "load --quiet --input {}",
            machine.image().display()
        ));
        podman
    }

    /// Runs podman, which must succeed; answers its stdout.
    #[track_caller]
    fn call(&self, args: &str) -> String {
        let output = run(Command::new("podman").args(args.split_whitespace()), "");
        assert!(output.ok, "podman {args}: {output:?}");
        output.stdout.trim().to_owned()
    }

    /// Starts a container that answers with its name.
    #[track_caller]
    fn start(&self, name: &str, args: &str) {
        let cgroup = &self.0.cgroup;
        self.call(&format!(
            "run --detach --cgroup-parent {cgroup} --name {name} --hostname {name} {args} {IMAGE}"
        ));
    }

    fn inspect(&self, name: &str, what: &str) -> String {
        self.call(&format!("inspect --format {{{{{what}}}}} {name}"))
    }

    /// What the host's `ip -brief` says inside of a container's network.
    fn ip(&self, name: &str, args: &str) -> String {
        self.within(name, &format!("ip -brief {args}"))
    }

    /// Runs one of the host's programs in a container's network, where it must succeed.
    fn within(&self, name: &str, command: &str) -> String {
        let pid = self.inspect(name, ".State.Pid");
        self.0
            .node
            .sh(&format!("nsenter --target {pid} --net {command}"))
    }

    /// A server on UDP port 53 of a container that answers with its name.
    fn serve_udp(&self, name: &str) -> Running {
        let pid = self.inspect(name, ".State.Pid");
        let mut nsenter = Command::new("nsenter");
        let server = nsenter.args(["--target", &pid, "--net", "--uts"]).args([
            "socat",
            "UDP-LISTEN:53,fork",
            "EXEC:hostname",
        ]);
        Running(server.spawn().unwrap())
    }
}

#[test]
fn published_ports_fixed_addresses_and_a_restart() {
    machine(|machine| {
        let podman = Podman::new(machine);
        podman.start(
            "web",
            "--publish 8080:80 --publish 5353:53/udp --ip 10.88.7.7 --mac-address 02:00:00:00:07:07",
        );
        for _ in 0..2 {
            let (link, address) = (podman.ip("web", "link"), podman.ip("web", "address"));
            assert!(link.contains("02:00:00:00:07:07"), "{link}");
            assert!(address.contains("10.88.7.7/16"), "{address}");
            let _server = podman.serve_udp("web");
            for host in ["127.0.0.1", "10.88.0.1"] {
                assert_eq!(tcp(&format!("{host}:8080")), "web");
                assert_eq!(udp(&format!("{host}:5353")), "web");
            }
            podman.call("restart --time 0 web");
        }
        // What podman has for a node whose rules somebody flushed.
        machine.node.sh("nft flush ruleset");
        podman.call("network reload web");
        assert_eq!(tcp("127.0.0.1:8080"), "web");
        podman.call("rm --force --time 0 web");
        machine.node.nothing_left(&["cni-podman0"]);
    });
}

#[test]
fn networks_of_the_users_own_two_on_one_container() {
    machine(|machine| {
        let podman = Podman::new(machine);
        podman.call("network create --subnet 10.80.0.0/24 --ipv6 --subnet fd00:80::/64 front");
        podman.call("network create --subnet 10.81.0.0/24 back");
        podman.start("both", "--network front,back --publish 8080:80");
        podman.start("peer", "--network front");
        assert_eq!(tcp("127.0.0.1:8080"), "both");
        let addresses = podman.ip("both", "address");
        for address in ["10.80.0.2/24", "fd00:80::2/64", "10.81.0.2/24"] {
            assert!(addresses.contains(address), "{addresses}");
        }
        for address in ["10.80.0.2", "fd00:80::2"] {
            podman.within("peer", &format!("ping -n -c 1 -W 1 {address}"));
        }
        // One of them taken away and given back while the container runs.
        podman.call("network disconnect back both");
        let addresses = podman.ip("both", "address");
        assert!(!addresses.contains("10.81."), "{addresses}");
        podman.call("network connect back both");
        let addresses = podman.ip("both", "address");
        assert!(addresses.contains("10.81.0.3/24"), "{addresses}");
        assert_eq!(tcp("127.0.0.1:8080"), "both");
        podman.call("rm --force --time 0 both peer");
        podman.call("network rm front back");
        machine.node.nothing_left(&[]);
    });
}

#[test]
fn twenty_containers_at_once() {
    machine(|machine| {
        let podman = Podman::new(machine);
        let names: Vec<String> = (10..30).map(|number| format!("c{number}")).collect();
        thread::scope(|scope| {
            for name in &names {
                let podman = &podman;
                scope.spawn(move || {
                    podman.start(
                        name,
                        &format!("--publish 80{}:80", name.trim_start_matches('c')),
                    );
                });
            }
        });
        let addresses: BTreeSet<String> = names
            .iter()
            .map(|name| podman.inspect(name, ".NetworkSettings.IPAddress"))
            .collect();
        assert_eq!(addresses.len(), names.len(), "{addresses:?}");
        for name in &names {
            let port = name.trim_start_matches('c');
            assert_eq!(&tcp(&format!("127.0.0.1:80{port}")), name);
        }
        podman.call("rm --force --time 0 --all");
        machine.node.nothing_left(&["cni-podman0"]);
    });
}
