//! Range sets: an attachment gets one address from each.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use super::addresses::Addresses;
use super::range::{Range, Written};
use crate::cni::ipam::one_per_family;
use crate::cni::json::Problem;
use crate::cni::version::Version;

/// Ranges of one IP version that do not overlap; addresses come from any of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeSet {
    pub ranges: Vec<Range>,
}

impl RangeSet {
    /// The set at `path`, the configuration's `number` from 0, of ranges that each have a
    /// path of their own. What is wrong goes on `problems`.
    pub fn resolve(
        path: &str,
        number: usize,
        written: &[(String, &Written)],
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut set = Self::default();
        if written.is_empty() {
            let message = "the range set is empty: give it a range, or remove it";
            let sentence = format!("invalid range set {number}: empty range set");
            problems.push(Problem::new(path, message).told_as(sentence));
        }
        for (path, written) in written {
            let Some(range) = Range::resolve(written, path, number, problems) else {
                continue;
            };
            if let Some((message, sentence)) = set.conflict(&range) {
                let sentence = format!("invalid range set {number}: {sentence}");
                problems.push(Problem::new(path.clone(), message).told_as(sentence));
            }
            set.ranges.push(range);
        }
        set
    }

    /// Why `range` cannot join this set, in our words and in the reference's.
    fn conflict(&self, range: &Range) -> Option<(String, String)> {
        if let Some(other) = self.ranges.iter().find(|r| r.is_ipv4() != range.is_ipv4()) {
            let message = format!(
                "{range} is not of the same IP version as {other}: give each version a range set of its own"
            );
            return Some((message, "mixed address families".to_owned()));
        }
        let other = self.ranges.iter().find(|r| r.overlaps(range))?;
        Some((
            format!("{range} overlaps with {other} of the same range set"),
            format!("subnets {other} and {range} overlap"),
        ))
    }

    /// The range that `ip` lies in.
    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.ranges.iter().find(|range| range.contains(ip))
    }

    /// How many addresses the set has, and how many of these are in `taken`.
    pub fn count(&self, taken: &Addresses) -> (u128, usize) {
        let taken = |range: &Range| taken.count_between(range.start, range.end);
        (
            self.ranges
                .iter()
                .map(Range::size)
                .fold(0, u128::saturating_add),
            self.ranges.iter().map(taken).sum(),
        )
    }

    /// Whether `ip` is a gateway of this set.
    pub fn has_gateway(&self, ip: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.gateway == ip)
    }

    /// Whether every address of this set is a gateway of one of `all` sets: those are never
    /// handed out.
    pub fn is_full_of_gateways(&self, all: &[Self]) -> bool {
        let ranges = all.iter().flat_map(|set| &set.ranges);
        let gateways: BTreeSet<IpAddr> = ranges.map(|range| range.gateway).collect();
        let inside = gateways.iter().filter(|ip| self.range_of(**ip).is_some());
        let (size, _) = self.count(&Addresses::default());
        size != 0 && size == inside.count() as u128
    }

    fn overlap<'a>(&'a self, other: &'a Self) -> Option<(&'a Range, &'a Range)> {
        self.ranges.iter().find_map(|ours| {
            let theirs = other.ranges.iter().find(|theirs| ours.overlaps(theirs))?;
            Some((ours, theirs))
        })
    }
}

/// `10.0.0.1-10.0.0.9,10.0.0.20-10.0.0.30`: runtimes and people look for this in messages.
impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{range}")?;
        }
        Ok(())
    }
}

