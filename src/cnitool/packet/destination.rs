//! What a traced packet is for: an address, and a port or an ICMP echo request; and what
//! the headers of one say.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::netfilter::Protocol;
use crate::netfilter::trace::Packet;

/// `192.0.2.9`, `192.0.2.9:80/tcp`, `[fd00::9]:53/udp`; a port alone is TCP's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// Where to.
    pub address: IpAddr,
    /// The port; `None` is an ICMP echo request.
    pub port: Option<(Protocol, u16)>,
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            let port = None;
            return Ok(Self { address, port });
        }
        let (place, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(format!("the protocol is tcp or udp, not {protocol}")),
        };
        match place.parse::<SocketAddr>() {
            Ok(place) if place.port() != 0 => Ok(Self {
                address: place.ip(),
                port: Some((protocol, place.port())),
            }),
            _ => Err(
                "an address is wanted: 192.0.2.9, 192.0.2.9:80/tcp or [fd00::9]:53/udp".to_owned(),
            ),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            None => write!(f, "{}", self.address),
            Some((protocol, port)) => {
                let place = SocketAddr::new(self.address, port);
                write!(f, "{place}/{}", protocol.as_str())
            }
        }
    }
}

/// Who sends to whom, as the headers of a packet say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The sender's address.
    pub source: IpAddr,
    /// The receiver's address.
    pub destination: IpAddr,
    /// Their ports, where the protocol has any.
    pub ports: Option<(u16, u16)>,
    /// The number of the protocol.
    pub protocol: u8,
}

impl Flow {
    /// That of a packet; `None` for what is neither IPv4 nor IPv6.
    pub fn of(packet: &Packet) -> Option<Self> {
        let header = &packet.network;
        let v4 = |at: usize| {
            Some(IpAddr::from(
                <[u8; 4]>::try_from(header.get(at..at + 4)?).ok()?,
            ))
        };
        let v6 = |at: usize| {
            Some(IpAddr::from(
                <[u8; 16]>::try_from(header.get(at..at + 16)?).ok()?,
            ))
        };
        let (source, destination, protocol) = match header.first()? >> 4 {
            4 => (v4(12)?, v4(16)?, *header.get(9)?),
            6 => (v6(8)?, v6(24)?, *header.get(6)?),
            _ => return None,
        };
        let has_ports = matches!(protocol, 6 | 17 | 132);
        let port = |at: usize| {
            let bytes = packet.transport.get(at..at + 2)?;
            Some(u16::from_be_bytes(bytes.try_into().ok()?))
        };
        let ports = port(0).zip(port(2)).filter(|_| has_ports);
        Some(Self {
            source,
            destination,
            ports,
            protocol,
        })
    }
}

/// `192.0.2.9:40000 → 10.1.0.2:80 tcp`
impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            1 | 58 => "icmp",
            6 => "tcp",
            17 => "udp",
            132 => "sctp",
            other => return write!(f, "{} → {} ip {other}", self.source, self.destination),
        };
        match self.ports {
            Some((from, to)) => {
                let source = SocketAddr::new(self.source, from);
                let destination = SocketAddr::new(self.destination, to);
                write!(f, "{source} → {destination} {protocol}")
            }
            None => write!(f, "{} → {} {protocol}", self.source, self.destination),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_told_as_they_are_written() {
        for text in [
            "192.0.2.9",
            "fd00::9",
            "192.0.2.9:80/tcp",
            "[fd00::9]:53/udp",
        ] {
            let read: Destination = text.parse().unwrap();
            assert_eq!(read.to_string(), text);
        }
        let read: Destination = "192.0.2.9:80".parse().unwrap();
        assert_eq!(read.to_string(), "192.0.2.9:80/tcp");
        for wrong in [
            "web",
            "192.0.2.9:0/tcp",
            "192.0.2.9/tcp",
            "192.0.2.9:1/icmp",
        ] {
            assert!(wrong.parse::<Destination>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn headers_are_read_as_far_as_they_go() {
        let mut packet = Packet {
            network: vec![0x45; 20],
            transport: vec![0x9c, 0x40, 0, 80],
            ..Packet::default()
        };
        packet.network[9] = 6;
        packet.network[12..20].copy_from_slice(&[192, 0, 2, 9, 10, 1, 0, 2]);
        let told = |packet: &Packet| Flow::of(packet).map(|flow| flow.to_string());
        assert_eq!(told(&packet).unwrap(), "192.0.2.9:40000 → 10.1.0.2:80 tcp");
        packet.transport.truncate(3);
        assert_eq!(told(&packet).unwrap(), "192.0.2.9 → 10.1.0.2 tcp");
        packet.network.truncate(19);
        assert_eq!(told(&packet), None);
    }
}
