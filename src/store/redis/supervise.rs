//! Finds the masters, connects to them, and looks again: at once when something is wrong, and every
//! second when nothing is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Pipeline, Value};
use tokio::task::JoinSet;

use super::clock::{self, Clock, Reading};
use super::commit::Commits;
use super::epoch::{self, Mark};
use super::inspect::{self, INFO_ANSWERS, Identity};
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
        match watching(&shared, look(&shared)).await {
            Ok(view) => {
                rest = REST;
                publish(&shared, view);
                let look = shared.look.notified();
                let _ = tokio::time::timeout(LOOK, look).await;
            }
            Err(error) => {
                shared.failed(error);
                watching(&shared, tokio::time::sleep(jittered(rest))).await;
                rest = (rest * 2).min(LONGEST_REST);
            }
        }
    }
}

/// Waits for `done`, and looks at the servers in use every [`LOOK`] as long as that takes: one that cannot
/// be reached must not hide what becomes of the others.
async fn watching<T>(shared: &Arc<Shared>, done: impl Future<Output = T>) -> T {
    let mut done = std::pin::pin!(done);
    loop {
        if let Ok(done) = tokio::time::timeout(LOOK, &mut done).await {
            return done;
        }
        tokio::select! {
            done = &mut done => return done,
            _ = check(shared) => {}
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
    let same = check(shared).await;
    let before = shared.view.load_full();
    let known = before.as_ref().map_or(&[][..], |view| &view.servers);
    let masters = masters::find(&shared.settings, &shared.keys, known).await?;
    let mut servers = Vec::new();
    for address in &masters.addresses {
        let held = known.iter().find(|server| server.address == *address && server.is_open());
        servers.push(match held {
            Some(server) => Arc::clone(server),
            None => {
                let before = known.iter().find(|server| server.address == *address);
                Arc::new(connect(shared, address, before.map(|it| &**it)).await?)
            }
        });
    }
    if let Some(before) = &before
        && same
        && before.places == masters.places
        && before.servers.len() == servers.len()
        && before.servers.iter().zip(&servers).all(|(old, new)| Arc::ptr_eq(old, new))
    {
        return Ok(None);
    }
    view(shared, masters, servers, before.as_deref()).await.map(Some)
}

/// Looks at all servers in use at once: whether each is still the one that was connected to, takes writes,
/// and has the marks that it had. Requests are sent to none that is not.
async fn check(shared: &Arc<Shared>) -> bool {
    let Some(view) = shared.view.load_full() else { return false };
    let view = match view.by_the_clock(now()) {
        Some(view) => {
            let view = Arc::new(view);
            shared.view.store(Some(Arc::clone(&view)));
            view
        }
        None => view,
    };
    let mut checks = JoinSet::new();
    for index in 0..view.servers.len() {
        let (shared, view) = (Arc::clone(shared), Arc::clone(&view));
        checks.spawn(async move {
            let Some(server) = view.servers.get(index).filter(|it| it.is_open()) else {
                return false;
            };
            verify(server).await;
            server.is_open() && probe(&shared, &view, index, server).await
        });
    }
    let mut same = true;
    while let Some(checked) = checks.join_next().await {
        same &= checked.unwrap_or_default();
    }
    same
}

/// Has a server that is in use used no more where it is another than was connected to.
async fn verify(server: &Server) {
    let mut pipeline = Pipeline::new();
    inspect::ask_info(&mut pipeline);
    let asked = clock::ask(&mut pipeline);
    // One that does not answer has tripped, or is asked again.
    let Ok(mut answers) = server.look(&pipeline).await else { return };
    let reading = answers.pop().and_then(|answer| Reading::of(&answer, asked));
    let info = match inspect::info(&answers) {
        Ok(info) => info,
        Err(error) => return server.trip(&error),
    };
    if info.identity.evicted != server.identity.evicted {
        return server.disown("the server has dropped keys to make room");
    }
    if info.identity != server.identity || !info.master {
        return server.trip("the server is another one now");
    }
    if let Some(refused) = inspect::keeping(&info, &[]).refused {
        return server.disown(&refused);
    }
    match reading.map(|reading| server.set_clock(reading)) {
        Some(None) => {}
        Some(Some(leap)) => {
            let seconds = leap.as_secs();
            server.disown(&format!("the server's clock was set forward, by {seconds} s or more"));
        }
        None => server.trip("the server does not say what time it is"),
    }
}

/// Connects, and looks whom it has got: whether it is the one that was there `before`, and has lost something
/// in between, is seen as well.
async fn connect(
    shared: &Shared,
    address: &Address,
    before: Option<&Server>,
) -> Result<Server, String> {
    let settings = &shared.settings;
    let open = || Link::open(settings, address, &settings.login);
    let link = open().await.map_err(|error| error.to_string())?;
    let mut pipeline = Pipeline::new();
    inspect::ask_info(&mut pipeline);
    inspect::ask_keeping(&mut pipeline);
    let asked = clock::ask(&mut pipeline);
    let answers = link.send(&pipeline, settings.timeout).await;
    let mut answers = answers.ok_or(format!("{address}: no answer within `timeout`"))?;
    let reading = answers.pop().and_then(|answer| Reading::of(&answer, asked));
    let reading = reading.ok_or(format!("{address}: does not say what time it is"))?;
    let (told, kept) = answers.split_at_checked(INFO_ANSWERS).unwrap_or_default();
    let told = inspect::info(told);
    let info = told.map_err(|error| format!("{address}: {error}"))?;
    let before = before.filter(|before| before.identity.run == info.identity.run);
    if before.is_some_and(|before| before.set_clock(reading).is_some()) {
        before.inspect(|before| before.disown("the server's clock was set forward"));
    }
    let clock = before.map_or_else(|| Clock::new(reading), Server::clock);
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
        before.inspect(|before| before.disown(&refused));
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
            // Another process may have been behind the address by then.
            if who(&link, address, settings.timeout).await? != info.identity {
                return Err(format!("{address}: two connections lead to two servers"));
            }
            Some(Commits::start(link, settings.wait, settings.timeout))
        }
    };
    let look = Arc::clone(&shared.look);
    let (address, whom) = (address.clone(), (info.identity, clock));
    Ok(Server::new(address, whom, link, commits, settings.timeout, look))
}

