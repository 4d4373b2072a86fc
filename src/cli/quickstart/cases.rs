//! The cases: what is sent through the edge, what must come of it, and what does.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use reqwest::Url;
use serde_json::Value;

use super::authority::DEFAULT_CLIENT;
use super::records::Reasons;
use super::settings::Addresses;
use super::table::Row;
use super::{QuickstartError, now};
use crate::cli::client::challenge::error_code;
use crate::cli::client::http::{Client, HttpError};
use crate::cli::client::key::{KeyError, SigningKey};
use crate::cli::client::proof::{Proof, Statement, fresh_id};
use crate::cli::client::trace;

/// Bytes of an answer's body.
const BODY_LIMIT: usize = 64 << 10;

/// Who sends.
pub(super) struct Senders {
    /// The edge.
    pub(super) origin: String,
    /// Where the servers behind it listen.
    pub(super) addresses: Addresses,
    /// The key that tokens are bound to.
    pub(super) key: SigningKey,
    /// Another one.
    pub(super) other_key: SigningKey,
    /// Shows no certificate.
    pub(super) plain: Client,
    /// Shows the certificate that tokens are bound to.
    pub(super) certified: Client,
    /// Shows another one, of the same authority.
    pub(super) other: Client,
    /// The edge's reasons.
    pub(super) reasons: Reasons,
}

/// What must come of a case.
#[derive(Clone, Copy)]
enum Expected {
    /// 200, and the API sees this `X-Holdfast-Result` and the token's subject, once and unforged.
    Admitted(&'static str),
    /// 401 with this error, for this reason.
    Refused(&'static str, &'static str),
}

/// One request. The token's scheme is `DPoP` unless said.
#[derive(Default)]
struct Sent<'a> {
    path: &'a str,
    bearer: bool,
    token: Option<&'a str>,
    proof: Option<&'a str>,
    forged: &'a [(HeaderName, HeaderValue)],
}

/// An answer, read.
pub(super) struct Got {
    pub(super) status: StatusCode,
    pub(super) error: Option<String>,
    pub(super) nonce: Option<String>,
    pub(super) decision: Option<String>,
    pub(super) body: Value,
}

/// What whoever asks for a token shows.
struct Shown {
    key: bool,
    certificate: bool,
}

/// The tokens, by what they are bound to.
struct Tokens {
    key: String,
    certificate: String,
    both: String,
    nothing: String,
}

/// Sends every case and gives a row for each.
pub(super) async fn run(senders: &Senders) -> Result<Vec<Row>, QuickstartError> {
    let fetch = |key, certificate| senders.fetch_token(Shown { key, certificate });
    let tokens = Tokens {
        key: fetch(true, false).await?,
        certificate: fetch(false, true).await?,
        both: fetch(true, true).await?,
        nothing: fetch(false, false).await?,
    };
    let mut rows = Vec::new();
    key_cases(senders, &tokens, &mut rows).await?;
    certificate_cases(senders, &tokens, &mut rows).await?;
    both_cases(senders, &tokens, &mut rows).await?;
    forged_case(senders, &tokens, &mut rows).await?;
    Ok(rows)
}

/// A proof for `GET path`, by the key that the tokens are bound to.
struct Told<'a> {
    path: &'a str,
    token: &'a str,
    nonce: Option<&'a str>,
}

