//! The command of `cnitool exec`: started inside the namespace, told of signals, waited
//! for.
//!
//! The signals that would end us are blocked, here and in the plugins, from before ADD
//! until after DEL, and read from a descriptor. The command must not inherit that. As a
//! mask can be lifted only by who has it, a second process of our own does so and then
//! becomes the command. It also mounts what the command is to see ([`super::view`]).

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::view;
use crate::cni::error::{Code, coded};
use crate::cnitool::output;
use crate::net::netns::Netns;

/// What env(1) and timeout(1) exit with when the failure is their own.
pub const OWN_FAILURE: u8 = 125;

/// The word by which `cnitool` knows that it is to become a command: nobody types it.
pub const BECOME: &str = "become-command";

/// What ends a process that does not expect it: passed on to the command.
const PASSED_ON: [Signal; 4] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
];

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended(u8);

impl Ended {
    /// By a signal.
    pub fn by(signal: Signal) -> Self {
        Self::number(128 + signal as i32)
    }

    fn number(status: i32) -> Self {
        Self(u8::try_from(status).unwrap_or(u8::MAX))
    }

    fn with(status: ExitStatus) -> Self {
        let signal = status.signal().map(|signal| 128 + signal);
        Self::number(status.code().or(signal).unwrap_or(255))
    }

    /// The exit status as shells have it: 128 and the number of the signal.
    pub fn status(self) -> u8 {
        self.0
    }
}

/// Signals kept from ending this process, and heard of instead.
pub struct Signals {
    heard: SignalFd,
}

impl Signals {
    /// Blocks them for this thread and those it starts: to be called before there are any.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hold() -> Result<Self> {
        let mask = mask();
        mask.thread_block().context("block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self {
            heard: SignalFd::with_flags(&mask, flags).context("open a descriptor of signals")?,
        })
    }

    /// The first of the signals that has come and is not the death of a child.
    ///
    /// # Errors
    /// When the descriptor cannot be read.
    pub fn pending(&self) -> Result<Option<Signal>> {
        while let Some(heard) = self.next()? {
            if heard.signal != Signal::SIGCHLD {
                return Ok(Some(heard.signal));
            }
        }
        Ok(None)
    }

    fn next(&self) -> Result<Option<Heard>> {
        let Some(info) = self.heard.read_signal().context("read signals")? else {
            return Ok(None);
        };
        let number = i32::try_from(info.ssi_signo).unwrap_or_default();
        Ok(Some(Heard {
            signal: Signal::try_from(number).context("read signals")?,
            by_terminal: info.ssi_code == nix::libc::SI_KERNEL,
        }))
    }

    fn wait(&self) -> Result<()> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let mut fds = [PollFd::new(self.heard.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno).context("wait for signals"),
        }
    }
}

/// A signal that has come.
struct Heard {
    signal: Signal,
    /// The kernel sent it, to every process in front of the terminal: the command too.
    by_terminal: bool,
}

fn mask() -> SigSet {
    let mut mask: SigSet = PASSED_ON.into_iter().collect();
    mask.add(Signal::SIGCHLD);
    mask
}

/// Runs `command` inside `netns` to its end, with `resolv_conf` in the place of the host's.
///
/// # Errors
/// When no process can be started. A command that cannot be run ends with 127 or 126.
pub fn run(
    command: &[OsString],
    resolv_conf: Option<&str>,
    netns: &Netns,
    signals: &Signals,
) -> Result<Ended> {
    let mut child = netns.inside(|| start(command, resolv_conf))?;
    loop {
        if let Some(status) = child.try_wait().context("wait for the command")? {
            return Ok(Ended::with(status));
        }
        signals.wait()?;
        while let Some(heard) = signals.next()? {
            if heard.signal != Signal::SIGCHLD && !heard.by_terminal {
                pass_on(&child, heard.signal)?;
            }
        }
    }
}

fn start(command: &[OsString], resolv_conf: Option<&str>) -> Result<Child> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the module that starts the command of cnitool exec"
    )]
    let mut process = Command::new("/proc/self/exe");
    process
        .arg0("cnitool")
        .arg(BECOME)
        // Nothing: the host's stays.
        .arg(resolv_conf.unwrap_or_default())
        .args(command)
        .spawn()
        .context(coded(Code::Io, "start a process for the command"))
}

fn pass_on(child: &Child, signal: Signal) -> Result<()> {
    let pid = i32::try_from(child.id()).context("a process id")?;
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("send {signal} to the command")),
    }
}

/// Becomes the command whose words stand behind the text of its `resolv.conf`, with all signals
/// as a command expects them. Returns only when it cannot be run, with the exit status that
/// shells have for that, or our own.
pub fn replace_this_process(words: &[OsString]) -> ExitCode {
    const NOT_FOUND: u8 = 127;
    const NOT_RUN: u8 = 126;
    let [resolv_conf, program, arguments @ ..] = words else {
        return NOT_FOUND.into();
    };
    let resolv_conf = resolv_conf.to_str().filter(|text| !text.is_empty());
    if let Err(error) = view::change(resolv_conf) {
        output::report(&error);
        return OWN_FAILURE.into();
    }
    let error = match mask().thread_unblock() {
        Ok(()) => {
            #[expect(
                clippy::disallowed_methods,
                reason = "this is the module that starts the command of cnitool exec"
            )]
            let mut process = Command::new(program);
            process.args(arguments).exec()
        }
        Err(errno) => errno.into(),
    };
    output::note(&format!("{}: {error}", program.display()));
    if error.kind() == std::io::ErrorKind::NotFound {
        NOT_FOUND.into()
    } else {
        NOT_RUN.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_are_those_of_shells() {
        for (raw, status) in [(0, 0), (3 << 8, 3), (255 << 8, 255), (9, 137), (15, 143)] {
            let ended = Ended::with(ExitStatus::from_raw(raw));
            assert_eq!(ended.status(), status, "{raw}");
        }
        assert_eq!(Ended::by(Signal::SIGINT).status(), 130);
    }
}
