//! Every metric, defined once. All series exist at 0 from the start, so that a first event is an
//! increase; labels have bounded values only: never a client, a path or a `jti`.
//!
//! Handles are resolved at start. Counting is an index and an atomic addition.

mod capsules;
mod configuration;
mod connections;
mod ends;
mod families;
mod labels;
mod observed;
mod replay;
mod spans;
mod upstreams;

use std::sync::Arc;
use std::time::Duration;

use capsules::CapsuleMetrics;
pub use capsules::{CapsuleResult, Quarantines, StoreStatus, TelemetryResult};
use configuration::Configuration;
use connections::ConnectionMetrics;
pub use ends::{Ends, KeyTerm, Term, Use};
use families::Families;
use labels::role_index;
pub use labels::{
    CertificateMiss, ConnectionLoss, IntrospectionResult, NonceMiss, SpanLoss, Stage, Tenant,
};
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, TextEncoder,
};
use replay::ReplayMetrics;
pub use replay::{ByMemory, ReplayMemory};
use upstreams::UpstreamMetrics;

use crate::policy::denial::{self, AuthorityFault, Denial, DpopResult};
use crate::policy::lifetime::Ending;
use crate::policy::rule::{Role, TenantId};
use crate::policy::time::UnixTime;

/// What the labels range over, and what is fixed while a configuration is in force.
#[derive(Clone, Debug, Default)]
pub struct Shape<'a> {
    /// The configured tenants, by index.
    pub tenants: &'a [&'a str],
    /// The listeners' names with the connections that each takes, by index.
    pub listeners: &'a [(&'a str, usize)],
    /// The issuers (`iss`), by index.
    pub issuers: &'a [&'a str],
    /// The upstreams' names, by index.
    pub upstreams: &'a [&'a str],
    /// Live proofs that can be remembered.
    pub replay_capacity: ByMemory,
    /// When certificates and keys end.
    pub ends: Ends,
}

/// What is asked for when the metrics are.
#[derive(Clone, Debug, Default)]
pub struct Now {
    /// Live proofs that are remembered.
    pub live_proofs: ByMemory,
    /// Lines that the log has dropped since the start.
    pub log_suppressed: u64,
    /// Whether the temporary bypass is open.
    pub bypass: bool,
    /// The store, where there is one.
    pub store: Option<StoreStatus>,
    /// Whether Redis does its work, where edges share anything.
    pub shared: Option<bool>,
}

/// The classes of `holdfast_responses_total`.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// `role` of a request that no route takes.
const NO_ROLE: &str = "none";
const ROLES: usize = Role::ALL.len();
const RESULTS: usize = DpopResult::ALL.len();

