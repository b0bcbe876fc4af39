//! Results of ADD (specification section 5), held in the newest form and converted at
//! the edges: [`CniResult::parse`] reads any version, [`CniResult::to_value`] writes any.
//!
//! Keys we do not know are kept where they stood and written back, so that a chained
//! plugin passes through what a newer one before it has said.

use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::address::{optional_cidr, optional_ip};
use super::error::{Code, coded, detailed};
use super::json::{self, Object};
use super::version::{Shape, Version};

/// A result in its newest form.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CniResult {
    /// In the order that `Ip::interface` counts; 0.1.0 and 0.2.0 cannot tell them.
    pub interfaces: Vec<Interface>,
    /// 0.1.0 and 0.2.0 can tell the first of each family only.
    pub ips: Vec<Ip>,
    /// For the whole container, not for one of its interfaces.
    pub routes: Vec<Route>,
    /// For the runtime to act on: no plugin writes the container's `resolv.conf`.
    pub dns: Dns,
    /// Members we do not know.
    pub extra: Object,
}

/// An interface that the attachment consists of, on the host or in the sandbox.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Interface {
    /// As in its own namespace, so two interfaces of a result may share it.
    pub name: String,
    /// Hardware address as text; empty when there is none.
    pub mac: String,
    /// Bytes; 0 when not told.
    pub mtu: u32,
    /// `CNI_NETNS` for what is in the container, empty for the host.
    pub sandbox: String,
    /// Absolute path of a socket that stands for the interface, such as vhost-user's; empty
    /// when there is none. Since 1.1.0.
    pub socket_path: String,
    /// The platform's name for the PCI device behind it, such as `0000:00:1f.6`; empty when
    /// there is none. Since 1.1.0.
    pub pci_id: String,
    /// Members we do not know.
    pub extra: Object,
}

/// An address of the attachment.
#[derive(Debug, Clone, PartialEq)]
pub struct Ip {
    /// Index into `interfaces`.
    pub interface: Option<usize>,
    /// Host bits are kept.
    pub address: IpNet,
    /// The next hop for traffic that leaves the subnet; `None` when not told.
    pub gateway: Option<IpAddr>,
    /// Members we do not know.
    pub extra: Object,
}

impl Ip {
    /// An address of no interface yet, as IPAM hands it out.
    pub fn new(address: IpNet, gateway: Option<IpAddr>) -> Self {
        Self {
            interface: None,
            address,
            gateway,
            extra: Object::new(),
        }
    }
}

/// A route inside the container.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Destination; a prefix length of 0 is a default route.
    pub dst: IpNet,
    /// Next hop; `None` leaves the choice to the plugin that adds the route.
    pub gw: Option<IpAddr>,
    /// Bytes; 0 when not told, like the next two.
    pub mtu: u32,
    /// The largest TCP segment the peer is told to send.
    pub advmss: u32,
    /// The metric.
    pub priority: u32,
    /// Number of the routing table; `None` is the main one.
    pub table: Option<u32>,
    /// As in rtnetlink(7): 0 universe, 253 link, 254 host.
    pub scope: Option<u8>,
    /// Members we do not know.
    pub extra: Object,
}

impl Route {
    /// A route without any option.
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self {
            dst,
            gw,
            mtu: 0,
            advmss: 0,
            priority: 0,
            table: None,
            scope: None,
            extra: Object::new(),
        }
    }

    /// Whether this is `0.0.0.0/0` or `::/0`.
    pub fn is_default(&self) -> bool {
        self.dst.prefix_len() == 0
    }
}

/// What the container should have in `resolv.conf`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses, in the order in which they are to be asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// What short host names are completed with; empty when not told.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// More of what short names are completed with, in the order to try.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Words for the resolver, such as `ndots:5`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is told.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether two addresses are of one family.
pub fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

// ---- Wire forms. Field order is the order on the wire (docs/compatibility.md#2.1). ----

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's skip_serializing_if passes references"
)]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct WireInterface {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    sandbox: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    socket_path: String,
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pci_id: String,
}

