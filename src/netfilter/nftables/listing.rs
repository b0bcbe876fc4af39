//! The attachments' rules, read for people.

use anyhow::Result;

use crate::netfilter::listing::{Claim, OwnedRule, Purpose};
use crate::netfilter::model::BackendName;
use crate::netfilter::nf_tables::anonymous_set::resolve;
use crate::netfilter::nf_tables::found::{Found, rules};
use crate::netfilter::nf_tables::identity::{Tag, parse_details};
use crate::netfilter::nf_tables::rule::{Rule, Statement};
use crate::netfilter::nf_tables::ruleset::Table;
use crate::netfilter::nf_tables::set::Key;
use crate::netfilter::nfnetlink::socket::Socket;
use crate::netfilter::nftables::{firewall, masquerade, port_maps, spoof_check};
use crate::shell::{ShellCommand, shell};

/// The rules of every attachment, in the order in which packets meet them.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn list() -> Result<Vec<OwnedRule>> {
    let Some(socket) = Socket::open_if_any()? else {
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
    for table in port_maps::TABLES {
        // Who has no comment is nobody's.
        let found = rules(&socket, &table, None)?;
        let owned = found.iter().filter(|rule| rule.comment.is_some());
        for rule in owned {
            all.push(port_map(&socket, &table, rule)?);
        }
    }
    let found = rules(&socket, &masquerade::TABLE, Some(masquerade::CHECKS))?;
    all.extend(found.iter().filter_map(masquerade));
    let table = spoof_check::TABLE;
    let found = rules(&socket, &table, Some(spoof_check::PREROUTING))?;
    all.extend(found.iter().filter_map(spoof_check));
    for (set, elements) in firewall::passing(&socket)? {
        all.extend(elements.into_iter().filter_map(|(key, comment)| {
            let Key::Address(address) = key else {
                return None;
            };
            Some(OwnedRule {
                owner: masquerade_claim(&comment)?,
                backend: BackendName::Nftables,
                command: ShellCommand::nft(&format!("list set {set}")),
                text: format!("{address} may pass in table {}", set.table),
                purpose: Purpose::Pass(address),
                packets: None,
            })
        }));
    }
    Ok(all)
}

fn owned(table: &Table, rule: &Found, owner: Claim, purpose: Purpose) -> OwnedRule {
    OwnedRule {
        owner,
        backend: BackendName::Nftables,
        command: shell![
            "nft",
            "list",
            "chain",
            table.family,
            table.name,
            rule.handle.chain
        ],
        text: text(rule, rule.known_statements()),
        purpose,
        packets: rule.packets(),
    }
}

/// A rule with these statements in words.
fn text(rule: &Found, statements: Vec<Statement>) -> String {
    let text = Rule {
        statements,
        comment: rule.comment.clone(),
        tag: None,
    };
    text.to_string()
}

fn port_map(socket: &Socket, table: &Table, rule: &Found) -> Result<OwnedRule> {
    let owner = Claim {
        container_id: rule.comment.clone(),
        tag: rule.tag,
        ..Claim::default()
    };
    let mapping = port_maps::mapping(&rule.known_statements());
    let purpose = mapping.map_or(Purpose::Other, |(mapping, to)| {
        Purpose::PortMap(mapping, to)
    });
    let mut statements = rule.known_statements();
    resolve(socket, table, &mut statements)?;
    let text = text(rule, statements);
    Ok(OwnedRule {
        text,
        ..owned(table, rule, owner, purpose)
    })
}

/// Whose masquerade rules have this comment.
pub fn masquerade_claim(comment: &str) -> Option<Claim> {
    let names = parse_details(comment);
    Some(Claim {
        network: names.map(|(network, _, _)| network.to_owned()),
        ifname: names.map(|(_, ifname, _)| ifname.to_owned()),
        // Cut where there was no room for all of it.
        container_id: names.map(|(_, _, id)| id.to_owned()),
        tag: Some(Tag::at_start(comment)?),
    })
}

fn masquerade(rule: &Found) -> Option<OwnedRule> {
    let owner = masquerade_claim(rule.comment.as_deref()?)?;
    let source = rule
        .known_statements()
        .into_iter()
        .find_map(|statement| match statement {
            Statement::Address { net, is: true, .. } => Some(net.addr()),
            _ => None,
        });
    let purpose = source.map_or(Purpose::Other, Purpose::Masquerade);
    Some(owned(&masquerade::TABLE, rule, owner, purpose))
}

fn spoof_check(rule: &Found) -> Option<OwnedRule> {
    let id = spoof_check::owner_id(rule)?;
    let (container_id, ifname) = id.rsplit_once('-')?;
    let owner = Claim {
        container_id: Some(container_id.to_owned()),
        ifname: Some(ifname.to_owned()),
        tag: rule.tag,
        ..Claim::default()
    };
    Some(owned(&spoof_check::TABLE, rule, owner, Purpose::Other))
}
