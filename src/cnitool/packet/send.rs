//! One packet from inside a container, and what answers it.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::destination::Destination;
use crate::netfilter::Protocol;

/// What came of a packet, as its sender sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Something came back.
    Some(String),
    /// Nothing listens at that port, or a packet filter says so.
    Refused,
    /// Nothing came back in time.
    None,
    /// It did not even leave the container, or was refused.
    Error(String),
}

/// Sends one from the namespace of the calling thread and waits for an answer, but not longer
/// than `patience`.
pub fn send(to: Destination, patience: Duration) -> Answer {
    let sent = match to.port {
        None => ping(to.address, patience),
        Some((Protocol::Tcp, port)) => connect(SocketAddr::new(to.address, port), patience),
        Some((_, port)) => datagram(SocketAddr::new(to.address, port), patience),
    };
    sent.unwrap_or_else(|error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Answer::None,
        ErrorKind::ConnectionRefused => Answer::Refused,
        _ => Answer::Error(error.to_string()),
    })
}

fn connect(to: SocketAddr, patience: Duration) -> std::io::Result<Answer> {
    TcpStream::connect_timeout(&to, patience)?;
    Ok(Answer::Some("the connection was accepted".to_owned()))
}

fn datagram(to: SocketAddr, patience: Duration) -> std::io::Result<Answer> {
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"cnitool trace\n")?;
    let length = socket.recv(&mut [0; 2048])?;
    Ok(Answer::Some(format!("a datagram of {length} bytes")))
}

/// An echo request (RFC 792, RFC 4443) through a raw socket, which `UdpSocket` serves as
/// well as its own kind.
fn ping(to: IpAddr, patience: Duration) -> std::io::Result<Answer> {
    let (family, protocol, request, reply) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    let socket = UdpSocket::from(socket);
    socket.connect((to, 0))?;
    let [high, low, ..] = std::process::id().to_ne_bytes();
    let mut message = vec![request, 0, 0, 0, high, low, 0, 1];
    message.extend(b"cnitool trace");
    // Of ICMPv6, the kernel makes the checksum.
    if to.is_ipv4() {
        let sum = checksum(&message).to_be_bytes();
        message.splice(2..4, sum);
    }
    socket.send(&message)?;
    let until = Instant::now() + patience;
    let mut buffer = [0; 2048];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Answer::None);
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.recv(&mut buffer)?;
        // Of IPv4, the network header is in front.
        let header = match (to, buffer.first()) {
            (IpAddr::V4(_), Some(first)) => usize::from(first & 0x0f) * 4,
            _ => 0,
        };
        let Some([kind, _, _, _, a, b, ..]) = buffer.get(header..length) else {
            continue;
        };
        if (*kind, *a, *b) == (reply, high, low) {
            return Ok(Answer::Some("an echo reply".to_owned()));
        }
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match *pair {
        [high, low] => u16::from_be_bytes([high, low]),
        [high] => u16::from_be_bytes([high, 0]),
        _ => 0,
    });
    let sum = words.fold(0_u32, |sum, word| sum + u32::from(word));
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_rfc_1071() {
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
        assert_eq!(checksum(&[0x01]), !0x0100);
    }
}
