//! Sets and their elements as data, which print themselves in the words of nft(8); and
//! the bytes that the kernel keeps of them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;

use anyhow::{Context, Result};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetAttribute, SetElementAttribute,
    SetElementList, SetElementMessage, SetFlags, SetMessage,
};

use crate::netfilter::memo;
use crate::netfilter::model::Protocol;
use crate::netfilter::nf_tables::identity;
use crate::netfilter::nf_tables::identity::Tag;
use crate::netfilter::nf_tables::message::{is_absent, with_family};
use crate::netfilter::nf_tables::ruleset::Table;
use crate::netfilter::nfnetlink::socket::{Socket, attribute, attributes, number};

/// A set: a table's memory of what belongs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    pub table: Table,
    pub name: &'static str,
    pub comment: &'static str,
    pub keys: Keys,
}

/// What a set is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    Attachments,
    Ports,
    Devices,
    /// IPv4 addresses.
    Ipv4,
    /// IPv6 addresses.
    Ipv6,
}

/// The name of an element.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Both hashes of a [`Tag`], in halves.
    Attachment(Tag),
    /// A port of the host.
    Port(Protocol, u16),
    /// What an attachment has to do with a device of the host.
    Device(String, Tag),
    /// Of a container.
    Address(IpAddr),
}

/// Elements, each with a comment for humans.
pub type Elements = BTreeMap<Key, String>;

/// The most elements in one message: with the longest comments they fill half of what
/// fits into an attribute (64 KiB).
pub const PER_MESSAGE: usize = 200;

/// The data types of nft(8) that keys are made of, as `nft describe` numbers them; the
/// kernel keeps them for whoever lists the set.
pub const IPV4_ADDR: u32 = 7;
pub const IPV6_ADDR: u32 = 8;
const INET_PROTOCOL: u32 = 12;
pub const INET_SERVICE: u32 = 13;
pub const MARK: u32 = 19;
pub const INTERFACE_NAME: u32 = 41;

/// The bytes of an interface's name in a key.
const INTERFACE_NAME_LENGTH: usize = 16;

impl Keys {
    /// The types that are concatenated.
    fn types(self) -> &'static [u32] {
        match self {
            Self::Attachments => &[MARK; 4],
            Self::Ports => &[INET_PROTOCOL, INET_SERVICE],
            Self::Devices => &[INTERFACE_NAME, MARK, MARK, MARK, MARK],
            Self::Ipv4 => &[IPV4_ADDR],
            Self::Ipv6 => &[IPV6_ADDR],
        }
    }

    /// Bytes of a key.
    fn length(self) -> u32 {
        match self {
            Self::Attachments | Self::Ipv6 => 16,
            Self::Ports => 8,
            Self::Devices => 32,
            Self::Ipv4 => 4,
        }
    }

    /// The key with these bytes; `None` for what nobody here has written.
    fn decode(self, bytes: &[u8]) -> Option<Key> {
        match self {
            Self::Attachments => Some(Key::Attachment(tag(bytes)?)),
            Self::Ports => match *bytes {
                [number, _, _, _, high, low, ..] => {
                    let protocols = [Protocol::Sctp, Protocol::Tcp, Protocol::Udp];
                    let named = |protocol: &Protocol| protocol.number() == number;
                    let protocol = protocols.into_iter().find(named)?;
                    Some(Key::Port(protocol, u16::from_be_bytes([high, low])))
                }
                _ => None,
            },
            Self::Devices => {
                let (name, words) = bytes.split_at_checked(INTERFACE_NAME_LENGTH)?;
                let end = name.iter().position(|byte| *byte == 0)?;
                let name = String::from_utf8(name.get(..end)?.to_vec()).ok()?;
                Some(Key::Device(name, tag(words)?))
            }
            Self::Ipv4 => Some(Key::Address(<[u8; 4]>::try_from(bytes).ok()?.into())),
            Self::Ipv6 => Some(Key::Address(<[u8; 16]>::try_from(bytes).ok()?.into())),
        }
    }
}

fn tag(bytes: &[u8]) -> Option<Tag> {
    let (words, _) = bytes.as_chunks::<4>();
    let words: [[u8; 4]; 4] = words.try_into().ok()?;
    Some(Tag::from_words(words.map(u32::from_ne_bytes)))
}

impl Key {
    /// Each part begins at a multiple of four bytes.
    fn encode(&self) -> Vec<u8> {
        let words = |tag: &Tag| tag.to_words().into_iter().flat_map(u32::to_ne_bytes);
        match self {
            Self::Attachment(tag) => words(tag).collect(),
            Self::Port(protocol, port) => {
                let [high, low] = port.to_be_bytes();
                vec![protocol.number(), 0, 0, 0, high, low, 0, 0]
            }
            Self::Device(name, tag) => {
                let mut bytes = name.clone().into_bytes();
                bytes.resize(INTERFACE_NAME_LENGTH, 0);
                bytes.extend(words(tag));
                bytes
            }
            Self::Address(IpAddr::V4(address)) => address.octets().into(),
            Self::Address(IpAddr::V6(address)) => address.octets().into(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hash = |tag: &Tag| {
            let words = tag.to_words();
            words.map(|word| format!("{word:#010x}")).join(" . ")
        };
        match self {
            Self::Attachment(tag) => f.write_str(&hash(tag)),
            Self::Port(protocol, port) => write!(f, "{} . {port}", protocol.as_str()),
            Self::Device(name, tag) => write!(f, "\"{name}\" . {}", hash(tag)),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.table, self.name)
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attachments => "mark . mark . mark . mark",
            Self::Ports => "inet_proto . inet_service",
            Self::Devices => "ifname . mark . mark . mark . mark",
            Self::Ipv4 => "ipv4_addr",
            Self::Ipv6 => "ipv6_addr",
        })
    }
}

