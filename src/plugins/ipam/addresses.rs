//! A set of addresses that takes little room while they lie close together, as those do that
//! are handed out one after the other.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Neighbours, which differ in the last byte only: a bit for each.
type Block = [u64; 4];

/// Blocks by their first address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Addresses {
    blocks: BTreeMap<IpAddr, Block>,
}

impl Addresses {
    /// Puts `ip` in.
    pub fn insert(&mut self, ip: IpAddr) {
        let (first, word, bit) = place(ip);
        let block = self.blocks.entry(first).or_default();
        if let Some(word) = block.get_mut(word) {
            *word |= bit;
        }
    }

    /// Takes `ip` out.
    pub fn remove(&mut self, ip: IpAddr) {
        let (first, word, bit) = place(ip);
        let Some(block) = self.blocks.get_mut(&first) else {
            return;
        };
        if let Some(word) = block.get_mut(word) {
            *word &= !bit;
        }
        if *block == Block::default() {
            self.blocks.remove(&first);
        }
    }

    /// Whether `ip` is in.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (first, word, bit) = place(ip);
        let block = self.blocks.get(&first);
        block.is_some_and(|block| block.get(word).is_some_and(|word| word & bit != 0))
    }

    /// How many there are from `start` to `end`, both included.
    pub fn count_between(&self, start: IpAddr, end: IpAddr) -> usize {
        let within = start..=end;
        let blocks = self.blocks.range(with_last_byte(start, 0)..=end);
        blocks
            .map(|(first, block)| {
                if within.contains(first) && within.contains(&with_last_byte(*first, u8::MAX)) {
                    return block.iter().map(|word| word.count_ones() as usize).sum();
                }
                in_block(*first, *block)
                    .filter(|ip| within.contains(ip))
                    .count()
            })
            .sum()
    }

    /// Each once, from the smallest on.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let blocks = self.blocks.iter();
        blocks.flat_map(|(first, block)| in_block(*first, *block))
    }
}

fn in_block(first: IpAddr, block: Block) -> impl Iterator<Item = IpAddr> {
    let ips = (0..=u8::MAX).map(move |last| with_last_byte(first, last));
    ips.filter(move |ip| {
        let (_, word, bit) = place(*ip);
        block.get(word).is_some_and(|word| word & bit != 0)
    })
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<T: IntoIterator<Item = IpAddr>>(addresses: T) -> Self {
        let mut set = Self::default();
        addresses.into_iter().for_each(|ip| set.insert(ip));
        set
    }
}

/// The first address of the block of `ip`, the word in the block and the bit in the word.
fn place(ip: IpAddr) -> (IpAddr, usize, u64) {
    let last = match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    };
    (
        with_last_byte(ip, 0),
        usize::from(last / 64),
        1 << (last % 64),
    )
}

fn with_last_byte(ip: IpAddr, last: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            Ipv4Addr::new(a, b, c, last).into()
        }
        IpAddr::V6(ip) => {
            let mut bytes = ip.octets();
            bytes[15] = last;
            Ipv6Addr::from(bytes).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_in_until_it_is_taken_out() {
        let ips: Vec<IpAddr> = [
            "10.0.0.0",
            "10.0.0.63",
            "10.0.0.64",
            "10.0.0.255",
            "10.0.1.0",
            "fd00::",
            "fd00::ff",
            "fd00::100",
        ]
        .map(|ip| ip.parse().unwrap())
        .into();
        let mut set: Addresses = ips.iter().copied().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), ips);
        for (start, end, count) in [
            ("10.0.0.0", "10.0.0.255", 4),
            ("10.0.0.1", "10.0.1.0", 4),
            ("10.0.0.64", "10.0.0.254", 1),
            ("10.0.1.1", "fd00::", 1),
            ("fd00::", "fd00::1:0", 3),
        ] {
            let found = set.count_between(start.parse().unwrap(), end.parse().unwrap());
            assert_eq!(found, count, "{start} {end}");
        }
        let json = serde_json::to_string(&set).unwrap();
        assert_eq!(serde_json::from_str::<Addresses>(&json).unwrap(), set);
        for other in ["10.0.0.1", "10.0.2.0", "::ffff:10.0.0.0", "fd00::1"] {
            assert!(!set.contains(other.parse().unwrap()), "{other}");
        }
        for ip in ips {
            assert!(set.contains(ip));
            set.remove(ip);
            set.remove(ip);
            assert!(!set.contains(ip));
        }
        assert_eq!(set, Addresses::default());
    }
}
