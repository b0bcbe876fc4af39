//! `make bench`: what cnibox costs, beside the reference plugins and beside the floor
//! (`floor`), on nodes of its own and in turns, so that whatever else the machine does
//! troubles all alike. No ADD or DEL of one container is right behind another
//! (`measure::settle`), whoever's it is.
//!
//! `--quick` takes a minute on a quiet machine and fills the nodes less; everything takes
//! less than ten. A busy machine gets fewer rounds, and at last fewer containers. Needs root.
//! `--publish` puts the figures into docs/performance.md, and the plot beside this file.
//!
//! docs/performance.md says where the time goes, what bounds it, and what was tried.

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
