#![doc = include_str!("../README.md")]

pub mod edge;
pub mod gate;
pub mod policy;
pub mod store;

pub mod config;
pub mod telemetry;

pub mod app;
pub mod cli;
