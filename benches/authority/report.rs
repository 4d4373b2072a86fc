//! Figures: medians of the rounds as a table, and every round as JSON.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cases::Kind;
use crate::clients::Stored;
use crate::figures::{median, micros};
use crate::load::Load;
use crate::ratio::Ratio;
use crate::rounds::heading;
use crate::stage::{ProofCost, Stage};
use crate::{Options, bench};

/// What a request whose tokens are kept may cost, in those of a plain proxy, beside the check of its
/// proof.
const BAR: f64 = 1.5;

/// One case once.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) number: u16,
    pub(crate) kind: Kind,
    pub(crate) clients: usize,
    pub(crate) load: Load,
    pub(crate) stored: Stored,
}

#[derive(Debug)]
pub(crate) struct Report {
    setting: String,
    requests: u32,
    clients: usize,
    /// Whether the figures say nothing.
    trial: bool,
    rounds: Vec<Round>,
    proofs: Vec<ProofCost>,
    /// Refresh tokens of which a record came into the file.
    kept: Option<usize>,
}

impl Round {
    fn cost(&self) -> f64 {
        self.load.cost()
    }

    fn writer(&self) -> f64 {
        self.load.each(self.stored.writer.ran)
    }

    fn commits(&self) -> f64 {
        f64::from(self.stored.commits) / self.load.wall.as_secs_f64()
    }

    /// Requests whose records one transaction had.
    fn batch(&self) -> f64 {
        self.load.answers() / f64::from(self.stored.commits)
    }

    /// KiB that a request had written.
    fn written(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "bytes")]
        let bytes = self.stored.written as f64;
        bytes / 1024.0 / self.load.answers()
    }

    fn json(&self) -> Value {
        self.load.json(json!({
            "round": self.number, "case": self.kind.name(), "at_once": self.clients,
            "writer_cpu_us": self.writer(), "commits": self.stored.commits,
            "commits_per_s": self.commits(), "written_kib": self.written(),
        }))
    }
}

impl Report {
    pub(crate) fn new(options: &Options, stage: &Stage) -> Self {
        let cores = if stage.pinned { "edge and generator on a core each" } else { "NOT PINNED" };
        let setting = format!(
            "{} rounds of {} requests, {} at once, {} grants kept before; HTTP/1.1, TLS 1.3; {cores}",
            options.rounds, options.requests, options.clients, options.kept
        );
        Self {
            setting,
            requests: options.requests,
            clients: options.clients.into(),
            trial: options.call.is_trial(),
            rounds: Vec::new(),
            proofs: Vec::new(),
            kept: None,
        }
    }

    pub(crate) fn add(&mut self, round: Round) {
        self.rounds.push(round);
    }

    pub(crate) fn add_proof(&mut self, cost: ProofCost) {
        self.proofs.push(cost);
    }

    pub(crate) fn kept(&mut self, kept: usize) {
        self.kept = Some(kept);
    }

    /// Requests that were answered and have a record in the store.
    fn acknowledged(&self) -> usize {
        let keeping = self.rounds.iter().filter(|round| round.kind.keeps());
        keeping.filter_map(|round| round.load.statuses.get(&200)).sum()
    }

    fn of(&self, kind: Kind, clients: usize) -> impl Iterator<Item = &Round> {
        let same = move |round: &&Round| round.kind == kind && round.clients == clients;
        self.rounds.iter().filter(same)
    }

    /// What a request with a proof costs whose tokens are kept, in what it may: all rounds together.
    fn of_what_it_may(&self) -> f64 {
        let costs = |kind| self.of(kind, self.clients).map(Round::cost);
        let may = costs(Kind::Plain).zip(&self.proofs);
        let may: f64 = may.map(|(plain, proof)| BAR * plain + micros(proof.whole)).sum();
        costs(Kind::Dpop).sum::<f64>() / may
    }

    /// What each kind costs in those of a plain proxy, what a proof's check costs taken off first where
    /// there is one.
    fn ratios(&self) -> Vec<(String, Ratio)> {
        let costs = |kind| -> Vec<f64> { self.of(kind, self.clients).map(Round::cost).collect() };
        let proofs: Vec<f64> = self.proofs.iter().map(|proof| micros(proof.whole)).collect();
        let pairs = [
            (Kind::Passed, Kind::Plain),
            (Kind::Unbound, Kind::Plain),
            (Kind::Mtls, Kind::Plain),
            (Kind::Native, Kind::Plain),
            (Kind::Native, Kind::Passed),
            (Kind::Dpop, Kind::Plain),
            (Kind::Dpop, Kind::Passed),
            (Kind::Refresh, Kind::Plain),
            (Kind::Refresh, Kind::Passed),
            (Kind::Record, Kind::Cnf),
        ];
        let mut ratios = Vec::new();
        for (kind, base) in pairs {
            let checked = kind.has_proof() && !kind.reads() && kind != Kind::Passed;
            let costs = costs(kind).into_iter().zip(costs(base)).zip(&proofs);
            let rounds: Vec<(f64, f64)> = costs
                .map(|((cost, base), proof)| (if checked { cost - proof } else { cost }, base))
                .collect();
            let less = if checked { " less its proof" } else { "" };
            let name = format!("{}{less} / {}", kind.name(), base.name());
            ratios.extend(Ratio::of(&rounds).map(|ratio| (name, ratio)));
        }
        ratios
    }

