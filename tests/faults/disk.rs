//! Disks that are full or read-only, and files that are not what we wrote.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::lab::{CHAIN, Container, LEASES, Lab, at_once};
use crate::table::{Row, ensure};
use crate::tables::Holder;

/// ADD of the chain as a runtime does it: DEL of all when one fails. A failed ADD says what
/// could not be written, with code 5, and has undone its own part.
fn try_add(lab: &Lab, container: &Container) -> Result<Option<Value>, String> {
    let mut result = Value::Null;
    for plugin in CHAIN {
        let before = lab.state_with(container);
        let output = lab.run(plugin, "ADD", container, &result);
        if output.ok {
            result = output.json();
            continue;
        }
        let (code, msg, details) = output.error();
        ensure(
            code == 5 && !msg.is_empty() && details.contains('/'),
            || format!("{output:?}"),
        )?;
        lab.state_with(container).is_as(&before)?;
        lab.del(&CHAIN, container, &Value::Null)?;
        return Ok(None);
    }
    lab.answers(container, &result)?;
    Ok(Some(result))
}

/// Mounts a file system of our own at the places where state is kept.
fn mount_state(lab: &Lab, options: &str) {
    for dir in ["/var/lib/cni", "/run/cni"] {
        lab.node.sh(&format!(
            "mkdir -p {dir} && mount -t tmpfs -o {options} tmpfs {dir}"
        ));
    }
}

/// docs/requirements.md#r-04. Invariant: on a disk that fills up, ADD fails with code 5 and leaves nothing, those
/// who have an address keep it, and DEL of all succeeds and leaves nothing, though there is
/// still no room.
#[test]
fn full() {
    let row = Row::new("disk full: file systems of 4 to 64 KiB, few inodes");
    for options in [
        "size=4k",
        "size=8k",
        "size=16k",
        "size=64k",
        "nr_inodes=4",
        "nr_inodes=6",
        "nr_inodes=9",
        "nr_inodes=12",
    ] {
        let lab = Lab::new("nftables");
        let all: Vec<_> = (0..10)
            .map(|number| lab.container(&format!("c{number}"), 8000 + number))
            .collect();
        let first = lab.add(&CHAIN, &all[0]);
        lab.del(&CHAIN, &all[0], &first).unwrap();
        lab.node.sh("rm -r /var/lib/cni /run/cni");
        mount_state(&lab, options);
        let before = lab.state();
        let mut alive = Vec::new();
        for container in &all {
            match try_add(&lab, container) {
                Ok(Some(result)) => alive.push((container, result)),
                failed => {
                    row.count(failed.map_or_else(
                        |error| Err(format!("{options}: {error}")),
                        |_nothing| Ok(()),
                    ));
                }
            }
        }
        for (container, result) in &alive {
            row.note(lab.answers(container, result));
        }
        for (container, result) in &alive {
            row.note(lab.del(&CHAIN, container, result));
        }
        row.note(lab.state().is_as(&before));
    }
}

/// Invariant: while the data directory is read-only ADD fails with code 5 and leaves
/// nothing, and a live container is not disturbed; DEL either frees everything or says what
/// it cannot, and once the directory can be written again, leaves nothing.
#[test]
fn read_only() {
    let row = Row::new("data directory read-only");
    let lab = Lab::new("nftables");
    let (alive, new) = (lab.container("alive", 8001), lab.container("new", 8002));
    mount_state(&lab, "size=1m");
    let before = lab.add(&CHAIN, &alive);
    lab.del(&CHAIN, &alive, &before).unwrap();
    let before = lab.state();
    let result = lab.add(&CHAIN, &alive);
    let remount = |how: &str| {
        for dir in ["/var/lib/cni", "/run/cni"] {
            lab.node.sh(&format!("mount -o remount,{how} {dir}"));
        }
    };
    remount("ro");
    let outcome = try_add(&lab, &new);
    row.count(outcome.and_then(|added| ensure(added.is_none(), || "it is writable".into())));
    row.note(lab.works("bridge", &alive, &result));
    row.note(lab.is_mapped(&alive));
    for plugin in CHAIN.iter().rev() {
        let output = lab.run(plugin, "DEL", &alive, &result);
        row.count(ensure(output.ok || output.error().0 == 5, || {
            format!("DEL of {plugin}: {output:?}")
        }));
    }
    remount("rw");
    row.note(lab.del(&CHAIN, &alive, &result));
    row.note(lab.state().is_as(&before));
}

/// Every file that there is because of `container`, or of any.
fn owned() -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut dirs = vec![PathBuf::from("/var/lib/cni"), PathBuf::from("/run/cni")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                all.push(path);
            }
        }
    }
    all.sort();
    all
}

/// What a file can be found to hold instead of `whole`.
fn damages(whole: &[u8]) -> Vec<Vec<u8>> {
    let mut damages: Vec<Vec<u8>> = [0, 1, whole.len().saturating_sub(1)]
        .map(|length| whole[..length.min(whole.len())].to_vec())
        .into();
    damages.push(vec![0; 4096]);
    damages.push((0..=255).collect());
    damages.push(b"{\"some\": \"other program's\"}\n".to_vec());
    damages
}

