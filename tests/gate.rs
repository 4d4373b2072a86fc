//! The gate at chosen times: what no socket can show, because its clock cannot be set.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, reason = "keys are made at run time")]

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast::gate::{Asking, Decision, Gate, Settings, Stores, Told};
use holdfast::policy::binding::BoundBy;
use holdfast::policy::certificate::SenderCertificate;
use holdfast::policy::denial::Denial;
use holdfast::policy::digest::Sha256;
use holdfast::policy::epoch::Reign;
use holdfast::policy::form::Form;
use holdfast::policy::introspection::IntrospectionRules;
use holdfast::policy::jose::{Algorithm, AlgorithmSet, PublicKey};
use holdfast::policy::json;
use holdfast::policy::nonce::NonceSecret;
use holdfast::policy::proof::ProofRules;
use holdfast::policy::request::{RequestView, Sender};
use holdfast::policy::rule::{
    AuthorityRule, Demand, Mode, Requirement, Role, RouteRule, Rules, Scope, TenantId, TenantRule,
};
use holdfast::policy::share::Share;
use holdfast::policy::step_up::StepUp;
use holdfast::policy::target::Origin;
use holdfast::policy::time::UnixTime;
use holdfast::policy::token::{IssuerRules, KeySet, TokenType};
use holdfast::store::epoch::{Epochs, OfProcess};
use holdfast::store::replay::MemoryReplay;
use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

const START: i64 = 1_800_000_000_500;
const TTL: Duration = Duration::from_secs(600);

struct Key(EcdsaKeyPair);

impl Key {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn jwk(&self) -> Value {
        let (x, y) = self.0.public_key().as_ref()[1..].split_at(32);
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({"kty": "EC", "crv": "P-256", "x": text(x), "y": text(y)})
    }

