//! The first capsule: what it must meet, and what it binds.

use super::*;

const GRANTED: &str = "8 granted m3.n1@1.4.0 first";
const UNPROVEN: &str = "4 sender_unproven SENDER_MISMATCH";

#[test]
fn fingerprint_and_baseline_are_adopted() {
    let after = check("ok/first", &Case::first(), GRANTED).after.unwrap();
    assert_eq!(after.fingerprint, Some(Sha256::of(b"fingerprint")));
    let expect = Baseline { network: seen_at(HOME), confirmed: NOW, by_time: false };
    assert_eq!(after.baseline, Some(expect));
    assert_eq!(after.candidate, None);
    for (name, shown, expect) in [
        ("fail/none", Fingerprint::Missing, "5 fingerprint_missing FINGERPRINT_MISMATCH"),
        ("fail/two", Fingerprint::Conflict, "5 fingerprints_differ FINGERPRINT_CONFLICT"),
    ] {
        check(name, &Case::first().with(|case| case.facts.fingerprint = shown), expect);
    }
}

/// What is shown, and which of both is bound then.
#[test]
fn one_sender_key_is_adopted() {
    let (key, certificate) = (Some("key"), Some("certificate"));
    for (demand, proof, cert, expect) in [
        (ProofDemand::Any, key, None, Some((key, None))),
        (ProofDemand::Any, None, certificate, Some((None, certificate))),
        (ProofDemand::Any, key, certificate, Some((key, None))),
        (ProofDemand::Any, None, None, None),
        (ProofDemand::Dpop, key, None, Some((key, None))),
        (ProofDemand::Dpop, None, certificate, None),
        (ProofDemand::Dpop, key, certificate, Some((key, None))),
        (ProofDemand::Dpop, None, None, None),
        (ProofDemand::Mtls, key, None, None),
        (ProofDemand::Mtls, None, certificate, Some((None, certificate))),
        (ProofDemand::Mtls, key, certificate, Some((None, certificate))),
        (ProofDemand::Mtls, None, None, None),
        (ProofDemand::None, key, None, Some((None, None))),
        (ProofDemand::None, None, certificate, Some((None, None))),
        (ProofDemand::None, key, certificate, Some((None, None))),
        (ProofDemand::None, None, None, Some((None, None))),
    ] {
        let case = Case::first().with(|case| {
            case.policy.proof = demand;
            case.facts.sender.proof = proof.map_or(Proof::Absent, holds);
            case.facts.sender.x5t = cert.map(x5t);
        });
        let Some((bound_jkt, bound_x5t)) = expect else {
            check(&format!("fail/{demand:?} {proof:?} {cert:?}"), &case, UNPROVEN);
            continue;
        };
        let name = format!("ok/{demand:?} {proof:?} {cert:?}");
        let after = check(&name, &case, GRANTED).after.unwrap();
        assert_eq!((after.jkt, after.x5t), (bound_jkt.map(jkt), bound_x5t.map(x5t)), "{name}");
    }
}

#[test]
fn who_has_joined_adopts_no_more() {
    let mut case = Case::first().with(|case| case.facts.sender.x5t = Some(x5t("certificate")));
    case.node = check("ok/first", &case, GRANTED).after;
    for _ in 0..3 {
        case.from(NEAR);
        case.facts.place.baseline = Some(seen_at(HOME));
        case.node = check("ok/again", &case, "8 granted m3.n1@1.4.0 risk 20").after;
        let node = case.node();
        assert_eq!((node.jkt, node.x5t), (Some(jkt("key")), None));
    }
    // Bound to nothing, as the policy of its time demanded none.
    let mut case = Case::joined().with(|case| {
        case.policy.proof = ProofDemand::None;
        case.node().jkt = None;
    });
    case.node = check("ok/bound to nothing", &case, "8 granted m3.n1@1.4.0").after;
    assert_eq!((case.node().jkt, case.node().x5t), (None, None));
    case.policy.proof = ProofDemand::Any;
    check("fail/another policy", &case, UNPROVEN);
}

#[test]
fn a_key_of_the_enrolment_is_the_one() {
    let enrolled_with = |edit: fn(&mut Node)| Case::first().with(|case| edit(case.node()));
    let by_key = || enrolled_with(|node| node.jkt = Some(jkt("key")));
    let by_certificate = || enrolled_with(|node| node.x5t = Some(x5t("certificate")));
    for (name, mut case, proof, cert, expect) in [
        ("ok/its key", by_key(), Some("key"), None, GRANTED),
        ("ok/its key, a certificate", by_key(), Some("key"), Some("certificate"), GRANTED),
        ("fail/other key", by_key(), Some("other"), None, "4 key_mismatch SENDER_MISMATCH"),
        (
            "fail/certificate",
            by_key(),
            None,
            Some("certificate"),
            "4 proof_missing SENDER_MISMATCH",
        ),
        ("ok/its certificate", by_certificate(), None, Some("certificate"), GRANTED),
        ("ok/its certificate, a key", by_certificate(), Some("key"), Some("certificate"), GRANTED),
        (
            "fail/other certificate",
            by_certificate(),
            None,
            Some("other"),
            "4 thumbprint-mismatch SENDER_MISMATCH",
        ),
        ("fail/key", by_certificate(), Some("key"), None, "4 missing-certificate SENDER_MISMATCH"),
    ] {
        case.facts.sender.proof = proof.map_or(Proof::Absent, holds);
        case.facts.sender.x5t = cert.map(x5t);
        let bound = (case.node().jkt, case.node().x5t);
        let after = check(name, &case, expect).after.unwrap();
        assert_eq!((after.jkt, after.x5t), bound, "{name}");
    }
}

