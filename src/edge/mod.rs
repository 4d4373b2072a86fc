//! The edge.

pub mod route;
