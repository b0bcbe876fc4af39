//! Both variants of the real tools, on a node of each test's own.
#![expect(
    clippy::disallowed_methods,
    reason = "tests make namespaces and ask the tools themselves"
)]

use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use super::*;
use crate::cni::error::ErrorObject;
use crate::netfilter::{Mapping, Mark, Protocol};

const REFERENCE: &str = "/usr/lib/cni";
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
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .expect("these tests make network namespaces and need root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        // Of its own: the lock of the legacy tools.
        for dir in ["/run", "/var/lib"] {
            mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        }
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
        let node = Self {
            variant,
            bin,
            iptables,
        };
        node.sh("ip link set lo up");
        node
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

    fn path(&self) -> String {
        format!(
            "{}:/usr/sbin:/usr/bin:/sbin:/bin",
            self.bin.path().display()
        )
    }

    /// The lines of both families' tables that stand for something: chains and rules,
    /// without counters.
    fn saved(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for command in ["iptables", "ip6tables"] {
            let text = self.sh(&format!("{command}-save -t nat 2>/dev/null"));
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
    Owner {
        network: "net1".into(),
        attachment: attachment(id, "eth0"),
    }
}

fn nets(addresses: &[&str]) -> Vec<IpNet> {
    addresses
        .iter()
        .map(|address| address.parse().unwrap())
        .collect()
}

fn masquerade(addresses: &[&str]) -> Masquerade {
    Masquerade {
        addresses: nets(addresses),
    }
}

fn dual() -> Masquerade {
    masquerade(&["10.9.0.2/24", "fd00:9::2/64"])
}

fn port_maps(container: &[&str], ports: &[u16]) -> PortMaps {
    PortMaps {
        container: nets(container),
        mappings: ports
            .iter()
            .map(|port| Mapping {
                protocol: Protocol::Tcp,
                host_ip: None,
                host_port: *port,
                container_port: 80,
            })
            .collect(),
        snat: true,
        masquerade_all: false,
        mark: Mark::Bit(13),
        conditions_v4: vec![],
        conditions_v6: vec![],
    }
}

fn dual_maps(ports: &[u16]) -> PortMaps {
    port_maps(&["10.9.0.2/24", "fd00:9::2/64"], ports)
}

#[test]
fn masquerade_comes_and_goes_without_a_trace() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        backend.ensure_masquerade(&owner("first"), &dual()).unwrap();
        backend
            .remove_masquerade(&owner("first"), &dual().addresses)
            .unwrap();
        let before = node.saved();
        for known in [dual().addresses, vec![]] {
            for _ in 0..2 {
                backend.ensure_masquerade(&owner("c1"), &dual()).unwrap();
                backend.check_masquerade(&owner("c1"), &dual()).unwrap();
                assert_eq!(node.saved().len(), before.len() + 8, "{:#?}", node.saved());
            }
            for _ in 0..2 {
                backend.remove_masquerade(&owner("c1"), &known).unwrap();
                assert_eq!(node.saved(), before);
            }
        }
    });
}

#[test]
fn port_maps_come_and_go_without_a_trace() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let maps = dual_maps(&[8080, 8443]);
        backend.ensure_port_maps(&owner("first"), &maps).unwrap();
        backend.remove_port_maps(&owner("first")).unwrap();
        let before = node.saved();
        // The shared base: three chains, two hooks, and what marks and masquerades.
        assert_eq!(
            before.iter().filter(|line| line.contains("CNI-")).count(),
            16
        );
        let mut made = None;
        for _ in 0..2 {
            backend.ensure_port_maps(&owner("c1"), &maps).unwrap();
            backend.check_port_maps(&owner("c1"), &maps).unwrap();
            let now = node.saved();
            assert_eq!(*made.get_or_insert(now.clone()), now);
        }
        backend
            .ensure_port_maps(&owner("c1"), &dual_maps(&[8081]))
            .unwrap();
        assert!(!node.saved().iter().any(|line| line.contains("8443")));
        for _ in 0..2 {
            backend.remove_port_maps(&owner("c1")).unwrap();
            assert_eq!(node.saved(), before);
        }
    });
}

