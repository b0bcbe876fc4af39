//! One CNI call: environment and stdin in, one JSON document out.
//!
//! Order of processing: docs/compatibility.md#1.3; except that what the reference checks after the
//! work (is the container's namespace our own?) is checked before it.

use std::io::{Read, StdinLock, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::fcntl::{SpliceFFlags, tee};
use nix::poll::{PollFd, PollFlags, poll};
use serde::Serialize;
use serde_json::Value;

use super::collector::{Collector, Run};
use super::config::{Config, Document, without_bom};
use super::error::{Code, ErrorObject, coded};
use super::invocation::{
    Attachment, Command, Environment, Invocation, LOG_VARIABLE, unknown_command,
};
use super::json::{self, Object, Problem};
use super::pool::Pool;
use super::preview::Preview;
use super::result::CniResult;
use super::version::Version;
use crate::journal::{Journal, Outcome};
use crate::undo::Undo;
use crate::{fsutil, log};

/// The level of the reference plugins that our behaviour matches. Nomad and nerdctl
/// schedule by it.
const COMPATIBLE_WITH: &str = "1.9.1";

/// What an applet does for each command. Nothing is left out by default: a plugin that
/// has nothing to do for a command says so.
pub trait Plugin: Sync {
    /// The versions it speaks, oldest first.
    fn versions(&self) -> &'static [Version] {
        &Version::ALL
    }

    /// Makes the attachment. Whatever it makes goes on `undo` too: the caller commits
    /// once the result has been handed over.
    ///
    /// # Errors
    /// Any; everything made so far is then undone.
    fn add<'a>(&self, call: &'a Call, undo: &mut Undo<'a>) -> Result<CniResult>;

    /// Removes the attachment; what is already gone is no error.
    ///
    /// # Errors
    /// Only when something still exists and could not be removed.
    fn del(&self, call: &Call) -> Result<()>;

    /// Compares the attachment with `prevResult`.
    ///
    /// # Errors
    /// What differs: expected and found.
    fn check(&self, call: &Call) -> Result<()>;

    /// Says whether ADD could be served now.
    ///
    /// # Errors
    /// Code 50 and the reason.
    fn status(&self, call: &Call) -> Result<()>;

    /// Tells `collector` of all that belongs to this network and to no valid attachment,
    /// and how it goes.
    ///
    /// # Errors
    /// When it cannot be told what is stale. What goes wrong after that is the
    /// collector's to keep, and stops nothing.
    fn gc(&self, call: &Call, collector: &mut Collector) -> Result<()>;

    /// Describes what ADD would do, and answers what it would; `None` where that cannot
    /// be known. Nothing is changed.
    ///
    /// # Errors
    /// Those of ADD that can be foreseen.
    fn preview(&self, _call: &Call, preview: &mut Preview) -> Result<Option<CniResult>> {
        preview.unknown("this plugin");
        Ok(None)
    }

    /// What is missing of the packet filter rules that ADD made, each as the command that
    /// would add it. `call` is that of CHECK, at any version of the specification.
    ///
    /// # Errors
    /// When the kernel refuses to tell, or there is no such attachment.
    fn missing_rules(&self, _call: &Call) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Makes these rules as ADD does, in place of any that are there, and in front of
    /// those of other attachments. Nothing else is touched. `call` is that of CHECK, at
    /// any version.
    ///
    /// # Errors
    /// When the kernel refuses, or there is no such attachment.
    fn restore_rules(&self, _call: &Call) -> Result<()> {
        Ok(())
    }

    /// The configuration in which to look for `ipam`, given one of this plugin: another one
    /// where it runs a delegate with a configuration that it makes, or `None` where that
    /// cannot be made now.
    fn delegated(&self, config: Config) -> Option<Config> {
        Some(config)
    }

    /// The bridge that a configuration of this plugin connects containers to.
    fn bridge_name(&self, _document: &Object) -> Option<String> {
        None
    }

    /// Whether a configuration of this plugin has the addresses of containers masqueraded.
    fn masquerades(&self, _document: &Object) -> bool {
        false
    }

    /// The VLANs that the port of a container must be a member of; `None` where that is the
    /// bridge's to say.
    ///
    /// # Errors
    /// Code 7 for a configuration that cannot be read.
    fn port_vlans(&self, _config: &Config) -> Result<Option<PortVlans>> {
        Ok(None)
    }

    /// The pools of addresses that `configs` describe, and those of all other networks that
    /// have left leases in the same directories or the usual one; and in words what could
    /// not be read.
    fn pools(&self, _configs: &[Config]) -> (Vec<Pool>, Vec<String>) {
        (Vec::new(), Vec::new())
    }

    /// The network and the attachment of each address that this plugin's rules let through
    /// without naming them.
    ///
    /// # Errors
    /// When the records cannot be read.
    fn address_owners(&self) -> Result<Vec<(IpAddr, String, Attachment)>> {
        Ok(Vec::new())
    }

    /// Everything wrong with a configuration, for `cnitool validate`. `root` is its path
    /// in the file.
    fn validate(&self, root: &str, document: &Value) -> Vec<Problem>;

    /// The plugins that this one runs: `cnitool validate` asks them too. Arguments as for
    /// [`Self::validate`].
    fn delegations(&self, root: &str, document: &Value) -> Vec<Delegation> {
        Delegation::to_ipam(root, document).into_iter().collect()
    }
}

