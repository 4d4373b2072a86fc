//! Which route a request takes: host first, then path, then method.
//!
//! A host with the request's port beats the same host without a port, and that a route for every
//! host. Below the most specific host that has the path at all, an exact path beats a prefix and a
//! longer prefix a shorter one. The method decides only between routes of that one path: a request
//! never falls through to a wider path, which may demand less.

use std::collections::HashMap;

use crate::config::{PathPattern, Route, RouteHost};
use crate::policy::target::split_authority;

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Index of the route.
    pub route: usize,
    /// Index of the host among the route's.
    pub host: usize,
}

/// Why a request goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// No route has this host and path, or the host is none.
    Unknown,
    /// Routes have this host and path, but take only these methods (`Allow`, RFC 9110 section
    /// 10.2.1).
    Method(Vec<String>),
}

/// Every route, ready to be looked up. Built once.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    hosts: HashMap<String, Host>,
    any: Paths,
}

#[derive(Clone, Debug, Default)]
struct Host {
    ports: HashMap<u16, Paths>,
    any_port: Paths,
}

#[derive(Clone, Debug, Default)]
struct Paths {
    exact: HashMap<String, Vec<Candidate>>,
    prefixes: HashMap<String, Vec<Candidate>>,
    /// Bytes of the longest prefix: a long path costs no more lookups than this.
    longest: usize,
}

#[derive(Clone, Debug)]
struct Candidate {
    found: Found,
    /// Empty: all.
    methods: Vec<String>,
}

impl RouteTable {
    /// The table of `routes`.
    #[must_use]
    pub fn new(routes: &[Route]) -> Self {
        let mut table = Self::default();
        for (index, route) in routes.iter().enumerate() {
            for (host_index, host) in route.hosts.iter().enumerate() {
                let found = Found { route: index, host: host_index };
                table.add(host, &route.path, found, &route.methods);
            }
        }
        table
    }

    /// Adds what is found at this host and path; of several with one method, the first is.
    pub(super) fn add(
        &mut self,
        host: &RouteHost,
        path: &PathPattern,
        found: Found,
        methods: &[String],
    ) {
        let paths = match (&host.name, host.port) {
            (None, _) => &mut self.any,
            (Some(name), None) => &mut self.hosts.entry(name.clone()).or_default().any_port,
            (Some(name), Some(port)) => {
                let host = self.hosts.entry(name.clone()).or_default();
                host.ports.entry(port).or_default()
            }
        };
        paths.add(path, Candidate { found, methods: methods.to_vec() });
    }

    /// The route of a request.
    ///
    /// `authority` is the value of `Host` or `:authority`; case, a trailing dot and the default port
    /// 443 make no difference in it. `path` is normalised
    /// ([`normalise_path`](crate::policy::target::normalise_path)). `method` is as sent; `HEAD` is
    /// taken where `GET` is.
    ///
    /// # Errors
    /// When no route takes the request.
    pub fn find(&self, authority: &str, path: &str, method: &str) -> Result<Found, Miss> {
        choose(self.candidates(authority, path).ok_or(Miss::Unknown)?, method)
    }

    /// A route that requests for this path are held to, whatever their method; `None` where there is
    /// none.
    #[must_use]
    pub fn owner(&self, authority: &str, path: &str) -> Option<usize> {
        self.candidates(authority, path)?.first().map(|candidate| candidate.found.route)
    }

    fn candidates(&self, authority: &str, path: &str) -> Option<&[Candidate]> {
        let (host, port) = split_authority(authority)?;
        let host = self.hosts.get(host.strip_suffix('.').unwrap_or(&host));
        let on_port = host.and_then(|host| host.ports.get(&port.unwrap_or(443)));
        let levels = [on_port, host.map(|host| &host.any_port), Some(&self.any)];
        levels.into_iter().flatten().find_map(|paths| paths.find(path))
    }
}

impl Paths {
    fn add(&mut self, path: &PathPattern, candidate: Candidate) {
        let candidates = match path {
            PathPattern::Exact(path) => self.exact.entry(path.clone()).or_default(),
            PathPattern::Prefix(path) => {
                self.longest = self.longest.max(path.len());
                self.prefixes.entry(path.clone()).or_default()
            }
        };
        candidates.push(candidate);
    }

