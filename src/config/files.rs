//! Files that the configuration names: whether they are there and hold what they should.

#![expect(clippy::disallowed_methods, reason = "checking the files is part of loading")]

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::introspection::Secret;
use super::item::Text;
use super::section::Section;
use super::{CertificateFiles, NonceKeyFile};
use crate::policy::token::KeySet;

/// The largest certificate, key or JWK set file, bytes.
const MAX_BYTES: u64 = 1 << 20;
/// The largest file of certificate revocation lists, bytes: about a million entries.
const MAX_CRL_BYTES: u64 = 64 << 20;

/// `{certificate, key}`: both there, PEM, and fitting each other.
pub(super) fn certificate_files(section: &Section<'_>) -> Option<CertificateFiles> {
    let certificate = section.required("certificate").map(Text::path);
    let key = section.required("key").map(Text::path);
    let ((certificate, chain_text), (key, key_text)) = (certificate?, key?);
    let chain = certificates(&certificate, &chain_text);
    let private = private_key(&key, &key_text);
    if let (Some(chain), Some(private)) = (chain, private) {
        fit(chain, private, &chain_text, &key_text);
    }
    Some(CertificateFiles { certificate, key })
}

fn fit(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    chain_text: &Text<'_>,
    key_text: &Text<'_>,
) {
    let key = match rustls::crypto::aws_lc_rs::sign::any_supported_type(&key) {
        Ok(key) => key,
        Err(error) => {
            key_text
                .error(format!("`{}` holds a key that TLS cannot use: {error}", key_text.written));
            return;
        }
    };
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            let written = chain_text.written;
            key_text.error(format!("`{}` is not the key of `{written}`", key_text.written));
        }
        Err(error) => {
            let written = chain_text.written;
            chain_text
                .error(format!("`{written}` holds a certificate that TLS cannot use: {error}"));
        }
    }
}

/// PEM files of certificate authorities.
pub(super) fn authorities(texts: Vec<Text<'_>>) -> Vec<PathBuf> {
    texts.into_iter().map(authority).collect()
}

/// One PEM file of certificate authorities.
pub(super) fn authority(text: Text<'_>) -> PathBuf {
    let (path, text) = text.path();
    let mut store = RootCertStore::empty();
    for certificate in certificates(&path, &text).unwrap_or_default() {
        if let Err(error) = store.add(certificate) {
            text.error(format!("`{}` holds an unusable authority: {error}", text.written));
        }
    }
    path
}

/// A JWK set file.
pub(super) fn key_set(text: Text<'_>) -> PathBuf {
    let (path, text) = text.path();
    if let Some(content) = content(&path, &text)
        && let Err(error) = KeySet::from_json(&content)
    {
        text.error(format!("`{}`: {error}", text.written));
    }
    path
}

/// A file of certificate revocation lists, PEM or DER.
pub(super) fn revocation_lists(text: Text<'_>) -> PathBuf {
    let (path, text) = text.path();
    let Some(content) = content_within(&path, &text, MAX_CRL_BYTES) else { return path };
    match crate::policy::certificate::revocation_lists(&content) {
        Ok(lists) => {
            let now = std::time::SystemTime::now();
            let now = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
            let now = i64::try_from(now).unwrap_or(i64::MAX);
            if lists.iter().any(|list| list.next_update.is_some_and(|end| end.secs() < now)) {
                let written = text.written;
                text.item.warn(format!("`{written}` holds a list that is past its nextUpdate"));
            }
        }
        Err(reason) => text.error(format!("`{}`: {reason}", text.written)),
    }
    path
}

/// A secret of 32 bytes: as they are, or as 64 hexadecimal digits. Nobody but its owner and group
/// may read the file.
pub(super) fn nonce_key(text: Text<'_>) -> Option<NonceKeyFile> {
    let (path, text) = text.path();
    let content = zeroize::Zeroizing::new(content(&path, &text)?);
    if mode(&path) & 0o007 != 0 {
        text.error(format!("`{}` is open to every user: `chmod 600` it", text.written));
        return None;
    }
    let secret = <[u8; 32]>::try_from(content.as_slice()).ok().or_else(|| hexadecimal(&content));
    let secret = secret.map(|bytes| NonceKeyFile(bytes.into()));
    if secret.is_none() {
        let message =
            "holds no 32 bytes, nor 64 hexadecimal digits, as `openssl rand -hex 32` makes";
        text.error(format!("`{}` {message}", text.written));
    }
    secret
}

fn hexadecimal(text: &[u8]) -> Option<[u8; 32]> {
    let digits = text.trim_ascii();
    let mut bytes = [0; 32];
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| !pair.starts_with('+'))?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(bytes)
}

/// A file that holds a secret: one line of text.
pub(super) fn secret(text: Text<'_>) -> Option<Secret> {
    let (path, text) = text.path();
    let content = zeroize::Zeroizing::new(content(&path, &text)?);
    warn_if_open(&path, &text);
    let written = text.written;
    let Ok(secret) = std::str::from_utf8(&content) else {
        text.error(format!("`{written}` holds no text"));
        return None;
    };
    let secret = secret.trim_end_matches(['\r', '\n']);
    if secret.is_empty() || secret.contains(char::is_control) {
        text.error(format!("`{written}` holds no secret: one line of text is expected"));
        return None;
    }
    Some(Secret::new(secret.to_owned().into()))
}

fn certificates(path: &Path, text: &Text<'_>) -> Option<Vec<CertificateDer<'static>>> {
    let content = content(path, text)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
    match found {
        Ok(chain) if !chain.is_empty() => Some(chain),
        Ok(_) => {
            text.error(format!("`{}` holds no PEM certificate", text.written));
            None
        }
        Err(error) => {
            text.error(format!("`{}` is not valid PEM: {error}", text.written));
            None
        }
    }
}

fn private_key(path: &Path, text: &Text<'_>) -> Option<PrivateKeyDer<'static>> {
    let content = zeroize::Zeroizing::new(content(path, text)?);
    warn_if_open(path, text);
    let Ok(key) = PrivateKeyDer::from_pem_slice(&content) else {
        // The parser's own words may quote the file.
        text.error(format!("`{}` holds no PEM private key", text.written));
        return None;
    };
    Some(key)
}

/// The file's permissions.
fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().map_or(0, |metadata| metadata.permissions().mode() & 0o777)
}

fn warn_if_open(path: &Path, text: &Text<'_>) {
    let mode = mode(path);
    if mode & 0o007 != 0 {
        text.item.warn(format!("`{}` is open to every user (mode {mode:o})", text.written));
    }
}

fn content(path: &Path, text: &Text<'_>) -> Option<Vec<u8>> {
    content_within(path, text, MAX_BYTES)
}

fn content_within(path: &Path, text: &Text<'_>, limit: u64) -> Option<Vec<u8>> {
    let written = text.written;
    text.item.sink.depends_on(path);
    match read(path, limit) {
        Ok(content) => Some(content),
        Err(error) => {
            text.error(format!("cannot read `{written}`: {error}"));
            None
        }
    }
}

/// Reads a regular file of at most `limit` bytes.
pub(super) fn read(path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
    // Asked before opening: to open a pipe would wait for its other end.
    if !path.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut content = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut content)?;
    if u64::try_from(content.len()).unwrap_or(u64::MAX) > limit {
        return Err(std::io::Error::other(format!("longer than {limit} bytes")));
    }
    Ok(content)
}
