//! Flows that have no end, and outlive the mapping they came through (docs/requirements.md#r-55).

use serde_json::json;

use crate::lab::{Lab, mapping, on_every_backend};

#[test]
fn old_flows_follow_the_new_owner() {
    on_every_backend(|mut lab| {
        let backend = lab.backend;
        let mappings = json!([mapping("udp", 5353, 53), mapping("sctp", 9000, 90)]);
        // The same ports at both ends all the time, so that it stays the same flow.
        let assert_served_by = |lab: &Lab, who: &str| {
            for (protocol, port) in [("udp", 5353), ("sctp", 9000)] {
                for address in ["192.0.2.1", "fd00:2::1"] {
                    let answer = lab.call_from("ext", protocol, address, port, 40000);
                    assert!(
                        answer.starts_with(&format!("{who} ")),
                        "{backend}: {protocol} to {address} led to {answer:?}, not {who}"
                    );
                }
            }
        };
        lab.add("c1", &mappings);
        lab.serve("c1", "udp", 53, "c1");
        lab.serve("c1", "sctp", 90, "c1");
        assert_served_by(&lab, "c1");
        lab.cnitool("del", "c1", &mappings).silent();
        // The ports are the host's own again: the old flows must not go on to c1.
        lab.serve("", "udp", 5353, "host");
        lab.serve("", "sctp", 9000, "host");
        assert_served_by(&lab, "host");
        lab.stop_last();
        lab.stop_last();
        lab.add("c2", &mappings);
        lab.serve("c2", "udp", 53, "c2");
        lab.serve("c2", "sctp", 90, "c2");
        assert_served_by(&lab, "c2");
    });
}

#[test]
fn flows_of_others_go_on() {
    on_every_backend(|mut lab| {
        // Through the mapping of another port, and to the same port of another machine.
        lab.add("c1", &json!([mapping("udp", 5354, 53)]));
        lab.serve("c1", "udp", 53, "c1");
        lab.serve("ext", "udp", 5353, "ext");
        for (from, address, port, own) in [
            ("ext", "192.0.2.1", 5354, 40001),
            ("ext", "fd00:2::1", 5354, 40002),
            ("c1", "192.0.2.9", 5353, 40003),
            ("c1", "fd00:2::9", 5353, 40004),
        ] {
            let answer = lab.call_from(from, "udp", address, port, own);
            assert_ne!(answer, "", "{} {address} {port}", lab.backend);
        }
        // What the kernel remembers of the four, with the number of each entry.
        let flows = || {
            lab.node.sh(
                "for f in ipv4 ipv6; do conntrack -L -f $f -p udp -o id 2>/dev/null; done | \
                 grep -o ' sport=4000[1-4] .* id=[0-9]*' | sed 's/^ \\(sport=[0-9]*\\) .* id=/\\1 /' | sort",
            )
        };
        let before = flows();
        assert_eq!(before.lines().count(), 4, "{before}");
        let mappings = json!([mapping("udp", 5353, 53)]);
        lab.add("c2", &mappings);
        assert_eq!(flows(), before, "{} after ADD", lab.backend);
        lab.cnitool("del", "c2", &mappings).silent();
        assert_eq!(flows(), before, "{} after DEL", lab.backend);
    });
}