    fn jkt(&self) -> String {
        let jwk = json::object(self.jwk().to_string().as_bytes()).unwrap();
        PublicKey::from_jwk(&jwk).unwrap().jkt().to_string()
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input = format!("{}.{}", part(header), part(claims));
        let signature = self.0.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// A gate that started at [`START`], its issuer's key and a client's.
struct World {
    issuer: Key,
    client: Key,
    gate: Gate,
    route: RouteRule,
}

/// A memory of proofs that cannot be reached.
#[derive(Debug)]
struct Gone;

impl Epochs for Gone {
    fn current(&self) -> Option<Reign> {
        None
    }
}

fn world(change: impl FnOnce(&mut Settings)) -> World {
    let reign = Reign::of_process([4; 32], UnixTime::from_millis(START));
    world_over(Arc::new(OfProcess::new(reign)), change)
}

fn world_over(epochs: Arc<dyn Epochs>, change: impl FnOnce(&mut Settings)) -> World {
    let algorithms = AlgorithmSet::of(&[Algorithm::Es256]);
    let default = Requirement { demand: Demand::Any, mode: Mode::Enforce, algorithms, nonce: true };
    let mut settings = Settings {
        rules: Rules {
            default,
            dpop_enabled: true,
            mtls_enabled: true,
            certificate_audiences: Vec::new(),
            nonce_audiences: Vec::new(),
            tenants: Vec::new(),
            tenant_claim: None,
            unknown_tenant_allowed: false,
            share_salt: String::new(),
        },
        issuers: vec![IssuerRules {
            issuer: "https://as.example".to_owned(),
            audiences: vec!["api".to_owned()],
            algorithms,
            token_type: TokenType::AccessToken,
            clock_skew: Duration::ZERO,
            tenant: None,
            keys: true,
            introspection: None,
            retrofit: None,
        }],
        origins: vec![Origin::parse("https://api.example").unwrap()],
        proof: ProofRules {
            proof_lifetime: Duration::from_secs(120),
            clock_skew: Duration::from_secs(30),
            replay_window: Duration::from_secs(900),
            nonce_ttl: Some(TTL),
            nonce_replaces_iat: false,
            nonce_single_use: false,
        },
        authorization_bytes: 16_384,
        proof_bytes: 8192,
        token_cache_entries: 10,
        introspection_cache_entries: 10,
        nonce_secrets: vec![NonceSecret::new([2; 32])],
        era_margin: Duration::ZERO,
        clients: Vec::new(),
        bypass: Arc::default(),
        rotation_grace: Duration::ZERO,
    };
    change(&mut settings);
    let replay = MemoryReplay::new(&[3; 32], settings.proof.replay_window, 1000);
    let (issuer, client) = (Key::new(), Key::new());
    let gate = Gate::new(settings, Stores::of_resources(Arc::new(replay), epochs));
    let set = json!({"keys": [issuer.jwk()]}).to_string();
    gate.replace_keys(0, KeySet::from_json(set.as_bytes()).unwrap());
    let route = RouteRule {
        role: Role::Resource,
        scope: Scope::default(),
        allow_unbound: false,
        audiences: Vec::new(),
        scopes: Vec::new(),
        authority: AuthorityRule::default(),
        step_up: StepUp::default(),
    };
    World { issuer, client, gate, route }
}

fn nonces_off(settings: &mut Settings) {
    settings.proof.nonce_ttl = None;
    settings.rules.default.nonce = false;
}

impl World {
    fn token(&self, cnf: &Value) -> String {
        let claims = json!({
            "iss": "https://as.example", "aud": "api", "exp": START / 1000 + 36_000, "cnf": cnf,
        });
        self.issuer.sign(&json!({"typ": "at+jwt", "alg": "ES256"}), &claims)
    }

    /// A token bound to the client's key.
    fn bound(&self) -> String {
        self.token(&json!({"jkt": self.client.jkt()}))
    }

    fn proof(&self, token: &str, iat: impl Into<Value>, nonce: Option<&str>) -> String {
        let mut claims = json!({
            "jti": "1", "htm": "GET", "htu": "https://api.example/", "iat": iat.into(),
            "ath": Sha256::of(token.as_bytes()).to_string(),
        });
        if let Some(nonce) = nonce {
            claims["nonce"] = nonce.into();
        }
        let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": self.client.jwk()});
        self.client.sign(&header, &claims)
    }

    async fn admit(
        &self,
        authorization: &str,
        proofs: &[&str],
        sender: Sender<'_>,
        millis: i64,
    ) -> Decision {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_str(authorization).unwrap());
        for proof in proofs {
            headers.append("dpop", HeaderValue::from_str(proof).unwrap());
        }
        self.admit_told(&headers, sender, None, millis).await
    }

    async fn admit_told(
        &self,
        headers: &HeaderMap,
        sender: Sender<'_>,
        told: Option<&Told>,
        millis: i64,
    ) -> Decision {
        let view = RequestView { method: "GET", path: "/", query: None, headers, sender };
        let now = UnixTime::from_millis(millis);
        self.gate.admit_told(&view, &self.route, Some(0), told, now).await
    }

    async fn dpop(&self, token: &str, proof: &str, millis: i64) -> Decision {
        self.admit(&format!("DPoP {token}"), &[proof], Sender::NoCertificate, millis).await
    }
}

fn outcome(decision: &Decision) -> Result<BoundBy, Denial> {
    decision.verdict.as_ref().map(|permit| permit.bound_by()).map_err(|denial| *denial)
}

/// An earlier process may have admitted it, and remembered it alone.
#[tokio::test]
async fn what_was_issued_before_the_start_is_refused_to_the_millisecond() {
    let second = START / 1000;
    for (iat, expect) in [
        (json!(second), Err(Denial::ProofBeforeStart)),
        (json!(second as f64 + 0.25), Err(Denial::ProofBeforeStart)),
        (json!(second as f64 + 0.5), Err(Denial::ProofBeforeStart)),
        (json!(second as f64 + 0.75), Ok(BoundBy::Dpop)),
        (json!(second + 1), Ok(BoundBy::Dpop)),
    ] {
        let world = world(nonces_off);
        let token = world.bound();
        let proof = world.proof(&token, iat.clone(), None);
        let decision = world.dpop(&token, &proof, START + 600).await;
        assert_eq!(outcome(&decision), expect, "{iat}");
    }
}

/// `nonce.replacesIat` is for clients without a clock: they are told of the nonce, not of the time.
#[tokio::test]
async fn a_client_without_a_clock_is_sent_a_nonce() {
    for (replaces, age, expect) in [
        (true, None, Err(Denial::NonceAbsent)),
        (true, Some(601), Err(Denial::NonceExpired)),
        (true, Some(1), Ok(BoundBy::Dpop)),
        (false, None, Err(Denial::ProofStale)),
        (false, Some(601), Err(Denial::ProofStale)),
        (false, Some(1), Err(Denial::ProofStale)),
    ] {
        let world = world(|settings| settings.proof.nonce_replaces_iat = replaces);
        let now = START + 1_000_000;
        let made = |age: i64| UnixTime::from_millis(now - age * 1000);
        let nonce = age.map(|age| world.gate.nonce(0, made(age), [1; 8]).unwrap());
        let token = world.bound();
        let proof = world.proof(&token, 1000, nonce.as_deref());
        let decision = world.dpop(&token, &proof, now).await;
        assert_eq!(outcome(&decision), expect, "{replaces} {age:?}");
        assert_eq!(decision.facts.wants_nonce, expect.is_err(), "{replaces} {age:?}");
    }
}

/// Who is told to come again with a nonce, and given none, comes again without end.
#[tokio::test]
async fn nobody_is_sent_for_a_nonce_that_is_not_to_be_had() {
    let known = || -> Arc<dyn Epochs> {
        Arc::new(OfProcess::new(Reign::of_process([4; 32], UnixTime::from_millis(START))))
    };
    let gone = || -> Arc<dyn Epochs> { Arc::new(Gone) };
    for (name, epochs, nonces, theirs, expect) in [
        ("known", known(), true, false, Denial::ProofMissing),
        ("gone", gone(), true, false, Denial::StoreDown),
        // A proof is all that is missing here, and what comes with one is judged then.
        ("gone, without nonces", gone(), false, false, Denial::ProofMissing),
        ("gone, with the server's nonces", gone(), true, true, Denial::ProofMissing),
    ] {
        let mut world = world_over(epochs, |settings| {
            if !nonces {
                nonces_off(settings);
            }
        });
        world.route.role = Role::Token;
        world.route.authority.upstream_nonces = theirs;
        let headers = HeaderMap::new();
        let sender = Sender::NoCertificate;
        let view =
            RequestView { method: "POST", path: "/token", query: None, headers: &headers, sender };
        let kind = Some("application/x-www-form-urlencoded");
        let form = Form::parse(kind, b"grant_type=client_credentials&client_id=a").ok().unwrap();
        let now = UnixTime::from_millis(START + 1000);
        let asking = Asking { view: &view, route: &world.route, origin: Some(0), form: &form, now };
        let decision = world.gate.admit_grant(&asking).await;
        assert_eq!(decision.verdict.err(), Some(expect), "{name}");
    }
    // On a resource a proof is looked at first, and with it whether there is a memory of proofs.
    let world = world_over(gone(), |_| {});
    let authorization = format!("DPoP {}", world.bound());
    let decision = world.admit(&authorization, &[], Sender::NoCertificate, START).await;
    assert_eq!(outcome(&decision), Err(Denial::StoreDown));
}

fn certificate(not_after: i64) -> SenderCertificate {
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    let end = std::time::UNIX_EPOCH + Duration::from_secs(u64::try_from(not_after).unwrap());
    params.not_after = end.into();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    SenderCertificate::new(certificate.der().to_vec()).unwrap()
}

/// The handshake judged it, but a connection or a session to resume may outlive it.
#[tokio::test]
async fn an_expired_certificate_is_none() {
    let end = START / 1000 + 60;
    let world = world(|_| {});
    let certificate = certificate(end);
    let token = world.token(&json!({"x5t#S256": certificate.x5t().to_string()}));
    for (millis, expect) in [
        (START, Ok(BoundBy::Mtls)),
        (end * 1000 + 999, Ok(BoundBy::Mtls)),
        (end * 1000 + 1000, Err(Denial::CertificateMissing)),
    ] {
        let sender = Sender::Certificate(&certificate);
        let decision = world.admit(&format!("Bearer {token}"), &[], sender, millis).await;
        assert_eq!(outcome(&decision), expect, "{millis}");
    }
}

#[tokio::test]
async fn a_key_must_be_proven_with_a_nonce_where_a_certificate_is_demanded_too() {
    let mut world = world(|_| {});
    world.route.scope.require = Some(Demand::Mtls);
    let certificate = certificate(START / 1000 + 60);
    let x5t = certificate.x5t().to_string();
    let both = world.token(&json!({"jkt": world.client.jkt(), "x5t#S256": x5t}));
    let only = world.token(&json!({"x5t#S256": x5t}));
    for (authorization, expect, nonce) in [
        (format!("DPoP {both}"), Err(Denial::ProofMissing), true),
        (format!("Bearer {both}"), Err(Denial::Downgrade), true),
        (format!("Bearer {only}"), Ok(BoundBy::Mtls), false),
        ("Bearer x".to_owned(), Err(Denial::TokenMalformed), false),
    ] {
        let sender = Sender::Certificate(&certificate);
        let decision = world.admit(&authorization, &[], sender, START).await;
        assert_eq!(outcome(&decision), expect);
        assert_eq!(decision.facts.wants_nonce, nonce, "{expect:?}");
    }
}

/// Read or not, a second proof is one that a service may take for the first.
#[tokio::test]
async fn never_more_than_one_proof() {
    let mut world = world(|_| {});
    world.route.allow_unbound = true;
    let token = world.token(&json!({}));
    for (proofs, expect) in [
        (&[][..], Ok(BoundBy::Unbound)),
        (&["a"], Ok(BoundBy::Unbound)),
        (&["a", "a"], Err(Denial::ProofRepeated)),
    ] {
        let authorization = format!("Bearer {token}");
        let decision = world.admit(&authorization, proofs, Sender::NoCertificate, START).await;
        assert_eq!(outcome(&decision), expect, "{proofs:?}");
    }
}

/// What is printed for debugging may end up in a log.
#[test]
fn tokens_and_proofs_are_not_printed() {
    let mut headers = HeaderMap::new();
    headers.insert("authorization", HeaderValue::from_static("Bearer the-token"));
    headers.insert("dpop", HeaderValue::from_static("the-proof"));
    let (query, sender) = (Some("code=the-code"), Sender::NoContext);
    let view = RequestView { method: "GET", path: "/", query, headers: &headers, sender };
    let printed = format!("{view:?}");
    for secret in ["the-token", "the-proof", "the-code"] {
        assert!(!printed.contains(secret), "{secret} in {printed}");
    }
}

#[tokio::test]
async fn an_issuer_speaks_for_its_own_tenant() {
    for (own, unknown_allowed, claim, expect) in [
        (None, false, json!("a"), Ok(Some(0))),
        (None, false, json!("b"), Ok(Some(1))),
        (None, false, json!("c"), Err(Denial::TenantUnknown)),
        (None, false, Value::Null, Err(Denial::TokenClaim)),
        (None, true, json!("c"), Ok(None)),
        (Some(0), false, json!("a"), Ok(Some(0))),
        (Some(0), false, json!("b"), Err(Denial::TenantUnknown)),
        (Some(0), true, json!("b"), Err(Denial::TenantUnknown)),
        (Some(0), true, json!("c"), Err(Denial::TenantUnknown)),
    ] {
        let world = world(|settings| {
            nonces_off(settings);
            let tenant = |name: &str| TenantRule { name: name.to_owned(), scope: Scope::default() };
            settings.rules.tenants = vec![tenant("a"), tenant("b")];
            settings.rules.tenant_claim = Some("tenant".to_owned());
            settings.rules.unknown_tenant_allowed = unknown_allowed;
            settings.issuers[0].tenant = own.map(TenantId);
        });
        let claims = json!({
            "iss": "https://as.example", "aud": "api", "exp": START / 1000 + 36_000,
            "cnf": {"jkt": world.client.jkt()}, "tenant": claim,
        });
        let token = world.issuer.sign(&json!({"typ": "at+jwt", "alg": "ES256"}), &claims);
        let proof = world.proof(&token, START / 1000 + 10, None);
        let decision = world.dpop(&token, &proof, START + 10_000).await;
        let found = decision.verdict.map(|_| decision.facts.tenant);
        assert_eq!(found, expect.map(|index| index.map(TenantId)), "{own:?} {claim}");
    }
}

/// A world whose issuer is asked about opaque tokens.
fn asking(change: impl FnOnce(&mut Settings)) -> World {
    world(|settings| {
        nonces_off(settings);
        settings.issuers[0].introspection = Some(IntrospectionRules {
            token_prefix: None,
            cache_ttl: Duration::from_secs(30),
            assumed_audience: None,
            assumed_lifetime: None,
        });
        change(settings);
    })
}

const OPAQUE: &str = "an-opaque-token";
const LATER: i64 = START + 10_000;

impl World {
    /// What the issuer says of [`OPAQUE`] at [`LATER`].
    fn judge(&self, cnf: &Value) -> Told {
        let answer = json!({
            "active": true, "aud": "api", "exp": START / 1000 + 36_000, "cnf": cnf,
        });
        let (hash, asked) = (Sha256::of(OPAQUE.as_bytes()), UnixTime::from_millis(LATER));
        self.gate.judge(0, hash, answer.to_string().as_bytes(), asked)
    }

