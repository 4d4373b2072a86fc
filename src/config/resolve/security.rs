//! `security.senderConstraints`.

use std::time::Duration;

use crate::config::item::{Text, Words};
use crate::config::section::Section;
use crate::config::value::show_duration;
use crate::config::{NonceKeyFile, NonceStore, ReplayStore, files};
use crate::policy::bypass::BypassRules;
use crate::policy::jose::{Algorithm, AlgorithmSet};
use crate::policy::proof::ProofRules;
use crate::policy::rule::{Demand, Mode, Requirement};

use super::authority;
use super::scope::{self, DEMANDS, algorithms};
use super::tenants::Tenancy;

/// The algorithms allowed where the file names none.
const ALGORITHMS: [Algorithm; 5] =
    [Algorithm::Es256, Algorithm::Es384, Algorithm::EdDsa, Algorithm::Ed25519, Algorithm::Ps256];

/// The most bytes of `enforceSalt`.
const SALT_BYTES: usize = 256;

const REPLAY_STATUSES: Words<u16> = &[("400", 400), ("401", 401)];
const REPLAY_STORES: Words<ReplayStore> =
    &[("memory", ReplayStore::Memory), ("redis", ReplayStore::Redis)];
const NONCE_STORES: Words<NonceStore> = &[
    ("stateless", NonceStore::Stateless),
    ("memory", NonceStore::Memory),
    ("redis", NonceStore::Redis),
];

/// What the file says of sender constraints, before tenant, audience or route add to it.
#[derive(Debug)]
pub(super) struct Security<'a> {
    /// The default.
    pub(super) default: Requirement,
    /// `enforceSalt`.
    pub(super) share_salt: String,
    /// `dpop.enabled`.
    pub(super) dpop_enabled: bool,
    /// `mtls.enabled`.
    pub(super) mtls_enabled: bool,
    /// `mtls.enforceForAudiences`.
    pub(super) certificate_audiences: Vec<String>,
    /// `dpop.nonce.requiredAudiences`.
    pub(super) nonce_audiences: Vec<String>,
    /// `dpop`.
    pub(super) proof: ProofRules,
    /// `dpop.nonce.keyFiles`.
    pub(super) nonce_keys: Vec<NonceKeyFile>,
    /// `dpop.replay.store`.
    pub(super) replay_store: ReplayStore,
    /// `dpop.nonce.store`.
    pub(super) nonce_store: NonceStore,
    /// `dpop.replay`, for findings.
    pub(super) replay: Section<'a>,
    /// `dpop.nonce`, for findings.
    pub(super) nonce: Section<'a>,
    /// `dpop.replayStatus`.
    pub(super) replay_status: u16,
    /// `dpop.allowTemporaryBypass` and `dpop.temporaryBypass`.
    pub(super) bypass: BypassRules,
    /// `mtls.rotationGrace`.
    pub(super) rotation_grace: Duration,
    /// `mtls`, for findings.
    pub(super) mtls: Section<'a>,
}

/// Resolves `security`.
pub(super) fn resolve<'a>(root: &Section<'a>, tenancy: &Tenancy<'_>) -> Security<'a> {
    let security = root.section("security");
    let section = security.section("senderConstraints");
    let dpop = section.section("dpop");
    let nonce = dpop.section("nonce");
    let nonces = nonce.flag("enabled").unwrap_or(true);
    let replay = dpop.section("replay");
    let replay_store = replay.word("store", REPLAY_STORES).unwrap_or(ReplayStore::Memory);
    let mtls = section.section("mtls");
    let default = Requirement {
        demand: section.word("require", DEMANDS).unwrap_or(Demand::Any),
        mode: mode(&section),
        algorithms: dpop
            .item("allowedAlgorithms")
            .and_then(algorithms)
            .unwrap_or_else(|| AlgorithmSet::of(&ALGORITHMS)),
        nonce: nonces,
    };
    let share_salt = salt(&section);
    let mtls_enabled = mtls.flag("enabled").unwrap_or(true);
    let rotation_grace = mtls.duration("rotationGrace", "0s", ["0s", "90d"]);
    let certificate_audiences = audiences(&mtls, "enforceForAudiences");
    if !certificate_audiences.is_empty() && !mtls_enabled {
        let message =
            "demands what `mtls.enabled: false` forbids: every token for these is refused";
        mtls.error("enforceForAudiences", message);
    }
    Security {
        default,
        share_salt,
        dpop_enabled: dpop.flag("enabled").unwrap_or(true),
        mtls_enabled,
        certificate_audiences,
        nonce_audiences: nonce_audiences(&nonce, nonces, replay_store),
        proof: proof(&dpop, &nonce, nonces, replay_store),
        nonce_keys: nonce_keys(&nonce, nonces, replay_store),
        replay_store,
        nonce_store: nonce_store(&nonce, nonces, replay_store),
        replay,
        replay_status: dpop.word("replayStatus", REPLAY_STATUSES).unwrap_or(401),
        bypass: authority::bypass(&dpop, tenancy),
        rotation_grace,
        mtls,
        nonce,
    }
}

