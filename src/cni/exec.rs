//! Finding a plugin's executable and running it as a runtime does (specification
//! section 2; look-up and error rules: docs/compatibility.md#3.5).
//!
//! Only this and the iptables backend start processes.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::error::{Code, ErrorObject, coded, detailed};
use super::json;
use crate::{fsutil, log, text};

/// The executable of plugin `name`: the first regular file of that name in `path`.
///
/// # Errors
/// Code 7 for a name that is no plain file name (a `/` or `..` could run anything);
/// otherwise says where was looked.
pub fn find(name: &str, path: &[PathBuf]) -> Result<PathBuf> {
    if name.is_empty() {
        return Err(detailed(
            Code::Config,
            "no plugin name provided",
            "set \"type\" to the name of a plugin",
        ));
    }
    if name.contains('/') || name == "." || name == ".." || name.contains('\0') {
        return Err(detailed(
            Code::Config,
            format!("invalid plugin name: {name}"),
            "a plugin type is the name of a file in CNI_PATH, not a path",
        ));
    }
    let here = Path::new(".");
    path.iter()
        .map(|dir| {
            if dir.as_os_str().is_empty() {
                here
            } else {
                dir.as_path()
            }
        })
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .with_context(|| {
            let dirs: Vec<_> = path.iter().map(|dir| dir.display().to_string()).collect();
            format!(
                "failed to find plugin \"{name}\" in path [{}]",
                dirs.join(" ")
            )
        })
}

/// How long an executable that is being written may stay busy, in tries of 100 ms.
const BUSY_TRIES: u32 = 50;

/// Runs the plugin at `executable` with this process's environment changed by `env`,
/// `stdin` on its standard input, and answers what it printed. What it writes to stderr
/// goes to ours, whether it succeeds or not.
///
/// # Errors
/// The plugin's own error object, unchanged, when it printed one; otherwise one made
/// from what it left, code 999.
pub fn run(executable: &Path, env: &[(&str, &str)], stdin: &[u8]) -> Result<Vec<u8>> {
    let output = spawn(executable, env, stdin).map_err(|error| {
        let reason = fsutil::in_words(&error);
        let details = format!("plugin {} could not be run", executable.display());
        anyhow::Error::new(error).context(details).context(format!(
            "netplugin failed with no error message: fork/exec {}: {reason}",
            executable.display()
        ))
    })?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(failure(&output).into())
    }
}

fn spawn(executable: &Path, env: &[(&str, &str)], stdin: &[u8]) -> std::io::Result<Output> {
    let mut tries = 0;
    let mut child = loop {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the module that starts plugins"
        )]
        let spawned = std::process::Command::new(executable)
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        match spawned {
            // Somebody is copying a new version over the old one.
            Err(error)
                if error.kind() == std::io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES =>
            {
                tries += 1;
                std::thread::sleep(Duration::from_millis(100));
            }
            spawned => break spawned?,
        }
    };
    let input = child.stdin.take();
    let notes = child.stderr.take();
    std::thread::scope(|scope| {
        // Threads, because a plugin may print before it has read everything.
        scope.spawn(move || {
            if let Some(mut input) = input {
                // A plugin that does not read its input closes the pipe: no error.
                drop(input.write_all(stdin));
            }
        });
        let notes = scope.spawn(move || notes.map(pass_on).unwrap_or_default());
        let mut output = child.wait_with_output()?;
        output.stderr = notes.join().unwrap_or_default();
        Ok(output)
    })
}

/// Passes a plugin's notes on to our stderr as they come, and keeps them.
fn pass_on(mut notes: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut chunk = [0; 4096];
    let mut shown = text::Stream::default();
    while let Ok(length @ 1..) = notes.read(&mut chunk) {
        let read = chunk.get(..length).unwrap_or_default();
        log::pass_on(&shown.escape(read));
        kept.extend_from_slice(read);
    }
    log::pass_on(&shown.finish());
    kept
}

/// The error object of a plugin that failed.
fn failure(output: &Output) -> ErrorObject {
    let status = output.status.code().map_or_else(
        || format!("signal {}", output.status.signal().unwrap_or_default()),
        |code| format!("exit status {code}"),
    );
    let printed = String::from_utf8_lossy(&output.stdout);
    let mut object = if printed.trim().is_empty() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        ErrorObject {
            msg: if stderr.trim().is_empty() {
                format!("netplugin failed with no error message: {status}")
            } else {
                format!("netplugin failed: {:?}: {status}", stderr.trim_end())
            },
            ..ErrorObject::default()
        }
    } else {
        parse_failure(&printed).unwrap_or_else(|error| ErrorObject {
            msg: format!(
                "netplugin failed but error parsing its diagnostic message {printed:?}: {error:#}"
            ),
            ..ErrorObject::default()
        })
    };
    if object.code == 0 {
        object.code = Code::Internal.number();
    }
    object
}

fn parse_failure(printed: &str) -> Result<ErrorObject> {
    let object = json::parse_object("the plugin's error", printed.as_bytes())?;
    json::decode("", &Value::Object(object)).context(coded(Code::Decode, "not an error object"))
}

/// What holds for whatever a plugin prints when it fails: there is a code and a message.
#[cfg(any(test, fuzzing))]
pub fn fuzz(printed: &[u8]) -> ErrorObject {
    let object = failure(&Output {
        status: std::process::ExitStatus::from_raw(1 << 8),
        stdout: printed.to_vec(),
        stderr: Vec::new(),
    });
    assert!(object.code != 0);
    object
}

#[cfg(test)]
mod tests {
    use std::process::ExitStatus;

    use super::*;

    fn failed(stdout: &str, stderr: &str) -> ErrorObject {
        failure(&Output {
            status: ExitStatus::from_raw(1 << 8),
            stdout: stdout.into(),
            stderr: stderr.into(),
        })
    }

    #[test]
    fn names_are_names() {
        for name in ["", "a/b", "../x", "/bin/true", ".", "..", "a\0b"] {
            assert!(find(name, &["/bin".into()]).is_err(), "{name:?}");
        }
        let long = "x".repeat(4096);
        assert!(find(&long, &["/bin".into()]).is_err());
        assert_eq!(
            find("nope", &["/a".into(), "/b".into()])
                .unwrap_err()
                .to_string(),
            "failed to find plugin \"nope\" in path [/a /b]"
        );
        assert_eq!(
            find("sh", &["/x".into(), "/bin".into()]).unwrap(),
            Path::new("/bin/sh")
        );
    }

    #[test]
    fn failures_keep_what_the_plugin_said() {
        let object = failed(r#"{"code": 11, "msg": "later", "details": "d"}"#, "log");
        assert_eq!(
            (object.code, object.msg.as_str(), object.details.as_str()),
            (11, "later", "d")
        );
        assert_eq!(failed(r#"{"msg": "m"}"#, "").code, 999);
        assert_eq!(
            failed("", "it \"broke\"\n").msg,
            r#"netplugin failed: "it \"broke\"": exit status 1"#
        );
        assert_eq!(
            failed("", "").msg,
            "netplugin failed with no error message: exit status 1"
        );
        assert!(failed("oops", "").msg.contains("oops"));
    }
}