/// The VLANs of a port of a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortVlans {
    /// The one that frames without a tag are of.
    pub untagged: Option<u16>,
    /// Those whose frames have a tag.
    pub tagged: Vec<u16>,
    /// Whether the port stays in the VLAN that the bridge gives every new port.
    pub keeps_default: bool,
}

/// That a plugin runs another one, and with which configuration.
#[derive(Debug)]
pub struct Delegation {
    /// The delegate.
    pub plugin: String,
    /// The path of the key that says so.
    pub key: String,
    /// The path of what `document` is made of.
    pub root: String,
    /// What the delegate gets.
    pub document: Value,
    /// Whether the delegate knows the keys of `ipam` only, or all others.
    pub is_ipam: bool,
}

impl Delegation {
    /// What most plugins do: they run `ipam.type` with the configuration that they got.
    pub fn to_ipam(root: &str, document: &Value) -> Option<Self> {
        let plugin = json::member(document, &["ipam", "type"])?;
        Some(Self {
            plugin: plugin.as_str().filter(|name| !name.is_empty())?.to_owned(),
            key: json::below(root, "ipam.type"),
            root: root.to_owned(),
            document: document.clone(),
            is_ipam: true,
        })
    }
}

/// Finds one of our own plugins by a name.
pub type Applets = fn(&str) -> Option<&'static dyn Plugin>;

/// Returns the path of the namespace that the runtime's cache records for an attachment to the
/// network of this name: empty if the runtime gave none, `None` if the cache has no readable
/// entry.
pub type RememberedNetns = fn(&str, &Attachment) -> Option<String>;

/// What a plugin may ask beyond its call. The plugins themselves know neither each other nor
/// the runtime.
#[derive(Debug, Clone, Copy)]
pub struct Services {
    /// Our own plugin of exactly this name.
    pub plugin: Applets,
    /// Our own plugin that a file of this name runs, as in `buildkit-cni-host-local`: where
    /// `CNI_PATH` leads back to this binary, a delegate needs no process.
    pub plugin_called: Applets,
    /// The namespace that the runtime's cache records.
    pub remembered_netns: RememberedNetns,
}

impl Services {
    /// The same services, with plugins found by their exact names only: for callers that do
    /// not check that the file is this binary.
    #[must_use]
    pub fn exact(self) -> Self {
        Self {
            plugin_called: self.plugin,
            ..self
        }
    }

    /// Services that know of nothing.
    #[cfg(any(test, fuzzing))]
    pub fn none() -> Self {
        Self {
            plugin: |_| None,
            plugin_called: |_| None,
            remembered_netns: |_, _| None,
        }
    }
}

