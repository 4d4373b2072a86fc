//! Who could be enforced, by what the records come to.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::read::{Record, Summary};
use super::tally::{Cell, Client, Clock, Key, Tally, UNNAMED};
use crate::policy::denial::Lack;
use crate::policy::time::UnixTime;

/// A proof at least so old or so far ahead, even the freshest, says that a clock is off.
const OFF_MS: i64 = 10_000;

/// What is asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) since: Option<UnixTime>,
    /// Requests that are needed to say that somebody is ready.
    pub(super) min_requests: u64,
    /// Requests that may fail all the same, in percent.
    pub(super) tolerate: f64,
    pub(super) tenant: Option<String>,
    pub(super) client: Option<String>,
    pub(super) route: Option<String>,
}

impl Wanted {
    /// Whether a record is about what is asked.
    pub(super) fn has(&self, record: &Record) -> bool {
        let is = |wanted: &Option<String>, found: &Option<String>, none: &str| {
            wanted.as_deref().is_none_or(|wanted| found.as_deref().unwrap_or(none) == wanted)
        };
        is(&self.tenant, &record.tenant, "default")
            && is(&self.client, &record.client, UNNAMED)
            && is(&self.route, &record.route, "-")
    }
}

/// Whether somebody could be enforced today.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// Some of what they ask for would be refused.
    NotYet,
    /// Too little was seen.
    TooFew,
    /// Yes.
    Ready,
}

/// What holds for the requests of a row today.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Now {
    /// Each is observed.
    Observe,
    /// Each is enforced.
    Enforce,
    /// Some are, by client, route or time.
    Partly,
}

/// A tenant, a client or a route.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) route: Option<String>,
    pub(super) verdict: Verdict,
    pub(super) now: Now,
    pub(super) requests: u64,
    pub(super) would_pass: u64,
    pub(super) would_pass_percent: f64,
    /// What the others lack, by how many requests, the most frequent first.
    #[serde(serialize_with = "by_name")]
    pub(super) lacks: Vec<(&'static str, u64)>,
    /// By the temporary bypass, which is no passing.
    pub(super) bypassed: u64,
    /// Requests without a good nonce, of keys that take up nonces: they would have tried again.
    pub(super) challenged: u64,
    /// With an unbound token that a rule allows.
    pub(super) unbound: u64,
    /// Refused in every mode, and not counted among the requests.
    pub(super) refused_in_every_mode: u64,
    /// Of tenants and routes: their clients, and those of them that are not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) clients: Option<[u64; 2]>,
}

fn by_name<S: serde::Serializer>(
    lacks: &[(&'static str, u64)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(lacks.iter().copied())
}

/// A client whose clock is off, or whose proofs were refused for their `iat`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClockRow {
    pub(super) tenant: String,
    pub(super) client: String,
    /// now − `iat` of the proof that was the freshest or furthest ahead, and of the oldest, seconds.
    pub(super) least_seconds: f64,
    pub(super) most_seconds: f64,
    /// Requests whose `iat` was the fault.
    pub(super) faults: u64,
}

/// The report.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) read: Summary,
    #[serde(serialize_with = "super::read::as_text")]
    pub(super) since: Option<UnixTime>,
    pub(super) min_requests: u64,
    pub(super) tolerate_percent: f64,
    /// Whether clients were counted together because there were too many.
    pub(super) clients_together: bool,
    /// Whether there were too many keys, so that misses of some count as lacks.
    pub(super) keys_left_out: bool,
    pub(super) left_out: u64,
    pub(super) tenants: Vec<Row>,
    pub(super) clients: Vec<Row>,
    pub(super) routes: Vec<Row>,
    pub(super) clocks: Vec<ClockRow>,
}

/// Requests of one row, with those taken out that a client would have mended itself.
#[derive(Debug, Default)]
struct Sum {
    cell: Cell,
    challenged: f64,
    clients: u64,
    not_ready: u64,
}

impl Sum {
    /// Requests that would be refused for what a client lacks.
    fn blocked(&self) -> f64 {
        let cell = &self.cell;
        cell.lacks.iter().sum::<f64>() + cell.bypassed - cell.lacking(Lack::Edge) - self.challenged
    }