/// Seconds; a decision takes tens of microseconds.
const DURATION_BUCKETS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0,
];
/// Seconds, both ways: a client ahead of us is below 0.
const SKEW_BUCKETS: &[f64] =
    &[-300.0, -60.0, -30.0, -10.0, -5.0, -1.0, 0.0, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// The registry and a handle for each series.
#[derive(Debug)]
pub struct Metrics {
    families: Arc<Families>,
    tenants: usize,
    /// By tenant, role.
    dpop_requests: Vec<IntCounter>,
    /// By tenant, role, result.
    dpop_results: Vec<IntCounter>,
    nonce_misses: Vec<IntCounter>,
    certificate_misses: Vec<IntCounter>,
    authority_alarms: Vec<IntCounter>,
    /// By role (the last is no route), class.
    responses: Vec<IntCounter>,
    /// By role, stage.
    durations: Vec<Histogram>,
    streams_ended: Vec<IntCounter>,
    clock_skew: Histogram,
    /// By [`denial::ALL`]: refused, observed.
    denials: Vec<[IntCounter; 2]>,
    replay: ReplayMetrics,
    bypass_active: IntGauge,
    connections: ConnectionMetrics,
    /// By issuer; fetched, failed.
    jwks_refreshes: Vec<[IntCounter; 2]>,
    /// By issuer, result.
    introspections: Vec<IntCounter>,
    upstreams: UpstreamMetrics,
    ends: Ends,
    log_suppressed: IntCounter,
    spans_dropped: Vec<IntCounter>,
    configuration: Configuration,
    capsules: CapsuleMetrics,
    observed: observed::Observed,
}

impl Metrics {
    /// Defines everything.
    ///
    /// # Errors
    /// When a name is no metric's name.
    pub fn new(shape: &Shape<'_>) -> prometheus::Result<Self> {
        let families = Arc::<Families>::default();
        families.of_process()?;
        Self::define(families, shape)
    }

    /// The same metrics for another configuration: series that both have go on from where they are,
    /// those of what is gone stay as they are.
    ///
    /// # Errors
    /// As [`Metrics::new`].
    pub fn reshaped(&self, shape: &Shape<'_>) -> prometheus::Result<Self> {
        Self::define(Arc::clone(&self.families), shape)
    }

    fn define(families: Arc<Families>, shape: &Shape<'_>) -> prometheus::Result<Self> {
        let define = Definer { families: &families };
        let (dpop_requests, dpop_results) = define.dpop(shape)?;
        let responses = define.responses()?;
        Ok(Self {
            tenants: shape.tenants.len(),
            dpop_requests,
            dpop_results,
            nonce_misses: define.reasons(
                "authority_dpop_nonce_miss_total",
                "Proofs without a good nonce where one is needed",
                &NonceMiss::ALL.map(NonceMiss::name),
            )?,
            certificate_misses: define.reasons(
                "authority_mtls_mismatch_total",
                "Bound tokens shown without their certificate",
                &CertificateMiss::ALL.map(CertificateMiss::name),
            )?,
            authority_alarms: define.reasons(
                "holdfast_authority_alarms_total",
                "Answers of authorization servers that were not passed on: unbound, bound to another, unread",
                &AuthorityFault::ALARMS.map(AuthorityFault::code),
            )?,
            responses,
            durations: define.durations()?,
            streams_ended: define.reasons(
                "holdfast_streams_ended_total",
                "Exchanges cut because what admitted them no longer holds",
                &Ending::ALL.map(Ending::name),
            )?,
            clock_skew: define.clock_skew()?,
            denials: define.denials()?,
            replay: ReplayMetrics::define(&define, shape)?,
            bypass_active: define.gauge(
                "holdfast_bypass_active",
                "Whether the temporary bypass lets tokens be issued without a proof",
            )?,
            connections: ConnectionMetrics::define(&define, shape)?,
            jwks_refreshes: define.jwks(shape)?,
            introspections: define.introspections(shape)?,
            upstreams: UpstreamMetrics::define(&define, shape)?,
            ends: shape.ends.clone(),
            log_suppressed: define.counter(
                "holdfast_log_suppressed_total",
                "Log lines dropped because the queue was full or they could not be written",
            )?,
            spans_dropped: define.reasons(
                "holdfast_spans_dropped_total",
                "Spans that did not come to the collector",
                &SpanLoss::ALL.map(SpanLoss::name),
            )?,
            configuration: Configuration::define(&define)?,
            capsules: CapsuleMetrics::define(&define)?,
            observed: observed::Observed::define(&define, shape)?,
            families,
        })
    }

    /// Counts a request that took part in DPoP, with how it ended.
    pub fn dpop(&self, tenant: Tenant, role: Role, result: DpopResult) {
        let place = self.tenant(tenant) * ROLES + role_index(role);
        count(&self.dpop_requests, place);
        count(&self.dpop_results, place * RESULTS + result as usize);
    }

    /// Counts a nonce that was not good.
    pub fn nonce_miss(&self, reason: NonceMiss) {
        count(&self.nonce_misses, reason as usize);
    }

    /// Counts a certificate that was not the token's.
    pub fn certificate_miss(&self, reason: CertificateMiss) {
        count(&self.certificate_misses, reason as usize);
    }

    /// Counts an answer.
    pub fn response(&self, role: Option<Role>, status: u16) {
        let role = role.map_or(ROLES, role_index);
        if let Some(class) = class(status) {
            count(&self.responses, role * CLASSES.len() + class);
        }
    }

    /// Counts an upstream's answer by its status; `None` where there was none.
    pub fn upstream_answered(&self, upstream: usize, status: Option<u16>) {
        self.upstreams.answered(upstream, status);
    }

    /// Counts a refusal, or what one would have been but for `mode: observe`.
    pub fn denied(&self, denial: Denial, refused: bool) {
        let place = denial::ALL.iter().position(|known| *known == denial);
        if let Some([refusals, observed]) = place.and_then(|place| self.denials.get(place)) {
            if refused { refusals.inc() } else { observed.inc() }
        }
    }

    /// Counts an exchange that was cut.
    pub fn stream_ended(&self, reason: Ending) {
        count(&self.streams_ended, reason as usize);
    }

    /// Records how long a stage took.
    pub fn duration(&self, role: Role, stage: Stage, took: Duration) {
        let place = role_index(role) * Stage::ALL.len() + stage as usize;
        if let Some(histogram) = self.durations.get(place) {
            histogram.observe(took.as_secs_f64());
        }
    }

    /// Records now − `iat`, milliseconds, of a proof whose signature holds; a day at most, so that
    /// one absurd `iat` does not drown the sum of all others.
    pub fn clock_skew(&self, millis: i64) {
        const DAY: i64 = 86_400_000;
        #[expect(clippy::cast_precision_loss, reason = "a day in milliseconds is exact")]
        self.clock_skew.observe(millis.clamp(-DAY, DAY) as f64 / 1000.0);
    }

    /// A connection of a listener opened.
    pub fn connection_opened(&self, listener: usize) {
        self.connections.opened(listener);
    }

    /// A connection of a listener ended.
    pub fn connection_closed(&self, listener: usize) {
        self.connections.closed(listener);
    }

    /// Counts a connection that came to nothing.
    pub fn connection_lost(&self, listener: usize, reason: ConnectionLoss) {
        self.connections.lost(listener, reason);
    }

    /// Counts a fetch of an issuer's JWK set.
    pub fn jwks_refreshed(&self, issuer: usize, succeeded: bool) {
        if let Some([fetched, failed]) = self.jwks_refreshes.get(issuer) {
            if succeeded { fetched.inc() } else { failed.inc() }
        }
    }

    /// The configuration that the process starts with has come into force.
    pub fn config_started(&self, at: UnixTime) {
        self.configuration.started(at);
    }

    /// Counts a reload of the configuration, which was taken at `taken`, or not.
    pub fn config_reloaded(&self, taken: Option<UnixTime>) {
        self.configuration.reloaded(taken);
    }

    /// Counts a question to an issuer about a token.
    pub fn introspected(&self, issuer: usize, result: IntrospectionResult) {
        count(&self.introspections, issuer * IntrospectionResult::ALL.len() + result as usize);
    }

    /// The Prometheus text exposition format, 0.0.4, with the gauges as they are `now`, and the servers
    /// of upstreams, by name, with whether they are up.
    pub fn render<'a>(
        &self,
        now: &Now,
        servers: impl IntoIterator<Item = (&'a str, &'a str, bool)>,
    ) -> Vec<u8> {
        self.replay.set(now.live_proofs);
        self.bypass_active.set(now.bypass.into());
        raise(&self.log_suppressed, now.log_suppressed);
        let store = now.store.as_ref();
        self.capsules.set(store, now.shared);
        let mut families = self.families.gather();
        families.extend(self.ends.collect());
        families.extend(upstreams::up(servers));
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        text
    }

    /// Counts an answer of an authorization server that was not passed on.
    pub fn authority_alarm(&self, fault: AuthorityFault) {
        let place = AuthorityFault::ALARMS.iter().position(|known| *known == fault);
        count(&self.authority_alarms, place.unwrap_or(usize::MAX));
    }

    /// Counts a decision about a capsule.
    pub fn capsule(&self, result: CapsuleResult, score: Option<u32>, held: bool) {
        self.capsules.decided(result, score, held);
    }

    /// Counts telemetry of a node.
    pub fn node_telemetry(&self, result: TelemetryResult) {
        self.capsules.telemetry(result);
    }

    fn tenant(&self, tenant: Tenant) -> usize {
        match tenant {
            Tenant::Known(TenantId(index)) if index < self.tenants => index,
            Tenant::Default => self.tenants,
            Tenant::Other | Tenant::Known(_) => self.tenants + 1,
        }
    }
}

