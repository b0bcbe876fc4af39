//! `cnibox` itself: what it is, which names it answers to, and how it gets onto a node.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::applets::{self, APPLETS, Applet};
use crate::cni::error::{Code, ErrorObject};
use crate::cni::version::Version;
use crate::cni::{invocation, json, skel};
use crate::cnitool::output;
use crate::cnitool::table::Line;
use crate::runtime::cache::{self, Cache};
use crate::runtime::restore::{self, Outcome, Scope};
use crate::runtime::{gc, quiet};
use crate::{cnitool, fsutil, log, text};

/// The binary's own name. Under any other it is an applet.
pub const NAME: &str = "cnibox";

/// Every CNI plugin a Linux node needs, in one binary.
#[derive(Parser)]
#[command(name = NAME, version, subcommand_value_name = "COMMAND|APPLET")]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Print the name of every applet, one a line
    List,
    /// Put this binary and a link for each applet into a directory
    Install(InstallArgs),
    /// Make the packet filter rules of running containers again, after somebody flushed them
    Restore(RestoreArgs),
}

#[derive(Args)]
struct InstallArgs {
    /// Where runtimes look for plugins, such as /opt/cni/bin; made if need be
    dir: PathBuf,
    /// Make the names hard links instead of symlinks
    #[arg(long, conflicts_with = "copy")]
    hardlink: bool,
    /// Make each name a copy of its own instead of a symlink
    #[arg(long)]
    copy: bool,
}

#[derive(Args)]
struct RestoreArgs {
    /// Only of the attachments to this network
    network: Option<String>,
    /// Print what is missing, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// The command line of `cnibox` for its manual: `cnitool` is part of it, and the plugins,
/// which have no command line, are listed.
#[must_use]
pub fn manual() -> clap::Command {
    Cli::command()
        .subcommand(cnitool::command())
        .after_help(format!("Applets:\n{}", listing()))
}

/// What shells complete: `cnibox` with all names of applets, and `cnitool` under its own.
#[must_use]
pub fn completions() -> [clap::Command; 2] {
    let plugin = |name: &'static str| clap::Command::new(name).disable_help_flag(true);
    let plugins = applets::names().filter(|name| applets::plugin(name).is_some());
    let cnibox = Cli::command()
        .subcommand(cnitool::command())
        .subcommands(plugins.map(plugin));
    [cnibox, cnitool::command()]
}

/// Serves a command line that names no applet; `args` starts with the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let word = args.get(1).map(|arg| arg.to_string_lossy().into_owned());
    let ours = ["list", "install", "restore", "help"];
    if let Some(word) = word.filter(|w| !w.starts_with('-') && !ours.contains(&w.as_str())) {
        return unknown_applet(&word);
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error),
    };
    match cli.verb {
        // A configuration of "type": "cnibox": better an error than a success of nothing.
        None if is_called_as_plugin() => unknown_applet(NAME),
        None => print(&overview()),
        Some(Verb::List) => print(&applets::names().fold(String::new(), |all, n| all + n + "\n")),
        Some(Verb::Install(args)) => match install(&args) {
            Ok(report) => print_lines(report),
            Err(error) => fail(&format!("{NAME}: install: {error:#}")),
        },
        Some(Verb::Restore(args)) => {
            restore(&args).unwrap_or_else(|error| fail(&format!("{NAME}: restore: {error:#}")))
        }
    }
}

/// Answers a call under a name that no applet has. A runtime that followed a mistyped
/// link gets the error object it expects.
pub fn unknown_applet(name: &str) -> ExitCode {
    let advice = json::nearest(name, applets::names())
        .map_or_else(String::new, |n| format!("; did you mean \"{n}\"?"));
    let names: Vec<_> = applets::names().collect();
    let names = names.join(", ");
    if is_called_as_plugin() {
        let object = ErrorObject {
            code: Code::Internal.number(),
            msg: format!("{NAME} has no applet called \"{name}\""),
            details: format!(
                "there are: {names}; a link of another name is the applet that the \"type\" of \
                 the configuration names, or that its own name ends in, after \"-\""
            ),
            ..ErrorObject::default()
        };
        if let Ok(bytes) = json::pretty(&object) {
            drop(skel::Stdout.write_all(&bytes));
        }
    }
    let name = text::escape(name);
    fail(&format!(
        "{NAME}: no applet is called \"{name}\"{advice}\nthere are: {names}"
    ))
}

