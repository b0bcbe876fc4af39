//! The configuration of `ptp`: as written, and as meant.

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use crate::cni::config::DnsOverride;
use crate::cni::json::{self, Problem};
use crate::cni::result::Dns;
use crate::cni::skel::Call;
use crate::netfilter::BackendName;
use crate::plugins::layer3::mtu_problem;
use crate::plugins::masquerade::backend_problem;

/// Every key of the reference's ptp v1.9.1 (docs/compatibility.md#9.5).
#[derive(Debug, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    ip_masq: bool,
    ip_masq_backend: String,
    mtu: u32,
    ipam: Option<WireIpam>,
    dns: DnsOverride,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct WireIpam {
    #[serde(rename = "type")]
    plugin: String,
}

/// What the operator wants, with every value in range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `ipam.type`.
    pub ipam: String,
    /// What leaves the network is masqueraded.
    pub masquerade: bool,
    /// The packet filter that was asked for.
    pub backend: Option<BackendName>,
    /// Bytes, for both ends of the veth pair.
    pub mtu: Option<u32>,
    /// Replaces IPAM's DNS.
    pub dns: Option<Dns>,
}

impl Settings {
    /// The settings for ADD, CHECK and STATUS of `call`.
    ///
    /// # Errors
    /// Code 6 for a wrong type, 7 for what is wrong otherwise; each names the key.
    pub fn resolve(call: &Call) -> Result<Self> {
        let wire: Wire = call.config.read_as("failed to load netconf")?;
        json::refuse(&wire.problems(""))?;
        Ok(Self {
            ipam: wire.ipam.unwrap_or_default().plugin,
            masquerade: wire.ip_masq,
            backend: BackendName::parse(&wire.ip_masq_backend),
            mtu: Some(wire.mtu).filter(|mtu| *mtu != 0),
            dns: wire.dns.replacement(),
        })
    }
}

/// Everything wrong with a configuration; `root` is its path in the file.
pub fn validate(root: &str, document: &Value) -> Vec<Problem> {
    json::all_problems(root, document, Wire::problems)
}

impl Wire {
    /// Values that are wrong by themselves.
    fn problems(&self, root: &str) -> Vec<Problem> {
        let lacking = match &self.ipam {
            None => Some("ipam"),
            Some(ipam) => ipam.plugin.is_empty().then_some("ipam.type"),
        };
        let lacking = lacking.map(|key| {
            Problem::new(key, "is missing: both ends of the link need an address")
                .told_as("no plugin name provided")
        });
        let mtu = mtu_problem(self.mtu).map(|message| Problem::new("mtu", message));
        [lacking, mtu, backend_problem(&self.ip_masq_backend)]
            .into_iter()
            .flatten()
            .map(|problem| problem.below(root))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cni::documented::assert_documented;
    use crate::cni::error::ErrorObject;

    fn resolve(mut config: Value) -> Result<Settings> {
        config["name"] = json!("n");
        config["cniVersion"] = json!("1.1.0");
        Settings::resolve(&Call::to_add(&config.to_string(), "").unwrap())
    }

    #[test]
    fn every_key_has_its_meaning() {
        let ipam = json!({"type": "host-local"});
        assert_eq!(
            resolve(json!({"ipam": ipam})).unwrap(),
            Settings {
                ipam: "host-local".into(),
                masquerade: false,
                backend: None,
                mtu: None,
                dns: None,
            }
        );
        assert_eq!(
            resolve(json!({
                "ipam": ipam, "ipMasq": true, "ipMasqBackend": "nftables", "mtu": 1400,
                "dns": {"search": []},
            }))
            .unwrap(),
            Settings {
                ipam: "host-local".into(),
                masquerade: true,
                backend: Some(BackendName::Nftables),
                mtu: Some(1400),
                dns: Some(Dns::default()),
            }
        );
    }

    #[test]
    fn wrong_values_are_named() {
        for (config, code, start) in [
            (json!({}), 7, "ipam: is missing"),
            (json!({"ipam": {}}), 7, "ipam.type: is missing"),
            (json!({"ipam": {"type": "x"}, "mtu": 67}), 7, "mtu: 67"),
            (
                json!({"ipam": {"type": "x"}, "ipMasqBackend": "pf"}),
                7,
                "ipMasqBackend: ",
            ),
            (
                json!({"ipam": {"type": "x"}, "ipMasq": "yes"}),
                6,
                "failed to load netconf: ipMasq: ",
            ),
        ] {
            let object = ErrorObject::from_error(&resolve(config).unwrap_err());
            assert_eq!(object.code, code, "{object}");
            assert!(object.ours().starts_with(start), "{object}");
        }
        let document = json!({"ipMask": true, "mtu": 5});
        let found: Vec<String> = validate("plugins[0]", &document)
            .into_iter()
            .map(|p| p.path)
            .collect();
        assert_eq!(
            found,
            ["plugins[0].ipMask", "plugins[0].ipam", "plugins[0].mtu"]
        );
    }

    #[test]
    fn the_manual_lists_every_key() {
        assert_documented::<Wire>("ptp");
    }
}
