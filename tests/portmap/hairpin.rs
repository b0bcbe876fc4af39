//! Containers that call a mapped port of their own host, their own or a neighbour's, with
//! the bridge's frames going through the packet filter or not, and hairpin mode on or off
//! (docs/requirements.md#r-56).

use serde_json::{Value, json};

use crate::lab::{Lab, mapping, on_every_backend};

/// The addresses of the host that its containers can call.
const HOST: [&str; 4] = ["192.0.2.1", "fd00:2::1", "10.9.0.1", "fd00:9::1"];

/// Whether frames on bridges go through the packet filter. Without `br_netfilter` they
/// never do.
fn filter_frames(lab: &Lab, on: bool) {
    let sysctl = "/proc/sys/net/bridge/bridge-nf-call";
    if !lab.node.succeeds(&format!(
        "test -e {sysctl}-iptables || modprobe br_netfilter"
    )) {
        assert!(
            !on,
            "this kernel needs br_netfilter (CONFIG_BRIDGE_NETFILTER)"
        );
        return;
    }
    let value = u8::from(on);
    lab.node.sh(&format!(
        "for k in iptables ip6tables; do echo {value} > {sysctl}-$k; done"
    ));
}

/// Adds `c1` with mapped ports and its neighbour `c2`; what ADD of `c1` says on stderr.
fn add_both(lab: &mut Lab) -> String {
    let mappings = json!([mapping("tcp", 8080, 80), mapping("udp", 5353, 53)]);
    lab.node.netns("c1");
    let added = lab.cnitool("add", "c1", &mappings);
    added.json();
    lab.add("c2", &json!([]));
    lab.serve("c1", "tcp", 80, "c1");
    lab.serve("c1", "udp", 53, "c1");
    added.stderr
}

/// Which of the host's addresses do not lead `netns` to the mapped ports of `c1`.
fn unanswered(lab: &Lab, netns: &str, addresses: &[&str]) -> Vec<String> {
    let mut silent = Vec::new();
    for (protocol, port) in [("tcp", 8080), ("udp", 5353)] {
        for address in addresses {
            if !lab.call(netns, protocol, address, port).starts_with("c1 ") {
                silent.push(format!("{protocol} {address}"));
            }
        }
    }
    silent
}

/// With `bridge` as configured, everybody is answered and nothing is said.
fn assert_works(mut lab: Lab, is_filtered: bool, bridge: &Value) {
    filter_frames(&lab, is_filtered);
    lab.configure(bridge, &json!({}));
    assert_eq!(add_both(&mut lab), "", "{}", lab.backend);
    for netns in ["c1", "c2"] {
        let silent = unanswered(&lab, netns, &HOST);
        assert_eq!(silent, [""; 0], "{} {netns} {bridge}", lab.backend);
    }
}

#[test]
fn without_a_filter_on_the_bridge_hairpin_mode_is_not_needed() {
    on_every_backend(|lab| assert_works(lab, false, &json!({"hairpinMode": false})));
}

#[test]
fn without_a_filter_on_the_bridge_hairpin_mode_does_no_harm() {
    on_every_backend(|lab| assert_works(lab, false, &json!({"hairpinMode": true})));
}

#[test]
fn with_a_filter_on_the_bridge_hairpin_mode_lets_a_container_call_itself() {
    on_every_backend(|lab| assert_works(lab, true, &json!({"hairpinMode": true})));
}

#[test]
fn a_container_that_cannot_call_itself_is_told_of() {
    on_every_backend(|mut lab| {
        filter_frames(&lab, true);
        lab.configure(&json!({"hairpinMode": false}), &json!({}));
        let warning = add_both(&mut lab);
        assert_eq!(warning.lines().count(), 1, "{warning}");
        assert!(
            warning.contains("set \"hairpinMode\": true on the bridge plugin"),
            "{warning}"
        );
        // The warning is true, but for neighbours.
        let silent = unanswered(&lab, "c1", &["192.0.2.1"]);
        assert_eq!(silent, ["tcp 192.0.2.1", "udp 192.0.2.1"]);
        assert_eq!(unanswered(&lab, "c2", &HOST), [""; 0], "{}", lab.backend);
        // Who does not ask for source NAT does not expect it.
        lab.configure(&json!({"hairpinMode": false}), &json!({"snat": false}));
        lab.node.netns("c3");
        let added = lab.cnitool("add", "c3", &json!([mapping("tcp", 8083, 80)]));
        assert_eq!(added.stderr, "");
        added.json();
    });
}
