//! The picture as lines.

use super::{Group, Member, Picture, Uplink};
use crate::cnitool::table::{Tone, paint};

/// Draws `picture`.
pub fn render(picture: &Picture, is_coloured: bool) -> String {
    let mut lines = vec![paint("node", Tone::Heading, is_coloured)];
    let branches = picture.uplinks.len() + picture.groups.len();
    let edges = |number: usize| {
        if number + 1 == branches {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        }
    };
    for (number, found) in picture.uplinks.iter().enumerate() {
        lines.push(format!("{}{}", edges(number).0, uplink(found)));
    }
    for (number, group) in picture.groups.iter().enumerate() {
        let (branch, trunk) = edges(picture.uplinks.len() + number);
        lines.push(format!("{branch}{}", heading(group, is_coloured)));
        for (number, found) in group.members.iter().enumerate() {
            let is_last = number + 1 == group.members.len();
            let (twig, rest) = if is_last {
                ("└─ ", "   ")
            } else {
                ("├─ ", "│  ")
            };
            lines.push(format!("{trunk}{twig}{}", member(found, is_coloured)));
            let tone = tone(found.state);
            for reason in &found.reasons {
                let text = paint(&format!("{}: {reason}", found.state), tone, is_coloured);
                lines.push(format!("{trunk}{rest}   {text}"));
            }
        }
    }
    if branches == 0 {
        lines.push("└─ nothing: no default route, no attachments".to_owned());
    }
    lines.join("\n") + "\n"
}

/// The colour of a state.
fn tone(state: &str) -> Tone {
    match state {
        "ok" => Tone::Plain,
        "orphan" => Tone::Warning,
        _ => Tone::Bad,
    }
}

fn uplink(uplink: &Uplink) -> String {
    let mut words = vec![uplink.name.clone()];
    words.extend(uplink.addresses.iter().cloned());
    words.extend(uplink.gateways.iter().map(|ip| format!("default via {ip}")));
    words.join("  ")
}

fn heading(group: &Group, is_coloured: bool) -> String {
    let mut words = vec![paint(&group.label(), Tone::Heading, is_coloured)];
    words.extend(group.addresses.iter().cloned());
    if !group.networks.is_empty() {
        words.push(format!("({})", group.networks.join(", ")));
    }
    let fault = group.fault.as_ref();
    words.extend(fault.map(|fault| paint(fault, Tone::Bad, is_coloured)));
    words.join("  ")
}

fn member(member: &Member, is_coloured: bool) -> String {
    let mut words = vec![match &member.host_end {
        Some(end) => format!("{end} ── {}", member.label()),
        None => format!("╌╌ {}", member.label()),
    }];
    if let Some(first) = words.first_mut() {
        *first = paint(first, tone(member.state), is_coloured);
    }
    words.push(member.ifname.clone());
    words.extend(member.addresses.iter().cloned());
    words.extend(member.ports.iter().cloned());
    if !member.vlans.is_empty() {
        words.push(format!("VLAN {}", member.vlans));
    }
    words.retain(|word| !word.is_empty());
    words.join("  ")
}