#[test]
fn one_of_two_containers_goes() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let other = masquerade(&["10.9.0.3/24"]);
        let other_maps = port_maps(&["10.9.0.3/24"], &[8080]);
        backend.ensure_masquerade(&owner("old"), &other).unwrap();
        backend
            .ensure_port_maps(&owner("old"), &other_maps)
            .unwrap();
        let before = node.private();
        backend
            .ensure_masquerade(&owner("new"), &masquerade(&["10.9.0.2/24"]))
            .unwrap();
        let maps = port_maps(&["10.9.0.2/24"], &[8080]);
        backend.ensure_port_maps(&owner("new"), &maps).unwrap();
        let entries: Vec<String> = node
            .saved()
            .into_iter()
            .filter(|line| line.contains("-A CNI-HOSTPORT-DNAT"))
            .collect();
        assert!(entries[0].contains("id: \\\"new\\\""), "{entries:#?}");
        assert!(entries[1].contains("id: \\\"old\\\""), "{entries:#?}");
        backend.remove_port_maps(&owner("new")).unwrap();
        backend.remove_masquerade(&owner("new"), &[]).unwrap();
        assert_eq!(node.private(), before);
        backend.check_masquerade(&owner("old"), &other).unwrap();
        backend.check_port_maps(&owner("old"), &other_maps).unwrap();
    });
}

/// Their chain has one name: the interface is not part of it (register 22).
#[test]
fn two_attachments_of_a_container_to_one_network() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let (eth0, eth1) = (
            owner("c1"),
            Owner {
                attachment: attachment("c1", "eth1"),
                ..owner("c1")
            },
        );
        let (first, second) = (dual(), masquerade(&["10.8.0.2/16", "fd00:9::3/64"]));
        backend.ensure_masquerade(&eth0, &first).unwrap();
        let before = node.private();
        backend.ensure_masquerade(&eth1, &second).unwrap();
        backend.check_masquerade(&eth0, &first).unwrap();
        backend.check_masquerade(&eth1, &second).unwrap();
        let chain: Vec<String> = node
            .private()
            .into_iter()
            .filter(|line| line.starts_with("iptables -A CNI-"))
            .collect();
        assert!(
            chain.len() == 3 && chain[2].ends_with("MASQUERADE"),
            "{chain:#?}"
        );
        backend.remove_masquerade(&eth1, &second.addresses).unwrap();
        assert_eq!(node.private(), before);
        backend.remove_masquerade(&eth0, &first.addresses).unwrap();
        assert_eq!(node.private(), [""; 0]);
    });
}

#[test]
fn only_families_with_addresses_are_touched() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        backend
            .ensure_masquerade(&owner("c1"), &masquerade(&["10.9.0.2/24"]))
            .unwrap();
        backend
            .ensure_port_maps(&owner("c1"), &port_maps(&["10.9.0.2/24"], &[80]))
            .unwrap();
        backend.remove_port_maps(&owner("c1")).unwrap();
        backend.remove_masquerade(&owner("c1"), &[]).unwrap();
        backend.collect_masquerade("net1", &[]).unwrap();
        assert!(!Family::V6.has_legacy_table());
        assert_eq!(Family::V4.has_legacy_table(), node.variant == "legacy");
        let tables = node.sh("nft list tables");
        assert_eq!(
            tables,
            ["", "table ip nat\n"][usize::from(node.variant == "nft")]
        );
    });
}

