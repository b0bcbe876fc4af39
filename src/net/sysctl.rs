//! Sysctls of the network namespace that the calling thread is in.
//!
//! Keys are paths below `/proc/sys/net`, so that interface names may contain dots.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Error, Result};
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::link_sysctl::LinkSysctl;
use super::netlink::Netlink;
use super::{link, netconf, route};
use crate::failure::{Failure, Kind};
use crate::log;

/// Where the keys are paths.
pub const ROOT: &str = "/proc/sys/net";

/// Those of one namespace, to be used inside it.
///
/// The first part of a key, such as `ipv6`, is looked up among the names of all namespaces
/// that this instance of procfs has shown to anybody (`proc_sys_compare`), 1 µs for each: that
/// is done once, and in an instance of our own if there may be one.
#[derive(Debug, Default)]
pub struct Sysctls {
    sections: Mutex<Vec<(String, OwnedFd)>>,
}

impl Sysctls {
    fn open(&self, key: &str, how: OFlag) -> io::Result<File> {
        let (section, rest) = key.split_once('/').unwrap_or((key, "."));
        let mut sections = self.sections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, opened)) = sections.iter().find(|(name, _)| name == section) {
            return Ok(open(opened, rest, how)?.into());
        }
        let opened = open(root()?, section, DIRECTORY)?;
        let file = open(&opened, rest, how)?;
        sections.push((section.to_owned(), opened));
        Ok(file.into())
    }

    /// Whether there are any below `section`.
    pub fn has(&self, section: &str) -> bool {
        self.open(section, OFlag::O_PATH).is_ok()
    }

    /// Which file `key` leads to, below [`ROOT`] or anywhere else.
    ///
    /// # Errors
    /// See [`is_absent`].
    pub fn leads_to(&self, key: &str) -> io::Result<PathBuf> {
        let path =
            |file: &dyn AsRawFd| fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let real = path(&self.open(key, OFlag::O_PATH)?)?;
        let below = real.strip_prefix(path(root()?)?);
        Ok(below.map_or_else(|_| real.clone(), |below| Path::new(ROOT).join(below)))
    }

    /// What the sysctl holds, without white space around it; `None` where there is nothing
    /// to read: some, like `ipv4/route/flush`, can only be written.
    ///
    /// # Errors
    /// Names the key and the cause; see [`is_absent`].
    pub fn read(&self, key: &str) -> Result<Option<String>> {
        let mut text = String::new();
        let read = self
            .open(key, OFlag::O_RDONLY)
            .and_then(|mut file| file.read_to_string(&mut text));
        match read {
            Ok(_) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {ROOT}/{key}")),
        }
    }

    /// Makes the sysctl hold `value`. One that does already is not written: read-only
    /// `/proc/sys` is then no obstacle.
    ///
    /// # Errors
    /// [`Kind::Io`] naming the key and the cause; where `/proc/sys` is read-only, as on restricted
    /// hosts, what to do about it.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        self.set_or_advise(key, value, || "it".to_owned())
    }

    /// As [`Sysctls::set`]; `beforehand` names what to set where this cannot be.
    fn set_or_advise(
        &self,
        key: &str,
        value: &str,
        beforehand: impl FnOnce() -> String,
    ) -> Result<()> {
        if let Ok(file) = self.open(key, OFlag::O_RDWR)
            && let Ok(now) = text(&file)
        {
            // At the start: what is written behind what was read is lost.
            if now == value || file.write_all_at(value.as_bytes(), 0).is_ok() {
                return Ok(());
            }
        }
        // It may be only for reading here, and right already, or only for writing.
        let current = self.read(key)?;
        if current.as_ref().is_some_and(|current| current == value) {
            return Ok(());
        }
        // Nothing is ever created there.
        self.open(key, OFlag::O_WRONLY)
            .and_then(|mut file| file.write_all(value.as_bytes()))
            .map_err(|error| match error.kind() {
                ErrorKind::ReadOnlyFilesystem => Error::new(error).context(format!(
                    "it is \"{}\" and read-only here: set {} beforehand, or let the plugin write /proc/sys",
                    current.unwrap_or_default(),
                    beforehand()
                )),
                _ => error.into(),
            })
            .with_context(|| Failure::new(Kind::Io, format!("write {value} to {ROOT}/{key}")))
    }

    /// Makes the sysctl hold `value` if this kernel has it.
    ///
    /// # Errors
    /// As [`Sysctls::set`].
    pub fn set_if_present(&self, key: &str, value: &str) -> Result<()> {
        match self.set(key, value) {
            Err(error) if is_absent(&error) => Ok(()),
            done => done,
        }
    }

    /// A sysctl that is a number, where there is one that can be read.
    pub fn number(&self, key: &str) -> Option<i64> {
        self.read(key).ok()??.parse().ok()
    }

    /// The value of a sysctl that the kernel acts on.
    pub fn effective(&self, sysctl: LinkSysctl<'_>) -> Option<i64> {
        sysctl.effective(|key| self.number(key))
    }

    /// Has the kernel act on `value`. Nothing is written where it does already, whether by the
    /// link's value or by that of `all`; nor where this kernel has no such sysctl.
    ///
    /// # Errors
    /// As [`Sysctls::set`]. Where the kernel acts on another value because of `all`, the link's
    /// own is set, and that is no error.
    pub fn ensure(&self, sysctl: LinkSysctl<'_>, value: i64) -> Result<()> {
        let key = sysctl.key_to_write();
        if self.number(&key) == Some(value) {
            return Ok(());
        }
        let suffices = self.effective(sysctl) == Some(value);
        // Advertisements that are ignored because the link forwards are to be ignored when it
        // stops forwarding, too.
        if suffices && !sysctl.follows_forwarding() {
            return Ok(());
        }
        let advice = || format!("{ROOT}/{} to {value}", sysctl.key_beforehand(value));
        match self.set_or_advise(&key, &value.to_string(), advice) {
            Err(error) if suffices || is_absent(&error) => Ok(()),
            done => done,
        }
    }
}

