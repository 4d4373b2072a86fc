//! What it costs that edges share their memory of proofs: the real program, once with proofs in its own
//! memory and once with proofs in Redis, under the same load; and what one Redis can take.
//!
//! ```text
//! generator (core 1)                     holdfast (core 0, one worker thread)
//!   clients, TLS, HTTP/1.1       ────►    a route that admits ──► memory │ Redis (core 1)
//!   origin, HTTP/1.1 in clear    ◄────
//! ```
//!
//! `benches/SCALE.md` has the method, the figures, and what follows for a million requests a second.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark reports")]
#![expect(clippy::indexing_slicing, reason = "a JSON object takes any member")]
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a benchmark has a clock, randomness, files and tasks"
)]

#[path = "../shared/bench.rs"]
mod bench;
#[path = "../edge/cases.rs"]
#[expect(dead_code, reason = "one case is enough")]
mod cases;
#[path = "../edge/clients.rs"]
mod clients;
#[path = "../shared/cpu.rs"]
mod cpu;
#[path = "../shared/drive.rs"]
mod drive;
#[path = "../shared/figures.rs"]
mod figures;
#[path = "../shared/h2.rs"]
mod h2;
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
mod report;
#[path = "../shared/rounds.rs"]
mod rounds;
mod server;
#[path = "../edge/stage.rs"]
mod stage;
#[path = "../shared/tokens.rs"]
mod tokens;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use bench::{Call, Outcome};
use cases::{Case, Kind, Protocol};
use cpu::Used;
use report::{Memory, Report, Round};
use server::Server;
use stage::Stage;

/// After this the run is given up, whatever it does.
const LIMIT: Duration = Duration::from_secs(1800);
/// The most proofs that an edge gets in one run: it remembers a million.
const MOST_PROOFS: usize = 900_000;

/// Proofs in memory beside proofs in Redis: throughput, CPU time, latency, and what Redis can take
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench scale --")]
struct Options {
    /// Requests under way at once, each on its own connection
    #[arg(long, value_delimiter = ',', value_name = "N", default_value = "16,64")]
    clients: Vec<u16>,
    /// Measured requests of each case in each round
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests: u32,
    /// Rounds, each of both memories; medians are reported
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Live proofs that Redis has before, level by level
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "N",
        default_value = "1000,10000,100000,1000000,10000000"
    )]
    live: Vec<u64>,
    /// Proofs that Redis alone is sent to see what it takes, in batches of 1, 4, 16 and 64
    #[arg(long, default_value_t = 400_000)]
    alone: u64,
    #[command(flatten)]
    call: Call,
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    if options.call.is_trial() {
        (options.clients, options.requests, options.rounds) = (vec![4], 16, 1);
        (options.live, options.alone) = (vec![100, 1000], 640);
    }
    if !server::is_there() {
        eprintln!("no redis-server on the PATH: nothing to measure");
        return if options.call.is_trial() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    bench::end(run(&options), &options.call)
}

fn run(options: &Options) -> Outcome<Report> {
    let levels = options.clients.len() * usize::from(options.rounds) + options.live.len();
    if usize::try_from(options.requests)? * levels > MOST_PROOFS {
        return Err(format!("more than {MOST_PROOFS} proofs at one edge in one run").into());
    }
    rounds::run(LIMIT, async |pinned| measure(options, pinned).await)
}

async fn measure(options: &Options, pinned: bool) -> Outcome<Report> {
    let server = Server::start(pinned)?;
    let mut report = Report::new(options, pinned);
    {
        let alone = Stage::start(pinned, None).await?;
        let shared = Stage::start(pinned, Some(server.port)).await?;
        for number in 0..options.rounds {
            for &clients in &options.clients {
                for (memory, stage) in [(Memory::Own, &alone), (Memory::Redis, &shared)] {
                    let live = server.live()?;
                    report.add(
                        round(options, stage, memory, (number, clients, live), &server).await?,
                    );
                }
            }
        }
        let most = options.clients.iter().copied().max().unwrap_or(1);
        for &level in &options.live {
            let bytes = server.fill(level)?;
            let round = round(options, &shared, Memory::Redis, (0, most, level), &server).await?;
            report.add_level(level, bytes, round);
        }
    }
    for batch in [1, 4, 16, 64] {
        report.add_alone(batch, server.alone(options.alone, batch, pinned)?);
    }
    Ok(report)
}

async fn round(
    options: &Options,
    stage: &Stage,
    memory: Memory,
    (number, clients, live): (u16, u16, u64),
    server: &Server,
) -> Outcome<Round> {
    let case = Case { kind: Kind::Dpop, protocol: Protocol::Http1 };
    let requests = usize::try_from(options.requests)?;
    let work = clients::Work { clients: clients.into(), streams: 1, requests };
    let before = Used::of(server.id())?;
    let load = clients::run(stage, case, &work).await?;
    let server = Used::of(server.id())?.since(&before);
    Ok(Round { number, memory, clients, live, load, server })
}
