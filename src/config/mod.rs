//! One YAML file, resolved into typed parts or into every error at once.
//!
//! `raw` reads the text: values by `serde_yaml`, positions by a YAML event parser. `section` reads
//! typed values key by key. `resolve` turns them into [`Config`]; nothing after it parses a string
//! again. [`load`] is the way in.

#![expect(clippy::disallowed_methods, reason = "loading reads files and the environment")]

mod capsules;
mod files;
mod finding;
mod introspection;
mod item;
mod names;
mod raw;
mod resolve;
mod section;
mod store;
mod telemetry;
mod upstream;
mod value;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub use capsules::{Audit, Capsules};
pub use finding::{Finding, Severity};
pub use introspection::{ClientAuthentication, Introspection, Secret};
pub use store::{NonceStore, ReplayStore, Store};
pub use telemetry::{Telemetry, Traces};
pub use upstream::{Authorities, Health, Server, UpstreamTls};
pub use value::{duration, show_duration};

use finding::{Place, Sink};
use section::Section;

use crate::policy::bypass::BypassRules;
use crate::policy::client::KnownClient;
use crate::policy::cors::CorsRules;
use crate::policy::proof::ProofRules;
use crate::policy::proxies::Proxies;
use crate::policy::reach::Reach;
use crate::policy::rule::{RouteRule, Rules};
use crate::policy::target::Origin;
use crate::policy::time::UnixTime;
use crate::policy::token::IssuerRules;

/// What [`load`] made of a file.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration; `None` when a finding is an error.
    pub config: Option<Config>,
    /// Every error and warning, in the order of lines.
    pub findings: Vec<Finding>,
    /// The path of every key that this build reads, as far as the file made it look: list indices
    /// as `[]`, names that the user chose as `<name>`.
    pub known_keys: std::collections::BTreeSet<String>,
    /// Every file that was looked at, the configuration first: when one changes, loading again may
    /// find something else.
    pub files: Vec<PathBuf>,
}

/// Loads the file at `path`. Relative paths in it start at its directory.
#[must_use]
pub fn load(path: &Path) -> Loaded {
    let name = path.display().to_string();
    let limit = u64::try_from(raw::MAX_BYTES).unwrap_or(u64::MAX);
    let text = files::read(path, limit)
        .and_then(|bytes| String::from_utf8(bytes).map_err(|_| std::io::Error::other("not UTF-8")));
    let base = path.parent().unwrap_or(Path::new(""));
    let mut loaded = match text {
        Ok(text) => load_named(&name, &text, base),
        Err(error) => {
            let sink = Sink::new(&name, base);
            sink.push(Severity::Error, Place::default(), format!("cannot read it: {error}"));
            give_out(sink, None)
        }
    };
    loaded.files.insert(0, path.to_owned());
    loaded
}

/// Loads `text`, with relative paths in it starting at `base`. Findings name the file
/// `authority.yaml`.
#[must_use]
pub fn load_str(text: &str, base: &Path) -> Loaded {
    load_named("authority.yaml", text, base)
}

fn load_named(name: &str, text: &str, base: &Path) -> Loaded {
    let sink = Sink::new(name, base);
    match raw::parse(text) {
        Ok(document) => {
            let root = Section::root(&sink, &document.value, &document.spot);
            let config = resolve::resolve(root);
            give_out(sink, config)
        }
        Err(faults) => {
            for (place, message) in faults {
                sink.push(Severity::Error, place, message);
            }
            give_out(sink, None)
        }
    }
}

fn give_out(sink: Sink, config: Option<Config>) -> Loaded {
    let config = config.filter(|_| !sink.has_errors());
    let (findings, known_keys, files) = sink.into_parts();
    Loaded { config, findings, known_keys, files }
}

