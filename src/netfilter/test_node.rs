//! Where tests on the real kernel run: on a node of their own; and what tests of either
//! backend ask for.
#![expect(
    clippy::disallowed_methods,
    reason = "tests make namespaces, and ask the tools"
)]

use std::io::Write;
use std::process::{Command, Stdio};

use ipnet::IpNet;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::cni::invocation::Attachment;
use crate::netfilter::model::{Mapping, Mark, Masquerade, Owner, PortMaps};

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

/// What the shell command prints, with `stdin` to read.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn feed(command: &str, stdin: &str) -> String {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(stdin.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command}\n{stdin}");
    String::from_utf8(output.stdout).unwrap()
}

/// The owner of a test's rules.
pub fn owner(network: &str, container_id: &str, ifname: &str) -> Owner {
    Owner {
        network: network.into(),
        attachment: Attachment {
            container_id: container_id.into(),
            ifname: ifname.into(),
        },
    }
}

/// Addresses with the lengths of their prefixes.
pub fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Source NAT for a container with these addresses.
pub fn masquerade(addresses: &[&str]) -> Masquerade {
    Masquerade {
        addresses: nets(addresses),
    }
}

/// These mappings to a container with these addresses, and otherwise what is usual.
pub fn port_maps(container: &[&str], mappings: Vec<Mapping>) -> PortMaps {
    PortMaps {
        container: nets(container),
        mappings,
        snat: true,
        masquerade_all: false,
        mark: Mark::Bit(13),
        conditions_v4: vec![],
        conditions_v6: vec![],
        warn_of_takeovers: true,
    }
}
