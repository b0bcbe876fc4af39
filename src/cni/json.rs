//! The JSON dialect of CNI, both ways (docs/compatibility.md#0.3).
//!
//! Clients are used to a decoder that matches keys without regard to case, lets the
//! last of several win, ignores unknown keys and `null`, and coerces nothing; and to
//! an encoder that escapes `<`, `>` and `&`. [`decode`] and [`pretty`] are that.
//! [`problems`] is the strict reading, for `cnitool validate`: every error at once,
//! unknown keys included.

use std::borrow::Cow;
use std::cell::RefCell;
use std::{fmt, io};

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor};
use serde_json::ser::{CharEscape, CompactFormatter, Formatter, PrettyFormatter};
use serde_json::{Map, Value};

use super::error::{Code, coded, detailed};
use super::fields;

/// A JSON object as received.
pub type Object = Map<String, Value>;

/// The object in `bytes`. Bytes that are not UTF-8 become U+FFFD.
///
/// # Errors
/// Code 6, saying where the text stops being a JSON object. `what` names the document.
pub fn parse_object(what: &str, bytes: &[u8]) -> Result<Object> {
    object(what, serde_json::from_str(&String::from_utf8_lossy(bytes)))
}

/// As [`parse_object`], for what the reference plugins decode into fields: of keys that
/// differ in case only, the last one counts (see [`fields`]).
///
/// # Errors
/// As [`parse_object`].
pub fn parse_fields(what: &str, bytes: &[u8]) -> Result<Object> {
    object(what, fields::parse(&String::from_utf8_lossy(bytes)))
}

/// The object that `what` turned out to be.
fn object(what: &str, parsed: serde_json::Result<Value>) -> Result<Object> {
    let value = parsed.with_context(|| coded(Code::Decode, format!("{what} is not valid JSON")))?;
    match value {
        Value::Object(object) => Ok(object),
        other => Err(coded(
            Code::Decode,
            format!("{what} must be a JSON object, not {}", kind(&other)),
        )
        .into()),
    }
}

/// The member of `object` whose key equals `key` without regard to case, `null` being
/// no member. Takes every spelling out, so that what stays behind is unknown.
pub fn take(object: &mut Object, key: &str) -> Option<Value> {
    let spellings: Vec<String> = object
        .keys()
        .filter(|k| k.eq_ignore_ascii_case(key))
        .cloned()
        .collect();
    spellings
        .iter()
        .filter_map(|spelling| object.remove(spelling))
        .rfind(|value| !value.is_null())
}

/// Reads `value` as a `T`, in the dialect.
///
/// # Errors
/// Code 6, naming the path of the offending value below `root`.
pub fn decode<T: DeserializeOwned>(root: &str, value: &Value) -> Result<T> {
    let path = Path::Root(root);
    T::deserialize(Decoder {
        value,
        path: &path,
        unknown: None,
    })
    .map_err(|error| coded(Code::Decode, error.to_string()).into())
}

/// One thing wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where: `plugins[0].ipam.ranges[1]`.
    pub path: String,
    /// What, and what to do about it.
    pub message: String,
    /// Whether it is only odd, and does no harm.
    pub is_warning: bool,
    /// Whether this is a key that nobody reads.
    pub is_unknown_key: bool,
    /// The reference plugins' sentence for the same mistake, which programs look for.
    pub sentence: Option<String>,
}

impl Problem {
    /// A value that is wrong.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
            is_warning: false,
            is_unknown_key: false,
            sentence: None,
        }
    }

    /// The same problem, of what stands at `path`.
    #[must_use]
    pub fn below(mut self, path: &str) -> Self {
        self.path = below(path, &self.path);
        self
    }

    /// The same problem, for which the reference plugins have `sentence`.
    #[must_use]
    pub fn told_as(mut self, sentence: impl Into<String>) -> Self {
        self.sentence = Some(sentence.into());
        self
    }

    /// The problem as an error of `code`. Its message is the reference's sentence where it
    /// has one; what we say ourselves, with the key, is then in the details.
    pub fn error(&self, code: Code) -> anyhow::Error {
        match &self.sentence {
            Some(sentence) => detailed(code, sentence, self.to_string()),
            None => coded(code, self.to_string()).into(),
        }
    }

    /// What works, but may not be what is meant.
    pub fn warning(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            is_warning: true,
            ..Self::new(path, message)
        }
    }

    /// A key at `path` that nobody reads, and which of `known` it looks like.
    pub fn unknown_key<'a>(
        path: String,
        key: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let advice = nearest(key, known)
            .map_or_else(String::new, |field| format!("; did you mean \"{field}\"?"));
        Self {
            is_unknown_key: true,
            ..Self::warning(path, format!("unknown key, ignored{advice}"))
        }
    }
}

