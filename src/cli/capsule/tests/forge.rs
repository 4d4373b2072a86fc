//! An edge's side of a capsule, made by other means than the client's: JWE by aws-lc-rs.

use aws_lc_rs::agreement::{self, ECDH_P256};
use aws_lc_rs::{aead, digest};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};

use crate::cli::client::key::SigningKey;
use crate::policy::capsule::envelope::{Claims, key_hash, signature};
use crate::policy::capsule::node::NodeId;
use crate::policy::jose::Algorithm;
use crate::policy::token::KeySet;

pub(crate) const SECRET: &str = "hf-secret-1";
pub(crate) const KEY: [u8; 32] = [7; 32];

pub(crate) fn node() -> NodeId {
    NodeId::parse("node-1").unwrap()
}

/// What signs envelopes.
pub(crate) struct Forge {
    pub(crate) signer: SigningKey,
}

impl Forge {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        Self { signer: SigningKey::generate(algorithm).unwrap() }
    }

    pub(crate) fn kid(&self) -> String {
        self.signer.thumbprint().to_string()
    }

    pub(crate) fn jwks(&self) -> Value {
        let mut key = self.signer.public_jwk().clone();
        key.insert("kid".into(), self.kid().into());
        key.insert("alg".into(), self.signer.algorithm().name().into());
        key.insert("use".into(), "sig".into());
        json!({"keys": [key]})
    }

    pub(crate) fn keys(&self) -> KeySet {
        KeySet::from_json(self.jwks().to_string().as_bytes()).unwrap()
    }

    /// A sound capsule, to be spoilt.
    pub(crate) fn spec(&self, issued: i64) -> Spec {
        let header = json!({"typ": "runtime-capsule+jwt", "kid": self.kid()});
        Spec {
            header,
            claims: json!({
                "cluster": "test-cluster", "exp": issued + 86_400, "iat": issued, "jti": "c1",
                "keyHash": key_hash(&KEY), "keyVersion": "m1.n1", "riskScore": 20,
                "sealed": false, "sub": "node-1",
            }),
            key: KEY.to_vec(),
            secret: SECRET.to_owned(),
            seal: None,
        }
    }

    pub(crate) fn envelope(&self, spec: &Spec) -> String {
        self.signer.sign(spec.header.as_object().unwrap(), &spec.claims).unwrap()
    }

    /// The answer as JSON.
    pub(crate) fn grant(&self, spec: &Spec) -> Value {
        let claims: Claims = serde_json::from_value(spec.claims.clone()).unwrap();
        let time = |secs| {
            let time = crate::policy::time::UnixTime::from_millis(secs * 1000 + 250);
            time.rfc3339().to_string()
        };
        let (member, material) = match &spec.seal {
            None => ("runtimeKey", STANDARD.encode(&spec.key)),
            Some(seal) => ("sealedKey", seal.compact(&spec.key)),
        };
        let signed = signature(&spec.secret, &node(), &claims.canonical(), &material);
        json!({
            "capsuleId": claims.jti, "nodeId": claims.sub, member: material,
            "keyVersion": claims.key_version, "issuedUtc": time(claims.iat),
            "expiresUtc": time(claims.exp), "riskScore": claims.risk_score,
            "signature": signed, "envelope": self.envelope(spec),
        })
    }
}

/// What goes into a capsule.
pub(crate) struct Spec {
    pub(crate) header: Value,
    pub(crate) claims: Value,
    pub(crate) key: Vec<u8>,
    pub(crate) secret: String,
    pub(crate) seal: Option<Seal>,
}

impl Spec {
    /// Sealed to a public JWK, and saying so.
    pub(crate) fn sealed_to(mut self, jwk: &Map<String, Value>) -> Self {
        self.claims["sealed"] = true.into();
        let cluster = URL_SAFE_NO_PAD.encode(self.claims["cluster"].as_str().unwrap());
        let node = URL_SAFE_NO_PAD.encode(self.claims["sub"].as_str().unwrap());
        let header = json!({"alg": "ECDH-ES", "enc": "A256GCM", "apu": cluster, "apv": node});
        self.seal = Some(Seal { to: jwk.clone(), header, tag_bytes: 16 });
        self
    }
}

/// How a key is sealed.
pub(crate) struct Seal {
    pub(crate) to: Map<String, Value>,
    pub(crate) header: Value,
    pub(crate) tag_bytes: usize,
}

impl Seal {
    /// RFC 7518 section 4.6.2 and RFC 7516 section 5.1.
    fn compact(&self, plain: &[u8]) -> String {
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(self.to[name].as_str().unwrap()).unwrap();
        let point = [vec![4], bytes("x"), bytes("y")].concat();
        let own = agreement::PrivateKey::generate(&ECDH_P256).unwrap();
        let public = own.compute_public_key().unwrap();
        let peer = agreement::UnparsedPublicKey::new(&ECDH_P256, point);
        let agreed = agreement::agree(&own, peer, (), |z| Ok(z.to_vec())).unwrap();
        let party = |name: &str| match self.header.get(name) {
            Some(text) => URL_SAFE_NO_PAD.decode(text.as_str().unwrap()).unwrap(),
            None => Vec::new(),
        };
        let lp = |part: &[u8]| [&u32::try_from(part.len()).unwrap().to_be_bytes(), part].concat();
        let info = [lp(b"A256GCM"), lp(&party("apu")), lp(&party("apv"))].concat();
        let input = [&1_u32.to_be_bytes()[..], &agreed, &info, &256_u32.to_be_bytes()].concat();
        let cek = digest::digest(&digest::SHA256, &input);
        let (x, y) = public.as_ref()[1..].split_at(32);
        let mut header = self.header.clone();
        let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
        header["epk"] = json!({"kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y)});
        let header = encode(header.to_string().as_bytes());
        let key = aead::UnboundKey::new(&aead::AES_256_GCM, cek.as_ref()).unwrap();
        let nonce = aead::Nonce::assume_unique_for_key([9; 12]);
        let mut sealed = plain.to_vec();
        let aad = aead::Aad::from(header.as_bytes());
        let tag = aead::LessSafeKey::new(key)
            .seal_in_place_separate_tag(nonce, aad, &mut sealed)
            .unwrap();
        let tag = encode(&tag.as_ref()[..self.tag_bytes]);
        format!("{header}..{}.{}.{tag}", encode(&[9; 12]), encode(&sealed))
    }
}