/// Whether a runtime is calling, and not a person.
pub fn is_called_as_plugin() -> bool {
    invocation::environment()
        .get("CNI_COMMAND")
        .is_some_and(|command| !command.is_empty())
}

/// The applets, a line each.
fn listing() -> String {
    let line = |applet: &Applet| {
        let names: Vec<_> = [applet.name]
            .iter()
            .chain(applet.aliases)
            .copied()
            .collect();
        format!("  {:<18} {}\n", names.join(", "), applet.summary)
    };
    APPLETS.iter().map(line).collect()
}

fn overview() -> String {
    format!(
        "\
{NAME} {}: every CNI plugin a Linux node needs, in one binary

Applets:
{}
CNI versions: {}

Commands:
  {NAME} install DIR  put this binary and a link for each applet into DIR
  {NAME} list         print the name of every applet
  {NAME} restore      make the rules of running containers again, after a flush
  {NAME} APPLET ...   run an applet
  {NAME} --help       tell more
",
        env!("CARGO_PKG_VERSION"),
        listing(),
        Version::ALL.map(Version::as_str).join(", "),
    )
}

/// Prints a page of our own.
fn print(text: &str) -> ExitCode {
    told(output::page(text))
}

/// Prints lines, whatever names are in them.
fn print_lines(lines: Vec<String>) -> ExitCode {
    let lines: Vec<Line> = lines.into_iter().map(Line::from).collect();
    told(output::lines(&lines))
}

fn told(printed: Result<()>) -> ExitCode {
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{NAME}: {error:#}")),
    }
}

fn fail(text: &str) -> ExitCode {
    log::page(text);
    ExitCode::FAILURE
}

/// Who may run the binary: everybody.
const MODE: u32 = 0o755;

/// Installs into a directory that runtimes are using: every name is replaced in one
/// step by something complete, the binary first. Answers what was done.
fn install(args: &InstallArgs) -> Result<Vec<String>> {
    fsutil::create_directory(&args.dir, MODE)?;
    // The lock is not taken through a symlink.
    let dir =
        fs::canonicalize(&args.dir).with_context(|| format!("look up {}", args.dir.display()))?;
    let lock = fsutil::lock(&dir, MODE)?;
    fsutil::sweep(&dir)?;
    let binary = dir.join(NAME);
    for name in applets::names().chain([NAME]) {
        let target = dir.join(name);
        if target.is_dir() {
            bail!("{} is a directory", target.display());
        }
    }
    // Not the path: the file may be replaced while we run, by ourselves too.
    let bytes = fs::read("/proc/self/exe").context("read this binary")?;
    let others = others(&dir)?;
    fsutil::replace_durably(&binary, MODE, &bytes)?;
    let mut report = vec![format!("{} ({} bytes)", binary.display(), bytes.len())];
    for name in applets::names() {
        let link = dir.join(name);
        if args.copy {
            fsutil::replace_durably(&link, MODE, &bytes)?;
            report.push(format!("{} (copy)", link.display()));
        } else if args.hardlink {
            fsutil::replace_with_hard_link(&link, &binary)?;
            report.push(format!("{} (hard link)", link.display()));
        } else {
            fsutil::replace_with_symlink(&link, Path::new(NAME))?;
            report.push(format!("{} -> {NAME}", link.display()));
        }
    }
    for (name, other) in others {
        let file = dir.join(&name);
        match other {
            Other::HardLink => fsutil::replace_with_hard_link(&file, &binary)?,
            Other::Copy => fsutil::replace_durably(&file, MODE, &bytes)?,
        }
        report.push(format!("{} (kept up to date)\n", file.display()));
    }
    drop(lock);
    // The links are whole either way; this makes them outlive a power cut as well.
    if let Err(error) = fs::File::open(&dir).and_then(|dir| dir.sync_all()) {
        log::warn(&format!("sync {}: {error}", dir.display()));
    }
    Ok(report)
}

