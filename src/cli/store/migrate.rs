//! A store moved to the other kind.

use std::io::Write;
use std::time::Duration;

use serde_json::json;

use super::progress::Shown;
use super::restore::alone;
use super::sound::{not_behind, sound, unserved};
use super::{Kind, Migrate};
use crate::cli::site::{self, CommandError, now};
use crate::policy::audit::{Draft, Kind as Line};
use crate::store::nodes::Nodes as _;
use crate::store::nodes::moved;
use crate::store::nodes::shared::SharedNodes;
use crate::store::records::transfer::{Planned, TransferError};
use crate::store::records::{Counts, Embedded, Records, Servers};

impl From<TransferError> for CommandError {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Fault(fault) => Self::Fault(fault),
            TransferError::Occupied(_) | TransferError::Differs(_) => {
                Self::Other(error.to_string())
            }
        }
    }
}

/// Migrates.
pub(super) fn run(migrate: &Migrate, out: &mut dyn Write) -> Result<(), CommandError> {
    let config = site::load(&migrate.config)?;
    let store = site::store(&config, &migrate.config)?;
    let servers = store.redis.as_ref().or(store.other.as_ref()).ok_or_else(|| {
        CommandError::Other("store.redis is missing: the servers to migrate to or from".to_owned())
    })?;
    if migrate.to == Kind::Redis && !store.path.exists() {
        let text = format!("store.path: {} is not there: nothing to migrate", store.path.display());
        return Err(CommandError::Other(text));
    }
    let _alone = alone(&store.path)?;
    let registry = site::registry(&config, store)?;
    let runtime = site::runtime()?;
    let redis = site::connect(&migrate.whom.at(servers), &runtime)?;
    let done = runtime.block_on(async {
        let mut shown = Shown::new();
        unserved(&redis, &mut shown).await?;
        let embedded = Embedded(registry.clone());
        let shared = Servers { redis: redis.clone(), registry: registry.clone() };
        let source_sound = match migrate.to {
            Kind::Embedded => Some(sound(&shared, &mut shown).await?),
            Kind::Redis if migrate.replace => None,
            Kind::Redis => {
                not_behind(&shared).await?;
                None
            }
        };
        let (source, target): (&dyn Records, &dyn Records) = match migrate.to {
            Kind::Redis => (&embedded, &shared),
            Kind::Embedded => (&shared, &embedded),
        };
        let now = now();
        let planned =
            Planned::new((source, target), migrate.replace, now, |it| shown.show(it)).await?;
        if migrate.dry_run {
            shown.end();
            if let Some(servers) = source_sound {
                servers.still("records were counted").await?;
            }
            return Ok(planned);
        }
        let begun = line(migrate, "begun", &planned.counts())?;
        registry.transact(move |batch| batch.append(&begun)).await?;
        if migrate.to == Kind::Redis {
            moved::hold(&redis, now).await?;
        }
        planned.run((source, target), now, |it| shown.show(it)).await?;
        shown.end();
        if let Some(servers) = source_sound {
            servers.still("records were copied, and the target is not to be used").await?;
        }
        let ended = line(migrate, "done", &planned.counts())?;
        match migrate.to {
            Kind::Redis => {
                let runtime = tokio::runtime::Handle::current();
                let nodes =
                    SharedNodes::start(redis.clone(), registry.clone(), Duration::ZERO, &runtime)?;
                nodes.confirm(ended).await?;
            }
            Kind::Embedded => registry.transact(move |batch| batch.append(&ended)).await?,
        }
        Ok::<_, CommandError>(planned)
    });
    tell(migrate, &site::at_servers(&redis, done)?, out)
}

fn line(migrate: &Migrate, is: &str, counts: &Counts) -> Result<Draft, CommandError> {
    let data = json!({ "action": "migrate", "is": is, "to": migrate.to.name(), "records": counts });
    site::draft(Line::StoreChange, None, data, &migrate.reason, now())
}

fn tell(migrate: &Migrate, planned: &Planned, out: &mut dyn Write) -> Result<(), CommandError> {
    let (counts, to) = (planned.counts(), migrate.to.name());
    if migrate.json {
        let told = json!({
            "action": "migrate",
            "to": to,
            "dryRun": migrate.dry_run,
            "missing": planned.missing(),
            "records": counts,
        });
        writeln!(out, "{told:#}")?;
        return Ok(());
    }
    for (kind, count) in &counts {
        writeln!(out, "{kind:<12} {:>10}  {}", count.count, count.checksum)?;
    }
    let missing = planned.missing();
    if migrate.dry_run {
        writeln!(out, "{missing} records would be put into the {to} store; nothing was copied")?;
    } else {
        writeln!(out, "{missing} records were put there; counts and checksums are the same")?;
        writeln!(out, "now set store.kind to {to} at every edge, and start them")?;
    }
    Ok(())
}
