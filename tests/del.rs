//! DEL with little: what is the container's goes by its owner, whatever the runtime still
//! knows of the configuration.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot do its work says so by panicking"
)]

use std::fs;

use serde_json::{Value, json};

mod common;

use common::{BACKENDS, Node, tools, with};

/// What a call of DEL lacks.
const VARIANTS: [&str; 7] = [
    "nothing",
    "prevResult",
    "netns",
    "netns, dangling",
    "runtimeConfig",
    "all but name and type",
    "all but name and type, netns",
];

/// What flannel's daemon has written.
const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.9.0.0/16
FLANNEL_SUBNET=10.9.0.1/24
FLANNEL_IPV6_NETWORK=fd00:9::/48
FLANNEL_IPV6_SUBNET=fd00:9::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=false
";

/// Everything on the node that a container could have left.
fn traces(node: &Node) -> String {
    let rules = node.sh(
        "{ nft list ruleset 2>/dev/null; iptables-legacy-save; ip6tables-legacy-save; } | grep -v '^#' | \
         sed 's/\\[[0-9]*:[0-9]*\\]//; s/counter packets [0-9]* bytes [0-9]*/counter/'",
    );
    let files = node.sh("find /var/lib/cni /run/cni -type f 2>/dev/null | sort || :");
    // Of the range only.
    let files: Vec<&str> = files
        .lines()
        .filter(|file| !file.contains("last_reserved_ip"))
        .collect();
    format!("{rules}\n{}\n{}", node.links().join("\n"), files.join("\n"))
}

/// A plugin's configuration without what DEL lacks in `variant`.
fn config(plugin: &Value, result: &Value, variant: &str) -> Value {
    let base = json!({"cniVersion": "1.1.0", "name": "net1", "type": plugin["type"]});
    let mut config = with(base, plugin.clone());
    if !result.is_null() {
        config["prevResult"] = result.clone();
    }
    let keys: &[&str] = match variant {
        "prevResult" => &["prevResult"],
        "runtimeConfig" => &["runtimeConfig"],
        _ if variant.starts_with("all but") => {
            return json!({"cniVersion": "1.1.0", "name": "net1", "type": plugin["type"]});
        }
        _ => &[],
    };
    for key in keys {
        config.as_object_mut().unwrap().remove(*key);
    }
    config
}

/// Adds a container with `chain` and removes it with what `variant` leaves of the
/// configuration; nothing may be left that was not there before.
fn removed_with_little(backend: &'static str, chain: &[Value]) {
    let node = Node::new();
    let path = tools(&node, "tools", backend);
    fs::write("/run/subnet.env", SUBNET_ENV).unwrap();
    let mut before = None;
    for variant in VARIANTS {
        let netns = node.netns("c1");
        let call = |plugin: &Value, netns: &str| {
            let name = plugin["type"].as_str().unwrap();
            let path = format!("{path}:/usr/bin:/bin");
            node.plugin(name).netns(netns).env("PATH", &path)
        };
        let mut result = Value::Null;
        let mut results = Vec::new();
        for plugin in chain {
            result = call(plugin, &netns)
                .run("ADD", &config(plugin, &result, ""))
                .json();
            results.push(result.clone());
        }
        let made = traces(&node);
        assert!(before.as_ref() != Some(&made));
        let netns = if variant.contains("netns") {
            node.sh("ip netns del c1");
            if variant.contains("dangling") {
                netns.as_str()
            } else {
                ""
            }
        } else {
            netns.as_str()
        };
        for plugin in chain.iter().rev() {
            let config = config(plugin, &result, variant);
            for _ in 0..2 {
                call(plugin, netns).run("DEL", &config).silent();
            }
        }
        let what = format!("{backend}, {}, without {variant}", chain[0]["type"]);
        if !netns.is_empty() && !variant.contains("netns") {
            assert!(!node.succeeds("ip -n c1 link show eth0"), "{what}");
            node.sh("ip netns del c1");
        }
        // What containers share stays, from the first on.
        let left = traces(&node);
        for trace in ["10.9.0.", "fd00:9:", "veth", "bwp", "c1", "8080"] {
            assert!(!left.contains(trace), "{what}: {trace}: {left}");
        }
        assert_eq!(&left, before.get_or_insert_with(|| left.clone()), "{what}");
    }
}

