//! Source NAT for what leaves a network (layout: behaviour 5.8).

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::identity::{self, Tag, masquerade_comment};
use super::ruleset::{Chain, End, Family, Hook, Place, Rule, Statement, Table};
use super::shared::{Shared, Snapshot, command, ensure_shared, in_chain, missing_shared};
use super::transaction::{Change, Found};
use crate::netfilter::{Masquerade, Owner};

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

/// What makes exactly `wanted` exist for `owner`, given all rules of the table.
pub fn ensure(owner: &Owner, wanted: &Masquerade, there: &Snapshot) -> Vec<Change> {
    let mut changes = ensure_shared(TABLE, &shared(), there);
    let own = Tag::of(owner);
    changes.extend(remove(&there.rules, |tag| *tag == own));
    let wanted = rules(owner, wanted).into_iter().rev();
    changes.extend(wanted.map(|rule| Change::Insert(checks(), rule)));
    changes
}

/// What removes the rules whose tag is `unwanted`.
pub fn remove(found: &[Found], unwanted: impl Fn(&Tag) -> bool) -> Vec<Change> {
    found
        .iter()
        .filter(|rule| rule.handle.chain == CHECKS && tag(rule).is_some_and(|tag| unwanted(&tag)))
        .map(|rule| Change::DeleteRule(TABLE, rule.handle.clone()))
        .collect()
}

/// Whose the rules are whose tag is `unwanted`.
pub fn owners(found: &[Found], unwanted: impl Fn(&Tag) -> bool) -> Vec<String> {
    in_chain(found, CHECKS)
        .filter(|rule| tag(rule).is_some_and(|tag| unwanted(&tag)))
        .filter_map(|rule| rule.comment.as_deref().map(identity::owner_in_words))
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
