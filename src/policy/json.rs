//! JSON objects read strictly: duplicate members are refused at every depth.
//!
//! RFC 8259 leaves open what a duplicate means, so that two readers of one token may see two
//! tokens; RFC 7515 section 4 and RFC 7519 section 4 let a reader refuse it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::time::UnixTime;

/// The members of an object.
pub type Object = serde_json::Map<String, Value>;

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
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
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
        let mut object = Object::new();
        while let Some(name) = members.next_key::<String>()? {
            let value = members.next_value_seed(Self)?;
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("duplicate member"));
            }
        }
        Ok(Value::Object(object))
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