/// The time, for what the file says of it.
fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The environment variable `name`, when it is set and UTF-8.
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The whole configuration, resolved: names are indices, durations are durations, files exist.
#[derive(Clone, Debug)]
pub struct Config {
    /// Listeners, admin, limits, threads.
    pub edge: Edge,
    /// `edge.sealed`: whom the edge may connect to.
    pub reach: Reach,
    /// By index; [`Route::upstream`] points here.
    pub upstreams: Vec<Upstream>,
    /// In file order; a more specific path wins, not an earlier one.
    pub routes: Vec<Route>,
    /// Every external origin of a route, by index; [`RouteHost::origin`] points here.
    pub origins: Vec<Origin>,
    /// By index.
    pub issuers: Vec<Issuer>,
    /// Demands of default, tenants and audiences.
    pub rules: Rules,
    /// DPoP: times, nonce, replay.
    pub dpop: ProofRules,
    /// `dpop.nonce.keyFiles`: the first makes nonces, each checks them. Empty: a key of the process.
    pub nonce_keys: Vec<NonceKeyFile>,
    /// Where proofs are remembered.
    pub replay_store: ReplayStore,
    /// Where nonces are remembered that are used up.
    pub nonce_store: NonceStore,
    /// What a proof that was used before is answered with at a token endpoint: 400 or 401.
    pub replay_status: u16,
    /// The temporary bypass.
    pub bypass: BypassRules,
    /// How long a successor may stand in for the certificate that a token is bound to; 0: never.
    pub rotation_grace: Duration,
    /// The clients whose tenants are known.
    pub clients: Vec<KnownClient>,
    /// Keys for nodes.
    pub capsules: Option<Capsules>,
    /// Nodes and the audit log; `None` where nothing is kept.
    pub store: Option<Store>,
    /// The audit log.
    pub audit: Audit,
    /// Logs and traces.
    pub telemetry: Telemetry,
}

/// 32 secret bytes from a file. Not to be printed.
#[derive(Clone)]
pub struct NonceKeyFile(zeroize::Zeroizing<[u8; 32]>);

impl NonceKeyFile {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for NonceKeyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NonceKeyFile")
    }
}

/// `edge`: sockets and limits.
#[derive(Clone, Debug)]
pub struct Edge {
    /// The public listeners.
    pub listeners: Vec<Listener>,
    /// The admin listener's address; without TLS a loopback one.
    pub admin: SocketAddr,
    /// TLS of the admin listener, which demands a certificate.
    pub admin_tls: Option<ListenerTls>,
    /// Limits on what a client may send and hold.
    pub limits: Limits,
    /// Worker threads of the proxy.
    pub threads: usize,
    /// How long requests under way may go on after SIGTERM, or after another process took over.
    pub drain_timeout: Duration,
    /// The Unix socket over which sockets are handed to the next process.
    pub upgrade_socket: PathBuf,
}

/// One listener.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its name in logs and in `explain`.
    pub name: String,
    /// The address it binds.
    pub address: SocketAddr,
    /// TLS; `None` for one that whoever stands in front has terminated.
    pub tls: Option<ListenerTls>,
    /// Whether every connection begins with a PROXY header.
    pub proxy_protocol: bool,
    /// Those in front, and what each is believed. Without TLS and without any, only this machine
    /// may connect.
    pub proxies: Proxies,
    /// Connections open at once; the next is closed before its handshake.
    pub max_connections: usize,
    /// From the end of the handshake, or on a kept connection from the first byte after the answer
    /// before, to the whole request head.
    pub head_timeout: Duration,
    /// How long an idle keepalive connection stays open (HTTP/1.1 and HTTP/2).
    pub keepalive_timeout: Duration,
    /// Requests on one HTTP/1.1 connection before it is closed.
    pub keepalive_requests: u32,
    /// Concurrent streams on one HTTP/2 connection.
    pub h2_max_streams: u32,
    /// How long a read of a request body may take to bring anything.
    pub body_timeout: Duration,
}

