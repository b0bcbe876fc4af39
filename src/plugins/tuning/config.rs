//! The tuning plugin's configuration: as written, and as meant (docs/compatibility.md#8.1).

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::duplicates::duplicates;
use super::sysctl::{self, PLACEHOLDER, Sysctl};
use crate::cni::args;
use crate::cni::config::Config;
use crate::cni::error::{Code, detailed};
use crate::cni::json::{self, Problem};
use crate::cni::skel::Call;
use crate::net::mac::Mac;

/// Where backups are unless the configuration says otherwise.
pub const DEFAULT_DIR: &str = "/run/cni/tuning";

/// Every key of the reference's tuning v1.9.1.
#[derive(Debug, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    sysctl: BTreeMap<String, String>,
    mac: String,
    mtu: u32,
    #[serde(rename = "txQLen")]
    tx_queue_len: Option<u32>,
    promisc: bool,
    allmulti: Option<bool>,
    data_dir: String,
    args: WireArgs,
    runtime_config: WireRuntimeConfig,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct WireArgs {
    cni: WireCniArgs,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct WireCniArgs {
    sysctl: BTreeMap<String, String>,
    mac: String,
    mtu: Option<u32>,
    #[serde(rename = "txQLen")]
    tx_queue_len: Option<u32>,
    promisc: Option<bool>,
    allmulti: Option<bool>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct WireRuntimeConfig {
    mac: String,
}

/// What the container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// In the order in which they are written.
    pub sysctls: Vec<Sysctl>,
    pub link: Wanted,
    /// Where DEL finds what to restore.
    pub data_dir: PathBuf,
}

/// What the container's link gets; whatever is not asked for stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    pub mac: Option<WantedMac>,
    /// Bytes.
    pub mtu: Option<u32>,
    /// Packets.
    pub tx_queue_len: Option<u32>,
    /// Only ever switched on.
    pub promiscuous: bool,
    pub all_multicast: Option<bool>,
}

/// A hardware address and how somebody wrote it: the result repeats that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedMac {
    pub mac: Mac,
    pub text: String,
}

impl Settings {
    /// The settings for ADD, CHECK and STATUS of `call`.
    ///
    /// # Errors
    /// Code 7 for what is wrong, 6 for wrong types, 4 for `CNI_ARGS`; each names the key.
    pub fn resolve(call: &Call) -> Result<Self> {
        let wire: Wire = call.config.read_as("failed to load netconf")?;
        refuse_duplicates(&call.config)?;
        // STATUS is of no interface yet.
        let ifname = match call.invocation.attachment.ifname.as_str() {
            "" => PLACEHOLDER,
            ifname => ifname,
        };
        let cni_args = args::parse(&call.invocation.args, &["MAC"])?;
        let over = &wire.args.cni;
        // Not as for bridge: here the configuration's `args` come before everything.
        let mac = [
            ("args.cni.mac", over.mac.as_str()),
            ("runtimeConfig.mac", &wire.runtime_config.mac),
            (FROM_CNI_ARGS, cni_args.get("MAC").copied().unwrap_or("")),
            ("mac", &wire.mac),
        ]
        .into_iter()
        .find(|(_, text)| !text.is_empty())
        .map(|(source, text)| parse_mac(source, text))
        .transpose()?;
        Ok(Self {
            sysctls: sysctl::resolve(&wire.sysctl, &over.sysctl, ifname)?,
            link: Wanted {
                mac,
                mtu: Some(over.mtu.unwrap_or(wire.mtu)).filter(|mtu| *mtu != 0),
                tx_queue_len: over.tx_queue_len.or(wire.tx_queue_len),
                promiscuous: over.promisc.unwrap_or(wire.promisc),
                all_multicast: over.allmulti.or(wire.allmulti),
            },
            data_dir: path_or_default(wire.data_dir),
        })
    }
}

/// Where the backups are, for DEL, which must work however broken the rest of the
/// configuration is.
///
/// # Errors
/// Code 6 when `dataDir` itself is no text: there is no telling where to look.
pub fn data_dir(config: &Config) -> Result<PathBuf> {
    #[derive(Deserialize, Default)]
    #[serde(default, rename_all = "camelCase")]
    struct Only {
        data_dir: String,
    }
    let only: Only = config.read()?;
    Ok(path_or_default(only.data_dir))
}

fn path_or_default(text: String) -> PathBuf {
    if text.is_empty() {
        DEFAULT_DIR.into()
    } else {
        text.into()
    }
}

fn refuse_duplicates(config: &Config) -> Result<()> {
    let text = String::from_utf8_lossy(&config.raw);
    for path in [&["sysctl"][..], &["args", "cni", "sysctl"]] {
        if let Some(key) = duplicates(&text, path).first() {
            return Err(detailed(
                Code::Config,
                "duplicated sysctl keys are not allowed",
                format!("\"{}\" has {key} more than once", path.join(".")),
            ));
        }
    }
    Ok(())
}

