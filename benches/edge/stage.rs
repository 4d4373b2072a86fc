//! What the load goes through: keys, certificates, an origin, and the real program in between.

use std::borrow::Cow;
use std::sync::Arc;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cases::{Case, Kind, Protocol};
use crate::http1::{self, Fields, HOST};
use crate::origin::{self, ORDER};
use crate::pki::{self, Identity, authority, identity};
use crate::program::{self, Edge, free_port};
use crate::proofs::{self, About, Key};
use crate::{Outcome, tokens};

pub(crate) struct Stage {
    pub(crate) port: u16,
    pub(crate) edge: Edge,
    authority: CertificateDer<'static>,
    client: Identity,
    pub(crate) sender: Key,
    dpop_token: String,
    mtls_token: String,
    _directory: TempDir,
}

impl Stage {
    /// Starts origin and edge; `pinned`: the generator has its core, the edge may have its own.
    /// `redis`: the port of a server that remembers proofs in the place of the edge.
    pub(crate) async fn start(pinned: bool, redis: Option<u16>) -> Outcome<Self> {
        let directory = tempfile::tempdir()?;
        let authority = authority()?;
        let client = identity(&authority, "client.example", ExtendedKeyUsagePurpose::ClientAuth)?;
        let (issuer, sender) = (Key::generate()?, Key::generate()?);
        let write = |name: &str, text: &str| program::write(directory.path(), name, text);
        write("ca.pem", &authority.pem())?;
        program::certify(directory.path(), &authority)?;
        write("jwks.json", &tokens::key_set(&issuer).to_string())?;
        let (port, admin) = (free_port()?, free_port()?);
        let mut config = config(port, admin, origin::start(order).await?);
        if let Some(redis) = redis {
            let redis = json!({"nodes": [format!("127.0.0.1:{redis}")]});
            config["store"] = json!({"kind": "redis", "redis": redis});
            let replay = json!({"store": "redis"});
            config["security"]["senderConstraints"]["dpop"]["replay"] = replay;
        }
        let edge = Edge::start(directory.path(), &config, pinned).await?;
        let x5t = proofs::digest(&client.certificate);
        Ok(Self {
            port,
            edge,
            authority: authority.der().clone(),
            dpop_token: tokens::token(&issuer, 1, &json!({ "jkt": sender.jkt }))?,
            mtls_token: tokens::token(&issuer, 2, &json!({ "x5t#S256": x5t }))?,
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
                let proofs = self.proofs(case.kind, count).await?;
                let authorization = scheme("DPoP", &self.dpop_token);
                let with = |proof| vec![authorization.clone(), ("dpop", proof)];
                proofs.into_iter().map(with).collect()
            }
        })
    }

    /// `count` proofs as requests of this kind show them, each signed now.
    pub(crate) async fn proofs(&self, kind: Kind, count: usize) -> Outcome<Vec<String>> {
        let nonce = self.nonce().await?;
        self.signed(kind, Some(&nonce), count)
    }

    fn signed(&self, kind: Kind, nonce: Option<&str>, count: usize) -> Outcome<Vec<String>> {
        let url = format!("https://{HOST}{}", kind.path());
        let about = About { method: "GET", url: &url, token: Some(&self.dpop_token), nonce };
        self.sender.proofs(&about, count)
    }

    async fn nonce(&self) -> Outcome<String> {
        let case = Case { kind: Kind::Dpop, protocol: Protocol::Http1 };
        let mut proofs = self.signed(case.kind, None, 1)?;
        let fields = vec![
            ("authorization", format!("DPoP {}", self.dpop_token)),
            ("dpop", proofs.pop().unwrap_or_default()),
        ];
        let request = http1::request(case.kind.path(), &fields);
        http1::nonce(self.port, self.tls(case)?, &request).await
    }
}

/// What the origin answers. No request has a body.
fn order(request: &[u8]) -> Option<Cow<'static, [u8]>> {
    request.ends_with(b"\r\n\r\n").then_some(ORDER.into())
}

fn config(port: u16, admin: u16, origin: u16) -> Value {
    let route = |name: &str, role: &str| {
        json!({"name": name, "hosts": [HOST], "path": format!("/{name}/*"), "role": role,
               "upstream": "origin"})
    };
    let mut passed = route("passed", "public");
    passed["passCredentials"] = true.into();
    let mut bound = route("bound", "resource");
    bound["origin"] = format!("https://{HOST}").into();
    let mut edge = program::edge(port, admin);
    let tls = &mut edge["listeners"][0]["tls"];
    tls["clientCertificates"] = "request".into();
    tls["clientAuthorities"] = json!(["ca.pem"]);
    json!({
        "schemaVersion": 1,
        "edge": edge,
        "upstreams": {"origin": {"servers": [format!("127.0.0.1:{origin}")]}},
        "routes": [route("public", "public"), passed, bound],
        "issuers": [{
            "issuer": "https://as.example",
            "audiences": ["https://api.example"],
            "jwks": {"file": "jwks.json"},
        }],
    })
}
