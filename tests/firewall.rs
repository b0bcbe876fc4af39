//! The firewall plugin on nodes that drop what they do not know: the built binary, and
//! that of the reference beside it, judged by packets that arrive and by the rulesets
//! that both leave.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test that cannot do its work says so by panicking; doors are for the product"
)]

mod common;

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{BACKENDS, Call, Node, Output, REFERENCE, Servers, run, tools};
use serde_json::{Value, json};

/// A node whose packet filter drops what it does not know, with a machine `ext` behind it.
struct Lab {
    node: Node,
    backend: &'static str,
    /// Where the backend's programs are found: nowhere, for nftables.
    path: String,
    servers: Servers,
}

impl Lab {
    fn new(backend: &'static str) -> Self {
        let node = Node::new();
        let path = tools(&node, "tools", backend);
        node.sh(
            "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
        );
        node.machine("fd00:e");
        if backend == "nftables" {
            node.sh(
                "nft add table inet filter && \
                 nft 'add chain inet filter forward { type filter hook forward priority 0; policy drop; }'",
            );
        } else {
            node.sh(&format!(
                "{path}/iptables -P FORWARD DROP && {path}/ip6tables -P FORWARD DROP"
            ));
        }
        Self {
            node,
            backend,
            path,
            servers: Servers::default(),
        }
    }

    /// The backend, as configurations call it.
    fn word(&self) -> &'static str {
        self.backend.split('-').next().unwrap()
    }

    /// The network on bridge `brN`: its bridge, and its firewall.
    fn network(&self, n: u8, policy: &str) -> [Value; 2] {
        let name = format!("net{n}");
        [
            json!({"cniVersion": "1.0.0", "name": name, "type": "bridge", "bridge": format!("br{n}"),
                   "isDefaultGateway": true,
                   "ipam": {"type": "host-local", "ranges": [
                       [{"subnet": format!("10.{n}.0.0/24")}], [{"subnet": format!("fd00:{n}::/64")}]]}}),
            json!({"cniVersion": "1.0.0", "name": name, "type": "firewall",
                   "backend": self.word(), "ingressPolicy": policy}),
        ]
    }

    /// A call by our plugins, or the reference's.
    fn call(&self, bin: &Path, plugin: &Value, container: &str) -> Call {
        self.node
            .plugin("")
            .executable(bin.join(plugin["type"].as_str().unwrap()))
            .env("CNI_PATH", bin.to_str().unwrap())
            .env("PATH", &self.path)
            .id(container)
            .netns(&format!("/run/netns/{container}"))
    }

    /// ADD by the plugins in `bin`, one after the other.
    fn add(&self, bin: &Path, chain: &[Value], container: &str) -> Value {
        let mut result = Value::Null;
        for plugin in chain {
            let plugin = after(plugin, &result);
            result = self
                .call(bin, &plugin, container)
                .run("ADD", &plugin)
                .json();
        }
        result
    }

    fn check(&self, bin: &Path, chain: &[Value], container: &str, result: &Value) {
        for plugin in chain {
            let plugin = after(plugin, result);
            self.call(bin, &plugin, container)
                .run("CHECK", &plugin)
                .silent();
        }
    }

    fn del(&self, bin: &Path, chain: &[Value], container: &str, result: &Value) {
        for plugin in chain.iter().rev() {
            let plugin = after(plugin, result);
            self.call(bin, &plugin, container)
                .run("DEL", &plugin)
                .silent();
        }
    }

    /// A container with a server behind our plugins.
    fn container(&mut self, name: &str, chain: &[Value]) -> Value {
        self.node.netns(name);
        let result = self.add(&self.node.bin, chain, name);
        self.serve(name);
        result
    }

    /// Answers `hi` on TCP port 80 of a namespace, over IPv4 and IPv6.
    fn serve(&mut self, netns: &str) {
        let server = Command::new("ip")
            .args(["netns", "exec", netns, "socat"])
            // Callers have nothing to say: half a second after their end it would stop.
            .args([
                "-t10",
                "TCP6-LISTEN:80,ipv6only=0,fork,reuseaddr,backlog=64",
                "SYSTEM:echo hi",
            ])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.servers.0.push(server);
        self.node.sh(&format!(
            "until ip netns exec {netns} ss -Hltn | grep -q ':80 '; do sleep 0.01; done"
        ));
    }

    /// Who of `pairs` (from, to, addresses) gets through, by ping and TCP over both
    /// families, all tried at once; `None` where these differ. For what is not to come we do not wait
    /// long.
    fn reach(
        &self,
        pairs: &[(&str, &str, [String; 2])],
        blocked: &[&str],
    ) -> Vec<(String, Option<bool>)> {
        std::thread::scope(|scope| {
            let probes: Vec<_> = pairs
                .iter()
                .map(|(from, to, addresses)| {
                    let enter = if from.is_empty() {
                        String::new()
                    } else {
                        format!("ip netns exec {from} ")
                    };
                    let name = format!("{from}>{to}");
                    let patience = if blocked.contains(&name.as_str()) { 0.5 } else { 10.0 };
                    let tries: Vec<_> = addresses
                        .iter()
                        .flat_map(|address| {
                            let wrapped = if address.contains(':') {
                                format!("TCP6:[{address}]")
                            } else {
                                format!("TCP4:{address}")
                            };
                            [
                                format!("{enter}ping -n -c 1 -W {patience} {address}"),
                                format!("{enter}socat -t{patience} -T{patience} {wrapped}:80,connect-timeout={patience} - </dev/null | grep -q hi"),
                            ]
                        })
                        .map(|command| scope.spawn(move || self.node.succeeds(&command)))
                        .collect();
                    (name, tries)
                })
                .collect();
            probes
                .into_iter()
                .map(|(name, tries)| {
                    let came = tries.into_iter().map(|probe| probe.join().unwrap());
                    let came: Vec<bool> = came.collect();
                    let agreed = came.iter().all(|each| *each == came[0]);
                    (name, agreed.then_some(came[0]))
                })
                .collect()
        })
    }

    /// Every rule of either kind on the node: no counters, no dates.
    fn rules(&self) -> String {
        self.node.sh(
            "{ nft list ruleset 2>/dev/null; iptables-legacy-save; ip6tables-legacy-save; } | \
             grep -v '^#' | sed 's/\\[[0-9]*:[0-9]*\\]//; s/counter packets [0-9]* bytes [0-9]*/counter/'",
        )
    }

    /// The table filter of both families, as the backend's tools print it.
    fn saved(&self) -> String {
        let text = self.node.sh(&format!(
            "{path}/iptables-save -t filter; {path}/ip6tables-save -t filter",
            path = self.path
        ));
        let text = text.lines().filter(|line| !line.starts_with('#'));
        let text = text.map(|line| line.split(" [").next().unwrap_or_default());
        text.collect::<Vec<_>>().join("\n")
    }
}

