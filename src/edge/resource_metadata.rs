//! The metadata of protected resources (RFC 9728), which the edge serves by itself: nothing needs to
//! be configured, and what it says follows from the routes.

use std::collections::HashMap;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE,
};
use http::{Method, StatusCode};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::ctx::Ctx;
use super::headers::REQUEST_ID;
use super::parts::Parts;
use super::respond;
use super::route::{Found, RouteTable};
use crate::config::{ClientCertificates, Config, ListenerTls, PathPattern, Route};
use crate::policy::resource_metadata::{Grounds, Listed, Resource, WELL_KNOWN, document};
use crate::policy::target::Origin;
use crate::policy::token::IssuerRules;

/// How long a document may be cached.
const MAX_AGE: &str = "public, max-age=300";

/// Every document, made once for each configuration.
#[derive(Debug, Default)]
pub struct ResourceMetadata {
    documents: Vec<Described>,
    /// Which of them is served where.
    table: RouteTable,
    /// The document of a route at an external origin.
    of: HashMap<(usize, usize), usize>,
    /// Routes that a document gives way to.
    explicit: Vec<bool>,
}

/// A resource's document.
#[derive(Debug)]
struct Described {
    resource: Resource,
    /// Index of its external origin.
    origin: usize,
    body: Bytes,
}

impl ResourceMetadata {
    /// What `config` makes of it.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let mut made =
            Self { explicit: config.routes.iter().map(is_explicit).collect(), ..Self::default() };
        let mut listed: Vec<(Resource, usize, Vec<Listed<'_>>)> = Vec::new();
        for (index, route) in config.routes.iter().enumerate() {
            for origin in origins(route) {
                let Some(resource) = config.origins.get(origin).and_then(|it| resource(it, route))
                else {
                    continue;
                };
                let one = Listed { rule: &route.rule, told: route.resource_metadata };
                let known = listed.iter().position(|(known, ..)| *known == resource);
                let place = known.unwrap_or(listed.len());
                match listed.get_mut(place) {
                    Some((_, _, routes)) => routes.push(one),
                    None => listed.push((resource, origin, vec![one])),
                }
                if route.resource_metadata {
                    made.of.insert((index, origin), place);
                }
            }
        }
        let issuers: Vec<IssuerRules> =
            config.issuers.iter().map(|issuer| issuer.rules.clone()).collect();
        let certificates = asks_for_certificates(config);
        let grounds = Grounds { rules: &config.rules, issuers: &issuers, certificates };
        for (resource, origin, routes) in listed {
            let document = document(&resource, &routes, &grounds);
            let body = Bytes::from(serde_json::to_vec(&document).unwrap_or_default());
            made.documents.push(Described { resource, origin, body });
        }
        made.place(&config.routes);
        made
    }

    /// Puts each document at the hosts of its routes.
    fn place(&mut self, routes: &[Route]) {
        for (index, route) in routes.iter().enumerate() {
            for host in &route.hosts {
                let place = host.origin.and_then(|origin| self.of.get(&(index, origin)));
                let Some(place) = place.copied() else { continue };
                let Some(described) = self.documents.get(place) else { continue };
                let path = PathPattern::Exact(described.resource.metadata_path());
                let found = Found { route: place, host: 0 };
                // The first to come stays: where two origins have one host, a request says of neither
                // that it is meant.
                self.table.add(host, &path, found, &["GET".to_owned()]);
            }
        }
    }

    /// The document that a request for `path` at `authority` is answered with, with its external
    /// origin. A route of `routes` that has the path, and not only a wide prefix of it, comes first.
    #[must_use]
    pub fn find(&self, routes: &RouteTable, authority: &str, path: &str) -> Option<(usize, usize)> {
        if !path.starts_with(WELL_KNOWN) {
            return None;
        }
        let found = self.table.find(authority, path, "GET").ok()?.route;
        let claimed = routes.owner(authority, path);
        if claimed.and_then(|route| self.explicit.get(route)).is_some_and(|explicit| *explicit) {
            return None;
        }
        Some((found, self.documents.get(found)?.origin))
    }

    /// Where the metadata of a route is, for a request to `authority`; `None` where none is served.
    #[must_use]
    pub fn url(
        &self,
        routes: &RouteTable,
        authority: &str,
        route: usize,
        origin: usize,
    ) -> Option<String> {
        let place = *self.of.get(&(route, origin))?;
        let resource = &self.documents.get(place)?.resource;
        let (served, _) = self.find(routes, authority, &resource.metadata_path())?;
        (served == place).then(|| resource.metadata_url())
    }

    /// The resource that a document describes.
    #[must_use]
    pub fn identifier(&self, document: usize) -> Option<String> {
        self.documents.get(document).map(|described| described.resource.identifier())
    }

    /// Answers with a document.
    ///
    /// # Errors
    /// When the client is gone.
    pub(super) async fn send(
        &self,
        session: &mut Session,
        document: usize,
        id: &str,
    ) -> pingora::Result<()> {
        let read = matches!(session.req_header().method, Method::GET | Method::HEAD);
        let body = self.documents.get(document).filter(|_| read).map(|it| it.body.clone());
        let body = body.unwrap_or_default();
        let status = if read { StatusCode::OK } else { StatusCode::METHOD_NOT_ALLOWED };
        let mut head = ResponseHeader::build(status, Some(8))?;
        if read {
            head.insert_header(CONTENT_TYPE, "application/json")?;
            head.insert_header(CACHE_CONTROL, MAX_AGE)?;
        } else {
            head.insert_header(ALLOW, "GET, HEAD")?;
            head.insert_header(CACHE_CONTROL, "no-store")?;
        }
        head.insert_header(CONTENT_LENGTH, body.len())?;
        head.insert_header(REQUEST_ID, id)?;
        // For everybody, and without credentials: there is nothing that a page could not read anyhow.
        head.insert_header(ACCESS_CONTROL_ALLOW_ORIGIN, "*")?;
        respond::write(session, head, body).await
    }
}

impl Parts {
    /// Where the metadata of the request's route is.
    pub(super) fn metadata_url(&self, ctx: &Ctx) -> Option<String> {
        let authority = &ctx.target.as_ref()?.authority;
        self.metadata.url(&self.table, authority, ctx.route?, ctx.origin?)
    }
}

/// The external origins of a route that reads tokens, each once.
fn origins(route: &Route) -> Vec<usize> {
    let mut origins = Vec::new();
    for origin in route.hosts.iter().filter_map(|host| host.origin) {
        if route.rule.role.reads_token() && !origins.contains(&origin) {
            origins.push(origin);
        }
    }
    origins
}

fn resource(origin: &Origin, route: &Route) -> Option<Resource> {
    match &route.path {
        PathPattern::Exact(path) | PathPattern::Prefix(path) => Resource::new(origin, path),
    }
}

/// Whether a route is meant for well-known paths: it has the whole path, or a prefix among them.
fn is_explicit(route: &Route) -> bool {
    match &route.path {
        PathPattern::Exact(_) => true,
        PathPattern::Prefix(prefix) => {
            prefix == "/.well-known" || prefix.starts_with("/.well-known/")
        }
    }
}

/// Whether a client can show a certificate: a listener asks for one, or one in front hands it on.
fn asks_for_certificates(config: &Config) -> bool {
    config.edge.listeners.iter().any(|listener| {
        let policies = listener.tls.iter().flat_map(ListenerTls::policies);
        policies.into_iter().any(|tls| tls.client_certificates != ClientCertificates::Off)
            || listener.proxies.iter().any(|proxy| proxy.certificate.is_some())
    })
}

#[cfg(test)]
mod tests;
