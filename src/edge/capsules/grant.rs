//! Making a capsule: the key, sealed or not, the envelope and the signature.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::policy::capsule::decision::Grant;
use crate::policy::capsule::envelope::{self, Claims};
use crate::policy::capsule::key;
use crate::policy::capsule::node::Node;
use crate::policy::capsule::pipeline::Ids;
use crate::policy::time::UnixTime;

use super::Capsules;
use super::ask::Shown;
use super::seal::SealKey;

/// The body of a grant.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Body {
    pub(super) capsule_id: String,
    node_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime_key: Option<Zeroizing<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sealed_key: Option<String>,
    key_version: String,
    issued_utc: String,
    expires_utc: String,
    risk_score: u32,
    signature: String,
    envelope: String,
}

impl Capsules {
    /// Makes the capsule of `grant`; `None` where a key is missing or something cannot be signed.
    #[expect(clippy::too_many_arguments, reason = "a capsule is made of all of it")]
    pub(super) fn make(
        &self,
        shown: &Shown<'_>,
        node: &Node,
        grant: &Grant,
        ids: &Ids,
        score: u32,
        seal: Option<&SealKey>,
        now: UnixTime,
    ) -> Option<Body> {
        let (secret, fingerprint) = (shown.secret?, node.fingerprint?);
        let version = &grant.key_version;
        let master = self.ring.master(version.master)?;
        let runtime = key::derive(master, &self.cluster, &node.id, &fingerprint, version);
        let claims = Claims {
            cluster: self.cluster.clone(),
            exp: grant.expires.secs(),
            iat: grant.issued.secs(),
            jti: ids.capsule.clone(),
            key_hash: envelope::key_hash(runtime.as_slice()),
            key_version: version.clone(),
            risk_score: score,
            sealed: grant.sealed,
            sub: node.id.clone(),
        };
        let envelope = self.ring.envelope(&claims, now)?;
        let (runtime_key, sealed_key) = if grant.sealed {
            let sealed = seal?.seal(runtime.as_slice(), &self.cluster, node.id.as_str())?;
            (None, Some(sealed))
        } else {
            (Some(Zeroizing::new(STANDARD.encode(runtime.as_slice()))), None)
        };
        let material = runtime_key.as_ref().map(|key| key.as_str()).or(sealed_key.as_deref())?;
        let signature = envelope::signature(secret, &node.id, &claims.canonical(), material);
        Some(Body {
            capsule_id: ids.capsule.clone(),
            node_id: node.id.to_string(),
            runtime_key,
            sealed_key,
            key_version: version.to_string(),
            issued_utc: grant.issued.rfc3339().to_string(),
            expires_utc: grant.expires.rfc3339().to_string(),
            risk_score: score,
            signature,
            envelope,
        })
    }
}
