//! The part of nft's language in which an operator can state conditions for port
//! mappings (`conditionsV4`, `conditionsV6`). There is no nft here to ask, so only what
//! is listed at [`parse`] is understood; anything else is refused, never ignored.

use std::iter::Peekable;
use std::net::IpAddr;
use std::str::FromStr;
use std::vec::IntoIter;

use anyhow::Result;
use ipnet::IpNet;

use crate::failure::{Failure, Kind};
use crate::netfilter::model::Protocol;
use crate::netfilter::nf_tables::among::{Among, End, Field, Interval, Values};
use crate::netfilter::nf_tables::rule::Statement;
use crate::netfilter::nf_tables::ruleset::{Family, family_of};

/// Tells operators what [`parse`] takes.
pub const UNDERSTOOD: &str = "understood are: ip saddr|daddr (ip6 in conditionsV6), \
    iifname|oifname, tcp|udp|sctp sport|dport and meta mark, each with an optional != and a \
    value or a set { … } of values; an address may be a network (10.0.0.0/8), addresses and \
    ports may be ranges (10.0.0.1-10.0.0.9, 8000-8999), and an interface's name may end in *. \
    Refused are other expressions (ct, fib, th, meta l4proto …), named sets (@name), maps, \
    concatenations, <, >, bit masks, ranges of marks, and names of ports and hosts: state \
    these in a table of your own";

/// The statements in `conditions`, the words of key `key`, for a table of `family`:
/// - `ip saddr [==|!=] 10.0.0.0/8`, `ip daddr …`; `ip6` in tables of that family
/// - `[meta] iifname [==|!=] "eth*"`, `[meta] oifname …`
/// - `tcp|udp|sctp dport [==|!=] 8000-8999`, `… sport …`
/// - `[meta] mark [==|!=] 0x10`
///
/// or with several values in braces. How the words are spread over the list does not matter.
///
/// # Errors
/// [`Kind::Unsupported`], naming the condition and what is understood.
pub fn parse(family: Family, key: &str, conditions: &[String]) -> Result<Vec<Statement>> {
    let text = conditions.join(" ");
    let mut words = words(&text).into_iter().peekable();
    let mut statements = Vec::new();
    while words.peek().is_some() {
        let Some(statement) = statement(family, &mut words) else {
            let sentence = format!("{key}: the nftables backend does not understand \"{text}\"");
            return Err(Failure::new(Kind::Unsupported, sentence).because(UNDERSTOOD));
        };
        statements.push(statement);
    }
    Ok(statements)
}

/// Words, and the signs that need no space around them.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let length = if rest.starts_with("!=") || rest.starts_with("==") {
            2
        } else if rest.starts_with(['{', '}', ',']) {
            1
        } else {
            let is_end = |c: char| c.is_whitespace() || "{},!=".contains(c);
            // A sign that stands for nothing is a word, too.
            rest.find(is_end).unwrap_or(rest.len()).max(1)
        };
        let Some((word, others)) = rest.split_at_checked(length) else {
            return vec![text];
        };
        words.push(word);
        rest = others.trim_start();
    }
    words
}

type Words<'a> = Peekable<IntoIter<&'a str>>;

fn statement(family: Family, words: &mut Words<'_>) -> Option<Statement> {
    let field = field(family, words)?;
    let is = words.next_if_eq(&"!=").is_none();
    if is {
        words.next_if_eq(&"==");
    }
    if words.next_if_eq(&"{").is_some() {
        let mut members = vec![interval(field, words.next()?)?];
        loop {
            match words.next()? {
                "}" => return Some(Statement::one_of(field, is, members)),
                "," if words.next_if_eq(&"}").is_some() => {
                    return Some(Statement::one_of(field, is, members));
                }
                "," => members.push(interval(field, words.next()?)?),
                _ => return None,
            }
        }
    }
    let word = words.next()?;
    let interval @ (first, last) = interval(field, word)?;
    if let Field::Address(_, end) = field
        && let Some(net) = network(word)
    {
        return Some(Statement::Address { end, is, net });
    }
    Some(match field {
        Field::Interface(_) if first != last => {
            let of = Values::Beginning(name(word).trim_end_matches('*').to_owned());
            Statement::Among(Among { field, is, of })
        }
        _ if word.contains('-') && !matches!(field, Field::Interface(_)) => {
            let of = Values::Range(interval);
            Statement::Among(Among { field, is, of })
        }
        _ => Statement::equal(field, is, first),
    })
}

