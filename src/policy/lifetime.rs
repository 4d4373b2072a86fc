//! How long an exchange may go on: no longer than what admitted it holds.

use std::time::Duration;

use super::binding::BoundBy;
use super::certificate::SenderCertificate;
use super::time::UnixTime;

/// Why an exchange ends though neither side ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its token has expired.
    Token,
    /// The certificate that its admission rests on has expired, or was withdrawn.
    Certificate,
    /// The route's `streamMaxAge` has passed.
    MaxAge,
}

impl Ending {
    /// Every value, in label order.
    pub const ALL: [Self; 3] = [Self::Token, Self::Certificate, Self::MaxAge];

    /// The `reason` label of `holdfast_streams_ended_total`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Certificate => "certificate",
            Self::MaxAge => "max_age",
        }
    }
}

/// Whether an admission stands and falls with the client's certificate.
#[must_use]
pub fn rests_on_certificate(bound_by: BoundBy) -> bool {
    match bound_by {
        BoundBy::Mtls | BoundBy::Both => true,
        BoundBy::Public
        | BoundBy::Preflight
        | BoundBy::Unbound
        | BoundBy::Dpop
        | BoundBy::Bypass
        | BoundBy::Observed => false,
    }
}

/// The first moment at which an exchange that was admitted at `now` must not go on, and why; `None`
/// when nothing bounds it. `token` is when its token expires, `certificate` the one that it rests
/// on, `max_age` the route's.
#[must_use]
pub fn end(
    token: Option<UnixTime>,
    certificate: Option<&SenderCertificate>,
    max_age: Option<Duration>,
    now: UnixTime,
) -> Option<(UnixTime, Ending)> {
    // `notAfter` is the last second that counts (RFC 5280 section 4.1.2.5).
    let expired = |shown: &SenderCertificate| shown.not_after().plus(Duration::from_secs(1));
    let ends = [
        token.map(|end| (end, Ending::Token)),
        certificate.map(|shown| (expired(shown), Ending::Certificate)),
        max_age.map(|age| (now.plus(age), Ending::MaxAge)),
    ];
    ends.into_iter().flatten().min_by_key(|(end, _)| *end)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn the_earliest_end_counts() {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let certificate = SenderCertificate::new(certificate.der().to_vec()).unwrap();
        let over = certificate.not_after().secs() + 1;
        let now = over - 100;
        for (token, shown, max_age, expect) in [
            (None, false, None, None),
            (Some(10), false, None, Some((10, Ending::Token))),
            (Some(10), true, Some(20), Some((10, Ending::Token))),
            (Some(200), true, None, Some((100, Ending::Certificate))),
            (None, true, Some(101), Some((100, Ending::Certificate))),
            (Some(200), true, Some(99), Some((99, Ending::MaxAge))),
            (None, false, Some(5), Some((5, Ending::MaxAge))),
            // Past already: it ends at once.
            (Some(-1), false, Some(5), Some((-1, Ending::Token))),
        ] {
            let token = token.map(|offset: i64| UnixTime::from_secs(now + offset));
            let found = end(
                token,
                shown.then_some(&certificate),
                max_age.map(Duration::from_secs),
                UnixTime::from_secs(now),
            );
            let found = found.map(|(end, ending)| (end.secs() - now, ending));
            assert_eq!(found, expect);
        }
    }

    #[test]
    fn a_certificate_that_was_shown_beside_is_not_rested_on() {
        for (bound_by, expect) in [
            (BoundBy::Public, false),
            (BoundBy::Preflight, false),
            (BoundBy::Unbound, false),
            (BoundBy::Dpop, false),
            (BoundBy::Mtls, true),
            (BoundBy::Both, true),
            (BoundBy::Observed, false),
        ] {
            assert_eq!(rests_on_certificate(bound_by), expect);
        }
    }
}
