use super::*;
use crate::config::load_str;
use crate::config::tests::{SMALL, site};

/// Routes in the place of the small file's only one, each `NAME {members}`.
fn made(routes: &[&str]) -> (RouteTable, ResourceMetadata, Config) {
    let start = SMALL.find("routes:\n").unwrap() + "routes:\n".len();
    let end = SMALL.find("issuers:\n").unwrap();
    let lines = routes
        .iter()
        .enumerate()
        .map(|(index, members)| format!("  - {{name: r{index}, upstream: api, {members}}}\n"));
    let text = format!("{}{}{}", &SMALL[..start], lines.collect::<String>(), &SMALL[end..]);
    let loaded = load_str(&text, site().path());
    let config = loaded.config.unwrap_or_else(|| panic!("{:?}", loaded.findings));
    (RouteTable::new(&config.routes), ResourceMetadata::new(&config), config)
}

/// Whose document is at `authority` and the path, and where each route says that its own is.
fn check(
    routes: &[&str],
    authority: &str,
    path: &str,
    served: Option<&str>,
    urls: &[Option<&str>],
) {
    let (table, metadata, config) = made(routes);
    let found = metadata.find(&table, authority, &format!("{WELL_KNOWN}{path}"));
    let found = found.and_then(|(document, _)| metadata.identifier(document));
    assert_eq!(found.as_deref(), served, "{routes:?}");
    let said = config
        .routes
        .iter()
        .enumerate()
        .map(|(index, route)| metadata.url(&table, authority, index, route.hosts[0].origin?));
    let expect: Vec<_> =
        urls.iter().map(|url| url.map(|url| url.replace('@', WELL_KNOWN))).collect();
    assert_eq!(said.collect::<Vec<_>>(), expect, "{routes:?}");
}

#[test]
fn documents_stand_where_their_routes_do() {
    let one = "hosts: [a.example], path: /x/*";
    check(&[one], "A.example.", "/x", Some("https://a.example/x"), &[Some("https://a.example@/x")]);
    check(
        &[one],
        "a.example:443",
        "/x",
        Some("https://a.example/x"),
        &[Some("https://a.example@/x")],
    );
    check(&[one], "b.example", "/x", None, &[None]);
    check(&[one], "a.example", "/x/", None, &[Some("https://a.example@/x")]);
    // With a port in it the host is another.
    let ported = "hosts: ['a.example:8443'], path: /x/*";
    check(
        &[one, ported],
        "a.example:8443",
        "/x",
        Some("https://a.example:8443/x"),
        &[None, Some("https://a.example:8443@/x")],
    );
    // Every host, and the one origin that it has.
    let any = "origin: 'https://o.example', path: /x";
    check(&[any], "whatever", "/x", Some("https://o.example/x"), &[Some("https://o.example@/x")]);
    check(
        &["hosts: [a.example], path: '/*'", "hosts: [a.example], path: /"],
        "a.example",
        "",
        Some("https://a.example"),
        &[Some("https://a.example@"), Some("https://a.example@")],
    );
}

#[test]
fn what_a_request_cannot_tell_apart_is_said_of_the_first() {
    let inner = "hosts: [a.example], path: /x, methods: [GET]";
    let outer = "hosts: [a.example], path: /x, methods: [PUT], origin: 'https://o.example'";
    let served = Some("https://a.example/x");
    check(&[inner, outer], "a.example", "/x", served, &[Some("https://a.example@/x"), None]);
}

#[test]
fn a_route_for_the_path_has_the_word() {
    let one = "hosts: [a.example], path: /x/*";
    let url = Some("https://a.example@/x");
    for (path, wins) in [
        ("'/.well-known/*'", true),
        ("'/.well-known/oauth-protected-resource/*'", true),
        ("'/.well-known/oauth-protected-resource/x'", true),
        ("'/.well-known/oauth-protected-resource/y'", false),
        ("'/.well-known/oauth/*'", false),
        ("'/*'", false),
    ] {
        let other = format!("hosts: [a.example], path: {path}, role: public, methods: [POST]");
        let (served, url) = if wins { (None, None) } else { (Some("https://a.example/x"), url) };
        check(&[one, &other], "a.example", "/x", served, &[url, None]);
    }
}
