//! Who marks what is to be masqueraded, and with which bit (docs/requirements.md#r-61).

use serde_json::{Value, json};

use crate::common::Output;
use crate::lab::{Lab, mapping, on_every_backend};

/// A chain as operators have for their own marks.
const CHAIN: &str = "OPERATOR-MARK";

/// Runs a test on a lab of its own for each backend that has marks.
fn on_iptables(test: fn(Lab)) {
    for backend in ["iptables-nft", "iptables-legacy"] {
        std::thread::spawn(move || test(Lab::new(backend)))
            .join()
            .unwrap();
    }
}

/// Makes [`CHAIN`], which marks, and masquerades what is marked.
fn make_chain(lab: &Lab, tool: &str) {
    let tool = format!("{}/{tool} -w -t nat", lab.path);
    lab.node.sh(&format!(
        "{tool} -N {CHAIN} && {tool} -A {CHAIN} -j MARK --or-mark 0x40000 && \
         {tool} -A POSTROUTING -m mark --mark 0x40000/0x40000 -j MASQUERADE"
    ));
}

/// ADD of the portmap plugin alone: nobody cleans up behind it.
fn add_alone(lab: &Lab, backend: &str) -> Output {
    let netns = lab.node.netns("alone");
    let config = json!({
        "cniVersion": "1.1.0", "name": "net1", "type": "portmap", "backend": backend,
        "externalSetMarkChain": CHAIN,
        "runtimeConfig": {"portMappings": [mapping("tcp", 8080, 80)]},
        "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24"}, {"address": "fd00:9::2/64"}]},
    });
    let call = lab.node.plugin("portmap").netns(&netns);
    let added = call.env("PATH", &lab.path).run("ADD", &config);
    lab.node.sh("ip netns del alone");
    added
}

#[test]
fn a_chain_of_the_operator_marks() {
    on_iptables(|mut lab| {
        make_chain(&lab, "iptables");
        make_chain(&lab, "ip6tables");
        let everything = json!({"externalSetMarkChain": CHAIN, "masqAll": true});
        lab.configure(&json!({}), &everything);
        let mappings = json!([mapping("tcp", 8080, 80)]);
        lab.add("c0", &mappings);
        lab.cnitool("del", "c0", &mappings).silent();
        let before = lab.rules();
        lab.add("c1", &mappings);
        lab.serve("c1", "tcp", 80, "c1");
        // Masqueraded, and not by marks of ours.
        assert_eq!(lab.call("ext", "tcp", "192.0.2.1", 8080), "c1 10.9.0.1");
        assert_eq!(lab.call("ext", "tcp", "fd00:2::1", 8080), "c1 fd00:9::1");
        assert_eq!(lab.call("", "tcp", "127.0.0.1", 8080), "c1 10.9.0.1");
        let rules = lab.rules();
        assert!(
            rules.contains(CHAIN) && !rules.contains("CNI-HOSTPORT-SETMARK"),
            "{rules}"
        );
        lab.cnitool("check", "c1", &mappings).silent();
        lab.cnitool("del", "c1", &mappings).silent();
        assert_eq!(lab.rules(), before);
    });
}

#[test]
fn a_chain_that_is_missing_is_named_and_nothing_is_left() {
    on_iptables(|lab| {
        for made in ["", "iptables", "ip6tables"] {
            let flush = "nft flush ruleset; iptables-legacy -t nat -F; iptables-legacy -t nat -X; \
                         ip6tables-legacy -t nat -F; ip6tables-legacy -t nat -X";
            lab.node.sh(flush);
            if !made.is_empty() {
                make_chain(&lab, made);
            }
            let (code, message, details) = add_alone(&lab, "iptables").error();
            assert_eq!(code, 7, "{message}; {details}");
            let text = format!("{message}; {details}");
            assert!(
                text.contains(&format!(
                    "externalSetMarkChain: there is no chain {CHAIN} in table nat"
                )),
                "{text}"
            );
            let rules = lab.rules();
            assert!(
                !rules.contains("CNI-DN-") && !rules.contains("10.9.0.2"),
                "{} with chain in {made:?}:\n{rules}",
                lab.backend
            );
        }
    });
}

#[test]
fn nftables_has_no_use_for_a_marking_chain() {
    let lab = Lab::new("nftables");
    let (code, _, details) = add_alone(&lab, "nftables").error();
    assert_eq!(code, 7);
    assert!(
        details.starts_with("externalSetMarkChain: is written for iptables"),
        "{details}"
    );
    assert_eq!(lab.rules(), "");
}

#[test]
fn any_bit_is_the_mark_and_only_one() {
    on_every_backend(|mut lab| {
        for (name, bit, port) in [("c1", 31, 8081), ("c2", 0, 8082)] {
            lab.configure(&json!({}), &json!({"markMasqBit": bit}));
            lab.add(name, &json!([mapping("tcp", port, 80)]));
            lab.serve(name, "tcp", 80, name);
        }
        let save = |tool: &str| lab.node.sh(&format!("{}/{tool}-save -t nat", lab.path));
        if lab.word() == "nftables" {
            let rules = lab.rules();
            assert!(!rules.contains("meta mark"), "{rules}");
        } else {
            for rules in [save("iptables"), save("ip6tables")] {
                // Two would both be set on every packet (docs/compatibility.md#defect-27).
                assert_eq!(rules.matches("--set-xmark").count(), 1, "{rules}");
                assert!(rules.contains("--set-xmark 0x1/0x1"), "{rules}");
                assert_eq!(rules.matches("-j MASQUERADE").count(), 3, "{rules}");
            }
        }
        // The older container is masqueraded by the newer one's bit.
        for (name, port) in [("c1", 8081), ("c2", 8082)] {
            for (address, seen) in [("192.0.2.1", "10.9.0.1"), ("fd00:2::1", "fd00:9::1")] {
                let answer = lab.call(name, "tcp", address, port);
                assert_eq!(answer, format!("{name} {seen}"), "{}", lab.backend);
            }
            let mappings: Value = json!([mapping("tcp", port, 80)]);
            lab.cnitool("check", name, &mappings).silent();
        }
    });
}
