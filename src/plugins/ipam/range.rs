//! One range of addresses: as written, and as it is meant (docs/compatibility.md#6.1 and docs/compatibility.md#6.2).

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use crate::cni::address::{parse_cidr, parse_ip};
use crate::cni::ipam::{invalid_cidr, invalid_ip};
use crate::cni::json::Problem;
use crate::cni::result::same_family;

/// A range as it stands in a configuration; empty text is "not told".
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Written {
    pub subnet: String,
    pub range_start: String,
    pub range_end: String,
    pub gateway: String,
}

/// Addresses of one subnet that may be handed out, except the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// Without host bits.
    pub subnet: IpNet,
    /// First address, inclusive.
    pub start: IpAddr,
    /// Last address, inclusive.
    pub end: IpAddr,
    /// Reported with every address; may lie outside the subnet.
    pub gateway: IpAddr,
}

impl Range {
    /// Gives `written` its meaning: defaults filled in, every rule checked. What is
    /// wrong goes on `problems`, below `path`; the range is of set number `set`.
    pub fn resolve(
        written: &Written,
        path: &str,
        set: usize,
        problems: &mut Vec<Problem>,
    ) -> Option<Self> {
        let mut reader = Reader {
            path,
            set,
            problems,
        };
        let subnet = reader.subnet(&written.subnet);
        let start = reader.address("rangeStart", &written.range_start);
        let end = reader.address("rangeEnd", &written.range_end);
        let gateway = reader.address("gateway", &written.gateway);
        let (subnet, start, end, gateway) = (subnet?, start?, end?, gateway?);
        reader.limits(subnet, start, end, gateway)
    }

    /// Whether `ip` is between the first and the last address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        // IPv4 and IPv6 addresses compare as unequal families, never as numbers.
        (self.start..=self.end).contains(&ip)
    }

    /// How many addresses that are; the number of all IPv6 addresses is one too large.
    pub fn size(&self) -> u128 {
        let number = |ip| match ip {
            IpAddr::V4(ip) => u128::from(ip.to_bits()),
            IpAddr::V6(ip) => ip.to_bits(),
        };
        (number(self.end) - number(self.start)).saturating_add(1)
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// Whether this is a range of IPv4 addresses.
    pub fn is_ipv4(&self) -> bool {
        self.start.is_ipv4()
    }
}

