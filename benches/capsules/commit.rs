//! Durable commits: a sync a request, a transaction a decision, and group commit, in turns.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use holdfast::store::keys::{self, Algorithm, AuditSigner, KeyRing};
use holdfast::store::registry::Registry;
use holdfast::store::sqlite::Database;
use holdfast::store::sqlite::reader::Reader;
use holdfast::store::sqlite::writer::CheckpointRule;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::figures::{median, micros, number, quantile, sorted};
use crate::fleet::{self, Setting};
use crate::floor::{Floor, Way};
use crate::threads::{Done, Thread, bytes_written};
use crate::{Options, Outcome, cpu};

/// The default of `audit.checkpointLines`.
const RULE: CheckpointRule = CheckpointRule { lines: 1000, interval: Duration::from_secs(3600) };

/// What group commit came to in one round.
#[derive(Debug)]
struct Group {
    wall: Duration,
    /// Microseconds of each decision, in ascending order.
    latencies: Vec<f64>,
    transactions: u64,
    writer: Done,
    bytes: u64,
}

/// All three ways, once each.
#[derive(Debug)]
struct Round {
    /// A second.
    append: f64,
    over: f64,
    single: f64,
    group: Group,
}

/// A store on the disk.
struct Store {
    setting: Arc<Setting>,
    single: Database,
    registry: Registry,
    /// The registry's writer.
    writer: Thread,
    at_once: u32,
    registered: u32,
}

pub(crate) fn run(options: &Options, runtime: &Runtime, pinned: bool) -> Outcome<Value> {
    let directory = tempfile::tempdir_in(options.directory())?;
    let mut store = Store::new(options, directory.path())?;
    if pinned {
        // The decisions' tasks have the other core.
        cpu::pin(store.writer.id, cpu::EDGE_CORE);
    }
    let mut floor = Floor::new(directory.path())?;
    let time = Duration::from_millis(options.millis);
    let (mut rounds, mut committed) = (Vec::new(), 0);
    for _ in 0..options.rounds {
        let append = floor.rate(Way::Append, time / 2)?;
        let over = floor.rate(Way::Over, time / 2)?;
        let (done, single) = store.single(time)?;
        let group = runtime.block_on(store.group(time))?;
        committed += done + group.latencies.len();
        rounds.push(Round { append, over, single, group });
    }
    store.registry.finish();
    let written = Reader::open(&directory.path().join("holdfast.db"))?;
    let granted = written.lines(1, usize::MAX)?;
    let granted = granted.iter().filter(|it| it.line.contains("\"kind\":\"capsule.decision\""));
    let granted = granted.count();
    if granted != committed {
        return Err(format!("{committed} were acknowledged, {granted} are in the log").into());
    }
    show(options, &rounds, committed);
    Ok(json!({
        "rounds": rounds.iter().map(Round::json).collect::<Vec<_>>(),
        "acknowledged_and_in_the_log": committed,
    }))
}

impl Store {
    fn new(options: &Options, directory: &Path) -> Outcome<Self> {
        let setting = Setting::new(directory)?;
        let path = directory.join("holdfast.db");
        let mut single = Database::open(&path)?;
        fleet::register(&mut single, options.registered, &setting.networks, fleet::jkt)?;
        let keys_in = directory.join("keys");
        keys::init(&keys_in, Algorithm::EdDsa, fleet::now())?;
        let registry = Registry::open(&path, RULE)?;
        registry.sign_with(Some(Box::new(AuditSigner(Arc::new(KeyRing::load(&keys_in)?)))));
        let writer = Thread::named(std::process::id(), "store")?;
        let (at_once, registered) = (options.at_once, options.registered);
        Ok(Self { setting, single, registry, writer, at_once, registered })
    }

    /// A node of `0..at_once`, spread over the registry as those that renew at one time are.
    fn place(&self, number: u32) -> u32 {
        number * (self.registered / self.at_once)
    }

    /// How many, and how many a second.
    fn single(&mut self, time: Duration) -> Outcome<(usize, f64)> {
        let (start, mut done) = (Instant::now(), 0_usize);
        while start.elapsed() < time {
            let node = self.place(u32::try_from(done)? % self.at_once);
            let (setting, asked) = (&self.setting, self.setting.request(node)?);
            self.single.transact(|batch| setting.grant(asked, batch))?;
            done += 1;
        }
        Ok((done, number(done) / start.elapsed().as_secs_f64()))
    }

