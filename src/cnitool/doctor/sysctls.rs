//! Sysctls that keep packets from containers: of ARP, of forwarding, of IPv6. What counts of a
//! link's value and that of `all` is the kernel's business ([`LinkSysctl`]).

use std::net::IpAddr;

use ipnet::IpNet;

use super::facts::{Facts, Inside, has_gateway_here, input};
use super::{Finding, attach_again, name, set_sysctl};
use crate::cnitool::inventory::attachment::View;
use crate::cnitool::inventory::stack::Stack;
use crate::net::link::Link;
use crate::net::link_sysctl::LinkSysctl;
use crate::shell::{ShellCommand, shell};

/// The host does not tell the container where its gateway is.
pub fn host_is_silent(facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
    if !has_gateway_here(view) {
        return Vec::new();
    }
    let host = &facts.survey.host;
    let mut findings = Vec::new();
    for (ip, gateway) in pairs(view) {
        let Some(link) = asked(facts, view, gateway) else {
            continue;
        };
        let question = Question {
            stack: host,
            link,
            asker: ip,
            ip: gateway,
        };
        let why = "its containers do not find their gateway";
        if let Some((sysctl, most, what)) = ignored(&facts.host, &question) {
            let mend = lower_on_host(facts, view, link, sysctl, most);
            findings.push(Finding::error("host", what, why, mend));
        } else if let Some(way) = facts.ways.get(&ip)
            && way.to.as_ref() != Some(&link.name)
            && way.to.as_deref() != Some("lo")
        {
            let through = way.to.as_deref().unwrap_or("no link");
            let filtered = filtered(&facts.host, &question, through);
            findings.extend(filtered.map(|(sysctl, what)| {
                let mend = lower_on_host(facts, view, link, sysctl, 0);
                Finding::error("host", what, why, mend)
            }));
        }
    }
    findings
}

/// The container does not tell its gateway, nor its neighbours, where it is.
pub fn container_is_silent(facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
    let (Some(stack), Some(inside), Some(link)) = (view.inside, facts.inside_of(view), view.link)
    else {
        return Vec::new();
    };
    if link.kind != "veth" {
        return Vec::new();
    }
    let mut pairs = pairs(view);
    if pairs.is_empty() {
        // Somebody in its subnet.
        let v4 = view.addresses.iter().map(IpNet::addr);
        pairs.extend(v4.filter(IpAddr::is_ipv4).map(|ip| (ip, ip)));
    }
    let why = "neither its gateway nor its neighbours find it";
    let mut findings = Vec::new();
    for (ip, gateway) in pairs {
        let question = Question {
            stack,
            link,
            asker: gateway,
            ip,
        };
        let lower = |sysctl: LinkSysctl<'_>, most: i64| {
            let keys = sysctl.above(most, |key| inside.integer(key));
            let netns = view.netns.unwrap_or_default();
            let enter = shell!["nsenter", format!("--net={netns}")];
            commands(&keys, most, Some(&enter))
        };
        if let Some((sysctl, most, what)) = ignored(inside, &question) {
            let mend = lower(sysctl, most);
            findings.push(Finding::error(name(view), what, why, mend));
        } else if let Some(Some(through)) = inside.ways_to.get(&gateway)
            && *through != link.name
        {
            let filtered = filtered(inside, &question, through);
            findings.extend(
                filtered
                    .map(|(sysctl, what)| Finding::error(name(view), what, why, lower(sysctl, 0))),
            );
        }
    }
    findings
}

/// The container's IPv4 addresses, each with its gateway.
fn pairs(view: &View<'_>) -> Vec<(IpAddr, IpAddr)> {
    let record = view.record();
    let ips = record.map_or(&[][..], |record| &record.result.ips).iter();
    let with_gateways = ips.filter_map(|ip| Some((ip.address.addr(), ip.gateway?)));
    with_gateways.filter(|(ip, _)| ip.is_ipv4()).collect()
}

