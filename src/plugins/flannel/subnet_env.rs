//! The file in which the flannel daemon says what this node's share of the cluster network
//! is (docs/compatibility.md#10.2).

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use ipnet::IpNet;

use crate::cni::address::parse_cidr;
use crate::cni::error::{Code, coded, detailed};
use crate::fsutil::without_byte_order_mark;

/// What the daemon wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct SubnetEnv {
    /// The networks of the whole cluster, those of the variable for IPv4 first.
    pub networks: Vec<IpNet>,
    /// Of which this node hands out addresses, likewise; at most one of each variable.
    pub subnets: Vec<IpNet>,
    /// What fits through the tunnel, in bytes.
    pub mtu: u32,
    /// Whether the daemon masquerades what leaves the cluster network.
    pub daemon_masquerades: bool,
}

impl SubnetEnv {
    /// Reads the file at `path`. The beginning of the message is the reference's: people
    /// look for it in the events of their pods.
    ///
    /// # Errors
    /// Code 11 when it is not there yet, 5 when it cannot be read, 6 naming the variables
    /// that are missing or wrong.
    pub fn load(path: &Path) -> Result<Self> {
        let file = path.display();
        let sentence = |what: String| {
            format!(
                "failed to load flannel 'subnet.env' file: {what}. Check the flannel pod log for this node."
            )
        };
        match std::fs::read(path) {
            Ok(bytes) => Self::parse(&String::from_utf8_lossy(without_byte_order_mark(&bytes)))
                .map_err(|what| {
                    detailed(
                        Code::Decode,
                        sentence(format!("{file} {what}")),
                        "the flannel daemon writes this file; restarting it writes it anew",
                    )
                }),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(detailed(
                Code::TryAgain,
                sentence(format!("open {file}: no such file or directory")),
                "the flannel daemon has not written it: is the daemon running on this node, and has it got a subnet? \
                 The path is that of key \"subnetFile\"",
            )),
            Err(error) => Err(error)
                .with_context(|| coded(Code::Io, sentence(format!("{file} cannot be read")))),
        }
    }

    /// The file's text: a variable a line, without quotes or comments. Unknown ones are
    /// passed over, of several of one name the last counts.
    ///
    /// # Errors
    /// What reads after the file's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let [mut networks, mut networks6, mut subnets, mut subnets6] = [const { Vec::new() }; 4];
        let (mut mtu, mut daemon_masquerades) = (None, None);
        for line in text.lines() {
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            match name {
                "FLANNEL_NETWORK" => networks = cidrs(name, value)?,
                "FLANNEL_IPV6_NETWORK" => networks6 = cidrs(name, value)?,
                "FLANNEL_SUBNET" => subnets = vec![cidr(name, value)?],
                "FLANNEL_IPV6_SUBNET" => subnets6 = vec![cidr(name, value)?],
                "FLANNEL_MTU" => {
                    let number = value
                        .parse()
                        .map_err(|_invalid| refusal(name, "=", value, "a number of bytes"))?;
                    mtu = Some(number);
                }
                "FLANNEL_IPMASQ" => daemon_masquerades = Some(value == "true"),
                _ => {}
            }
        }
        networks.append(&mut networks6);
        subnets.append(&mut subnets6);
        let absent = [
            ("FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK", networks.is_empty()),
            ("FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET", subnets.is_empty()),
            ("FLANNEL_MTU", mtu.is_none()),
            ("FLANNEL_IPMASQ", daemon_masquerades.is_none()),
        ];
        let (Some(mtu), Some(daemon_masquerades), false, false) = (
            mtu,
            daemon_masquerades,
            networks.is_empty(),
            subnets.is_empty(),
        ) else {
            let absent = absent.iter().filter(|(_, is_absent)| *is_absent);
            let names: Vec<&str> = absent.map(|(names, _)| *names).collect();
            return Err(format!("is missing {}", names.join(", ")));
        };
        Ok(Self {
            networks,
            subnets,
            mtu,
            daemon_masquerades,
        })
    }
}

/// A list of networks, separated by commas, each once.
fn cidrs(name: &str, value: &str) -> Result<Vec<IpNet>, String> {
    let mut found = Vec::new();
    for part in value.split(',') {
        let net = cidr(name, part)?;
        if !found.contains(&net) {
            found.push(net);
        }
    }
    Ok(found)
}

