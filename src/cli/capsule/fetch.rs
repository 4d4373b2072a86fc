//! `holdfast capsule fetch`: asks until there is an answer, believes it or not, and writes the key.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use reqwest::Url;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout_at};

use super::failure::{Failure, Later};
use super::grant::{Asked, Capsule, Grant, believe};
use super::notify::Notifier;
use super::output::{self, Format};
use super::patience::Patience;
use super::seal::SealKey;
use super::session::{Question, Sealing, Session};
use super::{Screen, clock, files, plan, watch};
use crate::cli::site::now;
use crate::config::{duration, show_duration};
use crate::policy::capsule::key::KeyVersion;
use crate::policy::capsule::node::{NodeId, is_label};

/// The longest pause between two requests for the first capsule.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// From here on a clock is told to be off: proofs are refused soon after.
const CLOCK_WARNING_S: i64 = 30;

/// Fetch this node's runtime capsule, verify it, and write its key
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Every check holds, or nothing is written. Exit status: 0 with a capsule, 1 when the \
                  edge refuses or is not believed, 2 when there is no answer or something else is wrong."
)]
pub(super) struct Args {
    /// The edge's origin: https://HOST or https://HOST:PORT
    #[arg(long, value_name = "URL")]
    pub(super) edge: Url,
    /// This node's id
    #[arg(long, value_name = "ID", value_parser = NodeId::parse)]
    pub(super) node: NodeId,
    /// A file with the node's secret that only its owner can read, or a systemd credential
    #[arg(long, value_name = "FILE")]
    pub(super) secret_file: PathBuf,
    /// The private key of the DPoP proofs, PEM or JWK
    #[arg(long, value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
    /// Make that key (ES256) when it is not there
    #[arg(long, requires = "key")]
    pub(super) create_key: bool,
    /// The client certificate and its chain, PEM
    #[arg(long, value_name = "FILE", requires = "cert_key")]
    pub(super) cert: Option<PathBuf>,
    /// The client certificate's private key, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(super) cert_key: Option<PathBuf>,
    /// The authorities that the edge's certificate must chain to, PEM [default: the system's]
    #[arg(long, value_name = "FILE")]
    pub(super) cacert: Option<PathBuf>,
    /// The keys that sign envelopes, a JWK set [default: those that the edge names, not pinned]
    #[arg(long, value_name = "FILE")]
    pub(super) pin: Option<PathBuf>,
    /// Connect to ADDRESS (IP:PORT) instead of where DNS says
    #[arg(long, value_name = "ADDRESS")]
    pub(super) connect: Option<SocketAddr>,
    /// The fingerprint of this machine [default: a hash of /etc/machine-id]
    #[arg(long, value_name = "TEXT", conflicts_with = "fingerprint_file")]
    pub(super) fingerprint: Option<String>,
    /// A file with the fingerprint
    #[arg(long, value_name = "FILE")]
    pub(super) fingerprint_file: Option<PathBuf>,
    /// The id of this boot [default: the kernel's]
    #[arg(long, value_name = "ID")]
    pub(super) boot_id: Option<String>,
    /// The version of the software that the key is for
    #[arg(long, value_name = "VERSION", value_parser = label)]
    pub(super) node_version: Option<String>,
    /// Ask for this version of the key, m1.n1 [default: the current one]
    #[arg(long, value_name = "VERSION", value_parser = KeyVersion::parse)]
    pub(super) key_version: Option<KeyVersion>,
    /// Refuse a key that is not sealed [default: have it sealed where the edge does that]
    #[arg(long, conflicts_with = "no_seal")]
    pub(super) seal: bool,
    /// Do not ask for a sealed key
    #[arg(long)]
    pub(super) no_seal: bool,
    /// Write the key to FILE, whole or not at all, for its owner only [default: to stdout]
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
    /// How the key is written [default: raw; base64 on a terminal]
    #[arg(long, value_enum)]
    pub(super) format: Option<Format>,
    /// Write the envelope to FILE, for everybody to read
    #[arg(long, value_name = "FILE")]
    pub(super) envelope_out: Option<PathBuf>,
    /// Say on stdout what came of it, one JSON document a line, never with the key
    #[arg(long, requires = "out")]
    pub(super) json: bool,
    /// Ask again this many times when there is no answer, or 429, 502, 503 or 504
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(super) retries: u32,
    /// But no longer than this in all
    #[arg(long, value_name = "DURATION", default_value = "3m", value_parser = time)]
    pub(super) max_wait: Duration,
    /// Go on: renew at two thirds of the capsule's time, and write the key when it is another one;
    /// tells systemd when the first one is there
    #[arg(long, requires = "out")]
    pub(super) watch: bool,
    /// Tell the edge that this node runs, and on SIGTERM or SIGINT that it stops
    #[arg(long, requires = "watch")]
    pub(super) telemetry: bool,
    /// How often
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = time)]
    pub(super) telemetry_every: Duration,
}