/// An address in the newest and the 0.3.x form, and (as `ip4`) in the oldest.
#[derive(Clone, Copy, Serialize, Deserialize, Default)]
#[serde(default)]
struct WireIp {
    #[serde(skip_serializing_if = "Option::is_none", skip_deserializing)]
    version: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<i64>,
    #[serde(deserialize_with = "optional_cidr")]
    address: Option<IpNet>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_ip"
    )]
    gateway: Option<IpAddr>,
}

#[derive(Clone, Copy, Serialize, Deserialize, Default)]
#[serde(default)]
struct WireRoute {
    #[serde(deserialize_with = "optional_cidr")]
    dst: Option<IpNet>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_ip"
    )]
    gw: Option<IpAddr>,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: u32,
    #[serde(skip_serializing_if = "is_zero")]
    advmss: u32,
    #[serde(skip_serializing_if = "is_zero")]
    priority: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<u8>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct WireFamily {
    #[serde(deserialize_with = "optional_cidr")]
    ip: Option<IpNet>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_ip"
    )]
    gateway: Option<IpAddr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<WireRoute>,
}

/// A wire form and the members beside it.
#[derive(Serialize)]
struct With<T> {
    #[serde(flatten)]
    known: T,
    #[serde(flatten)]
    extra: Object,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireOnePerFamily {
    cni_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip4: Option<WireFamily>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<WireFamily>,
    dns: Dns,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireList {
    cni_version: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<With<WireInterface>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<With<WireIp>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<With<WireRoute>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dns: Option<Dns>,
}

/// A result in the form and key order of one version, ready for the encoder.
#[derive(Debug)]
pub struct Wire(Form);

enum Form {
    OnePerFamily(Box<With<WireOnePerFamily>>),
    List(Box<With<WireList>>),
    /// A map sorts its keys: the form of 1.x.
    Sorted(Value),
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a result")
    }
}

impl Serialize for Wire {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Form::OnePerFamily(form) => form.serialize(serializer),
            Form::List(form) => form.serialize(serializer),
            Form::Sorted(form) => form.serialize(serializer),
        }
    }
}

/// A result without addresses, which `version` cannot express, as an error of `code`.
pub fn no_addresses(code: Code, version: Version) -> anyhow::Error {
    detailed(
        code,
        "cannot convert: no valid IP addresses",
        format!(
            "cniVersion {version} cannot express a result without addresses: set \"cniVersion\" to 0.3.0 or newer, or configure \"ipam\""
        ),
    )
}

impl CniResult {
    /// Reads a result: `prevResult`, a delegate's output, a cached one. Its own
    /// `cniVersion` says how to read it; `default` where it does not.
    ///
    /// # Errors
    /// Code 6 for what is no result, code 1 for a version we do not speak.
    pub fn parse(value: &Value, default: Version) -> Result<Self> {
        let mut object = match value {
            Value::Null => Object::new(),
            Value::Object(object) => object.clone(),
            _ => return Err(coded(Code::Decode, "a result must be a JSON object").into()),
        };
        let version = match json::take(&mut object, "cniVersion") {
            None => default,
            Some(value) => {
                let text: String = json::decode("cniVersion", &value)?;
                if text.is_empty() {
                    default
                } else {
                    Version::exact(&text).with_context(|| {
                        coded(
                            Code::IncompatibleVersion,
                            format!("unsupported CNI result version \"{text}\""),
                        )
                    })?
                }
            }
        };
        let mut result = Self::default();
        if let Some(dns) = json::take(&mut object, "dns") {
            result.dns = json::decode("dns", &dns)?;
        }
        if version.shape() == Shape::OnePerFamily {
            for key in ["ip4", "ip6"] {
                if let Some(family) = json::take(&mut object, key) {
                    result.take_family(key, &family)?;
                }
            }
        } else {
            result.interfaces = elements(&mut object, "interfaces", Interface::from_wire)?;
            result.ips = elements(&mut object, "ips", Ip::from_wire)?;
            result.routes = elements(&mut object, "routes", Route::from_wire)?;
        }
        // What another form calls its own is not "unknown": written back it would collide.
        for key in ["ip4", "ip6", "interfaces", "ips", "routes"] {
            json::take(&mut object, key);
        }
        result.extra = object;
        Ok(result)
    }

