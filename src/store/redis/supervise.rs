//! Finds the masters, connects to them, and looks again: at once when something is wrong, and every
//! second when nothing is.

use std::sync::Arc;
use std::time::Duration;

use redis::{Pipeline, Value};

use super::commit::Commits;
use super::epoch::{self, Mark};
use super::inspect::{self, INFO_ANSWERS};
use super::keys::{TAGS, Tag};
use super::link::Link;
use super::masters::{self, Masters};
use super::server::Server;
use super::settings::Address;
use super::{Shared, View, now};
use crate::policy::epoch::{Epoch, Reign};
use crate::policy::time::UnixTime;

/// How often is looked when nothing is wrong.
const LOOK: Duration = Duration::from_secs(1);
/// The rest after the first failure; twice as long after each further one.
const REST: Duration = Duration::from_millis(100);
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// Looks until the task is ended.
pub(super) async fn supervise(shared: Arc<Shared>) {
    let mut rest = REST;
    loop {
        match look(&shared).await {
            Ok(view) => {
                rest = REST;
                publish(&shared, view);
                let look = shared.look.notified();
                let _ = tokio::time::timeout(LOOK, look).await;
            }
            Err(error) => {
                shared.failed(error);
                tokio::time::sleep(jittered(rest)).await;
                rest = (rest * 2).min(LONGEST_REST);
            }
        }
    }
}

fn publish(shared: &Shared, view: Option<View>) {
    shared.works();
    let Some(view) = view else { return };
    let before = shared.view.load();
    let epoch = view.reign.epoch;
    if before.as_ref().is_none_or(|before| before.reign.epoch != epoch) {
        let masters: Vec<_> = view.servers.iter().map(|it| it.address.to_string()).collect();
        let masters = masters.join(" ");
        let since = view.reign.since.rfc3339().to_string();
        tracing::info!(%epoch, since, masters, "redis: a new epoch, nonces of another are void");
    }
    shared.view.store(Some(Arc::new(view)));
    shared.seen.send_replace(());
}

/// Half to one and a half times as long, so that edges do not come back all at once.
fn jittered(rest: Duration) -> Duration {
    let [byte] = super::random();
    rest / 2 + rest * u32::from(byte) / 256
}

/// What is there now; nothing where it is what was there before.
async fn look(shared: &Arc<Shared>) -> Result<Option<View>, String> {
    let before = shared.view.load_full();
    let known = before.as_ref().map_or(&[][..], |view| &view.servers);
    let masters = masters::find(&shared.settings, &shared.keys, known).await?;
    let mut servers = Vec::new();
    for address in &masters.addresses {
        let held = known.iter().find(|server| server.address == *address && server.is_open());
        let kept = match held {
            Some(server) => verify(server).await?.then(|| Arc::clone(server)),
            None => None,
        };
        servers.push(match kept {
            Some(server) => server,
            None => Arc::new(connect(shared, address).await?),
        });
    }
    if let Some(before) = &before
        && before.places == masters.places
        && before.servers.len() == servers.len()
        && before.servers.iter().zip(&servers).all(|(old, new)| Arc::ptr_eq(old, new))
        && probe(shared, before).await
    {
        return Ok(None);
    }
    view(shared, masters, servers).await.map(Some)
}

/// Whether a server that is in use is still the one that was connected to.
async fn verify(server: &Server) -> Result<bool, String> {
    let mut pipeline = Pipeline::new();
    inspect::ask_info(&mut pipeline);
    let Ok(answers) = server.send(&pipeline).await else { return Ok(server.is_open()) };
    let info = inspect::info(&answers).map_err(|error| format!("{}: {error}", server.address))?;
    if info.identity != server.identity || !info.master {
        server.trip("the server is another one now");
        return Ok(false);
    }
    let keeping = inspect::keeping(&info, &[]);
    if let Some(refused) = keeping.refused {
        server.trip(&refused);
        return Err(format!("{}: {refused}", server.address));
    }
    Ok(true)
}