#[test]
fn many_at_once_on_a_fresh_node() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let ids: Vec<u16> = (0..16).collect();
        let addresses = |n: u16| {
            [
                format!("10.9.0.{}/24", n + 2),
                format!("fd00:9::{}/64", n + 2),
            ]
        };
        at_once(&ids, |n| {
            let addresses = addresses(*n);
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            let owner = owner(&format!("c{n}"));
            backend.ensure_masquerade(&owner, &masquerade(&addresses))?;
            backend.ensure_port_maps(&owner, &port_maps(&addresses, &[8000 + n]))
        })
        .unwrap();
        let saved = node.saved();
        let count = |text: &str| saved.iter().filter(|line| line.contains(text)).count();
        assert_eq!(count("--dst-type LOCAL"), 4, "{saved:#?}");
        assert_eq!(count("--set-xmark"), 2, "{saved:#?}");
        assert_eq!(count("requiring masquerade"), 2, "{saved:#?}");
        assert_eq!(count("-j CNI-DN-"), 32, "{saved:#?}");
        assert_eq!(count("-A POSTROUTING -s"), 32, "{saved:#?}");
        // And each is removed by several.
        at_once(&[ids.as_slice(), &ids, &ids].concat(), |n| {
            let owner = owner(&format!("c{n}"));
            backend.remove_port_maps(&owner)?;
            let addresses = addresses(*n);
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            backend.remove_masquerade(&owner, &nets(&addresses))
        })
        .unwrap();
        assert_eq!(node.private(), [""; 0]);
    });
}

#[test]
fn what_others_flushed_is_repaired() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let maps = dual_maps(&[8080]);
        backend.ensure_port_maps(&owner("c1"), &maps).unwrap();
        let before = node.saved();
        backend.remove_port_maps(&owner("c1")).unwrap();
        for command in [
            "iptables -t nat -F PREROUTING",
            "iptables -t nat -F OUTPUT",
            "iptables -t nat -F POSTROUTING",
            "iptables -t nat -F CNI-HOSTPORT-SETMARK",
            "iptables -t nat -F CNI-HOSTPORT-MASQ",
            "iptables -t nat -F && iptables -t nat -X",
        ] {
            node.sh(command);
            backend.ensure_port_maps(&owner("c1"), &maps).unwrap();
            assert_eq!(node.saved(), before, "{command}");
            backend.remove_port_maps(&owner("c1")).unwrap();
        }
    });
}

#[test]
fn check_names_the_missing_rule() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let ports: Vec<u16> = (8000..8040).collect();
        let maps = port_maps(&["10.9.0.2/24"], &ports);
        let net = masquerade(&["10.9.0.2/24"]);
        for (command, words) in [
            (
                "iptables -t nat -D CNI-DN-$D -p tcp --dport 8033 -j DNAT --to-destination 10.9.0.2:80",
                ["8033", "10.9.0.2:80"],
            ),
            (
                "iptables -t nat -D PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
                ["PREROUTING", "LOCAL"],
            ),
            ("iptables -t nat -F CNI-HOSTPORT-DNAT", ["net1", "c1"]),
            (
                "iptables -t nat -F CNI-HOSTPORT-SETMARK",
                ["CNI-HOSTPORT-SETMARK", "0x2000"],
            ),
        ] {
            backend.ensure_port_maps(&owner("c1"), &maps).unwrap();
            backend.check_port_maps(&owner("c1"), &maps).unwrap();
            let hash = crate::hash::sha512_hex("net1c1", 21);
            node.sh(&command.replace("$D", &hash));
            let error = backend.check_port_maps(&owner("c1"), &maps).unwrap_err();
            for word in words {
                assert!(error.to_string().contains(word), "{command}: {error:#}");
            }
        }
        let error = backend.check_masquerade(&owner("c1"), &net).unwrap_err();
        assert!(error.to_string().contains("10.9.0.0/24 "), "{error:#}");
        backend.ensure_masquerade(&owner("c1"), &net).unwrap();
        node.sh("iptables -t nat -F POSTROUTING");
        let error = backend.check_masquerade(&owner("c1"), &net).unwrap_err();
        assert!(
            error.to_string().contains("POSTROUTING -s 10.9.0.2/32"),
            "{error:#}"
        );
    });
}

