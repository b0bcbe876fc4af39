//! Which addresses a mapping answers at, and which it leaves alone (docs/requirements.md#r-53, docs/requirements.md#r-57).

use serde_json::{Value, json};

use crate::lab::{Lab, mapping, on_every_backend};

#[test]
fn only_what_is_meant_for_this_host_is_intercepted() {
    on_every_backend(|mut lab| {
        // A mapping of port 53, and a DNS server elsewhere that a container asks.
        let everywhere = json!([mapping("tcp", 53, 80)]);
        lab.add("c1", &everywhere);
        lab.serve("c1", "tcp", 80, "c1");
        lab.serve("ext", "tcp", 53, "ext");
        lab.add("c2", &json!([]));
        for netns in ["", "c2"] {
            assert!(lab.call(netns, "tcp", "192.0.2.9", 53).starts_with("ext "));
            assert!(lab.call(netns, "tcp", "fd00:2::9", 53).starts_with("ext "));
        }
        // A mapping for one address of the host is not one for another.
        lab.node.sh("ip addr add 192.0.2.2/24 dev up0");
        let one = json!([{"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.2"}]);
        lab.add("c3", &one);
        lab.serve("c3", "tcp", 80, "c3");
        assert!(lab.call("ext", "tcp", "192.0.2.2", 8081).starts_with("c3 "));
        assert_eq!(lab.call("ext", "tcp", "192.0.2.1", 8081), "");
        // Nor does a mapping for an address that is not the host's catch anything.
        let foreign = json!([{"hostPort": 7000, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.9"}]);
        lab.add("c4", &foreign);
        lab.serve("c4", "tcp", 80, "c4");
        lab.serve("ext", "tcp", 7000, "ext");
        assert!(lab.call("c2", "tcp", "192.0.2.9", 7000).starts_with("ext "));
    });
}

/// Packets from `ext`, 192.0.2.9 on `up0`, meet sets, ranges and wildcards, or do not.
#[test]
fn conditions_of_nftables_may_name_many() {
    let mut lab = Lab::new("nftables");
    let mut names = ["c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8"].iter();
    for (condition, passes) in [
        (json!(["ip", "saddr", "{ 10.0.0.0/8, 192.0.2.9 }"]), true),
        (
            json!(["ip", "saddr", "!=", "{ 10.0.0.0/8, 192.0.2.9 }"]),
            false,
        ),
        (json!(["ip saddr 192.0.2.1-192.0.2.9"]), true),
        (json!(["ip saddr != 192.0.2.1-192.0.2.9"]), false),
        (json!(["iifname", "\"up*\""]), true),
        (json!(["iifname != { eth*, up0 }"]), false),
        (
            json!(["tcp sport 1024-65535 tcp dport { 22, 8000-8999 }"]),
            true,
        ),
        (json!(["tcp dport != 8000-8999"]), false),
    ] {
        let name = names.next().unwrap();
        lab.configure(&json!({}), &json!({"conditionsV4": condition}));
        let mappings = json!([mapping("tcp", 8080, 80)]);
        lab.add(name, &mappings);
        lab.serve(name, "tcp", 80, name);
        let answer = lab.call("ext", "tcp", "192.0.2.1", 8080);
        let expected = if passes {
            format!("{name} 192.0.2.9")
        } else {
            String::new()
        };
        assert_eq!(answer, expected, "{condition}");
        lab.cnitool("check", name, &mappings).silent();
        lab.cnitool("del", name, &json!([])).silent();
        assert!(!lab.rules().contains("tcp dport 8080"), "{}", lab.rules());
    }
}

#[test]
fn conditions_exclude_what_the_operator_names() {
    on_every_backend(|mut lab| {
        let (v4, v6) = if lab.word() == "nftables" {
            (
                json!(["ip daddr != 192.0.2.2"]),
                json!(["ip6 daddr != fd00:2::2"]),
            )
        } else {
            (
                json!(["!", "-d", "192.0.2.2"]),
                json!(["!", "-d", "fd00:2::2"]),
            )
        };
        lab.configure(
            &json!({}),
            &json!({"conditionsV4": v4, "conditionsV6": v6, "markMasqBit": 5}),
        );
        // Addresses of this host that somebody else balances.
        lab.node
            .sh("ip addr add 192.0.2.2/24 dev up0 && ip addr add fd00:2::2/64 dev up0 nodad");
        let mappings = json!([mapping("tcp", 8080, 80)]);
        lab.add("c1", &mappings);
        lab.serve("c1", "tcp", 80, "c1");
        lab.serve("", "tcp", 8080, "host");
        for (mapped, excluded) in [("192.0.2.1", "192.0.2.2"), ("fd00:2::1", "fd00:2::2")] {
            assert!(lab.call("ext", "tcp", mapped, 8080).starts_with("c1 "));
            assert!(lab.call("ext", "tcp", excluded, 8080).starts_with("host "));
        }
        lab.cnitool("check", "c1", &mappings).silent();
        lab.cnitool("del", "c1", &mappings).silent();
        assert!(
            lab.call("ext", "tcp", "192.0.2.1", 8080)
                .starts_with("host ")
        );
    });
}

#[test]
fn a_mapping_answers_at_its_host_address_and_nowhere_else() {
    on_every_backend(|mut lab| {
        lab.node
            .sh("ip addr add 192.0.2.2/24 dev up0 && ip addr add fd00:2::2/64 dev up0 nodad");
        // Each kind of host address has a port of its own.
        let v4 = ["192.0.2.1", "192.0.2.2", "127.0.0.1"];
        let v6 = ["fd00:2::1", "fd00:2::2"];
        let expected = [
            ("", 8000, [&v4[..], &v6].concat()),
            ("0.0.0.0", 8001, v4.to_vec()),
            ("::", 8002, v6.to_vec()),
            ("192.0.2.2", 8003, vec!["192.0.2.2"]),
            ("fd00:2::2", 8004, vec!["fd00:2::2"]),
            ("127.0.0.1", 8005, vec!["127.0.0.1"]),
            // The kernel has no route_localnet for IPv6: nobody can be led away from ::1.
            ("::1", 8006, vec![]),
        ];
        let mappings: Value = expected
            .iter()
            .map(|(host_ip, port, _)| {
                json!({"hostPort": port, "containerPort": 80, "protocol": "tcp", "hostIP": host_ip})
            })
            .collect();
        lab.add("c1", &mappings);
        lab.serve("c1", "tcp", 80, "c1");
        for (host_ip, port, addresses) in expected {
            for address in v4.iter().chain(&v6) {
                let from = if *address == "127.0.0.1" { "" } else { "ext" };
                assert_eq!(
                    lab.call(from, "tcp", address, port).starts_with("c1 "),
                    addresses.contains(address),
                    "{}: {address} of a mapping for \"{host_ip}\"",
                    lab.backend
                );
            }
        }
        lab.cnitool("check", "c1", &mappings).silent();
    });
}

#[test]
fn what_only_passes_through_the_node_is_left_alone() {
    on_every_backend(|mut lab| {
        // A third machine, which the second reaches through the node.
        lab.node.sh(
            "ip netns add far && ip link add up2 type veth peer name up3 netns far && \
             echo 0 > /proc/sys/net/ipv6/conf/up2/accept_dad && \
             ip netns exec far sh -c 'echo 0 > /proc/sys/net/ipv6/conf/up3/accept_dad' && \
             ip addr add 198.51.100.1/24 dev up2 && ip addr add fd00:3::1/64 dev up2 nodad && ip link set up2 up && \
             ip -n far addr add 198.51.100.9/24 dev up3 && ip -n far addr add fd00:3::9/64 dev up3 nodad && \
             ip -n far link set up3 up && \
             ip -n far route add default via 198.51.100.1 && ip -n far route add default via fd00:3::1",
        );
        let at = |host_ip| json!({"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": host_ip});
        let mappings = json!([
            mapping("tcp", 8080, 80),
            mapping("udp", 5353, 53),
            at("198.51.100.9"),
            at("fd00:3::9"),
        ]);
        lab.add("c1", &mappings);
        lab.serve("c1", "tcp", 80, "c1");
        lab.serve("c1", "udp", 53, "c1");
        for (protocol, port) in [("tcp", 8080), ("udp", 5353), ("tcp", 8081)] {
            lab.serve("far", protocol, port, "far");
            for (address, seen) in [("198.51.100.9", "192.0.2.9"), ("fd00:3::9", "fd00:2::9")] {
                assert_eq!(
                    lab.call("ext", protocol, address, port),
                    format!("far {seen}"),
                    "{}: {protocol} {port} of {address}",
                    lab.backend
                );
            }
        }
    });
}

#[test]
fn check_asks_for_what_add_made() {
    on_every_backend(|mut lab| {
        let at = |port, host_ip| json!({"hostPort": port, "containerPort": 80, "protocol": "tcp", "hostIP": host_ip});
        let mappings = json!([
            at(8000, ""),
            at(8001, "192.0.2.1"),
            at(8002, "fd00:2::1"),
            at(8003, "::")
        ]);
        // A container with addresses of both families, of IPv4 only, and of IPv6 only.
        for (name, ranges, v4, v6) in [
            (
                "both",
                json!([[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]),
                true,
                true,
            ),
            ("four", json!([[{"subnet": "10.9.0.0/24"}]]), true, false),
            ("six", json!([[{"subnet": "fd00:9::/64"}]]), false, true),
        ] {
            let ipam = json!({"ipam": {"type": "host-local", "ranges": ranges}});
            lab.configure(&ipam, &json!({}));
            lab.add(name, &mappings);
            lab.cnitool("check", name, &mappings).silent();
            lab.serve(name, "tcp", 80, name);
            for (address, port, answers) in [
                ("192.0.2.1", 8000, v4),
                ("192.0.2.1", 8001, v4),
                ("fd00:2::1", 8000, v6),
                ("fd00:2::1", 8002, v6),
                ("fd00:2::1", 8003, v6),
            ] {
                let answer = lab.call("ext", "tcp", address, port);
                assert_eq!(
                    answer.starts_with(&format!("{name} ")),
                    answers,
                    "{} {name} {address} {port}: {answer}",
                    lab.backend
                );
            }
            lab.cnitool("del", name, &mappings).silent();
        }
        // One that no family is left for.
        lab.configure(
            &json!({"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}]]}}),
            &json!({}),
        );
        let six = json!([at(8002, "fd00:2::1")]);
        lab.add("none", &six);
        lab.cnitool("check", "none", &six).silent();
        lab.cnitool("del", "none", &six).silent();
        assert!(!lab.rules().contains("8002"), "{}", lab.rules());
    });
}

#[test]
fn a_container_to_which_no_route_leads_is_mapped_all_the_same() {
    let lab = Lab::new("nftables");
    let netns = lab.node.netns("alone");
    let config = json!({
        "cniVersion": "1.1.0", "name": "net1", "type": "portmap", "backend": "nftables",
        "runtimeConfig": {"portMappings": [mapping("tcp", 8080, 80)]},
        "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.8.0.2/24"}]},
    });
    for kind in ["unreachable", "prohibit", "blackhole", "throw"] {
        lab.node.sh(&format!("ip route add {kind} 10.8.0.0/24"));
        let run = |command| {
            lab.node
                .plugin("portmap")
                .netns(&netns)
                .run(command, &config)
        };
        let added = run("ADD");
        assert!(added.ok, "{kind}: {added:?}");
        assert!(lab.rules().contains("dnat to 10.8.0.2:80"), "{kind}");
        run("DEL").silent();
        lab.node.sh(&format!("ip route del {kind} 10.8.0.0/24"));
    }
}
