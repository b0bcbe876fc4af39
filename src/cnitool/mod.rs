//! `cnitool`: a runtime for the command line. Takes the reference's environment, ids,
//! cache and output (docs/compatibility.md#3.9), and tells more when something is missing.

mod commands;
mod doctor;
mod dry_run;
mod exec;
mod gc;
mod inventory;
mod list;
pub mod output;
mod packet;
mod see;
pub mod table;
mod trace;
mod validate;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::cni::skel::Services;

/// Where network configurations are, unless told.
const CONFIGURATIONS: &str = "/etc/cni/net.d";

/// Where plugins are, unless told.
const PLUGINS: &str = "/opt/cni/bin";

/// Adds, checks and removes network attachments by hand.
#[derive(Parser)]
#[command(name = "cnitool", version)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    verb: Verb,
}

/// The commands that take the options of an attachment.
const OF_ATTACHMENTS: [&str; 4] = ["add", "check", "del", "exec"];

/// The command line, for its manual and for shells. Options of an attachment may stand in front
/// of any command; the help of those that take them tells of them.
pub fn command() -> clap::Command {
    let own = AttachmentOptions::augment_args(clap::Command::new("own"));
    let own: Vec<clap::Arg> = own.get_arguments().cloned().collect();
    let is_own = |arg: &clap::Arg| own.iter().any(|own| own.get_id() == arg.get_id());
    let hidden = |arg: clap::Arg| {
        let hide = is_own(&arg);
        arg.hide(hide)
    };
    let shown = |command: clap::Command| {
        if OF_ATTACHMENTS.contains(&command.get_name()) {
            command.args(own.clone())
        } else {
            command
        }
    };
    Cli::command().mut_args(hidden).mut_subcommands(shown)
}

/// Reads a command line.
fn parse(args: &[OsString]) -> Result<Cli, clap::Error> {
    let mut command = command();
    let parsed = command
        .try_get_matches_from_mut(args)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| with_plain_usage(error, args))
}

/// `error` with the usage of the command as its help has it: clap adds the options that it has
/// met, those that only the environment sets included.
fn with_plain_usage(mut error: clap::Error, args: &[OsString]) -> clap::Error {
    if error.get(ContextKind::Usage).is_none() {
        return error;
    }
    let mut command = command();
    command.build();
    let mut words = args.iter().skip(1);
    let meant = words
        .find_map(|word| command.find_subcommand(word))
        .cloned();
    let usage = meant.unwrap_or(command).render_usage();
    error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    error
}

#[derive(Subcommand)]
enum Verb {
    /// Attach a network namespace to a network and print the result
    #[command(after_help = "\
Examples:
  ip netns add red && cnitool add web /run/netns/red
  cnitool add web /run/netns/red --dry-run     what would be made
  cnitool add web /run/netns/red --timing      where the time goes
  cnitool add web /run/netns/red --cap '{\"portMappings\": [{\"hostPort\": 8080, \"containerPort\": 80}]}'")]
    Add(AddArgs),
    /// Ask every plugin whether the attachment is as its result says
    #[command(after_help = "\
Examples:
  cnitool check web /run/netns/red && echo as it should be
  cnitool check web /run/netns/red --verbose   what each plugin was asked and said")]
    Check(CheckArgs),
    /// Remove an attachment
    #[command(after_help = "\
Examples:
  cnitool del web /run/netns/red
  cnitool del web /run/netns/red --dry-run     what would be removed")]
    Del(DelArgs),
    /// Run a command in a new namespace that is attached to a network meanwhile
    #[command(after_help = "\
Examples:
  cnitool exec web -- ping -c 1 10.1.0.1
  cnitool exec web --ip 10.1.0.5 --port 8080:80 -- python3 -m http.server 80

The exit status is the command's: 128 and the signal's number where one ended it, 127 or 126 where it
cannot be run. It is 125 where cnitool itself failed: ADD, DEL, a mount, the arguments.

The command sees its own /sys, and an /etc/resolv.conf with the DNS of the network, if that has any.")]
    Exec(exec::ExecArgs),
    /// Remove the attachments whose namespace is gone, and what else is stale
    #[command(after_help = "\
Examples:
  cnitool gc web --dry-run    what would be removed, and what kept
  cnitool gc web
  cnitool gc web --json | jq -r '.removed[].containerID'

JSON: network, dryRun, disabled (disableGC is set); removed (in a dry run: those that would be) and kept,
attachments with containerID and ifname; notes (what else plugins would remove, in sentences: of dry runs
only, otherwise they tell on stderr); errors (code, msg, details).")]
    Gc(GcArgs),
    /// Ask every plugin whether it could serve an ADD
    #[command(after_help = "\
Examples:
  cnitool status web && echo containers can be added
  cnitool status web --json | jq -r .error.msg

JSON: network, ready, asked (false where the cniVersion has no STATUS), error (null, or the first plugin's:
code, msg, details).")]
    Status(StatusArgs),
    /// List the networks, their plugins and where these were found
    #[command(after_help = "\
Examples:
  cnitool list
  cnitool list --json | jq -r '.networks[].name'")]
    List(ListArgs),
    /// Report everything that is wrong with configurations
    #[command(after_help = "\
Examples:
  cnitool validate                   every file of the directory
  cnitool validate ./10-web.conflist
  cnitool validate web --json | jq -r '.findings[].message'")]
    Validate(ValidateArgs),
    /// Send a packet from a container, or wait for one, and follow it through the rules
    #[command(after_help = packet::HELP)]
    Trace(packet::TraceArgs),
    /// Find what keeps packets from getting through, and tell what mends it
    Doctor(doctor::DoctorArgs),
    #[command(flatten)]
    See(see::See),
}

