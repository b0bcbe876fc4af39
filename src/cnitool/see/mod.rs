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
mod words;

pub use self::show::choose;
pub use self::words::{is_meant, short};

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use super::{Options, commands, output};
use crate::cni::skel::Services;
use crate::cnitool::inventory::Survey;
use crate::cnitool::inventory::attachment::{self, View};
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
pub fn run(options: &Options, services: Services, see: &See) -> Result<ExitCode> {
    let survey = look(options, services)?;
    match see {
        See::Ps(args) => {
            let views = args.selection.of(&survey);
            if args.json {
                output::json(&ps::document(&survey, &views))?;
            } else {
                output::lines(&ps::table(&survey, &views, args.wide))?;
            }
        }
        See::Ipam(args) => {
            let views = attachment::join(&survey);
            let pools = ipam::pools(&survey, &views, &args.selection);
            if args.json {
                output::json(&ipam::document(&survey, &pools))?;
            } else {
                output::lines(&ipam::tables(&survey, &pools))?;
            }
        }
        See::Ports(args) => {
            let views = args.selection.of(&survey);
            let ports = ports::list(&views);
            if args.json {
                output::json(&ports::document(&survey, &ports))?;
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
                output::json(&show::document(&survey, &views))?;
            } else {
                output::lines(&show::pages(&survey, &views))?;
            }
        }
        See::Graph(args) => {
            let picture = graph::Picture::of(&survey, &args.selection.of(&survey));
            match args.format {
                _ if args.json => output::json(&picture)?,
                graph::Format::Json => output::json(&picture)?,
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
pub fn look(options: &Options, services: Services) -> Result<Survey> {
    const WANT_OF_ROOT: &str =
        "only root sees the result cache, namespaces and rules: run cnitool with sudo";
    let is_root = nix::unistd::geteuid().is_root();
    let directory = commands::open(options.conf())?;
    let cache = Cache::new(Path::new(cache::DEFAULT));
    let survey = match Survey::take(directory, &cache, services) {
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
