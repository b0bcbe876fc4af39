//! One rtnetlink socket per namespace (rtnetlink(7)).
//!
//! A socket stays in the namespace it was opened in and can be used from outside, so
//! nothing but sysctls needs a thread in the container's namespace.
//!
//! The kernel works a request off while it is being sent, so its answer is there when
//! sending returns: nothing but [`Netlink::wait_until`] ever waits.

use std::cell::{Cell, RefCell};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::netns::Netns;

/// What the kernel answered to a request it refused.
#[derive(Debug)]
pub struct Refused {
    /// `UnknownErrno` for a number that has no name here.
    pub errno: Errno,
    /// The kernel's own explanation, where it gave one.
    reason: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // In the words people search for: "file exists (EEXIST)".
        write!(f, "{} ({:?})", self.errno.desc().to_lowercase(), self.errno)?;
        if !self.reason.is_empty() {
            write!(f, ": {}", self.reason)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

/// Which error of the kernel is behind `error`, if one is.
pub fn errno(error: &anyhow::Error) -> Option<Errno> {
    error.downcast_ref::<Refused>().map(|refused| refused.errno)
}

/// Turns the errors that mean "it is so already" into success.
///
/// # Errors
/// Every other one.
pub fn tolerate(result: Result<()>, errnos: &[Errno]) -> Result<()> {
    match result {
        Err(error) if errno(&error).is_some_and(|errno| errnos.contains(&errno)) => Ok(()),
        other => other,
    }
}

/// How often a dump that raced with a change is repeated before it is an error.
const DUMP_TRIES: u32 = 10;

/// Whether a request with this error may have been carried out all the same: no answer
/// came, rather than a refusal.
pub fn is_unanswered(error: &anyhow::Error) -> bool {
    errno(error).is_none_or(|errno| errno == Errno::ENOBUFS)
}

/// What the kernel said to one request, in one part or in many.
#[derive(Debug)]
struct Answer<M = RouteNetlinkMessage> {
    found: Vec<M>,
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
    /// Takes in another part.
    ///
    /// # Errors
    /// [`Refused`] when it is a refusal.
    fn add(&mut self, part: NetlinkMessage<M>) -> Result<()> {
        self.flags |= part.header.flags;
        match part.payload {
            NetlinkPayload::InnerMessage(message) => self.found.push(message),
            NetlinkPayload::Error(error) if error.code.is_some() => {
                return Err(refused(error.raw_code(), &error.header).into());
            }
            NetlinkPayload::Done(done) if done.code != 0 => {
                return Err(refused(done.code, &[]).into());
            }
            NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => self.is_complete = true,
            _ => {}
        }
        Ok(())
    }
}

/// Repeats a dump until nothing has changed underneath.
///
/// # Errors
/// The first refusal, or when changes never stop: what was found until then is not told.
fn until_consistent(mut ask: impl FnMut() -> Result<Answer>) -> Result<Vec<RouteNetlinkMessage>> {
    for _ in 0..DUMP_TRIES {
        match ask() {
            Ok(answer) if answer.flags & NLM_F_DUMP_INTR == 0 => return Ok(answer.found),
            // Some dumps end this way instead of setting the flag.
            Err(error) if errno(&error) != Some(Errno::EINTR) => return Err(error),
            _ => {}
        }
    }
    anyhow::bail!("list network objects: they kept changing, {DUMP_TRIES} times")
}

/// The kernel fills at most this much at once.
const RECEIVE: usize = 32 * 1024;

/// A socket in one namespace. Clones share it.
#[derive(Clone)]
pub struct Netlink(Rc<Connection>);

/// What clones share.
struct Connection {
    socket: Socket,
    /// Of the last request. What is left of the answers to earlier ones is not an answer.
    sequence: Cell<u32>,
    /// Where answers are received.
    buffer: RefCell<Vec<u8>>,
}

impl Netlink {
    /// A socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn open() -> Result<Self> {
        Ok(Self::on(open()?))
    }

    /// A socket in `netns`.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel refuses a socket.
    pub fn open_in(netns: &Netns) -> Result<Self> {
        Ok(Self::on(netns.inside(open)?))
    }

    fn on(socket: Socket) -> Self {
        Self(Rc::new(Connection {
            socket,
            sequence: Cell::new(0),
            buffer: RefCell::new(Vec::with_capacity(RECEIVE)),
        }))
    }

    /// Sends a request that is answered with an acknowledgement only. `flags` beside
    /// `NLM_F_REQUEST` and `NLM_F_ACK`.
    ///
    /// # Errors
    /// [`Refused`] when the kernel refuses.
    pub fn request(&self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.exchange(message, NLM_F_ACK | flags).map(drop)
    }

    /// Asks for one object; `None` when the kernel has none.
    ///
    /// # Errors
    /// [`Refused`] for anything but "no such device".
    pub fn get<M: NetlinkSerializable + NetlinkDeserializable>(
        &self,
        message: M,
    ) -> Result<Option<M>> {
        match self.exchange(message, NLM_F_ACK) {
            Ok(answer) => Ok(answer.found.into_iter().next()),
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for every object of a kind. A dump during which something changed may be
    /// incomplete; it is repeated.
    ///
    /// # Errors
    /// [`Refused`], or when changes never stop.
    pub fn dump(&self, message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>> {
        until_consistent(|| self.exchange(message.clone(), NLM_F_DUMP))
    }

    /// As [`Netlink::dump`], of the objects only that agree with what `message` names: else
    /// the kernel tells of all there are, as it does before 4.20.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn dump_of(&self, message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>> {
        let strict = |on| drop(self.0.socket.set_netlink_get_strict_chk(on));
        strict(true);
        let found = self.dump(message);
        strict(false);
        found
    }

    /// The whole answer to one request.
    fn exchange<M: NetlinkSerializable + NetlinkDeserializable>(
        &self,
        message: M,
        flags: u16,
    ) -> Result<Answer<M>> {
        let Connection {
            socket,
            sequence,
            buffer,
        } = &*self.0;
        sequence.set(sequence.get().wrapping_add(1));
        let mut request = NetlinkMessage::new(
            NetlinkHeader::default(),
            NetlinkPayload::InnerMessage(message),
        );
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = sequence.get();
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        socket.send(&bytes, 0).context("send a netlink request")?;
        let mut answer = Answer::default();
        let mut buffer = buffer.borrow_mut();
        while !answer.is_complete {
            receive(socket, &mut buffer)?;
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                let part =
                    NetlinkMessage::<M>::deserialize(rest).context("read a netlink answer")?;
                let length = usize::try_from(part.header.length)?.next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                if part.header.sequence_number == sequence.get() {
                    answer.add(part)?;
                }
            }
        }
        Ok(answer)
    }

    /// Waits until `look` finds something, looking once and again whenever the kernel
    /// tells of a change to `what`; `None` after `limit`. `netns` is where, if
    /// not in the namespace of the calling thread.
    ///
    /// # Errors
    /// Those of `look`, and when the kernel refuses to tell.
    pub fn wait_until<T>(
        what: Changes,
        netns: Option<&Netns>,
        limit: Duration,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        let subscribe = || {
            let socket = open()?;
            socket
                .add_membership(what.group())
                .context("subscribe to netlink notifications")?;
            Ok(socket)
        };
        let changes = match netns {
            Some(netns) => netns.inside(subscribe)?,
            None => subscribe()?,
        };
        let end = Instant::now() + limit;
        loop {
            // First, for what happened before the subscription.
            if let Some(found) = look()? {
                return Ok(Some(found));
            }
            // A stream of changes that never ends must not win over the clock.
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !is_told(&changes, left)? {
                return Ok(None);
            }
        }
    }
}

/// What [`Netlink::wait_until`] listens for.
#[derive(Debug, Clone, Copy)]
pub enum Changes {
    /// A link came, went or changed (`RTNLGRP_LINK`).
    Links,
    /// An IPv6 address came, went or is no longer tentative (`RTNLGRP_IPV6_IFADDR`).
    Ipv6Addresses,
}

impl Changes {
    /// Its number in `enum rtnetlink_groups`.
    fn group(self) -> u32 {
        match self {
            Self::Links => 1,
            Self::Ipv6Addresses => 9,
        }
    }
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Netlink")
    }
}

/// A socket in the namespace of the calling thread. It never waits.
fn open() -> Result<Socket> {
    let open = || {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // From nobody but the kernel.
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        Ok::<_, std::io::Error>(socket)
    };
    let socket = open().context("open a netlink socket")?;
    // Explanations are a comfort: kernels before 4.12 do without.
    drop(socket.set_ext_ack(true));
    drop(socket.set_cap_ack(true));
    Ok(socket)
}

/// Receives a part of the kernel's answer.
///
/// # Errors
/// `ENOBUFS` when an answer was lost.
fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> Result<()> {
    loop {
        buffer.clear();
        let Err(error) = socket.recv(buffer, 0) else {
            return Ok(());
        };
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EINTR) => {}
            Some(Errno::ENOBUFS) => {
                return Err(refused(-(Errno::ENOBUFS as i32), &[]))
                    .context("the kernel had no memory for its answer");
            }
            Some(Errno::EAGAIN) => anyhow::bail!("the kernel's answer broke off"),
            _ => return Err(error).context("receive a netlink answer"),
        }
    }
}

