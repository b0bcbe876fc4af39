//! Expected texts, as files that a reader can look at, and what a script leads to.

use std::path::Path;

use crate::netfilter::iptables::rule::{Script, Table};

/// Compares `text` with the file `name`. Built with `UPDATE_GOLDEN=1`, tests write the
/// files instead, to be reviewed like code.
#[track_caller]
pub fn assert_golden(text: &str, name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/iptables")
        .join(name);
    if option_env!("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(text, read(name), "{}", path.display());
}

pub fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/iptables")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The table that `script`, which only adds, makes of nothing.
pub fn table_after(script: &Script) -> Table {
    let mut table = Table::default();
    for line in script.text().lines() {
        let mut step = Table::parse(&line.replace("-I ", "-A "));
        table.chains.append(&mut step.chains);
        let at = if line.starts_with("-I ") {
            0
        } else {
            table.rules.len()
        };
        table.rules.splice(at..at, step.rules);
    }
    table
}
