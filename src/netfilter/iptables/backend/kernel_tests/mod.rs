//! Both variants of the real tools, on a node of each test's own.
#![expect(
    clippy::disallowed_methods,
    reason = "tests make namespaces and ask the tools themselves"
)]

mod masquerade;
mod native;
mod port_maps;
mod reference;
mod together;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use super::*;
use crate::netfilter::known::Others;
use crate::netfilter::model::{Mapping, Mark, Protocol};
use crate::netfilter::test_node;
use crate::netfilter::test_node::{masquerade, nets};

const SBIN: &str = "/usr/sbin";

/// A network stack of its own, as long as the calling thread lives, on which the plain
/// names lead to one variant.
struct Node {
    variant: &'static str,
    bin: tempfile::TempDir,
    iptables: Iptables,
}

impl Node {
    fn new(variant: &'static str) -> Self {
        test_node::enter();
        let bin = tempfile::tempdir().unwrap();
        for command in ["iptables", "ip6tables"] {
            for suffix in ["", "-save", "-restore"] {
                let tool = format!("{SBIN}/{command}-{variant}{suffix}");
                assert!(std::path::Path::new(&tool).exists(), "{tool} is needed");
                symlink(tool, bin.path().join(format!("{command}{suffix}"))).unwrap();
            }
        }
        let iptables = Iptables::new(bin.path().into());
        assert!(iptables.is_usable());
        let made = Self {
            variant,
            bin,
            iptables,
        };
        made.sh("ip link set lo up");
        made
    }

    /// Runs a shell command that must succeed, with this node's tools in front.
    fn sh(&self, command: &str) -> String {
        let output = Command::new("sh")
            .args(["-c", command])
            .env("PATH", self.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The backend, in the nft variant with tools that do nothing but fail: nobody runs them.
    fn without_tools(&self) -> Iptables {
        if self.variant == "legacy" {
            return self.iptables.clone();
        }
        let dir = self.bin.path().join("none");
        if !dir.exists() {
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("xtables-nft"), "#!/bin/sh\nexit 1\n").unwrap();
            let executable = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(dir.join("xtables-nft"), executable).unwrap();
            for command in ["iptables", "ip6tables"] {
                for suffix in ["-save", "-restore"] {
                    symlink("xtables-nft", dir.join(format!("{command}{suffix}"))).unwrap();
                }
            }
        }
        Iptables::new(dir.into())
    }

    fn path(&self) -> String {
        format!(
            "{}:/usr/sbin:/usr/bin:/sbin:/bin",
            self.bin.path().display()
        )
    }

    /// The lines of both families' tables that stand for something: chains and rules,
    /// without counters.
    fn saved(&self) -> Vec<String> {
        self.saved_of("nat")
    }

    /// As [`Node::saved`], of this table.
    fn saved_of(&self, table: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for command in ["iptables", "ip6tables"] {
            let text = self.sh(&format!("{command}-save -t {table} 2>/dev/null"));
            lines.extend(text.lines().filter_map(|line| {
                let line = line.split(" [").next().unwrap();
                let counts = line.starts_with([':', '-']);
                counts.then(|| format!("{command} {line}"))
            }));
        }
        lines
    }

    /// The saved lines that name a container's chain.
    fn private(&self) -> Vec<String> {
        let is_private = |line: &String| {
            line.split([' ', ':'])
                .any(|word| word.starts_with("CNI-") && word.len() == 28)
        };
        self.saved().into_iter().filter(is_private).collect()
    }
}

/// Runs `test` on a node of each variant.
fn on_both_variants(test: fn(&Node)) {
    for variant in ["nft", "legacy"] {
        let run = std::thread::spawn(move || test(&Node::new(variant)));
        if let Err(panic) = run.join() {
            eprintln!("on {variant}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn attachment(id: &str, ifname: &str) -> Attachment {
    Attachment {
        container_id: id.into(),
        ifname: ifname.into(),
    }
}

fn owner(id: &str) -> Owner {
    test_node::owner("net1", id, "eth0")
}

fn dual() -> Masquerade {
    masquerade(&["10.9.0.2/24", "fd00:9::2/64"])
}

fn port_maps(container: &[&str], ports: &[u16]) -> PortMaps {
    let mapping = |port: &u16| Mapping {
        protocol: Protocol::Tcp,
        host_ip: None,
        host_port: *port,
        container_port: 80,
    };
    test_node::port_maps(container, ports.iter().map(mapping).collect())
}

fn dual_maps(ports: &[u16]) -> PortMaps {
    port_maps(&["10.9.0.2/24", "fd00:9::2/64"], ports)
}