    fn verdict(&self, wanted: &Wanted) -> Verdict {
        let requests = self.cell.requests();
        // Sums of estimates are not exact.
        if self.blocked() > requests * wanted.tolerate / 100.0 + 1e-6 {
            Verdict::NotYet
        } else if count(requests) < wanted.min_requests.max(1) {
            Verdict::TooFew
        } else {
            Verdict::Ready
        }
    }

    fn row(&self, names: [Option<&str>; 3], grouped: bool, wanted: &Wanted) -> Row {
        let (cell, requests) = (&self.cell, self.cell.requests());
        let [tenant, client, route] = names.map(|name| name.map(str::to_owned));
        let would_pass = requests - self.blocked() - cell.lacking(Lack::Edge);
        let mut lacks: Vec<_> = Lack::ALL
            .into_iter()
            .map(|lack| {
                let excused = if lack == Lack::Nonce { self.challenged } else { 0.0 };
                (lack.name(), count(cell.lacking(lack) - excused))
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        lacks.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let percent = if requests > 0.0 { would_pass / requests * 100.0 } else { 0.0 };
        Row {
            tenant,
            client,
            route,
            verdict: self.verdict(wanted),
            now: now(cell),
            requests: count(requests),
            would_pass: count(would_pass),
            // Down, so that 100 is said of all alone.
            would_pass_percent: (percent * 100.0 + 1e-6).floor() / 100.0,
            lacks,
            bypassed: count(cell.bypassed),
            challenged: count(self.challenged),
            unbound: count(cell.unbound),
            refused_in_every_mode: count(cell.refused),
            clients: grouped.then_some([self.clients, self.not_ready]),
        }
    }
}

fn now(cell: &Cell) -> Now {
    let observed = cell.requests() - cell.enforced;
    match (cell.enforced > 0.0, observed > 1e-6) {
        (true, true) => Now::Partly,
        (true, false) => Now::Enforce,
        (false, _) => Now::Observe,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count of lines, which fits"
)]
fn count(number: f64) -> u64 {
    number.max(0.0).round() as u64
}

impl Report {
    pub(super) fn of(tally: &Tally, wanted: &Wanted, read: Summary) -> Self {
        let mut whole: HashMap<Client<'_>, Cell> = HashMap::new();
        for (key, cell) in &tally.cells {
            whole.entry(key.client()).or_default().join(cell);
        }
        let excused = tally.nonces.excused(&whole);
        let mut clients: BTreeMap<Client<'_>, Sum> = BTreeMap::new();
        let mut cells: BTreeMap<&Key, Sum> = BTreeMap::new();
        for (key, cell) in &tally.cells {
            let challenged = excused.get(key).copied().unwrap_or_default();
            for sum in [clients.entry(key.client()).or_default(), cells.entry(key).or_default()] {
                sum.cell.join(cell);
                sum.challenged += challenged;
            }
        }
        let (mut tenants, mut routes) = (BTreeMap::new(), BTreeMap::new());
        for ((tenant, _), sum) in &clients {
            join(tenants.entry(*tenant).or_default(), sum, wanted);
        }
        for (key, sum) in &cells {
            join(routes.entry(key.route.as_str()).or_default(), sum, wanted);
        }
        let tenants =
            tenants.iter().map(|(name, sum)| sum.row([Some(name), None, None], true, wanted));
        let routes =
            routes.iter().map(|(name, sum)| sum.row([None, None, Some(name)], true, wanted));
        let rows = clients.iter();
        let rows = rows.map(|((tenant, client), sum)| {
            sum.row([Some(tenant), Some(client), None], false, wanted)
        });
        Self {
            read,
            since: wanted.since,
            min_requests: wanted.min_requests,
            tolerate_percent: wanted.tolerate,
            clients_together: tally.full,
            keys_left_out: tally.nonces.full,
            left_out: tally.left_out,
            tenants: worst_first(tenants.collect()),
            clients: worst_first(rows.collect()),
            routes: worst_first(routes.collect()),
            clocks: clocks(&whole),
        }
    }

    /// Why it does not say that all that is reported could be enforced; `None` where it does.
    pub(super) fn obstacle(&self) -> Option<String> {
        let missing = self.missing();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Some(format!("the records are incomplete, which is too few to say: {missing}"));
        }
        if self.tenants.is_empty() {
            return Some("there are no requests to report on".to_owned());
        }
        let others = |rows: &[Row]| rows.iter().filter(|row| row.verdict != Verdict::Ready).count();
        match (others(&self.tenants), others(&self.routes)) {
            (0, 0) => None,
            (tenants, routes) => Some(format!(
                "{tenants} of {} tenants and {routes} of {} routes are not",
                self.tenants.len(),
                self.routes.len()
            )),
        }
    }

    /// What is not in it that was or may have been a record.
    pub(super) fn missing(&self) -> Vec<String> {
        let parts = [
            (self.read.suppressed, "lines that the edge could not write"),
            (self.read.bad, "lines that could not be read"),
            (self.left_out, "records of too many names"),
        ];
        let parts = parts.into_iter().filter(|(count, _)| *count > 0);
        parts.map(|(count, what)| format!("{count} {what}")).collect()
    }
}

fn join(all: &mut Sum, client: &Sum, wanted: &Wanted) {
    all.cell.join(&client.cell);
    all.challenged += client.challenged;
    if client.cell.requests() > 0.0 {
        all.clients += 1;
        all.not_ready += u64::from(client.verdict(wanted) == Verdict::NotYet);
    }
}

/// Rows with anything in them, the worst first, and of those alike the one with more requests.
fn worst_first(mut rows: Vec<Row>) -> Vec<Row> {
    rows.retain(|row| row.requests > 0);
    rows.sort_by(|one, other| {
        let share = one.would_pass_percent.total_cmp(&other.would_pass_percent);
        one.verdict.cmp(&other.verdict).then(share).then(other.requests.cmp(&one.requests))
    });
    rows
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of a day are exact")]
fn clocks(clients: &HashMap<Client<'_>, Cell>) -> Vec<ClockRow> {
    let mut rows = Vec::new();
    for ((tenant, client), cell) in clients {
        let faults = cell.lacking(Lack::Clock);
        let Some(Clock { least, most }) = cell.clock else { continue };
        if faults > 0.0 || least >= OFF_MS || least <= -OFF_MS {
            rows.push(ClockRow {
                tenant: (*tenant).to_owned(),
                client: (*client).to_owned(),
                least_seconds: least as f64 / 1000.0,
                most_seconds: most as f64 / 1000.0,
                faults: count(faults),
            });
        }
    }
    rows.sort_by(|one, other| {
        let name = |row: &ClockRow| (row.tenant.clone(), row.client.clone());
        other.faults.cmp(&one.faults).then_with(|| name(one).cmp(&name(other)))
    });
    rows
}

#[cfg(test)]
mod tests {
    use super::super::read::tests::read_text;
    use super::*;

    /// Lines of `count` records with these members beside the ones that all have.
    fn lines(count: usize, members: &str) -> String {
        let line = format!(
            "{{\"ts\":\"2026-11-26T10:00:00.000Z\",\"event\":\"authority.dpop.request\",\"route\":\"orders\",\
             \"mode\":\"observe\",{members}}}\n"
        );
        line.repeat(count)
    }

    const OK: &str = r#""client":"@","result":"ok","nonce_status":"fresh","admitted":"dpop""#;
    const BARE: &str =
        r#""client":"@","result":"observe","nonce_status":"not_checked","lacks":"proof""#;
    const ABSENT: &str =
        r#""client":"@","result":"observe","nonce_status":"absent","lacks":"nonce""#;
    const EDGE: &str = r#""client":"@","result":"observe","nonce_status":"fresh","lacks":"edge""#;
    const EXPIRED: &str = r#""client":"@","result":"invalid","reason":"token_expired""#;
    const BYPASS: &str = r#""client":"@","result":"bypass","nonce_status":"not_checked""#;

    fn of(client: &str, count: usize, members: &str) -> String {
        lines(count, &members.replace('@', client))
    }

    fn report(text: &str, wanted: &Wanted) -> Report {
        let (tally, summary) = read_text(text, wanted);
        Report::of(&tally, wanted, summary)
    }

    fn wanted() -> Wanted {
        Wanted { min_requests: 50, ..Wanted::default() }
    }

    fn client<'a>(report: &'a Report, name: &str) -> &'a Row {
        report.clients.iter().find(|row| row.client.as_deref() == Some(name)).unwrap()
    }