/// A plugin's configuration, with what came before it.
fn after(plugin: &Value, result: &Value) -> Value {
    let mut plugin = plugin.clone();
    if !result.is_null() {
        plugin["prevResult"] = result.clone();
    }
    plugin
}

/// The first address of each family in a result, without prefix.
fn addresses(result: &Value) -> [String; 2] {
    [0, 1].map(|n| {
        let address = result["ips"][n]["address"].as_str().unwrap();
        address.split('/').next().unwrap().to_owned()
    })
}

/// Runs a test on a node of its own for each backend.
fn on_every_backend(test: fn(Lab)) {
    for backend in BACKENDS {
        on(backend, test);
    }
}

fn on(backend: &'static str, test: impl FnOnce(Lab) + Send + 'static) {
    std::thread::spawn(move || test(Lab::new(backend)))
        .join()
        .unwrap();
}

/// Two containers on a first bridge, one each on a second and a third; the third is open.
/// All reach each other, except the `blocked` pairs.
fn assert_blocked(mut lab: Lab, policy: &str, blocked: &[&str]) {
    let [one, two, open] =
        [(1, policy), (2, policy), (3, "open")].map(|(n, policy)| lab.network(n, policy));
    let c1 = addresses(&lab.container("c1", &one));
    let c2 = addresses(&lab.container("c2", &one));
    let c3 = addresses(&lab.container("c3", &two));
    let c4 = addresses(&lab.container("c4", &open));
    lab.serve("ext");
    let ext = ["192.0.2.9".to_owned(), "fd00:e::9".to_owned()];
    let pairs = [
        ("c1", "c2", c2),
        ("c1", "c3", c3),
        ("c3", "c1", c1.clone()),
        ("c1", "c4", c4),
        ("c4", "c1", c1.clone()),
        ("c1", "ext", ext),
        ("ext", "c1", c1.clone()),
        ("", "c1", c1),
    ];
    let expected = pairs.each_ref().map(|(from, to, _)| {
        let name = format!("{from}>{to}");
        let passes = !blocked.contains(&name.as_str());
        (name, Some(passes))
    });
    assert_eq!(lab.reach(&pairs, blocked), expected, "{}", lab.backend);
}

/// What containers send passes, and the answers; what others send to them does not.
#[test]
fn open_containers_reach_everybody() {
    on_every_backend(|lab| {
        assert_blocked(lab, "open", &["ext>c1"]);
    });
}

#[test]
fn same_bridge_keeps_isolated_bridges_apart() {
    on_every_backend(|lab| {
        assert_blocked(lab, "same-bridge", &["c1>c3", "c3>c1", "ext>c1"]);
    });
}

/// Frames that stay on a bridge pass the packet filter only with `br_netfilter`: without it
/// the rule for them is all there is to see.
#[test]
fn isolated_containers_reach_nobody_on_such_bridges() {
    on_every_backend(|lab| {
        let filters_frames = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists();
        if filters_frames {
            lab.node
                .sh("for f in /proc/sys/net/bridge/bridge-nf-call-ip*tables; do echo 1 > $f; done");
        } else {
            eprintln!("not tried: frames on one bridge, for which this kernel lacks br_netfilter");
        }
        let rule = match lab.backend {
            "nftables" => "iifname \"br1\" oifname \"br1\" drop",
            _ => {
                "-A CNI-ISOLATION-STAGE-1 -i br1 -o br1 -m comment --comment \
                  \"CNI firewall plugin rules (ingressPolicy: isolated)\" -j DROP"
            }
        };
        lab.node.netns("c0");
        lab.add(&lab.node.bin, &lab.network(1, "isolated"), "c0");
        let rules = match lab.backend {
            "nftables" => lab.rules(),
            _ => lab.saved(),
        };
        assert!(rules.contains(rule), "{rules}");
        let mut blocked = vec!["c1>c3", "c3>c1", "ext>c1"];
        blocked.extend(filters_frames.then_some("c1>c2"));
        assert_blocked(lab, "isolated", &blocked);
    });
}

