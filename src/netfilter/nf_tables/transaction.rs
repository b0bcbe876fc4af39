//! Changes to the ruleset that happen all or not at all.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use netlink_packet_netfilter::NetfilterSubsystem;
use nix::errno::Errno;

use crate::netfilter::nf_tables::change::Change;
use crate::netfilter::nfnetlink::socket::{BatchRefused, Socket};

/// How often a transaction is tried that others got in the way of, and how long to wait
/// before the second time; twice as long before each further one (half a second in all).
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(1);

/// The number in a transaction of the first set that is part of a rule. Sets with a name are
/// all number 1, which nobody asks for.
pub const FIRST_SET: u32 = 2;

/// Makes the changes in one transaction; `false` when one was refused, and none made.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn try_apply(socket: &Socket, changes: &[Change]) -> Result<bool> {
    Ok(send(socket, changes)?.is_ok())
}

/// Sends the changes. What was refused is a change's number, not a message's.
fn send(socket: &Socket, changes: &[Change]) -> Result<std::result::Result<(), BatchRefused>> {
    let generation = changes.iter().find_map(|change| match change {
        Change::FlushListed(_, generation) => Some(*generation),
        _ => None,
    });
    let mut next_set = FIRST_SET;
    let (mut messages, mut about) = (Vec::new(), Vec::new());
    for (index, change) in changes.iter().enumerate() {
        messages.extend(change.messages(&mut next_set));
        about.resize(messages.len(), index);
    }
    let done = socket.batch(NetfilterSubsystem::NfTables, generation, messages)?;
    Ok(
        done.map_err(|BatchRefused { message, cause }| BatchRefused {
            message: message.and_then(|message| about.get(message).copied()),
            cause,
        }),
    )
}

/// Asks `plan` what to change and changes it, in one transaction. When others change
/// the same things at the same time, it starts over: `plan` looks again.
///
/// # Errors
/// Those of `plan`, and the change that the kernel refuses.
pub fn apply(socket: &Socket, plan: impl Fn() -> Result<Vec<Change>>) -> Result<()> {
    let mut pause = PAUSE;
    for left in (0..TRIES).rev() {
        let changes = plan()?;
        if changes.is_empty() {
            return Ok(());
        }
        let Err(refused) = send(socket, &changes)? else {
            return Ok(());
        };
        let BatchRefused { message, cause } = refused;
        let change = message.and_then(|index| changes.get(index));
        // ENOENT: what was there when the plan was made is gone; EEXIST: what was not is.
        let raced = matches!(
            cause.errno,
            Errno::EBUSY
                | Errno::EINTR
                | Errno::EAGAIN
                | Errno::ERESTART
                | Errno::ENOENT
                | Errno::EEXIST
        );
        if !raced || left == 0 {
            let change = change.map_or_else(|| "change the ruleset".to_owned(), Change::to_string);
            return Err(cause).context(format!("nftables: {change}"));
        }
        sleep(pause);
        pause *= 2;
    }
    Ok(())
}
