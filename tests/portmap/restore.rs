//! `cnibox restore`: containers whose rules somebody flushed get them back.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::{self, Output, run};
use crate::lab::{Lab, mapping, on_every_backend};

impl Lab {
    /// `cnibox restore` on this node.
    pub fn restore(&self, args: &[&str]) -> Output {
        let mut command = Command::new(common::binary());
        command.arg("restore").args(args).env("PATH", &self.path);
        run(&mut command, "")
    }

    /// Every table with its rules, whatever order tables and their sets were made in: the
    /// families of iptables are served at the same time. What iptables made is told by its own
    /// tool: nft prints its targets or not, depending on the table that it meets first.
    fn tables(&self) -> Vec<String> {
        const SHOW: &str = "{ nft list ruleset | sed '/^table ip6\\? \\(nat\\|filter\\) /,/^}/d'; \
             iptables-nft-save; ip6tables-nft-save; \
             iptables-legacy-save; ip6tables-legacy-save; } 2>/dev/null | \
             grep -v '^#' | sed 's/\\[[0-9]*:[0-9]*\\]//; s/counter packets [0-9]* bytes [0-9]*/counter/'";
        let mut tables: Vec<String> = Vec::new();
        for line in self.node.sh(SHOW).lines() {
            if line.starts_with("table ") || line.starts_with('*') || line.starts_with("\tset ") {
                tables.push(String::new());
            }
            // What ends a table stands behind another set each time.
            if !["", "}"].contains(&line)
                && let Some(table) = tables.last_mut()
            {
                table.push_str(line);
                table.push('\n');
            }
        }
        tables.sort();
        tables
    }

    /// Asserts that no container has any rule.
    fn assert_no_rules(&self) {
        let left = self.rules();
        for word in ["10.9.0.", "fd00:9:", "808", "cni-br-iface", "CNI-DN-"] {
            assert!(!left.contains(word), "{}: {left}", self.backend);
        }
    }

    /// The file in which the attachment of a container is remembered.
    fn cache(&self, name: &str) -> PathBuf {
        let grep = format!("grep -l '\"/run/netns/{name}\"' /var/lib/cni/results/*");
        self.node.sh(&grep).trim().into()
    }

    /// What is remembered of a container.
    fn cached(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.cache(name)).unwrap()).unwrap()
    }

    fn change_cached(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut entry = self.cached(name);
        change(&mut entry);
        fs::write(self.cache(name), entry.to_string()).unwrap();
    }
}

/// Takes every rule away, as reloads of other programs do.
pub const FLUSH: &str = "nft flush ruleset; \
    for t in iptables-legacy ip6tables-legacy; do $t -t nat -F; $t -t nat -X; done";

#[test]
fn flushed_rules_are_restored() {
    on_every_backend(|mut lab| {
        let backend = lab.backend;
        lab.configure(&json!({"macspoofchk": true}), &json!({}));
        // What looking at the legacy tables makes is there already.
        lab.node.sh(FLUSH);
        let mappings = ["c1", "c2"].map(|name| {
            let port = if name == "c1" { 8081 } else { 8082 };
            let mappings = json!([mapping("tcp", port, 80), mapping("udp", port, 53)]);
            lab.add(name, &mappings);
            lab.serve(name, "tcp", 80, name);
            (name, port, mappings)
        });
        lab.serve("ext", "tcp", 7000, "ext");
        let works = |lab: &Lab| {
            let reached = mappings.iter().all(|(name, port, _)| {
                let ways = [
                    ("ext", "192.0.2.1"),
                    ("ext", "fd00:2::1"),
                    ("", "127.0.0.1"),
                ];
                ways.into_iter()
                    .all(|(from, to)| lab.call(from, "tcp", to, *port).starts_with(name))
            });
            (reached, lab.call("c1", "tcp", "192.0.2.9", 7000))
        };
        assert_eq!(works(&lab), (true, "ext 192.0.2.1".into()), "{backend}");
        let before = lab.tables();

        lab.node.sh(FLUSH);
        assert_eq!(works(&lab), (false, "ext 10.9.0.2".into()), "{backend}");
        let flushed = lab.tables();
        // Everything that is missing, at once, and the way out.
        for (name, port, mappings) in &mappings {
            let checked = lab.cnitool("check", name, mappings);
            let bridge = [
                "10.9.0.0/24",
                "fd00:9::/64",
                "cni-br-iface-",
                "ether saddr",
                "cnibox restore",
            ];
            for word in bridge {
                assert!(
                    !checked.ok && checked.stderr.contains(word),
                    "{backend}: {word}: {checked:?}"
                );
            }
            let looked = lab.restore(&["--dry-run"]);
            assert!(looked.ok, "{looked:?}");
            for word in [
                &format!("{port} "),
                "80",
                "53",
                "PREROUTING",
                "cnibox_localnet",
                "users '{' '\"br1\"' . ",
            ] {
                let found = looked.stdout.to_lowercase().contains(&word.to_lowercase());
                assert!(found, "{backend}: {word}: {looked:?}");
            }
        }
        assert_eq!(lab.tables(), flushed);

        let restored = lab.restore(&[]);
        assert!(
            restored.ok && restored.stderr.is_empty(),
            "{backend}: {restored:?}"
        );
        assert_eq!(
            restored.stdout.matches(": restored (").count(),
            2,
            "{restored:?}"
        );
        assert_eq!(lab.tables(), before, "{backend}");
        assert_eq!(works(&lab), (true, "ext 192.0.2.1".into()), "{backend}");
        for (name, _, mappings) in &mappings {
            lab.cnitool("check", name, mappings).silent();
        }
        let handles = || {
            lab.node
                .sh("nft -a list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'")
        };
        let made = handles();
        let again = lab.restore(&[]);
        assert!(
            again.ok && again.stdout.ends_with("nothing was missing: 2\n"),
            "{again:?}"
        );
        assert_eq!((handles(), lab.tables()), (made, before), "{backend}");

        lab.node
            .sh("ip -n c1 link set dev eth0 address 02:00:00:00:00:66 && ip -n c1 neigh flush all");
        assert_eq!(
            lab.call("c1", "tcp", "192.0.2.9", 7000),
            "",
            "{backend}: spoofed"
        );
        for (name, _, mappings) in &mappings {
            lab.cnitool("del", name, mappings).silent();
        }
        lab.assert_no_rules();
    });
}

