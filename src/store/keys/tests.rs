use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use super::*;
use crate::policy::capsule::envelope::key_hash;
use crate::policy::capsule::key::KeyVersion;
use crate::policy::capsule::node::NodeId;
use crate::policy::digest::Sha256;
use crate::policy::jose::{CompactJws, PublicKey};
use crate::policy::json;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

fn made(algorithm: Algorithm) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    init(&directory.path().join("keys"), algorithm, NOW).unwrap();
    directory
}

fn claims() -> Claims {
    Claims {
        cluster: "c".to_owned(),
        exp: 2,
        iat: 1,
        jti: "j".to_owned(),
        key_hash: key_hash(&[1; 32]),
        key_version: KeyVersion::parse("m1.n1").unwrap(),
        risk_score: 0,
        sealed: false,
        sub: NodeId::parse("n").unwrap(),
    }
}

/// Whether a JWS holds under the key of a set that its `kid` names.
fn holds(jws: &str, jwks: &serde_json::Value) -> bool {
    let jws = CompactJws::parse(jws).unwrap();
    let kid = json::string(&jws.header, "kid").unwrap().unwrap();
    let keys = jwks["keys"].as_array().unwrap();
    let jwk = keys.iter().find(|jwk| jwk["kid"] == kid).unwrap();
    let key = PublicKey::from_jwk(&jwk.as_object().unwrap().into()).unwrap();
    assert_eq!(key.jkt().to_string(), kid);
    jws.verified_by(&key, jws.algorithm().unwrap())
}

#[test]
fn what_is_made_is_read_and_signs() {
    for algorithm in [Algorithm::EdDsa, Algorithm::Es256] {
        let directory = made(algorithm);
        let keys = directory.path().join("keys");
        for entry in fs::read_dir(&keys).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let ring = Arc::new(KeyRing::load(&keys).unwrap());
        assert_eq!(ring.masters(), [1]);
        assert!(holds(&ring.envelope(&claims(), NOW).unwrap(), &ring.jwks()));
        assert!(!ring.jwks().to_string().contains("\"d\""));
        let checkpoint = Checkpoint { chain: "c".into(), seq: 1, hash: Sha256::of(b""), at: NOW };
        let signed = AuditSigner(Arc::clone(&ring)).sign(&checkpoint).unwrap();
        assert!(holds(&signed, &ring.audit_jwks()));
    }
}

