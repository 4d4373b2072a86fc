//! A decision, told once: counted, and written where it is worth a line.

use std::net::IpAddr;
use std::time::Duration;

use super::audit::Audit;
use crate::gate::{Facts, NonceStatus};
use crate::policy::audit::{Draft, Kind};
use crate::policy::binding::BoundBy;
use crate::policy::clock::Hint;
use crate::policy::denial::{Denial, DpopResult, Lack};
use crate::policy::rule::Role;
use crate::policy::time::UnixTime;
use crate::policy::trace::TraceId;
use crate::telemetry::log::{BypassRecord, ConstraintRecord, Log, RequestRecord, Thumbprint};
use crate::telemetry::metrics::{CertificateMiss, Metrics, NonceMiss, Tenant};

/// What is told of a decision.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Name of the route; `None` where no route was found.
    pub route: Option<&'a str>,
    /// Its role.
    pub role: Option<Role>,
    /// Why it was refused.
    pub refused: Option<Denial>,
    /// What the gate knew; `None` when the request did not come so far.
    pub facts: Option<&'a Facts>,
    /// The name of the facts' tenant.
    pub tenant: Option<&'a str>,
    /// The decision's id, 32 hexadecimal digits of randomness.
    pub id: &'a str,
    /// Time of the decision.
    pub took: Duration,
    /// The share of `ok` records that is written.
    pub ok_sample: f64,
    /// The trace that has its spans.
    pub trace: Option<TraceId>,
}

/// What was wrong, and what became of it. What would have been refused under `enforce` is told like a
/// refusal.
pub(super) fn outcome(told: &Told<'_>) -> (Option<Denial>, DpopResult) {
    let fault = told.refused.or(told.facts.and_then(|facts| facts.observed));
    let bypassed = told.facts.is_some_and(|facts| facts.bypass.is_some());
    let result = match (told.refused, fault) {
        (Some(denial), _) => denial.result(),
        (None, Some(_)) => DpopResult::Observe,
        (None, None) if bypassed => DpopResult::Bypass,
        (None, None) => DpopResult::Ok,
    };
    (fault, result)
}

/// Counts a decision and writes its records.
pub fn tell(told: &Told<'_>, metrics: &Metrics, log: &Log) {
    let (fault, result) = outcome(told);
    if let Some(denial) = fault {
        metrics.denied(denial, told.refused.is_some());
    }
    if let Some((role, facts)) = told.role.zip(told.facts) {
        count(role, facts, fault, result, metrics);
    }
    // Without facts nothing was decided: a preflight.
    let decided = told.role != Some(Role::Public) && told.facts.is_some();
    let concerns = told.refused.is_some() || decided;
    if concerns && (result != DpopResult::Ok || sampled(told.id, told.ok_sample)) {
        log.request(&request(told, fault, result));
    }
    if let Some((denial, facts)) = fault.zip(told.facts)
        && let Some(record) = constraint(told, denial, facts)
    {
        log.constraint(&record);
    }
    let bypass = told.facts.and_then(|facts| Some((facts.bypass.as_deref()?, facts)));
    if let Some((bypass, facts)) = bypass.filter(|_| told.role == Some(Role::Token)) {
        let (tenant, client, decision_id) = (told.tenant, facts.client.as_deref(), told.id);
        log.bypass(&BypassRecord { tenant, client, bypass, decision_id });
    }
}

/// Writes to the audit log what belongs there: a proof that was used before, and a sender that is not
/// the token's, let through by `mode: observe` or not.
pub(super) fn audit(told: &Told<'_>, audit: &Audit, client: Option<IpAddr>, now: UnixTime) {
    let (fault, _) = outcome(told);
    if let Some(facts) = told.facts.filter(|facts| facts.successor && fault.is_none()) {
        let record = successor(told, facts);
        let code = Kind::Successor.name();
        audit.note(client, code, Draft::new(Kind::Successor, now, told.id, None, &record));
    }
    let Some((denial, facts)) = fault.zip(told.facts) else { return };
    let (code, id) = (denial.code(), told.id);
    if denial == Denial::Replayed {
        let record = request(told, fault, DpopResult::Replay);
        audit.note(client, code, Draft::new(Kind::Replay, now, id, None, &record));
    } else if let Some(record) = constraint(told, denial, facts) {
        audit.note(client, code, Draft::new(Kind::Mismatch, now, id, None, &record));
    }
}

