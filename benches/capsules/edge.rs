//! Many nodes that renew at once, at the real program.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cpu::Used;
use crate::figures::{median, quantile, sorted};
use crate::load::{Load, send};
use crate::stage::Stage;
use crate::threads::Thread;
use crate::{Options, Outcome, h2};

/// After the last answer, until the edge has done what it does afterwards and rests.
const REST: Duration = Duration::from_millis(200);

/// All nodes once, or some times each.
#[derive(Debug)]
struct Round {
    load: Load,
    /// The CPU time of the edge's writer.
    writer: Duration,
}

pub(crate) async fn run(options: &Options, stage: &Stage) -> Outcome<Value> {
    let before = stage.verified_grants()?;
    let (tls, streams) = (stage.tls("h2")?, usize::try_from(options.streams)?);
    let clients = h2::open(stage.port, &tls, stage.nodes.len(), streams).await?;
    let mut rounds = Vec::new();
    // The first is of handshakes, caches and pools, and does not count.
    let warm = round(stage, &clients, 1).await?;
    for _ in 0..options.rounds {
        rounds.push(round(stage, &clients, options.renewals).await?);
    }
    let all = || rounds.iter().chain([&warm]);
    let mut statuses = BTreeMap::<u16, usize>::new();
    for (status, count) in all().flat_map(|round| &round.load.statuses) {
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

async fn round(stage: &Stage, clients: &[h2::Client], renewals: u32) -> Outcome<Round> {
    let (nonce, renewals) = (stage.nonce().await?, usize::try_from(renewals)?);
    let ready = |(client, node): (&h2::Client, &crate::stage::Asker)| {
        let (path, fields) = (node.path(), node.requests(Some(&nonce), renewals)?);
        let requests = fields.iter().map(|fields| h2::request(&path, fields));
        Ok((client.clone(), requests.collect::<Outcome<_>>()?))
    };
    let nodes = clients.iter().zip(&stage.nodes).map(ready).collect::<Outcome<Vec<_>>>()?;
    tokio::time::sleep(REST).await;
    let writer = Thread::named(stage.edge.id(), "store")?;
    let (used, written) = (Used::of(stage.edge.id())?, writer.done()?);
    let (_, mut load) = send(nodes).await?;
    if let Some(failure) = load.failures.first() {
        return Err(format!("no answer: {failure}").into());
    }
    tokio::time::sleep(REST).await;
    load.cpu = Used::of(stage.edge.id())?.since(&used);
    Ok(Round { load, writer: writer.done()?.since(&written).ran })
}

impl Round {
    fn json(&self) -> Value {
        let load = &self.load;
        json!({
            "grants": load.latencies.len(), "grants_per_s": load.rate(),
            "edge_cpu_us": load.cost(), "writer_cpu_us": load.each(self.writer),
            "edge_busy": load.busy(), "p50_us": load.latency(0.5), "p99_us": load.latency(0.99),
            "max_us": load.latency(1.0), "statuses": load.statuses,
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
    line("grants/s", &|round| round.load.rate());
    line("p50, ms", &|round| round.load.latency(0.5) / 1e3);
    line("p99, ms", &|round| round.load.latency(0.99) / 1e3);
    line("max, ms", &|round| round.load.latency(1.0) / 1e3);
    line("edge's CPU a grant, µs", &|round| round.load.cost());
    line("of which its writer's, µs", &|round| round.load.each(round.writer));
    line("edge on a core, %", &|round| round.load.busy() * 100.0);
    println!("  {answered} × 200; as many grants in the audit log, which is whole");
}
