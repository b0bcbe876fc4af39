//! Which file a sysctl of the configuration is, and what may stand in it.
//!
//! Only files below `/proc/sys/net` are reached: those belong to the network namespace
//! that the plugin is in, everything else is the host's (docs/requirements.md#r-70).

use std::collections::BTreeMap;

use anyhow::{Error, Result};

use crate::cni::error::{Code, detailed};

/// What stands for the interface's name in a key.
pub const PLACEHOLDER: &str = "IFNAME";

/// One sysctl that the container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// As written in the configuration.
    pub key: String,
    /// Below `/proc/sys/net`.
    pub path: String,
    pub value: String,
}

impl Sysctl {
    fn new(key: &str, value: &str, ifname: &str) -> Result<Self> {
        let path = path(key, ifname).map_err(|why| refused(key, why))?;
        if value.contains(['\n', '\0']) {
            return Err(detailed(
                Code::Config,
                format!("sysctl {} cannot be set", key.escape_debug()),
                "its value has more than one line",
            ));
        }
        Ok(Self {
            key: key.to_owned(),
            path,
            value: value.to_owned(),
        })
    }

    /// The path with the settings of links to come in place of those of a link: there a new
    /// one's values are from.
    pub fn path_of_new_link(&self) -> String {
        match self.path.split('/').collect::<Vec<_>>().as_slice() {
            [family, kind @ ("conf" | "neigh"), link, last] if !["all", "lo"].contains(link) => {
                format!("{family}/{kind}/default/{last}")
            }
            _ => self.path.clone(),
        }
    }
}

fn refused(key: &str, why: &str) -> Error {
    detailed(
        Code::Config,
        format!("invalid net sysctl key: {:?}", key.replace('.', "/")),
        format!(
            "sysctl {} cannot be set: {why}; a sysctl of the container's network looks like net.ipv4.conf.{PLACEHOLDER}.arp_filter",
            key.escape_debug()
        ),
    )
}

/// The sysctls of `configured`, and those of `overrides` in place of the ones that mean
/// the same file, in the order of their paths.
///
/// # Errors
/// Code 7 naming the key that is none, or the two that contradict each other.
pub fn resolve(
    configured: &BTreeMap<String, String>,
    overrides: &BTreeMap<String, String>,
    ifname: &str,
) -> Result<Vec<Sysctl>> {
    let mut resolved = one_source(configured, ifname)?;
    resolved.extend(one_source(overrides, ifname)?);
    Ok(resolved.into_values().collect())
}

fn one_source(
    written: &BTreeMap<String, String>,
    ifname: &str,
) -> Result<BTreeMap<String, Sysctl>> {
    let mut resolved: BTreeMap<String, Sysctl> = BTreeMap::new();
    for (key, value) in written {
        let sysctl = Sysctl::new(key, value, ifname)?;
        let other = resolved.get(&sysctl.path);
        if let Some(other) = other.filter(|other| other.value != sysctl.value) {
            return Err(detailed(
                Code::Config,
                format!("sysctl {key} is set twice"),
                format!(
                    "it is \"{value}\" there and \"{}\" as {}",
                    other.value, other.key
                ),
            ));
        }
        resolved.insert(sysctl.path.clone(), sysctl);
    }
    Ok(resolved)
}

/// The path of `key` below `/proc/sys/net`, or why there is none.
///
/// Dots and slashes both separate, as for the reference, in any mixture. A name of more
/// than one part can only be an interface's: everything between `conf` or `neigh` and the
/// last part is one, so that `eth0.100` can be written in every notation.
fn path(key: &str, ifname: &str) -> Result<String, &'static str> {
    let relative = key.strip_prefix('/').unwrap_or(key);
    let parts: Vec<&str> = relative.split(['.', '/']).collect();
    // With dots for separators no part can be "." or "..".
    if parts.contains(&"") {
        return Err("it has an empty component, \".\" or \"..\"");
    }
    let path = match parts.as_slice() {
        ["net", family, kind @ ("conf" | "neigh"), name @ .., last] if !name.is_empty() => {
            format!("{family}/{kind}/{}/{last}", name.join("."))
        }
        ["net", rest @ ..] if !rest.is_empty() => rest.join("/"),
        _ => return Err("it is not below net"),
    };
    if path.contains('\0') {
        return Err("it has a NUL character");
    }
    // Last, and a single component: what an interface is called separates nothing.
    if ifname.contains('/') || matches!(ifname, "." | "..") {
        return Err("the interface's name is no component of a path");
    }
    Ok(path.replacen(PLACEHOLDER, ifname, 1))
}

