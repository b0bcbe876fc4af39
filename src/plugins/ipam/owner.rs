//! What stands in a lease file: whose the address is (docs/compatibility.md#6.4).

use std::fmt;

use crate::cni::invocation::{Attachment, check_container_id};

/// The attachment that holds an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// Its container.
    pub container_id: String,
    /// `None` in files from before interfaces were recorded: the address is the
    /// container's, whatever the interface.
    pub ifname: Option<String>,
}

impl Owner {
    /// `attachment`, as it is written today.
    pub fn of(attachment: &Attachment) -> Self {
        Self {
            container_id: attachment.container_id.clone(),
            ifname: Some(attachment.ifname.clone()),
        }
    }

    /// The container of `attachment`, as it was written once.
    pub fn legacy(attachment: &Attachment) -> Self {
        Self {
            container_id: attachment.container_id.clone(),
            ifname: None,
        }
    }

    /// Reads a lease file. White space around is skipped, and zeros, which is what a file
    /// can consist of after a power cut; when nothing is left, nobody owns the address.
    pub fn parse(content: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(content);
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        if text.is_empty() {
            return None;
        }
        let (container_id, ifname) = match text.split_once("\r\n") {
            Some((id, ifname)) => (id, Some(ifname.to_owned())),
            None => (text, None),
        };
        Some(Self {
            container_id: container_id.to_owned(),
            ifname,
        })
    }

    /// Whether this is a text for people, which no attachment can be called: how an
    /// operator sets an address aside. What is damaged is none.
    pub fn is_note(&self) -> bool {
        self.ifname.is_none()
            && check_container_id(&self.container_id).is_err()
            && !self.is_damaged()
    }

    /// Whether nobody can have written this. The kernel lets a link be called by control
    /// characters, if they are no white space.
    pub fn is_damaged(&self) -> bool {
        let is_lost = |c: char| c == '\0' || c == char::REPLACEMENT_CHARACTER;
        let ifname = self.ifname.as_deref().unwrap_or_default();
        self.container_id
            .contains(|c: char| c.is_control() || is_lost(c))
            || ifname.contains(|c: char| c.is_control() && c.is_whitespace() || is_lost(c))
    }

    /// The content of a lease file, byte for byte the reference's.
    pub fn content(&self) -> String {
        match &self.ifname {
            Some(ifname) => format!("{}\r\n{ifname}", self.container_id),
            None => self.container_id.clone(),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ifname {
            Some(ifname) => write!(f, "{ifname} of container {}", self.container_id),
            None => write!(f, "container {}", self.container_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(id: &str, ifname: Option<&str>) -> Owner {
        Owner {
            container_id: id.into(),
            ifname: ifname.map(Into::into),
        }
    }

    #[test]
    fn contents() {
        for (content, expected) in [
            ("abc\r\neth0", Some(owner("abc", Some("eth0")))),
            (" abc\r\neth0\r\n", Some(owner("abc", Some("eth0")))),
            ("abc", Some(owner("abc", None))),
            ("abc\r\n", Some(owner("abc", None))),
            ("", None),
            (" \r\n\t", None),
            ("\0\0\0", None),
        ] {
            assert_eq!(Owner::parse(content.as_bytes()), expected, "{content:?}");
        }
        assert_eq!(owner("abc", Some("eth0")).content(), "abc\r\neth0");
        assert_eq!(owner("abc", None).content(), "abc");
    }

    #[test]
    fn notes_are_for_people() {
        for (content, expected) in [
            ("abc", false),
            ("abc\r\neth0", false),
            ("set aside for the printer", true),
            ("\u{1}\u{2}\u{3}", false),
            ("\u{fffd}abc", false),
            ("abc\r\na\u{1b}[31mb", false),
        ] {
            let owner = Owner::parse(content.as_bytes()).unwrap();
            assert_eq!(owner.is_note(), expected, "{content:?}");
        }
    }

    #[test]
    fn what_a_link_can_be_called_is_no_damage() {
        for (content, expected) in [
            ("abc\r\neth0", false),
            ("abc\r\na\u{1b}[31mb", false),
            ("abc\r\neth\0", false),
            ("abc\r\neth\0\0x", true),
            ("abc\r\neth0\nx", true),
            ("a\u{1b}c\r\neth0", true),
        ] {
            let owner = Owner::parse(content.as_bytes()).unwrap();
            assert_eq!(owner.is_damaged(), expected, "{content:?}");
        }
    }
}
