//! `capsules` and `audit`.

use std::path::PathBuf;
use std::time::Duration;

use crate::policy::capsule::pipeline::Policy;
use crate::store::failures::FailureLimits;

/// `capsules`: keys for nodes that prove who they are.
#[derive(Clone, Debug)]
pub struct Capsules {
    /// The cluster's name, which is part of every key.
    pub cluster: String,
    /// Indices into [`Config::origins`](super::Config::origins): where nodes ask.
    pub origins: Vec<usize>,
    /// What decides.
    pub policy: Policy,
    /// The directory with the keys.
    pub keys: PathBuf,
    /// How old the newest key of a kind may become before another is due; nothing ends by it.
    pub key_max_age: Duration,
    /// MaxMind-format database of autonomous systems.
    pub asn_database: Option<PathBuf>,
    /// MaxMind-format database of regions.
    pub region_database: Option<PathBuf>,
    /// How many failures are taken.
    pub failures: FailureLimits,
}

/// `audit`: the log that cannot be rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Audit {
    /// A checkpoint is signed after so many lines,
    pub checkpoint_lines: u64,
    /// or after so long, if there are any.
    pub checkpoint_interval: Duration,
    /// Refusals that one client can have written for one reason, a minute, and 20 times as many all that
    /// are no nodes; more are counted.
    pub refusals_per_minute: u32,
    /// Free bytes of the disk that refusals leave to grants.
    pub reserve_bytes: u64,
    /// Used bytes of the store's file from which on refusals are counted only.
    pub max_bytes: u64,
}
