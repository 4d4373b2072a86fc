//! What a sender must present.

use super::answer::{Explanation, Present, ProofShown};
use super::{Query, grant, names};
use crate::config::{Config, Route, show_duration};
use crate::policy::proof::ProofRules;
use crate::policy::rule::{Demand, Requirement, TenantId};

/// The ways in that the demand leaves open.
pub(super) fn present(
    config: &Config,
    query: &Query<'_>,
    route: &Route,
    (tenant, requirement): (Option<TenantId>, &Requirement),
    htu: &str,
    shown: &mut Explanation,
) {
    let asks_for_token = route.rule.role.asks_for_token();
    let proof = ProofShown {
        htm: query.method.to_owned(),
        htu: htu.to_owned(),
        iat: iat(&config.dpop, requirement),
        ath: (!asks_for_token).then_some("base64url(SHA-256(token))"),
        nonce: requirement.nonce,
        algorithms: names(requirement.algorithms),
    };
    let certificates = shown.listeners.iter().any(|listener| listener.client_certificates != "off");
    shown.present = if asks_for_token {
        grant::ways(config, route, (tenant, requirement), proof, certificates)
    } else {
        ways(config, route, requirement, proof, certificates)
    };
    shown.notes.extend(present_notes(config, query, route, requirement, shown));
}

/// With a token.
fn ways(
    config: &Config,
    route: &Route,
    requirement: &Requirement,
    proof: ProofShown,
    certificates: bool,
) -> Vec<Present> {
    let dpop = config.rules.dpop_enabled;
    let mtls = config.rules.mtls_enabled && certificates;
    let key = Present {
        authorization: Some("DPoP"),
        cnf: vec!["jkt"],
        proof: Some(proof),
        client_certificate: false,
    };
    let certificate = Present {
        authorization: Some("Bearer"),
        cnf: vec!["x5t#S256"],
        proof: None,
        client_certificate: true,
    };
    let both = Present { cnf: vec!["jkt", "x5t#S256"], client_certificate: true, ..key.clone() };
    let unbound = Present { cnf: Vec::new(), client_certificate: false, ..certificate.clone() };
    let demand = requirement.demand;
    let ways = [
        (key, dpop && demand.met_by(true, false)),
        (certificate, mtls && demand.met_by(false, true)),
        (both, dpop && mtls && demand == Demand::Both),
        (unbound, demand == Demand::None || route.rule.allow_unbound),
    ];
    ways.into_iter().filter(|(_, open)| *open).map(|(way, _)| way).collect()
}

fn iat(times: &ProofRules, requirement: &Requirement) -> String {
    if times.nonce_replaces_iat && requirement.nonce {
        return "any: the nonce alone decides".to_owned();
    }
    let (lifetime, skew) = (show_duration(times.proof_lifetime), show_duration(times.clock_skew));
    format!("at most {lifetime} old, {skew} either way")
}

fn present_notes(
    config: &Config,
    query: &Query<'_>,
    route: &Route,
    requirement: &Requirement,
    shown: &Explanation,
) -> Vec<String> {
    let asks_for_token = route.rule.role.asks_for_token();
    let all =
        |word: &str| shown.listeners.iter().all(|listener| listener.client_certificates == word);
    let certificate = config.rules.mtls_enabled && requirement.demand != Demand::Dpop;
    let observes = match query.client {
        Some(client) => !config.rules.enforces(requirement.mode, Some(client)),
        None => requirement.mode.observes(),
    };
    let notes = [
        observes
            .then_some("observe: what lacks any of this goes on as received, marked and recorded"),
        (certificate && all("off"))
            .then_some("a certificate cannot be shown on this listener: it asks for none"),
        all("require").then_some("without a client certificate the handshake already fails"),
        (asks_for_token && shown.present.is_empty())
            .then_some("nothing that can be shown here is enough: every request is refused"),
        (!asks_for_token).then_some("whatever a token is bound to must be shown, demanded or not"),
    ];
    notes.into_iter().flatten().map(str::to_owned).collect()
}
