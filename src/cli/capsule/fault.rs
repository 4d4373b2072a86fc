//! Why a capsule is not believed.

use crate::policy::capsule::envelope::TYPE;
use crate::policy::capsule::key::KeyVersion;
use crate::policy::capsule::node::NodeId;
use crate::policy::time::UnixTime;

/// One variant for each thing that can be wrong. Quoted text of others is escaped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("the answer is no capsule: a JSON object with its members is expected")]
    NotAGrant,
    #[error("the envelope is no compact JWS over JSON")]
    NotAnEnvelope,
    #[error("the envelope is signed by something else than EdDSA or ES256")]
    Algorithm,
    #[error("the envelope's type is not {TYPE}")]
    Type,
    #[error("the envelope has a `crit` header, which says that it is not to be read like this")]
    Critical,
    #[error("the envelope does not say which key signed it")]
    NoKid,
    #[error("the envelope's key {0:?} is not among the edge's keys")]
    UnknownKey(String),
    #[error("the envelope's signature does not hold")]
    Signature,
    #[error("the envelope does not say what one of a capsule says")]
    Claims,
    #[error("the envelope ends before it begins")]
    Lifetime,
    #[error("the envelope is for the node {0}")]
    Node(NodeId),
    #[error("the capsule is for another node than its envelope")]
    GrantNode,
    #[error("the envelope is of the cluster {0:?}")]
    Cluster(String),
    #[error("the capsule's id is not its envelope's")]
    CapsuleId,
    #[error("the capsule's key version is not its envelope's")]
    KeyVersion,
    #[error("the key is version {got}, and {asked} was asked for")]
    OtherVersion { got: KeyVersion, asked: KeyVersion },
    #[error("the key is bound to the software version {0:?}, which this node did not tell")]
    Software(String),
    #[error("the capsule's risk score is not its envelope's")]
    RiskScore,
    #[error("the capsule's times are not its envelope's")]
    Times,
    #[error(
        "the capsule was issued {0} seconds from now by this node's clock: one of both is wrong"
    )]
    Clock(i64),
    #[error("it begins only at {}", .0.rfc3339())]
    Future(UnixTime),
    #[error("it ended at {}", .0.rfc3339())]
    Expired(UnixTime),
    #[error("the capsule has no key, or two")]
    NoKey,
    #[error("the key is sealed, and its envelope says that it is not, or the other way round")]
    SealedFlag,
    #[error("the key is sealed, and nothing was given to seal it to")]
    SealedUnasked,
    #[error("the key is not sealed, as --seal demands")]
    Unsealed,
    #[error("the sealed key is no compact JWE by ECDH-ES and A256GCM")]
    NotSealed,
    #[error("the sealed key is for another cluster or node than its envelope")]
    SealedFor,
    #[error("the sealed key cannot be opened: it was sealed to another key, or changed")]
    Unseal,
    #[error("the key is not 32 bytes in base64")]
    KeyLength,
    #[error("the key is not the one that the envelope vouches for")]
    KeyHash,
    #[error("the signature for the node does not hold: whoever made it does not have its secret")]
    NodeSignature,
}
