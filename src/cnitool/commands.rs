//! The commands about one attachment, and STATUS: each runs the chain of a network.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use super::dry_run::Own;
use super::trace::Trace;
use super::{AddArgs, CheckArgs, DelArgs, Options, StatusArgs, Target, dry_run, output};
use crate::cni::error::{Code, ErrorObject, coded};
use crate::cni::invocation::Attachment;
use crate::cni::json::{self, Object};
use crate::cni::result::CniResult;
use crate::cni::skel::Services;
use crate::cni::version::Version;
use crate::fsutil::Lock;
use crate::runtime::cache::{self, Cache};
use crate::runtime::chain::{Chain, OnFailure, Runtime};
use crate::runtime::directory::{self, Directory};
use crate::runtime::parameters::{Parameters, clean, container_id, parse_args};
use crate::runtime::quiet;

/// `cnitool add`: prints the last plugin's result.
///
/// # Errors
/// The failing plugin's.
pub fn add(options: &Options, services: Services, args: &AddArgs) -> Result<ExitCode> {
    let parameters = parameters(options, &args.target)?;
    let on_failure = if args.no_rollback {
        OnFailure::Leave
    } else {
        OnFailure::RollBack
    };
    on_chain(options, &args.target.network, |chain| {
        if args.dry_run {
            return dry_run::add(chain, own(options, services), &parameters);
        }
        let _lock = keep_collectors_out();
        let print =
            |result: &CniResult| output::answer(json::pretty(&result.to_wire(chain.version())?)?);
        let added = chain.add(&parameters, on_failure, print);
        added.map(drop).inspect_err(|_| {
            hint_at_netns(&parameters.netns);
        })
    })
}

/// `cnitool check`.
///
/// # Errors
/// The first plugin's that fails.
pub fn check(options: &Options, args: &CheckArgs) -> Result<ExitCode> {
    let parameters = parameters(options, &args.target)?;
    on_chain(options, &args.target.network, |chain| {
        if args.dry_run {
            return dry_run::check(chain, &parameters);
        }
        chain.check(&parameters)
    })
}

/// `cnitool del`.
///
/// # Errors
/// The first plugin's that fails, in reverse order.
pub fn del(options: &Options, services: Services, args: &DelArgs) -> Result<ExitCode> {
    let parameters = parameters(options, &args.target)?;
    on_chain(options, &args.target.network, |chain| {
        if args.dry_run {
            return dry_run::del(chain, own(options, services), &parameters);
        }
        let _lock = keep_collectors_out();
        chain.del(&parameters)
    })
}

/// While an attachment is made or removed. No reason to fail: what a GC could take is lost
/// only in the worst case.
fn keep_collectors_out() -> Option<Lock> {
    let locked = quiet::changing();
    locked
        .inspect_err(|error| output::note(&format!("warning: a GC may interfere: {error:#}")))
        .ok()
}

fn own(options: &Options, services: Services) -> Own<'_> {
    Own {
        services,
        path: options.path(),
    }
}

/// `cnitool status`.
///
/// # Errors
/// The first plugin's that could not serve; with `--json` only what kept all from being asked.
pub fn status(options: &Options, args: &StatusArgs) -> Result<ExitCode> {
    let mut is_ready = true;
    on_chain(options, &args.whole.network, |chain| {
        let asked = chain.status();
        if !args.json {
            return asked;
        }
        is_ready = asked.is_ok();
        output::json(&Status {
            network: &args.whole.network,
            ready: is_ready,
            asked: chain.version() >= Version::V1_1_0,
            error: asked.err().map(|error| ErrorObject::from_error(&error)),
        })
    })?;
    Ok(if is_ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What `status --json` prints. The keys are a contract: none goes or changes its meaning.
#[derive(Serialize)]
struct Status<'a> {
    network: &'a str,
    /// Whether a container could be added.
    ready: bool,
    /// Whether plugins were asked: versions before 1.1.0 have no STATUS.
    asked: bool,
    error: Option<ErrorObject>,
}

/// # Errors
/// Names the argument that cannot be used.
fn parameters(options: &Options, target: &Target) -> Result<Parameters> {
    let netns = std::path::absolute(&target.netns)
        .with_context(|| format!("make {} absolute", target.netns.display()))?;
    let netns = clean(&netns)
        .into_os_string()
        .into_string()
        .map_err(|path| {
            let path = path.display();
            coded(Code::Environment, format!("NETNS {path} is not UTF-8"))
        })?;
    let options = &options.attachment;
    let attachment = Attachment {
        container_id: options.id.clone().unwrap_or_else(|| container_id(&netns)),
        ifname: options.ifname.clone(),
    };
    Parameters::new(
        attachment,
        netns,
        parse_args(&options.args)?,
        capability_args(&options.cap)?,
    )
}

/// What `--cap` says, by capability.
///
/// # Errors
/// Code 6 for what is no JSON object.
pub fn capability_args(text: &str) -> Result<Object> {
    // Go reads `null` as no object, too.
    if text.is_empty() || text.trim() == "null" {
        return Ok(Object::new());
    }
    json::parse_object("CAP_ARGS (--cap)", text.as_bytes())
}

/// What is told of each call of a plugin.
///
/// # Errors
/// Those of [`Trace::new`].
pub fn trace(options: &Options) -> Result<Trace> {
    Trace::new(options.verbose, options.timing)
}

/// Reads the configurations; what cannot be read is told and disables nothing else.
///
/// # Errors
/// When there is no reading any.
pub fn open(path: &Path) -> Result<Directory> {
    let directory = directory::load(path)?;
    for broken in &directory.broken {
        output::note(&format!("warning: {broken}"));
    }
    Ok(directory)
}

/// The runtime that this tool is.
pub fn runtime<'a>(options: &Options, trace: &'a Trace) -> Runtime<'a> {
    Runtime {
        path: options.path().to_owned(),
        cache: Cache::new(Path::new(cache::DEFAULT)),
        observer: trace,
    }
}

fn on_chain(
    options: &Options,
    network: &str,
    run: impl FnOnce(&Chain<'_>) -> Result<()>,
) -> Result<ExitCode> {
    let directory = open(options.conf())?;
    let network = directory.find(network)?;
    let trace = trace(options)?;
    let runtime = runtime(options, &trace);
    run(&runtime.chain(network)?)?;
    Ok(ExitCode::SUCCESS)
}

/// The commonest mistake: the name of a namespace where its path is wanted.
fn hint_at_netns(netns: &str) {
    if !Path::new(netns).exists() {
        output::note(&format!(
            "{netns} does not exist; what `ip netns add NAME` makes is /run/netns/NAME"
        ));
    }
}
