//! Preflights of browsers: which route they ask for, and who answers them.

use http::HeaderMap;

use super::ctx::Ctx;
use super::parts::{Parts, Permit};
use super::view::Target;
use crate::config::{Cors, Route};
use crate::policy::cors::Preflight;
use crate::policy::denial::Denial;
use crate::policy::presented::names_access_token;

impl Parts {
    /// The route that a preflight asks for, where it has a `cors`: `methods` need not list OPTIONS.
    pub(super) fn asked_for(
        &self,
        target: &Target,
        preflight: &Preflight<'_>,
        ctx: &mut Ctx,
    ) -> Option<&Route> {
        let found = self.table.find(&target.authority, &target.path, preflight.method).ok()?;
        let route = self.routes.get(found.route).filter(|route| route.cors != Cors::Off)?;
        ctx.route = Some(found.route);
        Some(route)
    }

    pub(super) fn preflight(
        &self,
        preflight: &Preflight<'_>,
        route: &Route,
        target: &Target,
        headers: &HeaderMap,
    ) -> Result<Permit, Denial> {
        match &route.cors {
            Cors::Edge(rules) => rules.grant(preflight, headers).map(Permit::Preflight),
            Cors::Off | Cors::Upstream => {
                let query = target.query.as_deref();
                if route.rule.role.reads_token() && query.is_some_and(names_access_token) {
                    return Err(Denial::TokenInQuery);
                }
                Ok(Permit::Forward(self.common().gate.admit_preflight(preflight)))
            }
        }
    }

    /// The `cors` of the request's route.
    pub(super) fn cors(&self, ctx: &Ctx) -> &Cors {
        self.route(ctx).map_or(&Cors::Off, |route| &route.cors)
    }
}
