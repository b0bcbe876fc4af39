//! The `ifb` link through which goes what a container sends: how it is called and
//! recognised.
//!
//! The reference's name leaves out the interface, so that two attachments of a container
//! to one network would share it. The second one gets a name of its own here.

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::cni::invocation::Attachment;
use crate::cni::skel::Call;
use crate::hash;
use crate::net::link::{self, Link};
use crate::net::netlink::{Netlink, errno};
use crate::plugins::host_end::Identity;
use crate::undo::Undo;

/// The names that the ifb of an attachment can have, the reference's first.
fn names(call: &Call) -> [String; 2] {
    let Attachment {
        container_id,
        ifname,
    } = &call.invocation.attachment;
    let network = &call.config.network;
    [
        hash::sha512_hex(&format!("{network}{container_id}"), 12),
        hash::sha512_hex(&format!("{network}\0{container_id}\0{ifname}"), 12),
    ]
    .map(|digits| format!("bwp{digits}"))
}

/// The name that the ifb of an attachment has, unless a stranger has it.
pub fn name(call: &Call) -> String {
    let [name, _] = names(call);
    name
}

/// Whether `link` is the attachment's ifb. One without alias is the reference's, or what an
/// ADD left that was killed in between.
fn is_own(link: &Link, alias: &str) -> bool {
    link.kind == "ifb" && (link.alias == alias || link.alias.is_empty())
}

/// The attachment's ifb, if it has one.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn find(host: &Netlink, call: &Call) -> Result<Option<Link>> {
    let alias = Identity::of(call).alias;
    for name in names(call) {
        let found = link::by_name(host, &name)?.filter(|link| is_own(link, &alias));
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Creates the attachment's ifb, up; what is left of an earlier one goes first.
///
/// # Errors
/// When the kernel has no ifb, or strangers have its names.
pub fn create(host: &Netlink, call: &Call, mtu: u32, undo: &mut Undo<'_>) -> Result<Link> {
    let alias = Identity::of(call).alias;
    for name in names(call) {
        match link::by_name(host, &name)? {
            Some(old) if old.kind == "ifb" && old.alias == alias => {
                link::delete(host, old.index)?;
            }
            Some(_) => continue,
            None => {}
        }
        let created = link::create_ifb(host, &name, mtu);
        if created
            .as_ref()
            .is_err_and(|error| errno(error) == Some(Errno::EEXIST))
        {
            continue;
        }
        // Where the answer was lost, nobody knows whether it was made.
        undo.push(format!("delete link {name}"), {
            let (host, name, alias) = (host.clone(), name.clone(), alias.clone());
            move || match link::by_name(&host, &name)? {
                Some(ifb) if is_own(&ifb, &alias) => link::delete(&host, ifb.index),
                _ => Ok(()),
            }
        });
        created?;
        let ifb = link::by_name(host, &name)?
            .with_context(|| format!("link {name} was deleted while it was being set up"))?;
        let change = link::change_of(ifb.index).alias(alias).up();
        link::change(host, change, &format!("set {name} up"))?;
        return Ok(ifb);
    }
    anyhow::bail!(
        "create an ifb: links called {} are there already",
        names(call).join(" and ")
    )
}

/// Deletes the attachment's ifb; one that is gone is no error.
///
/// # Errors
/// When it stays.
pub fn delete(host: &Netlink, call: &Call) -> Result<()> {
    match find(host, call)? {
        Some(ifb) => link::delete(host, ifb.index),
        None => Ok(()),
    }
}