impl Set {
    /// What adds the set.
    pub fn message(&self) -> NfTablesMessage {
        let key_type = self.keys.types().iter();
        let key_type = key_type.fold(0, |all, of_part| all << 6 | of_part);
        let attributes = vec![
            SetAttribute::Table(self.table.name.to_owned()),
            SetAttribute::Name(self.name.to_owned()),
            SetAttribute::Flags(SetFlags::empty()),
            SetAttribute::KeyType(key_type),
            SetAttribute::KeyLen(self.keys.length()),
            // Names the set within the transaction; the kernel demands it.
            SetAttribute::Id(1),
            SetAttribute::UserData(identity::set_user_data(self.comment)),
        ];
        NfTablesMessage::NewSet(SetMessage { attributes })
    }

    /// What removes the set.
    pub fn removal(&self) -> NfTablesMessage {
        NfTablesMessage::DeleteSet(SetMessage {
            attributes: self.place(),
        })
    }

    fn place(&self) -> Vec<SetAttribute> {
        vec![
            SetAttribute::Table(self.table.name.to_owned()),
            SetAttribute::Name(self.name.to_owned()),
        ]
    }

    /// What the set holds; `None` when there is no such set.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn elements(&self, socket: &Socket) -> Result<Option<Elements>> {
        const ELEMENTS: u16 = 3;
        const KEY: u16 = 1;
        const USER_DATA: u16 = 6;
        const VALUE: u16 = 1;
        let message = NfTablesMessage::GetSetElement(self.element_list(Vec::new()));
        let answers = match socket.dump(&with_family(self.table.family, message)) {
            Err(error) if is_absent(&error) => return Ok(None),
            answers => answers.with_context(|| format!("list the elements of set {self}"))?,
        };
        let lists = answers
            .iter()
            .filter_map(|answer| attribute(answer, ELEMENTS));
        let found = lists.flat_map(attributes).filter_map(|(_, element)| {
            let key = attribute(attribute(element, KEY)?, VALUE)?;
            let data = attribute(element, USER_DATA).unwrap_or_default();
            let (comment, _) = identity::parse(data);
            Some((self.keys.decode(key)?, comment.unwrap_or_default()))
        });
        Ok(Some(found.collect()))
    }

    /// As [`Self::elements`], for questions only: the kernel is asked once while a
    /// [`Memo`](crate::netfilter::memo::Memo) keeps the answer.
    ///
    /// # Errors
    /// As [`Self::elements`].
    pub fn listed(&self, socket: &Socket) -> Result<Rc<Option<Elements>>> {
        memo::listing(&self.to_string(), || self.elements(socket))
    }

    /// Whether there is such a set.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn is_there(&self, socket: &Socket) -> Result<bool> {
        Ok(self.look_up(socket)?.is_some())
    }

    /// How many elements there are; `None` where there is no such set, or the kernel (before
    /// 6.17) does not count them.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn count(&self, socket: &Socket) -> Result<Option<u32>> {
        /// `NFTA_SET_COUNT`.
        const COUNT: u16 = 20;
        let answer = self.look_up(socket)?;
        Ok(answer.and_then(|answer| attribute(&answer, COUNT).and_then(number)))
    }

    /// What the kernel says of the set; `None` when there is no such set.
    fn look_up(&self, socket: &Socket) -> Result<Option<Vec<u8>>> {
        let message = NfTablesMessage::GetSet(SetMessage {
            attributes: self.place(),
        });
        match socket.request(with_family(self.table.family, message)) {
            Err(error) if is_absent(&error) => Ok(None),
            answers => {
                let answers = answers.with_context(|| format!("look up set {self}"))?;
                Ok(answers.into_iter().next())
            }
        }
    }

    fn element_list(&self, elements: Vec<ListAttribute<SetElementAttribute>>) -> SetElementMessage {
        let mut attributes = vec![
            SetElementList::Table(self.table.name.to_owned()),
            SetElementList::Set(self.name.to_owned()),
        ];
        if !elements.is_empty() {
            attributes.push(SetElementList::Elements(elements));
        }
        SetElementMessage { attributes }
    }

    /// What adds the elements, with the flags that make it fail if one is there.
    pub fn creation(&self, elements: &[(Key, String)]) -> (NfTablesMessage, u16) {
        let elements = elements.iter().map(|(key, comment)| {
            let data = identity::user_data(Some(comment), None);
            ListAttribute::Element(vec![
                key_attribute(key),
                SetElementAttribute::UserData(data),
            ])
        });
        let message = NfTablesMessage::NewSetElement(self.element_list(elements.collect()));
        (message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// What deletes the elements.
    pub fn deletion(&self, keys: &[Key]) -> NfTablesMessage {
        let elements = keys.iter();
        let elements = elements.map(|key| ListAttribute::Element(vec![key_attribute(key)]));
        NfTablesMessage::DeleteSetElement(self.element_list(elements.collect()))
    }
}

fn key_attribute(key: &Key) -> SetElementAttribute {
    SetElementAttribute::Key(DataAttribute::Value(key.encode()))
}
