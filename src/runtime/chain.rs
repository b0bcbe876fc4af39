//! Running the plugins of a network in their order (specification section 3).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use super::cache::{self, Cache, Cached};
use super::network::{Network, PluginConfiguration};
use super::parameters::Parameters;
use super::request::{self, Additions};
use crate::cni::delegate::read_result;
use crate::cni::error::{Code, coded, detailed};
use crate::cni::invocation::{Attachment, Command, LOG_VARIABLE, check_file_name};
use crate::cni::result::CniResult;
use crate::cni::version::Version;
use crate::cni::{exec, json};
use crate::net::link;
use crate::net::netlink::Netlink;
use crate::net::netns::{self, Netns};
use crate::shell::shell;

/// Hears what goes on.
pub trait Observer {
    /// A plugin is about to be run.
    fn starts(&self, call: &PluginCall<'_>);
    /// It has ended, with what it printed.
    fn ended(&self, call: &PluginCall<'_>, outcome: &Result<Vec<u8>>, took: Duration);
    /// Something the operator should know that is no error.
    fn note(&self, text: &str);
    /// The file in which plugins are to tell of their steps, if any is wanted.
    fn journal(&self) -> Option<&Path>;
}

/// One run of one plugin.
#[derive(Debug)]
pub struct PluginCall<'a> {
    /// What it is asked to do.
    pub command: Command,
    /// Its type.
    pub plugin: &'a str,
    /// The file that is run.
    pub executable: &'a Path,
    /// Its configuration.
    pub stdin: &'a [u8],
}

/// What stays the same from network to network.
pub struct Runtime<'a> {
    /// `CNI_PATH`: directories separated by colons.
    pub path: String,
    /// Where results are kept.
    pub cache: Cache,
    /// Who hears of it all.
    pub observer: &'a dyn Observer,
}

/// A network in a version that we speak.
pub struct Chain<'a> {
    runtime: &'a Runtime<'a>,
    network: &'a Network,
    version: Version,
}

/// A plugin of the network whose executable has been found.
pub struct Step<'a> {
    /// As configured.
    pub plugin: &'a PluginConfiguration,
    /// The file to run.
    pub executable: PathBuf,
}

impl Step<'_> {
    /// What libcni says around a plugin's error.
    pub fn failed(&self, command: Command) -> String {
        self.plugin.failed(command)
    }
}

/// What becomes of an attachment whose ADD fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// DEL of every plugin, in reverse order.
    RollBack,
    /// Nothing: the operator wants to look at it.
    Leave,
}

impl Runtime<'_> {
    /// The plugins of `network`, ready to be looked up and run.
    ///
    /// # Errors
    /// Code 1 for a version we do not speak.
    pub fn chain<'a>(&'a self, network: &'a Network) -> Result<Chain<'a>> {
        Ok(Chain {
            runtime: self,
            network,
            version: network.version()?,
        })
    }
}

/// The executable of `plugin`.
///
/// # Errors
/// Says where was looked, and which plugin there is called nearly so.
pub fn find(plugin: &str, directories: &[PathBuf]) -> Result<PathBuf> {
    exec::find(plugin, directories).map_err(|error| {
        let there: Vec<String> = directories
            .iter()
            .filter_map(|directory| std::fs::read_dir(directory).ok())
            .flatten()
            .flatten()
            .filter(|entry| entry.path().is_file())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        match json::nearest(plugin, there.iter().map(String::as_str)) {
            Some(nearest) if nearest != plugin => {
                anyhow!("did you mean \"{nearest}\"?").context(error)
            }
            _ => error,
        }
    })
}

/// Whoever made an interface that is there already, the DEL after a failed ADD would
/// remove it. A namespace that is none is the plugins' to judge.
fn refuse_existing_interface(parameters: &Parameters) -> Result<()> {
    let (netns, ifname) = (&parameters.netns, &parameters.attachment.ifname);
    // `lo` is in every namespace, and nothing removes it.
    if ifname == "lo" || !netns::is_live(netns) {
        return Ok(());
    }
    let inside = Netlink::open_in(&Netns::open(netns)?)?;
    let Some(link) = link::by_name(&inside, ifname)? else {
        return Ok(());
    };
    let del = shell!["cnitool", "del", "NETWORK", netns];
    Err(detailed(
        Code::Config,
        format!("interface {ifname} exists in {netns} already"),
        format!(
            "{}choose another --ifname, or remove the attachment it belongs to: {del}",
            if link.kind.is_empty() {
                String::new()
            } else {
                format!("it is a {}; ", link.kind)
            }
        ),
    ))
}

