//! Many calls at the same time.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::common::{BACKENDS, Call, Node, REFERENCE};
use crate::lab::{Container, LEASES, Lab, State, addresses, at_once};
use crate::table::{Row, ensure};

/// What the storms are made of.
const PLUGINS: [&str; 2] = ["bridge", "portmap"];

/// `count` containers, half of them for a second network on the same bridge if `two`.
fn containers(lab: &Lab, count: u16, two: bool) -> Vec<Container> {
    let all = (0..count).map(|number| {
        let mut container = lab.container(&format!("c{number}"), 8000 + number);
        if two && number % 2 == 1 {
            container.network = "net2";
        }
        container
    });
    all.collect()
}

/// ADD; the error says which plugin said what.
fn add(lab: &Lab, container: &Container) -> Result<Value, String> {
    PLUGINS.iter().try_fold(Value::Null, |result, plugin| {
        let output = lab.run(plugin, "ADD", container, &result);
        ensure(output.ok, || format!("ADD of {plugin}: {output:?}"))?;
        Ok(output.json())
    })
}

/// Whether everybody has addresses of their own that answer, and their port.
fn all_well(lab: &Lab, all: &[(&Container, Value)]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for (container, result) in all {
        for address in addresses(result) {
            ensure(seen.insert(address.clone()), || format!("{address} twice"))?;
        }
        lab.answers(container, result)?;
        lab.is_mapped(container)?;
    }
    Ok(())
}

/// Adds all at once; those that did not fail.
fn add_all<'a>(lab: &Lab, row: &Row, containers: &'a [Container]) -> Vec<(&'a Container, Value)> {
    let mut added = Vec::new();
    for (container, result) in containers
        .iter()
        .zip(at_once(containers, |container| add(lab, container)))
    {
        match result {
            Ok(result) => {
                row.count(Ok(()));
                added.push((container, result));
            }
            Err(error) => {
                row.count(Err(error));
            }
        }
    }
    row.note(all_well(lab, &added));
    added
}

/// Removes all at once.
fn del_all(lab: &Lab, row: &Row, added: &[(&Container, Value)]) {
    for outcome in at_once(added, |(container, result)| {
        lab.del(&PLUGINS, container, result)
    }) {
        row.count(outcome);
    }
}

/// What a node has after a container of each network was there in peace.
fn quiet(backend: &'static str, two: bool) -> State {
    let peace = std::thread::spawn(move || {
        let lab = Lab::new(backend);
        for container in containers(&lab, if two { 2 } else { 1 }, two) {
            let result = lab.add(&PLUGINS, &container);
            lab.del(&PLUGINS, &container, &result).unwrap();
        }
        lab.state()
    });
    peace.join().unwrap()
}

/// Invariant: 64 ADDs on a node without the bridge, for two networks on it, all succeed,
/// with addresses of their own; while 32 are deleted and 32 others added, nobody else
/// notices; after all DELs nothing is left but what one quiet ADD and DEL leave.
#[test]
fn adds_and_dels_of_two_networks_on_one_new_bridge() {
    let row = Row::new("64 ADDs at once without a bridge, 32 ADDs with 32 DELs, 64 DELs");
    let before = quiet("nftables", true);
    let lab = Lab::new("nftables");
    let all = containers(&lab, 96, true);
    let (first, others) = all.split_at(64);
    let mut alive = add_all(&lab, &row, first);
    let leaving = alive.split_off(alive.len() / 2);
    std::thread::scope(|scope| {
        scope.spawn(|| del_all(&lab, &row, &leaving));
        alive.extend(add_all(&lab, &row, others));
    });
    row.note(all_well(&lab, &alive));
    del_all(&lab, &row, &alive);
    row.note(lab.state().is_as(&before));
}

/// docs/requirements.md#r-07. Invariant: on a fresh node 16 ADDs at once of masqueraded containers with port
/// mappings all succeed and work; after as many DELs at once the node has the links,
/// leases, rules and files that one quiet ADD and DEL leave.
fn fresh_nodes(backend: &'static str) {
    const NODES: usize = 5;
    let row = Row::new(format!(
        "16 ADDs, then DELs, at once on fresh nodes, {backend}"
    ));
    let before = quiet(backend, false);
    for _ in 0..NODES {
        let lab = Lab::new(backend);
        let all = containers(&lab, 16, false);
        let added = add_all(&lab, &row, &all);
        del_all(&lab, &row, &added);
        row.note(lab.state().is_as(&before));
    }
}

