//! One value of the file: its place, and what it is taken for.

use std::path::PathBuf;

use serde_yaml::Value;

use super::finding::{Place, Severity, Sink};
use super::raw::Spot;
use super::section::Section;

/// One value of the file.
#[derive(Clone, Debug)]
pub(super) struct Item<'a> {
    pub(super) sink: &'a Sink,
    pub(super) value: &'a Value,
    pub(super) spot: Option<&'a Spot>,
    /// Where it stands.
    pub(super) place: Place,
    pub(super) shape: String,
}

/// A text of the file.
#[derive(Clone, Debug)]
pub(super) struct Text<'a> {
    /// With `${ENV:NAME}` replaced.
    pub(super) value: String,
    /// As the file has it: this, and never `value`, goes into messages.
    pub(super) written: &'a str,
    /// The value it was read from, for findings.
    pub(super) item: Item<'a>,
}

/// The words that a key takes, with what they mean.
pub(super) type Words<T> = &'static [(&'static str, T)];

impl<'a> Item<'a> {
    /// Adds an error here.
    pub(super) fn error(&self, message: impl Into<String>) {
        self.sink.push(Severity::Error, self.place.clone(), message.into());
    }

    /// Adds a warning here.
    pub(super) fn warn(&self, message: impl Into<String>) {
        self.sink.push(Severity::Warning, self.place.clone(), message.into());
    }

    /// As a mapping; one without keys where it is none (an error, unless it is left empty).
    pub(super) fn section(self) -> Section<'a> {
        let mapping = self.value.as_mapping();
        if mapping.is_none() && !self.value.is_null() {
            self.error(format!("a mapping of keys is expected, not {}", kind(self.value)));
        }
        Section::new(self.sink, mapping, self.spot, self.place, self.shape)
    }

    /// As a list of at most `limit` items.
    pub(super) fn list(self, limit: usize) -> Vec<Self> {
        let Some(values) = self.value.as_sequence() else {
            self.error(format!("a list is expected, not {}", kind(self.value)));
            return Vec::new();
        };
        if values.len() > limit {
            self.error(format!("more than {limit} items"));
            return Vec::new();
        }
        let items = values.iter().enumerate().map(|(index, value)| {
            let spot = self.spot.and_then(|spot| spot.items.get(index));
            let line = spot.map_or(self.place.line, |spot| spot.line);
            let place = Place { line, key: format!("{}[{index}]", self.place.key) };
            Item { sink: self.sink, value, spot, place, shape: format!("{}[]", self.shape) }
        });
        items.collect()
    }

    /// Whether it is a list.
    pub(super) fn is_list(&self) -> bool {
        self.value.is_sequence()
    }

    /// As a text that is not empty.
    pub(super) fn text(self) -> Option<Text<'a>> {
        let Some(written) = self.value.as_str() else {
            self.error(format!("a text is expected, not {}", kind(self.value)));
            return None;
        };
        let value = self.expand(written)?;
        if value.is_empty() {
            self.error("must not be empty");
            return None;
        }
        Some(Text { value, written, item: self })
    }

    /// The meaning of a word. A number is taken for the word that writes it (`1.2`).
    pub(super) fn word<T: Copy>(&self, words: Words<T>) -> Option<T> {
        let word = match self.value {
            Value::String(text) => self.expand(text)?,
            Value::Number(number) => number.to_string(),
            Value::Null
            | Value::Bool(_)
            | Value::Sequence(_)
            | Value::Mapping(_)
            | Value::Tagged(_) => {
                self.error(format!("{} is expected, not {}", one_of(words), kind(self.value)));
                return None;
            }
        };
        let meaning = words.iter().find(|(name, _)| *name == word).map(|(_, meaning)| *meaning);
        if meaning.is_none() {
            self.error(format!("{} is expected, not `{}`", one_of(words), self.written()));
        }
        meaning
    }

    /// As a fraction from 0 to 1.
    pub(super) fn fraction(&self) -> Option<f64> {
        let fraction = self.value.as_f64().filter(|value| (0.0..=1.0).contains(value));
        if fraction.is_none() {
            self.error("a number from 0.0 to 1.0 is expected");
        }
        fraction
    }

    /// As the file has it, for messages.
    fn written(&self) -> String {
        match self.value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Null
            | Value::Bool(_)
            | Value::Sequence(_)
            | Value::Mapping(_)
            | Value::Tagged(_) => kind(self.value).to_owned(),
        }
    }

    /// Replaces each `${ENV:NAME}` by the environment variable's value, once.
    pub(super) fn expand(&self, text: &str) -> Option<String> {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let name = after.split_once('}').and_then(|(inside, after)| {
                rest = after;
                inside.strip_prefix("ENV:")
            });
            let Some(name) = name.filter(|name| is_variable(name)) else {
                self.error("`${` begins `${ENV:NAME}`, with a name of letters, digits and `_`");
                return None;
            };
            expanded.push_str(before);
            match super::environment(name) {
                Some(value) => expanded.push_str(&value),
                None => {
                    let message = format!("the environment variable {name} is not set, or no text");
                    self.error(message);
                    return None;
                }
            }
        }
        expanded.push_str(rest);
        Some(expanded)
    }
}

impl<'a> Text<'a> {
    /// Whether it is one `${ENV:NAME}` and nothing else.
    pub(super) fn is_from_environment(&self) -> bool {
        let name = self.written.strip_prefix("${ENV:").and_then(|rest| rest.strip_suffix('}'));
        name.is_some_and(|name| !name.contains('}'))
    }

    /// As a file, relative to the configuration.
    pub(super) fn path(self) -> (PathBuf, Self) {
        (self.item.sink.base().join(&self.value), self)
    }

    /// Adds an error here.
    pub(super) fn error(&self, message: impl Into<String>) {
        self.item.error(message);
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// `` `a`, `b` or `c` ``.
fn one_of<T>(words: &[(&str, T)]) -> String {
    let names: Vec<_> = words.iter().map(|(name, _)| format!("`{name}`")).collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, first)) => format!("{} or {last}", first.join(", ")),
        None => String::new(),
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "`true` or `false`",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Sequence(_) => "a list",
        Value::Mapping(_) => "a mapping",
        Value::Tagged(_) => "a tagged value",
    }
}
