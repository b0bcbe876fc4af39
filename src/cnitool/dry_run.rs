//! `--dry-run`: what each plugin of a chain would do to an attachment.
//!
//! Our own plugins are asked in this process, and change nothing. What others would do
//! cannot be known: the protocol has no question for it.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

use super::output;
use super::table::Line;
use crate::cni::collector::{Collector, Run};
use crate::cni::invocation::{Attachment, Command, Environment};
use crate::cni::preview::{Preview, Subject};
use crate::cni::result::CniResult;
use crate::cni::skel::{Call, Plugin, Services};
use crate::cni::version::Version;
use crate::cni::{delegate, json};
use crate::net::netlink::Netlink;
use crate::net::netns::{self, Netns};
use crate::net::{addr, link};
use crate::runtime::chain::{Chain, Step};
use crate::runtime::gc;
use crate::runtime::parameters::Parameters;

/// How our own plugins are asked in this process.
#[derive(Clone, Copy)]
pub struct Own<'a> {
    /// Finds them, and what they may ask in turn.
    pub services: Services,
    /// `CNI_PATH` for them.
    pub path: &'a str,
}

impl Own<'_> {
    /// The plugin of `step`, if it is one of ours.
    pub fn plugin(&self, step: &Step<'_>) -> Option<&'static dyn Plugin> {
        delegate::own(
            &step.plugin.plugin,
            &step.executable,
            self.services.plugin_called,
        )
    }
}

/// Prints what an ADD would make, plugin after plugin.
///
/// # Errors
/// Those of ADD that can be foreseen; what comes before is printed.
pub fn add(chain: &Chain<'_>, own: Own<'_>, parameters: &Parameters) -> Result<()> {
    let steps = chain.steps_of_add(parameters)?;
    let mut lines = vec![gc::describe(parameters).into()];
    let done = add_each(chain, &steps, own, parameters, &mut lines);
    if done.is_ok() {
        let file = chain.cache_file(parameters);
        lines.push(format!("would keep the result in {}", file.display()).into());
    }
    output::lines(&lines)?;
    done
}

