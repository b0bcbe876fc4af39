//! The bridge's configuration: as written, and as meant.

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use crate::cni::args;
use crate::cni::config::{Config, DnsOverride};
use crate::cni::error::{Code, detailed};
use crate::cni::invocation::check_ifname;
use crate::cni::json::{self, Object, Problem};
use crate::cni::result::Dns;
use crate::cni::skel::Call;
use crate::net::mac::Mac;
use crate::netfilter::BackendName;
use crate::plugins::layer3::mtu_problem;
use crate::plugins::masquerade::backend_problem;

/// The bridge of a configuration that names none.
const DEFAULT_BRIDGE: &str = "cni0";

/// The name of the interface that has the gateway's addresses in a VLAN.
pub fn vlan_gateway_name(bridge: &str, vlan: impl std::fmt::Display) -> String {
    format!("{bridge}.{vlan}")
}

/// Every key of the reference's bridge v1.9.1 (docs/compatibility.md#5.1).
#[derive(Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the keys are booleans on the wire"
)]
struct Wire {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: String,
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: i64,
    vlan_trunk: Option<Vec<WireTrunk>>,
    preserve_default_vlan: bool,
    macspoofchk: bool,
    enabledad: bool,
    disable_container_interface: bool,
    port_isolation: bool,
    ipam: Option<WireIpam>,
    dns: DnsOverride,
    args: WireArgs,
    runtime_config: WireRuntimeConfig,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            bridge: DEFAULT_BRIDGE.into(),
            is_gateway: false,
            is_default_gateway: false,
            force_address: false,
            ip_masq: false,
            ip_masq_backend: String::new(),
            mtu: 0,
            hairpin_mode: false,
            promisc_mode: false,
            vlan: 0,
            vlan_trunk: None,
            preserve_default_vlan: false,
            macspoofchk: false,
            enabledad: false,
            disable_container_interface: false,
            port_isolation: false,
            ipam: None,
            dns: DnsOverride::default(),
            args: WireArgs::default(),
            runtime_config: WireRuntimeConfig::default(),
        }
    }
}

/// Part of a trunk: a VLAN, a range of VLANs, or both.
#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct WireTrunk {
    id: Option<i64>,
    #[serde(rename = "minID")]
    min: Option<i64>,
    #[serde(rename = "maxID")]
    max: Option<i64>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct WireIpam {
    #[serde(rename = "type")]
    plugin: String,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct WireArgs {
    cni: WireCniArgs,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct WireCniArgs {
    mac: String,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct WireRuntimeConfig {
    mac: String,
}

/// What the operator wants, with every value in range.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "one for each key, none depends on another"
)]
pub struct Settings {
    /// The bridge's name.
    pub bridge: String,
    /// The bridge gets the gateways' addresses.
    pub is_gateway: bool,
    /// The container gets a default route through the bridge.
    pub is_default_gateway: bool,
    /// Addresses of the bridge that are in the way are removed.
    pub force_address: bool,
    /// Bytes, for both ends of the veth pair and a new bridge.
    pub mtu: Option<u32>,
    /// A container may reach itself through the bridge.
    pub hairpin: bool,
    /// The bridge takes every frame.
    pub promiscuous: bool,
    /// The port cannot talk to other isolated ports.
    pub isolated: bool,
    /// What leaves the network is masqueraded.
    pub masquerade: bool,
    /// The packet filter that was asked for.
    pub backend: Option<BackendName>,
    /// The container may only send from its own hardware address.
    pub spoof_check: bool,
    /// IPv6 addresses are used only after asking the neighbours.
    pub detect_duplicates: bool,
    /// The container's end is set up.
    pub container_end_up: bool,
    /// The container's hardware address, when somebody asked for one.
    pub mac: Option<Mac>,
    /// Replaces IPAM's DNS.
    pub dns: Option<Dns>,
    /// `ipam.type`; without it the attachment is layer 2 only.
    pub ipam: Option<String>,
    /// What the port may carry; `None` leaves it to a bridge without VLANs.
    pub vlans: Option<Vlans>,
}

/// The VLANs that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vlans {
    /// The container's frames without a tag are of this one.
    pub access: Option<u16>,
    /// Those that pass with their tag.
    pub trunk: BTreeSet<u16>,
    /// The port stays a member of the VLAN that the bridge gives every new port.
    pub keeps_default: bool,
}

