//! One netlink socket, of any protocol: sending, receiving, dumps and refusals.
//!
//! The kernel handles a request while it is being sent, so its answer is there when sending
//! returns: nothing but [`Transport::wait`] ever waits.

use std::cell::{Cell, RefCell};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::net::netlink::refusal::{Refused, errno, refused};

/// The kernel fills at most this much at once.
const RECEIVE: usize = 32 * 1024;

/// What to do when the kernel had no room for an answer (`ENOBUFS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// The answer that was lost matters: fail.
    Fail,
    /// Many refusals at once overflow the receive buffer, and the first are in it: read on.
    ReadOn,
}

/// A socket in the namespace that the calling thread was in when it was opened.
pub struct Transport {
    socket: Arc<Socket>,
    /// Of the last message sent. Answers to earlier ones may still be in the receive buffer.
    sequence: Cell<u32>,
    /// Where answers are received.
    buffer: RefCell<Vec<u8>>,
}

impl Transport {
    /// Opens a socket of `protocol` (`NETLINK_…`) that receives from the kernel only and
    /// never blocks.
    ///
    /// # Errors
    /// When the kernel refuses one; `EPROTONOSUPPORT` where it lacks the protocol.
    pub fn open(protocol: isize) -> Result<Self> {
        let open = || {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_non_blocking(true)?;
            Ok::<_, std::io::Error>(socket)
        };
        let socket = open().context("open a netlink socket")?;
        // Kernels before 4.12 give no explanations.
        drop(socket.set_ext_ack(true));
        drop(socket.set_cap_ack(true));
        Ok(Self {
            socket: Arc::new(socket),
            sequence: Cell::new(0),
            buffer: RefCell::new(Vec::with_capacity(RECEIVE)),
        })
    }

    /// The socket itself.
    pub fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// The sequence number of the next message.
    pub fn next_sequence(&self) -> u32 {
        let next = self.sequence.get().wrapping_add(1);
        self.sequence.set(next);
        next
    }

    /// Appends a request to `bytes`, padded; returns its sequence number. `flags` beside
    /// `NLM_F_REQUEST`.
    pub fn write<M: NetlinkSerializable>(
        &self,
        bytes: &mut Vec<u8>,
        message: M,
        flags: u16,
    ) -> u32 {
        let payload = NetlinkPayload::InnerMessage(message);
        let mut request = NetlinkMessage::new(NetlinkHeader::default(), payload);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.next_sequence();
        request.finalize();
        let start = bytes.len();
        bytes.resize(start + request.buffer_len().next_multiple_of(4), 0);
        request.serialize(bytes.get_mut(start..).unwrap_or_default());
        request.header.sequence_number
    }

