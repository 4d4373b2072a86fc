//! The keys of runtime capsules: master keys, envelope keys and the audit log's, one file a version.
//!
//! A directory holds `master-1.json`, `envelope-1.json`, `audit-1.json` and so on. Nobody but its
//! owner may read a file in it. A retired version keeps its file without the secret, so that its
//! number is never used again.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "keys are files, and made of randomness"
)]

mod file;
mod signing;

use std::path::{Path, PathBuf};

pub use self::file::{FileError, KeyInfo, Kind, is_credential, is_exposed};
pub use self::signing::{Algorithm, SigningKey};

use self::file::{Content, KeyFile};
use super::sqlite::writer::Signer;
use crate::policy::audit::{CHECKPOINT_TYPE, Checkpoint};
use crate::policy::capsule::envelope::{self, Claims};
use crate::policy::capsule::key::MasterKey;
use crate::policy::time::UnixTime;

/// Why there is no key ring.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file cannot be used.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        error: FileError,
    },
    /// Keys of a kind are missing.
    #[error("{path}: no {kind} key in it: `holdfast key init --dir {path}` makes them")]
    Missing {
        /// The directory.
        path: String,
        /// Which.
        kind: &'static str,
    },
    /// What `init` would make is there.
    #[error("{0}: there are keys in it already; `holdfast key rotate` makes the next version")]
    Exists(String),
    /// A version that is not there, is retired, or is the one in use.
    #[error("{0}")]
    Version(String),
}

/// All keys of a directory, in memory. What is secret is wiped when the ring is dropped.
#[derive(Debug)]
pub struct KeyRing {
    masters: Vec<MasterKey>,
    /// By version.
    envelope: Vec<Dated>,
    audit: Vec<Dated>,
    /// Of audit keys that are retired, for what they signed.
    audit_past: Vec<serde_json::Value>,
    infos: Vec<KeyInfo>,
    files: Vec<PathBuf>,
}

/// A signing key and when it begins to sign.
#[derive(Debug)]
struct Dated {
    key: SigningKey,
    activates: UnixTime,
}

/// The newest that signs at `now`; before any does, the oldest.
fn in_use(keys: &[Dated], now: UnixTime) -> Option<&SigningKey> {
    let active = keys.iter().rev().find(|dated| dated.activates <= now);
    active.or_else(|| keys.first()).map(|dated| &dated.key)
}

impl KeyRing {
    /// Reads every key file in `directory`.
    ///
    /// # Errors
    /// The first [`KeysError`].
    pub fn load(directory: &Path) -> Result<Self, KeysError> {
        let mut ring = Self {
            masters: Vec::new(),
            envelope: Vec::new(),
            audit: Vec::new(),
            audit_past: Vec::new(),
            infos: Vec::new(),
            files: Vec::new(),
        };
        for (path, file) in file::read_all(directory)? {
            ring.take(&path, file)?;
            ring.files.push(path);
        }
        let missing = |kind: Kind| KeysError::Missing {
            path: directory.display().to_string(),
            kind: kind.name(),
        };
        for (empty, kind) in [
            (ring.masters.is_empty(), Kind::Master),
            (ring.envelope.is_empty(), Kind::Envelope),
            (ring.audit.is_empty(), Kind::Audit),
        ] {
            if empty {
                return Err(missing(kind));
            }
        }
        Ok(ring)
    }

    fn take(&mut self, path: &Path, file: KeyFile) -> Result<(), KeysError> {
        let info = file.info();
        let wrong = |error| KeysError::File { path: path.display().to_string(), error };
        match file.content {
            Content::Retired { public, .. } => {
                if info.kind == Kind::Audit {
                    self.audit_past.extend(public);
                }
            }
            Content::Master { master, salt } => {
                self.masters.push(MasterKey { version: info.version, master, salt });
            }
            Content::Signing { jwk, activates } => {
                let key = SigningKey::from_jwk(&jwk).ok_or_else(|| wrong(FileError::Key))?;
                let dated = Dated { key, activates };
                if info.kind == Kind::Audit {
                    self.audit.push(dated);
                } else {
                    self.envelope.push(dated);
                }
            }
        }
        self.infos.push(info);
        Ok(())
    }

    /// Versions of master keys that are not retired, the newest last.
    #[must_use]
    pub fn masters(&self) -> Vec<u32> {
        self.masters.iter().map(|master| master.version).collect()
    }

    /// A master key that is not retired.
    #[must_use]
    pub fn master(&self, version: u32) -> Option<&MasterKey> {
        self.masters.iter().find(|master| master.version == version)
    }

    /// The envelope over `claims`: a compact JWS, `typ` `runtime-capsule+jwt`, `kid` the RFC 7638
    /// thumbprint. `None` when it cannot be signed.
    #[must_use]
    pub fn envelope(&self, claims: &Claims, now: UnixTime) -> Option<String> {
        in_use(&self.envelope, now)?.sign(envelope::TYPE, claims.canonical().as_bytes())
    }

    /// The JWK set that envelopes are verified with: every envelope key that is not retired, one that
    /// does not sign yet included.
    #[must_use]
    pub fn jwks(&self) -> serde_json::Value {
        let keys: Vec<_> = self.envelope.iter().map(|dated| dated.key.public_jwk()).collect();
        serde_json::json!({ "keys": keys })
    }

