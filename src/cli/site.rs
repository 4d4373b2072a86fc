//! What the commands that change something have in common: the configuration, the store, and who asks.

#![expect(clippy::disallowed_methods, reason = "a command has an operator and a clock")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

use crate::config::{self, Config, Severity, Store};
use crate::policy::audit::{Draft, Kind};
use crate::policy::digest::Sha256;
use crate::policy::time::UnixTime;
use crate::store::directory_of;
use crate::store::nodes::shared::SharedNodes;
use crate::store::nodes::{Look, Nodes};
use crate::store::redis::{Redis, Settings};
use crate::store::registry::Registry;
use crate::store::serving;
use crate::store::sqlite::reader::Readers;
use crate::store::sqlite::writer::CheckpointRule;
use crate::store::sqlite::{Database, Fault, OpenError};

/// How long a command waits for the servers that edges share.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// The configuration's errors, one a line.
    #[error("{0}")]
    Configuration(String),
    /// The configuration keeps nothing.
    #[error("{0}: nothing is kept: it has neither `capsules` nor `store`")]
    NoStore(String),
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store failed.
    #[error("{0}")]
    Fault(#[from] Fault),
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
    /// The output cannot be written.
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

/// The status of a command; what kept it from being done goes to `errors`.
pub(super) fn status(done: Result<bool, CommandError>, errors: &mut dyn Write) -> ExitCode {
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Where this cannot be written either, the exit status alone tells.
            let _ = writeln!(errors, "error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Loads the configuration at `path`.
pub(super) fn load(path: &Path) -> Result<Config, CommandError> {
    let loaded = config::load(path);
    loaded.config.ok_or_else(|| {
        let errors = loaded.findings.iter().filter(|it| it.severity == Severity::Error);
        let lines: Vec<_> = errors.map(ToString::to_string).collect();
        CommandError::Configuration(lines.join("\n"))
    })
}

/// The path of a configuration's store.
pub(super) fn store_path<'a>(config: &'a Config, path: &Path) -> Result<&'a Path, CommandError> {
    Ok(&store(config, path)?.path)
}

/// A configuration's store.
pub(super) fn store<'a>(config: &'a Config, path: &Path) -> Result<&'a Store, CommandError> {
    config.store.as_ref().ok_or_else(|| CommandError::NoStore(path.display().to_string()))
}

/// Opens a configuration's store to change something.
pub(super) fn open(config: &Config, path: &Path) -> Result<Database, CommandError> {
    Ok(Database::open(store_path(config, path)?)?)
}

/// Refuses root what makes files in somebody else's store: the edge could not use them.
///
/// # Errors
/// When it is not root's own.
pub(super) fn own(path: &Path) -> Result<(), CommandError> {
    // What cannot be looked at is told by whoever opens it.
    let owner = fs::metadata(path).or_else(|_| fs::metadata(directory_of(path))).map(|it| it.uid());
    match owner {
        Ok(owner) if owner != 0 && rustix::process::geteuid().is_root() => {
            Err(CommandError::Other(format!(
                "{} is user {owner}'s, as whom the edge runs: run this as that user, not as root",
                path.display()
            )))
        }
        _ => Ok(()),
    }
}

/// The registry of nodes, for a command that waits for it.
pub(super) struct Registered<N: ?Sized> {
    nodes: Arc<N>,
    runtime: Runtime,
    /// Of a store that is changed: it is not moved or replaced meanwhile.
    _lock: Option<serving::Lock>,
}