impl Chain<'_> {
    /// The plugins in the order of `command`; an error for each whose executable is
    /// missing. That must stop nobody from removing what the others have made.
    pub fn steps(&self, command: Command) -> Vec<Result<Step<'_>>> {
        let directories: Vec<PathBuf> = std::env::split_paths(&self.runtime.path).collect();
        let plugins = self.network.plugins.iter();
        let mut steps: Vec<_> = plugins
            .map(|plugin| {
                let found = find(&plugin.plugin, &directories);
                let executable = match command {
                    // The plugin's name is in the error, and DEL's preview asks this way too.
                    Command::Gc => found?,
                    _ => found.with_context(|| plugin.failed(command))?,
                };
                Ok(Step { plugin, executable })
            })
            .collect();
        if command == Command::Del {
            steps.reverse();
        }
        steps
    }

    /// The plugins in the order of `command`.
    ///
    /// # Errors
    /// Names a plugin that is missing, and where was looked.
    pub fn all_steps(&self, command: Command) -> Result<Vec<Step<'_>>> {
        self.steps(command).into_iter().collect()
    }

    /// The version in which results come.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Makes the attachment, remembers its result and lets `deliver` pass it on: an ADD of
    /// which nobody hears has failed. Nothing runs unless every plugin is there and the
    /// interface is not.
    ///
    /// # Errors
    /// The failing plugin's, unchanged inside, or that of `deliver`; what was made is then
    /// removed again if `on_failure` says so. An attachment made before is left alone.
    pub fn add(
        &self,
        parameters: &Parameters,
        on_failure: OnFailure,
        deliver: impl FnOnce(&CniResult) -> Result<()>,
    ) -> Result<CniResult> {
        let steps = self.steps_of_add(parameters)?;
        let before = self.cached(parameters);
        let (is_made, error) = match self.add_each(&steps, parameters) {
            Ok(result) => match deliver(&result) {
                Ok(()) => return Ok(result),
                Err(error) => (true, error),
            },
            Err(error) => (false, error),
        };
        let note = |text: &str| self.runtime.observer.note(text);
        match (on_failure, before) {
            (OnFailure::Leave, _) => note("ADD failed: what it made so far is left as it is"),
            (OnFailure::RollBack, Cached::Nothing) if is_made => {
                note("the result of ADD reached nobody: removing what it made (DEL)");
                if let Err(error) = self.del(parameters) {
                    note(&format!("{error:#}"));
                }
            }
            (OnFailure::RollBack, Cached::Nothing) => {
                note("ADD failed: removing what it made so far (DEL of every plugin)");
                self.roll_back(&steps, parameters);
            }
            (OnFailure::RollBack, Cached::Broken(error)) => note(&format!(
                "ADD failed: this attachment may have existed before and is left as it is \
                 ({error:#}); to remove it, run: cnitool del"
            )),
            (OnFailure::RollBack, _) => note(
                "ADD failed: this attachment existed before and is left as it is; \
                 to remove it, run: cnitool del",
            ),
        }
        Err(error)
    }

    /// The plugins that ADD runs, in their order.
    ///
    /// # Errors
    /// When ADD would run none of them.
    pub fn steps_of_add(&self, parameters: &Parameters) -> Result<Vec<Step<'_>>> {
        check_file_name(&cache::file_name(
            &self.network.name,
            &parameters.attachment,
        ))?;
        let steps = self.all_steps(Command::Add)?;
        refuse_existing_interface(parameters)?;
        match self.cached(parameters) {
            Cached::Foreign(network, owner) => Err(self.occupied(parameters, &network, &owner)),
            _ => Ok(steps),
        }
    }

    /// What ADD would send to the plugin of `step` after this result.
    ///
    /// # Errors
    /// None that a configuration can cause.
    pub fn request_of_add(
        &self,
        step: &Step<'_>,
        parameters: &Parameters,
        prev_result: Option<&Value>,
    ) -> Result<Vec<u8>> {
        let additions = Additions {
            prev_result,
            capability_args: Some(&parameters.capability_args),
            ..Additions::default()
        };
        request::encode(self.network, step.plugin, additions)
    }

    /// Where the result of this attachment is kept.
    pub fn cache_file(&self, parameters: &Parameters) -> PathBuf {
        let (cache, name) = (&self.runtime.cache, &self.network.name);
        cache.file(name, &parameters.attachment)
    }

    fn add_each(&self, steps: &[Step<'_>], parameters: &Parameters) -> Result<CniResult> {
        let mut result = CniResult::default();
        let mut prev_result = None;
        for step in steps {
            result = self
                .add_one(step, parameters, prev_result.as_ref())
                .with_context(|| step.failed(Command::Add))?;
            let value = result
                .to_value(self.version)
                .with_context(|| step.failed(Command::Add))?;
            prev_result = Some(value);
        }
        let value = prev_result.unwrap_or_default();
        self.runtime.cache.write(self.network, parameters, &value)?;
        Ok(result)
    }

    fn add_one(
        &self,
        step: &Step<'_>,
        parameters: &Parameters,
        prev_result: Option<&Value>,
    ) -> Result<CniResult> {
        let additions = Additions {
            prev_result,
            ..Additions::default()
        };
        let printed = self.call(step, Command::Add, Some(parameters), additions)?;
        read_result(&step.plugin.plugin, &printed, self.version)
    }

    fn roll_back(&self, steps: &[Step<'_>], parameters: &Parameters) {
        for step in steps.iter().rev() {
            let undone = self.call(step, Command::Del, Some(parameters), Additions::default());
            if let Err(error) = undone {
                let text = format!("{}: {error:#}", step.failed(Command::Del));
                self.runtime.observer.note(&text);
            }
        }
    }

    fn occupied(
        &self,
        parameters: &Parameters,
        network: &str,
        owner: &Attachment,
    ) -> anyhow::Error {
        let file = self.cache_file(parameters);
        detailed(
            Code::Config,
            format!("the result cache {} is in use", file.display()),
            format!(
                "it belongs to container {}, interface {} of network {network}; choose another --id",
                owner.container_id, owner.ifname
            ),
        )
    }

    /// Removes the attachment, last plugin first, and forgets its result. An unreadable
    /// result is no reason to stop.
    ///
    /// # Errors
    /// The first plugin's that fails; those before it in the list are then not run. A
    /// plugin that is missing is an error when all others have been run.
    pub fn del(&self, parameters: &Parameters) -> Result<()> {
        let cached = self.cached(parameters);
        let prev_result = self.prev_result(&cached)?;
        let mut missing = Ok(());
        for step in self.steps(Command::Del) {
            let step = match step {
                Ok(step) => step,
                Err(error) => {
                    missing = Err(error);
                    continue;
                }
            };
            let additions = Additions {
                prev_result: prev_result.as_ref(),
                ..Additions::default()
            };
            self.call(&step, Command::Del, Some(parameters), additions)
                .with_context(|| step.failed(Command::Del))?;
        }
        missing?;
        if !matches!(cached, Cached::Foreign(..)) {
            let (cache, name) = (&self.runtime.cache, &self.network.name);
            if let Err(error) = cache.remove(name, &parameters.attachment) {
                self.runtime.observer.note(&format!("{error:#}"));
            }
        }
        Ok(())
    }

    /// Asks every plugin whether the attachment is as the cached result says.
    ///
    /// # Errors
    /// The first plugin's that fails, or that the version has no CHECK.
    pub fn check(&self, parameters: &Parameters) -> Result<()> {
        if self.version < Version::V0_4_0 {
            return Err(coded(
                Code::IncompatibleVersion,
                format!(
                    "configuration version \"{}\" does not support the CHECK command",
                    self.network.cni_version
                ),
            )
            .into());
        }
        if self.network.disable_check {
            self.runtime
                .observer
                .note("disableCheck is set: no plugin was asked");
            return Ok(());
        }
        let steps = self.all_steps(Command::Check)?;
        let prev_result = self.prev_result(&self.cached(parameters))?;
        for step in &steps {
            let additions = Additions {
                prev_result: prev_result.as_ref(),
                ..Additions::default()
            };
            self.call(step, Command::Check, Some(parameters), additions)
                .with_context(|| step.failed(Command::Check))?;
        }
        Ok(())
    }

    /// Asks every plugin whether it could serve an ADD.
    ///
    /// # Errors
    /// The first plugin's that could not.
    pub fn status(&self) -> Result<()> {
        if self.version < Version::V1_1_0 {
            let version = self.version;
            self.runtime.observer.note(&format!(
                "cniVersion {version} has no STATUS: no plugin was asked"
            ));
            return Ok(());
        }
        for step in &self.all_steps(Command::Status)? {
            self.call(step, Command::Status, None, Additions::default())
                .with_context(|| step.failed(Command::Status))?;
        }
        Ok(())
    }

    /// What [`Self::gc`] would send to every plugin; an error for each that is missing.
    pub fn gc_requests(&self, valid: &[Attachment]) -> Vec<Result<(Step<'_>, Vec<u8>)>> {
        let additions = Additions {
            valid_attachments: Some(valid),
            ..Additions::default()
        };
        let steps = self.steps(Command::Gc).into_iter();
        let request = |step: Result<_>| {
            let step: Step<'_> = step?;
            let config = request::encode(self.network, step.plugin, additions)?;
            Ok((step, config))
        };
        steps.map(request).collect()
    }

    /// Tells every plugin which attachments live; whatever else belongs to the network
    /// goes. Versions before 1.1.0 have no GC: nothing is run.
    ///
    /// # Errors
    /// Those of all plugins that failed or are missing; every other one is run.
    pub fn gc(&self, valid: &[Attachment]) -> Vec<anyhow::Error> {
        if self.version < Version::V1_1_0 {
            return Vec::new();
        }
        let additions = Additions {
            valid_attachments: Some(valid),
            ..Additions::default()
        };
        let run = |step: Result<Step<'_>>| {
            let step = step?;
            self.call(&step, Command::Gc, None, additions)
                .with_context(|| step.failed(Command::Gc))
        };
        let steps = self.steps(Command::Gc).into_iter();
        steps.filter_map(|step| run(step).err()).collect()
    }

    fn cached(&self, parameters: &Parameters) -> Cached {
        self.runtime
            .cache
            .find(&self.network.name, &parameters.attachment, self.version)
    }

    /// DEL and CHECK get the final result since 0.4.0.
    fn prev_result(&self, cached: &Cached) -> Result<Option<Value>> {
        match cached {
            Cached::Result(result) if self.version >= Version::V0_4_0 => {
                result.to_value(self.version).map(Some)
            }
            Cached::Broken(error) => {
                let text = format!("going on without the cached result: {error:#}");
                self.runtime.observer.note(&text);
                Ok(None)
            }
            Cached::Result(_) | Cached::Nothing | Cached::Foreign(..) => Ok(None),
        }
    }

    fn call(
        &self,
        step: &Step<'_>,
        command: Command,
        parameters: Option<&Parameters>,
        additions: Additions<'_>,
    ) -> Result<Vec<u8>> {
        let additions = Additions {
            capability_args: parameters.map(|p| &p.capability_args),
            ..additions
        };
        let stdin = request::encode(self.network, step.plugin, additions)?;
        let attachment = parameters.map(|p| &p.attachment);
        let args = parameters.map(Parameters::args_text).unwrap_or_default();
        // These six are always set, so that none of our own environment shines through.
        let mut env = vec![
            ("CNI_COMMAND", command.as_str()),
            (
                "CNI_CONTAINERID",
                attachment.map_or("", |a| a.container_id.as_str()),
            ),
            ("CNI_NETNS", parameters.map_or("", |p| p.netns.as_str())),
            ("CNI_ARGS", args.as_str()),
            ("CNI_IFNAME", attachment.map_or("", |a| a.ifname.as_str())),
            ("CNI_PATH", self.runtime.path.as_str()),
        ];
        let journal = self.runtime.observer.journal().and_then(Path::to_str);
        env.extend(journal.map(|file| (LOG_VARIABLE, file)));
        let call = PluginCall {
            command,
            plugin: &step.plugin.plugin,
            executable: &step.executable,
            stdin: &stdin,
        };
        self.runtime.observer.starts(&call);
        let start = Instant::now();
        let outcome = exec::run(&step.executable, &env, &stdin);
        self.runtime
            .observer
            .ended(&call, &outcome, start.elapsed());
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_missing_plugin_is_named_with_what_it_may_have_been() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("bridge"), "").unwrap();
        let path = [dir.path().to_owned()];
        let error = format!("{:#}", find("brigde", &path).unwrap_err());
        assert_eq!(
            error,
            format!(
                "failed to find plugin \"brigde\" in path [{}]: did you mean \"bridge\"?",
                dir.path().display()
            )
        );
        assert!(find("../bridge", &path).is_err());
        assert!(find("bridge", &path).is_ok());
    }
}
