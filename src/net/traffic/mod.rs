//! Traffic control: how fast a link may send, and leading what a link receives to another
//! (`tc`, tc(8)).
//!
//! Sizes are bytes, rates bytes per second. The options of `tbf`, `u32` and `mirred` are
//! encoded here, those of `htb` in [`selection`], after the kernel's `pkt_sched.h`, `pkt_cls.h` and `tc_mirred.h`.

mod request;
pub mod selection;

use anyhow::{Context, Result};
use netlink_packet_core::{
    DefaultNla, Emitable, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Nla, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use nix::errno::Errno;

use super::link::Link;
use super::netlink::{Netlink, tolerate};
use request::{LIMIT_HANDLE, index, message};
use selection::Selection;

/// A token bucket filter (tc-tbf(8)), in the kernel's units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes per second.
    pub rate: u64,
    /// Bytes that may wait to be sent; more are dropped.
    pub limit: u32,
    /// How long the burst takes at `rate`, in ticks of 64 ns.
    pub buffer: u32,
}

impl std::fmt::Display for TokenBucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "a limit of {} bytes per second ({} bytes queued, burst of {} ticks)",
            self.rate, self.limit, self.buffer
        )
    }
}

/// `TCA_TBF_PARMS`.
const TBF_PARMS: u16 = 1;
/// `TCA_TBF_RATE64`: the rate where 32 bits are too few.
const TBF_RATE64: u16 = 4;
/// Offset of the rate in `struct tc_tbf_qopt`, behind what describes its table.
const RATE: usize = 8;
/// Offset of the limit, behind two `struct tc_ratespec` of 12 bytes.
const LIMIT: usize = 24;
/// Offset of the buffer.
const BUFFER: usize = 28;
/// Bytes of `struct tc_tbf_qopt`.
const TBF_SIZE: usize = 36;

impl TokenBucket {
    /// Bytes of the largest packet that the kernel lets through (`psched_ns_t2l`): it counts no
    /// more than 32 bits of nanoseconds here, and refuses a bucket in which there is no room.
    pub fn largest_packet(self) -> u64 {
        const NANOSECONDS: u64 = 1_000_000_000;
        let time = (u64::from(self.buffer) * 64).min(u32::MAX.into());
        time.wrapping_mul(self.rate) / NANOSECONDS
    }

    fn options(self) -> Vec<DefaultNla> {
        let mut parameters = vec![0; TBF_SIZE];
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        for (offset, number) in [(RATE, rate), (LIMIT, self.limit), (BUFFER, self.buffer)] {
            let field = parameters.iter_mut().skip(offset);
            field
                .zip(number.to_ne_bytes())
                .for_each(|(byte, value)| *byte = value);
        }
        let mut options = vec![DefaultNla::new(TBF_PARMS, parameters)];
        if rate == u32::MAX {
            options.push(DefaultNla::new(TBF_RATE64, self.rate.to_ne_bytes().into()));
        }
        options
    }

    fn from_options(bytes: &[u8]) -> Option<Self> {
        let mut parameters = None;
        let mut rate64 = None;
        for option in NlasIterator::new(bytes) {
            let option = option.ok()?;
            match option.kind() {
                TBF_PARMS => parameters = Some(option.value().to_vec()),
                TBF_RATE64 => rate64 = option.value().try_into().ok().map(u64::from_ne_bytes),
                _ => {}
            }
        }
        let parameters = parameters?;
        let number = |offset: usize| {
            let bytes = parameters.get(offset..)?.first_chunk()?;
            Some(u32::from_ne_bytes(*bytes))
        };
        Some(Self {
            rate: match rate64 {
                Some(rate) => rate,
                None => number(RATE)?.into(),
            },
            limit: number(LIMIT)?,
            buffer: number(BUFFER)?,
        })
    }
}

/// What `tc` calls `ffff:`, where filters of what a link receives hang.
const INGRESS_HANDLE: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};

/// Where `tbf` is, and its handle. It is one level deeper where only a selection is limited.
fn place(selection: Option<&Selection>) -> (TcHandle, TcHandle) {
    match selection {
        None => (TcHandle::ROOT, LIMIT_HANDLE),
        Some(_) => (selection::CLASS, TcHandle { major: 2, minor: 0 }),
    }
}