/// Plugins behind the one that makes the interface, on a backend.
fn behind(backend: &str, word: &str) -> Vec<Value> {
    vec![
        json!({"type": "bandwidth", "runtimeConfig": {"bandwidth": {
            "ingressRate": 8_000_000, "ingressBurst": 80_000, "egressRate": 8_000_000, "egressBurst": 80_000}}}),
        json!({"type": "tuning", "mtu": 1400, "sysctl": {"net.core.somaxconn": "77"}}),
        json!({"type": "firewall", "backend": if backend == "nftables" { "nftables" } else { "iptables" }}),
        json!({"type": "portmap", "backend": word, "runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}}),
    ]
}

fn ipam() -> Value {
    json!({"type": "host-local",
           "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]})
}

fn on_every_backend(first: fn(&str) -> Value) {
    for backend in BACKENDS {
        std::thread::spawn(move || {
            let word = backend.split('-').next().unwrap();
            let mut chain = vec![first(word)];
            chain.extend(behind(backend, word));
            removed_with_little(backend, &chain);
        })
        .join()
        .unwrap();
    }
}

#[test]
fn a_bridge_and_all_behind_it() {
    on_every_backend(|word| {
        json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
               "ipMasqBackend": word, "macspoofchk": true, "hairpinMode": true, "ipam": ipam()})
    });
}

#[test]
fn a_ptp_and_all_behind_it() {
    on_every_backend(
        |word| json!({"type": "ptp", "ipMasq": true, "ipMasqBackend": word, "ipam": ipam()}),
    );
}

#[test]
fn a_flannel_and_all_behind_it() {
    on_every_backend(|word| {
        json!({"type": "flannel", "subnetFile": "/run/subnet.env",
               "delegate": {"bridge": "cni0", "ipMasqBackend": word, "hairpinMode": true, "macspoofchk": true}})
    });
}

/// What multus sends when the pod is gone from the API.
#[test]
fn as_multus_sends_it() {
    for backend in BACKENDS {
        std::thread::spawn(move || {
            let node = Node::new();
            let path = tools(&node, "tools", backend);
            let word = backend.split('-').next().unwrap();
            let netns = node.netns("c1");
            let call = node.plugin("bridge").netns(&netns).env("PATH", &path);
            let full = json!({"cniVersion": "1.1.0", "name": "net1", "type": "bridge", "bridge": "cni0",
                "ipMasq": true, "ipMasqBackend": word, "macspoofchk": true, "ipam": ipam()});
            call.run("ADD", &full).json();
            let before = traces(&node);
            assert!(before.contains("10.9.0.2") && before.contains("eth0-mac"), "{before}");
            let little = json!({"name": "net1", "type": "bridge", "ipam": {"type": "host-local"}});
            call.run("DEL", &little).silent();
            let left = traces(&node);
            for trace in ["10.9.0.", "fd00:9:", "eth0", "veth"] {
                assert!(!left.contains(trace), "{backend}: {trace}: {left}");
            }
        })
        .join()
        .unwrap();
    }
}

/// Nothing is run to find out that a container has no rules.
#[test]
fn a_container_without_rules_costs_no_process() {
    for backend in ["nftables", "iptables-nft"] {
        std::thread::spawn(move || {
            let node = Node::new();
            let path = tools(&node, "tools", backend);
            let word = backend.split('-').next().unwrap();
            let config = |masquerade: bool| {
                json!({"cniVersion": "1.1.0", "name": "net1", "type": "bridge", "bridge": "cni0",
                       "ipMasq": masquerade, "ipMasqBackend": word, "ipam": ipam()})
            };
            // Somebody else has some.
            let other = node.netns("c2");
            let call = node.plugin("bridge").env("PATH", &path);
            call.clone().id("c2").netns(&other).run("ADD", &config(true)).json();
            let netns = node.netns("c1");
            let call = call.netns(&netns);
            call.run("ADD", &config(false)).json();
            let file = node.dir.path().join("config");
            fs::write(&file, config(false).to_string()).unwrap();
            let (bin, trace) = (node.bin.display(), node.dir.path().join("trace"));
            node.sh(&format!(
                "CNI_COMMAND=DEL CNI_CONTAINERID=c1 CNI_IFNAME=eth0 CNI_NETNS={netns} CNI_PATH={bin} \
                 /usr/bin/strace -f -e trace=execve -o {} env PATH={path} {bin}/bridge <{}",
                trace.display(),
                file.display()
            ));
            let started = fs::read_to_string(trace).unwrap();
            let programs = started.matches(" = 0\n").count();
            // `env`, and the plugin.
            assert!(started.matches("execve(").count() >= 2, "{started}");
            assert!(!started.contains("tables") && programs <= 3, "{backend}: {started}");
            let left = traces(&node);
            assert!(left.contains("10.9.0.2") && !left.contains("10.9.0.3"), "{left}");
        })
        .join()
        .unwrap();
    }
}