    #[test]
    fn verdicts() {
        let told = r#""client":"@","result":"ok","nonce_status":"not_checked","admitted":"mtls""#;
        let log = [
            of("all", 100, OK),
            of("some", 117, OK) + &of("some", 3, BARE),
            // It was asked for a nonce twice, and has sent good ones since.
            of("adopts", 98, OK) + &of("adopts", 2, ABSENT),
            of("never", 100, ABSENT),
            // More without than with: some of its instances do not take them up.
            of("mixed", 40, OK) + &of("mixed", 60, ABSENT),
            of("few", 49, OK),
            of("few and faulty", 1, BARE),
            of("edge", 99, OK) + &of("edge", 1, EDGE),
            of("expired", 60, OK) + &of("expired", 500, EXPIRED),
            of("bypass", 60, OK) + &of("bypass", 1, BYPASS),
            of("certificates", 60, told),
        ];
        let report = report(&log.concat(), &wanted());
        for (name, verdict, requests, passes) in [
            ("all", Verdict::Ready, 100, 100),
            ("some", Verdict::NotYet, 120, 117),
            ("adopts", Verdict::Ready, 100, 100),
            ("never", Verdict::NotYet, 100, 0),
            ("mixed", Verdict::NotYet, 100, 40),
            ("few", Verdict::TooFew, 49, 49),
            ("few and faulty", Verdict::NotYet, 1, 0),
            ("edge", Verdict::Ready, 100, 99),
            ("expired", Verdict::Ready, 60, 60),
            ("bypass", Verdict::NotYet, 61, 60),
            ("certificates", Verdict::Ready, 60, 60),
        ] {
            let row = client(&report, name);
            assert_eq!(
                (row.verdict, row.requests, row.would_pass),
                (verdict, requests, passes),
                "{name}"
            );
        }
        assert_eq!(client(&report, "some").lacks, [("proof", 3)]);
        assert_eq!(
            (client(&report, "adopts").challenged, client(&report, "never").challenged),
            (2, 0)
        );
        assert_eq!(client(&report, "expired").refused_in_every_mode, 500);
        let [tenant] = &report.tenants[..] else { panic!("{:?}", report.tenants) };
        assert_eq!((tenant.verdict, tenant.clients), (Verdict::NotYet, Some([11, 5])));
        assert!(report.obstacle().is_some());
        // The worst first.
        let order: Vec<_> = report.clients.iter().map(|row| row.verdict).collect();
        assert!(order.is_sorted());
        assert_eq!(report.clients[0].client.as_deref(), Some("never"));
    }