    fn take_family(&mut self, key: &str, value: &Value) -> Result<()> {
        let family: WireFamily = json::decode(key, value)?;
        let address = family
            .ip
            .with_context(|| coded(Code::Decode, format!("{key}.ip is missing")))?;
        self.ips.push(Ip::new(address, family.gateway));
        for route in family.routes {
            let dst = route
                .dst
                .with_context(|| coded(Code::Decode, format!("{key}.routes: a dst is missing")))?;
            self.routes.push(Route::new(dst, route.gw));
        }
        Ok(())
    }

    /// The result as `version` writes it.
    ///
    /// # Errors
    /// 0.1.0 and 0.2.0 have no form for a result without any address.
    pub fn to_wire(&self, version: Version) -> Result<Wire> {
        let form = match version.shape() {
            Shape::OnePerFamily => Form::OnePerFamily(Box::new(self.one_per_family(version)?)),
            Shape::List => Form::List(Box::new(self.list(version))),
            Shape::Current => {
                Form::Sorted(serde_json::to_value(self.list(version)).context("encode the result")?)
            }
        };
        Ok(Wire(form))
    }

    /// The result as JSON, for a configuration's `prevResult` or the cache.
    ///
    /// # Errors
    /// As [`Self::to_wire`].
    pub fn to_value(&self, version: Version) -> Result<Value> {
        serde_json::to_value(self.to_wire(version)?).context("encode the result")
    }

    fn one_per_family(&self, version: Version) -> Result<With<WireOnePerFamily>> {
        let family = |v4: bool| {
            let ip = self
                .ips
                .iter()
                .find(|ip| ip.address.addr().is_ipv4() == v4)?;
            let routes = self
                .routes
                .iter()
                .filter(|route| route.dst.addr().is_ipv4() == v4)
                .map(|route| WireRoute {
                    dst: Some(route.dst),
                    gw: route.gw,
                    ..WireRoute::default()
                });
            Some(WireFamily {
                ip: Some(ip.address),
                gateway: ip.gateway,
                routes: routes.collect(),
            })
        };
        let (ip4, ip6) = (family(true), family(false));
        if ip4.is_none() && ip6.is_none() {
            return Err(no_addresses(Code::Internal, version));
        }
        Ok(With {
            known: WireOnePerFamily {
                cni_version: version.as_str(),
                ip4,
                ip6,
                dns: self.dns.clone(),
            },
            extra: self.extra.clone(),
        })
    }

    fn list(&self, version: Version) -> With<WireList> {
        let current = version.shape() == Shape::Current;
        With {
            known: WireList {
                cni_version: version.as_str(),
                interfaces: self.interfaces.iter().map(|i| i.to_wire(current)).collect(),
                ips: self.ips.iter().map(|ip| ip.to_wire(current)).collect(),
                routes: self.routes.iter().map(Route::to_wire).collect(),
                dns: Some(self.dns.clone()).filter(|dns| !(current && dns.is_empty())),
            },
            extra: self.extra.clone(),
        }
    }
}

/// The list `key` of `object`, each element read as `T` and the rest of it.
fn elements<W: Default + for<'de> Deserialize<'de> + Known, T>(
    object: &mut Object,
    key: &str,
    build: fn(W, Object, &str) -> Result<T>,
) -> Result<Vec<T>> {
    let Some(list) = json::take(object, key) else {
        return Ok(Vec::new());
    };
    let list: Vec<Value> = json::decode(key, &list)?;
    list.into_iter()
        .enumerate()
        .map(|(index, value)| {
            let place = format!("{key}[{index}]");
            let known: W = json::decode(&place, &value)?;
            let mut extra = match value {
                Value::Object(object) => object,
                _ => Object::new(),
            };
            for name in W::KEYS {
                json::take(&mut extra, name);
            }
            build(known, extra, &place)
        })
        .collect()
}

