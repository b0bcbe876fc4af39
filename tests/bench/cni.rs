//! `make bench`: what cnibox costs, beside the reference plugins and beside the floor
//! (`floor`), on nodes of its own and in turns, so that whatever else the machine does
//! troubles all alike. No ADD or DEL of one container is right behind another
//! (`measure::settle`), whoever's it is.
//!
//! `--quick` takes a minute on a quiet machine and fills the nodes less; everything takes
//! less than ten. A busy machine gets fewer rounds, and at last fewer containers. Needs root.
//! `--publish` puts the figures into README.md, and the plot beside this file.
//!
//! # Where the time goes
//!
//! The budget of one process of the chain on an empty node, nftables backend, counted with
//! `strace -f` and `wait4(2)`; start and exit alone, as VERSION shows, are 0.35 ms of each.
//!
//! | | messages to the kernel | threads | processor time, ms | waits for the kernel |
//! | --- | --- | --- | --- | --- |
//! | bridge ADD | 22: 19 of links and addresses, 3 of rules | none | 2.6 | none |
//! | tuning ADD | 2 | none | 1.0 | none |
//! | portmap ADD | 14: 10 of rules | none | 1.3 | none |
//! | portmap DEL | 20: 16 of rules | 1 | 1.8 | none |
//! | tuning DEL | 2 | none | 0.8 | none |
//! | bridge DEL | 12: 5 of rules | 1 | 2.2 | 8 to 20 ms until the veth is gone |
//!
//! bridge ADD is 0.35 ms of start and exit, 0.2 ms of configuration, lease and result, 1.1 ms
//! of links and addresses, 0.5 of that for the pair, and 0.2 ms of rules. With iptables' nft
//! variant neither ADD nor DEL starts anything, but for the first container on a node: there
//! bridge ADD and portmap ADD each start one `iptables-restore` beside, 2 to 3 ms of processor
//! time.
//!
//! ADD is bound by what the kernel does for a veth pair, its sysctls and the rules; DEL by the
//! grace periods (RCU) of the link, beside which everything else is done. Rules that are
//! deleted have a grace period, too, which a tool of iptables waits for as it ends; nobody
//! waits for it here, whichever backend.
//!
//! DEL waits in one place (`perf record -e sched:sched_switch -g`): `netdev_run_todo` calls
//! `rcu_barrier` when the link has gone and before its memory does. All that was handed to RCU
//! until then must be over: the grace period under way, as there always is one when a process
//! has just ended, and the next, which is the link's. Each ends with the second or third tick
//! of the clock, and a tick runs what waits for it: with 250 Hz 8, 12, 16 or 20 ms in all, and
//! longer where others on the machine wait for the same, who have their turn. It cannot be less.
//! `rtnl_dellink` makes the thread wait that asked; a link that moves to another namespace waits
//! for the same; a process is not over before all its threads, and another one that waited in its
//! place would outlive DEL. The rest, 4 to 6 ms, is three processes.
//!
//! What grows with the containers that are alive is the kernel's. ADD beside 1,000 of them, one
//! system call after the other (`strace -T`), takes longer by
//!
//! - 8 ms for the broadcast that announces the addresses (`inetdev_send_gratuitous_arp`):
//!   `br_flood` clones it for every port, and every container's `arp_process` looks up a route,
//!   all with cold caches;
//! - 2 ms to become a port and to be set up (`br_add_if`, `br_port_state_selection` and
//!   `__netdev_upper_dev_link` go through all ports);
//! - for rules, with nftables 0.4 ms in bridge ADD and 1.6 ms in portmap ADD, with iptables 3.5 ms
//!   in each: a table is validated, from its hooks through every jump, when a rule with a jump
//!   or a translation is added, and a chain is copied when it changes (`nft_table_validate`,
//!   `nf_tables_commit`). Layout and hooks are those of the reference. firewall ADD lists the
//!   chains that it adds to, 5 µs a rule.
//!
//! DEL lists the rules of the chains that it removes from, and the ports that are claimed: half of its 27 ms for a port beside
//! 1,000 others is the kernel's (`__nf_tables_dump_rules`). The tools of iptables, where
//! they are run, read the whole table for every change: 3 ms and more for each 200 containers.
//!
//! # What was tried
//!
//! Wall time on a machine that is busy with other work, medians of 30 ADDs and DELs in turn
//! with the binary before; processor time in brackets.
//!
//! - No thread to enter a namespace: nftables ADD 18 to 7 ms (6.3 to 4.9), five threads less.
//! - Rules of iptables' nft variant deleted without its tools: DEL 51 to 33 ms (13.9 to 5.1),
//!   beside 200 containers 85 to 50 ms (34 to 8).
//! - Addresses of one link asked for instead of all, a sysctl opened once, none where netlink
//!   tells, no IPv6 address for ports of the bridge: bridge ADD beside 200 containers (6.2 to
//!   4.5), together with the threads.
//! - Sysctls of one family looked up once, forwarding asked over netlink, `arp_notify` set with
//!   the message that sets the link up: of ten look-ups for an ADD three are left. With 1,000
//!   namespaces on the machine (13.0 to 9.0) on a node without containers, (18.3 to 13.8) on
//!   the one with them.
//! - Sysctls looked up in an instance of procfs of the process's own (`fsmount(2)`, 0.08 ms): a
//!   name below `/proc/sys/net` is looked up among those of all namespaces that an instance has
//!   shown to anybody (`__d_lookup`, `proc_sys_compare`), 1 µs for each, twice where the namespace
//!   is new; and each ADD left two more behind. With 2,000 namespaces on the machine, ADD on a
//!   node without containers (11.5 to 5.4), beside 1,000 (23.7 to 14.7).
//! - Ports of iptables' nft variant claimed in a set instead of listing who has which: portmap ADD
//!   beside 1,000 containers (16.0 to 4.8).
//! - Sockets that the kernel closes 16 to 32 ms after the process that had them, not 4 to 8
//!   (`netfilter::lingering`). Before, in half of all DELs it was closing those of ADD or of
//!   portmap DEL when bridge DEL came: it waits for the rules to be destroyed as it does, with
//!   the lock that it needs to delete a link (`nf_tables_netdev_event`), and the link's grace
//!   periods began when those of the rules were over. DEL right behind ADD with iptables, the
//!   quartiles of 60: 18, 25, 47 to 18, 22, 24 ms; with nftables 27, 33, 43 to 23, 27, 31 on a
//!   machine that was busier.
//! - Did not pay: announcing the addresses through a packet socket, with ARP replies, for which
//!   no receiver looks up a route. In a loop that takes 1.6 ms instead of 3.8 beside 1,000
//!   containers; but once, with cold caches, it saves less than 1 ms, and closing the socket
//!   (`packet_release`) waits for a grace period: bridge ADD 11 to 20 ms.
//! - Did not pay: `opt-level = 2` for everything. ADD (10.8 to 10.4), DEL beside 1,000 containers
//!   (44 to 41), for 1.4 MB more, which is over the limit.
//! - Did not pay: a binary that is not position-independent. 17 of 60 page faults and 0.03 ms
//!   less for each process, not a byte smaller, and its addresses known beforehand.
//! - Rules of iptables' nft variant added without its tools, as all versions of them read: beside
//!   the rules of 1,000 containers (23.3 to 11.1) for portmap ADD, (10.3 to 8.4) for bridge ADD.
//!   Ten thousand ports (0.83 to 0.67 s), of which the kernel has 0.48 for the 30,677 rules: for
//!   each of their expressions it looks through the names of all that there are.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::missing_docs_in_private_items,
    reason = "as in tests: what cannot be measured says so by panicking; doors are for the product"
)]

