//! The edge's answer, and whether it is believed. Pure: what is known comes in, a [`Capsule`] or the
//! first [`Fault`] comes out.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::envelope;
use super::fault::Fault;
use super::seal::SealKey;
use crate::policy::capsule::envelope::{Claims, is_signed};
use crate::policy::capsule::key::{KEY_BYTES, KeyVersion};
use crate::policy::capsule::node::NodeId;
use crate::policy::time::UnixTime;
use crate::policy::token::KeySet;

/// Seconds that the edge's clock and this one may be apart: a capsule that was just issued and is
/// further away is an old one, or was issued by somebody who dates ahead.
pub(super) const CLOCK_LIMIT_S: i64 = 300;

/// The 200 answer as it is sent. Members that are not known here are passed over.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Grant {
    capsule_id: String,
    node_id: String,
    #[serde(default, deserialize_with = "secret_text")]
    runtime_key: Option<Zeroizing<String>>,
    sealed_key: Option<String>,
    key_version: String,
    issued_utc: String,
    expires_utc: String,
    risk_score: u32,
    signature: String,
    envelope: String,
}

fn secret_text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Zeroizing<String>>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.map(Zeroizing::new))
}

impl Grant {
    /// Reads a body.
    pub(super) fn read(body: &[u8]) -> Result<Self, Fault> {
        serde_json::from_slice(body).map_err(|_| Fault::NotAGrant)
    }
}

/// What was asked for, and by whom.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The node.
    pub(super) node: &'a NodeId,
    /// Its secret's text.
    pub(super) secret: &'a str,
    /// The key version, where one was asked for.
    pub(super) key_version: Option<&'a KeyVersion>,
    /// The software version, where one was told.
    pub(super) software: Option<&'a str>,
    /// What the key may be sealed to.
    pub(super) seal: Option<&'a SealKey>,
    /// Whether it must be.
    pub(super) seal_required: bool,
}

/// A capsule that holds in every point.
pub(super) struct Capsule {
    /// The runtime key, 32 bytes.
    pub(super) key: Zeroizing<Vec<u8>>,
    /// What the envelope says.
    pub(super) claims: Claims,
    /// The envelope.
    pub(super) envelope: String,
    /// The key that signed it.
    pub(super) kid: String,
    /// `issuedUtc`.
    pub(super) issued_utc: String,
    /// `expiresUtc`.
    pub(super) expires_utc: String,
    /// How far this node's clock is ahead of the edge's, seconds; negative: behind. The way of the
    /// answer counts in.
    pub(super) clock_ahead_s: i64,
}

/// Without the key.
impl fmt::Debug for Capsule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capsule").field("claims", &self.claims).finish_non_exhaustive()
    }
}

/// Believes a grant that was just received, or says what is wrong with it: the envelope's signature
/// by `keys`, then that it is about what was asked and about this very answer, then the key.
pub(super) fn believe(
    grant: Grant,
    asked: &Asked<'_>,
    keys: &KeySet,
    now: UnixTime,
) -> Result<Capsule, Fault> {
    let signed = envelope::read(&grant.envelope, keys)?;
    signed.is_for(asked.node)?;
    let claims = &signed.claims;
    agrees(&grant, claims)?;
    is_asked(claims, asked)?;
    let clock_ahead_s = now.secs().saturating_sub(claims.iat);
    if clock_ahead_s.saturating_abs() > CLOCK_LIMIT_S {
        return Err(Fault::Clock(clock_ahead_s));
    }
    let ends = UnixTime::from_secs(claims.exp);
    if now >= ends {
        return Err(Fault::Expired(ends));
    }
    let (key, material) = key(&grant, asked, claims)?;
    signed.is_of_key(&key)?;
    let holds =
        is_signed(asked.secret, asked.node, &claims.canonical(), material, &grant.signature);
    if !holds {
        return Err(Fault::NodeSignature);
    }
    let (claims, kid) = (signed.claims, signed.kid);
    let Grant { envelope, issued_utc, expires_utc, .. } = grant;
    Ok(Capsule { key, claims, envelope, kid, issued_utc, expires_utc, clock_ahead_s })
}

/// Whether the answer says what its envelope says.
fn agrees(grant: &Grant, claims: &Claims) -> Result<(), Fault> {
    if grant.node_id != claims.sub.as_str() {
        return Err(Fault::GrantNode);
    }
    if grant.capsule_id != claims.jti {
        return Err(Fault::CapsuleId);
    }
    if grant.key_version != claims.key_version.to_string() {
        return Err(Fault::KeyVersion);
    }
    if grant.risk_score != claims.risk_score {
        return Err(Fault::RiskScore);
    }
    if !says(&grant.issued_utc, claims.iat) || !says(&grant.expires_utc, claims.exp) {
        return Err(Fault::Times);
    }
    Ok(())
}

/// Whether an RFC 3339 time with milliseconds lies in this second. Claims are whole seconds.
fn says(text: &str, secs: i64) -> bool {
    let written = UnixTime::from_secs(secs).rfc3339().to_string();
    let Some(second) = written.strip_suffix(".000Z") else { return false };
    let millis = text
        .strip_prefix(second)
        .and_then(|rest| rest.strip_prefix('.'))
        .and_then(|rest| rest.strip_suffix('Z'));
    millis.is_some_and(|digits| digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether it is the version that was asked for. A current key is bound to no software version but
/// the one that was told.
fn is_asked(claims: &Claims, asked: &Asked<'_>) -> Result<(), Fault> {
    let got = &claims.key_version;
    match (asked.key_version, &got.software) {
        (Some(wanted), _) if wanted != got => {
            Err(Fault::OtherVersion { got: got.clone(), asked: wanted.clone() })
        }
        (None, Some(software)) if asked.software != Some(software) => {
            Err(Fault::Software(software.clone()))
        }
        (Some(_), _) | (None, _) => Ok(()),
    }
}

/// The key, and the text that it was sent as.
fn key<'a>(
    grant: &'a Grant,
    asked: &Asked<'_>,
    claims: &Claims,
) -> Result<(Zeroizing<Vec<u8>>, &'a str), Fault> {
    let (key, material, sealed) = match (&grant.runtime_key, &grant.sealed_key) {
        (Some(plain), None) => {
            if asked.seal_required {
                return Err(Fault::Unsealed);
            }
            let key = STANDARD.decode(plain.as_bytes()).map_err(|_| Fault::KeyLength)?;
            (Zeroizing::new(key), plain.as_str(), false)
        }
        (None, Some(sealed)) => {
            let seal = asked.seal.ok_or(Fault::SealedUnasked)?;
            (seal.unseal(sealed, claims)?, sealed.as_str(), true)
        }
        (Some(_), Some(_)) | (None, None) => return Err(Fault::NoKey),
    };
    if claims.sealed != sealed {
        return Err(Fault::SealedFlag);
    }
    if key.len() != usize::from(KEY_BYTES) {
        return Err(Fault::KeyLength);
    }
    Ok((key, material))
}