/// A network, written as any address in it.
fn cidr(name: &str, value: &str) -> Result<IpNet, String> {
    let net = parse_cidr(value)
        .ok_or_else(|| refusal(name, " with ", value, "an address with prefix length"))?;
    Ok(net.trunc())
}

/// Why `value` cannot be that of `name`, which is to be `what`.
fn refusal(name: &str, relation: &str, value: &str, what: &str) -> String {
    if value.contains(['"', '\'']) {
        return format!(
            "has quotes in {name}={value}: the file is not read by a shell, remove them"
        );
    }
    format!("has {name}{relation}\"{value}\", which is not {what}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cni::error::ErrorObject;

    const BOTH: &str = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\n\
        FLANNEL_IPV6_NETWORK=fd00:42::/56\nFLANNEL_IPV6_SUBNET=fd00:42:0:3::1/64\n\
        FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    fn nets(nets: &[IpNet]) -> Vec<String> {
        nets.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn both_families() {
        let env = SubnetEnv::parse(BOTH).unwrap();
        assert_eq!(nets(&env.networks), ["10.42.0.0/16", "fd00:42::/56"]);
        assert_eq!(nets(&env.subnets), ["10.42.3.0/24", "fd00:42:0:3::/64"]);
        assert_eq!((env.mtu, env.daemon_masquerades), (1450, true));
    }

    #[test]
    fn several_networks_in_order_and_later_lines_win() {
        let text = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_NETWORK=10.9.1.1/16,10.8.0.0/16,10.9.0.0/16\n\
            # a remark\nOTHER=x\nFLANNEL_SUBNET=10.9.1.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=yes";
        let env = SubnetEnv::parse(text).unwrap();
        assert_eq!(nets(&env.networks), ["10.9.0.0/16", "10.8.0.0/16"]);
        assert!(!env.daemon_masquerades);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (without, expected) in [
            ("FLANNEL_MTU", "is missing FLANNEL_MTU"),
            ("FLANNEL_IPMASQ", "is missing FLANNEL_IPMASQ"),
            ("_SUBNET", "is missing FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET"),
            (
                "_NETWORK",
                "is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK",
            ),
        ] {
            let lines = BOTH.lines().filter(|line| !line.contains(without));
            let text = lines.collect::<Vec<_>>().join("\n");
            assert_eq!(SubnetEnv::parse(&text).unwrap_err(), expected);
        }
        for line in [
            "FLANNEL_MTU=big",
            "FLANNEL_MTU",
            "FLANNEL_MTU=-1",
            "FLANNEL_SUBNET=10.42.3.1",
            "FLANNEL_NETWORK=10.42.0.0/16,",
            "FLANNEL_IPV6_NETWORK=",
        ] {
            let wrong = SubnetEnv::parse(&format!("{BOTH}{line}")).unwrap_err();
            let name = line.split('=').next().unwrap();
            assert!(wrong.contains(name), "{line}: {wrong}");
        }
        assert!(SubnetEnv::parse("").unwrap_err().contains("FLANNEL_MTU"));
    }

    #[test]
    fn a_file_that_is_not_there_may_come() {
        let error = SubnetEnv::load(Path::new("/nowhere/subnet.env")).unwrap_err();
        let object = ErrorObject::from_error(&error);
        assert_eq!(
            (object.code, object.msg.as_str()),
            (
                11,
                "failed to load flannel 'subnet.env' file: open /nowhere/subnet.env: no such file or directory. Check the flannel pod log for this node."
            )
        );
        let error = SubnetEnv::load(Path::new("/")).unwrap_err();
        assert_eq!(ErrorObject::from_error(&error).code, 5);
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in "(FLANNEL_(NETWORK|SUBNET|IPV6_SUBNET|MTU|IPMASQ)?=?[0-9a-f:./,]{0,12}\r?\n){0,8}") {
            if let Ok(env) = SubnetEnv::parse(&text) {
                prop_assert!(!env.networks.is_empty() && (1..=2).contains(&env.subnets.len()));
                prop_assert!(env.subnets.iter().all(|net| *net == net.trunc()));
            }
        }
    }
}
