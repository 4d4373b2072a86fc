//! `store`, and what else says where something is remembered.

use std::path::PathBuf;

use crate::store::redis;

/// `store`: where nodes and the audit log are kept, and what edges share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// The SQLite file. With `kind: redis` it has this edge's audit log.
    pub path: PathBuf,
    /// What edges share, with `kind: redis`.
    pub redis: Option<redis::Settings>,
    /// The servers that are named with `kind: embedded`: where the store may be moved to.
    pub other: Option<redis::Settings>,
}

/// `dpop.replay.store`: where proofs are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayStore {
    /// In this process.
    Memory,
    /// In `store.redis`, for every edge.
    Redis,
}

/// `dpop.nonce.store`: where nonces are remembered that are used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonceStore {
    /// Nowhere: each is good as often as it is shown in its time.
    Stateless,
    /// In this process.
    Memory,
    /// In `store.redis`, for every edge.
    Redis,
}
