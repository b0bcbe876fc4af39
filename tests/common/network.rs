//! A node with one network of a bridge and port mappings, on any backend of the rules, made
//! by our plugins or by others.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::{Node, Output, run, tools};

/// A node with the network `net1`.
pub struct Network {
    pub node: Node,
    /// The directory with its configuration.
    pub conf: PathBuf,
    /// Where the plugins are.
    pub plugins: String,
    /// One of [`super::BACKENDS`], and where its programs are.
    pub backend: String,
    pub path: String,
}

impl Network {
    /// The bridge `br1` with these `ranges` of addresses, masqueraded, and port mappings.
    pub fn new(plugins: Option<&str>, backend: &str, ranges: &Value) -> Self {
        let node = Node::new();
        let path = tools(&node, "tools", backend);
        let word = backend.split('-').next().unwrap();
        let list = json!({"cniVersion": "1.0.0", "name": "net1", "plugins": [
            {"type": "bridge", "bridge": "br1", "isDefaultGateway": true,
             "ipMasq": true, "ipMasqBackend": word,
             "ipam": {"type": "host-local", "ranges": ranges}},
            {"type": "portmap", "backend": word, "capabilities": {"portMappings": true}},
        ]});
        let conf = node.dir.path().join("net.d");
        fs::create_dir(&conf).unwrap();
        fs::write(conf.join("10-net1.conflist"), list.to_string()).unwrap();
        let ours = node.bin.to_str().unwrap().to_owned();
        Self {
            plugins: plugins.map_or(ours, str::to_owned),
            node,
            conf,
            backend: backend.to_owned(),
            path,
        }
    }

    /// `cnitool` with these arguments, ready to run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.node.bin.join("cnitool"));
        command
            .args(args)
            .env("CNI_PATH", &self.plugins)
            .env("NETCONFPATH", &self.conf)
            .env("PATH", &self.path);
        command
    }

    /// The same, run.
    pub fn cnitool(&self, args: &[&str]) -> Output {
        run(&mut self.command(args), "")
    }

    /// Attaches a new container, whose id is its name, with these port mappings.
    pub fn attach(&self, name: &str, mappings: &Value) {
        let netns = self.node.netns(name);
        let caps = json!({"portMappings": mappings}).to_string();
        let added = self.cnitool(&["add", "net1", &netns, "--id", name, "--cap", &caps]);
        assert!(added.ok, "{added:?}");
    }

    /// The host's end of a container's link.
    pub fn host_end(&self, container: &str) -> String {
        let shown = self
            .cnitool(&["ps", "--json", "--container", container])
            .json();
        let end = shown["attachments"][0]["hostEnd"].as_str();
        end.unwrap().to_owned()
    }
}
