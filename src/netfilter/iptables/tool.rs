//! Running `iptables-save` and `iptables-restore`.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::failure::{Failure, Kind};
use crate::fsutil::Lock;
use crate::net::section;
use crate::netfilter::iptables::addition::Addition;
use crate::netfilter::iptables::native::addition::{Added, make};
use crate::netfilter::iptables::owned::is_private;
use crate::netfilter::iptables::rule::{Rule, Script, Table, TableName};
use crate::netfilter::nf_tables::{query, ruleset};

/// Both families.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Address families, each with tools and tables of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The command that shows this family's rules.
    pub fn command(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    /// The family of `address`.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }

    /// As the nft variant has it.
    pub fn nft(self) -> ruleset::Family {
        match self {
            Self::V4 => ruleset::Family::Ip,
            Self::V6 => ruleset::Family::Ip6,
        }
    }

    /// The tables of the old kind that the kernel has for this family, each on a line of its
    /// own: asking one of the tools for others would make them.
    pub fn legacy_tables(self) -> String {
        // Of this thread: a table belongs to a network namespace.
        let path = match self {
            Self::V4 => "/proc/thread-self/net/ip_tables_names",
            Self::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Whether `name` is one of [`Family::legacy_tables`].
    pub fn has_legacy_table(self, name: TableName) -> bool {
        self.legacy_tables()
            .lines()
            .any(|line| line == name.as_str())
    }
}

/// The table that the tools of the nft variant use.
const TABLE: &str = "nat";

impl Family {
    /// Whether the kernel has rules in `chain` of the table `nat` that the tools of the nft
    /// variant use.
    pub fn has_nft_rules(self, chain: &str) -> bool {
        // In doubt, the tools will tell.
        query::has_rules(self.nft(), TABLE, chain).unwrap_or(true)
    }

    /// Whether the kernel has one of `chains` in the table `nat` that the tools of the nft
    /// variant use; if there are none to ask for, the private chain of any container.
    pub fn has_nft_chain(self, chains: &[String]) -> bool {
        let family = self.nft();
        let found = if chains.is_empty() {
            query::chains(family, TABLE).map(|found| found.iter().any(|name| is_private(name)))
        } else {
            chains.iter().try_fold(false, |found, chain| {
                Ok(found || query::has_chain(family, TABLE, chain)?)
            })
        };
        // In doubt, the tools will tell.
        found.unwrap_or(true)
    }
}

/// Which of the kernel's two packet filters the tools work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// `nf_tables`.
    Nft,
    /// `ip_tables` and `ip6_tables`.
    Legacy,
    /// Tools that do not say by their name: a wrapper, or older than the choice.
    Unknown,
}

/// The tools of one family and variant.
#[derive(Debug, Clone)]
pub struct Tool {
    /// The address family.
    pub family: Family,
    /// The packet filter.
    pub variant: Variant,
    /// The table that it works on.
    pub table: TableName,
    /// Whether [`native`](crate::netfilter::iptables::native) may do its work.
    pub is_native: bool,
    restore: PathBuf,
    save: PathBuf,
    path: OsString,
    lock_wait: u32,
}

/// What a tool said when it refused to do something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub String);

impl Refusal {
    /// As an error: `tool` refused to `read` or `change` the table.
    pub fn during(&self, verb: &str, tool: &Tool) -> anyhow::Error {
        let table = tool.table.as_str();
        let sentence = format!("{verb} table {table} with {}", tool.restore.display());
        if self.is_unreadable() {
            let text = self.0.trim().to_owned();
            return anyhow::Error::new(Unserved::Unreadable { text })
                .context(Failure::new(Kind::Refused, sentence));
        }
        Failure::new(Kind::Refused, sentence).because(self.0.trim())
    }

    /// Whether the table has rules of other programs that the tool cannot read.
    pub fn is_unreadable(&self) -> bool {
        self.0.contains(INCOMPATIBLE)
    }
}

/// What the tools of the nft variant say of a table with rules that are not theirs.
const INCOMPATIBLE: &str = "is incompatible, use 'nft'";

/// Why the tools cannot serve, however often they are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unserved {
    /// They are not in the search path.
    Missing {
        /// What they belong to: `iptables` or `ip6tables`.
        command: &'static str,
        /// What was looked for, and where.
        text: String,
    },
    /// Their table holds rules that they cannot read.
    Unreadable {
        /// What they say.
        text: String,
    },
}

impl std::fmt::Display for Unserved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Missing { text, .. } | Self::Unreadable { text }) = self;
        f.write_str(text)
    }
}

impl std::error::Error for Unserved {}

/// The file that the tools of the legacy variant lock.
const LOCK: &str = "/run/xtables.lock";