fn label(text: &str) -> Result<String, &'static str> {
    let message = "1 to 64 letters, digits, `.`, `_`, `+`, `:` and `-` are expected";
    is_label(text).then(|| text.to_owned()).ok_or(message)
}

fn time(text: &str) -> Result<Duration, &'static str> {
    let time = duration(text).filter(|time| !time.is_zero());
    time.ok_or("a duration is expected: 500ms, 90s, 2m, 1h, 7d, HH:MM:SS or D.HH:MM:SS")
}

/// Fetches, and says with which status to exit.
pub(super) fn run(args: &Args, screen: &mut Screen<'_>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.map_err(Failure::Output).and_then(|runtime| {
        runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let stop = async {
                tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
            };
            fetch(args, screen, &Notifier::from_environment(), stop).await
        })
    });
    conclude(args, screen, outcome)
}

/// Says what came of it.
pub(super) fn conclude(
    args: &Args,
    screen: &mut Screen<'_>,
    outcome: Result<(), Failure>,
) -> ExitCode {
    let Err(failure) = outcome else { return ExitCode::SUCCESS };
    if args.json {
        let _ = screen.document(&failure.document());
    }
    screen.tell("error: ", &failure.to_string());
    ExitCode::from(failure.status())
}

/// Fetches until `stop`. `notifier` hears of a watch.
pub(super) async fn fetch(
    args: &Args,
    screen: &mut Screen<'_>,
    notifier: &Notifier,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let mut fetcher = Fetcher::new(args, screen);
    if args.watch {
        return watch::run(&mut fetcher, notifier, stop).await;
    }
    let once = async {
        let capsule = fetcher.obtain(&Patience::first(args)).await?;
        fetcher.publish(&capsule)
    };
    tokio::select! {
        done = once => done,
        () = stop => Err(Failure::Interrupted),
    }
}

impl Patience {
    /// For the first capsule.
    pub(super) fn first(args: &Args) -> Self {
        Self {
            retries: Some(args.retries),
            until: Instant::now().checked_add(args.max_wait),
            expires: None,
            longest_pause: LONGEST_PAUSE,
        }
    }

    /// Whether all but a refusal may pass: a capsule is still good, and a file may be about to be
    /// replaced.
    fn is_for_renewal(&self) -> bool {
        self.expires.is_some()
    }
}

/// What a run remembers from one request to the next.
pub(super) struct Fetcher<'a, 'b> {
    pub(super) args: &'a Args,
    pub(super) screen: &'a mut Screen<'b>,
    /// The newest nonce of the edge.
    pub(super) nonce: Option<String>,
    /// The session of the last request.
    pub(super) session: Option<Session>,
    told_unpinned: bool,
}

impl<'a, 'b> Fetcher<'a, 'b> {
    fn new(args: &'a Args, screen: &'a mut Screen<'b>) -> Self {
        Self { args, screen, nonce: None, session: None, told_unpinned: false }
    }

    /// Whether there is somebody to tell how it goes: a person, or the journal of a service.
    fn is_followed(&self) -> bool {
        self.screen.errors_is_terminal || self.args.watch
    }

    /// A line on how it goes.
    pub(super) fn progress(&mut self, text: &str) {
        if self.is_followed() {
            self.screen.tell("", text);
        }
    }

