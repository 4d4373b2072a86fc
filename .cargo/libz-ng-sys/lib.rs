//! zlib under the name of zlib-ng.

pub use libz_sys::*;
