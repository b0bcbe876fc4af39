//! The host's end of a container as a port of its bridge.

use super::facts::Facts;
use super::{Finding, name};
use crate::cni::json::Object;
use crate::cni::skel::PortVlans;
use crate::cnitool::inventory;
use crate::cnitool::inventory::attachment::View;
use crate::net::bridge_vlan::{Membership, Vlans};
use crate::net::link::Link;
use crate::runtime::network::{PluginConfiguration, plugin_member};
use crate::shell::{ShellCommand, shell};

/// What is wrong with the port `end`.
pub fn check(facts: &Facts<'_>, view: &View<'_>, end: &Link) -> Vec<Finding> {
    let Some(plugin) = view.plugin("bridge") else {
        return Vec::new();
    };
    let Some(wanted) = view.wanted_bridge.as_deref() else {
        return Vec::new();
    };
    match view.bridge {
        Some(bridge) if bridge.name == wanted => {
            let mut findings = settings(view, end, plugin);
            findings.extend(passing(view, end, bridge));
            findings.extend(vlans(facts, view, end, bridge, plugin));
            findings
        }
        _ => vec![elsewhere(facts, view, end, wanted)],
    }
}

/// It is in no bridge, or in another one.
fn elsewhere(facts: &Facts<'_>, view: &View<'_>, end: &Link, wanted: &str) -> Finding {
    if facts.survey.host.link(wanted).is_none() {
        return Finding::error(
            format!("bridge {wanted}"),
            "it does not exist",
            "none of its containers reaches anything",
            shell!["ip", "link", "add", wanted, "type", "bridge"]
                .and(shell!["ip", "link", "set", wanted, "up"]),
        );
    }
    let place = match view.bridge {
        None => "no bridge".to_owned(),
        Some(other) => format!("bridge {}", other.name),
    };
    Finding::error(
        object(end),
        format!(
            "it is in {place}, and belongs into {wanted} ({})",
            name(view)
        ),
        "the container reaches neither its gateway nor its neighbours",
        shell!["ip", "link", "set", end.name, "master", wanted],
    )
}

fn object(end: &Link) -> String {
    format!("host end {}", end.name)
}

/// Whether the bridge passes frames to it at all.
fn passing(view: &View<'_>, end: &Link, bridge: &Link) -> Option<Finding> {
    // A port that is down is disabled too.
    let is_alive = end.is_up && bridge.is_up && end.is_running;
    let state = end.is_blocked.filter(|_| is_alive)?;
    let switch_off = shell![
        "ip",
        "link",
        "set",
        bridge.name,
        "type",
        "bridge",
        "stp_state",
        0
    ];
    Some(Finding::error(
        object(end),
        format!("the bridge has it in state {state} ({})", name(view)),
        "the bridge passes no frames of the container",
        format!("wait for STP, or switch it off: {switch_off}"),
    ))
}

/// What a port that nobody has touched does not do.
fn settings(view: &View<'_>, end: &Link, plugin: &PluginConfiguration) -> Vec<Finding> {
    let wants = |key| plugin_member(&plugin.document, key) == Some(serde_json::Value::Bool(true));
    let mend = |setting: &str| -> ShellCommand {
        shell!["bridge", "link", "set", "dev", end.name].args(setting.split(' '))
    };
    let mut findings = Vec::new();
    if end.is_isolated && !wants("portIsolation") {
        findings.push(Finding::warning(
            object(end),
            format!("its bridge port is isolated ({})", name(view)),
            "the container reaches no other isolated container of the bridge, and \"portIsolation\" is not set",
            mend("isolated off"),
        ));
    }
    if end.hairpin == Some(false) && wants("hairpinMode") {
        findings.push(Finding::warning(
            object(end),
            format!(
                "its bridge port is not in hairpin mode, and \"hairpinMode\" is set ({})",
                name(view)
            ),
            "the container does not reach itself through its own published ports",
            mend("hairpin on"),
        ));
    }
    for setting in &end.withholds {
        let word = setting.split(' ').next().unwrap_or_default();
        let state = if setting.ends_with("off") {
            "on"
        } else {
            "off"
        };
        findings.push(Finding::warning(
            object(end),
            format!("its bridge port has {word} {state} ({})", name(view)),
            "frames for the container, or of it, are dropped, some only once the bridge or a neighbour has forgotten it",
            mend(setting),
        ));
    }
    findings
}

