//! Text for people: nothing in it moves the cursor, changes colours, hides or reorders what
//! stands beside it. Names come from configurations, from files and from inside of containers,
//! and whoever chose them may want the reader to see something else than what is there.
//!
//! JSON stays exact: [`json`] writes the same strings in another, harmless way.

use std::borrow::Cow;

/// In front of each line of a text but its first: no line break of a name makes a line that
/// looks like one of ours.
const CONTINUATION: &str = "\n    | ";

/// Whether a terminal would obey `c`, or show nothing, or show its neighbours elsewhere.
pub fn is_hazardous(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// `text` on one line, each hazardous character as a programmer would write it: `\n`, `\u{1b}`,
/// `\u{202e}`. What has been escaped stays as it is.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hazardous) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    text.chars().for_each(|c| push(&mut escaped, c));
    Cow::Owned(escaped)
}

/// Adds one character.
fn push(to: &mut String, c: char) {
    if is_hazardous(c) {
        to.extend(c.escape_default());
    } else {
        to.push(c);
    }
}

/// `text` as a paragraph: its lines stay lines, and all but the first are marked as what they
/// are, the rest of a text.
pub fn paragraph(text: &str) -> String {
    let lines: Vec<_> = text
        .trim_end_matches('\n')
        .split('\n')
        .map(escape)
        .collect();
    lines.join(CONTINUATION)
}

/// `text` of our own that has lines, such as a page of help with somebody's words in it: the
/// lines stay as they are.
pub fn page(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(escape).collect();
    lines.join("\n")
}

/// A serialised JSON document with the same values, in which hazardous characters of strings
/// are escaped: C0 always are, and what is not ASCII can only stand in a string.
pub fn json(document: Vec<u8>) -> Vec<u8> {
    let text = match String::from_utf8(document) {
        Ok(text) => text,
        Err(error) => return error.into_bytes(),
    };
    let is_raw = |c: char| is_hazardous(c) && c >= '\x7f';
    if !text.contains(is_raw) {
        return text.into_bytes();
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_raw(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                escaped.extend(format!("\\u{unit:04x}").chars());
            }
        } else {
            escaped.push(c);
        }
    }
    escaped.into_bytes()
}

/// Escapes a stream of bytes that comes in pieces, such as another program's stderr. Its line
/// breaks and tabs stay; bytes that are no UTF-8 become `\x9b`.
#[derive(Debug, Default)]
pub struct Stream {
    /// The start of a character whose end has not come yet.
    pending: Vec<u8>,
}

impl Stream {
    /// What can be printed once `bytes` have come.
    pub fn escape(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let whole = std::mem::take(&mut self.pending);
        let mut escaped = String::with_capacity(whole.len());
        let mut chunks = whole.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            for c in chunk.valid().chars() {
                match c {
                    '\n' | '\t' => escaped.push(c),
                    c => push(&mut escaped, c),
                }
            }
            let is_cut_off = chunks.peek().is_none() && is_start(chunk.invalid());
            if is_cut_off {
                self.pending = chunk.invalid().to_vec();
            } else {
                push_bytes(&mut escaped, chunk.invalid());
            }
        }
        escaped
    }

    /// What is left when nothing more comes.
    pub fn finish(self) -> String {
        let mut escaped = String::new();
        push_bytes(&mut escaped, &self.pending);
        escaped
    }
}

fn push_bytes(to: &mut String, bytes: &[u8]) {
    let escaped = bytes.iter().copied().flat_map(std::ascii::escape_default);
    to.extend(escaped.map(char::from));
}

/// Whether more bytes could make a character of these.
fn is_start(bytes: &[u8]) -> bool {
    match std::str::from_utf8(bytes) {
        Ok(_) => false,
        Err(error) => error.valid_up_to() == 0 && error.error_len().is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_that_a_terminal_obeys() {
        assert_eq!(escape("eth0 é → 東"), "eth0 é → 東");
        assert_eq!(
            escape("a\x1b[31mb\n\r\t\x7f\u{9b}\u{202e}\u{2028}"),
            "a\\u{1b}[31mb\\n\\r\\t\\u{7f}\\u{9b}\\u{202e}\\u{2028}"
        );
        let once = escape("\x1b\n").into_owned();
        assert_eq!(escape(&once), once);
        assert_eq!(paragraph("one\ntwo\x1b\n"), "one\n    | two\\u{1b}");
        assert_eq!(page("one\n two\x1b\n"), "one\n two\\u{1b}\n");
    }

    #[test]
    fn json_stays_exact() {
        let value = serde_json::json!({"a\u{9b}": "\x1b\u{7f}\u{202e}\u{e0001}é\n"});
        let written = json(serde_json::to_vec(&value).unwrap());
        let text = std::str::from_utf8(&written).unwrap();
        assert!(!text.contains(is_hazardous), "{text}");
        assert!(text.contains('é'), "{text}");
        let read: serde_json::Value = serde_json::from_slice(&written).unwrap();
        assert_eq!(read, value);
    }

    #[test]
    fn a_stream_is_escaped_wherever_it_is_cut() {
        let bytes = "é\x1b[1m\t東\n".as_bytes();
        let bytes = [bytes, b"\xff\x9b\xe6\x9d"].concat();
        for cut in 0..=bytes.len() {
            let mut stream = Stream::default();
            let (before, after) = bytes.split_at(cut);
            let mut all = stream.escape(before);
            all += &stream.escape(after);
            all += &stream.finish();
            assert_eq!(all, "é\\u{1b}[1m\t東\n\\xff\\x9b\\xe6\\x9d", "{cut}");
        }
    }
}
