//! `cnitool validate`: everything that is wrong with configurations, at once.
//!
//! An error is what makes a network unusable; a warning is what is odd and does no harm
//! by itself. What plugins know of their own keys they say themselves
//! (`Plugin::validate`); foreign plugins are looked up but never run.

mod document;
mod inspection;
pub mod neighbours;
mod plugin;
mod together;
mod twice;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::table::{Line, Tone};
use super::{Options, ValidateArgs, output};
use crate::cni::json;
#[cfg(any(test, fuzzing))]
use crate::cni::skel::Applets;
use crate::cni::skel::Services;
use crate::fsutil::without_byte_order_mark;
use crate::runtime::directory::{self, Broken, Directory};
use document::Named;
use inspection::{Finding, Look, Severity};

/// Prints every finding, and a line for each file without any.
///
/// # Errors
/// When there is nothing to look at.
pub fn run(options: &Options, services: Services, args: &ValidateArgs) -> Result<ExitCode> {
    let (directory, files) = select(options.conf(), args.what.as_deref())?;
    let directories: Vec<PathBuf> = std::env::split_paths(options.path()).collect();
    let look = Look {
        find: &|plugin| crate::runtime::chain::find(plugin, &directories).map(drop),
        plugin: services.plugin,
    };
    let mut lines = Vec::new();
    let mut all = Vec::new();
    let mut failed = false;
    for file in &files {
        let findings = inspect(file, &directory, &look);
        failed |= findings.iter().any(|f| f.severity == Severity::Error);
        if findings.is_empty() {
            let ok = Line::toned("ok", Tone::Good);
            lines.push(Line::from(format!("{}: ", file.display())).then(ok));
        }
        let line = |finding: &Finding| {
            let tone = match finding.severity {
                Severity::Error => Tone::Bad,
                Severity::Warning => Tone::Warning,
            };
            Line::toned(finding.to_string(), tone)
        };
        lines.extend(findings.iter().map(line));
        all.extend(findings);
    }
    if args.json {
        let mut document = json::pretty(&document(&files, &all))?;
        document.push(b'\n');
        output::document(document)?;
    } else {
        output::lines(&lines)?;
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// What was found, for machines. The keys are a contract: none goes or changes its meaning.
fn document(files: &[PathBuf], findings: &[Finding]) -> Value {
    let files: Vec<String> = files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    let finding = |finding: &Finding| {
        json!({
            "place": finding.place,
            "severity": finding.severity.as_str(),
            "path": finding.problem.path,
            "message": finding.problem.message,
        })
    };
    json!({
        "files": files,
        "findings": findings.iter().map(finding).collect::<Vec<_>>(),
    })
}

/// What to look at, and what stands beside it.
fn select(conf: &Path, what: Option<&str>) -> Result<(Directory, Vec<PathBuf>)> {
    if let Some(file) = what.filter(|text| is_file(text)) {
        let file = PathBuf::from(file);
        let beside = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        return Ok((directory::load(beside)?, vec![file]));
    }
    let directory = directory::load(conf)?;
    let Some(name) = what else {
        let networks = directory.networks.iter().map(|network| &network.file);
        let broken = directory.broken.iter().map(|broken| &broken.file);
        let mut files: Vec<PathBuf> = networks.chain(broken).cloned().collect();
        files.sort();
        anyhow::ensure!(
            !files.is_empty(),
            "no net configurations found in {}",
            directory.path.display()
        );
        return Ok((directory, files));
    };
    // The one that `add` would use. A file that holds no usable network is looked for by
    // the name it gives.
    let named = |broken: &&Broken| document::name_in(&broken.file).as_deref() == Some(name);
    let file = match (directory.find(name), directory.broken.iter().find(named)) {
        (Ok(network), _) => network.file.clone(),
        (Err(_unusable), Some(broken)) => broken.file.clone(),
        (Err(error), None) => return Err(error),
    };
    Ok((directory, vec![file]))
}

/// Whether an argument is meant as a file, by how it is written: what happens to be in
/// the working directory must not hide a network.
fn is_file(what: &str) -> bool {
    what.contains('/')
        || [".conf", ".conflist", ".json"]
            .iter()
            .any(|end| what.ends_with(end))
}

fn inspect(file: &Path, directory: &Directory, look: &Look<'_>) -> Vec<Finding> {
    // Not as a file of the directory is read: this one may be a pipe that was asked for.
    let raw = match std::fs::read(file).context("read the file") {
        Ok(raw) => raw,
        Err(error) => return vec![Finding::error(file, "", format!("{error:#}"))],
    };
    let raw = without_byte_order_mark(&raw);
    let (named, mut findings) = match document::parse(file, raw) {
        Ok(Named { name, value }) => (name, document::inspect(file, raw, &value, look)),
        Err(error) => {
            let broken = Broken {
                file: file.into(),
                error,
            };
            let mut finding = Finding::error(file, "", format!("{:#}", broken.error));
            finding.place = broken.place();
            return vec![finding];
        }
    };
    if let Some(name) = named {
        findings.extend(neighbours::inspect(file, &name, directory));
    }
    findings
}

/// The document in a file and what is wrong with it, for fuzzing: all plugins are taken for
/// installed. `None` for what is no document.
#[cfg(any(test, fuzzing))]
pub fn problems(
    file: &Path,
    raw: &[u8],
    plugin: Applets,
) -> Option<(Value, Vec<json::Problem>, bool)> {
    let look = Look {
        find: &|_| Ok(()),
        plugin,
    };
    let Named { value, .. } = document::parse(file, raw).ok()?;
    let findings = document::inspect(file, raw, &value, &look);
    let is_valid = findings.iter().all(|f| f.severity != Severity::Error);
    let problems = findings.into_iter().map(|finding| finding.problem);
    Some((value.into(), problems.collect(), is_valid))
}