    async fn group(&self, time: Duration) -> Outcome<Group> {
        let transactions = Arc::new(AtomicU64::new(0));
        let (before, bytes) = (self.writer.done()?, bytes_written(std::process::id())?);
        let (start, mut nodes) = (Instant::now(), JoinSet::new());
        for number in 0..self.at_once {
            let (setting, registry) = (Arc::clone(&self.setting), self.registry.clone());
            let (transactions, node) = (Arc::clone(&transactions), self.place(number));
            nodes.spawn(async move {
                let mut latencies = Vec::new();
                while latencies.is_empty() || start.elapsed() < time {
                    let asked = setting.request(node)?;
                    let (setting, transactions) = (Arc::clone(&setting), Arc::clone(&transactions));
                    let began = Instant::now();
                    let granted = registry.transact(move |batch| {
                        if batch.writes() == 0 {
                            transactions.fetch_add(1, Ordering::Relaxed);
                        }
                        setting.grant(asked, batch)
                    });
                    granted.await?;
                    latencies.push(micros(began.elapsed()));
                }
                Outcome::Ok(latencies)
            });
        }
        let mut latencies = Vec::new();
        while let Some(node) = nodes.join_next().await {
            latencies.extend(node??);
        }
        Ok(Group {
            wall: start.elapsed(),
            latencies: sorted(latencies),
            transactions: transactions.load(Ordering::Relaxed),
            writer: self.writer.done()?.since(&before),
            bytes: bytes_written(std::process::id())?.saturating_sub(bytes),
        })
    }
}

impl Group {
    fn rate(&self) -> f64 {
        number(self.latencies.len()) / self.wall.as_secs_f64()
    }

    fn a_transaction(&self) -> f64 {
        number(self.latencies.len()) / number(usize::try_from(self.transactions).unwrap_or(0))
    }

    /// Microseconds of the writer's CPU time a decision.
    fn cpu(&self) -> f64 {
        micros(self.writer.ran) / number(self.latencies.len())
    }

    /// How much of the time the writer was on a core.
    fn busy(&self) -> f64 {
        self.writer.ran.as_secs_f64() / self.wall.as_secs_f64()
    }

    /// How much of the time it was ready to run and something else had its core.
    fn kept_waiting(&self) -> f64 {
        self.writer.waited.as_secs_f64() / self.wall.as_secs_f64()
    }

    /// KiB that went to the disk a decision.
    fn kib(&self) -> f64 {
        number(usize::try_from(self.bytes).unwrap_or(0)) / 1024.0 / number(self.latencies.len())
    }

    /// The system's share of the writer's CPU time.
    fn system(&self) -> f64 {
        let ticks = |ticks| number(usize::try_from(ticks).unwrap_or(0));
        let (user, system) = (ticks(self.writer.user_ticks), ticks(self.writer.system_ticks));
        system / (user + system)
    }
}

impl Round {
    fn json(&self) -> Value {
        let group = &self.group;
        json!({
            "append_fdatasync_per_s": self.append, "overwrite_fdatasync_per_s": self.over,
            "transaction_a_decision_per_s": self.single,
            "group": {
                "per_s": group.rate(), "decisions": group.latencies.len(),
                "transactions": group.transactions,
                "p50_us": quantile(&group.latencies, 0.5),
                "p99_us": quantile(&group.latencies, 0.99),
                "max_us": quantile(&group.latencies, 1.0),
                "writer_cpu_us": group.cpu(), "writer_busy": group.busy(),
                "writer_kept_waiting": group.kept_waiting(),
                "writer_system_share": group.system(), "written_kib": group.kib(),
            },
        })
    }
}

fn show(options: &Options, rounds: &[Round], committed: usize) {
    let middle = |of: &dyn Fn(&Round) -> f64| median(rounds.iter().map(of).collect());
    let line = |name: &str, of: &dyn Fn(&Round) -> f64| {
        let all = sorted(rounds.iter().map(of).collect());
        let (low, high) = (quantile(&all, 0.0), quantile(&all, 1.0));
        println!("  {name:<52}{:>11.2}   ({low:.2} to {high:.2})", middle(of));
    };
    println!(
        "\ncommit, {} registered, {} at once; medians of {} rounds (least to most)",
        options.registered,
        options.at_once,
        rounds.len()
    );
    line("a   4 KiB append + fdatasync, /s", &|round| round.append);
    line("a'  4 KiB over others + fdatasync, /s", &|round| round.over);
    line("b   a transaction a decision, /s", &|round| round.single);
    line("c   group commit, /s", &|round| round.group.rate());
    line("c / a", &|round| round.group.rate() / round.append);
    line("c / a'", &|round| round.group.rate() / round.over);
    line("c / b", &|round| round.group.rate() / round.single);
    line("c   decisions a transaction", &|round| round.group.a_transaction());
    line("c   p50, ms", &|round| quantile(&round.group.latencies, 0.5) / 1e3);
    line("c   p99, ms", &|round| quantile(&round.group.latencies, 0.99) / 1e3);
    line("c   max, ms", &|round| quantile(&round.group.latencies, 1.0) / 1e3);
    line("c   writer's CPU a decision, µs", &|round| round.group.cpu());
    line("c   writer on its core, %", &|round| round.group.busy() * 100.0);
    line("c   writer kept from its core by others, %", &|round| round.group.kept_waiting() * 100.0);
    line("c   system's share of the writer's CPU, %", &|round| round.group.system() * 100.0);
    line("c   KiB to the disk a decision", &|round| round.group.kib());
    println!("  {committed} acknowledged, as many in the audit log");
}
