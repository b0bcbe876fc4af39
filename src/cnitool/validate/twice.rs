//! Keys that stand twice in an object: the last one counts, and nobody sees the other.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::cni::json::{self, Problem};

/// Objects whose keys are names that somebody chose: `A` and `a` are two of them.
const FREE: [&str; 5] = [
    "sysctl",
    "args",
    "capabilities",
    "runtimeConfig",
    "prevResult",
];

/// The keys of the document `raw` that are written twice. Only what a plugin reads matches
/// without regard to case, so not the keys of a list.
pub fn keys_twice(raw: &[u8], is_list: bool) -> Vec<Problem> {
    let mut found = Vec::new();
    let text = String::from_utf8_lossy(raw);
    let root = Value {
        path: String::new(),
        case: if is_list { Case::List } else { Case::Ignored },
        found: &mut found,
    };
    // What is no JSON is reported elsewhere.
    drop(root.deserialize(&mut serde_json::Deserializer::from_str(&text)));
    found
}

/// How keys are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    /// Exactly, but for what is in `plugins`.
    List,
    /// Exactly, and so below.
    Kept,
    /// Without regard to case.
    Ignored,
}

impl Case {
    /// That of what stands at `key`.
    fn below(self, key: &str) -> Self {
        match self {
            Self::List if key == "plugins" => Self::Ignored,
            Self::Ignored if !FREE.iter().any(|free| free.eq_ignore_ascii_case(key)) => {
                Self::Ignored
            }
            _ => Self::Kept,
        }
    }
}

/// Any value.
struct Value<'a> {
    path: String,
    case: Case,
    found: &'a mut Vec<Problem>,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        for index in 0.. {
            let item = Value {
                path: format!("{}[{index}]", self.path),
                case: self.case,
                found: self.found,
            };
            if items.next_element_seed(item)?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        while let Some(key) = members.next_key::<String>()? {
            let path = json::below(&self.path, &key);
            let same = if self.case == Case::Ignored {
                key.to_ascii_lowercase()
            } else {
                key.clone()
            };
            if let Some(other) = seen.insert(same, key.clone()) {
                let first = if other == key {
                    String::new()
                } else {
                    format!(", as \"{other}\" too")
                };
                let message = format!("written twice{first}: only the last one counts");
                self.found.push(Problem::warning(&path, message));
            }
            members.next_value_seed(Value {
                path,
                case: self.case.below(&key),
                found: self.found,
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn twice(text: &str, is_list: bool) -> Vec<String> {
        let found = keys_twice(text.as_bytes(), is_list).into_iter();
        found
            .map(|p| format!("{}: {}", p.path, p.message))
            .collect()
    }

    #[test]
    fn keys_are_compared_as_their_readers_do() {
        let list = r#"{"name": "n", "Name": "m", "name": "k", "x": 1e400, "plugins": [{"type": "a"}, {
            "mtu": 1, "MTU": 12345678901234567890, "sysctl": {"a": 1, "A": 2, "b": 1, "b": 2},
            "ipam": {"ranges": [[{"subnet": "x"}, {"subnet": "y", "Subnet": null}]]}}]}"#;
        assert_eq!(
            twice(list, true),
            [
                "name: written twice: only the last one counts",
                "plugins[1].MTU: written twice, as \"mtu\" too: only the last one counts",
                "plugins[1].sysctl.b: written twice: only the last one counts",
                "plugins[1].ipam.ranges[0][1].Subnet: written twice, as \"subnet\" too: only the last one counts",
            ]
        );
        let single = r#"{"Type": "a", "type": "b", "args": {"cni": {"x": 1, "X": 2}}}"#;
        assert_eq!(
            twice(single, false),
            ["type: written twice, as \"Type\" too: only the last one counts"]
        );
        assert!(twice("{", true).is_empty());
    }
}
