//! Figures: medians of the rounds as tables, and every round as JSON.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Options;
use crate::clients::Load;
use crate::figures::{median, micros, number, quantile, sorted};
use crate::server::Alone;

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
    fn answers(&self) -> f64 {
        number(self.load.latencies.len())
    }

    fn rate(&self) -> f64 {
        self.answers() / self.load.wall.as_secs_f64()
    }

    fn cpu(&self) -> f64 {
        micros(self.load.cpu) / self.answers()
    }

    fn server(&self) -> f64 {
        micros(self.server) / self.answers()
    }

    fn busy(&self) -> f64 {
        self.load.cpu.as_secs_f64() / self.load.wall.as_secs_f64()
    }

    /// Microseconds within which this share of the requests was answered.
    fn latency(&self, share: f64) -> f64 {
        let nanoseconds = self.load.latencies.iter();
        let times = nanoseconds.map(|&time| micros(Duration::from_nanos(time))).collect();
        quantile(&sorted(times), share)
    }

    fn json(&self) -> Value {
        json!({
            "round": self.number, "memory": self.memory.name(), "clients": self.clients,
            "live_before": self.live, "requests": self.load.latencies.len(),
            "requests_per_s": self.rate(), "edge_cpu_us": self.cpu(), "edge_busy": self.busy(),
            "redis_cpu_us": self.server(), "p50_us": self.latency(0.5),
            "p99_us": self.latency(0.99), "max_us": self.latency(1.0),
            "statuses": self.load.statuses, "unanswered": self.load.failures,
        })
    }

    fn line(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        write!(f, "{name:<28}{:>9.1}{:>9.1}", self.cpu(), self.server())?;
        write!(f, "{:>8.0}%{:>9.0}", self.busy() * 100.0, self.rate())?;
        writeln!(f, "{:>9.0}{:>9.0}", self.latency(0.5), self.latency(0.99))
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
            trial: options.test,
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

    /// Every request that was not answered with 200.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for round in self.all() {
            let place = format!("round {}, {}", round.number + 1, round.memory.name());
            let other = round.load.statuses.iter().filter(|(status, _)| **status != 200);
            faults.extend(other.map(|(status, count)| format!("{place}: {count} × {status}")));
            faults.extend(round.load.failures.iter().map(|failure| format!("{place}: {failure}")));
            if round.load.latencies.len() != usize::try_from(self.requests).unwrap_or(0) {
                faults.push(format!("{place}: {} answers", round.load.latencies.len()));
            }
        }
        faults
    }

    fn of(&self, memory: Memory, clients: u16, figure: impl Fn(&Round) -> f64) -> Vec<f64> {
        let mine = |round: &&Round| round.memory == memory && round.clients == clients;
        self.rounds.iter().filter(mine).map(figure).collect()
    }

    /// Throughput with Redis in that without, round by round: the median.
    fn ratio(&self, clients: u16) -> f64 {
        let own = self.of(Memory::Own, clients, Round::rate);
        let redis = self.of(Memory::Redis, clients, Round::rate);
        median(redis.iter().zip(&own).map(|(redis, own)| redis / own).collect())
    }

    pub(crate) fn json(&self) -> Value {
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
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.setting)?;
        if self.trial {
            writeln!(f, "a trial: these figures say nothing")?;
        }
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
                write!(f, "{name:<28}{:>9.1}", middle(&Round::cpu))?;
                write!(f, "{:>9.1}{:>8.0}%", middle(&Round::server), middle(&Round::busy) * 100.0)?;
                write!(f, "{:>9.0}{:>9.0}", middle(&Round::rate), middle(&|it| it.latency(0.5)))?;
                writeln!(f, "{:>9.0}", middle(&|it| it.latency(0.99)))?;
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