/// The place of a status in [`CLASSES`].
fn class(status: u16) -> Option<usize> {
    usize::from(status / 100).checked_sub(1).filter(|class| *class < CLASSES.len())
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Brings a counter up to what was counted elsewhere.
fn raise(counter: &IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

fn count(counters: &[IntCounter], place: usize) {
    if let Some(counter) = counters.get(place) {
        counter.inc();
    }
}

/// Makes and registers; only [`Metrics::define`] uses it.
struct Definer<'a> {
    families: &'a Families,
}

impl Definer<'_> {
    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntCounterVec> {
        self.families.family(name, || IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.families.family(name, || IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.families.family(name, || IntGauge::new(name, help))
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.families.family(name, || IntCounter::new(name, help))
    }

    fn denials(&self) -> prometheus::Result<Vec<[IntCounter; 2]>> {
        let counters = self.counters(
            "holdfast_denials_total",
            "Refusals by code: refused, or observed where mode: observe let them pass",
            &["reason", "outcome"],
        )?;
        let pair = |denial: Denial| {
            ["refused", "observed"].map(|end| counters.with_label_values(&[denial.code(), end]))
        };
        Ok(denial::ALL.into_iter().map(pair).collect())
    }

    fn dpop(&self, shape: &Shape<'_>) -> prometheus::Result<(Vec<IntCounter>, Vec<IntCounter>)> {
        let requests = self.counters(
            "authority_dpop_requests_total",
            "Requests that took part in DPoP",
            &["tenant", "role"],
        )?;
        let results = self.counters(
            "authority_dpop_result_total",
            "How requests that took part in DPoP ended",
            &["tenant", "role", "result"],
        )?;
        let (mut by_role, mut by_result) = (Vec::new(), Vec::new());
        for tenant in shape.tenants.iter().copied().chain(["default", "other"]) {
            for role in Role::ALL {
                by_role.push(requests.with_label_values(&[tenant, role.name()]));
                for result in DpopResult::ALL {
                    let labels = [tenant, role.name(), result.name()];
                    by_result.push(results.with_label_values(&labels));
                }
            }
        }
        Ok((by_role, by_result))
    }

    fn reasons(
        &self,
        name: &str,
        help: &str,
        reasons: &[&str],
    ) -> prometheus::Result<Vec<IntCounter>> {
        let counters = self.counters(name, help, &["reason"])?;
        Ok(reasons.iter().map(|reason| counters.with_label_values(&[reason])).collect())
    }

    fn responses(&self) -> prometheus::Result<Vec<IntCounter>> {
        let counters =
            self.counters("holdfast_responses_total", "Answers by class", &["role", "class"])?;
        let roles = Role::ALL.map(Role::name).into_iter().chain([NO_ROLE]);
        Ok(roles
            .flat_map(|role| CLASSES.map(|class| counters.with_label_values(&[role, class])))
            .collect())
    }

    fn durations(&self) -> prometheus::Result<Vec<Histogram>> {
        let name = "holdfast_request_duration_seconds";
        let histograms = self.families.family(name, || {
            let opts = HistogramOpts::new(name, "Time by stage");
            HistogramVec::new(opts.buckets(DURATION_BUCKETS.to_vec()), &["role", "stage"])
        })?;
        let series = |role: Role| {
            Stage::ALL.map(|stage| histograms.with_label_values(&[role.name(), stage.name()]))
        };
        Ok(Role::ALL.into_iter().flat_map(series).collect())
    }

    fn clock_skew(&self) -> prometheus::Result<Histogram> {
        let name = "holdfast_clock_skew_seconds";
        self.families.family(name, || {
            let opts = HistogramOpts::new(name, "now - iat of proofs");
            Histogram::with_opts(opts.buckets(SKEW_BUCKETS.to_vec()))
        })
    }

    fn jwks(&self, shape: &Shape<'_>) -> prometheus::Result<Vec<[IntCounter; 2]>> {
        let counters = self.counters(
            "holdfast_jwks_refreshes_total",
            "Fetches of an issuer's JWK set",
            &["issuer", "result"],
        )?;
        let pair = |issuer: &&str| {
            ["ok", "failed"].map(|result| counters.with_label_values(&[*issuer, result]))
        };
        Ok(shape.issuers.iter().map(pair).collect())
    }

    fn introspections(&self, shape: &Shape<'_>) -> prometheus::Result<Vec<IntCounter>> {
        let counters = self.counters(
            "holdfast_introspection_total",
            "Questions to an issuer about an opaque token",
            &["issuer", "result"],
        )?;
        let by_result = |issuer: &&str| {
            IntrospectionResult::ALL
                .map(|result| counters.with_label_values(&[*issuer, result.name()]))
        };
        Ok(shape.issuers.iter().flat_map(by_result).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::capsule::decision::Reason;

    fn metrics() -> Metrics {
        Metrics::new(&Shape {
            tenants: &["acme", "umbrella"],
            listeners: &[("public", 100)],
            issuers: &["https://as.example"],
            upstreams: &["api"],
            replay_capacity: ByMemory { resource: 42, token: 43, node: 44 },
            ends: Ends {
                files: vec![Term {
                    used: Use::Server,
                    owner: "public".to_owned(),
                    file: "edge.pem".to_owned(),
                    begins: UnixTime::from_secs(1_800_000_000),
                    ends: UnixTime::from_secs(1_800_086_400),
                }],
                keys: vec![KeyTerm { kind: "master", ends: UnixTime::from_secs(1_900_000_000) }],
            },
        })
        .unwrap()
    }

    fn text(metrics: &Metrics) -> String {
        let live_proofs = ByMemory { resource: 3, token: 4, node: 5 };
        let now = Now { live_proofs, log_suppressed: 6, ..Now::default() };
        String::from_utf8(metrics.render(&now, [("api", "10.0.0.1:80", false)])).unwrap()
    }

    #[test]
    fn every_series_exists_at_zero() {
        let text = text(&metrics());
        for tenant in ["acme", "umbrella", "default", "other"] {
            for role in Role::ALL.map(Role::name) {
                let line = format!(
                    "authority_dpop_requests_total{{role=\"{role}\",tenant=\"{tenant}\"}} 0\n"
                );
                assert!(text.contains(&line), "{line}");
                for result in DpopResult::ALL.map(DpopResult::name) {
                    let line = format!(
                        "authority_dpop_result_total{{result=\"{result}\",role=\"{role}\",tenant=\"{tenant}\"}} 0\n"
                    );
                    assert!(text.contains(&line), "{line}");
                }
            }
        }
        for line in [
            "authority_dpop_nonce_miss_total{reason=\"absent\"} 0",
            "authority_dpop_nonce_miss_total{reason=\"expired\"} 0",
            "authority_dpop_nonce_miss_total{reason=\"unknown\"} 0",
            "authority_dpop_nonce_miss_total{reason=\"replayed\"} 0",
            "authority_mtls_mismatch_total{reason=\"context-missing\"} 0",
            "authority_mtls_mismatch_total{reason=\"missing-certificate\"} 0",
            "authority_mtls_mismatch_total{reason=\"thumbprint-mismatch\"} 0",
            "holdfast_bypass_active 0",
            "holdfast_clock_skew_seconds_count 0",
            "holdfast_request_duration_seconds_count{role=\"resource\",stage=\"decision\"} 0",
            "holdfast_request_duration_seconds_count{role=\"public\",stage=\"total\"} 0",
            "holdfast_replay_entries{log=\"resource\"} 3",
            "holdfast_replay_entries{log=\"token\"} 4",
            "holdfast_replay_entries{log=\"node\"} 5",
            "holdfast_replay_capacity{log=\"resource\"} 42",
            "holdfast_replay_capacity{log=\"token\"} 43",
            "holdfast_replay_capacity{log=\"node\"} 44",
            "holdfast_connections_limit{listener=\"public\"} 100",
            "holdfast_denials_total{outcome=\"refused\",reason=\"proof_replayed\"} 0",
            "holdfast_denials_total{outcome=\"observed\",reason=\"nonce_absent\"} 0",
            "holdfast_upstream_responses_total{class=\"5xx\",upstream=\"api\"} 0",
            "holdfast_upstream_responses_total{class=\"failed\",upstream=\"api\"} 0",
            "holdfast_config_reloads_total{result=\"failed\"} 0",
            "holdfast_fleet_quarantines 0",
            "holdfast_connections{listener=\"public\"} 0",
            "holdfast_connections_lost_total{listener=\"public\",reason=\"head-timeout\"} 0",
            "holdfast_jwks_refreshes_total{issuer=\"https://as.example\",result=\"failed\"} 0",
            "holdfast_introspection_total{issuer=\"https://as.example\",result=\"busy\"} 0",
            "holdfast_responses_total{class=\"4xx\",role=\"none\"} 0",
            "holdfast_log_suppressed_total 6",
            "holdfast_capsule_decisions_total{reason=\"GRANTED\"} 0",
            "holdfast_capsule_decisions_total{reason=\"NETWORK_POLICY_VIOLATION\"} 0",
            "holdfast_capsule_risk_score_count 0",
            "holdfast_capsule_held_total 0",
            "holdfast_node_telemetry_total{result=\"strange-network\"} 0",
            "holdfast_node_status{status=\"quarantined\"} 0",
            "holdfast_store_up{store=\"embedded\"} 1",
            "holdfast_store_up{store=\"redis\"} 1",
            "holdfast_audit_suppressed_total 0",
            "holdfast_upstream_up{server=\"10.0.0.1:80\",upstream=\"api\"} 0",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
        }
    }

    #[test]
    fn each_event_finds_its_series() {
        let metrics = metrics();
        metrics.dpop(Tenant::Known(TenantId(1)), Role::Resource, DpopResult::Replay);
        metrics.dpop(Tenant::Other, Role::Public, DpopResult::Ok);
        metrics.nonce_miss(NonceMiss::Unknown);
        metrics.certificate_miss(CertificateMiss::ThumbprintMismatch);
        metrics.response(None, 404);
        metrics.response(Some(Role::Resource), 200);
        metrics.connection_lost(0, ConnectionLoss::HandshakeTimeout);
        metrics.introspected(0, IntrospectionResult::Refused);
        metrics.clock_skew(-1500);
        metrics.capsule(CapsuleResult::Granted, Some(20), false);
        metrics.capsule(CapsuleResult::Refused(Reason::Unavailable), None, true);
        metrics.node_telemetry(TelemetryResult::OtherBoot);
        metrics.denied(Denial::Replayed, true);
        metrics.denied(Denial::Replayed, false);
        metrics.upstream_answered(0, Some(503));
        metrics.upstream_answered(0, None);
        let text = text(&metrics);
        for line in [
            "holdfast_capsule_decisions_total{reason=\"GRANTED\"} 1",
            "holdfast_capsule_decisions_total{reason=\"UNAVAILABLE\"} 1",
            "holdfast_capsule_risk_score_sum 20",
            "holdfast_capsule_held_total 1",
            "holdfast_node_telemetry_total{result=\"other-boot\"} 1",
            "authority_dpop_requests_total{role=\"resource\",tenant=\"umbrella\"} 1",
            "authority_dpop_result_total{result=\"replay\",role=\"resource\",tenant=\"umbrella\"} 1",
            "authority_dpop_result_total{result=\"ok\",role=\"public\",tenant=\"other\"} 1",
            "authority_dpop_nonce_miss_total{reason=\"unknown\"} 1",
            "authority_mtls_mismatch_total{reason=\"thumbprint-mismatch\"} 1",
            "holdfast_introspection_total{issuer=\"https://as.example\",result=\"refused\"} 1",
            "holdfast_responses_total{class=\"4xx\",role=\"none\"} 1",
            "holdfast_responses_total{class=\"2xx\",role=\"resource\"} 1",
            "holdfast_connections_lost_total{listener=\"public\",reason=\"handshake-timeout\"} 1",
            "holdfast_clock_skew_seconds_sum -1.5",
            "holdfast_denials_total{outcome=\"refused\",reason=\"proof_replayed\"} 1",
            "holdfast_denials_total{outcome=\"observed\",reason=\"proof_replayed\"} 1",
            "holdfast_upstream_responses_total{class=\"5xx\",upstream=\"api\"} 1",
            "holdfast_upstream_responses_total{class=\"failed\",upstream=\"api\"} 1",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
        }
    }

    #[test]
    fn an_absurd_time_counts_as_a_day() {
        for (millis, expect) in [(i64::MIN, "-86400"), (i64::MAX, "86400"), (-1500, "-1.5")] {
            let metrics = metrics();
            metrics.clock_skew(millis);
            let line = format!("holdfast_clock_skew_seconds_sum {expect}\n");
            assert!(text(&metrics).contains(&line), "{line}");
        }
    }

    #[test]
    fn ends_are_those_of_the_configuration_in_force() {
        let before = metrics();
        let after = before.reshaped(&Shape::default()).unwrap();
        for (metrics, found) in [(&before, true), (&after, false)] {
            let text = text(metrics);
            for line in [
                "holdfast_certificate_expiry_timestamp_seconds{certificate=\"edge.pem\",owner=\"public\",use=\"server\"} 1800086400",
                "holdfast_certificate_lifetime_seconds{certificate=\"edge.pem\",owner=\"public\",use=\"server\"} 86400",
                "holdfast_key_expiry_timestamp_seconds{kind=\"master\"} 1900000000",
            ] {
                assert_eq!(text.contains(&format!("{line}\n")), found, "{line}\n{text}");
            }
        }
    }

    #[test]
    fn the_last_reload_is_told_of_until_there_is_another() {
        let (metrics, at) = (metrics(), UnixTime::from_secs);
        metrics.config_started(at(1_800_000_000));
        for (taken, succeeded, since) in [
            (None, 0, 1_800_000_000),
            (Some(at(1_800_000_100)), 1, 1_800_000_100),
            (None, 0, 1_800_000_100),
        ] {
            metrics.config_reloaded(taken);
            let text = text(&metrics);
            for line in [
                format!("holdfast_config_last_reload_successful {succeeded}\n"),
                format!("holdfast_config_last_reload_success_timestamp_seconds {since}\n"),
            ] {
                assert!(text.contains(&line), "{line}\n{text}");
            }
        }
    }
}