mod budgets;
mod chain;
#[path = "../common/mod.rs"]
mod common;
mod floor;
mod measure;
mod plot;
mod ports;
mod report;
mod sample;
mod single;
mod stage;
mod workers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chain::{Backend, Cost};
use common::Node;
use report::Report;
use sample::Sample;
use stage::{Container, Stage};

/// Seconds after which the kernel ends a run that hangs.
const LIMIT: u32 = 600;

/// Who does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contender {
    Reference,
    Floor(Backend),
    Cnibox(Backend),
}

impl Contender {
    /// Every one, in the order of their turns. This version of the reference knows
    /// iptables only.
    pub const ALL: [Self; 5] = [
        Self::Reference,
        Self::Floor(Backend::Iptables),
        Self::Cnibox(Backend::Iptables),
        Self::Floor(Backend::Nftables),
        Self::Cnibox(Backend::Nftables),
    ];

    fn backend(self) -> Backend {
        match self {
            Self::Reference => Backend::Iptables,
            Self::Floor(backend) | Self::Cnibox(backend) => backend,
        }
    }
}

impl std::fmt::Display for Contender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Reference => f.write_str("reference (iptables)"),
            Self::Floor(backend) => write!(f, "floor ({})", backend.word()),
            Self::Cnibox(backend) => write!(f, "cnibox ({})", backend.word()),
        }
    }
}

