//! What is remembered beside the rules: who has which port, who needs 127.0.0.1.

use serde_json::{Value, json};

use crate::lab::{Lab, mapping, on_every_backend};
use crate::restore::FLUSH;

impl Lab {
    /// Whether packets from 127.0.0.1 may go out to the containers.
    fn routes_localnet(&self) -> bool {
        let switch = "cat /proc/sys/net/ipv4/conf/br1/route_localnet";
        self.node.sh(switch) == "1\n"
    }
}

/// What a listing costs grows with the number of containers on the node; for ADD, nothing
/// may.
#[test]
fn adding_lists_no_rules() {
    let lab = Lab::new("nftables");
    lab.configure(&json!({"macspoofchk": true}), &json!({}));
    lab.add("c0", &json!([mapping("tcp", 8080, 80)]));
    lab.node.netns("c1");
    let mappings = json!([mapping("tcp", 8081, 80)]);
    let listings = |command: &str| {
        let calls = lab.traced("%network", command, "c1", &mappings);
        let sent =
            |line: &&str| line.contains("nlmsg_type=NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_NEWRULE");
        let is_listing = |line: &&str| {
            ["NFT_MSG_GETRULE", "NFT_MSG_GETSETELEM"]
                .iter()
                .any(|kind| line.contains(kind))
        };
        if command == "add" {
            assert!(calls.lines().any(|line| sent(&line)), "{calls}");
        }
        calls.lines().filter(is_listing).count()
    };
    assert_eq!(listings("add"), 0);
    // The rules are there all the same, and DEL looks for them.
    assert!(lab.rules().contains("tcp dport 8081 dnat to 10.9.0."));
    assert!(listings("del") > 0);
    assert!(!lab.rules().contains("8081"), "{}", lab.rules());
}

