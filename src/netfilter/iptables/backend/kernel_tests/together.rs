//! Several owners, callers, variants; hosts on which something is in the way.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use super::*;
use crate::cni::error::ErrorObject;

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
        backend
            .remove_port_maps(&owner("new"), &Known::NOTHING)
            .unwrap();
        backend
            .remove_masquerade(&owner("new"), &Known::NOTHING)
            .unwrap();
        assert_eq!(node.private(), before);
        backend.check_masquerade(&owner("old"), &other).unwrap();
        backend.check_port_maps(&owner("old"), &other_maps).unwrap();
    });
}

/// Chains are named after a hash of both names, with nothing in between (docs/compatibility.md#defect-22).
#[test]
fn two_owners_whose_names_make_one_word() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let [first, second] = [("net", "work1"), ("netw", "ork1")]
            .map(|(network, id)| test_node::owner(network, id, "eth0"));
        let own = |n: u8| [format!("10.9.0.{n}/24"), format!("fd00:9::{n}/64")];
        let maps = |n: u8, port: u16| port_maps(&own(n).each_ref().map(String::as_str), &[port]);
        let wanted = [(&first, maps(2, 8080)), (&second, maps(3, 8081))];
        for (owner, maps) in &wanted {
            let addresses = maps.container.clone();
            backend
                .ensure_masquerade(owner, &Masquerade { addresses })
                .unwrap();
            backend.ensure_port_maps(owner, maps).unwrap();
        }
        let (_, maps) = &wanted[1];
        backend
            .remove_port_maps(&second, &Known::own(&maps.container))
            .unwrap();
        backend
            .remove_masquerade(&second, &Known::own(&maps.container))
            .unwrap();
        let left = |line: &&String| line.contains("name: \\\"netw\\\"") && line.contains("-j CNI-");
        assert_eq!(node.private().iter().filter(left).count(), 0);
        let (_, maps) = &wanted[0];
        let addresses = maps.container.clone();
        backend.check_port_maps(&first, maps).unwrap();
        backend
            .check_masquerade(&first, &Masquerade { addresses })
            .unwrap();
        backend
            .remove_port_maps(&first, &Known::own(&maps.container))
            .unwrap();
        backend
            .remove_masquerade(&first, &Known::own(&maps.container))
            .unwrap();
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
        backend
            .remove_port_maps(&owner("c1"), &Known::NOTHING)
            .unwrap();
        backend
            .remove_masquerade(&owner("c1"), &Known::NOTHING)
            .unwrap();
        backend.collect_masquerade("net1", &[]).unwrap();
        assert!(!Family::V6.has_legacy_table(TableName::Nat));
        assert_eq!(
            Family::V4.has_legacy_table(TableName::Nat),
            node.variant == "legacy"
        );
        let tables = node.sh("nft list tables");
        assert_eq!(
            tables,
            ["", "table ip nat\ntable inet cnibox\n"][usize::from(node.variant == "nft")]
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
            backend.remove_port_maps(&owner, &Known::NOTHING)?;
            let addresses = addresses(*n);
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            backend.remove_masquerade(&owner, &Known::own(&nets(&addresses)))
        })
        .unwrap();
        assert_eq!(node.private(), [""; 0]);
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
            .remove_masquerade(&owner("c1"), &Known::own(&dual().addresses))
            .unwrap();
        backend.collect_port_maps("net1", &[]).unwrap();
        assert_eq!(node.private(), [""; 0]);
    });
}