/// One call of one plugin.
#[derive(Debug, Clone)]
pub struct Call {
    /// What came in the environment.
    pub invocation: Invocation,
    /// What came on stdin, its version already agreed on.
    pub config: Config,
    /// Whom the plugin may ask.
    pub services: Services,
    /// How many of our own plugins have delegated to get here.
    pub depth: u8,
}

impl Call {
    /// A call of one of our own plugins outside of its process, for a look at what that
    /// would do.
    ///
    /// # Errors
    /// As the plugin's own process would answer.
    pub fn to_look(
        command: Command,
        plugin: &dyn Plugin,
        services: Services,
        env: &Environment,
        config: Vec<u8>,
    ) -> Result<Self> {
        let mut invocation = Invocation::parse(command, env)?;
        let config = Document::parse(config)?.negotiate(command, plugin.versions())?;
        guard_own_namespace(&mut invocation)?;
        Ok(Self {
            invocation,
            config,
            services,
            depth: 0,
        })
    }
}

impl Call {
    /// This call of a plugin that gets `document` instead. Its version has not been agreed
    /// on with the plugin; [`Config::allow`] does that.
    ///
    /// # Errors
    /// Code 6 or 7 for a document that is no configuration, 1 for its version.
    pub fn with_document(&self, document: &Object) -> Result<Self> {
        let raw = json::compact(document)?;
        Ok(Self {
            // Unlike some commands, DEL is of every version.
            config: Document::parse(raw)?.negotiate(Command::Del, &Version::ALL)?,
            ..self.clone()
        })
    }
}

#[cfg(any(test, fuzzing))]
impl Call {
    /// An ADD with this configuration and these `CNI_ARGS`, for trying what plugins
    /// make of them.
    pub fn to_add(config: &str, args: &str) -> Result<Self> {
        let env = [
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
            ("CNI_ARGS", args),
        ];
        let env = env.map(|(key, value)| (key.to_owned(), value.to_owned()));
        Ok(Self {
            invocation: Invocation::parse(Command::Add, &Environment::from(env))?,
            config: Document::parse(config.as_bytes().to_vec())?
                .negotiate(Command::Add, &Version::ALL)?,
            services: Services::none(),
            depth: 0,
        })
    }
}

/// Standard input, or what stands for it in a test.
pub trait Input: Read {
    /// What has been sent so far, without taking it away.
    fn peek(&self) -> Vec<u8>;
}

impl Input for &[u8] {
    fn peek(&self) -> Vec<u8> {
        self.to_vec()
    }
}

impl Input for StdinLock<'_> {
    /// Runtimes send through a pipe; only there something can be looked at and left for
    /// whoever reads it next, and an idle one is not waited for.
    fn peek(&self) -> Vec<u8> {
        /// Milliseconds that a runtime has to start writing.
        const PATIENCE: u8 = 20;
        /// Bytes; a pipe holds no more.
        const MOST: usize = 64 * 1024;
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        let mut sent = Vec::new();
        if poll(&mut fds, PATIENCE).is_ok_and(|ready| ready > 0)
            && let Ok((mut copy, into)) = std::io::pipe()
            && tee(self, &into, MOST, SpliceFFlags::SPLICE_F_NONBLOCK).is_ok()
        {
            drop(into);
            drop(copy.read_to_end(&mut sent));
        }
        sent
    }
}

/// Standard output without a buffer: std's holds back what stands after the last line
/// break, and would print it in front of the error that says it could not be written.
pub struct Stdout;

