//! What one process costs: wall time, processor time, memory.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::ptrace::{self, Options};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// Processor time of all children so far, theirs included, user and system.
pub fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage(2)");
    let micros = |time: nix::sys::time::TimeVal| {
        u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or_default()
    };
    Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time()))
}

/// Lets the kernel finish what the ADD or DEL before has left it and the next would wait for:
/// grace periods (RCU), sockets that are closed late. On a node a container lives for longer.
pub fn settle() {
    std::thread::sleep(Duration::from_millis(40));
}

/// Runs `command` to its end with `stdin`, as a runtime does. Answers what it printed and
/// how long that took from before the start to after the end.
pub fn run(mut command: Command, stdin: &str) -> (Output, Duration) {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    if let Some(mut pipe) = child.stdin.take() {
        // Who does not read it closes the pipe: no error.
        drop(pipe.write_all(stdin.as_bytes()));
    }
    let output = child.wait_with_output().expect("wait for a process");
    (output, start.elapsed())
}

/// The most memory that `command` had at a time, in KiB, and what it printed.
///
/// `ru_maxrss` does not tell: it begins with that of the process that starts another. So
/// the process is stopped as it exits and asked for its `VmHWM` (`proc_pid_status(5)`).
/// It must wait for `stdin` before it does anything.
#[expect(
    clippy::zombie_processes,
    reason = "waitpid(2) below sees the process to its end"
)]
pub fn memory(mut command: Command, stdin: &str) -> (String, u64) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let pid = Pid::from_raw(child.id().cast_signed());
    ptrace::seize(pid, Options::PTRACE_O_TRACEEXIT).expect("trace a plugin");
    if let Some(mut pipe) = child.stdin.take() {
        drop(pipe.write_all(stdin.as_bytes()));
    }
    let mut most = 0;
    loop {
        match waitpid(pid, None).expect("wait for a traced plugin") {
            WaitStatus::PtraceEvent(..) => {
                most = high_water_mark(pid);
                ptrace::cont(pid, None).expect("let a plugin exit");
            }
            WaitStatus::Stopped(_, signal) => {
                let signal = (signal != Signal::SIGTRAP).then_some(signal);
                ptrace::cont(pid, signal).expect("let a plugin go on");
            }
            WaitStatus::Exited(_, 0) => break,
            other => panic!("{command:?}: {other:?}"),
        }
    }
    let mut printed = String::new();
    if let Some(mut pipe) = child.stdout.take() {
        std::io::Read::read_to_string(&mut pipe, &mut printed).expect("read what a plugin printed");
    }
    (printed, most)
}

/// `VmHWM` of a process, in KiB.
fn high_water_mark(pid: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("read status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .expect("VmHWM in status")
}
