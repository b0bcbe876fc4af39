//! The backend on the real kernel, each test in a network namespace of its own. nft and
//! iptables, which know nothing of this code, say what the kernel then holds.
#![expect(
    clippy::disallowed_methods,
    reason = "tests make namespaces and ask programs that are not ours"
)]

use super::*;
use crate::net::sysctl;
use crate::netfilter::model::{Mapping, Protocol};
use crate::netfilter::nf_tables::query::{chains, has_chain, is_usable};
use crate::netfilter::nftables::shared::Snapshot;
use crate::netfilter::nftables::{guard, listing};
use crate::netfilter::test_node;
use crate::netfilter::test_node::{feed, masquerade, nets, owner};

/// Gives the calling thread a network stack of its own.
fn node() {
    test_node::enter();
    sh("ip link set lo up");
}

#[track_caller]
fn sh(command: &str) -> String {
    feed(command, "")
}

/// Everything, the elements of sets in alphabetical order: nft prints them in the
/// kernel's.
fn ruleset() -> String {
    let text = sh("nft list ruleset");
    let mut lines = Vec::new();
    let mut elements = Vec::new();
    for line in text.lines() {
        let element = line.trim().trim_start_matches("elements = { ");
        if element.contains(" comment ") && element.ends_with(['}', ',']) {
            elements.push(element.trim_end_matches([',', ' ', '}']));
            continue;
        }
        elements.sort_unstable();
        lines.append(&mut elements);
        lines.push(line);
    }
    // Each line ends, also the last.
    if !lines.is_empty() {
        lines.push("");
    }
    lines.join("\n")
}

/// The tables that the reference has too.
fn reference_tables() -> String {
    let text = sh("nft list ruleset");
    let mut tables: Vec<&str> = text.split_inclusive("\n}\n").collect();
    tables.retain(|table| !table.starts_with("table inet cnibox "));
    tables.concat()
}

/// Compares with a file; `UPDATE_GOLDEN=1` writes it instead.
#[track_caller]
fn assert_golden(name: &str, text: &str) {
    let path = format!(
        "{}/tests/golden/nftables/{name}.nft",
        env!("CARGO_MANIFEST_DIR")
    );
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{path}");
}

/// `tcp 8080:80`, or with a host address in front: `tcp 192.0.2.1 8080:80`.
fn mapping(text: &str) -> Mapping {
    let words: Vec<&str> = text.split(' ').collect();
    let (protocol, host_ip, ports) = match *words.as_slice() {
        [protocol, ports] => (protocol, None, ports),
        [protocol, host, ports] => (protocol, Some(host.parse().unwrap()), ports),
        _ => panic!("{text}"),
    };
    let (host_port, container_port) = ports.split_once(':').unwrap();
    Mapping {
        protocol: Protocol::named(protocol).unwrap(),
        host_ip,
        host_port: host_port.parse().unwrap(),
        container_port: container_port.parse().unwrap(),
    }
}

fn port_maps(container: &[&str], mappings: &[&str]) -> PortMaps {
    test_node::port_maps(container, mappings.iter().copied().map(mapping).collect())
}

const DUAL: [&str; 2] = ["10.9.0.2/24", "fd00:9::2/64"];

#[test]
fn masquerading_is_laid_out_as_the_references() {
    node();
    let (red, blue) = (
        owner("net1", "cont1", "eth0"),
        owner("net\"2", "cont2", "eth0"),
    );
    Nftables
        .ensure_masquerade(&red, &masquerade(&DUAL))
        .unwrap();
    Nftables
        .ensure_masquerade(&blue, &masquerade(&["10.20.0.7/22", "fd00:20::7/128"]))
        .unwrap();
    assert_golden("masquerade", &reference_tables());
    // The same again changes nothing but whose rules are in front.
    Nftables
        .ensure_masquerade(&blue, &masquerade(&["10.20.0.7/22", "fd00:20::7/128"]))
        .unwrap();
    assert_golden("masquerade", &reference_tables());
}

#[test]
fn masquerading_is_checked_replaced_removed_and_collected() {
    node();
    let (red, blue) = (owner("net1", "red", "eth0"), owner("net1", "blue", "eth0"));
    let other = owner("net2", "red", "eth0");
    Nftables
        .ensure_masquerade(&red, &masquerade(&DUAL))
        .unwrap();
    let only_red = ruleset();
    Nftables
        .ensure_masquerade(&blue, &masquerade(&["10.9.0.3/24"]))
        .unwrap();
    Nftables.check_masquerade(&red, &masquerade(&DUAL)).unwrap();
    Nftables
        .check_masquerade(&blue, &masquerade(&["10.9.0.3/24"]))
        .unwrap();

    // Another address replaces the old one, and CHECK names what it misses.
    Nftables
        .ensure_masquerade(&blue, &masquerade(&["10.9.0.4/24"]))
        .unwrap();
    assert!(!ruleset().contains("10.9.0.3"));
    let error = Nftables
        .check_masquerade(&blue, &masquerade(&["10.9.0.3/24"]))
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(
            "inet cni_plugins_masquerade masq_checks \
             ip saddr 10.9.0.3 ip daddr != 10.9.0.0/24 masquerade comment '\""
        ) && text.contains("if: eth0, id: blue"),
        "{text}"
    );

    Nftables.remove_masquerade(&blue, &Known::NOTHING).unwrap();
    Nftables
        .remove_masquerade(&blue, &Known::own(&nets(&["10.9.0.4/24"])))
        .unwrap();
    assert_eq!(ruleset(), only_red);

    // What the others added stays, whatever is collected in its neighbourhood.
    sh("nft insert rule inet cni_plugins_masquerade masq_checks counter comment \\\"mine\\\"");
    Nftables
        .ensure_masquerade(&blue, &masquerade(&["10.9.0.3/24"]))
        .unwrap();
    Nftables
        .ensure_masquerade(&other, &masquerade(&["10.7.0.2/24"]))
        .unwrap();
    Nftables
        .collect_masquerade("net1", std::slice::from_ref(&red.attachment))
        .unwrap();
    let text = ruleset();
    assert!(
        !text.contains("id: blue") && text.contains("\"mine\""),
        "{text}"
    );
    Nftables.check_masquerade(&red, &masquerade(&DUAL)).unwrap();
    Nftables
        .check_masquerade(&other, &masquerade(&["10.7.0.2/24"]))
        .unwrap();
    Nftables.collect_masquerade("net1", &[]).unwrap();
    assert!(!ruleset().contains("net: net1"));

    // CHECK sees a base chain that leads nowhere.
    sh("nft flush chain inet cni_plugins_masquerade postrouting");
    let error = Nftables
        .check_masquerade(&other, &masquerade(&["10.7.0.2/24"]))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("postrouting ip daddr 224.0.0.0/4 return"),
        "{error}"
    );
    // And the next ADD mends it.
    Nftables
        .ensure_masquerade(&red, &masquerade(&DUAL))
        .unwrap();
    Nftables
        .check_masquerade(&other, &masquerade(&["10.7.0.2/24"]))
        .unwrap();
}

