//! Source NAT for what leaves a network (layout: docs/compatibility.md#5.8).

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::netfilter::model::{Masquerade, Owner};
use crate::netfilter::nf_tables::among::End;
use crate::netfilter::nf_tables::change::Change;
use crate::netfilter::nf_tables::found::Found;
use crate::netfilter::nf_tables::identity;
use crate::netfilter::nf_tables::identity::{Tag, attachment_comment_from, masquerade_comment};
use crate::netfilter::nf_tables::rule::{Rule, Statement};
use crate::netfilter::nf_tables::ruleset::{Chain, Family, Hook, Place, Table};
use crate::netfilter::nf_tables::set::{Elements, Key};
use crate::netfilter::nftables::shared::{
    Shared, Snapshot, command, ensure_shared, in_chain, missing_shared,
};
use crate::netfilter::registry;
use crate::netfilter::registry::{MASQUERADED, settle};

/// Names that other implementations know.
pub const TABLE: Table = Table {
    family: Family::Inet,
    name: "cni_plugins_masquerade",
    comment: Some("Masquerading for plugins from github.com/containernetworking/plugins"),
};
pub const CHECKS: &str = "masq_checks";
const POSTROUTING: &str = "postrouting";

fn checks() -> Chain {
    Chain {
        table: TABLE,
        name: CHECKS.into(),
        comment: Some(
            "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet",
        ),
        hook: None,
    }
}

/// What all owners share.
pub fn shared() -> Vec<Shared> {
    const MULTICAST: [IpNet; 2] = [
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
        IpNet::V6(Ipv6Net::new_assert(
            Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0),
            8,
        )),
    ];
    let mut rules: Vec<Rule> = MULTICAST
        .into_iter()
        .map(|net| Rule::shared([to(true, net), Statement::Return]))
        .collect();
    rules.push(Rule::shared([Statement::Goto(CHECKS.into())]));
    vec![
        Shared::Open(checks()),
        Shared::Fixed(
            Chain {
                table: TABLE,
                name: POSTROUTING.into(),
                comment: None,
                hook: Some(Hook {
                    kind: "nat",
                    place: Place::Postrouting,
                    priority: 100,
                }),
            },
            rules,
        ),
    ]
}

/// The owner's rules.
pub fn rules(owner: &Owner, wanted: &Masquerade) -> Vec<Rule> {
    let comment = masquerade_comment(owner);
    let rule = |address: &IpNet| Rule {
        statements: vec![
            Statement::Address {
                end: End::Source,
                is: true,
                net: address.addr().into(),
            },
            to(false, address.trunc()),
            Statement::Masquerade,
        ],
        comment: Some(comment.clone()),
        tag: None,
    };
    wanted.addresses.iter().map(rule).collect()
}

fn to(is: bool, net: IpNet) -> Statement {
    let end = End::Destination;
    Statement::Address { end, is, net }
}

/// Whose a rule is, as its comment says.
pub fn tag(found: &Found) -> Option<Tag> {
    Tag::at_start(found.comment.as_deref()?)
}

/// What makes `wanted` exist for an owner that has no rules yet; refused otherwise.
pub fn first(owner: &Owner, wanted: &Masquerade) -> Vec<Change> {
    let mut changes =
        Change::create_elements(&MASQUERADED, Elements::from([registry::attachment(owner)]));
    changes.extend(insertions(owner, wanted));
    changes
}

/// What makes exactly `wanted` exist for `owner`, given all rules of the table, and the
/// registry if there is one.
pub fn ensure(
    owner: &Owner,
    wanted: &Masquerade,
    there: &Snapshot,
    registry: Option<&Elements>,
) -> Vec<Change> {
    let mut changes = ensure_shared(TABLE, &shared(), there);
    let own = Tag::of(owner);
    changes.extend(remove(&there.rules, None, |tag| tag == own));
    changes.extend(insertions(owner, wanted));
    let mut attachments: Elements = there.rules.iter().filter_map(attachment).collect();
    attachments.extend([registry::attachment(owner)]);
    changes.extend(settle(&MASQUERADED, registry, &attachments, |key| {
        *key == Key::Attachment(own)
    }));
    changes
}

fn insertions(owner: &Owner, wanted: &Masquerade) -> impl Iterator<Item = Change> {
    let wanted = rules(owner, wanted).into_iter().rev();
    wanted.map(|rule| Change::Insert(checks(), rule))
}

/// Whose a rule is, as the registry has it.
fn attachment(found: &Found) -> Option<(Key, String)> {
    let comment = found.comment.as_deref()?;
    let tag = Tag::at_start(comment)?;
    Some((Key::Attachment(tag), attachment_comment_from(comment)))
}

/// What removes the rules whose tag is `unwanted`, and from the registry their owners and
/// those whose rules another implementation has removed.
pub fn remove(
    found: &[Found],
    registry: Option<&Elements>,
    unwanted: impl Fn(Tag) -> bool,
) -> Vec<Change> {
    let stale = |rule: &&Found| rule.handle.chain == CHECKS && tag(rule).is_some_and(&unwanted);
    let rules = found.iter().filter(stale);
    let mut changes: Vec<Change> = rules
        .map(|rule| Change::DeleteRule(TABLE, rule.handle.clone()))
        .collect();
    if registry.is_some() {
        let tags: BTreeSet<Tag> = in_chain(found, CHECKS).filter_map(tag).collect();
        let is_gone = |tag: &Tag| unwanted(*tag) || !tags.contains(tag);
        let touched = |key: &Key| matches!(key, Key::Attachment(tag) if is_gone(tag));
        changes.extend(settle(&MASQUERADED, registry, &Elements::new(), touched));
    }
    changes
}

/// Whose the rules are whose tag is `unwanted`, and the elements of the registry.
pub fn owners(
    found: &[Found],
    registry: Option<&Elements>,
    unwanted: impl Fn(Tag) -> bool,
) -> Vec<String> {
    let rules =
        in_chain(found, CHECKS).filter_map(|rule| Some((tag(rule)?, rule.comment.as_deref()?)));
    let elements = registry.into_iter().flatten();
    let elements = elements.filter_map(|(key, comment)| match key {
        Key::Attachment(tag) => Some((*tag, comment.as_str())),
        _ => None,
    });
    let stale = rules.chain(elements).filter(|(tag, _)| unwanted(*tag));
    stale
        .map(|(_, comment)| identity::owner_in_words(comment))
        .collect()
}

/// The rules of `wanted` that are missing, each as the command that would add it.
pub fn missing(owner: &Owner, wanted: &Masquerade, found: &[Found]) -> Vec<String> {
    let own = Tag::of(owner);
    let there: Vec<_> = in_chain(found, CHECKS)
        .filter(|rule| tag(rule).as_ref() == Some(&own))
        .filter_map(Found::statements)
        .collect();
    let absent = rules(owner, wanted)
        .into_iter()
        .filter(|rule| !there.contains(&rule.statements));
    let mut missing = missing_shared(&shared(), found);
    missing.extend(absent.map(|rule| command(&checks(), &rule)));
    missing
}
