//! Who has rules, in sets of our own, so that ADD need not list rules to learn it.
//!
//! The elements stand for rules and come and go with them, in the same transactions. An
//! ADD creates its own and is refused when one of them is there already: only then are
//! the rules listed, to replace what the attachment had before and to name the owner of a
//! port that it takes over.
//!
//! The rules alone decide what happens to packets, and what is told to the operator. An
//! element that is left over, because another implementation removed the rules or
//! somebody flushed a chain, costs its next user that listing and nothing else; it goes with
//! the next DEL or GC, or with the next ADD that can tell from the numbers. One that
//! is missing (rules that another implementation added after the set was made; a DEL
//! that overlaps with the ADD of the port's next owner) costs at most a warning.

use crate::netfilter::model::Owner;
use crate::netfilter::nf_tables::change::Change;
use crate::netfilter::nf_tables::identity::{Tag, attachment_comment};
use crate::netfilter::nf_tables::ruleset::{Family, Table};
use crate::netfilter::nf_tables::set::{Elements, Key, Keys, Set};

/// The table has no chains: no packet comes here.
pub const TABLE: Table = Table {
    family: Family::Inet,
    name: "cnibox",
    comment: Some("cnibox: who has rules in which table; asked by ADD, never by packets"),
};

/// The attachments that have masquerade rules.
pub const MASQUERADED: Set = Set {
    table: TABLE,
    name: "masqueraded",
    comment: "attachments in inet cni_plugins_masquerade: H(network), H(ifname:id)",
    keys: Keys::Attachments,
};

/// The attachments that have port mappings.
pub const MAPPED: Set = Set {
    table: TABLE,
    name: "mapped",
    comment: "attachments in ip and ip6 cni_hostport: H(network), H(ifname:id)",
    keys: Keys::Attachments,
};

/// The ports that are mapped, on whatever addresses of the host, each with the id of the
/// container that has it.
pub const HOST_PORTS: Set = Set {
    table: TABLE,
    name: "host_ports",
    comment: "ports in ip and ip6 cni_hostport, and the container that has them",
    keys: Keys::Ports,
};

/// The element of an attachment.
pub fn attachment(owner: &Owner) -> (Key, String) {
    (Key::Attachment(Tag::of(owner)), attachment_comment(owner))
}

/// What makes the `touched` elements of a set those in `wanted`, given what is `there`.
/// Where there is no set yet, it is made to hold all that is wanted; unless that is
/// nothing.
pub fn settle(
    set: &Set,
    there: Option<&Elements>,
    wanted: &Elements,
    touched: impl Fn(&Key) -> bool,
) -> Vec<Change> {
    let Some(there) = there else {
        if wanted.is_empty() {
            return Vec::new();
        }
        let mut changes = Change::make_set(set).to_vec();
        changes.extend(Change::create_elements(set, wanted.clone()));
        return changes;
    };
    // Those in `a` that are not, or not the same, in `b`.
    let touched = &touched;
    let only_in = |a: &Elements, b: &Elements| -> Elements {
        let changed = a
            .iter()
            .filter(|(key, comment)| touched(key) && b.get(*key) != Some(*comment));
        changed
            .map(|(key, comment)| (key.clone(), comment.clone()))
            .collect()
    };
    let gone: Vec<Key> = only_in(there, wanted).into_keys().collect();
    let mut changes = Change::delete_elements(set, &gone);
    changes.extend(Change::create_elements(set, only_in(wanted, there)));
    changes
}