async fn key_cases(
    senders: &Senders,
    tokens: &Tokens,
    rows: &mut Vec<Row>,
) -> Result<(), QuickstartError> {
    let (path, token) = ("/dpop/orders", tokens.key.as_str());
    let nonce = senders.nonce(path, token).await?;
    let nonce = Some(nonce.as_str());
    let right = Told { path, token, nonce };
    let good = senders.prove(&senders.key, &right)?;
    let sent = Sent { path, token: Some(token), ..Sent::default() };
    let with = |proof| Sent { path, token: Some(token), proof: Some(proof), ..Sent::default() };
    let plain = &senders.plain;

    let mut case = Cases { senders, rows };
    case.add("good DPoP", plain, with(&good), Expected::Admitted("dpop")).await?;
    let refused = Expected::Refused("unauthorized", "token_missing");
    case.add("no token", plain, Sent { path, ..Sent::default() }, refused).await?;
    let refused = Expected::Refused("use_dpop_nonce", "proof_missing");
    case.add("no proof", plain, sent, refused).await?;
    let bare = senders.prove(&senders.key, &Told { path, token, nonce: None })?;
    let refused = Expected::Refused("use_dpop_nonce", "nonce_absent");
    let challenged = case.add("no nonce", plain, with(&bare), refused).await?;
    let told = Told { path, token, nonce: challenged.nonce.as_deref() };
    let retried = senders.prove(&senders.key, &told)?;
    let admitted = Expected::Admitted("dpop");
    case.add("  then with the nonce", plain, with(&retried), admitted).await?;
    let refused = Expected::Refused("invalid_dpop_proof", "proof_replayed");
    case.add("replay of the good proof", plain, with(&good), refused).await?;
    let other = senders.prove(&senders.other_key, &right)?;
    let refused = Expected::Refused("invalid_token", "key_mismatch");
    case.add("other key", plain, with(&other), refused).await?;
    let elsewhere = senders.prove(&senders.key, &Told { path: "/dpop/invoices", token, nonce })?;
    let refused = Expected::Refused("invalid_dpop_proof", "proof_htu");
    case.add("wrong htu", plain, with(&elsewhere), refused).await?;
    let bearer = Sent { path, bearer: true, token: Some(token), ..Sent::default() };
    let refused = Expected::Refused("invalid_token", "bound_token_as_bearer");
    case.add("key-bound token as Bearer", plain, bearer, refused).await?;
    let token = Some(tokens.nothing.as_str());
    let unbound = Sent { path: "/any/orders", bearer: true, token, ..Sent::default() };
    let refused = Expected::Refused("invalid_token", "binding_too_weak");
    case.add("token bound to nothing", plain, unbound, refused).await?;
    Ok(())
}

async fn certificate_cases(
    senders: &Senders,
    tokens: &Tokens,
    rows: &mut Vec<Row>,
) -> Result<(), QuickstartError> {
    let token = Some(tokens.certificate.as_str());
    let sent = || Sent { path: "/mtls/orders", bearer: true, token, ..Sent::default() };
    let mut case = Cases { senders, rows };
    case.add("good mTLS", &senders.certified, sent(), Expected::Admitted("mtls")).await?;
    let refused = Expected::Refused("invalid_token", "thumbprint-mismatch");
    case.add("other certificate", &senders.other, sent(), refused).await?;
    let refused = Expected::Refused("invalid_token", "missing-certificate");
    case.add("no certificate", &senders.plain, sent(), refused).await?;
    Ok(())
}

async fn both_cases(
    senders: &Senders,
    tokens: &Tokens,
    rows: &mut Vec<Row>,
) -> Result<(), QuickstartError> {
    let (path, token) = ("/both/orders", tokens.both.as_str());
    let nonce = senders.nonce(path, token).await?;
    let told = Told { path, token, nonce: Some(&nonce) };
    let (first, second) =
        (senders.prove(&senders.key, &told)?, senders.prove(&senders.key, &told)?);
    let with = |proof| Sent { path, token: Some(token), proof: Some(proof), ..Sent::default() };
    let mut case = Cases { senders, rows };
    let admitted = Expected::Admitted("dpop+mtls");
    case.add("bound to both, both shown", &senders.certified, with(&first), admitted).await?;
    let refused = Expected::Refused("invalid_token", "missing-certificate");
    case.add("bound to both, only the key", &senders.plain, with(&second), refused).await?;
    let bearer = Sent { path, bearer: true, token: Some(token), ..Sent::default() };
    let refused = Expected::Refused("invalid_token", "bound_token_as_bearer");
    let name = "bound to both, only the certificate";
    case.add(name, &senders.certified, bearer, refused).await?;
    Ok(())
}

async fn forged_case(
    senders: &Senders,
    tokens: &Tokens,
    rows: &mut Vec<Row>,
) -> Result<(), QuickstartError> {
    let (path, token) = ("/dpop/orders", tokens.key.as_str());
    let nonce = senders.nonce(path, token).await?;
    let proof = senders.prove(&senders.key, &Told { path, token, nonce: Some(&nonce) })?;
    let forged = [
        ("x-holdfast-subject", "administrator"),
        ("x_holdfast_subject", "administrator"),
        ("x-holdfast-result", "mtls"),
        ("client-cert", ":AAAA:"),
    ]
    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let sent =
        Sent { path, token: Some(token), proof: Some(&proof), forged: &forged, bearer: false };
    let admitted = Expected::Admitted("dpop");
    let mut case = Cases { senders, rows };
    case.add("forged X-Holdfast-Subject", &senders.plain, sent, admitted).await?;
    Ok(())
}

/// Where rows are added.
struct Cases<'a> {
    senders: &'a Senders,
    rows: &'a mut Vec<Row>,
}

