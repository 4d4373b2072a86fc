//! The sample Authorization Server: `/jwks`, and `/token` for the `client_credentials` grant.
//!
//! It binds tokens natively: to the key of the request's DPoP proof (RFC 9449 section 5) and to the
//! client certificate that the edge says it saw (`Client-Cert`, RFC 9440). It authenticates nobody
//! and remembers no proof: it is there to be tried out, on loopback, behind the edge.
#![expect(clippy::disallowed_methods, reason = "a server tells the time")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use serde_json::{Map, Value, json};

use crate::cli::client::key::SigningKey;
use crate::cli::client::proof::fresh_id;
use crate::policy::certificate::SenderCertificate;
use crate::policy::digest::Jkt;
use crate::policy::jose::{CompactJws, PublicKey};
use crate::policy::json;
use crate::policy::target::{Origin, htu_matches};
use crate::policy::time::UnixTime;

/// How long a token is good.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
/// How old a proof may be, or how far ahead.
const PROOF_WINDOW: Duration = Duration::from_secs(120);
/// Bytes of a token request.
pub(super) const BODY_LIMIT: usize = 16 << 10;
/// Bytes of a client's or user's name.
const NAME_LIMIT: usize = 64;
/// Who asks when no `client_id` is given.
pub(super) const DEFAULT_CLIENT: &str = "quickstart-client";
/// Whom the tokens are for.
pub(super) const AUDIENCE: &str = "quickstart-api";

/// What the server is.
pub(super) struct Authority {
    /// Signs the tokens.
    pub(super) key: SigningKey,
    /// Where clients reach it: `iss`, and the origin of `htu`.
    pub(super) origin: Origin,
}

/// An error of RFC 6749 section 5.2.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) &'static str, pub(super) &'static str);

/// The routes.
pub(super) fn router(authority: Authority) -> Router {
    Router::new()
        .route("/jwks", get(jwks))
        .route("/token", post(token))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(Arc::new(authority))
}

async fn jwks(State(authority): State<Arc<Authority>>) -> Response {
    jwk_set(&authority.key)
}

/// The key that tokens are verified with.
pub(super) fn jwk_set(key: &SigningKey) -> Response {
    let mut jwk = key.public_jwk().clone();
    jwk.insert("kid".into(), key.thumbprint().to_string().into());
    jwk.insert("alg".into(), key.algorithm().name().into());
    jwk.insert("use".into(), "sig".into());
    answer(StatusCode::OK, &json!({ "keys": [jwk] }))
}

async fn token(
    State(authority): State<Arc<Authority>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = UnixTime::from_secs(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    match issue(&authority, &headers, &body, now) {
        Ok(granted) => answer(StatusCode::OK, &granted),
        Err(Refusal(error, why)) => {
            answer(StatusCode::BAD_REQUEST, &json!({"error": error, "error_description": why}))
        }
    }
}

fn issue(
    authority: &Authority,
    headers: &HeaderMap,
    body: &[u8],
    now: UnixTime,
) -> Result<Value, Refusal> {
    let client = client(body)?;
    let jkt = proof_key(headers, &authority.origin, now)?;
    let mut cnf = Map::new();
    if let Some(jkt) = jkt {
        cnf.insert("jkt".into(), jkt.to_string().into());
    }
    if let Some(certificate) = certificate(headers)? {
        cnf.insert("x5t#S256".into(), certificate.x5t().to_string().into());
    }
    let unavailable = |_| Refusal("invalid_request", "the token cannot be signed");
    let mut claims = json!({
        "iss": authority.origin.as_str(),
        "sub": client,
        "client_id": client,
        "aud": AUDIENCE,
        "iat": now.secs(),
        "exp": now.plus(TOKEN_LIFETIME).secs(),
        "jti": fresh_id().map_err(unavailable)?,
    });
    if let (Value::Object(claims), false) = (&mut claims, cnf.is_empty()) {
        claims.insert("cnf".into(), Value::Object(cnf));
    }
    let mut header = Map::new();
    header.insert("typ".into(), "at+jwt".into());
    header.insert("kid".into(), authority.key.thumbprint().to_string().into());
    Ok(json!({
        "access_token": authority.key.sign(&header, &claims).map_err(unavailable)?,
        "token_type": if jkt.is_some() { "DPoP" } else { "Bearer" },
        "expires_in": TOKEN_LIFETIME.as_secs(),
    }))
}

/// The `client_id` of a `client_credentials` request.
fn client(body: &[u8]) -> Result<String, Refusal> {
    let form = std::str::from_utf8(body)
        .ok()
        .and_then(|body| Url::parse(&format!("form:?{body}")).ok())
        .ok_or(Refusal("invalid_request", "the body is no form"))?;
    let field = |name: &str| {
        form.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    };
    if field("grant_type").as_deref() != Some("client_credentials") {
        return Err(Refusal("unsupported_grant_type", "client_credentials is expected"));
    }
    let client = field("client_id").unwrap_or_else(|| DEFAULT_CLIENT.to_owned());
    if !is_name(&client) {
        return Err(Refusal("invalid_request", "the client_id is none"));
    }
    Ok(client)
}

/// Whether a client or a user may be called so.
pub(super) fn is_name(name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic());
    !name.is_empty() && name.len() <= NAME_LIMIT && plain
}