/// Rules that hold between sets: what a result of `version` can express, and no address
/// in two sets. `sets` are with their paths.
pub fn check(sets: &[(String, RangeSet)], version: Version, problems: &mut Vec<Problem>) {
    if version < Version::V0_3_0 {
        for v4 in [true, false] {
            let of_family = |set: &RangeSet| set.ranges.first().is_some_and(|r| r.is_ipv4() == v4);
            if let Some((path, _)) = sets.iter().filter(|(_, set)| of_family(set)).nth(1) {
                let message = format!(
                    "a second {} range set needs cniVersion 0.3.0 or newer, not {version}",
                    if v4 { "IPv4" } else { "IPv6" }
                );
                let problem = Problem::new(path.clone(), message);
                problems.push(problem.told_as(one_per_family(version)));
            }
        }
    }
    for (index, (path, set)) in sets.iter().enumerate() {
        for (earlier, (_, other)) in sets.iter().enumerate().take(index) {
            if let Some((ours, theirs)) = set.overlap(other) {
                let message = format!("{ours} overlaps with {theirs} of range set {earlier}");
                let sentence = format!("range set {earlier} overlaps with {index}");
                problems.push(Problem::new(path.clone(), message).told_as(sentence));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(subnet: &str, start: &str, end: &str) -> Written {
        Written {
            subnet: subnet.into(),
            range_start: start.into(),
            range_end: end.into(),
            gateway: String::new(),
        }
    }

    fn resolve(list: &[Written]) -> (RangeSet, Vec<String>) {
        let mut problems = Vec::new();
        let named: Vec<_> = list
            .iter()
            .enumerate()
            .map(|(i, w)| (format!("s[{i}]"), w))
            .collect();
        let set = RangeSet::resolve("s", 0, &named, &mut problems);
        (set, problems.into_iter().map(|p| p.path).collect())
    }

    #[test]
    fn sets_are_of_one_version_without_overlap() {
        let a = written("10.0.0.0/24", "", "10.0.0.9");
        let b = written("10.0.0.0/24", "10.0.0.20", "10.0.0.30");
        let (set, problems) = resolve(&[a.clone(), b.clone()]);
        assert_eq!(problems, [""; 0]);
        assert_eq!(set.to_string(), "10.0.0.1-10.0.0.9,10.0.0.20-10.0.0.30");
        assert!(set.range_of("10.0.0.15".parse().unwrap()).is_none());
        assert!(set.has_gateway("10.0.0.1".parse().unwrap()));

        assert_eq!(resolve(&[]).1, ["s"]);
        assert_eq!(
            resolve(&[a.clone(), written("fd00::/64", "", "")]).1,
            ["s[1]"]
        );
        assert_eq!(resolve(&[a.clone(), b, a]).1, ["s[2]"]);
    }

    #[test]
    fn gateways_can_take_all_of_a_set() {
        let set = |gateway: &str, end: &str| {
            let range = Written {
                gateway: gateway.into(),
                ..written("10.0.0.0/24", "10.0.0.5", end)
            };
            resolve(&[range]).0
        };
        let one = set("10.0.0.5", "10.0.0.5");
        assert!(one.is_full_of_gateways(std::slice::from_ref(&one)));
        let (two, other) = (set("10.0.0.5", "10.0.0.6"), set("10.0.0.6", "10.0.0.9"));
        assert!(!two.is_full_of_gateways(std::slice::from_ref(&two)));
        assert!(two.is_full_of_gateways(&[two.clone(), other]));
        assert!(!RangeSet::default().is_full_of_gateways(&[]));
    }

    #[test]
    fn sets_do_not_overlap_and_old_results_have_one_per_version() {
        let set = |subnet: &str| resolve(&[written(subnet, "", "")]).0;
        let named = |subnets: &[&str]| -> Vec<_> {
            subnets
                .iter()
                .enumerate()
                .map(|(i, subnet)| (format!("s[{i}]"), set(subnet)))
                .collect()
        };
        let paths = |subnets: &[&str], version| {
            let mut problems = Vec::new();
            check(&named(subnets), version, &mut problems);
            problems.into_iter().map(|p| p.path).collect::<Vec<_>>()
        };
        let two = ["10.0.0.0/24", "fd00::/64", "10.0.1.0/24"];
        assert_eq!(paths(&two, Version::V0_2_0), ["s[2]"]);
        assert_eq!(paths(&two[..2], Version::V0_1_0), [""; 0]);
        assert_eq!(paths(&two, Version::V0_3_0), [""; 0]);
        let nested = ["10.0.0.0/24", "10.0.0.0/16"];
        assert_eq!(paths(&nested, Version::NEWEST), ["s[1]"]);
    }
}
