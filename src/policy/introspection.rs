//! Opaque access tokens: an issuer's answer about one (RFC 7662), and the time, in;
//! [`VerifiedToken`] out.

use std::time::Duration;

use super::denial::Denial;
use super::json::{self, Object};
use super::rule::Rules;
use super::time::UnixTime;
use super::token::{self, Assumed, IssuerRules, Told, VerifiedToken, Vouched};

/// What an issuer's entry says about tokens that it is asked about.
#[derive(Clone, Debug)]
pub struct IntrospectionRules {
    /// What its opaque tokens begin with; `None`: every one that no other issuer's prefix fits.
    pub token_prefix: Option<String>,
    /// How long its word is taken without asking again.
    pub cache_ttl: Duration,
    /// The audience of a token of which it names none.
    pub assumed_audience: Option<String>,
    /// How long a token is good of which it does not say when it ends, from the question on.
    pub assumed_lifetime: Option<Duration>,
}

/// The most audiences and scopes, together, of one token: it is remembered.
const MAX_NAMES: usize = 512;

/// The issuer (its index) that is asked about an opaque token: the one whose prefix it has, else the
/// one without a prefix.
#[must_use]
pub fn issuer_of(token: &str, issuers: &[IssuerRules]) -> Option<usize> {
    let fits = |issuer: &IssuerRules, prefixed: bool| match issuer.opaque_prefix() {
        Some(Some(prefix)) => prefixed && token.starts_with(prefix),
        Some(None) => !prefixed,
        None => false,
    };
    let prefixed = issuers.iter().position(|issuer| fits(issuer, true));
    prefixed.or_else(|| issuers.iter().position(|issuer| fits(issuer, false)))
}

/// Reads the body of an answer (RFC 7662 section 2.2) to a question that was put at `now` to
/// `issuer`. What it says of the token is held against the issuer's entry as the claims of a JWT are.
///
/// # Errors
/// [`Denial::IntrospectionUnavailable`] when it is no such answer, which says nothing of the token;
/// [`Denial::TokenInactive`]; or the first claim that does not hold.
pub fn read(
    body: &[u8],
    issuer: usize,
    entry: &IssuerRules,
    rules: &Rules,
    now: UnixTime,
) -> Result<VerifiedToken, Denial> {
    let told = json::object(body).ok_or(Denial::IntrospectionUnavailable)?;
    let asked = entry.introspection.as_ref().ok_or(Denial::IntrospectionUnavailable)?;
    match told.get("active") {
        Some(json::Value::Bool(true)) => {}
        Some(json::Value::Bool(false)) => return Err(Denial::TokenInactive),
        Some(_) | None => return Err(Denial::IntrospectionUnavailable),
    }
    match json::string(&told, "iss") {
        Ok(None) => {}
        Ok(Some(named)) if named == entry.issuer => {}
        Ok(Some(_)) => return Err(Denial::TokenIssuer),
        Err(json::WrongType) => return Err(Denial::TokenClaim),
    }
    let assumed = Assumed {
        audience: asked.assumed_audience.as_deref(),
        expires: asked.assumed_lifetime.map(|lifetime| now.plus(lifetime)),
    };
    // The skew is for tokens that nobody can be asked about: at `exp` this one is asked about again.
    let ends = json::numeric_date(&told, "exp").map_err(|_| Denial::TokenClaim)?;
    let fresh = now.plus(asked.cache_ttl);
    let vouched = Vouched::Word(ends.map_or(fresh, |ends| fresh.min(ends)));
    let token = token::claims(&told, entry, rules, Told { issuer, vouched, assumed }, now)?;
    token_type(&told, &token)?;
    if token.audiences().len() + token.scopes().len() > MAX_NAMES {
        return Err(Denial::TokenClaim);
    }
    Ok(token)
}

/// `token_type` is that of an access token (RFC 7662 section 2.2), and `DPoP` only for one that is
/// bound to a key (RFC 9449 section 6.2). Many servers leave it out; but where there is no audience
/// either, nothing tells an access token from a refresh token.
fn token_type(told: &Object, token: &VerifiedToken) -> Result<(), Denial> {
    let named = json::string(told, "token_type").map_err(|_| Denial::TokenClaim)?;
    match named {
        Some(name) if name.eq_ignore_ascii_case("DPoP") => match token.confirmation().jkt {
            Some(_) => Ok(()),
            None => Err(Denial::TokenConfirmation),
        },
        Some(name) if name.eq_ignore_ascii_case("Bearer") => Ok(()),
        Some(_) => Err(Denial::TokenType),
        None if told.contains_key("aud") => Ok(()),
        None => Err(Denial::TokenType),
    }
}

/// A text as a value of a form (WHATWG URL, `application/x-www-form-urlencoded`): how a token goes
/// into the question, and id and secret of the one who asks into their place (RFC 6749 section 2.3.1).
#[must_use]
pub fn form_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() + text.len() / 4);
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'_' => {
                encoded.push(char::from(byte));
            }
            b' ' => encoded.push('+'),
            _ => {
                let hex = |half: u8| char::from_digit(half.into(), 16).unwrap_or('0');
                encoded.push('%');
                encoded.extend(
                    [hex(byte >> 4), hex(byte & 15)].map(|digit| digit.to_ascii_uppercase()),
                );
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests;
