//! Keys that stand twice in one JSON object.
//!
//! The dialect lets the last of several win (docs/compatibility.md#0.3), except for sysctls: there
//! two values for one key are more likely a mistake, and which one holds matters. Once a
//! document is a [`serde_json::Value`] nothing is left to see, hence a look at its text.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

/// The keys that stand more than once, spelt exactly alike, in the object at `path` of the
/// JSON document `text`. The keys of the path match without regard to case. A document
/// that is not shaped so has none.
pub fn duplicates(text: &str, path: &[&str]) -> Vec<String> {
    let mut twice = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    // What is wrong with the document otherwise is for its readers to tell.
    drop(
        Inside {
            path,
            twice: &mut twice,
        }
        .deserialize(&mut deserializer),
    );
    twice
}

/// The way that is left to the object that is looked at, and what was found there.
struct Inside<'a> {
    path: &'a [&'a str],
    twice: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Inside<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Inside<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(key) = members.next_key::<String>()? {
            match self.path.split_first() {
                Some((next, rest)) if next.eq_ignore_ascii_case(&key) => {
                    members.next_value_seed(Inside {
                        path: rest,
                        twice: self.twice,
                    })?;
                    continue;
                }
                Some(_) => {}
                None if seen.contains(&key) => self.twice.push(key),
                None => {
                    seen.insert(key);
                }
            }
            members.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_object_asked_for_is_looked_at() {
        let text = r#"{
            "a": 1, "a": 1.5e3, "list": [{"x": 1, "x": 2}],
            "Sysctl": {"net.a": "1", "net.A": "1", "net.b": "1", "net.\u0062": "2"},
            "args": {"cni": {"sysctl": {"y": "1", "y": "1", "y": "1"}}}
        }"#;
        assert_eq!(duplicates(text, &["sysctl"]), ["net.b"]);
        assert_eq!(duplicates(text, &["args", "cni", "sysctl"]), ["y", "y"]);
        assert_eq!(duplicates(text, &["args"]), [] as [String; 0]);
        for odd in ["", "[]", r#"{"sysctl": null}"#, r#"{"sysctl": {"a""#] {
            assert_eq!(duplicates(odd, &["sysctl"]), [] as [String; 0], "{odd}");
        }
    }
}
