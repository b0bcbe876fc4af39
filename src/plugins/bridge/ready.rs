//! When ADD may say that frames pass between the container, its bridge and the host.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::journal::step;
use crate::log;
use crate::net::link::{self, Link};
use crate::net::netlink::{Changes, Netlink};
use crate::plugins::veth;

/// How long the port's carrier may take: as long as the reference waits for it.
const PORT_LIMIT: Duration = Duration::from_millis(2550);

/// How long the bridge may take to let frames through once the port is up.
const BRIDGE_LIMIT: Duration = Duration::from_millis(500);

/// Waits until frames pass through `port` of `bridge`. It normally has nothing to wait for.
///
/// # Errors
/// When the kernel cannot be asked, or either link is gone; frames that do not pass yet are
/// worth a warning only.
pub fn wait(host: &Netlink, port: &Link, bridge: &Link) -> Result<()> {
    veth::wait_for_port(host, port, PORT_LIMIT)?;
    let mut obstacle = None;
    step("wait until the bridge forwards", || {
        Netlink::wait_until(Changes::Links, None, BRIDGE_LIMIT, || {
            let gone = |link: &Link| format!("{} was deleted while it was being set up", link.name);
            let port = link::by_index(host, port.index)?.with_context(|| gone(port))?;
            let bridge = link::by_index(host, bridge.index)?.with_context(|| gone(bridge))?;
            let state = State::of(&port, &bridge);
            obstacle = state.obstacle(&port, &bridge);
            Ok(state.is_final().then_some(()))
        })
    })?;
    if let Some(obstacle) = obstacle {
        log::warn(&obstacle);
    }
    Ok(())
}

/// What becomes of frames at a port that is up itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// They pass.
    Passes,
    /// The spanning tree protocol lets none through for seconds.
    SpanningTree(&'static str),
    /// The bridge, or the port, is not up.
    Down,
    /// The bridge has not noticed yet that it has a carrier.
    NoCarrier,
}

impl State {
    fn of(port: &Link, bridge: &Link) -> Self {
        match port.is_blocked {
            _ if !bridge.is_up => Self::Down,
            Some("disabled") => Self::Down,
            Some(state) => Self::SpanningTree(state),
            // A bridge whose carrier has never changed stays "unknown", which is up.
            None if bridge.is_cut_off || !bridge.counts_as_up => Self::NoCarrier,
            None => Self::Passes,
        }
    }

    /// Whether waiting longer is of no use.
    fn is_final(self) -> bool {
        matches!(self, Self::Passes | Self::SpanningTree(_))
    }

    /// What keeps frames from passing, in words.
    fn obstacle(self, port: &Link, bridge: &Link) -> Option<String> {
        let (port, name) = (&port.name, &bridge.name);
        match self {
            Self::Passes => None,
            Self::SpanningTree(state) => Some(format!(
                "port {port} of bridge {name} is {state}, as the spanning tree protocol wants: \
                 frames pass after about {} s. ADD does not wait for that",
                f64::from(bridge.forward_delay) * 2.0 / 100.0
            )),
            Self::Down => Some(format!("port {port} of bridge {name} is not up yet")),
            Self::NoCarrier => Some(format!("bridge {name} is not up yet")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for() {
        let bridge = |is_up, is_cut_off, counts_as_up| Link {
            name: "br0".into(),
            forward_delay: 1500,
            is_up,
            is_cut_off,
            counts_as_up,
            ..Link::default()
        };
        let port = |is_blocked| Link {
            name: "veth0".into(),
            is_blocked,
            ..Link::default()
        };
        let up = bridge(true, false, true);
        for (port, bridge, state, is_final) in [
            (port(None), &up, State::Passes, true),
            (port(Some("disabled")), &up, State::Down, false),
            (
                port(Some("listening")),
                &bridge(true, true, false),
                State::SpanningTree("listening"),
                true,
            ),
            (
                port(Some("disabled")),
                &bridge(false, true, false),
                State::Down,
                false,
            ),
            (
                port(None),
                &bridge(true, true, false),
                State::NoCarrier,
                false,
            ),
            (
                port(None),
                &bridge(true, false, false),
                State::NoCarrier,
                false,
            ),
        ] {
            let found = State::of(&port, bridge);
            assert_eq!((found, found.is_final()), (state, is_final));
            let words = found.obstacle(&port, bridge);
            assert_eq!(words.is_none(), state == State::Passes);
        }
        let words = State::SpanningTree("listening").obstacle(&port(Some("listening")), &up);
        assert!(words.unwrap().contains("after about 30 s"));
    }
}
