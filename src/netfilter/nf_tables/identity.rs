//! Whose a rule is: what stands in its comment, and in its user data beside the comment.
//!
//! User data are type-length-value records (libnftnl's "udata"): one byte each for type
//! and length. Type 0 is the comment, ending in a zero byte, of at most 128 bytes; nft
//! passes over types it does not know.

use std::collections::BTreeSet;
use std::fmt;

use crate::cni::invocation::Attachment;
use crate::hash::sha512_words;
use crate::netfilter::model::Owner;

/// The comment of a table, chain, rule or element.
const COMMENT: u8 = 0;

/// The comment of a set.
const SET_COMMENT: u8 = 7;

/// The attachment a rule belongs to, where the comment does not say it all.
const TAG: u8 = 0xc1;

/// `NFTNL_UDATA_COMMENT_MAXLEN`: nft refuses more.
const COMMENT_MAX: usize = 128;

/// `H(network)-H(ifname:container id)`: one attachment in 33 bytes (docs/compatibility.md#5.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag {
    network: [u32; 2],
    instance: [u32; 2],
}

/// The length of a tag as text.
const TAG_LENGTH: usize = 33;

impl Tag {
    /// The tag of an attachment to `network`.
    pub fn new(network: &str, attachment: &Attachment) -> Self {
        let Attachment {
            container_id,
            ifname,
        } = attachment;
        Self {
            network: sha512_words(network),
            instance: sha512_words(&format!("{ifname}:{container_id}")),
        }
    }

    /// That of `owner`.
    pub fn of(owner: &Owner) -> Self {
        Self::new(&owner.network, &owner.attachment)
    }

    /// The tag that `text` begins with, if it is one.
    pub fn at_start(text: &str) -> Option<Self> {
        let (network, instance) = text.get(..TAG_LENGTH)?.split_once('-')?;
        let hash = |text: &str| {
            let is_hash = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
            let (high, low) = text.split_at_checked(8).filter(|_| is_hash)?;
            let word = |digits| u32::from_str_radix(digits, 16).ok();
            Some([word(high)?, word(low)?])
        };
        Some(Self {
            network: hash(network)?,
            instance: hash(instance)?,
        })
    }

    /// Tells the tags of attachments to `network` that are none of `valid`.
    pub fn stale(network: &str, valid: &[Attachment]) -> impl Fn(Self) -> bool {
        let of_network = sha512_words(network);
        let kept: BTreeSet<Self> = valid
            .iter()
            .map(|attachment| Self::new(network, attachment))
            .collect();
        move |tag| tag.network == of_network && !kept.contains(&tag)
    }

    /// Both hashes in halves, as the keys of sets have them.
    pub fn to_words(self) -> [u32; 4] {
        let ([a, b], [c, d]) = (self.network, self.instance);
        [a, b, c, d]
    }