    /// Sends what [`Transport::write`] wrote.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn send(&self, bytes: &[u8]) -> Result<()> {
        let sent = self.socket.send(bytes, 0);
        sent.with_context(|| format!("send {} bytes over netlink", bytes.len()))?;
        Ok(())
    }

    /// Passes every received message to `take` until that returns something; `None` when
    /// there is nothing more to read.
    ///
    /// # Errors
    /// When a message cannot be read, or was lost and `overflow` says to fail.
    pub fn receive<M: NetlinkDeserializable, T>(
        &self,
        overflow: Overflow,
        mut take: impl FnMut(NetlinkMessage<M>) -> Option<T>,
    ) -> Result<Option<T>> {
        let mut buffer = self.buffer.borrow_mut();
        loop {
            buffer.clear();
            if let Err(error) = self.socket.recv(&mut *buffer, 0) {
                match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EINTR) => continue,
                    Some(Errno::ENOBUFS) if overflow == Overflow::ReadOn => continue,
                    Some(Errno::ENOBUFS) => {
                        return Err(refused(-(Errno::ENOBUFS as i32), &[]))
                            .context("the kernel had no memory for its answer");
                    }
                    Some(Errno::EAGAIN) => return Ok(None),
                    _ => return Err(error).context("receive a netlink answer"),
                }
            }
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                let message =
                    NetlinkMessage::<M>::deserialize(rest).context("read a netlink answer")?;
                let length = usize::try_from(message.header.length)?.next_multiple_of(4);
                if let Some(end) = take(message) {
                    return Ok(Some(end));
                }
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }

    /// Sends one request and returns the whole answer. `flags` beside `NLM_F_REQUEST`.
    ///
    /// # Errors
    /// [`Refused`] when the kernel refuses.
    pub fn ask<M: NetlinkSerializable, A: NetlinkDeserializable>(
        &self,
        message: M,
        flags: u16,
    ) -> Result<Answer<A>> {
        let mut bytes = Vec::new();
        let sequence = self.write(&mut bytes, message, flags);
        self.send(&bytes)?;
        let mut answer = Answer::default();
        let end = self.receive(Overflow::Fail, |part| {
            if part.header.sequence_number != sequence {
                return None;
            }
            match answer.add(part) {
                Ok(()) if !answer.is_complete => None,
                end => Some(end),
            }
        })?;
        end.context("the kernel's answer broke off")??;
        Ok(answer)
    }

    /// Asks for every object that `message` describes. A dump during which something
    /// changed may be incomplete; it is repeated, `tries` times at most.
    ///
    /// # Errors
    /// [`Refused`], or when changes never stop: what was found until then is not returned.
    pub fn dump<M: NetlinkSerializable + Clone, A: NetlinkDeserializable>(
        &self,
        message: &M,
        tries: u32,
    ) -> Result<Vec<A>> {
        until_consistent(tries, || self.ask(message.clone(), NLM_F_DUMP))
    }

    /// Subscribes to the notifications of a multicast group.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn subscribe(&self, group: u32) -> Result<()> {
        let joined = self.socket.add_membership(group);
        joined.with_context(|| format!("subscribe to netlink group {group}"))
    }

    /// Waits at most `limit` until there is something to read; returns whether there is. A
    /// signal ends the wait, too, as if there were.
    ///
    /// # Errors
    /// When the kernel refuses to wait.
    pub fn wait(&self, limit: Duration) -> Result<bool> {
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, limit) {
            Ok(0) => Ok(false),
            Ok(_) | Err(Errno::EINTR) => Ok(true),
            Err(error) => Err(error).context("wait for netlink notifications"),
        }
    }

    /// Throws away everything that was received.
    pub fn drain(&self) {
        let mut buffer = self.buffer.borrow_mut();
        buffer.clear();
        while self.socket.recv(&mut *buffer, 0).is_ok() {
            buffer.clear();
        }
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Transport")
    }
}

/// What the kernel said to one request, in one part or in many.
#[derive(Debug)]
pub struct Answer<M> {
    /// The objects.
    pub found: Vec<M>,
    /// Those of any part.
    flags: u16,
    /// Whether the kernel has said that this is all: nothing else counts as an answer.
    is_complete: bool,
}

impl<M> Default for Answer<M> {
    fn default() -> Self {
        Self {
            found: Vec::new(),
            flags: 0,
            is_complete: false,
        }
    }
}

impl<M> Answer<M> {
    /// Adds another part.
    ///
    /// # Errors
    /// [`Refused`] when it is a refusal.
    fn add(&mut self, part: NetlinkMessage<M>) -> Result<(), Refused> {
        self.flags |= part.header.flags;
        match part.payload {
            NetlinkPayload::InnerMessage(message) => self.found.push(message),
            NetlinkPayload::Error(error) if error.code.is_some() => {
                return Err(refused(error.raw_code(), &error.header));
            }
            NetlinkPayload::Done(done) if done.code != 0 => {
                return Err(refused(done.code, &[]));
            }
            NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => self.is_complete = true,
            _ => {}
        }
        Ok(())
    }
}

