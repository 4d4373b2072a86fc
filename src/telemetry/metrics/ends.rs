//! When certificates and keys end.

use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, Opts};

use crate::policy::time::UnixTime;

/// The `use` label of `holdfast_certificate_expiry_timestamp_seconds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// What a listener shows of itself.
    Server,
    /// Who signs the certificates of clients.
    ClientAuthority,
    /// Which of those are withdrawn.
    RevocationList,
    /// Who signs the certificates of an upstream's servers.
    UpstreamAuthority,
    /// What the edge shows an upstream of itself.
    UpstreamClient,
    /// Who signs the certificate that an issuer's keys, or its word on tokens, come under.
    IssuerAuthority,
    /// What the edge shows an issuer of itself.
    IssuerClient,
    /// Who signs the certificates of the store's servers.
    StoreAuthority,
    /// What the edge shows the store's servers of itself.
    StoreClient,
    /// Who signs the certificate of the collector of traces.
    CollectorAuthority,
    /// What the edge shows the collector of itself.
    CollectorClient,
}

impl Use {
    fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::ClientAuthority => "client-authority",
            Self::RevocationList => "revocation-list",
            Self::UpstreamAuthority => "upstream-authority",
            Self::UpstreamClient => "upstream-client",
            Self::IssuerAuthority => "issuer-authority",
            Self::IssuerClient => "issuer-client",
            Self::StoreAuthority => "store-authority",
            Self::StoreClient => "store-client",
            Self::CollectorAuthority => "collector-authority",
            Self::CollectorClient => "collector-client",
        }
    }
}

/// How long a file with certificates or revocation lists holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// What it is for.
    pub used: Use,
    /// Whose: the listener's, upstream's or issuer's name; `store` and `traces` for theirs.
    pub owner: String,
    /// The file.
    pub file: String,
    /// Since when.
    pub begins: UnixTime,
    /// Until when.
    pub ends: UnixTime,
}

/// When the newest key of a kind is due to be followed by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTerm {
    /// `master`, `envelope` or `audit`.
    pub kind: &'static str,
    /// When.
    pub ends: UnixTime,
}

/// The ends that one configuration has. They are made anew for each answer, so that a file which the next
/// one no longer names does not go on ending.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    /// Of certificates and revocation lists.
    pub files: Vec<Term>,
    /// Of keys.
    pub keys: Vec<KeyTerm>,
}

impl Ends {
    pub(super) fn collect(&self) -> Vec<MetricFamily> {
        let labels = ["use", "owner", "certificate"];
        let ends = gauges(
            "holdfast_certificate_expiry_timestamp_seconds",
            "When a certificate or a revocation list ends, seconds since 1970",
            &labels,
        );
        let lives = gauges(
            "holdfast_certificate_lifetime_seconds",
            "How long a certificate or a revocation list holds from its beginning to its end",
            &labels,
        );
        let keys = gauges(
            "holdfast_key_expiry_timestamp_seconds",
            "When the newest key of a kind is due to be followed by another, seconds since 1970",
            &["kind"],
        );
        let (Ok(ends), Ok(lives), Ok(keys)) = (ends, lives, keys) else { return Vec::new() };
        for term in &self.files {
            let labels = [term.used.name(), &term.owner, &term.file];
            ends.with_label_values(&labels).set(seconds(term.ends));
            lives.with_label_values(&labels).set(seconds(term.ends) - seconds(term.begins));
        }
        for key in &self.keys {
            keys.with_label_values(&[key.kind]).set(seconds(key.ends));
        }
        let all = [ends, lives, keys].into_iter().flat_map(|family| family.collect());
        // The encoder takes no family without a series.
        all.filter(|family| !family.get_metric().is_empty()).collect()
    }
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<GaugeVec> {
    GaugeVec::new(Opts::new(name, help), labels)
}

/// Seconds since 1970.
pub(super) fn seconds(at: UnixTime) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 fit an f64 exactly")]
    let seconds = at.secs() as f64;
    seconds
}
