//! What a stranger can tell from how long an answer takes.

use std::time::Instant;

use serde_json::{Value, json};

use crate::differences::{bootstrap, exceeds};
use crate::figures::{micros, quantile, sorted};
use crate::stage::{Stage, shown};
use crate::{Options, Outcome, fleet, http1};

/// Ids of each kind that are asked for again and again: what is asked for often is in every cache.
const IDS: u32 = 10;
const KINDS: u32 = 4;

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Of an id among those that are there.
    Unknown,
    /// Of an id after the last that is there.
    UnknownLast,
    WrongSecret,
    Malformed,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Unknown, Self::UnknownLast, Self::WrongSecret, Self::Malformed];

    fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown node",
            Self::UnknownLast => "unknown, past all",
            Self::WrongSecret => "wrong secret",
            Self::Malformed => "malformed id",
        }
    }

    /// An id as long as the others'.
    fn id(self, number: u32) -> String {
        match self {
            Self::Unknown => format!("node-{number:06}x"),
            Self::UnknownLast => format!("node-x{number:06}"),
            Self::WrongSecret => fleet::name(number),
            Self::Malformed => format!("node~{number:07}"),
        }
    }
}

pub(crate) async fn run(options: &Options, stage: &Stage) -> Outcome<Value> {
    let mut client = http1::Client::open(stage.port, stage.tls("http/1.1")?).await?;
    let request = |kind: Kind, number: u32| {
        // Every secret is wrong here, and as long as a right one.
        let secret = fleet::secret(number + 1_000_000);
        let path = format!("/api/runtime/capsule/{}", kind.id(number));
        http1::request(&path, &shown(number, &format!("Bearer {secret}")))
    };
    let mut took = Kind::ALL.map(|_| Vec::new());
    let warm = options.strangers / 10;
    for turn in 0..options.strangers + warm {
        let first = usize::try_from(turn % KINDS)?;
        // Each kind comes first, second and so on as often.
        for kind in (0..Kind::ALL.len()).map(|at| (first + at) % Kind::ALL.len()) {
            let (Some(&of), Some(took)) = (Kind::ALL.get(kind), took.get_mut(kind)) else {
                continue;
            };
            let request = request(of, turn / KINDS % IDS);
            let start = Instant::now();
            let status = client.get(&request).await?;
            let time = micros(start.elapsed());
            if status != 401 {
                return Err(format!("{}: {status}", of.name()).into());
            }
            if turn >= warm {
                took.push(time);
            }
        }
    }
    Ok(show(options, &took))
}

fn show(options: &Options, took: &[Vec<f64>; 4]) -> Value {
    println!(
        "\nstranger, {} registered, {} requests of each kind in turns on one connection",
        options.registered, options.strangers
    );
    println!("  {:<20}{:>10}{:>10}{:>10}", "µs", "p50", "p90", "p99");
    let mut figures = json!({});
    for (kind, took) in Kind::ALL.iter().zip(took) {
        let took = sorted(took.clone());
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| quantile(&took, share));
        println!("  {:<20}{p50:>10.1}{p90:>10.1}{p99:>10.1}", kind.name());
        figures[kind.name()] = json!({"p50_us": p50, "p90_us": p90, "p99_us": p99});
    }
    let [unknown, others @ ..] = took;
    for (kind, took) in Kind::ALL.iter().skip(1).zip(others) {
        let differences: Vec<_> =
            took.iter().zip(unknown).map(|(one, other)| one - other).collect();
        let (median, [low, high]) = bootstrap(&differences);
        let chance = exceeds(took, unknown);
        let name = format!("{} − {}", kind.name(), Kind::Unknown.name());
        println!(
            "  {name}: median of pairs {median:+.2} µs, 95 % of bootstraps {low:+.2} to {high:+.2}; \
             slower in {:.1} % of all pairs",
            chance * 100.0
        );
        figures[name] =
            json!({"median_us": median, "low_us": low, "high_us": high, "slower": chance});
    }
    figures
}
