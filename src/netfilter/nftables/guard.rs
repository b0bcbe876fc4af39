//! What `route_localnet` needs beside it (CVE-2020-8558): with that sysctl the kernel no
//! longer drops packets to or from 127.0.0.0/8 that come from outside, and whoever shares
//! a link with this host could reach services on 127.0.0.1.
//!
//! The reference has no such thing, so the table is our own. It is shared by all
//! containers, of either backend, and stays. A set in it says who needs the sysctl.

use ipnet::Ipv4Net;

use crate::netfilter::nf_tables::among::End;
use crate::netfilter::nf_tables::rule::{Rule, Statement};
use crate::netfilter::nf_tables::ruleset::{Chain, Family, Hook, Place, Table};
use crate::netfilter::nf_tables::set::{Keys, Set};
use crate::netfilter::nftables::shared::Shared;

/// The table of the guard.
pub const TABLE: Table = Table {
    family: Family::Ip,
    name: "cnibox_localnet",
    comment: Some("cnibox: 127.0.0.0/8 is for this host alone"),
};

/// The links with `route_localnet` on, each with the attachments that need it.
pub const USERS: Set = Set {
    table: TABLE,
    name: "users",
    comment: "links with route_localnet, and who needs it: H(network), H(ifname:id)",
    keys: Keys::Devices,
};

const LOCALNET: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8);

/// Its one chain. In front of connection tracking (priority "raw") no packet that is meant
/// to be here has an address of 127.0.0.0/8, not even what comes back through a mapping.
pub fn shared() -> Vec<Shared> {
    let rule = |end| {
        Rule::shared([
            Statement::Interface {
                end: End::Source,
                is: false,
                name: "lo".into(),
            },
            Statement::Address {
                end,
                is: true,
                net: LOCALNET.into(),
            },
            Statement::Drop,
        ])
    };
    let chain = Chain {
        table: TABLE,
        name: "prerouting".into(),
        comment: None,
        hook: Some(Hook {
            kind: "filter",
            place: Place::Prerouting,
            priority: -300,
        }),
    };
    vec![Shared::Fixed(
        chain,
        vec![rule(End::Source), rule(End::Destination)],
    )]
}
