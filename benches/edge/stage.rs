//! What the load goes through: keys, certificates, an origin, and the real program in between.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cases::{Case, Kind};
use crate::load::http1;
use crate::pki::{self, Identity, authority, identity, pem};
use crate::program::{Edge, free_port};
use crate::proofs::{self, About, Key};
use crate::{Outcome, cpu, origin};

/// The edge's name, in certificates, `Host` and `htu`.
pub(crate) const HOST: &str = "api.example";

pub(crate) struct Stage {
    pub(crate) port: u16,
    /// Whether edge and generator have a core each.
    pub(crate) pinned: bool,
    pub(crate) edge: Edge,
    authority: CertificateDer<'static>,
    client: Identity,
    sender: Key,
    dpop_token: String,
    mtls_token: String,
    _directory: TempDir,
}

impl Stage {
    /// Starts origin and edge; `pinned`: the generator has its core, the edge may have its own. `redis`:
    /// the port of a server that remembers proofs in the place of the edge.
    pub(crate) async fn start(pinned: bool, redis: Option<u16>) -> Outcome<Self> {
        let directory = tempfile::tempdir()?;
        let authority = authority()?;
        let server = identity(&authority, HOST, ExtendedKeyUsagePurpose::ServerAuth)?;
        let client = identity(&authority, "client.example", ExtendedKeyUsagePurpose::ClientAuth)?;
        let (issuer, sender) = (Key::generate()?, Key::generate()?);
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).and_then(|()| {
                // A key that others can read is warned of.
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            })
        };
        write("ca.pem", &authority.pem())?;
        write("server.pem", &pem("CERTIFICATE", &server.certificate))?;
        write("server.key", &server.key.serialize_pem())?;
        let mut jwk = issuer.jwk.clone();
        jwk["kid"] = "k1".into();
        write("jwks.json", &json!({ "keys": [jwk] }).to_string())?;
        let (port, admin) = (free_port()?, free_port()?);
        let mut config = config(port, admin, origin::start().await?);
        if let Some(redis) = redis {
            let redis = json!({"nodes": [format!("127.0.0.1:{redis}")]});
            config["store"] = json!({"kind": "redis", "redis": redis});
            let replay = json!({"store": "redis"});
            config["security"]["senderConstraints"]["dpop"]["replay"] = replay;
        }
        write("authority.yaml", &config.to_string())?;
        let mut edge = Edge::spawn(&directory.path().join("authority.yaml"), pinned)?;
        edge.ready(admin).await?;
        let x5t = proofs::digest(&client.certificate);
        Ok(Self {
            port,
            pinned,
            edge,
            authority: authority.der().clone(),
            dpop_token: issuer.token(1, &json!({ "jkt": sender.jkt }))?,
            mtls_token: issuer.token(2, &json!({ "x5t#S256": x5t }))?,
            client,
            sender,
            _directory: directory,
        })
    }

    /// How a client of this case speaks TLS.
    pub(crate) fn tls(&self, case: Case) -> Outcome<Arc<ClientConfig>> {
        let client = (case.kind == Kind::Mtls).then_some(&self.client);
        pki::tls(&self.authority, client, case.protocol.name())
    }

    /// The fields of `count` requests of this kind, each signed now.
    pub(crate) async fn fields(&self, case: Case, count: usize) -> Outcome<Vec<Fields>> {
        let scheme = |name: &str, token: &str| ("authorization", format!("{name} {token}"));
        Ok(match case.kind {
            Kind::Public => vec![Vec::new(); count],
            Kind::Mtls => vec![vec![scheme("Bearer", &self.mtls_token)]; count],
            Kind::Passed | Kind::Dpop => {
                let nonce = self.nonce().await?;
                let proofs = self.proofs(case.kind, Some(&nonce), count)?;
                let authorization = scheme("DPoP", &self.dpop_token);
                let with = |proof| vec![authorization.clone(), ("dpop", proof)];
                proofs.into_iter().map(with).collect()
            }
        })
    }

    /// CPU time of one ES256 verification, key parsed before: proofs like those of the load, each
    /// once, on the edge's core while that rests.
    pub(crate) async fn signature(&self, count: usize) -> Outcome<Duration> {
        let proofs = self.proofs(Kind::Dpop, Some(&self.nonce().await?), count)?;
        let signed: Vec<_> =
            proofs.iter().map(|proof| proofs::signed(proof)).collect::<Result<_, _>>()?;
        let (verifier, pinned) = (self.sender.verifier()?, self.pinned);
        let measuring = std::thread::spawn(move || {
            if pinned {
                cpu::pin(cpu::this_thread()?, cpu::EDGE_CORE);
            }
            let (first, rest) = signed.split_at(signed.len() / 10);
            let verify = |(input, signature): &(Vec<u8>, Vec<u8>)| {
                verifier.verify_sig(input, signature).map_err(|_| "a proof does not verify")
            };
            first.iter().try_for_each(verify)?;
            let before = cpu::of_this_thread()?;
            rest.iter().try_for_each(verify)?;
            let took = Duration::from_nanos(cpu::of_this_thread()? - before);
            Ok(took / u32::try_from(rest.len().max(1))?)
        });
        measuring.join().map_err(|_| "the measuring thread ended early")?
    }

    fn proofs(&self, kind: Kind, nonce: Option<&str>, count: usize) -> Outcome<Vec<String>> {
        let url = format!("https://{HOST}{}", kind.path());
        let about = About { method: "GET", url: &url, token: Some(&self.dpop_token), nonce };
        self.sender.proofs(&about, count)
    }

    /// As a client gets one: by being challenged.
    async fn nonce(&self) -> Outcome<String> {
        let case = Case { kind: Kind::Dpop, protocol: crate::cases::Protocol::Http1 };
        let mut proofs = self.proofs(case.kind, None, 1)?;
        let fields = vec![
            ("authorization", format!("DPoP {}", self.dpop_token)),
            ("dpop", proofs.pop().unwrap_or_default()),
        ];
        let mut client = http1::Client::open(self.port, self.tls(case)?).await?;
        let status = client.get(&http1::request(case.kind.path(), &fields)).await?;
        let nonce = client.field("dpop-nonce").ok_or_else(|| format!("no nonce, but {status}"))?;
        Ok(nonce.to_owned())
    }
}

