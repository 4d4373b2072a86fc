//! Whom a listener trusts, by SNI, and whether it still trusts a connection that is open.
//!
//! A TLS handshake decides once. What it decided on may change while the connection lives: a
//! certificate is revoked, an authority is taken away, a host gets a stricter policy. Each request
//! therefore holds its connection against the trust that is in force.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime as PkiTime};
use rustls::server::danger::ClientCertVerifier;

use super::believe;
use super::connection::Connection;
use crate::config::Listener;
use crate::policy::proxies::Proxies;
use crate::policy::time::UnixTime;

/// How long a chain that was verified is not verified again while nothing is reloaded: lists and
/// authorities end by themselves too.
const VERIFIED_FOR: Duration = Duration::from_secs(60);

/// Values by host name. An exact name wins over a wildcard, an earlier entry over a later one.
#[derive(Clone, Debug)]
pub struct ByName<T> {
    exact: HashMap<String, T>,
    /// By what follows `*.`: one label stands for the star (RFC 9525 section 6.3).
    wildcard: HashMap<String, T>,
}

impl<T> Default for ByName<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), wildcard: HashMap::new() }
    }
}

impl<T: Clone> ByName<T> {
    /// Adds `value` under names in lower case, each exact or `*.` and what follows.
    pub fn add(&mut self, names: &[String], value: &T) {
        for name in names {
            let (map, name) = match name.strip_prefix("*.") {
                Some(parent) => (&mut self.wildcard, parent),
                None => (&mut self.exact, name.as_str()),
            };
            map.entry(name.to_owned()).or_insert_with(|| value.clone());
        }
    }

    /// The value for a host, in any case and with or without a trailing dot.
    #[must_use]
    pub fn find(&self, host: &str) -> Option<&T> {
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        let parent = name.split_once('.').map(|(_, parent)| parent);
        self.exact.get(&name).or_else(|| parent.and_then(|parent| self.wildcard.get(parent)))
    }
}

/// What one policy asks of a client.
#[derive(Clone, Debug)]
pub struct PolicyTrust {
    /// Verifies client certificates; none are asked for without it.
    pub verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// Whether a client must have one.
    pub required: bool,
}

/// Whom a listener trusts under one configuration.
#[derive(Clone, Debug)]
pub struct Trust {
    generation: u64,
    policies: Vec<PolicyTrust>,
    names: ByName<usize>,
}

/// How a connection stands for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As the handshake left it.
    Good,
    /// Its certificate is no longer trusted, or no longer asked for: it counts as none.
    Withdrawn,
    /// The request needs another connection: its host has another policy than the connection's SNI,
    /// or the policy requires a certificate and there is none that counts (RFC 9110 section 15.5.20).
    Misdirected,
}

/// A client's chain as the handshake left it.
#[derive(Debug)]
pub struct Shown {
    chain: Vec<CertificateDer<'static>>,
    verified: Mutex<Verified>,
}

/// What the last verification said, and under which configuration.
#[derive(Clone, Copy, Debug)]
struct Verified {
    generation: u64,
    at: UnixTime,
    good: bool,
}

impl Shown {
    /// A chain, leaf first, that a handshake has verified under `generation`.
    #[must_use]
    pub fn new(chain: Vec<CertificateDer<'static>>, generation: u64, at: UnixTime) -> Self {
        Self { chain, verified: Mutex::new(Verified { generation, at, good: true }) }
    }

    /// The chain, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    fn good(&self, verifier: &dyn ClientCertVerifier, generation: u64, now: UnixTime) -> bool {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        let age = now.millis_since(verified.at);
        let fresh = u64::try_from(age).is_ok_and(|age| Duration::from_millis(age) < VERIFIED_FOR);
        // A configuration that came later may have judged already, on another stream.
        if verified.generation < generation || !fresh {
            let good = self.verify(verifier, now);
            *verified = Verified { generation, at: now, good };
        }
        verified.good
    }

    fn verify(&self, verifier: &dyn ClientCertVerifier, now: UnixTime) -> bool {
        let Some((leaf, rest)) = self.chain.split_first() else { return false };
        let since_epoch = Duration::from_secs(u64::try_from(now.secs()).unwrap_or(0));
        let now = PkiTime::since_unix_epoch(since_epoch);
        let verified = verifier.verify_client_cert(leaf, rest, now);
        if let Err(error) = &verified {
            tracing::info!(%error, "a client certificate on an open connection no longer counts");
        }
        verified.is_ok()
    }
}

/// A listener's connections whose exchanges may rest on a certificate.
#[derive(Debug, Default)]
pub struct Live {
    open: Mutex<Vec<Weak<Connection>>>,
}

