//! What a line says, in words.

use std::io::{self, Write};

use serde_json::Value;

use crate::cli::client::trace::clean;
use crate::policy::audit::{Kind, Line};
use crate::policy::capsule::decision::{Outcome, Stage};
use crate::policy::capsule::facts::{Fingerprint, Proof};
use crate::policy::capsule::node::{Network, State};
use crate::policy::capsule::record::{CapsuleRecord, TelemetryRecord};
use crate::policy::capsule::risk::{Factor, Risk};

/// A line in one line.
pub(super) fn one_line(text: &str) -> String {
    let Ok(line) = serde_json::from_str::<Line>(text) else {
        return "a line that cannot be read".to_owned();
    };
    let node = line.node.as_deref().unwrap_or("-");
    let what = match line.kind {
        Kind::Capsule | Kind::Telemetry => verdict(&line.data),
        Kind::NodeChange | Kind::KeyChange | Kind::StoreChange | Kind::Rotation => {
            let text = |name: &str| line.data.get(name).and_then(Value::as_str).unwrap_or("?");
            format!("{} ({})", text("action"), text("reason"))
        }
        Kind::Suppressed => {
            let count = line.data.get("count").and_then(Value::as_u64).unwrap_or_default();
            format!("{count} refusals were not written down")
        }
        Kind::Bypass | Kind::Alarm | Kind::Successor | Kind::Replay | Kind::Mismatch => {
            let text = |name: &str| line.data.get(name).and_then(Value::as_str);
            let client = text("client").map(|client| format!("client {client}"));
            let reason = text("reason").map(str::to_owned);
            [client, reason].into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
        Kind::BypassChange => {
            line.data.get("change").and_then(Value::as_str).unwrap_or("?").to_owned()
        }
        Kind::Superseded => superseded(line.data.get("why").and_then(Value::as_str)).to_owned(),
        Kind::Checkpoint | Kind::Begin => String::new(),
    };
    let (seq, at, kind, id) = (line.seq, line.at.rfc3339(), line.kind.name(), &line.id);
    clean(format!("{seq} {at} {kind} {node} {what} [{id}]").trim())
}

/// What became of what was decided.
fn superseded(why: Option<&str>) -> &'static str {
    match why {
        Some("changed") => "not done: the node was changed meanwhile",
        Some("unknown") => "perhaps not done: the shared store did not answer",
        Some(_) | None => "not done",
    }
}

fn verdict(data: &Value) -> String {
    let verdict = data.get("verdict");
    match verdict.and_then(|verdict| verdict.get("Err")) {
        Some(refusal) => {
            let reason = refusal.get("reason").and_then(Value::as_str).unwrap_or("?");
            let stages = data.get("stages").and_then(Value::as_array);
            let code = stages.and_then(|it| it.last()).and_then(|it| it.get("code"));
            format!("{reason} ({})", code.and_then(Value::as_str).unwrap_or("?"))
        }
        None => match verdict.and_then(|verdict| verdict.get("Ok")) {
            Some(Value::String(counted)) => counted.clone(),
            Some(_) | None => "GRANTED".to_owned(),
        },
    }
}

/// A line explained.
pub(super) fn explain(line: &Line, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{} {}, line {}", line.kind.name(), line.id, line.seq)?;
    writeln!(out, "at {}", line.at.rfc3339())?;
    match line.kind {
        Kind::Capsule => match serde_json::from_value::<CapsuleRecord>(line.data.clone()) {
            Ok(record) => capsule(&record, out),
            Err(_) => writeln!(out, "its content cannot be read by this version"),
        },
        Kind::Telemetry => match serde_json::from_value::<TelemetryRecord>(line.data.clone()) {
            Ok(record) => telemetry(&record, out),
            Err(_) => writeln!(out, "its content cannot be read by this version"),
        },
        Kind::Superseded => {
            writeln!(out, "{}", superseded(line.data.get("why").and_then(Value::as_str)))
        }
        Kind::NodeChange
        | Kind::KeyChange
        | Kind::StoreChange
        | Kind::Rotation
        | Kind::Suppressed
        | Kind::Checkpoint
        | Kind::Begin
        | Kind::Bypass
        | Kind::BypassChange
        | Kind::Alarm
        | Kind::Successor
        | Kind::Replay
        | Kind::Mismatch => {
            // Whatever a value holds, JSON keeps it within its line.
            format!("{:#}", line.data).lines().try_for_each(|line| writeln!(out, "{}", clean(line)))
        }
    }
}

