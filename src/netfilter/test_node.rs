//! Where tests on the real kernel run: on a node of their own.
#![expect(clippy::disallowed_methods, reason = "tests make namespaces")]

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Gives the calling thread, and what it starts, a network stack of its own, and `/run` and
/// `/var/lib` too, where locks and records are kept.
///
/// # Panics
/// Without the rights to do so.
pub fn enter() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "these tests make network namespaces and need root: run `sudo make test`"
    );
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .expect("make namespaces for the test");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private /");
    for dir in ["/run", "/var/lib"] {
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), none).expect("hide the host's");
    }
}
