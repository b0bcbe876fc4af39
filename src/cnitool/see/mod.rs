//! The commands that show what is on the node, whoever made it: all from one look
//! ([`Survey`]), and none changes anything.
//!
//! With `--json`, each prints one object whose keys are a contract: none goes or changes
//! its meaning, others may join them. What is not known is `null`, a list may be empty. Its
//! `doubts` tell what could not be looked at, and why.

#[cfg(test)]
mod golden;
mod graph;
mod ipam;
mod ports;
mod ps;
mod show;

pub use self::show::choose;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::{Options, commands, output};
use crate::cni::json;
use crate::cnitool::inventory::Survey;
use crate::cnitool::inventory::attachment::{self, View};
use crate::netfilter::Mapping;
use crate::runtime::cache::{self, Cache};

/// What can be looked at.
#[derive(Subcommand)]
pub enum See {
    /// Show every attachment on this node and how it is
    #[command(after_help = "\
Examples:
  cnitool ps                         all attachments
  cnitool ps --network web --wide    those of one network, with namespace, MAC and bridge
  cnitool ps --json | jq -r '.attachments[] | select(.state != \"ok\") | .containerID'

STATE is ok; broken, with what is wrong; or orphan: the container is gone, with what is left of it.")]
    Ps(PsArgs),
    /// Show the pools of addresses and who has which address
    #[command(after_help = "\
Examples:
  cnitool ipam                  every pool and every lease
  cnitool ipam --network web    those of one network
  cnitool ipam --json | jq '.pools[].sets[].free'

JSON: size and free are numbers up to 2^53, and strings of digits beyond, as of an IPv6 /64.

NEXT is the address that the next ADD gets. A lease is leaked when its container is gone:
`cnitool gc NETWORK` frees those of networks whose runtime keeps its results in /var/lib/cni.")]
    Ipam(ListArgs),
    /// Show which ports of the host lead to which containers
    #[command(after_help = "\
Examples:
  cnitool ports                    every mapped port
  cnitool ports --container web1   those of one container
  cnitool ports --json | jq '.ports[] | select(.conflict)'

PACKETS are those that the rule has met, where it counts them: one for each connection.
Where two containers have one port, the rule in front gets all packets.")]
    Ports(ListArgs),
    /// Show one container's way to the outside, hop by hop, each with the command that shows it
    #[command(after_help = "\
Examples:
  cnitool show web1                    by the container's id or the start of it
  cnitool show c1                      by its namespace, /run/netns/c1
  cnitool show web1 --network front    one of its networks")]
    Show(ShowArgs),
    /// Draw the node's networks: uplinks, bridges, containers, addresses and ports
    #[command(after_help = "\
Examples:
  cnitool graph                                a tree, for the terminal
  cnitool graph --format svg > networks.svg    for a browser, light or dark
  cnitool graph --format dot | dot -Tpng > networks.png

Broken parts are red, what is left of containers that are gone is dashed.")]
    Graph(GraphArgs),
}