/// The link of the host by which the question for the gateway comes in, if the host has that
/// address.
fn asked<'a>(facts: &'a Facts<'_>, view: &View<'a>, gateway: IpAddr) -> Option<&'a Link> {
    let link = input(view)?;
    let host = &facts.survey.host;
    let mut having = host.addresses.iter();
    let mut links = having
        .by_ref()
        .filter(|(_, address)| address.net.addr() == gateway)
        .filter_map(|(index, _)| host.by_index(*index))
        .peekable();
    links.peek()?;
    // With VLANs the gateway is on a link of its own.
    Some(
        links
            .find(|own| own.index != link.index && facts.is_above(&own.name, link))
            .unwrap_or(link),
    )
}

/// Somebody asks by ARP who has an address.
struct Question<'a> {
    /// Of the namespace that is asked.
    stack: &'a Stack,
    /// The link by which the question comes in.
    link: &'a Link,
    /// Who asks.
    asker: IpAddr,
    /// The address, one of that namespace.
    ip: IpAddr,
}

impl Question<'_> {
    /// Whether the kernel answers with `arp_ignore` set to `mode` (its `arp_ignore()` in
    /// `net/ipv4/arp.c`).
    fn is_answered(&self, mode: i64) -> bool {
        let own = || self.stack.addresses_of(self.link.index).map(|a| a.net);
        let is_own = own().any(|net| net.addr() == self.ip);
        match mode {
            1 => is_own,
            2 => is_own && own().any(|net| net.contains(&self.ip) && net.contains(&self.asker)),
            3 => {
                let mut all = self.stack.addresses.iter();
                all.any(|(_, a)| a.net.addr() == self.ip && !a.is_of_host)
            }
            8 => false,
            _ => true,
        }
    }
}

/// The `arp_ignore` that leaves the question without an answer, the greatest value of which one
/// comes, and what to say.
fn ignored<'a>(inside: &Inside, question: &Question<'a>) -> Option<(LinkSysctl<'a>, i64, String)> {
    let link = &question.link.name;
    let sysctl = LinkSysctl::v4(link, "arp_ignore");
    let mode = inside.effective(sysctl)?;
    if question.is_answered(mode) {
        return None;
    }
    let most = i64::from(mode != 8 && question.is_answered(1));
    let key = sysctl.above(mode - 1, |key| inside.integer(key));
    let key = key.first()?;
    let Question { asker, ip, .. } = question;
    let what = match mode {
        1 => format!("it answers ARP on {link} only for addresses of {link}, and {ip} is none"),
        2 => format!(
            "it answers ARP on {link} only to those in the subnet of the address that they ask for, and {asker} is not in that of {ip}"
        ),
        3 => format!("it answers ARP on {link} only for addresses of a wider scope than {ip}"),
        _ => format!("it answers no ARP on {link}"),
    };
    Some((sysctl, most, format!("net/{key} is {mode}: {what}")))
}

/// The `arp_filter` that leaves the question without an answer, where packets to the asker
/// leave `through` another link, and what to say.
fn filtered<'a>(
    inside: &Inside,
    question: &Question<'a>,
    through: &str,
) -> Option<(LinkSysctl<'a>, String)> {
    let link = &question.link.name;
    let sysctl = LinkSysctl::v4(link, "arp_filter");
    let keys = sysctl.above(0, |key| inside.integer(key));
    let key = keys.first()?;
    let asker = question.asker;
    let what = format!(
        "net/{key} is 1: it answers ARP on {link} only to those whom it reaches by {link}, and packets to {asker} leave through {through}"
    );
    Some((sysctl, what))
}

