//! The commands: one module each. Only `main` exits; a command says with which status.

pub mod capsule;
pub mod check;
pub mod client;
pub mod explain;
pub mod quickstart;
pub mod request;
pub mod run;
