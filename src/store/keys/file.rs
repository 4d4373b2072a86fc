//! One key, one file.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::KeysError;
use super::signing::{Algorithm, SigningKey};
use crate::policy::time::UnixTime;

/// The largest key file, bytes.
const MAX_BYTES: u64 = 16 << 10;
/// Files in a directory that are looked at.
const MAX_FILES: usize = 1000;

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Runtime keys are derived from it.
    Master,
    /// Signs envelopes.
    Envelope,
    /// Signs checkpoints of the audit log.
    Audit,
}

impl Kind {
    /// Its name, which its files begin with.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Envelope => "envelope",
            Self::Audit => "audit",
        }
    }
}

/// Why a file is no key.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system says so.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Others may read it.
    #[error("it can be read by others (mode {0:o}): chmod 600 it")]
    Open(u32),
    /// Others may write to the directory.
    #[error("others can write to it (mode {0:o}): chmod 700 it")]
    Writable(u32),
    /// The directory is not for keys alone.
    #[error("more than {MAX_FILES} files in it: keys belong into a directory of their own")]
    TooMany,
    /// It is somebody else's.
    #[error("it belongs to user {0}, neither this one nor root")]
    Owner(u32),
    /// It is no regular file.
    #[error("it is no regular file")]
    NotAFile,
    /// Its content is no key, or cut off.
    #[error("it holds no key of Holdfast's, or not all of it")]
    Malformed,
    /// Its name is another key's.
    #[error("it holds {kind} key {version}, which is not what its name says")]
    Name {
        /// The kind in it.
        kind: &'static str,
        /// The version in it.
        version: u32,
    },
    /// Its public half is not its private half's.
    #[error("the key in it is broken")]
    Key,
    /// There is no randomness.
    #[error("no randomness")]
    Randomness,
}

/// What is known of a key without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// What it is for.
    pub kind: Kind,
    /// Its version, from 1.
    pub version: u32,
    /// When it was made.
    pub created: UnixTime,
    /// When it begins to sign; of a signing key.
    pub activates: Option<UnixTime>,
    /// When it was retired.
    pub retired: Option<UnixTime>,
    /// `kid` and `alg` of a signing key.
    pub signs: Option<(String, &'static str)>,
}

/// A key file's content.
pub(super) struct KeyFile {
    kind: Kind,
    version: u32,
    created: UnixTime,
    pub(super) content: Content,
}

pub(super) enum Content {
    Master { master: Zeroizing<[u8; 32]>, salt: Zeroizing<[u8; 32]> },
    Signing { jwk: Zeroizing<String>, activates: UnixTime },
    Retired { at: UnixTime, public: Option<serde_json::Value> },
}

/// As the file has it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    kind: Kind,
    version: u32,
    created: UnixTime,
    #[serde(skip_serializing_if = "Option::is_none")]
    activates: Option<UnixTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retired: Option<UnixTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    master: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    salt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwk: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    public: Option<serde_json::Value>,
}

impl Drop for Stored {
    fn drop(&mut self) {
        for secret in [&mut self.master, &mut self.salt, &mut self.jwk] {
            secret.zeroize();
        }
    }
}

impl KeyFile {
    pub(super) fn master(version: u32, created: UnixTime) -> Result<Self, KeysError> {
        let (mut master, mut salt) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
        let filled = aws_lc_rs::rand::fill(master.as_mut())
            .and_then(|()| aws_lc_rs::rand::fill(salt.as_mut()));
        filled.map_err(|_| no_randomness(Kind::Master))?;
        let content = Content::Master { master, salt };
        Ok(Self { kind: Kind::Master, version, created, content })
    }

    pub(super) fn signing(
        kind: Kind,
        version: u32,
        algorithm: Algorithm,
        created: UnixTime,
        activates: UnixTime,
    ) -> Result<Self, KeysError> {
        let jwk = SigningKey::generate(algorithm).ok_or_else(|| no_randomness(kind))?;
        Ok(Self { kind, version, created, content: Content::Signing { jwk, activates } })
    }

