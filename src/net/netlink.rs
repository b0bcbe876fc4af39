//! One rtnetlink socket per namespace (rtnetlink(7)); the only asynchronous code.
//!
//! A socket stays in the namespace it was opened in and can be used from outside, so
//! nothing but sysctls needs a thread in the container's namespace.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::AsyncSocket;
use nix::errno::Errno;
use rtnetlink::{Handle, MulticastGroup};
use tokio::runtime::Runtime;

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

/// Set by the kernel on a dump that changed underneath (`NLM_F_DUMP_INTR`).
const DUMP_INTERRUPTED: u16 = 0x10;

/// A socket in one namespace. Clones share it.
#[derive(Clone)]
pub struct Netlink {
    runtime: Rc<Runtime>,
    handle: Handle,
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
        let handle = connect(&runtime)?;
        Ok(Self {
            runtime: Rc::new(runtime),
            handle,
        })
    }

    /// Another socket, in `netns`.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel refuses a socket.
    pub fn open_inside(&self, netns: &Netns) -> Result<Self> {
        let runtime: &Runtime = &self.runtime;
        let handle = netns.inside(|| connect(runtime))?;
        Ok(Self {
            runtime: Rc::clone(&self.runtime),
            handle,
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
            Ok((found, _)) => Ok(found.into_iter().next()),
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
        for _ in 0..DUMP_TRIES {
            let (found, flags) = self.exchange(message.clone(), NLM_F_DUMP)?;
            if flags & DUMP_INTERRUPTED == 0 {
                return Ok(found);
            }
        }
        anyhow::bail!("list network objects: they kept changing, {DUMP_TRIES} times")
    }

    /// All answers to one request, and the flags that any of them carried.
    fn exchange(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(Vec<RouteNetlinkMessage>, u16)> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut handle = self.handle.clone();
        self.runtime.block_on(async {
            let mut answers = handle.request(request).context("send a netlink request")?;
            let mut found = Vec::new();
            let mut flags = 0;
            // An answer counts only when the kernel has said that it is complete.
            let mut complete = false;
            while let Some(answer) = answers.next().await {
                flags |= answer.header.flags;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(refused(error.raw_code(), &error.header).into());
                    }
                    NetlinkPayload::Done(done) if done.code != 0 => {
                        return Err(refused(done.code, &[]).into());
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => complete = true,
                    // The socket's buffer was too small for what the kernel had to say.
                    NetlinkPayload::Overrun(_) => flags |= DUMP_INTERRUPTED,
                    _ => {}
                }
            }
            anyhow::ensure!(complete, "the kernel's answer broke off");
            Ok((found, flags))
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
fn connect(runtime: &Runtime) -> Result<Handle> {
    let _guard = runtime.enter();
    let (mut connection, handle, _) =
        rtnetlink::new_connection().context("open a netlink socket")?;
    connection.set_forward_ack(true);
    connection.set_forward_done(true);
    let socket = connection.socket_mut().socket_mut();
    // Explanations are a comfort: kernels before 4.12 do without.
    drop(socket.set_ext_ack(true));
    drop(socket.set_cap_ack(true));
    runtime.spawn(connection);
    Ok(handle)
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