    fn line(&self, f: &mut fmt::Formatter<'_>, name: &str, kind: Kind, n: usize) -> fmt::Result {
        let middle =
            |figure: &dyn Fn(&Round) -> f64| median(self.of(kind, n).map(figure).collect());
        if self.of(kind, n).next().is_none() {
            return Ok(());
        }
        write!(f, "{name:<28}{:>9.1}{:>9.1}", middle(&Round::cost), middle(&Round::writer))?;
        write!(
            f,
            "{:>8.0}%{:>9.0}",
            middle(&|round| round.load.busy()) * 100.0,
            middle(&|round| round.load.rate())
        )?;
        for share in [0.5, 0.99, 1.0] {
            write!(f, "{:>9.0}", middle(&|round| round.load.latency(share)))?;
        }
        if kind.keeps() {
            write!(f, "{:>11.0}{:>9.1}", middle(&Round::commits), middle(&Round::batch))?;
            write!(f, "{:>9.1}", middle(&Round::written))?;
        }
        writeln!(f)
    }
}

impl bench::Report for Report {
    fn json(&self) -> Value {
        let rounds: Vec<_> = self.rounds.iter().map(Round::json).collect();
        let ratios: Vec<_> =
            self.ratios().iter().map(|(name, ratio)| ratio.json("of", name)).collect();
        let of = |cost: fn(&ProofCost) -> Duration| -> Vec<f64> {
            self.proofs.iter().map(|proof| micros(cost(proof))).collect()
        };
        json!({
            "setting": self.setting, "rounds": rounds, "ratios": ratios, "bar": BAR,
            "of_what_it_may": self.of_what_it_may(),
            "proof_us": of(|proof| proof.whole), "es256_us": of(|proof| proof.signature),
            "grants_kept": self.kept, "grants_answered": self.acknowledged(),
        })
    }

    /// Every request that was not answered with 200, and every record that is not there.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for round in &self.rounds {
            let name = round.kind.name();
            faults.extend(round.load.faults(round.number, name, self.requests));
            if round.kind.keeps() && round.stored.commits == 0 && self.kept.is_some() {
                faults.push(format!("round {}, {name}: nothing was committed", round.number + 1));
            }
        }
        if self.rounds.is_empty() {
            faults.push("no case has that name".to_owned());
        }
        let told = self.acknowledged();
        if let Some(kept) = self.kept.filter(|kept| *kept != told) {
            faults.push(format!("{told} grants were answered, {kept} are in the store"));
        }
        faults
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        heading(f, &self.setting, self.trial)?;
        write!(f, "\n{:<28}", "medians of the rounds")?;
        let columns = ["CPU µs", "store's", "busy", "req/s", "p50 µs", "p99 µs", "max µs"];
        columns.iter().try_for_each(|name| write!(f, "{name:>9}"))?;
        writeln!(f, "{:>11}{:>9}{:>9}", "commits/s", "req each", "KiB/req")?;
        for kind in Kind::ALL {
            self.line(f, kind.name(), kind, self.clients)?;
        }
        let of = |cost: fn(&ProofCost) -> Duration| {
            median(self.proofs.iter().map(|proof| micros(cost(proof))).collect())
        };
        writeln!(f, "{:<28}{:>9.1}", "a proof, every check", of(|proof| proof.whole))?;
        writeln!(f, "{:<28}{:>9.1}", "one ES256 verification", of(|proof| proof.signature))?;
        let mut counts: Vec<usize> = self.of_any(Kind::Dpop).map(|round| round.clients).collect();
        counts.sort_unstable();
        counts.dedup();
        for count in counts {
            let name = format!("{}, {count} at once", Kind::Dpop.name());
            self.line(f, &name, Kind::Dpop, count)?;
        }
        writeln!(f, "\nCPU, of all rounds together (quartiles of the rounds):")?;
        for (name, Ratio { all, quartiles: [low, _, high] }) in self.ratios() {
            writeln!(f, "  {name:<60}{all:>8.3}  ({low:.2} to {high:.2})")?;
        }
        let (of, verdict) = (self.of_what_it_may(), self.of_what_it_may() <= 1.0);
        let verdict = if verdict { "within" } else { "ABOVE" };
        let name = format!("{} / ({BAR} × {} + a proof)", Kind::Dpop.name(), Kind::Plain.name());
        writeln!(f, "  {name:<60}{of:>8.3}  at most 1: {verdict}")?;
        let kept = self.kept.map_or("not counted".to_owned(), |kept| kept.to_string());
        writeln!(f, "{} grants answered, in the store: {kept}", self.acknowledged())
    }
}

impl Report {
    fn of_any(&self, kind: Kind) -> impl Iterator<Item = &Round> {
        self.rounds.iter().filter(move |round| round.kind == kind)
    }
}
