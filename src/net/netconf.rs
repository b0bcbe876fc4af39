//! Switches of the kernel's IP that netlink tells (`ip netconf`), far faster than
//! `/proc/sys/net` where there are many namespaces.

use netlink_packet_core::{
    DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlasIterator,
};
use netlink_packet_route::AddressFamily;

use super::netlink::Netlink;

/// `RTM_GETNETCONF`
const GET: u16 = 82;
/// `struct netconfmsg`, padded.
const HEADER: usize = 4;
/// `NETCONFA_IFINDEX`
const IFINDEX: u16 = 1;
/// `NETCONFA_FORWARDING`
const FORWARDING: u16 = 2;
/// `NETCONFA_IFINDEX_ALL`: what counts for links as a whole, such as `conf/all`.
const ALL: i32 = -1;

/// Whether IPv4 packets, or IPv6 ones, are forwarded between links (sysctls
/// `net.ipv4.ip_forward`, `net.ipv6.conf.all.forwarding`); `None` where the kernel does not
/// say, as before 3.8.
pub fn forwards(netlink: &Netlink, is_ipv4: bool) -> Option<bool> {
    let family = if is_ipv4 {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let [low, high] = IFINDEX.to_ne_bytes();
    let mut question = vec![u8::from(family), 0, 0, 0, 8, 0, low, high];
    question.extend(ALL.to_ne_bytes());
    let answer = netlink.get(Message(question)).ok()??;
    let mut attributes = NlasIterator::new(answer.0.get(HEADER..)?).map_while(Result::ok);
    let forwarding = attributes.find(|attribute| attribute.kind() == FORWARDING)?;
    Some(forwarding.value() != [0; 4])
}

/// A question or its answer as it is on the wire.
#[derive(Debug)]
struct Message(Vec<u8>);

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        GET
    }

    fn buffer_len(&self) -> usize {
        self.0.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.0);
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self(payload.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::sysctl;

    #[test]
    fn netlink_says_what_sysctls_say() {
        let netlink = Netlink::open().unwrap();
        for (is_ipv4, key) in [
            (true, "ipv4/ip_forward"),
            (false, "ipv6/conf/all/forwarding"),
        ] {
            let is_on = sysctl::read(key).unwrap().unwrap() == "1";
            assert_eq!(forwards(&netlink, is_ipv4), Some(is_on), "{key}");
        }
    }
}
