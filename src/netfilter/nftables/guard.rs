//! What `route_localnet` needs beside it (CVE-2020-8558): without, whoever shares a link
//! with this host could send packets to services on 127.0.0.1.
//!
//! The reference has no such thing, so the table is our own. It is shared by all
//! containers and stays.

use std::borrow::Cow;

use ipnet::{IpNet, Ipv4Net};

use super::ruleset::{Chain, End, Family, Hook, Place, Rule, Statement, Table};
use super::transaction::Change;

const TABLE: Table = Table {
    family: Family::Ip,
    name: "cnibox_localnet",
    comment: Some("cnibox: 127.0.0.0/8 is for this host alone"),
};

/// Before connection tracking: what comes back through a mapping is not yet translated,
/// and so never bears an address of 127.0.0.0/8.
const RAW: i32 = -300;

/// The table, its chain and its rules, the same however often they are made.
pub fn ensure() -> Vec<Change> {
    let chain = Chain {
        table: TABLE,
        name: Cow::Borrowed("prerouting"),
        comment: None,
        hook: Some(Hook {
            kind: "filter",
            place: Place::Prerouting,
            priority: RAW,
        }),
    };
    let mut changes = vec![
        Change::AddTable(TABLE),
        Change::AddChain(chain.clone()),
        Change::FlushChain(chain.clone()),
    ];
    for end in [End::Source, End::Destination] {
        let from_outside = Statement::Interface {
            end: End::Source,
            is: false,
            name: "lo".into(),
        };
        let local = Statement::Address {
            end,
            is: true,
            net: IpNet::V4(Ipv4Net::new_assert(
                std::net::Ipv4Addr::new(127, 0, 0, 0),
                8,
            )),
        };
        let rule = Rule::shared([from_outside, local, Statement::Drop]);
        changes.push(Change::Append(chain.clone(), rule));
    }
    changes
}