#[test]
fn one_mark_for_all() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let maps = port_maps(&["10.9.0.2/24"], &[8080]);
        backend.ensure_port_maps(&owner("c1"), &maps).unwrap();
        let other = PortMaps {
            mark: Mark::Bit(14),
            ..port_maps(&["10.9.0.3/24"], &[8081])
        };
        backend.ensure_port_maps(&owner("c2"), &other).unwrap();
        let marks: Vec<String> = node
            .saved()
            .into_iter()
            .filter(|line| line.contains("0x"))
            .collect();
        assert!(
            marks.len() == 2 && marks.iter().all(|l| l.contains("0x4000")),
            "{marks:#?}"
        );
        backend.check_port_maps(&owner("c1"), &maps).unwrap();
        backend.check_port_maps(&owner("c2"), &other).unwrap();
    });
}

#[test]
fn somebody_elses_chain_marks() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let maps = PortMaps {
            mark: Mark::Chain("KUBE-MARK-MASQ".into()),
            ..port_maps(&["10.9.0.2/24"], &[8080])
        };
        let error = backend.ensure_port_maps(&owner("c1"), &maps).unwrap_err();
        let error = ErrorObject::from_error(&error);
        assert!(
            error.code == 7 && error.msg.contains("externalSetMarkChain"),
            "{error:?}"
        );
        assert!(!node.saved().iter().any(|line| line.contains("CNI-")));
        node.sh("iptables -t nat -N KUBE-MARK-MASQ");
        backend.ensure_port_maps(&owner("c1"), &maps).unwrap();
        backend.check_port_maps(&owner("c1"), &maps).unwrap();
        backend.remove_port_maps(&owner("c1")).unwrap();
        assert_eq!(node.private(), [""; 0]);
    });
}

#[test]
fn conditions_in_the_words_of_iptables() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let words = |text: &str| text.split(' ').map(str::to_owned).collect();
        let mut maps = PortMaps {
            conditions_v4: words("! -d 192.0.2.1 -m comment --comment \"x\""),
            ..port_maps(&["10.9.0.2/24"], &[8080])
        };
        for _ in 0..2 {
            backend.ensure_port_maps(&owner("c1"), &maps).unwrap();
            backend.check_port_maps(&owner("c1"), &maps).unwrap();
        }
        let before = node.saved();
        maps.conditions_v4 = words("--no-such-option");
        let error = backend.ensure_port_maps(&owner("c1"), &maps).unwrap_err();
        assert!(format!("{error:#}").contains("no-such-option"), "{error:#}");
        assert_eq!(node.saved(), before, "all or nothing");
        backend.remove_port_maps(&owner("c1")).unwrap();
        assert_eq!(node.private(), [""; 0]);
    });
}

#[test]
fn when_one_family_is_refused_the_other_keeps_nothing() {
    on_both_variants(|node| {
        let mut maps = dual_maps(&[8080]);
        maps.conditions_v6 = vec!["--no-such-option".into()];
        node.iptables
            .ensure_port_maps(&owner("c1"), &maps)
            .unwrap_err();
        assert_eq!(node.private(), [""; 0]);
    });
}

