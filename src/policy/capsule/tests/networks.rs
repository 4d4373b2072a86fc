//! What changed since the baseline, and what it weighs.

use super::*;
use crate::policy::capsule::facts::canonical;
use crate::policy::capsule::node::{Heard, State};
use crate::policy::capsule::risk::{Factor, Risk, is_same_address};

fn risk(case: &Case) -> Risk {
    let (node, place) = (case.node.as_ref().unwrap(), &case.facts.place);
    let network = place.network.as_ref().unwrap();
    Risk::of(node, place, network, case.facts.boot.as_deref(), &case.policy.risk, case.now)
}

/// What the record has, what both addresses have by the build in force, whether there is a build, and
/// what comes of it where the address is another.
type FactorRow = (&'static str, Option<u32>, Option<u32>, Option<u32>, bool, Factor);

const FACTORS: [FactorRow; 13] = [
    ("the same", Some(1), Some(1), Some(1), true, Factor::Same),
    ("the same, stored as another", Some(9), Some(1), Some(1), true, Factor::Same),
    ("the same, stored as none", None, Some(1), Some(1), true, Factor::Same),
    ("another", Some(1), Some(1), Some(2), true, Factor::Changed),
    ("another by this build, not by the stored", Some(2), Some(1), Some(2), true, Factor::Changed),
    ("unknown now", Some(1), Some(1), None, true, Factor::Changed),
    ("unknown now, stored as none", None, Some(1), None, true, Factor::Changed),
    ("unknown before, by this build", Some(1), None, Some(1), true, Factor::Changed),
    ("unknown before, at all", None, None, Some(1), true, Factor::Changed),
    ("forgotten", Some(1), None, None, true, Factor::Changed),
    ("never known", None, None, None, true, Factor::Unknown),
    ("no database, never known", None, None, None, false, Factor::Off),
    ("no database, known before", Some(1), None, None, false, Factor::Off),
];

/// A request from another address, with the factors of one row.
fn elsewhere(case: &mut Case, stored: Option<u32>, before: Option<u32>, now: Option<u32>) {
    let seen = |address: &str, number: Option<u32>| Network {
        address: address.parse().unwrap(),
        asn: number,
        region: number.map(|number| format!("SE-{number}")),
    };
    case.node().baseline.as_mut().unwrap().network = seen(HOME, stored);
    case.facts.place.baseline = Some(seen(HOME, before));
    case.facts.place.network = Some(seen(NEAR, now));
}

#[test]
fn systems_and_regions() {
    for (name, stored, before, now, database, expect) in FACTORS {
        let case = Case::joined().with(|case| {
            elsewhere(case, stored, before, now);
            if !database {
                case.facts.place.databases = Databases::default();
            }
        });
        let risk = risk(&case);
        assert_eq!((risk.asn, risk.region), (expect, expect), "{name}");
        assert_eq!((risk.address, risk.abrupt_stop), (Factor::Changed, false), "{name}");
        assert!(risk.is_strange(), "{name}");
        let score = if expect == Factor::Changed { 110 } else { 20 };
        assert_eq!(risk.score, score, "{name}");
        // Each by its own database.
        for (asn, region) in [(true, false), (false, true)] {
            let one = Case::joined().with(|case| {
                elsewhere(case, stored, before, now);
                let Place { network, baseline, databases } = &mut case.facts.place;
                *databases = Databases {
                    asn: (asn && database).then_some(1),
                    region: (region && database).then_some(1),
                };
                for seen in [network, baseline].into_iter().flatten() {
                    seen.asn = seen.asn.filter(|_| asn);
                    seen.region = seen.region.take().filter(|_| region);
                }
            });
            let risk = self::risk(&one);
            let (on, off) = if asn { (risk.asn, risk.region) } else { (risk.region, risk.asn) };
            assert_eq!(on, expect, "{name}");
            assert_eq!(off, Factor::Off, "{name}");
        }
    }
}

/// Facts that were gathered for another baseline than the record's know nothing of it.
#[test]
fn a_baseline_that_was_looked_up_for_another_record() {
    for (looked_up, expect) in [
        (Some(seen_at(HOME)), "8 granted m3.n1@1.4.0 risk 20"),
        (None, "7 quarantined NETWORK_POLICY_VIOLATION risk 110 quarantined"),
        (Some(seen_at(NEXT)), "7 quarantined NETWORK_POLICY_VIOLATION risk 110 quarantined"),
    ] {
        let case = Case::joined().with(|case| {
            case.from(NEAR);
            case.facts.place.baseline = looked_up;
        });
        let kind = if expect.contains("granted") { "ok" } else { "fail" };
        check(&format!("{kind}/looked up"), &case, expect);
    }
}

/// The same address is the same place, whatever the databases have come to say of it.
#[test]
fn the_same_address() {
    let case = Case::joined().with(|case| {
        case.facts.place.network.as_mut().unwrap().asn = None;
        case.facts.place.network.as_mut().unwrap().region = Some("NO".to_owned());
        case.facts.place.baseline = None;
    });
    let risk = risk(&case);
    let expect = Risk {
        address: Factor::Same,
        asn: Factor::Same,
        region: Factor::Same,
        abrupt_stop: false,
        score: 0,
    };
    assert_eq!(risk, expect);
    assert!(!risk.is_strange());
    let first = self::risk(&Case::first());
    let expect = Risk {
        address: Factor::First,
        asn: Factor::First,
        region: Factor::First,
        abrupt_stop: false,
        score: 0,
    };
    assert_eq!(first, expect);
    assert!(!first.is_strange());
}

fn heard(case: &mut Case) -> &mut Heard {
    let at = NOW.minus(SECOND);
    let (boot, state) = ("boot-0".to_owned(), State::Running);
    case.node().heard.insert(Heard { at, boot, seq: 1, state, version: None })
}

/// One factor is enough.
#[test]
fn strange_networks() {
    let same = risk(&Case::joined());
    assert!(!same.is_strange());
    for strange in [
        Risk { address: Factor::Changed, ..same },
        Risk { asn: Factor::Changed, ..same },
        Risk { region: Factor::Changed, ..same },
    ] {
        assert!(strange.is_strange(), "{strange:?}");
    }
    assert!(!Risk { abrupt_stop: true, score: 80, ..same }.is_strange());
}

/// Every factor for itself and with every other, at weights that no two sums share.
#[test]
fn every_combination() {
    for bits in 0..16_u32 {
        let changed = |bit: u32| bits & (1 << bit) != 0;
        let case = Case::joined().with(|case| {
            case.policy.risk = RiskPolicy {
                address: 1,
                asn: 2,
                region: 4,
                abrupt_stop: 8,
                threshold: 100,
                ..case.policy.risk.clone()
            };
            if changed(0) || changed(1) || changed(2) {
                elsewhere(case, Some(1), Some(1), Some(1));
            }
            let network = case.facts.place.network.as_mut().unwrap();
            if changed(1) {
                network.asn = Some(2);
            }
            if changed(2) {
                network.region = Some("NO".to_owned());
            }
            if changed(3) {
                heard(case);
            }
        });
        // A system or a region only counts where the address is another.
        let address = u32::from(bits & 7 != 0);
        let risk = risk(&case);
        assert_eq!(risk.score, bits | address, "{bits:04b}");
        assert_eq!(risk.abrupt_stop, changed(3), "{bits:04b}");
        assert_eq!(risk.is_strange(), address == 1, "{bits:04b}");
        assert_eq!(case.decide().score(), bits | address, "{bits:04b}");
    }
}

#[test]
fn the_threshold() {
    for (name, threshold, expect) in [
        ("ok/below", 61, "8 granted m3.n1@1.4.0 risk 60"),
        ("fail/at it", 60, "7 quarantined NETWORK_POLICY_VIOLATION risk 60 quarantined"),
        ("fail/above", 59, "7 quarantined NETWORK_POLICY_VIOLATION risk 60 quarantined"),
    ] {
        let case = Case::joined().with(|case| {
            case.from(OTHER_AS);
            case.policy.risk.threshold = threshold;
        });
        check(name, &case, expect);
    }
}

#[test]
fn a_score_that_is_too_large() {
    for (address, asn, region, abrupt_stop) in
        [(u32::MAX, 1, 1, 1), (1, 1, u32::MAX, 1), (u32::MAX, u32::MAX, u32::MAX, u32::MAX)]
    {
        let case = Case::joined().with(|case| {
            case.from(FAR);
            heard(case);
            let risk = &mut case.policy.risk;
            (risk.address, risk.asn, risk.region) = (address, asn, region);
            (risk.abrupt_stop, risk.threshold) = (abrupt_stop, u32::MAX);
        });
        let expect = "7 quarantined NETWORK_POLICY_VIOLATION risk 4294967295 quarantined";
        check("fail/too large", &case, expect);
    }
}

#[test]
fn addresses() {
    for (one, other, same) in [
        ("192.0.2.1", "192.0.2.1", true),
        ("192.0.2.1", "192.0.2.0", false),
        ("192.0.2.1", "::ffff:192.0.2.1", true),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1", true),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", false),
        ("192.0.2.1", "::192.0.2.1", false),
        ("2001:db8::1", "2001:db8::1", true),
        ("2001:db8::1", "2001:db8:0:0:ffff:ffff:ffff:ffff", true),
        ("2001:db8::1", "2001:db8:0:1::1", false),
        ("2001:db8::1", "a001:db8::1", false),
        ("::1", "::", true),
    ] {
        let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
        assert_eq!(is_same_address(one, other), same, "{one} {other}");
        assert_eq!(is_same_address(other, one), same, "{other} {one}");
        assert!(is_same_address(one, canonical(one)), "{one}");
    }
    assert_eq!(canonical("::ffff:192.0.2.1".parse().unwrap()).to_string(), "192.0.2.1");
}

