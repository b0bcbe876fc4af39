//! The one table of applets. A new applet is one folder under `plugins/` and one row.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use crate::cni::invocation::Attachment;
use crate::cni::skel::{Plugin, Services};
use crate::cnitool;
use crate::plugins::{
    bandwidth::Bandwidth, bridge::Bridge, firewall::Firewall, flannel::Flannel, ipam::Ipam,
    loopback::Loopback, portmap::Portmap, ptp::Ptp, r#static::Static, tuning::Tuning,
};
use crate::runtime::cache::{self, Cache};

/// What a link in `/opt/cni/bin` can be called, and what it then is.
pub struct Applet {
    /// The base name of argv[0], or the first argument of `cnibox`: matched exactly.
    pub name: &'static str,
    /// Other names it answers to.
    pub aliases: &'static [&'static str],
    /// One line of help.
    pub summary: &'static str,
    /// What runs, whichever of its names it was called by.
    pub entry: Entry,
}

/// How an applet is started.
pub enum Entry {
    /// A CNI plugin: environment and stdin, see `cni::skel`.
    Plugin(&'static dyn Plugin),
    /// A command line: all arguments, its own name first, and our own plugins.
    Tool(fn(Vec<OsString>, Services) -> ExitCode),
}

/// Every applet, in the order in which they are listed.
pub static APPLETS: &[Applet] = &[
    Applet {
        name: "bandwidth",
        aliases: &[],
        summary: "limits how fast a container receives and sends",
        entry: Entry::Plugin(&Bandwidth),
    },
    Applet {
        name: "bridge",
        aliases: &[],
        summary: "connects a container to a Linux bridge with a veth pair",
        entry: Entry::Plugin(&Bridge),
    },
    Applet {
        name: "firewall",
        aliases: &[],
        summary: "lets a container's packets through the host's packet filter",
        entry: Entry::Plugin(&Firewall),
    },
    Applet {
        name: "flannel",
        aliases: &[],
        summary: "runs bridge, or another plugin, with the subnet of the flannel daemon",
        entry: Entry::Plugin(&Flannel),
    },
    Applet {
        name: "ipam",
        aliases: &["host-local"],
        summary: "hands out addresses from ranges, recorded in files on this host",
        entry: Entry::Plugin(&Ipam),
    },
    Applet {
        name: "loopback",
        aliases: &[],
        summary: "sets up the loopback interface of a container",
        entry: Entry::Plugin(&Loopback),
    },
    Applet {
        name: "portmap",
        aliases: &[],
        summary: "leads ports of this host into a container",
        entry: Entry::Plugin(&Portmap),
    },
    Applet {
        name: "ptp",
        aliases: &[],
        summary: "connects a container to the host with a veth pair",
        entry: Entry::Plugin(&Ptp),
    },
    Applet {
        name: "static",
        aliases: &[],
        summary: "hands out the addresses that the configuration or the runtime names",
        entry: Entry::Plugin(&Static),
    },
    Applet {
        name: "tuning",
        aliases: &[],
        summary: "sets sysctls and link properties inside a container",
        entry: Entry::Plugin(&Tuning),
    },
    Applet {
        name: "cnitool",
        aliases: &[],
        summary: "adds, checks and removes network attachments by hand",
        entry: Entry::Tool(cnitool::main),
    },
];

/// What plugins and tools may ask of the others in this binary.
pub const SERVICES: Services = Services {
    plugin,
    plugin_called,
    remembered_netns,
};

/// The namespace that the result cache of libcni has for an attachment.
fn remembered_netns(network: &str, attachment: &Attachment) -> Option<String> {
    Cache::new(Path::new(cache::DEFAULT)).netns(network, attachment)
}

/// The applet called exactly `name`.
pub fn find(name: &str) -> Option<&'static Applet> {
    APPLETS
        .iter()
        .find(|applet| applet.name == name || applet.aliases.contains(&name))
}

/// The plugin called exactly `name`.
pub fn plugin(name: &str) -> Option<&'static dyn Plugin> {
    match find(name)?.entry {
        Entry::Plugin(plugin) => Some(plugin),
        Entry::Tool(_) => None,
    }
}

