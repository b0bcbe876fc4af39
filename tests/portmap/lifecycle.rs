//! What ADD makes, CHECK misses, and DEL and GC remove, with which programs.

use serde_json::{Value, json};

use crate::common::Node;
use crate::lab::{Lab, mapping, on_every_backend};

#[test]
fn the_backend_is_chosen_as_the_reference_does() {
    on_every_backend(|lab| {
        let open = json!({"backend": null, "ipMasqBackend": null});
        lab.configure(&open, &open);
        let mappings = json!([mapping("tcp", 8080, 80)]);
        lab.add("c1", &mappings);
        // iptables where it can be used, nftables where only that can.
        let rules = lab.rules();
        for table in ["cni_plugins_masquerade", "cni_hostport"] {
            assert_eq!(rules.contains(table), lab.backend == "nftables", "{rules}");
        }
        assert_eq!(
            rules.contains("CNI-HOSTPORT-DNAT"),
            lab.backend != "nftables",
            "{rules}"
        );
        lab.cnitool("check", "c1", &mappings).silent();
        lab.cnitool("status", "c1", &mappings).silent();
    });
}

/// Runtimes call the plugin for every container; most have nothing to map.
#[test]
fn without_mappings_nothing_is_looked_at() {
    let node = Node::new();
    let (trace, script) = (
        node.dir.path().join("trace"),
        node.dir.path().join("traced"),
    );
    let traced = format!(
        "#!/bin/sh\nexec /usr/bin/strace -f -e trace=socket,execve,clone,clone3,vfork -o {} {}\n",
        trace.display(),
        node.bin.join("portmap").display()
    );
    std::fs::write(&script, traced).unwrap();
    node.sh(&format!("chmod +x {}", script.display()));
    let call = node
        .plugin("portmap")
        .netns(&node.netns("c1"))
        .executable(&script);
    let result = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": "/run/netns/c1"}],
        "ips": [{"address": "10.9.0.2/24", "interface": 0}],
        "dns": {},
    });
    for runtime_config in [
        json!({}),
        json!({"portMappings": []}),
        json!({"portMappings": null}),
    ] {
        let config = json!({
            "cniVersion": "1.0.0", "name": "net1", "type": "portmap",
            "runtimeConfig": runtime_config, "prevResult": result,
        });
        assert_eq!(call.run("ADD", &config).json()["ips"], result["ips"]);
        let calls = std::fs::read_to_string(&trace).unwrap();
        let made: Vec<&str> = calls
            .lines()
            .filter(|line| line.ends_with(|c: char| c.is_ascii_digit()))
            .collect();
        // Its own start.
        assert!(
            made.len() == 1 && made[0].contains("execve("),
            "{runtime_config}: {calls}"
        );
    }
}

