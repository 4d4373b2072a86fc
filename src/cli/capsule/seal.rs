//! Keys that a runtime key is sealed to, and the opening of what was sealed: compact JWE by ECDH-ES
//! and A256GCM (RFC 7516, RFC 7518 sections 4.6 and 5.3). The plaintext is the key's 32 bytes.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use josekit::jwe;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::fault::Fault;
use crate::cli::client::key::{KeyError, SigningKey};
use crate::policy::capsule::envelope::Claims;
use crate::policy::jose::Algorithm;
use crate::policy::json::{self, Object};

/// Bytes of the initialisation vector and of the tag (RFC 7518 section 5.3).
const IV_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// An ephemeral P-256 key, for one request.
#[derive(Debug)]
pub(super) struct SealKey(SigningKey);

impl SealKey {
    /// A fresh one. It signs nothing: a key for ES256 is a key on P-256.
    pub(super) fn fresh() -> Result<Self, KeyError> {
        SigningKey::generate(Algorithm::Es256).map(Self)
    }

    /// The public JWK.
    pub(super) fn public_jwk(&self) -> &Map<String, Value> {
        self.0.public_jwk()
    }

    /// Opens what was sealed to this key for the cluster and node of `claims`.
    pub(super) fn unseal(
        &self,
        sealed: &str,
        claims: &Claims,
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let header = header(sealed).ok_or(Fault::NotSealed)?;
        let party = |name: &str, text: &str| {
            json::string(&header, name) == Ok(Some(URL_SAFE_NO_PAD.encode(text).as_str()))
        };
        if !party("apu", &claims.cluster) || !party("apv", claims.sub.as_str()) {
            return Err(Fault::SealedFor);
        }
        let decrypter =
            jwe::ECDH_ES.decrypter_from_pem(self.0.to_pem()).map_err(|_| Fault::Unseal)?;
        let (key, _) = jwe::deserialize_compact(sealed, &decrypter).map_err(|_| Fault::Unseal)?;
        Ok(Zeroizing::new(key))
    }
}

/// The protected header of a JWE of the one form that is opened here. What josekit would let pass is
/// refused: compression, a shortened tag (OpenSSL takes one of 4 bytes), duplicate members.
fn header(sealed: &str) -> Option<Object> {
    let mut parts = sealed.split('.');
    let (header, wrapped, iv) = (parts.next()?, parts.next()?, parts.next()?);
    let (_, tag, None) = (parts.next()?, parts.next()?, parts.next()) else { return None };
    let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    let header = json::object(&bytes(header)?)?;
    let says = |name, value| json::string(&header, name) == Ok(Some(value));
    let sound = says("alg", "ECDH-ES")
        && says("enc", "A256GCM")
        && !header.contains_key("zip")
        && !header.contains_key("crit")
        && wrapped.is_empty()
        && bytes(iv)?.len() == IV_BYTES
        && bytes(tag)?.len() == TAG_BYTES;
    sound.then_some(header)
}