#[test]
fn port_maps_are_laid_out_as_the_references() {
    node();
    let first = port_maps(
        &DUAL,
        &[
            "tcp 8080:80",
            "sctp 192.168.1.1 9000:90",
            "udp fd00::1 53:5353",
        ],
    );
    Nftables
        .ensure_port_maps(&owner("net1", "cont1", "eth0"), &first)
        .unwrap();
    let second = PortMaps {
        conditions_v4: vec!["ip saddr != 10.1.0.0/16".into(), "iifname \"eth0\"".into()],
        snat: false,
        ..port_maps(
            &["10.9.0.3/32"],
            &["tcp 0.0.0.0 81:81", "tcp 127.0.0.1 82:82", "tcp ::1 83:83"],
        )
    };
    Nftables
        .ensure_port_maps(&owner("net1", "cont2", "eth0"), &second)
        .unwrap();
    assert_golden("port_maps", &reference_tables());
    Nftables
        .ensure_port_maps(&owner("net1", "cont2", "eth0"), &second)
        .unwrap();
    assert_golden("port_maps", &reference_tables());
}

#[test]
fn whatever_comes_through_a_mapping_is_masqueraded_where_asked_for() {
    node();
    let red = owner("net1", "cont1", "eth0");
    let neighbours = port_maps(&["10.9.0.2/24", "fd00:9::2/128"], &["tcp 8080:80"]);
    let all = PortMaps {
        masquerade_all: true,
        ..neighbours.clone()
    };
    Nftables.ensure_port_maps(&red, &neighbours).unwrap();
    Nftables.check_port_maps(&red, &all).unwrap_err();
    Nftables.ensure_port_maps(&red, &all).unwrap();
    assert_golden("port_maps_masquerade_all", &reference_tables());
    Nftables.check_port_maps(&red, &all).unwrap();
    Nftables.check_port_maps(&red, &neighbours).unwrap_err();
    let without_snat = PortMaps { snat: false, ..all };
    Nftables.ensure_port_maps(&red, &without_snat).unwrap();
    assert!(!ruleset().contains("masquerade"), "{}", ruleset());
}

#[test]
fn nft_makes_the_same_of_the_same_words() {
    let ours = || {
        let mut changes = Vec::new();
        let red = owner("net1", "cont1", "eth0");
        changes.extend(masquerade::ensure(
            &red,
            &masquerade(&DUAL),
            &Snapshot::default(),
            None,
        ));
        let wanted = PortMaps {
            conditions_v4: vec!["ip daddr != 10.1.0.0/16 oifname != eth0 mark 0x10".into()],
            ..port_maps(
                &DUAL,
                &[
                    "tcp 8080:80",
                    "sctp 192.168.1.1 9000:90",
                    "udp fd00::1 53:5353",
                ],
            )
        };
        for plan in plans(&red, &wanted).unwrap() {
            changes.extend(plan.ensure(&red, &Snapshot::default()));
        }
        changes.extend(spoof_check::ensure(
            &red,
            "veth1",
            Mac([2, 0, 0, 0, 0, 1]),
            &[],
            &[],
        ));
        changes
    };
    node();
    let socket = Socket::open().unwrap();
    apply(&socket, || Ok(ours())).unwrap();
    let by_netlink = ruleset();
    node();
    let script: Vec<String> = ours().iter().map(ToString::to_string).collect();
    feed("nft -f -", &(script.join("\n") + "\n"));
    assert_eq!(by_netlink, ruleset());
    // Each line has been worth something.
    assert!(by_netlink.lines().count() > 60, "{by_netlink}");
}

/// Conditions that operators write, each with the family of its table.
const CONDITIONS: [(&str, &str); 66] = [
    ("ip", "ip daddr != { 127.0.0.0/8, 198.19.254.254 }"),
    ("ip", "ip daddr != 192.0.2.0/24"),
    ("ip", "ip saddr 192.0.2.1-192.0.2.5"),
    ("ip", "ip saddr != 192.0.2.1-192.0.2.5"),
    ("ip", "ip saddr 10.0.0.0-10.0.0.255"),
    ("ip", "ip saddr 10.0.0.1"),
    ("ip", "ip saddr != 10.0.0.1"),
    ("ip", "ip saddr 10.0.0.5/8"),
    ("ip", "ip saddr 10.0.0.0/13"),
    ("ip", "ip saddr 0.0.0.0/0"),
    ("ip", "ip saddr { 10.0.0.1, 10.0.0.2 }"),
    ("ip", "ip saddr { 10.0.0.2, 10.0.0.1, 10.0.0.2 }"),
    ("ip", "ip saddr {10.0.0.0/8,192.168.0.0/16,172.16.0.0/12}"),
    (
        "ip",
        "ip saddr != { 10.0.0.1-10.0.0.9, 10.1.0.0/16, 1.2.3.4 }",
    ),
    ("ip", "ip saddr { 10.0.0.0/9, 10.128.0.0/9 }"),
    ("ip", "ip saddr { 10.0.0.0/9, 10.128.0.0/9, 1.2.3.4 }"),
    ("ip", "ip saddr { 10.0.0.0/8, 10.1.0.0/16, 11.0.0.0/30 }"),
    ("ip", "ip saddr { 10.0.0.1-10.0.0.5, 10.0.0.6 }"),
    ("ip", "ip saddr { 0.0.0.0/1, 255.255.255.255 }"),
    ("ip", "ip saddr { 224.0.0.0/3, 10.0.0.0/8 }"),
    ("ip", "ip saddr { 10.0.0.1 }"),
    ("ip", "ip saddr { 10.0.0.1, 10.0.0.1 }"),
    ("ip", "ip saddr { 10.0.0.0/8, 10.0.0.0/8 }"),
    ("ip", "ip saddr != { 10.0.0.1 }"),
    ("ip", "ip saddr { 10.0.0.0/24 }"),
    ("ip", "ip saddr != { 10.0.0.1-10.0.0.9 }"),
    ("ip", "ip saddr { 0.0.0.0/0 }"),
    ("ip", "ip saddr 10.0.0.1 ip daddr 10.0.0.2"),
    ("ip", "ip daddr 10.0.0.2 ip saddr 10.0.0.1"),
    (
        "ip",
        "ip daddr { 10.0.0.2, 10.0.0.3 } ip saddr { 10.0.0.1, 10.0.0.4-10.0.0.6 }",
    ),
    ("ip", "iifname eth0"),
    ("ip", "iifname \"eth*\""),
    ("ip", "iifname != \"eth*\""),
    ("ip", "iifname eth* oifname != \"br-*\""),
    ("ip", "meta iifname { \"eth0\", \"wlan0\" }"),
    ("ip", "iifname != { \"eth*\", \"wlan0\", lo }"),
    ("ip", "iifname { \"eth*\", \"eth0\" }"),
    ("ip", "iifname { \"eth*\", \"eth0\", \"lo\" }"),
    ("ip", "oifname { lo }"),
    ("ip", "iifname { \"br-0123456789ab\", \"br-ba9876543210\" }"),
    ("ip", "tcp dport != 80"),
    ("ip", "tcp dport 8000-8999"),
    ("ip", "tcp dport != 8000-8999"),
    ("ip", "tcp dport { 80, 8080 }"),
    ("ip", "tcp dport { 80, 8000-8999, 443, 444 }"),
    ("ip", "tcp sport != { 80, 443 }"),
    ("ip", "tcp sport 1024-65535"),
    ("ip", "tcp sport { 22, 1024-65535 }"),
    ("ip", "tcp sport { 0-21, 1024-2048 }"),
    ("ip", "tcp sport { 0-65535 }"),
    ("ip", "tcp sport 53"),
    ("ip", "tcp sport != 53"),
    ("ip", "tcp sport { 53, }"),
    ("ip", "meta mark 0x10"),
    ("ip", "mark != 16"),
    ("ip", "meta mark { 2, 0x1 }"),
    (
        "ip",
        "mark != { 0x10, 0x20 } iifname \"eth*\" ip saddr 10.0.0.1-10.0.0.9",
    ),
    ("ip6", "ip6 daddr != { fd00::/8, fe80::/10, ::1 }"),
    ("ip6", "ip6 saddr fd00::1-fd00::ff"),
    ("ip6", "ip6 saddr != fd00::1-fd00::ff"),
    ("ip6", "ip6 saddr { fd00::1, fd00::2 }"),
    ("ip6", "ip6 saddr fd00::1 ip6 daddr fd00::2"),
    ("ip6", "ip6 saddr { ::/1, 8000::/1 }"),
    ("ip6", "ip6 saddr { ffff::/16, fd00::5-fd00::9 }"),
    ("ip6", "ip6 saddr fd00::/63 iifname { \"a*\", \"c*\" }"),
    ("ip6", "tcp sport { 22, 1024-65535 } meta mark 0xffffffff"),
];