impl Cases<'_> {
    async fn add(
        &mut self,
        case: &'static str,
        client: &Client,
        sent: Sent<'_>,
        expected: Expected,
    ) -> Result<Got, QuickstartError> {
        let got = self.senders.send(client, &sent).await?;
        let reason = match &got.decision {
            Some(decision) if got.error.is_some() => self.senders.reasons.of(decision).await,
            Some(_) | None => None,
        };
        self.rows.push(judge(case, expected, &got, reason.as_deref()));
        Ok(got)
    }
}

/// The row of a case. Where the edge's record did not arrive in time, the answer alone counts.
fn judge(case: &'static str, expected: Expected, got: &Got, reason: Option<&str>) -> Row {
    let status = got.status.as_u16();
    let seen = match (&got.error, got.identity("x-holdfast-subject")) {
        (Some(error), _) => format!("{status} {error}"),
        (None, Some(subject)) => {
            let result = got.identity("x-holdfast-result").unwrap_or_default();
            format!("{status} {result}, {subject}")
        }
        (None, None) => status.to_string(),
    };
    let (wanted, wanted_reason, pure) = match expected {
        Expected::Admitted(result) => {
            (format!("200 {result}, {DEFAULT_CLIENT}"), "", got.only_true_identity())
        }
        Expected::Refused(error, reason) => (format!("401 {error}"), reason, true),
    };
    let ok = seen == wanted && pure && reason.is_none_or(|reason| reason == wanted_reason);
    let unknown = if got.error.is_some() { "(no record)" } else { "" };
    let reason = reason.unwrap_or(unknown).to_owned();
    let got = if pure { seen } else { format!("{seen}, and a forged field") };
    Row { case, expected: wanted, got, reason, ok }
}

impl Got {
    /// An identity field as the API saw it.
    pub(super) fn identity(&self, name: &str) -> Option<&str> {
        self.body.get("identity")?.get(name)?.as_str()
    }

    /// Whether every identity field that the API saw is the edge's.
    fn only_true_identity(&self) -> bool {
        let identity = self.body.get("identity").and_then(Value::as_object);
        identity.is_some_and(|fields| fields.keys().all(|name| name.starts_with("x-holdfast-")))
    }
}

impl Senders {
    /// A token from the sample Authorization Server, bound to what is shown: through the edge, or past
    /// it where nothing is, as the edge lets no such token be issued.
    async fn fetch_token(&self, shown: Shown) -> Result<String, QuickstartError> {
        let mut got = self.ask_for_token(&shown, None).await?;
        if let (Some("use_dpop_nonce"), Some(nonce)) = (got.error.as_deref(), &got.nonce) {
            got = self.ask_for_token(&shown, Some(nonce)).await?;
        }
        let token = got.body.get("access_token").and_then(Value::as_str);
        token.map(str::to_owned).ok_or_else(|| {
            let error = got.error.unwrap_or_default();
            QuickstartError::NoToken(format!("{} {error}", got.status))
        })
    }

    async fn ask_for_token(
        &self,
        shown: &Shown,
        nonce: Option<&str>,
    ) -> Result<Got, QuickstartError> {
        let mut headers = form_headers();
        if shown.key {
            let proof = self.statement("POST", "/token", None, nonce, &self.key)?;
            headers.insert("dpop", field(&proof)?);
        }
        let body = Bytes::from_static(b"grant_type=client_credentials");
        let target = if shown.key || shown.certificate {
            format!("{}/token", self.origin)
        } else {
            format!("http://{}/token", self.addresses.authority)
        };
        let client = if shown.certificate { &self.certified } else { &self.plain };
        self.ask(client, (Method::POST, target, headers, body)).await
    }

    /// A nonce, from the challenge to a proof without one.
    async fn nonce(&self, path: &str, token: &str) -> Result<String, QuickstartError> {
        let proof = self.prove(&self.key, &Told { path, token, nonce: None })?;
        let sent = Sent { path, token: Some(token), proof: Some(&proof), ..Sent::default() };
        let got = self.send(&self.plain, &sent).await?;
        got.nonce.ok_or_else(|| QuickstartError::NoNonce(got.status.to_string()))
    }

    fn prove(&self, key: &SigningKey, told: &Told<'_>) -> Result<String, KeyError> {
        self.statement("GET", told.path, Some(told.token), told.nonce, key)
    }

    /// A proof for any request.
    pub(super) fn statement(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        nonce: Option<&str>,
        key: &SigningKey,
    ) -> Result<String, KeyError> {
        let target = format!("{}{path}", self.origin);
        let id = fresh_id()?;
        let statement = Statement { method, target: &target, issued: now(), id, token, nonce };
        Ok(Proof::sign(key, &statement)?.compact)
    }

