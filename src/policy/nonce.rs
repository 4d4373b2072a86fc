//! Stateless server nonces (RFC 9449 sections 8 and 9): made and checked with a key and a time.
//!
//! A nonce is base64url of `version ‖ issued ‖ random ‖ MAC`: one byte, four bytes (seconds since
//! the epoch, big endian), eight bytes, and HMAC-SHA256 over the three truncated to 128 bit. The MAC
//! key is derived for each external origin, so that a nonce of one is none of another.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use super::target::Origin;
use super::time::UnixTime;

const VERSION: u8 = 1;
const BODY: usize = 1 + 4 + 8;
const MAC: usize = 16;
/// Characters of a nonce.
const TEXT: usize = (BODY + MAC).div_ceil(3) * 4 - 1;

/// The key of one external origin's nonces.
#[derive(Clone)]
pub struct NonceKey(Hmac<Sha256>);

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
}

/// Why a nonce does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonceFault {
    /// Ours, but older than its time.
    Expired,
    /// Not made with this key.
    Unknown,
}

impl NonceKey {
    /// The key for `origin` under `secret`: HKDF-SHA256 (RFC 5869) with
    /// `info = lp("dpop-nonce/v1") ‖ lp(origin)`, `lp(x) = u16be(len) ‖ x`.
    #[must_use]
    pub fn derive(secret: &[u8; 32], origin: &Origin) -> Self {
        let mut info = Vec::new();
        for part in [b"dpop-nonce/v1".as_slice(), origin.as_str().as_bytes()] {
            let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
            info.extend_from_slice(&length.to_be_bytes());
            info.extend_from_slice(part);
        }
        // One block of HMAC-SHA256, well within what HKDF can expand to: it cannot fail.
        let mut key = zeroize::Zeroizing::new([0; 64]);
        let expanded = Hkdf::<Sha256>::new(None, secret).expand(&info, key.as_mut());
        debug_assert!(expanded.is_ok());
        Self(Hmac::<Sha256>::new(&(*key).into()))
    }

    /// A nonce made at `now`.
    #[must_use]
    pub fn make(&self, now: UnixTime, random: [u8; 8]) -> String {
        let issued = u32::try_from(now.secs()).unwrap_or(u32::MAX);
        let mut body = [0; BODY];
        body[0] = VERSION;
        body[1..5].copy_from_slice(&issued.to_be_bytes());
        body[5..].copy_from_slice(&random);
        let mut nonce = [0; BODY + MAC];
        nonce[..BODY].copy_from_slice(&body);
        nonce[BODY..].copy_from_slice(&self.mac(&body));
        URL_SAFE_NO_PAD.encode(nonce)
    }

    /// Whether `nonce` was made with this key at most `ttl` before `now`.
    ///
    /// # Errors
    /// [`NonceFault::Unknown`] for what this key did not make, [`NonceFault::Expired`] past `ttl`,
    /// and for a nonce from ahead of a clock that was set back.
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
        if !read || !bool::from(self.mac(body).ct_eq(mac)) {
            return Err(NonceFault::Unknown);
        }
        let [VERSION, a, b, c, d, ..] = *body else {
            return Err(NonceFault::Unknown);
        };
        let issued = UnixTime::from_secs(u32::from_be_bytes([a, b, c, d]).into());
        let age = u64::try_from(now.millis_since(issued)).map_err(|_| NonceFault::Expired)?;
        let age = Duration::from_millis(age);
        if age > ttl { Err(NonceFault::Expired) } else { Ok(FreshNonce { age }) }
    }

    fn mac(&self, body: &[u8]) -> [u8; MAC] {
        let full: [u8; 32] = self.0.clone().chain_update(body).finalize().into_bytes().into();
        let [mac @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = full;
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(600);

    fn key(secret: u8, origin: &str) -> NonceKey {
        NonceKey::derive(&[secret; 32], &Origin::parse(origin).unwrap())
    }

    #[test]
    fn lives_for_its_time() {
        let key = key(1, "https://a.example");
        let issued = UnixTime::from_secs(1_800_000_000);
        let nonce = key.make(issued, [7; 8]);
        assert_eq!(nonce.len(), TEXT);
        let at = |secs: i64| key.check(&nonce, UnixTime::from_secs(1_800_000_000 + secs), TTL);
        assert_eq!(at(0), Ok(FreshNonce { age: Duration::ZERO }));
        assert_eq!(at(600), Ok(FreshNonce { age: TTL }));
        assert_eq!(at(601), Err(NonceFault::Expired));
        assert_eq!(at(-1), Err(NonceFault::Expired));
    }

    #[test]
    fn is_nobody_elses() {
        let now = UnixTime::from_secs(1_800_000_000);
        let nonce = key(1, "https://a.example").make(now, [7; 8]);
        for other in [key(2, "https://a.example"), key(1, "https://b.example")] {
            assert_eq!(other.check(&nonce, now, TTL), Err(NonceFault::Unknown));
        }
    }

    #[test]
    fn cannot_be_bent() {
        let key = key(1, "https://a.example");
        let now = UnixTime::from_secs(1_800_000_000);
        let nonce = key.make(now, [7; 8]);
        for index in 0..nonce.len() {
            let mut bent = nonce.clone().into_bytes();
            bent[index] = if bent[index] == b'A' { b'B' } else { b'A' };
            let bent = String::from_utf8(bent).unwrap();
            assert_eq!(key.check(&bent, now, TTL), Err(NonceFault::Unknown), "{index}");
        }
        for other in [String::new(), format!("{nonce}="), format!("{nonce}A"), "é".repeat(20)] {
            assert_eq!(key.check(&other, now, TTL), Err(NonceFault::Unknown), "{other}");
        }
    }
}
