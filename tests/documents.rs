//! What the documents promise about the repository: links lead somewhere, the sections and the
//! tests that they name exist. It reads text; nothing is built or run.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot do its work says so by panicking; doors are for the product"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below `dir` whose names end in one of `endings`.
fn files(dir: &str, endings: &[&str]) -> Vec<PathBuf> {
    fn walk(dir: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let ends = |ending: &&str| path.to_str().unwrap().ends_with(*ending);
            if path.is_dir() {
                walk(&path, endings, found);
            } else if endings.iter().any(ends) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    let dir = root().join(dir);
    if dir.is_dir() {
        walk(&dir, endings, &mut found);
    }
    found
}

/// The Markdown files of the repository.
fn documents() -> Vec<PathBuf> {
    let mut found = files("docs", &[".md"]);
    for entry in fs::read_dir(root()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "md") {
            found.push(path);
        }
    }
    found.extend(files("tests", &[".md"]));
    found
}

/// What a link can name in a document: explicit anchors, and headings as GitHub spells them.
fn anchors(text: &str) -> BTreeSet<String> {
    let explicit = text.split("<a id=\"").skip(1);
    let explicit = explicit.filter_map(|rest| rest.split('"').next().map(str::to_owned));
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let headings = headings.map(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title
            .chars()
            .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.collect::<String>().replace(' ', "-")
    });
    explicit.chain(headings).collect()
}

/// The targets of the links in a Markdown text, outside of code.
fn links(text: &str) -> Vec<String> {
    let mut is_code = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        }
        if is_code {
            continue;
        }
        let targets = line.split("](").skip(1);
        found.extend(targets.filter_map(|rest| rest.split(')').next().map(str::to_owned)));
    }
    found
}

/// Why `target`, named in a file of `dir`, leads nowhere.
fn broken(dir: &Path, own: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let text = if path.is_empty() {
        own.to_owned()
    } else {
        let path = dir.join(path);
        if !path.exists() {
            return Some(format!("{target}: no such file"));
        }
        if anchor.is_empty() {
            return None;
        }
        read(&path)
    };
    let is_there = anchor.is_empty() || anchors(&text).contains(anchor);
    (!is_there).then(|| format!("{target}: no such section"))
}

