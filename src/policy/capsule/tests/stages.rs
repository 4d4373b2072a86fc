//! Each stage refuses, whatever all others say.

use super::*;
use crate::policy::capsule::decision::Reason;
use crate::policy::capsule::node::{Candidate, Heard, State};

/// An edit of the case that is granted, and the word that comes of it.
type Row = (&'static str, fn(&mut Case), &'static str);

const GRANTED: &str = "8 granted m3.n1@1.4.0";

fn check_all(rows: &[Row]) {
    for (name, edit, expect) in rows {
        check(name, &Case::joined().with(edit), expect);
    }
}

fn heard(case: &mut Case) -> &mut Heard {
    let heard = Heard {
        at: NOW.minus(SECOND),
        boot: "boot-0".to_owned(),
        seq: 1,
        state: State::Running,
        version: None,
    };
    case.node().heard.insert(heard)
}

#[test]
fn secret_and_status() {
    check_all(&[
        ("ok/as it should be", |_| (), GRANTED),
        ("fail/unknown node", |case| case.node = None, "2 unknown_node AUTHENTICATION_FAILED"),
        (
            "fail/unknown node and no secret",
            |case| {
                case.node = None;
                case.facts.secret = false;
            },
            "2 unknown_node AUTHENTICATION_FAILED",
        ),
        ("fail/secret", |case| case.facts.secret = false, "1 wrong_secret AUTHENTICATION_FAILED"),
        (
            "fail/the secret comes before the status",
            |case| {
                case.facts.secret = false;
                case.node().status = Status::Revoked;
            },
            "1 wrong_secret AUTHENTICATION_FAILED",
        ),
        ("fail/disabled", |case| case.node().status = Status::Disabled, "3 disabled NODE_DISABLED"),
        ("fail/revoked", |case| case.node().status = Status::Revoked, "3 revoked NODE_REVOKED"),
        (
            "fail/quarantined",
            |case| case.node().status = Status::Quarantined,
            "3 quarantined NODE_QUARANTINED",
        ),
        (
            "fail/the status comes before the sender",
            |case| {
                case.node().status = Status::Revoked;
                case.facts.sender.proof = Proof::Absent;
            },
            "3 revoked NODE_REVOKED",
        ),
        (
            "ok/the time to join is over for who has not joined alone",
            |case| case.expected().join_before = Some(NOW.minus(HOUR)),
            GRANTED,
        ),
    ]);
}

#[test]
fn quarantine_stays() {
    let mut case = Case::joined().with(|case| case.from(FAR));
    let far = "7 quarantined NETWORK_POLICY_VIOLATION risk 110 quarantined";
    case.node = check("fail/far away", &case, far).after;
    case.from(HOME);
    for hours in [1, 25, 24 * 365] {
        case.now = NOW.plus(hours * HOUR);
        let decision = check("fail/home again", &case, "3 quarantined NODE_QUARANTINED");
        case.node = decision.after;
    }
    let quarantine = case.node().quarantine.clone().unwrap();
    assert_eq!((quarantine.at, quarantine.score), (NOW, 110));
}

#[test]
fn proofs() {
    check_all(&[
        (
            "fail/proof of another key",
            |case| case.facts.sender.proof = holds("other"),
            "4 key_mismatch SENDER_MISMATCH",
        ),
        (
            "fail/no proof",
            |case| case.facts.sender.proof = Proof::Absent,
            "4 proof_missing SENDER_MISMATCH",
        ),
        (
            "fail/a certificate in its place",
            |case| {
                case.facts.sender.proof = Proof::Absent;
                case.facts.sender.x5t = Some(x5t("certificate"));
            },
            "4 proof_missing SENDER_MISMATCH",
        ),
        (
            "fail/faulty proof, of the key",
            |case| {
                let (code, jkt) = ("proof_replayed".to_owned(), Some(jkt("key")));
                case.facts.sender.proof = Proof::Faulty { code, jkt, clock: None };
            },
            "4 proof_replayed SENDER_MISMATCH",
        ),
        (
            "fail/faulty proof, none needed",
            |case| {
                case.policy.proof = ProofDemand::None;
                case.node().jkt = None;
                let code = "proof_signature".to_owned();
                case.facts.sender.proof = Proof::Faulty { code, jkt: None, clock: None };
            },
            "4 proof_signature SENDER_MISMATCH",
        ),
        (
            "fail/no nonce",
            |case| {
                let code = "proof_nonce_missing".to_owned();
                case.facts.sender.proof = Proof::NeedsNonce { code };
            },
            "4 proof_nonce_missing PROOF_NONCE_REQUIRED",
        ),
        (
            "ok/a certificate beside it",
            |case| case.facts.sender.x5t = Some(x5t("certificate")),
            GRANTED,
        ),
        (
            "fail/the sender comes before the fingerprint",
            |case| {
                case.facts.sender.proof = Proof::Absent;
                case.facts.fingerprint = Fingerprint::Missing;
            },
            "4 proof_missing SENDER_MISMATCH",
        ),
    ]);
}

