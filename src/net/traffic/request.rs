//! What every request to traffic control begins with.

use anyhow::{Context, Result};
use netlink_packet_core::DefaultNla;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use crate::net::link::Link;

/// What limits a link's sending has this handle, `1:`.
pub const LIMIT_HANDLE: TcHandle = TcHandle { major: 1, minor: 0 };

/// A message about a queueing discipline or filter of `link`, of that `kind`.
///
/// # Errors
/// When the link's index is out of range.
pub fn message(link: &Link, kind: &str, options: Vec<DefaultNla>) -> Result<TcMessage> {
    let mut message = TcMessage::with_index(index(link)?);
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    if !options.is_empty() {
        let options = options.into_iter().map(TcOption::Other).collect();
        message.attributes.push(TcAttribute::Options(options));
    }
    Ok(message)
}

/// The index of `link`, as traffic control counts.
///
/// # Errors
/// When it is out of range.
pub fn index(link: &Link) -> Result<i32> {
    i32::try_from(link.index).with_context(|| format!("link {} has no usable index", link.name))
}
