//! Many containers that come and go at the same time.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::chain;
use crate::report::Report;
use crate::stage::{Container, Stage};
use crate::{Contender, Effort, Peers};

/// How many runtimes' threads there are.
const WORKERS: u16 = 32;

/// Measures the chain's operations per second.
pub fn measure(peers: &Arc<Peers>, effort: Effort, report: &mut Report) {
    report.progress(&format!("{WORKERS} workers"));
    let stage = Stage::new();
    let containers: Arc<Vec<Container>> =
        Arc::new(stage.run(|_| (1..=WORKERS).map(Container::new).collect()));
    for _ in 0..effort.turns {
        for who in Contender::ALL {
            if matches!(who, Contender::Floor(_)) {
                continue;
            }
            let (dir, containers) = (peers.dir(who).to_owned(), Arc::clone(&containers));
            let (per_second, failed) = stage.run(move |node| storm(node, &dir, who, &containers));
            report.operations(who).push(per_second);
            report.failed(who, failed);
        }
    }
}

/// Every worker ADDs and DELs its container, once. Answers operations per second, and how
/// many ADDs or DELs failed, which are not counted as operations.
fn storm(
    node: &crate::common::Node,
    dir: &Path,
    who: Contender,
    containers: &[Container],
) -> (f64, u32) {
    let start = Instant::now();
    let backend = who.backend();
    let one = |container: &Container| {
        let added = chain::add(node, dir, backend, container);
        let result = added.as_ref().map(|(result, _)| result.clone());
        let deleted = chain::del(node, dir, backend, container, &result.unwrap_or_default());
        u32::from(added.is_ok()) + u32::from(deleted.is_ok())
    };
    let done: u32 = std::thread::scope(|scope| {
        let workers: Vec<_> = containers
            .iter()
            .map(|container| scope.spawn(move || one(container)))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker"))
            .sum()
    });
    let per_second = f64::from(done) / start.elapsed().as_secs_f64();
    (per_second, 2 * u32::from(WORKERS) - done)
}
