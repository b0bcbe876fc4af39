//! Reads JSON text as a program does that decodes it into fields: what the reference
//! plugins make of a key that an object has twice.
//!
//! Two spellings that differ in case only are one key, and so the later one counts: the
//! order of the document decides, which a [`Value`] does not keep. That is why this is
//! done while the text is read.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The key under which `serde_json` hands out a number that is no 64-bit integer, with all
/// its digits.
const NUMBER: &str = "$serde_json::private::Number";

/// Members that hold names of other things, such as of sysctls, and what is passed on as
/// it is. There keys differ by case, and below them too.
const MAPS: [&str; 4] = ["sysctl", "capabilities", "prevResult", "delegate"];

/// The value that is written in `text`. Where an object has a key several times, in
/// whatever case, the last one counts: an object adds to the one before it, a `null`
/// empties a list and leaves everything else as it was.
///
/// # Errors
/// Says where `text` stops being JSON.
pub fn parse(text: &str) -> serde_json::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Reader { in_map: false }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Reads one value.
#[derive(Clone, Copy)]
struct Reader {
    /// Whether this is one of [`MAPS`], or below one.
    in_map: bool,
}

impl<'de> DeserializeSeed<'de> for Reader {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            if key == NUMBER {
                let digits: String = members.next_value()?;
                let number: Number = digits.parse().map_err(A::Error::custom)?;
                return Ok(number.into());
            }
            let value = members.next_value_seed(self.below(&key))?;
            self.put(&mut object, key, value);
        }
        Ok(object.into())
    }
}

impl Reader {
    /// The reader for the value of `key`.
    fn below(self, key: &str) -> Self {
        Self {
            in_map: self.in_map || MAPS.iter().any(|map| map.eq_ignore_ascii_case(key)),
        }
    }

    /// Puts a member into `object`, over the one that it had before under this key.
    fn put(self, object: &mut Map<String, Value>, key: String, value: Value) {
        if self.in_map {
            object.insert(key, value);
            return;
        }
        let before = object
            .keys()
            .find(|k| k.eq_ignore_ascii_case(&key))
            .cloned()
            .and_then(|spelling| object.remove(&spelling));
        let value = match (before, value) {
            (Some(Value::Object(mut before)), Value::Object(value)) => {
                for (inner, value) in value {
                    self.below(&key).put(&mut before, inner, value);
                }
                before.into()
            }
            (Some(Value::Array(_)) | None, Value::Null) => Value::Null,
            (Some(before), Value::Null) => before,
            (_, value) => value,
        };
        object.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_last_of_a_key_counts_in_whatever_case() {
        for (text, value) in [
            (r#"{"a":1,"A":2}"#, json!({"A": 2})),
            (r#"{"A":2,"a":1}"#, json!({"a": 1})),
            (r#"{"a":1,"A":2,"a":3}"#, json!({"a": 3})),
            (
                r#"{"a":[{"b":1,"B":2}],"A":[{"c":3}]}"#,
                json!({"A": [{"c": 3}]}),
            ),
            (
                r#"{"ipam":{"type":"x","subnet":"1"},"IPAM":{"Subnet":"2"}}"#,
                json!({"IPAM": {"type": "x", "Subnet": "2"}}),
            ),
            (r#"{"a":1,"A":null}"#, json!({"A": 1})),
            (r#"{"a":{"b":1},"a":null}"#, json!({"a": {"b": 1}})),
            (r#"{"a":[1],"a":null}"#, json!({"a": null})),
            (r#"{"a":null,"a":[1]}"#, json!({"a": [1]})),
        ] {
            assert_eq!(parse(text).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn names_of_other_things_differ_by_case() {
        for (text, value) in [
            (
                r#"{"sysctl":{"a.ETH0":"1","a.eth0":"2"}}"#,
                json!({"sysctl": {"a.ETH0": "1", "a.eth0": "2"}}),
            ),
            (
                r#"{"sysctl":{"a":"1","b":"1"},"SYSCTL":{"A":"2","b":"2"}}"#,
                json!({"SYSCTL": {"a": "1", "A": "2", "b": "2"}}),
            ),
            (
                r#"{"prevResult":{"x":{"a":1,"A":2}}}"#,
                json!({"prevResult": {"x": {"a": 1, "A": 2}}}),
            ),
        ] {
            assert_eq!(parse(text).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in ["", "{} x", "{\"a\":}", "[1,]", "01", "{\"a\" 1}"] {
            assert!(parse(text).is_err(), "{text}");
        }
        let deep = "[".repeat(200);
        assert!(parse(&deep).is_err());
    }

    proptest::proptest! {
        /// Where no key comes twice, it is the reading of `serde_json`, number for number.
        #[test]
        fn everything_else_is_read_as_it_is(
            text in r#"\{"a":(-?[1-9][0-9]{0,30}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?|"[^"\\[:cntrl:]]{0,9}"|true|null),"b":\[(\{"c":[0-9]\},){0,3}\{\}\]\}"#
        ) {
            let plain: Value = serde_json::from_str(&text).unwrap();
            proptest::prop_assert_eq!(parse(&text).unwrap().to_string(), plain.to_string());
        }
    }
}