/// The bridge that a configuration names, however wrong the rest of it is.
pub fn bridge_name(document: &Object) -> String {
    match json::take(&mut document.clone(), "bridge") {
        Some(Value::String(name)) if !name.is_empty() => name,
        _ => DEFAULT_BRIDGE.to_owned(),
    }
}

/// The VLANs that `config` asks for; `None` leaves them to the bridge.
///
/// # Errors
/// Code 7 for a configuration that cannot be read.
pub fn vlans(config: &Config) -> Result<Option<Vlans>> {
    Ok(config.read::<Wire>()?.vlans())
}

impl Settings {
    /// The settings for ADD, CHECK and STATUS of `call`.
    ///
    /// # Errors
    /// Code 2 for what this version does not support, 7 for what is wrong, 4 for
    /// `CNI_ARGS`; each names the key.
    pub fn resolve(call: &Call) -> Result<Self> {
        let wire: Wire = call.config.read_as("failed to load netconf")?;
        if let Some(problem) = wire.problems("").into_iter().next() {
            return Err(problem.error(Code::Config));
        }
        let cni_args = args::parse(&call.invocation.args, &["MAC"])?;
        let mac = [
            ("runtimeConfig.mac", wire.runtime_config.mac.as_str()),
            ("args.cni.mac", wire.args.cni.mac.as_str()),
            (FROM_CNI_ARGS, cni_args.get("MAC").copied().unwrap_or("")),
        ]
        .into_iter()
        .find(|(_, text)| !text.is_empty())
        .map(|(source, text)| parse_mac(source, text))
        .transpose()?;
        Ok(Self {
            is_gateway: wire.is_gateway || wire.is_default_gateway,
            is_default_gateway: wire.is_default_gateway,
            force_address: wire.force_address,
            mtu: Some(wire.mtu).filter(|mtu| *mtu != 0),
            hairpin: wire.hairpin_mode,
            promiscuous: wire.promisc_mode,
            isolated: wire.port_isolation,
            masquerade: wire.ip_masq,
            backend: BackendName::parse(&wire.ip_masq_backend),
            spoof_check: wire.macspoofchk,
            detect_duplicates: wire.enabledad,
            container_end_up: !wire.disable_container_interface,
            mac,
            ipam: wire.ipam_type().map(str::to_owned),
            vlans: wire.vlans(),
            dns: wire.dns.replacement(),
            bridge: wire.bridge,
        })
    }

    /// The VLAN whose gateway is an interface of its own, beside the bridge.
    pub fn gateway_vlan(&self) -> Option<u16> {
        let has_gateway = self.is_gateway && self.ipam.is_some();
        self.vlans.as_ref()?.access.filter(|_| has_gateway)
    }
}

/// Everything wrong with a configuration; `root` is its path in the file. Keys that
/// belong to no single plugin, and those of IPAM, are reported as unknown.
pub fn validate(root: &str, document: &Value) -> Vec<Problem> {
    json::all_problems(root, document, Wire::problems)
}

impl Wire {
    fn ipam_type(&self) -> Option<&str> {
        self.ipam
            .as_ref()
            .map(|ipam| ipam.plugin.as_str())
            .filter(|plugin| !plugin.is_empty())
    }

    /// The VLANs of a configuration without problems.
    fn vlans(&self) -> Option<Vlans> {
        if self.vlan == 0 && self.vlan_trunk.is_none() {
            return None;
        }
        let ids = self.vlan_trunk.iter().flatten().flat_map(|item| {
            let range = item.min.zip(item.max).map(|(min, max)| min..=max);
            item.id.into_iter().chain(range.into_iter().flatten())
        });
        Some(Vlans {
            access: u16::try_from(self.vlan).ok().filter(|vlan| *vlan != 0),
            trunk: ids.filter_map(|id| u16::try_from(id).ok()).collect(),
            keeps_default: self.preserve_default_vlan,
        })
    }