/// The key, and what is wrong with it.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// The path of member `key` of the object at `root`.
pub fn below(root: &str, key: &str) -> String {
    Path::Key(&Path::Root(root), key).to_string()
}

/// Everything that reading `value` as a `T` stumbles over: wrong types, bad values and
/// unknown keys (with the known key that looks most like it).
pub fn problems<T: DeserializeOwned>(root: &str, value: &Value) -> Vec<Problem> {
    let mut value = value.clone();
    let mut found = Vec::new();
    let path = Path::Root(root);
    loop {
        let unknown = RefCell::new(Vec::new());
        let read = T::deserialize(Decoder {
            value: &value,
            path: &path,
            unknown: Some(&unknown),
        });
        let Err(error) = read else {
            found.extend(unknown.into_inner());
            return found;
        };
        // `null` reads as "not there": take the bad value out and look for the next.
        let bad = value.pointer_mut(&error.pointer);
        let removed = bad.is_some_and(|bad| !std::mem::take(bad).is_null());
        found.push(Problem::new(error.path, error.message));
        if !removed {
            return found;
        }
    }
}

/// The same and, where the whole can be read, what `of_values` finds wrong with it: its
/// second argument is the path of the object.
pub fn all_problems<T: DeserializeOwned>(
    root: &str,
    value: &Value,
    of_values: impl FnOnce(&T, &str) -> Vec<Problem>,
) -> Vec<Problem> {
    let mut found = problems::<T>(root, value);
    if let Ok(read) = decode::<T>(root, value) {
        found.extend(of_values(&read, root));
    }
    found
}

/// The member of nested objects, case and `null` as in the dialect.
pub fn member(document: &Value, keys: &[&str]) -> Option<Value> {
    keys.iter().try_fold(document.clone(), |value, key| {
        let Value::Object(mut object) = value else {
            return None;
        };
        take(&mut object, key)
    })
}

/// Lets a configuration through that has no `problems`.
///
/// # Errors
/// Code 7: the message is the first problem, or the reference's sentence for it. The
/// details name all problems that the message does not.
pub fn refuse(problems: &[Problem]) -> Result<()> {
    let Some((first, others)) = problems.split_first() else {
        return Ok(());
    };
    let mut details: Vec<String> = others.iter().map(Problem::to_string).collect();
    if first.sentence.is_some() {
        details.insert(0, first.to_string());
    }
    let message = first.sentence.clone().unwrap_or_else(|| first.to_string());
    Err(if details.is_empty() {
        coded(Code::Config, message).into()
    } else {
        detailed(Code::Config, message, details.join("; "))
    })
}

