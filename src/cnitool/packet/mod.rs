//! `cnitool trace`: follows one packet through the rules of this host, with the kernel's own
//! account of its way.

pub mod destination;
mod path;
pub mod send;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Args;
use serde::Serialize;

use self::destination::Destination;
use self::path::{End, Path, Stage, Step};
use self::send::Answer;
use super::table::{Line, Tone};
use super::{Options, output, see};
use crate::cni::skel::Services;
use crate::cnitool::inventory::Survey;
use crate::cnitool::inventory::attachment::{self, View};
use crate::net::netns::Netns;
use crate::netfilter::trace::{Tracer, Wanted};
use crate::shell::shell;

/// Examples, the meaning of the exit status, and the shape of the JSON.
pub const HELP: &str = "\
Examples:
  cnitool trace web1 192.0.2.9                      one echo request from container web1
  cnitool trace web1 192.0.2.9:443/tcp              the first packet of a connection
  cnitool trace web1 192.0.2.1:8080/tcp --wait      the next client of a published port
  cnitool trace web1 [fd00::9]:53/udp --json | jq -r .end

With --wait nothing is sent: the next packet like this is followed, from the container or, if the
destination is an address of this host or the container's own, from anybody. Exit status: 0 the packet was
delivered or left this host, 1 it was dropped, lost or never left the container, 2 it could not be looked at.

JSON: containerID, destination; stages, one for each hook: hook, bridge, input, output, packet, translated
(the packet after NAT), passed, steps (family, table, chain, handle, isPolicy, rule, comment, owner,
verdict, command); end (delivered, left, dropped, lost, unseen), link or container (where it went),
droppedBy (a step), summary, answer, doubts.

Rules of iptables-legacy, of netdev tables and those inside the container do not show.";

/// How long to wait for an answer: the next hop may have missed the first two questions for its
/// link-layer address, which the kernel asks a second apart (`retrans_time_ms`).
const PATIENCE: Duration = Duration::from_millis(2500);

/// After a packet has been answered, or waited for, how long the rest of its way may take.
const SETTLE: Duration = Duration::from_millis(200);

