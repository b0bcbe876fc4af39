//! `cnitool ipam`: who has which address.

use std::net::IpAddr;

use serde::Serialize;

use super::Selection;
use super::words::{age, count, is_meant, moment, or_dash, short};
use crate::cni::pool::{Holder, Record, Set};
use crate::cnitool::inventory::Survey;
use crate::cnitool::inventory::attachment::{State, View};
use crate::cnitool::table::{self, Cell, Line, Tone};

/// What `ipam --json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document<'a> {
    pools: &'a [Pool<'a>],
    doubts: Vec<&'a String>,
}

/// The addresses of one network.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool<'a> {
    network: &'a str,
    /// Where the leases are.
    directory: String,
    /// One for each address that an attachment gets; none where no configuration has the
    /// ranges.
    sets: Vec<Share<'a>>,
    leases: Vec<Lease<'a>>,
}

/// One set of ranges, as far as it is taken.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Share<'a> {
    /// First and last address of each.
    ranges: &'a [(IpAddr, IpAddr)],
    /// Gateways are not counted.
    #[serde(serialize_with = "count")]
    size: u128,
    /// Leases in the ranges; leaked ones too, but not those that are nobody's.
    used: usize,
    #[serde(serialize_with = "count")]
    free: u128,
    leaked: usize,
    /// What the next ADD gets; `null` when all are taken.
    next: Option<IpAddr>,
}

/// A lease.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Lease<'a> {
    address: IpAddr,
    #[serde(rename = "containerID")]
    container_id: Option<&'a str>,
    ifname: Option<&'a str>,
    /// What an operator has written into the file.
    note: Option<&'a str>,
    /// `ok`; `leaked`: the container is gone; `aside`: set aside by an operator; `blank`:
    /// names nobody, and the next ADD may take it; `outside`: in no range of today.
    state: &'static str,
    /// The boot of the node in which it was written.
    boot: Option<&'a str>,
    /// Whether that was before the node was last started.
    earlier_boot: bool,
    /// RFC 3339.
    leased_at: Option<String>,
    #[serde(skip)]
    record: &'a Record,
}

/// The pools that are meant, each lease with its state. `views` are all attachments.
pub fn pools<'a>(
    survey: &'a Survey,
    views: &'a [View<'a>],
    selection: &Selection,
) -> Vec<Pool<'a>> {
    let pools = survey.pools.iter().filter(|pool| {
        let network = selection.network.as_ref();
        network.is_none_or(|name| *name == pool.network)
    });
    let is_leaked = |record: &Record| {
        let holder = |view: &&View<'_>| view.leases.iter().any(|(_, l)| std::ptr::eq(*l, record));
        let view = views.iter().find(holder);
        view.is_some_and(|view| matches!(view.state, State::Orphan(_)))
    };
    let is_meant = |record: &Record| {
        selection.container.as_ref().is_none_or(|word| {
            let mut meant = views.iter().filter(|view| is_meant(view, word));
            meant.any(|view| view.leases.iter().any(|(_, l)| std::ptr::eq(*l, record)))
        })
    };
    pools
        .map(|pool| {
            let leases: Vec<Lease<'a>> = pool
                .leases
                .iter()
                .map(|record| lease(record, &pool.sets, is_leaked(record)))
                .collect();
            Pool {
                network: &pool.network,
                directory: pool.directory.display().to_string(),
                sets: pool.sets.iter().map(|set| share(set, &leases)).collect(),
                leases: leases
                    .into_iter()
                    .filter(|lease| is_meant(lease.record))
                    .collect(),
            }
        })
        .collect()
}

fn lease<'a>(record: &'a Record, sets: &[Set], is_leaked: bool) -> Lease<'a> {
    let (mut container_id, mut ifname, mut note) = (None, None, None);
    let state = match &record.holder {
        Holder::Note(text) => {
            note = Some(text.as_str());
            "aside"
        }
        Holder::Nobody => "blank",
        Holder::Attachment(id, name) => {
            container_id = Some(id.as_str());
            ifname = name.as_deref();
            let is_outside = !sets.is_empty() && !sets.iter().any(|set| set.contains(record.ip));
            match (is_leaked, is_outside) {
                (true, _) => "leaked",
                (false, true) => "outside",
                (false, false) => "ok",
            }
        }
    };
    Lease {
        address: record.ip,
        container_id,
        ifname,
        note,
        state,
        boot: record.boot.as_deref(),
        earlier_boot: record.is_earlier,
        leased_at: record.written.map(moment),
        record,
    }
}

