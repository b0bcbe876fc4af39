//! What is wrong with plugins that are all right by themselves: their order, and values that
//! exclude each other. ADD can never make of such a list what is meant.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde_json::Value;

use super::inspection::Inspection;
use crate::cni::address::parse_ip;
use crate::cni::json::{self, Object};
use crate::runtime::network::{ipam, plugin_member, plugin_type};

/// Plugins that change what others made: ours, and the reference's.
const CHAINED: [&str; 6] = ["bandwidth", "firewall", "portmap", "sbr", "tuning", "vrf"];

/// Plugins that make the container's interface: ours, and behind them the reference's, which
/// use `ipam` as ours do.
const MAKERS: [&str; 9] = [
    "bridge",
    "ptp",
    "flannel",
    "dummy",
    "host-device",
    "ipvlan",
    "macvlan",
    "tap",
    "vlan",
];

/// Below this MTU the kernel takes IPv6 off a link (RFC 8200).
const SMALLEST_MTU_OF_IPV6: u64 = 1280;

/// Whether the plugin is known to run `ipam` as the specification's examples do. What stands
/// there is other plugins' own business.
pub fn uses_ipam(plugin: &str) -> bool {
    MAKERS.contains(&plugin)
}

/// A plugin of the list, and where it is written.
pub struct Member {
    /// The file.
    pub file: PathBuf,
    /// The path in it.
    pub path: String,
    plugin: String,
    object: Object,
}

impl Member {
    /// The one at `path` of `file`; `None` for what is no plugin.
    pub fn new(file: &Path, path: &str, plugin: &Value) -> Option<Self> {
        let object = plugin.as_object()?.clone();
        Some(Self {
            file: file.into(),
            path: path.into(),
            plugin: plugin_type(&object)?,
            object,
        })
    }

    fn below(&self, key: &str) -> String {
        json::below(&self.path, key)
    }

    /// Whether the runtime is asked for this.
    fn has(&self, capability: &str) -> bool {
        let capabilities = plugin_member(&self.object, "capabilities");
        capabilities.is_some_and(|all| all.get(capability) == Some(&Value::Bool(true)))
    }

    fn ipam_type(&self) -> Option<String> {
        ipam(&self.object).and_then(|ipam| plugin_type(&ipam))
    }

    /// The networks that its addresses are from, where nothing else can give it one.
    fn networks(&self) -> Option<Vec<IpNet>> {
        let ipam = ipam(&self.object).filter(|_| uses_ipam(&self.plugin))?;
        // A literal one may have anything in it.
        if plugin_member(&self.object, "runtimeConfig").is_some() {
            return None;
        }
        let texts: Vec<Value> = match plugin_type(&ipam).as_deref() {
            Some("host-local" | "ipam") if !self.has("ipRanges") => {
                let ranges = list(&ipam, "ranges");
                let ranges = ranges.iter().filter_map(Value::as_array).flatten();
                let subnets =
                    ranges.filter_map(|range| plugin_member(range.as_object()?, "subnet"));
                subnets.chain(plugin_member(&ipam, "subnet")).collect()
            }
            Some("static") if !self.has("ips") && plugin_member(&self.object, "args").is_none() => {
                let addresses = list(&ipam, "addresses");
                let addresses = addresses.iter().filter_map(Value::as_object);
                addresses
                    .filter_map(|one| plugin_member(one, "address"))
                    .collect()
            }
            _ => return None,
        };
        let networks = texts
            .iter()
            .map(|text| text.as_str()?.parse::<IpNet>().ok());
        let networks: Vec<IpNet> = networks.collect::<Option<_>>()?;
        (!networks.is_empty()).then_some(networks)
    }
}