/// `10.0.0.1-10.0.0.254`.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// Reads the members of one range.
struct Reader<'a> {
    path: &'a str,
    set: usize,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    /// Notes a problem; `None`, to be returned.
    fn problem<T>(&mut self, key: &str, message: String) -> Option<T> {
        self.note(Problem::new(self.place(key), message))
    }

    /// The same for text that is no address, for which the reference has `sentence`.
    fn misread<T>(&mut self, key: &str, message: String, sentence: String) -> Option<T> {
        self.note(Problem::new(self.place(key), message).told_as(sentence))
    }

    /// The same for what the reference refuses with `sentence`, behind the number of the set.
    fn refuse<T>(&mut self, key: &str, message: String, sentence: &str) -> Option<T> {
        let sentence = format!("invalid range set {}: {sentence}", self.set);
        self.misread(key, message, sentence)
    }

    fn place(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }

    fn note<T>(&mut self, problem: Problem) -> Option<T> {
        self.problems.push(problem);
        None
    }

    fn subnet(&mut self, text: &str) -> Option<IpNet> {
        if text.is_empty() {
            let message = "is missing: a range needs its subnet".to_owned();
            return self.refuse("subnet", message, "IP <nil> not v4 nor v6");
        }
        let Some(subnet) = parse_cidr(text) else {
            let message =
                format!("\"{text}\" is not an address with prefix length, like 10.1.0.0/16");
            return self.misread("subnet", message, invalid_cidr(text));
        };
        let longest = subnet.max_prefix_len() - 2;
        if subnet.prefix_len() > longest {
            let message = format!(
                "{subnet} is too small: the longest prefix that leaves addresses to hand out is /{longest}"
            );
            let sentence = format!("Network {subnet} too small to allocate from");
            return self.refuse("subnet", message, &sentence);
        }
        // As the reference, which hands out addresses of IPv4 subnets only if they are
        // written so.
        if subnet.addr().is_ipv4() && text.contains(':') {
            let message = format!("{text} is an IPv4 subnet written as IPv6: write {subnet}");
            return self.refuse("subnet", message, "IPNet IP and Mask version mismatch");
        }
        if subnet.addr() != subnet.network() {
            let message = format!("{subnet} has host bits set: write {}", subnet.trunc());
            let sentence = format!(
                "Network has host bits set. For a subnet mask of length {} the network address is {}",
                subnet.prefix_len(),
                subnet.network()
            );
            return self.refuse("subnet", message, &sentence);
        }
        Some(subnet)
    }

    /// An address that may be left out: `Some(None)`.
    #[expect(
        clippy::option_option,
        reason = "the outer None is a problem that has been noted"
    )]
    fn address(&mut self, key: &str, text: &str) -> Option<Option<IpAddr>> {
        if text.is_empty() {
            return Some(None);
        }
        let Some(ip) = parse_ip(text) else {
            let message = format!("\"{text}\" is not an IP address");
            return self.misread(key, message, invalid_ip(text));
        };
        Some(Some(ip))
    }

    fn limits(
        &mut self,
        subnet: IpNet,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Option<Range> {
        let (first, last) = usable(subnet);
        if let Some(start) = start {
            let sentence = format!("RangeStart {start} not in network {subnet}");
            if !subnet.contains(&start) {
                let message = format!("{start} is outside subnet {subnet}");
                return self.refuse("rangeStart", message, &sentence);
            }
            if let Some(end) = end.filter(|end| start > *end) {
                let message = format!("{start} is after rangeEnd {end}");
                return self.refuse("rangeStart", message, &sentence);
            }
            // Filling in an end before the start would let the walk leave the subnet.
            if end.is_none() && start > last {
                return self.problem(
                    "rangeStart",
                    format!(
                        "{start} is after {last}, where the range ends without a rangeEnd: \
                         set rangeEnd to hand out {start} as well"
                    ),
                );
            }
        }
        let start = start.unwrap_or(first);
        if let Some(end) = end {
            let sentence = format!("RangeEnd {end} not in network {subnet}");
            if !subnet.contains(&end) {
                let message = format!("{end} is outside subnet {subnet}");
                return self.refuse("rangeEnd", message, &sentence);
            }
            if end < start {
                let message = format!("{end} is before the first address {start}");
                return self.refuse("rangeEnd", message, &sentence);
            }
        }
        let gateway = gateway.unwrap_or(first);
        if !same_family(gateway, subnet.addr()) {
            return self.problem(
                "gateway",
                format!("{gateway} is not of the same IP version as subnet {subnet}"),
            );
        }
        Some(Range {
            subnet,
            start,
            end: end.unwrap_or(last),
            gateway,
        })
    }
}

