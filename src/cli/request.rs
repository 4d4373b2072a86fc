//! `holdfast request`: a curl that speaks DPoP and mTLS, and shows what it does.
//!
//! The trace goes to the second writer, the answer's body (or, with `--json`, one document) to the
//! first. Nothing here is particular to Holdfast: any server will do.

mod plan;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use reqwest::Url;
use serde_json::{Value, json};

use self::plan::Plan;
use super::client::challenge::error_code;
use super::client::http::{Answer, HttpError};
use super::client::key::KeyError;
use super::client::proof::Proof;
use super::client::trace::{self, Received, Sent, clean};
use crate::policy::jose::Algorithm;

/// Bytes of a refusal that are read before it is judged.
const REFUSAL_LIMIT: usize = 64 << 10;
/// Bytes of a body that `--json` takes.
const JSON_BODY_LIMIT: usize = 16 << 20;

/// Send one request with a DPoP proof, a client certificate, or both, and show the exchange
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Exit status: 0 on a 2xx answer, 1 on any other, 2 when there is none.")]
pub struct Args {
    /// The method, as it is to be sent: GET, POST, ...
    pub method: Method,
    /// The URL, http or https
    pub url: Url,
    /// The access token; others on this machine can see a command line: prefer --token-file
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    pub token: Option<String>,
    /// A file with the access token
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The private key of the proof, PEM or JWK [default: a fresh one, which is not kept]
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// The proof's algorithm [default: by the key; a fresh key is ES256]
    #[arg(long, value_name = "ALG", value_parser = plan::parse_algorithm)]
    pub alg: Option<Algorithm>,
    /// The client certificate and its chain, PEM
    #[arg(long, value_name = "FILE", requires = "cert_key")]
    pub cert: Option<PathBuf>,
    /// The client certificate's private key, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub cert_key: Option<PathBuf>,
    /// The authorities that the server's certificate must chain to, PEM [default: the system's]
    #[arg(long, value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// Do not verify the server's certificate
    #[arg(long)]
    pub insecure: bool,
    /// A header to add; may be given several times
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE", value_parser = plan::parse_header)]
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body, or @FILE; a form unless a Content-Type is given
    #[arg(long, short = 'd', value_name = "DATA|@FILE")]
    pub data: Option<String>,
    /// The Authorization scheme [default: dpop; bearer with --no-proof, or when the token is a JWT
    /// that names no key]
    #[arg(long, value_enum)]
    pub scheme: Option<Scheme>,
    /// The nonce of the first proof
    #[arg(long, value_name = "NONCE")]
    pub nonce: Option<String>,
    /// Do not answer a nonce challenge
    #[arg(long)]
    pub no_retry: bool,
    /// Send no proof
    #[arg(long, conflicts_with_all = ["key", "alg", "nonce"])]
    pub no_proof: bool,
    /// HTTP/1.1 only
    #[arg(long, conflicts_with = "http2")]
    pub http1: bool,
    /// HTTP/2 only
    #[arg(long)]
    pub http2: bool,
    /// Connect to ADDRESS (IP:PORT) instead of where DNS says
    #[arg(long, value_name = "ADDRESS")]
    pub connect: Option<SocketAddr>,
    /// Print the whole exchange as one JSON document
    #[arg(long)]
    pub json: bool,
}

/// An `Authorization` scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scheme {
    /// RFC 9449 section 7.1
    Dpop,
    /// RFC 6750
    Bearer,
}

