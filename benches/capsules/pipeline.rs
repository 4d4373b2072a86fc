//! What needs no disk: a decision, and the making of a capsule.

use std::hint::black_box;
use std::time::{Duration, Instant};

use holdfast::policy::capsule::envelope::{self, Claims};
use holdfast::policy::capsule::key::{self, KeyVersion};
use holdfast::policy::capsule::node::Node;
use holdfast::policy::digest::Sha256;
use holdfast::store::keys::{self, Algorithm, KeyRing};
use josekit::jwe::alg::ecdh_es::EcdhEsJweEncrypter;
use josekit::jwe::{self, ECDH_ES, JweHeader};
use josekit::jwk::KeyPair as _;
use josekit::jwk::alg::ec::{EcCurve, EcKeyPair};
use serde_json::{Value, json};

use crate::figures::{median, micros};
use crate::fleet::{self, Request, Setting};
use crate::{Options, Outcome};

const ROUNDS: usize = 25;
/// Different records, so that caches are not as warm as for one.
const NODES: u32 = 512;
const CLUSTER: &str = "bench";

/// What one node's capsule is made of.
struct Item {
    node: Node,
    asked: Request,
    secret: String,
    fingerprint: Sha256,
    version: KeyVersion,
}

/// The keys that it is made with.
struct Keys {
    ring: KeyRing,
    /// A node's ephemeral key, read before.
    seal: EcdhEsJweEncrypter,
}

pub(crate) fn run(options: &Options) -> Outcome<Value> {
    let directory = tempfile::tempdir_in(options.directory())?;
    let setting = Setting::new(directory.path())?;
    let keys = Keys::new(directory.path())?;
    let count = NODES.min(options.registered);
    let items: Vec<_> =
        (0..count).map(|number| item(&setting, number)).collect::<Result<_, _>>()?;
    let mut rounds: [Vec<f64>; 4] = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        let took = [
            time(&items, |item| setting.decide(&item.node, &item.asked).verdict.ok()),
            time(&items, |item| keys.derive(item)),
            time(&items, |item| keys.capsule(item)),
            time(&items, |item| keys.seal(item)),
        ];
        for (took, round) in took.into_iter().zip(&mut rounds) {
            round.push(micros(took?));
        }
    }
    let [decide, derive, capsule, seal] = rounds.map(median);
    println!("\npipeline, one thread, medians of {ROUNDS} rounds of {count} nodes");
    println!("  decide                                  {decide:>8.2} µs {:>10.0}/s", 1e6 / decide);
    println!("  derive a key                            {derive:>8.2} µs");
    println!("  derive, envelope (EdDSA) and signature  {capsule:>8.2} µs");
    println!("  seal (ECDH-ES on P-256, A256GCM)        {seal:>8.2} µs");
    Ok(json!({
        "decide_us": decide, "decisions_per_s": 1e6 / decide, "derive_us": derive,
        "derive_envelope_signature_us": capsule, "seal_us": seal,
    }))
}

fn item(setting: &Setting, number: u32) -> Outcome<Item> {
    let node = fleet::node(number, fleet::jkt(number), &setting.networks, fleet::now())?;
    let fingerprint = node.fingerprint.ok_or("a node that has joined has a fingerprint")?;
    let (asked, secret) = (setting.request(number)?, fleet::secret(number));
    Ok(Item { node, asked, secret, fingerprint, version: KeyVersion::parse("m1.n1@1.2.3")? })
}

/// The time of each, on average.
fn time<T>(items: &[Item], step: impl Fn(&Item) -> Option<T>) -> Outcome<Duration> {
    let start = Instant::now();
    for item in items {
        black_box(step(black_box(item)).ok_or("what is to be measured was not done")?);
    }
    Ok(start.elapsed() / u32::try_from(items.len().max(1))?)
}

impl Keys {
    fn new(directory: &std::path::Path) -> Outcome<Self> {
        let directory = directory.join("keys");
        keys::init(&directory, Algorithm::EdDsa, fleet::now())?;
        let pair = EcKeyPair::generate(EcCurve::P256)?;
        let seal = ECDH_ES.encrypter_from_jwk(&pair.to_jwk_public_key())?;
        Ok(Self { ring: KeyRing::load(&directory)?, seal })
    }

    fn derive(&self, item: &Item) -> Option<impl AsRef<[u8]> + use<>> {
        let master = self.ring.master(1)?;
        let key = key::derive(master, CLUSTER, &item.node.id, &item.fingerprint, &item.version);
        Some(key.to_vec())
    }

    /// What the edge makes after the commit.
    fn capsule(&self, item: &Item) -> Option<(String, String)> {
        let runtime = self.derive(item)?;
        let claims = Claims {
            cluster: CLUSTER.to_owned(),
            exp: item.asked.now.secs() + 86_400,
            iat: item.asked.now.secs(),
            jti: item.asked.ids.capsule.clone(),
            key_hash: envelope::key_hash(runtime.as_ref()),
            key_version: item.version.clone(),
            risk_score: 0,
            sealed: false,
            sub: item.node.id.clone(),
        };
        let signed = self.ring.envelope(&claims, item.asked.now)?;
        let material = Sha256::of(runtime.as_ref()).to_string();
        let canonical = claims.canonical();
        let signature = envelope::signature(&item.secret, &item.node.id, &canonical, &material);
        Some((signed, signature))
    }

    /// The calls that the edge seals with.
    fn seal(&self, item: &Item) -> Option<String> {
        let mut header = JweHeader::new();
        header.set_content_encryption("A256GCM");
        header.set_agreement_partyuinfo(CLUSTER.as_bytes());
        header.set_agreement_partyvinfo(item.node.id.as_str().as_bytes());
        jwe::serialize_compact(&item.fingerprint.0, &header, &self.seal).ok()
    }
}
