//! `holdfast key`: master keys, envelope keys and the audit log's.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::site::{self, CommandError, now, parse_duration, parse_reason};
use crate::policy::audit::Kind as AuditKind;
use crate::store::keys::{self, Algorithm, KeyInfo, KeyRing, Kind};
use crate::store::sqlite::Database;

/// Make, rotate, retire and list the keys of runtime capsules
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Make the first version of every key
    Init {
        /// The directory that the keys go to; made where it is missing
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// What envelopes and the audit log are signed by
        #[arg(long, value_enum, default_value = "eddsa")]
        algorithm: AlgorithmName,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Make the next version of a key; those before stay until they are retired
    Rotate {
        #[command(flatten)]
        one: One,
        /// What it signs by
        #[arg(long, value_enum, default_value = "eddsa")]
        algorithm: AlgorithmName,
        /// Begin to sign after this time, until which it is only published: those who verify keep
        /// what they fetched for some minutes
        #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "10m")]
        after: Duration,
    },
    /// Take the secret of an old version away, for good
    Retire {
        #[command(flatten)]
        one: One,
        /// The version
        version: u32,
    },
    /// Which keys there are
    List {
        /// The configuration file
        #[arg(long, value_name = "FILE", conflicts_with = "dir")]
        config: Option<PathBuf>,
        /// The directory with the keys
        #[arg(long, value_name = "DIR", required_unless_present = "config")]
        dir: Option<PathBuf>,
        /// Write JSON
        #[arg(long)]
        json: bool,
        /// Write the JWK set that envelopes, or the audit log, are verified with
        #[arg(long, value_enum, value_name = "WHICH", conflicts_with = "json")]
        jwks: Option<JwksOf>,
    },
}

