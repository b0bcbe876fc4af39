//! Runs a plugin one system call at a time (`ptrace(2)`), all its threads counted
//! together, and injects a fault before one of them.
//!
//! strace counts for each thread and each kind of call by itself, so that with it not
//! every call of a program with threads can be hit, nor one call alone.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::{Call, Output};

/// What is done at a system call.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// The process is killed instead.
    Kill,
    /// The call is not made and fails.
    Fail(Errno),
    /// The call is made and then said to have failed.
    Report(Errno),
}

/// A system call that is about to be made.
#[derive(Debug, Clone, Copy)]
pub struct SystemCall {
    pid: Pid,
    pub number: i64,
    /// The first argument.
    first: u64,
}

impl SystemCall {
    /// What the first argument is, if it is a file descriptor.
    pub fn file(self) -> PathBuf {
        fs::read_link(format!("/proc/{}/fd/{}", self.pid, self.first)).unwrap_or_default()
    }
}

/// What became of the process.
#[derive(Debug)]
pub struct Traced {
    pub output: Output,
    /// How many system calls were begun up to the fault.
    pub calls: usize,
    /// The signal that ended the process.
    pub signal: Option<Signal>,
    /// It was still running after [`LIMIT`].
    pub hung: bool,
}

/// No call of a plugin takes longer, whatever goes wrong: it waits 10 s at most for a
/// lock.
const LIMIT: Duration = Duration::from_secs(30);

/// How plugins are started, so that no system call is missed.
pub struct Tracer {
    /// Waits for a line on stdin before it becomes the plugin.
    starter: PathBuf,
}

impl Tracer {
    /// Puts what it needs in `dir`.
    pub fn new(dir: &Path) -> Self {
        let starter = dir.join("start");
        fs::write(&starter, "#!/bin/sh\nread -r _\nexec \"$PLUGIN\"\n").unwrap();
        fs::set_permissions(&starter, fs::Permissions::from_mode(0o755)).unwrap();
        Self { starter }
    }

    /// Runs `command` of `call`, which is to execute `plugin`. `decide` is told of each
    /// system call: how many there were before, and which it is, where the machine's
    /// registers are known.
    pub fn run(
        &self,
        call: &Call,
        plugin: &Path,
        command: &str,
        config: &Value,
        decide: impl FnMut(usize, Option<SystemCall>) -> Option<Fault>,
    ) -> Traced {
        let mut process = call
            .clone()
            .executable(&self.starter)
            .env("PLUGIN", plugin.to_str().unwrap())
            .env("CNI_COMMAND", command)
            .process();
        process
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // A process that another thread is just forking may still have the starter open for
        // writing.
        let mut child = loop {
            match process.spawn() {
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {}
                spawned => break spawned.unwrap(),
            }
        };
        let pid = Pid::from_raw(child.id().cast_signed());
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_EXITKILL;
        ptrace::seize(pid, options).unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // Less than a pipe holds. A plugin that dies early does not read it.
        writeln!(stdin, "\n{config}").ok();
        drop(stdin);
        let mut traced = follow(pid, plugin, decide);
        let (mut stdout, mut stderr) = (String::new(), String::new());
        child.stdout.unwrap().read_to_string(&mut stdout).unwrap();
        child.stderr.unwrap().read_to_string(&mut stderr).unwrap();
        traced.output.stdout = stdout;
        traced.output.stderr = stderr;
        traced
    }
}

