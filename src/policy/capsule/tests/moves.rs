//! A node over days: which network becomes the baseline, and which never does.

use super::*;
use crate::policy::capsule::node::{Candidate, State};
use crate::policy::capsule::telemetry::{self, Report};

/// What happens.
enum Step {
    /// A request for a capsule from there.
    Asks(&'static str),
    /// A request whose refusal is sure, from there.
    Refused(&'static str),
    /// Telemetry from there.
    Tells(&'static str),
    /// An operator releases the node.
    Released,
}
use Step::{Asks, Refused, Released, Tells};

/// Hours after the step before, the step, the risk it is granted at (`None`: it is refused, or no
/// request), and the baseline then.
type Row = (u32, Step, Option<u32>, &'static str);

fn run(name: &str, policy: &Policy, rows: &[Row]) -> Node {
    let mut case = Case { policy: policy.clone(), ..Case::joined() };
    for (index, (hours, step, risk, baseline)) in rows.iter().enumerate() {
        let name = format!("{name}, step {index}");
        case.now = case.now.plus(*hours * HOUR);
        let at = case.node().baseline.clone().unwrap().network.address.to_string();
        case.facts.place.baseline = Some(seen_at(&at));
        case.facts.keys.masters = vec![3];
        match step {
            Asks(address) => {
                case.from(address);
                let decision = case.decide();
                let granted = decision.verdict.is_ok().then(|| decision.score());
                assert_eq!(granted, *risk, "{name}");
                case.node = decision.after;
            }
            Refused(address) => {
                case.from(address);
                case.facts.keys.masters.clear();
                let decision = case.decide();
                assert!(decision.verdict.is_err(), "{name}");
                case.node = decision.after;
            }
            Tells(address) => {
                case.from(address);
                let seq = u64::try_from(index).unwrap();
                let (boot, state) = ("boot-1".to_owned(), State::Running);
                let report = Report { boot, seq, state, version: None };
                let (node, facts) = (case.node.as_ref(), &case.facts);
                let decision = telemetry::decide(node, facts, Some(&report), policy, case.now);
                assert!(decision.verdict.is_ok(), "{name}");
                case.node = decision.after;
            }
            Released => {
                case.node().status = Status::Active;
                case.node().quarantine = None;
            }
        }
        let now = &case.node().baseline.as_ref().unwrap().network;
        assert_eq!(*now, seen_at(baseline), "{name}");
    }
    case.node.unwrap()
}

#[test]
fn a_near_network_is_confirmed_by_time() {
    let node = run(
        "three contacts in a day",
        &policy(),
        &[
            (0, Asks(NEAR), Some(20), HOME),
            (12, Asks(NEAR), Some(20), HOME),
            (12, Asks(NEAR), Some(20), NEAR),
        ],
    );
    let expect = Baseline { network: seen_at(NEAR), confirmed: NOW.plus(DAY), by_time: true };
    assert_eq!(node.baseline, Some(expect));
    for (name, rows) in [
        (
            "not before the day is over",
            &[
                (0, Asks(NEAR), Some(20), HOME),
                (1, Asks(NEAR), Some(20), HOME),
                (22, Asks(NEAR), Some(20), HOME),
            ][..],
        ),
        ("two contacts", &[(0, Asks(NEAR), Some(20), HOME), (99, Asks(NEAR), Some(20), HOME)]),
        (
            "the third, however late",
            &[
                (0, Asks(NEAR), Some(20), HOME),
                (1, Asks(NEAR), Some(20), HOME),
                (999, Asks(NEAR), Some(20), NEAR),
            ],
        ),
    ] {
        run(name, &policy(), rows);
    }
}

#[test]
fn a_contact_from_elsewhere_begins_a_new_row() {
    for (name, rows) in [
        (
            "home between",
            &[
                (0, Asks(NEAR), Some(20), HOME),
                (12, Asks(NEAR), Some(20), HOME),
                (1, Asks(HOME), Some(0), HOME),
                (12, Asks(NEAR), Some(20), HOME),
                (12, Asks(NEAR), Some(20), HOME),
                (12, Asks(NEAR), Some(20), NEAR),
            ][..],
        ),
        (
            "a third network between",
            &[
                (0, Asks(NEAR), Some(20), HOME),
                (12, Asks(NEAR), Some(20), HOME),
                (1, Asks(NEXT), Some(20), HOME),
                (12, Asks(NEAR), Some(20), HOME),
                (12, Asks(NEAR), Some(20), HOME),
                (12, Asks(NEAR), Some(20), NEAR),
            ],
        ),
        (
            "a far one between",
            &[
                (0, Asks(NEAR), Some(20), HOME),
                (12, Asks(NEAR), Some(20), HOME),
                (1, Asks(OTHER_AS), Some(60), HOME),
                (12, Asks(NEAR), Some(20), HOME),
                (12, Asks(NEAR), Some(20), HOME),
                (12, Asks(NEAR), Some(20), NEAR),
            ],
        ),
        (
            "a refusal confirms nothing",
            &[
                (0, Asks(NEAR), Some(20), HOME),
                (12, Refused(NEAR), None, HOME),
                (12, Refused(NEAR), None, HOME),
                (0, Asks(NEAR), Some(20), HOME),
                (0, Asks(NEAR), Some(20), NEAR),
            ],
        ),
    ] {
        run(name, &policy(), rows);
    }
}

#[test]
fn telemetry_confirms_nothing_and_ends_a_row() {
    for (name, rows) in [
        (
            "from the candidate",
            &[
                (0, Asks(NEAR), Some(20), HOME),
                (12, Tells(NEAR), None, HOME),
                (13, Tells(NEAR), None, HOME),
                (1, Asks(NEAR), Some(20), HOME),
                (1, Tells(NEAR), None, HOME),
                (1, Asks(NEAR), Some(20), NEAR),
            ][..],
        ),
        (
            "from home",
            &[
                (0, Asks(NEAR), Some(20), HOME),
                (12, Asks(NEAR), Some(20), HOME),
                (1, Tells(HOME), None, HOME),
                (12, Asks(NEAR), Some(20), HOME),
                (12, Asks(NEAR), Some(20), HOME),
                (12, Asks(NEAR), Some(20), NEAR),
            ],
        ),
        (
            "from far away",
            &[
                (0, Asks(NEAR), Some(20), HOME),
                (12, Asks(NEAR), Some(20), HOME),
                (1, Tells(FAR), None, HOME),
                (12, Asks(NEAR), Some(20), HOME),
                (12, Asks(NEAR), Some(20), HOME),
                (12, Asks(NEAR), Some(20), NEAR),
            ],
        ),
    ] {
        run(name, &policy(), rows);
    }
}

#[test]
fn none_again_for_seven_days() {
    let mut rows = vec![
        (0, Asks(NEAR), Some(20), HOME),
        (12, Asks(NEAR), Some(20), HOME),
        (12, Asks(NEAR), Some(20), NEAR),
    ];
    // A contact every hour, and it is the first after the pause that confirms.
    rows.extend((1..7 * 24).map(|_| (1, Asks(NEXT), Some(20), NEAR)));
    rows.push((1, Asks(NEXT), Some(20), NEXT));
    run("a pause", &policy(), &rows);
    // What an operator accepted has none.
    run(
        "no pause",
        &policy(),
        &[
            (0, Asks(NEAR), Some(20), HOME),
            (12, Asks(NEAR), Some(20), HOME),
            (13, Asks(NEAR), Some(20), NEAR),
        ],
    );
}

/// Only what scores less than `confirmBelow` is confirmed, whatever time passes.
#[test]
fn far_networks_are_never_confirmed() {
    for (confirm_below, address, risk, moves) in [
        (0, NEAR, 20, false),
        (20, NEAR, 20, false),
        (21, NEAR, 20, true),
        (50, OTHER_AS, 60, false),
        (60, OTHER_AS, 60, false),
        (61, OTHER_AS, 60, true),
        (50, OTHER_REGION, 70, false),
        (80, OTHER_REGION, 70, true),
    ] {
        let mut policy = policy();
        policy.baseline.confirm_below = confirm_below;
        let last = if moves { address } else { HOME };
        let rows = [
            (0, Asks(address), Some(risk), HOME),
            (25, Asks(address), Some(risk), HOME),
            (25, Asks(address), Some(risk), last),
        ];
        let node = run(&format!("{address} below {confirm_below}"), &policy, &rows);
        assert_eq!(node.candidate, None);
    }
}

/// Address and system at once, then the region: both steps look small from the one before.
#[test]
fn a_relocation_in_two_steps() {
    run("at once", &policy(), &[(0, Asks(OTHER_AS), Some(60), HOME), (0, Asks(FAR), None, HOME)]);
    run(
        "a day between",
        &policy(),
        &[(25, Asks(OTHER_AS), Some(60), HOME), (25, Asks(FAR), None, HOME)],
    );
    let mut rows: Vec<Row> = (0..200).map(|_| (25, Asks(OTHER_AS), Some(60), HOME)).collect();
    rows.push((25, Asks(FAR), None, HOME));
    let node = run("many contacts between", &policy(), &rows);
    assert_eq!(node.status, Status::Quarantined);
    let mut rows: Vec<Row> = (0..200).map(|_| (25, Asks(OTHER_REGION), Some(70), HOME)).collect();
    rows.push((25, Asks(FAR), None, HOME));
    run("the region first", &policy(), &rows);
    // A near network that was confirmed in between is near the first one all the same.
    let mut rows = vec![
        (0, Asks(NEAR), Some(20), HOME),
        (12, Asks(NEAR), Some(20), HOME),
        (12, Asks(NEAR), Some(20), NEAR),
    ];
    rows.extend((0..20).map(|_| (25, Asks(OTHER_AS), Some(60), NEAR)));
    rows.push((25, Asks(FAR), None, NEAR));
    run("after a small one", &policy(), &rows);
}

/// From what no database knows to what it knows, and back: neither is a small step.
#[test]
fn networks_in_no_database() {
    let rows: Vec<_> = (0..9).map(|_| (25, Asks(NOWHERE), None, HOME)).collect();
    run("from home to nowhere", &policy(), rows.get(..1).unwrap());
    let nowhere = Node {
        baseline: Some(Baseline { network: seen_at(NOWHERE), confirmed: NOW, by_time: false }),
        ..joined()
    };
    let mut case = Case::joined().with(|case| case.node = Some(nowhere));
    case.facts.place.baseline = Some(seen_at(NOWHERE));
    case.from(NOWHERE_ELSE);
    check("ok/nowhere else", &case, "8 granted m3.n1@1.4.0 risk 20");
    case.from(FAR);
    let expect = "7 quarantined NETWORK_POLICY_VIOLATION risk 110 quarantined";
    check("fail/to a known one", &case, expect);
}

/// A quarantine is a contact from elsewhere: what an operator releases begins its row anew.
#[test]
fn a_release_confirms_nothing() {
    let rows = [
        (0, Asks(NEAR), Some(20), HOME),
        (12, Asks(NEAR), Some(20), HOME),
        (1, Asks(FAR), None, HOME),
        (11, Released, None, HOME),
        (0, Asks(NEAR), Some(20), HOME),
        (12, Asks(NEAR), Some(20), HOME),
        (12, Asks(NEAR), Some(20), NEAR),
    ];
    run("far away, then released", &policy(), &rows);
}

/// Losing a database is no way to be confirmed at what the baseline is known not to be.
#[test]
fn a_database_that_is_gone() {
    let mut case = Case::joined();
    let unknown = |address: &str| Network { asn: None, region: None, ..seen_at(address) };
    case.facts.place = Place {
        network: Some(unknown(OTHER_AS)),
        baseline: Some(unknown(HOME)),
        databases: Databases::default(),
    };
    check("ok/its factors are off", &case, "8 granted m3.n1@1.4.0 risk 20");
}

/// IPv6 hosts change their address within a /64: a candidate's row and the baseline go on with it.
#[test]
fn addresses_within_a_64() {
    let mut case = Case::joined();
    let at = |last: &str| Network { address: last.parse().unwrap(), ..seen_at(HOME) };
    for (hours, address) in [(0, "2001:db8::1"), (12, "2001:db8::2"), (24, "2001:db8::3")] {
        case.now = NOW.plus(hours * HOUR);
        case.facts.place.network = Some(at(address));
        case.node = check("ok/moves", &case, "8 granted m3.n1@1.4.0 risk 20").after;
    }
    let expect = Baseline { network: at("2001:db8::3"), confirmed: NOW.plus(DAY), by_time: true };
    assert_eq!(case.node().baseline, Some(expect));
    case.facts.place.baseline = Some(at("2001:db8::3"));
    case.facts.place.network = Some(at("2001:db8::ffff"));
    check("ok/the same /64", &case, "8 granted m3.n1@1.4.0");
    case.facts.place.network = Some(at("2001:db8:0:1::3"));
    check("ok/the next /64", &case, "8 granted m3.n1@1.4.0 risk 20");
}

/// Telemetry from the candidate's /64 leaves its row alone.
#[test]
fn telemetry_within_a_64() {
    for (address, stays) in [("2001:db8::2", true), ("2001:db8:0:1::1", false)] {
        let at = |last: &str| Network { address: last.parse().unwrap(), ..seen_at(HOME) };
        let candidate = Candidate { network: at("2001:db8::1"), since: NOW, contacts: 2 };
        let case = Case::joined().with(|case| {
            case.node().candidate = Some(candidate.clone());
            case.facts.place.network = Some(at(address));
        });
        let report =
            Report { boot: "boot-1".to_owned(), seq: 0, state: State::Running, version: None };
        let node = case.node.as_ref();
        let decision = telemetry::decide(node, &case.facts, Some(&report), &case.policy, NOW);
        assert_eq!(decision.after.unwrap().candidate, stays.then_some(candidate), "{address}");
    }
}

/// The baseline's own network is no candidate, however often it is seen.
#[test]
fn home_stays_home() {
    let rows: Vec<_> = (0..9).map(|_| (25, Asks(HOME), Some(0), HOME)).collect();
    let node = run("home", &policy(), &rows);
    assert_eq!((node.baseline, node.candidate), (joined().baseline, None));
}

/// A baseline that an operator took away is adopted anew, and ends what was on its way.
#[test]
fn a_baseline_that_was_taken_away() {
    let case = Case::joined().with(|case| {
        case.node().baseline = None;
        case.node().candidate =
            Some(Candidate { network: seen_at(HOME), since: NOW.minus(DAY), contacts: 9 });
        case.facts.place.baseline = None;
        case.from(NEAR);
    });
    let after = check("ok/anew", &case, "8 granted m3.n1@1.4.0").after.unwrap();
    let expect = Baseline { network: seen_at(NEAR), confirmed: NOW, by_time: false };
    assert_eq!((after.baseline, after.candidate), (Some(expect), None));
}

#[test]
fn contacts_are_counted() {
    let rows: Vec<_> = (0..5).map(|_| (1, Asks(NEAR), Some(20), HOME)).collect();
    let candidate = run("five", &policy(), &rows).candidate.unwrap();
    assert_eq!(candidate.contacts, 5);
    assert_eq!(candidate.since, NOW.plus(HOUR));
    assert_eq!(candidate.network, seen_at(NEAR));
    let mut case = Case::joined().with(|case| {
        case.node().candidate = Some(Candidate { contacts: u32::MAX, ..candidate });
        case.from(NEAR);
    });
    case.now = NOW.plus(2 * HOUR);
    let after = check("ok/no wrap", &case, "8 granted m3.n1@1.4.0 risk 20").after.unwrap();
    assert_eq!(after.candidate.unwrap().contacts, u32::MAX);
}
