//! Load: clients, each of which sends its next request when its last one is answered, and what that
//! came to.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::Outcome;
use crate::figures::{micros, number, quantile, sorted};

/// Who sends requests, one at a time.
pub(crate) trait Client: Send + 'static {
    type Request: Send + 'static;

    /// Sends a request and reads the whole answer: its status.
    fn send(&mut self, request: Self::Request) -> impl Future<Output = Outcome<u16>> + Send;
}

/// What a load came to.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pub(crate) wall: Duration,
    /// The edge's CPU time, for all requests.
    pub(crate) cpu: Duration,
    /// Microseconds of each request, in ascending order.
    pub(crate) latencies: Vec<f64>,
    pub(crate) statuses: BTreeMap<u16, usize>,
    /// Requests that got no answer.
    pub(crate) failures: Vec<String>,
}

/// One client's answers, status and microseconds, and why there are no more.
type Answers = (Vec<(u16, f64)>, Option<String>);

/// Has all clients send at once, each its own requests, and waits until they have. A client that
/// gets no answer gives up.
pub(crate) async fn send<C: Client>(
    shares: impl IntoIterator<Item = (C, Vec<C::Request>)>,
) -> Outcome<(Vec<C>, Load)> {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for (client, share) in shares {
        tasks.spawn(send_share(client, share));
    }
    let (mut clients, mut all) = (Vec::with_capacity(tasks.len()), Vec::with_capacity(tasks.len()));
    while let Some(ended) = tasks.join_next().await {
        let (client, answers) = ended?;
        clients.push(client);
        all.push(answers);
    }
    let mut load = Load { wall: start.elapsed(), ..Load::default() };
    for (answers, failure) in all {
        load.failures.extend(failure);
        for (status, took) in answers {
            *load.statuses.entry(status).or_default() += 1;
            load.latencies.push(took);
        }
    }
    load.latencies = sorted(load.latencies);
    Ok((clients, load))
}

async fn send_share<C: Client>(mut client: C, share: Vec<C::Request>) -> (C, Answers) {
    let mut answers = Vec::with_capacity(share.len());
    for request in share {
        let start = Instant::now();
        let status = client.send(request).await;
        let took = micros(start.elapsed());
        match status {
            Ok(status) => answers.push((status, took)),
            Err(error) => return (client, (answers, Some(error.to_string()))),
        }
    }
    (client, (answers, None))
}

impl Load {
    pub(crate) fn answers(&self) -> f64 {
        number(self.latencies.len())
    }

    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.answers() / self.wall.as_secs_f64()
    }

    /// Microseconds a request of what all of them took.
    pub(crate) fn each(&self, time: Duration) -> f64 {
        micros(time) / self.answers()
    }

    /// Microseconds of the edge's CPU time a request.
    pub(crate) fn cost(&self) -> f64 {
        self.each(self.cpu)
    }

    /// How much of the time the edge was on a core.
    pub(crate) fn busy(&self) -> f64 {
        self.cpu.as_secs_f64() / self.wall.as_secs_f64()
    }

    /// Microseconds within which this share of the requests was answered.
    pub(crate) fn latency(&self, share: f64) -> f64 {
        quantile(&self.latencies, share)
    }
}
