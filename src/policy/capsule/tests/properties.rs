//! What holds for any record, facts and policy, and over any time.

use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::policy::capsule::key::KeyVersion;
use crate::policy::capsule::node::{Candidate, Heard, State};
use crate::policy::capsule::risk::{Risk, is_same_address};
use crate::policy::capsule::telemetry::{self, Counted, Report};

const ADDRESSES: [&str; 8] = [HOME, NEAR, NEXT, OTHER_AS, OTHER_REGION, FAR, NOWHERE, NOWHERE_ELSE];

fn place() -> impl Strategy<Value = Network> {
    select(ADDRESSES.to_vec()).prop_map(seen_at)
}

fn label(one: &'static str, other: &'static str) -> impl Strategy<Value = String> {
    select(vec![one.to_owned(), other.to_owned()])
}

/// Mostly one value, so that what is shown is mostly what is bound.
fn hash() -> impl Strategy<Value = Sha256> {
    prop_oneof![9 => Just(Sha256::of(b"key")), 1 => Just(Sha256::of(b"other"))]
}

/// Near [`NOW`] for the most part, and at the ends of time.
fn time() -> impl Strategy<Value = UnixTime> {
    let millis = prop_oneof![
        9 => (-9_i64..9).prop_map(|hours| hours * 3_600_000 + NOW.millis()),
        1 => any::<i64>(),
        1 => select(vec![i64::MIN, i64::MAX]),
    ];
    millis.prop_map(UnixTime::from_millis)
}

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![0..=u64::MAX, 0..=90_000_000_u64].prop_map(Duration::from_millis)
}

fn weight() -> impl Strategy<Value = u32> {
    prop_oneof![9 => 0..60_u32, 1 => any::<u32>()]
}

fn status() -> impl Strategy<Value = Status> {
    prop_oneof![9 => Just(Status::Active), 1 => select(Status::ALL.to_vec())]
}

prop_compose! {
    fn policies()(
        proof in select(vec![ProofDemand::Any, ProofDemand::Dpop, ProofDemand::Mtls, ProofDemand::None]),
        seal in select(vec![SealPolicy::Required, SealPolicy::Offered, SealPolicy::Off]),
        bind_version in any::<bool>(),
        weights in (weight(), weight(), weight(), weight(), weight()),
        durations in (duration(), duration(), duration(), duration(), duration()),
        counts in (weight(), 0..5_u32, 0..5_u32),
    ) -> Policy {
        let (address, asn, region, abrupt_stop, threshold) = weights;
        let threshold = threshold.saturating_mul(3);
        let (lifetime, abrupt_window, confirm_after, confirm_pause, window) = durations;
        let (confirm_below, confirm_contacts, max_quarantines) = counts;
        Policy {
            proof,
            seal,
            bind_version,
            lifetime,
            risk: RiskPolicy { address, asn, region, abrupt_stop, threshold, abrupt_window },
            baseline: BaselinePolicy { confirm_below, confirm_after, confirm_contacts, confirm_pause },
            brake: BrakePolicy { max_quarantines, window },
        }
    }
}

prop_compose! {
    fn seen()(
        baseline in option::of((place(), time(), any::<bool>())),
        candidate in option::of((place(), time(), any::<u32>())),
        heard in option::of((time(), label("boot-1", "boot-2"), any::<u64>(), any::<bool>())),
        granted_boot in option::of(label("boot-1", "boot-2")),
    ) -> (Option<Baseline>, Option<Candidate>, Option<Heard>, Option<String>) {
        let baseline =
            baseline.map(|(network, confirmed, by_time)| Baseline { network, confirmed, by_time });
        let candidate =
            candidate.map(|(network, since, contacts)| Candidate { network, since, contacts });
        let heard = heard.map(|(at, boot, seq, stops)| {
            let state = if stops { State::Stopping } else { State::Running };
            Heard { at, boot, seq, state, version: None }
        });
        (baseline, candidate, heard, granted_boot)
    }
}