/// What `graph` takes.
#[derive(Args)]
pub struct GraphArgs {
    #[command(flatten)]
    selection: Selection,
    /// The form of the picture
    #[arg(long, value_enum, default_value = "tree")]
    format: graph::Format,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

/// What `show` takes.
#[derive(Args)]
pub struct ShowArgs {
    /// The container's id, the start of it, or the name of its namespace
    container: String,
    /// Only its attachments to this network
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What the lists take.
#[derive(Args)]
pub struct ListArgs {
    #[command(flatten)]
    selection: Selection,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Which attachments.
#[derive(Args)]
pub struct Selection {
    /// Only those to this network
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// Only those of this container: its id, the start of it, or the name of its namespace
    #[arg(long, value_name = "ID")]
    container: Option<String>,
}

/// What `ps` takes.
#[derive(Args)]
pub struct PsArgs {
    #[command(flatten)]
    selection: Selection,
    /// Whole ids, and more columns
    #[arg(long, short)]
    wide: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Looks, and shows what was asked for.
///
/// # Errors
/// When the node cannot be looked at.
pub fn run(options: &Options, see: &See) -> Result<ExitCode> {
    let survey = look(options)?;
    match see {
        See::Ps(args) => {
            let views = args.selection.of(&survey);
            if args.json {
                print_json(&ps::document(&survey, &views))?;
            } else {
                output::lines(&ps::table(&survey, &views, args.wide))?;
            }
        }
        See::Ipam(args) => {
            let views = attachment::join(&survey);
            let pools = ipam::pools(&survey, &views, &args.selection);
            if args.json {
                print_json(&ipam::document(&survey, &pools))?;
            } else {
                output::lines(&ipam::tables(&survey, &pools))?;
            }
        }
        See::Ports(args) => {
            let views = args.selection.of(&survey);
            let ports = ports::list(&views);
            if args.json {
                print_json(&ports::document(&survey, &ports))?;
            } else {
                output::lines(&ports::table(&ports))?;
            }
        }
        See::Show(args) => {
            let views = choose(
                attachment::join(&survey),
                &args.container,
                args.network.as_deref(),
            )?;
            if args.json {
                print_json(&show::document(&survey, &views))?;
            } else {
                output::lines(&show::pages(&survey, &views))?;
            }
        }
        See::Graph(args) => {
            let picture = graph::Picture::of(&survey, &args.selection.of(&survey));
            match args.format {
                _ if args.json => print_json(&picture)?,
                graph::Format::Json => print_json(&picture)?,
                graph::Format::Tree => output::lines(&picture.tree())?,
                graph::Format::Dot => output::page(&picture.dot())?,
                graph::Format::Svg => output::page(&picture.svg())?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The node as it is now. What could not be looked at is told on stderr.
///
/// # Errors
/// When nothing can be told: mostly for want of root.
pub fn look(options: &Options) -> Result<Survey> {
    const WANT_OF_ROOT: &str =
        "only root sees the result cache, namespaces and rules: run cnitool with sudo";
    let is_root = nix::unistd::geteuid().is_root();
    let directory = commands::open(options.conf())?;
    let cache = Cache::new(Path::new(cache::DEFAULT));
    let survey = match Survey::take(directory, &cache) {
        Err(error) if !is_root => return Err(error).context(WANT_OF_ROOT),
        survey => survey?,
    };
    if !is_root {
        output::note(&format!("warning: {WANT_OF_ROOT}"));
    }
    let unknown = survey.unknown.iter().map(ToString::to_string);
    for doubt in survey.all_doubts().cloned().chain(unknown) {
        output::note(&format!("warning: {doubt}"));
    }
    Ok(survey)
}

impl Selection {
    /// Those of the attachments on the node that are meant.
    fn of<'a>(&self, survey: &'a Survey) -> Vec<View<'a>> {
        let mut views = attachment::join(survey);
        views.retain(|view| {
            self.network.as_ref().is_none_or(|n| *n == view.network)
                && self.container.as_ref().is_none_or(|c| is_meant(view, c))
        });
        views
    }
}

/// Whether `word` is the container's id, the start of it, or the name or path of its
/// namespace.
pub fn is_meant(view: &View<'_>, word: &str) -> bool {
    let path = view.netns.unwrap_or_default();
    let remembered = view.memory.map(|memory| &*memory.entry.parameters.netns);
    view.attachment.container_id.starts_with(word)
        || [Some(path), remembered].into_iter().flatten().any(|path| {
            let name = path.rsplit('/').next();
            path == word || name == Some(word)
        })
}

/// A container id as far as it is needed to tell containers apart, mostly.
pub fn short(id: &str) -> &str {
    /// Those that runtimes make have 64 characters, and people's have fewer than this.
    const LONG: usize = 32;
    const SHORT: usize = 12;
    match id.get(..SHORT) {
        Some(start) if id.len() > LONG => start,
        _ => id,
    }
}

/// Something, or a dash.
fn or_dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}

/// An address with its prefix length, where that is known to be other than the full one.
fn address(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

/// `8080:80/tcp`, in front the host's address where only that is mapped.
fn port(mapping: Mapping) -> String {
    let Mapping {
        protocol,
        host_ip,
        host_port,
        container_port,
    } = mapping;
    let protocol = protocol.as_str();
    let host = match host_ip.filter(|ip| !ip.is_unspecified()) {
        Some(ip) => std::net::SocketAddr::new(ip, host_port).to_string(),
        None => host_port.to_string(),
    };
    format!("{host}:{container_port}/{protocol}")
}

/// How long ago `then` was, in the one unit that tells most: `5s`, `3m`, `2h`, `9d`.
fn age(now: SystemTime, then: SystemTime) -> String {
    let seconds = now.duration_since(then).unwrap_or(Duration::ZERO).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// A moment for machines: RFC 3339, whole seconds.
fn moment(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// For `serialize_with`: a number as JSON has it, or as a string of digits beyond 2⁵³, from where
/// on many programs (jq, JavaScript) would read another number.
///
/// # Errors
/// The serializer's.
pub fn count<S: Serializer>(number: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    const LARGEST: u64 = 1 << 53;
    match u64::try_from(*number) {
        Ok(number @ ..=LARGEST) => serializer.serialize_u64(number),
        _ => serializer.collect_str(number),
    }
}

/// Prints a document.
///
/// # Errors
/// Code 5 when stdout is full.
pub fn print_json(document: &impl Serialize) -> Result<()> {
    let mut bytes = json::pretty(document)?;
    bytes.push(b'\n');
    output::document(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_that_programs_would_misread_are_strings() {
        let written = |number: u128| {
            let mut bytes = Vec::new();
            count(&number, &mut serde_json::Serializer::new(&mut bytes)).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(written(0), "0");
        assert_eq!(written(1 << 53), "9007199254740992");
        assert_eq!(written((1 << 53) + 1), "\"9007199254740993\"");
        assert_eq!(written(1 << 64), "\"18446744073709551616\"");
    }

    #[test]
    fn ages_and_ids_are_short() {
        let then = SystemTime::UNIX_EPOCH;
        let after = |seconds| age(then + Duration::from_secs(seconds), then);
        let ages = [0, 59, 60, 3599, 7200, 200_000].map(after);
        assert_eq!(ages, ["0s", "59s", "1m", "59m", "2h", "2d"]);
        assert_eq!(age(then, then + Duration::from_secs(9)), "0s");
        assert_eq!(short(&"ab".repeat(32)), "abababababab");
        assert_eq!(
            short("cnitool-20b4ff582526573bbe7d"),
            "cnitool-20b4ff582526573bbe7d"
        );
    }
}