#[test]
fn a_restored_mapping_does_not_win_over_a_newer_one() {
    on_every_backend(|mut lab| {
        let backend = lab.backend;
        let mappings = json!([mapping("tcp", 8080, 80)]);
        // By name, the newest would be restored first.
        for name in ["old", "new", "newest"] {
            lab.add(name, &mappings);
        }
        lab.serve("newest", "tcp", 80, "newest");
        let answer = |lab: &Lab| lab.call("ext", "tcp", "192.0.2.1", 8080);
        assert!(answer(&lab).starts_with("newest "), "{backend}");
        lab.node.sh(FLUSH);
        let restored = lab.restore(&[]);
        assert!(restored.ok, "{restored:?}");
        // Nobody loses a port that is not lost already.
        assert!(!restored.stderr.contains("newest mapping"), "{restored:?}");
        assert_eq!(
            restored.stdout.matches(": restored (").count(),
            3,
            "{restored:?}"
        );
        assert!(answer(&lab).starts_with("newest "), "{backend}");

        // Somebody removed the rules of the oldest only.
        let entry = lab.cached("old");
        let removed = lab
            .node
            .plugin("portmap")
            .id(entry["containerId"].as_str().unwrap())
            .env("PATH", &lab.path)
            .run(
                "DEL",
                &json!({"cniVersion": "1.1.0", "name": "net1", "type": "portmap"}),
            );
        removed.silent();
        let restored = lab.restore(&["net1"]);
        assert!(restored.ok, "{restored:?}");
        assert!(!restored.stderr.contains("newest mapping"), "{restored:?}");
        assert_eq!(
            restored.stdout.matches(": restored (").count(),
            1,
            "{restored:?}"
        );
        assert_eq!(
            restored.stdout.matches(": put in front ").count(),
            2,
            "{restored:?}"
        );
        assert!(
            answer(&lab).starts_with("newest "),
            "{backend}: {}",
            lab.rules()
        );
    });
}

