//! What an ADD would do, told without doing it: the dry run of `cnitool`.
//!
//! A plugin looks as its ADD looks, decides as that decides, and describes what that
//! would then make. Nothing is changed, and no other process is run.

use std::fmt;

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A network interface.
    Link,
    /// An address of one.
    Address,
    /// A route in one of the namespaces.
    Route,
    /// A rule of the packet filter.
    Rule,
    /// A limit of traffic.
    Limit,
    /// A kernel parameter.
    Sysctl,
    /// An address kept from others.
    Lease,
    /// A file.
    File,
    /// What cannot be told, and why.
    Note,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Link => "link",
            Self::Address => "address",
            Self::Route => "route",
            Self::Rule => "rule",
            Self::Limit => "limit",
            Self::Sysctl => "sysctl",
            Self::Lease => "lease",
            Self::File => "file",
            Self::Note => "note",
        })
    }
}

/// The lines of one plugin, in the order in which things would happen.
#[derive(Debug, Default)]
pub struct Preview {
    lines: Vec<(Subject, String)>,
}

impl Preview {
    /// Something that ADD would make or change.
    pub fn tell(&mut self, subject: Subject, what: impl Into<String>) {
        self.lines.push((subject, what.into()));
    }

    /// Rules, each as the command that would add it.
    pub fn rules(&mut self, rules: Vec<String>) {
        let rules = rules.into_iter().map(|rule| (Subject::Rule, rule));
        self.lines.extend(rules);
    }

    /// That nobody can tell what `plugin` would do.
    pub fn unknown(&mut self, plugin: &str) {
        let text = format!("{plugin} does not tell beforehand what it does");
        self.tell(Subject::Note, text);
    }

    /// What has been told.
    pub fn into_lines(self) -> Vec<(Subject, String)> {
        self.lines
    }
}
