//! `cnitool doctor`: what is wrong on the way of a packet, why it matters and what mends it.
//!
//! [`Facts`] gathers what the kernel and the files tell, in one place. The checks are pure
//! over it, one module for each part of the way: the container, the host, the packet
//! filter, the leases, and the node as a whole.
//!
//! With `--json` it prints one object: `findings`, each with `severity` (`error`,
//! `warning`), `object`, `what`, `why` and `mend`, and `doubts`, which tell what could not be
//! looked at. As with the other commands, no key goes or changes its meaning.

mod container;
mod facts;
mod host;
mod ipam;
mod links;
mod node;
mod packets;
mod port;
mod probe;
mod program;
mod rules;
mod sysctls;
mod uplink;

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use self::facts::Facts;
use super::see::{is_meant, look, short};
use super::table::{Line, Tone};
use super::{Options, output};
use crate::cni::skel::Services;
use crate::cnitool::inventory::attachment::{self, View};
use crate::runtime::network::plugin_member;
use crate::shell::{ShellCommand, shell};

/// The exit status for "could not look".
const COULD_NOT_LOOK: u8 = 2;

/// What `doctor` takes.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cnitool doctor             every attachment, and the node
  cnitool doctor web         those to network web
  cnitool doctor web1        those of container web1: its id, the start of it, or its namespace
  cnitool doctor --probe     and send packets: what gets lost without a trace is found too
  cnitool doctor --json | jq -r '.findings[].mend'

Each finding says what is wrong, why it matters, and what mends it:
  error: container web1: eth0 is down
    why:  nothing leaves the container or reaches it
    mend: ip -n web1 link set eth0 up

Exit status: 0 nothing found, 1 findings, 2 could not look.")]
pub struct DoctorArgs {
    /// Only the attachments to this network, or of this container
    #[arg(value_name = "NETWORK|CONTAINER")]
    what: Option<String>,
    /// Send real packets too: ARP and ND, pings, and connections to each published TCP port
    #[arg(long)]
    probe: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// Packets are lost, or an ADD would fail.
    Error,
    /// Nothing is lost yet, or maybe on purpose.
    Warning,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    severity: Severity,
    /// What it is wrong with: `container c1`, `bridge br1`, `host`.
    object: String,
    /// What is wrong with it.
    what: String,
    /// Why that matters.
    why: String,
    /// The command that mends it, or what else to do.
    mend: String,
}

impl Finding {
    fn error(
        object: impl Into<String>,
        what: impl Into<String>,
        why: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Error,
            object: object.into(),
            what: what.into(),
            why: why.into(),
            mend: mend.into(),
        }
    }

    fn warning(
        object: impl Into<String>,
        what: impl Into<String>,
        why: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(object, what, why, mend)
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    findings: &'a [Finding],
    doubts: Vec<&'a String>,
}

/// Looks, and tells what it found. What keeps it from looking is reported here, as the exit
/// status tells it from a finding.
pub fn run(options: &Options, services: Services, args: &DoctorArgs) -> ExitCode {
    examine(options, services, args).unwrap_or_else(|error| {
        output::report(&error);
        ExitCode::from(COULD_NOT_LOOK)
    })
}

fn examine(options: &Options, services: Services, args: &DoctorArgs) -> Result<ExitCode> {
    let survey = look(options, services)?;
    let views = attachment::join(&survey);
    let is_wanted = |view: &&View<'_>| {
        let word = args.what.as_ref();
        word.is_none_or(|word| view.network == *word || is_meant(view, word))
    };
    if let Some(word) = &args.what {
        let is_network = survey.directory.networks.iter().any(|n| n.name == *word);
        anyhow::ensure!(
            is_network || views.iter().any(|view| is_wanted(&view)),
            "there is no network and no container \"{word}\": `cnitool list` and `cnitool ps` tell which there are"
        );
    }
    let mut facts = Facts::gather(&survey, views, options.path());
    let mut findings = findings(&facts, args.what.as_deref(), is_wanted);
    if args.probe {
        let wanted: Vec<&View<'_>> = facts.views.iter().filter(is_wanted).collect();
        let mut doubts = Vec::new();
        findings.extend(probe::check(&facts, &wanted, &mut doubts));
        facts.doubts.extend(doubts);
    }
    let findings = in_order(findings);
    for doubt in &facts.doubts {
        output::note(&format!("warning: {doubt}"));
    }
    let doubts: Vec<&String> = survey.all_doubts().chain(&facts.doubts).collect();
    let could_look = doubts.is_empty() && nix::unistd::geteuid().is_root();
    if args.json {
        let findings = &findings;
        output::json(&Document { findings, doubts })?;
    } else {
        output::lines(&lines(&findings, could_look))?;
    }
    Ok(match (findings.is_empty(), could_look) {
        (false, _) => ExitCode::FAILURE,
        (true, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::from(COULD_NOT_LOOK),
    })
}