/// The VLANs that it is to be a member of.
fn vlans(
    facts: &Facts<'_>,
    view: &View<'_>,
    end: &Link,
    bridge: &Link,
    plugin: &PluginConfiguration,
) -> Vec<Finding> {
    let own = (facts.survey.services.plugin)(&plugin.plugin);
    let record = view.record();
    let config = record.map(|record| inventory::config(&record.network, plugin, &Object::new()));
    let Some(Ok(asked)) = config.and_then(|config| Some(own?.port_vlans(&config))) else {
        return Vec::new();
    };
    let Some(filtering) = bridge.vlans.filter(|vlans| vlans.is_on) else {
        let finding = Finding::error(
            format!("bridge {}", bridge.name),
            "it does not filter VLANs, and its network asks for them",
            "containers of different VLANs are not kept apart, and those behind a trunk are not reached",
            shell![
                "ip",
                "link",
                "set",
                bridge.name,
                "type",
                "bridge",
                "vlan_filtering",
                1
            ],
        );
        return Vec::from_iter(asked.map(|_| finding));
    };
    let default = Some(filtering.default).filter(|vlan| *vlan != 0);
    let (mut wanted, keeps_others) = asked.map_or((Vlans::new(), true), memberships_of);
    if wanted.is_empty() {
        wanted.extend(default.map(|vlan| (vlan, Membership::NATIVE)));
    }
    let found = facts.survey.host.vlans.get(&end.index);
    let none = Vlans::new();
    memberships(
        end,
        &name(view),
        &wanted,
        found.unwrap_or(&none),
        keeps_others,
    )
}

/// The memberships that were asked for, and whether others stay.
fn memberships_of(asked: PortVlans) -> (Vlans, bool) {
    let tagged = asked.tagged.into_iter();
    let tagged = tagged.map(|vlan| (vlan, Membership::TAGGED));
    let untagged = asked.untagged.map(|vlan| (vlan, Membership::NATIVE));
    (tagged.chain(untagged).collect(), asked.keeps_default)
}

/// What is wrong with the VLANs that a port is `found` in; only `wanted` are right, unless it
/// `keeps_others`.
fn memberships(
    end: &Link,
    container: &str,
    wanted: &Vlans,
    found: &Vlans,
    keeps_others: bool,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (vlan, how) in wanted
        .iter()
        .filter(|(vlan, how)| found.get(vlan) != Some(how))
    {
        let now = match found.get(vlan) {
            None => "not in it".to_owned(),
            Some(now) => now.to_string(),
        };
        // Without a word, `bridge` keeps the tag.
        let flags = how.to_string();
        let flags = flags.split(' ').filter(|word| *word != "tagged");
        findings.push(Finding::error(
            object(end),
            format!("it is to be in VLAN {vlan} ({how}), and is {now} ({container})"),
            "the bridge drops the container's frames, or takes them for those of another VLAN",
            shell!["bridge", "vlan", "add", "dev", end.name, "vid", vlan].args(flags),
        ));
    }
    let others = found.keys().filter(|vlan| !wanted.contains_key(vlan));
    for vlan in others.filter(|_| !keeps_others) {
        findings.push(Finding::warning(
            object(end),
            format!("it is in VLAN {vlan}, and its network does not ask for that ({container})"),
            "the container gets frames of others, and may reach them",
            shell!["bridge", "vlan", "del", "dev", end.name, "vid", vlan],
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vlans_of_a_port_are_those_of_the_configuration() {
        let end = Link {
            name: "v".into(),
            ..Link::default()
        };
        let mends =
            |wanted: &[(u16, Membership)], found: &[(u16, Membership)], keeps| -> Vec<String> {
                let [wanted, found] = [wanted, found].map(|all| all.iter().copied().collect());
                let found = memberships(&end, "container c", &wanted, &found, keeps);
                found.into_iter().map(|finding| finding.mend).collect()
            };
        let (native, tagged) = (Membership::NATIVE, Membership::TAGGED);
        let egress = Membership {
            takes_untagged: false,
            sends_untagged: true,
        };
        assert!(
            mends(
                &[(5, native), (7, tagged)],
                &[(5, native), (7, tagged)],
                false
            )
            .is_empty()
        );
        assert!(mends(&[(5, native)], &[(1, native), (5, native)], true).is_empty());
        assert_eq!(
            mends(
                &[(5, native), (7, tagged)],
                &[(1, native), (5, egress)],
                false
            ),
            [
                "bridge vlan add dev v vid 5 pvid untagged",
                "bridge vlan add dev v vid 7",
                "bridge vlan del dev v vid 1",
            ]
        );
    }
}
