//! A backup put in the place of a store.

use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::Restore;
use super::backup::{VERSION, counted};
use super::progress::Shown;
use super::sound::unserved;
use crate::cli::site::{self, CommandError, now};
use crate::policy::audit::{Draft, Kind};
use crate::policy::time::UnixTime;
use crate::store::backup::{Backup, Content, Seal};
use crate::store::nodes::Nodes as _;
use crate::store::nodes::moved;
use crate::store::nodes::shared::SharedNodes;
use crate::store::records::transfer::{Progress, TransferError, differences};
use crate::store::records::{Record, Records as _, Servers, Tally, tally};
use crate::store::serving;
use crate::store::sqlite::copies::{Replaced, RestoreError, Restoring};

/// Records that are put at once.
const AT_ONCE: usize = 2000;

impl From<RestoreError> for CommandError {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Open(error) => Self::Open(error),
            RestoreError::Fault(fault) => Self::Fault(fault),
            RestoreError::Io(_) | RestoreError::Occupied(_) => Self::Other(error.to_string()),
        }
    }
}

/// Restores.
pub(super) fn run(restore: &Restore, out: &mut dyn Write) -> Result<(), CommandError> {
    let config = site::load(&restore.config)?;
    let store = site::store(&config, &restore.config)?;
    let mut backup = Backup::open(&restore.file)?;
    let needed = if store.redis.is_some() { Content::Redis } else { Content::Embedded };
    if backup.seal.content != needed {
        let text = "the backup is of the other kind of store: restore it there, then run \
                    `holdfast store migrate`";
        return Err(CommandError::Other(text.to_owned()));
    }
    let _alone = alone(&store.path)?;
    let now = now();
    if let Some(servers) = &store.redis {
        let (registry, runtime) = (site::registry(&config, store)?, site::runtime()?);
        let redis = site::connect(&restore.whom.at(servers), &runtime)?;
        let shared = Servers { redis, registry };
        let done = runtime.block_on(at_servers(restore, &mut backup, &shared, now));
        let nodes = site::at_servers(&shared.redis, done)?;
        return tell(restore, &backup.seal, nodes, &Replaced::default(), out);
    }
    let restoring = Restoring {
        path: &store.path,
        bytes: backup.seal.bytes,
        replace: restore.replace,
        tokens: restore.tokens,
        now,
    };
    // What it says is in the line only when it can be written; who asks is known before.
    let blank = line(restore, Value::Null, now)?;
    let seal = backup.seal.clone();
    let (nodes, replaced) = restoring.restore(&mut backup.file, |replaced, nodes| {
        line(restore, said(restore, &seal, replaced, nodes), now).unwrap_or(blank)
    })?;
    tell(restore, &seal, nodes, &replaced, out)
}

/// Restores at servers. How many nodes there are.
async fn at_servers(
    restore: &Restore,
    backup: &mut Backup,
    shared: &Servers,
    now: UnixTime,
) -> Result<u64, CommandError> {
    let mut shown = Shown::new();
    unserved(&shared.redis, &mut shown).await?;
    let mut show = |what, done| shown.show(Progress { what, done, of: None });
    let mut counted = 0;
    let there = tally(shared, now, |more| {
        counted += more;
        show("counting", counted);
    });
    if there.await?.total() > 0 && !restore.replace {
        let text = "the servers hold nodes or records of tokens: say --replace to put the backup in \
                    their place";
        return Err(CommandError::Other(text.to_owned()));
    }
    let begun = line(restore, json!({ "is": "begun", "backup": backup.seal }), now)?;
    shared.registry.transact(move |batch| batch.append(&begun)).await?;
    moved::hold(&shared.redis, now).await?;
    shared.clear().await?;
    let (mut put, mut done, mut nodes) = (Tally::default(), 0, 0);
    let mut lines = BufReader::new((&backup.file).take(backup.seal.bytes)).lines();
    let head = lines.next().transpose()?.unwrap_or_default();
    let head: Value = serde_json::from_str(&head).unwrap_or_default();
    if head.get("holdfastRecords") != Some(&json!(VERSION)) {
        return Err(CommandError::Other("the backup is of another version".to_owned()));
    }
    loop {
        let some: Vec<_> = lines.by_ref().take(AT_ONCE).collect::<Result<_, _>>()?;
        if some.is_empty() {
            break;
        }
        let mut records = Vec::new();
        for text in &some {
            records.extend(restored(Record::read(text)?, restore.tokens, now));
        }
        for record in &records {
            put.add(record)?;
            nodes += u64::from(matches!(record, Record::Node { .. }));
        }
        done += records.len() as u64;
        shared.put(records).await?;
        show("restoring", done);
    }
    put.sort();
    let there = tally(shared, now, |_| {}).await?;
    let differs = differences(&put.counts(), &there.counts());
    if !differs.is_empty() {
        return Err(TransferError::Differs(differs).into());
    }
    let said = said(restore, &backup.seal, &Replaced::default(), nodes);
    let runtime = Handle::current();
    let (redis, registry) = (shared.redis.clone(), shared.registry.clone());
    let shared = SharedNodes::start(redis, registry, Duration::ZERO, &runtime)?;
    shared.confirm(line(restore, said, now)?).await?;
    Ok(nodes)
}

/// A record as it is restored; `None` where it is not.
fn restored(record: Record, tokens: bool, now: UnixTime) -> Option<Record> {
    match record {
        Record::Node { revision, mut node } => {
            node.restored = Some(now);
            Some(Record::Node { revision, node })
        }
        Record::Token(token) => (tokens && token.expires > now).then_some(Record::Token(token)),
        Record::Certificate { .. } => tokens.then_some(record),
        Record::Removed { .. } | Record::Quarantine { .. } | Record::Bypass(_) => Some(record),
    }
}

/// The store's lock: no edge may serve from it.
pub(super) fn alone(path: &Path) -> Result<serving::Lock, CommandError> {
    site::own(path)?;
    serving::alone(path)?.ok_or_else(|| {
        let text = format!(
            "{}: an edge serves from it, or another command works on it; stop it",
            path.display()
        );
        CommandError::Other(text)
    })
}

fn line(restore: &Restore, said: Value, now: UnixTime) -> Result<Draft, CommandError> {
    let data = json!({ "action": "restore", "restored": said });
    site::draft(Kind::StoreChange, None, data, &restore.reason, now)
}

/// What the audit log keeps of it.
fn said(restore: &Restore, seal: &Seal, replaced: &Replaced, nodes: u64) -> Value {
    json!({
        "backup": seal,
        "nodes": nodes,
        "tokens": restore.tokens,
        "replaced": replaced.kept,
        "auditHead": replaced.head.map(|head| json!({ "seq": head.seq, "hash": head.hash })),
        "mark": replaced.mark,
    })
}

fn tell(
    restore: &Restore,
    seal: &Seal,
    nodes: u64,
    replaced: &Replaced,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    if restore.json {
        let told = said(restore, seal, replaced, nodes);
        writeln!(out, "{:#}", json!({ "action": "restore", "restored": told }))?;
        return Ok(());
    }
    writeln!(out, "restored as of {}: {}", seal.at.rfc3339(), counted(&seal.counts))?;
    if !restore.tokens {
        writeln!(out, "records of tokens were left out: clients log in again")?;
    }
    if let Some(kept) = &replaced.kept {
        writeln!(out, "what was there is now {}", kept.display())?;
    }
    if nodes > 0 {
        writeln!(
            out,
            "{nodes} nodes are refused until each is confirmed: `holdfast node confirm NODE`"
        )?;
    }
    Ok(())
}
