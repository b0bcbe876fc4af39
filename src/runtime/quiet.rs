//! Who changes attachments, and who must not meet half of one.
//!
//! An attachment is in the cache only when its ADD is done, and out of it only when its DEL
//! is. What looks at the cache to remove what is not in it, or to make again what is, keeps
//! our own ADDs and DELs out meanwhile. Other runtimes do not know of this.

use std::time::Duration;

use anyhow::Result;

use crate::fsutil::Lock;
use crate::net::section;

const SECTION: &str = "attachments";

/// Longer than a chain takes, even where something in it waits.
const LIMIT: Duration = Duration::from_mins(1);

/// For ADD and DEL, any number of which may run at the same time.
///
/// # Errors
/// As [`section::enter`].
pub fn changing() -> Result<Lock> {
    section::share(SECTION, LIMIT)
}

/// For those who need a cache that is true, as long as the answer lives.
///
/// # Errors
/// As [`section::enter`].
pub fn alone() -> Result<Lock> {
    section::enter(SECTION, LIMIT)
}
