//! Taking over from a process that serves, and handing over to the next.

#![expect(clippy::disallowed_methods, reason = "it waits by the clock")]

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::successor::Between;
use crate::app::handover::{BECOMING_READY, HandoverError, Next, Serving};
use crate::app::sockets::Given;
use crate::app::{self, Estate, Prepared, Running, StartError};
use crate::config::Config;

/// How long a process with `--upgrade` waits to be given sockets.
const WAITING: Duration = Duration::from_secs(60);
/// How long a process that was started by this one may take until it waits.
const STARTING: Duration = Duration::from_secs(60);
/// How often that is looked for.
const POLL: Duration = Duration::from_millis(50);

/// Why this process does not take over.
#[derive(Debug, thiserror::Error)]
pub(super) enum TakeOverError {
    #[error("upgrade: {0}")]
    Handover(#[from] HandoverError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{0}")]
    System(#[from] io::Error),
}

/// Waits for the process that serves, takes its sockets and serves in its stead. `called_off` is asked
/// while it waits.
pub(super) fn take_over(
    prepared: Prepared,
    config: &Config,
    called_off: &AtomicBool,
) -> Result<Running, TakeOverError> {
    let path = &config.edge.upgrade_socket;
    tracing::info!(path = %path.display(), "prepared, and waiting for sockets: SIGQUIT to who serves");
    let asked = || called_off.load(Ordering::Relaxed);
    let (mut serving, sockets) = Serving::await_at(path, WAITING, asked)?;
    let running = succeed(prepared, config, &mut serving, Given::new(sockets), asked);
    if let Err(error) = &running {
        serving.decline(&error.to_string());
    }
    running
}

fn succeed(
    prepared: Prepared,
    config: &Config,
    serving: &mut Serving,
    sockets: Given,
    called_off: impl Fn() -> bool,
) -> Result<Running, TakeOverError> {
    let ready = prepared.bind(config, sockets)?;
    let looking = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let off = async {
        while !called_off() {
            tokio::time::sleep(POLL).await;
        }
    };
    looking.block_on(async {
        tokio::select! {
            biased;
            () = off => Err(TakeOverError::from(HandoverError::CalledOff)),
            ready = ready.become_ready(BECOMING_READY) => Ok(ready?),
        }
    })?;
    if let Some(line) = serving.ready(ready.nonce_secret().as_ref())? {
        ready.begin_after(line);
    }
    let running = ready.serve();
    match serving.accepting() {
        Ok(()) => {
            running.note_bypass();
            tracing::info!(from = serving.pid(), "sockets taken over");
            Ok(running)
        }
        Err(error) => {
            running.stop();
            Err(error.into())
        }
    }
}

/// An attempt to hand over, which can be called off.
#[derive(Debug)]
pub(super) struct Attempt {
    called_off: Arc<AtomicBool>,
    /// What comes of it.
    pub(super) outcome: tokio::task::JoinHandle<Result<Next, HandoverError>>,
}

impl Attempt {
    /// Hands `estate` to the process that waits at the upgrade socket. Where none does, this program is
    /// started once more as that process: it then has what belongs to this one, such as the control
    /// group, credentials and sandbox of a service.
    pub(super) fn begin(path: &Path, file: &Path, estate: Estate) -> Self {
        let called_off = Arc::new(AtomicBool::new(false));
        let (path, file) = (path.to_owned(), file.to_owned());
        let asked = Arc::clone(&called_off);
        let outcome = tokio::task::spawn_blocking(move || hand_over(&path, &file, &estate, &asked));
        Self { called_off, outcome }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.called_off.store(true, Ordering::Relaxed);
    }
}

fn hand_over(
    path: &Path,
    file: &Path,
    estate: &Estate,
    called_off: &AtomicBool,
) -> Result<Next, HandoverError> {
    let mut started = None;
    let mut next = match Next::at(path)? {
        Some(next) => next,
        None => {
            let between = started.insert(Between::start(file).map_err(HandoverError::Gone)?);
            until_it_waits(between, path, called_off)?
        }
    };
    tracing::info!(to = next.pid(), "handing sockets over");
    next.take(estate, app::now)?;
    if called_off.load(Ordering::Relaxed) {
        return Err(HandoverError::CalledOff);
    }
    if let Some(between) = started {
        // The next one accepts, whoever has started it.
        let left = between.leave();
        let _ = left.inspect_err(|error| tracing::warn!(%error, "the process between has ended"));
    }
    Ok(next)
}

/// Waits until the process that was started waits for sockets.
fn until_it_waits(
    started: &mut Between,
    path: &Path,
    called_off: &AtomicBool,
) -> Result<Next, HandoverError> {
    let began = Instant::now();
    loop {
        if let Some(next) = Next::at(path)? {
            return Ok(next);
        }
        if called_off.load(Ordering::Relaxed) {
            return Err(HandoverError::CalledOff);
        }
        if let Some(status) = started.ended().map_err(HandoverError::Gone)? {
            return Err(HandoverError::Declined(format!("{status}; its output says why")));
        }
        if began.elapsed() >= STARTING {
            return Err(HandoverError::Gone(io::ErrorKind::TimedOut.into()));
        }
        std::thread::sleep(POLL);
    }
}
