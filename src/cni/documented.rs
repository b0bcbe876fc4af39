//! Compares the keys that a configuration type reads with the table of keys in the manual, so
//! that neither changes without the other.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use serde::de::value::{Error, StrDeserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};

/// Checks that the page `page` in `docs/plugins/` lists every key that `T` reads, and no other.
///
/// # Panics
/// If they differ. The message names the keys.
pub fn assert_documented<T: DeserializeOwned>(page: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = dir.join(format!("docs/plugins/{page}.md"));
    let text = std::fs::read_to_string(path).unwrap();
    let (missing, unread) = differences(&table(&text), &keys::<T>());
    assert!(
        missing.is_empty() && unread.is_empty(),
        "{page}.md lacks {missing:?}, and lists {unread:?}, which the plugin does not read"
    );
}

/// The keys that a page lacks, and those that it lists although nothing reads them. A page may
/// leave out an object whose members it lists.
fn differences(page: &BTreeSet<String>, read: &BTreeSet<String>) -> (Vec<String>, Vec<String>) {
    let has_members = |key: &String| {
        let is_member = |other: &String| {
            let rest = other.strip_prefix(key.as_str());
            rest.is_some_and(|rest| rest.starts_with(['.', '[']))
        };
        read.iter().any(is_member)
    };
    let missing = read.difference(page).filter(|key| !has_members(key));
    let unread = page.difference(read);
    (missing.cloned().collect(), unread.cloned().collect())
}

/// The first cells of the table whose head begins with `key`.
fn table(page: &str) -> BTreeSet<String> {
    let lines = page.lines().skip_while(|line| !line.starts_with("| key |"));
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 6, "{row}");
        assert!(cells.iter().all(|cell| !cell.is_empty()), "{row}");
        cells[0].trim_matches('`').to_owned()
    })
    .collect()
}

/// The paths of all keys that `T` asks for, such as `vlanTrunk[].id`.
fn keys<T: DeserializeOwned>() -> BTreeSet<String> {
    let keys = RefCell::default();
    let path = String::new();
    T::deserialize(Recorder { path, keys: &keys }).unwrap();
    keys.into_inner()
}

/// A document that has each key that is asked for, with an empty value, and records it.
struct Recorder<'a> {
    /// Where it stands; empty for the document itself.
    path: String,
    keys: &'a RefCell<BTreeSet<String>>,
}

macro_rules! empty_values {
    ($($method:ident $visit:ident $value:expr,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit($value)
        }
    )*};
}

impl<'de> Deserializer<'de> for Recorder<'_> {
    type Error = Error;

    empty_values! {
        deserialize_bool visit_bool false,
        deserialize_i8 visit_i8 0,
        deserialize_i16 visit_i16 0,
        deserialize_i32 visit_i32 0,
        deserialize_i64 visit_i64 0,
        deserialize_u8 visit_u8 0,
        deserialize_u16 visit_u16 0,
        deserialize_u32 visit_u32 0,
        deserialize_u64 visit_u64 0,
        deserialize_str visit_str "",
        deserialize_string visit_str "",
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(OneItem(Some(Self {
            path: format!("{}[]", self.path),
            keys: self.keys,
        })))
    }

    /// Any key may stand in a map: none is asked for.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Members {
            fields: [].iter(),
            value: None,
            of: self,
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Members {
            fields: fields.iter(),
            value: None,
            of: self,
        })
    }

    serde::forward_to_deserialize_any! {
        i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct enum identifier
        ignored_any
    }
}

/// A list of one item.
struct OneItem<'a>(Option<Recorder<'a>>);

impl<'de> SeqAccess<'de> for OneItem<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        self.0.take().map(|item| seed.deserialize(item)).transpose()
    }
}

/// An object with all of its fields.
struct Members<'a> {
    fields: std::slice::Iter<'static, &'static str>,
    /// The path of the value that comes next.
    value: Option<String>,
    of: Recorder<'a>,
}

impl<'de> MapAccess<'de> for Members<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some(field) = self.fields.next() else {
            return Ok(None);
        };
        let path = match self.of.path.as_str() {
            "" => (*field).to_owned(),
            parent => format!("{parent}.{field}"),
        };
        self.of.keys.borrow_mut().insert(path.clone());
        self.value = Some(path);
        let key: StrDeserializer<'_, Error> = (*field).into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let path = self.value.take();
        let path = path.ok_or_else(|| de::Error::custom("a value was asked for before its key"))?;
        let keys = self.of.keys;
        seed.deserialize(Recorder { path, keys })
    }
}

mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Outer {
        #[serde(rename = "type")]
        _kind: String,
        #[serde(rename = "inner")]
        _inner: Option<Vec<Vec<Inner>>>,
        #[serde(rename = "anyKeys")]
        _any_keys: BTreeMap<String, String>,
    }

    #[derive(Deserialize)]
    struct Inner {
        #[serde(rename = "flag")]
        _flag: bool,
    }

    fn set(keys: &[&str]) -> BTreeSet<String> {
        keys.iter().map(|key| (*key).to_owned()).collect()
    }

    #[test]
    fn every_key_that_is_asked_for_is_recorded() {
        let expected = set(&["type", "inner", "inner[][].flag", "anyKeys"]);
        assert_eq!(keys::<Outer>(), expected);
    }

    #[test]
    fn missing_and_unread_keys_are_found() {
        let page =
            "| key | type |\n| --- |\n| `a.b` | 1 | 2 | 3 | 4 | 5 |\n| `c` | 1 | 2 | 3 | 4 | 5 |\n";
        let read = set(&["a", "a.b", "a.d"]);
        let (missing, unread) = differences(&table(page), &read);
        assert_eq!((missing, unread), (vec!["a.d".into()], vec!["c".into()]));
    }
}
