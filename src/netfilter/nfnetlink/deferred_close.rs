//! Sockets whose closing nobody waits for.
//!
//! When a netfilter socket is closed, the kernel first destroys what anybody's transactions in
//! this namespace have removed, which takes a grace period (RCU) of 6 to 20 ms; meanwhile no
//! other transaction begins, and no link comes or goes (`nft_rcv_nl_event()` has the lock that
//! `nf_tables_netdev_event()` needs). Nothing depends on it: what is removed is out of use when
//! its transaction ends. So sockets stay open to the end of the process. Then they are put into
//! a message that nobody can ever read, which the kernel finds (`unix_gc()` in
//! `net/unix/garbage.c`) and throws away: since Linux 6.9 in a thread of its own. An older one
//! does it while we wait, as if we had closed them.
//!
//! What it gains: without it, a DEL took either 21 or 62 ms, as chance had it, because the kernel
//! closed sockets under the lock that deleting a link needs. On kernels before 6.9 it gains
//! nothing, and does no harm. One line switches it off: that in `socket.rs` which calls [`keep`].
//! Without it [`leave`] finds nothing to do.
//!
//! The thread must not be early, or the next plugin of the chain waits instead of this one. For
//! each file that is inside another it begins anew, a tick later (`delayed_fput_work` in
//! `fs/file_table.c`): so there are messages inside messages, as many as it takes until there
//! is nothing left to destroy.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use netlink_sys::Socket;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};

/// The latest that were opened.
static KEPT: Mutex<VecDeque<Arc<Socket>>> = Mutex::new(VecDeque::new());

/// A program that runs for long is not to run out of file descriptors.
const MOST: usize = 16;

/// How many messages are around them. With a tick of 4 ms that takes the kernel 16 to 32 ms.
/// Old versions refuse to nest much deeper (`MAX_RECURSION_LEVEL`).
const DEPTH: usize = 4;

/// Keeps the socket open to the end.
pub fn keep(socket: &Arc<Socket>) {
    // A poisoned lock means a panic, which has ended the process.
    let Ok(mut kept) = KEPT.lock() else { return };
    if kept.len() == MOST {
        kept.pop_front();
    }
    kept.push_back(Arc::clone(socket));
}

/// Has the kernel close what was kept. What it refuses is closed here, and waited for.
pub fn leave() {
    let kept = KEPT.lock().map(|mut kept| std::mem::take(&mut *kept));
    let Ok(kept) = kept else { return };
    if kept.is_empty() {
        return;
    }
    let mut files: Vec<_> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    let mut around = Vec::new();
    for depth in 1..=DEPTH {
        let (domain, kind) = (AddressFamily::Unix, SockType::Datagram);
        let Ok((sender, receiver)) = socketpair(domain, kind, None, SockFlag::SOCK_CLOEXEC) else {
            return;
        };
        if depth == DEPTH {
            // It is in its own queue: nobody can ever read it.
            files.push(receiver.as_raw_fd());
        }
        let rights = [ControlMessage::ScmRights(&files)];
        let text = [IoSlice::new(&[0])];
        sendmsg::<()>(sender.as_raw_fd(), &text, &rights, MsgFlags::empty(), None).ok();
        files = vec![receiver.as_raw_fd()];
        // Closed in this order: the last sender is what makes the kernel look for such cycles.
        around.push((receiver, sender));
    }
    // They are to have their last owner in there.
    drop(kept);
    drop(around);
}
