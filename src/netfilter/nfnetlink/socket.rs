//! A conversation with the kernel's netfilter (nfnetlink): requests,
//! dumps and batches.
//!
//! The kernel works a request off while it is being sent, so its answers are there when
//! sending returns: nothing here ever waits.

use std::time::Duration;

use anyhow::{Context, Result};
use netlink_packet_core::{
    DecodeError, DefaultNla, NLA_HEADER_SIZE, NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkHeader, NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterProtoFamily, NetfilterSubsystem,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use crate::net::netlink::transport::{Overflow, Transport};
use crate::net::netlink::{Refused, refused};
use crate::netfilter::nfnetlink::attributes::Attributes;
use crate::netfilter::nfnetlink::deferred_close;

/// How often a dump that raced with a change is repeated before it is an error.
const DUMP_TRIES: u32 = 100;

/// `struct nlmsghdr`, with which every message begins, and where it has the length, the flags
/// and the sequence number.
const NETLINK_HEADER: usize = 16;
const LENGTH: usize = 0;
const FLAGS: usize = 6;
const SEQUENCE: usize = 8;

/// `struct nfgenmsg`, which precedes the attributes of every message.
const HEADER: usize = 4;

/// `NFNL_BATCH_GENID`; kernels that do not know it pass over it.
const GENERATION: u16 = 1;

/// A socket in the namespace that the calling thread was in when it was opened.
#[derive(Debug)]
pub struct Socket(Transport);

/// Which message of a batch the kernel refused, counted from 0, and why. `None` is the
/// batch as a whole.
#[derive(Debug)]
pub struct BatchRefused {
    /// The index of the refused message.
    pub message: Option<usize>,
    /// Why the kernel refused it.
    pub cause: Refused,
}

/// Changes of a subsystem that are written where they will be sent from. The crates' types
/// take longer for thousands of them than the kernel.
#[derive(Debug)]
pub struct Batch {
    subsystem: NetfilterSubsystem,
    messages: Attributes,
    /// Where the last of them begins, and how many there are.
    last: usize,
    count: u32,
}

impl Batch {
    /// One without changes.
    pub fn new(subsystem: NetfilterSubsystem) -> Self {
        let mut batch = Self {
            subsystem,
            messages: Attributes::default(),
            last: 0,
            count: 0,
        };
        batch.control(&ControlMessage::BatchBegin);
        batch
    }

    /// Adds the change `kind` of an object of `family` (`NFPROTO_…`), with attributes that
    /// `fill` adds behind what is there; nothing where it answers `None`.
    pub fn add(
        &mut self,
        kind: u8,
        flags: u16,
        family: u8,
        fill: impl FnOnce(&mut Attributes) -> Option<()>,
    ) -> Option<()> {
        self.count += 1;
        let kind = u16::from_be_bytes([self.subsystem.into(), kind]);
        self.write(kind, flags, [family, 0, 0, 0], fill)
    }

    /// Adds a change in the crate's words, with the flags of the request.
    pub fn message(&mut self, (message, flags): (NetfilterMessage, u16)) {
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        if let Some((about, attributes)) = bytes.split_first_chunk() {
            self.count += 1;
            self.write(message.message_type(), flags, *about, |list| {
                list.raw(attributes);
                Some(())
            });
        }
    }

    /// Adds what is said of all changes.
    fn control(&mut self, message: &ControlMessage) {
        let kind = u8::from(message.message_type()).into();
        let about = [0, 0, 0, self.subsystem.into()];
        self.write(kind, 0, about, |_| Some(()));
    }

    /// Adds a message.
    fn write(
        &mut self,
        kind: u16,
        flags: u16,
        about: [u8; HEADER],
        fill: impl FnOnce(&mut Attributes) -> Option<()>,
    ) -> Option<()> {
        let flags = (NLM_F_REQUEST | flags).to_ne_bytes();
        let mut header = [0; NETLINK_HEADER + HEADER];
        let parts: [(usize, &[u8]); 3] = [
            (FLAGS - 2, &kind.to_ne_bytes()),
            (FLAGS, &flags),
            (NETLINK_HEADER, &about),
        ];
        for (at, part) in parts {
            put(&mut header, at, part);
        }
        let start = self.messages.length();
        self.messages.raw(&header);
        fill(&mut self.messages)?;
        let length = u32::try_from(self.messages.length() - start).ok()?;
        put(
            self.messages.as_mut(),
            start + LENGTH,
            &length.to_ne_bytes(),
        );
        self.last = start;
        Some(())
    }
}

/// Puts `part` at its place.
fn put(bytes: &mut [u8], at: usize, part: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + part.len()) {
        place.copy_from_slice(part);
    }
}

