//! First packets of connections, taken through the rules of everybody: from the container to
//! the outside, to its published ports, and between neighbours.

use std::net::IpAddr;

use super::facts::{Facts, OUTSIDE, has_gateway_here, input};
use super::{Finding, Severity, inside, is_kept_apart, name, restore};
use crate::cnitool::inventory::attachment::{Port, View};
use crate::net::link::Link;
use crate::net::route::Forwarded;
use crate::netfilter::listing::Purpose;
use crate::netfilter::simulate::packet::{
    FORWARD, Hook, INPUT, OUTPUT, POSTROUTING, PREROUTING, Packet, Place, Target, Translation,
};
use crate::netfilter::simulate::ruleset::Ruleset;
use crate::netfilter::{BackendName, Mapping, Protocol};
use crate::shell::{ShellCommand, ShellScript, shell};

/// What becomes of the packets of an attachment. Those of the outside are of two places far
/// apart: what is meant for one of them only is no fault.
pub fn check(facts: &Facts<'_>, view: &View<'_>) -> Vec<Finding> {
    let (Some(firewall), Some(link)) = (&facts.firewall, input(view)) else {
        return Vec::new();
    };
    let own = facts.survey.host.addresses.iter();
    let own: Vec<IpAddr> = own.map(|(_, address)| address.net.addr()).collect();
    let mut findings = Vec::new();
    for ip in view.addresses.iter().map(ipnet::IpNet::addr) {
        let walk = Walk {
            facts,
            view,
            firewall,
            link,
            ip,
            own: &own,
        };
        let [near, far] = OUTSIDE.map(|(v4, v6)| walk.with(if ip.is_ipv4() { v4 } else { v6 }));
        findings.extend(near.into_iter().filter(|finding| far.contains(finding)));
        findings.extend(walk.to_neighbour());
    }
    findings
}

/// Both variants of iptables in use.
pub fn variants(facts: &Facts<'_>) -> Option<Finding> {
    let [legacy, nft] = facts.firewall.as_ref()?.variants()?;
    let other = nft.split(' ').next().unwrap_or_default();
    let this = legacy.split(' ').next().unwrap_or_default();
    Some(finding(
        Severity::Warning,
        "host".to_owned(),
        format!("both variants of iptables have rules: {legacy}; {nft}"),
        "each tool shows and changes its own rules only, packets meet both, and what one lets pass the other may drop",
        format!(
            "have all of the host use one (update-alternatives --config iptables), restart who made the rules of the other, cnibox restore, and remove what is left there: {this}-save or {other}-save shows it"
        ),
    ))
}

/// A place on the way, with the links that packets come in and leave by.
type Step<'a> = (Hook, Option<&'a Link>, Option<&'a Link>);

/// Where packets of one address are looked at, and by whose rules.
struct Walk<'f, 'a> {
    facts: &'f Facts<'a>,
    view: &'f View<'a>,
    firewall: &'f Ruleset,
    /// The link by which the host takes them in.
    link: &'f Link,
    ip: IpAddr,
    /// The host's addresses.
    own: &'f [IpAddr],
}

impl Walk<'_, '_> {
    /// What is between the container and this address outside.
    fn with(&self, outside: IpAddr) -> Vec<Finding> {
        let Some(uplink) = self.facts.uplink(self.ip) else {
            return Vec::new();
        };
        if !has_gateway_here(self.view) {
            return Vec::new();
        }
        // Policy rules may send the container's packets elsewhere.
        let way = self.facts.ways.get(&self.ip).and_then(|way| way.from);
        let leaves = match way {
            Some(Forwarded::Through(Some(index))) => self.facts.survey.host.by_index(index),
            _ => None,
        };
        let mut findings = self.out(leaves.unwrap_or(uplink), outside);
        let is_its = |port: &&Port<'_>| port.to == self.ip && port.taken_by.is_none();
        for port in self.view.ports.iter().filter(is_its) {
            findings.extend(self.to_port(uplink, outside, port));
        }
        findings
    }

    /// The host's end of the container's link, where that is a port of a bridge.
    fn port_of_bridge(&self) -> Option<&Link> {
        self.view.host_end.filter(|_| self.view.bridge.is_some())
    }

