//! `holdfast capsule verify`: what a third party can tell of an envelope, without asking anybody.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::failure::Failure;
use super::fault::Fault;
use super::{Screen, envelope, files, output, plan};
use crate::cli::client::trace::clean;
use crate::cli::site::now;
use crate::policy::capsule::node::NodeId;
use crate::policy::time::UnixTime;

/// How far the edge's clock may be ahead of this one.
const SKEW: Duration = Duration::from_secs(30);

/// Verify a capsule's envelope offline, and with --key that a key is the one it vouches for
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Exit status: 0 when everything holds, 1 when something does not, 2 when \
                        a file cannot be read.")]
pub(super) struct Args {
    /// A file with the envelope
    pub(super) envelope: PathBuf,
    /// The edge's keys, a JWK set: /.well-known/holdfast/capsule-jwks.json
    #[arg(long, value_name = "FILE")]
    pub(super) jwks: PathBuf,
    /// The key, as `capsule fetch` wrote it
    #[arg(long, value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
    /// The node that it must be for
    #[arg(long, value_name = "ID", value_parser = NodeId::parse)]
    pub(super) node: Option<NodeId>,
    /// The cluster that it must be of
    #[arg(long, value_name = "NAME")]
    pub(super) cluster: Option<String>,
    /// Write one JSON document
    #[arg(long)]
    pub(super) json: bool,
}

/// One thing that was looked at.
struct Check {
    name: &'static str,
    /// What holds, or what is wrong.
    said: Result<String, Fault>,
}

/// Verifies, and says with which status to exit.
pub(super) fn run(args: &Args, screen: &mut Screen<'_>) -> ExitCode {
    let checked = check(args, now()).and_then(|(checks, document)| {
        let holds = checks.iter().all(|check| check.said.is_ok());
        if args.json {
            screen.document(&document)?;
        } else {
            write(screen, &checks)?;
        }
        Ok(holds)
    });
    match checked {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(failure) => {
            screen.tell("error: ", &failure.to_string());
            ExitCode::from(2)
        }
    }
}

fn write(screen: &mut Screen<'_>, checks: &[Check]) -> Result<(), Failure> {
    for check in checks {
        let (verdict, said) = match &check.said {
            Ok(said) => ("holds", clean(said)),
            Err(fault) => ("FAILS", clean(&fault.to_string())),
        };
        writeln!(screen.out, "{verdict}  {:<9} {said}", check.name)?;
    }
    screen.out.flush()?;
    Ok(())
}

/// Everything that can be said at `now`, as checks and as a document.
fn check(args: &Args, now: UnixTime) -> Result<(Vec<Check>, Value), Failure> {
    let keys = plan::key_set(&args.jwks)?;
    let compact = files::read(&args.envelope)?;
    let compact = String::from_utf8_lossy(&compact);
    let key = args.key.as_deref().map(files::read).transpose()?;
    let signed = match envelope::read(compact.trim(), &keys) {
        Ok(signed) => signed,
        Err(fault) => {
            let checks = vec![Check { name: "signature", said: Err(fault) }];
            let document = document(&checks, None);
            return Ok((checks, document));
        }
    };
    let claims = &signed.claims;
    let time = |secs| UnixTime::from_secs(secs).rfc3339();
    let mut checks = Vec::new();
    let mut add = |name, said| checks.push(Check { name, said });
    add("signature", Ok(format!("{} by {}", signed.algorithm.name(), signed.kid)));
    let is_current = signed.is_current(now, SKEW);
    let span = format!("from {} to {}", time(claims.iat), time(claims.exp));
    add("time", is_current.map(|()| span));
    let node = args.node.as_ref().map_or(Ok(()), |node| signed.is_for(node));
    let as_said = |asked: bool| if asked { ", as expected" } else { "" };
    add("node", node.map(|()| format!("{}{}", claims.sub, as_said(args.node.is_some()))));
    let cluster = args.cluster.as_ref().map_or(Ok(()), |cluster| signed.is_of_cluster(cluster));
    let cluster_told = format!("{}{}", claims.cluster, as_said(args.cluster.is_some()));
    add("cluster", cluster.map(|()| cluster_told));
    if let Some(bytes) = key {
        let key = output::decode(&bytes).ok_or(Fault::KeyLength);
        let same = key.and_then(|key| signed.is_of_key(&key));
        add("key", same.map(|()| format!("version {}, the one vouched for", claims.key_version)));
    }
    let document = document(&checks, Some(json!(claims)));
    Ok((checks, document))
}

fn document(checks: &[Check], claims: Option<Value>) -> Value {
    let list: Vec<Value> = checks
        .iter()
        .map(|check| match &check.said {
            Ok(said) => json!({"check": check.name, "holds": true, "said": said}),
            Err(fault) => json!({"check": check.name, "holds": false, "said": fault.to_string()}),
        })
        .collect();
    let holds = checks.iter().all(|check| check.said.is_ok());
    json!({"holds": holds, "checks": list, "claims": claims})
}
