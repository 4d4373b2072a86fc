//! What a node says of itself, and what of it counts.

use super::*;
use crate::policy::capsule::node::{Heard, State};
use crate::policy::capsule::telemetry::{Counted, Report, TelemetryDecision, decide};

#[test]
fn reports() {
    let read = |boot: &str, seq, state, version: Option<&str>| {
        Some(Report { boot: boot.to_owned(), seq, state, version: version.map(str::to_owned) })
    };
    let (running, stopping) = (State::Running, State::Stopping);
    for (body, expect) in [
        (r#"{"bootId":"b","seq":0,"state":"running"}"#, read("b", 0, running, None)),
        (
            r#" {"state":"stopping","version":"1+2","seq":18446744073709551615,"bootId":"a:b"} "#,
            read("a:b", u64::MAX, stopping, Some("1+2")),
        ),
        ("", None),
        ("[]", None),
        (r#"{"seq":0,"state":"running"}"#, None),
        (r#"{"bootId":"b","state":"running"}"#, None),
        (r#"{"bootId":"b","seq":0}"#, None),
        (r#"{"bootId":"","seq":0,"state":"running"}"#, None),
        (r#"{"bootId":"a b","seq":0,"state":"running"}"#, None),
        (r#"{"bootId":null,"seq":0,"state":"running"}"#, None),
        (r#"{"bootId":1,"seq":0,"state":"running"}"#, None),
        (r#"{"bootId":"b","seq":-1,"state":"running"}"#, None),
        (r#"{"bootId":"b","seq":1.5,"state":"running"}"#, None),
        (r#"{"bootId":"b","seq":1e3,"state":"running"}"#, None),
        (r#"{"bootId":"b","seq":18446744073709551616,"state":"running"}"#, None),
        (r#"{"bootId":"b","seq":"0","state":"running"}"#, None),
        (r#"{"bootId":"b","seq":0,"state":"Running"}"#, None),
        (r#"{"bootId":"b","seq":0,"state":null}"#, None),
        (r#"{"bootId":"b","seq":0,"state":"running","version":null}"#, None),
        (r#"{"bootId":"b","seq":0,"state":"running","version":""}"#, None),
        (r#"{"bootId":"b","seq":0,"state":"running","version":1}"#, None),
        (r#"{"bootId":"b","seq":0,"state":"running","more":0}"#, None),
        (r#"{"bootId":"b","seq":0,"seq":1,"state":"running"}"#, None),
        (r#"{"bootId":"b","seq":0,"state":"running"}x"#, None),
    ] {
        assert_eq!(Report::read(body.as_bytes()), expect, "{body}");
    }
    for (length, good) in [(64, true), (65, false)] {
        let body = format!(r#"{{"bootId":"{}","seq":0,"state":"running"}}"#, "b".repeat(length));
        assert_eq!(Report::read(body.as_bytes()).is_some(), good, "{length}");
    }
}

/// A record of which boot-1 was granted a capsule and said, a minute ago, that it runs.
fn running() -> Case {
    Case::joined().with(|case| {
        case.node().granted_boot = Some("boot-1".to_owned());
        case.node().heard = Some(Heard {
            at: NOW.minus(60 * SECOND),
            boot: "boot-1".to_owned(),
            seq: 5,
            state: State::Running,
            version: None,
        });
    })
}

fn report(boot: &str, seq: u64, state: State) -> Option<Report> {
    Some(Report { boot: boot.to_owned(), seq, state, version: Some("1.4.0".to_owned()) })
}

/// The word, and the whole new record against what the word says.
fn check(name: &str, case: &Case, report: Option<&Report>, expect: &str) -> TelemetryDecision {
    let (node, facts) = (case.node.as_ref(), &case.facts);
    let decision = decide(node, facts, report, &case.policy, case.now);
    let told = match &decision.verdict {
        Ok(counted) => format!("{counted:?}"),
        Err(refusal) => format!(
            "{} {} {}",
            refusal.stage.number(),
            decision.stages.last().unwrap().code,
            refusal.reason.name()
        ),
    };
    assert_eq!(told, expect, "{name}");
    assert_eq!(name.starts_with("ok/"), decision.verdict.is_ok(), "{name}");
    assert_eq!(decision.risk.is_some(), decision.verdict.is_ok(), "{name}");
    let strangers = decision.verdict.as_ref().is_err_and(|refusal| refusal.stage <= Stage::Sender);
    assert_eq!(decision.is_strangers(), strangers, "{name}");
    let Some(mut record) = case.node.clone() else {
        assert_eq!(decision.after, None, "{name}");
        return decision;
    };
    match &decision.verdict {
        Err(refusal) if refusal.stage <= Stage::Node => {
            assert_eq!(decision.after, None, "{name}");
            return decision;
        }
        Err(_) => record.counters.refused += 1,
        Ok(Counted::StrangeNetwork) => record.counters.strange_telemetry += 1,
        Ok(Counted::OtherBoot | Counted::Again) => record.counters.telemetry += 1,
        Ok(Counted::Taken) => {
            let report = report.unwrap().clone();
            let Report { boot, seq, state, version } = report;
            record.heard = Some(Heard { at: case.now, boot, seq, state, version });
            record.counters.telemetry += 1;
        }
    }
    assert_eq!(decision.after, Some(record), "{name}");
    decision
}

#[test]
fn it_passes_stages_one_to_five() {
    type Row = (&'static str, fn(&mut Case), &'static str);
    let rows: [Row; 11] = [
        ("ok/as it should be", |_| (), "Taken"),
        (
            "fail/node",
            |case| (case.node, case.facts.enrolled) = (None, false),
            "2 unknown_node AUTHENTICATION_FAILED",
        ),
        ("fail/secret", |case| case.facts.secret = false, "1 wrong_secret AUTHENTICATION_FAILED"),
        ("fail/revoked", |case| case.node().status = Status::Revoked, "3 revoked NODE_REVOKED"),
        (
            "fail/quarantined",
            |case| case.node().status = Status::Quarantined,
            "3 quarantined NODE_QUARANTINED",
        ),
        (
            "fail/sender",
            |case| case.facts.sender.proof = holds("other"),
            "4 key_mismatch SENDER_MISMATCH",
        ),
        (
            "fail/fingerprint",
            |case| case.facts.fingerprint = Fingerprint::Missing,
            "5 fingerprint_missing FINGERPRINT_MISMATCH",
        ),
        (
            "fail/address unknown",
            |case| case.facts.place.network = None,
            "6 address_unknown NETWORK_POLICY_VIOLATION",
        ),
        ("ok/the boot of the header is no matter", |case| case.facts.boot = None, "Taken"),
        ("ok/no key is needed", |case| case.facts.keys.masters.clear(), "Taken"),
        ("ok/a counter that is full", |case| case.node().counters.refused = u64::MAX, "Taken"),
    ];
    for (name, edit, expect) in rows {
        let report = report("boot-1", 6, State::Running);
        check(name, &running().with(edit), report.as_ref(), expect);
    }
    check("fail/unreadable", &running(), None, "6 malformed_report TELEMETRY_INVALID");
    let stranger = running().with(|case| case.facts.sender.proof = Proof::Absent);
    check("fail/the sender first", &stranger, None, "4 proof_missing SENDER_MISMATCH");
}

#[test]
fn numbers_within_a_boot() {
    const BACKWARDS: &str = "6 seq_goes_backwards TELEMETRY_OUT_OF_ORDER";
    let (running_, stopping) = (State::Running, State::Stopping);
    for (name, boot, seq, state, expect) in [
        ("ok/the next", "boot-1", 6, running_, "Taken"),
        ("ok/a gap", "boot-1", u64::MAX, running_, "Taken"),
        ("ok/stops", "boot-1", 6, stopping, "Taken"),
        ("ok/again", "boot-1", 5, running_, "Again"),
        ("fail/again, and stops", "boot-1", 5, stopping, BACKWARDS),
        ("fail/before", "boot-1", 4, running_, BACKWARDS),
        ("fail/before, and stops", "boot-1", 4, stopping, BACKWARDS),
        ("fail/the first", "boot-1", 0, stopping, BACKWARDS),
        ("ok/another boot begins anew", "boot-2", 0, stopping, "OtherBoot"),
    ] {
        check(name, &running(), report(boot, seq, state).as_ref(), expect);
    }
    let granted = running().with(|case| case.node().granted_boot = Some("boot-2".to_owned()));
    check("ok/first of a boot", &granted, report("boot-2", 0, running_).as_ref(), "Taken");
    check("ok/boot before", &granted, report("boot-1", 6, stopping).as_ref(), "OtherBoot");
    let never = running().with(|case| case.node().heard = None);
    check("ok/first of all", &never, report("boot-1", 0, running_).as_ref(), "Taken");
    let none = never.with(|case| case.node().granted_boot = None);
    check("ok/no boot was granted", &none, report("boot-1", 0, running_).as_ref(), "OtherBoot");
}

/// Whatever is said from there, the next request is an abrupt stop all the same.
#[test]
fn what_clears_no_abrupt_stop() {
    let stops = |case: &mut Case, boot: &str, seq: u64, expect: &str| {
        let report = report(boot, seq, State::Stopping);
        case.node = check("ok/stops", case, report.as_ref(), expect).after;
        case.from(HOME);
        case.facts.boot = Some("boot-2".to_owned());
        told(&case.decide())
    };
    let quarantined = "7 quarantined NETWORK_POLICY_VIOLATION risk 80 quarantined";
    for address in [NEAR, OTHER_AS, OTHER_REGION, FAR, NOWHERE] {
        let mut case = running().with(|case| case.from(address));
        assert_eq!(stops(&mut case, "boot-1", 6, "StrangeNetwork"), quarantined, "{address}");
    }
    assert_eq!(stops(&mut running(), "boot-2", 6, "OtherBoot"), quarantined);
    assert_eq!(stops(&mut running(), "boot-1", 6, "Taken"), "8 granted m3.n1@1.4.0");
}

/// A weight of nothing makes no network the baseline's.
#[test]
fn a_strange_network_that_weighs_nothing() {
    let case = running().with(|case| {
        case.policy.risk.address = 0;
        case.from(NEAR);
    });
    let report = report("boot-1", 6, State::Stopping);
    check("ok/stops", &case, report.as_ref(), "StrangeNetwork");
}

#[test]
fn who_has_had_no_capsule_says_nothing_that_counts() {
    let report = report("boot-1", 6, State::Running);
    let case = Case::first().with(|case| case.node().granted_boot = Some("boot-1".to_owned()));
    check("ok/first", &case, report.as_ref(), "StrangeNetwork");
    let late = Case::first().with(|case| case.expected().join_before = Some(NOW));
    check("fail/too late", &late, report.as_ref(), "3 join_before_passed NODE_DISABLED");
}

#[test]
fn counters_do_not_wrap() {
    let full = |case: &mut Case| {
        case.node().counters = Counters {
            granted: u64::MAX,
            refused: u64::MAX,
            telemetry: u64::MAX,
            strange_telemetry: u64::MAX,
        };
    };
    let said = report("boot-1", 6, State::Running);
    for address in [HOME, NEAR] {
        let case = running().with(full).with(|case| case.from(address));
        for report in [said.as_ref(), None] {
            let (node, facts) = (case.node.as_ref(), &case.facts);
            let after = decide(node, facts, report, &case.policy, NOW).after.unwrap();
            assert_eq!(after.counters, case.node.as_ref().unwrap().counters, "{address}");
        }
        let after = case.decide().after.unwrap();
        assert_eq!(after.counters, case.node.as_ref().unwrap().counters, "{address}");
    }
    let far = running().with(full).with(|case| case.from(FAR));
    assert_eq!(far.decide().after.unwrap().counters, far.node.unwrap().counters);
}
