//! The environment of one call, parsed and checked (specification section 2,
//! "Parameters"; the order of the checks is docs/compatibility.md#1.3).

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;

use super::error::{Code, Coded, coded, detailed};

/// Names the file of the journal.
pub const LOG_VARIABLE: &str = "CNIBOX_LOG";

/// The environment as a value, so that the protocol can be tested without a process.
pub type Environment = BTreeMap<String, String>;

/// The variables of this process that matter. Bytes that are not UTF-8 become U+FFFD and
/// then fail the check of whichever variable they stand in.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the module that reads the environment"
)]
pub fn environment() -> Environment {
    ROWS.iter()
        .map(|row| row.name)
        .chain([
            "CNI_COMMAND",
            "CNI_ARGS",
            "CNI_NETNS_OVERRIDE",
            LOG_VARIABLE,
        ])
        .filter_map(|name| {
            let value = std::env::var_os(name)?;
            Some((name.to_owned(), value.to_string_lossy().into_owned()))
        })
        .collect()
}

/// What the runtime asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Make the attachment, and answer with a result.
    Add,
    /// Remove the attachment, or whatever is left of it.
    Del,
    /// Compare the attachment with `prevResult`; since 0.4.0.
    Check,
    /// Remove what belongs to no attachment in `cni.dev/valid-attachments`; since 1.1.0.
    Gc,
    /// Say whether an ADD could be served; since 1.1.0.
    Status,
    /// List the versions of the specification that are spoken.
    Version,
}

impl Command {
    const ALL: [Self; 6] = [
        Self::Add,
        Self::Del,
        Self::Check,
        Self::Gc,
        Self::Status,
        Self::Version,
    ];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The command spelt exactly like `text`.
    pub fn exact(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.as_str() == text)
    }
}

/// One variable: who needs it, and what it must look like.
struct Row {
    name: &'static str,
    required: &'static [Command],
    check: fn(&str) -> Result<()>,
}

const ATTACHMENT: &[Command] = &[Command::Add, Command::Check, Command::Del];

/// In the order in which they are checked and named.
const ROWS: [Row; 4] = [
    Row {
        name: "CNI_CONTAINERID",
        required: ATTACHMENT,
        check: check_container_id,
    },
    Row {
        name: "CNI_NETNS",
        required: &[Command::Add, Command::Check],
        check: |_| Ok(()),
    },
    Row {
        name: "CNI_IFNAME",
        required: ATTACHMENT,
        check: check_ifname,
    },
    Row {
        name: "CNI_PATH",
        required: &[
            Command::Add,
            Command::Check,
            Command::Del,
            Command::Gc,
            Command::Status,
        ],
        check: |_| Ok(()),
    },
];

/// One call of a plugin: its environment after the checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// `CNI_COMMAND`; for a delegate in this process, what its caller asks of it.
    pub command: Command,
    /// Empty for GC and STATUS.
    pub attachment: Attachment,
    /// `CNI_NETNS` as written; `None` when absent or empty.
    pub netns: Option<String>,
    /// `CNI_ARGS` as written, to be parsed by who knows its keys.
    pub args: String,
    /// Directories in which delegates are looked up.
    pub path: Vec<PathBuf>,
    /// `CNI_NETNS_OVERRIDE`: the container's namespace may be our own.
    pub netns_override: bool,
}

/// What an ADD makes and a DEL removes: one interface of one container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Attachment {
    /// `CNI_CONTAINERID`: the runtime's choice, see [`check_container_id`].
    pub container_id: String,
    /// `CNI_IFNAME`: the interface's name inside the container, see [`check_ifname`].
    pub ifname: String,
}

impl Invocation {
    /// Checks the variables that `command` needs.
    ///
    /// # Errors
    /// Code 4: the first malformed variable, else all missing ones.
    pub fn parse(command: Command, env: &Environment) -> Result<Self> {
        let get = |name: &str| env.get(name).map_or("", String::as_str);
        let mut missing = Vec::new();
        for row in ROWS.iter().filter(|row| row.required.contains(&command)) {
            match get(row.name) {
                "" => missing.push(row.name),
                value => (row.check)(value)?,
            }
        }
        if !missing.is_empty() {
            return Err(coded(
                Code::Environment,
                format!("required env variables [{}] missing", missing.join(",")),
            )
            .into());
        }
        let attachment = if ATTACHMENT.contains(&command) {
            Attachment {
                container_id: get("CNI_CONTAINERID").to_owned(),
                ifname: get("CNI_IFNAME").to_owned(),
            }
        } else {
            Attachment::default()
        };
        let netns_override = get("CNI_NETNS_OVERRIDE");
        Ok(Self {
            command,
            attachment,
            netns: Some(get("CNI_NETNS").to_owned()).filter(|path| !path.is_empty()),
            args: get("CNI_ARGS").to_owned(),
            path: std::env::split_paths(get("CNI_PATH")).collect(),
            netns_override: netns_override == "1" || netns_override.eq_ignore_ascii_case("true"),
        })
    }
}

