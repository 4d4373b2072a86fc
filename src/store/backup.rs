//! Backups: one file, sealed by its last line.
//!
//! ```text
//! content, `bytes` long          SQLite's own file, or a JSON record a line (`store::records`)
//! \n {"holdfastBackup":1, …, "sha256":"…"} \n
//! ```
//!
//! The last line says what the file is, how long its content is, and the SHA-256 of the content and of the
//! rest of that line. It finds what was damaged or cut off; it does not say who made the file, and whoever
//! may change the file can make another seal. So a backup is kept where the store's secrets may be: it
//! holds the hashes of nodes' secrets.
//!
//! A backup of an embedded store can be opened with `sqlite3` as it is: SQLite does not look behind its
//! last page.

#![expect(clippy::disallowed_methods, reason = "a backup is a file")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use crate::policy::digest::Sha256;
use crate::policy::time::UnixTime;
use crate::store::directory_of;

/// The layout of the last line.
const VERSION: u32 = 1;
/// The most bytes of the last line.
const LAST_LINE: u64 = 8192;
/// Bytes that are read at once.
const BLOCK: usize = 1 << 16;

/// Which store the content is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// A SQLite file: nodes, records of tokens, and the audit log.
    Embedded,
    /// A record a line.
    Redis,
}

/// The last line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Seal {
    holdfast_backup: u32,
    /// Which store it is of.
    pub content: Content,
    /// When it was begun.
    pub at: UnixTime,
    /// How many there are of each kind of record.
    pub counts: BTreeMap<String, u64>,
    /// How long the content is.
    pub bytes: u64,
    /// The SHA-256 of the content and of this line without it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sha256: Option<Sha256>,
}

/// Why there is no backup, or none that may be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// What the system says.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// The error.
        error: io::Error,
    },
    /// It is not what was written.
    #[error("{path} is damaged or no backup: {what}; nothing was changed")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
}

/// A backup in the making. Without [`Making::seal`] nothing of it stays.
#[derive(Debug)]
pub struct Making {
    path: PathBuf,
    temporary: PathBuf,
    sealed: bool,
}