/// A host without `ip6tables` can have IPv4 containers.
#[test]
fn a_family_that_nobody_uses_needs_no_tools() {
    for backend in ["iptables-nft", "iptables-legacy"] {
        on(backend, |lab| {
            lab.node.sh(&format!("rm {}/ip6tables*", lab.path));
            let mut chain = lab.network(1, "same-bridge");
            chain[0]["ipam"]["ranges"].as_array_mut().unwrap().pop();
            let mut before = String::new();
            for name in ["c0", "c1"] {
                lab.node.netns(name);
                let result = lab.add(&lab.node.bin, &chain, name);
                lab.check(&lab.node.bin, &chain, name, &result);
                assert!(lab.rules().contains("10.1.0."), "{}", lab.rules());
                lab.del(&lab.node.bin, &chain, name, &result);
                if name == "c1" {
                    assert_eq!(lab.rules(), before);
                }
                before = lab.rules();
                assert!(!before.contains("10.1.0."), "{before}");
            }
        });
    }
}

/// What an administrator drops is dropped before containers pass.
#[test]
fn the_administrators_rules_come_first() {
    on_every_backend(|mut lab| {
        let [bridge, mut firewall] = lab.network(1, "open");
        firewall["iptablesAdminChainName"] = json!("MINE");
        lab.container("c1", &[bridge.clone(), firewall.clone()]);
        let c2 = addresses(&lab.container("c2", &lab.network(2, "open")));
        lab.serve("ext");
        if lab.backend == "nftables" {
            lab.node
                .sh("nft add rule inet filter MINE ip daddr 192.0.2.9 drop && \
                 nft add rule inet filter MINE ip6 daddr fd00:e::9 drop");
        } else {
            lab.node.sh(&format!(
                "{0}/iptables -A MINE -d 192.0.2.9 -j DROP && {0}/ip6tables -A MINE -d fd00:e::9 -j DROP",
                lab.path
            ));
        }
        let ext = ["192.0.2.9".to_owned(), "fd00:e::9".to_owned()];
        let pairs = [("c1", "ext", ext), ("c1", "c2", c2)];
        let expected = [
            ("c1>ext".to_owned(), Some(false)),
            ("c1>c2".to_owned(), Some(true)),
        ];
        assert_eq!(lab.reach(&pairs, &["c1>ext"]), expected, "{}", lab.backend);
        // They outlive the last container.
        let bare = after(&firewall, &Value::Null);
        lab.call(&lab.node.bin, &bare, "c1")
            .run("DEL", &bare)
            .silent();
        assert!(lab.rules().contains("MINE"), "{}", lab.rules());
    });
}

/// An `accept` of our own would not help where another table drops or rejects: there we
/// go, and are gone with the last container.
#[test]
fn foreign_tables_are_opened_and_left_as_they_were() {
    on("nftables", |mut lab| {
        lab.node.sh(
            "nft add table ip site && \
             nft 'add chain ip site f { type filter hook forward priority 5; policy accept; }' && \
             nft add rule ip site f ct mark 7 accept && nft add rule ip site f counter drop && \
             nft add table inet other && \
             nft 'add chain inet other f { type filter hook forward priority 10; policy accept; }' && \
             nft 'add chain inet other g { type filter hook forward priority 11; policy drop; }' && \
             nft add rule inet other f tcp dport 81 drop && \
             nft add rule inet other f reject with icmpx admin-prohibited",
        );
        let before = lab.rules();
        let chain = lab.network(1, "open");
        lab.serve("ext");
        let first = lab.container("c1", &chain);
        let second = lab.container("c2", &chain);
        let ext = ["192.0.2.9".to_owned(), "fd00:e::9".to_owned()];
        let pairs = [("c1", "ext", ext.clone()), ("ext", "c1", addresses(&first))];
        let expected = [
            ("c1>ext".to_owned(), Some(true)),
            ("ext>c1".to_owned(), Some(false)),
        ];
        assert_eq!(lab.reach(&pairs, &["ext>c1"]), expected);
        let bin = lab.node.bin.clone();
        lab.check(&bin, &chain, "c1", &first);
        // What is missing is told once, although a table has two such chains; and an address
        // that is another's counts for missing.
        lab.node.sh("nft flush chain inet other cni_forward && \
             nft delete element ip site cni_addresses_v4 { 10.1.0.2 } && \
             nft 'add element ip site cni_addresses_v4 { 10.1.0.2 comment \"mine\" }'");
        let firewall = after(&chain[1], &first);
        let call = lab.call(&bin, &firewall, "c1");
        let (_, message, details) = call.run("CHECK", &firewall).error();
        let told = format!("{message}\n{details}");
        let count = |part: &str| told.matches(part).count();
        assert_eq!(count("add rule inet other cni_forward"), 5, "{told}");
        assert_eq!(
            count("create element ip site cni_addresses_v4"),
            1,
            "{told}"
        );
        call.run("ADD", &firewall).json();
        lab.check(&bin, &chain, "c1", &first);
        lab.del(&bin, &chain, "c1", &first);
        let pairs = [("c2", "ext", ext)];
        assert_eq!(lab.reach(&pairs, &[]), [("c2>ext".to_owned(), Some(true))]);
        lab.del(&bin, &chain, "c2", &second);
        assert_eq!(lab.rules(), before);
    });
}

