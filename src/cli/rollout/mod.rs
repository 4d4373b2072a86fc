//! `holdfast rollout`: who could be enforced today, and what the others lack.

mod nonces;
mod read;
mod report;
mod tally;
mod text;

use std::io::{IsTerminal as _, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use super::site::{self, CommandError, When};
use report::Wanted;
use tally::Tally;

/// See from the records who could be enforced today
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Which tenants, clients and routes would pass if they were enforced, and what the others lack
    #[command(
        after_help = "Reads authority.dpop.request records, as the edge writes them to stdout: JSON lines, with \
        or without what a log collector puts before them. Lines that cannot be read are counted and named. \
        Requests that no mode lets pass (a token that has expired) count for nobody.\n\nWhether nonces are taken \
        up is told by the tokens' keys (cnf_jkt). A key that has sent a good one lacks none. One with two misses \
        or more and no good one does not take them up, and its client is not ready; one with a single miss is \
        excused while as many keys of its client have sent good ones. Records without a key (token routes) are \
        excused while their client has sent at least as many good nonces.\n\nMemory is bounded: past 100000 \
        tenant, client and route combinations, further clients are counted together; past 1000000 keys, what \
        further ones miss counts as not taken up.\n\nExit status: 0, or 1 when a file could not be read, or with \
        --require-ready when anything is not ready or the records are incomplete: lines that the edge could not \
        write (holdfast.log.suppressed), that could not be read, or that were left out. Why is said on stderr. \
        Lines of other programs count too: give it the edge's alone."
    )]
    Report(Report),
}

#[derive(Clone, Debug, clap::Args)]
struct Report {
    /// Files of log lines, plain or .gz; - for standard input
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    log: Vec<PathBuf>,
    /// Only records from then on: so long ago (24h, 7d), or a time (RFC 3339)
    #[arg(long, value_name = "WHEN", value_parser = site::parse_when)]
    since: Option<When>,
    /// Requests that are needed to say that somebody is ready
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    min_requests: u64,
    /// Requests that may fail all the same, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = parse_percent)]
    tolerate: f64,
    /// Only this tenant; `default` are requests of none
    #[arg(long)]
    tenant: Option<String>,
    /// Only this client
    #[arg(long)]
    client: Option<String>,
    /// Only this route
    #[arg(long)]
    route: Option<String>,
    /// Rows of each table, the worst first; 0 for all
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    rows: usize,
    /// Exit with 1 unless all that is reported is ready, and no line is missing
    #[arg(long)]
    require_ready: bool,
    /// Write one JSON document
    #[arg(long)]
    json: bool,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let percent = text.parse::<f64>().ok().filter(|percent| (0.0..=100.0).contains(percent));
    percent.ok_or_else(|| "a number from 0 to 100 is expected".to_owned())
}

/// Does it. What was asked for goes to `out`, errors to `errors`.
pub fn run(args: &Args, out: &mut dyn Write, errors: &mut dyn Write) -> ExitCode {
    let Command::Report(asked) = &args.command;
    match report(asked, out, errors) {
        Err(CommandError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        done => site::status(done, errors),
    }
}

fn report(
    asked: &Report,
    out: &mut dyn Write,
    errors: &mut dyn Write,
) -> Result<bool, CommandError> {
    let wanted = Wanted {
        since: asked.since.map(|since| since.at(site::now())),
        min_requests: asked.min_requests,
        tolerate: asked.tolerate,
        tenant: asked.tenant.clone(),
        client: asked.client.clone(),
        route: asked.route.clone(),
    };
    let mut tally = Tally::default();
    let read = read::read(&asked.log, &wanted, &mut tally, errors)?;
    let report = report::Report::of(&tally, &wanted, read);
    if asked.json {
        writeln!(out, "{:#}", serde_json::to_value(&report).unwrap_or_default())?;
    } else {
        let width = std::io::stdout().is_terminal().then(text::width).flatten();
        text::write(out, &report, asked.rows, width)?;
    }
    let obstacle = report.obstacle().filter(|_| asked.require_ready);
    if let Some(why) = &obstacle {
        writeln!(errors, "not ready: {why}")?;
    }
    Ok(obstacle.is_none())
}
