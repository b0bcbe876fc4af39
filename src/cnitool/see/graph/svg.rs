//! The picture for a browser: the ways out on the left, then the bridges, each with a bus
//! along which its containers are lined up in rows. Colours follow the browser's wish for
//! light or dark; tooltips tell what is cut.

use super::{Group, Member, Picture, Uplink};
use crate::text::escape as visible;

/// Lengths in pixels.
const MARGIN: usize = 24;
const BOX: usize = 210;
const GAP: usize = 48;
const CARD: usize = 232;
const CARD_GAP: usize = 16;
/// From the bus down to its cards: room for the names of the host's ends.
const DROP: usize = 24;
const LINE: usize = 17;
const PADDING: usize = 9;
/// Where the columns begin.
const BRIDGES: usize = MARGIN + BOX + GAP;
const CARDS: usize = BRIDGES + BOX + GAP;
/// What fits into a box and into a card, in characters.
const BOX_TEXT: usize = 27;
const CARD_TEXT: usize = 30;

/// Light and dark.
const STYLE: &str = "\
:root{--ground:#fff;--ink:#1b1f24;--dim:#5b6570;--card:#f5f7fa;--line:#8b96a3;--bridge:#e3edfb;--out:#e6f4ea;--bad:#c8102e;--badground:#fdecee;--left:#9a5b00;--leftground:#fff4df}
@media(prefers-color-scheme:dark){:root{--ground:#14171b;--ink:#e8ecf0;--dim:#9aa5b1;--card:#20252b;--line:#66717d;--bridge:#1c2f4a;--out:#18351f;--bad:#ff6b7d;--badground:#3a1a20;--left:#f0b050;--leftground:#332613}}
svg{background:var(--ground);font:13px ui-sans-serif,system-ui,sans-serif;fill:var(--ink)}
rect{stroke:var(--line);fill:var(--card)}
path{stroke:var(--line);fill:none;stroke-width:1.5}
.bridge rect{fill:var(--bridge)}.uplink rect{fill:var(--out)}
.title{font-weight:600}.dim,.end{fill:var(--dim)}.end{font-size:11px}
.broken rect{stroke:var(--bad);stroke-width:2;fill:var(--badground)}.broken path{stroke:var(--bad);stroke-width:2}.broken .why,.broken .title{fill:var(--bad)}
.orphan rect{stroke:var(--left);stroke-dasharray:5 4;fill:var(--leftground)}.orphan path{stroke:var(--left);stroke-dasharray:5 4}.orphan .why,.orphan .title{fill:var(--left)}";

/// Draws `picture`.
pub fn render(picture: &Picture) -> String {
    let mut body = String::new();
    let mut bottom = MARGIN;
    for uplink in &picture.uplinks {
        let lines = uplink_lines(uplink);
        let class = "uplink";
        body.push_str(&plate(class, (MARGIN, bottom), BOX, BOX_TEXT, &lines));
        bottom += height(lines.len()) + CARD_GAP;
    }
    let mut y = MARGIN;
    let mut width = CARDS;
    let mut entries = Vec::new();
    for group in &picture.groups {
        entries.push(y + height(1) / 2);
        let columns = columns(group.members.len());
        width = width.max(CARDS + columns * (CARD + CARD_GAP));
        let (drawn, lower) = draw_group(group, columns, y);
        body.push_str(&drawn);
        y = lower + GAP / 2;
    }
    let height = y.max(bottom) + MARGIN;
    let head = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\">\n<title>container networks of this node</title>\n<style>\n{STYLE}\n</style>\n"
    );
    let ways = if picture.uplinks.is_empty() {
        String::new()
    } else {
        connect(&entries)
    };
    format!("{head}{ways}{body}</svg>\n")
}

/// How many cards stand in a row: few rows for few, and no row wider than a large screen.
fn columns(members: usize) -> usize {
    match members {
        0..=3 => 1,
        4..=8 => 2,
        9..=21 => 3,
        22..=60 => 4,
        _ => 6,
    }
}

/// The height of a box with so many lines.
fn height(lines: usize) -> usize {
    lines * LINE + 2 * PADDING
}

/// The way from the first uplink to each bridge, whose middles are at `entries`.
fn connect(entries: &[usize]) -> String {
    let trunk = MARGIN + BOX + GAP / 2;
    let start = MARGIN + height(1) / 2;
    let Some(last) = entries.last() else {
        return String::new();
    };
    let branches = entries.iter();
    let branches: Vec<String> = branches
        .map(|entry| format!("M{trunk} {entry}H{BRIDGES}"))
        .collect();
    let branches = branches.concat();
    let path = format!("M{} {start}H{trunk}V{last}{branches}", MARGIN + BOX);
    format!("<path d=\"{path}\"/>\n")
}

/// A group with its upper edge at `y`, and where its lower edge is.
fn draw_group(group: &Group, columns: usize, y: usize) -> (String, usize) {
    let lines = group_lines(group);
    let class = if group.fault.is_some() {
        "bridge broken"
    } else {
        "bridge"
    };
    let mut body = plate(class, (BRIDGES, y), BOX, BOX_TEXT, &lines);
    let mut lower = y + height(lines.len());
    let trunk = CARDS - GAP / 2;
    let mut bus = y + height(1) / 2;
    let mut path = vec![format!("M{} {bus}H{trunk}", BRIDGES + BOX)];
    for row in group.members.chunks(columns) {
        let end = CARDS + (row.len() - 1) * (CARD + CARD_GAP) + CARD / 2;
        path.push(format!("V{bus}H{end}M{trunk} {bus}"));
        let mut tallest = 0;
        for (column, member) in row.iter().enumerate() {
            let x = CARDS + column * (CARD + CARD_GAP);
            body.push_str(&card(member, x, bus));
            tallest = tallest.max(height(member_lines(member).len()));
        }
        lower = lower.max(bus + DROP + tallest);
        bus += DROP + tallest + CARD_GAP;
    }
    let path = format!("<path d=\"{}\"/>\n", path.concat());
    // Below the cards' own lines.
    (path + &body, lower)
}

/// A container below the bus at `bus`, with the line that leads to it.
fn card(member: &Member, x: usize, bus: usize) -> String {
    let (middle, top) = (x + CARD / 2, bus + DROP);
    let end = member.host_end.as_deref().unwrap_or("no link");
    let label = format!(
        "<text class=\"end\" x=\"{}\" y=\"{}\">{}</text>",
        middle + 6,
        top - 7,
        escape(end)
    );
    let lines = member_lines(member);
    let plate = plate("card", (x, top), CARD, CARD_TEXT, &lines);
    format!(
        "<g class=\"{}\"><path d=\"M{middle} {bus}V{top}\"/>{label}\n{plate}</g>\n",
        member.state
    )
}

/// A line of text in a box, and the class of its style.
type Text = (&'static str, String);

fn uplink_lines(uplink: &Uplink) -> Vec<Text> {
    let mut lines = vec![("title", uplink.name.clone())];
    lines.extend(uplink.addresses.iter().map(|net| ("dim", net.clone())));
    lines.extend(
        uplink
            .gateways
            .iter()
            .map(|ip| ("dim", format!("default via {ip}"))),
    );
    lines
}

fn group_lines(group: &Group) -> Vec<Text> {
    let mut lines = vec![("title", group.label())];
    lines.extend(group.fault.iter().map(|fault| ("why", fault.clone())));
    lines.extend(group.addresses.iter().map(|net| ("dim", net.clone())));
    lines.extend(
        group
            .networks
            .iter()
            .map(|name| ("dim", format!("network {name}"))),
    );
    lines
}

fn member_lines(member: &Member) -> Vec<Text> {
    let mut lines = vec![("title", member.label().to_owned())];
    let mut addresses = member.addresses.iter();
    let first = addresses.next().map_or("", |net| net);
    lines.push((
        "dim",
        format!("{} {first}", member.ifname).trim().to_owned(),
    ));
    lines.extend(addresses.map(|net| ("dim", net.clone())));
    match member.ports.as_slice() {
        [] => {}
        [one] => lines.push(("port", one.clone())),
        [one, two] => lines.push(("port", format!("{one}  {two}"))),
        [one, rest @ ..] => lines.push(("port", format!("{one}  and {} more", rest.len()))),
    }
    if !member.vlans.is_empty() {
        lines.push(("dim", format!("VLAN {}", member.vlans)));
    }
    match member.reasons.as_slice() {
        [] => {}
        [one] => lines.push(("why", one.clone())),
        [one, rest @ ..] => {
            lines.push(("why", one.clone()));
            lines.push(("why", format!("and {} more", rest.len())));
        }
    }
    lines
}

/// A box with lines of text, cut to `fits` characters; the whole of it is the tooltip.
fn plate(class: &str, (x, y): (usize, usize), width: usize, fits: usize, lines: &[Text]) -> String {
    let tall = height(lines.len());
    let whole: Vec<String> = lines.iter().map(|(_, text)| escape(text)).collect();
    let texts: Vec<String> = lines
        .iter()
        .enumerate()
        .map(|(number, (class, text))| {
            let (x, y) = (x + PADDING + 2, y + PADDING + number * LINE + 13);
            // Bold letters are wider.
            let fits = if *class == "title" {
                fits * 4 / 5
            } else {
                fits
            };
            let text = escape(&cut(text, fits));
            format!("<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{text}</text>")
        })
        .collect();
    let texts = texts.concat();
    format!(
        "<g class=\"{class}\"><title>{}</title><rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{tall}\" rx=\"7\"/>{texts}</g>\n",
        whole.join("\n")
    )
}

/// `text`, with an ellipsis where it has more than `fits` characters.
fn cut(text: &str, fits: usize) -> String {
    if text.chars().count() <= fits {
        return text.to_owned();
    }
    let start: String = text.chars().take(fits.saturating_sub(1)).collect();
    format!("{start}…")
}

/// `text` as it stands in XML.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in visible(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML 1.0 has no way to write these at all.
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}
