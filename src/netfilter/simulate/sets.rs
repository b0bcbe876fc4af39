//! The sets and maps of anybody, and what they hold for a value.

use anyhow::Result;
use netlink_packet_netfilter::nftables::{
    NfTablesMessage, SetElementList, SetElementMessage, SetMessage,
};

use crate::netfilter::nf_tables::message::text;
use crate::netfilter::nf_tables::ruleset::Family;
use crate::netfilter::nfnetlink::socket::{Socket, attribute, attributes, number};
use crate::netfilter::simulate::chain::dump;

/// What a set or map holds.
#[derive(Debug)]
pub struct Set {
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Bytes of a key.
    pub key_length: usize,
    is_of_intervals: bool,
    elements: Vec<Element>,
}

/// One of its elements.
#[derive(Debug)]
struct Element {
    key: Vec<u8>,
    /// Of an interval in several fields: these are not understood.
    has_end: bool,
    flags: u32,
    data: Vec<u8>,
}

/// `NFT_SET_ELEM_INTERVAL_END`, `NFT_SET_ELEM_CATCHALL`.
const END: u32 = 1;
const CATCHALL: u32 = 2;

/// What a set has for a value.
pub enum Held<'a> {
    /// That cannot be told.
    Unknown,
    /// The value is not in it.
    Nothing,
    /// What a map says of the value; nothing in a set.
    Data(&'a [u8]),
}

impl Set {
    /// What it has for `value`, which is as long as its keys.
    pub fn find(&self, value: &[u8]) -> Held<'_> {
        if self.elements.iter().any(|element| element.has_end) {
            return Held::Unknown;
        }
        let mut plain = self.elements.iter().filter(|e| e.flags & CATCHALL == 0);
        let found = if self.is_of_intervals {
            // The last that begins or ends at the value or before it. Where one interval ends,
            // another may begin.
            let until = plain.filter(|e| e.key.as_slice() <= value);
            let last = until.max_by_key(|e| (&e.key, e.flags & END == 0));
            last.filter(|e| e.flags & END == 0)
        } else {
            plain.find(|e| e.key == value)
        };
        let for_all = || self.elements.iter().find(|e| e.flags & CATCHALL != 0);
        match found.or_else(for_all) {
            Some(element) => Held::Data(&element.data),
            None => Held::Nothing,
        }
    }
}

/// Reads those of `family`.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn read(socket: &Socket, family: Family) -> Result<Vec<Set>> {
    const FLAGS: u16 = 3;
    const KEY_LENGTH: u16 = 5;
    const ELEMENTS: u16 = 3;
    /// `NFT_SET_INTERVAL`.
    const INTERVAL: u32 = 4;
    let mut found = Vec::new();
    let message = NfTablesMessage::GetSet(SetMessage { attributes: vec![] });
    for answer in dump(socket, family, message)? {
        let names = [1, 2].map(|kind| text(attribute(&answer, kind).unwrap_or_default()));
        let [table, name] = names;
        let field = |kind| attribute(&answer, kind).and_then(number).unwrap_or(0);
        let message = NfTablesMessage::GetSetElement(SetElementMessage {
            attributes: vec![
                SetElementList::Table(table.clone()),
                SetElementList::Set(name.clone()),
            ],
        });
        let answers = dump(socket, family, message)?;
        let lists = answers.iter().filter_map(|list| attribute(list, ELEMENTS));
        let elements = lists.flat_map(attributes);
        found.push(Set {
            table,
            name,
            key_length: usize::try_from(field(KEY_LENGTH))?,
            is_of_intervals: field(FLAGS) & INTERVAL != 0,
            elements: elements.map(|(_, element)| parse(element)).collect(),
        });
    }
    Ok(found)
}

/// Reads `NFTA_LIST_ELEM`.
fn parse(element: &[u8]) -> Element {
    const KEY: u16 = 1;
    const DATA: u16 = 2;
    const FLAGS: u16 = 3;
    const KEY_END: u16 = 10;
    let key = attribute(element, KEY).and_then(|key| attribute(key, 1));
    Element {
        key: key.unwrap_or_default().to_vec(),
        has_end: attribute(element, KEY_END).is_some(),
        flags: attribute(element, FLAGS).and_then(number).unwrap_or(0),
        data: attribute(element, DATA).unwrap_or_default().to_vec(),
    }
}
