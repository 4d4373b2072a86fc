//! The sender's side: keys, DPoP proofs, HTTP with client certificates, and what answers say.
//!
//! Keys and signatures go through OpenSSL here (`josekit`), verification in `policy` through
//! aws-lc-rs: what one makes and the other takes is not one library agreeing with itself.

pub mod challenge;
pub mod http;
pub mod key;
pub mod proof;
pub mod token;
pub mod trace;
