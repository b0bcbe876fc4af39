//! The plugins of the reference and this backend, in either order.

use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::*;

const REFERENCE: &str = "/usr/lib/cni";

/// Calls a plugin of the reference for container `c1`.
fn reference(node: &Node, plugin: &str, command: &str, config: &Value) {
    call_reference(node, &node.path(), plugin, command, config);
}

fn call_reference(node: &Node, path: &str, plugin: &str, command: &str, config: &Value) {
    let mut child = Command::new(PathBuf::from(REFERENCE).join(plugin))
        .env_clear()
        .env("PATH", path)
        .env("CNI_PATH", REFERENCE)
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_NETNS", "/run/netns/c1")
        .env("CNI_IFNAME", "eth0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the reference plugins are needed: see `make test`");
    let stdin = child.stdin.take().unwrap();
    serde_json::to_writer(stdin, config).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{plugin} {command} on {}: {text}",
        node.variant
    );
}

#[test]
fn the_reference_and_we_masquerade_alike() {
    on_both_variants(|node| {
        node.sh("mkdir -p /run/netns && ip netns add c1");
        let config = json!({
            "cniVersion": "1.0.0", "name": "net1", "type": "bridge", "bridge": "br1",
            "isGateway": true, "ipMasq": true,
            "ipam": {"type": "host-local", "ranges": [
                [{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]}
        });
        reference(node, "bridge", "ADD", &config);
        let theirs = node.private();
        assert!(theirs.len() == 8, "{theirs:#?}");
        node.iptables
            .check_masquerade(&owner("c1"), &dual())
            .unwrap();
        node.iptables
            .remove_masquerade(&owner("c1"), &Known::own(&dual().addresses))
            .unwrap();
        assert_eq!(node.private(), [""; 0]);
        node.without_tools()
            .ensure_masquerade(&owner("c1"), &dual())
            .unwrap();
        assert_eq!(node.private(), theirs);
        reference(node, "bridge", "DEL", &config);
        assert_eq!(node.private(), [""; 0]);
    });
}

#[test]
fn the_reference_and_we_map_ports_alike() {
    on_both_variants(|node| {
        node.sh("mkdir -p /run/netns && ip netns add c1");
        let mut config = json!({
            "cniVersion": "1.0.0", "name": "net1", "type": "portmap",
            "capabilities": {"portMappings": true},
            "conditionsV4": ["!", "-d", "192.0.2.1"],
            "runtimeConfig": {"portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 53, "containerPort": 5353, "protocol": "udp"},
                {"hostPort": 8081, "containerPort": 81, "protocol": "tcp", "hostIP": "192.168.1.1"},
                {"hostPort": 8082, "containerPort": 82, "protocol": "tcp", "hostIP": "::1"},
            ]},
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "eth0", "sandbox": "/run/netns/c1"}],
                "ips": [{"interface": 0, "address": "10.9.0.2/24"},
                        {"interface": 0, "address": "fd00:9::2/64"}]
            }
        });
        let mapping = |protocol, host_ip: Option<&str>, host_port, container_port| Mapping {
            protocol,
            host_ip: host_ip.map(|ip| ip.parse::<IpAddr>().unwrap()),
            host_port,
            container_port,
        };
        let mut maps = PortMaps {
            mappings: vec![
                mapping(Protocol::Tcp, None, 8080, 80),
                mapping(Protocol::Udp, None, 53, 5353),
                mapping(Protocol::Tcp, Some("192.168.1.1"), 8081, 81),
                mapping(Protocol::Tcp, Some("::1"), 8082, 82),
            ],
            conditions_v4: vec!["!".into(), "-d".into(), "192.0.2.1".into()],
            ..dual_maps(&[])
        };
        for has_conditions in [true, false] {
            if !has_conditions {
                config.as_object_mut().unwrap().remove("conditionsV4");
                maps.conditions_v4.clear();
            }
            reference(node, "portmap", "ADD", &config);
            let theirs = node.saved();
            node.iptables.check_port_maps(&owner("c1"), &maps).unwrap();
            node.iptables
                .remove_port_maps(&owner("c1"), &Known::NOTHING)
                .unwrap();
            assert_eq!(node.private(), [""; 0]);
            if has_conditions {
                let flush = "iptables -t nat -F; iptables -t nat -X; ip6tables -t nat -F; ip6tables -t nat -X";
                node.sh(flush);
                node.iptables.ensure_port_maps(&owner("c1"), &maps).unwrap();
            } else {
                let backend = node.without_tools();
                backend.ensure_port_maps(&owner("c1"), &maps).unwrap();
            }
            assert_eq!(node.saved(), theirs);
            // That version compares both families with the rules of one of them, and does not
            // find its own either: ask for IPv4 alone.
            let mut v4 = config.clone();
            v4["prevResult"]["ips"].as_array_mut().unwrap().pop();
            let only_v4 = tempfile::tempdir().unwrap();
            let tool = format!("{SBIN}/iptables-{}", node.variant);
            symlink(tool, only_v4.path().join("iptables")).unwrap();
            let path = only_v4.path().to_str().unwrap();
            call_reference(node, path, "portmap", "CHECK", &v4);
            reference(node, "portmap", "DEL", &config);
            assert_eq!(node.private(), [""; 0]);
        }
    });
}
