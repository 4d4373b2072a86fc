//! `holdfast run`: serve until told to stop.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior};

mod manager;
mod standstill;
pub mod successor;
mod upgrade;
mod watch;

use standstill::Watching;
use upgrade::{Attempt, TakeOverError};
use watch::{Before, Watch};

use crate::app::handover::Next;
use crate::app::{self, Prepared, Running};
use crate::config::{self, Config, Loaded, Severity};
use crate::telemetry::log::Log;

/// Serve
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "SIGHUP or a change of a file reloads, SIGTERM drains, SIGINT ends at once. SIGQUIT hands the \
                  sockets to another process: the one that waits with --upgrade, or this program started once \
                  more. The log goes to stdout as JSON lines."
)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Take the sockets over from the process that serves, once that one gets SIGQUIT
    #[arg(long)]
    pub upgrade: bool,
}

/// Serves until SIGTERM or SIGINT. Gives 0, or 1 when the edge cannot start; why goes to `errors`,
/// one cause a line.
pub fn run(args: &Args, errors: &mut dyn Write) -> ExitCode {
    let before = Before::start();
    let loaded = config::load(&args.config);
    let watch = Watch::new(loaded.files, &before);
    for finding in &loaded.findings {
        let _ = writeln!(errors, "{finding}");
    }
    let Some(config) = loaded.config else { return ExitCode::FAILURE };
    match serve(&config, args, watch) {
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
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
    #[error("{0}")]
    System(#[from] io::Error),
}

fn serve(config: &Config, args: &Args, watch: Watch) -> Result<(), RunError> {
    // Before there are threads: it changes the environment.
    let given = manager::sockets()?;
    // Not `Stdout`, which takes in what it cannot write and says that it was written.
    let records = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let log = Log::start(Box::new(records), config.telemetry.level)?;
    log.install();
    let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = {
        let _context = waiting.enter();
        Signals::new()?
    };
    let prepared = Prepared::new(config, &log)?;
    let (running, end) = if args.upgrade {
        waiting.block_on(taken_over(prepared, config, &mut signals))?
    } else {
        (prepared.bind(config, given)?.with_all_sockets()?.begin()?, None)
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "started");
    manager::ready("serving");
    let watching = watched(&running);
    waiting.block_on(until_told(&running, (signals, end), &args.config, watch));
    // What still waits for another process ends by itself.
    waiting.shutdown_background();
    drop(watching);
    running.stop();
    tracing::info!("stopped");
    log.flush();
    Ok(())
}

/// Has the process end where its threads stand still.
fn watched(running: &Running) -> Option<Watching> {
    let begun = Watching::begin(running.threads()?.clone());
    let unwatched = |error: &_| tracing::warn!(%error, "nobody looks whether threads stand still");
    begun.inspect_err(unwatched).ok()
}

/// Takes over from the process that serves, unless a signal ends this one before. One that comes when the
/// sockets are this process's already says how it ends.
async fn taken_over(
    prepared: Prepared,
    config: &Config,
    signals: &mut Signals,
) -> Result<(Running, Option<End>), TakeOverError> {
    let called_off = AtomicBool::new(false);
    let (config, asked) = (config.clone(), std::sync::Arc::new(called_off));
    let ask = std::sync::Arc::clone(&asked);
    let mut taking =
        tokio::task::spawn_blocking(move || upgrade::take_over(prepared, &config, &ask));
    let (taken, end) = tokio::select! {
        taken = &mut taking => (taken, None),
        drains = signals.end() => {
            asked.store(true, Ordering::Relaxed);
            (taking.await, Some(if drains { End::Drain } else { End::Now }))
        }
    };
    Ok((taken.map_err(io::Error::other)??, end))
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    quit: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
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

/// How serving ends.
enum End {
    /// At once.
    Now,
    /// When what is under way is done.
    Drain,
    /// The same, and another process serves already.
    Succeeded,
}

/// SIGHUP and a change of a file reload; SIGTERM drains, a second signal cuts that short; SIGINT ends
/// at once; SIGQUIT hands over.
async fn until_told(
    running: &Running,
    (mut signals, told): (Signals, Option<End>),
    path: &Path,
    mut watch: Watch,
) {
    let mut watchdog = manager::watchdog().map(|every| {
        let mut interval = tokio::time::interval(every);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        interval
    });
    let mut attempt: Option<Attempt> = None;
    let mut under_way: Option<Reload> = None;
    let end = loop {
        if let Some(end) = told {
            break end;
        }
        tokio::select! {
            _ = signals.terminate.recv() => break End::Drain,
            _ = signals.interrupt.recv() => break End::Now,
            _ = signals.hangup.recv() => Reload::begin(&mut under_way, path, &watch, "SIGHUP"),
            () = watch.changed(), if under_way.is_none() => {
                Reload::begin(&mut under_way, path, &watch, "a file has changed");
            }
            loaded = loaded(&mut under_way) => reload(running, &mut watch, loaded),
            _ = signals.quit.recv() => begin(&mut attempt, running, path),
            next = outcome(&mut attempt) => {
                if hand_over(running, next) {
                    break End::Succeeded;
                }
            }
            () = due(&mut watchdog) => well(running).await,
        }
    };
    drop(attempt);
    let drained = async {
        match end {
            End::Now => {}
            End::Drain => {
                tracing::info!("draining");
                manager::stopping();
                running.drain().await;
            }
            End::Succeeded => running.give_way().await,
        }
    };
    tokio::select! {
        () = drained => {}
        _ = signals.end() => {}
    }
}

async fn due(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// How long the threads that serve may take to take up some work that is nothing.
const LIVELY: Duration = Duration::from_secs(1);

/// Tells the service manager that all is well, if it is.
async fn well(running: &Running) {
    let Some(threads) = running.threads() else { return };
    if matches!(tokio::time::timeout(LIVELY, threads.spawn(async {})).await, Ok(Ok(()))) {
        manager::alive();
    } else {
        tracing::error!(
            "the threads that serve are stuck: the service manager is not told otherwise"
        );
    }
}

/// Begins to hand over, unless that is under way.
fn begin(attempt: &mut Option<Attempt>, running: &Running, path: &Path) {
    if attempt.is_some() {
        tracing::warn!("SIGQUIT again: sockets are being handed over already");
        return;
    }
    match running.estate() {
        Ok(estate) => {
            *attempt = Some(Attempt::begin(&running.upgrade_socket(), path, estate));
        }
        Err(error) => tracing::error!(%error, "sockets not handed over: this process goes on"),
    }
}

/// What comes of an attempt, which is then over.
async fn outcome(attempt: &mut Option<Attempt>) -> Result<Next, String> {
    let Some(under_way) = attempt else { return std::future::pending().await };
    let outcome = (&mut under_way.outcome).await;
    *attempt = None;
    outcome.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// Leaves the sockets to the next process. Whether it has them.
fn hand_over(running: &Running, next: Result<Next, String>) -> bool {
    let given = next.and_then(|next| {
        let pid = next.pid();
        // Before the next process tells the service manager anything.
        manager::main_process(pid, "sockets handed over");
        running.give_out(next.nonces().as_ref());
        next.theirs().map(|()| pid).map_err(|error| {
            running.give_out(None);
            manager::main_process(std::process::id(), "serving; the sockets were not handed over");
            error.to_string()
        })
    });
    match given {
        Ok(pid) => {
            tracing::info!(to = pid, "sockets handed over: draining");
            true
        }
        Err(error) => {
            tracing::error!(error, "sockets not handed over: this process goes on");
            false
        }
    }
}

/// The configuration as it is loaded again, on a thread of its own: a resolver or a disk that is slow
/// holds up no signal and no word to the service manager.
struct Reload {
    cause: &'static str,
    before: Before,
    loaded: JoinHandle<Loaded>,
}

impl Reload {
    /// Begins one. Nobody hears of one that is under way: it may have read what was there before.
    fn begin(under_way: &mut Option<Self>, path: &Path, watch: &Watch, cause: &'static str) {
        manager::reloading();
        let (before, path) = (watch.before(), path.to_owned());
        let loaded = tokio::task::spawn_blocking(move || config::load(&path));
        *under_way = Some(Self { cause, before, loaded });
    }
}

/// Waits for what is under way, which is then over. May be dropped and called again.
async fn loaded(under_way: &mut Option<Reload>) -> (Reload, Result<Loaded, String>) {
    let Some(reload) = under_way else { return std::future::pending().await };
    let loaded = (&mut reload.loaded).await.map_err(|error| error.to_string());
    match under_way.take() {
        Some(reload) => (reload, loaded),
        None => std::future::pending().await,
    }
}

/// Takes what was loaded, or says why not: then the configuration before stays in force.
fn reload(
    running: &Running,
    watch: &mut Watch,
    (Reload { cause, before, .. }, loaded): (Reload, Result<Loaded, String>),
) {
    let taken = loaded.and_then(|mut loaded| {
        *watch = Watch::new(std::mem::take(&mut loaded.files), &before);
        take(running, &loaded, cause)
    });
    match taken {
        Ok(()) => manager::ready("serving"),
        Err(error) => {
            manager::ready(&format!("serving; the configuration was not reloaded: {error}"));
            running.reload_failed(error);
        }
    }
}

/// Takes the configuration.
///
/// # Errors
/// When it was not taken: all that is wrong with it, in a line.
fn take(running: &Running, loaded: &Loaded, cause: &str) -> Result<(), String> {
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
            return Ok(());
        }
        Some(Err(error)) => vec![error.to_string()],
        None => errors,
    };
    for error in &failed {
        tracing::error!(cause, error, "configuration not reloaded: the one before stays in force");
    }
    Err(failed.join("; "))
}