/// The members of a list in a plugin's object.
fn list(object: &Object, key: &str) -> Vec<Value> {
    match plugin_member(object, key) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

impl Inspection<'_> {
    /// Looks at the plugins of a list in their order.
    pub fn together(&mut self, members: &[Member]) {
        let list_file = self.file.clone();
        let mut maker: Option<&Member> = None;
        for (index, member) in members.iter().enumerate() {
            self.file.clone_from(&member.file);
            let Member { plugin, .. } = member;
            if index == 0 && CHAINED.contains(&plugin.as_str()) {
                self.error(
                    &member.below("type"),
                    format!("{plugin} needs what a plugin before it made: it cannot be the first"),
                );
            }
            if uses_ipam(plugin) {
                if let Some(first) = maker {
                    let first = &first.plugin;
                    self.error(
                        &member.below("type"),
                        format!("{plugin} makes the interface that {first} has made before it"),
                    );
                } else {
                    maker = Some(member);
                }
            }
            self.capabilities(member);
            self.idle(member);
            self.routes(member);
            let networks = maker.and_then(Member::networks).unwrap_or_default();
            self.mtu(member, &networks);
        }
        self.file = list_file;
    }

    /// A capability that the plugin knows nothing of: what the runtime passes is lost.
    fn capabilities(&mut self, member: &Member) {
        let ipam = member.ipam_type();
        let ipam = ipam.as_deref();
        let knows = |capability: &str| match (member.plugin.as_str(), capability) {
            ("bridge" | "tuning", "mac")
            | ("portmap", "portMappings")
            | ("bandwidth", "bandwidth") => true,
            // IPAM gets what its caller got.
            ("bridge" | "ptp", "ips") => ipam.is_some(),
            ("bridge" | "ptp", "ipRanges") => ipam.is_some_and(|ipam| ipam != "static"),
            (
                "bandwidth" | "bridge" | "firewall" | "loopback" | "portmap" | "ptp" | "tuning",
                _,
            ) => false,
            // It is not known what others know.
            _ => true,
        };
        for (capability, whose) in [
            ("bandwidth", "bandwidth"),
            ("ipRanges", "the one with ipam host-local"),
            ("ips", "the one with ipam"),
            ("mac", "bridge or tuning"),
            ("portMappings", "portmap"),
        ] {
            if member.has(capability) && !knows(capability) {
                let plugin = &member.plugin;
                let path = json::below(&member.below("capabilities"), capability);
                let message = format!("{plugin} does not know it: it belongs to {whose}");
                self.warning(&path, message);
            }
        }
    }

    /// A plugin that never gets to know what it is to do.
    fn idle(&mut self, member: &Member) {
        let (capability, keys) = match member.plugin.as_str() {
            "portmap" => ("portMappings", &[] as &[&str]),
            "bandwidth" => (
                "bandwidth",
                &["ingressRate", "ingressBurst", "egressRate", "egressBurst"] as &[&str],
            ),
            _ => return,
        };
        let is_told = keys
            .iter()
            .chain(&["runtimeConfig"])
            .any(|key| plugin_member(&member.object, key).is_some());
        if !is_told && !member.has(capability) {
            let message = format!(
                "it never has anything to do: add \"capabilities\": {{\"{capability}\": true}}"
            );
            self.warning(&member.path, message);
        }
    }

    /// An MTU that leaves no room for the addresses.
    fn mtu(&mut self, member: &Member, networks: &[IpNet]) {
        let mtu = plugin_member(&member.object, "mtu").and_then(|mtu| mtu.as_u64());
        let is_small = mtu.is_some_and(|mtu| mtu > 0 && mtu < SMALLEST_MTU_OF_IPV6);
        if is_small && networks.iter().any(|net| net.addr().is_ipv6()) {
            let message = format!(
                "too small for the IPv6 addresses of this network: these need {SMALLEST_MTU_OF_IPV6}"
            );
            self.error(&member.below("mtu"), message);
        }
    }

    /// Routes for which there is no address, and to gateways that cannot be reached.
    fn routes(&mut self, member: &Member) {
        let (Some(networks), Some(ipam)) = (member.networks(), ipam(&member.object)) else {
            return;
        };
        let read = |route: &Value| {
            let text = |key| Some(plugin_member(route.as_object()?, key)?.as_str()?.to_owned());
            let dst: IpNet = text("dst")?.parse().ok()?;
            Some((dst, text("gw").and_then(|gw| parse_ip(&gw))))
        };
        let routes: Vec<Option<(IpNet, Option<IpAddr>)>> =
            list(&ipam, "routes").iter().map(read).collect();
        for (index, route) in routes.iter().enumerate() {
            let Some((dst, gateway)) = route else {
                continue;
            };
            let path = member.below(&format!("ipam.routes[{index}]"));
            let is_ipv4 = dst.addr().is_ipv4();
            let version = if is_ipv4 { "IPv4" } else { "IPv6" };
            if !networks.iter().any(|net| net.addr().is_ipv4() == is_ipv4) {
                let message = format!(
                    "the container gets no {version} address: nothing can be sent over this route"
                );
                self.warning(&json::below(&path, "dst"), message);
                continue;
            }
            let Some(gateway) = gateway else { continue };
            let is_reached = |net: &IpNet| net.contains(gateway);
            let mut others = routes.iter().flatten().map(|(dst, _)| dst);
            if gateway.is_ipv4() != is_ipv4 {
                let message =
                    format!("{gateway} is no {version} address, as that of {dst} must be");
                self.error(&json::below(&path, "gw"), message);
            } else if !networks.iter().any(is_reached)
                && !others.any(|other| other != dst && is_reached(other))
                && !is_link_local(*gateway)
            {
                let message = format!("{gateway} is in no network of the container");
                self.error(&json::below(&path, "gw"), message);
            }
        }
    }
}

/// On every link there are such addresses, whatever IPAM hands out.
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}