/// The key of the request's proof, checked as RFC 9449 section 5 asks; `None` without a proof.
fn proof_key(headers: &HeaderMap, origin: &Origin, now: UnixTime) -> Result<Option<Jkt>, Refusal> {
    let mut fields = headers.get_all("dpop").iter();
    let Some(field) = fields.next() else { return Ok(None) };
    let mut read = || {
        if fields.next().is_some() {
            return None;
        }
        let proof = CompactJws::parse(field.to_str().ok()?)?;
        let text = |object, name| json::string(object, name).ok().flatten();
        let algorithm = proof.algorithm()?;
        let key = PublicKey::from_jwk(proof.header.get("jwk")?.as_object()?).ok()?;
        let issued = json::numeric_date(&proof.payload, "iat").ok()??;
        let holds = text(&proof.header, "typ") == Some("dpop+jwt")
            && !proof.header.contains_key("crit")
            && text(&proof.payload, "jti").is_some_and(|jti| !jti.is_empty())
            && text(&proof.payload, "htm") == Some("POST")
            && htu_matches(text(&proof.payload, "htu")?, origin, "/token")
            && issued.millis_since(now).unsigned_abs() <= PROOF_WINDOW.as_millis() as u64
            && proof.verified_by(&key, algorithm);
        holds.then(|| key.jkt())
    };
    read().map(Some).ok_or(Refusal("invalid_dpop_proof", "the proof does not hold"))
}

/// The certificate that the edge passes on. It lets no client's own `Client-Cert` through.
fn certificate(headers: &HeaderMap) -> Result<Option<SenderCertificate>, Refusal> {
    let Some(field) = headers.get("client-cert") else { return Ok(None) };
    let read = |field: &HeaderValue| {
        let base64 = field.to_str().ok()?.strip_prefix(':')?.strip_suffix(':')?;
        SenderCertificate::new(STANDARD.decode(base64).ok()?)
    };
    read(field).map(Some).ok_or(Refusal("invalid_request", "Client-Cert cannot be read"))
}

