//! Expected texts, as files that a reader can look at.

use std::path::Path;

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