/// `tls` of a listener.
#[derive(Clone, Debug)]
pub struct ListenerTls {
    /// Server certificates; chosen by SNI from the names in them, the first serves everyone else.
    pub certificates: Vec<CertificateFiles>,
    /// Whether a client certificate is asked for.
    pub client_certificates: ClientCertificates,
    /// PEM files of the authorities that sign client certificates.
    pub client_authorities: Vec<PathBuf>,
    /// Which client certificates are withdrawn.
    pub revocation: Revocation,
    /// Whether TLS 1.2 is offered beside 1.3.
    pub tls12: bool,
    /// Whether `h2` is offered beside `http/1.1`.
    pub h2: bool,
    /// The handshake's time.
    pub handshake_timeout: Duration,
    /// Policies for some hosts, chosen by SNI; what stands beside them serves everyone else. Those
    /// of a policy are empty.
    pub policies: Vec<TlsPolicy>,
}

impl ListenerTls {
    /// What serves everyone else, then each policy.
    pub fn policies(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.policies.iter().map(|policy| &policy.tls))
    }
}

/// A TLS policy for some hosts of a listener.
#[derive(Clone, Debug)]
pub struct TlsPolicy {
    /// Its name in the file.
    pub name: String,
    /// Its hosts in lower case; `*.example.com` stands for each host one label below.
    pub hosts: Vec<String>,
    /// What it demands and shows.
    pub tls: ListenerTls,
}

/// `revocation` of a TLS policy: client certificates that their issuer has withdrawn (RFC 5280
/// section 5).
#[derive(Clone, Debug, Default)]
pub struct Revocation {
    /// Files of certificate revocation lists, PEM or DER. Without any, nothing is looked up.
    pub crls: Vec<PathBuf>,
    /// Only the client's own certificate is looked up, not those that its chain goes through.
    pub leaf_only: bool,
    /// A certificate whose issuer has no list here is taken.
    pub unknown_allowed: bool,
    /// A list past its `nextUpdate` still counts.
    pub expired_allowed: bool,
}

/// A certificate chain with its key, both PEM.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The private key (PKCS #8, PKCS #1 or SEC 1).
    pub key: PathBuf,
}

/// Whether a listener asks for a client certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// It does not.
    Off,
    /// It asks; a client may have none, but a certificate that does not verify ends the handshake.
    Request,
    /// It asks, and a client without one is refused in the handshake.
    Require,
}

/// Limits on what a client may send and hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request head: request line and fields.
    pub head_bytes: usize,
    /// Fields of a request.
    pub head_fields: usize,
    /// Bytes of one `Authorization` value.
    pub authorization_bytes: usize,
    /// Bytes of one `DPoP` value.
    pub proof_bytes: usize,
    /// Verified tokens remembered.
    pub token_cache_entries: usize,
    /// Live proofs remembered; past it new ones are refused with 503.
    pub replay_entries: usize,
    /// Live proofs of token endpoints remembered, apart from those.
    pub token_replay_entries: usize,
    /// Proofs that one address may show to token endpoints, a minute.
    pub token_proofs_per_minute: u32,
    /// Bytes of a request's body, and of an answer's, at an authorization server.
    pub authority_body_bytes: usize,
}

/// A service behind the edge.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Its name in the file.
    pub name: String,
    /// Its servers, tried in turn.
    pub servers: Vec<Server>,
    /// What it speaks.
    pub protocol: UpstreamProtocol,
    /// TLS to it; in clear otherwise.
    pub tls: Option<UpstreamTls>,
    /// Active checks; without them only a server that could not be connected to is skipped.
    pub health: Option<Health>,
    /// What becomes of `Authorization` and `DPoP`.
    pub authorization: AuthorizationPolicy,
    /// Whether it is told the client's certificate.
    pub client_certificate: ClientCertificateTold,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time between two reads of an answer, and from the end of a request to the whole head.
    pub read_timeout: Duration,
    /// Time for a write to make progress.
    pub write_timeout: Duration,
    /// How long an unused connection is kept for reuse; under the service's own keepalive time.
    pub idle_timeout: Duration,
    /// From one look at a server's name to the next.
    pub resolve_interval: Duration,
    /// Connections open to it at once; a request that needs one more is refused with 503.
    pub max_connections: usize,
    /// Bytes of the head of an answer.
    pub head_bytes: usize,
}