    /// The JWK set that checkpoints are verified with, past keys included.
    #[must_use]
    pub fn audit_jwks(&self) -> serde_json::Value {
        let now = self.audit.iter().map(|dated| dated.key.public_jwk());
        let keys: Vec<_> = self.audit_past.iter().cloned().chain(now).collect();
        serde_json::json!({ "keys": keys })
    }

    /// The files that it was read from.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Each kind with the time since which its newest key has been the one to use.
    #[must_use]
    pub fn newest(&self) -> Vec<(Kind, UnixTime)> {
        let since = |kind: Kind| {
            let of_kind =
                self.infos.iter().filter(|info| info.kind == kind && info.retired.is_none());
            let newest = of_kind.max_by_key(|info| info.version)?;
            Some((kind, newest.activates.unwrap_or(newest.created)))
        };
        [Kind::Master, Kind::Envelope, Kind::Audit].into_iter().filter_map(since).collect()
    }

    /// What is known of each key without its secret.
    #[must_use]
    pub fn infos(&self) -> &[KeyInfo] {
        &self.infos
    }
}

/// Signs checkpoints with the audit key of a ring.
#[derive(Debug)]
pub struct AuditSigner(pub std::sync::Arc<KeyRing>);

impl Signer for AuditSigner {
    fn sign(&self, checkpoint: &Checkpoint) -> Option<String> {
        let payload = serde_json::to_vec(checkpoint).ok()?;
        in_use(&self.0.audit, checkpoint.at)?.sign(CHECKPOINT_TYPE, &payload)
    }
}

/// Makes version 1 of every kind in `directory`, which is made where it is missing (0700).
///
/// # Errors
/// [`KeysError::Exists`] where there is any key already; nothing is written then.
pub fn init(
    directory: &Path,
    algorithm: Algorithm,
    now: UnixTime,
) -> Result<Vec<(PathBuf, KeyInfo)>, KeysError> {
    file::make_directory(directory)?;
    let _alone = file::lock(directory)?;
    if !file::read_all(directory)?.is_empty() {
        return Err(KeysError::Exists(directory.display().to_string()));
    }
    let files = [
        KeyFile::master(1, now)?,
        KeyFile::signing(Kind::Envelope, 1, algorithm, now, now)?,
        KeyFile::signing(Kind::Audit, 1, algorithm, now, now)?,
    ];
    files.into_iter().map(|file| file::create(directory, &file)).collect()
}

/// Makes the next version of `kind`. An envelope or audit key signs from `activates` on.
///
/// # Errors
/// [`KeysError`].
pub fn rotate(
    directory: &Path,
    kind: Kind,
    algorithm: Algorithm,
    now: UnixTime,
    activates: UnixTime,
) -> Result<(PathBuf, KeyInfo), KeysError> {
    let _alone = file::lock(directory)?;
    let all = file::read_all(directory)?;
    let versions = all.iter().map(|(_, file)| file.info()).filter(|info| info.kind == kind);
    let Some(last) = versions.map(|info| info.version).max() else {
        let path = directory.display().to_string();
        return Err(KeysError::Missing { path, kind: kind.name() });
    };
    let next = last.checked_add(1);
    let version = next.ok_or_else(|| KeysError::Version("there is no version left".into()))?;
    let file = match kind {
        Kind::Master => KeyFile::master(version, now)?,
        Kind::Envelope | Kind::Audit => KeyFile::signing(kind, version, algorithm, now, activates)?,
    };
    file::create(directory, &file)
}

/// Retires a version: its secret is taken out of its file, for good.
///
/// # Errors
/// [`KeysError::Version`] for one that is not there, is retired already, or is the newest: then a
/// newer one must be made first.
pub fn retire(
    directory: &Path,
    kind: Kind,
    version: u32,
    now: UnixTime,
) -> Result<(PathBuf, KeyInfo), KeysError> {
    let _alone = file::lock(directory)?;
    let all = file::read_all(directory)?;
    let of_kind = all.iter().filter(|(_, file)| file.info().kind == kind);
    let newest = of_kind.map(|(_, file)| file.info().version).max();
    let refused = |why: &str| {
        KeysError::Version(format!("{} key {version} cannot be retired: {why}", kind.name()))
    };
    if newest == Some(version) {
        return Err(refused("it is the newest; `holdfast key rotate` makes the next one first"));
    }
    let signs =
        all.iter().rev().map(|(_, file)| file).find(|file| {
            file.info().kind == kind && file.info().activates.is_some_and(|it| it <= now)
        });
    if signs.is_some_and(|file| file.info().version == version) {
        return Err(refused("it is the one that signs; the next one does not yet"));
    }
    let found = all.into_iter().find(|(_, file)| {
        let info = file.info();
        info.kind == kind && info.version == version
    });
    let (path, file) = found.ok_or_else(|| refused("there is none"))?;
    let retired = file.retire(now).ok_or_else(|| refused("it is retired"))?;
    file::replace(&path, &retired)?;
    Ok((path, retired.info()))
}

#[cfg(test)]
mod tests;
