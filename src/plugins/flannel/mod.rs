//! `flannel`: runs another plugin, as a rule `bridge`, with the subnet that the flannel
//! daemon has got for this node (docs/compatibility.md#10).

mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod scratch;
mod subnet_env;

use anyhow::{Context, Result};
use config::Settings;
use scratch::Scratch;
use serde_json::Value;
use subnet_env::SubnetEnv;

use crate::cni::collector::Collector;
use crate::cni::config::Config;
use crate::cni::delegate;
use crate::cni::error::{Code, coded, not_available};
use crate::cni::invocation::Command;
use crate::cni::json::{self, Object, Problem};
use crate::cni::preview::{Preview, Subject};
use crate::cni::result::CniResult;
use crate::cni::skel::{Call, Delegation, Plugin};
use crate::patience::patiently;
use crate::undo::Undo;
use crate::{fsutil, log};

/// The applet.
#[derive(Debug)]
pub struct Flannel;

impl Plugin for Flannel {
    fn add<'a>(&self, call: &'a Call, undo: &mut Undo<'a>) -> Result<CniResult> {
        let settings = Settings::resolve(call)?;
        let env = SubnetEnv::load(&settings.subnet_file)?;
        let document = settings.delegated(&call.config.network, Some(&env));
        let delegated = Delegated::new(call, document)?;
        // First of all, so that DEL finds it if we are killed from here on.
        Scratch::keep(call, &settings.data_dir, &delegated.document, undo)?;
        // The steps to undo it refer to it, until the process ends.
        let delegated = Box::leak(Box::new(delegated));
        delegate::add(&delegated.call, &delegated.plugin, undo)
    }

    fn del(&self, call: &Call) -> Result<()> {
        let scratch = Scratch::of(call, &config::data_dir(&call.config)?);
        if let Some(kept) = scratch.kept.clone() {
            Delegated::again(call, kept)?.run(Command::Del)?;
        // Mostly there is no file because DEL has been here before. If it is lost, what
        // ADD made is found by its owner, and what is not is no reason to keep a container
        // from being removed.
        } else if let Err(error) =
            Delegated::again(call, rebuilt(call)).and_then(|d| d.run(Command::Del))
        {
            log::warn(&format!(
                "DEL without the configuration that ADD gave to its delegate: {error:#}"
            ));
        }
        // Not before the delegate is done: a runtime that tries again needs it again.
        scratch.remove()
    }

    fn check(&self, call: &Call) -> Result<()> {
        existing(call)?.run(Command::Check)
    }

    fn status(&self, call: &Call) -> Result<()> {
        let settings = Settings::resolve(call)?;
        // The daemon may just be writing it.
        let env = patiently(|| SubnetEnv::load(&settings.subnet_file));
        let env = env.map_err(|error| not_available(&error))?;
        fsutil::check_writable(&settings.data_dir).with_context(|| {
            let dir = settings.data_dir.display();
            let sentence = format!("the delegate's configuration cannot be kept in {dir}");
            coded(Code::NotAvailable, sentence)
        })?;
        let document = settings.delegated(&call.config.network, Some(&env));
        Delegated::again(call, document)?.run(Command::Status)
    }

    fn gc(&self, call: &Call, collector: &mut Collector) -> Result<()> {
        let valid = call.config.valid_attachments()?;
        let collected = Delegated::again(call, rebuilt(call))
            .and_then(|d| delegate::gc(&d.call, &d.plugin, collector));
        collector.attempt(collected);
        let data_dir = config::data_dir(&call.config)?;
        scratch::collect(&data_dir, &call.config.network, &valid, collector);
        Ok(())
    }

    fn missing_rules(&self, call: &Call) -> Result<Vec<String>> {
        let delegated = existing(call)?;
        match (call.services.plugin_called)(&delegated.plugin) {
            Some(plugin) => plugin.missing_rules(&delegated.call),
            None => Ok(Vec::new()),
        }
    }

    fn restore_rules(&self, call: &Call) -> Result<()> {
        let delegated = existing(call)?;
        match (call.services.plugin_called)(&delegated.plugin) {
            Some(plugin) => plugin.restore_rules(&delegated.call),
            None => Ok(()),
        }
    }

    fn preview(&self, call: &Call, preview: &mut Preview) -> Result<Option<CniResult>> {
        let settings = Settings::resolve(call)?;
        let env = SubnetEnv::load(&settings.subnet_file)?;
        let document = settings.delegated(&call.config.network, Some(&env));
        let delegated = Delegated::new(call, document)?;
        let file = Scratch::of(call, &settings.data_dir).path;
        preview.tell(Subject::File, file.display().to_string());
        delegate::preview(&delegated.call, &delegated.plugin, preview)
    }

    fn validate(&self, root: &str, document: &Value) -> Vec<Problem> {
        config::problems(root, document)
    }

    fn delegated(&self, config: Config) -> Option<Config> {
        let settings = Settings::read(&config.document).ok()?;
        let env = SubnetEnv::load(&settings.subnet_file).ok()?;
        let document = settings.delegated(&config.network, Some(&env)).into();
        Some(Config { document, ..config })
    }

    fn delegations(&self, root: &str, document: &Value) -> Vec<Delegation> {
        config::delegations(root, document)
    }
}

/// The delegate, and how it is called.
struct Delegated {
    plugin: String,
    document: Object,
    call: Call,
}

impl Delegated {
    /// A call like ours with the configuration `document`, in the version that we are
    /// spoken to in.
    fn new(call: &Call, mut document: Object) -> Result<Self> {
        json::take(&mut document, "cniVersion");
        document.insert("cniVersion".into(), call.config.version.as_str().into());
        let plugin = document.get("type").and_then(Value::as_str);
        Ok(Self {
            plugin: plugin.unwrap_or_default().to_owned(),
            call: call.with_document(&document)?,
            document,
        })
    }

    /// The same for commands after ADD, with what the runtime passes along then.
    fn again(call: &Call, mut document: Object) -> Result<Self> {
        for key in [
            "prevResult",
            "cni.dev/valid-attachments",
            "cni.dev/attachments",
        ] {
            json::take(&mut document, key);
            // `null` goes along: for GC it is an empty list, and no key is none.
            let mut given = call.config.document.as_object().into_iter().flatten();
            let is_it = |(name, _): &(&String, _)| name.eq_ignore_ascii_case(key);
            if let Some((_, value)) = given.rfind(is_it) {
                document.insert(key.into(), value.clone());
            }
        }
        Self::new(call, document)
    }

    fn run(&self, command: Command) -> Result<()> {
        delegate::run(&self.call, &self.plugin, command)
    }
}

/// The delegate of an attachment that is there.
///
/// # Errors
/// When its configuration is lost, and cannot be made again.
fn existing(call: &Call) -> Result<Delegated> {
    let settings = Settings::resolve(call)?;
    let document = if let Some(kept) = Scratch::of(call, &settings.data_dir).kept {
        kept
    } else {
        let env = SubnetEnv::load(&settings.subnet_file)?;
        settings.delegated(&call.config.network, Some(&env))
    };
    Delegated::again(call, document)
}

/// The delegate's configuration as it would be now, as far as it can be told: enough to
/// find what belongs to the network.
fn rebuilt(call: &Call) -> Object {
    let told = |error: anyhow::Error| log::warn(&format!("{error:#}"));
    let settings = Settings::resolve(call).unwrap_or_else(|error| {
        told(error);
        Settings::usual()
    });
    let env = SubnetEnv::load(&settings.subnet_file);
    settings.delegated(&call.config.network, env.ok().as_ref())
}
