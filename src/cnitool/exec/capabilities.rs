//! What `cnitool exec` can wish for by an option of its own, as the capability arguments
//! that plugins know (specification, "CONVENTIONS.md", "Dynamic Plugin specific Fields").

use std::net::IpAddr;
use std::str::FromStr;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::cni::address::{parse_cidr, parse_ip};
use crate::cni::error::{Code, detailed};
use crate::cni::json::Object;
use crate::net::mac::Mac;
use crate::netfilter::Protocol;
use crate::runtime::network::Network;

/// Wishes for one attachment.
#[derive(Args, Debug, Default)]
pub struct Wishes {
    /// An address to ask for (capability ips); may be repeated
    #[arg(long = "ip", value_name = "ADDRESS[/PREFIX]", value_parser = parse_address)]
    addresses: Vec<String>,
    /// The hardware address to ask for (capability mac)
    #[arg(long, value_parser = parse_mac)]
    mac: Option<String>,
    /// A port of this host that leads to one of the command (capability portMappings); may
    /// be repeated
    #[arg(long = "port", value_name = "[IP:]HOST:CONTAINER[/PROTOCOL]")]
    ports: Vec<Port>,
}

/// The text of an address, with or without the length of its prefix.
fn parse_address(text: &str) -> Result<String, String> {
    let is_one = parse_ip(text).is_some() || parse_cidr(text).is_some();
    is_one
        .then(|| text.to_owned())
        .ok_or_else(|| "expected an address, such as 10.1.0.5 or 10.1.0.5/24".to_owned())
}

fn parse_mac(text: &str) -> Result<String, String> {
    Mac::parse(text)
        .map(|mac| mac.to_string())
        .ok_or_else(|| "expected a hardware address, such as 02:00:00:00:00:01".to_owned())
}

/// One port mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Port {
    host_ip: Option<IpAddr>,
    host: u16,
    container: u16,
    protocol: Protocol,
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).ok_or_else(|| {
            "expected HOST:CONTAINER, such as 8080:80, 8080:80/udp, 127.0.0.1:8080:80 or \
             [::1]:8080:80"
                .to_owned()
        })
    }
}

impl Port {
    fn parse(text: &str) -> Option<Self> {
        let (text, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((text, "tcp")) => (text, Protocol::Tcp),
            Some((text, "udp")) => (text, Protocol::Udp),
            Some((text, "sctp")) => (text, Protocol::Sctp),
            Some(_) => return None,
        };
        let (rest, container) = text.rsplit_once(':')?;
        let (host_ip, host) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((ip, host)) => (Some(parse_host_ip(ip)?), host),
        };
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
        Some(Self {
            host_ip,
            host: number(host)?,
            container: number(container)?,
            protocol,
        })
    }

    fn to_value(&self) -> Value {
        let mut mapping = json!({
            "hostPort": self.host,
            "containerPort": self.container,
            "protocol": self.protocol.as_str(),
        });
        if let (Some(ip), Value::Object(mapping)) = (self.host_ip, &mut mapping) {
            mapping.insert("hostIP".into(), ip.to_string().into());
        }
        mapping
    }
}

/// An IPv6 address stands in brackets.
fn parse_host_ip(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        None => text.parse().ok().filter(IpAddr::is_ipv4),
        Some(rest) => rest.strip_suffix(']')?.parse().ok().filter(IpAddr::is_ipv6),
    }
}

impl Wishes {
    /// Those expressed: option, capability, value.
    fn expressed(&self) -> Vec<(&'static str, &'static str, Value)> {
        let mut all = Vec::new();
        if !self.addresses.is_empty() {
            all.push(("--ip", "ips", json!(self.addresses)));
        }
        if let Some(mac) = &self.mac {
            all.push(("--mac", "mac", json!(mac)));
        }
        if !self.ports.is_empty() {
            let mappings: Vec<Value> = self.ports.iter().map(Port::to_value).collect();
            all.push(("--port", "portMappings", mappings.into()));
        }
        all
    }

