//! A node with a second machine behind it, containers with mapped ports, and servers and
//! clients everywhere.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::common::{BACKENDS, Node, Output, Servers, run, tools};

/// A node with a second machine behind it, and networks on a backend.
pub struct Lab {
    pub node: Node,
    pub backend: &'static str,
    /// Where the backend's programs are found: nowhere, for nftables.
    pub path: String,
    /// Further variables of the runtime's environment.
    pub env: Vec<(&'static str, &'static str)>,
    servers: Servers,
}

impl Lab {
    pub fn new(backend: &'static str) -> Self {
        let node = Node::new();
        let path = tools(&node, "tools", backend);
        node.machine("fd00:2");
        let lab = Self {
            node,
            backend,
            path,
            env: Vec::new(),
            servers: Servers::default(),
        };
        lab.configure(&json!({}), &json!({}));
        lab
    }

    /// Where the programs of another backend are found.
    pub fn tools(&self, dir: &str, backend: &str) -> String {
        tools(&self.node, dir, backend)
    }

    /// The backend, as configurations call it.
    pub fn word(&self) -> &'static str {
        self.backend.split('-').next().unwrap()
    }

    pub fn conf(&self) -> PathBuf {
        self.node.dir.path().join("net.d")
    }

    /// Writes the network, with changes to the bridge and the portmap plugin.
    pub fn configure(&self, bridge: &Value, portmap: &Value) {
        let merge = |mut base: Value, change: &Value| {
            for (key, value) in change.as_object().unwrap() {
                base[key] = value.clone();
            }
            base
        };
        let list = json!({
            "cniVersion": "1.1.0",
            "name": "net1",
            "plugins": [
                merge(json!({
                    "type": "bridge", "bridge": "br1", "isDefaultGateway": true, "hairpinMode": true,
                    "ipMasq": true, "ipMasqBackend": self.word(),
                    "ipam": {"type": "host-local",
                             "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]},
                }), bridge),
                merge(json!({
                    "type": "portmap", "backend": self.word(), "capabilities": {"portMappings": true},
                }), portmap),
            ],
        });
        fs::create_dir_all(self.conf()).unwrap();
        fs::write(self.conf().join("10-net1.conflist"), list.to_string()).unwrap();
    }

    pub fn cnitool(&self, command: &str, name: &str, mappings: &Value) -> Output {
        self.called(
            Command::new(self.node.bin.join("cnitool")),
            command,
            name,
            mappings,
        )
    }

    /// The system calls of a `cnitool` that must succeed, as far as strace's `filter` goes.
    pub fn traced(&self, filter: &str, command: &str, name: &str, mappings: &Value) -> String {
        let trace = self.node.dir.path().join("trace");
        let mut strace = Command::new("/usr/bin/strace");
        strace
            .args(["-f", "-e", &format!("trace={filter}"), "-o"])
            .args([&trace, &self.node.bin.join("cnitool")]);
        let output = self.called(strace, command, name, mappings);
        assert!(output.ok, "{output:?}");
        fs::read_to_string(trace).unwrap()
    }

    fn called(&self, mut tool: Command, command: &str, name: &str, mappings: &Value) -> Output {
        let caps = json!({"portMappings": mappings}).to_string();
        let netns = format!("/run/netns/{name}");
        tool.args([command, "net1", &netns, "--cap", &caps])
            .env("CNI_PATH", &self.node.bin)
            .env("NETCONFPATH", self.conf())
            .env("PATH", &self.path)
            .envs(self.env.iter().copied());
        run(&mut tool, "")
    }

    pub fn add(&self, name: &str, mappings: &Value) -> Value {
        self.node.netns(name);
        self.cnitool("add", name, mappings).json()
    }

    /// Serves a port in `netns` ("" is the host), IPv4 and IPv6: the answer is WHO and the
    /// address the caller is seen with.
    pub fn serve(&mut self, netns: &str, protocol: &str, port: u16, who: &str) {
        let mut server = python(netns, include_str!("serve.py"))
            .args([protocol, &port.to_string(), who])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(server.stdout.take().unwrap())
            .read_line(&mut ready)
            .unwrap();
        self.servers.0.push(server);
        assert_eq!(ready, "ready\n", "{protocol} {port} in {netns:?}");
    }

    /// Stops the server started last.
    pub fn stop_last(&mut self) {
        let mut server = self.servers.0.pop().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// What a server answers to a call from `netns` ("" is the host); empty for nothing.
    pub fn call(&self, netns: &str, protocol: &str, address: &str, port: u16) -> String {
        self.call_from(netns, protocol, address, port, 0)
    }

    /// The same, from a port of our choice.
    pub fn call_from(
        &self,
        netns: &str,
        protocol: &str,
        address: &str,
        port: u16,
        from: u16,
    ) -> String {
        let mut command = python(netns, include_str!("call.py"));
        command.args([protocol, address, &port.to_string(), &from.to_string()]);
        let output = run(&mut command, "");
        output.stdout.trim().to_owned()
    }

    /// Every rule of either kind on the node, for comparison: no counters, no dates.
    pub fn rules(&self) -> String {
        let text = self.node.sh(
            "{ nft list ruleset 2>/dev/null; iptables-legacy-save; ip6tables-legacy-save; } | \
             grep -v '^#' | sed 's/\\[[0-9]*:[0-9]*\\]//; s/counter packets [0-9]* bytes [0-9]*/counter/'",
        );
        // Elements of sets come in any order.
        let is_element = |line: &&str| line.contains(" comment ") && line.ends_with(['}', ',']);
        let (elements, mut lines): (Vec<_>, Vec<_>) = text.lines().partition(is_element);
        let mut elements: Vec<&str> = elements
            .iter()
            .map(|line| line.trim().trim_start_matches("elements = { "))
            .map(|line| line.trim_end_matches([',', ' ', '}']))
            .collect();
        elements.sort_unstable();
        lines.extend(elements);
        lines.join("\n")
    }
}

/// Runs a test on a lab of its own for each backend.
pub fn on_every_backend(test: fn(Lab)) {
    for backend in BACKENDS {
        std::thread::spawn(move || test(Lab::new(backend)))
            .join()
            .unwrap();
    }
}

/// What `serve.py` and `call.py` need for SCTP.
const SCTP: &str = include_str!("sctp.py");

/// A Python program in `netns`, "" being the host.
fn python(netns: &str, program: &str) -> Command {
    let mut command = Command::new(if netns.is_empty() { "python3" } else { "ip" });
    if !netns.is_empty() {
        command.args(["netns", "exec", netns, "python3"]);
    }
    command.args(["-c", &format!("{SCTP}{program}")]);
    command
}

pub fn mapping(protocol: &str, host: u16, container: u16) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": protocol})
}
