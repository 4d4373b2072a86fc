//! Holdfast.

pub mod config;
pub mod gate;
pub mod policy;
pub mod store;