/// Why there is no answer to show.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{path}: {error}")]
    File { path: String, error: io::Error },
    #[error("{path}: {error}")]
    Key { path: String, error: KeyError },
    #[error(transparent)]
    Proof(#[from] KeyError),
    #[error("{url}: {error}")]
    Http { url: String, error: HttpError },
    #[error("{0}")]
    Usage(&'static str),
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// Sends, shows, and says with which status to exit: 0 on 2xx, 1 on another answer, 2 on none.
/// Errors go to `trace`.
pub fn run(args: &Args, out: &mut dyn Write, trace: &mut dyn Write) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime
        .map_err(Failure::Output)
        .and_then(|runtime| runtime.block_on(exchange(args, out, trace)));
    match outcome {
        Ok(status) if status.is_success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(failure) => {
            // Where this cannot be written either, the exit status alone tells.
            let _ = writeln!(trace, "error: {}", clean(&failure.to_string()));
            ExitCode::from(2)
        }
    }
}

/// Text as it happens, or JSON at the end.
enum Report<'a> {
    Text { out: &'a mut dyn Write, trace: &'a mut dyn Write },
    Json { out: &'a mut dyn Write, exchanges: Vec<Value> },
}

async fn exchange(
    args: &Args,
    out: &mut dyn Write,
    trace: &mut dyn Write,
) -> Result<StatusCode, Failure> {
    let plan = plan::plan(args)?;
    let mut report = if args.json {
        Report::Json { out, exchanges: Vec::new() }
    } else {
        write_preamble(&plan, trace)?;
        Report::Text { out, trace }
    };
    let mut nonce = args.nonce.clone();
    let mut number = 1;
    loop {
        let (proof, mut answer) = attempt(&plan, number, nonce.as_deref(), &mut report).await?;
        let limit = match (&report, answer.status().is_success()) {
            (Report::Json { .. }, _) => JSON_BODY_LIMIT,
            (Report::Text { .. }, false) => REFUSAL_LIMIT,
            (Report::Text { .. }, true) => 0,
        };
        let (body, truncated) = read_up_to(&mut answer, limit).await.map_err(|e| plan.http(e))?;
        let retry = (number == 1 && !args.no_retry && proof.is_some())
            .then(|| wanted_nonce(&answer, &body))
            .flatten();
        let received = Received {
            number,
            status: answer.status(),
            version: answer.version(),
            headers: answer.headers(),
            body: &body,
            truncated,
        };
        report.received(proof.as_ref(), &received, retry.is_some())?;
        if let Some(wanted) = retry {
            nonce = Some(wanted);
            number += 1;
            continue;
        }
        let status = answer.status();
        report.finish(&plan, &body, &mut answer).await?;
        return Ok(status);
    }
}

/// The nonce that a challenge asks for (RFC 9449 sections 8 and 9).
fn wanted_nonce(answer: &Answer, body: &[u8]) -> Option<String> {
    let challenged = matches!(answer.status(), StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED)
        && error_code(answer.headers(), body).as_deref() == Some("use_dpop_nonce");
    challenged.then(|| trace::nonce(answer.headers()).map(str::to_owned)).flatten()
}

async fn attempt(
    plan: &Plan,
    number: usize,
    nonce: Option<&str>,
    report: &mut Report<'_>,
) -> Result<(Option<Proof>, Answer), Failure> {
    let mut headers = plan.headers.clone();
    let proof = plan.key.as_ref().map(|key| plan.prove(key, nonce)).transpose()?;
    if let Some(proof) = &proof {
        let value = HeaderValue::from_str(&proof.compact)
            .map_err(|_| Failure::Usage("the proof is no header value"))?;
        headers.append("dpop", value);
    }
    let sent = Sent {
        number,
        method: &plan.method,
        url: plan.url.as_str(),
        headers: &headers,
        proof: proof.as_ref(),
        body_bytes: plan.body.len(),
    };
    report.sent(&sent)?;
    let answer = plan
        .client
        .send(plan.method.clone(), plan.url.clone(), headers, plan.body.clone())
        .await
        .map_err(|error| plan.http(error))?;
    Ok((proof, answer))
}

impl Report<'_> {
    fn sent(&mut self, sent: &Sent<'_>) -> io::Result<()> {
        match self {
            Self::Text { trace, .. } => trace::write_sent(*trace, sent),
            Self::Json { exchanges, .. } => {
                exchanges.push(json!({"request": trace::sent_json(sent)}));
                Ok(())
            }
        }
    }

    fn received(
        &mut self,
        proof: Option<&Proof>,
        received: &Received<'_>,
        retrying: bool,
    ) -> io::Result<()> {
        match self {
            Self::Text { trace, .. } => {
                trace::write_received(*trace, received)?;
                let demanded = error_code(received.headers, received.body);
                if retrying {
                    trace::write_body(*trace, received.body)?;
                    writeln!(
                        trace,
                        "     The server wants its nonce in the proof: once more, with it.\n"
                    )?;
                } else if proof.is_none() && demanded.as_deref() == Some("use_dpop_nonce") {
                    writeln!(trace, "     The server wants a proof, and none was sent.")?;
                }
                trace.flush()
            }
            Self::Json { exchanges, .. } => {
                if let Some(Value::Object(last)) = exchanges.last_mut() {
                    last.insert("answer".into(), trace::received_json(received));
                }
                Ok(())
            }
        }
    }

    /// Text: the body, read so far and still to come. JSON: the document.
    async fn finish(self, plan: &Plan, body: &[u8], answer: &mut Answer) -> Result<(), Failure> {
        match self {
            Self::Text { out, .. } => {
                out.write_all(body)?;
                while let Some(chunk) = answer.chunk().await.map_err(|e| plan.http(e))? {
                    out.write_all(&chunk)?;
                }
                out.flush()?;
            }
            Self::Json { out, exchanges } => {
                let document = json!({
                    "key": plan.key.as_ref().map(|key| json!({
                        "algorithm": key.algorithm().name(),
                        "jkt": key.thumbprint().to_string(),
                        "fresh": plan.fresh_key,
                    })),
                    "token": plan.token.as_ref().map(|token| json!({
                        "sha256Prefix": token.hash_prefix(),
                        "jkt": token.claimed().and_then(|claimed| claimed.jkt),
                        "x5tS256": token.claimed().and_then(|claimed| claimed.x5t),
                    })),
                    "accepted": answer.status().is_success(),
                    "exchanges": exchanges,
                });
                serde_json::to_writer_pretty(&mut *out, &document).map_err(io::Error::from)?;
                writeln!(out)?;
                out.flush()?;
            }
        }
        Ok(())
    }
}