/// A table that a program keeps for itself is told of.
#[test]
fn a_table_that_cannot_be_changed_is_told_of() {
    on("nftables", |lab| {
        lab.node.netns("c1");
        let mut keeper = Command::new("nft")
            .arg("-i")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let commands = "add table inet kept { flags owner; }
            add chain inet kept f { type filter hook forward priority 0; policy drop; }\n";
        std::io::Write::write_all(keeper.stdin.as_mut().unwrap(), commands.as_bytes()).unwrap();
        lab.node
            .sh("until nft list tables | grep -q kept; do sleep 0.01; done");
        lab.node
            .sh("until nft list chain inet kept f >/dev/null 2>&1; do sleep 0.01; done");
        let [bridge, firewall_config] = lab.network(1, "open");
        let result = lab.add(&lab.node.bin, &[bridge], "c1");
        let config = after(&firewall_config, &result);
        let added = firewall(&lab, "ADD", &config);
        assert!(added.ok, "{added:?}");
        assert!(
            added.stderr.contains("chain inet kept f drops"),
            "{added:?}"
        );
        firewall(&lab, "DEL", &config).silent();
        drop(keeper.stdin.take());
        keeper.wait().unwrap();
    });
}

/// The rules are the reference's, byte for byte. (That version knows no `isolated`, and
/// writes another word into some comments.)
#[test]
fn the_reference_and_we_write_the_same_rules() {
    for backend in ["iptables-nft", "iptables-legacy"] {
        for policy in ["open", "same-bridge"] {
            let saved = [true, false].map(|ours| {
                std::thread::spawn(move || {
                    let lab = Lab::new(backend);
                    lab.node.netns("c1");
                    lab.node.netns("c2");
                    let [bridge, firewall] = lab.network(1, policy);
                    let bin = if ours {
                        lab.node.bin.as_path()
                    } else {
                        Path::new(REFERENCE)
                    };
                    for container in ["c1", "c2"] {
                        let result =
                            lab.add(&lab.node.bin, std::slice::from_ref(&bridge), container);
                        let firewall = after(&firewall, &result);
                        lab.call(bin, &firewall, container)
                            .run("ADD", &firewall)
                            .json();
                    }
                    lab.saved()
                })
                .join()
                .unwrap()
            });
            let [ours, theirs] =
                saved.map(|text| text.replace("same-bridge|isolated", "same-bridge"));
            assert_eq!(ours, theirs, "{backend} {policy}");
            assert!(
                ours.contains("-A CNI-FORWARD -s fd00:1::3/128 -j ACCEPT"),
                "{ours}"
            );
        }
    }
}