    /// Values that are wrong by themselves or together.
    fn problems(&self, root: &str) -> Vec<Problem> {
        let mut problems = Vec::new();
        let at = |key: &str, message: String| Problem::new(json::below(root, key), message);
        if let Err(error) = check_ifname(&self.bridge) {
            let name = &self.bridge;
            let problem = at("bridge", format!("{error}: \"{name}\""));
            problems.push(problem.told_as(format!(
                "failed to create bridge \"{name}\": could not add \"{name}\": {}",
                match name.len() {
                    0 => "LinkAttrs.Name cannot be empty",
                    1..16 => "invalid argument",
                    _ => "numerical result out of range",
                }
            )));
        } else if self.vlan != 0
            && (self.is_gateway || self.is_default_gateway)
            && let gateway = vlan_gateway_name(&self.bridge, self.vlan)
            && let Err(error) = check_ifname(&gateway)
        {
            let message = format!(
                "{error} with the VLAN's number: \"{gateway}\" is to have the gateway's addresses"
            );
            problems.push(at("bridge", message));
        }
        if let Some(problem) = mtu_problem(self.mtu) {
            problems.push(at("mtu", problem));
        }
        if !(0..=LAST_VLAN).contains(&self.vlan) {
            let vlan = self.vlan;
            let problem = at("vlan", format!("{vlan} is not between 0 and {LAST_VLAN}"));
            problems.push(problem.told_as(format!(
                "invalid VLAN ID {vlan} (must be between 0 and {LAST_VLAN})"
            )));
        }
        for (index, item) in self.vlan_trunk.iter().flatten().enumerate() {
            let path = json::below(root, &format!("vlanTrunk[{index}]"));
            let found = item.problems().into_iter();
            problems.extend(found.map(|problem| problem.below(&path)));
        }
        if self.disable_container_interface && self.ipam_type().is_some() {
            let message = "cannot be used together with ipam: an interface that stays down has no use for an address";
            let sentence = "cannot use IPAM when DisableContainerInterface flag is set";
            problems.push(at("disableContainerInterface", message.into()).told_as(sentence));
        }
        problems.extend(backend_problem(&self.ip_masq_backend).map(|problem| problem.below(root)));
        if self.hairpin_mode && self.promisc_mode {
            let message =
                "cannot be used together with promiscMode: frames would be delivered twice";
            let sentence = "cannot set hairpin mode and promiscuous mode at the same time";
            problems.push(at("hairpinMode", message.into()).told_as(sentence));
        }
        for (key, text) in [
            ("args.cni.mac", &self.args.cni.mac),
            ("runtimeConfig.mac", &self.runtime_config.mac),
        ] {
            if !text.is_empty()
                && let Err(error) = parse_mac(key, text)
            {
                let problem = at(key, not_a_mac(text));
                problems.push(problem.told_as(error.to_string()));
            }
        }
        problems
    }
}

/// The highest VLAN number that IEEE 802.1Q allows.
const LAST_VLAN: i64 = 4094;

impl WireTrunk {
    /// Members that are wrong by themselves or together.
    fn problems(&self) -> Vec<Problem> {
        let out_of_range = |(member, id): (&str, i64)| {
            let message = format!("{id} is not between 1 and {LAST_VLAN}");
            let sentence = format!("incorrect trunk {member} parameter");
            Problem::new(member, message).told_as(sentence)
        };
        let mut problems: Vec<Problem> =
            [("id", self.id), ("minID", self.min), ("maxID", self.max)]
                .into_iter()
                .filter_map(|(member, id)| Some((member, id?)))
                .filter(|(_, id)| !(1..=LAST_VLAN).contains(id))
                .map(out_of_range)
                .collect();
        let missing = |member: &str, other: &str| {
            Problem::new(member, format!("is missing beside {other}")).told_as(format!(
                "minID and maxID should be configured simultaneously, {member} is missing"
            ))
        };
        match (self.min, self.max) {
            (Some(_), None) => problems.push(missing("maxID", "minID")),
            (None, Some(_)) => problems.push(missing("minID", "maxID")),
            (Some(min), Some(max)) if max < min => {
                let message = format!("{max} is less than minID, {min}");
                let sentence = "minID is greater than maxID in trunk parameter";
                problems.push(Problem::new("maxID", message).told_as(sentence));
            }
            _ => {}
        }
        problems
    }
}

