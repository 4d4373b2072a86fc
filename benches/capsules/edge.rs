//! Many nodes that renew at once, at the real program.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cpu::Used;
use crate::figures::{median, micros, number, quantile, sorted};
use crate::http1::Fields;
use crate::stage::Stage;
use crate::threads::Thread;
use crate::{Options, Outcome, h2};

/// After the last answer, until the edge has done what it does afterwards and rests.
const REST: Duration = Duration::from_millis(200);

/// All nodes once, or some times each.
#[derive(Debug, Default)]
struct Round {
    wall: Duration,
    /// The edge's CPU time, and its writer's.
    cpu: Duration,
    writer: Duration,
    /// Microseconds of each request, in ascending order.
    latencies: Vec<f64>,
    statuses: BTreeMap<u16, usize>,
}

/// A node with its connection, which it shares with some others, and its requests.
type Ready = (h2::Client, String, Vec<Fields>);

pub(crate) async fn run(options: &Options, stage: &Stage) -> Outcome<Value> {
    let before = stage.verified_grants()?;
    let clients = open(options, stage).await?;
    let mut rounds = Vec::new();
    // The first is of handshakes, caches and pools, and does not count.
    let warm = round(stage, &clients, 1).await?;
    for _ in 0..options.rounds {
        rounds.push(round(stage, &clients, options.renewals).await?);
    }
    let all = || rounds.iter().chain([&warm]);
    let mut statuses = BTreeMap::<u16, usize>::new();
    for (status, count) in all().flat_map(|round| &round.statuses) {
        *statuses.entry(*status).or_default() += count;
    }
    let answered = statuses.get(&200).copied().unwrap_or(0);
    if statuses.len() != 1 || answered == 0 {
        return Err(format!("not every node was granted a capsule: {statuses:?}").into());
    }
    let logged = stage.verified_grants()? - before;
    if logged != answered {
        return Err(format!("{answered} grants were answered, {logged} are in the log").into());
    }
    show(options, &rounds, answered);
    let rounds: Vec<_> = rounds.iter().map(Round::json).collect();
    Ok(json!({ "rounds": rounds, "grants_answered_and_in_the_verified_log": answered }))
}

async fn open(options: &Options, stage: &Stage) -> Outcome<Vec<h2::Client>> {
    let (tls, streams) = (stage.tls("h2")?, usize::try_from(options.streams)?);
    let mut clients = Vec::with_capacity(stage.nodes.len());
    while clients.len() < stage.nodes.len() {
        let client = h2::Client::open(stage.port, tls.clone()).await?;
        let count = streams.min(stage.nodes.len() - clients.len());
        clients.extend((0..count).map(|_| client.clone()));
    }
    Ok(clients)
}

async fn round(stage: &Stage, clients: &[h2::Client], renewals: u32) -> Outcome<Round> {
    let (nonce, renewals) = (stage.nonce().await?, usize::try_from(renewals)?);
    let ready = |(client, node): (&h2::Client, &crate::stage::Asker)| {
        Outcome::Ok((client.clone(), node.path(), node.requests(Some(&nonce), renewals)?))
    };
    let nodes = clients.iter().zip(&stage.nodes).map(ready).collect::<Outcome<Vec<_>>>()?;
    tokio::time::sleep(REST).await;
    let writer = Thread::named(stage.edge.id(), "store")?;
    let (used, written) = (Used::of(stage.edge.id())?, writer.done()?);
    let start = Instant::now();
    let mut asking = JoinSet::new();
    for node in nodes {
        asking.spawn(renew(node));
    }
    let mut round = Round::default();
    while let Some(node) = asking.join_next().await {
        for (status, latency) in node?.map_err(|error| format!("no answer: {error}"))? {
            *round.statuses.entry(status).or_default() += 1;
            round.latencies.push(latency);
        }
    }
    round.wall = start.elapsed();
    round.latencies = sorted(round.latencies);
    tokio::time::sleep(REST).await;
    round.cpu = Used::of(stage.edge.id())?.since(&used);
    round.writer = writer.done()?.since(&written).ran;
    Ok(round)
}

async fn renew((mut client, path, requests): Ready) -> Outcome<Vec<(u16, f64)>> {
    let mut answers = Vec::with_capacity(requests.len());
    for fields in requests {
        let request = h2::request(&path, &fields)?;
        let start = Instant::now();
        let status = client.get(request).await?;
        answers.push((status, micros(start.elapsed())));
    }
    Ok(answers)
}

impl Round {
    fn rate(&self) -> f64 {
        number(self.latencies.len()) / self.wall.as_secs_f64()
    }

    fn a_grant(&self, time: Duration) -> f64 {
        micros(time) / number(self.latencies.len())
    }

    /// How much of the time the edge was on a core.
    fn busy(&self) -> f64 {
        self.cpu.as_secs_f64() / self.wall.as_secs_f64()
    }

    fn json(&self) -> Value {
        json!({
            "grants": self.latencies.len(), "grants_per_s": self.rate(),
            "edge_cpu_us": self.a_grant(self.cpu), "writer_cpu_us": self.a_grant(self.writer),
            "edge_busy": self.busy(), "p50_us": quantile(&self.latencies, 0.5),
            "p99_us": quantile(&self.latencies, 0.99), "max_us": quantile(&self.latencies, 1.0),
            "statuses": self.statuses,
        })
    }
}

fn show(options: &Options, rounds: &[Round], answered: usize) {
    let line = |name: &str, of: &dyn Fn(&Round) -> f64| {
        let all = sorted(rounds.iter().map(of).collect());
        let (low, high) = (quantile(&all, 0.0), quantile(&all, 1.0));
        println!("  {name:<52}{:>11.1}   ({low:.1} to {high:.1})", median(all));
    };
    println!(
        "\nedge, {} registered, {} at once, {} renewals each, h2 in {} streams a connection; medians \
         of {} rounds (least to most)",
        options.registered,
        options.at_once,
        options.renewals,
        options.streams,
        rounds.len()
    );
    line("grants/s", &Round::rate);
    line("p50, ms", &|round| quantile(&round.latencies, 0.5) / 1e3);
    line("p99, ms", &|round| quantile(&round.latencies, 0.99) / 1e3);
    line("max, ms", &|round| quantile(&round.latencies, 1.0) / 1e3);
    line("edge's CPU a grant, µs", &|round| round.a_grant(round.cpu));
    line("of which its writer's, µs", &|round| round.a_grant(round.writer));
    line("edge on a core, %", &|round| round.busy() * 100.0);
    println!("  {answered} × 200; as many grants in the audit log, which is whole");
}
