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

#[path = "../shared/bench.rs"]
mod bench;
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

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};

use bench::{Call, Outcome};

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
    #[command(flatten)]
    call: Call,
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

/// The figures of each part, which has shown them and seen that they are sound.
struct Report(Value);

impl bench::Report for Report {
    fn json(&self) -> Value {
        self.0.clone()
    }

    fn faults(&self) -> Vec<String> {
        Vec::new()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    if options.call.is_trial() {
        println!("a trial: these figures say nothing");
        (options.registered, options.at_once, options.renewals) = (200, 20, 1);
        (options.rounds, options.millis, options.strangers) = (1, 20, 20);
    }
    options.at_once = options.at_once.min(options.registered);
    bench::end(run(&options), &options.call)
}

fn run(options: &Options) -> Outcome<Report> {
    let mut report = json!({});
    let mut add = |name: &str, figures: Value| report[name] = figures;
    println!("stores in {}", disk::describe(&options.directory())?);
    if options.has(Part::Pipeline) {
        add("pipeline", pipeline::run(options)?);
    }
    // Threads that are made from now on inherit the core; what is measured has the other one.
    let pinned = cpu::pin(std::process::id(), cpu::GENERATOR_CORE);
    println!("{}", if pinned { "load and measured on a core each" } else { "NOT PINNED" });
    let runtime = bench::runtime()?;
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
    Ok(Report(report))
}
