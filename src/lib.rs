//! cnibox: every CNI plugin a Linux node needs, in one binary.
//!
//! The last path component of `argv[0]` says which applet this is; called as `cnibox`,
//! the first argument does. See [`alias`] for names that no applet has.
//!
//! A library only so that the fuzz targets and the generator of manual pages have something
//! to link with: [`main`] is all that the program is.

mod alias;
mod applets;
mod cli;
mod cni;
mod cnitool;
mod failure;
mod fsutil;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod hash;
mod journal;
mod log;
mod net;
mod netfilter;
mod patience;
mod plugins;
mod runtime;
mod shell;
mod text;
mod undo;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use applets::{Applet, Entry};
pub use cli::{completions, manual};
use cni::error::{Code, ErrorObject};
use cni::skel::{self, Input};

/// musl's allocator gives memory back to the kernel at every turn and has it mapped and
/// zeroed again; a process of some milliseconds keeps what it has.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// Runs the applet that this process was called as.
pub fn main() -> ExitCode {
    std::panic::set_hook(Box::new(report_panic));
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let called = args
        .first()
        .and_then(|path| Path::new(path).file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    if called != cli::NAME {
        return match applets::find(&called) {
            Some(applet) => run(applet, &called, args, &mut std::io::stdin().lock()),
            None => alias::run(&called, args, run),
        };
    }
    let wanted = args.get(1).map(|arg| arg.to_string_lossy().into_owned());
    match wanted.as_deref().and_then(applets::find) {
        Some(applet) => {
            let stdin = &mut std::io::stdin().lock();
            run(
                applet,
                &wanted.unwrap_or_default(),
                args.split_off(1),
                stdin,
            )
        }
        None => cli::main(args),
    }
}

/// Runs `applet` under the `name` it was called by.
fn run(applet: &Applet, name: &str, args: Vec<OsString>, stdin: &mut dyn Input) -> ExitCode {
    let status = match applet.entry {
        Entry::Plugin(plugin) => skel::main(
            name,
            plugin,
            applets::SERVICES,
            &cni::invocation::environment(),
            stdin,
            &mut skel::Stdout,
        ),
        Entry::Tool(tool) => tool(args, applets::SERVICES),
    };
    netfilter::deferred_close::leave();
    status
}

/// A bug must reach the operator as the one JSON document a runtime expects. The
/// runtime then owes a DEL, which cleans up: no undo runs here.
#[expect(
    clippy::exit,
    reason = "nothing may run or print after a panic, and abort would hide the message"
)]
fn report_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let object = ErrorObject {
        code: Code::Internal.number(),
        msg: "internal error: cnibox panicked, which is a bug; please report it".into(),
        details: panic.to_string(),
        ..ErrorObject::default()
    };
    if let Ok(bytes) = cni::json::pretty(&object) {
        drop(skel::Stdout.write_all(&bytes));
    }
    log::warn(&panic.to_string());
    std::process::exit(1);
}
