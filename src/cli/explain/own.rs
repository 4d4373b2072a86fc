//! What the edge answers itself.

use super::answer::{OwnShown, Refused};
use super::refused;
use crate::config::Config;
use crate::edge::capsules::{Sites, What};
use crate::policy::capsule::pipeline::{ProofDemand, SealPolicy};
use crate::policy::denial::Denial;

/// What the edge answers a request with itself, where it does.
pub(super) fn find(
    config: &Config,
    method: &str,
    authority: &str,
    path: &str,
) -> Result<Option<OwnShown>, Refused> {
    let Some(capsules) = &config.capsules else { return Ok(None) };
    let sites = Sites::new(capsules, &config.origins);
    let Some(own) = sites.find(authority, path) else { return Ok(None) };
    let methods = own.what.methods();
    if !methods.iter().any(|known| known.as_str() == method) {
        let names: Vec<_> = methods.iter().map(http::Method::as_str).collect();
        let why = format!("it takes only {}", names.join(", "));
        return Err(refused(405, Denial::MethodNotAllowed, why));
    }
    let origin = config.origins.get(own.origin).map(ToString::to_string).unwrap_or_default();
    let (what, mut present) = match own.what {
        What::Jwks => ("keys", vec!["nothing: they are for everybody".to_owned()]),
        What::Telemetry => ("telemetry", vec!["body {bootId, seq, state, version}".to_owned()]),
        What::Capsule => ("capsule", Vec::new()),
    };
    if own.what != What::Jwks {
        present.extend(sender(capsules.policy.proof, method, &format!("{origin}{path}")));
        present.push("X-Node-Fingerprint, X-Node-Boot-Id".to_owned());
    }
    if own.what == What::Capsule {
        if capsules.policy.bind_version {
            present.push("X-Node-Version: a part of the key".to_owned());
        }
        let seal = match capsules.policy.seal {
            SealPolicy::Required => {
                "an ephemeral key in the proof's enc_jwk: the key is only given sealed"
            }
            SealPolicy::Offered => {
                "an ephemeral key in the proof's enc_jwk, to have the key sealed"
            }
            SealPolicy::Off => "nothing to seal to: keys are not sealed",
        };
        present.push(seal.to_owned());
    }
    let cluster = Some(capsules.cluster.clone());
    Ok(Some(OwnShown { what, cluster, resource: None, present }))
}

/// The metadata of a protected resource.
pub(super) fn metadata(method: &str, resource: Option<String>) -> Result<OwnShown, Refused> {
    if !["GET", "HEAD"].contains(&method) {
        return Err(refused(405, Denial::MethodNotAllowed, "it takes only GET, HEAD"));
    }
    let present = vec!["nothing: it is for everybody".to_owned()];
    Ok(OwnShown { what: "metadata", cluster: None, resource, present })
}

fn sender(demand: ProofDemand, method: &str, htu: &str) -> Vec<String> {
    let proof = || {
        vec![
            "Authorization: DPoP <the node's secret>".to_owned(),
            format!("DPoP: <proof by the node's key; htm {method}, htu {htu}, ath of the secret>"),
        ]
    };
    let certificate = || {
        let bearer = "Authorization: Bearer <the node's secret>";
        format!("{bearer}, and the node's client certificate on the connection")
    };
    match demand {
        ProofDemand::Dpop => proof(),
        ProofDemand::Mtls => vec![certificate()],
        ProofDemand::None => vec!["Authorization: Bearer <the node's secret>".to_owned()],
        ProofDemand::Any => {
            let mut either = proof();
            either.push(format!("or {}", certificate()));
            either
        }
    }
}