/// The keys a wire form takes for itself; what is left is `extra`.
trait Known {
    const KEYS: &'static [&'static str];
}

impl Known for WireInterface {
    const KEYS: &'static [&'static str] = &["name", "mac", "mtu", "sandbox", "socketPath", "pciID"];
}

impl Known for WireIp {
    const KEYS: &'static [&'static str] = &["version", "interface", "address", "gateway"];
}

impl Known for WireRoute {
    const KEYS: &'static [&'static str] =
        &["dst", "gw", "mtu", "advmss", "priority", "table", "scope"];
}

impl Interface {
    #[expect(
        clippy::unnecessary_wraps,
        reason = "the same signature as the builders of its siblings"
    )]
    fn from_wire(wire: WireInterface, extra: Object, _place: &str) -> Result<Self> {
        Ok(Self {
            name: wire.name,
            mac: wire.mac,
            mtu: wire.mtu,
            sandbox: wire.sandbox,
            socket_path: wire.socket_path,
            pci_id: wire.pci_id,
            extra,
        })
    }

    fn to_wire(&self, current: bool) -> With<WireInterface> {
        let newer = |text: &String| if current { text.clone() } else { String::new() };
        With {
            known: WireInterface {
                name: self.name.clone(),
                mac: self.mac.clone(),
                mtu: if current { self.mtu } else { 0 },
                sandbox: self.sandbox.clone(),
                socket_path: newer(&self.socket_path),
                pci_id: newer(&self.pci_id),
            },
            extra: self.extra.clone(),
        }
    }
}

impl Ip {
    fn from_wire(wire: WireIp, extra: Object, place: &str) -> Result<Self> {
        Ok(Self {
            // A negative index names no interface, like one past the end.
            interface: wire.interface.and_then(|index| usize::try_from(index).ok()),
            address: wire
                .address
                .with_context(|| coded(Code::Decode, format!("{place}.address is missing")))?,
            gateway: wire.gateway,
            extra,
        })
    }

    fn to_wire(&self, current: bool) -> With<WireIp> {
        let version = if self.address.addr().is_ipv4() {
            "4"
        } else {
            "6"
        };
        With {
            known: WireIp {
                version: (!current).then_some(version),
                interface: self.interface.and_then(|index| i64::try_from(index).ok()),
                address: Some(self.address),
                gateway: self.gateway,
            },
            extra: self.extra.clone(),
        }
    }
}

impl Route {
    fn from_wire(wire: WireRoute, extra: Object, place: &str) -> Result<Self> {
        Ok(Self {
            dst: wire
                .dst
                .with_context(|| coded(Code::Decode, format!("{place}.dst is missing")))?,
            gw: wire.gw,
            mtu: wire.mtu,
            advmss: wire.advmss,
            priority: wire.priority,
            table: wire.table,
            scope: wire.scope,
            extra,
        })
    }

