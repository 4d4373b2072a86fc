//! Reads the text of the file: values by `serde_yaml`, positions by a YAML event parser.
//!
//! Both parsers must accept the text. The second one also finds what the first would either accept
//! in silence or stop at: repeated keys, aliases that grow without bound, keys that are no text.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser};
use serde_yaml::Value;

use super::finding::Place;

/// The longest file that is read, bytes.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// The most values that a file may have, with every alias written out.
const MAX_VALUES: usize = 50_000;
/// How deep values may be nested; the deepest key that exists is at 7.
const MAX_DEPTH: usize = 16;
/// The longest key, bytes.
const MAX_KEY: usize = 256;

/// Where a value and everything below it stands.
#[derive(Debug, Default)]
pub(super) struct Spot {
    /// The line of its key or list item, from 1.
    pub(super) line: usize,
    /// Below a mapping, by key.
    pub(super) keys: HashMap<String, Spot>,
    /// Below a list.
    pub(super) items: Vec<Spot>,
}

/// A parsed file.
#[derive(Debug)]
pub(super) struct Document {
    /// Its value.
    pub(super) value: Value,
    /// The positions in it.
    pub(super) spot: Spot,
}

/// Parses `text`.
///
/// # Errors
/// Everything that is wrong with it as YAML, with places.
pub(super) fn parse(text: &str) -> Result<Document, Vec<(Place, String)>> {
    if text.len() > MAX_BYTES {
        return Err(vec![(Place::default(), format!("longer than {MAX_BYTES} bytes"))]);
    }
    let mut scan = Scan::default();
    if let Err(fault) = scan.read(text) {
        scan.faults.push(fault);
    }
    if !scan.faults.is_empty() {
        return Err(scan.faults);
    }
    let Some(spot) = scan.root else {
        return Err(vec![(
            Place::default(),
            "empty: at least `schemaVersion: 1` is expected".into(),
        )]);
    };
    match serde_yaml::from_str(text) {
        Ok(value) => Ok(Document { value, spot }),
        Err(error) => {
            let line = error.location().map_or(0, |location| location.line());
            Err(vec![(Place { line, key: String::new() }, format!("not valid YAML: {error}"))])
        }
    }
}

type Fault = (Place, String);

/// A mapping or list that has begun.
#[derive(Debug)]
struct Open {
    spot: Spot,
    mapping: bool,
    /// In a mapping: the key whose value comes next.
    key: Option<(String, usize)>,
    anchor: usize,
    values: usize,
}

/// Follows the events of one document.
#[derive(Debug, Default)]
struct Scan {
    open: Vec<Open>,
    root: Option<Spot>,
    /// Values below each anchor, once it is complete.
    anchors: HashMap<usize, usize>,
    values: usize,
    faults: Vec<Fault>,
}