#[test]
fn only_the_dead_of_this_network_are_collected() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let elsewhere = Owner {
            network: "net2".into(),
            ..owner("c1")
        };
        for (n, owner) in [owner("c1"), owner("c2"), elsewhere].iter().enumerate() {
            let address = format!("10.9.{n}.2/24");
            backend
                .ensure_masquerade(owner, &masquerade(&[&address, "fd00:9::2/64"]))
                .unwrap();
            backend
                .ensure_port_maps(owner, &port_maps(&[&address], &[8080]))
                .unwrap();
        }
        node.sh("iptables -t nat -A POSTROUTING -s 10.9.0.2 -j MASQUERADE");
        let before = node.saved();
        let valid = [attachment("c1", "eth0"), attachment("c2", "eth0")];
        backend.collect_masquerade("net1", &valid).unwrap();
        backend.collect_port_maps("net1", &valid).unwrap();
        assert_eq!(node.saved(), before);
        backend.collect_masquerade("net1", &valid[1..]).unwrap();
        backend.collect_port_maps("net1", &valid[1..]).unwrap();
        let hash = crate::hash::sha512_hex("net1c1", 21);
        let is_alive = |line: &&String| !line.contains(&hash);
        assert_eq!(
            node.saved(),
            before.iter().filter(is_alive).cloned().collect::<Vec<_>>()
        );
        backend.collect_masquerade("net1", &[]).unwrap();
        backend.collect_port_maps("net1", &[]).unwrap();
        assert!(!node.saved().iter().any(|line| line.contains("net1")));
        assert!(node.saved().iter().any(|line| line.contains("net2")));
    });
}

/// The plain names may lead to the other variant when the container goes.
#[test]
fn both_variants_are_cleaned() {
    on_both_variants(|node| {
        node.iptables
            .ensure_masquerade(&owner("c1"), &dual())
            .unwrap();
        node.iptables
            .ensure_port_maps(&owner("c1"), &dual_maps(&[8080]))
            .unwrap();
        assert_ne!(node.private(), [""; 0]);
        let other = tempfile::tempdir().unwrap();
        let variants = ["nft", "legacy"];
        let usual = variants[usize::from(node.variant == "nft")];
        for command in ["iptables", "ip6tables"] {
            for suffix in ["-save", "-restore"] {
                let link = |name: String, variant: &str| {
                    let tool = format!("{SBIN}/{command}-{variant}{suffix}");
                    symlink(tool, other.path().join(name)).unwrap();
                };
                link(format!("{command}{suffix}"), usual);
                for variant in variants {
                    link(format!("{command}-{variant}{suffix}"), variant);
                }
            }
        }
        let backend = Iptables::new(other.path().into());
        backend
            .remove_masquerade(&owner("c1"), &dual().addresses)
            .unwrap();
        backend.collect_port_maps("net1", &[]).unwrap();
        assert_eq!(node.private(), [""; 0]);
    });
}

#[test]
fn without_tools_there_is_nothing_to_remove() {
    let empty = tempfile::tempdir().unwrap();
    let backend = Iptables::new(empty.path().into());
    assert!(!backend.is_usable());
    backend.remove_masquerade(&owner("c1"), &[]).unwrap();
    backend.remove_port_maps(&owner("c1")).unwrap();
    backend.collect_masquerade("net1", &[]).unwrap();
    let error = backend
        .ensure_masquerade(&owner("c1"), &dual())
        .unwrap_err();
    assert!(error.to_string().contains("iptables-restore"), "{error:#}");
}

#[test]
fn a_lock_that_is_held_has_a_holder() {
    on_both_variants(|node| {
        let mut holder = Command::new("flock")
            .args(["/run/xtables.lock", "sh", "-c", "echo locked; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 7];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut line).unwrap();
        let backend = Iptables {
            lock_wait: 1,
            ..node.iptables.clone()
        };
        let made = backend.ensure_masquerade(&owner("c1"), &dual());
        holder.stdin.take();
        holder.wait().unwrap();
        if node.variant == "nft" {
            // Has no lock.
            return made.unwrap();
        }
        let error = ErrorObject::from_error(&made.unwrap_err());
        assert_eq!(error.code, 11);
        assert!(
            error
                .msg
                .contains(&format!("process {} (flock)", holder.id())),
            "{error:?}"
        );
        backend.ensure_masquerade(&owner("c1"), &dual()).unwrap();
    });
}

#[test]
fn names_that_are_too_long_for_a_comment() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let owner = owner(&"x".repeat(300));
        backend.ensure_masquerade(&owner, &dual()).unwrap();
        backend
            .ensure_port_maps(&owner, &dual_maps(&[8080]))
            .unwrap();
        backend
            .check_port_maps(&owner, &dual_maps(&[8080]))
            .unwrap();
        backend
            .collect_masquerade("net1", std::slice::from_ref(&owner.attachment))
            .unwrap();
        backend.check_masquerade(&owner, &dual()).unwrap();
        backend.remove_masquerade(&owner, &[]).unwrap();
        backend.collect_port_maps("net1", &[]).unwrap();
        assert_eq!(node.private(), [""; 0]);
    });
}