/// What nft makes of the words of a condition is what is made of them here: the same
/// listing, which is also ours, and nothing of it stays.
#[test]
fn conditions_are_what_nft_makes_of_the_same_words() {
    node();
    let red = owner("net1", "cont1", "eth0");
    let mut differences = Vec::new();
    for (family, condition) in CONDITIONS {
        let (container, to) = if family == "ip" {
            ("10.9.0.2/24", "10.9.0.2:80")
        } else {
            ("fd00:9::2/64", "[fd00:9::2]:80")
        };
        let mut wanted = port_maps(&[container], &["tcp 8080:80"]);
        let conditions = if family == "ip" {
            &mut wanted.conditions_v4
        } else {
            &mut wanted.conditions_v6
        };
        *conditions = condition.split(' ').map(str::to_owned).collect();
        feed(
            "nft -f -",
            &format!(
                "add table {family} nfts\nadd chain {family} nfts hostports\n\
                 add rule {family} nfts hostports tcp dport 8080 {condition} dnat to {to} comment \"cont1\"\n"
            ),
        );
        let rule = |table: &str| {
            let listed = sh(&format!("nft list chain {family} {table} hostports"));
            let rule = listed.lines().find(|line| line.contains("dnat to"));
            rule.unwrap_or("none").trim().to_owned()
        };
        if let Err(error) = Nftables.ensure_port_maps(&red, &wanted) {
            differences.push(format!("{condition}: {error:#}"));
            continue;
        }
        let by_nft = rule("nfts");
        let mut claims = vec![rule("cni_hostport")];
        let listed = listing::list().unwrap();
        claims.extend(
            listed
                .into_iter()
                .map(|rule| rule.text)
                .filter(|text| text.contains("dnat to")),
        );
        // Again, in place of what there is.
        Nftables.ensure_port_maps(&red, &wanted).unwrap();
        claims.push(rule("cni_hostport"));
        let distinct = claims.iter().filter(|claim| **claim != by_nft);
        differences
            .extend(distinct.map(|claim| format!("{condition}:\n  nft: {by_nft}\n  we:  {claim}")));
        assert_eq!(claims.len(), 3, "{condition}");
        if let Err(error) = Nftables.check_port_maps(&red, &wanted) {
            differences.push(format!("{condition}: CHECK: {error:#}"));
        }
        // One that says something else is missing.
        sh(&format!("nft flush chain {family} cni_hostport hostports"));
        Nftables.check_port_maps(&red, &wanted).unwrap_err();
        Nftables.ensure_port_maps(&red, &wanted).unwrap();
        Nftables.remove_port_maps(&red, &Known::NOTHING).unwrap();
        assert_eq!(rule("cni_hostport"), "none", "{condition}");
        sh(&format!("nft delete table {family} nfts"));
        let sets = sh("nft -j list sets");
        assert!(!sets.contains("__set"), "{condition}: {sets}");
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Each mapping of each family has sets of its own, in one transaction.
#[test]
fn several_rules_have_sets_of_their_own() {
    node();
    let red = owner("net1", "cont1", "eth0");
    let wanted = PortMaps {
        conditions_v4: vec!["ip saddr { 10.0.0.1, 10.0.0.2 } iifname { \"a\", \"b\" }".into()],
        conditions_v6: vec![
            "ip6 saddr { fd00::1-fd00::9, fe80::/10 }".into(),
            // The installed nft makes something else of such neighbours than they say.
            "iifname { \"a*\", \"b*\", \"b1\" }".into(),
        ],
        ..port_maps(&DUAL, &["tcp 8080:80", "udp 53:53"])
    };
    Nftables.ensure_port_maps(&red, &wanted).unwrap();
    let listed = ruleset();
    for rule in [
        "tcp dport 8080 ip saddr { 10.0.0.1, 10.0.0.2 } iifname { \"a\", \"b\" } dnat to 10.9.0.2:80",
        "udp dport 53 ip saddr { 10.0.0.1, 10.0.0.2 } iifname { \"a\", \"b\" } dnat to 10.9.0.2:53",
        "tcp dport 8080 ip6 saddr { fd00::1-fd00::9, fe80::/10 } iifname { \"a*\", \"b*\" } dnat to [fd00:9::2]:80",
        "udp dport 53 ip6 saddr { fd00::1-fd00::9, fe80::/10 } iifname { \"a*\", \"b*\" } dnat to [fd00:9::2]:53",
    ] {
        assert!(listed.contains(rule), "{rule}\n{listed}");
    }
    Nftables.check_port_maps(&red, &wanted).unwrap();
    // More than there is room for in one message.
    let many: Vec<String> = (0..3000)
        .map(|n| format!("10.{}.{}.1", n / 250, n % 250))
        .collect();
    let large = PortMaps {
        conditions_v4: vec![format!("ip saddr {{ {}, 192.0.2.0/24 }}", many.join(", "))],
        ..wanted.clone()
    };
    Nftables.ensure_port_maps(&red, &large).unwrap();
    Nftables.check_port_maps(&red, &large).unwrap();
    assert_eq!(ruleset().matches("10.11.249.1").count(), 2);
    Nftables.ensure_port_maps(&red, &wanted).unwrap();
    // Another set is another condition.
    let other = PortMaps {
        conditions_v4: vec!["ip saddr { 10.0.0.1, 10.0.0.3 } iifname { \"a\", \"b\" }".into()],
        ..wanted
    };
    let missing = Nftables.missing_port_maps(&red, &other).unwrap();
    assert_eq!(missing.len(), 2, "{missing:?}");
}

#[test]
fn attachments_of_one_container_are_told_apart() {
    node();
    let (net1, net2) = (owner("net1", "c1", "eth0"), owner("net2", "c1", "net1"));
    let (one, two) = (
        port_maps(&DUAL, &["tcp 8080:80", "udp 53:53"]),
        port_maps(&["10.7.0.2/24"], &["tcp 9090:90"]),
    );
    Nftables.ensure_port_maps(&net1, &one).unwrap();
    let only_one = ruleset();
    Nftables.ensure_port_maps(&net2, &two).unwrap();
    Nftables.check_port_maps(&net1, &one).unwrap();
    Nftables.check_port_maps(&net2, &two).unwrap();
    Nftables.remove_port_maps(&net2, &Known::NOTHING).unwrap();
    Nftables.remove_port_maps(&net2, &Known::NOTHING).unwrap();
    assert_eq!(ruleset(), only_one);
    Nftables.check_port_maps(&net1, &one).unwrap();
    let error = Nftables
        .check_port_maps(&net2, &two)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("ip cni_hostport hostports tcp dport 9090 dnat to 10.7.0.2:90"),
        "{error}"
    );

    // What is no longer wanted goes, down to nothing at all.
    Nftables
        .ensure_port_maps(&net1, &port_maps(&["10.9.0.2/24"], &["tcp 8080:80"]))
        .unwrap();
    let text = ruleset();
    assert!(
        !text.contains("fd00:9::2") && !text.contains("udp"),
        "{text}"
    );
    Nftables.collect_port_maps("net2", &[]).unwrap();
    Nftables
        .collect_port_maps("net1", std::slice::from_ref(&net1.attachment))
        .unwrap();
    assert_eq!(ruleset(), text);
    Nftables.collect_port_maps("net1", &[]).unwrap();
    assert!(!ruleset().contains("c1"), "{}", ruleset());
}

/// The text of docs/compatibility.md#7.4 and docs/compatibility.md#5.8, as the reference's v1.9.1 has nft add it.
const REFERENCE: &str = r#"
    table ip cni_hostport {
        comment "CNI portmap plugin"
        chain hostports {
            tcp dport 8080 dnat to 10.9.0.2:80 comment "cont1"
            ip daddr 192.168.1.1 sctp dport 9000 dnat to 10.9.0.2:90 comment "cont1"
            tcp dport 8080 dnat to 10.9.0.3:80 comment "cont2"
        }
        chain hostip_hostports {
            ip daddr 192.168.1.7 tcp dport 70 dnat to 10.9.0.2:70 comment "cont1"
        }
        chain hostports_all {
            jump hostip_hostports
            jump hostports
        }
        chain prerouting {
            type nat hook prerouting priority -100;
            ip saddr != 10.1.0.0/16 fib daddr type local jump hostports_all
        }
        chain output {
            type nat hook output priority -100;
            ip saddr != 10.1.0.0/16 fib daddr type local jump hostports_all
        }
        chain masquerading {
            type nat hook postrouting priority 100;
            ip saddr 10.9.0.2 ip daddr 10.9.0.2 masquerade comment "cont1"
            ip saddr 127.0.0.1 ip daddr 10.9.0.2 masquerade comment "cont1"
        }
    }
    table inet cni_plugins_masquerade {
        chain masq_checks {
            ip saddr == 10.9.0.2 ip daddr != 10.9.0.0/24 masquerade comment "8e48f37d5de60467-f37378035343678b, net: net1, if: eth0, id: cont1"
        }
        chain postrouting {
            type nat hook postrouting priority 100;
            ip daddr == 224.0.0.0/4 return
            ip6 daddr == ff00::/8 return
            goto masq_checks
        }
    }
"#;

#[test]
fn rules_of_the_reference_are_checked_and_removed() {
    node();
    feed("nft -f -", REFERENCE);
    let red = owner("net1", "cont1", "eth0");
    let wanted = PortMaps {
        conditions_v4: vec!["ip saddr != 10.1.0.0/16".into()],
        ..port_maps(
            &["10.9.0.2/24"],
            &["tcp 8080:80", "sctp 192.168.1.1 9000:90"],
        )
    };
    Nftables.check_port_maps(&red, &wanted).unwrap();
    Nftables
        .check_masquerade(&red, &masquerade(&["10.9.0.2/24"]))
        .unwrap();
    let more = port_maps(&["10.9.0.2/24"], &["tcp 8080:81"]);
    Nftables.check_port_maps(&red, &more).unwrap_err();

    // Without a network in them they are nobody's garbage.
    let before = ruleset();
    Nftables.collect_port_maps("net1", &[]).unwrap();
    assert_eq!(ruleset(), before);

    Nftables.remove_port_maps(&red, &Known::NOTHING).unwrap();
    Nftables.remove_masquerade(&red, &Known::NOTHING).unwrap();
    let after = ruleset();
    assert!(
        !after.contains("cont1") && after.contains("cont2"),
        "{after}"
    );
}

#[test]
fn an_add_after_the_references_replaces_its_rules_and_keeps_its_conditions() {
    node();
    feed("nft -f -", REFERENCE);
    let red = owner("net1", "cont1", "eth0");
    let wanted = port_maps(&["10.9.0.2/24"], &["tcp 8080:80"]);
    Nftables.ensure_port_maps(&red, &wanted).unwrap();
    Nftables.check_port_maps(&red, &wanted).unwrap();
    let text = ruleset();
    assert_eq!(
        text.matches("tcp dport 8080 dnat to 10.9.0.2:80").count(),
        1,
        "{text}"
    );
    assert!(!text.contains("sctp"), "{text}");
    // The conditions are in force for cont2, which is running.
    let kept = "ip saddr != 10.1.0.0/16 fib daddr type local jump hostports_all";
    assert_eq!(text.matches(kept).count(), 2, "{text}");
    assert_eq!(text.matches("jump hostports_all").count(), 2, "{text}");
    // In front of cont2's, which had the port.
    let place = |needle: &str| text.find(needle).unwrap();
    assert!(
        place("dnat to 10.9.0.2:80") < place("dnat to 10.9.0.3:80"),
        "{text}"
    );
}

#[test]
fn an_add_leaves_the_references_rules_of_another_attachment_alone() {
    node();
    feed("nft -f -", REFERENCE);
    let second = owner("net2", "cont1", "eth1");
    let wanted = port_maps(&["10.8.0.2/24"], &["tcp 8081:80"]);
    Nftables.ensure_port_maps(&second, &wanted).unwrap();
    // Replaced, the second time.
    Nftables.ensure_port_maps(&second, &wanted).unwrap();
    Nftables.check_port_maps(&second, &wanted).unwrap();
    let text = ruleset();
    for (what, count) in [
        ("dnat to 10.9.0.2", 3),
        ("ip daddr 10.9.0.2 masquerade", 2),
        ("dnat to 10.8.0.2", 1),
    ] {
        assert_eq!(text.matches(what).count(), count, "{what}: {text}");
    }
}

#[test]
fn conditions_that_we_do_not_know_are_kept_too() {
    node();
    let jump =
        "ip saddr { 10.1.0.1, 10.1.0.7 } ct state new fib daddr type local jump hostports_all";
    let reference = REFERENCE.replace(
        "ip saddr != 10.1.0.0/16 fib daddr type local jump hostports_all",
        jump,
    );
    feed("nft -f -", &reference);
    let red = owner("net1", "cont1", "eth0");
    let wanted = port_maps(&["10.9.0.2/24"], &["tcp 8080:80"]);
    Nftables.ensure_port_maps(&red, &wanted).unwrap();
    assert_eq!(ruleset().matches(jump).count(), 2, "{}", ruleset());
    Nftables.check_port_maps(&red, &wanted).unwrap();
    // What only looks like ours is none.
    sh("nft flush chain ip cni_hostport output; \
        nft add rule ip cni_hostport output fib daddr type != local jump hostports_all");
    Nftables.check_port_maps(&red, &wanted).unwrap_err();
    Nftables.ensure_port_maps(&red, &wanted).unwrap();
    Nftables.check_port_maps(&red, &wanted).unwrap();
    assert!(!ruleset().contains("!= local"), "{}", ruleset());
}

#[test]
fn shared_chains_are_mended_where_ours_is_missing_or_out_of_order() {
    node();
    let red = owner("net1", "cont1", "eth0");
    let wanted = masquerade(&["10.9.0.2/24"]);
    Nftables.ensure_masquerade(&red, &wanted).unwrap();
    let right = ruleset();
    for damage in [
        "insert rule inet cni_plugins_masquerade postrouting goto masq_checks; \
         delete rule inet cni_plugins_masquerade postrouting handle $last",
        "delete rule inet cni_plugins_masquerade postrouting handle $last",
    ] {
        sh(&format!(
            "last=$(nft -a list chain inet cni_plugins_masquerade postrouting | \
             sed -n 's/.*goto masq_checks # handle //p'); nft \"{damage}\""
        ));
        assert_ne!(ruleset(), right);
        Nftables.ensure_masquerade(&red, &wanted).unwrap();
        assert_eq!(ruleset(), right);
    }
    sh("nft insert rule inet cni_plugins_masquerade postrouting log");
    let with_more = sh("nft -a list chain inet cni_plugins_masquerade postrouting");
    Nftables.ensure_masquerade(&red, &wanted).unwrap();
    assert_eq!(
        sh("nft -a list chain inet cni_plugins_masquerade postrouting"),
        with_more
    );
}

#[test]
fn a_replaced_mapping_is_named() {
    node();
    let socket = Socket::open().unwrap();
    let old = port_maps(
        &["10.9.0.2/24"],
        &["tcp 8080:80", "udp 192.0.2.1 53:53", "tcp 90:90"],
    );
    Nftables
        .ensure_port_maps(&owner("net1", "old", "eth0"), &old)
        .unwrap();
    let sentences = |container_id: &str, mappings: &[&str]| {
        let owner = owner("net1", container_id, "eth0");
        let plans = plans(&owner, &port_maps(&DUAL, mappings)).unwrap();
        let mut sentences = BTreeSet::new();
        for plan in plans {
            let found = rules(&socket, &plan.table, None).unwrap();
            sentences.extend(plan.taken_over(&owner, &found));
        }
        sentences.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(
        sentences(
            "new",
            &["udp 8080:80", "tcp 192.0.2.1 8080:80", "udp 53:53"]
        ),
        [
            "host port 53/udp was mapped to container old: the newest mapping wins",
            "host port 8080/tcp was mapped to container old: the newest mapping wins",
        ]
    );
    assert_eq!(
        sentences("new", &["udp 192.0.2.2 53:53", "tcp 81:80"]),
        [""; 0]
    );
    assert_eq!(sentences("old", &["tcp 8080:80"]), [""; 0]);
}

#[test]
fn what_is_not_there_is_removed_with_success() {
    node();
    let red = owner("net1", "cont1", "eth0");
    Nftables
        .remove_masquerade(&red, &Known::own(&nets(&DUAL)))
        .unwrap();
    Nftables.remove_port_maps(&red, &Known::NOTHING).unwrap();
    Nftables::remove_spoof_check(&red).unwrap();
    Nftables.collect_masquerade("net1", &[]).unwrap();
    Nftables.collect_port_maps("net1", &[]).unwrap();
    Nftables::collect_spoof_checks("net1", &[]).unwrap();
    // Nothing is made in passing.
    Nftables
        .ensure_port_maps(&red, &port_maps(&DUAL, &[]))
        .unwrap();
    assert_eq!(ruleset(), "");
    Nftables
        .check_masquerade(&red, &masquerade(&DUAL))
        .unwrap_err();
    Nftables
        .check_port_maps(&red, &port_maps(&DUAL, &["tcp 1:1"]))
        .unwrap_err();
    Nftables
        .check_port_maps(&red, &port_maps(&DUAL, &[]))
        .unwrap();
    // Tables without their chains are no obstacle either.
    sh("nft add table inet cni_plugins_masquerade; nft add table ip cni_hostport");
    Nftables
        .remove_masquerade(&red, &Known::own(&nets(&DUAL)))
        .unwrap();
    Nftables.remove_port_maps(&red, &Known::NOTHING).unwrap();
}

#[test]
fn a_refusal_names_the_change_and_changes_nothing() {
    node();
    sh("nft 'add table ip cni_hostport; \
        add chain ip cni_hostport output { type filter hook output priority 0; }'");
    let before = ruleset();
    let red = owner("net1", "cont1", "eth0");
    let error = Nftables
        .ensure_port_maps(&red, &port_maps(&["10.9.0.2/24"], &["tcp 1:1"]))
        .unwrap_err();
    // A chain of another type cannot lead to translations; which rule the kernel minds,
    // and what it calls that, is not the same on every kernel.
    let text = format!("{error:#}");
    assert!(
        text.starts_with("nftables: ") && text.contains(" rule ip cni_hostport "),
        "{text}"
    );
    assert_eq!(ruleset(), before);
}

#[test]
fn the_spoof_check_is_laid_out_as_the_references() {
    node();
    let red = owner("net1", "cont1", "eth0");
    let (mac, other) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
    Nftables::ensure_spoof_check(&red, "veth1", mac).unwrap();
    assert_golden("spoof_check", &ruleset());
    Nftables::ensure_spoof_check(&red, "veth1", mac).unwrap();
    assert_golden("spoof_check", &ruleset());
    Nftables::check_spoof_check(&red, "veth1", mac).unwrap();
    let error = Nftables::check_spoof_check(&red, "veth1", other)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("-mac ether saddr 02:00:00:00:00:02 return comment"),
        "{error}"
    );
    Nftables::check_spoof_check(&red, "veth2", mac).unwrap_err();

    // The reference's, which has no tag, is another container's for all we know.
    sh("nft 'add chain bridge nat cni-br-iface-c2-eth0; \
        add chain bridge nat cni-br-iface-c2-eth0-mac; \
        add rule bridge nat PREROUTING iifname veth2 jump cni-br-iface-c2-eth0 comment \"macspoofchk-c2-eth0\"; \
        add rule bridge nat cni-br-iface-c2-eth0 jump cni-br-iface-c2-eth0-mac comment \"macspoofchk-c2-eth0\"; \
        add rule bridge nat cni-br-iface-c2-eth0-mac ether saddr 02:00:00:00:00:02 return comment \"macspoofchk-c2-eth0\"; \
        add rule bridge nat cni-br-iface-c2-eth0-mac drop comment \"macspoofchk-c2-eth0\"'");
    let blue = owner("net1", "c2", "eth0");
    Nftables::check_spoof_check(&blue, "veth2", other).unwrap();
    Nftables::collect_spoof_checks("net2", &[]).unwrap();
    Nftables::collect_spoof_checks("net1", std::slice::from_ref(&red.attachment)).unwrap();
    Nftables::check_spoof_check(&red, "veth1", mac).unwrap();
    Nftables::collect_spoof_checks("net1", &[]).unwrap();
    let text = ruleset();
    assert!(
        !text.contains("cont1") && text.contains("macspoofchk-c2-eth0"),
        "{text}"
    );

    Nftables::remove_spoof_check(&blue).unwrap();
    Nftables::remove_spoof_check(&blue).unwrap();
    assert_eq!(chains(Family::Bridge, "nat").unwrap(), ["PREROUTING"]);
    assert!(!ruleset().contains("jump"), "{}", ruleset());
}

#[test]
fn many_at_once_leave_nothing() {
    node();
    let parallel = |work: &(dyn Fn(u8) -> Result<()> + Sync)| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|n| scope.spawn(move || work(n))).collect();
            for thread in threads {
                thread.join().unwrap().unwrap();
            }
        });
    };
    let one = |n: u8| owner("net1", &format!("c{n}"), "eth0");
    let maps = |n: u8| {
        port_maps(
            &[&format!("10.9.0.{n}/24"), &format!("fd00::{n}/64")],
            &[
                &format!("tcp {}:80", 8000 + u16::from(n)),
                &format!("udp {}:80", 8000 + u16::from(n)),
            ],
        )
    };
    let mac = |n: u8| Mac([2, 0, 0, 0, 0, n]);
    let add = |n: u8| {
        Nftables.ensure_masquerade(&one(n), &masquerade(&[&format!("10.9.0.{n}/24")]))?;
        Nftables.ensure_port_maps(&one(n), &maps(n))?;
        Nftables::ensure_spoof_check(&one(n), &format!("veth{n}"), mac(n))
    };
    let del = |n: u8| {
        Nftables.remove_masquerade(&one(n), &Known::NOTHING)?;
        Nftables.remove_port_maps(&one(n), &Known::NOTHING)?;
        Nftables::remove_spoof_check(&one(n))
    };
    // On a fresh node: the first to come make the tables.
    parallel(&add);
    for n in 0..16 {
        Nftables.check_port_maps(&one(n), &maps(n)).unwrap();
        Nftables::check_spoof_check(&one(n), &format!("veth{n}"), mac(n)).unwrap();
    }
    let full = ruleset();
    assert_eq!(full.matches("dnat to").count(), 64, "{full}");
    // One container is removed by all of them.
    parallel(&|_| del(3));
    assert!(!ruleset().contains("\"c3\""));
    parallel(&|n| {
        for _ in 0..3 {
            add(n)?;
            del(n)?;
        }
        Ok(())
    });
    let text = ruleset();
    for n in 0..16 {
        let id = format!("c{n}\"");
        assert!(!text.contains(&id), "{id} in {text}");
    }
    assert!(!text.contains("cni-br-iface"), "{text}");
}

