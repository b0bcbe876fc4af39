//! How rules and chains say whose they are, and how those of an owner are removed.

use std::collections::BTreeSet;

use crate::cni::invocation::Attachment;
use crate::hash::sha512_hex;
use crate::netfilter::iptables::rule::{Rule, Script, Table};

/// One of the uses that rules have.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Stands in front of the comment that names the owner.
    pub comment: &'static str,
    /// Of the names of containers' chains.
    pub prefix: &'static str,
}

/// The longest name iptables accepts for a chain, which private chains always have.
const CHAIN_LENGTH: usize = 28;

/// A chain of one container in one network: `prefix` and as much of the hash as fits.
/// The name of the interface is not part of it.
pub fn private_chain(prefix: &str, network: &str, container_id: &str) -> String {
    let hash = sha512_hex(
        &format!("{network}{container_id}"),
        CHAIN_LENGTH - prefix.len(),
    );
    format!("{prefix}{hash}")
}

/// Whether the chain can be a container's.
pub fn is_private(chain: &str) -> bool {
    chain.len() == CHAIN_LENGTH && chain.starts_with("CNI-")
}

/// The longest comment. The kernel takes one byte more, but then `iptables-save` misses
/// the end and prints whatever follows in memory.
const COMMENT_LENGTH: usize = 255;

/// The comment that names the owner. `kind` stands in front of it.
pub fn comment(kind: &str, network: &str, container_id: &str) -> String {
    const CUT: &str = "...";
    // Names have been checked: there is nothing in them that needs escaping.
    let mut text = format!("{}{container_id}\"", comment_start(kind, network));
    if text.len() > COMMENT_LENGTH {
        text.truncate(text.floor_char_boundary(COMMENT_LENGTH - CUT.len()));
        text.push_str(CUT);
    }
    text
}

/// How the comments of all owners in `network` start.
fn comment_start(kind: &str, network: &str) -> String {
    format!("{kind}name: \"{network}\" id: \"")
}

/// Network and container id out of a comment that is not cut.
pub fn parse_comment<'a>(kind: &str, comment: &'a str) -> Option<(&'a str, &'a str)> {
    comment
        .strip_prefix(kind)?
        .strip_prefix("name: \"")?
        .strip_suffix('"')?
        .split_once("\" id: \"")
}

/// Whether the rule does not name another owner than `comment`: two can have chains of
/// the same name, because it is a hash of names without a separator.
pub fn is_owned(rule: &Rule, comment: &str) -> bool {
    rule.comment().is_none_or(|found| found == comment)
}

/// Removes the jumps into `chain` that are `doomed`, and the chain when nothing leads
/// into it any more. Answers whether the chain goes.
pub fn remove_chain(
    script: &mut Script,
    table: &Table,
    chain: &str,
    doomed: impl Fn(&Rule) -> bool,
) -> bool {
    let mut used = false;
    for jump in table.jumps(chain) {
        if doomed(jump) {
            script.delete(jump);
        } else {
            used = true;
        }
    }
    let goes = !used && table.chains.contains(chain);
    if goes {
        script.flush_chain(chain);
        script.delete_chain(chain);
    }
    goes
}

/// Tells rules that carry a comment of `network` but not that of a valid attachment.
fn stale_rules(kind: &str, network: &str, valid: &[Attachment]) -> impl Fn(&Rule) -> bool {
    let start = comment_start(kind, network);
    let keep: BTreeSet<String> = valid
        .iter()
        .map(|attachment| comment(kind, network, &attachment.container_id))
        .collect();
    move |rule| {
        rule.comment()
            .is_some_and(|comment| comment.starts_with(&start) && !keep.contains(comment))
    }
}

/// Containers' chains without rules to which nothing leads, because somebody flushed the
/// table: `prefix` and a hash, which tells nobody whose they were. Nobody misses them.
///
/// One that has rules stays, though nothing leads to it: those of mappings name nobody, and
/// networks can share a subnet. It may be another network's, which another program is about
/// to lead to, or whose mappings are to be restored. DEL knows its name.
pub fn flushed<'a>(kind: &Kind, table: &'a Table) -> impl Iterator<Item = &'a str> {
    let prefix = kind.prefix;
    // By `-j`, or by the `-g` of an administrator.
    let used: BTreeSet<&str> = table
        .rules
        .iter()
        .flat_map(|rule| {
            rule.args
                .iter()
                .map(AsRef::as_ref)
                .chain([rule.chain.as_str()])
        })
        .collect();
    let is_digit = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    let is_of_kind = move |chain: &&str| {
        let hash = chain.strip_prefix(prefix);
        is_private(chain) && hash.is_some_and(|hash| hash.chars().all(is_digit))
    };
    let chains = table.chains.iter().map(String::as_str).filter(is_of_kind);
    chains.filter(move |chain| !used.contains(chain))
}

