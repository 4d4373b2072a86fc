//! `capsules` and `audit`: nodes, their keys, and what is written down of both.

use std::num::NonZeroU32;
use std::path::PathBuf;

use crate::config::item::{Text, Words};
use crate::config::section::Section;
use crate::config::{Audit, Capsules, ClientCertificates, Edge};
use crate::policy::capsule::baseline::BaselinePolicy;
use crate::policy::capsule::pipeline::{BrakePolicy, Policy, ProofDemand, SealPolicy};
use crate::policy::capsule::risk::RiskPolicy;
use crate::policy::target::Origin;
use crate::store::failures::FailureLimits;
use crate::store::keys::KeyRing;
use crate::store::networks::Networks;

const PROOFS: Words<ProofDemand> = &[
    ("any", ProofDemand::Any),
    ("dpop", ProofDemand::Dpop),
    ("mtls", ProofDemand::Mtls),
    ("none", ProofDemand::None),
];
const SEALS: Words<SealPolicy> = &[
    ("required", SealPolicy::Required),
    ("offered", SealPolicy::Offered),
    ("off", SealPolicy::Off),
];

/// What nodes have to prove themselves by.
pub(super) struct Means<'a> {
    /// `dpop.enabled`.
    pub(super) dpop: bool,
    /// `mtls.enabled`.
    pub(super) mtls: bool,
    /// The listeners; `None` where they could not be read.
    pub(super) edge: Option<&'a Edge>,
}

/// Resolves `capsules`; `origins` gains those that only it names.
pub(super) fn resolve(
    root: &Section<'_>,
    origins: &mut Vec<Origin>,
    means: &Means<'_>,
) -> Option<Capsules> {
    let section = root.item("capsules")?.section();
    let cluster = section.required("cluster");
    if let Some(text) = &cluster
        && !crate::config::value::is_name(&text.value)
    {
        text.error("1 to 64 letters, digits, `_`, `-` and `.` are expected");
    }
    let own = own_origins(&section, origins);
    let policy = policy(&section);
    check_means(&section, policy.proof, means);
    let keys_section = section.section("keys");
    let key_max_age = keys_section.duration("maxAge", "365d", ["1d", "3650d"]);
    let keys = keys_section.required("directory").map(keys);
    let networks = section.section("networks");
    let (asn, asn_text) = database(&networks, "asnDatabase");
    let (region, region_text) = database(&networks, "regionDatabase");
    for (path, text) in [(&asn, &asn_text), (&region, &region_text)] {
        if let (Some(path), Some(text)) = (path, text)
            && let Err(reason) = Networks::open(Some(path), None)
        {
            text.error(format!("`{}`: {reason}", text.written));
        }
    }
    let failures = failures(&section.section("failures"));
    Some(Capsules {
        cluster: cluster?.value,
        origins: own,
        policy,
        keys: keys?,
        key_max_age,
        asn_database: asn,
        region_database: region,
        failures,
    })
}

/// The origins that nodes ask at, as indices.
fn own_origins(section: &Section<'_>, origins: &mut Vec<Origin>) -> Vec<usize> {
    if section.lacks("origins") {
        section.error("origins", "at least one is needed: where nodes ask, as they write it");
    }
    let texts = section.texts("origins", 64).unwrap_or_default();
    let mut own = Vec::new();
    for text in texts {
        let Some(origin) = Origin::parse(&text.value) else {
            text.error("an origin is expected, as in `https://edge.example.com`");
            continue;
        };
        let known = origins.iter().position(|known| *known == origin);
        let index = known.unwrap_or(origins.len());
        if known.is_none() {
            origins.push(origin);
        }
        if own.contains(&index) {
            text.error(format!("`{}` stands here already", text.written));
        }
        own.push(index);
    }
    own
}