    /// The capability arguments that were `given` (`--cap`), and these.
    ///
    /// # Errors
    /// Code 4 for one that is among both.
    pub fn join(&self, mut given: Object) -> Result<Object> {
        for (option, capability, value) in self.expressed() {
            if given.insert(capability.into(), value).is_some() {
                return Err(detailed(
                    Code::Environment,
                    format!("capability \"{capability}\" is given twice"),
                    format!("use either {option} or --cap (CAP_ARGS)"),
                ));
            }
        }
        Ok(given)
    }

    /// A wish that no plugin asks for would silently come to nothing.
    ///
    /// # Errors
    /// Code 7 naming the network and the capability.
    pub fn refuse_unheard(&self, network: &Network) -> Result<()> {
        for (option, capability, _) in self.expressed() {
            let heard = |asked: &Vec<String>| asked.iter().any(|asked| asked == capability);
            if !network.plugins.iter().any(|p| heard(&p.capabilities)) {
                return Err(detailed(
                    Code::Config,
                    format!(
                        "no plugin of network \"{}\" has the capability \"{capability}\", which {option} needs",
                        network.name
                    ),
                    format!(
                        "add \"capabilities\": {{\"{capability}\": true}} in {} to the plugin that knows it",
                        network.file.display()
                    ),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn ports() {
        for (text, expected) in [
            (
                "8080:80",
                json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}),
            ),
            (
                "53:5353/udp",
                json!({"hostPort": 53, "containerPort": 5353, "protocol": "udp"}),
            ),
            (
                "127.0.0.1:1:2/sctp",
                json!({"hostIP": "127.0.0.1", "hostPort": 1, "containerPort": 2, "protocol": "sctp"}),
            ),
            (
                "[::1]:1:2",
                json!({"hostIP": "::1", "hostPort": 1, "containerPort": 2, "protocol": "tcp"}),
            ),
        ] {
            assert_eq!(text.parse::<Port>().unwrap().to_value(), expected, "{text}");
        }
        for text in [
            "",
            "80",
            ":80",
            "80:",
            "0:1",
            "1:0",
            "65536:1",
            "1:2/icmp",
            "1:2/",
            "x:1:2",
            "::1:1:2",
            "[127.0.0.1]:1:2",
            "1:2:3:4",
        ] {
            assert!(text.parse::<Port>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_addresses() {
        for text in ["10.0.0.1", "10.0.0.1/8", "fd00::1", "fd00::1/64"] {
            assert_eq!(parse_address(text).unwrap(), text);
        }
        assert!(parse_address("10.0.0").is_err() && parse_address("eth0").is_err());
        assert!(parse_mac("02:00:00:00:00:01").is_ok() && parse_mac("2").is_err());
    }

    #[test]
    fn a_wish_is_given_once_and_heard_by_somebody() {
        let wishes = Wishes {
            addresses: vec!["10.0.0.1".into()],
            ..Wishes::default()
        };
        let given = |text: &str| serde_json::from_str::<Object>(text).unwrap();
        let joined = wishes.join(given(r#"{"x": 1}"#)).unwrap();
        assert_eq!(Value::from(joined), json!({"x": 1, "ips": ["10.0.0.1"]}));
        assert!(wishes.join(given(r#"{"ips": []}"#)).is_err());

        let network = |capabilities: &str| {
            let text = format!(
                r#"{{"name": "n", "cniVersion": "1.1.0", "plugins": [{{"type": "a", "capabilities": {capabilities}}}]}}"#
            );
            Network::parse_list(Path::new("/n"), text.into_bytes()).unwrap()
        };
        assert!(wishes.refuse_unheard(&network(r#"{"ips": true}"#)).is_ok());
        let error = wishes
            .refuse_unheard(&network(r#"{"mac": true}"#))
            .unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("\"ips\"") && text.contains("network \"n\"") && text.contains("--ip")
        );
    }
}
