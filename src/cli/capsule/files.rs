//! Files: secrets that only their owner may read, and what is written whole or not at all.
#![expect(clippy::disallowed_methods, reason = "reads and writes the files that it is given")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use zeroize::Zeroizing;

use crate::store::directory_of;
use crate::store::keys::{is_credential, is_exposed};

/// Bytes of a key, certificate, key set or envelope.
const LIMIT: u64 = 1 << 20;

/// Only the owner.
pub(super) const PRIVATE: u32 = 0o600;
/// Everybody reads.
pub(super) const PUBLIC: u32 = 0o644;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum FileError {
    #[error("{path}: {error}")]
    Io { path: String, error: io::Error },
    #[error("{0}: larger than {LIMIT} bytes")]
    TooLarge(String),
    #[error("{path}: others than its owner may read it (mode {mode:03o}); chmod 600 it")]
    Exposed { path: String, mode: u32 },
    #[error("{0}: no regular file, so that it cannot be replaced")]
    Irregular(String),
}

impl FileError {
    /// Whether there is no such file.
    pub(super) fn is_absence(&self) -> bool {
        match self {
            Self::Io { error, .. } => error.kind() == io::ErrorKind::NotFound,
            Self::TooLarge(_) | Self::Exposed { .. } | Self::Irregular(_) => false,
        }
    }
}

/// A file's content.
pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    content(path, File::open(path).map_err(io_error(path))?)
}

/// The content of a file that nobody but its owner can read.
pub(super) fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let file = File::open(path).map_err(io_error(path))?;
    let mode = file.metadata().map_err(io_error(path))?.mode();
    if is_exposed(mode, is_credential(path)) {
        return Err(FileError::Exposed { path: path.display().to_string(), mode: mode & 0o777 });
    }
    content(path, file)
}

fn content(path: &Path, file: File) -> Result<Zeroizing<Vec<u8>>, FileError> {
    // With room from the start, growing leaves no copy behind.
    let length = file.metadata().map_err(io_error(path))?.len().min(LIMIT);
    let room = usize::try_from(length).unwrap_or_default() + 64;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(LIMIT + 1).read_to_end(&mut bytes).map_err(io_error(path))?;
    if bytes.len() as u64 > LIMIT {
        return Err(FileError::TooLarge(path.display().to_string()));
    }
    Ok(bytes)
}

/// Puts `content` in the place of what is there: a reader sees all of the old or all of the new, also
/// after a power cut, and with [`PRIVATE`] nobody else ever sees any.
pub(super) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => {
            return Err(FileError::Irregular(path.display().to_string()));
        }
        Ok(_) | Err(_) => {}
    }
    beside(path, content, mode, |temporary| fs::rename(temporary, path)).map_err(io_error(path))
}

/// Makes a file that only its owner can read; an error where there is one already.
pub(in crate::cli) fn create_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    // Unlike a renaming, a link takes no file's place.
    let link = |temporary: &Path| {
        fs::hard_link(temporary, path)?;
        fs::remove_file(temporary)
    };
    beside(path, content, PRIVATE, link).map_err(io_error(path))
}

/// Writes a file beside `path`, has `publish` put it there, and makes both durable.
fn beside(
    path: &Path,
    content: &[u8],
    mode: u32,
    publish: impl Fn(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    let temporary = path.with_file_name(hidden);
    remove(&temporary)?;
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        // Whatever the umask is. Never wider than `mode` for a moment: that is how it was made.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        publish(&temporary)?;
        File::open(directory_of(path))?.sync_all()
    };
    write().inspect_err(|_| {
        // What cannot be removed now is removed by the next writing.
        let _ = remove(&temporary);
    })
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> FileError {
    let path = path.display().to_string();
    move |error| FileError::Io { path: path.clone(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("secret");
        fs::write(&path, "s").unwrap();
        for (mode, exposed) in
            [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o620, true)]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let read = read_private(&path);
            assert_eq!(matches!(read, Err(FileError::Exposed { .. })), exposed, "{mode:o}");
            assert_eq!(read.is_err(), exposed, "{mode:o}");
        }
        // As systemd 252 shows one to a service of another user.
        assert!(!is_exposed(0o100_440, true));
        assert!(is_exposed(0o100_444, true) && is_exposed(0o100_440, false));
    }

    #[test]
    fn a_file_is_replaced_whole_and_is_its_owner_s_only() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("key");
        fs::write(scratch.path().join(".key.new"), "left by a run that was cut short").unwrap();
        fs::write(&path, "old").unwrap();
        replace(&path, b"new", PRIVATE).unwrap();
        assert_eq!((fs::read(&path).unwrap().as_slice(), mode(&path)), (&b"new"[..], 0o600));
        replace(&path, b"newer", PUBLIC).unwrap();
        assert_eq!((read(&path).unwrap().as_slice(), mode(&path)), (&b"newer"[..], 0o644));
        assert_eq!(names(scratch.path()), ["key"]);
    }

    #[test]
    fn what_is_no_file_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        for path in [Path::new("/dev/null"), &link, scratch.path()] {
            let error = replace(path, b"x", PRIVATE).unwrap_err();
            assert!(matches!(error, FileError::Irregular(_)), "{error}");
        }
        assert!(replace(Path::new("/nowhere/key"), b"x", PRIVATE).unwrap_err().is_absence());
    }

    #[test]
    fn a_new_file_takes_no_other_s_place() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("key");
        create_private(&path, b"one").unwrap();
        assert!(create_private(&path, b"two").is_err());
        assert_eq!((read_private(&path).unwrap().as_slice(), mode(&path)), (&b"one"[..], 0o600));
        assert_eq!(names(scratch.path()), ["key"]);
    }

    #[test]
    fn what_never_ends_is_not_read_to_its_end() {
        assert!(matches!(read(Path::new("/dev/zero")), Err(FileError::TooLarge(_))));
    }
}
