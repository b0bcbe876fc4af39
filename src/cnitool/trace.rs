//! `--verbose` and `--timing`: what each plugin was asked and what it said.

use std::time::Duration;

use anyhow::Result;

use super::output;
use crate::runtime::chain::{Observer, PluginCall};

/// Tells stderr about each call, as much as asked for.
pub struct Trace {
    pub verbose: bool,
    pub timing: bool,
}

impl Observer for Trace {
    fn starts(&self, call: &PluginCall<'_>) {
        if self.verbose {
            output::note(&format!(
                "--> {} {} ({})\n    stdin: {}",
                call.command.as_str(),
                call.plugin,
                call.executable.display(),
                String::from_utf8_lossy(call.stdin),
            ));
        }
    }

    fn ended(&self, call: &PluginCall<'_>, outcome: &Result<Vec<u8>>, took: Duration) {
        let milliseconds = took.as_secs_f64() * 1e3;
        if self.verbose {
            output::note(&ending(call, outcome, milliseconds));
        }
        if self.timing {
            output::note(&format!(
                "timing: {} {} {milliseconds:.1} ms",
                call.plugin,
                call.command.as_str()
            ));
        }
    }

    fn note(&self, text: &str) {
        output::note(text);
    }
}

fn ending(call: &PluginCall<'_>, outcome: &Result<Vec<u8>>, milliseconds: f64) -> String {
    let (command, plugin) = (call.command.as_str(), call.plugin);
    match outcome {
        Ok(printed) => {
            let mut text = format!("<-- {command} {plugin}: ok in {milliseconds:.1} ms");
            let printed = String::from_utf8_lossy(printed);
            for (index, line) in printed.lines().enumerate() {
                let label = if index == 0 { "stdout: " } else { "        " };
                text = format!("{text}\n    {label}{line}");
            }
            text
        }
        Err(error) => format!(
            "<-- {command} {plugin}: failed in {milliseconds:.1} ms\n    error: {}",
            output::describe(error)
        ),
    }
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
            "<-- ADD a: ok in 1.2 ms\n    stdout: {\n                \"x\": 1\n            }"
        );
        assert_eq!(
            ending(&call, &Err(anyhow::anyhow!("no")), 1.0),
            "<-- ADD a: failed in 1.0 ms\n    error: no"
        );
    }
}