impl Scan {
    fn read(&mut self, text: &str) -> Result<(), Fault> {
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| {
                let place = Place { line: error.marker().line(), key: self.path() };
                (place, format!("not valid YAML: {}", error.info()))
            })?;
            self.event(&event, span.start.line())?;
        }
        Ok(())
    }

    fn event(&mut self, event: &Event<'_>, line: usize) -> Result<(), Fault> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) if self.root.is_some() => {
                Err(self.fault(line, "a second YAML document; one is expected"))
            }
            Event::DocumentStart(_) => Ok(()),
            Event::Scalar(text, _, anchor, _) => {
                if self.key_is_next() {
                    return self.key(text, line);
                }
                self.count(1, line)?;
                self.complete(Spot { line, ..Spot::default() }, *anchor, 1);
                Ok(())
            }
            Event::Alias(anchor) => {
                let Some(values) =
                    self.anchors.get(anchor).copied().filter(|_| !self.key_is_next())
                else {
                    return Err(self.fault(line, "an alias to what contains it, or as a key"));
                };
                self.count(values, line)?;
                self.complete(Spot { line, ..Spot::default() }, 0, values);
                Ok(())
            }
            Event::MappingStart(anchor, _) => self.begin(true, *anchor, line),
            Event::SequenceStart(anchor, _) => self.begin(false, *anchor, line),
            Event::MappingEnd | Event::SequenceEnd => {
                if let Some(open) = self.open.pop() {
                    self.complete(open.spot, open.anchor, open.values.saturating_add(1));
                }
                Ok(())
            }
        }
    }

    fn begin(&mut self, mapping: bool, anchor: usize, line: usize) -> Result<(), Fault> {
        if self.key_is_next() {
            return Err(self.fault(line, "a mapping or list as a key; keys are text"));
        }
        if self.open.len() == MAX_DEPTH {
            return Err(self.fault(line, &format!("nested more than {MAX_DEPTH} deep")));
        }
        self.count(1, line)?;
        let spot = Spot { line, ..Spot::default() };
        self.open.push(Open { spot, mapping, key: None, anchor, values: 0 });
        Ok(())
    }

    fn key(&mut self, text: &str, line: usize) -> Result<(), Fault> {
        if text.len() > MAX_KEY {
            return Err(self.fault(line, &format!("a key longer than {MAX_KEY} bytes")));
        }
        let first =
            self.open.last().and_then(|open| open.spot.keys.get(text)).map(|spot| spot.line);
        if let Some(open) = self.open.last_mut() {
            open.key = Some((text.to_owned(), line));
        }
        let message = match (text, first) {
            ("<<", _) => "merge keys (`<<`) are not supported; write the keys out".to_owned(),
            (_, Some(first)) => format!("written twice; the first is on line {first}"),
            (_, None) => return Ok(()),
        };
        let fault = self.fault(line, &message);
        self.faults.push(fault);
        Ok(())
    }

    /// Hangs a complete value into what is open around it.
    fn complete(&mut self, mut spot: Spot, anchor: usize, values: usize) {
        if anchor > 0 {
            self.anchors.insert(anchor, values);
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(spot);
            return;
        };
        open.values = open.values.saturating_add(values);
        match open.key.take() {
            Some((key, line)) => {
                spot.line = line;
                open.spot.keys.insert(key, spot);
            }
            None => open.spot.items.push(spot),
        }
    }

    fn count(&mut self, values: usize, line: usize) -> Result<(), Fault> {
        self.values = self.values.saturating_add(values);
        if self.values > MAX_VALUES {
            let message = format!("more than {MAX_VALUES} values, aliases written out");
            return Err(self.fault(line, &message));
        }
        Ok(())
    }

    fn key_is_next(&self) -> bool {
        self.open.last().is_some_and(|open| open.mapping && open.key.is_none())
    }

    fn fault(&self, line: usize, message: &str) -> Fault {
        (Place { line, key: self.path() }, message.to_owned())
    }

    /// The key path of what is being read.
    fn path(&self) -> String {
        let mut path = String::new();
        for open in &self.open {
            match &open.key {
                Some((key, _)) if path.is_empty() => path.push_str(key),
                Some((key, _)) => {
                    path.push('.');
                    path.push_str(key);
                }
                None if !open.mapping => {
                    path.push_str(&format!("[{}]", open.spot.items.len()));
                }
                None => {}
            }
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        parse(text)
            .map(|_| Vec::new())
            .unwrap_or_else(|faults| faults.into_iter().map(show).collect())
    }

    fn show((place, message): Fault) -> String {
        format!("{}: {}: {message}", place.line, place.key)
    }

    #[test]
    fn finds_every_repeated_key() {
        let text = "a: 1\nb:\n  - c: 1\n    c: 2\na: 3\n";
        let expect = [
            "4: b[0].c: written twice; the first is on line 3",
            "5: a: written twice; the first is on line 1",
        ];
        assert_eq!(faults(text), expect);
    }

    #[test]
    fn refuses_what_is_no_plain_document() {
        let deep = format!("{}1{}", "[".repeat(17), "]".repeat(17));
        let long = format!("{}: 1", "k".repeat(257));
        let many = format!("[{}]", "1,".repeat(50_001));
        let large = "# ".repeat(MAX_BYTES);
        let table = [
            ("", "0: : empty: at least `schemaVersion: 1` is expected"),
            ("# only\n", "0: : empty: at least `schemaVersion: 1` is expected"),
            ("a: 1\n---\nb: 1\n", "2: : a second YAML document; one is expected"),
            ("a: 1\n? [b]\n: 1\n", "2: : a mapping or list as a key; keys are text"),
            ("a: &x [*x]\n", "1: a[0]: an alias to what contains it, or as a key"),
            (
                "b: &x 1\na:\n  <<: {c: 1}\n",
                "3: a.<<: merge keys (`<<`) are not supported; write the keys out",
            ),
            (&long, "1: : a key longer than 256 bytes"),
            (&many, "1: [49999]: more than 50000 values, aliases written out"),
            (&large, "0: : longer than 1048576 bytes"),
        ];
        for (text, expect) in table {
            assert_eq!(faults(text), [expect], "{}", text.get(..40).unwrap_or(text));
        }
        let deep = faults(&deep);
        assert!(deep[0].ends_with("nested more than 16 deep"), "{deep:?}");
        for text in ["a: [1", "a: b: c", "\ta: 1", "a: 'x", "{", "- 1\nb: 2", "a: *nowhere"] {
            assert!(!faults(text).is_empty(), "{text:?}");
        }
    }

    #[test]
    fn limits_what_aliases_grow_to() {
        let mut text = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n".to_owned();
        for level in 1..12 {
            let below = format!("*a{}", level - 1);
            text += &format!("a{level}: &a{level} [{}]\n", [below.as_str(); 10].join(","));
        }
        let faults = faults(&text);
        assert_eq!(faults.len(), 1);
        assert!(faults[0].ends_with("more than 50000 values, aliases written out"), "{faults:?}");
    }

    #[test]
    fn knows_lines() {
        let document = parse("a: &x\n  b: 1\n\nc:\n  - d\n  - e: *x\n").unwrap();
        assert_eq!(document.spot.keys["a"].keys["b"].line, 2);
        assert_eq!(document.spot.keys["c"].items[1].line, 6);
        assert_eq!(document.spot.keys["c"].items[1].keys["e"].line, 6);
    }
}
