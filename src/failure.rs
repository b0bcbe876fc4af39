//! Errors of the layers that do not know the CNI protocol: `net` and `netfilter`.
//!
//! Errors are `anyhow` chains. Where the kind of a failure is known, a [`Failure`] goes into
//! the chain: it says what was being done, or what is wrong, and of which [`Kind`] that is. The
//! cause, such as a system call's errno, stays below it in the chain. `cni::error` turns kinds
//! into the codes of the CNI specification.

use crate::log;

/// Kinds of failures that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Another process holds a lock; the same call may succeed later.
    Busy,
    /// A file cannot be read, written or locked.
    Io,
    /// A path names no network namespace, or the namespace cannot be entered.
    Namespace,
    /// The configuration has a value that is never right, or not on this host.
    Invalid,
    /// The configuration asks for something that is not implemented.
    Unsupported,
    /// This host lacks what the work needs, such as a kernel module.
    Unavailable,
    /// This process has neither root's rights nor `CAP_NET_ADMIN`.
    NotRoot,
    /// Another program or the kernel refused the request.
    Refused,
}

/// What was being done, or what is wrong, and of which kind the failure is.
#[derive(Debug, Clone)]
pub struct Failure {
    kind: Kind,
    sentence: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// A failure with a sentence: an error by itself, or context for one.
    pub fn new(kind: Kind, sentence: impl Into<String>) -> Self {
        Self {
            kind,
            sentence: sentence.into(),
        }
    }

    /// The kind of this failure.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// This failure as an error with `details` below it: what was found, or what to do.
    pub fn because(self, details: impl Into<String>) -> anyhow::Error {
        anyhow::Error::msg(details.into()).context(self)
    }
}

/// The outcome of several steps, all of which were taken: success, or the first error. The
/// other errors go to stderr.
///
/// # Errors
/// The first one.
pub fn all(results: impl IntoIterator<Item = anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut errors = results.into_iter().filter_map(anyhow::Result::err);
    let Some(first) = errors.next() else {
        return Ok(());
    };
    for error in errors {
        log::warn(&format!("also: {error:#}"));
    }
    Err(first)
}
