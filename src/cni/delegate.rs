//! Delegation (specification section 4): a plugin that runs another one.
//!
//! The delegate gets our environment with another command and our stdin byte for byte.
//! When the file found in `CNI_PATH` is this very executable, the delegate runs in this
//! process: no exec, no second parse of the environment.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};

use super::error::{Code, coded};
use super::exec;
use super::invocation::Command;
use super::json;
use super::result::CniResult;
use super::skel::{self, Call, Plugin};
use super::version::Version;
use crate::undo::Undo;

/// Delegates ADD to `plugin` and answers its result.
///
/// # Errors
/// The delegate's error object, unchanged.
pub fn add(call: &Call, plugin: &str) -> Result<CniResult> {
    match locate(call, plugin)? {
        Located::Here(plugin) => {
            let call = call.with_command(Command::Add);
            let mut undo = Undo::default();
            let result =
                skel::check_supported(plugin, &call).and_then(|()| plugin.add(&call, &mut undo))?;
            undo.commit();
            Ok(result)
        }
        Located::Elsewhere(executable) => {
            let printed = exec::run(
                &executable,
                &[("CNI_COMMAND", Command::Add.as_str())],
                &call.config.raw,
            )?;
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
        json::parse_object(&what, printed)?.into()
    };
    CniResult::parse(&value, default)
        .with_context(|| coded(Code::Decode, format!("{what} cannot be read")))
}

/// Delegates a command without a result: DEL, CHECK, STATUS or GC.
///
/// # Errors
/// The delegate's error object, unchanged.
pub fn run(call: &Call, plugin: &str, command: Command) -> Result<()> {
    match locate(call, plugin)? {
        Located::Here(plugin) => {
            let call = call.with_command(command);
            skel::check_supported(plugin, &call)?;
            skel::dispatch(plugin, &call)
        }
        Located::Elsewhere(executable) => exec::run(
            &executable,
            &[("CNI_COMMAND", command.as_str())],
            &call.config.raw,
        )
        .map(drop),
    }
}

enum Located {
    Here(&'static dyn Plugin),
    Elsewhere(std::path::PathBuf),
}

fn locate(call: &Call, plugin: &str) -> Result<Located> {
    let executable = exec::find(plugin, &call.invocation.path)?;
    let ours = same_file(
        std::fs::metadata("/proc/self/exe").ok(),
        std::fs::metadata(&executable).ok(),
    );
    Ok(match (call.applets)(plugin) {
        Some(plugin) if ours => Located::Here(plugin),
        _ => Located::Elsewhere(executable),
    })
}

fn same_file(a: Option<Metadata>, b: Option<Metadata>) -> bool {
    a.zip(b)
        .is_some_and(|(a, b)| a.dev() == b.dev() && a.ino() == b.ino())
}
