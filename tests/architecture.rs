//! The layers of `src/`, and the test that keeps them: which folder may use which, and no
//! circles of files. It reads the source as text; nothing is built or run.
//!
//! `docs/architecture.md` explains the table.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot do its work says so by panicking; doors are for the product"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A folder or file below `src/` with everything in it, and those that it may use beside
/// itself. What stands deeper has a row of its own, which then decides.
struct Room {
    name: &'static str,
    uses: &'static [&'static str],
}

/// From the top down.
const ROOMS: &[Room] = &[
    room(
        "",
        &["cli", "applets", "alias", "netfilter", "log", "cni", "text"],
    ),
    room("main", &[""]),
    room("alias", &["applets", "cli", "cni"]),
    room("docs", &["", "cli"]),
    room(
        "cli",
        &[
            "applets", "cnitool", "runtime", "cni", "fsutil", "log", "text",
        ],
    ),
    room(
        "fuzz",
        &[
            "applets",
            "cnitool",
            "plugins",
            "runtime",
            "netfilter",
            "cni",
            "net",
        ],
    ),
    room("applets", &["cnitool", "plugins", "runtime", "cni"]),
    room(
        "cnitool",
        &[
            "runtime",
            "netfilter",
            "netfilter/simulate",
            "cni",
            "net",
            "undo",
            "journal",
            "fsutil",
            "log",
            "hash",
            "shell",
            "text",
        ],
    ),
    room(
        "plugins",
        &[
            "netfilter",
            "cni",
            "net",
            "failure",
            "patience",
            "undo",
            "journal",
            "fsutil",
            "log",
            "hash",
            "shell",
            "text",
        ],
    ),
    room(
        "runtime",
        &[
            "netfilter",
            "cni",
            "net",
            "undo",
            "journal",
            "fsutil",
            "log",
            "hash",
            "shell",
            "text",
        ],
    ),
    room(
        "netfilter",
        &[
            "netfilter/simulate",
            "netfilter/iptables",
            "netfilter/nftables",
            "netfilter/firewalld",
            "netfilter/nf_tables",
            "netfilter/nfnetlink",
            "cni",
            "net",
            "failure",
            "patience",
            "fsutil",
            "log",
            "hash",
            "shell",
            "text",
        ],
    ),
    // Packets through rules, for doctor only: nothing else uses it.
    room(
        "netfilter/simulate",
        &[
            "netfilter",
            "netfilter/iptables",
            "netfilter/nftables",
            "netfilter/nf_tables",
            "netfilter/nfnetlink",
            "net",
        ],
    ),
    // The backends do not use each other.
    room(
        "netfilter/iptables",
        &[
            "netfilter",
            "netfilter/iptables/native",
            "netfilter/nf_tables",
            "cni",
            "net",
            "failure",
            "patience",
            "fsutil",
            "log",
            "hash",
            "shell",
            "text",
        ],
    ),
    room(
        "netfilter/iptables/native",
        &[
            "netfilter",
            "netfilter/iptables",
            "netfilter/nf_tables",
            "netfilter/nfnetlink",
            "cni",
            "log",
        ],
    ),
    room(
        "netfilter/nftables",
        &[
            "netfilter",
            "netfilter/nf_tables",
            "netfilter/nfnetlink",
            "cni",
            "net",
            "failure",
            "fsutil",
            "log",
            "shell",
            "text",
        ],
    ),
    room("netfilter/firewalld", &["failure"]),
    // The client of the kernel's nf_tables, for every backend.
    room(
        "netfilter/nf_tables",
        &[
            "netfilter",
            "netfilter/nfnetlink",
            "cni",
            "net",
            "hash",
            "shell",
        ],
    ),
    room("netfilter/nfnetlink", &["net"]),
    // The protocol, no kernel; the kernel, no protocol.
    room(
        "cni",
        &[
            "failure", "patience", "undo", "journal", "fsutil", "log", "text",
        ],
    ),
    room("net", &["failure", "fsutil", "log", "shell", "text"]),
    room("failure", &["log"]),
    room("patience", &[]),
    room("undo", &["log"]),
    room("journal", &["fsutil", "text"]),
    room("fsutil", &["log"]),
    room("log", &["text"]),
    room("shell", &["text"]),
    room("text", &[]),
    room("hash", &[]),
];