#[test]
fn fresh_nodes_with_nftables() {
    fresh_nodes(BACKENDS[0]);
}

#[test]
fn fresh_nodes_with_iptables_nft() {
    fresh_nodes(BACKENDS[1]);
}

#[test]
fn fresh_nodes_with_iptables_legacy() {
    fresh_nodes(BACKENDS[2]);
}

/// Invariant: while cnibox and the reference allocate and release in one directory, no
/// address is two containers', and at the end none is recorded.
#[test]
fn the_reference_in_the_same_lease_directory() {
    const ROUNDS: usize = 25;
    let row = Row::new("ADDs and DELs of cnibox and the reference in one lease directory");
    let node = Node::new();
    let config = json!({
        "cniVersion": "1.0.0", "name": "net1", "type": "host-local",
        "ipam": {"type": "host-local", "subnet": "10.9.0.0/28"},
    });
    let in_use = Mutex::new(BTreeSet::new());
    at_once(&[0, 1, 2, 3, 4, 5], |worker| {
        for round in 0..ROUNDS {
            let ours = node.plugin("host-local");
            let theirs = ours.clone().executable(format!("{REFERENCE}/host-local"));
            let [adder, deleter] = match (worker + round) % 3 {
                0 => [&ours, &theirs],
                1 => [&theirs, &ours],
                _ => [&ours, &ours],
            }
            .map(|call: &Call| call.clone().id(&format!("c{worker}-{round}")).netns("/n"));
            let output = adder.run("ADD", &config);
            row.count(ensure(output.ok, || format!("ADD: {output:?}")));
            if !output.ok {
                continue;
            }
            let [address] = addresses(&output.json()).try_into().unwrap();
            let is_new = in_use.lock().unwrap().insert(address.clone());
            row.note(ensure(is_new, || format!("{address} twice")));
            in_use.lock().unwrap().remove(&address);
            let output = deleter.run("DEL", &config);
            row.count(ensure(output.ok, || format!("DEL: {output:?}")));
        }
    });
    let left = fs::read_dir(Path::new(LEASES).join("net1")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    let expected = ["last_reserved_ip.0", "lock"];
    row.note(ensure(
        left.len() == 2
            && expected
                .iter()
                .all(|name| left.iter().any(|one| one == name)),
        || format!("left: {left:?}"),
    ));
}

/// Links that come and go until it is dropped.
struct Churn(Vec<Child>);

impl Churn {
    fn start(loops: usize) -> Self {
        let run = |number| {
            let script = format!(
                "while ip link add churn{number} type veth peer name nruhc{number}; do \
                 ip link del churn{number}; done"
            );
            let spawned = Command::new("sh").args(["-c", &script]).spawn();
            spawned.unwrap()
        };
        Self((0..loops).map(run).collect())
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// docs/requirements.md#r-08. Invariant: among 600 links, while others come and go all the time, no ADD and no
/// DEL fails, though the kernel marks its lists as inconsistent, and nothing is left.
#[test]
fn links_that_come_and_go() {
    let row = Row::new("ADD and DEL among 600 links, 4 loops creating and deleting more");
    let lab = Lab::new("nftables");
    let batch: Vec<String> = (0..300)
        .map(|number| format!("link add idle{number} type veth peer name eldi{number}"))
        .collect();
    let file = lab.node.dir.path().join("batch");
    fs::write(&file, batch.join("\n")).unwrap();
    lab.node.sh(&format!("ip -batch {}", file.display()));
    let all = containers(&lab, 4, false);
    for container in &all {
        let result = lab.add(&PLUGINS, container);
        lab.del(&PLUGINS, container, &result).unwrap();
    }
    let before = lab.state();
    let churn = Churn::start(4);
    at_once(&all, |container| {
        for _ in 0..50 {
            let added = add(&lab, container);
            let result = added.clone().unwrap_or_default();
            row.count(added.map(drop));
            row.count(lab.del(&PLUGINS, container, &result));
        }
    });
    drop(churn);
    lab.node
        .sh("for n in 0 1 2 3; do ip link del churn$n 2>/dev/null || :; done");
    row.note(lab.state().is_as(&before));
}
