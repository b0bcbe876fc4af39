//! Netlink attributes in the making (`struct nlattr`), written where they will be sent
//! from. The crates' types know their lengths only by adding up what is in them, each level
//! several times: for thousands of rules that takes longer than the kernel does.

use netlink_packet_core::NLA_F_NESTED;

/// What attributes are padded to.
const ALIGNMENT: usize = 4;

/// The bytes of an attribute's length, which comes first.
const LENGTH: usize = 2;

/// A list of attributes.
#[derive(Debug, Default)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// An attribute of `kind` with these bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let start = self.begin(kind);
        self.0.extend(value);
        self.end(start);
    }

    /// A number, in network byte order.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A text, which ends in a zero byte.
    pub fn text(&mut self, kind: u16, value: &str) {
        let start = self.begin(kind);
        self.0.extend(value.as_bytes());
        self.0.push(0);
        self.end(start);
    }

    /// An attribute that holds those that `fill` adds.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.begin(kind | NLA_F_NESTED);
        fill(self);
        self.end(start);
    }

    /// Bytes that are no attribute.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// How many bytes there are.
    pub fn length(&self) -> usize {
        self.0.len()
    }

    /// The bytes that are there.
    pub fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// All of them, as they are sent.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    /// Begins an attribute, whose length is not known yet. Answers where it is.
    fn begin(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend([0; LENGTH]);
        self.0.extend(kind.to_ne_bytes());
        start
    }

    /// Ends the attribute that began at `start`.
    fn end(&mut self, start: usize) {
        // What is longer does not fit into any attribute: the kernel refuses it.
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        if let Some(place) = self.0.get_mut(start..start + LENGTH) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::nfnetlink::socket::attributes;

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
