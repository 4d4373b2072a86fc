//! A sample Authorization Server from before DPoP: Bearer tokens for a password, refresh tokens that are
//! used once (RFC 6749), introspection (RFC 7662), revocation (RFC 7009) and metadata (RFC 8414).
//!
//! It looks at no proof and no certificate: that its tokens are bound all the same is the edge's doing.
//! It authenticates nobody and takes every password: it is there to be tried out, on loopback.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde_json::{Map, Value, json};

use super::authority::{AUDIENCE, BODY_LIMIT, Refusal, answer, is_name, jwk_set};
use crate::cli::client::key::SigningKey;
use crate::cli::client::proof::fresh_id;
use crate::cli::site::now;
use crate::policy::form::Form;
use crate::policy::time::UnixTime;

/// What it is called: its issuer's path, and that of its endpoints.
pub(super) const PATH: &str = "/legacy";
/// How long an access token is good.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
/// Tokens that it remembers of each kind; with one more it forgets them all.
const REMEMBERED: usize = 4096;
/// The longest ago that a log-in may have been.
const LONGEST_AGO: Duration = Duration::from_secs(30 * 24 * 3600);

/// What the server is.
pub(super) struct Legacy {
    key: SigningKey,
    /// `iss`, and what its endpoints' URLs begin with.
    issuer: String,
    held: Mutex<Held>,
}

/// The tokens that are good.
#[derive(Default)]
struct Held {
    access: HashMap<String, (Login, UnixTime)>,
    refresh: HashMap<String, Login>,
}

/// Who logged in, when, and for which client.
#[derive(Clone)]
struct Login {
    client: String,
    user: String,
    at: UnixTime,
}

