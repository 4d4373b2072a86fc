//! What a sender may know of its access token: its hash, and what it says it is bound to.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::policy::digest::Sha256;

/// An access token that goes into no message: only its hash is shown.
#[derive(Clone)]
pub struct AccessToken(String);

impl std::fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AccessToken({})", self.hash_prefix())
    }
}

/// What a JWT says of itself, unverified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claimed {
    /// `cnf.jkt`.
    pub jkt: Option<String>,
    /// `cnf.x5t#S256`.
    pub x5t: Option<String>,
}

impl AccessToken {
    /// `None` when it is empty or cannot stand in a field: visible ASCII without white space is
    /// expected (RFC 6750 section 2.1).
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        (visible && !text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// The token itself.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.0
    }

    /// The first 8 characters of its SHA-256, base64url: those of `ath`.
    #[must_use]
    pub fn hash_prefix(&self) -> String {
        Sha256::of(self.0.as_bytes()).to_string().chars().take(8).collect()
    }

    /// What a JWT claims to be bound to; `None` for a token that is no JWT.
    #[must_use]
    pub fn claimed(&self) -> Option<Claimed> {
        let mut parts = self.0.split('.');
        let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        let cnf = claims.as_object()?.get("cnf");
        let member = |name| Some(cnf?.get(name)?.as_str()?.to_owned());
        Some(Claimed { jkt: member("jkt"), x5t: member("x5t#S256") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_visible_ascii() {
        for bad in ["", " ", "a b", "a\r\nX: y", "ä"] {
            assert!(AccessToken::new(bad).is_none(), "{bad:?}");
        }
        assert!(AccessToken::new("a.b-c~/+==").is_some());
    }

    #[test]
    fn a_jwt_tells_its_binding_and_nothing_else_does() {
        let check = |payload: &str, expect: Option<(Option<&str>, Option<&str>)>| {
            let text = format!("h.{}.s", URL_SAFE_NO_PAD.encode(payload));
            let claimed = AccessToken::new(&text).unwrap().claimed();
            let expect = expect.map(|(jkt, x5t)| Claimed {
                jkt: jkt.map(str::to_owned),
                x5t: x5t.map(str::to_owned),
            });
            assert_eq!(claimed, expect, "{payload}");
        };
        check(r#"{"cnf":{"jkt":"a","x5t#S256":"b"}}"#, Some((Some("a"), Some("b"))));
        check(r#"{"cnf":{"jkt":7}}"#, Some((None, None)));
        check("{}", Some((None, None)));
        check("[]", None);
        check("x", None);
        for opaque in ["opaque", "a.b", "a.b.c.d", "a.!.c"] {
            assert_eq!(AccessToken::new(opaque).unwrap().claimed(), None);
        }
    }

    #[test]
    fn debug_shows_the_hash_only() {
        let token = AccessToken::new("Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU").unwrap();
        assert_eq!(format!("{token:?}"), "AccessToken(fUHyO2r2)");
    }
}
