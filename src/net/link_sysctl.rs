//! The sysctls that every link has beside `all` (`net/ipv4/conf/LINK/NAME`), and what the
//! kernel makes of the link's value and that of `all`.
//!
//! The kernel is the authority: `IN_DEV_ANDCONF`, `IN_DEV_ORCONF` and `IN_DEV_MAXCONF` in its
//! `include/linux/inetdevice.h` for IPv4, and `net/ipv6/addrconf.c`, `ndisc.c` and
//! `ip6_output.c` for IPv6, where nearly every sysctl has its own rule. Writing `all` changes
//! the links' own values for few of them (`forwarding`, `disable_ipv6`).

/// A sysctl of one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkSysctl<'a> {
    /// `ipv4` or `ipv6`.
    section: &'static str,
    /// The link's name.
    link: &'a str,
    /// Such as `rp_filter`.
    name: &'static str,
}

/// How the kernel makes one value of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Combination {
    /// The link's value counts alone.
    Own,
    /// The value of `all` counts alone.
    All,
    /// It is on where both are.
    And,
    /// It is on where either is.
    Or,
    /// The greater one counts.
    Max,
    /// The value of `all` counts unless it is 0.
    AllFirst,
    /// `accept_ra`: the link's own, and 1 is off on a link that forwards.
    Advertisements,
    /// `accept_redirects` of IPv4: both where the link forwards, else either.
    Redirects,
}

impl<'a> LinkSysctl<'a> {
    /// One of IPv4.
    pub const fn v4(link: &'a str, name: &'static str) -> Self {
        Self {
            section: "ipv4",
            link,
            name,
        }
    }

    /// One of IPv6.
    pub const fn v6(link: &'a str, name: &'static str) -> Self {
        Self {
            section: "ipv6",
            link,
            name,
        }
    }

    /// The path of the link's own value, below [`ROOT`](super::sysctl::ROOT).
    pub fn key(self) -> String {
        self.key_of(self.link)
    }

    /// The path of the same sysctl of `all`, of `default`, which new links start with, or of
    /// another link.
    pub fn key_of(self, link: &str) -> String {
        format!("{}/conf/{link}/{}", self.section, self.name)
    }

    /// The path to write for the kernel to act on another value: that of `all` where the value
    /// of `all` counts alone, else the link's own.
    pub fn key_to_write(self) -> String {
        match self.combination() {
            Combination::All => self.key_of("all"),
            _ => self.key(),
        }
    }

    /// Whether the value that the kernel acts on changes with the link's `forwarding`, even
    /// where nobody writes this sysctl or that of `all`.
    pub fn follows_forwarding(self) -> bool {
        self.combination() == Combination::Advertisements
    }

    fn combination(self) -> Combination {
        match (self.section, self.name) {
            ("ipv4", "accept_redirects") => Combination::Redirects,
            (
                "ipv4",
                "accept_source_route"
                | "arp_evict_nocarrier"
                | "bc_forwarding"
                | "bootp_relay"
                | "mc_forwarding",
            )
            | ("ipv6", "ndisc_evict_nocarrier") => Combination::And,
            (
                "ipv4",
                "accept_local"
                | "arp_filter"
                | "drop_gratuitous_arp"
                | "ignore_routes_with_linkdown"
                | "log_martians"
                | "promote_secondaries"
                | "proxy_arp"
                | "route_localnet"
                | "secure_redirects"
                | "send_redirects"
                | "shared_media"
                | "src_valid_mark",
            )
            | (
                "ipv6",
                "disable_policy" | "enhanced_dad" | "ndisc_notify" | "optimistic_dad" | "proxy_ndp"
                | "use_optimistic",
            ) => Combination::Or,
            ("ipv4", "arp_accept" | "arp_announce" | "arp_ignore" | "arp_notify" | "rp_filter")
            | ("ipv6", "accept_dad") => Combination::Max,
            ("ipv6", "accept_ra") => Combination::Advertisements,
            ("ipv6", "forwarding") => Combination::All,
            ("ipv6", "keep_addr_on_down") => Combination::AllFirst,
            _ => Combination::Own,
        }
    }

    /// The value that the kernel acts on; `read` returns the value of a key. `None` where this
    /// kernel has no such sysctl, or there is no such link.
    pub fn effective(self, read: impl Fn(&str) -> Option<i64>) -> Option<i64> {
        let all = read(&self.key_of("all"));
        if self.combination() == Combination::All {
            return all;
        }
        let own = read(&self.key())?;
        // A kernel that does not have it for `all` has nothing to combine.
        let Some(all) = all else {
            return Some(own);
        };
        let both = own != 0 && all != 0;
        let either = own != 0 || all != 0;
        let forwards = || read(&self.forwarding()).is_some_and(|value| value != 0);
        Some(match self.combination() {
            Combination::Own | Combination::All => own,
            Combination::And => both.into(),
            Combination::Or => either.into(),
            Combination::Max => own.max(all),
            Combination::AllFirst => [all, own].into_iter().find(|v| *v != 0).unwrap_or(0),
            Combination::Advertisements => (own > i64::from(forwards())).into(),
            Combination::Redirects => if forwards() { both } else { either }.into(),
        })
    }

    /// The link's own `forwarding`, which decides about `accept_ra` and `accept_redirects`.
    fn forwarding(self) -> String {
        Self {
            name: "forwarding",
            ..self
        }
        .key_of(self.link)
    }

