//! `holdfast store`: what edges keep, moved, backed up and restored.

mod backup;
mod migrate;
mod progress;
mod restore;
mod sound;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use super::site::{self, parse_reason};
use crate::store::redis::{Login, Settings};

/// Move, back up and restore what edges keep
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Move everything to the other kind of store, with edges stopped
    #[command(
        after_help = "store.path and store.redis must both be there. Nodes, records of tokens, what \
        was revoked and the bypass's note are moved; the audit log stays where it is, and says what \
        was done. The source is left as it is; servers that may have lost something are not copied \
        from. At the end both sides are counted and their checksums compared; exit status 1 where they \
        differ.\n\nIt can be run again, also after it was stopped \
        in the middle: it goes on. A target that holds anything else than a part of the source, or \
        servers that have lost changes to nodes, are refused, unless --replace is said.\n\nIt is refused while an edge serves from the file or \
        from the servers. Do not start one before it has ended."
    )]
    Migrate(Migrate),
    /// Write everything into one file, also while edges serve
    #[command(
        after_help = "The file is made new, for its owner alone (0600), and ends with a checksum. It \
        holds the hashes of nodes' secrets: keep it as you keep the store. Of an embedded store it is \
        a SQLite file with the audit log in it; of one in Redis it has a JSON record a line, and the \
        audit log stays with its edge; servers that may have lost something are not backed up. Keys are \
        not in it: back up their directory too."
    )]
    Backup(Backup),
    /// Put a backup in the place of the store
    #[command(
        after_help = "Stop all edges first. The backup's checksum is verified before anything is \
        changed. Afterwards no node is given anything until `holdfast node confirm NODE` has been run \
        for it, since what was changed after the backup (revocations, quarantines, rotated secrets) \
        is not in it: look it up in the audit log, do it again, then confirm. What was revoked in the \
        backup stays revoked. Records of tokens are left out, so that clients log in again; with \
        --tokens they are restored, and tokens that were revoked since the backup live again."
    )]
    Restore(Restore),
}

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// The servers of store.redis
    Redis,
    /// The file of store.path
    Embedded,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Embedded => "embedded",
        }
    }
}

/// Whom the command is at the servers.
#[derive(Clone, Debug, clap::Args)]
struct As {
    /// Be this user at the servers, and not store.redis.user
    #[arg(long, value_name = "USER", requires = "redis_password_file")]
    redis_user: Option<String>,
    /// A file with that user's password, one line
    #[arg(long, value_name = "FILE", requires = "redis_user")]
    redis_password_file: Option<PathBuf>,
}

impl As {
    /// The way to the servers, as that user.
    fn at(&self, servers: &Settings) -> Settings {
        let mut servers = servers.clone();
        if self.redis_user.is_some() {
            let (user, password_file) = (self.redis_user.clone(), self.redis_password_file.clone());
            servers.login = Login { user, password_file };
        }
        servers
    }
}

#[derive(Clone, Debug, clap::Args)]
struct Migrate {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Where to
    #[arg(long, value_name = "KIND")]
    to: Kind,
    /// Count only, and say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Take out first what else the target holds
    #[arg(long)]
    replace: bool,
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT", value_parser = parse_reason, default_value = "migration")]
    reason: String,
    #[command(flatten)]
    whom: As,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct Backup {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The backup; there must be no such file yet
    #[arg(value_name = "BACKUP")]
    file: PathBuf,
    #[command(flatten)]
    whom: As,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct Restore {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The backup
    #[arg(value_name = "BACKUP")]
    file: PathBuf,
    /// Put it in the place of a store that holds something; a file that it replaces is kept beside it
    #[arg(long)]
    replace: bool,
    /// Restore records of tokens too
    #[arg(long)]
    tokens: bool,
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT", value_parser = parse_reason)]
    reason: String,
    #[command(flatten)]
    whom: As,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Does it. What was asked for goes to `out`, errors to `errors`. 0, or 1 where it was not done.
pub fn run(args: &Args, out: &mut dyn Write, errors: &mut dyn Write) -> ExitCode {
    let done = match &args.command {
        Command::Migrate(migrate) => migrate::run(migrate, out),
        Command::Backup(backup) => backup::run(backup, out),
        Command::Restore(restore) => restore::run(restore, out),
    };
    site::status(done.map(|()| true), errors)
}
