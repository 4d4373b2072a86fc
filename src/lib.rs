//! Holdfast.

pub mod app;
pub mod cli;
pub mod config;
pub mod edge;
pub mod gate;
pub mod policy;
pub mod store;
pub mod telemetry;