/// A key of a configuration.
#[derive(Clone, Debug, clap::Args)]
struct One {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Which key
    #[arg(value_enum)]
    kind: KindName,
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT", value_parser = parse_reason)]
    reason: String,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindName {
    /// Runtime keys are derived from it
    Master,
    /// Signs envelopes
    Envelope,
    /// Signs checkpoints of the audit log
    Audit,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AlgorithmName {
    /// Ed25519
    Eddsa,
    /// ECDSA on P-256
    Es256,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum JwksOf {
    /// Of envelopes
    Envelope,
    /// Of the audit log
    Audit,
}

impl From<KindName> for Kind {
    fn from(name: KindName) -> Self {
        match name {
            KindName::Master => Self::Master,
            KindName::Envelope => Self::Envelope,
            KindName::Audit => Self::Audit,
        }
    }
}

impl From<AlgorithmName> for Algorithm {
    fn from(name: AlgorithmName) -> Self {
        match name {
            AlgorithmName::Eddsa => Self::EdDsa,
            AlgorithmName::Es256 => Self::Es256,
        }
    }
}

/// Does it. What was asked for goes to `out`, errors to `errors`. 0, or 1 where it was not done.
pub fn run(args: &Args, out: &mut dyn Write, errors: &mut dyn Write) -> ExitCode {
    site::status(dispatch(&args.command, out).map(|()| true), errors)
}

fn dispatch(command: &Command, out: &mut dyn Write) -> Result<(), CommandError> {
    match command {
        Command::Init { dir, algorithm, json } => {
            let made = keys::init(dir, (*algorithm).into(), now()).map_err(words)?;
            for (path, info) in &made {
                tell("made", path, info, *json, out)?;
            }
            Ok(())
        }
        Command::Rotate { one, algorithm, after } => {
            let activates = now().plus(*after);
            change(one, "rotate", out, |dir| {
                keys::rotate(dir, one.kind.into(), (*algorithm).into(), now(), activates)
            })
        }
        Command::Retire { one, version } => {
            change(one, "retire", out, |dir| keys::retire(dir, one.kind.into(), *version, now()))
        }
        Command::List { config, dir, json, jwks } => {
            let dir = match (config, dir) {
                (Some(config), _) => directory(&site::load(config)?, config)?.to_owned(),
                (None, Some(dir)) => dir.clone(),
                (None, None) => PathBuf::from("."),
            };
            list(&KeyRing::load(&dir).map_err(words)?, *json, *jwks, out)
        }
    }
}

fn words(error: keys::KeysError) -> CommandError {
    CommandError::Other(error.to_string())
}

fn directory<'a>(config: &'a crate::config::Config, path: &Path) -> Result<&'a Path, CommandError> {
    let capsules = config.capsules.as_ref();
    let none = || CommandError::Other(format!("{}: it has no `capsules`", path.display()));
    capsules.map(|capsules| capsules.keys.as_path()).ok_or_else(none)
}

/// Changes a key and writes it down. The store is opened first: what cannot be written down is not
/// done.
fn change(
    one: &One,
    action: &str,
    out: &mut dyn Write,
    make: impl FnOnce(&Path) -> Result<(PathBuf, KeyInfo), keys::KeysError>,
) -> Result<(), CommandError> {
    let config = site::load(&one.config)?;
    let mut database = site::open(&config, &one.config)?;
    let dir = directory(&config, &one.config)?;
    let note = |database: &mut Database, data: Value| {
        let draft = site::draft(AuditKind::KeyChange, None, data, &one.reason, now())?;
        Ok::<_, CommandError>(database.transact(|batch| batch.append(&draft))?)
    };
    let kind = Kind::from(one.kind);
    note(&mut database, json!({ "action": action, "is": "begun", "kind": kind }))?;
    let (path, info) = match make(dir) {
        Ok(made) => made,
        Err(error) => {
            note(&mut database, json!({ "action": action, "is": "failed", "kind": kind }))?;
            return Err(words(error));
        }
    };
    let data = json!({ "action": action, "is": "done", "key": info_json(&info) });
    note(&mut database, data).map_err(|fault| {
        CommandError::Other(format!(
            "{}: it is done; the audit log has only that it was begun: {fault}",
            path.display()
        ))
    })?;
    tell(action, &path, &info, one.json, out)
}

fn list(
    ring: &KeyRing,
    as_json: bool,
    jwks: Option<JwksOf>,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    match jwks {
        Some(JwksOf::Envelope) => writeln!(out, "{:#}", ring.jwks())?,
        Some(JwksOf::Audit) => writeln!(out, "{:#}", ring.audit_jwks())?,
        None if as_json => {
            let infos: Vec<_> = ring.infos().iter().map(info_json).collect();
            writeln!(out, "{:#}", Value::from(infos))?;
        }
        None => {
            for info in ring.infos() {
                writeln!(out, "{}", info_text(info))?;
            }
        }
    }
    Ok(())
}

fn tell(
    action: &str,
    path: &Path,
    info: &KeyInfo,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    if as_json {
        let told = json!({ "action": action, "file": path, "key": info_json(info) });
        writeln!(out, "{told}")?;
    } else {
        writeln!(out, "{}: {action}: {}", path.display(), info_text(info))?;
    }
    Ok(())
}

fn info_text(info: &KeyInfo) -> String {
    let mut text =
        format!("{} {}, made {}", info.kind.name(), info.version, info.created.rfc3339());
    if let Some((kid, algorithm)) = &info.signs {
        text.push_str(&format!(", {algorithm}, kid {kid}"));
    }
    if let Some(activates) = info.activates.filter(|it| *it > info.created) {
        text.push_str(&format!(", signs from {}", activates.rfc3339()));
    }
    if let Some(retired) = info.retired {
        text.push_str(&format!(", retired {}", retired.rfc3339()));
    }
    text
}

fn info_json(info: &KeyInfo) -> Value {
    json!({
        "kind": info.kind,
        "version": info.version,
        "created": info.created.rfc3339().to_string(),
        "activates": info.activates.map(|it| it.rfc3339().to_string()),
        "retired": info.retired.map(|it| it.rfc3339().to_string()),
        "kid": info.signs.as_ref().map(|(kid, _)| kid),
        "alg": info.signs.as_ref().map(|(_, algorithm)| algorithm),
    })
}
