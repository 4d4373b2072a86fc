//! What a decision is made from, beside the node's record and the policy. All of it is written into
//! the audit record, so that the decision can be made again.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::key::KeyVersion;
use super::node::Network;
use crate::policy::digest::{Jkt, Sha256, X5tS256};

/// What a request shows, and what the edge knows of where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Facts {
    /// Stage 2: whether there is such a node. Its record is not among what a stranger's decision is
    /// made from.
    pub enrolled: bool,
    /// Stage 1: whether the secret is the node's.
    pub secret: bool,
    /// Stage 4.
    pub sender: SenderFacts,
    /// Stage 5.
    pub fingerprint: Fingerprint,
    /// `X-Node-Boot-Id`; one that is malformed is none.
    pub boot: Option<String>,
    /// `X-Node-Version`; one that is malformed is none.
    pub version: Option<String>,
    /// Stage 7.
    pub place: Place,
    /// Nodes that were quarantined within the brake's window.
    pub recent_quarantines: u32,
    /// Stage 8.
    pub keys: KeyFacts,
}

/// What the sender proved of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SenderFacts {
    /// Its DPoP proof.
    pub proof: Proof,
    /// The certificate that counts as the sender's.
    pub x5t: Option<X5tS256>,
}

/// A DPoP proof, as far as it was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "is", deny_unknown_fields)]
pub enum Proof {
    /// None was shown: the secret came as `Bearer`.
    Absent,
    /// It holds, is for this secret and this request, and is new.
    Holds {
        /// The thumbprint of its key.
        jkt: Jkt,
    },
    /// It needs a nonce of this edge.
    NeedsNonce {
        /// The denial's code.
        code: String,
    },
    /// It does not hold.
    Faulty {
        /// The denial's code.
        code: String,
        /// The thumbprint of its key, where its signature verified.
        jkt: Option<Jkt>,
        /// What its `iat` says of the node's clock ([`Hint`](crate::policy::clock::Hint)), where that is
        /// the fault.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clock: Option<String>,
    },
}

/// The fingerprint that a request shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "is", content = "hash", deny_unknown_fields)]
pub enum Fingerprint {
    /// None, or one that is no 1 to 256 bytes of visible ASCII.
    Missing,
    /// Two that differ.
    Conflict,
    /// SHA-256 of the one.
    Shown(Sha256),
}

/// Where a request comes from, and where the baseline's address lies, both by the databases in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Place {
    /// The peer that the edge trusts; `None` where it knows none, which no grant survives.
    pub network: Option<Network>,
    /// The baseline's address, looked up in the same builds.
    pub baseline: Option<Network>,
    /// Which factors there are databases for.
    pub databases: Databases,
}

/// The builds of the databases, seconds since the epoch; `None` where there is none and its factor
/// is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Databases {
    /// Of autonomous systems.
    pub asn: Option<u64>,
    /// Of regions.
    pub region: Option<u64>,
}

/// The master keys there are, and which key is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyFacts {
    /// `?keyVersion=`; `None`: the current one.
    pub asked: Asked,
    /// Versions of master keys that are not retired, the current one last. Empty: there is none.
    pub masters: Vec<u32>,
    /// The node's ephemeral public key to seal to.
    pub seal: Seal,
}

/// `?keyVersion=`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "is", content = "version", deny_unknown_fields)]
pub enum Asked {
    /// The current version.
    Current,
    /// This one.
    Version(KeyVersion),
    /// Something that is no version.
    Malformed,
}

/// The ephemeral key of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Seal {
    /// None.
    Absent,
    /// One that can be sealed to.
    Usable,
    /// One that cannot.
    Unusable,
}

/// An address in its canonical form: an IPv4-mapped IPv6 address is the IPv4 address.
#[must_use]
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