/// Whether the kernel tells of a change within `limit`. All that it has told is forgotten.
fn is_told(changes: &Socket, limit: Duration) -> Result<bool> {
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    let mut ready = [PollFd::new(changes.as_fd(), PollFlags::POLLIN)];
    match poll(&mut ready, limit) {
        Ok(0) => return Ok(false),
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error).context("wait for netlink notifications"),
    }
    // Notes that were lost tell of changes too: the next look sees them.
    let mut note = Vec::with_capacity(RECEIVE);
    while changes.recv(&mut note, 0).is_ok() {
        note.clear();
    }
    Ok(true)
}

/// Reads a refusal. `code` is a negated errno, `header` what follows it in the kernel's
/// error message: its explanation may be there.
pub fn refused(code: i32, header: &[u8]) -> Refused {
    /// `struct nlmsghdr`, which the capped acknowledgement repeats before its attributes.
    const HEADER: usize = 16;
    /// `NLMSGERR_ATTR_MSG`.
    const MESSAGE: u16 = 1;
    let mut attributes = header.get(HEADER..).unwrap_or_default();
    let mut reason = String::new();
    while let [l0, l1, k0, k1, rest @ ..] = attributes {
        let length = usize::from(u16::from_ne_bytes([*l0, *l1]));
        let Some(value) = length.checked_sub(4).and_then(|n| rest.get(..n)) else {
            break;
        };
        if u16::from_ne_bytes([*k0, *k1]) == MESSAGE {
            reason =
                String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned();
        }
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Refused {
        errno: Errno::from_raw(code.saturating_neg()),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroI32;

    use netlink_packet_core::{DoneMessage, ErrorMessage, NetlinkHeader};
    use netlink_packet_route::link::LinkMessage;

    use super::*;

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
    fn answer(parts: Vec<(Payload, u16)>) -> Result<Answer> {
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
    fn ask(interrupted: u32, how: impl Fn() -> Result<Answer>) -> (Option<usize>, u32) {
        let mut asked = 0;
        let found = until_consistent(|| {
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
