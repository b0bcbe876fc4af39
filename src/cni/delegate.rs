//! Delegation (specification section 4): a plugin that runs another one.
//!
//! The delegate gets our environment with another command and our stdin byte for byte.
//! When the file found in `CNI_PATH` is this very executable, the delegate runs in this
//! process: no exec, no second parse of the environment.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::collector::{Collector, Run};
use super::error::{Code, coded, detailed, not_available};
use super::invocation::Command;
use super::preview::Preview;
use super::result::CniResult;
use super::skel::{self, Applets, Call, Plugin};
use super::version::Version;
use super::{exec, json};
use crate::patience::patiently;
use crate::undo::Undo;
use crate::{fsutil, journal};

/// Delegates ADD to `plugin` and answers its result. How to undo it goes on `undo`.
///
/// An executed delegate is told to DEL even if its ADD fails, as the specification wants.
/// One of our own undoes its ADD itself, whether that failed or something after it: a DEL
/// could hit what an earlier ADD of the same attachment still holds, and keeps what others may
/// use, such as a bridge.
///
/// # Errors
/// The delegate's error object, unchanged.
pub fn add<'a>(call: &'a Call, plugin: &str, undo: &mut Undo<'a>) -> Result<CniResult> {
    match locate(call, plugin)? {
        Located::Here(delegate) => {
            let inner = enter(call, plugin, Command::Add)?;
            inner.config.allow(Command::Add, delegate.versions())?;
            // The steps to undo it refer to it, until the process ends.
            let inner = Box::leak(Box::new(inner));
            step(plugin, Command::Add, || delegate.add(inner, undo))
        }
        Located::Elsewhere(executable) => {
            let name = plugin.to_owned();
            undo.push(format!("DEL of delegate {name}"), move || {
                run(call, &name, Command::Del)
            });
            let env = [("CNI_COMMAND", Command::Add.as_str())];
            let printed = step(plugin, Command::Add, || {
                exec::run(&executable, &env, &call.config.raw)
            })?;
            read_result(plugin, &printed, call.config.version)
        }
    }
}

/// What `plugin` printed for ADD; `default` is its version where it does not say.
///
/// # Errors
/// Code 6 for what is no result, code 1 for a version we do not speak.
pub fn read_result(plugin: &str, printed: &[u8], default: Version) -> Result<CniResult> {
    let what = format!("the result of {plugin}");
    let value = if printed.trim_ascii() == b"null" {
        serde_json::Value::Null
    } else {
        json::parse_fields(&what, printed)?.into()
    };
    CniResult::parse(&value, default)
        .with_context(|| coded(Code::Decode, format!("{what} cannot be read")))
}

/// Delegates a command without a result: DEL, CHECK or STATUS.
///
/// # Errors
/// The delegate's error object, unchanged. STATUS without a delegate to ask is code 50.
pub fn run(call: &Call, plugin: &str, command: Command) -> Result<()> {
    let located = match command {
        // Whoever installs another version may just be replacing the file.
        Command::Status => {
            patiently(|| locate(call, plugin)).map_err(|error| not_available(&error))?
        }
        _ => locate(call, plugin)?,
    };
    match located {
        Located::Here(delegate) => {
            let inner = enter(call, plugin, command)?;
            inner.config.allow(command, delegate.versions())?;
            step(plugin, command, || skel::dispatch(delegate, &inner))
        }
        Located::Elsewhere(executable) => {
            let env = [("CNI_COMMAND", command.as_str())];
            step(plugin, command, || {
                exec::run(&executable, &env, &call.config.raw)
            })
            .map(drop)
        }
    }
}

/// A step of the journal. Those that a delegate takes in this process are then told too.
fn step<T>(plugin: &str, command: Command, work: impl FnOnce() -> T) -> T {
    journal::step(&format!("{} of {plugin}", command.as_str()), work)
}

/// Delegates GC. A dry run asks only those that run in this process: the protocol has no
/// way to ask others.
///
/// # Errors
/// As [`run`].
pub fn gc(call: &Call, plugin: &str, collector: &mut Collector) -> Result<()> {
    match locate(call, plugin)? {
        Located::Here(delegate) => {
            let inner = enter(call, plugin, Command::Gc)?;
            inner.config.allow(Command::Gc, delegate.versions())?;
            delegate.gc(&inner, collector)
        }
        Located::Elsewhere(executable) if collector.run() == Run::Dry => {
            collector.note(would_run_foreign(plugin, &executable));
            Ok(())
        }
        Located::Elsewhere(executable) => exec::run(
            &executable,
            &[("CNI_COMMAND", Command::Gc.as_str())],
            &call.config.raw,
        )
        .map(drop),
    }
}

/// The delegate's part of a preview of ADD.
///
/// # Errors
/// Those of its ADD that can be foreseen.
pub fn preview(call: &Call, plugin: &str, preview: &mut Preview) -> Result<Option<CniResult>> {
    match locate(call, plugin)? {
        Located::Here(delegate) => {
            let inner = enter(call, plugin, Command::Add)?;
            inner.config.allow(Command::Add, delegate.versions())?;
            delegate.preview(&inner, preview)
        }
        Located::Elsewhere(executable) => {
            preview.unknown(&executable.display().to_string());
            Ok(None)
        }
    }
}

/// What there is to say beforehand of the GC of a plugin that is not ours.
pub fn would_run_foreign(plugin: &str, executable: &Path) -> String {
    format!(
        "would run GC {plugin} ({}), which does not tell beforehand what it removes",
        executable.display()
    )
}

/// The call as the delegate sees it.
///
/// # Errors
/// Code 7 for a plugin that is its own delegate, which would never end.
fn enter(call: &Call, plugin: &str, command: Command) -> Result<Call> {
    /// A plugin, its delegate, and the delegate's IPAM.
    const DEEPEST: u8 = 3;
    if call.depth >= DEEPEST {
        return Err(detailed(
            Code::Config,
            format!("plugin {plugin} delegates to itself"),
            "set \"ipam.type\" to an IPAM plugin, such as host-local",
        ));
    }
    let mut inner = call.clone();
    inner.invocation.command = command;
    inner.depth += 1;
    Ok(inner)
}

enum Located {
    Here(&'static dyn Plugin),
    Elsewhere(PathBuf),
}

fn locate(call: &Call, plugin: &str) -> Result<Located> {
    let executable = exec::find(plugin, &call.invocation.path)?;
    Ok(
        match own(plugin, &executable, call.services.plugin_called) {
            Some(ours) => Located::Here(ours),
            None => Located::Elsewhere(executable),
        },
    )
}

/// The plugin that `executable` is under the name `plugin`, if it is this very program.
pub fn own(plugin: &str, executable: &Path, applets: Applets) -> Option<&'static dyn Plugin> {
    applets(plugin).filter(|_| fsutil::is_same_file(Path::new("/proc/self/exe"), executable))
}
