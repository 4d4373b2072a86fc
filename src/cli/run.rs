//! `holdfast run`: serve until told to stop.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{self, Running};
use crate::config::{self, Config};
use crate::telemetry::log::Log;

/// Serve
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "SIGTERM drains, SIGINT ends at once. The log goes to stdout as JSON lines."
)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Serves until SIGTERM or SIGINT. Gives 0, or 1 when the edge cannot start; why goes to `errors`,
/// one cause a line.
pub fn run(args: &Args, errors: &mut dyn Write) -> ExitCode {
    let Some(config) = load(&args.config, errors) else { return ExitCode::FAILURE };
    match serve(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where this cannot be written either, the exit status alone tells.
            let _ = writeln!(errors, "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn load(path: &Path, errors: &mut dyn Write) -> Option<Config> {
    let loaded = config::load(path);
    for finding in &loaded.findings {
        let _ = writeln!(errors, "{finding}");
    }
    loaded.config
}

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Start(#[from] app::StartError),
    #[error("{0}")]
    System(#[from] io::Error),
}

fn serve(config: &Config) -> Result<(), RunError> {
    let log = Log::start(Box::new(io::stdout()), config.telemetry.level)?;
    log.install();
    let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let signals = {
        let _context = waiting.enter();
        Signals::new()?
    };
    let running = app::start(config, &log)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "started");
    waiting.block_on(until_told(&running, signals));
    running.stop();
    tracing::info!("stopped");
    log.flush();
    Ok(())
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for SIGTERM (`true`) or SIGINT.
    async fn end(&mut self) -> bool {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return true,
                _ = self.interrupt.recv() => return false,
                _ = self.hangup.recv() => {
                    tracing::warn!("SIGHUP: this version does not reload; restart it instead");
                }
            }
        }
    }
}

/// SIGTERM drains, a second signal cuts that short; SIGINT ends at once.
async fn until_told(running: &Running, mut signals: Signals) {
    if signals.end().await {
        tracing::info!("draining");
        tokio::select! {
            () = running.drain() => {}
            _ = signals.end() => {}
        }
    }
}