    /// The way back.
    pub fn from_words([a, b, c, d]: [u32; 4]) -> Self {
        Self {
            network: [a, b],
            instance: [c, d],
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [network, instance] =
            [self.network, self.instance].map(|[high, low]| format!("{high:08x}{low:08x}"));
        write!(f, "{network}-{instance}")
    }
}

/// The comment of an owner's masquerade rules (docs/compatibility.md#5.8).
pub fn masquerade_comment(owner: &Owner) -> String {
    cut(&format!("{}{SEPARATOR}{}", Tag::of(owner), details(owner)))
}

/// What a human reads beside a tag.
pub fn attachment_comment(owner: &Owner) -> String {
    cut(&details(owner))
}

/// The same, of the attachment whose masquerade rules have this comment.
pub fn attachment_comment_from(masquerade_comment: &str) -> String {
    let details = masquerade_comment.get(TAG_LENGTH + SEPARATOR.len()..);
    details.unwrap_or_default().to_owned()
}

/// What stands between the tag and the details.
const SEPARATOR: &str = ", ";

fn details(owner: &Owner) -> String {
    let Owner {
        network,
        attachment: Attachment {
            container_id,
            ifname,
        },
    } = owner;
    format!("net: {network}, if: {ifname}, id: {container_id}").replace('"', "")
}

/// Network, interface and container id as the comment of masquerade rules has them, where
/// there was room for all three.
pub fn parse_details(comment: &str) -> Option<(&str, &str, &str)> {
    let details = comment.get(TAG_LENGTH..)?.strip_prefix(SEPARATOR)?;
    let (network, names) = details.strip_prefix("net: ")?.split_once(", if: ")?;
    let (ifname, container_id) = names.split_once(", id: ")?;
    Some((network, ifname, container_id))
}

/// Whose a masquerade rule is that has this comment.
pub fn owner_in_words(comment: &str) -> String {
    let names = comment.split_once(", if: ").map(|(_, names)| names);
    match names.and_then(|names| names.split_once(", id: ")) {
        Some((ifname, container_id)) => format!("{ifname} of container {container_id}"),
        // A network with a long name leaves no room for the others.
        None => comment.to_owned(),
    }
}

/// The comment of a container's port mappings: its bare id (docs/compatibility.md#7.4).
pub fn port_map_comment(owner: &Owner) -> String {
    cut(&owner.attachment.container_id)
}

/// The comment of an attachment's spoof check (docs/compatibility.md#5.7).
pub fn spoof_check_comment(owner: &Owner) -> String {
    cut(&format!("macspoofchk-{}", spoof_check_id(owner)))
}

/// `container id-ifname`, as it stands in names.
pub fn spoof_check_id(owner: &Owner) -> String {
    let Attachment {
        container_id,
        ifname,
    } = &owner.attachment;
    format!("{container_id}-{ifname}")
}

/// As much of `text` as a comment may have.
pub fn cut(text: &str) -> String {
    text.get(..text.floor_char_boundary(COMMENT_MAX))
        .unwrap_or_default()
        .to_owned()
}

/// The user data of a table, chain, rule or element.
pub fn user_data(comment: Option<&str>, tag: Option<&Tag>) -> Vec<u8> {
    let mut data = Vec::new();
    if let Some(comment) = comment {
        record_comment(&mut data, COMMENT, comment);
    }
    if let Some(tag) = tag {
        record(&mut data, TAG, tag.to_string().as_bytes());
    }
    data
}

/// The user data of a set.
pub fn set_user_data(comment: &str) -> Vec<u8> {
    let mut data = Vec::new();
    record_comment(&mut data, SET_COMMENT, comment);
    data
}

fn record_comment(data: &mut Vec<u8>, kind: u8, comment: &str) {
    let mut value = cut(comment).into_bytes();
    value.push(0);
    record(data, kind, &value);
}

fn record(data: &mut Vec<u8>, kind: u8, value: &[u8]) {
    // Comments are cut and tags have one length: both fit.
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    data.extend([kind, length]);
    data.extend(value.iter().take(length.into()));
}

/// Reads user data: the comment and our tag, as far as they are there.
pub fn parse(mut data: &[u8]) -> (Option<String>, Option<Tag>) {
    let (mut comment, mut tag) = (None, None);
    while let [kind, length, rest @ ..] = data {
        let Some(value) = rest.get(..usize::from(*length)) else {
            break;
        };
        match *kind {
            COMMENT => {
                let value = value.strip_suffix(&[0]).unwrap_or(value);
                comment = Some(String::from_utf8_lossy(value).into_owned());
            }
            TAG => tag = Tag::at_start(&String::from_utf8_lossy(value)),
            _ => {}
        }
        data = rest.get(usize::from(*length)..).unwrap_or_default();
    }
    (comment, tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::test_node::owner;

    /// The vectors of docs/compatibility.md#13.1.
    #[test]
    fn masquerade_comment_is_the_references() {
        assert_eq!(
            masquerade_comment(&owner("net1", "cont1", "eth0")),
            "8e48f37d5de60467-f37378035343678b, net: net1, if: eth0, id: cont1"
        );
        let comment = masquerade_comment(&owner("net1", "cont1", "eth0"));
        assert_eq!(parse_details(&comment), Some(("net1", "eth0", "cont1")));
        assert_eq!(parse_details("cut off"), None);
        assert_eq!(owner_in_words(&comment), "eth0 of container cont1");
        assert_eq!(owner_in_words("cut off"), "cut off");
    }

    #[test]
    fn comments_are_cut_and_lose_their_quotes() {
        let owner = owner("a\"b", &"x".repeat(200), "eth0");
        let comment = masquerade_comment(&owner);
        assert_eq!(comment.len(), 128);
        assert!(
            comment.contains(", net: ab, if: eth0, id: xxx"),
            "{comment}"
        );
        assert_eq!(port_map_comment(&owner), "x".repeat(128));
        assert_eq!(cut(&"é".repeat(100)).len(), 128);
        assert_eq!(cut(&format!("x{}", "é".repeat(100))).len(), 127);
    }

    #[test]
    fn tags_tell_networks_and_attachments_apart() {
        let cont1 = owner("net1", "cont1", "eth0");
        let tag = Tag::of(&cont1);
        assert_eq!(Tag::at_start(&masquerade_comment(&cont1)), Some(tag));
        let is_stale = |network: &str, valid: &[Attachment]| Tag::stale(network, valid)(tag);
        assert!(is_stale("net1", &[]));
        assert!(!is_stale("net1", std::slice::from_ref(&cont1.attachment)));
        assert!(is_stale(
            "net1",
            &[owner("net1", "cont1", "eth1").attachment]
        ));
        assert!(!is_stale("net2", &[]));
        assert_eq!(Tag::at_start("cont1"), None);
    }

    #[test]
    fn user_data_as_nft_writes_them() {
        assert_eq!(user_data(Some("cont1"), None), b"\x00\x06cont1\x00");
        let tag = Tag::of(&owner("net1", "cont1", "eth0"));
        let data = user_data(Some("cont1"), Some(&tag));
        assert_eq!(data.get(8..10), Some([0xc1, 33].as_slice()));
        assert_eq!(parse(&data), (Some("cont1".into()), Some(tag)));
        let most = user_data(
            Some(&"x".repeat(999)),
            Some(&Tag::of(&owner("n", "c", "e"))),
        );
        assert!(most.len() <= 256, "the kernel takes 256 bytes");
    }

    proptest::proptest! {
        #[test]
        fn no_user_data_panic(data in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let (_, tag) = parse(&data);
            if let Some(tag) = tag {
                proptest::prop_assert_eq!(Tag::from_words(tag.to_words()), tag);
                proptest::prop_assert_eq!(Tag::at_start(&tag.to_string()), Some(tag));
            }
        }

        #[test]
        fn user_data_survive(comment in "[^\0]{0,128}") {
            let (read, tag) = parse(&user_data(Some(&comment), None));
            proptest::prop_assert_eq!(read, Some(cut(&comment)));
            proptest::prop_assert_eq!(tag, None);
        }
    }
}