/// A JSON answer that nobody stores.
pub(super) fn answer(status: StatusCode, body: &Value) -> Response {
    let headers = [("content-type", "application/json"), ("cache-control", "no-store")];
    (status, headers, format!("{body}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client::proof::{Proof, Statement};
    use crate::policy::digest::Sha256;
    use crate::policy::jose::Algorithm;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn authority() -> Authority {
        Authority {
            key: SigningKey::generate(Algorithm::Es256).unwrap(),
            origin: Origin::parse("https://localhost:8443").unwrap(),
        }
    }

    fn asked(authority: &Authority, headers: &HeaderMap, body: &str) -> Result<Value, String> {
        let granted = issue(authority, headers, body.as_bytes(), NOW)
            .map_err(|Refusal(error, _)| error.to_owned())?;
        let token = granted.get("access_token").and_then(Value::as_str).unwrap();
        let jws = CompactJws::parse(token).unwrap();
        let key = PublicKey::from_jwk(&json::Object::from(authority.key.public_jwk())).unwrap();
        assert!(jws.verified_by(&key, Algorithm::Es256));
        assert_eq!(json::string(&jws.header, "typ"), Ok(Some("at+jwt")));
        Ok(json!([granted.get("token_type"), jws.payload.get("sub"), jws.payload.get("cnf")]))
    }

    const FORM: &str = "grant_type=client_credentials";

    #[test]
    fn binds_to_what_is_shown() {
        let authority = authority();
        let mut headers = HeaderMap::new();
        let plain = asked(&authority, &headers, FORM).unwrap();
        assert_eq!(plain, json!(["Bearer", DEFAULT_CLIENT, null]));

        let (key, proof) = proof("https://localhost:8443/token", NOW);
        headers.insert("dpop", proof.parse().unwrap());
        let jkt = key.thumbprint().to_string();
        let bound = asked(&authority, &headers, &format!("{FORM}&client_id=a%2Bb")).unwrap();
        assert_eq!(bound, json!(["DPoP", "a+b", {"jkt": jkt}]));

        let certificate = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap().cert;
        let field = format!(":{}:", STANDARD.encode(certificate.der()));
        headers.insert("client-cert", field.parse().unwrap());
        let x5t = Sha256::of(certificate.der()).to_string();
        let both = asked(&authority, &headers, FORM).unwrap();
        assert_eq!(both, json!(["DPoP", DEFAULT_CLIENT, {"jkt": jkt, "x5t#S256": x5t}]));
    }

    fn proof(target: &str, issued: UnixTime) -> (SigningKey, String) {
        let key = SigningKey::generate(Algorithm::Es256).unwrap();
        let statement = Statement {
            method: "POST",
            target,
            issued,
            id: fresh_id().unwrap(),
            token: None,
            nonce: None,
        };
        let proof = Proof::sign(&key, &statement).unwrap().compact;
        (key, proof)
    }

    #[test]
    fn what_does_not_hold_is_refused() {
        let authority = authority();
        let check = |proofs: &[String], certificate: &str, body: &str, expect: &str| {
            let mut headers = HeaderMap::new();
            for proof in proofs {
                headers.append("dpop", proof.parse().unwrap());
            }
            if !certificate.is_empty() {
                headers.insert("client-cert", certificate.parse().unwrap());
            }
            assert_eq!(asked(&authority, &headers, body).unwrap_err(), expect);
        };
        let target = "https://localhost:8443/token";
        let good = proof(target, NOW).1;
        let late = NOW.minus(PROOF_WINDOW).minus(Duration::from_secs(1));
        check(&[], "", "", "unsupported_grant_type");
        check(&[], "", "grant_type=password", "unsupported_grant_type");
        check(&[], "", &format!("{FORM}&client_id="), "invalid_request");
        check(&[], "", &format!("{FORM}&client_id=a%0Ab"), "invalid_request");
        check(&["x".into()], "", FORM, "invalid_dpop_proof");
        check(&[good.clone(), good.clone()], "", FORM, "invalid_dpop_proof");
        check(&[proof(target, late).1], "", FORM, "invalid_dpop_proof");
        check(&[proof("https://other/token", NOW).1], "", FORM, "invalid_dpop_proof");
        check(&[good.replace('.', ".e30.")], "", FORM, "invalid_dpop_proof");
        check(&[], ":AAAA:", FORM, "invalid_request");
        check(&[], "AAAA", FORM, "invalid_request");
    }
}