/// What is compared.
fn field(family: Family, words: &mut Words<'_>) -> Option<Field> {
    let mut subject = words.next()?;
    if subject == "meta" {
        subject = words.next().filter(|word| !is_header(word))?;
    }
    match subject {
        "iifname" => Some(Field::Interface(End::Source)),
        "oifname" => Some(Field::Interface(End::Destination)),
        "mark" => Some(Field::Mark),
        _ if subject == family.to_string() => match words.next()? {
            "saddr" => Some(Field::Address(family, End::Source)),
            "daddr" => Some(Field::Address(family, End::Destination)),
            _ => None,
        },
        _ => {
            let protocol = Protocol::named(subject)?;
            match words.next()? {
                "sport" => Some(Field::Port(protocol, End::Source)),
                "dport" => Some(Field::Port(protocol, End::Destination)),
                _ => None,
            }
        }
    }
}

/// Whether a word begins a condition on a header, which is not `meta`.
fn is_header(word: &str) -> bool {
    ["ip", "ip6"].contains(&word) || Protocol::named(word).is_some()
}

/// A value, or all from one to another.
fn interval(field: Field, word: &str) -> Option<Interval> {
    match field {
        Field::Address(family, _) => {
            if let Some(net) = network(word) {
                return (family_of(net.addr()) == family)
                    .then(|| (number(net.network()), number(net.broadcast())));
            }
            let (first, last) = range::<IpAddr>(word)?;
            let is_of_family = [first, last].iter().all(|ip| family_of(*ip) == family);
            is_of_family.then(|| (number(first), number(last)))
        }
        Field::Port(..) => {
            let (first, last) = range::<u16>(word)?;
            Some((first.into(), last.into()))
        }
        Field::Interface(_) => {
            let name = name(word);
            let start = name.strip_suffix('*');
            let given = start.unwrap_or(name);
            // A star elsewhere stands for itself in nft, and for something else here.
            let is_name =
                !given.is_empty() && name.len() < 16 && !given.contains(['*', '"', '\\', '@', '$']);
            is_name.then(|| match start {
                Some(start) => Field::beginning(start),
                None => (Field::name(name), Field::name(name)),
            })
        }
        Field::Mark => {
            let mark = match word.strip_prefix("0x") {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => word.parse(),
            };
            let mark = mark.ok()?;
            Some((mark.into(), mark.into()))
        }
    }
}

/// `10.0.0.0/8` or one address.
fn network(word: &str) -> Option<IpNet> {
    match word.parse::<IpNet>() {
        Ok(net) => Some(net.trunc()),
        Err(_) => Some(IpNet::from(word.parse::<IpAddr>().ok()?)),
    }
}

/// `1-5`, or one value.
fn range<T: FromStr + Copy + Ord>(word: &str) -> Option<(T, T)> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    // nft refuses one that runs backwards.
    (first <= last).then_some((first, last))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The word without quotes.
