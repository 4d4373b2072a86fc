//! Figures: medians of the rounds as a table, and every round as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cases::{Case, Kind, Protocol};
use crate::figures::{median, micros};
use crate::load::Load;
use crate::ratio::Ratio;
use crate::rounds::heading;
use crate::{Options, bench};

/// What a DPoP request may cost, in those of a plain proxy and one signature.
const BAR: f64 = 1.35;

/// One case once.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) number: u16,
    pub(crate) case: Case,
    pub(crate) load: Load,
}

#[derive(Debug)]
pub(crate) struct Report {
    setting: String,
    requests: u32,
    /// Whether the figures say nothing.
    trial: bool,
    rounds: Vec<Round>,
    /// One ES256 verification, each round.
    signatures: Vec<f64>,
}

impl Round {
    fn cost(&self) -> f64 {
        self.load.cost()
    }

    fn json(&self) -> Value {
        let (case, p90) = (self.case.name(), self.load.latency(0.9));
        self.load.json(json!({"round": self.number, "case": case, "p90_us": p90}))
    }
}

impl Report {
    pub(crate) fn new(options: &Options, pinned: bool) -> Self {
        let cores = if pinned { "edge and generator on a core each" } else { "NOT PINNED" };
        let setting = format!(
            "{} rounds of {} requests, {} at once, h2 in {} streams a connection; TLS 1.3; {cores}",
            options.rounds, options.requests, options.clients, options.streams
        );
        let (requests, trial) = (options.requests, options.call.is_trial());
        Self { setting, requests, trial, rounds: Vec::new(), signatures: Vec::new() }
    }

    pub(crate) fn add(&mut self, round: Round) {
        self.rounds.push(round);
    }

    pub(crate) fn add_signature(&mut self, took: Duration) {
        self.signatures.push(micros(took));
    }

    fn of(&self, case: Case) -> impl Iterator<Item = &Round> {
        self.rounds.iter().filter(move |round| round.case == case)
    }

    /// What DPoP requests cost in those of a plain proxy and a signature each, over each protocol.
    fn ratios(&self) -> Vec<(String, Ratio)> {
        let costs = |kind, protocol| self.of(Case { kind, protocol }).map(Round::cost);
        let mut ratios = Vec::new();
        for kind in [Kind::Public, Kind::Passed] {
            for protocol in Protocol::ALL {
                let signatures = self.signatures.iter();
                let bases = costs(kind, protocol).zip(signatures).map(|(base, one)| base + one);
                let rounds: Vec<_> = costs(Kind::Dpop, protocol).zip(bases).collect();
                let name = Case { kind, protocol }.name();
                ratios.extend(Ratio::of(&rounds).map(|ratio| (name, ratio)));
            }
        }
        ratios
    }
}

impl bench::Report for Report {
    fn json(&self) -> Value {
        let rounds: Vec<_> = self.rounds.iter().map(Round::json).collect();
        let ratios: Vec<_> =
            self.ratios().iter().map(|(base, ratio)| ratio.json("base", base)).collect();
        json!({
            "setting": self.setting, "rounds": rounds, "es256_verification_us": self.signatures,
            "ratios": ratios, "bar": BAR,
        })
    }

    /// Every request that was not answered with 200.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for round in &self.rounds {
            faults.extend(round.load.faults(round.number, &round.case.name(), self.requests));
        }
        if self.rounds.is_empty() {
            faults.push("no case has that name".to_owned());
        }
        faults
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        heading(f, &self.setting, self.trial)?;
        let columns =
            ["CPU µs", "busy", "requests/s", "p50 µs", "p90 µs", "p99 µs", "max µs", "answers"];
        write!(f, "\n{:<32}", "medians of the rounds")?;
        columns.iter().try_for_each(|name| write!(f, "{name:>11}"))?;
        writeln!(f)?;
        for case in Case::all() {
            let middle =
                |figure: &dyn Fn(&Round) -> f64| median(self.of(case).map(figure).collect());
            if self.of(case).next().is_none() {
                continue;
            }
            let mut statuses = BTreeMap::<u16, usize>::new();
            for (status, count) in self.of(case).flat_map(|round| &round.load.statuses) {
                *statuses.entry(*status).or_default() += count;
            }
            let statuses: Vec<_> =
                statuses.iter().map(|(status, count)| format!("{count} × {status}")).collect();
            write!(f, "{:<32}{:>11.1}", case.name(), middle(&Round::cost))?;
            write!(f, "{:>10.0}%", middle(&|round| round.load.busy()) * 100.0)?;
            write!(f, "{:>11.0}", middle(&|round| round.load.rate()))?;
            for share in [0.5, 0.9, 0.99] {
                write!(f, "{:>11.0}", middle(&|round| round.load.latency(share)))?;
            }
            let most = self.of(case).map(|round| round.load.latency(1.0)).fold(0.0, f64::max);
            writeln!(f, "{most:>11.0}    {}", statuses.join(", "))?;
        }
        let signature = median(self.signatures.clone());
        writeln!(f, "{:<32}{signature:>11.1}", "one ES256 verification")?;
        writeln!(f, "\nCPU(dpop) / (CPU(base) + CPU(one ES256 verification)), at most {BAR}:")?;
        for (base, Ratio { all, quartiles: [low, _, high] }) in self.ratios() {
            let verdict = if all <= BAR { "within" } else { "ABOVE" };
            writeln!(f, "  base {base:<34}{all:>9.3}  (rounds: {low:.2} to {high:.2})  {verdict}")?;
        }
        Ok(())
    }
}
