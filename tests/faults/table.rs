//! The invariant table.

use std::sync::Mutex;

/// A row of the table while its faults are being injected, by any number of threads.
pub struct Row {
    fault: String,
    counted: Mutex<(usize, Vec<String>)>,
}

impl Row {
    /// A row for `fault`, in the words of the table.
    pub fn new(fault: impl Into<String>) -> Self {
        Self {
            fault: fault.into(),
            counted: Mutex::default(),
        }
    }

    /// Counts a violation, if `outcome` is one, of something that was injected already.
    pub fn note(&self, outcome: Result<(), String>) {
        self.counted.lock().unwrap().1.extend(outcome.err());
    }

    /// Counts one injection; an error is a violation, and says what is not as it must be.
    /// Answers whether all was well.
    pub fn count(&self, outcome: Result<(), String>) -> bool {
        let mut counted = self.counted.lock().unwrap();
        counted.0 += 1;
        let well = outcome.is_ok();
        counted.1.extend(outcome.err());
        well
    }
}

/// At the end of a test: prints the row, and fails unless something was injected and
/// nothing violated.
impl Drop for Row {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let (injections, violations) = self.counted.get_mut().unwrap();
        eprintln!("| {} | {injections} | {} |", self.fault, violations.len());
        assert!(*injections > 0, "{}: nothing was injected", self.fault);
        assert!(violations.is_empty(), "{}", violations.join("\n\n"));
    }
}

/// `Ok` where `holds`, else what `say` says.
pub fn ensure(holds: bool, say: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(say()) }
}
