//! One node before one edge: requests with its secret, proof and certificate, and nonce challenges
//! answered.

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use reqwest::Url;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::failure::{Denial, Failure, Later};
use super::seal::SealKey;
use crate::cli::client::challenge::error_code;
use crate::cli::client::http::{Client, HttpError};
use crate::cli::client::key::SigningKey;
use crate::cli::client::proof::{Proof, Statement, fresh_id};
use crate::cli::client::trace;
use crate::cli::site::now;
use crate::policy::capsule::key::KeyVersion;
use crate::policy::capsule::node::NodeId;
use crate::policy::time::UnixTime;
use crate::policy::token::KeySet;

/// Bytes of an answer.
const ANSWER_LIMIT: usize = 64 << 10;
/// Bytes of a key set.
const KEY_SET_LIMIT: usize = 256 << 10;
/// Nonces that are taken up for one request: whoever always has another one is not the edge.
const NONCES: usize = 3;
/// Where the edge publishes the keys that sign envelopes.
const KEY_SET_PATH: &str = "/.well-known/holdfast/capsule-jwks.json";

/// Whether the key is to be sealed to a key of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sealing {
    /// It is not.
    Off,
    /// It may be; the edge decides.
    Offered,
    /// It must be.
    Required,
}

/// What stays the same from one request to the next.
pub(super) struct Session {
    /// Speaks TLS, with the client certificate where there is one.
    pub(super) client: Client,
    /// `https://edge.example`, without a slash.
    pub(super) origin: String,
    /// The node.
    pub(super) node: NodeId,
    /// Its secret's text.
    pub(super) secret: Zeroizing<String>,
    /// Signs the proofs; `None`: the secret goes as `Bearer`.
    pub(super) key: Option<SigningKey>,
    /// Whether to seal.
    pub(super) sealing: Sealing,
    /// Fingerprint, boot id and version as fields.
    pub(super) facts: HeaderMap,
    /// The boot.
    pub(super) boot: String,
    /// The software version.
    pub(super) software: Option<String>,
    /// The key version to ask for.
    pub(super) key_version: Option<KeyVersion>,
    /// The keys that are believed to sign envelopes; `None`: those that the edge names.
    pub(super) pinned: Option<KeySet>,
}

/// A request.
pub(super) struct Question<'a> {
    /// The method.
    pub(super) method: Method,
    /// The path, without query.
    pub(super) path: &'a str,
    /// `keyVersion` of the query.
    pub(super) key_version: Option<&'a KeyVersion>,
    /// The body, JSON; may be empty.
    pub(super) body: Bytes,
    /// What the answer may be sealed to.
    pub(super) seal: Option<&'a SealKey>,
}

/// An answer. Its body may hold a key.
pub(super) struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    body: Zeroizing<Vec<u8>>,
}

impl Session {
    /// Asks, and asks again with the nonce that a challenge brings, once for each nonce. `nonce` is
    /// the newest one, for this request and left for the next.
    pub(super) async fn ask(
        &self,
        question: &Question<'_>,
        nonce: &mut Option<String>,
    ) -> Result<Answered, Failure> {
        let mut taken_up = 0;
        loop {
            let answered = self.send(question, nonce.as_deref()).await?;
            let fresh = trace::nonce(&answered.headers).map(str::to_owned);
            let is_new = fresh.is_some() && fresh != *nonce;
            if is_new {
                *nonce = fresh;
            }
            if !is_new || !self.is_challenged(&answered) || taken_up == NONCES {
                return Ok(answered);
            }
            taken_up += 1;
        }
    }

    /// Whether the answer asks for a proof with a nonce that this side can make.
    fn is_challenged(&self, answered: &Answered) -> bool {
        let refused = matches!(answered.status, StatusCode::UNAUTHORIZED | StatusCode::BAD_REQUEST);
        let reason = || Denial::read(answered.status.as_u16(), &answered.body).reason;
        self.key.is_some()
            && refused
            && (error_code(&answered.headers, &answered.body).as_deref() == Some("use_dpop_nonce")
                || reason().as_deref() == Some("PROOF_NONCE_REQUIRED"))
    }

    async fn send(
        &self,
        question: &Question<'_>,
        nonce: Option<&str>,
    ) -> Result<Answered, Failure> {
        let target = format!("{}{}", self.origin, question.path);
        let mut url = url(&target)?;
        if let Some(version) = question.key_version {
            url.query_pairs_mut().append_pair("keyVersion", &version.to_string());
        }
        let mut headers = self.facts.clone();
        let (scheme, proof) = self.prove(question, &target, nonce)?;
        let credentials = Zeroizing::new(format!("{scheme} {}", self.secret.as_str()));
        headers.insert(AUTHORIZATION, sensitive(&credentials)?);
        if let Some(proof) = proof {
            headers.insert(HeaderName::from_static("dpop"), sensitive(&proof)?);
        } else if let Some(seal) = question.seal {
            let jwk = Value::Object(seal.public_jwk().clone()).to_string();
            let value = sensitive(&URL_SAFE_NO_PAD.encode(jwk))?;
            headers.insert(HeaderName::from_static("x-node-enc-jwk"), value);
        }
        if !question.body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        self.exchange(question.method.clone(), url, headers, question.body.clone(), ANSWER_LIMIT)
            .await
    }

