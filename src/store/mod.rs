//! Shared state: one trait a file, each with its implementations beside it.

pub mod backup;
pub mod bindings;
pub mod budget;
pub mod bypass;
mod clock;
pub mod epoch;
pub mod failures;
pub mod keys;
pub mod networks;
pub mod nodes;
pub mod nonces;
pub mod records;
pub mod redis;
pub mod refused;
pub mod registry;
pub mod replay;
pub mod serving;
pub mod sqlite;
mod tally;
pub mod task;
pub mod tokens;
