//! The kernel's network: namespaces, links, addresses, routes, sysctls.
//!
//! Everything here takes a [`netlink::Netlink`], a socket opened once in one namespace
//! and usable from anywhere. Nothing here knows a plugin.

pub mod addr;
pub mod bridge_vlan;
pub mod link;
pub mod link_sysctl;
pub mod mac;
pub mod netconf;
pub mod netlink;
pub mod netns;
pub mod privilege;
pub mod route;
pub mod section;
pub mod sysctl;
pub mod traffic;