#[test]
fn what_cannot_be_removed_is_no_success() {
    on_both_variants(|node| {
        let empty = tempfile::tempdir().unwrap();
        let without = Iptables::new(empty.path().into());
        let (net, maps) = (masquerade(&["10.9.0.2/24"]), &["10.9.0.2/24"]);
        node.iptables.ensure_masquerade(&owner("c1"), &net).unwrap();
        let maps = port_maps(maps, &[8080]);
        node.iptables.ensure_port_maps(&owner("c1"), &maps).unwrap();
        // Somebody else's are not missed.
        without
            .remove_masquerade(&owner("c2"), &Known::NOTHING)
            .unwrap();
        without
            .remove_port_maps(&owner("c2"), &Known::NOTHING)
            .unwrap();
        for (removed, kind) in [
            (
                without.remove_masquerade(&owner("c1"), &Known::NOTHING),
                "CNI-",
            ),
            (
                without.remove_port_maps(&owner("c1"), &Known::NOTHING),
                "CNI-DN-",
            ),
        ] {
            if node.variant == "legacy" {
                // The kernel does not tell whose the table is.
                removed.unwrap();
                continue;
            }
            let error = format!("{:#}", removed.unwrap_err());
            for word in [kind, "of iptables", "iptables-nft-restore"] {
                assert!(error.contains(word), "{error}");
            }
        }
        for collected in [
            without.collect_masquerade("net1", &[]),
            without.collect_port_maps("net1", &[]),
        ] {
            let error = format!("{:#}", collected.unwrap_err());
            for word in ["of iptables", &format!("iptables-{}-restore", node.variant)] {
                assert!(error.contains(word), "{error}");
            }
        }
        node.iptables
            .remove_masquerade(&owner("c1"), &Known::NOTHING)
            .unwrap();
        node.iptables
            .remove_port_maps(&owner("c1"), &Known::NOTHING)
            .unwrap();
        if node.variant == "nft" {
            without.collect_port_maps("net1", &[]).unwrap();
        }
        without
            .remove_masquerade(&owner("c1"), &Known::NOTHING)
            .unwrap();
        without
            .remove_port_maps(&owner("c1"), &Known::NOTHING)
            .unwrap();
    });
}

#[test]
fn without_tools_there_is_nothing_to_remove() {
    let empty = tempfile::tempdir().unwrap();
    let backend = Iptables::new(empty.path().into());
    assert!(!backend.is_usable());
    backend
        .remove_masquerade(&owner("c1"), &Known::NOTHING)
        .unwrap();
    backend
        .remove_port_maps(&owner("c1"), &Known::NOTHING)
        .unwrap();
    backend.collect_masquerade("net1", &[]).unwrap();
    let error = backend
        .ensure_masquerade(&owner("c1"), &dual())
        .unwrap_err();
    assert!(error.to_string().contains("iptables-restore"), "{error:#}");
}

