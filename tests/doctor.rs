//! `cnitool doctor`: silent on a healthy node, and on one with a fault it names the fault
//! and the command that mends it. Every fault is made for real, told, and mended, mostly
//! with the very command that was printed.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test that cannot do its work says so by panicking; doors are for the product"
)]

mod common;

use std::fs;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::Command;

use common::network::Network;
use common::{BACKENDS, Node, REFERENCE, run};
use serde_json::{Value, json};

/// A node with an uplink to namespace `ext`, over which its default routes lead, and the
/// network `net1` of both address families.
struct Lab {
    network: Network,
    /// The host's end of container c1.
    end: String,
}

impl Deref for Lab {
    type Target = Network;

    fn deref(&self) -> &Network {
        &self.network
    }
}

impl Lab {
    fn new(plugins: Option<&str>, backend: &str) -> Self {
        let ranges = json!([[{"subnet": "10.9.0.0/29"}], [{"subnet": "fd00:9::/64"}]]);
        let network = Network::new(plugins, backend, &ranges);
        network.node.machine("2001:db8:1");
        network
            .node
            .sh("ip route add default via 192.0.2.9 && ip -6 route add default via 2001:db8:1::9");
        // Findings advise `cnibox restore`.
        std::os::unix::fs::symlink(common::binary(), network.node.bin.join("cnibox")).unwrap();
        let mut lab = Self {
            network,
            end: String::new(),
        };
        lab.add("c1", 8081);
        lab.add("c2", 8082);
        lab.end = lab.host_end("c1");
        lab
    }

    /// Attaches a new container with a mapped port of each protocol.
    fn add(&self, name: &str, port: u16) {
        let mapping = |inside, protocol| json!({"hostPort": port, "containerPort": inside, "protocol": protocol});
        self.attach(name, &json!([mapping(80, "tcp"), mapping(53, "udp")]));
    }

    /// Asserts that nothing is found.
    #[track_caller]
    fn healthy(&self, after: &str) {
        self.silent(&["doctor"], after);
    }

    #[track_caller]
    fn silent(&self, args: &[&str], after: &str) {
        let output = self.cnitool(args);
        assert_eq!(output.stdout, "nothing is wrong\n", "{after}: {output:?}");
        assert_eq!(output.code, Some(0), "{after}: {output:?}");
        assert_eq!(output.stderr, "", "{after}");
    }

    /// Injects the fault, looks whether it is told, mends it, and looks whether all is well.
    /// Answers the line that told it, or what went wrong.
    fn suffer(&self, fault: &Fault) -> Result<String, String> {
        let fill = |text: &str| {
            let other = match self.backend.as_str() {
                "iptables-nft" => "iptables-legacy",
                _ => "iptables-nft",
            };
            text.replace("END1", &self.end)
                .replace("IPT", &self.backend)
                .replace("OTHER", other)
                .replace("CONF", self.conf.to_str().unwrap())
                .replace("BIN", self.node.bin.to_str().unwrap())
        };
        let (inject, expected, mend) = (fill(fault.inject), fill(fault.line), fault.mend.map(fill));
        self.node.sh(&inject);
        let probe = Some("--probe").filter(|_| fault.is_probed);
        let args: Vec<&str> = ["doctor"].into_iter().chain(probe).collect();
        let told = self.cnitool(&args);
        let mended = match mend {
            Some(command) => {
                self.node.sh(&command);
                Ok(())
            }
            None => self.mend_as_told(),
        };
        if told.code != Some(1) {
            return Err(format!("{}: {told:?}", fault.name));
        }
        let line = told.stdout.lines().find(|line| line.contains(&expected));
        let line =
            line.ok_or_else(|| format!("{}: {expected} not in\n{}", fault.name, told.stdout))?;
        mended.map_err(|why| format!("{}: {why}", fault.name))?;
        let after = self.cnitool(&["doctor"]);
        if after.code != Some(0) || after.stdout != "nothing is wrong\n" {
            return Err(format!(
                "after {}: {}{}",
                fault.name, after.stdout, after.stderr
            ));
        }
        Ok(line.to_owned())
    }

    /// Does what `doctor` says until it says no more: with one thing mended it may see
    /// another that had to be hidden.
    fn mend_as_told(&self) -> Result<(), String> {
        for _ in 0..4 {
            let found = self.cnitool(&["doctor", "--json"]);
            let found: Value = serde_json::from_str(&found.stdout).unwrap();
            let findings = found["findings"].as_array().unwrap();
            if findings.is_empty() {
                return Ok(());
            }
            let mut done_already = Vec::new();
            for finding in findings {
                // One thing may be wrong with two containers.
                let mend = finding["mend"].as_str().unwrap();
                if done_already.contains(&mend) {
                    continue;
                }
                done_already.push(mend);
                // Behind the system's: a plugin is called `bridge` too.
                let (tools, bin) = (&self.path, self.node.bin.display());
                let path = format!("{tools}:/usr/sbin:/usr/bin:/sbin:/bin:{bin}");
                let mut command = Command::new("sh");
                command
                    .args(["-c", mend])
                    .env("PATH", path)
                    .env("CNI_PATH", &self.plugins)
                    .env("NETCONFPATH", &self.conf);
                let done = run(&mut command, "");
                if !done.ok {
                    return Err(format!("{finding:#}: {done:?}"));
                }
            }
        }
        Err("it never ends".to_owned())
    }
}

/// Something that operators, or their tools, do.
struct Fault {
    name: &'static str,
    /// What does it. `END1` is the host's end of container c1, `CONF` the directory of
    /// configurations, `IPT` the node's variant of iptables and `OTHER` the other one.
    inject: &'static str,
    /// What `doctor` prints.
    line: &'static str,
    /// What mends it; `None` is what `doctor` prints.
    mend: Option<&'static str>,
    /// Whether only a packet shows it.
    is_probed: bool,
}

const fn told(name: &'static str, inject: &'static str, line: &'static str) -> Fault {
    Fault {
        name,
        inject,
        line,
        mend: None,
        is_probed: false,
    }
}

const fn mended(
    name: &'static str,
    inject: &'static str,
    line: &'static str,
    mend: &'static str,
) -> Fault {
    Fault {
        name,
        inject,
        line,
        mend: Some(mend),
        is_probed: false,
    }
}

const fn probed(
    name: &'static str,
    inject: &'static str,
    line: &'static str,
    mend: &'static str,
) -> Fault {
    Fault {
        is_probed: true,
        ..mended(name, inject, line, mend)
    }
}

