//! `holdfast quickstart`: the whole thing on one machine, with nothing to prepare.
//!
//! Makes keys and certificates, sample Authorization Servers and an API and a configuration, starts
//! the edge, and sends itself through it, over TLS sockets, what must be admitted and refused.
#![expect(clippy::disallowed_methods, reason = "tells the time, and starts servers")]

mod api;
mod authority;
mod cases;
mod commands;
mod files;
mod grants;
mod legacy;
mod nodes;
mod pki;
mod records;
mod settings;
mod table;

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use reqwest::Url;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

use self::authority::Authority;
use self::cases::Senders;
use self::files::{Change, Directory, FilesError, Planned};
use self::legacy::Legacy;
use self::nodes::NodeSenders;
use self::records::{Reasons, Records};
use self::settings::Addresses;
use self::table::Section;
use crate::app;
use crate::cli::client::http::{Client, ClientIdentity, HttpError, Settings};
use crate::cli::client::key::{KeyError, SigningKey};
use crate::cli::site::{now, secret};
use crate::config;
use crate::policy::jose::Algorithm;
use crate::policy::target::Origin;
use crate::store::keys;
use crate::telemetry::log::Log;

/// The edge's port, while it is free.
const EDGE_PORT: u16 = 8443;
/// The admin listener's port, while it is free.
const ADMIN_PORT: u16 = 9901;
/// The edge's records.
const RECORDS: &str = "edge.log";
/// How long the edge may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// Between two looks.
const READY_PAUSE: Duration = Duration::from_millis(5);