#[test]
fn networks_expected() {
    const OUTSIDE: &str = "7 outside_expected_networks NETWORK_POLICY_VIOLATION";
    for (name, networks, address, expect) in [
        ("ok/any", &[][..], FAR, GRANTED),
        ("ok/inside", &["192.0.2.0/24"], HOME, GRANTED),
        ("ok/in the second", &["198.51.100.0/24", "192.0.2.0/31"], HOME, GRANTED),
        ("fail/outside", &["192.0.2.0/31"], NEAR, OUTSIDE),
        ("fail/the other family", &["::/0"], HOME, OUTSIDE),
        ("ok/IPv6", &["2001:db8::/32"], "2001:db8:1::1", GRANTED),
        ("fail/IPv6", &["2001:db8::/32", "0.0.0.0/0"], "2001:db9::1", OUTSIDE),
    ] {
        let case = Case::first().with(|case| {
            case.expected().networks = networks.iter().map(|text| text.parse().unwrap()).collect();
            case.from(address);
        });
        check(name, &case, expect);
    }
}

#[test]
fn systems_and_regions_expected() {
    const ASNS: &str = "7 outside_expected_asns NETWORK_POLICY_VIOLATION";
    const REGIONS: &str = "7 outside_expected_regions NETWORK_POLICY_VIOLATION";
    for (name, asns, asn, expect) in [
        ("ok/any", &[][..], None, GRANTED),
        ("ok/one of them", &[1, 2], Some(2), GRANTED),
        ("fail/another", &[1, 2], Some(3), ASNS),
        ("fail/unknown", &[1, 2], None, ASNS),
    ] {
        let case = Case::first().with(|case| {
            case.expected().asns = asns.to_vec();
            case.facts.place.network.as_mut().unwrap().asn = asn;
        });
        check(name, &case, expect);
    }
    for (name, regions, region, expect) in [
        ("ok/any", &[][..], None, GRANTED),
        ("ok/the same", &["SE-M"], Some("SE-M"), GRANTED),
        ("ok/in a country", &["NO", "SE"], Some("SE-M"), GRANTED),
        ("ok/the country", &["SE"], Some("SE"), GRANTED),
        ("fail/another country", &["SE"], Some("SEX"), REGIONS),
        ("fail/another country's", &["SE"], Some("SEX-M"), REGIONS),
        ("fail/wider", &["SE-M"], Some("SE"), REGIONS),
        ("fail/longer", &["SE-M"], Some("SE-MM"), REGIONS),
        ("fail/elsewhere", &["SE"], Some("NO-03"), REGIONS),
        ("fail/unknown", &["SE"], None, REGIONS),
        ("fail/case", &["se"], Some("SE"), REGIONS),
    ] {
        let case = Case::first().with(|case| {
            case.expected().regions = regions.iter().map(|&text| text.to_owned()).collect();
            case.facts.place.network.as_mut().unwrap().region = region.map(str::to_owned);
        });
        check(name, &case, expect);
    }
}

/// All of it must hold, and none of it counts any more once the node has joined.
#[test]
fn every_expectation() {
    let expecting = |case: &mut Case| {
        *case.expected() = Expectations {
            networks: vec!["192.0.2.0/24".parse().unwrap()],
            asns: vec![64_500],
            regions: vec!["SE".to_owned()],
            join_before: Some(NOW.plus(SECOND)),
        };
    };
    check("ok/all", &Case::first().with(expecting), GRANTED);
    let passed = "3 join_before_passed NODE_DISABLED";
    for (name, later, expect) in [
        ("ok/in time", Duration::from_millis(999), GRANTED),
        ("fail/at its end", SECOND, passed),
        ("fail/past it", DAY, passed),
    ] {
        check(name, &Case::first().with(expecting).with(|case| case.now = NOW.plus(later)), expect);
    }
    let outside = |case: &mut Case| {
        let network = case.facts.place.network.as_mut().unwrap();
        (network.asn, network.region) = (Some(1), Some("NO".to_owned()));
    };
    let asns = "7 outside_expected_asns NETWORK_POLICY_VIOLATION";
    check("fail/one of them", &Case::first().with(expecting).with(outside), asns);
    let joined = Case::joined().with(expecting).with(|case| {
        case.now = NOW.plus(DAY);
        case.from(OTHER_AS);
    });
    check("ok/has joined", &joined, "8 granted m3.n1@1.4.0 risk 60");
}

/// What it was bound to at enrolment is what its first capsule must be asked with, too: another kind
/// of sender would be demanded, not adopted, and refused from the second time on.
#[test]
fn a_key_of_the_enrolment_that_is_not_demanded() {
    for (demand, key, certificate, expect) in [
        (ProofDemand::Mtls, true, false, UNPROVEN),
        (ProofDemand::Dpop, true, false, GRANTED),
        (ProofDemand::Dpop, false, true, UNPROVEN),
        (ProofDemand::Mtls, false, true, GRANTED),
        (ProofDemand::Mtls, true, true, GRANTED),
        (ProofDemand::Dpop, true, true, GRANTED),
    ] {
        let case = Case::first().with(|case| {
            case.policy.proof = demand;
            case.node().jkt = key.then(|| jkt("key"));
            case.node().x5t = certificate.then(|| x5t("certificate"));
            case.facts.sender.x5t = Some(x5t("certificate"));
        });
        let kind = if expect == GRANTED { "ok" } else { "fail" };
        check(&format!("{kind}/{demand:?} of {key} {certificate}"), &case, expect);
    }
}
