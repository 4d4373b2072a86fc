//! What a proof that was refused for its `iat` says of the client's clock, for who operates the edge.
//! Only of proofs whose signature holds: anybody can write an `iat`, and then it is no client's.

use std::fmt;
use std::time::Duration;

use super::denial::Denial;

/// What is known, in words (its `Display`): `client clock is 47 s ahead`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// `iat` lies this many seconds after now: no proof is made before its clock says so.
    Ahead(i64),
    /// `iat` lies `behind` seconds before now, and the proof has a nonce that the edge made
    /// `nonce_age` seconds ago: it is no older than that, and its clock is wrong by the rest at least.
    Behind {
        /// now − `iat`, seconds.
        behind: i64,
        /// Age of the nonce, seconds.
        nonce_age: i64,
    },
    /// `iat` lies this many seconds before now: the clock is behind, or the proof was kept for that
    /// long.
    BehindOrOld(i64),
    /// As before, and what the edge holds it against has not been there for that long.
    BehindOrBeforeStart(i64),
}

impl Hint {
    /// What `denial` says of the clock, where it is about `iat`. `offset_ms` is now − `iat` of a proof
    /// whose signature holds, `nonce_age` how long ago its nonce was made, where that holds.
    #[must_use]
    #[expect(clippy::wildcard_enum_match_arm, reason = "no other denial is about `iat`")]
    pub fn of(denial: Denial, offset_ms: Option<i64>, nonce_age: Option<Duration>) -> Option<Self> {
        let offset = seconds(offset_ms?);
        match denial {
            Denial::ProofFuture => Some(Self::Ahead(offset.saturating_neg())),
            Denial::ProofStale => {
                let age = nonce_age.map(|age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
                Some(match age.filter(|age| *age < offset) {
                    Some(nonce_age) => Self::Behind { behind: offset, nonce_age },
                    None => Self::BehindOrOld(offset),
                })
            }
            Denial::ProofBeforeStart => Some(Self::BehindOrBeforeStart(offset)),
            _ => None,
        }
    }
}

/// Milliseconds to the nearest second.
fn seconds(millis: i64) -> i64 {
    millis.saturating_add(500).div_euclid(1000)
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ahead(by) => write!(f, "client clock is {by} s ahead"),
            Self::Behind { behind, nonce_age } => {
                let least = behind.saturating_sub(*nonce_age);
                write!(
                    f,
                    "client clock is {least} s behind or more: the proof says that it is {behind} s old, \
                     its nonce is {nonce_age} s old"
                )
            }
            Self::BehindOrOld(by) => {
                write!(f, "client clock is {by} s behind, or the proof is that old")
            }
            Self::BehindOrBeforeStart(by) => write!(
                f,
                "client clock is {by} s behind, or the proof was made before the edge began to \
                 remember proofs"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_told_of_where_iat_is_the_fault() {
        let age = Duration::from_secs;
        for (denial, offset_ms, nonce_age, expect) in [
            (Denial::ProofFuture, Some(-47_000), None, Some("client clock is 47 s ahead")),
            (Denial::ProofFuture, Some(-47_499), Some(age(3)), Some("client clock is 47 s ahead")),
            (
                Denial::ProofStale,
                Some(200_600),
                None,
                Some("client clock is 201 s behind, or the proof is that old"),
            ),
            (
                Denial::ProofStale,
                Some(200_000),
                Some(age(153)),
                Some(
                    "client clock is 47 s behind or more: the proof says that it is 200 s old, its nonce is \
                     153 s old",
                ),
            ),
            (
                Denial::ProofStale,
                Some(200_000),
                Some(age(300)),
                Some("client clock is 200 s behind, or the proof is that old"),
            ),
            (
                Denial::ProofBeforeStart,
                Some(3000),
                None,
                Some(
                    "client clock is 3 s behind, or the proof was made before the edge began to remember \
                     proofs",
                ),
            ),
            (Denial::ProofStale, None, None, None),
            (Denial::ProofSignature, Some(200_000), None, None),
            (Denial::NonceAbsent, Some(200_000), None, None),
        ] {
            let hint = Hint::of(denial, offset_ms, nonce_age).map(|hint| hint.to_string());
            assert_eq!(hint.as_deref(), expect, "{denial:?} {offset_ms:?} {nonce_age:?}");
        }
        // A hostile `iat` may be anything.
        for offset in [i64::MIN, i64::MAX] {
            for denial in [Denial::ProofStale, Denial::ProofFuture] {
                assert!(Hint::of(denial, Some(offset), Some(age(u64::MAX))).is_some());
            }
        }
    }
}