#[test]
fn abrupt_stops() {
    let window = 300 * SECOND;
    let almost = window - Duration::from_millis(1);
    let (running, stopping) = (State::Running, State::Stopping);
    let (same, other) = (Some("boot-0"), Some("boot-1"));
    for (name, age, state, boot, abrupt) in [
        ("another boot", SECOND, running, other, true),
        ("no boot", SECOND, running, None, true),
        ("the same boot", SECOND, running, same, false),
        ("a clean shutdown", SECOND, stopping, other, false),
        ("a clean shutdown, no boot", SECOND, stopping, None, false),
        ("at the moment", Duration::ZERO, running, other, true),
        ("in the window", almost, running, other, true),
        ("at its end", window, running, other, false),
        ("past it", DAY, running, other, false),
    ] {
        for address in [HOME, NEAR, FAR] {
            let case = Case::joined().with(|case| {
                *heard(case) = Heard { at: NOW.minus(age), state, ..heard(case).clone() };
                case.facts.boot = boot.map(str::to_owned);
                case.from(address);
            });
            let risk = risk(&case);
            assert_eq!(risk.abrupt_stop, abrupt, "{name} at {address}");
            let place = if address == HOME {
                0
            } else if address == NEAR {
                20
            } else {
                110
            };
            assert_eq!(risk.score, place + if abrupt { 80 } else { 0 }, "{name} at {address}");
        }
    }
    assert!(!risk(&Case::joined()).abrupt_stop, "never heard of");
    // A clock that went back makes it no safer.
    let ahead = Case::joined().with(|case| heard(case).at = NOW.plus(HOUR));
    assert!(risk(&ahead).abrupt_stop);
    let forever = Case::joined().with(|case| {
        heard(case).at = UnixTime::MAX;
        case.policy.risk.abrupt_window = Duration::MAX;
    });
    assert!(risk(&forever).abrupt_stop);
}