/// Limits what `link` sends, or a selection of that, instead of any limit it has (`tc qdisc
/// add dev … root handle 1: tbf …`).
///
/// # Errors
/// When the kernel refuses, for one that has no `sch_tbf`.
pub fn limit(
    netlink: &Netlink,
    link: &Link,
    bucket: TokenBucket,
    selection: Option<&Selection>,
) -> Result<()> {
    // One kind of limit cannot be replaced by the other.
    remove_limit(netlink, link)?;
    if let Some(selection) = selection {
        selection::divide(netlink, link, selection)?;
    }
    let mut message = message(link, "tbf", bucket.options())?;
    (message.header.parent, message.header.handle) = place(selection);
    netlink
        .request(
            RouteNetlinkMessage::NewQueueDiscipline(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .with_context(|| format!("limit what {} sends (kernel module sch_tbf)", link.name))
}

/// Removes the limit of what `link` sends; none there is no error.
///
/// # Errors
/// When it stays.
pub fn remove_limit(netlink: &Netlink, link: &Link) -> Result<()> {
    let mut message = TcMessage::with_index(index(link)?);
    message.header.parent = TcHandle::ROOT;
    message.header.handle = LIMIT_HANDLE;
    let removed = netlink.request(RouteNetlinkMessage::DelQueueDiscipline(message), 0);
    tolerate(removed, &GONE).with_context(|| format!("remove the limit of {}", link.name))
}

/// What the kernel says of a queueing discipline, or its link, that is not there.
const GONE: [Errno; 3] = [Errno::ENOENT, Errno::EINVAL, Errno::ENODEV];

/// The limit of what `link` sends, or of a selection of that, if it has one.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn limit_of(
    netlink: &Netlink,
    link: &Link,
    selection: Option<&Selection>,
) -> Result<Option<TokenBucket>> {
    let (parent, _) = place(selection);
    let request = TcMessage::with_index(index(link)?);
    let found = netlink
        .dump(&RouteNetlinkMessage::GetQueueDiscipline(request))
        .context("list queueing disciplines")?;
    Ok(found.into_iter().find_map(|message| match message {
        RouteNetlinkMessage::NewQueueDiscipline(message)
            if u32::try_from(message.header.index) == Ok(link.index)
                && message.header.parent == parent =>
        {
            token_bucket(&message)
        }
        _ => None,
    }))
}

/// What a queueing discipline does to everything that its link sends, as far as that can be
/// too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discipline {
    /// Sends so many bytes per second at most (`tbf`).
    Limits(u64),
    /// Loses so many of a hundred packets, and may delay the others (`netem`).
    Loses(u8),
    /// Drops everything (`blackhole`).
    Drops,
}

/// Those of all links, by the indices of these (`tc qdisc show`).
///
/// # Errors
/// When the kernel cannot be asked.
pub fn disciplines(netlink: &Netlink) -> Result<Vec<(u32, Discipline)>> {
    let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let found = netlink
        .dump(&request)
        .context("list queueing disciplines")?;
    Ok(found
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewQueueDiscipline(message)
                if message.header.parent == TcHandle::ROOT =>
            {
                let index = u32::try_from(message.header.index).ok()?;
                Some((index, discipline(message)?))
            }
            _ => None,
        })
        .collect())
}

fn discipline(message: &TcMessage) -> Option<Discipline> {
    /// Offset of the loss in `struct tc_netem_qopt`; all of 32 bits is everything.
    const LOSS: usize = 8;
    let kind = message.attributes.iter().find_map(|a| match a {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })?;
    match kind {
        "blackhole" => Some(Discipline::Drops),
        "tbf" => Some(Discipline::Limits(token_bucket(message)?.rate)),
        "netem" => {
            let options = options(message)?;
            let loss = u32::from_ne_bytes(*options.get(LOSS..)?.first_chunk()?);
            let hundredths = u64::from(loss) * 100 / u64::from(u32::MAX);
            Some(Discipline::Loses(u8::try_from(hundredths).ok()?))
        }
        _ => None,
    }
}

fn token_bucket(message: &TcMessage) -> Option<TokenBucket> {
    let is_tbf = |a: &TcAttribute| matches!(a, TcAttribute::Kind(kind) if kind == "tbf");
    if !message.attributes.iter().any(is_tbf) {
        return None;
    }
    TokenBucket::from_options(&options(message)?)
}

/// The options of a queueing discipline, as the kernel wrote them.
fn options(message: &TcMessage) -> Option<Vec<u8>> {
    let mut attributes = message.attributes.iter();
    attributes.find_map(|attribute| match attribute {
        TcAttribute::Options(options) => match options.as_slice() {
            [TcOption::Other(options)] => {
                let mut bytes = vec![0; options.value_len()];
                options.emit_value(&mut bytes);
                Some(bytes)
            }
            _ => None,
        },
        _ => None,
    })
}