/// In the container.
const OF_THE_CONTAINER: &[Fault] = &[
    told(
        "container's interface down",
        "ip -n c1 link set eth0 down",
        "error: container c1: eth0 is down",
    ),
    told(
        "ARP switched off in the container",
        "ip -n c1 link set eth0 arp off",
        "error: container c1: eth0 does not use ARP",
    ),
    told(
        "address deleted",
        "ip -n c1 addr del 10.9.0.2/29 dev eth0",
        "error: container c1: 10.9.0.2/29 is not on eth0",
    ),
    mended(
        "address with another prefix length",
        "ip -n c1 addr del 10.9.0.2/29 dev eth0 && ip -n c1 addr add 10.9.0.2/24 dev eth0",
        "error: container c1: 10.9.0.2/29 is not on eth0",
        "ip -n c1 addr del 10.9.0.2/24 dev eth0 && ip -n c1 addr add 10.9.0.2/29 dev eth0 && ip -n c1 route add default via 10.9.0.1",
    ),
    told(
        "IPv6 address deleted",
        "ip -n c1 addr del fd00:9::2/64 dev eth0",
        "error: container c1: fd00:9::2/64 is not on eth0",
    ),
    told(
        "IPv6 switched off in the container",
        "nsenter --net=/run/netns/c1 sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1",
        "error: container c1: IPv6 is switched off on eth0",
    ),
    mended(
        "duplicate address detection failed",
        "ip -n c1 addr del fd00:9::2/64 dev eth0 && ip -n c2 addr add fd00:9::2/64 dev eth0 nodad && \
         nsenter --net=/run/netns/c1 sysctl -qw net.ipv6.conf.eth0.accept_dad=1 && ip -n c1 addr add fd00:9::2/64 dev eth0 && \
         for i in $(seq 100); do ip -n c1 addr show dev eth0 | grep -q dadfailed && break; sleep 0.05; done",
        "error: container c1: fd00:9::2/64 on eth0 is somebody else's too: duplicate address detection failed",
        "ip -n c2 addr del fd00:9::2/64 dev eth0 && ip -n c1 addr del fd00:9::2/64 dev eth0 && \
         ip -n c1 addr add fd00:9::2/64 dev eth0 nodad",
    ),
    told(
        "default route deleted",
        "ip -n c1 route del default",
        "error: container c1: there is no route to default via 10.9.0.1",
    ),
    told(
        "IPv6 default route deleted",
        "ip -n c1 -6 route del default",
        "error: container c1: there is no route to ::/0 via fd00:9::1",
    ),
    told(
        "default route leads elsewhere",
        "ip -n c1 route replace default via 10.9.0.3",
        "error: container c1: there is no route to default via 10.9.0.1",
    ),
    told(
        "blackhole in the container",
        "ip -n c1 route add blackhole 198.51.100.0/24",
        "error: container c1: a route says blackhole for 198.51.100.0/24",
    ),
    mended(
        "policy rule in the container",
        "ip -n c1 rule add from 10.9.0.2 to 198.51.100.0/24 prohibit; ip -n c1 rule add prohibit",
        "error: container c1: the kernel refuses packets to the outside",
        "ip -n c1 rule del from 10.9.0.2 to 198.51.100.0/24 prohibit; ip -n c1 rule del prohibit",
    ),
    told(
        "MTU greater than the way",
        "ip -n c1 link set eth0 mtu 9000",
        "error: container c1: MTU 9000 of eth0 is greater than 1500 of",
    ),
    mended(
        "uplink narrower than the containers",
        "ip link set up0 mtu 1400",
        "warning: container c1: MTU 1500 of eth0 is greater than 1400 of up0, the way out",
        "ip link set up0 mtu 1500",
    ),
    told(
        "wrong permanent neighbour for the gateway",
        "ip -n c1 neigh replace 10.9.0.1 lladdr 02:00:00:00:00:01 nud permanent dev eth0",
        "error: container c1: gateway 10.9.0.1 is set to 02:00:00:00:00:01 for good",
    ),
    told(
        "one address in two containers",
        "ip -n c2 addr add 10.9.0.2/29 dev eth0",
        "error: container c1 and container c2: both have 10.9.0.2",
    ),
    told(
        "one hardware address in two containers",
        "ip -n c2 link set eth0 address $(ip -n c1 -br link show eth0 | awk '{print $3}')",
        "error: container c1 and container c2: both have hardware address",
    ),
    told(
        "loopback interface down",
        "ip -n c1 link set lo down",
        "warning: container c1: its loopback interface lo is down",
    ),
    told(
        "container that answers no ARP",
        "nsenter --net=/run/netns/c1 sysctl -qw net.ipv4.conf.eth0.arp_ignore=8",
        "error: container c1: net/ipv4/conf/eth0/arp_ignore is 8: it answers no ARP on eth0",
    ),
    told(
        "another link is the way out",
        "ip -n c1 link add x0 type veth peer name x1 && ip -n c1 link set x1 up && ip -n c1 link set x0 up && \
         ip -n c1 addr add 172.31.0.2/24 dev x0 && ip -n c1 route add 128.0.0.0/1 via 172.31.0.9",
        "warning: container c1: its packets to the outside go via 172.31.0.9 through x0, by the route to 128.0.0.0/1, and not by the default route of eth0",
    ),
    told(
        "another gateway is the way out",
        "ip -n c1 route add 128.0.0.0/1 via 10.9.0.3",
        "warning: container c1: its packets to the outside go via 10.9.0.3 through eth0, by the route to 128.0.0.0/1",
    ),
    mended(
        "policy rule for the container's address",
        "ip -n c1 rule add from 10.9.0.2 lookup 99 && ip -n c1 route add blackhole default table 99",
        "error: container c1: the kernel refuses packets to the outside",
        "ip -n c1 rule del from 10.9.0.2 lookup 99; ip -n c1 route del blackhole default table 99",
    ),
    told(
        "wrong permanent neighbour for another container",
        "ip -n c1 neigh replace 10.9.0.3 lladdr 02:00:00:00:00:01 nud permanent dev eth0",
        "error: container c1: 10.9.0.3 is set to 02:00:00:00:00:01 for good, and container c2 has",
    ),
    told(
        "MTU too small for IPv6",
        "ip -n c1 link set eth0 mtu 1000",
        "error: container c1: MTU 1000 of eth0 is less than the 1280 that IPv6 needs",
    ),
    told(
        "MTU less than the other end's",
        "ip -n c1 link set eth0 mtu 1400",
        "warning: container c1: MTU 1400 of eth0 is less than 1500 of END1, its other end",
    ),
    told(
        "hardware address of the bridge",
        "ip -n c1 link set eth0 address $(ip -br link show br1 | awk '{print $3}')",
        "error: container c1: br1 has its hardware address",
    ),
    told(
        "container's packets dropped by traffic control",
        "tc -n c1 qdisc add dev eth0 root blackhole",
        "error: container c1: traffic control drops everything that eth0 sends",
    ),
    told(
        "the host has the container's address",
        "ip addr add 10.9.0.2/32 dev up0",
        "error: container c1: its address 10.9.0.2 is also the host's, on up0",
    ),
];

