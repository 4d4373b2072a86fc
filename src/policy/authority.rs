//! What the edge makes of an authorization server's other answers: introspection (RFC 7662) and metadata
//! (RFC 8414).

use super::denial::{AuthorityFault, Denial};
use super::grant::{BindBy, BindingRecord, RetrofitRules, TokenKind};
use super::jose::AlgorithmSet;
use super::json::{self, Object, Value};
use super::request::Sender;
use super::time::UnixTime;
use super::token::{self, Confirmation};

/// What the edge knows of a token that somebody asks about.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Its record.
    pub record: Option<&'a BindingRecord>,
    /// The rules of its issuer, where the edge binds.
    pub rules: Option<&'a RetrofitRules>,
    /// Whether the temporary bypass lasts, for its tenant.
    pub bypass: bool,
}

impl Known<'_> {
    /// What the token is bound to besides what its issuer says.
    ///
    /// # Errors
    /// [`AuthorityFault::RecordMissing`], [`AuthorityFault::TokenRevoked`], and
    /// [`Denial::BindingTooWeak`] for a token of a bypass that is over.
    pub fn confirmation(&self, now: UnixTime) -> Result<Confirmation, Denial> {
        let Some(rules) = self.rules else { return Ok(Confirmation::default()) };
        let Some(record) = self.record.filter(|record| now < record.expires) else {
            let allowed = rules.unrecorded_until.is_some_and(|until| now < until);
            return if allowed {
                Ok(Confirmation::default())
            } else {
                Err(Denial::Authority(AuthorityFault::RecordMissing))
            };
        };
        if record.revoked {
            return Err(Denial::Authority(AuthorityFault::TokenRevoked));
        }
        if record.bypass.is_some() && !self.bypass {
            return Err(Denial::BindingTooWeak);
        }
        Ok(record.confirmation())
    }
}

/// Whether an introspection answer vouches for its token.
///
/// # Errors
/// [`AuthorityFault::AnswerInvalid`] where it does not say.
pub fn is_active(told: &Object) -> Result<bool, Denial> {
    match told.get("active") {
        Some(Value::Bool(active)) => Ok(*active),
        Some(_) | None => Err(Denial::Authority(AuthorityFault::AnswerInvalid)),
    }
}

/// What an active token is bound to, by its issuer's word and by what the edge knows.
///
/// # Errors
/// Those of [`Known::confirmation`], [`AuthorityFault::AnswerInvalid`] for a `cnf` that cannot be read, and
/// [`AuthorityFault::IssuedMismatch`] where nobody can satisfy both.
pub fn bound_to(told: &Object, known: Known<'_>, now: UnixTime) -> Result<Confirmation, Denial> {
    let own =
        token::confirmation(told).map_err(|_| Denial::Authority(AuthorityFault::AnswerInvalid))?;
    own.and(known.confirmation(now)?).ok_or(Denial::Authority(AuthorityFault::IssuedMismatch))
}

/// Holds the certificate that came with a token against what it is bound to.
///
/// # Errors
/// The three certificate denials (RFC 8705 section 3).
pub fn check_certificate(confirmation: Confirmation, shown: Sender<'_>) -> Result<(), Denial> {
    let Some(x5t) = confirmation.x5t else { return Ok(()) };
    match shown {
        Sender::NoContext => Err(Denial::CertificateContextMissing),
        Sender::NoCertificate => Err(Denial::CertificateMissing),
        Sender::Certificate(shown) if shown.x5t().0.same(&x5t.0) => Ok(()),
        Sender::Certificate(_) => Err(Denial::CertificateMismatch),
    }
}

/// The answer with `cnf` (RFC 9449 section 6.2, RFC 8705 section 3.2), and for an access token the
/// `token_type` that goes with it. `None` where it stays as it is.
#[must_use]
pub fn with_confirmation(
    told: &Object,
    confirmation: Confirmation,
    kind: Option<TokenKind>,
) -> Option<Vec<u8>> {
    if confirmation.jkt.is_none() && confirmation.x5t.is_none() {
        return None;
    }
    let mut cnf = told.get("cnf").and_then(Value::as_object).cloned().unwrap_or_default();
    for (name, value) in [
        ("jkt", confirmation.jkt.map(|it| it.to_string())),
        ("x5t#S256", confirmation.x5t.map(|it| it.to_string())),
    ] {
        if let Some(value) = value {
            cnf = cnf.with(name, Value::String(value));
        }
    }
    let mut answer = told.clone().with("cnf", Value::Object(cnf));
    if kind != Some(TokenKind::Refresh) {
        let token_type = if confirmation.jkt.is_some() { "DPoP" } else { "Bearer" };
        answer = answer.with("token_type", Value::String(token_type.to_owned()));
    }
    Some(answer.to_json())
}

/// What a token is answered with that is not to be used.
pub const INACTIVE: &[u8] = br#"{"active":false}"#;

/// A server's metadata with what the edge adds to what it can do (RFC 9449 section 5.1, RFC 8705
/// section 3.3). `None` when it is no JSON object.
#[must_use]
pub fn metadata(body: &[u8], algorithms: Option<AlgorithmSet>, bind: BindBy) -> Option<Vec<u8>> {
    let mut metadata = json::object(body)?;
    if let Some(algorithms) = algorithms.filter(|_| bind.key) {
        let names = algorithms.iter().map(|it| Value::String(it.name().to_owned())).collect();
        metadata = metadata.with("dpop_signing_alg_values_supported", Value::Array(names));
    }
    if bind.certificate {
        let name = "tls_client_certificate_bound_access_tokens";
        metadata = metadata.with(name, Value::Bool(true));
    }
    Some(metadata.to_json())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use super::super::grant::UnknownRefresh;
    use super::*;

    #[test]
    fn what_a_bypass_let_by_is_no_token_once_it_is_over() {
        let rules = RetrofitRules {
            bind: BindBy::BOTH,
            by_tenant: HashMap::new(),
            by_client: HashMap::new(),
            unrecorded_until: None,
            unknown_refresh: UnknownRefresh::Refuse,
            token_lifetime: Duration::from_secs(60),
            refresh_lifetime: Duration::from_secs(60),
            opaque: None,
        };
        let record = BindingRecord {
            kind: TokenKind::Access,
            tenant: None,
            client: None,
            cnf_jkt: None,
            sender_certificate: None,
            scope: None,
            expires: UnixTime::MAX,
            family: "f".to_owned(),
            bypass: Some("b".to_owned()),
            revoked: false,
        };
        for (bypass, expect) in
            [(true, Ok(Confirmation::default())), (false, Err(Denial::BindingTooWeak))]
        {
            let known = Known { record: Some(&record), rules: Some(&rules), bypass };
            assert_eq!(known.confirmation(UnixTime::from_secs(0)), expect, "{bypass}");
        }
    }
}
