//! Stateless server nonces (RFC 9449 sections 8 and 9): made and checked with a key and a time.
//!
//! A nonce is base64url of `version ‖ key id ‖ issued ‖ random ‖ MAC`: one byte, four bytes, four
//! bytes (seconds since the epoch, big endian), eight bytes, and HMAC-SHA256 over the four truncated
//! to 128 bit. The MAC key is derived for each external origin, so that a nonce of one is none of
//! another; the id says which of several keys made it, and says it differently for each origin.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::digest::lp;
use super::epoch::Epoch;
use super::target::Origin;
use super::time::UnixTime;

const VERSION: u8 = 2;
const BODY: usize = 1 + 4 + 4 + 8;
const MAC: usize = 16;
/// Characters of a nonce.
const TEXT: usize = (BODY + MAC) / 3 * 4;

/// A key of one external origin's nonces.
#[derive(Clone)]
struct NonceKey {
    id: [u8; 4],
    mac: Hmac<Sha256>,
}

/// The keys of one external origin's nonces: the first makes them, each checks them, so that what an
/// earlier one made holds while it is still there.
#[derive(Clone, Debug)]
pub struct NonceKeys(Vec<NonceKey>);

impl std::fmt::Debug for NonceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NonceKey")
    }
}

/// A nonce of ours that has not expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreshNonce {
    /// How long it has been good for.
    pub age: Duration,
    /// Whether its key is no longer the one that new nonces are made with.
    pub superseded: bool,
}

/// Why a nonce does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonceFault {
    /// Ours, but older than its time.
    Expired,
    /// Not made with this key.
    Unknown,
}

/// What nonces are made from: 256 random bits. Not to be printed.
#[derive(Clone)]
pub struct NonceSecret(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for NonceSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NonceSecret")
    }
}

impl NonceSecret {
    /// One of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes.into())
    }

    /// The bytes, for who makes nonces in this one's name.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The secret of one memory of proofs under this one, which outlives it: HKDF-SHA256 with the epoch as
    /// salt. What does not remember the proofs that came with a nonce must not take that nonce.
    #[must_use]
    pub fn bound_to(&self, epoch: &Epoch) -> Self {
        let mut secret = Zeroizing::new([0; 32]);
        let hkdf = Hkdf::<Sha256>::new(Some(&epoch.0.0), &*self.0);
        let expanded = hkdf.expand(b"dpop-nonce-epoch/v1", secret.as_mut());
        debug_assert!(expanded.is_ok());
        Self(secret)
    }
}

impl NonceKeys {
    /// The keys for `origin` under each of `secrets`: HKDF-SHA256 (RFC 5869) with
    /// `info = lp("dpop-nonce/v2") ‖ lp(origin)`, `lp(x) = u16be(len) ‖ x`.
    #[must_use]
    pub fn derive(secrets: &[NonceSecret], origin: &Origin) -> Self {
        Self(secrets.iter().map(|secret| NonceKey::derive(secret, origin)).collect())
    }

    /// A nonce made at `now`; `None` when there is no key.
    #[must_use]
    pub fn make(&self, now: UnixTime, random: [u8; 8]) -> Option<String> {
        let key = self.0.first()?;
        let issued = u32::try_from(now.secs()).unwrap_or(u32::MAX);
        let mut body = [0; BODY];
        body[0] = VERSION;
        body[1..5].copy_from_slice(&key.id);
        body[5..9].copy_from_slice(&issued.to_be_bytes());
        body[9..].copy_from_slice(&random);
        let mut nonce = [0; BODY + MAC];
        nonce[..BODY].copy_from_slice(&body);
        nonce[BODY..].copy_from_slice(&key.mac(&body));
        Some(URL_SAFE_NO_PAD.encode(nonce))
    }

    /// Whether `nonce` was made with one of these keys at most `ttl` before `now`.
    ///
    /// # Errors
    /// [`NonceFault::Unknown`] for what no key here made, [`NonceFault::Expired`] past `ttl`, and for
    /// a nonce from ahead of a clock that was set back.
    pub fn check(
        &self,
        nonce: &str,
        now: UnixTime,
        ttl: Duration,
    ) -> Result<FreshNonce, NonceFault> {
        let mut bytes = [0; BODY + MAC];
        let read = nonce.len() == TEXT
            && URL_SAFE_NO_PAD.decode_slice_unchecked(nonce, &mut bytes).is_ok();
        let (body, mac) = bytes.split_at(BODY);
        let [VERSION, k, l, m, n, a, b, c, d, ..] = *body else {
            return Err(NonceFault::Unknown);
        };
        let named = |key: &&NonceKey| key.id == [k, l, m, n];
        let made = |key: &NonceKey| bool::from(key.mac(body).ct_eq(mac));
        let place = self.0.iter().position(|key| named(&key) && made(key));
        let (true, Some(place)) = (read, place) else {
            return Err(NonceFault::Unknown);
        };
        let issued = UnixTime::from_secs(u32::from_be_bytes([a, b, c, d]).into());
        let age = u64::try_from(now.millis_since(issued)).map_err(|_| NonceFault::Expired)?;
        let age = Duration::from_millis(age);
        if age > ttl {
            Err(NonceFault::Expired)
        } else {
            Ok(FreshNonce { age, superseded: place > 0 })
        }
    }
}

