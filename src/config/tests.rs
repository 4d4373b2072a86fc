//! Whole files in, findings out.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::policy::jose::Algorithm;
use crate::policy::rule::{Demand, Mode, Role};
use crate::policy::token::TokenType;

/// The smallest file that serves something; its lines are counted on by the tests.
pub(crate) const SMALL: &str = r#"schemaVersion: 1
edge:
  listeners:
    - name: public
      address: "127.0.0.1:8443"
      tls:
        certificates: [{certificate: pki/edge.pem, key: pki/edge.key}]
        clientCertificates: request
        clientAuthorities: [pki/clients-ca.pem]
upstreams:
  api:
    servers: ["127.0.0.1:9000"]
routes:
  - name: orders
    hosts: ["localhost:8443"]
    path: /orders/*
    upstream: api
issuers:
  - issuer: https://as.example.com
    audiences: [api]
    jwks: {file: keys/jwks.json}
"#;

/// A directory with every file that [`SMALL`] and the reference name.
pub(crate) fn site() -> tempfile::TempDir {
    let site = tempfile::tempdir().unwrap();
    let put = |name: &str, content: &[u8]| {
        let path = site.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    for name in [
        "pki/edge.pem",
        "pki/clients-ca.pem",
        "pki/as-ca.pem",
        "pki/as-client.pem",
        "pki/services-ca.pem",
        "pki/redis-ca.pem",
        "pki/edge-client.pem",
    ] {
        put(name, certificate.as_bytes());
    }
    put("pki/edge.key", key.serialize_pem().as_bytes());
    put("pki/edge-client.key", key.serialize_pem().as_bytes());
    put("pki/as-client.key", key.serialize_pem().as_bytes());
    put("keys/introspection.secret", b"0123456789abcdef\n");
    put("keys/redis.password", b"0123456789abcdef\n");
    put("keys/collector.header", b"Bearer 0123456789abcdef\n");
    put("keys/sentinel.password", b"0123456789abcdef\n");
    put("pki/other.key", KeyPair::generate().unwrap().serialize_pem().as_bytes());
    put("pki/open.key", key.serialize_pem().as_bytes());
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(site.path().join("pki/open.key"), open).unwrap();
    put("pki/clients.crl", revocation_list(2100).as_bytes());
    put("pki/old.crl", revocation_list(2021).as_bytes());
    put("keys/nonce.key", &[7; 32]);
    let made = UnixTime::from_secs(1_800_000_000);
    let capsules = site.path().join("keys/capsules");
    crate::store::keys::init(&capsules, crate::store::keys::Algorithm::EdDsa, made).unwrap();
    put("keys/open/master-1.json", b"{}");
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(site.path().join("keys/open/master-1.json"), open).unwrap();
    std::fs::create_dir(site.path().join("keys/none")).unwrap();
    put("networks.mmdb", &crate::store::networks::sample::database(&[], 1_800_000_000));
    put("keys/hex.key", format!("{}\n", "0f".repeat(32)).as_bytes());
    put("keys/short.key", &[7; 31]);
    put("keys/open.key", &[7; 32]);
    std::fs::set_permissions(
        site.path().join("keys/open.key"),
        std::fs::Permissions::from_mode(0o604),
    )
    .unwrap();
    put("pki/broken.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    put("pki/empty.pem", b"");

    let (x, y) = key.public_key_raw()[1..].split_at(32);
    let encoded = |bytes: &[u8]| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
    };
    let (x, y) = (encoded(x), encoded(y));
    let jwk = serde_json::json!({"kty": "EC", "crv": "P-256", "kid": "1", "x": x, "y": y});
    let jwks = serde_json::json!({ "keys": [jwk] }).to_string();
    put("keys/jwks.json", jwks.as_bytes());
    put("keys/legacy-jwks.json", jwks.as_bytes());
    site
}

/// A list that revokes nothing, due for the next one in this year.
fn revocation_list(next_update: i32) -> String {
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = rcgen::CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let list = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(next_update, 1, 1),
        crl_number: rcgen::SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    list.signed_by(&issuer).unwrap().pem().unwrap()
}

/// The findings of `text`, as they are printed.
pub(crate) fn findings(text: &str, base: &Path) -> Vec<String> {
    load_str(text, base).findings.iter().map(ToString::to_string).collect()
}

const REFERENCE: &str = include_str!("../../conf/authority.yaml");

#[test]
fn the_reference_loads_without_a_finding() {
    let site = site();
    let loaded = load_str(REFERENCE, site.path());
    assert_eq!(loaded.findings, []);
    let config = loaded.config.unwrap();
    assert_eq!(config.routes.len(), 8);
    assert_eq!(config.edge.limits.replay_entries, 1_000_000);
}

/// The stages of a roll-out, each with what `check` must warn of, and nothing else.
#[test]
fn the_stages_of_a_rollout_are_accepted() {
    let passes = "their senders' proof or certificate";
    for (name, text, warnings) in [
        ("1", include_str!("../../deploy/rollout/1-telemetry.yaml"), vec!["allowUnbound", "mode"]),
        ("2", include_str!("../../deploy/rollout/2-observe.yaml"), vec!["mode"]),
        ("3", include_str!("../../deploy/rollout/3-tenants.yaml"), vec!["mode"]),
        ("4", include_str!("../../deploy/rollout/4-percentage.yaml"), vec![passes]),
        ("5", include_str!("../../deploy/rollout/5-enforce.yaml"), vec![]),
    ] {
        let loaded = load_str(text, site().path());
        assert!(loaded.config.is_some(), "{name}: {:?}", loaded.findings);
        let found: Vec<_> = loaded.findings.iter().map(ToString::to_string).collect();
        let expected = found.len() == warnings.len()
            && warnings.iter().all(|part| found.iter().any(|finding| finding.contains(part)));
        assert!(expected, "{name}: {found:?}");
    }
}

#[test]
fn the_reference_has_every_key() {
    let site = site();
    let loaded = load_str(REFERENCE, site.path());
    let value: serde_yaml::Value = serde_yaml::from_str(REFERENCE).unwrap();
    let missing: Vec<_> =
        loaded.known_keys.iter().filter(|path| !holds(&value, path.split('.'))).collect();
    assert_eq!(missing, Vec::<&String>::new());
    assert!(loaded.known_keys.len() > 90, "{}", loaded.known_keys.len());
}

/// Whether `value` has the key at `path` in any of its lists and names.
fn holds<'a>(value: &serde_yaml::Value, mut path: impl Iterator<Item = &'a str> + Clone) -> bool {
    let Some(step) = path.next() else { return true };
    let (key, in_list) = match step.strip_suffix("[]") {
        Some(key) => (key, true),
        None => (step, false),
    };
    let below: Vec<_> = match key {
        "<name>" => value.as_mapping().into_iter().flat_map(|all| all.values()).collect(),
        key => value.get(key).into_iter().collect(),
    };
    below.into_iter().any(|value| match in_list {
        true => value.as_sequence().is_some_and(|all| all.iter().any(|v| holds(v, path.clone()))),
        false => holds(value, path.clone()),
    })
}

#[test]
fn a_small_file_gets_the_documented_defaults() {
    let site = site();
    let loaded = load_str(SMALL, site.path());
    assert_eq!(loaded.findings, []);
    let config = loaded.config.unwrap();

    let default = config.rules.default;
    assert_eq!((default.demand, default.mode, default.nonce), (Demand::Any, Mode::Enforce, true));
    let algorithms: Vec<_> = default.algorithms.iter().map(Algorithm::name).collect();
    assert_eq!(algorithms, ["ES256", "ES384", "EdDSA", "Ed25519", "PS256"]);
    assert!(config.rules.dpop_enabled && config.rules.mtls_enabled);
    assert!(!config.rules.unknown_tenant_allowed);

    let seconds = Duration::from_secs;
    assert_eq!(config.dpop.proof_lifetime, seconds(120));
    assert_eq!(config.dpop.clock_skew, seconds(30));
    assert_eq!(config.dpop.replay_window, seconds(300));
    assert_eq!(config.dpop.nonce_ttl, Some(seconds(600)));
    assert!(!config.dpop.nonce_replaces_iat);

    let listener = &config.edge.listeners[0];
    let tls = listener.tls.as_ref().unwrap();
    assert!(tls.tls12 && tls.h2);
    assert!(!listener.proxy_protocol && listener.proxies.is_empty());
    assert_eq!(listener.head_timeout, seconds(15));
    assert_eq!(config.edge.admin, "127.0.0.1:9901".parse().unwrap());
    assert_eq!(config.edge.limits.head_bytes, 32 * 1024);
    assert!(config.edge.threads >= 1);

    let route = &config.routes[0];
    assert_eq!(route.path, PathPattern::Prefix("/orders".to_owned()));
    assert_eq!(route.rule.role, Role::Resource);
    assert_eq!(route.line, 14);
    assert_eq!(config.origins[route.hosts[0].origin.unwrap()].as_str(), "https://localhost:8443");

    let issuer = &config.issuers[0];
    assert_eq!(issuer.rules.token_type, TokenType::AccessToken);
    assert!(Algorithm::ALL.iter().all(|algorithm| issuer.rules.algorithms.contains(*algorithm)));
    assert!(matches!(&issuer.jwks, Some(JwksSource::File(path)) if path.is_absolute()));
}

#[test]
fn json_is_read_too() {
    let site = site();
    let value: serde_yaml::Value = serde_yaml::from_str(SMALL).unwrap();
    for json in [serde_json::to_string(&value), serde_json::to_string_pretty(&value)] {
        assert_eq!(findings(&json.unwrap(), site.path()), Vec::<String>::new());
    }
}

#[test]
fn durations_have_two_forms_and_versions_may_be_numbers() {
    let site = site();
    let text = SMALL.replace("clientCertificates:", "minVersion: 1.3\n        clientCertificates:")
        + "security:\n  senderConstraints:\n    dpop: {proofLifetime: 90s, allowedClockSkew: 00:00:10}\n";
    let config = load_str(&text, site.path()).config.unwrap();
    assert!(!config.edge.listeners[0].tls.as_ref().unwrap().tls12);
    assert_eq!(config.dpop.proof_lifetime, Duration::from_secs(90));
    assert_eq!(config.dpop.clock_skew, Duration::from_secs(10));
}

#[test]
fn the_environment_fills_in_and_is_never_printed() {
    let site = site();
    // Set by cargo for every test.
    let text = SMALL.replace("https://as.example.com", "https://${ENV:CARGO_PKG_NAME}.example.com");
    let config = load_str(&text, site.path()).config.unwrap();
    assert_eq!(config.issuers[0].rules.issuer, "https://holdfast.example.com");

    let text = SMALL
        .replace("upstream: api", "upstream: '${ENV:CARGO_PKG_NAME}'")
        .replace("keys/jwks.json", "'${ENV:CARGO_PKG_NAME}/x'")
        .replace("https://as.example.com", "'${ENV:HOLDFAST_NOT_SET}'")
        .replace("127.0.0.1:9000", "${ENV:CARGO_PKG_NAME")
        .replace("name: orders", "name: orders\n    require: '${ENV:CARGO_PKG_NAME}'");
    let found = findings(&text, site.path());
    assert_eq!(
        found,
        [
            "authority.yaml:11: warning: upstreams.api: no route uses it",
            "authority.yaml:12: upstreams.api.servers[0]: `${` begins `${ENV:NAME}`, with a name of \
             letters, digits and `_`",
            "authority.yaml:15: routes[0].require: `none`, `any`, `dpop`, `mtls` or `both` is expected, \
             not `${ENV:CARGO_PKG_NAME}`",
            "authority.yaml:18: routes[0].upstream: no upstream `${ENV:CARGO_PKG_NAME}`; the nearest is \
             `api`",
            "authority.yaml:20: issuers[0].issuer: the environment variable HOLDFAST_NOT_SET is not \
             set, or no text",
            "authority.yaml:22: issuers[0].jwks.file: cannot read `${ENV:CARGO_PKG_NAME}/x`: No such \
             file or directory (os error 2)",
        ]
    );
    assert!(!found.concat().contains("holdfast"), "a value of the environment was printed");
}

#[test]
fn every_error_comes_at_once() {
    let site = site();
    let text = "schemaVersion: 2\nedge:\n  listners: []\nroutes:\n  - path: orders\nissuers: 3\n";
    assert_eq!(
        findings(text, site.path()),
        [
            "authority.yaml:1: schemaVersion: must be from 1 to 1",
            "authority.yaml:2: edge.listeners: at least one listener is needed",
            "authority.yaml:3: edge.listners: unknown key; did you mean `listeners`?",
            "authority.yaml:5: routes[0].name: is required",
            "authority.yaml:5: routes[0].hosts: `hosts` or `origin` is required: the `htu` of a proof \
             is compared with the route's own origin, never with one that a client's `Host` makes up",
            "authority.yaml:5: routes[0].path: `orders` is no path; `/orders` or `/orders/*` is expected",
            "authority.yaml:5: routes[0].upstream: is required",
            "authority.yaml:6: issuers: a list is expected, not a number",
        ]
    );
}

/// One change to [`SMALL`] and what is then said, a case a block: the old text (`+` appends), the
/// new text, the findings without the file's name.
const REFUSED: &str = include_str!("tests/refused.txt");

#[test]
fn each_fault_has_its_finding() {
    let site = site();
    let mut faults = Vec::new();
    for case in REFUSED.trim_end().trim_end_matches("====").split("\n====\n") {
        let [old, new, expect] = case.split("\n---\n").collect::<Vec<_>>()[..] else {
            panic!("no case: {case}")
        };
        assert!(old == "+" || SMALL.contains(old), "not in the small file: {old}");
        let text = match old {
            "+" => format!("{SMALL}{new}\n"),
            old => SMALL.replacen(old, new, 1),
        };
        let found = findings(&text, site.path()).join("\n").replace("authority.yaml:", "");
        let found = found.replace(&site.path().display().to_string(), "@");
        if found != expect.trim_end() {
            faults.push(format!("{old} -> {new}\nfound:\n{found}\nexpected:\n{expect}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n====\n"));
}

#[test]
fn a_name_without_an_address_is_a_warning() {
    let site = site();
    let servers = "[\"my_host.invalid:9000\"]\n    tls: {authorities: [pki/services-ca.pem]}";
    let text = SMALL.replace("[\"127.0.0.1:9000\"]", "[\"no-such-host.invalid:9000\"]");
    let loaded = load_str(&text, site.path());
    let found: Vec<_> = loaded.findings.iter().map(ToString::to_string).collect();
    let warning = "authority.yaml:12: warning: upstreams.api.servers[0]: \
                   `no-such-host.invalid:9000` has no address now";
    assert!(found.len() == 1 && found[0].starts_with(warning), "{found:?}");
    let upstream = &loaded.config.unwrap().upstreams[0];
    assert!(upstream.servers[0].named.is_some() && upstream.servers[0].addresses.is_empty());

    // What a certificate cannot have must be said otherwise.
    let found = findings(&SMALL.replace("[\"127.0.0.1:9000\"]", servers), site.path());
    let error = "authority.yaml:13: upstreams.api.tls.serverName: is required: `my_host.invalid` is \
                 no name that a certificate can have";
    assert!(found.iter().any(|finding| finding == error), "{found:?}");
}

#[test]
fn a_file_is_read_from_its_own_directory() {
    let site = site();
    let path = site.path().join("edge.yaml");
    std::fs::write(&path, SMALL).unwrap();
    assert!(load(&path).config.is_some());

    let name = path.display();
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert_eq!(load(&path).findings[0].to_string(), format!("{name}: cannot read it: not UTF-8"));
    std::fs::write(&path, " ".repeat(raw::MAX_BYTES + 1)).unwrap();
    let expect = format!("{name}: cannot read it: longer than 1048576 bytes");
    assert_eq!(load(&path).findings[0].to_string(), expect);
    let loaded = load(site.path());
    let expect = format!("{}: cannot read it: not a regular file", site.path().display());
    assert_eq!(loaded.findings[0].to_string(), expect);
    assert!(loaded.config.is_none());
}

/// Values that some key takes, and some that none does.
const SCALARS: [&str; 24] = [
    "true",
    "0",
    "-1",
    "1",
    "18446744073709551616",
    "1e400",
    ".nan",
    "2m",
    "99999999999999999d",
    "00:02:00",
    "any",
    "both",
    "/a/*",
    "[::1]:1",
    "a.example",
    "https://a.example",
    "''",
    "~",
    "'${ENV:'",
    "'${ENV:PATH}'",
    "public",
    "[]",
    "{}",
    "!t 1",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_text_makes_it_panic(text in "[ \\-:{}\\[\\],&*!|>'\"%@`#?~a-c0-9\n\t\u{e9}]{0,200}") {
        let _ = load_str(&text, Path::new("/nowhere"));
    }

    /// The reference with some values replaced and some lines gone gets past the parsers.
    #[test]
    fn no_change_to_the_reference_makes_it_panic(
        changes in prop::collection::vec((0..400_usize, 0..SCALARS.len() + 1), 1..12)
    ) {
        let mut lines: Vec<String> = REFERENCE
            .lines()
            .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
            .map(str::to_owned)
            .collect();
        for (at, scalar) in changes {
            let at = at % lines.len();
            let line = &lines[at];
            lines[at] = match (SCALARS.get(scalar), line.split_once(": ")) {
                (Some(scalar), Some((key, _))) => format!("{key}: {scalar}"),
                (Some(scalar), None) => format!("{line} {scalar}"),
                (None, _) => String::new(),
            };
        }
        let _ = load_str(&lines.join("\n"), Path::new("/nowhere"));
    }
}
