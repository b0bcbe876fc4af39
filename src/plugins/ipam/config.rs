//! The configuration of host-local (docs/compatibility.md#6.1): as written, and as it is meant.
//!
//! Reading never stops at the first mistake: ADD reports it and names the others, and
//! `cnitool validate` lists them all.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::range::Written;
use super::range_set::{self, RangeSet};
use crate::cni::address::{parse_cidr, parse_ip};
use crate::cni::args;
use crate::cni::config::Config;
use crate::cni::error::{Code, coded};
use crate::cni::invocation::LONGEST_FILE_NAME;
use crate::cni::ipam::{WrittenRoute, no_ipam, requested_addresses, routes};
use crate::cni::json::{self, Problem};
use crate::cni::result::Route;
use crate::cni::version::Version;

/// Where leases are recorded when the configuration does not say.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// What comes of a STATUS that fails while no address is free.
const EVICTION: &str = "while no address is free the node is reported as not ready: Kubernetes \
                        then evicts the pods that run there";

/// The parts of a plugin configuration that matter here.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Document {
    ipam: Option<Ipam>,
    args: Args,
    runtime_config: RuntimeConfig,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Ipam {
    #[serde(rename = "type")]
    _plugin: String,
    ranges: Vec<Vec<Written>>,
    subnet: String,
    range_start: String,
    range_end: String,
    gateway: String,
    routes: Vec<WrittenRoute>,
    data_dir: String,
    resolv_conf: String,
    status_fails_when_exhausted: bool,
}