/// The host does not pass on what comes in by the links that lead to the container and to the
/// outside.
pub fn forwarding(facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
    let why = "the host passes nothing on between containers and other networks";
    let mut findings = Vec::new();
    for (key, is_v4) in [
        ("ipv4/ip_forward", true),
        ("ipv6/conf/all/forwarding", false),
    ] {
        let mut own = view.addresses.iter().map(IpNet::addr);
        let Some(sample) = own.find(|ip| ip.is_ipv4() == is_v4) else {
            continue;
        };
        let links = [input(view), facts.uplink(sample)].into_iter().flatten();
        // For IPv4 the links' own values count, and writing that of all changes them.
        let off: Vec<(&Link, LinkSysctl<'_>)> = links
            .filter(|_| is_v4)
            .map(|link| (link, LinkSysctl::v4(&link.name, "forwarding")))
            .filter(|(_, sysctl)| facts.host.effective(*sysctl) == Some(0))
            .collect();
        if facts.host.sysctl(key) == Some("0") && !(is_v4 && off.is_empty()) {
            let mend = commands(&[key.to_owned()], 1, None);
            let what = format!("net.{} is 0", key.replace('/', "."));
            findings.push(Finding::error("host", what, why, mend));
            continue;
        }
        for (link, sysctl) in off {
            let mend = if goes_with_container(view, link) {
                let default = sysctl.key_of("default");
                let is_off = facts.host.integer(&default) == Some(0);
                for_new_links(view, &default, 1, is_off)
            } else {
                commands(&[sysctl.key()], 1, None)
            };
            findings.push(Finding::error(
                "host",
                format!("net.{} is 0", sysctl.key().replace('/', ".")),
                format!("the host passes on nothing that comes in by {}", link.name),
                mend,
            ));
        }
    }
    findings
}

/// IPv6 is off on the link of the host that is to be the container's gateway.
pub fn ipv6_is_off(facts: &Facts<'_>, view: &View<'_>) -> Option<Finding> {
    let link = input(view)?;
    let sysctl = LinkSysctl::v6(&link.name, "disable_ipv6");
    let is_v6 = view.addresses.iter().any(|net| net.addr().is_ipv6());
    if !is_v6 || !has_gateway_here(view) || facts.host.effective(sysctl) != Some(1) {
        return None;
    }
    let (object, mend) = if view.bridge.is_some() {
        let switch_on = commands(&[sysctl.key()], 0, None);
        let add = shell!["ip", "address", "add", "GATEWAY", "dev", link.name];
        let mend = format!("{switch_on}, then {add}");
        (format!("bridge {}", link.name), mend)
    } else {
        let default = sysctl.key_of("default");
        let is_off = facts.host.integer(&default) == Some(1);
        let mend = for_new_links(view, &default, 0, is_off);
        (format!("host end {}", link.name), mend)
    };
    Some(Finding::error(
        object,
        "IPv6 is switched off on it",
        "its containers have no gateway for IPv6",
        mend,
    ))
}

/// What loosens the reverse path filter for what comes in by `link`: the greater value counts.
pub fn loosen_filter(view: &View<'_>, link: &Link) -> String {
    let of = if goes_with_container(view, link) {
        "all"
    } else {
        &link.name
    };
    commands(&[LinkSysctl::v4(of, "rp_filter").key()], 2, None)
}

/// Whether there is `link` only as long as there is the container.
fn goes_with_container(view: &View<'_>, link: &Link) -> bool {
    view.host_end.is_some_and(|end| end.index == link.index)
}

/// What has the kernel of the host act on `most` where it acts on more.
fn lower_on_host(
    facts: &Facts<'_>,
    view: &View<'_>,
    link: &Link,
    sysctl: LinkSysctl<'_>,
    most: i64,
) -> String {
    let mut keys = sysctl.above(most, |key| facts.host.integer(key));
    let own = sysctl.key();
    if !goes_with_container(view, link) || !keys.contains(&own) {
        return commands(&keys, most, None);
    }
    keys.retain(|key| *key != own);
    let default = sysctl.key_of("default");
    if facts
        .host
        .integer(&default)
        .is_some_and(|value| value > most)
    {
        keys.push(default);
    }
    after(view, &commands(&keys, most, None))
}

/// What mends a link that comes and goes with its container: `default`, if that is wrong, and
/// another link.
fn for_new_links(view: &View<'_>, default: &str, value: i64, is_wrong: bool) -> String {
    let keys = Vec::from_iter(is_wrong.then(|| default.to_owned()));
    after(view, &commands(&keys, value, None))
}

/// The advice to attach the container again after `commands`, of which there may be none.
fn after(view: &View<'_>, commands: &str) -> String {
    let again = attach_again(view);
    if commands.is_empty() {
        again
    } else {
        format!("{commands}; then {again}")
    }
}

/// The commands that set all `keys`, each run by `start` if there is such a command.
fn commands(keys: &[String], value: i64, start: Option<&ShellCommand>) -> String {
    let set = |key: &String| {
        let set = set_sysctl(&format!("net/{key}"), &value.to_string());
        match start {
            Some(start) => start.clone().run(&set).to_string(),
            None => set.to_string(),
        }
    };
    keys.iter().map(set).collect::<Vec<_>>().join(" && ")
}