impl Write for Stdout {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the door of the protocol"
    )]
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(nix::unistd::write(std::io::stdout(), bytes)?)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Serves one call: the whole life of a plugin process.
pub fn main(
    name: &str,
    plugin: &'static dyn Plugin,
    services: Services,
    env: &Environment,
    stdin: &mut dyn Input,
    stdout: &mut dyn Write,
) -> ExitCode {
    let Some(word) = env.get("CNI_COMMAND").filter(|word| !word.is_empty()) else {
        about(name, plugin);
        return ExitCode::SUCCESS;
    };
    let journal = Journal::begin(env.get(LOG_VARIABLE).map(String::as_str));
    let mut session = Session {
        plugin,
        services,
        stdout,
        cni_version: String::new(),
        network: String::new(),
    };
    let served = session.serve(word, env, stdin);
    if let Err(error) = &served {
        session.report(error);
    }
    if let Some(journal) = journal {
        let variable = |name: &str| env.get(name).map_or("", String::as_str);
        journal.finish(Outcome {
            applet: name,
            command: variable("CNI_COMMAND"),
            network: &session.network,
            container: variable("CNI_CONTAINERID"),
            interface: variable("CNI_IFNAME"),
            netns: variable("CNI_NETNS"),
            printed: served.as_deref().map_err(|error| {
                serde_json::to_value(ErrorObject::from_error(error)).unwrap_or_default()
            }),
        });
    }
    match served {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// What is printed when nobody asks for anything; the first two lines are parsed by
/// runtimes (docs/requirements.md#r-12).
fn about(name: &str, plugin: &dyn Plugin) {
    let versions: Vec<&str> = plugin.versions().iter().map(|v| v.as_str()).collect();
    let text = format!(
        "CNI {name} plugin v{COMPATIBLE_WITH}\n\
         CNI protocol versions supported: {}\n\
         cnibox {}\n",
        versions.join(", "),
        env!("CARGO_PKG_VERSION"),
    );
    log::page(&text);
}

struct Session<'a> {
    plugin: &'static dyn Plugin,
    services: Services,
    stdout: &'a mut dyn Write,
    /// As the caller wrote it, for the error object.
    cni_version: String,
    /// For the journal; empty as long as it is not known.
    network: String,
}

impl Session<'_> {
    /// Answers what has been printed.
    fn serve(&mut self, word: &str, env: &Environment, stdin: &mut dyn Input) -> Result<Vec<u8>> {
        let command = Command::exact(word);
        if command == Some(Command::Version) {
            let answer = versions(stdin, self.plugin.versions())?;
            self.print(&answer)?;
            return Ok(answer);
        }
        let invocation = command
            .map(|command| Invocation::parse(command, env))
            .transpose()?;
        let mut raw = Vec::new();
        stdin.read_to_end(&mut raw).map_err(|error| {
            let reason = fsutil::in_words(&error);
            coded(Code::Io, format!("error reading from stdin: {reason}"))
        })?;
        let document = Document::parse(raw)?;
        document.cni_version().clone_into(&mut self.cni_version);
        let Some(mut invocation) = invocation else {
            return Err(unknown_command(word).into());
        };
        let config = document.negotiate(invocation.command, self.plugin.versions())?;
        guard_own_namespace(&mut invocation)?;
        let call = Call {
            invocation,
            config,
            services: self.services,
            depth: 0,
        };
        self.network.clone_from(&call.config.network);
        if call.invocation.command != Command::Add {
            return dispatch(self.plugin, &call).map(|()| Vec::new());
        }
        let mut undo = Undo::default();
        let result = self.plugin.add(&call, &mut undo)?;
        // Only a result that the runtime has received counts as an ADD.
        let answer = json::pretty(&result.to_wire(call.config.version)?)?;
        self.print(&answer)?;
        undo.commit();
        Ok(answer)
    }

    fn print(&mut self, bytes: &[u8]) -> Result<()> {
        self.stdout
            .write_all(bytes)
            .and_then(|()| self.stdout.flush())
            .context(coded(Code::Io, "write the answer to stdout"))
    }

    fn report(&mut self, error: &anyhow::Error) {
        let mut object = ErrorObject::from_error(error);
        if object.cni_version.is_empty() {
            object.cni_version.clone_from(&self.cni_version);
        }
        let printed = json::pretty(&object).and_then(|bytes| self.print(&bytes));
        if printed.is_err() {
            log::warn(&format!("{error:#}"));
        }
    }
}

/// The answer to VERSION of a plugin that speaks `supported`. It insists on nothing, as the
/// reference: stdin is not read, only looked at for the version to echo.
///
/// # Errors
/// None that are known of.
pub fn versions(stdin: &dyn Input, supported: &[Version]) -> Result<Vec<u8>> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Versions {
        cni_version: &'static str,
        supported_versions: Vec<&'static str>,
    }
    let asked = echo_version(stdin);
    let versions = Versions {
        cni_version: asked.unwrap_or(Version::NEWEST).as_str(),
        supported_versions: supported.iter().map(|v| v.as_str()).collect(),
    };
    let mut line = json::compact(&versions)?;
    line.push(b'\n');
    Ok(line)
}

