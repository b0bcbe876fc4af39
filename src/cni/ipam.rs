//! What the configurations of IPAM plugins have in common.

use serde::Deserialize;
use serde_json::Value;

use super::address::{parse_cidr, parse_ip};
use super::json::{self, Problem};
use super::result::Route;
use super::version::Version;

/// One of `ipam.routes`.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct WrittenRoute {
    dst: String,
    gw: String,
    mtu: u32,
    advmss: u32,
    priority: u32,
    table: Option<u32>,
    scope: Option<u8>,
}

/// The configuration at `root` has no `ipam`.
pub fn no_ipam(root: &str) -> Problem {
    Problem::new(json::below(root, "ipam"), "is missing").told_as("IPAM config missing 'ipam' key")
}

/// The reference's sentence for a second address of one family where results of `version`
/// have one.
pub fn one_per_family(version: Version) -> String {
    format!("CNI version {version} does not support more than 1 address per family")
}

/// The reference's sentence for `text` where an address with a prefix length must stand.
pub fn invalid_cidr(text: &str) -> String {
    format!("invalid CIDR address: {text}")
}

/// The reference's sentence for `text` where an address must stand.
pub fn invalid_ip(text: &str) -> String {
    format!("invalid IP address: {text}")
}

/// What is wrong with the form in which addresses are asked for, by `args.cni.ips` and by
/// capability `ips`.
pub fn requested_addresses(root: &str, document: &Value) -> Vec<Problem> {
    let mut found = Vec::new();
    for keys in [
        &["args", "cni", "ips"] as &[&str],
        &["runtimeConfig", "ips"],
    ] {
        if let Some(ips) = json::member(document, keys) {
            let path = json::below(root, &keys.join("."));
            found.extend(json::problems::<Vec<String>>(&path, &ips));
        }
    }
    found
}

/// The routes that are `written` at `path`; what is wrong with the others goes to
/// `problems`.
pub fn routes(written: &[WrittenRoute], path: &str, problems: &mut Vec<Problem>) -> Vec<Route> {
    let mut routes = Vec::new();
    for (index, route) in written.iter().enumerate() {
        let at =
            |key: &str, message: String| Problem::new(format!("{path}[{index}].{key}"), message);
        if route.dst.is_empty() {
            let message = "is missing: a route needs its destination";
            problems.push(at("dst", message.into()));
            continue;
        }
        let Some(dst) = parse_cidr(&route.dst) else {
            let message = format!(
                "\"{}\" is not an address with prefix length, like 0.0.0.0/0",
                route.dst
            );
            problems.push(at("dst", message).told_as(invalid_cidr(&route.dst)));
            continue;
        };
        let gw = parse_ip(&route.gw);
        if gw.is_none() && !route.gw.is_empty() {
            let message = format!("\"{}\" is not an IP address", route.gw);
            problems.push(at("gw", message).told_as(invalid_ip(&route.gw)));
            continue;
        }
        routes.push(Route {
            mtu: route.mtu,
            advmss: route.advmss,
            priority: route.priority,
            table: route.table,
            scope: route.scope,
            ..Route::new(dst, gw)
        });
    }
    routes
}