impl Ipam {
    /// The form from before there were `ranges`.
    fn legacy(&self) -> Written {
        Written {
            subnet: self.subnet.clone(),
            range_start: self.range_start.clone(),
            range_end: self.range_end.clone(),
            gateway: self.gateway.clone(),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Args {
    cni: CniArgs,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct CniArgs {
    ips: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct RuntimeConfig {
    ip_ranges: Vec<Vec<Written>>,
    ips: Vec<String>,
}

/// What a configuration means.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub data_dir: PathBuf,
    /// One address is allocated from each, in this order.
    pub sets: Vec<RangeSet>,
    /// Addresses that the configuration asks for, each once.
    pub requested: Vec<IpAddr>,
    pub routes: Vec<Route>,
    pub resolv_conf: Option<PathBuf>,
    /// Whether STATUS is to fail while no address is free.
    pub status_fails_when_exhausted: bool,
}

impl Settings {
    /// Reads and checks `config`.
    ///
    /// # Errors
    /// Code 6 for a wrong type, code 7 for what is wrong otherwise: the first problem is
    /// the message, the others are the details.
    pub fn read(config: &Config) -> Result<Self> {
        let settings = Self::read_for_status(config)?;
        if settings.sets.is_empty() {
            json::refuse(&[no_ranges("")])?;
        }
        Ok(settings)
    }

    /// As [`Self::read`], except that there need be no ranges: STATUS is not told those
    /// that come from the runtime.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_for_status(config: &Config) -> Result<Self> {
        if let Some(problem) = unusable_name(&config.network) {
            return Err(coded(Code::Config, problem).into());
        }
        let document: Document = config.read()?;
        let mut problems = Vec::new();
        let settings = resolve(&document, config.version, "", &mut problems);
        json::refuse(&problems)?;
        Ok(settings)
    }

    /// The range set that `ip` is a gateway of, if any: gateways are never handed out, not
    /// even from another set.
    pub fn set_with_gateway(&self, ip: IpAddr) -> Option<&RangeSet> {
        self.sets.iter().find(|set| set.has_gateway(ip))
    }

    /// The addresses asked for in `CNI_ARGS` (`IP=`), then those of the configuration.
    ///
    /// # Errors
    /// Code 4 for malformed `CNI_ARGS`.
    pub fn requested_with(&self, cni_args: &str) -> Result<Vec<IpAddr>> {
        let mut requested = Vec::new();
        if let Some(text) = args::parse(cni_args, &["IP"])?.get("IP")
            && !text.is_empty()
        {
            let ip = without_length(text).ok_or_else(|| {
                args::invalid_value(
                    &format!("IP={text}"),
                    format_args!("invalid IP address {text}"),
                    format!("CNI_ARGS: IP: \"{text}\" is not an IP address"),
                )
            })?;
            requested.push(ip);
        }
        for ip in &self.requested {
            if !requested.contains(ip) {
                requested.push(*ip);
            }
        }
        Ok(requested)
    }
}

/// Where the leases of `config` are, for what must work however broken the rest of it is:
/// DEL and GC.
///
/// # Errors
/// Code 6 when `dataDir` itself is no text: there is no telling where to look.
pub fn data_dir(config: &Config) -> Result<PathBuf> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Outer {
        ipam: Option<Value>,
    }
    #[derive(Deserialize, Default)]
    #[serde(default, rename_all = "camelCase")]
    struct Inner {
        data_dir: String,
    }
    let outer: Outer = config.read()?;
    let inner: Inner = json::decode("ipam", &outer.ipam.unwrap_or_default())?;
    Ok(path_or_default(&inner.data_dir))
}

/// Everything wrong with the plugin configuration `document` that stands at `root`.
pub fn problems(root: &str, document: &Value) -> Vec<Problem> {
    let mut found = Vec::new();
    let name = json::member(document, &["name"]);
    let unusable = name.and_then(|name| unusable_name(name.as_str()?));
    found.extend(unusable.map(|problem| Problem::new("name", problem)));
    if let Some(ipam) = json::member(document, &["ipam"]) {
        found.extend(json::problems::<Ipam>(&json::below(root, "ipam"), &ipam));
    }
    if let Some(ranges) = json::member(document, &["runtimeConfig", "ipRanges"]) {
        let path = json::below(root, "runtimeConfig.ipRanges");
        found.extend(json::problems::<Vec<Vec<Written>>>(&path, &ranges));
    }
    found.extend(requested_addresses(root, document));
    let version = json::member(document, &["cniVersion"])
        .and_then(|version| Version::exact(version.as_str()?))
        .unwrap_or(Version::NEWEST);
    // A document of the wrong shape has been reported above and means nothing.
    if let Ok(read) = json::decode::<Document>(root, document) {
        let settings = resolve(&read, version, root, &mut found);
        let from_runtime = json::member(document, &["capabilities", "ipRanges"]);
        if settings.sets.is_empty() && read.ipam.is_some() && from_runtime != Some(true.into()) {
            found.push(no_ranges(root));
        }
        if let Some(ipam) = &read.ipam {
            let sets = sets(&read, ipam, root, &mut Vec::new());
            let full = sets
                .iter()
                .filter(|(_, set)| set.is_full_of_gateways(&settings.sets));
            found.extend(full.map(|(path, set)| {
                let what = format!("{set} has no address to hand out: the gateway has it");
                Problem::new(path.clone(), what)
            }));
        }
        if settings.status_fails_when_exhausted {
            found.push(Problem::warning(
                json::below(root, "ipam.statusFailsWhenExhausted"),
                EVICTION,
            ));
        }
        let legacy = read.ipam.as_ref().filter(|ipam| ipam.subnet.is_empty());
        for (key, text) in legacy.into_iter().flat_map(|ipam| {
            [
                ("rangeStart", &ipam.range_start),
                ("rangeEnd", &ipam.range_end),
                ("gateway", &ipam.gateway),
            ]
        }) {
            if !text.is_empty() {
                found.push(Problem::new(
                    json::below(root, &format!("ipam.{key}")),
                    "ignored without ipam.subnet",
                ));
            }
        }
    } else if found.iter().all(|problem| problem.is_warning) {
        // Not in one of the members above, but around them.
        let around = json::problems::<Document>(root, document).into_iter();
        found.extend(around.filter(|problem| !problem.is_unknown_key));
    }
    found
}

/// Why no leases of a network with this name can be recorded.
fn unusable_name(network: &str) -> Option<String> {
    (network.len() > LONGEST_FILE_NAME).then(|| {
        format!(
            "the network name has {} bytes: its leases are recorded in a directory of this name, \
             which can have {LONGEST_FILE_NAME}",
            network.len()
        )
    })
}

/// Nothing to hand out: neither `ranges` nor `subnet` nor, from the runtime, `ipRanges`.
fn no_ranges(root: &str) -> Problem {
    Problem::new(
        json::below(root, "ipam"),
        "there are no ranges: set ipam.ranges",
    )
    .told_as("no IP ranges specified")
}

fn path_or_default(text: &str) -> PathBuf {
    if text.is_empty() {
        DEFAULT_DATA_DIR.into()
    } else {
        text.into()
    }
}

/// An address whose prefix length, if any, does not matter.
fn without_length(text: &str) -> Option<IpAddr> {
    if text.contains('/') {
        parse_cidr(text).map(|net| net.addr())
    } else {
        parse_ip(text)
    }
}

/// Gives `document` its meaning, in the order of docs/compatibility.md#6.2. The settings are complete
/// only when no problem was found.
fn resolve(
    document: &Document,
    version: Version,
    root: &str,
    problems: &mut Vec<Problem>,
) -> Settings {
    let none = Ipam::default();
    let ipam = document.ipam.as_ref().unwrap_or_else(|| {
        problems.push(no_ipam(root));
        &none
    });
    let requested = requested(document, root, problems);
    let sets = sets(document, ipam, root, problems);
    range_set::check(&sets, version, problems);
    Settings {
        data_dir: path_or_default(&ipam.data_dir),
        sets: sets.into_iter().map(|(_, set)| set).collect(),
        requested,
        routes: routes(&ipam.routes, &json::below(root, "ipam.routes"), problems),
        resolv_conf: Some(&ipam.resolv_conf)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from),
        status_fails_when_exhausted: ipam.status_fails_when_exhausted,
    }
}

fn requested(document: &Document, root: &str, problems: &mut Vec<Problem>) -> Vec<IpAddr> {
    let mut requested = Vec::new();
    for (key, texts) in [
        ("args.cni.ips", &document.args.cni.ips),
        ("runtimeConfig.ips", &document.runtime_config.ips),
    ] {
        for (index, text) in texts.iter().enumerate() {
            match without_length(text) {
                Some(ip) if requested.contains(&ip) => {}
                Some(ip) => requested.push(ip),
                None => {
                    let path = json::below(root, &format!("{key}[{index}]"));
                    let message = format!("\"{text}\" is not an IP address");
                    let sentence = match text.as_str() {
                        "" => "cannot understand ip: IP <nil> not v4 nor v6".to_owned(),
                        text => format!("invalid IP address {text}"),
                    };
                    problems.push(Problem::new(path, message).told_as(sentence));
                }
            }
        }
    }
    requested
}

/// The runtime's ranges, the legacy form, then `ranges`: this order numbers the sets, and
/// the numbers are in messages and file names.
fn sets(
    document: &Document,
    ipam: &Ipam,
    root: &str,
    problems: &mut Vec<Problem>,
) -> Vec<(String, RangeSet)> {
    let legacy = ipam.legacy();
    let mut written = numbered(
        &json::below(root, "runtimeConfig.ipRanges"),
        &document.runtime_config.ip_ranges,
    );
    if !legacy.subnet.is_empty() {
        let path = json::below(root, "ipam");
        written.push((path.clone(), vec![(path, &legacy)]));
    }
    written.extend(numbered(&json::below(root, "ipam.ranges"), &ipam.ranges));
    written
        .into_iter()
        .enumerate()
        .map(|(number, (path, ranges))| {
            let set = RangeSet::resolve(&path, number, &ranges, problems);
            (path, set)
        })
        .collect()
}

/// Range sets as written.
type WrittenSets<'a> = Vec<(String, Vec<(String, &'a Written)>)>;

