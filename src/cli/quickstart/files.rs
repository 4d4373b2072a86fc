//! The directory: what quickstart wrote it may write again, anything else it leaves alone.
//!
//! A manifest holds the SHA-256 of every file as it was written. A file that is not in it, or that
//! was changed since, is somebody's and stops the run before anything is written.
#![expect(clippy::disallowed_methods, reason = "writes the files it is there to write")]

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::policy::digest::Sha256;

/// The manifest's name.
const MANIFEST: &str = ".quickstart.json";
/// Bytes of a file that may be quickstart's.
const LIMIT: u64 = 1 << 20;

/// A file to be.
pub(super) struct Planned {
    /// Its name in the directory.
    pub(super) name: &'static str,
    /// Its content.
    pub(super) content: Zeroizing<Vec<u8>>,
    /// Whether only its owner may read it.
    pub(super) secret: bool,
}

/// What became of a planned file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It was there already, to the byte.
    Kept,
    /// It is new, or takes the place of a stale one.
    Written,
}

/// Why nothing can be written there.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    #[error("{path}: {error}")]
    Io { path: String, error: io::Error },
    #[error(
        "{0} is not as quickstart wrote it; move it away, or choose another directory by --dir"
    )]
    Foreign(String),
}

/// The directory and what its manifest says.
pub(super) struct Directory {
    path: PathBuf,
    /// By name: the hashes of what quickstart wrote, the newest last. Two while a run is under way.
    written: BTreeMap<String, Vec<String>>,
}

impl Directory {
    /// Opens the directory, or makes it, for its owner only.
    pub(super) fn open(path: &Path) -> Result<Self, FilesError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| io_error(path, error))?;
        let manifest = path.join(MANIFEST);
        let written = match read(&manifest)? {
            None => BTreeMap::new(),
            Some(text) => serde_json::from_slice(&text).map_err(|_| foreign(&manifest))?,
        };
        Ok(Self { path: path.to_owned(), written })
    }

    /// A file's path.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A file's content, where quickstart wrote it and nobody changed it since.
    pub(super) fn own(&self, name: &str) -> Option<Zeroizing<Vec<u8>>> {
        let content = read(&self.join(name)).ok().flatten()?;
        let hash = Sha256::of(&content).to_string();
        self.written.get(name)?.contains(&hash).then_some(content)
    }

    /// Writes what differs from what is there, or nothing when a file is somebody else's.
    pub(super) fn write(&mut self, planned: &[Planned]) -> Result<Vec<Change>, FilesError> {
        let mut changes = Vec::new();
        for file in planned {
            let there = fs::symlink_metadata(self.join(file.name)).is_ok();
            let own = self.own(file.name);
            if there && own.is_none() {
                return Err(foreign(&self.join(file.name)));
            }
            let same = own.is_some_and(|own| own == file.content);
            changes.push(if same { Change::Kept } else { Change::Written });
        }
        // The manifest first: a run that is cut short leaves no file that the next one disowns.
        for file in planned {
            let hashes = self.written.entry(file.name.to_owned()).or_default();
            hashes.push(Sha256::of(&file.content).to_string());
            hashes.drain(..hashes.len().saturating_sub(2));
        }
        self.write_manifest()?;
        for (file, _) in planned.iter().zip(&changes).filter(|(_, c)| **c == Change::Written) {
            self.replace(file.name, &file.content, file.secret)?;
        }
        Ok(changes)
    }

    /// A file whose content goes on changing: its path, when it is new or was claimed before.
    pub(super) fn claim(&mut self, name: &str) -> Result<PathBuf, FilesError> {
        let path = self.join(name);
        let regular = fs::symlink_metadata(&path).map(|metadata| metadata.is_file());
        if regular.is_ok_and(|regular| !regular || !self.written.contains_key(name)) {
            return Err(foreign(&path));
        }
        self.written.entry(name.to_owned()).or_default();
        self.write_manifest()?;
        Ok(path)
    }

    fn write_manifest(&self) -> Result<(), FilesError> {
        let manifest = serde_json::to_vec_pretty(&self.written).unwrap_or_default();
        self.replace(MANIFEST, &manifest, false)
    }

    /// All of the new content or all of the old; never readable by others for a moment.
    fn replace(&self, name: &str, content: &[u8], secret: bool) -> Result<(), FilesError> {
        let path = self.join(name);
        let temporary = self.join(&format!(".{}.new", name.trim_start_matches('.')));
        let write = || {
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let mode = if secret { 0o600 } else { 0o644 };
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
            file.write_all(content)?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|error| io_error(&path, error))
    }
}

