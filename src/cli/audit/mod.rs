//! `holdfast audit`: the audit log verified, followed, and explained in words.

#![expect(clippy::disallowed_methods, reason = "long work shows its progress, and reads a file")]

mod chain;
mod export;
mod files;
mod rotate;
mod verify;
mod words;

use std::io::{IsTerminal as _, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;

use super::site::{self, CommandError, When};
use crate::policy::audit::{Kind, Line};
use crate::policy::digest::Sha256;
use crate::store::sqlite::Fault;
use crate::store::sqlite::reader::{Reader, Stored};

/// Lines that are read at a time.
const PAGE: usize = 2000;
/// How often `tail --follow` looks.
const LOOK: Duration = Duration::from_millis(300);

/// Verify, follow and explain the audit log
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Follow the chain from its first line and check every checkpoint
    #[command(
        after_help = "With files, as `export` and `rotate` write them, their lines come first, in their \
        order; then those of the store, if one is named. Files alone need --jwks, the keys that signed.\n\nExit \
        status: 0 when the log, or the part of it that was looked at, is whole, 1 when it is not."
    )]
    Verify {
        /// Files with parts of the log
        files: Vec<PathBuf>,
        /// The configuration file
        #[arg(long, value_name = "FILE", required_unless_present_any = ["store", "files"])]
        config: Option<PathBuf>,
        /// The store's file, or a copy of it, without a configuration
        #[arg(long, value_name = "FILE", conflicts_with = "config")]
        store: Option<PathBuf>,
        /// A line that must be there, as the edge's log told of it: NUMBER:HASH
        #[arg(long, value_name = "NUMBER:HASH", value_parser = parse_seen)]
        seen: Vec<(u64, Sha256)>,
        /// The JWK set that checkpoints are verified with [default: the configuration's keys]
        #[arg(long, value_name = "FILE")]
        jwks: Option<PathBuf>,
        /// Write one JSON document
        #[arg(long)]
        json: bool,
    },
    /// The last lines
    Tail {
        #[command(flatten)]
        site: Site,
        /// How many
        #[arg(short = 'n', long, default_value_t = 20)]
        lines: u64,
        /// Go on with those that come
        #[arg(long, short = 'f')]
        follow: bool,
        /// Only those of this node
        #[arg(long)]
        node: Option<String>,
        /// Only those of this kind, as lines write it: dpop.bypass lists what the temporary bypass let by
        #[arg(long, value_parser = parse_kind)]
        kind: Option<Kind>,
        /// Write the lines as they are
        #[arg(long)]
        json: bool,
    },
    /// Lines of the log as JSON lines, which can be verified by themselves
    #[command(
        after_help = "The first line says of which chain the others are a part, and what they follow; the \
        last is the checkpoint that covers those asked for, where there is one yet."
    )]
    Export {
        #[command(flatten)]
        site: Site,
        /// From then on: so long ago (24h, 7d), or a time (RFC 3339) [default: all]
        #[arg(long, value_name = "WHEN", value_parser = site::parse_when)]
        since: Option<When>,
        /// Up to then [default: now]
        #[arg(long, value_name = "WHEN", value_parser = site::parse_when)]
        until: Option<When>,
        /// Into a file that is made new, instead of standard output
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Move the oldest lines into a file, beside a running edge
    #[command(
        after_help = "What is moved ends with a signed checkpoint and is taken out of the store only when the \
        file is on the disk and was read again. The log says so in a line of its own, and `audit verify FILE… \
        --config F` follows it through all files into the store. A log that is not whole is left as it is. Run it \
        again after it was cut off. The store's file keeps its size: what is free in it is used anew."
    )]
    Rotate {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// What stays in the store: lines that are younger (90d), or after a time (RFC 3339)
        #[arg(long, value_name = "WHEN", value_parser = site::parse_when)]
        keep: When,
        /// The directory for the file
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Why, for the audit log
        #[arg(long, default_value = "retention", value_parser = site::parse_reason)]
        reason: String,
        /// Move lines that no checkpoint covers, where the edge has no keys to sign with
        #[arg(long)]
        unsigned: bool,
        /// Write one JSON document
        #[arg(long)]
        json: bool,
    },
    /// One decision or change in words
    Show {
        #[command(flatten)]
        site: Site,
        /// Its id, as an answer's decisionId, or the number of its line
        id: String,
        /// Write the lines as they are
        #[arg(long)]
        json: bool,
    },
}

/// Where the log is.
#[derive(Clone, Debug, clap::Args)]
struct Site {
    /// The configuration file
    #[arg(long, value_name = "FILE", required_unless_present = "store")]
    config: Option<PathBuf>,
    /// The store's file, or a copy of it, without a configuration
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    store: Option<PathBuf>,
}

impl Site {
    /// Whether there is a store to look at.
    fn is_named(&self) -> bool {
        self.config.is_some() || self.store.is_some()
    }

    fn open(&self) -> Result<Reader, CommandError> {
        let path = match (&self.config, &self.store) {
            (Some(config), _) => site::store_path(&site::load(config)?, config)?.to_owned(),
            (None, Some(store)) => store.clone(),
            (None, None) => return Err(CommandError::Other("say --config or --store".into())),
        };
        if !path.exists() {
            let text = format!("{}: there is no store", path.display());
            return Err(CommandError::Other(text));
        }
        Ok(Reader::open(&path)?)
    }
}

