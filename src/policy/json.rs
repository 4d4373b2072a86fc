//! JSON objects read strictly: duplicate members are refused at every depth.
//!
//! RFC 8259 leaves open what a duplicate means, so that two readers of one token may see two
//! tokens; RFC 7515 section 4 and RFC 7519 section 4 let a reader refuse it.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::Number;

use super::time::UnixTime;

/// Members up to which each new one is compared with those before; past it all are sorted once.
const FEW: usize = 32;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Self>),
    /// An object.
    Object(Object),
}

/// The members of an object, in their order. Those of a header and of a proof's claims are a handful,
/// and one is read for each request: a list is faster than any map.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Object(Vec<(Cow<'static, str>, Value)>);

impl Object {
    /// The value of a member.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// Whether there is a member of this name.
    #[must_use]
    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The names of its members.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_ref())
    }

    /// Whether it has no member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same with a member put in, or in the place of the one of its name.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned().into(), value)),
        }
        self
    }

    /// As JSON, the members in their order.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Keys are text, and nothing else could fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Adds a member, unless there is one of its name.
    fn add(&mut self, name: Cow<'static, str>, value: Value) -> bool {
        let new = self.0.len() >= FEW || !self.contains_key(&name);
        self.0.push((name, value));
        new
    }

    /// Whether no name stands twice, as far as [`Self::add`] did not look.
    fn is_sound(&self) -> bool {
        if self.0.len() <= FEW {
            return true;
        }
        let mut names: Vec<_> = self.0.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.windows(2).all(|two| two.first() != two.last())
    }
}

impl Value {
    /// The text of a string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    /// The items of an array.
    #[must_use]
    pub fn as_array(&self) -> Option<&[Self]> {
        if let Self::Array(items) = self { Some(items) } else { None }
    }

    /// An object.
    #[must_use]
    pub fn as_object(&self) -> Option<&Object> {
        if let Self::Object(object) = self { Some(object) } else { None }
    }
}

/// What was made here, not read.
impl From<&serde_json::Map<String, serde_json::Value>> for Object {
    fn from(made: &serde_json::Map<String, serde_json::Value>) -> Self {
        let members = made.iter().map(|(name, value)| (Cow::Owned(name.clone()), value.into()));
        Self(members.collect())
    }
}

impl From<&serde_json::Value> for Value {
    fn from(made: &serde_json::Value) -> Self {
        match made {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(value) => Self::Bool(*value),
            serde_json::Value::Number(number) => Self::Number(number.clone()),
            serde_json::Value::String(text) => Self::String(text.clone()),
            serde_json::Value::Array(items) => Self::Array(items.iter().map(Self::from).collect()),
            serde_json::Value::Object(members) => Self::Object(members.into()),
        }
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(number) => number.serialize(serializer),
            Self::String(text) => serializer.serialize_str(text),
            Self::Array(items) => items.serialize(serializer),
            Self::Object(object) => object.serialize(serializer),
        }
    }
}

/// Names that need no memory of their own.
fn known(name: &str) -> Option<&'static str> {
    Some(match name {
        "alg" => "alg",
        "ath" => "ath",
        "aud" => "aud",
        "client_id" => "client_id",
        "cnf" => "cnf",
        "crv" => "crv",
        "e" => "e",
        "exp" => "exp",
        "htm" => "htm",
        "htu" => "htu",
        "iat" => "iat",
        "iss" => "iss",
        "jkt" => "jkt",
        "jti" => "jti",
        "jwk" => "jwk",
        "kid" => "kid",
        "kty" => "kty",
        "n" => "n",
        "nonce" => "nonce",
        "scope" => "scope",
        "sub" => "sub",
        "typ" => "typ",
        "x" => "x",
        "x5t#S256" => "x5t#S256",
        "y" => "y",
        _ => return None,
    })
}

/// Reads one JSON object; `None` for anything else: other values, duplicate members, trailing
/// bytes, invalid UTF-8, nesting past 128.
#[must_use]
pub fn object(text: &[u8]) -> Option<Object> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let Ok(Value::Object(object)) = Strict.deserialize(&mut reader) else {
        return None;
    };
    reader.end().ok()?;
    Some(object)
}

/// A claim that may be absent but, when present, has one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongType;

/// A string member.
///
/// # Errors
/// When it is there and is no string; `null` is no string.
pub fn string<'a>(object: &'a Object, name: &str) -> Result<Option<&'a str>, WrongType> {
    match object.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(WrongType),
    }
}

