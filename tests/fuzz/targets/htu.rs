//! The comparison of `htu`, against its own laws and against a WHATWG URL parser.
//!
//! An input is three lines: an `htu`, an origin, a path.

use holdfast::policy::target::{Origin, htu_matches, normalise_path};
use reqwest::Url;

pub(super) fn htu(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut lines = text.splitn(3, '\n');
    let (Some(htu), Some(origin), Some(path)) = (lines.next(), lines.next(), lines.next()) else {
        return;
    };
    let Some(origin) = Origin::parse(origin) else { return };
    assert_eq!(Origin::parse(origin.as_str()).as_ref(), Some(&origin));
    let Some(normal) = normalise_path(path) else { return };
    let again = normalise_path(&normal.path).expect("a path that is refused the second time");
    assert_eq!(again.path, normal.path);
    assert!(normal.ambiguous || !again.ambiguous);
    if htu_matches(htu, &origin, &normal.path) {
        whatwg_agrees(htu, &origin, &normal.path);
    }
    as_the_paths_are(htu, &origin, path);
}

/// An `htu` of this very origin matches exactly when its path is the same after normalisation.
fn as_the_paths_are(other: &str, origin: &Origin, path: &str) {
    let Some(normal) = normalise_path(path).map(|normal| normal.path) else { return };
    // The next two start a query and a fragment, which do not count.
    if !path.contains(['?', '#']) {
        let own = format!("{origin}{path}");
        assert!(htu_matches(&own, origin, &normal), "{own} is not itself");
        assert!(htu_matches(&format!("{own}?q#f"), origin, &normal));
    }
    if other.starts_with('/') && !other.contains(['?', '#']) {
        let same = normalise_path(other).is_some_and(|other| other.path == normal);
        assert_eq!(htu_matches(&format!("{origin}{other}"), origin, &normal), same);
    }
}

/// Whoever parses an accepted `htu` as browsers do reads the same origin and path.
pub(super) fn whatwg_agrees(htu: &str, origin: &Origin, path: &str) {
    // Not every name that we compare is a domain to it; then it reads neither.
    let (Ok(shown), Ok(own)) = (Url::parse(htu), Url::parse(origin.as_str())) else { return };
    assert_eq!(shown.origin(), own.origin(), "{htu}");
    assert_eq!((shown.username(), shown.password()), ("", None), "{htu}");
    // It takes a backslash for a slash; a request with one is refused unless the route opts in.
    if !htu.contains('\\') {
        assert_eq!(decoded(shown.path()), decoded(path), "{htu}");
    }
}

fn decoded(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().iter();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        let digits = bytes.as_slice().get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(value) if *byte == b'%' => {
                decoded.push(value);
                bytes.nth(1);
            }
            Some(_) | None => decoded.push(*byte),
        }
    }
    decoded
}
