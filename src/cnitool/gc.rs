//! `cnitool gc`: removes the attachments whose namespace is gone, and has every plugin
//! remove what belongs to no attachment. A dry run has our own plugins tell what that is.

use std::process::ExitCode;

use anyhow::{Context, Result};

use super::{GcArgs, Options, commands, output};
use crate::applets;
use crate::cni::collector::{Collector, Run};
use crate::cni::delegate;
use crate::cni::invocation::{Command, Environment};
use crate::cni::skel::Call;
use crate::cni::version::Version;
use crate::runtime::chain::{Chain, Step};
use crate::runtime::gc::{self, Extent, Sweep};

/// What fails is reported, and stops nothing.
///
/// # Errors
/// When nothing could be tried.
pub fn run(options: &Options, args: &GcArgs) -> Result<ExitCode> {
    let directory = commands::open(options.conf())?;
    let network = directory.find(&args.whole.network)?;
    let trace = commands::trace(options)?;
    let runtime = commands::runtime(options, &trace);
    let chain = runtime.chain(network)?;
    let contents = runtime.cache.contents()?;
    for unknown in &contents.unknown {
        output::note(&format!("warning: {unknown}"));
    }
    let extent = if args.all {
        Extent::Everything
    } else {
        Extent::Stale
    };
    let Some(sweep) = gc::plan(network, contents, extent) else {
        output::note("disableGC is set: nothing is removed");
        return Ok(ExitCode::SUCCESS);
    };
    let errors = if args.dry_run {
        tell(&chain, options.path(), &sweep)?
    } else {
        gc::collect(&chain, &sweep, &output::note)
    };
    if chain.version() < Version::V1_1_0 {
        output::note(&format!(
            "cniVersion {} has no GC: no plugin {} asked to look for more",
            chain.version(),
            if args.dry_run { "would be" } else { "was" },
        ));
    }
    errors.iter().for_each(output::report);
    Ok(if errors.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Prints what would be removed, and what would not be. Answers the errors that the search
/// met.
///
/// # Errors
/// Code 5 when stdout is closed or full.
fn tell(chain: &Chain<'_>, path: &str, sweep: &Sweep) -> Result<Vec<anyhow::Error>> {
    let mut collector = Collector::new(Run::Dry);
    for parameters in &sweep.stale {
        collector.remove(&gc::describe(parameters), || Ok(()));
    }
    if let Some(doubt) = sweep.doubt() {
        collector.note(format!("would run no GC: {doubt:#}"));
    } else if chain.version() >= Version::V1_1_0 {
        for request in chain.gc_requests(&sweep.valid) {
            let asked = request.and_then(|(step, config)| ask(&step, path, config, &mut collector));
            collector.attempt(asked);
        }
        for valid in &sweep.valid {
            let (id, ifname) = (&valid.container_id, &valid.ifname);
            collector.note(format!("would keep container {id}, interface {ifname}"));
        }
    }
    let (mut lines, errors) = collector.into_parts();
    lines.push(String::new());
    output::answer(lines.join("\n").as_bytes())?;
    Ok(errors)
}

/// Has the plugin of `step` tell what it would remove, given the configuration of its GC.
/// One that is not ours would remove it: the protocol knows no dry run.
fn ask(step: &Step<'_>, path: &str, config: Vec<u8>, collector: &mut Collector) -> Result<()> {
    let (name, executable) = (&step.plugin.plugin, &step.executable);
    let Some(plugin) = delegate::own(name, executable, applets::plugin) else {
        collector.note(delegate::would_run_foreign(name, executable));
        return Ok(());
    };
    let env = Environment::from([("CNI_PATH".to_owned(), path.to_owned())]);
    Call::to_look(Command::Gc, plugin, applets::plugin, &env, config)
        .and_then(|call| plugin.gc(&call, collector))
        .with_context(|| step.failed("gc"))
}