/// What every command takes, before its name or behind it.
#[derive(Args)]
struct Options {
    /// Directory of network configurations, or one file
    #[arg(long, global = true, env = "NETCONFPATH", value_name = "DIR|FILE", default_value = CONFIGURATIONS,
          value_parser = OsStringValueParser::new().map(PathBuf::from))]
    conf: PathBuf,
    /// Directories in which plugins are looked up, separated by colons
    #[arg(long, global = true, env = "CNI_PATH", value_name = "DIRS", default_value = PLUGINS)]
    path: String,
    /// Print each call of a plugin: command, file, input, output or error, time taken
    #[arg(long, short, global = true)]
    verbose: bool,
    /// Print how long each call of a plugin took and, if it is one of ours, each of its steps
    #[arg(long, global = true)]
    timing: bool,
    #[command(flatten)]
    attachment: AttachmentOptions,
}

/// What the runtime says about an attachment.
#[derive(Args)]
#[command(next_help_heading = "Options of the attachment")]
struct AttachmentOptions {
    /// Container id [default: derived from the path of the namespace]
    #[arg(long, global = true, value_name = "ID")]
    id: Option<String>,
    /// Name of the interface in the container
    #[arg(
        long,
        short,
        global = true,
        env = "CNI_IFNAME",
        value_name = "NAME",
        default_value = "eth0"
    )]
    ifname: String,
    /// Capability arguments: {"portMappings": [...], ...}
    #[arg(
        long,
        global = true,
        env = "CAP_ARGS",
        value_name = "JSON",
        default_value = "",
        hide_default_value = true
    )]
    cap: String,
    /// Arguments for the plugins: KEY=VALUE;KEY=VALUE
    #[arg(
        long,
        global = true,
        env = "CNI_ARGS",
        value_name = "PAIRS",
        default_value = "",
        hide_default_value = true
    )]
    args: String,
}

impl Options {
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

/// Which attachment is meant.
#[derive(Args)]
struct Target {
    /// Name of the network
    network: String,
    /// Path of the network namespace, such as /run/netns/c1
    netns: PathBuf,
    #[command(flatten)]
    surplus: Surplus,
}

/// A whole network.
#[derive(Args)]
struct Whole {
    /// Name of the network
    network: String,
    /// Not used; accepted because the reference asks for it
    netns: Option<PathBuf>,
    #[command(flatten)]
    surplus: Surplus,
}

/// Arguments that nobody asked for: ignored, as the reference does.
#[derive(Args)]
struct Surplus {
    #[arg(hide = true)]
    surplus: Vec<OsString>,
}

#[derive(Args)]
struct AddArgs {
    #[command(flatten)]
    target: Target,
    /// When ADD fails, leave what it made instead of running DEL
    #[arg(long)]
    no_rollback: bool,
    /// Print what would be made: links, addresses, routes, rules, leases; change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
struct CheckArgs {
    #[command(flatten)]
    target: Target,
    /// Only print which plugins would be asked
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
struct DelArgs {
    #[command(flatten)]
    target: Target,
    /// Print what would be removed, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
struct GcArgs {
    #[command(flatten)]
    whole: Whole,
    /// Remove every attachment of the network, living ones too
    #[arg(long)]
    all: bool,
    /// Only print what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct StatusArgs {
    #[command(flatten)]
    whole: Whole,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ListArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ValidateArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// A file (with a / or ending in .conflist, .conf or .json), or the name of a network
    /// [default: every file of the directory]
    #[arg(value_name = "FILE|NETWORK")]
    what: Option<String>,
}

impl Verb {
    /// Its name, if it can do nothing without root. Those that look say themselves what
    /// they could not see.
    fn needs_root(&self) -> Option<&'static str> {
        match self {
            Self::Add(_) => Some("add"),
            Self::Check(_) => Some("check"),
            Self::Del(_) => Some("del"),
            Self::Exec(_) => Some("exec"),
            Self::Gc(_) => Some("gc"),
            _ => None,
        }
    }

