//! What a decision costs: proof, token, and the whole of `gate::admit`, one thread, ES256.
//!
//! `benches/README.md` has the method and the figures.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use holdfast::gate::{Gate, Settings, Stores};
use holdfast::policy::digest::Sha256;
use holdfast::policy::epoch::Reign;
use holdfast::policy::jose::{Algorithm, AlgorithmSet, CompactJws, PublicKey};
use holdfast::policy::json;
use holdfast::policy::nonce::{NonceKeys, NonceSecret};
use holdfast::policy::proof::{self, Expected, ProofRules, Seen};
use holdfast::policy::request::{RequestView, Sender};
use holdfast::policy::rule::{
    AuthorityRule, Demand, Mode, Requirement, Role, RouteRule, Rules, Scope,
};
use holdfast::policy::step_up::StepUp;
use holdfast::policy::target::Origin;
use holdfast::policy::time::UnixTime;
use holdfast::policy::token::{IssuerRules, KeySet, TokenType};
use holdfast::store::epoch::OfProcess;
use holdfast::store::replay::MemoryReplay;
use http::{HeaderMap, HeaderValue};
use josekit::jwk::Jwk;
use josekit::jwk::alg::ec::EcCurve;
use josekit::jws::{ES256, JwsHeader};

const ORIGIN: &str = "https://api.example.com";
const PATH: &str = "/orders/1";
const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
const SECRET: [u8; 32] = [7; 32];

fn key() -> Jwk {
    Jwk::generate_ec_key(EcCurve::P256).unwrap()
}

fn sign(key: &Jwk, header: &JwsHeader, claims: &serde_json::Value) -> String {
    let signer = ES256.signer_from_jwk(key).unwrap();
    josekit::jws::serialize_compact(claims.to_string().as_bytes(), header, &signer).unwrap()
}

fn public(key: &Jwk) -> PublicKey {
    let jwk = key.to_public_key().unwrap();
    PublicKey::from_jwk(&json::object(jwk.to_string().as_bytes()).unwrap()).unwrap()
}

fn token(issuer: &Jwk, sender: &Jwk, number: u64) -> String {
    let mut header = JwsHeader::new();
    header.set_token_type("at+jwt");
    header.set_key_id("k1");
    let claims = serde_json::json!({
        "iss": "https://as.example.com", "sub": "user-1", "client_id": "client-1",
        "aud": "orders", "scope": "orders:read orders:write", "jti": format!("token-{number}"),
        "iat": NOW.secs(), "exp": NOW.secs() + 3600,
        "cnf": { "jkt": public(sender).jkt().to_string() },
    });
    sign(issuer, &header, &claims)
}

fn make_proof(sender: &Jwk, token: &str, number: u64) -> String {
    let mut header = JwsHeader::new();
    header.set_token_type("dpop+jwt");
    header.set_jwk(sender.to_public_key().unwrap());
    let secret = NonceSecret::new(SECRET).bound_to(&reign().epoch);
    let nonce = NonceKeys::derive(&[secret], &Origin::parse(ORIGIN).unwrap());
    let claims = serde_json::json!({
        "jti": format!("{number:032x}"), "htm": "GET", "htu": format!("{ORIGIN}{PATH}"),
        "iat": NOW.secs(), "ath": Sha256::of(token.as_bytes()).to_string(),
        "nonce": nonce.make(NOW, [1; 8]).unwrap(),
    });
    sign(sender, &header, &claims)
}

fn reign() -> Reign {
    Reign::of_process([0; 32], UnixTime::from_secs(0))
}

fn proof_rules() -> ProofRules {
    ProofRules {
        proof_lifetime: Duration::from_secs(120),
        clock_skew: Duration::from_secs(30),
        replay_window: Duration::from_secs(300),
        nonce_ttl: Some(Duration::from_secs(600)),
        nonce_replaces_iat: false,
        nonce_single_use: false,
    }
}

