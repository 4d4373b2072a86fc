//! DPoP proofs: RFC 9449 section 4.3, one function for each numbered check.

use std::time::Duration;

use http::HeaderMap;

use super::denial::Denial;
use super::digest::{Jkt, Sha256};
use super::epoch::{Epoch, Reign};
use super::jose::{Algorithm, AlgorithmSet, CompactJws, KeyFault, PublicKey};
use super::json;
use super::nonce::{FreshNonce, NonceFault, NonceKeys};
use super::target::{Origin, htu_matches};
use super::time::UnixTime;

/// A claim that a proof must have (RFC 9449 section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// `jti`, a string of 1 to 256 bytes.
    Jti,
    /// `htm`, a string.
    Htm,
    /// `htu`, a string.
    Htu,
    /// `iat`, a number.
    Iat,
    /// `ath`, a string; with a token only.
    Ath,
    /// `nonce`, a string.
    Nonce,
}

impl Claim {
    pub(super) fn denial_code(self) -> &'static str {
        match self {
            Self::Jti => "proof_claim_jti",
            Self::Htm => "proof_claim_htm",
            Self::Htu => "proof_claim_htu",
            Self::Iat => "proof_claim_iat",
            Self::Ath => "proof_claim_ath",
            Self::Nonce => "proof_claim_nonce",
        }
    }
}

/// `security.senderConstraints.dpop`: times, nonces and the replay log.
#[derive(Clone, Copy, Debug)]
pub struct ProofRules {
    /// How old a proof may be.
    pub proof_lifetime: Duration,
    /// How far a client's clock may be off, either way.
    pub clock_skew: Duration,
    /// How long a proof is remembered.
    pub replay_window: Duration,
    /// How long a nonce is good; `None`: nonces are off.
    pub nonce_ttl: Option<Duration>,
    /// Whether a valid nonce decides freshness alone.
    pub nonce_replaces_iat: bool,
    /// Whether a nonce is good for one proof only.
    pub nonce_single_use: bool,
}

/// The most bytes of a `jti`.
const JTI_BYTES: usize = 256;

/// What a proof is held against.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The request's method.
    pub method: &'a str,
    /// The route's external origin.
    pub origin: &'a Origin,
    /// The request's normalised path.
    pub path: &'a str,
    /// SHA-256 of the token that came with it; `None` at an authorization server, where there is none
    /// yet and `ath` is not looked at.
    pub token_hash: Option<Sha256>,
    /// Allowed algorithms.
    pub algorithms: AlgorithmSet,
    /// The nonces of this origin; `None` when nonces are off, or not this edge's.
    pub nonce_keys: Option<&'a NonceKeys>,
    /// Whether a nonce must be there. One that is there must hold in any case.
    pub nonce_required: bool,
    /// Times.
    pub rules: &'a ProofRules,
    /// The most bytes of a proof.
    pub max_bytes: usize,
    /// The memory that the proof will be held against: it may not know proofs from before its begin.
    pub reign: Reign,
    /// The time.
    pub now: UnixTime,
}

/// What was learnt of a proof before it failed or passed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// The key, once the signature verified.
    pub jkt: Option<Jkt>,
    /// now − `iat` in milliseconds, once the signature verified.
    pub clock_offset_ms: Option<i64>,
    /// The nonce, once it was checked and holds.
    pub nonce: Option<FreshNonce>,
    /// Whether it has a nonce, whoever issued that.
    pub carries_nonce: bool,
}

/// A proof that passed every check that needs no memory. Whether it is new only the replay log
/// knows. Only [`verify`] makes one.
#[derive(Clone, Debug)]
pub struct VerifiedProof {
    jkt: Jkt,
    jti: String,
    nonce: Option<Sha256>,
    epoch: Epoch,
    dated: Option<UnixTime>,
    enc_jwk: Option<Box<json::Value>>,
}

impl VerifiedProof {
    /// The thumbprint of its key.
    #[must_use]
    pub fn jkt(&self) -> Jkt {
        self.jkt
    }

    /// Its `jti`, 1 to 256 bytes.
    #[must_use]
    pub fn jti(&self) -> &str {
        &self.jti
    }

    /// The SHA-256 of its nonce, where that is one of this edge's, holds, and is good only once.
    #[must_use]
    pub fn nonce(&self) -> Option<Sha256> {
        self.nonce
    }

    /// The one memory that can say whether it is new.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// When it was issued by its own word, where no nonce ties it to its memory: then nothing but the
    /// time tells one memory's from the next one's.
    #[must_use]
    pub fn dated(&self) -> Option<UnixTime> {
        self.dated
    }

    /// Its `enc_jwk`, whatever it is: the ephemeral key that a node wants its capsule sealed to.
    #[must_use]
    pub fn enc_jwk(&self) -> Option<&json::Value> {
        self.enc_jwk.as_deref()
    }
}

