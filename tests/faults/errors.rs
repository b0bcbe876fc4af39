//! Each system call of a plugin that can fail is made to fail once.

use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::libc;
use serde_json::Value;

use crate::bench::{Bench, NODES};
use crate::table::{Row, ensure};
use crate::tracer::{Fault, SystemCall, Traced};

/// The calls by which a program gets memory.
const MEMORY: [i64; 3] = [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_brk];

/// How system calls fail, by their manual pages: what runs out, what is refused, what is
/// interrupted. Not here: calls that only fail when called wrongly, those that end a
/// process or thread, and memory that is given back.
fn errors(call: SystemCall) -> &'static [Errno] {
    use Errno::{
        EACCES, EAGAIN, EBUSY, EINTR, EINVAL, EIO, EMFILE, ENOBUFS, ENODEV, ENOLCK, ENOMEM, ENOSPC,
        EPERM, EROFS,
    };
    // Counters that wake a thread and the like, which have nothing to run out of.
    if call.file().to_string_lossy().contains("anon_inode") {
        return &[];
    }
    let is_pipe = call.file().to_string_lossy().starts_with("pipe:");
    match call.number {
        // A pipe has no device below it.
        libc::SYS_read if is_pipe => &[EINTR],
        libc::SYS_ioctl if is_pipe => &[],
        libc::SYS_read | libc::SYS_pread64 | libc::SYS_close => &[EINTR, EIO],
        libc::SYS_write | libc::SYS_writev => &[EINTR, ENOSPC, EIO],
        libc::SYS_open | libc::SYS_openat => &[EINTR, EACCES, EMFILE, ENOSPC],
        libc::SYS_stat | libc::SYS_fstat | libc::SYS_statx | libc::SYS_newfstatat => {
            &[EACCES, ENOMEM]
        }
        libc::SYS_fstatfs | libc::SYS_access | libc::SYS_readlink => &[EACCES, ENOMEM],
        libc::SYS_getdents64 => &[EIO, ENOMEM],
        libc::SYS_mkdir | libc::SYS_link | libc::SYS_linkat | libc::SYS_rename => {
            &[EACCES, ENOSPC, EROFS]
        }
        libc::SYS_unlink => &[EACCES, EBUSY, EIO],
        libc::SYS_fchmod | libc::SYS_utimensat => &[EPERM, EROFS],
        libc::SYS_flock => &[EINTR, ENOLCK],
        libc::SYS_socket => &[EMFILE, EACCES, ENOBUFS],
        libc::SYS_bind | libc::SYS_setsockopt | libc::SYS_getsockname | libc::SYS_connect => {
            &[ENOMEM, EACCES]
        }
        libc::SYS_sendto | libc::SYS_sendmsg => &[EINTR, ENOBUFS, EBUSY],
        libc::SYS_recvfrom | libc::SYS_recvmsg => &[EINTR, ENOBUFS, ENOMEM],
        libc::SYS_epoll_create1 | libc::SYS_eventfd2 | libc::SYS_pipe2 => &[EMFILE, ENOMEM],
        libc::SYS_epoll_ctl => &[ENOMEM, ENOSPC],
        libc::SYS_epoll_wait
        | libc::SYS_epoll_pwait
        | libc::SYS_poll
        | libc::SYS_wait4
        | libc::SYS_getrandom => &[EINTR],
        libc::SYS_setns => &[EPERM, ENOMEM, EINVAL],
        libc::SYS_clone | libc::SYS_clone3 | libc::SYS_vfork => &[EAGAIN, ENOMEM],
        libc::SYS_dup2 | libc::SYS_fcntl => &[EMFILE],
        libc::SYS_ioctl => &[ENODEV],
        memory if MEMORY.contains(&memory) => &[ENOMEM],
        _ => &[],
    }
}

/// A fault that was injected.
#[derive(Debug)]
struct Failed {
    /// Which call failed in which way.
    what: String,
    /// Nothing can be promised of a program that gets no memory but what is of one that is
    /// killed: it may abort, and Rust's own start of a thread does.
    is_memory: bool,
}

/// Makes system call `number` fail in its way number `way`.
fn run(
    bench: &Bench,
    number: usize,
    way: usize,
    command: &str,
    result: &Value,
) -> (Traced, Option<Failed>) {
    let mut failed = None;
    let traced = bench.run(command, result, |calls, call| {
        let call = call.filter(|_| calls == number)?;
        let errno = errors(call).get(way)?;
        failed = Some(Failed {
            what: format!(
                "{errno:?} from system call {} of {}, number {number}",
                call.number,
                call.file().display()
            ),
            is_memory: MEMORY.contains(&call.number),
        });
        // A file is closed even then (close(2)).
        Some(if call.number == libc::SYS_close {
            Fault::Report(*errno)
        } else {
            Fault::Fail(*errno)
        })
    });
    (traced, failed)
}

