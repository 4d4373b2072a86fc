//! `routes`: which requests go where.

use std::collections::HashMap;

use crate::config::finding::{Place, nearest};
use crate::config::item::{Text, Words};
use crate::config::section::Section;
use crate::config::value::is_token;
use crate::config::{Edge, Issuer, PathPattern, Route, RouteHost};
use crate::policy::rule::{AuthorityRule, Role, RouteRule};
use crate::policy::target::{Origin, normalise_path, split_authority};

use super::authority;
use super::cors::cors;
use super::fresh_auth::{self, Answers};
use super::scope::{SCOPE_KEYS, scope};
use super::security::audiences;
use super::{Names, own_name};

const ROLES: Words<Role> = &[
    ("resource", Role::Resource),
    ("public", Role::Public),
    ("token", Role::Token),
    ("par", Role::Par),
    ("introspection", Role::Introspection),
    ("revocation", Role::Revocation),
    ("metadata", Role::Metadata),
    ("freshAuth", Role::FreshAuth),
];

/// Keys that say something about tokens, beside [`SCOPE_KEYS`].
const TOKEN_KEYS: [&str; 6] =
    ["allowUnbound", "audiences", "scopes", "maxAge", "acrValues", "resourceMetadata"];

/// Keys that have no place where the edge asks the server itself.
const STREAM_KEYS: [&str; 3] = ["methods", "streamMaxAge", "passCredentials"];

/// Methods by the names that RFC 9110 gives them.
const METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT"];

/// A route with its section, for findings about it.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    /// The route.
    pub(super) route: Route,
    /// Its section.
    pub(super) section: Section<'a>,
}

/// What the routes share while they are read.
struct Shared<'u> {
    issuers: &'u [(Issuer, Place)],
    upstreams: &'u [&'u str],
    /// Whether a listener has port 443; `None` when the listeners could not be read.
    port_443: Option<bool>,
    names: Names,
    origins: Vec<Origin>,
}

/// Resolves `routes`, and the external origins in them.
pub(super) fn resolve<'a>(
    root: &Section<'a>,
    upstreams: &[&str],
    issuers: &[(Issuer, Place)],
    edge: Option<&Edge>,
) -> (Vec<Draft<'a>>, Vec<Origin>) {
    if root.lacks("routes") {
        root.error("routes", "at least one is needed");
    }
    let items = root.list("routes", 1000).unwrap_or_default();
    let port_443 =
        edge.map(|edge| edge.listeners.iter().any(|listener| listener.address.port() == 443));
    let names = Names::default();
    let mut shared = Shared { issuers, upstreams, port_443, names, origins: Vec::new() };
    let drafts: Vec<_> = items
        .into_iter()
        .map(|item| {
            let section = item.section();
            Draft { route: route(&section, &mut shared), section }
        })
        .collect();
    check_clashes(&drafts);
    (drafts, shared.origins)
}

fn route(section: &Section<'_>, shared: &mut Shared<'_>) -> Route {
    let name = own_name(section, "name", &mut shared.names);
    let role = section.word("role", ROLES).unwrap_or(Role::Resource);
    let hosts = hosts(section, role, shared);
    let ambiguous_paths = section.flag("allowAmbiguousPaths").unwrap_or(false);
    let path = section.required("path").map(|text| path(&text, ambiguous_paths));
    let upstream = match fresh_auth::answers(section, role) {
        Answers::Edge => {
            fresh_auth::check_edge(section);
            section.text("upstream");
            None
        }
        Answers::Upstream => {
            section.required("upstream").and_then(|text| upstream(&text, shared.upstreams))
        }
    };
    let upstream_nonces = authority::upstream_nonces(section, role);
    let nonce = if upstream_nonces.is_some() { None } else { section.flag("nonce") };
    let authority = AuthorityRule {
        upstream_nonces: upstream_nonces.unwrap_or(false),
        ..authority::rule(section, role, shared.issuers)
    };
    let rule = RouteRule {
        role,
        scope: scope(section, nonce),
        allow_unbound: section.flag("allowUnbound").unwrap_or(false),
        audiences: audiences(section, "audiences"),
        scopes: scopes(section),
        step_up: fresh_auth::step_up(section, role),
        authority,
    };
    check_role_keys(section, role);
    let methods = match role {
        Role::Resource | Role::Public | Role::FreshAuth => {
            fresh_auth::methods(methods(section), role)
        }
        Role::Metadata => vec!["GET".to_owned()],
        Role::Token | Role::Par | Role::Introspection | Role::Revocation => {
            vec!["POST".to_owned()]
        }
    };
    let max_age = section.has("streamMaxAge");
    let stream_max_age = section.duration("streamMaxAge", "0s", ["1s", "365d"]);
    Route {
        name,
        hosts,
        path: path.unwrap_or(PathPattern::Exact(String::new())),
        cors: cors(section, role, &methods),
        stream_max_age: max_age.then_some(stream_max_age),
        methods,
        upstream,
        rule,
        pass_credentials: section.flag("passCredentials").unwrap_or(false),
        resource_metadata: section.flag("resourceMetadata").unwrap_or(true),
        ambiguous_paths,
        line: section.place().line,
    }
}