/// `None` when nothing is there. Symbolic links and special files are nobody's of ours.
fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, FilesError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(path, error)),
    };
    if !metadata.is_file() || metadata.len() > LIMIT {
        return Err(foreign(path));
    }
    fs::read(path).map(|content| Some(Zeroizing::new(content))).map_err(|e| io_error(path, e))
}

fn foreign(path: &Path) -> FilesError {
    FilesError::Foreign(path.display().to_string())
}

fn io_error(path: &Path, error: io::Error) -> FilesError {
    FilesError::Io { path: path.display().to_string(), error }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "looks at what was written")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn planned(name: &'static str, content: &str, secret: bool) -> Planned {
        Planned { name, content: Zeroizing::new(content.into()), secret }
    }

    #[test]
    fn writes_and_writes_again_what_is_its_own() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a/b");
        let files = |c: &str| [planned("key", "k", true), planned("config", c, false)];
        let written = Directory::open(&path).unwrap().write(&files("1")).unwrap();
        assert_eq!(written, [Change::Written, Change::Written]);
        let again = Directory::open(&path).unwrap().write(&files("2")).unwrap();
        assert_eq!(again, [Change::Kept, Change::Written]);
        assert_eq!(fs::read_to_string(path.join("config")).unwrap(), "2");
        let mode = |name| fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("key"), 0o600);
        fs::remove_file(path.join("key")).unwrap();
        let remade = Directory::open(&path).unwrap().write(&files("2")).unwrap();
        assert_eq!(remade, [Change::Written, Change::Kept]);
    }

    #[test]
    fn what_is_somebody_s_stays_and_nothing_else_is_written() {
        let check = |prepare: &dyn Fn(&Path)| {
            let scratch = tempfile::tempdir().unwrap();
            let mut directory = Directory::open(scratch.path()).unwrap();
            directory.write(&[planned("config", "1", false)]).unwrap();
            prepare(&scratch.path().join("config"));
            let mut directory = Directory::open(scratch.path()).unwrap();
            let files = [planned("first", "1", false), planned("config", "2", false)];
            let error = directory.write(&files).unwrap_err();
            assert!(error.to_string().contains("not as quickstart wrote it"), "{error}");
            assert!(!scratch.path().join("first").exists());
            assert!(directory.own("config").is_none());
        };
        check(&|path| fs::write(path, "edited").unwrap());
        check(&|path| {
            fs::remove_file(path).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
        });
        check(&|path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        });
    }

    #[test]
    fn a_claimed_file_is_claimed_again_and_a_foreign_one_is_not() {
        let scratch = tempfile::tempdir().unwrap();
        let claim = || Directory::open(scratch.path()).unwrap().claim("log");
        fs::write(claim().unwrap(), "a line").unwrap();
        fs::write(claim().unwrap(), "another").unwrap();
        fs::remove_file(scratch.path().join(MANIFEST)).unwrap();
        assert!(claim().is_err());
    }

    #[test]
    fn a_run_that_was_cut_short_is_continued() {
        let scratch = tempfile::tempdir().unwrap();
        let mut directory = Directory::open(scratch.path()).unwrap();
        directory.write(&[planned("config", "1", false)]).unwrap();
        directory.write(&[planned("config", "2", false)]).unwrap();
        // As if the second run had ended between manifest and file.
        fs::write(scratch.path().join("config"), "1").unwrap();
        let mut directory = Directory::open(scratch.path()).unwrap();
        assert!(directory.write(&[planned("config", "3", false)]).is_ok());
    }
}