/// Where in the document the decoder stands.
enum Path<'a> {
    Root(&'a str),
    Key(&'a Self, &'a str),
    Index(&'a Self, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root(root) => f.write_str(root),
            Path::Key(Path::Root(""), key) => f.write_str(key),
            Path::Key(parent, key) => write!(f, "{parent}.{key}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

impl Path<'_> {
    /// The same place as an RFC 6901 pointer.
    fn pointer(&self) -> String {
        match self {
            Path::Root(_) => String::new(),
            Path::Key(parent, key) => {
                let key = key.replace('~', "~0").replace('/', "~1");
                format!("{}/{key}", parent.pointer())
            }
            Path::Index(parent, index) => format!("{}/{index}", parent.pointer()),
        }
    }
}

/// A value that is not what the reader wants, and where it stands.
#[derive(Debug, Default)]
struct Mismatch {
    path: String,
    pointer: String,
    message: String,
    placed: bool,
}

impl Mismatch {
    /// Remembers the innermost place: the first to be told.
    fn at(mut self, path: &Path<'_>) -> Self {
        if !self.placed {
            self.path = path.to_string();
            self.pointer = path.pointer();
            self.placed = true;
        }
        self
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self {
            message: message.to_string(),
            ..Self::default()
        }
    }
}

/// What a value is, for a person.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => format!("the boolean {b}"),
        // The parser adds the plus sign.
        Value::Number(n) => format!("the number {}", n.as_str().replace("e+", "e")),
        Value::String(s) => format!("the string \"{s}\""),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

/// Unknown keys, where they are collected.
type Unknown = RefCell<Vec<Problem>>;

/// Reads a [`Value`] in the dialect: `null` is the zero value of whatever is wanted.
#[derive(Clone, Copy)]
struct Decoder<'a> {
    value: &'a Value,
    path: &'a Path<'a>,
    unknown: Option<&'a Unknown>,
}

impl Decoder<'_> {
    fn wants(&self, what: &str) -> Mismatch {
        de::Error::custom(format!("expected {what}, found {}", kind(self.value)))
    }

    /// `parsed`, or why there is none; `least` and `most` are the bounds of the type.
    fn integer<T: fmt::Display>(
        &self,
        parsed: Option<T>,
        least: T,
        most: T,
    ) -> Result<T, Mismatch> {
        parsed.ok_or_else(|| match self.value {
            // As in Go, 1e3 is none.
            Value::Number(n) if n.as_str().contains(['.', 'e', 'E']) => {
                self.wants("an integer without a fraction or an exponent")
            }
            Value::Number(_) => self.wants(&format!("an integer from {least} to {most}")),
            _ => self.wants("an integer"),
        })
    }
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
            let parsed = match self.value {
                Value::Null => Some(0),
                Value::Number(n) => n.as_str().parse::<$type>().ok(),
                _ => None,
            };
            self.integer(parsed, <$type>::MIN, <$type>::MAX)
                .and_then(|n| visitor.$visit(n))
                .map_err(|e: Mismatch| e.at(self.path))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Decoder<'_> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        // Free-form values: no dialect inside, numbers keep every digit.
        self.value
            .clone()
            .deserialize_any(visitor)
            .map_err(|e| <Mismatch as de::Error>::custom(e).at(self.path))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        let read = match self.value {
            Value::Null => visitor.visit_bool(false),
            Value::Bool(b) => visitor.visit_bool(*b),
            _ => Err(self.wants("true or false")),
        };
        read.map_err(|e| e.at(self.path))
    }

    integers! {
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        let read = match self.value {
            Value::Null => visitor.visit_str(""),
            Value::String(s) => visitor.visit_str(s),
            _ => Err(self.wants("a string")),
        };
        read.map_err(|e| e.at(self.path))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        if self.value.is_null() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        let items = match self.value {
            Value::Null => [].as_slice(),
            Value::Array(items) => items,
            _ => return Err(self.wants("a list").at(self.path)),
        };
        visitor
            .visit_seq(Items {
                items: items.iter().enumerate(),
                of: self,
            })
            .map_err(|e| e.at(self.path))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        let none = Object::new();
        let members = match self.value {
            Value::Null => &none,
            Value::Object(members) => members,
            _ => return Err(self.wants("an object").at(self.path)),
        };
        let members = members
            .iter()
            .map(|(k, v)| (Cow::Borrowed(k.as_str()), k.as_str(), v));
        visitor
            .visit_map(Members::new(members.collect(), self))
            .map_err(|e| e.at(self.path))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let none = Object::new();
        let members = match self.value {
            Value::Null => &none,
            Value::Object(members) => members,
            _ => return Err(self.wants("an object").at(self.path)),
        };
        let mut known: Vec<(Cow<'_, str>, &str, &Value)> = Vec::new();
        for (key, value) in members {
            let field = fields
                .iter()
                .find(|f| **f == key)
                .or_else(|| fields.iter().find(|f| f.eq_ignore_ascii_case(key)));
            match field {
                None => self.note_unknown(key, fields),
                Some(_) if value.is_null() => {}
                Some(field) => {
                    known.retain(|(name, ..)| name != field);
                    known.push((Cow::Borrowed(field), key, value));
                }
            }
        }
        visitor
            .visit_map(Members::new(known, self))
            .map_err(|e| e.at(self.path))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let Value::String(text) = self.value else {
            return Err(self.wants("a string").at(self.path));
        };
        visitor
            .visit_enum(text.as_str().into_deserializer())
            .map_err(|e: Mismatch| e.at(self.path))
    }

    serde::forward_to_deserialize_any! {
        f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
        ignored_any i128 u128
    }
}

