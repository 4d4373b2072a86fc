//! What the tests over real sockets share: a world of keys, tokens, certificates, an upstream that
//! remembers and the real program between them.

pub(crate) mod authority;
pub(crate) mod client;
pub(crate) mod collector;
pub(crate) mod drill;
pub(crate) mod keys;
pub(crate) mod node;
pub(crate) mod pki;
pub(crate) mod process;
pub(crate) mod prometheus;
pub(crate) mod proof;
pub(crate) mod redis;
pub(crate) mod relay;
pub(crate) mod scripted;
pub(crate) mod server;
pub(crate) mod service;
pub(crate) mod sharing;
pub(crate) mod token;
pub(crate) mod upstream;
pub(crate) mod world;

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Seconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    i64::try_from(since.as_secs()).expect("a clock before the end of time")
}

/// base64url without padding.
pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// base64url(SHA-256(bytes)).
pub(crate) fn digest(bytes: impl AsRef<[u8]>) -> String {
    base64url(openssl::sha::sha256(bytes.as_ref()))
}

/// Runs a table to its end and fails with every row that did.
#[derive(Default)]
pub(crate) struct Table {
    rows: usize,
    faults: Vec<String>,
}

impl Table {
    pub(crate) fn row(&mut self, name: &str, outcome: Result<(), String>) {
        self.rows += 1;
        if let Err(fault) = outcome {
            self.faults.push(format!("{name}: {fault}"));
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.rows > 0, "an empty table shows nothing");
            let (faults, rows) = (self.faults.len(), self.rows);
            assert!(faults == 0, "{faults} of {rows} rows:\n{}\n", self.faults.join("\n"));
        }
    }
}
