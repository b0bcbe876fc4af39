//! What messages of the kernel's `nf_tables` have in common.

use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_netfilter::nftables::{NfTablesMessage, RuleAttribute};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use nix::errno::Errno;

use crate::net::netlink::errno;
use crate::netfilter::nf_tables::ruleset::{Family, Table};

/// `NFTA_RULE_EXPRESSIONS`.
pub const EXPRESSIONS: u16 = 4;

/// The names that lead to a rule.
pub fn rule_place(table: &Table, chain: &str) -> Vec<RuleAttribute> {
    vec![
        RuleAttribute::Table(table.name.to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
    ]
}

/// What a rule says, `encoded`.
pub fn expressions(encoded: Vec<u8>) -> RuleAttribute {
    RuleAttribute::Other(DefaultNla::new(EXPRESSIONS | NLA_F_NESTED, encoded))
}

/// A message about objects of `family`.
pub fn with_family(family: Family, message: NfTablesMessage) -> NetfilterMessage {
    let family = match family {
        Family::Ip => NetfilterProtoFamily::IPv4,
        Family::Ip6 => NetfilterProtoFamily::IPv6,
        Family::Inet => NetfilterProtoFamily::Inet,
        Family::Bridge => NetfilterProtoFamily::Bridge,
        Family::Netdev => NetfilterProtoFamily::NetDev,
    };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

/// A string attribute.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// Whether the error means that there is no such object, or that this kernel has no
/// `nf_tables` (EINVAL), or not for the family, or that its name is longer than any can
/// be (ERANGE).
pub fn is_absent(error: &anyhow::Error) -> bool {
    use Errno::{EAFNOSUPPORT, EINVAL, ENOENT, EOPNOTSUPP, EPROTONOSUPPORT, ERANGE};
    const ABSENT: [Errno; 6] = [
        ENOENT,
        EINVAL,
        EOPNOTSUPP,
        EAFNOSUPPORT,
        EPROTONOSUPPORT,
        ERANGE,
    ];
    errno(error).is_some_and(|errno| ABSENT.contains(&errno))
}