    fn out(&self, uplink: &Link, outside: IpAddr) -> Vec<Finding> {
        let what = format!("what {} sends to the outside", name(self.view));
        let own = self.view.link;
        let steps = [
            (Hook::Packet(OUTPUT), None, own),
            (Hook::Packet(POSTROUTING), None, own),
            (Hook::Egress, None, own),
        ];
        let mut found = Vec::from_iter(self.within(self.ip, outside, None, &steps, &what));
        let (end, link, uplink) = (self.port_of_bridge(), Some(self.link), Some(uplink));
        let steps = [
            (Hook::Ingress, end, None),
            (Hook::Frame(PREROUTING), end, None),
            (Hook::Frame(INPUT), end, None),
            (Hook::Ingress, link, None),
            (Hook::Packet(PREROUTING), link, None),
            (Hook::Packet(FORWARD), link, uplink),
            (Hook::Packet(POSTROUTING), None, uplink),
        ];
        let mut packet = Packet::new(self.ip, outside, self.own);
        packet.entry.0 = "masq_checks";
        if let Some(dropped) = self.dropped(&mut packet, &steps, &what) {
            found.push(dropped);
            return found;
        }
        found.extend(self.masquerade(&packet, &what));
        if self.settle(&mut packet, uplink) {
            let egress = [(Hook::Egress, None, uplink)];
            found.extend(self.dropped(&mut packet, &egress, &what));
        }
        found
    }

    fn to_port(&self, uplink: &Link, outside: IpAddr, port: &Port<'_>) -> Vec<Finding> {
        let what = format!("what comes for the published ports of {}", name(self.view));
        let Mapping {
            protocol,
            host_ip,
            host_port,
            container_port,
        } = port.mapping;
        let specific = host_ip.filter(|ip| !ip.is_unspecified());
        let host = specific.or_else(|| self.address_of(uplink));
        // What is for 127.0.0.1 does not come from outside.
        let Some(host) = host.filter(|ip| self.own.contains(ip) && !ip.is_loopback()) else {
            return Vec::new();
        };
        let (end, link, uplink) = (self.port_of_bridge(), Some(self.link), Some(uplink));
        let packet = |source| {
            let mut packet = Packet::new(source, host, self.own);
            packet.port = Some((protocol, host_port));
            packet.entry.0 = entry(port);
            packet
        };
        let (mut packet, mut local) = (packet(outside), packet(host));
        let to_lo = (
            Hook::Packet(OUTPUT),
            None,
            self.facts.survey.host.link("lo"),
        );
        let steps = [
            (Hook::Ingress, uplink, None),
            (Hook::Packet(PREROUTING), uplink, None),
        ];
        if let Some(dropped) = self.dropped(&mut packet, &steps, &what) {
            return vec![dropped];
        }
        let mut found = Vec::from_iter(self.led(port, &packet, "comes from outside"));
        if through(self.firewall, &mut local, &[to_lo]).is_none() {
            found.extend(self.led(port, &local, "the host itself sends there"));
        }
        // As its rule leads it, if that may be for others only.
        packet.destination = self.ip;
        packet.port = Some((protocol, container_port));
        let steps = [
            (Hook::Packet(FORWARD), uplink, link),
            (Hook::Packet(POSTROUTING), None, link),
        ];
        let mut dropped = self.dropped(&mut packet, &steps, &what);
        let goes_on = self.settle(&mut packet, link);
        if dropped.is_none() && goes_on {
            let steps = [
                (Hook::Egress, None, link),
                (Hook::Frame(OUTPUT), None, end),
                (Hook::Frame(POSTROUTING), None, end),
                (Hook::Egress, None, end),
            ];
            dropped = self.dropped(&mut packet, &steps, &what);
        }
        found.extend(dropped);
        let own = self.view.link;
        let steps = [
            (Hook::Ingress, own, None),
            (Hook::Packet(PREROUTING), own, None),
            (Hook::Packet(INPUT), own, None),
        ];
        if goes_on {
            found.extend(self.within(packet.source, self.ip, packet.port, &steps, &what));
        }
        found
    }

    /// To another container on the bridge: through the rules for IP, too, where a sysctl
    /// says so. It may be meant to be dropped.
    fn to_neighbour(&self) -> Option<Finding> {
        let (view, link) = (self.view, self.link);
        let end = self.port_of_bridge().filter(|_| !is_kept_apart(view))?;
        let (other, theirs) = self.facts.views.iter().find_map(|other| {
            let is_near = other.network == view.network
                && other
                    .bridge
                    .is_some_and(|bridge| bridge.index == link.index);
            let port = other
                .host_end
                .filter(|port| is_near && port.index != end.index)?;
            let mut alike = other.addresses.iter().map(ipnet::IpNet::addr);
            let theirs = alike.find(|theirs| theirs.is_ipv4() == self.ip.is_ipv4())?;
            Some((port, theirs))
        })?;
        let what = format!("what {} sends to others on {}", name(view), link.name);
        let frame = [
            (Hook::Frame(PREROUTING), Some(end), None),
            (Hook::Frame(FORWARD), Some(end), Some(other)),
            (Hook::Frame(POSTROUTING), None, Some(other)),
        ];
        let mut packet = Packet::new(self.ip, theirs, self.own);
        let found = self.dropped(&mut packet, &frame, &what).or_else(|| {
            let key = if self.ip.is_ipv4() {
                "bridge/bridge-nf-call-iptables"
            } else {
                "bridge/bridge-nf-call-ip6tables"
            };
            let routed = [
                (Hook::Packet(PREROUTING), Some(link), None),
                (Hook::Packet(FORWARD), Some(link), Some(link)),
                (Hook::Packet(POSTROUTING), None, Some(link)),
            ];
            let is_seen = self.facts.host.sysctl(key) == Some("1");
            let what = format!("{what}, as net.{} is 1", key.replace('/', "."));
            let mut packet = Packet::new(self.ip, theirs, self.own);
            is_seen.then(|| self.dropped(&mut packet, &routed, &what))?
        });
        found.map(|finding| Finding {
            severity: Severity::Warning,
            ..finding
        })
    }

