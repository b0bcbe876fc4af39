//! Notes for the operator. Stdout is the protocol's; everything else goes to stderr.

use std::io::Write;

/// Writes one line to stderr. A closed stderr is nobody's error.
pub fn warn(line: &str) {
    drop(writeln!(std::io::stderr(), "cnibox: {line}"));
}