/// Repeats a dump until nothing has changed underneath, `tries` times at most.
fn until_consistent<A>(tries: u32, mut ask: impl FnMut() -> Result<Answer<A>>) -> Result<Vec<A>> {
    for _ in 0..tries {
        match ask() {
            Ok(answer) if answer.flags & NLM_F_DUMP_INTR == 0 => return Ok(answer.found),
            // Some dumps end this way instead of setting the flag.
            Err(error) if errno(&error) != Some(Errno::EINTR) => return Err(error),
            _ => {}
        }
    }
    anyhow::bail!("list kernel objects: they kept changing, {tries} times")
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroI32;

    use netlink_packet_core::{DoneMessage, ErrorMessage};
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    const DUMP_TRIES: u32 = 10;

    type Payload = NetlinkPayload<RouteNetlinkMessage>;

    fn link() -> Payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(LinkMessage::default()))
    }

    fn done(code: i32) -> Payload {
        let mut done = DoneMessage::default();
        done.code = code;
        NetlinkPayload::Done(done)
    }

    fn error(code: i32) -> Payload {
        let mut error = ErrorMessage::default();
        error.code = NonZeroI32::new(code);
        NetlinkPayload::Error(error)
    }

    /// An answer in parts, each with its flags.
    fn answer(parts: Vec<(Payload, u16)>) -> Result<Answer<RouteNetlinkMessage>> {
        let mut answer = Answer::default();
        for (payload, flags) in parts {
            let mut header = NetlinkHeader::default();
            header.flags = flags;
            answer.add(NetlinkMessage::new(header, payload))?;
        }
        Ok(answer)
    }

    #[test]
    fn an_answer_is_complete_when_the_kernel_says_so() {
        let parts = answer(vec![(link(), 2), (link(), 2)]).unwrap();
        assert!(!parts.is_complete && parts.found.len() == 2);
        let whole = answer(vec![(link(), 2), (link(), 2), (done(0), 2)]).unwrap();
        assert!(whole.is_complete && whole.found.len() == 2);
        assert!(answer(vec![(error(0), 0)]).unwrap().is_complete);
        for refusal in [error(-19), done(-19)] {
            let error = answer(vec![(link(), 2), (refusal, 0)]).unwrap_err();
            assert_eq!(errno(&error), Some(Errno::ENODEV));
        }
    }

    /// Asks with answers that are `interrupted` so many times; what came of it, and after
    /// how many questions.
    fn ask(
        interrupted: u32,
        how: impl Fn() -> Result<Answer<RouteNetlinkMessage>>,
    ) -> (Option<usize>, u32) {
        let mut asked = 0;
        let found = until_consistent(DUMP_TRIES, || {
            asked += 1;
            if asked <= interrupted {
                how()
            } else {
                answer(vec![(link(), 2), (link(), 2), (done(0), 2)])
            }
        });
        (found.ok().map(|found| found.len()), asked)
    }

    #[test]
    fn a_dump_that_changed_underneath_is_repeated_and_never_told() {
        let flagged = || {
            answer(vec![
                (link(), 2),
                (link(), 2 | NLM_F_DUMP_INTR),
                (done(0), 2),
            ])
        };
        let at_the_end = || answer(vec![(link(), 2), (done(0), 2 | NLM_F_DUMP_INTR)]);
        let refused = || answer(vec![(link(), 2), (done(-(Errno::EINTR as i32)), 2)]);
        for how in [flagged, at_the_end, refused] {
            assert_eq!(ask(0, how), (Some(2), 1));
            assert_eq!(ask(3, how), (Some(2), 4));
            assert_eq!(ask(u32::MAX, how), (None, DUMP_TRIES));
        }
        let other = || answer(vec![(link(), 2), (error(-(Errno::EPERM as i32)), 0)]);
        assert_eq!(ask(3, other), (None, 1));
    }
}