#[test]
fn a_thousand_mappings_are_one_transaction() {
    node();
    let red = owner("net1", "cont1", "eth0");
    let mappings: Vec<String> = (1..=1000)
        .map(|port| format!("udp {port}:{port}"))
        .collect();
    let mappings: Vec<&str> = mappings.iter().map(String::as_str).collect();
    let wanted = port_maps(&DUAL, &mappings);
    Nftables.ensure_port_maps(&red, &wanted).unwrap();
    let text = ruleset();
    assert_eq!(text.matches("dnat to").count(), 2000);
    assert!(text.find("dport 1 ").unwrap() < text.find("dport 1000 ").unwrap());
    Nftables.check_port_maps(&red, &wanted).unwrap();
    // Alone, and beside somebody else.
    Nftables.remove_port_maps(&red, &Known::NOTHING).unwrap();
    assert!(!ruleset().contains("cont1"));
    let blue = owner("net1", "cont2", "eth0");
    let other = port_maps(&["10.9.0.3/24", "fd00::3/64"], &["udp 2000:80"]);
    Nftables.ensure_port_maps(&blue, &other).unwrap();
    let before = ruleset();
    Nftables.ensure_port_maps(&red, &wanted).unwrap();
    Nftables.remove_port_maps(&red, &Known::NOTHING).unwrap();
    assert_eq!(ruleset(), before);
}