/// Bridge, portmap, firewall and tuning, as podman has them.
fn podman(lab: &Lab) -> Vec<Value> {
    let [mut bridge, firewall] = lab.network(1, "same-bridge");
    bridge["ipMasq"] = json!(true);
    vec![
        bridge,
        json!({"cniVersion": "1.0.0", "name": "net1", "type": "portmap",
               "runtimeConfig": {"portMappings": [
                   {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}}),
        firewall,
        json!({"cniVersion": "1.0.0", "name": "net1", "type": "tuning"}),
    ]
}

/// ADD by one implementation, CHECK and DEL by the other, with a container of the other
/// kind that comes and goes in between.
#[test]
fn either_takes_over_what_the_other_made() {
    for backend in ["iptables-nft", "iptables-legacy"] {
        on(backend, move |lab| {
            let ours = lab.node.bin.clone();
            let theirs = Path::new(REFERENCE).to_owned();
            let chain = podman(&lab);
            for name in ["c0", "c1", "c2"] {
                lab.node.netns(name);
            }
            // What all share is there, by either.
            for bin in [&ours, &theirs] {
                let result = lab.add(bin, &chain, "c0");
                lab.del(bin, &chain, "c0", &result);
            }
            // Who needs route_localnet is ours alone to know: what stays of a container that
            // the reference deletes goes with the next GC.
            let rules = || {
                let text = lab.rules();
                let lines = text.lines().filter(|line| !line.contains("elements = {"));
                lines.map(str::to_owned).collect::<Vec<_>>()
            };
            let before = rules();
            for (adds, takes_over) in [(&ours, &theirs), (&theirs, &ours)] {
                let name = |bin| if bin == &ours { "cnibox" } else { "reference" };
                let first = lab.add(adds, &chain, "c1");
                let second = lab.add(takes_over, &without_ports(&chain), "c2");
                check(&lab, takes_over, &chain, "c1", &first);
                check(&lab, adds, &without_ports(&chain), "c2", &second);
                lab.del(takes_over, &chain, "c1", &first);
                check(&lab, takes_over, &without_ports(&chain), "c2", &second);
                lab.del(adds, &without_ports(&chain), "c2", &second);
                assert_eq!(rules(), before, "{backend}: ADD {}", adds.display());
                collect(&lab, &chain[1]);
                let left = lab.rules();
                assert!(!left.contains("c1"), "{left}");
                eprintln!(
                    "| {backend} | {} → {} | bridge, portmap, firewall, tuning; v4 and v6; {} comes and \
                     goes meanwhile | ADD, CHECK, DEL ok; nothing left |",
                    name(adds),
                    name(takes_over),
                    name(takes_over),
                );
            }
        });
    }
}

/// GC by our `plugin`: no attachment is valid.
fn collect(lab: &Lab, plugin: &Value) {
    let mut gc = plugin.clone();
    gc["cniVersion"] = json!("1.1.0");
    gc["cni.dev/valid-attachments"] = json!([]);
    lab.call(&lab.node.bin, &gc, "c1").run("GC", &gc).silent();
}

/// The same chain without port mappings: both containers cannot have the same ones.
fn without_ports(chain: &[Value]) -> Vec<Value> {
    let plugins = chain.iter().filter(|plugin| plugin["type"] != "portmap");
    plugins.cloned().collect()
}

/// CHECK of each plugin. The reference's portmap does not find its own rules where there
/// are two families.
fn check(lab: &Lab, bin: &Path, chain: &[Value], container: &str, result: &Value) {
    let plugins = chain
        .iter()
        .filter(|plugin| bin != Path::new(REFERENCE) || plugin["type"] != "portmap");
    lab.check(
        bin,
        &plugins.cloned().collect::<Vec<_>>(),
        container,
        result,
    );
}

fn firewall(lab: &Lab, command: &str, config: &Value) -> Output {
    lab.call(&lab.node.bin, config, "c1").run(command, config)
}

/// Whatever the runtime has lost, the rules go; and what others own stays.
#[test]
fn del_needs_neither_namespace_nor_result() {
    on_every_backend(|lab| {
        let [bridge, config] = lab.network(1, "open");
        for name in ["c0", "c1", "c2"] {
            lab.node.netns(name);
        }
        lab.add(&lab.node.bin, &[bridge.clone(), config.clone()], "c0");
        let before = lab.rules();
        let result = lab.add(&lab.node.bin, std::slice::from_ref(&bridge), "c1");
        let config = after(&config, &result);
        let mut bare = config.clone();
        bare.as_object_mut().unwrap().remove("prevResult");

        firewall(&lab, "ADD", &config).json();
        let added = lab.rules();
        assert_ne!(added, before);
        // ADD again changes nothing, and neither does CHECK.
        firewall(&lab, "ADD", &config).json();
        firewall(&lab, "CHECK", &config).silent();
        assert_eq!(lab.rules(), added);
        let gone = lab.call(&lab.node.bin, &bare, "c1").netns("");
        gone.run("DEL", &bare).silent();
        assert_eq!(lab.rules(), before);
        assert_eq!(firewall(&lab, "CHECK", &config).error().0, 999);
        assert_eq!(lab.rules(), before, "CHECK makes nothing");
        firewall(&lab, "DEL", &bare).silent();

        // A DEL that comes late: the address is another container's by now.
        firewall(&lab, "ADD", &config).json();
        firewall(&lab, "DEL", &config).silent();
        lab.call(&lab.node.bin, &config, "c2")
            .run("ADD", &config)
            .json();
        let others = lab.rules();
        firewall(&lab, "DEL", &config).silent();
        assert_eq!(lab.rules(), others);
        lab.call(&lab.node.bin, &config, "c2")
            .run("DEL", &config)
            .silent();
        assert_eq!(lab.rules(), before);
        assert_eq!(
            lab.node
                .sh("ls /run/cni | grep -c firewall-.*-10.1.0.3 || true")
                .trim(),
            "0"
        );
    });
}

/// An upgrade changed what "iptables" is, or somebody the configuration.
#[test]
fn rules_of_one_backend_go_where_another_comes_first() {
    for (added, later) in [
        ("iptables-legacy", "iptables-nft"),
        ("iptables-nft", "iptables-legacy"),
        ("iptables-legacy", "nftables"),
        ("iptables-nft", "nftables"),
        ("nftables", "iptables-nft"),
    ] {
        on(added, move |mut lab| {
            let chain = lab.network(1, "same-bridge");
            let container = |lab: &Lab, name: &str| {
                lab.node.netns(name);
                lab.add(&lab.node.bin, &chain, name)
            };
            container(&lab, "c0");
            let before = lab.rules();
            let result = container(&lab, "c1");
            assert_ne!(lab.rules(), before, "{added}");
            if later != "nftables" {
                // The other variant keeps a name of its own.
                lab.path = format!("{}:/usr/sbin", tools(&lab.node, "later", later));
            }
            lab.backend = later;
            lab.del(&lab.node.bin, &lab.network(1, "same-bridge"), "c1", &result);
            assert_eq!(lab.rules(), before, "{added}, then {later}");
        });
    }
}

#[test]
fn gc_removes_the_rules_of_the_dead_and_of_bridges_that_are_gone() {
    on_every_backend(|lab| {
        let [bridge, config] = lab.network(1, "isolated");
        lab.node.netns("c1");
        lab.node.netns("c2");
        let mut results = Vec::new();
        for name in ["c1", "c2"] {
            results.push(lab.add(&lab.node.bin, &[bridge.clone(), config.clone()], name));
        }
        let mut gc = config.clone();
        gc["cniVersion"] = json!("1.1.0");
        gc["cni.dev/valid-attachments"] = json!([{"containerID": "c2", "ifname": "eth0"}]);
        firewall(&lab, "GC", &gc).silent();
        let rules = lab.rules();
        assert!(
            !rules.contains("10.1.0.2") && rules.contains("10.1.0.3"),
            "{rules}"
        );
        let still = after(&config, &results[1]);
        lab.call(&lab.node.bin, &still, "c2")
            .run("CHECK", &still)
            .silent();
        gc["cni.dev/valid-attachments"] = json!([]);
        firewall(&lab, "GC", &gc).silent();
        let rules = lab.rules();
        assert!(
            !rules.contains("10.1.0.3") && rules.contains("br1"),
            "{rules}"
        );
        lab.node.sh("ip link del br1");
        firewall(&lab, "GC", &gc).silent();
        let rules = lab.rules();
        assert!(!rules.contains("br1"), "{rules}");
    });
}

/// CHECK says what a flush took along, and `cnibox restore` makes it again.
#[test]
fn restore_makes_them_again() {
    on_every_backend(|lab| {
        let conf = lab.node.dir.path().join("net.d");
        std::fs::create_dir(&conf).unwrap();
        let mut plugins = lab.network(1, "same-bridge");
        for plugin in &mut plugins {
            plugin.as_object_mut().unwrap().remove("name");
        }
        let list = json!({"cniVersion": "1.1.0", "name": "net1", "plugins": plugins});
        std::fs::write(conf.join("1.conflist"), list.to_string()).unwrap();
        lab.node.netns("c1");
        let tool = |args: &[&str]| {
            let mut command = Command::new(lab.node.bin.join("cnitool"));
            command.args(args).env("CNI_PATH", &lab.node.bin);
            command.env("NETCONFPATH", &conf).env("PATH", &lab.path);
            run(&mut command, "")
        };
        tool(&["add", "net1", "/run/netns/c1"]).json();
        let before = lab.rules();
        if lab.backend == "nftables" {
            lab.node
                .sh("nft delete table inet cni_firewall && nft flush chain inet filter forward");
        } else {
            lab.node.sh(&format!(
                "for t in iptables ip6tables; do {0}/$t -F; done",
                lab.path
            ));
        }
        let checked = tool(&["check", "net1", "/run/netns/c1"]);
        assert!(!checked.ok, "{checked:?}");
        let said = checked.stderr;
        assert!(
            said.contains("FORWARD") || said.contains("cni_forward"),
            "{said}"
        );
        let mut restore = Command::new(common::binary());
        restore
            .arg("restore")
            .env("PATH", &lab.path)
            .env("NETCONFPATH", &conf);
        let restored = run(&mut restore, "");
        assert!(restored.ok, "{restored:?}");
        tool(&["check", "net1", "/run/netns/c1"]).silent();
        assert_eq!(lab.rules(), before);
    });
}

#[test]
fn what_cannot_be_done_is_said() {
    let node = Node::new();
    let path = tools(&node, "tools", "iptables-nft");
    let call = node
        .plugin("firewall")
        .env("PATH", &path)
        .netns(&node.netns("c1"));
    let config = json!({"cniVersion": "1.0.0", "name": "n", "type": "firewall"});
    assert_eq!(call.run("ADD", &config).error().0, 7);
    let mut wrong = config.clone();
    wrong["ingressPolicy"] = json!("closed");
    let (code, _, details) = call.run("ADD", &wrong).error();
    assert_eq!(code, 7);
    assert!(
        details.starts_with("ingressPolicy: \"closed\" is none of"),
        "{details}"
    );
    // There is no bridge to keep apart.
    wrong["ingressPolicy"] = json!("same-bridge");
    wrong["prevResult"] = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}]});
    let (code, msg, _) = call.run("ADD", &wrong).error();
    assert_eq!(code, 7);
    assert!(msg.contains("bridge"), "{msg}");
    let mut status = config.clone();
    status["cniVersion"] = json!("1.1.0");
    call.run("STATUS", &status).silent();
    status["backend"] = json!("firewalld");
    assert_eq!(call.run("STATUS", &status).error().0, 50);
    status["backend"] = json!("iptables");
    let nowhere = call.clone().env("PATH", "/nonexistent");
    assert_eq!(nowhere.run("STATUS", &status).error().0, 50);
    assert_eq!(
        call.run(
            "ADD",
            &json!({"cniVersion": "0.3.1", "name": "n", "type": "firewall"})
        )
        .error()
        .0,
        1
    );
    assert!(node.succeeds("test -z \"$(nft list ruleset)\""));
}