/// On the host.
const OF_THE_HOST: &[Fault] = &[
    told(
        "host's end down",
        "ip link set END1 down",
        "error: host end END1: it is down (container c1)",
    ),
    told(
        "host's end out of the bridge",
        "ip link set END1 nomaster",
        "error: host end END1: it is in no bridge, and belongs into br1 (container c1)",
    ),
    mended(
        "host's end in another bridge",
        "ip link add br9 type bridge && ip link set END1 master br9",
        "error: host end END1: it is in bridge br9, and belongs into br1 (container c1)",
        "ip link set END1 master br1 && ip link del br9",
    ),
    mended(
        "bridge port blocked",
        "ip link set br1 type bridge stp_state 1 && ip link set END1 down && ip link set END1 up && \
         timeout 5 sh -c 'until bridge link show dev END1 | grep -q listening; do sleep 0.1; done'",
        "error: host end END1: the bridge has it in state listening (container c1)",
        "ip link set br1 type bridge stp_state 0 && ip link set END1 down && ip link set END1 up",
    ),
    told(
        "bridge port isolated",
        "bridge link set dev END1 isolated on",
        "warning: host end END1: its bridge port is isolated (container c1)",
    ),
    told(
        "bridge down",
        "ip link set br1 down",
        "error: bridge br1: it is down",
    ),
    told(
        "bridge without ARP",
        "ip link set br1 arp off",
        "error: bridge br1: it does not use ARP",
    ),
    told(
        "gateway's address deleted",
        "ip addr del 10.9.0.1/29 dev br1",
        "error: bridge br1: gateway 10.9.0.1 is not on it",
    ),
    told(
        "IPv6 gateway's address deleted",
        "ip addr del fd00:9::1/64 dev br1",
        "error: bridge br1: gateway fd00:9::1 is not on it",
    ),
    told(
        "forwarding off",
        "sysctl -qw net.ipv4.ip_forward=0",
        "error: host: net.ipv4.ip_forward is 0",
    ),
    told(
        "IPv6 forwarding off",
        "sysctl -qw net.ipv6.conf.all.forwarding=0; ip -6 route replace default via 2001:db8:1::9",
        "error: host: net.ipv6.conf.all.forwarding is 0",
    ),
    told(
        "forwarding off for the bridge",
        "sysctl -qw net.ipv4.conf.br1.forwarding=0",
        "error: host: net.ipv4.conf.br1.forwarding is 0",
    ),
    mended(
        "reverse path filter and an asymmetric route",
        "sysctl -qw net.ipv4.conf.br1.rp_filter=1 && ip rule add to 10.9.0.2 iif lo lookup main pref 50 && \
         ip route add 10.9.0.2 dev up0 table 77 && ip rule add to 10.9.0.2 lookup 77 pref 60",
        "error: host: rp_filter drops what comes from 10.9.0.2 by br1",
        "sysctl -qw net.ipv4.conf.br1.rp_filter=0 && ip rule del pref 50 && ip rule del pref 60 && ip route flush table 77",
    ),
    mended(
        "policy rule on the host",
        "ip rule add from 10.9.0.0/29 prohibit",
        "error: host: it forwards nothing from 10.9.0.2 to the outside",
        "ip rule del from 10.9.0.0/29 prohibit",
    ),
    mended(
        "route of the host for a container",
        "ip route add 10.9.0.2/32 via 192.0.2.9",
        "error: host: packets to 10.9.0.2 leave through up0 instead of br1",
        "ip route del 10.9.0.2/32",
    ),
    mended(
        "subnet overlaps a route of the host",
        "ip route add 10.0.0.0/8 via 192.0.2.9",
        "warning: network net1: its subnet 10.9.0.0/29 overlaps the host's own route to 10.0.0.0/8 through up0",
        "ip route del 10.0.0.0/8",
    ),
    mended(
        "blackhole for part of the subnet",
        "ip route add blackhole 10.9.0.4/30",
        "error: network net1: a route of the host says blackhole for 10.9.0.4/30",
        "ip route del blackhole 10.9.0.4/30",
    ),
    told(
        "wrong permanent neighbour on the host",
        "ip neigh replace 10.9.0.2 lladdr 02:00:00:00:00:01 nud permanent dev br1",
        "error: host: 10.9.0.2 is set to 02:00:00:00:00:01 for good, and container c1 has",
    ),
    told(
        "container that did not answer",
        "ip neigh replace 10.9.0.2 nud failed dev br1",
        "warning: host: 10.9.0.2 of container c1 did not answer",
    ),
    told(
        "bridge port that withholds frames",
        "bridge link set dev END1 learning off flood off mcast_flood off bcast_flood off locked on",
        "warning: host end END1: its bridge port has bcast_flood off (container c1)",
    ),
    told(
        "bridge that answers no ARP",
        "sysctl -qw net.ipv4.conf.br1.arp_ignore=8",
        "error: host: net/ipv4/conf/br1/arp_ignore is 8: it answers no ARP on br1",
    ),
    told(
        "host's end choked",
        "tc qdisc add dev END1 root tbf rate 8bit burst 10 latency 1ms",
        "error: link END1: traffic control lets END1 send 1 bytes per second",
    ),
    mended(
        "somebody else had the gateway's address first",
        "ip -n c2 addr add fd00:9::1/64 dev eth0 nodad && ip addr del fd00:9::1/64 dev br1 && \
         sysctl -qw net.ipv6.conf.br1.accept_dad=1 && ip addr add fd00:9::1/64 dev br1 && \
         for i in $(seq 100); do ip addr show dev br1 | grep -q dadfailed && break; sleep 0.05; done",
        "error: bridge br1: gateway fd00:9::1/64 is somebody else's too: duplicate address detection failed",
        "ip -n c2 addr del fd00:9::1/64 dev eth0 && ip addr del fd00:9::1/64 dev br1 && ip addr add fd00:9::1/64 dev br1 nodad",
    ),
    mended(
        "uplink down",
        "ip link set up0 down",
        "error: host: up0 is down, and there is no other way out",
        "ip link set up0 up && ip addr add 2001:db8:1::1/64 dev up0 nodad && \
         ip route add default via 192.0.2.9 && ip -6 route add default via 2001:db8:1::9",
    ),
    mended(
        "host without a way out",
        "ip route del default",
        "warning: host: it has no route of IPv4 to other networks than those it is in, such as that of up0",
        "ip route add default via 192.0.2.9",
    ),
    mended(
        "nothing at the other end of the way out",
        "ip link add d0 type veth peer name d1 && ip link set d0 up && ip addr add 203.0.113.1/24 dev d0 && \
         ip route replace default via 203.0.113.9",
        "error: host: its default route of IPv4 leads through d0, and nothing is at the other end of d0",
        "ip route replace default via 192.0.2.9 && ip link del d0",
    ),
    // What was on the bridge is told once there is one.
    told(
        "bridge deleted",
        "ip link del br1",
        "error: bridge br1: it does not exist",
    ),
];