/// A process that a fault was injected into has ended by itself, and has said in one
/// document what there is to say.
fn said(traced: &Traced) -> Result<(), String> {
    let Traced { output, hung, .. } = traced;
    ensure(!hung, || format!("it does not end: {output:?}"))?;
    // The loader of a program that is not static says it in its own way.
    if output.ok
        || output
            .stderr
            .contains("error while loading shared libraries")
    {
        return Ok(());
    }
    let error: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
    let is_clear = error["code"].is_u64() && error["msg"].as_str().is_some_and(|msg| msg.len() > 8);
    ensure(output.code == Some(1) && is_clear, || {
        format!("no clear error: {traced:?}")
    })
}

/// What ADD must come to.
fn failed_add(bench: &Bench, traced: &Traced, is_memory: bool) -> Result<(), String> {
    if traced.output.ok {
        let result = serde_json::from_str(&traced.output.stdout)
            .map_err(|error| format!("{error}: {traced:?}"))?;
        bench.works(&result)?;
        return bench.del_and_collect(&result);
    }
    if !is_memory {
        said(traced)?;
        let rolled_back = bench.is_nearly_as_before();
        let rolled_back = rolled_back.and_then(|()| bench.is_unlimited());
        rolled_back.map_err(|error| format!("not rolled back: {error}{traced:?}"))?;
    }
    ensure(!traced.hung, || format!("it does not end: {traced:?}"))?;
    bench.del_and_collect(&bench.given)
}

/// What DEL must come to: what it could not remove, the next one does.
fn failed_del(
    bench: &Bench,
    traced: &Traced,
    is_memory: bool,
    result: &Value,
) -> Result<(), String> {
    if !is_memory {
        said(traced)?;
    }
    ensure(!traced.hung, || format!("it does not end: {traced:?}"))?;
    if traced.output.ok {
        let gone = bench.is_nearly_as_before();
        // A link that cannot be restored may be gone: that is said, and no reason to fail.
        let gone = match bench.plugin {
            "tuning" if !traced.output.stderr.is_empty() => gone.or_else(|_| bench.restore_link()),
            _ => gone,
        };
        gone.map_err(|error| format!("a success that leaves something: {error}{traced:?}"))?;
    }
    bench.del_and_collect(result)
}

/// Whether `call` is one of those by which programs are run: all else that a plugin does is
/// the same without programs.
fn runs_programs(call: SystemCall) -> bool {
    let calls = [
        libc::SYS_pipe2,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_vfork,
        libc::SYS_wait4,
        libc::SYS_poll,
    ];
    calls.contains(&call.number) || call.file().to_string_lossy().starts_with("pipe:")
}

/// Every system call of `command` that can fail, by number, once for each way.
fn failures(
    backend: &'static str,
    plugin: &'static str,
    command: &str,
    is_meant: fn(SystemCall) -> bool,
) -> Vec<(usize, usize)> {
    let bench = Bench::new(backend, plugin);
    let mut found = Vec::new();
    let result = bench.to_run_with(command);
    bench.run(command, &result, |number, call| {
        let call = call.filter(|call| is_meant(*call));
        let ways = call.map_or(0, |call| errors(call).len());
        found.extend((0..ways).map(|way| (number, way)));
        None
    });
    found
}

/// Makes each system call of `command` fail in each of its ways, on several nodes at once.
fn at_every_call(backend: &'static str, plugin: &'static str, command: &'static str) {
    let row = Row::new(format!(
        "each system call of {command} of {plugin} failing, {backend}"
    ));
    at_calls(&row, backend, plugin, command, |_| true);
}

