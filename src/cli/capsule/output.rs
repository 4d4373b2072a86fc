//! A believed capsule as bytes: the key in the form that its user reads, or the whole of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use zeroize::Zeroizing;

use super::grant::Capsule;

/// How the key is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// The 32 bytes
    Raw,
    /// Base64 and a line end
    Base64,
    /// Hexadecimal, lower case, and a line end
    Hex,
    /// One JSON document with the key, its version, the times and the envelope
    Json,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    node_id: &'a str,
    key: &'a str,
    key_version: String,
    capsule_id: &'a str,
    issued_utc: &'a str,
    expires_utc: &'a str,
    risk_score: u32,
    envelope: &'a str,
}

/// The bytes to write.
pub(super) fn encode(capsule: &Capsule, format: Format) -> Zeroizing<Vec<u8>> {
    // Room for any of the forms: growing would leave copies of the key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(1024 + 2 * capsule.envelope.len()));
    match format {
        Format::Raw => bytes.extend_from_slice(&capsule.key),
        Format::Base64 => bytes.extend_from_slice(base64(&capsule.key).as_bytes()),
        Format::Hex => {
            let digit = |value: u8| b"0123456789abcdef".get(usize::from(value)).copied();
            for byte in capsule.key.iter() {
                bytes.extend(digit(byte >> 4).into_iter().chain(digit(byte & 15)));
            }
        }
        Format::Json => {
            let key = base64(&capsule.key);
            let claims = &capsule.claims;
            let document = Document {
                node_id: claims.sub.as_str(),
                key: &key,
                key_version: claims.key_version.to_string(),
                capsule_id: &claims.jti,
                issued_utc: &capsule.issued_utc,
                expires_utc: &capsule.expires_utc,
                risk_score: claims.risk_score,
                envelope: &capsule.envelope,
            };
            // Only a writer that fails makes this fail.
            let _ = serde_json::to_writer(&mut *bytes, &document);
        }
    }
    if format != Format::Raw {
        bytes.push(b'\n');
    }
    bytes
}

/// Reads a key as [`encode`] writes it, in any of the forms. `None` for anything else.
pub(super) fn decode(bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    if bytes.len() == 32 {
        return Some(Zeroizing::new(bytes.to_vec()));
    }
    let text = std::str::from_utf8(bytes).ok()?.trim();
    let key = match text.len() {
        64 => unhex(text)?,
        44 => STANDARD.decode(text).ok()?,
        _ => {
            #[derive(serde::Deserialize)]
            struct Keyed<'a> {
                key: &'a str,
            }
            let document: Keyed<'_> = serde_json::from_str(text).ok()?;
            STANDARD.decode(document.key).ok()?
        }
    };
    let key = Zeroizing::new(key);
    (key.len() == 32).then_some(key)
}

fn base64(key: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(STANDARD.encode(key))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    text.as_bytes().chunks(2).map(pair).collect()
}
