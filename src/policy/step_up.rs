//! How recently, and how, whoever a token speaks for must have been authenticated (RFC 9470).

use std::time::Duration;

use super::denial::Denial;
use super::time::UnixTime;

/// What a route demands of the authentication behind a token, beyond the token itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepUp {
    /// `auth_time` must be no older than this; `None`: it does not matter.
    pub max_age: Option<Duration>,
    /// `acr` must be one of these; empty: it does not matter.
    pub acr_values: Vec<String>,
}

/// What a token says of the authentication behind it (RFC 9068 section 2.2.1, RFC 9470 section 6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authentication {
    /// `auth_time`.
    pub time: Option<UnixTime>,
    /// `acr`.
    pub acr: Option<String>,
}

impl StepUp {
    /// Holds an authentication against this. `skew` is how far its issuer's clock may be ahead; it
    /// makes no authentication younger.
    ///
    /// # Errors
    /// [`Denial::AuthenticationStale`] when it was too long ago, or nobody says when, or it lies ahead:
    /// a time that has not come would stay fresh for longer than the route allows.
    /// [`Denial::AcrInsufficient`] when it is of none of the demanded classes.
    pub fn check(
        &self,
        shown: &Authentication,
        skew: Duration,
        now: UnixTime,
    ) -> Result<(), Denial> {
        if let Some(max_age) = self.max_age {
            let fresh = |time: UnixTime| now <= time.plus(max_age) && time <= now.plus(skew);
            if !shown.time.is_some_and(fresh) {
                return Err(Denial::AuthenticationStale);
            }
        }
        let named = |acr: &String| self.acr_values.contains(acr);
        if !self.acr_values.is_empty() && !shown.acr.as_ref().is_some_and(named) {
            return Err(Denial::AcrInsufficient);
        }
        Ok(())
    }

    /// What a client must ask its issuer for, as parameters of a challenge (RFC 9470 section 3): all
    /// of it, whatever was missing, so that one new authentication is enough.
    #[must_use]
    pub fn parameters(&self) -> Vec<(&'static str, String)> {
        let max_age = self.max_age.map(|age| ("max_age", age.as_secs().to_string()));
        let acr_values = (!self.acr_values.is_empty()).then(|| self.acr_values.join(" "));
        max_age.into_iter().chain(acr_values.map(|values| ("acr_values", values))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn rule(max_age: Option<u64>, acr_values: &[&str]) -> StepUp {
        let acr_values = acr_values.iter().map(|&acr| acr.to_owned()).collect();
        StepUp { max_age: max_age.map(Duration::from_secs), acr_values }
    }

    #[test]
    fn age_and_class() {
        use Denial::{AcrInsufficient, AuthenticationStale};
        let five = || rule(Some(300), &[]);
        let classes = || rule(None, &["phr", "urn:mfa"]);
        let both = || rule(Some(300), &["phr"]);
        for (name, rule, millis, acr, expect) in [
            ("ok/nothing demanded", rule(None, &[]), None, None, Ok(())),
            ("ok/just now", five(), Some(0), None, Ok(())),
            ("ok/to the last millisecond", five(), Some(-300_000), None, Ok(())),
            ("fail/one past it", five(), Some(-300_001), None, Err(AuthenticationStale)),
            ("fail/nobody says when", five(), None, Some("phr"), Err(AuthenticationStale)),
            ("ok/their clock is ahead", five(), Some(30_000), None, Ok(())),
            ("fail/ahead by more", five(), Some(30_001), None, Err(AuthenticationStale)),
            ("fail/never ends", five(), Some(i64::MAX), None, Err(AuthenticationStale)),
            ("fail/the beginning", five(), Some(i64::MIN), None, Err(AuthenticationStale)),
            ("ok/first class", classes(), None, Some("phr"), Ok(())),
            ("ok/second class", classes(), None, Some("urn:mfa"), Ok(())),
            ("fail/another class", classes(), None, Some("phrh"), Err(AcrInsufficient)),
            ("fail/both at once", classes(), None, Some("phr urn:mfa"), Err(AcrInsufficient)),
            ("fail/another case", classes(), None, Some("PHR"), Err(AcrInsufficient)),
            ("fail/no class", classes(), Some(0), None, Err(AcrInsufficient)),
            ("ok/both", both(), Some(0), Some("phr"), Ok(())),
            ("fail/old", both(), Some(-301_000), Some("phr"), Err(AuthenticationStale)),
            ("fail/weak", both(), Some(0), Some("pwd"), Err(AcrInsufficient)),
        ] {
            let time =
                millis.map(|millis| UnixTime::from_millis((NOW * 1000_i64).saturating_add(millis)));
            let shown = Authentication { time, acr: acr.map(str::to_owned) };
            let found = rule.check(&shown, Duration::from_secs(30), UnixTime::from_secs(NOW));
            assert_eq!(found, expect, "{name}");
        }
    }

    #[test]
    fn a_challenge_says_all_of_it() {
        let said = |rule: StepUp| {
            let words =
                rule.parameters().into_iter().map(|(name, value)| format!("{name}={value}"));
            words.collect::<Vec<_>>().join(", ")
        };
        assert_eq!(said(rule(None, &[])), "");
        assert_eq!(said(rule(Some(300), &[])), "max_age=300");
        assert_eq!(said(rule(None, &["phr", "urn:mfa"])), "acr_values=phr urn:mfa");
        assert_eq!(said(rule(Some(60), &["phr"])), "max_age=60, acr_values=phr");
    }
}
