//! In front of an Authorization Server that knows nothing of DPoP: a token's life, from the request for
//! it to its revocation, and those who get none.

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method};
use serde_json::Value;

use super::QuickstartError;
use super::cases::{Got, Senders, field, form_headers};
use super::legacy;
use super::table::Row;
use crate::cli::client::key::SigningKey;

/// Who asks for tokens, and for whom.
pub(super) const LOGIN: &str =
    "grant_type=password&client_id=quickstart-client&username=alice&password=any";
/// Where tokens are used.
const RESOURCE: &str = "/dpop/orders";
/// Where only those are taken whose user logged in lately.
const FRESH: &str = "/fresh";

/// One request: a form is sent by POST, without one it is a GET.
#[derive(Clone, Copy, Default)]
struct Asked<'a> {
    path: &'a str,
    form: &'a str,
    token: Option<&'a str>,
    bearer: bool,
    proof: Option<&'a str>,
}

/// What a token endpoint gave out.
struct Issued {
    access: String,
    refresh: String,
}

/// What must come of a case: the answer in a few words, and the edge's reason.
type Expected = (&'static str, &'static str);

/// Sends every case and gives a row for each.
pub(super) async fn run(senders: &Senders) -> Result<Vec<Row>, QuickstartError> {
    let mut cases = Cases { senders, rows: Vec::new(), nonce: None };
    let first = cases.asked_for().await?;
    cases.used(&first).await?;
    let second = cases.refreshed(&first).await?;
    cases.revoked(&second).await?;
    cases.fresh().await?;
    Ok(cases.rows)
}

/// Where rows are added.
struct Cases<'a> {
    senders: &'a Senders,
    rows: Vec<Row>,
    nonce: Option<String>,
}