fn add_each(
    chain: &Chain<'_>,
    steps: &[Step<'_>],
    own: Own<'_>,
    parameters: &Parameters,
    lines: &mut Vec<Line>,
) -> Result<()> {
    let mut result: Option<CniResult> = None;
    // The last plugin whose result cannot be known.
    let mut unknown: Option<&str> = None;
    for step in steps {
        lines.push(headline(step, Command::Add));
        let mut preview = Preview::default();
        let plugin = own.plugin(step);
        let told = match (plugin, &result, unknown) {
            (None, ..) => {
                preview.unknown("it");
                Ok(None)
            }
            (Some(_), None, Some(before)) => {
                let what = format!("this follows from the result of {before}");
                preview.tell(Subject::Note, what);
                Ok(None)
            }
            (Some(plugin), ..) => {
                if let Some(before) = unknown {
                    let what = format!("as if {before} left the result as it was");
                    preview.tell(Subject::Note, what);
                }
                ask(
                    chain,
                    step,
                    plugin,
                    own,
                    parameters,
                    result.as_ref(),
                    &mut preview,
                )
            }
        };
        lines.extend(preview.into_lines().into_iter().map(line));
        match told.with_context(|| step.failed(Command::Add))? {
            Some(known) => result = Some(known),
            None => unknown = Some(&step.plugin.plugin),
        }
    }
    Ok(())
}

/// # Errors
/// Those of the plugin's ADD that can be foreseen.
fn ask(
    chain: &Chain<'_>,
    step: &Step<'_>,
    plugin: &dyn Plugin,
    own: Own<'_>,
    parameters: &Parameters,
    result: Option<&CniResult>,
    preview: &mut Preview,
) -> Result<Option<CniResult>> {
    let prev_result = result.map(|result| result.to_value(chain.version()));
    let config = chain.request_of_add(step, parameters, prev_result.transpose()?.as_ref())?;
    let args = parameters.args_text();
    let env = [
        (
            "CNI_CONTAINERID",
            parameters.attachment.container_id.as_str(),
        ),
        ("CNI_NETNS", parameters.netns.as_str()),
        ("CNI_IFNAME", parameters.attachment.ifname.as_str()),
        ("CNI_ARGS", args.as_str()),
        ("CNI_PATH", own.path),
    ];
    let env = env.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let env = Environment::from(env);
    let call = Call::to_look(Command::Add, plugin, own.services, &env, config)?;
    plugin.preview(&call, preview)
}

/// Prints what a DEL would remove, last plugin first: what a GC that knows of no
/// attachment would remove, and one that knows of this one would not.
///
/// # Errors
/// When a plugin cannot tell.
pub fn del(chain: &Chain<'_>, own: Own<'_>, parameters: &Parameters) -> Result<()> {
    let mut lines = vec![gc::describe(parameters).into()];
    lines.extend(existing_link(parameters)?.map(Line::from));
    let requests = |valid: &[Attachment]| chain.gc_requests(valid);
    let with = requests(std::slice::from_ref(&parameters.attachment));
    let without = requests(&[]);
    for requests in without.into_iter().zip(with).rev() {
        match requests {
            (Ok((step, none)), Ok((_, this))) => {
                lines.push(headline(&step, Command::Del));
                let Some(plugin) = own.plugin(&step) else {
                    lines.push(line((
                        Subject::Note,
                        "it does not tell beforehand what it does".into(),
                    )));
                    continue;
                };
                let kept: BTreeSet<String> = stale(plugin, own, &this)?.into_iter().collect();
                let mut gone = stale(plugin, own, &none)?;
                gone.retain(|what| !kept.contains(what));
                lines.extend(gone.into_iter().map(|what| format!("  {what}").into()));
            }
            (Err(error), _) | (_, Err(error)) => {
                lines.push(format!("cannot run DEL: {error:#}").into());
            }
        }
    }
    let file = chain.cache_file(parameters);
    if file.exists() {
        lines.push(format!("would remove {}", file.display()).into());
    }
    output::lines(&lines)
}

/// What a GC with this configuration would do, in the words of a dry run. Versions before
/// 1.1.0 have no GC, but plugins know how.
fn stale(plugin: &dyn Plugin, own: Own<'_>, config: &[u8]) -> Result<Vec<String>> {
    let mut config = json::parse_object("the request of GC", config)?;
    config.insert("cniVersion".into(), Version::NEWEST.as_str().into());
    let env = Environment::from([("CNI_PATH".to_owned(), own.path.to_owned())]);
    let config = json::compact(&config)?;
    let call = Call::to_look(Command::Gc, plugin, own.services, &env, config)?;
    let mut collector = Collector::new(Run::Dry);
    plugin.gc(&call, &mut collector)?;
    let (lines, errors) = collector.into_parts();
    match errors.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(lines),
    }
}

/// The interface of the attachment, with its addresses, if it is there.
fn existing_link(parameters: &Parameters) -> Result<Option<String>> {
    let (netns, ifname) = (&parameters.netns, &parameters.attachment.ifname);
    if !netns::is_live(netns) {
        return Ok(None);
    }
    let inside = Netlink::open_in(&Netns::open(netns)?)?;
    let Some(link) = link::by_name(&inside, ifname)? else {
        return Ok(None);
    };
    let mut addresses = addr::list(&inside, link.index)?;
    addresses.retain(|address| address.is_global);
    let addresses: Vec<String> = addresses.iter().map(|a| a.net.to_string()).collect();
    let kind = if link.kind.is_empty() {
        String::new()
    } else {
        format!(" ({})", link.kind)
    };
    let with = if addresses.is_empty() {
        " without addresses".to_owned()
    } else {
        format!(" with {}", addresses.join(", "))
    };
    Ok(Some(format!("there is {ifname}{kind}{with}")))
}

/// Prints which plugins would be asked; they change nothing by themselves.
///
/// # Errors
/// Names a plugin that is missing.
pub fn check(chain: &Chain<'_>, parameters: &Parameters) -> Result<()> {
    let mut lines = vec![gc::describe(parameters).into()];
    for step in chain.all_steps(Command::Check)? {
        lines.push(headline(&step, Command::Check));
    }
    output::lines(&lines)
}

fn headline(step: &Step<'_>, command: Command) -> Line {
    let (word, plugin) = (command.as_str(), &step.plugin.plugin);
    let file = Path::new(&step.executable).display();
    format!("would run {word} {plugin} ({file})").into()
}

fn line((subject, what): (Subject, String)) -> Line {
    format!("  {subject:<8} {what}").into()
}
