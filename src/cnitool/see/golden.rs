//! What is printed of a node made by hand, as files that a reader can look at. Built with
//! `UPDATE_GOLDEN=1`, the test writes them, to be reviewed like code. Those of `--json` are
//! the contract.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::graph::Picture;
use super::{Selection, attachment, ipam, ports, ps, show};
use crate::cni::invocation::Attachment;
use crate::cni::pool::{self, Holder, Pool};
use crate::cni::result::CniResult;
use crate::cni::version::Version;
use crate::cnitool::inventory::{Memory, Namespace, Stack, Survey};
use crate::cnitool::table::Line;
use crate::net::addr::Address;
use crate::net::bridge_vlan::{Membership, Vlans};
use crate::net::link::Link;
use crate::net::route::Route;
use crate::netfilter::listing::{Claim, Listing, OwnedRule, Purpose};
use crate::netfilter::{BackendName, Mapping, Protocol};
use crate::runtime::cache::{Entry, Record};
use crate::runtime::directory::Directory;
use crate::runtime::network::Network;
use crate::runtime::parameters::Parameters;
use crate::shell::ShellCommand;

const NETWORK: &str = r#"{"name": "front", "cniVersion": "1.0.0", "plugins": [
    {"type": "bridge", "bridge": "br1", "ipMasq": true, "ipam": {"type": "host-local"}},
    {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_hours(480_000)
}

fn network() -> Network {
    Network::parse_list(Path::new("/net.d/front.conflist"), NETWORK.into()).unwrap()
}

fn attachment(id: &str) -> Attachment {
    Attachment {
        container_id: id.into(),
        ifname: "eth0".into(),
    }
}

