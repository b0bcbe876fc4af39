//! `cnitool gc`: removes the attachments whose namespace is gone, and has every plugin
//! remove what belongs to no attachment. A dry run has our own plugins tell what that is.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Serialize, Serializer};
use serde_json::json;

use super::dry_run::Own;
use super::table::Line;
use super::{GcArgs, Options, commands, output};
use crate::cni::collector::{Collector, Run};
use crate::cni::delegate;
use crate::cni::error::{Code, ErrorObject, detailed};
use crate::cni::invocation::{Attachment, Command, Environment};
use crate::cni::skel::{Call, Services};
use crate::cni::version::Version;
use crate::runtime::chain::{Chain, Step};
use crate::runtime::gc::{self, Extent, Sweep};
use crate::runtime::quiet;

/// How long something must have been nobody's before it goes: other runtimes write down
/// whose it is when all plugins have done their part of an ADD.
const GRACE: Duration = Duration::from_secs(5);

/// How often to look until nothing new has come that is nobody's.
const LOOKS: u32 = 12;

/// What fails is reported, and stops nothing.
///
/// # Errors
/// When nothing could be tried.
pub fn run(options: &Options, services: Services, args: &GcArgs) -> Result<ExitCode> {
    let directory = commands::open(options.conf())?;
    let network = directory.find(&args.whole.network)?;
    let trace = commands::trace(options)?;
    let runtime = commands::runtime(options, &trace);
    let chain = runtime.chain(network)?;
    let own = Own {
        services,
        path: options.path(),
    };
    for unknown in &runtime.cache.contents()?.unknown {
        output::note(&format!("warning: {unknown}"));
    }
    let extent = if args.all {
        Extent::Everything
    } else {
        Extent::Stale
    };
    let plan = || Ok(gc::plan(network, runtime.cache.contents()?, extent));
    let mut document = Document {
        network: &network.name,
        dry_run: args.dry_run,
        ..Document::default()
    };
    let Some(sweep) = plan()? else {
        output::note("disableGC is set: nothing is removed");
        document.disabled = true;
        if args.json {
            output::json(&document)?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let errors = if args.dry_run {
        let (lines, errors) = foretell(&chain, own, &sweep);
        document.removed = sweep.stale.iter().map(|p| p.attachment.clone()).collect();
        document.kept.clone_from(&sweep.valid);
        document.notes = lines;
        if !args.json {
            document.tell(&sweep)?;
        }
        errors
    } else {
        let (removed, kept) = (&mut document.removed, &mut document.kept);
        collect(&chain, own, extent, plan, removed, kept).unwrap_or_else(|error| vec![error])
    };
    if args.json {
        document.errors = errors.iter().map(ErrorObject::from_error).collect();
        output::json(&document)?;
    }
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

/// What `gc --json` prints. The keys are a contract: none goes or changes its meaning.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    network: &'a str,
    dry_run: bool,
    /// Whether `disableGC` is set.
    disabled: bool,
    /// Whose namespace is gone; those that would be removed by any other than a dry run.
    #[serde(serialize_with = "attachments")]
    removed: Vec<Attachment>,
    #[serde(serialize_with = "attachments")]
    kept: Vec<Attachment>,
    /// What plugins would remove beside, in sentences.
    notes: Vec<String>,
    errors: Vec<ErrorObject>,
}

/// Attachments in a document.
fn attachments<S: Serializer>(
    attachments: &[Attachment],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    let attachment = |of: &Attachment| json!({"containerID": of.container_id, "ifname": of.ifname});
    serializer.collect_seq(attachments.iter().map(attachment))
}

/// Deletes what is stale and tells every plugin what is valid. What is in no cache goes only
/// if it was in none a while ago either: it may be of an ADD under way. Answers the errors,
/// which stop nothing, and adds to what is `removed` and `kept`.
///
/// # Errors
/// Code 5 when the cache cannot be listed, 11 when there is something new at each look.
fn collect(
    chain: &Chain<'_>,
    own: Own<'_>,
    extent: Extent,
    plan: impl Fn() -> Result<Option<Sweep>>,
    removed: &mut Vec<Attachment>,
    kept: &mut Vec<Attachment>,
) -> Result<Vec<anyhow::Error>> {
    let mut before = None;
    for _ in 0..LOOKS {
        let lock = quiet::alone()?;
        let sweep = plan()?.unwrap_or_default();
        let mut errors = gc::delete_stale(chain, &sweep, &output::note, removed);
        kept.clone_from(&sweep.valid);
        if let Some(doubt) = sweep.doubt() {
            errors.push(doubt);
            return Ok(errors);
        }
        let found = match extent {
            Extent::Everything => BTreeSet::new(),
            Extent::Stale => search(chain, own, &sweep.valid),
        };
        if found.is_empty() || before.is_some_and(|before| found.is_subset(&before)) {
            errors.extend(chain.gc(&sweep.valid));
            return Ok(errors);
        }
        before = Some(found);
        drop(lock);
        std::thread::sleep(GRACE);
    }
    Err(detailed(
        Code::TryAgain,
        "containers keep coming and going: no plugin was asked to free what belongs to none",
        "try again at a quieter time",
    ))
}

/// What our own plugins would remove, in words. Whatever they cannot tell the real GC
/// reports.
fn search(chain: &Chain<'_>, own: Own<'_>, valid: &[Attachment]) -> BTreeSet<String> {
    let mut collector = Collector::new(Run::Dry);
    if chain.version() >= Version::V1_1_0 {
        ask_all(chain, own, valid, &mut collector);
    }
    let (lines, _) = collector.into_parts();
    let removals = lines.into_iter();
    removals
        .filter(|line| line.starts_with("would remove"))
        .collect()
}

/// Has every plugin of ours tell what it would remove.
fn ask_all(chain: &Chain<'_>, own: Own<'_>, valid: &[Attachment], collector: &mut Collector) {
    for request in chain.gc_requests(valid) {
        let asked = request.and_then(|(step, config)| ask(&step, own, config, collector));
        collector.attempt(asked);
    }
}

/// What plugins would remove, in words, and the errors that the search met.
fn foretell(chain: &Chain<'_>, own: Own<'_>, sweep: &Sweep) -> (Vec<String>, Vec<anyhow::Error>) {
    let mut collector = Collector::new(Run::Dry);
    if let Some(doubt) = sweep.doubt() {
        collector.note(format!("would run no GC: {doubt:#}"));
    } else if chain.version() >= Version::V1_1_0 {
        ask_all(chain, own, &sweep.valid, &mut collector);
    }
    collector.into_parts()
}

impl Document<'_> {
    /// Prints what would be removed, and what would not be, a line for each thing.
    ///
    /// # Errors
    /// Code 5 when stdout is closed or full.
    fn tell(&self, sweep: &Sweep) -> Result<()> {
        let stale = sweep.stale.iter();
        let stale = stale.map(|p| format!("would remove {}", gc::describe(p)));
        let kept = self.kept.iter().map(|valid| {
            let (id, ifname) = (&valid.container_id, &valid.ifname);
            format!("would keep container {id}, interface {ifname}")
        });
        let lines = stale.chain(self.notes.iter().cloned()).chain(kept);
        let lines: Vec<Line> = lines.map(Line::from).collect();
        output::lines(&lines)
    }
}

/// Has the plugin of `step` tell what it would remove, given the configuration of its GC.
/// One that is not ours would remove it: the protocol knows no dry run.
fn ask(step: &Step<'_>, own: Own<'_>, config: Vec<u8>, collector: &mut Collector) -> Result<()> {
    let (name, executable) = (&step.plugin.plugin, &step.executable);
    let Some(plugin) = own.plugin(step) else {
        collector.note(delegate::would_run_foreign(name, executable));
        return Ok(());
    };
    let env = Environment::from([("CNI_PATH".to_owned(), own.path.to_owned())]);
    Call::to_look(Command::Gc, plugin, own.services, &env, config)
        .and_then(|call| plugin.gc(&call, collector))
        .with_context(|| step.failed(Command::Gc))
}
