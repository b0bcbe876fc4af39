//! A plugin is killed at each of its system calls.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::Value;

use crate::bench::{Bench, NODES};
use crate::table::Row;
use crate::tracer::{Fault, Traced};

/// Kills `command` at system call `number`.
fn killed(bench: &Bench, number: usize, command: &str, result: &Value) -> Traced {
    bench.run(command, result, |calls, _| {
        (calls == number).then_some(Fault::Kill)
    })
}

/// Kills ADD or DEL of `plugin` at each system call in turn, on several nodes at once.
fn at_every_call(backend: &'static str, plugin: &'static str, command: &'static str) {
    let row = Row::new(format!(
        "SIGKILL at each system call of {command} of {plugin}, {backend}"
    ));
    let next = AtomicUsize::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..NODES {
            scope.spawn(|| {
                let mut bench = Bench::new(backend, plugin);
                // What DEL is to remove.
                let mut added = None;
                while !done.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let (traced, outcome) = if command == "ADD" {
                        // Of a killed ADD the runtime has no result.
                        let traced = killed(&bench, number, command, &bench.given);
                        let outcome = bench.del(&bench.given);
                        let again = outcome.and_then(|()| bench.add());
                        (traced, again.and_then(|result| bench.remove(&result)))
                    } else {
                        let result = added.take().unwrap_or_else(|| bench.add().unwrap());
                        let traced = killed(&bench, number, command, &result);
                        let outcome = bench.del(&result);
                        let again = outcome.and_then(|()| bench.add());
                        (traced, again.map(|result| added = Some(result)))
                    };
                    if traced.signal.is_none() {
                        // There are no more.
                        done.store(true, Ordering::Relaxed);
                        break;
                    }
                    let outcome = outcome.map_err(|error| format!("call {number}: {error}"));
                    if !row.count(outcome) {
                        bench = Bench::new(backend, plugin);
                    }
                }
            });
        }
    });
}

/// Invariant: whenever ADD is killed, DEL without a result leaves links, leases, rules and
/// files as they were, ADD of the same container then succeeds and its addresses answer,
/// and another container is reachable all the while.
#[test]
fn add_of_bridge_with_nftables() {
    at_every_call("nftables", "bridge", "ADD");
}

/// Invariant: as above; programs that ADD had started have ended before DEL.
#[test]
fn add_of_bridge_with_iptables() {
    at_every_call("iptables-nft", "bridge", "ADD");
}

/// Invariant: whenever DEL is killed, a second DEL leaves links, leases, rules and files as
/// they were before ADD, and ADD of the same container succeeds again.
#[test]
fn del_of_bridge_with_nftables() {
    at_every_call("nftables", "bridge", "DEL");
}

/// Invariant: as above.
#[test]
fn del_of_bridge_with_iptables() {
    at_every_call("iptables-nft", "bridge", "DEL");
}

/// Invariant: as for the bridge; the mapped port answers, and that of another container.
#[test]
fn portmap_with_nftables() {
    at_every_call("nftables", "portmap", "ADD");
    at_every_call("nftables", "portmap", "DEL");
}

/// Invariant: as above.
#[test]
fn portmap_with_iptables() {
    at_every_call("iptables-nft", "portmap", "ADD");
    at_every_call("iptables-nft", "portmap", "DEL");
}

/// Invariant: after DEL the link is set as before ADD, and no backup is left.
#[test]
fn tuning() {
    at_every_call("nftables", "tuning", "ADD");
    at_every_call("nftables", "tuning", "DEL");
}