/// Leases, configurations, tables.
const OF_THE_NODE: &[Fault] = &[
    told(
        "lease lost",
        "rm /var/lib/cni/networks/net1/10.9.0.2",
        "error: container c1: its address 10.9.0.2 has no lease",
    ),
    mended(
        "lease of another container",
        "printf 'x9\\r\\neth0' > /var/lib/cni/networks/net1/10.9.0.2",
        "error: container c1: the lease of its address 10.9.0.2 is container x9's",
        "printf 'c1\\r\\neth0' > /var/lib/cni/networks/net1/10.9.0.2",
    ),
    mended(
        "leases leaked",
        "printf 'dead\\r\\neth0' > /var/lib/cni/networks/net1/10.9.0.6",
        "warning: container dead: it is gone, and left lease /var/lib/cni/networks/net1/10.9.0.6",
        "rm /var/lib/cni/networks/net1/10.9.0.6",
    ),
    mended(
        "range exhausted",
        "for i in 4 5 6; do echo 'set aside' > /var/lib/cni/networks/net1/10.9.0.$i; done",
        "error: network net1: all 5 addresses of 10.9.0.1-10.9.0.6 are taken",
        "rm /var/lib/cni/networks/net1/10.9.0.[456]",
    ),
    told(
        "lease overwritten",
        r"printf '\377\000\033[31m' > /var/lib/cni/networks/net1/10.9.0.2",
        "error: container c1: its address 10.9.0.2 has no lease",
    ),
    told(
        "lease cut off",
        ": > /var/lib/cni/networks/net1/10.9.0.5",
        "warning: network net1: the lease of 10.9.0.5 names nobody",
    ),
    // The node.
    mended(
        "configuration shadowed",
        "cp CONF/10-net1.conflist CONF/20-net1.conflist",
        "warning: file CONF/20-net1.conflist: network net1 is defined in CONF/10-net1.conflist already",
        "rm CONF/20-net1.conflist",
    ),
    mended(
        "configuration broken",
        "echo '{' > CONF/30-x.conflist",
        "error: file CONF/30-x.conflist: it holds no usable network",
        "rm CONF/30-x.conflist",
    ),
    mended(
        "version unknown",
        "sed 's/\"1.0.0\"/\"9.9.9\"/; s/net1/net9/' CONF/10-net1.conflist > CONF/40-net9.conflist",
        "error: network net9: cniVersion \"9.9.9\" of network \"net9\"",
        "rm CONF/40-net9.conflist",
    ),
    mended(
        "plugin missing",
        "mv BIN/portmap BIN/portmap.away",
        "error: network net1: plugin portmap is not in BIN",
        "mv BIN/portmap.away BIN/portmap",
    ),
    mended(
        "plugin of another machine",
        r"mv BIN/portmap BIN/portmap.away && printf '\177ELF\2\1\1\0\0\0\0\0\0\0\0\0\2\0\363\0' > BIN/portmap && chmod 755 BIN/portmap",
        "error: network net1: plugin BIN/portmap is a program for another kind of machine",
        "mv BIN/portmap.away BIN/portmap",
    ),
    told(
        "plugin that cannot be executed",
        "mv BIN/portmap BIN/portmap.away && cp /bin/true BIN/portmap && chmod 644 BIN/portmap",
        "error: network net1: plugin BIN/portmap cannot be executed: permission denied",
    ),
    mended(
        "subnet of two networks",
        "sed 's/net1/net2/; s/br1/br2/' CONF/10-net1.conflist > CONF/20-net2.conflist",
        "warning: networks net1 and net2: their subnets overlap: 10.9.0.0/29 and 10.9.0.0/29",
        "rm CONF/20-net2.conflist",
    ),
    mended(
        "subnet of the host",
        "sed 's/net1/net2/; s/br1/br2/; s#10.9.0.0/29#192.0.2.0/24#; s/fd00:9:/fd00:8:/' CONF/10-net1.conflist > CONF/20-net2.conflist",
        "warning: network net2: its subnet 192.0.2.0/24 overlaps the host's own route to 192.0.2.0/24 through up0",
        "rm CONF/20-net2.conflist",
    ),
    mended(
        "resolvConf that is not there",
        r#"sed -i.away 's|"type":"host-local"|"resolvConf":"/nowhere",&|' CONF/10-net1.conflist"#,
        "error: network net1: resolvConf /nowhere does not exist",
        "mv CONF/10-net1.conflist.away CONF/10-net1.conflist",
    ),
    mended(
        "configuration gone",
        "mv CONF/10-net1.conflist CONF/away",
        "warning: directory CONF: it holds no network, and there are containers with one",
        "mv CONF/away CONF/10-net1.conflist",
    ),
    told(
        "result damaged",
        "echo '{' > /var/lib/cni/results/net1-c9-eth0",
        "error: file /var/lib/cni/results/net1-c9-eth0: it holds no usable result",
    ),
    mended(
        "result that is none",
        "cp /var/lib/cni/results/net1-c1-eth0 /run/result && \
         sed -i 's/\"ips\":\\[/\"ips\":5,\"x\":[/' /var/lib/cni/results/net1-c1-eth0",
        "error: container c1: its result cannot be used: read the result cache",
        "cp /run/result /var/lib/cni/results/net1-c1-eth0",
    ),
    mended(
        "name server out of reach",
        "cp /var/lib/cni/results/net1-c1-eth0 /run/result && ip -n c1 route add unreachable 192.0.2.53 table 9 && \
         ip -n c1 rule add to 192.0.2.53 lookup 9 && \
         sed -i 's/\"ips\":\\[/\"dns\":{\"nameservers\":[\"192.0.2.53\"]},&/' /var/lib/cni/results/net1-c1-eth0",
        "warning: container c1: there is no route to 192.0.2.53, the name server of its result",
        "cp /run/result /var/lib/cni/results/net1-c1-eth0; ip -n c1 rule del to 192.0.2.53 lookup 9",
    ),
    told(
        "read-only state",
        "mount --bind /var/lib/cni /var/lib/cni && mount -o remount,ro,bind /var/lib/cni",
        "error: directory /var/lib/cni: nothing can be written there: write to /var/lib/cni: EROFS",
    ),
    mended(
        "table of connections full",
        // In a /proc/sys that is read-only: any other is not looked at where others see it.
        "echo 1 > /run/most && mount --bind /run/most /proc/sys/net/netfilter/nf_conntrack_max && \
         mount --rbind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && ping -c1 -W1 192.0.2.9",
        "error: host: the table of connections is full:",
        "umount -R /proc/sys && umount /proc/sys/net/netfilter/nf_conntrack_max",
    ),
];

#[test]
fn faults_of_the_container_are_told_and_mended() {
    suffer_all(&Lab::new(None, "nftables"), OF_THE_CONTAINER, "1-container");
}