/// An answer as it came: its attributes are read by who knows their meaning. Rules hold
/// expressions of anybody's making, and one that a parser does not know must not be in
/// the way of finding ours.
struct Answer {
    family: u8,
    attributes: Vec<u8>,
}

/// A message that nobody asked for: the subscribers of a group get it.
#[derive(Debug)]
pub struct Notice {
    /// The subsystem, and which of its messages it is.
    pub kind: u16,
    /// `NFPROTO_…`
    pub family: u8,
    /// Its attributes.
    pub attributes: Vec<u8>,
}

impl NetlinkDeserializable for Answer {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            family: payload.first().copied().unwrap_or_default(),
            attributes: payload.get(HEADER..).unwrap_or_default().to_vec(),
        })
    }
}

impl Socket {
    /// Opens one.
    ///
    /// # Errors
    /// When the kernel has no netfilter.
    pub fn open() -> Result<Self> {
        let opened = Self::open_to_close()?;
        deferred_close::keep(opened.0.socket());
        Ok(opened)
    }

    /// Opens one whose end matters: the kernel removes the tables that it owns as soon as it is
    /// closed.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub fn open_to_close() -> Result<Self> {
        Ok(Self(Transport::open(NETLINK_NETFILTER)?))
    }

    /// As [`Socket::open`]; `None` where the kernel has no netfilter.
    ///
    /// # Errors
    /// Any other reason.
    pub fn open_if_any() -> Result<Option<Self>> {
        match Self::open() {
            Err(error) if has_no_netfilter(&error) => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Sends one request and answers the attributes of what the kernel said to it.
    ///
    /// # Errors
    /// [`Refused`] when the kernel refuses.
    pub fn request(&self, message: NetfilterMessage) -> Result<Vec<Vec<u8>>> {
        let answer = self.0.ask::<_, Answer>(message, NLM_F_ACK)?;
        Ok(attributes_of(answer.found))
    }

    /// Asks for every object that `message` describes: the attributes of each. A dump
    /// during which something changed may be incomplete; it is repeated.
    ///
    /// # Errors
    /// [`Refused`], or when changes never stop.
    pub fn dump(&self, message: &NetfilterMessage) -> Result<Vec<Vec<u8>>> {
        let found = self.0.dump::<_, Answer>(message, DUMP_TRIES)?;
        Ok(attributes_of(found))
    }

    /// Hands the kernel several changes of `subsystem` that happen all or not at all; not at
    /// all, too, when something has changed since `generation` (`ERESTART`).
    ///
    /// # Errors
    /// Outside when nothing could be sent or understood; inside, what was refused.
    pub fn batch(
        &self,
        subsystem: NetfilterSubsystem,
        generation: Option<u32>,
        changes: Vec<(NetfilterMessage, u16)>,
    ) -> Result<std::result::Result<(), BatchRefused>> {
        let control = |message: ControlMessage| {
            let header =
                NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, u8::from(subsystem).into());
            (NetfilterMessage::new(header, message), 0)
        };
        let count = u32::try_from(changes.len())?;
        let mut messages = Vec::with_capacity(changes.len() + 2);
        messages.push(control(match generation {
            None => ControlMessage::BatchBegin,
            Some(number) => ControlMessage::Other {
                message_type: ControlMessage::BatchBegin.message_type().into(),
                attributes: vec![DefaultNla::new(GENERATION, number.to_be_bytes().into())],
            },
        }));
        messages.extend(changes);
        // One acknowledgement, for the last change: the answers to thousands would not
        // fit into the receive buffer. Refusals come unasked.
        if let Some((_, flags)) = messages.last_mut() {
            *flags |= NLM_F_ACK;
        }
        messages.push(control(ControlMessage::BatchEnd));
        let first = self.send(messages)?;
        self.committed(first, count)
    }

    /// As [`Socket::batch`], whatever has changed.
    ///
    /// # Errors
    /// As [`Socket::batch`].
    pub fn commit(&self, mut batch: Batch) -> Result<std::result::Result<(), BatchRefused>> {
        let last = batch.last;
        batch.control(&ControlMessage::BatchEnd);
        let mut bytes = batch.messages.finish();
        let mut first = None;
        let mut start = 0;
        while let Some(length) = bytes.get(start..start + FLAGS - 2) {
            let length = u32::from_ne_bytes(length.try_into()?);
            let sequence = self.0.next_sequence();
            first.get_or_insert(sequence);
            put(&mut bytes, start + SEQUENCE, &sequence.to_ne_bytes());
            if start == last
                && let Some([low, high]) = bytes.get_mut(start + FLAGS..start + FLAGS + 2)
            {
                let flags = u16::from_ne_bytes([*low, *high]) | NLM_F_ACK;
                [*low, *high] = flags.to_ne_bytes();
            }
            start += usize::try_from(length)?.max(NETLINK_HEADER);
        }
        self.send_bytes(&bytes)?;
        self.committed(first.unwrap_or_default(), batch.count)
    }

    /// What the kernel said to a batch of so many changes, whose `first` message is its beginning.
    fn committed(&self, first: u32, count: u32) -> Result<std::result::Result<(), BatchRefused>> {
        let mut failure = None;
        let end = self.0.receive::<Answer, _>(Overflow::ReadOn, |answer| {
            let place = answer.header.sequence_number.wrapping_sub(first);
            let NetlinkPayload::Error(error) = answer.payload else {
                return None;
            };
            if place > count {
                return None;
            }
            if error.code.is_some() {
                let cause = refused(error.raw_code(), &error.header);
                let message = place.checked_sub(1).and_then(|n| usize::try_from(n).ok());
                failure.get_or_insert(BatchRefused { message, cause });
            }
            // What is refused as a whole, at its beginning, gets no other answer.
            (place == count || place == 0).then_some(())
        })?;
        match failure {
            Some(failure) => Ok(Err(failure)),
            None => Ok(Ok(end.context("netfilter did not answer")?)),
        }
    }

    /// Subscribes to what the kernel tells the `group`.
    ///
    /// # Errors
    /// When it may not be heard.
    pub fn join(&self, group: u32) -> Result<()> {
        self.0.subscribe(group)
    }

    /// What has been told since, waiting for some at most `patience`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn notices(&self, patience: Duration) -> Result<Vec<Notice>> {
        self.0.wait(patience)?;
        let mut heard = Vec::new();
        self.0.receive(Overflow::ReadOn, |message| {
            let kind = message.header.message_type;
            if let NetlinkPayload::InnerMessage(Answer { family, attributes }) = message.payload {
                heard.push(Notice {
                    kind,
                    family,
                    attributes,
                });
            }
            None::<()>
        })?;
        Ok(heard)
    }

    /// Sends messages in one piece; answers the sequence number of the first.
    fn send(&self, messages: Vec<(NetfilterMessage, u16)>) -> Result<u32> {
        let mut bytes = Vec::new();
        let mut first = None;
        for (message, flags) in messages {
            let sequence = self.0.write(&mut bytes, message, flags);
            first.get_or_insert(sequence);
        }
        self.send_bytes(&bytes)?;
        Ok(first.unwrap_or_default())
    }

    fn send_bytes(&self, bytes: &[u8]) -> Result<()> {
        self.make_room(bytes.len());
        self.0.send(bytes)
    }

    /// Makes the send buffer hold a message of `bytes`: a batch cannot be split.
    fn make_room(&self, bytes: usize) {
        /// Every kernel's default is more.
        const ENOUGH: usize = 64 * 1024;
        if bytes < ENOUGH {
            return;
        }
        // The kernel doubles either value for its own book-keeping. The first is not
        // limited but needs privileges on the host, not in a user namespace only; where
        // the second is not enough either, sending says so.
        if setsockopt(self.0.socket(), sockopt::SndBufForce, &bytes).is_err() {
            setsockopt(self.0.socket(), sockopt::SndBuf, &bytes).ok();
        }
    }
}

/// The attributes of each answer.
fn attributes_of(found: Vec<Answer>) -> Vec<Vec<u8>> {
    found.into_iter().map(|answer| answer.attributes).collect()
}

fn has_no_netfilter(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::raw_os_error)
        .is_some_and(|errno| Errno::from_raw(errno) == Errno::EPROTONOSUPPORT)
}

/// The attributes in `bytes`: kind, without the flags, and value. Ends at the first that
/// is malformed.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes)
        .map_while(Result::ok)
        .filter_map(|attribute| {
            let (kind, length) = (attribute.kind(), attribute.value_length());
            let value = attribute.into_inner().get(NLA_HEADER_SIZE..)?;
            Some((kind, value.get(..length)?))
        })
}

/// A number as netfilter sends it.
pub fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// The value of the first attribute of `kind`.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}
