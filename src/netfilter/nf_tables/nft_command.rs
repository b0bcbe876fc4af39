//! What people tell `nft` about rules of others, whose tables and chains may have any name.
//!
//! The language of nft only has names that look like one. Others, which programs give by way of
//! the kernel or of JSON, are told in JSON, which nft takes as an argument too.

use serde_json::{Value, json};

use crate::netfilter::nf_tables::ruleset::Family;
use crate::shell::{ShellCommand, shell};

/// A chain by its names.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// The table's.
    pub family: Family,
    /// The table.
    pub table: &'a str,
    /// The chain.
    pub chain: &'a str,
}

impl Names<'_> {
    /// The command that lists the chain's rules with their handles.
    pub fn list(&self) -> ShellCommand {
        let Self {
            family,
            table,
            chain,
        } = *self;
        if self.are_plain() {
            return shell!["nft", "-a", "list", "chain", family, table, chain];
        }
        let family = family.to_string();
        in_json(
            "list",
            "chain",
            &json!({"family": family, "table": table, "name": chain}),
        )
    }

    /// The command that deletes one of the chain's rules.
    pub fn delete(&self, handle: u64) -> ShellCommand {
        let Self {
            family,
            table,
            chain,
        } = *self;
        if self.are_plain() {
            return shell![
                "nft", "delete", "rule", family, table, chain, "handle", handle
            ];
        }
        let family = family.to_string();
        let rule = json!({"family": family, "table": table, "chain": chain, "handle": handle});
        in_json("delete", "rule", &rule)
    }

    /// The command that has the chain accept first of all what comes in or goes out by `link`;
    /// `key` is `iifname` or `oifname`.
    pub fn accept(&self, key: &str, link: &str) -> ShellCommand {
        let Self {
            family,
            table,
            chain,
        } = *self;
        if self.are_plain()
            && let Some(link) = string(link)
        {
            return shell![
                "nft", "insert", "rule", family, table, chain, key, link, "accept"
            ];
        }
        let family = family.to_string();
        let is_link = json!({"match": {"op": "==", "left": {"meta": {"key": key}}, "right": link}});
        let rule = json!({"family": family, "table": table, "chain": chain,
            "expr": [is_link, {"accept": null}]});
        in_json("insert", "rule", &rule)
    }

    fn are_plain(&self) -> bool {
        is_plain(self.table) && is_plain(self.chain)
    }
}

/// Whether the language has `name`, unless as one of its own words.
fn is_plain(name: &str) -> bool {
    let is_first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let is_later = |c: char| c.is_ascii_alphanumeric() || "/-_.".contains(c);
    name.starts_with(is_first) && name.chars().all(is_later)
}

/// The name of a link in the language; `None` where that cannot say it.
fn string(link: &str) -> Option<String> {
    if is_plain(link) {
        return Some(link.to_owned());
    }
    // At the end of a string, an asterisk stands for any characters.
    let is_sayable = !link.contains(['"', '\\', '*']);
    is_sayable.then(|| format!("\"{link}\""))
}

fn in_json(verb: &str, kind: &str, object: &Value) -> ShellCommand {
    let command = json!({"nftables": [{verb: {kind: object}}]});
    shell!["nft", "-j", command]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nft_cannot_read_are_told_in_json() {
        let names = |table, chain| Names {
            family: Family::Inet,
            table,
            chain,
        };
        let plain = names("fw", "in-1.x");
        assert_eq!(plain.list().to_string(), "nft -a list chain inet fw in-1.x");
        assert_eq!(
            plain.delete(7).to_string(),
            "nft delete rule inet fw in-1.x handle 7"
        );
        assert_eq!(
            plain.accept("iifname", "br1").to_string(),
            "nft insert rule inet fw in-1.x iifname br1 accept"
        );
        assert_eq!(
            plain.accept("iifname", "a;id").to_string(),
            "nft insert rule inet fw in-1.x iifname '\"a;id\"' accept"
        );
        let odd = names("x\u{1b};id", "two words");
        let words = |command: ShellCommand| shlex::split(&command.to_string()).unwrap();
        let delete = r#"{"nftables":[{"delete":{"rule":{"chain":"two words","family":"inet","handle":7,"table":"x\u001b;id"}}}]}"#;
        assert_eq!(words(odd.delete(7)), ["nft", "-j", delete]);
        let accept = words(plain.accept("oifname", "a\"b")).pop().unwrap();
        assert!(accept.contains(r#""right":"a\"b""#), "{accept}");
    }
}
