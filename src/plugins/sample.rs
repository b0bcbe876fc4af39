//! What an IPAM plugin is expected to answer, for STATUS.

use std::net::IpAddr;

use crate::cni::result::CniResult;

/// An answer like those that the IPAM plugin will give to ADD.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// With one address for each that a container will get.
    pub result: CniResult,
    /// Whether all containers get addresses of the same subnets as these.
    pub is_typical: bool,
}

impl Sample {
    /// The addresses.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.result.ips.iter().map(|ip| ip.address.addr())
    }
}
