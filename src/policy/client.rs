//! Which client asks an authorization server: every source that names one must name the same.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use zeroize::Zeroizing;

use super::certificate::SenderCertificate;
use super::denial::{AuthorityFault, Denial};
use super::form::{self, Form};
use super::jose::CompactJws;
use super::json;
use super::presented;
use super::rule::TenantId;

/// The most bytes of a client's id: it is in records of every refusal. Some are URLs.
const ID_BYTES: usize = 1024;
/// RFC 7523 section 2.2.
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// RFC 7522 section 2.2.
const SAML_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:saml2-bearer";

/// A client that the configuration knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownClient {
    /// Its `client_id`.
    pub id: String,
    /// Its tenant.
    pub tenant: TenantId,
    /// DNS names and URIs: a certificate that has one of them is this client's.
    pub certificate_names: Vec<String>,
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// The `client_id` that every source gives.
    pub id: Option<String>,
    /// Its tenant, where the configuration knows it.
    pub tenant: Option<TenantId>,
}

/// Reads who asks: from `Authorization: Basic` (RFC 6749 section 2.3.1), `client_id`, a
/// `client_assertion` (RFC 7523), and the names in the client certificate. None of it is proven here: the
/// server answers for that.
///
/// # Errors
/// [`Denial::AuthorizationRepeated`], [`Denial::AuthorizationMalformed`], and of [`AuthorityFault`]
/// `AssertionMalformed`, `ClientsDiffer` where two sources name two clients, and `FormInvalid` for a name
/// that is none.
pub fn asker(
    headers: &HeaderMap,
    form: &Form,
    certificate: Option<&SenderCertificate>,
    known: &[KnownClient],
) -> Result<Asker, Denial> {
    let shown = certificate.map(SenderCertificate::names).unwrap_or_default();
    let owner =
        |client: &&KnownClient| client.certificate_names.iter().any(|it| shown.contains(it));
    let mut owners = known.iter().filter(owner).map(|client| client.id.clone());
    let sources = [
        basic(headers)?,
        form.get("client_id").map(str::to_owned),
        assertion(form)?,
        owners.next(),
        owners.next(),
    ];
    let mut named = sources.into_iter().flatten();
    let id = named.next();
    if named.any(|other| Some(&other) != id.as_ref()) {
        return Err(Denial::Authority(AuthorityFault::ClientsDiffer));
    }
    if id.as_ref().is_some_and(|id| id.len() > ID_BYTES) {
        return Err(Denial::Authority(AuthorityFault::FormInvalid));
    }
    let tenant = known.iter().find(|client| Some(&client.id) == id.as_ref());
    Ok(Asker { tenant: tenant.map(|client| client.tenant), id })
}

/// Whether there is an `Authorization: Basic`.
#[must_use]
pub fn is_basic(headers: &HeaderMap) -> bool {
    let text = headers.get(AUTHORIZATION).and_then(|field| field.to_str().ok());
    let scheme = text.map(|text| text.split(' ').next().unwrap_or_default());
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("basic"))
}

/// The id in `Authorization: Basic`. Other schemes name nobody.
fn basic(headers: &HeaderMap) -> Result<Option<String>, Denial> {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let Some(field) = fields.next() else { return Ok(None) };
    if fields.next().is_some() {
        return Err(Denial::AuthorizationRepeated);
    }
    let text = field.to_str().map_err(|_| Denial::AuthorizationMalformed)?;
    let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
    if !presented::is_token(scheme) {
        return Err(Denial::AuthorizationMalformed);
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Ok(None);
    }
    let pair = STANDARD.decode(rest.trim()).map_err(|_| Denial::AuthorizationMalformed)?;
    let pair = Zeroizing::new(pair);
    let end = pair.iter().position(|byte| *byte == b':').ok_or(Denial::AuthorizationMalformed)?;
    let id = form::decoded(pair.get(..end).unwrap_or_default());
    let id = id.map_err(|_| Denial::AuthorizationMalformed)?;
    if id.is_empty() { Err(Denial::AuthorizationMalformed) } else { Ok(Some(id.to_string())) }
}

/// The id in a `client_assertion`: `iss` and `sub`, which are both the client's (RFC 7523 section 3).
fn assertion(form: &Form) -> Result<Option<String>, Denial> {
    let Some(assertion) = form.get("client_assertion") else { return Ok(None) };
    match form.get("client_assertion_type") {
        Some(JWT_BEARER) => {}
        // It is not read; the server wants a `client_id` beside it.
        Some(SAML_BEARER) => return Ok(None),
        Some(_) | None => return Err(Denial::Authority(AuthorityFault::AssertionMalformed)),
    }
    let jws = CompactJws::parse(assertion)
        .ok_or(Denial::Authority(AuthorityFault::AssertionMalformed))?;
    let claim = |name| json::string(&jws.payload, name).ok().flatten();
    match (claim("iss"), claim("sub")) {
        (Some(issuer), Some(subject)) if issuer == subject => Ok(Some(subject.to_owned())),
        _ => Err(Denial::Authority(AuthorityFault::AssertionMalformed)),
    }
}
