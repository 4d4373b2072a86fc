//! What the load goes through: keys, certificates, an authorization server, and the real program in
//! between.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast::policy::epoch::Reign;
use holdfast::policy::jose::{Algorithm, AlgorithmSet};
use holdfast::policy::nonce::{NonceKeys, NonceSecret};
use holdfast::policy::proof::{self, Expected, ProofRules, Seen};
use holdfast::policy::target::Origin;
use holdfast::policy::time::UnixTime;
use http::{HeaderMap, HeaderValue};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cases::Kind;
use crate::check::{self, Signatures};
use crate::http1::{self, Fields, HOST};
use crate::pki::{self, Identity, authority, identity};
use crate::program::{self, Edge, free_port};
use crate::proofs::{self, About, Key};
use crate::threads::bytes_written;
use crate::{Options, Outcome, origin, store, stub, tokens};

/// Whose opaque tokens the edge binds. JWTs are another one's, which binds by itself.
const ISSUER: &str = "https://opaque.example";

pub(crate) struct Stage {
    pub(crate) port: u16,
    /// Whether edge and generator have a core each.
    pub(crate) pinned: bool,
    pub(crate) edge: Edge,
    authority: CertificateDer<'static>,
    client: Identity,
    sender: Key,
    bound_jwt: String,
    database: PathBuf,
    _directory: TempDir,
}

/// What a proof costs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProofCost {
    /// Every check of it.
    pub(crate) whole: Duration,
    /// Its signature alone, key parsed before.
    pub(crate) signature: Duration,
}

impl Stage {
    /// Fills the store and starts server and edge; `pinned`: the generator has its core, the edge may
    /// have its own.
    pub(crate) async fn start(options: &Options, pinned: bool) -> Outcome<Self> {
        let directory = tempfile::tempdir_in(options.directory())?;
        let authority = authority()?;
        let client = identity(&authority, "client.example", ExtendedKeyUsagePurpose::ClientAuth)?;
        let (issuer, sender) = (Key::generate()?, Key::generate()?);
        let write = |name: &str, text: &str| program::write(directory.path(), name, text);
        write("ca.pem", &authority.pem())?;
        program::certify(directory.path(), &authority)?;
        write("jwks.json", &tokens::key_set(&issuer).to_string())?;
        let database = directory.path().join("holdfast.db");
        store::fill(&database, if options.redis.is_some() { 0 } else { options.kept })?;
        let (port, admin) = (free_port()?, free_port()?);
        let mut config = config(port, admin, origin::start(stub::answer).await?);
        if let Some(redis) = options.redis {
            config["store"]["kind"] = "redis".into();
            config["store"]["redis"] = json!({"nodes": [format!("127.0.0.1:{redis}")]});
            let replay = json!({"store": "redis"});
            config["security"]["senderConstraints"]["dpop"]["replay"] = replay;
        }
        let edge = Edge::start(directory.path(), &config, pinned).await?;
        Ok(Self {
            port,
            pinned,
            edge,
            authority: authority.der().clone(),
            bound_jwt: tokens::token(&issuer, 1, &json!({ "jkt": sender.jkt }))?,
            client,
            sender,
            database,
            _directory: directory,
        })
    }

    /// How a client of this kind speaks TLS.
    pub(crate) fn tls(&self, kind: Kind) -> Outcome<Arc<ClientConfig>> {
        pki::tls(&self.authority, (kind == Kind::Mtls).then_some(&self.client), "http/1.1")
    }

    /// `count` requests, each signed now. What uses tokens uses those that [`Kind::Dpop`] was issued
    /// under the same `label`.
    pub(crate) async fn requests(
        &self,
        kind: Kind,
        label: &str,
        count: usize,
    ) -> Outcome<Vec<Vec<u8>>> {
        let nonce = if kind.has_proof() { Some(self.nonce().await?) } else { None };
        let source = if kind.reads() || kind == Kind::Refresh { Kind::Dpop } else { kind };
        let mut requests = Vec::with_capacity(count);
        for number in 0..count {
            let name = proofs::digest(format!("{label} {} {number}", source.name()));
            let proof = nonce.as_ref().map(|nonce| self.proof(kind, &name, Some(nonce)));
            requests.push(self.request(kind, &name, proof.transpose()?));
        }
        Ok(requests)
    }

    fn token(&self, kind: Kind, name: &str) -> String {
        if kind == Kind::Cnf { self.bound_jwt.clone() } else { stub::access_token(name) }
    }

    fn proof(&self, kind: Kind, name: &str, nonce: Option<&str>) -> Outcome<String> {
        let url = format!("https://{HOST}{}", kind.path());
        let token = kind.reads().then(|| self.token(kind, name));
        let method = if kind.reads() { "GET" } else { "POST" };
        let about = About { method, url: &url, token: token.as_deref(), nonce };
        Ok(self.sender.proofs(&about, 1)?.pop().unwrap_or_default())
    }

    fn request(&self, kind: Kind, name: &str, proof: Option<String>) -> Vec<u8> {
        let mut fields = Fields::new();
        if kind.reads() {
            fields.push(("authorization", format!("DPoP {}", self.token(kind, name))));
        }
        fields.extend(proof.map(|proof| ("dpop", proof)));
        if kind.reads() {
            return http1::request(kind.path(), &fields);
        }
        let grant = if kind == Kind::Refresh {
            format!("grant_type=refresh_token&refresh_token={}", stub::refresh_token(name))
        } else {
            let verifier = proofs::digest(name);
            format!(
                "grant_type=authorization_code&code={name}&code_verifier={verifier}\
                 &redirect_uri=https%3A%2F%2Fclient.example%2Fcb"
            )
        };
        let body = format!("{grant}&client_id=client-1");
        fields.push(("content-type", "application/x-www-form-urlencoded".to_owned()));
        fields.push(("content-length", body.len().to_string()));
        let mut request = http1::request(kind.path(), &fields);
        // The same head, but for its method.
        request.splice(..3, *b"POST");
        request.extend_from_slice(body.as_bytes());
        request
    }