/// A container id: a letter or digit, then letters, digits, `_`, `.` and `-`.
///
/// # Errors
/// Code 4 with the id in the details.
pub fn check_container_id(id: &str) -> Result<()> {
    if is_name(id) {
        return Ok(());
    }
    Err(detailed(
        Code::Environment,
        "invalid characters in containerID",
        id,
    ))
}

/// A network name: the same characters as a container id.
///
/// # Errors
/// Code 7, naming it.
pub fn check_network_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(coded(Code::Config, "missing network name").into());
    }
    if is_name(name) {
        return Ok(());
    }
    Err(detailed(
        Code::Config,
        "invalid characters found in network name",
        name,
    ))
}

/// Whether `name`, which is made of names that a caller chose, can be that of a file: better
/// asked before anything is made.
///
/// # Errors
/// Code 4.
pub fn check_file_name(name: &str) -> Result<()> {
    if name.len() <= LONGEST_FILE_NAME {
        return Ok(());
    }
    Err(detailed(
        Code::Environment,
        "the container id is too long",
        format!(
            "a file that is to be called \"{name}\" would have a name of {} bytes, the limit is \
             {LONGEST_FILE_NAME}: use a shorter id, or a shorter name of the network",
            name.len()
        ),
    ))
}

/// In bytes: `NAME_MAX` of every file system that matters here.
pub const LONGEST_FILE_NAME: usize = 255;

/// A name the kernel takes for a link: 1 to 15 bytes, no `/`, `:` or white space.
///
/// # Errors
/// Code 4, one sentence per rule.
pub fn check_ifname(name: &str) -> Result<()> {
    let problem = |sentence: &str| -> Result<()> {
        Err(detailed(
            Code::Environment,
            sentence,
            format!("interface name \"{name}\""),
        ))
    };
    if name.is_empty() {
        return problem("interface name is empty");
    }
    if name.len() > 15 {
        return Err(detailed(
            Code::Environment,
            "interface name is too long",
            format!(
                "interface name \"{name}\" has {} bytes, the limit is 15",
                name.len()
            ),
        ));
    }
    if name == "." || name == ".." {
        return problem("interface name is . or ..");
    }
    if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        return problem("interface name contains / or : or whitespace characters");
    }
    if name.contains('%') {
        return problem("interface name contains %, which the kernel replaces by a number");
    }
    if name == "all" || name == "default" {
        return problem("interface name is all or default, which are no interfaces in sysctls");
    }
    Ok(())
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// What to answer for a command that does not exist.
pub fn unknown_command(word: &str) -> Coded {
    coded(Code::Environment, format!("unknown CNI_COMMAND: {word}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Environment {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn refused(command: Command, pairs: &[(&str, &str)]) -> String {
        let error = Invocation::parse(command, &env(pairs)).unwrap_err();
        crate::cni::error::ErrorObject::from_error(&error).to_string()
    }

    #[test]
    fn missing_variables_are_named_in_order() {
        assert_eq!(
            refused(Command::Add, &[]),
            "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH] missing"
        );
        assert_eq!(
            refused(Command::Del, &[("CNI_NETNS", "")]),
            "required env variables [CNI_CONTAINERID,CNI_IFNAME,CNI_PATH] missing"
        );
        for command in [Command::Gc, Command::Status] {
            assert_eq!(
                refused(command, &[]),
                "required env variables [CNI_PATH] missing"
            );
        }
        assert!(Invocation::parse(Command::Version, &env(&[])).is_ok());
    }

    #[test]
    fn a_bad_variable_wins_over_a_missing_one() {
        for id in ["-abc", "a b", "ab\n", "a/b", "..", "é"] {
            assert_eq!(
                refused(Command::Add, &[("CNI_CONTAINERID", id)]),
                format!("invalid characters in containerID; {id}")
            );
        }
    }

    #[test]
    fn interface_names() {
        for name in ["eth0", "a", "fifteen-bytes-x", "a.b"] {
            assert!(check_ifname(name).is_ok(), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\u{2003}b",
            "eth%d",
            "all",
            "default",
            "sixteen-bytes-xx",
        ] {
            assert!(check_ifname(name).is_err(), "{name}");
        }
    }

    #[test]
    fn gc_and_status_do_not_look_at_the_attachment() {
        let invocation = Invocation::parse(
            Command::Gc,
            &env(&[("CNI_PATH", "/a:/b"), ("CNI_CONTAINERID", "../x")]),
        )
        .unwrap();
        assert_eq!(invocation.attachment, Attachment::default());
        assert_eq!(invocation.path, [PathBuf::from("/a"), PathBuf::from("/b")]);
    }

    proptest::proptest! {
        #[test]
        fn no_environment_panics(values in proptest::collection::vec(".*", 5)) {
            let names = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_ARGS"];
            let env: Environment =
                names.iter().map(|n| (*n).to_owned()).zip(values).collect();
            for command in Command::ALL {
                if let Ok(call) = Invocation::parse(command, &env) {
                    proptest::prop_assert!(!call.attachment.container_id.contains('/'));
                    proptest::prop_assert!(!call.attachment.ifname.contains('/'));
                    drop(crate::cni::args::parse(&call.args, &["IP"]));
                }
            }
        }
    }
}
