//! What the kernel says when it refuses a netlink request.

use anyhow::Result;
use nix::errno::Errno;

/// What the kernel answered to a request it refused.
#[derive(Debug)]
pub struct Refused {
    /// `UnknownErrno` for a number that has no name here.
    pub errno: Errno,
    /// The kernel's own explanation, where it gave one.
    reason: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // In the words people search for: "file exists (EEXIST)".
        write!(f, "{} ({:?})", self.errno.desc().to_lowercase(), self.errno)?;
        if !self.reason.is_empty() {
            write!(f, ": {}", self.reason)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

/// Which error of the kernel is behind `error`, if one is.
pub fn errno(error: &anyhow::Error) -> Option<Errno> {
    error.downcast_ref::<Refused>().map(|refused| refused.errno)
}

/// Turns the errors that mean "it is so already" into success.
///
/// # Errors
/// Every other one.
pub fn tolerate(result: Result<()>, errnos: &[Errno]) -> Result<()> {
    match result {
        Err(error) if errno(&error).is_some_and(|errno| errnos.contains(&errno)) => Ok(()),
        other => other,
    }
}

/// Whether a request with this error may have been carried out all the same: no answer
/// came, rather than a refusal.
pub fn is_unanswered(error: &anyhow::Error) -> bool {
    errno(error).is_none_or(|errno| errno == Errno::ENOBUFS)
}

/// Reads a refusal. `code` is a negated errno, `header` what follows it in the kernel's
/// error message: its explanation may be there.
pub fn refused(code: i32, header: &[u8]) -> Refused {
    /// `struct nlmsghdr`, which the capped acknowledgement repeats before its attributes.
    const HEADER: usize = 16;
    /// `NLMSGERR_ATTR_MSG`.
    const MESSAGE: u16 = 1;
    let mut attributes = header.get(HEADER..).unwrap_or_default();
    let mut reason = String::new();
    while let [l0, l1, k0, k1, rest @ ..] = attributes {
        let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
        let Some(value) = length.checked_sub(4).and_then(|n| rest.get(..n)) else {
            break;
        };
        if u16::from_ne_bytes([*k0, *k1]) == MESSAGE {
            reason =
                String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned();
        }
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Refused {
        errno: Errno::from_raw(code.saturating_neg()),
        reason,
    }
}