/// Keeps `path` locked by another process during `work`; answers also whose.
fn while_locked<T>(path: &str, work: impl FnOnce() -> T) -> (T, String) {
    let mut holder = Command::new("flock")
        .args([path, "sh", "-c", "echo locked; read line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 7];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut line).unwrap();
    let done = work();
    holder.stdin.take();
    holder.wait().unwrap();
    (done, format!("process {} (flock)", holder.id()))
}

#[test]
fn a_lock_that_is_held_has_a_holder() {
    on_both_variants(|node| {
        let patient = &node.iptables;
        let impatient = Iptables {
            lock_wait: 1,
            ..patient.clone()
        };
        let namespace = std::fs::metadata("/proc/thread-self/ns/net").unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&namespace);
        std::fs::create_dir("/run/cni").unwrap();
        let section = format!("/run/cni/cnibox-iptables-{inode}.lock");
        // The first mapping on a host does not go through blindly.
        let maps = dual_maps(&[8080]);
        for lock in ["/run/xtables.lock", &section] {
            let is_others = (node.variant == "nft") == (lock == "/run/xtables.lock");
            let backend = if is_others { patient } else { &impatient };
            let (made, holder) =
                while_locked(lock, || backend.ensure_port_maps(&owner("c1"), &maps));
            if is_others {
                made.unwrap();
                node.sh("iptables -t nat -F; ip6tables -t nat -F");
                node.sh("iptables -t nat -X; ip6tables -t nat -X");
                continue;
            }
            let error = ErrorObject::from_error(&made.unwrap_err());
            assert_eq!(error.code, 11);
            assert!(error.msg.contains(&holder), "{error:?}");
            patient.ensure_port_maps(&owner("c1"), &maps).unwrap();
        }
    });
}

/// Everybody may open the file of the namespace.
#[test]
fn who_locks_the_namespace_is_in_nobodys_way() {
    on_both_variants(|node| {
        let backend = Iptables {
            lock_wait: 0,
            ..node.iptables.clone()
        };
        let maps = port_maps(&["10.9.0.2/24"], &[8080]);
        let (made, _) = while_locked("/proc/self/ns/net", || {
            backend.ensure_port_maps(&owner("c1"), &maps)
        });
        made.unwrap();
        backend.check_port_maps(&owner("c1"), &maps).unwrap();
        let dir = std::fs::metadata("/run/cni");
        // Legacy tools have a lock of their own.
        assert_eq!(dir.is_ok(), node.variant == "nft");
        for file in std::fs::read_dir("/run/cni").into_iter().flatten() {
            let meta = file.unwrap().metadata().unwrap();
            assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        }
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
        backend.remove_masquerade(&owner, &Known::NOTHING).unwrap();
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
                // The name of what a plain one leads to tells the variant.
                let name = format!("counting-{}-{command}{suffix}", node.variant);
                let file = counting.path().join(&name);
                std::fs::write(&file, script).unwrap();
                std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
                symlink(name, counting.path().join(format!("{command}{suffix}"))).unwrap();
            }
        }
        let backend = Iptables::new(counting.path().into());
        let count = |work: &dyn Fn() -> Result<()>| {
            std::fs::write(&log, "").unwrap();
            work().unwrap();
            std::fs::read_to_string(&log).unwrap().lines().count()
        };
        let maps = dual_maps(&[8080]);
        let taken = dual_maps(&[8082]);
        let fresh = count(&|| backend.ensure_port_maps(&owner("c1"), &taken));
        // The table of the old kind is there for IPv4, since the tools were found usable.
        let tried = usize::from(node.variant == "legacy");
        assert_eq!(fresh, tried + 2 * 2, "looks, makes the base");
        // For both families together. What the kernel says costs nothing, nor does the usual
        // case of the nft variant.
        let native = |count| if node.variant == "nft" { 0 } else { count };
        let addresses = dual().addresses;
        let v4 = port_maps(&["10.9.0.4/24"], &[8081]);
        let refused = count(&|| {
            let mut maps = v4.clone();
            maps.conditions_v4 = vec!["--no-such-option".into()];
            backend.ensure_port_maps(&owner("c3"), &maps).unwrap_err();
            Ok(())
        });
        assert_eq!(refused, 1 + 2 * 2, "nothing changes, so it is not tried on");
        for (expected, work) in [
            // Looks whose the port was.
            (2 + native(2), &|| {
                backend.ensure_port_maps(&owner("c4"), &taken)
            }),
            (native(2), &|| backend.ensure_port_maps(&owner("c2"), &maps)),
            (2, &|| backend.check_port_maps(&owner("c2"), &maps)),
            // Once more: tries, looks, replaces.
            (6, &|| backend.ensure_port_maps(&owner("c2"), &maps)),
            (4, &|| {
                backend.remove_port_maps(&owner("c2"), &Known::NOTHING)
            }),
            (native(2), &|| {
                backend.remove_port_maps(&owner("c2"), &Known::NOTHING)
            }),
            (native(2), &|| backend.ensure_port_maps(&owner("c2"), &maps)),
            (native(4), &|| {
                backend.remove_port_maps(&owner("c2"), &Known::own(&maps.container))
            }),
            (native(2), &|| {
                backend.ensure_masquerade(&owner("c2"), &dual())
            }),
            (2, &|| backend.check_masquerade(&owner("c2"), &dual())),
            (native(4), &|| {
                backend.remove_masquerade(&owner("c2"), &Known::own(&addresses))
            }),
            (native(2), &|| {
                backend.remove_masquerade(&owner("c2"), &Known::own(&addresses))
            }),
            (native(1), &|| backend.ensure_port_maps(&owner("c3"), &v4)),
            (native(3), &|| {
                backend.remove_port_maps(&owner("c3"), &Known::own(&v4.container))
            }),
            (4, &|| backend.collect_port_maps("net1", &[])),
            (native(2), &|| backend.collect_port_maps("net1", &[])),
        ] as [(usize, &dyn Fn() -> Result<()>); 16]
        {
            assert_eq!(count(work), expected);
        }
    });
}