fn policy(section: &Section<'_>) -> Policy {
    let risk = section.section("risk");
    let weight = |key: &'static str, default: u32| risk.count(key, default, 0..=1000);
    let weights = RiskPolicy {
        address: weight("address", 20),
        asn: weight("asn", 40),
        region: weight("region", 50),
        abrupt_stop: weight("abruptStop", 80),
        threshold: risk.count("threshold", 80, 1..=10_000),
        abrupt_window: risk.duration("abruptWindow", "5m", ["0s", "1d"]),
    };
    let all = [weights.address, weights.asn, weights.region, weights.abrupt_stop];
    if all.into_iter().sum::<u32>() < weights.threshold {
        risk.warn("threshold", "can never be reached: it is more than all weights together");
    }
    let baseline = section.section("baseline");
    let confirm = BaselinePolicy {
        confirm_below: baseline.count("confirmBelow", 50, 0..=10_000),
        confirm_after: baseline.duration("confirmAfter", "24h", ["1s", "90d"]),
        confirm_contacts: baseline.count("confirmContacts", 3, 1..=10_000),
        confirm_pause: baseline.duration("confirmPause", "7d", ["0s", "365d"]),
    };
    if confirm.confirm_below > weights.threshold {
        let message =
            "is more than `risk.threshold`: what lies between is quarantined, not confirmed";
        baseline.warn("confirmBelow", message);
    }
    let brake = section.section("fleetBrake");
    let proof = section.word("proof", PROOFS).unwrap_or(ProofDemand::Any);
    if proof == ProofDemand::None {
        let message = "the secret alone is enough: whoever copies it is the node";
        section.warn("proof", message);
    }
    Policy {
        proof,
        seal: section.word("seal", SEALS).unwrap_or(SealPolicy::Offered),
        bind_version: section.flag("bindVersion").unwrap_or(true),
        lifetime: section.duration("lifetime", "24h", ["1m", "90d"]),
        risk: weights,
        baseline: confirm,
        brake: BrakePolicy {
            max_quarantines: brake.count("maxQuarantines", 10, 1..=1_000_000),
            window: brake.duration("window", "10m", ["1s", "7d"]),
        },
    }
}

/// What is demanded must be possible.
fn check_means(section: &Section<'_>, proof: ProofDemand, means: &Means<'_>) {
    let asks = means.edge.is_none_or(|edge| {
        let tls = edge.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let own = tls.flat_map(crate::config::ListenerTls::policies);
        let handed_on = || {
            edge.listeners
                .iter()
                .any(|it| it.proxies.iter().any(|proxy| proxy.certificate.is_some()))
        };
        own.into_iter().any(|policy| policy.client_certificates != ClientCertificates::Off)
            || handed_on()
    });
    let certificates = means.mtls && asks;
    let message = match proof {
        ProofDemand::Dpop if !means.dpop => "`dpop` needs `dpop.enabled: true`",
        ProofDemand::Mtls if !certificates => {
            "`mtls` needs `mtls.enabled: true` and a listener with `clientCertificates`"
        }
        ProofDemand::Any if !means.dpop && !certificates => {
            "no node can prove itself: DPoP is off, and no listener asks for certificates"
        }
        ProofDemand::Any | ProofDemand::Dpop | ProofDemand::Mtls | ProofDemand::None => return,
    };
    section.error("proof", message);
}

/// The directory with the keys, which must be there and be whole.
fn keys(text: Text<'_>) -> PathBuf {
    let (path, text) = text.path();
    text.item.sink.depends_on(&path);
    match KeyRing::load(&path) {
        Ok(ring) => {
            for file in ring.files() {
                text.item.sink.depends_on(file);
            }
        }
        Err(error) => text.error(error.to_string()),
    }
    path
}

/// A database of networks; without it its factor is off, which is said.
fn database<'a>(networks: &Section<'a>, key: &'static str) -> (Option<PathBuf>, Option<Text<'a>>) {
    let Some(text) = networks.text(key) else {
        if !networks.has(key) {
            networks.warn(key, "is not there: this factor is off");
        }
        return (None, None);
    };
    let (path, text) = text.path();
    text.item.sink.depends_on(&path);
    (Some(path), Some(text))
}

fn failures(section: &Section<'_>) -> FailureLimits {
    let number = |key: &'static str, default: u32| {
        NonZeroU32::new(section.count(key, default, 1..=1_000_000)).unwrap_or(NonZeroU32::MIN)
    };
    FailureLimits {
        per_address: number("perAddress", 60),
        per_node: number("perNode", 10),
        entries: section.size("entries", 100_000, 1..=10_000_000),
    }
}

/// Resolves `audit`.
pub(super) fn audit(root: &Section<'_>) -> Audit {
    let section = root.section("audit");
    Audit {
        checkpoint_lines: section.number("checkpointLines", 1000, 1..=1_000_000),
        checkpoint_interval: section.duration("checkpointInterval", "1h", ["1s", "30d"]),
        refusals_per_minute: section.count("refusalsPerMinute", 30, 1..=100_000),
        reserve_bytes: section.number("reserveBytes", 64 << 20, 0..=1 << 40),
        max_bytes: section.number("maxBytes", 1 << 40, 1 << 20..=1 << 40),
    }
}
