//! What each call of a plugin did and how long its steps took: a line of JSON in a file,
//! when somebody asked for it.
//!
//! Either the caller names the file, or an operator creates [`SWITCH`], for a runtime that is
//! not to be restarted. The file is not followed if it
//! is a symlink, must be our own user's, and becomes readable by nobody else. From
//! [`ROTATED_AT`] bytes on it becomes `FILE.1`, in place of an earlier one. A line goes
//! there in one write(2). What cannot be logged is not: no call fails by it.
//!
//! The lines hold neither `CNI_ARGS` nor any of the configuration.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{fsutil, text};

/// While this file exists, calls are logged there.
const SWITCH: &str = "/run/cni/cnibox.log";

/// Bytes from which on the next line begins a new file.
const ROTATED_AT: u64 = 4 * 1024 * 1024;

/// Who may read the files.
const MODE: u32 = 0o600;

/// Whether steps are recorded: what a step costs otherwise is one look at this.
static IS_ON: AtomicBool = AtomicBool::new(false);

/// The steps of the call that this process serves.
static STEPS: Mutex<Option<Recorder>> = Mutex::new(None);

struct Recorder {
    began: Instant,
    steps: Vec<Step>,
}

/// Something that a call did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Reads as an order, like "reserve addresses".
    #[serde(rename = "step")]
    pub what: String,
    /// Milliseconds from the beginning of the call. Steps can contain others, and run at
    /// the same time.
    pub at: f64,
    /// Milliseconds that it took.
    pub ms: f64,
}

/// What a line tells of how the time went.
#[derive(Debug, Deserialize)]
pub struct Steps {
    /// Who took them.
    pub applet: String,
    /// In the order in which they began.
    pub steps: Vec<Step>,
}

/// The line of one call.
#[derive(Debug, Serialize)]
struct Line<'a> {
    time: String,
    applet: &'a str,
    command: &'a str,
    network: &'a str,
    container: &'a str,
    interface: &'a str,
    netns: &'a str,
    pid: u32,
    ms: f64,
    steps: Vec<Step>,
    /// What was printed, maybe nothing. There is either this or an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
}

/// What one call was about, and what came of it.
#[derive(Debug)]
pub struct Outcome<'a> {
    /// The plugin.
    pub applet: &'a str,
    /// The command, as the caller wrote it.
    pub command: &'a str,
    /// The network's name; empty where it is not known.
    pub network: &'a str,
    /// The container's id.
    pub container: &'a str,
    /// The interface's name.
    pub interface: &'a str,
    /// The path of the container's network namespace.
    pub netns: &'a str,
    /// What was printed, or the error as it was printed.
    pub printed: Result<&'a [u8], Value>,
}

/// Does `work`, and remembers how long it took if anybody wants to know.
pub fn step<T>(what: &str, work: impl FnOnce() -> T) -> T {
    if !IS_ON.load(Ordering::Relaxed) {
        return work();
    }
    let start = Instant::now();
    let done = work();
    let took = start.elapsed();
    if let Ok(mut recorder) = STEPS.lock()
        && let Some(Recorder { began, steps }) = recorder.as_mut()
    {
        let at = milliseconds(start.duration_since(*began));
        // By their beginning, so that what contains others stands before them.
        let place = steps.partition_point(|step| step.at < at);
        let step = Step {
            what: what.to_owned(),
            at,
            ms: milliseconds(took),
        };
        steps.insert(place, step);
    }
    done
}