/// The same with the calls that `is_meant` means, for `row`.
fn at_calls(
    row: &Row,
    backend: &'static str,
    plugin: &'static str,
    command: &'static str,
    is_meant: fn(SystemCall) -> bool,
) {
    // On a thread of its own, as a node is for a thread.
    let failures = std::thread::spawn(move || failures(backend, plugin, command, is_meant));
    let failures = failures.join().unwrap();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..NODES {
            scope.spawn(|| {
                let mut bench = Bench::new(backend, plugin);
                while let Some((number, way)) = failures.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = bench.to_run_with(command);
                    let (traced, failed) = run(&bench, *number, *way, command, &result);
                    let is_memory = failed.as_ref().is_some_and(|failed| failed.is_memory);
                    let outcome = match command {
                        "ADD" => failed_add(&bench, &traced, is_memory),
                        _ => failed_del(&bench, &traced, is_memory, &result),
                    };
                    let what = failed.as_ref().map_or("nothing", |failed| &failed.what);
                    let outcome = outcome.map_err(|error| format!("{what}: {error}"));
                    let well = outcome.is_ok();
                    // Threads do not run in the same order each time: there may have been
                    // another call at that place, which fails in fewer ways.
                    if failed.is_some() {
                        row.count(outcome);
                    } else {
                        row.note(outcome);
                    }
                    if !well {
                        bench = Bench::new(backend, plugin);
                    }
                }
            });
        }
    });
}

/// Invariant: ADD either succeeds and what it made works, or says what failed in one JSON
/// document with exit status 1 and has undone everything; DEL then leaves nothing, and
/// another container is reachable all the while. ADD that gets no memory may end as if it
/// was killed.
#[test]
fn add_of_bridge() {
    at_every_call("nftables", "bridge", "ADD");
}

/// Invariant: DEL either succeeds and has left nothing, or says what failed; the next DEL
/// leaves nothing.
#[test]
fn del_of_bridge() {
    at_every_call("nftables", "bridge", "DEL");
}

/// Invariant: as with nftables, when what is for programs fails: beside a container that is
/// alive none of the nft variant is run, but there is a thread for one of the families.
#[test]
fn bridge_with_iptables() {
    for command in ["ADD", "DEL"] {
        let row = Row::new(format!(
            "each system call of {command} of bridge that runs programs failing, iptables-nft"
        ));
        at_calls(&row, "iptables-nft", "bridge", command, runs_programs);
    }
}

/// Invariant: as for the bridge; programs that cannot be started are failures too.
#[test]
fn portmap_with_iptables() {
    at_every_call("iptables-nft", "portmap", "ADD");
    at_every_call("iptables-nft", "portmap", "DEL");
}

/// Invariant: as for the bridge.
#[test]
fn portmap_with_nftables() {
    at_every_call("nftables", "portmap", "ADD");
    at_every_call("nftables", "portmap", "DEL");
}

/// Invariant: as for the bridge. DEL succeeds even where the link cannot be restored,
/// because it may be gone: then it says so on stderr, and has left nothing else.
#[test]
fn tuning() {
    at_every_call("nftables", "tuning", "ADD");
    at_every_call("nftables", "tuning", "DEL");
}

/// Whether `call` is one by which a plugin looks at the kernel's objects or files, or changes
/// them. The others are made by all plugins alike.
fn is_about_objects(call: SystemCall) -> bool {
    let calls = [
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_openat,
        libc::SYS_open,
        libc::SYS_write,
        libc::SYS_mkdir,
        libc::SYS_link,
        libc::SYS_linkat,
        libc::SYS_rename,
        libc::SYS_unlink,
        libc::SYS_setns,
    ];
    calls.contains(&call.number)
}

/// The same with those calls of `commands` that are about objects.
fn at_calls_about_objects(plugin: &'static str, commands: &[&'static str]) {
    for command in commands {
        let row = Row::new(format!(
            "each system call of {command} of {plugin} about links, rules, files failing, nftables"
        ));
        at_calls(&row, "nftables", plugin, command, is_about_objects);
    }
}

/// Invariant: as for the bridge.
#[test]
fn ptp() {
    at_calls_about_objects("ptp", &["ADD", "DEL"]);
}

/// Invariant: as for the bridge. A limit that was set although no answer came is gone, too.
#[test]
fn bandwidth() {
    at_calls_about_objects("bandwidth", &["ADD", "DEL"]);
}

/// Invariant: as for the bridge; the chain that drops is as it was.
#[test]
fn firewall() {
    at_calls_about_objects("firewall", &["ADD", "DEL"]);
}

/// Invariant: as for the bridge; the configuration that is kept for DEL goes with it.
#[test]
fn flannel() {
    at_calls_about_objects("flannel", &["ADD", "DEL"]);
}

/// Invariant: as for the bridge; `lo` is down again. DEL of a namespace that cannot be entered
/// has nothing to do: `lo` goes with it.
#[test]
fn loopback() {
    at_calls_about_objects("loopback", &["ADD"]);
}
