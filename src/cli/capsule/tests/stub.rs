//! An edge that does as it is told.
#![expect(clippy::disallowed_methods, reason = "a server runs beside the test")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;

use super::forge::{Forge, SECRET, Spec};
use crate::cli::site::now;
use crate::policy::digest::Sha256;
use crate::policy::jose::{Algorithm, CompactJws, PublicKey};

/// What to answer to one request for a capsule.
#[derive(Clone)]
pub(crate) enum Act {
    /// A capsule, sealed where that is asked for.
    Grant,
    /// One with another key.
    Key([u8; 32]),
    /// One that is never sealed.
    Plain,
    /// One that was spoilt.
    Spoil(fn(&mut Value)),
    /// Spoilt before it was signed.
    Forge(fn(&mut Spec)),
    /// A challenge, unless the proof has this nonce: then a capsule.
    Nonce(&'static str),
    /// A challenge, whatever the proof has.
    Challenge(&'static str),
    /// A status, a `Retry-After` and a reason.
    Refuse(u16, Option<&'static str>, &'static str),
    /// A refusal of another time.
    Dated(&'static str),
    /// Nothing.
    Hang,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) headers: HeaderMap,
    /// The claims of its proof.
    pub(crate) claims: Option<Value>,
    pub(crate) body: Value,
}

pub(crate) struct Edge {
    pub(crate) forge: Forge,
    pub(crate) address: SocketAddr,
    /// Seconds that a capsule is good.
    lifetime: i64,
    script: Mutex<VecDeque<Act>>,
    seen: Mutex<Vec<Seen>>,
}

impl Edge {
    /// Answers by `script`, and then with capsules.
    pub(crate) async fn start(lifetime: i64, script: &[Act]) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let edge = Arc::new(Self {
            forge: Forge::new(Algorithm::EdDsa),
            address: listener.local_addr().unwrap(),
            lifetime,
            script: Mutex::new(script.iter().cloned().collect()),
            seen: Mutex::default(),
        });
        let jwks = |State(edge): State<Arc<Self>>| async move { edge.forge.jwks().to_string() };
        let router = Router::new()
            .route("/.well-known/holdfast/capsule-jwks.json", any(jwks))
            .fallback(answer)
            .with_state(edge.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        edge
    }

    /// The requests to this path.
    pub(crate) fn seen(&self, path: &str) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.path.contains(path)).cloned().collect()
    }

    /// Waits until there are as many.
    pub(crate) async fn until_seen(&self, path: &str, count: usize) {
        while self.seen(path).len() < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn answer(
    State(edge): State<Arc<Edge>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let claims = headers.get("dpop").map(|proof| {
        let claims = proved(proof.to_str().unwrap());
        assert_eq!(claims["htm"], method.as_str());
        assert_eq!(claims["htu"], format!("http://{}{}", edge.address, uri.path()));
        assert_eq!(claims["ath"], Sha256::of(SECRET.as_bytes()).to_string());
        claims
    });
    let scheme = if claims.is_some() { "DPoP" } else { "Bearer" };
    assert_eq!(headers["authorization"], format!("{scheme} {SECRET}"));
    let seen = Seen {
        path: uri.path().to_owned(),
        query: uri.query().map(str::to_owned),
        headers,
        claims,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    edge.seen.lock().unwrap().push(seen.clone());
    if uri.path() == "/api/runtime/telemetry/node-1" {
        return StatusCode::NO_CONTENT.into_response();
    }
    assert_eq!((uri.path(), method), ("/api/runtime/capsule/node-1", Method::GET));
    let act = edge.script.lock().unwrap().pop_front().unwrap_or(Act::Grant);
    if matches!(act, Act::Hang) {
        std::future::pending::<()>().await;
    }
    act.answer(&edge, &seen)
}

/// The claims of a proof whose signature holds.
fn proved(proof: &str) -> Value {
    let jws = CompactJws::parse(proof).unwrap();
    let jwk = jws.header.get("jwk").unwrap().as_object().unwrap();
    assert!(jws.verified_by(&PublicKey::from_jwk(jwk).unwrap(), jws.algorithm().unwrap()));
    serde_json::to_value(&jws.payload).unwrap()
}

impl Act {
    fn answer(&self, edge: &Edge, seen: &Seen) -> Response {
        let mut spoil_spec: fn(&mut Spec) = |_| {};
        let mut spoil: fn(&mut Value) = |_| {};
        let mut seal = sealing(seen);
        let mut key = None;
        match self {
            Self::Refuse(status, after, reason) => {
                let status = StatusCode::from_u16(*status).unwrap();
                let body = json!({"denied": true, "reason": reason, "decisionId": "d1"});
                let mut answer = (status, body.to_string()).into_response();
                if let Some(after) = after {
                    answer.headers_mut().insert("retry-after", after.parse().unwrap());
                }
                return answer;
            }
            Self::Nonce(nonce) if seen.claims.as_ref().unwrap()["nonce"] != *nonce => {
                return challenge(nonce);
            }
            Self::Challenge(nonce) => return challenge(nonce),
            Self::Key(other) => key = Some(other.to_vec()),
            Self::Spoil(after) => spoil = *after,
            Self::Forge(before) => spoil_spec = *before,
            Self::Plain => seal = None,
            Self::Dated(date) => {
                let headers = [("date", *date)];
                return (StatusCode::UNAUTHORIZED, headers, "{}").into_response();
            }
            Self::Grant | Self::Nonce(_) | Self::Hang => {}
        }
        let now = now().secs();
        let mut spec = edge.forge.spec(now);
        spec.claims["exp"] = (now + edge.lifetime).into();
        if let Some(key) = key {
            spec.claims["keyHash"] = json!(crate::policy::capsule::envelope::key_hash(&key));
            spec.key = key;
        }
        if let Some(jwk) = seal {
            spec = spec.sealed_to(&jwk);
        }
        spoil_spec(&mut spec);
        let mut grant = edge.forge.grant(&spec);
        spoil(&mut grant);
        ([("dpop-nonce", "from-a-grant")], grant.to_string()).into_response()
    }
}

fn challenge(nonce: &'static str) -> Response {
    let challenge = r#"DPoP algs="ES256", error="use_dpop_nonce""#;
    let body = json!({"denied": true, "reason": "PROOF_NONCE_REQUIRED"});
    let headers = [("www-authenticate", challenge), ("dpop-nonce", nonce)];
    (StatusCode::UNAUTHORIZED, headers, body.to_string()).into_response()
}

/// The key that the answer may be sealed to: in the proof, or in a field where there is no proof.
fn sealing(seen: &Seen) -> Option<Map<String, Value>> {
    let field = seen.headers.get("x-node-enc-jwk");
    match &seen.claims {
        Some(claims) => {
            assert!(field.is_none());
            claims.get("enc_jwk")?.as_object().cloned()
        }
        None => serde_json::from_slice(&URL_SAFE_NO_PAD.decode(field?).unwrap()).unwrap(),
    }
}