/// How the tools exit when somebody else has the lock, and on some other occasions.
const RESOURCE_PROBLEM: i32 = 4;

impl Tool {
    /// The tools that `path` has under the plain names, or under those of `variant`.
    /// They work on table `nat`, and wait `lock_wait` seconds at most for others to finish.
    pub fn find(path: &OsStr, family: Family, variant: Variant, lock_wait: u32) -> Option<Self> {
        let infix = match variant {
            Variant::Nft => "-nft",
            Variant::Legacy => "-legacy",
            Variant::Unknown => "",
        };
        let name = format!("{}{infix}", family.command());
        let restore = find_executable(path, &format!("{name}-restore"))?;
        let save = find_executable(path, &format!("{name}-save"))?;
        Some(Self {
            family,
            variant: match variant {
                Variant::Unknown => variant_of(&restore),
                known => known,
            },
            table: TableName::default(),
            is_native: true,
            restore,
            save,
            path: path.to_owned(),
            lock_wait,
        })
    }

    /// The file that lists the table.
    pub fn program(&self) -> &Path {
        &self.save
    }

    /// Keeps other callers out of this section, as long as the answer lives.
    ///
    /// The tools of the nft variant do not always notice that somebody else has created a
    /// chain in the meantime: they take it for their own, and add the rules that belong to
    /// it once more. Those of the legacy variant have a lock.
    ///
    /// # Errors
    /// [`Kind::Busy`] when another process holds the lock for too long; otherwise when the file cannot
    /// be locked.
    pub fn exclude_others(&self) -> Result<Option<Lock>> {
        if self.variant == Variant::Legacy {
            return Ok(None);
        }
        let limit = Duration::from_secs(self.lock_wait.into());
        section::enter("iptables", limit).map(Some)
    }

    /// Whether the kernel has what the tools work on. One is started only where nothing else
    /// tells: for legacy tables that nobody has used yet.
    pub fn has_kernel(&self) -> bool {
        match self.variant {
            Variant::Nft => query::is_usable(),
            Variant::Legacy => {
                self.family.has_legacy_table(self.table)
                    || self.save().is_ok_and(|table| table.is_ok())
            }
            // A wrapper: it will know.
            Variant::Unknown => true,
        }
    }

    /// Whether there may be a `chain` in table `nat`: nothing is run to look.
    pub fn may_have(&self, chain: &str) -> bool {
        match self.variant {
            Variant::Nft => self.family.has_nft_chain(&[chain.to_owned()]),
            Variant::Legacy => self.family.has_legacy_table(TableName::Nat),
            Variant::Unknown => true,
        }
    }

    /// What its table holds.
    ///
    /// # Errors
    /// When the tool cannot be run.
    pub fn save(&self) -> Result<std::result::Result<Table, Refusal>> {
        let output = self.run(&self.save, &["-t", self.table.as_str()], "")?;
        let text = String::from_utf8_lossy(&output.stdout);
        // Rules that somebody made with nft: the tool then says so, prints none, and is
        // content.
        if !output.status.success() || text.contains(INCOMPATIBLE) {
            return Ok(Err(Refusal(format!(
                "{text}{}",
                String::from_utf8_lossy(&output.stderr)
            ))));
        }
        Ok(Ok(Table::parse(&text)))
    }

    /// The rules of the table, in order, each with the packets that it has met.
    ///
    /// # Errors
    /// When the tool cannot be run, or does not tell.
    pub fn counted(&self) -> Result<Vec<(u64, Rule)>> {
        let output = self.run(&self.save, &["-c", "-t", self.table.as_str()], "")?;
        if !output.status.success() {
            let refusal = Refusal(String::from_utf8_lossy(&output.stderr).into_owned());
            return Err(refusal.during("read", self));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().filter_map(Rule::parse_counted).collect())
    }

