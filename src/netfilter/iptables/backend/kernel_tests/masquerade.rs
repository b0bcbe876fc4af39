//! Masquerade rules in the kernel.

use super::*;

#[test]
fn masquerade_comes_and_goes_without_a_trace() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        backend.ensure_masquerade(&owner("first"), &dual()).unwrap();
        backend
            .remove_masquerade(&owner("first"), &Known::own(&dual().addresses))
            .unwrap();
        let before = node.saved();
        for known in [Known::own(&dual().addresses), Known::NOTHING] {
            for _ in 0..2 {
                backend.ensure_masquerade(&owner("c1"), &dual()).unwrap();
                backend.check_masquerade(&owner("c1"), &dual()).unwrap();
                assert_eq!(node.saved().len(), before.len() + 8, "{:#?}", node.saved());
            }
            for _ in 0..2 {
                backend.remove_masquerade(&owner("c1"), &known).unwrap();
                assert_eq!(node.saved(), before);
            }
        }
    });
}

/// Their chain has one name: the interface is not part of it (docs/compatibility.md#defect-22).
#[test]
fn two_attachments_of_a_container_to_one_network() {
    on_both_variants(|node| {
        let backend = &node.iptables;
        let (eth0, eth1) = (
            owner("c1"),
            Owner {
                attachment: attachment("c1", "eth1"),
                ..owner("c1")
            },
        );
        let (first, second) = (dual(), masquerade(&["10.8.0.2/16", "fd00:9::3/64"]));
        backend.ensure_masquerade(&eth0, &first).unwrap();
        let before = node.private();
        backend.ensure_masquerade(&eth1, &second).unwrap();
        backend.check_masquerade(&eth0, &first).unwrap();
        backend.check_masquerade(&eth1, &second).unwrap();
        let chain: Vec<String> = node
            .private()
            .into_iter()
            .filter(|line| line.starts_with("iptables -A CNI-"))
            .collect();
        assert!(
            chain.len() == 3 && chain[2].ends_with("MASQUERADE"),
            "{chain:#?}"
        );
        backend
            .remove_masquerade(&eth1, &Known::own(&second.addresses))
            .unwrap();
        assert_eq!(node.private(), before);
        // Once more, its own being gone.
        let known = Known {
            others: Others::These(vec![
                "10.9.0.2".parse().unwrap(),
                "fd00:9::2".parse().unwrap(),
            ]),
            ..Known::own(&second.addresses)
        };
        backend.remove_masquerade(&eth1, &known).unwrap();
        assert_eq!(node.private(), before);
        // The address is not what everybody thinks.
        let known = Known::own(&nets(&["10.9.0.77/24", "fd00:9::77/64"]));
        backend.remove_masquerade(&eth0, &known).unwrap();
        assert_eq!(node.private(), [""; 0]);
    });
}
