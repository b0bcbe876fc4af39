//! What ADD reports and CHECK misses, decided from what was seen.

use std::fmt;

use anyhow::{Result, ensure};

use super::backup::Backup;
use super::config::{Settings, Wanted};
use super::sysctl::{Sysctl, same_value};
use crate::cni::error::{Code, detailed};
use crate::cni::result::CniResult;
use crate::net::link::Link;
use crate::net::mac::Mac;

/// What the kernel says of one sysctl.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Value(String),
    /// It can only be written: there is nothing to compare or to restore.
    WriteOnly,
    /// There is no such sysctl.
    Nothing,
}

/// One property of a link and what it shall be, in the words of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Property {
    Mac(Mac),
    Promisc(bool),
    Mtu(u32),
    Allmulti(bool),
    TxQueueLen(u32),
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => write!(f, "mac {mac}"),
            Self::Promisc(on) => write!(f, "promisc {}", word(*on)),
            Self::Mtu(mtu) => write!(f, "mtu {mtu}"),
            Self::Allmulti(on) => write!(f, "allmulti {}", word(*on)),
            Self::TxQueueLen(length) => write!(f, "txQLen {length}"),
        }
    }
}

fn word(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

impl Property {
    /// What `link` has instead; `None` when it is as it shall be.
    fn missed(self, link: &Link) -> Option<String> {
        let found = match self {
            // Text may be of either case: an address is its bytes.
            Self::Mac(_) => match Mac::parse(&link.mac) {
                Some(mac) => Self::Mac(mac),
                None => return Some(format!("\"{}\"", link.mac)),
            },
            Self::Promisc(_) => Self::Promisc(link.is_promiscuous),
            Self::Mtu(_) => Self::Mtu(link.mtu),
            Self::Allmulti(_) => Self::Allmulti(link.is_all_multicast),
            Self::TxQueueLen(_) => Self::TxQueueLen(link.tx_queue_len),
        };
        (found != self).then(|| found.to_string())
    }
}

impl Wanted {
    /// In the order in which they are set.
    pub fn properties(&self) -> Vec<Property> {
        [
            self.mac.as_ref().map(|mac| Property::Mac(mac.mac)),
            self.promiscuous.then_some(Property::Promisc(true)),
            self.mtu.map(Property::Mtu),
            self.all_multicast.map(Property::Allmulti),
            self.tx_queue_len.map(Property::TxQueueLen),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// The MTU must be one that `link` can have.
///
/// # Errors
/// Code 7 naming the key and the bounds.
pub fn refuse_mtu(wanted: &Wanted, link: &Link) -> Result<()> {
    let (least, greatest) = link.mtu_bounds;
    let Some(mtu) = wanted.mtu else { return Ok(()) };
    ensure!(
        mtu >= least && (greatest == 0 || mtu <= greatest),
        detailed(
            Code::Config,
            format!("mtu: {mtu} is not possible for {}", link.name),
            match greatest {
                0 => format!("its driver takes {least} and more"),
                greatest => format!("its driver takes {least} to {greatest}"),
            },
        )
    );
    Ok(())
}

impl Backup {
    /// In the order in which they are restored.
    pub fn properties(&self) -> Vec<Property> {
        let mac = self.mac.as_deref().and_then(Mac::parse);
        [
            self.mtu.map(Property::Mtu),
            mac.map(Property::Mac),
            self.promisc.map(Property::Promisc),
            self.allmulti.map(Property::Allmulti),
            self.tx_queue_len.map(Property::TxQueueLen),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// `previous` with what changed: the interfaces called `ifname` in a sandbox have the
/// hardware address and MTU that they got. Those of the same name on the host are others.
pub fn result(mut previous: CniResult, wanted: &Wanted, ifname: &str) -> CniResult {
    for interface in &mut previous.interfaces {
        if interface.name != ifname || interface.sandbox.is_empty() {
            continue;
        }
        if let Some(mac) = &wanted.mac {
            interface.mac.clone_from(&mac.text);
        }
        if let Some(mtu) = wanted.mtu {
            interface.mtu = mtu;
        }
    }
    previous
}

/// Every difference between what is wanted and what is there, in words. `found` is for
/// each of the sysctls, in their order.
pub fn differences(
    settings: &Settings,
    ifname: &str,
    found: &[Found],
    link: Option<&Link>,
) -> Vec<String> {
    let mut differences: Vec<String> = settings
        .sysctls
        .iter()
        .zip(found)
        .filter_map(|(sysctl, found)| sysctl_difference(sysctl, found))
        .collect();
    match link {
        None => differences.push(format!("interface {ifname}: expected a link, found none")),
        Some(link) => differences.extend(settings.link.properties().into_iter().filter_map(
            |property| {
                let found = property.missed(link)?;
                Some(format!(
                    "interface {ifname}: expected {property}, found {found}"
                ))
            },
        )),
    }
    differences
}

fn sysctl_difference(sysctl: &Sysctl, found: &Found) -> Option<String> {
    let Sysctl { key, value, .. } = sysctl;
    let found = match found {
        Found::Value(found) if same_value(value, found) => return None,
        Found::WriteOnly => return None,
        Found::Value(found) => format!("\"{found}\""),
        Found::Nothing => "no such sysctl".to_owned(),
    };
    Some(format!("sysctl {key}: expected \"{value}\", found {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    use crate::cni::version::Version;
    use crate::plugins::tuning::config::WantedMac;

    fn wanted() -> Wanted {
        let text = "02-00-00-AB-CD-EF";
        Wanted {
            mac: Some(WantedMac {
                mac: Mac::parse(text).unwrap(),
                text: text.into(),
            }),
            mtu: Some(1400),
            tx_queue_len: Some(0),
            promiscuous: true,
            all_multicast: Some(false),
        }
    }

    fn tuned() -> Link {
        Link {
            name: "eth0".into(),
            mac: "02:00:00:ab:cd:ef".into(),
            mtu: 1400,
            is_promiscuous: true,
            ..Link::default()
        }
    }

    fn settings(sysctls: &[(&str, &str)], link: Wanted) -> Settings {
        Settings {
            sysctls: sysctls
                .iter()
                .map(|(key, value)| Sysctl {
                    key: (*key).into(),
                    path: key.replace('.', "/"),
                    value: (*value).into(),
                })
                .collect(),
            link,
            data_dir: "/nowhere".into(),
        }
    }

    #[test]
    fn the_result_is_told_of_the_sandbox_only() {
        let previous = json!({"interfaces": [
            {"name": "eth0", "mac": "02:00:00:00:00:01"},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/n"},
            {"name": "eth1", "mac": "02:00:00:00:00:03", "sandbox": "/n"},
        ]});
        let previous = CniResult::parse(&previous, Version::NEWEST).unwrap();
        let told = result(previous.clone(), &wanted(), "eth0");
        assert_eq!(told.interfaces[0], previous.interfaces[0]);
        assert_eq!(told.interfaces[2], previous.interfaces[2]);
        assert_eq!(told.interfaces[1].mac, "02-00-00-AB-CD-EF");
        assert_eq!(told.interfaces[1].mtu, 1400);
        assert_eq!(
            result(previous.clone(), &Wanted::default(), "eth0"),
            previous
        );
    }

    #[test]
    fn an_mtu_must_be_within_the_bounds_of_the_link() {
        for (bounds, possible) in [
            ((0, 0), true),
            ((68, 0), true),
            ((68, 1400), true),
            ((1400, 65535), true),
            ((1401, 65535), false),
            ((68, 1399), false),
        ] {
            let link = Link {
                mtu_bounds: bounds,
                ..tuned()
            };
            let refused = refuse_mtu(&wanted(), &link);
            assert_eq!(refused.is_ok(), possible, "{bounds:?}");
            assert!(refuse_mtu(&Wanted::default(), &link).is_ok());
        }
    }

    #[test]
    fn nothing_differs_after_add() {
        let settings = settings(&[("net.a", "1 2"), ("net.b", "1")], wanted());
        let found = [Found::Value("1\t2".into()), Found::WriteOnly];
        let none = [] as [String; 0];
        assert_eq!(differences(&settings, "eth0", &found, Some(&tuned())), none);
    }

    #[test]
    fn only_what_is_configured_is_compared() {
        let settings = settings(&[], Wanted::default());
        let none = [] as [String; 0];
        assert_eq!(differences(&settings, "eth0", &[], Some(&tuned())), none);
        assert_eq!(
            differences(&settings, "eth0", &[], None),
            ["interface eth0: expected a link, found none"]
        );
    }

    #[test]
    fn differences_in_words() {
        let settings = settings(&[("net.a", "1"), ("net.b", "2")], wanted());
        let found = [Found::Value("0".into()), Found::Nothing];
        let link = Link {
            mac: "02:00:00:00:00:01".into(),
            mtu: 1500,
            is_promiscuous: false,
            is_all_multicast: true,
            tx_queue_len: 1000,
            ..tuned()
        };
        assert_eq!(
            differences(&settings, "eth0", &found, Some(&link)),
            [
                "sysctl net.a: expected \"1\", found \"0\"",
                "sysctl net.b: expected \"2\", found no such sysctl",
                "interface eth0: expected mac 02:00:00:ab:cd:ef, found mac 02:00:00:00:00:01",
                "interface eth0: expected promisc on, found promisc off",
                "interface eth0: expected mtu 1400, found mtu 1500",
                "interface eth0: expected allmulti off, found allmulti on",
                "interface eth0: expected txQLen 0, found txQLen 1000",
            ]
        );
    }
}
