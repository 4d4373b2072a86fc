//! The network: pingora, rustls, and the way of a request through them.
//!
//! Nothing is decided here. [`proxy`] turns a session into a view, asks the gate, and acts on what
//! it says.

pub mod accept;
pub mod admin;
pub mod audit;
pub mod authority;
mod believe;
mod body;
pub mod calls;
pub mod capsules;
pub mod connection;
mod cors;
mod ctx;
pub mod ends;
pub mod exporter;
mod fresh_auth;
mod grpc;
mod guard;
pub mod headers;
mod hello;
pub mod introspect;
pub mod jwks;
pub mod leaving;
pub mod listener;
pub mod outgoing;
pub mod parts;
mod preflight;
pub mod proxy;
pub mod record;
pub mod resource_metadata;
pub mod respond;
pub mod route;
mod spans;
pub mod stream;
pub mod tls;
pub mod trust;
pub mod upstream;
pub mod view;
