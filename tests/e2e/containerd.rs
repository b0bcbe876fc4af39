//! containerd, each test with a daemon of its own: containers by `ctr run --cni`, pods through
//! the socket that a kubelet talks to.

use std::fs::{self, File};
use std::process::Command;
use std::{env, path};

use serde_json::json;

use crate::common::run;
use crate::cri::{self, Message};
use crate::machine::{IMAGE, Machine, PLUGINS, Running, machine, tcp, wait_for};

const SOCKET: &str = "/run/containerd/containerd.sock";

/// Where the network's configuration is.
const NETWORK: &str = "/etc/cni/net.d/10-pods.conflist";

/// A running daemon on a machine.
struct Containerd<'a> {
    machine: &'a Machine,
    /// The directory of its programs.
    programs: path::PathBuf,
    /// Ends with the test.
    _daemon: Running,
}

impl<'a> Containerd<'a> {
    /// Starts the containerd of a directory, for one network of `subnet`.
    fn new(machine: &'a Machine, programs: &str, cni_version: &str, subnet: &str) -> Self {
        let network = json!({
            "cniVersion": cni_version, "name": "pods", "plugins": [
                {
                    "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                    "ipam": {
                        "type": "host-local", "ranges": [[{"subnet": subnet}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        fs::write(NETWORK, network.to_string()).unwrap();
        fs::create_dir("/run/containerd").unwrap();
        let config = format!(
            r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{PLUGINS}"
conf_dir = "/etc/cni/net.d"
"#
        );
        let scratch = machine.node.dir.path();
        fs::write(scratch.join("config.toml"), config).unwrap();
        let search = format!("{programs}:{}", env::var("PATH").unwrap());
        let daemon = Command::new("containerd")
            .env("PATH", search)
            .arg("--config")
            .arg(scratch.join("config.toml"))
            .stderr(File::create(scratch.join("log")).unwrap())
            .spawn()
            .unwrap();
        let containerd = Self {
            machine,
            programs: programs.into(),
            _daemon: Running(daemon),
        };
        wait_for("containerd", || {
            run(&mut containerd.command("version"), "").ok.then_some(())
        });
        let image = machine.image();
        for namespace in ["default", "k8s.io"] {
            containerd.ctr(&format!(
                "--namespace {namespace} image import {}",
                image.display()
            ));
        }
        containerd
    }

    fn command(&self, args: &str) -> Command {
        let mut command = Command::new(self.programs.join("ctr"));
        command.args(["--address", SOCKET]);
        command.args(args.split_whitespace());
        command
    }

    /// Runs ctr, which must succeed; answers its stdout.
    #[track_caller]
    fn ctr(&self, args: &str) -> String {
        let output = run(&mut self.command(args), "");
        assert!(output.ok, "ctr {args}: {output:?}");
        output.stdout
    }

    /// A call to its CRI service.
    fn cri(&self, method: &str, request: &Message) -> Result<Message, String> {
        cri::call(SOCKET, self.machine.node.dir.path(), method, request)
    }

    /// Makes a pod whose port 80 is port 8080 of the host.
    fn run_pod(&self, name: &str) -> Result<String, String> {
        let metadata = Message::default()
            .text(1, name)
            .text(2, name)
            .text(3, "default");
        let port = Message::default().number(2, 80).number(3, 8080);
        let linux = Message::default().text(1, &self.machine.cgroup);
        let config = Message::default()
            .message(1, &metadata)
            .text(2, name)
            .message(5, &port)
            .message(8, &linux);
        let request = Message::default().message(1, &config);
        Ok(self.cri("RunPodSandbox", &request)?.string(1))
    }

    /// The address of a pod.
    fn address(&self, pod: &str) -> String {
        let status = self.cri("PodSandboxStatus", &Message::id(pod)).unwrap();
        status.get(1).get(5).string(1)
    }

    fn remove_pod(&self, pod: &str) {
        self.cri("StopPodSandbox", &Message::id(pod)).unwrap();
        self.cri("RemovePodSandbox", &Message::id(pod)).unwrap();
    }

    /// The pods that there are.
    fn pods(&self) -> Vec<String> {
        let list = self.cri("ListPodSandbox", &Message::default()).unwrap();
        list.all(1).iter().map(|pod| pod.string(1)).collect()
    }

    /// Whether the node's network is ready, and if not, why.
    fn network(&self) -> Result<(), String> {
        let status = self.cri("Status", &Message::default()).unwrap();
        let conditions = status.get(1).all(1);
        let network = conditions
            .iter()
            .find(|c| c.string(1) == "NetworkReady")
            .unwrap();
        match network.value(2) {
            1 => Ok(()),
            _ => Err(format!("{}: {}", network.string(3), network.string(4))),
        }
    }

    /// A container that ends, and a pod that is removed.
    fn containers_come_and_go(&self) {
        let group = &self.machine.cgroup;
        let run = |name: &str, command: &str| {
            self.ctr(&format!(
                "run --rm --cni --snapshotter native --cgroup {group}/{name} {IMAGE} {name} {command}"
            ))
        };
        let addresses = run("one", "ip address");
        for address in ["inet 10.82.0.2/24", "inet 127.0.0.1/8"] {
            assert!(addresses.contains(address), "{address}: {addresses}");
        }
        run("two", "ping -c 1 -W 1 10.82.0.1");
        self.machine.node.nothing_left(&["cni0"]);

        let pod = self.run_pod("web").unwrap();
        assert_eq!(self.pods(), [pod.as_str()]);
        let address = self.address(&pod);
        assert_eq!(address, "10.82.0.4");
        for place in ["127.0.0.1:8080", "10.82.0.1:8080", "10.82.0.4:80"] {
            assert_eq!(tcp(place), "web");
        }
        // containerd has the plugin `loopback` see to it.
        let lo = self
            .machine
            .node
            .sh("ip netns exec $(ls /run/netns) ip -brief address show lo");
        assert!(lo.contains("127.0.0.1/8"), "{lo}");
        self.remove_pod(&pod);
        assert!(self.pods().is_empty());
        self.machine.node.nothing_left(&["cni0"]);
    }
}

/// The containerd that asks plugins for STATUS: the Makefile finds one.
fn newer() -> String {
    env::var("CONTAINERD_2")
        .unwrap_or_else(|_| panic!("CONTAINERD_2 is not set: see `make test-e2e`"))
}

#[test]
fn containers_and_pods_on_the_distributions_containerd() {
    machine(|machine| {
        let containerd = Containerd::new(machine, "/usr/bin", "1.0.0", "10.82.0.0/24");
        containerd.containers_come_and_go();
    });
}

#[test]
fn containers_and_pods_on_a_newer_containerd() {
    machine(|machine| {
        let containerd = Containerd::new(machine, &newer(), "1.1.0", "10.82.0.0/24");
        containerd.containers_come_and_go();
    });
}

#[test]
fn a_node_without_free_addresses_stays_ready() {
    machine(|machine| {
        let containerd = Containerd::new(machine, &newer(), "1.1.0", "10.82.0.0/30");
        assert_eq!(containerd.network(), Ok(()));
        let pod = containerd.run_pod("first").unwrap();
        // Not ready, the kubelet would have this pod evicted.
        assert_eq!(containerd.network(), Ok(()));
        let refused = containerd.run_pod("second").unwrap_err();
        assert!(refused.contains("no IP addresses available"), "{refused}");
        assert_eq!(containerd.network(), Ok(()));
        containerd.remove_pod(&pod);
        let pod = containerd.run_pod("third").unwrap();
        containerd.remove_pod(&pod);
        machine.node.nothing_left(&["cni0"]);
    });
}

#[test]
fn a_node_without_free_addresses_is_not_ready_where_that_is_wanted() {
    machine(|machine| {
        let containerd = Containerd::new(machine, &newer(), "1.1.0", "10.82.0.0/30");
        let list = fs::read_to_string(NETWORK).unwrap();
        let strict = list.replace(
            r#""type":"host-local""#,
            r#""statusFailsWhenExhausted":true,"type":"host-local""#,
        );
        assert_ne!(strict, list);
        fs::write(NETWORK, strict).unwrap();
        let pod = containerd.run_pod("first").unwrap();
        // It reads the configuration again whenever the file changes.
        let why = wait_for("the node to be not ready", || containerd.network().err());
        for part in [
            "NetworkPluginNotReady",
            "no IP addresses available",
            "network pods",
        ] {
            assert!(why.contains(part), "{why}");
        }
        containerd.remove_pod(&pod);
        assert_eq!(containerd.network(), Ok(()));
        machine.node.nothing_left(&["cni0"]);
    });
}