    /// The scheme and, with a key, the proof.
    fn prove(
        &self,
        question: &Question<'_>,
        target: &str,
        nonce: Option<&str>,
    ) -> Result<(&'static str, Option<String>), Failure> {
        let Some(key) = &self.key else { return Ok(("Bearer", None)) };
        let statement = Statement {
            method: question.method.as_str(),
            target,
            issued: now(),
            id: fresh_id()?,
            token: Some(&self.secret),
            nonce,
        };
        let mut sealing = Map::new();
        if let Some(seal) = question.seal {
            sealing.insert("enc_jwk".into(), Value::Object(seal.public_jwk().clone()));
        }
        Ok(("DPoP", Some(Proof::sign_with(key, &statement, sealing)?.compact)))
    }

    async fn exchange(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Bytes,
        limit: usize,
    ) -> Result<Answered, Failure> {
        let failed = |error| match error {
            HttpError::Transport(cause) => {
                Failure::Later(Later { cause: format!("{}: {cause}", self.origin), wish: None })
            }
            HttpError::TooLarge(_) | HttpError::Authorities | HttpError::Identity(_) => {
                Failure::Client { whose: self.origin.clone(), error }
            }
        };
        let mut answer = self.client.send(method, url, headers, body).await.map_err(failed)?;
        let body = Zeroizing::new(answer.body(limit).await.map_err(failed)?);
        Ok(Answered { status: answer.status(), headers: answer.headers().clone(), body })
    }

    /// The keys that sign envelopes: those that were pinned, or those that the edge names.
    pub(super) async fn key_set(&self) -> Result<KeySet, Failure> {
        if let Some(pinned) = &self.pinned {
            return Ok(pinned.clone());
        }
        let address = format!("{}{KEY_SET_PATH}", self.origin);
        let answered = self
            .exchange(Method::GET, url(&address)?, HeaderMap::new(), Bytes::new(), KEY_SET_LIMIT)
            .await?;
        if answered.status.is_client_error() && answered.status != StatusCode::TOO_MANY_REQUESTS {
            return Err(Failure::Unexpected(format!("{address}: {}", answered.status)));
        }
        KeySet::from_json(&answered.success()?)
            .map_err(|error| Failure::KeySet { path: address, error })
    }
}

impl Answered {
    /// How far this node's clock is ahead of the one that dated the answer, seconds.
    pub(super) fn clock_ahead_s(&self, now: UnixTime) -> Option<i64> {
        let dated = date(self.headers.get(DATE)?.to_str().ok()?)?;
        Some(now.secs().saturating_sub(dated.secs()))
    }

    /// The body of a 2xx answer; what another one means.
    pub(super) fn success(self) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let status = self.status;
        if status.is_success() {
            return Ok(self.body);
        }
        if matches!(status.as_u16(), 429 | 502..=504) {
            let denial = Denial::read(status.as_u16(), &self.body);
            return Err(Failure::Later(Later {
                cause: denial.to_string(),
                wish: retry_after(&self.headers, now()),
            }));
        }
        if status.is_client_error() {
            return Err(Failure::Refused(Denial::read(status.as_u16(), &self.body)));
        }
        Err(Failure::Unexpected(status.to_string()))
    }
}

/// `Retry-After`, as seconds or as a date (RFC 9110 section 10.2.3).
fn retry_after(headers: &HeaderMap, now: UnixTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let millis = date(text)?.millis_since(now);
    Some(Duration::from_millis(u64::try_from(millis).unwrap_or_default()))
}

/// A date as HTTP writes it (RFC 9110 section 5.6.7).
fn date(text: &str) -> Option<UnixTime> {
    let since = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok().map(UnixTime::from_secs)
}

fn url(text: &str) -> Result<Url, Failure> {
    Url::parse(text).map_err(|error| Failure::Usage(format!("{text}: {error}")))
}

/// A field that no log of the HTTP stack shows.
fn sensitive(text: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Failure::Usage("a credential is no header value".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_seconds_or_a_date() {
        // Sun, 06 Nov 1994 08:49:37 GMT.
        let now = UnixTime::from_secs(784_111_777);
        let check = |text: &str, expect: Option<u64>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            assert_eq!(retry_after(&headers, now), expect.map(Duration::from_secs), "{text}");
        };
        check("0", Some(0));
        check(" 120 ", Some(120));
        check("Sun, 06 Nov 1994 08:50:37 GMT", Some(60));
        check("Sun, 06 Nov 1994 08:48:37 GMT", Some(0));
        check("-1", None);
        check("soon", None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