fn name(word: &str) -> &str {
    let quoted = word
        .strip_prefix('"')
        .and_then(|word| word.strip_suffix('"'));
    quoted.unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::error::ErrorObject;

    fn text(family: Family, conditions: &[&str]) -> Result<String> {
        let conditions: Vec<String> = conditions.iter().map(|s| (*s).to_owned()).collect();
        let statements = parse(family, "conditionsV4", &conditions)?;
        let words: Vec<String> = statements.iter().map(ToString::to_string).collect();
        Ok(words.join(" "))
    }

    #[test]
    fn conditions_are_what_they_say() {
        for (family, given, meant) in [
            (
                Family::Ip,
                ["ip", "saddr", "!= 10.1.0.0/8"].as_slice(),
                "ip saddr != 10.0.0.0/8",
            ),
            (Family::Ip, &["ip daddr == 192.0.2.1"], "ip daddr 192.0.2.1"),
            (Family::Ip6, &["ip6 daddr fd00::/8"], "ip6 daddr fd00::/8"),
            (
                Family::Ip,
                &["iifname != \"eth0\"", "meta oifname br0"],
                "iifname != \"eth0\" oifname \"br0\"",
            ),
            (
                Family::Ip,
                &["mark 0x10 meta mark != 3"],
                "meta mark 0x00000010 meta mark != 0x00000003",
            ),
            (Family::Ip, &[], ""),
            (
                Family::Ip,
                &["ip", "daddr", "!=", "{ 127.0.0.0/8, 198.19.254.254 }"],
                "ip daddr != { 127.0.0.0/8, 198.19.254.254 }",
            ),
            (
                Family::Ip,
                &["ip saddr 10.0.0.1-10.0.0.9 tcp sport {1024-65535,80,}"],
                "ip saddr 10.0.0.1-10.0.0.9 tcp sport { 80, 1024-65535 }",
            ),
            (
                Family::Ip,
                &["iifname!=eth*", "oifname { \"br-*\", lo }"],
                "iifname != \"eth*\" oifname { \"br-*\", \"lo\" }",
            ),
            (
                Family::Ip6,
                &["ip6 saddr { fd00::1-fd00::9, fe80::/10 } mark {2,1}"],
                "ip6 saddr { fd00::1-fd00::9, fe80::/10 } meta mark { 0x00000001, 0x00000002 }",
            ),
        ] {
            assert_eq!(text(family, given).unwrap(), meant);
        }
    }

    #[test]
    fn the_rest_is_refused_by_name() {
        for given in [
            "ct state new",
            "ip saddr",
            "ip saddr { 10.0.0.1, 10.0.0.2",
            "ip saddr { }",
            "ip saddr {, 10.0.0.1 }",
            "ip saddr { 10.0.0.1 10.0.0.2 }",
            "ip saddr { 10.0.0.1, fd00::1 }",
            "ip saddr 10.0.0.1, 10.0.0.2",
            "ip saddr 10.0.0.9-10.0.0.1",
            "ip saddr 10.0.0.0/8-11.0.0.0/8",
            "ip saddr @blocked",
            "ip saddr . tcp dport { 10.0.0.1 . 80 }",
            "ip saddr & 255.0.0.0 == 10.0.0.0",
            "ip6 saddr fd00::1",
            "ip saddr fd00::1",
            "ip protocol tcp",
            "meta ip saddr 10.0.0.1",
            "meta l4proto tcp",
            "th dport 53",
            "tcp dport http",
            "tcp dport 65536",
            "tcp dport >= 1024",
            "tcp dport 90-80",
            "iifname \"*\"",
            "iifname e*h",
            "iifname \"eth\\*\"",
            "mark 1-5",
            "tcp dport = 5",
            "iifname a-name-that-is-too-long",
            "mark 0xzz",
            "-d 10.0.0.1",
        ] {
            let error = ErrorObject::from_error(&text(Family::Ip, &[given]).unwrap_err());
            assert_eq!(error.code, 2, "{given}");
            assert!(
                error.msg.contains(given) && error.msg.contains("conditionsV4"),
                "{error:?}"
            );
            assert!(error.details.contains("ip saddr|daddr"), "{error:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_condition_panics(text in "(ip |ip6 |saddr |tcp dport |!= |meta |mark |iifname |\"|\\{ |\\} |, |-|é|[a-z0-9./:*]*)*") {
            drop(parse(Family::Ip, "conditionsV4", &[text]));
        }
    }
}
