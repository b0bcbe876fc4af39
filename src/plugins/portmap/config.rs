//! Port mappings: as written, and as meant (docs/compatibility.md#7.1).

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use crate::cni::address::parse_ip;
use crate::cni::error::Code;
use crate::cni::invocation::Command;
use crate::cni::json::{self, Problem};
use crate::cni::skel::Call;
use crate::netfilter::{BackendName, Family, Mapping, Mark, Protocol, UNDERSTOOD};

#[derive(Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    backend: String,
    snat: bool,
    masq_all: bool,
    mark_masq_bit: Option<i64>,
    external_set_mark_chain: Option<String>,
    #[serde(rename = "conditionsV4")]
    conditions_v4: Vec<String>,
    #[serde(rename = "conditionsV6")]
    conditions_v6: Vec<String>,
    runtime_config: WireRuntimeConfig,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            backend: String::new(),
            snat: true,
            masq_all: false,
            mark_masq_bit: None,
            external_set_mark_chain: None,
            conditions_v4: Vec::new(),
            conditions_v6: Vec::new(),
            runtime_config: WireRuntimeConfig::default(),
        }
    }
}

#[derive(Debug, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct WireRuntimeConfig {
    port_mappings: Vec<WireMapping>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct WireMapping {
    host_port: i64,
    container_port: i64,
    protocol: String,
    #[serde(rename = "hostIP")]
    host_ip: String,
}

/// What the operator and the runtime want, with every value in range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The backend that was asked for, or that the conditions are written for.
    pub backend: Option<BackendName>,
    pub snat: bool,
    pub masquerade_all: bool,
    pub mark: Mark,
    pub conditions_v4: Vec<String>,
    pub conditions_v6: Vec<String>,
    pub mappings: Vec<Mapping>,
}

/// The mark of the reference where nobody says otherwise.
const DEFAULT_MARK_BIT: u8 = 13;

impl Settings {
    /// The settings for `call`.
    ///
    /// # Errors
    /// Code 6 or 7, naming the key or the mapping; code 2 for a condition that the backend
    /// does not understand.
    pub fn resolve(call: &Call) -> Result<Self> {
        // The reference's sentences for ADD and DEL begin with this, those for CHECK do not.
        let begin = match call.invocation.command {
            Command::Check => "",
            _ => "failed to parse config: ",
        };
        let unreadable = format!("{begin}failed to parse network configuration");
        let wire: Wire = call.config.read_as(&unreadable)?;
        let settings = wire.settings().map_err(|mut problems| {
            let mut first = problems.remove(0);
            first.sentence = first.sentence.map(|sentence| format!("{begin}{sentence}"));
            first.error(Code::Config)
        })?;
        match settings.misunderstood().first() {
            Some(problem) => Err(problem.error(Code::UnsupportedField)),
            None => Ok(settings),
        }
    }

    /// The conditions that the nftables backend cannot keep. Those for iptables are the
    /// tool's to judge.
    fn misunderstood(&self) -> Vec<Problem> {
        if self.backend != Some(BackendName::Nftables) {
            return Vec::new();
        }
        let families = [
            ("conditionsV4", Family::Ip, &self.conditions_v4),
            ("conditionsV6", Family::Ip6, &self.conditions_v6),
        ];
        let problem = |(key, family, conditions): (&str, Family, &Vec<String>)| {
            if BackendName::Nftables.understands(family, conditions) {
                return None;
            }
            // A condition may go on in the next members: the first that cannot be the end
            // of one is where the mistake begins.
            let (understood, rest) = (0..conditions.len())
                .rev()
                .map(|begin| conditions.split_at(begin))
                .find(|(before, _)| BackendName::Nftables.understands(family, before))?;
            let message = format!(
                "the nftables backend does not understand \"{}\"; {UNDERSTOOD}",
                rest.join(" ")
            );
            Some(Problem::new(
                format!("{key}[{}]", understood.len()),
                message,
            ))
        };
        families.into_iter().filter_map(problem).collect()
    }
}

/// Everything wrong with a configuration; `root` is its path in the file.
pub fn validate(root: &str, document: &Value) -> Vec<Problem> {
    let mut problems = json::problems::<Wire>(root, document);
    if let Ok(wire) = json::decode::<Wire>(root, document) {
        let found = wire
            .settings()
            .map_or_else(|problems| problems, |settings| settings.misunderstood());
        let placed =
            |problem: Problem| Problem::new(json::below(root, &problem.path), problem.message);
        problems.extend(found.into_iter().map(placed));
    }
    problems
}