/// Whose rules [`collect`] would remove: `container ID`, or the comment where it is cut; and
/// chains that lost theirs.
pub fn stale(kind: &Kind, network: &str, valid: &[Attachment], table: &Table) -> BTreeSet<String> {
    let is_stale = stale_rules(kind.comment, network, valid);
    let stale = table.rules.iter().filter(|rule| is_stale(rule));
    let comments = stale.filter_map(Rule::comment);
    let owners = comments.map(|comment| match parse_comment(kind.comment, comment) {
        Some((_, container_id)) => format!("container {container_id}"),
        None => comment.to_owned(),
    });
    let flushed = flushed(kind, table).map(|chain| format!("flushed chain {chain}"));
    owners.chain(flushed).collect()
}

/// Removes all that carries a comment of `network` but not that of a valid attachment.
pub fn collect(kind: &Kind, network: &str, valid: &[Attachment], table: &Table) -> Script {
    let is_stale = stale_rules(kind.comment, network, valid);
    let stale: Vec<&Rule> = table.rules.iter().filter(|rule| is_stale(rule)).collect();
    let chains: BTreeSet<&str> = stale
        .iter()
        .flat_map(|rule| [Some(rule.chain.as_str()), rule.jump()])
        .flatten()
        .filter(|chain| is_private(chain) && table.chains.contains(*chain))
        .filter(|chain| table.jumps(chain).all(&is_stale))
        .collect();
    let mut script = Script::default();
    for rule in stale {
        if !chains.contains(rule.chain.as_str()) {
            script.delete(rule);
        }
    }
    for chain in chains {
        script.flush_chain(chain);
        script.delete_chain(chain);
    }
    script
}

