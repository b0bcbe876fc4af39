//! Rule tables that others lock, flush or reload.

use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::common::{BACKENDS, Node};
use crate::lab::{CHAIN, Container, Lab, at_once};
use crate::table::{Row, ensure};

/// Ways to lose all rules of a backend: an administrator's, and those of a firewall that
/// reloads its own.
fn flushes(backend: &str) -> Vec<String> {
    if backend == "nftables" {
        let reload = "echo 'flush ruleset; add table inet firewall' | nft -f -";
        return vec!["nft flush ruleset".into(), reload.into()];
    }
    let both = [backend.to_owned(), backend.replace("ip", "ip6")];
    let flush = both.each_ref().map(|tool| {
        format!(
            "{tool} -t nat -F && {tool} -t nat -X && {tool} -t filter -F && {tool} -t filter -X"
        )
    });
    let reload = both.each_ref().map(|tool| {
        format!("printf '*nat\\n:PREROUTING ACCEPT [0:0]\\n-A PREROUTING -p esp -j ACCEPT\\nCOMMIT\\n' | {tool}-restore")
    });
    vec![flush.join(" && "), reload.join(" && ")]
}

/// Invariant: after all rules are gone under two live containers, CHECK says which rule is
/// missing, a new container works, and DEL of all leaves the rules that one quiet ADD and
/// DEL leave, and no link, lease or file.
fn flushed(backend: &'static str) {
    let row = Row::new(format!(
        "rules flushed or reloaded under containers, {backend}"
    ));
    for flush in flushes(backend) {
        let lab = Lab::new(backend);
        let names = ["alive-1", "alive-2", "added"];
        let all: Vec<_> = (8001..)
            .zip(names)
            .map(|(port, name)| lab.container(name, port))
            .collect();
        let results: Vec<Value> = all[..2].iter().map(|one| lab.add(&CHAIN, one)).collect();
        lab.node.sh(&flush);
        let outcome = || {
            for plugin in ["bridge", "portmap"] {
                let output = lab.run(plugin, "CHECK", &all[0], &results[0]);
                ensure(!output.ok && output.stdout.contains("missing"), || {
                    format!("CHECK of {plugin}: {output:?}")
                })?;
            }
            let result = lab.add(&CHAIN, &all[2]);
            lab.answers(&all[2], &result)?;
            lab.is_mapped(&all[2])?;
            for (container, result) in all.iter().zip(results.iter().chain([&result])) {
                lab.del(&CHAIN, container, result)?;
            }
            let left = lab.state();
            let result = lab.add(&CHAIN, &all[2]);
            lab.del(&CHAIN, &all[2], &result)?;
            left.is_as(&lab.state())?;
            let ours = left.to_string();
            ensure(names.iter().all(|name| !ours.contains(name)), || {
                ours.clone()
            })
        };
        row.count(outcome().map_err(|error| format!("{flush}: {error}")));
    }
}

#[test]
fn flushed_with_nftables() {
    flushed(BACKENDS[0]);
}

#[test]
fn flushed_with_iptables_nft() {
    flushed(BACKENDS[1]);
}

#[test]
fn flushed_with_iptables_legacy() {
    flushed(BACKENDS[2]);
}

/// Another program that has locked a file.
pub struct Holder(Child);

impl Holder {
    /// Has locked `path` when this returns.
    pub fn of(node: &Node, path: &str) -> Self {
        let child = Command::new("flock")
            .args([path, "sleep", "600"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let taken = format!("while flock -n {path} true; do sleep 0.01; done");
        node.sh(&format!("timeout 10 sh -c '{taken}'"));
        Self(child)
    }

    /// As error messages name it.
    pub fn name(&self) -> String {
        format!("process {} (flock)", self.0.id())
    }

    /// Counts an ADD of `two` and a DEL of `one` with its result, at once, which must say that
    /// they wait for this one in vain.
    pub fn keeps_out(&self, lab: &Lab, row: &Row, two: &Container, one: (&Container, &Value)) {
        let calls = [("ADD", two, &Value::Null), ("DEL", one.0, one.1)];
        let outputs = at_once(&calls, |(command, container, result)| {
            lab.run("bridge", command, container, result)
        });
        for output in &outputs {
            let busy = !output.ok && output.error().0 == 11 && output.stdout.contains(&self.name());
            row.count(ensure(busy, || format!("{output:?}")));
        }
    }
}

/// Dies without unlocking anything: the kernel does.
impl Drop for Holder {
    fn drop(&mut self) {
        let children = format!("/proc/{0}/task/{0}/children", self.0.id());
        let sleep = std::fs::read_to_string(children).unwrap();
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        // It has inherited the lock.
        let kill = Command::new("kill").args(sleep.split_whitespace()).status();
        assert!(kill.unwrap().success());
    }
}

/// Invariant: while another program keeps the lock of iptables, ADD and DEL end with code
/// 11, name the program, and ADD has undone everything; once it has let go, DEL leaves
/// nothing and ADD works.
#[test]
fn the_lock_of_iptables_is_taken() {
    let row = Row::new("another program keeps /run/xtables.lock, iptables-legacy");
    let lab = Lab::new("iptables-legacy");
    let (one, two) = (lab.container("one", 8001), lab.container("two", 8002));
    let result = lab.add(&CHAIN, &one);
    let holder = Holder::of(&lab.node, "/run/xtables.lock");
    holder.keeps_out(&lab, &row, &two, (&one, &result));
    drop(holder);
    row.note(lab.del(&CHAIN, &two, &Value::Null));
    row.note(lab.del(&CHAIN, &one, &result));
    let empty = lab.state();
    let result = lab.add(&CHAIN, &one);
    row.note(lab.answers(&one, &result));
    row.note(lab.is_mapped(&one));
    row.note(lab.del(&CHAIN, &one, &result));
    row.note(lab.state().is_as(&empty));
}