impl Cases<'_> {
    /// Without a proof, without a nonce, with both.
    async fn asked_for(&mut self) -> Result<Issued, QuickstartError> {
        let path = path("token");
        let refused = ("400 use_dpop_nonce", "proof_missing");
        let bare = Asked { path: &path, form: LOGIN, ..Asked::default() };
        self.add("token asked for without a proof", bare, refused).await?;
        let proof = self.prove("POST", &path, None, &self.senders.key)?;
        let refused = ("400 use_dpop_nonce", "nonce_absent");
        let proven = Asked { proof: Some(&proof), ..bare };
        let challenged = self.add("asked for with a proof, no nonce", proven, refused).await?;
        self.nonce = challenged.nonce;
        let proof = self.prove("POST", &path, None, &self.senders.key)?;
        let proven = Asked { proof: Some(&proof), ..bare };
        let got = self.add("  then with the nonce", proven, ("200 token_type DPoP", "")).await?;
        let refused = ("401 invalid_dpop_proof", "proof_replayed");
        self.add("replay of that proof", proven, refused).await?;
        issued(&got)
    }

    /// On a resource: by its key, by another, and as the server believes that it goes.
    async fn used(&mut self, issued: &Issued) -> Result<(), QuickstartError> {
        let (token, senders) = (issued.access.as_str(), self.senders);
        self.consume("the token, used by its key", token, &senders.key, ("200 dpop, alice", ""))
            .await?;
        let refused = ("401 invalid_token", "key_mismatch");
        self.consume("  by another key", token, &senders.other_key, refused).await?;
        let bearer = Asked { path: RESOURCE, token: Some(token), bearer: true, ..Asked::default() };
        let refused = ("401 invalid_token", "bound_token_as_bearer");
        self.add("  as the Bearer token that it was", bearer, refused).await?;
        let token = self.behind_the_edge().await?;
        let refused = ("401 invalid_token", "record_missing");
        self.consume("a token issued past the edge", &token, &senders.key, refused).await
    }

    /// By another key, by its own, and once more.
    async fn refreshed(&mut self, issued: &Issued) -> Result<Issued, QuickstartError> {
        let senders = self.senders;
        let refresh = format!("refresh_token={}", issued.refresh);
        let form = format!("grant_type=refresh_token&client_id=quickstart-client&{refresh}");
        let refused = ("400 invalid_grant", "key_mismatch");
        self.grant("refreshed by another key", &form, &senders.other_key, refused).await?;
        let granted = ("200 token_type DPoP", "");
        let got = self.grant("refreshed by its own key", &form, &senders.key, granted).await?;
        self::issued(&got)
    }

    /// What others are told of it, and that it is no more.
    async fn revoked(&mut self, issued: &Issued) -> Result<(), QuickstartError> {
        let form = format!("client_id=quickstart-client&token={}", issued.access);
        let path = [path("introspect"), path("revoke")];
        let [introspect, revoke] =
            path.each_ref().map(|path| Asked { path, form: &form, ..Asked::default() });
        let told = ("200 active, cnf.jkt its key", "");
        self.add("introspected", introspect, told).await?;
        self.add("revoked", revoke, ("200", "")).await?;
        let refused = ("401 invalid_token", "token_revoked");
        self.consume("  then used", &issued.access, &self.senders.key, refused).await?;
        self.add("  then introspected", introspect, ("200 inactive", "")).await?;
        Ok(())
    }

    /// A log-in of a moment ago and one of an hour ago, and what clients find out by themselves.
    async fn fresh(&mut self) -> Result<(), QuickstartError> {
        let senders = self.senders;
        let stale = "401 insufficient_user_authentication";
        for (case, form, expected) in [
            ("/fresh, logged in just now", LOGIN.to_owned(), ("200 fresh", "")),
            (
                "/fresh, logged in an hour ago",
                format!("{LOGIN}&logged_in_ago=3600"),
                (stale, "authentication_stale"),
            ),
        ] {
            let path = path("token");
            let proof = self.prove("POST", &path, None, &senders.key)?;
            let asked = Asked { path: &path, form: &form, proof: Some(&proof), ..Asked::default() };
            let token = issued(&self.send(asked).await?)?.access;
            let proof = self.prove("GET", FRESH, Some(&token), &senders.key)?;
            let (token, proof) = (Some(token.as_str()), Some(proof.as_str()));
            let asked = Asked { path: FRESH, token, proof, ..Asked::default() };
            self.add(case, asked, expected).await?;
        }
        for (case, path, told) in [
            (
                "metadata of the server",
                "/.well-known/oauth-authorization-server/legacy",
                "200 DPoP by ES256",
            ),
            (
                "metadata of the resource",
                "/.well-known/oauth-protected-resource/dpop",
                "200 DPoP by ES256, demanded",
            ),
        ] {
            self.add(case, Asked { path, ..Asked::default() }, (told, "")).await?;
        }
        Ok(())
    }

    /// A request for a token, with a proof that holds.
    async fn grant(
        &mut self,
        case: &'static str,
        form: &str,
        key: &SigningKey,
        expected: Expected,
    ) -> Result<Got, QuickstartError> {
        let path = path("token");
        let proof = self.prove("POST", &path, None, key)?;
        let asked = Asked { path: &path, form, proof: Some(&proof), ..Asked::default() };
        self.add(case, asked, expected).await
    }

    /// A request to a resource, with a proof that holds.
    async fn consume(
        &mut self,
        case: &'static str,
        token: &str,
        key: &SigningKey,
        expected: Expected,
    ) -> Result<(), QuickstartError> {
        let proof = self.prove("GET", RESOURCE, Some(token), key)?;
        let (token, proof) = (Some(token), Some(proof.as_str()));
        let asked = Asked { path: RESOURCE, token, proof, ..Asked::default() };
        self.add(case, asked, expected).await.map(drop)
    }

    /// A token that the server issues to somebody who reaches it past the edge.
    async fn behind_the_edge(&self) -> Result<String, QuickstartError> {
        let target = format!("http://{}{}", self.senders.addresses.legacy, path("token"));
        let body = Bytes::from_static(LOGIN.as_bytes());
        let asked = (Method::POST, target, form_headers(), body);
        Ok(issued(&self.senders.ask(&self.senders.plain, asked).await?)?.access)
    }

    fn prove(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        key: &SigningKey,
    ) -> Result<String, QuickstartError> {
        Ok(self.senders.statement(method, path, token, self.nonce.as_deref(), key)?)
    }

    async fn add(
        &mut self,
        case: &'static str,
        asked: Asked<'_>,
        (expected, wanted): Expected,
    ) -> Result<Got, QuickstartError> {
        let got = self.send(asked).await?;
        let reason = match &got.decision {
            Some(decision) if got.error.is_some() => self.senders.reasons.of(decision).await,
            Some(_) | None => None,
        };
        let told = told(&got, &self.senders.key.thumbprint().to_string());
        let ok = told == expected && reason.as_deref().is_none_or(|reason| reason == wanted);
        let unknown = if got.error.is_some() { "(no record)" } else { "" };
        let reason = reason.unwrap_or_else(|| unknown.to_owned());
        self.rows.push(Row { case, expected: expected.to_owned(), got: told, reason, ok });
        Ok(got)
    }

    async fn send(&self, asked: Asked<'_>) -> Result<Got, QuickstartError> {
        let post = !asked.form.is_empty();
        let mut headers = if post { form_headers() } else { HeaderMap::new() };
        if let Some(token) = asked.token {
            let scheme = if asked.bearer { "Bearer" } else { "DPoP" };
            headers.insert(AUTHORIZATION, field(&format!("{scheme} {token}"))?);
        }
        if let Some(proof) = asked.proof {
            headers.insert("dpop", field(proof)?);
        }
        let method = if post { Method::POST } else { Method::GET };
        let body = Bytes::copy_from_slice(asked.form.as_bytes());
        self.senders.exchange(&self.senders.plain, method, asked.path, headers, body).await
    }
}

