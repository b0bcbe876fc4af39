//! The configuration of `static` (docs/compatibility.md#9.4): as written, and as it is meant.

use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::cni::address::{parse_cidr, parse_ip};
use crate::cni::args;
use crate::cni::error::{Code, detailed};
use crate::cni::invocation::Command;
use crate::cni::ipam::{
    WrittenRoute, invalid_ip, no_ipam, one_per_family, requested_addresses, routes,
};
use crate::cni::json::{self, Problem};
use crate::cni::result::{Dns, Ip, Route, same_family};
use crate::cni::skel::Call;
use crate::cni::version::Version;

/// The parts of a plugin configuration that matter here.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Document {
    ipam: Option<Ipam>,
    args: Args,
    runtime_config: Requested,
}

/// Every key of the reference's static v1.9.1.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Ipam {
    #[serde(rename = "type")]
    _plugin: String,
    addresses: Vec<WrittenAddress>,
    routes: Vec<WrittenRoute>,
    dns: Dns,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WrittenAddress {
    address: String,
    gateway: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Args {
    cni: Requested,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Requested {
    ips: Vec<String>,
}

/// What ADD answers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settings {
    /// Each address once.
    pub ips: Vec<Ip>,
    pub routes: Vec<Route>,
    pub dns: Dns,
}

impl Settings {
    /// The settings for ADD, CHECK and STATUS of `call`.
    ///
    /// # Errors
    /// Code 6 for a wrong type, 4 for `CNI_ARGS`, 7 for what is wrong otherwise; each
    /// names the key.
    pub fn resolve(call: &Call) -> Result<Self> {
        let document: Document = call.config.read()?;
        let mut problems = Vec::new();
        let (mut settings, mut known) = document.settings("", &mut problems);
        let is_asked = settings.append(&call.invocation.args, &mut known)?;
        let is_replaced = settings.replace(&document, &known, "", &mut problems);
        // STATUS is not told what the runtime is going to ask for.
        if !is_asked && !is_replaced && call.invocation.command != Command::Status {
            problems.extend(known.lone_gateways());
        }
        settings.refuse_second(call.config.version, "", &mut problems);
        json::refuse(&problems)?;
        Ok(settings)
    }

    /// Appends the addresses of `CNI_ARGS`, and gives its gateways to the addresses in
    /// whose networks they are. Answers whether there are any; `known` gets them without
    /// these gateways, which are not for addresses that are asked for in other ways.
    fn append(&mut self, cni_args: &str, known: &mut Known) -> Result<bool> {
        let invalid = |sentence: String, key: &str, why: String| {
            let details = format!(
                "CNI_ARGS: {key}: {why}; IP and GATEWAY are lists, separated by commas: \
                 IP=10.1.0.5/24,fd00:1::5/64;GATEWAY=10.1.0.1"
            );
            detailed(Code::Environment, sentence, details)
        };
        let args = args::parse(cni_args, &["IP", "GATEWAY"])?;
        let items = |key: &str| {
            let list = args.get(key).copied().unwrap_or_default().split(',');
            list.map(str::trim).filter(|item| !item.is_empty())
        };
        let complete = |item: &str| {
            known.complete(item).map_err(|why| {
                let sentence =
                    format!("the 'ip' field is expected to be in CIDR notation, got: '{item}'");
                invalid(sentence, "IP", why)
            })
        };
        let asked = items("IP").map(complete).collect::<Result<Vec<Ip>>>()?;
        for ip in &asked {
            push(&mut self.ips, ip.clone());
            push(&mut known.ips, ip.clone());
        }
        for item in items("GATEWAY") {
            let gateway = parse_ip(item).ok_or_else(|| {
                let sentence = format!("invalid gateway address: {item}");
                invalid(
                    sentence,
                    "GATEWAY",
                    format!("\"{item}\" is not an IP address"),
                )
            })?;
            for ip in &mut self.ips {
                if ip.address.contains(&gateway) {
                    ip.gateway = Some(gateway);
                }
            }
        }
        Ok(!asked.is_empty())
    }

    /// What the runtime asks for by name stands instead of everything else. Prefix lengths
    /// and gateways that it leaves open are those of the network it is in. Answers whether
    /// it asks for any.
    fn replace(
        &mut self,
        document: &Document,
        known: &Known,
        root: &str,
        problems: &mut Vec<Problem>,
    ) -> bool {
        let mut is_replaced = false;
        for (key, texts) in [
            ("args.cni.ips", &document.args.cni.ips),
            ("runtimeConfig.ips", &document.runtime_config.ips),
        ] {
            if texts.is_empty() {
                continue;
            }
            is_replaced = true;
            self.ips.clear();
            for (index, text) in texts.iter().enumerate() {
                match known.complete(text) {
                    Ok(ip) => push(&mut self.ips, ip),
                    Err(why) => {
                        let path = json::below(root, &format!("{key}[{index}]"));
                        let sentence = format!(
                            "an entry in the 'ips' field is NOT in CIDR notation, got: '{text}'"
                        );
                        problems.push(Problem::new(path, why).told_as(sentence));
                    }
                }
            }
        }
        is_replaced
    }

    /// Results before 0.3.0 have one address of each family.
    fn refuse_second(&self, version: Version, root: &str, problems: &mut Vec<Problem>) {
        if version >= Version::V0_3_0 {
            return;
        }
        for (is_ipv4, family) in [(true, "IPv4"), (false, "IPv6")] {
            let of_family = |ip: &&Ip| ip.address.addr().is_ipv4() == is_ipv4;
            if self.ips.iter().filter(of_family).count() > 1 {
                let path = json::below(root, "ipam.addresses");
                let message = format!(
                    "a second {family} address needs cniVersion 0.3.0 or newer, not {version}"
                );
                problems.push(Problem::new(path, message).told_as(one_per_family(version)));
            }
        }
    }
}

impl Document {
    /// What is configured, before anybody asks for something else.
    fn settings(&self, root: &str, problems: &mut Vec<Problem>) -> (Settings, Known) {
        let Some(ipam) = &self.ipam else {
            problems.push(no_ipam(root));
            return (Settings::default(), Known::default());
        };
        let mut ips = Vec::new();
        let mut gateways = Vec::new();
        for (index, written) in ipam.addresses.iter().enumerate() {
            let path = json::below(root, &format!("ipam.addresses[{index}]"));
            match written.resolve() {
                Ok(ip) => push(&mut ips, ip),
                Err(problem) => {
                    let problem = problem.below(&path);
                    match parse_ip(&written.gateway) {
                        Some(gateway) if written.address.is_empty() => {
                            gateways.push((gateway, problem));
                        }
                        _ => problems.push(problem),
                    }
                }
            }
        }
        let known = Known {
            ips: ips.clone(),
            gateways,
        };
        let settings = Settings {
            ips,
            routes: routes(&ipam.routes, &json::below(root, "ipam.routes"), problems),
            dns: ipam.dns.clone(),
        };
        (settings, known)
    }
}

impl WrittenAddress {
    /// The address, or which of the keys here is wrong and why.
    fn resolve(&self) -> Result<Ip, Problem> {
        let mut ip = complete(&self.address, &[]).map_err(|why| {
            Problem::new("address", why).told_as(format!(
                "the 'address' field is expected to be in CIDR notation, got: '{}'",
                self.address
            ))
        })?;
        if self.gateway.is_empty() {
            return Ok(ip);
        }
        let Some(gateway) = parse_ip(&self.gateway) else {
            let message = format!("\"{}\" is not an IP address", self.gateway);
            return Err(Problem::new("gateway", message).told_as(invalid_ip(&self.gateway)));
        };
        if !same_family(gateway, ip.address.addr()) {
            let message = format!("{gateway} is of another family than {}", ip.address);
            return Err(Problem::new("gateway", message));
        }
        ip.gateway = Some(gateway);
        Ok(ip)
    }
}

/// What the configuration says of the networks, for an address that leaves something open.
#[derive(Default)]
struct Known {
    ips: Vec<Ip>,
    /// Of entries without an address, each with what is wrong where it completes none.
    gateways: Vec<(IpAddr, Problem)>,
}

impl Known {
    /// The address that `text` means. The gateway is that of a known address in whose
    /// network it is, else one that is in its own network.
    fn complete(&self, text: &str) -> Result<Ip, String> {
        let mut ip = complete(text, &self.ips)?;
        let mut gateways = self.gateways.iter().map(|(gateway, _)| *gateway);
        let near = gateways.find(|gateway| ip.address.contains(gateway));
        ip.gateway = ip.gateway.or(near);
        Ok(ip)
    }

    /// What is wrong with entries of a gateway only, when there is no address for them.
    fn lone_gateways(self) -> impl Iterator<Item = Problem> {
        self.gateways.into_iter().map(|(_, problem)| problem)
    }
}

/// The address that `text` means. What it leaves open comes from the one of `known` in
/// whose network it is.
fn complete(text: &str, known: &[Ip]) -> Result<Ip, String> {
    let written = parse_cidr(text);
    let Some(bare) = written.map(|net| net.addr()).or_else(|| parse_ip(text)) else {
        return Err(format!(
            "\"{text}\" is not an address with prefix length, like 10.1.0.5/24"
        ));
    };
    let like = known.iter().find(|ip| ip.address.contains(&bare));
    let address = match (written, like) {
        (Some(net), _) => net,
        (None, Some(like)) => with_length_of(bare, like.address),
        (None, None) => {
            return Err(format!(
                "\"{text}\" has no prefix length, and is in no network of ipam.addresses that would tell it"
            ));
        }
    };
    Ok(Ip::new(address, like.and_then(|like| like.gateway)))
}

/// `ip` in the network of `net`, which is of its family.
fn with_length_of(ip: IpAddr, net: IpNet) -> IpNet {
    IpNet::new(ip, net.prefix_len()).unwrap_or(net)
}

/// An address can be given to an interface only once.
fn push(ips: &mut Vec<Ip>, ip: Ip) {
    if !ips.iter().any(|i| i.address.addr() == ip.address.addr()) {
        ips.push(ip);
    }
}

/// Everything wrong with the plugin configuration `document` that stands at `root`.
pub fn problems(root: &str, document: &Value) -> Vec<Problem> {
    let mut found = Vec::new();
    if let Some(ipam) = json::member(document, &["ipam"]) {
        found.extend(json::problems::<Ipam>(&json::below(root, "ipam"), &ipam));
    }
    found.extend(requested_addresses(root, document));
    let version = json::member(document, &["cniVersion"])
        .and_then(|version| Version::exact(version.as_str()?))
        .unwrap_or(Version::NEWEST);
    // A document of the wrong shape has been reported above and means nothing.
    if let Ok(read) = json::decode::<Document>(root, document) {
        let (mut settings, known) = read.settings(root, &mut found);
        let is_replaced = settings.replace(&read, &known, root, &mut found);
        let may_be_asked = json::member(document, &["capabilities", "ips"]) == Some(true.into());
        if !is_replaced && !may_be_asked {
            found.extend(known.lone_gateways());
        }
        // Without `ipam`, which is a problem of its own, there is nothing to point at.
        if read.ipam.is_some() {
            settings.refuse_second(version, root, &mut found);
        }
    } else if found.iter().all(|problem| problem.is_warning) {
        // Not in one of the members above, but around them.
        let around = json::problems::<Document>(root, document).into_iter();
        found.extend(around.filter(|problem| !problem.is_unknown_key));
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cni::documented::assert_documented;
    use crate::cni::error::ErrorObject;

    fn call(version: &str, mut config: Value, cni_args: &str) -> Call {
        config["name"] = json!("n");
        config["cniVersion"] = json!(version);
        Call::to_add(&config.to_string(), cni_args).unwrap()
    }

    /// Addresses, each with its gateway behind it if it has one.
    fn resolved(config: Value, cni_args: &str) -> Vec<String> {
        let settings = Settings::resolve(&call("1.1.0", config, cni_args)).unwrap();
        let text = |ip: &Ip| match ip.gateway {
            Some(gateway) => format!("{} {gateway}", ip.address),
            None => ip.address.to_string(),
        };
        settings.ips.iter().map(text).collect()
    }

    fn refused(version: &str, config: Value, cni_args: &str) -> (u32, String) {
        let error = Settings::resolve(&call(version, config, cni_args)).unwrap_err();
        let object = ErrorObject::from_error(&error);
        (object.code, object.ours().to_owned())
    }

    fn two() -> Value {
        json!({"ipam": {"type": "static", "addresses": [
            {"address": "10.1.0.5/24", "gateway": "10.1.0.1"},
            {"address": "fd00:1::5/64"},
        ]}})
    }

    #[test]
    fn what_is_configured_and_what_the_runtime_asks_for() {
        let configured = ["10.1.0.5/24 10.1.0.1", "fd00:1::5/64"];
        assert_eq!(resolved(two(), ""), configured);
        assert_eq!(
            resolved(two(), "IP=10.2.0.5/16, 10.1.0.6;GATEWAY=10.2.0.1,fd00:1::1"),
            [
                "10.1.0.5/24 10.1.0.1",
                "fd00:1::5/64 fd00:1::1",
                "10.2.0.5/16 10.2.0.1",
                "10.1.0.6/24 10.1.0.1",
            ]
        );
        let with = |key: &str, value: Value| {
            let mut config = two();
            config[key] = value;
            resolved(config, "IP=10.2.0.5/16;GATEWAY=10.2.0.1")
        };
        assert_eq!(
            with(
                "args",
                json!({"cni": {"ips": ["10.1.0.9/28", "10.2.0.9", "10.1.0.9/24"]}})
            ),
            ["10.1.0.9/28 10.1.0.1", "10.2.0.9/16"],
            "the gateway of CNI_ARGS is for the addresses of CNI_ARGS and of the configuration"
        );
        assert_eq!(
            with("runtimeConfig", json!({"ips": ["fd00:1::9", "10.9.0.9/8"]})),
            ["fd00:1::9/64", "10.9.0.9/8"]
        );
        assert_eq!(
            resolved(json!({"ipam": {}}), ""),
            Vec::<String>::new(),
            "as the reference: whoever delegates refuses"
        );
    }

    #[test]
    fn a_gateway_without_address_is_for_what_the_runtime_asks_for() {
        let lone = |mut config: Value| {
            config["ipam"] = json!({"addresses": [
                {"gateway": "10.1.0.1"}, {"gateway": "fd00:1::1", "address": null},
            ]});
            config
        };
        let ips = json!(["10.1.0.5/24", "fd00:1::5/64", "10.2.0.5/16"]);
        let completed = [
            "10.1.0.5/24 10.1.0.1",
            "fd00:1::5/64 fd00:1::1",
            "10.2.0.5/16",
        ];
        let capability = lone(json!({"runtimeConfig": {"ips": ips}}));
        assert_eq!(resolved(capability, ""), completed);
        let args = lone(json!({"args": {"cni": {"ips": ips}}}));
        assert_eq!(resolved(args.clone(), "GATEWAY=10.1.0.2"), completed);
        assert_eq!(
            resolved(lone(json!({})), "IP=10.1.0.5/24"),
            ["10.1.0.5/24 10.1.0.1"]
        );
        let (code, message) = refused("1.1.0", lone(json!({})), "");
        assert_eq!(code, 7);
        assert!(message.contains("ipam.addresses[0].address"), "{message}");
        let mut status = call("1.1.0", lone(json!({})), "");
        status.invocation.command = Command::Status;
        assert_eq!(Settings::resolve(&status).unwrap().ips, []);
        for (document, count) in [
            (lone(json!({})), 2),
            (args, 0),
            (lone(json!({"capabilities": {"ips": true}})), 0),
        ] {
            assert_eq!(problems("", &document).len(), count, "{document}");
        }
    }

    #[test]
    fn wrong_values_are_named() {
        for (config, args, code, start) in [
            (json!({}), "", 7, "ipam: is missing"),
            (
                json!({"ipam": {"addresses": [{"address": "10.1.0.5"}]}}),
                "",
                7,
                "ipam.addresses[0].address: \"10.1.0.5\" has no prefix length",
            ),
            (
                json!({"ipam": {"addresses": [{}]}}),
                "",
                7,
                "ipam.addresses[0].address: \"\" is not an address",
            ),
            (
                json!({"ipam": {"addresses": [{"address": "10.1.0.5/24", "gateway": "fd00::1"}]}}),
                "",
                7,
                "ipam.addresses[0].gateway: fd00::1 is of another family",
            ),
            (
                json!({"ipam": {"routes": [{"gw": "10.1.0.1"}]}}),
                "",
                7,
                "ipam.routes[0].dst: is missing",
            ),
            (
                json!({"ipam": {}, "runtimeConfig": {"ips": ["10.7.0.5"]}}),
                "",
                7,
                "runtimeConfig.ips[0]: \"10.7.0.5\" has no prefix length",
            ),
            (
                json!({"ipam": {"addresses": "10.1.0.5/24"}}),
                "",
                6,
                "ipam.addresses: expected a list",
            ),
            (two(), "IP=10.7.0.5", 4, "CNI_ARGS: IP: \"10.7.0.5\""),
            (two(), "GATEWAY=x", 4, "CNI_ARGS: GATEWAY: \"x\""),
            (two(), "ip=10.1.0.5/24", 4, "ARGS: unknown args"),
        ] {
            let (found, message) = refused("1.1.0", config, args);
            assert_eq!(found, code, "{message}");
            assert!(message.starts_with(start), "{message}");
        }
        let (code, message) = refused("0.2.0", two(), "IP=10.1.0.6/24");
        assert_eq!(code, 7);
        assert_eq!(
            message,
            "ipam.addresses: a second IPv4 address needs cniVersion 0.3.0 or newer, not 0.2.0"
        );
    }

    #[test]
    fn validation_finds_everything() {
        let document = json!({
            "cniVersion": "0.2.0",
            "ipam": {
                "type": "static",
                "adresses": [],
                "addresses": [{"address": "10.1.0.5/24"}, {"address": "10.1.0.6/33"}, {"address": "10.1.0.7/24"}],
            },
            "args": {"cni": {"ips": 5}},
        });
        let found = |document: &Value| -> Vec<String> {
            let found = problems("plugins[0]", document).into_iter();
            found.map(|problem| problem.path).collect()
        };
        assert_eq!(
            found(&document),
            ["plugins[0].ipam.adresses", "plugins[0].args.cni.ips"]
        );
        let mut document = document;
        document["args"] = Value::Null;
        assert_eq!(
            found(&document),
            [
                "plugins[0].ipam.adresses",
                "plugins[0].ipam.addresses[1].address",
                "plugins[0].ipam.addresses"
            ]
        );
    }

    #[test]
    fn the_manual_lists_every_key() {
        assert_documented::<Document>("static");
    }
}
