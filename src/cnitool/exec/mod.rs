//! `cnitool exec`: runs a command in a namespace of its own that is attached to a network
//! for as long as the command runs.
//!
//! The namespace has no name: its path leads through a descriptor of this process. Should
//! that be killed, the namespace goes with the command, and `cnitool gc` finds the rest.

mod capabilities;
mod command;
mod view;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use super::{Options, commands, output};
use crate::cni::invocation::Attachment;
use crate::fsutil;
use crate::net::link;
use crate::net::netlink::Netlink;
use crate::net::netns::Netns;
use crate::runtime::chain::{Chain, OnFailure};
use crate::runtime::parameters::{Parameters, parse_args};
use capabilities::Wishes;
pub use command::{BECOME, OWN_FAILURE, replace_this_process};
use command::{Ended, Signals};

#[derive(Args)]
pub struct ExecArgs {
    /// Name of the network
    network: String,
    #[command(flatten)]
    wishes: Wishes,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// The exit status is the command's, 128 and the signal's number where one ended it, 127
/// or 126 where it cannot be run, and 125 where something else failed.
pub fn run(options: &Options, args: &ExecArgs) -> ExitCode {
    attach_and_run(options, args).unwrap_or_else(|error| {
        output::report(&error);
        OWN_FAILURE.into()
    })
}

/// # Errors
/// Those of ADD, which is then undone, and of DEL after a command that succeeded.
fn attach_and_run(options: &Options, args: &ExecArgs) -> Result<ExitCode> {
    let directory = commands::open(options.conf())?;
    let network = directory.find(&args.network)?;
    let given = commands::capability_args(&options.attachment.cap)?;
    let capability_args = args.wishes.join(given)?;
    args.wishes.refuse_unheard(network)?;
    let trace = commands::trace(options)?;
    let runtime = commands::runtime(options, &trace);
    let chain = runtime.chain(network)?;

    // From here on nothing but the DEL at the end ends this process.
    let signals = Signals::hold()?;
    let netns = Netns::throwaway()?;
    set_lo_up(&netns)?;
    let parameters = Parameters::new(
        Attachment {
            container_id: match &options.attachment.id {
                Some(id) => id.clone(),
                None => format!("cnitool-exec-{:08x}", fsutil::random_u32()?),
            },
            ifname: options.attachment.ifname.clone(),
        },
        netns.path_by_descriptor(),
        parse_args(&options.attachment.args)?,
        capability_args,
    )?;
    let result = chain.add(&parameters, OnFailure::RollBack, |_| Ok(()))?;
    let resolv_conf = view::resolv_conf(&result.dns);
    let ended = match signals.pending()? {
        Some(signal) => Ok(Ended::by(signal)),
        None => command::run(&args.command, resolv_conf.as_deref(), &netns, &signals),
    };
    finish(&chain, &parameters, ended)
}

/// DEL, whatever became of the command.
fn finish(chain: &Chain<'_>, parameters: &Parameters, ended: Result<Ended>) -> Result<ExitCode> {
    let deleted = chain.del(parameters);
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => {
            if let Err(error) = deleted {
                output::report(&error);
            }
            return Err(error);
        }
    };
    match deleted {
        Ok(()) => Ok(ended.status().into()),
        Err(error) if ended.status() == 0 => Err(error),
        Err(error) => {
            output::report(&error);
            Ok(ended.status().into())
        }
    }
}

/// Programs expect to reach themselves.
fn set_lo_up(netns: &Netns) -> Result<()> {
    let inside = Netlink::open_in(netns)?;
    let lo = link::by_name(&inside, "lo")?.context("the new namespace has no link lo")?;
    link::change(&inside, link::change_of(lo.index).up(), "set lo up")
}
