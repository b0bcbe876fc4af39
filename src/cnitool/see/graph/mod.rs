//! `cnitool graph`: the node's networks as a picture.
//!
//! [`Picture::of`] says what is in it; the forms are pure functions of that, and print the
//! same for the same node. Loopback interfaces are left out.

mod dot;
mod svg;
mod tree;

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde::Serialize;

use super::ps;
use super::show::vlans_in_words;
use super::words::{address, short};
use crate::cnitool::inventory::Survey;
use crate::cnitool::inventory::attachment::{State, View, bridge_name};
use crate::cnitool::table::Line;

/// The forms that there are.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Format {
    /// Lines for a terminal
    Tree,
    /// For graphviz
    Dot,
    /// For machines
    Json,
    /// For a browser; needs no other program
    Svg,
}

/// What is drawn. `graph --format json` prints it as it is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Picture {
    /// The links that default routes lead through.
    uplinks: Vec<Uplink>,
    /// Bridges with what is connected to them; and what is connected to none.
    groups: Vec<Group>,
}

/// A way out of the node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Uplink {
    name: String,
    addresses: Vec<String>,
    /// The default routes' next hops.
    gateways: Vec<String>,
}

/// A bridge and its containers; or the containers of a network that has none.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    /// `null`: no bridge.
    bridge: Option<String>,
    /// Of the bridge, and of its VLAN interfaces, each with the name of its link.
    addresses: Vec<String>,
    networks: Vec<String>,
    /// What is wrong with the bridge.
    fault: Option<String>,
    members: Vec<Member>,
}

/// An attachment.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    network: String,
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
    host_end: Option<String>,
    addresses: Vec<String>,
    /// `8080:80/tcp`.
    ports: Vec<String>,
    /// Those of the bridge port, in words; empty without VLANs.
    vlans: String,
    /// `ok`, `broken`, `orphan`.
    state: &'static str,
    reasons: Vec<String>,
}

impl Member {
    /// What people call it.
    fn label(&self) -> &str {
        match short(&self.container_id) {
            "" => "?",
            id => id,
        }
    }
}

impl Group {
    /// What people call it.
    fn label(&self) -> String {
        match &self.bridge {
            Some(bridge) => bridge.clone(),
            None => "no bridge".to_owned(),
        }
    }
}

impl Picture {
    /// The picture of `views`.
    pub fn of(survey: &Survey, views: &[View<'_>]) -> Self {
        let mut groups: BTreeMap<(bool, String), Group> = BTreeMap::new();
        for view in views.iter().filter(|view| view.attachment.ifname != "lo") {
            let bridge = bridge_of(survey, view);
            let key = match &bridge {
                Some(name) => (false, name.clone()),
                // Each network by itself.
                None => (true, view.network.clone()),
            };
            let group = groups
                .entry(key)
                .or_insert_with(|| Group::new(survey, bridge));
            if !view.network.is_empty() && !group.networks.contains(&view.network) {
                group.networks.push(view.network.clone());
            }
            group.members.push(member(survey, view));
        }
        Self {
            uplinks: uplinks(survey),
            groups: groups.into_values().collect(),
        }
    }

    /// As lines for a terminal.
    pub fn tree(&self) -> Vec<Line> {
        tree::render(self)
    }

    /// As graphviz reads it.
    pub fn dot(&self) -> String {
        dot::render(self)
    }

    /// As a browser shows it.
    pub fn svg(&self) -> String {
        svg::render(self)
    }
}

impl Group {
    fn new(survey: &Survey, bridge: Option<String>) -> Self {
        let link = bridge.as_deref().and_then(|name| survey.host.link(name));
        let fault = match (&bridge, link) {
            (Some(name), None) => Some(format!("{name} is gone")),
            (Some(name), Some(link)) if !link.is_up => Some(format!("{name} is down")),
            _ => None,
        };
        let mut addresses = Vec::new();
        if let Some(bridge) = link {
            let host = &survey.host;
            let global = |index| host.addresses_of(index).filter(|a| a.is_global);
            addresses.extend(global(bridge.index).map(|a| a.net.to_string()));
            let is_vlan = |link: &&crate::net::link::Link| {
                link.kind == "vlan" && link.peer == Some(bridge.index)
            };
            for vlan in host.links.iter().filter(is_vlan) {
                let named = global(vlan.index).map(|a| format!("{} {}", vlan.name, a.net));
                addresses.extend(named);
            }
        }
        Self {
            bridge,
            addresses,
            networks: Vec::new(),
            fault,
            members: Vec::new(),
        }
    }
}

/// The bridge that an attachment is connected to, or should be.
fn bridge_of(survey: &Survey, view: &View<'_>) -> Option<String> {
    if let Some(bridge) = view.bridge {
        return Some(bridge.name.clone());
    }
    view.wanted_bridge.clone().or_else(|| {
        // Of what nobody remembers, today's configuration tells.
        let mut networks = survey.directory.networks.iter();
        let network = networks.find(|n| view.memory.is_none() && n.name == view.network)?;
        bridge_name(survey.services, &network.plugins)
    })
}

fn member(survey: &Survey, view: &View<'_>) -> Member {
    let vlans = view
        .host_end
        .and_then(|end| survey.host.vlans.get(&end.index));
    Member {
        network: view.network.clone(),
        container_id: view.attachment.container_id.clone(),
        ifname: view.attachment.ifname.clone(),
        host_end: view.host_end.map(|end| end.name.clone()),
        addresses: view.addresses.iter().map(address).collect(),
        ports: ps::ports(view),
        vlans: vlans.map(vlans_in_words).unwrap_or_default(),
        state: match view.state {
            State::Ok => "ok",
            State::Broken(_) => "broken",
            State::Orphan(_) => "orphan",
        },
        reasons: view.state.reasons().to_vec(),
    }
}

fn uplinks(survey: &Survey) -> Vec<Uplink> {
    let mut uplinks: Vec<Uplink> = Vec::new();
    for (link, route) in survey.host.default_routes() {
        let gateway = route.gateway.map(|ip| ip.to_string());
        if let Some(known) = uplinks.iter_mut().find(|known| known.name == link.name) {
            known.gateways.extend(gateway);
            continue;
        }
        let addresses = survey.host.addresses_of(link.index);
        let global = addresses.filter(|address| address.is_global);
        uplinks.push(Uplink {
            name: link.name.clone(),
            addresses: global.map(|address| address.net.to_string()).collect(),
            gateways: gateway.into_iter().collect(),
        });
    }
    uplinks
}