fn check_role_keys(section: &Section<'_>, role: Role) {
    match role {
        Role::Public => {
            let keys = SCOPE_KEYS.into_iter().chain(TOKEN_KEYS).chain(["origin"]);
            for key in keys.filter(|key| section.has(key)) {
                section.error(key, "has no place on a `public` route, which reads no token");
            }
        }
        Role::Token | Role::Par | Role::Introspection | Role::Revocation | Role::Metadata => {
            let scope = SCOPE_KEYS.into_iter().filter(|_| !role.asks_for_token());
            let keys = TOKEN_KEYS.into_iter().chain(STREAM_KEYS).chain(scope);
            for key in keys.filter(|key| section.item(key).is_some()) {
                section.error(key, format!("has no place where `role` is `{}`", role.name()));
            }
        }
        Role::Resource | Role::FreshAuth if section.has("passCredentials") => {
            let message =
                "belongs to `public` routes; `authorization` of the upstream decides here";
            section.error("passCredentials", message);
        }
        Role::Resource | Role::FreshAuth if section.flag("allowUnbound") == Some(true) => {
            let message = "a token that is bound to nothing passes, whatever default, tenant, audience \
                           and route require";
            section.warn("allowUnbound", message);
        }
        Role::Resource | Role::FreshAuth => {}
    }
}

/// The hosts with their external origins; one entry without a name where the file has none.
fn hosts(section: &Section<'_>, role: Role, shared: &mut Shared<'_>) -> Vec<RouteHost> {
    let configured = section.text("origin").and_then(|text| {
        let origin = Origin::parse(&text.value);
        if origin.is_none() {
            text.error("an origin is expected, as in `https://api.example.com`");
        }
        origin
    });
    let configured = configured.map(|origin| shared.origin(origin));
    let texts = section.texts("hosts", 64).unwrap_or_default();
    if section.lacks("hosts") && role != Role::Public && !section.has("origin") {
        let message = "`hosts` or `origin` is required: the `htu` of a proof is compared with the \
                       route's own origin, never with one that a client's `Host` makes up";
        section.error("hosts", message);
    }
    let proofs = role.reads_token() || role.asks_for_token();
    let mut seen = Names::default();
    let mut warned = false;
    let mut hosts = Vec::new();
    for text in &texts {
        let Some((name, port)) = host(text) else { continue };
        if seen.take(&format!("{name}:{port:?}"), text.item.place.clone()).is_some() {
            text.error(format!("`{}` is written twice", text.written));
        }
        let origin = match role {
            Role::Public => None,
            Role::Resource
            | Role::FreshAuth
            | Role::Token
            | Role::Par
            | Role::Introspection
            | Role::Revocation
            | Role::Metadata => configured.or_else(|| {
                let origin = origin_of(&name, port)?;
                if proofs && port.is_none() && shared.port_443 == Some(false) && !warned {
                    warned = true;
                    text.item.warn(format!(
                        "no listener has port 443: clients must put `{origin}` into `htu`; if they \
                         connect to another port, write `{}:PORT` here or set `origin`",
                        text.written
                    ));
                }
                Some(shared.origin(origin))
            }),
        };
        hosts.push(RouteHost { name: Some(name), port, origin });
    }
    if texts.is_empty() {
        hosts.push(RouteHost { name: None, port: None, origin: configured });
    }
    hosts
}

/// The host, without the trailing dot that an absolute name may have.
fn host(text: &Text<'_>) -> Option<(String, Option<u16>)> {
    let found = split_authority(&text.value).map(|(host, port)| {
        let host = host.strip_suffix('.').map(str::to_owned).unwrap_or(host);
        (host, port)
    });
    let label = |label: &str| (1..=63).contains(&label.len());
    let found = found.filter(|(host, _)| {
        host.starts_with('[') || (host.len() <= 253 && host.split('.').all(label))
    });
    if found.is_none() {
        text.error(match text.value.contains('*') {
            true => "wildcards are not available in this version: name each host",
            false => "a host is expected, as in `api.example.com` or `localhost:8443`",
        });
    }
    found
}