    /// The keys that keep the effective value from being at most `most`, by `read`: each has
    /// to be lowered.
    pub fn above(self, most: i64, read: impl Fn(&str) -> Option<i64>) -> Vec<String> {
        let keys: &[&str] = match self.combination() {
            Combination::Or | Combination::Max | Combination::AllFirst => &["all", self.link],
            Combination::All => &["all"],
            _ => &[self.link],
        };
        let keys = keys.iter().map(|of| self.key_of(of));
        keys.filter(|key| read(key).is_some_and(|value| value > most))
            .collect()
    }

    /// The key to set to `value` before there is the link: that of `all` where it is enough,
    /// else that of `default`.
    pub fn key_beforehand(self, value: i64) -> String {
        match self.combination() {
            Combination::All => self.key_of("all"),
            Combination::Or | Combination::Max | Combination::AllFirst if value > 0 => {
                self.key_of("all")
            }
            _ => self.key_of("default"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// What the kernel acts on where `values` are set, by key.
    fn effective(sysctl: LinkSysctl<'_>, values: &[(&str, i64)]) -> Option<i64> {
        let values: BTreeMap<&str, i64> = values.iter().copied().collect();
        sysctl.effective(|key| values.get(key).copied())
    }

    #[test]
    fn the_kernel_combines_each_in_its_own_way() {
        // The sysctl, the values of `all` and of the link, and what counts.
        for (section, name, cases) in [
            ("ipv4", "route_localnet", [(0, 0, 0), (1, 0, 1), (0, 1, 1)]),
            ("ipv4", "arp_filter", [(0, 0, 0), (1, 0, 1), (0, 1, 1)]),
            ("ipv4", "rp_filter", [(1, 0, 1), (1, 2, 2), (2, 1, 2)]),
            ("ipv4", "arp_ignore", [(2, 0, 2), (0, 8, 8), (2, 1, 2)]),
            ("ipv4", "bc_forwarding", [(1, 0, 0), (0, 1, 0), (1, 1, 1)]),
            ("ipv4", "forwarding", [(1, 0, 0), (0, 1, 1), (1, 1, 1)]),
            ("ipv6", "forwarding", [(1, 0, 1), (0, 1, 0), (1, 1, 1)]),
            ("ipv6", "disable_ipv6", [(1, 0, 0), (0, 1, 1), (0, 0, 0)]),
            ("ipv6", "accept_dad", [(0, 0, 0), (1, 0, 1), (0, 2, 2)]),
            (
                "ipv6",
                "keep_addr_on_down",
                [(-1, 1, -1), (0, 1, 1), (1, 0, 1)],
            ),
            ("ipv6", "accept_ra", [(0, 1, 1), (1, 0, 0), (0, 2, 1)]),
        ] {
            for (all, own, expected) in cases {
                let sysctl = LinkSysctl {
                    section,
                    link: "eth0",
                    name,
                };
                let (key_of_all, key) = (sysctl.key_of("all"), sysctl.key());
                let values = [(key_of_all.as_str(), all), (key.as_str(), own)];
                let found = effective(sysctl, &values);
                assert_eq!(found, Some(expected), "{key}: all {all}, own {own}");
            }
        }
        let sysctl = LinkSysctl::v4("eth0", "arp_ignore");
        assert_eq!(effective(sysctl, &[("ipv4/conf/all/arp_ignore", 1)]), None);
        let own_only = [("ipv4/conf/eth0/arp_ignore", 1)];
        assert_eq!(effective(sysctl, &own_only), Some(1));
    }

    #[test]
    fn forwarding_decides_about_advertisements_and_redirects() {
        let advertisements = LinkSysctl::v6("eth0", "accept_ra");
        let redirects = LinkSysctl::v4("eth0", "accept_redirects");
        for (forwarding, own, takes) in [(0, 1, 1), (1, 1, 0), (1, 2, 1), (1, 0, 0)] {
            let values = [
                ("ipv6/conf/all/accept_ra", 0),
                ("ipv6/conf/eth0/accept_ra", own),
                ("ipv6/conf/eth0/forwarding", forwarding),
            ];
            assert_eq!(effective(advertisements, &values), Some(takes));
        }
        for (forwarding, all, own, takes) in [(0, 1, 0, 1), (1, 1, 0, 0), (1, 1, 1, 1)] {
            let values = [
                ("ipv4/conf/all/accept_redirects", all),
                ("ipv4/conf/eth0/accept_redirects", own),
                ("ipv4/conf/eth0/forwarding", forwarding),
            ];
            assert_eq!(effective(redirects, &values), Some(takes));
        }
    }

    #[test]
    fn what_is_too_high_is_named() {
        let sysctl = LinkSysctl::v4("br0", "arp_ignore");
        let read = |key: &str| Some(if key.contains("/all/") { 2 } else { 8 });
        let both = ["ipv4/conf/all/arp_ignore", "ipv4/conf/br0/arp_ignore"];
        assert_eq!(sysctl.above(1, read), both);
        assert_eq!(sysctl.above(2, read), both[1..]);
        let localnet = LinkSysctl::v4("veth0", "route_localnet");
        assert_eq!(localnet.key_beforehand(1), "ipv4/conf/all/route_localnet");
        assert_eq!(
            LinkSysctl::v6("veth0", "accept_ra").key_beforehand(0),
            "ipv6/conf/default/accept_ra"
        );
    }
}
