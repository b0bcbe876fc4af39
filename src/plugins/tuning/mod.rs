//! `tuning`: sets sysctls of the container's network, and hardware address, MTU, queue
//! length, promiscuous and all-multicast mode of an interface that plugins before it made.
//!
//! Behaviour: the reference's tuning v1.9.1 (docs/compatibility.md#8). DEL gives the interface back
//! what it had. Sysctls stay: they go with the namespace.

mod allowlist;
mod apply;
mod backup;
mod config;
mod duplicates;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod go_regex;
mod plan;
mod sysctl;

use allowlist::Allowlist;
use anyhow::{Context, Result};
use apply::Container;
use backup::Backup;
use config::{Settings, Wanted};
use serde_json::Value;
use sysctl::Sysctl;

use crate::cni::collector::Collector;
use crate::cni::error::{Code, agree, coded, detailed, not_available};
use crate::cni::json::{self, Problem};
use crate::cni::preview::{Preview, Subject};
use crate::cni::result::CniResult;
use crate::cni::skel::{Call, Plugin};
use crate::journal::step;
use crate::net::link::Link;
use crate::net::netns::Netns;
use crate::net::privilege::require_root;
use crate::net::sysctl as kernel;
use crate::undo::Undo;
use crate::{fsutil, log};

/// The applet.
#[derive(Debug)]
pub struct Tuning;

impl Plugin for Tuning {
    fn add<'a>(&self, call: &'a Call, undo: &mut Undo<'a>) -> Result<CniResult> {
        let settings = Settings::resolve(call)?;
        check_allowed(&settings)?;
        let previous = require_previous(call)?;
        let ifname = &call.invocation.attachment.ifname;
        let container = step("enter the namespace", || enter(call))?;
        let before = container.read(&settings.sysctls)?;
        container.refuse_missing(&settings.sysctls, &before)?;
        let link = step("write down what the link is like", || {
            keep_backup(call, &settings, &container, undo)
        })?;
        // Sysctls first, as the reference does: a small MTU takes IPv6 and its sysctls
        // away.
        step("set sysctls", || {
            container.write(&settings.sysctls, before, undo)
        })?;
        if let Some(link) = link {
            step("change the link", || {
                change_link(&container, &link, &settings.link, undo)
            })?;
        }
        Ok(plan::result(previous, &settings.link, ifname))
    }

    fn del(&self, call: &Call) -> Result<()> {
        let attachment = &call.invocation.attachment;
        let file = backup::File::of(call, &config::data_dir(&call.config)?);
        if let Some(backup) = file.load()
            && let Err(error) = step("restore the link", || restore(call, &backup))
        {
            log::warn(&format!("restore {}: {error:#}", attachment.ifname));
        }
        // Also when there is nothing left to restore: a later container of the same id
        // must not be given what this one had.
        file.remove()
    }

    fn check(&self, call: &Call) -> Result<()> {
        let settings = Settings::resolve(call)?;
        require_previous(call)?;
        let ifname = &call.invocation.attachment.ifname;
        let container = enter(call)?;
        let found = container.read(&settings.sysctls)?;
        let link = container.link(ifname)?;
        agree(plan::differences(&settings, ifname, &found, link.as_ref()))
    }

    fn status(&self, call: &Call) -> Result<()> {
        let settings = Settings::resolve(call)?;
        check_allowed(&settings).map_err(|error| not_available(&error))?;
        if !settings.sysctls.is_empty() {
            require_root()?;
            check_writable(&settings.sysctls).map_err(|error| not_available(&error))?;
        }
        if settings.link == Wanted::default() {
            return Ok(());
        }
        require_root()?;
        fsutil::check_writable(&settings.data_dir).with_context(|| {
            let dir = settings.data_dir.display();
            let sentence = format!("what a link was like cannot be kept in {dir}");
            coded(Code::NotAvailable, sentence)
        })
    }

    fn gc(&self, call: &Call, collector: &mut Collector) -> Result<()> {
        let valid = call.config.valid_attachments()?;
        let dir = config::data_dir(&call.config)?;
        backup::collect(&dir, &call.config.network, &valid, collector);
        Ok(())
    }

    fn preview(&self, call: &Call, preview: &mut Preview) -> Result<Option<CniResult>> {
        let settings = Settings::resolve(call)?;
        check_allowed(&settings)?;
        let previous = require_previous(call)?;
        let ifname = &call.invocation.attachment.ifname;
        for Sysctl { key, value, .. } in &settings.sysctls {
            let text = format!("{key} = {value}, in the container");
            preview.tell(Subject::Sysctl, text);
        }
        for property in settings.link.properties() {
            preview.tell(
                Subject::Link,
                format!("{ifname} in the container: {property}"),
            );
        }
        if settings.link != Wanted::default() {
            let file = backup::File::of(call, &settings.data_dir);
            let text = format!("{}, what {ifname} was like", file.path().display());
            preview.tell(Subject::File, text);
        }
        Ok(Some(plan::result(previous, &settings.link, ifname)))
    }

    fn validate(&self, root: &str, document: &Value) -> Vec<Problem> {
        let mut problems = config::validate(root, document);
        // Where the configuration is looked at on the node that it is for.
        if json::member(document, &["sysctl"]).is_some() {
            let path = json::below(root, "sysctl");
            let warnings = Allowlist::read().map_or_else(
                |error| vec![format!("{error:#}")],
                |allowlist| allowlist.warnings(),
            );
            let warnings = warnings.into_iter();
            problems.extend(warnings.map(|text| Problem::warning(path.clone(), text)));
        }
        problems
    }
}

