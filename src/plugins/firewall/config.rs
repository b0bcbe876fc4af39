//! What may pass: as written, and as meant (docs/compatibility.md#9.2).

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use crate::cni::json::{self, Problem};
use crate::cni::skel::Call;
use crate::log;
use crate::netfilter::{BackendName, Ingress};

/// Every key of the reference's firewall v1.9.1.
#[derive(Debug, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    backend: String,
    iptables_admin_chain_name: String,
    firewalld_zone: String,
    ingress_policy: String,
}

/// Who lets the container's packets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// firewalld where it runs, else whatever this host has.
    Auto,
    Firewalld,
    /// Rules of our own.
    Rules(BackendName),
}

/// What the operator wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub backend: Backend,
    /// The chain of the administrator's rules, which decide first.
    pub admin_chain: String,
    /// firewalld's zone for what comes from the container.
    pub zone: String,
    /// Who may send to the container, where that is not everybody.
    pub ingress: Option<Ingress>,
}

/// What DEL and GC want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parting {
    /// firewalld's zone, where nothing says which it was.
    pub zone: String,
    /// Whether the configuration asks for firewalld, and not only for what there is.
    pub wants_firewalld: bool,
}

/// The longest name of a chain that iptables accepts.
const CHAIN_LENGTH: usize = 28;

/// Names of chains that lead to the administrator's, or have a meaning of their own.
const TAKEN: [&str; 12] = [
    "ACCEPT",
    "DROP",
    "RETURN",
    "REJECT",
    "QUEUE",
    "INPUT",
    "OUTPUT",
    "FORWARD",
    "CNI-FORWARD",
    "CNI-ISOLATION-STAGE-1",
    "CNI-ISOLATION-STAGE-2",
    "cni_forward",
];

impl Settings {
    /// The settings for `call`.
    ///
    /// # Errors
    /// Code 6 for a wrong type, 7 for what is wrong otherwise; each names the key.
    pub fn resolve(call: &Call) -> Result<Self> {
        let wire: Wire = call.config.read_as("failed to load netconf")?;
        json::refuse(&wire.problems(""))?;
        // The reference takes any other word for none: a configuration that worked goes on
        // working.
        if let Some(problem) = wire.backend_problem("") {
            log::warn(&format!("{}: {}", problem.path, problem.message));
        }
        Ok(Self {
            backend: wire.backend().unwrap_or(Backend::Auto),
            admin_chain: or(&wire.iptables_admin_chain_name, "CNI-ADMIN"),
            zone: wire.zone(),
            ingress: wire.ingress().unwrap_or_default(),
        })
    }

    /// What counts when the container goes, whatever else is wrong.
    pub fn parting(call: &Call) -> Parting {
        let wire: Wire = call.config.read().unwrap_or_default();
        Parting {
            zone: wire.zone(),
            wants_firewalld: wire.backend() == Some(Backend::Firewalld),
        }
    }
}

/// Everything wrong with a configuration; `root` is its path in the file.
pub fn validate(root: &str, document: &Value) -> Vec<Problem> {
    json::all_problems(root, document, |wire: &Wire, root| {
        let mut problems = wire.problems(root);
        problems.extend(wire.backend_problem(root));
        problems
    })
}

impl Wire {
    fn zone(&self) -> String {
        or(&self.firewalld_zone, "trusted")
    }

    /// `None` for a word that nobody knows.
    fn backend(&self) -> Option<Backend> {
        match self.backend.as_str() {
            "" => Some(Backend::Auto),
            "firewalld" => Some(Backend::Firewalld),
            word => BackendName::parse(word).map(Backend::Rules),
        }
    }

    fn backend_problem(&self, root: &str) -> Option<Problem> {
        self.backend().is_none().then(|| {
            let message = format!(
                "\"{}\" is none of \"iptables\", \"nftables\" and \"firewalld\": taken as not set",
                self.backend
            );
            Problem::new(json::below(root, "backend"), message)
        })
    }