/// Removes the chains that are without rules as they were when `before` was found.
pub fn remove_flushed(kind: &Kind, table: &Table, before: &BTreeSet<String>) -> Script {
    let mut script = Script::default();
    // Not flushed again: refused where somebody is just filling it.
    for chain in flushed(kind, table).filter(|chain| before.contains(*chain)) {
        script.delete_chain(chain);
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::iptables::masquerade::KIND;

    /// The vectors of docs/compatibility.md#13.1.
    #[test]
    fn names() {
        for (prefix, network, id, chain) in [
            ("CNI-", "net1", "cont1", "CNI-01d424cb2a9303e21c6e971c"),
            ("CNI-DN-", "net1", "cont1", "CNI-DN-01d424cb2a9303e21c6e9"),
            ("CNI-", "test", "1234", "CNI-2bbe0c48b91a7d1b8a6753a8"),
        ] {
            assert_eq!(private_chain(prefix, network, id), chain);
            assert!(is_private(chain));
        }
        assert!(!is_private("CNI-HOSTPORT-DNAT"));
        let text = comment("", "net1", "cont1");
        assert_eq!(text, r#"name: "net1" id: "cont1""#);
        assert_eq!(parse_comment("", &text), Some(("net1", "cont1")));
        assert_eq!(parse_comment("dnat ", &text), None);
        let fits = comment("dnat ", "n", &"x".repeat(255 - 21));
        assert!(fits.len() == 255 && fits.ends_with("x\""));
        let cut = comment("dnat ", "n", &"x".repeat(256 - 21));
        assert!(cut.len() == 255 && cut.ends_with("xxx..."));
        assert_eq!(parse_comment("dnat ", &cut), None);
    }

    const TWO_OWNERS: &str = r#"
:POSTROUTING ACCEPT [0:0]
:CNI-aaaaaaaaaaaaaaaaaaaaaaaa - [0:0]
:CNI-bbbbbbbbbbbbbbbbbbbbbbbb - [0:0]
-A POSTROUTING -s 10.0.0.2/32 -m comment --comment "name: \"net1\" id: \"a\"" -j CNI-aaaaaaaaaaaaaaaaaaaaaaaa
-A POSTROUTING -s 10.0.0.3/32 -m comment --comment "name: \"net1\" id: \"b\"" -j CNI-bbbbbbbbbbbbbbbbbbbbbbbb
-A POSTROUTING -s 10.0.0.4/32 -m comment --comment "name: \"net10\" id: \"b\"" -j CNI-bbbbbbbbbbbbbbbbbbbbbbbb
-A POSTROUTING -m comment --comment "dnat name: \"net1\" id: \"a\"" -j MASQUERADE
-A CNI-aaaaaaaaaaaaaaaaaaaaaaaa -m comment --comment "name: \"net1\" id: \"a\"" -j MASQUERADE
-A CNI-bbbbbbbbbbbbbbbbbbbbbbbb -m comment --comment "name: \"net1\" id: \"b\"" -j MASQUERADE
"#;

    fn attachment(id: &str) -> Attachment {
        Attachment {
            container_id: id.into(),
            ifname: "eth0".into(),
        }
    }

    #[test]
    fn only_the_stale_of_this_network_are_collected() {
        let table = Table::parse(TWO_OWNERS);
        let script = collect(&KIND, "net1", &[attachment("b")], &table);
        assert_eq!(
            script.text(),
            r#"*nat
-D POSTROUTING -s 10.0.0.2/32 -m comment --comment "name: \"net1\" id: \"a\"" -j CNI-aaaaaaaaaaaaaaaaaaaaaaaa
-F CNI-aaaaaaaaaaaaaaaaaaaaaaaa
-X CNI-aaaaaaaaaaaaaaaaaaaaaaaa
COMMIT
"#
        );
        let whose = stale(&KIND, "net1", &[attachment("b")], &table);
        assert_eq!(whose, BTreeSet::from(["container a".to_owned()]));
        assert!(collect(&KIND, "net1", &[attachment("a"), attachment("b")], &table).is_empty());
        assert!(collect(&KIND, "net", &[], &table).is_empty());
    }

    /// What `iptables -t nat -F` leaves.
    #[test]
    fn chains_without_rules_that_nothing_leads_to_are_collected() {
        let table = Table::parse(
            ":POSTROUTING ACCEPT [0:0]\n:CNI-ADMIN - [0:0]\n:CNI-HOSTPORT-SETMARK-OF-OURS - [0:0]\n\
             :CNI-aaaaaaaaaaaaaaaaaaaaaaaa - [0:0]\n:CNI-bbbbbbbbbbbbbbbbbbbbbbbb - [0:0]\n\
             :CNI-cccccccccccccccccccccccc - [0:0]\n:CNI-DN-aaaaaaaaaaaaaaaaaaaaa - [0:0]\n\
             -A POSTROUTING -j CNI-bbbbbbbbbbbbbbbbbbbbbbbb\n\
             -A CNI-cccccccccccccccccccccccc -j MASQUERADE\n",
        );
        let before = flushed(&KIND, &table).map(str::to_owned).collect();
        let script = remove_flushed(&KIND, &table, &before);
        assert_eq!(
            script.text(),
            "*nat\n-X CNI-aaaaaaaaaaaaaaaaaaaaaaaa\nCOMMIT\n"
        );
        // Somebody has just made it.
        assert!(remove_flushed(&KIND, &table, &BTreeSet::new()).is_empty());
        let told = stale(&KIND, "net1", &[], &table);
        assert_eq!(
            told,
            BTreeSet::from(["flushed chain CNI-aaaaaaaaaaaaaaaaaaaaaaaa".to_owned()])
        );
    }

    /// Names whose concatenations are equal share a chain (docs/compatibility.md#defect-22).
    #[test]
    fn a_chain_that_somebody_else_uses_stays() {
        let table = Table::parse(TWO_OWNERS);
        let text = collect(&KIND, "net1", &[attachment("a")], &table).text();
        assert_eq!(text.matches("-D ").count(), 2, "{text}");
        assert_eq!(text.matches("-X ").count(), 0, "{text}");
        let mut script = Script::default();
        let (chain, owner) = ("CNI-bbbbbbbbbbbbbbbbbbbbbbbb", comment("", "net1", "b"));
        let is_ours = |rule: &Rule| is_owned(rule, &owner);
        assert!(!remove_chain(&mut script, &table, chain, is_ours));
        assert_eq!(script.text().lines().count(), 3, "{script:?}");
        assert!(script.text().contains("-D POSTROUTING -s 10.0.0.3/32"));
    }
}