#[test]
fn links_lead_somewhere() {
    let documents = documents();
    let mut count = 0;
    let mut wrong = Vec::new();
    for path in &documents {
        let text = read(path);
        for target in links(&text) {
            count += 1;
            let reason = broken(path.parent().unwrap(), &text, &target);
            wrong.extend(reason.map(|reason| format!("{}: {reason}", path.display())));
        }
    }
    assert!(count > 0 && documents.len() > 2, "{count} links were read");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `docs/FILE.md#SECTION` in sources and tests.
#[test]
fn cited_sections_exist() {
    let mut sources = files("src", &[".rs"]);
    sources.extend(files("tests", &[".rs", ".sh"]));
    sources.push(root().join("Cargo.toml"));
    let mut texts = BTreeMap::new();
    let mut count = 0;
    let mut wrong = Vec::new();
    for path in sources.iter().filter(|path| !path.ends_with(file!())) {
        let text = read(path);
        for (number, line) in text.lines().enumerate() {
            for rest in line.split("docs/").skip(1) {
                let Some((file, rest)) = rest.split_once(".md") else {
                    continue;
                };
                let is_name = |c: char| c.is_alphanumeric() || "-_/".contains(c);
                if !file.chars().all(is_name) {
                    continue;
                }
                count += 1;
                let name = format!("docs/{file}.md");
                let place = format!("{}:{}", path.display(), number + 1);
                let document = root().join(&name);
                if !document.exists() {
                    wrong.push(format!("{place}: no {name}"));
                    continue;
                }
                let Some(rest) = rest.strip_prefix('#') else {
                    continue;
                };
                let is_anchor = |c: char| c.is_alphanumeric() || "-_.".contains(c);
                let anchor = rest.split(|c| !is_anchor(c)).next().unwrap();
                let anchor = anchor.trim_end_matches('.');
                let known = texts
                    .entry(name.clone())
                    .or_insert_with(|| anchors(&read(&document)));
                if !known.contains(anchor) {
                    wrong.push(format!("{place}: {name} has no section {anchor}"));
                }
            }
        }
    }
    assert!(count > 50, "{count} citations were read");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Numbers of documents that are not in the repository.
#[test]
fn nothing_else_is_cited() {
    let mut sources = files("src", &[".rs"]);
    sources.extend(files("tests", &[".rs", ".sh"]));
    sources.extend([root().join("Cargo.toml"), root().join("README.md")]);
    let mut wrong = Vec::new();
    for path in sources.iter().filter(|path| !path.ends_with(file!())) {
        for (number, line) in read(path).lines().enumerate() {
            let cites = |word: &str| {
                line.split(word)
                    .skip(1)
                    .any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
            };
            let words = [
                "behaviour ",
                "field report ",
                "field-reports ",
                "register ",
                "(defect ",
            ];
            if words.iter().any(|word| cites(word)) || cites(" R-") {
                wrong.push(format!(
                    "{}:{}: {}",
                    path.display(),
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `file::test` in documents: a file below `tests/`, and a test in it.
#[test]
fn named_tests_exist() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for path in documents() {
        for (at, name) in read(&path).split('`').enumerate() {
            let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            let Some((file, test)) = name.split_once("::") else {
                continue;
            };
            let are_names = file.chars().all(is_name) && test.chars().all(is_name);
            // `cni::skel` is a module.
            let is_module = root().join("src").join(file).exists();
            if at % 2 == 0 || !are_names || is_module || (file, test) == ("file", "name") {
                continue;
            }
            count += 1;
            let mut sources = files(&format!("tests/{file}"), &[".rs"]);
            sources
                .extend(Some(root().join(format!("tests/{file}.rs"))).filter(|path| path.exists()));
            let has_test = |path: &PathBuf| {
                let source = read(path);
                source.contains(&format!("fn {test}(")) || source.contains(&format!(" {test}("))
            };
            if !sources.iter().any(has_test) {
                wrong.push(format!("{}: {name}", path.display()));
            }
        }
    }
    assert!(count > 5, "{count} names were read");
    assert!(wrong.is_empty(), "no such tests:\n{}", wrong.join("\n"));
}

/// README is for the first day: what a person needs after that has a document of its own.
#[test]
fn readme_is_short() {
    let text = read(&root().join("README.md"));
    let count = text.lines().count();
    assert!(count <= 150, "README.md has {count} lines; at most 150");
    let too_long = |(_, line): &(usize, &str)| line.chars().count() > 160;
    let wrong: Vec<usize> = text
        .lines()
        .enumerate()
        .filter(too_long)
        .map(|(number, _)| number + 1)
        .collect();
    assert!(
        wrong.is_empty(),
        "README.md: lines of more than 160 characters: {wrong:?}"
    );
}

/// Files and directories of the repository that documents name in code, such as
/// `src/applets.rs`. `NAME` stands for a plugin: `bridge` has all that a plugin can have.
#[test]
fn named_paths_exist() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for document in documents() {
        for (at, name) in read(&document).split('`').enumerate() {
            let roots = ["src/", "tests/", "conf/", "docs/", "fuzz/", "symlinks/"];
            let is_path = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            let starts = |dir: &&str| name.starts_with(*dir);
            if at % 2 == 0 || !roots.iter().any(starts) || !name.chars().all(is_path) {
                continue;
            }
            count += 1;
            // A link of `symlinks/` leads to a file that an installation has.
            let path = root().join(name.replace("NAME", "bridge"));
            if path.symlink_metadata().is_err() {
                wrong.push(format!("{}: {name}", document.display()));
            }
        }
    }
    assert!(count > 50, "{count} paths were read");
    assert!(wrong.is_empty(), "no such paths:\n{}", wrong.join("\n"));
}