/// What ADD and DEL cost somebody, milliseconds.
#[derive(Debug, Default)]
pub struct Pair {
    pub add: Sample,
    pub del: Sample,
    /// Of both.
    pub cpu: Sample,
    /// Each process of ADD and DEL by its name.
    pub steps: BTreeMap<(&'static str, &'static str), Sample>,
}

impl Pair {
    fn push(&mut self, add: &Cost, del: &Cost) {
        self.add.push_time(add.wall());
        self.del.push_time(del.wall());
        self.cpu.push_time(add.cpu + del.cpu);
        for (command, cost) in [("ADD", add), ("DEL", del)] {
            let mut of_each = BTreeMap::<_, Duration>::new();
            for (name, took) in &cost.steps {
                *of_each.entry(*name).or_default() += *took;
            }
            for (name, took) in of_each {
                self.steps
                    .entry((command, name))
                    .or_default()
                    .push_time(took);
            }
        }
    }
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Containers that are alive beside the one that is measured, step by step.
    pub levels: &'static [u16],
    /// At each of these.
    pub rounds: u32,
    /// Of each single plugin.
    pub single_rounds: u32,
    /// ADD and DEL of each of the workers.
    pub turns: u32,
    /// Leases, for the look-up among many.
    pub leases: u32,
    /// Mapped ports of one container, step by step.
    pub ports: &'static [u16],
    /// Containers that come and go at once.
    pub at_once: u16,
    /// Rules of somebody else's.
    pub foreign: u32,
    /// How long the whole takes, about: when it is over, no more of the chains is begun.
    pub time: Duration,
}

const QUICK: Effort = Effort {
    levels: &[0, 200],
    rounds: 4,
    single_rounds: 5,
    turns: 1,
    leases: 10_000,
    ports: &[1000],
    at_once: 10,
    foreign: 2_000,
    time: Duration::from_secs(40),
};
const FULL: Effort = Effort {
    levels: &[0, 100, 300, 1000],
    rounds: 15,
    single_rounds: 25,
    turns: 3,
    leases: 60_000,
    ports: &[1000, 10_000],
    at_once: 50,
    foreign: 20_000,
    time: Duration::from_secs(450),
};

/// The directories of plugins.
#[derive(Debug, Clone)]
pub struct Peers {
    pub reference: PathBuf,
    pub cnibox: PathBuf,
}

impl Peers {
    fn dir(&self, who: Contender) -> &Path {
        match who {
            Contender::Cnibox(_) => &self.cnibox,
            _ => &self.reference,
        }
    }
}

/// ADD and DEL of `container` by `who`, neither of them right behind another.
fn round(node: &Node, peers: &Peers, who: Contender, container: &Container) -> (Cost, Cost) {
    let backend = who.backend();
    measure::settle();
    if let Contender::Floor(backend) = who {
        let (handles, add) = floor::add(backend, container);
        measure::settle();
        return (add, floor::del(backend, container, &handles));
    }
    let dir = peers.dir(who);
    let done = chain::add(node, dir, backend, container).and_then(|(result, add)| {
        measure::settle();
        Ok((add, chain::del(node, dir, backend, container, &result)?))
    });
    done.unwrap_or_else(|said| panic!("{who}: {said}"))
}