/// Where an address came from that the runtime asks for in a variable.
const FROM_CNI_ARGS: &str = "CNI_ARGS MAC";

fn parse_mac(source: &str, text: &str) -> Result<WantedMac> {
    let Some(mac) = Mac::parse(text).filter(|mac| mac.is_unicast()) else {
        let code = match source {
            FROM_CNI_ARGS => Code::Environment,
            _ => Code::Config,
        };
        return Err(detailed(
            code,
            format!("invalid args {text} for MAC addr: address {text}: invalid MAC address"),
            format!("{source}: {}", not_a_mac(text)),
        ));
    };
    Ok(WantedMac {
        mac,
        text: text.to_owned(),
    })
}

fn not_a_mac(text: &str) -> String {
    format!("\"{text}\" is not the address of one Ethernet interface, like 02:00:00:00:00:01")
}

/// Everything wrong with a configuration; `root` is its path in the file.
pub fn validate(root: &str, document: &Value) -> Vec<Problem> {
    let mut known = document.clone();
    // What other readers look at: the shared keys, and other plugins' arguments.
    if let Value::Object(members) = &mut known {
        for key in [
            "name",
            "type",
            "cniVersion",
            "prevResult",
            "capabilities",
            "ipam",
            "dns",
        ] {
            json::take(members, key);
        }
        for (key, inside) in [("args", "cni"), ("runtimeConfig", "mac")] {
            let Some(mut value) = json::take(members, key) else {
                continue;
            };
            if let Value::Object(object) = &mut value {
                object.retain(|name, _| inside.eq_ignore_ascii_case(name));
            }
            members.insert(key.to_owned(), value);
        }
    }
    json::all_problems(root, &known, Wire::problems)
}