prop_compose! {
    fn nodes()(
        status in status(),
        bound in (option::of(hash()), option::of(hash()), option::of(hash())),
        versions in (1..4_u32, 1..3_u32),
        join_before in option::weighted(0.2, time()),
        seen in seen(),
        counters in (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()),
    ) -> Node {
        let (fingerprint, jkt, x5t) = (bound.0, bound.1.map(Jkt), bound.2.map(X5tS256));
        let (baseline, candidate, heard, granted_boot) = seen;
        let (key_version, oldest_key_version) = versions;
        let (granted, refused, telemetry, strange_telemetry) = counters;
        let counters = Counters { granted, refused, telemetry, strange_telemetry };
        let expected = Expectations { join_before, ..Expectations::default() };
        Node {
            status, fingerprint, jkt, x5t, key_version, oldest_key_version, expected, baseline,
            candidate, heard, granted_boot, counters,
            ..enrolled()
        }
    }
}

fn proofs() -> impl Strategy<Value = Proof> {
    let code = || "proof_x".to_owned();
    prop_oneof![
        2 => Just(Proof::Absent),
        16 => hash().prop_map(|hash| Proof::Holds { jkt: Jkt(hash) }),
        1 => Just(Proof::NeedsNonce { code: code() }),
        1 => option::of(hash()).prop_map(move |jkt| Proof::Faulty { code: code(), jkt: jkt.map(Jkt), clock: None }),
    ]
}

fn fingerprints() -> impl Strategy<Value = Fingerprint> {
    prop_oneof![
        18 => hash().prop_map(Fingerprint::Shown),
        1 => Just(Fingerprint::Missing),
        1 => Just(Fingerprint::Conflict),
    ]
}

fn asked() -> impl Strategy<Value = Asked> {
    let version = |(master, node, software): (u32, u32, Option<String>)| {
        Asked::Version(KeyVersion { master, node, software })
    };
    prop_oneof![
        6 => Just(Asked::Current),
        3 => (1..5_u32, 1..5_u32, option::of(label("1.4.0", "2"))).prop_map(version),
        1 => Just(Asked::Malformed),
    ]
}

prop_compose! {
    fn requests()(
        secret in prop::bool::weighted(0.9),
        sender in (proofs(), option::weighted(0.9, hash())),
        fingerprint in fingerprints(),
        labels in (option::of(label("boot-1", "boot-2")), option::of(label("1.4.0", "2"))),
        network in option::weighted(0.9, place()),
        baseline in option::of(place()),
        databases in (option::of(any::<u64>()), option::of(any::<u64>())),
        recent_quarantines in 0..5_u32,
        keys in (asked(), proptest::collection::vec(1..4_u32, 0..5)),
        seal in select(vec![Seal::Absent, Seal::Usable, Seal::Unusable]),
    ) -> Facts {
        let (proof, x5t) = (sender.0, sender.1.map(X5tS256));
        let ((boot, version), (asked, masters)) = (labels, keys);
        let databases = Databases { asn: databases.0, region: databases.1 };
        Facts {
            enrolled: true, secret, fingerprint, boot, version, recent_quarantines,
            sender: SenderFacts { proof, x5t },
            place: Place { network, baseline, databases },
            keys: KeyFacts { asked, masters, seal },
        }
    }
}

fn written<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
}