#[test]
fn faults_of_the_host_are_told_and_mended() {
    suffer_all(&Lab::new(None, "nftables"), OF_THE_HOST, "2-host");
}

/// Of our rules, and what is in their way.
const OF_THE_RULES: &[Fault] = &[
    told(
        "masquerading flushed",
        "nft delete table inet cni_plugins_masquerade",
        "error: container c1: no rule masquerades 10.9.0.2",
    ),
    told(
        "port maps flushed",
        "nft flush chain ip cni_hostport hostports",
        "error: port 8081/tcp: no rule leads it to container c1",
    ),
    told(
        "the way to port maps flushed",
        "nft flush chain ip cni_hostport prerouting",
        "error: port 8081/udp: no chain leads what comes from outside to chain hostports, which has its rule for container c1",
    ),
    told(
        "the way to port maps flushed for the host",
        "nft flush chain ip6 cni_hostport output",
        "error: port 8081/tcp: no chain leads what the host itself sends there to chain hostports",
    ),
    told(
        "the way to masquerading flushed",
        "nft flush chain inet cni_plugins_masquerade postrouting",
        "error: container c1: no packet comes to the rule that masquerades 10.9.0.2",
    ),
    told(
        "a rule that drops the subnet",
        "nft add table inet fw && nft 'add chain inet fw f { type filter hook forward priority 0; }' && \
         nft add rule inet fw f ip saddr 10.9.0.0/29 drop",
        "of chain inet fw f drops what container c1 sends to the outside (10.9.0.2)",
    ),
    told(
        "a rule that drops what is new to the bridge",
        "nft add rule inet fw f oifname br1 ct state new drop",
        "of chain inet fw f drops what comes for the published ports of container c1 (10.9.0.2)",
    ),
    told(
        "a rule of iptables that rejects a container",
        "iptables-nft -A FORWARD -s 10.9.0.2 -j REJECT",
        "of chain ip filter FORWARD drops what container c1 sends to the outside (10.9.0.2)",
    ),
    mended(
        "policy DROP for what is forwarded",
        "iptables-nft -P FORWARD DROP",
        "error: host: the policy of chain ip filter FORWARD drops what container c1 sends to the outside (10.9.0.2)",
        "iptables-nft -P FORWARD ACCEPT",
    ),
    mended(
        "a newer container with the same port",
        "nft list table ip cni_hostport > /run/t && \
         nft insert rule ip cni_hostport hostports tcp dport 8081 dnat to 10.9.0.3:80 comment c2",
        "error: port 8081/tcp: it leads to container c2 and not to container c1",
        "nft delete table ip cni_hostport && nft -f /run/t",
    ),
    told(
        "a flow to a container that is gone",
        "conntrack -I -p udp -s 198.51.100.2 -d 192.0.2.1 --sport 4000 --dport 8081 --reply-src 10.9.0.5 \
         --reply-dst 198.51.100.2 --reply-port-src 53 --reply-port-dst 4000 -t 300 2>&1",
        "error: port 8081/udp: a flow that the kernel remembers leads to 10.9.0.5 and not to container c1",
    ),
    mended(
        "a process on a published port",
        "nc -lk 8081 </dev/null >/dev/null 2>&1 & echo $! > /run/pid; \
         for i in $(seq 100); do ss -ltn | grep -q :8081 && break; sleep 0.05; done",
        "warning: port 8081/tcp: a process on the host listens on it too",
        "kill $(cat /run/pid); for i in $(seq 100); do ss -ltn | grep -q :8081 || break; sleep 0.05; done",
    ),
];

#[test]
fn faults_of_the_rules_are_told_and_mended() {
    suffer_all(&Lab::new(None, "nftables"), OF_THE_RULES, "3-rules");
}

/// Rules of others, at every hook.
const OF_OTHERS: &[Fault] = &[
    told(
        "what lets pass only what answers",
        "iptables-nft -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT && iptables-nft -A FORWARD -i br1 -j DROP",
        "of chain ip filter FORWARD drops what container c1 sends to the outside (10.9.0.2)",
    ),
    told(
        "a set of addresses that are dropped",
        "iptables-nft -F FORWARD && nft 'add table inet fw; add chain inet fw f { type filter hook forward priority 0; }; \
         add set inet fw s { type ipv4_addr; flags interval; elements = { 10.8.0.0-10.8.255.255, 10.9.0.0/30 }; }; \
         add rule inet fw f ip saddr @s drop'",
        "of chain inet fw f drops what container c1 sends to the outside (10.9.0.2)",
    ),
    told(
        "a verdict for an address and a port",
        "nft add rule inet fw f ip daddr . tcp dport vmap '{ 10.9.0.2 . 80 : drop, 10.9.0.7 . 80 : accept }'",
        "of chain inet fw f drops what comes for the published ports of container c1 (10.9.0.2)",
    ),
    mended(
        "a policy, and verdicts by state",
        "nft 'add chain inet fw p { type filter hook forward priority 5; policy drop; }' && \
         nft add rule inet fw p ct state vmap '{ established : accept, related : accept, invalid : drop }'",
        "error: host: the policy of chain inet fw p drops what container c1 sends to the outside (10.9.0.2)",
        "nft delete chain inet fw p",
    ),
    told(
        "a policy before routing",
        "nft 'add chain inet fw y { type filter hook prerouting priority 5; policy drop; }' && nft add rule inet fw y iifname up0 accept",
        "error: host: the policy of chain inet fw y drops what container c1 sends to the outside (10.9.0.2)",
    ),
    told(
        "dropped before it is routed",
        "nft 'add chain inet fw r { type filter hook prerouting priority raw; }' && nft add rule inet fw r iif br1 drop",
        "of chain inet fw r drops what container c1 sends to the outside (10.9.0.2)",
    ),
    told(
        "dropped as it comes for a published port",
        "nft add rule inet fw r iifname up0 tcp dport 8081 drop",
        "of chain inet fw r drops what comes for the published ports of container c1 (10.9.0.2)",
    ),
    told(
        "the container's port closed",
        "nft add rule inet fw f ip daddr 10.9.0.2 tcp dport 80-90 drop",
        "of chain inet fw f drops what comes for the published ports of container c1 (10.9.0.2)",
    ),
    told(
        "dropped after it is routed",
        "nft 'add chain inet fw o { type filter hook postrouting priority 0; }' && nft add rule inet fw o oifname up* ip saddr 10.9.0.0/29 drop",
        "of chain inet fw o drops what container c1 sends to the outside (10.9.0.2)",
    ),
    told(
        "dropped as it comes from the bridge",
        "nft 'add table bridge fw; add chain bridge fw i { type filter hook input priority 0; }' && nft add rule bridge fw i iifname END1 drop",
        "of chain bridge fw i drops what container c1 sends to the outside (10.9.0.2)",
    ),
    told(
        "dropped between neighbours",
        "nft 'add chain bridge fw f { type filter hook forward priority 0; }' && nft add rule bridge fw f ip saddr 10.9.0.2 drop",
        "of chain bridge fw f drops what container c1 sends to others on br1 (10.9.0.2)",
    ),
    told(
        "frames between neighbours taken through the rules for packets",
        "{ test -e /proc/sys/net/bridge || modprobe br_netfilter; } && sysctl -qw net.bridge.bridge-nf-call-iptables=1 && nft add rule inet fw f iifname br1 oifname br1 drop",
        "drops what container c1 sends to others on br1, as net.bridge.bridge-nf-call-iptables is 1 (10.9.0.2)",
    ),
    mended(
        "dropped as it comes from the device",
        "nft \"add table netdev fw; add chain netdev fw i { type filter hook ingress device END1 priority 0; policy drop; }\"",
        "error: host: the policy of chain netdev fw i drops what container c1 sends to the outside (10.9.0.2)",
        "nft delete chain netdev fw i",
    ),
    told(
        "dropped as it goes to the device",
        "nft \"add chain netdev fw e { type filter hook egress device END1 priority 0; }\" && nft add rule netdev fw e ip daddr 10.9.0.2 counter drop",
        "of chain netdev fw e drops what comes for the published ports of container c1 (10.9.0.2)",
    ),
    told(
        "dropped in the container",
        "ip netns exec c1 iptables-nft -A INPUT -m conntrack --ctstate NEW -j DROP",
        "of chain ip filter INPUT drops what comes for the published ports of container c1 (10.9.0.2)",
    ),
    told(
        "policy DROP in the container",
        "ip netns exec c1 iptables-nft -P OUTPUT DROP",
        "warning: container c1: inside, the policy of chain ip filter OUTPUT drops what container c1 sends to the outside",
    ),
    told(
        "a published port led elsewhere",
        "nft 'add table ip x; add chain ip x p { type nat hook prerouting priority -150; }; add rule ip x p tcp dport 8081 dnat to 192.0.2.7:99'",
        "error: port 8081/tcp: the rule with handle 2 of chain ip x p leads what comes from outside to 192.0.2.7, and not to container c1",
    ),
    told(
        "a published port led elsewhere on the host",
        "nft 'add chain ip x o { type nat hook output priority -150; }; add rule ip x o udp dport 8081 redirect to :99'",
        "of chain ip x o leads what the host itself sends there to the host itself, and not to container c1",
    ),
    mended(
        "another source than the host's",
        "nft 'add chain ip x s { type nat hook postrouting priority 50; }; add rule ip x s ip saddr 10.9.0.0/29 snat to 203.0.113.9'",
        "of chain ip x s gives what container c1 sends to the outside (10.9.0.2) the address 203.0.113.9",
        "nft delete table ip x",
    ),
];

