//! Hardware addresses of Ethernet links.

use std::fmt;

use anyhow::Result;

use crate::fsutil;

/// A 6-byte hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A random address: locally administered, unicast.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 6];
        fsutil::random(&mut bytes)?;
        let [first, ..] = &mut bytes;
        *first = (*first & 0xfe) | 0x02;
        Ok(Self(bytes))
    }

    /// The address in `text`: `02:00:00:00:00:01`, with `-` for `:`, or `0200.0000.0001`.
    pub fn parse(text: &str) -> Option<Self> {
        let (separator, digits) = if text.contains('.') {
            ('.', 4)
        } else {
            (':', 2)
        };
        let text = text.replace('-', ":");
        let mut hex = String::new();
        for group in text.split(separator) {
            if group.len() != digits || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            hex.push_str(group);
        }
        let number = u64::from_str_radix(&hex, 16)
            .ok()
            .filter(|_| hex.len() == 12)?;
        let [_, _, bytes @ ..] = number.to_be_bytes();
        Some(Self(bytes))
    }

    /// Whether a link can have this address: not zero, not multicast.
    pub fn is_unicast(self) -> bool {
        let [first, ..] = self.0;
        self.0 != [0; 6] && first & 1 == 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_text(&self.0))
    }
}

/// A hardware address of any length as text.
pub fn to_text(bytes: &[u8]) -> String {
    let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notations() {
        let mac = Mac([2, 0, 0, 0xab, 0xcd, 0xef]);
        for text in ["02:00:00:ab:cd:ef", "02-00-00-AB-CD-EF", "0200.00ab.cdef"] {
            assert_eq!(Mac::parse(text), Some(mac), "{text}");
        }
        assert_eq!(mac.to_string(), "02:00:00:ab:cd:ef");
        for text in [
            "",
            "02",
            "02:00:00:ab:cd",
            "02:00:00:ab:cd:ef:00",
            "02:00:00:ab:cd:+f",
            "é",
        ] {
            assert_eq!(Mac::parse(text), None, "{text}");
        }
    }

    #[test]
    fn random_addresses_are_usable() {
        for _ in 0..50 {
            let mac = Mac::random().unwrap();
            assert!(mac.is_unicast() && mac.0[0] & 2 == 2);
        }
        assert!(!Mac([0; 6]).is_unicast() && !Mac([1, 0, 0, 0, 0, 1]).is_unicast());
    }
}
