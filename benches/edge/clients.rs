//! Load: a number of clients, each of which sends its next request when its last one is answered.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::cases::{Case, Protocol};
use crate::cpu::Used;
use crate::stage::Stage;
use crate::{Outcome, h2, http1};

/// Requests of each client before the clock starts: they fill pools, caches and what TLS sends late.
const WARM_UP: usize = 16;
/// After the last answer, until the edge has done what it does afterwards and rests.
const REST: Duration = Duration::from_millis(50);

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) clients: usize,
    /// On one connection.
    pub(crate) streams: usize,
    /// Of all clients together.
    pub(crate) requests: usize,
}

/// What it came to.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pub(crate) wall: Duration,
    /// The edge's CPU time, for all requests.
    pub(crate) cpu: Duration,
    /// Nanoseconds of each request, in ascending order.
    pub(crate) latencies: Vec<u64>,
    pub(crate) statuses: BTreeMap<u16, usize>,
    /// Requests that got no answer.
    pub(crate) failures: Vec<String>,
}

enum Client {
    Http1(Box<http1::Client>),
    H2(h2::Client),
}

enum Request {
    Http1(Vec<u8>),
    H2(http::Request<()>),
}

/// One client's answers: status and nanoseconds.
type Answers = Vec<(u16, u64)>;

/// Opens connections, warms them up, and measures.
pub(crate) async fn run(stage: &Stage, case: Case, work: &Work) -> Outcome<Load> {
    let mut requests = requests(stage, case, WARM_UP * work.clients + work.requests).await?;
    let measured = requests.split_off(WARM_UP * work.clients);
    let clients = open(stage, case, work).await?;
    let (clients, warm) = drive(clients, requests).await?;
    tokio::time::sleep(REST).await;
    let before = Used::of(stage.edge.id())?;
    let start = Instant::now();
    let (_clients, answers) = drive(clients, measured).await?;
    let wall = start.elapsed();
    tokio::time::sleep(REST).await;
    let cpu = Used::of(stage.edge.id())?.since(&before);
    let mut load = Load { wall, cpu, ..Load::default() };
    load.failures.extend(warm.into_iter().filter_map(|(_, failure)| failure));
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

async fn requests(stage: &Stage, case: Case, count: usize) -> Outcome<Vec<Request>> {
    let path = case.kind.path();
    let fields = stage.fields(case, count).await?;
    let request = |fields: &Vec<_>| match case.protocol {
        Protocol::Http1 => Ok(Request::Http1(http1::request(path, fields))),
        Protocol::H2 => h2::request(path, fields).map(Request::H2),
    };
    fields.iter().map(request).collect()
}

async fn open(stage: &Stage, case: Case, work: &Work) -> Outcome<Vec<Client>> {
    let tls = stage.tls(case)?;
    let mut clients = Vec::with_capacity(work.clients);
    while clients.len() < work.clients {
        match case.protocol {
            Protocol::Http1 => {
                let client = http1::Client::open(stage.port, tls.clone()).await?;
                clients.push(Client::Http1(Box::new(client)));
            }
            Protocol::H2 => {
                let streams = work.streams.min(work.clients - clients.len());
                let client = h2::Client::open(stage.port, tls.clone()).await?;
                clients.extend((0..streams).map(|_| Client::H2(client.clone())));
            }
        }
    }
    Ok(clients)
}

/// Deals the requests out and waits until each client has sent its share.
async fn drive(
    clients: Vec<Client>,
    requests: Vec<Request>,
) -> Outcome<(Vec<Client>, Vec<(Answers, Option<String>)>)> {
    let count = clients.len();
    let mut shares: Vec<Vec<Request>> = (0..count).map(|_| Vec::new()).collect();
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

async fn send(mut client: Client, share: Vec<Request>) -> (Client, Answers, Option<String>) {
    let mut answers = Vec::with_capacity(share.len());
    for request in share {
        let start = Instant::now();
        let status = match (&mut client, request) {
            (Client::Http1(client), Request::Http1(request)) => client.get(&request).await,
            (Client::H2(client), Request::H2(request)) => client.get(request).await,
            (Client::Http1(_), Request::H2(_)) | (Client::H2(_), Request::Http1(_)) => {
                Err("a request of the other protocol".into())
            }
        };
        let took = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        match status {
            Ok(status) => answers.push((status, took)),
            Err(error) => return (client, answers, Some(error.to_string())),
        }
    }
    (client, answers, None)
}
