//! What the command of `cnitool exec` sees of the file system: its own `/sys`, and an
//! `/etc/resolv.conf` with the DNS of its network. Both are mounts in a mount namespace of its
//! own, and nobody else sees them.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
    mount_change, unmount,
};

use crate::cni::result::Dns;
use crate::cnitool::output;

const SYS: &str = "/sys";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The `resolv.conf(5)` of a command whose network has this `dns`; `None` where that says
/// nothing, and the host's serves. Where the network has no name servers, those of the host
/// stay: without any, the resolver would ask this machine.
pub fn resolv_conf(dns: &Dns) -> Option<String> {
    if *dns == Dns::default() {
        return None;
    }
    let host = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    Some(write_resolv_conf(dns, &host))
}

fn write_resolv_conf(dns: &Dns, host: &str) -> String {
    // One word each, whatever somebody has put into the result.
    let word = |text: &String| text.split_whitespace().next().map(str::to_owned);
    let words = |texts: &[String]| texts.iter().filter_map(word).collect::<Vec<_>>().join(" ");
    let mut lines: Vec<String> = dns.nameservers.iter().filter_map(word).collect();
    for line in &mut lines {
        line.insert_str(0, "nameserver ");
    }
    if lines.is_empty() {
        let of_host = host.lines().filter(|line| line.starts_with("nameserver"));
        lines.extend(of_host.map(str::to_owned));
    }
    for (keyword, value) in [
        ("domain", word(&dns.domain).unwrap_or_default()),
        ("search", words(&dns.search)),
        ("options", words(&dns.options)),
    ] {
        if !value.is_empty() {
            lines.push(format!("{keyword} {value}"));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

/// Gives this process, which has one thread, a view of its own: `/sys` of the network namespace
/// that it is in, and `resolv_conf` in the place of the host's, if there is any.
///
/// # Errors
/// When the kernel refuses a mount.
pub fn change(resolv_conf: Option<&str>) -> Result<()> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one mount namespace: net::netns deals with those of the network"
    )]
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    // What the host mounts later is seen here too, and nothing from here on the host.
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", downstream).context("keep mounts from the host")?;
    if let Some(text) = resolv_conf {
        replace_resolv_conf(text).with_context(|| format!("replace {RESOLV_CONF}"))?;
    }
    replace_sys().with_context(|| format!("mount {SYS}"))
}

/// The file is in a file system that is mounted for a moment: none of the host's is written to.
fn replace_resolv_conf(text: &str) -> Result<()> {
    if !Path::new(RESOLV_CONF).exists() {
        output::note(&format!(
            "warning: this host has no {RESOLV_CONF}: the DNS of the network is not applied"
        ));
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("cnitool", SYS, "tmpfs", flags, c"mode=755")?;
    let file = Path::new(SYS).join("resolv.conf");
    fs::write(&file, text)?;
    mount_bind(&file, RESOLV_CONF)?;
    unmount(SYS, UnmountFlags::DETACH)?;
    Ok(())
}

/// A `sysfs` shows the devices of the namespace in which it was mounted. What is mounted below
/// the old one (control groups, security, tracing) stays where programs look for it.
fn replace_sys() -> Result<()> {
    let flags = statvfs(SYS)?.f_flag;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("list mounts")?;
    let below: Vec<(PathBuf, File)> = mounted_below(&mounts)
        .filter_map(|path| {
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(nix::libc::O_PATH);
            Some((path.to_owned(), options.open(path).ok()?))
        })
        .collect();
    let mut wanted = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // As in a container that is to change nothing.
    if flags.contains(StatVfsMountFlags::RDONLY) {
        wanted |= MountFlags::RDONLY;
    }
    mount("cnitool", SYS, "sysfs", wanted, None)?;
    for (path, file) in below {
        let old = format!("/proc/self/fd/{}", file.as_raw_fd());
        if let Err(error) = mount_bind_recursive(&old, &path) {
            let path = path.display();
            output::note(&format!(
                "warning: {path} is not there for the command: {error}"
            ));
        }
    }
    Ok(())
}

/// The places right below [`SYS`] where something is mounted, each once; what is mounted below
/// those comes with them. `mounts` is as in `proc_pid_mountinfo(5)`.
fn mounted_below(mounts: &str) -> impl Iterator<Item = &Path> {
    let mut found: Vec<&Path> = Vec::new();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let places = places.map(Path::new);
    for place in places.filter(|place| *place != Path::new(SYS) && place.starts_with(SYS)) {
        if !found.iter().any(|other| place.starts_with(other)) {
            found.push(place);
        }
    }
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_networks_dns_as_resolv_conf() {
        let dns = Dns {
            nameservers: vec!["10.0.0.10".into(), "fd00::a".into()],
            domain: "cluster.local".into(),
            search: vec!["svc.cluster.local".into(), "cluster.local\nevil".into()],
            options: vec!["ndots:5".into()],
        };
        let host = "# the host's\nnameserver 192.0.2.53\nsearch corp.example\n";
        assert_eq!(
            write_resolv_conf(&dns, host),
            "nameserver 10.0.0.10\nnameserver fd00::a\ndomain cluster.local\n\
             search svc.cluster.local cluster.local\noptions ndots:5\n"
        );
        let dns = Dns {
            search: vec!["svc".into()],
            ..Dns::default()
        };
        assert_eq!(
            write_resolv_conf(&dns, host),
            "nameserver 192.0.2.53\nsearch svc\n"
        );
        assert_eq!(resolv_conf(&Dns::default()), None);
    }

    #[test]
    fn mounts_below_sys() {
        let mounts = "\
            22 28 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
            23 22 0:6 / /sys/kernel/security rw - securityfs securityfs rw\n\
            30 22 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            32 28 0:28 / /system rw - ext4 /dev/sda rw\n\
            33 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let found: Vec<_> = mounted_below(mounts).collect();
        assert_eq!(
            found,
            [
                Path::new("/sys/kernel/security"),
                Path::new("/sys/fs/cgroup")
            ]
        );
    }
}