impl Legacy {
    /// A server that clients reach at `origin`.
    pub(super) fn new(key: SigningKey, origin: &str) -> Self {
        Self { key, issuer: format!("{origin}{PATH}"), held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The routes.
pub(super) fn router(legacy: Legacy) -> Router {
    Router::new()
        .route("/jwks", get(jwks))
        .route("/legacy/token", post(token))
        .route("/legacy/introspect", post(introspect))
        .route("/legacy/revoke", post(revoke))
        .route("/.well-known/oauth-authorization-server/legacy", get(metadata))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(Arc::new(legacy))
}

async fn jwks(State(legacy): State<Arc<Legacy>>) -> Response {
    jwk_set(&legacy.key)
}

async fn token(State(legacy): State<Arc<Legacy>>, body: Bytes) -> Response {
    told(form(&body).and_then(|form| issue(&legacy, &form, now())))
}

async fn introspect(State(legacy): State<Arc<Legacy>>, body: Bytes) -> Response {
    told(form(&body).map(|form| active(&legacy, &form, now())))
}

async fn revoke(State(legacy): State<Arc<Legacy>>, body: Bytes) -> Response {
    match form(&body) {
        Ok(form) => {
            let mut held = legacy.held();
            let token = form.get("token").unwrap_or_default();
            held.access.remove(token);
            held.refresh.remove(token);
            StatusCode::OK.into_response()
        }
        Err(refusal) => told(Err(refusal)),
    }
}

async fn metadata(State(legacy): State<Arc<Legacy>>) -> Response {
    let issuer = &legacy.issuer;
    let body = json!({
        "issuer": issuer,
        "token_endpoint": format!("{issuer}/token"),
        "introspection_endpoint": format!("{issuer}/introspect"),
        "revocation_endpoint": format!("{issuer}/revoke"),
        "grant_types_supported": ["password", "refresh_token"],
        "response_types_supported": [],
        "token_endpoint_auth_methods_supported": ["none"],
    });
    answer(StatusCode::OK, &body)
}

fn told(outcome: Result<Value, Refusal>) -> Response {
    match outcome {
        Ok(body) => answer(StatusCode::OK, &body),
        Err(Refusal(error, why)) => {
            answer(StatusCode::BAD_REQUEST, &json!({"error": error, "error_description": why}))
        }
    }
}

fn form(body: &[u8]) -> Result<Form, Refusal> {
    let form = Form::parse(Some("application/x-www-form-urlencoded"), body);
    form.map_err(|_| Refusal("invalid_request", "the body is no form"))
}

fn issue(legacy: &Legacy, form: &Form, now: UnixTime) -> Result<Value, Refusal> {
    let client = form.get("client_id").filter(|client| is_name(client));
    let client = client.ok_or(Refusal("invalid_client", "a client_id is expected"))?;
    let login = match form.get("grant_type") {
        Some("password") => log_in(form, client, now)?,
        Some("refresh_token") => {
            let token = form.get("refresh_token").unwrap_or_default();
            let login = legacy.held().refresh.remove(token);
            let login = login.filter(|login| login.client == client);
            login.ok_or(Refusal("invalid_grant", "the refresh token is none, or was used"))?
        }
        Some(_) | None => {
            return Err(Refusal("unsupported_grant_type", "password or refresh_token is expected"));
        }
    };
    let unavailable = |_| Refusal("invalid_request", "the token cannot be signed");
    let expires = now.plus(TOKEN_LIFETIME);
    let claims = json!({
        "iss": legacy.issuer,
        "sub": login.user,
        "client_id": login.client,
        "aud": AUDIENCE,
        "iat": now.secs(),
        "exp": expires.secs(),
        "auth_time": login.at.secs(),
        "jti": fresh_id().map_err(unavailable)?,
    });
    let mut header = Map::new();
    header.insert("typ".into(), "at+jwt".into());
    header.insert("kid".into(), legacy.key.thumbprint().to_string().into());
    let access = legacy.key.sign(&header, &claims).map_err(unavailable)?;
    let refresh = fresh_id().map_err(unavailable)?;
    let mut held = legacy.held();
    if held.access.len().max(held.refresh.len()) >= REMEMBERED {
        *held = Held::default();
    }
    held.access.insert(access.clone(), (login.clone(), expires));
    held.refresh.insert(refresh.clone(), login);
    Ok(json!({
        "access_token": access,
        "token_type": "Bearer",
        "expires_in": TOKEN_LIFETIME.as_secs(),
        "refresh_token": refresh,
    }))
}

/// A log-in by any password. `logged_in_ago`, in seconds, is this sample's own: for a session that began
/// a while ago, which otherwise takes that while to try.
fn log_in(form: &Form, client: &str, now: UnixTime) -> Result<Login, Refusal> {
    let user = form.get("username").filter(|user| is_name(user));
    let user = user.ok_or(Refusal("invalid_grant", "a username is expected"))?;
    let ago = form.get("logged_in_ago").map_or(Some(0), |ago| ago.parse().ok());
    let ago = ago.map(Duration::from_secs).filter(|ago| *ago <= LONGEST_AGO);
    let ago = ago.ok_or(Refusal("invalid_request", "logged_in_ago is no number of seconds"))?;
    Ok(Login { client: client.to_owned(), user: user.to_owned(), at: now.minus(ago) })
}

fn active(legacy: &Legacy, form: &Form, now: UnixTime) -> Value {
    let token = form.get("token").unwrap_or_default();
    let held = legacy.held();
    match held.access.get(token) {
        Some((login, expires)) if now < *expires => json!({
            "active": true,
            "iss": legacy.issuer,
            "sub": login.user,
            "client_id": login.client,
            "aud": AUDIENCE,
            "exp": expires.secs(),
            "token_type": "Bearer",
        }),
        Some(_) | None => json!({ "active": false }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::jose::Algorithm;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
    const LOGIN: &str = "grant_type=password&client_id=c&username=alice&password=x";

    fn legacy() -> Legacy {
        let key = SigningKey::generate(Algorithm::Es256).unwrap();
        Legacy::new(key, "https://localhost:8443")
    }

    fn ask(legacy: &Legacy, body: &str) -> Result<Value, &'static str> {
        let issued = form(body.as_bytes()).and_then(|form| issue(legacy, &form, NOW));
        issued.map_err(|Refusal(error, _)| error)
    }

    fn text(value: &Value, name: &str) -> String {
        value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    #[test]
    fn a_refresh_token_is_good_once_and_for_its_client() {
        let legacy = legacy();
        let refresh = |client: &str, token: &str| {
            let grant = format!("grant_type=refresh_token&client_id={client}");
            ask(&legacy, &format!("{grant}&refresh_token={token}"))
        };
        let first = text(&ask(&legacy, LOGIN).unwrap(), "refresh_token");
        let second = text(&refresh("c", &first).unwrap(), "refresh_token");
        assert_eq!(refresh("c", &first), Err("invalid_grant"));
        assert_eq!(refresh("another", &second), Err("invalid_grant"));
    }

    #[test]
    fn what_is_good_is_active_until_it_ends() {
        let legacy = legacy();
        let token = text(&ask(&legacy, LOGIN).unwrap(), "access_token");
        let told = |now| active(&legacy, &form(format!("token={token}").as_bytes()).unwrap(), now);
        assert_eq!(
            (text(&told(NOW), "sub"), text(&told(NOW), "token_type")),
            ("alice".into(), "Bearer".into())
        );
        assert_eq!(told(NOW.plus(TOKEN_LIFETIME)), json!({"active": false}));
        legacy.held().access.clear();
        assert_eq!(told(NOW), json!({"active": false}));
    }

    #[test]
    fn what_it_does_not_take_is_an_error_and_it_does_not_grow_without_end() {
        let legacy = legacy();
        for (body, expect) in [
            ("", "invalid_client"),
            ("client_id=c", "unsupported_grant_type"),
            ("client_id=c&client_id=c", "invalid_request"),
            ("client_id=c&grant_type=password", "invalid_grant"),
            ("client_id=c&grant_type=refresh_token", "invalid_grant"),
        ] {
            assert_eq!(ask(&legacy, body), Err(expect), "{body}");
        }
        for ago in ["x", "-1", "99999999999"] {
            assert_eq!(
                ask(&legacy, &format!("{LOGIN}&logged_in_ago={ago}")),
                Err("invalid_request")
            );
        }
        let login = Login { client: "c".into(), user: "u".into(), at: NOW };
        let many = (0..REMEMBERED).map(|number| (number.to_string(), login.clone()));
        legacy.held().refresh.extend(many);
        assert!(ask(&legacy, LOGIN).is_ok());
        assert_eq!(legacy.held().refresh.len(), 1);
    }
}