#[test]
fn rules_of_others_are_told_at_every_hook() {
    suffer_all(&Lab::new(None, "nftables"), OF_OTHERS, "6-others");
}

/// On a node of one variant of iptables.
const OF_IPTABLES: &[Fault] = &[
    mended(
        "policy DROP of iptables",
        "IPT -P FORWARD DROP",
        "filter FORWARD drops what container c1 sends to the outside (10.9.0.2)",
        "IPT -P FORWARD ACCEPT",
    ),
    told(
        "a rule of iptables that drops what comes for a container",
        "IPT -A FORWARD -p tcp -j ACCEPT && IPT -A FORWARD -d 10.9.0.0/24 -p udp -m multiport --dports 50:60 -j DROP",
        "filter FORWARD drops what comes for the published ports of container c1 (10.9.0.2)",
    ),
    told(
        "a rule of table raw",
        "IPT -t raw -A PREROUTING -i up0 -m addrtype --dst-type LOCAL -p tcp --dport 8081 -j DROP",
        "raw PREROUTING drops what comes for the published ports of container c1 (10.9.0.2)",
    ),
    told(
        "the way to CNI-HOSTPORT-DNAT flushed",
        "IPT -t nat -F PREROUTING",
        "error: port 8081/tcp: no chain leads what comes from outside to chain CNI-HOSTPORT-DNAT, which has its rule for container c1",
    ),
    told(
        "another DNAT in front",
        "IPT -t nat -I PREROUTING -p tcp --dport 8081 -j DNAT --to-destination 192.0.2.7:99",
        "nat PREROUTING leads what comes from outside to 192.0.2.7, and not to container c1",
    ),
    told(
        "another SNAT in front",
        "IPT -t nat -I POSTROUTING -s 10.9.0.2 -j SNAT --to-source 203.0.113.9",
        "nat POSTROUTING gives what container c1 sends to the outside (10.9.0.2) the address 203.0.113.9",
    ),
    told(
        "no masquerading for the subnet",
        "IPT -t nat -I POSTROUTING -s 10.9.0.0/29 -j ACCEPT",
        "nat POSTROUTING lets what container c1 sends to the outside (10.9.0.2) pass before it is masqueraded",
    ),
    mended(
        "both variants of iptables",
        "OTHER -A FORWARD -j ACCEPT",
        "warning: host: both variants of iptables have rules: iptables-legacy ",
        "OTHER -F FORWARD",
    ),
];

#[test]
fn faults_of_both_variants_of_iptables_are_told_and_mended() {
    for backend in ["iptables-nft", "iptables-legacy"] {
        let test = || {
            let mut lab = Lab::new(None, backend);
            // Where both are in use, both can be looked at.
            lab.network.path += ":/usr/sbin";
            suffer_all(&lab, OF_IPTABLES, backend);
        };
        std::thread::scope(|scope| scope.spawn(test).join().unwrap());
    }
}

#[test]
fn a_table_that_cannot_be_read_is_a_doubt() {
    let lab = Lab::new(None, "nftables");
    lab.node.sh("iptables-legacy -P FORWARD DROP");
    let output = lab.cnitool(&["doctor"]);
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(output.stderr.contains("iptables-legacy-save"), "{output:?}");
}

#[test]
fn faults_of_the_node_are_told_and_mended() {
    suffer_all(&Lab::new(None, "nftables"), OF_THE_NODE, "4-node");
}