/// How directories are opened that names are looked up in.
const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY);

/// [`ROOT`], looked up once.
fn root() -> io::Result<&'static OwnedFd> {
    static OPENED: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(opened) = OPENED.get() {
        return Ok(opened);
    }
    let usual = open(AT_FDCWD, ROOT, DIRECTORY)?;
    // Whoever made it read-only does not want to see it written in another way. What is mounted
    // on parts of it is not there, in an instance of our own.
    let is_open = !fstatvfs(&usual)?.flags().contains(FsFlags::ST_RDONLY);
    let own = is_open.then(root_of_own).and_then(io::Result::ok);
    Ok(OPENED.get_or_init(|| own.unwrap_or(usual)))
}

/// [`ROOT`] in an instance of procfs that nobody else sees, and that ends with the process
/// (`fsmount(2)`; before Linux 5.8 it is everybody's).
fn root_of_own() -> io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let (cloexec, restricted) = (
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOEXEC,
    );
    let own = fsmount(&context, cloexec, restricted)?;
    Ok(open(own, "sys/net", DIRECTORY)?)
}

fn open(directory: impl AsFd, path: &str, how: OFlag) -> nix::Result<OwnedFd> {
    openat(directory, path, how | OFlag::O_CLOEXEC, Mode::empty())
}

/// As [`Sysctls::read`].
///
/// # Errors
/// As there.
pub fn read(key: &str) -> Result<Option<String>> {
    Sysctls::default().read(key)
}

/// As [`Sysctls::set`].
///
/// # Errors
/// As there.
pub fn set(key: &str, value: &str) -> Result<()> {
    Sysctls::default().set(key, value)
}

/// Whether [`set`] would find the sysctl as it should be, or could write it. Nothing is
/// written.
///
/// # Errors
/// [`Kind::Io`] naming the key and the cause, and what to do about it; see [`is_absent`].
pub fn check_settable(key: &str, value: &str) -> Result<()> {
    let sysctls = Sysctls::default();
    let current = sysctls.read(key)?;
    if current.as_ref().is_some_and(|current| current == value) {
        return Ok(());
    }
    sysctls
        .open(key, OFlag::O_WRONLY)
        .map(drop)
        .with_context(|| {
            format!(
                "it is \"{}\" and cannot be written here: set it beforehand, or let the plugin write /proc/sys",
                current.unwrap_or_default()
            )
        })
        .with_context(|| Failure::new(Kind::Io, format!("write {value} to {ROOT}/{key}")))
}

/// As [`Sysctls::effective`].
pub fn effective(sysctl: LinkSysctl<'_>) -> Option<i64> {
    Sysctls::default().effective(sysctl)
}