/// Containers on a node that cnibox has attached, so that there are `level` of them.
fn populate(node: &Node, peers: &Peers, backend: Backend, from: u16, level: u16) {
    for number in from..level {
        let container = Container::new(number + 1);
        let added = chain::add(node, &peers.cnibox, backend, &container);
        if let Err(said) = added {
            panic!("{said}");
        }
    }
}

/// The chain on an empty node, and on two that fill up: one with the rules of iptables,
/// one with those of nftables.
fn chains(peers: &Arc<Peers>, effort: Effort, start: Instant, report: &mut Report) {
    let empty = Stage::new();
    let filling = [Backend::Iptables, Backend::Nftables].map(|backend| (backend, Stage::new()));
    let everywhere = || std::iter::once(&empty).chain(filling.iter().map(|(_, stage)| stage));
    let turn = |stage: &Stage, who| {
        let peers = Arc::clone(peers);
        stage.run(move |node| {
            let measured = Container {
                id: "c0".into(),
                netns: "/run/netns/c0".into(),
                port: 9999,
            };
            round(node, &peers, who, &measured)
        })
    };
    for stage in everywhere() {
        stage.run(|_| drop(Container::new(0)));
        for who in Contender::ALL.into_iter().rev() {
            // The bridge, tables and chains that stay are not what is measured.
            turn(stage, who);
        }
    }
    let mut alive = 0;
    for &level in effort.levels {
        if level > 0 && start.elapsed() > effort.time {
            report.progress(&format!("no time is left for {level} containers"));
            break;
        }
        report.progress(&format!("chains beside {level} containers"));
        for (backend, stage) in &filling {
            let (peers, backend) = (Arc::clone(peers), *backend);
            stage.run(move |node| populate(node, &peers, backend, alive, level));
        }
        alive = level;
        for number in 0..effort.rounds {
            if number > 0 && start.elapsed() > effort.time {
                break;
            }
            for who in Contender::ALL {
                let (add, del) = turn(&empty, who);
                report.pair(who, None).push(&add, &del);
                let (_, stage) = filling
                    .iter()
                    .find(|(backend, _)| *backend == who.backend())
                    .expect("a node for each backend");
                let (add, del) = turn(stage, who);
                report.pair(who, Some(level)).push(&add, &del);
            }
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    nix::unistd::alarm::set(LIMIT);
    let start = Instant::now();
    let effort = if has("--quick") { QUICK } else { FULL };
    // As on a node: of a file that a linker wrote, which it does here and there, the kernel maps
    // fewer pages at once.
    let installed = tempfile::tempdir().expect("make a directory");
    let mut install = Command::new(common::binary());
    let install = install.arg("install").arg(installed.path());
    assert!(install.output().expect("run cnibox").status.success());
    let reference = std::env::var_os("BENCH_PEER").map_or_else(reference, PathBuf::from);
    let peers = Arc::new(Peers {
        reference,
        cnibox: installed.path().to_owned(),
    });
    let mut report = Report::new(&peers, has("--quick"));
    single::measure(&peers, effort, &mut report);
    workers::measure(&peers, effort, &mut report);
    ports::measure(&peers, effort, &mut report);
    budgets::measure(&peers, effort, &mut report);
    chains(&peers, effort, start, &mut report);
    report.took(start.elapsed());
    println!("{report}");
    let dir = report.write();
    println!("{}/{{report.json,cost.svg}}", dir.display());
    if has("--publish") {
        report.publish(&dir);
    }
    if has("--check") && !report.holds() {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Where Debian and Fedora put the reference plugins.
fn reference() -> PathBuf {
    ["/usr/lib/cni", "/usr/libexec/cni"]
        .into_iter()
        .map(PathBuf::from)
        .find(|dir| dir.join("host-local").exists())
        .expect("containernetworking-plugins, or BENCH_PEER: see `make bench`")
}
