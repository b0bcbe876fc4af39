//! The one place where answers are printed on stdout; everything else goes to stderr, through
//! [`crate::log`]. Lines for people have no control characters in them, whatever the names in
//! them are; documents for machines are exact.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use super::table::{self, Line};
use crate::cni::error::{Code, ErrorObject, code_of, coded};
use crate::cni::json;
use crate::{log, text};

/// Prints a document that somebody depends on: who does not get it is told.
///
/// # Errors
/// Code 5 when stdout is closed or full.
pub fn answer(document: Vec<u8>) -> Result<()> {
    write(&text::json(document)).context(coded(Code::Io, "write the answer to stdout"))
}

/// Prints a JSON document to look at.
///
/// # Errors
/// Code 5 when stdout is full. A reader who has seen enough is none.
pub fn document(document: Vec<u8>) -> Result<()> {
    show(&text::json(document))
}

/// Prints a value as a JSON document to look at.
///
/// # Errors
/// As [`document`].
pub fn json(value: &impl Serialize) -> Result<()> {
    let mut bytes = json::pretty(value)?;
    bytes.push(b'\n');
    document(bytes)
}

/// Prints lines for people.
///
/// # Errors
/// As [`document`].
pub fn lines(lines: &[Line]) -> Result<()> {
    let is_coloured = table::is_coloured();
    let mut text = String::new();
    for line in lines {
        text.push_str(&line.render(is_coloured));
        text.push('\n');
    }
    show(text.as_bytes())
}

/// Prints text of our own whose lines stay lines, such as help or a picture.
///
/// # Errors
/// As [`document`].
pub fn page(text: &str) -> Result<()> {
    show(text::page(text).as_bytes())
}

fn show(bytes: &[u8]) -> Result<()> {
    match write(bytes) {
        // As in `cnitool ps | head`.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context(coded(Code::Io, "write the answer to stdout")),
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the door to stdout")]
fn write(bytes: &[u8]) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush())
}

/// Prints a note for the operator. A closed stderr is nobody's error.
pub fn note(text: &str) {
    log::say(text);
}

/// Prints an error with its causes.
pub fn report(error: &anyhow::Error) {
    note(&describe(error));
}

/// An error with its causes, and the code if it has one: a plugin's, or our own.
pub fn describe(error: &anyhow::Error) -> String {
    let is_coded = code_of(error).is_some()
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
        return page(&text).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    log::page(&text);
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
