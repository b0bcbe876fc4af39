//! What holds for every rule that the kernel may answer with.

use std::net::IpAddr;

use crate::netfilter::model::Protocol;
use crate::netfilter::nf_tables::decode::{decode, decode_known};
use crate::netfilter::nf_tables::encode::encode;
use crate::netfilter::nf_tables::found::Found;
use crate::netfilter::nf_tables::identity;
use crate::netfilter::nf_tables::identity::Tag;
use crate::netfilter::nf_tables::rule::Statement;
use crate::netfilter::nf_tables::ruleset::Family;
use crate::netfilter::nftables::port_maps;
use crate::netfilter::simulate::evaluate::evaluate;
use crate::netfilter::simulate::packet::Packet;

/// The attributes of a rule: what is understood of it is written as it is read, whose it
/// is stays the same, and only rules with our tag are ever anybody's to remove.
pub fn rule(answer: &[u8]) {
    for family in [Family::Ip, Family::Ip6, Family::Inet, Family::Bridge] {
        let found = Found::parse(family, answer);
        if let Some(statements) = found.statements() {
            assert_eq!(found.known_statements(), statements);
            assert_way_back(family, &statements);
            if let Some((protocol, port, _)) = port_maps::destination(&statements) {
                assert!(statements.contains(&Statement::Port { protocol, port }));
            }
        }
        // The bytes may as well be the expressions alone, or the user data.
        if let Some(statements) = decode(family, answer) {
            assert_way_back(family, &statements);
        }
        drop(decode_known(family, answer));
        assert_identity(found.comment.as_deref(), found.tag.as_ref());
    }
    let [from, to] = [[10, 9, 0, 2], [192, 0, 2, 9]].map(IpAddr::from);
    let mut packet = Packet::new(from, to, &[]);
    packet.port = Some((Protocol::Tcp, 80));
    drop(evaluate(answer, "filter", &[], &mut packet));
    let (comment, tag) = identity::parse(answer);
    assert_identity(comment.as_deref(), tag.as_ref());
}

fn assert_way_back(family: Family, statements: &[Statement]) {
    let bytes = encode(family, statements, 0);
    assert_eq!(decode(family, &bytes).as_deref(), Some(statements));
}

fn assert_identity(comment: Option<&str>, tag: Option<&Tag>) {
    let data = identity::user_data(comment, tag);
    assert!(data.len() <= 256, "the kernel takes 256 bytes");
    let (again, same) = identity::parse(&data);
    assert_eq!(same.as_ref(), tag);
    assert_eq!(again.is_some(), comment.is_some());
    let (again, comment) = (again.unwrap_or_default(), comment.unwrap_or_default());
    assert!(comment.starts_with(&again), "{again:?} of {comment:?}");
}