/// What only packets show.
const OF_PROBES: &[Fault] = &[
    probed(
        "nothing listens in the container",
        "kill $(cat /run/pid-c1)",
        "warning: port 8081/tcp: nothing listens at 10.9.0.2:80 in container c1",
        SERVE,
    ),
    probed(
        "somebody else has the container's address",
        "ip netns add f && ip link add f0 type veth peer name f1 netns f && ip link set f0 master br1 up && \
         ip -n f link set f1 address 02:00:00:00:00:09 up && ip -n f addr add 10.9.0.2/29 dev f1",
        "error: container c1: 02:00:00:00:00:09 answers for 10.9.0.2 too, which is eth0's",
        "ip link del f0 && ip netns del f",
    ),
    probed(
        "somebody else has the gateway's address",
        "ip netns add f && ip link add f0 type veth peer name f1 netns f && ip link set f0 master br1 up && \
         ip -n f link set f1 address 02:00:00:00:00:09 up && ip -n f addr add 10.9.0.1/29 dev f1",
        "error: gateway 10.9.0.1: 02:00:00:00:00:09 answers for 10.9.0.1 too, which is br1's",
        "ip link del f0 && ip netns del f",
    ),
    probed(
        "a rule in the container rejects",
        "ip netns exec c1 iptables-nft -A INPUT -p tcp --dport 80 -m ttl --ttl-gt 1 -j REJECT --reject-with tcp-reset",
        "error: port 8081/tcp: connections from the host to 10.9.0.2:80 in container c1 are refused, although something listens there",
        "ip netns exec c1 iptables-nft -F INPUT",
    ),
    probed(
        "a published port led astray",
        "nft add table ip x && nft 'add chain ip x o { type nat hook output priority -150; }' && \
         nft add rule ip x o tcp dport 8081 dnat to 10.9.0.2:99",
        "error: port 8081/tcp: connections from the host to 192.0.2.1:8081 are refused, and 10.9.0.2:80 in container c1 accepts them",
        "nft delete table ip x",
    ),
    probed(
        "frames of a container choked",
        "tc qdisc add dev END1 root tbf rate 8bit burst 10 latency 1ms",
        "error: container c1: nothing gets through between 10.9.0.2 and its gateway 10.9.0.1",
        "tc qdisc del dev END1 root; ip -n c1 neighbour flush dev eth0",
    ),
    probed(
        "containers kept from the outside",
        "nft add table ip x && nft 'add chain ip x p { type filter hook postrouting priority 0; }' && \
         nft add rule ip x p oifname up0 ip ttl 63 drop",
        "warning: container c1: 192.0.2.9, the next hop through up0, answers the host and not 10.9.0.2",
        "nft delete table ip x",
    ),
    probed(
        "gateway that answers no ARP",
        "sysctl -qw net.ipv4.conf.all.arp_ignore=8",
        ": gateway 10.9.0.1 does not answer ARP",
        "sysctl -qw net.ipv4.conf.all.arp_ignore=0 && ip -n c1 neigh flush all && ip -n c2 neigh flush all",
    ),
];

/// A server in each container, as long as nobody ends it, and a minute at most.
const SERVE: &str = "for c in c1 c2; do \
     { ip netns exec $c timeout 60 nc -lk 80 </dev/null >/dev/null 2>&1 & echo $! > /run/pid-$c; }; done; \
     for c in c1 c2; do for i in $(seq 100); do ip netns exec $c ss -ltn | grep -q :80 && break; sleep 0.05; done; done";

#[test]
fn packets_show_what_nothing_else_does() {
    let lab = Lab::new(None, "nftables");
    lab.node.sh(SERVE);
    lab.silent(&["doctor", "--probe"], "with servers");
    suffer_all(&lab, OF_PROBES, "5-probes");
    lab.silent(&["doctor", "--probe", "net1"], "with servers");
    lab.node.sh("kill $(cat /run/pid-c1 /run/pid-c2)");
}