    /// The policy, or what is wrong with it.
    fn ingress(&self) -> Result<Option<Ingress>, String> {
        match self.ingress_policy.as_str() {
            "" | "open" => Ok(None),
            "same-bridge" => Ok(Some(Ingress::SameBridge)),
            "isolated" => Ok(Some(Ingress::Isolated)),
            word => Err(format!(
                "\"{word}\" is none of \"open\", \"same-bridge\" and \"isolated\""
            )),
        }
    }

    /// Values that are refused.
    fn problems(&self, root: &str) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Err(message) = self.ingress() {
            let sentence = format!("unknown ingress policy: {:?}", self.ingress_policy);
            let path = json::below(root, "ingressPolicy");
            problems.push(Problem::new(path, message).told_as(sentence));
        }
        let mut refuse =
            |key, message| problems.push(Problem::new(json::below(root, key), message));
        let chain = self.iptables_admin_chain_name.as_str();
        let is_name = |c: char| c.is_ascii_graphic() && !"\"\\{};#".contains(c);
        if chain.len() > CHAIN_LENGTH
            || chain.starts_with(['-', '!'])
            || !chain.chars().all(is_name)
        {
            let message = format!(
                "{chain:?} cannot be the name of a chain: at most {CHAIN_LENGTH} letters, digits and signs"
            );
            refuse("iptablesAdminChainName", message);
        } else if TAKEN.contains(&chain) {
            let message = format!("{chain} is no chain of an administrator's");
            refuse("iptablesAdminChainName", message);
        }
        // It is an argument over D-Bus: a zero byte ends it there.
        if self.firewalld_zone.contains('\0') {
            refuse("firewalldZone", "must not contain a zero byte".to_owned());
        }
        problems
    }
}

/// `text`, or what holds where there is none.
fn or(text: &str, default: &str) -> String {
    if text.is_empty() { default } else { text }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::documented::assert_documented;
    use serde_json::json;

    fn problems(document: &Value) -> Vec<String> {
        let found = validate("plugins[2]", document).into_iter();
        found
            .map(|problem| format!("{}: {}", problem.path, problem.message))
            .collect()
    }

    #[test]
    fn what_is_right() {
        for document in [
            json!({}),
            json!({"backend": "nftables", "ingressPolicy": "isolated"}),
            json!({"backend": "firewalld", "firewalldZone": "public", "ingressPolicy": "open"}),
            json!({"backend": null, "IptablesAdminChainName": "MINE", "ingressPolicy": ""}),
        ] {
            assert_eq!(problems(&document), [""; 0], "{document}");
        }
    }

    #[test]
    fn what_is_wrong() {
        for (document, start) in [
            (json!({"backend": "ipset"}), "backend: \"ipset\" is none of"),
            (
                json!({"ingressPolicy": "closed"}),
                "ingressPolicy: \"closed\" is none of",
            ),
            (
                json!({"iptablesAdminChainName": "x".repeat(29)}),
                "iptablesAdminChainName: ",
            ),
            (
                json!({"iptablesAdminChainName": "a b"}),
                "iptablesAdminChainName: ",
            ),
            (
                json!({"iptablesAdminChainName": "-x"}),
                "iptablesAdminChainName: ",
            ),
            (
                json!({"iptablesAdminChainName": "CNI-FORWARD"}),
                "iptablesAdminChainName: CNI-FORWARD is no",
            ),
            (json!({"firewalldZone": "a\0b"}), "firewalldZone: "),
            (
                json!({"ingressPolicies": ""}),
                "ingressPolicies: unknown key",
            ),
        ] {
            let found = problems(&document);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(
                found[0].starts_with(&format!("plugins[2].{start}")),
                "{found:?}"
            );
        }
    }

    #[test]
    fn the_manual_lists_every_key() {
        assert_documented::<Wire>("firewall");
    }
}
