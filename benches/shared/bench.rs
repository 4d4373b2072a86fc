//! How a benchmark begins and ends.

use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

// A doc comment would be shown in the place of the program's.
#[derive(Debug, Args)]
pub(crate) struct Call {
    /// Writes every round's figures here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// As cargo calls a benchmark
    #[arg(long, hide = true)]
    bench: bool,
    /// Only sees that it works: a few requests, whose figures say nothing
    #[arg(long)]
    test: bool,
}

impl Call {
    /// Whether it is only to be seen that it works. `cargo test` gives a benchmark no `--bench`.
    pub(crate) fn is_trial(&self) -> bool {
        self.test || !self.bench
    }
}

/// What a benchmark prints and writes at its end.
pub(crate) trait Report: Display {
    /// Every round's figures.
    fn json(&self) -> Value;

    /// What makes the run a failure, if anything does.
    fn faults(&self) -> Vec<String>;
}

/// One thread, on which clients and servers take turns.
pub(crate) fn runtime() -> Outcome<Runtime> {
    // As nothing here sleeps under load, sockets are looked at after this many steps.
    Ok(Builder::new_current_thread().enable_all().event_interval(8).build()?)
}

/// Writes the figures to the file that is named, prints the report and its faults, and says how the
/// program ends.
pub(crate) fn end(measured: Outcome<impl Report>, call: &Call) -> ExitCode {
    let written = measured.and_then(|report| {
        if let Some(file) = &call.json {
            std::fs::write(file, serde_json::to_vec_pretty(&report.json())?)?;
        }
        Ok(report)
    });
    let report = match written {
        Ok(report) => report,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    print!("{report}");
    let faults = report.faults();
    for fault in &faults {
        eprintln!("FAULT: {fault}");
    }
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
