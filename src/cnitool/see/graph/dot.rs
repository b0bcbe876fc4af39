//! The picture for graphviz.

use super::Picture;
use crate::text;

/// Draws `picture`.
pub fn render(picture: &Picture) -> String {
    let mut lines = vec![
        "graph node {".to_owned(),
        "  rankdir=LR; node [shape=box, style=rounded, fontname=\"sans-serif\"]; edge [fontname=\"sans-serif\", fontsize=10];".to_owned(),
    ];
    for uplink in &picture.uplinks {
        let mut label = vec![uplink.name.clone()];
        label.extend(uplink.addresses.iter().cloned());
        label.extend(uplink.gateways.iter().map(|ip| format!("via {ip}")));
        lines.push(format!(
            "  {} [label={}];",
            id("uplink", &uplink.name),
            string(&label)
        ));
    }
    for (number, group) in picture.groups.iter().enumerate() {
        let own = id("group", &number.to_string());
        let mut label = vec![group.label()];
        label.extend(group.addresses.iter().cloned());
        label.extend(group.networks.iter().map(|name| format!("network {name}")));
        label.extend(group.fault.clone());
        let colour = if group.fault.is_some() {
            ", color=red"
        } else {
            ""
        };
        lines.push(format!("  {own} [label={}{colour}];", string(&label)));
        for uplink in &picture.uplinks {
            lines.push(format!("  {} -- {own};", id("uplink", &uplink.name)));
        }
        for (position, member) in group.members.iter().enumerate() {
            let name = id("member", &format!("{number}.{position}"));
            let mut label = vec![member.label().to_owned(), member.ifname.clone()];
            label.extend(member.addresses.iter().cloned());
            label.extend(member.ports.iter().cloned());
            if !member.vlans.is_empty() {
                label.push(format!("VLAN {}", member.vlans));
            }
            label.extend(member.reasons.iter().cloned());
            label.retain(|line| !line.is_empty());
            let colour = match member.state {
                "ok" => "",
                "orphan" => ", color=orange, style=\"rounded,dashed\"",
                _ => ", color=red",
            };
            lines.push(format!("  {name} [label={}{colour}];", string(&label)));
            let end = member.host_end.iter().cloned().collect::<Vec<_>>();
            lines.push(format!(
                "  {own} -- {name} [label={}{colour}];",
                string(&end)
            ));
        }
    }
    lines.push("}\n".to_owned());
    lines.join("\n")
}

/// A name that nothing else has.
fn id(kind: &str, name: &str) -> String {
    string(&[format!("{kind} {name}")])
}

/// Lines as a string of the language. A backslash that stands for itself is doubled: labels
/// know other escapes than the line breaks that we put.
fn string(lines: &[String]) -> String {
    let escaped = lines.iter().map(|line| {
        let line = text::escape(line);
        line.replace('\\', "\\\\").replace('"', "\\\"")
    });
    format!("\"{}\"", escaped.collect::<Vec<_>>().join("\\n"))
}