/// What an upstream is told of the client's certificate (RFC 9440).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificateTold {
    /// Nothing.
    Nothing,
    /// `Client-Cert`.
    Leaf,
    /// `Client-Cert`, and `Client-Cert-Chain` where there is more of a chain.
    Chain,
}

/// What an upstream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 in clear, with prior knowledge.
    H2c,
    /// HTTP/2 over TLS, agreed on by ALPN.
    H2,
}

/// What becomes of the credentials on their way upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorizationPolicy {
    /// As received.
    Forward,
    /// The scheme is rewritten to `Bearer` and `DPoP` is removed.
    Bearer,
    /// `Authorization` and `DPoP` are removed.
    Strip,
}

/// One route.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name in logs and in `explain`.
    pub name: String,
    /// The hosts it answers for, each with the external origin that `htu` is compared with. Never
    /// empty: a route without hosts in the file has one entry without a name.
    pub hosts: Vec<RouteHost>,
    /// The paths it answers for.
    pub path: PathPattern,
    /// Methods it takes; empty: all.
    pub methods: Vec<String>,
    /// Index into [`Config::upstreams`]; `None` where the edge answers itself.
    pub upstream: Option<usize>,
    /// What it demands.
    pub rule: RouteRule,
    /// `public` only: credentials are passed on instead of removed.
    pub pass_credentials: bool,
    /// Whether `%2F`, `%5C`, `\`, empty segments and dots before a `;` are let through.
    pub ambiguous_paths: bool,
    /// What becomes of cross-origin requests.
    pub cors: Cors,
    /// The longest time from an admission to the end of the exchange; `None`: as long as the token
    /// and the certificate stand.
    pub stream_max_age: Option<Duration>,
    /// Whether the edge publishes what the resource demands (RFC 9728).
    pub resource_metadata: bool,
    /// Where it stands in the file, for messages.
    pub line: usize,
}

/// Who answers cross-origin preflights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cors {
    /// Nobody: they are requests without a token.
    Off,
    /// The service: they go through without a token.
    Upstream,
    /// The edge.
    Edge(CorsRules),
}

/// A host of a route and the external origin of requests to it.
#[derive(Clone, Debug)]
pub struct RouteHost {
    /// The host in lower case without port, an IPv6 literal in brackets; `None` for any host (then
    /// the origin is configured).
    pub name: Option<String>,
    /// The port that the `Host` must have, where the file names one; a `Host` without port has 443.
    pub port: Option<u16>,
    /// Index into [`Config::origins`]; `None` on public routes only.
    pub origin: Option<usize>,
}

/// Which paths a route answers for; compared with the normalised path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathPattern {
    /// This path.
    Exact(String),
    /// This path and everything below it: `/orders` stands for `/orders`, `/orders/` and
    /// `/orders/1`, never for `/orders-old`. Written with a trailing `/*` in the file (`/orders/*`)
    /// and kept without it: empty for every path.
    Prefix(String),
}

/// An issuer of access tokens.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// What its tokens must be.
    pub rules: IssuerRules,
    /// Where its keys are; `None` when it is asked about each token.
    pub jwks: Option<JwksSource>,
    /// How it is asked about tokens.
    pub introspection: Option<Introspection>,
}

/// Where an issuer's JWK set comes from.
#[derive(Clone, Debug)]
pub enum JwksSource {
    /// A file, read at start.
    File(PathBuf),
    /// A URL, `https`, or `http` on a loopback address.
    Url {
        /// The address.
        url: String,
        /// PEM file of the authority that signs the server's certificate; the system's otherwise.
        authorities: Option<PathBuf>,
        /// How often it is fetched again.
        refresh: Duration,
        /// The time of one fetch.
        timeout: Duration,
        /// The shortest time between two fetches that unknown `kid`s cause.
        cooldown: Duration,
    },
}

#[cfg(test)]
pub(crate) mod tests;