impl NonceKey {
    fn derive(secret: &NonceSecret, origin: &Origin) -> Self {
        let mut info = Vec::new();
        for part in [b"dpop-nonce/v2".as_slice(), origin.as_str().as_bytes()] {
            lp(&mut info, part);
        }
        // Three blocks of HMAC-SHA256, well within what HKDF can expand to: it cannot fail.
        let mut key = Zeroizing::new([0; 68]);
        let expanded = Hkdf::<Sha256>::new(None, secret.bytes()).expand(&info, key.as_mut());
        debug_assert!(expanded.is_ok());
        let [mac @ .., k, l, m, n] = *key;
        let mac = Zeroizing::new(mac);
        Self { id: [k, l, m, n], mac: Hmac::<Sha256>::new(&(*mac).into()) }
    }

    fn mac(&self, body: &[u8]) -> [u8; MAC] {
        let full: [u8; 32] = self.mac.clone().chain_update(body).finalize().into_bytes().into();
        let [mac @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = full;
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(600);

    fn keys(secrets: &[u8], origin: &str) -> NonceKeys {
        let secrets: Vec<_> = secrets.iter().map(|&byte| NonceSecret::new([byte; 32])).collect();
        NonceKeys::derive(&secrets, &Origin::parse(origin).unwrap())
    }

    #[test]
    fn lives_for_its_time() {
        let keys = keys(&[1], "https://a.example");
        let issued = UnixTime::from_secs(1_800_000_000);
        let nonce = keys.make(issued, [7; 8]).unwrap();
        assert_eq!(nonce.len(), TEXT);
        let at = |secs: i64| keys.check(&nonce, UnixTime::from_secs(1_800_000_000 + secs), TTL);
        assert_eq!(at(0), Ok(FreshNonce { age: Duration::ZERO, superseded: false }));
        assert_eq!(at(600), Ok(FreshNonce { age: TTL, superseded: false }));
        assert_eq!(at(601), Err(NonceFault::Expired));
        assert_eq!(at(-1), Err(NonceFault::Expired));
    }

    #[test]
    fn is_of_one_epoch() {
        let [one, other] = [1, 2].map(|byte| Epoch(crate::policy::digest::Sha256([byte; 32])));
        let bound = |byte, epoch| *NonceSecret::new([byte; 32]).bound_to(epoch).bytes();
        assert_eq!(bound(7, &one), bound(7, &one));
        assert_ne!(bound(7, &one), bound(7, &other));
        assert_ne!(bound(7, &one), bound(8, &one));
    }

    #[test]
    fn is_nobody_elses() {
        let now = UnixTime::from_secs(1_800_000_000);
        let nonce = keys(&[1], "https://a.example").make(now, [7; 8]).unwrap();
        for other in [
            keys(&[2], "https://a.example"),
            keys(&[1], "https://b.example"),
            keys(&[2, 3], "https://a.example"),
            keys(&[], "https://a.example"),
        ] {
            assert_eq!(other.check(&nonce, now, TTL), Err(NonceFault::Unknown));
        }
    }

    #[test]
    fn outlives_its_key_s_turn_and_not_its_key() {
        let now = UnixTime::from_secs(1_800_000_000);
        let origin = "https://a.example";
        let old = keys(&[1], origin).make(now, [7; 8]).unwrap();
        let check = |secrets: &[u8]| keys(secrets, origin).check(&old, now, TTL);
        let age = Duration::ZERO;
        assert_eq!(check(&[2, 1]), Ok(FreshNonce { age, superseded: true }));
        assert_eq!(check(&[3, 2, 1]), Ok(FreshNonce { age, superseded: true }));
        assert_eq!(check(&[2]), Err(NonceFault::Unknown));
        let new = keys(&[2, 1], origin).make(now, [7; 8]).unwrap();
        assert!(keys(&[2], origin).check(&new, now, TTL).is_ok());
        assert_eq!(keys(&[1], origin).check(&new, now, TTL), Err(NonceFault::Unknown));
    }

    #[test]
    fn cannot_be_bent() {
        let keys = keys(&[1, 2], "https://a.example");
        let now = UnixTime::from_secs(1_800_000_000);
        let nonce = keys.make(now, [7; 8]).unwrap();
        for index in 0..nonce.len() {
            let mut bent = nonce.clone().into_bytes();
            bent[index] = if bent[index] == b'A' { b'B' } else { b'A' };
            let bent = String::from_utf8(bent).unwrap();
            assert_eq!(keys.check(&bent, now, TTL), Err(NonceFault::Unknown), "{index}");
        }
        for other in [String::new(), format!("{nonce}="), format!("{nonce}A"), "é".repeat(22)] {
            assert_eq!(keys.check(&other, now, TTL), Err(NonceFault::Unknown), "{other}");
        }
    }
}
