//! What the configurations of IPAM plugins have in common.

use serde::Deserialize;
use serde_json::Value;

use super::config::{parse_cidr, parse_ip};
use super::json::{self, Problem};
use super::result::Route;

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
        let mut problem = |key: &str, message: String| {
            problems.push(Problem::new(format!("{path}[{index}].{key}"), message));
        };
        if route.dst.is_empty() {
            problem("dst", "is missing: a route needs its destination".into());
            continue;
        }
        let Some(dst) = parse_cidr(&route.dst) else {
            problem(
                "dst",
                format!(
                    "\"{}\" is not an address with prefix length, like 0.0.0.0/0",
                    route.dst
                ),
            );
            continue;
        };
        let gw = parse_ip(&route.gw);
        if gw.is_none() && !route.gw.is_empty() {
            problem("gw", format!("\"{}\" is not an IP address", route.gw));
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
