//! One rtnetlink socket per namespace (rtnetlink(7)); the only asynchronous code.
//!
//! A socket stays in the namespace it was opened in and can be used from outside, so
//! nothing but sysctls needs a thread in the container's namespace.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::BoxStream;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::AsyncSocket;
use nix::errno::Errno;
use rtnetlink::{Handle, MulticastGroup};
use tokio::runtime::Runtime;

use super::netns::Netns;
use crate::log;

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

/// One socket, as long as it works.
struct Connection {
    handle: Handle,
    /// Tells each time the kernel could not say something (`ENOBUFS`).
    losses: BoxStream<'static, ()>,
}

/// Whether a request with this error may have been carried out all the same: no answer
/// came, rather than a refusal.
pub fn is_unanswered(error: &anyhow::Error) -> bool {
    errno(error).is_none_or(|errno| errno == Errno::ENOBUFS)
}

/// What the kernel said to one request, in one part or in many.
#[derive(Debug, Default)]
struct Answer {
    found: Vec<RouteNetlinkMessage>,
    /// Those of any part.
    flags: u16,
    /// Whether the kernel has said that this is all: nothing else counts as an answer.
    is_complete: bool,
}

impl Answer {
    /// Takes in another part.
    ///
    /// # Errors
    /// [`Refused`] when it is a refusal.
    fn add(&mut self, part: NetlinkMessage<RouteNetlinkMessage>) -> Result<()> {
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

/// A socket in one namespace. Clones share it.
#[derive(Clone)]
pub struct Netlink {
    runtime: Rc<Runtime>,
    connection: Rc<RefCell<Connection>>,
    /// Where the socket is, if not in the namespace of this process.
    netns: Option<Netns>,
}

impl Netlink {
    /// A socket in the namespace of this process.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn open() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .context("start the netlink runtime")?;
        let connection = connect(&runtime)?;
        Ok(Self {
            runtime: Rc::new(runtime),
            connection: Rc::new(RefCell::new(connection)),
            netns: None,
        })
    }

    /// Another socket, in `netns`.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel refuses a socket.
    pub fn open_inside(&self, netns: &Netns) -> Result<Self> {
        let runtime: &Runtime = &self.runtime;
        let connection = netns.inside(|| connect(runtime))?;
        Ok(Self {
            runtime: Rc::clone(&self.runtime),
            connection: Rc::new(RefCell::new(connection)),
            netns: Some(netns.clone()),
        })
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
    pub fn get(&self, message: RouteNetlinkMessage) -> Result<Option<RouteNetlinkMessage>> {
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

    /// The whole answer to one request.
    fn exchange(&self, message: RouteNetlinkMessage, flags: u16) -> Result<Answer> {
        let answer = self.ask(message, flags);
        if answer.as_ref().is_err_and(is_unanswered) {
            self.reconnect();
        }
        answer
    }

    /// A connection ends with the first error of its socket. Whoever asks next, like an
    /// undo step, needs another.
    fn reconnect(&self) {
        let runtime: &Runtime = &self.runtime;
        let connected = match &self.netns {
            Some(netns) => netns.inside(|| connect(runtime)),
            None => connect(runtime),
        };
        match connected {
            Ok(connection) => drop(self.connection.replace(connection)),
            Err(error) => log::warn(&format!("{error:#}")),
        }
    }

    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> Result<Answer> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut connection = self.connection.borrow_mut();
        let Connection { handle, losses } = &mut *connection;
        self.runtime.block_on(async {
            let mut parts = handle.request(request).context("send a netlink request")?;
            let mut answer = Answer::default();
            loop {
                match select(parts.next(), losses.next()).await {
                    Either::Left((Some(part), _)) => answer.add(part)?,
                    Either::Left((None, _)) => break,
                    // The rest would be waited for in vain.
                    Either::Right(_) => {
                        return Err(refused(-(Errno::ENOBUFS as i32), &[])).context(
                            "the kernel had no memory for its answer, or its socket was closed",
                        );
                    }
                }
            }
            anyhow::ensure!(answer.is_complete, "the kernel's answer broke off");
            Ok(answer)
        })
    }

    /// Waits until `look` finds something, looking once and again whenever the kernel
    /// tells of a change to `what`; `None` after `limit`. `netns` is the namespace of
    /// this socket if it is not the process's own.
    ///
    /// # Errors
    /// Those of `look`, and when the kernel refuses to tell.
    pub fn wait_until<T>(
        &self,
        what: Changes,
        netns: Option<&Netns>,
        limit: Duration,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        let runtime: &Runtime = &self.runtime;
        let subscribe = || {
            let _guard = runtime.enter();
            let (connection, _, changes) = rtnetlink::new_multicast_connection(&[what.group()])
                .context("subscribe to netlink notifications")?;
            runtime.spawn(connection);
            Ok(changes)
        };
        let mut changes = match netns {
            Some(netns) => netns.inside(subscribe)?,
            None => subscribe()?,
        };
        let end = tokio::time::Instant::now() + limit;
        loop {
            // First, for what happened before the subscription.
            if let Some(found) = look()? {
                return Ok(Some(found));
            }
            let told = self
                .runtime
                .block_on(async { tokio::time::timeout_at(end, changes.next()).await });
            // A stream that never ends must not win over the clock.
            if !matches!(told, Ok(Some(_))) || tokio::time::Instant::now() >= end {
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
    fn group(self) -> MulticastGroup {
        match self {
            Self::Links => MulticastGroup::Link,
            Self::Ipv6Addresses => MulticastGroup::Ipv6Ifaddr,
        }
    }
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Netlink")
    }
}

/// A socket in the namespace of the calling thread, served by `runtime`.
fn connect(runtime: &Runtime) -> Result<Connection> {
    let _guard = runtime.enter();
    let (mut connection, handle, unasked) =
        rtnetlink::new_connection().context("open a netlink socket")?;
    connection.set_forward_ack(true);
    connection.set_forward_done(true);
    let socket = connection.socket_mut().socket_mut();
    // Explanations are a comfort: kernels before 4.12 do without.
    drop(socket.set_ext_ack(true));
    drop(socket.set_cap_ack(true));
    runtime.spawn(connection);
    // Nothing has been subscribed to: all that comes unasked is the word that an answer
    // was lost.
    let losses = unasked.map(drop).boxed();
    Ok(Connection { handle, losses })
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
