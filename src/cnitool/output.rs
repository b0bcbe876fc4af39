//! The one place where cnitool prints: answers on stdout, everything else on stderr.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cni::error::{Code, Coded, ErrorObject, coded};

/// Prints an answer, as it is.
///
/// # Errors
/// Code 5 when stdout is closed or full.
pub fn answer(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .context(coded(Code::Io, "write the answer to stdout"))
}

/// Prints what is in vain unless somebody receives it.
///
/// # Errors
/// Code 5 when stdout is closed, full, or a pipe that nobody reads any more.
pub fn deliver(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .context(coded(Code::Io, "write the result to stdout"))
}

/// Prints a line for the operator. A closed stderr is nobody's error.
pub fn note(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// Prints an error with its causes, on one line.
pub fn report(error: &anyhow::Error) {
    note(&describe(error));
}

/// An error with its causes, and the code if it has one: a plugin's, or our own.
pub fn describe(error: &anyhow::Error) -> String {
    let is_coded = error.downcast_ref::<Coded>().is_some()
        || error
            .chain()
            .any(<dyn std::error::Error>::is::<ErrorObject>);
    if is_coded {
        let code = ErrorObject::from_error(error).code;
        format!("{error:#} (code {code})")
    } else {
        format!("{error:#}")
    }
}

/// Answers a command line that asks for help, or is none.
pub fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    if !error.use_stderr() {
        return answer(text.as_bytes()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    note(text.trim_end());
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_told() {
        let object = ErrorObject {
            code: 11,
            msg: "busy".into(),
            details: "lock".into(),
            ..ErrorObject::default()
        };
        let error = anyhow::Error::new(object).context("plugin type=\"x\" failed (add)");
        assert_eq!(
            describe(&error),
            "plugin type=\"x\" failed (add): busy; lock (code 11)"
        );
        let error = anyhow::anyhow!("deep").context(coded(Code::Io, "read"));
        assert_eq!(describe(&error), "read: deep (code 5)");
        assert_eq!(describe(&anyhow::anyhow!("odd")), "odd");
    }
}
