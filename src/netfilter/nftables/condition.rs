//! The part of nft's language in which an operator can state conditions for port
//! mappings (`conditionsV4`, `conditionsV6`). There is no nft here to ask, so only what
//! is listed at [`parse`] is understood; anything else is refused, never ignored.

use anyhow::Result;
use ipnet::IpNet;

use super::ruleset::{End, Family, Statement, family_of};
use crate::cni::error::{Code, detailed};

/// Tells operators what [`parse`] takes.
pub const UNDERSTOOD: &str = "understood are: ip saddr|daddr [!=] ADDRESS[/PREFIX] (ip6 in \
    conditionsV6), iifname|oifname [!=] \"NAME\", meta mark [!=] NUMBER";

/// The statements in `conditions`, the words of key `key`, for a table of `family`:
/// - `ip saddr [==|!=] 10.0.0.0/8`, `ip daddr …`; `ip6` in tables of that family
/// - `[meta] iifname [==|!=] "eth0"`, `[meta] oifname …`
/// - `[meta] mark [==|!=] 0x10`
///
/// How the words are spread over the list does not matter.
///
/// # Errors
/// Code 2, naming the condition and what is understood.
pub fn parse(family: Family, key: &str, conditions: &[String]) -> Result<Vec<Statement>> {
    let text = conditions.join(" ");
    let mut words = text.split_whitespace().peekable();
    let mut statements = Vec::new();
    while words.peek().is_some() {
        let Some(statement) = statement(family, &mut words) else {
            return Err(detailed(
                Code::UnsupportedField,
                format!("{key}: the nftables backend does not understand \"{text}\""),
                UNDERSTOOD,
            ));
        };
        statements.push(statement);
    }
    Ok(statements)
}

fn statement<'a>(
    family: Family,
    words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>,
) -> Option<Statement> {
    let mut subject = words.next()?;
    if subject == "meta" {
        subject = words.next()?;
    }
    let field = match subject {
        "ip" | "ip6" => words.next()?,
        _ => subject,
    };
    let is = words.next_if_eq(&"!=").is_none();
    if is {
        words.next_if_eq(&"==");
    }
    let value = words.next()?;
    let end = match field {
        "saddr" | "iifname" => End::Source,
        _ => End::Destination,
    };
    match (subject, field) {
        ("ip" | "ip6", "saddr" | "daddr") => {
            let net: IpNet = match value.parse() {
                Ok(net) => net,
                Err(_) => IpNet::from(value.parse::<std::net::IpAddr>().ok()?),
            };
            let of = family_of(net.addr());
            (of == family && of.to_string() == subject).then(|| Statement::Address {
                end,
                is,
                net: net.trunc(),
            })
        }
        ("iifname" | "oifname", _) => {
            let name = value.trim_matches('"');
            // A star stands for any ending.
            let is_name = !name.is_empty() && name.len() < 16 && !name.contains(['*', '"', '{']);
            is_name.then(|| Statement::Interface {
                end,
                is,
                name: name.to_owned(),
            })
        }
        ("mark", _) => {
            let mark = match value.strip_prefix("0x") {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => value.parse(),
            };
            Some(Statement::Mark {
                is,
                mark: mark.ok()?,
            })
        }
        _ => None,
    }
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
        ] {
            assert_eq!(text(family, given).unwrap(), meant);
        }
    }

    #[test]
    fn the_rest_is_refused_by_name() {
        for given in [
            "ct state new",
            "ip saddr",
            "ip saddr { 10.0.0.1, 10.0.0.2 }",
            "ip6 saddr fd00::1",
            "ip saddr fd00::1",
            "ip protocol tcp",
            "iifname \"eth*\"",
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
        fn no_condition_panics(text in "(ip |ip6 |saddr |!= |meta |mark |iifname |\"|[a-z0-9./:*]*)*") {
            drop(parse(Family::Ip, "conditionsV4", &[text]));
        }
    }
}
