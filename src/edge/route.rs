//! Which route serves a request.

use crate::config::{PathPattern, Route};

/// The routes, ready for look-up.
#[derive(Debug)]
pub struct RouteTable {
    routes: Vec<Route>,
}

/// A route and the host of it that matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Index into the configured routes.
    pub route: usize,
    /// Index into the route's hosts.
    pub host: usize,
}

/// Why no route serves a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// No route has this host and path.
    Unknown,
    /// One has, for these methods.
    Method(Vec<String>),
}

impl RouteTable {
    /// A table of `routes`.
    #[must_use]
    pub fn new(routes: &[Route]) -> Self {
        Self { routes: routes.to_vec() }
    }

    /// The route of a request.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, authority: &str, path: &str, method: &str) -> Result<Found, Miss> {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let mut allowed = Vec::new();
        for (index, route) in self.routes.iter().enumerate() {
            let matched = route.hosts.iter().position(|known| match &known.name {
                Some(name) => name == host,
                None => true,
            });
            let fits = match &route.path {
                PathPattern::Exact(exact) => exact == path,
                PathPattern::Prefix(prefix) => path
                    .strip_prefix(prefix.trim_end_matches('/'))
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            };
            let host = if route.hosts.is_empty() { Some(0) } else { matched };
            let (Some(host), true) = (host, fits) else { continue };
            if route.methods.is_empty() || route.methods.iter().any(|known| known == method) {
                return Ok(Found { route: index, host });
            }
            allowed.extend(route.methods.iter().cloned());
        }
        if allowed.is_empty() { Err(Miss::Unknown) } else { Err(Miss::Method(allowed)) }
    }
}
