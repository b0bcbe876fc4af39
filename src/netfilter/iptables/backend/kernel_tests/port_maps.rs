//! Port mappings in the kernel.

use super::*;
use crate::cni::error::ErrorObject;

#[test]
fn port_maps_come_and_go_without_a_trace() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let maps = dual_maps(&[8080, 8443]);
        backend.ensure_port_maps(&owner("first"), &maps).unwrap();
        backend
            .remove_port_maps(&owner("first"), &Known::NOTHING)
            .unwrap();
        let before = node.saved();
        // The shared base: three chains, two hooks, and what marks and masquerades.
        assert_eq!(
            before.iter().filter(|line| line.contains("CNI-")).count(),
            16
        );
        let mut made = None;
        for _ in 0..2 {
            backend.ensure_port_maps(&owner("c1"), &maps).unwrap();
            backend.check_port_maps(&owner("c1"), &maps).unwrap();
            let now = node.saved();
            assert_eq!(*made.get_or_insert_with(|| now.clone()), now);
        }
        backend
            .ensure_port_maps(&owner("c1"), &dual_maps(&[8081]))
            .unwrap();
        assert!(!node.saved().iter().any(|line| line.contains("8443")));
        for _ in 0..2 {
            backend
                .remove_port_maps(&owner("c1"), &Known::NOTHING)
                .unwrap();
            assert_eq!(node.saved(), before);
        }
    });
}

/// Their chain has one name: the interface is not part of it (docs/compatibility.md#defect-22).
#[test]
fn two_attachments_of_a_container_to_one_network() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let other = Owner {
            attachment: attachment("c1", "eth1"),
            ..owner("c1")
        };
        let first = dual_maps(&[8080, 8081]);
        let second = port_maps(&["10.9.0.3/24", "fd00:9::3/64"], &[8080, 8082]);
        backend.ensure_port_maps(&owner("c1"), &first).unwrap();
        let only_first = node.private();
        let mut made = Vec::new();
        for _ in 0..2 {
            backend.ensure_port_maps(&other, &second).unwrap();
            backend.check_port_maps(&owner("c1"), &first).unwrap();
            backend.check_port_maps(&other, &second).unwrap();
            made.push(node.saved());
        }
        assert_eq!(made[0], made[1]);
        backend.ensure_port_maps(&owner("c1"), &first).unwrap();
        backend.check_port_maps(&other, &second).unwrap();
        // Of the two, the one whose addresses are known goes.
        for known in [
            Known::own(&second.container),
            Known::only(&second.container),
        ] {
            backend.remove_port_maps(&other, &known).unwrap();
            assert_eq!(node.private(), only_first);
            backend.ensure_port_maps(&other, &second).unwrap();
        }
        backend
            .remove_port_maps(&owner("c1"), &Known::own(&first.container))
            .unwrap();
        backend.check_port_maps(&other, &second).unwrap();
        assert!(!node.private().iter().any(|line| line.contains("8081")));
        backend.ensure_port_maps(&owner("c1"), &first).unwrap();
        // No addresses are known: both go.
        backend.remove_port_maps(&other, &Known::NOTHING).unwrap();
        assert_eq!(node.private(), [""; 0]);
    });
}

/// The same port of two addresses of the host: the two entries are one.
#[test]
fn one_port_of_two_addresses_for_two_attachments() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let at = |host: &str, container: &str| {
            let mut maps = port_maps(&[container], &[8080]);
            maps.mappings[0].host_ip = Some(host.parse().unwrap());
            maps
        };
        let other = Owner {
            attachment: attachment("c1", "eth1"),
            ..owner("c1")
        };
        let (first, second) = (
            at("192.0.2.1", "10.9.0.2/24"),
            at("192.0.2.2", "10.9.0.3/24"),
        );
        backend.ensure_port_maps(&owner("c1"), &first).unwrap();
        backend.ensure_port_maps(&other, &second).unwrap();
        let known = Known {
            own: second.container.clone(),
            others: Others::These(vec![first.container[0].addr()]),
        };
        backend.remove_port_maps(&other, &known).unwrap();
        backend.check_port_maps(&owner("c1"), &first).unwrap();
        assert!(!node.private().iter().any(|line| line.contains("10.9.0.3")));
    });
}