    /// Asks for a capsule as often as `patience` allows.
    pub(super) async fn obtain(&mut self, patience: &Patience) -> Result<Capsule, Failure> {
        let args = self.args;
        self.progress(&format!("asking {} for {}", args.edge, args.node));
        let mut failures = 0_u32;
        loop {
            let later = match self.attempt_until(patience.until).await {
                Ok(capsule) => return Ok(capsule),
                Err(Failure::Later(later)) => later,
                Err(refused @ Failure::Refused(_)) => return Err(refused),
                Err(other) if patience.is_for_renewal() => {
                    Later { cause: other.to_string(), wish: None }
                }
                Err(other) => return Err(other),
            };
            failures = failures.saturating_add(1);
            let clocks = (Instant::now(), now());
            let Some(pause) = patience.pause(failures, later.wish, clock::chance(), clocks) else {
                return Err(Failure::GaveUp { requests: failures, cause: later.cause });
            };
            self.progress(&format!("{}; again in {:.1} s", later.cause, pause.as_secs_f32()));
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt_until(&mut self, until: Option<Instant>) -> Result<Capsule, Failure> {
        let Some(until) = until else { return self.attempt().await };
        let late = |_| Failure::Later(Later { cause: "--max-wait is over".to_owned(), wish: None });
        timeout_at(until, self.attempt()).await.map_err(late)?
    }

    /// One request, with as many as its nonce challenges need.
    async fn attempt(&mut self) -> Result<Capsule, Failure> {
        let session = plan::session(self.args)?;
        if session.pinned.is_none() && !self.told_unpinned {
            self.told_unpinned = true;
            let text = "the keys that sign envelopes are not pinned (--pin FILE): whoever is the edge \
                        to TLS is believed";
            self.screen.tell("note: ", text);
        }
        // First, so that no capsule is issued that cannot be verified.
        let keys = session.key_set().await?;
        let seal = match session.sealing {
            Sealing::Off => None,
            Sealing::Offered | Sealing::Required => Some(SealKey::fresh()?),
        };
        let question = Question {
            method: Method::GET,
            path: &format!("/api/runtime/capsule/{}", session.node),
            key_version: session.key_version.as_ref(),
            body: Bytes::new(),
            seal: seal.as_ref(),
        };
        let answered = session.ask(&question, &mut self.nonce).await?;
        let ahead_s = answered.clock_ahead_s(now());
        // A proof that is dated wrongly is refused like one that is nobody's.
        let body = answered.success().inspect_err(|_| self.warn_of_clock(ahead_s))?;
        let grant = Grant::read(&body)?;
        let asked = Asked {
            node: &session.node,
            secret: &session.secret,
            key_version: session.key_version.as_ref(),
            software: session.software.as_deref(),
            seal: seal.as_ref(),
            seal_required: session.sealing == Sealing::Required,
        };
        let capsule = believe(grant, &asked, &keys, now())?;
        self.session = Some(session);
        self.warn_of_clock(Some(capsule.clock_ahead_s));
        Ok(capsule)
    }

    fn warn_of_clock(&mut self, ahead_s: Option<i64>) {
        let Some(ahead_s) = ahead_s.filter(|s| s.saturating_abs() > CLOCK_WARNING_S) else {
            return;
        };
        let way = if ahead_s > 0 { "ahead of" } else { "behind" };
        let by = ahead_s.saturating_abs();
        let text = format!("this node's clock is {by} seconds {way} the edge's");
        self.screen.tell("warning: ", &text);
    }

    /// Writes key and envelope, and says so.
    pub(super) fn publish(&mut self, capsule: &Capsule) -> Result<(), Failure> {
        let args = self.args;
        if let Some(path) = &args.envelope_out {
            let line = format!("{}\n", capsule.envelope);
            files::replace(path, line.as_bytes(), files::PUBLIC)?;
        }
        let for_people = args.out.is_none() && self.screen.out_is_terminal;
        let default = if for_people { Format::Base64 } else { Format::Raw };
        let bytes = output::encode(capsule, args.format.unwrap_or(default));
        let written = match &args.out {
            None => {
                self.screen.out.write_all(&bytes)?;
                self.screen.out.flush()?;
                true
            }
            // What watches the file is woken by another key only.
            Some(path) if files::read_private(path).is_ok_and(|there| there == bytes) => false,
            Some(path) => {
                files::replace(path, &bytes, files::PRIVATE)?;
                true
            }
        };
        self.report(capsule, written)
    }

    fn report(&mut self, capsule: &Capsule, written: bool) -> Result<(), Failure> {
        let claims = &capsule.claims;
        if self.args.json {
            let document = json!({
                "granted": true,
                "nodeId": claims.sub,
                "capsuleId": claims.jti,
                "keyVersion": claims.key_version,
                "issuedUtc": capsule.issued_utc,
                "expiresUtc": capsule.expires_utc,
                "riskScore": claims.risk_score,
                "sealed": claims.sealed,
                "pinned": self.args.pin.is_some(),
                "kid": capsule.kid,
                "written": written,
            });
            self.screen.document(&document)?;
        }
        let how = if claims.sealed { "sealed" } else { "not sealed" };
        let lifetime = Duration::from_secs(claims.exp.abs_diff(claims.iat));
        self.progress(&format!(
            "{}: key {} ({how}, risk {}), capsule {} good for {} until {}{}",
            claims.sub,
            claims.key_version,
            claims.risk_score,
            claims.jti,
            show_duration(lifetime),
            capsule.expires_utc,
            if written { "" } else { "; the key is the same" },
        ));
        Ok(())
    }
}
