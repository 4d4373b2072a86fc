//! `holdfast node`: the registry of nodes, also while the edge runs.

mod change;
mod show;

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use ipnet::IpNet;

use super::site::{self, CommandError, parse_duration, parse_reason};
use crate::policy::capsule::change::Change;
use crate::policy::capsule::node::NodeId;
use crate::policy::digest::{Jkt, Sha256, X5tS256};

/// Enrol, look at and change nodes
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Each change is written to the audit log with its reason and who made it.")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Enrol a node; its secret is shown once
    Add(Add),
    /// List nodes
    List {
        #[command(flatten)]
        site: Site,
        /// Only those of this status; unconfirmed: active, from a backup, and not confirmed since
        #[arg(long, value_parser = show::Wanted::parse)]
        status: Option<show::Wanted>,
    },
    /// Everything that is known of a node
    Show {
        #[command(flatten)]
        site: Site,
        /// The node
        #[arg(value_parser = NodeId::parse)]
        node: NodeId,
    },
    /// Make another secret, which is shown once
    RotateSecret(One),
    /// Make the next version of the node's key
    RotateKey {
        #[command(flatten)]
        one: One,
        /// Derive no version before it any more
        #[arg(long)]
        retire_old: bool,
    },
    /// Let a disabled node have capsules again
    Enable(One),
    /// Give no capsules until it is enabled
    Disable(One),
    /// Give no capsules any more, for good
    Revoke(One),
    /// Give no capsules until it is released
    Quarantine(One),
    /// Let a quarantined node have capsules again
    Release(One),
    /// Compare the node with this network from now on
    AcceptNetwork {
        #[command(flatten)]
        one: One,
        /// The address; without it the command says where the node came from
        #[arg(long)]
        address: Option<IpAddr>,
    },
    /// Forget fingerprint, sender and network: the next capsule is a first one again
    Rejoin {
        #[command(flatten)]
        one: One,
        #[command(flatten)]
        sender: SenderArgs,
        /// How long the node may take
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        join_within: Option<Duration>,
    },
    /// Take a node out of the registry
    Remove(One),
    /// Go on with a node that is from a backup, or from a shared store that has lost changes
    #[command(
        after_help = "With NODE: its record, from a backup, is still right; a node is refused until \
        then. What was changed since the backup is not in it: revoke, quarantine and rotate again \
        before you confirm.\n\nWithout NODE: the shared store has lost changes (wiped, failed over), \
        and no edge serves any node until it is confirmed. What was lost is in the edges' audit logs: \
        do it again before."
    )]
    Confirm {
        #[command(flatten)]
        site: Site,
        /// The node [default: the shared store as a whole]
        #[arg(value_parser = NodeId::parse)]
        node: Option<NodeId>,
        /// Why, for the audit log
        #[arg(long, value_name = "TEXT", value_parser = parse_reason)]
        reason: String,
    },
}

/// Where the registry is, and how it is told of.
#[derive(Clone, Debug, clap::Args)]
struct Site {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// One node to be changed.
#[derive(Clone, Debug, clap::Args)]
struct One {
    #[command(flatten)]
    site: Site,
    /// The node
    #[arg(value_parser = NodeId::parse)]
    node: NodeId,
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT", value_parser = parse_reason)]
    reason: String,
}

/// The sender that a node is bound to before its first capsule.
#[derive(Clone, Copy, Debug, clap::Args)]
struct SenderArgs {
    /// The RFC 7638 thumbprint of the key that its proofs must have [default: the first it shows]
    #[arg(long, value_name = "THUMBPRINT", value_parser = parse_hash, allow_hyphen_values = true)]
    jkt: Option<Sha256>,
    /// The x5t#S256 of the certificate that it must show [default: the first it shows]
    #[arg(long, value_name = "THUMBPRINT", value_parser = parse_hash, allow_hyphen_values = true)]
    x5t: Option<Sha256>,
}

#[derive(Clone, Debug, clap::Args)]
struct Add {
    #[command(flatten)]
    one: One,
    #[command(flatten)]
    sender: SenderArgs,
    /// The first capsule must be asked for from here; may be given several times
    #[arg(long, value_name = "CIDR")]
    expect_network: Vec<IpNet>,
    /// The first capsule must be asked for from this autonomous system; several times
    #[arg(long, value_name = "NUMBER")]
    expect_asn: Vec<u32>,
    /// The first capsule must be asked for from this region (SE, or SE-M); several times
    #[arg(long, value_name = "REGION")]
    expect_region: Vec<String>,
    /// How long the first capsule may take
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    join_within: Option<Duration>,
    /// Write the secret to a new file that only its owner can read, instead of showing it
    #[arg(long, value_name = "FILE")]
    secret_out: Option<PathBuf>,
}

/// Does it. What was asked for goes to `out`, errors to `errors`. 0, or 1 where it was not done.
pub fn run(args: &Args, out: &mut dyn Write, errors: &mut dyn Write) -> ExitCode {
    site::status(dispatch(&args.command, out).map(|()| true), errors)
}

fn dispatch(command: &Command, out: &mut dyn Write) -> Result<(), CommandError> {
    match command {
        Command::Add(add) => change::add(add, out),
        Command::List { site, status } => show::list(site, *status, out),
        Command::Show { site, node } => show::show(site, node, out),
        Command::RotateSecret(one) => change::rotate_secret(one, out),
        Command::RotateKey { one, retire_old } => {
            change::make(one, &Change::RotateKey { retire_old: *retire_old }, out)
        }
        Command::Enable(one) => change::make(one, &Change::Enable, out),
        Command::Disable(one) => change::make(one, &Change::Disable, out),
        Command::Revoke(one) => change::make(one, &Change::Revoke, out),
        Command::Quarantine(one) => change::make(one, &Change::Quarantine, out),
        Command::Release(one) => change::make(one, &Change::Release, out),
        Command::AcceptNetwork { one, address } => change::accept_network(one, *address, out),
        Command::Rejoin { one, sender, join_within } => {
            let (jkt, x5t) = (sender.jkt.map(Jkt), sender.x5t.map(X5tS256));
            let within_ms = join_within.map(|it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX));
            change::make(one, &Change::Rejoin { jkt, x5t, within_ms }, out)
        }
        Command::Remove(one) => change::remove(one, out),
        Command::Confirm { site, node: Some(node), reason } => {
            let (site, node, reason) = (site.clone(), node.clone(), reason.clone());
            change::make(&One { site, node, reason }, &Change::Confirm, out)
        }
        Command::Confirm { site, node: None, reason } => change::confirm(site, reason, out),
    }
}

fn parse_hash(text: &str) -> Result<Sha256, String> {
    let wrong = "43 characters of base64url are expected, as `holdfast request` shows a key's";
    Sha256::from_base64url(text).ok_or_else(|| wrong.to_owned())
}

fn unknown(node: &NodeId) -> CommandError {
    CommandError::Other(format!("there is no node {node}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        node: Args,
    }

    #[test]
    fn a_thumbprint_may_begin_with_a_hyphen() {
        for name in ["--jkt", "--x5t"] {
            let hash = format!("-{}", "A".repeat(42));
            let line = ["holdfast", "rejoin", "n", name, &hash, "--reason", "r", "--config", "f"];
            assert!(Line::try_parse_from(line).is_ok(), "{name}");
        }
    }
}