/// To the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The file for the lines, open while one call is served.
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Begins to record the steps of a call; `None` when nobody asked for it.
    pub fn begin(file: Option<&str>) -> Option<Self> {
        let journal = Self::open(file)?;
        if let Ok(mut recorder) = STEPS.lock() {
            *recorder = Some(Recorder {
                began: Instant::now(),
                steps: Vec::new(),
            });
        }
        IS_ON.store(true, Ordering::Relaxed);
        Some(journal)
    }

    /// The `file` that the caller names, created if need be, or else [`SWITCH`] if it exists.
    pub fn open(file: Option<&str>) -> Option<Self> {
        match file.filter(|path| !path.is_empty()) {
            Some(path) => Self::open_file(Path::new(path), true),
            None => Self::open_file(Path::new(SWITCH), false),
        }
    }

    fn open_file(path: &Path, create: bool) -> Option<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(create)
            .mode(MODE)
            // A pipe is not waited for.
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(path)
            .ok()?;
        let meta = file.metadata().ok()?;
        if !meta.is_file() || meta.uid() != nix::unistd::geteuid().as_raw() {
            return None;
        }
        if meta.mode() & 0o077 != 0 {
            file.set_permissions(Permissions::from_mode(MODE)).ok()?;
        }
        Some(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Writes the line of a call.
    pub fn finish(self, outcome: Outcome<'_>) {
        IS_ON.store(false, Ordering::Relaxed);
        let recorder = STEPS.lock().ok().and_then(|mut steps| steps.take());
        let Some(Recorder { began, steps }) = recorder else {
            return;
        };
        let (result, error) = match outcome.printed {
            Ok(printed) => (
                Some(serde_json::from_slice(printed).unwrap_or_default()),
                None,
            ),
            Err(error) => (None, Some(error)),
        };
        let line = Line {
            time: humantime::format_rfc3339_micros(SystemTime::now()).to_string(),
            applet: outcome.applet,
            command: outcome.command,
            network: outcome.network,
            container: outcome.container,
            interface: outcome.interface,
            netns: outcome.netns,
            pid: std::process::id(),
            ms: milliseconds(began.elapsed()),
            steps,
            result,
            error,
        };
        if let Ok(line) = serde_json::to_vec(&line) {
            // Somebody may read it with `cat`.
            let mut line = text::json(line);
            line.push(b'\n');
            self.append(&line);
        }
    }

    /// Adds whole lines.
    pub fn append(self, lines: &[u8]) {
        let mut file = match self.file.metadata() {
            Ok(meta) if meta.len() < ROTATED_AT => self.file,
            _ => match rotate(&self.path) {
                Ok(Some(new)) => new.file,
                // Somebody else does: this one line more will not hurt.
                Ok(None) => self.file,
                Err(_) => return,
            },
        };
        // One write, as others append at the same time.
        drop(file.write(lines));
    }
}

/// Gives the full file at `path` another name, and its own to an empty one. There is a
/// file at `path` all the while: it is the switch. `None` while somebody else does this.
fn rotate(path: &Path) -> anyhow::Result<Option<Journal>> {
    let Some(_lock) = fsutil::lock_within(path, MODE, Duration::ZERO)? else {
        return Ok(None);
    };
    if fs::symlink_metadata(path)?.len() >= ROTATED_AT {
        let mut older = path.as_os_str().to_owned();
        older.push(".1");
        let older = PathBuf::from(older);
        fsutil::remove(&older)?;
        fs::hard_link(path, &older)?;
        fsutil::replace(path, MODE, b"")?;
    }
    Journal::open_file(path, false)
        .context("open the new file")
        .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Option<Journal> {
        Journal::open(path.to_str())
    }

    #[test]
    fn a_full_file_makes_room_for_another() {
        let dir = tempfile::tempdir().unwrap();
        let (path, older) = (dir.path().join("log"), dir.path().join("log.1"));
        for round in ["first", "second"] {
            fs::write(&path, round).unwrap();
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(ROTATED_AT - 1).unwrap();
            // The one that fills it, and two that had it open when it was full.
            open(&path).unwrap().append(b"{}");
            let late = [open(&path).unwrap(), open(&path).unwrap()];
            for journal in late {
                journal.append(b"x\n");
            }
            assert_eq!(fs::read_to_string(&path).unwrap(), "x\nx\n");
            assert!(fs::read(&older).unwrap().starts_with(round.as_bytes()));
            assert_eq!(fs::metadata(&older).unwrap().len(), ROTATED_AT + 1);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, MODE);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        // Where there is no room to be made, nothing is added.
        fs::remove_file(&older).unwrap();
        fs::create_dir(&older).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(ROTATED_AT).unwrap();
        open(&path).unwrap().append(b"x\n");
        assert_eq!(fs::metadata(&path).unwrap().len(), ROTATED_AT);
    }

    #[test]
    fn only_a_file_of_our_own_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "").unwrap();
        fs::set_permissions(path("file"), Permissions::from_mode(0o644)).unwrap();
        assert!(open(&path("file")).is_some());
        assert_eq!(fs::metadata(path("file")).unwrap().mode() & 0o777, MODE);
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for name in ["link", "pipe", ".", "no/such"] {
            assert!(open(&path(name)).is_none(), "{name}");
        }
    }

    #[test]
    fn steps_are_in_order_of_their_beginning() {
        assert_eq!(step("unheard", || 1), 1);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let journal = Journal::begin(path.to_str()).unwrap();
        step("outer", || step("inner", || ()));
        step("last", || ());
        journal.finish(Outcome {
            applet: "a",
            command: "ADD",
            network: "n",
            container: "",
            interface: "",
            netns: "",
            printed: Ok(b"{\n \"x\": 1}"),
        });
        let text = fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 1);
        let line: Value = serde_json::from_str(&text).unwrap();
        let steps = line["steps"].as_array().unwrap();
        let names: Vec<_> = steps
            .iter()
            .map(|step| step["step"].as_str().unwrap())
            .collect();
        // Other tests of this process take steps too.
        let position = |name| names.iter().position(|other| *other == name).unwrap();
        assert!(position("outer") < position("inner") && position("inner") < position("last"));
        assert_eq!(line["result"]["x"], 1);
        assert!(line.get("error").is_none());
    }
}