/// As [`Sysctls::ensure`].
///
/// # Errors
/// As there.
pub fn ensure(sysctl: LinkSysctl<'_>, value: i64) -> Result<()> {
    Sysctls::default().ensure(sysctl, value)
}

/// As [`Sysctls::set_if_present`].
///
/// # Errors
/// As there.
pub fn set_if_present(key: &str, value: &str) -> Result<()> {
    Sysctls::default().set_if_present(key, value)
}

/// What an open sysctl holds.
fn text(file: &File) -> io::Result<String> {
    // More than any that is ever written has.
    let mut bytes = [0; 256];
    let length = file.read_at(&mut bytes, 0)?;
    let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
    Ok(text.trim().to_owned())
}

/// Lets the host forward packets of the families of `ips` between its links. Nothing is
/// written where it does already.
///
/// The kernel drops the default routes that it has from router advertisements when it
/// becomes a router itself, and takes no more: the links that have such a route are told to go
/// on taking them (`accept_ra` 2), which a line on stderr says.
///
/// # Errors
/// Names the sysctl.
pub fn forward(host: &Netlink, ips: impl Iterator<Item = IpAddr>) -> Result<()> {
    for key in forwarding(ips) {
        if forwards(host, key) {
            continue;
        }
        if key == IPV6_FORWARDING {
            keep_advertised_routes(host);
        }
        set(key, "1").context("let the host forward packets")?;
    }
    Ok(())
}

/// Whether `key` of [`forwarding`] is 1. IPv4 is forwarded between links whose own values are 1
/// as well, but those of links to come follow this one.
fn forwards(host: &Netlink, key: &str) -> bool {
    let told = netconf::forwards(host, key != IPV6_FORWARDING);
    told.unwrap_or_else(|| Sysctls::default().number(key) == Some(1))
}

/// What [`forward`] would write.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn missing_forwarding(
    host: &Netlink,
    ips: impl Iterator<Item = IpAddr>,
) -> Result<Vec<(String, i64)>> {
    let mut missing = Vec::new();
    for key in forwarding(ips) {
        if forwards(host, key) {
            continue;
        }
        if key == IPV6_FORWARDING {
            let links = advertised_routes(host)?;
            missing.extend(links.iter().map(|link| (accept_ra(link).key(), 2)));
        }
        missing.push((key.to_owned(), 1));
    }
    Ok(missing)
}

fn accept_ra(link: &str) -> LinkSysctl<'_> {
    LinkSysctl::v6(link, "accept_ra")
}

/// The links with a default route that the kernel has from a router advertisement, and would
/// drop when it begins to forward IPv6 packets.
fn advertised_routes(host: &Netlink) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for index in route::advertised_defaults(host)? {
        names.extend(link::by_index(host, index)?.map(|link| link.name));
    }
    let sysctls = Sysctls::default();
    // 0: a program takes the advertisements instead of the kernel; 2 is what it takes.
    names.retain(|name| sysctls.number(&accept_ra(name).key()) == Some(1));
    names.sort();
    names.dedup();
    Ok(names)
}

/// Has the kernel go on taking router advertisements where it has a default route from them.
/// What fails is told: forwarding does not depend on it.
fn keep_advertised_routes(host: &Netlink) {
    let links = advertised_routes(host).unwrap_or_else(|error| {
        log::warn(&format!(
            "look for routes from router advertisements: {error:#}"
        ));
        Vec::new()
    });
    for link in &links {
        let key = accept_ra(link).key();
        match set(&key, "2") {
            Ok(()) => log::warn(&format!(
                "the host learnt its IPv6 default route through {link} from router advertisements, \
                 which it would lose by forwarding: {key} is 2 from now on"
            )),
            Err(error) => log::warn(&format!(
                "the host loses its IPv6 default route through {link}: {error:#}"
            )),
        }
    }
}

const IPV6_FORWARDING: &str = "ipv6/conf/all/forwarding";

/// What must be 1 for packets of the families of `ips` to be forwarded.
fn forwarding(ips: impl Iterator<Item = IpAddr>) -> BTreeSet<&'static str> {
    ips.map(|ip| match ip {
        IpAddr::V4(_) => "ipv4/ip_forward",
        IpAddr::V6(_) => IPV6_FORWARDING,
    })
    .collect()
}

/// Whether `error` says that there is no such sysctl, in this kernel or for this link.
pub fn is_absent(error: &Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::NotFound)
}
