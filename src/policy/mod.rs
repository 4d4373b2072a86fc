//! The decisions, and nothing else: no clock, randomness, lock, file, socket, log or metric.
//!
//! Every function here is a pure function of its arguments, so that a decision can be replayed
//! later from what was recorded of it. Time comes in as [`time::UnixTime`]. The wall is kept by
//! the compiler: `.clippy.toml` names what is banned, the attribute below forbids an exception.

#![forbid(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod audit;
pub mod authority;
pub mod binding;
pub mod bypass;
pub mod capsule;
pub mod certificate;
pub mod client;
pub mod client_cert;
pub mod clock;
pub mod cors;
pub mod denial;
pub mod digest;
pub mod epoch;
pub mod form;
pub mod forwarded;
pub mod grant;
pub mod introspection;
pub mod jose;
pub mod json;
pub mod lifetime;
pub mod lineage;
pub mod nonce;
pub mod presented;
pub mod proof;
pub mod proxies;
pub mod proxy_header;
pub mod reach;
pub mod request;
pub mod resource_metadata;
pub mod rule;
pub mod share;
pub mod step_up;
pub mod target;
pub mod time;
pub mod token;
pub mod trace;
