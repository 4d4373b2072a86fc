//! Reads typed values out of the file, key by key.
//!
//! A [`Section`] knows which of its keys were read and reports the others when it is dropped, so
//! that no reader can forget to. Reading goes on after an error: what stands in for a bad value
//! (a default, an empty text) never leaves this room, because `load` gives out no
//! [`Config`](super::Config) once an error was found.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde_yaml::{Mapping, Value};

use super::finding::{Place, Severity, Sink, nearest};
use super::item::{Item, Text, Words, kind};
use super::raw::Spot;
use super::value;

/// A mapping of the file, or the lack of one: then every key in it is absent.
#[derive(Debug)]
pub(super) struct Section<'a> {
    sink: &'a Sink,
    mapping: Option<&'a Mapping>,
    spot: Option<&'a Spot>,
    place: Place,
    /// The key path without indices and names, for [`Sink::know`].
    shape: String,
    asked: RefCell<BTreeSet<&'static str>>,
    /// Whether its keys are names that the user chose.
    named: bool,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(super) fn root(sink: &'a Sink, value: &'a Value, spot: &'a Spot) -> Self {
        let place = Place { line: 0, key: String::new() };
        Item { sink, value, spot: Some(spot), place, shape: String::new() }.section()
    }

    /// The keys of `mapping`, none of them read.
    pub(super) fn new(
        sink: &'a Sink,
        mapping: Option<&'a Mapping>,
        spot: Option<&'a Spot>,
        place: Place,
        shape: String,
    ) -> Self {
        let asked = RefCell::default();
        Section { sink, mapping, spot, place, shape, asked, named: false }
    }

    /// Where it stands.
    pub(super) fn place(&self) -> Place {
        self.place.clone()
    }

    /// Where `key` stands, or would stand.
    pub(super) fn place_of(&self, key: &str) -> Place {
        let line = self.spot.and_then(|spot| spot.keys.get(key)).map(|spot| spot.line);
        Place { line: line.unwrap_or(self.place.line), key: join(&self.place.key, key) }
    }

    /// Adds an error at the section itself.
    pub(super) fn error_here(&self, message: impl Into<String>) {
        self.sink.push(Severity::Error, self.place(), message.into());
    }

    /// Adds a warning at the section itself.
    pub(super) fn warn_here(&self, message: impl Into<String>) {
        self.sink.push(Severity::Warning, self.place(), message.into());
    }

    /// Adds an error at `key`.
    pub(super) fn error(&self, key: &str, message: impl Into<String>) {
        self.sink.push(Severity::Error, self.place_of(key), message.into());
    }

    /// Adds a warning at `key`.
    pub(super) fn warn(&self, key: &str, message: impl Into<String>) {
        self.sink.push(Severity::Warning, self.place_of(key), message.into());
    }

    /// Where findings go.
    pub(super) fn sink(&self) -> &'a Sink {
        self.sink
    }

    /// The value of `key`; from then on the key counts as known.
    pub(super) fn item(&self, key: &'static str) -> Option<Item<'a>> {
        self.asked.borrow_mut().insert(key);
        self.sink.know(join(&self.shape, key));
        self.child(key, join(&self.shape, key))
    }

    fn child(&self, key: &str, shape: String) -> Option<Item<'a>> {
        let value = self.mapping?.get(key)?;
        let spot = self.spot.and_then(|spot| spot.keys.get(key));
        Some(Item { sink: self.sink, value, spot, place: self.place_of(key), shape })
    }

    /// Whether the file has `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.mapping.is_some_and(|mapping| mapping.contains_key(key))
    }

    /// Whether the file lacks `key`, or has an empty list there.
    pub(super) fn lacks(&self, key: &str) -> bool {
        let value = self.mapping.and_then(|mapping| mapping.get(key));
        value.is_none_or(|value| value.as_sequence().is_some_and(Vec::is_empty))
    }

    /// The mapping under `key`; an empty one where it is absent.
    pub(super) fn section(&self, key: &'static str) -> Section<'a> {
        self.item(key).map_or_else(|| self.absent(key), Item::section)
    }

    fn absent(&self, key: &str) -> Section<'a> {
        let shape = join(&self.shape, key);
        Section::new(self.sink, None, None, self.place_of(key), shape)
    }

    /// The sections under `key` by the names that the user chose, at most `limit`.
    pub(super) fn named(&self, key: &'static str, limit: usize) -> Vec<(String, Section<'a>)> {
        let items = self.items_by_name(key, limit).into_iter();
        items.map(|(name, item)| (name, item.section())).collect()
    }

    /// The texts under `key` by the names that the user chose, at most `limit`.
    pub(super) fn texts_by_name(&self, key: &'static str, limit: usize) -> Vec<(String, Text<'a>)> {
        let items = self.items_by_name(key, limit).into_iter();
        items.filter_map(|(name, item)| Some((name, item.text()?))).collect()
    }

    fn items_by_name(&self, key: &'static str, limit: usize) -> Vec<(String, Item<'a>)> {
        let mut parent = self.section(key);
        parent.named = true;
        let Some(mapping) = parent.mapping else { return Vec::new() };
        if mapping.len() > limit {
            self.error(key, format!("more than {limit} entries"));
            return Vec::new();
        }
        let entry = |name: &Value| {
            let Some(name) = name.as_str() else {
                self.error(key, format!("{} is no text: put the name in quotes", kind(name)));
                return None;
            };
            let item = parent.child(name, join(&parent.shape, "<name>"))?;
            Some((name.to_owned(), item))
        };
        mapping.keys().filter_map(entry).collect()
    }

    /// The items of the list under `key`, at most `limit`; `None` where it is absent.
    pub(super) fn list(&self, key: &'static str, limit: usize) -> Option<Vec<Item<'a>>> {
        self.item(key).map(|item| item.list(limit))
    }

    /// The texts of the list under `key`, at most `limit`; `None` where it is absent.
    pub(super) fn texts(&self, key: &'static str, limit: usize) -> Option<Vec<Text<'a>>> {
        let items = self.list(key, limit)?;
        Some(items.into_iter().filter_map(Item::text).collect())
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, key: &'static str) -> Option<bool> {
        let item = self.item(key)?;
        let flag = item.value.as_bool();
        if flag.is_none() {
            item.error(format!("`true` or `false` is expected, not {}", kind(item.value)));
        }
        flag
    }

    /// The text under `key`, not empty.
    pub(super) fn text(&self, key: &'static str) -> Option<Text<'a>> {
        self.item(key)?.text()
    }

    /// The text under `key`, which must be there.
    pub(super) fn required(&self, key: &'static str) -> Option<Text<'a>> {
        if !self.has(key) {
            self.error(key, "is required");
        }
        self.text(key)
    }

    /// The meaning of the word under `key`.
    pub(super) fn word<T: Copy>(&self, key: &'static str, words: Words<T>) -> Option<T> {
        self.item(key)?.word(words)
    }

    /// The whole number under `key`, in `range`; `default` where it is absent.
    pub(super) fn number(
        &self,
        key: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> u64 {
        let Some(item) = self.item(key) else { return default };
        match item.value.as_u64() {
            Some(number) if range.contains(&number) => number,
            Some(_) => {
                item.error(format!("must be from {} to {}", range.start(), range.end()));
                default
            }
            None => {
                let found = match item.value.is_number() {
                    true => "another one",
                    false => kind(item.value),
                };
                item.error(format!("a whole number is expected, not {found}"));
                default
            }
        }
    }

    /// [`Section::number`] as a size.
    pub(super) fn size(
        &self,
        key: &'static str,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> usize {
        usize::try_from(self.number(key, default, range)).unwrap_or(usize::MAX)
    }

    /// [`Section::number`] in 32 bits.
    pub(super) fn count(&self, key: &'static str, default: u32, range: RangeInclusive<u32>) -> u32 {
        let range = u64::from(*range.start())..=u64::from(*range.end());
        u32::try_from(self.number(key, default.into(), range)).unwrap_or(default)
    }

    /// The duration under `key`, in `range`; `default` where it is absent. All three as the file
    /// would write them.
    pub(super) fn duration(&self, key: &'static str, default: &str, range: [&str; 2]) -> Duration {
        let known = |text| value::duration(text).unwrap_or_default();
        let (default, [low, high]) = (known(default), range.map(known));
        let Some(item) = self.item(key) else { return default };
        let Some(text) = item.value.as_str() else {
            item.error(format!("{}, not {}", value::DURATION_FORMS, kind(item.value)));
            return default;
        };
        match item.expand(text).and_then(|text| value::duration(&text)) {
            Some(duration) if (low..=high).contains(&duration) => return duration,
            Some(_) => {
                let [low, high] = [low, high].map(value::show_duration);
                item.error(format!("must be from {low} to {high}"));
            }
            None => item.error(format!("{}, not `{text}`", value::DURATION_FORMS)),
        }
        default
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        let Some(mapping) = self.mapping.filter(|_| !self.named) else { return };
        let asked = self.asked.borrow();
        for key in mapping.keys() {
            let Some(name) = key.as_str() else {
                let message = format!("{} as a key; keys are text", kind(key));
                self.sink.push(Severity::Error, self.place.clone(), message);
                continue;
            };
            if asked.contains(name) {
                continue;
            }
            let message = match nearest(name, asked.iter().copied()) {
                Some((near, true)) => format!("unknown key; did you mean `{near}`?"),
                Some((near, false)) => format!("unknown key; the nearest known one is `{near}`"),
                None => "unknown key".to_owned(),
            };
            self.error(name, message);
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
