//! Netlink attributes in the making (`struct nlattr`), written where they will be sent
//! from. The crates' types know their lengths only by adding up what is in them, each level
//! several times: for thousands of rules that takes longer than the kernel does.

use netlink_packet_core::{NLA_F_NESTED, NLA_HEADER_SIZE};

/// What attributes are padded to.
const ALIGNMENT: usize = 4;

/// A list of attributes.
#[derive(Debug, Default)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// An attribute of `kind` with these bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.put(kind, |bytes| bytes.extend(value));
    }

    /// A number, in network byte order.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A text, which ends in a zero byte.
    pub fn text(&mut self, kind: u16, value: &str) {
        self.put(kind, |bytes| {
            bytes.extend(value.as_bytes());
            bytes.push(0);
        });
    }

    /// An attribute that holds those that `fill` adds.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.put(kind | NLA_F_NESTED, |bytes| {
            let mut inner = Self(std::mem::take(bytes));
            fill(&mut inner);
            *bytes = inner.0;
        });
    }

    /// All of them, as they are sent.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    fn put(&mut self, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
        let start = self.0.len();
        self.0.extend([0; NLA_HEADER_SIZE]);
        fill(&mut self.0);
        // What is longer does not fit into any attribute: the kernel refuses it.
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        let header = length.to_ne_bytes().into_iter().chain(kind.to_ne_bytes());
        let places = self.0.iter_mut().skip(start);
        places.zip(header).for_each(|(place, byte)| *place = byte);
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::socket::attributes;

    #[test]
    fn what_is_written_is_read_back() {
        let mut list = Attributes::default();
        list.bytes(1, &[7, 8, 9]);
        list.nest(2, |inner| {
            inner.number(3, 0x0102_0304);
            inner.text(4, "ab");
        });
        list.nest(5, |_| {});
        let bytes = list.finish();
        assert_eq!(bytes.len(), 8 + 4 + 8 + 8 + 4);
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read.len(), 3);
        assert_eq!(read[0], (1, [7, 8, 9].as_slice()));
        assert_eq!(read[2], (5, [].as_slice()));
        let (kind, inner) = read[1];
        assert_eq!(kind, 2);
        let inner: Vec<_> = attributes(inner).collect();
        let expected = [(3, [1, 2, 3, 4].as_slice()), (4, b"ab\0".as_slice())];
        assert_eq!(inner, expected);
    }
}