/// The one of `known` that `word` was probably meant to be.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    known
        .into_iter()
        .map(|candidate| {
            let distance = strsim::damerau_levenshtein(&candidate.to_lowercase(), &word);
            (distance, candidate)
        })
        .min()
        // Of words as short as `mac` and `mtu`, two letters are most.
        .filter(
            |(distance, candidate)| match candidate.len().min(word.len()) {
                0..=4 => *distance <= 1,
                _ => *distance <= 2.max(candidate.len() / 4),
            },
        )
        .map(|(_, candidate)| candidate)
}

impl Decoder<'_> {
    fn note_unknown(&self, key: &str, fields: &[&str]) {
        let Some(unknown) = self.unknown else { return };
        let path = Path::Key(self.path, key).to_string();
        let known = fields.iter().copied();
        unknown
            .borrow_mut()
            .push(Problem::unknown_key(path, key, known));
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Value>>,
    of: Decoder<'a>,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = Mismatch;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Mismatch> {
        let Some((index, value)) = self.items.next() else {
            return Ok(None);
        };
        let path = Path::Index(self.of.path, index);
        let item = Decoder {
            value,
            path: &path,
            unknown: self.of.unknown,
        };
        seed.deserialize(item).map(Some).map_err(|e| e.at(&path))
    }
}

/// Members as (field name, key as written, value).
struct Members<'a> {
    rest: std::vec::IntoIter<(Cow<'a, str>, &'a str, &'a Value)>,
    next: Option<(&'a str, &'a Value)>,
    of: Decoder<'a>,
}

impl<'a> Members<'a> {
    fn new(members: Vec<(Cow<'a, str>, &'a str, &'a Value)>, of: Decoder<'a>) -> Self {
        Self {
            rest: members.into_iter(),
            next: None,
            of,
        }
    }
}

impl<'de> de::MapAccess<'de> for Members<'_> {
    type Error = Mismatch;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Mismatch> {
        let Some((field, key, value)) = self.rest.next() else {
            return Ok(None);
        };
        self.next = Some((key, value));
        seed.deserialize(field.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mismatch> {
        let Some((key, value)) = self.next.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        let path = Path::Key(self.of.path, key);
        let member = Decoder {
            value,
            path: &path,
            unknown: self.of.unknown,
        };
        seed.deserialize(member).map_err(|e| e.at(&path))
    }
}

/// `value` as clients expect results and errors: indented by four spaces, no newline at
/// the end, `<`, `>` and `&` escaped.
///
/// # Errors
/// When `value` cannot be JSON (a map with keys that are no strings).
pub fn pretty(value: &impl Serialize) -> Result<Vec<u8>> {
    encode(value, PrettyFormatter::with_indent(b"    "))
}

/// `value` on one line, with the same escapes.
///
/// # Errors
/// As [`pretty`].
pub fn compact(value: &impl Serialize) -> Result<Vec<u8>> {
    encode(value, CompactFormatter)
}

fn encode(value: &impl Serialize, formatter: impl Formatter) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Escaping(formatter));
    value
        .serialize(&mut serializer)
        .context("encode an answer as JSON")?;
    Ok(out)
}

/// Any formatter, with what may not stand in HTML escaped in strings.
struct Escaping<F>(F);

macro_rules! forward {
    ($($method:ident($($arg:ident: $type:ty),*);)*) => {$(
        fn $method<W: ?Sized + io::Write>(&mut self, writer: &mut W, $($arg: $type),*) -> io::Result<()> {
            self.0.$method(writer, $($arg),*)
        }
    )*};
}

