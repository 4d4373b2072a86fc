//! The table of cases, in sections.

use std::io::{self, Write};

/// One case and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// What was sent.
    pub(super) case: &'static str,
    /// What must come back.
    pub(super) expected: String,
    /// What came back.
    pub(super) got: String,
    /// The edge's own reason, from its records.
    pub(super) reason: String,
    /// Whether all of it is as it must be.
    pub(super) ok: bool,
}

/// Rows that belong together.
#[derive(Clone, Debug)]
pub(super) struct Section {
    /// What they are about.
    pub(super) title: &'static str,
    /// In the order in which they were sent.
    pub(super) rows: Vec<Row>,
}

const GREEN: &str = "\u{1b}[32m";
const RED: &str = "\u{1b}[1;31m";
const PLAIN: &str = "\u{1b}[0m";

/// Writes the rows in columns, which are as wide as their widest cell in any section.
///
/// # Errors
/// What `out` says.
pub(super) fn write(out: &mut dyn Write, sections: &[Section], colour: bool) -> io::Result<()> {
    let head = ["case", "expected", "got", "reason"];
    let cells = |row: &'_ Row| -> [String; 4] {
        [row.case.to_owned(), row.expected.clone(), row.got.clone(), row.reason.clone()]
    };
    let mut widths = head.map(|text| text.chars().count());
    for row in sections.iter().flat_map(|section| &section.rows) {
        for (width, cell) in widths.iter_mut().zip(cells(row)) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |out: &mut dyn Write, cells: [String; 4], verdict: &str| {
        for (cell, width) in cells.iter().zip(widths) {
            write!(out, "{cell:width$}  ")?;
        }
        writeln!(out, "{verdict}")
    };
    line(out, head.map(str::to_owned), "")?;
    line(out, widths.map(|width| "-".repeat(width)), "-------")?;
    for section in sections {
        writeln!(out, "\n{}:", section.title)?;
        for row in &section.rows {
            line(out, cells(row), &verdict(row.ok, colour))?;
        }
    }
    Ok(())
}

fn verdict(ok: bool, colour: bool) -> String {
    match (ok, colour) {
        (true, false) => "ok".to_owned(),
        (false, false) => "DIFFERS".to_owned(),
        (true, true) => format!("{GREEN}ok{PLAIN}"),
        (false, true) => format!("{RED}DIFFERS{PLAIN}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections() -> [Section; 2] {
        let row = |case, got: &str, ok| Row {
            case,
            expected: "401 invalid_token".into(),
            got: got.into(),
            reason: "key_mismatch".into(),
            ok,
        };
        let section = |title, row| Section { title, rows: vec![row] };
        [
            section("One thing", row("other key", "401 invalid_token", true)),
            section("Another", row("x", "200", false)),
        ]
    }

    #[test]
    fn columns_are_aligned() {
        let mut out = Vec::new();
        write(&mut out, &sections(), false).unwrap();
        let expect = "\
case       expected           got                reason        \n\
---------  -----------------  -----------------  ------------  -------\n\
\n\
One thing:\n\
other key  401 invalid_token  401 invalid_token  key_mismatch  ok\n\
\n\
Another:\n\
x          401 invalid_token  200                key_mismatch  DIFFERS\n";
        assert_eq!(String::from_utf8(out).unwrap(), expect);
    }

    #[test]
    fn colour_is_for_terminals_and_for_the_verdict() {
        let mut out = Vec::new();
        write(&mut out, &sections(), true).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("\u{1b}[32mok\u{1b}[0m\n"), "{text}");
        assert!(text.contains("\u{1b}[1;31mDIFFERS\u{1b}[0m\n"), "{text}");
    }
}