/// Does it. What was asked for goes to `out`, errors to `errors`. 0, or 1 where the log is not whole
/// or was not read.
pub fn run(args: &Args, out: &mut dyn Write, errors: &mut dyn Write) -> ExitCode {
    let done = match &args.command {
        Command::Verify { files, config, store, seen, jwks, json } => {
            let site = &Site { config: config.clone(), store: store.clone() };
            let asked = verify::Asked { files, site, seen, jwks: jwks.as_deref(), json: *json };
            verify::run(&asked, out, errors)
        }
        Command::Tail { site, lines, follow, node, kind, json } => {
            let wanted = |stored: &Stored| is_wanted(stored, node.as_deref(), *kind);
            tail(site, *lines, *follow, &wanted, *json, out).map(|()| true)
        }
        Command::Export { site, since, until, out: file } => {
            let (since, until) = (*since, *until);
            let asked = export::Asked { site, since, until, out: file.as_deref() };
            export::run(&asked, out, errors).map(|()| true)
        }
        Command::Rotate { config, keep, to, reason, unsigned, json } => {
            let (keep, unsigned, json) = (*keep, *unsigned, *json);
            let asked = rotate::Asked { config, keep, to, reason, unsigned, json };
            rotate::run(&asked, out, errors)
        }
        Command::Show { site, id, json } => show(site, id, *json, out).map(|()| true),
    };
    match done {
        Err(CommandError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        done => site::status(done, errors),
    }
}

fn parse_seen(text: &str) -> Result<(u64, Sha256), String> {
    let parts = text
        .split_once(':')
        .and_then(|(number, hash)| Some((number.parse().ok()?, Sha256::from_base64url(hash)?)));
    parts.ok_or_else(|| "expected NUMBER:HASH".to_owned())
}

fn parse_kind(text: &str) -> Result<Kind, String> {
    let quoted = serde_json::Value::from(text);
    // It says which there are.
    serde_json::from_value(quoted).map_err(|error| format!("no kind of line is called so: {error}"))
}

fn is_wanted(stored: &Stored, node: Option<&str>, kind: Option<Kind>) -> bool {
    if node.is_none() && kind.is_none() {
        return true;
    }
    serde_json::from_str::<Line>(&stored.line).is_ok_and(|line| {
        node.is_none_or(|node| line.node.as_deref() == Some(node))
            && kind.is_none_or(|kind| line.kind == kind)
    })
}

fn tail(
    site: &Site,
    lines: u64,
    follow: bool,
    wanted: &dyn Fn(&Stored) -> bool,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let reader = site.open()?;
    let mut next = first_of(&reader, lines, wanted)?;
    loop {
        let page = reader.lines(next, PAGE)?;
        for stored in page.iter().filter(|stored| wanted(stored)) {
            let text = if as_json { stored.line.clone() } else { words::one_line(&stored.line) };
            writeln!(out, "{text}")?;
        }
        match page.last() {
            Some(last) => next = last.seq + 1,
            None if follow => {
                out.flush()?;
                std::thread::sleep(LOOK);
            }
            None => return Ok(()),
        }
    }
}

/// The number from which `count` lines are wanted.
fn first_of(
    reader: &Reader,
    count: u64,
    wanted: &dyn Fn(&Stored) -> bool,
) -> Result<u64, CommandError> {
    let last = reader.last()?;
    let (mut from, mut found) = (last + 1, 0);
    while from > 1 && found < count {
        let page_from = from.saturating_sub(PAGE as u64).max(1);
        let page = reader.lines(page_from, usize::try_from(from - page_from).unwrap_or(PAGE))?;
        for stored in page.iter().rev() {
            from = stored.seq;
            found += u64::from(wanted(stored));
            if found == count {
                break;
            }
        }
        if page.is_empty() {
            break;
        }
    }
    Ok(from)
}

fn show(site: &Site, id: &str, as_json: bool, out: &mut dyn Write) -> Result<(), CommandError> {
    let reader = site.open()?;
    let lines = match id.parse::<u64>() {
        Ok(number) if id.len() < 16 => {
            reader.lines(number, 1)?.into_iter().filter(|line| line.seq == number).collect()
        }
        Ok(_) | Err(_) => reader.lines_of(id)?,
    };
    if lines.is_empty() {
        let moved = match reader.audit_base()?.seq {
            0 => String::new(),
            last => format!("; lines 1 to {last} are in files"),
        };
        let text = format!(
            "nothing is written down of {id}: refusals past a client's budget are only counted{moved}"
        );
        return Err(CommandError::Other(text));
    }
    for stored in &lines {
        if as_json {
            writeln!(out, "{}", stored.line)?;
            continue;
        }
        let line: Line = serde_json::from_str(&stored.line)
            .map_err(|_| CommandError::Fault(Fault::Malformed))?;
        words::explain(&line, out)?;
    }
    Ok(())
}

/// Whether somebody looks on.
fn is_watched() -> bool {
    std::io::stderr().is_terminal()
}
