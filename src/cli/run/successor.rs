//! The process that takes over, started by one between that ends once it is not needed any more.
//!
//! A service manager is then the parent of the next process, as it is of the first. Of any other process
//! it neither sees the end nor waits for it: systemd kills one at once that it was to stop
//! (`KillMode=mixed`), whatever is under way there.

#![expect(clippy::disallowed_methods, reason = "it waits by the clock")]

use std::ffi::OsString;
use std::io::{self, Read as _, Write};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::manager;

/// How often it is looked whether the next process has ended.
const POLL: Duration = Duration::from_millis(20);
/// The program that runs, also where its file was replaced.
const OURSELVES: &str = "/proc/self/exe";
/// What the one between is told once the next process is to live without it.
const LIVE: u8 = b'\n';

/// Start the process that takes over, and go
#[derive(Clone, Debug, clap::Args)]
#[command(hide = true)]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// The process between: starts the next one, and ends with its status, or with 0 when told on stdin that it
/// is to live. Where stdin ends before that, nobody wants it, and it is killed.
pub fn run(args: &Args, errors: &mut dyn Write) -> ExitCode {
    match between(&args.config) {
        Ok(code) => code,
        Err(error) => {
            // Where this cannot be written either, the exit status alone tells.
            let _ = writeln!(errors, "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn between(file: &Path) -> io::Result<ExitCode> {
    let mut next = Command::new(name());
    next.args(["run", "--upgrade", "--config"]).arg(file).stdin(Stdio::null());
    let mut next = next.spawn()?;
    let (says, word) = mpsc::channel();
    std::thread::spawn(move || {
        let mut byte = [0];
        if io::stdin().read_exact(&mut byte).is_ok() && byte == [LIVE] {
            let _ = says.send(());
        }
    });
    loop {
        match word.recv_timeout(POLL) {
            Ok(()) => return Ok(ExitCode::SUCCESS),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(status) = next.try_wait()? {
                    return Ok(code(status));
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                next.kill()?;
                next.wait()?;
                return Ok(ExitCode::FAILURE);
            }
        }
    }
}

fn code(status: ExitStatus) -> ExitCode {
    // Whoever did not take over has failed, whatever it says.
    let failed = status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0);
    failed.map_or(ExitCode::FAILURE, ExitCode::from)
}

/// The name that this program was started by: another version may be there by now.
fn name() -> OsString {
    std::env::args_os().next().unwrap_or_else(|| "holdfast".into())
}

/// The process between, as the one that serves sees it. The next one does not outlive it unless
/// [`Self::leave`] is called.
#[derive(Debug)]
pub(super) struct Between(Child);

impl Between {
    /// Starts the next process.
    ///
    /// # Errors
    /// When the system does not.
    pub(super) fn start(file: &Path) -> io::Result<Self> {
        // This very program, whatever is there by its name: another version may not know what to do.
        let mut command = Command::new(OURSELVES);
        command.arg0(name());
        command.args(["run-successor", "--config"]).arg(file).stdin(Stdio::piped());
        for name in manager::OURS {
            command.env_remove(name);
        }
        let child = command.spawn()?;
        tracing::info!("another process started, to be handed the sockets");
        Ok(Self(child))
    }

    /// The status of the next process, where it has ended already.
    ///
    /// # Errors
    /// When the system does not say.
    pub(super) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.0.try_wait()
    }

    /// Has the next process live on. When this returns it is not this process's any more.
    ///
    /// # Errors
    /// When it has ended.
    pub(super) fn leave(mut self) -> io::Result<()> {
        if let Some(mut stdin) = self.0.stdin.take() {
            stdin.write_all(&[LIVE])?;
        }
        let status = self.0.wait()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        // Without a word: then it takes the next one with it.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
