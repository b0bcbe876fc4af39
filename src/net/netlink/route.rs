//! One rtnetlink socket per namespace (rtnetlink(7)).
//!
//! A socket stays in the namespace it was opened in and can be used from outside, so
//! nothing but sysctls needs a thread in the container's namespace.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use netlink_packet_core::{NLM_F_ACK, NetlinkDeserializable, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use crate::net::netlink::refusal::errno;
use crate::net::netlink::transport::Transport;
use crate::net::netns::Netns;

/// How often a dump that raced with a change is repeated before it is an error.
const DUMP_TRIES: u32 = 10;

/// A socket in one namespace. Clones share it.
#[derive(Clone)]
pub struct Netlink(Rc<Transport>);

impl Netlink {
    /// A socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn open() -> Result<Self> {
        Ok(Self(Rc::new(Transport::open(NETLINK_ROUTE)?)))
    }

    /// A socket in `netns`.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel refuses a socket.
    pub fn open_in(netns: &Netns) -> Result<Self> {
        let opened = netns.inside(|| Transport::open(NETLINK_ROUTE))?;
        Ok(Self(Rc::new(opened)))
    }

    /// Sends a request that is answered with an acknowledgement only. `flags` beside
    /// `NLM_F_REQUEST` and `NLM_F_ACK`.
    ///
    /// # Errors
    /// [`Refused`] when the kernel refuses.
    pub fn request(&self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        let answer = self
            .0
            .ask::<_, RouteNetlinkMessage>(message, NLM_F_ACK | flags);
        answer.map(drop)
    }

    /// Asks for one object; `None` when the kernel has none.
    ///
    /// # Errors
    /// [`Refused`] for anything but "no such device".
    pub fn get<M: NetlinkSerializable + NetlinkDeserializable>(
        &self,
        message: M,
    ) -> Result<Option<M>> {
        match self.0.ask::<_, M>(message, NLM_F_ACK) {
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
        self.0.dump(message, DUMP_TRIES)
    }

    /// As [`Netlink::dump`], of the objects only that agree with what `message` names: else
    /// the kernel tells of all there are, as it does before 4.20.
    ///
    /// # Errors
    /// As [`Netlink::dump`].
    pub fn dump_of(&self, message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>> {
        let strict = |on| drop(self.0.socket().set_netlink_get_strict_chk(on));
        strict(true);
        let found = self.dump(message);
        strict(false);
        found
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
            let changes = Transport::open(NETLINK_ROUTE)?;
            changes.subscribe(what.group())?;
            Ok(changes)
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
            if left.is_zero() || !changes.wait(left)? {
                return Ok(None);
            }
            // Notifications that were lost mean a change, too: the next look sees it.
            changes.drain();
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
