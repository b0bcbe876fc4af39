//! For STATUS: what the next ADD will have to do, as far as the configuration tells. STATUS
//! comes without a container and without the results of plugins before.

use std::net::IpAddr;

use anyhow::{Context, Result};

use super::{ipam, r#static};
use crate::cni::error::{Code, detailed, not_available, not_available_and_limited};
use crate::cni::skel::Call;
use crate::net::addr::{self, Address};
use crate::net::link::Link;
use crate::net::netlink::Netlink;
use crate::net::sysctl::{self, Sysctls};
use crate::netfilter::{BackendName, Need, Purpose};
use crate::plugins::sample::Sample;
use crate::shell::shell;

/// What `plugin`, the IPAM plugin of `call`, will answer; `None` where that depends on the
/// runtime, or the plugin is not known.
pub fn sample_of(call: &Call, plugin: &str) -> Option<Sample> {
    // What is wrong with the configuration is the plugin's to say.
    match plugin {
        "host-local" | "ipam" => ipam::sample(&call.config).ok().flatten(),
        "static" => r#static::sample(call).ok().flatten(),
        _ => None,
    }
}

/// Whether ADD can make its rules for this `purpose`, with the backend `asked` for if one is, for
/// containers whose addresses will be like those of `sample`.
///
/// # Errors
/// Code 50, with what is missing and the way out.
pub fn require_rules(
    purpose: Purpose,
    asked: Option<BackendName>,
    sample: Option<&Sample>,
) -> Result<()> {
    let (ipv4, ipv6) = match sample {
        Some(sample) => (
            sample.ips().any(|ip| ip.is_ipv4()),
            sample.ips().any(|ip| ip.is_ipv6()),
        ),
        None => usual_families()?,
    };
    let need = Need {
        purpose,
        asked,
        ipv4,
        ipv6,
    };
    need.check().map_err(|error| not_available(&error))
}

/// Whether containers whose addresses nothing tells will have IPv4 addresses, and IPv6 ones:
/// IPv4, except on a host that has nothing but IPv6 itself.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn usual_families() -> Result<(bool, bool)> {
    let all = addr::all(&Netlink::open()?)?;
    let has = |is_ipv4: bool| {
        let mut global = all.iter().filter(|(_, address)| address.is_global);
        global.any(|(_, Address { net, .. })| {
            net.addr().is_ipv4() == is_ipv4 && !net.addr().is_loopback()
        })
    };
    let is_ipv6_only = has(false) && !has(true);
    Ok((!is_ipv6_only, is_ipv6_only))
}

/// Whether the host forwards packets of the families of `ips`, or can be made to.
///
/// # Errors
/// Code 51 where it does not and cannot: containers that are attached reach no other network
/// either.
pub fn require_forwarding(host: &Netlink, ips: impl Iterator<Item = IpAddr>) -> Result<()> {
    for (key, value) in sysctl::missing_forwarding(host, ips)? {
        // ADD goes on without it.
        if key.ends_with("/accept_ra") {
            continue;
        }
        sysctl::check_settable(&key, &value.to_string())
            .context("the host does not forward packets, and cannot be made to")
            .map_err(|error| {
                if sysctl::is_absent(&error) {
                    not_available(&error)
                } else {
                    not_available_and_limited(&error)
                }
            })?;
    }
    Ok(())
}

/// Whether this kernel has IPv6, where containers will get IPv6 addresses.
///
/// # Errors
/// Code 50 where it has not.
pub fn require_ipv6(sample: &Sample) -> Result<()> {
    if Sysctls::default().has("ipv6") || sample.ips().all(|ip| ip.is_ipv4()) {
        return Ok(());
    }
    Err(detailed(
        Code::NotAvailable,
        "containers are to have IPv6 addresses, but this kernel has no IPv6",
        "remove the IPv6 ranges from the network, or boot without ipv6.disable=1",
    ))
}

/// Whether the IPv6 addresses among `ips` can be given to `link`; `None` is one that is yet to
/// be made.
///
/// # Errors
/// Code 51 where IPv6 is off on a link that is there, code 50 where it will be off on a new one.
pub fn require_ipv6_on(link: Option<&Link>, mut ips: impl Iterator<Item = IpAddr>) -> Result<()> {
    if ips.all(|ip| ip.is_ipv4()) {
        return Ok(());
    }
    let name = link.map_or("default", |link| &link.name);
    let value = sysctl::read(&format!("ipv6/conf/{name}/disable_ipv6"))?;
    if value.as_deref() != Some("1") {
        return Ok(());
    }
    let (code, what) = match link {
        Some(link) => (Code::NotAvailableAndLimited, format!("on {}", link.name)),
        None => (Code::NotAvailable, "on new links".to_owned()),
    };
    Err(detailed(
        code,
        format!("the gateway cannot have an IPv6 address: IPv6 is off {what}"),
        {
            let switch_on = shell![
                "sysctl",
                "-w",
                format!("net/ipv6/conf/{name}/disable_ipv6=0")
            ];
            format!("run {switch_on}, or remove the IPv6 ranges")
        },
    ))
}
