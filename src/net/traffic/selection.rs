//! Limits of some packets only: `htb` (tc-htb(8)) leads those of a selection to a class with
//! the limit, and all others past it; or the other way round.

use anyhow::{Context, Result};
use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcFilterU32Option, TcHandle, TcMessage, TcOption, TcU32Key, TcU32Selector,
    TcU32SelectorFlags,
};

use super::request::{LIMIT_HANDLE, index, message};
use crate::net::link::Link;
use crate::net::netlink::Netlink;

/// Packets, by the address of whom the container talks to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// Where that is.
    pub subnets: Vec<IpNet>,
    /// Whether these are limited, or all others.
    pub are_limited: bool,
    /// Which address that is.
    pub end: End,
}

/// One of the two addresses of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Who sent it.
    Source,
    /// Who is to get it.
    Destination,
}

/// The class of what is limited, `1:30`.
pub const CLASS: TcHandle = TcHandle {
    major: LIMIT_HANDLE.major,
    minor: 0x30,
};

/// Bytes per second of the class: the limit is what is in it.
const UNLIMITED: u64 = 100_000_000_000;

/// Makes `link` send through [`CLASS`] what is to be limited (`tc qdisc add dev … root handle 1:
/// htb …`, `tc class add … htb …`, `tc filter add … u32 match ip dst … flowid …`).
///
/// # Errors
/// When the kernel refuses, for one that lacks `sch_htb` or `cls_u32`.
pub fn divide(netlink: &Netlink, link: &Link, selection: &Selection) -> Result<()> {
    let what = || {
        format!(
            "divide what {} sends (kernel modules sch_htb, cls_u32)",
            link.name
        )
    };
    let mut root = message(link, "htb", root_options(selection))?;
    root.header.parent = TcHandle::ROOT;
    root.header.handle = LIMIT_HANDLE;
    let root = RouteNetlinkMessage::NewQueueDiscipline(root);
    netlink
        .request(root, NLM_F_CREATE | NLM_F_REPLACE)
        .with_context(what)?;
    let mut class = message(link, "htb", class_options())?;
    class.header.parent = LIMIT_HANDLE;
    class.header.handle = CLASS;
    let class = RouteNetlinkMessage::NewTrafficClass(class);
    netlink
        .request(class, NLM_F_CREATE | NLM_F_EXCL)
        .with_context(what)?;
    for (info, options) in filters(selection) {
        let mut filter = message(link, "u32", Vec::new())?;
        filter.header.parent = LIMIT_HANDLE;
        filter.header.info = info;
        filter.attributes.push(TcAttribute::Options(options));
        let filter = RouteNetlinkMessage::NewTrafficFilter(filter);
        netlink
            .request(filter, NLM_F_CREATE | NLM_F_EXCL)
            .with_context(what)?;
    }
    Ok(())
}

/// Whether `link` sends through [`CLASS`] what `selection` says.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn is_divided(netlink: &Netlink, link: &Link, selection: &Selection) -> Result<bool> {
    let mut request = TcMessage::with_index(index(link)?);
    request.header.parent = LIMIT_HANDLE;
    let found = netlink
        .dump(&RouteNetlinkMessage::GetTrafficFilter(request))
        .context("list traffic filters")?;
    let found: Vec<_> = found.into_iter().filter_map(filter).collect();
    let wanted = filters(selection);
    Ok(wanted.len() == found.len() && wanted.iter().all(|filter| found.contains(filter)))
}

/// `TCA_HTB_INIT`, a `struct tc_htb_glob`, and `TCA_HTB_DIRECT_QLEN`.
fn root_options(selection: &Selection) -> Vec<DefaultNla> {
    const INIT: u16 = 2;
    const DIRECT_QUEUE: u16 = 5;
    const VERSION: u32 = 3;
    /// Of a rate, which part is sent at a time.
    const RATE_TO_QUANTUM: u32 = 10;
    /// An ifb link has no queue that it could go by.
    const PACKETS: u32 = 1000;
    // There is no class 0: what is sent there goes past all of them.
    let default = if selection.are_limited {
        0
    } else {
        CLASS.minor
    };
    let init = [VERSION, RATE_TO_QUANTUM, default.into(), 0, 0];
    let init = init.into_iter().flat_map(u32::to_ne_bytes).collect();
    vec![
        DefaultNla::new(INIT, init),
        DefaultNla::new(DIRECT_QUEUE, PACKETS.to_ne_bytes().into()),
    ]
}