impl Wire {
    /// Values that are wrong by themselves or together.
    fn problems(&self, root: &str) -> Vec<Problem> {
        let place = |key: &str| match root {
            "" => key.to_owned(),
            root => format!("{root}.{key}"),
        };
        let mut problems = Vec::new();
        for (key, map) in [
            ("sysctl", &self.sysctl),
            ("args.cni.sysctl", &self.args.cni.sysctl),
        ] {
            let none = BTreeMap::new();
            if let Err(error) = sysctl::resolve(map, &none, PLACEHOLDER) {
                problems.push(Problem::new(place(key), format!("{error:#}")));
            }
        }
        for (key, text) in [
            ("mac", &self.mac),
            ("args.cni.mac", &self.args.cni.mac),
            ("runtimeConfig.mac", &self.runtime_config.mac),
        ] {
            if !text.is_empty() && parse_mac(key, text).is_err() {
                problems.push(Problem::new(place(key), not_a_mac(text)));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::documented::assert_documented;
    use serde_json::json;

    use crate::cni::error::ErrorObject;

    fn resolve_text(text: &str, args: &str) -> Result<Settings> {
        Settings::resolve(&Call::to_add(text, args)?)
    }

    fn resolve(mut members: Value, args: &str) -> Result<Settings> {
        members["name"] = json!("n");
        resolve_text(&members.to_string(), args)
    }

    fn refused(members: Value, args: &str) -> (u32, String) {
        let error = ErrorObject::from_error(&resolve(members, args).unwrap_err());
        (error.code, error.ours().to_owned())
    }

    #[test]
    fn every_key_and_every_override() {
        let members = json!({
            "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "5"},
            "mac": "02:00:00:00:00:01", "mtu": 1400, "txQLen": 0, "promisc": true,
            "allmulti": false, "dataDir": "/d",
        });
        let settings = resolve(members.clone(), "").unwrap();
        assert_eq!(settings.sysctls[1].path, "ipv4/conf/eth0/arp_filter");
        assert_eq!(settings.data_dir, PathBuf::from("/d"));
        let link = settings.link;
        assert_eq!(link.mac.unwrap().text, "02:00:00:00:00:01");
        assert_eq!((link.mtu, link.tx_queue_len), (Some(1400), Some(0)));
        assert_eq!((link.promiscuous, link.all_multicast), (true, Some(false)));

        let mut over = members;
        over["args"] = json!({"cni": {
            "sysctl": {"net/core/somaxconn": "7"}, "mac": "02:00:00:00:00:02", "mtu": 1300,
            "txQLen": 9, "promisc": false, "allmulti": true, "labels": [],
        }});
        let settings = resolve(over, "").unwrap();
        assert_eq!(settings.sysctls[0].value, "7");
        assert_eq!(settings.sysctls.len(), 2);
        let link = settings.link;
        assert_eq!(link.mac.unwrap().text, "02:00:00:00:00:02");
        assert_eq!((link.mtu, link.tx_queue_len), (Some(1300), Some(9)));
        assert_eq!((link.promiscuous, link.all_multicast), (false, Some(true)));
        // What crashes the reference.
        let only = json!({"args": {"cni": {"sysctl": {"net.core.somaxconn": "7"}}}});
        assert_eq!(resolve(only, "").unwrap().sysctls.len(), 1);
    }

    #[test]
    fn nothing_asked_for_is_nothing_wanted() {
        for members in [
            json!({}),
            json!({"sysctl": null, "mac": "", "mtu": 0, "promisc": false, "allmulti": null}),
        ] {
            let settings = resolve(members, "").unwrap();
            assert_eq!(settings.link, Wanted::default());
            assert_eq!(settings.sysctls, []);
            assert_eq!(settings.data_dir, PathBuf::from("/run/cni/tuning"));
        }
    }

    #[test]
    fn who_decides_on_the_mac() {
        let mac = |last: &str| format!("02:00:00:00:00:0{last}");
        let mut members = json!({"mac": mac("1")});
        let text = |members: &Value, args: &str| {
            let settings = resolve(members.clone(), args).unwrap();
            settings.link.mac.unwrap().text
        };
        assert_eq!(text(&members, ""), mac("1"));
        let args = format!("IgnoreUnknown=1;K=V;MAC={}", mac("2"));
        assert_eq!(text(&members, &args), mac("2"));
        members["runtimeConfig"] = json!({"mac": mac("3")});
        assert_eq!(text(&members, &args), mac("3"));
        members["args"] = json!({"cni": {"mac": mac("4")}});
        assert_eq!(text(&members, &args), mac("4"));
    }

    #[test]
    fn refusals_name_the_key() {
        let advice = "is not the address of one Ethernet interface, like 02:00:00:00:00:01";
        let like = "a sysctl of the container's network looks like net.ipv4.conf.IFNAME.arp_filter";
        for (members, args, code, message) in [
            (json!({"mac": "zz"}), "", 7, format!("mac: \"zz\" {advice}")),
            (
                json!({"runtimeConfig": {"mac": "01:00:00:00:00:01"}}),
                "",
                7,
                format!("runtimeConfig.mac: \"01:00:00:00:00:01\" {advice}"),
            ),
            (
                json!({}),
                "MAC=1",
                4,
                format!("CNI_ARGS MAC: \"1\" {advice}"),
            ),
            (json!({}), "A=1", 4, "ARGS: unknown args [\"A=1\"]".into()),
            (
                json!({"sysctl": {"kernel.domainname": "x"}}),
                "",
                7,
                format!("sysctl kernel.domainname cannot be set: it is not below net; {like}"),
            ),
            (
                json!({"args": {"cni": {"sysctl": {"net.ipv4.ip_forward": "1\n"}}}}),
                "",
                7,
                "its value has more than one line".into(),
            ),
            (
                json!({"sysctl": {"net.ipv4.ip_forward": 1}}),
                "",
                6,
                "failed to load netconf: sysctl.net.ipv4.ip_forward: expected a string, found the number 1".into(),
            ),
            (
                json!({"mtu": -5}),
                "",
                6,
                "failed to load netconf: mtu: expected an integer from 0 to 4294967295, found the number -5".into(),
            ),
        ] {
            assert_eq!(refused(members, args), (code, message));
        }
        let twice = r#"{"name": "n", "sysctl": {"net.a": "1", "net.a": "1"}}"#;
        let error = ErrorObject::from_error(&resolve_text(twice, "").unwrap_err());
        assert_eq!(
            (error.code, error.msg.as_str(), error.details.as_str()),
            (
                7,
                "duplicated sysctl keys are not allowed",
                "\"sysctl\" has net.a more than once"
            )
        );
    }

    #[test]
    fn validate_tells_everything() {
        let fine = json!({
            "type": "tuning", "name": "n", "cniVersion": "1.1.0", "capabilities": {"mac": true},
            "ipam": {}, "dns": {}, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
            "runtimeConfig": {"portMappings": []}, "args": {"other": 1}, "MTU": 1400,
        });
        assert_eq!(validate("plugins[1]", &fine), []);
        let wrong = json!({"mtuu": 1, "txQLen": "x", "mac": "y", "sysctl": {"kernel.x": "1"}});
        let paths: Vec<String> = validate("plugins[1]", &wrong)
            .into_iter()
            .map(|problem| problem.path)
            .collect();
        assert_eq!(paths, ["plugins[1].txQLen", "plugins[1].mtuu"]);
        let wrong = json!({"mac": "y", "sysctl": {"kernel.x": "1"}});
        let problems = validate("", &wrong);
        assert_eq!(problems[0].path, "sysctl");
        assert!(
            problems[0]
                .message
                .contains("sysctl kernel.x cannot be set: ")
        );
        assert_eq!(problems[1].path, "mac");
        assert!(problems[1].message.starts_with("\"y\" is not"));
    }

    #[test]
    fn the_manual_lists_every_key() {
        assert_documented::<Wire>("tuning");
    }
}
