//! `bandwidth`: limits how fast a container receives and sends (docs/compatibility.md#9.3).
//!
//! What it receives is limited where the host's end of its veth pair sends. Receiving
//! cannot be limited: what the host's end receives is led to an `ifb` link, and limited
//! where that sends. Some subnets may be spared, or be the only ones: those of whom the
//! container talks to (`shapedSubnets`, `unshapedSubnets`).

mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod ifb;

use anyhow::{Context, Result};
use config::{Limit, Settings};
use serde_json::Value;

use crate::cni::collector::Collector;
use crate::cni::error::{Code, agree, detailed, not_available};
use crate::cni::invocation::Command;
use crate::cni::json::Problem;
use crate::cni::preview::{Preview, Subject};
use crate::cni::result::{CniResult, Interface};
use crate::cni::skel::{Call, Plugin};
use crate::cni::version::Version;
use crate::journal::step;
use crate::net::link::{self, Link};
use crate::net::netlink::{self, Netlink};
use crate::net::netns::Netns;
use crate::net::privilege::require_root;
use crate::net::traffic::{self, selection};
use crate::plugins::host_end;
use crate::plugins::veth::Sides;
use crate::undo::Undo;

/// The applet.
#[derive(Debug)]
pub struct Bandwidth;

impl Plugin for Bandwidth {
    fn versions(&self) -> &'static [Version] {
        /// A chained plugin needs the results of 0.3.0.
        static VERSIONS: [Version; 5] = [
            Version::V0_3_0,
            Version::V0_3_1,
            Version::V0_4_0,
            Version::V1_0_0,
            Version::V1_1_0,
        ];
        &VERSIONS
    }

    fn add<'a>(&self, call: &'a Call, undo: &mut Undo<'a>) -> Result<CniResult> {
        let settings = Settings::resolve(call)?;
        let mut result = required_result(call)?;
        if !settings.any() {
            return Ok(result);
        }
        let sides = step("open the namespaces", || Sides::open(call))?;
        let host = &sides.host;
        let host_end = find_host_end(&sides, call, &result)?;
        if let Some(limit) = settings.ingress {
            undo.push("remove the limit", {
                let (host, host_end) = (host.clone(), host_end.clone());
                move || traffic::remove_limit(&host, &host_end)
            });
            step("limit what the container receives", || {
                traffic::limit(host, &host_end, limit.bucket, limit.selection.as_ref())
            })?;
        }
        if let Some(limit) = settings.egress {
            let ifb = step("create the ifb link", || {
                ifb::create(host, call, host_end.mtu, undo)
            })?;
            step("limit what the container sends", || {
                traffic::limit(host, &ifb, limit.bucket, limit.selection.as_ref())
            })?;
            let led = step("lead to the ifb", || {
                traffic::redirect(host, &host_end, &ifb)
            });
            // Where no answer came, nobody knows.
            if led.as_ref().err().is_none_or(netlink::is_unanswered) {
                let host = host.clone();
                undo.push("lead nothing to the ifb", move || {
                    traffic::remove_redirect(&host, &host_end)
                });
            }
            led?;
            result.interfaces.push(Interface {
                name: ifb.name,
                mac: ifb.mac,
                ..Interface::default()
            });
        }
        Ok(result)
    }

    fn del(&self, call: &Call) -> Result<()> {
        // The limit of the host's end goes with it.
        step("delete the ifb link", || {
            ifb::delete(&Netlink::open()?, call)
        })
    }

    fn check(&self, call: &Call) -> Result<()> {
        let settings = Settings::resolve(call)?;
        let result = required_result(call)?;
        if !settings.any() {
            return Ok(());
        }
        let sides = Sides::open(call)?;
        let host_end = find_host_end(&sides, call, &result)?;
        let mut differences = Vec::new();
        if let Some(wanted) = settings.ingress {
            differences.extend(compare(&sides.host, &host_end, &wanted)?);
        }
        if let Some(wanted) = settings.egress {
            match ifb::find(&sides.host, call)? {
                Some(ifb) => differences.extend(compare(&sides.host, &ifb, &wanted)?),
                None => differences.push(format!(
                    "interface {}: expected an ifb link that limits what it sends, found none",
                    call.invocation.attachment.ifname
                )),
            }
        }
        agree(differences)
    }

    fn status(&self, call: &Call) -> Result<()> {
        let settings = Settings::resolve(call)?;
        if !settings.any() {
            return Ok(());
        }
        require_root()?;
        try_out(&settings).map_err(|error| not_available(&error))
    }

    fn gc(&self, call: &Call, collector: &mut Collector) -> Result<()> {
        let valid = call.config.valid_attachments()?;
        host_end::collect("ifb", &call.config.network, &valid, collector);
        Ok(())
    }

    fn preview(&self, call: &Call, preview: &mut Preview) -> Result<Option<CniResult>> {
        let settings = Settings::resolve(call)?;
        let ifname = &call.invocation.attachment.ifname;
        for (direction, limit) in [("receives", &settings.ingress), ("sends", &settings.egress)] {
            if let Some(limit) = limit {
                let text = format!("what {ifname} {direction}: {limit}");
                preview.tell(Subject::Limit, text);
            }
        }
        if settings.egress.is_some() {
            let text = format!(
                "{} (ifb), through which goes what it sends",
                ifb::name(call)
            );
            preview.tell(Subject::Link, text);
        }
        required_result(call).map(Some)
    }

    fn validate(&self, root: &str, document: &Value) -> Vec<Problem> {
        config::validate(root, document)
    }
}