/// Follows `main` to its end from where it has become `plugin`, and waits for the programs
/// that it left running.
fn follow(
    main: Pid,
    plugin: &Path,
    mut decide: impl FnMut(usize, Option<SystemCall>) -> Option<Fault>,
) -> Traced {
    let hung = &AtomicBool::new(false);
    let (done, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if ended.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                hung.store(true, Ordering::Relaxed);
                kill(main, Signal::SIGKILL).ok();
            }
        });
        let mut traced = Traced {
            output: Output {
                ok: false,
                code: None,
                stdout: String::new(),
                stderr: String::new(),
            },
            calls: 0,
            signal: None,
            hung: false,
        };
        let mut stepping = false;
        let mut failing: Vec<(Pid, Errno)> = Vec::new();
        let mut programs = BTreeSet::new();
        loop {
            let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
            // Until there is nobody left: a program that was just being started when the
            // plugin died would be held for ever.
            let Ok(status) = waitpid(None, Some(flags)) else {
                break;
            };
            let (pid, signal) = match status {
                WaitStatus::PtraceSyscall(pid) => {
                    if let Some(index) = failing.iter().position(|(failed, _)| *failed == pid) {
                        machine::fail(pid, failing.swap_remove(index).1);
                    } else if is_entry(pid) {
                        traced.calls += 1;
                        let fault = decide(traced.calls - 1, machine::system_call(pid));
                        // There is one fault in a run: the rest need not be stepped through.
                        stepping &= fault.is_none();
                        match fault {
                            Some(Fault::Kill) => kill(main, Signal::SIGKILL).unwrap(),
                            Some(Fault::Fail(errno)) => {
                                machine::skip(pid);
                                failing.push((pid, errno));
                            }
                            Some(Fault::Report(errno)) => failing.push((pid, errno)),
                            None => {}
                        }
                    }
                    (pid, None)
                }
                WaitStatus::PtraceEvent(pid, _, event) => {
                    stepping |= event == libc::PTRACE_EVENT_EXEC && executes(pid, plugin);
                    let is_new = event == libc::PTRACE_EVENT_STOP;
                    if is_new && !Path::new(&format!("/proc/{main}/task/{pid}")).exists() {
                        // A program that the plugin runs is not what this is about.
                        programs.insert(pid);
                        ptrace::detach(pid, None).ok();
                        continue;
                    }
                    (pid, None)
                }
                WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
                WaitStatus::Exited(pid, code) if pid == main => {
                    traced.output.ok = code == 0;
                    traced.output.code = Some(code);
                    continue;
                }
                WaitStatus::Signaled(pid, signal, _) if pid == main => {
                    traced.signal = Some(signal);
                    continue;
                }
                _ => continue,
            };
            // One that has been killed in the meantime cannot be resumed, nor need it be.
            if stepping || !failing.is_empty() {
                ptrace::syscall(pid, signal).ok();
            } else {
                ptrace::cont(pid, signal).ok();
            }
        }
        drop(done);
        for program in programs {
            while Path::new(&format!("/proc/{program}/fd/0")).exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        traced.hung = hung.load(Ordering::Relaxed);
        traced
    })
}

/// Whether `pid` has become `plugin`. Its exec of the starter may be reported first: `spawn`
/// can return before that is over.
fn executes(pid: Pid, plugin: &Path) -> bool {
    let file = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    file(Path::new(&format!("/proc/{pid}/exe"))).unwrap() == file(plugin).unwrap()
}

/// Whether the stop is before a system call, not behind it.
fn is_entry(pid: Pid) -> bool {
    const PTRACE_SYSCALL_INFO_ENTRY: u8 = 1;
    ptrace::syscall_info(pid).is_ok_and(|info| info.op == PTRACE_SYSCALL_INFO_ENTRY)
}

/// System calls in the registers of x86-64.
#[cfg(target_arch = "x86_64")]
mod machine {
    use nix::libc::user_regs_struct;

    use super::{Errno, Pid, SystemCall, ptrace};

    /// Which system call is about to be made.
    pub fn system_call(pid: Pid) -> Option<SystemCall> {
        let regs = ptrace::getregs(pid).ok()?;
        Some(SystemCall {
            pid,
            number: regs.orig_rax.cast_signed(),
            first: regs.rdi,
        })
    }

    /// Makes it none.
    pub fn skip(pid: Pid) {
        change(pid, |regs| regs.orig_rax = u64::MAX);
    }

    /// Makes one that was skipped fail.
    pub fn fail(pid: Pid, errno: Errno) {
        change(pid, |regs| {
            regs.rax = (-i64::from(errno as i32)).cast_unsigned();
        });
    }

    /// A process may be dead by now.
    fn change(pid: Pid, change: impl FnOnce(&mut user_regs_struct)) {
        if let Ok(mut regs) = ptrace::getregs(pid) {
            change(&mut regs);
            ptrace::setregs(pid, regs).ok();
        }
    }
}

/// Elsewhere processes can be killed at each call, but no call can be made to fail.
#[cfg(not(target_arch = "x86_64"))]
mod machine {
    use super::{Errno, Pid, SystemCall};

    pub fn system_call(_: Pid) -> Option<SystemCall> {
        None
    }

    pub fn skip(_: Pid) {}

    pub fn fail(_: Pid, _: Errno) {}
}