    fn find(&self, path: &str) -> Option<&[Candidate]> {
        if let Some(candidates) = self.exact.get(path) {
            return Some(candidates);
        }
        if self.prefixes.is_empty() {
            return None;
        }
        // A prefix ends where the path does, or before a slash; the longest is tried first.
        let slashes = path.bytes().enumerate().take(self.longest.saturating_add(1));
        let ends = slashes.filter(|(_, byte)| *byte == b'/').map(|(end, _)| end);
        let whole = (path.len() <= self.longest).then_some(path.len());
        whole.into_iter().chain(ends.collect::<Vec<_>>().into_iter().rev()).find_map(|end| {
            let candidates = self.prefixes.get(path.get(..end)?)?;
            Some(candidates.as_slice())
        })
    }
}

fn choose(candidates: &[Candidate], method: &str) -> Result<Found, Miss> {
    let takes = |method: &str| {
        candidates.iter().find(|candidate| {
            candidate.methods.is_empty() || candidate.methods.iter().any(|known| known == method)
        })
    };
    let found = takes(method).or_else(|| (method == "HEAD").then(|| takes("GET")).flatten());
    found.map(|candidate| candidate.found).ok_or_else(|| Miss::Method(allowed(candidates)))
}

fn allowed(candidates: &[Candidate]) -> Vec<String> {
    let mut allowed: Vec<String> = Vec::new();
    for method in candidates.iter().flat_map(|candidate| &candidate.methods) {
        let implied = (method == "GET").then_some("HEAD");
        for method in [method.as_str()].into_iter().chain(implied) {
            if !allowed.iter().any(|known| known == method) {
                allowed.push(method.to_owned());
            }
        }
    }
    allowed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::rule::{AuthorityRule, Role, RouteRule, Scope};
    use crate::policy::step_up::StepUp;

    /// A route from `NAME METHODS HOSTS PATH`, lists by commas, `-` for none.
    fn route(line: &str) -> Route {
        let words: Vec<_> = line.split_whitespace().collect();
        let list = |word: &str| -> Vec<String> {
            word.split(',').filter(|item| *item != "-").map(str::to_owned).collect()
        };
        let host = |text: &String| {
            let (name, port) = split_authority(text).unwrap();
            RouteHost { name: Some(name), port, origin: None }
        };
        let mut hosts: Vec<_> = list(words[2]).iter().map(host).collect();
        if hosts.is_empty() {
            hosts.push(RouteHost { name: None, port: None, origin: None });
        }
        let path = match words[3].strip_suffix("/*") {
            Some(prefix) => PathPattern::Prefix(prefix.to_owned()),
            None => PathPattern::Exact(words[3].to_owned()),
        };
        let rule = RouteRule {
            role: Role::Resource,
            scope: Scope::default(),
            allow_unbound: false,
            audiences: Vec::new(),
            scopes: Vec::new(),
            authority: AuthorityRule::default(),
            step_up: StepUp::default(),
        };
        Route {
            name: words[0].to_owned(),
            hosts,
            path,
            methods: list(words[1]),
            upstream: Some(0),
            rule,
            pass_credentials: false,
            ambiguous_paths: false,
            cors: crate::config::Cors::Off,
            stream_max_age: None,
            resource_metadata: true,
            line: 0,
        }
    }

    const ROUTES: [&str; 13] = [
        "orders      -        api.example.com,api.example.net  /orders/*",
        "orders-new  POST     api.example.com  /orders/new",
        "orders-vip  -        api.example.com  /orders/vip/*",
        "read        GET      api.example.com  /items/*",
        "write       PUT,POST api.example.com  /items/*",
        "head        HEAD     api.example.com  /head",
        "get         GET      api.example.com  /head",
        "slash       -        api.example.com  /exact/",
        "port        -        api.example.com:8443  /orders/*",
        "default     -        std.example.com:443  /*",
        "v6          -        [::1]:8443  /*",
        "status      -        -  /status",
        "rest        GET      -  /rest/*",
    ];

    #[test]
    fn finds_routes() {
        let routes: Vec<_> = ROUTES.iter().map(|line| route(line)).collect();
        let table = RouteTable::new(&routes);
        let cases = [
            ("api.example.com", "/orders/1", "GET", "orders/0"),
            ("api.example.com", "/orders/", "GET", "orders/0"),
            ("api.example.com", "/orders", "GET", "orders/0"),
            ("api.example.net", "/orders", "GET", "orders/1"),
            ("API.EXAMPLE.com", "/orders", "GET", "orders/0"),
            ("api.example.com.", "/orders", "GET", "orders/0"),
            ("api.example.com:443", "/orders", "GET", "orders/0"),
            ("api.example.com:9", "/orders", "GET", "orders/0"),
            ("api.example.com:8443", "/orders/1", "GET", "port/0"),
            ("api.example.com:8443", "/orders/new", "POST", "port/0"),
            ("api.example.com:8443", "/items/1", "GET", "read/0"),
            ("api.example.com", "/orders-old", "GET", "unknown"),
            ("api.example.com", "/Orders", "GET", "unknown"),
            ("api.example.com", "/order", "GET", "unknown"),
            ("api.example.com", "/orders/new", "POST", "orders-new/0"),
            ("api.example.com", "/orders/new", "GET", "allow POST"),
            ("api.example.com", "/orders/new/", "GET", "orders/0"),
            ("api.example.com", "/orders/vip", "GET", "orders-vip/0"),
            ("api.example.com", "/orders/vip/1/2", "GET", "orders-vip/0"),
            ("api.example.com", "/orders/vips", "GET", "orders/0"),
            ("api.example.com", "/items/1", "GET", "read/0"),
            ("api.example.com", "/items/1", "HEAD", "read/0"),
            ("api.example.com", "/items/1", "POST", "write/0"),
            ("api.example.com", "/items/1", "get", "allow GET,HEAD,PUT,POST"),
            ("api.example.com", "/items/1", "DELETE", "allow GET,HEAD,PUT,POST"),
            ("api.example.com", "/head", "HEAD", "head/0"),
            ("api.example.com", "/head", "GET", "get/0"),
            ("api.example.com", "/exact/", "GET", "slash/0"),
            ("api.example.com", "/exact", "GET", "unknown"),
            ("std.example.com", "/", "GET", "default/0"),
            ("std.example.com:443", "/a", "GET", "default/0"),
            ("std.example.com:444", "/a", "GET", "unknown"),
            ("[::1]:8443", "/", "GET", "v6/0"),
            ("[0::0001]:8443", "/", "GET", "v6/0"),
            ("[::1]", "/", "GET", "unknown"),
            ("api.example.com", "/status", "GET", "status/0"),
            ("elsewhere", "/status", "GET", "status/0"),
            ("elsewhere", "/orders", "GET", "unknown"),
            ("elsewhere", "/rest", "POST", "allow GET,HEAD"),
            ("api.example.com", "/", "GET", "unknown"),
            ("", "/status", "GET", "unknown"),
            ("a b", "/status", "GET", "unknown"),
            ("elsewhere:port", "/status", "GET", "unknown"),
            ("user@elsewhere", "/status", "GET", "unknown"),
        ];
        for (authority, path, method, expect) in cases {
            let found = match table.find(authority, path, method) {
                Ok(found) => format!("{}/{}", routes[found.route].name, found.host),
                Err(Miss::Unknown) => "unknown".to_owned(),
                Err(Miss::Method(methods)) => format!("allow {}", methods.join(",")),
            };
            assert_eq!(found, expect, "{method} {authority}{path}");
        }
    }

    #[test]
    fn an_endless_path_costs_a_bounded_number_of_lookups() {
        let table = RouteTable::new(&[route("a - - /a/b/*")]);
        let long = "/".repeat(1 << 20);
        assert_eq!(table.find("h", &long, "GET"), Err(Miss::Unknown));
        assert!(table.find("h", &format!("/a/b{long}"), "GET").is_ok());
    }
}