impl Drop for Making {
    fn drop(&mut self) {
        if !self.sealed {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

impl Making {
    /// Begins a file that is to be at `path`, where there must be none yet. Only its owner can read it.
    ///
    /// # Errors
    /// [`BackupError::Io`].
    pub fn begin(path: &Path) -> Result<Self, BackupError> {
        let failed = io_error(path);
        if path.symlink_metadata().is_ok() {
            return Err(failed(io::Error::from(io::ErrorKind::AlreadyExists)));
        }
        let name = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.new", std::process::id()));
        let temporary = path.with_file_name(hidden);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        made.map_err(io_error(&temporary))?;
        Ok(Self { path: path.to_owned(), temporary, sealed: false })
    }

    /// Where the content goes: a file that is there and is empty.
    #[must_use]
    pub fn content(&self) -> &Path {
        &self.temporary
    }

    /// Seals what was written, and puts it in its place: durable when this returns `Ok`.
    ///
    /// # Errors
    /// [`BackupError::Io`], also where there is a file of its name by now.
    pub fn seal(
        mut self,
        content: Content,
        at: UnixTime,
        counts: BTreeMap<String, u64>,
    ) -> Result<Seal, BackupError> {
        let sealed = self.write_seal(content, at, counts);
        let seal = sealed.map_err(io_error(&self.path))?;
        self.sealed = true;
        Ok(seal)
    }

    fn write_seal(
        &self,
        content: Content,
        at: UnixTime,
        counts: BTreeMap<String, u64>,
    ) -> io::Result<Seal> {
        let mut file = OpenOptions::new().read(true).append(true).open(&self.temporary)?;
        let bytes = file.metadata()?.len();
        let mut seal = Seal { holdfast_backup: VERSION, content, at, counts, bytes, sha256: None };
        seal.sha256 = Some(hash(&mut file, &seal)?);
        let line = format!("\n{}\n", serde_json::to_string(&seal)?);
        if line.len() as u64 > LAST_LINE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        file.write_all(line.as_bytes())?;
        file.sync_all()?;
        // Unlike a renaming, a link takes no file's place.
        fs::hard_link(&self.temporary, &self.path)?;
        fs::remove_file(&self.temporary)?;
        File::open(directory_of(&self.path))?.sync_all()?;
        Ok(seal)
    }
}

/// A backup whose seal holds.
#[derive(Debug)]
pub struct Backup {
    /// Its last line.
    pub seal: Seal,
    /// The file, at its beginning. The content ends before the file does.
    pub file: File,
}

impl Backup {
    /// Opens the backup at `path`.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn open(path: &Path) -> Result<Self, BackupError> {
        let failed = io_error(path);
        let mut file = File::open(path).map_err(&failed)?;
        let damaged = |what| BackupError::Damaged { path: path.display().to_string(), what };
        let length = file.metadata().map_err(&failed)?.len();
        let tail = length.saturating_sub(LAST_LINE);
        file.seek(SeekFrom::Start(tail)).map_err(&failed)?;
        let mut last = Vec::new();
        (&file).take(LAST_LINE).read_to_end(&mut last).map_err(&failed)?;
        let text = last.strip_suffix(b"\n").ok_or_else(|| damaged("it has no last line"))?;
        let begin = text.iter().rposition(|byte| *byte == b'\n');
        let begin = begin.ok_or_else(|| damaged("it has no last line"))?;
        let line = text.get(begin + 1..).unwrap_or_default();
        let seal: Seal = serde_json::from_slice(line)
            .map_err(|_| damaged("its last line is no seal that this version knows"))?;
        // Not a byte of it may be otherwise.
        let written = serde_json::to_vec(&seal).unwrap_or_default();
        if seal.holdfast_backup != VERSION || written != line {
            return Err(damaged("its last line is no seal that this version knows"));
        }
        if seal.bytes != tail + begin as u64 {
            return Err(damaged("it is longer or shorter than it says"));
        }
        let unsealed = Seal { sha256: None, ..seal.clone() };
        if Some(hash(&mut file, &unsealed).map_err(&failed)?) != seal.sha256 {
            return Err(damaged("its checksum does not hold"));
        }
        file.seek(SeekFrom::Start(0)).map_err(&failed)?;
        Ok(Self { seal, file })
    }
}

/// The SHA-256 of the content, and of the seal without it.
fn hash(file: &mut File, unsealed: &Seal) -> io::Result<Sha256> {
    file.seek(SeekFrom::Start(0))?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut content = file.take(unsealed.bytes);
    let mut block = vec![0; BLOCK];
    loop {
        let read = content.read(&mut block)?;
        if read == 0 {
            break;
        }
        context.update(block.get(..read).unwrap_or_default());
    }
    context.update(&serde_json::to_vec(unsealed)?);
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    Ok(Sha256(hash))
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> BackupError {
    let path = path.display().to_string();
    move |error| BackupError::Io { path: path.clone(), error }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn made(path: &Path, content: &[u8]) -> Result<Seal, BackupError> {
        let making = Making::begin(path)?;
        fs::write(making.content(), content).unwrap();
        let counts = BTreeMap::from([("nodes".to_owned(), 3)]);
        making.seal(Content::Redis, UnixTime::from_secs(1_800_000_000), counts)
    }

    #[test]
    fn is_made_whole_for_its_owner_and_never_over_another() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("backup");
        let seal = made(&path, b"one\ntwo\n").unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let backup = Backup::open(&path).unwrap();
        assert_eq!((backup.seal.clone(), backup.seal.bytes), (seal, 8));
        assert!(matches!(made(&path, b"other"), Err(BackupError::Io { .. })));
        assert_eq!(Backup::open(&path).unwrap().seal.bytes, 8);
        drop(Making::begin(&scratch.path().join("given up")).unwrap());
        assert_eq!(scratch.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn no_byte_of_it_may_be_another() {
        let scratch = tempfile::tempdir().unwrap();
        let (path, other) = (scratch.path().join("backup"), scratch.path().join("other"));
        for content in [&b"content\0with\nlines"[..], b""] {
            let _ = fs::remove_file(&path);
            made(&path, content).unwrap();
            let whole = fs::read(&path).unwrap();
            for at in 0..whole.len() {
                let mut bytes = whole.clone();
                bytes[at] ^= 1;
                fs::write(&other, &bytes).unwrap();
                assert!(Backup::open(&other).is_err(), "byte {at}");
                fs::write(&other, &whole[..at]).unwrap();
                assert!(Backup::open(&other).is_err(), "cut at {at}");
            }
            fs::write(&other, [&whole[..], b"x"].concat()).unwrap();
            assert!(Backup::open(&other).is_err());
            fs::write(&other, &whole).unwrap();
            Backup::open(&other).unwrap();
        }
    }
}
