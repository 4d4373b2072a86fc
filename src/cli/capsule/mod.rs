//! `holdfast capsule`: the node's side of a runtime capsule.
//!
//! ```text
//! fetch: arguments ─► plan::session ─► session (proof, certificate, nonces) ─► edge
//!        answer ─► grant::believe (pure) ─► output ─► file or stdout
//!        watch: again at two thirds of the capsule's time; telemetry; systemd
//! verify: envelope + key set ─► envelope::read (pure) ─► words
//! ```
//!
//! Invariant: a key leaves `grant::believe` only where every check holds, and only `output` writes
//! it; no secret or key is part of an error, a log line or a `Debug` text.

mod clock;
mod envelope;
mod failure;
mod fault;
mod fetch;
pub(in crate::cli) mod files;
mod grant;
mod notify;
mod output;
mod patience;
mod plan;
mod seal;
mod session;
mod verify;
mod watch;

#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::process::ExitCode;

use super::client::trace::clean;

/// The node's client: fetch a runtime capsule, or verify one
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    Fetch(Box<fetch::Args>),
    Verify(verify::Args),
}

/// Where output and errors go.
pub struct Screen<'a> {
    /// Keys and documents.
    pub out: &'a mut dyn Write,
    /// Whether a person reads `out`.
    pub out_is_terminal: bool,
    /// Errors, warnings and progress.
    pub errors: &'a mut dyn Write,
    /// Whether a person reads `errors`.
    pub errors_is_terminal: bool,
}

/// Runs, and says with which status to exit: see each command.
pub fn run(args: &Args, screen: &mut Screen<'_>) -> ExitCode {
    match &args.command {
        Command::Fetch(args) => fetch::run(args, screen),
        Command::Verify(args) => verify::run(args, screen),
    }
}

impl Screen<'_> {
    /// A line for whoever is there. Where it cannot be written, the exit status alone tells.
    fn tell(&mut self, kind: &str, text: &str) {
        let _ = writeln!(self.errors, "{kind}{}", clean(text));
        let _ = self.errors.flush();
    }

    /// One JSON document, on a line.
    fn document(&mut self, document: &serde_json::Value) -> io::Result<()> {
        writeln!(self.out, "{document}")?;
        self.out.flush()
    }
}
