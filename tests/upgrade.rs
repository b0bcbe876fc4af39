//! A node is upgraded in place, and back, while containers come and go: the plugins in the
//! directory are cnibox's and the reference's by turns, and no operation fails.
//!
//! `cargo nextest run --test upgrade --no-capture` shows how many there were.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test that cannot do its work says so by panicking; doors are for the product"
)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::{Node, Output, REFERENCE, binary, run};
use serde_json::json;

/// How many attach and detach containers meanwhile.
const WORKERS: usize = 4;

/// How often the plugins are replaced and how many operations there are, at least; and how long
/// a set of plugins stays.
const SWAPS: usize = 60;
const OPERATIONS: usize = 60;
const STAY: Duration = Duration::from_millis(60);

/// The chain of the network, as podman has it, for both families.
const CHAIN: [&str; 5] = ["bridge", "host-local", "portmap", "firewall", "tuning"];

/// A node with a directory for each implementation's plugins, every name a file of its own.
struct Upgrade {
    node: Node,
    ours: PathBuf,
    theirs: PathBuf,
    /// The directory that the runtime knows.
    plugins: PathBuf,
}

impl Upgrade {
    fn new() -> Self {
        let node = Node::new();
        let path = |name: &str| node.dir.path().join(name);
        let (ours, theirs, plugins) = (path("ours"), path("theirs"), path("plugins"));
        let mut install = Command::new(binary());
        let installed = run(install.args(["install", "--hardlink"]).arg(&ours), "");
        assert!(installed.ok, "{installed:?}");
        fs::create_dir(&theirs).unwrap();
        for name in CHAIN {
            fs::copy(Path::new(REFERENCE).join(name), theirs.join(name)).unwrap();
        }
        let network = json!({
            "cniVersion": "1.0.0", "name": "net", "plugins": [
                {
                    "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": "10.83.0.0/24"}], [{"subnet": "fd00:83::/64"}]],
                        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
                {"type": "firewall"},
                {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}, "mtu": 1400},
            ],
        });
        fs::create_dir(path("conf")).unwrap();
        fs::write(path("conf/10-net.conflist"), network.to_string()).unwrap();
        Self {
            node,
            ours,
            theirs,
            plugins,
        }
    }

    /// Which plugins there are after how many replacements.
    fn set(&self, swap: usize) -> &Path {
        if swap.is_multiple_of(2) {
            &self.theirs
        } else {
            &self.ours
        }
    }

    fn cnitool(&self, command: &str, worker: usize) -> Output {
        let ports = json!({"portMappings": [
            {"hostPort": 8000 + worker, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8000 + worker, "containerPort": 80, "protocol": "udp"},
        ]});
        run(
            Command::new(self.node.bin.join("cnitool"))
                .args([command, "net", &format!("/run/netns/w{worker}")])
                .env("CNI_PATH", &self.plugins)
                .env("NETCONFPATH", self.node.dir.path().join("conf"))
                .env("CAP_ARGS", ports.to_string()),
            "",
        )
    }

    /// Lets the workers work while `replace` puts one set after the other in place; checks
    /// that nothing failed and that nothing is left.
    fn run(&self, how: &str, replace: impl Fn(&Path)) {
        replace(self.set(0));
        // The reference fails now and then where two of it make the first chains at once.
        self.node.netns("w0");
        assert!(self.cnitool("add", 0).ok && self.cnitool("del", 0).ok);
        self.node.sh("ip netns del w0");
        let (over, operations) = (AtomicBool::new(false), AtomicUsize::new(0));
        let work = |worker: usize| {
            self.node.netns(&format!("w{worker}"));
            let mut failures = Vec::new();
            while !over.load(Ordering::Relaxed) {
                for command in ["add", "del"] {
                    let output = self.cnitool(command, worker);
                    operations.fetch_add(1, Ordering::Relaxed);
                    if !output.ok {
                        failures.push(output);
                    }
                }
            }
            failures
        };
        let mut swaps = 0;
        let failures = thread::scope(|scope| {
            let work = &work;
            let workers: Vec<_> = (0..WORKERS)
                .map(|worker| scope.spawn(move || work(worker)))
                .collect();
            // It ends with ours in place.
            while swaps < SWAPS
                || operations.load(Ordering::Relaxed) < OPERATIONS
                || swaps.is_multiple_of(2)
            {
                thread::sleep(STAY);
                swaps += 1;
                replace(self.set(swaps));
            }
            over.store(true, Ordering::Relaxed);
            let failures = workers.into_iter().map(|worker| worker.join().unwrap());
            failures.flatten().collect::<Vec<_>>()
        });
        eprintln!(
            "plugins replaced {how} {swaps} times: {} operations, {} failures",
            operations.load(Ordering::Relaxed),
            failures.len()
        );
        assert!(failures.is_empty(), "{failures:?}");
        // The reference knows nothing of the index that we have beside the leases: our next
        // operation clears it.
        assert!(self.cnitool("add", 0).ok && self.cnitool("del", 0).ok);
        // Nor of who needs route_localnet: GC, which this network's version does not have, finds
        // what a DEL of its left of that.
        let gc = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "portmap", "cni.dev/valid-attachments": [],
        });
        self.node.plugin("portmap").run("GC", &gc).silent();
        for worker in 0..WORKERS {
            self.node.sh(&format!("ip netns del w{worker}"));
        }
        self.node.nothing_left(&["cni0"]);
    }
}

#[test]
fn as_a_directory() {
    let upgrade = Upgrade::new();
    let new = upgrade.node.dir.path().join("new");
    upgrade.run("as a directory", |set| {
        symlink(set, &new).unwrap();
        fs::rename(&new, &upgrade.plugins).unwrap();
    });
}

#[test]
fn file_by_file() {
    let upgrade = Upgrade::new();
    fs::create_dir(&upgrade.plugins).unwrap();
    let new = upgrade.node.dir.path().join("new");
    upgrade.run("file by file", |set| {
        for name in CHAIN {
            fs::hard_link(set.join(name), &new).unwrap();
            fs::rename(&new, upgrade.plugins.join(name)).unwrap();
        }
    });
}
