//! How the commands write what they show: ids, addresses, ports, times and counts; and whom an
//! operator's word means.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use serde::Serializer;

use crate::cnitool::inventory::attachment::View;
use crate::netfilter::Mapping;

/// Whether `word` is the container's id, the start of it, or the name or path of its
/// namespace.
pub fn is_meant(view: &View<'_>, word: &str) -> bool {
    let path = view.netns.unwrap_or_default();
    let remembered = view.memory.map(|memory| &*memory.entry.parameters.netns);
    view.attachment.container_id.starts_with(word)
        || [Some(path), remembered].into_iter().flatten().any(|path| {
            let name = path.rsplit('/').next();
            path == word || name == Some(word)
        })
}

/// A container id as far as it is needed to tell containers apart, mostly.
pub fn short(id: &str) -> &str {
    /// Those that runtimes make have 64 characters, and people's have fewer than this.
    const LONG: usize = 32;
    const SHORT: usize = 12;
    match id.get(..SHORT) {
        Some(start) if id.len() > LONG => start,
        _ => id,
    }
}

/// Something, or a dash.
pub fn or_dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}

/// An address with its prefix length, where that is known to be other than the full one.
pub fn address(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

/// `8080:80/tcp`, in front the host's address where only that is mapped.
pub fn port(mapping: Mapping) -> String {
    let Mapping {
        protocol,
        host_ip,
        host_port,
        container_port,
    } = mapping;
    let protocol = protocol.as_str();
    let host = match host_ip.filter(|ip| !ip.is_unspecified()) {
        Some(ip) => SocketAddr::new(ip, host_port).to_string(),
        None => host_port.to_string(),
    };
    format!("{host}:{container_port}/{protocol}")
}

/// How long ago `then` was, in the one unit that tells most: `5s`, `3m`, `2h`, `9d`.
pub fn age(now: SystemTime, then: SystemTime) -> String {
    let seconds = now.duration_since(then).unwrap_or(Duration::ZERO).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// A moment for machines: RFC 3339, whole seconds.
pub fn moment(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// For `serialize_with`: a number as JSON has it, or as a string of digits beyond 2⁵³, from where
/// on many programs (jq, JavaScript) would read another number.
///
/// # Errors
/// The serializer's.
pub fn count<S: Serializer>(number: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    const LARGEST: u64 = 1 << 53;
    match u64::try_from(*number) {
        Ok(number @ ..=LARGEST) => serializer.serialize_u64(number),
        _ => serializer.collect_str(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_that_programs_would_misread_are_strings() {
        let written = |number: u128| {
            let mut bytes = Vec::new();
            count(&number, &mut serde_json::Serializer::new(&mut bytes)).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(written(0), "0");
        assert_eq!(written(1 << 53), "9007199254740992");
        assert_eq!(written((1 << 53) + 1), "\"9007199254740993\"");
        assert_eq!(written(1 << 64), "\"18446744073709551616\"");
    }

    #[test]
    fn ages_and_ids_are_short() {
        let then = SystemTime::UNIX_EPOCH;
        let after = |seconds| age(then + Duration::from_secs(seconds), then);
        let ages = [0, 59, 60, 3599, 7200, 200_000].map(after);
        assert_eq!(ages, ["0s", "59s", "1m", "59m", "2h", "2d"]);
        assert_eq!(age(then, then + Duration::from_secs(9)), "0s");
        assert_eq!(short(&"ab".repeat(32)), "abababababab");
        assert_eq!(
            short("cnitool-20b4ff582526573bbe7d"),
            "cnitool-20b4ff582526573bbe7d"
        );
    }
}