/// The version in the configuration that a runtime may send along with VERSION.
fn echo_version(stdin: &dyn Input) -> Option<Version> {
    let sent = stdin.peek();
    let mut object = json::parse_fields("stdin", without_bom(&sent)).ok()?;
    match json::take(&mut object, "cniVersion")? {
        Value::String(text) => Version::exact(&text),
        _ => None,
    }
}

/// Runs one of the commands that answer nothing.
///
/// # Errors
/// The plugin's.
pub fn dispatch(plugin: &dyn Plugin, call: &Call) -> Result<()> {
    match call.invocation.command {
        Command::Del => plugin.del(call),
        Command::Check => plugin.check(call),
        Command::Status => plugin.status(call),
        Command::Gc => {
            let mut collector = Collector::new(Run::Real);
            let done = plugin.gc(call, &mut collector);
            collector.attempt(done);
            collector.finish()
        }
        // Both have an answer and are served above.
        Command::Add | Command::Version => Ok(()),
    }
}

/// A stale `CNI_NETNS` can point at the host's own namespace, where a plugin would
/// configure or delete the host's interfaces. ADD and CHECK are refused. For DEL the
/// container's namespace is simply gone: what is left on the host is cleaned up.
fn guard_own_namespace(invocation: &mut Invocation) -> Result<()> {
    let Some(netns) = invocation.netns.as_deref() else {
        return Ok(());
    };
    if invocation.netns_override || !is_own_namespace(netns) {
        return Ok(());
    }
    match invocation.command {
        Command::Add | Command::Check => Err(anyhow::anyhow!(
            "CNI_NETNS {netns} is the namespace this plugin runs in; \
             set CNI_NETNS_OVERRIDE=1 if that is what you want"
        )
        .context(coded(
            Code::Netns,
            "plugin's netns and netns from CNI_NETNS should not be the same",
        ))),
        Command::Del => {
            log::warn(&format!(
                "CNI_NETNS {netns} is the host's own namespace: nothing in it is touched"
            ));
            invocation.netns = None;
            Ok(())
        }
        Command::Gc | Command::Status | Command::Version => Ok(()),
    }
}