    fn to_wire(&self) -> With<WireRoute> {
        With {
            known: WireRoute {
                dst: Some(self.dst),
                gw: self.gw,
                mtu: self.mtu,
                advmss: self.advmss,
                priority: self.priority,
                table: self.table,
                scope: self.scope,
            },
            extra: self.extra.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn parse(value: &Value, version: Version) -> CniResult {
        CniResult::parse(value, version).unwrap()
    }

    fn text(result: &CniResult, version: Version) -> String {
        let wire = result.to_wire(version).unwrap();
        String::from_utf8(json::pretty(&wire).unwrap()).unwrap()
    }

    /// The examples of docs/compatibility.md#2.1, byte for byte.
    const V020: &str = r#"{
    "cniVersion": "0.2.0",
    "ip4": {
        "ip": "10.1.0.2/24",
        "gateway": "10.1.0.1",
        "routes": [
            {
                "dst": "0.0.0.0/0",
                "gw": "10.1.0.1"
            }
        ]
    },
    "ip6": {
        "ip": "fd00:1::2/64"
    },
    "dns": {}
}"#;
    const V040: &str = r#"{
    "cniVersion": "0.4.0",
    "interfaces": [
        {
            "name": "eth0",
            "mac": "02:00:00:00:00:01",
            "sandbox": "/run/netns/c1"
        }
    ],
    "ips": [
        {
            "version": "4",
            "interface": 0,
            "address": "10.1.0.2/24",
            "gateway": "10.1.0.1"
        }
    ],
    "routes": [
        {
            "dst": "0.0.0.0/0",
            "gw": "10.1.0.1",
            "mtu": 1400,
            "advmss": 1300,
            "priority": 5,
            "table": 7,
            "scope": 0
        }
    ],
    "dns": {}
}"#;
    const V110: &str = r#"{
    "cniVersion": "1.1.0",
    "interfaces": [
        {
            "mac": "02:00:00:00:00:01",
            "name": "eth0",
            "sandbox": "/run/netns/c1"
        }
    ],
    "ips": [
        {
            "address": "10.1.0.2/24",
            "gateway": "10.1.0.1",
            "interface": 0
        }
    ],
    "routes": [
        {
            "dst": "0.0.0.0/0"
        }
    ]
}"#;

    #[test]
    fn each_form_is_written_as_it_is_read() {
        for (example, version) in [
            (V020, Version::V0_2_0),
            (V040, Version::V0_4_0),
            (V110, Version::V1_1_0),
        ] {
            let value = serde_json::from_str(example).unwrap();
            assert_eq!(text(&parse(&value, Version::NEWEST), version), example);
        }
    }

    #[test]
    fn labels_change_within_a_group() {
        let value = serde_json::from_str(V040).unwrap();
        let result = parse(&value, Version::NEWEST);
        assert_eq!(
            text(&result, Version::V0_3_0),
            V040.replace("0.4.0", "0.3.0")
        );
    }

    #[test]
    fn down_to_one_per_family_drops_what_has_no_place() {
        let value = serde_json::from_str(V040).unwrap();
        let result = parse(&value, Version::NEWEST);
        assert_eq!(
            result.to_value(Version::V0_1_0).unwrap(),
            json!({
                "cniVersion": "0.1.0",
                "ip4": {
                    "ip": "10.1.0.2/24",
                    "gateway": "10.1.0.1",
                    "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}],
                },
                "dns": {},
            })
        );
        let error = CniResult::default().to_wire(Version::V0_2_0).unwrap_err();
        assert!(error.to_string().contains("no valid IP addresses"));
    }

    #[test]
    fn interfaces_lose_newer_fields_below_1_0() {
        let value =
            json!({"interfaces": [{"name": "e", "mtu": 1400, "socketPath": "/s", "pciID": "p"}]});
        let result = parse(&value, Version::V1_1_0);
        assert_eq!(
            result.to_value(Version::V0_3_1).unwrap(),
            json!({"cniVersion": "0.3.1", "interfaces": [{"name": "e"}], "dns": {}})
        );
        let current = result.to_value(Version::V1_0_0).unwrap();
        assert_eq!(current["interfaces"][0]["mtu"], json!(1400));
    }

    #[test]
    fn unknown_members_pass_through() {
        let value = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "e", "vendor": {"x": 1.50}}],
            "ips": [{"address": "10.0.0.2/24", "label": "a"}],
            "routes": [{"dst": "10.0.0.0/8", "src": "10.0.0.2"}],
            "telemetry": [1, 2],
        });
        let result = parse(&value, Version::V0_1_0);
        assert_eq!(result.to_value(Version::V1_1_0).unwrap(), value);
    }

    #[test]
    fn bad_results_name_the_place() {
        for (value, message) in [
            (
                json!({"ips": [{"address": "10.0.0.300/24"}]}),
                "ips[0].address: \"10.0.0.300/24\" is not an address with prefix length",
            ),
            (json!({"ips": [{}]}), "ips[0].address is missing"),
            (
                json!({"routes": [{"gw": "10.0.0.1"}]}),
                "routes[0].dst is missing",
            ),
            (json!({"interfaces": {}}), "interfaces: expected a list"),
            (
                json!({"cniVersion": "3.0.0"}),
                "unsupported CNI result version \"3.0.0\"",
            ),
            (json!([]), "a result must be a JSON object"),
        ] {
            let error = CniResult::parse(&value, Version::NEWEST).unwrap_err();
            assert!(format!("{error:#}").contains(message), "{error:#}");
        }
    }

    fn any_net() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<[u8; 4]>(), 0..=32u8)
                .prop_map(|(ip, len)| IpNet::new(IpAddr::from(ip), len).unwrap()),
            (any::<[u8; 16]>(), 0..=128u8)
                .prop_map(|(ip, len)| IpNet::new(IpAddr::from(ip), len).unwrap()),
        ]
    }

    prop_compose! {
        fn any_extra()(members in prop::collection::btree_map("x[a-z]{0,4}", 0..9i64, 0..2)) -> Object {
            members.into_iter().map(|(key, n)| (key, Value::from(n))).collect()
        }
    }

    prop_compose! {
        fn any_route()(
            dst in any_net(),
            gw in any::<Option<[u8; 4]>>(),
            mtu in 0..9000u32,
            priority in any::<u32>(),
            table in any::<Option<u32>>(),
            scope in any::<Option<u8>>(),
            extra in any_extra(),
        ) -> Route {
            let gw = gw.map(IpAddr::from);
            Route { mtu, priority, table, scope, extra, ..Route::new(dst, gw) }
        }
    }

    prop_compose! {
        fn any_result()(
            interfaces in prop::collection::vec(("[a-z0-9]{1,8}", "[0-9a-f:]{0,17}", "[a-z/]{0,9}", any_extra()), 0..3),
            ips in prop::collection::vec((any_net(), any::<Option<[u8; 16]>>(), prop::option::of(0..3usize), any_extra()), 1..4),
            routes in prop::collection::vec(any_route(), 0..4),
            servers in prop::collection::vec("[0-9.]{1,9}", 0..3),
            extra in any_extra(),
        ) -> CniResult {
            let interface = |(name, mac, sandbox, extra)| Interface {
                name, mac, sandbox, extra, ..Interface::default()
            };
            let ip = |(net, gateway, interface, extra): (IpNet, Option<[u8; 16]>, _, _)| Ip {
                // As it reads back: an address mapped into IPv6 is IPv4.
                gateway: gateway.map(|bytes| IpAddr::from(bytes).to_canonical()),
                interface,
                extra,
                ..Ip::new(net, None)
            };
            CniResult {
                interfaces: interfaces.into_iter().map(interface).collect(),
                ips: ips.into_iter().map(ip).collect(),
                routes,
                dns: Dns { nameservers: servers, ..Dns::default() },
                extra,
            }
        }
    }

    proptest! {
        #[test]
        fn list_forms_round_trip(result in any_result()) {
            for version in Version::ALL {
                let value = result.to_value(version).unwrap();
                let back = CniResult::parse(&value, Version::NEWEST).unwrap();
                if version.shape() == Shape::OnePerFamily {
                    // The form loses things once; from then on it is stable.
                    prop_assert_eq!(back.to_value(version).unwrap(), value);
                } else {
                    prop_assert_eq!(&back, &result);
                }
            }
        }

        #[test]
        fn no_document_panics(text in r#"\{("(ips|ip4|routes|interfaces|dns|cniVersion)":(\[\{"address":"[0-9./]{0,9}"\}\]|"[0-9.]*"|1|null|\{\}),?){0,4}\}"#) {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                for version in Version::ALL {
                    if let Ok(result) = CniResult::parse(&value, version) {
                        drop(result.to_wire(version));
                    }
                }
            }
        }
    }
}
