//! Arguments → what is sent on each attempt: files read, keys and client made, all errors first.
#![expect(clippy::disallowed_methods, reason = "reads the files it is given")]

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use reqwest::Url;
use zeroize::Zeroizing;

use super::{Args, Failure, Scheme};
use crate::cli::client::http::{Client, ClientIdentity, HttpError, Settings, Versions};
use crate::cli::client::key::{KeyError, SigningKey};
use crate::cli::client::proof::{Proof, Statement, fresh_id};
use crate::cli::client::token::AccessToken;
use crate::cli::site::now;
use crate::policy::jose::Algorithm;

/// Bytes of a key, certificate or token file.
const FILE_LIMIT: u64 = 1 << 20;
/// Bytes of `--data @FILE`.
const DATA_LIMIT: u64 = 64 << 20;
/// What stays the same over both attempts.
pub(super) struct Plan {
    pub(super) method: Method,
    pub(super) url: Url,
    /// `htu`: the URL without query and fragment.
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) token: Option<AccessToken>,
    pub(super) key: Option<SigningKey>,
    pub(super) fresh_key: bool,
    pub(super) client: Client,
}

impl Plan {
    pub(super) fn prove(&self, key: &SigningKey, nonce: Option<&str>) -> Result<Proof, KeyError> {
        let statement = Statement {
            method: self.method.as_str(),
            target: &self.target,
            issued: now(),
            id: fresh_id()?,
            token: self.token.as_ref().map(AccessToken::secret),
            nonce,
        };
        Proof::sign(key, &statement)
    }

    pub(super) fn http(&self, error: HttpError) -> Failure {
        Failure::Http { url: self.target.clone(), error }
    }
}

pub(super) fn plan(args: &Args) -> Result<Plan, Failure> {
    check_url(&args.url)?;
    let token = read_token(args)?;
    let names_no_key = token
        .as_ref()
        .and_then(AccessToken::claimed)
        .is_some_and(|claimed| claimed.jkt.is_none() && args.key.is_none());
    let scheme = args.scheme.unwrap_or(if args.no_proof || names_no_key {
        Scheme::Bearer
    } else {
        Scheme::Dpop
    });
    // With `Bearer` a proof is sent only by who asks for one: it is what a downgrade looks like.
    let proves = !args.no_proof && (scheme == Scheme::Dpop || args.key.is_some());
    let key = if proves { Some(read_key(args)?) } else { None };
    let mut target = args.url.clone();
    target.set_query(None);
    target.set_fragment(None);
    let body = read_data(args)?;
    Ok(Plan {
        method: args.method.clone(),
        target: target.into(),
        headers: headers(args, token.as_ref(), scheme)?,
        url: args.url.clone(),
        body,
        token,
        fresh_key: key.is_some() && args.key.is_none(),
        key,
        client: client(args)?,
    })
}

fn check_url(url: &Url) -> Result<(), Failure> {
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(Failure::Usage("the URL must begin with https:// or http://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Failure::Usage(
            "no user or password in the URL: say --header 'Authorization: ...'",
        ));
    }
    Ok(())
}

fn headers(args: &Args, token: Option<&AccessToken>, scheme: Scheme) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    if let Some(token) = token {
        let scheme = match scheme {
            Scheme::Dpop => "DPoP",
            Scheme::Bearer => "Bearer",
        };
        let value = HeaderValue::from_str(&format!("{scheme} {}", token.secret()))
            .map_err(|_| Failure::Usage("the token is no header value"))?;
        headers.insert(AUTHORIZATION, value);
    }
    for (name, value) in &args.headers {
        headers.append(name.clone(), value.clone());
    }
    if args.data.is_some() && !headers.contains_key(CONTENT_TYPE) {
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(CONTENT_TYPE, form);
    }
    Ok(headers)
}

fn read_token(args: &Args) -> Result<Option<AccessToken>, Failure> {
    let text = match (&args.token, &args.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) => {
            String::from_utf8_lossy(&read_file(path, FILE_LIMIT)?).trim().to_owned()
        }
        (None, None) => return Ok(None),
    };
    let malformed = "the token must be visible ASCII without spaces, and not empty";
    AccessToken::new(&text).map(Some).ok_or(Failure::Usage(malformed))
}

fn read_key(args: &Args) -> Result<SigningKey, Failure> {
    let Some(path) = &args.key else {
        return Ok(SigningKey::generate(args.alg.unwrap_or(Algorithm::Es256))?);
    };
    let text = Zeroizing::new(read_file(path, FILE_LIMIT)?);
    SigningKey::read(&text, args.alg)
        .map_err(|error| Failure::Key { path: path.display().to_string(), error })
}

fn read_data(args: &Args) -> Result<Bytes, Failure> {
    match args.data.as_deref() {
        None => Ok(Bytes::new()),
        Some(data) => match data.strip_prefix('@') {
            Some(path) => Ok(read_file(Path::new(path), DATA_LIMIT)?.into()),
            None => Ok(data.to_owned().into()),
        },
    }
}

fn client(args: &Args) -> Result<Client, Failure> {
    let authorities = args.cacert.as_deref().map(|path| read_file(path, FILE_LIMIT)).transpose()?;
    let identity = match (&args.cert, &args.cert_key) {
        (Some(certificate), Some(key)) => Some(ClientIdentity {
            certificate: read_file(certificate, FILE_LIMIT)?,
            key: Zeroizing::new(read_file(key, FILE_LIMIT)?),
        }),
        _ => None,
    };
    let versions = match (args.http1, args.http2) {
        (true, _) => Versions::Http1,
        (false, true) => Versions::Http2,
        (false, false) => Versions::Agreed,
    };
    let host = args.url.host_str().unwrap_or_default();
    if args.connect.is_some() && args.url.domain().is_none() {
        return Err(Failure::Usage("--connect is for a URL with a host name"));
    }
    let resolve = args.connect.map(|address| (host.to_owned(), address));
    let path = |error: &HttpError| match error {
        HttpError::Authorities => args.cacert.as_ref(),
        HttpError::Identity(_) => args.cert.as_ref(),
        HttpError::Transport(_) | HttpError::TooLarge(_) => None,
    };
    let insecure = args.insecure;
    let settings = Settings { authorities, identity, insecure, versions, resolve, from: None };
    Client::new(settings).map_err(|error| {
        let url = path(&error).map_or_else(|| host.to_owned(), |path| path.display().to_string());
        Failure::Http { url, error }
    })
}

fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    let failure = |error| Failure::File { path: path.display().to_string(), error };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failure)?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failure)?;
    if bytes.len() as u64 > limit {
        let text = format!("larger than {limit} bytes");
        return Err(failure(io::Error::new(io::ErrorKind::FileTooLarge, text)));
    }
    Ok(bytes)
}

pub(super) fn parse_algorithm(name: &str) -> Result<Algorithm, String> {
    Algorithm::from_name(name).ok_or_else(|| {
        let names: Vec<&str> = Algorithm::ALL.iter().map(|algorithm| algorithm.name()).collect();
        format!("one of {}", names.join(", "))
    })
}

pub(super) fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME: VALUE")?;
    let name = name.trim().parse().map_err(|_| "no header name")?;
    let value = value.trim().parse().map_err(|_| "no header value")?;
    Ok((name, value))
}