/// Runs the checks of RFC 9449 section 4.3 in their order, with these exceptions: 7 needs no
/// signature and comes before 6; a nonce that does not hold (10) is told last, so that a client is
/// sent to try again only when nothing else is wrong; 12b and the replay are the binding's and the
/// store's.
///
/// # Errors
/// The first check that fails, each with its own denial. `seen` holds what was learnt until then.
pub fn verify(
    headers: &HeaderMap,
    expected: &Expected<'_>,
    seen: &mut Seen,
) -> Result<VerifiedProof, Denial> {
    let text = at_most_one_field(headers)?.ok_or(Denial::ProofMissing)?;
    let jws = well_formed(text, expected.max_bytes)?;
    let claims = required_claims(&jws, expected.token_hash.is_some())?;
    typ(&jws)?;
    let algorithm = algorithm(&jws, expected.algorithms)?;
    let key = public_key(&jws, algorithm)?;
    signature(&jws, &key, algorithm)?;
    seen.jkt = Some(key.jkt());
    seen.carries_nonce = claims.nonce.is_some();
    seen.clock_offset_ms = Some(expected.now.millis_since(claims.issued));
    method(&claims, expected.method)?;
    target(&claims, expected)?;
    let nonce = nonce(&claims, expected);
    seen.nonce = nonce.ok().flatten();
    freshness(&claims, nonce, expected)?;
    token_hash(&claims, expected)?;
    younger_than_memory(&claims, nonce?, expected)?;
    let enc_jwk = jws.payload.get("enc_jwk").cloned().map(Box::new);
    let nonce = claims.nonce.filter(|_| seen.nonce.is_some() && expected.rules.nonce_single_use);
    let nonce = nonce.map(|nonce| Sha256::of(nonce.as_bytes()));
    let (jkt, jti, epoch) = (key.jkt(), claims.jti.to_owned(), expected.reign.epoch);
    let dated = seen.nonce.is_none().then_some(claims.issued);
    Ok(VerifiedProof { jkt, jti, nonce, epoch, dated, enc_jwk })
}

/// Whether a `DPoP` field is there at all.
#[must_use]
pub fn is_presented(headers: &HeaderMap) -> bool {
    headers.contains_key("dpop")
}

/// Check 1: there is not more than one `DPoP` field. It holds where no proof is read, too: the
/// service behind may read one. `None` when there is none.
///
/// # Errors
/// [`Denial::ProofRepeated`].
pub fn at_most_one_field(headers: &HeaderMap) -> Result<Option<&[u8]>, Denial> {
    let mut fields = headers.get_all("dpop").iter();
    let field = fields.next().map(http::HeaderValue::as_bytes);
    if fields.next().is_some() { Err(Denial::ProofRepeated) } else { Ok(field) }
}

/// Check 2: it is a single, well-formed JWT, of no more than `max_bytes`, whose header demands no
/// extension that is not understood (RFC 7515 section 4.1.11: none is).
fn well_formed(field: &[u8], max_bytes: usize) -> Result<CompactJws<'_>, Denial> {
    if field.len() > max_bytes {
        return Err(Denial::ProofTooLarge);
    }
    let text = std::str::from_utf8(field).map_err(|_| Denial::ProofMalformed)?;
    let jws = CompactJws::parse(text).ok_or(Denial::ProofMalformed)?;
    if jws.header.contains_key("crit") {
        return Err(Denial::ProofCritical);
    }
    Ok(jws)
}

/// The claims of RFC 9449 section 4.2.
struct Claims<'a> {
    jti: &'a str,
    htm: &'a str,
    htu: &'a str,
    issued: UnixTime,
    ath: Option<&'a str>,
    nonce: Option<&'a str>,
}

/// Check 3: all required claims are there, each of its type. `ath` is one of them where the proof comes
/// `with_token`.
fn required_claims<'a>(jws: &'a CompactJws<'_>, with_token: bool) -> Result<Claims<'a>, Denial> {
    let text = |name: &str, claim: Claim| match json::string(&jws.payload, name) {
        Ok(found) => Ok(found),
        Err(json::WrongType) => Err(Denial::ProofClaim(claim)),
    };
    let required = |name: &str, claim: Claim| {
        text(name, claim)?.filter(|value| !value.is_empty()).ok_or(Denial::ProofClaim(claim))
    };
    let jti = required("jti", Claim::Jti)?;
    if jti.len() > JTI_BYTES {
        return Err(Denial::ProofClaim(Claim::Jti));
    }
    let issued = json::numeric_date(&jws.payload, "iat").ok().flatten();
    Ok(Claims {
        jti,
        htm: required("htm", Claim::Htm)?,
        htu: required("htu", Claim::Htu)?,
        issued: issued.ok_or(Denial::ProofClaim(Claim::Iat))?,
        ath: if with_token { Some(required("ath", Claim::Ath)?) } else { text("ath", Claim::Ath)? },
        nonce: text("nonce", Claim::Nonce)?,
    })
}

