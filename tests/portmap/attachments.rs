//! A container with two interfaces in one network: what is done with one of them leaves
//! the other as it is.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::{Output, run};
use crate::lab::{Lab, mapping, on_every_backend};

/// A command of `cnitool` for the interface `ifname` of container `c1`.
fn on(lab: &Lab, command: &str, ifname: &str, mappings: &Value) -> Output {
    let caps = json!({"portMappings": mappings}).to_string();
    let mut tool = Command::new(lab.node.bin.join("cnitool"));
    tool.args([command, "net1", "/run/netns/c1", "--id", "c1"])
        .args(["--ifname", ifname, "--cap", &caps])
        .env("CNI_PATH", &lab.node.bin)
        .env("NETCONFPATH", lab.conf())
        .env("PATH", &lab.path);
    run(&mut tool, "")
}

/// Makes the container, with a server. Each of its interfaces answers for its own address
/// only: neighbours would go on asking the one that is gone.
fn container(lab: &mut Lab) {
    lab.node.netns("c1");
    lab.node.sh("ip netns exec c1 sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2");
    lab.serve("c1", "tcp", 80, "c1");
}

/// A lab with both interfaces of `c1`, 8080 leading to the first and 8081 to the second.
fn two(lab: &mut Lab) -> [Value; 2] {
    let maps = [
        json!([mapping("tcp", 8080, 80)]),
        json!([mapping("tcp", 8081, 80)]),
    ];
    container(lab);
    on(lab, "add", "eth0", &maps[0]).json();
    on(lab, "add", "eth1", &maps[1]).json();
    maps
}

/// From where no route of the container is needed: its default one goes with the second
/// interface.
fn answers(lab: &Lab, port: u16) -> bool {
    lab.call("", "tcp", "127.0.0.1", port).starts_with("c1 ")
}

#[test]
fn the_second_goes_and_the_first_stays() {
    on_every_backend(|mut lab| {
        lab.add("c0", &json!([mapping("tcp", 8079, 80)]));
        lab.cnitool("del", "c0", &json!([])).silent();
        let before = lab.rules();
        let [one, two] = two(&mut lab);
        assert!(answers(&lab, 8080), "{}", lab.backend);
        // Twice, as runtimes do; without the mappings, which they forget.
        for _ in 0..2 {
            on(&lab, "del", "eth1", &json!([])).silent();
            on(&lab, "check", "eth0", &one).silent();
            assert!(answers(&lab, 8080), "{}", lab.backend);
            assert!(!answers(&lab, 8081), "{}", lab.backend);
        }
        // A result that says nothing true of it, or nothing at all.
        for forget in [
            "sed -i 's/10[.]9[.]0[.]/10.9.0.9/g; s/fd00:9::/fd00:9::9/g' /var/lib/cni/results/*-eth1",
            "rm /var/lib/cni/results/*-eth1",
        ] {
            on(&lab, "add", "eth1", &two).json();
            lab.node.sh(forget);
            on(&lab, "del", "eth1", &two).silent();
            on(&lab, "check", "eth0", &one).silent();
            assert!(!lab.rules().contains("8081"), "{}", lab.backend);
        }
        on(&lab, "del", "eth0", &one).silent();
        assert_eq!(lab.rules(), before, "{}", lab.backend);
    });
}

#[test]
fn a_second_that_fails_takes_nothing_of_the_first_along() {
    on_every_backend(|mut lab| {
        let one = json!([mapping("tcp", 8080, 80)]);
        container(&mut lab);
        on(&lab, "add", "eth0", &one).json();
        let before = lab.rules();
        // Mapping succeeds, and what comes behind it does not.
        let path = lab.conf().join("10-net1.conflist");
        let mut list: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let plugins = list["plugins"].as_array_mut().unwrap();
        plugins.push(json!({"type": "tuning", "sysctl": {"net.ipv4.no_such_thing": "1"}}));
        fs::write(&path, list.to_string()).unwrap();
        let failed = on(&lab, "add", "eth1", &json!([mapping("tcp", 8081, 80)]));
        assert!(!failed.ok, "{failed:?}");
        on(&lab, "del", "eth1", &json!([])).silent();
        assert_eq!(lab.rules(), before, "{}", lab.backend);
        assert!(answers(&lab, 8080), "{}", lab.backend);
    });
}
