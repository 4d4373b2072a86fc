//! An envelope as anybody reads it who has the edge's public keys: pure functions.

use super::fault::Fault;
use crate::policy::capsule::envelope::{Claims, TYPE, key_hash};
use crate::policy::capsule::node::NodeId;
use crate::policy::jose::{Algorithm, CompactJws};
use crate::policy::json;
use crate::policy::time::UnixTime;
use crate::policy::token::KeySet;

/// An envelope whose signature holds. What it says may still be about another node, key or time.
#[derive(Clone, Debug)]
pub(super) struct Signed {
    /// What it says.
    pub(super) claims: Claims,
    /// The key that signed it.
    pub(super) kid: String,
    /// How.
    pub(super) algorithm: Algorithm,
}

/// Reads a compact JWS and verifies it by the key of `keys` that it names.
pub(super) fn read(compact: &str, keys: &KeySet) -> Result<Signed, Fault> {
    let jws = CompactJws::parse(compact).ok_or(Fault::NotAnEnvelope)?;
    let algorithm = jws
        .algorithm()
        .filter(|algorithm| matches!(algorithm, Algorithm::EdDsa | Algorithm::Es256))
        .ok_or(Fault::Algorithm)?;
    if json::string(&jws.header, "typ") != Ok(Some(TYPE)) {
        return Err(Fault::Type);
    }
    if jws.header.contains_key("crit") {
        return Err(Fault::Critical);
    }
    let kid = json::string(&jws.header, "kid").ok().flatten().ok_or(Fault::NoKid)?;
    let key = keys.find(Some(kid), algorithm).ok_or_else(|| Fault::UnknownKey(kid.to_owned()))?;
    if !jws.verified_by(key, algorithm) {
        return Err(Fault::Signature);
    }
    let claims = serde_json::to_vec(&jws.payload).map_err(|_| Fault::Claims)?;
    let claims: Claims = serde_json::from_slice(&claims).map_err(|_| Fault::Claims)?;
    if claims.exp <= claims.iat {
        return Err(Fault::Lifetime);
    }
    Ok(Signed { claims, kid: kid.to_owned(), algorithm })
}

impl Signed {
    /// Whether it is about this node.
    pub(super) fn is_for(&self, node: &NodeId) -> Result<(), Fault> {
        let told = &self.claims.sub;
        if told == node { Ok(()) } else { Err(Fault::Node(told.clone())) }
    }

    /// Whether it is of this cluster.
    pub(super) fn is_of_cluster(&self, cluster: &str) -> Result<(), Fault> {
        let told = &self.claims.cluster;
        if told == cluster { Ok(()) } else { Err(Fault::Cluster(told.clone())) }
    }

    /// Whether this is the key that it vouches for.
    pub(super) fn is_of_key(&self, key: &[u8]) -> Result<(), Fault> {
        if key_hash(key).same(&self.claims.key_hash) { Ok(()) } else { Err(Fault::KeyHash) }
    }

    /// Whether `now` lies within its time. It may begin `skew` later than now; past its end it is
    /// past its end.
    pub(super) fn is_current(&self, now: UnixTime, skew: std::time::Duration) -> Result<(), Fault> {
        let (begins, ends) =
            (UnixTime::from_secs(self.claims.iat), UnixTime::from_secs(self.claims.exp));
        if begins > now.plus(skew) {
            return Err(Fault::Future(begins));
        }
        if now >= ends {
            return Err(Fault::Expired(ends));
        }
        Ok(())
    }
}
