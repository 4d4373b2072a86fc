//! `--watch`: a capsule that is renewed before it ends, and a node that says that it runs.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::json;
use tokio::time::{Interval, MissedTickBehavior};

use super::clock;
use super::failure::Failure;
use super::fetch::Fetcher;
use super::grant::Capsule;
use super::notify::Notifier;
use super::patience::Patience;
use super::session::Question;
use crate::cli::site::now;
use crate::policy::capsule::node::State;
use crate::policy::time::UnixTime;

/// The longest pause between two requests for a renewal.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The longest sleep between two looks at the wall clock: a machine that was suspended must not find
/// its capsule ended long ago.
const LOOK: Duration = Duration::from_secs(30);
/// How long telling that the node stops may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// Renews until `stop`, or until there is no capsule to be had: the edge refuses, or the last one
/// ends without an answer.
pub(super) async fn run(
    fetcher: &mut Fetcher<'_, '_>,
    notifier: &Notifier,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let mut telemetry = Telemetry::default();
    let ended = tokio::select! {
        ended = keep(fetcher, &mut telemetry, notifier) => ended,
        () = stop => Ok(()),
    };
    // systemd knows by the exit too, where it cannot be told.
    let _ = notifier.tell("STOPPING=1");
    if ended.is_ok() && telemetry.begun {
        let farewell = telemetry.say(fetcher, State::Stopping);
        if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
            fetcher.progress("the edge does not take the message that this node stops");
        }
    }
    ended
}

/// Returns with a failure only.
async fn keep(
    fetcher: &mut Fetcher<'_, '_>,
    telemetry: &mut Telemetry,
    notifier: &Notifier,
) -> Result<(), Failure> {
    let mut ticks = tokio::time::interval(fetcher.args.telemetry_every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut patience = Patience::first(fetcher.args);
    let mut ready = false;
    loop {
        let capsule = fetcher.obtain(&patience).await?;
        fetcher.publish(&capsule)?;
        let status = format!("STATUS=capsule good until {}", capsule.expires_utc);
        let told = if ready {
            notifier.tell(&status)
        } else {
            notifier.tell(&format!("READY=1\n{status}"))
        };
        if let Err(error) = told {
            fetcher.screen.tell("warning: ", &format!("systemd cannot be told: {error}"));
        }
        ready = true;
        let rest = renewal_in(&capsule, clock::chance());
        patience = Patience {
            retries: None,
            until: None,
            expires: Some(UnixTime::from_secs(capsule.claims.exp)),
            longest_pause: LONGEST_PAUSE,
        };
        drop(capsule);
        wait(fetcher, telemetry, &mut ticks, rest).await;
    }
}

/// How long after its coming a capsule is renewed: two thirds of its time, less up to a tenth of it
/// by chance, so that nodes that started together do not renew together.
fn renewal_in(capsule: &Capsule, chance: u64) -> Duration {
    let lifetime = Duration::from_secs(capsule.claims.exp.abs_diff(capsule.claims.iat));
    let latest = lifetime.saturating_mul(2) / 3;
    latest.saturating_sub(clock::part(lifetime / 10, chance)).max(Duration::from_secs(1))
}

/// Waits for `rest` by the wall clock or by the other one, whichever is first there.
async fn wait(
    fetcher: &mut Fetcher<'_, '_>,
    telemetry: &mut Telemetry,
    ticks: &mut Interval,
    rest: Duration,
) {
    let wall = now().plus(rest);
    let end = tokio::time::sleep(rest);
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return,
            () = tokio::time::sleep(LOOK) => {}
            _ = ticks.tick(), if fetcher.args.telemetry => {
                telemetry.say(fetcher, State::Running).await;
            }
        }
        if now() >= wall {
            return;
        }
    }
}

/// What was said so far.
#[derive(Default)]
struct Telemetry {
    /// Whether anything was.
    begun: bool,
    /// The number of the last message.
    seq: u64,
    /// What came of it, where it was not taken.
    trouble: Option<String>,
}

impl Telemetry {
    /// Says once how the node stands. What comes in between is told, once, and otherwise passed over:
    /// the next message comes soon, and the capsule does not depend on it.
    async fn say(&mut self, fetcher: &mut Fetcher<'_, '_>, state: State) {
        let Some(session) = &fetcher.session else { return };
        self.begun = true;
        self.seq = clock::sequence().max(self.seq.saturating_add(1));
        let mut report = json!({"bootId": session.boot, "seq": self.seq, "state": state});
        if let (Some(report), Some(version)) = (report.as_object_mut(), &session.software) {
            report.insert("version".into(), version.as_str().into());
        }
        let question = Question {
            method: Method::POST,
            path: &format!("/api/runtime/telemetry/{}", session.node),
            key_version: None,
            body: Bytes::from(report.to_string()),
            seal: None,
        };
        let answered = session.ask(&question, &mut fetcher.nonce).await;
        let trouble = answered.and_then(|answered| answered.success()).err().map(|f| f.to_string());
        if trouble != self.trouble {
            let text = trouble.as_deref().unwrap_or("taken again");
            fetcher.progress(&format!("telemetry: {text}"));
        }
        self.trouble = trouble;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::capsule;
    use super::*;

    #[test]
    fn renewal_is_at_two_thirds_or_a_little_before() {
        let check = |lifetime, chance, expect_ms| {
            let renewal = renewal_in(&capsule(lifetime), chance);
            assert_eq!(renewal, Duration::from_millis(expect_ms), "{lifetime} {chance}");
        };
        check(86_400, 0, 57_600_000);
        check(86_400, 8_640_000, 48_960_000);
        check(86_400, 8_640_001, 57_600_000);
        check(3, 0, 2000);
        check(1, 0, 1000);
    }
}
