//! What is fuzzed: each target takes any bytes, and fails by panicking. Beside "nothing panics" it
//! states what must hold of whatever was accepted, judged by other code than that which accepted it.
//!
//! The programs of cargo-fuzz and `tests/fuzz_corpus.rs` share this file.

mod capsule;
mod config;
mod head;
mod htu;
mod in_front;
mod jose;
mod proof;
mod token;

/// Takes any bytes; fails by panicking.
pub(crate) type Target = fn(&[u8]);

/// Every target by its name: that of its program, and of its directory under `corpus`.
pub(crate) const TARGETS: [(&str, Target); 17] = [
    ("head", head::head),
    ("htu", htu::htu),
    ("json", jose::json),
    ("jws", jose::jws),
    ("jwk", jose::jwk),
    ("jwks", jose::jwks),
    ("proof", proof::proof),
    ("token", token::token),
    ("introspection", token::introspection),
    ("certificate", head::certificate),
    ("config", config::config),
    ("proxy_header", in_front::proxy_header),
    ("forwarded", in_front::forwarded),
    ("client_cert", in_front::client_cert),
    ("telemetry", capsule::telemetry),
    ("node", capsule::node),
    ("audit", capsule::audit),
];

/// Runs one target on one input.
pub(crate) fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = target.unwrap_or_else(|| panic!("no target is called {name}"));
    target(input);
}
