//! Stage 8: which key, and whether it is sealed.

use super::*;
use crate::policy::capsule::key::KeyVersion;

const RETIRED: &str = "8 master_version_not_there KEY_VERSION_UNAVAILABLE";
const NO_NODE: &str = "8 node_version_not_there KEY_VERSION_UNAVAILABLE";
const SOFTWARE: &str = "8 software_version_not_as_bound KEY_VERSION_UNAVAILABLE";
const NEVER_HAD: &str = "8 software_version_never_had KEY_VERSION_UNAVAILABLE";

fn asked(text: &str) -> Asked {
    KeyVersion::parse(text).map_or(Asked::Malformed, Asked::Version)
}

#[test]
fn the_current_key() {
    for (name, bind, software, masters, expect) in [
        ("ok/bound", true, Some("1.4.0"), &[2, 3][..], "8 granted m3.n4@1.4.0"),
        ("ok/not bound", false, Some("1.4.0"), &[2, 3], "8 granted m3.n4"),
        ("ok/not bound, not told", false, None, &[3], "8 granted m3.n4"),
        ("fail/not told", true, None, &[3], "8 no_software_version NODE_VERSION_REQUIRED"),
        ("fail/no master key", true, Some("1.4.0"), &[], "8 no_master_key UNAVAILABLE"),
        ("ok/the last is the current one", true, Some("2"), &[9, 7], "8 granted m7.n4@2"),
    ] {
        let case = Case::joined().with(|case| {
            case.node().key_version = 4;
            case.node().oldest_key_version = 2;
            case.policy.bind_version = bind;
            case.facts.version = software.map(str::to_owned);
            case.facts.keys.masters = masters.to_vec();
        });
        check(name, &case, expect);
    }
}

#[test]
fn a_key_that_is_asked_for() {
    for (name, bind, text, expect) in [
        ("ok/the current one", true, "m3.n4@1.4.0", "8 granted m3.n4@1.4.0"),
        ("ok/an older master's", true, "m2.n4@1.4.0", "8 granted m2.n4@1.4.0"),
        ("ok/an older one of the node", true, "m3.n2@1.4.0", "8 granted m3.n2@1.4.0"),
        ("ok/another release's that it had", true, "m3.n4@1.3.9", "8 granted m3.n4@1.3.9"),
        ("fail/a release's to come", true, "m3.n4@1.5.0", NEVER_HAD),
        ("ok/not bound", false, "m2.n3", "8 granted m2.n3"),
        ("fail/retired master", true, "m1.n4@1.4.0", RETIRED),
        ("fail/master to be", true, "m4.n4@1.4.0", RETIRED),
        ("fail/retired of the node", true, "m3.n1@1.4.0", NO_NODE),
        ("fail/of the node to be", true, "m3.n5@1.4.0", NO_NODE),
        ("fail/without software", true, "m3.n4", SOFTWARE),
        ("fail/with software", false, "m3.n4@1.4.0", SOFTWARE),
        ("fail/malformed", true, "m3", "8 malformed_version KEY_VERSION_UNAVAILABLE"),
    ] {
        for told in [Some("1.4.0".to_owned()), None] {
            let case = Case::joined().with(|case| {
                case.node().key_version = 4;
                case.node().oldest_key_version = 2;
                case.node().versions = vec!["1.3.9".to_owned(), "1.4.0".to_owned()];
                case.policy.bind_version = bind;
                case.facts.version = told;
                case.facts.keys.asked = asked(text);
            });
            check(name, &case, expect);
        }
    }
}

#[test]
fn seals() {
    const GRANTED: &str = "8 granted m3.n1@1.4.0";
    const SEALED: &str = "8 granted m3.n1@1.4.0 sealed";
    const ABSENT: &str = "8 no_key_to_seal_to SEAL_REQUIRED";
    const UNUSABLE: &str = "8 unusable_key_to_seal_to SEAL_REQUIRED";
    for (policy, seal, expect) in [
        (SealPolicy::Required, Seal::Usable, SEALED),
        (SealPolicy::Required, Seal::Absent, ABSENT),
        (SealPolicy::Required, Seal::Unusable, UNUSABLE),
        (SealPolicy::Offered, Seal::Usable, SEALED),
        (SealPolicy::Offered, Seal::Absent, GRANTED),
        (SealPolicy::Offered, Seal::Unusable, UNUSABLE),
        (SealPolicy::Off, Seal::Usable, GRANTED),
        (SealPolicy::Off, Seal::Absent, GRANTED),
        (SealPolicy::Off, Seal::Unusable, GRANTED),
    ] {
        let case = Case::joined().with(|case| {
            case.policy.seal = policy;
            case.facts.keys.seal = seal;
        });
        let kind = if expect.contains("granted") { "ok" } else { "fail" };
        check(&format!("{kind}/{policy:?} {seal:?}"), &case, expect);
    }
}

/// A refusal by stage 8 tells the risk that stages 6 and 7 found.
#[test]
fn a_refusal_at_a_risk() {
    let case = Case::joined().with(|case| {
        case.from(NEAR);
        case.facts.keys.asked = Asked::Malformed;
    });
    check("fail/", &case, "8 malformed_version KEY_VERSION_UNAVAILABLE risk 20");
}

#[test]
fn a_boot_is_remembered() {
    let before = |case: &mut Case| case.node().granted_boot = Some("boot-0".to_owned());
    let boot = |case: Case| {
        let after = check("ok/boot", &case, "8 granted m3.n1@1.4.0").after.unwrap();
        after.granted_boot
    };
    assert_eq!(boot(Case::joined()).as_deref(), Some("boot-1"));
    assert_eq!(boot(Case::joined().with(before)).as_deref(), Some("boot-1"));
    let none = |case: &mut Case| case.facts.boot = None;
    assert_eq!(boot(Case::joined().with(none)), None);
    assert_eq!(boot(Case::joined().with(before).with(none)).as_deref(), Some("boot-0"));
}

#[test]
fn the_end_of_time() {
    let case = Case::joined().with(|case| {
        case.now = UnixTime::MAX;
        case.policy.lifetime = Duration::MAX;
    });
    let decision = check("ok/saturates", &case, "8 granted m3.n1@1.4.0");
    assert_eq!(decision.verdict.unwrap().expires, UnixTime::MAX);
}

#[test]
fn the_versions_that_were_had_are_bounded() {
    let mut case = Case::joined();
    for release in 0..40 {
        case.facts.version = Some(format!("1.0.{release}"));
        case.node = case.decide().after;
    }
    let versions = &case.node().versions;
    assert_eq!(versions.len(), 32);
    assert_eq!((versions[0].as_str(), versions[31].as_str()), ("1.0.8", "1.0.39"));
}

#[test]
fn whoever_is_not_known_is_told_apart_in_the_record_alone() {
    let decide = |enrolled: bool| {
        let facts = Facts { enrolled, secret: false, ..facts() };
        decide(None, &facts, &policy(), &ids(), NOW)
    };
    let (wrong, unknown) = (decide(true), decide(false));
    assert_eq!(wrong.stages.last().unwrap().code, "wrong_secret");
    assert_eq!(unknown.stages.last().unwrap().code, "unknown_node");
    let reason = |decision: &Decision| decision.verdict.as_ref().unwrap_err().reason;
    assert_eq!(reason(&wrong), reason(&unknown));
}
