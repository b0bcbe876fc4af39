//! A node with a masqueraded dual-stack network with port mappings and tuning, and what
//! must hold on it whatever happened.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::common::{Call, Node, Output, tools};
use crate::table::ensure;

/// The port on which every container listens.
const SERVICE: u16 = 80;

/// Where addresses are recorded, in a directory for each network.
pub const LEASES: &str = "/var/lib/cni/networks";

/// An address of the node that is not the network's.
const OWN: &str = "192.0.2.1";

/// What the flannel daemon writes, for the same subnets.
const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.8.0.0/15\nFLANNEL_SUBNET=10.9.0.1/24\n\
    FLANNEL_IPV6_NETWORK=fd00::/16\nFLANNEL_IPV6_SUBNET=fd00:9::1/64\n\
    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";

/// One node, with the rules of one backend.
pub struct Lab {
    pub node: Node,
    backend: &'static str,
    path: String,
}

/// One container, attached or not: a namespace with a service in it.
#[derive(Debug, Clone)]
pub struct Container {
    pub name: String,
    /// The network it is for: net1, or net2 on the same bridge.
    pub network: &'static str,
    pub netns: String,
    /// The port of the host that leads to it.
    port: u16,
}

/// The plugins of the network, in the order of ADD.
pub const CHAIN: [&str; 3] = ["bridge", "portmap", "tuning"];

/// The plugins of a network that has `plugin`, in the order of ADD.
pub fn chain_with(plugin: &str) -> &'static [&'static str] {
    match plugin {
        "ptp" | "bandwidth" | "firewall" => &["ptp", "portmap", "bandwidth", "firewall"],
        "flannel" => &["flannel", "portmap"],
        "loopback" => &["bridge", "portmap", "loopback"],
        _ => &CHAIN,
    }
}

impl Lab {
    pub fn new(backend: &'static str) -> Self {
        let node = Node::new();
        // What firewall is to let through is dropped.
        node.sh(&format!(
            "ip addr add {OWN}/32 dev lo && nft add table inet filter && \
             nft 'add chain inet filter forward {{ type filter hook forward priority 0; policy drop; }}'"
        ));
        let path = tools(&node, "tools", backend);
        fs::create_dir("/run/flannel").unwrap();
        fs::write("/run/flannel/subnet.env", SUBNET_ENV).unwrap();
        Self {
            node,
            backend,
            path,
        }
    }

    /// A new container, for which `port` of the host is.
    pub fn container(&self, name: &str, port: u16) -> Container {
        let netns = self.node.netns(name);
        let service = inside(&netns, || TcpListener::bind(("::", SERVICE)).unwrap());
        std::thread::spawn(move || {
            for caller in service.incoming() {
                drop(caller);
            }
        });
        Container {
            name: name.into(),
            network: "net1",
            netns,
            port,
        }
    }