/// What `trace` takes.
#[derive(Args)]
pub struct TraceArgs {
    /// The container's id, the start of it, or the name of its namespace
    container: String,
    /// ADDRESS for an echo request, or ADDRESS:PORT/PROTO, where PROTO is tcp or udp
    destination: Destination,
    /// Wait for a packet instead of sending one
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "60",
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    wait: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What `trace --json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    #[serde(rename = "containerID")]
    container_id: &'a str,
    destination: String,
    stages: &'a [Stage],
    end: &'static str,
    link: Option<&'a str>,
    container: Option<&'a str>,
    dropped_by: Option<&'a Step>,
    summary: &'a str,
    answer: Option<&'a str>,
    doubts: &'a [String],
}

/// What came of a packet.
struct Outcome<'a> {
    end: End,
    /// The container it went to.
    container: Option<&'a str>,
    /// In a sentence.
    summary: String,
}

/// The exit status is 0 where the packet went on its way, 1 where it did not, 2 where that
/// could not be looked at.
pub fn run(options: &Options, services: Services, args: &TraceArgs) -> ExitCode {
    trace(options, services, args).unwrap_or_else(|error| {
        output::report(&error);
        2.into()
    })
}

/// # Errors
/// What is in the way of looking.
fn trace(options: &Options, services: Services, args: &TraceArgs) -> Result<ExitCode> {
    let survey = see::look(options, services)?;
    let all = attachment::join(&survey);
    let views = see::choose(all.clone(), &args.container, None)?;
    let container_id = views
        .first()
        .map_or("", |view| &view.attachment.container_id);
    let to = args.destination;
    let tracer = Tracer::start(&wanted(&survey, &views, args)?)?;
    let mut doubts = tracer.doubts.clone();
    doubts.extend(legacy(to.address.is_ipv4()));
    let (answer, first) = match args.wait {
        None => {
            let netns = views.iter().find_map(|view| view.netns);
            let Some(netns) = netns else {
                bail!("container {container_id} has no namespace any more to send from");
            };
            let sent = Netns::open(netns)?.inside(|| Ok(send::send(to, PATIENCE)))?;
            (Some(sent), Vec::new())
        }
        Some(seconds) => {
            output::note(&format!("waiting {seconds} seconds for a packet to {to}"));
            let until = Instant::now() + Duration::from_secs(seconds);
            let mut heard = Vec::new();
            while heard.is_empty() && Instant::now() < until {
                heard = tracer.events(until.saturating_duration_since(Instant::now()))?;
            }
            ensure!(
                !heard.is_empty(),
                "no such packet came in {seconds} seconds"
            );
            (None, heard)
        }
    };
    let mut events = first;
    loop {
        let more = tracer.events(SETTLE)?;
        if more.is_empty() {
            break;
        }
        events.extend(more);
    }
    let path = Path::of(
        &events,
        // A rule that is gone meanwhile is told by its handle.
        |event, handle| tracer.rule(event, handle).ok().flatten(),
        |index| survey.host.by_index(index).map(|link| link.name.clone()),
    );
    let outcome = outcome(&survey, &all, container_id, &path, answer.as_ref());
    let is_sent = answer.is_some();
    let answer = answer.and_then(|answer| match answer {
        Answer::Some(text) | Answer::Error(text) => Some(text),
        Answer::Refused => Some("refused: nothing listens there".to_owned()),
        Answer::None => None,
    });
    if args.json {
        output::json(&document(
            container_id,
            to,
            &path,
            &outcome,
            answer.as_deref(),
            &doubts,
        ))?;
    } else {
        let mut lines = lines(&path, &outcome);
        // What was never seen has had its sentence.
        if is_sent && outcome.end != End::Unseen {
            lines.push(match &answer {
                Some(answer) => format!("answer: {answer}").into(),
                None => "no answer".into(),
            });
        }
        output::lines(&lines)?;
        for doubt in &doubts {
            output::note(&format!("warning: {doubt}"));
        }
    }
    Ok(match outcome.end {
        End::Here | End::Out(_) => 0,
        End::Dropped(_) | End::Lost(_) | End::Unseen => 1,
    }
    .into())
}

/// Which packet to follow.
///
/// # Errors
/// When the container has no address of the family.
fn wanted(survey: &Survey, views: &[View<'_>], args: &TraceArgs) -> Result<Vec<Wanted>> {
    let Destination { address, port } = args.destination;
    let own = views.iter().flat_map(|view| &view.addresses);
    let own = own.map(ipnet::IpNet::addr);
    let from = |source| Wanted {
        source,
        destination: address,
        port,
    };
    let hosts = survey
        .host
        .addresses
        .iter()
        .map(|(_, found)| found.net.addr());
    let is_ours = own.clone().chain(hosts).any(|found| found == address);
    if args.wait.is_some() && is_ours {
        return Ok(vec![from(None)]);
    }
    let sources = own.filter(|source| source.is_ipv4() == address.is_ipv4());
    let wanted: Vec<Wanted> = sources.map(|source| from(Some(source))).collect();
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    ensure!(
        !wanted.is_empty(),
        "container {} has no {family} address to send from",
        args.container
    );
    Ok(wanted)
}

/// What the other packet filter has: nobody can trace that.
fn legacy(is_ipv4: bool) -> Option<String> {
    let (file, tool) = if is_ipv4 {
        ("ip_tables_names", "iptables-legacy-save")
    } else {
        ("ip6_tables_names", "ip6tables-legacy-save")
    };
    let names = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok()?;
    let names: Vec<&str> = names.split_whitespace().collect();
    let list = names.join(", ");
    let text = format!(
        "rules of iptables-legacy (tables {list}) act on packets too and do not show: `{tool}`"
    );
    (!names.is_empty()).then_some(text)
}

fn outcome<'a>(
    survey: &Survey,
    all: &'a [View<'a>],
    container_id: &str,
    path: &Path,
    answer: Option<&Answer>,
) -> Outcome<'a> {
    let is_bridge = |name: &str| survey.host.link(name).is_some_and(|l| l.kind == "bridge");
    let end = path.end(is_bridge);
    let mut container = None;
    let summary = match &end {
        End::Unseen => match answer {
            Some(Answer::Error(error)) => {
                format!("container {container_id} could not send it: {error}")
            }
            _ => format!(
                "no rule of this host saw it: it was lost in the container or on its link (`{}`)",
                shell!["cnitool", "show", container_id]
            ),
        },
        End::Dropped(step) => format!("dropped by {}", place(step)),
        End::Here => "delivered to this host".to_owned(),
        End::Out(link) => {
            let is_its = |view: &&View<'_>| view.host_end.is_some_and(|end| end.name == *link);
            let view = all.iter().find(is_its);
            container = view.map(|view| &*view.attachment.container_id);
            match container {
                Some(id) => format!("delivered to container {id} by {link}"),
                None => format!("left this host by {link}"),
            }
        }
        End::Lost("postrouting") => {
            let link = path.stages.last().and_then(|stage| stage.output.as_deref());
            let link = link.unwrap_or("?");
            format!(
                "lost on {link}: none of its ports got it, as nobody there answers for its \
                 address (`{}`)",
                shell!["ip", "neighbour", "show", "dev", link]
            )
        }
        End::Lost(hook) => format!(
            "lost after {hook}, by no rule that can be traced: no route, a reverse path filter or \
             iptables-legacy (`nstat -az | grep -i -e NoRoutes -e RPFilter`)"
        ),
    };
    Outcome {
        end,
        container,
        summary,
    }
}

fn place(step: &Step) -> String {
    let Step {
        family,
        table,
        chain,
        ..
    } = step;
    match step.handle {
        Some(handle) => format!("rule {handle} of chain {family} {table} {chain}"),
        None => format!("the policy of chain {family} {table} {chain}"),
    }
}

fn document<'a>(
    container_id: &'a str,
    to: Destination,
    path: &'a Path,
    outcome: &'a Outcome<'a>,
    answer: Option<&'a str>,
    doubts: &'a [String],
) -> Document<'a> {
    let (end, link, dropped_by) = match &outcome.end {
        End::Unseen => ("unseen", None, None),
        End::Dropped(step) => ("dropped", None, Some(&**step)),
        End::Here => ("delivered", None, None),
        End::Out(link) if outcome.container.is_some() => ("delivered", Some(&**link), None),
        End::Out(link) => ("left", Some(&**link), None),
        End::Lost(_) => ("lost", None, None),
    };
    Document {
        container_id,
        destination: to.to_string(),
        stages: &path.stages,
        end,
        link,
        container: outcome.container,
        dropped_by,
        summary: &outcome.summary,
        answer,
        doubts,
    }
}

/// For people: a paragraph for each hook, and what came of it all.
fn lines(path: &Path, outcome: &Outcome<'_>) -> Vec<Line> {
    let mut lines = Vec::new();
    for stage in &path.stages {
        let kind = if stage.bridge { "bridge " } else { "" };
        let mut title = Line::toned(format!("{kind}{}", stage.hook), Tone::Heading);
        for (word, link) in [("in", &stage.input), ("out", &stage.output)] {
            if let Some(link) = link {
                title = title.then(format!(" {word} {link}"));
            }
        }
        lines.push(title.then(format!(": {}", stage.packet)));
        for step in &stage.steps {
            lines.extend(step_lines(step));
        }
        if let Some(after) = &stage.translated {
            let line = format!("  NAT: {} becomes {after}", stage.packet);
            lines.push(Line::toned(line, Tone::Warning));
        }
    }
    let tone = match outcome.end {
        End::Here | End::Out(_) => Tone::Good,
        _ => Tone::Bad,
    };
    lines.push(Line::toned(&outcome.summary, tone));
    if let End::Dropped(step) = &outcome.end {
        if let Some(rule) = &step.rule {
            lines.push(format!("  {rule}").into());
        }
        lines.push(format!("  $ {}", step.command).into());
    }
    lines
}

fn step_lines(step: &Step) -> Vec<Line> {
    let Step {
        family,
        table,
        chain,
        verdict,
        ..
    } = step;
    let tone = match &**verdict {
        "drop" => Tone::Bad,
        _ => Tone::Plain,
    };
    let what = match (&step.handle, step.is_policy) {
        (Some(handle), _) => {
            let words = step.rule.as_deref().unwrap_or_default();
            // The arrow leads to it.
            let words = words.strip_suffix(&**verdict).unwrap_or(words).trim_end();
            format!("rule {handle}: {words}")
        }
        (None, true) => "policy".to_owned(),
        (None, false) => "end of the chain".to_owned(),
    };
    let met = Line::from(format!("  {family} {table} {chain} {what} "));
    let mut lines = vec![met.then(Line::toned(format!("→ {verdict}"), tone))];
    if let Some(owner) = &step.owner {
        let word = |label: &str, name: &Option<String>| {
            let name = name.as_ref()?;
            Some(format!("{label} {name}"))
        };
        let words = [
            word("container", &owner.container_id),
            word("interface", &owner.ifname),
            word("network", &owner.network),
        ];
        let words: Vec<String> = words.into_iter().flatten().collect();
        lines.push(format!("    of {}", words.join(", ")).into());
    } else if let Some(comment) = &step.comment {
        lines.push(format!("    # {comment}").into());
    }
    lines
}