/// `TCA_HTB_PARMS`, a `struct tc_htb_opt`, and what is too much for its 32 bits.
fn class_options() -> Vec<DefaultNla> {
    const PARMS: u16 = 1;
    const RATE64: u16 = 6;
    const CEIL64: u16 = 7;
    /// In ticks of 64 ns: what may be sent at once is not to be limited either.
    const BURST: u32 = 1_000_000;
    /// Bytes at a time; without it the kernel complains that the rate makes for too many.
    const QUANTUM: u32 = 60_000;
    // Rate and ceiling, two `struct tc_ratespec`, which end in the rate.
    let numbers = [0, 0, u32::MAX, 0, 0, u32::MAX, BURST, BURST, QUANTUM, 0, 0];
    let parameters = numbers.into_iter().flat_map(u32::to_ne_bytes).collect();
    let rate: Vec<u8> = UNLIMITED.to_ne_bytes().into();
    vec![
        DefaultNla::new(PARMS, parameters),
        DefaultNla::new(RATE64, rate.clone()),
        DefaultNla::new(CEIL64, rate),
    ]
}

/// A filter for each subnet: its priority and protocol, and its options, those that are
/// looked at.
fn filters(selection: &Selection) -> Vec<(u32, Vec<TcOption>)> {
    let to = if selection.are_limited {
        CLASS
    } else {
        LIMIT_HANDLE
    };
    let filter = |subnet: &IpNet| {
        let options = [
            TcFilterU32Option::Selector(selector(*subnet, selection.end)),
            TcFilterU32Option::ClassId(to),
        ];
        (info(*subnet), options.map(TcOption::U32).into())
    };
    selection.subnets.iter().map(filter).collect()
}

/// The part of a filter that [`filters`] tells; `None` for what is none, like the tables that
/// the kernel keeps them in.
fn filter(message: RouteNetlinkMessage) -> Option<(u32, Vec<TcOption>)> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = message else {
        return None;
    };
    let options = message.attributes.into_iter().find_map(|a| match a {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let mut options = options?;
    options.retain(|option| {
        use TcFilterU32Option::{ClassId, Selector};
        matches!(option, TcOption::U32(Selector(_) | ClassId(_)))
    });
    (!options.is_empty()).then_some((message.header.info, options))
}

/// Priority and protocol of a filter: a priority is for one protocol only.
fn info(subnet: IpNet) -> u32 {
    const IPV4: u16 = 0x0800;
    const IPV6: u16 = 0x86dd;
    let (major, protocol) = match subnet {
        IpNet::V4(_) => (16, IPV4),
        IpNet::V6(_) => (15, IPV6),
    };
    let minor = protocol.to_be();
    u32::from(TcHandle { major, minor })
}

/// Matches packets whose address at `end` is in `subnet`, 32 bits at a time. The offsets are
/// those of the addresses in an IP header.
fn selector(subnet: IpNet, end: End) -> TcU32Selector {
    let (network, mask, offset): (Vec<u8>, Vec<u8>, i32) = match (subnet.trunc(), end) {
        (IpNet::V4(net), end) => (
            net.network().octets().into(),
            net.netmask().octets().into(),
            if end == End::Source { 12 } else { 16 },
        ),
        (IpNet::V6(net), end) => (
            net.network().octets().into(),
            net.netmask().octets().into(),
            if end == End::Source { 8 } else { 24 },
        ),
    };
    let words = |bytes: &[u8]| -> Vec<u32> {
        let (words, _) = bytes.as_chunks();
        words.iter().map(|word| u32::from_be_bytes(*word)).collect()
    };
    let words = words(&network).into_iter().zip(words(&mask));
    let keys = (offset..).step_by(4).zip(words).map(|(off, (val, mask))| {
        let mut key = TcU32Key::default();
        (key.off, key.val, key.mask) = (off, val, mask);
        key
    });
    let mut keys: Vec<TcU32Key> = keys.collect();
    // The first stays, were it for everything.
    let mut position = 0..;
    keys.retain(|key| position.next() == Some(0) || key.mask != 0);
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = u8::try_from(keys.len()).unwrap_or_default();
    selector.keys = keys;
    selector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_is_matched_word_by_word() {
        for (subnet, end, keys) in [
            (
                "10.1.2.3/8",
                End::Source,
                vec![(12, 0x0a00_0000, 0xff00_0000)],
            ),
            ("0.0.0.0/0", End::Destination, vec![(16, 0, 0)]),
            (
                "fd00:db8::/36",
                End::Destination,
                vec![(24, 0xfd00_0db8, 0xffff_ffff), (28, 0, 0xf000_0000)],
            ),
            ("::/0", End::Source, vec![(8, 0, 0)]),
        ] {
            let found = selector(subnet.parse().unwrap(), end);
            let told = found.keys.iter().map(|key| (key.off, key.val, key.mask));
            assert_eq!(told.collect::<Vec<_>>(), keys, "{subnet}");
            assert_eq!(usize::from(found.nkeys), keys.len());
        }
    }
}
