//! The sets that are part of a rule.
//!
//! The kernel has such a set as an object of its own without a name, which comes and goes
//! with its rule. It is made and read here as nft does: intervals as their beginnings and
//! ends, merged where they overlap or touch.

use anyhow::{Context, Result};
use netlink_packet_core::{DefaultNla, NLA_F_NESTED, NLM_F_CREATE};
use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetAttribute, SetElementAttribute,
    SetElementFlags, SetElementList, SetElementMessage, SetFlags, SetMessage,
};

use crate::netfilter::nf_tables::among::{Among, Field, Interval, NAME, Values};
use crate::netfilter::nf_tables::message::{is_absent, with_family};
use crate::netfilter::nf_tables::rule::Statement;
use crate::netfilter::nf_tables::ruleset::{Family, Table};
use crate::netfilter::nf_tables::set;
use crate::netfilter::nfnetlink::attributes::Attributes;
use crate::netfilter::nfnetlink::socket::{Socket, attribute, attributes, number};

/// `NFTNL_UDATA_SET_ELEM_FLAGS`, as nft notes that an interval has no end.
const OPEN: [u8; 6] = [1, 4, 1, 0, 0, 0];

impl Among {
    /// What makes the set of this statement under `id`, which tells it from others in the
    /// transaction: in front of its rule in `table`. Nothing without a set.
    pub fn set_messages(&self, table: &Table, id: u32) -> Vec<(NetfilterMessage, u16)> {
        /// `NFTA_SET_DESC`.
        const DESCRIPTION: u16 = 9 | NLA_F_NESTED;
        let Values::Set(members) = &self.of else {
            return Vec::new();
        };
        let has_intervals = members.iter().any(|(first, last)| first != last);
        let elements = self.field.elements(members, has_intervals);
        let mut flags = SetFlags::Anonymous | SetFlags::Constant;
        flags.set(SetFlags::Interval, has_intervals);
        let mut description = Attributes::default();
        // `NFTA_SET_DESC_SIZE`.
        description.number(1, u32::try_from(elements.len()).unwrap_or(u32::MAX));
        let new = SetMessage {
            attributes: vec![
                SetAttribute::Table(table.name.to_owned()),
                SetAttribute::Name(NAME.to_owned()),
                SetAttribute::Flags(flags),
                SetAttribute::KeyType(self.field.data_type()),
                SetAttribute::KeyLen(u32::try_from(self.field.length()).unwrap_or_default()),
                SetAttribute::Id(id),
                SetAttribute::Other(DefaultNla::new(DESCRIPTION, description.finish())),
                SetAttribute::UserData(self.field.set_user_data(has_intervals)),
            ],
        };
        let filled = |elements: &[_]| SetElementMessage {
            attributes: vec![
                SetElementList::Table(table.name.to_owned()),
                SetElementList::Set(NAME.to_owned()),
                SetElementList::SetId(id),
                SetElementList::Elements(elements.to_vec()),
            ],
        };
        let filled = elements.chunks(set::PER_MESSAGE).map(filled);
        [NfTablesMessage::NewSet(new)]
            .into_iter()
            .chain(filled.map(NfTablesMessage::NewSetElement))
            .map(|message| (with_family(table.family, message), NLM_F_CREATE))
            .collect()
    }
}

impl Field {
    /// The data type of nft(8), as `nft describe` numbers it.
    fn data_type(self) -> u32 {
        match self {
            Self::Address(Family::Ip6, _) => set::IPV6_ADDR,
            Self::Address(..) => set::IPV4_ADDR,
            Self::Port(..) => set::INET_SERVICE,
            Self::Interface(_) => set::INTERFACE_NAME,
            Self::Mark => set::MARK,
        }
    }