/// The first and the last address handed out by default. IPv6 has no broadcast address:
/// its last address is used.
fn usable(subnet: IpNet) -> (IpAddr, IpAddr) {
    match subnet {
        IpNet::V4(net) => (
            (net.network().to_bits() + 1).to_be_bytes().into(),
            (net.broadcast().to_bits() - 1).to_be_bytes().into(),
        ),
        IpNet::V6(net) => (
            (net.network().to_bits() + 1).to_be_bytes().into(),
            net.broadcast().into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `subnet start end gateway`, `-` being left out.
    fn resolve(text: &str) -> Result<Range, Vec<String>> {
        let words: Vec<&str> = text
            .split(' ')
            .map(|word| if word == "-" { "" } else { word })
            .chain(std::iter::repeat(""))
            .take(4)
            .collect();
        let written = Written {
            subnet: words[0].into(),
            range_start: words[1].into(),
            range_end: words[2].into(),
            gateway: words[3].into(),
        };
        let mut problems = Vec::new();
        let range = Range::resolve(&written, "r", 0, &mut problems);
        range.ok_or_else(|| {
            problems
                .into_iter()
                .map(|p| format!("{}: {}", p.path, p.message))
                .collect()
        })
    }

    #[test]
    fn defaults() {
        for (text, shown, gateway) in [
            ("10.0.0.0/24", "10.0.0.1-10.0.0.254", "10.0.0.1"),
            ("10.0.0.0/30", "10.0.0.1-10.0.0.2", "10.0.0.1"),
            ("fd00::/126", "fd00::1-fd00::3", "fd00::1"),
            ("fd00::/64", "fd00::1-fd00::ffff:ffff:ffff:ffff", "fd00::1"),
            (
                "10.0.0.0/24 10.0.0.0 10.0.0.255",
                "10.0.0.0-10.0.0.255",
                "10.0.0.1",
            ),
            (
                "10.0.0.0/24 10.0.0.255 10.0.0.255",
                "10.0.0.255-10.0.0.255",
                "10.0.0.1",
            ),
            (
                "10.0.0.0/24 - 10.0.0.9 10.0.0.9",
                "10.0.0.1-10.0.0.9",
                "10.0.0.9",
            ),
            (
                "10.0.0.0/24 - - 192.168.1.1",
                "10.0.0.1-10.0.0.254",
                "192.168.1.1",
            ),
            (
                "fd00::/120 fd00::5 - fe80::1",
                "fd00::5-fd00::ff",
                "fe80::1",
            ),
            (
                "10.0.0.0/24 ::ffff:10.0.0.7",
                "10.0.0.7-10.0.0.254",
                "10.0.0.1",
            ),
        ] {
            let range = resolve(text).unwrap();
            assert_eq!(range.to_string(), shown, "{text}");
            assert_eq!(range.gateway.to_string(), gateway, "{text}");
        }
    }

    #[test]
    fn refusals_name_the_member() {
        for (text, path, word) in [
            ("-", "r.subnet", "missing"),
            ("10.0.0.0", "r.subnet", "\"10.0.0.0\""),
            ("10.0.0.0/33", "r.subnet", "\"10.0.0.0/33\""),
            ("10.0.0.0/31", "r.subnet", "too small"),
            ("10.0.0.0/32", "r.subnet", "too small"),
            ("fd00::/127", "r.subnet", "too small"),
            ("fd00::/128", "r.subnet", "too small"),
            ("::ffff:10.0.0.0/120", "r.subnet", "written as IPv6"),
            ("10.0.0.1/24", "r.subnet", "write 10.0.0.0/24"),
            ("10.0.0.0/24 10.0.1.1", "r.rangeStart", "outside"),
            ("10.0.0.0/24 fd00::1", "r.rangeStart", "outside"),
            ("10.0.0.0/24 x", "r.rangeStart", "\"x\""),
            ("10.0.0.0/24 10.0.0.9 10.0.0.8", "r.rangeStart", "10.0.0.8"),
            ("10.0.0.0/24 10.0.0.9 9.0.0.8", "r.rangeStart", "9.0.0.8"),
            ("10.0.0.0/24 10.0.0.255", "r.rangeStart", "set rangeEnd"),
            ("10.0.0.0/24 - 10.0.1.8", "r.rangeEnd", "outside"),
            ("10.0.0.0/24 - 10.0.0.0", "r.rangeEnd", "before"),
            ("10.0.0.0/24 - - fd00::1", "r.gateway", "IP version"),
            ("fd00::/64 - - 10.0.0.1", "r.gateway", "IP version"),
            ("10.0.0.0/24 - - 10.0.0.01", "r.gateway", "\"10.0.0.01\""),
        ] {
            let problems = resolve(text).unwrap_err();
            assert_eq!(problems.len(), 1, "{text}");
            assert!(
                problems[0].starts_with(&format!("{path}: ")),
                "{text}: {problems:?}"
            );
            assert!(problems[0].contains(word), "{text}: {problems:?}");
        }
        assert_eq!(resolve("x y z w").unwrap_err().len(), 4);
    }

    #[test]
    fn overlap_is_of_addresses_not_subnets() {
        let range = |text| resolve(text).unwrap();
        let low = range("10.0.0.0/24 10.0.0.1 10.0.0.9");
        assert!(!low.overlaps(&range("10.0.0.0/24 10.0.0.10")));
        assert!(low.overlaps(&range("10.0.0.0/24 10.0.0.9")));
        assert!(!low.overlaps(&range("fd00::/64")));
        assert!(low.contains("10.0.0.9".parse().unwrap()));
        assert!(!low.contains("10.0.0.10".parse().unwrap()));
        assert!(!low.contains("fd00::1".parse().unwrap()));
    }
}