    /// The configuration of `plugin` for `container`, as a runtime sends it when the
    /// plugins so far came to `result`.
    pub fn config(&self, plugin: &str, container: &Container, result: &Value) -> Value {
        let word = self.backend.split('-').next().unwrap();
        // The two networks share subnets and gateways.
        let ranges = match container.network {
            "net1" => json!([
                [{"subnet": "10.9.0.0/24", "rangeEnd": "10.9.0.127"}],
                [{"subnet": "fd00:9::/64", "rangeEnd": "fd00:9::ffff"}],
            ]),
            _ => json!([
                [{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.128"}],
                [{"subnet": "fd00:9::/64", "rangeStart": "fd00:9::1:0"}],
            ]),
        };
        let mut config = match plugin {
            "bridge" => json!({
                "bridge": "br1", "isDefaultGateway": true, "hairpinMode": true,
                "ipMasq": true, "ipMasqBackend": word,
                "ipam": {"type": "host-local",
                         "ranges": ranges},
            }),
            "ptp" => json!({
                "ipMasq": true, "ipMasqBackend": word,
                "ipam": {"type": "host-local", "ranges": ranges,
                         "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]},
            }),
            "flannel" => json!({
                "delegate": {"bridge": "br1", "isDefaultGateway": true, "hairpinMode": true,
                             "ipMasqBackend": word},
            }),
            "bandwidth" => json!({
                "ingressRate": 1_000_000_000, "ingressBurst": 1_000_000_000,
                "egressRate": 1_000_000_000, "egressBurst": 1_000_000_000,
            }),
            "firewall" => json!({"backend": word}),
            "loopback" => json!({}),
            "portmap" => json!({
                "backend": word,
                "runtimeConfig": {"portMappings": [
                    {"hostPort": container.port, "containerPort": SERVICE, "protocol": "tcp"},
                ]},
            }),
            "tuning" => json!({
                "mtu": 1400, "txQLen": 77, "allmulti": true,
                "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
            }),
            other => panic!("{other} is no plugin of this network"),
        };
        config["cniVersion"] = "1.1.0".into();
        config["name"] = container.network.into();
        config["type"] = plugin.into();
        if !result.is_null() {
            config["prevResult"] = result.clone();
        }
        config
    }

    /// A call of `plugin` for `container`.
    pub fn call(&self, plugin: &str, container: &Container) -> Call {
        self.node
            .plugin(plugin)
            .id(&container.name)
            .netns(&container.netns)
            .env("PATH", &self.path)
    }

    /// Runs `command` of `plugin` for `container`.
    pub fn run(
        &self,
        plugin: &str,
        command: &str,
        container: &Container,
        result: &Value,
    ) -> Output {
        let config = self.config(plugin, container, result);
        self.call(plugin, container).run(command, &config)
    }

    /// ADD of these plugins; answers what they came to.
    pub fn add(&self, plugins: &[&str], container: &Container) -> Value {
        plugins.iter().fold(Value::Null, |result, plugin| {
            self.run(plugin, "ADD", container, &result).json()
        })
    }

    /// DEL of these plugins, all of which must succeed.
    pub fn del(
        &self,
        plugins: &[&str],
        container: &Container,
        result: &Value,
    ) -> Result<(), String> {
        plugins.iter().rev().try_for_each(|plugin| {
            let output = self.run(plugin, "DEL", container, result);
            ensure(output.ok && output.stdout.is_empty(), || {
                format!("DEL of {plugin}: {output:?}")
            })
        })
    }

    /// GC of these plugins, when only `valid` are left of net1.
    pub fn gc(&self, plugins: &[&str], valid: &[&Container]) -> Result<(), String> {
        let valid: Vec<Value> = valid
            .iter()
            .map(|container| json!({"containerID": container.name, "ifname": "eth0"}))
            .collect();
        let nobody = Container {
            name: "nobody".into(),
            network: "net1",
            netns: String::new(),
            port: 1,
        };
        plugins.iter().try_for_each(|plugin| {
            let mut config = self.config(plugin, &nobody, &Value::Null);
            config["cni.dev/valid-attachments"] = valid.clone().into();
            let output = self.call(plugin, &nobody).run("GC", &config);
            ensure(output.ok && output.stdout.is_empty(), || {
                format!("GC of {plugin}: {output:?}")
            })
        })
    }

    /// Whether the container has what `plugin` is to give it. `result` is of the whole
    /// chain up to there.
    pub fn works(&self, plugin: &str, container: &Container, result: &Value) -> Result<(), String> {
        let output = self.run(plugin, "CHECK", container, result);
        ensure(output.ok, || format!("CHECK: {output:?}"))?;
        match plugin {
            "bridge" | "ptp" | "flannel" => self.answers(container, result),
            "portmap" => self.is_mapped(container),
            // CHECK has looked at everything.
            _ => Ok(()),
        }
    }

    /// Whether the container's port of the host leads to it.
    pub fn is_mapped(&self, container: &Container) -> Result<(), String> {
        reach(&format!("{OWN}:{}", container.port))
    }

    /// Whether the addresses of `result` answer and are recorded for the container.
    pub fn answers(&self, container: &Container, result: &Value) -> Result<(), String> {
        for address in addresses(result) {
            let (ip, _) = address.split_once('/').unwrap();
            reach(&if ip.contains(':') {
                format!("[{ip}]:{SERVICE}")
            } else {
                format!("{ip}:{SERVICE}")
            })?;
            let lease = Path::new(LEASES).join(container.network).join(ip);
            let holder = fs::read_to_string(lease).unwrap_or_default();
            ensure(holder == format!("{}\r\neth0", container.name), || {
                format!("{ip} of {} is recorded for {holder:?}", container.name)
            })?;
        }
        Ok(())
    }

    /// Everything that a container can leave on the node.
    pub fn state(&self) -> State {
        let mut found = BTreeMap::new();
        // Much faster than `ip`, and this is asked thousands of times.
        let links = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        for link in links.lines().filter_map(|line| line.split_once(':')) {
            found.insert(format!("{} on the node", link.0.trim()), String::new());
        }
        for dir in ["/var/lib/cni", "/run/cni"] {
            files(Path::new(dir), &mut found);
        }
        // Named after the bridge's index: one that is made again has another.
        let is_record = |name: &String| name.ends_with(".was-off");
        let records: Vec<String> = found
            .keys()
            .filter(|name| is_record(name))
            .cloned()
            .collect();
        for name in records {
            let link = name.strip_suffix(".was-off").unwrap();
            let network = link.rsplit_once('-').unwrap().0;
            found.insert(format!("{network}.was-off"), String::new());
            found.remove(&name);
        }
        found.insert("rules".into(), self.rules());
        State(found)
    }

    /// The same, and what is in `container`.
    pub fn state_with(&self, container: &Container) -> State {
        let mut found = self.state();
        let links = self.node.ip(&format!("-n {} link show", container.name));
        for link in links.as_array().unwrap() {
            let set = ["mtu", "txqlen", "flags", "allmulti"].map(|key| link[key].to_string());
            let name = link["ifname"].as_str().unwrap();
            let name = format!("{name} in {}", container.name);
            found.0.insert(name, set.concat());
        }
        found
    }

    /// Every rule on the node, sorted: no counters, no dates.
    pub fn rules(&self) -> String {
        let legacy = if self.backend == "iptables-legacy" {
            "; iptables-legacy-save; ip6tables-legacy-save"
        } else {
            ""
        };
        let text = self.node.sh(&format!("nft -s list ruleset{legacy}"));
        let mut rules: Vec<_> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            // What a chain of iptables has counted.
            .map(|line| match line.split_once(" [") {
                Some((chain, _)) if line.starts_with(':') => chain,
                _ => line,
            })
            .collect();
        rules.sort_unstable();
        rules.join("\n")
    }
}

/// What is there, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State(BTreeMap<String, String>);

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0
            .iter()
            .try_for_each(|(name, text)| writeln!(f, "{name}: {text}"))
    }
}

impl State {
    /// The same without IPAM's index, which is a hint, and without files that were written
    /// aside: what could not be noted or removed now is noted or removed another time.
    pub fn without_hints(mut self) -> Self {
        self.0.retain(|name, _| !name.contains("/.cnibox"));
        self
    }