#[test]
fn rotation_keeps_what_was_there_until_it_is_retired() {
    let directory = made(Algorithm::EdDsa);
    let keys = directory.path().join("keys");
    let later = UnixTime::from_secs(NOW.secs() + 3600);
    rotate(&keys, Kind::Master, Algorithm::EdDsa, NOW, NOW).unwrap();
    rotate(&keys, Kind::Envelope, Algorithm::Es256, NOW, later).unwrap();
    let ring = KeyRing::load(&keys).unwrap();
    assert_eq!(ring.masters(), [1, 2]);
    assert_eq!(ring.jwks()["keys"].as_array().unwrap().len(), 2);
    let alg = |at| {
        let envelope = ring.envelope(&claims(), at).unwrap();
        CompactJws::parse(&envelope).unwrap().algorithm().unwrap().name()
    };
    assert_eq!((alg(NOW), alg(later)), ("EdDSA", "ES256"));
    // The one that signs stays until the next one does.
    let error = retire(&keys, Kind::Envelope, 1, NOW).unwrap_err().to_string();
    assert!(error.contains("the one that signs"), "{error}");
    let directory = made(Algorithm::EdDsa);
    let others = directory.path().join("keys");
    rotate(&others, Kind::Envelope, Algorithm::EdDsa, NOW, later).unwrap();
    retire(&others, Kind::Envelope, 1, later).unwrap();

    retire(&keys, Kind::Master, 1, NOW).unwrap();
    let text = fs::read_to_string(keys.join("master-1.json")).unwrap();
    assert!(!text.contains("\"master\":") && !text.contains("salt"), "{text}");
    let ring = KeyRing::load(&keys).unwrap();
    assert_eq!(ring.masters(), [2]);
    assert!(ring.master(1).is_none());
    for (version, why) in [(1, "retired"), (2, "newest"), (3, "none")] {
        let error = retire(&keys, Kind::Master, version, NOW).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    // The number of a retired version is never given again.
    let (path, _) = rotate(&keys, Kind::Master, Algorithm::EdDsa, NOW, NOW).unwrap();
    assert!(path.ends_with("master-3.json"));
}

#[test]
fn what_a_retired_audit_key_signed_can_still_be_verified() {
    let directory = made(Algorithm::EdDsa);
    let keys = directory.path().join("keys");
    let ring = Arc::new(KeyRing::load(&keys).unwrap());
    let checkpoint = Checkpoint { chain: "c".into(), seq: 1, hash: Sha256::of(b""), at: NOW };
    let signed = AuditSigner(ring).sign(&checkpoint).unwrap();
    rotate(&keys, Kind::Audit, Algorithm::EdDsa, NOW, NOW).unwrap();
    retire(&keys, Kind::Audit, 1, NOW).unwrap();
    assert!(holds(&signed, &KeyRing::load(&keys).unwrap().audit_jwks()));
}

#[test]
fn init_writes_over_nothing() {
    let directory = made(Algorithm::EdDsa);
    let keys = directory.path().join("keys");
    let before = fs::read(keys.join("master-1.json")).unwrap();
    assert!(matches!(init(&keys, Algorithm::EdDsa, NOW), Err(KeysError::Exists(_))));
    assert_eq!(fs::read(keys.join("master-1.json")).unwrap(), before);
}

#[test]
fn what_is_no_key_file_of_its_name_is_refused() {
    let check = |change: fn(&Path), expect: &str| {
        let directory = made(Algorithm::EdDsa);
        let keys = directory.path().join("keys");
        change(&keys);
        let error = KeyRing::load(&keys).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    check(
        |keys| {
            let path = keys.join("master-1.json");
            fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap();
        },
        "can be read by others (mode 640)",
    );
    check(
        |keys| {
            let path = keys.join("master-1.json");
            fs::set_permissions(path, fs::Permissions::from_mode(0o604)).unwrap();
        },
        "can be read by others (mode 604)",
    );
    check(
        |keys| fs::set_permissions(keys, fs::Permissions::from_mode(0o770)).unwrap(),
        "others can write to it (mode 770)",
    );
    check(|keys| fs::remove_file(keys.join("master-1.json")).unwrap(), "no master key in it");
    check(|keys| fs::remove_file(keys.join("audit-1.json")).unwrap(), "no audit key in it");
    check(
        |keys| {
            let path = keys.join("master-1.json");
            let text = fs::read(&path).unwrap();
            fs::write(&path, &text[..text.len() / 2]).unwrap();
        },
        "not all of it",
    );
    check(|keys| fs::write(keys.join("envelope-1.json"), "").unwrap(), "not all of it");
    check(
        |keys| fs::rename(keys.join("master-1.json"), keys.join("master-2.json")).unwrap(),
        "holds master key 1",
    );
    check(
        |keys| {
            fs::remove_file(keys.join("master-1.json")).unwrap();
            fs::create_dir(keys.join("master-1.json")).unwrap();
        },
        "no regular file",
    );
    check(
        |keys| {
            // Another key's private half.
            let read = |name: &str| fs::read_to_string(keys.join(name)).unwrap();
            let (one, other) = (read("envelope-1.json"), read("audit-1.json"));
            let d = |text: &str| {
                text.split_once("\\\"d\\\":\\\"").unwrap().1.split_once('\\').unwrap().0.to_owned()
            };
            let mixed = one.replace(&d(&one), &d(&other));
            fs::write(keys.join("envelope-1.json"), mixed).unwrap();
        },
        "the key in it is broken",
    );
}