/// Check 4: `typ` is `dpop+jwt`.
fn typ(jws: &CompactJws<'_>) -> Result<(), Denial> {
    match json::string(&jws.header, "typ") {
        Ok(Some("dpop+jwt")) => Ok(()),
        Ok(_) | Err(json::WrongType) => Err(Denial::ProofType),
    }
}

/// Check 5: `alg` names an asymmetric algorithm that is allowed.
fn algorithm(jws: &CompactJws<'_>, allowed: AlgorithmSet) -> Result<Algorithm, Denial> {
    jws.algorithm().filter(|algorithm| allowed.contains(*algorithm)).ok_or(Denial::ProofAlgorithm)
}

/// Checks 5 and 7: `jwk` is a public key that `alg` can use, and has no private member.
fn public_key(jws: &CompactJws<'_>, algorithm: Algorithm) -> Result<PublicKey, Denial> {
    let jwk = jws.header.get("jwk").and_then(json::Value::as_object);
    let key = PublicKey::from_jwk(jwk.ok_or(Denial::ProofKey)?).map_err(|fault| match fault {
        KeyFault::Private => Denial::ProofPrivateKey,
        KeyFault::Unusable => Denial::ProofKey,
    })?;
    if key.fits(algorithm) { Ok(key) } else { Err(Denial::ProofAlgorithm) }
}

/// Check 6: the signature verifies with that key.
fn signature(jws: &CompactJws<'_>, key: &PublicKey, algorithm: Algorithm) -> Result<(), Denial> {
    if jws.verified_by(key, algorithm) { Ok(()) } else { Err(Denial::ProofSignature) }
}

/// Check 8: `htm` is the method, to the letter.
fn method(claims: &Claims<'_>, method: &str) -> Result<(), Denial> {
    if claims.htm == method { Ok(()) } else { Err(Denial::ProofMethod) }
}

/// Check 9: `htu` is the target, without query and fragment.
fn target(claims: &Claims<'_>, expected: &Expected<'_>) -> Result<(), Denial> {
    if htu_matches(claims.htu, expected.origin, expected.path) {
        Ok(())
    } else {
        Err(Denial::ProofTarget)
    }
}

/// Check 10: the nonce is one that this edge gave out for this origin and is still good.
fn nonce(claims: &Claims<'_>, expected: &Expected<'_>) -> Result<Option<FreshNonce>, Denial> {
    let Some(keys) = expected.nonce_keys else {
        return Ok(None);
    };
    let Some(nonce) = claims.nonce else {
        return if expected.nonce_required { Err(Denial::NonceAbsent) } else { Ok(None) };
    };
    let ttl = expected.rules.nonce_ttl.unwrap_or_default();
    keys.check(nonce, expected.now, ttl).map(Some).map_err(|fault| match fault {
        NonceFault::Expired => Denial::NonceExpired,
        NonceFault::Unknown => Denial::NonceUnknown,
    })
}

/// Check 11: `iat` lies within the proof's lifetime and the clocks' skew, or the nonce vouches for
/// it. Where it may, a nonce that does not hold is the whole fault: a client without a clock cannot
/// mend another.
fn freshness(
    claims: &Claims<'_>,
    nonce: Result<Option<FreshNonce>, Denial>,
    expected: &Expected<'_>,
) -> Result<(), Denial> {
    let (rules, now) = (expected.rules, expected.now);
    if rules.nonce_replaces_iat && nonce != Ok(None) {
        return Ok(());
    }
    if claims.issued > now.plus(rules.clock_skew) {
        return Err(Denial::ProofFuture);
    }
    if claims.issued < now.minus(rules.proof_lifetime).minus(rules.clock_skew) {
        return Err(Denial::ProofStale);
    }
    Ok(())
}

/// A proof without a nonce of this memory must be younger than the memory: one that an earlier memory
/// admitted is remembered nowhere.
fn younger_than_memory(
    claims: &Claims<'_>,
    nonce: Option<FreshNonce>,
    expected: &Expected<'_>,
) -> Result<(), Denial> {
    if nonce.is_none() && claims.issued <= expected.reign.since {
        return Err(Denial::ProofBeforeStart);
    }
    Ok(())
}

/// Check 12a: `ath` is the hash of the token.
fn token_hash(claims: &Claims<'_>, expected: &Expected<'_>) -> Result<(), Denial> {
    let Some(token_hash) = expected.token_hash else { return Ok(()) };
    match claims.ath.and_then(Sha256::from_base64url) {
        Some(ath) if ath.same(&token_hash) => Ok(()),
        Some(_) | None => Err(Denial::ProofTokenHash),
    }
}
