//! Which links had `route_localnet` off before the first container needed it, each an empty
//! file in `/run/cni`. Not in the ruleset: whoever flushes that flushes the guard along, and
//! then above all it must be known what to switch off again.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::net::link::{self, Link};
use crate::net::netlink::Netlink;
use crate::net::section;
use crate::{fsutil, log};

/// What the lock is called, and how the names of the files that it protects begin.
pub const SECTION: &str = "localnet";

/// How the names of the files end.
const ENDING: &str = ".was-off";

/// That one link was off.
pub struct Record {
    path: PathBuf,
    /// The link's name; `None` when it is gone.
    pub device: Option<String>,
}

/// Remembers that `link` was off; the caller has the lock.
///
/// # Errors
/// When the file cannot be made.
pub fn remember(link: &Link) -> Result<()> {
    let file = format!("{}-{}{ENDING}", section::stem(SECTION)?, link.index);
    fsutil::create_new(&Path::new(section::DIR).join(file), 0o600, b"")?;
    Ok(())
}

/// What is remembered in the network namespace of this thread.
///
/// # Errors
/// When the files cannot be listed, or the kernel does not tell whose they are.
pub fn records() -> Result<Vec<Record>> {
    let context = || format!("list {}", section::DIR);
    let listing = match fs::read_dir(section::DIR) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.with_context(context)?,
    };
    let start = format!("{}-", section::stem(SECTION)?);
    let mut records = Vec::new();
    for entry in listing {
        let entry = entry.with_context(context)?;
        let name = entry.file_name();
        let index = name.to_str().and_then(|name| {
            let index = name.strip_prefix(&start)?.strip_suffix(ENDING)?;
            index.parse().ok()
        });
        if let Some(index) = index {
            let link = link::by_index(&Netlink::open()?, index)?;
            records.push(Record {
                path: entry.path(),
                device: link.map(|link| link.name),
            });
        }
    }
    Ok(records)
}

impl Record {
    /// Forgets it; the caller has the lock. One that stays does no harm: at worst the link
    /// is switched off once more when nobody needs it.
    pub fn forget(&self) {
        if let Err(error) = fsutil::remove(&self.path) {
            log::warn(&format!("{error:#}"));
        }
    }
}