const fn room(name: &'static str, uses: &'static [&'static str]) -> Room {
    Room { name, uses }
}

/// The room that decides for a module.
fn room_of(module: &str) -> &'static Room {
    let holds = |room: &&Room| {
        module == room.name
            || module
                .strip_prefix(room.name)
                .is_some_and(|rest| rest.starts_with('/'))
    };
    ROOMS
        .iter()
        .filter(|room| !room.name.is_empty())
        .filter(holds)
        .max_by_key(|room| room.name.len())
        .unwrap_or_else(|| &ROOMS[0])
}

/// A reference from one file to another.
#[derive(Debug, Clone)]
struct Arrow {
    from: String,
    line: usize,
    to: String,
    path: String,
}

/// The product's source files by module (`netfilter/iptables/rule`); the root is "".
fn modules() -> BTreeMap<String, PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.push(path);
            }
        }
    }
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&src, &mut found);
    found
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&src).unwrap().with_extension("");
            let name = name.to_str().unwrap();
            let name = name.strip_suffix("/mod").unwrap_or(name);
            let name = if name == "lib" { "" } else { name };
            (name.to_owned(), path)
        })
        .collect()
}

/// The text of the product in a file: without comments and without tests, which stand at
/// the end or are modules of their own.
fn product(text: &str) -> String {
    let start = |name: &str| text.find(&format!("#[cfg(test)]\nmod {name} {{"));
    let end = start("tests")
        .or_else(|| start("kernel_tests"))
        .unwrap_or(text.len());
    let lines = text[..end].lines();
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    lines.map(code).collect::<Vec<_>>().join("\n")
}

/// Modules that only tests or fuzzers are built with, from the declarations in `text`.
fn test_modules(module: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut found = Vec::new();
    for pair in lines.windows(2) {
        let declared = pair[1].trim_start_matches("pub(super) ");
        let declared = declared.trim_start_matches("pub ").strip_prefix("mod ");
        if pair[0].starts_with("#[cfg(")
            && pair[0].contains("test")
            && let Some(name) = declared.and_then(|name| name.strip_suffix(';'))
        {
            found.push(join(module, name));
        }
    }
    found
}

fn join(module: &str, name: &str) -> String {
    if module.is_empty() {
        name.to_owned()
    } else {
        format!("{module}/{name}")
    }
}

/// The paths that a `use` tree names: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((start, rest)) = tree.split_once('{') else {
        return vec![tree.split(" as ").next().unwrap().trim().to_owned()];
    };
    let inside = rest.trim_end().strip_suffix('}').unwrap_or(rest);
    let mut depth = 0;
    let mut parts = vec![String::new()];
    for c in inside.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().unwrap().push(c);
    }
    let named = parts.iter().filter(|part| !part.trim().is_empty());
    named
        .flat_map(|part| expand(part))
        .map(|part| format!("{start}{part}"))
        .collect()
}

/// The module in which `path`, written in `module`, ends; `None` for other crates.
fn target(modules: &BTreeMap<String, PathBuf>, module: &str, path: &str) -> Option<String> {
    let mut names: Vec<&str> = path.split("::").map(str::trim).collect();
    let mut at: Vec<&str> = module.split('/').filter(|name| !name.is_empty()).collect();
    match *names.first()? {
        "crate" => {
            at.clear();
            names.remove(0);
        }
        "self" => {
            names.remove(0);
        }
        "super" => {
            while names.first() == Some(&"super") {
                at.pop();
                names.remove(0);
            }
        }
        first if modules.contains_key(&join(module, first)) => {}
        _ => return None,
    }
    at.extend(names);
    while !modules.contains_key(&at.join("/")) {
        at.pop();
    }
    Some(at.join("/"))
}