    fn opaque_request(&self, proof: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let authorization = format!("DPoP {OPAQUE}");
        headers.insert("authorization", HeaderValue::from_str(&authorization).unwrap());
        headers.insert("dpop", HeaderValue::from_str(proof).unwrap());
        headers
    }
}

/// Nobody makes the edge ask who shows nothing that could be the token's.
#[tokio::test]
async fn an_issuer_is_asked_only_where_the_sender_may_pass() {
    const ASK: Denial = Denial::IntrospectionUnavailable;
    let certificate = certificate(START / 1000 + 36_000);
    let shown = Sender::Certificate(&certificate);
    let (dpop, bearer) = (format!("DPoP {OPAQUE}"), format!("Bearer {OPAQUE}"));
    let none = Sender::NoCertificate;
    type Bend = fn(&mut World);
    let as_it_is: Bend = |_| {};
    let unbound: Bend = |world| world.route.allow_unbound = true;
    let key: Bend = |world| world.route.scope.require = Some(Demand::Dpop);
    let second = START / 1000;
    for (name, authorization, proofs, sender, bend, expect) in [
        ("a proof", &dpop, 1, none, as_it_is, ASK),
        ("no proof", &dpop, 0, none, as_it_is, Denial::ProofMissing),
        ("no proof, a certificate", &dpop, 0, shown, as_it_is, Denial::ProofMissing),
        ("two proofs", &dpop, 2, none, as_it_is, Denial::ProofRepeated),
        ("a certificate", &bearer, 0, shown, as_it_is, ASK),
        ("two proofs beside", &bearer, 2, shown, as_it_is, Denial::ProofRepeated),
        ("nothing", &bearer, 0, none, as_it_is, Denial::CertificateMissing),
        ("no TLS", &bearer, 0, Sender::NoContext, as_it_is, Denial::CertificateContextMissing),
        ("a proof that is not asked for", &bearer, 1, none, as_it_is, Denial::CertificateMissing),
        ("nothing, unbound passes", &bearer, 0, none, unbound, ASK),
        ("a certificate where a key is demanded", &bearer, 0, shown, key, Denial::BindingTooWeak),
    ] {
        let mut world = asking(|_| {});
        bend(&mut world);
        let proof = world.proof(OPAQUE, second + 10, None);
        let proofs = vec![proof.as_str(); proofs];
        let decision = world.admit(authorization, &proofs, sender, LATER).await;
        assert_eq!(outcome(&decision), Err(expect), "{name}");
    }
    let world = asking(|_| {});
    for (name, proof, expect) in [
        ("of another token", world.proof("x", second + 10, None), Denial::ProofTokenHash),
        ("too old", world.proof(OPAQUE, second - 1000, None), Denial::ProofStale),
        ("before the start", world.proof(OPAQUE, second, None), Denial::ProofBeforeStart),
        ("no proof at all", "a.b.c".to_owned(), Denial::ProofMalformed),
    ] {
        let decision = world.dpop(OPAQUE, &proof, LATER).await;
        assert_eq!(outcome(&decision), Err(expect), "{name}");
    }
    let world = asking(|settings| settings.rules.dpop_enabled = false);
    let decision = world.dpop(OPAQUE, &world.proof(OPAQUE, second + 10, None), LATER).await;
    assert_eq!(outcome(&decision), Err(Denial::DpopDisabled));
    let world = asking(|settings| settings.rules.mtls_enabled = false);
    let decision = world.admit(&bearer, &[], shown, LATER).await;
    assert_eq!(outcome(&decision), Err(Denial::MtlsDisabled));
}

/// What a tenant of the token's may replace is not held against it beforehand.
#[tokio::test]
async fn no_tenant_is_asked_for_more_than_its_own() {
    let tenant = |scope: Scope| TenantRule { name: "lax".to_owned(), scope };
    let lax = Scope { nonce: Some(false), overrides: true, ..Scope::default() };
    let observing =
        Scope { mode: Some(Mode::Observe(Share::NONE)), overrides: true, ..Scope::default() };
    for (name, claim, scope, proofs, expect) in [
        ("a nonce is needed", None, lax.clone(), 1, Denial::NonceAbsent),
        ("perhaps not", Some("tenant"), lax, 1, Denial::IntrospectionUnavailable),
        ("a proof is needed", None, observing.clone(), 0, Denial::ProofMissing),
        ("perhaps not even that", Some("tenant"), observing, 0, Denial::IntrospectionUnavailable),
    ] {
        let world = asking(|settings| {
            settings.proof.nonce_ttl = Some(TTL);
            settings.rules.default.nonce = true;
            settings.rules.tenants = vec![tenant(scope)];
            settings.rules.tenant_claim = claim.map(str::to_owned);
        });
        let proof = world.proof(OPAQUE, START / 1000 + 10, None);
        let authorization = format!("DPoP {OPAQUE}");
        let proofs = vec![proof.as_str(); proofs];
        let sender = Sender::NoCertificate;
        let decision = world.admit(&authorization, &proofs, sender, LATER).await;
        assert_eq!(outcome(&decision), Err(expect), "{name}");
    }
}

/// The proof is used up by the admission, neither by the question nor by a refusal.
#[tokio::test]
async fn a_proof_of_an_opaque_token_is_used_once() {
    let world = asking(|_| {});
    let proof = world.proof(OPAQUE, START / 1000 + 10, None);
    let headers = world.opaque_request(&proof);
    let none = Sender::NoCertificate;
    let hash = Sha256::of(OPAQUE.as_bytes());
    for _ in 0..2 {
        let decision = world.admit_told(&headers, none, None, LATER).await;
        assert_eq!(outcome(&decision), Err(Denial::IntrospectionUnavailable));
        assert_eq!(decision.facts.issuer, Some(0));
    }
    let inactive = Told::refused(hash, Denial::TokenInactive);
    let decision = world.admit_told(&headers, none, Some(&inactive), LATER).await;
    assert_eq!(outcome(&decision), Err(Denial::TokenInactive));
    // Of another key, and only for this once: the issuer may say otherwise tomorrow.
    let other = world.judge(&json!({"jkt": Key::new().jkt()}));
    let decision = world.admit_told(&headers, none, Some(&other), LATER).await;
    assert_eq!(outcome(&decision), Err(Denial::KeyMismatch));

    let told = world.judge(&json!({"jkt": world.client.jkt()}));
    assert_eq!(told.denial(), None);
    let decision = world.admit_told(&headers, none, Some(&told), LATER).await;
    assert_eq!(outcome(&decision), Ok(BoundBy::Dpop));
    let decision = world.admit_told(&headers, none, Some(&told), LATER).await;
    assert_eq!(outcome(&decision), Err(Denial::Replayed));
}

/// What an issuer said of one token is nothing to another, nor for longer than `cacheTtl`.
#[tokio::test]
async fn a_word_is_for_one_token_and_a_short_time() {
    let world = asking(|_| {});
    let certificate = certificate(START / 1000 + 36_000);
    let sender = Sender::Certificate(&certificate);
    let told = world.judge(&json!({"x5t#S256": certificate.x5t().to_string()}));
    let mut headers = HeaderMap::new();
    headers.insert("authorization", HeaderValue::from_static("Bearer another-token"));
    let decision = world.admit_told(&headers, sender, Some(&told), LATER).await;
    assert_eq!(outcome(&decision), Err(Denial::IntrospectionUnavailable));
    let authorization = format!("Bearer {OPAQUE}");
    for (millis, expect) in [
        (LATER, Ok(BoundBy::Mtls)),
        (LATER + 29_999, Ok(BoundBy::Mtls)),
        (LATER + 30_000, Err(Denial::IntrospectionUnavailable)),
    ] {
        let decision = world.admit(&authorization, &[], sender, millis).await;
        assert_eq!(outcome(&decision), expect, "{millis}");
    }
}

/// `observe` lets pass what lacks a sender, never what is no token.
#[tokio::test]
async fn observe_does_not_make_a_token_valid() {
    let world = asking(|settings| settings.rules.default.mode = Mode::Observe(Share::NONE));
    let authorization = format!("DPoP {OPAQUE}");
    let decision = world.admit(&authorization, &[], Sender::NoCertificate, LATER).await;
    assert_eq!(outcome(&decision), Err(Denial::IntrospectionUnavailable));
    let mut headers = HeaderMap::new();
    headers.insert("authorization", HeaderValue::from_str(&authorization).unwrap());
    let hash = Sha256::of(OPAQUE.as_bytes());
    let inactive = Told::refused(hash, Denial::TokenInactive);
    let unavailable = Told::refused(hash, Denial::IntrospectionUnavailable);
    let active = world.judge(&json!({"jkt": world.client.jkt()}));
    for (told, expect) in [
        (inactive, Err(Denial::TokenInactive)),
        (unavailable, Err(Denial::IntrospectionUnavailable)),
        (active, Ok(BoundBy::Observed)),
    ] {
        let decision = world.admit_told(&headers, Sender::NoCertificate, Some(&told), LATER).await;
        assert_eq!(outcome(&decision), expect);
    }
}

/// A JWT goes by the keys of its issuer where there are some, and to nobody else's where it has none
/// that is known.
#[tokio::test]
async fn only_what_is_no_jwt_of_an_issuer_with_keys_is_asked_about() {
    for (keys, iss, expect) in [
        (true, "https://as.example", Denial::TokenSignature),
        (false, "https://as.example", Denial::IntrospectionUnavailable),
        (true, "https://x.example", Denial::TokenIssuer),
        (false, "https://x.example", Denial::TokenIssuer),
    ] {
        let world = asking(|settings| settings.issuers[0].keys = keys);
        let claims = json!({"iss": iss, "aud": "api", "exp": START / 1000 + 36_000});
        let token = Key::new().sign(&json!({"typ": "at+jwt", "alg": "ES256"}), &claims);
        let proof = world.proof(&token, START / 1000 + 10, None);
        let decision = world.dpop(&token, &proof, LATER).await;
        assert_eq!(outcome(&decision), Err(expect), "{keys} {iss}");
    }
}
