//! One document being inspected: how plugins are found for it, and the findings so far.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cni::json::Problem;
use crate::cni::skel::Applets;

/// One thing to say about one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file, maybe with line and column.
    pub place: String,
    pub severity: Severity,
    pub problem: Problem,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Error,
    Warning,
}

impl Severity {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

impl Finding {
    pub fn new(file: &Path, severity: Severity, path: &str, message: impl Into<String>) -> Self {
        Self {
            place: file.display().to_string(),
            severity,
            problem: Problem::new(path, message),
        }
    }

    pub fn error(file: &Path, path: &str, message: impl Into<String>) -> Self {
        Self::new(file, Severity::Error, path, message)
    }

    pub fn warning(file: &Path, path: &str, message: impl Into<String>) -> Self {
        Self::new(file, Severity::Warning, path, message)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = self.severity.as_str();
        write!(f, "{}: {severity}: ", self.place)?;
        if !self.problem.path.is_empty() {
            write!(f, "{}: ", self.problem.path)?;
        }
        f.write_str(&self.problem.message)
    }
}

/// How plugins are found.
pub struct Look<'a> {
    /// On the disk.
    pub find: &'a dyn Fn(&str) -> Result<()>,
    /// Among our applets.
    pub plugin: Applets,
}

/// One document being looked at.
pub struct Inspection<'a> {
    /// The file whose turn it is: the list's, or a plugin's beside it.
    pub file: PathBuf,
    /// How plugins are found.
    pub look: &'a Look<'a>,
    /// So far.
    pub findings: Vec<Finding>,
}

impl Inspection<'_> {
    /// Adds what makes the network unusable.
    pub fn error(&mut self, path: &str, message: impl Into<String>) {
        self.findings
            .push(Finding::error(&self.file, path, message));
    }

    /// Adds what is odd and does no harm.
    pub fn warning(&mut self, path: &str, message: impl Into<String>) {
        self.findings
            .push(Finding::warning(&self.file, path, message));
    }

    /// Adds what a reader of the JSON stumbled over.
    pub fn problem(&mut self, problem: Problem) {
        if problem.is_warning {
            self.warning(&problem.path, problem.message);
        } else {
            self.error(&problem.path, problem.message);
        }
    }
}