/// Connects, and looks whom it has got.
async fn connect(shared: &Shared, address: &Address) -> Result<Server, String> {
    let settings = &shared.settings;
    let open = || Link::open(settings, address, &settings.login);
    let link = open().await.map_err(|error| error.to_string())?;
    let mut pipeline = Pipeline::new();
    inspect::ask_info(&mut pipeline);
    inspect::ask_keeping(&mut pipeline);
    let answers = link.send(&pipeline, settings.timeout).await;
    let answers = answers.ok_or(format!("{address}: no answer within `timeout`"))?;
    let (told, kept) = answers.split_at_checked(INFO_ANSWERS).unwrap_or_default();
    let told = inspect::info(told);
    let info = told.map_err(|error| format!("{address}: {error}"))?;
    if info.loading {
        return Err(format!("{address}: is still reading its data"));
    }
    if !info.master {
        return Err(format!("{address}: is a replica"));
    }
    if info.clustered != settings.topology.is_cluster() {
        let clustered = if info.clustered { "is a Cluster's" } else { "is in no Cluster" };
        return Err(format!("{address}: {clustered}; store.redis.mode says otherwise"));
    }
    let keeping = inspect::keeping(&info, kept);
    if let Some(refused) = keeping.refused {
        return Err(format!("{address}: {refused}"));
    }
    if let Some(forgets) = &keeping.forgets
        && settings.require_persistence
    {
        return Err(format!("{address}: {forgets}; requirePersistence is true"));
    }
    for said in [keeping.forgets, keeping.unseen].into_iter().flatten() {
        shared.warn_once(format!("{address}: {said}"));
    }
    let commits = match settings.wait.replicas {
        0 => None,
        _ => {
            let link = open().await.map_err(|error| error.to_string())?;
            Some(Commits::start(link, settings.wait, settings.timeout))
        }
    };
    let look = Arc::clone(&shared.look);
    let (address, identity) = (address.clone(), info.identity);
    Ok(Server::new(address, identity, link, commits, settings.timeout, look))
}

/// Whether a server takes writes, and has the marks that it had.
async fn probe(shared: &Shared, view: &View) -> bool {
    let mut same = true;
    for (index, server) in view.servers.iter().enumerate() {
        let own = Tag::all().zip(view.places.iter()).find(|(_, place)| **place == index);
        let Some((tag, _)) = own else { continue };
        let mut pipeline = Pipeline::new();
        epoch::ask_mark(&mut pipeline, &shared.keys, tag, &super::random());
        // An error has left word of itself.
        let Ok(answers) = server.commit(&pipeline).await else { continue };
        let [set, got] = answers.as_slice() else { continue };
        match epoch::mark(set, got) {
            Ok(mark) => {
                server.set_trouble(None);
                same &= view.marks.get(tag.index()) == Some(&mark);
            }
            Err(trouble) => server.set_trouble(Some(trouble)),
        }
    }
    same
}

/// Reads the marks, and with them which epoch it is.
async fn view(
    shared: &Shared,
    masters: Masters,
    servers: Vec<Arc<Server>>,
) -> Result<View, String> {
    let mut marks: Vec<Mark> = vec![Vec::new(); TAGS];
    for (index, server) in servers.iter().enumerate() {
        let own = Tag::all().zip(masters.places.iter()).filter(|(_, place)| **place == index);
        let own: Vec<_> = own.map(|(tag, _)| tag).collect();
        if own.is_empty() {
            continue;
        }
        let mut pipeline = Pipeline::new();
        for tag in &own {
            epoch::ask_mark(&mut pipeline, &shared.keys, *tag, &super::random());
        }
        let wrong = |error: String| format!("{}: {error}", server.address);
        let answers = server.commit(&pipeline).await;
        let answers = answers.map_err(|_| wrong(server.trouble().unwrap_or("no answer".into())))?;
        for (tag, pair) in own.iter().zip(answers.chunks_exact(2)) {
            let [set, got] = pair else { continue };
            let mark = epoch::mark(set, got).map_err(wrong)?;
            if let Some(place) = marks.get_mut(tag.index()) {
                *place = mark;
            }
        }
        server.set_trouble(None);
    }
    let identities: Vec<_> = servers.iter().map(|server| server.identity.clone()).collect();
    let epoch = epoch::of(&marks, &identities);
    let since = since(shared, &masters, &servers, epoch).await?;
    let reign = Reign { epoch, since };
    Ok(View { reign, servers, places: masters.places, marks })
}

/// Since when this epoch is one, by the word of the edge that saw it first.
///
/// It has no TTL: there is one such key, and each epoch writes over it.
async fn since(
    shared: &Shared,
    masters: &Masters,
    servers: &[Arc<Server>],
    epoch: Epoch,
) -> Result<UnixTime, String> {
    let place = masters.places.get(Tag::FIRST.index());
    let server =
        place.and_then(|place| servers.get(*place)).ok_or("no master for the first tag")?;
    let wrong = |_| format!("{}: does not say since when its epoch is one", server.address);
    let key = shared.keys.named(Tag::FIRST, "begun");
    let mut pipeline = Pipeline::new();
    pipeline.cmd("GET").arg(&key);
    let kept = server.send(&pipeline).await.map_err(wrong)?;
    if let Some(since) = epoch::since(epoch, kept.first().unwrap_or(&Value::Nil)) {
        return Ok(since);
    }
    let now = now();
    let mut pipeline = Pipeline::new();
    pipeline.cmd("SET").arg(key).arg(epoch::begun(epoch, now));
    match server.commit(&pipeline).await.map_err(wrong)?.first() {
        Some(Value::ServerError(_)) | None => Err(wrong(super::Fault::Down)),
        Some(_) => Ok(now),
    }
}
