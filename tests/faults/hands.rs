//! State that somebody changed or removed by hand under a live container.

use serde_json::Value;

use crate::lab::{CHAIN, Container, Lab, State};
use crate::table::{Row, ensure};

/// A node with two containers, of which one will be maltreated.
struct Patient {
    lab: Lab,
    keeper: Container,
    kept: Value,
    victim: Container,
    before: State,
}

impl Patient {
    fn admit() -> Self {
        let lab = Lab::new("nftables");
        let keeper = lab.container("keeper", 8001);
        let victim = lab.container("victim", 8002);
        let kept = lab.add(&CHAIN, &keeper);
        Self {
            before: lab.state(),
            lab,
            keeper,
            kept,
            victim,
        }
    }

    /// ADD, `hands`, DEL twice; with the result of ADD, or without.
    fn survives(&self, hands: &str, with_result: bool) -> Result<(), String> {
        let added = self.lab.add(&CHAIN, &self.victim);
        self.lab.answers(&self.victim, &added)?;
        let host_end = added["interfaces"][1]["name"].as_str().unwrap();
        self.lab.node.sh(&hands.replace("HOST", host_end));
        // CHECK may find fault or not, but answers.
        for plugin in CHAIN {
            let output = self.lab.run(plugin, "CHECK", &self.victim, &added);
            ensure(output.ok || output.error().0 > 0, String::new)?;
        }
        let result = if with_result { added } else { Value::Null };
        self.lab.del(&CHAIN, &self.victim, &result)?;
        self.lab.del(&CHAIN, &self.victim, &result)?;
        self.lab.state().is_as(&self.before)?;
        self.lab.answers(&self.keeper, &self.kept)?;
        self.lab.is_mapped(&self.keeper)
    }
}

/// What is done by hand to the attachment, the namespace remaining what it is.
const TO_THE_ATTACHMENT: [&str; 9] = [
    "ip -n victim link set eth0 down && ip -n victim link set eth0 name eth9",
    "ip netns add other && ip -n victim link set eth0 netns other",
    "ip -n victim link del eth0",
    "ip -n victim addr flush dev eth0",
    "ip link del HOST",
    "ip link set HOST nomaster",
    "ip link set HOST down && ip link set HOST name elsewhere",
    "ip link set HOST alias something",
    "grep -rl victim /var/lib/cni | xargs rm && rm /run/cni/tuning/victim*",
];

/// What then stands at the path of the namespace.
const TO_THE_NAMESPACE: [&str; 5] = [
    // A file.
    "umount /run/netns/victim",
    "umount /run/netns/victim && rm /run/netns/victim",
    "umount /run/netns/victim && rm /run/netns/victim && mkdir /run/netns/victim",
    "umount /run/netns/victim && rm /run/netns/victim && ln -s /nowhere /run/netns/victim",
    // The host's own.
    "umount /run/netns/victim && mount --bind /proc/self/ns/net /run/netns/victim",
];

/// Invariant: whatever happened to the container's links, leases or backups, DEL succeeds,
/// twice, with and without the result of ADD; it leaves no link, lease, rule or file, and
/// disturbs no other container; ADD of the same container then works.
#[test]
fn the_attachment() {
    let row = Row::new("link renamed, moved, changed, deleted; lease and backup deleted");
    let patient = Patient::admit();
    for hands in TO_THE_ATTACHMENT {
        for with_result in [true, false] {
            let outcome = patient.survives(hands, with_result);
            row.count(outcome.map_err(|error| format!("{hands}, {with_result}: {error}")));
            patient
                .lab
                .node
                .sh("ip netns del other 2>/dev/null; ip link del elsewhere 2>/dev/null; :");
        }
    }
}

/// Invariant: when the path of the namespace leads to a file, nowhere, to a directory or to
/// the host's own namespace, ADD of another network interface is refused with code 4 or 8
/// and DEL removes all that is on the host, whether the namespace lives on or not.
#[test]
fn the_namespace() {
    let row = Row::new("namespace replaced by a file, a directory, a dangling link, the host's");
    for hands in TO_THE_NAMESPACE {
        for with_result in [true, false] {
            let patient = Patient::admit();
            let outcome = patient.survives(hands, with_result).and_then(|()| {
                let output = patient
                    .lab
                    .run("bridge", "ADD", &patient.victim, &Value::Null);
                ensure(!output.ok && [4, 8].contains(&output.error().0), || {
                    format!("ADD: {output:?}")
                })?;
                patient.lab.state().is_as(&patient.before)
            });
            row.count(outcome.map_err(|error| format!("{hands}, {with_result}: {error}")));
        }
    }
}

/// Invariant: after the bridge was deleted under two containers DEL of one succeeds and
/// leaves nothing of it; ADD makes the bridge again, and works.
#[test]
fn the_bridge() {
    let row = Row::new("bridge deleted under live containers");
    for with_result in [true, false] {
        let patient = Patient::admit();
        let (lab, victim) = (&patient.lab, &patient.victim);
        let added = lab.add(&CHAIN, victim);
        lab.node.sh("ip link del br1");
        let outcome = || {
            let checked = lab.run("bridge", "CHECK", victim, &added);
            ensure(!checked.ok && checked.error().1.contains("br1"), || {
                format!("{checked:?}")
            })?;
            let result = if with_result { &added } else { &Value::Null };
            lab.del(&CHAIN, victim, result)?;
            let again = lab.add(&CHAIN, victim);
            lab.answers(victim, &again)?;
            lab.is_mapped(victim)?;
            lab.del(&CHAIN, victim, &again)?;
            lab.state().is_as(&patient.before)
        };
        row.count(outcome());
    }
}
