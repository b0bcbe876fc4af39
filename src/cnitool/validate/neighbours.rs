//! What is wrong only because of another file: a name taken, a subnet in use.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde_json::Value;

use super::inspection::Finding;
use crate::cni::address::{parse_cidr, parse_ip};
use crate::cni::json::{self, Object};
use crate::runtime::directory::Directory;
use crate::runtime::network::{Network, ipam, plugin_member, plugin_type};

/// Compares the network `name` in `file` with the others of the directory.
pub(super) fn inspect(file: &Path, name: &str, directory: &Directory) -> Vec<Finding> {
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
    for (own, theirs, other) in overlaps(own, directory) {
        let message = format!(
            "{} overlaps {} of network \"{}\" in {}",
            own.subnet,
            theirs.subnet,
            other.name,
            theirs.file.display()
        );
        findings.push(Finding::warning(own.file, &own.path, message));
    }
    findings
}

/// The subnets of `own` that others use, each with theirs and their network.
pub fn overlaps<'a>(
    own: &'a Network,
    directory: &'a Directory,
) -> Vec<(Written<'a>, Written<'a>, &'a Network)> {
    let mut found = Vec::new();
    for other in directory.networks.iter().filter(|n| n.name != own.name) {
        for own in subnets(own) {
            let mut theirs = subnets(other).into_iter();
            let theirs = theirs.find(|theirs| own.overlaps(theirs));
            found.extend(theirs.map(|theirs| (own, theirs, other)));
        }
    }
    found
}

/// Whether `network` was read from `file`, however its path is written.
fn is_file(network: &Network, file: &Path) -> bool {
    network.file == file || network.file.file_name() == file.file_name()
}

/// A subnet from which host-local hands out addresses, and where it is written.
pub struct Written<'a> {
    /// The file.
    file: &'a Path,
    /// The key in it.
    path: String,
    /// The subnet, without host bits.
    pub subnet: IpNet,
    /// The first and the last address of it that may be handed out.
    range: [IpAddr; 2],
}

impl Written<'_> {
    fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (&self.subnet, &other.subnet);
        a.contains(b) || b.contains(a)
    }

    /// Whether no address is handed out here and there.
    pub fn is_apart(&self, other: &Self) -> bool {
        let ([first, last], [others_first, others_last]) = (self.range, other.range);
        last < others_first || others_last < first
    }
}

/// The subnets from which `network` hands out addresses.
pub fn subnets(network: &Network) -> Vec<Written<'_>> {
    let mut found = Vec::new();
    for plugin in &network.plugins {
        let Some(ipam) = ipam(&plugin.document) else {
            continue;
        };
        if !matches!(plugin_type(&ipam).as_deref(), Some("host-local" | "ipam")) {
            continue;
        }
        let mut note = |place: &str, range: &Object| {
            let subnet = plugin_member(range, "subnet");
            let subnet = subnet.and_then(|subnet| parse_cidr(subnet.as_str()?));
            let limit = |key| parse_ip(plugin_member(range, key)?.as_str()?);
            found.extend(subnet.map(|subnet| Written {
                file: &plugin.file,
                path: json::below(&plugin.path, &format!("ipam.{place}subnet")),
                subnet: subnet.trunc(),
                range: [
                    limit("rangeStart").unwrap_or_else(|| subnet.network()),
                    limit("rangeEnd").unwrap_or_else(|| subnet.broadcast()),
                ],
            }));
        };
        note("", &ipam);
        let ranges = plugin_member(&ipam, "ranges");
        for (i, set) in ranges.iter().flat_map(items).enumerate() {
            for (j, range) in items(set).enumerate() {
                if let Value::Object(range) = range {
                    note(&format!("ranges[{i}][{j}]."), range);
                }
            }
        }
    }
    found
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
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

    #[test]
    fn parts_of_a_subnet_are_told_apart() {
        let part = |limits: &str| {
            let ipam = format!(r#"{{"type":"host-local","subnet":"10.1.0.0/24"{limits}}}"#);
            network("/1", "a", &ipam)
        };
        let (whole, lower, upper) = (
            part(""),
            part(r#","rangeEnd":"10.1.0.99""#),
            part(r#","rangeStart":"10.1.0.100""#),
        );
        let are_apart = |a: &Network, b: &Network| {
            let (a, b) = (subnets(a).remove(0), subnets(b).remove(0));
            assert!(a.overlaps(&b));
            a.is_apart(&b)
        };
        assert!(are_apart(&lower, &upper) && are_apart(&upper, &lower));
        assert!(!are_apart(&whole, &upper) && !are_apart(&lower, &lower));
    }
}