fn capsule(record: &CapsuleRecord, out: &mut dyn Write) -> io::Result<()> {
    let asked = record.asked.as_deref().unwrap_or("an id that is none");
    writeln!(out, "{asked} asked for a capsule")?;
    for outcome in &record.stages {
        let (number, words) = (outcome.stage.number(), stage(outcome, record));
        let mark = if outcome.passed { "passed " } else { "REFUSED" };
        writeln!(out, "  {number} {mark} {words}")?;
    }
    if let Some(risk) = &record.risk {
        weights(record, risk, out)?;
    }
    match &record.verdict {
        Ok(grant) => {
            let first = if grant.first { ", its first: the node is bound from now on" } else { "" };
            writeln!(
                out,
                "GRANTED: capsule {} with key {}{first}",
                record.ids.capsule, grant.key_version
            )?;
            writeln!(out, "  good until {}", grant.expires.rfc3339())?;
        }
        Err(refusal) => writeln!(out, "REFUSED: {}", refusal.reason.name())?,
    }
    if record.quarantined {
        writeln!(out, "The node was quarantined: `holdfast node release` lets it ask again.")?;
    }
    if record.held {
        let most = record.policy.brake.max_quarantines;
        writeln!(out, "It was not quarantined: {most} nodes had been within the brake's window.")?;
    }
    match record.is_as_recorded() {
        Some(true) => writeln!(out, "Decided again from what is recorded: the same."),
        Some(false) => {
            writeln!(
                out,
                "DECIDED AGAIN FROM WHAT IS RECORDED IT COMES OUT OTHERWISE: another version decided, or the record was made up."
            )
        }
        None => Ok(()),
    }
}

/// What a stage looked at.
fn stage(outcome: &Outcome, record: &CapsuleRecord) -> String {
    let (facts, code) = (&record.facts, outcome.code.as_str());
    let node = record.node.as_ref();
    match outcome.stage {
        Stage::Bearer if outcome.passed => "the secret is the node's".to_owned(),
        Stage::Bearer => "the secret is not the node's".to_owned(),
        Stage::Node if outcome.passed => "the node is enrolled".to_owned(),
        Stage::Node => "there is no such node".to_owned(),
        Stage::Status if code == "join_before_passed" => {
            "the time for its first capsule has passed".to_owned()
        }
        Stage::Status if code == "restored" => {
            "the node is from a backup, and nobody has confirmed it since".to_owned()
        }
        Stage::Status => format!("the node is {code}"),
        Stage::Sender => {
            let shown = match &facts.sender.proof {
                Proof::Absent => "no proof".to_owned(),
                Proof::Holds { jkt } => format!("a proof by key {jkt}"),
                Proof::NeedsNonce { code } => format!("a proof without a good nonce ({code})"),
                Proof::Faulty { code, clock, .. } => {
                    let clock = clock.as_ref().map(|clock| format!("; {}", clean(clock)));
                    format!("a proof that does not hold ({code}{})", clock.unwrap_or_default())
                }
            };
            let x5t = facts.sender.x5t.map(|x5t| format!(" and certificate {x5t}"));
            let bound = node.and_then(|node| node.jkt).map(|jkt| format!(", bound to key {jkt}"));
            let bound_x5t =
                node.and_then(|node| node.x5t).map(|x5t| format!(", bound to certificate {x5t}"));
            let (x5t, bound) = (x5t.unwrap_or_default(), bound.unwrap_or_default());
            format!("{code}: {shown}{x5t}{bound}{}", bound_x5t.unwrap_or_default())
        }
        Stage::Fingerprint => {
            let shown = match facts.fingerprint {
                Fingerprint::Missing => "none was shown".to_owned(),
                Fingerprint::Conflict => "two were shown that differ".to_owned(),
                Fingerprint::Shown(hash) => format!("SHA-256 {hash} was shown"),
            };
            let known = node.and_then(|node| node.fingerprint);
            let known =
                known.map_or_else(|| "none is known yet".to_owned(), |it| format!("{it} is known"));
            format!("fingerprint {code}: {shown}, {known}")
        }
        Stage::Telemetry => heard(record, code),
        Stage::Network => {
            let from = facts.place.network.as_ref().map_or_else(|| "nowhere".to_owned(), network);
            let baseline = node.and_then(|node| node.baseline.as_ref());
            let baseline = baseline.map_or_else(
                || "there is no baseline yet".to_owned(),
                |it| {
                    format!(
                        "the baseline is {} since {}",
                        network(&it.network),
                        it.confirmed.rfc3339()
                    )
                },
            );
            format!("network {code}: from {from}; {baseline}")
        }
        Stage::Key if outcome.passed => format!("key {code}"),
        Stage::Key => format!("no key: {code}"),
    }
}

