//! A plugin is killed at each of its system calls.
//!
//! Killed behind a call that changes nothing outside of the process, it leaves what it would
//! have left before that call: of such calls in a row only the first is counted.

use std::sync::atomic::{AtomicUsize, Ordering};

use nix::libc;
use serde_json::Value;

use crate::bench::{Bench, NODES};
use crate::table::Row;
use crate::tracer::{Fault, SystemCall, Traced};

/// Kills `command` at system call `number`.
fn killed(bench: &Bench, number: usize, command: &str, result: &Value) -> Traced {
    bench.run(command, result, |calls, _| {
        (calls == number).then_some(Fault::Kill)
    })
}

/// Whether nobody else can see that `call` was made: it concerns the memory, the signals or
/// the threads of the process, or only looks.
fn is_unseen(call: SystemCall) -> bool {
    matches!(
        call.number,
        libc::SYS_mmap
            | libc::SYS_munmap
            | libc::SYS_mremap
            | libc::SYS_mprotect
            | libc::SYS_madvise
            | libc::SYS_brk
            | libc::SYS_rt_sigaction
            | libc::SYS_rt_sigprocmask
            | libc::SYS_sigaltstack
            | libc::SYS_futex
            | libc::SYS_getrandom
            | libc::SYS_poll
            | libc::SYS_pread64
            | libc::SYS_recvfrom
            | libc::SYS_stat
            | libc::SYS_fstat
            | libc::SYS_statx
            | libc::SYS_newfstatat
            | libc::SYS_getdents64
            | libc::SYS_epoll_wait
            | libc::SYS_epoll_pwait
    )
}

/// The numbers of the system calls of `command` at which a kill leaves something else than
/// at the call before.
fn moments(backend: &'static str, plugin: &'static str, command: &str) -> Vec<usize> {
    let bench = Bench::new(backend, plugin);
    let result = bench.to_run_with(command);
    let mut moments = Vec::new();
    let mut unseen = false;
    bench.run(command, &result, |number, call| {
        if !unseen {
            moments.push(number);
        }
        unseen = call.is_some_and(is_unseen);
        None
    });
    moments
}

/// Kills ADD or DEL of `plugin` at each system call in turn, on several nodes at once.
fn at_every_call(backend: &'static str, plugin: &'static str, command: &'static str) {
    let row = Row::new(format!(
        "SIGKILL at each system call of {command} of {plugin} that is seen outside, {backend}"
    ));
    // On a thread of its own, as a node is for a thread.
    let moments = std::thread::spawn(move || moments(backend, plugin, command));
    let moments = moments.join().unwrap();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..NODES {
            scope.spawn(|| {
                let mut bench = Bench::new(backend, plugin);
                // What DEL is to remove.
                let mut added = None;
                while let Some(number) = moments.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (traced, outcome) = if command == "ADD" {
                        // Of a killed ADD the runtime has no result.
                        let traced = killed(&bench, *number, command, &bench.given);
                        let outcome = bench.del(&bench.given);
                        let again = outcome.and_then(|()| bench.add());
                        (traced, again.and_then(|result| bench.remove(&result)))
                    } else {
                        let result = added.take().unwrap_or_else(|| bench.add().unwrap());
                        let traced = killed(&bench, *number, command, &result);
                        let outcome = bench.del(&result);
                        let again = outcome.and_then(|()| bench.add());
                        (traced, again.map(|result| added = Some(result)))
                    };
                    let outcome = outcome.map_err(|error| format!("call {number}: {error}"));
                    let well = outcome.is_ok();
                    // Threads do not make the same calls each time: it may have ended before.
                    if traced.signal.is_some() {
                        row.count(outcome);
                    } else {
                        row.note(outcome);
                    }
                    if !well {
                        bench = Bench::new(backend, plugin);
                        added = None;
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

/// Invariant: as for the bridge.
#[test]
fn ptp() {
    at_every_call("nftables", "ptp", "ADD");
    at_every_call("nftables", "ptp", "DEL");
}

/// Invariant: after DEL no `ifb` link is left; the limit of the host's end goes with that.
#[test]
fn bandwidth() {
    at_every_call("nftables", "bandwidth", "ADD");
    at_every_call("nftables", "bandwidth", "DEL");
}

/// Invariant: after DEL the chain that drops is as before ADD.
#[test]
fn firewall() {
    at_every_call("nftables", "firewall", "ADD");
    at_every_call("nftables", "firewall", "DEL");
}

/// Invariant: as for the bridge; the configuration that is kept for DEL goes with it.
#[test]
fn flannel() {
    at_every_call("nftables", "flannel", "ADD");
    at_every_call("nftables", "flannel", "DEL");
}
