//! What the edge tells about itself, and where.

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;

use super::{CertificateFiles, Secret};

/// `telemetry`.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// The share of `ok` records that is written, 0.0 to 1.0; refusals always are.
    pub ok_sample: f64,
    /// The least severe process message that is written.
    pub level: tracing::Level,
    /// Spans; `None` where there are none.
    pub traces: Option<Traces>,
}

/// `telemetry.traces`: OpenTelemetry spans, sent as OTLP over HTTP in protobuf.
#[derive(Clone, Debug)]
pub struct Traces {
    /// The whole URL that spans are posted to.
    pub endpoint: String,
    /// Fields of each of these requests. What they say may be secret.
    pub headers: Vec<(HeaderName, Secret)>,
    /// The share of requests whose spans are kept where nobody believed has decided, 0.0 to 1.0.
    pub sample_ratio: f64,
    /// The time of one request.
    pub timeout: Duration,
    /// `service.name`.
    pub service_name: String,
    /// Further attributes of the resource.
    pub resource: Vec<(String, String)>,
    /// PEM file of the authorities that sign the collector's certificate; the system's otherwise.
    pub authorities: Option<PathBuf>,
    /// What the edge shows of itself.
    pub client: Option<CertificateFiles>,
}
