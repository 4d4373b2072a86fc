//! Figures: medians of the rounds as tables, and every round as JSON.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::figures::{median, micros};
use crate::load::Load;
use crate::rounds::heading;
use crate::server::Alone;
use crate::{Options, bench};

/// The least that throughput with Redis may be of that without.
const BAR: f64 = 0.7;

/// Where proofs are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    Own,
    Redis,
}

impl Memory {
    fn name(self) -> &'static str {
        match self {
            Self::Own => "memory",
            Self::Redis => "Redis",
        }
    }
}

/// One load once.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) number: u16,
    pub(crate) memory: Memory,
    pub(crate) clients: u16,
    /// Keys in Redis before it.
    pub(crate) live: u64,
    pub(crate) load: Load,
    /// Redis's CPU time.
    pub(crate) server: Duration,
}

impl Round {
    /// Microseconds of Redis's CPU time a request.
    fn server(&self) -> f64 {
        self.load.each(self.server)
    }

    fn json(&self) -> Value {
        self.load.json(json!({
            "round": self.number, "memory": self.memory.name(), "clients": self.clients,
            "live_before": self.live, "redis_cpu_us": self.server(),
        }))
    }

    fn line(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        write!(f, "{name:<28}{:>9.1}{:>9.1}", self.load.cost(), self.server())?;
        write!(f, "{:>8.0}%{:>9.0}", self.load.busy() * 100.0, self.load.rate())?;
        writeln!(f, "{:>9.0}{:>9.0}", self.load.latency(0.5), self.load.latency(0.99))
    }
}

/// A run with so many proofs in Redis.
#[derive(Debug)]
struct Level {
    live: u64,
    /// Redis's memory.
    bytes: u64,
    round: Round,
}

#[derive(Debug)]
pub(crate) struct Report {
    setting: String,
    /// Whether the figures say nothing.
    trial: bool,
    requests: u32,
    clients: Vec<u16>,
    rounds: Vec<Round>,
    levels: Vec<Level>,
    alone: Vec<(u64, Alone)>,
}

impl Report {
    pub(crate) fn new(options: &Options, pinned: bool) -> Self {
        let cores = if pinned {
            "edge on one core, generator and Redis on the other"
        } else {
            "NOT PINNED"
        };
        let (rounds, requests) = (options.rounds, options.requests);
        Self {
            setting: format!("{rounds} rounds of {requests} requests; HTTP/1.1, TLS 1.3; {cores}"),
            trial: options.call.is_trial(),
            requests,
            clients: options.clients.clone(),
            rounds: Vec::new(),
            levels: Vec::new(),
            alone: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, round: Round) {
        self.rounds.push(round);
    }

    pub(crate) fn add_level(&mut self, live: u64, bytes: u64, round: Round) {
        self.levels.push(Level { live, bytes, round });
    }

    pub(crate) fn add_alone(&mut self, batch: u64, alone: Alone) {
        self.alone.push((batch, alone));
    }

    fn all(&self) -> impl Iterator<Item = &Round> {
        self.rounds.iter().chain(self.levels.iter().map(|level| &level.round))
    }

    fn of(&self, memory: Memory, clients: u16, figure: impl Fn(&Round) -> f64) -> Vec<f64> {
        let mine = |round: &&Round| round.memory == memory && round.clients == clients;
        self.rounds.iter().filter(mine).map(figure).collect()
    }

    /// Throughput with Redis in that without, round by round: the median.
    fn ratio(&self, clients: u16) -> f64 {
        let own = self.of(Memory::Own, clients, |round| round.load.rate());
        let redis = self.of(Memory::Redis, clients, |round| round.load.rate());
        median(redis.iter().zip(&own).map(|(redis, own)| redis / own).collect())
    }
}

impl bench::Report for Report {
    fn json(&self) -> Value {
        let rounds: Vec<_> = self.rounds.iter().map(Round::json).collect();
        let levels = self.levels.iter().map(|level| {
            json!({"live": level.live, "redis_bytes": level.bytes, "round": level.round.json()})
        });
        let alone = self.alone.iter().map(|(batch, alone)| {
            json!({
                "batch": batch, "proofs": alone.proofs, "wall_s": alone.wall.as_secs_f64(),
                "redis_cpu_s": alone.cpu.as_secs_f64(),
            })
        });
        json!({
            "setting": self.setting, "rounds": rounds, "bar": BAR,
            "levels": levels.collect::<Vec<_>>(), "alone": alone.collect::<Vec<_>>(),
        })
    }

    /// Every request that was not answered with 200.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for round in self.all() {
            faults.extend(round.load.faults(round.number, round.memory.name(), self.requests));
        }
        faults
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        heading(f, &self.setting, self.trial)?;
        let columns = |f: &mut fmt::Formatter<'_>, name: &str| {
            write!(f, "\n{name:<28}{:>9}{:>9}", "edge µs", "Redis µs")?;
            writeln!(f, "{:>9}{:>9}{:>9}{:>9}", "busy", "req/s", "p50 µs", "p99 µs")
        };
        columns(f, "medians of the rounds")?;
        for &clients in &self.clients {
            for memory in [Memory::Own, Memory::Redis] {
                let middle =
                    |figure: &dyn Fn(&Round) -> f64| median(self.of(memory, clients, figure));
                let name = format!("{}, {clients} at once", memory.name());
                write!(f, "{name:<28}{:>9.1}", middle(&|it| it.load.cost()))?;
                write!(
                    f,
                    "{:>9.1}{:>8.0}%",
                    middle(&Round::server),
                    middle(&|it| it.load.busy()) * 100.0
                )?;
                write!(
                    f,
                    "{:>9.0}{:>9.0}",
                    middle(&|it| it.load.rate()),
                    middle(&|it| it.load.latency(0.5))
                )?;
                writeln!(f, "{:>9.0}", middle(&|it| it.load.latency(0.99)))?;
            }
        }
        writeln!(f)?;
        for &clients in &self.clients {
            let ratio = self.ratio(clients);
            let verdict = if ratio >= BAR { "within" } else { "BELOW" };
            let name = format!("Redis / memory, {clients} at once");
            writeln!(f, "{name:<32}{ratio:.3} of the throughput, at least {BAR}: {verdict}")?;
        }
        columns(f, "live proofs in Redis before")?;
        for level in &self.levels {
            level.round.line(f, &level.live.to_string())?;
        }
        for pair in self.levels.windows(2) {
            if let [few, many] = pair
                && many.live > few.live
            {
                let bytes = many.bytes.saturating_sub(few.bytes) / (many.live - few.live);
                writeln!(f, "from {} to {}: {bytes} bytes a proof", few.live, many.live)?;
            }
        }
        writeln!(f, "\n{:<28}{:>9}{:>9}", "Redis alone, a write of", "Redis µs", "proofs/s")?;
        for (batch, alone) in &self.alone {
            #[expect(clippy::cast_precision_loss, reason = "a count of proofs")]
            let proofs = alone.proofs as f64;
            let rate = proofs / alone.wall.as_secs_f64();
            writeln!(f, "{batch:<28}{:>9.2}{rate:>9.0}", micros(alone.cpu) / proofs)?;
        }
        Ok(())
    }
}