fn heard(record: &CapsuleRecord, code: &str) -> String {
    let heard = record.node.as_ref().and_then(|node| node.heard.as_ref());
    let Some(heard) = heard else { return "no telemetry yet".to_owned() };
    let state = if heard.state == State::Running { "running" } else { "stopping" };
    let boot = record.facts.boot.as_deref().unwrap_or("none");
    let last = heard.at.rfc3339();
    format!("{code}: last told {state} at {last} by boot {}, this is boot {boot}", heard.boot)
}

fn weights(record: &CapsuleRecord, risk: &Risk, out: &mut dyn Write) -> io::Result<()> {
    let policy = &record.policy.risk;
    let databases = record.facts.place.databases;
    for (name, factor, weight) in [
        ("address", risk.address, policy.address),
        ("autonomous system", risk.asn, policy.asn),
        ("region", risk.region, policy.region),
    ] {
        let words = match factor {
            Factor::Off => "off: there is no database for it".to_owned(),
            Factor::First => "the first".to_owned(),
            Factor::Same => "the baseline's".to_owned(),
            Factor::Unknown => "not known, and was not before: +0".to_owned(),
            Factor::Changed => format!("changed: +{weight}"),
        };
        writeln!(out, "      {name}: {words}")?;
    }
    if risk.abrupt_stop {
        let (window, weight) = (policy.abrupt_window.as_secs(), policy.abrupt_stop);
        writeln!(out, "      abrupt stop less than {window} s ago: +{weight}")?;
    }
    for (name, build) in [("autonomous systems", databases.asn), ("regions", databases.region)] {
        if let Some(build) = build {
            writeln!(out, "      by the database of {name} of build {build}")?;
        }
    }
    writeln!(out, "      risk {}, quarantine from {}", risk.score, policy.threshold)
}

fn telemetry(record: &TelemetryRecord, out: &mut dyn Write) -> io::Result<()> {
    let asked = record.asked.as_deref().unwrap_or("an id that is none");
    writeln!(out, "{asked} sent telemetry")?;
    for outcome in &record.stages {
        let mark = if outcome.passed { "passed " } else { "REFUSED" };
        writeln!(out, "  {} {mark} {}", outcome.stage.number(), outcome.code)?;
    }
    if let Some(network) = record.facts.place.network.as_ref().map(network) {
        writeln!(out, "  from {network}")?;
    }
    match &record.verdict {
        Ok(counted) => writeln!(out, "noted as {counted:?}, it changes nothing"),
        Err(refusal) => writeln!(out, "REFUSED: {}", refusal.reason.name()),
    }
}

fn network(network: &Network) -> String {
    let asn = network.asn.map(|asn| format!(" AS{asn}")).unwrap_or_default();
    let region = network.region.as_ref().map(|it| format!(" {it}")).unwrap_or_default();
    format!("{}{asn}{region}", network.address)
}
