//! What is stored is read again to the letter, and anything else is refused.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::policy::capsule::key::KeyVersion;
use crate::policy::capsule::node::{Candidate, Heard, State};

/// A record with something in every field.
fn full() -> Node {
    let decision = Some("decision-0".to_owned());
    Node {
        status: Status::Quarantined,
        x5t: Some(x5t("certificate")),
        expected: Expectations {
            networks: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            asns: vec![64_500],
            regions: vec!["SE".to_owned()],
            join_before: Some(NOW),
        },
        candidate: Some(Candidate { network: seen_at(NEAR), since: NOW, contacts: 2 }),
        last: Some(Contact { network: seen_at(NOWHERE), at: NOW }),
        heard: Some(Heard {
            at: NOW,
            boot: "boot-1".to_owned(),
            seq: u64::MAX,
            state: State::Stopping,
            version: Some("1.4.0".to_owned()),
        }),
        granted_boot: Some("boot-1".to_owned()),
        issued: Some(Issued {
            capsule: "capsule-0".to_owned(),
            at: NOW,
            expires: NOW.plus(DAY),
            key_version: KeyVersion::parse("m3.n1@1.4.0").unwrap(),
        }),
        quarantine: Some(Quarantine { at: NOW, decision, score: 110, network: Some(seen_at(FAR)) }),
        ..joined()
    }
}

/// Every object within `value`, by the path to it.
fn objects(value: &Value, path: &str, found: &mut Vec<String>) {
    if let Value::Object(members) = value {
        found.push(path.to_owned());
        for (name, member) in members {
            objects(member, &format!("{path}/{name}"), found);
        }
    }
}

/// Reads what it writes, and nothing with another member or of another type.
fn check<T: serde::Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) {
    let text = serde_json::to_string(value).unwrap();
    assert_eq!(&serde_json::from_str::<T>(&text).unwrap(), value, "{text}");
    let written = serde_json::to_value(value).unwrap();
    let mut paths = Vec::new();
    objects(&written, "", &mut paths);
    for path in paths {
        let mut more = written.clone();
        let object = more.pointer_mut(&path).unwrap().as_object_mut().unwrap();
        object.insert("more".to_owned(), json!(1));
        assert!(serde_json::from_value::<T>(more).is_err(), "one more member in `{path}`");
        let names: Vec<_> = written.pointer(&path).unwrap().as_object().unwrap().keys().collect();
        for name in names {
            let mut other = written.clone();
            *other.pointer_mut(&format!("{path}/{name}")).unwrap() = json!({"no": ["such"]});
            assert!(serde_json::from_value::<T>(other).is_err(), "`{path}/{name}`");
        }
    }
}

#[test]
fn nodes() {
    check(&full());
    check(&joined());
    check(&enrolled());
    assert_eq!(full().without_secret(), Node { secret: None, ..full() });
    let text = serde_json::to_string(&full().without_secret()).unwrap();
    assert!(!text.contains("secret"), "{text}");
    check(&full().without_secret());
}

#[test]
fn nodes_that_are_none() {
    for (path, value) in [
        ("/id", json!("../x")),
        ("/id", json!("")),
        ("/status", json!("Active")),
        ("/status", json!("unknown")),
        ("/keyVersion", json!(-1)),
        ("/keyVersion", json!("1")),
        ("/keyVersion", json!(4_294_967_296_u64)),
        ("/fingerprint", json!("short")),
        ("/jkt", json!(1)),
        ("/baseline/network/address", json!("192.0.2.256")),
        ("/expected/networks/0", json!("192.0.2.0/33")),
        ("/heard/state", json!("paused")),
        ("/heard/seq", json!(1.5)),
        ("/issued/keyVersion", json!("m3.n0")),
        ("/counters/granted", json!(-1)),
        ("/counters", json!(null)),
        ("/status", json!(null)),
    ] {
        let mut written = serde_json::to_value(full()).unwrap();
        *written.pointer_mut(path).unwrap() = value.clone();
        assert!(serde_json::from_value::<Node>(written).is_err(), "{path}: {value}");
    }
}

/// What is missing is not taken for a node that may be bound again.
#[test]
fn nodes_that_lost_what_they_are_held_against() {
    for (path, name) in [
        ("", "id"),
        ("", "status"),
        ("", "fingerprint"),
        ("", "jkt"),
        ("", "x5t"),
        ("", "baseline"),
        ("", "heard"),
        ("", "expected"),
        ("", "counters"),
        ("/baseline", "byTime"),
        ("/baseline/network", "asn"),
        ("/baseline/network", "region"),
    ] {
        let mut written = serde_json::to_value(full()).unwrap();
        let object = written.pointer_mut(path).unwrap().as_object_mut().unwrap();
        object.remove(name).unwrap();
        assert!(serde_json::from_value::<Node>(written).is_err(), "{path}/{name}");
    }
}

#[test]
fn facts_and_policies() {
    check(&policy());
    check(&ids());
    check(&facts());
    let code = || "proof_x".to_owned();
    for proof in [
        Proof::Absent,
        Proof::NeedsNonce { code: code() },
        Proof::Faulty { code: code(), jkt: None, clock: None },
        Proof::Faulty {
            code: code(),
            jkt: Some(jkt("key")),
            clock: Some("client clock is 47 s ahead".into()),
        },
    ] {
        let sender = SenderFacts { proof, x5t: Some(x5t("certificate")) };
        let text = serde_json::to_string(&sender).unwrap();
        assert_eq!(serde_json::from_str::<SenderFacts>(&text).unwrap(), sender, "{text}");
    }
    for fingerprint in [Fingerprint::Missing, Fingerprint::Conflict] {
        let text = serde_json::to_string(&fingerprint).unwrap();
        assert_eq!(serde_json::from_str::<Fingerprint>(&text).unwrap(), fingerprint, "{text}");
    }
    for asked in [Asked::Malformed, Asked::Version(KeyVersion::parse("m1.n1@1").unwrap())] {
        let text = serde_json::to_string(&asked).unwrap();
        assert_eq!(serde_json::from_str::<Asked>(&text).unwrap(), asked, "{text}");
    }
}

#[test]
fn outcomes() {
    for case in [Case::joined(), Case::joined().with(|case| case.from(FAR))] {
        let decision = case.decide();
        for outcome in &decision.stages {
            check(outcome);
        }
        check(&decision.risk.unwrap());
        match &decision.verdict {
            Ok(grant) => check(grant),
            Err(refusal) => check(refusal),
        }
    }
}

#[test]
fn node_ids() {
    let long = "a".repeat(128);
    for text in ["a", "node-1", "A.b_C-9", "_", "a..b", &long] {
        assert_eq!(NodeId::parse(text).unwrap().to_string(), text);
    }
    let too_long = "a".repeat(129);
    for text in ["", "-", "-a", ".", "..", ".a", "a/b", "a b", "a\n", "a%2f", "é", "a:b", &too_long]
    {
        assert!(NodeId::parse(text).is_err(), "{text}");
    }
}

#[test]
fn secrets() {
    let node = enrolled();
    let (secret, other) = (Sha256::of(b"secret"), Sha256::of(b"other"));
    assert!(Node::knows(Some(&node), &secret));
    assert!(!Node::knows(Some(&node), &other));
    for presented in [secret, Sha256([0; 32])] {
        assert!(!Node::knows(None, &presented));
        assert!(!Node::knows(Some(&node.without_secret()), &presented));
    }
}