/// What has come after the look at a chain must not go with it.
#[test]
fn a_chain_that_was_listed_is_flushed_only_as_it_was() {
    node();
    let (red, blue) = (
        owner("net1", "cont1", "eth0"),
        owner("net1", "cont2", "eth0"),
    );
    let maps = port_maps(&DUAL, &["tcp 8080:80"]);
    Nftables.ensure_port_maps(&red, &maps).unwrap();
    let socket = Socket::open().unwrap();
    let flush = |generation| {
        let [table, _] = port_maps::TABLES;
        let chain = ruleset::Chain::named(table, "hostports");
        try_apply(&socket, &[Change::FlushListed(chain, generation)]).unwrap()
    };
    let listed = generation(&socket).unwrap().unwrap();
    let other = port_maps(&["10.9.0.3/24"], &["tcp 8081:80"]);
    Nftables.ensure_port_maps(&blue, &other).unwrap();
    assert!(!flush(listed));
    Nftables.check_port_maps(&blue, &other).unwrap();
    assert!(flush(generation(&socket).unwrap().unwrap()));
    assert!(!ruleset().contains("dnat to 10.9."));
}

#[test]
fn long_ids_and_odd_names_are_no_obstacle() {
    node();
    let long = owner(&"n".repeat(200), &"c".repeat(200), "eth0");
    let similar = owner(&"n".repeat(200), &format!("{}d", "c".repeat(199)), "eth0");
    let maps = port_maps(&DUAL, &["tcp 8080:80"]);
    for owner in [&long, &similar] {
        Nftables.ensure_port_maps(owner, &maps).unwrap();
        Nftables
            .ensure_masquerade(owner, &masquerade(&DUAL))
            .unwrap();
        Nftables::ensure_spoof_check(owner, "veth1", Mac([2, 0, 0, 0, 0, 1])).unwrap();
    }
    Nftables.remove_port_maps(&long, &Known::NOTHING).unwrap();
    Nftables.remove_masquerade(&long, &Known::NOTHING).unwrap();
    Nftables::remove_spoof_check(&long).unwrap();
    Nftables.check_port_maps(&similar, &maps).unwrap();
    Nftables
        .check_masquerade(&similar, &masquerade(&DUAL))
        .unwrap();
    Nftables::check_spoof_check(&similar, "veth1", Mac([2, 0, 0, 0, 0, 1])).unwrap();
    sh("nft list ruleset > /dev/null");
}

