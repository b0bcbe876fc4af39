//! `cnitool show`: one container's way to the outside.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use ipnet::IpNet;
use serde::Serialize;

use super::ps;
use super::words::{address, age, is_meant, port};
use crate::cnitool::inventory::attachment::{State, View};
use crate::cnitool::inventory::{Stack, Survey};
use crate::cnitool::table::{Line, Tone};
use crate::net::bridge_vlan::Vlans;
use crate::net::link::Link;
use crate::net::route::Route;
use crate::netfilter::listing::Purpose;
use crate::shell::{ShellCommand, shell};

/// What `show --json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document<'a> {
    attachments: Vec<Page<'a>>,
    doubts: Vec<&'a String>,
}

/// An attachment as `ps --json` has it, and its way.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page<'a> {
    #[serde(flatten)]
    attachment: ps::Attachment<'a>,
    /// From the inside to the outside.
    hops: Vec<Station>,
}

/// A station of the way, or something that belongs to it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Station {
    /// `interface`, `routes`, `hostEnd`, `bridge`, `firewall`, `masquerade`, `ports`,
    /// `uplink`, `leases`, `result`.
    hop: &'static str,
    /// What is there, a line each, for people.
    lines: Vec<String>,
    /// Each shows the same.
    commands: Vec<String>,
}

/// The attachments of the one container that is meant.
///
/// # Errors
/// When there is none, or there are several.
pub fn choose<'a>(
    views: Vec<View<'a>>,
    word: &str,
    network: Option<&str>,
) -> Result<Vec<View<'a>>> {
    let all: BTreeSet<String> = ids(&views);
    let mut meant = views;
    meant.retain(|view| is_meant(view, word) && network.is_none_or(|name| name == view.network));
    if meant
        .iter()
        .any(|view| view.attachment.container_id == word)
    {
        meant.retain(|view| view.attachment.container_id == word);
    }
    let found = ids(&meant);
    let list = |ids: BTreeSet<String>| ids.into_iter().collect::<Vec<_>>().join(", ");
    match found.len() {
        1 => Ok(meant),
        0 => {
            let known = match all.len() {
                0 => "there are none".to_owned(),
                1..=20 => format!("there are {}", list(all)),
                many => format!("`cnitool ps` lists all {many}"),
            };
            bail!("no attachment of a container {word}: {known}")
        }
        _ => bail!("{word} can be several containers: {}", list(found)),
    }
}

fn ids(views: &[View<'_>]) -> BTreeSet<String> {
    let ids = views
        .iter()
        .map(|view| view.attachment.container_id.clone());
    ids.filter(|id| !id.is_empty()).collect()
}

/// For machines.
pub fn document<'a>(survey: &'a Survey, views: &'a [View<'a>]) -> Document<'a> {
    let page = |view| Page {
        attachment: ps::attachment(view),
        hops: hops(survey, view),
    };
    Document {
        attachments: views.iter().map(page).collect(),
        doubts: survey.all_doubts().collect(),
    }
}