/// Header fields of one request.
pub(crate) type Fields = Vec<(&'static str, String)>;

/// The defaults, but for one worker thread and connections that outlive a round.
fn config(port: u16, admin: u16, origin: u16) -> Value {
    let route = |name: &str, role: &str| {
        json!({"name": name, "hosts": [HOST], "path": format!("/{name}/*"), "role": role,
               "upstream": "origin"})
    };
    let mut passed = route("passed", "public");
    passed["passCredentials"] = true.into();
    let mut bound = route("bound", "resource");
    bound["origin"] = format!("https://{HOST}").into();
    json!({
        "schemaVersion": 1,
        "edge": {
            "listeners": [{
                "name": "main",
                "address": format!("127.0.0.1:{port}"),
                "tls": {
                    "certificates": [{"certificate": "server.pem", "key": "server.key"}],
                    "clientCertificates": "request",
                    "clientAuthorities": ["ca.pem"],
                },
                "keepaliveRequests": 1_000_000,
            }],
            "admin": {"address": format!("127.0.0.1:{admin}")},
            "threads": 1,
        },
        "upstreams": {"origin": {"servers": [format!("127.0.0.1:{origin}")]}},
        "routes": [route("public", "public"), passed, bound],
        "issuers": [{
            "issuer": "https://as.example",
            "audiences": ["https://api.example"],
            "jwks": {"file": "jwks.json"},
        }],
    })
}
