//! Which sysctls the node's administrator lets network configurations set.
//!
//! A file with one regular expression a line, in Go's syntax as the reference reads it,
//! matched anywhere in the key as it is written in the configuration (docs/compatibility.md#8.2). Blank lines mean nothing, and there are
//! no comments. Without the file everything is allowed; a file without any expression
//! allows nothing.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result};
use regex::Regex;

use super::go_regex::{self, translate};
use crate::cni::error::{Code, coded, detailed};
use crate::fsutil::without_byte_order_mark;

/// The same place as the reference's.
pub const PATH: &str = "/etc/cni/tuning/allowlist.conf";

/// The rules; `None` when there is no file.
#[derive(Debug)]
pub struct Allowlist(Option<Vec<Rule>>);

/// One line of the file.
#[derive(Debug)]
struct Rule {
    /// As the administrator wrote it.
    text: String,
    /// What it means.
    regex: Regex,
}

impl Rule {
    /// The expression in `text`; else what is wrong with it.
    fn parse(text: &str) -> Result<Self, String> {
        let regex = Regex::new(&translate(text)?).map_err(|error| error.to_string())?;
        let text = text.to_owned();
        Ok(Self { text, regex })
    }
}

impl Allowlist {
    /// Reads the administrator's file.
    ///
    /// # Errors
    /// Code 5 when it is there and cannot be read; code 7 naming the line that is no
    /// regular expression.
    pub fn read() -> Result<Self> {
        // The administrator's, who may use a symlink.
        match fs::read(PATH) {
            Ok(bytes) => {
                let text = without_byte_order_mark(&bytes);
                Self::parse(&String::from_utf8_lossy(text))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self(None)),
            Err(error) => Err(error).context(coded(Code::Io, format!("read {PATH}"))),
        }
    }

    /// The rules in `text`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str) -> Result<Self> {
        let mut rules = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            let rule = Rule::parse(line).map_err(|problem| {
                detailed(
                    Code::Config,
                    format!("{PATH}:{number}: \"{line}\" is not a regular expression"),
                    format!("{problem}; {}", go_regex::REFUSED),
                )
            })?;
            rules.push(rule);
        }
        Ok(Self(Some(rules)))
    }

    /// A warning for each expression that may let through more than is meant, since it
    /// matches anywhere in a key.
    pub fn warnings(&self) -> Vec<String> {
        let rules = self.0.iter().flatten().map(|rule| rule.text.as_str());
        let is_open = |rule: &&str| {
            let begins = ["^", ".*"].iter().any(|anchor| rule.starts_with(anchor));
            let ends = ["$", ".*"].iter().any(|anchor| rule.ends_with(anchor));
            !(begins && ends)
        };
        let warning = |rule| {
            format!(
                "{PATH}: \"{rule}\" matches anywhere in a key: let it begin with ^ and end with $ (or .*)"
            )
        };
        rules.filter(is_open).map(warning).collect()
    }

    /// Lets the sysctl `key` through.
    ///
    /// # Errors
    /// Code 7 naming the key and the file.
    pub fn check(&self, key: &str) -> Result<()> {
        let Some(rules) = &self.0 else { return Ok(()) };
        if rules.iter().any(|rule| rule.regex.is_match(key)) {
            return Ok(());
        }
        Err(detailed(
            Code::Config,
            format!(
                "Sysctl {key} is not allowed. Only the following sysctls are allowed: [{}]",
                rules
                    .iter()
                    .map(|rule| rule.text.as_str())
                    .collect::<Vec<_>>()
                    .join(" ")
            ),
            match rules.len() {
                0 => format!("{PATH} has no rule, so that no sysctl is allowed"),
                count => format!("none of the {count} expressions in {PATH} matches"),
            },
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_match_anywhere_in_the_key() {
        let list = Allowlist::parse("\n  ^net\\.ipv4\\.  \r\n\nsomaxconn$\n").unwrap();
        for (key, allowed) in [
            ("net.ipv4.ip_forward", true),
            ("net/ipv4/ip_forward", false),
            ("net.core.somaxconn", true),
            ("net.core.somaxconn2", false),
            ("x.net.ipv4.y", false),
        ] {
            assert_eq!(list.check(key).is_ok(), allowed, "{key}");
        }
        let error = list.check("net.core.rmem_max").unwrap_err();
        assert_eq!(
            error.to_string(),
            r"Sysctl net.core.rmem_max is not allowed. Only the following sysctls are allowed: [^net\.ipv4\. somaxconn$]"
        );
    }

    #[test]
    fn expressions_that_match_anywhere_are_told() {
        let list = Allowlist::parse("^net\\.ipv4\\.a$\n^net\\.core\\..*\nnet.ipv4.b\n^c\nd$\n");
        let told = list.unwrap().warnings();
        let named = |rule: &&str| {
            told.iter()
                .any(|text| text.contains(&format!("\"{rule}\"")))
        };
        assert!(["net.ipv4.b", "^c", "d$"].iter().all(named));
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(Allowlist(None).warnings().is_empty());
    }

    #[test]
    fn a_file_without_rules_allows_nothing() {
        for text in ["", "\n", " \n\t\n"] {
            let list = Allowlist::parse(text).unwrap();
            assert!(list.check("net.ipv4.ip_forward").is_err(), "{text:?}");
        }
        assert!(Allowlist(None).check("net.ipv4.ip_forward").is_ok());
    }

    #[test]
    fn a_bad_expression_is_named_with_its_line() {
        let error = Allowlist::parse("net\n\nnet.(\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "/etc/cni/tuning/allowlist.conf:3: \"net.(\" is not a regular expression"
        );
    }
}