/// Where an address came from that the runtime asks for in a variable.
const FROM_CNI_ARGS: &str = "CNI_ARGS MAC";

fn parse_mac(source: &str, text: &str) -> Result<Mac> {
    let code = match source {
        FROM_CNI_ARGS => Code::Environment,
        _ => Code::Config,
    };
    Mac::parse(text)
        .filter(|mac| mac.is_unicast())
        .ok_or_else(|| {
            detailed(
                code,
                format!("failed to make veth pair: address {text}: invalid MAC address"),
                format!("{source}: {}", not_a_mac(text)),
            )
        })
}

fn not_a_mac(text: &str) -> String {
    format!("\"{text}\" is not the address of one Ethernet interface, like 02:00:00:00:00:01")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::documented::assert_documented;
    use crate::cni::error::ErrorObject;
    use serde_json::json;

    fn call(mut config: Value, cni_args: &str) -> Call {
        config["name"] = json!("n");
        config["cniVersion"] = json!("1.1.0");
        Call::to_add(&config.to_string(), cni_args).unwrap()
    }

    fn settings(config: Value) -> Settings {
        Settings::resolve(&call(config, "")).unwrap()
    }

    fn refused(config: Value) -> (u32, String) {
        let error = Settings::resolve(&call(config, "")).unwrap_err();
        let object = ErrorObject::from_error(&error);
        (object.code, object.ours().to_owned())
    }

    #[test]
    fn defaults() {
        assert_eq!(
            settings(json!({})),
            Settings {
                bridge: "cni0".into(),
                is_gateway: false,
                is_default_gateway: false,
                force_address: false,
                mtu: None,
                hairpin: false,
                promiscuous: false,
                isolated: false,
                masquerade: false,
                backend: None,
                spoof_check: false,
                detect_duplicates: false,
                container_end_up: true,
                mac: None,
                dns: None,
                ipam: None,
                vlans: None,
            }
        );
        assert!(settings(json!({"isDefaultGateway": true})).is_gateway);
        assert_eq!(settings(json!({"ipam": {}})).ipam, None);
    }

    #[test]
    fn vlans_in_every_notation() {
        let vlans = |config: Value| settings(config).vlans;
        assert_eq!(
            vlans(json!({"vlan": 0, "vlanTrunk": null, "preserveDefaultVlan": true})),
            None
        );
        let all = vlans(json!({
            "vlan": 4094,
            "vlanTrunk": [{"id": 20}, {"minID": 10, "maxID": 12, "id": 12}, {}, {"MINID": 7, "maxid": 7}],
            "preserveDefaultVlan": true,
        }));
        assert_eq!(
            all,
            Some(Vlans {
                access: Some(4094),
                trunk: [7, 10, 11, 12, 20].into(),
                keeps_default: true,
            })
        );
        // An empty trunk asks for VLAN filtering and nothing else.
        let none = Vlans {
            access: None,
            trunk: BTreeSet::new(),
            keeps_default: false,
        };
        for empty in [json!([]), json!([{}]), json!([null])] {
            assert_eq!(vlans(json!({"vlanTrunk": empty})), Some(none.clone()));
        }
    }

    #[test]
    fn wrong_vlans_are_named() {
        for (config, message) in [
            (
                json!({"vlan": 4095}),
                "vlan: 4095 is not between 0 and 4094",
            ),
            (json!({"vlan": -1}), "vlan: -1 is not between 0 and 4094"),
            (
                json!({"vlanTrunk": [{"id": 5}, {"id": 0}]}),
                "vlanTrunk[1].id: 0 is not between 1 and 4094",
            ),
            (
                json!({"vlanTrunk": [{"minID": 1, "maxID": 65541}]}),
                "vlanTrunk[0].maxID: 65541 is not between 1 and 4094",
            ),
            (
                json!({"vlanTrunk": [{"minID": 0, "maxID": 5}]}),
                "vlanTrunk[0].minID: 0 is not between 1 and 4094",
            ),
            (
                json!({"vlanTrunk": [{"minID": 6, "maxID": 5}]}),
                "vlanTrunk[0].maxID: 5 is less than minID, 6",
            ),
            (
                json!({"vlanTrunk": [{"minID": 6}]}),
                "vlanTrunk[0].maxID: is missing beside minID",
            ),
            (
                json!({"vlanTrunk": [{"maxID": 6}]}),
                "vlanTrunk[0].minID: is missing beside maxID",
            ),
        ] {
            assert_eq!(refused(config), (7, message.to_owned()));
        }
        // Only a gateway has an interface of its own.
        let long = json!({"bridge": "twelve-bytes", "vlan": 100});
        settings(long.clone());
        let mut gateway = long;
        gateway["isDefaultGateway"] = json!(true);
        let (code, message) = refused(gateway.clone());
        assert!(
            code == 7 && message.starts_with("bridge: ") && message.contains("twelve-bytes.100"),
            "{message}"
        );
        gateway["vlan"] = json!(99);
        settings(gateway);
    }

    #[test]
    fn wrong_values_are_named() {
        for (config, code, key) in [
            (json!({"bridge": ""}), 7, "bridge: "),
            (json!({"bridge": "a/b"}), 7, "bridge: "),
            (json!({"mtu": 67}), 7, "mtu: 67"),
            (json!({"ipMasqBackend": "ebtables"}), 7, "ipMasqBackend: "),
            (
                json!({"mtu": -1}),
                6,
                "failed to load netconf: mtu: expected an integer",
            ),
            (
                json!({"hairpinMode": true, "promiscMode": true}),
                7,
                "hairpinMode: ",
            ),
            (
                json!({"disableContainerInterface": true, "ipam": {"type": "x"}}),
                7,
                "disableContainerInterface: ",
            ),
            (
                json!({"runtimeConfig": {"mac": "x"}}),
                7,
                "runtimeConfig.mac: ",
            ),
            (
                json!({"args": {"cni": {"mac": "01:00:00:00:00:00"}}}),
                7,
                "args.cni.mac: ",
            ),
        ] {
            let (found, message) = refused(config);
            assert_eq!(found, code, "{message}");
            assert!(message.starts_with(key), "{message}");
        }
    }

    #[test]
    fn mac_precedence() {
        let all = json!({
            "runtimeConfig": {"mac": "02:00:00:00:00:03"},
            "args": {"cni": {"mac": "02:00:00:00:00:02"}},
        });
        let mac = |config: Value| {
            let settings = Settings::resolve(&call(config, "MAC=02:00:00:00:00:01")).unwrap();
            settings.mac.unwrap().0[5]
        };
        assert_eq!(mac(json!({})), 1);
        let error = Settings::resolve(&call(json!({}), "MAC=1")).unwrap_err();
        assert_eq!(ErrorObject::from_error(&error).code, 4);
        assert_eq!(mac(json!({"args": all["args"]})), 2);
        assert_eq!(mac(all), 3);
    }

    #[test]
    fn dns_replaces_when_any_member_is_there() {
        assert_eq!(settings(json!({"dns": {}})).dns, None);
        assert_eq!(
            settings(json!({"dns": {"search": []}})).dns,
            Some(Dns::default())
        );
    }

    #[test]
    fn validation_finds_everything() {
        let document =
            json!({"isGatewy": true, "mtu": 5, "hairpinMode": true, "promiscMode": true});
        let found: Vec<String> = validate("plugins[0]", &document)
            .into_iter()
            .map(|p| p.path)
            .collect();
        assert_eq!(
            found,
            [
                "plugins[0].isGatewy",
                "plugins[0].mtu",
                "plugins[0].hairpinMode"
            ]
        );
    }

    #[test]
    fn the_manual_lists_every_key() {
        assert_documented::<Wire>("bridge");
    }
}