    /// What the tool prints of all its tables, chains with their policies first.
    ///
    /// # Errors
    /// When the tool cannot be run, or does not tell.
    pub fn text(&self) -> Result<String> {
        let output = self.run(&self.save, &[], "")?;
        if !output.status.success() {
            let refusal = Refusal(String::from_utf8_lossy(&output.stderr).into_owned());
            return Err(refusal.during("read", self));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Does all of `script` or nothing; answers what it prints.
    ///
    /// # Errors
    /// [`Kind::Busy`] when another process holds the lock for too long; otherwise when the tool
    /// cannot be run.
    pub fn restore(&self, script: &Script) -> Result<std::result::Result<Table, Refusal>> {
        let wait = format!("--wait={}", self.lock_wait);
        let output = self.run(&self.restore, &["--noflush", &wait], &script.text())?;
        if output.status.success() {
            return Ok(Ok(Table::parse(&String::from_utf8_lossy(&output.stdout))));
        }
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        // The status alone could also be the kernel's refusal; no errno comes through.
        if output.status.code() == Some(RESOURCE_PROBLEM) && stderr.contains("xtables lock") {
            return Err(anyhow::Error::msg(stderr.trim().to_owned()).context(
                section::is_occupied(
                    self.family.command(),
                    Path::new(LOCK),
                    Duration::from_secs(self.lock_wait.into()),
                ),
            ));
        }
        Ok(Err(Refusal(stderr)))
    }

    /// As [`Tool::restore`] of what is `added`, without a process in the
    /// usual case of the nft variant. `None`: nobody had claimed any of the ports.
    ///
    /// # Errors
    /// As [`Tool::restore`].
    pub fn add(&self, added: &Addition<'_>) -> Result<std::result::Result<Option<Table>, Refusal>> {
        // What is wrong, the tool will say.
        let made = match self.variant {
            Variant::Nft if self.is_native => {
                make(added, self.family.nft()).unwrap_or(Added::Nothing)
            }
            _ => Added::Nothing,
        };
        match made {
            Added::Unopposed => Ok(Ok(None)),
            Added::Beside(rules) => {
                let chains = BTreeSet::new();
                Ok(Ok(Some(Table { chains, rules })))
            }
            Added::Nothing => Ok(self.restore(&added.script())?.map(Some)),
        }
    }

    fn run(&self, program: &Path, args: &[&str], stdin: &str) -> Result<Output> {
        let run = || {
            #[expect(
                clippy::disallowed_methods,
                reason = "this is the module that starts the tools of iptables"
            )]
            let mut child = std::process::Command::new(program)
                .args(args)
                // The caller's environment is not theirs: it could name other libraries
                // or another lock.
                .env_clear()
                .env("PATH", &self.path)
                .env("LC_ALL", "C")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let mut input = child.stdin.take();
            if stdin.len() <= PIPE {
                let written = told(input.take(), stdin);
                let output = child.wait_with_output()?;
                return written.map(|()| output);
            }
            std::thread::scope(|scope| {
                // A thread, because the tool may print before it has read everything.
                let writer =
                    std::thread::Builder::new().spawn_scoped(scope, move || told(input, stdin));
                let output = child.wait_with_output();
                // A tool that was not told everything is content with less. (A panic has
                // ended the process.)
                writer?.join().unwrap_or(Ok(()))?;
                output
            })
        };
        run().with_context(|| format!("run {}", program.display()))
    }
}

/// What a pipe takes at once, however little memory its user has left for pipes
/// (`pipe(7)`).
const PIPE: usize = 4096;

/// Writes `text` to a tool that listens, and closes the pipe.
fn told(input: Option<ChildStdin>, text: &str) -> std::io::Result<()> {
    let written = input.map(|mut input| input.write_all(text.as_bytes()));
    match written.unwrap_or(Ok(())) {
        // A tool that has seen enough closes the pipe: its status counts.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn variant_of(program: &Path) -> Variant {
    let file = std::fs::canonicalize(program).ok();
    let name = file.as_deref().and_then(Path::file_name);
    let name = name.unwrap_or_default().to_string_lossy();
    if name.contains("legacy") {
        Variant::Legacy
    } else if name.contains("nft") {
        Variant::Nft
    } else {
        Variant::Unknown
    }
}

/// The first executable file called `name` in the directories of `path`.
fn find_executable(path: &OsStr, name: &str) -> Option<PathBuf> {
    const ANYBODY: u32 = 0o111;
    std::env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|file| {
            file.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & ANYBODY != 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_files_that_can_be_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().as_os_str();
        for name in ["iptables-restore", "iptables-save"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let find = || Tool::find(path, Family::V4, Variant::Unknown, 1);
        assert!(find().is_none());
        for name in ["iptables-restore", "iptables-save"] {
            std::fs::set_permissions(dir.path().join(name), PermissionsExt::from_mode(0o755))
                .unwrap();
        }
        assert_eq!(find().unwrap().variant, Variant::Unknown);
        assert!(Tool::find(path, Family::V6, Variant::Unknown, 1).is_none());
        assert!(Tool::find(OsStr::new(""), Family::V4, Variant::Unknown, 1).is_none());
        std::fs::remove_file(dir.path().join("iptables-restore")).unwrap();
        std::fs::write(dir.path().join("xtables-legacy-multi"), "").unwrap();
        std::fs::set_permissions(
            dir.path().join("xtables-legacy-multi"),
            PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        std::os::unix::fs::symlink("xtables-legacy-multi", dir.path().join("iptables-restore"))
            .unwrap();
        assert_eq!(find().unwrap().variant, Variant::Legacy);
    }
}
