//! `holdfast run`: serve until told to stop.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

mod watch;

use watch::Watch;

use crate::app::{self, Running};
use crate::config::{self, Config, Severity};
use crate::telemetry::log::Log;

/// Serve
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "SIGHUP or a change of a file reloads, SIGTERM drains, SIGINT ends at once. The log goes to \
                  stdout as JSON lines."
)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Serves until SIGTERM or SIGINT. Gives 0, or 1 when the edge cannot start; why goes to `errors`,
/// one cause a line.
pub fn run(args: &Args, errors: &mut dyn Write) -> ExitCode {
    let loaded = config::load(&args.config);
    for finding in &loaded.findings {
        let _ = writeln!(errors, "{finding}");
    }
    let Some(config) = loaded.config else { return ExitCode::FAILURE };
    match serve(&config, &args.config, loaded.files) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where this cannot be written either, the exit status alone tells.
            let _ = writeln!(errors, "error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Start(#[from] app::StartError),
    #[error("{0}")]
    System(#[from] io::Error),
}

fn serve(config: &Config, path: &Path, files: Vec<PathBuf>) -> Result<(), RunError> {
    let log = Log::start(Box::new(io::stdout()), config.telemetry.level)?;
    log.install();
    let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let signals = {
        let _context = waiting.enter();
        Signals::new()?
    };
    let running = app::start(config, &log)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "started");
    waiting.block_on(until_told(&running, signals, path, Watch::new(files)));
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
        tokio::select! {
            _ = self.terminate.recv() => true,
            _ = self.interrupt.recv() => false,
        }
    }
}

/// SIGHUP and a change of a file reload; SIGTERM drains, a second signal cuts that short; SIGINT ends
/// at once.
async fn until_told(running: &Running, mut signals: Signals, path: &Path, mut watch: Watch) {
    let drain = loop {
        tokio::select! {
            _ = signals.terminate.recv() => break true,
            _ = signals.interrupt.recv() => break false,
            _ = signals.hangup.recv() => reload(running, path, &mut watch, "SIGHUP"),
            () = watch.changed() => reload(running, path, &mut watch, "a file has changed"),
        }
    };
    if drain {
        tracing::info!("draining");
        tokio::select! {
            () = running.drain() => {}
            _ = signals.end() => {}
        }
    }
}

/// Loads the file again and takes it, or says why not: then the configuration before stays in force.
fn reload(running: &Running, path: &Path, watch: &mut Watch, cause: &str) {
    let loaded = config::load(path);
    watch.follow(loaded.files);
    let mut errors = Vec::new();
    for finding in &loaded.findings {
        let finding_text = finding.to_string();
        match finding.severity {
            Severity::Error => errors.push(finding_text),
            Severity::Warning => tracing::warn!(finding = finding_text, "configuration"),
        }
    }
    let failed = match loaded.config.as_ref().map(|config| running.reload(config)) {
        Some(Ok(())) => {
            tracing::info!(cause, "configuration reloaded");
            return;
        }
        Some(Err(error)) => vec![error.to_string()],
        None => errors,
    };
    for error in &failed {
        tracing::error!(cause, error, "configuration not reloaded: the one before stays in force");
    }
    running.reload_failed(failed.join("; "));
}
