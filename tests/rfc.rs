//! The RFCs' own examples, held against the library.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast::policy::certificate::SenderCertificate;
use holdfast::policy::denial::Denial;
use holdfast::policy::digest::Sha256;
use holdfast::policy::epoch::Reign;
use holdfast::policy::jose::{Algorithm, AlgorithmSet, PublicKey};
use holdfast::policy::json;
use holdfast::policy::proof::{self, Expected, ProofRules, Seen};
use holdfast::policy::target::Origin;
use holdfast::policy::time::UnixTime;
use http::{HeaderMap, HeaderValue};
use std::time::Duration;

/// RFC 9449 section 7.1, figure 12: the token and the proof of a resource request.
const TOKEN: &str = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU";
const PROOF: &str = concat!(
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNo",
    "UklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERW",
    "clUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR",
    "1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwi",
    "YXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey7",
    "1EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA",
);
const JKT: &str = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I";
const ISSUED: i64 = 1_562_262_618;

fn verify(text: &str, origin: &str, path: &str, now: i64) -> (Result<String, Denial>, Seen) {
    let origin = Origin::parse(origin).unwrap();
    let rules = ProofRules {
        proof_lifetime: Duration::from_secs(120),
        clock_skew: Duration::from_secs(30),
        replay_window: Duration::from_secs(300),
        nonce_ttl: None,
        nonce_replaces_iat: false,
        nonce_single_use: false,
    };
    let expected = Expected {
        method: "GET",
        origin: &origin,
        path,
        token_hash: Some(Sha256::of(TOKEN.as_bytes())),
        algorithms: AlgorithmSet::of(&[Algorithm::Es256]),
        nonce_keys: None,
        nonce_required: false,
        rules: &rules,
        max_bytes: 8192,
        reign: Reign::of_process([0; 32], UnixTime::from_secs(0)),
        now: UnixTime::from_secs(now),
    };
    let mut headers = HeaderMap::new();
    headers.append("dpop", HeaderValue::from_str(text).unwrap());
    let mut seen = Seen::default();
    let verified = proof::verify(&headers, &expected, &mut seen);
    (verified.map(|proof| proof.jti().to_owned()), seen)
}

#[test]
fn rfc_9449_section_7_1_proof() {
    let site = ("https://resource.example.org", "/protectedresource");
    let (verified, seen) = verify(PROOF, site.0, site.1, ISSUED);
    assert_eq!(verified, Ok("e1j3V_bKic8-LAEB".to_owned()));
    assert_eq!(seen.jkt.map(|jkt| jkt.to_string()).as_deref(), Some(JKT));
    for (origin, path, now, expect) in [
        (site.0, site.1, ISSUED + 150, Ok(())),
        (site.0, site.1, ISSUED + 151, Err(Denial::ProofStale)),
        (site.0, site.1, ISSUED - 30, Ok(())),
        (site.0, site.1, ISSUED - 31, Err(Denial::ProofFuture)),
        (site.0, "/", ISSUED, Err(Denial::ProofTarget)),
        ("https://example.org", site.1, ISSUED, Err(Denial::ProofTarget)),
    ] {
        let (verified, _) = verify(PROOF, origin, path, now);
        assert_eq!(verified.map(|_| ()), expect, "{origin}{path} at {now}");
    }
}

#[test]
fn rfc_9449_section_4_1_proof_has_no_ath() {
    let proof = concat!(
        "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0",
        "VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG1",
        "0NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtI",
        "joiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2",
        "fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3",
        "Lg",
    );
    let (verified, _) = verify(proof, "https://server.example.com", "/token", ISSUED);
    assert_eq!(verified, Err(Denial::ProofClaim(proof::Claim::Ath)));
}

#[test]
fn rfc_9449_section_7_1_ath() {
    let ath = Sha256::of(TOKEN.as_bytes()).to_string();
    assert_eq!(ath, "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo");
}

#[test]
fn rfc_7638_section_3_1_thumbprint() {
    let jwk = json::object(
        br#"{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}"#,
    )
    .unwrap();
    let key = PublicKey::from_jwk(&jwk).unwrap();
    assert_eq!(key.jkt().to_string(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
    assert!(key.fits(Algorithm::Rs256));
    assert!(!key.fits(Algorithm::Ps256));
}

#[test]
fn rfc_8705_appendix_a_thumbprint() {
    let certificate = STANDARD
        .decode(concat!(
            "MIIBBjCBrAIBAjAKBggqhkjOPQQDAjAPMQ0wCwYDVQQDDARtdGxzMB4XDTE4MTAxODEyMzcwOVoXDTIyMDUwMjEy",
            "MzcwOVowDzENMAsGA1UEAwwEbXRsczBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNcnyxwqV6hY8QnhxxzFQ03C",
            "7HKW9OylMbnQZjjJ/Au08/coZwxS7LfA4vOLS9WuneIXhbGGWvsDSb0tH6IxLm8wCgYIKoZIzj0EAwIDSQAwRgIh",
            "AP0RC1E+vwJD/D1AGHGzuri+hlV/PpQEKTWUVeORWz83AiEA5x2eXZOVbUlJSGQgjwD5vaUaKlLR50Q2DmFfQj1L",
            "+SY=",
        ))
        .unwrap();
    let certificate = SenderCertificate::new(certificate).unwrap();
    assert_eq!(certificate.x5t().to_string(), "A4DtL2JmUMhAsvJj5tKyn64SqzmuXbMrJa0n761y5v0");
}