fn count(role: Role, facts: &Facts, fault: Option<Denial>, result: DpopResult, metrics: &Metrics) {
    let tenant = match facts.tenant {
        Some(tenant) => Tenant::Known(tenant),
        None if fault == Some(Denial::TenantUnknown) => Tenant::Other,
        None => Tenant::Default,
    };
    if facts.dpop || facts.bypass.is_some() {
        metrics.dpop(tenant, role, result);
    }
    if let Some(lack) =
        facts.observed.filter(|_| result == DpopResult::Observe).and_then(Denial::lack)
    {
        metrics.observed(tenant, lack);
    }
    if let Some(millis) = facts.clock_offset_ms {
        metrics.clock_skew(millis);
    }
    if let Some(reason) = fault.and_then(nonce_miss) {
        metrics.nonce_miss(reason);
    }
    if let Some(Denial::Authority(fault)) = fault {
        metrics.authority_alarm(fault);
    }
    if let Some(reason) = fault.and_then(certificate_miss) {
        metrics.certificate_miss(reason);
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "no other denial is about a nonce")]
fn nonce_miss(denial: Denial) -> Option<NonceMiss> {
    match denial {
        Denial::NonceAbsent => Some(NonceMiss::Absent),
        Denial::NonceExpired => Some(NonceMiss::Expired),
        Denial::NonceUnknown => Some(NonceMiss::Unknown),
        Denial::NonceSpent => Some(NonceMiss::Replayed),
        _ => None,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "no other denial is about a certificate")]
fn certificate_miss(denial: Denial) -> Option<CertificateMiss> {
    match denial {
        Denial::CertificateContextMissing => Some(CertificateMiss::ContextMissing),
        Denial::CertificateMissing => Some(CertificateMiss::MissingCertificate),
        Denial::CertificateMismatch => Some(CertificateMiss::ThumbprintMismatch),
        _ => None,
    }
}

/// Whether an `ok` record is written: the id is random, so it decides.
fn sampled(id: &str, share: f64) -> bool {
    let drawn = id.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0);
    f64::from(drawn) < share * (f64::from(u32::MAX) + 1.0)
}

fn request<'a>(told: &Told<'a>, fault: Option<Denial>, result: DpopResult) -> RequestRecord<'a> {
    let facts = told.facts;
    let token = facts.and_then(|facts| facts.token.as_deref());
    let client = facts.and_then(|facts| facts.client.as_deref());
    RequestRecord {
        tenant: told.tenant,
        client: token.and_then(|token| token.client()).or(client),
        route: told.route,
        role: told.role.map(Role::name),
        mode: facts.and_then(|facts| facts.enforced).map(mode),
        admitted: facts.and_then(|facts| facts.bound_by).and_then(BoundBy::result_header),
        cnf_jkt: facts.and_then(|facts| facts.confirmation.jkt).map(|jkt| Thumbprint(jkt.0)),
        nonce_status: nonce_status(facts.map_or(NonceStatus::NotChecked, |facts| facts.nonce)),
        result: result.name(),
        reason: fault.map(Denial::code),
        lacks: fault.and_then(Denial::lack).map(Lack::name),
        clock_offset_ms: facts.and_then(|facts| facts.clock_offset_ms),
        clock_hint: facts.zip(fault).and_then(|(facts, fault)| clock_hint(facts, fault)),
        decision_id: told.id,
        latency_us: u64::try_from(told.took.as_micros()).unwrap_or(u64::MAX),
        trace_id: told.trace,
        ok_sample: (told.ok_sample < 1.0).then_some(told.ok_sample),
    }
}

fn mode(enforced: bool) -> &'static str {
    if enforced { "enforce" } else { "observe" }
}

fn clock_hint(facts: &Facts, fault: Denial) -> Option<Hint> {
    let nonce_age = match facts.nonce {
        NonceStatus::Fresh { age, .. } => Some(age),
        NonceStatus::NotChecked
        | NonceStatus::Absent
        | NonceStatus::Expired
        | NonceStatus::Unknown
        | NonceStatus::Spent => None,
    };
    Hint::of(fault, facts.clock_offset_ms, nonce_age)
}

fn nonce_status(nonce: NonceStatus) -> &'static str {
    match nonce {
        NonceStatus::NotChecked => "not_checked",
        NonceStatus::Fresh { .. } => "fresh",
        NonceStatus::Absent => "absent",
        NonceStatus::Expired => "expired",
        NonceStatus::Unknown => "unknown",
        NonceStatus::Spent => "spent",
    }
}

/// The record of a certificate that stands in for the token's.
fn successor<'a>(told: &Told<'a>, facts: &'a Facts) -> ConstraintRecord<'a> {
    let token = facts.token.as_deref();
    ConstraintRecord {
        tenant: told.tenant,
        client: token.and_then(|token| token.client()).or(facts.client.as_deref()),
        kind: "mtls",
        reason: Kind::Successor.name(),
        expected: facts.confirmation.x5t.map(|x5t| Thumbprint(x5t.0)),
        presented: facts.presented_x5t.map(|x5t| Thumbprint(x5t.0)),
        sender_certificate_mismatch: false,
        decision_id: told.id,
        refused: false,
    }
}

