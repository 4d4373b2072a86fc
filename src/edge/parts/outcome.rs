//! How an exchange ended: its record, its spans, and what is counted of it. Once, in one place.

use pingora::{Error, ErrorSource};

use super::{Parts, now};
use crate::edge::ctx::Ctx;
use crate::edge::record::{self, Told};
use crate::edge::spans;
use crate::telemetry::metrics::Stage;

impl Parts {
    pub(in crate::edge) fn tell(&self, ctx: &Ctx, status: u16) {
        let role = self.route(ctx).map(|route| route.rule.role);
        self.common.metrics.response(role, status);
        if let Some(role) = role {
            self.common.metrics.duration(role, Stage::Decision, ctx.decided);
            self.common.metrics.duration(role, Stage::Total, ctx.started.elapsed());
            if let Some(answered) = ctx.answered {
                self.common.metrics.duration(
                    role,
                    Stage::Upstream,
                    answered.saturating_sub(ctx.decided),
                );
            }
        }
        let facts = ctx.facts.as_ref();
        let told = Told {
            route: self.route(ctx).map(|route| route.name.as_str()),
            role,
            refused: ctx.refused,
            facts,
            tenant: self.tenant(facts.and_then(|facts| facts.tenant)),
            id: &ctx.id,
            took: ctx.decided,
            ok_sample: self.ok_sample,
            trace: ctx.trace.as_ref().and_then(|begun| begun.sampled()),
        };
        record::tell(&told, &self.common.metrics, &self.common.log);
        if let Some(traces) = &self.common.traces {
            spans::tell(self, traces, ctx, &told, status);
        }
        if let Some(audit) = &self.common.audit {
            record::audit(&told, audit, ctx.whence.address, now());
        }
        if let Some(own) = &ctx.own {
            let latency = u64::try_from(ctx.started.elapsed().as_micros()).unwrap_or(u64::MAX);
            own.tell(&ctx.id, latency, &self.common.metrics, &self.common.log);
        }
        if let Some(ending) = ctx.term.cut() {
            self.common.metrics.stream_ended(ending);
            let seconds = ctx.started.elapsed().as_secs();
            tracing::info!(decision_id = ctx.id, reason = ending.name(), seconds, "stream ended");
        }
    }

    /// An upstream has answered with this status, or not at all.
    pub(in crate::edge) fn upstream_answered(&self, ctx: &Ctx, status: Option<u16>) {
        if let Some(upstream) = self.route(ctx).and_then(|route| route.upstream) {
            self.common.metrics.upstream_answered(upstream, status);
        }
    }

    /// A client that goes away is its own business; a service that fails is somebody's.
    pub(in crate::edge) fn tell_failure(&self, e: &Error, ctx: &Ctx) {
        if *e.esource() != ErrorSource::Downstream && ctx.answered.is_none() {
            self.upstream_answered(ctx, None);
        }
        let (kind, side) = (e.etype().as_str(), e.esource().as_str());
        let upstream = self.upstream(ctx).map(|(upstream, _)| upstream.name.as_str());
        // Of pingora's own words some quote what was sent; the system's and rustls' do not.
        let cause = e.root_cause().downcast_ref::<std::io::Error>().map(ToString::to_string);
        if *e.esource() == ErrorSource::Downstream {
            tracing::debug!(decision_id = ctx.id, upstream, kind, side, cause, "request failed");
        } else {
            tracing::warn!(decision_id = ctx.id, upstream, kind, side, cause, "request failed");
        }
    }
}