/// Injects them one after the other.
#[track_caller]
fn suffer_all(lab: &Lab, faults: &[Fault], table: &str) {
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    for fault in faults {
        match lab.suffer(fault) {
            Ok(line) => rows.push([fault.name.to_owned(), line]),
            Err(failure) => failures.push(failure),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    publish(table, &rows);
}

/// Writes a table of faults and lines to `$DOCTOR_TABLES`, if that names a directory.
fn publish(name: &str, rows: &[[String; 2]]) {
    let Some(directory) = std::env::var_os("DOCTOR_TABLES") else {
        return;
    };
    let rows: Vec<String> = rows
        .iter()
        .map(|[fault, line]| format!("| {fault} | `{line}` |\n"))
        .collect();
    fs::write(PathBuf::from(directory).join(name), rows.concat()).unwrap();
}

#[test]
fn a_healthy_node_has_no_finding() {
    for plugins in [None, Some(REFERENCE)] {
        for backend in BACKENDS {
            // Debian's reference plugins are older than those that know nftables.
            if plugins.is_some() && backend == "nftables" {
                continue;
            }
            let test = || {
                let lab = Lab::new(plugins, backend);
                lab.healthy(backend);
                // A node in a namespace need not lead anywhere.
                lab.node
                    .sh("ip route del default && ip -6 route del default");
                lab.healthy("without a way out");
            };
            std::thread::scope(|scope| scope.spawn(test).join().unwrap());
        }
    }
}

/// What Docker, kube-proxy and podman have on a healthy node.
const FOREIGN: &str = "\
*nat
:DOCKER - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -j KUBE-POSTROUTING
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 9000 -j DNAT --to-destination 172.17.0.2:80
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j DNAT --to-destination 192.0.2.1:6443
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -j KUBE-FORWARD
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-USER -i br1 -j ACCEPT
-A DOCKER-USER -o br1 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
";

/// What a careful operator has on a healthy node: only what is known may pass, marks, and
/// nothing with a source that is not the host's.
const HARDENED: &str = "nft 'add table inet hard; \
     add set inet hard bogons { type ipv4_addr; flags interval; elements = { 198.51.100.0/24, 203.0.113.0/24, 240.0.0.0/4 }; }; \
     add set inet hard open { type ifname . inet_service; elements = { up0 . 80, up0 . 53 }; }; \
     add set inet hard ranges { type ipv4_addr . inet_service; flags interval; elements = { 10.9.0.0/24 . 1-100 }; }; \
     add chain inet hard early { type filter hook prerouting priority raw; }; \
     add rule inet hard early iifname up0 ip saddr @bogons drop; \
     add rule inet hard early fib saddr . iif oif missing drop; \
     add chain inet hard marks { type filter hook prerouting priority mangle; }; \
     add rule inet hard marks iifname { br1, up0 } meta mark set 0x7; \
     add chain inet hard forward { type filter hook forward priority -5; policy drop; }; \
     add rule inet hard forward ct state established,related accept; \
     add rule inet hard forward meta mark != 0x7 drop; \
     add rule inet hard forward ip saddr 10.9.0.0/29 limit rate over 9000/second drop; \
     add rule inet hard forward iifname br1 accept; \
     add rule inet hard forward meta l4proto { tcp, udp } iifname . th dport != @open drop; \
     add rule inet hard forward ip protocol tcp ip daddr . tcp dport != @ranges drop; \
     add rule inet hard forward oifname br1 accept; \
     add chain inet hard out { type nat hook postrouting priority 90; }; \
     add rule inet hard out oifname up0 masquerade; \
     add table netdev hard; \
     add chain netdev hard e { type filter hook egress device up0 priority 0; }; \
     add rule netdev hard e ip saddr != 192.0.2.1 drop'";

/// The host is not among those for whom such a port is.
#[test]
fn ports_that_are_not_for_everybody_are_no_fault() {
    let lab = Lab::new(None, "nftables");
    lab.node.sh(SERVE);
    let list = json!({"cniVersion": "1.0.0", "name": "net2", "plugins": [
        {"type": "bridge", "bridge": "br2", "isDefaultGateway": true,
         "ipMasq": true, "ipMasqBackend": "nftables",
         "ipam": {"type": "host-local", "subnet": "10.8.0.0/24"}},
        {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true},
         "conditionsV4": ["ip", "saddr", "203.0.113.0/24"]},
    ]});
    fs::write(lab.conf.join("20-net2.conflist"), list.to_string()).unwrap();
    let netns = lab.node.netns("c3");
    let caps =
        json!({"portMappings": [{"hostPort": 8083, "containerPort": 80, "protocol": "tcp"}]});
    let caps = caps.to_string();
    let added = lab.cnitool(&["add", "net2", &netns, "--id", "c3", "--cap", &caps]);
    assert!(added.ok, "{added:?}");
    lab.node.sh(&SERVE.replace("c1 c2", "c3"));
    assert!(
        !lab.node
            .succeeds("socat -u OPEN:/dev/null TCP:192.0.2.1:8083,connect-timeout=1 2>/dev/null")
    );
    lab.silent(&["doctor", "--probe"], "with a port for others");
    lab.node
        .sh("kill $(cat /run/pid-c1 /run/pid-c2 /run/pid-c3)");
}

#[test]
fn the_rules_of_others_are_no_fault() {
    for backend in ["iptables-nft", "iptables-legacy"] {
        let test = || {
            let lab = Lab::new(None, backend);
            let file = lab.node.dir.path().join("foreign");
            fs::write(&file, FOREIGN).unwrap();
            let restore = format!("{backend}-restore --noflush {}", file.display());
            lab.node.sh(&restore);
            lab.node.sh(
                "ip link add docker0 type bridge && ip addr add 172.17.0.1/16 dev docker0 && \
                 ip link set docker0 up && nft add table inet netavark && \
                 nft 'add chain inet netavark FORWARD { type filter hook forward priority filter; }' && \
                 nft add rule inet netavark FORWARD ct state invalid drop && \
                 nft add rule inet netavark FORWARD ip daddr 10.88.0.0/16 drop",
            );
            lab.node.sh(
                "nft 'add table inet host; add chain inet host ways; \
                 add rule inet host ways iifname vmap { br1 : accept, up0 : accept }; \
                 add chain inet host forward { type filter hook forward priority 10; policy drop; }; \
                 add rule inet host forward ct state vmap { established : accept, untracked : accept, new : jump ways }'",
            );
            lab.node.sh(HARDENED);
            lab.healthy(backend);
            // Who publishes a port may keep it from others.
            lab.node.sh(&format!(
                "cp $(readlink -f $(command -v nc)) {0}/conmon && \
                 {{ {0}/conmon -lk 8081 </dev/null >/dev/null 2>&1 & echo $! > /run/pid; }} && \
                 for i in $(seq 100); do ss -ltn | grep -q :8081 && break; sleep 0.05; done",
                lab.node.dir.path().display()
            ));
            lab.healthy("with a kept port");
            lab.node.sh("kill $(cat /run/pid)");
            lab.node.sh(SERVE);
            lab.silent(&["doctor", "--probe"], "with servers");
            lab.node.sh("kill $(cat /run/pid-c1 /run/pid-c2)");
        };
        std::thread::scope(|scope| scope.spawn(test).join().unwrap());
    }
}

#[test]
fn the_exit_status_tells_whether_it_could_look() {
    let lab = Lab::new(None, "nftables");
    let unknown = lab.cnitool(&["doctor", "nothing-like-it"]);
    assert_eq!(unknown.code, Some(2), "{unknown:?}");
    assert!(
        unknown.stderr.contains("no network and no container"),
        "{unknown:?}"
    );
    lab.node.sh("ip -n c1 link set eth0 down");
    for (word, code) in [("c1", 1), ("c2", 0), ("net1", 1)] {
        let output = lab.cnitool(&["doctor", word]);
        assert_eq!(output.code, Some(code), "{word}: {output:?}");
    }
    let shown = lab.cnitool(&["doctor", "c1", "--json"]);
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["doubts"], json!([]));
    let finding = &shown["findings"][0];
    assert_eq!(finding["severity"], "error", "{shown:#}");
    assert_eq!(finding["object"], "container c1");
    assert_eq!(finding["what"], "eth0 is down");
    for key in ["why", "mend"] {
        assert!(!finding[key].as_str().unwrap().is_empty(), "{shown:#}");
    }
}

/// Where a network is to use a tool that is not there, doctor says so, and what helps.
#[test]
fn a_missing_iptables_and_a_full_range_are_told_as_what_they_are() {
    let node = Node::new();
    let conf = node.dir.path().join("net.d");
    fs::create_dir(&conf).unwrap();
    let doctor = |bridge: &Value, path: &str| {
        let list = json!({"cniVersion": "1.0.0", "name": "n", "plugins": [bridge]});
        let file = conf.join("n.conflist");
        fs::write(&file, list.to_string()).unwrap();
        let mut command = Command::new(node.bin.join("cnitool"));
        command.args(["doctor", "n"]).env("CNI_PATH", &node.bin);
        command.env("NETCONFPATH", &conf).env("PATH", path);
        run(&mut command, "").stdout
    };
    let mut bridge = json!({
        "type": "bridge", "bridge": "br0", "ipMasq": true, "ipMasqBackend": "iptables",
        "ipam": {"type": "host-local", "ranges": [[
            {"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.2", "rangeEnd": "10.9.0.2"}]]},
    });
    let said = "plugin bridge is not available: rules cannot be made with iptables";
    let told = doctor(&bridge, "/nowhere");
    assert!(told.contains(said), "{told}");
    assert!(
        told.contains("set \"ipMasqBackend\": \"nftables\""),
        "{told}"
    );
    let usual = "/usr/sbin:/usr/bin:/sbin:/bin";
    assert!(!doctor(&bridge, usual).contains(said));
    bridge["ipMasqBackend"] = json!("nftables");
    assert!(!doctor(&bridge, "/nowhere").contains(said));

    let c1 = node.netns("c1");
    node.cnitool(&conf, &["add", "n", &c1]).json();
    let told = doctor(&bridge, usual);
    assert!(
        told.contains("all 1 addresses of 10.9.0.2-10.9.0.2 are taken"),
        "{told}"
    );
    assert!(
        told.contains("add a range, or a larger one: all are in use"),
        "{told}"
    );
    node.sh("ip netns del c1");
    let told = doctor(&bridge, usual);
    assert!(
        told.contains("free leaked leases with `cnitool gc n`"),
        "{told}"
    );
}