fn origin_of(host: &str, port: Option<u16>) -> Option<Origin> {
    match port.filter(|port| *port != 443) {
        Some(port) => Origin::parse(&format!("https://{host}:{port}")),
        None => Origin::parse(&format!("https://{host}")),
    }
}

impl Shared<'_> {
    /// The index of `origin`.
    fn origin(&mut self, origin: Origin) -> usize {
        self.origins.iter().position(|known| *known == origin).unwrap_or_else(|| {
            self.origins.push(origin);
            self.origins.len() - 1
        })
    }
}

fn path(text: &Text<'_>, ambiguous_paths: bool) -> PathPattern {
    let (path, prefix) = match text.value.strip_suffix("/*") {
        Some(path) => (path, true),
        None => (text.value.as_str(), false),
    };
    check_path(text, if prefix && path.is_empty() { "/" } else { path }, ambiguous_paths);
    if prefix { PathPattern::Prefix(path.to_owned()) } else { PathPattern::Exact(path.to_owned()) }
}

/// A route is compared with normalised paths, so that any other could never match.
fn check_path(text: &Text<'_>, path: &str, ambiguous_paths: bool) {
    let written = text.written;
    if path.contains(['?', '#']) {
        return text
            .error(format!("`{written}` has a query or fragment; only the path is compared"));
    }
    if path.contains('*') {
        return text
            .error(format!("`{written}`: `*` stands only alone at the end, as in `/orders/*`"));
    }
    let Some(normal) = normalise_path(path) else {
        return text.error(format!("`{written}` is no path; `/orders` or `/orders/*` is expected"));
    };
    if normal.path != path {
        text.error(format!("can never match: requests are normalised to `{}`", normal.path));
    } else if normal.ambiguous && !ambiguous_paths {
        text.error("can never match: such paths are refused without `allowAmbiguousPaths: true`");
    }
}

fn methods(section: &Section<'_>) -> Vec<String> {
    let Some(texts) = section.texts("methods", 64) else { return Vec::new() };
    if section.lacks("methods") {
        section.error("methods", "is empty; leave it out for every method");
    }
    let mut methods = Vec::new();
    for text in texts {
        let upper = text.value.to_ascii_uppercase();
        if !is_token(&text.value) {
            text.error(format!("`{}` is no method", text.written));
        } else if upper == "CONNECT" {
            text.error("the edge takes no CONNECT");
        } else if upper != text.value && METHODS.contains(&upper.as_str()) {
            text.error(format!("methods are case-sensitive; write `{upper}`"));
        } else if !methods.contains(&text.value) {
            methods.push(text.value);
        }
    }
    methods
}

fn scopes(section: &Section<'_>) -> Vec<String> {
    let texts = section.texts("scopes", 64).unwrap_or_default();
    for text in &texts {
        // RFC 6749 section 3.3.
        let token = |byte: u8| byte.is_ascii_graphic() && !b"\"\\".contains(&byte);
        if !text.value.bytes().all(token) {
            text.error("one scope an item is expected, without spaces, `\"` or `\\`");
        }
    }
    texts.into_iter().map(|text| text.value).collect()
}

fn upstream(text: &Text<'_>, upstreams: &[&str]) -> Option<usize> {
    let found = upstreams.iter().position(|name| *name == text.value);
    if found.is_none() {
        let written = text.written;
        text.error(match nearest(&text.value, upstreams.iter().copied()) {
            Some((near, _)) => format!("no upstream `{written}`; the nearest is `{near}`"),
            None => format!("no upstream `{written}`: `upstreams` has none"),
        });
    }
    found
}

/// Refuses two routes between which nothing decides: same host and path, and a method in both.
fn check_clashes(drafts: &[Draft<'_>]) {
    let mut seen: HashMap<_, Vec<&Draft<'_>>> = HashMap::new();
    // A path that could not be read is empty.
    let nowhere = PathPattern::Exact(String::new());
    for draft in drafts.iter().filter(|draft| draft.route.path != nowhere) {
        let mut clash: Option<&Draft<'_>> = None;
        for host in &draft.route.hosts {
            let same = seen.entry((&host.name, host.port, &draft.route.path)).or_default();
            let overlaps =
                |other: &&&Draft<'_>| overlap(&draft.route.methods, &other.route.methods);
            clash = clash.or(same.iter().find(overlaps).copied());
            same.push(draft);
        }
        if let Some(other) = clash.filter(|other| !std::ptr::eq(*other, draft)) {
            let Place { line, .. } = other.section.place();
            let name = &other.route.name;
            let message =
                format!("route `{name}` (line {line}) has the same host, path and method");
            draft.section.error("path", message);
        }
    }
}

fn overlap(a: &[String], b: &[String]) -> bool {
    a.is_empty() || b.is_empty() || a.iter().any(|method| b.contains(method))
}