/// Limits `lo` of a namespace that goes at once: takes of the kernel what ADD takes, and has it
/// load the modules that it has.
fn try_out(settings: &Settings) -> Result<()> {
    const IFB: &str = "ifb";
    let scratch = Netlink::open_in(&Netns::throwaway()?)?;
    let find = |name| link::by_name(&scratch, name)?.context("it has no links");
    let lo = find("lo")?;
    if let Some(limit) = &settings.ingress {
        traffic::limit(&scratch, &lo, limit.bucket, limit.selection.as_ref())?;
    }
    if let Some(limit) = &settings.egress {
        link::create_ifb(&scratch, IFB, lo.mtu)?;
        let ifb = find(IFB)?;
        traffic::limit(&scratch, &ifb, limit.bucket, limit.selection.as_ref())?;
        traffic::redirect(&scratch, &lo, &ifb)?;
    }
    Ok(())
}

/// What is wrong, and the way out, where bandwidth comes first.
const PREVIOUS_MISSING: &str =
    "prevResult is missing: bandwidth comes after the plugin that makes the interface, in one list";

/// This plugin limits what others made: there must be others before it.
fn required_result(call: &Call) -> Result<CniResult> {
    call.config.prev_result()?.ok_or_else(|| {
        // The reference's two sentences differ.
        let sentence = match call.invocation.command {
            Command::Check => "must be called as a chained plugin",
            _ => "must be called as chained plugin",
        };
        detailed(Code::Config, sentence, PREVIOUS_MISSING)
    })
}

/// The host's end of the pair whose other end is the container's interface: one that `result`
/// names as the host's.
fn find_host_end(sides: &Sides, call: &Call, result: &CniResult) -> Result<Link> {
    let ifname = &call.invocation.attachment.ifname;
    if result.interfaces.is_empty() {
        let advice = "the result of the plugin before this one must name the container's interface and its other end on the host";
        return Err(detailed(Code::Internal, "no interfaces provided", advice));
    }
    let no_peer = |reason: &str, details: String| {
        let sentence = format!("container interface {ifname} has no veth peer: {reason}");
        detailed(Code::Internal, sentence, details)
    };
    let end = link::by_name(&sides.container, ifname)?.ok_or_else(|| {
        no_peer(
            &format!("could not look up \"{ifname}\": Link not found"),
            format!("there is no link {ifname} in {}", sides.netns.path()),
        )
    })?;
    let peer = end.peer.filter(|_| end.kind == "veth").ok_or_else(|| {
        no_peer(
            &format!("interface \"{ifname}\" was not a veth interface"),
            format!("{ifname} is no veth: only those can be limited"),
        )
    })?;
    // An index means something in its own namespace only: it is the pair if it points back.
    let host_end = link::by_index(&sides.host, peer)?
        .filter(|host_end| host_end.kind == "veth" && host_end.peer == Some(end.index))
        .ok_or_else(|| {
            let sentence = format!("veth peer with index {peer} is not in host ns");
            let why = format!("the other end of {ifname} is not on this host");
            detailed(Code::Internal, sentence, why)
        })?;
    let mut on_host = result.interfaces.iter().filter(|i| i.sandbox.is_empty());
    if on_host.any(|interface| interface.name == host_end.name) {
        return Ok(host_end);
    }
    let why = format!(
        "prevResult names no interface {} on the host, which is the other end of {ifname}",
        host_end.name
    );
    let sentence = "no veth peer of container interface found in host ns";
    Err(detailed(Code::Internal, sentence, why))
}

/// How the limit of `link` differs, in words.
fn compare(host: &Netlink, link: &Link, wanted: &Limit) -> Result<Option<String>> {
    let selection = wanted.selection.as_ref();
    let found = match traffic::limit_of(host, link, selection)? {
        None => "no limit".to_owned(),
        Some(found) if found != wanted.bucket => found.to_string(),
        Some(_) => match selection {
            Some(selection) if !selection::is_divided(host, link, selection)? => {
                "it of other subnets".to_owned()
            }
            _ => return Ok(None),
        },
    };
    let name = &link.name;
    Ok(Some(format!(
        "interface {name}: expected {wanted}, found {found}"
    )))
}
