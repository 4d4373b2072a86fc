//! What a route says of the authentication behind a token, and who answers `role: freshAuth`.

use crate::config::item::Words;
use crate::config::section::Section;
use crate::policy::rule::Role;
use crate::policy::step_up::StepUp;

/// Who answers an admitted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answers {
    /// The edge.
    Edge,
    /// The service under `upstream`.
    Upstream,
}

const ANSWERS: Words<Answers> = &[("edge", Answers::Edge), ("upstream", Answers::Upstream)];

/// Methods of a `freshAuth` route that names none.
const METHODS: [&str; 2] = ["GET", "POST"];

/// Reads `maxAge` and `acrValues`.
pub(super) fn step_up(section: &Section<'_>, role: Role) -> StepUp {
    let has_age = section.has("maxAge");
    let age = section.duration("maxAge", "0s", ["1s", "365d"]);
    if has_age && age.subsec_nanos() > 0 {
        section.error("maxAge", "whole seconds are expected: a challenge says no less (RFC 9470)");
    }
    if !has_age && role == Role::FreshAuth {
        section.error("maxAge", "is required on a `freshAuth` route: how old is still fresh");
    }
    StepUp { max_age: has_age.then_some(age), acr_values: acr_values(section) }
}

fn acr_values(section: &Section<'_>) -> Vec<String> {
    let texts = section.texts("acrValues", 64).unwrap_or_default();
    if section.has("acrValues") && section.lacks("acrValues") {
        section.error("acrValues", "is empty; leave it out for every `acr`");
    }
    for text in &texts {
        // A challenge lists them between quotes, with spaces between.
        let fits = |byte: u8| byte.is_ascii_graphic() && !b"\"\\".contains(&byte);
        if !text.value.bytes().all(fits) {
            text.error("one `acr` an item is expected, without spaces, `\"` or `\\`");
        }
    }
    texts.into_iter().map(|text| text.value).collect()
}

/// Reads `answer`.
pub(super) fn answers(section: &Section<'_>, role: Role) -> Answers {
    let said = section.word("answer", ANSWERS);
    if role == Role::FreshAuth {
        return said.unwrap_or(Answers::Edge);
    }
    if section.has("answer") {
        section.error("answer", "belongs to `freshAuth` routes");
    }
    Answers::Upstream
}

/// What has no place where the edge answers.
pub(super) fn check_edge(section: &Section<'_>) {
    for (key, message) in [
        ("upstream", "the edge answers this route itself; `answer: upstream` would forward"),
        ("streamMaxAge", "has no place where the edge answers itself"),
    ] {
        if section.has(key) {
            section.error(key, message);
        }
    }
    if section.item("cors").is_some_and(|cors| cors.value.as_str() == Some("upstream")) {
        section.error("cors", "`upstream` has no place where the edge answers itself");
    }
}

/// The methods that the route takes.
pub(super) fn methods(said: Vec<String>, role: Role) -> Vec<String> {
    if role == Role::FreshAuth && said.is_empty() {
        return METHODS.map(str::to_owned).to_vec();
    }
    said
}
