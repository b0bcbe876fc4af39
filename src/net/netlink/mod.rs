//! Netlink: the transport of every protocol, and the client of rtnetlink.

mod refusal;
mod route;
pub mod transport;

pub use refusal::{Refused, errno, is_unanswered, refused, tolerate};
pub use route::{Changes, Netlink};