impl Live {
    /// Keeps an eye on a connection, if it came with a certificate, or if proxies hand some on.
    pub(super) fn add(&self, connection: &Arc<Connection>, proxies: &Proxies) {
        let hands_on = proxies.iter().any(|proxy| proxy.certificate.is_some());
        if connection.shown().is_some() || hands_on {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            // What has ended goes whenever there would be no room, so that it takes no more than
            // twice what is open.
            if open.len() == open.capacity() {
                open.retain(|connection| connection.strong_count() > 0);
            }
            open.push(Arc::downgrade(connection));
        }
    }

    /// Ends what goes on under certificates that `trust` no longer takes, or whose bearer `listener` no
    /// longer believes them.
    pub fn review(&self, trust: &Trust, listener: &Listener, now: UnixTime) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for connection in open.iter().filter_map(Weak::upgrade) {
            let policy = trust.policies.get(trust.policy(connection.server_name()));
            let withdrawn = connection.shown().is_some_and(|shown| {
                !policy.is_some_and(|policy| trust.counts(policy, shown, now))
            });
            let believed = || {
                believe::may_go_on(&connection, listener)
                    && believe::handing_on(&listener.proxies, &connection, withdrawn).is_some()
            };
            if withdrawn || (connection.hands_on.load(Ordering::Acquire) && !believed()) {
                connection.exchanges.withdraw();
            }
        }
    }
}

impl Trust {
    /// The trust of a listener: policies by index, the first for every host that `names` lacks.
    /// `generation` grows with each configuration.
    #[must_use]
    pub fn new(generation: u64, policies: Vec<PolicyTrust>, names: ByName<usize>) -> Self {
        Self { generation, policies, names }
    }

    /// Which configuration this is.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether SNI makes a difference.
    #[must_use]
    pub fn has_policies(&self) -> bool {
        self.policies.len() > 1
    }

    /// Index of the policy for a host, as SNI or as a request's.
    #[must_use]
    pub fn policy(&self, host: Option<&str>) -> usize {
        host.and_then(|host| self.names.find(host)).copied().unwrap_or_default()
    }

    fn counts(&self, policy: &PolicyTrust, shown: &Shown, now: UnixTime) -> bool {
        let verifier = policy.verifier.as_ref();
        verifier.is_some_and(|verifier| shown.good(verifier.as_ref(), self.generation, now))
    }

    /// Whether a connection that came with this SNI and certificate may carry a request for `host`
    /// (without port) at `now`.
    #[must_use]
    pub fn standing(
        &self,
        server_name: Option<&str>,
        shown: Option<&Shown>,
        host: &str,
        now: UnixTime,
    ) -> Standing {
        let index = if self.has_policies() { self.policy(server_name) } else { 0 };
        if self.has_policies() && self.policy(Some(host)) != index {
            return Standing::Misdirected;
        }
        let Some(policy) = self.policies.get(index) else { return Standing::Misdirected };
        match shown.map(|shown| self.counts(policy, shown, now)) {
            Some(true) => Standing::Good,
            Some(false) | None if policy.required => Standing::Misdirected,
            Some(false) => Standing::Withdrawn,
            None => Standing::Good,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_of_another_policy_is_misdirected() {
        let mut names = ByName::default();
        names.add(&["signer.example".to_owned(), "*.in.example".to_owned()], &1);
        let open = PolicyTrust { verifier: None, required: false };
        let trust = Trust::new(1, vec![open.clone(), open], names);
        for (sni, host, expect) in [
            (None, "api.example", Standing::Good),
            (Some("api.example"), "other.example", Standing::Good),
            (Some("signer.example"), "SIGNER.example.", Standing::Good),
            (Some("signer.example"), "a.in.example", Standing::Good),
            (Some("api.example"), "signer.example", Standing::Misdirected),
            (None, "signer.example", Standing::Misdirected),
            (Some("signer.example"), "api.example", Standing::Misdirected),
            (Some("api.example"), "a.in.example", Standing::Misdirected),
            (Some("api.example"), "a.b.in.example", Standing::Good),
        ] {
            let now = UnixTime::from_secs(0);
            assert_eq!(trust.standing(sni, None, host, now), expect, "{sni:?} {host}");
        }
    }

    #[test]
    fn a_certificate_that_is_required_is_missed() {
        let required = PolicyTrust { verifier: None, required: true };
        let trust = Trust::new(1, vec![required], ByName::default());
        let standing = trust.standing(None, None, "api.example", UnixTime::from_secs(0));
        assert_eq!(standing, Standing::Misdirected);
    }
}