#[test]
fn a_displaced_owner_is_named_and_nobody_else() {
    let lab = Lab::new("nftables");
    let port = json!([mapping("tcp", 8080, 80)]);
    let add = |name: &str, mappings: &Value| {
        lab.node.netns(name);
        let added = lab.cnitool("add", name, mappings);
        assert!(added.ok, "{added:?}");
        added.stderr
    };
    assert_eq!(add("c1", &port), "");
    let other =
        json!([{"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}]);
    assert_eq!(add("c2", &other), "");
    // Any address of the host is that one too.
    let any = add("c3", &json!([mapping("tcp", 8081, 80)]));
    assert!(any.contains("8081/tcp was mapped to container"), "{any}");
    assert!(add("c4", &port).contains("8080/tcp was mapped to container"));
    for name in ["c1", "c2", "c3", "c4"] {
        lab.cnitool("del", name, &json!([])).silent();
    }
    assert_eq!(add("c5", &port), "");
    // What is only left over in our memory is nobody's.
    lab.node.sh(
        "nft flush chain ip cni_hostport hostports; nft flush chain ip6 cni_hostport hostports",
    );
    assert_eq!(add("c6", &port), "");
    lab.cnitool("check", "c6", &port).silent();
}

/// Container `c1` with host port 8081, and `c2`, which serves, with 8082: their mappings.
fn two_published(lab: &mut Lab) -> (Value, Value) {
    let one = json!([mapping("tcp", 8081, 80)]);
    let two = json!([mapping("tcp", 8082, 80)]);
    lab.add("c1", &one);
    lab.add("c2", &two);
    lab.serve("c2", "tcp", 80, "c2");
    (one, two)
}

#[test]
fn localhost_is_routed_as_long_as_a_container_needs_it() {
    on_every_backend(|mut lab| {
        let backend = lab.backend;
        let (one, two) = two_published(&mut lab);
        lab.cnitool("del", "c1", &json!([])).silent();
        assert!(lab.call("", "tcp", "127.0.0.1", 8082).starts_with("c2 "));
        assert!(lab.routes_localnet(), "{backend}");
        lab.cnitool("del", "c2", &two).silent();
        assert!(!lab.routes_localnet(), "{backend}");
        // GC does it for the dead.
        lab.add("c3", &one);
        assert!(lab.routes_localnet(), "{backend}");
        lab.node.sh("ip netns del c3 && rm -r /var/lib/cni/results");
        let gc = lab.cnitool("gc", "c3", &json!([]));
        assert!(gc.ok, "{gc:?}");
        assert!(!lab.routes_localnet(), "{backend}");
        // What an administrator has switched on stays on.
        lab.node
            .sh("echo 1 > /proc/sys/net/ipv4/conf/br1/route_localnet");
        lab.add("c4", &one);
        lab.cnitool("del", "c4", &one).silent();
        assert!(lab.routes_localnet(), "{backend}");
    });
}

/// The other implementation switches it on, too, and is in no memory of ours.
#[test]
fn localhost_is_routed_as_long_as_a_mapping_leads_over_the_link() {
    on_every_backend(|mut lab| {
        let backend = lab.backend;
        let (one, two) = two_published(&mut lab);
        lab.node.sh("nft flush set ip cnibox_localnet users");
        lab.cnitool("del", "c1", &one).silent();
        assert!(lab.routes_localnet(), "{backend}");
        assert!(lab.call("", "tcp", "127.0.0.1", 8082).starts_with("c2 "));
        let gc = lab.cnitool("gc", "c2", &json!([]));
        assert!(gc.ok, "{gc:?}");
        assert!(lab.routes_localnet(), "{backend}");
        lab.cnitool("del", "c2", &two).silent();
        assert!(!lab.routes_localnet(), "{backend}");
    });
}

/// As when the other implementation has removed the rules.
#[test]
fn gc_forgets_who_has_no_rules_any_more() {
    let lab = Lab::new("nftables");
    let one = json!([mapping("tcp", 8081, 80)]);
    lab.add("alive", &json!([mapping("tcp", 8082, 80)]));
    let before = lab.rules();
    lab.add("dead", &one);
    lab.node.sh(
        "for family in ip ip6; do nft -a list table $family cni_hostport | \
         awk -v f=$family '/chain/ {c = $2} /cnitool-/ && !/8082|0[.]2|::2/ {print \"delete rule\", f, \"cni_hostport\", c, \"handle\", $NF}' | nft -f -; done; \
         nft -a list chain inet cni_plugins_masquerade masq_checks | \
         awk '/10.9.0.3|fd00:9::3/ {print \"delete rule inet cni_plugins_masquerade masq_checks handle\", $NF}' | nft -f -; \
         ip netns del dead && grep -l /run/netns/dead /var/lib/cni/results/* | xargs rm",
    );
    let kept = lab.rules();
    assert!(!kept.contains("dnat to 10.9.0.3"), "{kept}");
    assert!(kept.contains("tcp . 8081"), "{kept}");
    let gc = lab.cnitool("gc", "alive", &json!([]));
    assert!(gc.ok && gc.stderr.contains("remembered although"), "{gc:?}");
    assert_eq!(lab.rules(), before);
}

/// Whose rules the other implementation has removed is forgotten with the next call, whichever
/// that is.
#[test]
fn the_next_call_forgets_whom_the_reference_has_removed() {
    let (one, two, three) = (
        json!([mapping("tcp", 8081, 80), mapping("udp", 8081, 81)]),
        json!([mapping("tcp", 8082, 80)]),
        json!([mapping("tcp", 8083, 80)]),
    );
    for next in ["add", "del", "add the same port"] {
        let lab = Lab::new("nftables");
        lab.add("c2", &two);
        let before = lab.rules();
        lab.add("c1", &one);
        let id = lab.node.sh("nft list table ip cni_hostport | grep -o 'cnitool-[0-9a-f]*' | sort | uniq -c | sort -n | tail -1");
        let id = id.split_whitespace().last().unwrap().to_owned();
        // As its DEL does: by the comment.
        lab.node.sh(&format!(
            "for family in ip ip6; do nft -a list table $family cni_hostport | \
             awk -v f=$family '/chain/ {{c = $2}} /{id}/ {{print \"delete rule\", f, \"cni_hostport\", c, \"handle\", $NF}}' | nft -f -; done"
        ));
        assert!(lab.rules().contains("tcp . 8081"), "{}", lab.rules());
        match next {
            "add" => drop(lab.add("c3", &three)),
            "del" => lab.cnitool("del", "c2", &two).silent(),
            _ => {
                lab.node.netns("c4");
                let added = lab.cnitool("add", "c4", &one);
                // Nobody has them any more.
                assert!(added.ok && added.stderr.is_empty(), "{added:?}");
                lab.cnitool("del", "c4", &one).silent();
                lab.cnitool("del", "c1", &one).silent();
                assert_eq!(lab.rules(), before);
            }
        }
        let rules = lab.rules();
        assert!(!rules.contains("8081"), "{next}: {rules}");
        let mapped = rules.split("set mapped").nth(1).unwrap_or_default();
        let mapped = mapped.split("set ").next().unwrap_or_default();
        assert!(!mapped.contains(&format!("{id} ")), "{next}: {rules}");
    }
}

/// A flush takes the guard along, and the memory of who needs 127.0.0.1.
#[test]
fn localhost_is_not_routed_for_ever_after_a_flush() {
    on_every_backend(|mut lab| {
        let backend = lab.backend;
        let (one, two) = (
            json!([mapping("tcp", 8081, 80)]),
            json!([mapping("tcp", 8082, 80)]),
        );
        let records = |lab: &Lab| lab.node.sh("ls /run/cni | grep -c was-off || :");
        // Whatever is done about it before the DEL.
        for (name, mend) in [("c1", false), ("c2", true)] {
            lab.add(name, &one);
            assert_eq!(records(&lab), "1\n", "{backend}");
            lab.node.sh(FLUSH);
            assert!(lab.routes_localnet(), "{backend}");
            if mend {
                assert!(lab.restore(&[]).ok, "{backend}");
                assert!(lab.routes_localnet(), "{backend}");
            }
            lab.cnitool("del", name, &one).silent();
            assert!(!lab.routes_localnet(), "{backend}: {name}");
            assert_eq!(records(&lab), "0\n", "{backend}");
        }

        // Who lives on keeps it, however restored.
        lab.add("c3", &one);
        lab.add("c4", &two);
        lab.serve("c4", "tcp", 80, "c4");
        lab.node.sh(FLUSH);
        let restored = lab.restore(&[]);
        let count = restored.stdout.matches(": restored (").count();
        assert_eq!(count, 2, "{backend}: {restored:?}");
        lab.cnitool("del", "c3", &one).silent();
        let answers = |lab: &Lab| lab.call("", "tcp", "127.0.0.1", 8082).starts_with("c4 ");
        assert!(lab.routes_localnet() && answers(&lab), "{backend}");
        // Only the memory is gone, and one more container has come since.
        lab.node.sh("nft flush set ip cnibox_localnet users");
        lab.add("c5", &one);
        let restored = lab.restore(&[]);
        let count = restored.stdout.matches(": restored (").count();
        assert_eq!(count, 1, "{backend}: {restored:?}");
        lab.cnitool("del", "c5", &one).silent();
        assert!(lab.routes_localnet() && answers(&lab), "{backend}");
        // The guard is gone, and the switch with the DEL of another; restored, both are back.
        lab.add("c6", &one);
        lab.node.sh(FLUSH);
        lab.cnitool("del", "c6", &one).silent();
        assert!(!lab.routes_localnet(), "{backend}");
        assert!(lab.restore(&[]).ok, "{backend}");
        assert!(lab.routes_localnet() && answers(&lab), "{backend}");
        lab.cnitool("del", "c4", &two).silent();
        assert!(!lab.routes_localnet(), "{backend}");

        // What an administrator has switched on stays on all the same.
        lab.node
            .sh("echo 1 > /proc/sys/net/ipv4/conf/br1/route_localnet");
        for (name, mend) in [("c7", false), ("c8", true)] {
            lab.add(name, &one);
            lab.node.sh(FLUSH);
            if mend {
                assert!(lab.restore(&[]).ok, "{backend}");
            }
            lab.cnitool("del", name, &one).silent();
            assert!(lab.routes_localnet(), "{backend}");
        }
    });
}