#[test]
fn restore_passes_over_the_dead_and_goes_on_past_errors() {
    let lab = Lab::new("nftables");
    for (name, port) in [
        ("alive", 8081),
        ("dead", 8082),
        ("host", 8083),
        ("moved", 8084),
    ] {
        lab.add(name, &json!([mapping("tcp", port, 80)]));
    }
    lab.node.sh(
        "ip netns del dead; ip -n moved link del eth0; echo '{' > /var/lib/cni/results/net1-x-eth0",
    );
    // The process whose namespace it was has ended, and another one has its number.
    lab.change_cached("host", |entry| entry["netns"] = "/proc/self/ns/net".into());
    lab.node.sh("nft flush ruleset");
    let restored = lab.restore(&[]);
    assert!(restored.ok, "{restored:?}");
    for line in [
        "/run/netns/alive: restored (",
        "/run/netns/dead: skipped: its namespace is gone (cnitool gc net1 removes what is left)\n",
        "/proc/self/ns/net: skipped: its namespace is the host's own\n",
        "/run/netns/moved: skipped: there is no eth0 in its namespace\n",
    ] {
        assert_eq!(
            restored.stdout.matches(line).count(),
            1,
            "{line}: {restored:?}"
        );
    }
    assert!(
        restored.stderr.contains("/results/net1-x-eth0:2:0: "),
        "{restored:?}"
    );
    let rules = lab.rules();
    assert!(rules.contains("8081"), "{rules}");
    for port in ["8082", "8083", "8084"] {
        assert!(!rules.contains(port), "{rules}");
    }
    assert_eq!(
        lab.restore(&["net2"]).stdout,
        "attachments of which nothing was missing: 0\n"
    );

    // What is in the way of one attachment is not in the way of the others.
    lab.add("foreign", &json!([mapping("tcp", 8085, 80)]));
    lab.add("last", &json!([mapping("tcp", 8086, 80)]));
    lab.node
        .sh("ip -n foreign link set dev eth0 address 02:00:00:00:00:66; nft flush ruleset");
    let restored = lab.restore(&[]);
    assert!(!restored.ok, "{restored:?}");
    assert!(
        restored
            .stderr
            .contains("/run/netns/foreign: eth0 in its namespace has"),
        "{restored:?}"
    );
    assert!(
        restored.stdout.contains("/run/netns/last: restored ("),
        "{restored:?}"
    );
    assert!(!lab.rules().contains("8085"));
}

#[test]
fn whatever_runtime_and_version_made_it_is_restored() {
    let lab = Lab::new("nftables");
    lab.configure(&json!({"isDefaultGateway": true}), &json!({}));
    let file = lab.conf().join("10-net1.conflist");
    let list = fs::read_to_string(&file).unwrap();
    for version in ["0.2.0", "0.3.1", "0.4.0", "1.0.0"] {
        let name = version.replace('.', "-");
        fs::write(&file, list.replace("1.1.0", version)).unwrap();
        lab.add(&name, &json!([mapping("tcp", 8081, 80)]));
        let before = lab.tables();
        lab.node.sh("nft flush ruleset");
        let restored = lab.restore(&[]);
        assert!(restored.ok, "{version}: {restored:?}");
        assert_eq!(lab.tables(), before, "{version}");
        lab.cnitool("del", &name, &json!([])).silent();
        lab.node.sh("nft flush ruleset");
    }
    // What podman and containerd cached for a file with a single plugin.
    fs::write(&file, &list).unwrap();
    lab.add("single", &json!([]));
    let before = lab.tables();
    lab.change_cached("single", |entry| {
        let list: Value = serde_json::from_str(&list).unwrap();
        let mut plugin = list["plugins"][0].clone();
        plugin["name"] = "net1".into();
        plugin["cniVersion"] = "1.1.0".into();
        let encoded = lab.node.sh(&format!("echo '{plugin}' | base64 -w0"));
        entry["config"] = encoded.into();
    });
    lab.node.sh("nft flush ruleset");
    assert!(lab.restore(&[]).ok);
    assert_eq!(lab.tables(), before);
}

#[test]
fn rules_survive_what_is_flushed_beside_them() {
    on_every_backend(|mut lab| {
        let backend = lab.backend;
        let mappings = json!([mapping("tcp", 8081, 80)]);
        lab.add("c1", &mappings);
        lab.serve("c1", "tcp", 80, "c1");
        let survives = |flush: &str| {
            lab.node.sh(flush);
            let checked = lab.cnitool("check", "c1", &mappings);
            let reached = lab.call("ext", "tcp", "192.0.2.1", 8081).starts_with("c1 ");
            assert_eq!(checked.ok, reached, "{backend}: {flush}: {checked:?}");
            reached
        };
        for filter in [
            "iptables -F; iptables -X; ip6tables -F",
            "iptables-legacy -F; iptables-legacy -X",
            "nft 'add table ip filter; flush table ip filter'",
            "nft 'add table inet firewalld; delete table inet firewalld'",
        ] {
            assert!(survives(filter), "{backend}: {filter}");
        }
        // The rules of the iptables backend are in tables that belong to everybody.
        let nat = match backend {
            "iptables-legacy" => "iptables-legacy -t nat -F; iptables-legacy -t nat -X",
            _ => {
                "nft 'add table ip nat; flush table ip nat'; iptables -t nat -F; iptables -t nat -X"
            }
        };
        assert_eq!(survives(nat), backend == "nftables", "{backend}");
        assert!(lab.restore(&[]).ok);
        assert!(survives("true"), "{backend}");
    });
}
