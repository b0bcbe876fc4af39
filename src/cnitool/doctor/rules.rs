//! The packet filter: masquerading, port maps, and who is in their way.

use std::net::IpAddr;

use super::facts::{Facts, Listener};
use super::{Finding, name, packets, restore};
use crate::cnitool::inventory::attachment::{State, View, unmapped};
use crate::netfilter::listing::Purpose;
use crate::netfilter::{Mapping, Protocol};
use crate::shell::shell;

/// What is wrong with the rules of an attachment.
pub fn check(facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
    if matches!(view.state, State::Orphan(_)) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    // What could not be read cannot be missed.
    if facts.survey.rules.doubts.is_empty() {
        findings.extend(masquerade(view));
        findings.extend(ports(view));
    }
    findings.extend(taken(view));
    findings.extend(listeners(facts, view));
    findings.extend(packets::check(facts, view));
    findings
}

fn masquerade(view: &View<'_>) -> Vec<Finding> {
    let missing = view.addresses.iter().filter(|net| {
        let purpose = Purpose::Masquerade(net.addr());
        view.is_masqueraded && !view.rules.iter().any(|rule| rule.purpose == purpose)
    });
    missing
        .map(|net| {
            Finding::error(
                name(view),
                format!("no rule masquerades {}", net.addr()),
                "its packets leave the host with an address that nobody outside can answer",
                restore(view),
            )
        })
        .collect()
}

fn ports(view: &View<'_>) -> Vec<Finding> {
    let Some(memory) = view.memory else {
        return Vec::new();
    };
    unmapped(view, memory)
        .into_iter()
        .map(|(wanted, ip)| {
            Finding::error(
                format!("port {wanted}"),
                format!("no rule leads it to {} ({ip})", name(view)),
                "connections to it are refused",
                restore(view),
            )
        })
        .collect()
}

/// Other containers' rules in front.
fn taken(view: &View<'_>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for port in &view.ports {
        let Some(taker) = &port.taken_by else {
            continue;
        };
        let other = super::short(&taker.container_id);
        let own = name(view);
        let (what, both) = if taker.container_id == view.attachment.container_id {
            (
                format!(
                    "it leads to {own} in network {} and not in network {}",
                    taker.network, view.network
                ),
                "both networks' attachments publish it, and the rule in front gets all packets",
            )
        } else {
            (
                format!("it leads to container {other} and not to {own}"),
                "both publish it, and the rule in front gets all packets",
            )
        };
        findings.push(Finding::error(
            format!("port {}", port.mapping),
            what,
            both,
            "publish another port for one of the two, and restart that one",
        ));
    }
    findings
}

/// Processes of the host on the same port.
fn listeners(facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for port in &view.ports {
        let Mapping {
            protocol,
            host_port,
            ..
        } = port.mapping;
        let found = facts
            .listeners
            .iter()
            .find(|listener| is_hidden(listener, port.mapping, port.to));
        if let Some(listener) = found {
            let name_of = protocol.as_str();
            let flags = if protocol == Protocol::Udp {
                "-lunp"
            } else {
                "-ltnp"
            };
            let find = shell!["ss", flags, "sport", "=", format!(":{host_port}")];
            findings.push(Finding::warning(
                format!("port {}", port.mapping),
                format!(
                    "a process on the host listens on it too ({}), and it leads to {}",
                    std::net::SocketAddr::new(listener.ip, listener.port),
                    name(view)
                ),
                format!(
                    "the process gets nothing that comes to {name_of} port {host_port} from outside"
                ),
                format!("find it with `{find}`, and give one of them another port"),
            ));
        }
    }
    findings
}

/// Whether packets for the listener go to the container instead.
fn is_hidden(listener: &Listener, mapping: Mapping, to: IpAddr) -> bool {
    let host = mapping.host_ip.filter(|ip| !ip.is_unspecified());
    listener.protocol == mapping.protocol
        && listener.port == mapping.host_port
        // What holds a port that it publishes, as podman does, is on every address or on that one.
        && !listener.ip.is_loopback()
        && (listener.ip.is_unspecified() || listener.ip.is_ipv4() == to.is_ipv4())
        && host.is_none_or(|host| listener.ip.is_unspecified() || listener.ip == host)
}
