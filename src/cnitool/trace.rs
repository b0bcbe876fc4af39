//! `--verbose` and `--timing`: what each plugin was asked, what it said, and where the
//! time went.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::output;
use crate::cni::invocation::{LOG_VARIABLE, environment};
use crate::fsutil;
use crate::journal::{Journal, Steps};
use crate::runtime::chain::{Observer, PluginCall};

/// Tells stderr about each call, as much as asked for.
pub struct Trace {
    verbose: bool,
    /// Where plugins of ours tell of their steps.
    timing: Option<StepsFile>,
}

impl Trace {
    /// # Errors
    /// When there is no place for plugins to tell how their time went.
    pub fn new(verbose: bool, timing: bool) -> Result<Self> {
        Ok(Self {
            verbose,
            timing: timing.then(StepsFile::new).transpose()?,
        })
    }
}

/// A journal of our own, in a directory that nobody else can enter. It goes with the value.
struct StepsFile {
    file: PathBuf,
}

impl StepsFile {
    fn new() -> Result<Self> {
        let template = std::env::temp_dir().join("cnitool-XXXXXX");
        let dir = nix::unistd::mkdtemp(&template)
            .with_context(|| format!("create {}", template.display()))?;
        Ok(Self {
            file: dir.join("steps"),
        })
    }

    /// What has been told since the last time; it is also put where it would have gone
    /// without this file.
    fn take(&self) -> Vec<Steps> {
        let told = fsutil::read(&self.file).ok().flatten().unwrap_or_default();
        drop(fs::remove_file(&self.file));
        if let Some(journal) = Journal::open(environment().get(LOG_VARIABLE).map(String::as_str))
            && !told.is_empty()
        {
            journal.append(&told);
        }
        told.split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect()
    }
}

impl Drop for StepsFile {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.file));
        if let Some(dir) = self.file.parent() {
            drop(fs::remove_dir(dir));
        }
    }
}

impl Observer for Trace {
    fn starts(&self, call: &PluginCall<'_>) {
        if self.verbose {
            let (command, plugin) = (call.command.as_str(), call.plugin);
            let file = call.executable.display();
            output::note(&format!("--> {command} {plugin} ({file})"));
            let stdin = String::from_utf8_lossy(call.stdin);
            for line in indented("stdin: ", &stdin) {
                output::note(&line);
            }
        }
    }

    fn ended(&self, call: &PluginCall<'_>, outcome: &Result<Vec<u8>>, took: Duration) {
        let milliseconds = took.as_secs_f64() * 1e3;
        if self.verbose {
            for line in ending(call, outcome, milliseconds) {
                output::note(&line);
            }
        }
        if let Some(steps) = &self.timing {
            output::note(&format!(
                "timing: {} {} {milliseconds:.1} ms",
                call.plugin,
                call.command.as_str()
            ));
            for line in steps
                .take()
                .iter()
                .flat_map(|told| lines(told, call.plugin))
            {
                output::note(&line);
            }
        }
    }

    fn journal(&self) -> Option<&Path> {
        self.timing.as_ref().map(|steps| steps.file.as_path())
    }

    fn note(&self, text: &str) {
        output::note(text);
    }
}

/// A line for each step of `called`, or of a delegate of that.
fn lines(told: &Steps, called: &str) -> Vec<String> {
    let who = if told.applet == called {
        String::new()
    } else {
        format!("{}: ", told.applet)
    };
    let steps = told.steps.iter();
    steps
        .map(|step| {
            let (at, ms, what) = (step.at, step.ms, &step.what);
            format!("timing:   {ms:8.2} ms from {at:8.2} ms on: {who}{what}")
        })
        .collect()
}

/// How a call ended, line by line.
fn ending(call: &PluginCall<'_>, outcome: &Result<Vec<u8>>, milliseconds: f64) -> Vec<String> {
    let (command, plugin) = (call.command.as_str(), call.plugin);
    match outcome {
        Ok(printed) => {
            let mut lines = vec![format!(
                "<-- {command} {plugin}: ok in {milliseconds:.1} ms"
            )];
            lines.extend(indented("stdout: ", &String::from_utf8_lossy(printed)));
            lines
        }
        Err(error) => vec![
            format!("<-- {command} {plugin}: failed in {milliseconds:.1} ms"),
            format!("    error: {}", output::describe(error)),
        ],
    }
}

/// The lines of `text` below its label.
fn indented(label: &str, text: &str) -> Vec<String> {
    let width = label.len();
    let lines = text.lines().enumerate();
    lines
        .map(|(index, line)| {
            let label = if index == 0 { label } else { "" };
            format!("    {label:width$}{line}")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cni::invocation::Command;

    #[test]
    fn output_is_indented_below_its_label() {
        let call = PluginCall {
            command: Command::Add,
            plugin: "a",
            executable: Path::new("/a"),
            stdin: b"{}",
        };
        assert_eq!(
            ending(&call, &Ok(b"{\n    \"x\": 1\n}".to_vec()), 1.25),
            [
                "<-- ADD a: ok in 1.2 ms",
                "    stdout: {",
                "                \"x\": 1",
                "            }"
            ]
        );
        assert_eq!(
            ending(&call, &Err(anyhow::anyhow!("no")), 1.0),
            ["<-- ADD a: failed in 1.0 ms", "    error: no"]
        );
    }
}