/// What a decision leaves as it is, whatever it comes to.
fn check_bound(node: &Node, after: &Node, may_adopt: bool) {
    let enrolment = |node: &Node| {
        let versions = (node.key_version, node.oldest_key_version);
        (node.id.clone(), node.secret, node.expected.clone(), node.enrolled, versions)
    };
    assert_eq!(enrolment(node), enrolment(after));
    let bound = |node: &Node| (node.fingerprint, node.jkt, node.x5t);
    if !may_adopt {
        assert_eq!(bound(node), bound(after));
    }
    let keys = |node: &Node| usize::from(node.jkt.is_some()) + usize::from(node.x5t.is_some());
    assert!(keys(after) <= keys(node).max(1));
    assert!(node.jkt.is_none() || node.jkt == after.jkt);
    assert!(node.x5t.is_none() || node.x5t == after.x5t);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decisions(
        node in option::weighted(0.95, nodes()),
        facts in requests(),
        policy in policies(),
        now in time(),
    ) {
        let case = Case { node, facts, policy, now };
        let decision = case.decide();
        let active = case.node.as_ref().is_some_and(|node| node.status == Status::Active);
        let granted = decision.verdict.is_ok();
        prop_assert!(!granted || (case.facts.secret && active));
        check_stages("any", &decision);
        match &decision.verdict {
            Ok(_) if case.node.as_ref().is_some_and(|node| node.counters.granted == u64::MAX) => (),
            Ok(_) => check_granted("any", &case, &decision),
            Err(_) if case.node.as_ref().is_some_and(|node| node.counters.refused == u64::MAX) => (),
            Err(_) => check_refused("any", &case, &decision),
        }
        if let (Some(node), Some(after)) = (&case.node, &decision.after) {
            check_bound(node, after, granted && !node.has_joined());
            prop_assert!(granted || node.baseline == after.baseline);
        }
        prop_assert!(!(decision.quarantined && decision.held));
        // The same again from what the audit record holds.
        let again = Case {
            node: written(&case.node),
            facts: written(&case.facts),
            policy: written(&case.policy),
            now: written(&case.now),
        };
        prop_assert_eq!(&again.node, &case.node);
        prop_assert_eq!(&again.facts, &case.facts);
        prop_assert_eq!(&again.policy, &case.policy);
        prop_assert_eq!(again.decide(), decision);
    }

    #[test]
    fn telemetry_moves_nothing(
        node in option::weighted(0.95, nodes()),
        facts in requests(),
        policy in policies(),
        now in time(),
        report in option::of((label("boot-1", "boot-2"), any::<u64>(), any::<bool>())),
    ) {
        let report = report.map(|(boot, seq, stops)| {
            let state = if stops { State::Stopping } else { State::Running };
            Report { boot, seq, state, version: None }
        });
        let decision = telemetry::decide(node.as_ref(), &facts, report.as_ref(), &policy, now);
        let active = node.as_ref().is_some_and(|node| node.status == Status::Active);
        prop_assert!(decision.verdict.is_err() || (facts.secret && active && report.is_some()));
        if let (Some(node), Some(after)) = (&node, &decision.after) {
            check_bound(node, after, false);
            let rest = |node: &Node| {
                let granted = (node.granted_boot.clone(), node.issued.clone(), node.last.clone());
                (node.status, node.baseline.clone(), granted, node.quarantine.clone())
            };
            prop_assert_eq!(rest(node), rest(after));
            let taken = decision.verdict.is_ok_and(|counted| counted == Counted::Taken);
            prop_assert!(taken || node.heard == after.heard);
            let candidate = &after.candidate;
            prop_assert!(candidate.is_none() || *candidate == node.candidate);
            prop_assert!(decision.verdict.is_ok() || *candidate == node.candidate);
        }
    }
}

/// What a node does over days.
#[derive(Clone, Debug)]
enum Event {
    Asks(&'static str, Option<&'static str>),
    Tells(&'static str, &'static str),
    Released,
}

fn events() -> impl Strategy<Value = Vec<(u32, Event)>> {
    // Mostly from two places, so that something is confirmed at all.
    let address =
        || prop_oneof![6 => Just(NEAR), 2 => Just(OTHER_AS), 2 => select(ADDRESSES.to_vec())];
    let boot = || select(vec!["boot-1", "boot-2"]);
    let event = prop_oneof![
        16 => (address(), option::weighted(0.9, boot())).prop_map(|(at, boot)| Event::Asks(at, boot)),
        2 => (address(), boot()).prop_map(|(at, boot)| Event::Tells(at, boot)),
        1 => Just(Event::Released),
    ];
    proptest::collection::vec((0..40_u32, event), 1..40)
}

