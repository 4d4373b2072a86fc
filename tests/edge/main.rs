//! The real program over real sockets. Each test makes its own world: keys, tokens, certificates,
//! an upstream that remembers, and the edge between them. Tables name their rows `ok/…` and
//! `fail/…`; a refusal is checked by status, error code and the reason in its record.

#![expect(clippy::disallowed_methods, reason = "a test has a clock, files and threads")]

// `cfg(test)` lets the lints see that these are tests.
#[cfg(test)]
mod support;

#[cfg(test)]
mod admin;
#[cfg(test)]
mod admission;
#[cfg(test)]
mod audit_files;
#[cfg(test)]
mod authority;
#[cfg(test)]
mod authority_emergency;
#[cfg(test)]
mod authority_faults;
#[cfg(test)]
mod authority_hostile;
#[cfg(test)]
mod authority_matrix;
#[cfg(test)]
mod authority_parties;
#[cfg(test)]
mod authority_shared;
#[cfg(test)]
mod binding;
#[cfg(test)]
mod bypass;
#[cfg(test)]
mod capsule_client;
#[cfg(test)]
mod capsule_commands;
#[cfg(test)]
mod capsule_faults;
#[cfg(test)]
mod capsule_hostile;
#[cfg(test)]
mod capsule_kills;
#[cfg(test)]
mod capsule_networks;
#[cfg(test)]
mod capsule_parties;
#[cfg(test)]
mod capsule_shared;
#[cfg(test)]
mod capsules;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod cors;
#[cfg(test)]
mod drill;
#[cfg(test)]
mod end_to_end;
#[cfg(test)]
mod fresh_auth;
#[cfg(test)]
mod headers;
#[cfg(test)]
mod health;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod introspection;
#[cfg(test)]
mod jwks;
#[cfg(test)]
mod parties;
#[cfg(test)]
mod peers;
#[cfg(test)]
mod policies;
#[cfg(test)]
mod prometheus;
#[cfg(test)]
mod proof;
#[cfg(test)]
mod real_upstreams;
#[cfg(test)]
mod redis;
#[cfg(test)]
mod redis_drill;
#[cfg(test)]
mod redis_faults;
#[cfg(test)]
mod redis_trio;
#[cfg(test)]
mod reload;
#[cfg(test)]
mod replay;
#[cfg(test)]
mod resolver;
#[cfg(test)]
mod resource_metadata;
#[cfg(test)]
mod rollout;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod running;
#[cfg(test)]
mod sealed;
#[cfg(test)]
mod signals;
#[cfg(test)]
mod standstill;
#[cfg(test)]
mod store_commands;
#[cfg(test)]
mod store_memory;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod systemd;
#[cfg(test)]
mod target;
#[cfg(test)]
mod terminator;
#[cfg(test)]
mod terminators;
#[cfg(test)]
mod token;
#[cfg(test)]
mod traces;
#[cfg(test)]
mod upgrade;
#[cfg(test)]
mod upstream_tls;
#[cfg(test)]
mod upstreams;
#[cfg(test)]
mod websockets;
