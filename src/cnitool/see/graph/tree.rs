//! The picture as lines.

use super::{Group, Member, Picture, Uplink};
use crate::cnitool::table::{Line, Tone};

/// Draws `picture`.
pub fn render(picture: &Picture) -> Vec<Line> {
    let mut lines = vec![Line::toned("node", Tone::Heading)];
    let branches = picture.uplinks.len() + picture.groups.len();
    let edges = |number: usize| {
        if number + 1 == branches {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        }
    };
    for (number, found) in picture.uplinks.iter().enumerate() {
        lines.push(Line::from(edges(number).0).then(uplink(found)));
    }
    for (number, group) in picture.groups.iter().enumerate() {
        let (branch, trunk) = edges(picture.uplinks.len() + number);
        lines.push(Line::from(branch).then(heading(group)));
        for (number, found) in group.members.iter().enumerate() {
            let is_last = number + 1 == group.members.len();
            let (twig, rest) = if is_last {
                ("└─ ", "   ")
            } else {
                ("├─ ", "│  ")
            };
            lines.push(Line::from(trunk).then(twig).then(member(found)));
            let tone = tone(found.state);
            for reason in &found.reasons {
                let text = Line::toned(format!("{}: {reason}", found.state), tone);
                lines.push(Line::from(format!("{trunk}{rest}   ")).then(text));
            }
        }
    }
    if branches == 0 {
        lines.push("└─ nothing: no default route, no attachments".into());
    }
    lines
}

/// The colour of a state.
fn tone(state: &str) -> Tone {
    match state {
        "ok" => Tone::Plain,
        "orphan" => Tone::Warning,
        _ => Tone::Bad,
    }
}

/// Words with two spaces between them, those that are empty left out.
fn joined(words: impl IntoIterator<Item = (String, Tone)>) -> Line {
    let words = words.into_iter().filter(|(word, _)| !word.is_empty());
    words.enumerate().fold(Line::default(), |line, (at, word)| {
        let gap = if at == 0 { "" } else { "  " };
        line.then(gap).then(Line::toned(word.0, word.1))
    })
}

fn plain(word: impl Into<String>) -> (String, Tone) {
    (word.into(), Tone::Plain)
}

fn uplink(uplink: &Uplink) -> Line {
    let mut words = vec![plain(&uplink.name)];
    words.extend(uplink.addresses.iter().map(plain));
    let gateways = uplink.gateways.iter();
    words.extend(gateways.map(|ip| plain(format!("default via {ip}"))));
    joined(words)
}

fn heading(group: &Group) -> Line {
    let mut words = vec![(group.label(), Tone::Heading)];
    words.extend(group.addresses.iter().map(plain));
    if !group.networks.is_empty() {
        words.push(plain(format!("({})", group.networks.join(", "))));
    }
    let fault = group.fault.iter();
    words.extend(fault.map(|fault| (fault.clone(), Tone::Bad)));
    joined(words)
}

fn member(member: &Member) -> Line {
    let label = match &member.host_end {
        Some(end) => format!("{end} ── {}", member.label()),
        None => format!("╌╌ {}", member.label()),
    };
    let mut words = vec![(label, tone(member.state)), plain(&member.ifname)];
    words.extend(member.addresses.iter().map(plain));
    words.extend(member.ports.iter().map(plain));
    if !member.vlans.is_empty() {
        words.push(plain(format!("VLAN {}", member.vlans)));
    }
    joined(words)
}
