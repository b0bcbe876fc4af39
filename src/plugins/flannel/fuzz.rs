//! What holds for every configuration that `flannel` accepts, and for every file of its daemon.

use anyhow::Result;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::config::Settings;
use super::subnet_env::SubnetEnv;
use crate::cni::config::Document;
use crate::cni::skel::Call;

/// What the delegate gets is a configuration of the same network.
///
/// # Errors
/// When there are no settings.
pub fn settings(call: &Call) -> Result<()> {
    let settings = Settings::resolve(call)?;
    let delegated = settings.delegated(&call.config.network, None);
    assert!(
        delegated
            .get("type")
            .is_some_and(|plugin| plugin != "flannel")
    );
    let raw = serde_json::to_vec(&delegated)?;
    let config = Document::parse(raw);
    assert!(config.is_ok(), "{config:?}");
    Ok(())
}

/// The daemon's file: what is wrong names a variable; what is right gives the delegate a
/// range for each subnet and a route to each network.
pub fn subnet_env(content: &[u8]) {
    let env = match SubnetEnv::parse(&String::from_utf8_lossy(content)) {
        Ok(env) => env,
        Err(what) => return assert!(what.contains("FLANNEL_"), "{what}"),
    };
    assert!(!env.networks.is_empty() && (1..=2).contains(&env.subnets.len()));
    let delegated = Settings::usual().delegated("net1", Some(&env));
    assert_ne!(
        delegated.get("ipMasq"),
        Some(&env.daemon_masquerades.into())
    );
    let nets = |nets: &[IpNet], entry: fn(&IpNet) -> Value| nets.iter().map(entry).collect();
    let ranges: Value = nets(&env.subnets, |net| json!([{ "subnet": net.trunc() }]));
    let routes: Value = nets(&env.networks, |net| json!({ "dst": net.trunc() }));
    let ipam = delegated.get("ipam");
    for (key, expected) in [("ranges", ranges), ("routes", routes)] {
        assert_eq!(ipam.and_then(|ipam| ipam.get(key)), Some(&expected));
    }
}