impl Wire {
    /// The settings, or everything that is wrong, paths below the configuration.
    fn settings(&self) -> Result<Settings, Vec<Problem>> {
        let mut problems = Vec::new();
        let backend = self.backend().map_err(|p| problems.push(p)).ok().flatten();
        let mark = self.mark().map_err(|p| problems.push(p)).ok();
        let mut mappings: Vec<Mapping> = Vec::new();
        // Thousands of ports are compared with those of the same number only.
        let mut taken: BTreeMap<(Protocol, u16), Vec<Mapping>> = BTreeMap::new();
        for (index, wire) in self.runtime_config.port_mappings.iter().enumerate() {
            let path = format!("runtimeConfig.portMappings[{index}]");
            match wire.mapping() {
                Err(problem) => problems.push(problem.below(&path)),
                Ok(mapping) => {
                    let key = (mapping.protocol, mapping.host_port);
                    let others = taken.entry(key).or_default();
                    let same = others.iter().filter(|other| other.same_port(&mapping));
                    let same: Vec<Mapping> = same.copied().collect();
                    if same
                        .iter()
                        .any(|o| o.container_port != mapping.container_port)
                    {
                        let message = format!("host port {mapping} is mapped twice");
                        problems.push(Problem::new(path, message));
                    } else if !same.iter().any(|other| other.includes(&mapping)) {
                        // What it says of one family only, this one says of both.
                        others.retain(|other| !same.contains(other));
                        if !same.is_empty() {
                            mappings.retain(|other| !same.contains(other));
                        }
                        others.push(mapping);
                        mappings.push(mapping);
                    }
                }
            }
        }
        let Some(mark) = mark.filter(|_| problems.is_empty()) else {
            return Err(problems);
        };
        Ok(Settings {
            backend,
            snat: self.snat,
            masquerade_all: self.masq_all,
            mark,
            conditions_v4: self.conditions_v4.clone(),
            conditions_v6: self.conditions_v6.clone(),
            mappings,
        })
    }

    fn mark(&self) -> Result<Mark, Problem> {
        let problem =
            |message: &str, sentence| Problem::new("markMasqBit", message).told_as(sentence);
        let chain = self
            .external_set_mark_chain
            .as_ref()
            .filter(|chain| !chain.is_empty());
        match (self.mark_masq_bit, chain) {
            (Some(_), Some(_)) => Err(problem(
                "cannot be used together with externalSetMarkChain: that chain decides on the mark",
                "Cannot specify externalSetMarkChain and markMasqBit",
            )),
            (None, None) => Ok(Mark::Bit(DEFAULT_MARK_BIT)),
            (None, Some(chain)) => Ok(Mark::Chain(chain.clone())),
            (Some(bit), None) => u8::try_from(bit)
                .ok()
                .filter(|bit| *bit <= 31)
                .map(Mark::Bit)
                .ok_or_else(|| {
                    problem(
                        "must be from 0 to 31",
                        "MasqMarkBit must be between 0 and 31",
                    )
                }),
        }
    }

    /// The backend asked for, which must be the one that the other keys are written for.
    fn backend(&self) -> Result<Option<BackendName>, Problem> {
        let asked = BackendName::parse(&self.backend);
        if asked.is_none() && !self.backend.is_empty() {
            let message = format!(
                "\"{}\" is neither \"iptables\" nor \"nftables\"",
                self.backend
            );
            let sentence = format!("unrecognized backend {:?}", self.backend);
            return Err(Problem::new("backend", message).told_as(sentence));
        }
        let written_for = |conditions: &[String]| {
            let first = conditions.first()?;
            Some(if first.starts_with(['-', '!']) {
                BackendName::Iptables
            } else {
                BackendName::Nftables
            })
        };
        let external = self.external_set_mark_chain.as_deref().unwrap_or_default();
        // In the order of the reference's sentence.
        let keys = [
            (
                "externalSetMarkChain",
                (!external.is_empty()).then_some(BackendName::Iptables),
            ),
            ("conditionsV4", written_for(&self.conditions_v4)),
            ("conditionsV6", written_for(&self.conditions_v6)),
        ];
        let written = keys
            .into_iter()
            .filter_map(|(key, backend)| Some((key, backend?)));
        let written: Vec<(&str, BackendName)> = written.collect();
        let is_for = |wanted| written.iter().any(|(_, backend)| *backend == wanted);
        let Some(backend) = [BackendName::Iptables, BackendName::Nftables]
            .into_iter()
            .find(|backend| asked.map_or_else(|| is_for(*backend), |asked| asked == *backend))
        else {
            return Ok(None);
        };
        let contrary: Vec<_> = written.iter().filter(|(_, b)| *b != backend).collect();
        let Some((first, other)) = contrary.first() else {
            return Ok(Some(backend));
        };
        let (backend, other) = (backend.as_str(), other.as_str());
        let keys: Vec<&str> = contrary.iter().map(|(key, _)| *key).collect();
        let message = format!("is written for {other}, but the backend is {backend}");
        Err(Problem::new(*first, message).told_as(format!(
            "{backend} backend was requested but configuration contains {other}-specific options [{}]",
            keys.join(" ")
        )))
    }
}

