//! The commands: one module each. Only `main` exits; a command says with which status.

pub mod audit;
pub mod capsule;
pub mod check;
pub mod client;
pub mod explain;
pub mod health;
pub mod key;
pub mod node;
pub mod quickstart;
pub mod request;
pub mod rollout;
pub mod run;
pub(crate) mod site;
pub mod store;