/// Whether the path leads to the namespace of this process.
pub fn is_own_namespace(netns: &str) -> bool {
    // The thread that started this process is in it.
    fsutil::is_same_file(Path::new("/proc/self/ns/net"), Path::new(netns))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers ADD with nothing and everything else with success.
    struct Nothing;

    impl Plugin for Nothing {
        fn add<'a>(&self, _call: &'a Call, _undo: &mut Undo<'a>) -> Result<CniResult> {
            Ok(CniResult::default())
        }
        fn del(&self, _call: &Call) -> Result<()> {
            Ok(())
        }
        fn check(&self, _call: &Call) -> Result<()> {
            Ok(())
        }
        fn status(&self, _call: &Call) -> Result<()> {
            Ok(())
        }
        fn gc(&self, _call: &Call, _collector: &mut Collector) -> Result<()> {
            Ok(())
        }
        fn validate(&self, _root: &str, _document: &Value) -> Vec<Problem> {
            Vec::new()
        }
    }

    /// One call of [`Nothing`]: what it prints.
    fn call(env: &[(&str, &str)], mut stdin: &[u8]) -> String {
        let env = env
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let mut stdout = Vec::new();
        main(
            "nothing",
            &Nothing,
            Services::none(),
            &env,
            &mut stdin,
            &mut stdout,
        );
        String::from_utf8(stdout).unwrap()
    }

    /// Code and message of the error printed.
    fn error(env: &[(&str, &str)], stdin: &str) -> (u64, String) {
        let object: Value = serde_json::from_str(&call(env, stdin.as_bytes())).unwrap();
        (
            object["code"].as_u64().unwrap(),
            object["msg"].as_str().unwrap().to_owned(),
        )
    }

    const ADD: [(&str, &str); 5] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c"),
        ("CNI_NETNS", "/nowhere"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];

    #[test]
    fn garbage_is_noticed_before_an_unknown_command() {
        let foo = [("CNI_COMMAND", "FOO")];
        assert_eq!(error(&foo, "").0, 6);
        assert_eq!(error(&foo, "{}").0, 7);
        assert_eq!(
            error(&foo, r#"{"name":"n"}"#),
            (4, "unknown CNI_COMMAND: FOO".into())
        );
    }

    #[test]
    fn version_needs_no_configuration_and_echoes_one() {
        let version = [("CNI_COMMAND", "VERSION")];
        let all =
            r#""supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#;
        for (stdin, echoed) in [
            ("", "1.1.0"),
            ("garbage", "1.1.0"),
            (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
            (r#"{"cniVersion":"7.0.0"}"#, "1.1.0"),
        ] {
            assert_eq!(
                call(&version, stdin.as_bytes()),
                format!("{{\"cniVersion\":\"{echoed}\",{all}\n")
            );
        }
    }

    #[test]
    fn add_answers_in_the_callers_version() {
        let answer = call(&ADD, br#"{"name":"n","cniVersion":"0.4.0"}"#);
        assert_eq!(
            answer,
            "{\n    \"cniVersion\": \"0.4.0\",\n    \"dns\": {}\n}"
        );
        let answer = call(&ADD, br#"{"name":"n","cniVersion":"1.0.0"}"#);
        assert_eq!(answer, "{\n    \"cniVersion\": \"1.0.0\"\n}");
    }

    #[test]
    fn errors_carry_the_callers_version() {
        let printed = call(&ADD, br#"{"name":"n","cniVersion":"9.9"}"#);
        let object: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(object["cniVersion"], "9.9");
        assert_eq!(object["code"], 1);
    }

    #[test]
    fn our_own_namespace_is_refused() {
        let mut env = ADD;
        env[2].1 = "/proc/self/ns/net";
        assert_eq!(
            error(&env, r#"{"name":"n"}"#),
            (
                8,
                "plugin's netns and netns from CNI_NETNS should not be the same".into()
            )
        );
        env[0].1 = "DEL";
        assert_eq!(call(&env, br#"{"name":"n"}"#), "");
        env[0].1 = "ADD";
        let mut env = env.to_vec();
        env.push(("CNI_NETNS_OVERRIDE", "True"));
        assert!(call(&env, br#"{"name":"n","cniVersion":"1.1.0"}"#).contains("1.1.0"));
    }

    #[test]
    fn an_answer_nobody_receives_is_undone() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        struct Marks;
        static UNDONE: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
        impl Plugin for Marks {
            fn add<'a>(&self, _call: &'a Call, undo: &mut Undo<'a>) -> Result<CniResult> {
                undo.push("mark", || {
                    UNDONE.store(true, std::sync::atomic::Ordering::Relaxed);
                    Ok(())
                });
                Ok(CniResult::default())
            }
            fn del(&self, call: &Call) -> Result<()> {
                Nothing.del(call)
            }
            fn check(&self, call: &Call) -> Result<()> {
                Nothing.check(call)
            }
            fn status(&self, call: &Call) -> Result<()> {
                Nothing.status(call)
            }
            fn gc(&self, call: &Call, collector: &mut Collector) -> Result<()> {
                Nothing.gc(call, collector)
            }
            fn validate(&self, root: &str, document: &Value) -> Vec<Problem> {
                Nothing.validate(root, document)
            }
        }
        let env = ADD
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let mut stdin: &[u8] = br#"{"name":"n","cniVersion":"1.1.0"}"#;
        let code = main(
            "marks",
            &Marks,
            Services::none(),
            &env,
            &mut stdin,
            &mut Closed,
        );
        assert_eq!(code, ExitCode::FAILURE);
        assert!(UNDONE.load(std::sync::atomic::Ordering::Relaxed));
    }
}