/// The mode that holds before any tenant or route says another.
fn mode(section: &Section<'_>) -> Mode {
    let said = scope::mode(section);
    let mode = said.unwrap_or(Mode::Enforce);
    if mode.observes() && !section.has("mode") {
        section
            .error("enforcePercent", "needs `mode: observe` beside it: the default is `enforce`");
        return Mode::Enforce;
    }
    match mode.share().percent() {
        100 if mode == Mode::Enforce => {}
        100 => section.warn("enforcePercent", "100 is `mode: enforce`: say that"),
        0 => {
            let message = "`observe`: a token passes without its sender's proof or certificate, unless a \
                           tenant or route says `enforce`";
            section.warn("mode", message);
        }
        percent => {
            let message = format!(
                "`observe` for the clients outside {percent} %: their tokens pass without their senders' \
                 proof or certificate, stolen ones too, unless a tenant or route says `enforce`"
            );
            section.warn("mode", message);
        }
    }
    mode
}

/// `enforceSalt`.
fn salt(section: &Section<'_>) -> String {
    let Some(text) = section.text("enforceSalt") else { return String::new() };
    if text.value.len() > SALT_BYTES {
        text.error(format!("at most {SALT_BYTES} bytes are expected"));
    }
    text.value
}

/// A list of `aud` values.
pub(super) fn audiences(section: &Section<'_>, key: &'static str) -> Vec<String> {
    let texts = section.texts(key, 1000).unwrap_or_default();
    texts.into_iter().map(|Text { value, .. }| value).collect()
}

fn nonce_audiences(nonce: &Section<'_>, nonces: bool, replay: ReplayStore) -> Vec<String> {
    let audiences = audiences(nonce, "requiredAudiences");
    if !audiences.is_empty() && !nonces {
        nonce.warn("requiredAudiences", "has no effect: `nonce.enabled` is `false`");
    } else if !audiences.is_empty() {
        nonce.warn(
            "requiredAudiences",
            restart("tokens for other audiences need no nonce:", "their", replay),
        );
    }
    audiences
}

/// Keys of nonces by file, the first for new ones.
fn nonce_keys(nonce: &Section<'_>, nonces: bool, replay: ReplayStore) -> Vec<NonceKeyFile> {
    let texts = nonce.texts("keyFiles", 8).unwrap_or_default();
    let shared = nonce.flag("sharedKeys") == Some(true);
    if shared && replay == ReplayStore::Memory {
        let message = "`true` needs a replay store that the edges share; with `replay.store: memory` a \
                       proof could be used once at each edge";
        nonce.error("sharedKeys", message);
    } else if shared && nonce.lacks("keyFiles") {
        nonce.error("sharedKeys", "`true` needs `keyFiles` that every edge has");
    } else if replay == ReplayStore::Redis && nonces && !shared {
        let message = "is not `true`: edges without the same `keyFiles` do not take each other's \
                       nonces, so that clients are challenged again at each";
        nonce.warn("sharedKeys", message);
    }
    if nonce.has("keyFiles") && nonce.lacks("keyFiles") {
        nonce.error("keyFiles", "is empty; leave it out for a key that each start makes anew");
    } else if nonce.has("keyFiles") && !nonces {
        nonce.warn("keyFiles", "has no effect: `nonce.enabled` is `false`");
    }
    texts.into_iter().filter_map(files::nonce_key).collect()
}

