//! What tenants and routes may say about sender constraints, and lists of algorithms.

use crate::config::item::{Item, Words};
use crate::config::section::Section;
use crate::policy::jose::{Algorithm, AlgorithmSet};
use crate::policy::rule::{Demand, Mode, Scope};
use crate::policy::share::Share;

/// The words of `mode`.
const MODES: Words<Mode> = &[("enforce", Mode::Enforce), ("observe", Mode::Observe(Share::NONE))];

/// The words of `require`.
pub(super) const DEMANDS: Words<Demand> = &[
    ("none", Demand::None),
    ("any", Demand::Any),
    ("dpop", Demand::Dpop),
    ("mtls", Demand::Mtls),
    ("both", Demand::Both),
];

/// The keys that [`scope`] reads.
pub(super) const SCOPE_KEYS: [&str; 6] =
    ["require", "mode", "enforcePercent", "allowedAlgorithms", "nonce", "overrides"];

/// Reads `mode` and `enforcePercent`, which by itself says `observe` for all others. `None` where neither
/// is there.
pub(super) fn mode(section: &Section<'_>) -> Option<Mode> {
    let mode = section.word("mode", MODES);
    if !section.has("enforcePercent") {
        return mode;
    }
    let percent = section.number("enforcePercent", 100, 0..=100);
    if mode == Some(Mode::Enforce) {
        if percent != 100 {
            section.error("enforcePercent", "needs `mode: observe`: `enforce` is for every client");
        }
        return mode;
    }
    let share = u8::try_from(percent).ok().and_then(Share::of_percent);
    share.map(Mode::Observe)
}

/// Reads what a tenant or route adds; `nonce` is its `nonce`.
pub(super) fn scope(section: &Section<'_>, nonce: Option<bool>) -> Scope {
    Scope {
        require: section.word("require", DEMANDS),
        mode: mode(section),
        algorithms: section.item("allowedAlgorithms").and_then(algorithms),
        nonce,
        overrides: section.flag("overrides").unwrap_or(false),
    }
}

/// Reads a list of signature algorithms. `None` when nothing usable is in it.
pub(super) fn algorithms(item: Item<'_>) -> Option<AlgorithmSet> {
    let items = item.clone().list(64);
    if items.is_empty() {
        item.error("at least one algorithm is needed");
    }
    let texts = items.into_iter().filter_map(Item::text);
    let known: Vec<_> = texts
        .filter_map(|text| {
            let known = Algorithm::from_name(&text.value);
            if known.is_none() {
                let names: Vec<_> = Algorithm::ALL.iter().map(|known| known.name()).collect();
                let names = names.join(", ");
                text.error(format!("`{}` is none of {names}", text.written));
            }
            known
        })
        .collect();
    (!known.is_empty()).then(|| AlgorithmSet::of(&known))
}