/// With eth0, ids of up to 233 characters fit; of 236 the first of the two chains does.
#[test]
fn an_id_too_long_for_a_spoof_check_is_refused_and_can_be_deleted() {
    node();
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    let of_length = |length| owner("net1", &"c".repeat(length), "eth0");
    Nftables::fits_spoof_check(&of_length(233)).unwrap();
    Nftables::ensure_spoof_check(&of_length(233), "veth1", mac).unwrap();
    Nftables::check_spoof_check(&of_length(233), "veth1", mac).unwrap();
    let before = ruleset();
    for length in [234, 236, 240, 300] {
        let owner = of_length(length);
        let error = Nftables::fits_spoof_check(&owner).unwrap_err();
        assert!(
            format!("{error:#}").contains("is room for 233 in"),
            "{error:#}"
        );
        Nftables::check_spoof_check(&owner, "veth1", mac).unwrap_err();
        Nftables::remove_spoof_check(&owner).unwrap();
        assert_eq!(ruleset(), before);
    }
    Nftables::remove_spoof_check(&of_length(233)).unwrap();
    assert!(!ruleset().contains("cni-br-iface"), "{}", ruleset());
}

#[test]
fn the_kernel_says_what_chains_there_are() {
    node();
    assert!(is_usable());
    assert_eq!(chains(Family::Ip, "nat").unwrap(), [""; 0]);
    assert!(!has_chain(Family::Ip, "nat", "CNI-1").unwrap());
    sh("iptables-nft -t nat -N CNI-1; iptables-nft -t filter -N CNI-2");
    assert!(has_chain(Family::Ip, "nat", "CNI-1").unwrap());
    assert!(!has_chain(Family::Ip, "nat", "CNI-2").unwrap());
    assert!(!has_chain(Family::Ip6, "nat", "CNI-1").unwrap());
    assert_eq!(chains(Family::Ip, "nat").unwrap(), ["CNI-1"]);
}