/// The node's administrator must have allowed every sysctl.
fn check_allowed(settings: &Settings) -> Result<()> {
    if settings.sysctls.is_empty() {
        return Ok(());
    }
    let allowlist = Allowlist::read()?;
    settings
        .sysctls
        .iter()
        .try_for_each(|sysctl| allowlist.check(&sysctl.key))
}

/// Whether a new container's `sysctls` could be written, tried out in a namespace that goes at
/// once. One that is not there may come with a kernel module that another plugin's ADD loads.
fn check_writable(sysctls: &[Sysctl]) -> Result<()> {
    let Ok(scratch) = Netns::throwaway() else {
        return Ok(());
    };
    scratch.inside(|| {
        for sysctl in sysctls {
            let path = sysctl.path_of_new_link();
            let checked = kernel::check_settable(&path, &sysctl.value);
            if let Err(error) = checked
                && !kernel::is_absent(&error)
            {
                return Err(error.context(format!("sysctl {} cannot be set", sysctl.key)));
            }
        }
        Ok(())
    })
}

/// This plugin changes what others made: there must be others before it.
fn require_previous(call: &Call) -> Result<CniResult> {
    call.config
        .prev_result()?
        .context(coded(Code::Config, "Required prevResult missing"))
}

fn enter(call: &Call) -> Result<Container> {
    let path = call.invocation.netns.as_deref().unwrap_or_default();
    Container::enter(Netns::open(path)?)
}

/// Writes down what the link is like, for DEL; answers the link if anything of it is to
/// be changed, and can be.
fn keep_backup<'a>(
    call: &'a Call,
    settings: &Settings,
    container: &Container,
    undo: &mut Undo<'a>,
) -> Result<Option<Link>> {
    if settings.link == Wanted::default() {
        return Ok(None);
    }
    let attachment = &call.invocation.attachment;
    let link = container.link(&attachment.ifname)?.ok_or_else(|| {
        let ifname = &attachment.ifname;
        detailed(
            Code::Internal,
            format!("failed to get \"{ifname}\": Link not found"),
            format!(
                "there is no link {ifname} in {}",
                call.invocation.netns.as_deref().unwrap_or_default()
            ),
        )
    })?;
    plan::refuse_mtu(&settings.link, &link)?;
    let file = backup::File::of(call, &settings.data_dir);
    let now = Backup::of(&link, container.identity(&link)?, &settings.link);
    let earlier = file.load().filter(|earlier| earlier.link == now.link);
    let keep = now.after(earlier.as_ref());
    file.store(&keep)?;
    undo.push("forget what the link was like", move || {
        file.reset(earlier.as_ref())
    });
    Ok(Some(link))
}

fn change_link(
    container: &Container,
    link: &Link,
    wanted: &Wanted,
    undo: &mut Undo<'_>,
) -> Result<()> {
    let had = Backup::of(link, container.identity(link)?, wanted);
    undo.push(format!("restore link {}", link.name), {
        let (container, link) = (container.clone(), link.clone());
        move || {
            container.restore(&link, &had);
            Ok(())
        }
    });
    wanted
        .properties()
        .into_iter()
        .try_for_each(|property| container.change(link, property))
}

/// Gives the link, if it is still there, what it had before ADD.
fn restore(call: &Call, backup: &Backup) -> Result<()> {
    let Some(netns) = Netns::open_if_any(call.invocation.netns.as_deref())? else {
        return Ok(());
    };
    let container = Container::enter(netns)?;
    if let Some(link) = container.link(&call.invocation.attachment.ifname)?
        && !backup.is_of_another(container.identity(&link)?)
    {
        container.restore(&link, backup);
    }
    Ok(())
}