/// Every contact that passed stages 1 to 5, as the test remembers it.
struct Contacts {
    log: Vec<(UnixTime, Network, bool)>,
    by_time: Option<UnixTime>,
}

impl Contacts {
    /// A move of the baseline is one that the rules allow.
    fn check(&mut self, from: &Network, to: &Network, risk: &Risk, policy: &Policy, now: UnixTime) {
        let rules = &policy.baseline;
        assert!(risk.score < rules.confirm_below, "{risk:?}");
        let again = is_same_address(from.address, to.address);
        assert!(!again, "{from:?}");
        let row = self.log.iter().rev().take_while(|(_, network, _)| network == to);
        let grants: Vec<_> = row.filter(|(_, _, grant)| *grant).map(|(at, ..)| *at).collect();
        let since = grants.last().copied().unwrap();
        assert!(now.millis_since(since) >= i64::try_from(rules.confirm_after.as_millis()).unwrap());
        assert!(grants.len() >= usize::try_from(rules.confirm_contacts).unwrap());
        if let Some(before) = self.by_time {
            assert!(now >= before.plus(rules.confirm_pause));
        }
        self.by_time = Some(now);
    }
}

fn live(policy: &Policy, events: &[(u32, Event)]) -> u32 {
    let mut case = Case { policy: policy.clone(), ..Case::joined() };
    let mut contacts = Contacts { log: Vec::new(), by_time: None };
    let mut moves = 0;
    for (seq, (hours, event)) in (0..).zip(events) {
        case.now = case.now.plus(*hours * HOUR);
        let before = case.node().baseline.clone().unwrap().network;
        case.facts.place.baseline = Some(seen_at(&before.address.to_string()));
        match event {
            Event::Asks(address, boot) => {
                case.from(address);
                case.facts.boot = boot.map(str::to_owned);
                let decision = case.decide();
                case.node = decision.after.clone();
                if decision.verdict.is_ok() || decision.quarantined {
                    contacts.log.push((case.now, seen_at(address), decision.verdict.is_ok()));
                }
                let after = case.node().baseline.clone().unwrap().network;
                if after != before {
                    moves += 1;
                    assert_eq!(after, seen_at(address));
                    contacts.check(&before, &after, &decision.risk.unwrap(), policy, case.now);
                }
            }
            Event::Tells(address, boot) => {
                case.from(address);
                let (boot, state) = ((*boot).to_owned(), State::Running);
                let report = Report { boot, seq, state, version: None };
                let (node, facts) = (case.node.as_ref(), &case.facts);
                let decision = telemetry::decide(node, facts, Some(&report), policy, case.now);
                if decision.verdict.is_ok() {
                    contacts.log.push((case.now, seen_at(address), false));
                }
                case.node = decision.after;
                assert_eq!(case.node().baseline.clone().unwrap().network, before);
            }
            Event::Released => {
                case.node().status = Status::Active;
                case.node().quarantine = None;
            }
        }
    }
    moves
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_baseline_only_moves_as_the_rules_allow(
        events in events(),
        confirm_below in select(vec![0, 20, 21, 50, 61, 80, 200]),
        threshold in select(vec![61, 80, 111]),
        confirm_contacts in 1..5_u32,
    ) {
        let mut policy = policy();
        policy.risk.threshold = threshold;
        policy.baseline.confirm_below = confirm_below;
        policy.baseline.confirm_contacts = confirm_contacts;
        live(&policy, &events);
    }
}

/// The property above is about something: near networks do move the baseline.
#[test]
fn some_baselines_move() {
    let asks: Vec<_> = (0..9).map(|_| (20, Event::Asks(NEAR, Some("boot-1")))).collect();
    assert_eq!(live(&policy(), &asks), 1);
}