/// White space as the kernel prints it is no difference: `1 2` is what it shows as
/// `1<TAB>2`.
pub fn same_value(a: &str, b: &str) -> bool {
    a.split_whitespace().eq(b.split_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_their_files() {
        for (key, ifname, expected) in [
            ("net.ipv4.ip_forward", "eth0", "ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "eth0", "ipv4/ip_forward"),
            (
                "net.ipv4.conf.IFNAME.arp_filter",
                "eth0",
                "ipv4/conf/eth0/arp_filter",
            ),
            (
                "net.ipv4.conf.IFNAME.arp_filter",
                "eth0.100",
                "ipv4/conf/eth0.100/arp_filter",
            ),
            (
                "net/ipv4/conf/IFNAME/arp_filter",
                "eth0.100",
                "ipv4/conf/eth0.100/arp_filter",
            ),
            (
                "net/ipv4/conf/eth0.100/arp_filter",
                "x",
                "ipv4/conf/eth0.100/arp_filter",
            ),
            (
                "net.ipv4.conf.eth0/100.arp_filter",
                "x",
                "ipv4/conf/eth0.100/arp_filter",
            ),
            (
                "net/ipv4/conf/IFNAME.7/arp_filter",
                "eth0",
                "ipv4/conf/eth0.7/arp_filter",
            ),
            // Both separators at once, the reference's reading of it.
            (
                "net.ipv4.conf/IFNAME/arp_filter",
                "eth0",
                "ipv4/conf/eth0/arp_filter",
            ),
            (
                "net/ipv4.conf.IFNAME/arp_filter",
                "eth0.100",
                "ipv4/conf/eth0.100/arp_filter",
            ),
            (
                "net.ipv6.neigh.eth0.100.retrans_time_ms",
                "x",
                "ipv6/neigh/eth0.100/retrans_time_ms",
            ),
            ("net/core.somaxconn", "eth0", "core/somaxconn"),
            ("/net/core/somaxconn", "eth0", "core/somaxconn"),
            ("net.ipv4.conf", "eth0", "ipv4/conf"),
            ("net.ipv4.conf.all", "eth0", "ipv4/conf/all"),
            // Replaced once: a link may be called so.
            (
                "net.ipv4.conf.IFNAME.IFNAME",
                "eth0",
                "ipv4/conf/eth0/IFNAME",
            ),
            ("net.ipv4.conf.IFNAME.mtu", "IFNAME", "ipv4/conf/IFNAME/mtu"),
        ] {
            assert_eq!(path(key, ifname).as_deref(), Ok(expected), "{key} {ifname}");
        }
    }

    #[test]
    fn ways_out_are_closed() {
        for key in [
            "",
            "net",
            "net.",
            "net/",
            "kernel.domainname",
            "kernel/domainname",
            "//net/ipv4/ip_forward",
            "/proc/sys/kernel/domainname",
            "net/../kernel/domainname",
            "net/ipv4/../../kernel/domainname",
            "net/ipv4/conf/IFNAME/../../../../kernel/domainname",
            "net/./ipv4/ip_forward",
            "net//ipv4/ip_forward",
            "net/ipv4/ip_forward/",
            "net..kernel.domainname",
            // Slashes become dots here, and must not become a way up.
            "net.//.kernel.domainname",
            "net./.ipv4",
            "net/ipv4/\0",
            "network.ipv4.ip_forward",
            "..net.ipv4.ip_forward",
        ] {
            assert!(path(key, "eth0").is_err(), "{key}");
            let error = Sysctl::new(key, "1", "eth0").unwrap_err();
            assert!(format!("{error:#}").contains(&*key.escape_debug().to_string()));
        }
        for value in ["1\n2", "1\n", "\0"] {
            assert!(Sysctl::new("net.ipv4.ip_forward", value, "eth0").is_err());
        }
    }

    #[test]
    fn one_value_for_each_file() {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        let configured = map(&[("net.ipv4.ip_forward", "0"), ("net.core.somaxconn", "5")]);
        let overrides = map(&[("net/ipv4/ip_forward", "1")]);
        let resolved = resolve(&configured, &overrides, "eth0").unwrap();
        let short: Vec<(&str, &str)> = resolved
            .iter()
            .map(|sysctl| (sysctl.key.as_str(), sysctl.value.as_str()))
            .collect();
        assert_eq!(
            short,
            [("net.core.somaxconn", "5"), ("net/ipv4/ip_forward", "1")]
        );
        let twice = map(&[("net.ipv4.ip_forward", "0"), ("net/ipv4/ip_forward", "1")]);
        let error = resolve(&twice, &map(&[]), "eth0").unwrap_err();
        assert_eq!(error.to_string(), "sysctl net/ipv4/ip_forward is set twice");
    }

    #[test]
    fn white_space_is_no_difference() {
        assert!(same_value("1 2", "1\t2\n"));
        assert!(!same_value("1 2", "12") && !same_value("1", "1 1"));
    }
}
