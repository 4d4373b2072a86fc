//! `tls` of a listener: certificates, client certificates and their revocation, policies by SNI.

use std::path::PathBuf;

use crate::config::files;
use crate::config::item::{Text, Words};
use crate::config::section::Section;
use crate::config::{ClientCertificates, ListenerTls, Revocation, TlsPolicy};

use super::{Names, own_name};

const CLIENT_CERTIFICATES: Words<ClientCertificates> = &[
    ("off", ClientCertificates::Off),
    ("request", ClientCertificates::Request),
    ("require", ClientCertificates::Require),
];

/// Whether TLS 1.2 is offered.
const MIN_VERSIONS: Words<bool> = &[("1.2", true), ("1.3", false)];

/// Whether a protocol is `h2`.
const ALPN: Words<bool> = &[("h2", true), ("http/1.1", false)];

/// Whether only the client's own certificate is looked up.
const CHECKED: Words<bool> = &[("chain", false), ("leaf", true)];

/// Whether a certificate whose issuer has no list is taken.
const UNKNOWN: Words<bool> = &[("refuse", false), ("allow", true)];

/// Whether a list past its `nextUpdate` counts.
const EXPIRED: Words<bool> = &[("refuse", false), ("accept", true)];

/// Resolves `tls` of a listener, with its policies.
pub(super) fn listener(section: &Section<'_>) -> ListenerTls {
    let mut tls = policy(section);
    tls.handshake_timeout = section.duration("handshakeTimeout", "10s", ["100ms", "1m"]);
    let (mut names, mut hosts) = (Names::default(), Names::default());
    let items = section.list("policies", 64).unwrap_or_default().into_iter();
    tls.policies = items
        .map(|item| {
            let section = item.section();
            let name = own_name(&section, "name", &mut names);
            let hosts = policy_hosts(&section, &mut hosts);
            TlsPolicy { name, hosts, tls: policy(&section) }
        })
        .collect();
    tls
}

/// Resolves `tls` of the admin listener, where nobody is without a certificate.
pub(super) fn admin(section: &Section<'_>) -> Option<ListenerTls> {
    let files = files::certificate_files(section);
    if section.lacks("clientAuthorities") {
        let message = "is required: who may ask has a certificate from an authority named here";
        section.error("clientAuthorities", message);
    }
    let authorities = section.texts("clientAuthorities", 64).unwrap_or_default();
    Some(ListenerTls {
        certificates: vec![files?],
        client_certificates: ClientCertificates::Require,
        client_authorities: files::authorities(authorities),
        revocation: revocation(section, ClientCertificates::Require),
        tls12: false,
        h2: false,
        handshake_timeout: std::time::Duration::ZERO,
        policies: Vec::new(),
    })
}

fn policy(section: &Section<'_>) -> ListenerTls {
    if section.lacks("certificates") {
        section.error("certificates", "at least one `certificate` with its `key` is needed");
    }
    let certificates = section.list("certificates", 64).unwrap_or_default().into_iter();
    let certificates = certificates.filter_map(|item| files::certificate_files(&item.section()));
    let certificates = certificates.collect();

    let (client_certificates, client_authorities) = client_certificates(section);
    ListenerTls {
        certificates,
        client_certificates,
        client_authorities,
        revocation: revocation(section, client_certificates),
        tls12: section.word("minVersion", MIN_VERSIONS).unwrap_or(true),
        h2: alpn(section),
        handshake_timeout: std::time::Duration::ZERO,
        policies: Vec::new(),
    }
}

/// The hosts of a policy: no host may have two.
fn policy_hosts(section: &Section<'_>, taken: &mut Names) -> Vec<String> {
    if section.lacks("hosts") {
        section.error("hosts", "at least one is needed, as in `signer.example.com`");
    }
    let texts = section.texts("hosts", 256).unwrap_or_default();
    let hosts = texts.iter().filter_map(|text| {
        let host = text.value.to_ascii_lowercase();
        if !is_dns_name(host.strip_prefix("*.").unwrap_or(&host)) {
            let message = "a DNS name is expected, as in `signer.example.com` or `*.example.com`: SNI \
                           has no addresses and no ports";
            text.error(message);
            return None;
        }
        if let Some(taken) = taken.take(&host, text.item.place.clone()) {
            text.error(format!("`{}` has a policy on line {} already", text.written, taken.line));
        }
        Some(host)
    });
    hosts.collect()
}

/// Letters, digits and hyphens in labels of 1 to 63 characters, the last of them no number.
pub(super) fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= 253
        && name.split('.').all(label)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

fn client_certificates(section: &Section<'_>) -> (ClientCertificates, Vec<PathBuf>) {
    let default = (!section.has("clientCertificates")).then_some(ClientCertificates::Off);
    let asked = section.word("clientCertificates", CLIENT_CERTIFICATES).or(default);
    let lacks = section.lacks("clientAuthorities");
    match asked {
        Some(ClientCertificates::Off) if !lacks => {
            section.warn("clientAuthorities", "has no effect: `clientCertificates` is `off`");
        }
        Some(ClientCertificates::Request | ClientCertificates::Require) if lacks => {
            let message =
                "is required: a client certificate is good only from an authority named here";
            section.error("clientAuthorities", message);
        }
        Some(_) | None => {}
    }
    let authorities = section.texts("clientAuthorities", 64).unwrap_or_default();
    (asked.unwrap_or(ClientCertificates::Off), files::authorities(authorities))
}

fn revocation(section: &Section<'_>, asked: ClientCertificates) -> Revocation {
    let given = section.has("revocation");
    let section = section.section("revocation");
    let texts = section.texts("crls", 64).unwrap_or_default();
    if given && section.lacks("crls") {
        section.error("crls", "at least one file of certificate revocation lists is needed");
    } else if given && asked == ClientCertificates::Off {
        section.warn("crls", "has no effect: `clientCertificates` is `off`");
    }
    Revocation {
        crls: texts.into_iter().map(|text: Text<'_>| files::revocation_lists(text)).collect(),
        leaf_only: section.word("check", CHECKED).unwrap_or(false),
        unknown_allowed: section.word("unknown", UNKNOWN).unwrap_or(false),
        expired_allowed: section.word("expired", EXPIRED).unwrap_or(false),
    }
}

/// Whether `h2` is offered beside `http/1.1`, which always is.
fn alpn(section: &Section<'_>) -> bool {
    let Some(item) = section.item("alpn") else { return true };
    let offered: Vec<_> = item.list(2).iter().filter_map(|item| item.word(ALPN)).collect();
    if !offered.contains(&false) {
        section.error("alpn", "`http/1.1` must be in it: clients without ALPN speak it");
    }
    offered.contains(&true)
}