fn gate(issuer: &Jwk) -> Gate {
    let algorithms = AlgorithmSet::of(&[Algorithm::Es256]);
    let rules = Rules {
        default: Requirement { demand: Demand::Any, mode: Mode::Enforce, algorithms, nonce: true },
        dpop_enabled: true,
        mtls_enabled: true,
        certificate_audiences: vec!["signer".to_owned()],
        nonce_audiences: Vec::new(),
        tenants: Vec::new(),
        tenant_claim: None,
        unknown_tenant_allowed: false,
        share_salt: String::new(),
    };
    let settings = Settings {
        rules,
        issuers: vec![IssuerRules {
            issuer: "https://as.example.com".to_owned(),
            audiences: vec!["orders".to_owned()],
            algorithms,
            token_type: TokenType::AccessToken,
            clock_skew: Duration::from_secs(30),
            tenant: None,
            keys: true,
            introspection: None,
            retrofit: None,
        }],
        origins: vec![Origin::parse(ORIGIN).unwrap()],
        proof: proof_rules(),
        authorization_bytes: 16_384,
        proof_bytes: 8192,
        token_cache_entries: 100_000,
        introspection_cache_entries: 10,
        nonce_secrets: vec![NonceSecret::new(SECRET)],
        era_margin: Duration::ZERO,
        clients: Vec::new(),
        bypass: Default::default(),
        rotation_grace: Duration::ZERO,
    };
    let replay = MemoryReplay::new(&SECRET, settings.proof.replay_window, 100_000_000);
    let gate = Gate::new(
        settings,
        Stores::of_resources(Arc::new(replay), Arc::new(OfProcess::new(reign()))),
    );
    let mut jwk = issuer.to_public_key().unwrap();
    jwk.set_key_id("k1");
    let set = format!(r#"{{"keys":[{jwk}]}}"#);
    gate.replace_keys(0, KeySet::from_json(set.as_bytes()).unwrap());
    gate
}

fn route() -> RouteRule {
    RouteRule {
        role: Role::Resource,
        scope: Scope::default(),
        allow_unbound: false,
        audiences: Vec::new(),
        scopes: Vec::new(),
        authority: AuthorityRule::default(),
        step_up: StepUp::default(),
    }
}

fn headers(token: &str, proof: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static("api.example.com"));
    headers.insert("authorization", HeaderValue::from_str(&format!("DPoP {token}")).unwrap());
    headers.insert("dpop", HeaderValue::from_str(proof).unwrap());
    headers
}

/// How a JWK becomes a verifier decides what a proof costs.
fn proof_verification(criterion: &mut Criterion) {
    let sender = key();
    let proof = make_proof(&sender, "token", 1);
    let origin = Origin::parse(ORIGIN).unwrap();
    let nonce_keys =
        NonceKeys::derive(&[NonceSecret::new(SECRET).bound_to(&reign().epoch)], &origin);
    let rules = proof_rules();
    let expected = Expected {
        method: "GET",
        origin: &origin,
        path: PATH,
        token_hash: Some(Sha256::of(b"token")),
        algorithms: AlgorithmSet::of(&[Algorithm::Es256]),
        nonce_keys: Some(&nonce_keys),
        nonce_required: true,
        rules: &rules,
        max_bytes: 8192,
        reign: reign(),
        now: NOW,
    };
    let shown = headers("token", &proof);
    let mut group = criterion.benchmark_group("proof");
    group.throughput(Throughput::Elements(1));
    group.bench_function("whole", |bencher| {
        bencher.iter(|| proof::verify(&shown, &expected, &mut Seen::default()).unwrap());
    });
    let jws = CompactJws::parse(&proof).unwrap();
    let parsed = public(&sender);
    group.bench_function("signature alone, aws-lc-rs, key parsed before", |bencher| {
        bencher.iter(|| assert!(jws.verified_by(black_box(&parsed), Algorithm::Es256)));
    });
    let jwk = sender.to_public_key().unwrap();
    let jwk_members = json::object(jwk.to_string().as_bytes()).unwrap();
    group.bench_function("signature alone, aws-lc-rs, key from its JWK", |bencher| {
        bencher.iter(|| {
            let key = PublicKey::from_jwk(black_box(&jwk_members)).unwrap();
            assert!(jws.verified_by(&key, Algorithm::Es256));
        });
    });
    group.bench_function("josekit, verifier from the JWK", |bencher| {
        bencher.iter(|| {
            let verifier = ES256.verifier_from_jwk(black_box(&jwk)).unwrap();
            josekit::jws::deserialize_compact(&proof, &verifier).unwrap()
        });
    });
    let verifier = ES256.verifier_from_jwk(&jwk).unwrap();
    group.bench_function("josekit, verifier made before", |bencher| {
        bencher.iter(|| josekit::jws::deserialize_compact(black_box(&proof), &verifier).unwrap());
    });
    group.finish();
}

/// `gate::admit`, every proof new; the token remembered, or verified each time.
fn admission(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (issuer, sender) = (key(), key());
    let route = route();
    let mut group = criterion.benchmark_group("admit");
    group.throughput(Throughput::Elements(1));
    for (name, remembered) in [("token remembered", true), ("token verified", false)] {
        let gate = gate(&issuer);
        let first = token(&issuer, &sender, 0);
        let mut number = 0;
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || {
                    number += 1;
                    // Each signature of one text is another, so that a token is signed once.
                    let token =
                        if remembered { first.clone() } else { token(&issuer, &sender, number) };
                    headers(&token, &make_proof(&sender, &token, number))
                },
                |headers| {
                    let view = RequestView {
                        method: "GET",
                        path: PATH,
                        query: None,
                        headers: &headers,
                        sender: Sender::NoCertificate,
                    };
                    let decision = runtime.block_on(gate.admit(&view, &route, Some(0), NOW));
                    assert!(decision.verdict.is_ok(), "{:?}", decision.verdict);
                    headers
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(4)).sample_size(50);
    targets = proof_verification, admission
}
criterion_main!(benches);