/// A `NumericDate` member (RFC 7519 section 2): seconds since the epoch, a fraction allowed.
///
/// # Errors
/// When it is there and is no number.
pub fn numeric_date(object: &Object, name: &str) -> Result<Option<UnixTime>, WrongType> {
    match object.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
            (Some(secs), _) => Ok(Some(UnixTime::from_secs(secs))),
            #[expect(clippy::cast_possible_truncation, reason = "`as` saturates, as UnixTime does")]
            (None, Some(secs)) => Ok(Some(UnixTime::from_millis((secs * 1000.0) as i64))),
            (None, None) => Err(WrongType),
        },
        Some(_) => Err(WrongType),
    }
}

/// One string, or an array of strings (RFC 7519 section 4.1.3). Absent and `[]` are both empty.
///
/// # Errors
/// When it is there and is neither.
pub fn strings(object: &Object, name: &str) -> Result<Vec<String>, WrongType> {
    match object.get(name) {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![text.clone()]),
        Some(Value::Array(items)) => {
            items.iter().map(|item| item.as_str().map(str::to_owned).ok_or(WrongType)).collect()
        }
        Some(_) => Err(WrongType),
    }
}

struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without duplicate members")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(Self)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Object::default();
        while let Some(Name(name)) = members.next_key()? {
            let value = members.next_value_seed(Self)?;
            if !object.add(name, value) {
                return Err(A::Error::custom("duplicate member"));
            }
        }
        if object.is_sound() {
            Ok(Value::Object(object))
        } else {
            Err(A::Error::custom("duplicate member"))
        }
    }
}

struct Name(Cow<'static, str>);

impl<'de> serde::Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NameVisitor)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Name, E> {
        Ok(Name(known(name).map_or_else(|| Cow::Owned(name.to_owned()), Cow::Borrowed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects() {
        for (text, read) in [
            (r#"{}"#, true),
            (r#" {"a":1,"b":{"a":2},"c":[{"a":1},{"a":2}]} "#, true),
            (r#"{"a":1,"a":1}"#, false),
            (r#"{"a":1,"\u0061":2}"#, false),
            (r#"{"a":{"b":1,"b":2}}"#, false),
            (r#"{"a":[{"b":1,"b":2}]}"#, false),
            (r#"{"a":1}{"#, false),
            (r#"{"a":1} x"#, false),
            (r#"[]"#, false),
            (r#""a""#, false),
            (r#""#, false),
            (r#"{"a":1e999}"#, false),
        ] {
            assert_eq!(object(text.as_bytes()).is_some(), read, "{text}");
        }
        assert!(object(b"{\"a\":\"\xff\"}").is_none());
        let deep = format!("{}{}", r#"{"a":"#.repeat(5000), "}".repeat(5000));
        assert!(object(deep.as_bytes()).is_none());
    }

    #[test]
    fn a_name_stands_once_among_many() {
        let members = |count: usize, last: &str| {
            let names = (0..count).map(|index| format!("\"m{index}\":0"));
            let members: Vec<_> = names.chain([format!("\"{last}\":0")]).collect();
            object(format!("{{{}}}", members.join(",")).as_bytes())
        };
        for count in [FEW - 1, FEW, FEW + 1, 5 * FEW] {
            assert!(members(count, "other").is_some_and(|object| object.contains_key("other")));
            assert_eq!(members(count, "m0"), None, "{count}");
            assert_eq!(members(count, &format!("m{}", count - 1)), None, "{count}");
        }
    }

    #[test]
    fn dates() {
        let read = |text: &str| numeric_date(&object(text.as_bytes()).unwrap(), "t");
        assert_eq!(read(r#"{"t":5}"#), Ok(Some(UnixTime::from_secs(5))));
        assert_eq!(read(r#"{"t":5.25}"#), Ok(Some(UnixTime::from_millis(5250))));
        assert_eq!(read(r#"{"t":1e300}"#), Ok(Some(UnixTime::MAX)));
        assert_eq!(read(r#"{"t":"5"}"#), Err(WrongType));
        assert_eq!(read(r#"{"t":null}"#), Err(WrongType));
        assert_eq!(read(r#"{"t":true}"#), Err(WrongType));
        assert_eq!(read(r#"{}"#), Ok(None));
    }
}
