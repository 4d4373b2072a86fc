//! The `holdfast` command: arguments to command. The only place that exits.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use holdfast::cli::{
    audit, capsule, check, explain, health, key, node, quickstart, request, rollout, run, store,
};

/// A request is some two hundred small allocations, most of them pingora's: `benches/README.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An edge proxy that ties every access token to its sender
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    RunSuccessor(run::successor::Args),
    Health(health::Args),
    Quickstart(quickstart::Args),
    Request(Box<request::Args>),
    Node(Box<node::Args>),
    Key(key::Args),
    Audit(audit::Args),
    Rollout(rollout::Args),
    Store(store::Args),
    Capsule(capsule::Args),
    /// Every error and warning of a configuration, with file, line and key path
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Write one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Which listener, route, upstream, tenant and rule would serve a request, and what a sender
    /// must present
    Explain {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The request's method
        method: String,
        /// The request's URL
        url: String,
        /// The tenant of the token
        #[arg(long)]
        tenant: Option<String>,
        /// An audience of the token
        #[arg(long)]
        audience: Option<String>,
        /// The client of the token: whether enforcePercent has it
        #[arg(long)]
        client: Option<String>,
        /// Write one JSON document
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let mut out = io::stdout().lock();
    match Arguments::parse().command {
        Command::Run(args) => {
            drop(out); // the log writes to it
            run::run(&args, &mut io::stderr())
        }
        Command::RunSuccessor(args) => run::successor::run(&args, &mut io::stderr()),
        Command::Quickstart(args) => {
            let colour = out.is_terminal();
            quickstart::run(&args, colour, &mut out, &mut io::stderr())
        }
        Command::Health(args) => health::run(&args, &mut io::stderr()),
        Command::Node(args) => node::run(&args, &mut out, &mut io::stderr()),
        Command::Key(args) => key::run(&args, &mut out, &mut io::stderr()),
        Command::Store(args) => store::run(&args, &mut out, &mut io::stderr()),
        Command::Audit(args) => audit::run(&args, &mut out, &mut io::stderr()),
        Command::Rollout(args) => rollout::run(&args, &mut out, &mut io::stderr()),
        Command::Request(args) => request::run(&args, &mut out, &mut io::stderr()),
        Command::Capsule(args) => {
            let (out_is_terminal, mut errors) = (out.is_terminal(), io::stderr());
            let errors_is_terminal = errors.is_terminal();
            let (out, errors) = (&mut out, &mut errors);
            let mut screen = capsule::Screen { out, out_is_terminal, errors, errors_is_terminal };
            capsule::run(&args, &mut screen)
        }
        Command::Check { config, json } => status(check::run(&mut out, &config, json)),
        Command::Explain { config, method, url, tenant, audience, client, json } => {
            let (tenant, audience) = (tenant.as_deref(), audience.as_deref());
            let client = client.as_deref();
            let (method, url) = (method.as_str(), url.as_str());
            let query =
                explain::Query { config: &config, method, url, tenant, audience, client, json };
            status(explain::run(&mut out, &query))
        }
    }
}

/// The status of a command; a reader of its output that went away is no failure of it.
fn status(done: io::Result<u8>) -> ExitCode {
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
