//! In front of an authorization server: what a request for a token costs at the edge, the real program
//! as its own process, under load, its records on a real disk.
//!
//! ```text
//! generator (core 1)                    holdfast (core 0, one worker thread, one of the store)
//!   clients, TLS, HTTP/1.1       ────►    a public route │ a token route ──► records, durable
//!   authorization server, clear  ◄────
//! ```
//!
//! Every proof is signed before the clock starts and used once. `benches/README.md` has the method
//! and the figures.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark reports")]
#![expect(clippy::indexing_slicing, reason = "a JSON object takes any member")]
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a benchmark has a clock, randomness, files and tasks"
)]

#[path = "../shared/bench.rs"]
mod bench;
mod cases;
#[path = "../shared/check.rs"]
mod check;
mod clients;
#[path = "../shared/cpu.rs"]
mod cpu;
#[path = "../shared/disk.rs"]
mod disk;
#[path = "../shared/drive.rs"]
mod drive;
#[path = "../shared/figures.rs"]
mod figures;
#[path = "../shared/http1.rs"]
mod http1;
#[path = "../shared/load.rs"]
mod load;
#[path = "../shared/origin.rs"]
mod origin;
#[path = "../shared/pki.rs"]
mod pki;
#[path = "../shared/program.rs"]
mod program;
#[path = "../shared/proofs.rs"]
mod proofs;
#[path = "../shared/ratio.rs"]
mod ratio;
mod report;
#[path = "../shared/rounds.rs"]
mod rounds;
mod stage;
mod store;
mod stub;
#[path = "../shared/threads.rs"]
mod threads;
#[path = "../shared/tokens.rs"]
mod tokens;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use bench::{Call, Outcome};
use cases::Kind;
use drive::WARM_UP;
use report::{Report, Round};
use stage::Stage;

/// The most requests of one run: the edge remembers the proofs of a million.
const MOST_REQUESTS: usize = 900_000;
/// After this the run is given up, whatever it does.
const LIMIT: Duration = Duration::from_secs(900);

/// Requests for tokens: CPU time a request, throughput, latency, and records a transaction
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench authority --")]
struct Options {
    /// Requests under way at once, each on its own connection
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=512))]
    clients: u16,
    /// Measured requests of each case in each round
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    requests: u32,
    /// Rounds, each of every case; medians are reported
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Also `retrofit, dpop` with so many requests at once, in some rounds
    #[arg(long, value_delimiter = ',', value_name = "N", default_value = "1,4,64,256")]
    at_once: Vec<u16>,
    /// Of every so many rounds one has those, too
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=100))]
    every: u16,
    /// Only the cases whose name begins so; then there may be no ratios
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Grants whose records are in the store before, two each
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(0..=5_000_000))]
    kept: u32,
    /// Records and proofs go to the Redis that listens on this port of 127.0.0.1, which is yours to start
    /// (and to pin to the other core); none is in it before
    #[arg(long, value_name = "PORT")]
    redis: Option<u16>,
    /// Where the store is made; a directory on a real disk [default: target/tmp]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    #[command(flatten)]
    call: Call,
}

impl Options {
    fn directory(&self) -> PathBuf {
        let default = || PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        self.directory.clone().unwrap_or_else(default)
    }
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    if options.call.is_trial() {
        (options.clients, options.requests, options.rounds) = (4, 16, 1);
        (options.at_once, options.kept) = (vec![2], 100);
    }
    bench::end(run(&options), &options.call)
}

fn run(options: &Options) -> Outcome<Report> {
    let cases = Kind::ALL.len() + options.at_once.len();
    let all = usize::try_from(options.requests)? * usize::from(options.rounds) * cases;
    if all > MOST_REQUESTS {
        return Err(format!("{all} requests in one run; {MOST_REQUESTS} are the most").into());
    }
    println!("store in {}", disk::describe(&options.directory())?);
    rounds::run(LIMIT, async |pinned| measure(options, pinned).await)
}

async fn measure(options: &Options, pinned: bool) -> Outcome<Report> {
    let stage = Stage::start(options, pinned).await?;
    let (requests, usual) = (usize::try_from(options.requests)?, usize::from(options.clients));
    let before = stage.refresh_tokens()?;
    let mut report = Report::new(options, &stage);
    for number in 0..options.rounds {
        let chosen = |kind: &Kind| kind.name().starts_with(&options.only);
        let mut works: Vec<(Kind, usize)> =
            Kind::ALL.into_iter().filter(chosen).map(|kind| (kind, usual)).collect();
        if number % options.every == 0 && chosen(&Kind::Dpop) {
            let others = options.at_once.iter().map(|&clients| usize::from(clients));
            let others = others.filter(|&clients| clients != usual);
            works.extend(others.map(|clients| (Kind::Dpop, clients)));
        }
        for (at, (kind, clients)) in works.into_iter().enumerate() {
            // Codes of the sweep are others than those of the round.
            let sweep = if clients == usual { 0 } else { at };
            let label = format!("{number} {sweep}");
            let prepared = stage.requests(kind, &label, WARM_UP * clients + requests).await?;
            let (load, stored) = clients::run(&stage, kind, clients, prepared).await?;
            report.add(Round { number, kind, clients, load, stored });
        }
        report.add_proof(stage.proof_cost(requests)?);
    }
    // What is in Redis shows in that the tokens can be used.
    if options.redis.is_none() {
        report.kept(stage.refresh_tokens()? - before);
    }
    Ok(report)
}
