//! Frames from a container must carry its own address (layout: docs/compatibility.md#5.7).

use anyhow::Result;

use crate::cni::invocation::Attachment;
use crate::failure::{Failure, Kind};
use crate::net::mac::Mac;
use crate::netfilter::model::Owner;
use crate::netfilter::nf_tables::among::End;
use crate::netfilter::nf_tables::change::Change;
use crate::netfilter::nf_tables::found::Found;
use crate::netfilter::nf_tables::identity::{Tag, spoof_check_comment, spoof_check_id};
use crate::netfilter::nf_tables::rule::{Rule, Statement};
use crate::netfilter::nf_tables::ruleset::{Chain, Family, Hook, Place, Table};

/// Names that other implementations know; ebtables uses them as well.
pub const TABLE: Table = Table::named(Family::Bridge, "nat");
pub const PREROUTING: &str = "PREROUTING";
const INTERFACE_PREFIX: &str = "cni-br-iface-";
const MAC_SUFFIX: &str = "-mac";

/// `NFT_CHAIN_MAXNAMELEN`, without the zero byte: the kernel takes no longer name.
const CHAIN_NAME_MAX: usize = 255;

/// The names of an owner's two chains: the second does the work.
pub fn chains(owner: &Owner) -> [String; 2] {
    let interface = format!("{INTERFACE_PREFIX}{}", spoof_check_id(owner));
    let mac = format!("{interface}{MAC_SUFFIX}");
    [interface, mac]
}

/// Whether the kernel can have the owner's chains.
///
/// # Errors
/// [`Kind::Invalid`] when their names, which the container id is part of, are too long for it.
pub fn fits(owner: &Owner) -> Result<()> {
    let longest = chains(owner).iter().map(String::len).max().unwrap_or(0);
    if longest <= CHAIN_NAME_MAX {
        return Ok(());
    }
    let Attachment {
        container_id,
        ifname,
    } = &owner.attachment;
    let most = container_id.len().saturating_sub(longest - CHAIN_NAME_MAX);
    let sentence = "macspoofchk cannot serve a container id this long";
    Err(Failure::new(Kind::Invalid, sentence).because(format!(
        "the id has {} characters; with interface {ifname} there is room for {most} in the \
         names of the rules: unset \"macspoofchk\", or use shorter ids",
        container_id.len()
    )))
}

/// The rules of an attachment, each with the chain it is in.
pub fn rules(owner: &Owner, host_end: &str, mac: Mac) -> Vec<(String, Rule)> {
    let rule = |statements| Rule {
        statements,
        comment: Some(spoof_check_comment(owner)),
        tag: Some(Tag::of(owner)),
    };
    let [interface, addresses] = chains(owner);
    let from = Statement::Interface {
        end: End::Source,
        is: true,
        name: host_end.to_owned(),
    };
    let jump = |to: &str| Statement::Jump(to.to_owned().into());
    vec![
        (PREROUTING.to_owned(), rule(vec![from, jump(&interface)])),
        (interface, rule(vec![jump(&addresses)])),
        (
            addresses.clone(),
            rule(vec![Statement::EtherSource(mac), Statement::Return]),
        ),
        (addresses, rule(vec![Statement::Drop])),
    ]
}

/// What makes exactly these rules exist, given the chains that are `present` of
/// [`PREROUTING`] and the owner's, and the rules of the former if any of the latter are.
pub fn ensure(
    owner: &Owner,
    host_end: &str,
    mac: Mac,
    present: &[String],
    found: &[Found],
) -> Vec<Change> {
    let prerouting = Chain {
        hook: Some(Hook {
            kind: "filter",
            place: Place::Prerouting,
            priority: -300,
        }),
        ..chain(PREROUTING)
    };
    let [interface, addresses] = chains(owner);
    let mut changes = vec![Change::AddTable(TABLE)];
    changes.extend(remove_jumps(&interface, found));
    for chain in [prerouting, chain(&interface), chain(&addresses)] {
        // Adding one again would do no harm but takes the kernel a grace period.
        if !present.iter().any(|name| *name == chain.name) {
            changes.push(Change::AddChain(chain));
        } else if chain.name != PREROUTING {
            changes.push(Change::FlushChain(chain));
        }
    }
    let rules = rules(owner, host_end, mac).into_iter();
    changes.extend(rules.map(|(name, rule)| Change::Append(chain(&name), rule)));
    changes
}

/// Whose a rule of [`PREROUTING`] is, as the chain it leads to says: container id and
/// interface, in one word.
pub fn owner_id(rule: &Found) -> Option<String> {
    let target = jump_target(rule)?;
    target.strip_prefix(INTERFACE_PREFIX).map(str::to_owned)
}

/// What removes the chains `present`, of one owner, and the jump to them from among the
/// rules of [`PREROUTING`].
pub fn remove(present: &[String], found: &[Found]) -> Vec<Change> {
    let jumps = present.iter().flat_map(|name| remove_jumps(name, found));
    let flushes = present.iter().map(|name| Change::FlushChain(chain(name)));
    let chains = present.iter().map(|name| Change::DeleteChain(chain(name)));
    jumps.chain(flushes).chain(chains).collect()
}

/// The chains of the attachments to `network` that are not in `valid`, as far as rules
/// of [`PREROUTING`] lead to them.
pub fn stale(network: &str, valid: &[Attachment], found: &[Found]) -> Vec<[String; 2]> {
    stale_interfaces(network, valid, found)
        .map(|interface| {
            let mac = format!("{interface}{MAC_SUFFIX}");
            [interface, mac]
        })
        .collect()
}

/// Whose they are: container id and interface, as they stand in the names of the chains.
pub fn owners(network: &str, valid: &[Attachment], found: &[Found]) -> Vec<String> {
    stale_interfaces(network, valid, found)
        .map(|interface| interface.replacen(INTERFACE_PREFIX, "", 1))
        .collect()
}

/// The first of an owner's two chains each.
fn stale_interfaces(
    network: &str,
    valid: &[Attachment],
    found: &[Found],
) -> impl Iterator<Item = String> {
    let is_stale = Tag::stale(network, valid);
    let stale = found
        .iter()
        .filter(move |rule| rule.tag.is_some_and(&is_stale));
    stale
        .filter_map(jump_target)
        .filter(|interface| interface.starts_with(INTERFACE_PREFIX))
}

fn remove_jumps(to: &str, found: &[Found]) -> Vec<Change> {
    found
        .iter()
        .filter(|rule| jump_target(rule).as_deref() == Some(to))
        .map(|rule| Change::DeleteRule(TABLE, rule.handle.clone()))
        .collect()
}

fn jump_target(rule: &Found) -> Option<String> {
    match rule.statements()?.pop()? {
        Statement::Jump(chain) => Some(chain.into_owned()),
        _ => None,
    }
}

/// A chain of the table.
pub fn chain(name: &str) -> Chain {
    Chain::named(TABLE, name.to_owned())
}