/// A firewalld of the node's own, on a bus of its own.
struct Firewalld {
    /// Bus and firewalld.
    processes: [Child; 2],
    /// `DBUS_SYSTEM_BUS_ADDRESS`.
    bus: String,
}

impl Drop for Firewalld {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            drop(process.kill());
            drop(process.wait());
        }
    }
}

impl Firewalld {
    fn start(node: &Node) -> Self {
        let files = concat!(env!("CARGO_TARGET_TMPDIR"), "/firewalld");
        assert!(
            Path::new(files).exists(),
            "firewalld is needed: run `tests/firewalld.sh {files}`, as `make test` does"
        );
        for dir in ["usr", "etc"] {
            node.sh(&format!(
                "mkdir -p /run/over/{dir} /run/work/{dir} && mount -t overlay overlay \
                 -o lowerdir={files}/{dir}:/{dir},upperdir=/run/over/{dir},workdir=/run/work/{dir} /{dir}"
            ));
        }
        let bus = "unix:path=/run/bus".to_owned();
        let config = format!(
            "<busconfig><listen>{bus}</listen><auth>EXTERNAL</auth><policy context='default'>\
             <allow user='*'/><allow own='*'/><allow send_destination='*'/><allow eavesdrop='true'/></policy></busconfig>"
        );
        std::fs::write("/run/bus.conf", config).unwrap();
        let quiet = |program: &str| {
            let mut command = Command::new(program);
            command.env("DBUS_SYSTEM_BUS_ADDRESS", &bus);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let daemon = quiet("dbus-daemon")
            .args(["--nofork", "--config-file=/run/bus.conf"])
            .spawn()
            .unwrap();
        node.sh("until test -S /run/bus; do sleep 0.01; done");
        let firewalld = quiet("/usr/sbin/firewalld")
            .args(["--nofork", "--nopid"])
            .spawn()
            .unwrap();
        let started = Self {
            processes: [daemon, firewalld],
            bus,
        };
        node.sh(&format!(
            "export DBUS_SYSTEM_BUS_ADDRESS={}
             for try in $(seq 100); do
                 timeout 1 dbus-send --system --print-reply --dest=org.fedoraproject.FirewallD1 \
                     /org/fedoraproject/FirewallD1 org.fedoraproject.FirewallD1.getDefaultZone \
                     2>/dev/null && exit; sleep 0.1
             done; exit 1",
            started.bus
        ));
        started
    }
}

/// What firewalld answers to a method of its zones about 10.1.0.2: its name, and the words
/// before the address.
fn ask_zones(node: &Node, bus: &str, words: &str) -> String {
    let told = node.sh(&format!(
        "DBUS_SYSTEM_BUS_ADDRESS={bus} dbus-send --system --print-reply=literal \
         --dest=org.fedoraproject.FirewallD1 /org/fedoraproject/FirewallD1 \
         org.fedoraproject.FirewallD1.zone.{words} string:10.1.0.2/32"
    ));
    told.trim().to_owned()
}

/// What firewalld would reject passes while the container lives; by either implementation.
#[test]
#[expect(clippy::too_many_lines, reason = "one story")]
fn firewalld_is_told_where_it_runs() {
    let node = Node::new();
    let lab = Lab {
        backend: "iptables-nft",
        path: tools(&node, "tools", "iptables-nft"),
        node,
        servers: Servers::default(),
    };
    lab.node.sh(
        "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
         ip netns add c1",
    );
    lab.node.machine("fd00:e");
    let firewalld = Firewalld::start(&lab.node);
    let [bridge, mut config] = lab.network(1, "open");
    config.as_object_mut().unwrap().remove("backend");
    let result = lab.add(&lab.node.bin, std::slice::from_ref(&bridge), "c1");
    let config = after(&config, &result);
    let call = |bin: &Path, command: &str, config: &Value| {
        let call = lab.call(bin, config, "c1");
        call.env("DBUS_SYSTEM_BUS_ADDRESS", &firewalld.bus)
            .run(command, config)
    };
    // It rejects, and says so at once: what passes may take its time.
    let reaches = || {
        ["192.0.2.9", "fd00:e::9"].map(|address| {
            let ping = format!("ip netns exec c1 ping -n -c 1 -W 10 {address}");
            lab.node.succeeds(&ping)
        })
    };
    let ours = lab.node.bin.clone();
    let theirs = Path::new(REFERENCE).to_owned();
    let mut bare = config.clone();
    bare.as_object_mut().unwrap().remove("prevResult");
    assert_eq!(reaches(), [false; 2]);
    for (adds, deletes, last) in [
        (&ours, &theirs, &config),
        (&theirs, &ours, &config),
        (&ours, &ours, &bare),
    ] {
        call(adds, "ADD", &config).json();
        assert_eq!(reaches(), [true; 2]);
        call(&ours, "CHECK", &config).silent();
        call(&theirs, "CHECK", &config).silent();
        call(deletes, "DEL", last).silent();
        call(deletes, "DEL", last).silent();
        assert_eq!(reaches(), [false; 2]);
        // The reference is content with a false answer.
        let (code, _, details) = call(&ours, "CHECK", &config).error();
        assert_eq!(code, 999);
        assert!(
            details.contains("firewall-cmd --zone=trusted --add-source=10.1.0.2"),
            "{details}"
        );
    }
    let mut status = bare.clone();
    status["cniVersion"] = json!("1.1.0");
    status["backend"] = json!("firewalld");
    call(&ours, "STATUS", &status).silent();
    // A bus that comes back in a moment is waited for.
    lab.node.sh("mv /run/bus /run/aside");
    let back = ["-c", "sleep 0.3; mv /run/aside /run/bus"];
    let mut back = Command::new("sh").args(back).spawn().unwrap();
    call(&ours, "STATUS", &status).silent();
    back.wait().unwrap();
    lab.node.sh("mv /run/bus /run/aside");
    let (code, message, _) = call(&ours, "STATUS", &status).error();
    assert!(
        code == 50 && message.contains("firewalld"),
        "{code} {message}"
    );
    lab.node.sh("mv /run/aside /run/bus");
    // An address is in one zone only. DEL takes it out of that into which ADD has put it,
    // whatever the configuration says by then; and so does an ADD for another zone.
    let ask = |words: &str| ask_zones(&lab.node, &firewalld.bus, words);
    let zone = || ask("getZoneOfSource");
    let in_zone = |zone: &str| {
        let mut config = config.clone();
        config["firewalldZone"] = json!(zone);
        config
    };
    for name in ["trusted", "home", "home"] {
        call(&ours, "ADD", &in_zone(name)).json();
        call(&ours, "CHECK", &in_zone(name)).silent();
        assert_eq!(zone(), name);
    }
    call(&ours, "DEL", &bare).silent();
    assert_eq!(zone(), "");
    // Also where another one was refused meanwhile.
    call(&ours, "ADD", &in_zone("home")).json();
    let (_, msg, details) = call(&ours, "ADD", &in_zone("nowhere")).error();
    assert!(
        msg.starts_with("failed to add the address 10.1.0.2/32 to nowhere zone: INVALID_ZONE"),
        "{msg}"
    );
    assert!(details.contains("firewalld refuses"), "{details}");
    assert_eq!(zone(), "");
    // Somebody else's zone stays, and is told of.
    ask("addSource string:home");
    for command in ["ADD", "CHECK"] {
        let answer = call(&ours, command, &config);
        assert!(
            answer.ok
                && answer
                    .stderr
                    .contains("10.1.0.2 is in firewalld's zone home"),
            "{command}: {answer:?}"
        );
        assert_eq!(zone(), "home", "{command}");
    }
    for last in [&config, &bare] {
        call(&ours, "DEL", last).silent();
        assert_eq!(zone(), "home");
    }
    ask("removeSource string:home");
    assert!(!lab.node.succeeds("nft list ruleset | grep -q CNI-FORWARD"));
    // Without it there are rules.
    drop(firewalld);
    lab.call(&ours, &config, "c1").run("ADD", &config).json();
    assert!(lab.node.succeeds("nft list ruleset | grep -q CNI-FORWARD"));
}

/// A bus that answers nobody keeps nobody but its own caller waiting, and a container that
/// firewalld may never have heard of is removed without one.
#[test]
fn a_bus_that_does_not_answer_keeps_nobody_from_removing_containers() {
    on("nftables", |lab| {
        lab.node.netns("c1");
        let [_, config] = lab.network(1, "open");
        let mut config = after(
            &config,
            &json!({"cniVersion": "1.0.0", "interfaces": [],
                    "ips": [{"address": "10.1.0.2/16"}]}),
        );
        config.as_object_mut().unwrap().remove("backend");
        let call = lab.call(&lab.node.bin, &config, "c1");
        let bus = UnixListener::bind("/run/bus").unwrap();
        let with_bus = call
            .clone()
            .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/bus");
        // Runs DEL; `meanwhile`, the bus has been called and does not answer. Then it hangs up.
        let del = |config: &Value, meanwhile: &dyn Fn()| {
            std::thread::scope(|scope| {
                let slow = scope.spawn(|| with_bus.run("DEL", config));
                let caller = bus.accept().unwrap();
                meanwhile();
                drop(caller);
                slow.join().unwrap()
            })
        };
        let slow = del(&config, &|| {
            call.clone().id("c2").run("DEL", &config).silent();
        });
        slow.silent();
        assert!(slow.stderr.contains("look for firewalld"), "{slow:?}");
        // Who asks for firewalld wants to know.
        let mut asks = config.clone();
        asks["backend"] = json!("firewalld");
        let (_, message, _) = del(&asks, &|| {}).error();
        assert!(message.contains("log in to the D-Bus"), "{message}");
        // STATUS is asked every few seconds: it waits for 1 s, and not for 20.
        asks["cniVersion"] = json!("1.1.0");
        let (code, message, details) = with_bus.run("STATUS", &asks).error();
        let told = format!("{message}; {details}");
        assert!(code == 50 && told.contains("no answer in 1 s"), "{told}");
    });
}
