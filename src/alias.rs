//! Links and copies that somebody made under names that no applet has, such as
//! `buildkit-cni-bridge`, `cnv-bridge` and `bridge-v2`.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::Value;

use crate::applets::{self, Applet, Entry};
use crate::cli;
use crate::cni::config::without_bom;
use crate::cni::invocation::{self, Command};
use crate::cni::version::Version;
use crate::cni::{json, skel};

/// Runs an applet under the name that it was called by.
pub type Run = fn(&Applet, &str, Vec<OsString>, &mut dyn skel::Input) -> ExitCode;

/// Runs, with `run`, the applet that is meant by `called`, a name that none has. In this order: the one
/// that the configuration names as its `type`, the one whose name is at the end of `called`
/// after a `-`, the one that symlinks lead through.
pub fn run(called: &str, args: Vec<OsString>, run: Run) -> ExitCode {
    let by_name =
        applets::called(called).or_else(|| args.first().and_then(|path| linked(path.as_ref())));
    let mut stdin = std::io::stdin().lock();
    if !cli::is_called_as_plugin() {
        return match by_name {
            Some(applet) => run(applet, called, args, &mut stdin),
            None => cli::unknown_applet(called),
        };
    }
    if is_asked_for_versions() {
        return match by_name {
            Some(applet) => run(applet, called, args, &mut stdin),
            None => answer_versions(&stdin),
        };
    }
    let mut config = Vec::new();
    // What cannot be read is for the plugin to tell: it finds nothing more to read.
    drop(stdin.read_to_end(&mut config));
    match by_type(called, &config).or(by_name) {
        Some(applet) => run(applet, called, args, &mut config.as_slice()),
        None => cli::unknown_applet(called),
    }
}

fn is_asked_for_versions() -> bool {
    invocation::environment()
        .get("CNI_COMMAND")
        .is_some_and(|command| command == Command::Version.as_str())
}

/// Answers VERSION for a plugin that only a configuration tells, which does not come with
/// VERSION: the versions that most of them speak. A call with one that it does not speak
/// is refused later.
fn answer_versions(stdin: &dyn skel::Input) -> ExitCode {
    let answered = skel::versions(stdin, &Version::ALL)
        .and_then(|answer| Ok(skel::Stdout.write_all(&answer)?));
    match answered {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The plugin that `config` names as its `type`. Who is called as an IPAM plugin gets the
/// configuration of the plugin that calls: its `type` says nothing then.
fn by_type(called: &str, config: &[u8]) -> Option<&'static Applet> {
    let config: Value = json::parse_fields("stdin", without_bom(config))
        .ok()?
        .into();
    if json::member(&config, &["ipam", "type"]).is_some_and(|ipam| ipam == called) {
        return None;
    }
    let named = json::member(&config, &["type"])?;
    applets::find(named.as_str()?).filter(|applet| matches!(applet.entry, Entry::Plugin(_)))
}

/// The applet whose name is met where the symlink `path` leads: that of
/// `bridge-v2 -> bridge -> cnibox`, made when `bridge` was still the reference's.
fn linked(path: &Path) -> Option<&'static Applet> {
    /// As many as the kernel follows.
    const MOST: usize = 40;
    let next = |path: &PathBuf| Some(path.parent()?.join(fs::read_link(path).ok()?));
    std::iter::successors(Some(path.to_owned()), next)
        .take(MOST)
        .find_map(|path| applets::called(path.file_name()?.to_str()?))
}