/// A node that is bound to a certificate, and shows it.
fn by_certificate(case: &mut Case) {
    case.node().jkt = None;
    case.node().x5t = Some(x5t("certificate"));
    case.facts.sender = SenderFacts { proof: Proof::Absent, x5t: Some(x5t("certificate")) };
}

/// Bound to a key, too, and shows both.
fn both(case: &mut Case) {
    case.node().jkt = Some(jkt("key"));
    case.facts.sender.proof = holds("key");
}

#[test]
fn certificates() {
    let rows: [Row; 9] = [
        ("ok/the certificate", |_| (), GRANTED),
        (
            "fail/another",
            |case| case.facts.sender.x5t = Some(x5t("other")),
            "4 thumbprint-mismatch SENDER_MISMATCH",
        ),
        ("fail/none", |case| case.facts.sender.x5t = None, "4 missing-certificate SENDER_MISMATCH"),
        (
            "fail/a proof in its place",
            |case| case.facts.sender = SenderFacts { proof: holds("key"), x5t: None },
            "4 missing-certificate SENDER_MISMATCH",
        ),
        ("ok/a proof beside it", |case| case.facts.sender.proof = holds("key"), GRANTED),
        (
            "fail/bound to both, without the proof",
            |case| case.node().jkt = Some(jkt("key")),
            "4 proof_missing SENDER_MISMATCH",
        ),
        (
            "fail/bound to both, without the certificate",
            |case| {
                both(case);
                case.facts.sender.x5t = None;
            },
            "4 missing-certificate SENDER_MISMATCH",
        ),
        (
            "fail/bound to both, another certificate",
            |case| {
                both(case);
                case.facts.sender.x5t = Some(x5t("other"));
            },
            "4 thumbprint-mismatch SENDER_MISMATCH",
        ),
        ("ok/bound to both", both, GRANTED),
    ];
    for (name, edit, expect) in rows {
        check(name, &Case::joined().with(by_certificate).with(edit), expect);
    }
}

#[test]
fn what_a_policy_demands_of_who_has_joined() {
    const UNPROVEN: &str = "4 sender_unproven SENDER_MISMATCH";
    // Bound to a key or not, bound to a certificate or not; all of it shown.
    for (demand, jkt_bound, x5t_bound, expect) in [
        (ProofDemand::Any, true, false, GRANTED),
        (ProofDemand::Any, false, true, GRANTED),
        (ProofDemand::Any, true, true, GRANTED),
        (ProofDemand::Any, false, false, UNPROVEN),
        (ProofDemand::Dpop, true, false, GRANTED),
        (ProofDemand::Dpop, false, true, UNPROVEN),
        (ProofDemand::Dpop, true, true, GRANTED),
        (ProofDemand::Dpop, false, false, UNPROVEN),
        (ProofDemand::Mtls, true, false, UNPROVEN),
        (ProofDemand::Mtls, false, true, GRANTED),
        (ProofDemand::Mtls, true, true, GRANTED),
        (ProofDemand::Mtls, false, false, UNPROVEN),
        (ProofDemand::None, true, false, GRANTED),
        (ProofDemand::None, false, true, GRANTED),
        (ProofDemand::None, false, false, GRANTED),
    ] {
        let case = Case::joined().with(|case| {
            case.policy.proof = demand;
            case.node().jkt = jkt_bound.then(|| jkt("key"));
            case.node().x5t = x5t_bound.then(|| x5t("certificate"));
            case.facts.sender.x5t = Some(x5t("certificate"));
        });
        let kind = if expect == GRANTED { "ok" } else { "fail" };
        let name = format!("{kind}/{demand:?} of {jkt_bound} {x5t_bound}");
        let decision = check(&name, &case, expect);
        let by = match (jkt_bound, x5t_bound) {
            (true, true) => "dpop+mtls",
            (true, false) => "dpop",
            (false, true) => "mtls",
            (false, false) => "secret_alone",
        };
        let code = decision.stages.iter().find(|outcome| outcome.stage == Stage::Sender);
        let expect = if expect == GRANTED { by } else { "sender_unproven" };
        assert_eq!(code.unwrap().code, expect, "{name}");
    }
    for (demand, expect) in
        [(ProofDemand::None, "4 proof_missing SENDER_MISMATCH"), (ProofDemand::Any, UNPROVEN)]
    {
        let case = Case::joined().with(|case| {
            case.policy.proof = demand;
            case.node().jkt = (demand == ProofDemand::None).then(|| jkt("key"));
            case.facts.sender.proof = Proof::Absent;
        });
        check("fail/the secret alone", &case, expect);
    }
}

#[test]
fn fingerprints() {
    check_all(&[
        (
            "fail/none",
            |case| case.facts.fingerprint = Fingerprint::Missing,
            "5 fingerprint_missing FINGERPRINT_MISMATCH",
        ),
        (
            "fail/two that differ",
            |case| case.facts.fingerprint = Fingerprint::Conflict,
            "5 fingerprints_differ FINGERPRINT_CONFLICT",
        ),
        (
            "fail/another",
            |case| case.facts.fingerprint = Fingerprint::Shown(Sha256::of(b"other")),
            "5 fingerprint_differs FINGERPRINT_MISMATCH",
        ),
        (
            "fail/the fingerprint comes before the network",
            |case| {
                case.facts.fingerprint = Fingerprint::Missing;
                case.from(FAR);
            },
            "5 fingerprint_missing FINGERPRINT_MISMATCH",
        ),
    ]);
}