#[test]
fn what_is_deleted_is_gone_and_nobody_else_notices() {
    on_every_backend(|mut lab| {
        let (one, two) = (
            json!([mapping("tcp", 8081, 80)]),
            json!([mapping("tcp", 8082, 80)]),
        );
        // The shared tables and chains may stay: made once, they are the baseline.
        lab.add(
            "c0",
            &json!([mapping("tcp", 8080, 80), mapping("udp", 8080, 80)]),
        );
        lab.cnitool("del", "c0", &json!([])).silent();
        let before = lab.rules();
        assert!(!before.contains("10.9.0."), "{before}");
        lab.add("c1", &one);
        lab.add("c2", &two);
        lab.serve("c1", "tcp", 80, "c1");
        lab.serve("c2", "tcp", 80, "c2");
        assert!(lab.call("ext", "tcp", "192.0.2.1", 8081).starts_with("c1 "));
        // Without the port mappings, as a runtime that lost them would.
        lab.cnitool("del", "c1", &json!([])).silent();
        lab.cnitool("del", "c1", &json!([])).silent();
        assert_eq!(lab.call("ext", "tcp", "192.0.2.1", 8081), "");
        assert!(lab.call("ext", "tcp", "192.0.2.1", 8082).starts_with("c2 "));
        lab.cnitool("check", "c2", &two).silent();
        // Without the namespace.
        lab.node.sh("umount /run/netns/c2");
        lab.cnitool("del", "c2", &two).silent();
        assert_eq!(lab.rules(), before);
        // The kernel closes the sockets of netfilter that are left to it. One is its own.
        lab.node.sh("for _ in $(seq 100); do
                grep -q '^[0-9a-f]* 12  *[1-9]' /proc/net/netlink || exit 0
                sleep 0.05
            done
            cat /proc/net/netlink && exit 1");
    });
}

#[test]
fn rules_go_without_namespace_and_without_result() {
    on_every_backend(|lab| {
        let mappings = json!([mapping("tcp", 8081, 80)]);
        lab.add("c0", &mappings);
        lab.cnitool("del", "c0", &mappings).silent();
        let before = lab.rules();
        lab.add("c1", &mappings);
        assert_ne!(lab.rules(), before);
        lab.node.sh("rm -r /var/lib/cni/results && ip netns del c1");
        lab.cnitool("del", "c1", &json!([])).silent();
        assert_eq!(lab.rules(), before);
    });
}

/// The reference leaves the masquerade rules with all but the first.
#[test]
fn rules_go_whatever_is_told_of_the_attachment() {
    on_every_backend(|lab| {
        let text = std::fs::read_to_string(lab.conf().join("10-net1.conflist")).unwrap();
        let list: Value = serde_json::from_str(&text).unwrap();
        let config = |index: usize, result: &Value| {
            let mut config = list["plugins"][index].clone();
            config["cniVersion"] = json!("1.0.0");
            config["name"] = list["name"].clone();
            if !result.is_null() {
                config["prevResult"] = result.clone();
                config["runtimeConfig"]["portMappings"] = json!([mapping("tcp", 8080, 80)]);
            }
            config
        };
        let call = |index: usize, command: &str, netns: &str, result: &Value| {
            let plugin = ["bridge", "portmap"][index];
            let call = lab.node.plugin(plugin).netns(netns).env("PATH", &lab.path);
            call.run(command, &config(index, result))
        };
        let mut before = None;
        for (dangles, is_remembered) in [(true, true), (true, false), (false, true), (false, false)]
        {
            let netns = lab.node.netns("c1");
            let result = call(0, "ADD", &netns, &Value::Null).json();
            call(1, "ADD", &netns, &result).json();
            assert!(lab.rules().contains("10.9.0."), "{}", lab.backend);
            lab.node.sh("ip netns del c1");
            let netns = if dangles { netns.as_str() } else { "" };
            let told = if is_remembered { &result } else { &Value::Null };
            for index in [1, 0] {
                call(index, "DEL", netns, told).silent();
            }
            let rules = lab.rules();
            let what = format!("{}: {dangles} {is_remembered}", lab.backend);
            assert!(
                !rules.contains("10.9.0.") && !rules.contains("fd00:9::"),
                "{what}: {rules}"
            );
            assert_eq!(
                rules,
                *before.get_or_insert_with(|| rules.clone()),
                "{what}"
            );
        }
    });
}

#[test]
fn the_newest_owner_of_a_port_gets_it() {
    on_every_backend(|mut lab| {
        let mappings = json!([mapping("tcp", 8080, 80)]);
        lab.add("old", &mappings);
        // A crash: the container is gone, its rules and nothing else stay.
        lab.node.sh("ip netns del old && rm -r /var/lib/cni");
        lab.add("new", &mappings);
        lab.serve("new", "tcp", 80, "new");
        assert!(
            lab.call("ext", "tcp", "192.0.2.1", 8080)
                .starts_with("new ")
        );
    });
}

/// Whoever hooked in first would win: the rules of both backends run at the same place.
#[test]
fn the_newest_owner_of_a_port_gets_it_across_backends() {
    for [first, then] in [
        ["iptables-nft", "nftables"],
        ["iptables-legacy", "nftables"],
        ["nftables", "iptables-nft"],
        ["nftables", "iptables-legacy"],
    ] {
        std::thread::spawn(move || {
            let mut lab = Lab::new(first);
            let old = json!([mapping("tcp", 8079, 80), mapping("tcp", 8080, 80)]);
            let new = json!([mapping("tcp", 8080, 80)]);
            lab.add("old", &old);
            lab.serve("old", "tcp", 80, "old");
            if then != "nftables" {
                lab.path = lab.tools("later", then);
            }
            lab.backend = then;
            lab.configure(&json!({}), &json!({}));
            lab.node.netns("new");
            let added = lab.cnitool("add", "new", &new);
            assert!(added.ok, "{added:?}");
            let told = "host port 8080/tcp was mapped to container cnitool-";
            assert!(added.stderr.contains(told), "{first}, {then}: {added:?}");
            lab.serve("new", "tcp", 80, "new");
            for (port, who) in [(8080, "new "), (8079, "old ")] {
                for address in ["192.0.2.1", "fd00:2::1"] {
                    let answer = lab.call("ext", "tcp", address, port);
                    assert!(answer.starts_with(who), "{first}, {then}: {port}: {answer}");
                }
            }
            lab.cnitool("check", "new", &new).silent();
            lab.cnitool("del", "old", &old).silent();
            lab.cnitool("del", "new", &new).silent();
            assert!(!lab.rules().contains("10.9.0."), "{}", lab.rules());
        })
        .join()
        .unwrap();
    }
}

#[test]
fn gc_removes_the_rules_of_the_dead() {
    on_every_backend(|mut lab| {
        let (one, two) = (
            json!([mapping("tcp", 8081, 80)]),
            json!([mapping("tcp", 8082, 80)]),
        );
        lab.add("alive", &one);
        let before = lab.rules();
        lab.add("dead", &two);
        lab.node.sh("ip netns del dead");
        let gc = lab.cnitool("gc", "alive", &json!([]));
        assert!(gc.ok, "{gc:?}");
        assert_eq!(lab.rules(), before);
        lab.serve("alive", "tcp", 80, "alive");
        assert!(
            lab.call("ext", "tcp", "192.0.2.1", 8081)
                .starts_with("alive ")
        );
    });
}

#[test]
fn check_misses_what_was_flushed() {
    on_every_backend(|lab| {
        let mappings = json!([mapping("tcp", 8081, 80)]);
        lab.add("c1", &mappings);
        lab.cnitool("check", "c1", &mappings).silent();
        lab.node
            .sh("nft flush ruleset; iptables-legacy -t nat -F; ip6tables-legacy -t nat -F");
        let checked = lab.cnitool("check", "c1", &mappings);
        assert!(
            !checked.ok && checked.stderr.contains("10.9.0."),
            "{checked:?}"
        );
        lab.cnitool("del", "c1", &mappings).silent();
        // And it works again for the next one.
        lab.add("c2", &mappings);
        lab.cnitool("check", "c2", &mappings).silent();
    });
}

/// The rules of the nft variant are the same, whether its tools make them or cnibox does, and
/// nothing is left.
#[test]
fn the_native_path_of_iptables_can_be_switched_off() {
    let lives = |env: Option<(&'static str, &'static str)>| {
        let life = std::thread::spawn(move || {
            let mut lab = Lab::new("iptables-nft");
            lab.env.extend(env);
            let first = json!([mapping("tcp", 8080, 80)]);
            let second = json!([mapping("tcp", 8081, 80), mapping("udp", 53, 53)]);
            lab.add("c0", &first);
            lab.node.netns("c1");
            let save = "{ iptables-nft-save; ip6tables-nft-save; } | \
                 sed '/^#/d; s/\\[[0-9]*:[0-9]*\\]//'";
            let mut seen = Vec::new();
            let mut programs = Vec::new();
            for command in ["add", "del"] {
                let calls = lab.traced("execve", command, "c1", &second);
                let restores = calls
                    .lines()
                    .filter(|line| line.contains("tables-restore\""));
                programs.push(restores.count());
                seen.push(lab.node.sh(save));
            }
            lab.cnitool("del", "c0", &first).silent();
            assert!(!lab.rules().contains("10.9.0."), "{}", lab.rules());
            let reserved = lab.node.sh("nft list ruleset | grep -c 'net: net1' || :");
            assert_eq!(reserved.trim(), "0");
            (programs, seen)
        });
        life.join().unwrap()
    };
    let (native, made) = lives(None);
    let (by_tools, same) = lives(Some(("CNIBOX_IPTABLES_NATIVE", "off")));
    assert_eq!(native, [0, 0], "programs run for ADD and DEL");
    assert_eq!(by_tools, [4, 4], "two plugins, two families");
    assert!(made[0].contains("--dports 8081"), "{}", made[0]);
    assert!(!made[1].contains("--dports 8081"), "{}", made[1]);
    assert_eq!(made, same);
}

#[test]
fn programs_run_for_a_container() {
    // Two plugins, two families: one transaction each. What the nft variant of iptables has
    // made is removed without it. Only the first mapping on a node has
    // to look what there is; and of the legacy tables the kernel does not say whether there
    // is anything in them.
    on_every_backend(|lab| {
        let expected = match lab.backend {
            "nftables" => [("c0", "add", 0), ("c1", "add", 0), ("c1", "del", 0)],
            "iptables-nft" => [("c0", "add", 6), ("c1", "add", 0), ("c1", "del", 0)],
            _ => [("c0", "add", 8), ("c1", "add", 4), ("c1", "del", 8)],
        };
        for (name, command, programs) in expected {
            if command == "add" {
                lab.node.netns(name);
            }
            let port = if name == "c0" { 8080 } else { 8081 };
            let mappings = json!([mapping("tcp", port, 80)]);
            let calls = lab.traced("execve", command, name, &mappings);
            let run = calls
                .lines()
                .filter(|line| line.contains("execve") && line.ends_with("= 0"))
                .count();
            // cnitool itself and the two plugins.
            assert_eq!(
                run - 3,
                programs,
                "{} {name} {command}:\n{calls}",
                lab.backend
            );
        }
    });
}

#[test]
fn rules_of_one_variant_go_where_the_other_comes_first() {
    for [added, later] in [
        ["iptables-legacy", "iptables-nft"],
        ["iptables-nft", "iptables-legacy"],
    ] {
        std::thread::spawn(move || {
            let mut lab = Lab::new(added);
            let mappings = json!([mapping("tcp", 8080, 80)]);
            lab.add("c0", &mappings);
            lab.cnitool("del", "c0", &mappings).silent();
            let before = lab.rules();
            lab.add("c1", &mappings);
            // An upgrade changed what "iptables" is; the other variant keeps its own name.
            lab.path = format!("{}:/usr/sbin", lab.tools("later", later));
            lab.cnitool("del", "c1", &mappings).silent();
            assert_eq!(lab.rules(), before, "{added}, then {later}");
        })
        .join()
        .unwrap();
    }
}

#[test]
fn rules_of_one_backend_go_when_the_other_is_configured() {
    on_every_backend(|lab| {
        let mappings = json!([mapping("tcp", 8080, 80)]);
        lab.add("c0", &mappings);
        lab.cnitool("del", "c0", &mappings).silent();
        let before = lab.rules();
        lab.add("c1", &mappings);
        let other = if lab.word() == "nftables" {
            "iptables"
        } else {
            "nftables"
        };
        lab.configure(&json!({"ipMasqBackend": other}), &json!({"backend": other}));
        lab.cnitool("del", "c1", &mappings).silent();
        assert_eq!(lab.rules(), before, "{}, then {other}", lab.backend);
    });
}

#[test]
fn conditions_that_nobody_understands_are_refused_before_anything_is_made() {
    let lab = Lab::new("nftables");
    lab.configure(&json!({}), &json!({"conditionsV4": ["ct state new"]}));
    let told = lab.node.cnitool(&lab.conf(), &["validate"]);
    assert!(!told.ok, "{told:?}");
    assert!(told.stdout.contains("conditionsV4[0]: "), "{told:?}");
    lab.node.netns("c1");
    let mappings = json!([mapping("tcp", 8080, 80)]);
    let refused = lab.cnitool("add", "c1", &mappings);
    assert!(!refused.ok, "{refused:?}");
    let sentence =
        "(add): conditionsV4[0]: the nftables backend does not understand \"ct state new\"";
    assert!(refused.stderr.contains(sentence), "{refused:?}");
    assert!(refused.stderr.contains("(code 2)"), "{refused:?}");
    lab.cnitool("del", "c1", &mappings).silent();
    let rules = lab.rules();
    assert!(!rules.contains("8080"), "{rules}");
}

#[test]
fn a_lock_that_cannot_be_made_is_named() {
    let lab = Lab::new("nftables");
    lab.node
        .sh("rm -rf /run/cni && echo no directory > /run/cni");
    lab.node.netns("c1");
    let mappings = json!([mapping("tcp", 8080, 80)]);
    let refused = lab.cnitool("add", "c1", &mappings);
    assert!(!refused.ok, "{refused:?}");
    for words in [
        "(add): keep others out of /run/cni/cnibox-localnet-",
        "make /run/cni a directory",
        "(code 5)",
    ] {
        assert!(refused.stderr.contains(words), "{refused:?}");
    }
    lab.node.sh("rm /run/cni");
    lab.cnitool("del", "c1", &mappings).silent();
    lab.cnitool("add", "c1", &mappings).json();
}
