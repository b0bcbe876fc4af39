//! What holds for every configuration that host-local accepts, and for every file that
//! stands in its directory.

use std::collections::BTreeSet;

use anyhow::Result;

use super::config::Settings;
use super::owner::Owner;
use super::{allocator, index, resolv};
use crate::cni::address::parse_ip;
use crate::cni::skel::Call;

/// The settings of `call` keep their limits: ranges stand in their subnets and apart from
/// each other, and only their addresses are ever tried, each once.
///
/// # Errors
/// When there are none.
pub fn settings(call: &Call) -> Result<()> {
    /// Ranges can be as long as an address space.
    const MOST: usize = 300;
    let settings = Settings::read_for_status(&call.config)?;
    let ranges: Vec<_> = settings.sets.iter().flat_map(|set| &set.ranges).collect();
    for (index, range) in ranges.iter().enumerate() {
        assert_eq!(range.subnet, range.subnet.trunc());
        assert!(range.start <= range.end, "{range}");
        assert!(range.subnet.contains(&range.start) && range.subnet.contains(&range.end));
        assert_eq!(range.gateway.is_ipv4(), range.is_ipv4());
        assert!(
            !ranges
                .iter()
                .skip(index + 1)
                .any(|other| range.overlaps(other))
        );
    }
    for set in &settings.sets {
        let first = set.ranges.first();
        for last in [None, first.map(|range| range.end)] {
            let tried: Vec<_> = allocator::candidates(set, last).take(MOST).collect();
            assert!(tried.iter().all(|ip| set.range_of(*ip).is_some()));
            let unique: BTreeSet<_> = tried.iter().collect();
            assert_eq!(unique.len(), tried.len());
        }
    }
    let requested = settings.requested_with(&call.invocation.args)?;
    let unique: BTreeSet<_> = requested.iter().collect();
    assert_eq!(unique.len(), requested.len());
    Ok(())
}

/// A file called `name` in a lease directory: whose it is stays the same when it is
/// written again, byte for byte but for white space around; and in its index.
pub fn lease(name: &str, content: &[u8]) {
    if let Some(ip) = parse_ip(name).filter(|ip| ip.to_string() == name) {
        assert!(!name.contains('/') && parse_ip(&ip.to_string()) == Some(ip));
    }
    let text = String::from_utf8_lossy(content);
    let is_blank = |text: &str| text.chars().all(|c| c.is_whitespace() || c == '\0');
    let Some(owner) = Owner::parse(content) else {
        assert!(is_blank(&text), "{text:?} has no owner");
        return;
    };
    let written = owner.content();
    assert_eq!(Owner::parse(written.as_bytes()), Some(owner.clone()));
    let around = text.split_once(&written);
    assert!(
        around.is_some_and(|(before, after)| is_blank(before) && is_blank(after)),
        "{text:?} is written as {written:?}"
    );
    index::fuzz(content, &owner);
}

/// A `resolv.conf`: no word is empty or has a space in it.
pub fn resolv_conf(content: &[u8]) {
    let dns = resolv::parse(&String::from_utf8_lossy(content));
    let words = dns
        .nameservers
        .iter()
        .chain(&dns.search)
        .chain(&dns.options);
    for word in words {
        assert!(!word.is_empty() && !word.contains(char::is_whitespace));
    }
    assert!(!dns.domain.contains(char::is_whitespace));
}