/// What somebody made of the binary that is replaced, under a name that ends in an applet's.
#[derive(Clone, Copy)]
enum Other {
    HardLink,
    Copy,
}

/// The hard links and copies of the binary in `dir` under names such as `cnv-bridge`: they
/// would stay behind. Symlinks follow by themselves, and files of other contents and names
/// are not ours.
fn others(dir: &Path) -> Result<Vec<(String, Other)>> {
    let binary = dir.join(NAME);
    let Ok(old) = fs::metadata(&binary) else {
        return Ok(Vec::new());
    };
    let is_copy = |file: &Path| {
        let read = |path| fs::read(path).ok();
        read(file).is_some_and(|bytes| Some(bytes) == read(&binary))
    };
    let mut others = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("list {}", dir.display()))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let is_alias = applets::find(&name).is_none() && applets::called(&name).is_some();
        let Ok(meta) = entry.metadata() else { continue };
        if !is_alias || !meta.is_file() || meta.len() != old.len() {
            continue;
        }
        if (meta.dev(), meta.ino()) == (old.dev(), old.ino()) {
            others.push((name, Other::HardLink));
        } else if is_copy(&entry.path()) {
            others.push((name, Other::Copy));
        }
    }
    Ok(others)
}

/// Restores the rules of what the result cache knows, and tells of each attachment that
/// needed it in a line.
fn restore(args: &RestoreArgs) -> Result<ExitCode> {
    let cache = Cache::new(Path::new(cache::DEFAULT));
    // A DEL that is half done would get back what it has just removed.
    let _alone = (!args.dry_run).then(quiet::alone).transpose()?;
    let contents = cache.contents()?;
    let (attachments, broken) = restore::remembered(&cache, contents.entries);
    for broken in &contents.unknown {
        log::warn(&format!("passed over: {broken}"));
    }
    for error in &broken {
        log::warn(&format!("passed over: {error:#}"));
    }
    let scope = Scope {
        network: args.network.as_deref(),
        dry_run: args.dry_run,
    };
    let (mut complete, mut failed) = (0, 0);
    let mut lines = Vec::new();
    restore::restore(&attachments, scope, applets::SERVICES, |entry, outcome| {
        let network = &entry.network;
        let whose = format!("network {network}, {}", gc::describe(&entry.parameters));
        match outcome {
            Ok(Outcome::Complete) => complete += 1,
            Ok(Outcome::Restored(missing)) if args.dry_run => {
                lines.push(format!("{whose}: missing:"));
                lines.extend(missing.iter().map(|rule| format!("    {rule}")));
            }
            Ok(Outcome::Restored(missing)) => {
                lines.push(format!("{whose}: restored ({} missing)", missing.len()));
            }
            Ok(Outcome::Renewed) => {
                lines.push(format!("{whose}: put in front of older mappings again"));
            }
            Ok(Outcome::Gone(reason)) => lines.push(format!("{whose}: skipped: {reason}")),
            Err(error) => {
                failed += 1;
                log::warn(&format!("{whose}: {error:#}"));
            }
        }
    });
    lines.push(format!(
        "attachments of which nothing was missing: {complete}"
    ));
    let printed = print_lines(lines);
    Ok(if failed == 0 {
        printed
    } else {
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        manual().debug_assert();
        completions()
            .into_iter()
            .for_each(clap::Command::debug_assert);
    }

    #[test]
    fn the_overview_names_everything() {
        let text = overview();
        for name in applets::names() {
            assert!(text.contains(name), "{name}");
        }
        for applet in APPLETS {
            assert!(text.contains(applet.summary));
        }
        assert!(text.contains("0.1.0, 0.2.0") && text.contains("1.1.0"));
    }
}