/// The applet that a file called `name` is: the one of this name, else the one with the
/// longest name that `name` ends in after a `-`, as in `buildkit-cni-host-local`.
pub fn called(name: &str) -> Option<&'static Applet> {
    let ends_in = |end: &&str| {
        name.strip_suffix(end)
            .is_some_and(|rest| rest.ends_with('-'))
    };
    find(name).or_else(|| find(names().filter(ends_in).max_by_key(|end| end.len())?))
}

/// The plugin among [`called`].
pub fn plugin_called(name: &str) -> Option<&'static dyn Plugin> {
    match called(name)?.entry {
        Entry::Plugin(plugin) => Some(plugin),
        Entry::Tool(_) => None,
    }
}

/// Every name of every applet, as the links are called.
pub fn names() -> impl Iterator<Item = &'static str> {
    APPLETS
        .iter()
        .flat_map(|applet| std::iter::once(applet.name).chain(applet.aliases.iter().copied()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::cni::skel::Call;
    use crate::cni::version::Version;

    #[test]
    fn names_are_unique_and_summaries_one_line() {
        let all: Vec<_> = names().collect();
        let unique: BTreeSet<_> = all.iter().collect();
        assert_eq!(all.len(), unique.len());
        for applet in APPLETS {
            assert!(!applet.summary.is_empty() && applet.summary.len() < 70);
            assert!(!applet.summary.contains('\n'));
        }
    }

    #[test]
    fn other_names_end_in_one_of_ours() {
        for (name, applet) in [
            ("bridge", Some("bridge")),
            ("cnv-bridge", Some("bridge")),
            ("buildkit-cni-host-local", Some("ipam")),
            ("my-static", Some("static")),
            ("my-cnitool", Some("cnitool")),
            ("bridge-v2", None),
            ("vbridge", None),
            ("local", None),
            ("cnibox", None),
            ("", None),
        ] {
            assert_eq!(called(name).map(|applet| applet.name), applet, "{name}");
        }
        assert!(plugin_called("my-cnitool").is_none());
    }

    #[test]
    fn symlinks_are_the_names() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("symlinks");
        let mut links = BTreeSet::new();
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(
                std::fs::read_link(entry.path()).unwrap(),
                Path::new("cnibox")
            );
            links.insert(entry.file_name().into_string().unwrap());
        }
        assert_eq!(links, names().map(str::to_owned).collect());
    }

    #[test]
    fn every_plugin_folder_has_a_row() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/plugins");
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() {
                assert!(plugin(&name).is_some(), "src/plugins/{name} has no row");
            }
        }
    }

    /// Any JSON, its keys mostly such as plugins look for.
    fn any_document() -> impl Strategy<Value = Value> {
        let key = prop_oneof![
            prop::sample::select(vec![
                "bridge",
                "mtu",
                "ipam",
                "type",
                "ranges",
                "subnet",
                "rangeStart",
                "rangeEnd",
                "gateway",
                "routes",
                "dst",
                "gw",
                "dns",
                "args",
                "cni",
                "mac",
                "ips",
                "runtimeConfig",
                "portMappings",
                "hostPort",
                "protocol",
                "hostIP",
                "sysctl",
                "prevResult",
                "interfaces",
                "address",
                "interface",
                "ip4",
                "ip",
                "cniVersion",
                "vlanTrunk",
                "conditionsV4",
                "markMasqBit",
                "ingressPolicy",
                "iptablesAdminChainName",
                "dataDir",
                "ipRanges",
                "addresses",
            ])
            .prop_map(str::to_owned),
            ".{0,6}",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            prop::sample::select(vec![
                "10.0.0.0/29",
                "10.0.0.9",
                "fd00::/126",
                "tcp",
                "1.1.0"
            ])
            .prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key.clone(), inner), 0..8)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_configuration_makes_a_plugin_panic(mut document in any_document(), args in ".{0,20}") {
            for applet in APPLETS {
                if let Entry::Plugin(plugin) = &applet.entry {
                    drop(plugin.validate("", &document));
                }
            }
            if let Value::Object(members) = &mut document {
                members.insert("name".into(), "n".into());
                members.insert("cniVersion".into(), "1.1.0".into());
            }
            if let Ok(call) = Call::to_add(&document.to_string(), &args) {
                if let Ok(Some(result)) = call.config.prev_result() {
                    for version in Version::ALL {
                        drop(result.to_wire(version));
                    }
                }
                drop(call.config.ipam_type());
                drop(call.config.valid_attachments());
            }
        }
    }
}