/// For people: a page for each attachment.
pub fn pages(survey: &Survey, views: &[View<'_>]) -> Vec<Line> {
    let mut lines = Vec::new();
    for view in views {
        if !lines.is_empty() {
            lines.push(Line::default());
        }
        lines.extend(page(survey, view));
    }
    lines
}

fn page(survey: &Survey, view: &View<'_>) -> Vec<Line> {
    let ago = match view.added {
        Some(then) => format!(", added {} ago", age(survey.now, then)),
        None => String::new(),
    };
    let title = format!("{}{ago}", name(view));
    let mut lines = vec![Line::toned(title, Tone::Heading)];
    let tone = match view.state {
        State::Ok => Tone::Good,
        State::Broken(_) => Tone::Bad,
        State::Orphan(_) => Tone::Warning,
    };
    lines.push(Line::toned(view.state.word(), tone));
    let reasons = view.state.reasons().iter();
    lines.extend(reasons.map(|reason| Line::from("  ").then(Line::toned(reason, tone))));
    for hop in hops(survey, view) {
        lines.push(Line::default());
        lines.push(Line::toned(heading(hop.hop), Tone::Heading));
        lines.extend(hop.lines.iter().map(|line| format!("  {line}").into()));
        let commands = hop.commands.iter();
        lines.extend(commands.map(|command| format!("  $ {command}").into()));
    }
    lines
}

/// The attachment, as far as it has names.
fn name(view: &View<'_>) -> String {
    let known = |text: &str| if text.is_empty() { "?" } else { text }.to_owned();
    let attachment = &view.attachment;
    format!(
        "container {}, interface {}, network {}",
        known(&attachment.container_id),
        known(&attachment.ifname),
        known(&view.network)
    )
}

fn heading(hop: &str) -> &str {
    match hop {
        "interface" => "interface in the container",
        "routes" => "routes in the container",
        "hostEnd" => "the host's end",
        "firewall" => "may pass the packet filter",
        "masquerade" => "masquerading",
        "ports" => "ports of the host",
        "uplink" => "way out",
        other => other,
    }
}

/// From the inside to the outside; then what is written down.
fn hops(survey: &Survey, view: &View<'_>) -> Vec<Station> {
    let mut hops = Vec::new();
    if let (Some(path), Some(stack)) = (view.netns, view.inside) {
        hops.extend(inside(view, path, stack));
    }
    if let Some(end) = view.host_end {
        hops.push(host_end(survey, view, end));
    }
    if let Some(bridge) = view.bridge {
        let mut lines = vec![link(bridge)];
        lines.extend(addresses(&survey.host, bridge));
        hops.push(Station {
            hop: "bridge",
            lines,
            commands: vec![
                shell!["ip", "-d", "address", "show", "dev", bridge.name].into(),
                shell!["bridge", "link", "show", "master", bridge.name].into(),
            ],
        });
    }
    hops.extend(
        ["firewall", "masquerade", "ports"]
            .iter()
            .filter_map(|hop| rules(view, hop)),
    );
    if view.host_end.is_some() {
        hops.push(uplink(survey));
    }
    hops.extend(records(survey, view));
    hops
}

/// The rules of one of the hops.
fn rules(view: &View<'_>, hop: &'static str) -> Option<Station> {
    let of_hop = view.rules.iter().filter(|rule| match rule.purpose {
        Purpose::Pass(_) => hop == "firewall",
        Purpose::Masquerade(_) => hop == "masquerade",
        Purpose::PortMap(..) => hop == "ports",
        Purpose::Other => false,
    });
    let rules: Vec<_> = of_hop.collect();
    let commands: BTreeSet<_> = rules.iter().map(|rule| rule.command.clone()).collect();
    let mut lines: Vec<String> = Vec::new();
    for held in view.ports.iter().filter(|_| hop == "ports") {
        if let Some(taker) = &held.taken_by {
            let port = port(held.mapping);
            let (id, network) = (&taker.container_id, &taker.network);
            let place = if *id == view.attachment.container_id {
                format!(" in network {network}")
            } else {
                String::new()
            };
            lines.push(format!(
                "{port}: container {id}{place} gets the packets instead"
            ));
        }
    }
    lines.extend(rules.iter().map(|rule| match rule.packets {
        Some(packets) => format!("{} ({packets} packets)", rule.text),
        None => rule.text.clone(),
    }));
    (!rules.is_empty()).then(|| Station {
        hop,
        lines,
        commands: commands.into_iter().map(String::from).collect(),
    })
}

/// The container's interface and routes.
fn inside(view: &View<'_>, path: &str, stack: &Stack) -> Vec<Station> {
    let ip = ShellCommand::ip_in(path);
    let ifname = &view.attachment.ifname;
    let mut lines = match view.link {
        Some(found) => vec![link(found)],
        None => vec![format!("{ifname} is not there")],
    };
    lines.extend(
        view.link
            .into_iter()
            .flat_map(|link| addresses(stack, link)),
    );
    let interface = Station {
        hop: "interface",
        lines,
        commands: vec![
            ip.clone()
                .args(["-d", "address", "show", "dev", ifname])
                .into(),
        ],
    };
    let index = view.link.map(|link| link.index);
    let all = stack.routes.iter();
    let own = all.filter(|(i, route)| Some(*i) == index && !is_link_local(route));
    let routes = Station {
        hop: "routes",
        lines: own.map(|(_, route)| route.to_string()).collect(),
        commands: vec![
            ip.clone().args(["route", "show", "dev", ifname]).into(),
            ip.args(["-6", "route", "show", "dev", ifname]).into(),
        ],
    };
    vec![interface, routes]
}

fn host_end(survey: &Survey, view: &View<'_>, end: &Link) -> Station {
    let mut lines = vec![link(end)];
    if !end.alias.is_empty() {
        lines.push(format!("alias {}", end.alias));
    }
    let mut commands = vec![shell!["ip", "-d", "link", "show", "dev", end.name]];
    if let Some(vlans) = survey.host.vlans.get(&end.index) {
        lines.push(format!("VLANs {}", vlans_in_words(vlans)));
        commands.push(shell!["bridge", "vlan", "show", "dev", end.name]);
    }
    if view.bridge.is_none() {
        lines.extend(addresses(&survey.host, end));
        let routes = survey.host.routes.iter();
        let own = routes.filter(|(index, route)| *index == end.index && !is_link_local(route));
        lines.extend(own.map(|(_, route)| format!("route {route}")));
        commands.push(shell!["ip", "route", "show", "dev", end.name]);
    }
    Station {
        hop: "hostEnd",
        lines,
        commands: commands.into_iter().map(String::from).collect(),
    }
}

/// Where packets to other hosts go from here.
fn uplink(survey: &Survey) -> Station {
    let mut lines: Vec<String> = survey
        .host
        .default_routes()
        .map(|(link, route)| format!("{route} dev {}", link.name))
        .collect();
    if lines.is_empty() {
        lines.push("no default route on the host".to_owned());
    }
    Station {
        hop: "uplink",
        lines,
        commands: vec![
            "ip route show default".to_owned(),
            "ip -6 route show default".to_owned(),
        ],
    }
}

/// What is written down: leases and result.
fn records(survey: &Survey, view: &View<'_>) -> Vec<Station> {
    let mut hops = Vec::new();
    let leases = view.leases.iter();
    let (lines, commands): (Vec<_>, Vec<_>) = leases
        .map(|(pool, lease)| {
            let ago = lease.written.map(|then| age(survey.now, then));
            let ago = ago.map_or_else(String::new, |age| format!(", {age} old"));
            let boot = if lease.is_earlier {
                ", from an earlier boot of the node"
            } else {
                ""
            };
            let file = pool.directory.join(lease.ip.to_string());
            (
                format!("{}{ago}{boot}", lease.ip),
                shell!["cat", file.display()].into(),
            )
        })
        .unzip();
    if !lines.is_empty() {
        let hop = "leases";
        hops.push(Station {
            hop,
            lines,
            commands,
        });
    }
    if let Some(memory) = view.memory {
        let file = memory.file.display();
        hops.push(Station {
            hop: "result",
            lines: vec![format!("{file}")],
            commands: vec![shell!["cat", file].into()],
        });
    }
    hops
}

/// A link in a line.
fn link(link: &Link) -> String {
    let state = match (link.is_up, link.is_running) {
        (false, _) => "down",
        (true, false) => "up, no carrier",
        (true, true) => "up",
    };
    let kind = if link.kind.is_empty() {
        String::new()
    } else {
        format!("{}, ", link.kind)
    };
    let Link { name, mac, mtu, .. } = link;
    format!("{name}: {kind}{state}, {mac}, mtu {mtu}")
}

fn addresses(stack: &Stack, link: &Link) -> Vec<String> {
    let all = stack.addresses_of(link.index).filter(|a| a.is_global);
    let told = all.map(|found| {
        let net: &IpNet = &found.net;
        let fault = if found.is_duplicate {
            " (somebody else has it: duplicate)"
        } else if found.is_tentative {
            " (tentative)"
        } else {
            ""
        };
        format!("{}{fault}", address(net))
    });
    told.collect()
}

fn is_link_local(route: &Route) -> bool {
    match route.dst {
        IpNet::V4(net) => net.addr().is_link_local() || net.addr().is_multicast(),
        IpNet::V6(net) => net.addr().is_unicast_link_local() || net.addr().is_multicast(),
    }
}

/// `1, 100 pvid untagged`: neighbours that are alike as one range.
pub fn vlans_in_words(vlans: &Vlans) -> String {
    let mut runs: Vec<(u16, u16, String)> = Vec::new();
    for (&vlan, membership) in vlans {
        let how = membership.to_string();
        match runs.last_mut() {
            Some((_, last, of)) if *last + 1 == vlan && *of == how => *last = vlan,
            _ => runs.push((vlan, vlan, how)),
        }
    }
    let words = runs.into_iter().map(|(first, last, how)| {
        if first == last {
            format!("{first} {how}")
        } else {
            format!("{first}-{last} {how}")
        }
    });
    words.collect::<Vec<_>>().join(", ")
}
