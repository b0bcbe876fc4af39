//! Real runtimes with cnibox as their only plugins: podman with its own default network, and
//! containerd by `ctr` and by the socket that a kubelet talks to. `make test-e2e` installs
//! them and runs these tests.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unused_self,
    reason = "a test that cannot do its work says so by panicking; doors are for the product"
)]

#[path = "../common/mod.rs"]
mod common;
mod containerd;
mod cri;
mod machine;
mod podman;
