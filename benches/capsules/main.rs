//! What a capsule costs: the decision, the durable commit, the real program, and a stranger's answer.
//!
//! ```text
//! pipeline   decide, derive, envelope, signature, seal          one thread, no I/O
//! commit     fsync a request │ a transaction a decision │ group commit      one disk, in turns
//! edge       1,000 of 100,000 nodes at once ──TLS──► holdfast ──► store, audit log verified
//! stranger   unknown node │ wrong secret │ malformed id ──TLS──► holdfast   in turns
//! ```
//!
//! `benches/README.md` has the method and the figures.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark reports")]
#![expect(clippy::indexing_slicing, reason = "a JSON object takes any member")]
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a benchmark has a clock, randomness, files and tasks"
)]

mod commit;
#[path = "../shared/cpu.rs"]
mod cpu;
mod differences;
#[path = "../shared/disk.rs"]
mod disk;
mod edge;
#[path = "../shared/figures.rs"]
mod figures;
mod fleet;
mod floor;
#[path = "../shared/h2.rs"]
mod h2;
#[path = "../shared/http1.rs"]
mod http1;
#[path = "../shared/load.rs"]
mod load;
mod pipeline;
#[path = "../shared/pki.rs"]
mod pki;
#[path = "../shared/program.rs"]
mod program;
#[path = "../shared/proofs.rs"]
mod proofs;
mod stage;
mod stranger;
#[path = "../shared/threads.rs"]
mod threads;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Pipeline,
    Commit,
    Edge,
    Stranger,
}

/// Capsules: decisions, durable commits, the real program, and what strangers can tell apart
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench capsules --")]
struct Options {
    /// Only these parts; all without it
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Nodes in the registry
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    registered: u32,
    /// Nodes that renew at once
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=4000))]
    at_once: u32,
    /// Streams at once on one HTTP/2 connection
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=128))]
    streams: u32,
    /// How often each node renews in a round of `edge`
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    renewals: u32,
    /// Rounds of `commit` and of `edge`
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long one way of `commit` goes on in a round, milliseconds
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    millis: u64,
    /// Requests of each kind in `stranger`
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    strangers: u32,
    /// Where stores are made; a directory on a real disk [default: target/tmp]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Writes every round's figures here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// As cargo calls a benchmark
    #[arg(long, hide = true)]
    bench: bool,
    /// Only sees that it works: little of everything, whose figures say nothing
    #[arg(long)]
    test: bool,
}

impl Options {
    fn has(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn directory(&self) -> PathBuf {
        let default = || PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        self.directory.clone().unwrap_or_else(default)
    }
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    // Called by `cargo test`, a benchmark gets no `--bench`.
    if options.test || !options.bench {
        println!("a trial: these figures say nothing");
        (options.registered, options.at_once, options.renewals) = (200, 20, 1);
        (options.rounds, options.millis, options.strangers) = (1, 20, 20);
    }
    options.at_once = options.at_once.min(options.registered);
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Outcome<()> {
    let mut report = json!({});
    let mut add = |name: &str, figures: Value| report[name] = figures;
    println!("stores in {}", disk::describe(&options.directory())?);
    if options.has(Part::Pipeline) {
        add("pipeline", pipeline::run(options)?);
    }
    // Threads that are made from now on inherit the core; what is measured has the other one.
    let pinned = cpu::pin(std::process::id(), cpu::GENERATOR_CORE);
    println!("{}", if pinned { "load and measured on a core each" } else { "NOT PINNED" });
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().event_interval(8).build()?;
    if options.has(Part::Commit) {
        add("commit", commit::run(options, &runtime, pinned)?);
    }
    if options.has(Part::Edge) || options.has(Part::Stranger) {
        let stage = runtime.block_on(stage::Stage::start(options, pinned))?;
        if options.has(Part::Stranger) {
            add("stranger", runtime.block_on(stranger::run(options, &stage))?);
        }
        if options.has(Part::Edge) {
            add("edge", runtime.block_on(edge::run(options, &stage))?);
        }
    }
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}