fn share<'a>(set: &'a Set, leases: &[Lease<'_>]) -> Share<'a> {
    let own = leases.iter().filter(|lease| set.contains(lease.address));
    let used: Vec<_> = own.filter(|lease| lease.state != "blank").collect();
    let leaked = used.iter().filter(|lease| lease.state == "leaked");
    Share {
        ranges: &set.ranges,
        size: set.size,
        used: used.len(),
        free: set.size.saturating_sub(used.len() as u128),
        leaked: leaked.count(),
        next: set.next,
    }
}

/// For machines.
pub fn document<'a>(survey: &'a Survey, pools: &'a [Pool<'a>]) -> Document<'a> {
    Document {
        pools,
        doubts: survey.all_doubts().collect(),
    }
}

/// For people: the pools, then the leases.
pub fn tables(survey: &Survey, pools: &[Pool<'_>]) -> Vec<Line> {
    if pools.is_empty() {
        return vec!["no pools: no network uses host-local, and there are no leases".into()];
    }
    let names = [
        "NETWORK", "RANGES", "SIZE", "USED", "FREE", "LEAKED", "NEXT",
    ];
    let mut rows = vec![table::headings(&names)];
    for pool in pools {
        rows.extend(pool.sets.iter().map(|set| share_row(pool, set)));
        if pool.sets.is_empty() {
            let gone = Cell::toned("no ranges configured", Tone::Warning);
            rows.push(vec![pool.network.into(), gone]);
        }
    }
    let mut lines = table::lines(&rows);
    let names = [
        "NETWORK",
        "ADDRESS",
        "CONTAINER",
        "IF",
        "BOOT",
        "AGE",
        "STATE",
    ];
    let mut rows = vec![table::headings(&names)];
    for pool in pools {
        let leases = pool.leases.iter();
        rows.extend(leases.map(|lease| lease_row(survey, pool, lease)));
    }
    if rows.len() > 1 {
        lines.push(Line::default());
        lines.extend(table::lines(&rows));
    }
    lines
}

fn share_row(pool: &Pool<'_>, set: &Share<'_>) -> Vec<Cell> {
    let ranges = set.ranges.iter();
    let ranges: Vec<_> = ranges
        .map(|(first, last)| format!("{first}-{last}"))
        .collect();
    let tone = |is_bad, tone| if is_bad { tone } else { Tone::Plain };
    vec![
        pool.network.into(),
        ranges.join(",").into(),
        set.size.to_string().into(),
        set.used.to_string().into(),
        Cell::toned(set.free.to_string(), tone(set.free == 0, Tone::Bad)),
        Cell::toned(set.leaked.to_string(), tone(set.leaked > 0, Tone::Warning)),
        match set.next {
            Some(ip) => ip.to_string().into(),
            None => Cell::toned("none", Tone::Bad),
        },
    ]
}

fn lease_row(survey: &Survey, pool: &Pool<'_>, lease: &Lease<'_>) -> Vec<Cell> {
    let boot = match (lease.boot, lease.earlier_boot) {
        (_, true) => Cell::toned("earlier", Tone::Warning),
        (Some(_), false) => "this".into(),
        (None, false) => "-".into(),
    };
    let written = lease.record.written;
    let state = match lease.state {
        "ok" => Cell::toned("ok", Tone::Good),
        "leaked" => Cell::toned("leaked: its container is gone", Tone::Warning),
        "aside" => format!("set aside: {}", lease.note.unwrap_or_default()).into(),
        "blank" => "names nobody: free".into(),
        _ => Cell::toned("in no range of the configuration", Tone::Warning),
    };
    vec![
        pool.network.into(),
        lease.address.to_string().into(),
        or_dash(short(lease.container_id.unwrap_or_default()).to_owned()).into(),
        or_dash(lease.ifname.unwrap_or_default().to_owned()).into(),
        boot,
        written
            .map_or_else(|| "-".into(), |then| age(survey.now, then))
            .into(),
        state,
    ]
}
