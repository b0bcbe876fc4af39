//! `cnitool ports`: where the host's ports lead.

use std::net::IpAddr;

use serde::Serialize;

use super::words::{or_dash, short};
use crate::cnitool::inventory::Survey;
use crate::cnitool::inventory::attachment::{self, State, View};
use crate::cnitool::table::{self, Cell, Line, Tone};
use crate::netfilter::Mapping;

/// What `ports --json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document<'a> {
    ports: &'a [MappedPort<'a>],
    doubts: Vec<&'a String>,
}

/// A rule that leads a port into a container: one for each address family.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MappedPort<'a> {
    protocol: &'static str,
    /// `null`: every address of the host.
    #[serde(rename = "hostIP")]
    host_ip: Option<IpAddr>,
    host_port: u16,
    network: &'a str,
    #[serde(rename = "containerID")]
    container_id: &'a str,
    /// In the container, like the port.
    address: IpAddr,
    container_port: u16,
    /// `nftables`, `iptables`.
    backend: &'static str,
    /// Those that the rule has met, one for each connection; `null` where it does not count.
    packets: Option<u64>,
    /// Whether another container has the port too.
    conflict: bool,
    /// The container that gets the packets instead.
    taken_by: Option<&'a str>,
    /// `ok`, `broken`, `orphan`: the container's.
    state: &'static str,
    #[serde(skip)]
    mapping: Mapping,
    #[serde(skip)]
    is_orphan: bool,
}

/// The ports of `views`, by their number.
pub fn list<'a>(views: &'a [View<'a>]) -> Vec<MappedPort<'a>> {
    let mut ports: Vec<MappedPort<'a>> = Vec::new();
    for view in views {
        ports.extend(view.ports.iter().map(|port| MappedPort {
            protocol: port.mapping.protocol.as_str(),
            host_ip: port.mapping.host_ip.filter(|ip| !ip.is_unspecified()),
            host_port: port.mapping.host_port,
            network: &view.network,
            container_id: &view.attachment.container_id,
            address: port.to,
            container_port: port.mapping.container_port,
            backend: port.rule.backend.as_str(),
            packets: port.rule.packets,
            conflict: attachment::rivals(views, view, port).next().is_some(),
            taken_by: port.taken_by.as_ref().map(|taker| &*taker.container_id),
            state: view.state.word(),
            mapping: port.mapping,
            is_orphan: matches!(view.state, State::Orphan(_)),
        }));
    }
    // Who gets the packets comes first.
    ports.sort_by_key(|port| {
        let MappedPort { mapping, .. } = port;
        let is_last = port.taken_by.is_some();
        (
            mapping.host_port,
            mapping.protocol,
            port.address.is_ipv6(),
            is_last,
        )
    });
    ports
}

/// For machines.
pub fn document<'a>(survey: &'a Survey, ports: &'a [MappedPort<'a>]) -> Document<'a> {
    Document {
        ports,
        doubts: survey.all_doubts().collect(),
    }
}

/// For people.
pub fn table(ports: &[MappedPort<'_>]) -> Vec<Line> {
    if ports.is_empty() {
        return vec!["no mapped ports".into()];
    }
    let names = [
        "PORT",
        "CONTAINER",
        "NETWORK",
        "TO",
        "BACKEND",
        "PACKETS",
        "STATE",
    ];
    let mut rows = vec![table::headings(&names)];
    for port in ports {
        let to = std::net::SocketAddr::new(port.address, port.container_port);
        let packets = port.packets.map(|packets| packets.to_string());
        rows.push(vec![
            port.mapping.to_string().into(),
            or_dash(short(port.container_id).to_owned()).into(),
            or_dash(port.network.to_owned()).into(),
            to.to_string().into(),
            port.backend.into(),
            or_dash(packets.unwrap_or_default()).into(),
            state(port),
        ]);
    }
    table::lines(&rows)
}

fn state(port: &MappedPort<'_>) -> Cell {
    match (port.taken_by, port.conflict) {
        (Some(id), _) => {
            let text = format!("conflict: container {} gets the packets", short(id));
            Cell::toned(text, Tone::Bad)
        }
        _ if port.is_orphan => Cell::toned("orphan: its container is gone", Tone::Warning),
        (None, true) => Cell::toned("conflict: gets the packets", Tone::Bad),
        (None, false) => Cell::toned("ok", Tone::Good),
    }
}
