//! Runtime capsules: whether a node gets the key that it needs to start, and what it gets.
//!
//! ```text
//! node record + facts + policy + now ─► pipeline::decide ─► decision: every stage's outcome,
//!                                                           the grant or the refusal, the new record
//! master key + record ─► key::derive ─► envelope: claims ─► JWS (third parties), HMAC (the node)
//! ```
//!
//! The same call serves the endpoint, `holdfast audit show` and a later replay against another
//! policy: what it was decided from is in the audit record, the key and the secret apart.

pub mod baseline;
pub mod change;
pub mod decision;
pub mod envelope;
pub mod facts;
pub mod key;
pub mod node;
pub mod pipeline;
pub mod record;
pub mod risk;
pub mod telemetry;

#[cfg(test)]
mod tests;