#[test]
fn what_others_flushed_is_repaired() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let maps = dual_maps(&[8080]);
        backend.ensure_port_maps(&owner("c1"), &maps).unwrap();
        let before = node.saved();
        backend
            .remove_port_maps(&owner("c1"), &Known::NOTHING)
            .unwrap();
        for command in [
            "iptables -t nat -F PREROUTING",
            "iptables -t nat -F OUTPUT",
            "iptables -t nat -F POSTROUTING",
            "iptables -t nat -F CNI-HOSTPORT-SETMARK",
            "iptables -t nat -F CNI-HOSTPORT-MASQ",
            "iptables -t nat -F && iptables -t nat -X",
        ] {
            node.sh(command);
            backend.ensure_port_maps(&owner("c1"), &maps).unwrap();
            assert_eq!(node.saved(), before, "{command}");
            backend
                .remove_port_maps(&owner("c1"), &Known::NOTHING)
                .unwrap();
        }
    });
}

#[test]
fn one_mark_for_all() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let maps = port_maps(&["10.9.0.2/24"], &[8080]);
        backend.ensure_port_maps(&owner("c1"), &maps).unwrap();
        let other = PortMaps {
            mark: Mark::Bit(14),
            ..port_maps(&["10.9.0.3/24"], &[8081])
        };
        backend.ensure_port_maps(&owner("c2"), &other).unwrap();
        let marks: Vec<String> = node
            .saved()
            .into_iter()
            .filter(|line| line.contains("0x"))
            .collect();
        assert!(
            marks.len() == 2 && marks.iter().all(|l| l.contains("0x4000")),
            "{marks:#?}"
        );
        backend.check_port_maps(&owner("c1"), &maps).unwrap();
        backend.check_port_maps(&owner("c2"), &other).unwrap();
    });
}

#[test]
fn somebody_elses_chain_marks() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let maps = PortMaps {
            mark: Mark::Chain("KUBE-MARK-MASQ".into()),
            ..port_maps(&["10.9.0.2/24"], &[8080])
        };
        let error = backend.ensure_port_maps(&owner("c1"), &maps).unwrap_err();
        let error = ErrorObject::from_error(&error);
        assert!(
            error.code == 7 && error.msg.contains("externalSetMarkChain"),
            "{error:?}"
        );
        assert!(!node.saved().iter().any(|line| line.contains("CNI-")));
        node.sh("iptables -t nat -N KUBE-MARK-MASQ");
        backend.ensure_port_maps(&owner("c1"), &maps).unwrap();
        backend.check_port_maps(&owner("c1"), &maps).unwrap();
        backend
            .remove_port_maps(&owner("c1"), &Known::NOTHING)
            .unwrap();
        assert_eq!(node.private(), [""; 0]);
    });
}

#[test]
fn conditions_in_the_words_of_iptables() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let words = |text: &str| text.split(' ').map(str::to_owned).collect();
        let mut maps = PortMaps {
            conditions_v4: words("! -d 192.0.2.1 -m comment --comment \"x\""),
            ..port_maps(&["10.9.0.2/24"], &[8080])
        };
        for _ in 0..2 {
            backend.ensure_port_maps(&owner("c1"), &maps).unwrap();
            backend.check_port_maps(&owner("c1"), &maps).unwrap();
        }
        let before = node.saved();
        maps.conditions_v4 = words("--no-such-option");
        let error = backend.ensure_port_maps(&owner("c1"), &maps).unwrap_err();
        assert!(format!("{error:#}").contains("no-such-option"), "{error:#}");
        let error = ErrorObject::from_error(&error);
        assert!(
            error.code == 7 && error.msg.contains("conditionsV4"),
            "{error:?}"
        );
        assert_eq!(node.saved(), before, "all or nothing");
        backend
            .remove_port_maps(&owner("c1"), &Known::NOTHING)
            .unwrap();
        assert_eq!(node.private(), [""; 0]);
    });
}

#[test]
fn a_thousand_ports() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let ports: Vec<u16> = (10_000..11_000).collect();
        let maps = port_maps(&["10.9.0.2/24"], &ports);
        for _ in 0..2 {
            backend.ensure_port_maps(&owner("c1"), &maps).unwrap();
        }
        backend.check_port_maps(&owner("c1"), &maps).unwrap();
        assert_eq!(
            node.saved()
                .iter()
                .filter(|line| line.contains("-j DNAT"))
                .count(),
            1000
        );
        backend
            .remove_port_maps(&owner("c1"), &Known::NOTHING)
            .unwrap();
        assert_eq!(node.private(), [""; 0]);
    });
}