impl<N: ?Sized> Registered<N> {
    /// What is asked of it.
    ///
    /// # Errors
    /// [`Fault`].
    pub(super) fn ask<'a, T, F>(&'a self, ask: impl FnOnce(&'a N) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>> + 'a,
    {
        self.runtime.block_on(ask(&self.nodes))
    }
}

/// The lock of whoever uses a store that edges serve from.
fn beside_edges(path: &Path) -> Result<serving::Lock, CommandError> {
    own(path)?;
    serving::serve(path)?.ok_or_else(|| {
        CommandError::Other(format!("{}: `holdfast store` works on it", path.display()))
    })
}

/// Opens a configuration's registry of nodes to change something.
pub(super) fn nodes(config: &Config, path: &Path) -> Result<Registered<dyn Nodes>, CommandError> {
    let store = store(config, path)?;
    let lock = beside_edges(&store.path)?;
    let registry = registry(config, store)?;
    let runtime = runtime()?;
    match &store.redis {
        Some(redis) => {
            let nodes = shared(redis, registry, &runtime)?;
            Ok(Registered { nodes, runtime, _lock: Some(lock) })
        }
        None => Ok(Registered { nodes: Arc::new(registry), runtime, _lock: Some(lock) }),
    }
}

/// Opens the file of a store.
pub(super) fn registry(config: &Config, store: &Store) -> Result<Registry, CommandError> {
    let audit = &config.audit;
    // A command has no key to sign with.
    let rule =
        CheckpointRule { lines: audit.checkpoint_lines, interval: audit.checkpoint_interval };
    Ok(Registry::open(&store.path, rule)?)
}

/// The registry at servers. That they have changed hands is no reason for a command to wait.
fn shared(
    settings: &Settings,
    registry: Registry,
    runtime: &Runtime,
) -> Result<Arc<SharedNodes>, CommandError> {
    let redis = connect(settings, runtime)?;
    let nodes = SharedNodes::start(redis, registry, Duration::ZERO, runtime.handle())?;
    Ok(Arc::new(nodes))
}

/// The servers, once they answer.
pub(super) fn connect(settings: &Settings, runtime: &Runtime) -> Result<Redis, CommandError> {
    let redis = Redis::start(settings.clone(), runtime.handle());
    if !runtime.block_on(redis.ready(PATIENCE)) {
        let why = redis.status().error.unwrap_or_else(|| "no answer".to_owned());
        return Err(CommandError::Other(format!("store.redis: {why}")));
    }
    Ok(redis)
}

/// What was asked of servers; where they are silent, why.
pub(super) fn at_servers<T>(
    redis: &Redis,
    done: Result<T, CommandError>,
) -> Result<T, CommandError> {
    match (done, redis.status().error) {
        (Err(CommandError::Fault(Fault::Down)), Some(why)) => {
            Err(CommandError::Other(format!("store.redis: {why}")))
        }
        (done, _) => done,
    }
}

pub(super) fn runtime() -> Result<Runtime, CommandError> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Opens a configuration's registry of nodes to look at it. It must be there.
pub(super) fn look(config: &Config, path: &Path) -> Result<Registered<dyn Look>, CommandError> {
    let store = store(config, path)?;
    if let Some(settings) = &store.redis {
        let lock = beside_edges(&store.path)?;
        let (registry, runtime) = (registry(config, store)?, runtime()?);
        let redis = connect(settings, &runtime)?;
        // What is found to be missing is told to nobody: store.path may be another store's.
        let nodes = Arc::new(SharedNodes::looking(redis, registry, runtime.handle())?);
        return Ok(Registered { nodes, runtime, _lock: Some(lock) });
    }
    if !store.path.exists() {
        let text = format!("{}: there is no store yet", store.path.display());
        return Err(CommandError::Fault(Fault::Failed(text)));
    }
    let nodes = Arc::new(Readers::open(&store.path)?);
    Ok(Registered { nodes, runtime: runtime()?, _lock: None })
}

/// Who asks: the user's name and number, and who they were before `sudo`.
pub(super) fn actor() -> Value {
    let name = |variable: &str| std::env::var(variable).ok();
    json!({
        "user": name("USER").or_else(|| name("LOGNAME")),
        "uid": rustix::process::getuid().as_raw(),
        "sudoUser": name("SUDO_USER"),
    })
}

/// The audit line of something that an operator did.
pub(super) fn draft(
    kind: Kind,
    node: Option<&str>,
    mut data: Value,
    reason: &str,
    now: UnixTime,
) -> Result<Draft, CommandError> {
    let id = random_id()?;
    if let Some(data) = data.as_object_mut() {
        data.insert("reason".into(), reason.into());
        data.insert("actor".into(), actor());
    }
    Ok(Draft::new(kind, now, &id, node, &data))
}

/// 128 random bits in hexadecimal.
fn random_id() -> Result<String, CommandError> {
    let mut id = [0; 16];
    fill(&mut id)?;
    Ok(format!("{:032x}", u128::from_be_bytes(id)))
}

/// A node's secret, 256 random bits as base64url, and the SHA-256 of that text.
pub(super) fn secret() -> Result<(Zeroizing<String>, Sha256), CommandError> {
    let mut bytes = Zeroizing::new([0; 32]);
    fill(bytes.as_mut())?;
    let text = Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_slice()));
    let hash = Sha256::of(text.as_bytes());
    Ok((text, hash))
}

/// Fills `bytes` with randomness.
fn fill(bytes: &mut [u8]) -> Result<(), CommandError> {
    let filled = aws_lc_rs::rand::fill(bytes);
    filled.map_err(|_| CommandError::Other("no randomness".to_owned()))
}

/// The time.
pub(super) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// A reason that says something.
pub(super) fn parse_reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if (1..=500).contains(&text.len()) && !text.contains(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err("1 to 500 characters on one line are expected".to_owned())
    }
}

/// A time that a command is told: so long ago, or a time of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// So long ago.
    Ago(Duration),
    /// At this time.
    At(UnixTime),
}

impl When {
    /// The time that is meant.
    pub(super) fn at(self, now: UnixTime) -> UnixTime {
        match self {
            Self::Ago(ago) => now.minus(ago),
            Self::At(at) => at,
        }
    }
}

/// A duration as the configuration writes it, which means so long ago, or a time of RFC 3339.
pub(super) fn parse_when(text: &str) -> Result<When, String> {
    let when = config::duration(text).map(When::Ago);
    when.or_else(|| UnixTime::from_rfc3339(text).map(When::At)).ok_or_else(|| {
        "a duration (24h, 7d) or a time (2026-11-26T17:00:00Z) is expected".to_owned()
    })
}

/// A duration as the configuration writes it.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    config::duration(text).ok_or_else(|| "a duration is expected, as in 90s, 24h or 7d".to_owned())
}