/// docs/requirements.md#r-09 and docs/requirements.md#r-20. Invariant: with any one file of ours cut to 0, 1 or n-1 bytes, zeroed, or
/// holding something else, CHECK answers, ADD of another container succeeds with an address
/// that nobody alive has, DEL of all succeeds, and after a GC nothing is left.
#[test]
fn damaged_files() {
    let row = Row::new("each file of state truncated, zeroed, binary, foreign");
    let lab = Lab::new("nftables");
    let (keeper, victim, new) = (
        lab.container("keeper", 8001),
        lab.container("victim", 8002),
        lab.container("new", 8003),
    );
    let kept = lab.add(&CHAIN, &keeper);
    let before = lab.state();
    let mut number = 0;
    loop {
        let result = lab.add(&CHAIN, &victim);
        // The other container's files are another one's own.
        let files: Vec<_> = owned()
            .into_iter()
            .filter(|path| !before.has(path.to_str().unwrap()))
            .collect();
        let cases: Vec<_> = files
            .iter()
            .flat_map(|path| {
                // Text in place of a lease is how an operator sets its address aside.
                let is_lease = path.parent() == Some(Path::new("/var/lib/cni/networks/net1"));
                let damages = damages(&fs::read(path).unwrap()).into_iter();
                damages
                    .filter(move |damage| !(is_lease && damage.starts_with(b"{\"some")))
                    .map(|damage| (path.clone(), damage))
            })
            .collect();
        let Some((path, damage)) = cases.get(number) else {
            lab.del(&CHAIN, &victim, &result).unwrap();
            break;
        };
        fs::write(path, damage).unwrap();
        let outcome = || {
            for plugin in CHAIN {
                let output = lab.run(plugin, "CHECK", &victim, &result);
                ensure(output.ok || output.error().0 > 0, String::new)?;
            }
            let added = lab.add(&CHAIN, &new);
            for address in crate::lab::addresses(&added) {
                let taken = [&kept, &result]
                    .iter()
                    .any(|other| crate::lab::addresses(other).contains(&address));
                ensure(!taken, || format!("{address} twice"))?;
            }
            lab.answers(&new, &added)?;
            lab.del(&CHAIN, &victim, &result)?;
            lab.del(&CHAIN, &new, &added)?;
            lab.gc(&CHAIN, &[&keeper])?;
            lab.answers(&keeper, &kept)?;
            lab.state().is_as(&before)
        };
        row.count(outcome().map_err(|error| {
            let damage = String::from_utf8_lossy(damage);
            format!("{} holds {damage:?}: {error}", path.display())
        }));
        number += 1;
    }
}

/// Invariant: beside 10,000 leases of others 16 ADDs at once succeed with addresses of their
/// own, and after DEL the 10,000 are there and nothing else.
#[test]
fn ten_thousand_leases() {
    let row = Row::new("16 ADDs, then DELs, at once beside 10,000 leases");
    let lab = Lab::new("nftables");
    let dir = Path::new(LEASES).join("net1");
    fs::create_dir_all(&dir).unwrap();
    for number in 0..10_000_u32 {
        let (high, low) = (number >> 8, number & 255);
        let lease = dir.join(format!("10.200.{high}.{low}"));
        fs::write(lease, format!("other-{number}\r\neth0")).unwrap();
    }
    let all: Vec<_> = (0..16)
        .map(|number| lab.container(&format!("c{number}"), 8000 + number))
        .collect();
    let quiet = lab.add(&["bridge"], &all[0]);
    lab.del(&["bridge"], &all[0], &quiet).unwrap();
    let before = lab.state();
    let results = at_once(&all, |container| lab.add(&["bridge"], container));
    let mut seen = std::collections::BTreeSet::new();
    for (container, result) in all.iter().zip(&results) {
        let own = crate::lab::addresses(result)
            .into_iter()
            .all(|address| seen.insert(address));
        let own = ensure(own, || format!("twice: {result}"));
        row.count(own.and_then(|()| lab.answers(container, result)));
    }
    let pairs: Vec<_> = all.iter().zip(&results).collect();
    for outcome in at_once(&pairs, |(container, result)| {
        lab.del(&["bridge"], container, result)
    }) {
        row.count(outcome);
    }
    row.note(lab.state().is_as(&before));
}

/// Invariant: while another program keeps the lock of the leases, ADD and DEL end with code
/// 11 and name it, and ADD has made nothing; when it has died, whatever it held is free.
#[test]
fn the_lock_of_the_leases_is_taken() {
    let row = Row::new("another program keeps the lock of the leases, then is killed");
    let lab = Lab::new("nftables");
    let (one, two) = (lab.container("one", 8001), lab.container("two", 8002));
    let quiet = lab.add(&CHAIN, &one);
    lab.del(&CHAIN, &one, &quiet).unwrap();
    let before = lab.state();
    let result = lab.add(&CHAIN, &one);
    let lock = format!("{LEASES}/net1/lock");
    let holder = Holder::of(&lab.node, &lock);
    holder.keeps_out(&lab, &row, &two, (&one, &result));
    drop(holder);
    row.note(lab.del(&CHAIN, &one, &result));
    row.note(lab.state().is_as(&before));
    let again = lab.add(&CHAIN, &two);
    row.note(lab.answers(&two, &again));
    row.note(lab.del(&CHAIN, &two, &again));
    row.note(lab.state().is_as(&before));
}
