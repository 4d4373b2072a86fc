//! Opaque tokens that are taken on their records.

use super::{Confirmation, IssuerRules, VerifiedToken, Vouched};
use crate::policy::denial::{AuthorityFault, Denial};
use crate::policy::grant::BindingRecord;
use crate::policy::rule::Rules;
use crate::policy::step_up::Authentication;
use crate::policy::time::UnixTime;

/// An opaque token of `issuer`, on the record that was kept when it was issued.
///
/// # Errors
/// [`AuthorityFault::RecordMissing`] where such tokens are not taken, [`Denial::TokenExpired`], and
/// [`Denial::TenantUnknown`].
pub fn of_record(
    record: &BindingRecord,
    issuer: usize,
    entry: &IssuerRules,
    rules: &Rules,
    now: UnixTime,
) -> Result<VerifiedToken, Denial> {
    let opaque =
        entry.opaque_by_record().ok_or(Denial::Authority(AuthorityFault::RecordMissing))?;
    if record.expires <= now {
        return Err(Denial::TokenExpired);
    }
    let named = record.tenant.as_ref();
    let found = named.and_then(|name| rules.tenant_named(name));
    if named.is_some() && found.is_none() && !rules.unknown_tenant_allowed {
        return Err(Denial::TenantUnknown);
    }
    let tenant = found.or(entry.tenant);
    // As a token is whose claim names none.
    if tenant.is_none() && rules.tenant_claim.is_some() && !rules.unknown_tenant_allowed {
        return Err(Denial::TenantUnknown);
    }
    let scope = record.scope.as_deref().unwrap_or_default();
    Ok(VerifiedToken {
        issuer,
        vouched: Vouched::Word(now),
        subject: None,
        client: record.client.clone(),
        tenant,
        audiences: vec![opaque.audience.clone()],
        scopes: scope.split(' ').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        confirmation: Confirmation::default(),
        authentication: Authentication::default(),
        expires: record.expires,
    })
}