    /// What drops the packet on the host.
    fn dropped<'p>(
        &self,
        packet: &mut Packet<'p>,
        steps: &[Step<'p>],
        what: &str,
    ) -> Option<Finding> {
        let (hook, place) = through(self.firewall, packet, steps)?;
        let at = packet.input.or(packet.output);
        let link = at
            .filter(|_| hook != Hook::Packet(FORWARD))
            .unwrap_or(self.link);
        Some(finding(
            Severity::Error,
            "host".to_owned(),
            format!("the {} drops {what} ({})", told(&place), self.ip),
            "no connection is made",
            mend(None, hook, &place, link),
        ))
    }

    /// What drops the packet in the container, where somebody may have meant it.
    fn within(
        &self,
        source: IpAddr,
        destination: IpAddr,
        port: Option<(Protocol, u16)>,
        steps: &[Step<'_>],
        what: &str,
    ) -> Option<Finding> {
        let view = self.view;
        let firewall = self.facts.inside_of(view)?.firewall.as_ref()?;
        let own: Vec<IpAddr> = view.addresses.iter().map(ipnet::IpNet::addr).collect();
        let mut packet = Packet::new(source, destination, &own);
        packet.port = port;
        let (hook, place) = through(firewall, &mut packet, steps)?;
        Some(finding(
            Severity::Warning,
            name(view),
            format!("inside, the {} drops {what} ({})", told(&place), self.ip),
            "no connection is made, unless it is one that the rules there let pass",
            mend(Some(&inside(view)), hook, &place, view.link?),
        ))
    }

    /// Whether rules of others give the packet another source than ours do, or none.
    fn masquerade(&self, packet: &Packet<'_>, what: &str) -> Option<Finding> {
        let (view, ip) = (self.view, self.ip);
        let purpose = Purpose::Masquerade(ip);
        let rule = view.rules.iter().find(|rule| rule.purpose == purpose)?;
        let is_ours = rule.backend == BackendName::Nftables;
        let why = "nobody outside can answer the container's address";
        match &packet.translation {
            Translation::By(place, Target::Address(to, _)) if !self.own.contains(to) => {
                Some(finding(
                    Severity::Warning,
                    "host".to_owned(),
                    format!("the {} gives {what} ({ip}) the address {to}", told(place)),
                    "it is not the host's: answers come back only if they are sent here for another reason",
                    removal(None, place),
                ))
            }
            Translation::None(_) if is_ours && !packet.entry.1 => Some(finding(
                Severity::Error,
                name(view),
                format!(
                    "no packet comes to the rule that masquerades {ip}: no chain leads to chain masq_checks"
                ),
                why,
                restore(view),
            )),
            Translation::None(Some(place)) if !is_ours => Some(finding(
                Severity::Error,
                "host".to_owned(),
                format!(
                    "the {} lets {what} ({ip}) pass before it is masqueraded",
                    told(place)
                ),
                why,
                removal(None, place),
            )),
            _ => None,
        }
    }

    /// Whether a packet that `comes` for a port is led elsewhere, or nowhere.
    fn led(&self, port: &Port<'_>, packet: &Packet<'_>, comes: &str) -> Option<Finding> {
        let object = format!("port {}", port.mapping);
        let entry = packet.entry.0;
        let is_ours = |place: &Place| {
            let mut names = [&place.table, &place.chain].into_iter();
            names.any(|name| name == "cni_hostport" || name.starts_with("CNI-"))
        };
        let is_right = || {
            let Mapping {
                protocol,
                container_port,
                ..
            } = port.mapping;
            packet.destination == port.to && packet.port == Some((protocol, container_port))
        };
        match &packet.translation {
            Translation::By(place, to) if !is_ours(place) && !is_right() => {
                let to = match to {
                    Target::Address(ip, _) => ip.to_string(),
                    _ => "the host itself".to_owned(),
                };
                Some(finding(
                    Severity::Error,
                    object,
                    format!(
                        "the {} leads what {comes} to {to}, and not to {}",
                        told(place),
                        name(self.view)
                    ),
                    "its own rule gets no packet",
                    removal(None, place),
                ))
            }
            Translation::None(_) if !packet.entry.1 => Some(finding(
                Severity::Error,
                object,
                format!(
                    "no chain leads what {comes} to chain {entry}, which has its rule for {}",
                    name(self.view)
                ),
                "its own rule gets no packet",
                restore(self.view),
            )),
            _ => None,
        }
    }

    /// Gives a packet that was masqueraded the address of the link it leaves by; `false`
    /// where that is not known.
    fn settle(&self, packet: &mut Packet<'_>, link: Option<&Link>) -> bool {
        match packet.translation {
            Translation::None(_) | Translation::By(_, Target::Address(..)) => true,
            Translation::Unknown => false,
            Translation::By(..) => {
                let address = link.and_then(|link| self.address_of(link));
                packet.source = address.unwrap_or(packet.source);
                address.is_some()
            }
        }
    }

    /// An address of a link of the host, of this family, that others can answer.
    fn address_of(&self, link: &Link) -> Option<IpAddr> {
        let mut all = self.facts.survey.host.addresses_of(link.index);
        let is_v4 = self.ip.is_ipv4();
        let found = all.find(|a| a.is_global && a.net.addr().is_ipv4() == is_v4)?;
        Some(found.net.addr())
    }
}

/// What is wrong, with what, why that matters, and what mends it.
fn finding(
    severity: Severity,
    object: String,
    what: String,
    why: &str,
    mend: impl Into<String>,
) -> Finding {
    Finding {
        severity,
        object,
        what,
        why: why.to_owned(),
        mend: mend.into(),
    }
}

/// The chain that leads to the rules of mapped ports.
fn entry(port: &Port<'_>) -> &'static str {
    match port.rule.backend {
        BackendName::Nftables => "hostports",
        BackendName::Iptables => "CNI-HOSTPORT-DNAT",
    }
}

/// What drops the packet on its way, and where.
fn through<'a>(
    firewall: &Ruleset,
    packet: &mut Packet<'a>,
    steps: &[Step<'a>],
) -> Option<(Hook, Place)> {
    steps.iter().find_map(|(hook, input, output)| {
        // Not every container has a bridge.
        input.or(*output)?;
        packet.input = *input;
        packet.output = *output;
        Some((*hook, firewall.pass(*hook, packet)?))
    })
}

/// A rule or a policy, in words.
fn told(place: &Place) -> String {
    match place.rule {
        Some(rule) if place.legacy.is_some() => format!("rule {rule} of chain {place}"),
        Some(rule) => format!("rule with handle {rule} of chain {place}"),
        None => format!("policy of chain {place}"),
    }
}

/// The command that removes a rule; `enter` is what it is run by.
fn removal(enter: Option<&ShellCommand>, place: &Place) -> ShellScript {
    let rule = place.rule.unwrap_or_default();
    if let Some(tool) = place.legacy {
        let delete = shell![tool, "-t", place.table, "-D", place.chain, rule];
        return entered(enter, delete).into();
    }
    let names = place.names();
    entered(enter, names.list()).and(entered(enter, names.delete(rule)))
}

/// `command` run by what leads into a namespace, if anything does.
fn entered(enter: Option<&ShellCommand>, command: ShellCommand) -> ShellCommand {
    match enter {
        Some(enter) => enter.clone().run(&command),
        None => command,
    }
}

/// The command that has packets by `link` pass.
fn mend(enter: Option<&ShellCommand>, hook: Hook, place: &Place, link: &Link) -> ShellScript {
    if place.rule.is_some() {
        return removal(enter, place);
    }
    let (input, output) = match hook {
        Hook::Packet(FORWARD) | Hook::Frame(FORWARD) => (true, true),
        Hook::Ingress | Hook::Packet(PREROUTING | INPUT) | Hook::Frame(PREROUTING | INPUT) => {
            (true, false)
        }
        _ => (false, true),
    };
    let link = &link.name;
    let pass = |flag: &str, key: &str| {
        let pass = match place.legacy {
            Some(tool) => shell![tool, "-t", place.table, "-I", place.chain]
                .args([flag, link, "-j", "ACCEPT"]),
            None => place.names().accept(key, link),
        };
        entered(enter, pass)
    };
    let ways = [
        input.then(|| pass("-i", "iifname")),
        output.then(|| pass("-o", "oifname")),
    ];
    ShellScript::all(ways.into_iter().flatten())
}