/// All arrows between files of the product.
fn arrows() -> (BTreeMap<String, PathBuf>, Vec<Arrow>) {
    let all = modules();
    let read = |path: &PathBuf| fs::read_to_string(path).unwrap();
    let tests: BTreeSet<String> = all
        .iter()
        .flat_map(|(module, path)| test_modules(module, &read(path)))
        .collect();
    let is_test = |module: &str| {
        tests
            .iter()
            .any(|test| module == test || module.starts_with(&format!("{test}/")))
    };
    let product_modules: BTreeMap<String, PathBuf> = all
        .iter()
        .filter(|(module, _)| !is_test(module) || *module == "fuzz")
        .map(|(module, path)| (module.clone(), path.clone()))
        .collect();
    let mut arrows = Vec::new();
    for (module, path) in &product_modules {
        let text = product(&read(path));
        let mut add = |at: usize, path: &str| {
            let to = target(&all, module, path);
            if let Some(to) = to.filter(|to| to != module && !is_test(to)) {
                arrows.push(Arrow {
                    from: module.clone(),
                    line: text[..at].matches('\n').count() + 1,
                    to,
                    path: path.to_owned(),
                });
            }
        };
        let mut rest = 0;
        while let Some(found) = text[rest..].find("use ") {
            let at = rest + found;
            rest = at + 4;
            let before = text[..at].rsplit('\n').next().unwrap().trim();
            if !before.is_empty() && !before.starts_with("pub") {
                continue;
            }
            if let Some(end) = text[rest..].find(';') {
                for path in expand(&text[rest..rest + end].replace('\n', " ")) {
                    add(at, &path);
                }
            }
        }
        for start in ["crate::", "super::"] {
            for (at, _) in text.match_indices(start) {
                let before = text[..at].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                    continue;
                }
                let is_of_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
                let path = text[at..].split(|c| !is_of_path(c)).next().unwrap();
                // `crate::a::{…}` is of a `use`, which has been read.
                if !text[at + path.len()..].starts_with('{') {
                    add(at, path.trim_end_matches(':'));
                }
            }
        }
    }
    (product_modules, arrows)
}

#[test]
fn folders_use_what_is_below_them() {
    let (files, arrows) = arrows();
    assert!(arrows.len() > 500, "only {} arrows were read", arrows.len());
    let mut wrong = BTreeSet::new();
    for arrow in arrows {
        let (from, to) = (room_of(&arrow.from), room_of(&arrow.to));
        if from.name == to.name || from.uses.contains(&to.name) {
            continue;
        }
        wrong.insert(format!(
            "{}:{}: `{}` may not use `{}` ({}); it may use: {}",
            files[&arrow.from].display(),
            arrow.line,
            from.name,
            to.name,
            arrow.path,
            from.uses.join(", "),
        ));
    }
    let wrong: Vec<_> = wrong.into_iter().collect();
    assert!(
        wrong.is_empty(),
        "{} arrows:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// The files that each file reaches over arrows, itself included if it is in a circle.
fn reached<'a>(uses: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &'a str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut next: Vec<&str> = vec![from];
    while let Some(file) = next.pop() {
        for used in uses.get(file).into_iter().flatten() {
            if found.insert(*used) {
                next.push(used);
            }
        }
    }
    found
}

#[test]
fn files_are_in_no_circle() {
    let (files, arrows) = arrows();
    let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for arrow in &arrows {
        uses.entry(&arrow.from).or_default().insert(&arrow.to);
    }
    let reach: BTreeMap<&str, BTreeSet<&str>> = files
        .keys()
        .map(|file| (file.as_str(), reached(&uses, file)))
        .collect();
    let mut inside = BTreeSet::new();
    for arrow in &arrows {
        let Arrow {
            from,
            line,
            to,
            path,
        } = arrow;
        if !reach[to.as_str()].contains(from.as_str()) {
            continue;
        }
        inside.insert(format!("{}:{line}: {path}", files[from].display()));
    }
    let inside: Vec<_> = inside.into_iter().collect();
    assert!(
        inside.is_empty(),
        "in circles of files:\n{}",
        inside.join("\n")
    );
}

#[test]
fn rooms_exist() {
    let files = modules();
    for room in ROOMS {
        assert!(
            files.keys().any(|module| room_of(module).name == room.name),
            "src/{} is gone: take its row away",
            room.name
        );
        for used in room.uses {
            assert!(
                ROOMS.iter().any(|other| other.name == *used),
                "`{}` uses `{used}`, which has no row",
                room.name
            );
        }
    }
}

#[test]
fn trees_are_expanded() {
    assert_eq!(
        expand("crate::a::{self, b as c, d::{e, f}}"),
        [
            "crate::a::self",
            "crate::a::b",
            "crate::a::d::e",
            "crate::a::d::f"
        ]
    );
}
