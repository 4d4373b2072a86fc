//! What a request costs at the edge: the real program as its own process, under load.
//!
//! ```text
//! generator (core 1)                     holdfast (core 0, one worker thread)
//!   clients, TLS, HTTP/1.1 or h2  ────►    a public route, or one that admits
//!   origin, HTTP/1.1 in clear     ◄────
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
#[path = "../shared/ratio.rs"]
mod ratio;
mod report;
#[path = "../shared/rounds.rs"]
mod rounds;
mod stage;
#[path = "../shared/tokens.rs"]
mod tokens;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use bench::{Call, Outcome};
use cases::{Case, Kind, Protocol};
use check::Signatures;
use report::{Report, Round};
use stage::Stage;

/// After this the run is given up, whatever it does.
const LIMIT: Duration = Duration::from_secs(900);
/// The most proofs of one run: the edge remembers a million.
const MOST_PROOFS: usize = 900_000;

/// Load on the real program: CPU time a request, throughput and latency
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench edge --")]
struct Options {
    /// Requests under way at once; over HTTP/1.1 each has its own connection
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=512))]
    clients: u16,
    /// Streams at once on one HTTP/2 connection
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=128))]
    streams: u16,
    /// Measured requests of each case in each round
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests: u32,
    /// Rounds, each of every case; medians are reported
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Only the cases whose name begins so (`dpop`, `public, h2` …); then there may be no ratios
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    #[command(flatten)]
    call: Call,
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    if options.call.is_trial() {
        (options.clients, options.streams, options.requests, options.rounds) = (4, 2, 16, 1);
    }
    bench::end(run(&options), &options.call)
}

fn run(options: &Options) -> Outcome<Report> {
    let requests = usize::try_from(options.requests)?;
    let proofs = requests * usize::from(options.rounds) * 2;
    if proofs > MOST_PROOFS {
        return Err(format!("{proofs} proofs in one run; {MOST_PROOFS} are the most").into());
    }
    rounds::run(LIMIT, async |pinned| measure(options, requests, pinned).await)
}

async fn measure(options: &Options, requests: usize, pinned: bool) -> Outcome<Report> {
    let stage = Stage::start(pinned, None).await?;
    let chosen = |case: &Case| case.name().starts_with(&options.only);
    let cases: Vec<Case> = Case::all().into_iter().filter(chosen).collect();
    let mut report = Report::new(options, pinned);
    for number in 0..options.rounds {
        for case in &cases {
            let work = clients::Work {
                clients: options.clients.into(),
                streams: match case.protocol {
                    Protocol::Http1 => 1,
                    Protocol::H2 => options.streams.into(),
                },
                requests,
            };
            let load = clients::run(&stage, *case, &work).await?;
            report.add(Round { number, case: *case, load });
        }
        let proofs = stage.proofs(Kind::Dpop, requests).await?;
        let signatures = Signatures::new(&stage.sender, &proofs)?;
        report.add_signature(check::measured(pinned, move || signatures.cost())?);
    }
    Ok(report)
}