#[test]
fn conditions_that_cannot_be_kept_are_refused_before_anything_is_changed() {
    node();
    let wanted = PortMaps {
        conditions_v6: vec!["ct state new".into()],
        ..port_maps(&DUAL, &["tcp 8080:80"])
    };
    let error = Nftables
        .ensure_port_maps(&owner("n", "c", "e"), &wanted)
        .unwrap_err();
    assert!(error.to_string().contains("conditionsV6"), "{error}");
    assert_eq!(ruleset(), "");
}

/// Whatever else is changed or added again costs a grace period of the kernel.
#[test]
fn an_add_to_a_table_in_order_adds_rules_only() {
    node();
    let (red, blue) = (owner("net1", "red", "eth0"), owner("net1", "blue", "eth0"));
    let maps = port_maps(&DUAL, &["tcp 8080:80"]);
    Nftables
        .ensure_masquerade(&red, &masquerade(&DUAL))
        .unwrap();
    Nftables.ensure_port_maps(&red, &maps).unwrap();
    let mut changes = masquerade::first(&blue, &masquerade(&DUAL));
    let plans = plans(&blue, &port_maps(&DUAL, &["tcp 8081:80"])).unwrap();
    let socket = Socket::open().unwrap();
    changes.extend(port_maps::first(&blue, &plans, &socket).unwrap().unwrap());
    let adds = |change: &Change| matches!(change, Change::CreateElements(..) | Change::Insert(..));
    assert!(changes.iter().all(adds), "{changes:?}");
    // Elements for the attachment, twice, and for its port.
    assert_eq!(changes.len(), 1 + 2 + 1 + 1 + 2 + 5, "{changes:?}");
}

#[test]
fn the_registry_reads_well_and_can_be_loaded_again() {
    node();
    for (container_id, port) in [("c1", "tcp 8080:80"), ("c2", "udp 53:53")] {
        let owner = owner("net1", container_id, "eth0");
        let (net, maps) = (masquerade(&DUAL), port_maps(&DUAL, &[port]));
        Nftables.ensure_masquerade(&owner, &net).unwrap();
        Nftables.ensure_port_maps(&owner, &maps).unwrap();
        localnet::open(&owner, "lo").unwrap();
    }
    let before = ruleset();
    let tables: Vec<&str> = before.split_inclusive("\n}\n").collect();
    let ours = |table: &&&str| table.contains(" cnibox");
    let ours: String = tables.iter().filter(ours).copied().collect();
    assert_golden("registry", &ours);
    let dump = sh("nft list ruleset");
    sh("nft flush ruleset");
    feed("nft -f -", &dump);
    assert_eq!(ruleset(), before);
    // And it is understood again.
    for container_id in ["c1", "c2"] {
        let owner = owner("net1", container_id, "eth0");
        Nftables.remove_masquerade(&owner, &Known::NOTHING).unwrap();
        Nftables.remove_port_maps(&owner, &Known::NOTHING).unwrap();
        localnet::close(&owner, |_| false).unwrap();
    }
    let text = ruleset();
    for gone in ["c1", "c2", "8080"] {
        assert!(!text.contains(gone), "{gone} in {text}");
    }
}

/// Which elements there are, comments left out.
fn keys(set: &Set) -> Vec<String> {
    let elements = set.elements(&Socket::open().unwrap()).unwrap();
    let keys = elements.unwrap_or_default().into_keys();
    keys.map(|key| key.to_string()).collect()
}

#[test]
fn the_registry_follows_the_rules() {
    node();
    let (red, blue) = (owner("net1", "red", "eth0"), owner("net1", "blue", "eth0"));
    let maps = |mappings| port_maps(&["10.9.0.2/24"], mappings);
    let ensure = |owner, mappings| Nftables.ensure_port_maps(owner, &maps(mappings)).unwrap();
    ensure(&red, &["tcp 192.0.2.1 8080:80", "tcp 81:81"]);
    // The same port of another address is no conflict, but one element.
    ensure(&blue, &["tcp 192.0.2.2 8080:80"]);
    assert_eq!(keys(&registry::HOST_PORTS), ["tcp . 81", "tcp . 8080"]);
    assert_eq!(keys(&registry::MAPPED).len(), 2);
    assert!(ruleset().contains("tcp . 8080 comment \"blue\""));
    // It is red's again when blue goes.
    Nftables.remove_port_maps(&blue, &Known::NOTHING).unwrap();
    assert!(ruleset().contains("tcp . 8080 comment \"red\""));
    assert_eq!(keys(&registry::MAPPED).len(), 1);
    // Other mappings replace the old ones, here too.
    ensure(&red, &["tcp 82:82"]);
    assert_eq!(keys(&registry::HOST_PORTS), ["tcp . 82"]);
    assert_eq!(ruleset().matches("dnat to").count(), 1);
    Nftables
        .ensure_masquerade(&red, &masquerade(&DUAL))
        .unwrap();
    Nftables.collect_port_maps("net1", &[]).unwrap();
    Nftables.collect_masquerade("net1", &[]).unwrap();
    let sets = [
        registry::HOST_PORTS,
        registry::MAPPED,
        registry::MASQUERADED,
    ];
    for set in sets {
        assert_eq!(keys(&set), [""; 0], "{set}");
    }
}

