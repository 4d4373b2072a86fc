//! The parts of an answer, as its JSON form names them.

use serde::Serialize;

/// The answer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Explanation {
    pub(super) method: String,
    pub(super) url: String,
    /// Why the request is refused whatever it presents.
    pub(super) refused: Option<Refused>,
    pub(super) listeners: Vec<ListenerShown>,
    /// What the edge answers itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) own: Option<OwnShown>,
    pub(super) route: Option<RouteShown>,
    pub(super) upstream: Option<UpstreamShown>,
    /// On a route of an authorization server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) authority: Option<AuthorityShown>,
    pub(super) tenant: Option<String>,
    pub(super) rule: Vec<Contribution>,
    pub(super) requirement: Option<RequirementShown>,
    pub(super) token: Option<TokenShown>,
    /// Each is enough.
    pub(super) present: Vec<Present>,
    pub(super) notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OwnShown {
    /// `capsule`, `telemetry`, `keys` or `metadata`.
    pub(super) what: &'static str,
    /// Of nodes: their cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cluster: Option<String>,
    /// Of a protected resource: its identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resource: Option<String>,
    /// What must be presented, a line each.
    pub(super) present: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) why: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListenerShown {
    pub(super) name: String,
    pub(super) address: String,
    /// The TLS policy that the host chooses; absent where it is the listener's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) policy: Option<String>,
    /// Whether it terminates TLS.
    pub(super) tls: bool,
    /// Whether each connection begins with a PROXY header.
    pub(super) proxy_protocol: bool,
    pub(super) client_certificates: &'static str,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RouteShown {
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) role: &'static str,
    /// `edge` where no service answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) answer: Option<&'static str>,
    pub(super) allow_unbound: bool,
    /// Who answers cross-origin preflights: `edge` or `upstream`.
    pub(super) cors: Option<&'static str>,
    /// The pages that may read answers, where the edge says so.
    pub(super) cors_origins: Vec<String>,
    /// `streamMaxAge`.
    pub(super) stream_max_age: Option<String>,
    /// Where the resource's metadata is (RFC 9728).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resource_metadata: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UpstreamShown {
    pub(super) name: String,
    pub(super) servers: Vec<String>,
    pub(super) credentials: &'static str,
}

/// What the edge does in front of an authorization server.
#[derive(Clone, Debug, Serialize)]
pub(super) struct AuthorityShown {
    pub(super) issuer: Option<String>,
    /// Of token and par routes, who binds: `native` the server, `retrofit` the edge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) binding: Option<&'static str>,
    /// Of token and par routes, whose nonces go: `edge` or `upstream`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) nonces: Option<&'static str>,
    /// What else it does, a line each.
    pub(super) does: Vec<String>,
}

/// What one scope adds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Contribution {
    pub(super) scope: String,
    pub(super) says: Vec<String>,
    pub(super) overrides: bool,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RequirementShown {
    pub(super) require: &'static str,
    pub(super) mode: &'static str,
    /// The percentage of clients that are enforced all the same, where it is neither none nor all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) enforce_percent: Option<u8>,
    /// The client that was asked about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client: Option<ClientShown>,
    pub(super) nonce: bool,
    pub(super) algorithms: Vec<&'static str>,
}

/// Whether a client is among those that are enforced.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClientShown {
    pub(super) id: String,
    pub(super) enforced: bool,
    /// From which `enforcePercent` on it is enforced, where the mode is `observe`.
    pub(super) enforced_from_percent: u8,
}

/// What a token must say.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TokenShown {
    pub(super) issuers: Vec<IssuerShown>,
    /// `aud` must name one of these too; empty: no more than the issuer's entry demands.
    pub(super) audiences: Vec<String>,
    pub(super) scopes: Vec<String>,
    /// How old `auth_time` may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_age: Option<String>,
    /// `acr` must be one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) acr_values: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct IssuerShown {
    pub(super) issuer: String,
    pub(super) audiences: Vec<String>,
    /// Which of its tokens it is asked about (RFC 7662).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) introspection: Option<String>,
    /// Whether one without a record of what it is bound to passes, where the edge binds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) recorded: Option<&'static str>,
}

/// One way to be let in.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Present {
    /// The scheme that the token is sent by; absent where there is none yet.
    pub(super) authorization: Option<&'static str>,
    /// What the token's `cnf` holds, or will.
    pub(super) cnf: Vec<&'static str>,
    pub(super) proof: Option<ProofShown>,
    pub(super) client_certificate: bool,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct ProofShown {
    pub(super) htm: String,
    pub(super) htu: String,
    pub(super) iat: String,
    /// Absent where no token goes with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ath: Option<&'static str>,
    pub(super) nonce: bool,
    pub(super) algorithms: Vec<&'static str>,
}