fn write_preamble(plan: &Plan, trace: &mut dyn Write) -> io::Result<()> {
    let jkt = plan.key.as_ref().map(|key| key.thumbprint().to_string());
    if let (Some(key), Some(jkt)) = (&plan.key, &jkt) {
        let fresh =
            if plan.fresh_key { " (a fresh key, not kept: --key FILE uses yours)" } else { "" };
        writeln!(trace, "key    {}, jkt {jkt}{fresh}", key.algorithm().name())?;
    }
    if let Some(token) = &plan.token {
        write!(trace, "token  sha256 {}...", token.hash_prefix())?;
        let claimed = token.claimed().unwrap_or_default();
        if let Some(bound) = &claimed.jkt {
            let whose = if Some(bound) == jkt.as_ref() { "this key" } else { "ANOTHER KEY" };
            write!(trace, ", bound to {whose} (jkt {})", clean(bound))?;
        }
        if let Some(x5t) = &claimed.x5t {
            write!(trace, ", bound to a certificate (x5t#S256 {})", clean(x5t))?;
        }
        writeln!(trace)?;
    }
    if plan.key.is_some() || plan.token.is_some() {
        writeln!(trace)?;
    }
    Ok(())
}

/// What has arrived of the body once `limit` bytes have, and whether it may go on.
async fn read_up_to(answer: &mut Answer, limit: usize) -> Result<(Vec<u8>, bool), HttpError> {
    let mut body = Vec::new();
    while body.len() < limit {
        match answer.chunk().await? {
            Some(chunk) => body.extend_from_slice(&chunk),
            None => return Ok((body, false)),
        }
    }
    Ok((body, true))
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Bytes;
    use axum::http::HeaderMap;
    use axum::response::IntoResponse;
    use axum::routing::any;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use clap::Parser as _;
    use tokio::net::TcpListener;
    use tokio::runtime::Runtime;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// A server that is not Holdfast: a resource and a token endpoint that want a nonce, one that
    /// is never content, and one that redirects.
    async fn start() -> SocketAddr {
        async fn resource(headers: HeaderMap) -> impl IntoResponse {
            challenge(&headers, "n1", 401)
        }
        async fn token(headers: HeaderMap, body: Bytes) -> impl IntoResponse {
            assert_eq!(body, "grant_type=client_credentials");
            assert_eq!(headers["content-type"], "application/x-www-form-urlencoded");
            challenge(&headers, "n2", 400)
        }
        async fn never() -> impl IntoResponse {
            challenge(&HeaderMap::new(), "n3", 401)
        }
        let router = Router::new()
            .route("/resource", any(resource))
            .route("/token", any(token))
            .route("/never", any(never))
            .route("/echo", any(|headers: HeaderMap| async move { format!("{headers:?}") }))
            .route("/moved", any(|| async { (StatusCode::FOUND, [("location", "/echo")], "") }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        #[expect(clippy::disallowed_methods, reason = "a server runs beside the test")]
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    fn challenge(headers: &HeaderMap, nonce: &str, status: u16) -> axum::response::Response {
        let claims = headers.get("dpop").map(|proof| {
            let payload = proof.to_str().unwrap().split('.').nth(1).unwrap();
            let claims = URL_SAFE_NO_PAD.decode(payload).unwrap();
            serde_json::from_slice::<Value>(&claims).unwrap()
        });
        if claims.is_some_and(|claims| claims.get("nonce").is_some_and(|n| n == nonce)) {
            return (StatusCode::OK, "here you are").into_response();
        }
        let challenge = "DPoP algs=\"ES256\", error=\"use_dpop_nonce\"";
        let status = StatusCode::from_u16(status).unwrap();
        let mut answer = (status, r#"{"error":"use_dpop_nonce"}"#).into_response();
        if status == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
        }
        answer.headers_mut().insert("dpop-nonce", nonce.parse().unwrap());
        answer
    }

    struct Ran {
        code: ExitCode,
        out: String,
        trace: String,
    }

    fn request(line: &str) -> Ran {
        let runtime = Runtime::new().unwrap();
        let address = runtime.block_on(start());
        let line = line.replace("SERVER", &format!("http://{address}"));
        let words = std::iter::once("request").chain(line.split('|'));
        let args = Line::try_parse_from(words).unwrap().args;
        let (mut out, mut trace) = (Vec::new(), Vec::new());
        let code = run(&args, &mut out, &mut trace);
        Ran { code, out: String::from_utf8(out).unwrap(), trace: String::from_utf8(trace).unwrap() }
    }

    /// Every text appears, one after the other.
    fn in_order(text: &str, expect: &[&str]) {
        let mut rest = text;
        for part in expect {
            let Some((_, after)) = rest.split_once(part) else {
                panic!("{part:?} is not there, or not in its place, in\n{text}");
            };
            rest = after;
        }
    }

    #[test]
    fn a_nonce_challenge_is_answered_once_and_shown() {
        let ran = request("GET|SERVER/resource?q=1#f|--token|opaque-token");
        assert_eq!(ran.code, ExitCode::SUCCESS, "{}", ran.trace);
        assert_eq!(ran.out, "here you are");
        in_order(
            &ran.trace,
            &[
                "key    ES256, jkt ",
                "a fresh key, not kept",
                "token  sha256 ",
                "> 1  GET http://",
                "authorization: DPoP (sha256 ",
                "header {",
                "\"typ\": \"dpop+jwt\"",
                "claims {",
                "\"htm\": \"GET\"",
                "/resource\",",
                "\"ath\": ",
                "< 1  401 Unauthorized (HTTP/1.1)",
                "www-authenticate: DPoP",
                "error = use_dpop_nonce",
                "dpop-nonce: n1",
                "once more, with it",
                "> 2  GET http://",
                "\"nonce\": \"n1\"",
                "< 2  200 OK",
            ],
        );
        assert!(!ran.trace.contains("opaque-token"), "{}", ran.trace);
        assert!(!ran.trace.contains("\"d\":"), "{}", ran.trace);
    }

    #[test]
    fn a_token_endpoint_s_challenge_is_answered() {
        let ran = request("POST|SERVER/token|--data|grant_type=client_credentials");
        assert_eq!((ran.code, ran.out.as_str()), (ExitCode::SUCCESS, "here you are"));
        assert!(!ran.trace.contains("\"ath\""), "{}", ran.trace);
        in_order(
            &ran.trace,
            &["< 1  400 Bad Request", "\"error\":\"use_dpop_nonce\"", "> 2", "n2"],
        );
    }

    #[test]
    fn a_refusal_ends_with_1_and_is_not_retried_without_end() {
        let check = |line: &str, attempts: usize| {
            let ran = request(line);
            assert_eq!(ran.code, ExitCode::from(1), "{line}: {}", ran.trace);
            assert_eq!(ran.trace.matches("\n< ").count(), attempts, "{line}: {}", ran.trace);
            assert_eq!(ran.out, r#"{"error":"use_dpop_nonce"}"#, "{line}");
        };
        check("GET|SERVER/never|--token|t", 2);
        check("GET|SERVER/resource|--token|t|--no-retry", 1);
        check("GET|SERVER/resource|--token|t|--no-proof", 1);
        check("GET|SERVER/resource|--token|t|--scheme|bearer", 1);
        let ran = request("GET|SERVER/moved");
        assert_eq!((ran.code, ran.out.as_str()), (ExitCode::from(1), ""));
    }

    #[test]
    fn a_given_nonce_spares_the_challenge() {
        let ran = request("GET|SERVER/resource|--nonce|n1|--alg|EdDSA");
        assert_eq!(ran.code, ExitCode::SUCCESS);
        assert!(!ran.trace.contains("401 Unauthorized"), "{}", ran.trace);
        in_order(&ran.trace, &["key    EdDSA"]);
    }

    #[test]
    fn headers_are_added_and_redirects_and_schemes_are_as_asked() {
        let ran = request("GET|SERVER/echo|-H|X-A: b|-H|X-A: c|--token|t|--no-proof");
        in_order(
            &ran.out,
            &["\"authorization\": ", "Bearer t", "\"x-a\": \"b\"", "\"x-a\": \"c\""],
        );
        assert!(!ran.out.contains("dpop"), "{}", ran.out);
        // A JWT that is bound to a certificate only is no DPoP token.
        let claims = URL_SAFE_NO_PAD.encode(r#"{"cnf":{"x5t#S256":"AAAA"}}"#);
        let ran = request(&format!("GET|SERVER/echo|--token|h.{claims}.s"));
        in_order(&ran.trace, &["bound to a certificate (x5t#S256 AAAA)", "Bearer (sha256"]);
        assert!(!ran.trace.contains("key  "), "{}", ran.trace);
        let claims = URL_SAFE_NO_PAD.encode(r#"{"cnf":{"jkt":"AAAA"}}"#);
        let ran = request(&format!("GET|SERVER/echo|--token|h.{claims}.s"));
        in_order(&ran.trace, &["bound to ANOTHER KEY (jkt AAAA)", "DPoP (sha256"]);
    }

    #[test]
    fn json_is_one_document_with_everything() {
        let ran = request("GET|SERVER/resource|--token|opaque-token|--json");
        assert_eq!((ran.code, ran.trace.as_str()), (ExitCode::SUCCESS, ""));
        let document: Value = serde_json::from_str(&ran.out).unwrap();
        let at = |pointer: &str| document.pointer(pointer).unwrap_or(&Value::Null);
        assert_eq!(at("/accepted"), true);
        assert_eq!(at("/key/fresh"), true);
        assert_eq!(at("/exchanges/0/answer/status"), 401);
        assert_eq!(at("/exchanges/0/answer/error"), "use_dpop_nonce");
        assert_eq!(at("/exchanges/0/answer/nonce"), "n1");
        assert_eq!(at("/exchanges/0/answer/challenges/0/parameters/algs"), "ES256");
        assert_eq!(at("/exchanges/1/request/proof/claims/nonce"), "n1");
        assert_eq!(at("/exchanges/1/answer/body"), "here you are");
        assert!(!ran.out.contains("opaque-token"), "{}", ran.out);
    }

    #[test]
    fn what_cannot_be_sent_ends_with_2_and_one_line() {
        let check = |line: &str, expect: &str| {
            let ran = request(line);
            assert_eq!(ran.code, ExitCode::from(2), "{line}");
            let last = ran.trace.lines().last().unwrap();
            assert!(last.starts_with("error: ") && last.contains(expect), "{line}: {last}");
            assert_eq!(ran.out, "");
        };
        check("GET|ftp://x/", "must begin with https://");
        check("GET|http://u:p@127.0.0.1/", "no user or password");
        check("GET|SERVER/echo|--token|a b", "visible ASCII");
        check("GET|SERVER/echo|--token-file|/nowhere", "/nowhere: ");
        check("GET|SERVER/echo|--key|/dev/null", "/dev/null: no private key");
        check("GET|SERVER/echo|--cacert|/dev/null", "/dev/null: no certificate authority");
        check("GET|SERVER/echo|--cert|/dev/null|--cert-key|/dev/null", "/dev/null: client cert");
        check("GET|SERVER/echo|--data|@/dev/zero", "larger than");
        check("GET|SERVER/echo|--connect|127.0.0.1:1", "host name");
        // Port 1 of this machine: nothing listens there.
        check("GET|https://localhost:1/|--connect|127.0.0.1:1", "Connection refused");
    }
}
