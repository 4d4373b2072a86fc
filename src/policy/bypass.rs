//! The temporary bypass: an emergency door of token routes, which closes by itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::rule::TenantId;
use super::time::UnixTime;

/// How long it stays open where the file does not say.
pub const DEFAULT_TERM: Duration = Duration::from_secs(3600);
/// How far ahead its end may be.
pub const LONGEST_TERM: Duration = Duration::from_secs(24 * 3600);

/// What the file says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BypassRules {
    /// Whether it is wanted at all.
    pub allowed: bool,
    /// When it ends.
    pub until: Option<UnixTime>,
    /// For whom alone; empty: for everybody.
    pub tenants: Vec<TenantId>,
}

/// When the flag was first seen, as the store keeps it: a restart opens no new term.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// What its records are found by.
    pub id: String,
    /// When.
    pub since: UnixTime,
}

/// A bypass that was opened. Whether it still is says [`Bypass::is_open`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bypass {
    /// When its flag was first seen.
    pub seen: Seen,
    /// When it ends.
    pub until: UnixTime,
    /// For whom alone; empty: for everybody.
    tenants: Vec<TenantId>,
}

impl Bypass {
    /// That of `rules`, whose flag was first seen as said.
    #[must_use]
    pub fn of(rules: &BypassRules, seen: Seen) -> Self {
        let until = rules.until.unwrap_or_else(|| seen.since.plus(DEFAULT_TERM));
        let until = until.min(seen.since.plus(LONGEST_TERM));
        Self { seen, until, tenants: rules.tenants.clone() }
    }

    /// Whether it is open at all.
    #[must_use]
    pub fn lasts(&self, now: UnixTime) -> bool {
        now < self.until
    }

    /// Whether it is open for `tenant`.
    #[must_use]
    pub fn is_open(&self, tenant: Option<TenantId>, now: UnixTime) -> bool {
        let meant = self.tenants.is_empty() || tenant.is_some_and(|it| self.tenants.contains(&it));
        meant && self.lasts(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;

    fn at(secs: i64) -> UnixTime {
        UnixTime::from_secs(1_800_000_000 + secs)
    }

    #[test]
    fn it_closes_by_itself() {
        let seen = Seen { id: "b".to_owned(), since: at(0) };
        for (until, open, closed) in [
            (None, HOUR - 1, HOUR),
            (Some(at(60)), 59, 60),
            (Some(at(20 * HOUR)), 20 * HOUR - 1, 20 * HOUR),
            // Whatever the file says later, no term is longer than a day.
            (Some(at(40 * HOUR)), 24 * HOUR - 1, 24 * HOUR),
        ] {
            let rules = BypassRules { allowed: true, until, tenants: Vec::new() };
            let bypass = Bypass::of(&rules, seen.clone());
            assert!(bypass.is_open(None, at(open)), "{until:?}");
            assert!(!bypass.is_open(None, at(closed)), "{until:?}");
        }
    }

    #[test]
    fn it_is_for_its_tenants_alone() {
        let seen = Seen { id: "b".to_owned(), since: at(0) };
        let rules = BypassRules { allowed: true, until: None, tenants: vec![TenantId(1)] };
        let bypass = Bypass::of(&rules, seen);
        for (tenant, expect) in [(None, false), (Some(0), false), (Some(1), true)] {
            assert_eq!(bypass.is_open(tenant.map(TenantId), at(1)), expect, "{tenant:?}");
        }
    }
}
