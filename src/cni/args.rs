//! `CNI_ARGS`: `KEY=VALUE` pairs joined by `;` (the conventions document).

use std::collections::BTreeMap;

use anyhow::Result;

use super::error::{Code, coded, detailed};

/// The pairs of `text` whose key is in `known`.
///
/// Other keys are an error unless the pair `IgnoreUnknown=1` (or `true`) is there;
/// keys that start with `K8S_` never are, whatever the runtime forgot to send.
/// A value may contain `=`, and empty pairs (a trailing `;`) are skipped.
///
/// # Errors
/// Code 4 naming the offending pairs.
pub fn parse<'a>(text: &'a str, known: &[&str]) -> Result<BTreeMap<&'a str, &'a str>> {
    let mut found = BTreeMap::new();
    let mut unknown = Vec::new();
    let mut ignore_unknown = false;
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(detailed(
                Code::Environment,
                format!("ARGS: invalid pair {pair:?}"),
                "CNI_ARGS is a list of KEY=VALUE, separated by semicolons",
            ));
        };
        if key == "IgnoreUnknown" {
            ignore_unknown = boolean(pair, value)?;
        } else if known.contains(&key) {
            found.insert(key, value);
        } else if !key.starts_with("K8S_") {
            unknown.push(format!("\"{pair}\""));
        }
    }
    if !unknown.is_empty() && !ignore_unknown {
        return Err(coded(
            Code::Environment,
            format!("ARGS: unknown args [{}]", unknown.join(" ")),
        )
        .into());
    }
    Ok(found)
}

/// The value of a `pair` of `CNI_ARGS` cannot be read: `reason` in the reference's words,
/// `details` in ours.
pub fn invalid_value(
    pair: &str,
    reason: impl std::fmt::Display,
    details: impl Into<String>,
) -> anyhow::Error {
    detailed(
        Code::Environment,
        format!("ARGS: error parsing value of pair {pair:?}: {reason}"),
        details,
    )
}

fn boolean(pair: &str, value: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        lower => Err(invalid_value(
            pair,
            format_args!("boolean unmarshal error: invalid input {lower}"),
            "CNI_ARGS: IgnoreUnknown must be true or false",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(input: &str) -> String {
        parse(input, &["IP"]).unwrap_err().to_string()
    }

    #[test]
    fn known_keys_come_back() {
        let args = parse("IP=10.0.0.9;IgnoreUnknown=TRUE;A=1", &["IP"]).unwrap();
        assert_eq!(args, BTreeMap::from([("IP", "10.0.0.9")]));
        assert!(parse("", &["IP"]).unwrap().is_empty());
    }

    #[test]
    fn equals_signs_and_trailing_semicolons_are_fine() {
        let args = parse("MAC=a=b;", &["MAC"]).unwrap();
        assert_eq!(args["MAC"], "a=b");
    }

    #[test]
    fn unknown_keys_are_all_named() {
        assert_eq!(text("A=1;ip=2"), r#"ARGS: unknown args ["A=1" "ip=2"]"#);
        assert_eq!(text("IgnoreUnknown=0;A=1"), r#"ARGS: unknown args ["A=1"]"#);
        assert!(text("A").contains("\"A\""));
        assert!(text("IgnoreUnknown=maybe").contains("maybe"));
    }

    #[test]
    fn kubernetes_keys_are_never_fatal() {
        assert!(
            parse("K8S_POD_NAME=x;K8S_POD_UID=y", &[])
                .unwrap()
                .is_empty()
        );
    }
}