    pub(super) fn info(&self) -> KeyInfo {
        let (activates, retired, signs) = match &self.content {
            Content::Master { .. } => (None, None, None),
            Content::Signing { jwk, activates } => {
                let key = SigningKey::from_jwk(jwk);
                (Some(*activates), None, key.map(|key| (key.kid(), key.algorithm().name())))
            }
            Content::Retired { at, .. } => (None, Some(*at), None),
        };
        let (kind, version, created) = (self.kind, self.version, self.created);
        KeyInfo { kind, version, created, activates, retired, signs }
    }

    /// The same without its secret; `None` where it has none any more.
    pub(super) fn retire(&self, at: UnixTime) -> Option<Self> {
        let public = match &self.content {
            Content::Master { .. } => None,
            Content::Signing { jwk, .. } => Some(SigningKey::from_jwk(jwk)?.public_jwk()),
            Content::Retired { .. } => return None,
        };
        let (kind, version, created) = (self.kind, self.version, self.created);
        Some(Self { kind, version, created, content: Content::Retired { at, public } })
    }

    fn name(&self) -> String {
        format!("{}-{}.json", self.kind.name(), self.version)
    }

    fn text(&self) -> Zeroizing<Vec<u8>> {
        let encode = |bytes: &[u8; 32]| Some(URL_SAFE_NO_PAD.encode(bytes));
        let mut stored = Stored {
            kind: self.kind,
            version: self.version,
            created: self.created,
            activates: None,
            retired: None,
            master: None,
            salt: None,
            jwk: None,
            public: None,
        };
        match &self.content {
            Content::Master { master, salt } => {
                (stored.master, stored.salt) = (encode(master), encode(salt));
            }
            Content::Signing { jwk, activates } => {
                stored.jwk = Some(jwk.to_string());
                stored.activates = Some(*activates);
            }
            Content::Retired { at, public } => {
                (stored.retired, stored.public) = (Some(*at), public.clone());
            }
        }
        let mut text = serde_json::to_vec_pretty(&stored).unwrap_or_default();
        text.push(b'\n');
        text.into()
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut stored: Stored = serde_json::from_slice(text).ok()?;
        let decode = |text: &str| {
            let mut bytes = Zeroizing::new([0; 32]);
            let written = URL_SAFE_NO_PAD.decode_slice(text, bytes.as_mut()).ok()?;
            (written == bytes.len()).then_some(bytes)
        };
        let (master, salt) = (stored.master.take(), stored.salt.take());
        let (master, salt) = (master.map(Zeroizing::new), salt.map(Zeroizing::new));
        let jwk = stored.jwk.take().map(Zeroizing::new);
        let content = match (stored.kind, stored.retired, master, salt, jwk) {
            (_, Some(at), None, None, None) => {
                Content::Retired { at, public: stored.public.take() }
            }
            (Kind::Master, None, Some(master), Some(salt), None) => {
                Content::Master { master: decode(&master)?, salt: decode(&salt)? }
            }
            (Kind::Envelope | Kind::Audit, None, None, None, Some(jwk)) => {
                Content::Signing { jwk, activates: stored.activates? }
            }
            _ => return None,
        };
        let (kind, version, created) = (stored.kind, stored.version, stored.created);
        (version > 0).then_some(Self { kind, version, created, content })
    }
}

fn no_randomness(kind: Kind) -> KeysError {
    KeysError::File { path: kind.name().to_owned(), error: FileError::Randomness }
}

fn wrong(path: &Path, error: impl Into<FileError>) -> KeysError {
    KeysError::File { path: path.display().to_string(), error: error.into() }
}

/// Makes the directory where it is missing, for its owner only.
pub(super) fn make_directory(directory: &Path) -> Result<(), KeysError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| wrong(directory, error))
}

/// Keeps other commands from changing keys at the same time, until it is dropped.
pub(super) fn lock(directory: &Path) -> Result<fs::File, KeysError> {
    let locked = fs::File::open(directory).and_then(|file| {
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
        Ok(file)
    });
    locked.map_err(|error| wrong(directory, error))
}

