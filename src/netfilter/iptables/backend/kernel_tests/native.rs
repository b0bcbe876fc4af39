//! What is added without the tools of the nft variant is what they would have added.

use super::super::{by_family, masquerade as rules_of};
use super::*;

/// Adds by `by_tool`, which runs the tools, and by `natively`, which cannot; compares what the
/// tools then say that there is, and removes it.
fn compare(node: &Node, by_tool: &dyn Fn(), natively: &dyn Fn(), remove: &dyn Fn()) {
    let before = node.saved();
    by_tool();
    let expected = node.saved();
    assert_ne!(expected, before);
    remove();
    assert_eq!(node.saved(), before);
    natively();
    assert_eq!(node.saved(), expected);
    remove();
    assert_eq!(node.saved(), before);
}

#[test]
fn masquerading_is_that_of_the_tools() {
    let node = &Node::new("nft");
    let (first, second) = (owner("first"), owner("c1"));
    let base = masquerade(&["10.9.0.9/24", "fd00:9::9/64"]);
    node.iptables.ensure_masquerade(&first, &base).unwrap();
    for addresses in [
        &["10.9.0.2/24", "10.8.0.2/13", "fd00:9::2/64"][..],
        &["10.9.0.2/24", "10.9.0.3/24", "10.1.2.3/32", "192.168.1.1/8"],
        &["fd00:9::2/61", "fd00:9::3/128"],
    ] {
        let wanted = masquerade(addresses);
        let by_tool = || {
            for (family, addresses) in by_family(&wanted.addresses) {
                let rules = rules_of::Rules::new(&second, family, &addresses);
                let tool = node.iptables.usual_tool(family).unwrap();
                tool.restore(&rules.add()).unwrap().unwrap();
            }
        };
        let natively = || {
            let backend = node.without_tools();
            backend.ensure_masquerade(&second, &wanted).unwrap();
            node.iptables.check_masquerade(&second, &wanted).unwrap();
        };
        let remove = || {
            let known = Known::own(&wanted.addresses);
            node.iptables.remove_masquerade(&second, &known).unwrap();
        };
        compare(node, &by_tool, &natively, &remove);
    }
}

#[test]
fn mappings_are_those_of_the_tools() {
    let node = &Node::new("nft");
    let mapping = |protocol, host_ip: &str, host_port| Mapping {
        protocol,
        host_ip: host_ip.parse().ok(),
        host_port,
        container_port: host_port / 2,
    };
    let all = PortMaps {
        mappings: vec![
            mapping(Protocol::Udp, "0.0.0.0", 53),
            mapping(Protocol::Sctp, "", 9000),
            mapping(Protocol::Tcp, "192.168.1.1", 8080),
            mapping(Protocol::Tcp, "::1", 8081),
            mapping(Protocol::Udp, "::", 65535),
        ],
        ..dual_maps(&[])
    };
    let many: Vec<Mapping> = (1..=40)
        .map(|port| mapping(Protocol::Tcp, "", 1000 + port))
        .collect();
    for bit in [13, 31] {
        let mark = Mark::Bit(bit);
        let base = PortMaps {
            mark: mark.clone(),
            ..dual_maps(&[1000])
        };
        node.iptables
            .ensure_port_maps(&owner("first"), &base)
            .unwrap();
        for wanted in [
            PortMaps {
                mark: mark.clone(),
                ..all.clone()
            },
            PortMaps {
                mark: mark.clone(),
                masquerade_all: true,
                ..all.clone()
            },
            PortMaps {
                snat: false,
                ..all.clone()
            },
            PortMaps {
                mark: mark.clone(),
                mappings: many.clone(),
                ..all.clone()
            },
        ] {
            let by_tool = || {
                for (family, rules) in Iptables::port_map_rules(&owner("c1"), &wanted).unwrap() {
                    let tool = node.iptables.usual_tool(family).unwrap();
                    tool.restore(&rules.add()).unwrap().unwrap();
                }
            };
            let natively = || {
                let backend = node.without_tools();
                backend.ensure_port_maps(&owner("c1"), &wanted).unwrap();
                node.iptables
                    .check_port_maps(&owner("c1"), &wanted)
                    .unwrap();
            };
            let remove = || {
                let known = Known::own(&wanted.container);
                node.iptables
                    .remove_port_maps(&owner("c1"), &known)
                    .unwrap();
            };
            compare(node, &by_tool, &natively, &remove);
        }
    }
}

/// It goes to the tools, which here do nothing: neither does anybody else.
#[test]
fn what_is_unusual_is_left_to_the_tools() {
    let node = &Node::new("nft");
    let backend = &node.without_tools();
    let usual = port_maps(&["10.9.0.2/24"], &[8080]);
    let fails = |what: &str, wanted: &PortMaps| {
        let before = node.saved();
        let made = backend.ensure_port_maps(&owner("c1"), wanted);
        assert!(made.is_err(), "{what}");
        assert_eq!(node.saved(), before, "{what}");
    };
    let net = masquerade(&["10.9.0.2/24"]);
    fails("a fresh node", &usual);
    assert!(backend.ensure_masquerade(&owner("c1"), &net).is_err());
    for (what, command) in [
        ("no way into the chain", "-F PREROUTING"),
        ("no way out", "-F POSTROUTING"),
        ("nothing marks", "-F CNI-HOSTPORT-SETMARK"),
        ("nothing masquerades", "-F CNI-HOSTPORT-MASQ"),
        ("the container has the chain", "-N CNI-DN-$D"),
    ] {
        node.iptables
            .ensure_port_maps(&owner("first"), &port_maps(&["10.9.0.9/24"], &[80]))
            .unwrap();
        let hash = crate::hash::sha512_hex("net1c1", 21);
        node.sh(&format!("iptables -t nat {}", command.replace("$D", &hash)));
        fails(what, &usual);
    }
    node.sh("iptables -t nat -N KUBE-MARK-MASQ && iptables -t nat -X CNI-DN-$(printf net1c1 | sha512sum | cut -c1-21)");
    let words = |text: &str| text.split(' ').map(str::to_owned).collect();
    for (what, wanted) in [
        (
            "conditions",
            PortMaps {
                conditions_v4: words("! -d 192.0.2.0/24"),
                ..usual.clone()
            },
        ),
        (
            "somebody else's chain",
            PortMaps {
                mark: Mark::Chain("KUBE-MARK-MASQ".into()),
                ..usual.clone()
            },
        ),
        (
            "another mark",
            PortMaps {
                mark: Mark::Bit(14),
                ..usual.clone()
            },
        ),
    ] {
        fails(what, &wanted);
    }
    backend.ensure_port_maps(&owner("c1"), &usual).unwrap();
    node.iptables.check_port_maps(&owner("c1"), &usual).unwrap();
}