    /// The same without what is in a container.
    pub fn of_the_node(mut self) -> Self {
        self.0.retain(|name, _| !name.contains(" in "));
        self
    }

    /// Whether there is something of that name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether `self` is what it was `before`.
    pub fn is_as(&self, before: &Self) -> Result<(), String> {
        ensure(self == before, || {
            let changed = self.0.iter().filter_map(|(name, now)| {
                let was = before.0.get(name);
                match was {
                    Some(was) if was == now => None,
                    Some(was) => Some(format!("{name} was\n{was}\nand is\n{now}\n")),
                    None => Some(format!("{name} is left: {now}\n")),
                }
            });
            let gone = before.0.keys().filter(|name| !self.has(name));
            changed
                .chain(gone.map(|name| format!("{name} is gone\n")))
                .collect()
        })
    }
}

/// The addresses of a result, prefix lengths included.
pub fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.map(|ip| ip["address"].as_str().unwrap().to_owned())
        .collect()
}

/// Does `work` for all `items` at the same time.
pub fn at_once<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = items
            .iter()
            .map(|item| scope.spawn(|| work(item)))
            .collect();
        let done = threads.into_iter().map(|thread| thread.join().unwrap());
        done.collect()
    })
}

/// Runs `work` on a thread in `netns`.
pub fn inside<T: Send>(netns: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = fs::File::open(netns).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// Whether somebody accepts connections at `address`.
fn reach(address: &str) -> Result<(), String> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let socket: SocketAddr = address.parse().unwrap();
    TcpStream::connect_timeout(&socket, PATIENCE)
        .map(drop)
        .map_err(|error| format!("{address} does not answer: {error}"))
}

/// The files below `dir` and what is in them. The cursors of IPAM move on, and locks stay.
fn files(dir: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            files(&path, found);
        } else if !(name.starts_with("last_reserved_ip.")
            || name.ends_with("lock")
            || name == "complete")
        {
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            found.insert(path.to_str().unwrap().to_owned(), text);
        }
    }
}
