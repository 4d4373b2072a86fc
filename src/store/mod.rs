//! Shared state: one trait a file, each with its implementations beside it.

pub mod keys;
pub mod refused;
pub mod replay;
pub mod sqlite;
pub mod tokens;