/// The sets at `path`, each set and each range with its own path.
fn numbered<'a>(path: &str, sets: &'a [Vec<Written>]) -> WrittenSets<'a> {
    sets.iter()
        .enumerate()
        .map(|(index, set)| {
            let path = format!("{path}[{index}]");
            let ranges = set
                .iter()
                .enumerate()
                .map(|(index, range)| (format!("{path}[{index}]"), range))
                .collect();
            (path, ranges)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cni::documented::assert_documented;
    use crate::cni::error::ErrorObject;

    fn config(version: Version, document: Value) -> Config {
        Config {
            version,
            network: "n".into(),
            raw: Vec::new(),
            document,
        }
    }

    fn read(document: Value) -> Result<Settings> {
        Settings::read(&config(Version::NEWEST, document))
    }

    fn refused(document: Value) -> (u32, String, String) {
        let object = ErrorObject::from_error(&read(document).unwrap_err());
        // Every problem in our words, one after the other.
        let mut ours = object.ours().split("; ");
        let first = ours.next().unwrap_or_default().to_owned();
        (object.code, first, ours.collect::<Vec<_>>().join("; "))
    }

    fn shown(settings: &Settings) -> Vec<String> {
        settings.sets.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn sets_in_their_order() {
        let settings = read(json!({
            "ipam": {
                "type": "host-local",
                "subnet": "10.1.0.0/24",
                "rangeEnd": "10.1.0.9",
                "ranges": [[{"subnet": "fd00::/64", "rangeEnd": "fd00::9"}]],
            },
            "runtimeConfig": {"ipRanges": [[{"subnet": "10.9.0.0/30"}]]},
        }))
        .unwrap();
        assert_eq!(
            shown(&settings),
            ["10.9.0.1-10.9.0.2", "10.1.0.1-10.1.0.9", "fd00::1-fd00::9"]
        );
        assert_eq!(
            settings.data_dir,
            std::path::Path::new("/var/lib/cni/networks")
        );
        assert_eq!(settings.resolv_conf, None);
    }

    #[test]
    fn requests_are_joined() {
        let settings = read(json!({
            "ipam": {"subnet": "10.0.0.0/24"},
            "args": {"cni": {"ips": ["10.0.0.7", "fd00::7/64"], "labels": []}},
            "runtimeConfig": {"ips": ["10.0.0.7/8", "10.0.0.8"], "mac": "x"},
        }))
        .unwrap();
        let requested = |args: &str| {
            settings.requested_with(args).map(|list| {
                list.iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" ")
            })
        };
        assert_eq!(requested("").unwrap(), "10.0.0.7 fd00::7 10.0.0.8");
        assert_eq!(
            requested("IP=10.0.0.8/24").unwrap(),
            "10.0.0.8 10.0.0.7 fd00::7"
        );
        assert_eq!(
            requested("IP=;IgnoreUnknown=1;X=1").unwrap(),
            "10.0.0.7 fd00::7 10.0.0.8"
        );
        assert_eq!(
            requested("ip=10.0.0.9").unwrap_err().to_string(),
            "ARGS: unknown args [\"ip=10.0.0.9\"]"
        );
        let error = ErrorObject::from_error(&requested("IP=x").unwrap_err());
        assert_eq!(error.code, 4);
    }

    #[test]
    fn refusals() {
        for (document, code, msg) in [
            (json!({}), 7, "ipam: is missing"),
            (
                json!({"ipam": {}}),
                7,
                "ipam: there are no ranges: set ipam.ranges",
            ),
            (
                json!({"ipam": {"rangeStart": "10.0.0.1"}}),
                7,
                "ipam: there are no ranges: set ipam.ranges",
            ),
            (
                json!({"ipam": {"ranges": [[]]}}),
                7,
                "ipam.ranges[0]: the range set is empty: give it a range, or remove it",
            ),
            (
                json!({"ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}, {"rangeStart": "10.0.0.1"}]]}}),
                7,
                "ipam.ranges[0][1].subnet: is missing: a range needs its subnet",
            ),
            (
                json!({"ipam": {"subnet": "10.0.0.0/24", "gateway": "fd00::1"}}),
                7,
                "ipam.gateway: fd00::1 is not of the same IP version as subnet 10.0.0.0/24",
            ),
            (
                json!({"ipam": {"subnet": "10.0.0.0/24"}, "runtimeConfig": {"ips": [""]}}),
                7,
                "runtimeConfig.ips[0]: \"\" is not an IP address",
            ),
            (
                json!({"ipam": {"subnet": "10.0.0.0/24", "routes": [{"gw": "10.0.0.1"}]}}),
                7,
                "ipam.routes[0].dst: is missing: a route needs its destination",
            ),
            (
                json!({"ipam": {"subnet": "10.0.0.0/24", "routes": [{"dst": "x"}]}}),
                7,
                "ipam.routes[0].dst: \"x\" is not an address with prefix length, like 0.0.0.0/0",
            ),
            (
                json!({"ipam": {"subnet": 5}}),
                6,
                "ipam.subnet: expected a string, found the number 5",
            ),
        ] {
            let (found, sentence, _) = refused(document.clone());
            assert_eq!((found, sentence.as_str()), (code, msg), "{document}");
        }
        let (_, msg, details) = refused(json!({"ipam": {
            "ranges": [[{"subnet": "10.0.0.1/24"}], [{"subnet": "10.0.0.0/31"}]],
        }}));
        assert!(msg.starts_with("ipam.ranges[0][0].subnet: "), "{msg}");
        assert!(
            details.starts_with("ipam.ranges[1][0].subnet: "),
            "{details}"
        );
    }

    #[test]
    fn two_sets_of_one_version_need_a_newer_result() {
        let document = json!({"ipam": {"ranges": [
            [{"subnet": "10.0.0.0/24"}], [{"subnet": "10.1.0.0/24"}],
        ]}});
        for version in Version::ALL {
            let read = Settings::read(&config(version, document.clone()));
            assert_eq!(read.is_ok(), version >= Version::V0_3_0, "{version}");
        }
    }

    #[test]
    fn routes_keep_their_options() {
        let settings = read(json!({"ipam": {"subnet": "10.0.0.0/24", "routes": [
            {"dst": "0.0.0.0/0"},
            {"dst": "10.2.3.4/16", "gw": "10.0.0.9", "mtu": 1400, "advmss": 1300,
             "priority": 5, "table": 0, "scope": 253},
        ]}}))
        .unwrap();
        assert_eq!(
            settings.routes[0],
            Route::new("0.0.0.0/0".parse().unwrap(), None)
        );
        let other = &settings.routes[1];
        assert_eq!(other.dst.to_string(), "10.2.3.4/16");
        assert_eq!((other.mtu, other.advmss, other.priority), (1400, 1300, 5));
        assert_eq!((other.table, other.scope), (Some(0), Some(253)));
    }

    #[test]
    fn releasing_needs_the_directory_only() {
        for (document, expected) in [
            (json!({}), DEFAULT_DATA_DIR),
            (json!({"ipam": {"dataDir": "/x", "ranges": 5}}), "/x"),
            (json!({"IPAM": {"DATADIR": "/y", "subnet": {}}}), "/y"),
            (json!({"ipam": {"dataDir": ""}}), DEFAULT_DATA_DIR),
        ] {
            let found = data_dir(&config(Version::NEWEST, document.clone())).unwrap();
            assert_eq!(found, PathBuf::from(expected), "{document}");
        }
        let wrong = config(Version::NEWEST, json!({"ipam": {"dataDir": 5}}));
        assert!(data_dir(&wrong).is_err());
    }

    #[test]
    fn all_problems_with_their_paths() {
        let paths = |document| {
            let mut paths: Vec<_> = problems("plugins[0]", &document)
                .into_iter()
                .map(|problem| problem.path)
                .collect();
            paths.sort();
            paths
        };
        assert_eq!(
            paths(json!({"name": "n", "type": "bridge", "isGateway": true,
                "ipam": {"type": "host-local", "subnet": "10.0.0.0/24"},
                "args": {"cni": {"labels": []}}, "runtimeConfig": {"mac": "x"}})),
            [""; 0]
        );
        assert_eq!(
            paths(json!({"ipam": {
                "rangeStart": "10.0.0.1",
                "rnages": [],
                "ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.1/24"}], []],
                "routes": [{}, {"dst": "x"}],
            }})),
            [
                "plugins[0].ipam.rangeStart",
                "plugins[0].ipam.ranges[0][1].subnet",
                "plugins[0].ipam.ranges[1]",
                "plugins[0].ipam.rnages",
                "plugins[0].ipam.routes[0].dst",
                "plugins[0].ipam.routes[1].dst",
            ]
        );
        assert_eq!(
            paths(
                json!({"ipam": {"subnet": 5, "routes": 6}, "args": {"cni": {"ips": "x"}},
                "runtimeConfig": {"ips": [1], "ipRanges": [[{"sub": ""}]]}})
            ),
            [
                "plugins[0].args.cni.ips",
                "plugins[0].ipam.routes",
                "plugins[0].ipam.subnet",
                "plugins[0].runtimeConfig.ipRanges[0][0].sub",
                "plugins[0].runtimeConfig.ips[0]",
            ]
        );
        assert_eq!(
            paths(
                json!({"ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/16"}]]}})
            ),
            ["plugins[0].ipam.ranges[1]"]
        );
        let around = json!({"ipam": {"subnet": "10.0.0.0/24"}, "args": "x", "runtimeConfig": 1});
        assert_eq!(
            paths(around),
            ["plugins[0].args", "plugins[0].runtimeConfig"]
        );
    }

    #[test]
    fn the_manual_lists_every_key() {
        assert_documented::<Document>("host-local");
    }
}
