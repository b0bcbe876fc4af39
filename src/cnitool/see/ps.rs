//! `cnitool ps`: the attachments.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::words::{address, age, moment, or_dash, port, short};
use crate::cnitool::inventory::Survey;
use crate::cnitool::inventory::attachment::{State, View};
use crate::cnitool::table::{self, Cell, Line, Tone};

/// What `ps --json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document<'a> {
    attachments: Vec<Attachment<'a>>,
    doubts: Vec<&'a String>,
}

/// An attachment, as `ps --json` has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment<'a> {
    /// Empty where nothing tells it, like the next two.
    network: &'a str,
    #[serde(rename = "containerID")]
    container_id: &'a str,
    ifname: &'a str,
    /// The namespace's path; there may be none at it any more.
    netns: Option<&'a str>,
    /// With prefix lengths; the full one where nothing tells it.
    addresses: &'a [IpNet],
    mac: Option<&'a str>,
    mtu: Option<u32>,
    /// The names of links on the host.
    host_end: Option<&'a str>,
    bridge: Option<&'a str>,
    ports: Vec<MappedPort<'a>>,
    /// RFC 3339.
    added_at: Option<String>,
    /// Whether the result cache has it.
    remembered: bool,
    /// `ok`, `broken`, `orphan`.
    state: &'static str,
    /// What is wrong, or left.
    reasons: &'a [String],
}

/// A port, as `ps --json` has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MappedPort<'a> {
    /// `tcp`, `udp`, `sctp`.
    protocol: &'static str,
    /// `null`: every address of the host.
    #[serde(rename = "hostIP")]
    host_ip: Option<IpAddr>,
    host_port: u16,
    container_port: u16,
    /// In the container.
    address: IpAddr,
    /// `nftables`, `iptables`.
    backend: &'static str,
    /// Those that began a connection, where the rule counts them.
    packets: Option<u64>,
    /// The container that gets the packets instead.
    taken_by: Option<&'a str>,
}

/// For machines.
pub fn document<'a>(survey: &'a Survey, views: &'a [View<'a>]) -> Document<'a> {
    Document {
        attachments: views.iter().map(attachment).collect(),
        doubts: survey.all_doubts().collect(),
    }
}

/// One attachment, for machines.
pub fn attachment<'a>(view: &'a View<'a>) -> Attachment<'a> {
    let ports = view.ports.iter().map(|port| MappedPort {
        protocol: port.mapping.protocol.as_str(),
        host_ip: port.mapping.host_ip.filter(|ip| !ip.is_unspecified()),
        host_port: port.mapping.host_port,
        container_port: port.mapping.container_port,
        address: port.to,
        backend: port.rule.backend.as_str(),
        packets: port.rule.packets,
        taken_by: port.taken_by.as_ref().map(|taker| &*taker.container_id),
    });
    Attachment {
        network: &view.network,
        container_id: &view.attachment.container_id,
        ifname: &view.attachment.ifname,
        netns: netns(view),
        addresses: &view.addresses,
        mac: view.link.map(|link| &*link.mac).filter(|m| !m.is_empty()),
        mtu: view.link.map(|link| link.mtu),
        host_end: view.host_end.map(|link| &*link.name),
        bridge: view.bridge.map(|link| &*link.name),
        ports: ports.collect(),
        added_at: view.added.map(moment),
        remembered: view.memory.is_some(),
        state: view.state.word(),
        reasons: view.state.reasons(),
    }
}

/// The path of the namespace, as far as any is known.
fn netns<'a>(view: &View<'a>) -> Option<&'a str> {
    let remembered = view.memory.map(|m| &*m.entry.parameters.netns);
    view.netns.or(remembered).filter(|path| !path.is_empty())
}

/// For people.
pub fn table(survey: &Survey, views: &[View<'_>], wide: bool) -> Vec<Line> {
    const FIRST: [&str; 8] = [
        "NETWORK",
        "CONTAINER",
        "IF",
        "ADDRESSES",
        "HOST END",
        "PORTS",
        "AGE",
        "STATE",
    ];
    const WIDE: [&str; 10] = [
        "NETWORK",
        "CONTAINER",
        "IF",
        "ADDRESSES",
        "HOST END",
        "PORTS",
        "AGE",
        "MAC",
        "NETNS",
        "STATE",
    ];
    if views.is_empty() {
        return vec!["no attachments".into()];
    }
    let names: &[&str] = if wide { &WIDE } else { &FIRST };
    let mut rows = vec![table::headings(names)];
    for view in views {
        let id = &view.attachment.container_id;
        let mut row: Vec<Cell> = vec![
            or_dash(view.network.clone()).into(),
            or_dash(if wide {
                id.clone()
            } else {
                short(id).to_owned()
            })
            .into(),
            or_dash(view.attachment.ifname.clone()).into(),
            or_dash(joined(view.addresses.iter().map(address))).into(),
            or_dash(host_end(view)).into(),
            or_dash(joined(ports(view))).into(),
            view.added
                .map_or_else(|| "-".into(), |then| age(survey.now, then))
                .into(),
        ];
        if wide {
            let mac = view.link.map(|link| link.mac.clone());
            row.push(or_dash(mac.unwrap_or_default()).into());
            row.push(or_dash(netns(view).unwrap_or_default().to_owned()).into());
        }
        row.push(state(&view.state));
        rows.push(row);
    }
    table::lines(&rows)
}

/// How an attachment is, and why.
pub fn state(state: &State) -> Cell {
    let tone = match state {
        State::Ok => Tone::Good,
        State::Broken(_) => Tone::Bad,
        State::Orphan(_) => Tone::Warning,
    };
    let word = state.word();
    let text = match state.reasons() {
        [] => word.to_owned(),
        reasons => format!("{word}: {}", reasons.join("; ")),
    };
    Cell::toned(text, tone)
}

/// `veth…` or `veth…@bridge`.
pub fn host_end(view: &View<'_>) -> String {
    match (view.host_end, view.bridge) {
        (Some(end), Some(bridge)) => format!("{}@{}", end.name, bridge.name),
        (Some(end), None) => end.name.clone(),
        (None, _) => String::new(),
    }
}

/// The ports, each once although both address families have a rule.
pub fn ports(view: &View<'_>) -> Vec<String> {
    let mut told: Vec<String> = Vec::new();
    for text in view.ports.iter().map(|p| port(p.mapping)) {
        if !told.contains(&text) {
            told.push(text);
        }
    }
    told
}

fn joined(words: impl IntoIterator<Item = String>) -> String {
    words.into_iter().collect::<Vec<_>>().join(",")
}
