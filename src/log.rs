//! Notes for the operator. Stdout is the protocol's; everything else goes to stderr, by this
//! door, which lets no control character through.

use std::io::Write;

use crate::text;

/// Writes one note to stderr. A closed stderr is nobody's error.
pub fn warn(note: &str) {
    say(&format!("cnibox: {note}"));
}

/// Writes `text` to stderr as a paragraph: a line break in it starts no line of its own.
pub fn say(text: &str) {
    write(&(text::paragraph(text) + "\n"));
}

/// Writes a page of our own, such as help, to stderr; its lines stay as they are.
pub fn page(text: &str) {
    write(&(text::page(text.trim_end()) + "\n"));
}

/// Writes what [`text::Stream`] has escaped.
pub fn pass_on(escaped: &str) {
    write(escaped);
}

#[expect(clippy::disallowed_methods, reason = "this is the door to stderr")]
fn write(text: &str) {
    drop(std::io::stderr().write_all(text.as_bytes()));
}
