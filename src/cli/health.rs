//! `holdfast health`: asks an edge how it is. For probes that run beside it: its admin listener is on a
//! loopback address, or answers nobody without a certificate.

#![expect(clippy::disallowed_methods, reason = "certificates and keys are read from files")]

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use reqwest::Url;

use super::client::http::{Client, ClientIdentity, HttpError, Settings};

/// The longest that an answer is waited for. It stands in texts as well.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of an answer.
const ANSWER: usize = 256 * 1024;

/// Whether an edge runs or, with --ready, can do its work; for probes
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Exit status 0: it does. 1: it does not, or nobody answers within 3 s; why goes to stderr.\n\
                  No configuration is read: a file that a running edge has refused says nothing of it."
)]
pub struct Args {
    /// The origin of the edge's admin listener
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9901")]
    url: Url,
    /// Ask for /readyz rather than /healthz, and show what it says where it says no
    #[arg(long)]
    ready: bool,
    /// Connect to ADDRESS (IP:PORT) instead of where DNS says
    #[arg(long, value_name = "ADDRESS")]
    connect: Option<SocketAddr>,
    /// The authorities that the edge's certificate must chain to, PEM [default: the system's]
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// The client certificate and its chain, PEM
    #[arg(long, value_name = "FILE", requires = "cert_key")]
    cert: Option<PathBuf>,
    /// The client certificate's private key, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    cert_key: Option<PathBuf>,
}

/// Asks. Gives 0 for yes, 1 for anything else.
pub fn run(args: &Args, errors: &mut dyn Write) -> ExitCode {
    // Where something cannot be written, the exit status alone tells.
    match asked(args) {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(no)) => drop(write!(errors, "{no}")),
        Err(error) => drop(writeln!(errors, "error: {error}")),
    }
    ExitCode::FAILURE
}

#[derive(Debug, thiserror::Error)]
enum HealthError {
    #[error("{0}: no answer within 3 s")]
    Silence(Url),
    #[error("{0}: {1}")]
    Exchange(Url, HttpError),
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{0}")]
    Usage(&'static str),
    #[error("{0}")]
    System(#[from] io::Error),
}

/// What the edge says against itself, if anything.
fn asked(args: &Args) -> Result<Option<String>, HealthError> {
    let mut url = args.url.clone();
    url.set_path(if args.ready { "/readyz" } else { "/healthz" });
    let settings = settings(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asking = async { tokio::time::timeout(PATIENCE, ask(settings, url.clone())).await };
    match runtime.block_on(asking) {
        Ok(answer) => answer.map_err(|error| HealthError::Exchange(url, error)),
        Err(_) => Err(HealthError::Silence(url)),
    }
}

fn settings(args: &Args) -> Result<Settings, HealthError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| HealthError::File { path: path.to_owned(), error })
    };
    let identity = match (&args.cert, &args.cert_key) {
        (Some(certificate), Some(key)) => Some(ClientIdentity {
            certificate: read(certificate)?,
            key: zeroize::Zeroizing::new(read(key)?),
        }),
        _ => None,
    };
    if args.connect.is_some() && args.url.domain().is_none() {
        return Err(HealthError::Usage("--connect is for a URL with a host name"));
    }
    let host = args.url.host_str().unwrap_or_default().to_owned();
    Ok(Settings {
        authorities: args.cacert.as_deref().map(read).transpose()?,
        identity,
        resolve: args.connect.map(|address| (host, address)),
        // In clear there is no certificate, and the system's authorities need not even be there.
        insecure: args.url.scheme() == "http",
        ..Settings::default()
    })
}

async fn ask(settings: Settings, url: Url) -> Result<Option<String>, HttpError> {
    let client = Client::new(settings)?;
    let target = url.path().to_owned();
    let mut answer = client.send(Method::GET, url, HeaderMap::new(), Bytes::new()).await?;
    let status = answer.status();
    if status == StatusCode::OK {
        return Ok(None);
    }
    let body = answer.body(ANSWER).await?;
    let body = String::from_utf8_lossy(&body);
    Ok(Some(format!("{target} answers {status}\n{body}")))
}
