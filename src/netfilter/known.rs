//! Whose rules are whose, where rules name a container and not its attachment: those of
//! iptables, and all of the reference's port mappings.

use std::net::IpAddr;

use ipnet::IpNet;

/// What is known of the addresses of an attachment whose rules are to go. Its container
/// may have others to the same network, whose rules stay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Its own; none where nobody remembers them.
    pub own: Vec<IpNet>,
    /// Those of the other attachments.
    pub others: Others,
}

/// The addresses of a container's other attachments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Others {
    /// Nobody can tell: the container's namespace is gone, or was not named.
    #[default]
    Unknown,
    /// Those that its other interfaces have.
    These(Vec<IpAddr>),
    /// All that are not the attachment's own, which are known for certain.
    Rest,
}

impl Known {
    /// Nothing is known.
    #[cfg(any(test, fuzzing))]
    pub const NOTHING: Self = Self {
        own: Vec::new(),
        others: Others::Unknown,
    };

    /// Its own addresses are known.
    #[cfg(test)]
    pub fn own(own: &[IpNet]) -> Self {
        Self {
            own: own.to_vec(),
            ..Self::default()
        }
    }

    /// For undoing what has just been made for `own`, and nothing else.
    pub fn only(own: &[IpNet]) -> Self {
        Self {
            own: own.to_vec(),
            others: Others::Rest,
        }
    }

    /// Whether rules about `net` are the attachment's: its address, or the whole subnet, as
    /// old versions of the reference had it.
    pub fn is_own(&self, net: IpNet) -> bool {
        let mut forms = self
            .own
            .iter()
            .flat_map(|own| [own.addr().into(), own.trunc()]);
        forms.any(|form| form == net)
    }

    /// Whether rules about `net` are another attachment's. Where nobody can tell, they are
    /// if this attachment's own were `found`: otherwise its address is not what everybody
    /// thinks, and this may be it.
    pub fn spares(&self, net: IpNet, found: bool) -> bool {
        !self.is_own(net)
            && match &self.others {
                Others::Unknown => found,
                Others::These(others) => others.iter().any(|other| net.contains(other)),
                Others::Rest => true,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spared() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let own = vec![net("10.9.0.2/24")];
        let known = |others| Known {
            own: own.clone(),
            others,
        };
        let these = || Others::These(vec!["10.9.0.3".parse().unwrap()]);
        for (address, found, others, spared) in [
            ("10.9.0.2/32", true, Others::Rest, false),
            ("10.9.0.0/24", true, Others::Rest, false),
            ("10.9.0.3/32", true, Others::Rest, true),
            ("10.9.0.3/32", false, Others::Rest, true),
            ("10.9.0.3/32", true, Others::Unknown, true),
            ("10.9.0.3/32", false, Others::Unknown, false),
            ("10.9.0.3/32", false, these(), true),
            ("10.9.0.4/32", true, these(), false),
            ("10.8.0.0/24", true, these(), false),
        ] {
            assert_eq!(
                known(others).spares(net(address), found),
                spared,
                "{address}"
            );
        }
        assert!(!Known::NOTHING.spares(net("10.9.0.2/32"), false));
    }
}