/// Where nonces are remembered that are used up.
fn nonce_store(nonce: &Section<'_>, nonces: bool, replay: ReplayStore) -> NonceStore {
    let store = nonce.word("store", NONCE_STORES).unwrap_or(NonceStore::Stateless);
    let once = nonces && nonce.flag("singleUse") == Some(true);
    match store {
        NonceStore::Stateless if once => {
            let message = "`true` needs `store: memory` or `redis`: stateless nonces are not \
                           remembered";
            nonce.error("singleUse", message);
        }
        NonceStore::Memory if once && replay == ReplayStore::Redis => {
            let message = "`memory` with `replay.store: redis`: a nonce could be used once at each \
                           edge; say `redis`";
            nonce.error("store", message);
        }
        NonceStore::Redis if replay == ReplayStore::Memory => {
            nonce.error("store", "`redis` needs `replay.store: redis`");
        }
        NonceStore::Memory | NonceStore::Redis if !once => {
            nonce.warn("store", "has no effect: `singleUse` is not `true`");
        }
        NonceStore::Stateless | NonceStore::Memory | NonceStore::Redis => {}
    }
    store
}

fn proof(dpop: &Section<'_>, nonce: &Section<'_>, nonces: bool, replay: ReplayStore) -> ProofRules {
    later(nonce);
    let ttl = nonce.duration("ttl", "10m", ["10s", "1d"]);
    let rules = ProofRules {
        proof_lifetime: dpop.duration("proofLifetime", "2m", ["1s", "1h"]),
        clock_skew: dpop.duration("allowedClockSkew", "30s", ["0s", "10m"]),
        replay_window: dpop.duration("replayWindow", "5m", ["1s", "7d"]),
        nonce_ttl: nonces.then_some(ttl),
        nonce_replaces_iat: nonce.flag("replacesIat").unwrap_or(false),
        nonce_single_use: nonces && nonce.flag("singleUse").unwrap_or(false),
    };
    check_times(dpop, nonce, &rules, ttl, replay);
    rules
}

/// Refuses what only a later version can serve.
fn later(nonce: &Section<'_>) {
    if nonce.number("maxIssuancePerMinute", 0, 0..=u64::MAX) != 0 {
        nonce.error("maxIssuancePerMinute", "anything but 0 is not available in this version");
    }
}

/// A proof must be remembered for as long as it could pass.
fn check_times(
    dpop: &Section<'_>,
    nonce: &Section<'_>,
    rules: &ProofRules,
    ttl: Duration,
    replay: ReplayStore,
) {
    let passes = rules.proof_lifetime + rules.clock_skew * 2;
    let window = show_duration(rules.replay_window);
    if rules.replay_window < passes {
        let needed = show_duration(passes);
        let message = format!(
            "{window} is shorter than `proofLifetime` and both skews ({needed}): a proof could be \
             replayed after it was forgotten"
        );
        dpop.error("replayWindow", message);
    }
    if rules.nonce_replaces_iat && rules.nonce_ttl.is_none() {
        nonce.error("replacesIat", "needs `nonce.enabled: true`");
    }
    let passes = ttl + rules.clock_skew;
    if rules.nonce_replaces_iat && rules.nonce_ttl.is_some() && rules.replay_window < passes {
        let needed = show_duration(passes);
        let message = format!(
            "{window} is shorter than `nonce.ttl` and the skew ({needed}), for which \
             `nonce.replacesIat` lets a proof pass"
        );
        dpop.error("replayWindow", message);
    }
    if rules.nonce_ttl.is_none() {
        nonce.warn("enabled", restart("nonces are off:", "the", replay));
    }
}

/// What a restart does to proofs without a nonce.
fn restart(why: &str, whose: &str, replay: ReplayStore) -> String {
    if replay == ReplayStore::Redis {
        return format!(
            "{why} whenever Redis is restarted, fails over or is wiped, {whose} proofs that are \
             dated up to `allowedClockSkew` after it are refused"
        );
    }
    format!(
        "{why} with `replay.store: memory` a restart refuses {whose} proofs issued before it, and a \
         proof from a clock that runs ahead can be replayed once within `allowedClockSkew` after it"
    )
}