fn memory(id: &str, ip: &str, ports: &Value) -> Memory {
    let netns = format!("/run/netns/{id}");
    let result = json!({"cniVersion": "1.0.0",
        "interfaces": [{"name": format!("veth{id}")}, {"name": "eth0", "sandbox": netns}],
        "ips": [{"interface": 1, "address": format!("{ip}/24")}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.9.0.1"}]});
    let Value::Object(capability_args) = json!({ "portMappings": ports }) else {
        unreachable!()
    };
    Memory {
        file: format!("/var/lib/cni/results/front-{id}-eth0").into(),
        entry: Entry {
            network: "front".into(),
            parameters: Parameters::new(attachment(id), netns, Vec::new(), capability_args)
                .unwrap(),
        },
        record: Ok(Record {
            network: network(),
            result: CniResult::parse(&result, Version::V1_0_0).unwrap(),
            written: now() - Duration::from_mins(90),
        }),
    }
}

fn link(index: u32, name: &str, kind: &str) -> Link {
    Link {
        index,
        name: name.into(),
        kind: kind.into(),
        mac: format!("02:00:00:00:00:{index:02x}"),
        mtu: 1500,
        is_up: true,
        is_running: true,
        ..Link::default()
    }
}

/// An end of a veth pair whose other end has the index `peer`.
fn veth(index: u32, name: &str, peer: u32, controller: Option<u32>) -> Link {
    Link {
        peer: Some(peer),
        controller,
        ..link(index, name, "veth")
    }
}

fn on(index: u32, net: &str) -> (u32, Address) {
    let address = Address {
        net: net.parse().unwrap(),
        is_global: true,
        is_of_host: false,
        is_permanent: true,
        is_tentative: false,
        is_duplicate: false,
    };
    (index, address)
}

fn default_route(index: u32, gateway: &str) -> (u32, Route) {
    let gateway = gateway.parse().unwrap();
    (
        index,
        Route::new("0.0.0.0/0".parse().unwrap(), Some(gateway)),
    )
}

fn inside(peer: u32, addresses: Vec<(u32, Address)>) -> Namespace {
    Namespace::Open(Stack {
        links: vec![link(1, "lo", ""), veth(2, "eth0", peer, None)],
        addresses,
        routes: vec![default_route(2, "10.9.0.1")],
        ..Stack::default()
    })
}

fn lease(ip: &str, holder: Holder) -> pool::Record {
    pool::Record {
        ip: ip.parse().unwrap(),
        holder,
        boot: Some("7c9e6679-7425-40de-944b-e07fc1f90ae7".into()),
        is_earlier: false,
        written: Some(now() - Duration::from_mins(90)),
    }
}

fn rule(id: &str, purpose: Purpose) -> OwnedRule {
    let place = match purpose {
        Purpose::Masquerade(_) => "inet cni_plugins_masquerade masq_checks",
        _ => "ip cni_hostport hostports",
    };
    OwnedRule {
        owner: Claim {
            container_id: Some(id.into()),
            ..Claim::default()
        },
        backend: BackendName::Nftables,
        command: ShellCommand::nft(&format!("list chain {place}")),
        text: format!("a rule of {id}"),
        purpose,
        packets: None,
    }
}

fn port_map(id: &str, to: &str) -> OwnedRule {
    let mapping = Mapping {
        protocol: Protocol::Tcp,
        host_ip: None,
        host_port: 8080,
        container_port: 80,
    };
    let rule = rule(id, Purpose::PortMap(mapping, to.parse().unwrap()));
    OwnedRule {
        packets: Some(7),
        ..rule
    }
}

fn masquerade(id: &str, ip: &str) -> OwnedRule {
    rule(id, Purpose::Masquerade(ip.parse().unwrap()))
}

/// Three containers on a bridge: `c1` is well, `c2` has lost its address and its port to
/// `c1`, `c3` is gone.
fn survey() -> Survey {
    let port = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let holder = |id: &str| Holder::Attachment(id.into(), Some("eth0".into()));
    let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
    Survey {
        services: crate::applets::SERVICES,
        now: now(),
        directory: Directory {
            path: "/net.d".into(),
            networks: vec![network()],
            broken: Vec::new(),
        },
        memories: vec![
            memory("c1", "10.9.0.2", &port),
            memory("c2", "10.9.0.3", &port),
            memory("c3", "10.9.0.4", &json!([])),
        ],
        unknown: Vec::new(),
        pools: vec![Pool {
            network: "front".into(),
            directory: "/var/lib/cni/networks/front".into(),
            sets: vec![pool::Set {
                ranges: vec![(ip("10.9.0.1"), ip("10.9.0.254"))],
                size: 253,
                next: Some(ip("10.9.0.5")),
            }],
            leases: vec![
                lease("10.9.0.2", holder("c1")),
                lease("10.9.0.3", holder("c2")),
                lease("10.9.0.4", holder("c3")),
                lease("10.9.0.99", Holder::Note("the <printer> & more".into())),
            ],
        }],
        host: Stack {
            links: vec![
                link(2, "eth0", ""),
                link(3, "br1", "bridge"),
                veth(4, "vethc1", 2, Some(3)),
                veth(5, "vethc2", 2, Some(3)),
            ],
            addresses: vec![on(2, "192.0.2.10/24"), on(3, "10.9.0.1/24")],
            routes: vec![default_route(2, "192.0.2.1")],
            vlans: BTreeMap::from([(4, Vlans::from([(100, Membership::NATIVE)]))]),
        },
        namespaces: BTreeMap::from([
            (
                "/run/netns/c1".into(),
                inside(4, vec![on(2, "10.9.0.2/24")]),
            ),
            ("/run/netns/c2".into(), inside(5, Vec::new())),
            ("/run/netns/c3".into(), Namespace::Gone),
        ]),
        rules: Listing {
            rules: vec![
                port_map("c1", "10.9.0.2"),
                port_map("c2", "10.9.0.3"),
                masquerade("c1", "10.9.0.2"),
                masquerade("c2", "10.9.0.3"),
                masquerade("c3", "10.9.0.4"),
            ],
            doubts: Vec::new(),
        },
        doubts: vec!["something could not be read".into()],
    }
}

#[track_caller]
fn assert_golden(text: &str, name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/see")
        .join(name);
    if option_env!("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, golden, "{}", path.display());
}

#[track_caller]
fn assert_golden_json(document: &impl serde::Serialize, name: &str) {
    let text = crate::cni::json::pretty(document).unwrap();
    assert_golden(&(String::from_utf8(text).unwrap() + "\n"), name);
}

#[test]
fn what_is_printed() {
    let survey = survey();
    let views = attachment::join(&survey);
    let told = |lines: Vec<Line>, is_coloured| -> String {
        let lines = lines.iter();
        lines.map(|line| line.render(is_coloured) + "\n").collect()
    };
    let lines = |lines| told(lines, false);
    assert_golden(&lines(ps::table(&survey, &views, false)), "ps.txt");
    assert_golden(
        &told(ps::table(&survey, &views, true), true),
        "ps-wide-colour.txt",
    );
    assert_golden_json(&ps::document(&survey, &views), "ps.json");
    let all = Selection {
        network: None,
        container: None,
    };
    let pools = ipam::pools(&survey, &views, &all);
    assert_golden(&lines(ipam::tables(&survey, &pools)), "ipam.txt");
    assert_golden_json(&ipam::document(&survey, &pools), "ipam.json");
    let mapped = ports::list(&views);
    assert_golden(&lines(ports::table(&mapped)), "ports.txt");
    assert_golden_json(&ports::document(&survey, &mapped), "ports.json");
    assert_golden(&lines(show::pages(&survey, &views)), "show.txt");
    assert_golden_json(&show::document(&survey, &views), "show.json");
    let picture = Picture::of(&survey, &views);
    assert_golden(&lines(picture.tree()), "graph.txt");
    assert_golden(&picture.dot(), "graph.dot");
    assert_golden(&picture.svg(), "graph.svg");
    assert_golden_json(&picture, "graph.json");
}
