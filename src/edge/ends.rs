//! When the certificates end that the edge goes by. Who uses a file has read it before and said what is
//! wrong with it; here one that cannot be read is left out.

use std::path::{Path, PathBuf};

use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::tls::{certificates, read};
use crate::config::{Authorities, Config, JwksSource};
use crate::policy::certificate::revocation_lists;
use crate::policy::time::UnixTime;
use crate::telemetry::metrics::{Term, Use};

/// The name that the admin listener's certificates stand under.
const ADMIN: &str = "admin";
/// The name that the collector's certificates stand under.
const TRACES: &str = "traces";
/// The name that the store's certificates stand under.
const STORE: &str = "store";

/// The end of every certificate and revocation list that `config` names.
#[must_use]
pub fn of(config: &Config) -> Vec<Term> {
    let mut found = Found::default();
    for listener in &config.edge.listeners {
        for tls in listener.tls.iter().flat_map(crate::config::ListenerTls::policies) {
            let owner = &listener.name;
            found.chains(Use::Server, owner, tls.certificates.iter().map(|it| &it.certificate));
            found.authorities(Use::ClientAuthority, owner, &tls.client_authorities);
            found.lists(owner, &tls.revocation.crls);
        }
    }
    if let Some(tls) = &config.edge.admin_tls {
        found.chains(Use::Server, ADMIN, tls.certificates.iter().map(|it| &it.certificate));
        found.authorities(Use::ClientAuthority, ADMIN, &tls.client_authorities);
        found.lists(ADMIN, &tls.revocation.crls);
    }
    for upstream in &config.upstreams {
        let Some(tls) = &upstream.tls else { continue };
        if let Authorities::Files(paths) = &tls.authorities {
            found.authorities(Use::UpstreamAuthority, &upstream.name, paths);
        }
        let client = tls.client.iter().map(|it| &it.certificate);
        found.chains(Use::UpstreamClient, &upstream.name, client);
    }
    for issuer in &config.issuers {
        let owner = &issuer.rules.issuer;
        if let Some(JwksSource::Url { authorities, .. }) = &issuer.jwks {
            found.authorities(Use::IssuerAuthority, owner, authorities);
        }
        if let Some(asking) = &issuer.introspection {
            found.authorities(Use::IssuerAuthority, owner, &asking.authorities);
            found.chains(Use::IssuerClient, owner, asking.certificate());
        }
    }
    let redis = config.store.as_ref().and_then(|store| store.redis.as_ref());
    if let Some(tls) = redis.and_then(|settings| settings.tls.as_ref()) {
        found.authorities(Use::StoreAuthority, STORE, &tls.authorities);
        found.chains(
            Use::StoreClient,
            STORE,
            tls.client.iter().map(|(certificate, _)| certificate),
        );
    }
    if let Some(traces) = &config.telemetry.traces {
        found.authorities(Use::CollectorAuthority, TRACES, &traces.authorities);
        let client = traces.client.iter().map(|it| &it.certificate);
        found.chains(Use::CollectorClient, TRACES, client);
    }
    found.0
}

#[derive(Default)]
struct Found(Vec<Term>);

impl Found {
    fn add(&mut self, used: Use, owner: &str, path: &Path, term: Option<(UnixTime, UnixTime)>) {
        let Some((begins, ends)) = term else { return };
        let (owner, file) = (owner.to_owned(), path.display().to_string());
        let term = Term { used, owner, file, begins, ends };
        if !self.0.contains(&term) {
            self.0.push(term);
        }
    }

    /// A chain holds as long as the first of it to end.
    fn chains<'a>(&mut self, used: Use, owner: &str, paths: impl IntoIterator<Item = &'a PathBuf>) {
        for path in paths {
            self.add(used, owner, path, terms(path).into_iter().min_by_key(|(_, ends)| *ends));
        }
    }

    /// Of authorities one may end while another takes over: the last counts.
    fn authorities<'a>(
        &mut self,
        used: Use,
        owner: &str,
        paths: impl IntoIterator<Item = &'a PathBuf>,
    ) {
        for path in paths {
            self.add(used, owner, path, terms(path).into_iter().max_by_key(|(_, ends)| *ends));
        }
    }

    fn lists(&mut self, owner: &str, paths: &[PathBuf]) {
        for path in paths {
            let lists = read(path).ok().and_then(|content| revocation_lists(&content).ok());
            let terms = lists.into_iter().flatten();
            let terms = terms.filter_map(|list| Some((list.this_update, list.next_update?)));
            self.add(Use::RevocationList, owner, path, terms.min_by_key(|(_, ends)| *ends));
        }
    }
}

fn terms(path: &Path) -> Vec<(UnixTime, UnixTime)> {
    let found = certificates(path).unwrap_or_default();
    let term = |der: &rustls::pki_types::CertificateDer<'_>| {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let validity = certificate.validity();
        let at = |time: x509_parser::time::ASN1Time| UnixTime::from_secs(time.timestamp());
        Some((at(validity.not_before), at(validity.not_after)))
    };
    found.iter().filter_map(term).collect()
}