/// Every key file of a directory, by kind and version. Other files are left alone.
pub(super) fn read_all(directory: &Path) -> Result<Vec<(PathBuf, KeyFile)>, KeysError> {
    let mode = directory.metadata().map_err(|error| wrong(directory, error))?.mode() & 0o777;
    // Who may write there may hide a version, or bring an old one back.
    if mode & 0o022 != 0 {
        return Err(wrong(directory, FileError::Writable(mode)));
    }
    let entries = fs::read_dir(directory).map_err(|error| wrong(directory, error))?;
    let mut files = Vec::new();
    for (number, entry) in entries.enumerate() {
        if number >= MAX_FILES {
            return Err(wrong(directory, FileError::TooMany));
        }
        let path = entry.map_err(|error| wrong(directory, error))?.path();
        if !is_key_file(&path) {
            continue;
        }
        let text = read(&path).map_err(|error| wrong(&path, error))?;
        let file = KeyFile::parse(&text).ok_or_else(|| wrong(&path, FileError::Malformed))?;
        if path.file_name().is_none_or(|name| name != file.name().as_str()) {
            let (kind, version) = (file.kind.name(), file.version);
            return Err(wrong(&path, FileError::Name { kind, version }));
        }
        files.push((path, file));
    }
    files.sort_by_key(|(_, file)| (file.kind, file.version));
    Ok(files)
}

fn is_key_file(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let stem = name.strip_suffix(".json").and_then(|stem| stem.rsplit_once('-'));
    stem.is_some_and(|(kind, version)| {
        ["master", "envelope", "audit"].contains(&kind)
            && !version.is_empty()
            && version.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Reads a file that nobody else may read.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let file = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(path)?;
    // Of what was opened, not of what has the name by now.
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile);
    }
    let mode = metadata.mode() & 0o777;
    if is_exposed(mode, is_credential(path)) {
        return Err(FileError::Open(mode));
    }
    let owner = metadata.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(FileError::Owner(owner));
    }
    let mut content = Zeroizing::new(Vec::with_capacity(4096));
    file.take(MAX_BYTES).read_to_end(&mut content)?;
    Ok(content)
}

/// To open a pipe would wait for its other end.
const NONBLOCK: i32 = 0o4000;

/// Whether others than its owner may read a file of this mode. systemd gives a credential to the
/// service's user by an ACL, whose mask shows as the group's bits.
#[must_use]
pub fn is_exposed(mode: u32, credential: bool) -> bool {
    mode & if credential { 0o007 } else { 0o077 } != 0
}

/// Whether it is a file that systemd's `LoadCredential=` names.
#[must_use]
pub fn is_credential(path: &Path) -> bool {
    let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY") else { return false };
    let (file, directory) = (fs::canonicalize(path), fs::canonicalize(directory));
    file.is_ok_and(|file| directory.is_ok_and(|directory| file.parent() == Some(&directory)))
}

/// Writes a new file, whole and durable, or none.
pub(super) fn create(directory: &Path, file: &KeyFile) -> Result<(PathBuf, KeyInfo), KeysError> {
    let path = directory.join(file.name());
    let written = write_beside(&path, file).and_then(|beside| {
        // Unlike a rename this leaves alone what is there.
        let linked = fs::hard_link(&beside, &path);
        let removed = fs::remove_file(&beside);
        linked.and(removed)?;
        sync(directory)
    });
    written.map_err(|error| wrong(&path, error))?;
    Ok((path, file.info()))
}

/// Puts another content in the place of a file's.
pub(super) fn replace(path: &Path, file: &KeyFile) -> Result<(), KeysError> {
    let written = write_beside(path, file).and_then(|beside| {
        fs::rename(&beside, path)?;
        sync(path.parent().unwrap_or(Path::new(".")))
    });
    written.map_err(|error| wrong(path, error))
}

fn write_beside(path: &Path, file: &KeyFile) -> io::Result<PathBuf> {
    let beside = path.with_extension("new");
    // What an interrupted run left.
    match fs::remove_file(&beside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    out.write_all(&file.text())?;
    // What root makes is for whoever the directory is for.
    let owner = path.parent().unwrap_or(Path::new(".")).metadata()?;
    if rustix::process::geteuid().is_root() && owner.uid() != 0 {
        std::os::unix::fs::chown(&beside, Some(owner.uid()), Some(owner.gid()))?;
    }
    out.sync_all()?;
    Ok(beside)
}

fn sync(directory: &Path) -> io::Result<()> {
    fs::File::open(directory)?.sync_all()
}