    /// Records of `count` keys, each of which has `each`.
    fn keys(client: &str, prefix: &str, count: usize, each: &[&str]) -> String {
        let key = |number| {
            let jkt = format!(",\"cnf_jkt\":\"{prefix}{number}\"");
            each.iter().map(|members| of(client, 1, &format!("{members}{jkt}"))).collect::<String>()
        };
        (0..count).map(key).collect()
    }

    #[test]
    fn nonces_are_taken_up_or_not_by_each_key() {
        let log = [
            // As many good ones as missed, and half of the installations would be shut out.
            keys("mobile", "new", 50, &[OK, OK]) + &keys("mobile", "old", 50, &[ABSENT, ABSENT]),
            // The miss may come after.
            keys("adopts", "a", 30, &[ABSENT, ABSENT, OK])
                + &keys("adopts", "b", 30, &[OK, ABSENT]),
            // Seen once and not again: one can only guess.
            keys("seldom", "a", 30, &[OK, OK]) + &keys("seldom", "b", 30, &[ABSENT]),
            keys("once", "a", 30, &[OK, OK]) + &keys("once", "b", 31, &[ABSENT]),
            // One key's good nonces say nothing of the others'.
            keys("busy", "a", 1, &[OK; 100]) + &keys("busy", "b", 40, &[ABSENT]),
            // Token routes know no key.
            keys("tokens", "a", 50, &[OK]) + &of("tokens", 50, ABSENT),
            keys("no tokens", "a", 50, &[OK]) + &of("no tokens", 51, ABSENT),
        ];
        // On another route it is the same key.
        let log = log.concat()
            + &keys("routes", "a", 30, &[OK, OK])
            + &keys("routes", "a", 30, &[ABSENT, ABSENT]).replace("orders", "bills");
        let report = report(&log, &wanted());
        for (name, verdict, lacking, challenged) in [
            ("mobile", Verdict::NotYet, 100, 0),
            ("adopts", Verdict::Ready, 0, 90),
            ("seldom", Verdict::Ready, 0, 30),
            ("once", Verdict::NotYet, 31, 0),
            ("busy", Verdict::NotYet, 40, 0),
            ("tokens", Verdict::Ready, 0, 50),
            ("no tokens", Verdict::NotYet, 51, 0),
            ("routes", Verdict::Ready, 0, 60),
        ] {
            let row = client(&report, name);
            let found = row.lacks.first().map_or(0, |(_, count)| *count);
            assert_eq!(
                (row.verdict, found, row.challenged),
                (verdict, lacking, challenged),
                "{name}"
            );
        }
        assert!(!report.keys_left_out);
    }

