//! Arguments → a [`Session`]: files read and checked. Done anew for each capsule, so that a rotated
//! secret, certificate or key set is taken up without a restart.

use std::net::IpAddr;
use std::path::Path;

use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::Url;
use zeroize::Zeroizing;

use super::failure::Failure;
use super::fetch::Args;
use super::files;
use super::session::{Sealing, Session};
use crate::cli::client::http::{Client, ClientIdentity, HttpError, Settings, Versions};
use crate::cli::client::key::SigningKey;
use crate::policy::capsule::node::is_label;
use crate::policy::digest::Sha256;
use crate::policy::jose::Algorithm;
use crate::policy::token::KeySet;

const MACHINE_ID: &str = "/etc/machine-id";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Bytes of a fingerprint that the edge takes.
const FINGERPRINT_BYTES: usize = 256;

pub(super) fn session(args: &Args) -> Result<Session, Failure> {
    let origin = origin(args)?;
    let secret = secret(&args.secret_file)?;
    let key = proof_key(args)?;
    let boot = match &args.boot_id {
        Some(boot) => boot.clone(),
        None => system_file(BOOT_ID, "--boot-id")?,
    };
    if !is_label(&boot) {
        return Err(usage("a boot id is 1 to 64 letters, digits, `.`, `_`, `+`, `:` and `-`"));
    }
    let mut facts = HeaderMap::new();
    let mut fact = |name: &'static str, value: &str| {
        let value = HeaderValue::from_str(value);
        let value = value.map_err(|_| usage("a value is no header value"))?;
        facts.insert(HeaderName::from_static(name), value);
        Ok::<(), Failure>(())
    };
    fact("x-node-fingerprint", &fingerprint(args)?)?;
    fact("x-node-boot-id", &boot)?;
    if let Some(version) = &args.node_version {
        fact("x-node-version", version)?;
    }
    Ok(Session {
        client: client(args)?,
        origin,
        node: args.node.clone(),
        secret,
        sealing: sealing(args, key.is_some())?,
        key,
        facts,
        boot,
        software: args.node_version.clone(),
        key_version: args.key_version.clone(),
        pinned: args.pin.as_deref().map(key_set).transpose()?,
    })
}

/// A JWK set from a file.
pub(super) fn key_set(path: &Path) -> Result<KeySet, Failure> {
    let path_text = path.display().to_string();
    KeySet::from_json(&files::read(path)?)
        .map_err(|error| Failure::KeySet { path: path_text, error })
}

/// The secret stays on this machine unless TLS carries it.
fn origin(args: &Args) -> Result<String, Failure> {
    let url = &args.edge;
    let bare = matches!(url.path(), "" | "/")
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if !bare || url.host_str().is_none() {
        return Err(usage("--edge is an origin: https://HOST or https://HOST:PORT"));
    }
    let address = args.connect.map(|address| address.ip());
    let allowed = match url.scheme() {
        "https" => true,
        "http" => address.map_or_else(|| is_loopback(url), |address| address.is_loopback()),
        _ => false,
    };
    if !allowed {
        return Err(usage("--edge must begin with https:// unless it is on this machine"));
    }
    Ok(url.origin().ascii_serialization())
}

fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    // RFC 6761 section 6.3.
    if host == "localhost" {
        return true;
    }
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.is_ok_and(|address| address.is_loopback())
}

fn secret(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let bytes = files::read_private(path)?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let path = path.display();
        return Err(usage(&format!("{path}: a secret is one line of visible ASCII")));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

fn proof_key(args: &Args) -> Result<Option<SigningKey>, Failure> {
    let Some(path) = args.key.as_deref() else { return Ok(None) };
    let fault = |error| Failure::Key { path: path.display().to_string(), error };
    match files::read_private(path) {
        Ok(text) => SigningKey::read(&text, None).map(Some).map_err(fault),
        Err(error) if error.is_absence() && args.create_key => {
            let key = SigningKey::generate(Algorithm::Es256).map_err(fault)?;
            files::create_private(path, key.to_pem())?;
            Ok(Some(key))
        }
        Err(error) => Err(error.into()),
    }
}

/// Without a proof or a certificate nothing says whose the key to seal to is.
fn sealing(args: &Args, proves: bool) -> Result<Sealing, Failure> {
    let bound = proves || args.cert.is_some();
    match (args.seal, args.no_seal, bound) {
        (true, _, false) => Err(usage("--seal needs --key or --cert")),
        (true, _, true) => Ok(Sealing::Required),
        (false, false, true) => Ok(Sealing::Offered),
        (false, true, _) | (false, false, false) => Ok(Sealing::Off),
    }
}

/// The default depends on nothing but the machine's id, and does not tell it (machine-id(5)).
fn fingerprint(args: &Args) -> Result<String, Failure> {
    let shown = match (&args.fingerprint, &args.fingerprint_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => String::from_utf8_lossy(&files::read(path)?).trim().to_owned(),
        (None, None) => {
            let id = system_file(MACHINE_ID, "--fingerprint")?;
            Sha256::of(format!("holdfast-node-fingerprint\0{id}").as_bytes()).to_string()
        }
    };
    let visible = shown.bytes().all(|byte| byte.is_ascii_graphic());
    if !visible || !(1..=FINGERPRINT_BYTES).contains(&shown.len()) {
        return Err(usage("a fingerprint is 1 to 256 bytes of visible ASCII without spaces"));
    }
    Ok(shown)
}

/// One line that the system keeps.
fn system_file(path: &str, option: &str) -> Result<String, Failure> {
    let read = files::read(Path::new(path));
    let text = read.map_err(|error| usage(&format!("{error}; give {option}")))?;
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    if text.is_empty() || text == "uninitialized" {
        return Err(usage(&format!("{path}: nothing in it; give {option}")));
    }
    Ok(text)
}

fn client(args: &Args) -> Result<Client, Failure> {
    let authorities = args.cacert.as_deref().map(files::read).transpose()?;
    let identity = match (&args.cert, &args.cert_key) {
        (Some(certificate), Some(key)) => Some(ClientIdentity {
            certificate: files::read(certificate)?.to_vec(),
            key: files::read(key)?,
        }),
        (Some(_) | None, _) => None,
    };
    if args.connect.is_some() && args.edge.domain().is_none() {
        return Err(usage("--connect is for an origin with a host name"));
    }
    let host = args.edge.host_str().unwrap_or_default().to_owned();
    let settings = Settings {
        authorities: authorities.map(|pem| pem.to_vec()),
        identity,
        insecure: false,
        versions: Versions::Agreed,
        resolve: args.connect.map(|address| (host.clone(), address)),
        from: None,
    };
    Client::new(settings).map_err(|error| {
        let path = match &error {
            HttpError::Authorities => args.cacert.as_deref(),
            HttpError::Identity(_) => args.cert.as_deref(),
            HttpError::Transport(_) | HttpError::TooLarge(_) => None,
        };
        let whose = path.map_or(host, |path| path.display().to_string());
        Failure::Client { whose, error }
    })
}

fn usage(text: &str) -> Failure {
    Failure::Usage(text.to_owned())
}