impl WireMapping {
    /// The mapping, or which of its keys is wrong and why.
    fn mapping(&self) -> Result<Mapping, Problem> {
        let port = |key, whose, port: i64| {
            u16::try_from(port)
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| {
                    Problem::new(key, format!("{port} is not a port: 1 to 65535"))
                        .told_as(format!("Invalid {whose} port number: {port}"))
                })
        };
        let protocol = match self.protocol.to_ascii_lowercase().as_str() {
            "" => Protocol::Tcp,
            name => Protocol::named(name).ok_or_else(|| {
                let message = format!("\"{}\" is none of tcp, udp and sctp", self.protocol);
                Problem::new("protocol", message)
            })?,
        };
        let host_ip = if self.host_ip.is_empty() {
            None
        } else {
            let ip = parse_ip(&self.host_ip).ok_or_else(|| {
                Problem::new(
                    "hostIP",
                    format!("\"{}\" is not an IP address", self.host_ip),
                )
            })?;
            Some(ip)
        };
        Ok(Mapping {
            protocol,
            host_ip,
            container_port: port("containerPort", "container", self.container_port)?,
            host_port: port("hostPort", "host", self.host_port)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::documented::assert_documented;
    use serde_json::json;

    fn settings(value: &Value) -> Result<Settings, Vec<Problem>> {
        json::decode::<Wire>("", value).unwrap().settings()
    }

    fn problems(value: &Value) -> Vec<String> {
        let found = settings(value).unwrap_err().into_iter();
        found
            .map(|p| format!("{}: {}", p.path, p.message))
            .collect()
    }

    fn mapped(mappings: &Value) -> Value {
        json!({"runtimeConfig": {"portMappings": mappings}})
    }

    #[test]
    fn defaults() {
        let settings = settings(&json!({})).unwrap();
        assert!(settings.snat && !settings.masquerade_all && settings.backend.is_none());
        assert_eq!(settings.mark, Mark::Bit(13));
        assert!(settings.mappings.is_empty());
    }

    #[test]
    fn mappings_are_read() {
        let mappings = json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "TCP"},
            {"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "::1"},
            {"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "192.0.2.1"},
            {"hostPort": 8081, "containerPort": 81, "protocol": "sctp", "hostIP": "0.0.0.0"},
        ]);
        let read = settings(&mapped(&mappings)).unwrap().mappings;
        let words: Vec<String> = read.iter().map(ToString::to_string).collect();
        assert_eq!(
            words,
            [
                "8080/tcp",
                "[::1]:8080/udp",
                "192.0.2.1:8080/udp",
                "0.0.0.0:8081/sctp"
            ]
        );
    }

    #[test]
    fn wrong_mappings_are_all_named() {
        let mappings = json!([
            {"hostPort": 0, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 80, "containerPort": 65536, "protocol": "tcp"},
            {"hostPort": 80, "containerPort": 80, "protocol": "icmp"},
            {"hostPort": 80, "containerPort": 80, "protocol": "tcp", "hostIP": "10.0.0"},
            {"hostPort": 81, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 81, "containerPort": 90, "protocol": "tcp"},
            {"hostPort": 82, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0"},
            {"hostPort": 82, "containerPort": 90, "protocol": "tcp"},
            {"hostPort": 83, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
            {"hostPort": 83, "containerPort": 90, "hostIP": "::ffff:192.0.2.1"},
        ]);
        assert_eq!(
            problems(&mapped(&mappings)),
            [
                "runtimeConfig.portMappings[0].hostPort: 0 is not a port: 1 to 65535",
                "runtimeConfig.portMappings[1].containerPort: 65536 is not a port: 1 to 65535",
                "runtimeConfig.portMappings[2].protocol: \"icmp\" is none of tcp, udp and sctp",
                "runtimeConfig.portMappings[3].hostIP: \"10.0.0\" is not an IP address",
                "runtimeConfig.portMappings[5]: host port 81/tcp is mapped twice",
                "runtimeConfig.portMappings[7]: host port 82/tcp is mapped twice",
                "runtimeConfig.portMappings[9]: host port 192.0.2.1:83/tcp is mapped twice",
            ]
        );
    }

    #[test]
    fn a_mapping_given_twice_is_one() {
        let (any, v4, v6) = ("", "0.0.0.0", "::");
        for (given, expected) in [
            (&[any, any] as &[&str], &["8080/tcp"] as &[&str]),
            (&[any, v4], &["8080/tcp"]),
            (&[v4, any], &["8080/tcp"]),
            (&[v6, any, v4], &["8080/tcp"]),
            (&[v4, v6, any], &["8080/tcp"]),
            (&[v4, v4], &["0.0.0.0:8080/tcp"]),
            (&[v4, "::ffff:0.0.0.0"], &["0.0.0.0:8080/tcp"]),
            (&[v4, v6], &["0.0.0.0:8080/tcp", "[::]:8080/tcp"]),
            (
                &[any, "192.0.2.1", "192.0.2.1"],
                &["8080/tcp", "192.0.2.1:8080/tcp"],
            ),
        ] {
            let mapping = |ip: &&str| json!({"hostPort": 8080, "containerPort": 80, "hostIP": ip});
            let given_twice: Value = given.iter().map(mapping).collect();
            let read = settings(&mapped(&given_twice)).unwrap().mappings;
            let read: Vec<String> = read.iter().map(ToString::to_string).collect();
            assert_eq!(read, expected, "{given:?}");
        }
    }

    #[test]
    fn marks() {
        assert_eq!(
            settings(&json!({"markMasqBit": 0})).unwrap().mark,
            Mark::Bit(0)
        );
        let external = settings(&json!({"externalSetMarkChain": "KUBE-MARK-MASQ"})).unwrap();
        assert_eq!(external.mark, Mark::Chain("KUBE-MARK-MASQ".into()));
        assert_eq!(external.backend, Some(BackendName::Iptables));
        assert!(problems(&json!({"markMasqBit": 32}))[0].starts_with("markMasqBit: "));
        assert!(
            problems(&json!({"markMasqBit": 1, "externalSetMarkChain": "X"}))[0]
                .contains("externalSetMarkChain")
        );
    }

    #[test]
    fn conditions_and_backend_must_agree() {
        let backend = |value: &Value| settings(value).unwrap().backend;
        assert_eq!(
            backend(&json!({"conditionsV4": ["!", "-d", "192.0.2.0/24"]})),
            Some(BackendName::Iptables)
        );
        assert_eq!(
            backend(&json!({"conditionsV6": ["ip6 daddr != fd00::/8"]})),
            Some(BackendName::Nftables)
        );
        for value in [
            json!({"backend": "nftables", "conditionsV4": ["-d", "192.0.2.1"]}),
            json!({"conditionsV4": ["-d", "192.0.2.1"], "conditionsV6": ["ip6 daddr ::1"]}),
            json!({"backend": "nftables", "externalSetMarkChain": "X"}),
            json!({"backend": "ebtables"}),
        ] {
            assert_eq!(problems(&value).len(), 1, "{value}");
        }
    }

    #[test]
    fn conditions_must_be_understood() {
        let misunderstood = |value: &Value| -> Vec<String> {
            let found = validate("plugins[0]", value).into_iter();
            found
                .map(|p| format!("{}: {}", p.path, p.message))
                .collect()
        };
        let wrong = json!({
            "backend": "nftables",
            "conditionsV4": ["ct state new"],
            "conditionsV6": ["ip6", "daddr", "fd00::/8", "ip saddr", "10.0.0.1"],
        });
        let found = misunderstood(&wrong);
        assert_eq!(found.len(), 2, "{found:?}");
        for (found, start) in found.iter().zip([
            "plugins[0].conditionsV4[0]: the nftables backend does not understand \"ct state new\"; ",
            "plugins[0].conditionsV6[3]: the nftables backend does not understand \"ip saddr 10.0.0.1\"; ",
        ]) {
            assert!(found.starts_with(start), "{found}");
            assert!(found.ends_with(UNDERSTOOD), "{found}");
        }
        for right in [
            json!({"backend": "nftables", "conditionsV4": ["ip", "saddr", "!= 10.0.0.0/8"]}),
            json!({"conditionsV4": ["-m", "conntrack", "--ctstate", "NEW"]}),
        ] {
            assert!(misunderstood(&right).is_empty(), "{right}");
        }
    }

    #[test]
    fn the_manual_lists_every_key() {
        assert_documented::<Wire>("portmap");
    }
}