/// Everything that is wrong, along the way of a packet. `what` is the network or
/// container that is meant.
fn findings<'a>(
    facts: &'a Facts<'a>,
    what: Option<&str>,
    is_wanted: impl Fn(&&View<'a>) -> bool,
) -> Vec<Finding> {
    let mut all = Vec::new();
    for view in facts.views.iter().filter(is_wanted) {
        all.extend(container::check(facts, view));
        all.extend(host::check(facts, view));
        all.extend(links::check(facts, view));
        all.extend(rules::check(facts, view));
        all.extend(flows(facts, view));
        all.extend(ipam::check_view(facts, view));
    }
    all.extend(ipam::check_pools(facts, what));
    all.extend(node::check(facts, what));
    all.extend(packets::variants(facts));
    all
}

/// Connections to its ports that were made before they were its, and never end.
fn flows(facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
    let misled = facts.misled.iter().filter(|(mapping, ip)| {
        let mut ports = view.ports.iter();
        ports.any(|port| port.mapping == *mapping && port.to.is_ipv4() == ip.is_ipv4())
    });
    misled
        .map(|(mapping, ip)| {
            let protocol = mapping.protocol.as_str();
            Finding::error(
                format!("port {mapping}"),
                format!("a flow that the kernel remembers leads to {ip} and not to {}", name(view)),
                "its client, which keeps its own port, is not answered: rules see the first packet only",
                shell![
                    "conntrack",
                    "-D",
                    "-p",
                    protocol,
                    "--orig-port-dst",
                    mapping.host_port,
                    "--reply-src",
                    ip
                ],
            )
        })
        .collect()
}

/// Each once, the worst first.
fn in_order(all: Vec<Finding>) -> Vec<Finding> {
    let mut told: Vec<Finding> = Vec::new();
    for finding in all {
        if !told.contains(&finding) {
            told.push(finding);
        }
    }
    told.sort_by_key(|finding| finding.severity);
    told
}

/// For people.
fn lines(findings: &[Finding], could_look: bool) -> Vec<Line> {
    if findings.is_empty() {
        let text = if could_look {
            Line::toned("nothing is wrong", Tone::Good)
        } else {
            "nothing is wrong as far as could be looked".into()
        };
        return vec![text];
    }
    let mut lines = Vec::new();
    for finding in findings {
        let (word, tone) = match finding.severity {
            Severity::Error => ("error:", Tone::Bad),
            Severity::Warning => ("warning:", Tone::Warning),
        };
        let text = format!(" {}: {}", finding.object, finding.what);
        lines.push(Line::toned(word, tone).then(text));
        lines.push(format!("  why:  {}", finding.why).into());
        lines.push(format!("  mend: {}", finding.mend).into());
    }
    lines
}

/// How findings call an attachment's container.
fn name(view: &View<'_>) -> String {
    format!("container {}", short(&view.attachment.container_id))
}

/// The start of a command that is run in the container's namespace and is `ip`'s.
fn ip(view: &View<'_>) -> ShellCommand {
    ShellCommand::ip_in(view.netns.unwrap_or_default())
}

/// The start of a command that is run in the container's namespace.
fn inside(view: &View<'_>) -> ShellCommand {
    ShellCommand::inside(view.netns.unwrap_or_default())
}

/// The command that makes an attachment's rules again.
fn restore(view: &View<'_>) -> ShellCommand {
    shell!["cnibox", "restore", view.network]
}

/// The command that sets a sysctl, `net` and all else with slashes: names of links may have
/// dots in them.
fn set_sysctl(key: &str, value: &str) -> ShellCommand {
    shell!["sysctl", "-w", format!("{key}={value}")]
}

/// The same in the container. Without `ip netns exec`, which mounts another `/sys`.
fn set_sysctl_inside(view: &View<'_>, key: &str, value: &str) -> ShellCommand {
    let enter = shell![
        "nsenter",
        format!("--net={}", view.netns.unwrap_or_default())
    ];
    enter.run(&set_sysctl(key, value))
}

/// Whether the attachment's configuration keeps its container from its neighbours.
fn is_kept_apart(view: &View<'_>) -> bool {
    let is_set = |name, key| {
        let plugin = view.plugin(name);
        plugin.is_some_and(|p| plugin_member(&p.document, key).is_some_and(|v| v != false))
    };
    is_set("bridge", "portIsolation") || is_set("firewall", "ingressPolicy")
}

/// The advice for what only the plugins can put right.
fn attach_again(view: &View<'_>) -> String {
    let netns = view.netns.unwrap_or("NETNS");
    let id = &view.attachment.container_id;
    let del = shell!["cnitool", "del", view.network, netns, "--id", id];
    format!("restart the container, or `{del}` and `cnitool add` with the same arguments")
}
