//! Shared state: one trait a file, each with its implementations beside it.

pub mod refused;
pub mod replay;
pub mod tokens;