/// The path of an endpoint.
fn path(endpoint: &str) -> String {
    format!("{}/{endpoint}", legacy::PATH)
}

fn issued(got: &Got) -> Result<Issued, QuickstartError> {
    let text = |name| got.body.get(name).and_then(Value::as_str).map(str::to_owned);
    let issued = text("access_token").zip(text("refresh_token"));
    let (access, refresh) = issued.ok_or_else(|| {
        let error = got.error.as_deref().unwrap_or_default();
        QuickstartError::NoToken(format!("{} {error}", got.status))
    })?;
    Ok(Issued { access, refresh })
}

/// An answer in a few words. `jkt`: of the key that tokens are bound to.
fn told(got: &Got, jkt: &str) -> String {
    let at = |pointer| got.body.pointer(pointer);
    let text = |pointer| at(pointer).and_then(Value::as_str);
    let says = |pointer, word: &str| (at(pointer) == Some(&true.into())).then(|| word.to_owned());
    let identity = || {
        let result = got.identity("x-holdfast-result").unwrap_or_default();
        got.identity("x-holdfast-subject").map(|subject| format!("{result}, {subject}"))
    };
    let active = || match (at("/active")?.as_bool()?, text("/cnf/jkt")) {
        (false, _) => Some("inactive".to_owned()),
        (true, Some(bound)) if bound == jkt => Some("active, cnf.jkt its key".to_owned()),
        (true, Some(_)) => Some("active, cnf.jkt another key".to_owned()),
        (true, None) => Some("active, bound to nothing".to_owned()),
    };
    let algorithms = || {
        let demanded = says("/dpop_bound_access_tokens_required", ", demanded").unwrap_or_default();
        let first = text("/dpop_signing_alg_values_supported/0")?;
        Some(format!("DPoP by {first}{demanded}"))
    };
    let status = got.status.as_u16();
    let found = got.error.clone().or_else(identity).or_else(active);
    let found = found.or_else(|| text("/token_type").map(|name| format!("token_type {name}")));
    match found.or_else(|| says("/fresh", "fresh")).or_else(algorithms) {
        Some(found) => format!("{status} {found}"),
        None => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_differs_is_told_otherwise() {
        let check = |status: StatusCode, body: Value, expect: &str| {
            let error = body.get("error").and_then(Value::as_str).map(str::to_owned);
            let got = Got { status, error, nonce: None, decision: None, body };
            assert_eq!(told(&got, "own"), expect);
        };
        let ok = StatusCode::OK;
        check(ok, Value::Null, "200");
        check(StatusCode::BAD_REQUEST, json!({"error": "invalid_grant"}), "400 invalid_grant");
        check(ok, json!({"token_type": "Bearer", "access_token": "x"}), "200 token_type Bearer");
        check(ok, json!({"active": false}), "200 inactive");
        check(ok, json!({"active": true, "token_type": "DPoP"}), "200 active, bound to nothing");
        let bound = |jkt| json!({"active": true, "cnf": {"jkt": jkt}});
        check(ok, bound("own"), "200 active, cnf.jkt its key");
        check(ok, bound("other"), "200 active, cnf.jkt another key");
        let identity = json!({"x-holdfast-result": "dpop", "x-holdfast-subject": "alice"});
        check(ok, json!({"identity": identity}), "200 dpop, alice");
        check(ok, json!({"fresh": true}), "200 fresh");
        let algorithms = json!({"dpop_signing_alg_values_supported": ["ES256"]});
        check(ok, algorithms, "200 DPoP by ES256");
    }
}