/// Who has a port is known without the rules of all others: nobody's but the taken ones are
/// listed.
#[test]
fn ports_are_claimed() {
    let node = Node::new("nft");
    let backend = &node.iptables;
    let maps = |n: u8, port: u16| port_maps(&[&format!("10.9.0.{n}/24")], &[port]);
    let add = |backend: &Iptables, id: &str, n: u8, port: u16| {
        backend
            .ensure_port_maps(&owner(id), &maps(n, port))
            .unwrap();
    };
    let claimed = || {
        let text = node.sh("nft list set inet cnibox iptables_ports");
        let claims = text.lines().filter_map(|line| {
            let (_, element) = line.split_once("tcp . ")?;
            let (port, comment) = element.split_once(" comment ")?;
            let id = comment.rsplit("id: ").next()?;
            Some(format!(
                "{port} {}",
                id.split('"').find(|part| !part.is_empty())?
            ))
        });
        let mut claims: Vec<String> = claims.collect();
        claims.sort();
        claims.join(", ")
    };
    add(backend, "first", 2, 80);
    assert_eq!(claimed(), "80 first");
    // Nobody has to be asked.
    add(&node.without_tools(), "second", 3, 81);
    assert_eq!(claimed(), "80 first, 81 second");
    // Whoever goes, there is another.
    add(backend, "third", 4, 80);
    assert_eq!(claimed(), "80 several, 81 second");
    let remove = |id: &str, n| {
        let own = Known::own(&maps(n, 80).container);
        backend.remove_port_maps(&owner(id), &own).unwrap();
    };
    add(backend, "fourth", 5, 80);
    remove("third", 4);
    assert_eq!(claimed(), "80 several, 81 second");
    remove("fourth", 5);
    assert_eq!(claimed(), "80 first, 81 second");
    add(backend, "third", 4, 80);
    remove("first", 2);
    assert_eq!(claimed(), "80 third, 81 second");
    // What is forgotten is seen in the rules.
    node.sh("nft delete table inet cnibox");
    add(backend, "thirdly", 5, 82);
    assert_eq!(claimed(), "80 third, 81 second, 82 thirdly");
    remove("thirdly", 5);
    assert_eq!(claimed(), "80 third, 81 second");
    add(backend, "thirdly", 5, 82);
    remove("third", 4);
    assert_eq!(claimed(), "81 second, 82 thirdly");
    let valid = [owner("thirdly").attachment];
    backend.collect_port_maps("net2", &valid).unwrap();
    assert_eq!(claimed(), "81 second, 82 thirdly");
    // Even if their rules are gone.
    node.sh("iptables -t nat -F");
    let stale = backend.stale_port_maps("net1", &valid).unwrap();
    assert!(
        stale
            .iter()
            .any(|line| line.starts_with("container second, remembered"))
    );
    backend.collect_port_maps("net1", &valid).unwrap();
    assert_eq!(claimed(), "82 thirdly");
    remove("thirdly", 5);
    assert_eq!(claimed(), "");
}

#[test]
fn what_lets_containers_through_is_that_of_the_tools() {
    let node = &Node::new("nft");
    let wanted = |n: u8| Firewall {
        addresses: [format!("10.9.0.{n}"), format!("fd00:9::{n}")]
            .map(|address| address.parse().unwrap())
            .into(),
        admin_chain: Some("CNI-ADMIN".into()),
        isolation: None,
    };
    let saved = || node.saved_of("filter");
    let (first, second) = (owner("first"), owner("second"));
    node.iptables.ensure_firewall(&first, &wanted(2)).unwrap();
    let before = saved();
    for (family, command) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
        let text = firewall::Rules::new(family, &wanted(3)).add().text();
        test_node::feed(&format!("{SBIN}/{command}-nft-restore --noflush"), &text);
    }
    let by_tool = saved();
    assert_eq!(by_tool.len(), before.len() + 4);
    let native = node.without_tools();
    let remove = || {
        let addresses = wanted(3).addresses;
        native.remove_firewall(&second, &addresses).unwrap();
    };
    remove();
    assert_eq!(saved(), before);
    native.ensure_firewall(&second, &wanted(3)).unwrap();
    assert_eq!(saved(), by_tool);
    // What is there already, or differs, is for the tools.
    native.ensure_firewall(&second, &wanted(3)).unwrap_err();
    node.iptables.ensure_firewall(&second, &wanted(3)).unwrap();
    assert_eq!(saved(), by_tool);
    node.sh("iptables -D FORWARD -m comment --comment 'CNI firewall plugin rules' -j CNI-FORWARD");
    native.ensure_firewall(&second, &wanted(4)).unwrap_err();
    remove();
    assert!(!saved().iter().any(|line| line.contains("10.9.0.3/32")));
}