/// Scripts in the place of the tools count how often they are run.
#[test]
fn processes() {
    on_both_variants(|node| {
        let log = node.bin.path().join("log");
        let counting = tempfile::tempdir().unwrap();
        for command in ["iptables", "ip6tables"] {
            for suffix in ["-save", "-restore"] {
                let script = format!(
                    "#!/bin/sh\necho {command}{suffix} >> {}\nexec {SBIN}/{command}-{}{suffix} \"$@\"\n",
                    log.display(),
                    node.variant
                );
                let file = counting.path().join(format!("{command}{suffix}"));
                std::fs::write(&file, script).unwrap();
                std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
            }
        }
        let backend = Iptables::new(counting.path().into());
        let count = |work: &dyn Fn() -> Result<()>| {
            std::fs::write(&log, "").unwrap();
            work().unwrap();
            std::fs::read_to_string(&log).unwrap().lines().count()
        };
        let maps = dual_maps(&[8080]);
        let fresh = count(&|| backend.ensure_port_maps(&owner("c1"), &maps));
        assert_eq!(fresh, 2 * 3, "tries, looks, makes the base");
        for (expected, work) in [
            (2, &|| backend.ensure_port_maps(&owner("c2"), &maps)),
            (2, &|| backend.check_port_maps(&owner("c2"), &maps)),
            (4, &|| backend.remove_port_maps(&owner("c2"))),
            (2, &|| backend.remove_port_maps(&owner("c2"))),
            (2, &|| backend.ensure_masquerade(&owner("c2"), &dual())),
            (2, &|| backend.check_masquerade(&owner("c2"), &dual())),
            (2, &|| {
                backend.remove_masquerade(&owner("c2"), &dual().addresses)
            }),
            (4, &|| {
                backend.remove_masquerade(&owner("c2"), &dual().addresses)
            }),
            (2, &|| backend.collect_masquerade("net1", &[])),
        ] as [(usize, &dyn Fn() -> Result<()>); 9]
        {
            assert_eq!(count(work), expected);
        }
    });
}

#[test]
fn a_thousand_ports() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let ports: Vec<u16> = (10_000..11_000).collect();
        let maps = port_maps(&["10.9.0.2/24"], &ports);
        for _ in 0..2 {
            backend.ensure_port_maps(&owner("c1"), &maps).unwrap();
        }
        backend.check_port_maps(&owner("c1"), &maps).unwrap();
        assert_eq!(
            node.saved()
                .iter()
                .filter(|line| line.contains("-j DNAT"))
                .count(),
            1000
        );
        backend.remove_port_maps(&owner("c1")).unwrap();
        assert_eq!(node.private(), [""; 0]);
    });
}

/// Calls a plugin of the reference for container `c1`.
fn reference(node: &Node, plugin: &str, command: &str, config: &Value) {
    call_reference(node, &node.path(), plugin, command, config);
}

fn call_reference(node: &Node, path: &str, plugin: &str, command: &str, config: &Value) {
    let mut child = Command::new(PathBuf::from(REFERENCE).join(plugin))
        .env_clear()
        .env("PATH", path)
        .env("CNI_PATH", REFERENCE)
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", "/run/netns/c1")
        .env("CNI_IFNAME", "eth0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the reference plugins are needed: see `make test`");
    let stdin = child.stdin.take().unwrap();
    serde_json::to_writer(stdin, config).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{plugin} {command} on {}: {text}",
        node.variant
    );
}