/// Who is at the other end.
async fn who(link: &Link, address: &Address, timeout: Duration) -> Result<Identity, String> {
    let mut pipeline = Pipeline::new();
    inspect::ask_info(&mut pipeline);
    let answers = link.send(&pipeline, timeout).await;
    let answers = answers.ok_or(format!("{address}: no answer within `timeout`"))?;
    inspect::info(&answers).map(|info| info.identity).map_err(|error| format!("{address}: {error}"))
}

/// Sees whether a server takes writes; whether it has the mark that it had.
async fn probe(shared: &Shared, view: &View, index: usize, server: &Server) -> bool {
    let Some(tag) = tags_at(&view.places, index).next() else { return true };
    let mut pipeline = Pipeline::new();
    epoch::ask_mark(&mut pipeline, &shared.keys, tag, &super::random());
    // An error has left word of itself.
    let Ok(answers) = server.commit(&pipeline).await else { return true };
    let [set, got] = answers.as_slice() else { return true };
    match epoch::mark(set, got) {
        Ok(mark) => {
            server.set_trouble(None);
            view.marks.get(tag.index()) == Some(&mark)
        }
        Err(trouble) => {
            server.set_trouble(Some(trouble));
            true
        }
    }
}

/// The tags that lie at one of the masters.
pub(super) fn tags_at(places: &[usize; TAGS], index: usize) -> impl Iterator<Item = Tag> {
    Tag::all().zip(places.iter()).filter(move |(_, place)| **place == index).map(|(tag, _)| tag)
}

/// Reads the marks, and with them which epoch it is.
async fn view(
    shared: &Shared,
    masters: Masters,
    servers: Vec<Arc<Server>>,
    before: Option<&View>,
) -> Result<View, String> {
    let mut marks: Vec<Mark> = vec![Vec::new(); TAGS];
    for (index, server) in servers.iter().enumerate() {
        let own: Vec<_> = tags_at(&masters.places, index).collect();
        if own.is_empty() {
            continue;
        }
        if let Some(before) = before.filter(|before| before.forgets(&server.address)) {
            disown(shared, server, &own, &before.marks).await?;
        }
        let mut pipeline = Pipeline::new();
        for tag in &own {
            epoch::ask_mark(&mut pipeline, &shared.keys, *tag, &super::random());
        }
        let wrong = |error: String| format!("{}: {error}", server.address);
        let answers = said(server, &pipeline).await?;
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
    let place = masters.places.get(Tag::FIRST.index());
    let first = place.and_then(|place| servers.get(*place)).ok_or("no master for the first tag")?;
    let (begun, age) = begin(shared, first, epoch).await?;
    // By the clock that proofs' dates are held against, whatever the server's says.
    let since = now().minus(age);
    let (reign, aged) = (Reign { epoch, since }, (age, Instant::now()));
    Ok(View { reign, begun, aged, servers, places: masters.places, marks })
}

/// The answers to what was written.
async fn said(server: &Server, pipeline: &Pipeline) -> Result<Vec<Value>, String> {
    let answers = server.commit(pipeline).await;
    let trouble = || server.trouble().unwrap_or_else(|| "no answer".to_owned());
    answers.map_err(|_| format!("{}: {}", server.address, trouble()))
}

/// The order in which marks are changed: the one that is looked at each second last. The server does other
/// work in between, and whoever reads some of the marks of before and some of after must find out.
pub(super) fn one_by_one(tags: &[Tag]) -> impl Iterator<Item = &Tag> {
    tags.iter().rev()
}

/// Has every edge see another store in a server that may have lost some of what it keeps.
async fn disown(
    shared: &Shared,
    server: &Server,
    tags: &[Tag],
    marks: &[Mark],
) -> Result<(), String> {
    let mut pipeline = Pipeline::new();
    for tag in one_by_one(tags) {
        let mark = marks.get(tag.index()).ok_or("a tag without a mark")?;
        epoch::disown(&mut pipeline, &shared.keys, *tag, mark, &super::random());
    }
    let answers = said(server, &pipeline).await?;
    let done = answers.iter().all(|answer| matches!(answer, Value::Int(1)));
    let not = || format!("{}: its marks cannot be changed", server.address);
    done.then_some(()).ok_or_else(not)
}

/// When this epoch began, and how long ago, by the word of the edge that saw it first.
async fn begin(
    shared: &Shared,
    server: &Server,
    epoch: Epoch,
) -> Result<(UnixTime, Duration), String> {
    let mut pipeline = Pipeline::new();
    epoch::ask_begin(&mut pipeline, &shared.keys, epoch);
    let answers = said(server, &pipeline).await?;
    let not = || format!("{}: does not say since when its epoch is one", server.address);
    answers.first().and_then(epoch::began).ok_or_else(not)
}
