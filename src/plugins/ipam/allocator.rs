//! The order in which addresses are tried (docs/compatibility.md#6.3). Pure: which are taken or are
//! gateways is the caller's business.

use std::net::IpAddr;

use ipnet::{IpAddrRange, Ipv4AddrRange, Ipv6AddrRange};

use super::range::Range;
use super::range_set::RangeSet;

/// Every address of `set`, each once: from the one after `last`
/// (the one reserved last) round to `last` itself, so that a freed address rests as long
/// as possible. From the beginning where `last` is not in the set.
pub fn candidates(
    set: &RangeSet,
    last: Option<IpAddr>,
) -> impl Iterator<Item = IpAddr> + Clone + '_ {
    let ranges = &set.ranges;
    let at = last.and_then(|last| {
        let position = ranges.iter().position(|range| range.contains(last))?;
        Some((position, last))
    });
    let mut stretches: Vec<IpAddrRange> = Vec::with_capacity(ranges.len() + 1);
    let whole = |range: &Range| addresses(range.start, range.end);
    if let Some((position, last)) = at {
        let mut around = ranges.iter().cycle().skip(position).take(ranges.len());
        if let Some(range) = around.next() {
            stretches.extend(addresses(last, range.end).map(|mut rest| {
                rest.next();
                rest
            }));
            stretches.extend(around.filter_map(whole));
            stretches.extend(addresses(range.start, last));
        }
    } else {
        stretches.extend(ranges.iter().filter_map(whole));
    }
    stretches.into_iter().flatten()
}

/// Both ends included; nothing between two versions.
fn addresses(from: IpAddr, to: IpAddr) -> Option<IpAddrRange> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Some(Ipv4AddrRange::new(from, to).into()),
        (IpAddr::V6(from), IpAddr::V6(to)) => Some(Ipv6AddrRange::new(from, to).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::range::Written;
    use super::*;

    fn set(ranges: &[[&str; 4]]) -> RangeSet {
        let ranges = ranges
            .iter()
            .map(|[subnet, start, end, gateway]| {
                let written = Written {
                    subnet: (*subnet).into(),
                    range_start: (*start).into(),
                    range_end: (*end).into(),
                    gateway: (*gateway).into(),
                };
                Range::resolve(&written, "", 0, &mut Vec::new()).unwrap()
            })
            .collect();
        RangeSet { ranges }
    }

    /// The last numbers of the addresses.
    fn order(set: &RangeSet, last: &str) -> Vec<u8> {
        candidates(set, last.parse().ok())
            .map(|ip| match ip {
                IpAddr::V4(ip) => ip.octets()[3],
                IpAddr::V6(ip) => ip.octets()[15],
            })
            .collect()
    }

    #[test]
    fn round_robin_after_the_last_one() {
        let one = set(&[["10.0.0.0/29", "", "", ""]]);
        assert_eq!(order(&one, ""), [1, 2, 3, 4, 5, 6]);
        assert_eq!(order(&one, "10.0.0.4"), [5, 6, 1, 2, 3, 4]);
        assert_eq!(order(&one, "10.0.0.6"), [1, 2, 3, 4, 5, 6]);
        assert_eq!(order(&one, "10.0.0.1"), [2, 3, 4, 5, 6, 1]);
        assert_eq!(order(&one, "10.9.0.4"), [1, 2, 3, 4, 5, 6]);
        assert_eq!(order(&one, "fd00::4"), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn ranges_follow_each_other_in_a_ring() {
        let three = set(&[
            ["10.0.0.0/24", "10.0.0.10", "10.0.0.12", ""],
            ["10.0.0.0/24", "10.0.0.3", "10.0.0.4", ""],
            ["10.0.1.0/24", "10.0.1.1", "10.0.1.2", ""],
        ]);
        assert_eq!(order(&three, ""), [10, 11, 12, 3, 4, 1, 2]);
        assert_eq!(order(&three, "10.0.0.3"), [4, 1, 2, 10, 11, 12, 3]);
        assert_eq!(order(&three, "10.0.1.2"), [10, 11, 12, 3, 4, 1, 2]);
    }

    #[test]
    fn nothing_past_the_end() {
        let all = set(&[["fd00::/126", "fd00::", "", ""]]);
        assert_eq!(order(&all, ""), [0, 1, 2, 3]);
        let top = set(&[["255.255.255.252/30", "", "255.255.255.255", ""]]);
        assert_eq!(order(&top, "255.255.255.254"), [255, 253, 254]);
    }

    #[test]
    fn a_huge_range_is_walked_lazily() {
        let huge = set(&[["fd00::/16", "", "", ""]]);
        assert_eq!(
            candidates(&huge, None).next(),
            Some("fd00::1".parse().unwrap())
        );
    }
}