impl<F: Formatter> Formatter for Escaping<F> {
    forward! {
        begin_array();
        end_array();
        begin_array_value(first: bool);
        end_array_value();
        begin_object();
        end_object();
        begin_object_key(first: bool);
        end_object_key();
        begin_object_value();
        end_object_value();
        write_char_escape(escape: CharEscape);
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let special = ['<', '>', '&', '\u{2028}', '\u{2029}'];
        let mut rest = fragment;
        while let Some(at) = rest.find(special) {
            let (plain, tail) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut tail = tail.chars();
            if let Some(c) = tail.next() {
                write!(writer, "\\u{:04x}", u32::from(c))?;
            }
            rest = tail.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    #[derive(Debug, Deserialize, PartialEq, Default)]
    #[serde(default, rename_all = "camelCase")]
    struct Inner {
        is_gateway: bool,
        mtu: u32,
    }

    #[derive(Debug, Deserialize, PartialEq, Default)]
    #[serde(default, rename_all = "camelCase")]
    struct Outer {
        name: String,
        list: Vec<Inner>,
        free: Option<Value>,
    }

    #[test]
    fn keys_match_without_case_and_null_is_the_default() {
        let value = json!({"NAME": "n", "list": [{"ISGATEWAY": true, "mtu": null}, null], "x": 1});
        let outer: Outer = decode("", &value).unwrap();
        assert_eq!(outer.name, "n");
        assert_eq!(
            outer.list,
            [
                Inner {
                    is_gateway: true,
                    mtu: 0
                },
                Inner::default()
            ]
        );
    }

    #[test]
    fn nothing_is_coerced_and_errors_name_the_place() {
        for (value, text) in [
            (
                json!({"name": 5}),
                "name: expected a string, found the number 5",
            ),
            (
                json!({"list": [{}, {"Mtu": "1500"}]}),
                "list[1].Mtu: expected an integer, found the string \"1500\"",
            ),
            (
                json!({"list": [{"isGateway": 1}]}),
                "list[0].isGateway: expected true or false, found the number 1",
            ),
            (
                json!({"list": {}}),
                "list: expected a list, found an object",
            ),
        ] {
            let error = decode::<Outer>("", &value).unwrap_err();
            assert_eq!(error.to_string(), text);
        }
        for number in ["1500.0", "1.5e3", "-1", "4294967296"] {
            let value = serde_json::from_str(&format!("{{\"mtu\": {number}}}")).unwrap();
            assert!(decode::<Inner>("", &value).is_err(), "{number}");
        }
    }

    #[test]
    fn free_values_keep_their_digits() {
        let text = r#"{"free":{"a":1.50,"b":12345678901234567890123}}"#;
        let value = serde_json::from_str(text).unwrap();
        let outer: Outer = decode("", &value).unwrap();
        assert_eq!(
            compact(&json!({"free": outer.free})).unwrap(),
            text.as_bytes()
        );
    }

    #[test]
    fn all_problems_at_once() {
        let value = json!({
            "nmae": "n",
            "list": [{"isGatewy": true}, {"mtu": "x"}, {"isGateway": "y"}],
        });
        let found: Vec<_> = problems::<Outer>("plugins[0]", &value)
            .into_iter()
            .map(|p| format!("{}: {}", p.path, p.message))
            .collect();
        assert_eq!(
            found,
            [
                "plugins[0].list[1].mtu: expected an integer, found the string \"x\"",
                "plugins[0].list[2].isGateway: expected true or false, found the string \"y\"",
                "plugins[0].nmae: unknown key, ignored; did you mean \"name\"?",
                "plugins[0].list[0].isGatewy: unknown key, ignored; did you mean \"isGateway\"?",
            ]
        );
    }

    #[test]
    fn take_is_case_insensitive() {
        let mut object = json!({"IPs": [1], "x": 2}).as_object().unwrap().clone();
        assert_eq!(take(&mut object, "ips"), Some(json!([1])));
        assert_eq!(take(&mut object, "ips"), None);
        assert_eq!(object.len(), 1);
    }

    #[test]
    fn output_is_indented_and_escaped() {
        let bytes = pretty(&json!({"a": "<&>\u{2028}\"é"})).unwrap();
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "{\n    \"a\": \"\\u003c\\u0026\\u003e\\u2028\\\"é\"\n}"
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            drop(parse_object("stdin", text.as_bytes()));
        }
    }
}
