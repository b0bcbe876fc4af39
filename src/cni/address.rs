//! IP addresses in configurations and results, as text.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// For `deserialize_with`: an address, `""` being none. v4-mapped IPv6 is IPv4.
///
/// # Errors
/// Names the value that is no address.
pub fn optional_ip<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    parse_ip(&text)
        .map(Some)
        .ok_or_else(|| D::Error::custom(format!("\"{text}\" is not an IP address")))
}

/// For `deserialize_with`: an address with prefix length, host bits kept; `""` is none.
///
/// # Errors
/// Names the value that is no CIDR.
pub fn optional_cidr<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<IpNet>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    parse_cidr(&text).map(Some).ok_or_else(|| {
        D::Error::custom(format!(
            "\"{text}\" is not an address with prefix length, like 10.1.0.0/16"
        ))
    })
}

/// An address as written, v4-mapped IPv6 as IPv4. Octets with leading zeros are refused.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse().ok().map(|ip: IpAddr| ip.to_canonical())
}

/// An address with the length of its prefix, such as `10.1.0.5/16`, its host bits kept.
/// Octets are written as in [`parse_ip`], and a v4-mapped IPv6 address with at least its 96
/// fixed bits is IPv4: `::ffff:10.1.0.5/112` is `10.1.0.5/16`. With fewer it is refused, for
/// no IPv4 prefix says the same.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    /// The bits in front of the IPv4 address.
    const MAPPED: u8 = 96;
    let (address, length) = text.split_once('/')?;
    if !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (address, length): (IpAddr, u8) = (address.parse().ok()?, length.parse().ok()?);
    let canonical = address.to_canonical();
    let length = if canonical == address {
        length
    } else {
        // An IPv6 prefix is no longer than 128 bits, which is 32 more: `new` sees to it.
        length.checked_sub(MAPPED)?
    };
    IpNet::new(canonical, length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        for (text, net) in [
            ("10.1.2.3/16", "10.1.2.3/16"),
            ("10.1.2.3/016", "10.1.2.3/16"),
            ("::ffff:10.9.0.5/120", "10.9.0.5/24"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::ffff:10.9.0.5/128", "10.9.0.5/32"),
            ("fd00::5/64", "fd00::5/64"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(parse_cidr(text), Some(net.parse().unwrap()), "{text}");
        }
        for text in [
            "010.1.0.0/16",
            "10.001.0.0/16",
            "10.1.0.00/16",
            "10.1.0.0",
            "10.1.0.0/",
            "10.1.0.0/33",
            "10.1.0.0/+16",
            "10.1.0.0/16/1",
            "10.1/16",
            "::ffff:10.9.0.5/95",
            "::ffff:10.9.0.5/129",
            "fe80::1%eth0/64",
            "/8",
            "",
        ] {
            assert_eq!(parse_cidr(text), None, "{text}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(parse_ip("::ffff:10.0.0.1"), parse_ip("10.0.0.1"));
        for text in [
            "010.0.0.1",
            "10.0.0",
            "fe80::1%eth0",
            "10.0.0.1/8",
            " 10.0.0.1",
        ] {
            assert_eq!(parse_ip(text), None, "{text}");
        }
    }
}