/// Set up a complete example, send it the accepted and refused cases, and keep it running
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Exit status with --once: 0 when every case is as expected, else 1.")]
pub struct Args {
    /// Where keys, certificates and the configuration go
    #[arg(long, value_name = "DIR", default_value = "holdfast-quickstart")]
    pub dir: PathBuf,
    /// Exit after the table
    #[arg(long)]
    pub once: bool,
    /// The edge's port; 0: a free one, for metrics too [default: 8443, or a free one when that is
    /// taken]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
enum QuickstartError {
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error("certificates cannot be made: {0}")]
    Certificates(#[from] rcgen::Error),
    #[error("keys cannot be made: {0}")]
    Key(#[from] KeyError),
    #[error("port {0} is taken: {1}")]
    Port(u16, io::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Configuration(String),
    #[error("the edge does not start: {0}")]
    Start(#[from] app::StartError),
    #[error("the edge is not ready after {READY_WITHIN:?}: {0}")]
    NotReady(String),
    #[error("{0}: {1}")]
    Exchange(String, HttpError),
    #[error("no token: {0}")]
    NoToken(String),
    #[error("the node cannot be enrolled: {0}")]
    Node(String),
    #[error("capsules: {0}")]
    Keys(#[from] keys::KeysError),
    #[error("no nonce in the answer to a proof without one: {0}")]
    NoNonce(String),
}

/// Runs. The table and what to try go to `out`, errors to `errors`. `colour`: `out` is a terminal.
pub fn run(args: &Args, colour: bool, out: &mut dyn Write, errors: &mut dyn Write) -> ExitCode {
    match quickstart(args, colour, out) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            // Where this cannot be written either, the exit status alone tells.
            let _ = writeln!(errors, "error: {error}");
            ExitCode::from(1)
        }
    }
}

/// Whether every case was as expected.
fn quickstart(args: &Args, colour: bool, out: &mut dyn Write) -> Result<bool, QuickstartError> {
    let runtime = Runtime::new()?;
    let mut directory = Directory::open(&args.dir)?;
    let setup = runtime.block_on(set_up(args, &mut directory, out))?;
    let (records, reasons) = Records::create(&directory.claim(RECORDS)?)?;
    let log = Log::start(Box::new(records), setup.config.telemetry.level)?;
    log.install();
    let edge = app::start(&setup.config, &log)?;
    let outcome = runtime.block_on(async {
        wait_until_ready(setup.addresses.admin).await?;
        let senders = senders(&setup.addresses, &setup.files, setup.key, reasons)?;
        let node = node_senders(&setup.addresses, &setup.files, setup.node_key, &args.dir)?;
        let section = |title, rows| Section { title, rows };
        let sections = [
            section("On a resource", cases::run(&senders).await?),
            section(
                "In front of an Authorization Server that knows no DPoP",
                grants::run(&senders).await?,
            ),
            section("Runtime capsules", nodes::run(&senders, &node).await?),
        ];
        let ok = sections.iter().flat_map(|section| &section.rows).all(|row| row.ok);
        writeln!(out)?;
        table::write(out, &sections, colour)?;
        if !args.once {
            write_commands(out, &args.dir, &setup.addresses)?;
            out.flush()?;
            until_told_to_end().await?;
        }
        out.flush()?;
        Ok(ok)
    });
    edge.stop();
    log.flush();
    outcome
}

/// What [`set_up`] made.
struct Setup {
    addresses: Addresses,
    files: Vec<Planned>,
    key: SigningKey,
    node_key: SigningKey,
    config: config::Config,
}

/// Keys, certificates, sample servers, configuration.
async fn set_up(
    args: &Args,
    directory: &mut Directory,
    out: &mut dyn Write,
) -> Result<Setup, QuickstartError> {
    let authority_listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let legacy_listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let api_listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let (edge, admin) = match args.port {
        None => (free_or_other(EDGE_PORT, "the edge's", out).await?, ADMIN_PORT),
        Some(0) => (free(0).await?, 0),
        Some(port) => (free(port).await?, ADMIN_PORT),
    };
    let admin = free_or_other(admin, "the admin listener's", out).await?;
    let addresses = Addresses {
        edge: edge.local_addr()?,
        admin: admin.local_addr()?,
        authority: authority_listener.local_addr()?,
        legacy: legacy_listener.local_addr()?,
        api: api_listener.local_addr()?,
    };
    // Held until both were chosen; the edge binds them itself.
    drop((edge, admin));
    let mut files = pki::certificates(directory, now())?;
    let mut kept_key = |name| {
        let (key, file) = pki::signing_key(directory, name)?;
        files.push(file);
        Ok::<_, KeyError>(key)
    };
    let (key, node_key) = (kept_key(pki::DPOP_KEY)?, kept_key(nodes::KEY)?);
    let (issuer_key, legacy_key) = (kept_key(pki::ISSUER_KEY)?, kept_key(pki::LEGACY_KEY)?);
    let (secret, _) = secret().map_err(|error| QuickstartError::Node(error.to_string()))?;
    let content = Zeroizing::new(secret.as_bytes().to_vec());
    files.push(Planned { name: nodes::SECRET, content, secret: true });
    let content = Zeroizing::new(nodes::networks());
    files.push(Planned { name: nodes::NETWORKS, content, secret: false });
    let content = Zeroizing::new(settings::text(&addresses).into_bytes());
    files.push(Planned { name: settings::FILE, content, secret: false });
    let changes = directory.write(&files)?;
    write_changes(out, &args.dir, &files, &changes)?;
    let keys = directory.join(nodes::KEYS);
    if !keys.exists() {
        keys::init(&keys, keys::Algorithm::EdDsa, now())?;
    }
    nodes::enrol(&directory.claim(nodes::STORE)?, secret.as_bytes())?;

    let origin = Origin::parse(&addresses.origin())
        .ok_or_else(|| QuickstartError::Configuration("the origin is none".into()))?;
    let authority = authority::router(Authority { key: issuer_key, origin });
    let legacy = legacy::router(Legacy::new(legacy_key, &addresses.origin()));
    tokio::spawn(async move { axum::serve(authority_listener, authority).await });
    tokio::spawn(async move { axum::serve(legacy_listener, legacy).await });
    tokio::spawn(async move { axum::serve(api_listener, api::router()).await });

    let loaded = config::load(&directory.join(settings::FILE));
    let findings: Vec<String> = loaded.findings.iter().map(ToString::to_string).collect();
    let config =
        loaded.config.ok_or_else(|| QuickstartError::Configuration(findings.join("\n")))?;
    Ok(Setup { addresses, files, key, node_key, config })
}

/// The port, or for 0 any, when it can be bound.
async fn free(port: u16) -> Result<TcpListener, QuickstartError> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
    bound.map_err(|error| QuickstartError::Port(port, error))
}

/// The port, or another that is free, and then a line that says so.
async fn free_or_other(
    port: u16,
    whose: &str,
    out: &mut dyn Write,
) -> Result<TcpListener, QuickstartError> {
    if let Ok(listener) = free(port).await {
        return Ok(listener);
    }
    let other = free(0).await?;
    writeln!(out, "Port {port} is taken: {whose} is {}.", other.local_addr()?.port())?;
    Ok(other)
}

fn write_changes(
    out: &mut dyn Write,
    directory: &Path,
    files: &[Planned],
    changes: &[Change],
) -> io::Result<()> {
    let names = |change: Change| {
        let with = files.iter().zip(changes).filter(move |(_, made)| **made == change);
        with.map(|(file, _)| file.name).collect::<Vec<_>>()
    };
    for (what, change) in [("wrote", Change::Written), ("kept ", Change::Kept)] {
        let names = names(change);
        if !names.is_empty() {
            writeln!(out, "{}: {what} {}", directory.display(), names.join(", "))?;
        }
    }
    Ok(())
}

/// Asks `/readyz` until it says yes.
async fn wait_until_ready(admin: SocketAddr) -> Result<(), QuickstartError> {
    let target = format!("http://{admin}/readyz");
    let failed = |error| QuickstartError::Exchange(target.clone(), error);
    let client = Client::new(Settings::default()).map_err(failed)?;
    let mut last = "it does not answer".to_owned();
    let asking = async {
        loop {
            let url = Url::parse(&target)
                .map_err(|error| failed(HttpError::Transport(error.to_string())))?;
            match client.send(Method::GET, url, HeaderMap::new(), Bytes::new()).await {
                Ok(answer) if answer.status() == StatusCode::OK => return Ok(()),
                Ok(answer) => last = format!("{target} answers {}", answer.status()),
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(READY_PAUSE).await;
        }
    };
    match tokio::time::timeout(READY_WITHIN, asking).await {
        Ok(outcome) => outcome,
        Err(_) => Err(QuickstartError::NotReady(last)),
    }
}

fn senders(
    addresses: &Addresses,
    files: &[Planned],
    key: SigningKey,
    reasons: Reasons,
) -> Result<Senders, QuickstartError> {
    let content = |name: &str| {
        let file = files.iter().find(|file| file.name == name);
        file.map_or_else(Zeroizing::default, |file| file.content.clone())
    };
    let origin = addresses.origin();
    let client = |identity: Option<[&str; 2]>| {
        let identity = identity.map(|[certificate, key]| ClientIdentity {
            certificate: content(certificate).to_vec(),
            key: content(key),
        });
        let settings = Settings {
            authorities: Some(content("ca.pem").to_vec()),
            identity,
            resolve: Some(("localhost".into(), addresses.edge)),
            ..Settings::default()
        };
        Client::new(settings).map_err(|error| QuickstartError::Exchange(origin.clone(), error))
    };
    Ok(Senders {
        plain: client(None)?,
        certified: client(Some(["client.pem", "client-key.pem"]))?,
        other: client(Some(["other-client.pem", "other-client-key.pem"]))?,
        origin: origin.clone(),
        addresses: *addresses,
        key,
        other_key: SigningKey::generate(Algorithm::Es256)?,
        reasons,
    })
}

/// The node's clients: one an address, as a connection has one.
fn node_senders(
    addresses: &Addresses,
    files: &[Planned],
    key: SigningKey,
    directory: &Path,
) -> Result<NodeSenders, QuickstartError> {
    let content = |name: &str| {
        let file = files.iter().find(|file| file.name == name);
        file.map_or_else(Zeroizing::default, |file| file.content.clone())
    };
    let client = |from: IpAddr| {
        let settings = Settings {
            authorities: Some(content("ca.pem").to_vec()),
            resolve: Some(("localhost".into(), addresses.edge)),
            from: Some(from),
            ..Settings::default()
        };
        Client::new(settings).map_err(|error| QuickstartError::Exchange(addresses.origin(), error))
    };
    let [home, near, far] = nodes::ADDRESSES;
    let clients = [client(home)?, client(near)?, client(far)?];
    let store = directory.join(nodes::STORE);
    Ok(NodeSenders { clients, key, secret: content(nodes::SECRET), store })
}

fn write_commands(out: &mut dyn Write, directory: &Path, addresses: &Addresses) -> io::Result<()> {
    writeln!(out, "\nServing at {}, until Ctrl-C. To try:", addresses.origin())?;
    let program = program();
    for command in commands::commands(&program, directory, addresses) {
        writeln!(out, "\n# {}\n{}", command.about, command.line)?;
    }
    let records = directory.join(RECORDS);
    writeln!(out, "\nEvery decision, with its reason, is a line of {}.", records.display())
}

/// How to call this program: relative where it lies below the working directory.
fn program() -> String {
    let path = std::env::current_exe().unwrap_or_else(|_| "holdfast".into());
    let below = std::env::current_dir()
        .ok()
        .and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned));
    match below {
        Some(below) => format!("./{}", below.display()),
        None => path.display().to_string(),
    }
}

/// Ctrl-C or SIGTERM.
async fn until_told_to_end() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}
