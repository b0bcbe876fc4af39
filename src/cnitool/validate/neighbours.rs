//! What is wrong only because of another file: a name taken, a subnet in use.

use std::path::Path;

use ipnet::IpNet;
use serde_json::Value;

use super::Finding;
use crate::runtime::directory::Directory;
use crate::runtime::network::Network;

/// Compares the network `name` in `file` with the others of the directory.
pub fn inspect(file: &Path, name: &str, directory: &Directory) -> Vec<Finding> {
    let mut findings = Vec::new();
    let first = directory.networks.iter().find(|n| n.name == name);
    if let Some(first) = first.filter(|first| !is_file(first, file)) {
        let other = first.file.display();
        let message = format!("\"{name}\" is defined in {other} already: this file is not used");
        findings.push(Finding::warning(file, "name", message));
    }
    let Some(own) = directory.networks.iter().find(|n| is_file(n, file)) else {
        return findings;
    };
    for (path, subnet) in subnets(own) {
        for other in directory.networks.iter().filter(|n| n.name != name) {
            let taken = subnets(other)
                .into_iter()
                .find(|(_, theirs)| overlap(&subnet, theirs));
            if let Some((_, theirs)) = taken {
                let (other, file_of) = (&other.name, other.file.display());
                let message =
                    format!("{subnet} overlaps {theirs} of network \"{other}\" in {file_of}");
                findings.push(Finding::warning(file, &path, message));
            }
        }
    }
    findings
}

/// Whether `network` was read from `file`, however its path is written.
fn is_file(network: &Network, file: &Path) -> bool {
    network.file == file || network.file.file_name() == file.file_name()
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// The subnets from which host-local hands out addresses, and where they are written.
fn subnets(network: &Network) -> Vec<(String, IpNet)> {
    let mut found = Vec::new();
    for (index, plugin) in network.plugins.iter().enumerate() {
        let Some(ipam) = plugin.document.get("ipam") else {
            continue;
        };
        if !matches!(
            ipam.get("type").and_then(Value::as_str),
            Some("host-local" | "ipam")
        ) {
            continue;
        }
        let path = format!("plugins[{index}].ipam");
        let mut note = |path: String, range: &Value| {
            let text = range.get("subnet").and_then(Value::as_str);
            if let Some(subnet) = text.and_then(|text| text.parse::<IpNet>().ok()) {
                found.push((format!("{path}.subnet"), subnet.trunc()));
            }
        };
        note(path.clone(), ipam);
        let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned();
        for (i, set) in list(ipam.get("ranges")).iter().flatten().enumerate() {
            for (j, range) in list(Some(set)).iter().flatten().enumerate() {
                note(format!("{path}.ranges[{i}][{j}]"), range);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(file: &str, name: &str, ipam: &str) -> Network {
        let text = format!(r#"{{"name":"{name}","plugins":[{{"type":"b","ipam":{ipam}}}]}}"#);
        Network::parse_list(Path::new(file), text.into_bytes()).unwrap()
    }

    fn findings(file: &str, name: &str) -> Vec<String> {
        let directory = Directory {
            path: "/".into(),
            networks: vec![
                network("/1", "a", r#"{"type":"host-local","subnet":"10.1.0.0/16"}"#),
                network(
                    "/2",
                    "b",
                    r#"{"type":"host-local","ranges":[[{"subnet":"10.2.0.0/16"}],[{"subnet":"10.1.2.0/24"}]]}"#,
                ),
                network("/3", "b", r#"{"type":"host-local","subnet":"10.2.0.0/16"}"#),
                network("/4", "c", r#"{"type":"static","subnet":"10.1.0.0/16"}"#),
            ],
            broken: Vec::new(),
        };
        inspect(Path::new(file), name, &directory)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn names_and_subnets_are_compared() {
        assert_eq!(
            findings("/2", "b"),
            [
                "/2: warning: plugins[0].ipam.ranges[1][0].subnet: 10.1.2.0/24 overlaps 10.1.0.0/16 of network \"a\" in /1"
            ]
        );
        assert_eq!(
            findings("/3", "b"),
            ["/3: warning: name: \"b\" is defined in /2 already: this file is not used"]
        );
        assert!(findings("/4", "c").is_empty());
    }
}
