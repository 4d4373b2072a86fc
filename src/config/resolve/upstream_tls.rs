//! `tls` of an upstream.

use rustls::pki_types::ServerName;

use crate::config::item::Words;
use crate::config::section::Section;
use crate::config::{Authorities, CertificateFiles, Server, UpstreamTls, files};

/// Whether TLS 1.2 is taken.
const MIN_VERSIONS: Words<bool> = &[("1.2", true), ("1.3", false)];

const SYSTEM: Words<()> = &[("system", ())];

/// Resolves `tls` of the upstream with these servers.
pub(super) fn resolve(section: &Section<'_>, servers: &[Server]) -> UpstreamTls {
    if section.lacks("authorities") {
        let message = "is required: PEM files of the authorities that sign the servers' \
                       certificates, or `system`";
        section.error("authorities", message);
    }
    let server_name = section.text("serverName");
    match &server_name {
        Some(text) if !is_certifiable(&text.value) => {
            text.error(format!("`{}` is no name that a certificate can have", text.written));
        }
        Some(_) => {}
        None => {
            for server in servers.iter().filter(|server| !is_certifiable(&server.host)) {
                let host = &server.host;
                let message =
                    format!("is required: `{host}` is no name that a certificate can have");
                section.error("serverName", message);
            }
        }
    }
    UpstreamTls {
        authorities: authorities(section),
        server_name: server_name.map(|text| text.value),
        client: client(section),
        tls12: section.word("minVersion", MIN_VERSIONS).unwrap_or(true),
    }
}

/// The files of authorities; none for the system's.
pub(super) fn authority_files(section: &Section<'_>) -> Vec<std::path::PathBuf> {
    match authorities(section) {
        Authorities::System => Vec::new(),
        Authorities::Files(files) => files,
    }
}

fn authorities(section: &Section<'_>) -> Authorities {
    match section.item("authorities") {
        Some(item) if !item.is_list() => {
            let _ = item.word(SYSTEM);
            Authorities::System
        }
        Some(_) | None => {
            let files = section.texts("authorities", 64).unwrap_or_default();
            Authorities::Files(files::authorities(files))
        }
    }
}

/// The edge's own certificate: both files or none.
pub(super) fn client(section: &Section<'_>) -> Option<CertificateFiles> {
    if section.has("certificate") || section.has("key") {
        return files::certificate_files(section);
    }
    let _ = (section.item("certificate"), section.item("key"));
    None
}

/// Whether a certificate can be compared with it. pingora compares `a_b` with `a-b`, so that an
/// underscore would let in a server of another name.
pub(super) fn is_certifiable(name: &str) -> bool {
    !name.contains('_') && ServerName::try_from(name).is_ok()
}