/// Leads everything that `from` receives to `to`, as if `to` were to send it (`tc qdisc
/// add dev FROM ingress`, `tc filter add dev FROM … action mirred egress redirect dev TO`).
///
/// # Errors
/// `EEXIST` when somebody already does something with what `from` receives; nothing is
/// changed then. Also when the kernel refuses, for one that lacks `sch_ingress`, `cls_u32` or `act_mirred`.
pub fn redirect(netlink: &Netlink, from: &Link, to: &Link) -> Result<()> {
    let what = || {
        format!(
            "lead what {} receives to {} (kernel modules sch_ingress, cls_u32, act_mirred)",
            from.name, to.name
        )
    };
    let mut ingress = message(from, "ingress", Vec::new())?;
    ingress.header.parent = TcHandle::INGRESS;
    ingress.header.handle = INGRESS_HANDLE;
    let added = netlink.request(
        RouteNetlinkMessage::NewQueueDiscipline(ingress),
        NLM_F_CREATE | NLM_F_EXCL,
    );
    added.with_context(what)?;
    let mut filter = message(from, "u32", everything_to(to))?;
    filter.header.parent = INGRESS_HANDLE;
    filter.header.info = u32::from(TcHandle {
        major: REDIRECT_PRIORITY,
        minor: ALL_PROTOCOLS.to_be(),
    });
    let added = netlink.request(
        RouteNetlinkMessage::NewTrafficFilter(filter),
        NLM_F_CREATE | NLM_F_EXCL,
    );
    if added.is_err() {
        remove_redirect(netlink, from)?;
    }
    added.with_context(what)
}

/// Leads nothing that `from` receives elsewhere any more (`tc qdisc del dev FROM ingress`).
///
/// # Errors
/// When it stays so.
pub fn remove_redirect(netlink: &Netlink, from: &Link) -> Result<()> {
    let mut ingress = message(from, "ingress", Vec::new())?;
    ingress.header.parent = TcHandle::INGRESS;
    ingress.header.handle = INGRESS_HANDLE;
    let removed = netlink.request(RouteNetlinkMessage::DelQueueDiscipline(ingress), 0);
    tolerate(removed, &GONE)
        .with_context(|| format!("stop redirecting what {} receives", from.name))
}

/// The filter's priority.
const REDIRECT_PRIORITY: u16 = 1;

/// `ETH_P_ALL`.
const ALL_PROTOCOLS: u16 = 3;

/// Options of a `u32` filter that matches everything and sends it to `to`.
fn everything_to(to: &Link) -> Vec<DefaultNla> {
    const U32_CLASSID: u16 = 1;
    const U32_SEL: u16 = 5;
    const U32_ACT: u16 = 7;
    const ACT_KIND: u16 = 1;
    const ACT_OPTIONS: u16 = 2;
    const MIRRED_PARMS: u16 = 2;
    /// The packet is not to be looked at any more.
    const TC_ACT_STOLEN: u32 = 4;
    const TCA_EGRESS_REDIR: u32 = 1;
    // `struct tc_u32_sel` with one key whose mask is empty: what matches is final.
    let mut selector = vec![1, 0, 1];
    selector.resize(16 + 16, 0);
    // `struct tc_mirred`: index, capabilities, action, two counts, what to do, where.
    let mirred = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to.index];
    let mirred = mirred.into_iter().flat_map(u32::to_ne_bytes).collect();
    let action = nested(&[
        DefaultNla::new(ACT_KIND, b"mirred\0".to_vec()),
        DefaultNla::new(
            ACT_OPTIONS,
            nested(&[DefaultNla::new(MIRRED_PARMS, mirred)]),
        ),
    ]);
    let class = u32::from(TcHandle { major: 1, minor: 1 });
    vec![
        DefaultNla::new(U32_CLASSID, class.to_ne_bytes().into()),
        DefaultNla::new(U32_SEL, selector),
        DefaultNla::new(U32_ACT, nested(&[DefaultNla::new(1, action)])),
    ]
}

fn nested(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_bucket_comes_back_from_its_options() {
        for rate in [1, 1_000_000, u64::from(u32::MAX), 1 << 40] {
            let bucket = TokenBucket {
                rate,
                limit: 125_000,
                buffer: 1_562_500,
            };
            let bytes = nested(&bucket.options());
            assert_eq!(TokenBucket::from_options(&bytes), Some(bucket));
        }
        assert_eq!(TokenBucket::from_options(&[]), None);
    }
}
