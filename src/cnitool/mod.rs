//! `cnitool`: a runtime for the command line. Takes the reference's environment, ids,
//! cache and output (behaviour 3.9), and tells more when something is missing.

mod commands;
mod list;
mod output;
mod trace;
mod validate;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Where network configurations are, unless told.
const CONFIGURATIONS: &str = "/etc/cni/net.d";

/// Where plugins are, unless told.
const PLUGINS: &str = "/opt/cni/bin";

/// Adds, checks and removes network attachments by hand.
#[derive(Parser)]
#[command(name = "cnitool", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Attach a network namespace to a network and print the result
    Add(AddArgs),
    /// Ask every plugin whether the attachment is as its result says
    Check(CheckArgs),
    /// Remove an attachment
    Del(DelArgs),
    /// Remove the attachments whose namespace is gone, and what else is stale
    Gc(GcArgs),
    /// Ask every plugin whether it could serve an ADD
    Status(StatusArgs),
    /// List the networks, their plugins and where these were found
    List(ListArgs),
    /// Report everything that is wrong with configurations
    Validate(ValidateArgs),
}

/// What every command needs.
#[derive(Args)]
struct Site {
    /// Directory of network configurations, or one file
    #[arg(long, env = "NETCONFPATH", value_name = "DIR|FILE", default_value = CONFIGURATIONS)]
    conf: PathBuf,
    /// Directories in which plugins are looked up, separated by colons
    #[arg(long, env = "CNI_PATH", value_name = "DIRS", default_value = PLUGINS)]
    path: String,
}

impl Site {
    /// A variable that is set to nothing counts as unset, here and below.
    fn conf(&self) -> &Path {
        if self.conf.as_os_str().is_empty() {
            Path::new(CONFIGURATIONS)
        } else {
            &self.conf
        }
    }

    fn path(&self) -> &str {
        if self.path.is_empty() {
            PLUGINS
        } else {
            &self.path
        }
    }
}

#[derive(Args)]
struct Tracing {
    /// Print each call of a plugin: command, file, input, output or error, time taken
    #[arg(long, short)]
    verbose: bool,
    /// Print one line for each call of a plugin: plugin, command, milliseconds
    #[arg(long)]
    timing: bool,
}

/// Which attachment is meant.
#[derive(Args)]
struct Target {
    /// Name of the network
    network: String,
    /// Path of the network namespace, such as /run/netns/c1
    netns: PathBuf,
    /// Container id [default: derived from the path of the namespace]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Name of the interface in the container
    #[arg(
        long,
        short,
        env = "CNI_IFNAME",
        value_name = "NAME",
        default_value = "eth0"
    )]
    ifname: String,
    /// Capability arguments: {"portMappings": [...], ...}
    #[arg(
        long,
        env = "CAP_ARGS",
        value_name = "JSON",
        default_value = "",
        hide_default_value = true
    )]
    cap: String,
    /// Arguments for the plugins: KEY=VALUE;KEY=VALUE
    #[arg(
        long,
        env = "CNI_ARGS",
        value_name = "PAIRS",
        default_value = "",
        hide_default_value = true
    )]
    args: String,
}

#[derive(Args)]
struct AddArgs {
    #[command(flatten)]
    target: Target,
    /// When ADD fails, leave what it made instead of running DEL
    #[arg(long)]
    no_rollback: bool,
    /// Only print which plugins would be run
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    site: Site,
    #[command(flatten)]
    tracing: Tracing,
}

#[derive(Args)]
struct CheckArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    site: Site,
    #[command(flatten)]
    tracing: Tracing,
}

#[derive(Args)]
struct DelArgs {
    #[command(flatten)]
    target: Target,
    /// Only print which plugins would be run
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    site: Site,
    #[command(flatten)]
    tracing: Tracing,
}

#[derive(Args)]
struct GcArgs {
    /// Name of the network
    network: String,
    /// Not used; accepted because the reference asks for it
    netns: Option<PathBuf>,
    /// Remove every attachment of the network, living ones too
    #[arg(long)]
    all: bool,
    /// Only print what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    site: Site,
    #[command(flatten)]
    tracing: Tracing,
}

#[derive(Args)]
struct StatusArgs {
    /// Name of the network
    network: String,
    /// Not used; accepted because the reference asks for it
    netns: Option<PathBuf>,
    #[command(flatten)]
    site: Site,
    #[command(flatten)]
    tracing: Tracing,
}

#[derive(Args)]
struct ListArgs {
    #[command(flatten)]
    site: Site,
}

#[derive(Args)]
struct ValidateArgs {
    /// A file, or the name of a network [default: every file of the directory]
    #[arg(value_name = "FILE|NETWORK")]
    what: Option<String>,
    #[command(flatten)]
    site: Site,
}

/// Serves one command line, its program name first.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error),
    };
    let done = match cli.verb {
        Verb::Add(args) => commands::add(&args),
        Verb::Check(args) => commands::check(&args),
        Verb::Del(args) => commands::del(&args),
        Verb::Gc(args) => commands::gc(&args),
        Verb::Status(args) => commands::status(&args),
        Verb::List(args) => list::run(&args),
        Verb::Validate(args) => validate::run(&args),
    };
    done.unwrap_or_else(|error| {
        output::report(&error);
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