    /// CPU time of checking one proof like those of the load, each once, on the edge's core while that
    /// rests.
    pub(crate) fn proof_cost(&self, count: usize) -> Outcome<ProofCost> {
        let origin = Origin::parse(&format!("https://{HOST}")).ok_or("an origin")?;
        let nonces = NonceKeys::derive(&[NonceSecret::new([7; 32])], &origin);
        let now = UnixTime::from_secs(i64::try_from(proofs::now()?)?);
        let nonce = nonces.make(now, [1; 8]).ok_or("a nonce")?;
        let proofs: Vec<String> =
            (0..count).map(|_| self.proof(Kind::Dpop, "", Some(&nonce))).collect::<Outcome<_>>()?;
        let shown = |proof: &String| {
            let mut headers = HeaderMap::new();
            headers.insert("host", HeaderValue::from_static(HOST));
            headers.insert("dpop", HeaderValue::from_str(proof)?);
            Outcome::Ok(headers)
        };
        let shown: Vec<HeaderMap> = proofs.iter().map(shown).collect::<Outcome<_>>()?;
        let signatures = Signatures::new(&self.sender, &proofs)?;
        check::measured(self.pinned, move || {
            let rules = ProofRules {
                proof_lifetime: Duration::from_secs(120),
                clock_skew: Duration::from_secs(30),
                replay_window: Duration::from_secs(300),
                nonce_ttl: Some(Duration::from_secs(600)),
                nonce_replaces_iat: false,
                nonce_single_use: false,
            };
            let expected = Expected {
                method: "POST",
                origin: &origin,
                path: Kind::Dpop.path(),
                token_hash: None,
                algorithms: AlgorithmSet::of(&[Algorithm::Es256]),
                nonce_keys: Some(&nonces),
                nonce_required: true,
                rules: &rules,
                max_bytes: 8192,
                reign: Reign::of_process([0; 32], UnixTime::from_secs(0)),
                now,
            };
            let whole = check::timed(&shown, |headers| {
                let verified = proof::verify(headers, &expected, &mut Seen::default());
                verified.map(|_| ()).map_err(|denial| denial.code().into())
            })?;
            Ok(ProofCost { whole, signature: signatures.cost()? })
        })
    }

    async fn nonce(&self) -> Outcome<String> {
        let proof = self.proof(Kind::Native, "", None)?;
        let request = self.request(Kind::Native, "code", Some(proof));
        http1::nonce(self.port, self.tls(Kind::Native)?, &request).await
    }

    /// Transactions of the store so far.
    pub(crate) fn commits(&self) -> Outcome<u32> {
        store::commits(&self.database)
    }

    pub(crate) fn refresh_tokens(&self) -> Outcome<usize> {
        store::refresh_tokens(&self.database)
    }

    /// Bytes that the edge has had written to the disk.
    pub(crate) fn bytes_written(&self) -> Outcome<u64> {
        bytes_written(self.edge.id())
    }
}

/// With room for many proofs, of one address, and no demand where no route makes one.
fn config(port: u16, admin: u16, upstream: u16) -> Value {
    let route = |name: &str, path: &str, role: &str| json!({"name": name, "hosts": [HOST], "path": path, "role": role, "upstream": "stub"});
    let with = |mut route: Value, more: &[(&str, Value)]| {
        for (key, value) in more {
            route[*key] = value.clone();
        }
        route
    };
    let origin = || ("origin", Value::from(format!("https://{HOST}")));
    let mut edge = program::edge(port, admin);
    let tls = &mut edge["listeners"][0]["tls"];
    tls["clientCertificates"] = "request".into();
    tls["clientAuthorities"] = json!(["ca.pem"]);
    edge["limits"] = json!({
        "tokenProofsPerMinute": 10_000_000,
        "tokenReplayEntries": 1_000_000,
    });
    json!({
        "schemaVersion": 1,
        "edge": edge,
        "upstreams": {"stub": {"servers": [format!("127.0.0.1:{upstream}")]}},
        "routes": [
            with(route("plain", "/plain/token", "public"), &[("passCredentials", true.into())]),
            with(
                route("native", "/native/token", "token"),
                &[origin(), ("nonce", "edge".into()), ("require", "dpop".into())],
            ),
            with(
                route("retrofit", "/retrofit/token", "token"),
                &[origin(), ("issuer", ISSUER.into()), ("binding", "retrofit".into())],
            ),
            with(
                route("orders", "/orders/*", "resource"),
                &[origin(), ("require", "dpop".into())],
            ),
        ],
        "issuers": [
            {
                "issuer": ISSUER,
                "audiences": ["https://api.example"],
                "clockSkew": "0s",
                "retrofit": {"opaque": {"audience": "https://api.example"}},
            },
            {
                "issuer": "https://as.example",
                "audiences": ["https://api.example"],
                "jwks": {"file": "jwks.json"},
            },
        ],
        "security": {"senderConstraints": {"require": "none"}},
        "store": {"path": "holdfast.db"},
    })
}
