//! What of a request and its route the edge's own answers depend on.

use super::Parts;
use crate::config::{Limits, Route};
use crate::edge::ctx::Ctx;
use crate::edge::respond::{self, Answer, Asked, AskedOfAuthority};
use crate::policy::denial::Denial;
use crate::policy::rule::{Binding, RouteRule};

impl Parts {
    pub(in crate::edge) fn refusal(&self, ctx: &Ctx, denial: Denial) -> Answer {
        let facts = ctx.facts.as_ref();
        let scopes = self.route(ctx).map_or(&[][..], |route| &route.rule.scopes);
        let url = facts.and_then(|_| self.metadata_url(ctx));
        let asked = Asked {
            challenge: facts.map(|facts| facts.challenge),
            scheme: facts.and_then(|facts| facts.scheme),
            nonce: ctx.nonce.as_deref(),
            allow: &ctx.allow,
            scopes,
            authority: self.route(ctx).filter(|route| route.rule.role.is_authority()).map(|_| {
                AskedOfAuthority {
                    refresh: facts.is_some_and(|facts| facts.refresh),
                    basic: ctx.basic,
                    replay_status: self.replay_status,
                }
            }),
            step_up: self.route(ctx).map(|route| &route.rule.step_up),
            resource_metadata: url.as_deref(),
        };
        respond::answer(denial, &asked)
    }

    /// Whether the edge issues this route's nonces. A service behind a public route may be one that
    /// issues its own, such as an authorization server.
    pub(in crate::edge) fn issues(&self, ctx: &Ctx) -> bool {
        let ours = |rule: &RouteRule| {
            rule.role.reads_token()
                || (rule.role.asks_for_token() && !rule.authority.upstream_nonces)
        };
        self.nonces && self.route(ctx).is_some_and(|route| ours(&route.rule))
    }

    pub(in crate::edge) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether the edge binds what some route's server issues.
    pub(in crate::edge) fn binds(&self) -> bool {
        self.routes.iter().any(|route| self.retrofits(route))
    }

    /// Whether the edge binds what is issued on `route`.
    pub(in crate::edge) fn retrofits(&self, route: &Route) -> bool {
        route.rule.authority.binding == Binding::Retrofit
    }
}