#[test]
fn the_reference_and_we_masquerade_alike() {
    on_both_variants(|node| {
        node.sh("mkdir -p /run/netns && ip netns add c1");
        let config = json!({
            "cniVersion": "1.0.0", "name": "net1", "type": "bridge", "bridge": "br1",
            "isGateway": true, "ipMasq": true,
            "ipam": {"type": "host-local", "ranges": [
                [{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]}
        });
        reference(node, "bridge", "ADD", &config);
        let theirs = node.private();
        assert!(theirs.len() == 8, "{theirs:#?}");
        node.iptables
            .check_masquerade(&owner("c1"), &dual())
            .unwrap();
        node.iptables
            .remove_masquerade(&owner("c1"), &dual().addresses)
            .unwrap();
        assert_eq!(node.private(), [""; 0]);
        node.iptables
            .ensure_masquerade(&owner("c1"), &dual())
            .unwrap();
        assert_eq!(node.private(), theirs);
        reference(node, "bridge", "DEL", &config);
        assert_eq!(node.private(), [""; 0]);
    });
}

#[test]
fn the_reference_and_we_map_ports_alike() {
    on_both_variants(|node| {
        node.sh("mkdir -p /run/netns && ip netns add c1");
        let config = json!({
            "cniVersion": "1.0.0", "name": "net1", "type": "portmap",
            "capabilities": {"portMappings": true},
            "conditionsV4": ["!", "-d", "192.0.2.1"],
            "runtimeConfig": {"portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 53, "containerPort": 5353, "protocol": "udp"},
                {"hostPort": 8081, "containerPort": 81, "protocol": "tcp", "hostIP": "192.168.1.1"},
                {"hostPort": 8082, "containerPort": 82, "protocol": "tcp", "hostIP": "::1"},
            ]},
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "eth0", "sandbox": "/run/netns/c1"}],
                "ips": [{"interface": 0, "address": "10.9.0.2/24"},
                        {"interface": 0, "address": "fd00:9::2/64"}]
            }
        });
        let mapping = |protocol, host_ip: Option<&str>, host_port, container_port| Mapping {
            protocol,
            host_ip: host_ip.map(|ip| ip.parse::<IpAddr>().unwrap()),
            host_port,
            container_port,
        };
        let maps = PortMaps {
            mappings: vec![
                mapping(Protocol::Tcp, None, 8080, 80),
                mapping(Protocol::Udp, None, 53, 5353),
                mapping(Protocol::Tcp, Some("192.168.1.1"), 8081, 81),
                mapping(Protocol::Tcp, Some("::1"), 8082, 82),
            ],
            conditions_v4: vec!["!".into(), "-d".into(), "192.0.2.1".into()],
            ..dual_maps(&[])
        };
        reference(node, "portmap", "ADD", &config);
        let theirs = node.saved();
        node.iptables.check_port_maps(&owner("c1"), &maps).unwrap();
        node.iptables.remove_port_maps(&owner("c1")).unwrap();
        assert_eq!(node.private(), [""; 0]);
        node.sh("iptables -t nat -F; iptables -t nat -X; ip6tables -t nat -F; ip6tables -t nat -X");
        node.iptables.ensure_port_maps(&owner("c1"), &maps).unwrap();
        assert_eq!(node.saved(), theirs);
        // That version compares both families with the rules of one of them, and does not
        // find its own either: ask for IPv4 alone.
        let mut v4 = config.clone();
        v4["prevResult"]["ips"].as_array_mut().unwrap().pop();
        let only_v4 = tempfile::tempdir().unwrap();
        let tool = format!("{SBIN}/iptables-{}", node.variant);
        symlink(tool, only_v4.path().join("iptables")).unwrap();
        let path = only_v4.path().to_str().unwrap();
        call_reference(node, path, "portmap", "CHECK", &v4);
        reference(node, "portmap", "DEL", &config);
        assert_eq!(node.private(), [""; 0]);
    });
}
