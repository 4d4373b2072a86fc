//! Load: a number of clients, each of which sends its next request when its last one is answered.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::Outcome;
use crate::cases::Kind;
use crate::cpu::Used;
use crate::http1::Client;
use crate::stage::Stage;
use crate::threads::Thread;

/// Requests of each client before the clock starts: they fill pools, caches and what TLS sends late.
pub(crate) const WARM_UP: usize = 16;
/// After the last answer, until the edge has done what it does afterwards and rests.
const REST: Duration = Duration::from_millis(50);

/// What it came to.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pub(crate) clients: usize,
    pub(crate) wall: Duration,
    /// The edge's CPU time, for all requests.
    pub(crate) cpu: Duration,
    /// Of it, that of the thread that writes the store.
    pub(crate) writer: Duration,
    /// Transactions of the store.
    pub(crate) commits: u32,
    /// Bytes that the edge had written to the disk.
    pub(crate) written: u64,
    /// Nanoseconds of each request, in ascending order.
    pub(crate) latencies: Vec<u64>,
    /// Of all requests, those before the clock included.
    pub(crate) statuses: BTreeMap<u16, usize>,
    /// Requests that got no answer.
    pub(crate) failures: Vec<String>,
}

/// One client's answers: status and nanoseconds.
type Answers = Vec<(u16, u64)>;

/// Opens connections, warms them up, and measures.
pub(crate) async fn run(
    stage: &Stage,
    kind: Kind,
    clients: usize,
    mut requests: Vec<Vec<u8>>,
) -> Outcome<Load> {
    let measured = requests.split_off(WARM_UP * clients);
    let tls = stage.tls(kind)?;
    let mut open = Vec::with_capacity(clients);
    while open.len() < clients {
        open.push(Client::open(stage.port, tls.clone()).await?);
    }
    let (open, warm) = drive(open, requests).await?;
    tokio::time::sleep(REST).await;
    let store = Thread::named(stage.edge.id(), "store")?;
    let (used, stored) = (Used::of(stage.edge.id())?, store.done()?);
    let (commits, written) = (stage.commits()?, stage.bytes_written()?);
    let start = Instant::now();
    let (_open, answers) = drive(open, measured).await?;
    let wall = start.elapsed();
    tokio::time::sleep(REST).await;
    let mut load = Load {
        clients,
        wall,
        cpu: Used::of(stage.edge.id())?.since(&used),
        writer: store.done()?.since(&stored).ran,
        commits: stage.commits()?.wrapping_sub(commits),
        written: stage.bytes_written()?.saturating_sub(written),
        ..Load::default()
    };
    for (answers, failure) in warm {
        load.failures.extend(failure);
        for (status, _) in answers {
            *load.statuses.entry(status).or_default() += 1;
        }
    }
    for (answers, failure) in answers {
        load.failures.extend(failure);
        for (status, nanoseconds) in answers {
            *load.statuses.entry(status).or_default() += 1;
            load.latencies.push(nanoseconds);
        }
    }
    load.latencies.sort_unstable();
    Ok(load)
}

/// Deals the requests out and waits until each client has sent its share.
async fn drive(
    clients: Vec<Client>,
    requests: Vec<Vec<u8>>,
) -> Outcome<(Vec<Client>, Vec<(Answers, Option<String>)>)> {
    let count = clients.len();
    let mut shares: Vec<Vec<Vec<u8>>> = (0..count).map(|_| Vec::new()).collect();
    for (number, request) in requests.into_iter().enumerate() {
        if let Some(share) = shares.get_mut(number % count) {
            share.push(request);
        }
    }
    // While this runs the generator never sleeps: waking it, which a peer on another machine would
    // not need, is not on the edge's bill.
    let awake = tokio::spawn(async {
        loop {
            tokio::task::yield_now().await;
        }
    });
    let mut tasks = JoinSet::new();
    for (client, share) in clients.into_iter().zip(shares) {
        tasks.spawn(send(client, share));
    }
    let mut done = (Vec::with_capacity(count), Vec::with_capacity(count));
    while let Some(ended) = tasks.join_next().await {
        let (client, answers, failure) = ended?;
        done.0.push(client);
        done.1.push((answers, failure));
    }
    awake.abort();
    Ok(done)
}

async fn send(mut client: Client, share: Vec<Vec<u8>>) -> (Client, Answers, Option<String>) {
    let mut answers = Vec::with_capacity(share.len());
    for request in share {
        let start = Instant::now();
        let status = client.get(&request).await;
        let took = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        match status {
            Ok(status) => answers.push((status, took)),
            Err(error) => return (client, answers, Some(error.to_string())),
        }
    }
    (client, answers, None)
}