#[test]
fn what_the_registry_has_too_much_is_no_obstacle() {
    node();
    let red = owner("net1", "red", "eth0");
    let (net, maps) = (masquerade(&DUAL), port_maps(&DUAL, &["tcp 8080:80"]));
    let ensure = || {
        Nftables.ensure_masquerade(&red, &net).unwrap();
        Nftables.ensure_port_maps(&red, &maps).unwrap();
        Nftables.check_masquerade(&red, &net).unwrap();
        Nftables.check_port_maps(&red, &maps).unwrap();
    };
    let remove = || {
        Nftables.remove_masquerade(&red, &Known::NOTHING).unwrap();
        Nftables.remove_port_maps(&red, &Known::NOTHING).unwrap();
        assert!(!ruleset().contains("red"), "{}", ruleset());
    };
    for damage in [
        // As the reference removes the rules, or an operator.
        "flush chain ip cni_hostport hostports; flush chain ip6 cni_hostport hostports; \
         flush chain inet cni_plugins_masquerade masq_checks",
        "flush table inet cni_plugins_masquerade; flush table ip cni_hostport; \
         flush table ip6 cni_hostport",
        "delete table inet cni_plugins_masquerade; delete table ip cni_hostport",
        // The registry itself.
        "delete table inet cnibox",
        "flush set inet cnibox mapped; flush set inet cnibox masqueraded",
        "flush set inet cnibox host_ports",
        "delete set inet cnibox host_ports",
    ] {
        ensure();
        sh(&format!("nft '{damage}'"));
        if damage.contains("flush set inet cnibox mapped") {
            // Nobody can know better then: it is DEL that cleans up.
            remove();
        }
        ensure();
        assert_eq!(ruleset().matches("dnat to").count(), 2, "{damage}");
        let own = "10.9.0.2 ip daddr 10.9.0.2";
        assert_eq!(ruleset().matches(own).count(), 1, "{damage}");
        sh(&format!("nft '{damage}'"));
        remove();
    }
}

#[test]
fn an_upgrade_finds_the_rules_that_are_there() {
    node();
    let (red, blue) = (owner("net1", "red", "eth0"), owner("net1", "blue", "eth0"));
    let (net, maps) = (masquerade(&DUAL), port_maps(&DUAL, &["tcp 8080:80"]));
    for owner in [&red, &blue] {
        Nftables.ensure_masquerade(owner, &net).unwrap();
        Nftables.ensure_port_maps(owner, &maps).unwrap();
    }
    // Earlier versions had no registry.
    sh("nft delete table inet cnibox");
    let white = owner("net1", "white", "eth0");
    Nftables.ensure_masquerade(&white, &net).unwrap();
    let other = port_maps(&DUAL, &["tcp 8081:80"]);
    Nftables.ensure_port_maps(&white, &other).unwrap();
    assert_eq!(keys(&registry::HOST_PORTS), ["tcp . 8080", "tcp . 8081"]);
    assert_eq!(keys(&registry::MASQUERADED).len(), 3);
    Nftables.ensure_masquerade(&red, &net).unwrap();
    Nftables.ensure_port_maps(&red, &maps).unwrap();
    assert_eq!(ruleset().matches("dnat to").count(), 6, "{}", ruleset());
}

#[test]
fn route_localnet_goes_off_with_its_last_user() {
    node();
    sh("ip link add br0 type bridge; ip link add br1 type bridge");
    let value = |device| {
        sysctl::read(&localnet::sysctl_key(device))
            .unwrap()
            .unwrap()
    };
    let (red, blue) = (owner("net1", "red", "eth0"), owner("net2", "blue", "eth0"));
    for owner in [&red, &blue, &blue] {
        localnet::open(owner, "br0").unwrap();
    }
    let missing = |owner| localnet::missing_guard(owner, &["br0".into()]).unwrap();
    assert_eq!(missing(&blue), Vec::<String>::new());
    assert_eq!(value("br0"), "1");
    localnet::close(&red, |_| false).unwrap();
    localnet::close(&red, |_| false).unwrap();
    localnet::collect("net1", &[], |_| false).unwrap();
    localnet::collect("net2", std::slice::from_ref(&blue.attachment), |_| false).unwrap();
    assert_eq!(value("br0"), "1");
    localnet::collect("net2", &[], |_| false).unwrap();
    assert_eq!(value("br0"), "0");
    assert_eq!(keys(&guard::USERS), [""; 0]);

    // An administrator's choice stays.
    sysctl::set(&localnet::sysctl_key("br1"), "1").unwrap();
    localnet::open(&red, "br1").unwrap();
    localnet::close(&red, |_| false).unwrap();
    assert_eq!(value("br1"), "1");

    // A link that is gone needs nothing.
    localnet::open(&red, "br0").unwrap();
    sh("ip link del br0");
    localnet::close(&red, |_| false).unwrap();
    assert_eq!(keys(&guard::USERS), [""; 0]);
    // With the set gone nobody is known to need it, and nothing guards it.
    sysctl::set(&localnet::sysctl_key("br1"), "0").unwrap();
    localnet::open(&red, "br1").unwrap();
    sh("nft delete table ip cnibox_localnet");
    let missing = localnet::missing_guard(&red, &["br1".into()]).unwrap();
    assert_eq!(missing.len(), 3, "{missing:?}");
    assert!(
        missing.concat().contains("users '{' '\"br1\"' . "),
        "{missing:?}"
    );
    let stale = localnet::stale("net3", &[], |_| false).unwrap();
    assert_eq!(
        stale,
        ["route_localnet of br1, which nobody is known to need"]
    );
    localnet::collect("net3", &[], |_| false).unwrap();
    assert_eq!(value("br1"), "0");
    assert_eq!(localnet::stale("net3", &[], |_| false).unwrap(), [""; 0]);
}

#[test]
fn route_localnet_is_on_while_anybody_needs_it() {
    node();
    sh("ip link add br0 type bridge");
    let value = || sysctl::read(&localnet::sysctl_key("br0")).unwrap().unwrap();
    std::thread::scope(|scope| {
        for n in 0..6 {
            scope.spawn(move || {
                let owner = owner("net1", &format!("c{n}"), "eth0");
                for _ in 0..5 {
                    localnet::open(&owner, "br0").unwrap();
                    assert_eq!(value(), "1");
                    localnet::close(&owner, |_| false).unwrap();
                }
            });
        }
    });
    assert_eq!(value(), "0");
    assert_eq!(keys(&guard::USERS), [""; 0]);
}