    #[test]
    fn nothing_is_ready_by_records_that_are_incomplete() {
        let log = of("web", 100, OK);
        assert_eq!(report(&log, &wanted()).obstacle(), None);
        let lost =
            r#"{"ts":"2026-11-26T10:00:00.000Z","event":"holdfast.log.suppressed","count":200000}"#;
        for (more, expect) in [
            (lost, "200000 lines that the edge could not write"),
            ("{\"ts\":\"2026-11-26T10:0\nnonsense", "2 lines that could not be read"),
        ] {
            let why = report(&format!("{log}{more}\n"), &wanted()).obstacle();
            assert!(why.as_ref().is_some_and(|why| why.contains(expect)), "{why:?}");
        }
        let left_out = Report { left_out: 3, ..report(&log, &wanted()) };
        assert!(left_out.obstacle().is_some_and(|why| why.contains("3 records")));
    }

    #[test]
    fn what_is_tolerated_is_no_obstacle() {
        let log = of("some", 999, OK) + &of("some", 1, BARE);
        let wanted = |tolerate| Wanted { tolerate, ..wanted() };
        assert!(report(&log, &wanted(0.05)).obstacle().is_some());
        assert!(report(&log, &wanted(0.1)).obstacle().is_none());
        assert!(report("", &wanted(100.0)).obstacle().is_some());
    }

    #[test]
    fn sampled_records_count_for_those_that_were_left_out() {
        let sampled = format!("{OK},\"ok_sample\":0.1");
        let report = report(&(of("c", 10, &sampled) + &of("c", 5, BARE)), &wanted());
        let row = client(&report, "c");
        assert_eq!((row.requests, row.would_pass, row.would_pass_percent), (105, 100, 95.23));
        assert!(report.read.sampled);
    }

    #[test]
    fn clocks_that_are_off_are_listed() {
        let at = |client: &str, offset: i64, members: &str| {
            of(client, 1, &format!("{members},\"clock_offset_ms\":{offset}"))
        };
        let stale = r#""client":"@","result":"observe","nonce_status":"fresh","lacks":"clock""#;
        let log = [
            at("right", 300, OK) + &at("right", 9_000, OK),
            at("ahead", -12_000, OK) + &at("ahead", 200, OK),
            at("behind", 47_000, OK) + &at("behind", 60_000, OK),
            at("slow", 200, OK) + &at("slow", 200_000, stale),
        ];
        let report = report(&log.concat(), &wanted());
        let names: Vec<_> = report.clocks.iter().map(|row| row.client.as_str()).collect();
        assert_eq!(names, ["slow", "ahead", "behind"]);
        assert_eq!((report.clocks[2].least_seconds, report.clocks[0].faults), (47.0, 1));
    }

    #[test]
    fn only_what_is_asked_for_is_reported() {
        let acme = |text: String| {
            text.replace("\"route\":\"orders\"", "\"route\":\"bills\",\"tenant\":\"acme\"")
        };
        let log = of("good", 60, OK) + &acme(of("bad", 60, BARE));
        let only = |tenant: Option<&str>, client: Option<&str>, route: Option<&str>| {
            let [tenant, client, route] = [tenant, client, route].map(|it| it.map(str::to_owned));
            report(&log, &Wanted { tenant, client, route, ..wanted() }).obstacle().is_none()
        };
        assert!(!only(None, None, None));
        assert!(only(Some("default"), None, None) && !only(Some("acme"), None, None));
        assert!(only(None, Some("good"), None) && !only(None, Some("bad"), None));
        assert!(only(None, None, Some("orders")) && !only(None, None, Some("bills")));
        // A name that nobody has is ready for nothing.
        assert!(!only(Some("nobody"), None, None));
    }
}
