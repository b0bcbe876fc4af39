//! Which attachment has which address, where the rules themselves cannot say it: those of
//! iptables and of firewalld name nothing but the address. One file for each address in
//! `/run/cni`, which is as short-lived as the rules; whoever got the address last has it.
//!
//! With it a DEL that knows no addresses finds its rules, GC those of the dead, and a DEL
//! that is late or repeated spares those of the address's next owner.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cni::invocation::Attachment;
use crate::cni::json;
use crate::fsutil::{self, Lock};
use crate::net::section;
use crate::netfilter::Owner;

/// What the lock is called, and the files.
const SECTION: &str = "firewall";

/// Somebody's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    network: String,
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
    /// firewalld's zone for it. Where that was refused it is in an earlier one, or in none.
    pub zone: Option<String>,
}

impl Claim {
    /// The claim of `owner`.
    pub fn new(owner: &Owner, zone: Option<&str>) -> Self {
        let Attachment {
            container_id,
            ifname,
        } = &owner.attachment;
        Self {
            network: owner.network.clone(),
            container_id: container_id.clone(),
            ifname: ifname.clone(),
            zone: zone.map(str::to_owned),
        }
    }

    /// Whose it is.
    pub fn owner(&self) -> Owner {
        Owner {
            network: self.network.clone(),
            attachment: Attachment {
                container_id: self.container_id.clone(),
                ifname: self.ifname.clone(),
            },
        }
    }
}

/// Keeps others from claiming addresses whose rules are being removed.
///
/// # Errors
/// Code 11 when others keep the lock.
pub fn lock() -> Result<Lock> {
    section::enter(SECTION, Duration::from_secs(10))
}

/// Claims `addresses`, whoever had them before. The caller has the lock.
///
/// # Errors
/// When a file cannot be written.
pub fn take(addresses: &[IpAddr], claim: &Claim) -> Result<()> {
    let bytes = json::compact(claim)?;
    for address in addresses {
        fsutil::replace(&file(*address)?, 0o600, &bytes)?;
    }
    Ok(())
}

/// Whose the address is, if that is known.
///
/// # Errors
/// When the file cannot be read.
pub fn holder(address: IpAddr) -> Result<Option<Claim>> {
    let bytes = fsutil::read(&file(address)?)?;
    // One that is damaged says nothing.
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Nobody has the address any more. The caller has the lock.
///
/// # Errors
/// When the file cannot be removed.
pub fn forget(address: IpAddr) -> Result<()> {
    fsutil::remove(&file(address)?).map(drop)
}

/// All addresses that somebody has.
///
/// # Errors
/// When the files cannot be listed.
pub fn all() -> Result<Vec<(IpAddr, Claim)>> {
    let context = || format!("list {}", section::DIR);
    let listing = match fs::read_dir(section::DIR) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.with_context(context)?,
    };
    let start = start()?;
    let mut claims = Vec::new();
    for entry in listing {
        let name = entry.with_context(context)?.file_name();
        let address = name.to_str().and_then(|name| name.strip_prefix(&start));
        let Some(Ok(address)) = address.map(str::parse) else {
            continue;
        };
        claims.extend(holder(address)?.map(|claim| (address, claim)));
    }
    Ok(claims)
}

fn file(address: IpAddr) -> Result<PathBuf> {
    Ok(Path::new(section::DIR).join(format!("{}{address}", start()?)))
}

fn start() -> Result<String> {
    Ok(format!("{}-", section::stem(SECTION)?))
}