    /// What nft notes of a set for whoever lists it (libnftnl's "udata"): in which order the
    /// bytes of a key are, and that intervals were merged.
    fn set_user_data(self, has_intervals: bool) -> Vec<u8> {
        const KEY_BYTE_ORDER: u8 = 0;
        const MERGED: u8 = 2;
        const HOST: u32 = 1;
        const NETWORK: u32 = 2;
        let order = match self {
            Self::Mark | Self::Interface(_) => HOST,
            Self::Address(..) | Self::Port(..) => NETWORK,
        };
        let record = |kind: u8, value: u32| {
            let [a, b, c, d] = value.to_ne_bytes();
            [kind, 4, a, b, c, d]
        };
        let mut data = record(KEY_BYTE_ORDER, order).to_vec();
        if has_intervals {
            data.extend(record(MERGED, 1));
        }
        data
    }

    /// The elements of a set of `members`.
    fn elements(
        self,
        members: &[Interval],
        has_intervals: bool,
    ) -> Vec<ListAttribute<SetElementAttribute>> {
        let key = |value| SetElementAttribute::Key(DataAttribute::Value(self.bytes(value)));
        let end = |value| {
            let flags = SetElementAttribute::Flags(SetElementFlags::IntervalEnd);
            ListAttribute::Element(vec![flags, key(value)])
        };
        let mut elements = Vec::new();
        if has_intervals && members.first().is_some_and(|(first, _)| *first > 0) {
            elements.push(end(0));
        }
        for (first, last) in members {
            let is_open = has_intervals && *last == self.largest();
            let mut element = vec![key(*first)];
            if is_open {
                element.push(SetElementAttribute::UserData(OPEN.to_vec()));
            }
            elements.push(ListAttribute::Element(element));
            if has_intervals && !is_open {
                elements.push(end(last + 1));
            }
        }
        elements
    }
}

/// Puts in place of the names of sets in rules of `table` what these hold. A set that is gone
/// by now keeps its name.
///
/// # Errors
/// When the kernel refuses to tell.
pub fn resolve(socket: &Socket, table: &Table, statements: &mut [Statement]) -> Result<()> {
    for statement in statements {
        let Statement::Among(Among { field, of, .. }) = statement else {
            continue;
        };
        let Values::Stored(name) = of else { continue };
        if let Some(members) = members(socket, table, name, *field)? {
            *of = Values::Set(members);
        }
    }
    Ok(())
}

/// What the set holds; `None` where it is gone, or holds something else.
fn members(
    socket: &Socket,
    table: &Table,
    name: &str,
    field: Field,
) -> Result<Option<Vec<Interval>>> {
    const ELEMENTS: u16 = 3;
    const KEY: u16 = 1;
    const FLAGS: u16 = 3;
    const USER_DATA: u16 = 6;
    const VALUE: u16 = 1;
    /// `NFT_SET_ELEM_INTERVAL_END`.
    const END: u32 = 1;
    let message = NfTablesMessage::GetSetElement(SetElementMessage {
        attributes: vec![
            SetElementList::Table(table.name.to_owned()),
            SetElementList::Set(name.to_owned()),
        ],
    });
    let answers = match socket.dump(&with_family(table.family, message)) {
        Err(error) if is_absent(&error) => return Ok(None),
        answers => answers.with_context(|| format!("list set {table} {name}"))?,
    };
    let lists = answers
        .iter()
        .filter_map(|answer| attribute(answer, ELEMENTS));
    let mut is_open = false;
    let elements = lists.flat_map(attributes).map(|(_, element)| {
        let key = attribute(attribute(element, KEY)?, VALUE)?;
        let flags = attribute(element, FLAGS).and_then(number).unwrap_or(0);
        is_open |= attribute(element, USER_DATA) == Some(&OPEN);
        Some((field.value(key)?, flags & END != 0))
    });
    let Some(mut elements) = elements.collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    // Where one interval ends, another may begin.
    elements.sort_unstable_by_key(|(value, is_end)| (*value, !is_end));
    let has_intervals = is_open || elements.iter().any(|(_, is_end)| *is_end);
    let mut members: Vec<Interval> = Vec::new();
    for (value, is_end) in elements {
        match members.last_mut() {
            _ if !is_end => {
                let last = if has_intervals {
                    field.largest()
                } else {
                    value
                };
                members.push((value, last));
            }
            Some((first, last)) if *first < value => *last = value - 1,
            // In front of all of them.
            _ => {}
        }
    }
    Ok(Some(members))
}