    async fn send(&self, client: &Client, sent: &Sent<'_>) -> Result<Got, QuickstartError> {
        let mut headers = HeaderMap::new();
        if let Some(token) = sent.token {
            let scheme = if sent.bearer { "Bearer" } else { "DPoP" };
            headers.insert(http::header::AUTHORIZATION, field(&format!("{scheme} {token}"))?);
        }
        if let Some(proof) = sent.proof {
            headers.insert("dpop", field(proof)?);
        }
        for (name, value) in sent.forged {
            headers.append(name.clone(), value.clone());
        }
        self.exchange(client, Method::GET, sent.path, headers, Bytes::new()).await
    }

    /// Sends to the edge, and reads the answer.
    pub(super) async fn exchange(
        &self,
        client: &Client,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Got, QuickstartError> {
        let target = format!("{}{path}", self.origin);
        self.ask(client, (method, target, headers, body)).await
    }

    /// Sends, and reads the answer.
    pub(super) async fn ask(
        &self,
        client: &Client,
        (method, target, headers, body): (Method, String, HeaderMap, Bytes),
    ) -> Result<Got, QuickstartError> {
        let failed = |error: HttpError| QuickstartError::Exchange(target.clone(), error);
        let url =
            Url::parse(&target).map_err(|error| failed(HttpError::Transport(error.to_string())))?;
        let mut answer = client.send(method, url, headers, body).await.map_err(failed)?;
        let body = answer.body(BODY_LIMIT).await.map_err(failed)?;
        let headers = answer.headers();
        let decision = headers.get("x-request-id").and_then(|id| id.to_str().ok());
        Ok(Got {
            status: answer.status(),
            error: error_code(headers, &body),
            nonce: trace::nonce(headers).map(str::to_owned),
            decision: decision.map(str::to_owned),
            body: serde_json::from_slice(&body).unwrap_or_default(),
        })
    }
}

/// The fields of a request with a form.
pub(super) fn form_headers() -> HeaderMap {
    let form = HeaderValue::from_static("application/x-www-form-urlencoded");
    HeaderMap::from_iter([(http::header::CONTENT_TYPE, form)])
}

/// A field's value.
pub(super) fn field(text: &str) -> Result<HeaderValue, QuickstartError> {
    HeaderValue::from_str(text).map_err(|_| QuickstartError::NoToken("not a field's value".into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn got(status: u16, error: Option<&str>, body: Value) -> Got {
        Got {
            status: StatusCode::from_u16(status).unwrap(),
            error: error.map(str::to_owned),
            nonce: None,
            decision: None,
            body,
        }
    }

    #[test]
    fn a_row_differs_when_anything_does() {
        let check = |got: &Got, expected: Expected, reason: Option<&str>, ok: bool| {
            assert_eq!(judge("x", expected, got, reason).ok, ok, "{:?} {reason:?}", got.body);
        };
        let refused = Expected::Refused("invalid_token", "key_mismatch");
        let refusal = got(401, Some("invalid_token"), Value::Null);
        check(&refusal, refused, Some("key_mismatch"), true);
        check(&refusal, refused, None, true);
        check(&refusal, refused, Some("token_expired"), false);
        check(&got(401, Some("invalid_request"), Value::Null), refused, None, false);
        check(&got(400, Some("invalid_token"), Value::Null), refused, None, false);
        check(&got(200, None, Value::Null), refused, None, false);

        let admitted = Expected::Admitted("dpop");
        let echo = |identity: Value| got(200, None, json!({ "identity": identity }));
        let subject = "quickstart-client";
        let good = json!({"x-holdfast-result": "dpop", "x-holdfast-subject": subject});
        check(&echo(good.clone()), admitted, Some(""), true);
        check(&echo(good), admitted, Some("proof_htu"), false);
        let weaker = json!({"x-holdfast-result": "observe", "x-holdfast-subject": subject});
        check(&echo(weaker), admitted, None, false);
        let doubled = json!({
            "x-holdfast-result": "dpop", "x-holdfast-subject": "administrator, quickstart-client",
        });
        check(&echo(doubled), admitted, None, false);
        let underscored = json!({
            "x-holdfast-result": "dpop", "x-holdfast-subject": subject,
            "x_holdfast_subject": "administrator",
        });
        check(&echo(underscored), admitted, None, false);
        check(&got(200, None, Value::Null), admitted, None, false);
        check(&got(502, None, Value::Null), admitted, None, false);
    }
}
