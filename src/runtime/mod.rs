//! The runtime's side of CNI (specification section 3): what libcni is for the
//! reference. Finds and reads network configurations, runs their plugins in order, and
//! keeps the results on disk as libcni does, so that both can share them.
//!
//! Nothing here prints: what goes on is told to an [`Observer`](chain::Observer).

pub mod cache;
pub mod chain;
pub mod directory;
pub mod gc;
pub mod network;
pub mod parameters;
pub mod quiet;
pub mod request;
pub mod restore;