#[test]
fn stops_and_networks() {
    const HELD: &str = "7 held_by_fleet_brake NETWORK_POLICY_VIOLATION risk 110 held";
    const QUARANTINED: &str = "7 quarantined NETWORK_POLICY_VIOLATION risk 110 quarantined";
    check_all(&[
        (
            "fail/address unknown",
            |case| case.facts.place.network = None,
            "7 address_unknown NETWORK_POLICY_VIOLATION",
        ),
        ("ok/another address", |case| case.from(NEAR), "8 granted m3.n1@1.4.0 risk 20"),
        (
            "fail/abrupt stop at home",
            |case| {
                heard(case);
            },
            "7 quarantined NETWORK_POLICY_VIOLATION risk 80 quarantined",
        ),
        ("fail/far away", |case| case.from(FAR), QUARANTINED),
        (
            "fail/the last before the brake",
            |case| {
                case.from(FAR);
                case.facts.recent_quarantines = 2;
            },
            QUARANTINED,
        ),
        (
            "fail/braked",
            |case| {
                case.from(FAR);
                case.facts.recent_quarantines = 3;
            },
            HELD,
        ),
        (
            "fail/braked by no quarantines at all",
            |case| {
                case.from(FAR);
                case.policy.brake.max_quarantines = 0;
            },
            HELD,
        ),
        (
            "ok/the brake holds nobody who scores less",
            |case| case.facts.recent_quarantines = 99,
            GRANTED,
        ),
        (
            "fail/the network comes before the key",
            |case| {
                case.from(FAR);
                case.facts.keys.masters.clear();
            },
            QUARANTINED,
        ),
    ]);
}

#[test]
fn codes_of_what_passed() {
    let codes = |case: &Case| {
        let stages = case.decide().stages;
        stages.into_iter().map(|outcome| outcome.code).collect::<Vec<_>>().join(" ")
    };
    let joined = "secret known active dpop same clean below_threshold m3.n1@1.4.0";
    assert_eq!(codes(&Case::joined()), joined);
    let first = "secret known active dpop first clean first m3.n1@1.4.0";
    assert_eq!(codes(&Case::first()), first);
    let abrupt = Case::joined().with(|case| {
        heard(case);
        case.policy.risk.threshold = 81;
    });
    let expect = "secret known active dpop same abrupt_stop below_threshold m3.n1@1.4.0";
    assert_eq!(codes(&abrupt), expect);
}

/// A record with something in every field, so that a refusal that clears one is seen.
#[test]
fn a_refusal_changes_nothing_but_counters() {
    let full = |case: &mut Case| {
        heard(case).state = State::Stopping;
        let candidate =
            Candidate { network: seen_at(NEAR), since: NOW.minus(2 * DAY), contacts: 9 };
        let node = case.node();
        node.candidate = Some(candidate);
        node.last = Some(Contact { network: seen_at(NEAR), at: NOW.minus(HOUR) });
        node.granted_boot = Some("boot-0".to_owned());
        node.counters.refused = u64::MAX - 1;
    };
    let rows: [Row; 6] = [
        ("fail/status", |case| case.node().status = Status::Disabled, "3 disabled NODE_DISABLED"),
        (
            "fail/sender",
            |case| case.facts.sender.proof = Proof::Absent,
            "4 proof_missing SENDER_MISMATCH",
        ),
        (
            "fail/fingerprint",
            |case| case.facts.fingerprint = Fingerprint::Missing,
            "5 fingerprint_missing FINGERPRINT_MISMATCH",
        ),
        (
            "fail/network",
            |case| case.facts.place.network = None,
            "7 address_unknown NETWORK_POLICY_VIOLATION",
        ),
        (
            "fail/braked",
            |case| {
                case.from(FAR);
                case.facts.recent_quarantines = 3;
            },
            "7 held_by_fleet_brake NETWORK_POLICY_VIOLATION risk 110 held",
        ),
        ("fail/key", |case| case.facts.keys.masters.clear(), "8 no_master_key UNAVAILABLE"),
    ];
    for (name, edit, expect) in rows {
        let decision = check(name, &Case::joined().with(full).with(edit), expect);
        // Once more: a counter that is full stays so.
        let mut case = Case::joined().with(full).with(edit);
        case.node = decision.after;
        assert_eq!(case.decide().after.unwrap().counters.refused, u64::MAX, "{name}");
    }
}

#[test]
fn names_are_what_serde_writes() {
    for reason in Reason::ALL {
        assert_eq!(serde_json::to_value(reason).unwrap(), reason.name());
    }
    for status in Status::ALL {
        assert_eq!(serde_json::to_value(status).unwrap(), status.name());
        assert_eq!(Status::from_name(status.name()), Some(status));
    }
    assert_eq!(Status::from_name("Active"), None);
    assert_eq!(Stage::ALL.map(Stage::number), [1, 2, 3, 4, 5, 6, 7, 8]);
}