/// The record of a sender that is not the token's; `None` for every other fault.
fn constraint<'a>(
    told: &Told<'a>,
    denial: Denial,
    facts: &'a Facts,
) -> Option<ConstraintRecord<'a>> {
    let token = facts.token.as_deref();
    let confirmation = facts.confirmation;
    let certificate = certificate_miss(denial).is_some();
    let by_key = matches!(denial, Denial::KeyMismatch | Denial::Downgrade);
    if !certificate && !by_key {
        return None;
    }
    let (kind, expected, presented) = if by_key {
        let presented = facts.presented_jkt.map(|jkt| jkt.0);
        ("dpop", confirmation.jkt.map(|jkt| jkt.0), presented)
    } else {
        let presented = facts.presented_x5t.map(|x5t| x5t.0);
        ("mtls", confirmation.x5t.map(|x5t| x5t.0), presented)
    };
    Some(ConstraintRecord {
        tenant: told.tenant,
        client: token.and_then(|token| token.client()).or(facts.client.as_deref()),
        kind,
        reason: denial.code(),
        expected: expected.map(Thumbprint),
        presented: presented.map(Thumbprint),
        sender_certificate_mismatch: certificate,
        decision_id: told.id,
        refused: told.refused.is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::Challenge;
    use crate::policy::jose::AlgorithmSet;
    use crate::policy::token::Confirmation;

    fn facts(observed: Option<Denial>) -> Facts {
        let algorithms = AlgorithmSet::default();
        Facts {
            tenant: None,
            token: None,
            dpop: true,
            scheme: None,
            presented_jkt: None,
            presented_x5t: None,
            confirmation: Confirmation::default(),
            client: None,
            refresh: false,
            bypass: None,
            successor: false,
            nonce: NonceStatus::Absent,
            carried_nonce: false,
            clock_offset_ms: Some(250),
            observed,
            enforced: Some(observed.is_none()),
            bound_by: None,
            wants_nonce: false,
            issuer: None,
            challenge: Challenge { dpop: true, bearer: false, algorithms },
        }
    }

    fn told<'a>(refused: Option<Denial>, facts: &'a Facts) -> Told<'a> {
        Told {
            route: Some("orders"),
            role: Some(Role::Resource),
            refused,
            facts: Some(facts),
            tenant: None,
            id: "ffffffff000000000000000000000000",
            took: Duration::from_micros(40),
            ok_sample: 0.0,
            trace: None,
        }
    }

    #[test]
    fn the_share_of_ok_records_is_the_configured_one() {
        for (id, share, expect) in [
            ("00000000", 0.0, false),
            ("00000000", 0.1, true),
            ("7fffffff", 0.5, true),
            ("80000000", 0.5, false),
            ("ffffffff", 1.0, true),
        ] {
            assert_eq!(sampled(id, share), expect, "{id} {share}");
        }
    }

    #[test]
    fn mismatches_and_downgrades_make_a_constraint_record() {
        let facts = facts(None);
        for (denial, expect) in [
            (Denial::KeyMismatch, Some(("dpop", false))),
            (Denial::CertificateContextMissing, Some(("mtls", true))),
            (Denial::CertificateMissing, Some(("mtls", true))),
            (Denial::CertificateMismatch, Some(("mtls", true))),
            (Denial::Downgrade, Some(("dpop", false))),
            (Denial::NonceAbsent, None),
            (Denial::TokenExpired, None),
        ] {
            let told = told(Some(denial), &facts);
            let record = constraint(&told, denial, &facts);
            let found = record.map(|record| (record.kind, record.sender_certificate_mismatch));
            assert_eq!(found, expect, "{denial:?}");
        }
    }

    #[test]
    fn an_observed_fault_is_counted_as_observed_with_its_reason() {
        let facts = facts(Some(Denial::NonceAbsent));
        let told = told(None, &facts);
        let record = request(&told, facts.observed, DpopResult::Observe);
        assert_eq!((record.result, record.reason), ("observe", Some("nonce_absent")));
        assert_eq!((record.lacks, record.mode), (Some("nonce"), Some("observe")));
        assert_eq!((record.nonce_status, record.route), ("absent", Some("orders")));
        assert_eq!((record.ok_sample, record.clock_hint), (Some(0.0), None));
    }

    #[test]
    fn the_clock_is_told_of_where_iat_is_the_fault() {
        let mut facts = facts(None);
        facts.clock_offset_ms = Some(200_000);
        let hint = |facts: &Facts| {
            request(
                &told(Some(Denial::ProofStale), facts),
                Some(Denial::ProofStale),
                DpopResult::Invalid,
            )
            .clock_hint
        };
        assert_eq!(hint(&facts), Some(Hint::BehindOrOld(200)));
        facts.nonce = NonceStatus::Fresh { age: Duration::from_secs(20), superseded: false };
        assert_eq!(hint(&facts), Some(Hint::Behind { behind: 200, nonce_age: 20 }));
    }
}