    fn surplus(&self) -> &[OsString] {
        match self {
            Self::Add(AddArgs { target, .. })
            | Self::Del(DelArgs { target, .. })
            | Self::Check(CheckArgs { target, .. }) => &target.surplus.surplus,
            Self::Gc(GcArgs { whole, .. }) | Self::Status(StatusArgs { whole, .. }) => {
                &whole.surplus.surplus
            }
            Self::Exec(_)
            | Self::List(_)
            | Self::Validate(_)
            | Self::Doctor(_)
            | Self::See(_)
            | Self::Trace(_) => &[],
        }
    }
}

/// Serves one command line, its program name first.
#[expect(
    clippy::needless_pass_by_value,
    reason = "every tool in the table of applets has this type"
)]
pub fn main(args: Vec<OsString>, services: Services) -> ExitCode {
    // No command for people: neither help nor completions tell of it.
    if let [_, word, command @ ..] = args.as_slice()
        && word == exec::BECOME
    {
        return exec::replace_this_process(command);
    }
    let cli = match parse(&args) {
        Ok(cli) => cli,
        Err(error) => {
            let status = output::usage(&error);
            // Callers of exec tell our failures from the command's by the exit status.
            return if error.use_stderr() && is_exec(&args) {
                exec::OWN_FAILURE.into()
            } else {
                status
            };
        }
    };
    if !cli.verb.surplus().is_empty() {
        let surplus = cli.verb.surplus().join(OsStr::new(" "));
        output::note(&format!("ignored: {}", surplus.display()));
    }
    if let Some(verb) = cli.verb.needs_root()
        && !nix::unistd::geteuid().is_root()
    {
        output::note(&format!(
            "warning: cnitool {verb} needs root, for namespaces, links and rules: run it with sudo"
        ));
    }
    let options = &cli.options;
    let done = match &cli.verb {
        Verb::Add(args) => commands::add(options, services, args),
        Verb::Check(args) => commands::check(options, args),
        Verb::Del(args) => commands::del(options, services, args),
        Verb::Gc(args) => gc::run(options, services, args),
        Verb::Status(args) => commands::status(options, args),
        Verb::List(args) => list::run(options, args),
        Verb::Validate(args) => validate::run(options, services, args),
        Verb::Exec(args) => return exec::run(options, args),
        Verb::Doctor(args) => return doctor::run(options, services, args),
        Verb::Trace(args) => return packet::run(options, services, args),
        Verb::See(see) => see::run(options, services, see),
    };
    done.unwrap_or_else(|error| {
        output::report(&error);
        ExitCode::FAILURE
    })
}

/// The document in a file and what is wrong with it, for fuzzing, and whether that leaves it
/// valid.
#[cfg(any(test, fuzzing))]
pub fn problems(
    file: &Path,
    raw: &[u8],
    plugin: crate::cni::skel::Applets,
) -> Option<(serde_json::Value, Vec<crate::cni::json::Problem>, bool)> {
    validate::problems(file, raw, plugin)
}

/// Whether a command line that is wrong is one of `exec`.
fn is_exec(args: &[OsString]) -> bool {
    // Whatever is wrong with the options in front of it.
    let mut words = args.iter().skip(1);
    let verb = words.find(|word| !word.to_string_lossy().starts_with('-'));
    verb.is_some_and(|verb| verb == "exec")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn the_options_of_an_attachment_are_told_where_they_are_taken() {
        let mut all = command();
        all.build();
        assert!(!all.render_long_help().to_string().contains("--ifname"));
        for command in all.get_subcommands_mut() {
            let name = command.get_name().to_owned();
            let help = command.render_long_help().to_string();
            let is_told = help.contains("--ifname") && help.contains("--cap");
            assert_eq!(
                is_told,
                OF_ATTACHMENTS.contains(&name.as_str()),
                "{name}: {help}"
            );
        }
        let ifname = |line: &[&str]| {
            let args: Vec<OsString> = line.iter().map(OsString::from).collect();
            parse(&args).unwrap().options.attachment.ifname
        };
        assert_eq!(ifname(&["cnitool", "add", "n", "/x", "-i", "a"]), "a");
        assert_eq!(ifname(&["cnitool", "-i", "a", "add", "n", "/x"]), "a");
        assert_eq!(ifname(&["cnitool", "-i", "a", "ps"]), "a");
    }

    #[test]
    fn every_command_has_an_example() {
        for command in command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let help = command.get_after_help().map(ToString::to_string);
            let has_one = help.is_some_and(|help| help.starts_with("Example"));
            assert!(has_one, "{}", command.get_name());
        }
    }
}
