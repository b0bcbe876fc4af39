//! What is set on the links along the way and drops packets: traffic control, XDP.

use super::facts::{Facts, input};
use super::{Finding, ip, name};
use crate::cnitool::inventory::attachment::View;
use crate::net::link::Link;
use crate::net::traffic::Discipline;
use crate::shell::{ShellCommand, shell};

/// Bytes per second; a limit below is no use to anybody.
const NEXT_TO_NOTHING: u64 = 1000;

/// What is wrong with the links of an attachment, from the container to the outside.
pub fn check(facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let (Some(link), Some(inside)) = (view.link, facts.inside_of(view)) {
        let ip = ip(view);
        let tc = ShellCommand::tc_in(view.netns.unwrap_or_default());
        let object = name(view);
        findings.extend(traffic(&object, link, &inside.traffic, tc));
        findings.extend(xdp(&object, link, ip));
    }
    let uplinks = view.addresses.iter().map(|net| facts.uplink(net.addr()));
    let here = [view.host_end, input(view)].into_iter().chain(uplinks);
    for link in here.flatten() {
        let object = format!("link {}", link.name);
        findings.extend(traffic(&object, link, &facts.host.traffic, shell!["tc"]));
    }
    if let Some(end) = view.host_end {
        findings.extend(xdp(&format!("link {}", end.name), end, shell!["ip"]));
    }
    findings
}

fn traffic(
    object: &str,
    link: &Link,
    all: &[(u32, Discipline)],
    tc: ShellCommand,
) -> Option<Finding> {
    let (_, discipline) = all.iter().find(|(index, _)| *index == link.index)?;
    let name = &link.name;
    let mend = tc.args(["qdisc", "del", "dev", name, "root"]);
    match discipline {
        Discipline::Drops | Discipline::Loses(100) => Some(Finding::error(
            object,
            format!("traffic control drops everything that {name} sends"),
            "nothing gets through",
            mend,
        )),
        Discipline::Limits(rate) if *rate < NEXT_TO_NOTHING => Some(Finding::error(
            object,
            format!("traffic control lets {name} send {rate} bytes per second"),
            "next to nothing gets through",
            mend,
        )),
        Discipline::Loses(loss) => Some(Finding::warning(
            object,
            format!("traffic control delays what {name} sends, or loses some: {loss} %"),
            "it is there for tests (netem): connections are slow, or fail",
            mend,
        )),
        Discipline::Limits(_) => None,
    }
}

fn xdp(object: &str, link: &Link, ip: ShellCommand) -> Option<Finding> {
    let name = &link.name;
    link.has_xdp.then(|| {
        Finding::warning(
            object,
            format!("an XDP program sees what {name} receives before everybody else"),
            "what it drops or takes is seen by no rule, no trace and no capture",
            ip.args(["link", "set", "dev", name, "xdp", "off"]),
        )
    })
}
